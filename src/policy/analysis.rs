//! The judge: whether the canary fails more often than allowed, or is slower, by a test that may be looked at
//! all the time.
//!
//! The router assigns requests at random, with a probability ρ that it knows. So given that a request failed,
//! it was the canary's with probability ρR / (1 − ρ + ρR), where R is the canary's risk of failing divided by
//! main's: how often requests fail at all cancels, and with it every drift, shared outage and change of
//! weight. The null hypothesis R ≤ r0 is tested by the likelihood ratio of these labels against greater
//! R, averaged over some: a non-negative supermartingale that starts at 1 under the null, so the probability
//! that it *ever* reaches 1/α is at most α (J. Ville, 1939), whoever looks how often.
//!
//! Latency is the same test for "took longer than t", at many t at once: the event of main is an answer that
//! took longer than t, that of the canary one that took longer than g(t), what is allowed for that t, and r0 is 1.
//! A failure took for ever. Were it no event, a canary that answers what main fails, late perhaps, would look
//! slower than main. But the canary may fail `error_ratio` times as often, and that must not be rejected
//! as latency: a failure of its own is an event with the probability 1 / `error_ratio`. Nothing is drawn for
//! that; the evidence is multiplied by what it would be on average.
//!
//! A canary can be good for a long time, and everything that was seen of that then speaks for it. So the
//! evidence is a portfolio: a share of the stake begins with each account, and knows nothing of earlier ones.
//! That too is a supermartingale that starts at 1. An account is of one step and weight, and ends when it
//! has an eighth of all requests, so that there are few of them however long a step takes.
//!
//! What is kept is counts alone, by account; the evidence is computed from them, here and by whoever reads
//! them in the decision log.
//!
//! Sources: M. Lindon, A. Malek, *Anytime-valid inference for multinomial count data* (NeurIPS 2022);
//! S. Howard, A. Ramdas, J. McAuliffe, J. Sekhon, *Time-uniform, nonparametric, nonasymptotic confidence
//! sequences* (Annals of Statistics 49, 2021); R. Turner, A. Ly, P. Grünwald, *Generic E-variables for
//! exact sequential k-sample tests that allow for optional stopping* (JSPI 230, 2024); A. Ramdas,
//! P. Grünwald, V. Vovk, G. Shafer, *Game-theoretic statistics and safe anytime-valid inference*
//! (Statistical Science 38, 2023).

use std::time::Duration;

use super::{Target, rollout::Verdict, weight::Weight};

/// At how many latencies both targets are compared. Models of what threads share would take for ever with all
/// of them.
pub const THRESHOLDS: usize = if cfg!(canary_loom) { 1 } else { 40 };
/// How many thresholds a latency can exceed: none, to all of them.
pub const LEVELS: usize = THRESHOLDS + 1;
/// How many accounts are kept apart; a step or weight that comes after is not judged.
pub const MOST_ACCOUNTS: usize = 256;
/// An account takes no more than this share of the requests of all, but so many at least. A year at 1,000
/// requests per second makes 104 accounts of one step.
const FULL_SHARE: u64 = 8;
const FULL_AT_LEAST: u64 = 10_000;

/// The lowest threshold, and each one in terms of the one before.
const LOWEST: Duration = Duration::from_millis(2);
const GROWTH: f64 = 1.25;
/// The alternatives, in terms of r0.
const ALTERNATIVES: [f64; 9] = [1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0, 1000.0];
/// The alternatives of the mirror test, in terms of `safe_ratio`.
const SAFE_ALTERNATIVES: [f64; 6] = [0.8, 0.65, 0.5, 0.33, 0.2, 0.1];
/// The alternatives of the test of the canary's rate of failures, in terms of the acceptable one, and how much
/// each of them weighs.
const RATE_ALTERNATIVES: [(f64, f64); 4] = [(0.0, 0.7), (0.1, 0.1), (0.25, 0.1), (0.5, 0.1)];
/// How sure it must be that a canary is good enough.
const ENOUGH: f64 = 0.05;

/// What the judge allows, and how sure it must be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// r0: how many times as often as main the canary may fail; 1 to 100.
    pub error_ratio: f64,
    /// α: the probability that a rollout of a canary that is no worse than allowed is ever rolled back; above 0,
    /// at most 0.5.
    pub false_rollback_probability: f64,
    /// How much slower the canary may be; `None` where latency is not judged.
    pub latency: Option<LatencyRule>,
    /// Evidence is enough when the canary is shown to fail less than so many times as often as main; more than
    /// 1.
    pub safe_ratio: f64,
    /// Or when it is shown to fail less often than this; 0 (off) to 0.5.
    pub acceptable_failure_rate: f64,
}

/// How much slower than main the canary may be: the greater of the two.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LatencyRule {
    /// As a share of main's latency.
    pub margin: f64,
    /// At any latency.
    pub slack: Duration,
}

/// The thresholds of both targets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thresholds {
    /// In microseconds, rising, by [`Target::index`].
    bounds: [[u64; THRESHOLDS]; Target::ALL.len()],
}

impl Thresholds {
    /// Where the canary may be slower by this much.
    pub fn new(rule: LatencyRule) -> Thresholds {
        let main: [f64; THRESHOLDS] =
            std::array::from_fn(|i| LOWEST.as_micros() as f64 * GROWTH.powi(i as i32));
        let slack = rule.slack.as_micros() as f64;
        let allowed = main.map(|t| ((1.0 + rule.margin) * t).max(t + slack));
        Thresholds {
            bounds: [main, allowed].map(|bounds| bounds.map(|bound| bound.round() as u64)),
        }
    }

    /// How many thresholds of its target a latency exceeds.
    pub fn level(&self, target: Target, latency: Duration) -> usize {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.bounds[target.index()].partition_point(|bound| *bound < micros)
    }

    /// The thresholds of a target in microseconds, rising.
    pub fn bounds(&self, target: Target) -> &[u64; THRESHOLDS] {
        &self.bounds[target.index()]
    }
}

/// A number for each target, by [`Target::index`].
pub type Pair = [u64; Target::ALL.len()];

/// What happened to the requests that started in one tick, or under one weight in one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Requests that were answered or failed.
    pub requests: Pair,
    /// Requests that failed.
    pub failures: Pair,
    /// Failures that are evidence: with sticky assignment no more than one of each key.
    pub failed: Pair,
    /// Answers, and waits of clients that left, that took longer than each threshold, and are evidence.
    pub slow: [Pair; THRESHOLDS],
}

impl Default for Counts {
    fn default() -> Counts {
        Counts {
            requests: [0; 2],
            failures: [0; 2],
            failed: [0; 2],
            slow: [[0; 2]; THRESHOLDS],
        }
    }
}

impl Counts {
    /// Adds others to these.
    pub fn add(&mut self, other: &Counts) {
        add(&mut self.requests, other.requests);
        add(&mut self.failures, other.failures);
        add(&mut self.failed, other.failed);
        for (slow, other) in self.slow.iter_mut().zip(other.slow) {
            add(slow, other);
        }
    }

    fn is_empty(&self) -> bool {
        *self == Counts::default()
    }
}

fn add(pair: &mut Pair, other: Pair) {
    for (one, other) in pair.iter_mut().zip(other) {
        *one = one.saturating_add(other);
    }
}

/// Counts of one weight in one step. When it is full, another one of the same follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// The step, from 0.
    pub step: usize,
    /// The canary's share of requests.
    pub weight: Weight,
    /// What happened to them.
    pub counts: Counts,
}

/// All counts of one rollout, in the order in which their accounts were begun: it matters, because evidence
/// begins anew with each. At most [`MOST_ACCOUNTS`] accounts of less than a kilobyte.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Evidence {
    accounts: Vec<Account>,
}

/// Natural logarithms of how strong the evidence is, for the metrics and the log.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Strength {
    /// That the canary fails more often than allowed.
    pub errors: f64,
    /// That it is slower than allowed, where that is judged.
    pub latency: Option<f64>,
    /// Both together: what is compared with the threshold.
    pub overall: f64,
    /// The threshold, 1/α.
    pub threshold: f64,
    /// That it fails less than `safe_ratio` times as often as main, in this step.
    pub safe_ratio: f64,
    /// That it fails less often than acceptable, in this step; where that is asked.
    pub acceptable: Option<f64>,
    /// What these two are compared with.
    pub enough: f64,
}

impl Evidence {
    /// From counts that were kept.
    pub fn new(accounts: Vec<Account>) -> Evidence {
        Evidence { accounts }
    }

    /// The counts.
    pub fn accounts(&self) -> &[Account] {
        &self.accounts
    }

    /// Adds what happened under a weight in a step. Where the canary gets nothing there is nothing to learn.
    pub fn add(&mut self, step: usize, weight: Weight, counts: &Counts) {
        if weight == Weight::NONE || counts.is_empty() {
            return;
        }
        let room = self.accounts.len() < MOST_ACCOUNTS;
        let requests = |account: &Account| {
            let [main, canary] = account.counts.requests;
            main.saturating_add(canary)
        };
        let all = self
            .accounts
            .iter()
            .fold(0u64, |all, account| all.saturating_add(requests(account)));
        let full = FULL_AT_LEAST.max(all / FULL_SHARE);
        let same = |account: &&mut Account| account.step == step && account.weight == weight;
        match self.accounts.iter_mut().rev().find(same) {
            // What is full was known before these came: the judge does not choose what it begins with.
            Some(account) if requests(account) < full || !room => account.counts.add(counts),
            _ if room => self.accounts.push(Account {
                step,
                weight,
                counts: *counts,
            }),
            _ => {}
        }
    }

    /// How strong it is, in this step. Where the canary gets everything there is nothing to compare with: then
    /// it is enough to fail less often than acceptable; if nobody has said what is, what earlier steps have shown
    /// counts as shown.
    pub fn strength(&self, settings: &Settings, step: usize) -> Strength {
        let errors = self.against(settings.error_ratio, 0.0, |counts| {
            let [main, canary] = counts.failed.map(|count| count as f64);
            [Events {
                main,
                canary,
                maybe: 0.0,
            }]
        });
        let latency = settings.latency.map(|_| {
            self.against(1.0, 1.0 / settings.error_ratio, |counts| {
                let [failed, maybe] = counts.failed.map(|count| count as f64);
                counts.slow.map(|slow| {
                    let [slow, canary] = slow.map(|count| count as f64);
                    Events {
                        main: slow + failed,
                        canary,
                        maybe,
                    }
                })
            })
        });
        let of_step = |account: &Account| account.step == step;
        let is_last = |account: &Account| of_step(account) && account.weight == Weight::ALL;
        let all = self.accounts.iter().any(is_last);
        let now = || self.accounts.iter().filter(|account| of_step(account));
        let shown = all && settings.acceptable_failure_rate == 0.0;
        let safe = SAFE_ALTERNATIVES.map(|factor| {
            let (r, r0) = (factor * settings.safe_ratio, settings.safe_ratio);
            let accounts = self.accounts.iter();
            accounts
                .filter(|account| shown || of_step(account))
                .map(|account| {
                    let odds = Odds::new(account.weight, r, r0);
                    let [main, canary] = account.counts.failed.map(|count| count as f64);
                    main * odds.main + canary * odds.canary
                })
                .sum()
        });
        let acceptable = (settings.acceptable_failure_rate > 0.0).then(|| {
            let mut canary = [0; 2];
            for account in now() {
                let counts = &account.counts;
                let of = Target::Canary.index();
                add(&mut canary, [counts.requests[of], counts.failures[of]]);
            }
            ln_below(settings.acceptable_failure_rate, canary)
        });
        Strength {
            errors,
            latency,
            overall: match latency {
                Some(latency) => ln_mean(&[errors, latency]),
                None => errors,
            },
            threshold: -settings.false_rollback_probability.ln(),
            safe_ratio: ln_mean(&safe),
            acceptable,
            enough: -ENOUGH.ln(),
        }
    }

    /// The evidence against R ≤ r0 for `N` kinds of events, of which those that are `maybe` count with this
    /// probability: the mean over kinds, alternatives, and accounts from which on one could have begun to look.
    fn against<const N: usize>(
        &self,
        r0: f64,
        probability: f64,
        events: impl Fn(&Counts) -> [Events; N],
    ) -> f64 {
        // Of the first account a half, of the second a sixth: account k has 1 / ((k + 1)(k + 2)) of the stake,
        // however many there will be. What has not begun is worth what it is.
        let not_begun = 1.0 / (self.accounts.len() as f64 + 1.0);
        let mut shares = vec![not_begun.ln()];
        // The logarithm of the evidence since an account, for each alternative and each kind.
        let mut since = [[0.0; N]; ALTERNATIVES.len()];
        let mut odds = Vec::new();
        let mut odds_of = None;
        for (k, account) in self.accounts.iter().enumerate().rev() {
            // Most accounts have the weight of the one before.
            if odds_of.replace(account.weight) != Some(account.weight) {
                let of = |factor| {
                    let odds = Odds::new(account.weight, factor * r0, r0);
                    let maybe = (probability * odds.canary.exp_m1()).ln_1p();
                    (odds, maybe)
                };
                odds = ALTERNATIVES.map(of).into();
            }
            let events = events(&account.counts);
            for (since, (odds, maybe)) in since.iter_mut().zip(&odds) {
                for (since, events) in since.iter_mut().zip(&events) {
                    *since += events.main * odds.main
                        + events.canary * odds.canary
                        + events.maybe * maybe;
                }
            }
            let k = k as f64;
            shares.push(ln_mean(since.as_flattened()) - ((k + 1.0) * (k + 2.0)).ln());
        }
        ln_sum(&shares)
    }
}

impl Strength {
    /// What it comes to.
    pub fn verdict(&self) -> Verdict {
        let is_enough = |strength: f64| strength >= self.enough;
        if self.overall >= self.threshold {
            Verdict::Unhealthy
        } else if is_enough(self.safe_ratio) || self.acceptable.is_some_and(is_enough) {
            Verdict::Healthy
        } else {
            Verdict::Inconclusive
        }
    }
}

/// Events of one kind, by target.
#[derive(Clone, Copy)]
struct Events {
    main: f64,
    canary: f64,
    /// Of the canary, but they count with some probability only.
    maybe: f64,
}

/// How much likelier, in logarithms, it is at the risk ratio r than at r0 that an event is of this target.
struct Odds {
    main: f64,
    canary: f64,
}

impl Odds {
    fn new(weight: Weight, r: f64, r0: f64) -> Odds {
        if weight.is_certain() {
            return Odds {
                main: 0.0,
                canary: 0.0,
            };
        }
        let rho = weight.ratio();
        // ln_1p keeps what a weight of 0.01 % adds to 1.
        let main = (rho * (r0 - 1.0)).ln_1p() - (rho * (r - 1.0)).ln_1p();
        Odds {
            main,
            canary: main + (r / r0).ln(),
        }
    }
}

/// How much likelier it is that `failed` of `requests` failed if fewer than a share of `p` does.
fn ln_below(p: f64, [requests, failed]: Pair) -> f64 {
    let failed = failed.min(requests) as f64;
    let good = requests as f64 - failed;
    let each = RATE_ALTERNATIVES.map(|(factor, weighs)| {
        let q = factor * p;
        // 0 times the logarithm of 0 is no number, and no failure is no evidence.
        let of_failures = match failed {
            0.0 => 0.0,
            _ => failed * factor.ln(),
        };
        f64::ln(weighs) + of_failures + good * ((-q).ln_1p() - (-p).ln_1p())
    });
    ln_sum(&each)
}

/// The logarithm of the mean of what these are the logarithms of.
fn ln_mean(logarithms: &[f64]) -> f64 {
    ln_sum(logarithms) - (logarithms.len() as f64).ln()
}

fn ln_sum(logarithms: &[f64]) -> f64 {
    let greatest = logarithms.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if greatest == f64::NEG_INFINITY {
        return greatest;
    }
    let sum: f64 = logarithms.iter().map(|one| (one - greatest).exp()).sum();
    greatest + sum.ln()
}

#[cfg(test)]
mod tests;
