//! The two budgets of the canary: exact at any concurrency, and neutral about clients that leave.

use std::time::Duration;

use serde_json::json;

use crate::support::*;

const ERRORS_LEFT: &str = "canary_router_error_budget_remaining";
const REQUESTS_LEFT: &str = "canary_router_request_budget_remaining";
const CHOSEN: &str = "Sidecar returns status code 200";
const FORCED: &str = "x-canary: true\r\n";

/// Main and sidecar answer 200; the canary does what `canary` says.
async fn against(
    canary: impl Fn(&Received) -> Vec<Step> + Send + Sync + 'static,
    config: serde_json::Value,
) -> Trio {
    Trio::start(
        Upstream::named("main", 200).await,
        Upstream::start(canary).await,
        Upstream::start(asked).await,
        config,
    )
}

fn error_limit(limit: u32) -> serde_json::Value {
    json!({"circuit-breaker": {"error-limit-canary": limit}})
}

/// `count` requests at the same time, each on a connection of its own: who answered what.
async fn burst(trio: &Trio, count: usize) -> Vec<(u16, String)> {
    let address = trio.router.address;
    together((0..count).map(|_| async move {
        let response = get(address, "/", "").await;
        assert!(response.complete);
        (response.status, response.text())
    }))
    .await
}

fn how_many(answers: &[(u16, String)], status: u16, body: &str) -> usize {
    answers
        .iter()
        .filter(|(s, b)| (*s, b.as_str()) == (status, body))
        .count()
}

/// A connection on which a request to the canary is in flight.
async fn in_flight(trio: &Trio, request: &str) -> Client {
    let before = trio.canary.count();
    let mut client = Client::connect(trio.router.address).await;
    client.send(request).await;
    eventually(|| trio.canary.count() > before).await;
    client
}

/// It was once taken for the neutral one that was asked for, before anybody had looked whether it was.
#[tokio::test]
async fn a_101_that_nobody_asked_for_is_an_error() {
    let unasked = b"HTTP/1.1 101 X\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n";
    let trio = against(|_| vec![Step::Write(unasked.to_vec())], error_limit(3)).await;
    for headers in ["", FORCED] {
        let response = get(trio.router.address, "/", headers).await;
        assert_eq!(response.status, 502);
    }
    trio.router.counts(ERRORS_LEFT, 1.0).await;
}

#[tokio::test]
async fn of_100_concurrent_requests_exactly_45_reach_the_canary() {
    let trio = Trio::named(json!({"circuit-breaker": {"request-limit-canary": 45}})).await;
    let answers = burst(&trio, 100).await;
    assert_eq!(how_many(&answers, 200, "canary"), 45);
    assert_eq!(how_many(&answers, 200, "main"), 55);
    let (main, canary, _) = trio.seen();
    assert_eq!((main, canary), (55, 45));
    trio.router.counts(REQUESTS_LEFT, 0.0).await;
    trio.router.counts(&reason(CHOSEN, "canary"), 45.0).await;
    // And never again, nor is the sidecar asked.
    let asked = trio.sidecar.count();
    let answers = burst(&trio, 20).await;
    assert_eq!(how_many(&answers, 200, "main"), 20);
    assert_eq!(trio.canary.count(), 45);
    assert_eq!(trio.sidecar.count(), asked);
}

#[tokio::test]
async fn of_400_requests_in_four_waves_a_canary_that_always_fails_gets_15_and_never_a_16th() {
    let trio = Trio::start(
        Upstream::named("main", 200).await,
        Upstream::named("canary", 500).await,
        Upstream::start(asked).await,
        error_limit(15),
    );
    let mut failed = 0;
    for _wave in 0..4 {
        let answers = burst(&trio, 100).await;
        failed += how_many(&answers, 500, "canary");
        assert_eq!(
            how_many(&answers, 200, "main") + how_many(&answers, 500, "canary"),
            100
        );
        assert!(trio.canary.count() <= 15);
    }
    assert_eq!(failed, 15);
    assert_eq!((trio.main.count(), trio.canary.count()), (385, 15));
    trio.router.counts(ERRORS_LEFT, 0.0).await;
    trio.router.counts(&reason(CHOSEN, "canary"), 15.0).await;
}

#[tokio::test]
async fn a_slow_canary_that_always_fails_gets_no_more_than_the_limit_either() {
    let gate = Gate::shut();
    let waiting = gate.clone();
    let trio = against(
        move |_| [vec![Step::Wait(waiting.clone())], answer(500, "", "canary")].concat(),
        error_limit(15),
    )
    .await;
    let address = trio.router.address;
    // All 100 are decided while nobody knows yet how the 15 will end.
    let clients = together((0..100).map(|_| async move {
        let mut client = Client::connect(address).await;
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        client
    }))
    .await;
    eventually(|| trio.main.count() == 85).await;
    assert_eq!(trio.canary.count(), 15);
    gate.open();
    let answers = together(clients.into_iter().map(|mut client| async move {
        let response = client.response("GET").await.unwrap();
        (response.status, response.text())
    }))
    .await;
    assert_eq!(how_many(&answers, 500, "canary"), 15);
    assert_eq!(how_many(&answers, 200, "main"), 85);
    assert_eq!(trio.canary.count(), 15);
    trio.router.counts(ERRORS_LEFT, 0.0).await;
}

#[tokio::test]
async fn without_limits_everything_may_fail_and_there_is_no_budget_to_show() {
    let trio = Trio::start(
        Upstream::named("main", 200).await,
        Upstream::named("canary", 500).await,
        Upstream::start(asked).await,
        json!({"circuit-breaker": {"error-limit-canary": 0, "request-limit-canary": 0}}),
    );
    let answers = burst(&trio, 60).await;
    assert_eq!(how_many(&answers, 500, "canary"), 60);
    let metrics = trio.router.metrics().await;
    assert!(!metrics.0.contains("_budget_remaining"), "{}", metrics.0);
}

#[tokio::test]
async fn every_status_outside_200_to_299_is_charged() {
    let trio = against(
        |request| {
            let status = request.target()[1..].parse().unwrap();
            answer(status, "", "")
        },
        error_limit(100),
    )
    .await;
    let mut left = 100;
    for status in [200, 201, 204, 206, 299] {
        let response = get(trio.router.address, &format!("/{status}"), "").await;
        assert_eq!(response.status, status);
        trio.router.counts(ERRORS_LEFT, f64::from(left)).await;
    }
    for status in [
        300, 301, 302, 303, 304, 307, 308, 400, 401, 404, 410, 418, 429, 499, 500, 502, 503, 504,
        599,
    ] {
        let response = get(trio.router.address, &format!("/{status}"), "").await;
        assert_eq!(response.status, status);
        left -= 1;
        trio.router.counts(ERRORS_LEFT, f64::from(left)).await;
    }
    assert_eq!(trio.main.count(), 0);
}

#[tokio::test]
async fn a_refused_canary_is_charged() {
    let (main, sidecar) = (
        Upstream::named("main", 200).await,
        Upstream::start(asked).await,
    );
    let router = Router::start(json!({
        "main-target": main.url(),
        "canary-target": format!("http://{}", Upstream::nobody().await),
        "sidecar-url": sidecar.url(),
        "circuit-breaker": {"error-limit-canary": 3}
    }));
    for left in [2.0, 1.0, 0.0] {
        // Nothing of it was sent, so main answers.
        assert_eq!(get(router.address, "/", "").await.text(), "main");
        router.counts(ERRORS_LEFT, left).await;
    }
    assert_eq!(get(router.address, "/", "").await.text(), "main");
    assert_eq!(sidecar.count(), 3);
    router
        .counts(&reason("Canary error limit reached", "main"), 1.0)
        .await;
}

#[tokio::test]
async fn a_canary_that_resets_closes_or_answers_garbage_is_charged() {
    let trio = against(
        |request| match request.target() {
            "/reset" => vec![Step::Reset],
            "/close" => vec![Step::Close],
            "/half" => vec![
                Step::Write(b"HTTP/1.1 200 OK\r\ncontent-".into()),
                Step::Close,
            ],
            _ => vec![
                Step::Write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n".into()),
                Step::Close,
            ],
        },
        error_limit(4),
    )
    .await;
    for (target, left) in [
        ("/reset", 3.0),
        ("/close", 2.0),
        ("/half", 1.0),
        ("/garbage", 0.0),
    ] {
        let response = get(trio.router.address, target, "").await;
        assert_eq!(response.status, 502, "{target}");
        trio.router.counts(ERRORS_LEFT, left).await;
    }
    assert_eq!(get(trio.router.address, "/reset", "").await.text(), "main");
    assert_eq!(trio.seen(), (1, 4, 4));
}

#[tokio::test]
async fn a_canary_that_does_not_answer_in_time_is_charged() {
    let trio = against(
        |_| vec![Step::Hang],
        json!({
            "circuit-breaker": {"error-limit-canary": 1},
            "proxy-client": {"to-main-and-canary": {"timeout": "200ms"}}
        }),
    )
    .await;
    assert_eq!(get(trio.router.address, "/", "").await.status, 504);
    trio.router.counts(ERRORS_LEFT, 0.0).await;
    assert_eq!(get(trio.router.address, "/", "").await.text(), "main");
    assert_eq!(trio.seen(), (1, 1, 1));
}

#[tokio::test]
async fn a_canary_that_dies_in_the_middle_of_a_200_is_charged() {
    let trio = against(
        |request| {
            let head = match request.target() {
                "/length" => "content-length: 100\r\n\r\npart",
                _ => "transfer-encoding: chunked\r\n\r\n4\r\npart\r\n",
            };
            let head = format!("HTTP/1.1 200 OK\r\n{head}");
            let end = match request.header("x-end") {
                Some("reset") => Step::Reset,
                _ => Step::Close,
            };
            // The part is on its way before the end comes.
            let pause = Step::Pause(Duration::from_millis(20));
            vec![Step::Write(head.into_bytes()), pause, end]
        },
        error_limit(4),
    )
    .await;
    let mut left = 4.0;
    for target in ["/length", "/chunked"] {
        for end in ["x-end: reset\r\n", "x-end: close\r\n"] {
            let response = get(trio.router.address, target, end).await;
            assert_eq!(response.status, 200);
            assert!(!response.complete, "cut off as the canary's was");
            left -= 1.0;
            trio.router.counts(ERRORS_LEFT, left).await;
        }
    }
    assert_eq!(get(trio.router.address, "/length", "").await.text(), "main");
}

#[tokio::test]
async fn forced_failures_are_charged_though_never_refused() {
    let trio = Trio::start(
        Upstream::named("main", 200).await,
        Upstream::named("canary", 404).await,
        Upstream::start(asked).await,
        error_limit(3),
    );
    for left in [2.0, 1.0, 0.0, 0.0, 0.0] {
        assert_eq!(get(trio.router.address, "/", FORCED).await.text(), "canary");
        trio.router.counts(ERRORS_LEFT, left).await;
    }
    // What the router would choose itself goes to main now.
    assert_eq!(get(trio.router.address, "/", "").await.text(), "main");
    assert_eq!(trio.seen(), (1, 5, 0));
    trio.router
        .counts(&reason("Canary error limit reached", "main"), 1.0)
        .await;
}

#[tokio::test]
async fn forced_requests_in_flight_reserve_nothing() {
    let gate = Gate::shut();
    let waiting = gate.clone();
    let trio = against(
        move |request| match request.target() {
            "/wait" => [vec![Step::Wait(waiting.clone())], answer(200, "", "canary")].concat(),
            _ => answer(200, "", "canary"),
        },
        error_limit(1),
    )
    .await;
    let mut clients = Vec::new();
    for _ in 0..5 {
        let request = format!("GET /wait HTTP/1.1\r\nhost: a\r\n{FORCED}\r\n");
        clients.push(in_flight(&trio, &request).await);
    }
    trio.router.counts(ERRORS_LEFT, 1.0).await;
    assert_eq!(get(trio.router.address, "/", "").await.text(), "canary");
    gate.open();
    for mut client in clients {
        assert_eq!(client.response("GET").await.unwrap().text(), "canary");
    }
    trio.router.counts(ERRORS_LEFT, 1.0).await;
}

#[tokio::test]
async fn forced_requests_take_no_request_token() {
    let trio = Trio::named(json!({"circuit-breaker": {"request-limit-canary": 1}})).await;
    for _ in 0..5 {
        assert_eq!(get(trio.router.address, "/", FORCED).await.text(), "canary");
        trio.router.counts(REQUESTS_LEFT, 1.0).await;
    }
    assert_eq!(get(trio.router.address, "/", "").await.text(), "canary");
    trio.router.counts(REQUESTS_LEFT, 0.0).await;
    assert_eq!(get(trio.router.address, "/", "").await.text(), "main");
    assert_eq!(get(trio.router.address, "/", FORCED).await.text(), "canary");
    assert_eq!(trio.seen(), (1, 7, 1));
}

#[tokio::test]
async fn clients_that_leave_while_the_canary_thinks_cost_nothing() {
    let trio = against(
        |request| match request.target() {
            "/hang" => vec![Step::Hang],
            "/half" => vec![
                Step::Write(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf".into()),
                Step::Hang,
            ],
            _ => answer(200, "", "canary"),
        },
        error_limit(3),
    )
    .await;
    for _round in 0..3 {
        let mut clients = Vec::new();
        for target in ["/hang", "/half", "/hang"] {
            let request = format!("GET {target} HTTP/1.1\r\nhost: a\r\n\r\n");
            clients.push(in_flight(&trio, &request).await);
        }
        trio.router.counts(ERRORS_LEFT, 0.0).await;
        // No more may be in flight; main answers.
        assert_eq!(get(trio.router.address, "/", "").await.text(), "main");
        drop(clients);
        trio.router.counts(ERRORS_LEFT, 3.0).await;
        // The requests were cancelled, not left to themselves.
        eventually(|| trio.canary.connections().1 == 0).await;
    }
    let answers = burst(&trio, 1).await;
    assert_eq!(how_many(&answers, 200, "canary"), 1);
    trio.router.counts(ERRORS_LEFT, 3.0).await;
}

#[tokio::test]
async fn a_client_that_resets_in_the_middle_of_its_upload_costs_nothing() {
    let trio = against(
        |_| answer(200, "", "canary"),
        json!({
            "circuit-breaker": {"error-limit-canary": 2},
            // So little that the upload is under way to the canary when it breaks off.
            "sidecar": {"max-body": 4}
        }),
    )
    .await;
    for forced in ["", FORCED] {
        let before = trio.canary.connections().0;
        let mut client = Client::connect(trio.router.address).await;
        client
            .send(format!(
                "POST / HTTP/1.1\r\nhost: a\r\n{forced}content-length: 100000\r\n\r\n{}",
                "x".repeat(50_000)
            ))
            .await;
        eventually(|| trio.canary.connections().0 > before).await;
        socket2::SockRef::from(client.0.get_ref())
            .set_linger(Some(Duration::ZERO))
            .unwrap();
        drop(client);
        eventually(|| trio.canary.connections().1 == 0).await;
    }
    for why in [CHOSEN, "Routed via X-Canary header value: true"] {
        trio.router.counts(&reason(why, "canary"), 1.0).await;
    }
    trio.router.counts(ERRORS_LEFT, 2.0).await;
    assert_eq!(trio.canary.count(), 0);
    assert_eq!(get(trio.router.address, "/", "").await.text(), "canary");
}

#[tokio::test]
async fn an_upload_that_the_client_gets_wrong_costs_nothing() {
    let trio = against(
        |_| answer(200, "", "canary"),
        json!({"circuit-breaker": {"error-limit-canary": 2}, "sidecar": {"max-body": 4}}),
    )
    .await;
    for forced in ["", FORCED] {
        let mut client = Client::connect(trio.router.address).await;
        let response = client
            .roundtrip(
                "POST",
                format!(
                    "POST / HTTP/1.1\r\nhost: a\r\n{forced}transfer-encoding: chunked\r\n\r\n\
                     8\r\nall good\r\nzz\r\n"
                ),
            )
            .await;
        assert_eq!(response.status, 400);
    }
    for why in [CHOSEN, "Routed via X-Canary header value: true"] {
        trio.router.counts(&reason(why, "canary"), 1.0).await;
    }
    trio.router.counts(ERRORS_LEFT, 2.0).await;
    assert_eq!(trio.canary.count(), 0);
}

#[tokio::test]
async fn a_client_that_reads_nothing_costs_nothing() {
    let trio = against(
        |_| answer(200, "", &"x".repeat(32 << 20)),
        json!({
            "circuit-breaker": {"error-limit-canary": 1},
            "router-server": {"write-timeout": "200ms"}
        }),
    )
    .await;
    let _deaf = in_flight(&trio, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    trio.router.counts(ERRORS_LEFT, 0.0).await;
    trio.router.counts(ERRORS_LEFT, 1.0).await;
    trio.router.counts(&reason(CHOSEN, "canary"), 1.0).await;
    assert_eq!(trio.seen(), (0, 1, 1));
}

#[tokio::test]
async fn a_good_answer_gives_its_reservation_back_however_it_ends() {
    let trio = against(
        |request| {
            let rest = match request.target() {
                "/length" => "content-length: 4\r\n\r\nbody",
                "/empty" => "content-length: 0\r\n\r\n",
                "/chunked" => "transfer-encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
                "/trailers" => {
                    "trailer: x-sum\r\ntransfer-encoding: chunked\r\n\r\n\
                     4\r\nbody\r\n0\r\nx-sum: 1\r\n\r\n"
                }
                "/head" => "content-length: 4\r\n\r\n",
                _ => "x-until: close\r\n\r\nbody",
            };
            let hints = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n";
            let answer = format!("{hints}HTTP/1.1 200 OK\r\n{rest}");
            match request.target() {
                "/close" => vec![Step::Write(answer.into()), Step::Close],
                _ => vec![Step::Write(answer.into())],
            }
        },
        error_limit(1),
    )
    .await;
    let ends = [
        "/length",
        "/empty",
        "/chunked",
        "/trailers",
        "/head",
        "/close",
    ];
    for target in ends {
        let method = match target {
            "/head" => "HEAD",
            _ => "GET",
        };
        let response = request(trio.router.address, method, target, "", "").await;
        assert_eq!(response.status, 200, "{target}");
        assert!(response.complete, "{target}");
        trio.router.counts(ERRORS_LEFT, 1.0).await;
    }
    assert_eq!(trio.seen(), (0, ends.len(), ends.len()));
}

#[tokio::test]
async fn a_101_is_neutral() {
    let trio = against(
        |_| {
            let head =
                "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
            vec![Step::Write(head.into()), Step::Echo]
        },
        error_limit(1),
    )
    .await;
    for _ in 0..3 {
        let mut client = Client::connect(trio.router.address).await;
        let response = client
            .roundtrip(
                "GET",
                "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n",
            )
            .await;
        assert_eq!(response.status, 101);
        client.send("over").await;
        let mut echoed = [0; 4];
        soon(tokio::io::AsyncReadExt::read_exact(
            &mut client.0,
            &mut echoed,
        ))
        .await
        .unwrap();
        assert_eq!(&echoed, b"over");
        drop(client);
        trio.router.counts(ERRORS_LEFT, 1.0).await;
    }
    assert_eq!(trio.seen(), (0, 3, 3));
}

#[tokio::test]
async fn near_the_limit_requests_go_to_main_rather_than_wait_or_fail() {
    let gate = Gate::shut();
    let waiting = gate.clone();
    let trio = against(
        move |_| [vec![Step::Wait(waiting.clone())], answer(200, "", "canary")].concat(),
        error_limit(3),
    )
    .await;
    let mut clients = Vec::new();
    for left in [2.0, 1.0, 0.0] {
        clients.push(in_flight(&trio, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await);
        trio.router.counts(ERRORS_LEFT, left).await;
    }
    let answers = burst(&trio, 20).await;
    assert_eq!(how_many(&answers, 200, "main"), 20);
    let demoted = "Sidecar returns status code 200, but canary limit reached";
    trio.router.counts(&reason(demoted, "main"), 20.0).await;
    gate.open();
    for mut client in clients {
        let response = client.response("GET").await.unwrap();
        assert_eq!((response.status, response.text().as_str()), (200, "canary"));
    }
    // They succeeded: all that was reserved is free again.
    trio.router.counts(ERRORS_LEFT, 3.0).await;
    assert_eq!(get(trio.router.address, "/", "").await.text(), "canary");
}

#[tokio::test]
async fn against_a_canary_that_fails_now_and_then_every_client_gets_an_answer() {
    let turn = std::sync::atomic::AtomicUsize::new(0);
    let trio = against(
        move |_| match turn.fetch_add(1, std::sync::atomic::Ordering::Relaxed) % 3 {
            0 => answer(503, "", "canary"),
            _ => answer(200, "", "canary"),
        },
        error_limit(5),
    )
    .await;
    let mut answers = Vec::new();
    for _wave in 0..4 {
        answers.extend(burst(&trio, 50).await);
    }
    let all_are_answers = |answers: &[(u16, String)]| {
        let (main, good, bad) = (
            how_many(answers, 200, "main"),
            how_many(answers, 200, "canary"),
            how_many(answers, 503, "canary"),
        );
        assert_eq!(main + good + bad, answers.len());
        assert_eq!(trio.canary.count(), good + bad);
        assert!(bad <= 5, "{bad}");
    };
    all_are_answers(&answers);
    // Alone each one is let through, until the rest of the budget is used up too.
    for _ in 0..15 {
        answers.extend(burst(&trio, 1).await);
    }
    all_are_answers(&answers);
    assert_eq!(how_many(&answers, 503, "canary"), 5);
    trio.router.counts(ERRORS_LEFT, 0.0).await;
}

#[tokio::test]
async fn a_request_token_is_not_given_back_whatever_becomes_of_the_request() {
    let trio = against(
        |request| match request.target() {
            "/hang" => vec![Step::Hang],
            "/reset" => vec![Step::Reset],
            _ => answer(500, "", "canary"),
        },
        json!({"circuit-breaker": {"request-limit-canary": 3}}),
    )
    .await;
    let client = in_flight(&trio, "GET /hang HTTP/1.1\r\nhost: a\r\n\r\n").await;
    trio.router.counts(REQUESTS_LEFT, 2.0).await;
    drop(client);
    eventually(|| trio.canary.connections().1 == 0).await;
    trio.router.counts(&reason(CHOSEN, "canary"), 1.0).await;
    trio.router.counts(REQUESTS_LEFT, 2.0).await;
    assert_eq!(get(trio.router.address, "/reset", "").await.status, 502);
    trio.router.counts(REQUESTS_LEFT, 1.0).await;
    assert_eq!(get(trio.router.address, "/", "").await.status, 500);
    trio.router.counts(REQUESTS_LEFT, 0.0).await;
    assert_eq!(get(trio.router.address, "/", "").await.text(), "main");
}

#[tokio::test]
async fn a_request_token_is_not_given_back_for_a_canary_that_refuses() {
    let (main, sidecar) = (
        Upstream::named("main", 200).await,
        Upstream::start(asked).await,
    );
    let router = Router::start(json!({
        "main-target": main.url(),
        "canary-target": format!("http://{}", Upstream::nobody().await),
        "sidecar-url": sidecar.url(),
        "circuit-breaker": {"request-limit-canary": 2}
    }));
    for left in [1.0, 0.0, 0.0] {
        assert_eq!(get(router.address, "/", "").await.text(), "main");
        router.counts(REQUESTS_LEFT, left).await;
    }
    assert_eq!(sidecar.count(), 2);
    router
        .counts(&reason("Canary request limit reached", "main"), 1.0)
        .await;
}

/// Forced to the canary by hand, with an upload that is still open when the canary's 200 begins.
async fn uploading_to_the_canary(config: serde_json::Value) -> (Router, Client, Client) {
    let canary = ByHand::start().await;
    let router = router_with(&canary.url(), with(error_limit(5), config));
    let mut client = Client::connect(router.address).await;
    client
        .send("POST / HTTP/1.1\r\nhost: h\r\nx-canary: true\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n")
        .await;
    let mut upstream = canary.accept().await;
    upstream.head().await;
    upstream.expect("5\r\nhello\r\n").await;
    (router, client, upstream)
}

fn with(mut file: serde_json::Value, more: serde_json::Value) -> serde_json::Value {
    merge(&mut file, more);
    file
}

/// The client's break made hyper break the exchange off, and that was taken for the canary's failure.
#[tokio::test]
async fn a_client_that_breaks_its_upload_off_behind_a_200_costs_the_canary_nothing() {
    for malformed in [true, false] {
        let (router, mut client, mut upstream) = uploading_to_the_canary(json!({})).await;
        upstream
            .send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhal")
            .await;
        client.head().await;
        match malformed {
            true => client.send("no chunk size\r\n").await,
            false => client.reset(),
        }
        // The canary's connection ends, and with it the request.
        upstream.rest().await;
        router
            .counts(
                "canary_router_request_count{reason=\"Routed via X-Canary header value: true\",target=\"canary\"}",
                1.0,
            )
            .await;
        let metrics = router.metrics().await;
        assert_eq!(metrics.value(ERRORS_LEFT), 5.0, "malformed: {malformed}");
        assert_eq!(
            metrics.value(
                "canary_router_upstream_failures_total{kind=\"body_cut\",target=\"canary\"}"
            ),
            0.0
        );
    }
}

/// The wait for the response ran on while there was nothing to respond to yet.
#[tokio::test]
async fn while_a_client_pauses_its_upload_the_canary_is_not_late() {
    let (router, mut client, mut upstream) = uploading_to_the_canary(json!({
        "router-server": {"read-timeout": "10s"},
        "proxy-client": {"to-main-and-canary": {"timeout": "150ms"}}
    }))
    .await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    client.send("0\r\n\r\n").await;
    upstream.expect("0\r\n\r\n").await;
    upstream
        .send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        .await;
    assert_eq!(client.response("POST").await.unwrap().status, 200);
    assert_eq!(router.metrics().await.value(ERRORS_LEFT), 5.0);
}

/// hyper reads no further while something unread lies behind a request, so it saw no end either, and
/// the reservation was held for as long as the canary kept quiet.
#[tokio::test]
async fn a_client_that_leaves_is_noticed_although_it_sent_more_than_its_request() {
    let trio = against(
        |_| vec![Step::Hang],
        with(
            error_limit(1),
            json!({"proxy-client": {"to-main-and-canary": {"timeout": "1h"}}}),
        ),
    )
    .await;
    let client = in_flight(&trio, "GET / HTTP/1.1\r\nhost: h\r\n\r\n\r\n").await;
    trio.router.counts(ERRORS_LEFT, 0.0).await;
    drop(client);
    trio.router.counts(ERRORS_LEFT, 1.0).await;
    eventually(|| trio.canary.connections().1 == 0).await;
}
