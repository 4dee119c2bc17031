use super::*;

const WINDOW: Duration = Duration::from_secs(10);
const WAIT: Duration = Duration::from_secs(30);
const LONGEST: Duration = Duration::from_secs(70);
const SLOW: Duration = Duration::from_secs(1);

const ZERO: Duration = Duration::ZERO;

fn settings() -> Settings {
    Settings {
        failure_rate: Some(Rate(5_000)),
        slow_calls: None,
        failures_in_a_row: None,
        minimum_calls: 2,
        window: WINDOW,
        wait_open: WAIT,
        max_wait_open: LONGEST,
        permitted_half_open: 2,
    }
}

fn slow_settings() -> Settings {
    Settings {
        slow_calls: Some(SlowCalls {
            rate: Rate(10_000),
            duration: SLOW,
        }),
        ..settings()
    }
}

fn in_a_row_settings() -> Settings {
    Settings {
        failure_rate: None,
        failures_in_a_row: Some(2),
        ..settings()
    }
}

/// One that has just opened, at `now`.
fn opened(settings: Settings, now: Duration) -> Breaker {
    let mut breaker = Breaker::new(settings, now);
    fail(
        &mut breaker,
        now,
        settings
            .minimum_calls
            .max(settings.failures_in_a_row.unwrap_or(0)),
    );
    assert_eq!(breaker.state(), State::Open);
    breaker
}

fn fail(breaker: &mut Breaker, now: Duration, times: u32) {
    for _ in 0..times {
        let ticket = breaker.admit(now).unwrap();
        breaker.settle(ticket, Outcome::Failure, ZERO, now, 0.0);
    }
}

/// Every sequence of six operations from each state, for every small setting, beside a shadow that keeps everything.
mod enumeration {
    use super::*;

    #[derive(Clone)]
    struct World {
        breaker: Breaker,
        now: Duration,
        /// Tickets that are out, with what they were given for.
        out: Vec<Ticket>,
        /// Calls that counted since it was closed: when, failed, slow.
        calls: Vec<(Duration, bool, bool)>,
        /// Good probes since it was half-open.
        good_probes: u32,
        /// Before this nobody is let through.
        not_before: Duration,
    }

    #[derive(Debug, Clone, Copy)]
    enum Op {
        Admit,
        Force,
        /// The oldest or the newest ticket ends.
        Settle(bool, Outcome, Duration),
        Wait(Duration),
    }

    const OPS: [Op; 14] = {
        use Op::*;
        use Outcome::*;
        let quick = ZERO;
        let slow = Duration::from_secs(2);
        [
            Admit,
            Force,
            Settle(true, Success, quick),
            Settle(true, Success, slow),
            Settle(true, Failure, quick),
            Settle(true, Ignored, quick),
            Settle(true, Ignored, slow),
            Settle(false, Success, quick),
            Settle(false, Success, slow),
            Settle(false, Failure, quick),
            Settle(false, Ignored, quick),
            Wait(Duration::from_secs(1)),
            Wait(WINDOW),
            Wait(LONGEST),
        ]
    };

    impl World {
        fn in_flight(&self) -> u32 {
            let generation = self.breaker.generation;
            let ours = |ticket: &&Ticket| ticket.is_probe && ticket.generation == generation;
            self.out.iter().filter(ours).count() as u32
        }

        fn window(&self) -> (u32, u32, u32) {
            let newest = self.now.as_millis() / 1_000;
            let mut counts = (0, 0, 0);
            for &(at, failed, slow) in &self.calls {
                if at.as_millis() / 1_000 + 10 > newest {
                    counts.0 += 1;
                    counts.1 += u32::from(failed);
                    counts.2 += u32::from(slow);
                }
            }
            counts
        }

        fn is_too_bad(&self, settings: Settings) -> bool {
            let (calls, failures, slow) = self.window();
            let failing = settings.failure_rate.is_some() && 2 * failures >= calls;
            let slow = settings.slow_calls.is_some() && slow >= calls;
            let row = self.calls.iter().rev().take_while(|call| call.1).count();
            calls >= settings.minimum_calls && (failing || slow)
                || settings
                    .failures_in_a_row
                    .is_some_and(|most| row >= most as usize)
        }

        /// Does `op`; false where it makes no sense.
        fn step(&mut self, op: Op) -> bool {
            let settings = self.breaker.settings;
            let before = self.breaker.clone();
            match op {
                Op::Wait(time) => {
                    self.now += time;
                    return true;
                }
                Op::Force => {
                    self.out.push(self.breaker.forced());
                    assert_eq!(self.breaker, before);
                }
                Op::Admit => {
                    let refused = self.breaker.refuses(self.now);
                    let admitted = self.breaker.admit(self.now);
                    assert_eq!(admitted.err(), refused);
                    match (before.state(), admitted) {
                        (State::Closed, admitted) => {
                            assert!(!admitted.unwrap().is_probe);
                            assert_eq!(self.breaker, before);
                        }
                        (State::Open, Ok(ticket)) => {
                            assert!(self.now >= self.not_before && ticket.is_probe);
                            assert_eq!(self.breaker.state(), State::HalfOpen);
                            self.good_probes = 0;
                        }
                        (State::Open, Err(refused)) => {
                            assert!(self.now < self.not_before);
                            assert_eq!(self.now + refused.retry_after, self.not_before);
                        }
                        (State::HalfOpen, Ok(ticket)) => assert!(ticket.is_probe),
                        (State::HalfOpen, Err(_)) => {
                            let taken = self.in_flight() + self.good_probes;
                            assert_eq!(taken, settings.permitted_half_open);
                        }
                    }
                    match admitted {
                        Ok(ticket) => self.out.push(ticket),
                        Err(_) => assert_eq!(self.breaker, before),
                    }
                }
                Op::Settle(oldest, outcome, took) => {
                    if self.out.is_empty() || !oldest && self.out.len() == 1 {
                        return false;
                    }
                    let at = if oldest { 0 } else { self.out.len() - 1 };
                    let ticket = self.out.remove(at);
                    self.breaker.settle(ticket, outcome, took, self.now, 0.0);
                    self.check_settled(&before, ticket, outcome, took);
                }
            }
            if self.breaker.state() == State::HalfOpen {
                let taken = self.in_flight() + self.good_probes;
                assert!(taken <= settings.permitted_half_open);
                // None is lost: when all that are out end without a word, there is room.
                let mut idle = self.breaker.clone();
                for ticket in &self.out {
                    idle.settle(*ticket, Outcome::Ignored, ZERO, self.now, 0.0);
                }
                assert_eq!(idle.refuses(self.now), None);
            }
            true
        }

        fn check_settled(
            &mut self,
            before: &Breaker,
            ticket: Ticket,
            outcome: Outcome,
            took: Duration,
        ) {
            let settings = before.settings;
            let slow = settings.slow_calls.is_some() && took > SLOW;
            let failed = outcome == Outcome::Failure;
            if ticket.generation != before.generation {
                assert_eq!(&self.breaker, before, "a late result changed something");
                return;
            }
            match before.state() {
                State::Open => assert_eq!(&self.breaker, before),
                State::Closed => {
                    if outcome == Outcome::Ignored {
                        assert_eq!(&self.breaker, before);
                        return;
                    }
                    self.calls.push((self.now, failed, slow));
                    let expected = match self.is_too_bad(settings) {
                        true => State::Open,
                        false => State::Closed,
                    };
                    assert_eq!(self.breaker.state(), expected);
                }
                State::HalfOpen if !ticket.is_probe => assert_eq!(&self.breaker, before),
                State::HalfOpen => {
                    let expected = match outcome {
                        Outcome::Ignored => State::HalfOpen,
                        Outcome::Success if !slow => {
                            self.good_probes += 1;
                            match self.good_probes == settings.permitted_half_open {
                                true => State::Closed,
                                false => State::HalfOpen,
                            }
                        }
                        Outcome::Success | Outcome::Failure => State::Open,
                    };
                    assert_eq!(self.breaker.state(), expected);
                }
            }
            if self.breaker.state() != before.state() {
                assert_eq!(self.breaker.generation, before.generation + 1);
                self.calls.clear();
                if let Phase::Open { until } = self.breaker.phase {
                    assert!(until - self.now >= WAIT && until - self.now <= LONGEST);
                    self.not_before = until;
                }
            }
        }
    }

    fn explore(world: &World, depth: u32, visited: &mut u64, seen: &mut [u64; 3]) {
        *visited += 1;
        seen[world.breaker.state().index()] += 1;
        if depth == 0 {
            return;
        }
        for op in OPS {
            let mut next = world.clone();
            if next.step(op) {
                explore(&next, depth - 1, visited, seen);
            }
        }
    }

    #[test]
    fn no_sequence_of_operations_breaks_what_it_keeps() {
        let mut visited = 0;
        let mut seen = [0; 3];
        for (permitted_half_open, minimum_calls) in [(1, 1), (2, 1), (1, 2), (2, 2)] {
            for settings in [settings(), slow_settings(), in_a_row_settings()] {
                let settings = Settings {
                    permitted_half_open,
                    minimum_calls,
                    ..settings
                };
                let closed = Breaker::new(settings, ZERO);
                // From the others on, the same depth reaches what follows them.
                let open = opened(settings, ZERO);
                for (breaker, now) in [(closed, ZERO), (open.clone(), ZERO), (open, WAIT)] {
                    let world = World {
                        breaker,
                        now,
                        out: Vec::new(),
                        calls: Vec::new(),
                        good_probes: 0,
                        not_before: WAIT,
                    };
                    explore(&world, 6, &mut visited, &mut seen);
                }
            }
        }
        assert!(
            visited > 1_000_000,
            "the enumeration did not run: {visited}"
        );
        assert!(seen.iter().all(|&times| times > 10_000), "{seen:?}");
    }
}

#[test]
fn it_opens_at_the_failure_rate_and_not_below_the_minimum_of_calls() {
    let settings = Settings {
        minimum_calls: 20,
        ..settings()
    };
    for (successes, failures, expected) in [
        (0, 19, State::Closed),
        (0, 20, State::Open),
        (11, 10, State::Closed),
        (10, 10, State::Open),
    ] {
        let mut breaker = Breaker::new(settings, ZERO);
        for i in 0..successes + failures {
            let ticket = breaker.admit(ZERO).unwrap();
            let outcome = match i < successes {
                true => Outcome::Success,
                false => Outcome::Failure,
            };
            breaker.settle(ticket, outcome, ZERO, ZERO, 0.0);
        }
        assert_eq!(breaker.state(), expected, "{successes} {failures}");
    }
}

#[test]
fn failures_that_have_left_the_window_do_not_open_it() {
    let mut breaker = Breaker::new(settings(), ZERO);
    fail(&mut breaker, ZERO, 1);
    fail(&mut breaker, WINDOW, 1);
    assert_eq!(breaker.state(), State::Closed);
    fail(&mut breaker, WINDOW, 1);
    assert_eq!(breaker.state(), State::Open);
}

#[test]
fn failures_in_a_row_open_it_however_much_went_well_before() {
    let mut breaker = Breaker::new(in_a_row_settings(), ZERO);
    let end = |breaker: &mut Breaker, outcome| {
        let ticket = breaker.admit(ZERO).unwrap();
        breaker.settle(ticket, outcome, ZERO, ZERO, 0.0);
    };
    for _ in 0..1_000 {
        end(&mut breaker, Outcome::Success);
        end(&mut breaker, Outcome::Failure);
    }
    end(&mut breaker, Outcome::Ignored);
    assert_eq!(breaker.state(), State::Closed);
    end(&mut breaker, Outcome::Failure);
    assert_eq!(breaker.state(), State::Open);
}

#[test]
fn slow_calls_open_it_and_a_slow_probe_opens_it_again() {
    let mut breaker = Breaker::new(slow_settings(), ZERO);
    for took in [SLOW, SLOW + SLOW, SLOW + SLOW, SLOW + SLOW] {
        assert_eq!(breaker.state(), State::Closed);
        let ticket = breaker.admit(ZERO).unwrap();
        breaker.settle(ticket, Outcome::Success, took, ZERO, 0.0);
        // The first was not too slow, so the window has to be rid of it.
        if took == SLOW {
            breaker.reset(ZERO);
        }
        if breaker.state() == State::Open {
            break;
        }
    }
    assert_eq!(breaker.state(), State::Open);
    let probe = breaker.admit(WAIT).unwrap();
    breaker.settle(probe, Outcome::Success, SLOW + SLOW, WAIT, 0.0);
    assert_eq!(breaker.state(), State::Open);
}

#[test]
fn the_wait_doubles_up_to_its_limit_and_starts_again_after_a_closed_spell() {
    let settings = Settings {
        permitted_half_open: 1,
        ..settings()
    };
    let mut breaker = opened(settings, ZERO);
    let mut now = ZERO;
    for expected in [30, 60, 70, 70] {
        let refused = breaker.refuses(now).unwrap();
        assert_eq!(refused.retry_after, Duration::from_secs(expected));
        now += refused.retry_after;
        let probe = breaker.admit(now).unwrap();
        breaker.settle(probe, Outcome::Failure, ZERO, now, 0.0);
    }
    for (spell, expected) in [(69, 70), (70, 30)] {
        now += LONGEST;
        let probe = breaker.admit(now).unwrap();
        breaker.settle(probe, Outcome::Success, ZERO, now, 0.0);
        assert_eq!(breaker.state(), State::Closed);
        now += Duration::from_secs(spell);
        fail(&mut breaker, now, settings.minimum_calls);
        let refused = breaker.refuses(now).unwrap();
        assert_eq!(
            refused.retry_after,
            Duration::from_secs(expected),
            "{spell}"
        );
    }
}

#[test]
fn the_jitter_makes_the_wait_up_to_a_tenth_longer() {
    for (chance, expected) in [(0.0, 30_000), (0.5, 31_500), (1.0, 33_000), (7.0, 33_000)] {
        let mut breaker = Breaker::new(settings(), ZERO);
        for _ in 0..2 {
            let ticket = breaker.admit(ZERO).unwrap();
            breaker.settle(ticket, Outcome::Failure, ZERO, ZERO, chance);
        }
        let refused = breaker.refuses(ZERO).unwrap();
        assert_eq!(refused.retry_after, Duration::from_millis(expected));
    }
}

#[test]
fn what_is_saved_is_restored_at_another_moment() {
    let later = Duration::from_secs(1_000_000);
    let breaker = opened(settings(), ZERO);
    let saved = breaker.save(Duration::from_secs(10));
    let restored = Breaker::restore(settings(), saved, later);
    assert_eq!(restored.state(), State::Open);
    let refused = restored.refuses(later).unwrap();
    assert_eq!(refused.retry_after, WAIT - Duration::from_secs(10));
    assert_eq!(restored.save(later), saved);

    let mut probed = opened(settings(), ZERO);
    let _lost = probed.admit(WAIT).unwrap();
    let mut restored = Breaker::restore(settings(), probed.save(WAIT), later);
    assert_eq!(restored.state(), State::Open);
    assert!(restored.admit(later).is_ok(), "it may be probed at once");

    let closed = Breaker::new(settings(), ZERO).save(ZERO);
    assert_eq!(
        Breaker::restore(settings(), closed, later).state(),
        State::Closed
    );
}

#[test]
fn a_saved_wait_beyond_reason_is_cut_to_the_longest_there_is() {
    let saved = Saved {
        open_for: Some(Duration::from_secs(1 << 40)),
        openings: u32::MAX,
    };
    let restored = Breaker::restore(settings(), saved, ZERO);
    let refused = restored.refuses(ZERO).unwrap();
    assert_eq!(refused.retry_after, with_jitter(LONGEST, 1.0));
}

#[test]
fn every_change_of_state_is_counted_once() {
    let mut breaker = opened(settings(), ZERO);
    for _ in 0..2 {
        let probe = breaker.admit(WAIT).unwrap();
        breaker.settle(probe, Outcome::Success, ZERO, WAIT, 0.0);
    }
    fail(&mut breaker, WAIT, 2);
    breaker.reset(WAIT);
    breaker.reset(WAIT);
    let [closed, open, half_open] = State::ALL.map(State::index);
    let transitions = breaker.transitions();
    assert_eq!(transitions[closed][open], 2);
    assert_eq!(transitions[open][half_open], 1);
    assert_eq!(transitions[half_open][closed], 1);
    assert_eq!(transitions[open][closed], 1);
    assert_eq!(transitions.iter().flatten().sum::<u64>(), 5);
}

mod other_settings {
    use super::*;

    #[test]
    fn what_was_counted_counts_on_unless_the_window_has_another_length() {
        for (window, opens) in [(WINDOW, true), (2 * WINDOW, false)] {
            let mut breaker = Breaker::new(settings(), ZERO);
            fail(&mut breaker, ZERO, 1);
            let other = Settings {
                window,
                ..settings()
            };
            breaker.set(other, ZERO);
            fail(&mut breaker, ZERO, 1);
            assert_eq!(breaker.state() == State::Open, opens);
        }
    }

    #[test]
    fn one_that_is_open_waits_no_longer_than_the_new_ones_allow() {
        let mut breaker = opened(settings(), ZERO);
        breaker.set(settings(), ZERO);
        assert!(breaker.refuses(WAIT - Duration::from_millis(1)).is_some());
        let short = Duration::from_secs(10);
        let other = Settings {
            wait_open: short,
            max_wait_open: short,
            ..settings()
        };
        breaker.set(other, ZERO);
        assert!(breaker.refuses(Duration::from_secs(9)).is_some());
        assert!(breaker.refuses(Duration::from_secs(11)).is_none());
    }

    #[test]
    fn probes_go_on_and_may_be_enough_by_now() {
        let mut breaker = opened(settings(), ZERO);
        let (one, other) = (breaker.admit(WAIT).unwrap(), breaker.admit(WAIT).unwrap());
        breaker.settle(one, Outcome::Success, ZERO, WAIT, 0.0);
        let fewer = Settings {
            permitted_half_open: 1,
            ..settings()
        };
        breaker.set(fewer, WAIT);
        assert_eq!(breaker.state(), State::Closed);
        breaker.settle(other, Outcome::Failure, ZERO, WAIT, 0.0);
        assert_eq!(breaker.state(), State::Closed, "that was a probe's");

        let mut breaker = opened(settings(), ZERO);
        let probe = breaker.admit(WAIT).unwrap();
        let more = Settings {
            permitted_half_open: 3,
            ..settings()
        };
        breaker.set(more, WAIT);
        assert!(breaker.admit(WAIT).is_ok() && breaker.admit(WAIT).is_ok());
        assert!(breaker.admit(WAIT).is_err());
        breaker.settle(probe, Outcome::Success, ZERO, WAIT, 0.0);
        assert_eq!(breaker.state(), State::HalfOpen);
    }
}
