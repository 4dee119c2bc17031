//! The configurations that the router is given: one for calm moments, and variations of it.

use std::{cell::Cell, time::Duration};

use fastrand::Rng;
use serde_json::{Value, json};

use super::client::FIXED;

/// Where everything is.
pub struct Addresses {
    pub main: String,
    pub canary: String,
    pub sidecar: String,
    /// The same by TLS.
    pub by_tls: [String; 3],
    pub port: u16,
    pub instrumentation: u16,
    /// Clients speak TLS.
    pub is_tls: Cell<bool>,
}

/// Errors that the canary may give: so many that they are counted and never used up.
pub const ERRORS: u64 = 1_000_000;
/// Likewise.
pub const REQUESTS: u64 = 10_000_000;

/// How long main and canary may take.
pub const TIMEOUT: Duration = Duration::from_millis(1500);

/// For calm moments.
pub fn calm(to: &Addresses) -> Value {
    let mut config = json!({
        "main-target": to.main,
        "canary-target": to.canary,
        "sidecar-url": to.sidecar,
        "circuit-breaker": {
            "error-limit-canary": ERRORS,
            "request-limit-canary": REQUESTS,
            // So that what it is charged can be told from what it said.
            "errors": "5xx"
        },
        "fallback": {"replay": "connect"},
        "traffic": {"weight": 100},
        "rollout": {
            "steps": [
                {"weight": 10, "for": "2s"}, {"weight": 40, "for": "2s"}, {"weight": 80, "for": "2s"}
            ],
            "max-extension": "2s"
        },
        "router-server": {
            "host": "127.0.0.1",
            "port": to.port,
            "workers": 2,
            "read-timeout": "2s",
            "write-timeout": "3s",
            "idle-timeout": "10s",
            "shutdown-timeout": "20s"
        },
        "proxy-client": {
            "to-main-and-canary": {
                "timeout": format!("{}ms", TIMEOUT.as_millis()),
                "connect-timeout": "700ms",
                // So that a leak is not taken for a pool.
                "idle-conn-timeout": "2s",
                "max-conn-age": "5s"
            },
            "to-sidecar": {
                "timeout": "500ms",
                "connect-timeout": "300ms",
                "idle-conn-timeout": "2s",
                "max-conn-age": "5s"
            }
        },
        "instrumentation": {"host": "127.0.0.1", "port": to.instrumentation},
        "log": {"level": "info", "access": "json"},
        "state": {"file": "state/state.json"}
    });
    if to.is_tls.get() {
        config["router-server"]["tls"] =
            json!({"certificate": "router.pem", "private-key": "router-key.pem"});
        // For longer than a varied one is in force.
        config["sidecar"] = json!({"cache": {"key": CACHE_KEY, "ttl": "100ms"}});
    }
    config
}

/// For the others.
pub fn varied(to: &Addresses, random: &mut Rng) -> Value {
    let mut config = calm(to);
    config["sidecar"] = json!({});
    let breaker = json!({
        "failure-rate-threshold": 40,
        "slow-call-rate-threshold": 60,
        "slow-call-duration": "400ms",
        "minimum-number-of-calls": 10,
        "window": "3s",
        "wait-open": "300ms",
        "max-wait-open": "2s",
        "permitted-half-open": 3
    });
    let mut maybe = |percent: u8| random.u8(..100) < percent;
    if maybe(50) {
        merge(&mut config["circuit-breaker"], &breaker);
    }
    if maybe(30) {
        config["circuit-breaker"]["main"] = breaker;
    }
    if maybe(20) {
        config["circuit-breaker"]["error-limit-canary"] = json!(20);
    }
    if maybe(10) {
        config["circuit-breaker"]["request-limit-canary"] = json!(500);
    }
    if maybe(40) {
        config["fallback"]["static"] = json!({"status": 503, "body": FIXED});
    }
    if maybe(50) {
        merge(
            &mut config["fallback"],
            &json!({"replay": "failures", "budget": 80, "max-body": "256KiB"}),
        );
    } else if maybe(20) {
        config["fallback"]["replay"] = json!("off");
    }
    if maybe(25) {
        config["sidecar-url"] = Value::Null;
        config["traffic"]["weight"] = json!(40);
    } else if maybe(30) {
        config["sidecar"]["body"] = json!("none");
    } else if maybe(30) {
        config["sidecar"]["max-body"] = json!("1KiB");
    }
    if maybe(50) {
        let by = ["cookie", "header:X-User", "client-ip", "cookie:sid"];
        config["traffic"]["sticky"] =
            json!({"by": by[usize::from(maybe(50)) + 2 * usize::from(maybe(50))]});
    }
    let has_sidecar = !config["sidecar-url"].is_null();
    if has_sidecar && maybe(45) {
        let ttl = ["100ms", "300ms", "1s"][usize::from(maybe(66)) + usize::from(maybe(50))];
        config["sidecar"]["cache"] = json!({"key": CACHE_KEY, "ttl": ttl});
        if maybe(30) {
            config["sidecar"]["cache"]["max-entries"] = json!(10);
        }
    }
    speak(&mut config, to, has_sidecar, &mut maybe);
    if maybe(20) {
        config["proxy-client"]["to-main-and-canary"]["max-idle-conns"] = json!(2);
    }
    if maybe(15) {
        config["router-server"]["max-connections"] = json!(40);
    }
    if maybe(15) {
        // Not fewer lines: that another process has taken its place is told by one of them.
        config["log"]["level"] = json!("debug");
    }
    if maybe(20) {
        config["override"] = json!({"trusted": []});
    }
    if maybe(20) {
        config["rollout"]["steps"] =
            json!([{"weight": 50, "for": "1s"}, {"weight": 100, "for": "1s"}]);
    }
    config
}

/// What requests have in common that share an answer of the sidecar's; as [`super::books::Asked::key`] has it.
const CACHE_KEY: [&str; 2] = ["header:X-User", "method"];

/// For how long the sidecar's word holds by this configuration, if it has a cache.
pub fn ttl(config: &Value) -> Option<Duration> {
    let text = config["sidecar"]["cache"]["ttl"].as_str()?;
    humantime::parse_duration(text).ok()
}

/// By which protocols the services are spoken to.
fn speak(
    config: &mut Value,
    to: &Addresses,
    has_sidecar: bool,
    maybe: &mut impl FnMut(u8) -> bool,
) {
    let [main, canary, sidecar] = &to.by_tls;
    let mut are_tls = [false; 2];
    for (target, address) in [("main-target", main), ("canary-target", canary)] {
        if maybe(60) {
            config[target] = json!(address);
            are_tls[0] = true;
        }
    }
    if has_sidecar && maybe(60) {
        config["sidecar-url"] = json!(sidecar);
        are_tls[1] = true;
    }
    let clients = ["to-main-and-canary", "to-sidecar"];
    for (client, is_tls) in clients.into_iter().zip(are_tls) {
        let client = &mut config["proxy-client"][client];
        if is_tls {
            client["tls"] = json!({"ca": "ca.pem"});
            if maybe(30) {
                client["tls"]["server-name"] = json!("localhost");
            }
        }
        if maybe(30) {
            client["protocol"] = json!("h2");
        } else if maybe(50) {
            client["protocol"] = json!("auto");
        }
    }
}

/// One that cannot be put in force, and what the instrumentation port says to it.
pub fn bad(to: &Addresses, random: &mut Rng) -> (String, u16) {
    if random.u8(..4) > 0 {
        return (unusable(to, random), 422);
    }
    let mut config = calm(to);
    config["router-server"]["workers"] = json!(3);
    (config.to_string(), 409)
}

/// One that no process can use.
pub fn unusable(to: &Addresses, random: &mut Rng) -> String {
    let mut config = calm(to);
    let own = json!({"certificate": "router.pem", "private-key": "other-key.pem"});
    match random.u8(..5) {
        0 => return "{\"main-target\": ".into(),
        1 => config["traffic"]["wieght"] = json!(5),
        2 => config["router-server"]["tls"] = own,
        3 => {
            config["main-target"] = json!(to.by_tls[0]);
            config["proxy-client"]["to-main-and-canary"]["tls"] = json!({"ca": "nowhere.pem"});
        }
        _ => config["main-target"] = json!("nowhere"),
    }
    config.to_string()
}

fn merge(into: &mut Value, from: &Value) {
    for (key, value) in from.as_object().into_iter().flatten() {
        into[key] = value.clone();
    }
}
