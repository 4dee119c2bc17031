//! The configuration file as it is written: a serde mirror of the JSON, with the defaults.
//!
//! Nothing is judged here beyond the shape of a single value; what the values mean together is
//! [`super::Config`]'s business. The original read its file with weak typing, so numbers and
//! booleans are taken as strings too: a file that worked goes on working.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::values::{Count, Flag, Port, Size, Span};

/// The whole file.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default, expecting = "an object")]
pub struct Raw {
    pub main_target: Option<String>,
    pub main_header_host: Option<String>,
    pub canary_target: Option<String>,
    pub canary_header_host: Option<String>,
    pub sidecar_url: Option<String>,
    pub trim_prefix: Option<String>,
    pub main_sidecar_status: Count,
    pub canary_sidecar_status: Count,
    pub circuit_breaker: CircuitBreaker,
    pub fallback: Fallback,
    pub sidecar: Sidecar,
    pub router_server: RouterServer,
    pub proxy_client: ProxyClient,
    pub instrumentation: Option<Instrumentation>,
    pub log: Log,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default, expecting = "an object")]
pub struct CircuitBreaker {
    pub request_limit_canary: Count,
    pub error_limit_canary: Count,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default, expecting = "an object")]
pub struct Fallback {
    pub replay: Option<String>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default, expecting = "an object")]
pub struct Sidecar {
    pub max_body: Option<Size>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default, expecting = "an object")]
pub struct RouterServer {
    pub host: Option<String>,
    pub port: Option<Port>,
    pub workers: Count,
    pub read_timeout: Option<Span>,
    pub write_timeout: Option<Span>,
    pub idle_timeout: Option<Span>,
    pub shutdown_timeout: Option<Span>,
    pub max_header_bytes: Option<Size>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default, expecting = "an object")]
pub struct ProxyClient {
    pub to_main_and_canary: Client,
    pub to_sidecar: Client,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default, expecting = "an object")]
pub struct Client {
    pub timeout: Option<Span>,
    pub connect_timeout: Option<Span>,
    pub max_idle_conns: Count,
    pub idle_conn_timeout: Option<Span>,
    pub disable_compression: Flag,
    pub tls: Tls,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default, expecting = "an object")]
pub struct Tls {
    pub insecure_skip_verify: Flag,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default, expecting = "an object")]
pub struct Instrumentation {
    pub host: Option<String>,
    pub port: Option<Port>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default, expecting = "an object")]
pub struct Log {
    pub level: Option<String>,
    pub debug_request_body: Flag,
    pub debug_response_body: Flag,
}

/// The smaller of one second and `timeout`: the default of `connect-timeout`.
fn default_connect_timeout(timeout: Duration) -> Duration {
    timeout.min(Duration::from_secs(1))
}

impl Raw {
    /// Every key that there is, with its default; where there is none, with an example.
    pub fn template() -> Raw {
        let text = |text: &str| Some(text.to_owned());
        Raw {
            main_target: text("http://127.0.0.1:8081"),
            canary_target: text("http://127.0.0.1:8082"),
            sidecar_url: text("http://127.0.0.1:8083"),
            router_server: RouterServer {
                host: text("127.0.0.1"),
                port: Some(Port(1345)),
                ..RouterServer::default()
            },
            instrumentation: Some(Instrumentation::default()),
            ..Raw::default()
        }
        .with_defaults()
    }

    /// Fills in the defaults. Zero means the default too, as in the original; where zero has a
    /// meaning of its own (limits: off, workers: one per core) it is the default.
    #[must_use]
    pub fn with_defaults(mut self) -> Raw {
        let text = |slot: &mut Option<String>, default: &str| {
            if slot.as_deref().is_none_or(|text| text.trim().is_empty()) {
                *slot = Some(default.to_owned());
            }
        };
        let count = |slot: &mut Count, default| {
            if slot.0 == 0 {
                *slot = Count(default);
            }
        };
        let seconds = |slot: &mut Option<Span>, default| {
            if slot.is_none_or(|span| span.0.is_zero()) {
                *slot = Some(Span(Duration::from_secs(default)));
            }
        };
        let size = |slot: &mut Option<Size>, default| {
            if slot.is_none() {
                *slot = Some(Size(default));
            }
        };
        for slot in [
            &mut self.main_header_host,
            &mut self.canary_header_host,
            &mut self.sidecar_url,
            &mut self.trim_prefix,
        ] {
            text(slot, "");
        }
        count(&mut self.main_sidecar_status, 204);
        count(&mut self.canary_sidecar_status, 200);
        text(&mut self.fallback.replay, "connect");
        size(&mut self.sidecar.max_body, 1 << 20);

        let server = &mut self.router_server;
        seconds(&mut server.read_timeout, 5);
        seconds(&mut server.write_timeout, 15);
        seconds(&mut server.idle_timeout, 120);
        seconds(&mut server.shutdown_timeout, 30);
        if server.max_header_bytes.is_none_or(|size| size.0 == 0) {
            server.max_header_bytes = Some(Size(64 << 10));
        }

        let clients = &mut self.proxy_client;
        for (client, timeout) in [
            (&mut clients.to_main_and_canary, 5),
            (&mut clients.to_sidecar, 2),
        ] {
            seconds(&mut client.timeout, timeout);
            seconds(&mut client.idle_conn_timeout, 30);
            count(&mut client.max_idle_conns, 1000);
            if client.connect_timeout.is_none_or(|span| span.0.is_zero()) {
                client.connect_timeout = client
                    .timeout
                    .map(|Span(timeout)| Span(default_connect_timeout(timeout)));
            }
        }
        if let Some(instrumentation) = &mut self.instrumentation {
            text(&mut instrumentation.host, "0.0.0.0");
            if instrumentation.port.is_none_or(|port| port.0 == 0) {
                instrumentation.port = Some(Port(8888));
            }
        }
        text(&mut self.log.level, "info");
        self
    }
}
