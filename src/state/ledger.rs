//! Decides what is to be on disk, and when: before anything is counted that a crash would forget.
//!
//! The disk itself is somebody else's (`control::keeper`, and none at all in `tests/simulation.rs`).
//! Counts are written ahead of what they count, up to a ceiling ([`crate::policy::headroom`]); what a
//! process finds on disk counts as used.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::{
    Admission, Kept, Progress, SharedProgress,
    admission::{Restored, Terms, Used},
};
use crate::{
    config::Limits,
    policy::{Target, headroom::Headroom},
};

/// How long after a failed write the next one is tried.
const RETRY: Duration = Duration::from_secs(1);

/// What is on disk, and how far the counts may rise by it.
#[derive(Debug)]
pub struct Ledger {
    kept: Kept,
    progress: Arc<SharedProgress>,
    written: Option<Version>,
    requests: Headroom,
    errors: Headroom,
    /// Refusals by the ceiling, and resets, that have been seen.
    refused: u64,
    resets: u64,
    retry_at: Duration,
}

/// What differs when there is something to write: the counts, the generations of the breakers, and the version
/// of the rollout.
type Version = (Used, [Option<u64>; Target::ALL.len()], u64);

/// What came of a look.
#[derive(Debug, PartialEq, Eq)]
pub enum Look<E> {
    /// There was nothing to write, or it is not time to try again.
    Nothing,
    /// It is on disk.
    Written,
    /// It is not: the counts are in memory only.
    Failed(E),
}

impl Ledger {
    /// Goes on from what was found, with what the control plane makes of the rollout.
    pub fn new(kept: Kept, terms: Terms, progress: Arc<SharedProgress>) -> Ledger {
        let used = kept.restored.used;
        let (requests, errors) = most(&terms.limits);
        Ledger {
            kept,
            progress,
            written: None,
            requests: Headroom::new(requests, used.requests),
            errors: Headroom::new(errors, used.errors),
            refused: 0,
            resets: 0,
            retry_at: Duration::ZERO,
        }
    }

    /// What is on disk may be somebody else's by now.
    pub fn write_again(&mut self) {
        self.written = None;
    }

    /// Has `put` write if there is reason to, and moves the ceiling. To be called before the first request
    /// and then many times a second. `admission` is what is in force.
    pub fn look<E>(
        &mut self,
        admission: impl FnOnce() -> Arc<Admission>,
        now: Duration,
        wall: SystemTime,
        put: impl FnOnce(&str) -> Result<(), E>,
    ) -> Look<E> {
        // Before all else: who waits for this version waits for what he had changed before he made it.
        let latest = self.progress.latest();
        let admission = &*admission();
        let before = self.ceiling();
        let (requests, errors) = most(admission.limits());
        let used = admission.used();
        self.requests.set_limit(requests, used.requests);
        self.errors.set_limit(errors, used.errors);
        let resets = admission.resets();
        if std::mem::replace(&mut self.resets, resets) != resets {
            let used = admission.used();
            self.requests.restart(used.requests);
            self.errors.restart(used.errors);
        }
        let refused = admission.refused_by_ceiling();
        let hit = std::mem::replace(&mut self.refused, refused) < refused;
        let used = admission.used();
        self.requests.next(used.requests, hit, now);
        self.errors.next(used.errors, hit, now);
        if now < self.retry_at {
            return Look::Nothing;
        }
        // Lowered at once, raised when it is written.
        let after = self.ceiling();
        let used = admission.lower_ceiling(Used {
            requests: before.requests.min(after.requests),
            errors: before.errors.min(after.errors),
        });
        let ceiling = Used {
            requests: after.requests.max(used.requests),
            errors: after.errors.max(used.errors),
        };
        let look = self.write(ceiling, latest, admission, now, wall, put);
        admission.set_ceiling(match look {
            Look::Nothing | Look::Written => ceiling,
            Look::Failed(_) => {
                self.retry_at = now + RETRY;
                // Better a promise that holds as long as this process than a canary that nobody gets.
                Used {
                    requests: u64::MAX,
                    errors: u64::MAX,
                }
            }
        });
        look
    }

    /// The last look: nothing ahead any more.
    pub fn close<E>(
        &mut self,
        admission: impl FnOnce() -> Arc<Admission>,
        now: Duration,
        wall: SystemTime,
        put: impl FnOnce(&str) -> Result<(), E>,
    ) -> Look<E> {
        let latest = self.progress.latest();
        let admission = &*admission();
        self.write(admission.used(), latest, admission, now, wall, put)
    }

    fn write<E>(
        &mut self,
        used: Used,
        (progress, latest): (u64, Option<Arc<Progress>>),
        admission: &Admission,
        now: Duration,
        wall: SystemTime,
        put: impl FnOnce(&str) -> Result<(), E>,
    ) -> Look<E> {
        let breakers = Target::ALL.map(|target| {
            let gate = admission.gate(target)?;
            Some(gate.with(|breaker| (breaker.generation(), breaker.save(now))))
        });
        let generations = breakers.map(|breaker| breaker.map(|(generation, _)| generation));
        let version = (used, generations, progress);
        if self.written == Some(version) {
            return Look::Nothing;
        }
        self.kept.restored = Restored {
            used,
            breakers: breakers.map(|breaker| breaker.map(|(_, saved)| saved)),
        };
        self.kept.progress = latest;
        match put(&self.kept.to_text(wall)) {
            Ok(()) => {
                self.written = Some(version);
                self.progress.set_written(progress);
                Look::Written
            }
            Err(error) => {
                // Even what was there before may have been replaced by now; and who says that it is not on
                // disk has to find out when it is.
                self.written = None;
                Look::Failed(error)
            }
        }
    }

    fn ceiling(&self) -> Used {
        Used {
            requests: self.requests.ceiling(),
            errors: self.errors.ceiling(),
        }
    }
}

/// How far requests and errors may be counted; not at all where nothing limits them.
fn most(limits: &Limits) -> (u64, u64) {
    let Limits {
        requests, errors, ..
    } = limits;
    (requests.unwrap_or(0), errors.map_or(0, u64::from))
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::{config::Breakers, policy::breaker::Rate};

    /// A kill right after it would otherwise bring back what was used.
    #[test]
    fn a_reset_is_on_disk_with_the_next_write_and_not_when_the_ceiling_has_come_down() {
        let terms = Terms {
            limits: Limits {
                requests: Some(640),
                errors: Some(15),
                ..Limits::default()
            },
            breakers: Breakers::default(),
            repeats: Rate(0),
        };
        let admission = Admission::new(terms, Duration::ZERO);
        let mut ledger = Ledger::new(Kept::default(), terms, SharedProgress::new(None));
        let mut look = |ms| {
            let now = Duration::from_millis(ms);
            let admission = || Arc::clone(&admission);
            let look = ledger.look(admission, now, UNIX_EPOCH + now, |_| Ok::<_, ()>(()));
            (look, ledger.kept.restored.used)
        };
        look(0);
        for ms in 1..200 {
            for _ in 0..10 {
                drop(admission.admit(|| Duration::ZERO));
            }
            look(20 * ms);
        }
        assert_eq!(look(4_000).1.requests, 640);
        admission.reset_limits();
        let ahead = Used {
            requests: 10,
            errors: 1,
        };
        assert_eq!(look(4_020), (Look::Written, ahead));
        assert_eq!(look(4_040), (Look::Nothing, ahead));
    }

    #[test]
    fn what_failed_is_tried_again_though_nothing_is_new_any_more() {
        let terms = Terms {
            limits: Limits {
                errors: Some(15),
                ..Limits::default()
            },
            breakers: Breakers::default(),
            repeats: Rate(0),
        };
        let admission = Admission::new(terms, Duration::ZERO);
        let mut ledger = Ledger::new(Kept::default(), terms, SharedProgress::new(None));
        let mut look = |ms, works: bool| {
            let now = Duration::from_millis(ms);
            let admission = || Arc::clone(&admission);
            ledger.look(admission, now, UNIX_EPOCH + now, |_| match works {
                true => Ok(()),
                false => Err("full"),
            })
        };
        assert_eq!(look(0, true), Look::Written);
        let held: Vec<_> = (0..3).map(|_| admission.admit(|| Duration::ZERO)).collect();
        assert_eq!(look(20, false), Look::Failed("full"));
        drop(held);
        // By the next attempt the ceiling has come down to what was written at first.
        assert_eq!(look(10_020, true), Look::Written);
        assert_eq!(look(10_040, true), Look::Nothing);
    }
}
