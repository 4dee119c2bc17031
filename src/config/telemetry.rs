//! `log` and `tracing`: what is told of requests, and to whom.

use super::{
    AccessLog, Level, Log, LogFormat, Tracing,
    error::Problems,
    judge::set,
    raw::{Log as RawLog, Tracing as RawTracing},
    traffic::weight,
    url::parse_endpoint,
    words::word,
};

pub(super) fn log(raw: &RawLog, problems: &mut Problems) -> Option<Log> {
    let level = level(set(&raw.level).unwrap_or_default(), problems);
    let formats = [("json", LogFormat::Json), ("text", LogFormat::Text)];
    let written = set(&raw.format).unwrap_or_default();
    let format = word("/log/format", written, &formats, problems);
    let accesses = [("off", AccessLog::Off), ("json", AccessLog::Json)];
    let written = set(&raw.access).unwrap_or_default();
    let access = word("/log/access", written, &accesses, problems);
    Some(Log {
        level: level?,
        format: format?,
        access: access?,
        request_body: raw.debug_request_body.0,
        response_body: raw.debug_response_body.0,
    })
}

/// The names of the original's logger are taken too.
fn level(level: &str, problems: &mut Problems) -> Option<Level> {
    match level.to_ascii_lowercase().as_str() {
        "error" | "fatal" | "panic" => Some(Level::Error),
        "warn" | "warning" => Some(Level::Warn),
        "info" => Some(Level::Info),
        "debug" => Some(Level::Debug),
        "trace" => Some(Level::Trace),
        _ => {
            problems.add(
                "/log/level",
                format!("{level:?} is not a level: use error, warn, info, debug or trace"),
            );
            None
        }
    }
}

/// Off where the endpoint is empty. A section without one was meant to do something.
pub(super) fn tracing(raw: &RawTracing, problems: &mut Problems) -> Option<Tracing> {
    const PATH: &str = "/tracing/endpoint";
    if raw.endpoint.is_none() {
        problems.add(
            PATH,
            "is missing: write the base URL of a collector that takes OTLP over HTTP, such as \
             \"endpoint\": \"http://127.0.0.1:4318\"",
        );
        return None;
    }
    let Some(endpoint) = set(&raw.endpoint) else {
        refuse_without_endpoint(raw, problems);
        return None;
    };
    Some(Tracing {
        endpoint: parse_endpoint(PATH, endpoint, problems)?,
        sample: weight(raw.sample.unwrap_or_default()),
        service_name: set(&raw.service_name).unwrap_or_default().to_owned(),
    })
}

/// Who set one of these wanted traces, and would have none.
fn refuse_without_endpoint(raw: &RawTracing, problems: &mut Problems) {
    let default = RawTracing::with_defaults();
    for (key, is_set) in [
        ("sample", raw.sample != default.sample),
        (
            "service-name",
            set(&raw.service_name) != set(&default.service_name),
        ),
    ] {
        if is_set {
            problems.add(
                format!("/tracing/{key}"),
                "has no effect: nothing is traced unless /endpoint beside it says where to send it; write \
                 that, or take this out",
            );
        }
    }
}

#[cfg(test)]
mod tests;
