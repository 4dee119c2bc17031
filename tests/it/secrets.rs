//! What nobody may read: it is in no output, wherever it was written and whether or not it can be used.

use std::ffi::OsString;

use canary_router::config::{Config, ConfigError, Source};
use serde_json::{Value, json};

use crate::support::*;

/// Secrets, and texts with one in them, in every shape that there is; first those that can be used.
const SECRETS: [(&str, &[&str]); 7] = [
    (
        "/instrumentation/token",
        &[
            "s3cret-s3cret-s3cret",
            " s3cret-s3cret-s3cret\n",
            "s3cret",
            "s3cret in four words",
        ],
    ),
    ("/main-target", &URLS),
    ("/canary-target", &URLS),
    ("/sidecar-url", &URLS),
    ("/tracing/endpoint", &URLS),
    ("/main-header-host", &HOSTS),
    ("/canary-header-host", &HOSTS),
];
const HOSTS: [&str; 2] = ["user:s3cret@main.example", "user:s3cret/@main.example"];
const URLS: [&str; 13] = [
    "http://127.0.0.1:1/?key=s3cret",
    "http://127.0.0.1:1/base?s3cret",
    "https://127.0.0.1:1?a=/s3cret?@s3cret",
    "http://unix:/run/a.sock:/base?key=s3cret",
    "http://127.0.0.1:1/v1/traces?key=s3cret",
    "http://user:s3cret@127.0.0.1:1/",
    "http://s3cret@127.0.0.1:1/base?key=s3cret",
    "http://user:s3/s3cret@127.0.0.1:1/",
    "http://user:s3cret@s3cret@127.0.0.1:1/#fragment",
    "ftp://user:s3cret@127.0.0.1:1/?key=s3cret",
    "user:s3cret@127.0.0.1:1",
    "http:/user:s3cret@127.0.0.1:1/",
    "http://127.0.0.1:99999/?key=s3cret",
];

fn minimal() -> Value {
    json!({
        "main-target": "http://127.0.0.1:1",
        "canary-target": "http://127.0.0.1:1",
        "router-server": {"host": "127.0.0.1", "port": 1},
        "instrumentation": {"host": "127.0.0.1", "port": 2}
    })
}

/// One in which everything is on, so that no key is without effect.
fn full() -> Value {
    let mut file = minimal();
    merge(
        &mut file,
        json!({
            "main-target": "https://127.0.0.1:1",
            "sidecar-url": "https://127.0.0.1:1",
            "circuit-breaker": {"failure-rate-threshold": 50, "main": {"failure-rate-threshold": 50}},
            "traffic": {"sticky": {"by": "cookie"}},
            "rollout": {"steps": [{"weight": 5, "for": "10m"}]},
            "tracing": {"endpoint": "http://127.0.0.1:1"}
        }),
    );
    file
}

/// The file with this in it.
fn with(mut file: Value, path: &str, value: Value) -> Value {
    let value = path.rsplit('/').fold(value, |value, key| match key {
        "" => value,
        key => json!({ key: value }),
    });
    merge(&mut file, value);
    file
}

fn variable(path: &str) -> String {
    let path = path
        .trim_start_matches('/')
        .replace('/', "__")
        .replace('-', "_");
    format!("CANARY_ROUTER_{}", path.to_uppercase())
}

/// Both ways to write it.
fn read(file: Value, path: &str, text: &str) -> [Result<Config, ConfigError>; 2] {
    let folder = Folder::new();
    let source = Source::File(folder.write("config.json", file.to_string()));
    let variable = (OsString::from(variable(path)), OsString::from(text));
    [
        Config::parse("config.json", &with(file, path, text.into()).to_string()),
        source.load_with([variable]),
    ]
}

/// Everything that can be printed of it.
fn printed(read: &Result<Config, ConfigError>) -> String {
    match read {
        Ok(config) => format!("{config:?}{config:#?}{:#}", config.effective),
        Err(error) => format!("{error}{error:?}{error:#?}"),
    }
}

/// Every key that takes a text, with its path.
fn texts() -> Vec<String> {
    fn collect(value: &Value, path: &str, found: &mut Vec<String>) {
        match value {
            Value::Object(keys) => keys
                .iter()
                .for_each(|(key, value)| collect(value, &format!("{path}/{key}"), found)),
            Value::String(_) => found.push(path.to_owned()),
            _ => {}
        }
    }
    let template = concat!(env!("CARGO_MANIFEST_DIR"), "/config.template.json");
    let template = serde_json::from_str(&std::fs::read_to_string(template).unwrap()).unwrap();
    let mut found = Vec::new();
    collect(&template, "", &mut found);
    assert!(found.len() > 40, "{found:?}");
    found
}

#[test]
fn no_secret_is_in_what_is_printed_of_a_configuration() {
    for (path, texts) in SECRETS {
        for text in texts {
            for read in read(minimal(), path, text) {
                let printed = printed(&read);
                assert!(!printed.contains("s3cret"), "{path} {text}: {printed}");
            }
        }
        // Else only errors were looked at.
        let [in_file, in_environment] = read(minimal(), path, texts[0]);
        let can_be_used = texts != HOSTS;
        assert_eq!(in_file.is_ok(), can_be_used, "{path}");
        assert_eq!(in_environment.is_ok(), can_be_used, "{path}");
    }
}

#[tokio::test]
async fn no_secret_is_in_what_check_says() {
    for (path, texts) in SECRETS {
        for text in texts {
            let folder = Folder::new();
            folder.write(
                "file.json",
                with(minimal(), path, (*text).into()).to_string(),
            );
            folder.write("config.json", minimal().to_string());
            let variable = variable(path);
            for (environment, arguments) in [
                (vec![], &["check", "-c", "file.json"][..]),
                (vec![(&*variable, *text)], &["check"][..]),
            ] {
                let mut process = Process::start_with_environment(&environment, &folder, arguments);
                process.ended().await;
                let said = [process.stdout(), process.stderr()].concat().join("\n");
                assert!(said.contains(path.rsplit('/').next().unwrap()), "{said}");
                assert!(!said.contains("s3cret"), "{said}");
            }
        }
    }
}

/// So that a key which comes to be a secret is in `SECRETS`, and can be in a file.
#[test]
fn every_other_text_is_shown_and_every_secret_can_be_in_a_file() {
    let keys = texts();
    let mut hidden = Vec::new();
    for path in &keys {
        let shown = read(full(), path, "m4rker").map(|read| printed(&read).contains("m4rker"));
        match shown {
            [true, true] => {}
            [false, false] => hidden.push(path.as_str()),
            _ => panic!("{path} is shown from one place only: {shown:?}"),
        }
    }
    assert_eq!(hidden, ["/instrumentation/token"]);
    for path in hidden {
        assert!(SECRETS.iter().any(|(secret, _)| *secret == path), "{path}");
        assert!(keys.contains(&format!("{path}-file")), "{path}");
    }
}

#[test]
fn a_secret_in_a_file_is_not_in_what_is_printed() {
    let folder = Folder::new();
    let path = "/instrumentation/token-file";
    for content in ["s3cret-s3cret-s3cret\n", "s3cret", "s3cret in four words"] {
        let file = folder.write("token", content);
        let file = file.to_str().unwrap();
        for read in read(minimal(), path, file) {
            let printed = printed(&read);
            assert!(
                printed.contains("token-file") && !printed.contains("s3cret"),
                "{printed}"
            );
            assert_eq!(read.is_ok(), content.ends_with('\n'));
        }
    }
}

/// Who puts it a level too high, or into a list, has it shown to nobody either.
#[test]
fn a_secret_in_the_wrong_place_is_not_quoted() {
    for (path, value) in [
        ("/instrumentation", json!("s3cret")),
        (
            "/tracing",
            json!("http://127.0.0.1:4318?key=s3cret, expected an s3cret"),
        ),
        ("/instrumentation/token", json!(["s3cret"])),
        ("/instrumentation/token", json!({"s3cret": "s3cret"})),
        ("/main-target", json!(["http://127.0.0.1:1?key=s3cret"])),
    ] {
        let mut file = minimal();
        match path.rsplit_once('/').unwrap() {
            ("", key) => file[key] = value,
            _ => file = with(file, path, value),
        }
        let printed = printed(&Config::parse("config.json", &file.to_string()));
        let place = format!("config.json: {path}");
        assert!(
            printed.contains(&place) && !printed.contains("s3cret"),
            "{printed}"
        );
    }
    let folder = Folder::new();
    let source = Source::File(folder.write("config.json", minimal().to_string()));
    for name in [
        "CANARY_ROUTER_INSTRUMENTATION",
        "CANARY_ROUTER_TOKEN",
        "CANARY_ROUTER_S",
    ] {
        let printed = printed(&source.load_with([(name.into(), "s3cret".into())]));
        assert!(
            printed.contains(name) && !printed.contains("s3cret"),
            "{printed}"
        );
    }
}

#[tokio::test]
async fn a_router_that_runs_says_no_secret() {
    let (main, sidecar) = (
        Upstream::named("main", 200).await,
        Upstream::start(asked).await,
    );
    let (proxy, metrics) = (Port::reserve(), Port::reserve());
    let folder = Folder::new();
    let mut file = minimal();
    merge(
        &mut file,
        json!({
            "canary-target": format!("{}/base?key=s3cret", main.url()),
            "sidecar-url": format!("{}/?key=s3cret", sidecar.url()),
            "router-server": {"port": proxy.number(), "workers": 1},
            "instrumentation": {"port": metrics.number()},
            "log": {"level": "trace", "access": "json"}
        }),
    );
    folder.write("config.json", file.to_string());
    let main_url = format!("{}?key=s3cret", main.url());
    let collector = format!("http://{}/?key=s3cret", Upstream::nobody().await);
    let environment = [
        ("CANARY_ROUTER_MAIN_TARGET", &*main_url),
        (
            "CANARY_ROUTER_INSTRUMENTATION__TOKEN",
            "s3cret-s3cret-s3cret",
        ),
        ("CANARY_ROUTER_TRACING__ENDPOINT", &collector),
    ];
    let mut process = Process::start_with_environment(&environment, &folder, &[]);
    process.listens(proxy.address).await;
    process.listens(metrics.address).await;
    let mut said = String::new();
    for target in ["true", "false"] {
        let head = format!("x-canary: {target}\r\n");
        assert_eq!(get(proxy.address, "/", &head).await.text(), "main");
    }
    assert_eq!(get(proxy.address, "/", "").await.status, 200);
    for path in ["/status", "/metrics", "/decisions", "/health/ready", "/"] {
        let response = get(metrics.address, path, "").await;
        assert_eq!(response.status, 200, "{path}");
        said.push_str(&response.text());
    }
    let token = "authorization: Bearer s3cret-s3cret-s3cret\r\n";
    for (token, status) in [(token, 200), ("authorization: Bearer s3cret\r\n", 401)] {
        let mut client = Client::connect(metrics.address).await;
        let head = format!("POST /breaker/reset HTTP/1.1\r\nhost: 127.0.0.1\r\n{token}\r\n");
        let response = client.roundtrip("POST", head).await;
        assert_eq!(response.status, status, "{}", response.text());
        said.push_str(&response.text());
    }
    // The upstreams have got theirs.
    assert!(
        main.seen()
            .iter()
            .all(|request| request.target().contains("s3cret"))
    );
    process.signal("TERM");
    assert_eq!(process.ended().await.code(), Some(0));
    said.extend(process.stdout());
    said.extend(process.stderr());
    assert!(said.contains("?***"), "the URLs are among it: {said}");
    let place = said
        .find("s3cret")
        .map(|at| &said[at.saturating_sub(200)..]);
    assert_eq!(place, None);
}
