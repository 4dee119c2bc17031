//! A canary that cannot be reached: main answers. One that got the request: nobody else gets it.

use serde_json::{Value, json};

use crate::support::*;

const FORCED: &str = "x-canary: true\r\n";
const BY_HEADER: &str = "Routed via X-Canary header value: true";
const BY_SIDECAR: &str = "Sidecar returns status code 200";
const ANSWERED: &str =
    "canary_router_fallbacks_total{from=\"canary\",outcome=\"answered\",to=\"main\"}";
const FAILED: &str =
    "canary_router_fallbacks_total{from=\"canary\",outcome=\"failed\",to=\"main\"}";

/// The series that counts failures of an upstream.
fn failures(target: &str, kind: &str) -> String {
    format!("canary_router_upstream_failures_total{{kind=\"{kind}\",target=\"{target}\"}}")
}

/// A router to `main` and a canary at `canary`, with a sidecar that says canary.
async fn router(main: &Upstream, canary: &str, config: Value) -> (Router, Upstream) {
    let sidecar = Upstream::start(asked).await;
    let mut file = json!({
        "main-target": main.url(),
        "canary-target": canary,
        "sidecar-url": sidecar.url()
    });
    merge(&mut file, config);
    (Router::start(file), sidecar)
}

async fn nobody() -> String {
    format!("http://{}", Upstream::nobody().await)
}

/// Something to see whether a body came through whole and in order.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 7 + i / 251) as u8).collect()
}

async fn post(router: &Router, headers: &str, body: &[u8]) -> Response {
    let head = format!("POST /path?q=1 HTTP/1.1\r\nhost: a\r\n{headers}\r\n");
    let mut client = Client::connect(router.address).await;
    client
        .roundtrip("POST", [head.as_bytes(), body].concat())
        .await
}

#[tokio::test]
async fn a_request_to_a_canary_that_refuses_is_answered_by_main() {
    let main = Upstream::named("main", 201).await;
    let (router, sidecar) = router(&main, &nobody().await, json!({})).await;
    for headers in ["", FORCED] {
        let response = get(router.address, "/path?q=1", headers).await;
        assert_eq!((response.status, response.text().as_str()), (201, "main"));
    }
    for request in main.seen() {
        assert_eq!(request.start_line(), "GET /path?q=1 HTTP/1.1");
        assert_eq!(
            request.header("host"),
            Some(main.address.to_string().as_str()),
            "main's own, not the canary's"
        );
        assert_eq!(request.header("x-forwarded-for"), Some("127.0.0.1"));
    }
    assert_eq!((main.count(), sidecar.count()), (2, 1));
    router.counts(ANSWERED, 2.0).await;
    router.counts(FAILED, 0.0).await;
    router.counts(&failures("canary", "refused"), 2.0).await;
    // It was the canary's request, and the canary's failure.
    router.counts(&reason(BY_HEADER, "canary"), 1.0).await;
    router.counts(&reason(BY_SIDECAR, "canary"), 1.0).await;
}

#[tokio::test]
async fn main_gets_the_whole_body_of_a_request_that_the_canary_refused() {
    let main = Upstream::named("main", 200).await;
    let (router, _sidecar) = router(
        &main,
        &nobody().await,
        json!({"sidecar": {"max-body": "64KiB"}}),
    )
    .await;
    let mut sent = 0;
    for length in [1, 1000, 64 << 10, 1 << 20] {
        let body = pattern(length);
        // With the sidecar before it, and without.
        for headers in ["", FORCED] {
            let with_length = format!("{headers}content-length: {length}\r\n");
            let response = post(&router, &with_length, &body).await;
            assert_eq!((response.status, response.text().as_str()), (200, "main"));
            let seen = main.seen().pop().unwrap();
            assert!(seen.body == body, "{length} bytes, {headers:?}");
            assert_eq!(seen.header("content-length"), Some(&*length.to_string()));

            let pieces: Vec<&[u8]> = body.chunks(length.div_ceil(5)).collect();
            let chunks = chunked(&pieces, "x-sum: 1\r\n");
            let in_chunks = format!("{headers}trailer: x-sum\r\ntransfer-encoding: chunked\r\n");
            let response = post(&router, &in_chunks, &chunks).await;
            assert_eq!((response.status, response.text().as_str()), (200, "main"));
            let seen = main.seen().pop().unwrap();
            assert!(seen.body == body, "{length} bytes in chunks, {headers:?}");
            assert_eq!(seen.trailers.to_lowercase(), "x-sum: 1\r\n");
            sent += 2;
        }
    }
    assert_eq!(main.count(), sent);
    router.counts(ANSWERED, sent as f64).await;
}

#[tokio::test]
async fn a_canary_whose_name_has_no_address_falls_back_as_well() {
    let main = Upstream::named("main", 200).await;
    let (router, _sidecar) = router(&main, "http://name.invalid", json!({})).await;
    for headers in ["", FORCED] {
        let with_length = format!("{headers}content-length: 4\r\n");
        let response = post(&router, &with_length, b"body").await;
        assert_eq!((response.status, response.text().as_str()), (200, "main"));
        assert_eq!(main.seen().pop().unwrap().text(), "body");
    }
    router.counts(ANSWERED, 2.0).await;
    router.counts(&reason(BY_HEADER, "canary"), 1.0).await;
}

#[tokio::test]
async fn a_canary_that_cannot_be_connected_to_in_time_falls_back_as_well() {
    let main = Upstream::named("main", 200).await;
    let deaf = Deaf::start();
    let (router, _sidecar) = router(
        &main,
        &deaf.url(),
        json!({"proxy-client": {"to-main-and-canary": {"connect-timeout": "200ms"}}}),
    )
    .await;
    let response = post(&router, &format!("{FORCED}content-length: 4\r\n"), b"body").await;
    assert_eq!((response.status, response.text().as_str()), (200, "main"));
    assert_eq!(main.only().text(), "body");
    router.counts(ANSWERED, 1.0).await;
    router
        .counts(&failures("canary", "connect_timeout"), 1.0)
        .await;
}

#[tokio::test]
async fn the_canary_is_charged_for_what_main_answered_instead() {
    let main = Upstream::named("main", 200).await;
    let limits = json!({"circuit-breaker": {"error-limit-canary": 2, "request-limit-canary": 9}});
    let (router, sidecar) = router(&main, &nobody().await, limits).await;
    for headers in ["", FORCED, ""] {
        let response = get(router.address, "/", headers).await;
        assert_eq!((response.status, response.text().as_str()), (200, "main"));
    }
    assert_eq!(sidecar.count(), 1, "the third was one too many");
    router
        .counts("canary_router_error_budget_remaining", 0.0)
        .await;
    router
        .counts("canary_router_request_budget_remaining", 8.0)
        .await;
    router
        .counts(&reason("Canary error limit reached", "main"), 1.0)
        .await;
    router.counts(ANSWERED, 2.0).await;
}

#[tokio::test]
async fn what_falls_back_to_a_main_that_refuses_too_is_a_502() {
    let canary = nobody().await;
    let sidecar = Upstream::start(asked).await;
    let router = Router::start(json!({
        "main-target": nobody().await,
        "canary-target": canary,
        "sidecar-url": sidecar.url()
    }));
    assert_eq!(get(router.address, "/", "").await.status, 502);
    router.counts(FAILED, 1.0).await;
    router.counts(ANSWERED, 0.0).await;
    router.counts(&failures("canary", "refused"), 1.0).await;
    router.counts(&failures("main", "refused"), 1.0).await;
}

#[tokio::test]
async fn with_replay_off_a_canary_that_cannot_be_reached_is_a_502_or_504() {
    let main = Upstream::named("main", 200).await;
    let deaf = Deaf::start();
    for (canary, status) in [(nobody().await, 502), (deaf.url(), 504)] {
        let (router, _sidecar) = router(
            &main,
            &canary,
            json!({
                "fallback": {"replay": "off"},
                "proxy-client": {"to-main-and-canary": {"connect-timeout": "200ms"}}
            }),
        )
        .await;
        for headers in ["", FORCED] {
            let with_length = format!("{headers}content-length: 4\r\n");
            let response = post(&router, &with_length, b"body").await;
            assert_eq!(response.status, status);
            assert!(response.complete);
        }
        router.counts(ANSWERED, 0.0).await;
        router.counts(FAILED, 0.0).await;
        router.counts(&reason(BY_HEADER, "canary"), 1.0).await;
        router.counts(&reason(BY_SIDECAR, "canary"), 1.0).await;
    }
    assert_eq!(main.connections().0, 0);
}

#[tokio::test]
async fn a_main_that_refuses_is_a_502_and_the_canary_does_not_stand_in() {
    let canary = Upstream::named("canary", 200).await;
    let router = Router::start(json!({
        "main-target": nobody().await, "canary-target": canary.url()
    }));
    for headers in ["", "x-canary: false\r\n"] {
        let response = get(router.address, "/", headers).await;
        assert_eq!(response.status, 502);
        assert!(response.complete);
    }
    assert_eq!(canary.connections().0, 0);
    router.counts(&failures("main", "refused"), 2.0).await;
    router.counts(ANSWERED, 0.0).await;
    router.counts(FAILED, 0.0).await;
}

#[tokio::test]
async fn what_the_canary_got_is_not_replayed() {
    let main = Upstream::named("main", 200).await;
    let canary = Upstream::start(|request| match request.target() {
        "/reset" => vec![Step::Reset],
        "/close" => vec![Step::Close],
        "/half" => vec![Step::Write(b"HTTP/1.1 200 OK\r\nx".into()), Step::Close],
        "/garbage" => vec![Step::Write(b"\0\x01\x02\r\n\r\n".into()), Step::Close],
        _ => vec![Step::Hang],
    })
    .await;
    let (router, _sidecar) = router(
        &main,
        &canary.url(),
        json!({"proxy-client": {"to-main-and-canary": {"timeout": "200ms"}}}),
    )
    .await;
    let mut sent = 0;
    for (target, status) in [
        ("/reset", 502),
        ("/close", 502),
        ("/half", 502),
        ("/garbage", 502),
        ("/hang", 504),
    ] {
        for (method, body) in [("GET", ""), ("PUT", ""), ("POST", "body")] {
            for headers in ["", FORCED] {
                let response = request(router.address, method, target, headers, body).await;
                assert_eq!(response.status, status, "{method} {target}");
                assert!(response.complete);
                sent += 1;
            }
        }
    }
    assert_eq!(canary.count(), sent, "each came to the canary once");
    assert_eq!(main.connections().0, 0);
    router.counts(ANSWERED, 0.0).await;
    router.counts(FAILED, 0.0).await;
    router.counts(&failures("canary", "timeout"), 6.0).await;
}

#[tokio::test]
async fn an_error_answer_of_the_canary_is_the_answer() {
    let main = Upstream::named("main", 200).await;
    let canary = Upstream::named("canary", 503).await;
    let (router, _sidecar) = router(&main, &canary.url(), json!({})).await;
    for headers in ["", FORCED] {
        let response = get(router.address, "/", headers).await;
        assert_eq!((response.status, response.text().as_str()), (503, "canary"));
    }
    assert_eq!(main.count(), 0);
    router.counts(ANSWERED, 0.0).await;
}

#[tokio::test]
async fn a_main_that_is_silent_or_deaf_is_a_504() {
    let silent = Upstream::start(|_| vec![Step::Hang]).await;
    let deaf = Deaf::start();
    let canary = Upstream::named("canary", 200).await;
    for (main, kind) in [(silent.url(), "timeout"), (deaf.url(), "connect_timeout")] {
        let router = Router::start(json!({
            "main-target": main,
            "canary-target": canary.url(),
            "proxy-client": {
                "to-main-and-canary": {"timeout": "300ms", "connect-timeout": "200ms"}
            }
        }));
        let response = get(router.address, "/", "").await;
        assert_eq!(response.status, 504, "{kind}");
        router.counts(&failures("main", kind), 1.0).await;
    }
    assert_eq!(canary.connections().0, 0);
}

#[tokio::test]
async fn the_timeout_bounds_connecting_and_answering_together() {
    let deaf = Deaf::start();
    let canary = Upstream::named("canary", 200).await;
    // Nothing says how long connecting may take; the default is no longer than the timeout.
    let router = Router::start(json!({
        "main-target": deaf.url(),
        "canary-target": canary.url(),
        "proxy-client": {"to-main-and-canary": {"timeout": "200ms"}}
    }));
    assert_eq!(get(router.address, "/", "").await.status, 504);
}

#[tokio::test]
async fn a_fallback_to_a_main_that_is_silent_is_a_504() {
    let silent = Upstream::start(|_| vec![Step::Hang]).await;
    let (router, _sidecar) = router(
        &silent,
        &nobody().await,
        json!({"proxy-client": {"to-main-and-canary": {"timeout": "200ms"}}}),
    )
    .await;
    assert_eq!(get(router.address, "/", "").await.status, 504);
    router.counts(FAILED, 1.0).await;
    router.counts(&failures("main", "timeout"), 1.0).await;
}

#[tokio::test]
async fn an_upload_that_breaks_off_reaches_nobody_whole_though_the_canary_refuses() {
    let main = Upstream::named("main", 200).await;
    let (router, _sidecar) = router(&main, &nobody().await, json!({})).await;
    let mut client = Client::connect(router.address).await;
    client
        .send(format!(
            "POST / HTTP/1.1\r\nhost: a\r\n{FORCED}content-length: 10\r\n\r\nhalf"
        ))
        .await;
    eventually(|| main.connections().0 == 1).await;
    drop(client);
    eventually(|| main.connections().1 == 0).await;
    assert_eq!(main.count(), 0);
    router.counts(&reason(BY_HEADER, "canary"), 1.0).await;
}

#[tokio::test]
async fn a_canary_that_went_away_between_two_requests_falls_back_as_well() {
    let main = Upstream::named("main", 200).await;
    let canary = Upstream::named("canary", 200).await;
    let (router, _sidecar) = router(
        &main,
        &canary.url(),
        json!({"router-server": {"workers": 1}}),
    )
    .await;
    let with_length = format!("{FORCED}content-length: 4\r\n");
    // From here on a connection to the canary is kept.
    let response = post(&router, &with_length, b"body").await;
    assert_eq!((response.status, response.text().as_str()), (200, "canary"));
    assert_eq!(canary.connections(), (1, 1));
    canary.stop();
    eventually(|| canary.connections().1 == 0).await;
    // The only worker has looked at its sockets in between, and knows.
    for _ in 0..3 {
        get(router.address, "/application/health", "").await;
    }
    let response = post(&router, &with_length, b"body").await;
    assert_eq!((response.status, response.text().as_str()), (200, "main"));
    assert_eq!(main.only().text(), "body");
    router.counts(ANSWERED, 1.0).await;
}
