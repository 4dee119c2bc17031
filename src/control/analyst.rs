//! The judge at work: reads what the workers saw of each tick, asks [`crate::policy::analysis`] what that says
//! and [`crate::policy::rollout`] what follows, and publishes who gets the canary.
//!
//! A tick is a second in which step and weight do not change; its number goes down with the snapshot, and its
//! requests come up by it ([`crate::state::trials`]). Everything that an operator changes goes through here
//! too, so there is one order of decisions, and one log of them.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tracing::{info, warn};

use super::{Control, decisions};
use crate::{
    config::{Config, Rollout as Configured},
    policy::{
        Target, Weight,
        analysis::{Counts, Evidence, Strength},
        rollout::{Command, Move, Phase, Refused, Rollout, Step, Verdict, Why},
    },
    state::{Progress, Published, Seen, SharedProgress, Snapshot, Split, Trials, trials},
};

/// How long a tick is.
const TICK: Duration = Duration::from_secs(1);
/// How often evidence alone is kept; a kill loses this much of it.
const KEPT_EVERY: Duration = Duration::from_secs(5);
/// Time in which this thread was not asked is not a step's, beyond this.
const MOST_PASSED: Duration = Duration::from_secs(2);
/// How many decisions are remembered.
const DECISIONS: usize = 100;
/// And how many of them outlive the process; the latest ones with their figures.
const DECISIONS_KEPT: usize = 20;
const FIGURES_KEPT: usize = 5;

/// Decides who gets the canary.
pub struct Analyst {
    published: Arc<Published>,
    trials: Vec<Arc<Trials>>,
    seen: Arc<Seen>,
    shared: Arc<SharedProgress>,
    progress: Progress,
    ring: Ring,
    strength: Option<Strength>,
    verdicts: [u64; Verdict::ALL.len()],
    /// When it was looked last, when a tick was published, when it was kept.
    looked: Duration,
    ticked: Duration,
    kept: Duration,
    /// Evidence has come in since it was kept.
    is_dirty: bool,
}

/// The ticks that are open.
struct Ring {
    /// What each of them was, from `closed` on; `None` where it says nothing any more.
    open: VecDeque<Option<(usize, Weight)>>,
    /// The first one that was not read yet.
    closed: u64,
    /// How many may be open.
    room: usize,
}

impl Ring {
    /// The next tick, for requests in this step and with this weight, if there is room for one.
    fn next(&mut self, step: usize, weight: Weight) -> Option<u64> {
        if self.open.len() >= self.room {
            return None;
        }
        let tick = self.end();
        self.open.push_back(Some((step, weight)));
        Some(tick)
    }

    /// The first one that there has not been yet.
    fn end(&self) -> u64 {
        self.closed + self.open.len() as u64
    }

    /// What is open belongs to a rollout that is over.
    fn forget(&mut self) {
        self.open.iter_mut().for_each(|tick| *tick = None);
    }
}

/// What a process begins with: what an earlier one has left, or what is configured.
pub fn opening(config: &Config, found: Option<&Progress>, wall: SystemTime) -> Progress {
    let Some(found) = found else {
        return Progress {
            rollout: Rollout::idle(config.traffic.weight),
            targets: targets(config),
            steps: steps(config.rollout.as_ref()),
            configured: config.traffic.weight,
            evidence: Evidence::default(),
            seen: Vec::new(),
            decisions: VecDeque::new(),
            numbered: 0,
        };
    };
    let mut progress = found.clone();
    if has_begun_anew(&mut progress, config, wall) {
        progress.evidence = Evidence::default();
        progress.seen = Vec::new();
    }
    progress
}

/// What follows from a configuration that is another one now. Whether what was counted says nothing any more.
fn has_begun_anew(progress: &mut Progress, config: &Config, wall: SystemTime) -> bool {
    let configured = config.traffic.weight;
    let (targets, steps) = (targets(config), steps(config.rollout.as_ref()));
    let mut moves = Vec::new();
    let mut is_new = false;
    if progress.targets != targets {
        moves.extend(progress.rollout.targets_changed(configured));
        progress.targets = targets;
        is_new = true;
    }
    if progress.steps != steps {
        if let Some(moved) = progress.rollout.steps_changed(&steps) {
            moves.push(moved);
            // What is enough for a step is not for another one of the same number.
            is_new = true;
        }
        progress.steps = steps;
    }
    if progress.configured != configured {
        moves.extend(progress.rollout.weight_configured(configured));
        progress.configured = configured;
    }
    for moved in moves {
        note(progress, moved, None, wall);
    }
    is_new
}

/// As the log shows them.
fn targets(config: &Config) -> [String; Target::ALL.len()] {
    ["main-target", "canary-target"].map(|key| {
        let url = config.effective[key].as_str();
        url.unwrap_or_default().to_owned()
    })
}

/// Who gets the canary before the first tick.
pub fn first_split(progress: &Progress) -> Split {
    Split {
        weight: progress.rollout.position.weight,
        rolled_back: progress.rollout.position.phase == Phase::RolledBack,
        epoch: progress.rollout.epoch,
        tick: None,
        since: trials::FIRST,
    }
}

fn steps(rollout: Option<&Configured>) -> Vec<Step> {
    rollout.map_or_else(Vec::new, |rollout| rollout.settings.steps.clone())
}

impl Analyst {
    /// Goes on from where `control` says, at `now`.
    pub fn new(control: &Control, now: Duration) -> Analyst {
        let progress = control.opening.clone();
        control.seen.restore(&progress.seen);
        let mut analyst = Analyst {
            published: Arc::clone(&control.published),
            trials: control.trials.clone(),
            seen: Arc::clone(&control.seen),
            shared: Arc::clone(&control.progress),
            progress,
            ring: Ring {
                open: VecDeque::new(),
                closed: trials::FIRST,
                room: control
                    .trials
                    .iter()
                    .map(|trials| trials.room())
                    .min()
                    .unwrap_or(0),
            },
            strength: None,
            verdicts: Default::default(),
            looked: now,
            ticked: now,
            kept: now,
            is_dirty: false,
        };
        analyst.judge();
        analyst.publish(now);
        analyst
    }

    /// Where the rollout stands.
    pub fn rollout(&self) -> &Rollout {
        &self.progress.rollout
    }

    /// What was counted.
    pub fn evidence(&self) -> &Evidence {
        &self.progress.evidence
    }

    /// What that says, since a rollout was begun.
    pub fn strength(&self) -> Option<&Strength> {
        self.strength.as_ref()
    }

    /// How often the judge has come to each verdict, once a tick.
    pub fn verdicts(&self) -> &[u64; Verdict::ALL.len()] {
        &self.verdicts
    }

    /// The decisions, newest first.
    pub fn decisions(&self) -> &VecDeque<serde_json::Value> {
        &self.progress.decisions
    }

    /// To be called several times a second.
    pub fn look(&mut self, now: Duration, wall: SystemTime) {
        let passed = now.saturating_sub(self.looked).min(MOST_PASSED);
        self.looked = now;
        let is_tick = now.saturating_sub(self.ticked) >= TICK;
        if self.read() {
            self.judge();
        }
        self.seen.relieve();
        let snapshot = self.published.load();
        if let (Some(rollout), Some(strength)) = (&snapshot.config.rollout, self.strength)
            && self.progress.rollout.position.phase.is_under_way()
        {
            let verdict = strength.verdict();
            if is_tick {
                self.verdicts[verdict.index()] += 1;
            }
            let moved = self
                .progress
                .rollout
                .tick(&rollout.settings, passed, verdict);
            if let Some(moved) = moved {
                self.moved(moved, now, wall);
            } else if is_tick {
                self.publish(now);
            }
        }
        // The time of a step passes without traffic, too.
        let is_news = self.is_dirty || self.progress.rollout.position.phase == Phase::Progressing;
        if is_news && now.saturating_sub(self.kept) >= KEPT_EVERY {
            self.keep(now);
        }
    }

    /// To be called when [`look`](Analyst::look) has panicked: what is under way ends here.
    pub fn failed(&mut self, now: Duration, wall: SystemTime) {
        self.strength = None;
        if let Some(moved) = self.progress.rollout.judge_failed() {
            self.moved(moved, now, wall);
        }
    }

    /// Carries an operator's command out. The version in which it is kept.
    ///
    /// # Errors
    /// It makes no sense now; nothing has changed.
    pub fn command(
        &mut self,
        command: Command,
        now: Duration,
        wall: SystemTime,
    ) -> Result<u64, Refused> {
        let snapshot = self.published.load();
        let configured = snapshot.config.rollout.as_ref();
        let settings = configured.map(|rollout| &rollout.settings);
        let moved = self.progress.rollout.command(settings, command)?;
        if command == Command::Start {
            self.begin_anew();
            self.judge();
        }
        Ok(self.moved(moved, now, wall))
    }

    /// Another configuration is in force from now on, for requests that begin. The version in which what follows
    /// from it is kept.
    pub fn reconfigure(&mut self, config: Config, now: Duration, wall: SystemTime) -> u64 {
        let before = self.published.load();
        let is_new = has_begun_anew(&mut self.progress, &config, wall);
        let counted = |config: &Config| {
            let rollout = config.rollout.as_ref()?;
            Some((rollout.judge.latency, rollout.failure))
        };
        // What was counted by one rule cannot be added to what is counted by another.
        if is_new || counted(&before.config) != counted(&config) {
            self.begin_anew();
        }
        let split = self.split();
        let snapshot = before.reconfigured(config, now).with_split(split);
        self.published.publish(snapshot);
        self.ticked = now;
        self.judge();
        self.keep(now)
    }

    fn begin_anew(&mut self) {
        self.ring.forget();
        self.progress.evidence = Evidence::default();
        self.seen.clear();
    }

    /// Reads the ticks that are closed. Whether they said anything.
    fn read(&mut self) -> bool {
        let watermarks = self.trials.iter().map(|trials| trials.watermark());
        let closed = watermarks.min().unwrap_or(u64::MAX);
        let mut any = false;
        while self.ring.closed < closed
            && let Some(tick) = self.ring.open.pop_front()
        {
            if let Some((step, weight)) = tick {
                let mut counts = Counts::default();
                for trials in &self.trials {
                    trials.add_to(self.ring.closed, &mut counts);
                }
                any |= counts != Counts::default();
                self.progress.evidence.add(step, weight, &counts);
            }
            self.ring.closed += 1;
        }
        self.is_dirty |= any;
        any
    }

    fn judge(&mut self) {
        let snapshot = self.published.load();
        let settings = snapshot.config.rollout.as_ref();
        let step = self.progress.rollout.position.step.unwrap_or(0);
        self.strength =
            settings.map(|rollout| self.progress.evidence.strength(&rollout.judge, step));
    }

    fn moved(&mut self, moved: Move, now: Duration, wall: SystemTime) -> u64 {
        let is_new_step = moved.from.step != moved.to.step;
        let settings = self
            .published
            .load()
            .config
            .rollout
            .as_ref()
            .map(|r| r.judge);
        let figures = match moved.from.phase.is_under_way() {
            false => None,
            true => settings.zip(self.strength).map(|(settings, strength)| {
                decisions::figures(&self.progress.evidence, &settings, &strength)
            }),
        };
        // First: from now on the requests go where they are to go.
        self.publish(now);
        note(&mut self.progress, moved, figures, wall);
        if is_new_step {
            self.seen.next_step();
            self.judge();
        }
        self.keep(now)
    }

    /// Says who gets the canary from now on.
    fn publish(&mut self, now: Duration) {
        let split = self.split();
        self.ticked = now;
        let snapshot: Arc<Snapshot> = self.published.load();
        if snapshot.split != split {
            self.published.publish(snapshot.with_split(split));
        }
    }

    /// Who gets it, in a tick that begins now, where one is wanted.
    fn split(&mut self) -> Split {
        let rollout = &self.progress.rollout;
        let position = rollout.position;
        let tick = match position.phase.is_under_way() {
            true => self.ring.next(position.step.unwrap_or(0), position.weight),
            false => None,
        };
        Split {
            weight: position.weight,
            rolled_back: position.phase == Phase::RolledBack,
            epoch: rollout.epoch,
            tick,
            // Where there is none, all that were are over, also for workers that have seen none of them: it
            // may be that there is no room because nobody has closed any.
            since: tick.unwrap_or(self.ring.end()),
        }
    }

    /// Has everything that is so by now kept, the counts and breakers too. The version in which it is.
    pub fn keep(&mut self, now: Duration) -> u64 {
        self.kept = now;
        self.is_dirty = false;
        let mut progress = self.progress.clone();
        progress.decisions.truncate(DECISIONS_KEPT);
        for decision in progress.decisions.iter_mut().skip(FIGURES_KEPT) {
            if let Some(decision) = decision.as_object_mut() {
                decision.insert("figures".into(), serde_json::Value::Null);
            }
        }
        progress.seen = match progress.rollout.position.phase.is_under_way() {
            true => self.seen.save(),
            false => Vec::new(),
        };
        self.shared.keep(progress)
    }
}

/// Writes a decision down, and says so.
fn note(
    progress: &mut Progress,
    moved: Move,
    figures: Option<serde_json::Value>,
    wall: SystemTime,
) {
    progress.numbered += 1;
    let text = decisions::text(&moved);
    let number = progress.numbered;
    let decision = decisions::decision(number, &moved, &text, figures, wall);
    let weight = moved.to.weight.percent();
    let phase = moved.to.phase.label();
    match moved.why {
        Why::Unhealthy
        | Why::UnhealthyInDryRun
        | Why::RolledBackWithoutEvidence
        | Why::JudgeFailed
        | Why::StepsRemoved => {
            warn!(number, phase, weight, "rollout: {text}");
        }
        _ => info!(number, phase, weight, "rollout: {text}"),
    }
    progress.decisions.push_front(decision);
    progress.decisions.truncate(DECISIONS);
}

#[cfg(test)]
mod tests;
