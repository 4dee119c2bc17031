use serde_json::json;

use super::{raw::Raw, url::masked_url, *};

fn minimal() -> Value {
    json!({
        "main-target": "http://main.example",
        "canary-target": "http://canary.example:8080/base?key=1",
        "router-server": {"host": "127.0.0.1", "port": "1345"}
    })
}

fn with(changes: Value) -> Value {
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

fn read(value: Value) -> Config {
    Config::parse("test.json", &value.to_string()).unwrap_or_else(|error| panic!("{error}"))
}

fn problems(value: Value) -> Vec<(String, String)> {
    let error = Config::parse("test.json", &value.to_string()).expect_err("it must be refused");
    assert!(!error.problems.is_empty());
    error
        .problems
        .into_iter()
        .map(|problem| (problem.path, problem.message))
        .collect()
}

#[track_caller]
fn refused(value: Value, path: &str, hint: &str) {
    let problems = problems(value);
    assert!(
        problems
            .iter()
            .any(|(at, message)| at == path && message.contains(hint)),
        "no problem at {path} says {hint:?}: {problems:#?}"
    );
}

#[test]
fn a_minimal_file_gets_every_default_of_the_contract() {
    let config = read(minimal());
    assert_eq!(
        (config.main.host.as_str(), config.main.port),
        ("main.example", 80)
    );
    assert_eq!(config.main.host_header, "main.example");
    assert_eq!(config.main.base_path, "");
    assert_eq!(config.canary.host_header, "canary.example:8080");
    assert_eq!(config.canary.base_path, "/base");
    assert_eq!(config.canary.query.as_deref(), Some("key=1"));
    assert!(config.sidecar.is_none());
    assert!(config.instrumentation.is_none());
    assert_eq!(config.limits, Limits::default());
    assert_eq!(config.replay, Replay::Connect);
    assert_eq!(config.log.level, Level::Info);
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
            workers: 0,
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
        insecure_skip_verify: false,
    };
    assert_eq!(config.main.client, client);
    let config = read(with(json!({"sidecar-url": "https://sidecar.example/ask"})));
    let sidecar = config.sidecar.unwrap();
    assert_eq!(
        sidecar.upstream.client,
        Client {
            timeout: seconds(2),
            ..client
        }
    );
    assert_eq!((sidecar.upstream.tls, sidecar.upstream.port), (true, 443));
    assert_eq!(sidecar.max_body, 1 << 20);
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
            errors: Some(15)
        }
    );
    assert_eq!(
        config.instrumentation,
        Some(Listen {
            host: "0.0.0.0".into(),
            port: 8888
        })
    );
    assert_eq!(config.server.idle_timeout, Duration::from_secs(120));
    assert_eq!(
        config.sidecar.unwrap().upstream.client.timeout,
        Duration::from_secs(2)
    );
    assert!(config.main.client.insecure_skip_verify);
    assert_eq!(config.trim_prefix, "/prefix");
    assert_eq!(
        config.log,
        Log {
            level: Level::Debug,
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
            json!({"fallback": {"replay": "failures"}}),
            "/fallback/replay",
            "\"connect\"",
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
    assert_eq!((config.main.host.as_str(), config.main.port), ("::1", 8080));
    assert_eq!(config.main.host_header, "[::1]:8080");
    assert_eq!(config.main.base_path, "/x/");
    let config = read(with(json!({"main-target": "http://[::1]"})));
    assert_eq!(config.main.port, 80);
}

#[test]
fn null_and_empty_are_absent() {
    let config = read(with(
        json!({"sidecar-url": "", "trim-prefix": null, "log": {"level": null}}),
    ));
    assert!(config.sidecar.is_none());
    assert_eq!(config.log.level, Level::Info);
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

#[test]
fn the_template_in_the_repository_is_every_key_with_its_default() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/config.template.json");
    let shipped: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let expected = serde_json::to_value(Raw::template()).unwrap();
    assert_eq!(shipped, expected, "write this into it:\n{expected:#}");
    Config::load(Path::new(path)).unwrap_or_else(|error| panic!("{error}"));
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
    fn no_value_panics(key in 0usize..15, value in "(\\[\\]|\\{\\}|null|true|-?[0-9]{1,25}(\\.[0-9]{1,5})?|\"[a-z:/@?#.0-9 ]{0,20}\")") {
        let template = serde_json::to_value(Raw::template()).unwrap();
        let key = template.as_object().unwrap().keys().nth(key).unwrap().clone();
        let value: Value = serde_json::from_str(&value).unwrap_or(Value::Null);
        let result = Config::parse("c.json", &with(json!({key: value})).to_string());
        if let Err(error) = result {
            assert!(!error.problems.is_empty());
        }
    }
}
