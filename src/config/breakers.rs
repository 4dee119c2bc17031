//! `circuit-breaker`: the canary's limits, and the breakers of both targets.

use std::{ops::RangeInclusive, time::Duration};

use super::{
    Breaker, Breakers, Limits,
    error::Problems,
    judge::{set, span},
    raw::{Breaker as RawBreaker, Raw},
    values::Percent,
    words::word,
};
use crate::policy::{
    FailureRule,
    breaker::{Rate, Settings, SlowCalls},
};

const MILLISECOND: Duration = Duration::from_millis(1);
const WINDOWS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);

pub(super) fn limits(raw: &Raw, problems: &mut Problems) -> Limits {
    let raw = &raw.circuit_breaker;
    let errors = raw.error_limit_canary.0;
    let errors = u32::try_from(errors).unwrap_or_else(|_| {
        problems.add(
            "/circuit-breaker/error-limit-canary",
            format!("{errors} is too large: use 0 (off) to {}", u32::MAX),
        );
        0
    });
    let requests = raw.request_limit_canary.0;
    let counted = failure_rule("/circuit-breaker/errors", &raw.errors, problems);
    Limits {
        requests: (requests > 0).then_some(requests),
        errors: (errors > 0).then_some(errors),
        counted: counted.unwrap_or(FailureRule::NotSuccess),
    }
}

pub(super) fn breakers(raw: &Raw, problems: &mut Problems) -> Breakers {
    let raw = &raw.circuit_breaker;
    Breakers {
        canary: breaker(&raw.breaker(), "/circuit-breaker", problems),
        main: breaker(&raw.main.breaker(), "/circuit-breaker/main", problems),
    }
}

fn breaker(raw: &RawBreaker, path: &str, problems: &mut Problems) -> Option<Breaker> {
    let at = |key: &str| format!("{path}/{key}");
    let failure_rate = rate(raw.failure_rate_threshold);
    let slow_calls = slow_calls(raw, path, problems);
    // A threshold that cannot be used has been told, and would not have been off.
    let is_told = [
        "failure-rate-threshold",
        "slow-call-rate-threshold",
        "slow-call-duration",
    ]
    .iter()
    .any(|key| problems.has(&at(key)));
    if failure_rate.is_none() && slow_calls.is_none() {
        if !is_told {
            refuse_what_is_off(raw, path, problems);
        }
        return None;
    }

    let window = span(raw.window);
    if !WINDOWS.contains(&window) {
        problems.add(
            at("window"),
            format!("{window:?} is out of range: use \"1s\" to \"1h\""),
        );
    }
    let wait_open = span(raw.wait_open);
    if wait_open < MILLISECOND {
        problems.add(
            at("wait-open"),
            format!("{wait_open:?} is too short: use \"1ms\" or more"),
        );
    }
    let max_wait_open = span(raw.max_wait_open);
    if max_wait_open < wait_open {
        problems.add(
            at("max-wait-open"),
            format!(
                "{max_wait_open:?} is shorter than /wait-open beside it ({wait_open:?}), which \
                 doubles up to it: make it longer, or the wait shorter"
            ),
        );
    }
    let mut number = |key: &str, number: u64, most: u32| match u32::try_from(number) {
        Ok(number) if (1..=most).contains(&number) => number,
        _ => {
            problems.add(
                at(key),
                format!("{number} is out of range: use 1 to {most}"),
            );
            1
        }
    };
    let minimum_calls = number(
        "minimum-number-of-calls",
        raw.minimum_number_of_calls.0,
        1_000_000,
    );
    let permitted_half_open = number("permitted-half-open", raw.permitted_half_open.0, 10_000);
    Some(Breaker {
        failure: failure_rule(&at("failure"), &raw.failure, problems)?,
        settings: Settings {
            failure_rate,
            slow_calls,
            failures_in_a_row: None,
            minimum_calls,
            window,
            wait_open,
            max_wait_open,
            permitted_half_open,
        },
    })
}

/// The share and the duration; each says nothing without the other.
fn slow_calls(raw: &RawBreaker, path: &str, problems: &mut Problems) -> Option<SlowCalls> {
    let rate_path = format!("{path}/slow-call-rate-threshold");
    let duration_path = format!("{path}/slow-call-duration");
    let duration = span(raw.slow_call_duration);
    match (rate(raw.slow_call_rate_threshold), duration) {
        (None, Duration::ZERO) => None,
        (Some(_), Duration::ZERO) => {
            problems.add(
                duration_path,
                "is missing: /slow-call-rate-threshold beside it does not say what is slow; write \
                 the duration, such as \"500ms\"",
            );
            None
        }
        (None, _) => {
            problems.add(
                rate_path,
                "is missing: /slow-call-duration beside it does not say how many slow calls are \
                 too many; write the percentage, such as 50",
            );
            None
        }
        (Some(_), duration) if duration < MILLISECOND => {
            problems.add(
                duration_path,
                format!("{duration:?} is too short: use \"1ms\" or more"),
            );
            None
        }
        (Some(rate), duration) => Some(SlowCalls { rate, duration }),
    }
}

/// Who set one of these wanted a breaker, and would have none.
fn refuse_what_is_off(raw: &RawBreaker, path: &str, problems: &mut Problems) {
    let default = RawBreaker::with_defaults();
    for (key, is_set) in [
        (
            "minimum-number-of-calls",
            raw.minimum_number_of_calls != default.minimum_number_of_calls,
        ),
        ("window", raw.window != default.window),
        ("wait-open", raw.wait_open != default.wait_open),
        (
            "max-wait-open",
            // By default it follows `wait-open`, which is then told.
            raw.max_wait_open != default.max_wait_open && raw.max_wait_open != raw.wait_open,
        ),
        (
            "permitted-half-open",
            raw.permitted_half_open != default.permitted_half_open,
        ),
        ("failure", set(&raw.failure) != set(&default.failure)),
    ] {
        if is_set {
            problems.add(
                format!("{path}/{key}"),
                "has no effect: the breaker is off without a threshold; write \
                 failure-rate-threshold (such as 50), or slow-call-rate-threshold and \
                 slow-call-duration, beside it, or take it out",
            );
        }
    }
}

fn rate(Percent(hundredths): Percent) -> Option<Rate> {
    (hundredths > 0).then_some(Rate(hundredths))
}

pub(super) fn failure_rule(
    path: &str,
    written: &Option<String>,
    problems: &mut Problems,
) -> Option<FailureRule> {
    let known = [
        ("5xx", FailureRule::ServerError),
        ("non-2xx", FailureRule::NotSuccess),
    ];
    word(path, set(written).unwrap_or_default(), &known, problems)
}
