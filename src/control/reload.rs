//! Reads the configuration again, and puts it in force if it can be: all of it, or nothing.
//!
//! Requests that have begun go on by what they began with. What cannot change while the router runs is refused by
//! name: half of a new configuration is none that anybody has written.

use std::{cell::RefCell, path::PathBuf, sync::Arc};

use serde_json::{Value, json};
use tracing::{error, info};

use super::{analyst::Analyst, files::Files};
use crate::{
    clock,
    config::{Config, ConfigError, Problem, Stamps},
    state::{Published, Reloads},
};

/// Reads the configuration.
pub type Load = Arc<dyn Fn() -> Result<Config, ConfigError> + Send + Sync>;

/// What is done only once, when the router starts: where it listens and what for, and with how many threads.
const FIXED: [&str; 8] = [
    "/router-server/host",
    "/router-server/port",
    "/router-server/workers",
    "/instrumentation/host",
    "/instrumentation/port",
    "/state/file",
    "/tracing/endpoint",
    "/tracing/service-name",
];

/// Why the configuration stays as it was.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// Nobody has said where it comes from.
    #[error(
        "the configuration of this router comes from no file, and cannot be read again: start it anew"
    )]
    NoFile,
    /// Another process takes the place of this one.
    #[error(
        "another process is taking the place of this one, which changes nothing any more: ask again"
    )]
    Succeeded,
    /// It cannot be used.
    #[error(transparent)]
    Unusable(ConfigError),
    /// It can, but not by a router that runs.
    #[error(transparent)]
    Fixed(ConfigError),
}

impl Refused {
    fn files(&self) -> Option<&Stamps> {
        match self {
            Refused::NoFile | Refused::Succeeded => None,
            Refused::Unusable(error) | Refused::Fixed(error) => Some(&error.files),
        }
    }
}

/// Reads the configuration again.
pub struct Reloader {
    load: Option<Load>,
    /// Has the log go by it.
    log: fn(&Config),
    published: Arc<Published>,
    reloads: Arc<Reloads>,
    /// What was read last, whether or not it could be used.
    files: RefCell<Files>,
}

impl Reloader {
    /// Which reads it by `load`, if at all, and says what has become of it in `reloads`.
    pub fn new(
        load: Option<Load>,
        log: fn(&Config),
        published: Arc<Published>,
        reloads: Arc<Reloads>,
    ) -> Reloader {
        let files = Files::new(published.load().config.files.clone());
        Reloader {
            load,
            log,
            published,
            reloads,
            files: RefCell::new(files),
        }
    }

    /// Whether any of the files that were read last is another one by now. To be asked now and then.
    pub fn have_files_changed(&self) -> bool {
        self.files.borrow_mut().have_changed()
    }

    /// Reads it, and has `analyst` put it in force; `why` is who wants it. The version in which what follows from it
    /// is kept.
    ///
    /// # Errors
    /// All stays as it was.
    pub fn reload(&self, why: &str, analyst: &mut Analyst) -> Result<u64, Refused> {
        let before = self.published.load();
        let read = self
            .load
            .as_ref()
            .ok_or(Refused::NoFile)
            .and_then(|load| load().map_err(Refused::Unusable))
            .and_then(|config| match fixed(&before.config, &config) {
                None => Ok(config),
                Some(error) => Err(Refused::Fixed(error)),
            });
        let config = match read {
            Ok(config) => config,
            Err(refused) => {
                if let Some(files) = refused.files() {
                    self.files.borrow_mut().were_read(files.clone());
                }
                let text = refused.to_string();
                error!(
                    why,
                    error = text.as_str(),
                    "the configuration stays as it was"
                );
                self.reloads.failed(clock::wall(), text);
                return Err(refused);
            }
        };
        let mut changed = Vec::new();
        differences(
            "",
            &before.config.effective,
            &config.effective,
            &mut changed,
        );
        let files = others(&before.config.files, &config.files);
        self.files.borrow_mut().were_read(config.files.clone());
        (self.log)(&config);
        let version = analyst.reconfigure(config, clock::uptime(), clock::wall());
        self.reloads.succeeded(clock::wall());
        info!(
            why,
            changed_json = json!(changed).to_string().as_str(),
            files_json = json!(files).to_string().as_str(),
            "the configuration was read again and is in force"
        );
        Ok(version)
    }
}

/// What of it a router that runs cannot do.
fn fixed(old: &Config, new: &Config) -> Option<ConfigError> {
    let problems: Vec<Problem> = FIXED
        .iter()
        .filter_map(|path| {
            let [was, is] = [old, new].map(|config| config.effective.pointer(path));
            (is_set(was) != is_set(is)).then(|| Problem {
                variable: None,
                path: (*path).to_owned(),
                message: format!(
                    "cannot change while the router runs: it is {}, and would be {}; put it back, or start the \
                     router anew, which an upgrade (SIGUSR2) does without losing a connection",
                    shown(was),
                    shown(is)
                ),
            })
        })
        .collect();
    (!problems.is_empty()).then(|| ConfigError {
        file: new.file.clone(),
        problems,
        files: new.files.clone(),
    })
}

/// Absent and empty are the same.
fn is_set(value: Option<&Value>) -> Option<&Value> {
    value.filter(|value| !value.is_null() && *value != "")
}

fn shown(value: Option<&Value>) -> String {
    is_set(value).map_or_else(|| "not set".into(), Value::to_string)
}

/// The files that are not as they were, or are new. What is in a secret shows in no key.
fn others(before: &Stamps, now: &Stamps) -> Vec<String> {
    let is_other = |(file, stamp): &(&PathBuf, &_)| before.get(*file) != Some(*stamp);
    let others = now.iter().filter(is_other);
    others.map(|(file, _)| file.display().to_string()).collect()
}

/// The paths (RFC 6901) of what differs.
fn differences(path: &str, one: &Value, other: &Value, found: &mut Vec<String>) {
    let (Value::Object(these), Value::Object(those)) = (one, other) else {
        if one != other {
            found.push(path.to_owned());
        }
        return;
    };
    let absent = Value::Null;
    let added = those.keys().filter(|key| !these.contains_key(*key));
    for key in these.keys().chain(added) {
        let [this, that] = [these, those].map(|side| side.get(key).unwrap_or(&absent));
        differences(&format!("{path}/{key}"), this, that, found);
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    #[test]
    fn what_differs_is_named_as_deep_as_it_can_be() {
        let one = json!({"a": {"b": 1, "c": [1, 2]}, "d": "x", "e": null});
        let other = json!({"a": {"b": 2, "c": [1, 2]}, "f": {"g": 1}, "e": null});
        let mut found = Vec::new();
        differences("", &one, &other, &mut found);
        assert_eq!(found, ["/a/b", "/d", "/f"]);
        found.clear();
        differences("", &one, &one, &mut found);
        assert!(found.is_empty());
    }

    #[test]
    fn what_is_fixed_is_refused_by_name_and_everything_else_is_not() {
        let read = |change: &dyn Fn(&mut Value)| {
            let mut file = json!({
                "main-target": "http://m", "canary-target": "http://c",
                "router-server": {"host": "127.0.0.1", "port": 1, "workers": 2},
                "instrumentation": {"host": "127.0.0.1", "port": 2},
                "state": {"file": "a.json"},
                "tracing": {"endpoint": "http://127.0.0.1:4318"}
            });
            change(&mut file);
            Config::parse("test.json", &file.to_string()).unwrap()
        };
        let old = read(&|_| {});
        for path in FIXED {
            let new = read(&|file| {
                let (section, key) = path[1..].split_once('/').unwrap();
                file[section][key] = match key {
                    "host" => json!("127.0.0.2"),
                    "port" | "workers" => json!(3),
                    "endpoint" => json!("http://127.0.0.1:4319"),
                    _ => json!("b"),
                };
            });
            let refused = fixed(&old, &new).unwrap();
            let paths: Vec<_> = refused.problems.iter().map(|it| it.path.as_str()).collect();
            assert_eq!(paths, [path]);
            assert!(refused.to_string().starts_with("test.json: /"), "{refused}");
        }
        let without = read(&|file| {
            file.as_object_mut().unwrap().remove("instrumentation");
        });
        let refused = fixed(&old, &without).unwrap();
        assert_eq!(refused.problems.len(), 2);
        assert!(refused.to_string().contains("would be not set"));
        let other = read(&|file| {
            file["main-target"] = json!("http://n");
            file["router-server"]["read-timeout"] = json!("1s");
            file["tracing"]["sample"] = json!(1);
            file["log"] = json!({"level": "debug"});
        });
        assert_eq!(fixed(&old, &other), None);
    }
}
