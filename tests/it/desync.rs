//! Requests that try to mean one thing to us and another to who is behind us: syntax of heads,
//! targets, versions, sizes, pipelining. Where a body ends is in `framing`.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::support::{
    strict::{Message, Strict, exchange, responses},
    *,
};

/// The last request on a connection.
const LAST: &str = "GET /last HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";

/// Sends these bytes and `LAST` behind them; what came back must be proper.
async fn answers(router: SocketAddr, bytes: &[u8], methods: &[&str]) -> Vec<Message> {
    let answer = exchange(router, &[bytes, LAST.as_bytes()].concat(), usize::MAX).await;
    responses(&answer, methods).unwrap_or_else(|why| panic!("{}: {why}", bytes.escape_ascii()))
}

/// A service, and a router before it that does not wait for long.
async fn served() -> (Strict, Router) {
    let upstream = Strict::start(200).await;
    let config = json!({"router-server": {"read-timeout": "2s", "idle-timeout": "2s"}});
    let router = router_with(&upstream.url(), config);
    (upstream, router)
}

/// Sends each; it must be refused with one of these statuses, with everything behind it, and reach
/// nobody.
async fn refused(statuses: &[u16], requests: impl IntoIterator<Item = impl AsRef<[u8]>>) {
    let (upstream, router) = served().await;
    let mut wrong = Vec::new();
    for request in requests {
        let sent = request.as_ref();
        let answer = exchange(
            router.address,
            &[sent, LAST.as_bytes()].concat(),
            usize::MAX,
        )
        .await;
        let fine = match &responses(&answer, &[]).unwrap_or_default()[..] {
            [only] => statuses.contains(&only.status()) && only.all("connection") == [b"close"],
            _ => false,
        };
        let seen = upstream.take();
        if !fine || !seen.is_empty() {
            let answer = &answer[..answer.len().min(200)];
            wrong.push(format!(
                "{:.300}\n    answered {}, the service saw {:?}",
                sent.escape_ascii().to_string(),
                answer.escape_ascii(),
                seen.iter()
                    .map(|seen| seen.start.escape_ascii().to_string())
                    .collect::<Vec<_>>(),
            ));
        }
    }
    wrong.extend(upstream.wrong());
    assert!(
        wrong.is_empty(),
        "{} wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

/// A GET with these header lines, which have their own line ends.
fn with(lines: &str) -> String {
    format!("GET /front HTTP/1.1\r\nHost: h\r\n{lines}\r\n")
}

// ---- header syntax

#[tokio::test]
async fn header_lines_that_are_no_header_lines_are_400() {
    let lines = [
        "X-A: a\0b\r\n",
        "X-A: \0\r\n",
        "X\0A: b\r\n",
        "X-A: a\rb\r\n",
        "X-A: a\r\r\n",
        "X-A: \r\r\n",
        "\rX-A: b\r\n",
        "X-A : b\r\n",
        "X-A\t: b\r\n",
        "X-A \t : b\r\n",
        ": b\r\n",
        " : b\r\n",
        ":\r\n",
        "X-A\r\n",
        "X-A b\r\n",
        "X A: b\r\n",
        "X\tA: b\r\n",
        "X(: b\r\n",
        "X[A]: b\r\n",
        "X@A: b\r\n",
        "X/A: b\r\n",
        "X\\A: b\r\n",
        "\"X-A\": b\r\n",
        "X=A: b\r\n",
        "X,A: b\r\n",
        "X;A: b\r\n",
        "X<A>: b\r\n",
        "X{A}: b\r\n",
        "X?: b\r\n",
        "X-\u{e4}: b\r\n",
        "X\x01: b\r\n",
        "X\x7f: b\r\n",
    ];
    refused(&[400], lines.map(with)).await;
    // Bytes that are no UTF-8 either.
    let name = [b"GET / HTTP/1.1\r\nHost: h\r\nX\xe4: b\r\n\r\n".to_vec()];
    refused(&[400], name).await;
}

#[tokio::test]
async fn lines_that_are_folded_are_400() {
    let lines = [
        " X-A: b\r\n",
        "\tX-A: b\r\n",
        "X-A: b\r\n c\r\n",
        "X-A: b\r\n\tc\r\n",
        "X-A: b\r\n \r\n",
        "X-A:\r\n b\r\n",
        "X-A: b\r\n  X-B: c\r\n",
    ];
    refused(&[400], lines.map(with)).await;
    // Before the first field, where it would be a part of the request line.
    refused(
        &[400],
        [
            "GET / HTTP/1.1\r\n Host: h\r\n\r\n",
            "GET / HTTP/1.1\r\n\tHost: h\r\n\r\n",
            "GET / HTTP/1.1\r\n \r\nHost: h\r\n\r\n",
            "GET / HTTP/1.1\r\nHost:\r\n h\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h\r\n .example\r\n\r\n",
        ],
    )
    .await;
}

#[tokio::test]
async fn lines_that_end_in_anything_but_cr_lf_are_400() {
    refused(
        &[400],
        [
            "GET / HTTP/1.1\nHost: h\n\n",
            "GET / HTTP/1.1\nHost: h\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h\n\r\n",
            "GET / HTTP/1.1\r\nHost: h\r\n\n",
            "GET / HTTP/1.1\r\nHost: h\n\n",
            "GET / HTTP/1.1\r\nHost: h\nX-A: b\r\n\r\n",
            "GET / HTTP/1.1\r\nX-A: b\nHost: h\r\n\r\n",
            "GET / HTTP/1.1\r\rHost: h\r\r\r\r",
            "GET / HTTP/1.1\rHost: h\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h\r\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h\r\n\r\r\n",
            "GET / HTTP/1.1\r\r\nHost: h\r\n\r\n",
            "GET / HTTP/1.1\n\rHost: h\n\r\n\r",
            "GET / HTTP/1.1\r\nHost: h\r\n\rX-A: b\r\n\r\n",
        ],
    )
    .await;
}

/// They may pass or be refused, but they do not become others.
#[tokio::test]
async fn control_characters_in_a_value_are_refused_or_pass_as_they_are() {
    let (upstream, router) = served().await;
    for byte in (1..32)
        .chain([127])
        .filter(|byte| !b"\t\r\n".contains(byte))
    {
        let value = [b'a', byte, b'b'];
        let request = [
            b"GET /front HTTP/1.1\r\nHost: h\r\nX-A: ",
            &value[..],
            b"\r\nX-B: c\r\n\r\n",
        ]
        .concat();
        let answers = answers(router.address, &request, &[]).await;
        let seen = upstream.take();
        match answers[0].status() {
            400 => assert!(seen.is_empty() && answers.len() == 1, "{byte}"),
            status => {
                assert_eq!((status, seen.len()), (200, 2), "{byte}");
                assert_eq!(seen[0].all("x-a"), [value], "{byte}");
                assert_eq!(seen[0].all("x-b"), [b"c"], "{byte}");
            }
        }
    }
    assert_eq!(upstream.wrong(), [""; 0]);
}

#[tokio::test]
async fn a_host_that_can_be_taken_for_another_is_400_whatever_the_version() {
    let hosts = [
        "Host: a\r\nHost: a\r\n",
        "Host: a\r\nX-A: b\r\nhost: b\r\n",
        "Host:\r\nHost:\r\n",
        "Host: a\tb\r\n",
        "Host: a#b\r\n",
        "Host: a\\b\r\n",
        "Host: a@b\r\n",
        "Host: <a>\r\n",
        "Host: a\0\r\n",
        "Host: a:b\r\n",
        "Host: a:80:80\r\n",
        "Host: a:-1\r\n",
        "Host: a:+80\r\n",
        "Host: a: 80\r\n",
        "Host: [::1\r\n",
        "Host: ::1]\r\n",
        "Host: [::1]x\r\n",
        "Host : a\r\n",
        "Host\r\n",
    ];
    for version in ["1.1", "1.0"] {
        let requests = hosts.map(|host| format!("GET / HTTP/{version}\r\n{host}\r\n"));
        refused(&[400], requests).await;
    }
    // The target does not make up for it (RFC 9112 section 3.2).
    refused(
        &[400],
        [
            "GET http://a/ HTTP/1.1\r\n\r\n",
            "GET http://a/ HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
            "GET http://a/ HTTP/1.1\r\nHost: a b\r\n\r\n",
        ],
    )
    .await;
}

// ---- the request line

#[tokio::test]
async fn request_lines_that_are_none_are_400() {
    let lines = [
        " GET / HTTP/1.1",
        "\tGET / HTTP/1.1",
        "GET  / HTTP/1.1",
        "GET /  HTTP/1.1",
        "GET\t/ HTTP/1.1",
        "GET /\tHTTP/1.1",
        "GET / HTTP/1.1 ",
        "GET / HTTP/1.1\t",
        "GET / HTTP/1.1 x",
        "GET / x HTTP/1.1",
        "GET /\x0bHTTP/1.1",
        "GET",
        "GET ",
        "GET  HTTP/1.1",
        "/ HTTP/1.1",
        " / HTTP/1.1",
        "G(T / HTTP/1.1",
        "G\0T / HTTP/1.1",
        "G:T / HTTP/1.1",
        "{GET} / HTTP/1.1",
        "\"GET\" / HTTP/1.1",
        "G\u{e4}T / HTTP/1.1",
        "\x16\x03\x01\x02\x00\x01\x00\x01\u{fc}\x03\x03",
        "\0\0\0\0",
        "\u{feff}GET / HTTP/1.1",
    ];
    let requests = lines.map(|line| format!("{line}\r\nHost: h\r\n\r\n"));
    refused(&[400, 505], requests).await;
}

#[tokio::test]
async fn versions_other_than_1_0_and_1_1_are_refused() {
    let versions = [
        "HTTP/2.0",
        "HTTP/2",
        "HTTP/0.9",
        "HTTP/3.0",
        "HTTP/9.9",
        "HTTP/1",
        "HTTP/1.",
        "HTTP/.1",
        "HTTP/11",
        "HTTP/1.10",
        "HTTP/1.01",
        "HTTP/01.1",
        "HTTP/1.1x",
        "HTTP/1,1",
        "HTTP/-1.1",
        "HTTP/ 1.1",
        "HTTP/1.\0",
        "HTTP 1.1",
        "http/1.1",
        "Http/1.1",
        "HTTPS/1.1",
        "HTP/1.1",
        "XHTTP/1.1",
        "HTTP/1.1;",
        "HTTP/1.1,HTTP/1.0",
    ];
    let requests = versions.map(|version| format!("GET / {version}\r\nHost: h\r\n\r\n"));
    refused(&[400, 505], requests).await;
    refused(
        &[400, 505],
        ["GET /\r\n", "GET /\r\nHost: h\r\n\r\n", "GET /a b\r\n\r\n"],
    )
    .await;
}

/// Some understand that no answer in HTTP/1.1 could be understood.
#[tokio::test]
async fn the_preface_of_http_2_is_refused_or_hung_up_on_where_that_is_not_spoken() {
    let upstream = Strict::start(200).await;
    let router = router_with(&upstream.url(), json!({"router-server": {"http2": false}}));
    for settings in [&b""[..], b"\0\0\0\x04\0\0\0\0\0"] {
        let preface = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", settings].concat();
        let answer = exchange(router.address, &preface, usize::MAX).await;
        let answers = responses(&answer, &[]).unwrap();
        let fine = |answer: &Message| matches!(answer.status(), 400 | 505);
        assert!(answers.len() < 2 && answers.iter().all(fine), "{answers:?}");
    }
    assert_eq!(upstream.seen().len(), 0);
}

/// RFC 9110 section 2.5: a higher minor version is understood like the one that we know.
#[tokio::test]
async fn http_1_2_is_taken_for_1_1_or_refused() {
    let (upstream, router) = served().await;
    let request = b"GET /front HTTP/1.2\r\nHost: h\r\n\r\n";
    let statuses: Vec<_> = answers(router.address, request, &[]).await;
    let statuses: Vec<_> = statuses.iter().map(Message::status).collect();
    assert!(
        matches!(statuses[..], [200, 200] | [400 | 505]),
        "{statuses:?}"
    );
    assert_eq!(upstream.wrong(), [""; 0]);
}

#[tokio::test]
async fn empty_lines_before_a_request_are_passed_over() {
    let (upstream, router) = served().await;
    for lines in ["\r\n", "\r\n\r\n", "\r\n\r\n\r\n"] {
        for before in [
            "",
            "POST /first HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx",
        ] {
            let request = format!("{before}{lines}{}{lines}", with(""));
            let answers = answers(router.address, request.as_bytes(), &[]).await;
            let expected = 2 + usize::from(!before.is_empty());
            assert_eq!(answers.len(), expected, "{request:?}");
            assert!(answers.iter().all(|answer| answer.status() == 200));
            let seen = upstream.take();
            assert_eq!(seen.len(), expected);
            assert_eq!(seen[expected - 2].start, b"GET /front HTTP/1.1");
        }
    }
    assert_eq!(upstream.wrong(), [""; 0]);
}

#[tokio::test]
async fn empty_lines_alone_keep_no_connection_open() {
    let upstream = Strict::start(200).await;
    let config = json!({"router-server": {"read-timeout": "300ms"}});
    let router = router_with(&upstream.url(), config);
    let many = "\r\n".repeat(500_000);
    let answer = exchange(router.address, many.as_bytes(), 1000).await;
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"));

    // They drip, too.
    let mut client = Client::connect(router.address).await;
    let answer = soon(async {
        loop {
            let pause = Duration::from_millis(20);
            match tokio::time::timeout(pause, client.0.fill_buf()).await {
                Ok(answer) => break answer.map(<[u8]>::to_vec).unwrap_or_default(),
                Err(_) => {
                    let _closed = client.0.write_all(b"\r\n").await;
                }
            }
        }
    });
    let answer = answer.await;
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"));
    assert_eq!(upstream.seen().len(), 0);
}

// ---- targets

#[tokio::test]
async fn targets_of_no_known_form_are_400() {
    let targets = [
        "*",
        "a",
        "a/b",
        "?a",
        "h:80",
        "h",
        "./a",
        "\\",
        "*/",
        "ftp://h/",
        "ws://h/",
        "file:///a",
        "javascript:alert(1)",
        "http:/a",
        "http:a",
        "http:///a",
        "http://",
        "http://?a",
        "http://user@h/",
        "http://user:word@h/",
        "http://:80/",
        "http://h:port/",
        "http://h:99999/",
        "http://a b/",
        "http://[::1/",
        "://h/",
    ];
    let requests = targets.map(|target| format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n"));
    refused(&[400], requests).await;
    refused(
        &[400],
        [
            "OPTIONS ** HTTP/1.1\r\nHost: h\r\n\r\n",
            "OPTIONS *?a HTTP/1.1\r\nHost: h\r\n\r\n",
            "POST * HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n",
        ],
    )
    .await;
}

/// No request has one (RFC 9112 section 3.2), and who cuts it off reads another path than who does
/// not.
#[tokio::test]
async fn a_target_with_a_fragment_is_400() {
    let targets = [
        "/#",
        "/a#b",
        "/a?b#c",
        "/#/../b",
        "#",
        "http://h/#a",
        "http://h#a",
        "http://h/a?b#c",
        "/a##",
    ];
    let requests = targets.map(|target| format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n"));
    refused(&[400], requests).await;
}

fn with_byte(byte: u8, before: &str, after: &str) -> Vec<u8> {
    let (before, after) = (
        format!("GET {before}"),
        format!("{after} HTTP/1.1\r\nHost: h\r\n\r\n"),
    );
    [before.as_bytes(), &[byte], after.as_bytes()].concat()
}

#[tokio::test]
async fn control_characters_and_spaces_in_a_target_are_400() {
    let bytes = (0..=32).chain([127]);
    for (before, after) in [("/a", "b"), ("/", ""), ("/a?b", "c"), ("http://h/a", "b")] {
        refused(
            &[400],
            bytes.clone().map(|byte| with_byte(byte, before, after)),
        )
        .await;
    }
}

#[tokio::test]
async fn every_other_byte_in_a_target_is_passed_on_as_it_is() {
    let (upstream, router) = served().await;
    let mut wrong = Vec::new();
    for byte in (33..=255).filter(|byte| !matches!(byte, b'#' | 127)) {
        for (before, after) in [("/a", "b"), ("/", ""), ("/a?b=", "&c"), ("/%", "%")] {
            let answer = answers(router.address, &with_byte(byte, before, after), &[]).await;
            let expected = [before.as_bytes(), &[byte], after.as_bytes()].concat();
            let seen = upstream.take();
            if answer[0].status() != 200 || seen[0].target() != expected {
                wrong.push(format!(
                    "{}: {}",
                    expected.escape_ascii(),
                    answer[0].status()
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}: {wrong:?}", wrong.len());
    assert_eq!(upstream.wrong(), [""; 0]);
}

#[tokio::test]
async fn the_authority_of_an_absolute_target_wins_and_its_scheme_has_no_case() {
    let (upstream, router) = served().await;
    for (target, expected) in [
        ("http://other:81/a?b", "/a?b"),
        ("https://other/a", "/a"),
        ("HTTP://OTHER/A", "/A"),
        ("hTTps://other", "/"),
        ("http://other?a=/b", "/?a=/b"),
        ("http://[::1]:80//a/../b", "//a/../b"),
        ("http://other/http://another/", "/http://another/"),
    ] {
        let request = format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n");
        let answer = answers(router.address, request.as_bytes(), &[]).await;
        assert_eq!(answer[0].status(), 200, "{target}");
        let seen = &upstream.take()[0];
        assert_eq!(seen.target(), expected.as_bytes(), "{target}");
        // Ours, of either.
        assert_eq!(seen.all("host"), [upstream.address.to_string().as_bytes()]);
    }
}

// ---- sizes

#[tokio::test]
async fn a_request_line_that_is_too_long_is_414_and_a_head_that_is_too_large_is_431() {
    let many = "X-A: b\r\n".repeat(20_000);
    let long = "x".repeat(140_000);
    refused(
        &[414],
        [
            format!("GET /{long} HTTP/1.1\r\nHost: h\r\n\r\n"),
            format!("GET /?{long} HTTP/1.1\r\nHost: h\r\n\r\n"),
            format!("GET http://h/{long} HTTP/1.1\r\nHost: h\r\n\r\n"),
            // It has not even ended.
            format!("GET /{long}"),
        ],
    )
    .await;
    refused(
        &[431],
        [
            with(&format!("X-A: {long}\r\n")),
            with(&format!("X-{long}: a\r\n")),
            with(&many),
            format!("GET / HTTP/1.1\r\nHost: h\r\nX-A: {long}"),
            format!("GET / HTTP/1.1\r\nHost: h\r\n{many}"),
        ],
    )
    .await;
    refused(
        &[400, 414, 431, 501],
        [format!("{long} / HTTP/1.1\r\nHost: h\r\n\r\n")],
    )
    .await;
}

#[tokio::test]
async fn the_limit_is_where_max_header_bytes_says() {
    let upstream = Strict::start(200).await;
    let config = json!({"router-server": {"max-header-bytes": "8KiB"}});
    let router = router_with(&upstream.url(), config);
    for (target, value, status) in [
        (7000, 100, 200),
        (100, 7000, 200),
        (4000, 3000, 200),
        (9000, 1, 414),
        (1, 9000, 431),
        (4500, 4500, 431),
    ] {
        let (target, value) = ("x".repeat(target), "x".repeat(value));
        let request = format!("GET /{target} HTTP/1.1\r\nHost: h\r\nX-A: {value}\r\n\r\n");
        let answer = answers(router.address, request.as_bytes(), &[]).await;
        assert_eq!(
            answer[0].status(),
            status,
            "{} {}",
            target.len(),
            value.len()
        );
        // The answer is the same to who sends it piece by piece.
        let dripped = [request.as_bytes(), LAST.as_bytes()].concat();
        let answer = exchange(router.address, &dripped, 1000).await;
        let answer = responses(&answer, &[]).unwrap();
        assert_eq!(
            answer[0].status(),
            status,
            "{} {}",
            target.len(),
            value.len()
        );
    }
}

#[tokio::test]
async fn two_thousand_short_headers_pass() {
    let (upstream, router) = served().await;
    let lines: String = (0..2000).map(|i| format!("X-{i}: {i}\r\n")).collect();
    let answer = answers(router.address, with(&lines).as_bytes(), &[]).await;
    assert_eq!(answer[0].status(), 200);
    let seen = &upstream.take()[0];
    for i in 0..2000 {
        let value = i.to_string();
        assert_eq!(seen.all(&format!("x-{i}")), [value.as_bytes()]);
    }
}

/// As many as fit into 64 KiB, all of one name and all of different ones.
#[tokio::test]
async fn as_many_headers_pass_as_fit() {
    let (upstream, router) = served().await;
    let same = "a:\r\n".repeat(15_000);
    let different: String = (0..7000).map(|i| format!("{i:x}:\r\n")).collect();
    for (lines, count) in [(same, 15_000), (different, 7000)] {
        let answer = answers(router.address, with(&lines).as_bytes(), &[]).await;
        assert_eq!(answer[0].status(), 200, "{count}");
        let seen = &upstream.take()[0];
        let empty = seen.fields.iter().filter(|(_, value)| value.is_empty());
        assert_eq!(empty.count(), count);
    }
}

/// A connection that is closed with unread bytes is reset, and a reset takes away what the client has
/// not read yet (RFC 9112 section 9.6).
#[tokio::test]
async fn a_refusal_arrives_whole_though_megabytes_are_still_being_sent() {
    let (upstream, router) = served().await;
    let megabytes = "x".repeat(8 << 20);
    let mut wrong = Vec::new();
    for (bytes, status) in [
        (format!("GET /{megabytes} HTTP/1.1\r\nHost: h\r\n\r\n"), 414),
        (with(&format!("X-A: {megabytes}\r\n")), 431),
        (with(&format!("X A: b\r\n\r\n{megabytes}")), 400),
        (
            format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: +1\r\n\r\n{megabytes}"),
            400,
        ),
        (
            format!(
                "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n\
                 2\r\nab\r\n0x2\r\n{megabytes}"
            ),
            400,
        ),
        (
            format!(
                "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n\
                 2\r\nab\r\n2;{megabytes}"
            ),
            400,
        ),
    ] {
        // Reading all the time, and reading when all is sent, or when no more can be.
        for reads_late in [false, true] {
            let answer = match reads_late {
                false => exchange(router.address, bytes.as_bytes(), 10_000).await,
                true => {
                    let mut client = Client::connect(router.address).await;
                    let _broken = soon(client.0.write_all(bytes.as_bytes())).await;
                    client.rest().await
                }
            };
            let answers = responses(&answer, &[]).unwrap_or_default();
            let close = |answer: &Message| answer.all("connection") == [b"close"];
            if answers.len() != 1 || answers[0].status() != status || !answers.iter().all(close) {
                let what = format!("{bytes:.99}, reads late: {reads_late}");
                wrong.push(format!("{what}: {}", answer.escape_ascii()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(upstream.seen().len(), 0);
    assert_eq!(upstream.wrong(), [""; 0]);
}

/// Where no body could be told from a refused request, the connection was closed right behind the
/// refusal: a body that was on its way met nobody, and the refusal was lost to the reset.
#[tokio::test]
async fn a_refusal_arrives_whole_though_the_body_comes_later() {
    let (upstream, router) = served().await;
    for (start, status) in [
        ("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: +5\r\n", 400),
        (
            "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\
             Transfer-Encoding: chunked\r\n",
            400,
        ),
        (
            "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip\r\n",
            501,
        ),
        (
            "POST / HTTP/1.1\r\nHost: h\r\nX A: b\r\nContent-Length: 5\r\n",
            400,
        ),
        ("POST / HTTP/2.0\r\nHost: h\r\nContent-Length: 5\r\n", 400),
        ("POST a HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n", 400),
        ("POST / HTTP/1.1\r\nContent-Length: 5\r\n", 400),
    ] {
        let mut client = Client::connect(router.address).await;
        let response = client.roundtrip("POST", format!("{start}\r\n")).await;
        assert_eq!((response.status, response.complete), (status, true));
        for _ in 0..3 {
            // Whatever the one worker does with that connection, it has done when it answers another.
            get(router.address, "/application/health", "").await;
            let sent = soon(client.0.write_all(b"hello")).await;
            assert!(sent.is_ok(), "{start:?}: {sent:?}");
        }
        let end = soon(client.0.read(&mut [0])).await;
        assert!(matches!(end, Ok(0)), "{start:?}: {end:?}");
    }
    assert_eq!(upstream.seen().len(), 0);
}

// ---- one after the other

#[tokio::test]
async fn good_requests_before_a_bad_one_are_answered_first_and_none_after_it() {
    let bad = [
        "GET /bad HTTP/1.1\r\n\r\n",
        "GET /bad HTTP/1.1\r\nHost: h\r\nX A: b\r\n\r\n",
        "GET /bad HTTP/1.1\nHost: h\n\n",
        "POST /bad HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST /bad HTTP/1.1\r\nHost: h\r\nContent-Length: x\r\n\r\n",
        "POST /bad HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n(xyz)0\r\n\r\n",
        "GET /bad# HTTP/1.1\r\nHost: h\r\n\r\n",
        "\0\r\n\r\n",
    ];
    let good = "GET /1 HTTP/1.1\r\nHost: h\r\n\r\n\
                POST /2 HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\n(xyz)\
                HEAD /3 HTTP/1.1\r\nHost: h\r\n\r\n\
                POST /4 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n(xyz)\r\n0\r\n\r\n";
    let (upstream, router) = served().await;
    let mut wrong = Vec::new();
    for bad in bad {
        let bytes = format!("{good}{bad}{LAST}");
        for piece in [usize::MAX, 1, 7] {
            let answer = exchange(router.address, bytes.as_bytes(), piece).await;
            let answers = responses(&answer, &["GET", "POST", "HEAD"]).unwrap();
            let statuses: Vec<_> = answers.iter().map(Message::status).collect();
            let bodies: Vec<_> = answers.iter().map(|answer| &*answer.body).collect();
            let seen = upstream.take();
            let targets: Vec<_> = seen.iter().map(Message::target).collect();
            if statuses != [200, 200, 200, 200, 400]
                || bodies[..4] != [&b"/1"[..], b"/2", b"", b"/4"]
                || targets != [&b"/1"[..], b"/2", b"/3", b"/4"]
                || seen[1].body != b"(xyz)"
                || seen[3].body != b"(xyz)"
            {
                wrong.push(format!("{bad:?} by {piece}: {statuses:?}, saw {seen:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(upstream.wrong(), [""; 0]);
}

/// The first one has to be answered first, however long that takes.
#[tokio::test]
async fn a_bad_request_waits_for_the_answer_to_the_one_before_it() {
    let gate = Gate::shut();
    let upstream = Upstream::start({
        let gate = gate.clone();
        move |_| [vec![Step::Wait(gate.clone())], answer(200, "", "slow")].concat()
    })
    .await;
    let router = router_to(&upstream.url());
    let mut client = Client::connect(router.address).await;
    client
        .send(format!("{}GET /bad HTTP/1.1\r\n\r\n{LAST}", with("")))
        .await;
    eventually(|| upstream.count() == 1).await;
    gate.open();
    let statuses = responses(&client.rest().await, &[]).unwrap();
    let statuses: Vec<_> = statuses.iter().map(Message::status).collect();
    assert_eq!(statuses, [200, 400]);
    assert_eq!(upstream.count(), 1);
}

#[tokio::test]
async fn three_hundred_requests_in_one_piece_are_answered_in_order() {
    let (upstream, router) = served().await;
    let requests: String = (0..300)
        .map(|i| match i % 3 {
            0 => format!("GET /{i} HTTP/1.1\r\nHost: h\r\n\r\n"),
            1 => format!("POST /{i} HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\n{i:03}"),
            _ => format!(
                "PUT /{i} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n\
                 3\r\n{i:03}\r\n0\r\n\r\n"
            ),
        })
        .collect();
    let answers = answers(router.address, requests.as_bytes(), &[]).await;
    assert_eq!(answers.len(), 301);
    let seen = upstream.take();
    assert_eq!(seen.len(), 301);
    for i in 0..300 {
        let target = format!("/{i}");
        assert_eq!(answers[i].body, target.as_bytes());
        assert_eq!(seen[i].target(), target.as_bytes());
        if i % 3 > 0 {
            assert_eq!(seen[i].body, format!("{i:03}").as_bytes());
        }
    }
}

#[tokio::test]
async fn nothing_behind_a_request_that_ends_the_connection_is_looked_at() {
    let (upstream, router) = served().await;
    for request in [
        "GET /front HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
        "GET /front HTTP/1.1\r\nHost: h\r\nConnection: x, CLOSE\r\n\r\n",
        "GET /front HTTP/1.1\r\nHost: h\r\nConnection: keep-alive\r\nConnection: close\r\n\r\n",
        "GET /front HTTP/1.0\r\nHost: h\r\n\r\n",
        "GET /front HTTP/1.0\r\n\r\n",
        "POST /front HTTP/1.0\r\nContent-Length: 2\r\n\r\nab",
        "POST /front HTTP/1.0\r\nHost: h\r\nConnection: keep-alive, close\r\nContent-Length: 0\r\n\r\n",
    ] {
        let answers = answers(router.address, request.as_bytes(), &[]).await;
        let statuses: Vec<_> = answers.iter().map(Message::status).collect();
        assert_eq!(statuses, [200], "{request}");
        assert_eq!(upstream.take().len(), 1, "{request}");
    }
}

/// RFC 9112 section 6.1: chunks and HTTP/1.0 do not go together, whatever `Connection` says.
#[tokio::test]
async fn chunks_in_http_1_0_are_refused() {
    let requests = ["", "Connection: keep-alive\r\n", "Content-Length: 5\r\n"].map(|lines| {
        format!(
            "POST / HTTP/1.0\r\nHost: h\r\n{lines}Transfer-Encoding: chunked\r\n\r\n\
             5\r\n(xyz)\r\n0\r\n\r\n"
        )
    });
    refused(&[400, 501], requests).await;
}

/// Answers before it reads a body, and notes how requests begin.
async fn hasty(upstream: ByHand, status: u16, starts: Arc<Mutex<Vec<String>>>) {
    loop {
        let mut service = upstream.accept().await.0;
        let starts = starts.clone();
        tokio::spawn(async move {
            loop {
                let mut head = String::new();
                while !head.ends_with("\r\n\r\n") {
                    if service.read_line(&mut head).await? == 0 {
                        return std::io::Result::Ok(());
                    }
                }
                let (start, fields) = head.split_once("\r\n").unwrap();
                starts.lock().unwrap().push(start.to_owned());
                let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: 2\r\n\r\nno");
                service.write_all(answer.as_bytes()).await?;
                let length = fields
                    .lines()
                    .find_map(|line| line.strip_prefix("content-length: "));
                let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
                service.read_exact(&mut body).await?;
            }
        });
    }
}

/// The body was not sent yet when the answer was there; what comes then is the body all the same.
#[tokio::test]
async fn what_follows_an_early_answer_is_the_body_and_no_request() {
    for status in [200, 401, 413, 417] {
        for expect in ["Expect: 100-continue\r\n", ""] {
            let upstream = ByHand::start().await;
            let router = router_to(&upstream.url());
            let starts = Arc::new(Mutex::new(Vec::new()));
            let service = tokio::spawn(hasty(upstream, status, starts.clone()));

            let body = "GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n";
            let mut client = Client::connect(router.address).await;
            let response = client
                .roundtrip(
                    "POST",
                    format!(
                        "POST /front HTTP/1.1\r\nHost: h\r\n{expect}Content-Length: {}\r\n\r\n",
                        body.len()
                    ),
                )
                .await;
            assert_eq!((response.status, &*response.text()), (status, "no"));
            // The connection may be closed by now.
            let rest = format!("{body}{LAST}");
            let _closed = client.0.write_all(rest.as_bytes()).await;
            let answers = responses(&client.rest().await, &[]).unwrap();
            let starts = starts.lock().unwrap();
            assert_eq!(starts.len(), 1 + answers.len(), "{starts:?}");
            assert_eq!(starts[0], "POST /front HTTP/1.1");
            assert!(
                starts[1..]
                    .iter()
                    .all(|start| start == "GET /last HTTP/1.1")
            );
            assert!(answers.len() < 2, "{answers:?}");
            service.abort();
        }
    }
}

/// Behind the answer there is a part of a body that nobody will ever send.
#[tokio::test]
async fn a_connection_with_half_a_body_on_it_is_not_used_again() {
    for (framing, part) in [
        ("content-length: 10\r\n", "01234"),
        ("transfer-encoding: chunked\r\n", "a\r\n01234"),
        ("transfer-encoding: chunked\r\n", "5\r\n01234\r\n"),
    ] {
        for reset in [false, true] {
            let upstream = ByHand::start().await;
            let router = router_to(&upstream.url());
            let mut client = Client::connect(router.address).await;
            client.send(head("POST /1", framing)).await;
            client.send(part).await;
            let mut first = upstream.accept().await;
            first.head().await;
            first
                .send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                .await;
            assert_eq!(client.response("POST").await.unwrap().text(), "ok");
            match reset {
                false => drop(client),
                true => client.reset(),
            }
            let rest = first.rest().await;
            let rest = String::from_utf8_lossy(&rest);
            assert!(
                !rest.contains("0\r\n\r\n") && !rest.contains("GET"),
                "{rest}"
            );

            let mut client = Client::connect(router.address).await;
            client.send(head("GET /2", "")).await;
            let mut second = upstream.accept().await;
            assert!(second.head().await.starts_with("GET /2 "));
        }
    }
}

#[tokio::test]
async fn an_expectation_does_not_hold_up_who_does_not_wait() {
    let (upstream, router) = served().await;
    for (lines, body) in [
        ("Content-Length: 5\r\n", "(xyz)"),
        ("Transfer-Encoding: chunked\r\n", "5\r\n(xyz)\r\n0\r\n\r\n"),
        ("", ""),
        ("Content-Length: 0\r\n", ""),
    ] {
        for method in ["POST", "GET"] {
            let request = format!(
                "{method} /front HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\n{lines}\r\n{body}"
            );
            let answers = answers(router.address, request.as_bytes(), &[]).await;
            let finals: Vec<_> = answers.iter().map(Message::status).collect();
            let finals: Vec<_> = finals.into_iter().filter(|status| *status != 100).collect();
            assert_eq!(finals, [200, 200], "{request}");
            let seen = upstream.take();
            assert_eq!(seen.len(), 2, "{request}");
            let expected: &[u8] = if body.is_empty() { b"" } else { b"(xyz)" };
            assert_eq!(seen[0].body, expected, "{request}");
        }
    }
}

// ---- hop by hop

/// What they would say there, nobody asked at the front (RFC 9110 section 6.5.1).
#[tokio::test]
async fn trailers_that_would_frame_route_or_authenticate_end_here() {
    let (upstream, router) = served().await;
    let mut passed = Vec::new();
    for name in [
        "Content-Length",
        "Transfer-Encoding",
        "Host",
        "Connection",
        "Keep-Alive",
        "Proxy-Connection",
        "TE",
        "Trailer",
        "Upgrade",
        "Authorization",
        "Proxy-Authorization",
        "Cookie",
        "Set-Cookie",
        "Content-Encoding",
        "Content-Type",
        "Content-Range",
        "Cache-Control",
        "Expect",
        "Max-Forwards",
        "Range",
    ] {
        let request = format!(
            "POST /front HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\
             Trailer: X-Sum, {name}\r\n\r\n\
             5\r\n(xyz)\r\n0\r\nX-Sum: 1\r\n{name}: 5\r\nx-end: 2\r\n\r\n"
        );
        let answers = answers(router.address, request.as_bytes(), &[]).await;
        let seen = upstream.take();
        if answers[0].status() == 400 {
            assert_eq!((answers.len(), seen.len()), (1, 0), "{name}");
            continue;
        }
        assert_eq!((answers.len(), seen.len()), (2, 2), "{name}");
        let trailers: Vec<_> = seen[0].trailers.iter().map(|(name, _)| &**name).collect();
        if trailers != ["x-sum", "x-end"] {
            passed.push(format!("{name}: {trailers:?}"));
        }
    }
    assert!(passed.is_empty(), "{passed:?}");
    assert_eq!(upstream.wrong(), [""; 0]);
}

/// The length of a request is not for the next hop to forget.
#[tokio::test]
async fn what_frames_a_request_cannot_be_named_away_with_another_request_behind_it() {
    let (upstream, router) = served().await;
    for named in [
        "Content-Length",
        "content-length, close-not",
        "Transfer-Encoding",
        "Host",
        "keep-alive, TRANSFER-ENCODING, Content-Length, host",
        "Trailer",
        "TE, Expect",
    ] {
        for (lines, body) in [
            ("Content-Length: 5\r\n", "(xyz)"),
            ("Transfer-Encoding: chunked\r\n", "5\r\n(xyz)\r\n0\r\n\r\n"),
        ] {
            let request = format!(
                "POST /front HTTP/1.1\r\nHost: h\r\nConnection: {named}\r\n{lines}\r\n{body}"
            );
            let answers = answers(router.address, request.as_bytes(), &[]).await;
            let statuses: Vec<_> = answers.iter().map(Message::status).collect();
            assert_eq!(statuses, [200, 200], "{request}");
            let seen = upstream.take();
            assert_eq!(
                (seen.len(), &*seen[0].body),
                (2, &b"(xyz)"[..]),
                "{request}"
            );
        }
    }
    assert_eq!(upstream.wrong(), [""; 0]);
}

// ---- upgrades

const UPGRADE: &str = "Connection: upgrade\r\nUpgrade: echo/1.0\r\n";

/// Only a `101` makes them something else.
#[tokio::test]
async fn what_is_sent_behind_an_upgrade_that_is_refused_are_requests() {
    let (upstream, router) = served().await;
    for behind in [
        "GET /next HTTP/1.1\r\nHost: h\r\n\r\n",
        "POST /next HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\n(xyz)",
    ] {
        let request = format!("{}{behind}", with(UPGRADE));
        let answers = answers(router.address, request.as_bytes(), &[]).await;
        let statuses: Vec<_> = answers.iter().map(Message::status).collect();
        assert_eq!(statuses, [200, 200, 200], "{request}");
        let seen = upstream.take();
        assert_eq!(seen.len(), 3);
        assert_eq!(seen[0].all("upgrade"), [b"echo/1.0"]);
        assert_eq!(seen[1].target(), b"/next");
    }
    let request = format!("{}no request\r\n\r\n", with(UPGRADE));
    let answers = answers(router.address, request.as_bytes(), &[]).await;
    let statuses: Vec<_> = answers.iter().map(Message::status).collect();
    assert_eq!(statuses, [200, 400]);
    assert_eq!(upstream.wrong(), [""; 0]);
}

#[tokio::test]
async fn an_upgrade_with_a_body_of_any_framing_is_400_with_all_that_follows() {
    let bodies = [
        "Content-Length: 5\r\n\r\n(xyz)",
        "Transfer-Encoding: chunked\r\n\r\n5\r\n(xyz)\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Expect: 100-continue\r\nContent-Length: 5\r\n\r\n(xyz)",
    ];
    for method in ["GET", "POST"] {
        refused(
            &[400],
            bodies.map(|body| format!("{method} / HTTP/1.1\r\nHost: h\r\n{UPGRADE}{body}")),
        )
        .await;
    }
}

/// A byte that is no text must not hide what the others say: some upstreams read on.
#[tokio::test]
async fn odd_bytes_in_connection_and_upgrade_hide_nothing() {
    let (upstream, router) = served().await;
    let mut wrong = Vec::new();
    for lines in [
        &b"Connection: upgrade\r\nUpgrade: h2c, \xe4\r\n"[..],
        b"Connection: upgrade\r\nUpgrade: \xe4,h2c\r\n",
        b"Connection: upgrade\r\nUpgrade: \xe4\r\nUpgrade: h2c\r\n",
        b"Connection: upgrade\r\nUpgrade: \r\nUpgrade: h2c\r\n",
        b"Connection: \xe4, X-Gone\r\nX-Gone: 1\r\n",
        b"Connection: X-Gone, \xe4\r\nX-Gone: 1\r\n",
        b"Connection: \xe4\r\nConnection: x-gone\r\nX-Gone: 1\r\n",
    ] {
        let request = [b"GET /front HTTP/1.1\r\nHost: h\r\n", lines, b"\r\n"].concat();
        let answers = answers(router.address, &request, &[]).await;
        let seen = upstream.take();
        let refused = answers[0].status() == 400 && seen.is_empty();
        let gone = seen.first().is_some_and(|seen| {
            let protocols = seen.all("upgrade").concat();
            seen.all("x-gone").is_empty() && !protocols.windows(3).any(|part| part == b"h2c")
        });
        if !refused && !gone {
            wrong.push(lines.escape_ascii().to_string());
        }
    }
    // It ends the connection as well.
    let request = b"GET /front HTTP/1.1\r\nHost: h\r\nConnection: \xe4, close\r\n\r\n";
    let answers = answers(router.address, request, &[]).await;
    if answers.len() != 1 {
        wrong.push("close".into());
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// RFC 9110 section 7.8: HTTP/1.0 does not know it.
#[tokio::test]
async fn an_upgrade_in_http_1_0_is_ignored() {
    let (upstream, router) = served().await;
    let request = format!("GET /front HTTP/1.0\r\nHost: h\r\n{UPGRADE}\r\n");
    let answers = answers(router.address, request.as_bytes(), &[]).await;
    assert_eq!(answers[0].status(), 200);
    assert_eq!(upstream.take()[0].all("upgrade"), [b""; 0]);
}

// ---- floods

/// Answers what is not a flood, and takes a flood without looking at it.
async fn serve_or_drain(listener: TcpListener) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        tokio::spawn(async move {
            let mut request = vec![0; 1000];
            while let Ok(read @ 1..) = stream.read(&mut request).await {
                if request[..read].starts_with(b"GET /alive ") {
                    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nalive";
                    stream.write_all(answer.as_bytes()).await.unwrap();
                    continue;
                }
                request.resize(1 << 18, 0);
            }
        });
    }
}

/// A worker serves many connections, and one of them must not have it to itself.
#[tokio::test]
async fn a_client_that_floods_does_not_keep_its_worker_from_others() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let router = router_to(&format!("http://{}", listener.local_addr().unwrap()));
    let serving = tokio::spawn(serve_or_drain(listener));
    let post = "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";
    let health = "GET /application/health HTTP/1.1\r\nHost: h\r\n\r\n";
    let upload = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000000000\r\n\r\n";
    let mut wrong = Vec::new();
    for (what, begin, again) in [
        ("requests", "", health),
        ("empty lines", "", "\r\n"),
        ("chunks", post, "1\r\nx\r\n"),
        ("an upload", upload, "x"),
    ] {
        let flooding = tokio::spawn({
            let address = router.address;
            let piece = again.repeat(10_000 / again.len() + 1);
            async move {
                loop {
                    let mut stream = TcpStream::connect(address).await.unwrap();
                    let (mut read, mut write) = stream.split();
                    let sending = async {
                        let mut sent = write.write_all(begin.as_bytes()).await;
                        while sent.is_ok() {
                            sent = write.write_all(piece.as_bytes()).await;
                        }
                    };
                    let mut sink = tokio::io::sink();
                    let _closed = tokio::join!(sending, tokio::io::copy(&mut read, &mut sink));
                }
            }
        });
        if !serves_others(router.address).await {
            wrong.push(what);
        }
        flooding.abort();
    }
    serving.abort();
    assert!(wrong.is_empty(), "{wrong:?}");
}
