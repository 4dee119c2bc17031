//! What the router counts, and what its log tells of: the same.

use std::collections::BTreeMap;

use super::figures::Figures;

/// How often what has been counted.
pub type Counts = BTreeMap<String, u64>;

pub const REPLAYED: &str = "replayed by main";
pub const FIXED: &str = "answered by fallback.static";

/// What a request is counted as.
pub fn request(target: &str, reason: &str, class: &str) -> String {
    format!("requests to {target}, {class}, because: {reason:?}")
}

/// What a failure of an upstream is counted as.
pub fn failure(target: &str, kind: &str) -> String {
    format!("{kind} of {target}")
}

/// What a process has counted so far.
pub fn counted(figures: &Figures) -> Counts {
    let mut counts = Counts::new();
    let labels = ["target", "reason", "code_class"];
    for ([target, reason, class], count) in figures.by("canary_router_requests_total", labels) {
        counts.insert(request(&target, &reason, &class), count);
    }
    let labels = ["target", "kind"];
    for ([target, kind], count) in figures.by("canary_router_upstream_failures_total", labels) {
        counts.insert(failure(&target, &kind), count);
    }
    let labels = ["to", "outcome"];
    for ([to, outcome], count) in figures.by("canary_router_fallbacks_total", labels) {
        let what = match (to.as_str(), outcome.as_str()) {
            ("static", _) => FIXED,
            (_, "answered" | "failed") => REPLAYED,
            _ => continue,
        };
        *counts.entry(what.into()).or_default() += count;
    }
    counts
}

/// How the log and the counts differ, of what came since `before`, which is both of them then. A process that counts
/// `anew` does not know what was told by another one.
pub fn differ(now: (&Counts, &Counts), before: (&Counts, &Counts), anew: bool) -> Vec<String> {
    let (told, counted) = now;
    let mut all: Vec<&String> = told.keys().chain(counted.keys()).collect();
    all.sort();
    all.dedup();
    let count = |counts: &Counts, what| counts.get(what).copied().unwrap_or(0);
    let differences = all.into_iter().filter_map(|what| {
        let told = count(told, what) - count(before.0, what);
        let (counted, is_right) = match anew {
            true => (count(counted, what), count(counted, what) <= told),
            false => {
                let counted = count(counted, what).saturating_sub(count(before.1, what));
                (counted, counted == told)
            }
        };
        (!is_right).then(|| format!("{what}: {counted} were counted, the log tells of {told}"))
    });
    differences.collect()
}
