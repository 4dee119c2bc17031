//! The configuration: read, judged and right by construction.
//!
//! [`Config::parse`] turns the text of a file into a [`Config`] or into *all* of its problems at
//! once, each with its path and what to write instead. An unknown key is a problem: a misspelt
//! limit that is silently off is the worst outcome of all. After this nothing needs checking again.

mod error;
mod json;
mod judge;
mod raw;
mod url;
mod values;

use std::{path::Path, time::Duration};

use http::HeaderValue;
use serde_json::Value;

pub use error::{ConfigError, Problem};

use crate::policy::{Rules, SidecarStatuses};
use error::Problems;

/// A configuration that can be used.
#[derive(Debug, Clone)]
pub struct Config {
    /// The old version of the service.
    pub main: Upstream,
    /// The new version of the service.
    pub canary: Upstream,
    /// Who is asked, where nothing else decides.
    pub sidecar: Option<Sidecar>,
    /// The status codes by which a sidecar answers; they are part of two metric labels even where
    /// there is no sidecar.
    pub sidecar_statuses: SidecarStatuses,
    /// Taken off the path at segment borders; empty for nothing.
    pub trim_prefix: String,
    /// The canary's budgets.
    pub limits: Limits,
    /// What happens to a request that cannot reach the canary.
    pub replay: Replay,
    /// The proxy's own listener.
    pub server: Server,
    /// The metrics listener, if there is one.
    pub instrumentation: Option<Listen>,
    /// What is logged.
    pub log: Log,
    /// The configuration in force, defaults included, secrets masked: for people.
    pub effective: Value,
}

/// One service that we send requests to, and how.
#[derive(Debug, Clone)]
pub struct Upstream {
    /// Whether it speaks TLS.
    pub tls: bool,
    /// Name or address, without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// The `Host` that it sees.
    pub host_header: HeaderValue,
    /// What request paths are appended to: empty, or starting with a slash.
    pub base_path: String,
    /// What request queries are appended to.
    pub query: Option<String>,
    /// Timeouts and the pool.
    pub client: Client,
}

/// How connections to an upstream are made and kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Client {
    /// The wait for a response head, connecting included.
    pub timeout: Duration,
    /// The wait for a connection, name resolution and TLS handshake included.
    pub connect_timeout: Duration,
    /// Idle connections that are kept, over all workers.
    pub max_idle_conns: usize,
    /// How long an idle connection is kept.
    pub idle_conn_timeout: Duration,
    /// Take any TLS certificate.
    pub insecure_skip_verify: bool,
}

/// The sidecar and what it is given.
#[derive(Debug, Clone)]
pub struct Sidecar {
    /// Where it is.
    pub upstream: Upstream,
    /// Bytes of a request body that it gets; of a longer one it gets this much.
    pub max_body: usize,
}

/// The canary's budgets; `None` is off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Requests over the life of the process.
    pub requests: Option<u64>,
    /// Bad responses over the life of the process.
    pub errors: Option<u32>,
}

/// `fallback.replay`: which failed canary requests are sent to main.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replay {
    /// None: the client gets the error.
    Off,
    /// Those of which nothing was sent: refused, unresolved, connect timeout.
    Connect,
}

/// The proxy's own listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Address to listen on.
    pub listen: Listen,
    /// Data-plane threads; 0 is one per available core.
    pub workers: usize,
    /// The time for a request head to arrive, and for a request body to make progress.
    pub read_timeout: Duration,
    /// The time for a client to take some of what is sent to it.
    pub write_timeout: Duration,
    /// How long an idle keep-alive connection is kept.
    pub idle_timeout: Duration,
    /// How long a drain may take.
    pub shutdown_timeout: Duration,
    /// The largest request head; beyond it the answer is 431.
    pub max_header_bytes: usize,
}

/// Where to listen. Port 0 (which no file can say) takes a free one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// Name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

/// What is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Log {
    /// The least severe level that is logged.
    pub level: Level,
    /// At debug: the bodies of forwarded requests.
    pub request_body: bool,
    /// At debug: the bodies of responses.
    pub response_body: bool,
}

/// A log level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Failures of our own.
    Error,
    /// And of upstreams.
    Warn,
    /// And what the process does.
    Info,
    /// And every forwarded request.
    Debug,
    /// And what the libraries say.
    Trace,
}

impl Config {
    /// Reads and judges a file.
    ///
    /// # Errors
    /// Everything that keeps it from being used.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let file = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError {
            file: file.clone(),
            problems: vec![Problem {
                path: String::new(),
                message: format!("cannot be read: {error}; name the file with -c FILE"),
            }],
        })?;
        Config::parse(&file, &text)
    }

    /// Judges the text of a file; `file` is how error messages name it.
    ///
    /// # Errors
    /// Everything that keeps it from being used.
    pub fn parse(file: &str, text: &str) -> Result<Config, ConfigError> {
        let mut problems = Problems::default();
        let config = json::read(text, &mut problems)
            .and_then(|raw| judge::judge(raw.with_defaults(), &mut problems));
        problems.into_result(file, config)
    }

    /// What decisions depend on.
    pub fn rules(&self) -> Rules {
        Rules {
            sidecar: self.sidecar.is_some().then_some(self.sidecar_statuses),
        }
    }
}

#[cfg(test)]
mod tests;
