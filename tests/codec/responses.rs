//! Responses: what hyper's client reads.

use std::collections::BTreeMap;

use canary_router::proxy::http1::framing::Unclear;
use http::{Method, Version};
use proptest::{prelude::*, sample::select, strategy::ValueTree};

use super::{
    by_name, generate, is_stricter_in_body,
    ours::{self, Arriving, Content, End, NoResponse, Response},
    reference::{self, Answer, Read1},
};

/// Where we refuse what hyper takes, and that is meant.
fn is_stricter(why: NoResponse, bytes: &[u8], is_bodiless: bool) -> bool {
    match why {
        // Of two lengths, or a length and a coding, somebody may believe the other one; a coding that
        // we cannot undo would reach a client that has not asked for it.
        NoResponse::Unclear(
            Unclear::LengthAndCoding | Unclear::Lengths | Unclear::Codings | Unclear::UnknownCoding,
        ) => true,
        // hyper takes a list of equal lengths.
        NoResponse::Unclear(Unclear::Length) => {
            is_bodiless || bytes.windows(4).any(|window| window == b"3, 3")
        }
        // hyper does not look at the framing of what has no body.
        NoResponse::Unclear(Unclear::CodingIn10) => is_bodiless,
        // Empty lines before a status line, which no RFC allows.
        NoResponse::Bad(_) => {
            bytes.starts_with(b"\r\n") || bytes.starts_with(b"\n") || behind_early(bytes)
        }
        NoResponse::Cut => false,
    }
}

/// Whether an empty line, or blank, stands behind an informational response.
fn behind_early(bytes: &[u8]) -> bool {
    [
        &b"\n\r\n\r\nHTTP/"[..],
        b"\n\n\nHTTP/",
        b"\n\n\r\nHTTP/",
        b"\n\r\n\nHTTP/",
    ]
    .iter()
    .any(|gap| bytes.windows(gap.len()).any(|window| window == *gap))
}

/// Controls in an extension.
fn is_minded(byte: u8) -> bool {
    matches!(byte, 0..=8 | 11..=31 | 127)
}

/// Where we take what hyper refuses, and that is meant.
fn is_laxer(_response: &Response, bytes: &[u8]) -> bool {
    // hyper keeps the last two numbers of 64 bits for itself.
    bytes
        .windows(20)
        .any(|length| length == b"18446744073709551615")
}

/// Of a `Connection` with a byte in it that is not visible ASCII hyper reads nothing; to us it hides no token
/// beside it (`keep-alive` of HTTP/1.0).
fn hides_tokens_from_hyper(ours: &Response) -> bool {
    let is_odd = |byte: &u8| !matches!(byte, b'\t' | b' '..=b'~');
    let mut connection = ours.fields.iter().filter(|(name, _)| name == "connection");
    connection.any(|(_, value)| value.iter().any(is_odd))
}

fn compare(method: &Method, bytes: &[u8], sizes: &[usize]) -> Result<&'static str, String> {
    let arriving = Arriving::new(bytes, sizes);
    let ours = ours::response(method, arriving.clone());
    let hypers = reference::response(method, arriving);
    let (ours, hypers) = match (ours, hypers) {
        (Err(_), None) => return Ok("both refuse"),
        (Err(why), Some(hypers)) => {
            let bodiless =
                *method == Method::HEAD || matches!(hypers.start.status.as_u16(), 101 | 204 | 304);
            return match is_stricter(why, bytes, bodiless) {
                true => Ok("we refuse"),
                false => Err(format!("we refuse ({why:?}), hyper reads {hypers:?}")),
            };
        }
        (Ok(ours), None) if is_laxer(&ours, bytes) => return Ok("hyper refuses"),
        (Ok(ours), None) => return Err(format!("hyper refuses, we read {ours:?}")),
        (Ok(ours), Some(hypers)) => (ours, hypers),
    };
    // Only where both know of it.
    if ours.reusable && !hypers.start.reusable && !hides_tokens_from_hyper(&ours) {
        return Err(format!("only we would use the connection again: {ours:?}"));
    }
    let ends = (ours.content.end, hypers.end);
    let common = |ours: &Response| Read1 {
        start: Answer {
            informational: ours.informational.clone(),
            status: ours.status,
            reusable: hypers.start.reusable,
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
    let mut hypers = hypers.clone();
    hypers.fields = by_name(hypers.fields);
    hypers.trailers = by_name(hypers.trailers);
    let mut common = common(&ours);
    if let (End::Malformed(malformed), reference::End::Whole) = ends {
        if !is_stricter_in_body(malformed, bytes, is_minded) {
            return Err(format!(
                "malformed to us ({malformed:?}), hyper reads {hypers:?}"
            ));
        }
        // What was read before is the same.
        if !hypers.body.starts_with(&common.body) {
            return Err(format!(
                "other content before it is malformed: {common:?}, {hypers:?}"
            ));
        }
        return Ok("malformed to us");
    }
    if ends.1 == reference::End::Broken {
        // How much hyper gives out of what breaks off depends on how it came in.
        let (short, long) = match common.body.len() < hypers.body.len() {
            true => (&common.body, &hypers.body),
            false => (&hypers.body, &common.body),
        };
        if !long.starts_with(short) {
            return Err(format!("not the same content: {common:?}, {hypers:?}"));
        }
        common.body.clone_from(&hypers.body);
    }
    match common == hypers {
        true if ends.1 == reference::End::Broken => Ok("both broken"),
        true => Ok("both whole"),
        false => Err(format!("we read    {common:?}\nhyper reads {hypers:?}")),
    }
}

fn hold(method: &Method, bytes: &[u8], sizes: &[usize]) -> Result<&'static str, TestCaseError> {
    compare(method, bytes, sizes).map_err(|difference| {
        let bytes = bytes.escape_ascii();
        TestCaseError::fail(format!("{method} \"{bytes}\" in {sizes:?}\n{difference}"))
    })
}

proptest! {
    #![proptest_config(generate::cases(6000))]

    #[test]
    fn a_response_is_what_it_is_to_hyper_or_is_refused_for_a_reason(
        method in select(&[Method::GET, Method::GET, Method::POST, Method::HEAD][..]),
        bytes in generate::responses(),
        sizes in generate::sizes(),
    ) {
        hold(&method, &bytes, &sizes)?;
    }
}

/// Found by chance: hyper lets go of the connection, because it reads nothing of such a field.
#[test]
fn odd_bytes_hide_no_token() {
    let bytes = b"HTTP/1.0 200 OK\r\nConnection:\x80 x, Keep-Alive\r\nContent-Length: 1\r\n\r\nh";
    let ours = ours::response(&Method::GET, Arriving::new(bytes, &[])).unwrap();
    assert!(ours.reusable);
    hold(&Method::GET, bytes, &[]).unwrap();
}

/// A comparison of refusals only would be worth nothing.
#[test]
fn what_is_compared_is_worth_it() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for _ in 0..2000 {
        let bytes = generate::responses()
            .new_tree(&mut runner)
            .unwrap()
            .current();
        *counts
            .entry(compare(&Method::GET, &bytes, &[]).unwrap())
            .or_default() += 1;
    }
    println!("{counts:?}");
    for kind in [
        "both whole",
        "both broken",
        "both refuse",
        "we refuse",
        "malformed to us",
    ] {
        let least = if kind == "both whole" { 400 } else { 5 };
        assert!(
            counts.get(kind).is_some_and(|count| *count > least),
            "{kind}: {counts:?}"
        );
    }
}

/// Every cut of a response of every kind, in pieces of every small size.
#[test]
fn a_response_may_be_cut_anywhere() {
    let responses: [&[u8]; 5] = [
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
        b"HTTP/1.1 103 X\r\na: 1\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nh",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3;a=b\r\nhel\r\n2\r\nlo\r\n0\r\nx: 1\r\n\r\n",
        b"HTTP/1.0 200 OK\nserver: x\n\nhello",
        b"HTTP/1.1 204 No Content\r\n\r\n",
    ];
    for bytes in responses {
        let whole = ours::response(&Method::GET, Arriving::new(bytes, &[])).unwrap();
        assert!(matches!(
            whole.content,
            Content {
                end: End::Whole,
                ..
            }
        ));
        for end in 0..=bytes.len() {
            for size in 1..8 {
                hold(&Method::GET, &bytes[..end], &[size]).unwrap();
            }
            let cut = ours::response(&Method::GET, Arriving::new(&bytes[..end], &[]));
            let is_whole = cut.is_ok_and(|cut| cut.content.end == End::Whole);
            // What ends with the connection is whole wherever that is.
            let until_close = whole.version == Version::HTTP_10
                && bytes[..end].windows(2).any(|end| end == b"\n\n");
            assert!(!is_whole || end == bytes.len() || until_close, "{end}");
        }
    }
}
