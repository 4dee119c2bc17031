//! Upstreams that lie about what they send: the client gets a `502` or a transfer that is visibly
//! cut, and nothing that came over such a connection is ever taken for another answer.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinHandle,
};

use crate::support::{
    strict::{self, responses},
    *,
};

/// Everything that comes back; what does not end soon is no answer.
async fn exchange(router: &Router, request: &str) -> Vec<u8> {
    let answer = strict::exchange(router.address, request.as_bytes(), usize::MAX);
    let limit = Duration::from_secs(5);
    let answer = tokio::time::timeout(limit, answer).await;
    answer.unwrap_or_else(|_| b"(no end)".to_vec())
}

fn write(bytes: impl AsRef<[u8]>) -> Step {
    Step::Write(bytes.as_ref().to_vec())
}

/// An upstream that answers `/n` with the nth of these; anything else with `next`.
async fn saying(answers: Vec<Vec<u8>>) -> Upstream {
    Upstream::start(move |request| {
        let n = request.target()[1..].parse::<usize>();
        match n.ok().and_then(|n| answers.get(n)) {
            Some(answer) => vec![write(answer)],
            None => answer(200, "", "next"),
        }
    })
    .await
}

fn bytes<T: AsRef<[u8]>>(texts: impl IntoIterator<Item = T>) -> Vec<Vec<u8>> {
    texts
        .into_iter()
        .map(|text| text.as_ref().to_vec())
        .collect()
}

/// A 200 with these header lines and this behind the head.
fn ok(lines: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\n{lines}\r\n{body}").into_bytes()
}

/// Heads that no honest server sends.
fn lies() -> Vec<Vec<u8>> {
    let starts = [
        "HTTP/1.1 099 X",
        "HTTP/1.1 000 X",
        "HTTP/1.1 1000 X",
        "HTTP/1.1 abc X",
        "HTTP/1.1 20 X",
        "HTTP/1.1 2 X",
        "HTTP/1.1 2000 X",
        "HTTP/1.1 +20 X",
        "HTTP/1.1 -20 X",
        "HTTP/1.1 20O X",
        "HTTP/1.1 0x2 X",
        "HTTP/1.1 2.0 X",
        "HTTP/1.1 20\0 X",
        "HTTP/1.1  OK",
        "HTTP/1.1 OK",
        "HTTP/1.1",
        "HTTP/1.1 ",
        "HTTP/1.1  200 OK",
        "HTTP/1.1\t200 OK",
        "HTTP/1.1200 OK",
        " HTTP/1.1 200 OK",
        "HTTP/2.0 200 OK",
        "HTTP/2 200",
        "HTTP/0.9 200 OK",
        "HTTP/3 200 OK",
        "HTTP/1 200 OK",
        "HTTP/1. 200 OK",
        "HTTP/11 200 OK",
        "HTTP/1.1x 200 OK",
        "HTTPS/1.1 200 OK",
        "http/1.1 200 OK",
        "HTP/1.1 200 OK",
        "ICY 200 OK",
        "200 OK",
        "HTTP/1.1 200 O\0K",
        "HTTP/1.1 200 O\rK",
        "GET / HTTP/1.1",
        "<html>hello</html>",
        "hello",
        "\0\0\0\0",
    ];
    let lines = [
        "content-length: 2\r\ncontent-length: 2\r\n",
        "content-length: 2\r\ncontent-length: 3\r\n",
        "content-length: 3\r\ncontent-length: 2\r\n",
        "content-length: 2\r\nx: y\r\nContent-Length: 2\r\n",
        "content-length: 2\r\ncontent-length:\r\n",
        "content-length: 2, 2\r\n",
        "content-length: 2,2\r\n",
        "content-length: 2, 3\r\n",
        "content-length: 2,\r\n",
        "content-length: +2\r\n",
        "content-length: -2\r\n",
        "content-length: 0x2\r\n",
        "content-length: 2x\r\n",
        "content-length: 2 2\r\n",
        "content-length: two\r\n",
        "content-length: 2.0\r\n",
        "content-length: \"2\"\r\n",
        "content-length:\r\n",
        "content-length: 18446744073709551618\r\n",
        "content-length: 99999999999999999999999999999999\r\n",
        "content-length: 2\0\r\n",
        "content-length: 2\rx: y\r\n",
        "content-length: 2\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 2\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 0\r\n",
        "transfer-encoding: chunked\r\ncontent-length: x\r\n",
        "transfer-encoding: identity\r\ncontent-length: 2\r\n",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: gzip\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n",
        "transfer-encoding: chunked, chunked\r\n",
        "transfer-encoding: gzip, chunked\r\n",
        "transfer-encoding: chunked, gzip\r\n",
        "transfer-encoding: chunked, identity\r\n",
        "transfer-encoding: identity, chunked\r\n",
        "transfer-encoding: identity\r\n",
        "transfer-encoding: gzip\r\n",
        "transfer-encoding: xchunked\r\n",
        "transfer-encoding: chunkedx\r\n",
        "transfer-encoding: chun ked\r\n",
        "transfer-encoding: \"chunked\"\r\n",
        "transfer-encoding: chunked;q=1\r\n",
        "transfer-encoding: chunked\x0b\r\n",
        "transfer-encoding: \x0bchunked\r\n",
        "transfer-encoding: chunked\0\r\n",
        "transfer-encoding:\r\n",
        "transfer-encoding: chunked\r\n , identity\r\n",
        "transfer-encoding:\r\n chunked\r\n",
        "content-length: 2\r\nx: a\0b\r\n",
        "content-length: 2\r\nx\0: a\r\n",
        "content-length: 2\r\nx: a\rb\r\n",
        "content-length: 2\r\nx: a\r\r\n",
        "content-length: 2\r\nx: a\r\n b\r\n",
        "content-length: 2\r\nx: a\r\n\tb\r\n",
        "content-length:\r\n 2\r\n",
        " x: a\r\ncontent-length: 2\r\n",
        "content-length: 2\r\n: a\r\n",
        "content-length: 2\r\nx\r\n",
        "content-length: 2\r\nx y: a\r\n",
        "content-length: 2\r\nx(: a\r\n",
        "content-length: 2\r\nx\u{e4}: a\r\n",
    ];
    let mut lies: Vec<_> = starts
        .iter()
        .map(|start| format!("{start}\r\ncontent-length: 2\r\n\r\nok").into_bytes())
        .collect();
    // The body fits both readings.
    lies.extend(lines.iter().map(|lines| ok(lines, "0\r\n\r\nevil")));
    lies.extend(bytes([
        // HTTP/2 settings, TLS.
        &b"\0\0\x12\x04\0\0\0\0\0\0\x03\0\0\0\x80\0\x04\0\x01\0\0\0\x05\0\xff\xff\xff"[..],
        b"\x15\x03\x03\0\x02\x02\x46\r\n\r\n",
        b"\xff\xfe\r\n\r\n",
        // An informational response has no body.
        b"HTTP/1.1 103 X\r\ncontent-length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.1 103 X\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.1 100 X\r\nx: a\0b\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
        // Nobody asked.
        b"HTTP/1.1 101 X\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\nevil",
        b"HTTP/1.1 101 X\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
    ]));
    lies
}

#[tokio::test]
async fn every_lie_in_a_head_is_502_and_the_end_of_its_connection() {
    let lies = lies();
    let upstream = saying(lies.clone()).await;
    let router = router_to(&upstream.url());
    let mut wrong = Vec::new();
    for (n, lie) in lies.iter().enumerate() {
        // Two requests: the second one must not find what is left of the first.
        let bytes = head(&format!("GET /{n}"), "") + &head("GET /next", "connection: close\r\n");
        let answer = exchange(&router, &bytes).await;
        let fine = responses(&answer, &[]).is_ok_and(|answers| match &answers[..] {
            [hints @ .., first, next] => {
                hints
                    .iter()
                    .all(|hint| hint.all("content-length").is_empty())
                    && first.status() == 502
                    && next.body == b"next"
            }
            _ => false,
        });
        if !fine {
            wrong.push(format!(
                "{}\n    {}",
                lie.escape_ascii(),
                answer.escape_ascii()
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {}:\n{}",
        wrong.len(),
        lies.len(),
        wrong.join("\n")
    );
    // One is left, from the last `/next`.
    eventually(|| upstream.connections().1 <= 1).await;
}

/// A sidecar that lies costs nobody anything. Where it is its status that is no status, it has said
/// nothing.
#[tokio::test]
async fn a_sidecar_that_lies_about_anything_costs_no_client_an_answer() {
    let lies = lies();
    let sidecar = saying(lies.clone()).await;
    let (main, canary) = (
        Upstream::named("main", 200).await,
        Upstream::named("canary", 200).await,
    );
    let router = Router::start(json!({
        "main-target": main.url(), "canary-target": canary.url(), "sidecar-url": sidecar.url()
    }));
    let mut wrong = Vec::new();
    for (n, lie) in lies.iter().enumerate() {
        let response = request(router.address, "POST", &format!("/{n}"), "", "body").await;
        let answered = response.text();
        let seen = [main.seen(), canary.seen()].concat();
        let whole = seen
            .iter()
            .all(|seen| seen.text() == "body" || seen.target() == "/next");
        let next = get(router.address, "/next", "").await.text();
        if response.status != 200
            || (!lie.starts_with(b"HTTP/1.1 200 OK\r\n") && answered != "main")
            || !whole
            || next != "canary"
        {
            wrong.push(format!("{}: {answered}, {next}", lie.escape_ascii()));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {}:\n{}",
        wrong.len(),
        lies.len(),
        wrong.join("\n")
    );
    eventually(|| sidecar.connections().1 <= 2).await;
}

/// What may be understood in one way only may be passed on, cleaned up, or be refused.
#[tokio::test]
async fn what_is_odd_and_has_one_meaning_is_passed_on_clean_or_refused() {
    let odd = bytes([
        &b"HTTP/1.1 200 OK\ncontent-length: 2\n\nok"[..],
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\n\r\nok",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\nok",
        b"HTTP/1.1 200 OK\r\ncontent-length : 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\ncontent-length: 002\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx: a\x01b\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx: a\x7fb\r\n\r\nok",
        b"HTTP/1.1 200 O\x01K\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.1 600 X\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.1 999 X\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.2 200 OK\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: , chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2;a=b\r\nok\r\n0;c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n02 \r\nok\r\n00\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.1 102 X\r\ncontent-length: 5\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
    ]);
    let upstream = saying(odd.clone()).await;
    let router = router_to(&upstream.url());
    for (n, odd) in odd.iter().enumerate() {
        let bytes = head(&format!("GET /{n}"), "") + &head("GET /next", "connection: close\r\n");
        let answer = exchange(&router, &bytes).await;
        let what = format!("{}: {}", odd.escape_ascii(), answer.escape_ascii());
        let mut answers = responses(&answer, &[]).unwrap_or_else(|why| panic!("{what}: {why}"));
        assert_eq!(answers.pop().unwrap().body, b"next", "{what}");
        let last = answers.pop().unwrap();
        assert!(last.status() == 502 || last.body == b"ok", "{what}");
        // No informational response has a body, so none has a length (RFC 9110 section 8.6).
        for hint in answers {
            assert_eq!(
                (hint.status(), hint.all("content-length")),
                (102, vec![]),
                "{what}"
            );
        }
    }
}

/// These are no lies.
#[tokio::test]
async fn unusual_status_lines_are_passed_on() {
    for (start, expected) in [
        ("HTTP/1.1 200", "200"),
        ("HTTP/1.1 200 ", "200"),
        ("HTTP/1.1 299 ", "299"),
        (
            "HTTP/1.1 418 I'm a teapot (really)",
            "418 I'm a teapot (really)",
        ),
        ("HTTP/1.1 200 \u{e4}", "200"),
        ("HTTP/1.0 200 OK", "200 OK"),
        ("HTTP/1.1 599 X", "599 X"),
    ] {
        let upstream = saying(bytes([format!("{start}\r\ncontent-length: 2\r\n\r\nok")])).await;
        let router = router_to(&upstream.url());
        let response = get(router.address, "/0", "").await;
        assert_eq!(
            (&*response.text(), response.complete),
            ("ok", true),
            "{start}"
        );
        let got = response.message.start_line().strip_prefix("HTTP/1.1 ");
        assert!(
            got.unwrap().trim_end().starts_with(expected),
            "{start}: {got:?}"
        );
    }
}

#[tokio::test]
async fn an_answer_without_a_head_is_502_when_the_upstream_has_ended_it() {
    for text in [
        "hello",
        "<html>",
        "",
        "\r\n",
        "HTTP/1.1 200 OK",
        "HTTP/1.1 200 OK\r\n",
        "HTTP",
    ] {
        let upstream = Upstream::start(move |_| vec![write(text), Step::Close]).await;
        let router = router_to(&upstream.url());
        let response = get(router.address, "/", "").await;
        assert_eq!(
            (response.status, response.complete),
            (502, true),
            "{text:?}"
        );
    }
}

// ---- size

#[tokio::test]
async fn a_response_with_thousands_of_headers_or_a_very_long_one_passes() {
    let many: String = (0..2000).map(|i| format!("x-{i}: {i}\r\n")).collect();
    let long = format!("x-long: {}\r\n", "x".repeat(60_000));
    for lines in [many, long] {
        let upstream = saying(vec![ok(&format!("{lines}content-length: 2\r\n"), "ok")]).await;
        let router = router_to(&upstream.url());
        let response = get(router.address, "/0", "").await;
        assert_eq!((response.status, &*response.text()), (200, "ok"));
        for line in lines.lines() {
            assert!(
                response.message.head.contains(&format!("\r\n{line}\r\n")),
                "{line:.50}"
            );
        }
    }
}

/// Writes the same again and again until the other side has had enough, and says how much it took.
async fn endlessly(begin: &'static str, again: &'static str) -> (String, Arc<AtomicUsize>) {
    let upstream = ByHand::start().await;
    let url = upstream.url();
    let taken = Arc::new(AtomicUsize::new(0));
    tokio::spawn({
        let taken = taken.clone();
        async move {
            let mut service = upstream.accept().await;
            service.head().await;
            service.send(begin).await;
            let piece = again.repeat(10_000 / again.len() + 1);
            while service.0.write_all(piece.as_bytes()).await.is_ok() {
                taken.fetch_add(piece.len(), Ordering::SeqCst);
            }
        }
    });
    (url, taken)
}

#[tokio::test]
async fn a_head_without_an_end_is_502_long_before_memory_runs_out() {
    for (begin, again) in [
        ("HTTP/1.1 200 OK\r\n", "x-drop: into the ocean\r\n"),
        ("HTTP/1.1 200 OK\r\nx-long: ", "x"),
        ("HTTP/1.1 200 OK\r\nx", "x"),
        ("HTTP/1.1 200 ", "OK"),
        ("", "x"),
        ("", "\r\n"),
        ("HTTP/1.1 200 OK\r\n", "x: y\n"),
    ] {
        let (url, taken) = endlessly(begin, again).await;
        let router = router_to(&url);
        let response = get(router.address, "/", "").await;
        assert_eq!(
            (response.status, response.complete),
            (502, true),
            "{begin:?} {again:?}"
        );
        // What the sockets hold comes on top of our own limit.
        let taken = taken.load(Ordering::SeqCst);
        assert!(taken < 16 << 20, "{begin:?} {again:?}: {taken}");
    }
}

#[tokio::test]
async fn trailers_and_chunk_extensions_without_end_cut_the_transfer() {
    let mut wrong = Vec::new();
    for (begin, again) in [
        ("0\r\n", "x-drop: into the ocean\r\n"),
        ("0\r\nx-long: ", "x"),
        ("5;", "x"),
        ("5", " "),
        ("", "0"),
    ] {
        let begin =
            format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n{begin}");
        let (url, taken) = endlessly(begin.leak(), again).await;
        let router = router_to(&url);
        let bytes = head("GET /", "connection: close\r\n");
        let answer = exchange(&router, &bytes).await;
        let whole = answer.ends_with(b"\r\n0\r\n\r\n");
        if answer == b"(no end)" || (whole && !answer.starts_with(b"HTTP/1.1 502 ")) {
            wrong.push(format!("{again:?}: {}", answer.escape_ascii()));
        }
        let taken = taken.load(Ordering::SeqCst);
        if taken >= 16 << 20 {
            wrong.push(format!("{again:?}: {taken} bytes were read"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[tokio::test]
async fn a_flood_of_informational_responses_is_not_passed_on() {
    let hint = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n\r\n";
    for hint in [
        hint,
        "HTTP/1.1 100 Continue\r\n\r\n",
        "HTTP/1.1 199 X\r\n\r\n",
    ] {
        let flood = [
            hint.repeat(20_000).as_bytes(),
            &ok("content-length: 2\r\n", "ok"),
        ]
        .concat();
        let upstream = saying(vec![flood]).await;
        let router = router_to(&upstream.url());
        let mut client = Client::connect(router.address).await;
        client.send(head("GET /0", "connection: close\r\n")).await;
        let answers = responses(&client.rest().await, &[]).unwrap();
        assert!(answers.len() <= 17, "{}", answers.len());
        let last = answers.last().unwrap();
        assert!(last.status() == 502 || last.body == b"ok", "{hint}");
    }
}

#[tokio::test]
async fn informational_responses_without_end_are_an_error_by_the_deadline() {
    let (url, _taken) = endlessly("", "HTTP/1.1 103 Early Hints\r\n\r\n").await;
    let config = json!({"proxy-client": {"to-main-and-canary": {"timeout": "300ms"}}});
    let router = router_with(&url, config);
    let answer = exchange(&router, &head("GET /", "connection: close\r\n")).await;
    let answers = responses(&answer, &[]).unwrap();
    let last = answers.last().unwrap().status();
    assert!(matches!(last, 502 | 504), "{last}");
    assert!(answers.len() <= 17, "{}", answers.len());
}

// ---- bodies

/// A transfer that is not chunked properly: the client must see that it is not whole.
#[tokio::test]
async fn a_malformed_chunk_cuts_the_transfer() {
    let bad = [
        "0x5\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
        "5h\r\nhello\r\n0\r\n\r\n",
        "\r\nhello\r\n0\r\n\r\n",
        ";a\r\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5\rhello\r\n0\r\n\r\n",
        "5;\nhello\r\n0\r\n\r\n",
        "5;a\n\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhello\r0\r\n\r\n",
        "5\r\nhell\r\n0\r\n\r\n",
        "5\r\nhello!\r\n0\r\n\r\n",
        "10000000000000005\r\nhello\r\n0\r\n\r\n",
        "FFFFFFFFFFFFFFFFF\r\nhello\r\n0\r\n\r\n",
        "5\0\r\nhello\r\n0\r\n\r\n",
        "hello\r\n0\r\n\r\n",
        "\0\0\0\0\0\0\r\n",
        "5\r\nhello\r\n-0\r\n\r\n",
        "5\r\nhello\r\n0\n\n",
        "5\r\nhello\r\n0\r\n\n",
        "5\r\nhello\r\n0\r\nx-sum: 1\n\r\n",
        "5\r\nhello\r\n0\r\nx sum: 1\r\n\r\n",
        "5\r\nhello\r\n0\r\nx-sum\r\n\r\n",
        "5\r\nhello\r\n0\r\nx-sum: a\0b\r\n\r\n",
        "5\r\nhello\r\n0\r\nx-sum: a\rb\r\n\r\n",
        "5\r\nhello\r\n0\r\nx-sum: 1\r\n 2\r\n\r\n",
        "5\r\nhello\r\n0\r\n: 1\r\n\r\n",
        "5\r\nhello\r\n0\r\nx-sum : 1\r\n\r\n",
    ];
    let mut wrong = Vec::new();
    for bad in bad {
        // In one piece with the head, and in one of its own behind what has gone out already.
        for apart in [false, true] {
            let gate = Gate::shut();
            let upstream = Upstream::start({
                let gate = gate.clone();
                move |request| match request.target() {
                    "/next" => answer(200, "", "next"),
                    _ => {
                        let good =
                            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n";
                        let good = write(good);
                        match apart {
                            true => vec![good, Step::Wait(gate.clone()), write(bad)],
                            false => vec![good, write(bad)],
                        }
                    }
                }
            })
            .await;
            let router = router_to(&upstream.url());
            for version in ["1.1", "1.0"] {
                let mut client = Client::connect(router.address).await;
                client
                    .send(format!("GET / HTTP/{version}\r\nhost: h\r\n\r\n"))
                    .await;
                let mut begun = Vec::new();
                if apart {
                    while !begun.ends_with(b"abc") {
                        begun.push(soon(client.0.read_u8()).await.unwrap());
                    }
                    gate.open();
                }
                let mut rest = begun;
                let end = client.0.read_to_end(&mut rest);
                let Ok(end) = tokio::time::timeout(Duration::from_secs(3), end).await else {
                    wrong.push(format!("{bad:?}, apart: {apart}, HTTP/{version}: nothing"));
                    continue;
                };
                let text = rest.escape_ascii().to_string();
                let cut = match version {
                    "1.1" => !rest.ends_with(b"0\r\n\r\n"),
                    _ => end.is_err(),
                };
                // The head may not have been sent yet.
                if !(cut || rest.starts_with(b"HTTP/1.1 502 ")) || text.matches("abc").count() > 1 {
                    wrong.push(format!("{bad:?}, apart: {apart}, HTTP/{version}: {text}"));
                }
            }
            assert_eq!(get(router.address, "/next", "").await.text(), "next");
        }
    }
    assert!(wrong.is_empty(), "{}:\n{}", wrong.len(), wrong.join("\n"));
}

/// The other way round: what the client got as whole is whole, wherever the upstream broke off.
#[tokio::test]
async fn a_transfer_that_is_cut_anywhere_is_never_whole() {
    let chunks = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2;x\r\nde\r\n0\r\nx-sum: 1\r\n\r\n";
    let length = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nabcde";
    for whole in [chunks, length] {
        let upstream = Upstream::start(move |request| {
            let cut: usize = request.target()[1..].parse().unwrap();
            vec![write(&whole[..cut]), Step::Close]
        })
        .await;
        let router = router_to(&upstream.url());
        for version in ["1.1", "1.0"] {
            for cut in 0..=whole.len() {
                let mut client = Client::connect(router.address).await;
                client
                    .send(format!(
                        "GET /{cut} HTTP/{version}\r\nhost: h\r\nconnection: close\r\n\r\n"
                    ))
                    .await;
                let response = client.response("GET").await;
                let got = response
                    .as_ref()
                    .map(|response| (response.status, response.complete, response.text()));
                let head = whole.find("\r\n\r\n").unwrap() + 4;
                let fine = match &got {
                    Some((200, true, text)) => cut == whole.len() && text == "abcde",
                    Some((502, true, _)) => cut < whole.len(),
                    Some((200, false, _)) => (head..whole.len()).contains(&cut),
                    // The head had not gone out yet.
                    None => (head..whole.len()).contains(&cut),
                    _ => false,
                };
                assert!(fine, "HTTP/{version}, {:?}: {got:?}", &whole[..cut]);
            }
        }
    }
}

#[tokio::test]
async fn a_response_without_a_body_has_none_whatever_its_head_says() {
    let body = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil";
    let mut wrong = Vec::new();
    for (method, status, lines, kept) in [
        ("GET", "204 No Content", "", &[][..]),
        ("GET", "204 No Content", "content-length: 0\r\n", &[]),
        ("GET", "204 No Content", "content-length: 50\r\n", &[]),
        (
            "GET",
            "204 No Content",
            "transfer-encoding: chunked\r\n",
            &[],
        ),
        ("GET", "304 Not Modified", "", &[]),
        (
            "GET",
            "304 Not Modified",
            "content-length: 50\r\n",
            &["content-length: 50"],
        ),
        (
            "GET",
            "304 Not Modified",
            "transfer-encoding: chunked\r\n",
            &[],
        ),
        ("HEAD", "200 OK", "", &[]),
        (
            "HEAD",
            "200 OK",
            "content-length: 50\r\n",
            &["content-length: 50"],
        ),
        (
            "HEAD",
            "200 OK",
            "content-length: 0\r\n",
            &["content-length: 0"],
        ),
        (
            "HEAD",
            "404 Not Found",
            "content-length: 50\r\n",
            &["content-length: 50"],
        ),
        ("HEAD", "200 OK", "transfer-encoding: chunked\r\n", &[]),
        ("HEAD", "204 No Content", "content-length: 50\r\n", &[]),
        (
            "HEAD",
            "304 Not Modified",
            "content-length: 50\r\n",
            &["content-length: 50"],
        ),
        ("POST", "204 No Content", "content-length: 50\r\n", &[]),
    ] {
        // With nothing behind, with a body, and with what looks like the next response.
        for behind in ["", "some body", body] {
            let upstream = Upstream::start(move |request| match request.target() {
                "/front" => vec![write(format!(
                    "HTTP/1.1 {status}\r\netag: \"x\"\r\n{lines}\r\n{behind}"
                ))],
                _ => answer(200, "", "next"),
            })
            .await;
            let router = router_to(&upstream.url());
            let mut client = Client::connect(router.address).await;
            client
                .send(format!("{method} /front HTTP/1.1\r\nhost: h\r\n\r\n"))
                .await;
            let front = client.raw_head().await;
            let front = String::from_utf8(front).unwrap();
            client
                .send(head("GET /next", "connection: close\r\n"))
                .await;
            let next = client.rest().await;
            let framing: Vec<_> = front
                .lines()
                .filter(|line| {
                    line.starts_with("content-length:") || line.starts_with("transfer-encoding:")
                })
                .collect();
            let next_is_next = responses(&next, &[]).is_ok_and(|answers| {
                answers.len() == 1 && answers[0].status() == 200 && answers[0].body == b"next"
            });
            let framed = framing == kept
                // Zero is not needed where there is nothing.
                || (method, status, lines) == ("HEAD", "200 OK", "transfer-encoding: chunked\r\n")
                    && framing == ["transfer-encoding: chunked"];
            if !front.starts_with(&format!("HTTP/1.1 {status}\r\n"))
                || !front.contains("\r\netag: \"x\"\r\n")
                || !framed
                || !next_is_next
            {
                wrong.push(format!(
                    "{method} {status} {lines:?} + {behind:?}:\n    {front:?} {}",
                    next.escape_ascii()
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}:\n{}", wrong.len(), wrong.join("\n"));
}

/// HTTP/1.0 closes unless it says otherwise.
#[tokio::test]
async fn a_connection_is_only_used_again_if_its_response_allows_it() {
    for (response, connections) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", 1),
        (
            "HTTP/1.1 200 OK\r\nconnection: x, Close\r\ncontent-length: 2\r\n\r\nok",
            3,
        ),
        (
            "HTTP/1.1 200 OK\r\nconnection: keep-alive\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok",
            3,
        ),
        ("HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", 3),
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok!", 3),
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok\r\n", 3),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n!",
            3,
        ),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
            3,
        ),
    ] {
        let upstream = Upstream::start(move |_| vec![write(response)]).await;
        let router = router_to(&upstream.url());
        let mut client = Client::connect(router.address).await;
        for _ in 0..3 {
            let response = client.roundtrip("GET", head("GET /", "")).await;
            assert_eq!((response.status, &*response.text()), (200, "ok"));
        }
        let made = upstream.connections().0;
        assert_eq!(made, connections, "{response:?}");
    }
}

/// Whatever has been read when the rest comes.
#[tokio::test]
async fn a_response_that_comes_byte_by_byte_is_read_like_any_other() {
    let texts = [
        ok("content-length: 5\r\n", "abcde"),
        ok(
            "transfer-encoding: chunked\r\n",
            "3;x=\"y\"\r\nabc\r\n02\r\nde\r\n0\r\nx-sum: 1\r\n\r\n",
        ),
        b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 102 X\r\n\r\n\
          HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nabcde"
            .to_vec(),
    ];
    let upstream = Upstream::start({
        let texts = texts.clone();
        move |request| {
            let n: usize = request.target()[1..].parse().unwrap();
            texts[n].iter().map(|byte| write([*byte])).collect()
        }
    })
    .await;
    let router = router_to(&upstream.url());
    let mut client = Client::connect(router.address).await;
    for _ in 0..10 {
        for n in 0..texts.len() {
            let response = client
                .roundtrip("GET", head(&format!("GET /{n}"), ""))
                .await;
            let got = (response.status, response.complete, &*response.text());
            assert_eq!(got, (200, true, "abcde"), "{n}");
            let hints = if n == 2 { 2 } else { 0 };
            assert_eq!(response.informational.len(), hints);
        }
    }
    assert_eq!(upstream.connections().0, 1);
}

#[tokio::test]
async fn a_length_as_large_as_a_number_can_be_is_refused_or_cut() {
    for length in [i64::MAX as u64, 1 << 63, u64::MAX - 1, u64::MAX] {
        let text = ok(&format!("content-length: {length}\r\n"), "abc");
        let upstream = Upstream::start(move |_| vec![write(&text), Step::Close]).await;
        let router = router_to(&upstream.url());
        for version in ["1.1", "1.0"] {
            let request = format!("GET / HTTP/{version}\r\nhost: h\r\nconnection: close\r\n\r\n");
            let answer = exchange(&router, &request).await;
            if let Ok(answers) = responses(&answer, &[]) {
                let statuses: Vec<_> = answers.iter().map(|answer| answer.status()).collect();
                assert!(matches!(statuses[..], [] | [502]), "{length}: {statuses:?}");
            }
        }
    }
}

// ---- floods

/// What goes on for ever, as long as the other side reads; then it starts again.
async fn flood(begin: &'static str, again: &'static str) -> Flood {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let task = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut request = [0; 1000];
                let read = stream.read(&mut request).await.unwrap_or_default();
                if !request[..read].starts_with(b"GET /flood") {
                    let _gone = stream
                        .write_all(&ok("content-length: 5\r\n", "alive"))
                        .await;
                    return;
                }
                let piece = again.repeat(10_000 / again.len() + 1);
                let _gone = stream.write_all(begin.as_bytes()).await;
                while stream.write_all(piece.as_bytes()).await.is_ok() {}
            });
        }
    });
    Flood { url, task }
}

struct Flood {
    url: String,
    task: JoinHandle<()>,
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A worker serves many connections, and one of them must not have it to itself.
#[tokio::test]
async fn an_upstream_that_floods_does_not_keep_its_worker_from_others() {
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    let mut wrong = Vec::new();
    for (what, begin, again) in [
        ("103", "", "HTTP/1.1 103 Early Hints\r\n\r\n"),
        ("100", "", "HTTP/1.1 100 Continue\r\n\r\n"),
        ("chunks", chunked, "1\r\nx\r\n"),
        (
            "content",
            "HTTP/1.1 200 OK\r\ncontent-length: 1000000000000\r\n\r\n",
            "x",
        ),
    ] {
        let upstream = flood(begin, again).await;
        let router = router_to(&upstream.url);
        // This one reads whatever comes.
        let flooded = tokio::spawn({
            let address = router.address;
            async move {
                let mut client = Client::connect(address).await;
                client.send(head("GET /flood", "")).await;
                let mut sink = vec![0; 100_000];
                while let Ok(1..) = client.0.read(&mut sink).await {}
            }
        });
        if !serves_others(router.address).await {
            wrong.push(what);
        }
        flooded.abort();
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

// ---- connections in the pool

/// An answer that nobody has asked for, on a connection that waits for its next request.
async fn unasked(text: &'static str, at_once: bool) {
    let upstream = ByHand::start().await;
    let router = router_to(&upstream.url());
    let mut client = Client::connect(router.address).await;
    client.send(head("GET /1", "")).await;
    let mut first = upstream.accept().await;
    first.head().await;
    first.send(ok("content-length: 1\r\n", "1")).await;
    assert_eq!(client.response("GET").await.unwrap().text(), "1");
    first.send(text).await;
    if !at_once {
        // It has been noticed when the connection is closed.
        assert_eq!(first.rest().await, b"", "{text:?}");
    }
    client.send(head("GET /2", "")).await;
    let mut second = upstream.accept().await;
    assert!(second.head().await.starts_with("GET /2 "));
    second.send(ok("content-length: 1\r\n", "2")).await;
    assert_eq!(client.response("GET").await.unwrap().text(), "2");
    assert_eq!(first.rest().await, b"", "{text:?}");
}

#[tokio::test]
async fn what_comes_over_an_idle_connection_closes_it_and_answers_nobody() {
    let texts = [
        "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil",
        "HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        "HTTP/1.1 100 Continue\r\n\r\n",
        "\r\n",
        "x",
        "\0",
    ];
    together(texts.map(|text| unasked(text, false))).await;
    together(texts.map(|text| unasked(text, true))).await;
}

/// It may have been processed, so only its client can know whether to send it again.
#[tokio::test]
async fn a_request_that_may_have_been_processed_is_sent_once() {
    let body = "0123456789";
    for method in ["GET", "POST", "DELETE", "PUT"] {
        for reset in [false, true] {
            // A head that has been read; half of a body; all of it; an answer that has begun.
            for read in ["head", "half", "whole", "begun"] {
                if method == "GET" && read == "half" {
                    continue;
                }
                let upstream = ByHand::start().await;
                let router = router_to(&upstream.url());
                let mut client = Client::connect(router.address).await;
                client.send(head("GET /1", "")).await;
                let mut service = upstream.accept().await;
                service.head().await;
                service.send(ok("content-length: 1\r\n", "1")).await;
                assert_eq!(client.response("GET").await.unwrap().text(), "1");

                let (length, body) = match method {
                    "GET" => (String::new(), ""),
                    _ => (format!("content-length: {}\r\n", body.len()), body),
                };
                client.send(head(&format!("{method} /2"), &length)).await;
                let asked = service.head().await;
                assert!(asked.starts_with(&format!("{method} /2 ")));
                if read != "head" {
                    let part = if read == "half" { &body[..5] } else { body };
                    client.send(part).await;
                    service.expect(part).await;
                }
                if read == "begun" {
                    service.send("HTTP/1.1 200 OK\r\ncont").await;
                }
                match reset {
                    true => service.reset(),
                    false => drop(service),
                }
                let response = client.response(method).await.expect("an answer");
                assert_eq!(response.status, 502, "{method} {read} {reset}");
                // Nobody else was asked: the next connection is the next request's.
                let mut client = Client::connect(router.address).await;
                client.send(head("GET /3", "")).await;
                let mut next = upstream.accept().await;
                assert!(
                    next.head().await.starts_with("GET /3 "),
                    "{method} {read} {reset}"
                );
            }
        }
    }
}

/// The connection breaks while it waits, at any moment before the request or with it.
#[tokio::test]
async fn a_pooled_connection_that_is_reset_costs_no_second_delivery() {
    let upstream = Arc::new(ByHand::start().await);
    let router = router_to(&upstream.url());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let serving = tokio::spawn({
        let (upstream, seen) = (upstream.clone(), seen.clone());
        async move {
            loop {
                let mut service = upstream.accept().await;
                let request = service.request().await;
                seen.lock().unwrap().push(request.target().to_owned());
                service.send(ok("content-length: 2\r\n", "ok")).await;
                // Whether this comes before the router's next request is a race.
                tokio::task::yield_now().await;
                service.reset();
            }
        }
    });
    for i in 0..100 {
        let target = format!("/{i}");
        let response = request(router.address, "POST", &target, "", "body").await;
        // The reset may have overtaken the answer.
        assert!(matches!(response.status, 200 | 502), "{}", response.status);
        let deliveries = seen
            .lock()
            .unwrap()
            .iter()
            .filter(|seen| **seen == target)
            .count();
        assert!(deliveries <= 1, "{target}: {deliveries}");
        assert!(response.status != 200 || deliveries == 1, "{target}");
    }
    serving.abort();
}

// ---- upgrades

const ASKS: &str = "connection: upgrade\r\nupgrade: echo/1.0\r\n";

#[tokio::test]
async fn a_101_that_is_not_a_proper_one_is_502() {
    for (what, lines) in [
        ("no Upgrade", "connection: upgrade\r\n"),
        ("no Upgrade, no Connection", ""),
        ("an empty Upgrade", "connection: upgrade\r\nupgrade:\r\n"),
    ] {
        let upstream = Upstream::start(move |request| match request.target() {
            "/" => vec![
                write(format!("HTTP/1.1 101 X\r\n{lines}\r\nevil")),
                Step::Hang,
            ],
            _ => answer(200, "", "next"),
        })
        .await;
        let router = router_to(&upstream.url());
        let response = get(router.address, "/", ASKS).await;
        assert_eq!((response.status, response.complete), (502, true), "{what}");
        assert!(!response.text().contains("evil"), "{what}");
        eventually(|| upstream.connections().1 == 0).await;
    }
}

/// RFC 9110 section 8.6: no client may wait for a body there.
#[tokio::test]
async fn a_101_with_a_length_is_502_or_loses_it() {
    for lines in ["content-length: 4\r\n", "transfer-encoding: chunked\r\n"] {
        let upstream = Upstream::start(move |_| {
            let agrees = format!("HTTP/1.1 101 X\r\n{ASKS}{lines}\r\n");
            vec![write(agrees), Step::Echo]
        })
        .await;
        let router = router_to(&upstream.url());
        let mut client = Client::connect(router.address).await;
        client.send(head("GET /", ASKS)).await;
        let head = client.head().await.to_ascii_lowercase();
        if !head.starts_with("http/1.1 502 ") {
            assert!(head.starts_with("http/1.1 101 "), "{head}");
            assert!(!head.contains("content-length"), "{head}");
            assert!(!head.contains("transfer-encoding"), "{head}");
            client.send("ping").await;
            client.expect("ping").await;
        }
    }
}

// ---- trailers

#[tokio::test]
async fn response_trailers_that_would_frame_route_or_authenticate_end_here() {
    let mut passed = Vec::new();
    for name in [
        "content-length",
        "transfer-encoding",
        "host",
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "upgrade",
        "authorization",
        "proxy-authenticate",
        "set-cookie",
        "content-encoding",
        "content-type",
        "content-range",
        "cache-control",
    ] {
        let upstream = saying(vec![ok(
            &format!("transfer-encoding: chunked\r\ntrailer: x-sum, {name}\r\n"),
            &format!("2\r\nok\r\n0\r\nx-sum: 1\r\n{name}: 7\r\nx-end: 2\r\n\r\n"),
        )])
        .await;
        let router = router_to(&upstream.url());
        let asks = "te: trailers\r\nconnection: te, close\r\n";
        let bytes = head("GET /0", asks);
        let answer = exchange(&router, &bytes).await;
        let answers = responses(&answer, &[]).unwrap();
        assert_eq!(
            (answers.len(), &*answers[0].body),
            (1, &b"ok"[..]),
            "{name}"
        );
        let trailers: Vec<_> = answers[0]
            .trailers
            .iter()
            .map(|(name, _)| &**name)
            .collect();
        if trailers != ["x-sum", "x-end"] {
            passed.push(format!("{name}: {trailers:?}"));
        }
    }
    assert!(passed.is_empty(), "{passed:?}");
}

/// There is no place for them, and the bytes must not end up in the body.
#[tokio::test]
async fn trailers_for_an_http_1_0_client_are_dropped() {
    let body = "2\r\nok\r\n0\r\nx-sum: 1\r\n\r\n";
    let upstream = saying(vec![ok("transfer-encoding: chunked\r\n", body)]).await;
    let router = router_to(&upstream.url());
    let mut client = Client::connect(router.address).await;
    client.send("GET /0 HTTP/1.0\r\n\r\n").await;
    let response = client.response("GET").await.unwrap();
    assert_eq!((&*response.text(), response.complete), ("ok", true));
}
