//! `canary-router check`: the same verdict as the start, and nothing else happens.

use std::fs;

use serde_json::{Value, json};

use crate::support::*;

/// Code, stdout and stderr of `check` in `folder`.
async fn check(
    folder: &Folder,
    environment: &[(&str, &str)],
    arguments: &[&str],
) -> (Option<i32>, String, Vec<String>) {
    let arguments = [&["check"], arguments].concat();
    let mut process = Process::start_with_environment(environment, folder, &arguments);
    let code = process.ended().await.code();
    (code, process.stdout().join("\n"), process.stderr())
}

async fn usable(folder: &Folder, environment: &[(&str, &str)], arguments: &[&str]) -> String {
    let (code, stdout, stderr) = check(folder, environment, arguments).await;
    assert_eq!((code, &*stderr), (Some(0), &[][..]), "{stdout}");
    stdout
}

fn config(main: &str) -> Value {
    json!({
        "main-target": main,
        "canary-target": main,
        "router-server": {"host": "127.0.0.1", "port": 1345}
    })
}

#[tokio::test]
async fn a_configuration_that_can_be_used_is_printed_with_its_defaults() {
    let folder = Folder::new();
    let mut file = config("http://127.0.0.1:8081/?key=s3cret");
    file["instrumentation"] = json!({"token": "s3cret-s3cret-s3cret"});
    folder.write("config.json", file.to_string());
    let named = folder.write("other.json", config("http://127.0.0.1:8081").to_string());

    let printed = usable(&folder, &[], &[]).await;
    let shown: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(printed, format!("{shown:#}"), "for people");
    for (path, value) in [
        ("/main-target", json!("http://127.0.0.1:8081/?***")),
        ("/router-server/read-timeout", json!(5)),
        ("/instrumentation/token", json!("***")),
    ] {
        assert_eq!(shown.pointer(path), Some(&value), "{path}");
    }
    // What is printed is a file that says the same, where no secret is in it.
    let over = [("CANARY_ROUTER_LOG__LEVEL", "debug")];
    for option in ["-c", "--config"] {
        let printed = usable(&folder, &over, &[option, named.to_str().unwrap()]).await;
        let shown: Value = serde_json::from_str(&printed).unwrap();
        assert_eq!(shown["log"]["level"], "debug");
        folder.write("again.json", &printed);
        assert_eq!(usable(&folder, &[], &["-c", "again.json"]).await, printed);
    }
}

#[tokio::test]
async fn the_environment_alone_can_be_checked() {
    let folder = Folder::new();
    let environment = [
        ("CANARY_ROUTER_MAIN_TARGET", "http://127.0.0.1:8081"),
        ("CANARY_ROUTER_CANARY_TARGET", "http://127.0.0.1:8082"),
        ("CANARY_ROUTER_ROUTER_SERVER__HOST", "127.0.0.1"),
        ("CANARY_ROUTER_ROUTER_SERVER__PORT", "1345"),
    ];
    let printed = usable(&folder, &environment, &[]).await;
    assert!(
        printed.contains("\"main-target\": \"http://127.0.0.1:8081\""),
        "{printed}"
    );
}

#[tokio::test]
async fn what_is_wrong_is_what_the_start_says() {
    let folder = Folder::new();
    folder.write(
        "config.json",
        json!({
            "main-target": "nowhere",
            "router-server": {"prot": 1345},
            "instrumentation": {"token-file": "absent"},
            "fallback": {"static": {"file": "absent"}}
        })
        .to_string(),
    );
    folder.write("torn.json", "{");
    let environment = [
        ("CANARY_ROUTER_LOG__LEVEL", "loud"),
        ("CANARY_ROUTER_LOG", "x"),
    ];
    for arguments in [&[][..], &["-c", "torn.json"], &["-c", "absent.json"]] {
        let (code, stdout, stderr) = check(&folder, &environment, arguments).await;
        assert_eq!((code, &*stdout), (Some(1), ""));
        let mut start = Process::start_with_environment(&environment, &folder, arguments);
        assert_eq!(start.ended().await.code(), Some(1));
        assert_eq!(stderr, start.stderr());
        assert!(!stderr.is_empty());
    }
}

/// Else it could not be asked beside the router that it is for.
#[tokio::test]
async fn it_binds_nothing_connects_to_nobody_and_leaves_nothing() {
    let main = Upstream::named("main", 200).await;
    let taken = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let [proxy, metrics] = taken
        .each_ref()
        .map(|taken| taken.local_addr().unwrap().port());
    let mut file = config(&main.url());
    merge(
        &mut file,
        json!({
            "sidecar-url": main.url(),
            "router-server": {"port": proxy},
            "instrumentation": {"host": "127.0.0.1", "port": metrics},
            "tracing": {"endpoint": main.url()},
            "state": {"file": "state/state.json"}
        }),
    );
    let folder = Folder::new();
    folder.write("config.json", file.to_string());
    fs::create_dir(folder.0.join("state")).unwrap();
    usable(&folder, &[], &[]).await;
    // Whoever came before is counted before.
    get(main.address, "/", "").await;
    assert_eq!(main.connections().0, 1);
    assert_eq!(fs::read_dir(folder.0.join("state")).unwrap().count(), 0);
    for taken in taken {
        taken.set_nonblocking(true).unwrap();
        assert!(taken.accept().is_err(), "nobody came");
    }
}

/// `canary-router check | head -1` is no error.
#[tokio::test]
async fn a_reader_that_has_seen_enough_is_no_error() {
    let folder = Folder::new();
    folder.write("config.json", config("http://127.0.0.1:8081").to_string());
    let mut process = Process::start_unread(&folder, &["check"]);
    assert_eq!(process.ended().await.code(), Some(0));
    assert_eq!(process.stderr(), [""; 0]);
}
