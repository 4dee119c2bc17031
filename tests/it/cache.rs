//! What asking the sidecar costs: its breaker, questions without the body, answers that are used again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};

use crate::support::*;

const KIB: usize = 1 << 10;

fn cached(result: &str) -> String {
    format!("canary_router_sidecar_cache_total{{result=\"{result}\"}}")
}

fn asked_for(result: &str) -> String {
    format!("canary_router_sidecar_results_total{{result=\"{result}\"}}")
}

fn state(state: &str) -> String {
    format!("canary_router_breaker_state{{state=\"{state}\",target=\"sidecar\"}}")
}

/// Main and canary answer 200 with their names; the sidecar does what `sidecar` says.
async fn with_sidecar(
    sidecar: impl Fn(&Received) -> Vec<Step> + Send + Sync + 'static,
    config: Value,
) -> Trio {
    Trio::start(
        Upstream::named("main", 200).await,
        Upstream::named("canary", 200).await,
        Upstream::start(sidecar).await,
        config,
    )
}

fn by_user(more: Value) -> Value {
    let mut cache = json!({"key": ["header:X-User"], "ttl": "1h"});
    merge(&mut cache, more);
    json!({"sidecar": {"cache": cache}})
}

fn user(name: impl std::fmt::Display) -> String {
    format!("x-user: {name}\r\n")
}

async fn text(trio: &Trio, headers: &str) -> String {
    let response = get(trio.router.address, "/", headers).await;
    assert_eq!(response.status, 200);
    response.text()
}

/// A sidecar that has failed as `failing` says, until its breaker opened, and answers `well` once the flag is
/// set.
async fn that_has_failed(failing: Step, well: Vec<Step>, timeout: &str) -> (Trio, Arc<AtomicBool>) {
    let healthy = Arc::new(AtomicBool::new(false));
    let knows = healthy.clone();
    let trio = with_sidecar(
        move |_| match knows.load(Ordering::SeqCst) {
            false => vec![failing.clone()],
            true => well.clone(),
        },
        json!({"proxy-client": {"to-sidecar": {"timeout": timeout}}}),
    )
    .await;
    for _ in 0..5 {
        assert_eq!(text(&trio, "").await, "main");
    }
    trio.router.counts(&state("open"), 1.0).await;
    (trio, healthy)
}

/// Clients that are less patient than the router must not keep a sidecar in use that hangs.
#[tokio::test]
async fn a_sidecar_that_outlasts_its_clients_is_not_asked_for_ever() {
    let config = json!({"proxy-client": {"to-sidecar": {"timeout": "4s"}}});
    let trio = with_sidecar(|_| vec![Step::Hang], config).await;
    let mut clients = Vec::new();
    for _ in 0..5 {
        let mut client = Client::connect(trio.router.address).await;
        client.send(head("GET /", "")).await;
        clients.push(client);
    }
    eventually(|| trio.sidecar.count() == 5).await;
    // Half of the sidecar's time: that is what is tested.
    tokio::time::sleep(Duration::from_millis(2_050)).await;
    drop(clients);
    trio.router.counts(&state("open"), 1.0).await;
    trio.router.counts(&asked_for("error"), 0.0).await;
    assert_eq!(text(&trio, "").await, "main");
    assert_eq!(trio.sidecar.count(), 5);
}

#[tokio::test]
async fn a_sidecar_that_hangs_is_asked_by_a_few_then_by_one_at_a_time_until_it_answers() {
    let (trio, healthy) = that_has_failed(Step::Hang, answer(200, "", ""), "400ms").await;
    // Its breaker is open for a second; if that has gone by unnoticed, one more is asked.
    for _ in 0..50 {
        assert_eq!(text(&trio, "").await, "main");
    }
    assert!(
        (5..=6).contains(&trio.sidecar.count()),
        "{}",
        trio.sidecar.count()
    );
    trio.router
        .counts(&reason("Sidecar error", "main"), 55.0)
        .await;

    healthy.store(true, Ordering::SeqCst);
    let address = trio.router.address;
    soon(async {
        while get(address, "/", "").await.text() != "canary" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    trio.router.counts(&state("closed"), 1.0).await;
    assert_eq!(text(&trio, "").await, "canary");
}

#[tokio::test]
async fn a_sidecar_that_is_probed_is_asked_by_one_at_a_time() {
    let gate = Gate::shut();
    let well = [vec![Step::Wait(gate.clone())], answer(200, "", "")].concat();
    let (trio, healthy) = that_has_failed(Step::Reset, well, "1h").await;
    healthy.store(true, Ordering::SeqCst);
    let address = trio.router.address;
    let clients: Vec<_> = (0..20)
        .map(|_| {
            tokio::spawn(async move { while get(address, "/", "").await.text() != "canary" {} })
        })
        .collect();
    eventually(|| trio.sidecar.count() == 6).await;
    let before = trio.main.count();
    eventually(|| trio.main.count() > before + 200).await;
    assert_eq!(trio.sidecar.count(), 6);
    trio.router.counts(&state("half_open"), 1.0).await;
    gate.open();
    for client in clients {
        soon(client).await.unwrap();
    }
    trio.router.counts(&state("closed"), 1.0).await;
}

#[tokio::test]
async fn a_client_that_takes_its_time_with_a_body_does_not_keep_the_sidecar_from_being_probed() {
    // The only probe was out from the moment at which its body was waited for.
    let (trio, healthy) = that_has_failed(Step::Reset, answer(200, "", ""), "1h").await;
    healthy.store(true, Ordering::SeqCst);
    let mut slow = Vec::new();
    soon(async {
        loop {
            let mut client = Client::connect(trio.router.address).await;
            let request = "PUT /slow HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nsome ";
            client.send(request).await;
            slow.push(client);
            if text(&trio, "").await == "canary" {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_sidecar_that_wants_no_body_gets_none_and_the_upstream_all_of_it() {
    let trio = Trio::named(json!({"sidecar": {"body": "none"}})).await;
    let claims = "x-canary-body: partial\r\nX-Canary-Body: full\r\n";
    for (status, upstream) in [(204, &trio.main), (200, &trio.canary)] {
        for length in [0, 1, 100 * KIB, 3 * KIB * KIB] {
            let body = noise(length);
            for (framing, sent) in [
                (format!("content-length: {length}\r\n"), body.clone()),
                ("transfer-encoding: chunked\r\n".into(), in_chunks(&body)),
            ] {
                let headers = format!("x-sidecar: {status}\r\n{claims}{framing}");
                let head = head("POST /path?q=1", &headers);
                let mut client = Client::connect(trio.router.address).await;
                let response = client
                    .roundtrip("POST", [head.as_bytes(), &sent].concat())
                    .await;
                assert_eq!(response.status, 200);
                let asked = trio.sidecar.seen().pop().unwrap();
                assert_eq!(asked.start_line(), "POST /path?q=1 HTTP/1.1");
                assert_eq!(asked.header("x-canary-body"), Some("none"));
                assert_eq!(asked.body.len(), 0);
                assert_eq!(asked.header("transfer-encoding"), None);
                assert!(matches!(asked.header("content-length"), None | Some("0")));
                assert_same(&upstream.seen().pop().unwrap().body, &body);
            }
        }
    }
}

#[tokio::test]
async fn a_sidecar_that_wants_no_body_does_not_wait_for_it() {
    let trio = Trio::named(json!({"sidecar": {"body": "none"}})).await;
    let mut client = Client::connect(trio.router.address).await;
    let request = "POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 9\r\n\r\n";
    client.send(request).await;
    eventually(|| trio.sidecar.count() == 1 && trio.canary.connections().0 == 1).await;
    client.expect("HTTP/1.1 100 Continue\r\n\r\n").await;
    let response = client.roundtrip("POST", "some body").await;
    assert_eq!((response.status, response.text().as_str()), (200, "canary"));
    assert_eq!(trio.canary.only().text(), "some body");
}

#[tokio::test]
async fn one_answer_serves_all_requests_with_the_same_key() {
    let config = json!({"sidecar": {"cache": {
        "key": ["header:X-User", "cookie:sid", "method", "path", "query", "client-ip"],
        "ttl": "1h"
    }}});
    let trio = Trio::named(config).await;
    let requests = [
        ("GET", "/", ""),
        ("GET", "/", "x-user: \r\n"),
        ("GET", "/", "x-user: a\r\n"),
        ("GET", "/", "x-user: a\r\nx-user: \r\n"),
        ("GET", "/", "x-user: ab\r\n"),
        ("GET", "/", "x-user: a\r\nx-user: b\r\n"),
        ("GET", "/", "x-user: a,b\r\n"),
        ("GET", "/", "cookie: sid=\r\n"),
        ("GET", "/", "cookie: sid=a\r\n"),
        ("HEAD", "/", ""),
        ("PUT", "/", ""),
        ("GET", "/a", ""),
        ("GET", "/a/", ""),
        ("GET", "/?", ""),
        ("GET", "/?a", ""),
        ("GET", "/?a=", ""),
    ];
    let mut expected = 0;
    for round in 0..2 {
        for (method, target, headers) in requests {
            request(trio.router.address, method, target, headers, "").await;
            if round == 0 {
                expected += 1;
            }
            assert_eq!(
                trio.sidecar.count(),
                expected,
                "{method} {target} {headers}"
            );
        }
        // What is not declared makes no difference.
        for headers in [
            "cookie: SID=b\r\n",
            "x-sidecar: 204\r\n",
            "cookie: other=1\r\n",
        ] {
            assert_eq!(text(&trio, headers).await, "canary");
        }
        assert_eq!(trio.sidecar.count(), expected);
    }
    trio.router
        .counts(&cached("miss"), f64::from(expected as u32))
        .await;
    trio.router
        .counts(&cached("hit"), f64::from(expected as u32) + 6.0)
        .await;
    trio.router
        .counts(&asked_for("canary"), f64::from(expected as u32))
        .await;
}

#[tokio::test]
async fn questions_with_one_key_are_asked_once_at_a_time() {
    let gate = Gate::shut();
    let waiting = gate.clone();
    let trio = with_sidecar(
        move |_| [vec![Step::Wait(waiting.clone())], answer(200, "", "")].concat(),
        by_user(json!({})),
    )
    .await;
    let address = trio.router.address;
    let clients: Vec<_> = (0..60)
        .map(|i| tokio::spawn(async move { get(address, "/", &user(i % 3)).await.text() }))
        .collect();
    eventually(|| trio.sidecar.count() == 3).await;
    // All others are there, and wait.
    let mut last = Client::connect(address).await;
    last.send(head("GET /", &user(1))).await;
    for _ in 0..20 {
        get(address, "/application/health", "").await;
    }
    assert_eq!((trio.sidecar.count(), trio.canary.count()), (3, 0));
    gate.open();
    for client in clients {
        assert_eq!(soon(client).await.unwrap(), "canary");
    }
    assert_eq!(last.response("GET").await.unwrap().text(), "canary");
    assert_eq!(trio.sidecar.count(), 3);
    trio.router.counts(&cached("miss"), 3.0).await;
    let metrics = trio.router.metrics().await;
    let (hits, shared) = (
        metrics.value(&cached("hit")),
        metrics.value(&cached("shared")),
    );
    assert_eq!(hits + shared, 58.0);
    assert!(shared > 0.0);
}

#[tokio::test]
async fn an_answer_holds_as_long_as_it_is_configured_or_says_itself() {
    let trio = with_sidecar(
        |request| {
            let says = match request.header("x-says") {
                Some(says) => format!("cache-control: {says}\r\n"),
                None => String::new(),
            };
            answer(200, &says, "")
        },
        by_user(json!({})),
    )
    .await;
    for (i, (says, expected)) in [
        ("", 1),
        ("x-says: max-age=3600\r\n", 1),
        ("x-says: no-store\r\n", 4),
        ("x-says: max-age=0\r\n", 4),
        ("x-says: private, max-age=60\r\n", 4),
    ]
    .into_iter()
    .enumerate()
    {
        let before = trio.sidecar.count();
        for _ in 0..4 {
            assert_eq!(text(&trio, &format!("{}{says}", user(i))).await, "canary");
        }
        assert_eq!(trio.sidecar.count() - before, expected, "{says}");
    }
    // Once an answer is of use again, it is kept again.
    let before = trio.sidecar.count();
    for _ in 0..4 {
        text(&trio, &user(2)).await;
    }
    assert_eq!(trio.sidecar.count(), before + 1);
}

#[tokio::test]
async fn an_answer_that_has_aged_is_asked_for_again_and_kept_again() {
    for (ttl, says) in [("100ms", ""), ("1h", "cache-control: max-age=1\r\n")] {
        let trio = with_sidecar(move |_| answer(200, says, ""), by_user(json!({"ttl": ttl}))).await;
        // More questions than one, and fewer than requests.
        let mut requests = 0;
        soon(async {
            while trio.sidecar.count() < 3 {
                text(&trio, &user(1)).await;
                requests += 1;
            }
        })
        .await;
        assert!(requests > 3, "{requests}");
        trio.router.counts(&cached("miss"), 3.0).await;
    }
}

#[tokio::test]
async fn no_more_answers_are_kept_than_max_entries() {
    let trio = Trio::named(by_user(json!({"max-entries": 10}))).await;
    let mut client = Client::connect(trio.router.address).await;
    // It forgets from time to time, not with every answer.
    soon(async {
        loop {
            let before = trio.sidecar.count();
            for i in 0..300 {
                let response = client.roundtrip("GET", head("GET /", &user(i))).await;
                assert_eq!(response.status, 200);
            }
            if trio.sidecar.count() - before >= 290 {
                break;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_question_that_failed_is_asked_again() {
    let trio = with_sidecar(
        |request| match request.header("x-fail") {
            Some(_) => vec![Step::Reset],
            None => answer(200, "", ""),
        },
        by_user(json!({})),
    )
    .await;
    for (headers, expected, count) in [
        ("x-fail: 1\r\n", "main", 1),
        ("x-fail: 1\r\n", "main", 2),
        ("", "canary", 3),
        ("x-fail: 1\r\n", "canary", 3),
    ] {
        assert_eq!(
            text(&trio, &format!("{}{headers}", user(1))).await,
            expected
        );
        assert_eq!(trio.sidecar.count(), count);
    }
    trio.router.counts(&asked_for("error"), 2.0).await;
}

#[tokio::test]
async fn what_is_kept_holds_while_the_sidecar_is_down() {
    let trio = with_sidecar(
        |request| match request.header("x-fail") {
            Some(_) => vec![Step::Reset],
            None => answer(200, "", ""),
        },
        by_user(json!({})),
    )
    .await;
    assert_eq!(text(&trio, &user(1)).await, "canary");
    for i in 10..15 {
        assert_eq!(
            text(&trio, &format!("{}x-fail: 1\r\n", user(i))).await,
            "main"
        );
    }
    trio.router.counts(&state("open"), 1.0).await;
    assert_eq!(text(&trio, &user(1)).await, "canary");
    assert_eq!(trio.sidecar.count(), 6);
}

#[tokio::test]
async fn with_an_answer_that_is_kept_a_body_streams_whole() {
    let trio = Trio::named(by_user(json!({}))).await;
    assert_eq!(text(&trio, &user(1)).await, "canary");
    for length in [1, 100 * KIB, 3 * KIB * KIB] {
        let body = noise(length);
        for (framing, sent) in [
            (format!("content-length: {length}\r\n"), body.clone()),
            ("transfer-encoding: chunked\r\n".into(), in_chunks(&body)),
        ] {
            let head = head("POST /", &format!("{}{framing}", user(1)));
            let mut client = Client::connect(trio.router.address).await;
            let response = client
                .roundtrip("POST", [head.as_bytes(), &sent].concat())
                .await;
            assert_eq!((response.status, response.text().as_str()), (200, "canary"));
            assert_same(&trio.canary.seen().pop().unwrap().body, &body);
        }
    }
    assert_eq!(trio.sidecar.count(), 1);
}

#[tokio::test]
async fn with_an_answer_that_is_kept_nobody_waits_for_a_body() {
    let trio = Trio::start(
        Upstream::named("main", 200).await,
        Upstream::start(|_| answer(200, "connection: close\r\n", "canary")).await,
        Upstream::start(asked).await,
        by_user(json!({})),
    );
    assert_eq!(text(&trio, &user(1)).await, "canary");
    let mut client = Client::connect(trio.router.address).await;
    let headers = format!("{}content-length: 9\r\n", user(1));
    client.send(head("POST /", &headers) + "some ").await;
    eventually(|| trio.canary.connections().0 == 2).await;
    assert_eq!(client.roundtrip("POST", "body").await.text(), "canary");
    assert_eq!(trio.sidecar.count(), 1);
}

#[tokio::test]
async fn the_bodies_of_those_who_share_an_answer_arrive_whole() {
    let gate = Gate::shut();
    let waiting = gate.clone();
    let trio = with_sidecar(
        move |_| [vec![Step::Wait(waiting.clone())], answer(200, "", "")].concat(),
        by_user(json!({})),
    )
    .await;
    let address = trio.router.address;
    let clients: Vec<_> = (0..10)
        .map(|i| {
            let body = noise((i + 1) * 50_000);
            tokio::spawn(async move {
                let headers = format!("{}content-length: {}\r\n", user(1), body.len());
                let head = head(&format!("POST /{i}"), &headers);
                let mut client = Client::connect(address).await;
                let sent = [head.as_bytes(), &body].concat();
                client.roundtrip("POST", sent).await.text()
            })
        })
        .collect();
    eventually(|| trio.sidecar.count() == 1).await;
    gate.open();
    for client in clients {
        assert_eq!(soon(client).await.unwrap(), "canary");
    }
    assert_eq!(trio.canary.count(), 10);
    for request in trio.canary.seen() {
        let i: usize = request.target()[1..].parse().unwrap();
        assert_same(&request.body, &noise((i + 1) * 50_000));
    }
}

/// A client that asks for `/`, and its request has come to the sidecar.
async fn asking(trio: &Trio, name: &str) -> Client {
    let before = trio.sidecar.count();
    let mut client = Client::connect(trio.router.address).await;
    client.send(head("GET /", &user(name))).await;
    eventually(|| trio.sidecar.count() > before).await;
    client
}

#[tokio::test]
async fn a_client_that_leaves_while_its_question_is_asked_does_not_fail_the_others() {
    let gate = Gate::shut();
    let waiting = gate.clone();
    let trio = with_sidecar(
        move |_| [vec![Step::Wait(waiting.clone())], answer(200, "", "")].concat(),
        by_user(json!({})),
    )
    .await;
    let first = asking(&trio, "1").await;
    let address = trio.router.address;
    let clients: Vec<_> = (0..20)
        .map(|_| tokio::spawn(async move { get(address, "/", &user(1)).await.text() }))
        .collect();
    for _ in 0..20 {
        get(address, "/application/health", "").await;
    }
    drop(first);
    // Another one asks.
    eventually(|| trio.sidecar.count() == 2).await;
    gate.open();
    for client in clients {
        assert_eq!(soon(client).await.unwrap(), "canary");
    }
    assert_eq!(trio.sidecar.count(), 2);
}

#[tokio::test]
async fn a_client_that_waits_for_an_answer_outlives_any_number_of_others() {
    // The 200th time that somebody left who was asking for the others too, those panicked.
    room_for_descriptors(8_000);
    let gate = Gate::shut();
    let waiting = gate.clone();
    let trio = with_sidecar(
        move |_| [vec![Step::Wait(waiting.clone())], answer(200, "", "")].concat(),
        {
            let mut config = by_user(json!({}));
            merge(
                &mut config,
                json!({"proxy-client": {"to-sidecar": {"timeout": "1h"}}}),
            );
            config
        },
    )
    .await;
    let mut clients = Vec::new();
    for i in 0..230 {
        let mut client = Client::connect(trio.router.address).await;
        let headers = format!("{}x-client: {i}\r\n", user(1));
        client.send(head("GET /", &headers)).await;
        clients.push(Some(client));
    }
    // All of them wait before the first leaves.
    for _ in 0..20 {
        get(trio.router.address, "/application/health", "").await;
    }
    for left in 1..230 {
        eventually(|| trio.sidecar.count() >= left).await;
        let seen = trio.sidecar.seen();
        let who: usize = seen[left - 1].header("x-client").unwrap().parse().unwrap();
        clients[who].take().unwrap().reset();
    }
    eventually(|| trio.sidecar.count() >= 230).await;
    gate.open();
    for client in clients.iter_mut().flatten() {
        assert_eq!(client.response("GET").await.unwrap().text(), "canary");
    }
}

#[tokio::test]
async fn a_client_that_is_slow_with_its_body_does_not_keep_the_others_waiting() {
    // They waited for its body, and failed when that broke off.
    let trio = Trio::named(by_user(json!({}))).await;
    for leaves in [false, true] {
        let name = if leaves { "2" } else { "1" };
        let before = trio.sidecar.count();
        let mut slow = Client::connect(trio.router.address).await;
        let headers = format!(
            "{}expect: 100-continue\r\ncontent-length: 9\r\n",
            user(name)
        );
        slow.send(head("POST /", &headers)).await;
        // It is waited for.
        slow.expect("HTTP/1.1 100 Continue\r\n\r\n").await;
        slow.send("some ").await;
        let address = trio.router.address;
        let other = tokio::spawn(async move { get(address, "/", &user(name)).await.text() });
        if leaves {
            for _ in 0..20 {
                get(address, "/application/health", "").await;
            }
            slow.reset();
            assert_eq!(soon(other).await.unwrap(), "canary");
        } else {
            // The two seconds of the sidecar are for the sidecar.
            let answered = tokio::time::timeout(Duration::from_millis(1_500), other).await;
            assert_eq!(answered.expect("no wait for its body").unwrap(), "canary");
            assert_eq!(slow.roundtrip("POST", "body").await.text(), "canary");
        }
        assert_eq!(trio.sidecar.count(), before + 1);
    }
}
