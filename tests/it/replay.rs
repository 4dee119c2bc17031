//! `fallback.replay: "failures"`: main makes good what the canary did badly, and the client does not notice.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::*;

const FORCED: &str = "x-canary: true\r\n";
const ANSWERED: &str =
    "canary_router_fallbacks_total{from=\"canary\",outcome=\"answered\",to=\"main\"}";
const FAILED: &str =
    "canary_router_fallbacks_total{from=\"canary\",outcome=\"failed\",to=\"main\"}";
const OVER_BUDGET: &str =
    "canary_router_fallbacks_total{from=\"canary\",outcome=\"over_budget\",to=\"main\"}";
const ERRORS_LEFT: &str = "canary_router_error_budget_remaining";
const KIB: usize = 1 << 10;

/// The series that counts failures of an upstream.
fn failures(target: &str, kind: &str) -> String {
    format!("canary_router_upstream_failures_total{{kind=\"{kind}\",target=\"{target}\"}}")
}

/// Replays all that may be; for an answer there are 300 ms.
fn always() -> Value {
    json!({
        "fallback": {"replay": "failures", "budget": 100},
        "proxy-client": {"to-main-and-canary": {"timeout": "300ms"}}
    })
}

fn and(mut config: Value, more: Value) -> Value {
    merge(&mut config, more);
    config
}

fn write(text: &str) -> Step {
    Step::Write(text.as_bytes().into())
}

/// Does what the path says; a number is a status.
fn bad(request: &Received) -> Vec<Step> {
    match request.target() {
        "/reset" => vec![Step::Reset],
        "/close" => vec![Step::Close],
        "/half" => vec![write("HTTP/1.1 200 OK\r\nx"), Step::Close],
        "/garbage" => vec![write("\0\x01\x02\r\n\r\n"), Step::Close],
        "/hang" => vec![Step::Hang],
        status => answer(status[1..].parse().unwrap(), "x-from: canary\r\n", "canary"),
    }
}

async fn against(
    canary: impl Fn(&Received) -> Vec<Step> + Send + Sync + 'static,
    config: Value,
) -> Trio {
    Trio::start(
        Upstream::start(|_| answer(203, "x-from: main\r\nx-from: it\r\n", "main")).await,
        Upstream::start(canary).await,
        Upstream::start(asked).await,
        config,
    )
}

#[track_caller]
fn assert_mains(response: &Response, method: &str, why: &str) {
    assert_eq!(response.status, 203, "{method} {why}");
    assert!(response.complete, "{method} {why}");
    assert_eq!(response.message.all("x-from"), ["main", "it"]);
    assert_eq!(response.header("content-length"), Some("4"));
    let body = if method == "HEAD" { "" } else { "main" };
    assert_eq!(response.text(), body, "{method} {why}");
}

const WAYS_TO_FAIL: [(&str, u16); 9] = [
    ("/reset", 502),
    ("/close", 502),
    ("/half", 502),
    ("/garbage", 502),
    ("/hang", 504),
    ("/500", 500),
    ("/502", 502),
    ("/503", 503),
    ("/504", 504),
];

#[tokio::test]
async fn whatever_the_canary_does_badly_main_does_well() {
    let trio = against(bad, always()).await;
    let mut replayed = 0;
    for (target, status) in WAYS_TO_FAIL {
        for (method, headers, body) in [
            ("GET", "", ""),
            ("HEAD", "", ""),
            ("OPTIONS", FORCED, ""),
            ("PUT", FORCED, "body"),
            ("DELETE", "", ""),
            ("POST", "idempotency-key: \"1\"\r\n", "body"),
            ("PATCH", "Idempotency-Key: 2\r\n", "body"),
        ] {
            let response = request(trio.router.address, method, target, headers, body).await;
            assert_mains(&response, method, target);
            let main = trio.main.seen().pop().unwrap();
            let canary = trio.canary.seen().pop().unwrap();
            assert_eq!(main.start_line(), format!("{method} {target} HTTP/1.1"));
            assert_eq!((main.text().as_str(), canary.text().as_str()), (body, body));
            assert_eq!(main.header("host"), Some(&*trio.main.address.to_string()));
            replayed += 1;
        }
        for method in ["POST", "PATCH"] {
            let response = request(trio.router.address, method, target, "", "body").await;
            assert_eq!(response.status, status, "{method} {target}");
        }
    }
    assert_eq!(trio.main.count(), replayed);
    assert_eq!(trio.canary.count(), WAYS_TO_FAIL.len() * 9, "once each");
    trio.router.counts(ANSWERED, replayed as f64).await;
    for (kind, times) in [("reset", 18.0), ("malformed", 18.0), ("timeout", 9.0)] {
        trio.router.counts(&failures("canary", kind), times).await;
    }
}

#[tokio::test]
async fn what_is_no_failure_status_is_the_canarys_answer() {
    let trio = against(bad, always()).await;
    for status in [200, 304, 400, 404, 429, 499, 501, 505, 599] {
        let response = get(trio.router.address, &format!("/{status}"), "").await;
        assert_eq!(response.status, status);
        assert_eq!(response.header("x-from"), Some("canary"));
    }
    assert_eq!(trio.main.count(), 0);
    let chosen = json!({"fallback": {"statuses": [404], "methods": ["POST"]}});
    let trio = against(bad, and(always(), chosen)).await;
    for (method, target, status) in [
        ("POST", "/404", 203),
        ("POST", "/500", 500),
        ("GET", "/404", 404),
        ("POST", "/reset", 203),
        ("GET", "/reset", 502),
    ] {
        let response = request(trio.router.address, method, target, "", "").await;
        assert_eq!(response.status, status, "{method} {target}");
    }
}

/// Sends a PUT: whole, or the body when it is told to go on.
async fn put(trio: &Trio, target: &str, headers: &str, body: &[u8]) -> Response {
    let head = format!("PUT {target} HTTP/1.1\r\nhost: a\r\nte: trailers\r\n{headers}\r\n");
    let mut client = Client::connect(trio.router.address).await;
    if headers.contains("expect") {
        client.send(head).await;
        client.expect("HTTP/1.1 100 Continue\r\n\r\n").await;
        client.roundtrip("PUT", body).await
    } else {
        client
            .roundtrip("PUT", [head.as_bytes(), body].concat())
            .await
    }
}

#[tokio::test]
async fn bodies_up_to_max_body_arrive_whole_at_main() {
    let trio = against(bad, always()).await;
    for target in ["/500", "/reset", "/hang"] {
        for length in [0, 1, 10 * KIB, 64 * KIB] {
            let body = noise(length);
            // With a sidecar before them, and without.
            for headers in ["", FORCED, "expect: 100-continue\r\n"] {
                if length == 0 && headers.starts_with("expect") {
                    continue;
                }
                let with_length = format!("{headers}content-length: {length}\r\n");
                let response = put(&trio, target, &with_length, &body).await;
                assert_mains(&response, "PUT", target);
                let main = trio.main.seen().pop().unwrap();
                assert_same(&main.body, &body);
                assert_eq!(main.header("content-length"), Some(&*length.to_string()));

                let pieces: Vec<&[u8]> = body.chunks(length.div_ceil(7).max(1)).collect();
                let chunks = chunked(&pieces, "x-sum: 1\r\n");
                let in_chunks =
                    format!("{headers}trailer: x-sum\r\ntransfer-encoding: chunked\r\n");
                let response = put(&trio, target, &in_chunks, &chunks).await;
                assert_mains(&response, "PUT", target);
                for seen in [trio.main.seen(), trio.canary.seen()] {
                    let seen = seen.last().unwrap().clone();
                    assert_same(&seen.body, &body);
                    assert_eq!(seen.trailers.to_lowercase(), "x-sum: 1\r\n", "{target}");
                }
            }
        }
    }
    assert_eq!(trio.main.count(), trio.canary.count());
}

#[tokio::test]
async fn longer_bodies_stream_and_are_not_replayed() {
    for (max_body, lengths) in [
        (
            json!("64KiB"),
            vec![64 * KIB + 1, 100_000, KIB * KIB, 3 * KIB * KIB],
        ),
        (json!(0), vec![1, 10]),
    ] {
        let trio = against(
            bad,
            and(always(), json!({"fallback": {"max-body": max_body}})),
        )
        .await;
        for length in lengths {
            let body = noise(length);
            for headers in ["", FORCED] {
                for (framing, sent) in [
                    (format!("content-length: {length}\r\n"), body.clone()),
                    ("transfer-encoding: chunked\r\n".into(), in_chunks(&body)),
                ] {
                    let framing = format!("{headers}{framing}");
                    let response = put(&trio, "/500", &framing, &sent).await;
                    assert_eq!(response.status, 500, "{length} {framing}");
                    assert_eq!(response.text(), "canary");
                    assert_same(&trio.canary.seen().pop().unwrap().body, &body);
                    let response = put(&trio, "/reset", &framing, &sent).await;
                    assert_eq!(response.status, 502, "{length} {framing}");
                }
            }
        }
        assert_eq!(trio.main.connections().0, 0);
        // No body is none that is too long.
        assert_mains(&get(trio.router.address, "/500", "").await, "GET", "");
    }
}

#[tokio::test]
async fn a_body_is_replayed_though_the_canary_answers_before_it_has_come() {
    let canary = ByHand::start().await;
    let main = Upstream::named("main", 200).await;
    let router = router_with(
        &main.url(),
        and(always(), json!({"canary-target": canary.url()})),
    );
    for (framing, first, second) in [
        ("content-length: 9\r\n", "some ", "body"),
        (
            "transfer-encoding: chunked\r\n",
            "5\r\nsome \r\n",
            "4\r\nbody\r\n0\r\n\r\n",
        ),
        ("content-length: 9\r\n", "", "some body"),
    ] {
        let mut client = Client::connect(router.address).await;
        let head = format!("PUT / HTTP/1.1\r\nhost: a\r\n{FORCED}{framing}\r\n{first}");
        client.send(head).await;
        let mut service = canary.accept().await;
        service.head().await;
        service.expect(first).await;
        let before = main.connections().0;
        service
            .send("HTTP/1.1 503 X\r\ncontent-length: 4\r\n\r\nbusy")
            .await;
        // What is left of it goes to main alone.
        service.closed().await;
        eventually(|| main.connections().0 > before || main.count() > 0).await;
        let response = client.roundtrip("PUT", second).await;
        assert_eq!((response.status, response.text().as_str()), (200, "main"));
        assert_eq!(main.seen().pop().unwrap().text(), "some body");
    }
}

#[tokio::test]
async fn a_body_that_its_client_breaks_off_is_not_replayed() {
    let config = and(always(), json!({"sidecar": {"max-body": 2}}));
    let trio = against(bad, config).await;
    for headers in ["", FORCED] {
        for (framing, part) in [
            ("content-length: 100", "half a body"),
            ("transfer-encoding: chunked", "4\r\nhalf\r\n"),
            ("transfer-encoding: chunked", "4\r\nhalf\r\nzz\r\n"),
        ] {
            let before = trio.canary.connections().0;
            let mut client = Client::connect(trio.router.address).await;
            let head = format!("PUT /500 HTTP/1.1\r\nhost: a\r\n{headers}{framing}\r\n\r\n");
            client.send(format!("{head}{part}")).await;
            eventually(|| trio.canary.connections().0 > before).await;
            client.finish().await;
            let rest = String::from_utf8_lossy(&client.rest().await).into_owned();
            assert!(
                rest.is_empty() || rest.starts_with("HTTP/1.1 400 "),
                "{rest}"
            );
            eventually(|| trio.canary.connections().1 == 0).await;
        }
    }
    assert_eq!((trio.main.connections().0, trio.canary.count()), (0, 0));
    trio.router.counts(ANSWERED, 0.0).await;
    trio.router.counts(FAILED, 0.0).await;
}

#[tokio::test]
async fn nothing_is_replayed_once_the_client_has_got_a_byte() {
    let trio = against(
        |request| {
            let head = match request.target() {
                "/length" => "content-length: 100\r\n\r\npart",
                "/none" => "content-length: 100\r\n\r\n",
                _ => "transfer-encoding: chunked\r\n\r\n4\r\npart\r\n",
            };
            let pause = Step::Pause(Duration::from_millis(50));
            vec![
                write(&format!("HTTP/1.1 200 OK\r\n{head}")),
                pause,
                Step::Reset,
            ]
        },
        and(
            always(),
            json!({"circuit-breaker": {"error-limit-canary": 10}}),
        ),
    )
    .await;
    for target in ["/length", "/none", "/chunked"] {
        let response = get(trio.router.address, target, "").await;
        assert_eq!((response.status, response.complete), (200, false));
    }
    assert_eq!(trio.main.connections().0, 0);
    trio.router.counts(ERRORS_LEFT, 7.0).await;
    trio.router.counts(ANSWERED, 0.0).await;
}

#[tokio::test]
async fn of_500_clients_at_a_time_none_sees_that_the_canary_fails_each_time() {
    room_for_descriptors(8_000);
    let breaker = json!({
        "failure-rate-threshold": 100, "minimum-number-of-calls": 500, "error-limit-canary": 600
    });
    let config = json!({
        "fallback": {"replay": "failures", "budget": 100},
        "circuit-breaker": breaker
    });
    let trio = against(bad, config).await;
    let address = trio.router.address;
    let ways = ["/reset", "/close", "/500", "/503", "/garbage"];
    let statuses = together((0..500).map(|i| async move {
        let response = get(address, ways[i % ways.len()], "").await;
        (response.status, response.text())
    }))
    .await;
    for answer in statuses {
        assert_eq!(answer, (203, "main".into()));
    }
    assert_eq!((trio.main.count(), trio.canary.count()), (500, 500));
    trio.router.counts(ANSWERED, 500.0).await;
    trio.router.counts(OVER_BUDGET, 0.0).await;
    trio.router.counts(ERRORS_LEFT, 100.0).await;
    trio.router
        .counts(&failures("canary", "reset"), 200.0)
        .await;
    trio.router
        .counts(&failures("canary", "malformed"), 100.0)
        .await;
    let open = "canary_router_breaker_state{state=\"open\",target=\"canary\"}";
    trio.router.counts(open, 1.0).await;
}

#[tokio::test]
async fn replays_stay_within_their_share_of_the_canarys_requests() {
    let config = json!({"fallback": {"replay": "failures", "budget": 20}});
    let trio = against(bad, config).await;
    // The first three are free, however few the requests are.
    for _ in 0..3 {
        assert_eq!(get(trio.router.address, "/500", "").await.status, 203);
    }
    for _ in 0..100 {
        assert_eq!(get(trio.router.address, "/200", "").await.status, 200);
    }
    let address = trio.router.address;
    let answers = together((0..100).map(|_| async move {
        let response = get(address, "/500", "").await;
        (response.status, response.text())
    }))
    .await;
    let replayed = answers.iter().filter(|(status, _)| *status == 203).count();
    let own = answers
        .iter()
        .filter(|answer| **answer == (500, "canary".into()))
        .count();
    assert_eq!(replayed + own, 100);
    // Of 203, in the end; had a window gone by in between, it would be fewer.
    assert!((3..=37).contains(&replayed), "{replayed}");
    assert_eq!(trio.main.count(), 3 + replayed);
    trio.router.counts(ANSWERED, 3.0 + replayed as f64).await;
    trio.router.counts(OVER_BUDGET, own as f64).await;
}

#[tokio::test]
async fn with_a_budget_of_nothing_three_are_replayed() {
    let config = and(always(), json!({"fallback": {"budget": 0}}));
    let trio = against(bad, config).await;
    for (i, expected) in [203, 203, 203, 500, 500].into_iter().enumerate() {
        let response = get(trio.router.address, "/500", "").await;
        assert_eq!(response.status, expected, "{i}");
    }
    assert_eq!(get(trio.router.address, "/reset", "").await.status, 502);
    trio.router.counts(OVER_BUDGET, 3.0).await;
    trio.router.counts(ANSWERED, 3.0).await;
}

#[tokio::test]
async fn what_never_left_for_the_canary_is_outside_the_budget() {
    let main = Upstream::named("main", 200).await;
    let canary = format!("http://{}", Upstream::nobody().await);
    let router = router_with(
        &main.url(),
        json!({
            "canary-target": canary,
            "fallback": {"replay": "failures", "budget": 0}
        }),
    );
    for _ in 0..10 {
        let response = request(router.address, "POST", "/", FORCED, "body").await;
        assert_eq!((response.status, response.text().as_str()), (200, "main"));
        assert_eq!(main.seen().pop().unwrap().text(), "body");
    }
    router.counts(ANSWERED, 10.0).await;
    router.counts(OVER_BUDGET, 0.0).await;
}

#[tokio::test]
async fn only_with_failures_is_an_answer_replayed() {
    for (replay, refused) in [("connect", 203), ("off", 502)] {
        let config = json!({
            "fallback": {"replay": replay},
            "proxy-client": {"to-main-and-canary": {"timeout": "300ms"}}
        });
        let trio = against(bad, config.clone()).await;
        for (target, status) in WAYS_TO_FAIL {
            let response = get(trio.router.address, target, "").await;
            assert_eq!(response.status, status, "{replay} {target}");
        }
        assert_eq!(trio.main.count(), 0);
        trio.router.counts(OVER_BUDGET, 0.0).await;

        let nobody = format!("http://{}", Upstream::nobody().await);
        let router = router_with(
            &trio.main.url(),
            and(config, json!({"canary-target": nobody})),
        );
        assert_eq!(get(router.address, "/", FORCED).await.status, refused);
    }
}

#[tokio::test]
async fn a_connection_to_the_canary_outlives_its_failures() {
    let trio = against(
        |request| match request.target() {
            "/chunked" => vec![write(
                "HTTP/1.1 503 X\r\ntransfer-encoding: chunked\r\n\r\n4\r\nbusy\r\n0\r\n\r\n",
            )],
            _ => bad(request),
        },
        and(always(), json!({"router-server": {"workers": 1}})),
    )
    .await;
    let mut client = Client::connect(trio.router.address).await;
    for i in 1..=20 {
        for target in ["/500", "/503", "/chunked"] {
            let request = head(&format!("GET {target}"), FORCED);
            let response = client.roundtrip("GET", request).await;
            assert_mains(&response, "GET", target);
        }
        let body =
            "PUT /500 HTTP/1.1\r\nhost: a\r\nx-canary: true\r\ncontent-length: 4\r\n\r\nbody";
        assert_mains(&client.roundtrip("PUT", body).await, "PUT", "/500");
        assert_eq!(trio.canary.count(), i * 4);
    }
    assert_eq!(trio.canary.connections(), (1, 1));
}

#[tokio::test]
async fn an_answer_without_end_that_nobody_wants_is_hung_up_on() {
    let trio = against(
        |_| {
            let head = "HTTP/1.1 500 X\r\ncontent-length: 1000000000\r\n\r\n";
            let mut steps = vec![write(head)];
            steps.extend(vec![write(&"x".repeat(64 * KIB)); 1000]);
            steps.push(Step::Hang);
            steps
        },
        always(),
    )
    .await;
    assert_mains(&get(trio.router.address, "/", FORCED).await, "GET", "");
    eventually(|| trio.canary.connections() == (1, 0)).await;
    let trio = against(
        |_| {
            vec![
                write("HTTP/1.1 500 X\r\ncontent-length: 9\r\n\r\n"),
                Step::Hang,
            ]
        },
        always(),
    )
    .await;
    assert_mains(&get(trio.router.address, "/", FORCED).await, "GET", "");
    eventually(|| trio.canary.connections() == (1, 0)).await;
}

#[tokio::test]
async fn main_may_fail_too() {
    let fixed = json!({"fallback": {"static": {"status": 200, "body": "static"}}});
    for (with, refused) in [(json!({}), (502, None)), (fixed, (200, Some("static")))] {
        let config = and(
            and(always(), with),
            json!({"router-server": {"workers": 1}}),
        );
        let trio = Trio::start(
            Upstream::named("main", 503).await,
            Upstream::start(bad).await,
            Upstream::start(asked).await,
            config.clone(),
        );
        let response = get(trio.router.address, "/500", "").await;
        assert_eq!((response.status, response.text().as_str()), (503, "main"));
        trio.router.counts(ANSWERED, 1.0).await;

        let nobody = format!("http://{}", Upstream::nobody().await);
        let router = router_with(
            &nobody,
            and(config, json!({"canary-target": trio.canary.url()})),
        );
        for target in ["/500", "/reset", "/hang"] {
            let response = get(router.address, target, FORCED).await;
            assert_eq!(response.status, refused.0, "{target}");
            if let Some(text) = refused.1 {
                assert_eq!(response.text(), text);
                assert_eq!(
                    response.header("content-type"),
                    Some("text/plain; charset=utf-8")
                );
            }
        }
        router.counts(FAILED, 3.0).await;
        router.counts(&failures("main", "refused"), 3.0).await;
    }
}

#[tokio::test]
async fn the_static_answer_may_be_a_file() {
    let folder = Folder::new();
    let file = folder.write("sorry.html", "<h1>Sorry</h1>");
    let nobody = format!("http://{}", Upstream::nobody().await);
    let router = router_with(
        &nobody,
        json!({"fallback": {"static": {"content-type": "text/html", "file": file}}}),
    );
    let mut client = Client::connect(router.address).await;
    for (method, headers) in [("GET", ""), ("GET", FORCED), ("HEAD", ""), ("GET", "")] {
        let response = client
            .roundtrip(method, head(&format!("{method} /"), headers))
            .await;
        assert_eq!(response.status, 503);
        assert_eq!(response.header("content-type"), Some("text/html"));
        assert_eq!(response.header("content-length"), Some("14"));
        if method == "GET" {
            assert_eq!(response.text(), "<h1>Sorry</h1>");
        }
    }
}

#[tokio::test]
async fn clients_that_leave_at_any_stage_of_a_replay_leave_nothing_behind() {
    let trio = Trio::start(
        Upstream::start(|request| match request.header("x-main") {
            Some("hang") => vec![Step::Hang],
            Some("half") => vec![
                write("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf"),
                Step::Hang,
            ],
            _ => answer(203, "x-from: main\r\nx-from: it\r\n", "main"),
        })
        .await,
        Upstream::start(bad).await,
        Upstream::start(asked).await,
        json!({
            "fallback": {"replay": "failures", "budget": 100},
            "proxy-client": {"to-main-and-canary": {"timeout": "1h"}},
            "circuit-breaker": {"error-limit-canary": 9}
        }),
    );
    let mut left = 9.0;
    for (target, headers, failed) in [
        ("/hang", "", 0.0),
        ("/500", "x-main: hang\r\n", 1.0),
        ("/500", "x-main: half\r\n", 1.0),
        ("/reset", "x-main: hang\r\n", 1.0),
        ("/reset", "x-main: half\r\n", 1.0),
    ] {
        let before = (trio.main.count(), trio.canary.count());
        let mut client = Client::connect(trio.router.address).await;
        client.send(head(&format!("GET {target}"), headers)).await;
        let at_main = before.0 + failed as usize;
        eventually(|| (trio.main.count(), trio.canary.count()) == (at_main, before.1 + 1)).await;
        drop(client);
        left -= failed;
        trio.router.counts(ERRORS_LEFT, left).await;
        eventually(|| trio.main.connections().1 == 0).await;
    }
    assert_mains(&get(trio.router.address, "/500", "").await, "GET", "");
    trio.router.counts(ERRORS_LEFT, left - 1.0).await;
}

#[tokio::test]
async fn what_is_not_replayed_goes_on_being_sent_to_a_canary_that_answers_early() {
    // A body that is too long, and one for which there is no budget any more: both were broken off as soon as
    // the canary's bad head came, and a canary that reads to the end before it says the rest never did.
    for (max_body, budget) in [(4, 100), (64 * KIB, 0)] {
        let canary = ByHand::start().await;
        let main = Upstream::named("main", 200).await;
        let config = json!({
            "canary-target": canary.url(),
            "fallback": {"replay": "failures", "budget": budget, "max-body": max_body}
        });
        let router = router_with(&main.url(), config);
        if budget == 0 {
            for _ in 0..3 {
                let client = Client::connect(router.address);
                let mut client = client.await;
                client.send(head("GET /", FORCED)).await;
                let mut service = canary.accept().await;
                service.head().await;
                service
                    .send("HTTP/1.1 500 X\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
                    .await;
                assert_eq!(client.response("GET").await.unwrap().text(), "main");
            }
        }
        let before = main.count();
        let mut client = Client::connect(router.address).await;
        let head = format!("PUT / HTTP/1.1\r\nhost: a\r\n{FORCED}content-length: 9\r\n\r\nsome ");
        client.send(head).await;
        let mut service = canary.accept().await;
        service.head().await;
        service.expect("some ").await;
        service
            .send("HTTP/1.1 500 X\r\ncontent-length: 4\r\n\r\n")
            .await;
        assert!(client.head().await.starts_with("HTTP/1.1 500 "));
        client.send("body").await;
        service.expect("body").await;
        service.send("oops").await;
        client.expect("oops").await;
        assert_eq!(main.count(), before);
    }
}

#[tokio::test]
async fn a_connection_that_had_trailers_on_it_is_not_used_again_after_a_replay() {
    // Some servers take trailers for the beginning of another request; after a replay that was forgotten.
    let config = and(always(), json!({"router-server": {"workers": 1}}));
    let trio = against(bad, config).await;
    for i in 1..=3 {
        let chunks = chunked(&[b"body"], "x-sum: 1\r\n");
        let headers = format!("{FORCED}trailer: x-sum\r\ntransfer-encoding: chunked\r\n");
        let response = put(&trio, "/500", &headers, &chunks).await;
        assert_mains(&response, "PUT", "/500");
        assert_eq!(trio.canary.connections().0, i);
    }
}
