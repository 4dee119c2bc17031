//! Where the process stands between start and stop, for readiness.

use std::sync::atomic::{AtomicU8, Ordering};

/// Where the process stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Listeners are bound, workers not yet accepting.
    Starting,
    /// Accepting.
    Serving,
    /// No longer accepting; finishing what is in flight.
    Draining,
}

/// The shared cell that holds the [`Phase`].
#[derive(Debug, Default)]
pub struct Lifecycle(AtomicU8);

impl Lifecycle {
    /// The phase at this moment.
    pub fn phase(&self) -> Phase {
        // Relaxed: the value orders nothing else; who reads it late is late by a moment.
        match self.0.load(Ordering::Relaxed) {
            0 => Phase::Starting,
            1 => Phase::Serving,
            _ => Phase::Draining,
        }
    }

    /// Moves on. A process that drains never serves again.
    pub fn enter(&self, phase: Phase) {
        let value = match phase {
            Phase::Starting => 0,
            Phase::Serving => 1,
            Phase::Draining => 2,
        };
        self.0.fetch_max(value, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_only_move_on() {
        let lifecycle = Lifecycle::default();
        assert_eq!(lifecycle.phase(), Phase::Starting);
        lifecycle.enter(Phase::Serving);
        assert_eq!(lifecycle.phase(), Phase::Serving);
        lifecycle.enter(Phase::Draining);
        lifecycle.enter(Phase::Serving);
        assert_eq!(lifecycle.phase(), Phase::Draining);
    }
}
