//! `fallback`: which failures of the canary main makes good, and what is said when nobody can answer.

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode};

use super::{
    Fallback, FixedAnswer, Replay,
    error::Problems,
    files::{MAX_FILE, read},
    judge::{set, to_usize},
    raw::{Fallback as RawFallback, FixedAnswer as RawFixedAnswer},
    values::{Counts, Percent, Size, Texts},
    words::word,
};

pub(super) fn fallback(raw: &RawFallback, problems: &mut Problems) -> Option<Fallback> {
    let known = [
        ("off", Replay::Off),
        ("connect", Replay::Connect),
        ("failures", Replay::Failures),
    ];
    let replay = set(&raw.replay).unwrap_or_default();
    let replay = word("/fallback/replay", replay, &known, problems);
    let methods = raw.methods.iter().flat_map(|Texts(methods)| methods);
    let methods = methods
        .enumerate()
        .filter_map(|(i, written)| method(&format!("/fallback/methods/{i}"), written, problems))
        .collect();
    let statuses = raw.statuses.iter().flat_map(|Counts(statuses)| statuses);
    let statuses = statuses
        .enumerate()
        .filter_map(|(i, status)| match u16::try_from(*status) {
            Ok(status @ 400..=599) => Some(status),
            _ => {
                problems.add(
                    format!("/fallback/statuses/{i}"),
                    format!("{status} is no status of a failure: use 400 to 599"),
                );
                None
            }
        })
        .collect();
    Some(Fallback {
        methods,
        statuses,
        max_body: raw.max_body.map_or(0, |Size(bytes)| to_usize(bytes)),
        budget: raw.budget.map_or(0, |Percent(hundredths)| hundredths),
        fixed: fixed(&raw.fixed, problems),
        replay: replay?,
    })
}

/// Any method, for there are more than the standard has; but not one that is nearly a known one.
fn method(path: &str, written: &str, problems: &mut Problems) -> Option<Method> {
    const KNOWN: [&str; 9] = [
        "GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE", "POST", "PATCH", "CONNECT",
    ];
    let upper = written.trim().to_uppercase();
    let nearest = KNOWN
        .iter()
        .find(|known| strsim::jaro_winkler(&upper, known) > 0.9);
    match (Method::from_bytes(written.as_bytes()), nearest) {
        (Ok(method), _) if KNOWN.contains(&written) => Some(method),
        (_, Some(nearest)) => {
            problems.add(
                path,
                format!("{written:?} is not a known method; did you mean {nearest:?}?"),
            );
            None
        }
        (Ok(method), None) if written == upper => Some(method),
        _ => {
            problems.add(
                path,
                format!("{written:?} is not a method: write it in upper case, such as \"GET\""),
            );
            None
        }
    }
}

fn fixed(raw: &RawFixedAnswer, problems: &mut Problems) -> Option<FixedAnswer> {
    let content_type = content_type(set(&raw.content_type).unwrap_or_default(), problems);
    let file = set(&raw.file);
    let body = match file {
        Some(_) if !raw.body.is_empty() => {
            problems.add(
                "/fallback/static/file",
                "stands beside /fallback/static/body: keep one of them",
            );
            None
        }
        Some(file) => match read(file) {
            Ok(body) => Some(Bytes::from(body)),
            Err(why) => {
                problems.add("/fallback/static/file", why);
                None
            }
        },
        None if raw.body.len() > MAX_FILE => {
            problems.add(
                "/fallback/static/body",
                format!("is {} bytes long: use 1MiB at most", raw.body.len()),
            );
            None
        }
        None => Some(Bytes::from(raw.body.clone())),
    };
    if raw.status.0 == 0 {
        let of_nothing = raw.content_type != RawFallback::with_defaults().fixed.content_type;
        let is_told = ["status", "body", "file"]
            .iter()
            .any(|key| problems.has(&format!("/fallback/static/{key}")));
        if of_nothing && !is_told {
            problems.add(
                "/fallback/static/content-type",
                "has no effect: there is no static answer without a status, a body or a file; \
                 write one of them beside it, or take it out",
            );
        }
        return None;
    }
    let status = u16::try_from(raw.status.0).unwrap_or(0);
    let status = match StatusCode::from_u16(status) {
        Ok(status) if (200..=599).contains(&status.as_u16()) => status,
        _ => {
            problems.add(
                "/fallback/static/status",
                format!(
                    "{} is not a status code of an answer: use 200 to 599",
                    raw.status.0
                ),
            );
            return None;
        }
    };
    let body = body?;
    // RFC 9110 sections 15.3.5, 15.3.6 and 15.4.5.
    if matches!(status.as_u16(), 204 | 205 | 304) && !body.is_empty() {
        problems.add(
            "/fallback/static/status",
            format!("an answer with {status} has no body: use another status, such as 503"),
        );
        return None;
    }
    Some(FixedAnswer {
        status,
        content_type: content_type?,
        body,
    })
}

fn content_type(written: &str, problems: &mut Problems) -> Option<HeaderValue> {
    let value = HeaderValue::from_str(written).ok();
    let value = value.filter(|_| written.is_ascii() && written.contains('/'));
    if value.is_none() {
        problems.add(
            "/fallback/static/content-type",
            format!("not a media type: {written:?}; write it as \"text/html; charset=utf-8\""),
        );
    }
    value
}
