//! The instrumentation port as a stranger tries it: what is described is there and nothing else, and who may
//! change something.

use serde_json::{Value, json};

use crate::support::*;

pub const WEIGHT: &str = "/traffic/weight";
pub const ALIAS: &str = "/api/canary/weight";
const TOKEN: &str = "a-token-0123456789";

pub async fn router(config: Value) -> (Upstream, Upstream, Router) {
    let main = Upstream::named("main", 200).await;
    let canary = Upstream::named("canary", 500).await;
    let mut file = json!({
        "main-target": main.url(), "canary-target": canary.url(),
        "rollout": {"steps": [{"weight": 5, "for": "1h"}, {"weight": 50, "for": "1h"}]}
    });
    merge(&mut file, config);
    (main, canary, Router::start(file))
}

/// A request as it is written here; with a `Host` if `headers`, lines that end in `\r\n`, have none.
pub async fn ask(
    router: &Router,
    method: &str,
    target: &str,
    headers: &str,
    body: impl AsRef<[u8]>,
) -> Response {
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], router.instrumentation.port()));
    let host = match headers.to_lowercase().contains("host:") {
        true => String::new(),
        false => format!("host: {address}\r\n"),
    };
    let body = body.as_ref();
    let length = match body {
        [] => String::new(),
        body => format!("content-length: {}\r\n", body.len()),
    };
    let head = format!("{method} {target} HTTP/1.1\r\n{host}{headers}{length}\r\n");
    let mut client = Client::connect(address).await;
    client
        .roundtrip(method, [head.as_bytes(), body].concat())
        .await
}

/// What a call could change.
pub async fn state(router: &Router) -> Value {
    let status = ask(router, "GET", "/status", "", "").await;
    let mut status: Value = serde_json::from_slice(&status.message.body).unwrap();
    for moving in ["uptime_seconds", "targets"] {
        status[moving].take();
    }
    status["rollout"]["elapsed_seconds"].take();
    status
}

/// Everything that changes something, with a body that is right.
fn mutations() -> Vec<(String, String, &'static str)> {
    let all = openapi::operations().into_iter();
    let changes = all.filter(|(method, _)| method != "GET");
    let with_bodies = changes.map(|(method, path)| {
        let body = match &*path {
            WEIGHT => r#"{"weight": 7}"#,
            ALIAS => r#"{"old_weight": 0.93, "new_weight": 0.07}"#,
            _ => "",
        };
        (method, path, body)
    });
    with_bodies.collect()
}

#[track_caller]
pub fn error(response: &Response) -> String {
    let answer: Value = serde_json::from_slice(&response.message.body)
        .unwrap_or_else(|_| panic!("not JSON: {}", response.text()));
    openapi::assert_is("Error", &answer);
    answer["error"].as_str().unwrap().to_owned()
}

// ---- what there is

#[tokio::test]
async fn what_is_described_is_answered_as_described_and_there_is_nothing_else() {
    let (_main, _canary, router) = router(json!({})).await;
    let described = openapi::operations();
    let bodies = mutations();
    for (method, path) in &described {
        let body = bodies.iter().find(|(_, known, _)| known == path);
        let body = body.map_or("", |(_, _, body)| body);
        let response = ask(&router, method, path, "", body).await;
        openapi::assert_answers(method, path, &response);
        assert_eq!(response.header("cache-control"), Some("no-store"));
        // A query is no other path.
        let response = ask(&router, method, &format!("{path}?a=b"), "", body).await;
        openapi::assert_answers(method, path, &response);
        if method == "GET" {
            let response = ask(&router, "HEAD", path, "", "").await;
            assert_eq!(response.status, 200);
            openapi::assert_answers("HEAD", path, &response);
        }
    }

    let nothing = ask(&router, "GET", "/nothing", "", "").await;
    assert_eq!(nothing.status, 404);
    openapi::assert_answers("GET", "/nothing", &nothing);
    let said = error(&nothing);
    let (_, listed) = said.split_once("see ").unwrap();
    let mut listed: Vec<&str> = listed.split(", ").collect();
    listed.sort_unstable();
    let mut paths = openapi::paths();
    paths.sort_unstable();
    assert_eq!(listed, paths);
    for path in [
        "/status/",
        "//status",
        "/Status",
        "/rollout",
        "/rollout/reset",
        "/%73tatus",
    ] {
        for method in ["GET", "POST"] {
            assert_eq!(
                ask(&router, method, path, "", "").await.status,
                404,
                "{path}"
            );
        }
    }
}

#[tokio::test]
async fn another_method_is_told_which_one_is_right_and_changes_nothing() {
    let (_main, _canary, router) = router(json!({})).await;
    let before = state(&router).await;
    for (right, path) in openapi::operations() {
        for method in [
            "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "post",
        ] {
            if method == right || method == "HEAD" && right == "GET" {
                continue;
            }
            let response = ask(&router, method, &path, "", r#"{"weight": 9}"#).await;
            assert_eq!(response.status, 405, "{method} {path}");
            openapi::assert_answers(method, &path, &response);
            let allowed = if right == "GET" { "GET, HEAD" } else { &right };
            assert_eq!(response.header("allow"), Some(allowed), "{method} {path}");
            assert_eq!(response.header("access-control-allow-origin"), None);
        }
    }
    assert_eq!(state(&router).await, before);
}

// ---- who may

/// Limits used up, breaker open, weight 5, nothing under way: each call would change something, or be told why not.
async fn guarded(instrumentation: Value) -> (Upstream, Upstream, Router) {
    let (main, canary, router) = router(json!({
        "traffic": {"weight": 5},
        "circuit-breaker": {
            "error-limit-canary": 2, "failure-rate-threshold": 50, "minimum-number-of-calls": 2,
            "wait-open": "1h", "max-wait-open": "1h"
        },
        "instrumentation": instrumentation
    }))
    .await;
    for _ in 0..2 {
        assert_eq!(
            get(router.address, "/", "x-canary: true\r\n").await.status,
            500
        );
    }
    soon(async {
        loop {
            let now = state(&router).await;
            if now["breakers"]["canary"] == "open" && now["limits"]["errors_remaining"] == 0 {
                break;
            }
        }
    })
    .await;
    (main, canary, router)
}

/// With these headers nothing that changes anything is taken, and nothing changes.
async fn all_refused(router: &Router, headers: &str, status: u16) {
    let before = state(router).await;
    for (method, path, body) in mutations() {
        let response = ask(router, &method, &path, headers, body).await;
        assert_eq!(response.status, status, "{method} {path} {headers}");
        openapi::assert_answers(&method, &path, &response);
        let said = error(&response);
        assert!(!said.contains(TOKEN), "{said}");
        let challenge = response.header("www-authenticate");
        assert_eq!(challenge.is_some(), status == 401, "{challenge:?}");
    }
    assert_eq!(state(router).await, before, "{headers}");
    for (method, path) in openapi::operations() {
        if method == "GET" {
            let response = ask(router, &method, &path, headers, "").await;
            assert_eq!(response.status, 200, "{path} {headers}");
        }
    }
}

/// With these headers all of them are.
async fn all_taken(router: &Router, headers: &str) {
    for (method, path, body) in mutations() {
        let response = ask(router, &method, &path, headers, body).await;
        let is_taken = matches!(response.status, 200 | 409);
        assert!(is_taken, "{method} {path} {headers}: {}", response.text());
        openapi::assert_answers(&method, &path, &response);
    }
}

const STRANGERS: [&str; 7] = [
    "origin: http://evil.example\r\n",
    "origin: null\r\n",
    "origin: http://127.0.0.1:1\r\n",
    "origin: \r\n",
    "sec-fetch-site: cross-site\r\n",
    "sec-fetch-site: same-site\r\n",
    "sec-fetch-site: same-origin\r\nsec-fetch-site: cross-site\r\n",
];

#[tokio::test]
async fn without_a_token_this_machine_may_and_no_page_of_another_site() {
    let (_main, _canary, router) = guarded(json!({})).await;
    let port = router.instrumentation.port();
    for headers in STRANGERS {
        all_refused(&router, headers, 403).await;
    }
    // A name that a stranger has pointed at this machine.
    for headers in [
        "host: evil.example\r\n".to_owned(),
        format!("host: evil.example:{port}\r\norigin: http://evil.example:{port}\r\n"),
        format!("host: evil.example:{port}\r\nsec-fetch-site: same-origin\r\n"),
        format!("host: 10.0.0.1:{port}\r\n"),
        "host: \r\n".into(),
        format!("host: 127.0.0.1:{port}\r\norigin: http://localhost:{port}\r\n"),
    ] {
        all_refused(&router, &headers, 403).await;
    }
    for headers in [
        String::new(),
        "sec-fetch-site: same-origin\r\n".into(),
        "sec-fetch-site: none\r\n".into(),
        format!("origin: http://127.0.0.1:{port}\r\n"),
        format!("host: localhost:{port}\r\norigin: http://localhost:{port}\r\n"),
        format!("host: [::1]:{port}\r\n"),
        format!("authorization: Bearer {TOKEN}\r\n"),
    ] {
        all_taken(&router, &headers).await;
    }
}

#[tokio::test]
async fn with_a_token_who_has_it_may_and_nobody_else() {
    let (_main, _canary, router) = guarded(json!({"token": TOKEN})).await;
    let right = format!("authorization: Bearer {TOKEN}\r\n");
    for headers in [
        String::new(),
        "authorization: Bearer a-token-0123456780\r\n".into(),
        "authorization: Bearer\r\n".into(),
        format!("authorization: Bearer {TOKEN}0\r\n"),
        format!("authorization: Bearer {}\r\n", TOKEN.to_uppercase()),
        format!("authorization: Basic {TOKEN}\r\n"),
        format!("authorization: {TOKEN}\r\n"),
        format!("authorization: Bearer wrong\r\n{right}"),
        format!("x-authorization: Bearer {TOKEN}\r\ncookie: token={TOKEN}\r\n"),
    ] {
        all_refused(&router, &headers, 401).await;
    }
    for headers in STRANGERS {
        all_refused(&router, &format!("{headers}{right}"), 403).await;
    }
    all_taken(&router, &right).await;
    all_taken(&router, &format!("authorization: bearer {TOKEN}\r\n")).await;
    all_taken(&router, &format!("host: router.example\r\n{right}")).await;
}

#[tokio::test]
async fn a_port_that_others_can_reach_takes_nothing_without_a_token() {
    let (_main, _canary, router) = guarded(json!({"host": "0.0.0.0"})).await;
    for headers in [
        "",
        "host: localhost\r\n",
        "sec-fetch-site: same-origin\r\n",
        "authorization: Bearer a-token-0123456789\r\n",
    ] {
        all_refused(&router, headers, 403).await;
    }
    let (_main, _canary, router) = guarded(json!({"host": "0.0.0.0", "token": TOKEN})).await;
    all_refused(&router, "", 401).await;
    all_taken(&router, &format!("authorization: Bearer {TOKEN}\r\n")).await;
}

#[tokio::test]
async fn no_token_is_shown_anywhere_right_or_wrong() {
    const WRONG: &str = "another-token-98765";
    let main = Upstream::named("main", 200).await;
    let program = Program::start(json!({
        "main-target": main.url(), "canary-target": main.url(),
        "instrumentation": {"token": TOKEN}, "log": {"level": "debug"}
    }))
    .await;
    let mut shown = String::new();
    for token in [TOKEN, WRONG] {
        let headers = format!("host: a\r\nauthorization: Bearer {token}\r\n");
        for (method, path) in openapi::operations() {
            let mut client = Client::connect(program.instrumentation).await;
            let head = format!("{method} {path} HTTP/1.1\r\n{headers}content-length: 2\r\n\r\n[]");
            shown += &client.roundtrip(&method, head).await.text();
        }
    }
    let log = [program.process.stdout(), program.process.stderr()].concat();
    assert!(!log.is_empty() && shown.contains("canary_router_weight_ratio"));
    for (what, text) in [("log", log.join("\n")), ("answers", shown)] {
        for token in [TOKEN, WRONG] {
            assert!(!text.contains(token), "{what}: {text}");
        }
    }
}
