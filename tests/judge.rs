//! What the judge must show, in fewer runs than in `benches/judge-study`, with the same worlds and fixed seeds.
//!
//! The bounds leave room for what so few runs can be off by; a judge that takes a wrong ratio, probability or
//! weight is far beyond them.

// What only the study needs of its modules.
#[allow(dead_code)]
#[path = "../benches/judge-study/cases.rs"]
mod cases;
#[path = "../benches/judge-study/random.rs"]
mod random;
#[allow(dead_code)]
#[path = "../benches/judge-study/rules.rs"]
mod rules;
#[allow(dead_code)]
#[path = "../benches/judge-study/run.rs"]
mod run;
#[path = "../benches/judge-study/world.rs"]
mod world;

use cases::Must;
use rules::Name;
use run::Did;

/// The judge alone, in so many runs of a case, of which nothing happens after so many seconds.
fn judge(id: &str, runs: usize, seconds: u32) -> (Must, Did) {
    let mut cases = cases::all();
    cases.retain(|case| case.id == id);
    let mut case = cases.pop().expect("the case is in the study");
    case.rules = vec![Name::Judge];
    if let [(_, step)] = &mut case.world.steps[..] {
        *step = seconds.min(*step);
    }
    let did = run::run(&case, runs).pop().expect("one rule, one result");
    (case.must, did)
}

const HOUR: u32 = 3600;

#[track_caller]
fn spares(id: &str, runs: usize, seconds: u32, most: usize) {
    let (must, did) = judge(id, runs, seconds);
    assert!(matches!(must, Must::Spare(_) | Must::SpareWorse(_)), "{id}");
    let rollbacks = did.rollbacks();
    assert!(
        rollbacks <= most,
        "{id}: {rollbacks} of {runs} good rollouts rolled back"
    );
}

#[track_caller]
fn catches(id: &str, runs: usize) {
    let (must, did) = judge(id, runs, HOUR);
    let Must::Catch {
        seconds, errors, ..
    } = must
    else {
        panic!("{id} is not bad");
    };
    let found = (did.median_seconds(), did.median_errors());
    let (Some(median), Some(median_errors)) = found else {
        panic!("{id}: found in {} of {runs} runs", did.rollbacks());
    };
    assert!(median <= seconds, "{id}: {median} s");
    assert!(
        median_errors <= errors.unwrap_or(u64::MAX),
        "{id}: {median_errors} errors"
    );
}

#[test]
fn canaries_as_good_as_main_are_spared() {
    for id in [
        "null-few",
        "null-many",
        "null-outage-few",
        "null-outage-many",
        "null-1-few",
        "null-1-many",
        "null-rare-few",
        "null-rare-many",
        "null-ramp",
    ] {
        spares(id, 40, HOUR, 1);
    }
}

#[test]
fn canaries_that_fail_as_often_as_allowed_are_spared() {
    spares("edge-few", 400, HOUR, 6);
    spares("edge-50", 100, HOUR, 3);
    for id in ["edge-many", "edge-outage", "edge-1"] {
        spares(id, 60, HOUR, 2);
    }
}

#[test]
fn canaries_that_fail_more_often_are_caught() {
    catches("bad-30", 200);
    catches("bad-5", 100);
    catches("bad-5-many", 100);
    catches("late", 60);
}

#[test]
fn broken_users_who_stay_in_the_canary_are_not_its_fault() {
    spares("sticky", 60, HOUR, 2);
    spares("sticky-ramp", 100, HOUR, 3);
}

/// Or the worlds above would show nothing.
#[test]
fn broken_users_would_be_its_fault_were_each_failure_counted() {
    let (_, did) = judge("sticky-ramp-mistake", 60, HOUR);
    assert!(did.share() > 0.1, "{}", did.share());
}

#[test]
fn canaries_that_are_not_slower_are_spared() {
    for id in ["both-null", "both-edge", "both-fix", "slow-allowed"] {
        spares(id, 12, 600, 1);
    }
}

#[test]
fn canaries_that_are_slower_are_caught() {
    for id in ["slow-1.5", "slow-2", "slow-tail"] {
        catches(id, 21);
    }
}
