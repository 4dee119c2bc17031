//! What the data plane and the control plane share: synchronous, without I/O.
//!
//! Snapshots go down ([`snapshot`]), tallies come up ([`tally`]), and the canary's exact budgets are
//! kept behind permits ([`admission`]). Nothing else passes between the two planes.

pub mod admission;
pub mod lifecycle;
pub mod snapshot;
pub mod tally;

pub use admission::{Admission, Permit};
pub use lifecycle::{Lifecycle, Phase};
pub use snapshot::{Published, Snapshot};
pub use tally::{Tally, TallyWriter};

/// Atomics: the standard library's, or loom's where the models of `tests/loom.rs` run.
mod sync {
    #[cfg(canary_loom)]
    pub(super) use loom::sync::atomic::AtomicU64;
    #[cfg(not(canary_loom))]
    pub(super) use std::sync::atomic::AtomicU64;
}
