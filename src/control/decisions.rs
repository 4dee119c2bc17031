//! Decisions as people read them: what moved the weight, when, why, and by which figures.

use std::time::SystemTime;

use serde_json::{Value, json};

use crate::policy::{
    Target, Weight,
    analysis::{Account, Evidence, Settings, Strength},
    rollout::{Command, Move, Phase, Position, Why},
};

/// One entry of the log.
pub fn decision(
    number: u64,
    moved: &Move,
    text: &str,
    figures: Option<Value>,
    wall: SystemTime,
) -> Value {
    let (by, why) = words(moved.why);
    json!({
        "number": number,
        "time": humantime::format_rfc3339_millis(wall).to_string(),
        "by": by,
        "why": why,
        "text": text,
        "from": position(&moved.from),
        "to": position(&moved.to),
        "figures": figures,
    })
}

/// A sentence for who reads it at night.
pub fn text(moved: &Move) -> String {
    let Move { why, from, to } = moved;
    let change = match from.weight == to.weight {
        true => format!("the weight stays {}", to.weight),
        false => format!("the weight goes from {} to {}", from.weight, to.weight),
    };
    let step = self::step(to);
    let why = match why {
        Why::Command(Command::Start) => "an operator has started the rollout".into(),
        Why::Command(Command::Pause) => format!("an operator has paused step {step}"),
        Why::Command(Command::Resume) => format!("an operator has resumed step {step}"),
        Why::Command(Command::Promote) => "an operator has promoted the canary".into(),
        Why::Command(Command::Abort) => "an operator has aborted: the canary gets nothing".into(),
        Why::Command(Command::SetWeight(_)) => "an operator has set the weight".into(),
        Why::StepPassed | Why::AdvancedWithoutEvidence | Why::AdvancedInDryRun => {
            let evidence = match why {
                Why::StepPassed => "there is enough evidence",
                Why::AdvancedWithoutEvidence => {
                    "there is too little evidence, which on-inconclusive lets pass"
                }
                _ => "in a dry run the judge holds nothing up",
            };
            let over = self::step(from);
            match to.phase {
                Phase::Succeeded => {
                    format!("step {over}, the last one, is over and {evidence}: succeeded")
                }
                _ => format!("step {over} is over and {evidence}: step {step} begins"),
            }
        }
        Why::Extended => format!("step {step} is over with too little evidence: it lasts longer"),
        Why::PausedWithoutEvidence => {
            format!("step {step} is over with too little evidence: paused")
        }
        Why::RolledBackWithoutEvidence => format!(
            "step {step} is over with too little evidence, and on-inconclusive says roll back"
        ),
        Why::Unhealthy => "the canary is worse than allowed: rolled back".into(),
        Why::UnhealthyInDryRun => {
            "the canary is worse than allowed; in a dry run nothing is rolled back".into()
        }
        Why::JudgeFailed => {
            "the judge has failed, which is a bug, and nobody watches the canary: rolled back"
                .into()
        }
        Why::StepsChanged => {
            "the configuration has other steps than the rollout had begun with: paused".into()
        }
        Why::StepsRemoved => {
            "the configuration has no rollout any more, and nobody judges the canary: rolled back"
                .into()
        }
        Why::TargetsChanged => {
            "the configuration has other targets, of which nothing is known yet".into()
        }
        Why::WeightConfigured => "the configuration has another traffic.weight".into(),
    };
    format!("{why}; {change}")
}

/// Who decided, and why: two closed sets.
fn words(why: Why) -> (&'static str, &'static str) {
    match why {
        Why::Command(command) => (
            "operator",
            match command {
                Command::Start => "start",
                Command::Pause => "pause",
                Command::Resume => "resume",
                Command::Promote => "promote",
                Command::Abort => "abort",
                Command::SetWeight(_) => "set-weight",
            },
        ),
        Why::StepPassed => ("judge", "step-passed"),
        Why::AdvancedWithoutEvidence => ("clock", "advanced-without-evidence"),
        Why::AdvancedInDryRun => ("clock", "advanced-in-dry-run"),
        Why::Extended => ("clock", "extended"),
        Why::PausedWithoutEvidence => ("clock", "paused-without-evidence"),
        Why::RolledBackWithoutEvidence => ("clock", "rolled-back-without-evidence"),
        Why::Unhealthy => ("judge", "unhealthy"),
        Why::UnhealthyInDryRun => ("judge", "unhealthy-in-dry-run"),
        Why::JudgeFailed => ("judge", "judge-failed"),
        Why::StepsChanged => ("configuration", "steps-changed"),
        Why::StepsRemoved => ("configuration", "steps-removed"),
        Why::TargetsChanged => ("configuration", "targets-changed"),
        Why::WeightConfigured => ("configuration", "weight-configured"),
    }
}

fn position(position: &Position) -> Value {
    json!({
        "phase": position.phase.label(),
        "step": step(position),
        "weight": percent(position.weight),
    })
}

/// The number of a step as people count: from 1, and 0 where there is none.
pub fn step(position: &Position) -> usize {
    match position.phase {
        Phase::Idle => 0,
        _ => position.step.map_or(0, |step| step + 1),
    }
}

/// A weight in percent; a whole number where it is one.
pub fn percent(weight: Weight) -> Value {
    match weight.hundredths() % 100 {
        0 => (weight.hundredths() / 100).into(),
        _ => weight.percent().into(),
    }
}

/// Everything that a verdict was made of, so that it can be made again.
pub fn figures(evidence: &Evidence, settings: &Settings, strength: &Strength) -> Value {
    let latency = settings.latency.map(|rule| {
        json!({
            "margin": rule.margin,
            "slack_seconds": rule.slack.as_secs_f64(),
        })
    });
    json!({
        "settings": {
            "error_ratio": settings.error_ratio,
            "false_rollback_probability": settings.false_rollback_probability,
            "latency": latency,
            "safe_ratio": settings.safe_ratio,
            "acceptable_failure_rate": settings.acceptable_failure_rate,
        },
        "strength": self::strength(strength),
        "accounts": evidence.accounts().iter().map(account).collect::<Vec<_>>(),
    })
}

/// Natural logarithms, and what they come to.
pub fn strength(strength: &Strength) -> Value {
    json!({
        "verdict": strength.verdict().label(),
        "errors": strength.errors,
        "latency": strength.latency,
        "overall": strength.overall,
        "threshold": strength.threshold,
        "safe_ratio": strength.safe_ratio,
        "acceptable_failure_rate": strength.acceptable,
        "enough": strength.enough,
    })
}

fn account(account: &Account) -> Value {
    let counts = &account.counts;
    let of = |target: Target| {
        let i = target.index();
        let slow: Vec<u64> = counts.slow.iter().map(|pair| pair[i]).collect();
        json!({
            "requests": counts.requests[i],
            "failures": counts.failures[i],
            "failed": counts.failed[i],
            "slow": slow,
        })
    };
    json!({
        "step": account.step + 1,
        "weight": percent(account.weight),
        "main": of(Target::Main),
        "canary": of(Target::Canary),
    })
}
