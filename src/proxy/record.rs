//! The end of a request, once: permit, tally and failures.

use std::{
    cell::Cell,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use http::StatusCode;
use tracing::warn;

use super::{
    client::Client, error::UpstreamError, fields::Fields, headers, message::ResponseHead,
    worker::Worker,
};
use crate::{
    causes::Chain,
    clock,
    policy::{CodeClass, FailureRule, Fallback, Outcome, Reason, Target, is_grpc_failure},
    state::{Permit, Snapshot, Trial},
};

/// Follows one request from its decision to its end. However it ends (answered, failed, cancelled,
/// dropped), it is counted once, and each permit is settled once.
pub struct Record {
    client: Client,
    reason: Reason,
    started: Instant,
    /// What the client gets.
    class: CodeClass,
    /// For the upstream that has the request at the moment.
    permit: Option<Permit>,
    /// When that upstream got it.
    sent: Instant,
    /// When the last new connection was there, for this request or an earlier one.
    connected: Option<Instant>,
    /// Since `sent` the upstream has all of it.
    is_whole: bool,
    /// What is still awaited of an answer of gRPC's.
    grpc: Option<Grpc>,
    /// What the judge is to be told. Boxed: most requests have none, and it would be handed around with all.
    judged: Option<Box<Judged>>,
}

/// An answer of gRPC's says behind its content whether it is a failure.
#[derive(Clone, Copy)]
struct Grpc {
    target: Target,
    /// None of its content has come: a message, of which most answers have one, is what its head is elsewhere,
    /// since servers send that early or late as they like.
    is_empty: bool,
}

/// A request that chance has assigned while the judge looks, up to the moment from which its end says nothing.
struct Judged {
    worker: Rc<Worker>,
    snapshot: Arc<Snapshot>,
    trial: Trial,
    is_answered: bool,
}

impl Record {
    /// For a request of `client` that began at `started` and was decided by `reason`; `permit` if there is anything
    /// to permit.
    pub fn new(client: Client, reason: Reason, started: Instant, permit: Option<Permit>) -> Self {
        client.worker().tally.begun(reason.target());
        Record {
            client,
            reason,
            started,
            class: CodeClass::None,
            permit,
            sent: clock::recent(),
            connected: None,
            is_whole: false,
            grpc: None,
            judged: None,
        }
    }

    /// The judge is to be told of this request.
    pub fn judge(&mut self, snapshot: Arc<Snapshot>, trial: Trial) {
        self.client.worker().trials.begin(trial);
        self.judged = Some(Box::new(Judged {
            worker: Rc::clone(self.client.worker()),
            snapshot,
            trial,
            is_answered: false,
        }));
    }

    /// What comes now is no longer of the target that chance has chosen.
    pub fn end_trial(&mut self) {
        self.judged = None;
    }

    /// Why the request went where it went.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// The client gets this status.
    pub fn responds(&mut self, status: StatusCode) {
        self.class = CodeClass::of(status.as_u16());
    }

    /// An upstream is being sent the request; how long it takes is counted from now. `is_whole` says that nothing of
    /// it is still to come from the client.
    pub fn sending(&mut self, is_whole: bool) {
        self.sent = clock::recent();
        self.is_whole = is_whole;
    }

    /// The upstream could not have all of the request before `uploaded`: what its client took for it is not
    /// the upstream's time.
    pub fn has_all_since(&mut self, uploaded: Option<Instant>) {
        self.sent = uploaded.map_or(self.sent, |uploaded| uploaded.max(self.sent));
    }

    /// A new connection was there at `connected`, for this request or for an earlier one of its client.
    pub fn has_connection_since(&mut self, connected: Option<Instant>) {
        self.connected = connected;
    }

    /// The head of the final response has come. It is charged if its status says so; whether it is a
    /// success shows when the last byte has come. What gRPC answers is known by its trailers.
    pub fn answered(&mut self, target: Target, head: &ResponseHead) {
        self.client.notes().answered(head.status);
        if head.status != StatusCode::OK || !headers::is_grpc(head) {
            return self.has_status(target, head.status);
        }
        match headers::grpc_status(&head.headers) {
            Some(code) => self.has_grpc_status(target, code),
            None => {
                self.grpc = Some(Grpc {
                    target,
                    is_empty: true,
                });
            }
        }
    }

    /// Some content of the response has come.
    #[inline]
    pub fn content_came(&mut self) {
        if let Some(grpc) = &mut self.grpc
            && std::mem::replace(&mut grpc.is_empty, false)
        {
            let target = grpc.target;
            self.has_status(target, StatusCode::OK);
        }
    }

    /// The trailers of the response have come.
    pub fn trailers_came(&mut self, trailers: &Fields) {
        if let (Some(grpc), Some(code)) = (self.grpc, headers::grpc_status(trailers)) {
            self.grpc = None;
            match grpc.is_empty {
                false if !is_grpc_failure(code) => {}
                _ => self.has_grpc_status(grpc.target, code),
            }
        }
    }

    fn has_grpc_status(&mut self, target: Target, code: u32) {
        match is_grpc_failure(code) {
            true => self.has_failed(target),
            false => self.has_status(target, StatusCode::OK),
        }
    }

    fn has_status(&mut self, target: Target, status: StatusCode) {
        if status.as_u16() >= 500 {
            self.client.worker().tally.failed(target);
        }
        let (took, now) = self.took();
        if let Some(judged) = &mut self.judged {
            // A target that gets little has few connections that wait for it: that making one takes time is no
            // fault of its.
            let sent = self
                .connected
                .map_or(self.sent, |connected| connected.max(self.sent));
            let took = clock::now().saturating_duration_since(sent);
            if !judged.answered(status, took) {
                self.judged = None;
            }
        }
        if let Some(permit) = &mut self.permit {
            permit.answered(status.as_u16(), took, now, fastrand::f64());
        }
    }

    /// The last byte of the response has come. Only the first end counts.
    pub fn completed(&mut self) {
        if let Some(grpc) = self.grpc.take() {
            // To its client that is a failure too (grpc/doc/PROTOCOL-HTTP2.md).
            self.has_failed(grpc.target);
        }
        self.judged = None;
        if let Some(permit) = self.permit.take() {
            permit.completed(clock::moment(clock::recent()), fastrand::f64());
        }
    }

    /// What became of the request says nothing about the upstream.
    pub fn ignored(&mut self) {
        self.grpc = None;
        self.judged = None;
        self.permit = None;
    }

    /// An upstream failed: counts it, charges it, and says so (seldom).
    pub fn failed(&mut self, target: Target, error: &UpstreamError) {
        self.client.notes().failed(error.kind);
        self.client.worker().tally.failure(target, error.kind);
        self.grpc = None;
        self.has_failed(target);
        if let Some(suppressed) = self.client.worker().warnings.targets[target.index()].allow() {
            warn!(
                target = target.label(),
                kind = error.kind.label(),
                error = %Chain(error),
                suppressed,
                "upstream failed"
            );
        }
    }

    fn has_failed(&mut self, target: Target) {
        self.client.worker().tally.failed(target);
        if let Some(judged) = self.judged.take() {
            judged.failed();
        }
        let (took, now) = self.took();
        if let Some(permit) = &mut self.permit
            && permit.target() == target
        {
            permit.failed(took, now, fastrand::f64());
        }
    }

    /// The request goes to another upstream now, with this permit.
    pub fn moved(&mut self, permit: Option<Permit>) {
        self.permit = permit;
    }

    /// The request was not answered by the upstream it was for.
    pub fn fell_back(&self, fallback: Fallback) {
        self.client.worker().tally.fallback(fallback);
    }

    /// How long the upstream has had the request, and the moment, where anybody wants to know.
    fn took(&self) -> (Duration, Duration) {
        if !self.permit.as_ref().is_some_and(Permit::watches_time) {
            return (Duration::ZERO, Duration::ZERO);
        }
        let now = clock::now();
        (now.saturating_duration_since(self.sent), clock::moment(now))
    }
}

impl Judged {
    /// Whether it may still fail.
    fn answered(&mut self, status: StatusCode, took: Duration) -> bool {
        let trials = &self.worker.trials;
        match self.rule().of_status(status.as_u16()) {
            Outcome::Ignored => return false,
            Outcome::Failure => {
                trials.failed(self.trial);
                return false;
            }
            Outcome::Success => {
                let level = self.snapshot.thresholds.level(self.trial.target, took);
                trials.answered(self.trial, level);
            }
        }
        self.is_answered = true;
        true
    }

    /// Nobody waits for it any more.
    fn left(&self, waited: Duration) {
        if !self.is_answered {
            let level = self.snapshot.thresholds.level(self.trial.target, waited);
            self.worker.trials.left(self.trial, level);
        }
    }

    fn failed(&self) {
        match self.is_answered {
            false => self.worker.trials.failed(self.trial),
            true => self.worker.trials.cut(self.trial),
        }
    }

    fn rule(&self) -> FailureRule {
        let rollout = self.snapshot.config.rollout.as_ref();
        rollout.map_or(FailureRule::ServerError, |rollout| rollout.failure)
    }
}

impl Drop for Judged {
    fn drop(&mut self) {
        self.worker.trials.end(self.trial, self.is_answered);
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let now = clock::now();
        if let (Some(judged), true) = (&self.judged, self.is_whole) {
            judged.left(now.saturating_duration_since(self.sent));
        }
        let latency = now.saturating_duration_since(self.started);
        let tally = &self.client.worker().tally;
        tally.request(self.reason, self.class, latency);
    }
}

/// One throttle for each cause: the failures of one must not hide another's.
#[derive(Debug, Default)]
pub struct Warnings {
    /// For main and canary, by [`Target::index`].
    pub targets: [Throttle; Target::ALL.len()],
    /// For the sidecar.
    pub sidecar: Throttle,
    /// For connections that cannot be accepted.
    pub accepting: Throttle,
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
