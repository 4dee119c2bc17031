//! What came out, as a table in Markdown.

use std::fmt::Write;

use super::{
    cases::{Case, Must},
    rules::Name,
    run::Did,
};

/// The table of all cases: of good canaries how many rollouts were rolled back, of bad ones the medians of
/// seconds and of the canary's failures until they were.
pub fn table(results: &[(Case, Vec<Did>)]) -> String {
    let mut table = String::from("| case | runs | must | kept |");
    for rule in Name::ALL {
        let _ = write!(table, " {} |", rule.label());
    }
    table += "\n|---|--:|---|---|--:|--:|--:|--:|\n";
    for (case, did) in results {
        let judge = did.iter().find(|did| did.rule == Name::Judge);
        let kept = match judge.and_then(|did| keeps(case.must, did)) {
            Some(true) => "yes",
            Some(false) => "**no**",
            None => "–",
        };
        let runs = thousands(did.first().map_or(0, |did| did.runs));
        let _ = write!(
            table,
            "| {} | {runs} | {} | {kept} |",
            case.what,
            must(case.must)
        );
        for rule in Name::ALL {
            let cell = did.iter().find(|did| did.rule == rule);
            let cell = cell.map_or("–".into(), |did| cell_of(case.must, did));
            let _ = write!(table, " {cell} |");
        }
        table.push('\n');
    }
    table
}

/// Whether what must be shown was; `None` where nothing must.
pub fn keeps(must: Must, did: &Did) -> Option<bool> {
    match must {
        Must::Spare(share) | Must::SpareWorse(share) => Some(did.share() <= share),
        Must::Catch {
            seconds, errors, ..
        } => Some(
            did.median_seconds().is_some_and(|median| median <= seconds)
                && errors.is_none_or(|most| did.median_errors().is_some_and(|it| it <= most)),
        ),
        Must::Nothing => None,
    }
}

fn must(must: Must) -> String {
    match must {
        Must::Spare(share) | Must::SpareWorse(share) => {
            format!("≤ {} % rolled back", share * 100.0)
        }
        Must::Catch {
            seconds,
            errors: Some(errors),
            ..
        } => format!("≤ {seconds} s, ≤ {errors} errors"),
        Must::Catch { seconds, .. } => format!("≤ {seconds} s"),
        Must::Nothing => "(for comparison)".into(),
    }
}

fn cell_of(must: Must, did: &Did) -> String {
    match (must, did.median_seconds(), did.median_errors()) {
        // Rolled back before anything was wrong.
        (Must::Catch { .. }, Some(0), _) => "too early".into(),
        (Must::Catch { .. }, Some(seconds), Some(errors)) => {
            format!("{seconds} s, {errors} errors")
        }
        (Must::Catch { .. }, ..) if did.rollbacks() == 0 => "never".into(),
        (Must::Catch { .. }, ..) => {
            format!("in {} of the hours", percent(did.share()))
        }
        _ => format!("{} ({})", percent(did.share()), thousands(did.rollbacks())),
    }
}

fn percent(share: f64) -> String {
    match share * 100.0 {
        percent if percent == 0.0 || percent == 100.0 => format!("{percent} %"),
        percent if percent < 10.0 => format!("{percent:.2} %"),
        percent => format!("{percent:.1} %"),
    }
}

fn thousands(number: usize) -> String {
    match number {
        0..1000 => number.to_string(),
        _ => format!("{},{:03}", number / 1000, number % 1000),
    }
}
