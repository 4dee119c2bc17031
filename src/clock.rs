//! The only place that reads time.
//!
//! Everything that measures or waits uses the monotonic [`now`]: a step of the wall clock must not
//! cut a request or stretch a timeout. Wall time is for what people read.

use std::{
    cell::Cell,
    sync::LazyLock,
    time::{Duration, Instant, SystemTime},
};

thread_local! {
    static READ: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// The monotonic time.
#[allow(clippy::disallowed_methods)]
pub fn now() -> Instant {
    let now = Instant::now();
    READ.set(Some(now));
    now
}

/// The monotonic time when this thread last read it: for what is only compared with limits that are
/// much longer than the thread's turns. A worker reads it with every request, and otherwise every
/// time that it looks for what is overdue.
pub fn recent() -> Instant {
    READ.get().unwrap_or_else(now)
}

/// A moment as the time since the first one that was asked for: what policy and state go by.
pub fn moment(instant: Instant) -> Duration {
    instant.saturating_duration_since(*START)
}

/// This moment; see [`moment`].
pub fn uptime() -> Duration {
    moment(now())
}

static START: LazyLock<Instant> = LazyLock::new(now);

/// The wall-clock time, for log lines only.
#[allow(clippy::disallowed_methods)]
pub fn wall() -> SystemTime {
    SystemTime::now()
}
