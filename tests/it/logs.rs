//! What the program says on stdout, and what it keeps to itself.

use serde_json::{Value, json};

use crate::support::*;

/// The program, in front of two services that answer with what they are sent.
struct Logged {
    process: Process,
    proxy: Port,
    metrics: Port,
    main: Upstream,
    canary: Upstream,
    _sidecar: Upstream,
    _folder: Folder,
}

const SECRET_QUERY: &str = "key=s3cret-of-the-sidecar";

impl Logged {
    async fn start(log: Value) -> Logged {
        let echo = |request: &Received| {
            let head = format!(
                "HTTP/1.1 200 OK\r\nset-cookie: session=s3cret-of-the-service\r\n\
                 x-visible: response\r\ncontent-length: {}\r\n\r\n",
                request.body.len()
            );
            vec![
                Step::Write(head.into_bytes()),
                Step::Write(request.body.clone()),
            ]
        };
        let (main, canary) = (Upstream::start(echo).await, Upstream::start(echo).await);
        let sidecar = Upstream::start(asked).await;
        let (proxy, metrics) = (Port::reserve(), Port::reserve());
        let file = json!({
            "main-target": format!("{}/?key=s3cret-of-main", main.url()),
            "canary-target": canary.url(),
            "sidecar-url": format!("{}/decide?{SECRET_QUERY}", sidecar.url()),
            "router-server": {"host": "127.0.0.1", "port": proxy.number(), "workers": 2},
            "instrumentation": {"host": "127.0.0.1", "port": metrics.number()},
            "log": log
        });
        let folder = Folder::new();
        folder.write("router.json", file.to_string());
        let mut process = Process::start(&folder, &["-c", "router.json"]);
        process.listens(proxy.address).await;
        Logged {
            process,
            proxy,
            metrics,
            main,
            canary,
            _sidecar: sidecar,
            _folder: folder,
        }
    }

    /// Ends it: its whole log.
    async fn log(mut self) -> Vec<Value> {
        self.end().await;
        self.process.log()
    }

    /// The same, in lines of text.
    async fn lines(mut self) -> Vec<String> {
        self.end().await;
        self.process.stdout()
    }

    async fn end(&mut self) {
        self.process.signal("TERM");
        assert_eq!(self.process.ended().await.code(), Some(0));
        assert_eq!(self.process.stderr(), [""; 0]);
    }
}

/// The lines that mention all of these.
fn mentioning<'a>(log: &'a [Value], parts: &[&str]) -> Vec<&'a Value> {
    log.iter()
        .filter(|line| {
            let line = line.to_string();
            parts.iter().all(|part| line.contains(part))
        })
        .collect()
}

/// RFC 3339, as far as digits and separators go, with whatever fraction and offset.
fn is_rfc_3339(time: &str) -> bool {
    let shape = "dddd-dd-ddTdd:dd:dd";
    let (start, rest) = time.split_at_checked(shape.len()).unwrap_or(("", ""));
    let fits = |(c, shape): (char, char)| match shape {
        'd' => c.is_ascii_digit(),
        other => c == other,
    };
    let rest = rest.trim_start_matches(|c: char| c == '.' || c.is_ascii_digit());
    let offset = match rest.strip_prefix(['+', '-']) {
        Some(offset) => offset.len() == 5 && offset.as_bytes()[2] == b':',
        None => rest == "Z",
    };
    start.len() == shape.len() && start.chars().zip(shape.chars()).all(fits) && offset
}

/// A request that has a secret in each header that may have one.
const SECRETS: &str = "authorization: Bearer s3cret-1\r\ncookie: id=s3cret-2\r\n\
     set-cookie: id=s3cret-3\r\nproxy-authorization: Basic s3cret-4\r\nx-visible: request\r\n";

#[tokio::test]
async fn every_line_is_one_json_object_with_time_level_and_msg() {
    let logged = Logged::start(json!({
        "level": "debug", "debug-request-body": true, "debug-response-body": true
    }))
    .await;
    // What could break a line, or the JSON in it.
    let body = "two\r\nlines, a \"quote\", a \\, \u{1b}[31m, \0 and \u{2028}";
    let tricky = "x-tricky: \"quoted\" \\ {}\r\nx-tricky: \u{fffd}\r\n";
    for target in ["/", "/%0a%22\"?q=%0d%0a'", "/{\"a\":1}"] {
        let response = request(logged.proxy.address, "POST", target, tricky, body).await;
        assert_eq!((response.status, response.text().as_str()), (200, body));
    }
    let mut client = Client::connect(logged.proxy.address).await;
    client.send("no HTTP at all\r\n\r\n").await;
    client.rest().await;
    drop(client);
    for line in logged.log().await {
        assert!(is_rfc_3339(line["@time"].as_str().unwrap()), "{line}");
        let level = line["level"].as_str().unwrap();
        assert!(["debug", "info", "warn"].contains(&level), "{line}");
        assert!(!line["msg"].as_str().unwrap().is_empty(), "{line}");
    }
}

#[tokio::test]
async fn the_start_says_version_file_effective_config_and_both_addresses() {
    let logged = Logged::start(json!({"level": "info"})).await;
    let (proxy, metrics) = (logged.proxy.address, logged.metrics.address);
    let main = logged.main.url();
    let log = logged.log().await;
    assert!(log.iter().all(|line| line["level"] != "debug"), "{log:#?}");
    let version = log
        .iter()
        .find(|line| line["version"] == canary_router::VERSION);
    assert!(version.is_some(), "{log:#?}");
    assert!(!mentioning(&log, &["router.json"]).is_empty(), "{log:#?}");
    for address in [proxy, metrics] {
        assert!(
            !mentioning(&log, &[&address.to_string()]).is_empty(),
            "{address} in {log:#?}"
        );
    }
    // What was set, and what was not: the defaults.
    let effective = [
        main.as_str(),
        "main-target",
        "sidecar-url",
        "circuit-breaker",
        "error-limit-canary",
        "idle-timeout",
        "shutdown-timeout",
        "idle-conn-timeout",
    ];
    assert_eq!(mentioning(&log, &effective).len(), 1, "{log:#?}");
}

#[tokio::test]
async fn the_effective_config_shows_no_secrets() {
    for level in ["info", "debug", "trace"] {
        let logged = Logged::start(json!({"level": level})).await;
        let response = get(logged.proxy.address, "/", "").await;
        assert_eq!(response.status, 200);
        let log = logged.log().await;
        let leaks = mentioning(&log, &["s3cret-of-the-sidecar"]);
        assert!(leaks.is_empty(), "at {level}: {leaks:#?}");
        let url = mentioning(&log, &["sidecar-url", "/decide"]);
        assert_eq!(url.len(), 1, "the rest of it is shown: {log:#?}");
    }
}

#[tokio::test]
async fn a_config_error_shows_no_secrets_either() {
    let folder = Folder::new();
    let file = json!({
        "main-target": "htp://user:s3cret@service/?key=s3cret",
        "canary-target": "http://user:s3cret@service/",
        "sidecar-url": format!("ftp://sidecar/?{SECRET_QUERY}")
    });
    folder.write("config.json", file.to_string());
    let mut process = Process::start(&folder, &[]);
    assert_ne!(process.ended().await.code(), Some(0));
    let said = [process.stderr(), process.stdout()].concat().join("\n");
    assert!(said.contains("/sidecar-url"), "{said}");
    assert!(!said.contains("s3cret"), "{said}");
}

#[tokio::test]
async fn at_debug_every_forwarded_head_is_logged_without_credentials() {
    let logged = Logged::start(json!({"level": "debug"})).await;
    for (target, canary) in [("/to-main?q=1", false), ("/to-canary?q=2", true)] {
        let headers = format!("{SECRETS}x-canary: {canary}\r\n");
        let response = request(logged.proxy.address, "PUT", target, &headers, "the body").await;
        assert_eq!(response.text(), "the body");
        assert_eq!(
            response.header("set-cookie"),
            Some("session=s3cret-of-the-service"),
            "only the log is masked"
        );
    }
    for upstream in [&logged.main, &logged.canary] {
        let seen = upstream.only();
        assert_eq!(seen.header("authorization"), Some("Bearer s3cret-1"));
        assert_eq!(seen.header("cookie"), Some("id=s3cret-2"));
        assert_eq!(seen.header("set-cookie"), Some("id=s3cret-3"));
    }
    let log = logged.log().await;
    for (target, name) in [("/to-main?q=1", "main"), ("/to-canary?q=2", "canary")] {
        let heads = mentioning(&log, &["PUT", target, "x-visible", "authorization", name]);
        assert_eq!(heads.len(), 1, "{target} in {log:#?}");
        assert_eq!(heads[0]["level"], "debug");
    }
    for leaked in ["s3cret", "the body"] {
        let leaks = mentioning(&log, &[leaked]);
        assert!(leaks.is_empty(), "{leaked}: {leaks:#?}");
    }
}

/// Has the router log as much as it can of what a peer has chosen: in the target, in a value, in the body.
async fn send_evil(logged: &Logged) {
    let evil = b"\"}\\\xff\xc3\x28\xe2\x80\xa8\x7b\"level\":\"error\"}";
    let body = [&evil[..], b"\r\n{\"level\":\"error\"}\r\n\0\x1b[31m"].concat();
    let request = [
        b"POST /marked/",
        &evil[..],
        b" HTTP/1.1\r\nhost: h\r\nconnection: close\r\nx-evil: ",
        evil,
        format!("\r\ncontent-length: {}\r\n\r\n", body.len()).as_bytes(),
        &body,
    ]
    .concat();
    let mut client = Client::connect(logged.proxy.address).await;
    assert_eq!(client.roundtrip("POST", request).await.status, 200);
    client.closed().await;
}

/// Targets and values may have any byte, and who reads the log may believe what a line looks like.
#[tokio::test]
async fn no_request_can_forge_or_break_a_line_of_the_log() {
    let logged = Logged::start(json!({"level": "debug", "debug-request-body": true})).await;
    send_evil(&logged).await;
    let log = logged.log().await;
    assert!(!mentioning(&log, &["/marked/"]).is_empty());
    for line in &log {
        assert_ne!(line["level"], "error", "{line}");
    }
}

#[tokio::test]
async fn no_request_can_forge_or_break_a_line_of_text_either() {
    let logged = Logged::start(json!({
        "level": "debug", "format": "text", "debug-request-body": true, "debug-response-body": true
    }))
    .await;
    send_evil(&logged).await;
    let lines = logged.lines().await;
    assert!(lines.iter().any(|line| line.contains("/marked/")));
    for line in &lines {
        let (time, rest) = line.split_once(' ').unwrap();
        assert!(is_rfc_3339(time), "{line}");
        let level = rest.get(..6).unwrap();
        assert!(["DEBUG ", " INFO "].contains(&level), "{line:?}");
        let prints = |c: char| c == ' ' || c.is_ascii_graphic() || c.is_alphanumeric();
        let strange = line.chars().find(|c| !prints(*c) && *c != '\u{fffd}');
        assert_eq!(strange, None, "{line:?}");
    }
}

#[tokio::test]
async fn lines_of_text_say_what_happened_and_no_colours_go_into_a_file() {
    let logged = Logged::start(json!({"format": "text"})).await;
    let address = logged.proxy.address;
    assert_eq!(get(address, "/", "").await.status, 200);
    let lines = logged.lines().await;
    let having = |part: &str| {
        let found: Vec<_> = lines.iter().filter(|line| line.contains(part)).collect();
        assert_eq!(found.len(), 1, "{part}: {lines:#?}");
        found[0].clone()
    };
    let version = canary_router::VERSION;
    having(&format!("  INFO canary-router starts version={version}"));
    having(&format!("  INFO taking requests address={address}"));
    let config = having("  INFO effective configuration config=");
    let (_, config) = config.split_once("config=").unwrap();
    let config: Value = serde_json::from_str(config).unwrap();
    assert_eq!(config["log"]["format"], "text");
    assert!(lines.iter().all(|line| !line.contains('\u{1b}')));
}

#[tokio::test]
async fn bodies_are_logged_only_where_asked_for() {
    for (request_body, response_body) in [(false, true), (true, false), (true, true)] {
        let logged = Logged::start(json!({
            "level": "debug",
            "debug-request-body": request_body,
            "debug-response-body": response_body
        }))
        .await;
        // The body comes back as the response's: it is logged once for each.
        for canary in [true, false] {
            let response = request(
                logged.proxy.address,
                "POST",
                "/",
                &format!("x-canary: {canary}\r\n"),
                "what the body says",
            )
            .await;
            assert_eq!(response.text(), "what the body says");
        }
        let log = logged.log().await;
        let bodies = mentioning(&log, &["what the body says"]);
        let each = usize::from(request_body) + usize::from(response_body);
        assert_eq!(bodies.len(), 2 * each, "{log:#?}");
        for line in bodies {
            assert_eq!(line["level"], "debug");
        }
    }
}

#[tokio::test]
async fn logged_bodies_are_capped_and_what_is_forwarded_is_not() {
    let logged = Logged::start(json!({
        "level": "debug", "debug-request-body": true, "debug-response-body": true
    }))
    .await;
    // Not UTF-8, and not compressible to one line by accident.
    let length = 1 << 20;
    let body: Vec<u8> = (0..length)
        .map(|i| match i {
            0..=15 => b"beginning-of-it."[i],
            _ => (i * 7 + i / 251) as u8,
        })
        .collect();
    let pieces: Vec<&[u8]> = body.chunks(100_000).collect();
    let head = |framing: &str| format!("POST / HTTP/1.1\r\nhost: a\r\n{framing}\r\n\r\n");
    for (framing, sent) in [
        (format!("content-length: {length}"), body.clone()),
        ("transfer-encoding: chunked".into(), chunked(&pieces, "")),
    ] {
        let mut client = Client::connect(logged.proxy.address).await;
        let response = client
            .roundtrip("POST", [head(&framing).into_bytes(), sent].concat())
            .await;
        assert_eq!(response.status, 200);
        assert!(response.complete);
        assert!(response.message.body == body, "{framing}");
        assert!(
            logged.canary.seen().pop().unwrap().body == body,
            "{framing}"
        );
    }
    let log = logged.log().await;
    let bodies = mentioning(&log, &["beginning-of-it."]);
    assert_eq!(bodies.len(), 4, "two requests and two responses");
    for line in bodies {
        let length = line.to_string().len();
        assert!(length < 100_000, "{length} bytes in a line");
    }
}

#[tokio::test]
async fn logging_changes_nothing_of_what_is_forwarded() {
    let mut seen = Vec::new();
    for log in [
        json!({"level": "error"}),
        json!({"level": "info", "debug-request-body": true, "debug-response-body": true}),
        json!({"level": "debug"}),
        json!({"level": "debug", "debug-request-body": true, "debug-response-body": true}),
        json!({"level": "trace", "debug-request-body": true, "debug-response-body": true}),
    ] {
        let logged = Logged::start(log).await;
        let with_length = request(
            logged.proxy.address,
            "POST",
            "/a//b?c",
            &format!("x-request-id: 1\r\n{SECRETS}"),
            "with length",
        )
        .await;
        let mut client = Client::connect(logged.proxy.address).await;
        let head = "POST /a//b?c HTTP/1.1\r\nhost: a\r\nx-request-id: 2\r\ntrailer: x-sum\r\nte: trailers\r\n\
                    transfer-encoding: chunked\r\n\r\n";
        let body = chunked(&[b"in", b" ", b"chunks"], "x-sum: 1\r\n");
        let in_chunks = client
            .roundtrip("POST", [head.as_bytes(), &body].concat())
            .await;
        let requests = logged.canary.seen();
        assert_eq!(requests[1].text(), "in chunks");
        assert_eq!(requests[1].trailers.to_lowercase(), "x-sum: 1\r\n");
        let own = logged.canary.address.to_string();
        let requests: Vec<_> = requests
            .into_iter()
            .map(|request| {
                let head = request.head.replace(&own, "own");
                let router = logged.proxy.address.to_string();
                (head.replace(&router, "router"), request.body)
            })
            .collect();
        let responses = [with_length, in_chunks].map(|response| {
            let head: Vec<_> = response
                .message
                .head
                .lines()
                .filter(|line| !line.to_lowercase().starts_with("date:"))
                .map(str::to_owned)
                .collect();
            (head, response.message.body)
        });
        seen.push((requests, responses));
    }
    for other in &seen[1..] {
        assert_eq!(other, &seen[0]);
    }
}

#[tokio::test]
async fn at_info_neither_heads_nor_bodies_are_logged() {
    let logged = Logged::start(json!({
        "level": "info", "debug-request-body": true, "debug-response-body": true
    }))
    .await;
    for canary in ["", "x-canary: true\r\n", "x-canary: false\r\n"] {
        let headers = format!("{SECRETS}{canary}");
        let response = request(
            logged.proxy.address,
            "POST",
            "/the-path",
            &headers,
            "the body",
        )
        .await;
        assert_eq!(response.text(), "the body");
    }
    let log = logged.log().await;
    assert!(!log.is_empty());
    for part in ["/the-path", "the body", "x-visible", "s3cret"] {
        let lines = mentioning(&log, &[part]);
        assert!(lines.is_empty(), "{part}: {lines:#?}");
    }
}

#[tokio::test]
async fn known_levels_are_taken_and_say_no_more_than_they_should() {
    let by_severity = ["error", "warn", "info", "debug", "trace"];
    for (i, level) in by_severity.iter().enumerate() {
        let logged = Logged::start(json!({"level": level})).await;
        assert_eq!(get(logged.proxy.address, "/", "").await.status, 200);
        let log = logged.log().await;
        for line in &log {
            let severity = by_severity.iter().position(|l| line["level"] == *l);
            assert!(severity.is_some_and(|severity| severity <= i), "{line}");
        }
        // It starts with info lines, and forwards with debug lines.
        assert_eq!(i >= 2, log.iter().any(|line| line["level"] == "info"));
        assert_eq!(i >= 3, log.iter().any(|line| line["level"] == "debug"));
    }
}

#[tokio::test]
async fn an_unknown_level_is_a_config_error() {
    for level in ["loud", "infos", "5"] {
        let folder = Folder::new();
        let file = json!({
            "main-target": "http://127.0.0.1:1",
            "canary-target": "http://127.0.0.1:1",
            "router-server": {"host": "127.0.0.1", "port": Port::reserve().number()},
            "log": {"level": level}
        });
        folder.write("config.json", file.to_string());
        let mut process = Process::start(&folder, &[]);
        assert_ne!(process.ended().await.code(), Some(0));
        let stderr = process.stderr();
        assert_eq!(stderr.len(), 1, "{stderr:#?}");
        assert!(stderr[0].contains("/log/level"), "{stderr:#?}");
        assert!(stderr[0].contains("info, debug"), "{stderr:#?}");
    }
}

#[tokio::test]
async fn an_upstream_that_fails_is_a_warning_and_a_client_that_leaves_is_not() {
    let sidecar = Upstream::start(asked).await;
    let main = Upstream::start(|request| match request.target() {
        "/hang" => vec![Step::Hang],
        _ => vec![Step::Reset],
    })
    .await;
    let (proxy, metrics) = (Port::reserve(), Port::reserve());
    let folder = Folder::new();
    let file = json!({
        "main-target": main.url(),
        "canary-target": main.url(),
        "sidecar-url": sidecar.url(),
        "router-server": {"host": "127.0.0.1", "port": proxy.number(), "workers": 1},
        "instrumentation": {"host": "127.0.0.1", "port": metrics.number()}
    });
    folder.write("config.json", file.to_string());
    let mut process = Process::start(&folder, &[]);
    process.listens(proxy.address).await;
    let mut client = Client::connect(proxy.address).await;
    client.send("GET /hang HTTP/1.1\r\nhost: a\r\n\r\n").await;
    eventually(|| main.count() == 1).await;
    drop(client);
    eventually(|| main.connections().1 == 0).await;
    let warnings = |process: &Process| {
        let log = process.log();
        log.iter().filter(|line| line["level"] == "warn").count()
    };
    assert_eq!(
        get(proxy.address, "/", "x-canary: true\r\n").await.status,
        502
    );
    eventually(|| warnings(&process) > 0).await;
    // A canary that is down must not drown the log.
    for _ in 0..100 {
        assert_eq!(
            get(proxy.address, "/", "x-canary: true\r\n").await.status,
            502
        );
    }
    process.signal("TERM");
    assert_eq!(process.ended().await.code(), Some(0));
    let log = process.log();
    assert!(warnings(&process) < 20, "{log:#?}");
    let first = log.iter().find(|line| line["level"] == "warn").unwrap();
    assert!(first.to_string().contains("canary"), "{first}");
}

/// One throttle for all of them swallowed the canary's failure behind the sidecar's.
#[tokio::test]
async fn a_failing_sidecar_does_not_hide_a_failing_canary() {
    let reset = |_: &Received| vec![Step::Reset];
    let (canary, sidecar) = (Upstream::start(reset).await, Upstream::start(reset).await);
    let main = Upstream::named("main", 200).await;
    let (proxy, folder) = (Port::reserve(), Folder::new());
    let file = json!({
        "main-target": main.url(),
        "canary-target": canary.url(),
        "sidecar-url": sidecar.url(),
        "router-server": {"host": "127.0.0.1", "port": proxy.number(), "workers": 1}
    });
    folder.write("router.json", file.to_string());
    let mut process = Process::start(&folder, &["-c", "router.json"]);
    process.listens(proxy.address).await;
    assert_eq!(get(proxy.address, "/", "").await.status, 200);
    assert_eq!(
        get(proxy.address, "/", "x-canary: true\r\n").await.status,
        502
    );
    process.signal("TERM");
    assert_eq!(process.ended().await.code(), Some(0));
    let log = process.log();
    assert_eq!(
        mentioning(&log, &["warn", "sidecar failed"]).len(),
        1,
        "{log:#?}"
    );
    assert_eq!(
        mentioning(&log, &["warn", "upstream failed", "canary"]).len(),
        1,
        "{log:#?}"
    );
}

/// Has the router write more lines than it keeps room for: 24 KiB of escaped zeros each.
async fn much_is_logged(program: &Program) -> f64 {
    let body = "\0".repeat(4096);
    let dropped = async || {
        let metrics = Metrics(get(program.instrumentation, "/metrics", "").await.text());
        metrics.value("canary_router_log_lines_dropped_total")
    };
    soon(async {
        while dropped().await == 0.0 {
            for _ in 0..50 {
                let response = request(program.address, "POST", "/", "", &body).await;
                assert_eq!(response.status, 200);
            }
        }
    })
    .await;
    dropped().await
}

fn much() -> Value {
    json!({"level": "debug", "debug-request-body": true, "debug-response-body": true})
}

#[tokio::test]
async fn while_nobody_reads_the_log_requests_go_on_and_what_is_lost_is_counted() {
    let main = Upstream::start(|request| answer(200, "", &request.text())).await;
    let config = json!({"main-target": main.url(), "canary-target": main.url(), "log": much()});
    let mut program = Program::start_stalled(config).await;
    let dropped = much_is_logged(&program).await;
    program.process.goes_on();
    let response = get(program.address, "/last", "").await;
    assert_eq!(response.status, 200);
    eventually(|| {
        let stdout = program.process.stdout();
        stdout.iter().any(|line| line.contains("/last"))
    })
    .await;
    program.process.signal("TERM");
    assert_eq!(program.process.ended().await.code(), Some(0));
    // Whole lines only, and no more is missing than was said.
    let log = program.process.log();
    let bodies = log
        .iter()
        .filter(|line| line.to_string().contains("\\u0000"));
    let kept = bodies.count();
    let lost = 2 * (main.count() - 1) - kept;
    assert!(lost > 0 && lost as f64 <= dropped, "{lost} of {dropped}");
}

#[tokio::test]
async fn a_log_that_nobody_reads_does_not_hold_the_end_up() {
    let main = Upstream::start(|request| answer(200, "", &request.text())).await;
    let config = json!({"main-target": main.url(), "canary-target": main.url(), "log": much()});
    let mut program = Program::start_stalled(config).await;
    much_is_logged(&program).await;
    program.process.signal("TERM");
    assert_eq!(program.process.ended().await.code(), Some(0));
}
