//! What both targets did in the last minute.

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

/// Keeps the totals of each second.
pub struct Minute {
    tallies: Vec<Arc<Tally>>,
    /// With the moment that they are of, oldest first.
    kept: VecDeque<(Duration, Totals)>,
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
}

impl Minute {
    /// From now on.
    pub fn new(tallies: Vec<Arc<Tally>>, now: Duration) -> Minute {
        let mut minute = Minute {
            tallies,
            kept: VecDeque::with_capacity(SECONDS + 1),
        };
        minute.kept.push_back((now, minute.totals()));
        minute
    }

    /// To be called several times a second.
    pub fn look(&mut self, now: Duration) {
        if self
            .kept
            .back()
            .is_none_or(|(then, _)| now.saturating_sub(*then) >= SECOND)
        {
            self.kept.push_back((now, self.totals()));
            while self.kept.len() > SECONDS + 1 {
                self.kept.pop_front();
            }
        }
    }

    /// Everything since the start.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for tally in &self.tallies {
            tally.add_to(&mut totals);
        }
        totals
    }

    /// What a target did.
    pub fn recent(&self, target: Target, now: Duration) -> Recent {
        let (since, before) = self.kept.front().cloned().unwrap_or_default();
        let totals = self.totals();
        let of = target.index();
        let (latency, old) = (&totals.latency[of], &before.latency[of]);
        let counts: Vec<u64> = latency
            .buckets
            .iter()
            .zip(old.buckets)
            .map(|(new, old)| new - old)
            .collect();
        let requests = counts.iter().sum();
        let passed = now.saturating_sub(since).as_secs_f64().max(1.0);
        Recent {
            requests,
            failures: totals.failed[of] - before.failed[of],
            rate: requests as f64 / passed,
            quantiles: [0.5, 0.9, 0.99].map(|share| quantile(&counts, share)),
        }
    }
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
        let recent = minute.recent(Target::Main, SECOND * 100);
        assert_eq!((recent.requests, recent.failures), (60, 0));
        assert!((recent.rate - 1.0).abs() < 1e-9);
        let canary = minute.recent(Target::Canary, SECOND * 100);
        assert_eq!((canary.requests, canary.quantiles), (0, [None; 3]));
    }

    #[test]
    fn a_quantile_is_right_to_a_tenth_or_so() {
        let (writer, tally) = Tally::new();
        let minute = Minute::new(vec![tally], Duration::ZERO);
        for ms in 1..=1000 {
            writer.request(Reason::NoSidecar, CodeClass::Success, MS * ms);
        }
        let recent = minute.recent(Target::Main, SECOND);
        for (quantile, expected) in recent.quantiles.into_iter().zip([0.5, 0.9, 0.99]) {
            let quantile = quantile.unwrap();
            assert!(
                (quantile / expected - 1.0).abs() < 0.1,
                "{quantile} {expected}"
            );
        }
    }
}
