//! Where the instructions are: callgrind's listings, made short enough to be read, per request.

use std::{collections::BTreeMap, path::Path, process::Command};

use anyhow::{Context, Result, ensure};

use crate::kit::process::find;

/// A line of a listing: the instructions of a function in a source file. An inlined function stands
/// under its own file with the name of the function that it was inlined into.
struct Line {
    instructions: u64,
    file: String,
    function: String,
}

/// Three lists of `out`, in instructions per request: by crate, by function, and by function with all
/// that it calls.
pub fn of(out: &Path, requests: u64, top: usize) -> Result<String> {
    let mut text = String::new();
    let own = listing(out, "no")?;
    let mut by_crate: BTreeMap<&str, u64> = BTreeMap::new();
    for line in &own {
        *by_crate.entry(krate(&line.file)).or_default() += line.instructions;
    }
    let mut crates: Vec<(&str, u64)> = by_crate.into_iter().collect();
    crates.sort_by_key(|&(_, instructions)| std::cmp::Reverse(instructions));

    text += "### by crate, inlined code where it was written\n\n";
    for (krate, instructions) in crates.into_iter().take(top) {
        row(&mut text, instructions / requests, krate);
    }
    let with_callees = listing(out, "yes")?;
    for (title, lines) in [
        ("by function, without what it calls", own),
        ("by function, with what it calls", with_callees),
    ] {
        text += &format!("\n### {title}\n\n");
        for line in lines.into_iter().take(top) {
            let name = format!("{}: {}", line.file, line.function);
            row(&mut text, line.instructions / requests, &name);
        }
    }
    Ok(text)
}

fn row(text: &mut String, instructions: u64, name: &str) {
    let name: String = name.chars().take(180).collect();
    *text += &format!("{instructions:>8}  {name}\n");
}

fn listing(out: &Path, inclusive: &str) -> Result<Vec<Line>> {
    let annotated = Command::new(find("callgrind_annotate", "valgrind")?)
        .args(["--auto=no", "--show-percs=no", "--threshold=100"])
        .arg(format!("--inclusive={inclusive}"))
        .arg(out)
        .output()?;
    ensure!(
        annotated.status.success(),
        "callgrind_annotate: {}",
        String::from_utf8_lossy(&annotated.stderr)
    );
    let listing = String::from_utf8(annotated.stdout).context("callgrind_annotate")?;
    Ok(listing.lines().filter_map(line).collect())
}

/// `  1,234  path/of/file.rs:name::of::function [/path/of/binary]`; `None` for a line of another kind.
fn line(text: &str) -> Option<Line> {
    let (number, rest) = text.trim_start().split_once(' ')?;
    let instructions = number.replace(',', "").parse().ok()?;
    let without_binary = rest.rsplit_once(" [").map_or(rest, |(name, _)| name);
    // Two colons belong to a path in Rust, one ends the file.
    let name = without_binary.trim_start();
    let colon = name.find(':')?;
    Some(Line {
        instructions,
        file: short(&name[..colon]).into(),
        function: name[colon + 1..].into(),
    })
}

/// From the crate on: what stands before it is the same everywhere.
fn short(file: &str) -> &str {
    for root in ["/registry/src/", "/rustc/"] {
        if let Some((_, rest)) = file.split_once(root) {
            return rest.split_once('/').map_or(rest, |(_, inside)| inside);
        }
    }
    match file.rfind("/src/") {
        Some(at) if file.starts_with('/') => &file[at + 1..],
        _ => file.trim_start_matches("./"),
    }
}

fn krate(file: &str) -> &str {
    match file.split_once('/') {
        Some(("library", rest)) => rest.split('/').next().unwrap_or(rest),
        Some(("src", _)) => "canary-router",
        Some((name, _)) if file.ends_with(".rs") => name,
        // Written in C or assembly, or of unknown origin ("???").
        _ => "libc and the like",
    }
}
