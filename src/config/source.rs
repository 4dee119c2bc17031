//! Where a configuration comes from: a file with the environment over it, or the environment alone.

use std::{
    env,
    ffi::OsString,
    fmt, fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use super::{
    Config, ConfigError, Problem, Stamps, environment::Environment, json::template, stamps,
};

/// The file that is looked for where none is named.
const DEFAULT_FILE: &str = "config.json";

/// Where a configuration comes from. It is settled once, so that a file which is away for a moment is an error
/// when it is read again, and not another configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A file, and the environment, which wins.
    File(PathBuf),
    /// The environment alone.
    Environment,
}

impl Source {
    /// The file that was named; otherwise `config.json`; and where that is not there and the environment of this
    /// process has a key, that alone.
    pub fn new(named: Option<&Path>) -> Source {
        let file = named.unwrap_or(Path::new(DEFAULT_FILE));
        let is_absent =
            || fs::symlink_metadata(file).is_err_and(|error| error.kind() == ErrorKind::NotFound);
        let has_a_key = || {
            !Environment::new(env::vars_os())
                .in_force(template())
                .is_empty()
        };
        match named.is_none() && is_absent() && has_a_key() {
            true => Source::Environment,
            false => Source::File(file.to_owned()),
        }
    }

    /// Reads and judges it, with the environment of this process.
    ///
    /// # Errors
    /// Everything that keeps it from being used.
    pub fn load(&self) -> Result<Config, ConfigError> {
        self.load_with(env::vars_os())
    }

    /// The same while a router runs, which waits for nobody: what is no file, such as a pipe, is refused.
    ///
    /// # Errors
    /// Everything that keeps it from being used.
    pub fn load_again(&self) -> Result<Config, ConfigError> {
        let Source::File(path) = self else {
            return self.load();
        };
        // Looked at before it is opened: opening a pipe waits for somebody to write.
        let found = stamps([path]);
        let refused = |why: &dyn fmt::Display| unreadable(path, found, why, "put the file back");
        match fs::metadata(path) {
            Ok(found) if found.is_file() => self.load(),
            Ok(_) => Err(refused(&"it is not a file")),
            Err(error) => Err(refused(&error)),
        }
    }

    /// As at the start, with this environment.
    ///
    /// # Errors
    /// Everything that keeps it from being used.
    pub fn load_with(
        &self,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Config, ConfigError> {
        let environment = Environment::new(environment);
        let Source::File(path) = self else {
            return super::judged(None, &environment);
        };
        let found = stamps([path]);
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => {
                return Err(unreadable(
                    path,
                    found,
                    &error,
                    "name the file with -c FILE",
                ));
            }
        };
        let mut judged = super::judged(Some((&path.display().to_string(), &text)), &environment);
        match &mut judged {
            Ok(config) => config.files.extend(found),
            Err(error) => error.files.extend(found),
        }
        judged
    }
}

fn unreadable(path: &Path, files: Stamps, why: &dyn fmt::Display, what_to_do: &str) -> ConfigError {
    ConfigError {
        file: path.display().to_string(),
        problems: vec![Problem {
            path: String::new(),
            variable: None,
            message: format!("cannot be read: {why}; {what_to_do}"),
        }],
        files,
    }
}

impl fmt::Display for Source {
    /// As problems name it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::File(path) => path.display().fmt(f),
            Source::Environment => f.write_str(super::ENVIRONMENT),
        }
    }
}
