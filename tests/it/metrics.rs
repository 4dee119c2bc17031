//! What dashboards and probes see on the instrumentation port.

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use canary_router::{COMMIT, VERSION, app::App, clock::now, config::Config};
use serde_json::{Value, json};

use crate::support::*;

/// Every reason of the original that is still one, and where it leads.
const REASONS: [(&str, &str); 10] = [
    ("", "main"),
    ("Routed via X-Canary header value: true", "canary"),
    ("Routed via X-Canary header value: false", "main"),
    ("Canary request limit reached", "main"),
    ("Canary error limit reached", "main"),
    ("Sidecar returns status code 200", "canary"),
    ("Sidecar returns status code 204", "main"),
    (
        "Sidecar returns status code 200, but canary limit reached",
        "main",
    ),
    ("Sidecar returns non standard status code", "main"),
    ("Sidecar error", "main"),
];

/// The lines of a family, with its HELP and TYPE.
fn family(page: &str, name: &str) -> Vec<String> {
    page.lines()
        .filter(|line| {
            let of_family = line
                .strip_prefix("# HELP ")
                .or_else(|| line.strip_prefix("# TYPE "))
                .unwrap_or(line);
            of_family.strip_prefix(name).is_some_and(|rest| {
                rest.starts_with([' ', '{'])
                    || ["_bucket{", "_sum{", "_count{"]
                        .iter()
                        .any(|suffix| rest.starts_with(suffix))
            })
        })
        .map(str::to_owned)
        .collect()
}

fn reasons(page: &str) -> BTreeSet<String> {
    let series = family(page, "canary_router_request_count");
    series
        .iter()
        .filter_map(|line| line.split_once("{reason=\""))
        .map(|(_, rest)| rest.split("\",target=").next().unwrap().to_owned())
        .collect()
}

fn latency(part: &str, target: &str, le: &str) -> String {
    let le = match le {
        "" => String::new(),
        le => format!(",le=\"{le}\""),
    };
    format!("canary_router_request_latency_{part}{{target=\"{target}\"{le}}}")
}

// ---- the two families of the original

#[tokio::test]
async fn the_request_count_is_there_to_the_letter_at_the_first_scrape() {
    let router = router_to("http://127.0.0.1:9");
    let page = router.metrics().await.0;
    let lines = family(&page, "canary_router_request_count");
    assert_eq!(
        lines[..2],
        [
            "# HELP canary_router_request_count The count of requests per target and reason",
            "# TYPE canary_router_request_count counter",
        ]
    );
    for (reason, target) in REASONS {
        let series = format!(
            "canary_router_request_count{{reason=\"{reason}\",target=\"{target}\",version=\"{VERSION}\"}} 0"
        );
        let found = lines.iter().filter(|line| **line == series).count();
        assert_eq!(found, 1, "{series}\n{page}");
    }
    for line in &lines[2..] {
        assert!(line.ends_with(" 0"), "{line}");
    }
}

#[tokio::test]
async fn the_request_latency_is_there_to_the_letter_at_the_first_scrape() {
    let router = router_to("http://127.0.0.1:9");
    let page = router.metrics().await.0;
    let mut expected = vec![
        "# HELP canary_router_request_latency The latency distribution per request target".into(),
        "# TYPE canary_router_request_latency histogram".into(),
    ];
    let lines = family(&page, "canary_router_request_latency");
    // Which of the two comes first is nobody's business.
    let main_first = lines[2].contains("\"main\"");
    let targets = match main_first {
        true => ["main", "canary"],
        false => ["canary", "main"],
    };
    for target in targets {
        let labels = format!("target=\"{target}\",version=\"{VERSION}\"");
        for le in [
            "0", "25", "50", "75", "100", "200", "400", "600", "800", "1000", "2000", "4000",
            "6000", "+Inf",
        ] {
            expected.push(format!(
                "canary_router_request_latency_bucket{{{labels},le=\"{le}\"}} 0"
            ));
        }
        expected.push(format!("canary_router_request_latency_sum{{{labels}}} 0"));
        expected.push(format!("canary_router_request_latency_count{{{labels}}} 0"));
    }
    assert_eq!(lines, expected);
}

#[tokio::test]
async fn a_request_is_counted_under_its_reason_and_target() {
    let upstream = Upstream::named("up", 200).await;
    let router = router_to(&upstream.url());
    for (header, reason, target) in [
        ("", "", "main"),
        (
            "x-canary: true\r\n",
            "Routed via X-Canary header value: true",
            "canary",
        ),
        (
            "x-canary: false\r\n",
            "Routed via X-Canary header value: false",
            "main",
        ),
    ] {
        for _ in 0..2 {
            get(router.address, "/", header).await;
        }
        let series =
            format!("canary_router_request_count{{reason=\"{reason}\",target=\"{target}\"}}");
        router.counts(&series, 2.0).await;
    }
    router.counts(&latency("count", "main", ""), 4.0).await;
    router.counts(&latency("count", "canary", ""), 2.0).await;
    let metrics = router.metrics().await;
    for target in ["main", "canary"] {
        let count = metrics.value(&latency("count", target, ""));
        assert_eq!(metrics.value(&latency("bucket", target, "+Inf")), count);
        assert_eq!(metrics.value(&latency("bucket", target, "0")), 0.0);
    }
}

#[tokio::test]
async fn the_health_check_of_the_proxy_port_is_not_counted() {
    let upstream = Upstream::named("up", 200).await;
    let router = router_to(&upstream.url());
    get(router.address, "/application/health", "").await;
    get(router.address, "/", "").await;
    let series = "canary_router_request_count{reason=\"\",target=\"main\"}";
    router.counts(series, 1.0).await;
    assert_eq!(
        router.metrics().await.value(&latency("count", "main", "")),
        1.0
    );
}

#[tokio::test]
async fn latency_is_in_milliseconds_and_in_the_right_bucket() {
    let upstream = Upstream::start(|_| {
        let mut steps = vec![Step::Pause(Duration::from_millis(120))];
        steps.extend(answer(200, "", "up"));
        steps
    })
    .await;
    let router = router_to(&upstream.url());
    let begun = now();
    get(router.address, "/", "").await;
    let at_most = begun.elapsed().as_secs_f64() * 1000.0;
    router.counts(&latency("count", "main", ""), 1.0).await;
    let metrics = router.metrics().await;
    let sum = metrics.value(&latency("sum", "main", ""));
    // The record may be made a moment after the client saw the end.
    assert!(
        (120.0..at_most + 1000.0).contains(&sum),
        "{sum} of {at_most}"
    );
    for (le, bound) in [
        ("100", 100.0),
        ("200", 200.0),
        ("400", 400.0),
        ("6000", 6000.0),
    ] {
        let expected = if sum <= bound { 1.0 } else { 0.0 };
        assert_eq!(
            metrics.value(&latency("bucket", "main", le)),
            expected,
            "{le}: {sum}"
        );
    }
    assert_eq!(metrics.value(&latency("bucket", "main", "+Inf")), 1.0);
    assert_eq!(metrics.value(&latency("sum", "canary", "")), 0.0);
}

#[tokio::test]
async fn a_request_is_recorded_when_its_response_ends_and_not_before() {
    let upstream = ByHand::start().await;
    let router = router_to(&upstream.url());
    let mut client = Client::connect(router.address).await;
    let begun = now();
    client.send("GET / HTTP/1.1\r\nhost: h\r\n\r\n").await;
    let mut service = upstream.accept().await;
    service.head().await;
    service
        .send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n")
        .await;
    client.head().await;
    client.expect("1\r\na\r\n").await;
    tokio::time::sleep(Duration::from_millis(120)).await;
    let count = "canary_router_request_count{reason=\"\",target=\"main\"}";
    let metrics = router.metrics().await;
    assert_eq!(metrics.value(count), 0.0);
    assert_eq!(metrics.value(&latency("count", "main", "")), 0.0);

    service.send("0\r\n\r\n").await;
    client.expect("0\r\n\r\n").await;
    let at_most = begun.elapsed().as_secs_f64() * 1000.0;
    router.counts(count, 1.0).await;
    router.counts(&latency("count", "main", ""), 1.0).await;
    let sum = router.metrics().await.value(&latency("sum", "main", ""));
    // The record may be made a moment after the client saw the end.
    assert!(
        (120.0..at_most + 1000.0).contains(&sum),
        "{sum} of {at_most}"
    );
}

#[tokio::test]
async fn the_sidecars_time_is_part_of_the_latency() {
    let upstream = Upstream::named("up", 200).await;
    let sidecar = Upstream::start(|_| {
        let mut steps = vec![Step::Pause(Duration::from_millis(120))];
        steps.extend(answer(200, "", ""));
        steps
    })
    .await;
    let router = router_with(&upstream.url(), json!({"sidecar-url": sidecar.url()}));
    get(router.address, "/", "").await;
    router.counts(&latency("count", "canary", ""), 1.0).await;
    let metrics = router.metrics().await;
    assert!(metrics.value(&latency("sum", "canary", "")) >= 120.0);
    assert_eq!(metrics.value(&latency("bucket", "canary", "100")), 0.0);
}

#[tokio::test]
async fn a_request_that_no_upstream_answers_is_counted_too() {
    let nobody = Upstream::nobody().await;
    let router = router_to(&format!("http://{nobody}"));
    assert_eq!(get(router.address, "/", "").await.status, 502);
    router
        .counts(
            "canary_router_request_count{reason=\"\",target=\"main\"}",
            1.0,
        )
        .await;
    router.counts(&latency("count", "main", ""), 1.0).await;
}

fn requests(target: &str, reason: &str, class: &str) -> String {
    format!(
        "canary_router_requests_total{{code_class=\"{class}\",reason=\"{reason}\",target=\"{target}\"}}"
    )
}

#[tokio::test]
async fn what_clients_got_is_there_for_each_reason_at_the_first_scrape() {
    let router = router_to("http://127.0.0.1:9");
    let metrics = router.metrics().await;
    for (reason, target) in REASONS {
        for class in ["1xx", "2xx", "3xx", "4xx", "5xx", "none"] {
            assert_eq!(metrics.value(&requests(target, reason, class)), 0.0);
        }
    }
    let series = family(&metrics.0, "canary_router_requests_total");
    assert_eq!(series.len(), 2 + 18 * 6);
}

#[tokio::test]
async fn a_request_is_counted_by_what_its_client_got() {
    let upstream = Upstream::start(|request| match request.target() {
        "/reset" => vec![Step::Reset],
        "/hang" => vec![Step::Hang],
        target => answer(target[1..].parse().unwrap(), "", ""),
    })
    .await;
    let fixed = json!({"fallback": {"static": {"status": 200, "body": "sorry"}}});
    for (config, broken) in [(json!({}), "5xx"), (fixed, "2xx")] {
        let router = router_with(&upstream.url(), config);
        for path in ["/200", "/204", "/304", "/404", "/500", "/599", "/reset"] {
            get(router.address, path, "").await;
        }
        let mut client = Client::connect(router.address).await;
        client.send("GET /hang HTTP/1.1\r\nhost: h\r\n\r\n").await;
        let inflight = "canary_router_inflight_requests{target=\"main\"}";
        router.counts(inflight, 1.0).await;
        drop(client);
        for (class, expected) in [
            ("1xx", 0),
            ("2xx", 2),
            ("3xx", 1),
            ("4xx", 1),
            ("5xx", 2),
            ("none", 1),
        ] {
            let expected = expected + i32::from(class == broken);
            router
                .counts(&requests("main", "", class), expected.into())
                .await;
        }
        router.counts(inflight, 0.0).await;
        let metrics = router.metrics().await;
        let count = "canary_router_request_count{reason=\"\",target=\"main\"}";
        assert_eq!(metrics.value(count), 8.0);
        let durations = "canary_router_request_duration_seconds_count{target=\"main\"}";
        assert_eq!(metrics.value(durations), 8.0);
    }
}

#[tokio::test]
async fn durations_are_in_seconds_and_in_the_right_bucket() {
    let upstream = Upstream::start(|_| {
        let mut steps = vec![Step::Pause(Duration::from_millis(120))];
        steps.extend(answer(200, "", ""));
        steps
    })
    .await;
    let router = router_to(&upstream.url());
    get(router.address, "/", "").await;
    let duration = |part: &str, le: &str| {
        format!("canary_router_request_duration_seconds_{part}{{target=\"main\"{le}}}")
    };
    router.counts(&duration("count", ""), 1.0).await;
    let metrics = router.metrics().await;
    let sum = metrics.value(&duration("sum", ""));
    assert!((0.12..60.0).contains(&sum), "{sum}");
    for le in ["0.001", "0.1", "0.25", "1", "60", "+Inf"] {
        let bound = le.parse().unwrap_or(f64::INFINITY);
        let counted = metrics.value(&duration("bucket", &format!(",le=\"{le}\"")));
        assert_eq!(counted, f64::from(u8::from(sum <= bound)), "{le}: {sum}");
    }
}

#[tokio::test]
async fn client_connections_are_counted_while_they_are_there() {
    let upstream = Upstream::named("up", 200).await;
    let router = router_to(&upstream.url());
    let connections = "canary_router_connections";
    router.counts(connections, 0.0).await;
    let mut clients = Vec::new();
    for _ in 0..5 {
        clients.push(Client::connect(router.address).await);
    }
    router.counts(connections, 5.0).await;
    clients.truncate(2);
    router.counts(connections, 2.0).await;
    drop(clients);
    router.counts(connections, 0.0).await;
}

#[tokio::test]
async fn reasons_are_a_closed_set_whatever_the_sidecar_says() {
    let upstream = Upstream::named("up", 200).await;
    let sidecar = Upstream::start(|request| match request.target() {
        "/reset" => vec![Step::Reset],
        "/garbage" => vec![Step::Write(b"what?\r\n\r\n".to_vec()), Step::Close],
        target => {
            let status = target[1..].parse().unwrap();
            answer(status, "x-why: because\r\n", "a long story about why")
        }
    })
    .await;
    let router = router_with(&upstream.url(), json!({"sidecar-url": sidecar.url()}));
    let before = router.metrics().await.0;
    for (reason, _) in REASONS {
        assert!(reasons(&before).contains(reason), "{reason}");
    }
    let odd = ["/201", "/302", "/404", "/418", "/500", "/599"];
    for target in odd
        .into_iter()
        .chain(["/200", "/204", "/reset", "/garbage"])
    {
        for header in ["", "x-canary: maybe\r\n"] {
            let response = get(router.address, target, header).await;
            assert_eq!(response.status, 200, "{target}");
        }
    }
    for (reason, target, count) in [
        ("Sidecar returns status code 200", "canary", 2.0),
        ("Sidecar returns status code 204", "main", 2.0),
        (
            "Sidecar returns non standard status code",
            "main",
            2.0 * odd.len() as f64,
        ),
        ("Sidecar error", "main", 4.0),
    ] {
        let series =
            format!("canary_router_request_count{{reason=\"{reason}\",target=\"{target}\"}}");
        router.counts(&series, count).await;
    }
    let after = router.metrics().await.0;
    assert_eq!(reasons(&after), reasons(&before));
    let names = |page: &str| -> Vec<String> {
        page.lines()
            .filter_map(|line| line.rsplit_once(' '))
            .map(|(series, _)| series.to_owned())
            .collect()
    };
    let (before, after) = (names(&before), names(&after));
    assert_eq!(before, after, "the series themselves");
}

// ---- the page

#[tokio::test]
async fn the_page_tells_about_the_build_and_the_process() {
    let router = router_to("http://127.0.0.1:9");
    let page = get(router.instrumentation, "/metrics", "").await;
    let content_type = page.header("content-type").unwrap();
    assert!(
        content_type.starts_with("text/plain; version=0.0.4"),
        "{content_type}"
    );
    let page = page.text();
    assert_eq!(
        family(&page, "canary_router_build_info").last().unwrap(),
        &format!("canary_router_build_info{{commit=\"{COMMIT}\",version=\"{VERSION}\"}} 1")
    );
    for name in [
        "process_cpu_seconds_total",
        "process_open_fds",
        "process_max_fds",
        "process_virtual_memory_bytes",
        "process_resident_memory_bytes",
        "process_start_time_seconds",
    ] {
        let value = family(&page, name)
            .pop()
            .unwrap_or_else(|| panic!("no {name}"));
        let value: f64 = value.rsplit_once(' ').unwrap().1.parse().unwrap();
        let positive = value > 0.0 || name == "process_cpu_seconds_total";
        assert!(positive, "{name} {value}");
    }
}

#[tokio::test]
async fn the_page_can_be_asked_for_by_head_and_on_a_connection_kept_alive() {
    let router = router_to("http://127.0.0.1:9");
    let mut client = Client::connect(router.instrumentation).await;
    for method in ["GET", "HEAD", "GET"] {
        let response = client
            .roundtrip(
                method,
                format!("{method} /metrics HTTP/1.1\r\nhost: h\r\n\r\n"),
            )
            .await;
        assert_eq!((response.status, response.complete), (200, true));
    }
}

fn json(response: &Response) -> Value {
    let content_type = response.header("content-type").unwrap();
    assert!(
        content_type.starts_with("application/json"),
        "{content_type}"
    );
    serde_json::from_str(&response.text()).unwrap_or_else(|_| panic!("{}", response.text()))
}

#[tokio::test]
async fn what_is_not_there_is_404_and_what_is_cannot_be_written() {
    let router = router_to("http://127.0.0.1:9");
    for target in ["/metric", "/metrics/", "/health", "/application/health"] {
        let response = get(router.instrumentation, target, "").await;
        assert_eq!(response.status, 404, "{target}");
        assert!(json(&response).is_object());
    }
    for target in ["/metrics", "/health/live", "/health/ready"] {
        for method in ["POST", "PUT", "DELETE"] {
            let response = request(router.instrumentation, method, target, "", "").await;
            assert_eq!(response.status, 405, "{method} {target}");
            assert!(json(&response).is_object());
            assert!(response.header("allow").unwrap().contains("GET"));
        }
    }
}

// ---- health

#[tokio::test]
async fn live_is_200_whatever_the_targets_do() {
    let nobody = Upstream::nobody().await;
    let router = router_to(&format!("http://{nobody}"));
    let response = get(router.instrumentation, "/health/live", "").await;
    assert_eq!(response.status, 200);
    assert!(json(&response).is_object());
}

#[tokio::test]
async fn ready_needs_a_target_that_accepts_connections() {
    let upstream = Upstream::named("up", 200).await;
    let nobody = format!("http://{}", Upstream::nobody().await);
    for (main, canary, status) in [
        (&upstream.url(), &upstream.url(), 200),
        (&upstream.url(), &nobody, 200),
        (&nobody, &upstream.url(), 200),
        (&nobody, &nobody, 503),
    ] {
        let router = Router::start(json!({"main-target": main, "canary-target": canary}));
        let response = get(router.instrumentation, "/health/ready", "").await;
        assert_eq!(response.status, status, "{main}, {canary}");
        assert!(json(&response).is_object());
    }
    assert_eq!(upstream.count(), 0, "no request is made for it");
}

#[tokio::test]
async fn ready_follows_a_target_that_goes_away() {
    let upstream = Upstream::named("up", 200).await;
    let router = router_to(&upstream.url());
    let ready = async || {
        get(router.instrumentation, "/health/ready", "")
            .await
            .status
    };
    assert_eq!(ready().await, 200);
    drop(upstream);
    soon(async { while ready().await != 503 {} }).await;
}

#[tokio::test]
async fn without_an_instrumentation_section_there_is_no_such_listener() {
    let file = json!({
        "main-target": "http://127.0.0.1:9",
        "canary-target": "http://127.0.0.1:9",
        "router-server": {"host": "127.0.0.1", "port": 1, "workers": 1}
    });
    let mut config = Config::parse("test.json", &file.to_string()).unwrap();
    config.server.listen.port = 0;
    let running = App::bind(config).unwrap().start().unwrap();
    assert_eq!(running.instrumentation_address(), None);
    let response = get(running.proxy_address(), "/application/health", "").await;
    assert_eq!((response.status, &*response.text()), (200, "OK"));
    running.drain();
}

// ---- under load

/// Sends requests on one connection, as fast as it can, until told to stop.
fn hammer(address: SocketAddr, stop: &AtomicBool) {
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    let mut piece = [0; 4 << 10];
    while !stop.load(Ordering::Relaxed) {
        stream
            .write_all(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n")
            .unwrap();
        let mut response = Vec::new();
        while !response.ends_with(b"\r\n\r\nup") {
            let read = stream.read(&mut piece).unwrap();
            assert_ne!(read, 0, "{}", response.escape_ascii());
            response.extend_from_slice(&piece[..read]);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_is_served_quickly_while_the_data_plane_is_busy() {
    let upstream = Upstream::named("up", 200).await;
    let router = router_to(&upstream.url());
    let stop = Arc::new(AtomicBool::new(false));
    let load: Vec<_> = (0..8)
        .map(|_| {
            let (address, stop) = (router.address, Arc::clone(&stop));
            std::thread::spawn(move || hammer(address, &stop))
        })
        .collect();
    eventually(|| upstream.count() > 100).await;
    let count = latency("count", "main", "");
    let mut last = router.metrics().await.value(&count);
    for _ in 0..10 {
        let before = upstream.count();
        eventually(|| upstream.count() > before + 100).await;
        let asked = now();
        let page = router.metrics().await;
        let waited = asked.elapsed();
        assert!(waited < Duration::from_secs(1), "{waited:?}");
        let counted = page.value(&count);
        assert!(counted > last, "{counted} after {last}");
        last = counted;
    }
    stop.store(true, Ordering::Relaxed);
    for thread in load {
        thread.join().unwrap();
    }
    let requests = upstream.count() as f64;
    router.counts(&count, requests).await;
}
