//! HTTP/2 on either side, and on both: messages arrive as they were sent, whole or visibly not.
//!
//! "Either version" below: a client that speaks HTTP/1.1 or HTTP/2, before an upstream that speaks
//! the one or the other.

use std::{sync::LazyLock, time::Duration};

use h2::Reason;
use http::HeaderMap;
use serde_json::{Value, json};
use tokio::io::{AsyncWriteExt, BufReader};

use crate::support::{
    h2peer::{self, Asked, Do, Got, H2Client, H2Upstream, answers, asks, fields, receive},
    h2raw::{self, End, Raw, data, flag, headers, kind, post, pseudo},
    hpack::block,
    *,
};

/// What is spoken on one side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Speaks {
    Http1,
    Http2,
}

use Speaks::{Http1, Http2};

const BOTH: [Speaks; 2] = [Http1, Http2];

impl Speaks {
    fn protocol(self) -> &'static str {
        match self {
            Http1 => "http1",
            Http2 => "h2",
        }
    }
}

/// A service of either version.
enum Service {
    Http1(Upstream),
    Http2(H2Upstream),
}

impl Service {
    fn url(&self) -> String {
        match self {
            Service::Http1(upstream) => upstream.url(),
            Service::Http2(upstream) => upstream.url(),
        }
    }

    /// The bodies that came in whole.
    fn bodies(&self) -> Vec<Vec<u8>> {
        match self {
            Service::Http1(upstream) => upstream.seen().into_iter().map(|seen| seen.body).collect(),
            Service::Http2(upstream) => upstream.seen().into_iter().map(|seen| seen.body).collect(),
        }
    }

    /// Requests that it works on at the moment; HTTP/1 knows of connections only.
    fn at_work(&self) -> usize {
        match self {
            Service::Http1(upstream) => upstream.connections().1,
            Service::Http2(upstream) => upstream.streams().1,
        }
    }
}

/// A service that does the one or the other, by what it speaks.
async fn service(
    speaks: Speaks,
    http1: impl Fn(&Received) -> Vec<Step> + Send + Sync + 'static,
    http2: impl Fn(&Asked) -> Vec<Do> + Send + Sync + 'static,
) -> Service {
    match speaks {
        Http1 => Service::Http1(Upstream::start(http1).await),
        Http2 => Service::Http2(H2Upstream::start(http2).await),
    }
}

fn router_before(service: &Service, speaks: Speaks) -> Router {
    router_speaking(&service.url(), speaks, json!({}))
}

fn router_speaking(url: &str, speaks: Speaks, config: Value) -> Router {
    let mut file = json!({"proxy-client": {"to-main-and-canary": {"protocol": speaks.protocol()}}});
    merge(&mut file, config);
    router_with(url, file)
}

/// What a client of either version got.
#[derive(Debug)]
struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Vec<u8>,
    trailers: HeaderMap,
    informational: Vec<u16>,
    whole: bool,
}

impl From<Got> for Answer {
    fn from(got: Got) -> Answer {
        Answer {
            status: got.status,
            informational: got
                .informational
                .iter()
                .map(|head| head.status().as_u16())
                .collect(),
            headers: got.headers,
            body: got.body,
            trailers: got.trailers,
            whole: got.error.is_none(),
        }
    }
}

impl From<Response> for Answer {
    fn from(response: Response) -> Answer {
        let parsed = |lines: &str| -> HeaderMap {
            let pairs = lines.lines().filter_map(|line| line.split_once(": "));
            fields(&pairs.collect::<Vec<_>>())
        };
        let status = |head: &String| head.split(' ').nth(1).unwrap().parse().unwrap();
        Answer {
            status: response.status,
            headers: parsed(&response.message.head),
            trailers: parsed(&response.message.trailers),
            informational: response.informational.iter().map(status).collect(),
            body: response.message.body,
            whole: response.complete,
        }
    }
}

/// A request by either version; one with trailers is sent without a length.
async fn ask(
    speaks: Speaks,
    router: &Router,
    method: &str,
    path: &str,
    extra: &[(&str, &str)],
    body: &[u8],
    trailers: &[(&str, &str)],
) -> Answer {
    if speaks == Http2 {
        let mut client = H2Client::connect(router.address).await;
        let request = asks(method, path, extra);
        return client.ask(request, body, fields(trailers)).await.into();
    }
    let lines = |pairs: &[(&str, &str)]| -> String {
        pairs
            .iter()
            .map(|(name, value)| format!("{name}: {value}\r\n"))
            .collect()
    };
    let (framing, body) = match (body, trailers) {
        ([], []) => (String::new(), Vec::new()),
        (_, []) => (format!("content-length: {}\r\n", body.len()), body.to_vec()),
        _ => (
            "transfer-encoding: chunked\r\n".to_owned(),
            chunked(&[body], &lines(trailers)),
        ),
    };
    let mut client = Client::connect(router.address).await;
    client
        .send(head(
            &format!("{method} {path}"),
            &(lines(extra) + &framing),
        ))
        .await;
    // It is read while it is sent.
    let (mut reader, mut writer) = tokio::io::split(client.0);
    let sending = async {
        let _enough = writer.write_all(&body).await;
    };
    let mut reader = BufReader::new(&mut reader);
    let ((), response) =
        soon(async { tokio::join!(sending, read_response(&mut reader, method)) }).await;
    response.expect("a response").into()
}

// ---- whole messages

#[tokio::test]
async fn requests_and_responses_arrive_as_they_are_by_either_version() {
    for (client, upstream) in pairs() {
        let service = service(
            upstream,
            |request| {
                let head = format!(
                    "HTTP/1.1 201 Created\r\nx-a: 1\r\nset-cookie: a=1\r\nset-cookie: b=2\r\n\
                     connection: x-hop\r\nx-hop: 1\r\nkeep-alive: timeout=5\r\n\
                     content-length: {}\r\n\r\n",
                    request.body.len()
                );
                vec![
                    Step::Write(head.into_bytes()),
                    Step::Write(request.body.clone()),
                ]
            },
            |asked| {
                let length = asked.body.len().to_string();
                let mut head = fields(&[("x-a", "1"), ("content-length", &length)]);
                head.append("set-cookie", "a=1".parse().unwrap());
                head.append("set-cookie", "b=2".parse().unwrap());
                vec![Do::Head(201, head), Do::Data(asked.body.clone()), Do::End]
            },
        )
        .await;
        let router = router_before(&service, upstream);
        let path = "/a/../b//%2F?c=d&e=%20?";
        let sent = [
            ("x-a", "b"),
            ("x-empty", ""),
            ("accept", "text/html"),
            ("cookie", "a=1; b=2"),
            ("x-list", "1, 2"),
        ];
        for size in [0, 1, 10_000, 300_000] {
            let body = noise(size);
            let method = if size == 0 { "GET" } else { "PUT" };
            let answer = ask(client, &router, method, path, &sent, &body, &[]).await;
            let context = format!("{client:?} {upstream:?} {size}");
            assert_eq!((answer.status, answer.whole), (201, true), "{context}");
            assert_same(&answer.body, &body);
            assert_eq!(answer.headers["x-a"], "1");
            assert_eq!(answer.headers["content-length"], size.to_string().as_str());
            let cookies: Vec<_> = answer.headers.get_all("set-cookie").iter().collect();
            assert_eq!(cookies, ["a=1", "b=2"], "{context}");
            for name in ["x-hop", "keep-alive", "transfer-encoding"] {
                assert!(!answer.headers.contains_key(name), "{context}: {name}");
            }
            if client == Http2 {
                assert!(!answer.headers.contains_key("connection"), "{context}");
            }
            assert!(answer.headers.contains_key("date"), "{context}");
        }
        match &service {
            Service::Http1(upstream) => {
                for seen in upstream.seen() {
                    assert_eq!(seen.target(), path);
                    assert_eq!(seen.header("host"), Some(&*upstream.address.to_string()));
                    for (name, value) in sent {
                        assert_eq!(seen.header(name), Some(value), "{client:?}");
                    }
                    let length = (!seen.body.is_empty()).then(|| seen.body.len().to_string());
                    if client == Http1 {
                        assert_eq!(seen.header("content-length"), length.as_deref());
                    }
                }
            }
            Service::Http2(upstream) => {
                for seen in upstream.seen() {
                    assert_eq!(seen.path, path);
                    assert_eq!(
                        seen.authority.as_deref(),
                        Some(&*upstream.address.to_string())
                    );
                    assert_eq!(seen.scheme.as_deref(), Some("http"));
                    assert_eq!(seen.header("host"), None);
                    for (name, value) in sent {
                        assert_eq!(seen.header(name), Some(value), "{client:?}");
                    }
                    for name in ["connection", "transfer-encoding", "keep-alive", "upgrade"] {
                        assert_eq!(seen.header(name), None, "{client:?}");
                    }
                }
            }
        }
        assert_eq!(service.bodies().len(), 4);
    }
}

fn pairs() -> impl Iterator<Item = (Speaks, Speaks)> {
    BOTH.into_iter()
        .flat_map(|client| BOTH.map(|upstream| (client, upstream)))
}

#[tokio::test]
async fn trailers_pass_both_ways_by_either_version() {
    for (client, upstream) in pairs() {
        let service = service(
            upstream,
            |_| {
                let response = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\
                                3\r\nabc\r\n0\r\nx-sum: 1; 2\r\nx-more: 3\r\n\r\n";
                vec![Step::Write(response.into())]
            },
            |_| {
                vec![
                    Do::Head(200, fields(&[])),
                    Do::Data(b"abc".to_vec()),
                    Do::Trailers(fields(&[("x-sum", "1; 2"), ("x-more", "3")])),
                ]
            },
        )
        .await;
        let router = router_before(&service, upstream);
        let trailers = [("x-sum", "4"), ("x-more", "5")];
        let answer = ask(
            client,
            &router,
            "POST",
            "/",
            &[("te", "trailers")],
            b"body",
            &trailers,
        );
        let answer = answer.await;
        let context = format!("{client:?} {upstream:?} {answer:?}");
        assert_eq!((answer.status, answer.whole), (200, true), "{context}");
        assert_eq!(answer.body, b"abc");
        let expected = fields(&[("x-sum", "1; 2"), ("x-more", "3")]);
        assert_eq!(answer.trailers, expected, "{context}");
        match service {
            Service::Http1(upstream) => {
                let seen = upstream.only();
                assert_eq!(seen.text(), "body");
                assert_eq!(seen.trailers, "x-sum: 4\r\nx-more: 5\r\n", "{context}");
                assert_eq!(seen.header("te"), Some("trailers"));
            }
            Service::Http2(upstream) => {
                let seen = upstream.only();
                assert_eq!(seen.text(), "body");
                assert_eq!(seen.trailers, fields(&trailers), "{context}");
                assert_eq!(seen.header("te"), Some("trailers"));
            }
        }
    }
}

/// Trailers that come before a single byte of a body, as gRPC's do.
#[tokio::test]
async fn trailers_without_a_body_pass_by_either_version() {
    for (client, upstream) in pairs() {
        let service = service(
            upstream,
            |_| {
                let response =
                    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx-a: 1\r\n\r\n";
                vec![Step::Write(response.into())]
            },
            |_| {
                vec![
                    Do::Head(200, fields(&[])),
                    Do::Trailers(fields(&[("x-a", "1")])),
                ]
            },
        )
        .await;
        let router = router_before(&service, upstream);
        let answer = ask(client, &router, "GET", "/", &[], b"", &[]).await;
        assert_eq!((answer.status, answer.whole), (200, true));
        assert_eq!(
            answer.trailers,
            fields(&[("x-a", "1")]),
            "{client:?} {upstream:?}"
        );
    }
}

#[tokio::test]
async fn informational_responses_pass_by_either_version() {
    for (client, upstream) in pairs() {
        let service = service(
            upstream,
            |_| {
                let hints = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n\
                             HTTP/1.1 102 Processing\r\n\r\n";
                [vec![Step::Write(hints.into())], answer(200, "", "ok")].concat()
            },
            |_| {
                [
                    vec![
                        Do::Hint(103, fields(&[("link", "</a.css>")])),
                        Do::Hint(102, fields(&[])),
                    ],
                    answers(200, &[], "ok"),
                ]
                .concat()
            },
        )
        .await;
        let router = router_before(&service, upstream);
        let answer = ask(client, &router, "GET", "/", &[], b"", &[]).await;
        assert_eq!((answer.status, &*answer.body), (200, &b"ok"[..]));
        assert_eq!(answer.informational, [103, 102], "{client:?} {upstream:?}");
    }
}

/// They are of use before there is a final response, and not behind it.
#[tokio::test]
async fn early_hints_arrive_before_there_is_a_final_response() {
    for upstream in BOTH {
        let gate = Gate::shut();
        let (first, second) = (gate.clone(), gate.clone());
        let service = service(
            upstream,
            move |_| {
                let hints = b"HTTP/1.1 103 X\r\nlink: </a.css>\r\n\r\n".to_vec();
                let waits = vec![Step::Write(hints), Step::Wait(first.clone())];
                [waits, answer(200, "", "ok")].concat()
            },
            move |_| {
                let hints = Do::Hint(103, fields(&[("link", "</a.css>")]));
                [
                    vec![hints, Do::Wait(second.clone())],
                    answers(200, &[], "ok"),
                ]
                .concat()
            },
        )
        .await;
        let router = router_before(&service, upstream);
        let mut raw = Raw::client(router.address).await;
        raw.send(h2raw::get(1, "/")).await;
        let hint = soon(async {
            loop {
                let frame = raw.event().await.expect("hints");
                if frame.kind == kind::HEADERS {
                    break frame;
                }
            }
        })
        .await;
        assert!(!hint.ends_stream());
        let hint = raw.fields(hint).await;
        let of = |name: &str| h2raw::values(&hint, name);
        assert_eq!(
            (of(":status"), of("link")),
            (vec!["103".into()], vec!["</a.css>".into()])
        );
        gate.open();
        assert_eq!(raw.answer(1).await.text(), "ok");
    }
}

#[tokio::test]
async fn at_most_16_informational_responses_are_forwarded() {
    for (client, upstream) in pairs() {
        let service = service(
            upstream,
            |_| {
                let hints = vec![Step::Write(b"HTTP/1.1 103 X\r\n\r\n".to_vec()); 40];
                [hints, answer(200, "", "ok")].concat()
            },
            |_| {
                [
                    vec![Do::Hint(103, fields(&[])); 40],
                    answers(200, &[], "ok"),
                ]
                .concat()
            },
        )
        .await;
        let router = router_before(&service, upstream);
        let answer = ask(client, &router, "GET", "/", &[], b"", &[]).await;
        assert_eq!((answer.status, &*answer.body), (200, &b"ok"[..]));
        assert_eq!(answer.informational.len(), 16, "{client:?} {upstream:?}");
    }
}

#[tokio::test]
async fn who_waits_for_100_continue_is_told_to_go_on() {
    for (client, upstream) in pairs() {
        let service = service(
            upstream,
            |_| answer(200, "", "thanks"),
            |_| answers(200, &[], "thanks"),
        )
        .await;
        let router = router_before(&service, upstream);
        if client == Http1 {
            let mut client = Client::connect(router.address).await;
            let expects = "expect: 100-continue\r\ncontent-length: 4\r\n";
            client.send(head("POST /", expects)).await;
            assert!(client.head().await.starts_with("HTTP/1.1 100 "));
            assert_eq!(client.roundtrip("POST", "body").await.text(), "thanks");
        } else {
            let mut raw = Raw::client(router.address).await;
            let mut fields = pseudo("POST", "/").to_vec();
            fields.push(("expect", "100-continue"));
            raw.send(headers(1, flag::END_HEADERS, block(fields))).await;
            let told = soon(async {
                loop {
                    let frame = raw.event().await.expect("to be told");
                    if frame.kind == kind::HEADERS {
                        break raw.fields(frame).await;
                    }
                }
            })
            .await;
            assert_eq!(told[0].1, b"100");
            raw.send(data(1, flag::END_STREAM, "body")).await;
            assert_eq!(raw.answer(1).await.text(), "thanks");
        }
        assert_eq!(service.bodies(), [b"body"]);
    }
}

#[tokio::test]
async fn responses_that_have_no_body_have_none_by_either_version() {
    for (client, upstream) in pairs() {
        let service = service(
            upstream,
            |request| match request.target() {
                "/204" => answer(204, "x-a: 1\r\n", ""),
                "/304" => answer(304, "etag: \"x\"\r\nx-a: 1\r\n", ""),
                _ => vec![Step::Write(
                    b"HTTP/1.1 200 OK\r\nx-a: 1\r\ncontent-length: 1234\r\n\r\n".to_vec(),
                )],
            },
            |asked| match asked.path.as_str() {
                "/204" => vec![Do::Whole(204, fields(&[("x-a", "1")]))],
                "/304" => vec![Do::Whole(304, fields(&[("etag", "\"x\""), ("x-a", "1")]))],
                _ => vec![Do::Whole(
                    200,
                    fields(&[("x-a", "1"), ("content-length", "1234")]),
                )],
            },
        )
        .await;
        let router = router_before(&service, upstream);
        for (method, path, status) in [
            ("GET", "/204", 204),
            ("GET", "/304", 304),
            ("HEAD", "/", 200),
        ] {
            let answer = ask(client, &router, method, path, &[], b"", &[]).await;
            let context = format!("{client:?} {upstream:?} {path} {answer:?}");
            assert_eq!((answer.status, answer.whole), (status, true), "{context}");
            assert_eq!(answer.body, b"");
            assert_eq!(answer.headers["x-a"], "1");
            if method == "HEAD" {
                assert_eq!(answer.headers["content-length"], "1234", "{context}");
            }
        }
    }
}

// ---- large ones

const LARGE: usize = 64 << 20;

/// As much noise, made once.
fn large() -> Vec<u8> {
    static LARGE_NOISE: LazyLock<Vec<u8>> = LazyLock::new(|| noise(LARGE));
    LARGE_NOISE.clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_and_downloads_of_64_mib_arrive_by_either_version() {
    for (client, upstream) in pairs() {
        let service = service(
            upstream,
            |request| match request.method() {
                "GET" => vec![
                    Step::Write(
                        format!("HTTP/1.1 200 OK\r\ncontent-length: {LARGE}\r\n\r\n").into(),
                    ),
                    Step::Write(large()),
                ],
                _ => answer(200, "", "thanks"),
            },
            |asked| match asked.method.as_str() {
                "GET" => vec![Do::Head(200, fields(&[])), Do::Data(large()), Do::End],
                _ => answers(200, &[], "thanks"),
            },
        )
        .await;
        let router = router_before(&service, upstream);
        let answer = ask(client, &router, "GET", "/", &[], b"", &[]).await;
        assert!(answer.whole, "{client:?} {upstream:?}");
        assert_same(&answer.body, &large());
        let answer = ask(client, &router, "POST", "/", &[], &large(), &[]).await;
        assert_eq!((answer.status, &*answer.body), (200, &b"thanks"[..]));
        assert_same(&service.bodies()[1], &large());
    }
}

/// A hundred requests at a time over one connection: to an upstream that speaks HTTP/2 over one, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_requests_go_on_at_once_on_one_connection() {
    for upstream in BOTH {
        let gate = Gate::shut();
        let (first, second) = (gate.clone(), gate.clone());
        let service = service(
            upstream,
            move |request| {
                let waits = vec![Step::Wait(first.clone())];
                [waits, answer(200, "", request.target())].concat()
            },
            move |asked| {
                let waits = vec![Do::Wait(second.clone())];
                [waits, answers(200, &[], &asked.path)].concat()
            },
        )
        .await;
        let router = router_before(&service, upstream);
        let mut client = H2Client::connect(router.address).await;
        let mut asked = Vec::new();
        for i in 0..100 {
            let request = asks("GET", &format!("/{i}"), &[]);
            asked.push(client.begin(request, true).await.unwrap().0);
        }
        eventually(|| service.at_work() == 100).await;
        gate.open();
        for (i, response) in asked.into_iter().enumerate() {
            assert_eq!(soon(receive(response)).await.text(), format!("/{i}"));
        }
        if let Service::Http2(upstream) = service {
            assert_eq!(upstream.connections().0, 1);
        }
    }
}

/// One that stalls has windows of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_response_that_nobody_reads_does_not_hold_others_up() {
    // More than lies between an upstream and its client.
    const STALLED: usize = 6 << 20;
    for upstream in BOTH {
        let service = service(
            upstream,
            |request| match request.target() {
                "/large" => vec![
                    Step::Write(
                        format!("HTTP/1.1 200 OK\r\ncontent-length: {STALLED}\r\n\r\n").into(),
                    ),
                    Step::Write(noise(STALLED)),
                ],
                _ => answer(200, "", "small"),
            },
            |asked| match asked.path.as_str() {
                "/large" => vec![
                    Do::Head(200, fields(&[])),
                    Do::Data(noise(STALLED)),
                    Do::End,
                ],
                _ => answers(200, &[], "small"),
            },
        )
        .await;
        let router = router_before(&service, upstream);
        let mut builder = h2::client::Builder::new();
        // The connection's window is more than the three streams' that are not read.
        builder.initial_connection_window_size(1 << 20);
        let stream = tokio::net::TcpStream::connect(router.address)
            .await
            .unwrap();
        let mut client = H2Client::over(stream, &builder).await;
        let mut unread = Vec::new();
        for _ in 0..3 {
            let (response, _) = client
                .begin(asks("GET", "/large", &[]), true)
                .await
                .unwrap();
            unread.push(soon(response).await.unwrap());
        }
        for _ in 0..50 {
            assert_eq!(client.get("/", &[]).await.text(), "small", "{upstream:?}");
        }
        for mut response in unread {
            let (body, _) = soon(h2peer::read(response.body_mut())).await.unwrap();
            assert_same(&body, &noise(STALLED));
        }
    }
}

// ---- what comes piece by piece

#[tokio::test]
async fn events_arrive_one_by_one_by_either_version() {
    for (client, upstream) in pairs() {
        let gates: Vec<Gate> = (0..3).map(|_| Gate::shut()).collect();
        let (first, second) = (gates.clone(), gates.clone());
        let service = service(
            upstream,
            move |_| {
                let mut steps = vec![Step::Write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
                      transfer-encoding: chunked\r\n\r\n"
                        .to_vec(),
                )];
                for (i, gate) in first.iter().enumerate() {
                    let event = format!("9\r\ndata: {i}\n\n\r\n");
                    steps.extend([Step::Wait(gate.clone()), Step::Write(event.into())]);
                }
                steps.push(Step::Write(b"0\r\n\r\n".to_vec()));
                steps
            },
            move |_| {
                let head = fields(&[("content-type", "text/event-stream")]);
                let mut steps = vec![Do::Head(200, head)];
                for (i, gate) in second.iter().enumerate() {
                    let event = format!("data: {i}\n\n");
                    steps.extend([Do::Wait(gate.clone()), Do::Data(event.into())]);
                }
                steps.push(Do::End);
                steps
            },
        )
        .await;
        let router = router_before(&service, upstream);
        if client == Http1 {
            let mut client = Client::connect(router.address).await;
            client.send(head("GET /", "")).await;
            client.head().await;
            for (i, gate) in gates.iter().enumerate() {
                gate.open();
                client.expect(format!("9\r\ndata: {i}\n\n\r\n")).await;
            }
            client.expect("0\r\n\r\n").await;
        } else {
            let mut client = H2Client::connect(router.address).await;
            let (response, _) = client.begin(asks("GET", "/", &[]), true).await.unwrap();
            let mut response = soon(response).await.unwrap();
            for (i, gate) in gates.iter().enumerate() {
                gate.open();
                let event = soon(response.body_mut().data()).await.unwrap().unwrap();
                assert_eq!(event, format!("data: {i}\n\n").as_bytes());
            }
            let (rest, _) = soon(h2peer::read(response.body_mut())).await.unwrap();
            assert_eq!(rest, b"");
        }
    }
}

/// Request and response at the same time: each piece is sent when the one before it came back.
#[tokio::test]
async fn a_conversation_goes_on_in_both_directions_at_once() {
    let upstream = H2Upstream::eager(|_| vec![Do::Head(200, fields(&[])), Do::Echo]).await;
    let router = router_speaking(&upstream.url(), Http2, json!({}));
    let mut client = H2Client::connect(router.address).await;
    let (response, mut sending) = client.begin(asks("POST", "/", &[]), false).await.unwrap();
    let mut response = soon(response).await.unwrap();
    for i in 0..50 {
        let piece = format!("piece {i}");
        sending.send_data(piece.clone().into(), false).unwrap();
        let mut back = Vec::new();
        while back.len() < piece.len() {
            back.extend(soon(response.body_mut().data()).await.unwrap().unwrap());
        }
        assert_eq!(back, piece.as_bytes());
    }
    sending.send_data("".into(), true).unwrap();
    let (rest, _) = soon(h2peer::read(response.body_mut())).await.unwrap();
    assert_eq!(rest, b"");
    assert_eq!(upstream.count(), 1);
}

// ---- what breaks off

/// A final response before the end of the upload, such as a 413, arrives; then the rest is not wanted.
#[tokio::test]
async fn an_answer_before_the_end_of_an_upload_arrives() {
    for (client, upstream) in pairs() {
        let url;
        let _keep: Box<dyn std::any::Any>;
        match upstream {
            Http1 => {
                let by_hand = ByHand::start().await;
                url = by_hand.url();
                _keep = Box::new(tokio::spawn(async move {
                    loop {
                        let mut service = by_hand.accept().await;
                        tokio::spawn(async move {
                            service.head().await;
                            let refusal = "HTTP/1.1 413 X\r\nconnection: close\r\n\
                                           content-length: 9\r\n\r\ntoo large";
                            service.send(refusal).await;
                            service.rest().await;
                        });
                    }
                }));
            }
            Http2 => {
                let upstream = H2Upstream::eager(|_| answers(413, &[], "too large")).await;
                url = upstream.url();
                _keep = Box::new(upstream);
            }
        }
        let router = router_speaking(&url, upstream, json!({}));
        for size in [10, 100_000, 8 << 20] {
            let answer = ask(client, &router, "POST", "/", &[], &vec![b'x'; size], &[]).await;
            assert_eq!(
                (answer.status, &*answer.body),
                (413, &b"too large"[..]),
                "{client:?} {upstream:?} {size}"
            );
        }
        // And of an upload that does not come on at all.
        if client == Http2 {
            let mut raw = Raw::client(router.address).await;
            raw.send(post(1, "/")).await;
            let answer = raw.answer(1).await;
            assert_eq!(
                (answer.status, &*answer.text()),
                (413, "too large"),
                "{answer:?}"
            );
            assert_eq!(answer.end, End::Whole);
        }
    }
}

/// What is refused by us before its body has come is refused in words.
#[tokio::test]
async fn a_refusal_of_ours_before_the_end_of_an_upload_arrives() {
    let upstream = Upstream::named("up", 200).await;
    let router = router_with(&upstream.url(), json!({}));
    for (method, path, extra, status) in [
        ("TRACE", "/", ("x-a", "b"), 405),
        ("POST", "/", ("host", "evil.example"), 400),
    ] {
        let mut raw = Raw::client(router.address).await;
        let mut fields = pseudo(method, path).to_vec();
        fields.push(extra);
        raw.send(headers(1, flag::END_HEADERS, block(fields))).await;
        let answer = raw.answer(1).await;
        assert_eq!(
            (answer.status, answer.end),
            (status, End::Whole),
            "{answer:?}"
        );
    }
    // One that cannot be answered by anybody.
    let router = router_with(&format!("http://{}", Upstream::nobody().await), json!({}));
    let mut raw = Raw::client(router.address).await;
    raw.send(post(1, "/")).await;
    let answer = raw.answer(1).await;
    assert_eq!((answer.status, answer.end), (502, End::Whole), "{answer:?}");
    assert_eq!(upstream.count(), 0);
}

#[tokio::test]
async fn a_response_that_is_cut_off_is_cut_off_for_the_client_by_either_version() {
    for (client, upstream) in pairs() {
        for with_length in [true, false] {
            let service = service(
                upstream,
                move |_| {
                    let framed = match with_length {
                        true => "content-length: 10\r\n\r\nabc",
                        false => "transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n",
                    };
                    vec![
                        Step::Write(format!("HTTP/1.1 200 OK\r\n{framed}").into()),
                        Step::Close,
                    ]
                },
                move |_| {
                    let head = match with_length {
                        true => fields(&[("content-length", "10")]),
                        false => fields(&[]),
                    };
                    vec![
                        Do::Head(200, head),
                        Do::Data(b"abc".to_vec()),
                        Do::Pause(Duration::from_millis(20)),
                        Do::Reset(Reason::INTERNAL_ERROR),
                    ]
                },
            )
            .await;
            let router = router_before(&service, upstream);
            let answer = ask(client, &router, "GET", "/", &[], b"", &[]).await;
            let context = format!("{client:?} {upstream:?} {answer:?}");
            assert!(!answer.whole, "{context}");
            // What had not left when it broke need not leave any more.
            assert!(
                matches!((client, answer.status), (_, 200) | (Http2, 0)),
                "{context}"
            );
            assert!(b"abc".starts_with(&answer.body[..]), "{context}");
        }
    }
}

/// A client that gives up: the upstream's request is given up within a second, whatever it is at.
#[tokio::test]
async fn a_client_that_resets_its_stream_or_leaves_has_its_upstream_request_cancelled() {
    for upstream in BOTH {
        for path in ["/head", "/body"] {
            for leaves in [false, true] {
                let service = service(
                    upstream,
                    |request| match request.target() {
                        "/head" => vec![Step::Hang],
                        _ => vec![
                            Step::Write(
                                b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc".to_vec(),
                            ),
                            Step::Hang,
                        ],
                    },
                    |asked| match asked.path.as_str() {
                        "/head" => vec![Do::Hang],
                        _ => vec![
                            Do::Head(200, fields(&[])),
                            Do::Data(b"abc".to_vec()),
                            Do::Hang,
                        ],
                    },
                )
                .await;
                let router = router_before(&service, upstream);
                let mut client = H2Client::connect(router.address).await;
                let request = asks("GET", path, &[]);
                let (response, mut sending) = client.begin(request, true).await.unwrap();
                eventually(|| service.at_work() == 1).await;
                let _half = match path {
                    "/body" => Some(soon(response).await.unwrap()),
                    _ => None,
                };
                let since = canary_router::clock::now();
                match leaves {
                    true => drop(client),
                    false => sending.send_reset(Reason::CANCEL),
                }
                eventually(|| service.at_work() == 0).await;
                let took = since.elapsed();
                assert!(
                    took < Duration::from_secs(1),
                    "{upstream:?} {path} {leaves}: {took:?}"
                );
                if let Service::Http2(upstream) = &service {
                    assert_eq!(upstream.resets(), [Reason::CANCEL]);
                }
            }
        }
    }
}

/// Half an upload never looks whole.
#[tokio::test]
async fn an_upload_that_is_given_up_does_not_arrive_by_either_version() {
    for upstream in BOTH {
        for leaves in [false, true] {
            let service = service(
                upstream,
                |_| answer(200, "", "up"),
                |_| answers(200, &[], "up"),
            )
            .await;
            let router = router_before(&service, upstream);
            let mut client = H2Client::connect(router.address).await;
            let request = asks("POST", "/", &[]);
            let (_response, mut sending) = client.begin(request, false).await.unwrap();
            sending.send_data("half of it".into(), false).unwrap();
            eventually(|| service.at_work() == 1).await;
            match leaves {
                true => drop(client),
                false => sending.send_reset(Reason::CANCEL),
            }
            eventually(|| service.at_work() == 0).await;
            assert_eq!(service.bodies().len(), 0);
        }
    }
}
