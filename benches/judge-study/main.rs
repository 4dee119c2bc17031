//! Shows, by simulation with fixed seeds, what the judge of `policy::analysis` does to good canaries and to bad
//! ones, beside the rules by which canaries are usually rolled back.
//!
//!     cargo run --release --example judge-study -- [--quick] [--only WORD] [--svg PATH]
//!
//! prints a table in Markdown and draws a chart. `docs/analysis.md` shows both. It ends with 1 if the judge
//! does not keep what it must. `tests/judge.rs` is a shorter version of it.

#![allow(clippy::print_stdout, clippy::print_stderr)]

mod cases;
mod chart;
mod random;
mod rules;
mod run;
mod table;
mod world;

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::Parser;
use rules::Name;

#[derive(Parser)]
struct Args {
    /// A tenth of the runs.
    #[arg(long)]
    quick: bool,
    /// Only cases of which the name contains this; draws nothing.
    #[arg(long)]
    only: Option<String>,
    /// Where the chart goes.
    #[arg(long, default_value = "docs/judge-study.svg")]
    svg: PathBuf,
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let mut cases = cases::all();
    if let Some(word) = &args.only {
        cases.retain(|case| case.id.contains(word.as_str()));
    }
    let mut results = Vec::new();
    for case in cases {
        let runs = if args.quick {
            case.runs / 10
        } else {
            case.runs
        };
        eprintln!("{}: {runs} runs", case.id);
        let did = run::run(&case, runs);
        results.push((case, did));
    }
    print!("{}", table::table(&results));
    if args.only.is_none() {
        let context = || format!("{}", args.svg.display());
        fs::write(&args.svg, chart::chart(&results)).with_context(context)?;
    }
    let kept = results.iter().all(|(case, did)| {
        let judge = did.iter().filter(|did| did.rule == Name::Judge);
        judge
            .filter_map(|did| table::keeps(case.must, did))
            .all(|kept| kept)
    });
    Ok(ExitCode::from(u8::from(!kept)))
}
