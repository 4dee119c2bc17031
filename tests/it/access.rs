//! The access log: each request has one line, whatever it comes to, and what is in it is so.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use h2::{Reason, client, ext::Protocol};
use http::HeaderMap;
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::support::{
    h2peer::{self, Do, H2Client, H2Upstream, asks, fields, send},
    h2raw::{Raw, flag, headers, pseudo},
    hpack::block,
    pki::{Authority, TlsClient},
    *,
};

const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";

/// The program, and what it told of requests.
struct Told {
    program: Program,
    seen: usize,
}

impl Told {
    async fn start(config: Value) -> Told {
        // One worker: lines of several come in any order.
        let mut file = json!({"log": {"access": "json"}, "router-server": {"workers": 1}});
        merge(&mut file, config);
        Told {
            program: Program::start(file).await,
            seen: 0,
        }
    }

    /// Before a service that is both targets.
    async fn before(url: &str, config: Value) -> Told {
        let mut file = json!({"main-target": url, "canary-target": url});
        merge(&mut file, config);
        Told::start(file).await
    }

    fn address(&self) -> SocketAddr {
        self.program.address
    }

    /// All lines of requests so far.
    fn lines(&self) -> Vec<Value> {
        let mut log = self.program.process.log();
        log.retain(|line| line["msg"] == "request");
        log
    }

    /// The next so many, when they are there.
    async fn next(&mut self, count: usize) -> Vec<Value> {
        eventually(|| self.lines().len() >= self.seen + count).await;
        let lines = self.lines().split_off(self.seen);
        assert_eq!(lines.len(), count, "{lines:#?}");
        self.seen += count;
        lines
    }

    async fn line(&mut self) -> Value {
        self.next(1).await.remove(0)
    }

    /// Ends it: there are no more lines.
    async fn over(mut self) {
        self.program.process.signal("TERM");
        let status = self.program.process.ended().await;
        assert_eq!(
            status.code(),
            Some(0),
            "{:?}",
            self.program.process.stderr()
        );
        let rest = self.lines().split_off(self.seen);
        assert_eq!(rest, [Value::Null; 0]);
    }
}

/// What of a line is to be so.
#[track_caller]
fn assert_says(line: &Value, said: Value) {
    for (key, value) in said.as_object().unwrap() {
        assert_eq!(line.get(key), Some(value), "{key}: {line}");
    }
}

fn seconds(line: &Value, key: &str) -> f64 {
    line[key]
        .as_f64()
        .unwrap_or_else(|| panic!("{key}: {line}"))
}

fn post(target: &str, headers: &str) -> String {
    head(&format!("POST {target}"), headers)
}

/// Does what the path says; a number is a status.
fn service(request: &Received) -> Vec<Step> {
    let write = |text: &str| Step::Write(text.as_bytes().into());
    let part = "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n12345";
    match request.target() {
        "/hang" => vec![Step::Hang],
        "/reset" => vec![Step::Reset],
        "/garbage" => vec![write("\0\x01\x02\r\n\r\n"), Step::Close],
        "/part" => vec![write(part), Step::Hang],
        "/cut" => vec![write(part), Step::Close],
        "/echo" => {
            let length = format!("content-length: {}\r\n", request.body.len());
            vec![
                write(&format!("HTTP/1.1 200 OK\r\n{length}\r\n")),
                Step::Write(request.body.clone()),
            ]
        }
        "/chunks" => vec![
            write("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"),
            Step::Write(chunked(&[&request.body, b"more"], "x-sum: 1\r\n")),
        ],
        "/none" => vec![write("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n")],
        target => {
            let status = target.trim_start_matches('/').parse().unwrap_or(200);
            answer(status, "", "main")
        }
    }
}

// ---- what is in a line

#[tokio::test]
async fn a_line_says_all_there_is_to_say() {
    let main = Upstream::named("main", 200).await;
    let mut told = Told::before(&main.url(), json!({"traffic": {"weight": 100}})).await;
    let response = get(told.address(), "/cart/1?token=s3cret", "").await;
    assert_eq!(response.text(), "main");
    let line = told.line().await;
    let mut keys: Vec<_> = line.as_object().unwrap().keys().collect();
    keys.sort();
    assert_eq!(
        keys,
        [
            "@time",
            "client",
            "flags",
            "level",
            "method",
            "msg",
            "path",
            "protocol",
            "reason",
            "request_bytes",
            "request_id",
            "response_bytes",
            "seconds",
            "sidecar_seconds",
            "status",
            "target",
            "upstream_seconds",
            "upstream_status"
        ]
    );
    humantime::parse_rfc3339(line["@time"].as_str().unwrap()).unwrap();
    assert_says(
        &line,
        json!({
            "level": "info",
            "msg": "request",
            "client": "127.0.0.1",
            "method": "GET",
            "path": "/cart/1",
            "protocol": "HTTP/1.1",
            "status": 200,
            "request_bytes": 0,
            "response_bytes": 4,
            "target": "canary",
            "reason": "Routed via weight: canary",
            "upstream_status": 200,
            "sidecar_seconds": null,
            "request_id": main.only().header("x-request-id"),
            "flags": []
        }),
    );
    let (all, upstream) = (
        seconds(&line, "seconds"),
        seconds(&line, "upstream_seconds"),
    );
    assert!(0.0 < upstream && upstream <= all && all < 5.0, "{line}");
    told.over().await;
}

/// Requests of each kind, and how many bytes of content go which way.
fn kinds() -> Vec<(&'static str, &'static str, Vec<u8>, u16, usize)> {
    let much = noise(4 << 20);
    vec![
        ("GET", "/", vec![], 200, 4),
        ("HEAD", "/none", vec![], 200, 0),
        ("GET", "/204", vec![], 204, 0),
        ("GET", "/304", vec![], 304, 0),
        ("DELETE", "/404", vec![], 404, 4),
        ("POST", "/", b"a body".to_vec(), 200, 4),
        ("PUT", "/echo", much.clone(), 200, much.len()),
        ("POST", "/chunks", b"some".to_vec(), 200, 8),
        ("HEAD", "/application/health", vec![], 200, 0),
    ]
}

#[tokio::test]
async fn content_is_counted_both_ways_and_nothing_but_content() {
    let main = Upstream::start(service).await;
    let mut told = Told::before(&main.url(), json!({})).await;
    let mut client = Client::connect(told.address()).await;
    for (method, path, body, status, down) in kinds() {
        let mut framings = vec![(format!("content-length: {}\r\n", body.len()), body.clone())];
        if !body.is_empty() {
            let pieces: Vec<&[u8]> = body.chunks(100_000).collect();
            let headers = "te: trailers\r\ntransfer-encoding: chunked\r\n".to_owned();
            framings.push((headers, chunked(&pieces, "x-sum: 1\r\n")));
        }
        for (headers, sent) in framings {
            client
                .send(head(&format!("{method} {path}"), &headers))
                .await;
            let response = client.roundtrip(method, sent).await;
            assert_eq!((response.status, response.complete), (status, true));
            let line = told.line().await;
            assert_says(
                &line,
                json!({
                    "method": method, "path": path, "status": status, "flags": [],
                    "request_bytes": body.len(), "response_bytes": down
                }),
            );
        }
    }
    told.over().await;
}

#[tokio::test]
async fn content_is_counted_in_http_2_too_on_either_side() {
    let main = Upstream::start(service).await;
    let two = H2Upstream::start(|asked| {
        let mut script = vec![Do::Head(200, fields(&[])), Do::Data(asked.body.clone())];
        script.push(Do::Trailers(fields(&[("x-sum", "1")])));
        script
    })
    .await;
    let mut told = Told::before(&main.url(), json!({})).await;
    let mut client = H2Client::connect(told.address()).await;
    for (method, path, body, status, down) in kinds() {
        for trailers in [fields(&[]), fields(&[("x-sum", "1")])] {
            if body.is_empty() && !trailers.is_empty() {
                continue;
            }
            let got = client.ask(asks(method, path, &[]), &body, trailers).await;
            assert_eq!(
                (got.status, got.body.len()),
                (status, down),
                "{:?}",
                got.error
            );
            assert!(got.error.is_none(), "{:?}", got.error);
            let line = told.line().await;
            assert_says(
                &line,
                json!({
                    "method": method, "path": path, "status": status, "flags": [],
                    "protocol": "HTTP/2.0",
                    "request_bytes": body.len(), "response_bytes": down
                }),
            );
        }
    }
    told.over().await;

    let speaks = json!({"proxy-client": {"to-main-and-canary": {"protocol": "h2"}}});
    let mut told = Told::before(&two.url(), speaks).await;
    let body = noise(3_000_000);
    let mut client = H2Client::connect(told.address()).await;
    let got = client
        .ask(asks("PUT", "/", &[]), &body, fields(&[("x-a", "b")]))
        .await;
    assert_same(&got.body, &body);
    let mut client = Client::connect(told.address()).await;
    let length = format!("content-length: {}\r\n", body.len());
    client.send(head("PUT /", &length)).await;
    assert_same(&client.roundtrip("PUT", &body).await.message.body, &body);
    for line in told.next(2).await {
        let length = body.len();
        assert_says(
            &line,
            json!({"request_bytes": length, "response_bytes": length, "upstream_status": 200}),
        );
    }
    told.over().await;
}

/// What nobody reads has come all the same.
#[tokio::test]
async fn content_that_the_router_throws_away_is_counted() {
    let main = Upstream::start(service).await;
    let mut told = Told::before(
        &main.url(),
        json!({"circuit-breaker": {"main": {
            "failure-rate-threshold": 1, "minimum-number-of-calls": 1, "wait-open": "1h", "max-wait-open": "1h"
        }}}),
    )
    .await;
    let mut client = Client::connect(told.address()).await;
    assert_eq!(
        client.roundtrip("GET", head("GET /500", "")).await.status,
        500
    );
    for _ in 0..2 {
        let request = post("/", "content-length: 6\r\n") + "a body";
        assert_eq!(client.roundtrip("POST", request).await.status, 503);
    }
    for (line, bytes) in told.next(3).await.iter().zip([0, 6, 6]) {
        assert_says(line, json!({"request_bytes": bytes}));
    }
    told.over().await;
}

#[tokio::test]
async fn the_reason_is_what_the_metric_says() {
    let main = Upstream::named("main", 200).await;
    let canary = Upstream::named("canary", 200).await;
    let sidecar = Upstream::start(|request| match request.header("x-sidecar") {
        Some("dead") => vec![Step::Reset],
        _ => asked(request),
    })
    .await;
    let targets = json!({"main-target": main.url(), "canary-target": canary.url()});
    let with = |more: Value| {
        let mut config = targets.clone();
        merge(&mut config, more);
        config
    };
    let (forced, barred) = ("x-canary: true\r\n", "x-canary: false\r\n");
    for (config, requests) in [
        (
            with(json!({"sidecar-url": sidecar.url()})),
            vec![
                (forced, "canary", "Routed via X-Canary header value: true"),
                (barred, "main", "Routed via X-Canary header value: false"),
                (
                    "x-sidecar: 200\r\n",
                    "canary",
                    "Sidecar returns status code 200",
                ),
                (
                    "x-sidecar: 204\r\n",
                    "main",
                    "Sidecar returns status code 204",
                ),
                (
                    "x-sidecar: 418\r\n",
                    "main",
                    "Sidecar returns non standard status code",
                ),
                ("x-sidecar: dead\r\n", "main", "Sidecar error"),
            ],
        ),
        (
            with(json!({"sidecar-url": sidecar.url(), "traffic": {"weight": 0}})),
            vec![("", "main", "Canary weight is 0")],
        ),
        (
            with(
                json!({"traffic": {"weight": 100}, "circuit-breaker": {"request-limit-canary": 1}}),
            ),
            vec![
                ("", "canary", "Routed via weight: canary"),
                ("", "main", "Canary request limit reached"),
            ],
        ),
        (
            with(json!({"traffic": {"weight": 0}})),
            vec![("", "main", "")],
        ),
    ] {
        let mut told = Told::start(config).await;
        for (headers, target, why) in requests {
            assert_eq!(get(told.address(), "/", headers).await.text(), target);
            let line = told.line().await;
            assert_says(&line, json!({"target": target, "reason": why}));
            let asked = headers.starts_with("x-sidecar");
            assert_eq!(line["sidecar_seconds"].is_number(), asked, "{line}");
            let flags = match why {
                "Sidecar error" => json!(["sidecar_failed"]),
                _ => json!([]),
            };
            assert_says(&line, json!({"flags": flags}));
            let page = get(told.program.instrumentation, "/metrics", "").await;
            assert_eq!(Metrics(page.text()).value(&reason(why, target)), 1.0);
        }
        told.over().await;
    }
}

#[tokio::test]
async fn each_version_of_http_is_called_by_its_name() {
    let main = Upstream::named("main", 200).await;
    let folder = Folder::new();
    let authority = Authority::new("ours");
    let tls = authority.issue(&["localhost"]).write(&folder, "router");
    let mut told = Told::before(&main.url(), json!({"router-server": {"tls": tls}})).await;
    let connect = async |protocol| {
        let stream = TcpStream::connect(told.program.address).await.unwrap();
        TlsClient::new(&authority, &[protocol])
            .connect(stream)
            .await
            .unwrap()
    };
    let mut two = H2Client::over(connect("h2").await, &client::Builder::new()).await;
    assert_eq!(two.get("/", &[]).await.status, 200);
    assert_says(
        &told.line().await,
        json!({"protocol": "HTTP/2.0", "status": 200}),
    );
    drop(two);
    told.over().await;

    let mut told = Told::before(&main.url(), json!({})).await;
    let mut two = H2Client::connect(told.address()).await;
    assert_eq!(two.get("/", &[]).await.status, 200);
    for request in ["GET / HTTP/1.0\r\n\r\n", GET] {
        let mut client = Client::connect(told.address()).await;
        assert_eq!(client.roundtrip("GET", request).await.text(), "main");
    }
    let protocols = ["HTTP/2.0", "HTTP/1.0", "HTTP/1.1"];
    for (line, protocol) in told.next(3).await.iter().zip(protocols) {
        assert_says(line, json!({"protocol": protocol, "status": 200}));
    }
    told.over().await;
}

#[tokio::test]
async fn requests_of_one_connection_have_a_line_each_in_their_order() {
    let main = Upstream::start(service).await;
    let mut told = Told::before(&main.url(), json!({})).await;
    let mut client = Client::connect(told.address()).await;
    // Twice: one at a time, and all at once.
    for i in 0..5 {
        client
            .roundtrip("GET", head(&format!("GET /x{i}"), ""))
            .await;
    }
    let all: String = (5..25).map(|i| head(&format!("GET /x{i}"), "")).collect();
    client
        .send(all + &head("GET /last", "connection: close\r\n"))
        .await;
    for _ in 5..26 {
        assert_eq!(client.response("GET").await.unwrap().status, 200);
    }
    let paths = (0..25)
        .map(|i| format!("/x{i}"))
        .chain(["/last".to_owned()]);
    for (line, path) in told.next(26).await.iter().zip(paths) {
        assert_says(
            line,
            json!({"path": path, "status": 200, "response_bytes": 4}),
        );
    }
    client.closed().await;
    told.over().await;
}

#[tokio::test]
async fn the_request_id_is_the_clients_or_what_the_upstream_was_told() {
    let main = Upstream::named("main", 200).await;
    let mut told = Told::before(&main.url(), json!({})).await;
    let mut client = H2Client::connect(told.address()).await;
    for said in ["x-request-id: mine-1\r\n", "", "x-request-id: \"\\ {}\r\n"] {
        get(told.address(), "/", said).await;
        let line = told.line().await;
        let upstreams = main.seen().pop().unwrap();
        assert_says(
            &line,
            json!({"request_id": upstreams.header("x-request-id").unwrap()}),
        );
    }
    for said in [&[("x-request-id", "mine-2")][..], &[]] {
        client.get("/", said).await;
        let line = told.line().await;
        let upstreams = main.seen().pop().unwrap();
        assert_says(
            &line,
            json!({"request_id": upstreams.header("x-request-id").unwrap()}),
        );
    }
    told.over().await;
}

#[tokio::test]
async fn the_client_is_who_trusted_proxies_say_and_the_path_is_as_it_came() {
    let main = Upstream::named("main", 200).await;
    let trusting =
        json!({"router-server": {"trusted-proxies": ["127.0.0.0/8"]}, "trim-prefix": "/api"});
    for (config, client) in [
        (json!({"trim-prefix": "/api"}), "127.0.0.1"),
        (trusting, "2001:db8::7"),
    ] {
        let mut told = Told::before(&main.url(), config).await;
        let forwarded = "x-forwarded-for: 2001:db8::7\r\n";
        for (target, path, sent) in [
            (
                "/api/a//b/../%2F?c=/d?e",
                "/api/a//b/../%2F",
                "/a//b/../%2F?c=/d?e",
            ),
            ("http://elsewhere:80/api?x", "/api", "/?x"),
        ] {
            get(told.address(), target, forwarded).await;
            let line = told.line().await;
            assert_says(&line, json!({"client": client, "path": path}));
            assert_eq!(main.seen().pop().unwrap().target(), sent);
        }
        told.over().await;
    }
}

#[tokio::test]
async fn what_the_router_answers_by_itself_has_a_line_without_a_target() {
    let main = Upstream::named("main", 200).await;
    let mut told = Told::before(&main.url(), json!({})).await;
    let mut two = H2Client::connect(told.address()).await;
    get(told.address(), "/application/health?x", "").await;
    two.get("/application/health", &[]).await;
    for line in told.next(2).await {
        assert_says(
            &line,
            json!({
                "path": "/application/health", "status": 200, "response_bytes": 2, "target": null,
                "reason": null, "upstream_status": null, "upstream_seconds": null, "flags": []
            }),
        );
    }
    told.over().await;
}

// ---- what is no request, or no good one

#[tokio::test]
async fn what_is_refused_has_a_line_with_what_is_known_of_it() {
    let main = Upstream::start(service).await;
    let mut told = Told::before(
        &main.url(),
        json!({"router-server": {"max-header-bytes": "4KiB"}}),
    )
    .await;
    let long = "x".repeat(5000);
    let null = Value::Null;
    for (sent, status, method, path) in [
        (
            "\0\x01\x02\r\n\r\n".to_owned(),
            400,
            null.clone(),
            null.clone(),
        ),
        (
            "GET / HTTP/3.7\r\n\r\n".into(),
            400,
            null.clone(),
            null.clone(),
        ),
        (
            "GET / HTTP/1.1\r\nx y: z\r\n\r\n".into(),
            400,
            null.clone(),
            null.clone(),
        ),
        (
            format!("GET / HTTP/1.1\r\nx: {long}\r\n\r\n"),
            431,
            null.clone(),
            null.clone(),
        ),
        (
            format!("GET /{long} HTTP/1.1\r\nhost: a\r\n\r\n"),
            414,
            null.clone(),
            null.clone(),
        ),
        (
            "GET /a HTTP/1.1\r\n\r\n".into(),
            400,
            json!("GET"),
            json!("/a"),
        ),
        (
            "CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n".into(),
            405,
            json!("CONNECT"),
            json!("*"),
        ),
        (head("TRACE /a", ""), 405, json!("TRACE"), json!("/a")),
        (
            post(
                "/a?b",
                "content-length: 3\r\ntransfer-encoding: chunked\r\n",
            ),
            400,
            json!("POST"),
            json!("/a"),
        ),
        (
            post("/a", "content-length: 3\r\ncontent-length: 4\r\n"),
            400,
            json!("POST"),
            json!("/a"),
        ),
        (
            post("/a", "transfer-encoding: gzip\r\n"),
            501,
            json!("POST"),
            json!("/a"),
        ),
        (
            post(
                "/a",
                "content-length: 3\r\nconnection: upgrade\r\nupgrade: x\r\n",
            ),
            400,
            json!("POST"),
            json!("/a"),
        ),
    ] {
        // Whether something good came before it or not.
        for before in [false, true] {
            let mut client = Client::connect(told.address()).await;
            if before {
                assert_eq!(client.roundtrip("GET", GET).await.status, 200);
                told.line().await;
            }
            let response = client.roundtrip("GET", &sent).await;
            assert_eq!(response.status, status, "{sent}");
            let line = told.line().await;
            assert_says(
                &line,
                json!({
                    "method": method, "path": path, "status": status, "target": null, "reason": null,
                    "response_bytes": response.message.body.len(), "request_bytes": 0,
                    "client": "127.0.0.1", "upstream_status": null, "flags": ["refused"]
                }),
            );
            let known = if method.is_null() {
                null.clone()
            } else {
                json!("HTTP/1.1")
            };
            assert_says(&line, json!({"protocol": known}));
        }
    }
    assert_eq!(main.count(), 12);
    told.over().await;
}

/// The router goes on reading for a while, so that its answer is not lost; the request is over all the same.
#[tokio::test]
async fn what_follows_a_refused_request_is_not_waited_for() {
    let main = Upstream::start(service).await;
    let mut told = Told::before(&main.url(), json!({})).await;
    for sent in [
        "no request\r\n\r\n".to_owned(),
        post("/", "transfer-encoding: chunked\r\n") + "x\r\n",
        head("GET /application/health", "content-length: 1000000\r\n"),
    ] {
        let mut client = Client::connect(told.address()).await;
        client.roundtrip("POST", &sent).await;
        let line = told.line().await;
        assert!(seconds(&line, "seconds") < 1.5, "{line}");
        drop(client);
    }
    told.over().await;
}

#[tokio::test]
async fn what_is_refused_in_http_2_has_a_line_too() {
    let main = Upstream::start(service).await;
    let mut told = Told::before(&main.url(), json!({})).await;
    let mut raw = Raw::client(told.address()).await;
    let mut stream = 1;
    for (extra, status) in [
        (("host", "elsewhere"), 400),
        (("x-a", " blank"), 400),
        (("content-length", "7"), 400),
    ] {
        let pairs = pseudo("GET", "/a?b").into_iter().chain([extra]);
        raw.send(headers(stream, flag::ALL, block(pairs))).await;
        let answer = raw.answer(stream).await;
        let line = match answer.status {
            // The library says that it is no request at all.
            0 => {
                stream += 2;
                continue;
            }
            _ => told.line().await,
        };
        assert_eq!(answer.status, status, "{extra:?}");
        assert_says(
            &line,
            json!({
                "status": status, "method": null, "path": null, "protocol": null, "target": null,
                "response_bytes": answer.body.len(), "flags": ["refused"]
            }),
        );
        stream += 2;
    }
    for (method, status) in [("TRACE", 405), ("GET", 200)] {
        let request = headers(stream, flag::ALL, block(pseudo(method, "/a?b")));
        raw.send(request).await;
        assert_eq!(raw.answer(stream).await.status, status);
        let line = told.line().await;
        assert_says(
            &line,
            json!({"status": status, "method": method, "path": "/a"}),
        );
        stream += 2;
    }
    told.over().await;
}

#[tokio::test]
async fn a_body_that_breaks_off_or_is_malformed_is_said() {
    let main = Upstream::start(service).await;
    let mut told = Told::before(&main.url(), json!({})).await;
    let mut client = Client::connect(told.address()).await;
    let sent = post("/a", "transfer-encoding: chunked\r\n") + "3\r\nabc\r\nxyz\r\n";
    assert_eq!(client.roundtrip("POST", sent).await.status, 400);
    let line = told.line().await;
    assert_says(
        &line,
        json!({
            "status": 400, "method": "POST", "request_bytes": 3, "upstream_status": null,
            "flags": ["body_broken"]
        }),
    );
    let mut client = Client::connect(told.address()).await;
    client
        .send(post("/a", "content-length: 10\r\n") + "abc")
        .await;
    client.finish().await;
    let line = told.line().await;
    assert_says(
        &line,
        json!({"status": 400, "request_bytes": 3, "flags": ["body_broken"]}),
    );
    assert_eq!(main.count(), 0);
    told.over().await;
}

// ---- who lets whom wait, and who leaves

#[tokio::test]
async fn a_client_that_lets_us_wait_is_408_and_said_so() {
    let main = Upstream::start(service).await;
    let mut told = Told::before(
        &main.url(),
        json!({"router-server": {"read-timeout": "300ms"}}),
    )
    .await;
    for (sent, method, bytes) in [
        ("GET / HTTP/1.1\r\nho".to_owned(), Value::Null, 0),
        (
            post("/a", "content-length: 10\r\n") + "abc",
            json!("POST"),
            3,
        ),
        (
            post("/a", "transfer-encoding: chunked\r\n") + "3\r\nab",
            json!("POST"),
            2,
        ),
    ] {
        let mut client = Client::connect(told.address()).await;
        let response = client.roundtrip("POST", sent).await;
        assert_eq!(response.status, 408);
        let line = told.line().await;
        assert_says(
            &line,
            json!({
                "status": 408, "method": method, "request_bytes": bytes, "response_bytes": 0,
                "upstream_status": null, "flags": ["client_timed_out"]
            }),
        );
        assert!(seconds(&line, "seconds") < 1.5, "{line}");
    }
    let mut client = H2Client::connect(told.address()).await;
    let (response, mut sending) = client.begin(asks("POST", "/a", &[]), false).await.unwrap();
    send(&mut sending, Bytes::from_static(b"abc"))
        .await
        .unwrap();
    let got = h2peer::receive(response).await;
    assert_eq!(got.status, 408);
    assert_says(
        &told.line().await,
        json!({
            "status": 408, "method": "POST", "protocol": "HTTP/2.0", "request_bytes": 3,
            "response_bytes": got.body.len(), "flags": ["client_timed_out"]
        }),
    );
    // What was no request has no line.
    let mut silent = Client::connect(told.address()).await;
    silent.closed().await;
    told.over().await;
}

#[tokio::test]
async fn a_client_that_leaves_before_an_answer_or_in_mid_answer_is_said() {
    let main = Upstream::start(service).await;
    let mut told = Told::before(&main.url(), json!({})).await;
    for (path, status, bytes) in [("/hang", Value::Null, 0), ("/part", json!(200), 5)] {
        for resets in [false, true] {
            let mut client = Client::connect(told.address()).await;
            client.send(head(&format!("GET {path}"), "")).await;
            if path == "/part" {
                client.head().await;
                client.expect("12345").await;
            }
            let before = main.count();
            eventually(|| main.count() >= before.min(1)).await;
            if resets {
                client.reset();
            } else {
                drop(client);
            }
            assert_says(
                &told.line().await,
                json!({
                    "path": path, "status": status, "response_bytes": bytes, "upstream_status": status,
                    "target": "main", "flags": ["client_gone"]
                }),
            );
        }
    }
    told.over().await;
}

#[tokio::test]
async fn a_client_of_http_2_that_leaves_is_said_too() {
    let main = Upstream::start(service).await;
    let mut told = Told::before(&main.url(), json!({})).await;
    // It takes back a request, or closes the connection with two of them on it.
    for closes in [false, true] {
        for (path, status, bytes) in [("/hang", Value::Null, 0), ("/part", json!(200), 5)] {
            let mut client = H2Client::connect(told.address()).await;
            let before = main.count();
            let mut streams = Vec::new();
            for _ in 0..2 {
                let (response, sending) = client.begin(asks("GET", path, &[]), true).await.unwrap();
                streams.push((response, sending));
            }
            eventually(|| main.count() == before + 2).await;
            if path == "/part" {
                for (response, _) in &mut streams {
                    let mut body = soon(response).await.unwrap().into_body();
                    assert_eq!(soon(body.data()).await.unwrap().unwrap(), "12345");
                    std::mem::forget(body);
                }
            }
            if closes {
                drop(client);
                for line in told.next(2).await {
                    assert_says(
                        &line,
                        json!({
                            "path": path, "status": status, "response_bytes": bytes,
                            "flags": ["client_gone"]
                        }),
                    );
                }
                continue;
            }
            for (_, sending) in &mut streams {
                sending.send_reset(Reason::CANCEL);
                assert_says(
                    &told.line().await,
                    json!({
                        "path": path, "status": status, "response_bytes": bytes,
                        "flags": ["client_gone"]
                    }),
                );
            }
        }
    }
    told.over().await;
}

#[tokio::test]
async fn what_an_upstream_does_badly_is_said_with_its_kind() {
    let main = Upstream::start(service).await;
    let deaf = Deaf::start();
    let nobody = format!("http://{}", Upstream::nobody().await);
    let quick = json!({
        "proxy-client": {"to-main-and-canary": {"timeout": "300ms", "connect-timeout": "200ms"}},
        "fallback": {"replay": "off"}
    });
    for (url, path, status, upstreams, flag) in [
        (&nobody, "/", 502, Value::Null, "refused"),
        (&deaf.url(), "/", 504, Value::Null, "connect_timeout"),
        (&main.url(), "/reset", 502, Value::Null, "reset"),
        (&main.url(), "/garbage", 502, Value::Null, "malformed"),
        (&main.url(), "/hang", 504, Value::Null, "timeout"),
        (&main.url(), "/101", 502, Value::Null, "malformed"),
        (&main.url(), "/cut", 200, json!(200), "body_cut"),
    ] {
        let mut told = Told::before(url, quick.clone()).await;
        let mut two = H2Client::connect(told.address()).await;
        for target in ["main", "canary"] {
            let forced = (target == "canary").to_string();
            let response = get(told.address(), path, &format!("x-canary: {forced}\r\n")).await;
            assert_eq!(response.status, status);
            let got = two.get(path, &[("x-canary", &forced)]).await;
            // The library forgets a head behind which a reset came.
            assert!(got.status == status || got.error.is_some());
            let length = response.message.body.len();
            for line in told.next(2).await {
                assert_says(
                    &line,
                    json!({
                        "status": status, "upstream_status": upstreams, "target": target,
                        "response_bytes": length, "flags": [format!("{target}_{flag}")]
                    }),
                );
                let took = seconds(&line, "upstream_seconds");
                assert_eq!(took >= 0.2, flag.ends_with("timeout"), "{line}");
            }
        }
        told.over().await;
    }
}

// ---- who answers instead

#[tokio::test]
async fn a_replay_shows_what_the_canary_did_and_what_main_answered() {
    let main = Upstream::start(|_| answer(203, "", "main")).await;
    let canary = Upstream::start(service).await;
    let nobody = format!("http://{}", Upstream::nobody().await);
    for (url, path, flags) in [
        (&nobody, "/", json!(["canary_refused", "replayed"])),
        (&canary.url(), "/reset", json!(["canary_reset", "replayed"])),
        (
            &canary.url(),
            "/hang",
            json!(["canary_timeout", "replayed"]),
        ),
        (&canary.url(), "/500", json!(["replayed"])),
    ] {
        let mut told = Told::start(json!({
            "main-target": main.url(),
            "canary-target": url,
            "traffic": {"weight": 100},
            "fallback": {"replay": "failures", "budget": 100},
            "proxy-client": {"to-main-and-canary": {"timeout": "300ms"}}
        }))
        .await;
        assert_eq!(get(told.address(), path, "").await.status, 203);
        let body = request(told.address(), "PUT", path, "", "a body").await;
        assert_eq!(body.status, 203);
        for (line, bytes) in told.next(2).await.iter().zip([0, 6]) {
            assert_says(
                line,
                json!({
                    "status": 203, "upstream_status": 203, "target": "canary", "request_bytes": bytes,
                    "reason": "Routed via weight: canary", "response_bytes": 4, "flags": flags
                }),
            );
            let (all, last) = (seconds(line, "seconds"), seconds(line, "upstream_seconds"));
            assert!(last < all, "{line}");
            assert!(path != "/hang" || all >= 0.3 && last < all - 0.25, "{line}");
        }
        told.over().await;
    }
}

#[tokio::test]
async fn a_static_answer_and_an_open_breaker_are_said() {
    let main = Upstream::start(service).await;
    let breaker = json!({"circuit-breaker": {"main": {
        "failure-rate-threshold": 1, "minimum-number-of-calls": 1, "wait-open": "1h", "max-wait-open": "1h"
    }}});
    let mut fixed = breaker.clone();
    merge(
        &mut fixed,
        json!({"fallback": {"static": {"status": 218, "body": "later"}}}),
    );
    for (config, first, then, bytes) in [(breaker, 502, 503, None), (fixed, 218, 218, Some(5))] {
        let mut told = Told::before(&main.url(), config).await;
        let response = get(told.address(), "/reset", "").await;
        assert_eq!(response.status, first);
        let mut flags = vec!["main_reset"];
        flags.extend(bytes.map(|_| "static"));
        assert_says(
            &told.line().await,
            json!({
                "status": first, "response_bytes": response.message.body.len(), "upstream_status": null,
                "flags": flags
            }),
        );
        let response = get(told.address(), "/", "").await;
        assert_eq!(response.status, then);
        let mut flags = vec!["main_breaker_open"];
        flags.extend(bytes.map(|_| "static"));
        assert_says(
            &told.line().await,
            json!({
                "status": then, "response_bytes": bytes.unwrap_or(response.message.body.len()),
                "target": "main", "upstream_status": null, "upstream_seconds": null, "flags": flags
            }),
        );
        told.over().await;
    }
}

#[tokio::test]
async fn a_sidecar_that_fails_is_said_with_the_time_that_it_took() {
    let main = Upstream::named("main", 200).await;
    let sidecar = Upstream::start(|_| vec![Step::Hang]).await;
    let mut told = Told::before(
        &main.url(),
        json!({
            "sidecar-url": sidecar.url(),
            "proxy-client": {"to-sidecar": {"timeout": "300ms"}}
        }),
    )
    .await;
    get(told.address(), "/", "").await;
    let line = told.line().await;
    assert_says(
        &line,
        json!({
            "status": 200, "target": "main", "reason": "Sidecar error", "upstream_status": 200,
            "flags": ["sidecar_failed"]
        }),
    );
    let (all, asked) = (seconds(&line, "seconds"), seconds(&line, "sidecar_seconds"));
    assert!((0.3..=all).contains(&asked), "{line}");
    assert!(seconds(&line, "upstream_seconds") < all - 0.25, "{line}");
    told.over().await;
}

// ---- tunnels

const ASKS: &str =
    "GET /chat?room=1 HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
const AGREES: &str = "HTTP/1.1 101 X\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";

/// How a tunnel ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ends {
    Properly,
    ByTheClient,
    ByTheService,
    WithTheProcess,
}

use Ends::{ByTheClient, ByTheService, Properly, WithTheProcess};

impl Ends {
    /// Behind the tunnel's line there is no other, whether the process has ended with it or ends now.
    async fn leaves_one_line(self, mut told: Told) {
        if self == WithTheProcess {
            assert_eq!(told.program.process.ended().await.code(), Some(0));
            assert_eq!(told.lines().len(), 1);
        } else {
            told.over().await;
        }
    }
}

#[tokio::test]
async fn a_tunnel_has_a_line_at_its_end_with_what_went_through_it() {
    for ends in [Properly, ByTheClient, ByTheService, WithTheProcess] {
        let upstream = ByHand::start().await;
        let short = json!({"router-server": {"shutdown-timeout": "300ms"}});
        let mut told = Told::before(&upstream.url(), short).await;
        let mut client = Client::connect(told.address()).await;
        client.send(format!("{ASKS}early")).await;
        let mut service = upstream.accept().await;
        service.head().await;
        service.send(format!("{AGREES}soon")).await;
        assert!(client.head().await.starts_with("HTTP/1.1 101 "));
        client.expect("soon").await;
        service.expect("early").await;
        let data = noise(1_000_000);
        tokio::join!(client.send(&data), service.expect(&data));
        tokio::join!(
            service.send(&data[..500_000]),
            client.expect(&data[..500_000])
        );
        assert_eq!(told.lines().len(), 0, "it goes on");
        match ends {
            Properly => {
                client.finish().await;
                service.closed().await;
                service.finish().await;
                client.closed().await;
            }
            ByTheClient => client.reset(),
            ByTheService => service.reset(),
            WithTheProcess => told.program.process.signal("TERM"),
        }
        let line = told.line().await;
        assert_says(
            &line,
            json!({
                "method": "GET", "path": "/chat", "status": 101, "upstream_status": 101,
                "request_bytes": 1_000_005, "response_bytes": 500_004,
                "flags": if ends == WithTheProcess { json!(["cut"]) } else { json!([]) }
            }),
        );
        ends.leaves_one_line(told).await;
    }
}

#[tokio::test]
async fn a_tunnel_in_http_2_has_its_line_too() {
    for ends in [Properly, ByTheClient, ByTheService, WithTheProcess] {
        let upstream = ByHand::start().await;
        let short = json!({"router-server": {"shutdown-timeout": "300ms"}});
        let mut told = Told::before(&upstream.url(), short).await;
        let mut client = H2Client::connect(told.address()).await;
        eventually(|| client.sender.is_extended_connect_protocol_enabled()).await;
        let mut opening = asks(
            "CONNECT",
            "/chat?room=1",
            &[("sec-websocket-version", "13")],
        );
        opening
            .extensions_mut()
            .insert(Protocol::from_static("websocket"));
        let (response, mut outgoing) = client.begin(opening, false).await.unwrap();
        let mut service = upstream.accept().await;
        let asked = service.request().await;
        let key = asked.header("sec-websocket-key").unwrap();
        let accept = tokio_tungstenite::tungstenite::handshake::derive_accept_key(key.as_bytes());
        service
            .send(format!(
                "HTTP/1.1 101 X\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                 sec-websocket-accept: {accept}\r\n\r\nsoon"
            ))
            .await;
        let (head, mut incoming) = soon(response).await.unwrap().into_parts();
        assert_eq!(head.status, 200);
        assert_eq!(soon(incoming.data()).await.unwrap().unwrap(), "soon");
        send(&mut outgoing, Bytes::from_static(b"from the client"))
            .await
            .unwrap();
        service.expect("from the client").await;
        service.send(", later").await;
        assert_eq!(soon(incoming.data()).await.unwrap().unwrap(), ", later");
        assert_eq!(told.lines().len(), 0, "it goes on");
        match ends {
            Properly => {
                outgoing.send_data(Bytes::new(), true).unwrap();
                service.closed().await;
                service.finish().await;
            }
            ByTheClient => outgoing.send_reset(Reason::CANCEL),
            ByTheService => service.reset(),
            WithTheProcess => told.program.process.signal("TERM"),
        }
        let line = told.line().await;
        assert_says(
            &line,
            json!({
                "path": "/chat", "protocol": "HTTP/2.0", "status": 200, "upstream_status": 101,
                "request_bytes": 15, "response_bytes": 11,
                "flags": if ends == WithTheProcess { json!(["cut"]) } else { json!([]) }
            }),
        );
        ends.leaves_one_line(told).await;
    }
}

/// It is an answer of ours then, and what the upstream did shows nowhere else.
#[tokio::test]
async fn an_upstream_that_agrees_to_no_tunnel_of_http_2_has_answered_nonsense() {
    let main = Upstream::named("a page", 200).await;
    let mut told = Told::before(&main.url(), json!({})).await;
    let mut client = H2Client::connect(told.address()).await;
    eventually(|| client.sender.is_extended_connect_protocol_enabled()).await;
    let mut opening = asks("CONNECT", "/", &[]);
    opening
        .extensions_mut()
        .insert(Protocol::from_static("websocket"));
    let (response, _outgoing) = client.begin(opening, false).await.unwrap();
    assert_eq!(h2peer::receive(response).await.status, 502);
    assert_says(
        &told.line().await,
        json!({"status": 502, "upstream_status": 200, "flags": ["main_malformed"]}),
    );
    told.over().await;
}

// ---- what could break a line

#[tokio::test]
async fn no_request_breaks_a_line_or_forges_one() {
    let main = Upstream::start(service).await;
    let mut told = Told::before(&main.url(), json!({})).await;
    let evil = b"\"}\\\xff\xc3\x28\xe2\x80\xa8{\"msg\":\"request\"}";
    let shown = String::from_utf8_lossy(evil);
    let mut client = Client::connect(told.address()).await;
    let sent = [
        b"G'E\"T /",
        &evil[..],
        b" HTTP/1.1\r\nhost: h\r\nx-request-id: a\t",
        evil,
        b"\r\n\r\n",
    ];
    // A quote is in no method.
    assert_eq!(client.roundtrip("GET", sent.concat()).await.status, 400);
    assert_says(
        &told.line().await,
        json!({"method": null, "flags": ["refused"]}),
    );
    let mut client = Client::connect(told.address()).await;
    let mut sent = sent;
    sent[0] = b"!#$%&'*+-.^_`|~ /";
    assert_eq!(client.roundtrip("GET", sent.concat()).await.status, 200);
    let line = told.line().await;
    assert_says(
        &line,
        json!({
            "method": "!#$%&'*+-.^_`|~", "path": format!("/{shown}"), "request_id": format!("a\t{shown}"),
            "status": 200
        }),
    );

    let mut raw = Raw::client(told.address()).await;
    let said = b"\"}\\ \xff\xc3\x28\t\xe2\x80\xa8\x80{\"msg\":\"request\"}";
    let pairs = [
        (&b":method"[..], &b"!#$%&'*+-.^_`|~"[..]),
        (b":scheme", b"http"),
        (b":path", b"/\"{}|^"),
        (b":authority", b"client.example"),
        (b"x-request-id", said),
    ];
    raw.send(headers(1, flag::ALL, block(pairs))).await;
    let answer = raw.answer(1).await;
    assert_ne!(answer.status, 0, "{answer:?}");
    let status = answer.status;
    let line = told.line().await;
    assert_says(&line, json!({"status": status, "protocol": "HTTP/2.0"}));
    assert_says(
        &line,
        json!({"path": "/\"{}|^", "request_id": String::from_utf8_lossy(said)}),
    );
    told.over().await;
}

#[tokio::test]
async fn lines_are_json_whatever_the_rest_of_the_log_is() {
    let main = Upstream::named("main", 200).await;
    let mut program = Program::start(json!({
        "main-target": main.url(), "canary-target": main.url(),
        "log": {"level": "info", "format": "text", "access": "json"}
    }))
    .await;
    for _ in 0..3 {
        assert_eq!(get(program.address, "/", "").await.status, 200);
    }
    program.process.signal("TERM");
    assert_eq!(program.process.ended().await.code(), Some(0));
    let lines = program.process.stdout();
    let (told, others): (Vec<_>, Vec<_>) = lines.iter().partition(|line| line.starts_with('{'));
    assert_eq!(told.len(), 3, "{lines:#?}");
    for line in told {
        let line: Value = serde_json::from_str(line).unwrap();
        assert_says(&line, json!({"msg": "request", "status": 200}));
    }
    assert!(
        others.iter().any(|line| line.contains("  INFO ")),
        "{lines:#?}"
    );
}

#[tokio::test]
async fn without_being_asked_for_there_are_none() {
    let main = Upstream::named("main", 200).await;
    for log in [
        json!({"level": "debug"}),
        json!({"level": "debug", "access": "off"}),
    ] {
        let mut program = Program::start(json!({
            "main-target": main.url(), "canary-target": main.url(), "log": log
        }))
        .await;
        assert_eq!(get(program.address, "/", "").await.status, 200);
        program.process.signal("TERM");
        assert_eq!(program.process.ended().await.code(), Some(0));
        for line in program.process.log() {
            assert_ne!(line["msg"], "request", "{line}");
        }
    }
}

// ---- many at once

/// Clients that ask on and on, and what they have sent and got an answer to, by the request's id.
struct Crowd {
    answered: Arc<Mutex<Vec<String>>>,
    sent: Arc<AtomicUsize>,
    stopped: Arc<AtomicBool>,
    clients: tokio::task::JoinSet<()>,
}

impl Crowd {
    /// So many of each version; each goes on until it is told to stop, or its connection ends.
    fn start(address: SocketAddr, of_each: usize) -> Crowd {
        let mut crowd = Crowd {
            answered: Arc::default(),
            sent: Arc::default(),
            stopped: Arc::default(),
            clients: tokio::task::JoinSet::new(),
        };
        for client in 0..of_each {
            let (answered, sent) = (crowd.answered.clone(), crowd.sent.clone());
            let stopped = crowd.stopped.clone();
            crowd.clients.spawn(async move {
                let mut connection = Client::connect(address).await;
                for i in 0.. {
                    let id = format!("1-{client}-{i}");
                    let request =
                        post("/", &format!("x-request-id: {id}\r\ncontent-length: 2\r\n"));
                    if stopped.load(Ordering::SeqCst) {
                        return;
                    }
                    sent.fetch_add(1, Ordering::SeqCst);
                    let request = request + "hi";
                    let taken = connection.0.write_all(request.as_bytes());
                    if taken.await.is_err() {
                        return;
                    }
                    let Some(response) = connection.response("POST").await else {
                        return;
                    };
                    assert_eq!(response.status, 200);
                    if response.complete {
                        answered.lock().unwrap().push(id);
                    }
                    if response.header("connection") == Some("close") {
                        return;
                    }
                }
            });
            let (answered, sent) = (crowd.answered.clone(), crowd.sent.clone());
            let stopped = crowd.stopped.clone();
            crowd.clients.spawn(async move {
                let mut connection = H2Client::connect(address).await;
                for i in 0.. {
                    if stopped.load(Ordering::SeqCst) {
                        return;
                    }
                    let id = format!("2-{client}-{i}");
                    sent.fetch_add(1, Ordering::SeqCst);
                    let request = asks("POST", "/", &[("x-request-id", &id)]);
                    let got = connection.ask(request, b"hi", HeaderMap::new()).await;
                    if got.error.is_some() {
                        return;
                    }
                    assert_eq!(got.status, 200);
                    answered.lock().unwrap().push(id);
                }
            });
        }
        crowd
    }

    fn answers(&self) -> usize {
        self.answered.lock().unwrap().len()
    }

    /// All have ended: what was answered, and how much was sent.
    async fn ended(mut self) -> (Vec<String>, usize) {
        while let Some(client) = soon(self.clients.join_next()).await {
            client.unwrap();
        }
        let answered = std::mem::take(&mut *self.answered.lock().unwrap());
        (answered, self.sent.load(Ordering::SeqCst))
    }
}

/// Each answer has its line, with all in it, and no request has two.
#[track_caller]
fn assert_each_once(lines: &[Value], answered: &[String], sent: usize) {
    let mut told = HashMap::new();
    for line in lines {
        let id = line["request_id"].as_str().unwrap().to_owned();
        let earlier = told.insert(id, line);
        assert_eq!(earlier, None, "told twice: {line}");
    }
    assert!(
        lines.len() <= sent,
        "{} lines, {sent} requests",
        lines.len()
    );
    for id in answered {
        let line = told
            .get(id)
            .unwrap_or_else(|| panic!("{id} was answered, and has no line"));
        assert_says(
            line,
            json!({"status": 200, "request_bytes": 2, "response_bytes": 4, "flags": []}),
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_load_there_are_as_many_lines_as_requests_and_none_is_torn() {
    let main = Upstream::named("main", 200).await;
    let told = Told::before(&main.url(), json!({"router-server": {"workers": 4}})).await;
    let crowd = Crowd::start(told.address(), 20);
    eventually(|| crowd.answers() >= 5_000).await;
    crowd.stopped.store(true, Ordering::SeqCst);
    let (answered, sent) = crowd.ended().await;
    assert_eq!(answered.len(), sent);
    let mut told = told;
    let lines = told.next(sent).await;
    assert_each_once(&lines, &answered, sent);
    told.over().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_under_load_loses_no_line() {
    let main = Upstream::named("main", 200).await;
    let mut told = Told::before(&main.url(), json!({})).await;
    let crowd = Crowd::start(told.address(), 10);
    eventually(|| crowd.answers() >= 500).await;
    told.program.process.signal("TERM");
    assert_eq!(told.program.process.ended().await.code(), Some(0));
    let (answered, sent) = crowd.ended().await;
    let lines = told.lines();
    assert_each_once(&lines, &answered, sent);
    assert_eq!(
        lines.len(),
        answered.len(),
        "whoever was heard was answered"
    );
}

#[tokio::test]
async fn what_is_cut_at_the_end_has_its_line() {
    let main = Upstream::start(service).await;
    let short = json!({
        "router-server": {"shutdown-timeout": "300ms"},
        "proxy-client": {"to-main-and-canary": {"timeout": "1h"}}
    });
    let mut told = Told::before(&main.url(), short).await;
    let mut clients = Vec::new();
    let mut two = H2Client::connect(told.address()).await;
    let mut streams = Vec::new();
    for path in ["/hang", "/part"] {
        let mut client = Client::connect(told.address()).await;
        client.send(head(&format!("GET {path}"), "")).await;
        streams.push(two.begin(asks("GET", path, &[]), true).await.unwrap());
        if path == "/part" {
            client.head().await;
            client.expect("12345").await;
        }
        clients.push(client);
    }
    eventually(|| main.count() == 4).await;
    let part = &mut streams[1].0;
    let mut body = soon(part).await.unwrap().into_body();
    assert_eq!(soon(body.data()).await.unwrap().unwrap(), "12345");
    told.program.process.signal("TERM");
    assert_eq!(told.program.process.ended().await.code(), Some(0));
    let lines = told.lines();
    assert_eq!(lines.len(), 4, "{lines:#?}");
    for line in lines {
        let (status, bytes) = match line["path"].as_str() {
            Some("/part") => (json!(200), 5),
            _ => (Value::Null, 0),
        };
        assert_says(
            &line,
            json!({"status": status, "response_bytes": bytes, "flags": ["cut"]}),
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_under_load_loses_no_line_either() {
    let main = Upstream::start(service).await;
    let slow = json!({"proxy-client": {"to-main-and-canary": {"timeout": "1h"}}});
    let mut told = Told::before(&main.url(), slow).await;
    // What is in flight keeps the drain from ending.
    let mut hanging = Client::connect(told.address()).await;
    hanging
        .send(head("GET /hang", "x-request-id: hanging\r\n"))
        .await;
    eventually(|| main.count() == 1).await;
    let crowd = Crowd::start(told.address(), 10);
    eventually(|| crowd.answers() >= 500).await;
    told.program.process.signal("TERM");
    eventually(|| std::net::TcpStream::connect(told.program.address).is_err()).await;
    told.program.process.signal("TERM");
    assert_eq!(told.program.process.ended().await.code(), Some(1));
    let (answered, sent) = crowd.ended().await;
    let lines = told.lines();
    assert_each_once(&lines, &answered, sent + 1);
    let hung = lines.iter().find(|line| line["request_id"] == "hanging");
    assert_says(
        hung.expect("its line"),
        json!({"status": null, "flags": ["cut"]}),
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_signals_at_once_lose_no_line() {
    let main = Upstream::named("main", 200).await;
    let mut told = Told::before(&main.url(), json!({})).await;
    let crowd = Crowd::start(told.address(), 10);
    eventually(|| crowd.answers() >= 500).await;
    told.program.process.signal("TERM");
    told.program.process.signal("INT");
    told.program.process.ended().await;
    let (answered, sent) = crowd.ended().await;
    assert_each_once(&told.lines(), &answered, sent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_reads_the_lines_may_stall_and_nobody_waits_nor_is_a_line_lost() {
    let main = Upstream::named("main", 200).await;
    let mut program = Program::start_stalled(json!({
        "main-target": main.url(), "canary-target": main.url(), "log": {"access": "json"}
    }))
    .await;
    // Many times of what a pipe takes.
    let crowd = Crowd::start(program.address, 10);
    eventually(|| crowd.answers() >= 3_000).await;
    crowd.stopped.store(true, Ordering::SeqCst);
    let (answered, sent) = crowd.ended().await;
    assert_eq!(answered.len(), sent);
    program.process.goes_on();
    program.process.signal("TERM");
    assert_eq!(program.process.ended().await.code(), Some(0));
    assert_each_once(&program.process.log(), &answered, sent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_has_stalled_for_good_does_not_keep_the_process() {
    let main = Upstream::named("main", 200).await;
    let mut program = Program::start_stalled(json!({
        "main-target": main.url(), "canary-target": main.url(), "log": {"access": "json"}
    }))
    .await;
    let crowd = Crowd::start(program.address, 5);
    eventually(|| crowd.answers() >= 1_000).await;
    crowd.stopped.store(true, Ordering::SeqCst);
    crowd.ended().await;
    program.process.signal("TERM");
    let ended = tokio::time::timeout(Duration::from_secs(10), program.process.ended()).await;
    assert_eq!(ended.expect("it ends").code(), Some(0));
}
