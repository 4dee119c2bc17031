//! `traffic` and `override`: the canary's share, who stays where he is, and who may choose for himself.

use std::{net::IpAddr, time::Duration};

use ipnet::IpNet;

use super::{
    CacheKey, SameSite, Sticky, StickyCookie, Traffic,
    error::Problems,
    judge::{set, span},
    raw::{Override as RawOverride, Sticky as RawSticky, Traffic as RawTraffic},
    sidecar::{is_cookie_name, kind, part},
    values::{Percent, Texts},
    words::{unknown, word},
};
use crate::policy::Weight;

pub(super) fn traffic(raw: &RawTraffic, problems: &mut Problems) -> Traffic {
    Traffic {
        weight: weight(raw.weight.unwrap_or_default()),
        sticky: sticky(&raw.sticky, problems),
    }
}

/// The same number: both count in hundredths of a percent.
pub(super) fn weight(Percent(hundredths): Percent) -> Weight {
    Weight::new(hundredths).expect("a percentage is 10,000 hundredths at most")
}

fn sticky(raw: &RawSticky, problems: &mut Problems) -> Option<Sticky> {
    let by = set(&raw.by);
    if by == Some("cookie") {
        return cookie(raw, problems).map(Sticky::Cookie);
    }
    let by = by.and_then(|by| {
        key(by)
            .map_err(|why| problems.add("/traffic/sticky/by", why))
            .ok()
    });
    if !problems.has("/traffic/sticky/by") {
        refuse_without_cookie(raw, problems);
    }
    by
}

/// What a client brings by itself. Method, path and query are not the client's own.
fn key(written: &str) -> Result<Sticky, String> {
    match part(written)? {
        Some(CacheKey::Header(name)) => Ok(Sticky::Header(name)),
        Some(CacheKey::Cookie(name)) => Ok(Sticky::NamedCookie(name)),
        Some(CacheKey::ClientIp) => Ok(Sticky::ClientIp),
        Some(CacheKey::Method | CacheKey::Path | CacheKey::Query) | None => Err(unknown(
            written,
            kind(written).0,
            &["cookie", "cookie:NAME", "header:NAME", "client-ip"],
        )),
    }
}

fn cookie(raw: &RawSticky, problems: &mut Problems) -> Option<StickyCookie> {
    let name = set(&raw.cookie).unwrap_or_default();
    let secure = raw.secure.0;
    if !is_cookie_name(name) {
        problems.add(
            "/traffic/sticky/cookie",
            format!("{name:?} is not a name for a cookie: write it as \"canary-router\""),
        );
    }
    let max_age = span(raw.max_age);
    if max_age < Duration::from_secs(1) {
        problems.add(
            "/traffic/sticky/max-age",
            format!("{max_age:?} is too short: use \"1s\" or more"),
        );
    }
    let known = [
        ("lax", SameSite::Lax),
        ("strict", SameSite::Strict),
        ("none", SameSite::None),
    ];
    let written = set(&raw.same_site).unwrap_or_default();
    let same_site = word("/traffic/sticky/same-site", written, &known, problems)?;
    if same_site == SameSite::None && !secure {
        // RFC 6265bis section 5.7.
        problems.add(
            "/traffic/sticky/same-site",
            "\"none\" makes browsers drop a cookie that is not secure: write \"secure\": true \
             beside it, or use \"lax\"",
        );
    }
    Some(StickyCookie {
        name: name.to_owned(),
        max_age,
        secure,
        same_site,
    })
}

/// Who set one of these wanted a cookie, and would have none.
fn refuse_without_cookie(raw: &RawSticky, problems: &mut Problems) {
    let default = RawSticky::with_defaults();
    for (key, is_set) in [
        ("cookie", set(&raw.cookie) != set(&default.cookie)),
        ("max-age", raw.max_age != default.max_age),
        ("secure", raw.secure != default.secure),
        ("same-site", set(&raw.same_site) != set(&default.same_site)),
    ] {
        if is_set {
            problems.add(
                format!("/traffic/sticky/{key}"),
                "has no effect: the router sets no cookie unless /by beside it is \"cookie\"; write \
                 that, or take this out",
            );
        }
    }
}

/// `None` is everyone, an empty list nobody.
pub(super) fn trusted_overrides(raw: &RawOverride, problems: &mut Problems) -> Option<Vec<IpNet>> {
    let written = raw.trusted.as_ref()?;
    Some(networks("/override/trusted", written, problems))
}

/// A list of networks and addresses.
pub(super) fn networks(path: &str, Texts(written): &Texts, problems: &mut Problems) -> Vec<IpNet> {
    let networks = written.iter().enumerate().filter_map(|(i, written)| {
        network(written)
            .map_err(|why| problems.add(format!("{path}/{i}"), why))
            .ok()
    });
    networks.collect()
}

fn network(written: &str) -> Result<IpNet, String> {
    if let Ok(address) = written.parse::<IpAddr>() {
        return Ok(address.into());
    }
    let network: IpNet = written.parse().map_err(|_| {
        format!(
            "{written:?} is neither a network nor an address: write it as \"10.0.0.0/8\" or \
             \"127.0.0.1\""
        )
    })?;
    if network.addr() != network.network() {
        return Err(format!(
            "{written:?} is an address within a network: write \"{}\" for the whole network, or \
             \"{}\" for the one address",
            network.trunc(),
            network.addr()
        ));
    }
    Ok(network)
}
