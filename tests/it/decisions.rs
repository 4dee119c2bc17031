//! Who decides: the header, the sidecar, or nobody.

use serde_json::json;

use crate::support::*;

fn answered(response: &Response) -> (u16, String) {
    (response.status, response.text())
}

fn by(name: &str) -> (u16, String) {
    (200, name.into())
}

#[tokio::test]
async fn without_header_and_sidecar_it_is_main() {
    let (main, canary) = (
        Upstream::named("main", 200).await,
        Upstream::named("canary", 200).await,
    );
    let router = Router::start(json!({"main-target": main.url(), "canary-target": canary.url()}));
    let response = get(router.address, "/", "").await;
    assert_eq!(answered(&response), by("main"));
    assert_eq!(canary.count(), 0);
    router.counts(&reason("", "main"), 1.0).await;
}

#[tokio::test]
async fn without_a_sidecar_the_header_decides_all_the_same() {
    let (main, canary) = (
        Upstream::named("main", 200).await,
        Upstream::named("canary", 200).await,
    );
    // An empty URL is how old files say that there is no sidecar.
    let router = Router::start(json!({
        "main-target": main.url(), "canary-target": canary.url(), "sidecar-url": ""
    }));
    let response = get(router.address, "/", "x-canary: true\r\n").await;
    assert_eq!(answered(&response), by("canary"));
    let response = get(router.address, "/", "x-canary: false\r\n").await;
    assert_eq!(answered(&response), by("main"));
    let response = get(router.address, "/", "x-canary: maybe\r\n").await;
    assert_eq!(answered(&response), by("main"));
    for (why, target) in [
        ("Routed via X-Canary header value: true", "canary"),
        ("Routed via X-Canary header value: false", "main"),
        ("", "main"),
    ] {
        router.counts(&reason(why, target), 1.0).await;
    }
}

#[tokio::test]
async fn the_two_exact_header_values_decide_and_the_sidecar_is_not_asked() {
    let trio = Trio::named(json!({})).await;
    // The sidecar would say the opposite each time.
    let response = get(
        trio.router.address,
        "/",
        "X-Canary: true\r\nx-sidecar: 204\r\n",
    )
    .await;
    assert_eq!(answered(&response), by("canary"));
    assert_eq!(trio.canary.only().header("x-canary"), Some("true"));
    let response = get(
        trio.router.address,
        "/",
        "x-canary: false\r\nx-sidecar: 200\r\n",
    )
    .await;
    assert_eq!(answered(&response), by("main"));
    assert_eq!(trio.main.only().header("x-canary"), Some("false"));
    assert_eq!(trio.seen(), (1, 1, 0));
    trio.router
        .counts(
            &reason("Routed via X-Canary header value: true", "canary"),
            1.0,
        )
        .await;
    trio.router
        .counts(
            &reason("Routed via X-Canary header value: false", "main"),
            1.0,
        )
        .await;
}

#[tokio::test]
async fn any_other_header_value_is_as_if_absent_and_is_forwarded() {
    let trio = Trio::named(json!({})).await;
    let values = [
        "True",
        "TRUE",
        "False",
        "1",
        "0",
        "",
        "yes",
        "truefalse",
        "\"true\"",
        "true, false",
        "true;q=1",
    ];
    for (i, value) in values.iter().enumerate() {
        let response = get(
            trio.router.address,
            "/",
            &format!("x-canary: {value}\r\nx-sidecar: 204\r\n"),
        )
        .await;
        assert_eq!(answered(&response), by("main"), "{value}");
        let response = get(trio.router.address, "/", &format!("x-canary: {value}\r\n")).await;
        assert_eq!(answered(&response), by("canary"), "{value}");
        assert_eq!(trio.seen(), (i + 1, i + 1, 2 * (i + 1)), "{value}");
    }
    for upstream in [&trio.main, &trio.canary] {
        let seen = upstream.seen();
        let forwarded: Vec<_> = seen.iter().map(|request| request.all("x-canary")).collect();
        assert_eq!(forwarded, values.map(|value| vec![value]));
    }
    let each = values.len() as f64;
    trio.router
        .counts(&reason("Sidecar returns status code 204", "main"), each)
        .await;
    trio.router
        .counts(&reason("Sidecar returns status code 200", "canary"), each)
        .await;
}

#[tokio::test]
async fn of_several_header_lines_the_first_one_decides_and_all_are_forwarded() {
    let trio = Trio::named(json!({})).await;
    for (values, sidecar, name) in [
        (["true", "false"], 204, "canary"),
        (["false", "true"], 200, "main"),
        (["maybe", "true"], 204, "main"),
        (["maybe", "false"], 200, "canary"),
    ] {
        let [first, second] = values;
        let response = get(
            trio.router.address,
            "/",
            &format!("x-canary: {first}\r\nx-canary: {second}\r\nx-sidecar: {sidecar}\r\n"),
        )
        .await;
        assert_eq!(answered(&response), by(name), "{values:?}");
        let upstream = match name {
            "main" => &trio.main,
            _ => &trio.canary,
        };
        let seen = upstream.seen().pop().unwrap();
        assert_eq!(seen.all("x-canary"), values);
    }
    assert_eq!(trio.seen(), (2, 2, 2));
}

#[tokio::test]
async fn a_header_that_connection_names_does_not_decide_and_is_stripped() {
    let trio = Trio::named(json!({})).await;
    for (connection, value, sidecar, name) in [
        ("X-Canary", "true", 204, "main"),
        ("close, x-canary", "true", 204, "main"),
        ("x-canary", "false", 200, "canary"),
    ] {
        let response = get(
            trio.router.address,
            "/",
            &format!("connection: {connection}\r\nx-canary: {value}\r\nx-sidecar: {sidecar}\r\n"),
        )
        .await;
        assert_eq!(answered(&response), by(name), "{connection}");
    }
    assert_eq!(trio.seen(), (2, 1, 3));
    for upstream in [&trio.main, &trio.canary, &trio.sidecar] {
        for request in upstream.seen() {
            assert_eq!(request.header("x-canary"), None);
        }
    }
    trio.router
        .counts(&reason("Sidecar returns status code 204", "main"), 2.0)
        .await;
    trio.router
        .counts(&reason("Sidecar returns status code 200", "canary"), 1.0)
        .await;
}

#[tokio::test]
async fn the_sidecar_says_canary_with_200_and_main_with_anything_else() {
    let trio = Trio::named(json!({})).await;
    let response = get(trio.router.address, "/", "x-sidecar: 200\r\n").await;
    assert_eq!(answered(&response), by("canary"));
    let response = get(trio.router.address, "/", "x-sidecar: 204\r\n").await;
    assert_eq!(answered(&response), by("main"));
    let others = [
        201, 202, 205, 206, 299, 300, 301, 302, 304, 400, 401, 404, 429, 500, 502, 503, 599,
    ];
    for status in others {
        let response = get(
            trio.router.address,
            "/",
            &format!("x-sidecar: {status}\r\n"),
        )
        .await;
        assert_eq!(answered(&response), by("main"), "{status}");
    }
    assert_eq!(
        trio.seen(),
        (others.len() + 1, 1, others.len() + 2),
        "each asked once"
    );
    for (why, target, count) in [
        ("Sidecar returns status code 200", "canary", 1),
        ("Sidecar returns status code 204", "main", 1),
        (
            "Sidecar returns non standard status code",
            "main",
            others.len(),
        ),
        ("Sidecar error", "main", 0),
    ] {
        trio.router.counts(&reason(why, target), count as f64).await;
    }
}

#[tokio::test]
async fn an_unreachable_sidecar_means_main() {
    let (main, canary) = (
        Upstream::named("main", 200).await,
        Upstream::named("canary", 200).await,
    );
    let router = Router::start(json!({
        "main-target": main.url(),
        "canary-target": canary.url(),
        "sidecar-url": format!("http://{}", Upstream::nobody().await)
    }));
    let response = get(router.address, "/", "").await;
    assert_eq!(answered(&response), by("main"));
    assert_eq!(canary.count(), 0);
    router.counts(&reason("Sidecar error", "main"), 1.0).await;
}

#[tokio::test]
async fn the_two_status_codes_of_the_sidecar_can_be_chosen() {
    let trio = Trio::named(json!({
        "main-sidecar-status": 418, "canary-sidecar-status": "299"
    }))
    .await;
    for (status, name) in [
        (299, "canary"),
        (418, "main"),
        (200, "main"),
        (204, "main"),
        (500, "main"),
    ] {
        let response = get(
            trio.router.address,
            "/",
            &format!("x-sidecar: {status}\r\n"),
        )
        .await;
        assert_eq!(answered(&response), by(name), "{status}");
    }
    for (why, target, count) in [
        ("Sidecar returns status code 299", "canary", 1.0),
        ("Sidecar returns status code 418", "main", 1.0),
        ("Sidecar returns non standard status code", "main", 3.0),
    ] {
        trio.router.counts(&reason(why, target), count).await;
    }
}

#[tokio::test]
async fn the_two_status_codes_of_the_sidecar_can_be_swapped() {
    let trio = Trio::named(json!({
        "main-sidecar-status": 200, "canary-sidecar-status": 204
    }))
    .await;
    let response = get(trio.router.address, "/", "x-sidecar: 200\r\n").await;
    assert_eq!(answered(&response), by("main"));
    let response = get(trio.router.address, "/", "x-sidecar: 204\r\n").await;
    assert_eq!(answered(&response), by("canary"));
}

#[tokio::test]
async fn once_the_request_limit_is_used_up_it_is_main_and_the_sidecar_is_not_asked() {
    let trio = Trio::named(json!({"circuit-breaker": {"request-limit-canary": 2}})).await;
    for _ in 0..2 {
        let response = get(trio.router.address, "/", "").await;
        assert_eq!(answered(&response), by("canary"));
    }
    for _ in 0..3 {
        let response = get(trio.router.address, "/", "").await;
        assert_eq!(answered(&response), by("main"));
    }
    assert_eq!(trio.seen(), (3, 2, 2));
    trio.router
        .counts(&reason("Sidecar returns status code 200", "canary"), 2.0)
        .await;
    trio.router
        .counts(&reason("Canary request limit reached", "main"), 3.0)
        .await;
}

#[tokio::test]
async fn once_the_error_limit_is_used_up_it_is_main_and_the_sidecar_is_not_asked() {
    let trio = Trio::start(
        Upstream::named("main", 200).await,
        Upstream::named("canary", 500).await,
        Upstream::start(asked).await,
        json!({"circuit-breaker": {"error-limit-canary": 2}}),
    );
    for _ in 0..2 {
        let response = get(trio.router.address, "/", "").await;
        assert_eq!(answered(&response), (500, "canary".into()));
    }
    for _ in 0..3 {
        let response = get(trio.router.address, "/", "").await;
        assert_eq!(answered(&response), by("main"));
    }
    assert_eq!(trio.seen(), (3, 2, 2));
    trio.router
        .counts(&reason("Canary error limit reached", "main"), 3.0)
        .await;
}

#[tokio::test]
async fn of_two_limits_used_up_the_request_limit_is_the_reason() {
    let trio = Trio::start(
        Upstream::named("main", 200).await,
        Upstream::named("canary", 500).await,
        Upstream::start(asked).await,
        json!({"circuit-breaker": {"error-limit-canary": 1, "request-limit-canary": 1}}),
    );
    assert_eq!(get(trio.router.address, "/", "").await.status, 500);
    let response = get(trio.router.address, "/", "").await;
    assert_eq!(answered(&response), by("main"));
    trio.router
        .counts(&reason("Canary request limit reached", "main"), 1.0)
        .await;
}

#[tokio::test]
async fn a_canary_that_has_all_it_may_have_in_flight_gets_no_more_though_the_sidecar_says_so() {
    let gate = Gate::shut();
    let trio = Trio::start(
        Upstream::named("main", 200).await,
        Upstream::start({
            let gate = gate.clone();
            move |_| [vec![Step::Wait(gate.clone())], answer(200, "", "canary")].concat()
        })
        .await,
        Upstream::start(asked).await,
        json!({"circuit-breaker": {"error-limit-canary": 1}}),
    );
    let mut first = Client::connect(trio.router.address).await;
    first.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    eventually(|| trio.canary.count() == 1).await;
    let response = get(trio.router.address, "/", "").await;
    assert_eq!(answered(&response), by("main"));
    assert_eq!(trio.seen(), (1, 1, 2));
    let demoted = reason(
        "Sidecar returns status code 200, but canary limit reached",
        "main",
    );
    trio.router.counts(&demoted, 1.0).await;
    gate.open();
    assert_eq!(
        answered(&first.response("GET").await.unwrap()),
        by("canary")
    );
}

#[tokio::test]
async fn neither_limit_stops_a_forced_request() {
    let trio = Trio::start(
        Upstream::named("main", 200).await,
        Upstream::named("canary", 500).await,
        Upstream::start(asked).await,
        json!({"circuit-breaker": {"error-limit-canary": 1, "request-limit-canary": 1}}),
    );
    assert_eq!(get(trio.router.address, "/", "").await.status, 500);
    for _ in 0..3 {
        let response = get(trio.router.address, "/", "x-canary: true\r\n").await;
        assert_eq!(answered(&response), (500, "canary".into()));
        let response = get(trio.router.address, "/", "x-canary: false\r\n").await;
        assert_eq!(answered(&response), by("main"));
    }
    assert_eq!(trio.seen(), (3, 4, 1));
    trio.router
        .counts(
            &reason("Routed via X-Canary header value: true", "canary"),
            3.0,
        )
        .await;
    trio.router
        .counts(
            &reason("Routed via X-Canary header value: false", "main"),
            3.0,
        )
        .await;
}

#[tokio::test]
async fn the_health_path_is_answered_by_the_router_whatever_else_holds() {
    let trio = Trio::named(json!({"trim-prefix": "/application"})).await;
    for (target, headers) in [
        ("/application/health", ""),
        ("/application/health?verbose=1", ""),
        ("/application/health", "x-canary: true\r\n"),
    ] {
        let response = get(trio.router.address, target, headers).await;
        assert_eq!(response.message.start_line(), "HTTP/1.1 200 OK");
        assert_eq!(response.text(), "OK");
        assert!(response.complete);
    }
    assert_eq!(trio.seen(), (0, 0, 0));
    // It is not counted as a request for an upstream either; the one after it is.
    get(trio.router.address, "/", "x-canary: true\r\n").await;
    trio.router
        .counts(
            &reason("Routed via X-Canary header value: true", "canary"),
            1.0,
        )
        .await;
    let metrics = trio.router.metrics().await;
    assert_eq!(metrics.value(&reason("", "main")), 0.0);
}

#[tokio::test]
async fn the_health_path_is_proxied_for_other_methods_and_below_a_prefix() {
    let trio = Trio::named(json!({"trim-prefix": "/foo"})).await;
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        let response = request(
            trio.router.address,
            method,
            "/application/health",
            "x-canary: false\r\n",
            "body",
        )
        .await;
        assert_eq!(answered(&response), by("main"), "{method}");
        assert_eq!(
            trio.main.seen().pop().unwrap().start_line(),
            format!("{method} /application/health HTTP/1.1")
        );
    }
    for target in [
        "/foo/application/health",
        "/application/health/",
        "/application//health",
        "/application/healthy",
    ] {
        let response = get(trio.router.address, target, "x-canary: false\r\n").await;
        assert_eq!(answered(&response), by("main"), "{target}");
    }
}

#[tokio::test]
async fn the_prefix_is_taken_off_for_main_canary_and_sidecar_alike() {
    let trio = Trio::named(json!({"trim-prefix": "/foo"})).await;
    let cases = [
        ("/foo/bar", "/bar"),
        ("/foo", "/"),
        ("/foo/", "/"),
        ("/foo?a=1", "/?a=1"),
        ("/foo/bar?a=%2F&b=//", "/bar?a=%2F&b=//"),
        ("/foobar", "/foobar"),
        ("/foo.txt", "/foo.txt"),
        ("/FOO/bar", "/FOO/bar"),
        ("/bar/foo/x", "/bar/foo/x"),
        ("/foo/foo/x", "/foo/x"),
        ("/", "/"),
        // The path is raw: nothing is decoded, cleaned or encoded.
        ("/foo/a%2Fb", "/a%2Fb"),
        ("/foo%2Fbar", "/foo%2Fbar"),
        ("/%66oo/bar", "/%66oo/bar"),
        ("/foo//bar", "//bar"),
        ("/foo/bar//baz", "/bar//baz"),
        ("/foo/../bar", "/../bar"),
        ("/foo/./bar/..", "/./bar/.."),
        ("/foo/%2e%2e/x%00", "/%2e%2e/x%00"),
        ("//foo/bar", "//foo/bar"),
    ];
    for (target, trimmed) in cases {
        for sidecar in [200, 204] {
            let headers = format!("x-sidecar: {sidecar}\r\n");
            assert_eq!(get(trio.router.address, target, &headers).await.status, 200);
        }
        for upstream in [&trio.main, &trio.canary, &trio.sidecar] {
            assert_eq!(upstream.seen().pop().unwrap().target(), trimmed, "{target}");
        }
    }
    assert_eq!(trio.seen(), (cases.len(), cases.len(), 2 * cases.len()));
}

#[tokio::test]
async fn a_prefix_that_ends_in_a_slash_leaves_one_behind() {
    let trio = Trio::named(json!({"trim-prefix": "/foo/"})).await;
    for (target, trimmed) in [("/foo/bar", "/bar"), ("/foo/", "/"), ("/foobar", "/foobar")] {
        get(trio.router.address, target, "x-canary: false\r\n").await;
        assert_eq!(
            trio.main.seen().pop().unwrap().target(),
            trimmed,
            "{target}"
        );
    }
}

#[tokio::test]
async fn each_upstream_gets_the_trimmed_path_behind_its_own_base_path() {
    let (main, canary, sidecar) = (
        Upstream::named("main", 200).await,
        Upstream::named("canary", 200).await,
        Upstream::start(asked).await,
    );
    let router = Router::start(json!({
        "main-target": format!("{}/old/", main.url()),
        "canary-target": format!("{}/new?from=target", canary.url()),
        "sidecar-url": format!("{}/decide/", sidecar.url()),
        "trim-prefix": "/foo"
    }));
    get(router.address, "/foo/bar?a=1", "x-sidecar: 204\r\n").await;
    assert_eq!(main.only().target(), "/old/bar?a=1");
    assert_eq!(sidecar.only().target(), "/decide/bar?a=1");
    get(router.address, "/foo/bar?a=1", "").await;
    assert_eq!(canary.only().target(), "/new/bar?from=target&a=1");
}
