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
use crate::policy::{CacheResult, CodeClass, FailureKind, Fallback, Reason, SidecarResult, Target};

/// Upper bounds of the latency buckets in microseconds, `+Inf` left out: 0, then eleven for each power of ten
/// from 100 µs up, so that a quantile is known to a tenth or so. The original's bounds are among them.
pub const LATENCY_BOUNDS_US: [u64; 1 + 11 * 6] = latency_bounds();

const fn latency_bounds() -> [u64; 1 + 11 * 6] {
    let hundredths = [100, 125, 150, 200, 250, 300, 400, 500, 600, 750, 800];
    let mut bounds = [0; 1 + 11 * 6];
    let mut i = 1;
    let mut power = 1;
    while i < bounds.len() {
        let mut j = 0;
        while j < hundredths.len() {
            bounds[i] = hundredths[j] * power;
            i += 1;
            j += 1;
        }
        power *= 10;
    }
    bounds
}

/// Upper bounds of the sidecar's latency buckets in microseconds, `+Inf` left out.
pub const SIDECAR_BOUNDS_US: [u64; 13] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000,
];

const REASONS: usize = Reason::ALL.len();
const CLASSES: usize = CodeClass::ALL.len();
const TARGETS: usize = Target::ALL.len();
const KINDS: usize = FailureKind::ALL.len();
const FALLBACKS: usize = Fallback::ALL.len();
const SIDECAR_RESULTS: usize = SidecarResult::ALL.len();
const CACHE_RESULTS: usize = CacheResult::ALL.len();
const BUCKETS: usize = LATENCY_BOUNDS_US.len() + 1;
const SIDECAR_BUCKETS: usize = SIDECAR_BOUNDS_US.len() + 1;

/// The counts of one worker.
#[derive(Debug)]
// Two cache lines, because x86 fetches them in pairs: no worker slows another one's counting.
#[repr(align(128))]
pub struct Tally {
    begun: [AtomicU64; TARGETS],
    requests: [[AtomicU64; CLASSES]; REASONS],
    latency: [Latency<BUCKETS>; TARGETS],
    failures: [[AtomicU64; KINDS]; TARGETS],
    failed: [AtomicU64; TARGETS],
    fallbacks: [AtomicU64; FALLBACKS],
    sidecar: Latency<SIDECAR_BUCKETS>,
    sidecar_results: [AtomicU64; SIDECAR_RESULTS],
    cache_results: [AtomicU64; CACHE_RESULTS],
    connections: AtomicU64,
}

#[derive(Debug)]
struct Latency<const N: usize> {
    /// How many fell into each bucket: not cumulative, the last is `+Inf`.
    buckets: [AtomicU64; N],
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
    /// Requests that were decided, by [`Target::index`].
    pub begun: [u64; TARGETS],
    /// Requests that have ended, by [`Reason::index`] and [`CodeClass::index`].
    pub requests: [[u64; CLASSES]; REASONS],
    /// Latencies by [`Target::index`].
    pub latency: [LatencyTotals<BUCKETS>; TARGETS],
    /// Upstream failures by [`Target::index`] and [`FailureKind::index`].
    pub failures: [[u64; KINDS]; TARGETS],
    /// Requests that an upstream answered with a 5xx, or did not answer to the end, by [`Target::index`].
    pub failed: [u64; TARGETS],
    /// By [`Fallback::index`].
    pub fallbacks: [u64; FALLBACKS],
    /// How long the sidecar took, in the buckets of [`SIDECAR_BOUNDS_US`].
    pub sidecar: LatencyTotals<SIDECAR_BUCKETS>,
    /// By [`SidecarResult::index`].
    pub sidecar_results: [u64; SIDECAR_RESULTS],
    /// By [`CacheResult::index`].
    pub cache_results: [u64; CACHE_RESULTS],
    /// Client connections at this moment.
    pub connections: u64,
}

/// A latency distribution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LatencyTotals<const N: usize> {
    /// How many fell into each bucket, then above the last.
    pub buckets: [u64; N],
    /// Sum of all latencies in microseconds.
    pub sum_us: u64,
}

impl<const N: usize> Default for LatencyTotals<N> {
    fn default() -> Self {
        LatencyTotals {
            buckets: [0; N],
            sum_us: 0,
        }
    }
}

impl Totals {
    /// Requests that have ended, by why they went where they went.
    pub fn ended(&self, reason: Reason) -> u64 {
        self.requests[reason.index()].iter().sum()
    }

    /// Requests of a target that have not ended.
    pub fn inflight(&self, target: Target) -> u64 {
        let ended = Reason::ALL
            .iter()
            .filter(|reason| reason.target() == target)
            .map(|reason| self.ended(*reason));
        self.begun[target.index()].saturating_sub(ended.sum())
    }
}

impl Tally {
    /// An empty tally and its only writer.
    pub fn new() -> (TallyWriter, Arc<Tally>) {
        let tally = Arc::new(Tally {
            begun: zeroes(),
            requests: std::array::from_fn(|_| zeroes()),
            latency: std::array::from_fn(|_| Latency::new()),
            failures: std::array::from_fn(|_| zeroes()),
            failed: zeroes(),
            fallbacks: zeroes(),
            sidecar: Latency::new(),
            sidecar_results: zeroes(),
            cache_results: zeroes(),
            connections: AtomicU64::new(0),
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
        // Those that have ended first: no request is to have ended before it began.
        for (requests, total) in self.requests.iter().zip(&mut totals.requests) {
            add_each(requests, total);
        }
        add_each(&self.begun, &mut totals.begun);
        for (latency, total) in self.latency.iter().zip(&mut totals.latency) {
            latency.add_to(total);
        }
        for (failures, total) in self.failures.iter().zip(&mut totals.failures) {
            add_each(failures, total);
        }
        add_each(&self.failed, &mut totals.failed);
        add_each(&self.fallbacks, &mut totals.fallbacks);
        self.sidecar.add_to(&mut totals.sidecar);
        add_each(&self.sidecar_results, &mut totals.sidecar_results);
        add_each(&self.cache_results, &mut totals.cache_results);
        totals.connections += read(&self.connections);
    }
}

impl<const N: usize> Latency<N> {
    fn new() -> Latency<N> {
        Latency {
            buckets: zeroes(),
            sum_us: AtomicU64::new(0),
        }
    }

    fn add_to(&self, total: &mut LatencyTotals<N>) {
        add_each(&self.buckets, &mut total.buckets);
        total.sum_us = total.sum_us.wrapping_add(read(&self.sum_us));
    }

    /// `bounds` are one less than there are buckets.
    fn record(&self, latency: Duration, bounds: &[u64]) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        let bucket = bounds.partition_point(|bound| *bound < micros);
        add(&self.buckets[bucket], 1);
        add(&self.sum_us, micros);
    }
}

impl TallyWriter {
    /// A request was decided.
    pub fn begun(&self, target: Target) {
        add(&self.tally.begun[target.index()], 1);
    }

    /// A request that had [`begun`](TallyWriter::begun) has ended: its response's last byte was handed over, or it
    /// broke off.
    pub fn request(&self, reason: Reason, class: CodeClass, latency: Duration) {
        add(&self.tally.requests[reason.index()][class.index()], 1);
        self.tally.latency[reason.target().index()].record(latency, &LATENCY_BOUNDS_US);
    }

    /// An upstream answered with a 5xx, or did not answer to the end.
    pub fn failed(&self, target: Target) {
        add(&self.tally.failed[target.index()], 1);
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
            self.tally.sidecar.record(took, &SIDECAR_BOUNDS_US);
        }
    }

    /// The sidecar's cache was looked into.
    pub fn cache(&self, result: CacheResult) {
        add(&self.tally.cache_results[result.index()], 1);
    }

    /// There are so many client connections now.
    pub fn connections(&self, count: usize) {
        // Relaxed, as all counts.
        self.tally
            .connections
            .store(count as u64, Ordering::Relaxed);
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
        let good = CodeClass::Success;
        for begun in [&one, &one, &two] {
            begun.begun(Target::Canary);
        }
        two.begun(Target::Main);
        one.request(Reason::HeaderTrue, good, Duration::from_millis(30));
        two.request(
            Reason::HeaderTrue,
            CodeClass::None,
            Duration::from_millis(5),
        );
        two.request(Reason::NoSidecar, good, Duration::from_secs(7));
        one.connections(3);
        one.connections(2);
        two.connections(5);
        two.failure(Target::Canary, FailureKind::Reset);
        one.failed(Target::Canary);
        two.failed(Target::Canary);
        two.fallback(Fallback::ReplayFailed);
        one.sidecar(SidecarResult::Main, Some(Duration::from_micros(500)));
        two.sidecar(SidecarResult::BreakerOpen, None);
        two.cache(CacheResult::Shared);
        let mut totals = Totals::default();
        first.add_to(&mut totals);
        second.add_to(&mut totals);
        assert_eq!(
            totals.requests[Reason::HeaderTrue.index()],
            [0, 1, 0, 0, 0, 1]
        );
        assert_eq!(totals.ended(Reason::HeaderTrue), 2);
        assert_eq!(totals.ended(Reason::NoSidecar), 1);
        assert_eq!(Target::ALL.map(|target| totals.inflight(target)), [0, 1]);
        assert_eq!(totals.connections, 7);
        let canary = totals.latency[Target::Canary.index()];
        let bucket = |us: u64| canary.buckets[LATENCY_BOUNDS_US.partition_point(|b| *b < us)];
        assert_eq!(
            (bucket(5_000), bucket(30_000), canary.sum_us),
            (1, 1, 35_000)
        );
        let main = totals.latency[Target::Main.index()];
        assert_eq!(main.buckets.iter().sum::<u64>(), 1);
        assert_eq!(totals.failures[1][FailureKind::Reset.index()], 1);
        assert_eq!(totals.failed, [0, 2]);
        assert_eq!(totals.fallbacks, [0, 1, 0, 0, 0]);
        assert_eq!(totals.sidecar_results, [1, 0, 0, 0, 1]);
        assert_eq!((totals.sidecar.buckets[0], totals.sidecar.sum_us), (1, 500));
        assert_eq!(totals.cache_results, [0, 0, 1]);
    }

    #[test]
    fn a_latency_on_a_bound_falls_into_its_bucket() {
        let (writer, tally) = Tally::new();
        assert!(LATENCY_BOUNDS_US.is_sorted_by(|a, b| a < b));
        assert_eq!(LATENCY_BOUNDS_US[66], 80_000_000);
        for bound in LATENCY_BOUNDS_US {
            writer.request(
                Reason::NoSidecar,
                CodeClass::Success,
                Duration::from_micros(bound),
            );
        }
        let mut totals = Totals::default();
        tally.add_to(&mut totals);
        let mut expected = [1; BUCKETS];
        expected[BUCKETS - 1] = 0;
        assert_eq!(totals.latency[0].buckets, expected);
    }
}
