//! What is simulated: a service whose requests arrive as a Poisson process, are assigned by the weight and
//! fail or take their time, second by second.
//!
//! Requests that fail and those that do not are two independent Poisson processes, in each of the targets
//! (thinning), so nothing is lost by drawing their numbers for each second instead of every request.

use std::time::Duration;

use canary_router::policy::{
    Target, Weight,
    analysis::{Counts, LEVELS, THRESHOLDS, Thresholds},
};

use super::random::Random;

/// Main's answers take lognormally long: the median, and the standard deviation of the logarithm. Their 99th
/// percentile is 320 ms.
const MEDIAN_SECONDS: f64 = 0.1;
const SPREAD: f64 = 0.5;

/// A world, in which something is true of the canary.
#[derive(Clone)]
pub struct World {
    /// Requests per second that the weight assigns.
    pub rate: f64,
    /// Weight in percent, and for how many seconds.
    pub steps: Vec<(f64, u32)>,
    /// How many of main's requests fail.
    pub main: Errors,
    /// How many of the canary's do.
    pub canary: Canary,
    /// How long answers take, where that is looked at.
    pub latency: Option<Latency>,
    /// With sticky assignment: who sends the requests.
    pub crowd: Option<Crowd>,
}

/// The share of main's requests that fail.
#[derive(Clone, Copy)]
pub enum Errors {
    Steady(f64),
    /// For three minutes from the 20th on, another share.
    Outage {
        usual: f64,
        outage: f64,
    },
    /// Rising in a straight line to the end.
    Rising {
        from: f64,
        to: f64,
    },
}

/// The share of the canary's requests that fail.
#[derive(Clone, Copy)]
pub enum Canary {
    /// So many times as many as main's.
    Ratio(f64),
    /// Whatever main does.
    Share(f64),
    /// As many as main's, and from this second on this share.
    Late { from: u32, share: f64 },
}

/// What the canary adds to what main takes.
#[derive(Clone, Copy)]
pub struct Latency {
    /// So many times as long.
    pub factor: f64,
    /// This share of answers takes one second more.
    pub stuck: f64,
}

/// Users, equally busy. A broken one fails whichever target has it.
#[derive(Clone, Copy)]
pub struct Crowd {
    pub users: usize,
    pub broken: usize,
}

/// What happened to the requests that started in one second.
#[derive(Default)]
pub struct Tick {
    /// The seconds before it.
    pub second: u32,
    pub step: usize,
    pub weight: Weight,
    pub counts: Counts,
    /// How long answers took, in seconds, by target.
    pub latencies: [Vec<f64>; 2],
}

impl World {
    /// For how many seconds it lasts.
    pub fn seconds(&self) -> u32 {
        self.steps.iter().map(|(_, seconds)| seconds).sum()
    }

    /// From when on something is wrong with the canary.
    pub fn onset(&self) -> u32 {
        match self.canary {
            Canary::Late { from, .. } => from,
            _ => 0,
        }
    }

    fn step(&self, second: u32) -> (usize, Weight) {
        let mut end = 0;
        for (step, (percent, seconds)) in self.steps.iter().enumerate() {
            end += seconds;
            if second < end {
                let weight = Weight::new((percent * 100.0).round() as u32);
                return (step, weight.expect("a weight is at most 100 %"));
            }
        }
        panic!("second {second} is after the last step");
    }

    fn shares(&self, second: u32) -> [f64; 2] {
        let main = match self.main {
            Errors::Steady(share) => share,
            Errors::Outage { outage, .. } if (1200..1380).contains(&second) => outage,
            Errors::Outage { usual, .. } => usual,
            Errors::Rising { from, to } => {
                from + (to - from) * f64::from(second) / f64::from(self.seconds())
            }
        };
        let canary = match self.canary {
            Canary::Ratio(ratio) => ratio * main,
            Canary::Share(share) => share,
            Canary::Late { from, share } if second >= from => share,
            Canary::Late { .. } => main,
        };
        [main, canary]
    }
}

/// One run of a world.
pub struct Run<'a> {
    world: &'a World,
    thresholds: &'a Thresholds,
    random: Random,
    users: Vec<User>,
    tick: Tick,
}

struct User {
    /// It is in the canary when the weight takes this.
    point: u64,
    /// A key that has failed in the canary counts once in a rollout, and never again: it is in the canary for
    /// sure.
    counted_in_canary: bool,
    /// One that has failed in main counts once in each step. It may count again, because having been in main
    /// it is *less* likely than the weight says to be in the canary later: what the judge takes for the
    /// probability is too high, and its evidence too low.
    counted_in_main: Option<usize>,
}

impl<'a> Run<'a> {
    pub fn new(world: &'a World, thresholds: &'a Thresholds, mut random: Random) -> Run<'a> {
        let users = world.crowd.map_or(0, |crowd| crowd.users);
        let user = |_| User {
            point: random.point(),
            counted_in_canary: false,
            counted_in_main: None,
        };
        Run {
            users: (0..users).map(user).collect(),
            world,
            thresholds,
            random,
            tick: Tick::default(),
        }
    }

    /// What happens in this second; each one in its turn.
    pub fn next(&mut self, second: u32) -> &Tick {
        let (step, weight) = self.world.step(second);
        let tick = &mut self.tick;
        (tick.second, tick.step, tick.weight) = (second, step, weight);
        let shares = self.world.shares(second);
        match self.world.crowd {
            None => self.strangers(shares),
            Some(crowd) => self.users(crowd, shares),
        }
        if let Some(latency) = self.world.latency {
            self.answers(latency);
        }
        &self.tick
    }

    /// Each request is assigned by itself.
    fn strangers(&mut self, shares: [f64; 2]) {
        let rho = self.tick.weight.ratio();
        for (target, assigned) in [(Target::Main, 1.0 - rho), (Target::Canary, rho)] {
            let (of, rate) = (target.index(), self.world.rate * assigned);
            let failed = self.random.poisson(rate * shares[of]);
            let answered = self.random.poisson(rate * (1.0 - shares[of]));
            self.tick.counts.requests[of] = failed + answered;
            self.tick.counts.failures[of] = failed;
            self.tick.counts.failed[of] = failed;
        }
    }

    /// Each user is assigned by its key: who is in the canary stays there while the weight rises.
    fn users(&mut self, crowd: Crowd, shares: [f64; 2]) {
        let each = self.world.rate / crowd.users as f64;
        let weight = self.tick.weight;
        (self.tick.counts.failures, self.tick.counts.failed) = ([0; 2], [0; 2]);
        // The first ones are the broken ones.
        for broken in 0..crowd.broken {
            for _ in 0..self.random.poisson(each) {
                self.fails(broken);
            }
        }
        let mut healthy = [0.0; 2];
        for user in &self.users[crowd.broken..] {
            healthy[usize::from(weight.takes(user.point))] += each;
        }
        // The others fail now and then, whichever target has them.
        for _ in 0..self.random.poisson((healthy[0] + healthy[1]) * shares[0]) {
            let user = crowd.broken + self.random.below(crowd.users - crowd.broken);
            self.fails(user);
        }
        for target in Target::ALL.map(Target::index) {
            let answered = self.random.poisson(healthy[target] * (1.0 - shares[0]));
            self.tick.counts.requests[target] = self.tick.counts.failures[target] + answered;
        }
    }

    fn fails(&mut self, user: usize) {
        let (step, user) = (self.tick.step, &mut self.users[user]);
        let target = match self.tick.weight.takes(user.point) {
            true => Target::Canary,
            false => Target::Main,
        };
        self.tick.counts.failures[target.index()] += 1;
        let counts = match target {
            Target::Canary => !std::mem::replace(&mut user.counted_in_canary, true),
            Target::Main => user.counted_in_main.replace(step) != Some(step),
        };
        self.tick.counts.failed[target.index()] += u64::from(counts);
    }

    fn answers(&mut self, latency: Latency) {
        let mut levels = [[0u64; LEVELS]; 2];
        for target in Target::ALL {
            let of = target.index();
            let answered = self.tick.counts.requests[of] - self.tick.counts.failures[of];
            self.tick.latencies[of].clear();
            for _ in 0..answered {
                let mut took = MEDIAN_SECONDS * (SPREAD * self.random.normal()).exp();
                if target == Target::Canary {
                    took *= latency.factor;
                    if latency.stuck > 0.0 && self.random.uniform() < latency.stuck {
                        took += 1.0;
                    }
                }
                self.tick.latencies[of].push(took);
                let level = self.thresholds.level(target, Duration::from_secs_f64(took));
                levels[of][level] += 1;
            }
        }
        let mut slower = [0; 2];
        for threshold in (0..THRESHOLDS).rev() {
            for of in Target::ALL.map(Target::index) {
                slower[of] += levels[of][threshold + 1];
            }
            self.tick.counts.slow[threshold] = slower;
        }
    }
}
