//! Requests: what hyper's server reads.

use std::collections::BTreeMap;

use canary_router::proxy::{
    error::Refusal,
    http1::{framing::Unclear, head::BadHead},
};
use proptest::{prelude::*, strategy::ValueTree};

use super::{
    by_name, generate, is_stricter_in_body,
    ours::{self, Arriving, End, Request, Stop},
    reference::{self, Asked, Read1},
};

const MAX_HEADER_BYTES: usize = 64 << 10;

/// Where we refuse what hyper takes, and that is meant.
fn is_stricter(why: Refusal) -> bool {
    match why {
        // Who may be asked for what: hyper leaves that to its user.
        Refusal::Method => true,
        Refusal::Bad(why) => [
            "the Host header is missing",
            "there is more than one Host header",
            "the Host header is not a host",
            "a request that asks for an upgrade cannot have a body",
        ]
        .contains(&why),
        Refusal::Head(BadHead::Malformed(why)) => [
            "a line of the header section does not end with CRLF",
            "the request target contains a fragment",
            "the request target is not a path",
            "the request target has no valid authority",
        ]
        .contains(&why),
        Refusal::Head(
            BadHead::TargetTooLong | BadHead::TooLarge | BadHead::Version | BadHead::Http2Preface,
        ) => false,
        // hyper takes equal lengths, any codings before the last one, and lets a coding win over a
        // length, even over one that is none.
        Refusal::Unclear(Unclear::LengthAndCoding | Unclear::Lengths | Unclear::Codings) => true,
        Refusal::Unclear(Unclear::Length | Unclear::UnknownCoding | Unclear::CodingIn10) => false,
    }
}

/// Controls in an extension, or blanks before it.
fn is_minded(byte: u8) -> bool {
    matches!(byte, 0..=9 | 11..=32 | 127)
}

/// Where we take what hyper refuses, and that is meant.
fn is_laxer(request: &Request, bytes: &[u8]) -> bool {
    // What browsers send, and upstreams are to judge.
    let odd_target = request
        .target
        .iter()
        .any(|byte| b"<>`|^\\".contains(byte) || *byte >= 0x80);
    // RFC 9110 section 6.2.
    let later_minor = bytes.windows(7).any(|window| window == b"HTTP/1.")
        && request.version == http::Version::HTTP_11
        && (b'2'..=b'9').any(|minor| {
            let version = [b"HTTP/1.", &[minor][..]].concat();
            bytes.windows(8).any(|window| window == version)
        });
    // hyper keeps the last two numbers of 64 bits for itself.
    let largest = bytes
        .windows(20)
        .any(|length| length == b"18446744073709551615");
    odd_target || later_minor || largest
}

fn compare(bytes: &[u8], sizes: &[usize]) -> Result<&'static str, String> {
    let arriving = Arriving::new(bytes, sizes);
    let (ours, stop) = ours::requests(arriving.clone(), MAX_HEADER_BYTES);
    let hypers = reference::requests(arriving);
    for (i, ours) in ours.iter().enumerate() {
        let Some(hypers) = hypers.get(i) else {
            return match is_laxer(ours, bytes) {
                true => Ok("hyper refuses"),
                false => Err(format!("hyper refuses, we read {ours:?}")),
            };
        };
        let mut hypers = hypers.clone();
        hypers.fields = by_name(hypers.fields);
        hypers.trailers = by_name(hypers.trailers);
        let mut common = Read1 {
            start: Asked {
                method: ours.method.clone(),
                target: ours.target.clone(),
            },
            version: ours.version,
            fields: by_name(ours.fields.clone()),
            body: ours.content.bytes.clone(),
            trailers: by_name(ours.content.trailers.clone()),
            end: match ours.content.end {
                End::Whole => reference::End::Whole,
                End::Cut | End::Malformed(_) => reference::End::Broken,
            },
        };
        match (ours.content.end, hypers.end) {
            (End::Malformed(malformed), reference::End::Whole) => {
                if !is_stricter_in_body(malformed, bytes, is_minded) {
                    return Err(format!(
                        "malformed to us ({malformed:?}), hyper reads {hypers:?}"
                    ));
                }
                return match hypers.body.starts_with(&common.body) {
                    true => Ok("malformed to us"),
                    false => Err(format!("other content before: {common:?}, {hypers:?}")),
                };
            }
            (_, reference::End::Broken) => {
                let length = common.body.len().min(hypers.body.len());
                common.body.truncate(length);
                hypers.body.truncate(length);
            }
            _ => {}
        }
        if common != hypers {
            return Err(format!("we read    {common:?}\nhyper reads {hypers:?}"));
        }
    }
    match (stop, hypers.get(ours.len())) {
        (Stop::Broken, None) => Ok("both broken"),
        (Stop::Refused(_), None) => Ok("both refuse"),
        (Stop::Ended | Stop::Closed, None) => Ok("both whole"),
        (Stop::Refused(why), Some(_)) if is_stricter(why) => Ok("we refuse"),
        (stop, Some(more)) => Err(format!("{stop:?}, but hyper also reads {more:?}")),
    }
}

proptest! {
    #![proptest_config(generate::cases(6000))]

    #[test]
    fn requests_are_what_they_are_to_hyper_or_are_refused_for_a_reason(
        bytes in generate::requests(),
        sizes in generate::sizes(),
    ) {
        compare(&bytes, &sizes).map_err(|difference| {
            let bytes = bytes.escape_ascii();
            TestCaseError::fail(format!("\"{bytes}\" in {sizes:?}\n{difference}"))
        })?;
    }
}

/// A comparison of refusals only would be worth nothing.
#[test]
fn what_is_compared_is_worth_it() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for _ in 0..2000 {
        let bytes = generate::requests()
            .new_tree(&mut runner)
            .unwrap()
            .current();
        *counts.entry(compare(&bytes, &[]).unwrap()).or_default() += 1;
    }
    println!("{counts:?}");
    for kind in [
        "both whole",
        "both broken",
        "both refuse",
        "we refuse",
        "malformed to us",
        "hyper refuses",
    ] {
        let least = if kind == "both whole" { 200 } else { 5 };
        assert!(
            counts.get(kind).is_some_and(|count| *count > least),
            "{kind}: {counts:?}"
        );
    }
}
