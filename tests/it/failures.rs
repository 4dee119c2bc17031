//! Upstreams that fail: the client is told so, never more and never less.

use std::time::Duration;

use crate::support::*;

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

/// Whichever of the two is believed, somebody behind us may believe the other one (RFC 9112 section
/// 6.3). The length used to win, and half of the content looked whole.
#[tokio::test]
async fn a_response_with_two_ways_to_find_its_end_is_502() {
    let upstream = Upstream::start(|_| {
        vec![Step::Write(
            b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n\
              a\r\n0123456789\r\n0\r\n\r\n"
                .to_vec(),
        )]
    })
    .await;
    let router = router_to(&upstream.url());
    assert_eq!(get(router.address, "/", "").await.status, 502);
}
