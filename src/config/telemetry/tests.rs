use serde_json::{Value, json};

use super::*;
use crate::{
    config::{
        Config, Endpoint,
        tests::{problems, read, refused, with},
    },
    policy::Weight,
};

fn with_tracing(section: Value) -> Value {
    with(json!({"tracing": section}))
}

fn endpoint(url: &str) -> Endpoint {
    let config = read(with_tracing(json!({"endpoint": url})));
    config.tracing.unwrap().endpoint
}

#[test]
fn how_and_of_what_lines_are_written_is_read() {
    let log = |section: Value| read(with(json!({"log": section}))).log;
    let default = log(json!({}));
    assert_eq!(
        (default.format, default.access),
        (LogFormat::Json, AccessLog::Off)
    );
    assert_eq!(log(json!({"format": "json", "access": "off"})), default);
    assert_eq!(log(json!({"format": "", "access": null})), default);
    let log = log(json!({"format": "text", "access": "json"}));
    assert_eq!((log.format, log.access), (LogFormat::Text, AccessLog::Json));
}

#[test]
fn a_log_that_cannot_work_is_refused_where_it_is_written() {
    for (section, path, hint) in [
        (
            json!({"format": "txt"}),
            "/log/format",
            "\"txt\" is not known; did you mean \"text\"? the words here are json, text",
        ),
        (json!({"format": 1}), "/log/format", "expected a string"),
        (
            json!({"access": "on"}),
            "/log/access",
            "the words here are off, json",
        ),
        (
            json!({"access": "text"}),
            "/log/access",
            "the words here are off, json",
        ),
        (json!({"access": true}), "/log/access", "expected a string"),
        (json!({"acces": "json"}), "/log/acces", "\"access\""),
    ] {
        refused(with(json!({"log": section})), path, hint);
    }
    let all = json!({"log": {"level": "loud", "format": "loud", "access": "loud"}});
    assert_eq!(problems(with(all)).len(), 3);
}

#[test]
fn an_endpoint_alone_gets_the_other_defaults() {
    let config = read(with_tracing(json!({"endpoint": "http://127.0.0.1:4318"})));
    let tracing = config.tracing.unwrap();
    assert_eq!(tracing.sample, Weight::ALL);
    assert_eq!(tracing.service_name, "canary-router");
    assert_eq!(
        tracing.endpoint,
        Endpoint {
            tls: false,
            host: "127.0.0.1".into(),
            port: 4318,
            host_header: "127.0.0.1:4318".parse().unwrap(),
            path: "/v1/traces".parse().unwrap(),
        }
    );
}

#[test]
fn how_much_is_traced_and_under_which_name_is_read() {
    let tracing = |sample: Value| {
        let section = json!({"endpoint": "http://c", "sample": sample, "service-name": " edge "});
        let config = read(with_tracing(section));
        config.tracing.unwrap()
    };
    assert_eq!(tracing(json!("0.25%")).sample.hundredths(), 25);
    // Zero is none, not the default: who sends a `traceparent` is still traced.
    assert_eq!(tracing(json!(0)).sample, Weight::NONE);
    assert_eq!(tracing(json!(0)).service_name, "edge");
}

#[test]
fn spans_are_posted_below_the_base_url() {
    for (url, tls, host, port, path) in [
        ("http://c", false, "c", 80, "/v1/traces"),
        ("http://c/", false, "c", 80, "/v1/traces"),
        ("https://c", true, "c", 443, "/v1/traces"),
        ("https://c:4318/otlp/", true, "c", 4318, "/otlp/v1/traces"),
        (
            "http://[::1]:4318/a/b",
            false,
            "::1",
            4318,
            "/a/b/v1/traces",
        ),
        ("http://c/?key=1", false, "c", 80, "/v1/traces?key=1"),
        ("http://c/a?", false, "c", 80, "/a/v1/traces"),
        ("http://unix:4318", false, "unix", 4318, "/v1/traces"),
    ] {
        let endpoint = endpoint(url);
        assert_eq!(
            (
                endpoint.tls,
                &*endpoint.host,
                endpoint.port,
                endpoint.path.as_str()
            ),
            (tls, host, port, path),
            "{url}"
        );
    }
    assert_eq!(endpoint("http://[::1]:4318").host_header, "[::1]:4318");
}

#[test]
fn an_endpoint_that_cannot_work_is_refused_with_what_to_write() {
    for (url, hint) in [
        ("localhost:4318", "http://"),
        ("127.0.0.1:4318", "http://host:port"),
        ("grpc://c:4317", "neither http:// nor https://"),
        ("http://", "not an absolute URL"),
        ("http://c:0", "port 0"),
        ("http://c:otlp", "port is not a number"),
        ("http://user:hunter2@c", "password"),
        ("http://c/#x", "fragment"),
        (
            "http://c:4318/v1/traces",
            "ends with /v1/traces, which is appended to it; take that out",
        ),
        ("http://c:4318/a/v1/traces/?key=hunter2", "take that out"),
        (
            "http://unix:/run/otel.sock",
            "write \"http://127.0.0.1:4318\"",
        ),
        ("unix:/run/otel.sock", "is a unix socket"),
    ] {
        let section = json!({"endpoint": url});
        refused(with_tracing(section.clone()), "/tracing/endpoint", hint);
        let found = problems(with_tracing(section));
        assert!(!format!("{found:?}").contains("hunter2"), "{found:?}");
    }
}

#[test]
fn a_section_that_cannot_work_is_refused_where_it_is_written() {
    let endpoint = "http://c";
    for (section, path, hint) in [
        (json!({}), "/tracing/endpoint", "\"http://127.0.0.1:4318\""),
        (json!({"sample": 5}), "/tracing/endpoint", "is missing"),
        (
            json!({"endpoint": 4318}),
            "/tracing/endpoint",
            "expected a string",
        ),
        (
            json!({"endpoint": endpoint, "sample": 100.5}),
            "/tracing/sample",
            "0 to 100",
        ),
        (
            json!({"endpoint": endpoint, "sample": 0.001}),
            "/tracing/sample",
            "two decimals",
        ),
        (
            json!({"endpoint": endpoint, "sampel": 5}),
            "/tracing/sampel",
            "\"sample\"",
        ),
        (
            json!({"endpoint": endpoint, "service_name": "x"}),
            "/tracing/service_name",
            "\"service-name\"",
        ),
        (json!("on"), "/tracing", "an object"),
        (
            json!({"endpoint": "", "sample": 5}),
            "/tracing/sample",
            "has no effect",
        ),
        (
            json!({"endpoint": "", "service-name": "x"}),
            "/tracing/service-name",
            "has no effect",
        ),
    ] {
        refused(with_tracing(section), path, hint);
    }
}

#[test]
fn nothing_is_traced_where_nobody_is_to_be_told() {
    let tracing = |section: Value| read(with_tracing(section)).tracing;
    for section in [
        json!(null),
        json!("off"),
        json!({"endpoint": ""}),
        json!({"endpoint": " ", "sample": 100, "service-name": "canary-router"}),
    ] {
        assert_eq!(tracing(section), None);
    }
}

#[test]
fn the_query_of_an_endpoint_is_shown_nowhere() {
    let config = read(with_tracing(json!({"endpoint": "https://c/?key=hunter2"})));
    let shown = config.effective.pointer("/tracing/endpoint");
    assert_eq!(shown, Some(&json!("https://c/?***")));
    let again = config.effective.to_string();
    assert!(!again.contains("hunter2"), "{again}");
    let none = read(with(json!({}))).effective;
    assert_eq!(none.pointer("/tracing"), Some(&Value::Null));
    let _reads_back: Config = read(none);
}
