//! Circuit breakers: when they open, who gets through while they are not closed, and what main's costs.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::support::*;

const FORCED: &str = "x-canary: true\r\n";
const FAILS: &str = "x-status: 500\r\n";
const TO_MAIN: &str = "x-sidecar: 204\r\n";
const OPEN: &str = "Canary circuit breaker open";
const ERRORS_LEFT: &str = "canary_router_error_budget_remaining";

fn state(target: &str, state: &str) -> String {
    format!("canary_router_breaker_state{{state=\"{state}\",target=\"{target}\"}}")
}

fn transitions(target: &str, from: &str, to: &str) -> String {
    format!(
        "canary_router_breaker_transitions_total{{from=\"{from}\",target=\"{target}\",to=\"{to}\"}}"
    )
}

/// Answers with the status in `x-status`, 200 without one, and says its name.
fn told(name: &'static str) -> impl Fn(&Received) -> Vec<Step> + Send + Sync + 'static {
    move |request| {
        let status = request.header("x-status").unwrap_or("200");
        answer(status.parse().unwrap(), "", name)
    }
}

/// Main and canary do as they are [`told`]; what asks for `/wait` waits for the gate first.
async fn gated(config: Value) -> (Trio, Gate) {
    let gate = Gate::shut();
    let waiting = gate.clone();
    let canary = told("canary");
    let trio = Trio::start(
        Upstream::start(told("main")).await,
        Upstream::start(move |request| match request.target() {
            "/wait" => [vec![Step::Wait(waiting.clone())], canary(request)].concat(),
            _ => canary(request),
        })
        .await,
        Upstream::start(asked).await,
        config,
    );
    (trio, gate)
}

/// A breaker that opens at two failures among two calls, or half of them.
fn breaker(more: Value) -> Value {
    let mut breaker = json!({"failure-rate-threshold": 50, "minimum-number-of-calls": 2});
    merge(&mut breaker, more);
    json!({"circuit-breaker": breaker})
}

async fn answers(trio: &Trio, target: &str, headers: &str) -> (u16, String) {
    let response = get(trio.router.address, target, headers).await;
    assert!(response.complete);
    (response.status, response.text())
}

/// Has the canary fail until its breaker is open.
async fn open(trio: &Trio) {
    for _ in 0..2 {
        assert_eq!(answers(trio, "/", FAILS).await, (500, "canary".into()));
    }
    trio.router.counts(&state("canary", "open"), 1.0).await;
}

/// Asks until somebody lets it through to the canary.
async fn probe(trio: &Trio, headers: &str) -> u16 {
    soon(async {
        loop {
            match answers(trio, "/", headers).await {
                (status, name) if name == "canary" => return status,
                _ => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        }
    })
    .await
}

/// So many clients that ask for `/wait` until the canary answers, which it does when its gate opens.
fn crowd(trio: &Trio, clients: usize) -> Vec<JoinHandle<u16>> {
    let address = trio.router.address;
    let persistent = move || async move {
        loop {
            let response = get(address, "/wait", "").await;
            if response.text() == "canary" {
                return response.status;
            }
        }
    };
    (0..clients).map(|_| tokio::spawn(persistent())).collect()
}

/// 1,600 requests in four waves: how many of the clients got an error.
async fn waves(trio: &Trio) -> usize {
    let mut failed = 0;
    for _wave in 0..4 {
        let address = trio.router.address;
        let statuses = together((0..400).map(|_| async move {
            let response = get(address, "/", "").await;
            assert!(response.complete);
            (response.status, response.text())
        }))
        .await;
        for (status, name) in statuses {
            match (status, name.as_str()) {
                (200, "main") => {}
                (500, "canary") => failed += 1,
                other => panic!("{other:?}"),
            }
        }
    }
    failed
}

#[tokio::test]
async fn of_1600_requests_in_four_waves_15_reach_a_canary_that_always_fails() {
    room_for_descriptors(8_000);
    for (more, seen_by_clients) in [
        (json!({}), 15),
        (breaker(json!({"minimum-number-of-calls": 20})), 15),
        (
            json!({"fallback": {"replay": "failures", "budget": 100}}),
            0,
        ),
    ] {
        let mut config = json!({"circuit-breaker": {"error-limit-canary": 15}});
        merge(&mut config, more);
        let trio = Trio::start(
            Upstream::named("main", 200).await,
            Upstream::named("canary", 500).await,
            Upstream::start(asked).await,
            config.clone(),
        );
        assert_eq!(waves(&trio).await, seen_by_clients, "{config}");
        assert_eq!(trio.canary.count(), 15, "{config}");
        assert_eq!(trio.main.count(), 1600 - seen_by_clients, "{config}");
        trio.router.counts(ERRORS_LEFT, 0.0).await;
    }
}

#[tokio::test]
async fn a_breaker_that_is_probed_all_the_time_does_not_raise_the_error_limit() {
    room_for_descriptors(8_000);
    let mut config = breaker(json!({"wait-open": "1ms", "max-wait-open": "2ms"}));
    merge(
        &mut config,
        json!({"circuit-breaker": {"error-limit-canary": 15}}),
    );
    let trio = Trio::start(
        Upstream::named("main", 200).await,
        Upstream::named("canary", 500).await,
        Upstream::start(asked).await,
        config,
    );
    let failed = waves(&trio).await;
    while trio.canary.count() < 15 {
        answers(&trio, "/", "").await;
    }
    assert!(failed <= 15);
    for _ in 0..50 {
        assert_eq!(answers(&trio, "/", "").await, (200, "main".into()));
    }
    assert_eq!(trio.canary.count(), 15);
}

#[tokio::test]
async fn it_opens_at_the_share_and_not_below_the_minimum_number_of_calls() {
    const GOOD: &str = "";
    for opening in [
        // Nothing but failures is not enough, if they are few.
        vec![FAILS, FAILS, FAILS, FAILS],
        // Nor is less than half.
        vec![GOOD, GOOD, FAILS, FAILS],
        vec![GOOD, GOOD, GOOD, FAILS, FAILS, FAILS],
    ] {
        let (trio, _) = gated(breaker(json!({"minimum-number-of-calls": 4}))).await;
        for headers in &opening {
            assert_eq!(answers(&trio, "/", headers).await.1, "canary");
        }
        trio.router.counts(&state("canary", "open"), 1.0).await;
        trio.router.counts(&state("canary", "closed"), 0.0).await;
        let one = &transitions("canary", "closed", "open");
        trio.router.counts(one, 1.0).await;

        let asked = trio.sidecar.count();
        for _ in 0..10 {
            assert_eq!(answers(&trio, "/", "").await, (200, "main".into()));
        }
        assert_eq!(trio.canary.count(), opening.len());
        assert_eq!(trio.sidecar.count(), asked, "it has nothing to say");
        trio.router.counts(&reason(OPEN, "main"), 10.0).await;
    }
}

#[tokio::test]
async fn a_canary_that_cannot_be_reached_opens_it() {
    let (main, sidecar) = (
        Upstream::named("main", 200).await,
        Upstream::start(asked).await,
    );
    let mut file = json!({
        "main-target": main.url(),
        "canary-target": format!("http://{}", Upstream::nobody().await),
        "sidecar-url": sidecar.url()
    });
    merge(&mut file, breaker(json!({})));
    let router = Router::start(file);
    for _ in 0..5 {
        assert_eq!(get(router.address, "/", "").await.text(), "main");
    }
    assert_eq!(sidecar.count(), 2);
    router.counts(&reason(OPEN, "main"), 3.0).await;
}

#[tokio::test]
async fn what_is_slow_is_measured_up_to_the_response_head() {
    let late = Duration::from_millis(1_600);
    let head = "HTTP/1.1 200 X\r\ncontent-length: 6\r\n\r\n";
    let trio = Trio::start(
        Upstream::named("main", 200).await,
        Upstream::start(move |request| match request.target() {
            "/slow" => [vec![Step::Pause(late)], answer(200, "", "canary")].concat(),
            "/slow-body" => vec![
                Step::Write(head.into()),
                Step::Pause(late),
                Step::Write(b"canary".into()),
            ],
            _ => answer(200, "", "canary"),
        })
        .await,
        Upstream::start(asked).await,
        json!({"circuit-breaker": {
            "slow-call-rate-threshold": 50,
            "slow-call-duration": "1.5s",
            "minimum-number-of-calls": 3
        }}),
    );
    let address = trio.router.address;
    let three = |target: &'static str| {
        together((0..3).map(move |_| async move { get(address, target, "").await.text() }))
    };
    assert_eq!(three("/slow-body").await, ["canary"; 3]);
    trio.router.counts(&state("canary", "closed"), 1.0).await;
    assert_eq!(three("/slow").await, ["canary"; 3]);
    trio.router.counts(&state("canary", "open"), 1.0).await;
    assert_eq!(answers(&trio, "/", "").await.1, "main");
}

#[tokio::test]
async fn half_open_lets_so_many_probes_through_at_once_and_closes_when_all_succeed() {
    let (trio, gate) = gated(breaker(
        json!({"wait-open": "200ms", "permitted-half-open": 3}),
    ))
    .await;
    open(&trio).await;
    let clients = crowd(&trio, 40);
    eventually(|| trio.canary.count() == 5).await;
    trio.router.counts(&state("canary", "half_open"), 1.0).await;
    // While the three are out, nobody else gets there.
    let seen = trio.main.count();
    eventually(|| trio.main.count() > seen + 400).await;
    assert_eq!(trio.canary.count(), 5);
    gate.open();
    for client in clients {
        assert_eq!(soon(client).await.unwrap(), 200);
    }
    trio.router.counts(&state("canary", "closed"), 1.0).await;
    for (from, to, times) in [
        ("closed", "open", 1.0),
        ("open", "half_open", 1.0),
        ("half_open", "closed", 1.0),
        ("half_open", "open", 0.0),
        ("open", "closed", 0.0),
    ] {
        let series = &transitions("canary", from, to);
        trio.router.counts(series, times).await;
    }
}

#[tokio::test]
async fn a_probe_that_fails_opens_it_again() {
    let (trio, _) = gated(breaker(
        json!({"wait-open": "200ms", "permitted-half-open": 2}),
    ))
    .await;
    open(&trio).await;
    assert_eq!(probe(&trio, "").await, 200);
    trio.router.counts(&state("canary", "half_open"), 1.0).await;
    assert_eq!(probe(&trio, FAILS).await, 500);
    trio.router.counts(&state("canary", "open"), 1.0).await;
    let again = &transitions("canary", "half_open", "open");
    trio.router.counts(again, 1.0).await;
    // What had succeeded before does not count any more.
    for state_after in ["half_open", "closed"] {
        assert_eq!(probe(&trio, "").await, 200);
        trio.router.counts(&state("canary", state_after), 1.0).await;
    }
}

#[tokio::test]
async fn what_counts_as_a_failure_is_said_for_breaker_and_limit_apart() {
    for (more, opens, errors_left) in [
        (json!({}), false, 6.0),
        (json!({"failure": "non-2xx"}), true, 6.0),
        (json!({"errors": "5xx"}), false, 10.0),
        (json!({"errors": "5xx", "failure": "non-2xx"}), true, 10.0),
    ] {
        let mut config = breaker(json!({"minimum-number-of-calls": 4}));
        merge(
            &mut config["circuit-breaker"],
            json!({"error-limit-canary": 10}),
        );
        merge(&mut config["circuit-breaker"], more);
        let (trio, _) = gated(config.clone()).await;
        for _ in 0..4 {
            assert_eq!(answers(&trio, "/", "x-status: 404\r\n").await.1, "canary");
        }
        trio.router.counts(ERRORS_LEFT, errors_left).await;
        let expected = if opens { "main" } else { "canary" };
        assert_eq!(answers(&trio, "/", "").await.1, expected, "{config}");
    }
}

#[tokio::test]
async fn a_forced_request_passes_an_open_breaker_and_changes_nothing() {
    let (trio, _) = gated(breaker(json!({}))).await;
    open(&trio).await;
    for headers in [FORCED.to_owned(), format!("{FORCED}{FAILS}")] {
        for _ in 0..5 {
            assert_eq!(answers(&trio, "/", &headers).await.1, "canary");
        }
        trio.router.counts(&state("canary", "open"), 1.0).await;
    }
    assert_eq!(answers(&trio, "/", "").await.1, "main");
}

#[tokio::test]
async fn the_failures_of_forced_requests_open_it() {
    let (trio, _) = gated(breaker(json!({}))).await;
    for _ in 0..2 {
        answers(&trio, "/", &format!("{FORCED}{FAILS}")).await;
    }
    trio.router.counts(&state("canary", "open"), 1.0).await;
}

#[tokio::test]
async fn results_that_come_late_change_nothing() {
    let (early, gate) = (Gate::shut(), Gate::shut());
    let (first, second) = (early.clone(), gate.clone());
    let trio = Trio::start(
        Upstream::named("main", 200).await,
        Upstream::start(move |request| match request.target() {
            "/early" => [vec![Step::Wait(first.clone())], answer(500, "", "late")].concat(),
            "/wait" => [vec![Step::Wait(second.clone())], answer(200, "", "canary")].concat(),
            _ => told("canary")(request),
        })
        .await,
        Upstream::start(asked).await,
        breaker(json!({"wait-open": "200ms", "permitted-half-open": 1})),
    );
    let address = trio.router.address;
    let late = move || tokio::spawn(async move { get(address, "/early", "").await.status });
    let (first, second) = (late(), late());
    eventually(|| trio.canary.count() == 2).await;
    open(&trio).await;
    // A probe is out when the results of the closed time come.
    let probing = crowd(&trio, 1);
    eventually(|| trio.canary.count() == 5).await;
    early.open();
    for late in [first, second] {
        assert_eq!(soon(late).await.unwrap(), 500);
    }
    assert_eq!(answers(&trio, "/", "").await.1, "main");
    trio.router.counts(&state("canary", "half_open"), 1.0).await;
    gate.open();
    for probe in probing {
        soon(probe).await.unwrap();
    }
    trio.router.counts(&state("canary", "closed"), 1.0).await;
}

#[tokio::test]
async fn failures_that_began_before_it_opened_do_not_count_after_it_has_closed() {
    let (trio, gate) = gated(breaker(
        json!({"wait-open": "200ms", "permitted-half-open": 1}),
    ))
    .await;
    let address = trio.router.address;
    let late: Vec<_> = (0..5)
        .map(|_| tokio::spawn(async move { get(address, "/wait", FAILS).await.status }))
        .collect();
    eventually(|| trio.canary.count() == 5).await;
    open(&trio).await;
    assert_eq!(probe(&trio, "").await, 200);
    trio.router.counts(&state("canary", "closed"), 1.0).await;
    gate.open();
    for late in late {
        assert_eq!(soon(late).await.unwrap(), 500);
    }
    assert_eq!(answers(&trio, "/", "").await.1, "canary");
    trio.router.counts(&state("canary", "closed"), 1.0).await;
}

#[tokio::test]
async fn a_probe_that_its_client_leaves_or_that_becomes_a_tunnel_makes_room_for_another() {
    let trio = Trio::start(
        Upstream::named("main", 200).await,
        Upstream::start(|request| match request.target() {
            "/tunnel" => {
                let head = "HTTP/1.1 101 X\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
                vec![Step::Write(head.into()), Step::Echo]
            }
            "/hang" => vec![Step::Hang],
            _ => told("canary")(request),
        })
        .await,
        Upstream::start(asked).await,
        breaker(json!({"wait-open": "200ms", "permitted-half-open": 1})),
    );
    open(&trio).await;
    let mut tunnels = Vec::new();
    for target in ["/hang", "/hang", "/tunnel", "/hang"] {
        // Until it is let through.
        let before = trio.canary.count();
        let mut client = soon(async {
            loop {
                let mut client = Client::connect(trio.router.address).await;
                let upgrade = "connection: upgrade\r\nupgrade: echo\r\n";
                client.send(head(&format!("GET {target}"), upgrade)).await;
                let main = trio.main.count();
                while trio.main.count() == main && trio.canary.count() == before {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                if trio.canary.count() > before {
                    break client;
                }
            }
        })
        .await;
        if target == "/tunnel" {
            assert_eq!(client.response("GET").await.unwrap().status, 101);
            tunnels.push(client);
        } else {
            assert_eq!(answers(&trio, "/", "").await.1, "main", "the probe is out");
        }
        trio.router.counts(&state("canary", "half_open"), 1.0).await;
    }
    assert_eq!(probe(&trio, "").await, 200);
    trio.router.counts(&state("canary", "closed"), 1.0).await;
    let again = &transitions("canary", "half_open", "open");
    trio.router.counts(again, 0.0).await;
    // And the tunnel is still one.
    tunnels[0].send("hello").await;
    tunnels[0].expect("hello").await;
}

/// Main's breaker, which opens at two failures among two calls.
fn mains(more: Value) -> Value {
    json!({"circuit-breaker": {"main": breaker(more)["circuit-breaker"]}})
}

async fn open_main(trio: &Trio) {
    for _ in 0..2 {
        let headers = format!("{TO_MAIN}{FAILS}");
        assert_eq!(answers(trio, "/", &headers).await, (500, "main".into()));
    }
    trio.router.counts(&state("main", "open"), 1.0).await;
}

#[tokio::test]
async fn while_mains_breaker_is_open_its_clients_are_told_when_to_come_back() {
    let (trio, _) = gated(mains(json!({"wait-open": "40s"}))).await;
    open_main(&trio).await;
    for method in ["GET", "HEAD", "POST"] {
        for headers in [TO_MAIN, "x-canary: false\r\n", "x-sidecar: 500\r\n"] {
            let response = request(trio.router.address, method, "/", headers, "").await;
            assert_eq!(response.status, 503, "{method} {headers}");
            let seconds: u32 = response.header("retry-after").unwrap().parse().unwrap();
            // With the jitter.
            assert!((30..=44).contains(&seconds), "{seconds}");
        }
    }
    assert_eq!(trio.main.count(), 2);
    for headers in ["", FORCED] {
        assert_eq!(answers(&trio, "/", headers).await, (200, "canary".into()));
    }
    trio.router.counts(&state("canary", "closed"), 1.0).await;
}

#[tokio::test]
async fn while_main_is_probed_the_others_are_told_to_come_back_in_a_second() {
    let gate = Gate::shut();
    let waiting = gate.clone();
    let main = told("main");
    let trio = Trio::start(
        Upstream::start(move |request| match request.target() {
            "/wait" => [vec![Step::Wait(waiting.clone())], main(request)].concat(),
            _ => main(request),
        })
        .await,
        Upstream::named("canary", 200).await,
        Upstream::start(asked).await,
        mains(json!({"wait-open": "200ms", "permitted-half-open": 2})),
    );
    open_main(&trio).await;
    let address = trio.router.address;
    let clients: Vec<_> = (0..20)
        .map(|_| {
            tokio::spawn(async move {
                loop {
                    let response = get(address, "/wait", TO_MAIN).await;
                    match response.status {
                        503 => assert_eq!(response.header("retry-after"), Some("1")),
                        status => return status,
                    }
                }
            })
        })
        .collect();
    eventually(|| trio.main.count() == 4).await;
    for _ in 0..20 {
        assert_eq!(get(address, "/", TO_MAIN).await.status, 503);
    }
    assert_eq!(trio.main.count(), 4);
    trio.router.counts(&state("main", "half_open"), 1.0).await;
    gate.open();
    for client in clients {
        assert_eq!(soon(client).await.unwrap(), 200);
    }
    trio.router.counts(&state("main", "closed"), 1.0).await;
}

#[tokio::test]
async fn while_mains_breaker_is_open_its_clients_get_the_static_answer() {
    let mut config = mains(json!({}));
    merge(
        &mut config,
        json!({"fallback": {"static": {
            "status": 200, "content-type": "text/html", "body": "<p>soon</p>"
        }}}),
    );
    let (trio, _) = gated(config).await;
    // What main answers is passed on, whatever it is.
    open_main(&trio).await;
    for method in ["GET", "POST", "HEAD"] {
        let response = request(trio.router.address, method, "/", TO_MAIN, "").await;
        assert_eq!(response.status, 200);
        assert_eq!(response.header("content-type"), Some("text/html"));
        assert_eq!(response.header("content-length"), Some("11"));
        if method != "HEAD" {
            assert_eq!(response.text(), "<p>soon</p>");
        }
    }
    assert_eq!(trio.main.count(), 2);
    let instead = "canary_router_fallbacks_total{from=\"main\",outcome=\"answered\",to=\"static\"}";
    trio.router.counts(instead, 3.0).await;
}

#[tokio::test]
async fn an_open_breaker_of_main_keeps_replays_from_it_as_well() {
    let mut config = mains(json!({}));
    merge(
        &mut config,
        json!({"fallback": {"replay": "failures", "budget": 100}}),
    );
    let (trio, _) = gated(config).await;
    open_main(&trio).await;
    assert_eq!(answers(&trio, "/", FAILS).await, (500, "canary".into()));
    assert_eq!(trio.main.count(), 2);
}

#[tokio::test]
async fn the_time_that_a_client_takes_for_its_upload_is_not_the_canarys() {
    // Two clients with a slow line were enough to open it.
    let trio = Trio::named(json!({
        "sidecar": {"body": "none"},
        "circuit-breaker": {
            "slow-call-rate-threshold": 50,
            "slow-call-duration": "1.5s",
            "minimum-number-of-calls": 2
        }
    }))
    .await;
    let address = trio.router.address;
    let uploads = together((0..2).map(|_| async move {
        let mut client = Client::connect(address).await;
        client
            .send(head("PUT /", "content-length: 9\r\n") + "some ")
            .await;
        tokio::time::sleep(Duration::from_millis(1_700)).await;
        client.roundtrip("PUT", "body").await.text()
    }))
    .await;
    assert_eq!(uploads, ["canary"; 2]);
    trio.router.counts(&state("canary", "closed"), 1.0).await;
    assert_eq!(answers(&trio, "/", "").await.1, "canary");
}

#[tokio::test]
async fn a_probe_is_over_when_its_response_begins() {
    // Long downloads that happened to be main's probes had everybody else told to come back later, until they
    // were over.
    let gate = Gate::shut();
    let waiting = gate.clone();
    let main = told("main");
    let trio = Trio::start(
        Upstream::start(move |request| match request.target() {
            "/long" => vec![
                Step::Write(b"HTTP/1.1 200 X\r\ncontent-length: 8\r\n\r\nsome".to_vec()),
                Step::Wait(waiting.clone()),
                Step::Write(b"more".to_vec()),
            ],
            _ => main(request),
        })
        .await,
        Upstream::named("canary", 200).await,
        Upstream::start(asked).await,
        mains(json!({"wait-open": "200ms", "permitted-half-open": 2})),
    );
    open_main(&trio).await;
    let mut downloads = Vec::new();
    soon(async {
        while downloads.len() < 2 {
            let mut client = Client::connect(trio.router.address).await;
            client.send(head("GET /long", TO_MAIN)).await;
            if client.head().await.starts_with("HTTP/1.1 200 ") {
                downloads.push(client);
            }
        }
    })
    .await;
    trio.router.counts(&state("main", "closed"), 1.0).await;
    assert_eq!(answers(&trio, "/", TO_MAIN).await.0, 200);
    gate.open();
    for mut client in downloads {
        client.expect("somemore").await;
    }
}
