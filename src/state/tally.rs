//! What one worker counted. Single writer, any reader.
//!
//! Each worker thread owns the writing end of its own tally; the control plane sums them all at
//! scrape. So a count costs a load and a store in the worker's own cache line, and the data plane
//! never touches a metrics registry.

use std::{
    cell::Cell,
    marker::PhantomData,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use super::sync::AtomicU64;
use crate::policy::{FailureKind, FallbackOutcome, Reason, Target};

/// Upper bounds of the latency buckets in milliseconds, `+Inf` left out. The zero is the original's.
pub const LATENCY_BOUNDS_MS: [u32; 13] = [
    0, 25, 50, 75, 100, 200, 400, 600, 800, 1000, 2000, 4000, 6000,
];

const REASONS: usize = Reason::ALL.len();
const TARGETS: usize = Target::ALL.len();
const KINDS: usize = FailureKind::ALL.len();
const FALLBACKS: usize = FallbackOutcome::ALL.len();
const BUCKETS: usize = LATENCY_BOUNDS_MS.len() + 1;

/// The counts of one worker.
#[derive(Debug)]
// Two cache lines, because x86 fetches them in pairs: no worker slows another one's counting.
#[repr(align(128))]
pub struct Tally {
    requests: [AtomicU64; REASONS],
    latency: [Latency; TARGETS],
    failures: [[AtomicU64; KINDS]; TARGETS],
    fallbacks: [AtomicU64; FALLBACKS],
}

#[derive(Debug)]
struct Latency {
    /// How many fell into each bucket: not cumulative, the last is `+Inf`.
    buckets: [AtomicU64; BUCKETS],
    /// Microseconds, so that it stays an integer: 584,000 years until it wraps.
    sum_us: AtomicU64,
}

/// The writing end. Not `Sync` and not `Clone`: one writer is what makes a count cheap.
#[derive(Debug)]
pub struct TallyWriter {
    tally: Arc<Tally>,
    one_thread: PhantomData<Cell<()>>,
}

/// A sum over tallies.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Totals {
    /// Requests by [`Reason::index`].
    pub requests: [u64; REASONS],
    /// Latencies by [`Target::index`].
    pub latency: [LatencyTotals; TARGETS],
    /// Upstream failures by [`Target::index`] and [`FailureKind::index`].
    pub failures: [[u64; KINDS]; TARGETS],
    /// Replays of canary requests on main by [`FallbackOutcome::index`].
    pub fallbacks: [u64; FALLBACKS],
}

/// The latency distribution of one target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LatencyTotals {
    /// How many fell into each bucket of [`LATENCY_BOUNDS_MS`], then above the last.
    pub buckets: [u64; BUCKETS],
    /// Sum of all latencies in microseconds.
    pub sum_us: u64,
}

impl Tally {
    /// An empty tally and its only writer.
    pub fn new() -> (TallyWriter, Arc<Tally>) {
        let tally = Arc::new(Tally {
            requests: zeroes(),
            latency: std::array::from_fn(|_| Latency {
                buckets: zeroes(),
                sum_us: AtomicU64::new(0),
            }),
            failures: std::array::from_fn(|_| zeroes()),
            fallbacks: zeroes(),
        });
        (
            TallyWriter {
                tally: Arc::clone(&tally),
                one_thread: PhantomData,
            },
            tally,
        )
    }

    /// Adds this tally's counts to `totals`. Each count is exact and never goes back; together they
    /// are as consistent as counts can be that go on while they are read.
    pub fn add_to(&self, totals: &mut Totals) {
        add_each(&self.requests, &mut totals.requests);
        for (latency, total) in self.latency.iter().zip(&mut totals.latency) {
            add_each(&latency.buckets, &mut total.buckets);
            total.sum_us = total.sum_us.wrapping_add(read(&latency.sum_us));
        }
        for (failures, total) in self.failures.iter().zip(&mut totals.failures) {
            add_each(failures, total);
        }
        add_each(&self.fallbacks, &mut totals.fallbacks);
    }
}

impl TallyWriter {
    /// A request has ended: its response's last byte was handed over, or it broke off.
    pub fn request(&self, reason: Reason, latency: Duration) {
        add(&self.tally.requests[reason.index()], 1);
        let histogram = &self.tally.latency[reason.target().index()];
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        let bucket = LATENCY_BOUNDS_MS
            .iter()
            .position(|bound| micros <= u64::from(*bound) * 1000);
        add(&histogram.buckets[bucket.unwrap_or(BUCKETS - 1)], 1);
        add(&histogram.sum_us, micros);
    }

    /// An upstream failed.
    pub fn failure(&self, target: Target, kind: FailureKind) {
        add(&self.tally.failures[target.index()][kind.index()], 1);
    }

    /// A canary request was replayed on main.
    pub fn fallback(&self, outcome: FallbackOutcome) {
        add(&self.tally.fallbacks[outcome.index()], 1);
    }
}

fn zeroes<const N: usize>() -> [AtomicU64; N] {
    std::array::from_fn(|_| AtomicU64::new(0))
}

fn add(cell: &AtomicU64, by: u64) {
    // Relaxed, and no read-modify-write: this thread is the only writer, and readers need no order
    // between counts.
    cell.store(
        cell.load(Ordering::Relaxed).wrapping_add(by),
        Ordering::Relaxed,
    );
}

fn read(cell: &AtomicU64) -> u64 {
    cell.load(Ordering::Relaxed)
}

fn add_each(cells: &[AtomicU64], totals: &mut [u64]) {
    for (cell, total) in cells.iter().zip(totals) {
        *total += read(cell);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_workers_add_up() {
        let (one, first) = Tally::new();
        let (two, second) = Tally::new();
        one.request(Reason::HeaderTrue, Duration::from_millis(30));
        two.request(Reason::HeaderTrue, Duration::from_millis(5));
        two.request(Reason::NoSidecar, Duration::from_secs(7));
        two.failure(Target::Canary, FailureKind::Reset);
        two.fallback(FallbackOutcome::Failed);
        let mut totals = Totals::default();
        first.add_to(&mut totals);
        second.add_to(&mut totals);
        assert_eq!(totals.requests[Reason::HeaderTrue.index()], 2);
        assert_eq!(totals.requests[Reason::NoSidecar.index()], 1);
        let canary = totals.latency[Target::Canary.index()];
        assert_eq!(
            (canary.buckets[1], canary.buckets[2], canary.sum_us),
            (1, 1, 35_000)
        );
        assert_eq!(totals.latency[Target::Main.index()].buckets[BUCKETS - 1], 1);
        assert_eq!(totals.failures[1][FailureKind::Reset.index()], 1);
        assert_eq!(totals.fallbacks, [0, 1]);
    }

    #[test]
    fn a_latency_on_a_bound_falls_into_its_bucket() {
        let (writer, tally) = Tally::new();
        for bound in LATENCY_BOUNDS_MS {
            writer.request(Reason::NoSidecar, Duration::from_millis(bound.into()));
        }
        let mut totals = Totals::default();
        tally.add_to(&mut totals);
        let mut expected = [1; BUCKETS];
        expected[BUCKETS - 1] = 0;
        assert_eq!(totals.latency[0].buckets, expected);
    }
}
