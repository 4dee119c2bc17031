//! How reading the configuration again goes: written by who does it, read by metrics and status.

use std::time::SystemTime;

use super::sync::{Mutex, lock};

/// How reading the configuration again goes.
#[derive(Debug)]
pub struct Reloads(Mutex<Counts>);

/// How it has gone so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// What was read is in force.
    pub succeeded: u64,
    /// It could not be used, and all stays as it was.
    pub failed: u64,
    /// When what is in force was read: at the start, where nothing was read since.
    pub last_success: SystemTime,
}

impl Reloads {
    /// The configuration was read for the first time at `now`.
    pub fn new(now: SystemTime) -> Reloads {
        Reloads(Mutex::new(Counts {
            succeeded: 0,
            failed: 0,
            last_success: now,
        }))
    }

    /// It was read again, at `now`.
    pub fn succeeded(&self, now: SystemTime) {
        let mut counts = lock(&self.0);
        counts.succeeded += 1;
        counts.last_success = now;
    }

    /// What was read cannot be used.
    pub fn failed(&self) {
        lock(&self.0).failed += 1;
    }

    /// How it has gone so far.
    pub fn counts(&self) -> Counts {
        *lock(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn a_failure_leaves_the_time_of_the_last_success() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let reloads = Reloads::new(at(1));
        reloads.failed();
        assert_eq!(reloads.counts().last_success, at(1));
        reloads.succeeded(at(2));
        reloads.failed();
        let counts = reloads.counts();
        assert_eq!((counts.succeeded, counts.failed), (1, 2));
        assert_eq!(counts.last_success, at(2));
    }
}
