//! How it stands, in a sentence and a colour, for who was woken up: whether the canary is worse than main, and
//! what the router has done about it.
//!
//! What the router has done comes first, then what the judge says, then what the last minute looks like: the
//! judge knows when a difference is more than chance, the eye does not.

use std::time::Duration;

use super::minute::Recent;
use crate::policy::{
    Target, Weight,
    analysis::Strength,
    breaker::State,
    rollout::{Phase, Verdict},
};

/// With fewer requests of a target in the last minute nothing is said of how it does.
const ENOUGH: u64 = 30;
/// From here on a target's failures are said to be more than the other's.
const MORE_OFTEN: f64 = 2.0;
/// And so many it has to be, and so many standard deviations off: less is chance.
const FAILURES: u64 = 3;
const SURE: f64 = 3.0;
/// From here on main is said to fail by itself.
const MAIN_FAILS: f64 = 0.05;
/// From here on a target is said to be slower, without a judge: by the latency of half of its requests.
const SLOWER: f64 = 1.5;
const SLOWER_BY: f64 = 0.005;

/// How it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// The canary is shown to do well.
    Good,
    /// Nothing is going on, or nothing can be said yet.
    Idle,
    /// Somebody should look.
    Warn,
    /// Something is wrong, or was.
    Bad,
}

impl Level {
    /// The word for it.
    pub const fn label(self) -> &'static str {
        match self {
            Level::Good => "good",
            Level::Idle => "idle",
            Level::Warn => "warn",
            Level::Bad => "bad",
        }
    }
}

/// What it is made of.
#[derive(Debug, Clone)]
pub struct Facts<'a> {
    /// The phase of the rollout.
    pub phase: Phase,
    /// The canary's share.
    pub weight: Weight,
    /// Whether the judge only says what it would do.
    pub dry_run: bool,
    /// What the judge says, where anything was counted.
    pub strength: Option<&'a Strength>,
    /// Who decided last, and why: words of the decision log.
    pub last: Option<(&'a str, &'a str)>,
    /// The breakers of main and canary, by [`Target::index`].
    pub breakers: [State; Target::ALL.len()],
    /// And the sidecar's.
    pub sidecar: State,
    /// What is left of the canary's limits.
    pub requests_left: Option<u64>,
    /// Likewise.
    pub errors_left: Option<u64>,
    /// The last minute, by [`Target::index`].
    pub recent: [Recent; Target::ALL.len()],
}

/// What is to be said first.
pub fn summary(facts: &Facts<'_>) -> (Level, String) {
    guards(facts)
        .or_else(|| rollout(facts))
        .or_else(|| judged(facts))
        .unwrap_or_else(|| last_minute(facts))
}

type Said = Option<(Level, String)>;

/// What keeps requests from a target.
fn guards(facts: &Facts<'_>) -> Said {
    let said = match facts.breakers {
        [State::Open, _] => (
            Level::Bad,
            "Main's circuit breaker is open: it fails, and clients get errors".into(),
        ),
        [State::HalfOpen, _] => (
            Level::Bad,
            "Main's circuit breaker tries a few requests; other clients get errors".into(),
        ),
        _ if facts.phase == Phase::RolledBack => return None,
        [_, State::Open] => (
            Level::Bad,
            "The canary's circuit breaker is open: it fails, and main gets its requests".into(),
        ),
        [_, State::HalfOpen] => (
            Level::Warn,
            "The canary's circuit breaker tries a few requests; main gets the others".into(),
        ),
        _ if facts.errors_left == Some(0) => (
            Level::Bad,
            "The canary's limit of errors is used up: main gets its requests".into(),
        ),
        _ if facts.requests_left == Some(0) => (
            Level::Idle,
            "The canary has had all requests that its limit allows: main gets the others".into(),
        ),
        _ if facts.sidecar == State::Open => (
            Level::Warn,
            "The sidecar does not answer: main gets all requests".into(),
        ),
        [State::Closed, State::Closed] => return None,
    };
    Some(said)
}

/// What the rollout has come to.
fn rollout(facts: &Facts<'_>) -> Said {
    let (by, why) = facts.last.unwrap_or_default();
    let said = match (facts.phase, why) {
        (Phase::RolledBack, _) if by == "operator" => (
            Level::Idle,
            "An operator has ended the rollout: main gets everything".into(),
        ),
        (Phase::RolledBack, why) => {
            let why = match why {
                "unhealthy" => "The canary was worse than allowed and is rolled back",
                "rolled-back-without-evidence" => {
                    "There was too little evidence, and the canary is rolled back"
                }
                "judge-failed" => "The judge has failed, and the canary is rolled back",
                _ => "The canary is rolled back",
            };
            (Level::Bad, format!("{why}: main gets everything"))
        }
        (Phase::Paused, "paused-without-evidence") => (
            Level::Warn,
            "The rollout is paused, for there is too little evidence to go on: somebody has to look".into(),
        ),
        (Phase::Paused, "steps-changed") => (
            Level::Warn,
            "The rollout is paused, for the configuration has other steps now: somebody has to look".into(),
        ),
        _ if facts.weight == Weight::NONE => (
            Level::Idle,
            "The canary gets nothing: its weight is 0 %".into(),
        ),
        (Phase::Idle | Phase::Progressing | Phase::Paused | Phase::Succeeded, _) => return None,
    };
    Some(said)
}

/// What the judge says, while there is a rollout.
fn judged(facts: &Facts<'_>) -> Said {
    let strength = facts.strength.filter(|_| facts.phase.is_under_way())?;
    let (overall, threshold) = (strength.overall, strength.threshold);
    let said = match strength.verdict() {
        Verdict::Unhealthy if facts.dry_run => (
            Level::Bad,
            "The canary is worse than allowed; in a dry run nothing is rolled back".into(),
        ),
        Verdict::Unhealthy => (Level::Bad, "The canary is worse than allowed".into()),
        _ if overall >= threshold / 2.0 => (
            Level::Warn,
            format!(
                "The canary looks worse than main: the evidence is {overall:.1}, at {threshold:.1} it is rolled back"
            ),
        ),
        _ if is_silent(facts) || main_fails(facts) => return None,
        Verdict::Healthy => (
            Level::Good,
            format!("The canary does as well as main: {}", failures(facts)),
        ),
        Verdict::Inconclusive => (
            Level::Idle,
            format!(
                "Nothing speaks against the canary so far: {}",
                failures(facts)
            ),
        ),
    };
    Some(said)
}

/// What it looks like where nobody judges.
fn last_minute(facts: &Facts<'_>) -> (Level, String) {
    let [main, canary] = &facts.recent;
    if is_silent(facts) {
        let weight = facts.weight;
        let text = match main.requests {
            0 => "There were no requests in the last minute".into(),
            _ => format!("The canary had no requests in the last minute; its weight is {weight}"),
        };
        return (Level::Idle, text);
    }
    if main_fails(facts) && ratio(canary) < MORE_OFTEN * ratio(main) {
        let text = format!("Main fails: {}", failures(facts));
        return (Level::Warn, text);
    }
    if canary.failures >= FAILURES
        && ratio(canary) >= MORE_OFTEN * ratio(main)
        && ratio(canary) - ratio(main) >= SURE * deviation(canary, main)
    {
        let text = format!("The canary fails more often: {}", failures(facts));
        return (Level::Warn, text);
    }
    let [slow, usual] = [canary, main].map(|recent| recent.quantiles[0].unwrap_or(0.0));
    let is_known = canary.requests >= ENOUGH && main.requests >= ENOUGH;
    if is_known && slow >= SLOWER * usual && slow >= usual + SLOWER_BY {
        let [slow, usual] = [slow, usual].map(|seconds| {
            let rounded = Duration::from_micros((seconds * 1e4).round() as u64 * 100);
            format!("{rounded:?}")
        });
        let text = format!(
            "The canary is slower: half of its requests take {slow} or more, main's {usual}"
        );
        return (Level::Warn, text);
    }
    match is_known || canary.requests >= ENOUGH && facts.weight == Weight::ALL {
        true => (Level::Good, format!("All is well: {}", failures(facts))),
        false => (
            Level::Idle,
            format!("There are few requests: {}", failures(facts)),
        ),
    }
}

/// By how much the failure ratios of two targets that fail equally often differ, usually.
fn deviation(one: &Recent, other: &Recent) -> f64 {
    let [ones, others] = [one, other].map(|recent| recent.requests.max(1) as f64);
    let both = (one.failures + other.failures) as f64 / (ones + others);
    (both * (1.0 - both) * (1.0 / ones + 1.0 / others)).sqrt()
}

fn is_silent(facts: &Facts<'_>) -> bool {
    facts.recent[Target::Canary.index()].requests == 0
}

fn main_fails(facts: &Facts<'_>) -> bool {
    let main = &facts.recent[Target::Main.index()];
    main.requests >= ENOUGH && ratio(main) >= MAIN_FAILS
}

/// `the canary fails 0.2 % of its requests, main 0.1 %, in the last minute`
fn failures(facts: &Facts<'_>) -> String {
    let [main, canary] = facts.recent.map(|recent| share(ratio(&recent)));
    match facts.recent[Target::Main.index()].requests {
        0 => format!("it fails {canary} of its requests, in the last minute"),
        _ => format!("the canary fails {canary} of its requests, main {main}, in the last minute"),
    }
}

fn ratio(recent: &Recent) -> f64 {
    recent.failure_ratio().unwrap_or(0.0)
}

/// `0 %`, `0.05 %`, `1.2 %`, `30 %`
fn share(ratio: f64) -> String {
    let percent = ratio * 100.0;
    match percent {
        0.0 => "0 %".into(),
        ..0.1 => format!("{percent:.2} %"),
        ..10.0 => format!("{percent:.1} %"),
        _ => format!("{percent:.0} %"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recent(requests: u64, failures: u64, p50: f64) -> Recent {
        Recent {
            requests,
            failures,
            rate: requests as f64 / 60.0,
            quantiles: [(requests > 0).then_some(p50); 3],
            inflight: 0,
        }
    }

    fn strength(overall: f64, safe_ratio: f64) -> Strength {
        Strength {
            errors: overall,
            latency: None,
            overall,
            threshold: 4.6,
            safe_ratio,
            acceptable: None,
            enough: 3.0,
        }
    }

    /// A rollout in which all goes well.
    fn well(strength: &Strength) -> Facts<'_> {
        Facts {
            phase: Phase::Progressing,
            weight: Weight::new(500).unwrap(),
            dry_run: false,
            strength: Some(strength),
            last: Some(("operator", "start")),
            breakers: [State::Closed; 2],
            sidecar: State::Closed,
            requests_left: None,
            errors_left: None,
            recent: [recent(5700, 12, 0.012), recent(300, 1, 0.013)],
        }
    }

    #[track_caller]
    fn says(facts: &Facts<'_>, level: Level, text: &str) {
        let said = summary(facts);
        assert_eq!((said.0, said.1.contains(text)), (level, true), "{said:?}");
    }

    #[test]
    fn the_judge_is_quoted_while_there_is_a_rollout() {
        for (overall, safe, level, text) in [
            (
                -1.0,
                4.0,
                Level::Good,
                "does as well as main: the canary fails 0.3 % of its requests, main 0.2 %",
            ),
            (0.5, 1.0, Level::Idle, "Nothing speaks against"),
            (
                2.3,
                4.0,
                Level::Warn,
                "the evidence is 2.3, at 4.6 it is rolled back",
            ),
            (4.7, 0.0, Level::Bad, "worse than allowed"),
        ] {
            says(&well(&strength(overall, safe)), level, text);
        }
    }

    #[test]
    fn what_was_done_comes_before_what_is_thought() {
        let strength = strength(9.0, 0.0);
        let facts = well(&strength);
        let rolled_back = Facts {
            phase: Phase::RolledBack,
            weight: Weight::NONE,
            last: Some(("judge", "unhealthy")),
            ..facts.clone()
        };
        says(
            &rolled_back,
            Level::Bad,
            "worse than allowed and is rolled back: main gets everything",
        );
        // Its breaker has nothing to keep away any more.
        let open = [State::Closed, State::Open];
        let both = Facts {
            breakers: open,
            ..rolled_back.clone()
        };
        says(&both, Level::Bad, "is rolled back");
        let aborted = Facts {
            last: Some(("operator", "abort")),
            ..rolled_back
        };
        says(&aborted, Level::Idle, "An operator");
        says(
            &Facts {
                breakers: open,
                ..facts.clone()
            },
            Level::Bad,
            "canary's circuit breaker is open",
        );
        let main = [State::Open, State::Open];
        says(
            &Facts {
                breakers: main,
                ..facts.clone()
            },
            Level::Bad,
            "Main's circuit breaker",
        );
        says(
            &Facts {
                errors_left: Some(0),
                ..facts.clone()
            },
            Level::Bad,
            "limit of errors",
        );
        says(
            &Facts {
                requests_left: Some(0),
                ..facts.clone()
            },
            Level::Idle,
            "all requests",
        );
        says(
            &Facts {
                sidecar: State::Open,
                ..facts.clone()
            },
            Level::Warn,
            "sidecar",
        );
        says(
            &Facts {
                dry_run: true,
                ..facts.clone()
            },
            Level::Bad,
            "dry run",
        );
        let paused = Facts {
            phase: Phase::Paused,
            last: Some(("clock", "paused-without-evidence")),
            ..facts
        };
        says(&paused, Level::Warn, "too little evidence to go on");
    }

    #[test]
    fn without_a_judge_the_last_minute_speaks() {
        let nobody = Strength {
            ..strength(0.0, 0.0)
        };
        let facts = Facts {
            phase: Phase::Idle,
            strength: None,
            ..well(&nobody)
        };
        let with = |main, canary| Facts {
            recent: [main, canary],
            ..facts.clone()
        };
        let good = recent(1000, 2, 0.010);
        for (main, canary, level, text) in [
            (
                good,
                recent(100, 0, 0.011),
                Level::Good,
                "All is well: the canary fails 0 %",
            ),
            (good, recent(10, 0, 0.011), Level::Idle, "few requests"),
            (
                good,
                recent(0, 0, 0.0),
                Level::Idle,
                "no requests in the last minute; its weight is 5 %",
            ),
            (
                recent(0, 0, 0.0),
                recent(0, 0, 0.0),
                Level::Idle,
                "no requests in the last minute",
            ),
            (
                good,
                recent(100, 12, 0.011),
                Level::Warn,
                "fails more often: the canary fails 12 %",
            ),
            (good, recent(100, 2, 0.011), Level::Good, "All is well"),
            // Three times as often, which happens to one of seven who are as good.
            (
                recent(1800, 3, 0.010),
                recent(560, 3, 0.011),
                Level::Good,
                "All is well",
            ),
            (
                recent(1000, 100, 0.01),
                recent(100, 10, 0.01),
                Level::Warn,
                "Main fails: the canary fails 10 %",
            ),
            (
                good,
                recent(100, 0, 0.016),
                Level::Warn,
                "slower: half of its requests take 16ms or more, main's 10ms",
            ),
            // A few milliseconds are nobody's trouble.
            (
                recent(1000, 2, 0.001),
                recent(100, 0, 0.003),
                Level::Good,
                "All is well",
            ),
        ] {
            says(&with(main, canary), level, text);
        }
        let all = Facts {
            weight: Weight::ALL,
            ..with(recent(0, 0, 0.0), recent(100, 0, 0.01))
        };
        says(
            &all,
            Level::Good,
            "All is well: it fails 0 % of its requests",
        );
        says(
            &Facts {
                weight: Weight::NONE,
                ..facts
            },
            Level::Idle,
            "its weight is 0 %",
        );
    }

    #[test]
    fn shares_have_the_digits_that_matter() {
        let shown = [0.0, 0.0005, 0.0123, 0.3, 1.0].map(share);
        assert_eq!(shown, ["0 %", "0.05 %", "1.2 %", "30 %", "100 %"]);
    }
}
