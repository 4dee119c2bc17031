//! What an operator has changed: the log of it, what survives the process, resets, and all that by command line.

use serde_json::{Value, json};

use super::admin_phases::{Pair, WEIGHT, decisions, steps, until};
use crate::support::*;

/// A folder in which one router after the other runs.
struct Home {
    folder: Folder,
    proxy: Port,
    metrics: Port,
}

impl Home {
    fn new(pair: &Pair, more: Value) -> Home {
        let home = Home {
            folder: Folder::new(),
            proxy: Port::reserve(),
            metrics: Port::reserve(),
        };
        let mut file = pair.config(more);
        merge(
            &mut file,
            json!({
                "router-server": {"host": "127.0.0.1", "port": home.proxy.number(), "workers": 2},
                "instrumentation": {"host": "127.0.0.1", "port": home.metrics.number()},
                "state": {"file": "state.json"}
            }),
        );
        home.folder.write("config.json", file.to_string());
        home
    }

    async fn start(&self) -> Process {
        let mut process = Process::start(&self.folder, &[]);
        process.listens(self.proxy.address).await;
        process.listens(self.metrics.address).await;
        process
    }

    async fn change(&self, method: &str, path: &str, body: &str) -> Value {
        let (code, status) = admin(self.metrics.address, method, path, body).await;
        assert_eq!(code, 200, "{method} {path}: {status}");
        openapi::assert_is("Status", &status);
        status
    }
}

async fn stop(mut process: Process) {
    process.signal("TERM");
    assert!(process.ended().await.success());
}

#[tokio::test]
async fn the_log_has_the_last_hundred_decisions_and_goes_on_after_a_restart() {
    let pair = Pair::new().await;
    let home = Home::new(&pair, steps());
    let process = home.start().await;
    assert!(decisions(home.metrics.address).await.is_empty());
    for number in 1..=103 {
        let body = json!({"weight": number % 50}).to_string();
        let status = home.change("PUT", WEIGHT, &body).await;
        assert_eq!(status["decisions"][0]["number"], number);
    }
    home.change("POST", "/rollout/start", "").await;
    let status = home.change("POST", "/rollout/pause", "").await;
    let before = decisions(home.metrics.address).await;
    assert_eq!((before.len(), &before[0]["number"]), (100, &json!(105)));
    assert_eq!(status["decisions"].as_array().unwrap()[..], before[..10]);
    stop(process).await;

    let mut process = home.start().await;
    let after = decisions(home.metrics.address).await;
    assert!(after.len() >= 20, "{}", after.len());
    let without_figures = |log: &[Value]| -> Vec<Value> {
        let mut log = log.to_vec();
        log.iter_mut().for_each(|decision| {
            decision["figures"].take();
        });
        log
    };
    assert_eq!(
        without_figures(&after),
        without_figures(&before[..after.len()])
    );
    home.change("POST", "/rollout/resume", "").await;
    // What was answered is on disk.
    process.kill();
    let _process = home.start().await;
    let again = decisions(home.metrics.address).await;
    assert_eq!(
        (&again[0]["number"], &again[0]["why"]),
        (&json!(106), &json!("resume"))
    );
    assert_eq!(
        without_figures(&again[1..10]),
        without_figures(&before[..9])
    );
}

fn guards() -> Value {
    json!({
        "traffic": {"weight": 100},
        "circuit-breaker": {
            "request-limit-canary": 6, "error-limit-canary": 3,
            "failure-rate-threshold": 50, "minimum-number-of-calls": 3,
            "wait-open": "1h", "max-wait-open": "1h"
        }
    })
}

async fn served_by(address: std::net::SocketAddr) -> String {
    get(address, "/", "").await.text()
}

#[tokio::test]
async fn who_resets_a_breaker_closes_it_and_the_canary_gets_requests_again() {
    let pair = Pair::new().await;
    let mut config = pair.config(guards());
    config["circuit-breaker"]
        .as_object_mut()
        .unwrap()
        .retain(|key, _| !key.contains("limit"));
    let router = Router::start(config);
    pair.is_healthy(false);
    for _ in 0..3 {
        assert_eq!(served_by(router.address).await, "canary");
    }
    until(&router, |status| status["breakers"]["canary"] == "open").await;
    assert_eq!(served_by(router.address).await, "main");
    pair.is_healthy(true);
    let status = router.change("POST", "/breaker/reset", "").await;
    assert_eq!(status["breakers"]["canary"], "closed");
    for _ in 0..5 {
        assert_eq!(served_by(router.address).await, "canary");
    }
    let closed = "canary_router_breaker_state{state=\"closed\",target=\"canary\"}";
    assert_eq!(router.metrics().await.value(closed), 1.0);
    let counted =
        "canary_router_breaker_transitions_total{from=\"open\",target=\"canary\",to=\"closed\"}";
    assert_eq!(router.metrics().await.value(counted), 1.0);
    // One that is closed stays so, and begins afresh.
    pair.is_healthy(false);
    for _ in 0..2 {
        served_by(router.address).await;
    }
    router.change("POST", "/breaker/reset", "").await;
    for _ in 0..2 {
        assert_eq!(served_by(router.address).await, "canary");
    }
}

#[tokio::test]
async fn who_resets_the_limits_lets_the_canary_have_requests_again() {
    let pair = Pair::new().await;
    let limits = json!({"request-limit-canary": 4, "error-limit-canary": 3});
    let router =
        Router::start(pair.config(json!({"traffic": {"weight": 100}, "circuit-breaker": limits})));
    for _ in 0..2 {
        for _ in 0..4 {
            assert_eq!(served_by(router.address).await, "canary");
        }
        assert_eq!(served_by(router.address).await, "main");
        assert_eq!(router.status().await["limits"]["requests_remaining"], 0);
        let status = router.change("POST", "/limits/reset", "").await;
        assert_eq!(
            status["limits"],
            json!({"requests_remaining": 4, "errors_remaining": 3, "requests_limit": 4, "errors_limit": 3})
        );
    }
    pair.is_healthy(false);
    for _ in 0..3 {
        assert_eq!(served_by(router.address).await, "canary");
    }
    until(&router, |status| status["limits"]["errors_remaining"] == 0).await;
    assert_eq!(served_by(router.address).await, "main");
    router.change("POST", "/limits/reset", "").await;
    assert_eq!(served_by(router.address).await, "canary");
}

/// The README: what changes something answers when it is on disk, where there is a state file. Resets were
/// answered at once, and written when the ceilings of the counts had come down, a second later.
#[tokio::test]
async fn a_reset_survives_a_stop_and_a_kill() {
    for kill in [false, true] {
        let pair = Pair::new().await;
        let home = Home::new(&pair, guards());
        let mut process = home.start().await;
        pair.is_healthy(false);
        soon(async {
            loop {
                served_by(home.proxy.address).await;
                let (_, status) = admin(home.metrics.address, "GET", "/status", "").await;
                if status["breakers"]["canary"] == "open"
                    && status["limits"]["errors_remaining"] == 0
                {
                    break;
                }
            }
        })
        .await;
        assert_eq!(served_by(home.proxy.address).await, "main");
        home.change("POST", "/breaker/reset", "").await;
        let status = home.change("POST", "/limits/reset", "").await;
        assert_eq!(
            status["limits"],
            json!({"requests_remaining": 6, "errors_remaining": 3, "requests_limit": 6, "errors_limit": 3})
        );
        match kill {
            true => process.kill(),
            false => stop(process).await,
        }
        pair.is_healthy(true);
        let _process = home.start().await;
        let (_, status) = admin(home.metrics.address, "GET", "/status", "").await;
        assert_eq!(status["breakers"]["canary"], "closed", "killed: {kill}");
        // A kill costs one of each.
        let cost = u64::from(kill);
        let left = |name: &str| status["limits"][name].as_u64().unwrap();
        assert!(
            left("requests_remaining") >= 6 - cost,
            "killed: {kill}: {status}"
        );
        assert!(
            left("errors_remaining") >= 3 - cost,
            "killed: {kill}: {status}"
        );
        assert_eq!(served_by(home.proxy.address).await, "canary");
    }
}

// ---- the command line

async fn run(router: &Router, words: &str) -> (Option<i32>, String, String) {
    let folder = Folder::new();
    folder.write("token", "a-token-0123456789\n");
    folder.write("wrong", "a-token-9876543210\n");
    let url = format!("http://{}", router.instrumentation);
    let mut arguments: Vec<&str> = words.split(' ').collect();
    arguments.extend(["--url", &url]);
    let mut process = Process::start(&folder, &arguments);
    let code = process.ended().await.code();
    (
        code,
        process.stdout().join("\n"),
        process.stderr().join("\n"),
    )
}

#[tokio::test]
async fn the_command_line_moves_a_router_that_runs() {
    let pair = Pair::new().await;
    let mut config = pair.config(guards());
    merge(&mut config, steps());
    merge(&mut config, json!({"traffic": {"weight": 0}}));
    let router = Router::start(config);
    for (words, shown) in [
        ("status", "rollout   idle"),
        ("weight 12.5", "weight    12.5 %"),
        (
            "rollout start",
            "rollout   progressing, step 1 of 2: 5 % for 1 h",
        ),
        ("rollout pause", "rollout   paused, step 1 of 2"),
        ("weight 7", "rollout   paused, step 1 of 2"),
        ("rollout resume", "rollout   progressing, step 1 of 2"),
        ("rollout promote", "rollout   succeeded in step 1 of 2"),
        ("rollout abort", "rollout   rolled-back in step 1 of 2"),
        ("breaker reset", "breaker  closed"),
        ("limits reset", "errors 3 of 3 left, requests 6 of 6 left"),
    ] {
        let (code, stdout, stderr) = run(&router, words).await;
        assert_eq!((code, &*stderr), (Some(0), ""), "{words}");
        assert!(stdout.contains(shown), "{words}: {stdout}");
        let (code, stdout, _) = run(&router, "status --json").await;
        assert_eq!(code, Some(0));
        let status: Value = serde_json::from_str(&stdout).unwrap();
        openapi::assert_is("Status", &status);
    }
    let before = router.status().await["decisions"].clone();
    for (words, said) in [
        ("rollout pause", "nothing to pause (409)"),
        ("rollout resume", "start one (409)"),
    ] {
        let (code, stdout, stderr) = run(&router, words).await;
        assert_eq!((code, &*stdout), (Some(1), ""), "{words}");
        assert!(stderr.contains(said), "{words}: {stderr}");
    }
    run(&router, "rollout start").await;
    for words in ["rollout start", "weight 5"] {
        let (code, _, stderr) = run(&router, words).await;
        assert_eq!(code, Some(1), "{words}");
        assert!(
            stderr.contains("abort") && stderr.contains("(409)"),
            "{stderr}"
        );
    }
    let after = router.status().await["decisions"].clone();
    assert_eq!(after[1], before[0], "one decision more");
}

#[tokio::test]
async fn the_command_line_needs_the_token_for_what_changes_something() {
    let pair = Pair::new().await;
    let mut config = pair.config(steps());
    merge(
        &mut config,
        json!({"instrumentation": {"token": "a-token-0123456789"}}),
    );
    let router = Router::start(config);
    for (words, code, said) in [
        ("status", 0, ""),
        ("status --token-file wrong", 0, ""),
        (
            "rollout start",
            1,
            "(401): give the router's token with --token-file",
        ),
        (
            "rollout start --token-file wrong",
            1,
            "(401): the file of --token-file holds another token",
        ),
        ("limits reset --token-file wrong", 1, "(401)"),
        ("rollout start --token-file token", 0, ""),
        ("rollout abort --token-file token", 0, ""),
        ("weight 5 --token-file token", 0, ""),
    ] {
        let (ended, stdout, stderr) = run(&router, words).await;
        assert_eq!(ended, Some(code), "{words}: {stderr}");
        assert!(
            stderr.contains(said) && stderr.is_empty() == (code == 0),
            "{words}: {stderr}"
        );
        assert_eq!(stdout.is_empty(), code != 0, "{words}");
        assert!(![stdout, stderr].concat().contains("a-token"), "{words}");
    }
    assert_eq!(decisions(router.instrumentation).await.len(), 3);
}
