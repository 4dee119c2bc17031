//! The configuration from the environment: what wins, what is refused, and what is nobody's business.

use std::{fs, path::Path};

use serde_json::{Value, json};

use crate::support::*;

/// A router's ports, and the variables that are enough for one before `main`.
struct Ports {
    proxy: Port,
    metrics: Port,
}

impl Ports {
    fn reserve() -> Ports {
        Ports {
            proxy: Port::reserve(),
            metrics: Port::reserve(),
        }
    }

    fn environment(&self, main: &Upstream) -> Vec<(&'static str, String)> {
        vec![
            ("CANARY_ROUTER_MAIN_TARGET", main.url()),
            ("CANARY_ROUTER_CANARY_TARGET", main.url()),
            ("CANARY_ROUTER_ROUTER_SERVER__HOST", "127.0.0.1".into()),
            (
                "CANARY_ROUTER_ROUTER_SERVER__PORT",
                self.proxy.number().to_string(),
            ),
            ("CANARY_ROUTER_ROUTER_SERVER__WORKERS", "1".into()),
            ("CANARY_ROUTER_INSTRUMENTATION__HOST", "127.0.0.1".into()),
            (
                "CANARY_ROUTER_INSTRUMENTATION__PORT",
                self.metrics.number().to_string(),
            ),
        ]
    }

    fn file(&self, main: &Upstream) -> Value {
        json!({
            "main-target": main.url(),
            "canary-target": main.url(),
            "router-server": {"host": "127.0.0.1", "port": self.proxy.number(), "workers": 1},
            "instrumentation": {"host": "127.0.0.1", "port": self.metrics.number()}
        })
    }
}

fn start(folder: &Folder, environment: &[(&str, String)], arguments: &[&str]) -> Process {
    let environment: Vec<(&str, &str)> = environment
        .iter()
        .map(|(name, value)| (*name, &**value))
        .collect();
    Process::start_with_environment(&environment, folder, arguments)
}

/// What it says on its way out, which is not a good one.
async fn refused(mut process: Process) -> Vec<String> {
    assert_eq!(
        process.ended().await.code(),
        Some(1),
        "{:#?}",
        process.stdout()
    );
    let stderr = process.stderr();
    assert!(!stderr.is_empty());
    assert!(!stderr.join("\n").contains("panicked"), "{stderr:#?}");
    stderr
}

fn effective(process: &Process) -> Value {
    let log = process.log();
    let line = log
        .iter()
        .find(|line| line["msg"] == "effective configuration");
    line.expect("it is logged")["config"].clone()
}

#[tokio::test]
async fn without_a_file_it_runs_from_the_environment_alone() {
    let main = Upstream::named("main", 200).await;
    let ports = Ports::reserve();
    let folder = Folder::new();
    folder.write("token", "0123456789abcdef\n");
    let mut environment = ports.environment(&main);
    environment.push(("CANARY_ROUTER_INSTRUMENTATION__TOKEN_FILE", "token".into()));
    environment.push(("CANARY_ROUTER_TRAFFIC__STICKY__BY", "cookie".into()));
    environment.push(("CANARY_ROUTER_LOG__FORMAT", "".into()));
    let mut process = start(&folder, &environment, &[]);
    process.listens(ports.proxy.address).await;
    process.listens(ports.metrics.address).await;
    assert_eq!(get(ports.proxy.address, "/", "").await.text(), "main");
    for (token, status) in [
        ("", 401),
        ("authorization: Bearer 0123456789abcdef\r\n", 200),
    ] {
        let mut client = Client::connect(ports.metrics.address).await;
        let head = "POST /breaker/reset HTTP/1.1\r\nhost: 127.0.0.1\r\n";
        let response = client.roundtrip("POST", format!("{head}{token}\r\n")).await;
        assert_eq!(response.status, status, "{}", response.text());
    }
    process.signal("TERM");
    assert_eq!(process.ended().await.code(), Some(0));
    assert_eq!(process.stderr(), [""; 0]);
    let shown = effective(&process);
    assert_eq!(shown["traffic"]["sticky"]["by"], "cookie");
    let log = process.log();
    let loaded = log
        .iter()
        .find(|line| line["msg"] == "configuration loaded")
        .unwrap();
    assert_eq!(loaded["file"], "environment");
    let named = log
        .iter()
        .find_map(|line| line["variables"].as_str())
        .unwrap();
    assert!(
        named
            .split(' ')
            .any(|name| name == "CANARY_ROUTER_INSTRUMENTATION__TOKEN_FILE")
    );
    assert!(
        !named.contains("CANARY_ROUTER_LOG__FORMAT"),
        "it is empty: {named}"
    );
}

#[tokio::test]
async fn the_environment_wins_over_the_file() {
    let main = Upstream::named("main", 200).await;
    let elsewhere = Upstream::named("elsewhere", 200).await;
    let ports = Ports::reserve();
    let folder = Folder::new();
    folder.write("config.json", ports.file(&main).to_string());
    let environment = [
        ("CANARY_ROUTER_MAIN_TARGET", elsewhere.url()),
        (
            "CANARY_ROUTER_CIRCUIT_BREAKER__ERROR_LIMIT_CANARY",
            "5".into(),
        ),
        (
            "CANARY_ROUTER_PROXY_CLIENT__TO_SIDECAR__TIMEOUT",
            "500ms".into(),
        ),
    ];
    let mut process = start(&folder, &environment, &[]);
    process.listens(ports.proxy.address).await;
    assert_eq!(get(ports.proxy.address, "/", "").await.text(), "elsewhere");
    process.signal("TERM");
    assert_eq!(process.ended().await.code(), Some(0));
    let shown = effective(&process);
    assert_eq!(shown["circuit-breaker"]["error-limit-canary"], 5);
    assert_eq!(shown["proxy-client"]["to-sidecar"]["timeout"], "500ms");
}

#[tokio::test]
async fn a_file_that_is_named_and_one_without_any_key_beside_it_must_be_there() {
    let main = Upstream::named("main", 200).await;
    let environment = Ports::reserve().environment(&main);
    let folder = Folder::new();
    let of_others = [("CANARY_ROUTER_URL", "http://127.0.0.1:8888".to_owned())];
    for (environment, arguments) in [
        (&environment[..], &["-c", "config.json"][..]),
        (&environment[..], &["--config", "absent.json"]),
        (&of_others[..], &[]),
    ] {
        let stderr = refused(start(&folder, environment, arguments)).await;
        let file = arguments.last().unwrap_or(&"config.json");
        let begin = format!("{file}: cannot be read: ");
        assert!(
            stderr.len() == 1 && stderr[0].starts_with(&begin),
            "{stderr:#?}"
        );
    }
    // One that is there and no good is not passed over.
    folder.write("config.json", "{");
    let stderr = refused(start(&folder, &environment, &[])).await;
    assert!(
        stderr[0].starts_with("config.json: not valid JSON"),
        "{stderr:#?}"
    );
}

#[tokio::test]
async fn all_problems_of_both_come_at_once() {
    let folder = Folder::new();
    folder.write(
        "config.json",
        json!({"main-target": "nowhere", "router-server": {"host": "127.0.0.1"}}).to_string(),
    );
    let environment = [
        ("CANARY_ROUTER_CANARY_TARGET", "localhost".into()),
        ("CANARY_ROUTER_ROUTER_SERVER_PORT", "1345".into()),
        ("CANARY_ROUTER_INSTRUMENTATION__TOKEN", "s3cret".into()),
        ("CANARY_ROUTER_INSTRUMENTATION__TOCKEN", "s3cret".into()),
        ("CANARY_ROUTER_SERVICE_PORT", "1345".to_owned()),
    ];
    let mut stderr = refused(start(&folder, &environment, &[])).await;
    stderr.sort();
    let begins = [
        "config.json: /main-target: ",
        "config.json: /router-server/port: is missing",
        "environment: CANARY_ROUTER_CANARY_TARGET (/canary-target): ",
        "environment: CANARY_ROUTER_INSTRUMENTATION__TOCKEN: unknown variable; did you mean \
         CANARY_ROUTER_INSTRUMENTATION__TOKEN?",
        "environment: CANARY_ROUTER_INSTRUMENTATION__TOKEN (/instrumentation/token): ",
        "environment: CANARY_ROUTER_ROUTER_SERVER_PORT: unknown variable; did you mean \
         CANARY_ROUTER_ROUTER_SERVER__PORT?",
    ];
    assert_eq!(stderr.len(), begins.len(), "{stderr:#?}");
    for (line, begin) in stderr.iter().zip(begins) {
        assert!(line.starts_with(begin), "{begin}: {stderr:#?}");
        assert!(!line.contains("s3cret"), "{line}");
    }
}

/// It is the file of the start that is read again, though the router could live without.
#[tokio::test]
async fn a_file_that_is_away_when_it_is_read_again_changes_nothing() {
    let main = Upstream::named("main", 200).await;
    let ports = Ports::reserve();
    let folder = Folder::new();
    let file = folder.write("config.json", ports.file(&main).to_string());
    let environment = ports.environment(&main);
    let mut process = start(&folder, &environment, &[]);
    process.listens(ports.proxy.address).await;
    fs::remove_file(file).unwrap();
    process.signal("HUP");
    let failed = |process: &Process| {
        let log = process.log();
        log.iter()
            .any(|line| line.to_string().contains("config.json: cannot be read"))
    };
    eventually(|| failed(&process)).await;
    assert_eq!(get(ports.proxy.address, "/", "").await.text(), "main");
}

#[tokio::test]
async fn what_the_commands_go_by_and_what_the_image_sets_is_no_unknown_variable() {
    let folder = Folder::new();
    let mut found = Vec::new();
    for verb in ["status", "weight", "rollout", "breaker", "limits"] {
        let mut process = Process::start(&folder, &[verb, "--help"]);
        assert_eq!(process.ended().await.code(), Some(0));
        let help = process.stdout().join("\n");
        let named = help.split("[env: ").skip(1);
        found.extend(named.map(|rest| rest.split('=').next().unwrap().to_owned()));
    }
    assert!(found.len() >= 10, "{found:?}");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for file in ["Dockerfile", "sample/compose.yaml"] {
        let text = fs::read_to_string(root.join(file)).unwrap();
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        let ours = words.filter(|word| word.starts_with("CANARY_ROUTER_"));
        found.extend(ours.map(str::to_owned));
    }
    let environment: Vec<(&str, String)> = found
        .iter()
        .map(|name| (&**name, "http://127.0.0.1:1".to_owned()))
        .collect();
    folder.write("config.json", "{}");
    let stderr = refused(start(&folder, &environment, &[])).await;
    assert!(
        !stderr.join("\n").contains("unknown variable"),
        "{stderr:#?}"
    );
}
