//! What goes in comes out: bodies, in one piece, in pieces, and both ways at a time.

use std::time::Duration;

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinSet,
};

use crate::support::*;

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
    let response = client.roundtrip("POST", in_chunks(&noise(LARGE))).await;
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
            Step::Write(in_chunks(&noise(LARGE))),
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

/// An upstream may answer before it has read a large head. When it read on, the body was asked for, and
/// the `100 Continue` came in the middle of the response.
#[tokio::test]
async fn expect_100_continue_is_not_answered_once_the_response_has_begun() {
    let upstream = ByHand::on(listen_narrowly());
    let router = router_with(
        &upstream.url(),
        json!({"router-server": {"max-header-bytes": "256KiB"}}),
    );
    for padding in [200_000, 250_000] {
        let mut client = Client::connect(router.address).await;
        let padding = "x".repeat(padding);
        client
            .send(head(
                "POST /",
                &format!("content-length: 4\r\nexpect: 100-continue\r\nx-padding: {padding}\r\n"),
            ))
            .await;
        let mut service = upstream.accept().await;
        service.expect("POST / HTTP/1.1\r\n").await;
        service
            .send("HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\n0123456789")
            .await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        client.expect("0123456789").await;
        // The rest of the head, and there may be a body.
        service.head().await;
        service.send("0123456789").await;
        client.expect("0123456789").await;
        client.closed().await;
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
