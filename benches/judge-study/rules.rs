//! The judge, and its rivals: the rules by which canaries are usually rolled back. Each is told of one second
//! after the other, and says whether it rolls back.

use std::time::Duration;

use canary_router::policy::{
    Target,
    analysis::{Evidence, LatencyRule, Settings, Thresholds},
    rollout::Verdict,
};

use super::world::Tick;

/// The default settings.
pub const LATENCY: LatencyRule = LatencyRule {
    margin: 0.1,
    slack: Duration::from_millis(15),
};

/// The default settings, with latency or without.
pub fn settings(latency: bool) -> Settings {
    Settings {
        error_ratio: 1.5,
        false_rollback_probability: 0.01,
        latency: latency.then_some(LATENCY),
        safe_ratio: 2.0,
        acceptable_failure_rate: 0.01,
    }
}

/// The thresholds of the default settings.
pub fn thresholds() -> Thresholds {
    Thresholds::new(LATENCY)
}

/// A rule, of which the names stand in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name {
    Judge,
    Fixed,
    ZTest,
    MannWhitney,
}

impl Name {
    pub const ALL: [Name; 4] = [Name::Judge, Name::Fixed, Name::ZTest, Name::MannWhitney];

    pub fn label(self) -> &'static str {
        match self {
            Name::Judge => "judge",
            Name::Fixed => "five failed checks",
            Name::ZTest => "z-test every minute",
            Name::MannWhitney => "Mann-Whitney every minute",
        }
    }
}

/// Whether to roll back.
pub trait Rule {
    fn rolls_back(&mut self, tick: &Tick) -> bool;
}

/// What the judge is told; all but the first are mistakes, to show why they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// What the router tells it.
    AsItIs,
    /// Every failure of a sticky user.
    EveryFailure,
    /// Failures as answers that took for ever, and nothing else.
    FailuresAsSlow,
}

pub struct Judge {
    settings: Settings,
    told: Told,
    evidence: Evidence,
}

impl Judge {
    pub fn new(latency: bool, told: Told) -> Judge {
        Judge {
            settings: settings(latency),
            told,
            evidence: Evidence::default(),
        }
    }
}

impl Rule for Judge {
    fn rolls_back(&mut self, tick: &Tick) -> bool {
        let mut counts = tick.counts;
        match self.told {
            Told::AsItIs => {}
            Told::EveryFailure => counts.failed = counts.failures,
            Told::FailuresAsSlow => {
                for target in Target::ALL.map(Target::index) {
                    for slow in &mut counts.slow {
                        slow[target] += counts.failures[target];
                    }
                }
                counts.failed = [0; 2];
            }
        }
        self.evidence.add(tick.step, tick.weight, &counts);
        // An event of main's makes every alternative less likely, and nothing else but an event of the
        // canary's makes any more likely. So the evidence cannot have come to the threshold in a second in
        // which there was none, and leaving those out changes no rollback.
        let canary = Target::Canary.index();
        let event = counts.failed[canary] > 0 || counts.slow.iter().any(|slow| slow[canary] > 0);
        event && self.evidence.strength(&self.settings, tick.step).verdict() == Verdict::Unhealthy
    }
}

/// What happened since the last whole minute.
#[derive(Default)]
struct Minute {
    requests: [u64; 2],
    failures: [u64; 2],
    latencies: [Vec<f64>; 2],
}

impl Minute {
    /// Whether the minute is over with this.
    fn add(&mut self, tick: &Tick) -> bool {
        for target in Target::ALL.map(Target::index) {
            self.requests[target] += tick.counts.requests[target];
            self.failures[target] += tick.counts.failures[target];
            self.latencies[target].extend(&tick.latencies[target]);
        }
        (tick.second + 1).is_multiple_of(60)
    }
}

/// As Flagger and Argo Rollouts are set up in their documentation: a check each minute, of the last minute's
/// requests of the canary alone; failed when less than 99 % succeeded or the 99th percentile of latency is over
/// 500 ms. The fifth failed check rolls back. A minute without requests is no failed check.
#[derive(Default)]
pub struct Fixed {
    minute: Minute,
    failed_checks: u32,
}

impl Rule for Fixed {
    fn rolls_back(&mut self, tick: &Tick) -> bool {
        if !self.minute.add(tick) {
            return false;
        }
        let minute = std::mem::take(&mut self.minute);
        let canary = Target::Canary.index();
        let one_percent = |part: u64, all: u64| part * 100 > all;
        let slow = minute.latencies[canary].iter().filter(|took| **took > 0.5);
        if one_percent(minute.failures[canary], minute.requests[canary])
            || one_percent(slow.count() as u64, minute.requests[canary])
        {
            self.failed_checks += 1;
        }
        self.failed_checks >= 5
    }
}

/// The two-proportion z-test on all requests so far, each minute, one-sided at 5 %.
#[derive(Default)]
pub struct ZTest {
    sum: Minute,
}

impl Rule for ZTest {
    fn rolls_back(&mut self, tick: &Tick) -> bool {
        let over = self.sum.add(tick);
        self.sum.latencies.iter_mut().for_each(Vec::clear);
        let [n_main, n_canary] = self.sum.requests.map(|count| count as f64);
        let [main, canary] = self.sum.failures.map(|count| count as f64);
        if !over || n_main == 0.0 || n_canary == 0.0 {
            return false;
        }
        let pooled = (main + canary) / (n_main + n_canary);
        let deviation = (pooled * (1.0 - pooled) * (1.0 / n_main + 1.0 / n_canary)).sqrt();
        canary / n_canary - main / n_main > 1.645 * deviation
    }
}

/// The Mann-Whitney test on the latencies of each minute by itself, one-sided at 1 %: the confidence of 98 %
/// that Kayenta's judge asks for, of which one side is "slower".
#[derive(Default)]
pub struct MannWhitney {
    minute: Minute,
}

impl Rule for MannWhitney {
    fn rolls_back(&mut self, tick: &Tick) -> bool {
        if !self.minute.add(tick) {
            return false;
        }
        let minute = std::mem::take(&mut self.minute);
        let sizes = [0, 1].map(|of: usize| minute.latencies[of].len() as f64);
        let [n_main, n_canary] = sizes;
        if n_main < 5.0 || n_canary < 5.0 {
            return false;
        }
        let mut all: Vec<(f64, bool)> = Vec::new();
        for target in Target::ALL {
            let is_canary = target == Target::Canary;
            all.extend(
                minute.latencies[target.index()]
                    .iter()
                    .map(|took| (*took, is_canary)),
            );
        }
        all.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        let canary = all
            .iter()
            .enumerate()
            .filter(|(_, (_, is_canary))| *is_canary);
        let ranks: f64 = canary.map(|(rank, _)| rank as f64 + 1.0).sum();
        let u = ranks - n_canary * (n_canary + 1.0) / 2.0;
        let deviation = (n_main * n_canary * (n_main + n_canary + 1.0) / 12.0).sqrt();
        u - n_main * n_canary / 2.0 > 2.326 * deviation
    }
}
