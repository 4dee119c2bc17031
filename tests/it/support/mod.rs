//! The kit: a router on a free port, scripted upstreams that record what they got, a client that
//! writes and reads raw bytes.

mod client;
mod message;
mod router;
mod upstream;

use std::{future::Future, time::Duration};

pub use client::{Client, Response, get, request};
pub use message::Received;
pub use router::{Metrics, Router};
pub use upstream::{Step, Upstream, answer};

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
