//! Model checks of what threads share: every interleaving of a few operations (loom).
//!
//!     RUSTFLAGS="--cfg canary_loom" cargo test --profile loom --test loom
//!
//! The cfg is our own, because plain `loom` would take tokio's network away. The snapshot is not
//! here: its swap is arc-swap's own, and nothing of ours is around it.
#![cfg(canary_loom)]

use std::{sync::Arc, time::Duration};

use canary_router::{
    config::Limits,
    policy::{Outcome, Reason},
    state::{Admission, Tally, admission::Remaining, tally::Totals},
};
use loom::thread;

fn admission(requests: Option<u64>, errors: Option<u32>) -> Arc<Admission> {
    Admission::new(Limits {
        requests,
        errors,
        ..Limits::default()
    })
}

/// Admits, and ends with `outcome`; true if it was admitted.
fn attempt(admission: &Arc<Admission>, outcome: Outcome) -> bool {
    admission
        .admit()
        .map(|permit| permit.settle(outcome))
        .is_some()
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
        assert!(admission.spent().errors);
    });
}

#[test]
fn a_reservation_that_is_dropped_is_there_again() {
    loom::model(|| {
        let admission = admission(None, Some(2));
        let other = Arc::clone(&admission);
        let thread = thread::spawn(move || drop(other.admit()));
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
        let thread = thread::spawn(move || other.admit_forced().settle(Outcome::Failure));
        let chosen = attempt(&admission, Outcome::Success);
        thread.join().unwrap();
        // The chosen one came before or after; the forced failure is charged either way.
        let _either = chosen;
        assert!(admission.spent().errors);
        assert_eq!(admission.remaining().errors, Some(0));
        assert!(admission.admit().is_none());
    });
}

#[test]
fn a_reader_of_a_tally_sees_every_count_once_and_none_go_back() {
    loom::model(|| {
        let (writer, tally) = Tally::new();
        let thread = thread::spawn(move || {
            writer.request(Reason::NoSidecar, Duration::from_millis(1));
            writer.request(Reason::NoSidecar, Duration::from_millis(1));
        });
        let read = || {
            let mut totals = Totals::default();
            tally.add_to(&mut totals);
            totals.requests[Reason::NoSidecar.index()]
        };
        let early = read();
        let late = read();
        assert!(early <= late && late <= 2);
        thread.join().unwrap();
        assert_eq!(read(), 2);
    });
}
