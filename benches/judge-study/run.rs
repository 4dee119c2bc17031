//! Runs cases: every rule sees the same seconds, until it rolls back or the world ends.

use std::thread;

use super::{
    cases::Case,
    random::Random,
    rules::{Fixed, Judge, MannWhitney, Name, Rule, ZTest, thresholds},
    world::Run,
};

/// What one rule did in one run: rolled back after so many seconds since something was wrong, and so many
/// failed requests of the canary.
pub type Rollback = Option<(u32, u64)>;

/// What a rule did in all runs.
pub struct Did {
    pub rule: Name,
    pub runs: usize,
    /// Those that rolled back, the fastest first.
    rollbacks: Vec<(u32, u64)>,
}

impl Did {
    pub fn rollbacks(&self) -> usize {
        self.rollbacks.len()
    }

    pub fn share(&self) -> f64 {
        self.rollbacks() as f64 / self.runs as f64
    }

    /// The median of seconds until it rolled back; `None` where in half of the runs it did not.
    pub fn median_seconds(&self) -> Option<u32> {
        self.median(|(seconds, _)| seconds)
    }

    /// The median of the canary's failures until then.
    pub fn median_errors(&self) -> Option<u64> {
        self.median(|(_, errors)| errors)
    }

    fn median<T: Ord>(&self, of: impl Fn((u32, u64)) -> T) -> Option<T> {
        let mut sorted: Vec<T> = self.rollbacks.iter().copied().map(of).collect();
        sorted.sort_unstable();
        let middle = (self.runs - 1) / 2;
        (middle < sorted.len()).then(|| sorted.swap_remove(middle))
    }
}

/// All rules of a case, in so many runs, on all cores. What comes out hangs on the case's seed alone.
pub fn run(case: &Case, runs: usize) -> Vec<Did> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let results: Vec<Vec<Rollback>> = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|first| {
                scope.spawn(move || {
                    let mine = (first..runs).step_by(threads);
                    mine.map(|run| once(case, run as u64)).collect::<Vec<_>>()
                })
            })
            .collect();
        let all = workers.into_iter().map(|worker| worker.join());
        all.flat_map(|runs| runs.expect("a run does not panic"))
            .collect()
    });
    let did = |(at, rule): (usize, &Name)| Did {
        rule: *rule,
        runs,
        rollbacks: results
            .iter()
            .filter_map(|rollbacks| rollbacks[at])
            .collect(),
    };
    case.rules.iter().enumerate().map(did).collect()
}

/// What each rule did in one run.
fn once(case: &Case, run: u64) -> Vec<Rollback> {
    let world = &case.world;
    let thresholds = thresholds();
    let mut rules: Vec<Box<dyn Rule>> = case.rules.iter().map(|name| rule(*name, case)).collect();
    let mut rollbacks: Vec<Rollback> = vec![None; rules.len()];
    let mut course = Run::new(world, &thresholds, Random::new(case.seed, run));
    let mut errors = 0;
    for second in 0..world.seconds() {
        let tick = course.next(second);
        if second >= world.onset() {
            errors += tick.counts.failures[1];
        }
        for (rule, rollback) in rules.iter_mut().zip(&mut rollbacks) {
            if rollback.is_none() && rule.rolls_back(tick) {
                *rollback = Some(((second + 1).saturating_sub(world.onset()), errors));
            }
        }
        if rollbacks.iter().all(Option::is_some) {
            break;
        }
    }
    rollbacks
}

fn rule(name: Name, case: &Case) -> Box<dyn Rule> {
    match name {
        Name::Judge => Box::new(Judge::new(case.world.latency.is_some(), case.told)),
        Name::Fixed => Box::new(Fixed::default()),
        Name::ZTest => Box::new(ZTest::default()),
        Name::MannWhitney => Box::new(MannWhitney::default()),
    }
}
