//! Whether this process should be sent traffic.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::{
    net::{TcpStream, UnixStream},
    sync::Mutex,
    time::timeout,
};

use crate::{
    clock,
    config::{Address, Upstream},
    state::{Durability, Lifecycle, Phase, Published},
};

use super::Control;

/// Probes come from many places at once; the targets are asked this often at most.
const FRESH: Duration = Duration::from_secs(1);
/// How long a target may take to accept a connection.
const PATIENCE: Duration = Duration::from_secs(1);

/// Answers `/health/ready`.
pub struct Readiness {
    published: Arc<Published>,
    lifecycle: Arc<Lifecycle>,
    state: Option<(PathBuf, Arc<Durability>)>,
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
    state: Option<StateFile>,
}

/// How the state file is: said, but no reason to send traffic elsewhere.
#[derive(Debug)]
pub struct StateFile {
    file: PathBuf,
    /// Why it could not be written the last time, if it could not.
    failure: Option<String>,
}

impl Readiness {
    /// Looks at the shared state, and at the targets of the configuration in force.
    pub fn new(control: &Control) -> Readiness {
        let file = control.published.load().config.state.clone();
        Readiness {
            published: Arc::clone(&control.published),
            lifecycle: Arc::clone(&control.lifecycle),
            state: file
                .map(|file| file.path)
                .zip(control.durability.as_ref().map(Arc::clone)),
            last: Mutex::new(None),
        }
    }

    /// Not ready while starting or draining, or while neither target can be connected to: with one
    /// of them there is still an answer for every request. A state file that cannot be written takes
    /// nothing away from clients, and its disk is often every instance's.
    pub async fn report(&self) -> Report {
        let phase = self.lifecycle.phase();
        let reach = match phase {
            Phase::Serving => Some(self.reach().await),
            Phase::Starting | Phase::Draining => None,
        };
        Report {
            ready: reach.is_some_and(|reach| reach.main || reach.canary),
            phase,
            reach,
            state: self.state(),
        }
    }

    /// How the state file is, if there is one.
    pub fn state(&self) -> Option<StateFile> {
        let (file, durability) = self.state.as_ref()?;
        Some(StateFile {
            file: file.clone(),
            failure: durability.writes().failure,
        })
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
    let connecting = async {
        match &upstream.address {
            Address::Tcp { host, port } => {
                TcpStream::connect((host.as_str(), *port)).await.map(drop)
            }
            Address::Unix(path) => UnixStream::connect(path).await.map(drop),
        }
    };
    matches!(timeout(PATIENCE, connecting).await, Ok(Ok(())))
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
        let mut body = json!({"status": status});
        if let Some(Reach { main, canary }) = self.reach {
            body["main"] = word(main).into();
            body["canary"] = word(canary).into();
        }
        if let Some(state) = &self.state {
            body["state"] = state.to_json();
        }
        body
    }
}

impl StateFile {
    /// As `/health/ready` and `/status` show it.
    pub fn to_json(&self) -> Value {
        let file = self.file.display().to_string();
        match &self.failure {
            None => json!({"file": file, "written": true}),
            Some(error) => json!({"file": file, "written": false, "error": error}),
        }
    }
}
