//! How reading the configuration again goes: written by who does it, read by metrics and status.

use std::time::SystemTime;

use super::sync::{Mutex, lock};

/// How reading the configuration again goes.
#[derive(Debug)]
pub struct Reloads(Mutex<Counts>);

/// How it has gone so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counts {
    /// What was read is in force.
    pub succeeded: u64,
    /// It could not be used, and all stays as it was.
    pub failed: u64,
    /// When what is in force was read: at the start, where nothing was read since.
    pub last_success: SystemTime,
    /// When what was read since could not be used, and why, if that is so.
    pub failure: Option<(SystemTime, String)>,
}

impl Reloads {
    /// The configuration was read for the first time at `now`.
    pub fn new(now: SystemTime) -> Reloads {
        Reloads(Mutex::new(Counts {
            succeeded: 0,
            failed: 0,
            last_success: now,
            failure: None,
        }))
    }

    /// It was read again, at `now`.
    pub fn succeeded(&self, now: SystemTime) {
        let mut counts = lock(&self.0);
        counts.succeeded += 1;
        counts.last_success = now;
        counts.failure = None;
    }

    /// What was read at `now` cannot be used.
    pub fn failed(&self, now: SystemTime, why: String) {
        let mut counts = lock(&self.0);
        counts.failed += 1;
        counts.failure = Some((now, why));
    }

    /// How it has gone so far.
    pub fn counts(&self) -> Counts {
        lock(&self.0).clone()
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
        reloads.failed(at(1), "no JSON".into());
        assert_eq!(reloads.counts().last_success, at(1));
        reloads.succeeded(at(2));
        assert_eq!(reloads.counts().failure, None);
        reloads.failed(at(3), "no port".into());
        let counts = reloads.counts();
        assert_eq!(counts.failure, Some((at(3), "no port".into())));
        assert_eq!((counts.succeeded, counts.failed), (1, 2));
        assert_eq!(counts.last_success, at(2));
    }
}
