//! What survives the process, as text: JSON with a version.
//!
//! Reading and writing files is not here (`control::keeper`). Moments are written as wall-clock time,
//! since nothing else means anything to the next process.

use std::{
    collections::VecDeque,
    fmt::Write,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    Progress,
    admission::{Restored, Used},
};
use crate::policy::{
    Target, Weight,
    analysis::{Account, Counts, Evidence, MOST_ACCOUNTS, Pair, THRESHOLDS},
    breaker::Saved,
    rollout::{Phase, Position, Rollout, Step},
};

/// The version that is written. The first one knew of no rollouts.
const VERSION: u64 = 2;
/// What the file says it is, so that another one is not taken for it.
const KIND: &str = "canary-router state";

/// No number of a rollout gets further in any process: what is greater was not written by us, and may not be added to.
const MOST: u64 = 1 << 53;

/// What one process leaves to the next.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Kept {
    /// The counts and the breakers.
    pub restored: Restored,
    /// The weight and the rollout.
    pub progress: Option<Arc<Progress>>,
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
    #[serde(default)]
    rollout: Option<Course>,
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

/// A rollout, and the weight by itself. Weights are in hundredths of a percent.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Course {
    phase: String,
    step: Option<usize>,
    weight: u32,
    elapsed_ms: u64,
    extended: bool,
    objected: bool,
    epoch: u64,
    targets: [String; 2],
    steps: Vec<CourseStep>,
    configured_weight: u32,
    accounts: Vec<CourseAccount>,
    /// Hexadecimal; empty where nothing was seen.
    seen: String,
    decisions: VecDeque<Value>,
    numbered: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct CourseStep {
    weight: u32,
    lasts_ms: u64,
}

/// Pairs are main's and the canary's.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct CourseAccount {
    step: usize,
    weight: u32,
    requests: Pair,
    failures: Pair,
    failed: Pair,
    slow: Vec<Pair>,
}

impl Course {
    fn of(progress: &Progress) -> Course {
        let rollout = &progress.rollout;
        let steps = progress.steps.iter().map(|step| CourseStep {
            weight: step.weight.hundredths(),
            lasts_ms: milliseconds(step.lasts),
        });
        let accounts = progress.evidence.accounts().iter();
        let accounts = accounts.map(|account| CourseAccount {
            step: account.step,
            weight: account.weight.hundredths(),
            requests: account.counts.requests,
            failures: account.counts.failures,
            failed: account.counts.failed,
            slow: account.counts.slow.to_vec(),
        });
        Course {
            phase: rollout.position.phase.label().into(),
            step: rollout.position.step,
            weight: rollout.position.weight.hundredths(),
            elapsed_ms: milliseconds(rollout.elapsed),
            extended: rollout.extended,
            objected: rollout.objected,
            epoch: rollout.epoch,
            targets: progress.targets.clone(),
            steps: steps.collect(),
            configured_weight: progress.configured.hundredths(),
            accounts: accounts.collect(),
            seen: to_hex(&progress.seen),
            decisions: progress.decisions.clone(),
            numbered: progress.numbered,
        }
    }

    /// `None` where a number cannot be what it says.
    fn progress(self) -> Option<Progress> {
        let phase = Phase::ALL
            .into_iter()
            .find(|phase| phase.label() == self.phase)?;
        let counts = self.accounts.iter().flat_map(|account| {
            let kinds = [account.requests, account.failures, account.failed];
            kinds.into_iter().chain(account.slow.iter().copied())
        });
        let steps = self.accounts.iter().map(|account| account.step);
        let mut numbers = counts
            .flatten()
            .chain(steps.chain(self.step).map(|step| step as u64))
            .chain([self.elapsed_ms, self.epoch, self.numbered]);
        if numbers.any(|number| number > MOST) {
            return None;
        }
        let steps = self.steps.iter().map(|step| {
            Some(Step {
                weight: Weight::new(step.weight)?,
                lasts: Duration::from_millis(step.lasts_ms),
            })
        });
        let accounts = self.accounts.into_iter().map(|account| {
            let slow: [Pair; THRESHOLDS] = account.slow.try_into().ok()?;
            Some(Account {
                step: account.step,
                weight: Weight::new(account.weight)?,
                counts: Counts {
                    requests: account.requests,
                    failures: account.failures,
                    failed: account.failed,
                    slow,
                },
            })
        });
        let accounts: Vec<Account> = accounts.collect::<Option<_>>()?;
        if accounts.len() > MOST_ACCOUNTS {
            return None;
        }
        Some(Progress {
            rollout: Rollout {
                position: Position {
                    phase,
                    step: self.step,
                    weight: Weight::new(self.weight)?,
                },
                elapsed: Duration::from_millis(self.elapsed_ms),
                extended: self.extended,
                objected: self.objected,
                epoch: self.epoch,
            },
            targets: self.targets,
            steps: steps.collect::<Option<_>>()?,
            configured: Weight::new(self.configured_weight)?,
            evidence: Evidence::new(accounts),
            seen: from_hex(&self.seen)?,
            decisions: self.decisions,
            numbered: self.numbered,
        })
    }
}

fn to_hex(bytes: &[u8]) -> String {
    if bytes.iter().all(|byte| *byte == 0) {
        return String::new();
    }
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        let _infallible = write!(text, "{byte:02x}");
    }
    text
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits = |pair: &[u8]| {
        let digits = std::str::from_utf8(pair).ok()?;
        let is_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        (is_hex && pair.len() == 2)
            .then(|| u8::from_str_radix(digits, 16).ok())
            .flatten()
    };
    let bytes: Option<Vec<u8>> = text.as_bytes().chunks(2).map(digits).collect();
    bytes.map(|bytes| match bytes.iter().all(|byte| *byte == 0) {
        true => Vec::new(),
        false => bytes,
    })
}

/// In one line, whatever names there are in it.
fn torn(error: serde_json::Error) -> Unusable {
    Unusable::Torn(error.to_string().replace(char::is_control, " "))
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
            rollout: self.progress.as_deref().map(Course::of),
        };
        let mut text = serde_json::to_string(&document).expect("strings and numbers are JSON");
        text.push('\n');
        text
    }

    /// Reads what [`to_text`](Kept::to_text) wrote, at `now`.
    ///
    /// # Errors
    /// It is something else.
    pub fn parse(text: &str, now: SystemTime) -> Result<Kept, Unusable> {
        let value: serde_json::Value = serde_json::from_str(text).map_err(torn)?;
        match value.get("kind").and_then(|kind| kind.as_str()) {
            Some(KIND) => {}
            Some(other) => return Err(Unusable::Foreign(format!("its kind is {other:?}"))),
            None => return Err(Unusable::Foreign("it does not say its kind".into())),
        }
        // Before anything else is looked at: a later version may have other fields.
        match value.get("version").and_then(|version| version.as_u64()) {
            Some(newer) if newer > VERSION => return Err(Unusable::Newer(newer)),
            Some(1..=VERSION) => {}
            _ => return Err(Unusable::Torn("its version is not a number from 1".into())),
        }
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
        let progress = match document.rollout.map(Course::progress) {
            None => None,
            Some(Some(progress)) => Some(Arc::new(progress)),
            Some(None) => {
                return Err(Unusable::Torn("its rollout makes no sense".into()));
            }
        };
        Ok(Kept {
            restored,
            progress,
            salt,
        })
    }
}

fn epoch_ms(time: SystemTime) -> u64 {
    milliseconds(time.duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn milliseconds(duration: Duration) -> u64 {
    duration.as_millis().try_into().unwrap_or(u64::MAX)
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
        let weight = Weight::new(500).unwrap();
        let mut evidence = Evidence::default();
        let mut counts = Counts {
            requests: [95, 5],
            failures: [2, 1],
            failed: [1, 1],
            ..Counts::default()
        };
        counts.slow[3] = [9, 1];
        evidence.add(1, weight, &counts);
        kept.progress = Some(Arc::new(Progress {
            rollout: Rollout {
                position: Position {
                    phase: Phase::Paused,
                    step: Some(1),
                    weight,
                },
                elapsed: Duration::from_millis(61_200),
                extended: true,
                objected: false,
                epoch: 4,
            },
            targets: ["http://m".into(), "http://c".into()],
            steps: vec![Step {
                weight,
                lasts: Duration::from_secs(600),
            }],
            configured: Weight::NONE,
            evidence,
            seen: vec![0, 7],
            decisions: [serde_json::json!({"number": 17})].into(),
            numbered: 17,
        }));
        kept
    }

    #[test]
    fn what_the_first_version_wrote_is_read() {
        let text = r#"{"kind": "canary-router state", "version": 1,
            "salt": "0000000000000000000000000000feed", "limits": {"requests": 3, "errors": 7},
            "breakers": {"main": null, "canary": null}}"#;
        let read = Kept::parse(text, at(1)).unwrap();
        assert_eq!((read.restored.used.errors, read.salt), (7, 0xfeed));
        assert_eq!(read.progress, None);
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
    fn nothing_seen_is_nothing_seen_however_it_is_written() {
        let text = kept().to_text(at(1)).replace("0007", "0000");
        let read = Kept::parse(&text, at(1)).unwrap();
        assert_eq!(read.progress.as_deref().unwrap().seen, [0; 0]);
        assert_eq!(Kept::parse(&read.to_text(at(1)), at(1)), Ok(read));
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
                text.replace("\"version\":2", "\"version\":3"),
                "has version 3",
            ),
            (
                text.replace("\"version\":2", "\"version\":0"),
                "torn or damaged",
            ),
            (
                text.replace("\"version\":2", "\"version\":3,\"other\":1"),
                "has version 3",
            ),
            (
                text.replace("\"errors\":7", "\"errors\":-7"),
                "torn or damaged",
            ),
            (
                text.replace("\"errors\":7", "\"errors\":7,\"x\":1"),
                "torn or damaged",
            ),
            (
                text.replace("\"paused\"", "\"poised\""),
                "rollout makes no sense",
            ),
            (
                text.replace("\"weight\":500", "\"weight\":10001"),
                "rollout makes no sense",
            ),
            (
                text.replace("\"epoch\":4", "\"epoch\":18446744073709551615"),
                "rollout makes no sense",
            ),
            (
                text.replace(
                    "\"requests\":[95,5]",
                    "\"requests\":[95,18446744073709551615]",
                ),
                "rollout makes no sense",
            ),
            (
                text.replace(
                    "\"step\":1,\"weight\":500,\"elapsed",
                    "\"step\":18446744073709551615,\"weight\":500,\"elapsed",
                ),
                "rollout makes no sense",
            ),
            (
                text.replace(
                    "\"step\":1,\"weight\":500,\"requests",
                    "\"step\":18446744073709551615,\"weight\":500,\"requests",
                ),
                "rollout makes no sense",
            ),
            (
                text.replace("\"errors\":7", "\"errors\":7,\"x\\ny\":1"),
                "unknown field `x y`",
            ),
            (text.replace("0007", "000"), "rollout makes no sense"),
            (text.replace("0007", "00+7"), "rollout makes no sense"),
            (text.replace("feed", "fee"), "torn or damaged"),
            (text.replace("feed", "+eed"), "torn or damaged"),
        ] {
            let refused = Kept::parse(&read, at(1)).unwrap_err().to_string();
            assert!(refused.contains(expected), "{read}: {refused}");
            assert!(!refused.contains(char::is_control), "{refused:?}");
        }
    }
}
