//! Rollouts as an operator sees them: started, judged, rolled back, resumed after a restart.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::support::*;

/// Main always answers; of a hundred answers of the canary so many are errors, evenly spread.
async fn targets(failing: usize) -> (Upstream, Upstream) {
    let count = AtomicUsize::new(0);
    let canary = Upstream::start(move |_| {
        let number = count.fetch_add(1, Ordering::SeqCst);
        let fails = number * failing / 100 != (number + 1) * failing / 100;
        answer(if fails { 500 } else { 200 }, "", "canary")
    });
    (Upstream::named("main", 200).await, canary.await)
}

fn config(main: &Upstream, canary: &Upstream, rollout: Value) -> Value {
    json!({
        "main-target": main.url(),
        "canary-target": canary.url(),
        "rollout": rollout
    })
}

/// Requests at a steady rate until it is dropped.
pub struct Traffic {
    task: tokio::task::JoinHandle<()>,
    errors: Arc<AtomicU64>,
    canary: Arc<AtomicU64>,
}

impl Traffic {
    pub fn start(address: std::net::SocketAddr, every: Duration) -> Traffic {
        let errors = Arc::new(AtomicU64::new(0));
        let canary = Arc::new(AtomicU64::new(0));
        let counts = (Arc::clone(&errors), Arc::clone(&canary));
        let task = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(every);
            let mut requests = tokio::task::JoinSet::new();
            loop {
                ticks.tick().await;
                while requests.try_join_next().is_some() {}
                let (errors, canary) = counts.clone();
                requests.spawn(async move {
                    let response = get(address, "/", "").await;
                    if response.text() == "canary" {
                        canary.fetch_add(1, Ordering::SeqCst);
                    }
                    if response.status != 200 {
                        errors.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        });
        Traffic {
            task,
            errors,
            canary,
        }
    }

    fn errors(&self) -> u64 {
        self.errors.load(Ordering::SeqCst)
    }

    fn canary(&self) -> u64 {
        self.canary.load(Ordering::SeqCst)
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn phase(status: &Value) -> &str {
    status["rollout"]["phase"].as_str().unwrap()
}

/// The first status of which this holds.
async fn until(router: &Router, holds: impl Fn(&Value) -> bool) -> Value {
    soon(async {
        loop {
            let status = router.status().await;
            if holds(&status) {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
}

async fn until_phase(router: &Router, wanted: &str) -> Value {
    until(router, |status| phase(status) == wanted).await
}

#[tokio::test]
async fn a_bad_canary_is_rolled_back_before_it_has_given_a_dozen_errors() {
    let (main, canary) = targets(30).await;
    let rollout = json!({"steps": [{"weight": 5, "for": "10m"}, {"weight": 50, "for": "10m"}]});
    let router = Router::start(config(&main, &canary, rollout));
    let traffic = Traffic::start(router.address, Duration::from_millis(10));
    let started = Instant::now();
    let status = router.change("POST", "/rollout/start", "").await;
    assert_eq!(
        (phase(&status), &status["weight"]),
        ("progressing", &json!(5))
    );
    let status = until_phase(&router, "rolled-back").await;
    let (errors, took) = (traffic.errors(), started.elapsed());
    assert!(errors <= 12, "{errors} errors");
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert_eq!(status["weight"], 0);

    // From now on not one request.
    let before = canary.count();
    for _ in 0..50 {
        assert_eq!(get(router.address, "/", "").await.text(), "main");
    }
    assert_eq!(canary.count(), before);

    let decision = &status["decisions"][0];
    assert_eq!(
        (&decision["by"], &decision["why"]),
        (&json!("judge"), &json!("unhealthy"))
    );
    assert_eq!(
        decision["from"],
        json!({"phase": "progressing", "step": 1, "weight": 5})
    );
    assert_eq!(
        decision["to"],
        json!({"phase": "rolled-back", "step": 1, "weight": 0})
    );
    recompute(&decision["figures"]);
    let metrics = router.metrics().await;
    for (series, value) in [
        ("canary_router_weight_ratio", 0.0),
        ("canary_router_rollout_phase{phase=\"rolled-back\"}", 1.0),
        ("canary_router_rollout_phase{phase=\"progressing\"}", 0.0),
        ("canary_router_rollout_step", 1.0),
    ] {
        assert_eq!(metrics.value(series), value, "{series}");
    }
    assert!(metrics.value("canary_router_analysis_log_evidence{metric=\"overall\"}") >= 4.6);
}

/// The verdict out of its figures, by the formula in docs/analysis.md and nothing else.
fn recompute(figures: &Value) {
    let r0 = figures["settings"]["error_ratio"].as_f64().unwrap();
    let accounts = figures["accounts"].as_array().unwrap();
    assert_eq!(accounts.len(), 1);
    // The mean over the alternatives of what events of the two targets, and failures of the canary of which a
    // share counts, multiply the stake with; the other half of it begins with the second account.
    let process = |r0: f64, events: &dyn Fn(&Value) -> [f64; 3], share: f64| -> f64 {
        let factors = [1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0, 1000.0];
        let each = factors.map(|factor| {
            let r = factor * r0;
            accounts.iter().fold(1.0, |product, account| {
                let rho = account["weight"].as_f64().unwrap() / 100.0;
                let of_main = (1.0 + rho * (r0 - 1.0)) / (1.0 + rho * (r - 1.0));
                let of_canary = factor * of_main;
                let [main, canary, failed] = events(account);
                let of_failed = 1.0 + share * (of_canary - 1.0);
                product * of_main.powf(main) * of_canary.powf(canary) * of_failed.powf(failed)
            })
        });
        0.5 + 0.5 * each.iter().sum::<f64>() / each.len() as f64
    };
    let number = |account: &Value, target: &str| account[target]["failed"].as_f64().unwrap();
    let errors = process(
        r0,
        &|account| [number(account, "main"), number(account, "canary"), 0.0],
        0.0,
    );
    let thresholds = accounts[0]["main"]["slow"].as_array().unwrap().len();
    let slow =
        |account: &Value, target: &str, i: usize| account[target]["slow"][i].as_f64().unwrap();
    let latency = (0..thresholds)
        .map(|i| {
            let events = |account: &Value| {
                let main = slow(account, "main", i) + number(account, "main");
                [main, slow(account, "canary", i), number(account, "canary")]
            };
            process(1.0, &events, 1.0 / r0)
        })
        .sum::<f64>()
        / thresholds as f64;
    let strength = &figures["strength"];
    for (name, computed) in [
        ("errors", errors),
        ("latency", latency),
        ("overall", (errors + latency) / 2.0),
        (
            "threshold",
            1.0 / figures["settings"]["false_rollback_probability"]
                .as_f64()
                .unwrap(),
        ),
    ] {
        let said = strength[name].as_f64().unwrap();
        assert!(
            (said - computed.ln()).abs() < 1e-6,
            "{name}: {said} {}",
            computed.ln()
        );
    }
    let is_over = strength["overall"].as_f64() >= strength["threshold"].as_f64();
    assert_eq!(is_over, strength["verdict"] == "unhealthy");
}

#[tokio::test]
async fn a_good_canary_goes_through_all_steps() {
    let (main, canary) = targets(0).await;
    let rollout = json!({"steps": [
        {"weight": 50, "for": "1s"}, {"weight": 75, "for": "1s"}, {"weight": 100, "for": "1s"}
    ]});
    let router = Router::start(config(&main, &canary, rollout));
    router.change("POST", "/rollout/start", "").await;
    let traffic = Traffic::start(router.address, Duration::from_millis(2));
    let status = until_phase(&router, "succeeded").await;
    assert_eq!(status["weight"], 100);
    assert_eq!(traffic.errors(), 0);
    let why: Vec<&str> = status["decisions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|decision| decision["why"].as_str().unwrap())
        .filter(|why| *why != "extended")
        .collect();
    assert_eq!(why, ["step-passed", "step-passed", "step-passed", "start"]);
}

#[tokio::test]
async fn an_abort_holds_from_its_answer_on_whoever_is_asked_about() {
    let (main, canary) = targets(0).await;
    // The sidecar says canary, but not before the gate opens.
    let gate = Gate::shut();
    let sidecar = {
        let gate = gate.clone();
        Upstream::start(move |_| {
            let mut steps = vec![Step::Wait(gate.clone())];
            steps.extend(answer(200, "", ""));
            steps
        })
        .await
    };
    let mut file = config(
        &main,
        &canary,
        json!({"steps": [{"weight": 99.99, "for": "10m"}]}),
    );
    merge(
        &mut file,
        json!({"sidecar-url": sidecar.url(), "traffic": {"weight": 0}}),
    );
    let router = Router::start(file);
    router.change("POST", "/rollout/start", "").await;
    let address = router.address;
    let waiting: Vec<_> = (0..20)
        .map(|_| tokio::spawn(async move { get(address, "/", "").await.text() }))
        .collect();
    eventually(|| sidecar.count() == 20).await;
    let status = router.change("POST", "/rollout/abort", "").await;
    assert_eq!(
        (phase(&status), &status["weight"]),
        ("rolled-back", &json!(0))
    );
    gate.open();
    for waiting in waiting {
        assert_eq!(soon(waiting).await.unwrap(), "main");
    }
    assert_eq!(canary.count(), 0);
    // And the sidecar is not asked any more.
    assert_eq!(get(router.address, "/", "").await.text(), "main");
    assert_eq!(sidecar.count(), 20);
    router
        .counts(&reason("Canary weight is 0", "main"), 1.0)
        .await;
    let drawn = reason(
        "Sidecar returns status code 200, but weight chose main",
        "main",
    );
    router.counts(&drawn, 20.0).await;
}

#[tokio::test]
async fn silence_is_no_pass_the_step_is_extended_and_then_paused() {
    let (main, canary) = targets(0).await;
    let rollout = json!({"steps": [{"weight": 5, "for": "1s"}], "max-extension": "1s"});
    let router = Router::start(config(&main, &canary, rollout));
    router.change("POST", "/rollout/start", "").await;
    let status = until_phase(&router, "paused").await;
    assert_eq!(status["weight"], 5);
    let why = |i: usize| status["decisions"][i]["why"].as_str().unwrap().to_owned();
    assert_eq!(
        [why(0), why(1), why(2)],
        ["paused-without-evidence", "extended", "start"]
    );
    let status = router.change("POST", "/rollout/promote", "").await;
    assert_eq!(
        (phase(&status), &status["weight"]),
        ("succeeded", &json!(100))
    );
}

#[tokio::test]
async fn the_judge_rolls_back_what_is_paused() {
    let (main, canary) = targets(100).await;
    let router = Router::start(config(
        &main,
        &canary,
        json!({"steps": [{"weight": 20, "for": "1h"}]}),
    ));
    router.change("POST", "/rollout/start", "").await;
    let status = router.change("POST", "/rollout/pause", "").await;
    assert_eq!(phase(&status), "paused");
    let _traffic = Traffic::start(router.address, Duration::from_millis(10));
    until_phase(&router, "rolled-back").await;
}

/// Clients that had less patience than the router took every trace of a canary that hangs with them.
#[tokio::test]
async fn a_canary_that_lets_clients_wait_until_they_leave_is_rolled_back() {
    let main = Upstream::named("main", 200).await;
    let canary = Upstream::start(|_| vec![Step::Hang]).await;
    let router = Router::start(config(
        &main,
        &canary,
        json!({"steps": [{"weight": 20, "for": "1h"}]}),
    ));
    router.change("POST", "/rollout/start", "").await;
    let address = router.address;
    let clients = tokio::spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_millis(10));
        loop {
            ticks.tick().await;
            tokio::spawn(tokio::time::timeout(
                Duration::from_millis(500),
                get(address, "/", ""),
            ));
        }
    });
    let status = until_phase(&router, "rolled-back").await;
    clients.abort();
    assert_eq!(status["decisions"][0]["why"], "unhealthy");
    assert_eq!(status["evidence"]["failures"]["canary"], 0);
}

#[tokio::test]
async fn a_dry_run_says_what_it_would_do_and_moves_nothing() {
    let (main, canary) = targets(100).await;
    let router = Router::start(config(
        &main,
        &canary,
        json!({"steps": [{"weight": 20, "for": "1h"}], "dry-run": true}),
    ));
    router.change("POST", "/rollout/start", "").await;
    let traffic = Traffic::start(router.address, Duration::from_millis(10));
    let decided = |status: &Value| status["decisions"][0]["why"] == "unhealthy-in-dry-run";
    let status = until(&router, decided).await;
    assert_eq!(
        (phase(&status), &status["weight"]),
        ("progressing", &json!(20))
    );
    let before = traffic.canary();
    eventually(|| traffic.canary() > before).await;
}

#[tokio::test]
async fn what_forces_is_no_experiment() {
    let (main, canary) = targets(100).await;
    let router = Router::start(config(
        &main,
        &canary,
        json!({"steps": [{"weight": 0.01, "for": "1h"}]}),
    ));
    router.change("POST", "/rollout/start", "").await;
    for _ in 0..200 {
        assert_eq!(
            get(router.address, "/", "x-canary: true\r\n").await.status,
            500
        );
    }
    assert_eq!(get(router.address, "/", "").await.status, 200);
    let counted = |status: &Value| status["evidence"]["requests"]["main"].as_u64().unwrap() > 0;
    let status = until(&router, counted).await;
    assert_eq!(
        status["evidence"]["failures"],
        json!({"main": 0, "canary": 0})
    );
    assert_eq!(phase(&status), "progressing");
}

/// With one stream begun each second, each verdict took as long as the judge waits for an answer at most.
#[tokio::test]
async fn streams_do_not_hold_a_rollback_up() {
    let stream = |request: &Received, status: u16, name: &str| match request.target() {
        "/stream" => {
            let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";
            vec![Step::Write(head.into()), Step::Hang]
        }
        _ => answer(status, "", name),
    };
    let main = Upstream::start(move |request| stream(request, 200, "main")).await;
    let canary = Upstream::start(move |request| stream(request, 500, "canary")).await;
    let mut file = config(
        &main,
        &canary,
        json!({"steps": [{"weight": 20, "for": "1h"}]}),
    );
    // It would wait for 33 seconds.
    merge(
        &mut file,
        json!({"proxy-client": {"to-main-and-canary": {"timeout": "30s"}}}),
    );
    let router = Router::start(file);
    router.change("POST", "/rollout/start", "").await;
    let address = router.address;
    let streams = tokio::spawn(async move {
        let mut streams = Vec::new();
        loop {
            let mut client = Client::connect(address).await;
            client.send(head("GET /stream", "")).await;
            streams.push(client);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let _traffic = Traffic::start(address, Duration::from_millis(20));
    until_phase(&router, "rolled-back").await;
    streams.abort();
}

/// Both targets fail 2 % of their requests: of a hundred rollouts one at most may be rolled back.
#[tokio::test]
async fn a_hundred_rollouts_of_a_canary_that_is_as_good_as_main_go_through() {
    const ROUTERS: usize = 5;
    const ROLLOUTS: usize = 20;
    let flaky = |name: &'static str| {
        Upstream::start(move |_| answer(if fastrand::u32(..100) < 2 { 500 } else { 200 }, "", name))
    };
    let (main, canary) = (flaky("main").await, flaky("canary").await);
    let rollout = json!({"steps": [{"weight": 20, "for": "1s"}], "on-inconclusive": "advance"});
    let file = config(&main, &canary, rollout);
    let runs = together((0..ROUTERS).map(move |_| {
        let file = file.clone();
        async move {
            let router = Router::start(file);
            let _traffic = Traffic::start(router.address, Duration::from_millis(10));
            let mut ended = Vec::new();
            for _ in 0..ROLLOUTS {
                let mut status = router.change("POST", "/rollout/start", "").await;
                while phase(&status) == "progressing" {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    status = router.status().await;
                }
                ended.push(phase(&status).to_owned());
            }
            ended
        }
    }))
    .await
    .concat();
    let count = |wanted: &str| runs.iter().filter(|ended| *ended == wanted).count();
    assert_eq!(
        count("succeeded") + count("rolled-back"),
        ROUTERS * ROLLOUTS
    );
    assert!(count("rolled-back") <= 1, "{runs:?}");
    assert!(canary.count() > 500, "{}", canary.count());
}

/// What had come in since evidence was kept the last time, five seconds at most, was gone after a stop, too.
#[tokio::test]
async fn a_stop_loses_nothing() {
    let (main, canary) = targets(0).await;
    let folder = Folder::new();
    let (proxy, metrics) = (Port::reserve(), Port::reserve());
    let mut file = config(
        &main,
        &canary,
        json!({"steps": [{"weight": 50, "for": "1h"}]}),
    );
    merge(
        &mut file,
        json!({
            "router-server": {"host": "127.0.0.1", "port": proxy.number(), "workers": 2},
            "instrumentation": {"host": "127.0.0.1", "port": metrics.number()},
            "state": {"file": "state.json"}
        }),
    );
    folder.write("config.json", file.to_string());
    let start = async || {
        let mut process = Process::start(&folder, &[]);
        process.listens(proxy.address).await;
        process.listens(metrics.address).await;
        process
    };
    let status = async || admin(metrics.address, "GET", "/status", "").await.1;
    let counted = |status: &Value| {
        let requests = &status["evidence"]["requests"];
        requests["main"].as_u64().unwrap() + requests["canary"].as_u64().unwrap()
    };
    let mut process = start().await;
    admin(metrics.address, "POST", "/rollout/start", "").await;
    for _ in 0..40 {
        get(proxy.address, "/", "").await;
    }
    let before = soon(async {
        loop {
            let status = status().await;
            if counted(&status) == 40 {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    process.signal("TERM");
    assert!(process.ended().await.success());
    let _process = start().await;
    let after = status().await;
    for part in ["requests", "overall", "acceptable_failure_rate"] {
        assert_eq!(after["evidence"][part], before["evidence"][part], "{part}");
    }
    let elapsed = |status: &Value| status["rollout"]["elapsed_seconds"].as_f64().unwrap();
    assert!(elapsed(&after) >= elapsed(&before));
}

/// With the real program, so that it can be killed.
#[tokio::test]
async fn a_rollout_goes_on_where_it_was_after_a_kill() {
    let (main, canary) = targets(0).await;
    let folder = Folder::new();
    let (proxy, metrics) = (Port::reserve(), Port::reserve());
    let mut file = config(
        &main,
        &canary,
        json!({
            "steps": [{"weight": 30, "for": "1s"}, {"weight": 60, "for": "1h"}],
            "on-inconclusive": "advance"
        }),
    );
    merge(
        &mut file,
        json!({
            "traffic": {"sticky": {"by": "header:x-user"}},
            "router-server": {"host": "127.0.0.1", "port": proxy.number(), "workers": 2},
            "instrumentation": {"host": "127.0.0.1", "port": metrics.number()},
            "state": {"file": "state.json"}
        }),
    );
    folder.write("config.json", file.to_string());
    let whose = async || {
        let mut whose = Vec::new();
        for user in 0..100 {
            let user = format!("x-user: {user}\r\n");
            whose.push(get(proxy.address, "/", &user).await.text());
        }
        whose
    };
    let mut process = Process::start(&folder, &[]);
    process.listens(proxy.address).await;
    process.listens(metrics.address).await;
    admin(metrics.address, "POST", "/rollout/start", "").await;
    // Evidence is kept every five seconds.
    soon(async {
        loop {
            whose().await;
            let (_, status) = admin(metrics.address, "GET", "/status", "").await;
            if status["rollout"]["step"] == 2
                && status["rollout"]["elapsed_seconds"].as_f64() > Some(6.0)
            {
                break;
            }
        }
    })
    .await;
    let before = whose().await;
    let (_, status) = admin(metrics.address, "GET", "/status", "").await;
    process.kill();

    let mut process = Process::start(&folder, &[]);
    process.listens(proxy.address).await;
    process.listens(metrics.address).await;
    let (_, again) = admin(metrics.address, "GET", "/status", "").await;
    assert_eq!(
        (phase(&again), &again["rollout"]["step"]),
        ("progressing", &json!(2))
    );
    assert_eq!(again["weight"], 60);
    let elapsed = again["rollout"]["elapsed_seconds"].as_f64().unwrap();
    let was = status["rollout"]["elapsed_seconds"].as_f64().unwrap();
    assert!(elapsed > 0.5 && elapsed > was - 6.0, "{elapsed} {was}");
    let counted = |status: &Value| status["evidence"]["requests"]["canary"].as_u64().unwrap();
    assert!(
        counted(&again) >= counted(&status) / 8,
        "{} {}",
        counted(&again),
        counted(&status)
    );
    assert_eq!(again["decisions"], status["decisions"]);
    assert_eq!(whose().await, before, "the same clients in the canary");

    // An abort is on disk before it is answered.
    let (code, _) = admin(metrics.address, "POST", "/rollout/abort", "").await;
    assert_eq!(code, 200);
    process.kill();
    let seen = canary.count();
    let mut process = Process::start(&folder, &[]);
    process.takes_connections(proxy.address).await;
    assert!(whose().await.iter().all(|answer| answer == "main"));
    assert_eq!(canary.count(), seen);
}
