//! `benches/instructions.tsv`: a line for each change that was judged by it, oldest first.

use std::{fs::OpenOptions, io::Write, path::Path, process::Command};

use anyhow::{Context, Result, ensure};

/// `counts` in the order of the columns.
pub fn append(counts: &[u64], note: &str) -> Result<()> {
    ensure!(
        !note.contains(['\t', '\n']),
        "a note has neither tabs nor line ends"
    );
    let counts: Vec<String> = counts.iter().map(u64::to_string).collect();
    let date = said("date", &["-u", "+%Y-%m-%d"])?;
    let commit = said("git", &["rev-parse", "--short=10", "HEAD"])?;
    let changed = match said("git", &["status", "--porcelain", "src", "Cargo.lock"])?.as_str() {
        "" => "",
        _ => "+",
    };
    let line = format!("{date}\t{commit}{changed}\t{}\t{note}\n", counts.join("\t"));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/instructions.tsv");
    let mut file = OpenOptions::new()
        .append(true)
        .open(&path)
        .with_context(|| path.display().to_string())?;
    file.write_all(line.as_bytes())?;
    Ok(())
}

fn said(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .with_context(|| program.to_owned())?;
    ensure!(output.status.success(), "{program} {arguments:?} failed");
    Ok(String::from_utf8(output.stdout)?.trim().into())
}
