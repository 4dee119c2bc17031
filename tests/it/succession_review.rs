//! What may happen while one process takes the place of another one: at each moment no count is lost, no command
//! is forgotten, and what is configured is what is done.

use std::{process::Command, time::Duration};

use serde_json::{Value, json};

use tokio::io::AsyncReadExt;

use crate::{
    succession::{Line, child_of, is_gone, signal},
    support::*,
};

/// A canary whose answers to `/slow…` and `/late…` wait for a gate each; what ends in `bad` fails.
async fn canary(slow: &Gate, late: &Gate) -> Upstream {
    let (slow, late) = (slow.clone(), late.clone());
    Upstream::start(move |request| {
        let target = request.target();
        let gate = match target {
            _ if target.starts_with("/slow") => Some(slow.clone()),
            _ if target.starts_with("/late") => Some(late.clone()),
            _ => None,
        };
        let status = if target.ends_with("bad") { 500 } else { 200 };
        let wait = gate.map(Step::Wait);
        wait.into_iter()
            .chain(answer(status, "", "canary"))
            .collect()
    })
    .await
}

/// The gates `slow` and `late`, main and canary, and the router, whose weight is an operator's.
async fn all() -> ([Gate; 2], [Upstream; 2], Line) {
    let gates = [Gate::shut(), Gate::shut()];
    let main = Upstream::named("main", 200).await;
    let canary = canary(&gates[0], &gates[1]).await;
    let line = Line::start(json!({
        "main-target": main.url(), "canary-target": canary.url(),
        "circuit-breaker": {"error-limit-canary": 10},
        "traffic": {"weight": 100},
        "router-server": {"shutdown-timeout": "1h"}
    }))
    .await;
    let port = line.program.instrumentation;
    let (code, _) = admin(port, "PUT", "/traffic/weight", r#"{"weight": 100}"#).await;
    assert_eq!(code, 200);
    (gates, [main, canary], line)
}

/// Sends a request, which the canary has when this is over.
async fn begin(line: &Line, canary: &Upstream, target: &str, headers: &str) -> Client {
    let before = canary.count();
    let mut client = Client::connect(line.program.address).await;
    client
        .send(format!("GET {target} HTTP/1.1\r\nhost: a\r\n{headers}\r\n"))
        .await;
    eventually(|| canary.count() > before).await;
    client
}

async fn until_left(line: &Line, errors: u64) {
    let left = async |line: &Line| line.status().await["limits"]["errors_remaining"].as_u64();
    let reached = tokio::time::timeout(Duration::from_secs(20), async {
        while left(line).await != Some(errors) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    if reached.await.is_err() {
        panic!("{:?} errors are left, and not {errors}", left(line).await);
    }
}

/// The new process waits for its state file, after it has been told what was counted, until `feed` is called.
struct Held(std::path::PathBuf);

impl Held {
    async fn hold(line: &Line) -> Held {
        let pipe = line.program.folder().join("held.json");
        let made = Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        line.program.rewrite(json!({"state": {"file": pipe}}));
        signal(line.current, "USR2");
        soon(async {
            // It says so of every change, as soon as it has left them to the other one.
            while admin(line.program.instrumentation, "POST", "/breaker/reset", "")
                .await
                .0
                != 409
            {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
        Held(pipe)
    }

    /// It is read twice: before it is taken, and then.
    async fn feed(self) {
        let state = json!({
            "kind": "canary-router state", "version": 1, "salt": "0".repeat(32),
            "limits": {"requests": 0, "errors": 0}, "breakers": {"main": null, "canary": null}
        });
        let feed = || {
            let (pipe, state) = (self.0.clone(), state.to_string());
            soon(tokio::task::spawn_blocking(move || {
                std::fs::write(pipe, state).unwrap()
            }))
        };
        feed().await.unwrap();
        let lock = self.0.with_extension("json.lock");
        eventually(|| lock.exists()).await;
        feed().await.unwrap();
    }
}

async fn until_succeeded(line: &mut Line) {
    let said = |line: &Line| line.said("another process has taken the place");
    eventually(|| said(line).len() == 1).await;
    line.current = u32::try_from(said(line)[0]["process"].as_u64().unwrap()).unwrap();
}

#[tokio::test]
async fn what_ends_between_the_last_count_and_the_first_connection_is_told_of() {
    let ([slow, _late], [_main, canary], mut line) = all().await;
    let mut good = begin(&line, &canary, "/slow", "").await;
    let mut forced = begin(&line, &canary, "/slow-bad", "x-canary: true\r\n").await;
    let mut other = begin(&line, &canary, "/slow", "").await;
    let held = Held::hold(&line).await;
    slow.open();
    for client in [&mut good, &mut forced, &mut other] {
        assert!(client.response("GET").await.unwrap().complete);
    }
    held.feed().await;
    until_succeeded(&mut line).await;
    until_left(&line, 9).await;
}

#[tokio::test]
async fn of_three_the_last_one_is_told_what_becomes_of_the_first_ones_requests() {
    let ([slow, late], [_main, canary], mut line) = all().await;
    let mut first = begin(&line, &canary, "/late", "").await;
    line.succeed().await;
    let second_process = line.current;
    let mut second = begin(&line, &canary, "/slow", "").await;
    until_left(&line, 8).await;
    line.succeed().await;
    until_left(&line, 8).await;
    slow.open();
    assert!(second.response("GET").await.unwrap().complete);
    until_left(&line, 9).await;
    // The second one has nothing more to do for its own part.
    late.open();
    assert!(first.response("GET").await.unwrap().complete);
    until_left(&line, 10).await;
    eventually(|| is_gone(second_process)).await;
}

#[tokio::test]
async fn limits_that_were_reset_meanwhile_forget_no_error_of_afterwards() {
    let ([slow, late], [_main, canary], mut line) = all().await;
    let mut good = begin(&line, &canary, "/slow", "").await;
    let mut also = begin(&line, &canary, "/slow", "").await;
    let mut late_bad = begin(&line, &canary, "/late-bad", "").await;
    line.succeed().await;
    let port = line.program.instrumentation;
    soon(async {
        // Some may still come to the old one, which sends them on to the other.
        while admin(port, "POST", "/limits/reset", "").await.0 != 200 {}
    })
    .await;
    let bad = get(line.program.address, "/bad", "").await;
    assert_eq!(bad.status, 500);
    until_left(&line, 9).await;
    slow.open();
    for client in [&mut good, &mut also] {
        assert!(client.response("GET").await.unwrap().complete);
    }
    late.open();
    assert!(late_bad.response("GET").await.unwrap().complete);
    // That one has failed after the reset; what ended well gives back nothing that there still is.
    until_left(&line, 8).await;
}

#[tokio::test]
async fn a_second_signal_in_the_old_process_gives_back_what_it_had_reserved() {
    let ([_slow, _late], [_main, canary], mut line) = all().await;
    let before = line.current;
    let _cut = begin(&line, &canary, "/slow", "").await;
    line.succeed().await;
    until_left(&line, 9).await;
    signal(before, "TERM");
    until_left(&line, 10).await;
}

#[tokio::test]
async fn a_command_whose_body_comes_after_the_new_process_does_is_refused() {
    let ([_slow, _late], [_main, canary], mut line) = all().await;
    let port = line.program.instrumentation;
    // With this the old process is there for as long as it takes.
    let _in_flight = begin(&line, &canary, "/slow", "").await;
    let mut operator = Client::connect(port).await;
    operator
        .send(format!(
            "PUT /traffic/weight HTTP/1.1\r\nhost: {port}\r\ncontent-length: 13\r\nexpect: 100-continue\r\n\r\n"
        ))
        .await;
    // It is waited for.
    let mut go_on = [0; "HTTP/1.1 100 Continue\r\n\r\n".len()];
    soon(operator.0.read_exact(&mut go_on)).await.unwrap();
    assert!(go_on.starts_with(b"HTTP/1.1 100 "));
    line.succeed().await;
    operator.send(r#"{"weight": 0}"#).await;
    let response = operator.response("PUT").await.unwrap();
    assert_eq!(response.status, 409, "{}", response.text());
    assert_eq!(line.status().await["weight"], 100);
}

#[tokio::test]
async fn the_new_process_listens_where_its_configuration_says() {
    let main = Upstream::named("main", 200).await;
    let mut line =
        Line::start(json!({"main-target": main.url(), "canary-target": main.url()})).await;
    let (proxy, admin) = (line.program.address, line.program.instrumentation);
    let at = |host: [u8; 4], port: u16| std::net::SocketAddr::from((host, port));
    // From wide to narrow and to wide again, such that the two overlap while both are there.
    for (host, there, not_there) in [
        ("0.0.0.0", [127, 0, 0, 2], None),
        ("127.0.0.1", [127, 0, 0, 1], Some([127, 0, 0, 2])),
        ("127.0.0.2", [127, 0, 0, 2], Some([127, 0, 0, 1])),
    ] {
        let host: Value = json!({"host": host});
        line.program
            .rewrite(json!({"router-server": host, "instrumentation": host}));
        let before = line.current;
        line.succeed().await;
        eventually(|| is_gone(before)).await;
        assert_eq!(get(at(there, proxy.port()), "/", "").await.text(), "main");
        let live = get(at(there, admin.port()), "/health/live", "").await;
        assert_eq!(live.status, 200);
        for port in [proxy.port(), admin.port()] {
            if let Some(not_there) = not_there {
                let refused = std::net::TcpStream::connect(at(not_there, port)).unwrap_err();
                assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
            }
        }
    }
}

#[tokio::test]
async fn a_short_shutdown_timeout_is_long_enough_for_connections_that_are_silent() {
    let main = Upstream::named("main", 200).await;
    let mut line = Line::start(json!({
        "main-target": main.url(), "canary-target": main.url(),
        "router-server": {"shutdown-timeout": "1s"}
    }))
    .await;
    let mut idle = Client::connect(line.program.address).await;
    let answer = idle
        .roundtrip("GET", "GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        .await;
    assert_eq!(answer.status, 200);
    line.succeed().await;
    idle.closed().await;
    eventually(|| line.program.process.has_ended()).await;
    assert_eq!(line.said("were cut"), [Value::Null; 0]);
}

#[tokio::test]
async fn many_successions_leave_no_descriptor_and_no_process_behind() {
    let main = Upstream::named("main", 200).await;
    let folder = Folder::new();
    let mut line = Line::start(json!({
        "main-target": main.url(), "canary-target": main.url(),
        "state": {"file": folder.0.join("state.json")}
    }))
    .await;
    let open = |process: u32| {
        let all = std::fs::read_dir(format!("/proc/{process}/fd")).unwrap();
        all.count()
    };
    let mut counts = Vec::new();
    for _ in 0..12 {
        let before = line.current;
        line.succeed().await;
        eventually(|| is_gone(before)).await;
        assert_eq!(get(line.program.address, "/", "").await.text(), "main");
        counts.push(open(line.current));
    }
    // A connection or two may come and go at that moment.
    let (first, last) = (counts[0], counts[counts.len() - 1]);
    assert!(last <= first + 2, "{counts:?}");
}

/// Both have much to say when nobody reads it, and the old one is about to end: what is written of the one waits in the
/// middle of a line, and must not be gone on with behind a line of the other.
#[tokio::test]
async fn lines_of_the_log_stay_whole_though_two_processes_write_when_it_is_read() {
    // More than a pipe takes.
    const MANY: usize = 1000;
    let slow = Gate::shut();
    let main = canary(&slow, &Gate::shut()).await;
    let mut line = Line::start_stalled(json!({
        "main-target": main.url(), "canary-target": main.url(),
        "router-server": {"shutdown-timeout": "1h"},
        "proxy-client": {"to-main-and-canary": {"timeout": "1h"}},
        "log": {"level": "info", "access": "json"}
    }))
    .await;
    let many = async |line: &Line| {
        let mut client = Client::connect(line.program.address).await;
        for _ in 0..MANY {
            let get = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
            assert_eq!(client.roundtrip("GET", get).await.status, 200);
        }
    };
    many(&line).await;
    // For as long as this goes on the process is there.
    let mut held = begin(&line, &main, "/slow", "").await;
    let old = line.current;
    signal(old, "USR2");
    eventually(|| child_of(old).is_some()).await;
    line.current = child_of(old).unwrap();
    soon(async {
        let answered = async || {
            line.metrics()
                .await
                .value(r#"canary_router_request_duration_seconds_count{target="main"}"#)
        };
        while answered().await > 0.0 {}
    })
    .await;
    slow.open();
    assert_eq!(held.response("GET").await.unwrap().status, 200);
    // It does nothing any more but wait for its log to be read.
    eventually(|| !has_sockets(old)).await;
    many(&line).await;
    get(line.program.address, "/last", "").await;

    line.program.process.goes_on();
    // Each of them can be read.
    let is_last = |line: &Value| line["path"] == "/last";
    eventually(|| line.program.process.log().iter().any(is_last)).await;
    assert!(line.program.process.log().len() > MANY);
}

fn has_sockets(process: u32) -> bool {
    let Ok(all) = std::fs::read_dir(format!("/proc/{process}/fd")) else {
        return false;
    };
    let links = all.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    links
        .into_iter()
        .any(|link| link.to_string_lossy().starts_with("socket:"))
}
