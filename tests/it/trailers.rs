//! Trailers pass, however they are announced.

use serde_json::json;

use crate::support::*;

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
