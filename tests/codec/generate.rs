//! Messages to be read: most of them valid, many odd, some damaged.

use proptest::{
    collection::vec,
    prelude::*,
    sample::{Index, select},
};

/// How many cases a test runs; `PROPTEST_CASES` asks for more.
pub fn cases(usual: u32) -> ProptestConfig {
    let config = ProptestConfig::default();
    ProptestConfig {
        cases: match std::env::var_os("PROPTEST_CASES") {
            Some(_) => config.cases,
            None => usual,
        },
        failure_persistence: None,
        ..config
    }
}

/// The sizes of the pieces in which bytes arrive, over and over.
pub fn sizes() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![
        2 => Just(Vec::new()),
        1 => Just(vec![1]),
        3 => vec(1usize..60, 1..6),
    ]
}

/// All that an upstream says on a connection.
pub fn responses() -> impl Strategy<Value = Vec<u8>> {
    let final_one = (
        message(
            mostly(STATUS_LINES, ODD_STATUS_LINES),
            mostly(RESPONSE_LINES, ODD_LINES),
        ),
        behind(),
    );
    let early = message(select(INFORMATIONAL), mostly(RESPONSE_LINES, ODD_LINES));
    let early = prop_oneof![6 => Just(Vec::new()), 1 => vec(early, 1..3)];
    let all = (early, final_one).prop_map(|(early, (response, behind))| {
        let mut bytes = early.concat();
        bytes.extend(response);
        bytes.extend_from_slice(behind);
        bytes
    });
    damaged(all)
}

/// All that a client says on a connection.
pub fn requests() -> impl Strategy<Value = Vec<u8>> {
    let line = (select(METHODS), select(TARGETS), select(VERSIONS))
        .prop_map(|(method, target, version)| format!("{method} {target} {version}"));
    let line = prop_oneof![
        3 => Just("GET / HTTP/1.1".to_owned()),
        3 => Just("POST /upload HTTP/1.1".to_owned()),
        2 => line,
    ];
    let one = message(line, mostly(REQUEST_LINES, ODD_LINES));
    damaged((vec(one, 1..4), behind()).prop_map(|(requests, behind)| {
        let mut bytes = requests.concat();
        bytes.extend_from_slice(behind);
        bytes
    }))
}

fn mostly(
    usual: &'static [&'static str],
    odd: &'static [&'static str],
) -> impl Strategy<Value = &'static str> {
    prop_oneof![20 => select(usual), 1 => select(odd)]
}

const STATUS_LINES: &[&str] = &[
    "HTTP/1.1 200 OK",
    "HTTP/1.1 200 OK",
    "HTTP/1.1 200 OK",
    "HTTP/1.1 200 OK",
    "HTTP/1.1 200",
    "HTTP/1.1 200 ",
    "HTTP/1.1 404 Nowhere to be found",
    "HTTP/1.1 204 No Content",
    "HTTP/1.1 304 Not Modified",
    "HTTP/1.1 205 Reset Content",
    "HTTP/1.0 200 OK",
    "HTTP/1.0 204 No Content",
    "HTTP/1.1 101 Switching Protocols",
    "HTTP/1.1 500 \u{e4}\u{df}",
    "HTTP/1.1 999 X",
];

const ODD_STATUS_LINES: &[&str] = &[
    "HTTP/1.1 099 X",
    "HTTP/1.1 20 X",
    "HTTP/1.1 2000 X",
    "HTTP/1.1 200X",
    "HTTP/1.1  200 OK",
    "HTTP/1.1\t200 OK",
    "HTTP/1.2 200 OK",
    "HTTP/2 200 OK",
    "http/1.1 200 OK",
    "ICY 200 OK",
    "\r\nHTTP/1.1 200 OK",
    "\nHTTP/1.1 200 OK",
];

const INFORMATIONAL: &[&str] = &[
    "HTTP/1.1 100 Continue",
    "HTTP/1.1 102 Processing",
    "HTTP/1.1 103 Early Hints",
    "HTTP/1.1 199",
    "HTTP/1.0 103 X",
];

const RESPONSE_LINES: &[&str] = &[
    "Date: Thu, 01 Jan 1970 00:00:00 GMT",
    "date: today",
    "Server: x",
    "X-Empty:",
    "X-Blanks: \t a  b \t",
    "X-Tight:1",
    "X-Latin: \u{e9}",
    "!#$%&'*+-.^_`|~: token",
    "Set-Cookie: a=1",
    "Set-Cookie: b=2",
    "Connection: close",
    "Connection: keep-alive",
    "Connection: X-Tight, Keep-Alive",
    "Connection: close, keep-alive",
    "Connection: \u{e9}, close",
    "Trailer: X-Sum",
    "Upgrade: websocket",
    "Expires: 0",
];

const ODD_LINES: &[&str] = &[
    "Age : 1",
    " folded",
    "no colon",
    ": no name",
    "X-Nul: \0",
    "X-Return: a\rb",
    "X-Del: \x7f",
    "X-\u{e9}: 1",
];

const METHODS: &[&str] = &[
    "GET", "HEAD", "OPTIONS", "DELETE", "M-1!", "CONNECT", "get", "G(T", "",
];

const TARGETS: &[&str] = &[
    "/",
    "/a?b=c&d",
    "/?",
    "//a/../b/%2F%00",
    "*",
    "http://host/a?b",
    "HTTP://host",
    "https://[::1]:1?q",
    "http://u@host/",
    "ftp://host/",
    "host:1",
    "a",
    "?",
    "/a#b",
    "/<a>",
    "/{\"a\"}",
    "/a`b|c^d\\e",
    "/\u{e9}",
    "/a b",
    "/a\tb",
    "/\x7f",
    "",
];

const VERSIONS: &[&str] = &[
    "HTTP/1.1",
    "HTTP/1.1",
    "HTTP/1.0",
    "HTTP/1.2",
    "HTTP/2.0",
    "HTTP/1.10",
    "http/1.1",
    "HTTP/1.1 ",
    "",
];

const REQUEST_LINES: &[&str] = &[
    "Host: a",
    "Host: b:80",
    "Accept: */*",
    "X-Empty:",
    "X-Blanks: \t a  b \t",
    "X-Tight:1",
    "X-Latin: \u{e9}",
    "Cookie: a=1",
    "Connection: close",
    "Connection: keep-alive",
    "Connection: Content-Length, Host",
    "Connection: upgrade",
    "Upgrade: websocket",
    "Upgrade: h2c",
    "TE: trailers",
    "Expect: 100-continue",
    "X-Forwarded-For: 1.2.3.4",
    "Host: a b",
];

/// Start line, fields, framing and a body.
fn message<L>(
    start: impl Strategy<Value = L>,
    line: impl Strategy<Value = &'static str>,
) -> impl Strategy<Value = Vec<u8>>
where
    L: AsRef<str> + std::fmt::Debug,
{
    let lines = vec(line, 0..5);
    let host = prop_oneof![9 => Just(Some("Host: h")), 1 => Just(None)];
    (start, host, lines, framed(), any::<Index>(), ends()).prop_map(
        |(start, host, mut lines, (framing, body), place, end)| {
            lines.extend(host);
            let place = place.index(lines.len() + 1);
            let mut head: Vec<&str> = vec![start.as_ref()];
            head.extend_from_slice(&lines[..place]);
            head.extend(framing.iter().map(String::as_str));
            head.extend_from_slice(&lines[place..]);
            let mut bytes = Vec::new();
            for line in head {
                bytes.extend_from_slice(line.as_bytes());
                bytes.extend_from_slice(end.as_bytes());
            }
            bytes.extend_from_slice(end.as_bytes());
            bytes.extend(body);
            bytes
        },
    )
}

fn ends() -> impl Strategy<Value = &'static str> {
    prop_oneof![12 => Just("\r\n"), 1 => Just("\n")]
}

/// The lines that say how long a body is, and the body: mostly as they say.
fn framed() -> impl Strategy<Value = (Vec<String>, Vec<u8>)> {
    let length = content().prop_map(|body| (vec![format!("Content-Length: {}", body.len())], body));
    let chunks = chunked().prop_map(|body| (vec!["Transfer-Encoding: chunked".to_owned()], body));
    let odd = (
        vec(select(FRAMING_LINES), 0..3),
        prop_oneof![content(), chunked()],
    )
        .prop_map(|(lines, body)| (lines.into_iter().map(str::to_owned).collect(), body));
    prop_oneof![
        3 => Just((Vec::new(), Vec::new())),
        4 => length,
        5 => chunks,
        2 => odd,
    ]
}

const FRAMING_LINES: &[&str] = &[
    "Content-Length: 0",
    "Content-Length: 3",
    "Content-Length: 3",
    "Content-Length: 003",
    "Content-Length: 3, 3",
    "Content-Length: +3",
    "Content-Length: -1",
    "Content-Length: 0x3",
    "Content-Length: 3 3",
    "Content-Length:",
    "Content-Length: 18446744073709551615",
    "Content-Length: 18446744073709551616",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: Chunked",
    "Transfer-Encoding: chunked, chunked",
    "Transfer-Encoding: gzip, chunked",
    "Transfer-Encoding: chunked, gzip",
    "Transfer-Encoding: ,chunked",
    "Transfer-Encoding: chunked;a=b",
    "Transfer-Encoding: xchunked",
    "Transfer-Encoding: identity",
    "Transfer-Encoding:",
    "Transfer-Encoding : chunked",
];

fn content() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        vec(any::<u8>(), 0..40),
        vec(select(&b"0123abcdef;\r\n: \t"[..]), 0..40),
    ]
}

fn chunked() -> impl Strategy<Value = Vec<u8>> {
    let size_end = prop_oneof![12 => Just(""), 1 => select(SIZE_ENDS)];
    let chunk = (vec(any::<u8>(), 1..40), size_end, 0usize..3);
    let trailers = prop_oneof![3 => Just(Vec::new()), 1 => vec(mostly(TRAILERS, ODD_LINES), 1..3)];
    let last = prop_oneof![6 => Just("0"), 1 => select(&["000", "0;a", "0 ", "0000000000000000", "00000000000000000"][..])];
    (vec(chunk, 0..4), last, trailers, ends()).prop_map(|(chunks, last, trailers, end)| {
        let mut bytes = Vec::new();
        for (data, size_end, zeros) in chunks {
            let size = format!("{}{:x}{size_end}\r\n", "0".repeat(zeros), data.len());
            bytes.extend_from_slice(size.as_bytes());
            bytes.extend(data);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(last.as_bytes());
        bytes.extend_from_slice(b"\r\n");
        for trailer in trailers {
            bytes.extend_from_slice(trailer.as_bytes());
            bytes.extend_from_slice(end.as_bytes());
        }
        bytes.extend_from_slice(b"\r\n");
        bytes
    })
}

const SIZE_ENDS: &[&str] = &[
    " ",
    "\t \t",
    ";",
    ";a=b",
    " ;a",
    ";a=\"b;\\\"c\"",
    "; a = b ",
    ";\u{e9}",
    ";\0",
    ";\x7f",
    ";a\tb",
    "\r",
    ";a\nb",
    ";a\rb",
    "x",
    "_",
    " 1",
    ",",
    "\n",
    "h",
];

const TRAILERS: &[&str] = &[
    "X-Sum: 1",
    "x-other:2",
    "Content-Length: 3",
    "Transfer-Encoding: chunked",
    "X-Empty:",
];

/// What comes behind the last message.
fn behind() -> impl Strategy<Value = &'static [u8]> {
    prop_oneof![8 => Just(&b""[..]), 2 => select(BEHIND)]
}

const BEHIND: &[&[u8]] = &[
    b"\r\n",
    b"\0",
    b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
    b"GET /behind HTTP/1.1\r\nhost: h\r\n\r\n",
    b"0\r\n\r\n",
];

/// As they are, or with some bytes changed, or cut off.
fn damaged(messages: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let blow = (
        any::<Index>(),
        0u8..5,
        select(&b"\r\n\0 \t:;,0159afHxX/\x7f\x80\xff"[..]),
    );
    let blows = prop_oneof![3 => Just(Vec::new()), 2 => vec(blow, 1..4)];
    (messages, blows).prop_map(|(mut bytes, blows)| {
        for (place, kind, byte) in blows {
            if bytes.is_empty() {
                break;
            }
            let place = place.index(bytes.len());
            match kind {
                0 => bytes.truncate(place),
                1 => drop(bytes.remove(place)),
                2 => bytes.insert(place, byte),
                3 => bytes.insert(place, bytes[place]),
                _ => bytes[place] = byte,
            }
        }
        bytes
    })
}
