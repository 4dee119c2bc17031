use proptest::prelude::*;

use super::*;

const HORIZON: u64 = 32;
const TICKS: u64 = 64;

fn new() -> (TrialsWriter, Arc<Trials>) {
    Trials::new(Arc::default(), HORIZON)
}

fn trial(tick: u64, target: Target) -> Trial {
    Trial {
        tick,
        target,
        key: None,
        is_new: false,
    }
}

fn counts(trials: &Trials, tick: u64) -> Counts {
    let mut counts = Counts::default();
    trials.add_to(tick, &mut counts);
    counts
}

#[test]
fn a_tick_is_closed_when_all_of_its_requests_have_ended() {
    let (writer, trials) = new();
    let (first, second) = (trial(5, Target::Main), trial(5, Target::Canary));
    writer.begin(first);
    writer.begin(second);
    writer.close(7);
    assert_eq!(trials.watermark(), 5);
    writer.failed(first);
    writer.end(first, false);
    writer.close(7);
    assert_eq!(trials.watermark(), 5);
    writer.answered(second, 3);
    writer.close(7);
    assert_eq!(trials.watermark(), 5);
    writer.cut(second);
    writer.end(second, true);
    writer.close(7);
    assert_eq!(trials.watermark(), 7);
    let counts = counts(&trials, 5);
    assert_eq!((counts.requests, counts.failures), ([1, 1], [1, 1]));
    assert_eq!(counts.failed, [1, 1]);
    assert_eq!(counts.slow[2], [0, 1]);
    assert_eq!(counts.slow[3], [0, 0]);
}

#[test]
fn what_is_older_than_the_horizon_is_not_waited_for_and_says_nothing_any_more() {
    let (writer, trials) = new();
    let old = trial(5, Target::Canary);
    writer.begin(old);
    writer.close(5 + HORIZON);
    assert_eq!(trials.watermark(), 5);
    writer.close(6 + HORIZON);
    assert_eq!(trials.watermark(), 6 + HORIZON);
    writer.failed(old);
    writer.end(old, false);
    assert_eq!(counts(&trials, 5), Counts::default());
    // Its place is another tick's now, and that has its own requests.
    let other = trial(5 + TICKS, Target::Main);
    writer.begin(other);
    writer.end(old, false);
    writer.close(other.tick + 1);
    assert_eq!(trials.watermark(), other.tick);
}

/// The timeout may be another one after a reload.
#[test]
fn how_long_an_answer_is_waited_for_can_change() {
    let (writer, trials) = new();
    let slow = trial(5, Target::Canary);
    writer.wait_for(4);
    writer.begin(slow);
    writer.close(9);
    assert_eq!(trials.watermark(), 5);
    writer.wait_for(20);
    writer.close(25);
    assert_eq!(trials.watermark(), 5);
    writer.failed(slow);
    writer.end(slow, false);
    writer.close(26);
    assert_eq!(counts(&trials, 5).failures, [0, 1]);
    writer.begin(trial(26, Target::Main));
    writer.wait_for(3);
    writer.close(30);
    assert_eq!(trials.watermark(), 30);
    // There is no room for more.
    writer.wait_for(1_000);
    writer.begin(trial(30, Target::Main));
    writer.close(30 + HORIZON);
    assert_eq!(trials.watermark(), 30);
    writer.close(31 + HORIZON);
    assert_eq!(trials.watermark(), 31 + HORIZON);
}

/// With one download begun each second, each verdict took as long as the horizon.
#[test]
fn the_rest_of_an_answer_is_waited_for_for_some_ticks_only() {
    let (writer, trials) = new();
    let download = trial(5, Target::Main);
    writer.begin(download);
    writer.answered(download, 0);
    writer.close(5 + BODY_HORIZON);
    assert_eq!(trials.watermark(), 5);
    writer.close(6 + BODY_HORIZON);
    assert_eq!(trials.watermark(), 6 + BODY_HORIZON);
    writer.cut(download);
    writer.end(download, true);
    assert_eq!(counts(&trials, 5).failures, [0, 0]);
    assert_eq!(counts(&trials, 5).requests, [1, 0]);
}

#[test]
fn whoever_times_out_does_so_before_the_horizon() {
    for timeout in [
        Duration::from_millis(5),
        Duration::from_millis(4_999),
        Duration::from_secs(120),
    ] {
        let latest = Duration::from_secs(1) + timeout + Duration::from_millis(200);
        assert!(
            latest < Duration::from_secs(horizon(timeout)),
            "{timeout:?}"
        );
    }
}

#[test]
fn what_comes_after_a_time_without_requests_counts_from_the_first_tick_on() {
    let (writer, trials) = new();
    for tick in FIRST..FIRST + 3 {
        writer.close(tick);
        let trial = trial(tick, Target::Main);
        writer.begin(trial);
        writer.failed(trial);
        writer.end(trial, false);
        assert_eq!(counts(&trials, tick).failures, [1, 0], "{tick}");
    }
    writer.close(FIRST + 3);
    assert_eq!(trials.watermark(), FIRST + 3);
}

#[test]
fn a_slot_that_is_used_again_begins_with_nothing() {
    let (writer, trials) = new();
    for round in 0..3 {
        let tick = 3 + round * TICKS;
        writer.close(tick);
        let trial = trial(tick, Target::Main);
        writer.begin(trial);
        writer.failed(trial);
        writer.end(trial, false);
        assert_eq!(counts(&trials, tick).failures, [1, 0]);
        assert_eq!(counts(&trials, tick + TICKS), Counts::default());
    }
    writer.close(u64::MAX / 2);
    assert_eq!(trials.watermark(), u64::MAX / 2);
}

#[test]
fn a_key_is_evidence_once() {
    let (writer, trials) = new();
    let trial = Trial {
        key: Some(9),
        ..trial(FIRST, Target::Canary)
    };
    for level in [4, 2, 4, 2, 6] {
        writer.begin(trial);
        writer.answered(trial, level);
    }
    writer.failed(trial);
    writer.cut(trial);
    let counts = counts(&trials, FIRST);
    assert_eq!((counts.requests, counts.failures), ([0, 6], [0, 2]));
    assert_eq!(counts.failed, [0, 1]);
    let slow: Vec<u64> = counts.slow[..7].iter().map(|slow| slow[1]).collect();
    assert_eq!(slow, [1, 1, 1, 1, 1, 1, 0]);
}

/// What can happen, to a worker and on the control plane.
#[derive(Debug, Clone)]
enum Event {
    Begin(usize, Target),
    Answered(usize, usize),
    Failed(usize, usize),
    Cut(usize, usize),
    Left(usize, usize),
    End(usize, usize),
    Sweep(usize),
    /// The control plane reads what is closed, and publishes so many ticks or none.
    Ticks(u8),
}

fn event() -> impl Strategy<Value = Event> {
    let (worker, which) = (0..2usize, 0..100usize);
    let target = prop_oneof![Just(Target::Main), Just(Target::Canary)];
    prop_oneof![
        4 => (worker.clone(), target).prop_map(|(worker, target)| Event::Begin(worker, target)),
        2 => (worker.clone(), which.clone()).prop_map(|(a, b)| Event::Answered(a, b)),
        1 => (worker.clone(), which.clone()).prop_map(|(a, b)| Event::Failed(a, b)),
        1 => (worker.clone(), which.clone()).prop_map(|(a, b)| Event::Cut(a, b)),
        1 => (worker.clone(), which.clone()).prop_map(|(a, b)| Event::Left(a, b)),
        3 => (worker.clone(), which).prop_map(|(a, b)| Event::End(a, b)),
        3 => worker.prop_map(Event::Sweep),
        3 => prop_oneof![4 => 0..3u8, 1 => 0..80u8].prop_map(Event::Ticks),
    ]
}

/// A worker as one would write it down: all requests in a list, each with whether it still counts.
struct Naive {
    /// With whether it is answered.
    in_flight: Vec<(Trial, bool)>,
    newest: u64,
    floor: u64,
}

impl Naive {
    fn close(&mut self, now: u64) {
        let waited_for = |floor: u64| {
            self.in_flight.iter().any(|(trial, is_answered)| {
                let patience = if *is_answered { BODY_HORIZON } else { HORIZON };
                trial.tick == floor && floor + patience >= now
            })
        };
        while self.floor < now && !waited_for(self.floor) {
            self.floor += 1;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn nothing_is_lost_or_counted_twice_whatever_happens_in_whatever_order(
        events in prop::collection::vec(event(), 1..400)
    ) {
        let (writers, trials): (Vec<_>, Vec<_>) = (0..2).map(|_| new()).unzip();
        let mut workers = [0, 1].map(|_| Naive {
            in_flight: Vec::new(),
            newest: FIRST - 1,
            floor: FIRST,
        });
        // By tick: what the naive workers saw, and what was read.
        let mut expected = std::collections::BTreeMap::<u64, Counts>::new();
        let mut read = expected.clone();
        let (mut closed, mut open, mut current) = (FIRST, 0, None);
        for event in events {
            match event {
                Event::Begin(worker, target) => if let Some(tick) = current {
                    let trial = trial(tick, target);
                    writers[worker].begin(trial);
                    let naive = &mut workers[worker];
                    if tick > naive.newest {
                        naive.newest = tick;
                        naive.close(tick);
                    }
                    naive.in_flight.push((trial, false));
                }
                Event::Answered(worker, which) | Event::Failed(worker, which) | Event::Cut(worker, which)
                | Event::Left(worker, which)
                | Event::End(worker, which) => {
                    let naive = &mut workers[worker];
                    if naive.in_flight.is_empty() {
                        continue;
                    }
                    let which = which % naive.in_flight.len();
                    let (trial, is_answered) = naive.in_flight[which];
                    let counts = expected.entry(trial.tick).or_default();
                    let of = trial.target.index();
                    let one = u64::from(trial.tick >= naive.floor);
                    match event {
                        Event::Answered(..) => {
                            if is_answered {
                                continue;
                            }
                            naive.in_flight[which].1 = true;
                            writers[worker].answered(trial, 1);
                            counts.requests[of] += one;
                            counts.slow[0][of] += one;
                        }
                        Event::Failed(..) => {
                            writers[worker].failed(trial);
                            counts.requests[of] += one;
                            counts.failures[of] += one;
                            counts.failed[of] += one;
                        }
                        Event::Cut(..) => {
                            writers[worker].cut(trial);
                            counts.failures[of] += one;
                            counts.failed[of] += one;
                        }
                        Event::Left(..) => {
                            writers[worker].left(trial, 2);
                            counts.slow[0][of] += one;
                            counts.slow[1][of] += one;
                        }
                        _ => {
                            writers[worker].end(trial, is_answered);
                            naive.in_flight.swap_remove(which);
                        }
                    }
                }
                Event::Sweep(worker) => {
                    let naive = &mut workers[worker];
                    let now = current.unwrap_or(closed + open);
                    writers[worker].close(now);
                    naive.newest = naive.newest.max(now);
                    naive.close(now);
                }
                Event::Ticks(count) => {
                    let below = trials.iter().map(|trials| trials.watermark()).min().unwrap();
                    while closed < below && open > 0 {
                        let counts = read.entry(closed).or_default();
                        trials.iter().for_each(|trials| trials.add_to(closed, counts));
                        (closed, open) = (closed + 1, open - 1);
                    }
                    current = None;
                    for _ in 0..count {
                        if open < TICKS - 1 {
                            current = Some(closed + open);
                            open += 1;
                        }
                    }
                }
            }
            for (naive, trials) in workers.iter().zip(&trials) {
                prop_assert_eq!(naive.floor, trials.watermark());
            }
        }
        // Whatever is open can be closed, and makes room.
        for (writer, naive) in writers.iter().zip(&workers) {
            naive.in_flight.iter().for_each(|(trial, is_answered)| writer.end(*trial, *is_answered));
            writer.close(closed + open);
        }
        for trials in &trials {
            prop_assert_eq!(trials.watermark(), closed + open);
        }
        for tick in FIRST..closed {
            let of = |counts: &std::collections::BTreeMap<u64, Counts>| counts.get(&tick).copied().unwrap_or_default();
            prop_assert_eq!(of(&read), of(&expected), "{}", tick);
        }
    }
}
