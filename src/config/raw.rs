//! The configuration file as it is written: a serde mirror of the JSON, with the defaults.
//!
//! Nothing is judged here beyond the shape of a single value; what the values mean together is
//! [`super::Config`]'s business. The original read its file with weak typing, so numbers and
//! booleans are taken as strings too: a file that worked goes on working.

use std::{fmt, time::Duration};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{SeqAccess, Visitor},
};

use super::{
    judge::set,
    sidecar::MAX_ENTRIES,
    values::{Count, Counts, Decimal, Flag, Percent, Port, Secret, Size, Span, Texts},
};

/// The whole file. There is no `Debug`: a URL may have a secret in it.
#[derive(Clone, Default, Serialize, Deserialize)]
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
    pub traffic: Traffic,
    #[serde(rename = "override")]
    pub overrides: Override,
    pub rollout: Rollout,
    pub router_server: RouterServer,
    pub proxy_client: ProxyClient,
    pub instrumentation: Option<Instrumentation>,
    pub reload: Reload,
    pub log: Log,
    pub tracing: Option<Tracing>,
    pub state: State,
}

/// Declares a section with the keys of a breaker between others. (`serde(flatten)` would do it too, but
/// it forgets at which key a mistake stands.)
macro_rules! section_with_a_breaker {
    (
        $(#[$doc:meta])*
        $name:ident {
            $($before:ident: $before_type:ty,)*
            ..
            $($after:ident: $after_type:ty,)*
        }
    ) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Default, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case", default, expecting = "an object")]
        pub struct $name {
            $(pub $before: $before_type,)*
            pub failure_rate_threshold: Percent,
            pub slow_call_rate_threshold: Percent,
            pub slow_call_duration: Option<Span>,
            pub minimum_number_of_calls: Count,
            pub window: Option<Span>,
            pub wait_open: Option<Span>,
            pub max_wait_open: Option<Span>,
            pub permitted_half_open: Count,
            pub failure: Option<String>,
            $(pub $after: $after_type,)*
        }

        impl $name {
            /// The breaker's keys among those here.
            pub fn breaker(&self) -> Breaker {
                Breaker {
                    failure_rate_threshold: self.failure_rate_threshold,
                    slow_call_rate_threshold: self.slow_call_rate_threshold,
                    slow_call_duration: self.slow_call_duration,
                    minimum_number_of_calls: self.minimum_number_of_calls,
                    window: self.window,
                    wait_open: self.wait_open,
                    max_wait_open: self.max_wait_open,
                    permitted_half_open: self.permitted_half_open,
                    failure: self.failure.clone(),
                }
            }

            fn fill_in_breaker(&mut self) {
                seconds(&mut self.slow_call_duration, 0);
                count(&mut self.minimum_number_of_calls, 20);
                seconds(&mut self.window, 30);
                seconds(&mut self.wait_open, 30);
                if self.max_wait_open.is_none_or(|span| span.0.is_zero()) {
                    self.max_wait_open = self.wait_open.map(default_max_wait_open);
                }
                count(&mut self.permitted_half_open, 5);
                text(&mut self.failure, "5xx");
            }
        }
    };
}

section_with_a_breaker!(CircuitBreaker {
    request_limit_canary: Count,
    error_limit_canary: Count,
    errors: Option<String>,
    ..
    main: Breaker,
});

section_with_a_breaker!(
    /// A breaker by itself.
    Breaker { .. }
);

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default, expecting = "an object")]
pub struct Fallback {
    pub replay: Option<String>,
    pub methods: Option<Texts>,
    pub statuses: Option<Counts>,
    pub max_body: Option<Size>,
    pub budget: Option<Percent>,
    #[serde(rename = "static")]
    pub fixed: FixedAnswer,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default, expecting = "an object")]
pub struct FixedAnswer {
    pub status: Count,
    pub content_type: Option<String>,
    pub body: String,
    pub file: Option<String>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default, expecting = "an object")]
pub struct Sidecar {
    pub body: Option<String>,
    pub max_body: Option<Size>,
    pub cache: SidecarCache,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default, expecting = "an object")]
pub struct SidecarCache {
    pub key: Texts,
    pub ttl: Option<Span>,
    pub max_entries: Count,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default, expecting = "an object")]
pub struct Traffic {
    pub weight: Option<Percent>,
    pub sticky: Sticky,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default, expecting = "an object")]
pub struct Sticky {
    pub by: Option<String>,
    pub cookie: Option<String>,
    pub max_age: Option<Span>,
    pub secure: Flag,
    pub same_site: Option<String>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default, expecting = "an object")]
pub struct Override {
    pub trusted: Option<Texts>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default, expecting = "an object")]
pub struct Rollout {
    #[serde(deserialize_with = "steps")]
    pub steps: Vec<Step>,
    pub on_inconclusive: Option<String>,
    pub max_extension: Option<Span>,
    pub dry_run: Flag,
    pub metrics: Option<Texts>,
    pub error_ratio: Option<Decimal>,
    pub false_rollback_probability: Option<Decimal>,
    pub latency_margin: Option<Decimal>,
    pub latency_slack: Option<Span>,
    pub safe_ratio: Option<Decimal>,
    pub acceptable_failure_rate: Option<Decimal>,
    pub failure: Option<String>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default, expecting = "an object")]
pub struct Step {
    pub weight: Option<Percent>,
    #[serde(rename = "for")]
    pub lasts: Option<Span>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default, expecting = "an object")]
pub struct RouterServer {
    pub host: Option<String>,
    pub port: Option<Port>,
    pub tls: ServerTls,
    pub http2: Option<Flag>,
    pub trusted_proxies: Texts,
    pub proxy_protocol: Flag,
    pub workers: Count,
    pub max_connections: Count,
    pub read_timeout: Option<Span>,
    pub write_timeout: Option<Span>,
    pub idle_timeout: Option<Span>,
    pub shutdown_timeout: Option<Span>,
    pub max_header_bytes: Option<Size>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default, expecting = "an object")]
pub struct ServerTls {
    pub certificate: Option<String>,
    pub private_key: Option<String>,
    pub client_ca: Option<String>,
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
    pub max_conn_age: Option<Span>,
    pub protocol: Option<String>,
    pub disable_compression: Flag,
    pub tls: ClientTls,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default, expecting = "an object")]
pub struct ClientTls {
    pub ca: Option<String>,
    pub certificate: Option<String>,
    pub private_key: Option<String>,
    pub server_name: Option<String>,
    pub insecure_skip_verify: Flag,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default, expecting = "an object")]
pub struct Instrumentation {
    pub host: Option<String>,
    pub port: Option<Port>,
    pub token: Secret,
    pub token_file: Option<String>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default, expecting = "an object")]
pub struct Reload {
    pub watch: Flag,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default, expecting = "an object")]
pub struct Log {
    pub level: Option<String>,
    pub format: Option<String>,
    pub access: Option<String>,
    pub debug_request_body: Flag,
    pub debug_response_body: Flag,
}

#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default, expecting = "an object")]
pub struct Tracing {
    /// Absent is forgotten, and empty is off.
    pub endpoint: Option<String>,
    pub sample: Option<Percent>,
    pub service_name: Option<String>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default, expecting = "an object")]
pub struct State {
    pub file: Option<String>,
}

/// By hand for what is said of a value that is no list.
fn steps<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Step>, D::Error> {
    struct Reader;
    impl<'de> Visitor<'de> for Reader {
        type Value = Vec<Step>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of steps, such as [{\"weight\": 5, \"for\": \"10m\"}]")
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<Step>, A::Error> {
            let mut steps = Vec::new();
            while let Some(step) = seq.next_element()? {
                steps.push(step);
            }
            Ok(steps)
        }
    }
    deserializer.deserialize_seq(Reader)
}

/// The smaller of one second and `timeout`: the default of `connect-timeout`.
fn default_connect_timeout(timeout: Duration) -> Duration {
    timeout.min(Duration::from_secs(1))
}

/// The larger of five minutes and `wait-open`: the default of `max-wait-open`.
fn default_max_wait_open(Span(wait): Span) -> Span {
    Span(wait.max(Duration::from_secs(300)))
}

fn text(slot: &mut Option<String>, default: &str) {
    if slot.as_deref().is_none_or(|text| text.trim().is_empty()) {
        *slot = Some(default.to_owned());
    }
}

fn count(slot: &mut Count, default: u64) {
    if slot.0 == 0 {
        *slot = Count(default);
    }
}

fn decimal(slot: &mut Option<Decimal>, default: f64) {
    if slot.is_none_or(|number| number.0 == 0.0) {
        *slot = Some(Decimal(default));
    }
}

fn seconds(slot: &mut Option<Span>, default: u64) {
    if slot.is_none_or(|span| span.0.is_zero()) {
        *slot = Some(Span(Duration::from_secs(default)));
    }
}

impl Raw {
    /// Every key that there is, with its default; where there is none, with an example.
    pub fn template() -> Raw {
        let text = |text: &str| Some(text.to_owned());
        Raw {
            main_target: text("http://127.0.0.1:8081"),
            canary_target: text("http://127.0.0.1:8082"),
            sidecar_url: text("http://127.0.0.1:8083"),
            // What everyone is; the default, none, cannot be written.
            overrides: Override {
                trusted: Some(Texts(["0.0.0.0/0", "::/0"].map(str::to_owned).into())),
            },
            router_server: RouterServer {
                host: text("127.0.0.1"),
                port: Some(Port(1345)),
                ..RouterServer::default()
            },
            instrumentation: Some(Instrumentation::default()),
            tracing: Some(Tracing {
                endpoint: text(""),
                ..Tracing::default()
            }),
            ..Raw::default()
        }
        .with_defaults()
    }

    /// [`Raw::template`] with something in every list of objects, so that it has their keys too.
    pub fn every_key() -> Raw {
        let mut raw = Raw::template();
        raw.rollout.steps.push(Step {
            weight: Some(Percent(500)),
            lasts: Some(Span(Duration::from_secs(600))),
        });
        raw
    }

    /// Fills in the defaults. Zero means the default too, as in the original; where zero has a
    /// meaning of its own (limits: off, workers: one per core, connections: what fits) it is the default, but for sizes, the
    /// budget of replays, the share of the canary and that of traces and what the judge allows in latency
    /// and failures, where zero is none.
    #[must_use]
    pub fn with_defaults(mut self) -> Raw {
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
        text(&mut self.circuit_breaker.errors, "non-2xx");
        self.circuit_breaker.fill_in_breaker();
        self.circuit_breaker.main.fill_in_breaker();
        self.fallback.fill_in();
        text(&mut self.sidecar.body, "full");
        self.sidecar.max_body.get_or_insert(Size(1 << 20));
        seconds(&mut self.sidecar.cache.ttl, 0);
        count(&mut self.sidecar.cache.max_entries, MAX_ENTRIES);
        let without_sidecar = set(&self.sidecar_url).is_none();
        let weight = Percent(if without_sidecar { 0 } else { 10_000 });
        self.traffic.weight.get_or_insert(weight);
        self.traffic.sticky.fill_in();
        self.rollout.fill_in();
        text(&mut self.state.file, "");

        let server = &mut self.router_server;
        let tls = &mut server.tls;
        for slot in [
            &mut tls.certificate,
            &mut tls.private_key,
            &mut tls.client_ca,
        ] {
            text(slot, "");
        }
        server.http2.get_or_insert(Flag(true));
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
            seconds(&mut client.max_conn_age, 300);
            text(&mut client.protocol, "http1");
            count(&mut client.max_idle_conns, 1000);
            if client.connect_timeout.is_none_or(|span| span.0.is_zero()) {
                client.connect_timeout = client
                    .timeout
                    .map(|Span(timeout)| Span(default_connect_timeout(timeout)));
            }
            let tls = &mut client.tls;
            for slot in [
                &mut tls.ca,
                &mut tls.certificate,
                &mut tls.private_key,
                &mut tls.server_name,
            ] {
                text(slot, "");
            }
        }
        if let Some(instrumentation) = &mut self.instrumentation {
            text(&mut instrumentation.host, "0.0.0.0");
            if instrumentation.port.is_none_or(|port| port.0 == 0) {
                instrumentation.port = Some(Port(8888));
            }
            text(&mut instrumentation.token_file, "");
        }
        text(&mut self.log.level, "info");
        text(&mut self.log.format, "json");
        text(&mut self.log.access, "off");
        if let Some(tracing) = &mut self.tracing {
            tracing.fill_in();
        }
        self
    }
}

impl Tracing {
    /// One of which nothing is written.
    pub fn with_defaults() -> Tracing {
        let mut tracing = Tracing::default();
        tracing.fill_in();
        tracing
    }

    fn fill_in(&mut self) {
        self.sample.get_or_insert(Percent(10_000));
        text(&mut self.service_name, "canary-router");
    }
}

impl Breaker {
    /// One of which nothing is written.
    pub fn with_defaults() -> Breaker {
        let mut breaker = Breaker::default();
        breaker.fill_in_breaker();
        breaker
    }
}

impl Sticky {
    /// One of which nothing is written.
    pub fn with_defaults() -> Sticky {
        let mut sticky = Sticky::default();
        sticky.fill_in();
        sticky
    }

    fn fill_in(&mut self) {
        text(&mut self.by, "");
        text(&mut self.cookie, "canary-router");
        seconds(&mut self.max_age, 30 * 24 * 3600);
        text(&mut self.same_site, "lax");
    }
}

impl Rollout {
    /// One of which nothing is written.
    pub fn with_defaults() -> Rollout {
        let mut rollout = Rollout::default();
        rollout.fill_in();
        rollout
    }

    fn fill_in(&mut self) {
        text(&mut self.on_inconclusive, "extend");
        seconds(&mut self.max_extension, 3600);
        self.metrics
            .get_or_insert_with(|| Texts(["errors", "latency"].map(str::to_owned).into()));
        decimal(&mut self.error_ratio, 1.5);
        decimal(&mut self.false_rollback_probability, 0.01);
        self.latency_margin.get_or_insert(Decimal(0.1));
        self.latency_slack
            .get_or_insert(Span(Duration::from_millis(15)));
        decimal(&mut self.safe_ratio, 2.0);
        self.acceptable_failure_rate.get_or_insert(Decimal(0.01));
        text(&mut self.failure, "5xx");
    }
}

impl Fallback {
    /// One of which nothing is written.
    pub fn with_defaults() -> Fallback {
        let mut fallback = Fallback::default();
        fallback.fill_in();
        fallback
    }

    fn fill_in(&mut self) {
        text(&mut self.replay, "connect");
        self.methods.get_or_insert_with(|| {
            let methods = ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"];
            Texts(methods.map(str::to_owned).into())
        });
        self.statuses
            .get_or_insert_with(|| Counts(vec![500, 502, 503, 504]));
        self.max_body.get_or_insert(Size(64 << 10));
        self.budget.get_or_insert(Percent(2_000));
        let fixed = &mut self.fixed;
        text(&mut fixed.content_type, "text/plain; charset=utf-8");
        text(&mut fixed.file, "");
        if !fixed.body.is_empty() || fixed.file.as_deref().is_some_and(|file| !file.is_empty()) {
            count(&mut fixed.status, 503);
        }
    }
}
