//! Model checks of what threads share: every interleaving of a few operations (loom).
//!
//!     RUSTFLAGS="--cfg canary_loom" cargo test --profile loom --test loom
//!
//! The cfg is our own, because plain `loom` would take tokio's network away. The snapshot is not
//! here: its swap is arc-swap's own, and nothing of ours is around it.
#![cfg(canary_loom)]

use std::{sync::Arc, time::Duration};

use canary_router::{
    config::{Breaker, Breakers, Limits},
    policy::{
        CodeClass, FailureRule, Outcome, Reason, Target,
        analysis::Counts,
        breaker::{Rate, Settings, State},
    },
    state::{
        Admission, Permit, Seen, Tally, Trial, Trials,
        admission::{Remaining, Terms, Used},
        tally::Totals,
    },
};
use loom::thread;

const NOW: Duration = Duration::ZERO;
/// When an open breaker may be probed.
const LATER: Duration = Duration::from_secs(100);

fn admission(requests: Option<u64>, errors: Option<u32>) -> Arc<Admission> {
    with_breaker(requests, errors, None)
}

fn with_breaker(
    requests: Option<u64>,
    errors: Option<u32>,
    canary: Option<Breaker>,
) -> Arc<Admission> {
    let terms = Terms {
        limits: Limits {
            requests,
            errors,
            ..Limits::default()
        },
        breakers: Breakers { canary, main: None },
        repeats: Rate(2_000),
    };
    Admission::new(terms, NOW)
}

/// Opens at the first failure, closes after one good probe.
fn breaker() -> Breaker {
    Breaker {
        settings: Settings {
            failure_rate: Some(Rate(5_000)),
            slow_calls: None,
            failures_in_a_row: None,
            minimum_calls: 1,
            window: Duration::from_secs(10),
            wait_open: Duration::from_secs(30),
            max_wait_open: Duration::from_secs(300),
            permitted_half_open: 1,
        },
        failure: FailureRule::ServerError,
    }
}

fn settle(mut permit: Permit, outcome: Outcome, now: Duration) {
    match outcome {
        Outcome::Success => permit.completed(now, 0.0),
        Outcome::Failure => permit.failed(NOW, now, 0.0),
        Outcome::Ignored => drop(permit),
    }
}

/// Admits, and ends with `outcome`; true if it was admitted.
fn attempt(admission: &Arc<Admission>, outcome: Outcome) -> bool {
    attempt_at(admission, outcome, NOW)
}

fn attempt_at(admission: &Arc<Admission>, outcome: Outcome, now: Duration) -> bool {
    let permit = admission.admit(|| now);
    permit.map(|permit| settle(permit, outcome, now)).is_ok()
}

fn state(admission: &Admission) -> State {
    let gate = admission.gate(Target::Canary).unwrap();
    gate.with(|breaker| breaker.state())
}

#[test]
fn half_open_lets_one_probe_through_at_a_time_in_any_interleaving() {
    loom::model(|| {
        let admission = with_breaker(None, None, Some(breaker()));
        assert!(attempt(&admission, Outcome::Failure));
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let admission = Arc::clone(&admission);
                thread::spawn(move || admission.admit(|| LATER).ok())
            })
            .collect();
        let probes: Vec<_> = threads
            .into_iter()
            .filter_map(|thread| thread.join().unwrap())
            .collect();
        assert_eq!(probes.len(), 1);
        assert_eq!(state(&admission), State::HalfOpen);
        drop(probes);
        assert!(admission.admit(|| LATER).is_ok(), "its place is free again");
    });
}

#[test]
fn whoever_is_let_through_beside_an_opening_breaker_changes_nothing_later() {
    loom::model(|| {
        let admission = with_breaker(None, Some(3), Some(breaker()));
        let other = Arc::clone(&admission);
        let thread = thread::spawn(move || attempt(&other, Outcome::Failure));
        let late = admission.admit(|| NOW).ok();
        assert!(thread.join().unwrap());
        assert_eq!(state(&admission), State::Open);
        let probed = admission.admit(|| LATER).unwrap();
        let let_through = late.is_some();
        if let Some(late) = late {
            settle(late, Outcome::Failure, LATER);
        }
        assert_eq!(
            state(&admission),
            State::HalfOpen,
            "a late failure opens nothing"
        );
        settle(probed, Outcome::Success, LATER);
        assert_eq!(state(&admission), State::Closed);
        // The limit counts it all the same.
        let left = 3 - 1 - u64::from(let_through);
        assert_eq!(admission.remaining().errors, Some(left));
    });
}

#[test]
fn no_interleaving_of_failures_overshoots_the_error_limit() {
    loom::model(|| {
        let admission = admission(None, Some(1));
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let admission = Arc::clone(&admission);
                thread::spawn(move || attempt(&admission, Outcome::Failure))
            })
            .collect();
        let mut failed = u32::from(attempt(&admission, Outcome::Failure));
        for thread in threads {
            failed += u32::from(thread.join().unwrap());
        }
        assert_eq!(failed, 1);
        assert!(admission.barriers(|| NOW).errors);
    });
}

#[test]
fn a_reservation_that_is_dropped_is_there_again() {
    loom::model(|| {
        let admission = admission(None, Some(2));
        let other = Arc::clone(&admission);
        let thread = thread::spawn(move || drop(other.admit(|| NOW)));
        let failed = attempt(&admission, Outcome::Failure);
        thread.join().unwrap();
        assert!(
            failed,
            "one of two cannot be refused while one other is in flight"
        );
        assert_eq!(admission.remaining().errors, Some(1));
    });
}

#[test]
fn exactly_the_request_limit_is_admitted_and_no_reservation_is_lost() {
    loom::model(|| {
        let admission = admission(Some(1), Some(3));
        let other = Arc::clone(&admission);
        let thread = thread::spawn(move || attempt(&other, Outcome::Success));
        let mine = attempt(&admission, Outcome::Success);
        let theirs = thread.join().unwrap();
        assert!(mine ^ theirs, "one token, one request");
        assert_eq!(
            admission.remaining(),
            Remaining {
                requests: Some(0),
                errors: Some(3)
            }
        );
    });
}

#[test]
fn a_forced_failure_is_charged_beside_any_chosen_request() {
    loom::model(|| {
        let admission = admission(None, Some(1));
        let other = Arc::clone(&admission);
        let thread = thread::spawn(move || settle(other.admit_forced(), Outcome::Failure, NOW));
        let chosen = attempt(&admission, Outcome::Success);
        thread.join().unwrap();
        // The chosen one came before or after; the forced failure is charged either way.
        let _either = chosen;
        assert!(admission.barriers(|| NOW).errors);
        assert_eq!(admission.remaining().errors, Some(0));
        assert!(admission.admit(|| NOW).is_err());
    });
}

#[test]
fn nobody_gets_past_a_ceiling_that_was_lowered_and_written() {
    loom::model(|| {
        let admission = admission(Some(9), Some(9));
        admission.set_ceiling(Used {
            requests: 2,
            errors: 2,
        });
        let other = Arc::clone(&admission);
        let thread = thread::spawn(move || other.admit(|| NOW).ok());
        // As the ledger lowers it: what is used by then is written, and a crash leaves that.
        let written = admission.lower_ceiling(Used::default());
        let permit = thread.join().unwrap();
        let used = admission.used();
        assert!(used.requests <= written.requests, "{used:?} {written:?}");
        assert!(used.errors <= written.errors, "{used:?} {written:?}");
        drop(permit);
    });
}

/// What a reset has taken back already is not given back again: the count would wrap, and the canary never get
/// anything any more.
#[test]
fn a_reset_beside_a_token_that_is_given_back_leaves_the_limit_unused() {
    loom::model(|| {
        let admission = admission(Some(2), None);
        let none = Used {
            requests: 0,
            errors: 0,
        };
        let threads = [
            {
                let admission = Arc::clone(&admission);
                thread::spawn(move || drop(admission.admit(|| NOW)))
            },
            {
                let admission = Arc::clone(&admission);
                thread::spawn(move || {
                    admission.lower_ceiling(none);
                })
            },
        ];
        admission.reset_limits();
        for thread in threads {
            thread.join().unwrap();
        }
        assert!(admission.used().requests <= 1);
    });
}

/// For what reads many counts: the usual bound on them is 1000.
fn model_of_many(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.max_branches = 10_000;
    builder.preemption_bound = Some(2);
    builder.check(model);
}

#[test]
fn a_reader_of_a_tally_sees_every_count_once_and_none_go_back() {
    model_of_many(|| {
        let (writer, tally) = Tally::new();
        let thread = thread::spawn(move || {
            writer.request(
                Reason::NoSidecar,
                CodeClass::Success,
                Duration::from_millis(1),
            );
            writer.request(
                Reason::NoSidecar,
                CodeClass::Success,
                Duration::from_millis(1),
            );
        });
        let read = || {
            let mut totals = Totals::default();
            tally.add_to(&mut totals);
            totals.ended(Reason::NoSidecar)
        };
        let early = read();
        let late = read();
        assert!(early <= late && late <= 2);
        thread.join().unwrap();
        assert_eq!(read(), 2);
    });
}

#[test]
fn a_closed_tick_is_read_whole_and_nothing_comes_behind() {
    model_of_many(|| {
        let (writer, trials) = Trials::new(Arc::new(Seen::new()), 2);
        let trial = |tick, target| Trial {
            tick,
            target,
            key: None,
            is_new: false,
        };
        let thread = thread::spawn(move || {
            let (first, second) = (trial(1, Target::Canary), trial(2, Target::Main));
            writer.begin(first);
            writer.failed(first);
            writer.begin(second);
            writer.end(first, false);
            writer.close(2);
            writer.failed(second);
            writer.end(second, false);
            writer.close(3);
        });
        let read = |tick| {
            let mut counts = Counts::default();
            trials.add_to(tick, &mut counts);
            counts.failures
        };
        let closed = trials.watermark();
        let early = [(1, [0, 1]), (2, [1, 0])].map(|(tick, whole)| {
            if tick < closed {
                assert_eq!(read(tick), whole);
            }
            whole
        });
        thread.join().unwrap();
        assert_eq!(trials.watermark(), 3);
        assert_eq!([read(1), read(2)], early);
    });
}
