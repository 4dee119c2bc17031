//! A circuit breaker that threads share.
//!
//! While it is closed, asking costs one load, and no look at the clock: the lock is for calls that end, and
//! for the other two states.

use std::{sync::atomic::Ordering, time::Duration};

use super::sync::{AtomicU64, Mutex, lock};
use crate::policy::{
    Outcome,
    breaker::{Breaker, Refused, Ticket},
};

/// Lets calls to one upstream through, or not. Moments are since any fixed one, the same for all calls.
#[derive(Debug)]
pub struct Gate {
    breaker: Mutex<Breaker>,
    /// The generation of the breaker while it is closed, otherwise [`NOT_CLOSED`].
    closed: AtomicU64,
}

const NOT_CLOSED: u64 = u64::MAX;

impl Gate {
    /// Behind this breaker.
    pub fn new(breaker: Breaker) -> Gate {
        Gate {
            closed: AtomicU64::new(closed_generation(&breaker)),
            breaker: Mutex::new(breaker),
        }
    }

    /// See [`Breaker::admit`].
    ///
    /// # Errors
    /// No call now.
    pub fn admit(&self, now: impl FnOnce() -> Duration) -> Result<Ticket, Refused> {
        match self.closed() {
            Some(generation) => Ok(Ticket::ordinary(generation)),
            None => self.with(|breaker| breaker.admit(now())),
        }
    }

    /// See [`Breaker::refuses`].
    pub fn refuses(&self, now: impl FnOnce() -> Duration) -> Option<Refused> {
        match self.closed() {
            Some(_) => None,
            None => self.with(|breaker| breaker.refuses(now())),
        }
    }

    /// See [`Breaker::forced`].
    pub fn forced(&self) -> Ticket {
        match self.closed() {
            Some(generation) => Ticket::ordinary(generation),
            None => self.with(|breaker| breaker.forced()),
        }
    }

    /// See [`Breaker::settle`].
    pub fn settle(
        &self,
        ticket: Ticket,
        outcome: Outcome,
        took: Duration,
        now: Duration,
        chance: f64,
    ) {
        self.with(|breaker| breaker.settle(ticket, outcome, took, now, chance));
    }

    /// Whether calls go through without being probes.
    pub fn is_closed(&self) -> bool {
        self.closed().is_some()
    }

    /// Does something with the breaker.
    pub fn with<T>(&self, act: impl FnOnce(&mut Breaker) -> T) -> T {
        let mut breaker = lock(&self.breaker);
        let result = act(&mut breaker);
        // Relaxed: whoever sees it late gets a ticket of a generation that is over, which is what a call
        // that began a moment earlier has too.
        self.closed
            .store(closed_generation(&breaker), Ordering::Relaxed);
        result
    }

    fn closed(&self) -> Option<u64> {
        // Relaxed: see where it is stored.
        let generation = self.closed.load(Ordering::Relaxed);
        (generation != NOT_CLOSED).then_some(generation)
    }
}

fn closed_generation(breaker: &Breaker) -> u64 {
    match breaker.is_closed() {
        true => breaker.generation(),
        false => NOT_CLOSED,
    }
}
