//! A rollout: the canary's weight, step by step, and back to nothing when the judge or an operator says so.
//!
//! A pure machine. It is told of commands and, once a second, of time and the judge's verdict; it answers
//! with what it did and why ([`Move`]), which is what the decision log is made of. How long a step has
//! lasted is a sum of ticks, not a moment, so a restart goes on where it was, and time in which the process
//! was down is nobody's evidence.
//!
//! It keeps:
//! * an abort works in every phase, and the judge's rollback in all in which a rollout is under way;
//! * from `succeeded` and `rolled-back` only a command moves on;
//! * while it progresses, the weight is that of its step; rolled back, it is zero;
//! * nothing moves to a later step before its time, or over the judge's objection.

use std::time::Duration;

use super::weight::Weight;

/// One step: this weight, for so long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Step {
    /// The canary's share of eligible requests.
    pub weight: Weight,
    /// How long it lasts at least; one second or more.
    pub lasts: Duration,
}

/// What happens when a step's time is over and there is too little evidence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OnInconclusive {
    /// The step goes on, for `max_extension`; then it pauses.
    Extend,
    /// It pauses.
    Pause,
    /// The next step begins.
    Advance,
    /// It rolls back.
    Rollback,
}

/// How a rollout goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// At least one.
    pub steps: Vec<Step>,
    /// What happens without enough evidence.
    pub on_inconclusive: OnInconclusive,
    /// How much longer than `lasts` a step may take under [`OnInconclusive::Extend`].
    pub max_extension: Duration,
    /// The judge is asked and told about, but moves nothing and holds nothing up.
    pub dry_run: bool,
}

/// The closed set behind the `phase` label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// No rollout: the weight is what was configured or set by hand.
    Idle,
    /// Step by step.
    Progressing,
    /// Under way, but the steps stand still.
    Paused,
    /// The last step is over, or an operator promoted the canary.
    Succeeded,
    /// The canary gets nothing.
    RolledBack,
}

impl Phase {
    /// All of them, in the order of [`Phase::index`].
    pub const ALL: [Phase; 5] = [
        Phase::Idle,
        Phase::Progressing,
        Phase::Paused,
        Phase::Succeeded,
        Phase::RolledBack,
    ];

    /// A dense index.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The value of the label.
    pub const fn label(self) -> &'static str {
        match self {
            Phase::Idle => "idle",
            Phase::Progressing => "progressing",
            Phase::Paused => "paused",
            Phase::Succeeded => "succeeded",
            Phase::RolledBack => "rolled-back",
        }
    }

    /// Whether a rollout is under way, so that the judge looks at it.
    pub const fn is_under_way(self) -> bool {
        matches!(self, Phase::Progressing | Phase::Paused)
    }
}

/// What the judge says of a tick: the closed set behind the `verdict` label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Nothing speaks against the canary, and there is enough evidence for this step.
    Healthy,
    /// Nothing speaks against the canary, nor enough for it.
    Inconclusive,
    /// The canary is worse than allowed.
    Unhealthy,
}

impl Verdict {
    /// All of them, in the order of [`Verdict::index`].
    pub const ALL: [Verdict; 3] = [Verdict::Healthy, Verdict::Inconclusive, Verdict::Unhealthy];

    /// A dense index.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The value of the label.
    pub const fn label(self) -> &'static str {
        match self {
            Verdict::Healthy => "healthy",
            Verdict::Inconclusive => "inconclusive",
            Verdict::Unhealthy => "unhealthy",
        }
    }
}

/// What an operator wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Command {
    /// Begin with the first step, with fresh evidence.
    Start,
    /// Stay at this weight; the judge goes on.
    Pause,
    /// Go on with the step that was paused.
    Resume,
    /// Give the canary everything.
    Promote,
    /// Give the canary nothing.
    Abort,
    /// Set the weight by hand.
    SetWeight(Weight),
}

/// Why a command cannot be carried out now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refused {
    /// There are no steps.
    NoSteps,
    /// A rollout is under way already.
    UnderWay,
    /// No rollout is progressing.
    NotProgressing,
    /// No rollout is paused.
    NotPaused,
    /// A rollout is progressing, and its steps say what the weight is.
    WeightIsTheSteps,
}

/// Why something moved: the closed set of reasons in the decision log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Why {
    /// An operator's command.
    Command(Command),
    /// The step's time is over and there is enough evidence.
    StepPassed,
    /// The step's time is over; there is too little evidence, and `on-inconclusive` says go on.
    AdvancedWithoutEvidence,
    /// The step's time is over; in a dry run the judge holds nothing up.
    AdvancedInDryRun,
    /// The step's time is over without enough evidence: it lasts longer.
    Extended,
    /// The step's time, and with it every extension, is over without enough evidence.
    PausedWithoutEvidence,
    /// The same, and `on-inconclusive` says roll back.
    RolledBackWithoutEvidence,
    /// The judge found the canary worse than allowed.
    Unhealthy,
    /// The same, in a dry run: nothing moved.
    UnhealthyInDryRun,
    /// The judge itself failed, which would be a bug of ours: nobody watches the canary any more.
    JudgeFailed,
    /// A process started with other steps than the rollout had begun with.
    StepsChanged,
    /// A process started without any, and so without a judge.
    StepsRemoved,
    /// A process started with other targets.
    TargetsChanged,
    /// A process started with another `traffic.weight` in its configuration.
    WeightConfigured,
}

/// Something that happened, with what was before and after.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Move {
    /// Why.
    pub why: Why,
    /// Phase, step and weight before.
    pub from: Position,
    /// And after.
    pub to: Position,
}

/// Where a rollout stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Position {
    /// The phase.
    pub phase: Phase,
    /// The step, from 0; the last one that was reached when it is over. `None` where no rollout was ever begun.
    pub step: Option<usize>,
    /// The canary's share of eligible requests.
    pub weight: Weight,
}

/// The machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rollout {
    /// Where it stands.
    pub position: Position,
    /// How long the step has been progressing.
    pub elapsed: Duration,
    /// Whether it was said that the step takes longer.
    pub extended: bool,
    /// In a dry run: whether it was said that the canary is worse than allowed.
    pub objected: bool,
    /// Counts rollbacks: what was promised to clients before one holds no longer.
    pub epoch: u64,
}

impl Rollout {
    /// None under way, at this weight.
    pub fn idle(weight: Weight) -> Rollout {
        Rollout {
            position: Position {
                phase: Phase::Idle,
                step: None,
                weight,
            },
            elapsed: Duration::ZERO,
            extended: false,
            objected: false,
            epoch: 0,
        }
    }

    /// Carries a command out.
    ///
    /// # Errors
    /// It makes no sense now; nothing has changed.
    pub fn command(
        &mut self,
        settings: Option<&Settings>,
        command: Command,
    ) -> Result<Move, Refused> {
        let phase = self.position.phase;
        let before = *self;
        match command {
            Command::Start => {
                let first = settings.and_then(|settings| settings.steps.first());
                let first = first.ok_or(Refused::NoSteps)?;
                if phase.is_under_way() {
                    return Err(Refused::UnderWay);
                }
                self.objected = false;
                self.begin(0, *first);
            }
            Command::Pause if phase != Phase::Progressing => return Err(Refused::NotProgressing),
            Command::Pause => self.position.phase = Phase::Paused,
            Command::Resume if phase != Phase::Paused => return Err(Refused::NotPaused),
            Command::Resume => {
                let steps = settings
                    .map(|settings| &settings.steps[..])
                    .unwrap_or_default();
                let last = steps.len().checked_sub(1).ok_or(Refused::NoSteps)?;
                let step = self.position.step.unwrap_or(0).min(last);
                if Some(step) != self.position.step || self.position.weight != steps[step].weight {
                    self.begin(step, steps[step]);
                }
                // Who was paused for want of evidence gets his time again.
                if self.extended {
                    self.elapsed = Duration::ZERO;
                    self.extended = false;
                }
                self.position.phase = Phase::Progressing;
            }
            Command::Promote => {
                self.position.phase = Phase::Succeeded;
                self.position.weight = Weight::ALL;
            }
            Command::Abort => self.roll_back(),
            Command::SetWeight(_) if phase == Phase::Progressing => {
                return Err(Refused::WeightIsTheSteps);
            }
            Command::SetWeight(weight) => {
                self.position.weight = weight;
                if phase != Phase::Paused {
                    self.position.phase = Phase::Idle;
                }
            }
        }
        Ok(self.moved(&before, Why::Command(command)))
    }

    /// Time has passed, and the judge has said this. What happened, if anything did.
    pub fn tick(
        &mut self,
        settings: &Settings,
        passed: Duration,
        verdict: Verdict,
    ) -> Option<Move> {
        let before = *self;
        if !self.position.phase.is_under_way() {
            return None;
        }
        if self.position.phase == Phase::Progressing {
            self.elapsed += passed;
        }
        match (verdict, settings.dry_run) {
            (Verdict::Unhealthy, false) => {
                self.roll_back();
                return Some(self.moved(&before, Why::Unhealthy));
            }
            (Verdict::Unhealthy, true) if !self.objected => {
                self.objected = true;
                return Some(self.moved(&before, Why::UnhealthyInDryRun));
            }
            _ => {}
        }
        if self.position.phase == Phase::Paused {
            return None;
        }
        let step = *settings.steps.get(self.position.step?)?;
        if self.elapsed < step.lasts {
            return None;
        }
        let why = match (verdict, settings.dry_run, settings.on_inconclusive) {
            (_, true, _) => self.advance(settings, Why::AdvancedInDryRun),
            (Verdict::Healthy, false, _) => self.advance(settings, Why::StepPassed),
            (_, false, OnInconclusive::Advance) => {
                self.advance(settings, Why::AdvancedWithoutEvidence)
            }
            (_, false, OnInconclusive::Rollback) => {
                self.roll_back();
                Why::RolledBackWithoutEvidence
            }
            (_, false, OnInconclusive::Extend)
                if self.elapsed < step.lasts.saturating_add(settings.max_extension) =>
            {
                if std::mem::replace(&mut self.extended, true) {
                    return None;
                }
                Why::Extended
            }
            (_, false, OnInconclusive::Extend | OnInconclusive::Pause) => {
                self.extended = true;
                self.position.phase = Phase::Paused;
                Why::PausedWithoutEvidence
            }
        };
        Some(self.moved(&before, why))
    }

    /// The judge has failed: what is under way and not watched is rolled back.
    pub fn judge_failed(&mut self) -> Option<Move> {
        let before = *self;
        if !self.position.phase.is_under_way() {
            return None;
        }
        self.roll_back();
        Some(self.moved(&before, Why::JudgeFailed))
    }

    /// A process begins with other steps than those that the rollout was begun with. Without any nobody judges
    /// the canary, and perhaps nobody can be told to stop.
    pub fn steps_changed(&mut self, steps: &[Step]) -> Option<Move> {
        let before = *self;
        if !self.position.phase.is_under_way() {
            return None;
        }
        if steps.is_empty() {
            self.roll_back();
            return Some(self.moved(&before, Why::StepsRemoved));
        }
        self.position.phase = Phase::Paused;
        Some(self.moved(&before, Why::StepsChanged))
    }

    /// There are other targets than before: what was known of those says nothing of these,
    /// and a weight that was set for one canary is not for another. What was rolled back stays so.
    pub fn targets_changed(&mut self, configured: Weight) -> Option<Move> {
        let before = *self;
        let Position { phase, weight, .. } = self.position;
        if phase == Phase::RolledBack || phase == Phase::Idle && weight == configured {
            return None;
        }
        *self = Rollout {
            epoch: self.epoch + 1,
            ..Rollout::idle(configured)
        };
        Some(self.moved(&before, Why::TargetsChanged))
    }

    /// There is another weight in the configuration than before. Where a rollout
    /// says what the weight is, that goes on.
    pub fn weight_configured(&mut self, weight: Weight) -> Option<Move> {
        let before = *self;
        if self.position.phase != Phase::Idle || weight == self.position.weight {
            return None;
        }
        self.position.weight = weight;
        Some(self.moved(&before, Why::WeightConfigured))
    }

    fn advance(&mut self, settings: &Settings, why: Why) -> Why {
        let next = self.position.step.map_or(0, |step| step + 1);
        match settings.steps.get(next) {
            Some(step) => self.begin(next, *step),
            // The weight stays: nothing moves that nobody has written down.
            None => self.position.phase = Phase::Succeeded,
        }
        why
    }

    fn begin(&mut self, number: usize, step: Step) {
        self.position = Position {
            phase: Phase::Progressing,
            step: Some(number),
            weight: step.weight,
        };
        self.elapsed = Duration::ZERO;
        self.extended = false;
    }

    fn roll_back(&mut self) {
        self.position.phase = Phase::RolledBack;
        self.position.weight = Weight::NONE;
        self.epoch += 1;
    }

    fn moved(&self, before: &Rollout, why: Why) -> Move {
        Move {
            why,
            from: before.position,
            to: self.position,
        }
    }
}

#[cfg(test)]
mod tests;
