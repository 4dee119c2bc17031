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
use crate::policy::{CacheResult, FailureKind, Fallback, Reason, SidecarResult, Target};

/// Upper bounds of the latency buckets in milliseconds, `+Inf` left out. The zero is the original's.
pub const LATENCY_BOUNDS_MS: [u32; 13] = [
    0, 25, 50, 75, 100, 200, 400, 600, 800, 1000, 2000, 4000, 6000,
];

/// Upper bounds of the sidecar's latency buckets in microseconds, `+Inf` left out.
pub const SIDECAR_BOUNDS_US: [u64; 13] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000,
];

const REASONS: usize = Reason::ALL.len();
const TARGETS: usize = Target::ALL.len();
const KINDS: usize = FailureKind::ALL.len();
const FALLBACKS: usize = Fallback::ALL.len();
const SIDECAR_RESULTS: usize = SidecarResult::ALL.len();
const CACHE_RESULTS: usize = CacheResult::ALL.len();
/// Both kinds of latencies have as many.
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
    sidecar: Latency,
    sidecar_results: [AtomicU64; SIDECAR_RESULTS],
    cache_results: [AtomicU64; CACHE_RESULTS],
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
    /// By [`Fallback::index`].
    pub fallbacks: [u64; FALLBACKS],
    /// How long the sidecar took, in the buckets of [`SIDECAR_BOUNDS_US`].
    pub sidecar: LatencyTotals,
    /// By [`SidecarResult::index`].
    pub sidecar_results: [u64; SIDECAR_RESULTS],
    /// By [`CacheResult::index`].
    pub cache_results: [u64; CACHE_RESULTS],
}

/// A latency distribution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LatencyTotals {
    /// How many fell into each bucket, then above the last.
    pub buckets: [u64; BUCKETS],
    /// Sum of all latencies in microseconds.
    pub sum_us: u64,
}

impl Tally {
    /// An empty tally and its only writer.
    pub fn new() -> (TallyWriter, Arc<Tally>) {
        let tally = Arc::new(Tally {
            requests: zeroes(),
            latency: std::array::from_fn(|_| Latency::new()),
            failures: std::array::from_fn(|_| zeroes()),
            fallbacks: zeroes(),
            sidecar: Latency::new(),
            sidecar_results: zeroes(),
            cache_results: zeroes(),
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
            latency.add_to(total);
        }
        for (failures, total) in self.failures.iter().zip(&mut totals.failures) {
            add_each(failures, total);
        }
        add_each(&self.fallbacks, &mut totals.fallbacks);
        self.sidecar.add_to(&mut totals.sidecar);
        add_each(&self.sidecar_results, &mut totals.sidecar_results);
        add_each(&self.cache_results, &mut totals.cache_results);
    }
}

impl Latency {
    fn new() -> Latency {
        Latency {
            buckets: zeroes(),
            sum_us: AtomicU64::new(0),
        }
    }

    fn add_to(&self, total: &mut LatencyTotals) {
        add_each(&self.buckets, &mut total.buckets);
        total.sum_us = total.sum_us.wrapping_add(read(&self.sum_us));
    }

    fn record(&self, latency: Duration, is_within: impl Fn(u64) -> Option<usize>) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        let bucket = is_within(micros).unwrap_or(BUCKETS - 1);
        add(&self.buckets[bucket], 1);
        add(&self.sum_us, micros);
    }
}

impl TallyWriter {
    /// A request has ended: its response's last byte was handed over, or it broke off.
    pub fn request(&self, reason: Reason, latency: Duration) {
        add(&self.tally.requests[reason.index()], 1);
        self.tally.latency[reason.target().index()].record(latency, |micros| {
            LATENCY_BOUNDS_MS
                .iter()
                .position(|bound| micros <= u64::from(*bound) * 1000)
        });
    }

    /// An upstream failed.
    pub fn failure(&self, target: Target, kind: FailureKind) {
        add(&self.tally.failures[target.index()][kind.index()], 1);
    }

    /// A request was not answered by the upstream it was for.
    pub fn fallback(&self, fallback: Fallback) {
        add(&self.tally.fallbacks[fallback.index()], 1);
    }

    /// The sidecar was asked, or would have been; `took` where it was.
    pub fn sidecar(&self, result: SidecarResult, took: Option<Duration>) {
        add(&self.tally.sidecar_results[result.index()], 1);
        if let Some(took) = took {
            self.tally.sidecar.record(took, |micros| {
                SIDECAR_BOUNDS_US.iter().position(|bound| micros <= *bound)
            });
        }
    }

    /// The sidecar's cache was looked into.
    pub fn cache(&self, result: CacheResult) {
        add(&self.tally.cache_results[result.index()], 1);
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
        two.fallback(Fallback::ReplayFailed);
        one.sidecar(SidecarResult::Main, Some(Duration::from_micros(500)));
        two.sidecar(SidecarResult::BreakerOpen, None);
        two.cache(CacheResult::Shared);
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
        assert_eq!(totals.fallbacks, [0, 1, 0, 0, 0]);
        assert_eq!(totals.sidecar_results, [1, 0, 0, 0, 1]);
        assert_eq!((totals.sidecar.buckets[0], totals.sidecar.sum_us), (1, 500));
        assert_eq!(totals.cache_results, [0, 0, 1]);
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
