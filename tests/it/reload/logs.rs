//! What is logged changes with the configuration, from the next line or request on.

use super::*;
use crate::support::h2peer::{H2Client, asks, receive};

fn log(log: Value) -> Value {
    json!({"log": log})
}

/// The paths of which the access log tells, in order.
fn told(program: &Program) -> Vec<String> {
    let lines = said(program, "request").into_iter();
    lines
        .map(|line| line["path"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn level_and_format_are_those_of_the_new_configuration() {
    let main = service("main").await;
    let mut config = json!({"main-target": main.url(), "canary-target": main.url()});
    merge(&mut config, log(json!({"level": "info"})));
    let program = Program::start(config).await;
    let ask = async |target: &str| assert_eq!(get(program.address, target, "").await.status, 200);
    let forwarded = || -> Vec<Value> {
        said(&program, "forwarding")
            .into_iter()
            .map(|line| line["uri"].clone())
            .collect()
    };
    ask("/info").await;
    change(&program, log(json!({"level": "debug"}))).await;
    ask("/debug").await;
    change(&program, log(json!({"level": "warn"}))).await;
    ask("/warn").await;
    change(
        &program,
        log(json!({"level": "debug", "debug-request-body": true})),
    )
    .await;
    let sent = request(program.address, "POST", "/body", "", "what is sent").await;
    assert_eq!(sent.status, 200);
    eventually(|| forwarded().len() == 2).await;
    assert_eq!(forwarded(), ["/debug", "/body"]);
    eventually(|| {
        program
            .process
            .stdout()
            .iter()
            .any(|line| line.contains("what is sent"))
    })
    .await;
    // That it is in force is said by what was in force, or by what is.
    change(&program, log(json!({"level": "error"}))).await;
    program.write("{");
    assert_eq!(reload(&program).await.0, 422);
    eventually(|| said(&program, STAYS).len() == 1).await;

    let lines = program.process.stdout().len();
    change(&program, log(json!({"level": "info", "format": "text"}))).await;
    eventually(|| program.process.stdout().len() > lines).await;
    let text = program.process.stdout().pop().unwrap();
    assert!(text.contains(IN_FORCE) && !text.starts_with('{'), "{text}");
    assert!(text.contains("/log/format"), "{text}");
    change(&program, log(json!({"level": "info", "format": "json"}))).await;
    eventually(|| program.process.stdout().len() > lines + 1).await;
    let line: Value = serde_json::from_str(&program.process.stdout().pop().unwrap()).unwrap();
    assert_eq!(line["msg"], IN_FORCE);
}

/// Also where it was off when the process began.
#[tokio::test]
async fn a_request_is_told_of_if_it_was_to_be_when_it_began() {
    let main = ByHand::start().await;
    let program = Program::start(json!({
        "main-target": main.url(), "canary-target": main.url(), "router-server": {"workers": 1}
    }))
    .await;
    let answer = "HTTP/1.1 200 X\r\ncontent-length: 0\r\n\r\n";
    let mut client = Client::connect(program.address).await;
    let mut client_h2 = H2Client::connect(program.address).await;
    let mut expected = Vec::new();
    let access = |access: &str| log(json!({"access": access}));
    for (before, during) in [
        ("off", "json"),
        ("json", "off"),
        ("json", "json"),
        ("off", "off"),
    ] {
        change(&program, access(before)).await;
        let path = format!("/{before}-{during}");
        client.send(head(&format!("GET {path}"), "")).await;
        let mut service = main.accept().await;
        service.request().await;
        let asked = asks("GET", &format!("{path}-h2"), &[]);
        let (response, _) = client_h2.begin(asked, true).await.unwrap();
        let mut service_h2 = main.accept().await;
        service_h2.request().await;
        change(&program, access(during)).await;
        service.send(answer).await;
        assert_eq!(client.response("GET").await.unwrap().status, 200);
        service_h2.send(answer).await;
        assert_eq!(soon(receive(response)).await.status, 200);
        if before == "json" {
            expected.extend([path.clone(), format!("{path}-h2")]);
        }
        drop((service, service_h2));
    }
    // One worker tells in order: when the last one is there, so are all before it.
    change(&program, access("json")).await;
    client.send(head("GET /last", "")).await;
    main.accept().await.send(answer).await;
    assert_eq!(client.response("GET").await.unwrap().status, 200);
    expected.push("/last".into());
    eventually(|| told(&program).last().is_some_and(|path| path == "/last")).await;
    let mut told = told(&program);
    told.sort();
    expected.sort();
    assert_eq!(told, expected);
}

/// The statuses are part of the words.
#[tokio::test]
async fn why_a_request_went_where_it_did_is_told_in_the_words_by_which_it_began() {
    let (main, sidecar) = (ByHand::start().await, ByHand::start().await);
    let statuses = |main: u16, canary: u16| json!({"main-sidecar-status": main, "canary-sidecar-status": canary, "log": {"access": "json"}});
    let mut config = statuses(201, 202);
    merge(
        &mut config,
        json!({
            "main-target": main.url(), "canary-target": main.url(), "sidecar-url": sidecar.url(),
            "proxy-client": {"to-sidecar": {"timeout": "15s"}}
        }),
    );
    let program = Program::start(config).await;
    let mut client = Client::connect(program.address).await;
    client.send(head("GET /", "")).await;
    let mut asked = sidecar.accept().await;
    asked.request().await;
    change(&program, statuses(203, 205)).await;
    asked
        .send("HTTP/1.1 202 X\r\ncontent-length: 0\r\n\r\n")
        .await;
    let mut service = main.accept().await;
    service.request().await;
    change(&program, statuses(206, 207)).await;
    service
        .send("HTTP/1.1 200 X\r\ncontent-length: 0\r\n\r\n")
        .await;
    assert_eq!(client.response("GET").await.unwrap().status, 200);
    eventually(|| told(&program).len() == 1).await;
    assert_eq!(
        said(&program, "request")[0]["reason"],
        "Sidecar returns status code 202"
    );
}

#[tokio::test]
async fn the_share_of_requests_that_are_traced_changes() {
    let (main, collector) = (service("main").await, Upstream::named("", 200).await);
    let sample = |sample: u64| json!({"tracing": {"endpoint": collector.url(), "sample": sample}});
    let mut config = json!({"main-target": main.url(), "canary-target": main.url()});
    merge(&mut config, sample(0));
    let program = Program::start(config).await;
    for (share, traced) in [(0, "00"), (100, "01"), (0, "00")] {
        change(&program, sample(share)).await;
        assert_eq!(get(program.address, "/", "").await.status, 200);
        let seen = main.seen().pop().unwrap();
        let parent = seen.header("traceparent").unwrap_or("-00");
        assert!(parent.ends_with(traced), "{share}: {parent}");
    }
    eventually(|| collector.count() > 0).await;
}
