//! A router's status as people read it: functions from JSON to text.
//!
//! The JSON is another program's, perhaps of another version. What is missing, null or of another kind is
//! shown as unknown (`-`); what is not known here is not shown.

use std::fmt::Write;

use serde_json::Value;

use super::harmless;

const UNKNOWN: &str = "-";

/// The page that `canary-router status` prints.
pub fn status(status: &Value) -> String {
    let mut page = String::new();
    let lines = [
        format!(
            "canary-router {}, up {}",
            text(&status["version"]),
            duration(&status["uptime_seconds"])
        ),
        format!("rollout   {}", rollout(&status["rollout"])),
        format!(
            "weight    {:<12} breaker  {:<13} limits  {}",
            percent(&status["weight"]),
            breakers(&status["breakers"]),
            limits(&status["limits"])
        ),
    ];
    let [title, rest @ ..] = lines;
    put(&mut page, &title);
    // Routers of before have none.
    if let Some(summary) = status["summary"]["text"].as_str() {
        let level = text(&status["summary"]["level"]);
        let line = format!("verdict   {level}: {}", harmless(summary));
        put(&mut page, &line);
    }
    for line in rest {
        put(&mut page, &line);
    }
    if let Some(why) = status["config"]["last_failure"]["error"].as_str() {
        let since = text(&status["config"]["loaded_at"]);
        let why = harmless(why);
        put(
            &mut page,
            &format!("config    AS OF {since}: what was read since cannot be used ({why})"),
        );
    }
    if status["state"]["written"] == false {
        let why = text(&status["state"]["error"]);
        let line = format!(
            "state     NOT ON DISK ({why}): what changes now is forgotten when the router ends"
        );
        put(&mut page, &line);
    }
    put(
        &mut page,
        &row(["", "requests/s", "failures", "p50", "p90", "p99"]),
    );
    for name in ["main", "canary"] {
        let target = &status["targets"][name];
        let latency = &target["latency_seconds"];
        let cells = [
            name,
            &rate(&target["requests_per_second"]),
            &ratio(&target["failure_ratio"]),
            &milliseconds(&latency["p50"]),
            &milliseconds(&latency["p90"]),
            &milliseconds(&latency["p99"]),
        ];
        put(&mut page, &row(cells));
    }
    for line in evidence(&status["evidence"]) {
        put(&mut page, &line);
    }
    match status["decisions"].as_array() {
        Some(decisions) if !decisions.is_empty() => {
            put(&mut page, "decisions");
            for decision in decisions {
                put(&mut page, &format!("  {}", self::decision(decision)));
            }
        }
        _ => put(&mut page, "decisions none"),
    }
    page
}

fn put(page: &mut String, line: &str) {
    page.push_str(line.trim_end());
    page.push('\n');
}

fn row(cells: [&str; 6]) -> String {
    let [name, rest @ ..] = cells;
    let widths = [10, 11, 9, 9, 9];
    let mut line = format!("{name:<15}");
    for (cell, width) in rest.iter().zip(widths) {
        let _into_a_string = write!(line, "{cell:>width$}");
    }
    line
}

/// `progressing, step 2 of 4: 5 % for 10 min (4 min 10 s so far)`
fn rollout(rollout: &Value) -> String {
    let phase = text(&rollout["phase"]);
    let Some(step) = rollout["step"].as_u64().filter(|step| *step > 0) else {
        return phase;
    };
    let steps = rollout["steps"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let place = match steps.len() {
        0 => format!("step {step}"),
        count => format!("step {step} of {count}"),
    };
    let dry_run = match rollout["dry_run"].as_bool() {
        Some(true) => ", dry run",
        _ => "",
    };
    match &*phase {
        "progressing" | "paused" => {}
        "idle" => return phase,
        "succeeded" | "rolled-back" => return format!("{phase} in {place}{dry_run}"),
        _ => return format!("{phase}, {place}{dry_run}"),
    }
    let plan = usize::try_from(step - 1)
        .ok()
        .and_then(|step| steps.get(step));
    let plan = plan.map(|plan| {
        let (weight, time) = (percent(&plan["weight"]), duration(&plan["for_seconds"]));
        format!(": {weight} for {time}")
    });
    let extended = match rollout["extended"].as_bool() {
        Some(true) => ", extended",
        _ => "",
    };
    format!(
        "{phase}, {place}{} ({} so far{extended}){dry_run}",
        plan.unwrap_or_default(),
        duration(&rollout["elapsed_seconds"]),
    )
}

/// `closed` if all of them are; else those that are not, and the canary's.
fn breakers(breakers: &Value) -> String {
    let state = |name: &str| text(&breakers[name]).replace('_', "-");
    let others = ["main", "sidecar"].into_iter().filter(|name| {
        breakers[name]
            .as_str()
            .is_some_and(|state| state != "closed")
    });
    let mut shown = vec![state("canary")];
    shown.extend(others.map(|name| format!("{name} {}", state(name))));
    shown.join(", ")
}

/// `errors 12 left, requests unlimited`
fn limits(limits: &Value) -> String {
    let left = |what: &str| {
        let (name, limit) = (format!("{what}_remaining"), format!("{what}_limit"));
        match (limits[&name].as_u64(), limits[&limit].as_u64()) {
            (Some(remaining), Some(limit)) => format!("{remaining} of {limit} left"),
            (Some(remaining), None) => format!("{remaining} left"),
            (None, _) if limits.get(&name).is_some_and(Value::is_null) => "unlimited".to_owned(),
            (None, _) => UNKNOWN.to_owned(),
        }
    };
    let (errors, requests) = (left("errors"), left("requests"));
    format!("errors {errors}, requests {requests}")
}

/// What the judge has, in one line each: against the canary, for it, and out of what.
fn evidence(evidence: &Value) -> Vec<String> {
    if !evidence.is_object() {
        return vec!["evidence  none: no rollout is being judged".to_owned()];
    }
    let strength = |name: &str| strength(&evidence[name]);
    let optional = |label: &str, name: &str| match evidence[name].is_number() {
        true => format!("{label} {}, ", strength(name)),
        false => String::new(),
    };
    let against = format!(
        "evidence  errors {}, {}together {} of {} for a rollback: {}",
        strength("errors"),
        optional("latency", "latency"),
        strength("overall"),
        strength("threshold"),
        text(&evidence["verdict"])
    );
    let in_favour = format!(
        "          safe ratio {}, {}one of them {} to go on",
        strength("safe_ratio"),
        optional("acceptable failure rate", "acceptable_failure_rate"),
        strength("enough")
    );
    // With one alone there is nothing to choose from.
    let in_favour = match evidence["acceptable_failure_rate"].is_number() {
        true => in_favour,
        false => in_favour.replace(", one of them ", " of "),
    };
    let out_of = |name: &str| {
        format!(
            "{name} {} of {} failed",
            count(&evidence["failures"][name]),
            count(&evidence["requests"][name])
        )
    };
    vec![
        against,
        in_favour,
        format!("          {}, {}", out_of("main"), out_of("canary")),
    ]
}

/// `2026-11-25 10:00:00Z  step 1 -> 2, 1 % -> 5 %: the step's time is over`
fn decision(decision: &Value) -> String {
    let (from, to) = (&decision["from"], &decision["to"]);
    let change = |name: &str, label: &str, show: fn(&Value) -> String| {
        let changed = from[name] != to[name] && !to[name].is_null();
        changed.then(|| format!("{label}{} -> {}", show(&from[name]), show(&to[name])))
    };
    let changes: Vec<String> = [
        change("phase", "", text),
        change("step", "step ", count),
        change("weight", "", percent),
    ]
    .into_iter()
    .flatten()
    .collect();
    let changes = match changes.is_empty() {
        true => String::new(),
        false => format!("{}: ", changes.join(", ")),
    };
    let time = text(&decision["time"]).replacen('T', " ", 1);
    format!("{time}  {changes}{}", text(&decision["text"]))
}

fn text(value: &Value) -> String {
    match value.as_str() {
        Some(text) => harmless(text),
        None => UNKNOWN.to_owned(),
    }
}

fn count(value: &Value) -> String {
    shown(value.as_u64(), |count| count.to_string())
}

fn number(value: &Value, show: impl Fn(f64) -> String) -> String {
    shown(value.as_f64(), show)
}

fn shown<T>(value: Option<T>, show: impl Fn(T) -> String) -> String {
    value.map_or_else(|| UNKNOWN.to_owned(), show)
}

/// Natural logarithms: a tenth is what matters.
fn strength(value: &Value) -> String {
    number(value, tenths)
}

fn rate(value: &Value) -> String {
    number(value, tenths)
}

fn tenths(number: f64) -> String {
    // Not -0.0.
    format!("{:.1}", (number * 10.0).round() / 10.0 + 0.0)
}

/// A share in percent, exact: `5 %`, `0.25 %`.
fn percent(value: &Value) -> String {
    number(value, |percent| format!("{percent} %"))
}

/// A share from 0 to 1, in percent, to about two digits: `0 %`, `0.02 %`, `0.2 %`, `12 %`.
fn ratio(value: &Value) -> String {
    number(value, |ratio| match ratio * 100.0 {
        0.0 => "0 %".to_owned(),
        percent if percent < 0.005 => "<0.01 %".to_owned(),
        percent if percent < 0.095 => format!("{percent:.2} %"),
        percent if percent < 9.95 => format!("{percent:.1} %"),
        percent => format!("{percent:.0} %"),
    })
}

fn milliseconds(value: &Value) -> String {
    number(value, |seconds| match seconds * 1000.0 {
        ms if ms < 9.95 => format!("{ms:.1} ms"),
        ms if ms < 9999.5 => format!("{ms:.0} ms"),
        _ => format!("{seconds:.1} s"),
    })
}

/// The two largest units: `2 h 14 min`, `10 min`, `4 min 10 s`, `0 s`.
fn duration(value: &Value) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "d"), (3600, "h"), (60, "min"), (1, "s")];
    number(value, |seconds| {
        // A negative one is 0, one beyond all time the longest.
        let seconds = seconds as u64;
        let largest = UNITS
            .iter()
            .position(|(unit, _)| seconds >= *unit)
            .unwrap_or(3);
        let mut rest = seconds;
        let parts: Vec<String> = UNITS[largest..]
            .iter()
            .take(2)
            .map(|(unit, name)| {
                let part = format!("{} {name}", rest / unit);
                rest %= unit;
                part
            })
            .enumerate()
            .filter(|(place, part)| *place == 0 || !part.starts_with("0 "))
            .map(|(_, part)| part)
            .collect();
        parts.join(" ")
    })
}

#[cfg(test)]
mod tests;
