//! The configuration is read again while the router runs: whole or not at all, and nobody notices who does not ask.
//!
//! With the real program: what is looked at is its file, its signals and its log too.

mod counts;
mod in_flight;
mod listener;
mod load;
mod logs;
mod refused;
mod rollout;
mod upstreams;
mod watch;

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::support::*;

/// A service that answers with its name and what it was asked for.
async fn service(name: &'static str) -> Upstream {
    Upstream::start(move |request| answer(200, "", &format!("{name} {}", request.target()))).await
}

/// Has the file read again that is there; status and body of the answer.
async fn reload(program: &Program) -> (u16, Value) {
    admin(program.instrumentation, "POST", "/reload", "").await
}

/// Puts a change in force; the status that it answers with.
async fn change(program: &Program, change: Value) -> Value {
    program.rewrite(change);
    let (code, status) = reload(program).await;
    assert_eq!(code, 200, "{status}");
    openapi::assert_is("Status", &status);
    status
}

async fn status(program: &Program) -> Value {
    let (code, status) = admin(program.instrumentation, "GET", "/status", "").await;
    assert_eq!(code, 200);
    status
}

async fn metric(program: &Program, series: &str) -> f64 {
    let page = get(program.instrumentation, "/metrics", "").await;
    Metrics(page.text()).value(series)
}

/// How often it was read again with this result.
async fn reloads(program: &Program, result: &str) -> f64 {
    let series = format!("canary_router_config_reloads_total{{result=\"{result}\"}}");
    metric(program, &series).await
}

/// Waits until it was.
#[track_caller]
fn until_reloads(program: &Program, result: &str, number: f64) -> impl Future<Output = ()> {
    soon(async move {
        while reloads(program, result).await != number {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
}

/// Waits until the answer to a request on a connection of its own is this.
#[track_caller]
fn until_text(address: SocketAddr, target: &str, text: &str) -> impl Future<Output = ()> {
    soon(async move {
        while get(address, target, "").await.text() != text {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
}

/// Lines of the log with this message.
fn said(program: &Program, message: &str) -> Vec<Value> {
    let log = program.process.log().into_iter();
    log.filter(|line| line["msg"] == message).collect()
}

const IN_FORCE: &str = "the configuration was read again and is in force";
const STAYS: &str = "the configuration stays as it was";

/// Runs a command of the program's to its end: whether it succeeded, and what it printed.
async fn run(program: &Program, words: &[&str]) -> (bool, String) {
    let folder = Folder::new();
    let url = format!("http://{}", program.instrumentation);
    let mut process = Process::start(&folder, &[words, &["--url", &url]].concat());
    let status = process.ended().await;
    let said = [process.stdout(), process.stderr()].concat();
    (status.success(), said.join("\n"))
}

#[tokio::test]
async fn each_trigger_puts_the_file_in_force_that_is_there() {
    let (one, other) = (service("one").await, service("other").await);
    let to = |main: &Upstream| json!({"main-target": main.url()});
    let mut config = to(&one);
    merge(
        &mut config,
        json!({"canary-target": one.url(), "log": {"level": "info"}}),
    );
    let program = Program::start(config).await;
    let address = program.address;
    let mut kept = Client::connect(address).await;
    let ask = head("GET /x", "");
    assert_eq!(kept.roundtrip("GET", &ask).await.text(), "one /x");

    program.rewrite(to(&other));
    program.process.signal("HUP");
    until_text(address, "/x", "other /x").await;

    // From the moment that it has answered, on each connection.
    for (name, target) in [("one", &one), ("other", &other)] {
        change(&program, to(target)).await;
        assert_eq!(
            kept.roundtrip("GET", &ask).await.text(),
            format!("{name} /x")
        );
        assert_eq!(get(address, "/x", "").await.text(), format!("{name} /x"));
    }

    program.rewrite(to(&one));
    let (success, printed) = run(&program, &["reload"]).await;
    assert!(success, "{printed}");
    assert_eq!(get(address, "/x", "").await.text(), "one /x");

    assert_eq!(reloads(&program, "succeeded").await, 4.0);
    assert_eq!(reloads(&program, "failed").await, 0.0);
    eventually(|| said(&program, IN_FORCE).len() == 4).await;
    let said = said(&program, IN_FORCE);
    let whys: Vec<_> = said
        .iter()
        .map(|line| line["why"].as_str().unwrap())
        .collect();
    assert_eq!(
        whys,
        ["SIGHUP", "an operator", "an operator", "an operator"]
    );
    for line in &said {
        assert_eq!(line["changed"], json!(["/main-target"]), "{line}");
        assert_eq!(line["level"], "info");
    }
}

#[tokio::test]
async fn who_may_not_change_anything_reloads_nothing() {
    let (one, other) = (service("one").await, service("other").await);
    let targets = |main: &Upstream| json!({"main-target": main.url(), "canary-target": main.url()});
    let program = Program::start(targets(&one)).await;
    let port = program.instrumentation;
    let post =
        |headers: String| async move { request(port, "POST", "/reload", &headers, "").await };
    program.rewrite(targets(&other));
    for method in ["GET", "PUT", "DELETE"] {
        let refused = request(port, method, "/reload", "", "").await;
        assert_eq!(
            (refused.status, refused.header("allow")),
            (405, Some("POST"))
        );
    }
    let foreign = post("origin: http://evil.example\r\n".into()).await;
    assert_eq!(foreign.status, 403);
    assert_eq!(
        post("sec-fetch-site: cross-site\r\n".into()).await.status,
        403
    );
    // `client.example` is no name of this machine.
    assert_eq!(post(String::new()).await.status, 403);
    assert_eq!(get(program.address, "/", "").await.text(), "one /");
    assert_eq!(reloads(&program, "succeeded").await, 0.0);

    // A token comes with a reload, and another one after it.
    let tokens = ["first-0123456789abcdef", "other-0123456789abcdef"];
    let mut with_token = targets(&other);
    merge(
        &mut with_token,
        json!({"instrumentation": {"token": tokens[0]}}),
    );
    change(&program, with_token.clone()).await;
    assert_eq!(get(program.address, "/", "").await.text(), "other /");
    let bearer = |token: &str| format!("authorization: Bearer {token}\r\n");
    assert_eq!(reload(&program).await.0, 401);
    assert_eq!(post(bearer(tokens[1])).await.status, 401);
    merge(
        &mut with_token,
        json!({"instrumentation": {"token": tokens[1]}}),
    );
    program.rewrite(with_token);
    assert_eq!(post(bearer(tokens[0])).await.status, 200);
    assert_eq!(post(bearer(tokens[0])).await.status, 401);
    assert_eq!(post(bearer(tokens[1])).await.status, 200);
    program.rewrite(targets(&other));
    assert_eq!(post(bearer(tokens[1])).await.status, 200);
    assert_eq!(reload(&program).await.0, 200);
    let log = program.process.stdout().join("\n");
    assert!(tokens.iter().all(|token| !log.contains(token)), "{log}");
}

/// Nobody can be asked then, and the log is all that there is.
#[tokio::test]
async fn without_an_instrumentation_port_sighup_reloads_all_the_same() {
    let (one, other) = (service("one").await, service("other").await);
    let port = Port::reserve();
    let folder = Folder::new();
    let config = |main: &Upstream, weight: &Value| {
        json!({
            "main-target": main.url(), "canary-target": main.url(), "traffic": {"weight": weight},
            "router-server": {"host": "127.0.0.1", "port": port.number(), "workers": 2}
        })
        .to_string()
    };
    folder.write("config.json", config(&one, &json!(0)));
    let mut process = Process::start(&folder, &[]);
    process.listens(port.address).await;
    until_text(port.address, "/", "one /").await;
    folder.write("config.json", config(&other, &json!(0)));
    process.signal("HUP");
    until_text(port.address, "/", "other /").await;
    // By itself, if that is wanted.
    let watches = |main: &Upstream| {
        config(main, &json!(0)).replacen('{', r#"{"reload": {"watch": true}, "#, 1)
    };
    folder.write("config.json", watches(&other));
    process.signal("HUP");
    let in_force = || {
        process
            .log()
            .iter()
            .filter(|line| line["msg"] == IN_FORCE)
            .count()
    };
    eventually(|| in_force() == 2).await;
    folder.write("config.json", watches(&one));
    until_text(port.address, "/", "one /").await;
    folder.write("config.json", config(&other, &json!(0)));
    until_text(port.address, "/", "other /").await;
    folder.write("config.json", config(&one, &json!("all")));
    process.signal("HUP");
    let is_refused = |line: &Value| line["msg"] == STAYS && line["level"] == "error";
    eventually(|| process.log().iter().any(is_refused)).await;
    assert_eq!(get(port.address, "/", "").await.text(), "other /");
    process.signal("TERM");
    assert!(process.ended().await.success());
}

#[tokio::test]
async fn many_triggers_at_once_all_come_to_the_same() {
    let (one, other) = (service("one").await, service("other").await);
    let program = Program::start(json!({
        "main-target": one.url(), "canary-target": one.url(),
        "rollout": {"steps": [{"weight": 50, "for": "1h"}]}
    }))
    .await;
    for round in 0..10 {
        let target = [&other, &one][round % 2];
        program.rewrite(json!({"main-target": target.url(), "canary-target": target.url()}));
        let port = program.instrumentation;
        for _ in 0..3 {
            program.process.signal("HUP");
        }
        // A rollout is begun and aborted meanwhile; whichever comes first, both are carried out.
        let posts = (0..8).map(|i| async move {
            match i {
                3 => admin(port, "POST", "/rollout/start", "").await.0,
                5 => admin(port, "POST", "/rollout/abort", "").await.0,
                _ => admin(port, "POST", "/reload", "").await.0,
            }
        });
        assert_eq!(together(posts).await, [200; 8]);
        let (code, _) = admin(port, "POST", "/rollout/abort", "").await;
        assert_eq!(code, 200);
        let name = ["other", "one"][round % 2];
        assert_eq!(
            get(program.address, "/", "").await.text(),
            format!("{name} /")
        );
    }
    assert_eq!(reloads(&program, "failed").await, 0.0);
    assert!(reloads(&program, "succeeded").await >= 60.0);
}

#[tokio::test]
async fn a_signal_during_a_drain_does_no_harm() {
    let upstream = ByHand::start().await;
    let mut program = Program::start(json!({
        "main-target": upstream.url(), "canary-target": upstream.url(), "log": {"level": "info"}
    }))
    .await;
    let mut client = Client::connect(program.address).await;
    client.send(head("GET /", "")).await;
    let mut service = upstream.accept().await;
    service.request().await;
    program.rewrite(json!({"main-target": "http://127.0.0.1:9"}));
    program.process.signal("TERM");
    eventually(|| !said(&program, "draining: no new connections").is_empty()).await;
    program.process.signal("HUP");
    let (code, _) = reload(&program).await;
    assert_eq!(code, 200);
    program.process.signal("HUP");
    assert_eq!(reload(&program).await.0, 200);
    service
        .send("HTTP/1.1 200 X\r\ncontent-length: 4\r\n\r\nmain")
        .await;
    let response = client.response("GET").await.unwrap();
    assert_eq!((response.status, &*response.text()), (200, "main"));
    drop(client);
    assert!(program.process.ended().await.success());
}
