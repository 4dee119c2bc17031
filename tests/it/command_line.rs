//! The command line of a router that runs: what it asks for, what it prints, how it ends.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use serde_json::{Value, json};

use crate::support::*;

/// What a router answers.
fn status(weight: u32) -> String {
    json!({
        "version": "0.1.0",
        "uptime_seconds": 8040.2,
        "summary": {"level": "idle", "text": "The canary had no requests in the last minute"},
        "targets": {
            "main": {
                "url": "http://127.0.0.1:8081", "requests": 5700, "failures": 12,
                "requests_per_second": 95.0, "failure_ratio": 0.0021,
                "latency_seconds": {"p50": 0.012, "p90": 0.030, "p99": 0.081}, "inflight": 3
            },
            "canary": {
                "url": "http://127.0.0.1:8082", "requests": 0, "failures": 0,
                "requests_per_second": 0.0, "failure_ratio": null,
                "latency_seconds": {"p50": null, "p90": null, "p99": null}, "inflight": 0
            }
        },
        "weight": weight,
        "rollout": {
            "phase": "progressing", "step": 1, "steps": [{"weight": weight, "for_seconds": 600}],
            "elapsed_seconds": 250.0, "extended": false, "dry_run": false, "epoch": 0
        },
        "breakers": {"canary": "closed", "main": "closed", "sidecar": "closed"},
        "limits": {
            "requests_remaining": null, "errors_remaining": 12,
            "requests_limit": null, "errors_limit": 15
        },
        "config": {"file": "config.json", "loaded_at": "2026-11-25T07:00:00Z", "last_failure": null},
        "state": null,
        "evidence": null,
        "decisions": []
    })
    .to_string()
}

async fn router() -> Upstream {
    Upstream::start(|_| answer(200, "content-type: application/json\r\n", &status(5))).await
}

/// What a program that has ended leaves.
struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Ended {
    #[track_caller]
    fn succeeded(self) -> String {
        assert_eq!((self.code, &*self.stderr), (Some(0), ""), "{}", self.stdout);
        self.stdout
    }

    /// It did not work, it says so, and prints nothing else.
    #[track_caller]
    fn failed(self, code: i32) -> String {
        assert_eq!(
            (self.code, &*self.stdout),
            (Some(code), ""),
            "{}",
            self.stderr
        );
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        assert!(!self.stderr.is_empty());
        self.stderr
    }
}

async fn ended(mut process: Process) -> Ended {
    let status = process.ended().await;
    Ended {
        code: status.code(),
        stdout: process.stdout().join("\n"),
        stderr: process.stderr().join("\n"),
    }
}

/// Runs `canary-router` with these words, split at blanks, and `--url`.
async fn run(url: &str, words: &str) -> Ended {
    let folder = Folder::new();
    ended(start(&folder, url, words)).await
}

fn start(folder: &Folder, url: &str, words: &str) -> Process {
    let mut arguments: Vec<&str> = words.split(' ').collect();
    arguments.extend(["--url", url]);
    Process::start(folder, &arguments)
}

#[tokio::test]
async fn every_command_is_its_request_and_shows_the_status_that_comes_back() {
    for (words, method, target, body) in [
        ("status", "GET", "/status", ""),
        ("weight 5", "PUT", "/traffic/weight", r#"{"weight":5}"#),
        ("weight 0", "PUT", "/traffic/weight", r#"{"weight":0}"#),
        (
            "weight 0.25%",
            "PUT",
            "/traffic/weight",
            r#"{"weight":0.25}"#,
        ),
        ("rollout start", "POST", "/rollout/start", ""),
        ("rollout pause", "POST", "/rollout/pause", ""),
        ("rollout resume", "POST", "/rollout/resume", ""),
        ("rollout promote", "POST", "/rollout/promote", ""),
        ("rollout abort", "POST", "/rollout/abort", ""),
        ("breaker reset", "POST", "/breaker/reset", ""),
        ("limits reset", "POST", "/limits/reset", ""),
        ("reload", "POST", "/reload", ""),
    ] {
        let router = router().await;
        let shown = run(&router.url(), words).await.succeeded();
        let request = router.only();
        let schema = openapi::body(method, target);
        match serde_json::from_slice(&request.body) {
            Ok(body) => openapi::assert_is(&schema.expect("it takes a body"), &body),
            Err(_) => assert_eq!(schema, None, "{words}"),
        }
        assert_eq!(
            (request.method(), request.target(), &*request.text()),
            (method, target, body),
            "{words}"
        );
        assert_eq!(request.header("authorization"), None, "{words}");
        assert_eq!(request.header("host"), Some(&*router.address.to_string()));
        let of_json = (!body.is_empty()).then_some("application/json");
        assert_eq!(request.header("content-type"), of_json, "{words}");
        for part in [
            "canary-router 0.1.0, up 2 h 14 min",
            "rollout   progressing, step 1 of 1: 5 % for 10 min (4 min 10 s so far)",
            "weight    5 %          breaker  closed",
        ] {
            assert!(shown.contains(part), "{part} in {shown}");
        }
    }
}

/// Else these tests would be about another router.
#[test]
fn what_the_router_answers_here_is_what_docs_openapi_json_says() {
    openapi::assert_is("Status", &serde_json::from_str(&status(5)).unwrap());
    openapi::assert_is("Error", &json!({"error": "no"}));
}

#[tokio::test]
async fn with_json_the_answer_is_printed_as_it_is() {
    let router = router().await;
    for words in ["status --json", "rollout abort --json", "weight 5 --json"] {
        let shown = run(&router.url(), words).await.succeeded();
        let said: Value = serde_json::from_str(&status(5)).unwrap();
        assert_eq!(shown, format!("{said:#}"), "{words}");
    }
}

#[tokio::test]
async fn a_token_comes_from_its_file() {
    let router = router().await;
    let folder = Folder::new();
    folder.write("token", "  s3cret.~-+/=\n");
    let process = start(&folder, &router.url(), "rollout start --token-file token");
    ended(process).await.succeeded();
    let request = router.only();
    assert_eq!(request.header("authorization"), Some("Bearer s3cret.~-+/="));
}

#[tokio::test]
async fn url_and_token_file_can_come_from_the_environment() {
    let router = router().await;
    let folder = Folder::new();
    folder.write("token", "s3cret\n");
    let environment = [
        ("CANARY_ROUTER_URL", &*router.url()),
        ("CANARY_ROUTER_TOKEN_FILE", "token"),
    ];
    let process = Process::start_with_environment(&environment, &folder, &["rollout", "pause"]);
    ended(process).await.succeeded();
    assert_eq!(router.only().header("authorization"), Some("Bearer s3cret"));
    // What is said wins.
    let other = self::router().await;
    let words = ["status", "--url", &other.url()];
    let process = Process::start_with_environment(&environment, &folder, &words);
    ended(process).await.succeeded();
    assert_eq!((router.count(), other.count()), (1, 1));
}

#[tokio::test]
async fn a_token_file_without_a_token_is_said_and_nobody_is_asked() {
    let router = router().await;
    let folder = Folder::new();
    folder.write("empty", "\n");
    folder.write("two", "one\ntwo\n");
    folder.write("binary", [0xff, 0xfe]);
    for (file, said) in [
        ("absent", "--token-file"),
        ("empty", "it is empty"),
        ("two", "one line"),
        ("binary", "--token-file"),
        (".", "--token-file"),
    ] {
        let words = format!("rollout abort --token-file {file}");
        let stderr = ended(start(&folder, &router.url(), &words)).await.failed(1);
        assert!(stderr.starts_with(&format!("{file}: ")), "{stderr}");
        assert!(stderr.contains(said), "{stderr}");
    }
    assert_eq!(router.count(), 0);
}

#[tokio::test]
async fn a_refusal_is_told_in_the_routers_words() {
    for status in [400, 403, 404, 405, 409, 413, 422, 500, 503] {
        let router = Upstream::start(move |_| {
            answer(status, "", r#"{"error":"no rollout is paused: start one"}"#)
        })
        .await;
        let stderr = run(&router.url(), "rollout resume").await.failed(1);
        assert_eq!(
            stderr,
            format!("no rollout is paused: start one ({status})")
        );
        assert_eq!(router.count(), 1, "it is not asked twice");
    }
}

#[tokio::test]
async fn who_is_not_known_is_told_about_the_token() {
    let router = Upstream::start(|_| {
        let head = "www-authenticate: Bearer\r\n";
        answer(401, head, r#"{"error":"a token is needed"}"#)
    })
    .await;
    let stderr = run(&router.url(), "breaker reset").await.failed(1);
    assert_eq!(
        stderr,
        "a token is needed (401): give the router's token with --token-file FILE"
    );
    let folder = Folder::new();
    folder.write("token", "wrong");
    let process = start(&folder, &router.url(), "breaker reset --token-file token");
    let stderr = ended(process).await.failed(1);
    assert!(stderr.contains("another token"), "{stderr}");
    assert!(!stderr.contains("wrong"), "it stays a secret: {stderr}");
}

#[tokio::test]
async fn what_is_no_router_is_asked_whether_it_is_the_right_port() {
    let junk: Vec<(Vec<Step>, &str)> = vec![
        (answer(200, "", "<html>welcome</html>"), "not JSON"),
        (answer(200, "", ""), "not JSON"),
        (answer(200, "", "[1, 2]"), "not a router's status"),
        (
            answer(200, "", r#"{"status":"ok"}"#),
            "not a router's status",
        ),
        (answer(404, "", "not found"), "404"),
        (answer(404, "", r#"{"message":"no"}"#), "404"),
        (answer(302, "location: http://127.0.0.1:1/\r\n", ""), "302"),
        (
            vec![Step::Write(b"SSH-2.0-OpenSSH\r\n".to_vec()), Step::Close],
            "",
        ),
        (vec![Step::Close], ""),
        (vec![Step::Reset], ""),
        (
            vec![
                Step::Write(b"HTTP/1.1 200 OK\r\ncontent-length: 900\r\n\r\n{\"a\"".to_vec()),
                Step::Close,
            ],
            "",
        ),
        (answer(200, "", &" ".repeat(5 << 20)), "limit"),
    ];
    for (steps, said) in junk {
        let script = steps.clone();
        let service = Upstream::start(move |_| script.clone()).await;
        let stderr = run(&service.url(), "status").await.failed(1);
        assert!(stderr.starts_with(&service.url()), "{stderr}");
        assert!(stderr.contains("instrumentation port"), "{stderr}");
        assert!(stderr.contains("--url"), "{stderr}");
        assert!(stderr.contains(said), "{said}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
}

#[tokio::test]
async fn a_router_that_is_not_there_is_said_with_what_to_do() {
    let address = Upstream::nobody().await;
    let url = format!("http://{address}");
    for words in ["status", "status --json", "status --watch", "rollout abort"] {
        let stderr = run(&url, words).await.failed(1);
        for part in [
            &*url,
            "is the router running",
            "instrumentation port",
            "--url",
        ] {
            assert!(stderr.contains(part), "{part} in {stderr}");
        }
    }
}

/// Ten seconds, in which something that hangs must end: that it does is what is waited for.
#[tokio::test]
async fn a_router_that_hangs_is_not_waited_for_longer_than_ten_seconds() {
    let router = Upstream::start(|_| vec![Step::Hang]).await;
    let stderr = run(&router.url(), "rollout abort").await.failed(1);
    assert!(stderr.contains("no answer within 10 s"), "{stderr}");
}

#[tokio::test]
async fn what_makes_no_sense_is_a_usage_error_and_nobody_is_asked() {
    let router = router().await;
    for (words, said) in [
        ("weight", "<PERCENT>"),
        ("weight 101", "0 to 100"),
        ("weight 0.001", "two decimals"),
        ("weight -1", "0 to 100"),
        ("weight five", "0 to 100"),
        ("rollout", "<COMMAND>"),
        ("rollout back", "abort"),
        ("breaker", "<COMMAND>"),
        ("limits open", "reset"),
        ("statsu", "status"),
        ("rollout start --watch", "--watch"),
        ("-c config.json status", "--config"),
    ] {
        let stderr = run(&router.url(), words).await.failed(2);
        assert!(stderr.contains(said), "{words}: {stderr}");
    }
    assert_eq!(router.count(), 0);
    let secure = router.url().replace("http://", "https://");
    let stderr = run(&secure, "status").await.failed(2);
    assert!(stderr.contains("plain HTTP"), "{stderr}");
    for url in ["localhost:8888", "", "http://u:p@a"] {
        run(url, "status").await.failed(2);
    }
}

#[tokio::test]
async fn a_base_path_in_the_url_is_kept() {
    let router = router().await;
    run(&format!("{}/canary/", router.url()), "rollout start")
        .await
        .succeeded();
    assert_eq!(router.only().target(), "/canary/rollout/start");
}

/// Each answer has another weight, the fourth is a refusal, the fifth none at all; Ctrl-C ends it properly.
#[tokio::test]
async fn a_watch_goes_on_while_the_router_comes_and_goes_until_ctrl_c() {
    let asked = Arc::new(AtomicUsize::new(0));
    let router = {
        let asked = asked.clone();
        Upstream::start(move |_| match asked.fetch_add(1, Ordering::SeqCst) {
            1 => answer(503, "", r#"{"error":"draining"}"#),
            2 => vec![Step::Reset],
            number => answer(200, "", &status(number as u32)),
        })
        .await
    };
    let folder = Folder::new();
    let mut process = start(&folder, &router.url(), "status --watch");
    eventually(|| {
        process
            .stdout()
            .iter()
            .any(|line| line.starts_with("weight    4 %"))
    })
    .await;
    process.signal("INT");
    assert_eq!(process.ended().await.code(), Some(0));
    assert_eq!(process.stderr(), [""; 0]);
    let shown = process.stdout().join("\n");
    let blocks: Vec<&str> = shown.split("\n\n").collect();
    let begins = [
        "canary-router 0.1.0",
        "draining (503)\ntrying again",
        "http://",
    ];
    for (block, begin) in blocks.iter().zip(begins) {
        assert!(block.starts_with(begin), "{begin}: {shown}");
    }
    assert!(blocks[3].contains("\nweight    3 %"), "{shown}");
    assert!(
        !shown.contains('\x1b'),
        "no orders for a terminal in a pipe"
    );
}

#[tokio::test]
async fn a_watch_in_json_is_documents_and_nothing_else() {
    let asked = Arc::new(AtomicUsize::new(0));
    let router = {
        let asked = asked.clone();
        Upstream::start(move |_| match asked.fetch_add(1, Ordering::SeqCst) {
            1 => vec![Step::Close],
            number => answer(200, "", &status(number as u32)),
        })
        .await
    };
    let folder = Folder::new();
    let mut process = start(&folder, &router.url(), "status --watch --json");
    eventually(|| asked.load(Ordering::SeqCst) > 3).await;
    process.signal("INT");
    assert_eq!(process.ended().await.code(), Some(0));
    assert!(process.stderr().join("\n").contains("trying again"));
    let shown = process.stdout().join("\n");
    let documents: Vec<Value> = serde_json::Deserializer::from_str(&shown)
        .into_iter()
        .collect::<Result<_, _>>()
        .unwrap();
    let weights: Vec<&Value> = documents
        .iter()
        .map(|document| &document["weight"])
        .collect();
    assert_eq!(weights[..2], [0, 2]);
}

/// `canary-router status | head -1` is no error.
#[tokio::test]
async fn a_reader_that_has_seen_enough_is_no_error() {
    let router = router().await;
    let folder = Folder::new();
    let mut process = Process::start_unread(&folder, &["status", "--url", &router.url()]);
    assert_eq!(process.ended().await.code(), Some(0));
    assert_eq!(process.stderr(), [""; 0]);
}

#[tokio::test]
async fn without_a_command_it_is_the_router_as_ever() {
    let main = Upstream::named("main", 200).await;
    let (proxy, metrics) = (Port::reserve(), Port::reserve());
    let folder = Folder::new();
    let file = json!({
        "main-target": main.url(),
        "canary-target": main.url(),
        "router-server": {"host": "127.0.0.1", "port": proxy.number(), "workers": 1},
        "instrumentation": {"host": "127.0.0.1", "port": metrics.number()}
    });
    folder.write("config.json", file.to_string());
    for arguments in [&[][..], &["-c", "config.json"]] {
        // What the client goes by is nothing to the router.
        let environment = [("CANARY_ROUTER_URL", "https://nowhere")];
        let mut process = Process::start_with_environment(&environment, &folder, arguments);
        process.listens(proxy.address).await;
        assert_eq!(get(proxy.address, "/", "").await.text(), "main");
        process.signal("TERM");
        assert_eq!(process.ended().await.code(), Some(0));
    }
}
