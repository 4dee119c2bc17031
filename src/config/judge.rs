//! From what was written to what it means: every value and how they go together.

use std::{path::PathBuf, sync::Arc, time::Duration};

use http::{HeaderValue, uri::Authority};
use serde_json::Value;

use super::{
    Client, ClientTls, Config, Protocol, Sidecar, StateFile, Upstream,
    breakers::{breakers, limits},
    error::Problems,
    fallback::fallback,
    files::Stamps,
    instrumentation::instrumentation,
    raw::{Client as RawClient, Raw},
    rollout::rollout,
    server::server,
    sidecar,
    telemetry::{log, tracing},
    tls::{client_tls, refuse_without_tls},
    traffic::{traffic, trusted_overrides},
    url::{is_https, masked_text, masked_url, parse_url},
    values::{Size, Span},
    words::{unknown, word},
};
use crate::policy::SidecarStatuses;

const TO_SERVICES: &str = "/proxy-client/to-main-and-canary";
const TO_SIDECAR: &str = "/proxy-client/to-sidecar";

/// Turns what was written into what it means. Every problem is noted; the result is `None` only
/// where one of them leaves nothing to go on with.
///
/// `files` are those that it [names](named_files), as they were before this.
pub(super) fn judge(
    raw: Raw,
    file: &str,
    files: Stamps,
    problems: &mut Problems,
) -> Option<Config> {
    let clients = &raw.proxy_client;
    let to_services = client(&clients.to_main_and_canary, TO_SERVICES, problems);
    let speaks_tls = is_https(&raw.main_target) || is_https(&raw.canary_target);
    let to_services_tls = Arc::new(client_tls(
        &clients.to_main_and_canary.tls,
        TO_SERVICES,
        speaks_tls.then_some(to_services.protocol),
        problems,
    ));
    let to_sidecar = client(&clients.to_sidecar, TO_SIDECAR, problems);
    let to_sidecar_tls = Arc::new(client_tls(
        &clients.to_sidecar.tls,
        TO_SIDECAR,
        is_https(&raw.sidecar_url).then_some(to_sidecar.protocol),
        problems,
    ));

    let main = upstream(
        &raw.main_target,
        &raw.main_header_host,
        "main",
        to_services,
        &to_services_tls,
        problems,
    );
    let canary = upstream(
        &raw.canary_target,
        &raw.canary_header_host,
        "canary",
        to_services,
        &to_services_tls,
        problems,
    );
    let sidecar_upstream = match set(&raw.sidecar_url) {
        None => Some(None),
        Some(url) => {
            parse_url("/sidecar-url", url, to_sidecar, &to_sidecar_tls, problems).map(Some)
        }
    };
    // What is wrong with a target has been told.
    if let (Some(main), Some(canary)) = (&main, &canary)
        && !main.tls
        && !canary.tls
    {
        let why = "neither /main-target nor /canary-target is https://";
        refuse_without_tls(&clients.to_main_and_canary.tls, TO_SERVICES, why, problems);
    }
    if let Some(upstream) = &sidecar_upstream
        && !upstream.as_ref().is_some_and(|upstream| upstream.tls)
        && !problems.has("/sidecar-url")
    {
        let why = "/sidecar-url is not https://";
        refuse_without_tls(&clients.to_sidecar.tls, TO_SIDECAR, why, problems);
    }
    let body = sidecar::body(&raw.sidecar, problems);
    let cache = sidecar::cache(&raw.sidecar, problems);
    sidecar::refuse_without_sidecar(&raw, body, cache.as_ref(), problems);
    let max_body = raw
        .sidecar
        .max_body
        .map_or(0, |Size(bytes)| to_usize(bytes));
    let sidecar_statuses = SidecarStatuses {
        main: sidecar_status("/main-sidecar-status", raw.main_sidecar_status.0, problems),
        canary: sidecar_status(
            "/canary-sidecar-status",
            raw.canary_sidecar_status.0,
            problems,
        ),
    };
    if sidecar_statuses.main == sidecar_statuses.canary {
        problems.add(
            "/canary-sidecar-status",
            "is the same as /main-sidecar-status: the sidecar could not say which it means; \
             give them two different numbers",
        );
    }

    let trim_prefix = trim_prefix(set(&raw.trim_prefix), problems);
    let limits = limits(&raw, problems);
    let breakers = breakers(&raw, problems);
    let fallback = fallback(&raw.fallback, problems);
    let traffic = traffic(&raw.traffic, problems);
    let trusted_overrides = trusted_overrides(&raw.overrides, problems);
    let rollout = rollout(&raw, problems);
    let server = server(&raw.router_server, problems);
    let instrumentation = raw
        .instrumentation
        .as_ref()
        .map(|section| instrumentation(section, server.as_ref(), problems));
    let log = log(&raw.log, problems);
    let tracing = raw
        .tracing
        .as_ref()
        .and_then(|section| tracing(section, problems));

    let may_speak_http2 = |client: Client| client.protocol != Protocol::Http1;
    let speaks_http2 = may_speak_http2(to_services)
        || sidecar_upstream
            .iter()
            .any(|sidecar| sidecar.is_some() && may_speak_http2(to_sidecar));
    Some(Config {
        main: main?,
        canary: canary?,
        sidecar: match (sidecar_upstream?, body?) {
            (None, _) => None,
            (Some(upstream), body) => Some(Sidecar {
                upstream,
                max_body,
                body,
                cache,
            }),
        },
        sidecar_statuses,
        trim_prefix,
        limits,
        breakers,
        fallback: fallback?,
        traffic,
        trusted_overrides,
        rollout,
        server: server?,
        instrumentation,
        log: log?,
        tracing,
        state: set(&raw.state.file).map(|path| StateFile { path: path.into() }),
        speaks_http2,
        variables: Vec::new(),
        effective: masked(&raw),
        file: file.to_owned(),
        watch: raw.reload.watch.0,
        files,
    })
}

/// A text that says something: absent and empty are the same, as in the original.
pub(super) fn set(text: &Option<String>) -> Option<&str> {
    text.as_deref()
        .map(str::trim)
        .filter(|text| !text.is_empty())
}

fn upstream(
    url: &Option<String>,
    host: &Option<String>,
    name: &str,
    client: Client,
    client_tls: &Arc<ClientTls>,
    problems: &mut Problems,
) -> Option<Upstream> {
    let path = format!("/{name}-target");
    let upstream = match set(url) {
        Some(url) => parse_url(&path, url, client, client_tls, problems),
        None => {
            problems.add(
                path,
                format!(
                    "is missing: write the URL of the {name} service, \
                     such as \"{name}-target\": \"http://127.0.0.1:{}\"",
                    if name == "main" { 8081 } else { 8082 }
                ),
            );
            None
        }
    };
    let host_header = match set(host) {
        None => None,
        Some(host) => {
            let header = host
                .parse::<Authority>()
                .ok()
                .filter(|a| !a.as_str().contains('@'));
            match header.and_then(|header| HeaderValue::from_str(header.as_str()).ok()) {
                Some(header) => Some(header),
                None => {
                    problems.add(
                        format!("/{name}-header-host"),
                        format!(
                            "not a host name with an optional port: {:?}; \
                                 write it as \"service.example\" or \"service.example:8080\"",
                            masked_text(host)
                        ),
                    );
                    return None;
                }
            }
        }
    };
    let mut upstream = upstream?;
    if let Some(host_header) = host_header {
        upstream.host_header = host_header;
    }
    Some(upstream)
}

fn client(raw: &RawClient, path: &str, problems: &mut Problems) -> Client {
    let timeout = span(raw.timeout);
    let connect_timeout = span(raw.connect_timeout);
    if connect_timeout > timeout {
        problems.add(
            format!("{path}/connect-timeout"),
            format!(
                "{connect_timeout:?} is longer than /timeout beside it ({timeout:?}), which bounds \
                 connecting as well: make it shorter, or the timeout longer"
            ),
        );
    }
    let max_conn_age = span(raw.max_conn_age);
    if max_conn_age < Duration::from_secs(1) {
        problems.add(
            format!("{path}/max-conn-age"),
            format!("{max_conn_age:?} is too short: use \"1s\" or more"),
        );
    }
    let written = set(&raw.protocol).unwrap_or_default();
    let protocol = protocol(&format!("{path}/protocol"), written, problems);
    Client {
        timeout,
        connect_timeout,
        max_idle_conns: to_usize(raw.max_idle_conns.0),
        idle_conn_timeout: span(raw.idle_conn_timeout),
        max_conn_age,
        protocol: protocol.unwrap_or(Protocol::Http1),
    }
}

fn protocol(path: &str, written: &str, problems: &mut Problems) -> Option<Protocol> {
    let known = [
        ("http1", Protocol::Http1),
        ("h2", Protocol::Http2),
        ("auto", Protocol::Auto),
    ];
    // By its letters it is nearest to "http1".
    if ["http2", "http/2"].contains(&&*written.to_ascii_lowercase()) {
        problems.add(path, unknown(written, "h2", &known.map(|(word, _)| word)));
        return None;
    }
    word(path, written, &known, problems)
}

fn sidecar_status(path: &str, status: u64, problems: &mut Problems) -> u16 {
    match u16::try_from(status) {
        Ok(status @ 200..=599) => status,
        _ => {
            problems.add(
                path,
                format!(
                    "{status} is not a status code that a sidecar can answer with: \
                         use 200 to 599"
                ),
            );
            0
        }
    }
}

fn trim_prefix(prefix: Option<&str>, problems: &mut Problems) -> String {
    match prefix {
        None | Some("/") => String::new(),
        Some(prefix) if !prefix.starts_with('/') => {
            problems.add(
                "/trim-prefix",
                format!(
                    "{prefix:?} does not start with a slash and could match no path: \
                         write \"/{prefix}\""
                ),
            );
            String::new()
        }
        Some(prefix) if prefix.contains(['?', '#']) => {
            problems.add(
                "/trim-prefix",
                format!("{prefix:?} is more than a path: leave out ? and #"),
            );
            String::new()
        }
        Some(prefix) => prefix.to_owned(),
    }
}

pub(super) fn span(span: Option<Span>) -> Duration {
    span.map_or(Duration::ZERO, |Span(duration)| duration)
}

pub(super) fn to_usize(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// Those that are read with the configuration. The state file is not one of them: it is read once, and written.
pub(super) fn named_files(raw: &Raw) -> Vec<PathBuf> {
    let server = &raw.router_server.tls;
    let clients = [
        &raw.proxy_client.to_main_and_canary.tls,
        &raw.proxy_client.to_sidecar.tls,
    ];
    let instrumentation = raw.instrumentation.as_ref();
    [
        &server.certificate,
        &server.private_key,
        &server.client_ca,
        &raw.fallback.fixed.file,
    ]
    .into_iter()
    .chain(
        clients
            .into_iter()
            .flat_map(|tls| [&tls.ca, &tls.certificate, &tls.private_key]),
    )
    .chain(instrumentation.map(|section| &section.token_file))
    .filter_map(|file| set(file).map(PathBuf::from))
    .collect()
}

/// The file with its defaults, and without what a log must not show.
fn masked(raw: &Raw) -> Value {
    let mut raw = raw.clone();
    for url in [
        &mut raw.main_target,
        &mut raw.canary_target,
        &mut raw.sidecar_url,
    ] {
        *url = url.as_deref().map(masked_url);
    }
    if let Some(tracing) = &mut raw.tracing {
        tracing.endpoint = tracing.endpoint.as_deref().map(masked_url);
    }
    serde_json::to_value(raw).unwrap_or_default()
}
