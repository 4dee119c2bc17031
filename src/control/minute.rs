//! What both targets did in the last minute, and in each second of it.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use crate::{
    policy::Target,
    state::{
        Tally,
        tally::{LATENCY_BOUNDS_US, Totals},
    },
};

/// How far back it looks, in seconds.
const SECONDS: usize = 60;
const SECOND: Duration = Duration::from_secs(1);
/// The quantiles of a second are those of so many up to it: of one alone they would be noise.
const SMOOTHED: usize = 10;

/// Keeps the totals of each second.
pub struct Minute {
    tallies: Vec<Arc<Tally>>,
    /// With the moment that they are of, oldest first.
    kept: VecDeque<(Duration, Totals)>,
    /// When the next second is over.
    next: Duration,
}

/// One target in the last minute.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Recent {
    /// Requests that were for it and have ended.
    pub requests: u64,
    /// Requests that it answered with a 5xx, or did not answer to the end.
    pub failures: u64,
    /// Requests per second.
    pub rate: f64,
    /// The latencies that half, nine in ten and ninety-nine in a hundred did not exceed, in seconds; `None`
    /// without requests.
    pub quantiles: [Option<f64>; 3],
    /// Requests that have not ended now.
    pub inflight: u64,
}

impl Recent {
    /// Failures per request; `None` without requests. A failure counts when it is known, and its request when it ends:
    /// for a moment there may be more of them.
    pub fn failure_ratio(&self) -> Option<f64> {
        (self.requests > 0).then(|| (self.failures as f64 / self.requests as f64).min(1.0))
    }
}

/// One target in one second.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Second {
    /// Requests that were for it and have ended.
    pub requests: u64,
    /// Requests that it answered with a 5xx, or did not answer to the end.
    pub failures: u64,
    /// The latency that half of the last ten seconds' requests did not exceed, in seconds; `None` without
    /// requests.
    pub p50: Option<f64>,
    /// And ninety-nine in a hundred.
    pub p99: Option<f64>,
}

impl Minute {
    /// From now on.
    pub fn new(tallies: Vec<Arc<Tally>>, now: Duration) -> Minute {
        let mut minute = Minute {
            tallies,
            kept: VecDeque::with_capacity(SECONDS + 1),
            next: now + SECOND,
        };
        minute.kept.push_back((now, minute.totals()));
        minute
    }

    /// To be called several times a second. When a second is over: what the targets did in it, by
    /// [`Target::index`].
    pub fn look(&mut self, now: Duration) -> Option<[Second; Target::ALL.len()]> {
        if now < self.next {
            return None;
        }
        // Looks come late by a bit; the seconds do not add that up. What was missed is not made up for.
        self.next = match now - self.next < SECOND {
            true => self.next + SECOND,
            false => now + SECOND,
        };
        self.kept.push_back((now, self.totals()));
        while self.kept.len() > SECONDS + 1 {
            self.kept.pop_front();
        }
        Some(Target::ALL.map(|target| self.second(target)))
    }

    /// The one that is over.
    fn second(&self, target: Target) -> Second {
        let of = target.index();
        let back = |seconds: usize| {
            let last = self.kept.len().saturating_sub(1);
            self.kept.get(last.saturating_sub(seconds))
        };
        let (Some((_, new)), Some((_, old)), Some((_, older))) = (back(0), back(1), back(SMOOTHED))
        else {
            return Second::default();
        };
        let smoothed = between(new, older, target);
        Second {
            requests: between(new, old, target).iter().sum(),
            failures: new.failed[of] - old.failed[of],
            p50: quantile(&smoothed, 0.5),
            p99: quantile(&smoothed, 0.99),
        }
    }

    /// Everything since the start.
    fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for tally in &self.tallies {
            tally.add_to(&mut totals);
        }
        totals
    }

    /// What the targets did, by [`Target::index`].
    pub fn recent(&self, now: Duration) -> [Recent; Target::ALL.len()] {
        let (since, before) = self.kept.front().cloned().unwrap_or_default();
        let totals = self.totals();
        let passed = now.saturating_sub(since).as_secs_f64().max(1.0);
        Target::ALL.map(|target| {
            let of = target.index();
            let counts = between(&totals, &before, target);
            let requests = counts.iter().sum();
            Recent {
                requests,
                failures: totals.failed[of] - before.failed[of],
                rate: requests as f64 / passed,
                quantiles: [0.5, 0.9, 0.99].map(|share| quantile(&counts, share)),
                inflight: totals.inflight(target),
            }
        })
    }
}

/// How many latencies have fallen into each bucket meanwhile.
fn between(new: &Totals, old: &Totals, target: Target) -> Vec<u64> {
    let [new, old] = [new, old].map(|totals| totals.latency[target.index()].buckets);
    new.iter().zip(old).map(|(new, old)| new - old).collect()
}

/// In seconds, between the bounds of its bucket in proportion.
fn quantile(counts: &[u64], share: f64) -> Option<f64> {
    let all: u64 = counts.iter().sum();
    if all == 0 {
        return None;
    }
    let wanted = share * all as f64;
    let mut below = 0;
    for (i, count) in counts.iter().enumerate() {
        if (below + count) as f64 >= wanted && *count > 0 {
            let bound = |i: usize| LATENCY_BOUNDS_US.get(i).copied();
            // Beyond the last bound nothing is known but that.
            let high = bound(i).or(LATENCY_BOUNDS_US.last().copied())? as f64;
            let low = match i {
                0 => 0.0,
                _ => bound(i - 1)? as f64,
            };
            let into = (wanted - below as f64) / *count as f64;
            return Some((low + (high - low).max(0.0) * into) / 1e6);
        }
        below += count;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{CodeClass, Reason};

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn what_is_older_than_a_minute_is_forgotten() {
        let (writer, tally) = Tally::new();
        let mut minute = Minute::new(vec![tally], Duration::ZERO);
        for second in 1..=100 {
            writer.request(Reason::NoSidecar, CodeClass::Success, 30 * MS);
            if second <= 30 {
                writer.failed(Target::Main);
            }
            minute.look(SECOND * second);
        }
        let [recent, canary] = minute.recent(SECOND * 100);
        assert_eq!((recent.requests, recent.failures), (60, 0));
        assert!((recent.rate - 1.0).abs() < 1e-9);
        assert_eq!((canary.requests, canary.quantiles), (0, [None; 3]));
    }

    #[test]
    fn a_second_has_its_own_counts_and_the_quantiles_of_ten() {
        let (writer, tally) = Tally::new();
        let mut minute = Minute::new(vec![tally], Duration::ZERO);
        for _ in 0..100 {
            writer.request(Reason::NoSidecar, CodeClass::Success, 900 * MS);
        }
        writer.failed(Target::Main);
        assert_eq!(minute.look(SECOND / 2), None);
        let [main, canary] = minute.look(SECOND).unwrap();
        assert_eq!((main.requests, main.failures), (100, 1));
        assert_eq!(canary, Second::default());
        for second in 2..=11 {
            writer.request(Reason::NoSidecar, CodeClass::Success, 30 * MS);
            let [main, _] = minute.look(SECOND * second).unwrap();
            assert_eq!((main.requests, main.failures), (1, 0));
            let has_old = second <= 10;
            assert_eq!(main.p50.unwrap() > 0.5, has_old, "{second}");
            assert_eq!(main.p99.unwrap() > 0.5, has_old, "{second}");
        }
    }

    #[test]
    fn seconds_do_not_add_up_how_late_they_are_looked_at() {
        let mut minute = Minute::new(vec![Tally::new().1], Duration::ZERO);
        let looks = (1..=500).map(|look| 210 * MS * look);
        let seconds = looks.filter(|now| minute.look(*now).is_some()).count();
        assert_eq!(seconds, 105);
        // A machine that has slept is not asked for each second of it.
        assert!(minute.look(SECOND * 1_000).is_some());
        assert!(minute.look(SECOND * 1_000 + 200 * MS).is_none());
    }

    #[test]
    fn a_quantile_is_right_to_a_tenth_or_so() {
        let (writer, tally) = Tally::new();
        let minute = Minute::new(vec![tally], Duration::ZERO);
        for ms in 1..=1000 {
            writer.request(Reason::NoSidecar, CodeClass::Success, MS * ms);
        }
        let [recent, _] = minute.recent(SECOND);
        for (quantile, expected) in recent.quantiles.into_iter().zip([0.5, 0.9, 0.99]) {
            let quantile = quantile.unwrap();
            assert!(
                (quantile / expected - 1.0).abs() < 0.1,
                "{quantile} {expected}"
            );
        }
    }
}
