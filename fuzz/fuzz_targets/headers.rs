//! What an upstream gets of a head: what belongs to the client's connection is gone, what is ours to say is said once
//! and by us, and all else is there byte for byte. In HTTP/1, and in HTTP/2.

#![no_main]

use std::{
    cell::RefCell,
    collections::HashSet,
    future::poll_fn,
    io::{ErrorKind, Read},
    os::unix::net::UnixStream as Receiving,
    sync::LazyLock,
    time::Duration,
};

use bytes::BytesMut;
use canary_router::{
    config::{Config, Upstream},
    proxy::{
        body::RequestBody,
        fields::Known,
        forwarded::{self, Peer},
        headers,
        http1::head::{self, Search},
        http2,
        io::{Io, Socket},
        message::RequestHead,
        upload::{Message, Part, Upload},
        uri,
    },
};
use http::{HeaderMap, Request, Uri, Version};
use libfuzzer_sys::fuzz_target;
use strict::{Kind, read};
use tokio::{net::UnixStream, runtime::Runtime};

#[path = "../../tests/it/support/strict.rs"]
#[allow(dead_code)]
mod strict;

/// What `strict` waits with; nothing waits here.
async fn soon<F: Future>(future: F) -> F::Output {
    future.await
}

static UPSTREAMS: LazyLock<Vec<Upstream>> = LazyLock::new(|| {
    let targets = [
        "http://h",
        "http://h:81/base/?x=1",
        "http://unix:/socket:/base",
    ];
    let upstream = |target| {
        let file = format!(
            r#"{{"main-target": "{target}", "canary-target": "http://c",
                "router-server": {{"host": "h", "port": 1}}}}"#
        );
        Config::parse("fuzz", &file).expect("it is valid").main
    };
    targets.into_iter().map(upstream).collect()
});

/// A connection, with both of its ends.
struct Wire {
    runtime: Runtime,
    io: Io,
    other: Receiving,
}

thread_local! {
    static WIRE: RefCell<Wire> = RefCell::new(wire());
}

fn wire() -> Wire {
    let builder = &mut tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().build().expect("there is room for one");
    let (io, other) = Receiving::pair().expect("there are descriptors");
    io.set_nonblocking(true).expect("it is ours");
    other.set_nonblocking(true).expect("it is ours");
    let io = {
        let _within = runtime.enter();
        UnixStream::from_std(io).expect("it is a socket")
    };
    let io = Io::Plain(Socket::Unix(io));
    Wire { runtime, io, other }
}

const IDS: [&[u8]; 2] = [b"", b"0000-made-by-us"];

fuzz_target!(|input: (u16, &[u8])| {
    let (options, bytes) = input;
    let is = |bit: u16| options >> bit & 1 == 1;
    let trusted = ["127.0.0.0/8".parse().expect("it is a network")];
    let address = if is(0) { "127.0.0.1" } else { "10.1.2.3" };
    let address = address.parse().expect("it is an address");
    let peer = Peer::new(address, is(1));

    let mut buf = BytesMut::from(bytes);
    let Ok(Some(mut head)) = head::parse_request(&mut buf, &mut Search::default(), 1 << 16) else {
        return;
    };
    let content = buf.freeze();
    if is(2) {
        match by_http2(&head) {
            Some(other) => head = other,
            None => return,
        }
    }
    if headers::vet(&head).is_err() {
        return;
    }
    let Ok(upgrade) = headers::wanted_upgrade(&head, !content.is_empty()) else {
        return;
    };
    let came = lines(&head);
    let named = connection_names(&head);
    let takes_trailers = headers::strip_hop_by_hop(&mut head.headers);
    let origin = forwarded::origin(&head.headers, &peer, &trusted);
    let request_id = IDS[usize::from(is(3))];
    let message = Message {
        head: &head,
        peer: &peer,
        origin: &origin,
        request_id: Some(request_id).filter(|id| !id.is_empty()),
        takes_trailers,
        upgrade: upgrade.as_deref(),
        sidecar: match options >> 4 & 3 {
            0 => None,
            1 => Some(Part::All),
            2 => Some(Part::Beginning),
            _ => Some(Part::None),
        },
        trace: None,
    };
    let upstream = &UPSTREAMS[usize::from(options >> 6) % UPSTREAMS.len()];
    let mut upload = Upload::new(RequestBody::whole(content.clone(), None));
    upload.address(upstream, &message);

    let mut expected: Vec<(String, Vec<u8>)> = came
        .into_iter()
        .filter(|(name, _)| !is_ours(name, &message) && !OF_A_CONNECTION.contains(&&name[..]))
        .filter(|(name, _)| !named.contains(name.as_bytes()) || name == "trailer")
        .collect();
    let in_http2 = http2::head::request(upstream, &message, None, &upload);
    let sent = send(&mut upload);
    let (written, length) = match read(&sent, Kind::Request) {
        Ok(read) => read,
        Err(not) => panic!("no request: {not:?}: {}", sent.escape_ascii()),
    };
    assert_eq!(length, sent.len(), "{}", sent.escape_ascii());
    assert_eq!(written.body, content);
    let mut target = BytesMut::new();
    head.target.put_on(upstream, &mut target);
    assert_eq!(written.target(), target);
    assert_eq!(written.all("host"), [upstream.host_header.as_bytes()]);
    assert_eq!(
        written.all("content-length").len(),
        usize::from(said_length(&head, &content))
    );
    assert!(written.all("transfer-encoding").is_empty());
    assert_eq!(written.all("te").len(), usize::from(takes_trailers));
    let [connection, protocol] = ["connection", "upgrade"].map(|name| written.all(name));
    match &upgrade {
        None => assert!(connection.is_empty() && protocol.is_empty()),
        Some(upgrade) => {
            assert_eq!(connection, [b"upgrade"]);
            assert_eq!(protocol, [&upgrade[..]]);
        }
    }
    for name in ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-port"] {
        assert_eq!(written.all(name).len(), 1, "{name}");
    }
    assert!(written.all("x-forwarded-for")[0].ends_with(peer.text.as_bytes()));
    assert!(written.all("x-forwarded-host").len() <= 1);
    let rest = |fields: Vec<(String, Vec<u8>)>| -> Vec<_> {
        let passed = fields.into_iter();
        passed
            .filter(|(name, value)| {
                !is_ours(name, &message)
                    && !OF_A_CONNECTION.contains(&&name[..])
                    && !(name == "x-request-id" && value == request_id)
            })
            .collect()
    };
    expected.retain(|(name, value)| !(name == "x-request-id" && value == request_id));
    if message.sidecar.is_some() {
        assert!(written.all("x-canary-body").len() <= 1);
    }
    assert_eq!(rest(written.fields), expected);

    // The same in HTTP/2, where a value may not be all that it may be in HTTP/1.
    if let Some(request) = in_http2 {
        for name in OF_A_CONNECTION.iter().filter(|name| **name != "te") {
            assert!(!request.headers().contains_key(*name), "{name}");
        }
        let te = request.headers().get_all("te").iter();
        assert!(te.map(|te| te.as_bytes()).all(|te| te == b"trailers"));
        let is_text = |(_, value): &&(String, Vec<u8>)| {
            value
                .iter()
                .all(|byte| matches!(byte, b'\t' | b' '..=b'~' | 0x80..))
        };
        let texts: Vec<_> = expected.iter().filter(is_text).cloned().collect();
        let mut said = rest(of_map(request.headers()));
        // Equal names stand together in a map.
        let mut texts = texts;
        texts.sort();
        said.sort();
        assert_eq!(said, texts);
    }
});

const OF_A_CONNECTION: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
];

fn is_ours(name: &str, message: &Message<'_>) -> bool {
    let ours = [
        "host",
        "content-length",
        "expect",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-port",
        "x-forwarded-proto",
    ];
    ours.contains(&name)
        || name == "forwarded" && !message.origin.believed
        || name == "x-canary-body" && message.sidecar.is_some()
}

fn said_length(head: &RequestHead, content: &[u8]) -> bool {
    let expected = ["POST", "PUT", "PATCH"].contains(&head.method.as_str());
    !content.is_empty() || expected || head.headers.has(Known::ContentLength)
}

/// Names in lower case, and values.
fn lines(head: &RequestHead) -> Vec<(String, Vec<u8>)> {
    let name = |name: &[u8]| String::from_utf8_lossy(name).to_ascii_lowercase();
    let fields = head.headers.iter();
    fields.map(|(n, value)| (name(n), value.to_vec())).collect()
}

fn of_map(map: &HeaderMap) -> Vec<(String, Vec<u8>)> {
    map.iter()
        .map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()))
        .collect()
}

fn connection_names(head: &RequestHead) -> HashSet<Vec<u8>> {
    head.headers
        .all(Known::Connection)
        .flat_map(|value| value.split(|byte| *byte == b','))
        .map(|token| token.trim_ascii().to_ascii_lowercase())
        .collect()
}

/// The same request, had it come by HTTP/2.
fn by_http2(head: &RequestHead) -> Option<RequestHead> {
    let host = head.headers.get(Known::Host)?;
    let mut request = Request::new(());
    *request.method_mut() = head.method.clone();
    *request.version_mut() = Version::HTTP_2;
    let target = str::from_utf8(head.target.as_bytes()).ok()?;
    *request.uri_mut() = Uri::builder()
        .scheme("http")
        .authority(host)
        .path_and_query(target)
        .build()
        .ok()?;
    for (name, value) in head.headers.iter() {
        let name = http::HeaderName::from_bytes(name).ok()?;
        let value = http::HeaderValue::from_bytes(value).ok()?;
        request.headers_mut().append(name, value);
    }
    let (parts, ()) = request.into_parts();
    let head = http2::head::of_request(&parts, false).ok()?;
    uri::can_be_said(&head.target).then_some(head)
}

/// All that an upstream gets.
fn send(upload: &mut Upload) -> Vec<u8> {
    WIRE.with_borrow_mut(|Wire { runtime, io, other }| {
        let mut sent = Vec::new();
        runtime.block_on(async {
            let sending = poll_fn(|cx| {
                let sending = upload.poll_send(io, cx);
                if let Err(error) = other.read_to_end(&mut sent) {
                    assert_eq!(error.kind(), ErrorKind::WouldBlock);
                }
                sending
            });
            let sending = tokio::time::timeout(Duration::from_secs(5), sending);
            assert!(matches!(sending.await, Ok(Ok(()))), "it is sent at once");
        });
        sent
    })
}
