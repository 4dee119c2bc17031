//! How connections to clients and upstreams are used, and given up.

use std::time::Duration;

use crate::support::*;

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
