//! What the router decides, as pure functions and values.
//!
//! Nothing here reads a clock, draws a random number, takes a lock, logs or does I/O: time comes in
//! as an argument, chance as a number. That is why the whole table of decisions is a table test and
//! every state machine can be enumerated. `tests/architecture.rs` keeps it so.
//!
//! Where a new rule goes:
//!
//! * which upstream a request is for: [`decide`];
//! * how many requests or errors the canary may have: [`quota`];
//! * when an upstream is to be left alone for a while: [`breaker`];
//! * how many requests may be sent a second time: [`budget`];
//! * which share of requests the canary gets, and when that changes: [`weight`], [`rollout`];
//! * whether the canary is worse than main: [`analysis`];
//! * what counts as a failure: [`outcome`].
//!
//! Every value that becomes a metric label or a branch is a closed enum: [`Target`],
//! [`Reason`], [`Outcome`], [`FailureKind`], [`CodeClass`].

pub mod analysis;
pub mod breaker;
pub mod budget;
pub mod decide;
pub mod headroom;
pub mod outcome;
pub mod quota;
pub mod rollout;
pub mod weight;
pub mod window;

pub use decide::{
    Barriers, Decision, Facts, Reason, Refusal, Rules, SidecarAnswer, SidecarStatuses,
};
pub use outcome::{
    CacheResult, CodeClass, FailureKind, FailureRule, Fallback, Outcome, SidecarResult,
    is_grpc_failure,
};
pub use weight::Weight;

/// One of the two upstreams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Target {
    /// The old version of the service: where everything goes that is not for the canary.
    Main,
    /// The new version of the service.
    Canary,
}

impl Target {
    /// Both, in the order of [`Target::index`].
    pub const ALL: [Target; 2] = [Target::Main, Target::Canary];

    /// The value of the `target` label.
    pub const fn label(self) -> &'static str {
        match self {
            Target::Main => "main",
            Target::Canary => "canary",
        }
    }

    /// A dense index, for arrays with an element per target.
    pub const fn index(self) -> usize {
        match self {
            Target::Main => 0,
            Target::Canary => 1,
        }
    }
}
