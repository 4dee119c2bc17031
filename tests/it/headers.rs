//! Which headers pass, which end here, and what is added.

use serde_json::json;

use crate::support::*;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

/// What an upstream gets of a GET with these header lines.
async fn forwarded(headers: &str) -> Received {
    let upstream = Upstream::named("up", 200).await;
    let router = router_to(&upstream.url());
    assert_eq!(get(router.address, "/", headers).await.status, 200);
    upstream.only()
}

/// What a client gets of a response with these header lines.
async fn passed_on(headers: &'static str) -> Response {
    let upstream = Upstream::start(move |_| answer(200, headers, "up")).await;
    let router = router_to(&upstream.url());
    let response = get(router.address, "/", "").await;
    assert_eq!((response.status, &*response.text()), (200, "up"));
    response
}

// ---- hop by hop

#[tokio::test]
async fn hop_by_hop_headers_of_a_request_end_here() {
    let seen = forwarded(
        "connection: keep-alive\r\nkeep-alive: timeout=5\r\nproxy-connection: keep-alive\r\n\
         proxy-authorization: Basic eA==\r\nproxy-authenticate: Basic\r\nte: gzip\r\n\
         upgrade: foo\r\nauthorization: Basic eQ==\r\nx-other: stays\r\n",
    )
    .await;
    for name in [
        "keep-alive",
        "proxy-connection",
        "proxy-authorization",
        "proxy-authenticate",
        "te",
        "upgrade",
    ] {
        assert_eq!(seen.all(name), [""; 0], "{name}");
    }
    assert_eq!(seen.header("authorization"), Some("Basic eQ=="));
    assert_eq!(seen.header("x-other"), Some("stays"));
}

#[tokio::test]
async fn hop_by_hop_headers_of_a_response_end_here() {
    let response = passed_on(
        "connection: keep-alive\r\nkeep-alive: timeout=5\r\nproxy-connection: keep-alive\r\n\
         proxy-authenticate: Basic\r\nupgrade: h2\r\nwww-authenticate: Basic\r\n\
         x-other: stays\r\n",
    )
    .await;
    for name in [
        "keep-alive",
        "proxy-connection",
        "proxy-authenticate",
        "upgrade",
    ] {
        assert_eq!(response.message.all(name), [""; 0], "{name}");
    }
    assert_eq!(response.header("www-authenticate"), Some("Basic"));
    assert_eq!(response.header("x-other"), Some("stays"));
}

#[tokio::test]
async fn what_connection_names_in_a_request_ends_here() {
    let seen = forwarded(
        "connection: X-One , x-two,, keep-alive\r\nconnection: x-three\r\n\
         x-one: 1\r\nx-one: 1\r\nX-Two: 2\r\nx-three: 3\r\nx-four: 4\r\n",
    )
    .await;
    for name in ["x-one", "x-two", "x-three"] {
        assert_eq!(seen.all(name), [""; 0], "{name}");
    }
    assert_eq!(seen.header("x-four"), Some("4"));
    for value in seen.all("connection") {
        assert!(!value.contains("x-"), "{value}");
    }
}

#[tokio::test]
async fn what_connection_names_in_a_response_ends_here() {
    let response = passed_on(
        "connection: X-One, close\r\nconnection: x-two\r\nx-one: 1\r\nx-two: 2\r\nx-four: 4\r\n",
    )
    .await;
    for name in ["x-one", "x-two", "connection"] {
        assert_eq!(response.message.all(name), [""; 0], "{name}");
    }
    assert_eq!(response.header("x-four"), Some("4"));
}

#[tokio::test]
async fn framing_and_host_cannot_be_named_away_in_a_request() {
    let upstream = Upstream::named("up", 200).await;
    let router = router_to(&upstream.url());
    let named = "connection: host, content-length, transfer-encoding, x-gone\r\nx-gone: 1\r\n";
    let response = request(router.address, "POST", "/", named, "body").await;
    assert_eq!(response.status, 200);
    let mut client = Client::connect(router.address).await;
    let chunks = format!(
        "POST / HTTP/1.1\r\nhost: h\r\n{named}transfer-encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n"
    );
    assert_eq!(client.roundtrip("POST", chunks).await.status, 200);

    let [with_length, in_chunks] = &upstream.seen()[..] else {
        panic!("{:?}", upstream.seen());
    };
    assert_eq!(with_length.header("content-length"), Some("4"));
    assert_eq!(in_chunks.header("transfer-encoding"), Some("chunked"));
    for seen in [with_length, in_chunks] {
        assert_eq!(seen.header("host"), Some(&*upstream.address.to_string()));
        assert_eq!(seen.header("x-gone"), None);
        assert_eq!(seen.text(), "body");
    }
}

#[tokio::test]
async fn framing_cannot_be_named_away_in_a_response() {
    let response = passed_on("connection: content-length, x-gone\r\nx-gone: 1\r\n").await;
    assert_eq!(response.header("content-length"), Some("2"));
    assert_eq!(response.header("x-gone"), None);
}

/// Otherwise a client could unsay what we say about it.
#[tokio::test]
async fn what_we_add_cannot_be_named_away() {
    let seen = forwarded("connection: x-forwarded-for\r\nx-forwarded-for: 192.0.2.1\r\n").await;
    assert_eq!(seen.header("x-forwarded-for"), Some("127.0.0.1"));
}

/// It is for the hop before us, so it is not for us to go by.
#[tokio::test]
async fn an_x_canary_that_connection_names_does_not_decide_and_ends_here() {
    let (main, canary) = (
        Upstream::named("main", 200).await,
        Upstream::named("canary", 200).await,
    );
    let router = Router::start(json!({"main-target": main.url(), "canary-target": canary.url()}));
    let headers = "connection: x-canary\r\nx-canary: true\r\n";
    assert_eq!(get(router.address, "/", headers).await.text(), "main");
    assert_eq!(main.only().header("x-canary"), None);
    assert_eq!(
        get(router.address, "/", "x-canary: true\r\n").await.text(),
        "canary"
    );
    assert_eq!(canary.only().header("x-canary"), Some("true"));
}

#[tokio::test]
async fn te_trailers_stays_and_other_codings_go() {
    for (te, expected) in [
        ("te: trailers\r\n", Some("trailers")),
        ("te: trailers\r\nconnection: te\r\n", Some("trailers")),
        (
            "te: gzip;q=0.5, trailers\r\nconnection: TE, close\r\n",
            Some("trailers"),
        ),
        ("te: gzip\r\nconnection: te\r\n", None),
    ] {
        assert_eq!(forwarded(te).await.header("te"), expected, "{te}");
    }
}

// ---- what we set

#[tokio::test]
async fn the_client_address_is_appended_to_x_forwarded_for() {
    for (sent, expected) in [
        ("", "127.0.0.1"),
        ("X-Forwarded-For: 192.0.2.1\r\n", "192.0.2.1, 127.0.0.1"),
        (
            "x-forwarded-for: 192.0.2.1, 2001:db8::1\r\nx-forwarded-for: unknown\r\n",
            "192.0.2.1, 2001:db8::1, unknown, 127.0.0.1",
        ),
    ] {
        let seen = forwarded(sent).await;
        assert_eq!(seen.all("x-forwarded-for").join(", "), expected);
    }
}

#[tokio::test]
async fn host_is_the_targets_unless_another_is_set() {
    let (main, canary) = (
        Upstream::named("main", 200).await,
        Upstream::named("canary", 200).await,
    );
    let sidecar = Upstream::named("", 200).await;
    let mut config = json!({
        "main-target": main.url(),
        "canary-target": canary.url(),
        "sidecar-url": sidecar.url()
    });
    for (main_host, canary_host) in [("", ""), ("main.example", "canary.example:8443")] {
        config["main-header-host"] = main_host.into();
        config["canary-header-host"] = canary_host.into();
        let router = Router::start(config.clone());
        assert_eq!(get(router.address, "/", "").await.text(), "canary");
        assert_eq!(
            get(router.address, "/", "x-canary: false\r\n").await.text(),
            "main"
        );

        let expected = |set: &str, upstream: &Upstream| match set {
            "" => upstream.address.to_string(),
            set => set.to_owned(),
        };
        for (upstream, host) in [
            (&main, expected(main_host, &main)),
            (&canary, expected(canary_host, &canary)),
            (&sidecar, sidecar.address.to_string()),
        ] {
            assert_eq!(upstream.seen().pop().unwrap().header("host"), Some(&*host));
        }
    }
}

/// No port where the URL has none: that is how the service's own clients write it.
#[tokio::test]
async fn host_has_the_port_that_the_target_has() {
    let upstream = Upstream::named("up", 200).await;
    let port = upstream.address.port();
    let router = router_to(&format!("http://localhost:{port}"));
    assert_eq!(get(router.address, "/", "").await.status, 200);
    assert_eq!(
        upstream.only().header("host"),
        Some(&*format!("localhost:{port}"))
    );
}

#[tokio::test]
async fn nothing_is_invented_for_an_upstream() {
    let seen = forwarded("").await;
    let mut names: Vec<_> = seen
        .head
        .lines()
        .skip(1)
        .filter_map(|line| line.split_once(':'))
        .map(|(name, _)| name.to_ascii_lowercase())
        .filter(|name| name != "connection")
        .collect();
    names.sort();
    let expected = [
        "host",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-port",
        "x-forwarded-proto",
        "x-request-id",
    ];
    assert_eq!(names, expected, "{}", seen.head);
}

#[tokio::test]
async fn a_user_agent_passes_and_an_absent_one_stays_absent() {
    assert_eq!(forwarded("").await.header("user-agent"), None);
    let seen = forwarded("user-agent: curl/7.88 (x; y)\r\n").await;
    assert_eq!(seen.header("user-agent"), Some("curl/7.88 (x; y)"));
    let seen = forwarded("user-agent:\r\n").await;
    assert_eq!(seen.header("user-agent"), Some(""));
}

// ---- what passes

const ODD_VALUES: [(&str, &str); 8] = [
    ("x-empty", ""),
    ("x-spaces", "a  b   c"),
    ("x-tab", "a\tb"),
    ("x-list", "a, b,,c ,\"d, e\""),
    ("x-quotes", "\"it's \\\"quoted\\\"\"; q=\"1"),
    ("x-colon", ": http://example.org:80/?a=b&c=%0d%0a"),
    ("x-punctuation", "!#$%&'*+-.^_`|~()<>@[]{}?="),
    ("date", "Sun, 06 Nov 1994 08:49:37 GMT"),
];

#[tokio::test]
async fn header_values_are_not_touched() {
    let lines: String = ODD_VALUES
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    let upstream = Upstream::start({
        let lines = lines.clone();
        move |_| answer(200, &lines, "up")
    })
    .await;
    let router = router_to(&upstream.url());
    let response = get(router.address, "/", &lines).await;
    let seen = upstream.only();
    for (name, value) in ODD_VALUES {
        assert_eq!(seen.header(name), Some(value), "request: {name}");
        assert_eq!(response.header(name), Some(value), "response: {name}");
    }
}

#[tokio::test]
async fn obs_text_in_header_values_survives_both_ways() {
    let upstream = ByHand::start().await;
    let router = router_to(&upstream.url());
    let mut client = Client::connect(router.address).await;
    // Latin-1, UTF-8, and every byte from 0x80 up.
    let mut line = b"x-text: \xe4\xf6\xfc / \xc3\xa4 / ".to_vec();
    line.extend(0x80..=0xff);
    line.extend_from_slice(b" end\r\n");
    let holds = |head: &[u8]| head.windows(line.len()).any(|part| part == line);

    let message = |start: &str| [start.as_bytes(), &line, b"\r\n"].concat();
    client
        .send(message("GET / HTTP/1.1\r\nhost: client.example\r\n"))
        .await;
    let mut service = upstream.accept().await;
    let head = service.raw_head().await;
    assert!(holds(&head), "{}", head.escape_ascii());
    service
        .send(message("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n"))
        .await;
    let head = client.raw_head().await;
    assert!(holds(&head), "{}", head.escape_ascii());
}

#[tokio::test]
async fn headers_that_come_several_times_keep_their_number_and_order() {
    let cookies =
        "set-cookie: a=1; Path=/\r\nset-cookie: b=2, c; HttpOnly\r\nset-cookie: a=1; Path=/\r\n";
    let response = passed_on(cookies).await;
    assert_eq!(
        response.message.all("set-cookie"),
        ["a=1; Path=/", "b=2, c; HttpOnly", "a=1; Path=/"]
    );
    let seen = forwarded("cookie: a=1\r\nx-n: 1\r\ncookie: b=2\r\nx-n: 3\r\nx-n: 2\r\n").await;
    assert_eq!(seen.all("cookie"), ["a=1", "b=2"]);
    assert_eq!(seen.all("x-n"), ["1", "3", "2"]);
}

#[tokio::test]
async fn redirects_are_passed_on_and_not_followed() {
    let elsewhere = Upstream::named("elsewhere", 200).await;
    let location = format!("{}/a//b/../c?d=%2F#e", elsewhere.url());
    for status in [301, 302, 303, 307, 308] {
        let upstream = Upstream::start({
            let location = location.clone();
            move |_| answer(status, &format!("location: {location}\r\n"), "moved")
        })
        .await;
        let router = router_to(&upstream.url());
        let response = get(router.address, "/", "").await;
        assert_eq!((response.status, &*response.text()), (status, "moved"));
        assert_eq!(response.header("location"), Some(&*location));
    }
    assert_eq!(elsewhere.count(), 0);
}

#[tokio::test]
async fn hundreds_of_headers_survive_both_ways() {
    for count in [200, 300] {
        let lines: String = (0..count).map(|i| format!("x-{i}: {i}\r\n")).collect();
        let upstream = Upstream::start({
            let lines = lines.clone();
            move |_| answer(200, &lines, "up")
        })
        .await;
        let router = router_to(&upstream.url());
        let response = get(router.address, "/", &lines).await;
        assert_eq!(response.status, 200);
        let seen = upstream.only();
        for i in 0..count {
            let value = i.to_string();
            assert_eq!(seen.header(&format!("x-{i}")), Some(&*value));
            assert_eq!(response.header(&format!("x-{i}")), Some(&*value));
        }
    }
}

// ---- what is refused

/// Sends this on a connection of its own; the upstream must not hear of it.
async fn refused(bytes: &str) -> (u16, bool) {
    let upstream = Upstream::named("up", 200).await;
    let router = router_to(&upstream.url());
    let mut client = Client::connect(router.address).await;
    let response = client.roundtrip("GET", bytes).await;
    assert_eq!(upstream.connections(), (0, 0), "{bytes:.200}");
    (response.status, response.complete)
}

#[tokio::test]
async fn a_host_that_is_missing_double_or_invalid_is_400() {
    for hosts in [
        "",
        "host: a.example\r\nhost: a.example\r\n",
        "host: a.example\r\nhost: b.example\r\n",
        "host: a.example, b.example\r\n",
        "host: a b\r\n",
        "host: a/b\r\n",
        "host: a?b\r\n",
        "host: user@a.example\r\n",
        "host: a.example:port\r\n",
        "host: a.example:99999\r\n",
        "host: [::1\r\n",
        "host: http://a.example\r\n",
    ] {
        let request = format!("GET / HTTP/1.1\r\n{hosts}x-a: 1\r\n\r\n");
        assert_eq!(refused(&request).await, (400, true), "{hosts:?}");
    }
}

#[tokio::test]
async fn hosts_of_every_valid_kind_are_accepted() {
    let upstream = Upstream::named("up", 200).await;
    let router = router_to(&upstream.url());
    let mut client = Client::connect(router.address).await;
    for host in [
        "a",
        "a.example",
        "A.Example:80",
        "a.example:",
        "127.0.0.1:8080",
        "[::1]",
        "[2001:db8::1]:443",
        "xn--bcher-kva.example",
        "under_score.example",
        "",
    ] {
        let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n");
        assert_eq!(
            client.roundtrip("GET", request).await.status,
            200,
            "{host:?}"
        );
    }
    let request = "GET / HTTP/1.0\r\n\r\n";
    assert_eq!(client.roundtrip("GET", request).await.status, 200);
}

#[tokio::test]
async fn connect_and_trace_are_405() {
    for start in [
        "CONNECT a.example:443 HTTP/1.1\r\nhost: a.example:443",
        "CONNECT / HTTP/1.1\r\nhost: a.example",
        "TRACE / HTTP/1.1\r\nhost: a.example",
        "TRACE / HTTP/1.1\r\nhost: a.example\r\nx-canary: true",
    ] {
        let (status, complete) = refused(&format!("{start}\r\n\r\n")).await;
        assert_eq!((status, complete), (405, true), "{start}");
    }
}

#[tokio::test]
async fn a_head_of_over_64_kib_is_431() {
    let large = format!("x-large: {}\r\n", "x".repeat(70_000));
    let many: String = (0..700)
        .map(|i| format!("x-{i}: {}\r\n", "x".repeat(100)))
        .collect();
    for headers in [large, many] {
        let request = format!("GET / HTTP/1.1\r\nhost: h\r\n{headers}\r\n");
        assert_eq!(refused(&request).await, (431, true));
    }
}

/// `max-header-bytes` counts the request line too.
#[tokio::test]
async fn a_request_target_of_70_kb_is_414() {
    let target = "x".repeat(70_000);
    let request = format!("GET /{target} HTTP/1.1\r\nhost: h\r\n\r\n");
    assert_eq!(refused(&request).await, (414, true));
}

#[tokio::test]
async fn a_head_of_just_under_64_kib_passes() {
    let upstream = ByHand::start().await;
    let router = router_to(&upstream.url());
    let value = "x".repeat(63_000);
    let mut client = Client::connect(router.address).await;
    client
        .send(format!(
            "GET / HTTP/1.1\r\nhost: h\r\nx-large: {value}\r\n\r\n"
        ))
        .await;
    let mut service = upstream.accept().await;
    assert!(service.head().await.contains(&value));
    service.send(OK).await;
    assert_eq!(client.response("GET").await.unwrap().status, 200);
}

#[tokio::test]
async fn max_header_bytes_moves_the_border() {
    let upstream = Upstream::named("up", 200).await;
    for (limit, size, status) in [
        ("8KiB", 7_000, 200),
        ("8KiB", 9_000, 431),
        ("128KiB", 120_000, 200),
    ] {
        let config = json!({"router-server": {"max-header-bytes": limit}});
        let router = router_with(&upstream.url(), config);
        let headers = format!("x-large: {}\r\n", "x".repeat(size));
        let response = get(router.address, "/", &headers).await;
        assert_eq!(response.status, status, "{size} bytes, limit {limit}");
    }
}
