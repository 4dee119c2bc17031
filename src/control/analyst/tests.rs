use serde_json::json;

use super::*;
use crate::{
    policy::{Target, rollout::Phase},
    state::{
        Admission, Lifecycle, Reloads, Tally, Trial, TrialsWriter, admission::Terms,
        snapshot::Reader,
    },
};

/// An analyst and the only worker, without threads: the tests say who looks when.
struct Rig {
    analyst: Analyst,
    writer: TrialsWriter,
    reader: Reader,
    now: Duration,
}

fn config(rollout: serde_json::Value) -> Config {
    let mut file = json!({
        "main-target": "http://m", "canary-target": "http://c",
        "router-server": {"host": "127.0.0.1", "port": 1},
        "instrumentation": {"host": "127.0.0.1", "port": 2}
    });
    file["rollout"] = rollout;
    Config::parse("test.json", &file.to_string()).unwrap()
}

impl Rig {
    fn new(config: Config) -> Rig {
        let wall = SystemTime::UNIX_EPOCH;
        let opening = opening(&config, None, wall);
        let admission = Admission::new(Terms::of(&config), Duration::ZERO);
        let published =
            Published::new(Snapshot::new(config, admission).with_split(first_split(&opening)));
        let seen = Arc::<Seen>::default();
        let (writer, trials) = Trials::new(Arc::clone(&seen), 8);
        let control = Control {
            published: Arc::clone(&published),
            tallies: vec![Tally::new().1],
            trials: vec![trials],
            seen,
            progress: SharedProgress::new(None),
            opening,
            keeping: None,
            durability: None,
            load: None,
            log: |_| {},
            reloads: Arc::new(Reloads::new(SystemTime::UNIX_EPOCH)),
            spans: None,
            dropped_lines: || 0,
            lifecycle: Arc::new(Lifecycle::default()),
        };
        Rig {
            analyst: Analyst::new(&control, Duration::ZERO),
            writer,
            reader: published.reader(),
            now: Duration::ZERO,
        }
    }

    fn command(&mut self, command: Command) {
        self.analyst
            .command(command, self.now, SystemTime::UNIX_EPOCH)
            .unwrap();
    }

    /// A second passes on the control plane.
    fn look(&mut self) {
        self.now += TICK;
        self.analyst.look(self.now, SystemTime::UNIX_EPOCH);
    }

    /// The worker's sweep, as `proxy::worker` does it.
    fn sweep(&self) {
        self.writer.close(self.reader.current().split.since);
    }

    /// A request of the canary that fails, if the judge wants to know.
    fn fail(&self) {
        if let Some(tick) = self.reader.current().split.tick {
            let trial = Trial {
                tick,
                target: Target::Canary,
                key: None,
                is_new: false,
            };
            self.writer.begin(trial);
            self.writer.failed(trial);
            self.writer.end(trial, false);
        }
    }

    fn phase(&self) -> Phase {
        self.analyst.rollout().position.phase
    }

    /// Seconds in which ten requests of the canary fail, until the judge has had enough.
    fn is_rolled_back_within(&mut self, seconds: usize) -> bool {
        for _ in 0..seconds {
            self.sweep();
            (0..10).for_each(|_| self.fail());
            self.sweep();
            self.look();
            if self.phase() == Phase::RolledBack {
                return true;
            }
        }
        false
    }
}

/// The ring was full of ticks of which the worker knew nothing, so it closed none of them, and no tick was
/// published any more that it could have known them by: the judge was deaf for ever.
#[test]
fn a_worker_that_stood_still_for_minutes_is_heard_again() {
    let mut rig = Rig::new(config(json!({"steps": [{"weight": 20, "for": "10h"}]})));
    rig.command(Command::Start);
    for _ in 0..300 {
        rig.look();
    }
    assert!(rig.is_rolled_back_within(10), "{:?}", rig.phase());
}

#[test]
fn a_hundred_commands_in_a_moment_do_not_make_the_judge_deaf() {
    let mut rig = Rig::new(config(json!({"steps": [{"weight": 20, "for": "10h"}]})));
    rig.command(Command::Start);
    for _ in 0..50 {
        rig.command(Command::Pause);
        rig.command(Command::Resume);
    }
    assert!(rig.is_rolled_back_within(10), "{:?}", rig.phase());
}

#[test]
fn a_process_that_cannot_judge_gives_the_canary_nothing_of_a_rollout_that_it_finds() {
    let mut rig = Rig::new(config(json!({"steps": [{"weight": 20, "for": "10h"}]})));
    rig.command(Command::Start);
    let found = rig.analyst.progress.clone();
    let opened = opening(&config(json!({})), Some(&found), SystemTime::UNIX_EPOCH);
    assert_eq!(first_split(&opened).weight, Weight::NONE);
    assert_eq!(opened.decisions[0]["why"], "steps-removed");
}

/// With no traffic there is no evidence, and the time of the step was not kept either.
#[test]
fn the_time_of_a_step_is_kept_without_traffic_too() {
    let mut rig = Rig::new(config(json!({"steps": [{"weight": 20, "for": "10h"}]})));
    rig.command(Command::Start);
    for _ in 0..60 {
        rig.look();
    }
    let (version, kept) = rig.analyst.shared.latest();
    let elapsed = kept.unwrap().rollout.elapsed;
    assert!(elapsed >= TICK * 55, "{elapsed:?}");
    // What is paused stands still.
    rig.command(Command::Pause);
    for _ in 0..60 {
        rig.look();
    }
    assert_eq!(rig.analyst.shared.latest().0, version + 1);
}

/// After a success at 100 % the next version got everything at once, whatever the configuration said.
#[test]
fn another_canary_begins_with_the_weight_that_is_configured() {
    let with = |canary: &str, weight: u32| {
        let file = json!({
            "main-target": "http://m", "canary-target": canary,
            "traffic": {"weight": weight},
            "rollout": {"steps": [{"weight": 20, "for": "10h"}]},
            "router-server": {"host": "127.0.0.1", "port": 1},
            "instrumentation": {"host": "127.0.0.1", "port": 2}
        });
        Config::parse("test.json", &file.to_string()).unwrap()
    };
    let wall = SystemTime::UNIX_EPOCH;
    let after = |commands: &[Command], config: &Config| {
        let mut rig = Rig::new(with("http://c", 3));
        commands.iter().for_each(|command| rig.command(*command));
        let opened = opening(config, Some(&rig.analyst.progress), wall);
        (
            opened.rollout.position.phase,
            opened.rollout.position.weight.hundredths(),
        )
    };
    let weight = Command::SetWeight(Weight::new(4_000).unwrap());
    let (start, promote, abort) = (Command::Start, Command::Promote, Command::Abort);
    for (commands, same, other) in [
        (&[][..], (Phase::Idle, 300), (Phase::Idle, 300)),
        (&[weight], (Phase::Idle, 4_000), (Phase::Idle, 300)),
        (&[start], (Phase::Progressing, 2_000), (Phase::Idle, 300)),
        (
            &[start, promote],
            (Phase::Succeeded, 10_000),
            (Phase::Idle, 300),
        ),
        (
            &[start, abort],
            (Phase::RolledBack, 0),
            (Phase::RolledBack, 0),
        ),
    ] {
        assert_eq!(after(commands, &with("http://c", 3)), same, "{commands:?}");
        assert_eq!(after(commands, &with("http://d", 3)), other, "{commands:?}");
    }
    let opened = {
        let mut rig = Rig::new(with("http://c", 3));
        rig.command(Command::Promote);
        opening(&with("http://d", 3), Some(&rig.analyst.progress), wall)
    };
    assert_eq!(opened.decisions[0]["why"], "targets-changed");
    assert_eq!(opened.rollout.epoch, 1);
}

#[test]
fn evidence_of_other_steps_is_not_evidence_of_these() {
    let mut rig = Rig::new(config(json!({"steps": [{"weight": 20, "for": "10h"}]})));
    rig.command(Command::Start);
    rig.sweep();
    rig.fail();
    rig.look();
    rig.sweep();
    rig.look();
    assert!(!rig.analyst.evidence().accounts().is_empty());
    let other = config(json!({"steps": [{"weight": 30, "for": "10h"}]}));
    let opened = opening(&other, Some(&rig.analyst.progress), SystemTime::UNIX_EPOCH);
    assert_eq!(opened.rollout.position.phase, Phase::Paused);
    assert!(opened.evidence.accounts().is_empty());
}

/// The file is read again while the rollout goes.
mod another_configuration {
    use super::*;

    fn steps(weights: &[u64]) -> serde_json::Value {
        let steps: Vec<_> = weights
            .iter()
            .map(|weight| json!({"weight": weight, "for": "10m"}))
            .collect();
        json!({"steps": steps})
    }

    fn rig() -> Rig {
        let mut rig = Rig::new(config(steps(&[10, 50])));
        rig.command(Command::Start);
        rig.sweep();
        (0..3).for_each(|_| rig.fail());
        rig.look();
        for _ in 0..5 {
            rig.sweep();
            rig.look();
        }
        assert!(failures(&rig) > 0);
        rig
    }

    fn failures(rig: &Rig) -> u64 {
        let accounts = rig.analyst.evidence().accounts();
        let failures = accounts.iter().map(|it| it.counts.failures);
        failures.map(|pair| pair[Target::Canary.index()]).sum()
    }

    impl Rig {
        fn reconfigure(&mut self, config: Config) {
            self.analyst
                .reconfigure(config, self.now, SystemTime::UNIX_EPOCH);
        }
    }

    #[test]
    fn that_says_nothing_else_of_the_rollout_leaves_it_and_its_evidence() {
        let mut rig = rig();
        let (before, failed) = (*rig.analyst.rollout(), failures(&rig));
        rig.reconfigure(config(steps(&[10, 50])));
        assert_eq!((*rig.analyst.rollout(), failures(&rig)), (before, failed));
        // What begins now is counted, and what had begun before too.
        assert!(rig.is_rolled_back_within(10));
    }

    #[test]
    fn with_other_steps_pauses_it_and_judges_afresh() {
        let mut rig = rig();
        rig.reconfigure(config(steps(&[10, 60])));
        assert_eq!((rig.phase(), failures(&rig)), (Phase::Paused, 0));
        assert_eq!(rig.analyst.decisions()[0]["why"], "steps-changed");
    }

    #[test]
    fn without_steps_rolls_it_back() {
        let mut rig = rig();
        rig.reconfigure(config(json!({})));
        assert_eq!(rig.phase(), Phase::RolledBack);
        assert_eq!(rig.reader.current().split.weight, Weight::NONE);
    }

    #[test]
    fn that_counts_otherwise_begins_to_count_anew_and_what_is_under_way_is_not_counted() {
        let mut rig = rig();
        let tick = rig.reader.current().split.tick.unwrap();
        let mut other = steps(&[10, 50]);
        other["latency-slack"] = json!("50ms");
        let thresholds = Arc::clone(&rig.reader.current().thresholds);
        rig.reconfigure(config(other));
        assert_eq!((rig.phase(), failures(&rig)), (Phase::Progressing, 0));
        assert!(!Arc::ptr_eq(&rig.reader.current().thresholds, &thresholds));
        let late = Trial {
            tick,
            target: Target::Canary,
            key: None,
            is_new: false,
        };
        rig.writer.begin(late);
        rig.writer.failed(late);
        rig.writer.end(late, false);
        for _ in 0..8 {
            rig.sweep();
            rig.look();
        }
        assert_eq!(failures(&rig), 0);
        assert!(rig.is_rolled_back_within(10));
    }

    #[test]
    fn with_another_canary_gives_it_the_configured_weight_at_the_moment_at_which_it_gets_requests()
    {
        let mut rig = rig();
        let mut file = json!({
            "main-target": "http://m", "canary-target": "http://d", "traffic": {"weight": 3},
            "router-server": {"host": "127.0.0.1", "port": 1},
            "instrumentation": {"host": "127.0.0.1", "port": 2}
        });
        file["rollout"] = steps(&[10, 50]);
        rig.reconfigure(Config::parse("test.json", &file.to_string()).unwrap());
        let snapshot = rig.reader.current();
        assert_eq!(snapshot.config.canary.host_header, "d");
        assert_eq!(snapshot.split.weight.hundredths(), 300);
        assert_eq!(snapshot.split.tick, None);
        assert_eq!((rig.phase(), failures(&rig)), (Phase::Idle, 0));
    }
}
