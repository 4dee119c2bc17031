//! What cannot be used, or not by a router that runs, changes nothing, and it is said wherever anybody looks.

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    time::Duration,
};

use super::*;

/// The status that a dashboard is told of next.
async fn watched(address: SocketAddr) -> Value {
    tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        write!(stream, "GET /events HTTP/1.1\r\nhost: {address}\r\n\r\n").unwrap();
        let lines = BufReader::new(stream).lines();
        let data = lines
            .map(Result::unwrap)
            .find_map(|line| Some(line.strip_prefix("data: ")?.to_owned()));
        serde_json::from_str(&data.unwrap()).unwrap()
    })
    .await
    .unwrap()
}

const LOADED: &str = "canary_router_config_last_reload_success_timestamp_seconds";

/// That nothing of it is in force, and that it is told everywhere: `says` is in each of these places.
async fn is_refused(program: &Program, code: u16, says: &[&str]) {
    let before = (
        status(program).await,
        reloads(program, "failed").await,
        metric(program, LOADED).await,
    );
    let lines = said(program, STAYS).len();
    let (refused, answer) = reload(program).await;
    let error = answer["error"]
        .as_str()
        .unwrap_or_else(|| panic!("{refused} {answer}"));
    assert_eq!(refused, code, "{error}");
    for word in says {
        assert!(error.contains(word), "{word} is not in {error}");
    }
    let after = status(program).await;
    openapi::assert_is("Status", &after);
    let failure = &after["config"]["last_failure"];
    assert_eq!(failure["error"], error);
    let at = humantime::parse_rfc3339(failure["at"].as_str().unwrap()).unwrap();
    assert!(at.elapsed().unwrap() < PATIENCE);
    assert_eq!(
        after["config"]["loaded_at"],
        before.0["config"]["loaded_at"]
    );
    assert_eq!(
        after["targets"]["main"]["url"],
        before.0["targets"]["main"]["url"]
    );
    assert_eq!(reloads(program, "failed").await, before.1 + 1.0);
    assert_eq!(metric(program, LOADED).await, before.2);
    eventually(|| said(program, STAYS).len() > lines).await;
    let line = said(program, STAYS).pop().unwrap();
    assert_eq!(
        (&line["level"], &line["error"]),
        (&json!("error"), &json!(error))
    );
    let (success, printed) = run(program, &["status"]).await;
    assert!(success);
    let line = printed
        .lines()
        .find(|line| line.trim_start().starts_with("config "))
        .expect("a line with it");
    let first = error.lines().next().unwrap();
    assert!(line.contains(first), "{line} has not {first}");
    assert_eq!(
        watched(program.instrumentation).await["status"]["config"],
        after["config"]
    );
    let (success, printed) = run(program, &["reload"]).await;
    assert!(!success && printed.contains(first), "{printed}");
}

/// And that a good one makes up for it.
async fn recovers(program: &Program) {
    let loaded = metric(program, LOADED).await;
    let status = change(program, json!({})).await;
    assert_eq!(status["config"]["last_failure"], Value::Null);
    assert!(metric(program, LOADED).await > loaded);
    let (_, printed) = run(program, &["status"]).await;
    assert!(!printed.contains("cannot be used"), "{printed}");
}

#[tokio::test]
async fn what_only_a_start_can_do_is_refused_by_name_and_so_is_all_beside_it() {
    let (one, other, collector) = (
        service("one").await,
        service("other").await,
        service("collector").await,
    );
    let folder = Folder::new();
    let state = folder.0.join("state.json");
    let program = Program::start(json!({
        "main-target": one.url(), "canary-target": one.url(), "state": {"file": state},
        "tracing": {"endpoint": format!("{}/?key=s3cret", collector.url()), "sample": 0}
    }))
    .await;
    let [proxy, metrics] =
        [program.address, program.instrumentation].map(|address| address.port().to_string());
    let state = state.to_str().unwrap();
    let endpoint = format!("{}/?***", collector.url());
    for (config, path, says) in [
        (
            json!({"router-server": {"host": "127.0.0.2"}}),
            "/router-server/host",
            ["\"127.0.0.1\"", "\"127.0.0.2\""],
        ),
        (
            json!({"router-server": {"port": 1}}),
            "/router-server/port",
            [&*proxy, "would be 1;"],
        ),
        (
            json!({"router-server": {"workers": 3}}),
            "/router-server/workers",
            ["is 2", "would be 3;"],
        ),
        (
            json!({"instrumentation": {"host": "127.0.0.2"}}),
            "/instrumentation/host",
            ["\"127.0.0.1\"", "\"127.0.0.2\""],
        ),
        (
            json!({"instrumentation": {"port": 1}}),
            "/instrumentation/port",
            [&metrics, "would be 1;"],
        ),
        (
            json!({"instrumentation": null}),
            "/instrumentation/port",
            [&metrics, "would be not set"],
        ),
        (
            json!({"state": {"file": "other.json"}}),
            "/state/file",
            [state, "\"other.json\""],
        ),
        (
            json!({"state": null}),
            "/state/file",
            [state, "would be not set"],
        ),
        (
            json!({"tracing": {"endpoint": "http://127.0.0.1:9/?key=hunter2"}}),
            "/tracing/endpoint",
            [&endpoint, "\"http://127.0.0.1:9/?***\""],
        ),
        (
            json!({"tracing": null}),
            "/tracing/endpoint",
            [&endpoint, "would be not set"],
        ),
        (
            json!({"tracing": {"service-name": "x"}}),
            "/tracing/service-name",
            ["\"canary-router\"", "\"x\""],
        ),
    ] {
        let mut config = config;
        merge(
            &mut config,
            json!({"main-target": other.url(), "log": {"level": "debug"}, "trim-prefix": "/x"}),
        );
        program.rewrite(config.clone());
        let does = "put it back, or start the router anew";
        is_refused(
            &program,
            409,
            &["config.json: ", path, says[0], says[1], does],
        )
        .await;
        assert_eq!(
            get(program.address, "/x/y", "").await.text(),
            "one /x/y",
            "{config}"
        );
    }
    // As a section that is not there before.
    recovers(&program).await;
    let log = program.process.stdout().join("\n");
    assert!(!log.contains("s3cret") && !log.contains("hunter2"), "{log}");
    assert!(!log.contains("\"debug\""), "{log}");
}

/// What is written in another way is no change.
#[tokio::test]
async fn what_is_fixed_may_be_written_in_another_way() {
    let one = service("one").await;
    let program = Program::start(json!({
        "main-target": one.url(), "canary-target": one.url(),
        "tracing": {"endpoint": "http://127.0.0.1:9", "sample": 0}
    }))
    .await;
    let port = |address: SocketAddr| format!(" {} ", address.port()).trim().to_owned();
    change(
        &program,
        json!({
            "router-server": {"port": port(program.address), "workers": "2"},
            "instrumentation": {"port": port(program.instrumentation)},
            "state": {"file": ""}, "tracing": {"service-name": "canary-router"}
        }),
    )
    .await;
    assert_eq!(get(program.address, "/", "").await.text(), "one /");
}

#[tokio::test]
async fn a_section_that_was_not_there_is_refused_too() {
    let one = service("one").await;
    let program =
        Program::start(json!({"main-target": one.url(), "canary-target": one.url()})).await;
    for (config, path) in [
        (json!({"state": {"file": "s.json"}}), "/state/file"),
        (
            json!({"tracing": {"endpoint": "http://127.0.0.1:9"}}),
            "/tracing/endpoint",
        ),
    ] {
        program.rewrite(config);
        is_refused(&program, 409, &[path, "it is not set"]).await;
    }
    recovers(&program).await;
}

#[tokio::test]
async fn a_file_that_cannot_be_used_changes_nothing() {
    let (one, other) = (service("one").await, service("other").await);
    let secret = "hunter2-0123456789abcdef";
    let with = |main: &Upstream| json!({"main-target": main.url(), "canary-target": main.url(), "log": {"level": "info"}});
    let program = Program::start(with(&one)).await;
    let mut good = with(&other);
    merge(
        &mut good,
        json!({
            "router-server": {"host": "127.0.0.1", "port": program.address.port(), "workers": 2},
            "instrumentation": {"host": "127.0.0.1", "port": program.instrumentation.port(), "token": secret}
        }),
    );
    let good = good.to_string();
    let but = |change: Value| {
        let mut file: Value = serde_json::from_str(&good).unwrap();
        merge(&mut file, change);
        file.to_string()
    };
    for (text, says) in [
        (good[..good.len() / 2].to_owned(), &["not valid JSON"][..]),
        (String::new(), &["not valid JSON"]),
        ("null".into(), &["not a JSON object"]),
        (
            but(json!({"main-traget": "x"})),
            &["/main-traget", "did you mean \"main-target\"?"],
        ),
        (
            but(
                json!({"circuit-breaker": {"request-limit-canary": "many"}, "log": {"level": "loud"}}),
            ),
            &["/circuit-breaker/request-limit-canary", "/log/level"],
        ),
        (
            but(json!({"main-target": format!("http://a:b-{secret}@127.0.0.1")})),
            &["/main-target"],
        ),
        (
            but(json!({"main-target": format!("ftp://127.0.0.1/?{secret}")})),
            &["/main-target"],
        ),
        (
            but(json!({"instrumentation": {"token": [secret]}})),
            &["/instrumentation/token"],
        ),
        (
            but(json!({"instrumentation": {"token": "short-hunter2"}})),
            &["/instrumentation/token"],
        ),
        (
            but(json!({"instrumentation": {"token": null, "token-file": "absent"}})),
            &["/instrumentation/token-file", "absent"],
        ),
        (
            but(
                json!({"router-server": {"tls": {"certificate": "absent.pem", "private-key": "config.json"}}}),
            ),
            &[
                "/router-server/tls/certificate",
                "/router-server/tls/private-key",
            ],
        ),
    ] {
        program.write(&text);
        is_refused(&program, 422, says).await;
        assert_eq!(
            get(program.address, "/", "").await.text(),
            "one /",
            "{text}"
        );
    }
    let file = program.path("config.json");
    std::fs::remove_file(&file).unwrap();
    is_refused(&program, 422, &["config.json: cannot be read"]).await;
    std::fs::create_dir(&file).unwrap();
    is_refused(&program, 422, &["config.json: cannot be read"]).await;
    std::fs::remove_dir(&file).unwrap();
    std::os::unix::fs::symlink("config.json", &file).unwrap();
    is_refused(&program, 422, &["config.json: cannot be read"]).await;
    std::fs::remove_file(&file).unwrap();
    assert_eq!(get(program.address, "/", "").await.text(), "one /");
    recovers(&program).await;
    let log = program.process.stdout().join("\n");
    assert!(!log.contains("hunter2"), "{log}");
}

/// It would be waited for who writes into it, by the thread that answers whether the process is alive.
#[tokio::test]
async fn a_pipe_in_the_place_of_the_file_holds_nobody_up() {
    let one = service("one").await;
    let mut program =
        Program::start(json!({"main-target": one.url(), "canary-target": one.url()})).await;
    let file = program.path("config.json");
    std::fs::remove_file(&file).unwrap();
    let made = std::process::Command::new("mkfifo")
        .arg(&file)
        .status()
        .unwrap();
    assert!(made.success());
    program.process.signal("HUP");
    until_reloads(&program, "failed", 1.0).await;
    is_refused(
        &program,
        422,
        &["config.json: cannot be read", "not a file"],
    )
    .await;
    program.process.signal("HUP");
    program.process.signal("TERM");
    assert!(program.process.ended().await.success());
}
