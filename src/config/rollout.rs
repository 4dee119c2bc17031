//! `rollout`: its steps, what the judge allows, and what happens when it is not sure.
//!
//! Without steps there is no rollout, and what is said of one is refused.

use std::{fmt::Display, ops::RangeInclusive, time::Duration};

use super::{
    Rollout,
    breakers::failure_rule,
    error::Problems,
    judge::{set, span},
    raw::{Raw, Rollout as RawRollout, Step as RawStep},
    traffic::weight,
    values::{Decimal, Percent, Texts},
    words::word,
};
use crate::policy::{
    analysis::{LatencyRule, Settings as Judge},
    rollout::{OnInconclusive, Settings, Step},
};

const MOST_STEPS: usize = 100;
const ERROR_RATIOS: RangeInclusive<f64> = 1.0..=100.0;
const PROBABILITIES: RangeInclusive<f64> = 0.000_001..=0.5;
const MARGINS: RangeInclusive<f64> = 0.0..=10.0;
const MOST_SLACK: Duration = Duration::from_secs(60);
const MOST_SAFE_RATIO: f64 = 100.0;
const FAILURE_RATES: RangeInclusive<f64> = 0.0..=0.5;
/// The judge waits this long for an answer (`state::trials`), and as long with its verdict.
pub const LONGEST_TIMEOUT: Duration = Duration::from_secs(120);

/// What is compared between main and canary.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Metric {
    Errors,
    Latency,
}

pub(super) fn rollout(raw: &Raw, problems: &mut Problems) -> Option<Rollout> {
    let has_listener = raw.instrumentation.is_some() || problems.has("/instrumentation");
    let timeout = span(raw.proxy_client.to_main_and_canary.timeout);
    let raw = &raw.rollout;
    if raw.steps.is_empty() {
        // Steps that cannot be used have been told, and would not have been off.
        if !problems.has("/rollout/steps") {
            refuse_without_steps(raw, problems);
        }
        return None;
    }
    if !has_listener {
        problems.add(
            "/rollout",
            "has no effect: nobody could start it without /instrumentation, where commands are \
             taken; write that section, or take this one out",
        );
    }
    if timeout > LONGEST_TIMEOUT {
        problems.add(
            "/proxy-client/to-main-and-canary/timeout",
            format!(
                "{timeout:?} is too long beside /rollout/steps: the judge waits until it is known whether there is an \
                 answer, and so would a rollback; use \"2m\" at most"
            ),
        );
    }
    let steps = steps(&raw.steps, problems);
    let on_inconclusive = on_inconclusive(raw, problems);
    let judge = judge(raw, problems);
    let failure = failure_rule("/rollout/failure", &raw.failure, problems);
    Some(Rollout {
        settings: Settings {
            steps,
            on_inconclusive: on_inconclusive?,
            max_extension: span(raw.max_extension),
            dry_run: raw.dry_run.0,
        },
        judge: judge?,
        failure: failure?,
    })
}

fn steps(raw: &[RawStep], problems: &mut Problems) -> Vec<Step> {
    if raw.len() > MOST_STEPS {
        problems.add(
            "/rollout/steps",
            format!("{} steps are too many: use {MOST_STEPS} at most", raw.len()),
        );
        return Vec::new();
    }
    let mut steps = Vec::new();
    let mut before = Percent(0);
    for (i, step) in raw.iter().enumerate() {
        let path = format!("/rollout/steps/{i}");
        // What is no step at all has been told.
        if problems.has(&path) {
            continue;
        }
        step_time(&path, step, problems);
        let path = format!("{path}/weight");
        match step.weight {
            None => problems.add(
                path,
                "is missing: write the percentage that goes to the canary, such as 5",
            ),
            Some(Percent(0)) => problems.add(
                path,
                "0 is no step, nothing would go to the canary: use 0.01 to 100",
            ),
            Some(weight) if weight.0 < before.0 => problems.add(
                path,
                format!(
                    "{} is less than the {} of the step before, and weights must not fall from \
                     step to step: use {1} to 100",
                    percent(weight),
                    percent(before)
                ),
            ),
            Some(percent) => {
                before = percent;
                steps.push(Step {
                    weight: weight(percent),
                    lasts: span(step.lasts),
                });
            }
        }
    }
    steps
}

fn step_time(path: &str, step: &RawStep, problems: &mut Problems) {
    let path = format!("{path}/for");
    match step.lasts {
        None => problems.add(
            path,
            "is missing: say how long the step lasts, such as \"10m\"",
        ),
        Some(_) if span(step.lasts) < Duration::from_secs(1) => problems.add(
            path,
            format!("{:?} is too short: use \"1s\" or more", span(step.lasts)),
        ),
        Some(_) => {}
    }
}

fn percent(percent: Percent) -> f64 {
    weight(percent).percent()
}

fn on_inconclusive(raw: &RawRollout, problems: &mut Problems) -> Option<OnInconclusive> {
    let known = [
        ("extend", OnInconclusive::Extend),
        ("pause", OnInconclusive::Pause),
        ("advance", OnInconclusive::Advance),
        ("rollback", OnInconclusive::Rollback),
    ];
    let written = set(&raw.on_inconclusive).unwrap_or_default();
    let found = word("/rollout/on-inconclusive", written, &known, problems)?;
    if found != OnInconclusive::Extend
        && raw.max_extension != RawRollout::with_defaults().max_extension
    {
        problems.add(
            "/rollout/max-extension",
            format!(
                "has no effect: with {written:?} in /on-inconclusive beside it no step is \
                 extended; write \"extend\" there, or take this out"
            ),
        );
    }
    Some(found)
}

fn judge(raw: &RawRollout, problems: &mut Problems) -> Option<Judge> {
    let error_ratio = decimal(raw.error_ratio);
    if !ERROR_RATIOS.contains(&error_ratio) {
        out_of_range("error-ratio", error_ratio, "1 to 100", problems);
    }
    let probability = decimal(raw.false_rollback_probability);
    if !PROBABILITIES.contains(&probability) {
        let hint = "0.000001 to 0.5 (0.01 is one in a hundred)";
        out_of_range("false-rollback-probability", probability, hint, problems);
    }
    let safe_ratio = decimal(raw.safe_ratio);
    if !(safe_ratio > 1.0 && safe_ratio <= MOST_SAFE_RATIO) {
        let hint = "more than 1, and 100 at most";
        out_of_range("safe-ratio", safe_ratio, hint, problems);
    }
    let acceptable_failure_rate = decimal(raw.acceptable_failure_rate);
    if !FAILURE_RATES.contains(&acceptable_failure_rate) {
        let hint = "0 (off) to 0.5 (0.01 is one in a hundred)";
        out_of_range(
            "acceptable-failure-rate",
            acceptable_failure_rate,
            hint,
            problems,
        );
    }
    Some(Judge {
        error_ratio,
        false_rollback_probability: probability,
        latency: latency(raw, problems)?,
        safe_ratio,
        acceptable_failure_rate,
    })
}

/// The inner `None` is that latency is not judged, the outer one that this cannot be said.
fn latency(raw: &RawRollout, problems: &mut Problems) -> Option<Option<LatencyRule>> {
    let margin = decimal(raw.latency_margin);
    let slack = span(raw.latency_slack);
    let metrics = metrics(raw, problems)?;
    if !metrics.contains(&Metric::Latency) {
        let default = RawRollout::with_defaults();
        for (key, is_set) in [
            (
                "latency-margin",
                raw.latency_margin != default.latency_margin,
            ),
            ("latency-slack", raw.latency_slack != default.latency_slack),
        ] {
            if is_set {
                problems.add(
                    at(key),
                    "has no effect: latency is not judged without \"latency\" in /metrics beside \
                     it; write it there, or take this out",
                );
            }
        }
        return Some(None);
    }
    if !MARGINS.contains(&margin) {
        let hint = "0 to 10 (0.1 is a tenth more)";
        out_of_range("latency-margin", margin, hint, problems);
    }
    if slack > MOST_SLACK {
        out_of_range(
            "latency-slack",
            format_args!("{slack:?}"),
            "0 to \"60s\"",
            problems,
        );
    }
    Some(Some(LatencyRule { margin, slack }))
}

/// `None` where one of them is not known.
fn metrics(raw: &RawRollout, problems: &mut Problems) -> Option<Vec<Metric>> {
    let known = [("errors", Metric::Errors), ("latency", Metric::Latency)];
    let written = raw.metrics.iter().flat_map(|Texts(metrics)| metrics);
    let found: Vec<_> = written
        .enumerate()
        .map(|(i, written)| word(&format!("/rollout/metrics/{i}"), written, &known, problems))
        .collect();
    let metrics: Vec<_> = found.into_iter().collect::<Option<_>>()?;
    if !metrics.contains(&Metric::Errors) {
        problems.add(
            "/rollout/metrics",
            "\"errors\" is not in it, and a canary that fails would pass: write [\"errors\"] or \
             [\"errors\", \"latency\"]",
        );
    }
    Some(metrics)
}

fn out_of_range(key: &str, value: impl Display, range: &str, problems: &mut Problems) {
    problems.add(at(key), format!("{value} is out of range: use {range}"));
}

fn at(key: &str) -> String {
    format!("/rollout/{key}")
}

fn decimal(number: Option<Decimal>) -> f64 {
    number.map_or(0.0, |Decimal(number)| number)
}

/// Who set one of these wanted a rollout, and would have none.
fn refuse_without_steps(raw: &RawRollout, problems: &mut Problems) {
    let default = RawRollout::with_defaults();
    for (key, is_set) in [
        (
            "on-inconclusive",
            set(&raw.on_inconclusive) != set(&default.on_inconclusive),
        ),
        ("max-extension", raw.max_extension != default.max_extension),
        ("dry-run", raw.dry_run != default.dry_run),
        ("metrics", raw.metrics != default.metrics),
        ("error-ratio", raw.error_ratio != default.error_ratio),
        (
            "false-rollback-probability",
            raw.false_rollback_probability != default.false_rollback_probability,
        ),
        (
            "latency-margin",
            raw.latency_margin != default.latency_margin,
        ),
        ("latency-slack", raw.latency_slack != default.latency_slack),
        ("safe-ratio", raw.safe_ratio != default.safe_ratio),
        (
            "acceptable-failure-rate",
            raw.acceptable_failure_rate != default.acceptable_failure_rate,
        ),
        ("failure", set(&raw.failure) != set(&default.failure)),
    ] {
        if is_set {
            problems.add(
                at(key),
                "has no effect: there is no rollout without steps; write them beside it, such as \
                 \"steps\": [{\"weight\": 5, \"for\": \"10m\"}], or take it out",
            );
        }
    }
}
