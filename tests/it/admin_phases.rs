//! What an operator does to a rollout, step by step, and what the router says of it in each phase.

use std::{
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use serde_json::{Value, json};

use crate::support::*;

pub const WEIGHT: &str = "/traffic/weight";
pub const SEVEN: &str = r#"{"weight": 7}"#;
const PHASES: [&str; 5] = ["idle", "progressing", "paused", "succeeded", "rolled-back"];

/// Main answers, the canary while it is healthy.
pub struct Pair {
    main: Upstream,
    canary: Upstream,
    healthy: Arc<AtomicBool>,
}

impl Pair {
    pub async fn new() -> Pair {
        let healthy = Arc::new(AtomicBool::new(true));
        let is_healthy = Arc::clone(&healthy);
        let canary = Upstream::start(move |_| {
            let status = if is_healthy.load(Ordering::SeqCst) {
                200
            } else {
                500
            };
            answer(status, "", "canary")
        });
        Pair {
            main: Upstream::named("main", 200).await,
            canary: canary.await,
            healthy,
        }
    }

    pub fn config(&self, more: Value) -> Value {
        let mut file = json!({"main-target": self.main.url(), "canary-target": self.canary.url()});
        merge(&mut file, more);
        file
    }

    pub fn is_healthy(&self, healthy: bool) {
        self.healthy.store(healthy, Ordering::SeqCst);
    }
}

pub fn steps() -> Value {
    json!({"rollout": {"steps": [{"weight": 5, "for": "1h"}, {"weight": 50, "for": "1h"}]}})
}

fn place(status: &Value) -> (String, Value) {
    let phase = status["rollout"]["phase"].as_str().unwrap();
    (phase.to_owned(), status["weight"].clone())
}

/// `/status`, once it is as it should be.
pub async fn until(router: &Router, right: impl Fn(&Value) -> bool) -> Value {
    soon(async {
        loop {
            let status = router.status().await;
            if right(&status) {
                return status;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
}

/// Whatever phase it is in, into this one.
async fn bring(router: &Router, phase: &str) {
    router.change("POST", "/rollout/abort", "").await;
    let way: &[&str] = match phase {
        "idle" => {
            router.change("PUT", WEIGHT, r#"{"weight": 3}"#).await;
            &[]
        }
        "progressing" => &["start"],
        "paused" => &["start", "pause"],
        "succeeded" => &["promote"],
        _ => &[],
    };
    for verb in way {
        router.change("POST", &format!("/rollout/{verb}"), "").await;
    }
    assert_eq!(place(&router.status().await).0, phase);
}

/// Each decision goes on where the one before has ended, and is the next one.
#[track_caller]
fn assert_is_a_log(decisions: &[Value]) {
    for decision in decisions {
        openapi::assert_is("Decision", decision);
        let time = decision["time"].as_str().unwrap();
        assert!(
            time.ends_with('Z') && time.len() == "2026-01-01T00:00:00.000Z".len(),
            "{time}"
        );
        humantime::parse_rfc3339(time).unwrap();
        assert!(!decision["text"].as_str().unwrap().is_empty());
    }
    for pair in decisions.windows(2) {
        let [later, earlier] = pair else {
            unreachable!()
        };
        assert_eq!(
            later["number"].as_u64(),
            earlier["number"].as_u64().map(|number| number + 1)
        );
        assert_eq!(later["from"], earlier["to"], "{later} {earlier}");
        assert!(later["time"].as_str() >= earlier["time"].as_str());
    }
}

pub async fn decisions(address: std::net::SocketAddr) -> Vec<Value> {
    let (code, log) = admin(address, "GET", "/decisions", "").await;
    assert_eq!(code, 200);
    openapi::assert_is("Decisions", &log);
    let log = log["decisions"].as_array().unwrap().clone();
    assert_is_a_log(&log);
    log
}

/// What Prometheus makes of the page, and that it is in exactly one phase.
fn assert_is_a_page(metrics: &Metrics, phase: &str) {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("promtool is there: install Debian's prometheus");
    let mut stdin = promtool.stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, metrics.0.as_bytes()).unwrap();
    drop(stdin);
    let said = promtool.wait_with_output().unwrap();
    assert!(matches!(said.status.code(), Some(0 | 3)));
    let said = String::from_utf8([said.stdout, said.stderr].concat()).unwrap();
    for complaint in said.lines().filter(|line| !line.is_empty()) {
        let of_the_original = complaint.starts_with("canary_router_request_count ")
            || complaint.starts_with("canary_router_request_latency ");
        assert!(of_the_original, "{said}");
    }
    for known in PHASES {
        let series = format!("canary_router_rollout_phase{{phase=\"{known}\"}}");
        assert_eq!(
            metrics.value(&series),
            f64::from(u8::from(known == phase)),
            "{known}"
        );
    }
    metrics.value("canary_router_weight_ratio");
    metrics.value("canary_router_rollout_step");
    for metric in ["errors", "latency", "overall"] {
        let evidence = format!("canary_router_analysis_log_evidence{{metric=\"{metric}\"}}");
        assert!(metrics.value(&evidence).is_finite());
    }
    for verdict in ["healthy", "inconclusive", "unhealthy"] {
        metrics.value(&format!(
            "canary_router_analysis_verdicts_total{{verdict=\"{verdict}\"}}"
        ));
    }
}

/// All phases, one after the other.
const WAY: [(&str, &str, &str, &str); 8] = [
    ("POST", "/rollout/start", "", "progressing"),
    ("POST", "/rollout/pause", "", "paused"),
    ("POST", "/rollout/resume", "", "progressing"),
    ("POST", "/rollout/promote", "", "succeeded"),
    ("POST", "/rollout/start", "", "progressing"),
    ("POST", "/rollout/abort", "", "rolled-back"),
    ("PUT", WEIGHT, SEVEN, "idle"),
    ("POST", "/rollout/abort", "", "rolled-back"),
];

#[tokio::test]
async fn status_decisions_and_metrics_are_as_described_in_every_phase() {
    let sidecar = Upstream::start(asked).await;
    let guards = json!({
        "sidecar-url": sidecar.url(),
        "circuit-breaker": {
            "request-limit-canary": 1000, "error-limit-canary": 100,
            "failure-rate-threshold": 50, "minimum-number-of-calls": 5
        }
    });
    for (more, traffic) in [
        (json!({}), 0),
        (json!({}), 30),
        (guards, 30),
        (
            json!({"rollout": {"metrics": ["errors"], "acceptable-failure-rate": 0}}),
            5,
        ),
        (
            json!({"rollout": {"steps": [{"weight": 100, "for": "1h"}]}}),
            30,
        ),
    ] {
        let pair = Pair::new().await;
        let mut config = pair.config(steps());
        merge(&mut config, more);
        let router = Router::start(config);
        assert_is_a_page(&router.metrics().await, "idle");
        openapi::assert_is("Status", &router.status().await);
        for (method, path, body, phase) in WAY {
            let status = router.change(method, path, body).await;
            openapi::assert_is("Status", &status);
            assert_eq!(place(&status).0, phase);
            let address = router.address;
            together((0..traffic).map(move |_| get(address, "/", ""))).await;
            let counted = |status: &Value| {
                let of = |target| status["targets"][target]["requests"].as_u64().unwrap();
                of("main") + of("canary") >= traffic
            };
            let status = until(&router, counted).await;
            openapi::assert_is("Status", &status);
            assert_eq!(place(&status).0, phase);
            assert_is_a_page(&router.metrics().await, phase);
            decisions(router.instrumentation).await;
        }
    }
}

#[tokio::test]
async fn a_dry_run_of_a_canary_that_always_fails_is_as_described() {
    for weight in [50, 100] {
        let pair = Pair::new().await;
        pair.is_healthy(false);
        let rollout = json!({"steps": [{"weight": weight, "for": "1h"}], "dry-run": true});
        let router = Router::start(pair.config(json!({"rollout": rollout})));
        router.change("POST", "/rollout/start", "").await;
        let address = router.address;
        together((0..60).map(move |_| get(address, "/", ""))).await;
        let counted = |status: &Value| status["evidence"]["failures"]["canary"].as_u64() > Some(15);
        let status = until(&router, counted).await;
        openapi::assert_is("Status", &status);
        assert_eq!(place(&status), ("progressing".into(), json!(weight)));
        assert_eq!(status["rollout"]["dry_run"], true);
        if weight == 50 {
            let status = until(&router, |status| {
                status["decisions"][0]["why"] == "unhealthy-in-dry-run"
            })
            .await;
            openapi::assert_is("Status", &status);
        }
        decisions(router.instrumentation).await;
        assert_is_a_page(&router.metrics().await, "progressing");
    }
}

/// The phase that it leads to, and the weight where that is not what it was; `None`: it is refused.
type Done = Option<(&'static str, Option<u64>)>;

/// As in the README's table.
#[tokio::test]
async fn each_command_does_in_each_phase_what_the_readme_says() {
    let pair = Pair::new().await;
    let router = Router::start(pair.config(steps()));
    let table: [(&str, [Done; 5]); 6] = [
        // While idle, progressing, paused, succeeded, rolled-back.
        (
            "start",
            [
                Some(("progressing", Some(5))),
                None,
                None,
                Some(("progressing", Some(5))),
                Some(("progressing", Some(5))),
            ],
        ),
        ("pause", [None, Some(("paused", None)), None, None, None]),
        (
            "resume",
            [None, None, Some(("progressing", None)), None, None],
        ),
        ("promote", [Some(("succeeded", Some(100))); 5]),
        ("abort", [Some(("rolled-back", Some(0))); 5]),
        (
            "weight",
            [
                Some(("idle", Some(7))),
                None,
                Some(("paused", Some(7))),
                Some(("idle", Some(7))),
                Some(("idle", Some(7))),
            ],
        ),
    ];
    for (verb, row) in table {
        for (phase, expected) in PHASES.into_iter().zip(row) {
            bring(&router, phase).await;
            let before = router.status().await;
            let (method, path, body) = match verb {
                "weight" => ("PUT", WEIGHT.to_owned(), SEVEN),
                verb => ("POST", format!("/rollout/{verb}"), ""),
            };
            let (code, answer) = admin(router.instrumentation, method, &path, body).await;
            let after = router.status().await;
            match expected {
                Some((to, weight)) => {
                    assert_eq!(code, 200, "{verb} while {phase}: {answer}");
                    let weight = weight.map_or(before["weight"].clone(), Value::from);
                    assert_eq!(place(&answer), (to.into(), weight), "{verb} while {phase}");
                    assert_eq!(place(&after), place(&answer));
                    let decision = &after["decisions"][0];
                    let why = if verb == "weight" { "set-weight" } else { verb };
                    assert_eq!(
                        (&decision["by"], &decision["why"]),
                        (&json!("operator"), &json!(why))
                    );
                    let number =
                        |status: &Value| status["decisions"][0]["number"].as_u64().unwrap();
                    assert_eq!(number(&after), number(&before) + 1);
                    let backwards = u64::from(verb == "abort");
                    let epoch = |status: &Value| status["rollout"]["epoch"].as_u64().unwrap();
                    assert_eq!(epoch(&after), epoch(&before) + backwards);
                }
                None => {
                    assert_eq!(code, 409, "{verb} while {phase}: {answer}");
                    openapi::assert_is("Error", &answer);
                    assert!(
                        answer["error"].as_str().unwrap().contains(phase),
                        "{verb} while {phase}: {answer}"
                    );
                    assert_eq!(place(&after), place(&before));
                    assert_eq!(after["decisions"], before["decisions"]);
                }
            }
        }
    }
}

#[tokio::test]
async fn who_is_resumed_gets_the_weight_of_the_step_again() {
    let pair = Pair::new().await;
    let router = Router::start(pair.config(steps()));
    bring(&router, "paused").await;
    router.change("PUT", WEIGHT, r#"{"weight": 80}"#).await;
    let status = router.change("POST", "/rollout/resume", "").await;
    assert_eq!(place(&status), ("progressing".into(), json!(5)));
}

#[tokio::test]
async fn without_steps_there_is_no_start_and_the_rest_works() {
    let pair = Pair::new().await;
    let router = Router::start(pair.config(json!({})));
    for verb in ["start", "pause", "resume"] {
        let path = format!("/rollout/{verb}");
        let (code, answer) = admin(router.instrumentation, "POST", &path, "").await;
        assert_eq!(code, 409, "{answer}");
        openapi::assert_is("Error", &answer);
    }
    for (method, path, body, phase, weight) in [
        ("PUT", WEIGHT, SEVEN, "idle", 7),
        ("POST", "/rollout/promote", "", "succeeded", 100),
        ("POST", "/rollout/abort", "", "rolled-back", 0),
        ("PUT", WEIGHT, SEVEN, "idle", 7),
    ] {
        let status = router.change(method, path, body).await;
        openapi::assert_is("Status", &status);
        assert_eq!(place(&status), (phase.into(), json!(weight)));
        // There was none.
        assert_eq!(status["rollout"]["step"], 0, "{phase}");
        assert_eq!(
            router.metrics().await.value("canary_router_rollout_step"),
            0.0
        );
        assert_is_a_page(&router.metrics().await, phase);
    }
    for decision in decisions(router.instrumentation).await {
        assert_eq!(
            (&decision["from"]["step"], &decision["to"]["step"]),
            (&json!(0), &json!(0))
        );
    }
}

#[tokio::test]
async fn twenty_operators_at_once_leave_one_state_and_a_log_without_gaps() {
    let pair = Pair::new().await;
    let router = Router::start(pair.config(steps()));
    let address = router.instrumentation;
    let verbs = ["start", "pause", "resume", "promote", "abort"];
    let answers = together((0..20).map(move |i| async move {
        match i % 6 {
            5 => admin(address, "PUT", WEIGHT, SEVEN).await,
            verb => admin(address, "POST", &format!("/rollout/{}", verbs[verb]), "").await,
        }
    }))
    .await;
    let mut done = 0;
    for (code, answer) in &answers {
        match code {
            200 => {
                openapi::assert_is("Status", answer);
                done += 1;
            }
            409 => openapi::assert_is("Error", answer),
            other => panic!("{other}: {answer}"),
        }
    }
    let log = decisions(address).await;
    assert_eq!(log.len(), done);
    assert_eq!(log[done - 1]["number"], 1);
    let status = router.status().await;
    let step = status["rollout"]["step"].clone();
    let (phase, weight) = place(&status);
    assert_eq!(
        log[0]["to"],
        json!({"phase": phase, "step": step, "weight": weight})
    );
    assert_eq!(
        log[done - 1]["from"],
        json!({"phase": "idle", "step": 0, "weight": 0})
    );
    assert_is_a_page(&router.metrics().await, &phase);
}
