//! What we build on: no version with a hole that we know of, TLS by rustls only.
//!
//! The advisory database itself cannot be had offline; this holds the floors that it gave us, and CI
//! needs no network for it. Who has `cargo audit` at hand runs that too.

use std::{collections::BTreeMap, fs};

/// Crate, first sound version, and what was wrong before.
const FLOORS: &[(&str, [u64; 3], &str)] = &[
    (
        "h2",
        [0, 4, 16],
        "resets and CONTINUATION floods take memory and time",
    ),
    ("bytes", [1, 11, 1], "integer overflow in BytesMut::reserve"),
    (
        "tracing-subscriber",
        [0, 3, 20],
        "escape sequences of a peer reach the terminal",
    ),
    ("protobuf", [3, 7, 2], "uncontrolled recursion"),
];

/// Crates that must not come in by a side door.
const BANNED: &[(&str, &str)] = &[
    ("openssl-sys", "rustls is the only TLS"),
    ("native-tls", "rustls is the only TLS"),
    (
        "aws-lc-sys",
        "ring is the one provider of cryptography; a second one is a second build",
    ),
];

fn locked() -> BTreeMap<String, Vec<String>> {
    let lock = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.lock"))
        .expect("Cargo.lock is committed");
    let mut packages: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut name = "";
    for line in lock.lines() {
        let value = |key: &str| line.strip_prefix(key)?.strip_suffix('"');
        if let Some(value) = value("name = \"") {
            name = value;
        } else if let Some(version) = value("version = \"") {
            packages
                .entry(name.into())
                .or_default()
                .push(version.into());
        }
    }
    assert!(
        packages.contains_key("hyper"),
        "Cargo.lock was not understood"
    );
    packages
}

fn numbers(version: &str) -> Vec<u64> {
    let release = version.split(['-', '+']).next().unwrap_or_default();
    release
        .split('.')
        .map(|number| number.parse().expect("a version number"))
        .collect()
}

#[test]
fn no_dependency_is_below_its_floor() {
    let locked = locked();
    for (name, floor, why) in FLOORS {
        for version in locked.get(*name).into_iter().flatten() {
            assert!(
                numbers(version) >= floor.to_vec(),
                "{name} {version}: {why}"
            );
        }
    }
}

#[test]
fn no_banned_crate_has_come_in() {
    let locked = locked();
    for (name, why) in BANNED {
        assert!(
            !locked.contains_key(*name),
            "{name} is in Cargo.lock: {why}"
        );
    }
}
