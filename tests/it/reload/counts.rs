//! What was counted goes on to count: limits, breakers, and what the sidecar has said.

use super::*;

const ERRORS_LEFT: &str = "canary_router_error_budget_remaining";
const REQUESTS_LEFT: &str = "canary_router_request_budget_remaining";

/// Main and canary, and the program before them, which sends all that it may to the canary.
struct House {
    main: Upstream,
    canary: Upstream,
    /// Keeps what asks the canary for `/wait`.
    gate: Gate,
    program: Program,
}

impl House {
    async fn with(config: Value) -> House {
        let gate = Gate::shut();
        let (main, waiting) = (Upstream::named("main", 200).await, gate.clone());
        let canary = Upstream::start(move |request| {
            let status = request.header("x-status").unwrap_or("200").parse().unwrap();
            let answer = answer(status, "", "canary");
            match request.target() {
                "/wait" => [vec![Step::Wait(waiting.clone())], answer].concat(),
                _ => answer,
            }
        })
        .await;
        let mut file = json!({
            "main-target": main.url(), "canary-target": canary.url(), "traffic": {"weight": 100}
        });
        merge(&mut file, config);
        let program = Program::start(file).await;
        House {
            main,
            canary,
            gate,
            program,
        }
    }

    /// Who answers a request that the canary would answer with this status, and with which.
    async fn asks(&self, status: u16) -> (u16, String) {
        let answer = get(
            self.program.address,
            "/",
            &format!("x-status: {status}\r\n"),
        )
        .await;
        (answer.status, answer.text())
    }

    /// So many at the same time, with reloads of this configuration meanwhile: how many the canary has answered.
    async fn crowd(&self, requests: usize, status: u16, config: Value) -> usize {
        change(&self.program, config.clone()).await;
        let (before, address) = (self.canary.count(), self.program.address);
        let crowd = tokio::spawn(together((0..requests).map(move |_| async move {
            let answer = get(address, "/", &format!("x-status: {status}\r\n")).await;
            match answer.text().as_str() {
                "canary" => assert_eq!(answer.status, status),
                name => assert_eq!((answer.status, name), (200, "main")),
            }
        })));
        for reloads in 0.. {
            if crowd.is_finished() && reloads >= 5 {
                break;
            }
            let mut config = config.clone();
            if reloads % 2 == 0 {
                let other = json!({"trim-prefix": "/a", "router-server": {"idle-timeout": "9s"}});
                merge(&mut config, other);
            }
            change(&self.program, config).await;
        }
        crowd.await.unwrap();
        self.canary.count() - before
    }

    async fn metric(&self, series: &str) -> f64 {
        metric(&self.program, series).await
    }

    async fn counts(&self, series: &str, value: f64) {
        soon(async { while self.metric(series).await != value {} }).await;
    }
}

fn limits(config: Value) -> Value {
    json!({"circuit-breaker": config})
}

#[tokio::test]
async fn the_request_limit_is_exact_over_reloads_and_goes_on_from_what_was_used() {
    let limit = |limit: Option<u64>| limits(json!({"request-limit-canary": limit}));
    let house = House::with(limit(Some(45))).await;
    assert_eq!(house.crowd(100, 200, limit(Some(45))).await, 45);
    // Raised, lowered below what is used, raised again.
    assert_eq!(house.crowd(100, 200, limit(Some(60))).await, 15);
    change(&house.program, limit(Some(30))).await;
    assert_eq!(house.asks(200).await.1, "main");
    let status = change(&house.program, limit(Some(30))).await;
    assert_eq!(status["limits"]["requests_remaining"], 0);
    assert_eq!(status["limits"]["requests_limit"], 30);
    assert_eq!(house.metric(REQUESTS_LEFT).await, 0.0);
    assert_eq!(house.crowd(20, 200, limit(Some(61))).await, 1);
    // Without one nothing is counted, and what was is not forgotten.
    assert_eq!(house.crowd(50, 200, limit(None)).await, 50);
    assert_eq!(house.crowd(50, 200, limit(Some(61))).await, 0);
    assert_eq!(house.crowd(50, 200, limit(Some(71))).await, 10);
    assert_eq!(house.main.count(), 55 + 85 + 1 + 19 + 50 + 40);
}

#[tokio::test]
async fn the_error_limit_is_exact_over_reloads_and_goes_on_from_what_was_used() {
    let limit = |limit: Option<u64>| limits(json!({"error-limit-canary": limit}));
    let house = House::with(limit(Some(20))).await;
    // Some of them are refused for what is reserved.
    while house.metric(ERRORS_LEFT).await > 0.0 {
        house.crowd(30, 500, limit(Some(20))).await;
    }
    assert_eq!(house.canary.count(), 20);
    change(&house.program, limit(Some(10))).await;
    assert_eq!(house.asks(500).await, (200, "main".into()));
    change(&house.program, limit(Some(25))).await;
    assert_eq!(house.metric(ERRORS_LEFT).await, 5.0);
    while house.metric(ERRORS_LEFT).await > 0.0 {
        house.crowd(30, 500, limit(Some(25))).await;
    }
    assert_eq!(house.canary.count(), 25);
    change(&house.program, limit(None)).await;
    assert_eq!(house.asks(500).await, (500, "canary".into()));
    change(&house.program, limit(Some(25))).await;
    assert_eq!(house.asks(500).await, (200, "main".into()));
    // It has been said what counts as one, and what is said from now on counts by that.
    let by_5xx = limits(json!({"error-limit-canary": 27, "errors": "5xx"}));
    change(&house.program, by_5xx).await;
    assert_eq!(house.asks(404).await, (404, "canary".into()));
    house.counts(ERRORS_LEFT, 2.0).await;
    change(&house.program, limit(Some(27))).await;
    assert_eq!(house.asks(404).await, (404, "canary".into()));
    house.counts(ERRORS_LEFT, 1.0).await;
}

/// What is in flight has its errors reserved, whatever is configured meanwhile, and is settled by the rules by which
/// it began.
#[tokio::test]
async fn reservations_of_requests_in_flight_outlive_each_reload_and_are_given_back() {
    let limit = |limit: Option<u64>| limits(json!({"error-limit-canary": limit, "errors": "5xx"}));
    let house = House::with(limit(Some(5))).await;
    let address = house.program.address;
    let waiting = tokio::spawn(together((0..5).map(move |i| async move {
        let status = if i < 2 { 500 } else { 404 };
        get(address, "/wait", &format!("x-status: {status}\r\n"))
            .await
            .status
    })));
    eventually(|| house.canary.count() == 5).await;
    change(&house.program, limit(Some(5))).await;
    assert_eq!(house.asks(200).await.1, "main");
    change(&house.program, limit(Some(6))).await;
    assert_eq!(house.asks(200).await.1, "canary");
    change(&house.program, limit(Some(3))).await;
    assert_eq!(house.asks(200).await.1, "main");
    change(&house.program, limit(None)).await;
    assert_eq!(house.asks(500).await, (500, "canary".into()));
    change(&house.program, limits(json!({"error-limit-canary": 5}))).await;
    assert_eq!(house.asks(200).await.1, "main");
    house.gate.open();
    waiting.await.unwrap();
    // By the rule that is in force now the others would be errors too.
    house.counts(ERRORS_LEFT, 3.0).await;
}

fn breaker(more: Value) -> Value {
    let mut breaker = json!({"failure-rate-threshold": 50, "minimum-number-of-calls": 2, "wait-open": "1h", "max-wait-open": "1h"});
    merge(&mut breaker, more);
    limits(breaker)
}

fn state(target: &str, state: &str) -> String {
    format!("canary_router_breaker_state{{state=\"{state}\",target=\"{target}\"}}")
}

#[tokio::test]
async fn a_breaker_goes_on_from_where_it_stands() {
    let house = House::with(breaker(json!({"minimum-number-of-calls": 4}))).await;
    // What was counted while it was closed counts on.
    assert_eq!(house.asks(500).await.0, 500);
    change(
        &house.program,
        breaker(json!({"minimum-number-of-calls": 3})),
    )
    .await;
    assert_eq!(house.asks(500).await.0, 500);
    assert_eq!(house.metric(&state("canary", "closed")).await, 1.0);
    change(
        &house.program,
        breaker(json!({"minimum-number-of-calls": 3, "failure-rate-threshold": 90})),
    )
    .await;
    assert_eq!(house.asks(500).await.0, 500);
    house.counts(&state("canary", "open"), 1.0).await;
    for config in [
        json!({}),
        json!({"failure-rate-threshold": 99}),
        json!({"window": "30s"}),
        json!({"failure": "non-2xx"}),
    ] {
        let status = change(&house.program, breaker(config)).await;
        assert_eq!(status["breakers"]["canary"], "open");
        assert_eq!(house.asks(200).await.1, "main");
    }
    let transitions =
        "canary_router_breaker_transitions_total{from=\"closed\",target=\"canary\",to=\"open\"}";
    assert_eq!(house.metric(transitions).await, 1.0);
    // Open for as long as it would have to be by what is in force.
    change(
        &house.program,
        breaker(json!({"wait-open": "100ms", "max-wait-open": "200ms", "permitted-half-open": 1})),
    )
    .await;
    soon(async { while house.asks(200).await.1 != "canary" {} }).await;
    house.counts(&state("canary", "closed"), 1.0).await;
    // One that was off is closed, and one that is off is none.
    for _ in 0..2 {
        assert_eq!(house.asks(500).await.0, 500);
    }
    change(&house.program, breaker(json!({}))).await;
    let status = change(&house.program, json!({"circuit-breaker": null})).await;
    assert_eq!(status["breakers"]["canary"], "closed");
    assert_eq!(house.asks(500).await.0, 500);
    let status = change(&house.program, breaker(json!({}))).await;
    assert_eq!(status["breakers"]["canary"], "closed");
}

#[tokio::test]
async fn probes_of_before_a_reload_count_among_those_that_are_permitted() {
    let permitted = |number: u64| {
        breaker(
            json!({"permitted-half-open": number, "wait-open": "50ms", "max-wait-open": "100ms"}),
        )
    };
    let house = House::with(permitted(2)).await;
    for _ in 0..2 {
        assert_eq!(house.asks(500).await.0, 500);
    }
    house.counts(&state("canary", "open"), 1.0).await;
    let address = house.program.address;
    let probe = move || async move {
        loop {
            let answer = get(address, "/wait", "").await;
            if answer.text() == "canary" {
                return;
            }
        }
    };
    let mut probes: Vec<_> = (0..2).map(|_| tokio::spawn(probe())).collect();
    eventually(|| house.canary.count() == 4).await;
    for (number, name) in [(2, "main"), (1, "main"), (3, "canary"), (2, "main")] {
        change(&house.program, permitted(number)).await;
        for _ in 0..20 {
            let before = house.canary.count();
            match name {
                "canary" if house.canary.count() == 5 => break,
                "canary" => {
                    probes.push(tokio::spawn(probe()));
                    eventually(|| house.canary.count() > before).await;
                }
                name => assert_eq!(house.asks(200).await.1, name, "{number}"),
            }
        }
    }
    assert_eq!(house.canary.count(), 5);
    assert_eq!(house.metric(&state("canary", "half_open")).await, 1.0);
    house.gate.open();
    for probe in probes {
        soon(probe).await.unwrap();
    }
    house.counts(&state("canary", "closed"), 1.0).await;
}

#[tokio::test]
async fn what_the_sidecar_has_said_holds_as_long_as_it_would_be_asked_the_same() {
    let (main, canary) = (service("main").await, service("canary").await);
    let sidecars = [Upstream::start(asked).await, Upstream::start(asked).await];
    let program = Program::start(json!({
        "main-target": main.url(), "canary-target": canary.url(), "sidecar-url": sidecars[0].url(),
        "sidecar": {"cache": {"key": ["header:X-User"], "ttl": "1h"}}
    }))
    .await;
    let counts = || [sidecars[0].count(), sidecars[1].count()];
    let ask = async || get(program.address, "/x", "x-user: a\r\n").await.text();
    for _ in 0..3 {
        assert_eq!(ask().await, "canary /x");
    }
    assert_eq!(counts(), [1, 0]);
    let mut expected = [1, 0];
    for (config, asks) in [
        (json!({}), None),
        (
            json!({"log": {"access": "json"}, "main-target": format!("{}/", main.url())}),
            None,
        ),
        (
            json!({"proxy-client": {"to-sidecar": {"timeout": "9s"}}}),
            None,
        ),
        (
            json!({"router-server": {"read-timeout": "9s"}, "traffic": {"weight": 100}}),
            None,
        ),
        (json!({"sidecar-url": sidecars[1].url()}), Some(1)),
        (json!({"sidecar-url": sidecars[0].url()}), Some(0)),
        (
            json!({"sidecar-url": format!("{}/other", sidecars[0].url())}),
            Some(0),
        ),
        (
            json!({"sidecar-url": format!("{}/?other", sidecars[0].url())}),
            Some(0),
        ),
        (
            json!({"sidecar": {"cache": {"key": ["header:X-User", "method"]}}}),
            Some(0),
        ),
        (json!({"sidecar": {"body": "none"}}), Some(0)),
        (json!({"trim-prefix": "/nothing"}), Some(0)),
    ] {
        change(&program, config.clone()).await;
        if let Some(i) = asks {
            expected[i] += 1;
        }
        for _ in 0..4 {
            assert_eq!(ask().await, "canary /x");
        }
        assert_eq!(counts(), expected, "{config}");
    }
    // Another way to ask is another sidecar, though it is in the same place: this one speaks no TLS.
    change(&program, json!({})).await;
    assert_eq!(ask().await, "canary /x");
    expected[0] += 1;
    let secure = sidecars[0].url().replace("http:", "https:");
    change(&program, json!({"sidecar-url": secure})).await;
    assert_eq!(ask().await, "main /x");
    // Off and on again it begins anew.
    change(&program, json!({"sidecar-url": null, "sidecar": null})).await;
    assert_eq!(ask().await, "main /x");
    change(&program, json!({})).await;
    assert_eq!(ask().await, "canary /x");
    assert_eq!(counts(), [expected[0] + 1, expected[1]]);
}

/// The file is written on by what is in force, so a kill behind a reload forgets nothing.
#[tokio::test]
async fn what_was_counted_before_and_after_a_reload_is_there_after_a_kill() {
    let (folder, main) = (Folder::new(), Upstream::named("main", 200).await);
    let canary = Upstream::start(|request| {
        answer(
            if request.target() == "/bad" { 500 } else { 200 },
            "",
            "canary",
        )
    })
    .await;
    let with = |requests: Option<u64>, errors: Option<u64>| {
        json!({
            "main-target": main.url(), "canary-target": canary.url(), "traffic": {"weight": 100},
            "circuit-breaker": {"request-limit-canary": requests, "error-limit-canary": errors},
            "state": {"file": folder.0.join("state.json")}
        })
    };
    let mut program = Program::start(with(Some(1000), None)).await;
    // A count runs ahead on disk, so one may be refused that comes too fast.
    let to_canary = async |program: &Program, target: &str, times: usize| {
        let before = canary.count();
        soon(async {
            while canary.count() < before + times {
                get(program.address, target, "").await;
            }
        })
        .await;
    };
    to_canary(&program, "/", 20).await;
    // From the moment that it has answered: a limit that was not there before has its room on disk by then.
    change(&program, with(Some(1000), Some(100))).await;
    assert_eq!(get(program.address, "/bad", "").await.status, 500);
    to_canary(&program, "/bad", 9).await;
    program.process.kill();
    // What was written ahead is lost, and nothing is forgotten.
    let left = async |program: &Program, most: [f64; 2]| {
        let left = [
            metric(program, REQUESTS_LEFT).await,
            metric(program, ERRORS_LEFT).await,
        ];
        assert!((0..2).all(|i| left[i] <= most[i]), "{left:?}");
    };
    let mut program = Program::start(with(Some(1000), Some(100))).await;
    left(&program, [970.0, 90.0]).await;
    // Raised and lowered.
    change(&program, with(Some(2000), Some(200))).await;
    to_canary(&program, "/bad", 10).await;
    change(&program, with(Some(50), Some(200))).await;
    program.process.kill();
    let program = Program::start(with(Some(2000), Some(200))).await;
    left(&program, [1960.0, 180.0]).await;
    let kept: Value =
        serde_json::from_str(&std::fs::read_to_string(folder.0.join("state.json")).unwrap())
            .unwrap();
    assert!(kept["limits"]["requests"].as_u64() >= Some(40), "{kept}");
}
