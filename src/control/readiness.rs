//! Whether this process should be sent traffic.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::{net::TcpStream, sync::Mutex, time::timeout};

use crate::{
    clock,
    config::Upstream,
    state::{Lifecycle, Phase, Published},
};

/// Probes come from many places at once; the targets are asked this often at most.
const FRESH: Duration = Duration::from_secs(1);
/// How long a target may take to accept a connection.
const PATIENCE: Duration = Duration::from_secs(1);

/// Answers `/health/ready`.
pub struct Readiness {
    published: Arc<Published>,
    lifecycle: Arc<Lifecycle>,
    last: Mutex<Option<(Instant, Reach)>>,
}

/// Which targets accept connections.
#[derive(Debug, Clone, Copy)]
struct Reach {
    main: bool,
    canary: bool,
}

/// What a probe is told.
#[derive(Debug)]
pub struct Report {
    /// Whether to send traffic here.
    pub ready: bool,
    phase: Phase,
    reach: Option<Reach>,
}

impl Readiness {
    /// Looks at the shared state, and at the targets of the configuration in force.
    pub fn new(published: Arc<Published>, lifecycle: Arc<Lifecycle>) -> Readiness {
        Readiness {
            published,
            lifecycle,
            last: Mutex::new(None),
        }
    }

    /// Not ready while starting or draining, or while neither target can be connected to: with one
    /// of them there is still an answer for every request.
    pub async fn report(&self) -> Report {
        let phase = self.lifecycle.phase();
        if phase != Phase::Serving {
            return Report {
                ready: false,
                phase,
                reach: None,
            };
        }
        let reach = self.reach().await;
        Report {
            ready: reach.main || reach.canary,
            phase,
            reach: Some(reach),
        }
    }

    async fn reach(&self) -> Reach {
        let mut last = self.last.lock().await;
        if let Some((when, reach)) = *last
            && clock::now().saturating_duration_since(when) < FRESH
        {
            return reach;
        }
        let snapshot = self.published.load();
        let (main, canary) = tokio::join!(
            accepts(&snapshot.config.main),
            accepts(&snapshot.config.canary)
        );
        let reach = Reach { main, canary };
        *last = Some((clock::now(), reach));
        reach
    }
}

async fn accepts(upstream: &Upstream) -> bool {
    let connecting = TcpStream::connect((upstream.host.as_str(), upstream.port));
    matches!(timeout(PATIENCE, connecting).await, Ok(Ok(_)))
}

impl Report {
    /// The answer's body.
    pub fn to_json(&self) -> Value {
        let word = |reached| if reached { "reachable" } else { "unreachable" };
        let status = match (self.phase, self.ready) {
            (Phase::Starting, _) => "starting",
            (Phase::Draining, _) => "draining",
            (Phase::Serving, true) => "ready",
            (Phase::Serving, false) => "neither target can be reached",
        };
        match self.reach {
            None => json!({"status": status}),
            Some(Reach { main, canary }) => {
                json!({"status": status, "main": word(main), "canary": word(canary)})
            }
        }
    }
}
