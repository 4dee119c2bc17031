//! The only place that reads time.
//!
//! Everything that measures or waits uses the monotonic [`now`]: a step of the wall clock must not
//! cut a request or stretch a timeout. Wall time is for what people read.

use std::time::{Instant, SystemTime};

/// The monotonic time.
#[allow(clippy::disallowed_methods)]
pub fn now() -> Instant {
    Instant::now()
}

/// The wall-clock time, for log lines only.
#[allow(clippy::disallowed_methods)]
pub fn wall() -> SystemTime {
    SystemTime::now()
}
