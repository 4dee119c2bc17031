//! What has to be true of an exchange when it is over.

use bytes::{Bytes, BytesMut};
use canary_router::{
    config::Config,
    proxy::{proxy_protocol, uri::Target},
};
use futures_util::FutureExt;
use http::Method;

use super::{
    ours::{End, Request},
    requests,
    script::Input,
    strict::{self, Kind, Message, Not},
    upstream::{Seen, Source},
    world::Router,
};

const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub fn exchange(router: &Router, input: &Input<'_>, answer: &[u8], seen: &[Seen]) {
    let bytes = input.bytes();
    let is_secret = |bytes: &[u8]| bytes.windows(10).any(|window| window == b"secret-of-");
    assert!(
        !is_secret(answer) || is_secret(&bytes),
        "it got another client's answer"
    );
    let bytes = match router.greets {
        true => match behind_greeting(&bytes) {
            Some(bytes) => bytes,
            None => {
                assert!(seen.is_empty() && answer.is_empty());
                return;
            }
        },
        false => &bytes,
    };
    if let Some(frames) = behind_preface(bytes) {
        return by_http2(frames, seen);
    }
    let (sent, _) = requests(bytes);
    for by in [Source::Main, Source::Canary, Source::Sidecar] {
        // Not in order: what was sent on a connection that is given up may be read after what came later.
        let mut left: Vec<&Request> = sent.iter().collect();
        for Seen { request, .. } in seen.iter().filter(|seen| seen.by == by) {
            let found = left
                .iter()
                .position(|sent| is_it(request, sent, by, &router.config));
            let trailers = request.trailers.iter();
            assert!(
                !trailers.map(|(name, _)| &name[..]).any(is_no_trailer),
                "{request:?}"
            );
            match found {
                Some(found) => drop(left.remove(found)),
                None => panic!(
                    "{by:?} got {request:?}, which the client did not send, or once less: {sent:?}"
                ),
            }
        }
    }
    if !input.leaves {
        answers(answer, &sent);
    }
}

fn is_it(seen: &Message, sent: &Request, by: Source, config: &Config) -> bool {
    let mut start = BytesMut::from(sent.method.as_str());
    start.extend_from_slice(b" ");
    let Ok(target) = Target::parse(&sent.method, Bytes::copy_from_slice(&sent.target)) else {
        return false;
    };
    let target = target.trimmed(&config.trim_prefix);
    let upstream = match (by, &config.sidecar) {
        (Source::Main, _) => &config.main,
        (Source::Canary, _) => &config.canary,
        (Source::Sidecar, Some(sidecar)) => &sidecar.upstream,
        (Source::Sidecar, None) => return false,
    };
    target.put_on(upstream, &mut start);
    start.extend_from_slice(b" HTTP/1.1");
    let body = match by {
        // It may get the beginning, and does not wait for the rest.
        Source::Sidecar => sent.content.bytes.starts_with(&seen.body),
        _ => sent.content.bytes == seen.body && sent.content.end == End::Whole,
    };
    seen.start == start && body
}

/// What would frame, route or authenticate a message, if somebody took it for a field of its head.
fn is_no_trailer(name: &str) -> bool {
    [
        "authorization",
        "connection",
        "content-length",
        "cookie",
        "host",
        "set-cookie",
        "te",
        "transfer-encoding",
        "upgrade",
        "x-forwarded-for",
    ]
    .contains(&name)
}

/// What the client gets are answers to what it sent, in that order; the last one may be cut off.
fn answers(mut answer: &[u8], sent: &[Request]) {
    let whole = answer;
    let mut finals = 0;
    while !answer.is_empty() {
        let sent_this = sent.get(finals);
        let method = sent_this.map_or(&Method::GET, |sent| &sent.method);
        let mut read = strict::read(answer, Kind::Response(method.as_str()));
        // What is refused may have been a HEAD.
        if sent_this.is_none() && read.is_err() {
            read = strict::read(answer, Kind::Response("HEAD"));
        }
        let (response, length) = match read {
            Ok(read) => read,
            Err(Not::Yet) => return,
            Err(Not::Ever(why)) => panic!("{why}: {}", whole.escape_ascii()),
        };
        answer = &answer[length..];
        let trailers = response.trailers.iter();
        assert!(
            !trailers.map(|(name, _)| &name[..]).any(is_no_trailer),
            "{response:?}"
        );
        match response.status() {
            // The rest is of another protocol.
            101 => return,
            100..=199 => {}
            status => {
                let asked_for = sent_this.map(|sent| &sent.target);
                if response.all("x-usual") == [b"1"] && status == 200 && *method != Method::HEAD {
                    let ends = asked_for.is_some_and(|target| said_for(&response.body, target));
                    assert!(ends, "{response:?} answers {asked_for:?}");
                }
                finals += 1;
                assert!(
                    finals <= sent.len() + 1,
                    "more answers than requests: {}",
                    whole.escape_ascii()
                );
            }
        }
    }
}

/// Whether the usual answer is one to a request for this, which an upstream may have got trimmed and on a base.
fn said_for(body: &[u8], target: &[u8]) -> bool {
    let path = |target: &[u8]| -> Vec<u8> {
        let path = target
            .split(|byte| *byte == b'?')
            .next()
            .unwrap_or_default();
        path.to_vec()
    };
    let (body, target) = (path(body), path(target));
    let body = body.strip_prefix(b"/base").unwrap_or(&body);
    let trimmed = target.strip_prefix(b"/app").unwrap_or(&target);
    let same = |a: &[u8], b: &[u8]| {
        let slashes = |text: &[u8]| text.strip_prefix(b"/").unwrap_or(text).to_vec();
        slashes(a) == slashes(b)
    };
    same(body, &target) || same(body, trimmed)
}

/// What follows a PROXY header, as the router reads it.
fn behind_greeting(mut bytes: &[u8]) -> Option<&[u8]> {
    let read = proxy_protocol::read(&mut bytes).now_or_never();
    let read = read.expect("what is there need not be waited for");
    read.is_ok().then_some(bytes)
}

/// The frames of a client that speaks HTTP/2. Empty lines before it are let pass, as before a request line.
fn behind_preface(mut bytes: &[u8]) -> Option<&[u8]> {
    while let Some(rest) = bytes.strip_prefix(b"\r\n") {
        bytes = rest;
    }
    bytes.strip_prefix(HTTP2_PREFACE)
}

/// There is a HEADERS frame to each request.
fn by_http2(mut frames: &[u8], seen: &[Seen]) {
    let mut headers = 0;
    while let [a, b, c, kind, _, _, _, _, _, rest @ ..] = frames {
        headers += usize::from(*kind == 1);
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        frames = rest.get(length..).unwrap_or_default();
    }
    for by in [Source::Main, Source::Canary, Source::Sidecar] {
        let count = seen.iter().filter(|seen| seen.by == by).count();
        assert!(
            count <= headers,
            "{by:?} got {count} requests of {headers}: {seen:?}"
        );
    }
}
