//! Instructions per request, counted by callgrind: what to judge a change by, because it repeats
//! where time does not. It does not see the kernel, which is most of the time, nor caches.
//!
//! One worker, one connection, one request after the other; two runs of different length, and the
//! difference, so that start and end of the process fall out.
//!
//!     cargo bench --bench instructions -- --help

// It prints and reads the clock: that is what it is for.
#![allow(clippy::print_stdout, clippy::print_stderr, clippy::disallowed_methods)]

#[path = "../kit/mod.rs"]
// Each bench uses its part of the kit.
#[allow(dead_code)]
mod kit;

mod callgrind;
mod history;
mod profile;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum};

use callgrind::Callgrind;
use kit::{
    machine,
    message::Exchange,
    process::{Folder, find},
    proxies::Guards,
};

/// Counts the instructions that the router executes per request, under valgrind --tool=callgrind.
///
/// User space only, all threads. Repeats to 1 %: prove it with --repeat 3.
#[derive(Parser)]
#[command(name = "cargo bench --bench instructions --")]
struct Arguments {
    /// What to send; without it, everything
    requests: Vec<Request>,
    /// The router; without it, the one that cargo has just built
    #[arg(long, value_name = "PATH")]
    router: Option<PathBuf>,
    /// Count several times and say how far the counts are apart
    #[arg(long, default_value_t = 1)]
    repeat: usize,
    /// Requests of the shorter run
    #[arg(long, default_value_t = 500)]
    short: u64,
    /// Requests of the longer run
    #[arg(long, default_value_t = 2500)]
    long: u64,
    /// Append a line to benches/instructions.tsv, with this note
    #[arg(long, value_name = "NOTE")]
    append: Option<String>,
    /// Instead of counting: the functions in which the instructions are
    #[arg(long)]
    profile: bool,
    /// Functions in each list of --profile
    #[arg(long, default_value_t = 40)]
    top: usize,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// A kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Request {
    /// GET, 1 KiB answer
    Plain,
    /// The same, with a question to a sidecar that answers 204
    Sidecar,
    /// POST of 16 KiB, 1 KiB answer
    Post,
    /// GET, 64 KiB answer
    Large,
    /// As `sidecar`, answered by the canary, which nothing guards
    Canary,
    /// The same with limits, breaker and replays on
    Guarded,
    /// As `plain`, half of them for the canary, by the weight
    Drawn,
    /// The same in the step of a rollout, so that the judge is told
    Judged,
    /// As `plain`, with a line in the access log
    Logged,
}

impl Request {
    fn name(self) -> &'static str {
        match self {
            Request::Plain => "plain",
            Request::Sidecar => "sidecar",
            Request::Post => "post",
            Request::Large => "large",
            Request::Canary => "canary",
            Request::Guarded => "guarded",
            Request::Drawn => "drawn",
            Request::Judged => "judged",
            Request::Logged => "logged",
        }
    }

    fn asks_sidecar(self) -> bool {
        matches!(self, Request::Sidecar | Request::Canary | Request::Guarded)
    }

    fn guards(self) -> Guards {
        match self {
            Request::Canary => Guards::Off,
            Request::Guarded => Guards::All,
            Request::Drawn => Guards::Weight,
            Request::Judged => Guards::Rollout,
            Request::Logged => Guards::Logged,
            Request::Plain | Request::Sidecar | Request::Post | Request::Large => Guards::Limits,
        }
    }

    fn exchange(self) -> Exchange {
        match self {
            Request::Post => Exchange::new("POST", 16 << 10, 1 << 10),
            Request::Large => Exchange::new("GET", 0, 64 << 10),
            Request::Plain
            | Request::Sidecar
            | Request::Canary
            | Request::Guarded
            | Request::Drawn
            | Request::Judged
            | Request::Logged => Exchange::new("GET", 0, 1 << 10),
        }
    }
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    ensure!(
        arguments.short < arguments.long,
        "--short must be below --long"
    );
    ensure!(arguments.repeat > 0, "--repeat must be 1 at least");
    let requests = match &arguments.requests[..] {
        [] => Request::value_variants(),
        some => some,
    };
    let all = requests == Request::value_variants();
    ensure!(
        arguments.append.is_none() || all && !arguments.profile,
        "--append is for counts of everything: name no requests"
    );
    let router = arguments
        .router
        .unwrap_or_else(|| env!("CARGO_BIN_EXE_canary-router").into());
    machine::punctual_timers()?;
    let folder = Folder::new()?;
    let callgrind = Callgrind {
        valgrind: find("valgrind", "valgrind")?,
        router: std::path::absolute(router)?,
        folder: &folder,
    };

    if arguments.profile {
        for &request in requests {
            let out = callgrind.record(request, arguments.long)?;
            let profile = profile::of(&out, arguments.long, arguments.top)?;
            println!(
                "## {}: instructions per request\n\n{profile}",
                request.name()
            );
        }
        return Ok(());
    }
    let mut last = Vec::new();
    println!("| request | instructions | spread |\n|---|--:|--:|");
    for &request in requests {
        let mut counts = Vec::new();
        for _ in 0..arguments.repeat {
            counts.push(callgrind.per_request(request, arguments.short, arguments.long)?);
        }
        counts.sort_unstable();
        let median = counts[counts.len() / 2];
        let spread = counts[counts.len() - 1] - counts[0];
        let percent = spread as f64 * 100.0 / median as f64;
        println!("| {} | {median} | {percent:.2} % |", request.name());
        last.push(median);
    }
    match arguments.append {
        Some(note) => history::append(&last, &note),
        None => Ok(()),
    }
}
