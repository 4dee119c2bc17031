//! Which commit this build is of, for `--version` and the metrics.
//!
//! From `CANARY_BUILD_COMMIT` where it is set, for those who build from a tarball or in a container: what stands in
//! the brackets of `--version`, such as "abcdef123456 2026-11-25"; empty is none. Otherwise from git, where this is a
//! checkout of its own and git can be asked. Otherwise nobody knows, and it is built all the same. Whether files have
//! been changed since is not said: that would be asked anew at each build.

// This is how a build script talks to cargo.
#![allow(clippy::print_stdout)]

use std::{env, path::Path, process::Command};

/// Outside of what the router takes for keys (`CANARY_ROUTER_…`), since it may stand in the environment later.
const GIVEN: &str = "CANARY_BUILD_COMMIT";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed={GIVEN}");
    let commit = match env::var(GIVEN) {
        Ok(given) => checked(given.trim()),
        Err(_) => of_checkout().unwrap_or_default(),
    };
    let version = env::var("CARGO_PKG_VERSION").unwrap_or_default();
    let version = match &*commit {
        "" => version,
        commit => format!("{version} ({commit})"),
    };
    let hash = commit.split(' ').next().unwrap_or_default();
    println!("cargo::rustc-env=BUILD_COMMIT={hash}");
    println!("cargo::rustc-env=BUILD_VERSION={version}");
}

/// It goes into a line of output and a label of a metric.
fn checked(given: &str) -> String {
    let is_taken = |c: char| c.is_ascii_alphanumeric() || " .:+~-".contains(c);
    assert!(
        given.len() <= 64 && given.chars().all(is_taken),
        "{GIVEN}: {given:?} is no commit: give its hash, and its date behind it if you like"
    );
    given.to_owned()
}

fn of_checkout() -> Option<String> {
    let commit = git(&[
        "-c",
        "log.showSignature=false",
        "log",
        "-1",
        "--abbrev=12",
        "--format=%h %cs",
    ])?;
    // HEAD says which branch it is, a branch which commit, and the log of HEAD that either has changed. A file that is
    // not there would have this run at each build.
    let branch = git(&["symbolic-ref", "--quiet", "HEAD"]);
    let files = ["HEAD", "logs/HEAD", "packed-refs"].map(str::to_owned);
    for file in files.into_iter().chain(branch) {
        if let Some(path) = git(&["rev-parse", "--git-path", &file])
            && Path::new(&path).exists()
        {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    Some(commit)
}

/// What git says, if it can be asked.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git")
        // Not of a folder above: that is somebody else's, who has this one in it.
        .arg("--git-dir=.git")
        .args(arguments)
        // A script around the build may have it set for another repository.
        .env_remove("GIT_WORK_TREE")
        .output()
        .ok()?;
    let said = String::from_utf8(output.stdout).ok()?;
    let said = said.trim();
    (output.status.success() && !said.is_empty()).then(|| said.to_owned())
}
