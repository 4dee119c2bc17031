//! The end of a request, once: permit, tally and failures.

use std::{
    cell::Cell,
    rc::Rc,
    time::{Duration, Instant},
};

use tracing::warn;

use super::{
    error::{Chain, UpstreamError},
    worker::Worker,
};
use crate::{
    clock,
    policy::{FallbackOutcome, Outcome, Reason, Target},
    state::Permit,
};

/// Follows one request from its decision to its end. However it ends (answered, failed, cancelled,
/// dropped), it is counted once, and the permit is settled once.
pub struct Record {
    worker: Rc<Worker>,
    reason: Reason,
    started: Instant,
    permit: Option<Permit>,
}

impl Record {
    /// For a request that began at `started` and was decided by `reason`; `permit` if it goes to the
    /// canary.
    pub fn new(
        worker: Rc<Worker>,
        reason: Reason,
        started: Instant,
        permit: Option<Permit>,
    ) -> Self {
        Record {
            worker,
            reason,
            started,
            permit,
        }
    }

    /// Why the request went where it went.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// Settles the permit. Only the first call counts; without one it is [`Outcome::Ignored`].
    pub fn settle(&mut self, outcome: Outcome) {
        if let Some(permit) = self.permit.take() {
            permit.settle(outcome);
        }
    }

    /// An upstream failed: counts it, says so (seldom), and charges it if it is the canary.
    pub fn failed(&mut self, target: Target, error: &UpstreamError) {
        self.worker.tally.failure(target, error.kind);
        if target == Target::Canary {
            self.settle(Outcome::Failure);
        }
        if let Some(suppressed) = self.worker.warnings.targets[target.index()].allow() {
            warn!(
                target = target.label(),
                kind = error.kind.label(),
                error = %Chain(error),
                suppressed,
                "upstream failed"
            );
        }
    }

    /// The request was replayed on main.
    pub fn fell_back(&self, outcome: FallbackOutcome) {
        self.worker.tally.fallback(outcome);
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let latency = clock::now().saturating_duration_since(self.started);
        self.worker.tally.request(self.reason, latency);
    }
}

/// One throttle for each upstream: the failures of one must not hide another's.
#[derive(Debug, Default)]
pub struct Warnings {
    /// For main and canary, by [`Target::index`].
    pub targets: [Throttle; Target::ALL.len()],
    /// For the sidecar.
    pub sidecar: Throttle,
}

/// Lets one warning a second through and counts the others: an upstream that is down must not drown
/// the log.
#[derive(Debug, Default)]
pub struct Throttle {
    last: Cell<Option<Instant>>,
    suppressed: Cell<u64>,
}

impl Throttle {
    const INTERVAL: Duration = Duration::from_secs(1);

    /// How many were held back since the last one, if this one may be said.
    pub fn allow(&self) -> Option<u64> {
        let now = clock::now();
        let recent = |last: Instant| now.saturating_duration_since(last) < Self::INTERVAL;
        if self.last.get().is_some_and(recent) {
            self.suppressed.set(self.suppressed.get() + 1);
            return None;
        }
        self.last.set(Some(now));
        Some(self.suppressed.take())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_of_warnings_is_one_and_the_rest_are_counted() {
        let throttle = Throttle::default();
        assert_eq!(throttle.allow(), Some(0));
        assert_eq!(throttle.allow(), None);
        assert_eq!(throttle.allow(), None);
        throttle
            .last
            .set(clock::now().checked_sub(Throttle::INTERVAL));
        assert_eq!(throttle.allow(), Some(2));
    }
}
