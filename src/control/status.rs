//! `/status`: everything that an operator wants to know at once, as JSON.

use serde_json::{Value, json};

use super::{
    analyst::Analyst,
    decisions::{self, percent},
    minute::Minute,
    readiness::StateFile,
};
use crate::{
    VERSION, clock,
    policy::{Target, breaker::State},
    state::{Admission, Gate, Snapshot},
};

/// How many decisions it shows.
const DECISIONS: usize = 10;

/// The state of this moment.
pub fn status(
    snapshot: &Snapshot,
    admission: &Admission,
    analyst: &Analyst,
    minute: &Minute,
    state_file: Option<StateFile>,
) -> Value {
    let config = &snapshot.config;
    let remaining = admission.remaining();
    let state = |gate: Option<&Gate>| {
        gate.map_or(State::Closed, |gate| gate.with(|breaker| breaker.state()))
            .label()
    };
    let decisions: Vec<&Value> = analyst.decisions().iter().take(DECISIONS).collect();
    json!({
        "version": VERSION,
        "uptime_seconds": clock::uptime().as_secs_f64(),
        "targets": {
            "main": target(&config.effective["main-target"], Target::Main, minute),
            "canary": target(&config.effective["canary-target"], Target::Canary, minute),
        },
        "weight": percent(snapshot.split.weight),
        "rollout": rollout(snapshot, analyst),
        "breakers": {
            "canary": state(admission.gate(Target::Canary)),
            "main": state(admission.gate(Target::Main)),
            "sidecar": state(Some(admission.sidecar())),
        },
        "limits": {
            "requests_remaining": remaining.requests,
            "errors_remaining": remaining.errors,
        },
        "state": state_file.map(|file| file.to_json()),
        "evidence": evidence(analyst),
        "decisions": decisions,
    })
}

/// `url` is as the log shows it.
fn target(url: &Value, target: Target, minute: &Minute) -> Value {
    let recent = minute.recent(target, clock::uptime());
    let [p50, p90, p99] = recent.quantiles;
    let ratio = (recent.requests > 0).then(|| recent.failures as f64 / recent.requests as f64);
    json!({
        "url": url,
        "requests": recent.requests,
        "failures": recent.failures,
        "requests_per_second": recent.rate,
        "failure_ratio": ratio,
        "latency_seconds": {"p50": p50, "p90": p90, "p99": p99},
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

/// Of the rollout that is under way, or was the last; `null` where nothing was counted.
fn evidence(analyst: &Analyst) -> Value {
    let accounts = analyst.evidence().accounts();
    let Some(strength) = analyst
        .strength()
        .filter(|_| !accounts.is_empty() || analyst.rollout().position.phase.is_under_way())
    else {
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
