//! What happens to the router during a round, drawn by the seed: five lanes, each of which does one thing after the
//! other, so that everything meets everything else in the course of time.

use std::time::Duration;

use fastrand::Rng;

use super::trouble::Peer;

/// Something that happens.
#[derive(Debug, Clone)]
pub enum Act {
    Restart {
        peer: Peer,
        hard: bool,
        away: Duration,
    },
    Stall {
        peer: Peer,
        time: Duration,
    },
    Deaf {
        peer: Peer,
        time: Duration,
    },
    Lie {
        peer: Peer,
        percent: u64,
        time: Duration,
    },
    Fail {
        peer: Peer,
        percent: u64,
        time: Duration,
    },
    Slow {
        peer: Peer,
        pause: Duration,
        time: Duration,
    },
    Pose {
        peer: Peer,
        time: Duration,
    },
    /// A configuration, by its number.
    Reload {
        number: u64,
        by: By,
    },
    BadReload {
        number: u64,
        by: By,
    },
    Rollout(&'static str),
    /// In percent.
    Weight(u64),
    ResetBreakers,
    ResetLimits,
    /// Few descriptors are left.
    FewDescriptors {
        time: Duration,
    },
    /// The wall clock is wrong by that much from now on.
    Clock {
        seconds: i64,
    },
    /// Connections that say nothing.
    Crowd {
        count: usize,
        time: Duration,
    },
    /// Nobody reads the log.
    UnreadLog {
        time: Duration,
    },
    /// Another process takes its place.
    Upgrade,
    /// Another process is to, and cannot.
    BadUpgrade {
        number: u64,
    },
}

/// How a reload is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    Signal,
    Port,
}

/// What happens one after the other: each after a pause.
pub type Lane = Vec<(Duration, Act)>;

/// The lanes of a round.
pub fn lanes(random: &mut Rng, time: Duration) -> Vec<Lane> {
    let mut lanes: Vec<Lane> = Peer::ALL
        .iter()
        .map(|peer| {
            lane(random, time, (700, DECKS[0]), |random, card| {
                at_service(random, *peer, card)
            })
        })
        .collect();
    lanes.push(lane(random, time, (400, DECKS[1]), by_operator));
    lanes.push(lane(random, time, (900, DECKS[2]), by_system));
    lanes
}

/// Each lane has a deck of so many cards, and shuffles it when all were dealt: nothing is left out for long.
const DECKS: [usize; 3] = [7, 6, 6];

fn lane(
    random: &mut Rng,
    time: Duration,
    (pause, cards): (u64, usize),
    mut act: impl FnMut(&mut Rng, usize) -> Act,
) -> Lane {
    let mut lane = Lane::new();
    let mut planned = Duration::ZERO;
    let mut deck = Vec::new();
    loop {
        if deck.is_empty() {
            deck.extend(0..cards);
            random.shuffle(&mut deck);
        }
        let card = deck.pop().unwrap_or_default();
        let pause = millis(random, pause / 3, 2 * pause);
        let act = act(random, card);
        planned += pause + act.time();
        if planned > time {
            return lane;
        }
        lane.push((pause, act));
    }
}

impl Act {
    /// What it is, in the ledger.
    pub fn label(&self) -> &'static str {
        match self {
            Act::Restart { .. } => "restarts of a service",
            Act::Stall { .. } => "stalls of a service",
            Act::Deaf { .. } => "services that accepted nothing",
            Act::Lie { .. } => "services that lied",
            Act::Fail { .. } => "services that failed, and said so",
            Act::Slow { .. } => "services that were slow",
            Act::Pose { .. } => "services that were not who they should be",
            Act::Reload { .. } => "reloads",
            Act::BadReload { .. } => "reloads of what cannot be used",
            Act::Rollout(_) => "commands to the rollout",
            Act::Weight(_) => "weights set by hand",
            Act::ResetBreakers => "resets of the breakers",
            Act::ResetLimits => "resets of the limits",
            Act::FewDescriptors { .. } => "times without descriptors",
            Act::Clock { .. } => "steps of the wall clock",
            Act::Crowd { .. } => "crowds of idle connections",
            Act::UnreadLog { .. } => "times when nobody read the log",
            Act::Upgrade => "upgrades",
            Act::BadUpgrade { .. } => "upgrades that could not be",
        }
    }

    /// Whether the canary may get something afterwards that got nothing.
    pub fn may_raise(&self) -> bool {
        matches!(
            self,
            Act::Rollout(_) | Act::Weight(_) | Act::Reload { .. } | Act::Upgrade
        )
    }

    /// How long it takes, as far as that is known.
    fn time(&self) -> Duration {
        match self {
            Act::Restart { away: time, .. }
            | Act::Stall { time, .. }
            | Act::Deaf { time, .. }
            | Act::Lie { time, .. }
            | Act::Fail { time, .. }
            | Act::Slow { time, .. }
            | Act::Pose { time, .. }
            | Act::FewDescriptors { time }
            | Act::Crowd { time, .. }
            | Act::UnreadLog { time } => *time,
            Act::Reload { .. }
            | Act::BadReload { .. }
            | Act::Rollout(_)
            | Act::Weight(_)
            | Act::ResetBreakers
            | Act::ResetLimits
            | Act::Clock { .. }
            | Act::Upgrade
            | Act::BadUpgrade { .. } => Duration::ZERO,
        }
    }
}

fn at_service(random: &mut Rng, peer: Peer, card: usize) -> Act {
    let percent = random.u64(5..60);
    match card {
        0 => Act::Restart {
            peer,
            hard: random.bool(),
            away: millis(random, 0, 1200),
        },
        // Some end before the router has lost its patience.
        1 => Act::Stall {
            peer,
            time: millis(random, 200, 2500),
        },
        2 => Act::Deaf {
            peer,
            time: millis(random, 200, 2500),
        },
        3 => Act::Lie {
            peer,
            percent,
            time: millis(random, 500, 2500),
        },
        4 => Act::Fail {
            peer,
            percent,
            time: millis(random, 500, 2000),
        },
        5 => Act::Slow {
            peer,
            pause: millis(random, 5, 250),
            time: millis(random, 300, 1500),
        },
        _ => Act::Pose {
            peer,
            time: millis(random, 500, 2500),
        },
    }
}

fn by_operator(random: &mut Rng, card: usize) -> Act {
    let by = if random.bool() { By::Signal } else { By::Port };
    let number = random.u64(..);
    match card {
        0 | 1 => Act::Reload { number, by },
        2 => Act::BadReload { number, by },
        3 => Act::Rollout("start"),
        4 => {
            let commands = ["start", "pause", "resume", "promote", "abort"];
            Act::Rollout(commands[random.usize(..commands.len())])
        }
        _ => match random.u8(..6) {
            0..4 => Act::Weight(random.u64(..=100)),
            4 => Act::ResetBreakers,
            _ => Act::ResetLimits,
        },
    }
}

fn by_system(random: &mut Rng, card: usize) -> Act {
    match card {
        0 => Act::FewDescriptors {
            time: millis(random, 500, 3000),
        },
        1 => match random.u8(..4) {
            0 => Act::BadUpgrade {
                number: random.u64(..),
            },
            _ => Act::Upgrade,
        },
        2 | 3 => {
            let most = [90, 3600, 100_000][random.usize(..3)];
            Act::Clock {
                seconds: random.i64(-most..=most),
            }
        }
        4 => Act::Crowd {
            count: random.usize(50..400),
            time: millis(random, 300, 2000),
        },
        _ => Act::UnreadLog {
            time: millis(random, 200, 1500),
        },
    }
}

fn millis(random: &mut Rng, least: u64, most: u64) -> Duration {
    Duration::from_millis(random.u64(least..=most))
}
