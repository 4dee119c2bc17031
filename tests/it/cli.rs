//! The program: its command line, its file, its signals.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::*;

/// A config that works, with listeners on `proxy` and `metrics`.
fn config(main: &str, proxy: &Port, metrics: &Port) -> Value {
    json!({
        "main-target": main,
        "canary-target": main,
        "router-server": {"host": "127.0.0.1", "port": proxy.number(), "workers": 2},
        "instrumentation": {"host": "127.0.0.1", "port": metrics.number()}
    })
}

/// Runs it with this file as its `config.json` to its end, which is a failure: stderr.
async fn refused(file: &str) -> Vec<String> {
    let folder = Folder::new();
    folder.write("config.json", file);
    failed(&folder, &[]).await
}

async fn failed(folder: &Folder, arguments: &[&str]) -> Vec<String> {
    let mut process = Process::start(folder, arguments);
    let status = process.ended().await;
    let stderr = process.stderr();
    assert!(status.code().is_some_and(|code| code != 0), "{status}");
    assert!(!stderr.is_empty());
    let panicked = stderr.iter().any(|line| line.contains("panicked"));
    assert!(!panicked, "{stderr:#?}");
    stderr
}

#[tokio::test]
async fn the_default_file_is_config_json_in_the_working_directory() {
    let main = Upstream::named("main", 200).await;
    let (proxy, metrics) = (Port::reserve(), Port::reserve());
    let folder = Folder::new();
    folder.write(
        "config.json",
        config(&main.url(), &proxy, &metrics).to_string(),
    );
    let mut process = Process::start(&folder, &[]);
    process.listens(proxy.address).await;
    process.listens(metrics.address).await;
    assert_eq!(get(proxy.address, "/", "").await.text(), "main");
    let page = get(metrics.address, "/metrics", "").await;
    assert!(page.text().contains("canary_router_request_count"));
}

#[tokio::test]
async fn both_spellings_of_the_option_name_the_file() {
    let main = Upstream::named("main", 200).await;
    for option in ["-c", "--config"] {
        let (proxy, metrics) = (Port::reserve(), Port::reserve());
        let folder = Folder::new();
        let file = config(&main.url(), &proxy, &metrics).to_string();
        let path = folder.write("other.json", file);
        let mut process = Process::start(&folder, &[option, path.to_str().unwrap()]);
        process.listens(proxy.address).await;
        assert_eq!(get(proxy.address, "/", "").await.text(), "main");
    }
}

#[tokio::test]
async fn a_file_that_is_not_there_is_named() {
    let folder = Folder::new();
    let stderr = failed(&folder, &[]).await;
    assert!(stderr[0].contains("config.json"), "{stderr:#?}");
    let stderr = failed(&folder, &["-c", "absent.json"]).await;
    assert!(stderr[0].contains("absent.json"), "{stderr:#?}");
    assert!(stderr[0].contains("-c"), "it says what to do: {stderr:#?}");
    let stderr = failed(&folder, &["-c", "."]).await;
    assert!(!stderr.is_empty(), "a folder is not a file: {stderr:#?}");
}

#[tokio::test]
async fn what_is_not_json_is_said_with_its_place() {
    for (file, place) in [
        ("{\n  \"main-target\": \"http://a\",\n}", "line 3"),
        ("", "line 1"),
        ("main-target: http://a\n", "line 1"),
    ] {
        let stderr = refused(file).await;
        assert_eq!(stderr.len(), 1, "{stderr:#?}");
        assert!(stderr[0].starts_with("config.json: "), "{stderr:#?}");
        assert!(stderr[0].contains("JSON"), "{stderr:#?}");
        assert!(stderr[0].contains(place), "{stderr:#?}");
    }
    for file in ["[]", "7", "null"] {
        let stderr = refused(file).await;
        assert_eq!(stderr.len(), 1, "{stderr:#?}");
        assert!(stderr[0].contains("object"), "{stderr:#?}");
    }
}

#[tokio::test]
async fn all_problems_come_at_once_each_on_its_line_with_path_and_remedy() {
    let stderr = refused(
        r#"{
            "main-target": "localhost:8081",
            "sidecar-url": "ftp://sidecar",
            "trim-prefix": "foo",
            "circuit-breaker": {"error-limit-canery": 5, "request-limit-canary": -1},
            "router-server": {"host": "127.0.0.1", "prot": 80, "read-timeout": "soon"},
            "proxy-client": {"to-main-and-canary": {"timeout": "1s", "connect-timeout": "2s"}},
            "log": {"level": "loud"}
        }"#,
    )
    .await;
    let expected = [
        ("/main-target", "http://"),
        ("/canary-target", "http://"),
        ("/sidecar-url", "http://"),
        ("/trim-prefix", "\"/foo\""),
        (
            "/circuit-breaker/error-limit-canery",
            "\"error-limit-canary\"",
        ),
        ("/circuit-breaker/request-limit-canary", "0 or more"),
        ("/router-server/prot", "\"port\""),
        ("/router-server/port", "1345"),
        ("/router-server/read-timeout", "\"5s\""),
        (
            "/proxy-client/to-main-and-canary/connect-timeout",
            "shorter",
        ),
        ("/log/level", "debug"),
    ];
    for (path, remedy) in expected {
        let start = format!("config.json: {path}: ");
        let lines: Vec<_> = stderr
            .iter()
            .filter(|line| line.starts_with(&start))
            .collect();
        assert_eq!(lines.len(), 1, "{path} in {stderr:#?}");
        assert!(lines[0].contains(remedy), "{remedy}: {}", lines[0]);
    }
    assert_eq!(stderr.len(), expected.len(), "{stderr:#?}");
}

#[tokio::test]
async fn a_misspelt_section_is_an_error_that_names_the_known_one() {
    for (misspelt, known) in [
        ("circuit-braker", "circuit-breaker"),
        ("circuitBreaker", "circuit-breaker"),
        ("canary-taget", "canary-target"),
        ("sidecar_url", "sidecar-url"),
    ] {
        let stderr = refused(&json!({ misspelt: {} }).to_string()).await;
        let line = stderr
            .iter()
            .find(|line| line.starts_with(&format!("config.json: /{misspelt}: ")));
        assert!(
            line.is_some_and(|line| line.contains(&format!("{known:?}"))),
            "{stderr:#?}"
        );
    }
}

#[tokio::test]
async fn a_port_and_a_host_must_be_said() {
    let complete = config("http://127.0.0.1:1", &Port::reserve(), &Port::reserve());
    for (key, value) in [
        ("port", Value::Null),
        ("port", json!(0)),
        ("port", json!("0")),
        ("host", Value::Null),
        ("host", json!("")),
    ] {
        let mut file = complete.clone();
        file["router-server"][key] = value.clone();
        let stderr = refused(&file.to_string()).await;
        assert_eq!(stderr.len(), 1, "{stderr:#?}");
        let start = format!("config.json: /router-server/{key}: ");
        assert!(stderr[0].starts_with(&start), "{value}: {stderr:#?}");
    }
}

#[tokio::test]
async fn a_value_that_does_not_fit_is_one_problem_and_not_missing_as_well() {
    let complete = config("http://127.0.0.1:1", &Port::reserve(), &Port::reserve());
    for (path, value) in [
        ("/router-server/port", json!(65536)),
        ("/router-server/port", json!("http")),
        ("/router-server/host", json!(7)),
        ("/main-target", json!(["http://127.0.0.1:1"])),
    ] {
        let mut file = complete.clone();
        *file.pointer_mut(path).unwrap() = value.clone();
        let stderr = refused(&file.to_string()).await;
        assert_eq!(stderr.len(), 1, "{value}: {stderr:#?}");
        let start = format!("config.json: {path}: ");
        assert!(stderr[0].starts_with(&start), "{value}: {stderr:#?}");
    }
}

#[tokio::test]
async fn a_port_in_use_is_said_with_address_and_remedy() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let number = taken.local_addr().unwrap().port();
    for section in ["router-server", "instrumentation"] {
        let mut file = config("http://127.0.0.1:1", &Port::reserve(), &Port::reserve());
        file[section]["port"] = json!(number);
        let stderr = refused(&file.to_string()).await.join("\n");
        for part in [
            format!("127.0.0.1:{number}"),
            section.into(),
            "another".into(),
        ] {
            assert!(stderr.contains(&part), "{part} in {stderr}");
        }
    }
}

#[tokio::test]
async fn a_second_router_on_the_same_port_does_not_share_it() {
    let main = Upstream::named("main", 200).await;
    let (proxy, metrics) = (Port::reserve(), Port::reserve());
    let folder = Folder::new();
    folder.write(
        "config.json",
        config(&main.url(), &proxy, &metrics).to_string(),
    );
    let mut first = Process::start(&folder, &[]);
    first.listens(proxy.address).await;
    let second = config(&main.url(), &proxy, &Port::reserve()).to_string();
    let stderr = refused(&second).await.join("\n");
    assert!(stderr.contains(&proxy.address.to_string()), "{stderr}");
    // The first one goes on.
    assert_eq!(get(proxy.address, "/", "").await.text(), "main");
}

#[tokio::test]
async fn version_and_help_are_told_on_stdout() {
    let folder = Folder::new();
    let mut process = Process::start(&folder, &["--version"]);
    assert_eq!(process.ended().await.code(), Some(0));
    assert_eq!(
        process.stdout(),
        [format!("canary-router {}", canary_router::LONG_VERSION)]
    );
    let mut process = Process::start(&folder, &["--help"]);
    assert_eq!(process.ended().await.code(), Some(0));
    let help = process.stdout().join("\n");
    for part in [
        "canary-router",
        "-c",
        "--config",
        "config.json",
        "--version",
    ] {
        assert!(help.contains(part), "{part} in {help}");
    }
    let mut process = Process::start(&folder, &["--no-such-option"]);
    assert_ne!(process.ended().await.code(), Some(0));
    assert!(process.stderr().join("\n").contains("--no-such-option"));
}

#[tokio::test]
async fn an_old_file_works_and_a_signal_ends_it_properly() {
    let (main, canary, sidecar) = (
        Upstream::named("main", 200).await,
        Upstream::named("canary", 200).await,
        Upstream::start(asked).await,
    );
    for signal in ["TERM", "INT"] {
        let (proxy, metrics) = (Port::reserve(), Port::reserve());
        let folder = Folder::new();
        // Ports and some numbers as strings, empty strings and zeros for "not set": as they are.
        let file = json!({
            "main-target": main.url(),
            "main-header-host": "",
            "canary-target": canary.url(),
            "canary-header-host": "",
            "sidecar-url": sidecar.url(),
            "trim-prefix": "",
            "main-sidecar-status": 0,
            "canary-sidecar-status": 0,
            "circuit-breaker": {"request-limit-canary": "2", "error-limit-canary": 0},
            "instrumentation": {"host": "127.0.0.1", "port": metrics.number().to_string()},
            "router-server": {
                "host": "127.0.0.1",
                "port": proxy.number().to_string(),
                "read-timeout": 5,
                "write-timeout": 15,
                "idle-timeout": "120"
            },
            "proxy-client": {
                "to-main-and-canary": {
                    "timeout": 5,
                    "max-idle-conns": 1000,
                    "idle-conn-timeout": 30,
                    "disable-compression": true,
                    "tls": {"insecure-skip-verify": true}
                },
                "to-sidecar": {
                    "timeout": 2,
                    "max-idle-conns": 1000,
                    "idle-conn-timeout": 30,
                    "disable-compression": true,
                    "tls": {"insecure-skip-verify": false}
                }
            },
            "log": {
                "level": "info", "debug-request-body": false, "debug-response-body": false
            }
        });
        folder.write("config.json", file.to_string());
        let mut process = Process::start(&folder, &[]);
        process.listens(proxy.address).await;
        for name in ["canary", "canary", "main"] {
            assert_eq!(get(proxy.address, "/", "").await.text(), name);
        }
        process.signal(signal);
        assert_eq!(process.ended().await.code(), Some(0), "{signal}");
        assert!(!process.log().is_empty());
        assert_eq!(process.stderr(), [""; 0]);
        let refused = std::net::TcpStream::connect(proxy.address).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    }
}

#[tokio::test]
async fn without_an_instrumentation_section_there_is_no_metrics_listener() {
    let main = Upstream::named("main", 200).await;
    let (proxy, metrics) = (Port::reserve(), Port::reserve());
    let folder = Folder::new();
    let mut file = config(&main.url(), &proxy, &metrics);
    file.as_object_mut().unwrap().remove("instrumentation");
    folder.write("config.json", file.to_string());
    let mut process = Process::start(&folder, &[]);
    process.listens(proxy.address).await;
    assert_eq!(get(proxy.address, "/", "").await.text(), "main");
    process.signal("TERM");
    assert_eq!(process.ended().await.code(), Some(0));
}

/// The listener was open before the handlers were in place: a signal in between killed the process
/// where it should have drained.
#[tokio::test]
async fn sigterm_drains_as_soon_as_connections_are_taken() {
    let main = Upstream::named("main", 200).await;
    for _ in 0..20 {
        let (proxy, metrics) = (Port::reserve(), Port::reserve());
        let folder = Folder::new();
        folder.write(
            "config.json",
            config(&main.url(), &proxy, &metrics).to_string(),
        );
        let mut process = Process::start(&folder, &[]);
        process.takes_connections(proxy.address).await;
        process.signal("TERM");
        assert_eq!(process.ended().await.code(), Some(0));
    }
}

#[tokio::test]
async fn sigterm_lets_the_request_in_flight_end() {
    let gate = Gate::shut();
    let waiting = gate.clone();
    let main = Upstream::start(move |_| {
        [vec![Step::Wait(waiting.clone())], answer(200, "", "main")].concat()
    })
    .await;
    let (proxy, metrics) = (Port::reserve(), Port::reserve());
    let folder = Folder::new();
    folder.write(
        "config.json",
        config(&main.url(), &proxy, &metrics).to_string(),
    );
    let mut process = Process::start(&folder, &[]);
    process.listens(proxy.address).await;
    let mut client = Client::connect(proxy.address).await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    eventually(|| main.count() == 1).await;
    process.signal("TERM");
    eventually(|| std::net::TcpStream::connect(proxy.address).is_err()).await;
    gate.open();
    let response = client.response("GET").await.unwrap();
    assert_eq!((response.status, response.text().as_str()), (200, "main"));
    assert_eq!(process.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_second_sigterm_stops_at_once() {
    let main = Upstream::start(|_| vec![Step::Hang]).await;
    let (proxy, metrics) = (Port::reserve(), Port::reserve());
    let folder = Folder::new();
    let mut file = config(&main.url(), &proxy, &metrics);
    // Neither of them ends it within our patience.
    file["proxy-client"] = json!({"to-main-and-canary": {"timeout": "1h"}});
    file["router-server"]["shutdown-timeout"] = json!("1h");
    folder.write("config.json", file.to_string());
    let mut process = Process::start(&folder, &[]);
    process.listens(proxy.address).await;
    let mut client = Client::connect(proxy.address).await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    eventually(|| main.count() == 1).await;
    process.signal("TERM");
    eventually(|| std::net::TcpStream::connect(proxy.address).is_err()).await;
    process.signal("TERM");
    tokio::time::timeout(Duration::from_secs(5), process.ended())
        .await
        .expect("it stops at once");
    assert_eq!(client.rest().await, b"", "cut, not answered");
}
