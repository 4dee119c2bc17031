//! What goes in comes out: request targets, methods, bodies, trailers, informational responses, and
//! how connections are used for them.

use std::time::Duration;

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinSet,
};

use crate::support::*;

/// `bytes` in chunks of many sizes.
fn chunked(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let (mut rest, mut size) = (bytes, 1);
    while !rest.is_empty() {
        let (chunk, after) = rest.split_at(size.min(rest.len()));
        out.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        out.extend_from_slice(chunk);
        out.extend_from_slice(b"\r\n");
        rest = after;
        size = (size * 3 + 1) % 100_003;
    }
    out.extend_from_slice(b"0\r\n\r\n");
    out
}

fn head(start: &str, headers: &str) -> String {
    format!("{start} HTTP/1.1\r\nhost: client.example\r\n{headers}\r\n")
}

/// Large bodies are compared without being printed.
#[track_caller]
fn assert_same(got: &[u8], sent: &[u8]) {
    assert_eq!(got.len(), sent.len(), "length");
    let differs = got.iter().zip(sent).position(|(a, b)| a != b);
    assert_eq!(differs, None, "first difference");
}

// ---- request targets

#[tokio::test]
async fn base_path_and_query_of_the_target_come_before_those_of_the_request() {
    let upstream = Upstream::named("up", 200).await;
    for (base, target, expected) in [
        ("", "/foo?x", "/foo?x"),
        ("/", "/foo", "/foo"),
        ("/base", "/foo", "/base/foo"),
        ("/base/", "/foo", "/base/foo"),
        ("/base", "/", "/base/"),
        ("/base?x=1", "/foo", "/base/foo?x=1"),
        ("/base/?x=1", "/foo?y=2", "/base/foo?x=1&y=2"),
        ("?x=1", "/foo?y=2&z=%26", "/foo?x=1&y=2&z=%26"),
        ("/base", "//foo/../%2e", "/base//foo/../%2e"),
    ] {
        let router = router_to(&format!("{}{base}", upstream.url()));
        assert_eq!(get(router.address, target, "").await.status, 200);
        let seen = upstream.seen().pop().unwrap();
        assert_eq!(seen.target(), expected, "{target} on {base}");
    }
}

#[tokio::test]
async fn the_request_target_is_passed_verbatim() {
    let upstream = Upstream::named("up", 200).await;
    let router = router_to(&upstream.url());
    let mut client = Client::connect(router.address).await;
    for target in [
        "/",
        "//",
        "//a//b//",
        "/a/../b",
        "/../../a",
        "/./a/.",
        "/%2e%2e/%2E/a",
        "/a%2Fb%2fc",
        "/a%00b",
        "/a%zz%",
        "/a?",
        "/?",
        "/a??b?c",
        "/a?x=%20+&y&&=z&x=1;2",
        "/a?u=http://example.org/../x",
        "/a;p=1,2/b:c@d!$'()*~",
        "/%C3%A4/%e4",
        "/a{b}|c^[d]",
        "/application/health/",
        "/application//health",
    ] {
        let response = client
            .roundtrip("GET", head(&format!("GET {target}"), ""))
            .await;
        assert_eq!(response.status, 200, "{target}");
        let seen = upstream.seen().pop().unwrap();
        assert_eq!(seen.start_line(), format!("GET {target} HTTP/1.1"));
    }
}

#[tokio::test]
async fn an_absolute_form_target_is_reduced_to_its_path_and_query() {
    let upstream = Upstream::named("up", 200).await;
    let router = router_with(&upstream.url(), json!({"trim-prefix": "/foo"}));
    for (target, expected) in [
        ("http://client.example/foo/bar?x=%2F", "/bar?x=%2F"),
        ("http://client.example/a//b/..", "/a//b/.."),
        ("http://client.example", "/"),
        ("http://other.example:81/foo/bar", "/bar"),
    ] {
        assert_eq!(get(router.address, target, "").await.status, 200);
        let seen = upstream.seen().pop().unwrap();
        assert_eq!(seen.target(), expected, "{target}");
        assert_eq!(seen.header("host"), Some(&*upstream.address.to_string()));
    }
}

#[tokio::test]
async fn options_asterisk_is_passed_on() {
    let upstream = Upstream::named("up", 200).await;
    let router = router_to(&upstream.url());
    let response = request(router.address, "OPTIONS", "*", "", "").await;
    assert_eq!(response.status, 200);
    assert_eq!(upstream.only().start_line(), "OPTIONS * HTTP/1.1");
}

// ---- methods and heads

#[tokio::test]
async fn every_usual_method_is_passed_on_with_and_without_a_body() {
    let upstream = Upstream::start(|request| answer(200, "", request.method())).await;
    let router = router_to(&upstream.url());
    for method in [
        "GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "PURGE", "X-ANY",
    ] {
        for body in ["", "some body"] {
            let response = request(router.address, method, "/", "", body).await;
            assert_eq!((response.status, &*response.text()), (200, method));
            let seen = upstream.seen().pop().unwrap();
            assert_eq!((seen.method(), &*seen.text()), (method, body));
            assert_eq!(seen.header("transfer-encoding"), None, "{method}");
            match (body, method) {
                ("", "POST" | "PUT" | "PATCH") => {}
                ("", _) => assert_eq!(seen.header("content-length"), None, "{method}"),
                (body, _) => assert_eq!(
                    seen.header("content-length"),
                    Some(&*body.len().to_string()),
                    "{method}"
                ),
            }
        }
    }
}

#[tokio::test]
async fn a_head_response_keeps_its_content_length_and_has_no_body() {
    let upstream = Upstream::start(|request| match request.method() {
        "HEAD" => vec![Step::Write(
            b"HTTP/1.1 200 OK\r\ncontent-length: 1234\r\netag: \"x\"\r\n\r\n".to_vec(),
        )],
        _ => answer(200, "", "next"),
    })
    .await;
    let router = router_to(&upstream.url());
    let mut client = Client::connect(router.address).await;
    let response = client.roundtrip("HEAD", head("HEAD /", "")).await;
    assert_eq!(response.status, 200);
    assert_eq!(response.header("content-length"), Some("1234"));
    assert_eq!(response.header("etag"), Some("\"x\""));
    // A body would be taken for the next response here.
    assert_eq!(
        client.roundtrip("GET", head("GET /", "")).await.text(),
        "next"
    );
    assert_eq!(
        upstream.connections().0,
        1,
        "its connection can be used again"
    );
}

/// Zero would be a lie about what a GET would get.
#[tokio::test]
async fn a_head_response_without_a_content_length_is_given_none() {
    for headers in ["etag: \"x\"\r\n", "transfer-encoding: chunked\r\n"] {
        let upstream = Upstream::start(move |request| match request.method() {
            "HEAD" => vec![Step::Write(
                format!("HTTP/1.1 200 OK\r\n{headers}\r\n").into_bytes(),
            )],
            _ => answer(200, "", "next"),
        })
        .await;
        let router = router_to(&upstream.url());
        let mut client = Client::connect(router.address).await;
        let response = client.roundtrip("HEAD", head("HEAD /", "")).await;
        assert_eq!(response.status, 200);
        assert_eq!(response.header("content-length"), None, "{headers}");
        assert_eq!(
            client.roundtrip("GET", head("GET /", "")).await.text(),
            "next"
        );
    }
}

#[tokio::test]
async fn responses_to_204_and_304_have_no_body_and_keep_their_headers() {
    let upstream = Upstream::start(|request| match request.target() {
        "/204" => answer(204, "x-a: 1\r\n", ""),
        "/304" => answer(304, "etag: \"x\"\r\n", ""),
        _ => answer(200, "", "next"),
    })
    .await;
    let router = router_to(&upstream.url());
    let mut client = Client::connect(router.address).await;

    let response = client.roundtrip("GET", head("GET /204", "")).await;
    assert_eq!((response.status, response.header("x-a")), (204, Some("1")));
    assert_eq!(response.header("content-length"), None);
    assert_eq!(response.header("transfer-encoding"), None);
    assert_eq!(
        client.roundtrip("GET", head("GET /", "")).await.text(),
        "next"
    );

    let response = client.roundtrip("GET", head("GET /304", "")).await;
    assert_eq!(response.status, 304);
    assert_eq!(response.header("transfer-encoding"), None);
    assert_eq!(response.header("etag"), Some("\"x\""));
    assert_eq!(
        client.roundtrip("GET", head("GET /", "")).await.text(),
        "next"
    );
}

/// Its `Content-Length`, which says what a 200 would have had, need not be sent (RFC 9110 section 8.6);
/// hyper leaves it out. Wherever it is, it must not be taken for a body's.
#[tokio::test]
async fn a_304_with_a_content_length_has_no_body() {
    let upstream = Upstream::start(|request| match request.target() {
        "/304" => answer(304, "content-length: 77\r\n", ""),
        _ => answer(200, "", "next"),
    })
    .await;
    let router = router_to(&upstream.url());
    let mut client = Client::connect(router.address).await;
    let response = client.roundtrip("GET", head("GET /304", "")).await;
    assert_eq!(response.status, 304);
    assert_eq!(
        client.roundtrip("GET", head("GET /", "")).await.text(),
        "next"
    );
    assert!(matches!(
        response.header("content-length"),
        None | Some("77")
    ));
}

#[tokio::test]
async fn a_reason_phrase_of_its_own_survives() {
    let upstream = Upstream::start(|_| {
        vec![Step::Write(
            b"HTTP/1.1 299 Mostly Fine, Really\r\ncontent-length: 0\r\n\r\n".to_vec(),
        )]
    })
    .await;
    let router = router_to(&upstream.url());
    let response = get(router.address, "/", "").await;
    assert_eq!(
        response.message.start_line(),
        "HTTP/1.1 299 Mostly Fine, Really"
    );
}

// ---- bodies

const LARGE: usize = 5 << 20;

#[tokio::test]
async fn a_request_body_of_5_mib_with_a_length_arrives_byte_for_byte() {
    let upstream = Upstream::named("up", 200).await;
    let router = router_to(&upstream.url());
    let mut client = Client::connect(router.address).await;
    client
        .send(head("POST /", &format!("content-length: {LARGE}\r\n")))
        .await;
    let response = client.roundtrip("POST", noise(LARGE)).await;
    assert_eq!(response.status, 200);
    let seen = upstream.only();
    assert_eq!(seen.header("content-length"), Some(&*LARGE.to_string()));
    assert_eq!(seen.header("transfer-encoding"), None);
    assert_same(&seen.body, &noise(LARGE));
}

#[tokio::test]
async fn a_request_body_of_5_mib_in_chunks_arrives_byte_for_byte() {
    let upstream = Upstream::named("up", 200).await;
    let router = router_to(&upstream.url());
    let mut client = Client::connect(router.address).await;
    client
        .send(head("POST /", "transfer-encoding: chunked\r\n"))
        .await;
    let response = client.roundtrip("POST", chunked(&noise(LARGE))).await;
    assert_eq!(response.status, 200);
    let seen = upstream.only();
    assert_eq!(seen.header("transfer-encoding"), Some("chunked"));
    assert_eq!(seen.header("content-length"), None);
    assert_same(&seen.body, &noise(LARGE));
}

#[tokio::test]
async fn a_response_body_of_5_mib_arrives_byte_for_byte_however_it_is_framed() {
    let upstream = Upstream::start(|request| match request.target() {
        "/length" => vec![
            Step::Write(format!("HTTP/1.1 200 OK\r\ncontent-length: {LARGE}\r\n\r\n").into_bytes()),
            Step::Write(noise(LARGE)),
        ],
        "/chunked" => vec![
            Step::Write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec()),
            Step::Write(chunked(&noise(LARGE))),
        ],
        _ => vec![
            Step::Write(b"HTTP/1.0 200 OK\r\n\r\n".to_vec()),
            Step::Write(noise(LARGE)),
            Step::Close,
        ],
    })
    .await;
    let router = router_to(&upstream.url());
    let mut client = Client::connect(router.address).await;
    for target in ["/length", "/chunked", "/close"] {
        let response = client
            .roundtrip("GET", head(&format!("GET {target}"), ""))
            .await;
        assert_eq!(
            (response.status, response.complete),
            (200, true),
            "{target}"
        );
        match target {
            "/length" => assert_eq!(response.header("content-length"), Some(&*LARGE.to_string())),
            _ => assert_eq!(response.header("transfer-encoding"), Some("chunked")),
        }
        assert_same(&response.message.body, &noise(LARGE));
    }
}

#[tokio::test]
async fn a_get_with_a_chunked_body_keeps_it() {
    let upstream = Upstream::named("up", 200).await;
    let router = router_to(&upstream.url());
    let mut client = Client::connect(router.address).await;
    for method in ["GET", "DELETE", "OPTIONS", "HEAD"] {
        client
            .send(head(
                &format!("{method} /"),
                "transfer-encoding: chunked\r\n",
            ))
            .await;
        client
            .send("4\r\nwith\r\n6\r\n a bod\r\n1\r\ny\r\n0\r\n\r\n")
            .await;
        // The scripted upstream puts a body behind HEAD too, so that connection is not used again.
        assert_eq!(client.response(method).await.unwrap().status, 200);
        let seen = upstream.seen().pop().unwrap();
        assert_eq!((seen.method(), &*seen.text()), (method, "with a body"));
    }
}

#[tokio::test]
async fn an_http_1_0_client_gets_a_chunked_response_delimited_by_the_end_of_the_connection() {
    let upstream = Upstream::start(|_| {
        vec![Step::Write(
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
                .to_vec(),
        )]
    })
    .await;
    let router = router_to(&upstream.url());
    let mut client = Client::connect(router.address).await;
    let response = client
        .roundtrip("GET", "GET / HTTP/1.0\r\nhost: client.example\r\n\r\n")
        .await;
    assert_eq!(response.header("transfer-encoding"), None);
    assert!(response.complete);
    assert_eq!(response.text(), "abcde");
    assert_eq!(upstream.only().start_line(), "GET / HTTP/1.1");
}

#[tokio::test]
async fn a_compressed_body_is_not_touched_and_none_is_asked_for() {
    // Not really gzip, which is the point: nobody looks.
    let upstream = Upstream::start(|_| {
        vec![
            Step::Write(
                b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 1000\r\n\r\n"
                    .to_vec(),
            ),
            Step::Write(noise(1000)),
        ]
    })
    .await;
    let router = router_to(&upstream.url());
    let response = get(router.address, "/", "").await;
    assert_eq!(response.header("content-encoding"), Some("gzip"));
    assert_eq!(response.header("content-length"), Some("1000"));
    assert_same(&response.message.body, &noise(1000));
    assert_eq!(upstream.only().header("accept-encoding"), None);

    get(router.address, "/", "accept-encoding: br;q=0.5, gzip\r\n").await;
    let seen = upstream.seen().pop().unwrap();
    assert_eq!(seen.header("accept-encoding"), Some("br;q=0.5, gzip"));
}

// ---- streaming

#[tokio::test]
async fn the_first_byte_of_a_response_goes_out_before_the_upstream_sends_the_second() {
    for framing in ["content-length: 2", "transfer-encoding: chunked"] {
        let upstream = ByHand::start().await;
        let router = router_to(&upstream.url());
        let mut client = Client::connect(router.address).await;
        client.send(head("GET /", "")).await;
        let mut service = upstream.accept().await;
        service.head().await;
        service
            .send(format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n"))
            .await;
        assert!(client.head().await.starts_with("HTTP/1.1 200 OK\r\n"));
        match framing {
            "content-length: 2" => {
                service.send("a").await;
                client.expect("a").await;
                service.send("b").await;
                client.expect("b").await;
            }
            _ => {
                service.send("1\r\na\r\n").await;
                client.expect("1\r\na\r\n").await;
                service.send("1\r\nb\r\n0\r\n\r\n").await;
                client.expect("1\r\nb\r\n0\r\n\r\n").await;
            }
        }
    }
}

#[tokio::test]
async fn the_upstream_sees_the_first_part_of_a_request_before_the_client_sends_the_second() {
    for framing in ["content-length: 2", "transfer-encoding: chunked"] {
        let upstream = ByHand::start().await;
        let router = router_to(&upstream.url());
        let mut client = Client::connect(router.address).await;
        client.send(head("POST /", &format!("{framing}\r\n"))).await;
        let mut service = upstream.accept().await;
        service.head().await;
        match framing {
            "content-length: 2" => {
                client.send("a").await;
                service.expect("a").await;
                client.send("b").await;
                service.expect("b").await;
            }
            _ => {
                client.send("1\r\na\r\n").await;
                service.expect("1\r\na\r\n").await;
                client.send("1\r\nb\r\n0\r\n\r\n").await;
                service.expect("1\r\nb\r\n0\r\n\r\n").await;
            }
        }
        service
            .send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            .await;
        assert_eq!(client.response("POST").await.unwrap().status, 200);
    }
}

/// Both at once: a client and a service that talk to each other within one request.
#[tokio::test]
async fn request_and_response_can_stream_at_the_same_time() {
    let upstream = ByHand::start().await;
    let router = router_to(&upstream.url());
    let mut client = Client::connect(router.address).await;
    client
        .send(head("POST /", "transfer-encoding: chunked\r\n"))
        .await;
    client.send("1\r\n0\r\n").await;
    let mut service = upstream.accept().await;
    service.head().await;
    service.expect("1\r\n0\r\n").await;
    service
        .send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        .await;
    client.head().await;
    for i in 1..10 {
        client.send(format!("1\r\n{i}\r\n")).await;
        service.expect(format!("1\r\n{i}\r\n")).await;
        service.send(format!("1\r\n{i}\r\n")).await;
        client.expect(format!("1\r\n{i}\r\n")).await;
    }
    client.send("0\r\n\r\n").await;
    service.expect("0\r\n\r\n").await;
    service.send("0\r\n\r\n").await;
    client.expect("0\r\n\r\n").await;
}

/// A client in the middle of an upload of 100 MB, and the upstream, which has answered 413.
async fn refused_upload() -> (Router, Client, Client) {
    let upstream = ByHand::start().await;
    let router = router_to(&upstream.url());
    let mut client = Client::connect(router.address).await;
    client
        .send(head("POST /", "content-length: 100000000\r\n"))
        .await;
    client.send(vec![b'x'; 100_000]).await;
    let mut service = upstream.accept().await;
    service.head().await;
    service
        .send("HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\n\r\nno\n")
        .await;
    (router, client, service)
}

async fn assert_refused(mut client: Client) {
    let response = client.response("POST").await.expect("the early answer");
    assert_eq!(
        (response.status, &*response.text(), response.complete),
        (413, "no\n", true)
    );
}

#[tokio::test]
async fn an_early_final_answer_during_an_upload_arrives() {
    let (_router, client, _service) = refused_upload().await;
    assert_refused(client).await;
}

#[tokio::test]
async fn an_early_final_answer_arrives_from_an_upstream_that_says_no_more() {
    let (_router, client, mut service) = refused_upload().await;
    service.finish().await;
    assert_refused(client).await;
}

/// What a plain server does: it answers and closes. Since it has not read everything, its system
/// sends a reset behind the answer, and a write of ours may fail before we have read the answer; it
/// has arrived all the same. Which comes first is a race, hence many of them, in full flow.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_early_final_answer_arrives_from_an_upstream_that_closes_with_unread_input() {
    let upstream = ByHand::start().await;
    let router = router_to(&upstream.url());
    for _ in 0..30 {
        let client = Client::connect(router.address).await;
        let (mut read, mut write) = client.0.into_inner().into_split();
        let mut uploading = JoinSet::new();
        uploading.spawn(async move {
            let head = head("POST /", "content-length: 100000000\r\n");
            let mut sent = write.write_all(head.as_bytes()).await;
            for _ in 0..1000 {
                if sent.is_err() {
                    break;
                }
                sent = write.write_all(&[b'x'; 8 << 10]).await;
            }
            // What is sent after the answer may be refused. The connection stays open.
            write
        });
        let mut service = upstream.accept().await;
        service.head().await;
        service.expect([b'x'; 100]).await;
        service
            .send("HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\n\r\nno\n")
            .await;
        drop(service);
        let mut answer = Vec::new();
        let _reset = soon(read.read_to_end(&mut answer)).await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
        assert!(answer.ends_with("\r\n\r\nno\n"), "{answer}");
    }
}

/// The answer must not be lost to a reset that the client's unread bytes cause (RFC 9112 section
/// 9.6).
#[tokio::test]
async fn an_early_final_answer_is_not_lost_on_a_client_that_goes_on_sending() {
    let (_router, mut client, mut service) = refused_upload().await;
    service.finish().await;
    for _ in 0..50 {
        client.send(vec![b'x'; 4_000]).await;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_refused(client).await;
}

#[tokio::test]
async fn expect_100_continue_is_answered_once_and_the_body_arrives() {
    for from_upstream in ["", "HTTP/1.1 100 Continue\r\n\r\n"] {
        let upstream = ByHand::start().await;
        let router = router_to(&upstream.url());
        let mut client = Client::connect(router.address).await;
        client
            .send(head(
                "POST /",
                "content-length: 4\r\nexpect: 100-continue\r\n",
            ))
            .await;
        let mut service = upstream.accept().await;
        service.head().await;
        service.send(from_upstream).await;
        client.expect("HTTP/1.1 100 Continue\r\n\r\n").await;
        client.send("body").await;
        service.expect("body").await;
        service
            .send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            .await;
        let response = client.response("POST").await.unwrap();
        assert_eq!((response.status, &*response.text()), (200, "ok"));
        assert_eq!(response.informational, [""; 0]);
    }
}

#[tokio::test]
async fn an_http_1_0_client_that_expects_100_continue_gets_none() {
    let upstream = Upstream::named("up", 200).await;
    let router = router_to(&upstream.url());
    let mut client = Client::connect(router.address).await;
    let response = client
        .roundtrip(
            "POST",
            "POST / HTTP/1.0\r\nhost: client.example\r\ncontent-length: 4\r\n\
             expect: 100-continue\r\n\r\nbody",
        )
        .await;
    assert_eq!(response.status, 200);
    assert_eq!(response.informational, [""; 0]);
    assert_eq!(upstream.only().text(), "body");
}

// ---- trailers

#[tokio::test]
async fn request_trailers_pass() {
    let upstream = Upstream::named("up", 200).await;
    let sidecar = Upstream::named("", 204).await;
    for config in [json!({}), json!({"sidecar-url": sidecar.url()})] {
        let router = router_with(&upstream.url(), config);
        let mut client = Client::connect(router.address).await;
        client
            .send(head(
                "POST /",
                "transfer-encoding: chunked\r\ntrailer: x-sum\r\n",
            ))
            .await;
        let response = client
            .roundtrip("POST", "3\r\nabc\r\n0\r\nx-sum: 1; 2\r\n\r\n")
            .await;
        assert_eq!(response.status, 200);
        let seen = upstream.seen().pop().unwrap();
        assert_eq!(seen.text(), "abc");
        assert_eq!(seen.header("trailer"), Some("x-sum"));
        assert_eq!(seen.trailers, "x-sum: 1; 2\r\n");
    }
}

#[tokio::test]
async fn request_trailers_pass_unannounced_too() {
    let upstream = Upstream::named("up", 200).await;
    let router = router_to(&upstream.url());
    let mut client = Client::connect(router.address).await;
    client
        .send(head("POST /", "transfer-encoding: chunked\r\n"))
        .await;
    let response = client
        .roundtrip("POST", "3\r\nabc\r\n0\r\nx-sum: 1; 2\r\n\r\n")
        .await;
    assert_eq!(response.status, 200);
    let seen = upstream.only();
    assert_eq!(seen.text(), "abc");
    assert_eq!(seen.trailers, "x-sum: 1; 2\r\n");
}

async fn with_trailers(trailer: &'static str) -> Upstream {
    Upstream::start(move |_| {
        vec![Step::Write(
            format!(
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n{trailer}\r\n\
                 3\r\nabc\r\n0\r\nx-sum: 1; 2\r\n\r\n"
            )
            .into_bytes(),
        )]
    })
    .await
}

#[tokio::test]
async fn announced_response_trailers_pass_to_a_client_that_takes_them() {
    let upstream = with_trailers("trailer: x-sum\r\n").await;
    let router = router_to(&upstream.url());
    let response = get(router.address, "/", "te: trailers\r\nconnection: te\r\n").await;
    assert_eq!((&*response.text(), response.complete), ("abc", true));
    assert_eq!(response.header("trailer"), Some("x-sum"));
    assert_eq!(response.message.trailers, "x-sum: 1; 2\r\n");
}

#[tokio::test]
async fn announced_response_trailers_pass_without_te_too() {
    let upstream = with_trailers("trailer: x-sum\r\n").await;
    let router = router_to(&upstream.url());
    let response = get(router.address, "/", "").await;
    assert_eq!((&*response.text(), response.complete), ("abc", true));
    assert_eq!(response.message.trailers, "x-sum: 1; 2\r\n");
}

#[tokio::test]
async fn unannounced_response_trailers_pass_too() {
    let upstream = with_trailers("").await;
    let router = router_to(&upstream.url());
    let response = get(router.address, "/", "te: trailers\r\nconnection: te\r\n").await;
    assert_eq!((&*response.text(), response.complete), ("abc", true));
    assert_eq!(response.message.trailers, "x-sum: 1; 2\r\n");
}

// ---- informational responses

#[tokio::test]
async fn early_hints_arrive_before_there_is_a_final_response() {
    let upstream = ByHand::start().await;
    let router = router_to(&upstream.url());
    let mut client = Client::connect(router.address).await;
    client.send(head("GET /", "")).await;
    let mut service = upstream.accept().await;
    // Twice, because the second request finds a connection that has seen informational responses.
    for _ in 0..2 {
        service.head().await;
        for status in [103, 102] {
            service
                .send(format!(
                    "HTTP/1.1 {status} Hint\r\nlink: </a.css>; rel=preload\r\n\
                     connection: x-hop\r\nx-hop: 1\r\n\r\n"
                ))
                .await;
            let hints = client.head().await.to_ascii_lowercase();
            assert!(hints.starts_with(&format!("http/1.1 {status} ")), "{hints}");
            assert!(
                hints.contains("\r\nlink: </a.css>; rel=preload\r\n"),
                "{hints}"
            );
            assert!(!hints.contains("x-hop"), "{hints}");
        }
        service
            .send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            .await;
        let response = client.response("GET").await.unwrap();
        assert_eq!((response.status, &*response.text()), (200, "ok"));
        client.send(head("GET /", "")).await;
    }
}

#[tokio::test]
async fn informational_and_final_response_in_one_piece_arrive_in_order() {
    let upstream = Upstream::start(|_| {
        vec![Step::Write(
            b"HTTP/1.1 103 Early Hints\r\nx-n: 1\r\n\r\nHTTP/1.1 103 Early Hints\r\nx-n: 2\r\n\r\n\
              HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
                .to_vec(),
        )]
    })
    .await;
    let router = router_to(&upstream.url());
    let mut client = Client::connect(router.address).await;
    for _ in 0..20 {
        let response = client.roundtrip("GET", head("GET /", "")).await;
        assert_eq!((response.status, &*response.text()), (200, "ok"));
        let [first, second] = &response.informational[..] else {
            panic!("{:?}", response.informational);
        };
        assert!(first.to_ascii_lowercase().contains("x-n: 1"));
        assert!(second.to_ascii_lowercase().contains("x-n: 2"));
    }
}

#[tokio::test]
async fn at_most_16_informational_responses_are_forwarded() {
    let upstream = Upstream::start(|_| {
        let mut steps = vec![Step::Write(b"HTTP/1.1 103 Early Hints\r\n\r\n".to_vec()); 40];
        steps.extend(answer(200, "", "ok"));
        steps
    })
    .await;
    let router = router_to(&upstream.url());
    let response = get(router.address, "/", "").await;
    assert_eq!((response.status, &*response.text()), (200, "ok"));
    assert_eq!(response.informational.len(), 16);
}

/// They are about the sidecar's answer, which is not for the client.
#[tokio::test]
async fn informational_responses_of_a_sidecar_end_here() {
    let upstream = Upstream::named("up", 200).await;
    let sidecar = Upstream::start(|_| {
        let mut steps = vec![Step::Write(b"HTTP/1.1 103 Early Hints\r\n\r\n".to_vec())];
        steps.extend(answer(204, "", ""));
        steps
    })
    .await;
    let router = router_with(&upstream.url(), json!({"sidecar-url": sidecar.url()}));
    let response = get(router.address, "/", "").await;
    assert_eq!((response.status, &*response.text()), (200, "up"));
    assert_eq!(response.informational, [""; 0]);
    assert_eq!(sidecar.count(), 1);
}

#[tokio::test]
async fn an_http_1_0_client_gets_no_informational_response() {
    let upstream = Upstream::start(|_| {
        let mut steps = vec![Step::Write(b"HTTP/1.1 103 Early Hints\r\n\r\n".to_vec())];
        steps.extend(answer(200, "", "ok"));
        steps
    })
    .await;
    let router = router_to(&upstream.url());
    let mut client = Client::connect(router.address).await;
    let response = client
        .roundtrip("GET", "GET / HTTP/1.0\r\nhost: client.example\r\n\r\n")
        .await;
    assert_eq!((response.status, &*response.text()), (200, "ok"));
    assert_eq!(response.informational, [""; 0]);
}

// ---- connections

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let upstream = Upstream::start(|request| {
        let pause = match request.target() {
            "/0" => 50,
            _ => 0,
        };
        let mut steps = vec![Step::Pause(Duration::from_millis(pause))];
        steps.extend(answer(200, "", request.target()));
        steps
    })
    .await;
    let router = router_to(&upstream.url());
    let mut client = Client::connect(router.address).await;
    let requests: String = (0..8)
        .map(|i| match i {
            3 => "POST /3 HTTP/1.1\r\nhost: h\r\ncontent-length: 4\r\n\r\nGET ".into(),
            i => format!("GET /{i} HTTP/1.1\r\nhost: h\r\n\r\n"),
        })
        .collect();
    client.send(requests).await;
    for i in 0..8 {
        let response = client.response("GET").await.unwrap();
        assert_eq!(response.text(), format!("/{i}"));
    }
    assert_eq!(upstream.seen()[3].text(), "GET ");
}

#[tokio::test]
async fn sequential_requests_use_one_upstream_connection() {
    let upstream = Upstream::named("up", 200).await;
    let router = router_to(&upstream.url());
    for _ in 0..5 {
        let mut client = Client::connect(router.address).await;
        for _ in 0..3 {
            assert_eq!(client.roundtrip("GET", head("GET /", "")).await.status, 200);
        }
        let post = head("POST /", "content-length: 2\r\n") + "ab";
        assert_eq!(client.roundtrip("POST", post).await.status, 200);
    }
    assert_eq!(upstream.connections(), (1, 1));
}

#[tokio::test]
async fn connection_close_from_the_upstream_ends_its_connection_and_not_the_clients() {
    let upstream = Upstream::start(|_| answer(200, "connection: close\r\n", "up")).await;
    let router = router_to(&upstream.url());
    let mut client = Client::connect(router.address).await;
    for n in 1..=3 {
        let response = client.roundtrip("GET", head("GET /", "")).await;
        assert_eq!((response.status, &*response.text()), (200, "up"));
        assert_eq!(response.header("connection"), None);
        assert_eq!(upstream.connections().0, n);
        // The scripted upstream leaves closing to us.
        eventually(|| upstream.connections().1 == 0).await;
    }
}

#[tokio::test]
async fn connection_close_from_the_client_is_honoured_and_the_upstreams_is_kept() {
    let upstream = Upstream::named("up", 200).await;
    let router = router_to(&upstream.url());
    for start in [
        "GET / HTTP/1.1\r\nconnection: close\r\n",
        "GET / HTTP/1.0\r\n",
    ] {
        let mut client = Client::connect(router.address).await;
        let response = client
            .roundtrip("GET", format!("{start}host: client.example\r\n\r\n"))
            .await;
        assert_eq!((response.status, &*response.text()), (200, "up"));
        client.closed().await;
    }
    assert_eq!(upstream.connections(), (1, 1));
    for seen in upstream.seen() {
        assert_ne!(seen.header("connection"), Some("close"));
    }
}

#[tokio::test]
async fn an_http_1_0_client_may_keep_its_connection() {
    let upstream = Upstream::named("up", 200).await;
    let router = router_to(&upstream.url());
    let mut client = Client::connect(router.address).await;
    for _ in 0..3 {
        let response = client
            .roundtrip("GET", "GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n")
            .await;
        assert_eq!((response.status, &*response.text()), (200, "up"));
        assert_eq!(response.header("content-length"), Some("2"));
        let connection = response.header("connection").unwrap_or_default();
        assert_eq!(connection.to_ascii_lowercase(), "keep-alive");
    }
}

#[tokio::test]
async fn a_pooled_connection_that_the_upstream_closed_is_not_used() {
    let upstream = Upstream::start(|_| {
        let mut steps = answer(200, "", "up");
        steps.push(Step::Close);
        steps
    })
    .await;
    let router = router_to(&upstream.url());
    let mut client = Client::connect(router.address).await;
    for _ in 0..5 {
        let response = client
            .roundtrip("POST", head("POST /", "content-length: 0\r\n"))
            .await;
        assert_eq!((response.status, &*response.text()), (200, "up"));
        eventually(|| upstream.connections().1 == 0).await;
    }
    assert_eq!(upstream.connections().0, 5);
}

/// Here the upstream closes right behind its answer, again and again: the end of the connection has
/// arrived before the client sends its next request, but may not have been noticed yet.
#[tokio::test]
async fn a_get_never_fails_because_a_pooled_connection_is_being_closed() {
    let upstream = Upstream::start(|_| {
        let mut steps = answer(200, "", "up");
        steps.push(Step::Close);
        steps
    })
    .await;
    let router = router_to(&upstream.url());
    let mut client = Client::connect(router.address).await;
    for i in 0..200 {
        let response = client.roundtrip("GET", head("GET /", "")).await;
        assert_eq!(
            (response.status, &*response.text()),
            (200, "up"),
            "request {i}"
        );
    }
    assert_eq!(upstream.count(), 200);
}

#[tokio::test]
async fn a_request_that_the_upstream_has_read_is_not_sent_again() {
    let upstream = Upstream::start(|request| match request.target() {
        "/first" => answer(200, "", "up"),
        _ => vec![Step::Close],
    })
    .await;
    let router = router_to(&upstream.url());
    let mut client = Client::connect(router.address).await;
    assert_eq!(
        client.roundtrip("GET", head("GET /first", "")).await.status,
        200
    );
    assert_eq!(
        client
            .roundtrip("GET", head("GET /second", ""))
            .await
            .status,
        502
    );
    assert_eq!(upstream.count(), 2);
    assert_eq!(upstream.connections().0, 1);
}

#[tokio::test]
async fn bytes_behind_a_response_are_not_taken_for_the_next_one() {
    let upstream = Upstream::start(|_| {
        vec![Step::Write(
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok\
              HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil"
                .to_vec(),
        )]
    })
    .await;
    let router = router_to(&upstream.url());
    let mut client = Client::connect(router.address).await;
    for _ in 0..10 {
        let response = client.roundtrip("GET", head("GET /", "")).await;
        assert_eq!((response.status, &*response.text()), (200, "ok"));
    }
}

// ---- upstreams that fail

#[tokio::test]
async fn an_upstream_that_gives_no_proper_answer_is_502() {
    for (what, steps) in [
        ("reset", vec![Step::Reset]),
        ("close", vec![Step::Close]),
        (
            "half a head",
            vec![
                Step::Write(b"HTTP/1.1 200 OK\r\ncont".to_vec()),
                Step::Close,
            ],
        ),
        (
            "garbage",
            vec![Step::Write(b"\x16\x03\x01 what?\r\n\r\n".to_vec())],
        ),
        (
            "SSH",
            vec![Step::Write(b"SSH-2.0-OpenSSH_9.2\r\n".to_vec())],
        ),
        (
            "unasked 101",
            vec![Step::Write(
                b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\nx"
                    .to_vec(),
            )],
        ),
    ] {
        let upstream = Upstream::start(move |_| steps.clone()).await;
        let router = router_to(&upstream.url());
        let mut client = Client::connect(router.address).await;
        for _ in 0..2 {
            let response = client.roundtrip("GET", head("GET /", "")).await;
            assert_eq!((response.status, response.complete), (502, true), "{what}");
            eventually(|| upstream.connections().1 == 0).await;
        }
        assert_eq!(upstream.count(), 2, "{what}");
    }
    let router = router_to(&format!("http://{}", Upstream::nobody().await));
    assert_eq!(get(router.address, "/", "").await.status, 502);
}

#[tokio::test]
async fn a_response_that_the_upstream_cuts_off_is_cut_off_for_the_client() {
    let heads = [
        ("length", "content-length: 10\r\n\r\nabc"),
        (
            "mid-chunk",
            "transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n5\r\nde",
        ),
        (
            "between chunks",
            "transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n",
        ),
        (
            "before the last line",
            "transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n",
        ),
        (
            "bad chunk",
            "transfer-encoding: chunked\r\n\r\n3\r\nabc\r\nxyz\r\n",
        ),
    ];
    for (what, head) in heads {
        for end in [Step::Close, Step::Reset] {
            let steps = vec![
                Step::Write(format!("HTTP/1.1 200 OK\r\n{head}").into_bytes()),
                // So that the response has begun for the client too before it ends.
                Step::Pause(Duration::from_millis(30)),
                end.clone(),
            ];
            let upstream = Upstream::start(move |_| steps.clone()).await;
            let router = router_to(&upstream.url());
            for version in ["1.1", "1.0"] {
                let mut client = Client::connect(router.address).await;
                let response = client
                    .roundtrip(
                        "GET",
                        format!("GET / HTTP/{version}\r\nhost: client.example\r\n\r\n"),
                    )
                    .await;
                assert_eq!(response.status, 200);
                assert!(
                    !response.complete,
                    "{what}, {end:?}, HTTP/{version}: ended cleanly with {:?}",
                    response.text()
                );
            }
        }
    }
}

#[tokio::test]
async fn what_came_of_a_response_before_it_was_cut_off_arrives() {
    let upstream = ByHand::start().await;
    let router = router_to(&upstream.url());
    let mut client = Client::connect(router.address).await;
    client.send(head("GET /", "")).await;
    let mut service = upstream.accept().await;
    service.head().await;
    service
        .send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc")
        .await;
    client.head().await;
    client.expect("abc").await;
    service.finish().await;
    client.closed().await;
}

/// A service that answers early and goes on reading.
#[tokio::test]
async fn a_response_that_begins_before_the_request_ends_leaves_both_whole() {
    let upstream = ByHand::start().await;
    let router = router_to(&upstream.url());
    let mut client = Client::connect(router.address).await;
    client
        .send(head("POST /", "transfer-encoding: chunked\r\n"))
        .await;
    client.send("3\r\nabc\r\n").await;
    let mut service = upstream.accept().await;
    service.head().await;
    service.expect("3\r\nabc\r\n").await;
    service
        .send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n")
        .await;
    client.head().await;
    client.expect("2\r\nok\r\n").await;
    client.send("2\r\nde\r\n0\r\n\r\n").await;
    service.expect("2\r\nde\r\n0\r\n\r\n").await;
    service.send("0\r\n\r\n").await;
    client.expect("0\r\n\r\n").await;
    // And the connection is in order.
    client.send(head("GET /next", "")).await;
    assert!(service.head().await.starts_with("GET /next "));
    service
        .send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        .await;
    assert_eq!(client.response("GET").await.unwrap().status, 200);
}

// ---- clients that leave

#[tokio::test]
async fn a_client_that_leaves_before_the_answer_cancels_the_upstream_request() {
    for reset in [false, true] {
        let upstream = Upstream::start(|_| vec![Step::Hang]).await;
        let router = router_to(&upstream.url());
        let mut client = Client::connect(router.address).await;
        client.send(head("GET /", "")).await;
        eventually(|| upstream.count() == 1).await;
        match reset {
            false => drop(client),
            true => client.reset(),
        }
        let left = canary_router::clock::now();
        eventually(|| upstream.connections().1 == 0).await;
        assert!(
            left.elapsed() < Duration::from_secs(1),
            "{:?}",
            left.elapsed()
        );
    }
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_of_a_response_cancels_it() {
    let upstream = ByHand::start().await;
    let router = router_to(&upstream.url());
    let mut client = Client::connect(router.address).await;
    client.send(head("GET /", "")).await;
    let mut service = upstream.accept().await;
    service.head().await;
    service
        .send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n")
        .await;
    client.head().await;
    client.expect("3\r\nabc\r\n").await;
    drop(client);
    let left = canary_router::clock::now();
    service.closed().await;
    assert!(
        left.elapsed() < Duration::from_secs(1),
        "{:?}",
        left.elapsed()
    );
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_of_an_upload_breaks_it_off() {
    for (framing, part) in [
        ("content-length: 10", "abc"),
        ("transfer-encoding: chunked", "3\r\nabc\r\n"),
    ] {
        let upstream = ByHand::start().await;
        let router = router_to(&upstream.url());
        let mut client = Client::connect(router.address).await;
        client.send(head("POST /", &format!("{framing}\r\n"))).await;
        client.send(part).await;
        let mut service = upstream.accept().await;
        service.head().await;
        service.expect(part).await;
        drop(client);
        let left = canary_router::clock::now();
        // No last chunk: the upstream must not take it for the whole.
        service.closed().await;
        assert!(
            left.elapsed() < Duration::from_secs(1),
            "{:?}",
            left.elapsed()
        );
    }
}

/// Raw UTF-8 is not what RFC 3986 asks for, but clients send it, and no upstream minded so far.
#[tokio::test]
async fn a_target_in_raw_utf_8_is_verbatim_and_what_is_no_text_is_400() {
    let upstream = ByHand::start().await;
    let router = router_to(&upstream.url());
    let mut client = Client::connect(router.address).await;
    client
        .send("GET /ü/日本?q=ä HTTP/1.1\r\nhost: h\r\n\r\n")
        .await;
    let mut seen = upstream.accept().await;
    assert_eq!(seen.request().await.target(), "/ü/日本?q=ä");

    let mut client = Client::connect(router.address).await;
    let response = client
        .roundtrip("GET", b"GET /\xff HTTP/1.1\r\nhost: h\r\n\r\n")
        .await;
    assert_eq!(response.status, 400);
}
