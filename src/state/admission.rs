//! Who may go to an upstream: limits and breakers, behind a permit.
//!
//! A request that is to go to the canary asks [`Admission::admit`]; only the [`Permit`] that it gets
//! lets it through. The permit knows what it reserved and gives it back or charges it exactly once,
//! when it is settled or dropped. There is no other way to count, so a limit cannot be overshot at
//! any concurrency, and nothing that happens to a request (cancelled, panicked, forgotten) can
//! wedge it. Main has no limits, but may have a breaker: [`Admission::admit_main`].
//!
//! Where the counts outlive the process, they may rise no further than a ceiling that is on disk
//! already: what a crash forgets was counted there.
//!
//! Checked three ways: the transitions are enumerated in [`crate::policy::quota`] and
//! [`crate::policy::breaker`], the atomics are model-checked in `tests/loom.rs`, the whole through
//! sockets in `tests/it/limits.rs`.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use super::{
    gate::Gate,
    sync::{AtomicU64, Mutex, lock},
};
use crate::{
    config::{Breakers, Config, Limits},
    policy::{
        Barriers, FailureRule, Outcome, Refusal, Target,
        breaker::{Breaker, Rate, Refused, Saved, Settings, Ticket},
        budget::Budget,
        quota::{ErrorQuota, take_token},
    },
};

/// What stands before the upstreams, shared by all workers: what is configured, and what was counted, which
/// outlives that. Moments are since any fixed one.
#[derive(Debug)]
pub struct Admission {
    limits: Limits,
    /// By [`Target::index`].
    breakers: [Option<Guard>; Target::ALL.len()],
    counts: Arc<Counts>,
}

/// What is the same whatever is configured.
#[derive(Debug)]
struct Counts {
    /// Request tokens taken.
    taken: AtomicU64,
    /// An [`ErrorQuota`], packed so that both of its numbers change in one step.
    errors: AtomicU64,
    sidecar: Gate,
    /// How often the limits were reset.
    resets: AtomicU64,
    /// Of requests that are sent to main after the canary has failed.
    repeats: Mutex<Budget>,
    ceiling: Ceiling,
}

/// What the configuration says of all this.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// The canary's limits.
    pub limits: Limits,
    /// The breakers of both targets.
    pub breakers: Breakers,
    /// The share of canary requests that may be sent to main as well.
    pub repeats: Rate,
}

impl Terms {
    /// Of this configuration.
    pub fn of(config: &Config) -> Terms {
        Terms {
            limits: config.limits,
            breakers: config.breakers,
            repeats: Rate(config.fallback.budget),
        }
    }
}

/// The sidecar's breaker. A question that fails costs a request its timeout, so a few in a row are enough to
/// stop asking, and it is asked again soon.
const SIDECAR: Settings = Settings {
    failure_rate: None,
    slow_calls: None,
    failures_in_a_row: Some(5),
    minimum_calls: 1,
    window: Duration::from_secs(10),
    wait_open: Duration::from_secs(1),
    max_wait_open: Duration::from_secs(30),
    permitted_half_open: 1,
};

/// A breaker, and what it takes for a failure.
#[derive(Debug)]
struct Guard {
    gate: Arc<Gate>,
    failure: FailureRule,
}

/// How far the counts may rise at this moment.
#[derive(Debug)]
struct Ceiling {
    requests: AtomicU64,
    errors: AtomicU64,
    /// How often a request was refused for no other reason.
    refused: AtomicU64,
}

/// What is left of the budgets; `None` where the limit is off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remaining {
    /// Requests that may still go to the canary.
    pub requests: Option<u64>,
    /// Requests that could be admitted now: reservations in flight count as used.
    pub errors: Option<u64>,
}

/// The counts at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Used {
    /// Request tokens taken.
    pub requests: u64,
    /// Errors, and reservations that may become some.
    pub errors: u64,
}

/// What a process that starts has to go on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Restored {
    /// The counts.
    pub used: Used,
    /// The breakers, by [`Target::index`].
    pub breakers: [Option<Saved>; Target::ALL.len()],
}

/// Lets one request through to an upstream. Dropped without a word it counts as
/// [`Outcome::Ignored`].
#[derive(Debug)]
#[must_use = "a permit that is dropped at once lets nothing through"]
pub struct Permit {
    admission: Arc<Admission>,
    target: Target,
    /// What the limits are still to be told. Settled, it is `None`.
    quota: Option<Quota>,
    /// What the breaker is still to be told.
    ticket: Option<Ticket>,
    /// How long the upstream took to answer.
    took: Duration,
}

/// How a request stands with the error limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quota {
    Reserved,
    /// Nothing is given back, but a failure is charged.
    Charged,
}

impl Admission {
    /// Fresh budgets, closed breakers.
    pub fn new(terms: Terms, now: Duration) -> Arc<Admission> {
        Admission::restore(terms, &Restored::default(), now)
    }

    /// As they were.
    pub fn restore(terms: Terms, restored: &Restored, now: Duration) -> Arc<Admission> {
        let Terms {
            limits,
            breakers,
            repeats,
        } = terms;
        let guard = |target: Target| {
            let config = match target {
                Target::Main => breakers.main,
                Target::Canary => breakers.canary,
            }?;
            let breaker = match restored.breakers[target.index()] {
                Some(saved) => Breaker::restore(config.settings, saved, now),
                None => Breaker::new(config.settings, now),
            };
            Some(Guard {
                gate: Arc::new(Gate::new(breaker)),
                failure: config.failure,
            })
        };
        let errors = ErrorQuota {
            errors: restored.used.errors.try_into().unwrap_or(u32::MAX),
            reserved: 0,
        };
        Arc::new(Admission {
            limits,
            breakers: Target::ALL.map(guard),
            counts: Arc::new(Counts {
                taken: AtomicU64::new(restored.used.requests),
                errors: AtomicU64::new(pack(errors)),
                repeats: Mutex::new(Budget::new(repeats)),
                sidecar: Gate::new(Breaker::new(SIDECAR, now)),
                resets: AtomicU64::new(0),
                ceiling: Ceiling {
                    requests: AtomicU64::new(u64::MAX),
                    errors: AtomicU64::new(u64::MAX),
                    refused: AtomicU64::new(0),
                },
            }),
        })
    }

    /// The same counts and breakers under other terms, for requests that begin from now on. Those in flight
    /// settle what they have reserved as ever. A limit that was off counts from now on; a breaker that was
    /// off is closed.
    pub fn renewed(&self, terms: Terms, now: Duration) -> Arc<Admission> {
        let guard = |target: Target| {
            let config = match target {
                Target::Main => terms.breakers.main,
                Target::Canary => terms.breakers.canary,
            }?;
            let gate = match self.guard(target) {
                Some(guard) => {
                    guard.gate.with(|breaker| breaker.set(config.settings, now));
                    Arc::clone(&guard.gate)
                }
                None => Arc::new(Gate::new(Breaker::new(config.settings, now))),
            };
            Some(Guard {
                gate,
                failure: config.failure,
            })
        };
        lock(&self.counts.repeats).set_share(terms.repeats);
        Arc::new(Admission {
            limits: terms.limits,
            breakers: Target::ALL.map(guard),
            counts: Arc::clone(&self.counts),
        })
    }

    /// The limits in force.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// What stands before the canary at this moment, so that nobody needs to ask the sidecar.
    pub fn barriers(&self, now: impl FnOnce() -> Duration) -> Barriers {
        // Relaxed: a hint that saves work; admission itself decides in one atomic step.
        Barriers {
            requests: self
                .limits
                .requests
                .is_some_and(|limit| self.counts.taken.load(Ordering::Relaxed) >= limit),
            errors: self.limits.errors.is_some_and(|limit| {
                unpack(self.counts.errors.load(Ordering::Relaxed)).spent(limit)
            }),
            breaker: self
                .guard(Target::Canary)
                .is_some_and(|guard| guard.gate.refuses(now).is_some()),
        }
    }

    /// Whether nothing stands before either target, so that what starts now can be compared.
    pub fn is_clear(&self) -> bool {
        let closed = |target| {
            self.guard(target)
                .is_none_or(|guard| guard.gate.is_closed())
        };
        // Relaxed: as for `barriers`.
        let read = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        let used = self.used();
        let has_room = |limit: Option<u64>, ceiling: &AtomicU64, used: u64| {
            limit.is_none_or(|limit| used < limit.min(read(ceiling)))
        };
        let Limits {
            requests, errors, ..
        } = self.limits;
        closed(Target::Main)
            && closed(Target::Canary)
            && has_room(requests, &self.counts.ceiling.requests, used.requests)
            && has_room(
                errors.map(u64::from),
                &self.counts.ceiling.errors,
                used.errors,
            )
    }

    /// Asks for a request that the router chose to send to the canary.
    ///
    /// Takes a request token for good, reserves an error, and is a probe where the breaker is half-open;
    /// where one of the three is refused, none is kept.
    ///
    /// # Errors
    /// The request goes to main.
    pub fn admit(self: &Arc<Self>, now: impl FnOnce() -> Duration) -> Result<Permit, Refusal> {
        let mut permit = Permit::new(self, Target::Canary);
        // Whatever the permit has got is given back when it is dropped.
        if let Some(guard) = self.guard(Target::Canary) {
            let ticket = guard.gate.admit(now).map_err(|_| Refusal::Breaker)?;
            permit.ticket = Some(ticket);
        }
        if let Some(limit) = self.limits.errors {
            // Relaxed, here and below: a ceiling rises after what it stands for is on disk, and whoever
            // sees that late is refused. For one that is lowered meanwhile it is looked at again.
            let ceiling = || {
                let ceiling = self.counts.ceiling.errors.load(Ordering::Relaxed);
                u32::try_from(ceiling).unwrap_or(u32::MAX).min(limit)
            };
            let before = ceiling();
            let Some(quota) = self.update_errors(|quota| quota.reserve(before)) else {
                self.refuse(before < limit);
                return Err(Refusal::Limit);
            };
            permit.quota = Some(Quota::Reserved);
            if quota.claimed() > ceiling().into() {
                self.refuse(true);
                return Err(Refusal::Limit);
            }
        }
        if let Some(limit) = self.limits.requests {
            let ceiling = || {
                self.counts
                    .ceiling
                    .requests
                    .load(Ordering::Relaxed)
                    .min(limit)
            };
            let before = ceiling();
            // Acquire: see `lower_ceiling`. A read-modify-write is exact under any ordering.
            let taken =
                self.counts
                    .taken
                    .fetch_update(Ordering::Acquire, Ordering::Relaxed, |taken| {
                        take_token(taken, before)
                    });
            let Ok(taken) = taken else {
                self.refuse(before < limit);
                return Err(Refusal::Limit);
            };
            if taken >= ceiling() {
                // The only token that is given back: nobody went anywhere with it. The limits may have been
                // reset meanwhile, and it with them.
                let back = |taken: u64| taken.checked_sub(1);
                let _reset =
                    self.counts
                        .taken
                        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, back);
                self.refuse(true);
                return Err(Refusal::Limit);
            }
        }
        Ok(permit)
    }

    /// For a request that `X-Canary: true` forces: never refused, reserves nothing, is charged all
    /// the same.
    pub fn admit_forced(self: &Arc<Self>) -> Permit {
        let mut permit = Permit::new(self, Target::Canary);
        permit.quota = self.limits.errors.map(|_| Quota::Charged);
        permit.ticket = self.guard(Target::Canary).map(|guard| guard.gate.forced());
        permit
    }

    /// Asks for a request to main. `None`: there is nothing to ask.
    ///
    /// # Errors
    /// Main's breaker is open.
    pub fn admit_main(
        self: &Arc<Self>,
        now: impl FnOnce() -> Duration,
    ) -> Result<Option<Permit>, Refused> {
        let Some(guard) = self.guard(Target::Main) else {
            return Ok(None);
        };
        let mut permit = Permit::new(self, Target::Main);
        permit.ticket = Some(guard.gate.admit(now)?);
        Ok(Some(permit))
    }

    /// The canary has had a request; `again` says whether main is to have it too. Whether it may.
    pub fn may_repeat(&self, again: bool, now: Duration) -> bool {
        lock(&self.counts.repeats).ask(again, now)
    }

    /// What is left, for the metrics.
    pub fn remaining(&self) -> Remaining {
        Remaining {
            requests: self
                .limits
                .requests
                .map(|limit| limit.saturating_sub(self.counts.taken.load(Ordering::Relaxed))),
            errors: self.limits.errors.map(|limit| {
                unpack(self.counts.errors.load(Ordering::Relaxed))
                    .remaining(limit)
                    .into()
            }),
        }
    }

    /// Begins with unused limits. What is in flight keeps what it has reserved.
    pub fn reset_limits(&self) {
        let _always_some = self.update_errors(|quota| Some(ErrorQuota { errors: 0, ..quota }));
        self.counts.taken.store(0, Ordering::Relaxed);
        // Release: who sees the number sees the counts.
        self.counts.resets.fetch_add(1, Ordering::Release);
    }

    /// How often that was done. Who asks before he looks at the counts sees them reset as often at least.
    pub fn resets(&self) -> u64 {
        self.counts.resets.load(Ordering::Acquire)
    }

    /// What is counted so far.
    pub fn used(&self) -> Used {
        let quota = unpack(self.counts.errors.load(Ordering::Relaxed));
        Used {
            requests: self.counts.taken.load(Ordering::Relaxed),
            errors: quota.claimed(),
        }
    }

    /// The breaker of a target, where it has one.
    pub fn gate(&self, target: Target) -> Option<&Gate> {
        self.guard(target).map(|guard| &*guard.gate)
    }

    /// Whether the sidecar may be asked.
    pub fn sidecar(&self) -> &Gate {
        &self.counts.sidecar
    }

    /// From now on the counts rise no further than this.
    pub fn set_ceiling(&self, ceiling: Used) {
        self.counts
            .ceiling
            .requests
            .store(ceiling.requests, Ordering::Relaxed);
        self.counts
            .ceiling
            .errors
            .store(ceiling.errors, Ordering::Relaxed);
    }

    /// The same for one that may be lower than before. What is used by now: nobody who is not counted in it
    /// gets past this ceiling any more, however long ago he saw the old one.
    pub fn lower_ceiling(&self, ceiling: Used) -> Used {
        self.set_ceiling(ceiling);
        // Each count is read by changing it by nothing, so that it stands in one order with those who
        // count: who came before is in what is read. Release: who comes after, by Acquire, sees the ceiling
        // when he looks at it again.
        let quota = unpack(self.counts.errors.fetch_add(0, Ordering::Release));
        Used {
            requests: self.counts.taken.fetch_add(0, Ordering::Release),
            errors: quota.claimed(),
        }
    }

    /// From now on no count rises; what is used, of which nothing but errors that were reserved may come back.
    pub fn freeze(&self) -> Used {
        self.lower_ceiling(Used::default())
    }

    /// Counts may rise again up to their limits.
    pub fn unfreeze(&self) {
        self.set_ceiling(Used {
            requests: u64::MAX,
            errors: u64::MAX,
        });
    }

    /// Errors, and those that are reserved.
    pub fn quota(&self) -> ErrorQuota {
        unpack(self.counts.errors.load(Ordering::Relaxed))
    }

    /// There were `by` more errors than was counted, or fewer; `failed` of requests of another process have failed.
    /// What it had reserved is forgotten when the limits are reset: from then on nothing of it can come back.
    pub fn correct_errors(&self, by: i64, failed: i64) {
        let by = match self.resets() {
            0 => by,
            _ => failed.max(0),
        };
        let by = i32::try_from(by).unwrap_or(if by < 0 { i32::MIN } else { i32::MAX });
        let _always_some = self.update_errors(|quota| {
            Some(ErrorQuota {
                errors: quota.errors.saturating_add_signed(by),
                ..quota
            })
        });
    }

    /// What a process that comes after this one has to go on with.
    pub fn to_restore(&self, used: Used, now: Duration) -> Restored {
        let save = |target| {
            let gate = self.gate(target)?;
            Some(gate.with(|breaker| breaker.save(now)))
        };
        Restored {
            used,
            breakers: Target::ALL.map(save),
        }
    }

    /// How many requests were refused because of the ceiling alone.
    pub fn refused_by_ceiling(&self) -> u64 {
        self.counts.ceiling.refused.load(Ordering::Relaxed)
    }

    fn refuse(&self, by_ceiling: bool) {
        if by_ceiling {
            self.counts.ceiling.refused.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn guard(&self, target: Target) -> Option<&Guard> {
        self.breakers[target.index()].as_ref()
    }

    /// What it is then.
    fn update_errors(&self, next: impl Fn(ErrorQuota) -> Option<ErrorQuota>) -> Option<ErrorQuota> {
        // Acquire: see `lower_ceiling`. Both numbers live in the one word, and no other memory hangs on them.
        let before = self
            .counts
            .errors
            .fetch_update(Ordering::Acquire, Ordering::Relaxed, |packed| {
                next(unpack(packed)).map(pack)
            })
            .ok()?;
        next(unpack(before))
    }
}

impl Permit {
    fn new(admission: &Arc<Admission>, target: Target) -> Permit {
        Permit {
            admission: Arc::clone(admission),
            target,
            quota: None,
            ticket: None,
            took: Duration::ZERO,
        }
    }

    /// Where it lets the request through to.
    pub fn target(&self) -> Target {
        self.target
    }

    /// Whether an error is reserved for what may still become one.
    pub fn reserves(&self) -> bool {
        self.quota == Some(Quota::Reserved)
    }

    /// Whether it is of any use to know when the request began and ends.
    pub fn watches_time(&self) -> bool {
        self.ticket.is_some()
    }

    /// The head of the final response has come, `took` after the request was sent. A bad status is charged
    /// at once; whether a good one is a success shows when the last byte has come, but for a breaker's probe:
    /// that is over.
    pub fn answered(&mut self, status: u16, took: Duration, now: Duration, chance: f64) {
        self.took = took;
        match self.admission.limits.counted.of_status(status) {
            Outcome::Success => {}
            known => self.settle_quota(known),
        }
        if let Some(guard) = self.admission.guard(self.target) {
            match guard.failure.of_status(status) {
                // A probe has shown what it was for. A long download, or a client that reads slowly, would
                // otherwise keep all others from the upstream for as long as that takes.
                Outcome::Success if self.ticket.is_some_and(Ticket::is_probe) => {
                    self.settle_ticket(Outcome::Success, now, chance);
                }
                Outcome::Success => {}
                known => self.settle_ticket(known, now, chance),
            }
        }
    }

    /// The upstream gave no proper answer, or not all of it.
    pub fn failed(&mut self, took: Duration, now: Duration, chance: f64) {
        self.took = self.took.max(took);
        self.settle_quota(Outcome::Failure);
        self.settle_ticket(Outcome::Failure, now, chance);
    }

    /// The last byte of the response has come; what was not charged for its status is a success.
    pub fn completed(mut self, now: Duration, chance: f64) {
        self.settle_quota(Outcome::Success);
        self.settle_ticket(Outcome::Success, now, chance);
    }

    fn settle_quota(&mut self, outcome: Outcome) {
        let Some(quota) = self.quota.take() else {
            return;
        };
        if quota == Quota::Charged && outcome != Outcome::Failure {
            return;
        }
        let _always_some = self.admission.update_errors(|errors| {
            Some(match quota {
                Quota::Reserved => errors.settle(outcome),
                Quota::Charged => errors.charge(outcome),
            })
        });
    }

    fn settle_ticket(&mut self, outcome: Outcome, now: Duration, chance: f64) {
        if let (Some(ticket), Some(guard)) = (self.ticket.take(), self.admission.guard(self.target))
        {
            guard.gate.settle(ticket, outcome, self.took, now, chance);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.settle_quota(Outcome::Ignored);
        // A call that says nothing is not counted, so it does not matter when it ended.
        self.settle_ticket(Outcome::Ignored, Duration::ZERO, 0.0);
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

    const NOW: Duration = Duration::ZERO;

    fn terms(limits: Limits) -> Terms {
        Terms {
            limits,
            breakers: Breakers::default(),
            repeats: Rate(2_000),
        }
    }

    fn limits(requests: Option<u64>, errors: Option<u32>) -> Arc<Admission> {
        let limits = Limits {
            requests,
            errors,
            ..Limits::default()
        };
        Admission::new(terms(limits), NOW)
    }

    fn admit(admission: &Arc<Admission>) -> Option<Permit> {
        admission.admit(|| NOW).ok()
    }

    fn spent(admission: &Admission) -> Barriers {
        admission.barriers(|| NOW)
    }

    /// Ends a request with a status that is good or bad for all rules.
    fn settle(mut permit: Permit, outcome: Outcome) {
        match outcome {
            Outcome::Success => {
                permit.answered(200, NOW, NOW, 0.0);
                permit.completed(NOW, 0.0);
            }
            Outcome::Failure => permit.failed(NOW, NOW, 0.0),
            Outcome::Ignored => drop(permit),
        }
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
            settle(admit(&admission).unwrap(), Outcome::Failure);
        }
        assert_eq!(spent(&admission), Barriers::default());
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
        let first = admit(&admission).unwrap();
        assert!(admit(&admission).is_none());
        assert_eq!(
            admission.remaining(),
            Remaining {
                requests: Some(0),
                errors: Some(4)
            }
        );
        settle(first, Outcome::Success);
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
        let held = admit(&admission).unwrap();
        assert!(admit(&admission).is_none());
        assert_eq!(admission.remaining().requests, Some(9));
        drop(held);
        assert!(admit(&admission).is_some());
    }

    #[test]
    fn a_dropped_permit_counts_as_ignored() {
        let admission = limits(None, Some(1));
        drop(admit(&admission).unwrap());
        assert_eq!(admission.remaining().errors, Some(1));
        assert!(!spent(&admission).errors);
    }

    #[test]
    fn forced_requests_are_never_refused_and_their_failures_are_charged() {
        let admission = limits(Some(1), Some(2));
        for _ in 0..5 {
            settle(admission.admit_forced(), Outcome::Failure);
        }
        assert!(spent(&admission).errors);
        assert_eq!(
            admission.remaining(),
            Remaining {
                requests: Some(1),
                errors: Some(0)
            }
        );
        assert!(admit(&admission).is_none());
        settle(admission.admit_forced(), Outcome::Success);
    }

    #[test]
    fn threads_cannot_overshoot() {
        let admission = limits(Some(450), Some(15));
        let failed: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        (0..1000)
                            .filter_map(|_| admit(&admission))
                            .map(|permit| settle(permit, Outcome::Failure))
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

    mod breakers {
        use super::*;
        use crate::{config::Breaker as Configured, policy::breaker::State};

        const LATER: Duration = Duration::from_secs(40);
        const SETTINGS: Settings = Settings {
            failure_rate: Some(Rate(5_000)),
            slow_calls: None,
            failures_in_a_row: None,
            minimum_calls: 2,
            window: Duration::from_secs(10),
            wait_open: Duration::from_secs(30),
            max_wait_open: Duration::from_secs(300),
            permitted_half_open: 1,
        };

        fn admission(errors: Option<u32>) -> Arc<Admission> {
            let breaker = Some(Configured {
                settings: SETTINGS,
                failure: FailureRule::ServerError,
            });
            let limits = Limits {
                errors,
                ..Limits::default()
            };
            let terms = Terms {
                breakers: Breakers {
                    canary: breaker,
                    main: breaker,
                },
                ..terms(limits)
            };
            Admission::new(terms, NOW)
        }

        fn opened(errors: Option<u32>) -> Arc<Admission> {
            let admission = admission(errors);
            for _ in 0..2 {
                settle(admit(&admission).unwrap(), Outcome::Failure);
            }
            assert_eq!(state(&admission, Target::Canary), State::Open);
            admission
        }

        fn state(admission: &Admission, target: Target) -> State {
            admission
                .gate(target)
                .unwrap()
                .with(|breaker| breaker.state())
        }

        #[test]
        fn each_counts_by_its_own_rule() {
            let admission = admission(Some(10));
            for _ in 0..3 {
                let mut permit = admit(&admission).unwrap();
                permit.answered(404, NOW, NOW, 0.0);
                permit.completed(NOW, 0.0);
            }
            // A failure for the limit at once, a success for the breaker in the end.
            assert_eq!(admission.remaining().errors, Some(7));
            assert_eq!(state(&admission, Target::Canary), State::Closed);
        }

        #[test]
        fn a_bad_status_is_charged_before_its_body_has_come_and_only_once() {
            let admission = admission(Some(10));
            let mut permits: Vec<_> = (0..2).map(|_| admit(&admission).unwrap()).collect();
            for permit in &mut permits {
                permit.answered(500, NOW, NOW, 0.0);
            }
            assert_eq!(state(&admission, Target::Canary), State::Open);
            for permit in permits {
                permit.completed(NOW, 0.0);
            }
            assert_eq!(admission.remaining().errors, Some(8));
        }

        #[test]
        fn a_body_that_breaks_off_is_a_failure_for_both() {
            let admission = admission(Some(10));
            for _ in 0..2 {
                let mut permit = admit(&admission).unwrap();
                permit.answered(200, NOW, NOW, 0.0);
                permit.failed(NOW, NOW, 0.0);
            }
            assert_eq!(admission.remaining().errors, Some(8));
            assert_eq!(state(&admission, Target::Canary), State::Open);
        }

        #[test]
        fn an_open_breaker_refuses_and_reserves_nothing() {
            let admission = opened(Some(10));
            assert_eq!(admission.admit(|| NOW).err(), Some(Refusal::Breaker));
            assert!(admission.barriers(|| NOW).breaker);
            assert_eq!(admission.remaining().errors, Some(8));
        }

        #[test]
        fn a_probe_that_a_limit_refuses_or_that_is_dropped_leaves_its_place() {
            let admission = opened(Some(2));
            assert_eq!(admission.admit(|| LATER).err(), Some(Refusal::Limit));
            assert_eq!(state(&admission, Target::Canary), State::HalfOpen);
            assert!(
                !admission.barriers(|| LATER).breaker,
                "there is room for a probe"
            );

            let admission = opened(None);
            let probe = admission.admit(|| LATER).unwrap();
            assert_eq!(admission.admit(|| LATER).err(), Some(Refusal::Breaker));
            drop(probe);
            let probe = admission.admit(|| LATER).unwrap();
            settle(probe, Outcome::Success);
            assert_eq!(state(&admission, Target::Canary), State::Closed);
        }

        #[test]
        fn an_upgraded_probe_leaves_its_place_when_it_is_answered() {
            let admission = opened(None);
            let mut probe = admission.admit(|| LATER).unwrap();
            probe.answered(101, NOW, LATER, 0.0);
            assert!(admission.admit(|| LATER).is_ok());
        }

        #[test]
        fn an_open_breaker_and_its_probe_outlive_its_settings() {
            let before = opened(None);
            let settings = Settings {
                failure_rate: Some(Rate(9_000)),
                window: Duration::from_secs(20),
                ..SETTINGS
            };
            let canary = Some(Configured {
                settings,
                failure: FailureRule::NotSuccess,
            });
            let breakers = Breakers { canary, main: None };
            let other = Terms {
                breakers,
                ..terms(Limits::default())
            };
            let after = before.renewed(other, NOW);
            assert!(admit(&after).is_none());
            let probe = before.admit(|| LATER).unwrap();
            assert_eq!(after.admit(|| LATER).err(), Some(Refusal::Breaker));
            settle(probe, Outcome::Success);
            assert_eq!(state(&after, Target::Canary), State::Closed);
            let without = after.renewed(terms(Limits::default()), NOW);
            assert!(without.gate(Target::Canary).is_none());
        }

        #[test]
        fn forced_requests_pass_an_open_breaker() {
            let admission = opened(None);
            settle(admission.admit_forced(), Outcome::Success);
            assert_eq!(state(&admission, Target::Canary), State::Open);
        }

        #[test]
        fn main_has_a_breaker_of_its_own() {
            let admission = opened(None);
            for _ in 0..2 {
                let permit = admission.admit_main(|| NOW).unwrap().unwrap();
                settle(permit, Outcome::Failure);
            }
            assert!(!admission.is_clear());
            let refused = admission.admit_main(|| NOW).unwrap_err();
            assert_eq!(refused.retry_after, Duration::from_secs(30));
            assert!(limits(None, None).admit_main(|| NOW).unwrap().is_none());
        }
    }

    #[test]
    fn counts_rise_to_the_ceiling_and_no_further() {
        let admission = limits(Some(10), Some(10));
        let ceiling = Used {
            requests: 4,
            errors: 2,
        };
        admission.set_ceiling(ceiling);
        let held: Vec<_> = (0..3).filter_map(|_| admit(&admission)).collect();
        assert_eq!((held.len(), admission.refused_by_ceiling()), (2, 1));
        assert_eq!(
            spent(&admission),
            Barriers::default(),
            "no limit is used up"
        );
        drop(held);
        assert_eq!((0..5).filter_map(|_| admit(&admission)).count(), 2);
        assert_eq!(
            admission.used(),
            Used {
                requests: 4,
                errors: 0
            }
        );
    }

    #[test]
    fn reset_limits_are_unused_but_for_what_is_in_flight() {
        let admission = limits(Some(3), Some(3));
        settle(admit(&admission).unwrap(), Outcome::Failure);
        let held = admit(&admission).unwrap();
        admission.reset_limits();
        let left = |requests, errors| Remaining {
            requests: Some(requests),
            errors: Some(errors),
        };
        assert_eq!(admission.remaining(), left(3, 2));
        settle(held, Outcome::Failure);
        assert_eq!(admission.remaining(), left(3, 2));
    }

    #[test]
    fn counts_and_reservations_go_on_under_other_limits() {
        let before = limits(Some(3), Some(3));
        settle(admit(&before).unwrap(), Outcome::Failure);
        let held = admit(&before).unwrap();
        let after = before.renewed(
            terms(Limits {
                requests: Some(5),
                errors: Some(2),
                ..Limits::default()
            }),
            NOW,
        );
        assert_eq!(
            after.remaining(),
            Remaining {
                requests: Some(3),
                errors: Some(0)
            }
        );
        assert!(admit(&after).is_none(), "an error may still come of one");
        drop(held);
        settle(admit(&after).unwrap(), Outcome::Failure);
        assert!(spent(&after).errors);
        // Who began before goes by what was in force.
        let used = Used {
            requests: 3,
            errors: 2,
        };
        assert_eq!((before.used(), after.used()), (used, used));
        assert!(admit(&after.renewed(terms(Limits::default()), NOW)).is_some());
    }

    #[test]
    fn it_is_clear_while_a_request_could_go_to_either_target() {
        let admission = limits(Some(2), Some(1));
        assert!(admission.is_clear());
        let held = admit(&admission).unwrap();
        assert!(
            !admission.is_clear(),
            "what is in flight may be the last error"
        );
        drop(held);
        assert!(admission.is_clear());
        drop(admit(&admission).unwrap());
        assert!(!admission.is_clear(), "no token is left");
        assert!(limits(None, None).is_clear());
    }

    #[test]
    fn what_was_used_is_used_after_a_restart() {
        let restored = Restored {
            used: Used {
                requests: 9,
                errors: 15,
            },
            ..Restored::default()
        };
        let limits = Limits {
            requests: Some(10),
            errors: Some(15),
            ..Limits::default()
        };
        let admission = Admission::restore(terms(limits), &restored, NOW);
        assert!(spent(&admission).errors);
        assert_eq!(admission.used(), restored.used);
    }
}
