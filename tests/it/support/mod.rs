//! The kit: a router on a free port, scripted upstreams that record what they got, a client that
//! writes and reads raw bytes.

// clippy takes functions for tests only where they are one, and the kit is none of the data plane.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

pub mod browser;
mod by_hand;
mod client;
pub mod h2peer;
pub mod h2raw;
pub mod hpack;
mod message;
pub mod openapi;
pub mod pki;
mod process;
mod program;
mod router;
pub mod strict;
mod trio;
mod upstream;

use std::{future::Future, process::Command, time::Duration};

use tokio::task::JoinSet;

pub use by_hand::{ByHand, router_to, router_with};
pub use client::{
    Client, Response, assert_same, chunked, get, head, in_chunks, read_response, request,
    serves_others,
};
pub use message::Received;
pub use process::{Folder, Port, Process};
pub use program::{Program, room_for_descriptors};
pub use router::{Metrics, Router, admin, merge};
pub use trio::{Trio, asked, reason};
pub use upstream::{Deaf, Gate, Step, Upstream, answer, listen, listen_narrowly};

/// How long anything may take here. Far more than it needs: only a hang gets there.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Awaits `future`, or fails the test that hangs.
#[track_caller]
pub fn soon<F: Future>(future: F) -> impl Future<Output = F::Output> {
    let caller = std::panic::Location::caller();
    async move {
        match tokio::time::timeout(PATIENCE, future).await {
            Ok(output) => output,
            Err(_) => panic!("nothing happened for {PATIENCE:?} at {caller}"),
        }
    }
}

/// Waits until `condition` holds.
#[track_caller]
pub fn eventually(mut condition: impl FnMut() -> bool) -> impl Future<Output = ()> {
    soon(async move {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
}

/// Runs all of them at the same time.
pub async fn together<F>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let tasks: JoinSet<F::Output> = futures.into_iter().collect();
    tasks.join_all().await
}

/// A peer of `tests/it/peers`, with the libraries that `tests/run` installs for it.
pub fn python(script: &str) -> Command {
    let python = concat!(env!("CARGO_MANIFEST_DIR"), "/target/tools/bin/python3");
    assert!(
        std::fs::exists(python).unwrap(),
        "{python} is missing, and these tests are worth nothing without it: tests/run makes it"
    );
    let mut command = Command::new(python);
    command.arg(format!(
        "{}/tests/it/peers/{script}",
        env!("CARGO_MANIFEST_DIR")
    ));
    command
}

/// `n` bytes in which every shift and every loss shows.
pub fn noise(n: usize) -> Vec<u8> {
    (0..n as u64)
        .map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8)
        .collect()
}
