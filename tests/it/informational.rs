//! Informational responses pass, and only to those who know them.

use serde_json::json;

use crate::support::*;

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
