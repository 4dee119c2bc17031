//! The router beside Debian's nginx and haproxy: CPU time per request, throughput, latency, memory.
//!
//! The proxies take turns, round by round, each in a fresh process, so that what else happens on the
//! machine hits all of them; ratios are made within a round, and it is their median that counts. The
//! proxy has its own core (one per worker, where there are enough), load generator, upstream and
//! sidecar share the others. Nothing here goes over a network.
//!
//!     cargo bench --bench compare -- --help

// It prints tables and reads the clock: that is what it is for.
#![allow(clippy::print_stdout, clippy::print_stderr, clippy::disallowed_methods)]

#[path = "../kit/mod.rs"]
// Each bench uses its part of the kit.
#[allow(dead_code)]
mod kit;

mod by_h2load;
mod cell;
mod idle;
mod table;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};

use cell::{Cell, Measured};
use kit::{
    certificate, h2load,
    machine::{self, Cores},
    nghttpd,
    process::Folder,
    proxies::Proxy,
    workload::Workload,
};
use table::Rounds;

/// Compares builds of the router with Debian's nginx and haproxy, and prints markdown tables.
///
/// CPU is the time of all the proxy's threads and processes, user and system, per request, in a
/// closed loop over keep-alive connections; with `handshake`, per connection. Latency is from another, open-loop run at a fixed rate,
/// from the moment a request was due (no coordinated omission). Ratios are taken within a round;
/// the table has their median and, in brackets, the least and the greatest of them.
#[derive(Parser)]
#[command(name = "cargo bench --bench compare --")]
struct Arguments {
    /// What to send; without it, everything
    workloads: Vec<Workload>,
    /// A build of the router, repeatable; without it, the one that cargo has just built
    #[arg(long = "router", value_name = "NAME=PATH", value_parser = router)]
    routers: Vec<Proxy>,
    /// No router at all, only those that it is compared with
    #[arg(long, conflicts_with = "routers")]
    no_router: bool,
    /// What to compare with; the first one is what ratios refer to
    #[arg(long, value_delimiter = ',', default_value = "nginx,haproxy")]
    against: Vec<Opponent>,
    /// Rounds in which each proxy has its turn
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Length of each measurement; a turn has two
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Workers of each proxy; several give a table each, and one of how they scale. Where there are
    /// too few cores, proxy and load share them, and the smaller number is measured so as well
    #[arg(long, value_delimiter = ',', default_value = "1,2")]
    workers: Vec<usize>,
    /// Keep-alive connections
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// The same with HTTP/2
    #[arg(long, default_value_t = 8)]
    h2_connections: usize,
    /// Requests in flight on each of these
    #[arg(long, default_value_t = 16)]
    streams: usize,
    /// Requests a second of the open loop, instead of a moderate rate for the workload; 0 for none.
    /// With `handshake` it is connections a second, and there is always some
    #[arg(long)]
    rate: Option<u32>,
    /// Seconds to wait before a turn for others to leave the machine alone; after that it is taken
    /// all the same
    #[arg(long, default_value_t = 60.0)]
    patience: f64,
    /// A turn in which others used more than 3 % of the machine is taken again, so often at most; the
    /// least disturbed one counts
    #[arg(long, default_value_t = 3)]
    again: usize,
    /// Idle connections of the workload `idle`
    #[arg(long, default_value_t = 10_000)]
    idle_connections: usize,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// The part of the machine that others may use before a turn is taken again.
const DISTURBED: f64 = 0.03;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Opponent {
    /// Debian's nginx
    Nginx,
    /// Debian's haproxy
    Haproxy,
    /// Nobody: the first router is what ratios refer to
    None,
}

fn router(text: &str) -> Result<Proxy> {
    let (name, binary) = text.split_once('=').context("must be NAME=PATH")?;
    Ok(Proxy::Router {
        name: name.into(),
        binary: binary.into(),
    })
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

fn run(mut arguments: Arguments) -> Result<()> {
    ensure!(arguments.rounds > 0, "--rounds must be 1 at least");
    if arguments.routers.is_empty() && !arguments.no_router {
        arguments.routers.push(Proxy::Router {
            name: "router".into(),
            binary: PathBuf::from(env!("CARGO_BIN_EXE_canary-router")),
        });
    }
    if arguments.workloads.is_empty() {
        arguments.workloads = Workload::value_variants().to_vec();
    }
    let all_cores = machine::cores()?;
    machine::punctual_timers()?;
    let folder = Folder::new()?;
    certificate::write(&folder)?;

    // All that is needed is looked for before the first is measured.
    let proxies = |&workload| anyhow::Ok((workload, arguments.proxies(workload)?));
    let planned: Vec<_> = arguments
        .workloads
        .iter()
        .map(proxies)
        .collect::<Result<_>>()?;
    for (workload, proxies) in planned {
        if workload == Workload::Idle {
            let cores = Cores::for_workers(1, &all_cores);
            let measured = idle::measure(&proxies, arguments.idle_connections, &cores, &folder)?;
            println!("{}", table::idle(arguments.idle_connections, &measured));
            continue;
        }
        let measure = |workers, cores| {
            let rounds = arguments.run(workload, &proxies, workers, cores, &folder)?;
            println!("{}", table::cells(&rounds));
            anyhow::Ok(rounds)
        };
        let [few, more @ ..] = &arguments.workers[..] else {
            continue;
        };
        let few = measure(*few, Cores::for_workers(*few, &all_cores))?;
        for &workers in more {
            let cores = Cores::for_workers(workers, &all_cores);
            let many = measure(workers, cores.clone())?;
            // What is compared must have been measured in the same place.
            match cores.are_shared() && !few.cores.are_shared() {
                false => println!("{}", table::scaling(&few, &many)),
                true => println!("{}", table::scaling(&measure(few.workers, cores)?, &many)),
            }
        }
    }
    Ok(())
}

impl Arguments {
    /// Who can do this, the one that ratios refer to first; an error where something is not installed.
    fn proxies(&self, workload: Workload) -> Result<Vec<Proxy>> {
        let mut proxies = Vec::new();
        for opponent in &self.against {
            match opponent {
                Opponent::Nginx => {
                    proxies.push(Proxy::Nginx { buffering: true });
                    if workload == Workload::Large {
                        proxies.push(Proxy::Nginx { buffering: false });
                    }
                }
                // It has no way to ask a sidecar over HTTP.
                Opponent::Haproxy if workload.asks_sidecar() => {}
                Opponent::Haproxy => proxies.push(Proxy::Haproxy),
                Opponent::None => {}
            }
        }
        proxies.extend(self.routers.iter().cloned());
        ensure!(
            !proxies.is_empty(),
            "{workload}: nobody is left to be measured"
        );
        for proxy in &proxies {
            proxy.program()?;
        }
        let wire = workload.wire();
        if !wire.is_plain() {
            h2load::program()?;
        }
        if wire.http2_upstream {
            nghttpd::program()?;
        }
        Ok(proxies)
    }

    fn run(
        &self,
        workload: Workload,
        proxies: &[Proxy],
        workers: usize,
        cores: Cores,
        folder: &Folder,
    ) -> Result<Rounds> {
        let wire = workload.wire();
        // Where all share the cores, a latency would tell of the scheduler.
        let rate = match (cores.are_shared(), self.rate) {
            (true, _) if wire.is_plain() => 0,
            (_, Some(0)) if workload == Workload::Handshake => workload.moderate_rate(),
            (_, given) => given.unwrap_or_else(|| workload.moderate_rate()),
        };
        let (connections, streams) = match wire.http2 {
            true => (self.h2_connections, self.streams),
            false => (self.connections, 1),
        };
        let cell = Cell {
            workload,
            workers,
            cores: &cores,
            connections,
            streams,
            seconds: self.seconds,
            rate,
            folder,
        };
        let mut rounds = Rounds::new(workload, workers, cores.clone(), cell.note(), proxies);
        for round in 1..=self.rounds {
            for (index, proxy) in proxies.iter().enumerate() {
                let turn = format!("{workload}, {workers} workers, round {round}, {proxy}");
                let least_disturbed = self.turn(&cell, proxy, &turn).context(turn)?;
                rounds.add(index, least_disturbed);
            }
        }
        Ok(rounds)
    }

    /// Of those that it takes, the one in which others were least in the way.
    fn turn(&self, cell: &Cell, proxy: &Proxy, name: &str) -> Result<Measured> {
        let mut best: Option<Measured> = None;
        for _ in 0..=self.again {
            machine::wait_for_quiet(DISTURBED, Duration::from_secs_f64(self.patience))?;
            let measured = cell.measure(proxy)?;
            eprintln!("{name}: {measured}");
            if best.is_none_or(|best| measured.others < best.others) {
                best = Some(measured);
            }
            if measured.others < DISTURBED {
                break;
            }
        }
        best.context("it has taken one at least")
    }
}
