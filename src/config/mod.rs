//! The configuration: read, judged and right by construction.
//!
//! [`Config::load`] turns a file and the environment into a [`Config`] or into *all* of their problems at
//! once, each with its path and what to write instead. An unknown key is a problem: a misspelt
//! limit that is silently off is the worst outcome of all. After this nothing needs checking again.

mod breakers;
mod environment;
mod error;
mod fallback;
mod files;
mod instrumentation;
mod json;
mod judge;
mod raw;
mod rollout;
mod schema;
mod server;
mod sidecar;
mod source;
mod telemetry;
mod tls;
mod traffic;
mod url;
mod values;
mod words;

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, StatusCode, uri::PathAndQuery};
use ipnet::IpNet;
use serde_json::Value;

pub use error::{ConfigError, Problem};
pub use files::{Stamps, stamps};
pub use rollout::LONGEST_TIMEOUT;
pub use schema::{reference, schema};
pub use source::Source;
pub use tls::{ClientTls, ServerTls};

use crate::policy::{self, FailureRule, Rules, SidecarStatuses, Weight, breaker};
use environment::Environment;
use error::{ENVIRONMENT, Problems};
use raw::Raw;

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
    /// When a target gets no requests for a while.
    pub breakers: Breakers,
    /// What happens to a request that the canary failed.
    pub fallback: Fallback,
    /// Which share of eligible requests the canary gets, and for whom that stays as it is.
    pub traffic: Traffic,
    /// `override.trusted`: from whom `X-Canary` is believed; `None` is everyone, an empty list nobody.
    pub trusted_overrides: Option<Vec<IpNet>>,
    /// How the canary's share rises by itself, if it can be told to.
    pub rollout: Option<Rollout>,
    /// The proxy's own listener.
    pub server: Server,
    /// The listener for metrics, health and commands, if there is one.
    pub instrumentation: Option<Instrumentation>,
    /// What is logged.
    pub log: Log,
    /// Where spans of requests are sent, if anywhere.
    pub tracing: Option<Tracing>,
    /// Where that is kept which survives a restart; `None` is in memory only.
    pub state: Option<StateFile>,
    /// Whether any upstream may be spoken to in HTTP/2.
    pub speaks_http2: bool,
    /// The environment variables that set a key, by name.
    pub variables: Vec<String>,
    /// The configuration in force, defaults included, secrets masked: for people.
    pub effective: Value,
    /// What it was read from, as error messages name it.
    pub file: String,
    /// `reload.watch`: whether it is read again when it changes.
    pub watch: bool,
    /// The file that it was read from, if it was, and those that it names, as they were before they were read.
    pub files: Stamps,
}

/// One service that we send requests to, and how. `Debug` does not show the query, where keys for APIs live.
#[derive(Clone)]
pub struct Upstream {
    /// Whether it speaks TLS.
    pub tls: bool,
    /// Where it is.
    pub address: Address,
    /// The `Host` that it sees; `localhost` behind a unix socket, unless another one is set.
    pub host_header: HeaderValue,
    /// What request paths are appended to: empty, or starting with a slash.
    pub base_path: String,
    /// What request queries are appended to.
    pub query: Option<String>,
    /// Timeouts and the pool.
    pub client: Client,
    /// How it is spoken where `tls`; main and canary share it.
    pub client_tls: Arc<ClientTls>,
}

/// Where an upstream is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// Behind a network.
    Tcp {
        /// Name or address, without brackets.
        host: String,
        /// TCP port; not 0.
        port: u16,
    },
    /// Behind a unix socket: an absolute path of at most 107 bytes, none of them zero.
    Unix(PathBuf),
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
    /// A connection that is older is not used again, so that a changed name is followed; a second or more.
    pub max_conn_age: Duration,
    /// What is spoken.
    pub protocol: Protocol,
}

/// `proxy-client.*.protocol`: what is spoken to an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// `"http1"`: HTTP/1.1.
    Http1,
    /// `"h2"`: HTTP/2, without TLS by prior knowledge (RFC 9113 section 3.3).
    Http2,
    /// `"auto"`: what the upstream chooses in the TLS handshake (ALPN); without TLS, HTTP/1.1.
    Auto,
}

/// The sidecar and what it is given.
#[derive(Debug, Clone)]
pub struct Sidecar {
    /// Where it is.
    pub upstream: Upstream,
    /// Bytes of a request body that it gets; of a longer one it gets this much.
    pub max_body: usize,
    /// `sidecar.body`: whether it gets the body at all.
    pub body: SidecarBody,
    /// `sidecar.cache`: for how long its word holds, and for whom.
    pub cache: Option<SidecarCache>,
}

/// `sidecar.body`: what of a request the sidecar gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SidecarBody {
    /// Head and body, up to `sidecar.max-body` of it.
    Full,
    /// The head alone, with `X-Canary-Body: none`.
    None,
}

/// `sidecar.cache`: answers of the sidecar that are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SidecarCache {
    /// What two requests must have in common to share an answer; at least one.
    pub key: Vec<CacheKey>,
    /// How long an answer is kept unless it says something else; a millisecond to a day.
    pub ttl: Duration,
    /// Answers that are kept, over all workers; 1 to 10,000,000.
    pub max_entries: u64,
}

/// One part of a request by which the sidecar's answers are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CacheKey {
    /// `"header:NAME"`: the values of a header.
    Header(HeaderName),
    /// `"cookie:NAME"`: the value of a cookie; a token, in its own case.
    Cookie(String),
    /// `"method"`.
    Method,
    /// `"path"`: without the query.
    Path,
    /// `"query"`.
    Query,
    /// `"client-ip"`: the address of the connection.
    ClientIp,
}

/// The canary's budgets; `None` is off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Requests over the life of the process.
    pub requests: Option<u64>,
    /// Bad responses over the life of the process.
    pub errors: Option<u32>,
    /// `circuit-breaker.errors`: which responses are bad.
    pub counted: FailureRule,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            requests: None,
            errors: None,
            counted: FailureRule::NotSuccess,
        }
    }
}

/// The breakers of the two targets; `None` is off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Breakers {
    /// `circuit-breaker`.
    pub canary: Option<Breaker>,
    /// `circuit-breaker.main`.
    pub main: Option<Breaker>,
}

/// The breaker of one target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Breaker {
    /// When it opens and closes.
    pub settings: breaker::Settings,
    /// Which statuses are failures to it; an upstream that does not answer always failed.
    pub failure: FailureRule,
}

/// `fallback`: what stands in for an answer of the canary that no client should see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fallback {
    /// Which failed canary requests are sent to main.
    pub replay: Replay,
    /// Under [`Replay::Failures`], methods that are replayed without an `Idempotency-Key`.
    pub methods: Vec<Method>,
    /// Under [`Replay::Failures`], statuses of the canary that are replayed; each in 400–599.
    pub statuses: Vec<u16>,
    /// Bytes of a request body that are kept for a replay; a longer one streams and is not replayed.
    pub max_body: usize,
    /// The share of canary requests that may be replayed, in hundredths of a percent, 0 to 10,000.
    pub budget: u32,
    /// `fallback.static`: what a client gets when nothing else can answer.
    pub fixed: Option<FixedAnswer>,
}

/// `fallback.replay`: which failed canary requests are sent to main.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replay {
    /// None: the client gets the error.
    Off,
    /// Those of which nothing was sent: refused, unresolved, connect timeout.
    Connect,
    /// Those too that the canary reset, did not answer in time or answered with a failure.
    Failures,
}

/// `fallback.static`: an answer that needs no upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FixedAnswer {
    /// Its status, 200 to 599.
    pub status: StatusCode,
    /// Its `Content-Type`.
    pub content_type: HeaderValue,
    /// At most 1 MiB; empty for 204, 205 and 304. Of a `file`, what was in it when the configuration
    /// was read.
    pub body: Bytes,
}

/// `traffic`: the canary's share of eligible requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traffic {
    /// The share, where no rollout and no command says another.
    pub weight: Weight,
    /// By what a client is known, so that it stays where it is; `None` draws for each request.
    pub sticky: Option<Sticky>,
}

/// `traffic.sticky.by`: what a client is known by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sticky {
    /// `"cookie"`: a cookie that the router sets.
    Cookie(StickyCookie),
    /// `"header:NAME"`: the values of a header.
    Header(HeaderName),
    /// `"cookie:NAME"`: the value of somebody else's cookie; a token, in its own case.
    NamedCookie(String),
    /// `"client-ip"`: the address of the connection.
    ClientIp,
}

/// The cookie that the router sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StickyCookie {
    /// A token (RFC 6265 section 4.1.1), in its own case.
    pub name: String,
    /// How long a client keeps it; a second to a year.
    pub max_age: Duration,
    /// Whether it is sent over TLS only.
    pub secure: bool,
    /// With which requests of other sites it is sent.
    pub same_site: SameSite,
}

/// `traffic.sticky.same-site`: with which requests of other sites the cookie is sent (RFC 6265bis).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SameSite {
    /// With none.
    Strict,
    /// With those that lead to a page.
    Lax,
    /// With all; the cookie is secure then.
    None,
}

/// `rollout`: the canary's share step by step, under the eyes of a judge.
#[derive(Debug, Clone, PartialEq)]
pub struct Rollout {
    /// 1 to 100 steps, whose weights do not fall, and what becomes of one without enough evidence.
    pub settings: policy::rollout::Settings,
    /// How much worse than main the canary may be.
    pub judge: policy::analysis::Settings,
    /// `rollout.failure`: which statuses are failures to the judge; an upstream that does not answer
    /// always failed.
    pub failure: FailureRule,
}

/// `state.file`: where that is kept which survives a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateFile {
    /// The file, relative to the working directory. It need not exist yet.
    pub path: PathBuf,
}

/// The proxy's own listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Address to listen on.
    pub listen: Listen,
    /// `None` is plain text.
    pub tls: Option<ServerTls>,
    /// Whether HTTP/2 is spoken to clients that want it.
    pub http2: bool,
    /// From whom `X-Forwarded-*` and the PROXY header are believed; empty is nobody.
    pub trusted_proxies: Vec<IpNet>,
    /// Whether connections of `trusted_proxies`, of which there is one at least, begin with a PROXY header.
    pub proxy_protocol: bool,
    /// Data-plane threads; 0 is one per available core.
    pub workers: usize,
    /// Connections at a time, over all workers; at most 10,000,000. 0 is what the descriptors allow.
    pub max_connections: usize,
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

/// `instrumentation`: metrics, health and commands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instrumentation {
    /// Address to listen on.
    pub listen: Listen,
    /// What a client must show before it may change anything.
    pub token: Option<Token>,
}

/// A bearer token (RFC 6750): 16 or more visible ASCII characters. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// As a client sends it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(***)")
    }
}

/// What is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Log {
    /// The least severe level that is logged.
    pub level: Level,
    /// How a line looks.
    pub format: LogFormat,
    /// Whether each request has a line of its own.
    pub access: AccessLog,
    /// At debug: the bodies of forwarded requests.
    pub request_body: bool,
    /// At debug: the bodies of responses.
    pub response_body: bool,
}

/// `log.format`: how a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// `"json"`: an object, for programs.
    Json,
    /// `"text"`: for people.
    Text,
}

/// `log.access`: whether each request has a line of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessLog {
    /// `"off"`: none has.
    Off,
    /// `"json"`: an object, whatever the other lines are.
    Json,
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

/// `tracing`: spans of requests, for a collector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tracing {
    /// Where they are sent.
    pub endpoint: Endpoint,
    /// Which share of the requests is traced that come without a `traceparent`; with one, its `sampled` flag
    /// says whether they are.
    pub sample: Weight,
    /// What the collector knows us by; not empty.
    pub service_name: String,
}

/// `tracing.endpoint`: a collector that takes OTLP over HTTP. `Debug` does not show the query.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Whether it speaks TLS.
    pub tls: bool,
    /// Name or address, without brackets.
    pub host: String,
    /// TCP port; not 0.
    pub port: u16,
    /// The `Host` that it sees.
    pub host_header: HeaderValue,
    /// What is posted to: the path of the base URL, `/v1/traces`, and the query, if there is one.
    pub path: PathAndQuery,
}

impl Config {
    /// Reads and judges a file, with the environment of this process over it: `CANARY_ROUTER_…` wins.
    ///
    /// # Errors
    /// Everything that keeps it from being used.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        Source::File(path.to_owned()).load()
    }

    /// Judges the text of a file by itself; `file` is how error messages name it. Files that the text names
    /// are read too; relative paths start at the working directory, like those on a command line.
    ///
    /// # Errors
    /// Everything that keeps it from being used.
    pub fn parse(file: &str, text: &str) -> Result<Config, ConfigError> {
        judged(Some((file, text)), &Environment::default())
    }

    /// What decisions depend on.
    pub fn rules(&self) -> Rules {
        Rules {
            sidecar: self.sidecar.is_some().then_some(self.sidecar_statuses),
        }
    }
}

/// A file by its name and its text, and the environment over it.
fn judged(file: Option<(&str, &str)>, environment: &Environment) -> Result<Config, ConfigError> {
    let name = file.map_or(ENVIRONMENT, |(name, _)| name);
    let mut problems = Problems::default();
    if file.is_none() {
        // What is missing can only be missing there.
        for (name, path) in environment::names(json::template()) {
            problems.is_from(&path, &name);
        }
    }
    let raw = json::read(file.map(|(_, text)| text), environment, &mut problems);
    let raw = raw.map(Raw::with_defaults);
    let files = raw.as_ref().map(judge::named_files);
    let files = stamps(files.iter().flatten());
    let config = raw
        .and_then(|raw| judge::judge(raw, name, files.clone(), &mut problems))
        .map(|config| Config {
            variables: environment.in_force(json::template()),
            ..config
        });
    problems.into_result(name, files, config)
}

#[cfg(test)]
mod tests;
