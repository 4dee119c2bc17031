//! `/status`: everything that an operator wants to know at once, as JSON.

use std::time::SystemTime;

use serde_json::{Value, json};

use super::{
    analyst::Analyst,
    decisions::{self, percent},
    minute::{Minute, Recent},
    readiness::StateFile,
    summary::{Facts, summary},
};
use crate::{
    VERSION, clock,
    config::Config,
    policy::{Target, analysis::Strength, breaker::State},
    state::{Gate, Reloads, Snapshot, reloads::Counts},
};

/// How many decisions it shows.
const DECISIONS: usize = 10;

/// The state of this moment.
pub fn status(
    snapshot: &Snapshot,
    reloads: &Reloads,
    analyst: &Analyst,
    minute: &Minute,
    state_file: Option<StateFile>,
) -> Value {
    let (config, admission) = (&snapshot.config, &snapshot.admission);
    let remaining = admission.remaining();
    let state = |gate: Option<&Gate>| {
        gate.map_or(State::Closed, |gate| gate.with(|breaker| breaker.state()))
    };
    let breakers = Target::ALL.map(|target| state(admission.gate(target)));
    let sidecar = state(Some(admission.sidecar()));
    let uptime = clock::uptime();
    let recent = minute.recent(uptime);
    let rollout = analyst.rollout();
    let (level, text) = summary(&Facts {
        phase: rollout.position.phase,
        weight: snapshot.split.weight,
        dry_run: config
            .rollout
            .as_ref()
            .is_some_and(|rollout| rollout.settings.dry_run),
        strength: shown_strength(analyst),
        last: analyst
            .decisions()
            .front()
            .and_then(|decision| Some((decision["by"].as_str()?, decision["why"].as_str()?))),
        breakers,
        sidecar,
        requests_left: remaining.requests,
        errors_left: remaining.errors,
        recent,
    });
    let decisions: Vec<&Value> = analyst.decisions().iter().take(DECISIONS).collect();
    json!({
        "version": VERSION,
        "uptime_seconds": uptime.as_secs_f64(),
        "summary": {"level": level.label(), "text": text},
        "targets": {
            "main": target(&config.effective["main-target"], &recent[0]),
            "canary": target(&config.effective["canary-target"], &recent[1]),
        },
        "weight": percent(snapshot.split.weight),
        "rollout": self::rollout(snapshot, analyst),
        "breakers": {
            "canary": breakers[Target::Canary.index()].label(),
            "main": breakers[Target::Main.index()].label(),
            "sidecar": sidecar.label(),
        },
        "limits": {
            "requests_remaining": remaining.requests,
            "errors_remaining": remaining.errors,
            "requests_limit": config.limits.requests,
            "errors_limit": config.limits.errors,
        },
        "config": configuration(config, reloads),
        "state": state_file.map(|file| file.to_json()),
        "evidence": evidence(analyst),
        "decisions": decisions,
    })
}

/// What is in force, and since when; and why what was read since is not.
fn configuration(config: &Config, reloads: &Reloads) -> Value {
    let Counts {
        last_success,
        failure,
        ..
    } = reloads.counts();
    let shown = |time: SystemTime| humantime::format_rfc3339_seconds(time).to_string();
    json!({
        "file": config.file,
        "loaded_at": shown(last_success),
        "last_failure": failure.map(|(at, error)| json!({"at": shown(at), "error": error})),
    })
}

/// The same without what decisions were made of, which is much, and is told by `/decisions`.
pub fn in_short(mut status: Value) -> Value {
    let decisions = status["decisions"].as_array_mut();
    for decision in decisions.into_iter().flatten() {
        decision["figures"] = Value::Null;
    }
    status
}

/// `url` is as the log shows it.
fn target(url: &Value, recent: &Recent) -> Value {
    let [p50, p90, p99] = recent.quantiles;
    json!({
        "url": url,
        "requests": recent.requests,
        "failures": recent.failures,
        "requests_per_second": recent.rate,
        "failure_ratio": recent.failure_ratio(),
        "latency_seconds": {"p50": p50, "p90": p90, "p99": p99},
        "inflight": recent.inflight,
    })
}

fn rollout(snapshot: &Snapshot, analyst: &Analyst) -> Value {
    let rollout = analyst.rollout();
    let settings = snapshot
        .config
        .rollout
        .as_ref()
        .map(|rollout| &rollout.settings);
    let steps = settings.map_or(&[][..], |settings| &settings.steps);
    let steps: Vec<Value> = steps
        .iter()
        .map(
            |step| json!({"weight": percent(step.weight), "for_seconds": step.lasts.as_secs_f64()}),
        )
        .collect();
    json!({
        "phase": rollout.position.phase.label(),
        "step": decisions::step(&rollout.position),
        "steps": steps,
        "elapsed_seconds": rollout.elapsed.as_secs_f64(),
        "extended": rollout.extended,
        "dry_run": settings.is_some_and(|settings| settings.dry_run),
        "epoch": rollout.epoch,
    })
}

/// What the judge says of the rollout that is under way, or was the last; `None` where nothing was counted.
pub fn shown_strength(analyst: &Analyst) -> Option<&Strength> {
    let is_empty = analyst.evidence().accounts().is_empty();
    let strength = analyst.strength();
    strength.filter(|_| !is_empty || analyst.rollout().position.phase.is_under_way())
}

fn evidence(analyst: &Analyst) -> Value {
    let accounts = analyst.evidence().accounts();
    let Some(strength) = shown_strength(analyst) else {
        return Value::Null;
    };
    let sum = |target: Target, of: fn(&crate::policy::analysis::Counts) -> [u64; 2]| -> u64 {
        let counts = accounts.iter().map(|account| of(&account.counts));
        counts.map(|pair| pair[target.index()]).sum()
    };
    let both = |of: fn(&crate::policy::analysis::Counts) -> [u64; 2]| json!({"main": sum(Target::Main, of), "canary": sum(Target::Canary, of)});
    let mut evidence = decisions::strength(strength);
    evidence["requests"] = both(|counts| counts.requests);
    evidence["failures"] = both(|counts| counts.failures);
    evidence
}
