//! How calls ended lately: a ring of time buckets.
//!
//! Time is cut into buckets of a tenth of the window. The newest ten count, of which the last has only
//! begun, so the window reaches back between nine tenths of its length and the whole of it. Recording and
//! asking cost the same however many calls there were.
//!
//! A moment is a [`Duration`] since any fixed one.

use std::time::Duration;

/// How many buckets a window has.
const BUCKETS: usize = 10;

/// Numbers of calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Counts {
    /// All of them.
    pub calls: u64,
    /// Those that failed.
    pub failures: u64,
    /// Those that took too long, whether they failed or not.
    pub slow: u64,
}

impl Counts {
    fn add(&mut self, other: Counts) {
        self.calls += other.calls;
        self.failures += other.failures;
        self.slow += other.slow;
    }

    fn take(&mut self, other: Counts) {
        self.calls -= other.calls;
        self.failures -= other.failures;
        self.slow -= other.slow;
    }
}

/// The calls of the last while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    bucket: Duration,
    /// The number of the newest bucket since time began.
    newest: u64,
    buckets: [Counts; BUCKETS],
    /// Of all buckets.
    sum: Counts,
}

impl Window {
    /// An empty one of this length, of at least 10 ns.
    pub fn new(length: Duration) -> Window {
        Window {
            bucket: (length / BUCKETS as u32).max(Duration::from_nanos(1)),
            newest: 0,
            buckets: [Counts::default(); BUCKETS],
            sum: Counts::default(),
        }
    }

    /// Counts a call that ended at `now`. A call that ended before the newest bucket began counts in that
    /// one: threads look at the clock in one order and get here in another.
    pub fn record(&mut self, now: Duration, failed: bool, slow: bool) {
        self.advance(now);
        let call = Counts {
            calls: 1,
            failures: failed.into(),
            slow: slow.into(),
        };
        self.buckets[(self.newest % BUCKETS as u64) as usize].add(call);
        self.sum.add(call);
    }

    /// What is in the window at `now`.
    pub fn counts(&mut self, now: Duration) -> Counts {
        self.advance(now);
        self.sum
    }

    fn advance(&mut self, now: Duration) {
        let number = (now.as_nanos() / self.bucket.as_nanos()) as u64;
        let passed = number.saturating_sub(self.newest);
        for step in 1..=passed.min(BUCKETS as u64) {
            let bucket = &mut self.buckets[((self.newest + step) % BUCKETS as u64) as usize];
            self.sum.take(std::mem::take(bucket));
        }
        self.newest = self.newest.max(number);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LENGTH: Duration = Duration::from_millis(1000);

    /// Keeps everything.
    fn model(calls: &[(u64, bool, bool)], now_ms: u64) -> Counts {
        let newest = calls
            .iter()
            .map(|call| call.0)
            .max()
            .unwrap_or(0)
            .max(now_ms)
            / 100;
        let mut counts = Counts::default();
        let mut seen = 0;
        for &(at, failed, slow) in calls {
            // What comes late counts in the newest bucket there was.
            seen = at.max(seen);
            if seen / 100 + BUCKETS as u64 > newest {
                counts.calls += 1;
                counts.failures += u64::from(failed);
                counts.slow += u64::from(slow);
            }
        }
        counts
    }

    proptest! {
        #[test]
        fn it_counts_what_a_list_of_all_calls_would(
            steps in proptest::collection::vec((0u64..400, any::<bool>(), any::<bool>()), 0..200),
            back in proptest::collection::vec(0u64..150, 200),
            rest in 0u64..2_000,
        ) {
            let mut window = Window::new(LENGTH);
            let mut calls = Vec::new();
            let mut clock = 0;
            for ((step, failed, slow), back) in steps.into_iter().zip(back) {
                clock += step;
                let at = clock.saturating_sub(back);
                window.record(Duration::from_millis(at), failed, slow);
                calls.push((at, failed, slow));
                let seen = calls.iter().map(|call| call.0).max().unwrap_or(0);
                let counted = window.counts(Duration::from_millis(at));
                prop_assert_eq!(counted, model(&calls, seen));
            }
            let end = clock + rest;
            prop_assert_eq!(window.counts(Duration::from_millis(end)), model(&calls, end));
        }
    }

    #[test]
    fn a_pause_of_any_length_empties_it() {
        for pause in [1_000, 1_001, 10_000, u64::from(u32::MAX)] {
            let mut window = Window::new(LENGTH);
            window.record(Duration::ZERO, true, true);
            let later = Duration::from_millis(pause);
            assert_eq!(window.counts(later), Counts::default(), "{pause}");
        }
    }
}
