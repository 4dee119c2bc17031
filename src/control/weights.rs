//! How an operator says a weight: as a percentage, or as the shares of both targets.
//!
//! Nothing is guessed at: a key that is not known, or is there twice, is as wrong as a number that is none.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;

use crate::policy::Weight;

/// The two shares may differ from 1 by this much, together.
const TOLERANCE: f64 = 0.001;
/// What binary fractions are off by, at most.
const ROUNDING: f64 = 1e-9;
/// So much of what was sent is told back.
const SHOWN: usize = 40;

/// A form in which a weight is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `{"weight": 5}`, in percent.
    Percent,
    /// `{"old_weight": 0.95, "new_weight": 0.05}`.
    Shares,
}

/// Why it is no weight, without what to send instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// The text is no JSON.
    NotJson(String),
    /// It is, but not what it should be.
    Unfit(String),
}

impl Form {
    /// What it looks like.
    pub const fn example(self) -> &'static str {
        match self {
            Form::Percent => r#"{"weight": 5}"#,
            Form::Shares => r#"{"old_weight": 0.95, "new_weight": 0.05}"#,
        }
    }

    /// Reads one.
    ///
    /// # Errors
    /// It is none.
    pub fn read(self, json: &[u8]) -> Result<Weight, Problem> {
        let not_json =
            |error| Problem::NotJson(format!("the body is not JSON ({})", short(&error)));
        let value: Value = serde_json::from_slice(json).map_err(not_json)?;
        if !value.is_object() {
            let shown = short(&value);
            return Err(unfit(format!("the body is not a JSON object but {shown}")));
        }
        let Entries(entries) = serde_json::from_slice(json).map_err(not_json)?;
        match self {
            Form::Percent => percent(&entries),
            Form::Shares => shares(&entries),
        }
    }
}

fn percent(entries: &[(String, Value)]) -> Result<Weight, Problem> {
    let [percent] = numbers(entries, ["weight"])?;
    in_hundredths(percent * 100.0).ok_or_else(|| {
        let shown = short(&percent);
        unfit(format!(
            "a weight is a percentage from 0 to 100 with at most two decimals, not {shown}"
        ))
    })
}

fn shares(entries: &[(String, Value)]) -> Result<Weight, Problem> {
    let [old, new] = numbers(entries, ["old_weight", "new_weight"])?;
    let sum = old + new;
    if (sum - 1.0).abs() > TOLERANCE + ROUNDING {
        let shown = short(&sum);
        return Err(unfit(format!(
            "old_weight and new_weight are {shown} together, not 1"
        )));
    }
    let share = |name: &str, share: f64| {
        let shown = short(&share);
        unfit(format!(
            "{name} is a share from 0 to 1 with at most four decimals, not {shown}"
        ))
    };
    if !(0.0..=1.0).contains(&old) {
        return Err(share("old_weight", old));
    }
    in_hundredths(new * 10_000.0).ok_or_else(|| share("new_weight", new))
}

/// The numbers of exactly these keys.
fn numbers<const N: usize>(
    entries: &[(String, Value)],
    keys: [&str; N],
) -> Result<[f64; N], Problem> {
    if let Some((unknown, _)) = entries.iter().find(|(key, _)| !keys.contains(&&**key)) {
        let unknown = short(&format!("{unknown:?}"));
        return Err(unfit(format!("{unknown} is not known here")));
    }
    let mut numbers = [0.0; N];
    for (number, key) in numbers.iter_mut().zip(keys) {
        let mut values = entries.iter().filter(|(known, _)| known == key);
        let (value, again) = (values.next(), values.next());
        *number = match (value, again) {
            (None, _) => return Err(unfit(format!("{key:?} is missing"))),
            (_, Some(_)) => return Err(unfit(format!("{key:?} is written twice"))),
            (Some((_, value)), None) => value.as_f64().ok_or_else(|| {
                let shown = short(value);
                unfit(format!("{key:?} is not a number but {shown}"))
            })?,
        };
    }
    Ok(numbers)
}

/// What is a whole number but for the rounding of binary fractions.
fn in_hundredths(number: f64) -> Option<Weight> {
    let rounded = number.round();
    let is_whole = (number - rounded).abs() < ROUNDING && (0.0..=10_000.0).contains(&rounded);
    is_whole.then(|| Weight::new(rounded as u32)).flatten()
}

fn unfit(text: String) -> Problem {
    Problem::Unfit(text)
}

/// It, or its beginning: an answer is no echo.
fn short(shown: &impl fmt::Display) -> String {
    let text = shown.to_string();
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// An object as it is written: what is there twice is here twice.
struct Entries(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Entries, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Reader)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_is_there_twice_is_told_and_not_chosen_from() {
        for text in [
            r#"{"weight": 5, "weight": 50}"#,
            r#"{"weight": 5, "weight": 5}"#,
        ] {
            let problem = unfit(r#""weight" is written twice"#.into());
            assert_eq!(Form::Percent.read(text.as_bytes()), Err(problem));
        }
    }

    #[test]
    fn what_was_sent_is_told_back_in_part_only() {
        let text = format!(r#"{{"weight": "{}"}}"#, "ü".repeat(1000));
        let Err(Problem::Unfit(problem)) = Form::Percent.read(text.as_bytes()) else {
            panic!("it is no number");
        };
        assert!(problem.ends_with("ü…") && problem.len() < 150, "{problem}");
        // A number of 309 digits.
        for (form, text) in [
            (Form::Percent, r#"{"weight": 1e308}"#),
            (Form::Shares, r#"{"old_weight": 1e308, "new_weight": 0}"#),
            (
                Form::Shares,
                r#"{"old_weight": -1e-300, "new_weight": 1.0}"#,
            ),
        ] {
            let Err(Problem::Unfit(problem)) = form.read(text.as_bytes()) else {
                panic!("{text} is none");
            };
            assert!(problem.len() < 150, "{problem}");
        }
    }
}
