use serde_json::json;

use super::{raw::Raw, url::masked_url, *};

pub(super) fn minimal() -> Value {
    json!({
        "main-target": "http://main.example",
        "canary-target": "http://canary.example:8080/base?key=1",
        "router-server": {"host": "127.0.0.1", "port": "1345"}
    })
}

pub(super) fn with(changes: Value) -> Value {
    fn merge(into: &mut Value, from: Value) {
        match (into, from) {
            (Value::Object(into), Value::Object(from)) => {
                for (key, value) in from {
                    merge(into.entry(key).or_insert(Value::Null), value);
                }
            }
            (into, from) => *into = from,
        }
    }
    let mut value = minimal();
    merge(&mut value, changes);
    value
}

pub(super) fn read(value: Value) -> Config {
    Config::parse("test.json", &value.to_string()).unwrap_or_else(|error| panic!("{error}"))
}

pub(super) fn problems(value: Value) -> Vec<(String, String)> {
    let error = Config::parse("test.json", &value.to_string()).expect_err("it must be refused");
    assert!(!error.problems.is_empty());
    error
        .problems
        .into_iter()
        .map(|problem| (problem.path, problem.message))
        .collect()
}

#[track_caller]
pub(super) fn refused(value: Value, path: &str, hint: &str) {
    let problems = problems(value);
    assert!(
        problems
            .iter()
            .any(|(at, message)| at == path && message.contains(hint)),
        "no problem at {path} says {hint:?}: {problems:#?}"
    );
}

fn tcp(host: &str, port: u16) -> Address {
    Address::Tcp {
        host: host.to_owned(),
        port,
    }
}

#[test]
fn a_minimal_file_gets_every_default_of_the_contract() {
    let config = read(minimal());
    assert_eq!(config.main.address, tcp("main.example", 80));
    assert_eq!(config.main.host_header, "main.example");
    assert_eq!(config.main.base_path, "");
    assert_eq!(config.canary.host_header, "canary.example:8080");
    assert_eq!(config.canary.base_path, "/base");
    assert_eq!(config.canary.query.as_deref(), Some("key=1"));
    assert!(config.sidecar.is_none());
    assert!(config.instrumentation.is_none());
    assert_eq!(config.limits, Limits::default());
    assert_eq!(config.breakers, Breakers::default());
    assert_eq!(config.state, None);
    assert_eq!(
        config.traffic,
        Traffic {
            weight: Weight::NONE,
            sticky: None
        }
    );
    assert_eq!(config.trusted_overrides, None);
    assert_eq!(config.rollout, None);
    let names = ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"];
    assert_eq!(
        config.fallback,
        Fallback {
            replay: Replay::Connect,
            methods: names.map(|name| name.parse().unwrap()).into(),
            statuses: vec![500, 502, 503, 504],
            max_body: 65536,
            budget: 2_000,
            fixed: None,
        }
    );
    assert_eq!(
        config.log,
        Log {
            level: Level::Info,
            format: LogFormat::Json,
            access: AccessLog::Off,
            request_body: false,
            response_body: false,
        }
    );
    assert_eq!(config.tracing, None);
    assert_eq!(
        config.sidecar_statuses,
        SidecarStatuses {
            main: 204,
            canary: 200
        }
    );
    let seconds = Duration::from_secs;
    assert_eq!(
        config.server,
        Server {
            listen: Listen {
                host: "127.0.0.1".into(),
                port: 1345
            },
            tls: None,
            http2: true,
            trusted_proxies: Vec::new(),
            proxy_protocol: false,
            workers: 0,
            max_connections: 0,
            read_timeout: seconds(5),
            write_timeout: seconds(15),
            idle_timeout: seconds(120),
            shutdown_timeout: seconds(30),
            max_header_bytes: 65536,
        }
    );
    let client = Client {
        timeout: seconds(5),
        connect_timeout: seconds(1),
        max_idle_conns: 1000,
        idle_conn_timeout: seconds(30),
        max_conn_age: seconds(300),
        protocol: Protocol::Http1,
    };
    assert_eq!(config.main.client, client);
    assert!(Arc::ptr_eq(
        &config.main.client_tls,
        &config.canary.client_tls
    ));
    let tls = &*config.main.client_tls;
    assert!(tls.ca.is_none() && tls.identity.is_none() && tls.server_name.is_none());
    assert!(!tls.insecure_skip_verify);
    let config = read(with(json!({"sidecar-url": "https://sidecar.example/ask"})));
    let sidecar = config.sidecar.unwrap();
    assert_eq!(
        sidecar.upstream.client,
        Client {
            timeout: seconds(2),
            ..client
        }
    );
    assert!(sidecar.upstream.tls);
    assert_eq!(sidecar.upstream.address, tcp("sidecar.example", 443));
    assert_eq!(sidecar.max_body, 1 << 20);
    assert_eq!(sidecar.body, SidecarBody::Full);
    assert_eq!(sidecar.cache, None);
    assert_eq!(config.traffic.weight, Weight::ALL);
}

#[test]
fn a_file_of_the_original_is_read_as_it_was() {
    let config = read(json!({
        "main-target": "http://main.example", "main-header-host": "www.example",
        "canary-target": "http://canary.example", "canary-header-host": "new.example:81",
        "sidecar-url": "http://sidecar.example/sidecar", "trim-prefix": "/prefix",
        "main-sidecar-status": 0, "canary-sidecar-status": 0,
        "circuit-breaker": {"request-limit-canary": 300, "error-limit-canary": "15"},
        "instrumentation": {"port": "8888"},
        "router-server": {"host": "localhost", "port": "1345", "read-timeout": 5, "write-timeout": 15,
            "idle-timeout": 0},
        "proxy-client": {
            "to-main-and-canary": {"timeout": 5, "max-idle-conns": 1000, "idle-conn-timeout": 30,
                "disable-compression": true, "tls": {"insecure-skip-verify": true}},
            "to-sidecar": {"timeout": 0}
        },
        "log": {"level": "debug", "debug-request-body": true, "debug-response-body": true}
    }));
    assert_eq!(config.main.host_header, "www.example");
    assert_eq!(config.canary.host_header, "new.example:81");
    assert_eq!(
        config.limits,
        Limits {
            requests: Some(300),
            errors: Some(15),
            counted: FailureRule::NotSuccess
        }
    );
    assert_eq!(
        config.instrumentation,
        Some(Instrumentation {
            listen: Listen {
                host: "0.0.0.0".into(),
                port: 8888
            },
            token: None,
        })
    );
    assert_eq!(config.server.idle_timeout, Duration::from_secs(120));
    assert_eq!(
        config.sidecar.unwrap().upstream.client.timeout,
        Duration::from_secs(2)
    );
    assert!(config.main.client_tls.insecure_skip_verify);
    assert_eq!(config.trim_prefix, "/prefix");
    assert_eq!(
        config.log,
        Log {
            level: Level::Debug,
            format: LogFormat::Json,
            access: AccessLog::Off,
            request_body: true,
            response_body: true
        }
    );
}

#[test]
fn all_problems_are_told_at_once() {
    let found = problems(json!({
        "main-target": "main.example",
        "circuit-breaker": {"error-limit-canry": 15, "request-limit-canary": "many"},
        "router-server": {"read-timeout": "soon"},
        "log": 5
    }));
    let paths: Vec<&str> = found.iter().map(|(path, _)| path.as_str()).collect();
    for path in [
        "/main-target",
        "/canary-target",
        "/circuit-breaker/error-limit-canry",
        "/circuit-breaker/request-limit-canary",
        "/router-server/read-timeout",
        "/router-server/host",
        "/router-server/port",
        "/log",
    ] {
        assert!(paths.contains(&path), "{path} is not among {paths:#?}");
    }
}

/// Found by the fuzzer: a key with a line feed in it made two lines of one, the second as its author liked.
#[test]
fn a_problem_is_a_line_whatever_the_file_holds() {
    let file = with(json!({
        "a\nb\u{1b}[2J": 1,
        "fallback": {"static": {"status": 503, "file": "no\n\0thing"}}
    }));
    let error = Config::parse("test.json", &file.to_string()).expect_err("it must be refused");
    let told = error.to_string();
    let lines: Vec<&str> = told.split('\n').collect();
    assert_eq!(lines.len(), error.problems.len());
    assert!(
        lines[0].starts_with("test.json: /a\\nb\\u{1b}[2J: unknown key"),
        "{told}"
    );
    assert!(!lines.iter().any(|line| line.contains(char::is_control)));
}

#[test]
fn a_misspelt_key_names_the_nearest_known_one() {
    for (changes, path, nearest) in [
        (
            json!({"circuit-breaker": {"error-limit-canry": 1}}),
            "/circuit-breaker/error-limit-canry",
            "\"error-limit-canary\"",
        ),
        (
            json!({"circuit-braker": {}}),
            "/circuit-braker",
            "\"circuit-breaker\"",
        ),
        (
            json!({"Sidecar_URL": "http://a.example"}),
            "/Sidecar_URL",
            "\"sidecar-url\"",
        ),
        (
            json!({"router-server": {"timeout-read": 1}}),
            "/router-server/timeout-read",
            "read-timeout",
        ),
        (json!({"zzz": 1}), "/zzz", "the keys here are main-target"),
    ] {
        refused(with(changes), path, nearest);
    }
}

#[test]
fn a_key_written_twice_is_refused() {
    let text = r#"{"main-target": "http://a.example", "canary-target": "http://b.example",
        "router-server": {"host": "h", "port": 1},
        "circuit-breaker": {"error-limit-canary": 15}, "circuit-breaker": {}}"#;
    let error = Config::parse("c.json", text).expect_err("it must be refused");
    assert_eq!(
        error.to_string(),
        "c.json: /circuit-breaker: is written twice: keep one of them"
    );
}

#[test]
fn what_is_not_a_json_object_is_refused_with_its_place() {
    for (text, hint) in [
        ("", "EOF"),
        ("{", "line 1"),
        ("[]", "not a JSON object"),
        ("{\"main-target\": \"http://a\",}", "line 1"),
    ] {
        let error = Config::parse("c.json", text)
            .expect_err("it must be refused")
            .to_string();
        assert!(
            error.starts_with("c.json: ") && error.contains(hint),
            "{error}"
        );
    }
}

#[test]
fn every_value_that_cannot_work_is_refused_where_it_stands() {
    for (changes, path, hint) in [
        (
            json!({"main-target": "ftp://a.example"}),
            "/main-target",
            "http://",
        ),
        (
            json!({"main-target": "/just/a/path"}),
            "/main-target",
            "http://host:port",
        ),
        (
            json!({"main-target": "http://u:p@a.example"}),
            "/main-target",
            "password",
        ),
        (
            json!({"main-target": "http://a.example/#x"}),
            "/main-target",
            "fragment",
        ),
        (
            json!({"main-target": "http://a.example:0"}),
            "/main-target",
            "port 0",
        ),
        (
            json!({"main-target": "http://a.example:http"}),
            "/main-target",
            "port is not a number",
        ),
        (
            json!({"main-target": 7}),
            "/main-target",
            "expected a string",
        ),
        (
            json!({"main-header-host": "a b"}),
            "/main-header-host",
            "host name",
        ),
        (json!({"sidecar-url": "sidecar"}), "/sidecar-url", "http://"),
        (json!({"trim-prefix": "foo"}), "/trim-prefix", "\"/foo\""),
        (json!({"trim-prefix": "/foo?x"}), "/trim-prefix", "path"),
        (
            json!({"main-sidecar-status": 99}),
            "/main-sidecar-status",
            "200 to 599",
        ),
        (
            json!({"main-sidecar-status": 200}),
            "/canary-sidecar-status",
            "different",
        ),
        (
            json!({"circuit-breaker": {"error-limit-canary": -1}}),
            "/circuit-breaker/error-limit-canary",
            "0 or more",
        ),
        (
            json!({"circuit-breaker": {"error-limit-canary": 4294967296u64}}),
            "/circuit-breaker/error-limit-canary",
            "too large",
        ),
        (
            json!({"fallback": {"replay": "failurs"}}),
            "/fallback/replay",
            "did you mean \"failures\"? the words here are off, connect, failures",
        ),
        (
            json!({"router-server": {"port": 70000}}),
            "/router-server/port",
            "1 to 65535",
        ),
        (
            json!({"router-server": {"port": 0}}),
            "/router-server/port",
            "missing",
        ),
        (
            json!({"router-server": {"host": ""}}),
            "/router-server/host",
            "missing",
        ),
        (
            json!({"router-server": {"read-timeout": -5}}),
            "/router-server/read-timeout",
            "seconds",
        ),
        (
            json!({"router-server": {"workers": 5000}}),
            "/router-server/workers",
            "one per core",
        ),
        (
            json!({"router-server": {"max-header-bytes": "2GiB"}}),
            "/router-server/max-header-bytes",
            "256KiB",
        ),
        (
            json!({"proxy-client": {"to-sidecar": {"timeout": 1, "connect-timeout": 3}}}),
            "/proxy-client/to-sidecar/connect-timeout",
            "longer",
        ),
        (
            json!({"instrumentation": {"host": "0.0.0.0", "port": 1345}}),
            "/instrumentation/port",
            "port of their own",
        ),
        (json!({"log": {"level": "loud"}}), "/log/level", "debug"),
        (
            json!({"log": {"debug-request-body": "maybe"}}),
            "/log/debug-request-body",
            "true or false",
        ),
    ] {
        refused(with(changes), path, hint);
    }
}

#[test]
fn ipv6_targets_are_understood() {
    let config = read(with(json!({"main-target": "http://[::1]:8080/x/"})));
    assert_eq!(config.main.address, tcp("::1", 8080));
    assert_eq!(config.main.host_header, "[::1]:8080");
    assert_eq!(config.main.base_path, "/x/");
    let config = read(with(json!({"main-target": "http://[::1]"})));
    assert_eq!(config.main.address, tcp("::1", 80));
}

#[test]
fn null_and_empty_are_absent() {
    let config = read(with(
        json!({"sidecar-url": "", "trim-prefix": null, "log": {"level": null}}),
    ));
    assert!(config.sidecar.is_none());
    assert_eq!(config.log.level, Level::Info);
}

/// `"circuit-breaker": []` was a section without limits, and `"state": ["x"]` one with a file: serde takes what
/// stands in a list for the keys in their order.
#[test]
fn a_list_is_no_section() {
    let mut sections = places();
    sections.retain(|path| template_at(path).is_object());
    assert!(sections.len() > 15 && sections.contains(&"/circuit-breaker/main".to_owned()));
    for path in sections {
        for list in [json!([]), json!(["x"]), json!([5, "10m"])] {
            let mut file = serde_json::to_value(Raw::every_key()).unwrap();
            *file.pointer_mut(&path).unwrap() = list;
            refused(file, &path, "an object");
        }
    }
    let steps = json!({"steps": [{"weight": 5, "for": "10m"}, [50, "10m"]]});
    refused(
        with(json!({"instrumentation": {}, "rollout": steps})),
        "/rollout/steps/1",
        "an object",
    );
}

fn template_at(path: &str) -> Value {
    let template = serde_json::to_value(Raw::every_key()).unwrap();
    template.pointer(path).unwrap().clone()
}

#[test]
fn the_effective_config_shows_no_secret() {
    let config = read(with(
        json!({"sidecar-url": "http://sidecar.example/ask?token=hunter2"}),
    ));
    let shown = config.effective.to_string();
    assert!(
        !shown.contains("hunter2") && !shown.contains("key=1"),
        "{shown}"
    );
    assert!(shown.contains("http://sidecar.example/ask?***"), "{shown}");
    assert_eq!(masked_url("http://u:p@h/x?y"), "http://***@h/x?***");
    assert_eq!(masked_url("nonsense"), "nonsense");
}

/// 16 characters, every kind that there is.
const TOKEN: &str = "!s3cret~A-._+/=z";

#[test]
fn a_token_is_read_and_shown_nowhere() {
    let token = |section: Value| read(with(json!({"instrumentation": section})));
    let config = token(json!({"token": format!(" {TOKEN} ")}));
    let shown = config.effective.pointer("/instrumentation/token");
    assert_eq!(shown, Some(&json!("***")));
    assert!(!format!("{config:?}").contains("s3cret"), "{config:?}");
    let read = config.instrumentation.unwrap().token.unwrap();
    assert_eq!(read.as_str(), TOKEN);
    let config = token(json!({"token": "", "token-file": ""}));
    assert_eq!(config.instrumentation.unwrap().token, None);
    let shown = config.effective.pointer("/instrumentation/token");
    assert_eq!(shown, Some(&json!("")));
}

#[test]
fn a_token_can_be_in_a_file() {
    let folder = std::env::temp_dir().join(format!("canary-router-token-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("token");
    let config = with(json!({"instrumentation": {"token-file": file}}));
    let path = "/instrumentation/token-file";

    std::fs::write(&file, format!("{TOKEN}\n")).unwrap();
    let judged = read(config.clone());
    assert!(!format!("{judged:?}").contains("s3cret"), "{judged:?}");
    let token = judged.instrumentation.unwrap().token.unwrap();
    assert_eq!(token.as_str(), TOKEN);
    let mut both = config.clone();
    both["instrumentation"]["token"] = json!(TOKEN);
    refused(both, path, "stands beside /instrumentation/token: keep one");

    for content in [
        &b"\n"[..],
        b"s3cret",
        b"two tokens in one file",
        &[0xff; 32],
    ] {
        std::fs::write(&file, content).unwrap();
        refused(config.clone(), path, "`openssl rand -hex 32`");
    }
    std::fs::remove_dir_all(&folder).unwrap();
    refused(config, path, "No such file");
}

#[test]
fn a_token_that_cannot_work_is_refused_without_being_quoted() {
    for token in [
        json!(&TOKEN[..15]),
        json!("s3cret in three words"),
        json!("s3cret-s3cret-s3cret-\u{e9}"),
        json!("s3cret\tand-a-tabulator"),
        json!(["s3cret-in-a-list-of-one"]),
        json!(5_353_535_353_535_353_535_u64),
    ] {
        let found = problems(with(json!({"instrumentation": {"token": token}})));
        let [(path, message)] = &found[..] else {
            panic!("{found:#?}");
        };
        assert_eq!(path, "/instrumentation/token");
        assert!(
            !message.contains("s3cret") && !message.contains("5353"),
            "{message}"
        );
    }
    refused(
        with(json!({"instrumentation": {"token": "changeme"}})),
        "/instrumentation/token",
        "use 16 or more visible ASCII characters without spaces; `openssl rand -hex 32` makes one",
    );
}

#[test]
fn the_template_in_the_repository_is_every_key_with_its_default() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/config.template.json");
    let shipped: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let expected = serde_json::to_value(Raw::template()).unwrap();
    assert_eq!(shipped, expected, "write this into it:\n{expected:#}");
    Config::load(Path::new(path)).unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn the_breakers_of_both_targets_are_read() {
    let seconds = Duration::from_secs;
    let config = read(with(json!({"circuit-breaker": {
        "failure-rate-threshold": "50%",
        "slow-call-rate-threshold": 0.25, "slow-call-duration": "500ms",
        "minimum-number-of-calls": 1, "window": "1h", "wait-open": "1ms", "max-wait-open": "1ms",
        "permitted-half-open": "10000", "failure": "non-2xx", "errors": "5xx",
        "main": {"failure-rate-threshold": 100}
    }})));
    assert_eq!(config.limits.counted, FailureRule::ServerError);
    assert_eq!(
        config.breakers.canary,
        Some(Breaker {
            settings: breaker::Settings {
                failure_rate: Some(breaker::Rate(5_000)),
                slow_calls: Some(breaker::SlowCalls {
                    rate: breaker::Rate(25),
                    duration: Duration::from_millis(500)
                }),
                failures_in_a_row: None,
                minimum_calls: 1,
                window: seconds(3600),
                wait_open: Duration::from_millis(1),
                max_wait_open: Duration::from_millis(1),
                permitted_half_open: 10_000,
            },
            failure: FailureRule::NotSuccess,
        })
    );
    let with_defaults = breaker::Settings {
        failure_rate: Some(breaker::Rate(10_000)),
        slow_calls: None,
        failures_in_a_row: None,
        minimum_calls: 20,
        window: seconds(30),
        wait_open: seconds(30),
        max_wait_open: seconds(300),
        permitted_half_open: 5,
    };
    assert_eq!(
        config.breakers.main,
        Some(Breaker {
            settings: with_defaults,
            failure: FailureRule::ServerError,
        })
    );
}

#[test]
fn slow_calls_alone_are_a_breaker() {
    let config = read(with(json!({"circuit-breaker": {"main": {
        "slow-call-rate-threshold": "12.5", "slow-call-duration": 2
    }}})));
    assert_eq!(config.breakers.canary, None);
    let settings = config.breakers.main.unwrap().settings;
    assert_eq!(settings.failure_rate, None);
    assert_eq!(settings.slow_calls.unwrap().rate, breaker::Rate(1_250));
}

#[test]
fn a_long_wait_open_needs_no_max_wait_open() {
    let config = read(with(
        json!({"circuit-breaker": {"failure-rate-threshold": 5, "wait-open": "10m"}}),
    ));
    let settings = config.breakers.canary.unwrap().settings;
    assert_eq!(settings.max_wait_open, Duration::from_secs(600));
}

#[test]
fn a_breaker_that_cannot_work_is_refused_where_it_is_written() {
    for section in ["/circuit-breaker", "/circuit-breaker/main"] {
        for (keys, key, hint) in [
            (
                json!({"failure-rate-threshold": 101}),
                "failure-rate-threshold",
                "0 to 100 with at most two decimals",
            ),
            (
                json!({"failure-rate-threshold": 0.001}),
                "failure-rate-threshold",
                "\"50%\"",
            ),
            (
                json!({"slow-call-rate-threshold": 50}),
                "slow-call-duration",
                "is missing: /slow-call-rate-threshold beside it",
            ),
            (
                json!({"slow-call-rate-threshold": 50, "failure-rate-threshold": 50}),
                "slow-call-duration",
                "is missing",
            ),
            (
                json!({"slow-call-duration": 1}),
                "slow-call-rate-threshold",
                "is missing: /slow-call-duration beside it",
            ),
            (
                json!({"slow-call-rate-threshold": 50, "slow-call-duration": "0.5ms"}),
                "slow-call-duration",
                "\"1ms\" or more",
            ),
            (
                json!({"failure-rate-threshold": 5, "minimum-number-of-calls": 1_000_001}),
                "minimum-number-of-calls",
                "use 1 to 1000000",
            ),
            (
                json!({"failure-rate-threshold": 5, "permitted-half-open": 10_001}),
                "permitted-half-open",
                "use 1 to 10000",
            ),
            (
                json!({"failure-rate-threshold": 5, "window": "999ms"}),
                "window",
                "use \"1s\" to \"1h\"",
            ),
            (
                json!({"failure-rate-threshold": 5, "window": 3601}),
                "window",
                "use \"1s\" to \"1h\"",
            ),
            (
                json!({"failure-rate-threshold": 5, "wait-open": "0.1ms"}),
                "wait-open",
                "use \"1ms\" or more",
            ),
            (
                json!({"failure-rate-threshold": 5, "max-wait-open": 29}),
                "max-wait-open",
                "shorter than /wait-open beside it (30s)",
            ),
            (
                json!({"failure-rate-threshold": 5, "failure": "5XX"}),
                "failure",
                "did you mean \"5xx\"? the words here are 5xx, non-2xx",
            ),
        ] {
            let mut file = with(json!({"circuit-breaker": {"main": {}}}));
            *file.pointer_mut(section).unwrap() = keys;
            let problems = problems(file.clone());
            assert_eq!(problems.len(), 1, "{file}: {problems:#?}");
            refused(file, &format!("{section}/{key}"), hint);
        }
    }
    refused(
        with(json!({"circuit-breaker": {"errors": "everything"}})),
        "/circuit-breaker/errors",
        "\"everything\" is not known; the words here are 5xx, non-2xx",
    );
    refused(
        with(json!({"circuit-breaker": {"main": {"errors": "5xx"}}})),
        "/circuit-breaker/main/errors",
        "unknown key",
    );
}

/// A breaker of which everything is written but the threshold would silently be off.
#[test]
fn what_needs_a_threshold_is_refused_without_one() {
    for section in ["/circuit-breaker", "/circuit-breaker/main"] {
        for (key, value) in [
            ("minimum-number-of-calls", json!(10)),
            ("window", json!(10)),
            ("wait-open", json!("10m")),
            ("max-wait-open", json!(600)),
            ("permitted-half-open", json!(1)),
            ("failure", json!("non-2xx")),
        ] {
            for threshold in [Value::Null, json!(0), json!("0%")] {
                let mut file = with(json!({"circuit-breaker": {"main": {}}}));
                *file.pointer_mut(section).unwrap() =
                    json!({key: value, "failure-rate-threshold": threshold});
                let found = problems(file);
                assert_eq!(found.len(), 1, "{found:#?}");
                assert_eq!(found[0].0, format!("{section}/{key}"));
                assert!(
                    found[0].1.contains("off without a threshold")
                        && found[0].1.contains("failure-rate-threshold"),
                    "{found:#?}"
                );
            }
        }
    }
    // A threshold that cannot be used is one problem, not two.
    for threshold in [
        json!({"failure-rate-threshold": "half", "window": 10}),
        json!({"slow-call-rate-threshold": 50, "window": 10}),
        json!({"slow-call-rate-threshold": 50, "slow-call-duration": "long", "window": 10}),
    ] {
        assert_eq!(
            problems(with(json!({"circuit-breaker": threshold}))).len(),
            1
        );
    }
}

#[test]
fn the_fallback_is_read() {
    let config = read(with(json!({"fallback": {
        "replay": "failures", "methods": ["GET", "PURGE"], "statuses": [400, "599"],
        "max-body": 0, "budget": "0.5%",
        "static": {"status": 200, "content-type": "text/html", "body": " sorry\n"}
    }})));
    assert_eq!(
        config.fallback,
        Fallback {
            replay: Replay::Failures,
            methods: vec![Method::GET, "PURGE".parse().unwrap()],
            statuses: vec![400, 599],
            max_body: 0,
            budget: 50,
            fixed: Some(FixedAnswer {
                status: StatusCode::OK,
                content_type: HeaderValue::from_static("text/html"),
                body: Bytes::from_static(b" sorry\n"),
            }),
        }
    );
    let config = read(with(
        json!({"fallback": {"methods": [], "statuses": [], "budget": 0}}),
    ));
    let fallback = config.fallback;
    assert_eq!((fallback.methods.len(), fallback.statuses.len()), (0, 0));
    assert_eq!(fallback.budget, 0);
}

#[test]
fn a_static_answer_is_on_as_soon_as_a_part_of_it_is_written() {
    let fixed = |fixed: Value| {
        read(with(json!({"fallback": {"static": fixed}})))
            .fallback
            .fixed
    };
    assert_eq!(fixed(json!({})), None);
    let body = fixed(json!({"body": "sorry"})).unwrap();
    assert_eq!(body.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(body.content_type, "text/plain; charset=utf-8");
    assert_eq!(body.body, "sorry");
    let status = fixed(json!({"status": "204"})).unwrap();
    assert_eq!(
        (status.status, status.body),
        (StatusCode::NO_CONTENT, Bytes::new())
    );
}

#[test]
fn the_body_of_a_static_answer_can_be_a_file_of_a_mebibyte() {
    let folder = std::env::temp_dir().join(format!("canary-router-static-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("sorry.bin");
    let config = with(json!({"fallback": {"static": {"file": file}}}));

    std::fs::write(&file, vec![0xff; 1 << 20]).unwrap();
    let fixed = read(config.clone()).fallback.fixed.unwrap();
    assert_eq!(fixed.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(fixed.body.len(), 1 << 20);

    std::fs::write(&file, vec![0xff; (1 << 20) + 1]).unwrap();
    refused(config.clone(), "/fallback/static/file", "longer than 1MiB");
    let mut both = config.clone();
    both["fallback"]["static"]["body"] = json!("sorry");
    refused(both, "/fallback/static/file", "keep one of them");

    std::fs::remove_dir_all(&folder).unwrap();
    refused(config, "/fallback/static/file", "No such file");
    let folder = std::env::temp_dir();
    let config = with(json!({"fallback": {"static": {"file": folder}}}));
    refused(config, "/fallback/static/file", "not a file");
    // Where it was looked for is told.
    let config = with(json!({"fallback": {"static": {"file": "absent.html"}}}));
    let place = std::env::current_dir().unwrap().join("absent.html");
    refused(config, "/fallback/static/file", place.to_str().unwrap());
}

#[test]
fn a_fallback_that_cannot_work_is_refused_where_it_is_written() {
    let long = "x".repeat((1 << 20) + 1);
    for (keys, path, hint) in [
        (json!({"methods": "GET"}), "methods", "a list of strings"),
        (
            json!({"methods": ["get"]}),
            "methods/0",
            "did you mean \"GET\"?",
        ),
        (
            json!({"methods": ["GET", "DELTE"]}),
            "methods/1",
            "did you mean \"DELETE\"?",
        ),
        (json!({"methods": ["purge"]}), "methods/0", "in upper case"),
        (json!({"methods": ["A B"]}), "methods/0", "not a method"),
        (json!({"methods": [""]}), "methods/0", "not a method"),
        (
            json!({"statuses": 503}),
            "statuses",
            "a list of whole numbers",
        ),
        (
            json!({"statuses": [503, 399]}),
            "statuses/1",
            "399 is no status of a failure: use 400 to 599",
        ),
        (json!({"statuses": [70_000]}), "statuses/0", "400 to 599"),
        (json!({"max-body": "many"}), "max-body", "a size"),
        (json!({"budget": 101}), "budget", "0 to 100"),
        (json!({"static": "sorry"}), "static", "expected an object"),
        (
            json!({"static": {"status": 101}}),
            "static/status",
            "use 200 to 599",
        ),
        (
            json!({"static": {"status": 204, "body": "sorry"}}),
            "static/status",
            "has no body",
        ),
        (
            json!({"static": {"content-type": "text/html"}}),
            "static/content-type",
            "without a status, a body or a file",
        ),
        (
            json!({"static": {"status": 503, "content-type": "html"}}),
            "static/content-type",
            "text/html; charset=utf-8",
        ),
        (
            json!({"static": {"status": 503, "content-type": "text/html\r\nX: y"}}),
            "static/content-type",
            "not a media type",
        ),
        (
            json!({"static": {"body": long}}),
            "static/body",
            "use 1MiB at most",
        ),
    ] {
        let file = with(json!({"fallback": keys}));
        let problems = problems(file.clone());
        assert_eq!(problems.len(), 1, "{problems:#?}");
        refused(file, &format!("/fallback/{path}"), hint);
    }
}

fn with_sidecar(sidecar: Value) -> Value {
    with(json!({"sidecar-url": "http://sidecar.example", "sidecar": sidecar}))
}

#[test]
fn what_the_sidecar_gets_and_how_long_it_is_believed_is_read() {
    let sidecar = read(with_sidecar(json!({"body": "none", "cache": {
        "key": ["header:X-User-Id", "cookie:Sid", "method", "path", "query", "client-ip"],
        "ttl": "24h", "max-entries": 10_000_000
    }})));
    let sidecar = sidecar.sidecar.unwrap();
    assert_eq!(sidecar.body, SidecarBody::None);
    assert_eq!(
        sidecar.cache,
        Some(SidecarCache {
            key: vec![
                CacheKey::Header(HeaderName::from_static("x-user-id")),
                CacheKey::Cookie("Sid".into()),
                CacheKey::Method,
                CacheKey::Path,
                CacheKey::Query,
                CacheKey::ClientIp,
            ],
            ttl: Duration::from_secs(24 * 3600),
            max_entries: 10_000_000,
        })
    );
    let sidecar = read(with_sidecar(
        json!({"cache": {"key": ["path"], "ttl": "1ms"}}),
    ));
    assert_eq!(sidecar.sidecar.unwrap().cache.unwrap().max_entries, 10_000);
}

#[test]
fn a_sidecar_section_that_cannot_work_is_refused_where_it_is_written() {
    let key = |key: &str| json!({"cache": {"key": [key], "ttl": 1}});
    for (keys, path, hint) in [
        (
            json!({"body": "nothing"}),
            "body",
            "the words here are full, none",
        ),
        (json!({"body": "non"}), "body", "did you mean \"none\"?"),
        (json!({"cache": true}), "cache", "expected an object"),
        (
            json!({"cache": {"key": "path", "ttl": 1}}),
            "cache/key",
            "a list of strings",
        ),
        (
            json!({"cache": {"key": [], "ttl": 1}}),
            "cache/key",
            "is empty: say what two requests must have in common",
        ),
        (json!({"cache": {"ttl": 1}}), "cache/key", "is empty"),
        (
            json!({"cache": {"key": ["path"]}}),
            "cache/ttl",
            "is missing",
        ),
        (
            json!({"cache": {"key": ["path"], "ttl": "soon"}}),
            "cache/ttl",
            "a duration",
        ),
        (
            json!({"cache": {"key": ["path"], "ttl": "0.9ms"}}),
            "cache/ttl",
            "use \"1ms\" to \"24h\"",
        ),
        (
            json!({"cache": {"key": ["path"], "ttl": 86_401}}),
            "cache/ttl",
            "use \"1ms\" to \"24h\"",
        ),
        (
            json!({"cache": {"key": ["path"], "ttl": 1, "max-entries": 10_000_001}}),
            "cache/max-entries",
            "use 1 to 10000000",
        ),
        (
            key("headr:X-User-Id"),
            "cache/key/0",
            "did you mean \"header:NAME\"? the words here are header:NAME, cookie:NAME, method",
        ),
        (key("client_ip"), "cache/key/0", "\"client-ip\""),
        (key("header"), "cache/key/0", "\"header:NAME\""),
        (key("method:GET"), "cache/key/0", "\"method\""),
        (key("header:"), "cache/key/0", "\"header:X-User-Id\""),
        (key("header:a b"), "cache/key/0", "\"header:X-User-Id\""),
        (key("cookie:a;b"), "cache/key/0", "\"cookie:sid\""),
        (key("cookie:"), "cache/key/0", "\"cookie:sid\""),
        (key(""), "cache/key/0", "the words here are"),
    ] {
        let file = with_sidecar(keys);
        let problems = problems(file.clone());
        assert_eq!(problems.len(), 1, "{problems:#?}");
        refused(file, &format!("/sidecar/{path}"), hint);
    }
    let found = problems(with_sidecar(json!({"cache": {"max-entries": 5}})));
    assert_eq!(found.len(), 2, "neither key nor ttl: {found:#?}");
}

#[test]
fn what_is_said_of_a_sidecar_that_is_not_there_is_refused() {
    for (sidecar, path) in [
        (json!({"body": "none"}), "/sidecar/body"),
        (
            json!({"cache": {"key": ["path"], "ttl": 1}}),
            "/sidecar/cache",
        ),
    ] {
        let file = with(json!({"sidecar": sidecar}));
        refused(file.clone(), path, "no sidecar without /sidecar-url");
        // A sidecar with a wrong URL is one problem, not two.
        let mut wrong = file;
        wrong["sidecar-url"] = json!("sidecar");
        assert_eq!(problems(wrong).len(), 1);
    }
    // As with `max-body`, which has a default: no harm is in it.
    read(with(
        json!({"sidecar": {"body": "full", "max-body": "2MiB"}}),
    ));
}

#[test]
fn the_weight_is_a_percentage_and_zero_is_none() {
    let weight = |file: Value| read(with(file)).traffic.weight.hundredths();
    for (written, hundredths) in [(json!(0), 0), (json!("0.01%"), 1), (json!(100), 10_000)] {
        let traffic = json!({"traffic": {"weight": written}});
        assert_eq!(weight(traffic.clone()), hundredths);
        let mut with_sidecar = traffic;
        with_sidecar["sidecar-url"] = json!("http://sidecar.example");
        assert_eq!(weight(with_sidecar), hundredths);
    }
    // An empty URL is none.
    assert_eq!(weight(json!({"sidecar-url": " "})), 0);
    refused(
        with(json!({"traffic": {"weight": 100.01}})),
        "/traffic/weight",
        "a percentage from 0 to 100",
    );
}

#[test]
fn what_a_client_is_known_by_is_read() {
    let sticky = |sticky: Value| {
        read(with(json!({"traffic": {"sticky": sticky}})))
            .traffic
            .sticky
    };
    assert_eq!(sticky(json!({"by": ""})), None);
    assert_eq!(
        sticky(json!({"by": "header:X-User-Id"})),
        Some(Sticky::Header(HeaderName::from_static("x-user-id")))
    );
    assert_eq!(
        sticky(json!({"by": "cookie:Sid"})),
        Some(Sticky::NamedCookie("Sid".into()))
    );
    assert_eq!(sticky(json!({"by": "client-ip"})), Some(Sticky::ClientIp));
    assert_eq!(
        sticky(json!({"by": "cookie"})),
        Some(Sticky::Cookie(StickyCookie {
            name: "canary-router".into(),
            max_age: Duration::from_secs(30 * 24 * 3600),
            secure: false,
            same_site: SameSite::Lax,
        }))
    );
    assert_eq!(
        sticky(
            json!({"by": "cookie", "cookie": "Who", "max-age": "1s", "secure": "true",
            "same-site": "none"})
        ),
        Some(Sticky::Cookie(StickyCookie {
            name: "Who".into(),
            max_age: Duration::from_secs(1),
            secure: true,
            same_site: SameSite::None,
        }))
    );
    // What is there by default may be written, whoever asks for it.
    let default = json!({"by": "client-ip", "cookie": "canary-router", "max-age": 2_592_000,
        "secure": false, "same-site": "lax"});
    assert_eq!(sticky(default), Some(Sticky::ClientIp));
}

#[test]
fn a_sticky_section_that_cannot_work_is_refused_where_it_is_written() {
    for (keys, key, hint) in [
        (
            json!({"by": "cookies"}),
            "by",
            "did you mean \"cookie\"? the words here are cookie, cookie:NAME, header:NAME, client-ip",
        ),
        (json!({"by": "off"}), "by", "the words here are cookie"),
        (json!({"by": "path"}), "by", "\"path\" is not known"),
        (
            json!({"by": "header"}),
            "by",
            "did you mean \"header:NAME\"?",
        ),
        (json!({"by": "header:"}), "by", "\"header:X-User-Id\""),
        (json!({"by": "cookie:a b"}), "by", "\"cookie:sid\""),
        // What follows from it is not told.
        (
            json!({"by": "cookies", "secure": true, "max-age": 5}),
            "by",
            "\"cookie\"",
        ),
        (
            json!({"by": "cookie", "cookie": "a=b"}),
            "cookie",
            "not a name for a cookie",
        ),
        (
            json!({"by": "cookie", "max-age": "999ms"}),
            "max-age",
            "use \"1s\" or more",
        ),
        (
            json!({"by": "cookie", "max-age": "9000h"}),
            "max-age",
            "a duration",
        ),
        (
            json!({"by": "cookie", "secure": "yes"}),
            "secure",
            "true or false",
        ),
        (
            json!({"by": "cookie", "same-site": "Lax"}),
            "same-site",
            "did you mean \"lax\"? the words here are lax, strict, none",
        ),
        (
            json!({"by": "cookie", "same-site": "none"}),
            "same-site",
            "write \"secure\": true beside it",
        ),
    ] {
        let file = with(json!({"traffic": {"sticky": keys}}));
        let problems = problems(file.clone());
        assert_eq!(problems.len(), 1, "{problems:#?}");
        refused(file, &format!("/traffic/sticky/{key}"), hint);
    }
    refused(
        with(json!({"traffic": {"sticky": "on"}})),
        "/traffic/sticky",
        "an object",
    );
}

#[test]
fn what_is_said_of_a_cookie_that_is_not_set_is_refused() {
    for by in [
        Value::Null,
        json!(""),
        json!("cookie:sid"),
        json!("client-ip"),
    ] {
        for (key, value) in [
            ("cookie", json!("who")),
            ("max-age", json!("1h")),
            ("secure", json!(true)),
            ("same-site", json!("strict")),
        ] {
            let found = problems(with(json!({"traffic": {"sticky": {"by": by, key: value}}})));
            assert_eq!(found.len(), 1, "{found:#?}");
            assert_eq!(found[0].0, format!("/traffic/sticky/{key}"));
            assert!(found[0].1.contains("has no effect"), "{found:#?}");
        }
    }
}

#[test]
fn overrides_are_believed_from_networks_and_addresses() {
    let trusted = |written: Value| read(with(json!({"override": {"trusted": written}})));
    let shown = |config: &Config| {
        let networks = config.trusted_overrides.iter().flatten();
        networks.map(ToString::to_string).collect::<Vec<_>>()
    };
    let config = trusted(json!([
        "10.0.0.0/8",
        "127.0.0.1",
        "::1",
        "fd00::/8",
        "0.0.0.0/0"
    ]));
    assert_eq!(
        shown(&config),
        [
            "10.0.0.0/8",
            "127.0.0.1/32",
            "::1/128",
            "fd00::/8",
            "0.0.0.0/0"
        ]
    );
    // Nobody and everyone are not the same.
    assert_eq!(trusted(json!([])).trusted_overrides, Some(Vec::new()));
    assert_eq!(trusted(Value::Null).trusted_overrides, None);
    for (written, path, hint) in [
        (
            json!("10.0.0.0/8"),
            "/override/trusted",
            "a list of strings",
        ),
        (
            json!(["::1", "10.0.0.1/8"]),
            "/override/trusted/1",
            "write \"10.0.0.0/8\" for the whole network, or \"10.0.0.1\" for the one address",
        ),
        (
            json!(["fd00::1/8"]),
            "/override/trusted/0",
            "write \"fd00::/8\"",
        ),
        (
            json!(["10.0.0.0/33"]),
            "/override/trusted/0",
            "write it as \"10.0.0.0/8\" or \"127.0.0.1\"",
        ),
        (
            json!(["localhost"]),
            "/override/trusted/0",
            "neither a network",
        ),
        (json!([""]), "/override/trusted/0", "neither a network"),
    ] {
        let file = with(json!({"override": {"trusted": written}}));
        assert_eq!(problems(file.clone()).len(), 1);
        refused(file, path, hint);
    }
}

/// A file with two steps, and with these keys beside them.
fn with_rollout(keys: Value) -> Value {
    let mut file = with(json!({
        "instrumentation": {},
        "rollout": {"steps": [{"weight": 5, "for": "10m"}, {"weight": 50, "for": 60}]}
    }));
    for (key, value) in keys.as_object().unwrap() {
        file["rollout"][key] = value.clone();
    }
    file
}

fn step(hundredths: u32, seconds: u64) -> policy::rollout::Step {
    policy::rollout::Step {
        weight: Weight::new(hundredths).unwrap(),
        lasts: Duration::from_secs(seconds),
    }
}

#[test]
fn a_rollout_of_steps_alone_gets_every_default() {
    use policy::{analysis, rollout};
    let expected = Rollout {
        settings: rollout::Settings {
            steps: vec![step(500, 600), step(5_000, 60)],
            on_inconclusive: rollout::OnInconclusive::Extend,
            max_extension: Duration::from_secs(3600),
            dry_run: false,
        },
        judge: analysis::Settings {
            error_ratio: 1.5,
            false_rollback_probability: 0.01,
            latency: Some(analysis::LatencyRule {
                margin: 0.1,
                slack: Duration::from_millis(15),
            }),
            safe_ratio: 2.0,
            acceptable_failure_rate: 0.01,
        },
        failure: FailureRule::ServerError,
    };
    assert_eq!(
        read(with_rollout(json!({}))).rollout,
        Some(expected.clone())
    );
    // Zero and empty mean the default, where they mean nothing of their own.
    let config = read(with_rollout(json!({
        "on-inconclusive": "", "max-extension": 0, "error-ratio": 0,
        "false-rollback-probability": "0", "safe-ratio": 0, "failure": null
    })));
    assert_eq!(config.rollout, Some(expected));
}

#[test]
fn a_rollout_is_read() {
    use policy::{analysis, rollout};
    let config = read(with_rollout(json!({
        "steps": [{"weight": "0.01%", "for": 1}, {"weight": "0.01", "for": "8760h"},
            {"weight": 100, "for": "1.5s"}],
        "on-inconclusive": "extend", "max-extension": "2h", "dry-run": true,
        "metrics": ["latency", "errors"], "error-ratio": 1, "false-rollback-probability": "1e-6",
        "latency-margin": 0, "latency-slack": 0, "safe-ratio": 1.01, "acceptable-failure-rate": 0,
        "failure": "non-2xx"
    })));
    let last = rollout::Step {
        weight: Weight::ALL,
        lasts: Duration::from_millis(1_500),
    };
    assert_eq!(
        config.rollout,
        Some(Rollout {
            settings: rollout::Settings {
                steps: vec![step(1, 1), step(1, 365 * 24 * 3600), last],
                on_inconclusive: rollout::OnInconclusive::Extend,
                max_extension: Duration::from_secs(7200),
                dry_run: true,
            },
            judge: analysis::Settings {
                error_ratio: 1.0,
                false_rollback_probability: 0.000_001,
                latency: Some(analysis::LatencyRule {
                    margin: 0.0,
                    slack: Duration::ZERO,
                }),
                safe_ratio: 1.01,
                acceptable_failure_rate: 0.0,
            },
            failure: FailureRule::NotSuccess,
        })
    );
    for (word, meaning) in [
        ("pause", rollout::OnInconclusive::Pause),
        ("advance", rollout::OnInconclusive::Advance),
        ("rollback", rollout::OnInconclusive::Rollback),
    ] {
        let config = read(with_rollout(json!({"on-inconclusive": word})));
        assert_eq!(config.rollout.unwrap().settings.on_inconclusive, meaning);
    }
    let config = read(with_rollout(json!({"metrics": ["errors"]})));
    assert_eq!(config.rollout.unwrap().judge.latency, None);
    let hundred = vec![json!({"weight": 5, "for": 1}); 100];
    let config = read(with_rollout(json!({"steps": hundred})));
    assert_eq!(config.rollout.unwrap().settings.steps.len(), 100);
}

#[test]
fn a_rollout_that_cannot_work_is_refused_where_it_is_written() {
    let step = |step: Value| json!({"steps": [{"weight": 1, "for": 1}, step]});
    for (keys, path, hint) in [
        (json!({"steps": 5}), "steps", "a list of steps, such as [{"),
        (json!({"steps": {}}), "steps", "a list of steps"),
        (
            json!({"steps": vec![json!({"weight": 5, "for": 1}); 101]}),
            "steps",
            "101 steps are too many: use 100 at most",
        ),
        (step(json!(5)), "steps/1", "expected an object"),
        (step(Value::Null), "steps/1", "expected an object"),
        (step(json!({"for": 1})), "steps/1/weight", "is missing"),
        (step(json!({"weight": 1})), "steps/1/for", "is missing"),
        (
            step(json!({"weight": 0, "for": 1})),
            "steps/1/weight",
            "use 0.01 to 100",
        ),
        (
            step(json!({"weight": 101, "for": 1})),
            "steps/1/weight",
            "a percentage from 0 to 100",
        ),
        (
            step(json!({"weight": 0.5, "for": 1})),
            "steps/1/weight",
            "0.5 is less than the 1 of the step before, and weights must not fall from step to step: \
             use 1 to 100",
        ),
        (
            step(json!({"weight": 1, "for": 0})),
            "steps/1/for",
            "use \"1s\" or more",
        ),
        (
            step(json!({"weight": 1, "for": "999ms"})),
            "steps/1/for",
            "use \"1s\" or more",
        ),
        (
            step(json!({"weight": 1, "for": "8761h"})),
            "steps/1/for",
            "a duration",
        ),
        (
            step(json!({"wieght": 1, "weight": 1, "for": 1})),
            "steps/1/wieght",
            "did you mean \"weight\"?",
        ),
        (
            json!({"on-inconclusive": "roll-back"}),
            "on-inconclusive",
            "did you mean \"rollback\"? the words here are extend, pause, advance, rollback",
        ),
        (
            json!({"on-inconclusive": "pause", "max-extension": "2h"}),
            "max-extension",
            "has no effect: with \"pause\" in /on-inconclusive",
        ),
        (json!({"dry-run": "yes"}), "dry-run", "true or false"),
        (json!({"metrics": "errors"}), "metrics", "a list of strings"),
        (
            json!({"metrics": ["errors", "latencies"]}),
            "metrics/1",
            "did you mean \"latency\"? the words here are errors, latency",
        ),
        // What follows from it is not told.
        (json!({"metrics": ["eror"]}), "metrics/0", "\"errors\""),
        (
            json!({"metrics": ["latency"]}),
            "metrics",
            "write [\"errors\"] or",
        ),
        (json!({"metrics": []}), "metrics", "write [\"errors\"] or"),
        (
            json!({"metrics": ["errors"], "latency-margin": 0.2}),
            "latency-margin",
            "has no effect: latency is not judged",
        ),
        (
            json!({"metrics": ["errors"], "latency-slack": 0}),
            "latency-slack",
            "has no effect: latency is not judged",
        ),
        (json!({"error-ratio": "twice"}), "error-ratio", "a number"),
        (json!({"error-ratio": 0.99}), "error-ratio", "use 1 to 100"),
        (json!({"error-ratio": 100.1}), "error-ratio", "use 1 to 100"),
        (
            json!({"false-rollback-probability": 1}),
            "false-rollback-probability",
            "1 is out of range: use 0.000001 to 0.5 (0.01 is one in a hundred)",
        ),
        (
            json!({"false-rollback-probability": 0.000_000_9}),
            "false-rollback-probability",
            "0.000001 to 0.5",
        ),
        (
            json!({"latency-margin": 10.5}),
            "latency-margin",
            "use 0 to 10 (0.1 is a tenth more)",
        ),
        (json!({"latency-margin": -1}), "latency-margin", "0 to 10"),
        (
            json!({"latency-slack": "60001ms"}),
            "latency-slack",
            "60.001s is out of range: use 0 to \"60s\"",
        ),
        (json!({"safe-ratio": 1}), "safe-ratio", "more than 1"),
        (json!({"safe-ratio": 101}), "safe-ratio", "100 at most"),
        (
            json!({"acceptable-failure-rate": 1}),
            "acceptable-failure-rate",
            "use 0 (off) to 0.5 (0.01 is one in a hundred)",
        ),
        (
            json!({"failure": "5XX"}),
            "failure",
            "did you mean \"5xx\"? the words here are 5xx, non-2xx",
        ),
    ] {
        let file = with_rollout(keys);
        let problems = problems(file.clone());
        assert_eq!(problems.len(), 1, "{file}: {problems:#?}");
        refused(file, &format!("/rollout/{path}"), hint);
    }
    refused(with(json!({"rollout": true})), "/rollout", "an object");
}

#[test]
fn every_step_tells_its_own_problems() {
    let found = problems(with_rollout(json!({"steps": [
        {"weight": 10, "for": "soon"},
        "half",
        {"weight": 5, "fro": 60},
        {"weight": "many", "for": 0},
        {"weight": 10, "for": 1}
    ]})));
    let mut paths: Vec<&str> = found.iter().map(|(path, _)| path.as_str()).collect();
    paths.sort_unstable();
    assert_eq!(
        paths,
        [
            "/rollout/steps/0/for",
            "/rollout/steps/1",
            "/rollout/steps/2/for",
            "/rollout/steps/2/fro",
            "/rollout/steps/2/weight",
            "/rollout/steps/3/for",
            "/rollout/steps/3/weight",
        ],
        "{found:#?}"
    );
}

#[test]
fn a_rollout_that_nobody_could_start_is_refused() {
    let mut file = with_rollout(json!({}));
    file.as_object_mut().unwrap().remove("instrumentation");
    refused(file.clone(), "/rollout", "without /instrumentation");
    // A section that is none is one problem, not two.
    file["instrumentation"] = json!(8888);
    assert_eq!(problems(file).len(), 1);
}

#[test]
fn a_timeout_that_the_judge_would_wait_for_too_long_is_refused() {
    let mut file = with_rollout(json!({}));
    file["proxy-client"] = json!({"to-main-and-canary": {"timeout": "2m"}});
    assert!(read(file.clone()).rollout.is_some());
    file["proxy-client"]["to-main-and-canary"]["timeout"] = json!(121);
    let path = "/proxy-client/to-main-and-canary/timeout";
    refused(file.clone(), path, "use \"2m\" at most");
    file.as_object_mut().unwrap().remove("rollout");
    assert_eq!(read(file).main.client.timeout, Duration::from_secs(121));
}

/// A rollout of which everything is written but the steps would silently be none.
#[test]
fn what_needs_steps_is_refused_without_them() {
    for (key, value) in [
        ("on-inconclusive", json!("pause")),
        ("max-extension", json!("2h")),
        ("dry-run", json!(true)),
        ("metrics", json!(["errors"])),
        ("error-ratio", json!(2)),
        ("false-rollback-probability", json!(0.05)),
        ("latency-margin", json!(0)),
        ("latency-slack", json!(0)),
        ("safe-ratio", json!(3)),
        ("acceptable-failure-rate", json!(0)),
        ("failure", json!("non-2xx")),
    ] {
        for steps in [Value::Null, json!([])] {
            let found = problems(with(json!({"rollout": {"steps": steps, key: value}})));
            assert_eq!(found.len(), 1, "{found:#?}");
            assert_eq!(found[0].0, format!("/rollout/{key}"));
            assert!(
                found[0]
                    .1
                    .contains("has no effect: there is no rollout without steps"),
                "{found:#?}"
            );
        }
        // Steps that cannot be used are one problem, not two.
        let file = json!({"rollout": {"steps": "5 %", key: value}});
        assert_eq!(problems(with(file)).len(), 1);
    }
}

#[test]
fn the_state_is_kept_in_a_file_if_one_is_named() {
    let config = read(with(json!({"state": {"file": "var/state.json"}})));
    let path = PathBuf::from("var/state.json");
    assert_eq!(config.state, Some(StateFile { path }));
    assert_eq!(read(with(json!({"state": {"file": ""}}))).state, None);
    refused(
        with(json!({"state": {"redis": "redis://127.0.0.1"}})),
        "/state/redis",
        "not in this version",
    );
    refused(
        with(json!({"state": {"fil": "x"}})),
        "/state/fil",
        "\"file\"",
    );
    refused(with(json!({"state": "x"})), "/state", "an object");
}

#[test]
fn the_effective_config_is_complete_and_reads_back_as_the_same() {
    let config = read(with(json!({
        "canary-target": "http://canary.example",
        "sidecar-url": "http://sidecar.example",
        "circuit-breaker": {"failure-rate-threshold": "33.3%", "errors": "5xx",
            "main": {"slow-call-rate-threshold": 1, "slow-call-duration": "250ms"}},
        "fallback": {"replay": "failures", "statuses": ["503"], "static": {"body": "sorry"}},
        "sidecar": {"body": "none", "cache": {"key": ["path"], "ttl": 5}},
        "traffic": {"weight": 0.5, "sticky": {"by": "cookie", "max-age": "1h"}},
        "override": {"trusted": ["10.0.0.0/8"]},
        "rollout": {"steps": [{"weight": "33.3%", "for": "250s"}], "latency-slack": 0, "safe-ratio": 2.5},
        "instrumentation": {},
        "log": {"format": "text", "access": "json"},
        "tracing": {"endpoint": "http://collector.example:4318", "sample": "0.5%"},
        "state": {"file": "state.json"}
    })));
    let shown = &config.effective;
    for (path, value) in [
        ("/circuit-breaker/failure-rate-threshold", json!(33.3)),
        ("/circuit-breaker/slow-call-rate-threshold", json!(0)),
        ("/circuit-breaker/slow-call-duration", json!(0)),
        ("/circuit-breaker/minimum-number-of-calls", json!(20)),
        ("/circuit-breaker/window", json!(30)),
        ("/circuit-breaker/wait-open", json!(30)),
        ("/circuit-breaker/max-wait-open", json!(300)),
        ("/circuit-breaker/permitted-half-open", json!(5)),
        ("/circuit-breaker/failure", json!("5xx")),
        ("/circuit-breaker/errors", json!("5xx")),
        ("/circuit-breaker/main/slow-call-duration", json!("250ms")),
        ("/circuit-breaker/main/window", json!(30)),
        ("/fallback/replay", json!("failures")),
        (
            "/fallback/methods",
            json!(["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"]),
        ),
        ("/fallback/statuses", json!([503])),
        ("/fallback/max-body", json!("64KiB")),
        ("/fallback/budget", json!(20)),
        ("/fallback/static/status", json!(503)),
        (
            "/fallback/static/content-type",
            json!("text/plain; charset=utf-8"),
        ),
        ("/fallback/static/body", json!("sorry")),
        ("/fallback/static/file", json!("")),
        ("/sidecar/body", json!("none")),
        ("/sidecar/cache/key", json!(["path"])),
        ("/sidecar/cache/ttl", json!(5)),
        ("/sidecar/cache/max-entries", json!(10_000)),
        ("/traffic/weight", json!(0.5)),
        ("/traffic/sticky/by", json!("cookie")),
        ("/traffic/sticky/cookie", json!("canary-router")),
        ("/traffic/sticky/max-age", json!(3600)),
        ("/traffic/sticky/same-site", json!("lax")),
        ("/override/trusted", json!(["10.0.0.0/8"])),
        ("/rollout/steps", json!([{"weight": 33.3, "for": 250}])),
        ("/rollout/on-inconclusive", json!("extend")),
        ("/rollout/max-extension", json!(3600)),
        ("/rollout/metrics", json!(["errors", "latency"])),
        ("/rollout/error-ratio", json!(1.5)),
        ("/rollout/latency-margin", json!(0.1)),
        ("/rollout/latency-slack", json!(0)),
        ("/rollout/safe-ratio", json!(2.5)),
        ("/rollout/failure", json!("5xx")),
        ("/instrumentation/token", json!("")),
        ("/log/format", json!("text")),
        ("/log/access", json!("json")),
        ("/tracing/endpoint", json!("http://collector.example:4318")),
        ("/tracing/sample", json!(0.5)),
        ("/tracing/service-name", json!("canary-router")),
        ("/state/file", json!("state.json")),
    ] {
        assert_eq!(shown.pointer(path), Some(&value), "{path}");
    }
    let again = read(shown.clone());
    assert_eq!(format!("{again:?}"), format!("{config:?}"));
    // What is nobody's default is shown as absent, and is absent when it is read again.
    let config = read(with(json!({"canary-target": "http://canary.example"})));
    assert_eq!(
        config.effective.pointer("/override/trusted"),
        Some(&Value::Null)
    );
    assert_eq!(read(config.effective).trusted_overrides, None);
}

#[test]
fn the_template_believes_everyone() {
    let config = Config::parse("c.json", &serde_json::to_string(&Raw::template()).unwrap());
    let trusted = config.unwrap().trusted_overrides.unwrap();
    for address in [
        "0.0.0.0",
        "255.255.255.255",
        "::",
        "ffff::1",
        "::ffff:1.2.3.4",
    ] {
        let address: std::net::IpAddr = address.parse().unwrap();
        assert!(trusted.iter().any(|network| network.contains(&address)));
    }
}

proptest::proptest! {
    /// Whatever is in the file, reading it ends, with a config or with at least one problem.
    #[test]
    fn no_text_panics(text in "\\PC{0,200}") {
        if let Err(error) = Config::parse("c.json", &text) {
            assert!(!error.problems.is_empty());
        }
    }

    /// Any value at any known place is either taken or refused at that place.
    #[test]
    fn no_value_panics(place in proptest::sample::select(places()), value in "(\\[\\]|\\{\\}|null|true|-?[0-9]{1,25}(\\.[0-9]{1,5})?|\\[?\"[a-z:/@?#.0-9 %]{0,20}\"\\]?)") {
        let mut file = serde_json::to_value(Raw::every_key()).unwrap();
        *file.pointer_mut(&place).unwrap() = serde_json::from_str(&value).unwrap_or(Value::Null);
        let result = Config::parse("c.json", &file.to_string());
        if let Err(error) = result {
            assert!(!error.problems.is_empty());
        }
    }
}

/// Every section and every key, as JSON Pointers.
fn places() -> Vec<String> {
    fn collect(value: &Value, path: &str, places: &mut Vec<String>) {
        for (key, value) in value.as_object().into_iter().flatten() {
            let path = format!("{path}/{key}");
            collect(value, &path, places);
            places.push(path);
        }
        for (i, value) in value.as_array().into_iter().flatten().enumerate() {
            collect(value, &format!("{path}/{i}"), places);
        }
    }
    let mut places = Vec::new();
    collect(
        &serde_json::to_value(Raw::every_key()).unwrap(),
        "",
        &mut places,
    );
    assert!(places.contains(&"/rollout/steps/0/for".to_owned()));
    places
}

#[test]
fn where_the_schema_is_may_stand_first_and_is_no_key() {
    for place in [json!("./config.schema.json"), json!(""), json!(null)] {
        let config = read(with(json!({ "$schema": place })));
        assert_eq!(config.effective.get("$schema"), None);
    }
    refused(with(json!({"$schema": 5})), "/$schema", "a string");
    refused(
        with(json!({"log": {"$schema": "x"}})),
        "/log/$schema",
        "unknown key",
    );
}

#[test]
fn what_is_off_may_say_so() {
    let mut file = minimal();
    file["traffic"] = json!({"sticky": "off"});
    file["sidecar"] = json!({"cache": "off"});
    file["tracing"] = json!("off");
    let config = read(file.clone());
    assert!(config.traffic.sticky.is_none() && config.tracing.is_none());
    file["fallback"] = json!("off");
    refused(file.clone(), "/fallback", "an object");
    file["fallback"] = json!(null);
    file["traffic"] = json!({"sticky": "on"});
    refused(file, "/traffic/sticky", "an object");
}
