//! The state file: any text is read or refused, what is read is written as it was, and whatever it says, a process can
//! begin with it and a rollout go on.

#![no_main]

use std::{
    sync::LazyLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use canary_router::{
    config::Config,
    control::analyst,
    policy::{
        analysis::Counts,
        rollout::{Command, Verdict},
    },
    state::{Admission, Kept, Progress, Seen, admission::Terms},
};
use edits::Template;
use libfuzzer_sys::fuzz_target;

mod edits;

static TEMPLATE: LazyLock<Template> = LazyLock::new(|| Template::new(include_str!("state.json")));

/// Of installations that the file may be found by.
static CONFIGS: LazyLock<Vec<Config>> = LazyLock::new(|| {
    let steps = r#""for": "10m"}, {"weight": 50, "for": "1h"}]"#;
    [
        ("http://c", r#""steps": []"#.to_owned()),
        ("http://c", format!(r#""steps": [{{"weight": 5, {steps}"#)),
        (
            "http://c",
            format!(r#""on-inconclusive": "pause", "steps": [{{"weight": 20, {steps}"#),
        ),
        (
            "http://another",
            format!(r#""dry-run": true, "steps": [{{"weight": 5, {steps}"#),
        ),
    ]
    .into_iter()
    .map(|(canary, rollout)| {
        let text = format!(
            r#"{{"main-target": "http://m", "canary-target": "{canary}",
                "router-server": {{"host": "h", "port": 1}},
                "instrumentation": {{"host": "h", "port": 2}},
                "circuit-breaker": {{"request-limit-canary": 100, "error-limit-canary": 10,
                    "failure-rate-threshold": 50, "main": {{"failure-rate-threshold": 50}}}},
                "rollout": {{{rollout}}}}}"#
        );
        Config::parse("fuzz", &text).expect("it is valid")
    })
    .collect()
});

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_700_000_000)
}

fuzz_target!(|input: &[u8]| {
    let Ok(input) = str::from_utf8(input) else {
        return;
    };
    let kept = match Kept::parse(&TEMPLATE.text(input), now()) {
        Ok(kept) => kept,
        Err(why) => {
            let why = why.to_string();
            assert!(!why.contains(char::is_control), "{why:?}");
            return;
        }
    };
    let written = kept.to_text(now());
    assert_eq!(written.find('\n'), Some(written.len() - 1));
    assert_eq!(Kept::parse(&written, now()).as_ref(), Ok(&kept));
    for config in CONFIGS.iter() {
        let uptime = Duration::from_secs(3);
        let admission = Admission::restore(Terms::of(config), &kept.restored, uptime);
        for later in [0, 1, 1 << 30] {
            let _permit = admission.admit(|| uptime + Duration::from_secs(later));
            let _permit = admission.admit_main(|| uptime + Duration::from_secs(later));
        }
        let found = kept.progress.as_deref();
        go_on(config, analyst::opening(config, found, now()));
    }
});

/// As the judge does, whatever it finds.
fn go_on(config: &Config, mut progress: Progress) {
    let Some(configured) = &config.rollout else {
        return;
    };
    let seen = Seen::new();
    seen.restore(&progress.seen);
    seen.next_step();
    let step = progress.rollout.position.step.unwrap_or(0);
    let counts = Counts {
        requests: [9, 1],
        ..Counts::default()
    };
    let weight = progress.rollout.position.weight;
    progress.evidence.add(step, weight, &counts);
    let strength = progress.evidence.strength(&configured.judge, step);
    for verdict in [strength.verdict(), Verdict::Healthy, Verdict::Unhealthy] {
        let mut rollout = progress.rollout;
        for _ in 0..3 {
            rollout.tick(&configured.settings, Duration::from_secs(2), verdict);
        }
    }
    for command in [Command::Start, Command::Resume, Command::Abort] {
        let _refused = progress
            .rollout
            .command(Some(&configured.settings), command);
    }
}
