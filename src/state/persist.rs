//! What survives the process, as text: JSON with a version.
//!
//! Reading and writing files is not here (`control::keeper`). Moments are written as wall-clock time,
//! since nothing else means anything to the next process.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::admission::{Restored, Used};
use crate::policy::{Target, breaker::Saved};

/// The only version there is so far.
const VERSION: u64 = 1;
/// What the file says it is, so that another one is not taken for it.
const KIND: &str = "canary-router state";

/// What one process leaves to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Kept {
    /// The counts and the breakers.
    pub restored: Restored,
    /// What makes this installation's hashes its own.
    pub salt: u128,
}

/// Why a text is of no use.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// It is cut off, or was never JSON.
    #[error(
        "it is torn or damaged ({0}): restore it from a backup, or move it away to begin with fresh limits and \
         closed breakers"
    )]
    Torn(String),
    /// It is JSON of something else.
    #[error(
        "it is not a state file of canary-router ({0}): /state/file must name a file of its own; nothing was \
         changed in this one"
    )]
    Foreign(String),
    /// A later release wrote it.
    #[error(
        "it has version {0}, and this release knows up to {VERSION}: start the release that wrote it, or move it \
         away to begin with fresh limits and closed breakers"
    )]
    Newer(u64),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Document {
    kind: String,
    version: u64,
    salt: String,
    limits: Limits,
    breakers: Breakers,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Limits {
    requests: u64,
    errors: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Breakers {
    main: Option<Breaker>,
    canary: Option<Breaker>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Breaker {
    /// Milliseconds since 1970; absent when it is closed.
    open_until_ms: Option<u64>,
    openings: u32,
}

impl Kept {
    /// As it is written at `now`.
    pub fn to_text(&self, now: SystemTime) -> String {
        let breaker = |target: Target| {
            let saved = self.restored.breakers[target.index()]?;
            Some(Breaker {
                open_until_ms: saved.open_for.map(|wait| epoch_ms(now + wait)),
                openings: saved.openings,
            })
        };
        let document = Document {
            kind: KIND.into(),
            version: VERSION,
            salt: format!("{:032x}", self.salt),
            limits: Limits {
                requests: self.restored.used.requests,
                errors: self.restored.used.errors,
            },
            breakers: Breakers {
                main: breaker(Target::Main),
                canary: breaker(Target::Canary),
            },
        };
        let mut text =
            serde_json::to_string_pretty(&document).expect("strings and numbers are JSON");
        text.push('\n');
        text
    }

    /// Reads what [`to_text`](Kept::to_text) wrote, at `now`.
    ///
    /// # Errors
    /// It is something else.
    pub fn parse(text: &str, now: SystemTime) -> Result<Kept, Unusable> {
        let value: serde_json::Value =
            serde_json::from_str(text).map_err(|error| Unusable::Torn(error.to_string()))?;
        match value.get("kind").and_then(|kind| kind.as_str()) {
            Some(KIND) => {}
            Some(other) => return Err(Unusable::Foreign(format!("its kind is {other:?}"))),
            None => return Err(Unusable::Foreign("it does not say its kind".into())),
        }
        // Before anything else is looked at: a later version may have other fields.
        match value.get("version").and_then(|version| version.as_u64()) {
            Some(newer) if newer > VERSION => return Err(Unusable::Newer(newer)),
            Some(VERSION) => {}
            _ => return Err(Unusable::Torn("its version is not a number from 1".into())),
        }
        let torn = |error: serde_json::Error| Unusable::Torn(error.to_string());
        let document: Document = serde_json::from_value(value).map_err(torn)?;
        let salt = match document.salt.len() {
            32 => u128::from_str_radix(&document.salt, 16).ok(),
            _ => None,
        };
        let salt =
            salt.ok_or_else(|| Unusable::Torn("its salt is not 32 hexadecimal digits".into()))?;
        let saved = |breaker: Breaker| Saved {
            open_for: breaker.open_until_ms.map(|until| {
                let until = UNIX_EPOCH.checked_add(Duration::from_millis(until));
                until.map_or(Duration::MAX, |until| {
                    until.duration_since(now).unwrap_or_default()
                })
            }),
            openings: breaker.openings,
        };
        let mut restored = Restored {
            used: Used {
                requests: document.limits.requests,
                errors: document.limits.errors,
            },
            ..Restored::default()
        };
        restored.breakers[Target::Main.index()] = document.breakers.main.map(saved);
        restored.breakers[Target::Canary.index()] = document.breakers.canary.map(saved);
        Ok(Kept { restored, salt })
    }
}

fn epoch_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_millis().try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn kept() -> Kept {
        let mut kept = Kept {
            salt: 0xfeed,
            ..Kept::default()
        };
        kept.restored.used = Used {
            requests: u64::MAX,
            errors: 7,
        };
        kept.restored.breakers[Target::Canary.index()] = Some(Saved {
            open_for: Some(Duration::from_secs(30)),
            openings: 3,
        });
        kept
    }

    #[test]
    fn what_is_written_is_read_and_the_wait_goes_on_meanwhile() {
        let text = kept().to_text(at(1_000_000));
        assert_eq!(Kept::parse(&text, at(1_000_000)), Ok(kept()));
        let later = Kept::parse(&text, at(1_000_020)).unwrap();
        let saved = later.restored.breakers[Target::Canary.index()].unwrap();
        assert_eq!(saved.open_for, Some(Duration::from_secs(10)));
        let much_later = Kept::parse(&text, at(2_000_000)).unwrap();
        let saved = much_later.restored.breakers[Target::Canary.index()].unwrap();
        assert_eq!(
            saved.open_for,
            Some(Duration::ZERO),
            "open, and may be probed"
        );
    }

    #[test]
    fn every_cut_of_a_file_is_refused() {
        let text = kept().to_text(at(1));
        // Without the line's end it is whole.
        for length in 0..text.len() - 1 {
            let read = Kept::parse(&text[..length], at(1));
            assert!(matches!(read, Err(Unusable::Torn(_))), "{length}: {read:?}");
        }
    }

    #[test]
    fn what_is_not_ours_is_refused_by_name() {
        let text = kept().to_text(at(1));
        for (read, expected) in [
            ("[]".into(), "not a state file"),
            ("{}".into(), "does not say its kind"),
            (text.replace(KIND, "something"), "its kind is \"something\""),
            (
                text.replace("\"version\": 1", "\"version\": 2"),
                "has version 2",
            ),
            (
                text.replace("\"version\": 1", "\"version\": 0"),
                "torn or damaged",
            ),
            (
                text.replace("\"version\": 1", "\"version\": 2, \"other\": 1"),
                "has version 2",
            ),
            (
                text.replace("\"errors\": 7", "\"errors\": -7"),
                "torn or damaged",
            ),
            (
                text.replace("\"errors\": 7", "\"errors\": 7, \"x\": 1"),
                "torn or damaged",
            ),
            (text.replace("feed", "fee"), "torn or damaged"),
            (text.replace("feed", "+eed"), "torn or damaged"),
        ] {
            let refused = Kept::parse(&read, at(1)).unwrap_err().to_string();
            assert!(refused.contains(expected), "{read}: {refused}");
        }
    }
}
