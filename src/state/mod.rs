//! What the data plane and the control plane share: synchronous, without I/O.
//!
//! Snapshots go down ([`snapshot`]), tallies and spans come up ([`tally`], [`trials`], [`spans`]), and the
//! canary's exact budgets are kept behind permits ([`admission`]). Nothing else passes between the two planes.

pub mod admission;
pub mod durability;
pub mod gate;
pub mod ledger;
pub mod lifecycle;
pub mod persist;
pub mod progress;
pub mod reloads;
pub mod seen;
pub mod snapshot;
pub mod spans;
pub mod tally;
pub mod trials;

pub use admission::{Admission, Permit};
pub use durability::Durability;
pub use gate::Gate;
pub use ledger::Ledger;
pub use lifecycle::{Lifecycle, Phase};
pub use persist::Kept;
pub use progress::{Progress, SharedProgress};
pub use reloads::Reloads;
pub use seen::Seen;
pub use snapshot::{Published, Snapshot, Split};
pub use spans::{SpanCounts, SpanSink, Spans};
pub use tally::{Tally, TallyWriter};
pub use trials::{Trial, Trials, TrialsWriter};

/// Atomics and locks: the standard library's, or loom's where the models of `tests/loom.rs` run.
mod sync {
    use std::sync::PoisonError;

    #[cfg(canary_loom)]
    pub(super) use loom::sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU32, AtomicU64},
    };
    #[cfg(not(canary_loom))]
    pub(super) use std::sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU32, AtomicU64},
    };

    /// Nothing panics while one of our locks is held, and if it did each step would still be whole.
    pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
