//! The control plane, on a thread of its own: a loaded data plane never starves a scrape or a
//! readiness probe, and a slow scraper never holds up a request.

pub mod admin;
pub mod keeper;
pub mod metrics;
pub mod readiness;

use std::{io, net::TcpListener as StdListener, sync::Arc, time::Duration};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::TcpListener,
    runtime,
    sync::{Semaphore, watch},
    task::{LocalSet, spawn_local},
};
use tracing::debug;

use crate::state::{Admission, Durability, Lifecycle, Published, Tally};

/// How many clients of the instrumentation port are served at a time.
const MAX_CONNECTIONS: usize = 64;
/// How long a client may take to send a request head, idle time included.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// What the control plane looks at.
pub struct Control {
    /// The configuration in force.
    pub published: Arc<Published>,
    /// Limits and breakers.
    pub admission: Arc<Admission>,
    /// What each worker counts.
    pub tallies: Vec<Arc<Tally>>,
    /// How writing the state file goes, if there is one.
    pub durability: Option<Arc<Durability>>,
    /// Where the process stands.
    pub lifecycle: Arc<Lifecycle>,
}

/// Serves the instrumentation port until `stop` changes or closes. Blocks its thread.
///
/// # Errors
/// No runtime could be made, or the metrics could not be registered.
pub fn run(listener: StdListener, control: Control, stop: watch::Receiver<bool>) -> io::Result<()> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    LocalSet::new().block_on(&runtime, serve(listener, control, stop))
}

async fn serve(
    listener: StdListener,
    control: Control,
    mut stop: watch::Receiver<bool>,
) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let admin = Arc::new(admin::Admin::new(control).map_err(io::Error::other)?);
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let next = async {
            // Who waits for a place waits in the kernel's queue.
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return Ok(()),
            next = next => next,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let admin = Arc::clone(&admin);
        spawn_local(async move {
            let _place = place;
            let service = service_fn(|request| {
                let admin = Arc::clone(&admin);
                async move { admin.answer(request).await }
            });
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service)
                .await;
            if let Err(error) = served {
                debug!(%error, "instrumentation connection ended");
            }
        });
    }
}
