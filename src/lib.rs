//! A canary reverse proxy: for each request it decides between two upstreams, *main* (the old
//! version of a service) and *canary* (the new one), within limits that protect users.
//!
//! # The map
//!
//! | module | what it is | may import |
//! |---|---|---|
//! | [`policy`] | what is decided: pure functions and values | the standard library |
//! | [`config`] | file and environment, judged and right by construction | `policy`, `roots` |
//! | [`state`] | what both planes share: snapshot, permits, tallies | `policy`, `config` |
//! | [`proxy`] | the data plane: worker threads that forward requests | `state`, `policy`, `config`, `clock` |
//! | [`control`] | the control plane: metrics, health, commands and the judge, on its own thread; state file and spans on theirs | `state`, `policy`, `config`, `clock` |
//! | [`app`] | puts it together, starts and stops it | all |
//! | [`cli`] | the command line of a router that runs: a client of the instrumentation port | `VERSION` |
//! | [`offline`] | the commands that need no router | `config` |
//! | [`clock`] | the only place that reads time | the standard library |
//! | [`causes`], [`uuid`], [`roots`] | an error with all that caused it; random names; the system's CAs | none of ours |
//! | [`telemetry`] | log lines | `config`, `clock` |
//!
//! The data plane and the control plane never import each other; they meet in [`state`]: snapshots
//! go down, tallies come up. `tests/architecture.rs` holds the borders.
//!
//! # The life of a request
//!
//! 1. A worker's listener accepts a connection ([`proxy::listener`], [`proxy::worker`]); requests are
//!    read from it one after the other ([`proxy::conversation`], [`proxy::http1`]).
//! 2. [`proxy::service`] takes the current snapshot, strips what belongs to the connection
//!    ([`proxy::headers`]) and trims the prefix ([`proxy::uri`]).
//! 3. [`policy::decide`] settles where it goes, or says that the sidecar must be asked, which
//!    [`proxy::sidecar`] does.
//! 4. Where the weight leaves it to chance, [`proxy::split`] draws. A request for the canary needs a permit
//!    from [`state::admission`], or goes to main.
//! 5. [`proxy::forward`] sends it on a connection from the worker's [`proxy::pool`], and falls back
//!    to main if nothing of it could be sent to the canary.
//! 6. The response streams back ([`proxy::body`]); when it ends, breaks off or is dropped, permit and
//!    tally are settled, once ([`proxy::record`]).

pub mod app;
pub mod causes;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod offline;
pub mod policy;
pub mod proxy;
pub mod roots;
pub mod state;
pub mod telemetry;
pub mod uuid;

/// This build's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit that this build is of; empty where nobody knows (`build.rs`).
pub const COMMIT: &str = match option_env!("BUILD_COMMIT") {
    Some(commit) => commit,
    None => "",
};

/// The version with the commit, and the commit's date, where they are known: `0.1.0 (abcdef123456 2026-11-25)`.
pub const LONG_VERSION: &str = match option_env!("BUILD_VERSION") {
    Some(version) => version,
    None => VERSION,
};
