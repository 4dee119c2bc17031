//! Main, canary and sidecar, with a router before them.

use serde_json::{Value, json};

use super::{Received, Router, Step, Upstream, answer, merge};

/// The three services, and the router.
pub struct Trio {
    pub main: Upstream,
    pub canary: Upstream,
    pub sidecar: Upstream,
    pub router: Router,
}

impl Trio {
    /// A router with `config` over the three addresses.
    pub fn start(main: Upstream, canary: Upstream, sidecar: Upstream, config: Value) -> Trio {
        let mut file = json!({
            "main-target": main.url(),
            "canary-target": canary.url(),
            "sidecar-url": sidecar.url()
        });
        merge(&mut file, config);
        Trio {
            router: Router::start(file),
            main,
            canary,
            sidecar,
        }
    }

    /// Main and canary answer 200 with their names; the sidecar does as it is [`asked`].
    pub async fn named(config: Value) -> Trio {
        Trio::start(
            Upstream::named("main", 200).await,
            Upstream::named("canary", 200).await,
            Upstream::start(asked).await,
            config,
        )
    }

    /// How many requests main, canary and sidecar have seen.
    pub fn seen(&self) -> (usize, usize, usize) {
        (self.main.count(), self.canary.count(), self.sidecar.count())
    }
}

/// A sidecar that answers the status in the request's `x-sidecar` header; 200 without one.
pub fn asked(request: &Received) -> Vec<Step> {
    let status = request
        .header("x-sidecar")
        .map_or(200, |status| status.parse().expect("x-sidecar: a status"));
    answer(status, "", "sidecar")
}

/// The series that counts the requests with this reason.
pub fn reason(reason: &str, target: &str) -> String {
    format!("canary_router_request_count{{reason=\"{reason}\",target=\"{target}\"}}")
}
