//! Who may go to the canary: the two limits, behind a permit.
//!
//! A request that is to go to the canary asks [`Admission::admit`]; only the [`Permit`] that it gets
//! lets it through. The permit knows what it reserved and gives it back or charges it exactly once,
//! when it is settled or dropped. There is no other way to count, so a limit cannot be overshot at
//! any concurrency, and nothing that happens to a request (cancelled, panicked, forgotten) can
//! wedge it.
//!
//! Checked three ways: the transitions are enumerated in [`crate::policy::quota`], the atomics are
//! model-checked in `tests/loom.rs`, the whole through sockets in `tests/it/limits.rs`.

use std::sync::{Arc, atomic::Ordering};

use super::sync::AtomicU64;
use crate::{
    config::Limits,
    policy::{
        LimitsSpent, Outcome,
        quota::{ErrorQuota, take_token},
    },
};

/// The canary's budgets, shared by all workers.
#[derive(Debug)]
pub struct Admission {
    limits: Limits,
    /// Request tokens taken.
    taken: AtomicU64,
    /// An [`ErrorQuota`], packed so that both of its numbers change in one step.
    errors: AtomicU64,
}

/// What is left of the budgets; `None` where the limit is off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remaining {
    /// Requests that may still go to the canary.
    pub requests: Option<u64>,
    /// Requests that could be admitted now: reservations in flight count as used.
    pub errors: Option<u64>,
}

/// Lets one request through to the canary. Dropped without a word it counts as
/// [`Outcome::Ignored`].
#[derive(Debug)]
#[must_use = "a permit that is dropped at once lets nothing through"]
pub struct Permit {
    /// `None` once settled.
    admission: Option<Arc<Admission>>,
    reserved: bool,
}

impl Admission {
    /// Fresh budgets.
    pub fn new(limits: Limits) -> Arc<Admission> {
        Arc::new(Admission {
            limits,
            taken: AtomicU64::new(0),
            errors: AtomicU64::new(0),
        })
    }

    /// Which limits are used up, so that nobody needs to ask the sidecar.
    pub fn spent(&self) -> LimitsSpent {
        // Relaxed: a hint that saves work; admission itself decides in one atomic step.
        LimitsSpent {
            requests: self
                .limits
                .requests
                .is_some_and(|limit| self.taken.load(Ordering::Relaxed) >= limit),
            errors: self
                .limits
                .errors
                .is_some_and(|limit| unpack(self.errors.load(Ordering::Relaxed)).spent(limit)),
        }
    }

    /// Asks for a request that the router chose to send. `None`: the request goes to main.
    ///
    /// Takes a request token for good and reserves an error; where one of the two is refused,
    /// neither is kept.
    pub fn admit(self: &Arc<Self>) -> Option<Permit> {
        let reserved = match self.limits.errors {
            None => false,
            Some(limit) => {
                self.update_errors(|quota| quota.reserve(limit))?;
                true
            }
        };
        // From here on the reservation cannot be lost: dropping the permit gives it back.
        let permit = Permit {
            admission: Some(Arc::clone(self)),
            reserved,
        };
        if let Some(limit) = self.limits.requests {
            // Relaxed: the counter stands alone; a read-modify-write is exact under any ordering.
            self.taken
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
                    take_token(taken, limit)
                })
                .ok()?;
        }
        Some(permit)
    }

    /// For a request that `X-Canary: true` forces: never refused, reserves nothing, is charged all
    /// the same.
    pub fn admit_forced(self: &Arc<Self>) -> Permit {
        Permit {
            admission: Some(Arc::clone(self)),
            reserved: false,
        }
    }

    /// What is left, for the metrics.
    pub fn remaining(&self) -> Remaining {
        Remaining {
            requests: self
                .limits
                .requests
                .map(|limit| limit.saturating_sub(self.taken.load(Ordering::Relaxed))),
            errors: self.limits.errors.map(|limit| {
                unpack(self.errors.load(Ordering::Relaxed))
                    .remaining(limit)
                    .into()
            }),
        }
    }

    fn end(&self, reserved: bool, outcome: Outcome) {
        if self.limits.errors.is_none() || (!reserved && outcome != Outcome::Failure) {
            return;
        }
        let _always_some = self.update_errors(|quota| {
            Some(if reserved {
                quota.settle(outcome)
            } else {
                quota.charge(outcome)
            })
        });
    }

    fn update_errors(&self, next: impl Fn(ErrorQuota) -> Option<ErrorQuota>) -> Option<()> {
        // Relaxed: both numbers live in the one word, and no other memory hangs on them.
        self.errors
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |packed| {
                next(unpack(packed)).map(pack)
            })
            .ok()
            .map(drop)
    }
}

impl Permit {
    /// Ends the request.
    pub fn settle(mut self, outcome: Outcome) {
        self.end(outcome);
    }

    fn end(&mut self, outcome: Outcome) {
        if let Some(admission) = self.admission.take() {
            admission.end(self.reserved, outcome);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.end(Outcome::Ignored);
    }
}

fn pack(quota: ErrorQuota) -> u64 {
    u64::from(quota.errors) << 32 | u64::from(quota.reserved)
}

fn unpack(packed: u64) -> ErrorQuota {
    ErrorQuota {
        errors: (packed >> 32) as u32,
        // Truncation keeps exactly the lower half.
        reserved: packed as u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(requests: Option<u64>, errors: Option<u32>) -> Arc<Admission> {
        Admission::new(Limits {
            requests,
            errors,
            ..Limits::default()
        })
    }

    #[test]
    fn packing_keeps_both_numbers() {
        for errors in [0, 1, u32::MAX] {
            for reserved in [0, 7, u32::MAX] {
                let quota = ErrorQuota { errors, reserved };
                assert_eq!(unpack(pack(quota)), quota);
            }
        }
    }

    #[test]
    fn limits_that_are_off_refuse_nothing() {
        let admission = limits(None, None);
        for _ in 0..1000 {
            admission.admit().unwrap().settle(Outcome::Failure);
        }
        assert_eq!(admission.spent(), LimitsSpent::default());
        assert_eq!(
            admission.remaining(),
            Remaining {
                requests: None,
                errors: None
            }
        );
    }

    #[test]
    fn a_permit_refused_by_the_request_limit_gives_its_reservation_back() {
        let admission = limits(Some(1), Some(5));
        let first = admission.admit().unwrap();
        assert!(admission.admit().is_none());
        assert_eq!(
            admission.remaining(),
            Remaining {
                requests: Some(0),
                errors: Some(4)
            }
        );
        first.settle(Outcome::Success);
        assert_eq!(
            admission.remaining(),
            Remaining {
                requests: Some(0),
                errors: Some(5)
            }
        );
    }

    #[test]
    fn a_permit_refused_by_the_error_limit_takes_no_token() {
        let admission = limits(Some(10), Some(1));
        let held = admission.admit().unwrap();
        assert!(admission.admit().is_none());
        assert_eq!(admission.remaining().requests, Some(9));
        drop(held);
        assert!(admission.admit().is_some());
    }

    #[test]
    fn a_dropped_permit_counts_as_ignored() {
        let admission = limits(None, Some(1));
        drop(admission.admit().unwrap());
        assert_eq!(admission.remaining().errors, Some(1));
        assert!(!admission.spent().errors);
    }

    #[test]
    fn forced_requests_are_never_refused_and_their_failures_are_charged() {
        let admission = limits(Some(1), Some(2));
        for _ in 0..5 {
            admission.admit_forced().settle(Outcome::Failure);
        }
        assert!(admission.spent().errors);
        assert_eq!(
            admission.remaining(),
            Remaining {
                requests: Some(1),
                errors: Some(0)
            }
        );
        assert!(admission.admit().is_none());
        admission.admit_forced().settle(Outcome::Success);
    }

    #[test]
    fn threads_cannot_overshoot() {
        let admission = limits(Some(450), Some(15));
        let failed: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        (0..1000)
                            .filter_map(|_| admission.admit())
                            .map(|permit| permit.settle(Outcome::Failure))
                            .count()
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .sum()
        });
        assert_eq!(failed, 15);
    }
}
