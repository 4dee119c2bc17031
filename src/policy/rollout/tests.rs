use std::{
    collections::{HashSet, VecDeque},
    panic::catch_unwind,
};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn percent(percent: u32) -> Weight {
    Weight::new(percent * 100).unwrap()
}

fn step(weight: u32, seconds: u64) -> Step {
    Step {
        weight: percent(weight),
        lasts: Duration::from_secs(seconds),
    }
}

/// 1 % and 10 %, for two seconds each.
fn settings(on_inconclusive: OnInconclusive, extension: u64, dry_run: bool) -> Settings {
    Settings {
        steps: vec![step(1, 2), step(10, 2)],
        on_inconclusive,
        max_extension: Duration::from_secs(extension),
        dry_run,
    }
}

/// What can happen to a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Event {
    Command(Command),
    Tick(Verdict),
    /// The process starts again with the configuration of this number.
    Restart(usize),
    /// It starts again, with this weight in its configuration.
    Configured(Weight),
}

fn events() -> Vec<Event> {
    use Command::{Abort, Pause, Promote, Resume, SetWeight, Start};
    // One weight is that of a step, one that of none.
    let commands = [Start, Pause, Resume, Promote, Abort]
        .into_iter()
        .chain([1, 7].map(|weight| SetWeight(percent(weight))));
    commands
        .map(Event::Command)
        .chain(Verdict::ALL.map(Event::Tick))
        .chain((0..3).map(Event::Restart))
        .chain([Event::Configured(percent(3))])
        .collect()
}

/// A rollout, and what somebody knows who has only seen what was done and what it answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Watched {
    rollout: Rollout,
    /// Which of the configurations the process has.
    configuration: usize,
    /// How many seconds the step has been progressing.
    spent: u64,
    /// The decision log has it that the step takes longer than its time.
    overdue: bool,
    /// The decision log has it, in a dry run, that the canary is worse than allowed.
    told: bool,
}

impl Watched {
    fn idle() -> Watched {
        Watched {
            rollout: Rollout::idle(percent(5)),
            configuration: 0,
            spent: 0,
            overdue: false,
            told: false,
        }
    }

    /// Lets an event happen; all that the module's documentation promises is checked.
    fn after(self, event: Event, configurations: &[Option<Settings>; 3]) -> Watched {
        let mut next = self;
        let settings = configurations[self.configuration].as_ref();
        let moved = match event {
            Event::Command(command) => {
                let answer = next.rollout.command(settings, command);
                assert_eq!(
                    answer.err(),
                    refusal(self.rollout.position.phase, settings, command)
                );
                if let Ok(Move { why, .. }) = answer {
                    assert_eq!(why, Why::Command(command));
                    next.obeyed(&self, settings, command);
                }
                answer.ok()
            }
            Event::Tick(verdict) => {
                let moved =
                    settings.and_then(|settings| next.rollout.tick(settings, SECOND, verdict));
                let why = moved.map(|moved| moved.why);
                assert_eq!(
                    why,
                    settings.and_then(|settings| self.must(settings, verdict))
                );
                if let Some(settings) = settings {
                    next.ticked(&self, settings, why);
                }
                moved
            }
            Event::Restart(number) => {
                next.configuration = number;
                let under_way = self.rollout.position.phase.is_under_way();
                let moved = match number == self.configuration {
                    true => None,
                    false => {
                        let settings = configurations[number].as_ref();
                        let steps = settings.map(|settings| &settings.steps[..]);
                        next.rollout.steps_changed(steps.unwrap_or_default())
                    }
                };
                let changed = under_way && number != self.configuration;
                let why = match configurations[number] {
                    Some(_) => Why::StepsChanged,
                    None => Why::StepsRemoved,
                };
                assert_eq!(moved.map(|moved| moved.why), changed.then_some(why));
                moved
            }
            Event::Configured(weight) => {
                let moved = next.rollout.weight_configured(weight);
                let Position { phase, weight, .. } = self.rollout.position;
                let taken = phase == Phase::Idle && weight != percent(3);
                assert_eq!(
                    moved.map(|moved| moved.why),
                    taken.then_some(Why::WeightConfigured)
                );
                moved
            }
        };
        match moved {
            Some(moved) => assert_eq!(
                (moved.from, moved.to),
                (self.rollout.position, next.rollout.position)
            ),
            None => assert_eq!(self.rollout.position, next.rollout.position),
        }
        next.holds(&self, event, configurations);
        next
    }

    /// What is true after whatever event.
    fn holds(&self, before: &Watched, event: Event, configurations: &[Option<Settings>; 3]) {
        let settings = configurations[self.configuration].as_ref();
        let Rollout {
            position, epoch, ..
        } = self.rollout;
        match position.phase {
            Phase::Progressing => {
                let settings = settings.expect("only what has steps progresses");
                let step = settings.steps[position.step.expect("it has begun")];
                assert_eq!(position.weight, step.weight);
                let longest = step.lasts + settings.max_extension;
                assert!(
                    Duration::from_secs(self.spent) < longest,
                    "a step goes on for ever"
                );
            }
            Phase::RolledBack => assert_eq!(position.weight, Weight::NONE),
            Phase::Idle | Phase::Paused | Phase::Succeeded => {}
        }
        let was = before.rollout.position.phase;
        if matches!(was, Phase::Succeeded | Phase::RolledBack)
            && !matches!(event, Event::Command(_))
        {
            assert_eq!(self.rollout, before.rollout, "only a command moves it");
        }
        let rolled_back =
            position.phase == Phase::RolledBack && (was != Phase::RolledBack || is_abort(event));
        assert_eq!(
            epoch,
            before.rollout.epoch + u64::from(rolled_back),
            "it counts rollbacks"
        );
    }

    /// What a tick has to do.
    fn must(&self, settings: &Settings, verdict: Verdict) -> Option<Why> {
        let Position { phase, step, .. } = self.rollout.position;
        if !phase.is_under_way() {
            return None;
        }
        if verdict == Verdict::Unhealthy && !settings.dry_run {
            return Some(Why::Unhealthy);
        }
        if verdict == Verdict::Unhealthy && !self.told {
            return Some(Why::UnhealthyInDryRun);
        }
        let spent = Duration::from_secs(self.spent + 1);
        let lasts = settings.steps.get(step?)?.lasts;
        if phase == Phase::Paused || spent < lasts {
            return None;
        }
        if settings.dry_run {
            return Some(Why::AdvancedInDryRun);
        }
        if verdict == Verdict::Healthy {
            return Some(Why::StepPassed);
        }
        match settings.on_inconclusive {
            OnInconclusive::Advance => Some(Why::AdvancedWithoutEvidence),
            OnInconclusive::Rollback => Some(Why::RolledBackWithoutEvidence),
            OnInconclusive::Extend if spent < lasts + settings.max_extension => {
                (!self.overdue).then_some(Why::Extended)
            }
            OnInconclusive::Extend | OnInconclusive::Pause => Some(Why::PausedWithoutEvidence),
        }
    }

    /// Takes note of a tick, and checks what it did beside saying why.
    fn ticked(&mut self, before: &Watched, settings: &Settings, why: Option<Why>) {
        let (was, is) = (before.rollout.position, self.rollout.position);
        if was.phase == Phase::Progressing {
            self.spent += 1;
        }
        let expected = match why {
            None | Some(Why::Extended | Why::UnhealthyInDryRun) => was,
            Some(Why::PausedWithoutEvidence) => Position {
                phase: Phase::Paused,
                ..was
            },
            Some(Why::Unhealthy | Why::RolledBackWithoutEvidence) => Position {
                phase: Phase::RolledBack,
                weight: Weight::NONE,
                ..was
            },
            Some(Why::StepPassed | Why::AdvancedInDryRun | Why::AdvancedWithoutEvidence) => {
                match settings.steps.get(was.step.unwrap() + 1) {
                    Some(later) => {
                        (self.spent, self.overdue) = (0, false);
                        Position {
                            step: was.step.map(|step| step + 1),
                            weight: later.weight,
                            ..was
                        }
                    }
                    None => Position {
                        phase: Phase::Succeeded,
                        ..was
                    },
                }
            }
            Some(why) => panic!("a tick does not do this: {why:?}"),
        };
        assert_eq!(is, expected);
        let overdue = [Some(Why::Extended), Some(Why::PausedWithoutEvidence)];
        self.overdue |= overdue.contains(&why);
        self.told |= why == Some(Why::UnhealthyInDryRun);
    }

    /// Takes note of a command that was carried out, and checks what it did.
    fn obeyed(&mut self, before: &Watched, settings: Option<&Settings>, command: Command) {
        let was = before.rollout.position;
        let expected = match command {
            Command::Start => {
                (self.spent, self.overdue, self.told) = (0, false, false);
                Position {
                    phase: Phase::Progressing,
                    step: Some(0),
                    weight: settings.unwrap().steps[0].weight,
                }
            }
            Command::Pause => Position {
                phase: Phase::Paused,
                ..was
            },
            Command::Resume => {
                let steps = &settings.unwrap().steps;
                let step = was.step.unwrap().min(steps.len() - 1);
                let other = (Some(step), steps[step].weight) != (was.step, was.weight);
                if other || self.overdue {
                    (self.spent, self.overdue) = (0, false);
                }
                Position {
                    phase: Phase::Progressing,
                    step: Some(step),
                    weight: steps[step].weight,
                }
            }
            Command::Promote => Position {
                phase: Phase::Succeeded,
                weight: Weight::ALL,
                ..was
            },
            Command::Abort => Position {
                phase: Phase::RolledBack,
                weight: Weight::NONE,
                ..was
            },
            Command::SetWeight(weight) => Position {
                phase: match was.phase {
                    Phase::Paused => Phase::Paused,
                    _ => Phase::Idle,
                },
                weight,
                ..was
            },
        };
        assert_eq!(self.rollout.position, expected);
        let abort = u64::from(command == Command::Abort);
        assert_eq!(self.rollout.epoch, before.rollout.epoch + abort);
    }
}

fn is_abort(event: Event) -> bool {
    event == Event::Command(Command::Abort)
}

/// Why a command is refused, if it is. Abort and promote never are.
fn refusal(phase: Phase, settings: Option<&Settings>, command: Command) -> Option<Refused> {
    match (command, phase) {
        (Command::Start, _) if settings.is_none() => Some(Refused::NoSteps),
        (Command::Start, Phase::Progressing | Phase::Paused) => Some(Refused::UnderWay),
        (Command::Pause, Phase::Progressing) => None,
        (Command::Pause, _) => Some(Refused::NotProgressing),
        (Command::Resume, Phase::Paused) if settings.is_none() => Some(Refused::NoSteps),
        (Command::Resume, Phase::Paused) => None,
        (Command::Resume, _) => Some(Refused::NotPaused),
        (Command::SetWeight(_), Phase::Progressing) => Some(Refused::WeightIsTheSteps),
        (Command::Start | Command::SetWeight(_) | Command::Promote | Command::Abort, _) => None,
    }
}

/// Walks every sequence of `depth` events. Sequences that came to the same state go on as one: it, and
/// what was seen, is all that what follows hangs on. How many states there were.
fn walk(configurations: &[Option<Settings>; 3], depth: usize) -> usize {
    let events = events();
    let mut seen = HashSet::from([Watched::idle()]);
    let mut open = VecDeque::from([(Watched::idle(), Vec::new())]);
    while let Some((state, path)) = open.pop_front() {
        if path.len() == depth {
            continue;
        }
        for event in &events {
            let mut path = path.clone();
            path.push(*event);
            let next = catch_unwind(|| state.after(*event, configurations))
                .unwrap_or_else(|_| panic!("from idle, by {path:#?}"));
            // A refusal changes nothing at all.
            if let Event::Command(command) = event {
                let settings = configurations[state.configuration].as_ref();
                if refusal(state.rollout.position.phase, settings, *command).is_some() {
                    assert_eq!(next, state);
                }
            }
            if seen.insert(next) {
                open.push_back((next, path));
            }
        }
    }
    seen.len()
}

#[test]
fn every_sequence_of_events_keeps_what_the_machine_promises() {
    for on_inconclusive in [
        OnInconclusive::Extend,
        OnInconclusive::Pause,
        OnInconclusive::Advance,
        OnInconclusive::Rollback,
    ] {
        for (extension, dry_run) in [(0, false), (2, false), (2, true)] {
            let usual = settings(on_inconclusive, extension, dry_run);
            let shorter = Settings {
                steps: vec![step(4, 2)],
                ..usual.clone()
            };
            let states = walk(&[Some(usual), Some(shorter), None], 12);
            assert!(states > 1_000, "the walk has come nowhere: {states}");
        }
    }
}

/// A rollout that has begun.
fn begun(settings: &Settings) -> Rollout {
    let mut rollout = Rollout::idle(Weight::NONE);
    rollout.command(Some(settings), Command::Start).unwrap();
    rollout
}

/// A second after the other, with this verdict: what happened in each.
fn ticks<const N: usize>(
    rollout: &mut Rollout,
    settings: &Settings,
    verdict: Verdict,
) -> [Option<Why>; N] {
    [(); N].map(|()| {
        rollout
            .tick(settings, SECOND, verdict)
            .map(|moved| moved.why)
    })
}

fn stands(rollout: &Rollout) -> (Phase, usize, Weight) {
    let Position {
        phase,
        step,
        weight,
    } = rollout.position;
    (phase, step.expect("it has begun"), weight)
}

#[test]
fn a_healthy_canary_goes_from_step_to_step_and_stays_at_the_last_weight() {
    let settings = settings(OnInconclusive::Extend, 2, false);
    let mut rollout = begun(&settings);
    assert_eq!(stands(&rollout), (Phase::Progressing, 0, percent(1)));
    let passed = Some(Why::StepPassed);
    assert_eq!(
        ticks(&mut rollout, &settings, Verdict::Healthy),
        [None, passed]
    );
    assert_eq!(stands(&rollout), (Phase::Progressing, 1, percent(10)));
    assert_eq!(
        ticks(&mut rollout, &settings, Verdict::Healthy),
        [None, passed, None]
    );
    assert_eq!(stands(&rollout), (Phase::Succeeded, 1, percent(10)));
    assert_eq!(rollout.epoch, 0);
}

#[test]
fn a_canary_worse_than_allowed_gets_nothing_from_that_second_on() {
    let settings = settings(OnInconclusive::Extend, 2, false);
    let mut rollout = begun(&settings);
    let why = ticks(&mut rollout, &settings, Verdict::Unhealthy);
    assert_eq!(why, [Some(Why::Unhealthy), None]);
    assert_eq!(stands(&rollout), (Phase::RolledBack, 0, Weight::NONE));
    assert_eq!(rollout.epoch, 1);
    rollout.command(Some(&settings), Command::Start).unwrap();
    assert_eq!(stands(&rollout), (Phase::Progressing, 0, percent(1)));
}

#[test]
fn without_evidence_a_step_is_extended_then_paused_and_a_resume_gives_it_its_time_again() {
    let settings = settings(OnInconclusive::Extend, 2, false);
    let mut rollout = begun(&settings);
    assert_eq!(
        ticks(&mut rollout, &settings, Verdict::Inconclusive),
        [
            None,
            Some(Why::Extended),
            None,
            Some(Why::PausedWithoutEvidence),
            None
        ]
    );
    assert_eq!(stands(&rollout), (Phase::Paused, 0, percent(1)));
    rollout.command(Some(&settings), Command::Resume).unwrap();
    assert_eq!(stands(&rollout), (Phase::Progressing, 0, percent(1)));
    assert_eq!(
        ticks(&mut rollout, &settings, Verdict::Healthy),
        [None, Some(Why::StepPassed)]
    );
}

#[test]
fn evidence_that_comes_during_an_extension_ends_the_step() {
    let settings = settings(OnInconclusive::Extend, 2, false);
    let mut rollout = begun(&settings);
    let _extended: [_; 2] = ticks(&mut rollout, &settings, Verdict::Inconclusive);
    assert_eq!(
        ticks(&mut rollout, &settings, Verdict::Healthy),
        [Some(Why::StepPassed)]
    );
    assert_eq!(stands(&rollout), (Phase::Progressing, 1, percent(10)));
}

#[test]
fn a_pause_stops_the_steps_time_but_not_the_judge() {
    let settings = settings(OnInconclusive::Extend, 2, false);
    let mut rollout = begun(&settings);
    let _a_second: [_; 1] = ticks(&mut rollout, &settings, Verdict::Healthy);
    rollout.command(Some(&settings), Command::Pause).unwrap();
    let waited: [_; 9] = ticks(&mut rollout, &settings, Verdict::Healthy);
    assert_eq!(waited, [None; 9]);
    let paused = rollout;
    rollout.command(Some(&settings), Command::Resume).unwrap();
    assert_eq!(
        ticks(&mut rollout, &settings, Verdict::Healthy),
        [Some(Why::StepPassed)]
    );
    let mut rollout = paused;
    assert_eq!(
        ticks(&mut rollout, &settings, Verdict::Unhealthy),
        [Some(Why::Unhealthy)]
    );
}

#[test]
fn a_promoted_canary_gets_everything_whatever_the_judge_says() {
    let settings = settings(OnInconclusive::Extend, 2, false);
    let mut rollout = begun(&settings);
    rollout.command(Some(&settings), Command::Promote).unwrap();
    assert_eq!(stands(&rollout), (Phase::Succeeded, 0, Weight::ALL));
    assert_eq!(
        ticks(&mut rollout, &settings, Verdict::Unhealthy),
        [None, None]
    );
    assert_eq!(stands(&rollout), (Phase::Succeeded, 0, Weight::ALL));
    // It is not final: there is always a way back.
    rollout.command(Some(&settings), Command::Abort).unwrap();
    assert_eq!(stands(&rollout), (Phase::RolledBack, 0, Weight::NONE));
}

#[test]
fn in_a_dry_run_the_judge_is_heard_once_and_moves_nothing() {
    let settings = settings(OnInconclusive::Rollback, 2, true);
    let mut rollout = begun(&settings);
    let advanced = Some(Why::AdvancedInDryRun);
    assert_eq!(
        ticks(&mut rollout, &settings, Verdict::Unhealthy),
        [Some(Why::UnhealthyInDryRun), advanced, None, advanced, None]
    );
    assert_eq!(stands(&rollout), (Phase::Succeeded, 1, percent(10)));
    assert_eq!(rollout.epoch, 0);
    rollout.command(Some(&settings), Command::Start).unwrap();
    assert_eq!(
        ticks(&mut rollout, &settings, Verdict::Unhealthy),
        [Some(Why::UnhealthyInDryRun)],
        "the next rollout hears it again"
    );
}

#[test]
fn other_steps_pause_a_rollout_and_a_resume_goes_on_with_the_nearest() {
    let settings = settings(OnInconclusive::Extend, 2, false);
    let mut rollout = begun(&settings);
    let _first_step: [_; 2] = ticks(&mut rollout, &settings, Verdict::Healthy);
    let other = Settings {
        steps: vec![step(4, 2)],
        ..settings.clone()
    };
    let moved = rollout.steps_changed(&other.steps).unwrap();
    assert_eq!(moved.why, Why::StepsChanged);
    assert_eq!(stands(&rollout), (Phase::Paused, 1, percent(10)));
    rollout.command(Some(&other), Command::Resume).unwrap();
    assert_eq!(stands(&rollout), (Phase::Progressing, 0, percent(4)));
    assert_eq!(
        ticks(&mut rollout, &other, Verdict::Healthy),
        [None, Some(Why::StepPassed)]
    );
    assert_eq!(rollout.steps_changed(&[]), None, "it is over");
}

/// The canary kept the weight of its step, unwatched, and without an instrumentation port for ever.
#[test]
fn without_steps_any_more_nobody_judges_and_a_rollout_is_rolled_back() {
    let settings = settings(OnInconclusive::Extend, 2, false);
    for paused in [false, true] {
        let mut rollout = begun(&settings);
        if paused {
            rollout.command(Some(&settings), Command::Pause).unwrap();
        }
        let moved = rollout.steps_changed(&[]).unwrap();
        assert_eq!(moved.why, Why::StepsRemoved);
        assert_eq!(stands(&rollout), (Phase::RolledBack, 0, Weight::NONE));
        assert_eq!(rollout.epoch, 1);
        assert_eq!(rollout.command(None, Command::Start), Err(Refused::NoSteps));
    }
}

#[test]
fn a_weight_in_the_configuration_counts_where_no_rollout_has_a_say() {
    let settings = settings(OnInconclusive::Extend, 2, false);
    let mut rollout = Rollout::idle(percent(5));
    assert_eq!(rollout.weight_configured(percent(5)), None);
    let moved = rollout.weight_configured(percent(6)).unwrap();
    assert_eq!(
        (moved.why, moved.from.weight, moved.to.weight),
        (Why::WeightConfigured, percent(5), percent(6))
    );
    rollout.command(Some(&settings), Command::Start).unwrap();
    for end in [Command::Pause, Command::Promote, Command::Abort] {
        assert_eq!(rollout.weight_configured(percent(7)), None);
        rollout.command(Some(&settings), end).unwrap();
    }
    assert_eq!(rollout.weight_configured(percent(7)), None);
}

#[test]
fn a_weight_set_by_hand_ends_what_is_over_and_leaves_a_pause_a_pause() {
    let settings = settings(OnInconclusive::Extend, 2, false);
    let by_hand = Command::SetWeight(percent(7));
    let mut rollout = begun(&settings);
    let refused = rollout.command(Some(&settings), by_hand);
    assert_eq!(refused, Err(Refused::WeightIsTheSteps));
    let _a_second: [_; 1] = ticks(&mut rollout, &settings, Verdict::Healthy);
    rollout.command(Some(&settings), Command::Pause).unwrap();
    rollout.command(Some(&settings), by_hand).unwrap();
    assert_eq!(stands(&rollout), (Phase::Paused, 0, percent(7)));
    // The step has not been at its weight for all the time: it begins anew.
    rollout.command(Some(&settings), Command::Resume).unwrap();
    assert_eq!(
        ticks(&mut rollout, &settings, Verdict::Healthy),
        [None, Some(Why::StepPassed)]
    );
    rollout.command(Some(&settings), Command::Abort).unwrap();
    rollout.command(Some(&settings), by_hand).unwrap();
    assert_eq!(rollout.position.phase, Phase::Idle);
}
