//! Traffic of all kinds through a router to whose services, files, clock and descriptors bad things happen; and the
//! books of it, which have to balance.
//!
//! `tests/soak` builds and starts it. What happens is drawn from `--seed`; when it happens to meet what, is up to the
//! machine. A round has traffic and trouble, every second one by TLS; after each of them everything calms down, and it
//! is looked whether every request is accounted for and whether the router has given back all that it took.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    // A world of its own, with clocks and tasks of its own.
    clippy::disallowed_methods
)]

mod audit;
mod books;
mod clerk;
mod client;
mod config;
mod counts;
mod course;
mod figures;
mod ledger;
mod pattern;
mod pki;
mod plan;
mod router;
mod sayings;
mod service;
mod stage;
mod stream;
mod trouble;
mod verdict;
mod wire;

use std::{
    cell::{Cell, RefCell},
    path::PathBuf,
    process::ExitCode,
    rc::Rc,
};

use anyhow::Result;
use clap::Parser;
use tokio::task::LocalSet;

#[derive(Parser, Debug, Clone)]
struct Args {
    /// How long it goes on, about.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// What everything is drawn from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Requests per second, about.
    #[arg(long, default_value_t = 3000)]
    rate: u32,
    /// The program.
    #[arg(long)]
    router: PathBuf,
}

/// What clients, services and whoever watches them have in common.
struct World {
    pub seed: u64,
    pub books: RefCell<books::Books>,
    pub troubles: RefCell<trouble::Troubles>,
    pub pki: pki::Pki,
    /// Clients speak TLS to the router.
    pub is_tls: Cell<bool>,
    /// Clients begin requests.
    pub is_open: Cell<bool>,
    /// The router ends, and takes no more connections.
    pub is_ending: Cell<bool>,
    /// Something was done that the router complains of.
    pub has_expected_errors: Cell<bool>,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let world = Rc::new(World {
        seed: args.seed,
        books: RefCell::default(),
        troubles: RefCell::default(),
        pki: pki::Pki::new()?,
        is_tls: Cell::new(false),
        is_open: Cell::new(false),
        is_ending: Cell::new(false),
        has_expected_errors: Cell::new(false),
    });
    let balances = LocalSet::new().block_on(&runtime, course::run(&args, &world))?;
    Ok(match balances {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}
