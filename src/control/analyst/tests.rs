use serde_json::json;

use super::*;
use crate::{
    policy::{Target, rollout::Phase},
    state::{Admission, Lifecycle, Tally, Trial, TrialsWriter, admission::Terms, snapshot::Reader},
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
        let published = Published::new(Snapshot::new(config).with_split(first_split(&opening)));
        let seen = Arc::<Seen>::default();
        let (writer, trials) = Trials::new(Arc::clone(&seen));
        let control = Control {
            published: Arc::clone(&published),
            admission,
            tallies: vec![Tally::new().1],
            trials: vec![trials],
            seen,
            progress: SharedProgress::new(None),
            opening,
            durability: None,
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
            self.writer.end(trial);
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
