//! The same evidence by another way: from each account on and for each alternative the product, label by
//! label, of how likely it is under either hypothesis.

use super::*;

/// How likely it is that an event is of this target.
fn likelihood(rho: f64, target: Target, r: f64) -> f64 {
    let canary = rho * r / (1.0 - rho + rho * r);
    match target {
        Target::Canary => canary,
        Target::Main => 1.0 - canary,
    }
}

fn ratio(rho: f64, target: Target, r: f64, r0: f64) -> f64 {
    likelihood(rho, target, r) / likelihood(rho, target, r0)
}

/// A label: of which target, and with which probability it counts.
type Label = (Target, f64);

fn process(accounts: &[(f64, Vec<Label>)], r0: f64) -> f64 {
    let mut sum = 0.0;
    let mut staked = 0.0;
    for first in 0..accounts.len() {
        let stake = 1.0 / ((first as f64 + 1.0) * (first as f64 + 2.0));
        staked += stake;
        for factor in ALTERNATIVES {
            let mut ln = 0.0;
            for (rho, labels) in &accounts[first..] {
                for (target, counts) in labels {
                    let ratio = ratio(*rho, *target, factor * r0, r0);
                    ln += (1.0 - counts + counts * ratio).ln();
                }
            }
            sum += stake * ln.exp() / ALTERNATIVES.len() as f64;
        }
    }
    sum + 1.0 - staked
}

fn labels(times: Pair) -> Vec<Label> {
    let of = |target: Target| vec![(target, 1.0); times[target.index()] as usize];
    [of(Target::Canary), of(Target::Main)].concat()
}

type Accounts = [(usize, u32, Counts)];

fn with(accounts: &Accounts, of: impl Fn(&Counts) -> Vec<Label>) -> Vec<(f64, Vec<Label>)> {
    let one = |(_, hundredths, counts): &(usize, u32, Counts)| {
        (f64::from(*hundredths) / 10_000.0, of(counts))
    };
    accounts.iter().map(one).collect()
}

pub fn errors(accounts: &Accounts, r0: f64) -> f64 {
    process(&with(accounts, |counts| labels(counts.failed)), r0)
}

pub fn latency(accounts: &Accounts, r0: f64) -> f64 {
    let at = |threshold: usize| {
        let of = |counts: &Counts| {
            let mut all = labels(counts.slow[threshold]);
            all.extend(labels([counts.failed[MAIN], 0]));
            all.extend(vec![
                (Target::Canary, 1.0 / r0);
                counts.failed[CANARY] as usize
            ]);
            all
        };
        process(&with(accounts, of), 1.0)
    };
    (0..THRESHOLDS).map(at).sum::<f64>() / THRESHOLDS as f64
}

pub fn safe(accounts: &Accounts, step: usize, safe_ratio: f64) -> f64 {
    let each = SAFE_ALTERNATIVES.map(|factor| {
        let now = accounts.iter().filter(|(of, ..)| *of == step);
        let each = now.flat_map(|(_, hundredths, counts)| {
            let rho = f64::from(*hundredths) / 10_000.0;
            let labels = labels(counts.failed).into_iter();
            labels.map(move |(target, _)| ratio(rho, target, factor * safe_ratio, safe_ratio))
        });
        each.product::<f64>()
    });
    each.iter().sum::<f64>() / SAFE_ALTERNATIVES.len() as f64
}

pub fn acceptable(accounts: &Accounts, step: usize, p: f64) -> f64 {
    let now = accounts.iter().filter(|(of, ..)| *of == step);
    let [mut good, mut bad] = [0, 0];
    for (.., counts) in now {
        bad += counts.failures[CANARY];
        good += counts.requests[CANARY] - counts.failures[CANARY];
    }
    let each = RATE_ALTERNATIVES.map(|(factor, weighs)| {
        let q = factor * p;
        let mut product = weighs;
        (0..good).for_each(|_| product *= (1.0 - q) / (1.0 - p));
        (0..bad).for_each(|_| product *= q / p);
        product
    });
    each.iter().sum()
}
