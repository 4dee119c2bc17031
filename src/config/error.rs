//! What is wrong with a configuration: all of it at once.

use std::fmt::{self, Write};

use super::files::Stamps;

/// What stands where a file would be named.
pub(super) const ENVIRONMENT: &str = "environment";

/// One thing that is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// JSON Pointer (RFC 6901) of the value, such as `/router-server/port`; empty for the whole
    /// document.
    pub path: String,
    /// The environment variable that the value is from, or should be.
    pub variable: Option<String>,
    /// What is wrong and what to write instead.
    pub message: String,
}

/// A configuration that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// The file as the user named it, or `environment` where there is none.
    pub file: String,
    /// At least one.
    pub problems: Vec<Problem>,
    /// This file and those that it names, as far as that is known, as they were before they were read.
    pub files: Stamps,
}

impl fmt::Display for ConfigError {
    /// A line for each problem: `config.json: /main-target: is missing: …`, or
    /// `environment: CANARY_ROUTER_MAIN_TARGET (/main-target): not an absolute URL …`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            let Problem { path, message, .. } = problem;
            let place = match (&problem.variable, path.as_str()) {
                (None, "") => self.file.clone(),
                (None, path) => format!("{}: {path}", self.file),
                (Some(name), "") => format!("{ENVIRONMENT}: {name}"),
                (Some(name), path) => format!("{ENVIRONMENT}: {name} ({path})"),
            };
            put_on_a_line(&place, f)?;
            f.write_str(": ")?;
            put_on_a_line(message, f)?;
        }
        Ok(())
    }
}

/// Keys and names of files are told as they were written: none of them begins a line or moves a cursor.
fn put_on_a_line(text: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for c in text.chars() {
        match c.is_control() {
            true => write!(f, "{}", c.escape_default())?,
            false => f.write_char(c)?,
        }
    }
    Ok(())
}

/// Collects problems while a configuration is being read.
#[derive(Debug, Default)]
pub(super) struct Problems {
    found: Vec<Problem>,
    /// Keys that are not from the file, with their variables.
    variables: Vec<(String, String)>,
}

impl Problems {
    /// The first problem of a value is told; what follows from it (a port that is no port is also
    /// missing) would only confuse.
    pub(super) fn add(&mut self, path: impl Into<String>, message: impl Into<String>) {
        let path = path.into();
        if self.has(&path) {
            return;
        }
        let is_in = |from: &str| {
            let rest = path.strip_prefix(from);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let variable = self.variables.iter().find(|(from, _)| is_in(from));
        self.found.push(Problem {
            variable: variable.map(|(_, name)| name.clone()),
            path,
            message: message.into(),
        });
    }

    /// Of a variable that sets no key; `path` is that of its section, if it has one.
    pub(super) fn add_of_variable(&mut self, name: &str, path: &str, message: impl Into<String>) {
        self.found.push(Problem {
            path: path.to_owned(),
            variable: Some(name.escape_debug().to_string()),
            message: message.into(),
        });
    }

    /// What is said of this key from now on is said of a variable.
    pub(super) fn is_from(&mut self, path: &str, variable: &str) {
        self.variables.push((path.to_owned(), variable.to_owned()));
    }

    /// Whether something is wrong with this value already.
    pub(super) fn has(&self, path: &str) -> bool {
        self.found.iter().any(|known| known.path == path)
    }

    pub(super) fn into_result<T>(
        self,
        file: &str,
        files: Stamps,
        value: Option<T>,
    ) -> Result<T, ConfigError> {
        match value {
            Some(value) if self.found.is_empty() => Ok(value),
            _ => Err(ConfigError {
                file: file.to_owned(),
                problems: self.found,
                files,
            }),
        }
    }
}
