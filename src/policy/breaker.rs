//! A circuit breaker of three states (M. Nygard, *Release It!*, chapter 5): *closed* lets calls through
//! and watches how they end; *open* refuses them; *half-open* lets a few through, as probes.
//!
//! Who may call gets a [`Ticket`] and brings it back with how the call ended. A ticket is worth something
//! only in the generation that gave it out, and each change of state begins a new one: a result that comes
//! late changes nothing. A moment is a [`Duration`] since any fixed one; the only change that time makes
//! by itself is that an open breaker may be probed, and that happens when somebody asks.
//!
//! It keeps:
//! * there are never more probes in flight than `permitted_half_open`, and none is lost: each ends by
//!   its ticket;
//! * below `minimum_calls` in the window no share opens it;
//! * while open it lets nobody through before its time.

use std::time::Duration;

use super::{Outcome, window::Window};

/// When it opens, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// The share of failures in the window that opens it.
    pub failure_rate: Option<Rate>,
    /// The share of slow calls in the window that opens it.
    pub slow_calls: Option<SlowCalls>,
    /// So many failures without a success between open it, whatever else is in the window.
    pub failures_in_a_row: Option<u32>,
    /// With fewer calls than this in the window no share opens it; at least 1.
    pub minimum_calls: u32,
    /// How far back it looks.
    pub window: Duration,
    /// How long it stays open at first. Doubles at each opening that follows a short closed spell.
    pub wait_open: Duration,
    /// The longest that it stays open, but for the jitter.
    pub max_wait_open: Duration,
    /// So many probes must succeed for it to close, and so many are in flight at most; at least 1.
    pub permitted_half_open: u32,
}

/// Which calls are slow, and how many of them are too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlowCalls {
    /// The share in the window that opens it.
    pub rate: Rate,
    /// A call that takes longer is slow.
    pub duration: Duration,
}

/// A share in hundredths of a percent, 1 to 10,000.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rate(pub u32);

impl Rate {
    /// Whether `part` is no more than this share of `of`.
    pub fn has_room(self, part: u64, of: u64) -> bool {
        part * 10_000 <= u64::from(self.0) * of
    }

    fn is_reached(self, part: u64, of: u64) -> bool {
        part * 10_000 >= u64::from(self.0) * of
    }
}

/// The three states: the closed set behind the `state` label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Calls go through.
    Closed,
    /// None does.
    Open,
    /// Probes do.
    HalfOpen,
}

impl State {
    /// All of them, in the order of [`State::index`].
    pub const ALL: [State; 3] = [State::Closed, State::Open, State::HalfOpen];

    /// All changes from one to another that there are. An operator can close it from the other two.
    pub const TRANSITIONS: [(State, State); 5] = [
        (State::Closed, State::Open),
        (State::Open, State::HalfOpen),
        (State::Open, State::Closed),
        (State::HalfOpen, State::Open),
        (State::HalfOpen, State::Closed),
    ];

    /// A dense index.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The value of the label.
    pub const fn label(self) -> &'static str {
        match self {
            State::Closed => "closed",
            State::Open => "open",
            State::HalfOpen => "half_open",
        }
    }
}

/// The circuit breaker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Breaker {
    settings: Settings,
    phase: Phase,
    /// The calls of this closed spell, or of the last one.
    window: Window,
    generation: u64,
    /// How often it has opened without a closed spell between that was as long as the wait.
    openings: u32,
    transitions: Transitions,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    Closed {
        since: Duration,
        failures_in_a_row: u32,
    },
    Open {
        until: Duration,
    },
    HalfOpen {
        in_flight: u32,
        succeeded: u32,
    },
}

/// How often each change of state has happened, by [`State::index`] of where from and where to.
pub type Transitions = [[u64; State::ALL.len()]; State::ALL.len()];

/// Lets one call through; see [`Breaker::settle`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[must_use = "a probe that is not settled is missing for ever"]
pub struct Ticket {
    generation: u64,
    is_probe: bool,
}

impl Ticket {
    /// For a call that is no probe: all that there are while the breaker is closed.
    pub const fn ordinary(generation: u64) -> Ticket {
        Ticket {
            generation,
            is_probe: false,
        }
    }

    /// Whether it is for one of the few calls of a half-open breaker.
    pub const fn is_probe(self) -> bool {
        self.is_probe
    }
}

/// No call now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// When it is worth asking again, as far as is known: zero where that depends on the probes.
    pub retry_after: Duration,
}

/// What outlives a restart of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Saved {
    /// If it was not closed: how much longer nobody is let through.
    pub open_for: Option<Duration>,
    /// How often it has opened in a row.
    pub openings: u32,
}

impl Breaker {
    /// A closed one.
    pub fn new(settings: Settings, now: Duration) -> Breaker {
        Breaker {
            settings,
            phase: closed(now),
            window: Window::new(settings.window),
            generation: 0,
            openings: 0,
            transitions: Transitions::default(),
        }
    }

    /// As it was when it was [saved](Breaker::save). One that was half-open is open, and may be probed at
    /// once: its probes are gone.
    pub fn restore(settings: Settings, saved: Saved, now: Duration) -> Breaker {
        let mut breaker = Breaker::new(settings, now);
        breaker.openings = saved.openings;
        if let Some(wait) = saved.open_for {
            let longest = with_jitter(settings.max_wait_open, 1.0);
            breaker.phase = Phase::Open {
                until: now + wait.min(longest),
            };
        }
        breaker
    }

    /// Goes on by other rules, from where it stands. Who is open stays so for as long as the longest wait by
    /// the new rules, at most. Where the window has another length, what was in it counts no more.
    pub fn set(&mut self, settings: Settings, now: Duration) {
        if settings.window != self.settings.window {
            self.window = Window::new(settings.window);
        }
        if let Phase::Open { until } = &mut self.phase {
            *until = (*until).min(now + with_jitter(settings.max_wait_open, 1.0));
        }
        self.settings = settings;
        // Of probes that have succeeded there may be enough by now.
        if let Phase::HalfOpen { succeeded, .. } = self.phase
            && succeeded >= settings.permitted_half_open
        {
            self.enter(closed(now));
        }
    }

    /// What is to be kept of it.
    pub fn save(&self, now: Duration) -> Saved {
        Saved {
            open_for: match self.phase {
                Phase::Closed { .. } => None,
                Phase::Open { until } => Some(until.saturating_sub(now)),
                Phase::HalfOpen { .. } => Some(Duration::ZERO),
            },
            openings: self.openings,
        }
    }

    /// The state. An open breaker stays open until somebody asks for a ticket.
    pub fn state(&self) -> State {
        match self.phase {
            Phase::Closed { .. } => State::Closed,
            Phase::Open { .. } => State::Open,
            Phase::HalfOpen { .. } => State::HalfOpen,
        }
    }

    /// Whether calls go through without being probes.
    pub fn is_closed(&self) -> bool {
        self.state() == State::Closed
    }

    /// Of tickets that are given out now.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// How often each change of state has happened.
    pub fn transitions(&self) -> &Transitions {
        &self.transitions
    }

    /// Whether [`admit`](Breaker::admit) would refuse, and nothing else.
    pub fn refuses(&self, now: Duration) -> Option<Refused> {
        match self.phase {
            Phase::Closed { .. } => None,
            Phase::Open { until } if now >= until => None,
            Phase::Open { until } => Some(Refused {
                retry_after: until - now,
            }),
            Phase::HalfOpen {
                in_flight,
                succeeded,
            } if in_flight + succeeded < self.settings.permitted_half_open => None,
            Phase::HalfOpen { .. } => Some(Refused {
                retry_after: Duration::ZERO,
            }),
        }
    }

    /// Asks to make a call. Whoever asks an open breaker when its time has come makes it half-open.
    ///
    /// # Errors
    /// It is open, or all probes are out.
    pub fn admit(&mut self, now: Duration) -> Result<Ticket, Refused> {
        if let Some(refused) = self.refuses(now) {
            return Err(refused);
        }
        if let Phase::Open { .. } = self.phase {
            self.enter(Phase::HalfOpen {
                in_flight: 0,
                succeeded: 0,
            });
        }
        let is_probe = match &mut self.phase {
            Phase::HalfOpen { in_flight, .. } => {
                *in_flight += 1;
                true
            }
            Phase::Closed { .. } | Phase::Open { .. } => false,
        };
        Ok(Ticket {
            generation: self.generation,
            is_probe,
        })
    }

    /// For a call that is made whatever the state is. It is no probe: it counts only while the breaker
    /// is closed.
    pub fn forced(&self) -> Ticket {
        Ticket::ordinary(self.generation)
    }

    /// A call has ended, `took` after it began. A call that was [ignored](Outcome::Ignored) says nothing, but
    /// gives its place back. `chance`, from 0 to 1, is for the jitter, should it open.
    ///
    /// A probe that is slow has failed, where slow calls count at all.
    pub fn settle(
        &mut self,
        ticket: Ticket,
        outcome: Outcome,
        took: Duration,
        now: Duration,
        chance: f64,
    ) {
        if ticket.generation != self.generation {
            return;
        }
        let settings = self.settings;
        let slow = settings.slow_calls.is_some_and(|slow| took > slow.duration);
        let failed = outcome == Outcome::Failure;
        match &mut self.phase {
            Phase::Closed {
                failures_in_a_row, ..
            } if outcome != Outcome::Ignored => {
                self.window.record(now, failed, slow);
                *failures_in_a_row = match failed {
                    true => failures_in_a_row.saturating_add(1),
                    false => 0,
                };
                let too_many = |most: u32| *failures_in_a_row >= most;
                if settings.failures_in_a_row.is_some_and(too_many)
                    || is_too_bad(settings, &mut self.window, now)
                {
                    self.open(now, chance);
                }
            }
            Phase::HalfOpen {
                in_flight,
                succeeded,
            } if ticket.is_probe => {
                *in_flight -= 1;
                match outcome {
                    Outcome::Ignored => {}
                    Outcome::Success if !slow => {
                        *succeeded += 1;
                        if *succeeded >= settings.permitted_half_open {
                            self.enter(closed(now));
                        }
                    }
                    Outcome::Success | Outcome::Failure => self.open(now, chance),
                }
            }
            Phase::Closed { .. } | Phase::HalfOpen { .. } | Phase::Open { .. } => {}
        }
    }

    /// Closes it, whatever it has seen.
    pub fn reset(&mut self, now: Duration) {
        self.openings = 0;
        self.enter(closed(now));
    }

    fn open(&mut self, now: Duration, chance: f64) {
        if let Phase::Closed { since, .. } = self.phase
            && now.saturating_sub(since) >= self.wait()
        {
            self.openings = 0;
        }
        self.openings = self.openings.saturating_add(1);
        let until = now + with_jitter(self.wait(), chance);
        self.enter(Phase::Open { until });
    }

    /// How long it stays open after so many openings, without jitter.
    fn wait(&self) -> Duration {
        let Settings {
            wait_open,
            max_wait_open,
            ..
        } = self.settings;
        let doublings = self.openings.saturating_sub(1).min(31);
        wait_open.saturating_mul(1 << doublings).min(max_wait_open)
    }

    fn enter(&mut self, phase: Phase) {
        let from = self.state();
        if let Phase::Closed { .. } = phase {
            self.window = Window::new(self.settings.window);
        }
        self.phase = phase;
        self.generation += 1;
        let to = self.state();
        if from != to {
            self.transitions[from.index()][to.index()] += 1;
        }
    }
}

fn closed(now: Duration) -> Phase {
    Phase::Closed {
        since: now,
        failures_in_a_row: 0,
    }
}

fn is_too_bad(settings: Settings, window: &mut Window, now: Duration) -> bool {
    let counts = window.counts(now);
    if counts.calls < settings.minimum_calls.into() {
        return false;
    }
    let failing = |rate: Rate| rate.is_reached(counts.failures, counts.calls);
    let slow = |slow: SlowCalls| slow.rate.is_reached(counts.slow, counts.calls);
    settings.failure_rate.is_some_and(failing) || settings.slow_calls.is_some_and(slow)
}

/// Up to a tenth longer, so that many routers do not probe at the same moment.
fn with_jitter(wait: Duration, chance: f64) -> Duration {
    wait + wait.mul_f64(chance.clamp(0.0, 1.0) / 10.0)
}

#[cfg(test)]
mod tests;
