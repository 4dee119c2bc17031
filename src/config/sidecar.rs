//! `sidecar`: what it is given, and for how long its word holds.

use std::{ops::RangeInclusive, time::Duration};

use http::HeaderName;

use super::{
    CacheKey, SidecarBody, SidecarCache,
    error::Problems,
    judge::{set, span},
    raw::{Raw, Sidecar as RawSidecar},
    values::Texts,
    words::{unknown, word},
};

/// The default of `sidecar.cache.max-entries`.
pub(super) const MAX_ENTRIES: u64 = 10_000;

const TTLS: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(24 * 3600);

pub(super) fn body(raw: &RawSidecar, problems: &mut Problems) -> Option<SidecarBody> {
    let known = [("full", SidecarBody::Full), ("none", SidecarBody::None)];
    let written = set(&raw.body).unwrap_or_default();
    word("/sidecar/body", written, &known, problems)
}

pub(super) fn cache(raw: &RawSidecar, problems: &mut Problems) -> Option<SidecarCache> {
    let raw = &raw.cache;
    let Texts(written) = &raw.key;
    let ttl = span(raw.ttl);
    let max_entries = raw.max_entries.0;
    if written.is_empty() && ttl.is_zero() && max_entries == MAX_ENTRIES {
        return None;
    }
    if written.is_empty() {
        problems.add(
            "/sidecar/cache/key",
            "is empty: say what two requests must have in common to get the same answer, such as \
             [\"header:X-User-Id\"]",
        );
    }
    if ttl.is_zero() {
        problems.add(
            "/sidecar/cache/ttl",
            "is missing: say how long an answer holds, such as \"10s\"",
        );
    } else if !TTLS.contains(&ttl) {
        problems.add(
            "/sidecar/cache/ttl",
            format!("{ttl:?} is out of range: use \"1ms\" to \"24h\""),
        );
    }
    if !(1..=10_000_000).contains(&max_entries) {
        problems.add(
            "/sidecar/cache/max-entries",
            format!("{max_entries} is out of range: use 1 to 10000000"),
        );
    }
    let key = written.iter().enumerate().filter_map(|(i, part)| {
        cache_key(part)
            .map_err(|why| problems.add(format!("/sidecar/cache/key/{i}"), why))
            .ok()
    });
    Some(SidecarCache {
        key: key.collect(),
        ttl,
        max_entries,
    })
}

fn cache_key(written: &str) -> Result<CacheKey, String> {
    let known = [
        "header:NAME",
        "cookie:NAME",
        "method",
        "path",
        "query",
        "client-ip",
    ];
    part(written)?.ok_or_else(|| unknown(written, kind(written).0, &known))
}

/// The part of a request that this names; `None` where it names none.
pub(super) fn part(written: &str) -> Result<Option<CacheKey>, String> {
    match kind(written) {
        ("method", None) => Ok(Some(CacheKey::Method)),
        ("path", None) => Ok(Some(CacheKey::Path)),
        ("query", None) => Ok(Some(CacheKey::Query)),
        ("client-ip", None) => Ok(Some(CacheKey::ClientIp)),
        ("header", Some(name)) => HeaderName::from_bytes(name.as_bytes())
            .map(|name| Some(CacheKey::Header(name)))
            .map_err(|_| {
                format!("{written:?} has no header name in it: write it as \"header:X-User-Id\"")
            }),
        ("cookie", Some(name)) if is_cookie_name(name) => {
            Ok(Some(CacheKey::Cookie(name.to_owned())))
        }
        ("cookie", Some(_)) => Err(format!(
            "{written:?} has no cookie name in it: write it as \"cookie:sid\""
        )),
        _ => Ok(None),
    }
}

/// What stands before the colon, and behind it where there is one.
pub(super) fn kind(written: &str) -> (&str, Option<&str>) {
    match written.split_once(':') {
        Some((kind, name)) => (kind, Some(name)),
        None => (written, None),
    }
}

/// A cookie's name has the same characters as a header's (RFC 6265 section 4.1.1), but case matters in it.
pub(super) fn is_cookie_name(name: &str) -> bool {
    HeaderName::from_bytes(name.as_bytes()).is_ok()
}

/// What is said of a sidecar where there is none.
pub(super) fn refuse_without_sidecar(
    raw: &Raw,
    body: Option<SidecarBody>,
    cache: Option<&SidecarCache>,
    problems: &mut Problems,
) {
    // A URL that is none has been told.
    if set(&raw.sidecar_url).is_some() || problems.has("/sidecar-url") {
        return;
    }
    for (path, is_set) in [
        ("/sidecar/body", body == Some(SidecarBody::None)),
        ("/sidecar/cache", cache.is_some()),
    ] {
        if is_set {
            problems.add(
                path,
                "has no effect: there is no sidecar without /sidecar-url; write its URL, or take \
                 this out",
            );
        }
    }
}
