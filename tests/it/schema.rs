//! The schema of the configuration file as another program reads it: it takes whatever the router takes, and knows
//! every key.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::Command,
};

use canary_router::config::Config;
use serde_json::{Value, json};

use crate::support::*;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const SCHEMA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/config.schema.json");

fn repository(file: &str) -> String {
    fs::read_to_string(format!("{ROOT}/{file}")).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// What the program prints.
fn printed(arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_canary-router"));
    let output = command.args(arguments).output().unwrap();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{output:?}"
    );
    String::from_utf8(output.stdout).unwrap()
}

fn check_jsonschema() -> Command {
    Command::new(format!("{ROOT}/target/tools/bin/check-jsonschema"))
}

/// What the schema says against these files, by their numbers; not there where it says nothing.
fn problems(files: &[Value]) -> BTreeMap<usize, String> {
    let folder = Folder::new();
    for (number, file) in files.iter().enumerate() {
        folder.write(&format!("{number}.json"), file.to_string());
    }
    let mut command = check_jsonschema();
    command
        .current_dir(&folder.0)
        .args(["--schemafile", SCHEMA, "-o", "json"]);
    command.args((0..files.len()).map(|number| format!("{number}.json")));
    let output = command
        .output()
        .expect("tests/run installs check-jsonschema");
    let said: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {output:?}"));
    assert!(
        said.get("parse_errors")
            .is_none_or(|errors| *errors == json!([])),
        "{said}"
    );
    let errors = said["errors"].as_array().unwrap();
    let of = |error: &Value| {
        let number = error["filename"]
            .as_str()
            .unwrap()
            .strip_suffix(".json")
            .unwrap();
        (
            number.parse().unwrap(),
            format!("{}: {}", error["path"], error["message"]),
        )
    };
    errors.iter().map(of).collect()
}

#[test]
fn what_is_shipped_is_what_is_printed() {
    for (arguments, file) in [
        (&["schema"][..], "docs/config.schema.json"),
        (&["schema", "--markdown"], "docs/configuration.md"),
    ] {
        let same = repository(file) == printed(arguments);
        let arguments = arguments.join(" ");
        assert!(same, "write it anew: cargo run -- {arguments} >{file}");
    }
}

#[test]
fn it_is_a_schema() {
    let output = check_jsonschema()
        .args(["--check-metaschema", SCHEMA])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let schema: Value = serde_json::from_str(&repository("docs/config.schema.json")).unwrap();
    assert_eq!(
        schema["$schema"],
        "https://json-schema.org/draft/2020-12/schema"
    );
}

#[test]
fn every_file_that_is_shown_or_shipped_is_valid() {
    let mut files = vec![json!({})];
    for file in ["config.template.json", "sample/compose/config.json"] {
        files.push(serde_json::from_str(&repository(file)).unwrap());
    }
    for file in fs::read_dir(format!("{ROOT}/docs"))
        .unwrap()
        .chain(fs::read_dir(ROOT).unwrap())
    {
        let file = file.unwrap().path();
        if file.extension().is_none_or(|extension| extension != "md") {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        for block in text.split("```json\n").skip(1) {
            let block = block.split("```").next().unwrap();
            // Others are answers, or parts of a file.
            if let Ok(block) = serde_json::from_str::<Value>(block)
                && block.get("main-target").is_some()
            {
                files.push(block);
            }
        }
    }
    assert!(files.len() > 5, "{}", files.len());
    // What an editor writes at its top, and what the router prints.
    files[1]["$schema"] = json!("./config.schema.json");
    let printed = Config::parse("c.json", &files[1].to_string())
        .unwrap()
        .effective;
    files.push(printed);
    assert_eq!(problems(&files), BTreeMap::new());
}

#[test]
fn what_is_wrong_is_found() {
    let wrong = [
        json!([]),
        json!(null),
        json!({"main-taget": "http://main.example"}),
        json!({"$schema": 5}),
        json!({"main-target": "main.example:8080"}),
        json!({"canary-target": "ftp://canary.example"}),
        json!({"sidecar-url": "http://sidecar.example/#fragment"}),
        json!({"main-header-host": "http://main.example"}),
        json!({"trim-prefix": "foo"}),
        json!({"main-sidecar-status": 700}),
        json!({"circuit-breaker": {"error-limit-canery": 5}}),
        json!({"circuit-breaker": {"error-limit-canary": -1}}),
        json!({"circuit-breaker": {"error-limit-canary": 1.5}}),
        json!({"circuit-breaker": {"error-limit-canary": "many"}}),
        json!({"circuit-breaker": {"failure": "4xx"}}),
        json!({"circuit-breaker": {"failure-rate-threshold": "101 %%"}}),
        json!({"circuit-breaker": {"main": {"window": "2h 5m"}}}),
        json!({"circuit-breaker": {"main": {"error-limit-canary": 5}}}),
        json!({"circuit-breaker": "off"}),
        json!({"fallback": {"replay": "always"}}),
        json!({"fallback": {"methods": ["get"]}}),
        json!({"fallback": {"methods": "GET"}}),
        json!({"fallback": {"statuses": [200]}}),
        json!({"fallback": {"max-body": "64 kilobytes"}}),
        json!({"fallback": {"budget": 101}}),
        json!({"sidecar": {"cache": {"key": ["header:"]}}}),
        json!({"sidecar": {"cache": "on"}}),
        json!({"traffic": {"weight": "half"}}),
        json!({"traffic": {"sticky": {"by": "cookie:a b"}}}),
        json!({"traffic": {"sticky": {"secure": "yes"}}}),
        json!({"override": {"trusted": ["localhost"]}}),
        json!({"override": {"trusted": [null]}}),
        json!({"rollout": {"steps": [{"weight": 5}]}}),
        json!({"rollout": {"steps": [{"weight": 0, "for": "10m"}]}}),
        json!({"rollout": {"steps": [{"weight": 5, "for": 0.5}]}}),
        json!({"rollout": {"steps": [{"weight": 5, "for": "10m", "if": true}]}}),
        json!({"rollout": {"steps": "5 %"}}),
        json!({"rollout": {"metrics": ["latency"]}}),
        json!({"rollout": {"error-ratio": "1,5"}}),
        json!({"rollout": {"false-rollback-probability": 1}}),
        json!({"router-server": {"port": 65536}}),
        json!({"router-server": {"port": "http"}}),
        json!({"router-server": {"workers": 1025}}),
        json!({"router-server": {"max-header-bytes": 1000000}}),
        json!({"router-server": {"read-timeout": true}}),
        json!({"router-server": {"read-timeout": "5 parsecs"}}),
        json!({"router-server": {"http2": 1}}),
        json!({"proxy-client": {"to-sidecar": {"protocol": "http3"}}}),
        json!({"proxy-client": {"to-sidecar": {"tls": {"ca": ["a.pem"]}}}}),
        json!({"instrumentation": {"token": 5}}),
        json!({"log": {"level": "loud"}}),
        json!({"tracing": {"sample": "5 per cent"}}),
        json!({"state": {"redis": "redis://127.0.0.1"}}),
        json!({"state": "state.json"}),
    ];
    let found = problems(&wrong);
    for (number, wrong) in wrong.iter().enumerate() {
        assert!(found.contains_key(&number), "{wrong} is valid");
        // Else the router would be the one that is wrong.
        assert!(
            Config::parse("c.json", &wrong.to_string()).is_err(),
            "{wrong}"
        );
    }
}

/// Every section and key of a document, as JSON Pointers.
fn places(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    for (key, value) in value.as_object().into_iter().flatten() {
        let path = format!("{path}/{key}");
        places(value, &path, found);
        for (i, item) in value.as_array().into_iter().flatten().enumerate() {
            places(item, &format!("{path}/{i}"), found);
        }
        found.insert(path);
    }
}

/// A file in which every section is on, so that no key is without effect, and little else.
fn full() -> Value {
    json!({
        "main-target": "https://main.example",
        "canary-target": "http://canary.example",
        "sidecar-url": "https://sidecar.example",
        "circuit-breaker": {
            "failure-rate-threshold": 50, "slow-call-rate-threshold": 50, "slow-call-duration": "1s",
            "main": {"failure-rate-threshold": 50}
        },
        "fallback": {"static": {"status": 503}},
        "sidecar": {"cache": {"key": ["path"], "ttl": "1s"}},
        "traffic": {"sticky": {"by": "cookie"}},
        "override": {},
        "rollout": {"steps": [{"weight": 5, "for": "10m"}, {"weight": 100, "for": "10m"}]},
        "router-server": {"host": "127.0.0.1", "port": 1345, "trusted-proxies": ["10.0.0.0/8"], "tls": {}},
        "proxy-client": {"to-main-and-canary": {"tls": {}}, "to-sidecar": {"tls": {}}},
        "instrumentation": {},
        "reload": {},
        "log": {},
        "tracing": {"endpoint": "http://collector.example:4318"},
        "state": {}
    })
}

/// Every key and section.
fn keys() -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    let template = serde_json::from_str(&repository("config.template.json")).unwrap();
    places(&template, "", &mut keys);
    places(&full(), "", &mut keys);
    assert!(
        keys.len() > 110 && keys.contains("/rollout/steps/1/for"),
        "{keys:#?}"
    );
    keys
}

/// The file with this there.
fn with(mut file: Value, key: &str, value: Value) -> Value {
    let (section, name) = key.rsplit_once('/').unwrap();
    file.pointer_mut(section).unwrap()[name] = value;
    file
}

/// Values in every shape that any key takes, and in some that none does.
fn values() -> Vec<Value> {
    let mut values: Vec<Value> = serde_json::from_str(
        r#"[null, true, 0, 1, 5, 204, 8080, -1, 0.5, 1.5, [], {}, ["errors"], ["errors", "latency"],
            ["10.0.0.0/8", "::1", "::ffff:1.2.3.4/128"], [502, "503", " 504 "], ["GET", "PURGE", "M-SEARCH"],
            ["header:X-User-Id", "cookie:sid", "method", "path", "query", "client-ip"],
            [{"weight": "5%", "for": 60}, {"weight": 100, "for": "1.5h"}], [{"weight": 0.01, "for": 1}]]"#,
    )
    .unwrap();
    let texts = [
        "",
        "0",
        "+5",
        " 20 ",
        "1.5",
        ".5",
        "5.",
        "1e-3",
        " 0.5 % ",
        "250ms",
        " 2 m ",
        "1.5h",
        "64KiB",
        "2 MB",
        "true",
        " false ",
        "off",
        "none",
        "full",
        "5xx",
        "non-2xx",
        "json",
        "text",
        "http1",
        "h2",
        "auto",
        "connect",
        "failures",
        "extend",
        "pause",
        "advance",
        "rollback",
        "lax",
        "strict",
        "INFO",
        "Warning",
        " trace ",
        "panic",
        "cookie",
        "client-ip",
        "header:X-User-Id",
        "cookie:sid",
        "/foo",
        "a b",
        "text/html; charset=utf-8",
        "::1",
        "main.example",
        "[::1]:80",
        " HTTPS://main.example:8443/base?key=1 ",
        "http://[::1]:8080/",
        "http://unix:/run/app.sock:/base",
        "0123456789abcdef",
    ];
    values.extend(texts.map(Value::from));
    values
}

#[test]
fn whatever_the_router_takes_is_valid() {
    let values = values();
    let mut files = Vec::new();
    for key in keys() {
        // Only where a key is about it: each file's parsing reads the system's CAs once for each target of TLS.
        let mut base = full();
        for (target, tls) in [
            ("main-target", "to-main-and-canary/tls"),
            ("sidecar-url", "to-sidecar/tls"),
        ] {
            if !key.contains(tls) {
                base[target] = json!("http://plain.example");
            }
        }
        for value in &values {
            let file = with(base.clone(), &key, value.clone());
            if Config::parse("c.json", &file.to_string()).is_ok() {
                files.push((key.clone(), file));
            }
        }
        // Of files there would have to be one.
        let is_taken = files.iter().any(|(taken, _)| *taken == key);
        let needs_more = key.contains("/tls/") || key.ends_with("file") || key == "/router-server";
        assert!(
            is_taken || needs_more,
            "none of the values is one for {key}"
        );
    }
    assert!(files.len() > 500, "{}", files.len());
    let (keys, files): (Vec<_>, Vec<_>) = files.into_iter().unzip();
    let found = problems(&files);
    let found: Vec<_> = found
        .iter()
        .map(|(number, why)| (&keys[*number], why))
        .collect();
    assert!(found.is_empty(), "{found:#?}");
}

/// What has the wrong shape is found for every key.
#[test]
fn no_key_takes_just_anything() {
    let full = full();
    let mut files = Vec::new();
    for key in keys() {
        for value in [json!({"unknown": 1}), json!([["unknown"]])] {
            files.push(with(full.clone(), &key, value));
        }
    }
    let found = problems(&files);
    for (number, file) in files.iter().enumerate() {
        assert!(found.contains_key(&number), "valid: {file:#}");
    }
}
