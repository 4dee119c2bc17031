//! The whole policy under a virtual clock: decisions, limits, breaker and what survives a restart, with a
//! canary that has outages, sidecars that fail, clients that leave, and a process that is stopped or killed
//! in the middle of it. After every step the promises are checked.
//!
//! Each run is drawn from a seed. One that fails prints it, and
//!
//!     SIMULATION_SEED=17 cargo test --test simulation
//!
//! does the same run again, and prints each step.

// A run that is done again says what happens in it.
#![allow(clippy::print_stderr)]

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use canary_router::{
    config::{Breaker, Breakers, Limits},
    policy::{
        Decision, Facts, FailureRule, Reason, Refusal, Rules, SidecarAnswer, SidecarStatuses,
        Target, Weight,
        breaker::{Rate, Settings, SlowCalls, State},
        decide::{after_sidecar, decide},
    },
    state::{
        Admission, Gate, Kept, Ledger, Permit, SharedProgress,
        admission::{Terms, Used},
        ledger::Look,
    },
};

const SEEDS: u64 = 300;
/// Of virtual time, before the canary is well for good.
const TROUBLE: Duration = Duration::from_secs(60);
/// Afterwards; longer than any wait.
const PEACE: Duration = Duration::from_secs(30);
const TICK: Duration = Duration::from_millis(20);

#[test]
fn the_promises_are_kept_whatever_happens() {
    if let Ok(seed) = std::env::var("SIMULATION_SEED") {
        let seed = seed.parse().expect("SIMULATION_SEED is a number");
        Simulation::new(seed, true).run();
        return;
    }
    let mut sum = Seen::default();
    for seed in 0..SEEDS {
        let run = catch_unwind(AssertUnwindSafe(|| Simulation::new(seed, false).run()));
        match run {
            Ok(seen) => sum.add(&seen),
            Err(panic) => {
                eprintln!("again: SIMULATION_SEED={seed} cargo test --test simulation");
                resume_unwind(panic);
            }
        }
    }
    // What did not happen was not checked either.
    eprintln!("{sum:?}");
    assert!(sum.0.iter().all(|&times| times > SEEDS / 4), "{sum:?}");
}

/// What happens, beside time.
#[derive(Debug, Clone, Copy)]
enum What {
    Canary,
    Failure,
    RefusedByLimit,
    RefusedByBreaker,
    Probe,
    /// A result of an earlier generation.
    Late,
    Opened,
    Closed,
    Crash,
    Restart,
    Abort,
}

/// How often what happened, in the order of [`What`].
#[derive(Debug, Clone, Copy, Default)]
struct Seen([u64; What::Abort as usize + 1]);

impl Seen {
    fn add(&mut self, other: &Seen) {
        for (sum, times) in self.0.iter_mut().zip(other.0) {
            *sum += times;
        }
    }

    fn note(&mut self, what: What, has_happened: bool) {
        self.0[what as usize] += u64::from(has_happened);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A client sends a request.
    Arrive,
    /// The sidecar has answered for one.
    Asked(SidecarSays),
    /// The canary's head has come.
    Answered(u64),
    /// The canary's last byte has come.
    Ended(u64),
    /// A client has left.
    Left(u64),
    /// The canary changes its mood.
    Turn,
    /// The state is looked at, and written.
    Write,
    /// The process is stopped, and another one started.
    Restart,
    /// The process is killed, and another one started.
    Crash,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum SidecarSays {
    Canary,
    Main,
    Nothing,
}

/// What the canary does with requests at the moment.
#[derive(Debug, Clone, Copy)]
struct Mood {
    /// Of 1,000.
    failing: u64,
    /// Of a head, at most.
    latency: Duration,
}

/// A request that the canary has.
struct InFlight {
    number: u64,
    permit: Permit,
    chosen: bool,
    is_probe: bool,
    generation: u64,
    status: u16,
    took: Duration,
}

struct Simulation {
    random: Random,
    now: Duration,
    queue: BinaryHeap<Reverse<(Duration, u64, Event)>>,
    number: u64,
    terms: Terms,
    permitted: usize,
    admission: Arc<Admission>,
    ledger: Ledger,
    /// What is on disk.
    disk: String,
    on_disk: Used,
    /// Failures of forced requests since then: nothing was reserved for them.
    forced_since: u64,
    /// The breaker's generation when the state was looked at last.
    looked_at: u64,
    mood: Mood,
    is_peace: bool,
    in_flight: Vec<InFlight>,
    /// Since the beginning, in all processes.
    chosen: u64,
    chosen_errors: u64,
    /// Errors of this process, and what was found when it began.
    charged: u64,
    seen: Seen,
    talks: bool,
}

impl Simulation {
    fn new(seed: u64, talks: bool) -> Simulation {
        let mut random = Random(seed);
        let limits = Limits {
            requests: random.one_in(2).then(|| 50 + random.below(3_000)),
            errors: random.one_in(2).then(|| 1 + random.below(60) as u32),
            counted: FailureRule::NotSuccess,
        };
        let permitted = 1 + random.below(4) as u32;
        let settings = Settings {
            failure_rate: Some(Rate(1 + random.below(10_000) as u32)),
            slow_calls: random.one_in(2).then(|| SlowCalls {
                rate: Rate(2_000 + random.below(8_000) as u32),
                duration: Duration::from_millis(100 + random.below(900)),
            }),
            failures_in_a_row: None,
            minimum_calls: 1 + random.below(20) as u32,
            window: Duration::from_secs(1 + random.below(10)),
            wait_open: Duration::from_millis(100 + random.below(3_000)),
            max_wait_open: Duration::from_secs(4),
            permitted_half_open: permitted,
        };
        let canary = random.below(4) > 0;
        let terms = Terms {
            limits,
            breakers: Breakers {
                canary: canary.then_some(Breaker {
                    settings,
                    failure: FailureRule::ServerError,
                }),
                main: None,
            },
            repeats: Rate(2_000),
        };
        let mut simulation = Simulation {
            random,
            now: Duration::ZERO,
            queue: BinaryHeap::new(),
            number: 0,
            terms,
            permitted: permitted as usize,
            admission: Admission::new(terms, Duration::ZERO),
            ledger: Ledger::new(Kept::default(), terms, SharedProgress::new(None)),
            disk: String::new(),
            on_disk: Used::default(),
            forced_since: 0,
            looked_at: 0,
            mood: Mood {
                failing: 0,
                latency: Duration::from_millis(50),
            },
            is_peace: false,
            in_flight: Vec::new(),
            chosen: 0,
            chosen_errors: 0,
            charged: 0,
            seen: Seen::default(),
            talks,
        };
        simulation.write();
        for event in [Event::Arrive, Event::Turn, Event::Write] {
            simulation.at(Duration::ZERO, event);
        }
        simulation
    }

    fn run(mut self) -> Seen {
        while let Some(Reverse((when, _, event))) = self.queue.pop() {
            if when > TROUBLE + PEACE {
                break;
            }
            self.now = when;
            self.is_peace = when > TROUBLE;
            let before = self.state();
            self.step(event);
            let after = self.state();
            if self.talks {
                eprintln!(
                    "{:?} {event:?}: {after:?}, {:?}",
                    self.now,
                    self.admission.used()
                );
            }
            self.seen
                .note(What::Opened, before != State::Open && after == State::Open);
            self.seen.note(
                What::Closed,
                before == State::HalfOpen && after == State::Closed,
            );
            self.check();
        }
        self.stop();
        // The canary was well for longer than any wait: nothing may be stuck.
        let barriers = self.admission.barriers(|| self.now);
        if !barriers.errors && !barriers.requests {
            assert_eq!(self.state(), State::Closed, "stuck");
        }
        self.seen
    }

    fn step(&mut self, event: Event) {
        match event {
            Event::Arrive => {
                self.arrive();
                let pause = self.random.below(60);
                self.after(pause, Event::Arrive);
            }
            Event::Asked(says) => self.decided(says),
            Event::Answered(number) => self.answered(number),
            Event::Ended(number) => self.ended(number),
            Event::Left(number) => {
                if let Some(request) = self.take(number) {
                    self.seen.note(What::Abort, true);
                    // Charged already, if its head was bad.
                    self.settle(request, drop);
                }
            }
            Event::Turn => {
                self.mood = Mood {
                    failing: match self.random.below(4) {
                        _ if self.is_peace => 0,
                        0 => 1_000,
                        1 => self.random.below(1_000),
                        _ => 0,
                    },
                    latency: Duration::from_millis(match self.random.below(4) {
                        0 if !self.is_peace => 3_000,
                        _ => 80,
                    }),
                };
                if !self.is_peace && self.random.one_in(3) {
                    let event = match self.random.one_in(2) {
                        true => Event::Crash,
                        false => Event::Restart,
                    };
                    let pause = self.random.below(3_000);
                    self.after(pause, event);
                }
                let pause = match self.is_peace {
                    true => 1_000_000,
                    false => self.random.below(10_000).min(TROUBLE.as_millis() as u64),
                };
                self.after(pause, Event::Turn);
                if !self.is_peace {
                    self.at(TROUBLE + TICK, Event::Turn);
                }
            }
            Event::Write => {
                self.write();
                self.at(self.now + TICK, Event::Write);
            }
            Event::Restart => {
                self.stop();
                self.seen.note(What::Restart, true);
                let disk = &mut self.disk;
                let admission = || Arc::clone(&self.admission);
                let _look = self
                    .ledger
                    .close(admission, self.now, wall(self.now), |text| {
                        *disk = text.into();
                        Ok::<_, ()>(())
                    });
                self.start();
            }
            Event::Crash => {
                self.seen.note(What::Crash, true);
                // What was in flight may have ended badly in front of its clients. The new process cannot
                // know, so it must not have counted on the contrary.
                let chosen = self.in_flight.iter().filter(|request| request.chosen);
                self.chosen_errors += chosen.filter(|request| !request.is_charged()).count() as u64;
                self.in_flight.clear();
                self.start();
            }
        }
    }

    fn arrive(&mut self) {
        let forced = match self.random.below(20) {
            0 => Some(Target::Canary),
            1 => Some(Target::Main),
            _ => None,
        };
        let facts = Facts {
            forced,
            barriers: self.admission.barriers(|| self.now),
            weight: Weight::ALL,
        };
        let rules = Rules {
            sidecar: Some(SidecarStatuses::default()),
        };
        match decide(facts, rules) {
            Decision::AskSidecar(_) => {
                let says = match self.random.below(10) {
                    0 => SidecarSays::Nothing,
                    1 | 2 => SidecarSays::Main,
                    _ => SidecarSays::Canary,
                };
                let pause = self.random.below(20);
                self.after(pause, Event::Asked(says));
            }
            Decision::Route(Reason::HeaderTrue) => {
                let permit = self.admission.admit_forced();
                self.send(permit, false);
            }
            Decision::Route(Reason::BreakerOpen) => {
                self.seen.note(What::RefusedByBreaker, true);
            }
            Decision::Route(reason) => assert_eq!(reason.target(), Target::Main),
            Decision::Eligible => unreachable!("there is a sidecar"),
        }
    }

    fn decided(&mut self, says: SidecarSays) {
        let answer = match says {
            SidecarSays::Canary => SidecarAnswer::Status(200),
            SidecarSays::Main => SidecarAnswer::Status(204),
            SidecarSays::Nothing => SidecarAnswer::Failed,
        };
        let reason = after_sidecar(answer, SidecarStatuses::default());
        if reason.target() == Target::Main {
            return;
        }
        let before = self.state();
        let refuses = self.gate().and_then(|gate| gate.refuses(|| self.now));
        match self.admission.admit(|| self.now) {
            Ok(permit) => {
                assert_eq!(refuses, None, "let through by a breaker that refuses");
                assert!(before != State::Open || self.state() == State::HalfOpen);
                self.chosen += 1;
                self.send(permit, true);
            }
            Err(refusal) => {
                assert_eq!(reason.demoted(refusal).target(), Target::Main);
                self.seen
                    .note(What::RefusedByLimit, refusal == Refusal::Limit);
                self.seen
                    .note(What::RefusedByBreaker, refusal == Refusal::Breaker);
            }
        }
    }

    fn send(&mut self, permit: Permit, chosen: bool) {
        self.seen.note(What::Canary, true);
        let is_probe = chosen && self.state() == State::HalfOpen;
        self.seen.note(What::Probe, is_probe);
        self.number += 1;
        let number = self.number;
        let took = Duration::from_millis(self.random.below(self.mood.latency.as_millis() as u64));
        let status = match self.random.below(1_000) < self.mood.failing {
            true => 500 + self.random.below(4) as u16,
            // A bad one for the limit, a good one for the breaker.
            false if !self.is_peace && self.random.one_in(100) => 404,
            false => 200,
        };
        self.in_flight.push(InFlight {
            number,
            permit,
            chosen,
            is_probe,
            generation: self.generation(),
            status,
            took,
        });
        self.at(self.now + took, Event::Answered(number));
        if self.random.one_in(15) {
            let pause = self.random.below(2 * self.mood.latency.as_millis() as u64);
            self.after(pause, Event::Left(number));
        }
    }

    fn answered(&mut self, number: u64) {
        let Some(mut request) = self.take(number) else {
            return;
        };
        let is_failure = request.status != 200;
        if is_failure {
            self.seen.note(What::Failure, true);
            self.charge(request.chosen);
        }
        let now = self.now;
        self.watched(request.generation, request.is_probe, |simulation| {
            let chance = simulation.random.chance();
            let (status, took) = (request.status, request.took);
            request.permit.answered(status, took, now, chance);
            simulation.in_flight.push(request);
        });
        let pause = self.random.below(300);
        self.after(pause, Event::Ended(number));
    }

    fn ended(&mut self, number: u64) {
        let Some(request) = self.take(number) else {
            return;
        };
        let now = self.now;
        let chance = self.random.chance();
        // A body that breaks off fails a request that was none yet.
        if request.status == 200 && !self.is_peace && self.random.one_in(100) {
            self.seen.note(What::Failure, true);
            self.charge(request.chosen);
            self.settle(request, |mut permit| {
                permit.failed(Duration::ZERO, now, chance)
            });
        } else {
            self.settle(request, |permit| permit.completed(now, chance));
        }
    }

    fn charge(&mut self, chosen: bool) {
        self.charged += 1;
        match chosen {
            true => self.chosen_errors += 1,
            false => self.forced_since += 1,
        }
    }

    fn settle(&mut self, request: InFlight, settle: impl FnOnce(Permit)) {
        let (generation, is_probe) = (request.generation, request.is_probe);
        let InFlight { permit, .. } = request;
        self.watched(generation, is_probe, |_| settle(permit));
    }

    /// Does what ends a request, or may; a result of an earlier generation must change nothing, and in
    /// half-open none that is not a probe's.
    fn watched(&mut self, generation: u64, is_probe: bool, act: impl FnOnce(&mut Simulation)) {
        let breaker = |simulation: &Simulation| {
            simulation
                .gate()
                .map(|gate| gate.with(|breaker| breaker.clone()))
        };
        let before = breaker(self);
        let late = generation != self.generation();
        let beside = self.state() == State::HalfOpen && !is_probe;
        act(self);
        if late || beside {
            self.seen.note(What::Late, late);
            assert_eq!(breaker(self), before, "a late result changed something");
        }
    }

    fn check(&self) {
        let Limits {
            requests, errors, ..
        } = self.terms.limits;
        if let Some(limit) = requests {
            assert!(self.chosen <= limit, "{} of {limit} requests", self.chosen);
        }
        if let Some(limit) = errors {
            let pending = self.in_flight.iter().filter(|request| request.chosen);
            let pending = pending.filter(|request| !request.is_charged()).count() as u64;
            let worst = self.chosen_errors + pending;
            assert!(worst <= limit.into(), "{worst} of {limit} errors possible");
        }
        let used = self.admission.used();
        if requests.is_some() {
            assert!(
                self.on_disk.requests >= used.requests,
                "a crash would forget requests"
            );
        }
        if errors.is_some() {
            let known = self.on_disk.errors + self.forced_since;
            assert!(known >= used.errors, "a crash would forget errors");
        }
        let generation = self.generation();
        let probes = self
            .in_flight
            .iter()
            .filter(|request| request.is_probe && request.generation == generation);
        let probes = probes.count();
        assert!(probes <= self.permitted, "{probes} probes");
    }

    /// Everything in flight ends, and leaves nothing behind.
    fn stop(&mut self) {
        while let Some(request) = self.in_flight.pop() {
            self.settle(request, drop);
        }
        if self.terms.limits.errors.is_some() {
            assert_eq!(
                self.admission.used().errors,
                self.charged,
                "a reservation is lost"
            );
        }
        if let Some(gate) = self.gate()
            && self.state() == State::HalfOpen
        {
            assert_eq!(gate.refuses(|| self.now), None, "a probe is lost");
        }
    }

    fn start(&mut self) {
        let known = self.generation() == self.looked_at;
        let was_closed = self.state() == State::Closed;
        let kept = Kept::parse(&self.disk, wall(self.now)).expect("written by the same release");
        self.admission = Admission::restore(self.terms, &kept.restored, self.now);
        if known {
            let is_closed = self.state() == State::Closed;
            assert_eq!(is_closed, was_closed, "a crash has moved the breaker");
        }
        self.ledger = Ledger::new(kept.clone(), self.terms, SharedProgress::new(None));
        self.charged = match self.terms.limits.errors {
            Some(_) => kept.restored.used.errors,
            None => 0,
        };
        self.write();
    }

    fn write(&mut self) {
        let disk = &mut self.disk;
        let admission = || Arc::clone(&self.admission);
        let look = self
            .ledger
            .look(admission, self.now, wall(self.now), |text| {
                *disk = text.into();
                Ok::<_, ()>(())
            });
        if look == Look::Written {
            self.on_disk = Kept::parse(disk, wall(self.now))
                .expect("it was just written")
                .restored
                .used;
        }
        self.forced_since = 0;
        self.looked_at = self.generation();
    }

    fn take(&mut self, number: u64) -> Option<InFlight> {
        let at = self
            .in_flight
            .iter()
            .position(|request| request.number == number)?;
        Some(self.in_flight.swap_remove(at))
    }

    fn gate(&self) -> Option<&Gate> {
        self.admission.gate(Target::Canary)
    }

    fn state(&self) -> State {
        self.gate()
            .map_or(State::Closed, |gate| gate.with(|breaker| breaker.state()))
    }

    fn generation(&self) -> u64 {
        self.gate()
            .map_or(0, |gate| gate.with(|breaker| breaker.generation()))
    }

    fn after(&mut self, milliseconds: u64, event: Event) {
        self.at(self.now + Duration::from_millis(milliseconds), event);
    }

    fn at(&mut self, when: Duration, event: Event) {
        self.number += 1;
        self.queue.push(Reverse((when, self.number, event)));
    }
}

impl InFlight {
    /// Whether its error, if it is one, is counted by now.
    fn is_charged(&self) -> bool {
        !self.permit.reserves()
    }
}

fn wall(now: Duration) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000) + now
}

/// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 up to but not including `limit`, or 0.
    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    fn one_in(&mut self, many: u64) -> bool {
        self.below(many) == 0
    }

    fn chance(&mut self) -> f64 {
        self.below(1_000) as f64 / 1_000.0
    }
}
