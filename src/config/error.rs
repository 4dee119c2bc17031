//! What is wrong with a configuration: all of it at once.

use std::fmt;

/// One thing that is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// JSON Pointer (RFC 6901) of the value, such as `/router-server/port`; empty for the whole
    /// document.
    pub path: String,
    /// What is wrong and what to write instead.
    pub message: String,
}

/// A configuration that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// The file as the user named it.
    pub file: String,
    /// At least one.
    pub problems: Vec<Problem>,
}

impl fmt::Display for ConfigError {
    /// A line for each problem: `config.json: /main-target: is missing: …`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, Problem { path, message }) in self.problems.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            match path.as_str() {
                "" => write!(f, "{}: {message}", self.file)?,
                path => write!(f, "{}: {path}: {message}", self.file)?,
            }
        }
        Ok(())
    }
}

/// Collects problems while a configuration is being read.
#[derive(Debug, Default)]
pub(super) struct Problems(Vec<Problem>);

impl Problems {
    /// The first problem of a value is told; what follows from it (a port that is no port is also
    /// missing) would only confuse.
    pub(super) fn add(&mut self, path: impl Into<String>, message: impl Into<String>) {
        let path = path.into();
        if self.has(&path) {
            return;
        }
        self.0.push(Problem {
            path,
            message: message.into(),
        });
    }

    /// Whether something is wrong with this value already.
    pub(super) fn has(&self, path: &str) -> bool {
        self.0.iter().any(|known| known.path == path)
    }

    pub(super) fn into_result<T>(self, file: &str, value: Option<T>) -> Result<T, ConfigError> {
        match value {
            Some(value) if self.0.is_empty() => Ok(value),
            _ => Err(ConfigError {
                file: file.to_owned(),
                problems: self.0,
            }),
        }
    }
}
