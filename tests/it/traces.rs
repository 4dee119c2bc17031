//! Spans reach a collector, and a collector that is none costs nothing but spans.
//!
//! Not here: TLS to a collector. It believes the CAs of the system, or of `SSL_CERT_FILE`, which would have to be
//! another one for a test in this process.

use std::{
    collections::BTreeSet,
    io::{self, Write},
    process::Stdio,
    sync::{Arc, Mutex, mpsc::Receiver},
    thread::JoinHandle,
    time::{Duration, UNIX_EPOCH},
};

use canary_router::{
    VERSION, clock,
    config::{Config, Tracing},
    control::traces::{Exporter, Pace},
    state::{
        SpanCounts, SpanSink, Spans,
        spans::{self, Attribute, Span, SpanKind},
    },
};
use serde_json::{Value, json};
use tokio::sync::watch;
use tracing::subscriber::with_default;

use crate::support::*;

/// Long beyond all waiting: what is waited for comes by something else.
const NEVER: Duration = Duration::from_secs(3600);

/// Nothing is waited for: a batch is what there is, and a pause is over at once.
const HASTE: Pace = Pace {
    fill: Duration::ZERO,
    timeout: Duration::from_secs(10),
    first_pause: Duration::from_millis(1),
    longest_pause: Duration::from_millis(1),
    patience: Duration::from_secs(60),
    last: Duration::from_secs(10),
};

/// An exporter on a thread of its own.
struct Exporting {
    sink: SpanSink,
    counts: Arc<SpanCounts>,
    stop: watch::Sender<bool>,
    log: Captured,
    thread: JoinHandle<io::Result<()>>,
}

impl Exporting {
    fn start(endpoint: &str, pace: Pace) -> Exporting {
        let (sink, left, counts) = spans::channel(4096);
        Exporting::of(endpoint, pace, sink, left, counts)
    }

    /// One that finds these when it starts.
    fn start_with(endpoint: &str, pace: Pace, found: impl IntoIterator<Item = Spans>) -> Exporting {
        let (sink, left, counts) = spans::channel(4096);
        for spans in found {
            sink.leave(spans);
        }
        Exporting::of(endpoint, pace, sink, left, counts)
    }

    fn of(
        endpoint: &str,
        pace: Pace,
        sink: SpanSink,
        left: Receiver<Spans>,
        counts: Arc<SpanCounts>,
    ) -> Exporting {
        let exporter = Exporter::new(&tracing(endpoint), Arc::clone(&counts), pace).unwrap();
        let (stop, stopped) = watch::channel(false);
        let log = Captured::default();
        let written = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || written.clone())
            .finish();
        let thread =
            std::thread::spawn(move || with_default(subscriber, || exporter.run(left, stopped)));
        Exporting {
            sink,
            counts,
            stop,
            log,
            thread,
        }
    }

    /// Waits until so many spans were sent, failed and were dropped.
    #[track_caller]
    fn counts(&self, sent: u64, failed: u64, dropped: u64) -> impl Future<Output = ()> {
        let counts = Arc::clone(&self.counts);
        eventually(move || counted(&counts) == (sent, failed, dropped))
    }

    /// Stops it, and waits for its end.
    async fn ended(&mut self) {
        self.stop.send_replace(true);
        eventually(|| self.thread.is_finished()).await;
    }

    /// How many lines of the log say that.
    fn said(&self, part: &str) -> usize {
        let log = self.log.0.lock().unwrap();
        let log = String::from_utf8_lossy(&log).into_owned();
        log.lines().filter(|line| line.contains(part)).count()
    }
}

fn counted(counts: &SpanCounts) -> (u64, u64, u64) {
    (counts.sent(), counts.failed(), counts.dropped())
}

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn tracing(endpoint: &str) -> Tracing {
    let config = json!({
        "main-target": "http://main", "canary-target": "http://canary",
        "router-server": {"host": "127.0.0.1", "port": 1},
        "tracing": {"endpoint": endpoint, "service-name": "edge"}
    });
    let config = Config::parse("test.json", &config.to_string()).unwrap();
    config.tracing.unwrap()
}

/// A request with so many spans.
fn request(trace: u128, count: u64) -> Spans {
    let span = |id| Span {
        id,
        parent: (id > 1).then_some(1),
        name: "GET".into(),
        kind: SpanKind::Internal,
        started: UNIX_EPOCH + Duration::from_secs(1_700_000_000),
        ended: UNIX_EPOCH + Duration::from_secs(1_700_000_001),
        attributes: vec![("padding", Attribute::Text("x".repeat(100).into()))],
        error: None,
    };
    Spans {
        trace,
        trace_state: None,
        spans: (1..=count).map(span).collect(),
    }
}

/// How many spans a request to the collector has.
fn spans_in(request: &Received) -> usize {
    let body: Value = serde_json::from_slice(&request.body).unwrap();
    let spans = body.pointer("/resourceSpans/0/scopeSpans/0/spans");
    spans.and_then(Value::as_array).unwrap().len()
}

async fn collector() -> Upstream {
    Upstream::start(|_| answer(200, "content-type: application/json\r\n", "{}")).await
}

/// What the official definitions make of it.
fn understood(request: &Received) -> Value {
    let mut check = python("otlp_check.py")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    check
        .stdin
        .take()
        .unwrap()
        .write_all(&request.body)
        .unwrap();
    let checked = check.wait_with_output().unwrap();
    assert!(
        checked.status.success(),
        "{}\nis refused:\n{}",
        request.text(),
        String::from_utf8_lossy(&checked.stderr)
    );
    serde_json::from_slice(&checked.stdout).unwrap()
}

// ---- what a collector gets

#[tokio::test]
async fn the_official_definitions_take_what_is_sent_and_understand_what_was_meant() {
    let whole = Spans {
        trace: 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736,
        trace_state: Some("vendor=1,other=t61rcWkgMzE".into()),
        spans: vec![
            Span {
                id: u64::MAX,
                parent: Some(0x00f0_67aa_0ba9_02b7),
                name: "GET".into(),
                kind: SpanKind::Server,
                started: UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_789),
                ended: UNIX_EPOCH + Duration::new(4_102_444_800, 999_999_999),
                attributes: vec![
                    (
                        "url.path",
                        Attribute::Text("/\"\\\u{1}\u{202e}\u{1F600}\n".into()),
                    ),
                    ("empty", Attribute::Text("".into())),
                    ("least", Attribute::Number(i64::MIN)),
                    ("most", Attribute::Number(i64::MAX)),
                    ("part", Attribute::Real(0.1)),
                    ("none", Attribute::Real(f64::NAN)),
                    ("endless", Attribute::Real(f64::NEG_INFINITY)),
                ],
                error: Some("the canary did not answer".into()),
            },
            Span {
                id: 1,
                parent: Some(u64::MAX),
                name: "canary".into(),
                kind: SpanKind::Client,
                started: UNIX_EPOCH,
                ended: UNIX_EPOCH,
                attributes: Vec::new(),
                error: None,
            },
        ],
    };
    let collector = collector().await;
    let found = [whole, request(1, 1)];
    let exporting = Exporting::start_with(&collector.url(), HASTE, found);
    exporting.counts(3, 0, 0).await;
    let sent = collector.only();
    assert_eq!(sent.start_line(), "POST /v1/traces HTTP/1.1");
    assert_eq!(sent.header("content-type"), Some("application/json"));
    assert_eq!(sent.header("host"), Some(&*collector.address.to_string()));
    let agent = format!("canary-router/{VERSION}");
    assert_eq!(sent.header("user-agent"), Some(&*agent));
    assert_eq!(sent.header("expect"), None);

    let understood = understood(&sent);
    let resource = &understood["resource"];
    assert_eq!(resource["service.name"], json!(["string_value", "edge"]));
    assert_eq!(
        resource["service.version"],
        json!(["string_value", VERSION])
    );
    assert_eq!(
        resource["service.instance.id"][1].as_str().unwrap().len(),
        36
    );
    assert_eq!(understood["scope"], json!(["canary-router", VERSION]));
    assert_eq!(
        understood["spans"][0],
        json!({
            "trace": "4bf92f3577b34da6a3ce929d0e0e4736",
            "id": "ffffffffffffffff",
            "parent": "00f067aa0ba902b7",
            "state": "vendor=1,other=t61rcWkgMzE",
            "flags": 0x301,
            "name": "GET",
            "kind": "SPAN_KIND_SERVER",
            "started": "1700000000123456789",
            "ended": "4102444800999999999",
            "attributes": {
                "url.path": ["string_value", "/\"\\\u{1}\u{202e}\u{1F600}\n"],
                "empty": ["string_value", ""],
                "least": ["int_value", "-9223372036854775808"],
                "most": ["int_value", "9223372036854775807"],
                "part": ["double_value", "0.1"],
                "none": ["double_value", "nan"],
                "endless": ["double_value", "-inf"]
            },
            "status": [2, "the canary did not answer"]
        })
    );
    assert_eq!(
        understood["spans"][1],
        json!({
            "trace": "4bf92f3577b34da6a3ce929d0e0e4736",
            "id": "0000000000000001",
            "parent": "ffffffffffffffff",
            "state": "",
            "flags": 0x101,
            "name": "canary",
            "kind": "SPAN_KIND_CLIENT",
            "started": "0",
            "ended": "0",
            "attributes": {},
            "status": [0, ""]
        })
    );
    let third = &understood["spans"][2];
    assert_eq!(
        (&third["parent"], &third["kind"]),
        (&json!(""), &json!("SPAN_KIND_INTERNAL"))
    );
}

#[tokio::test]
async fn a_base_url_has_a_path_and_a_query_of_its_own() {
    let collector = collector().await;
    let endpoint = format!("{}/otlp/?key=1", collector.url());
    let exporting = Exporting::start_with(&endpoint, HASTE, [request(1, 1)]);
    exporting.counts(1, 0, 0).await;
    assert_eq!(collector.only().target(), "/otlp/v1/traces?key=1");
}

#[tokio::test]
async fn spans_are_sent_by_the_batch_on_one_connection() {
    let collector = collector().await;
    // Full ones do not wait for more; the last one is not full, and waits until the end.
    let pace = Pace {
        fill: NEVER,
        ..HASTE
    };
    let found = (1..=520).map(|trace| request(trace, 2));
    let mut exporting = Exporting::start_with(&collector.url(), pace, found);
    exporting.counts(1024, 0, 0).await;
    exporting.ended().await;
    exporting.counts(1040, 0, 0).await;
    let sizes: Vec<usize> = collector.seen().iter().map(spans_in).collect();
    assert_eq!(sizes, [512, 512, 16]);
    assert_eq!(collector.connections().0, 1);
    let mut traces = BTreeSet::new();
    for request in collector.seen() {
        let body: Value = serde_json::from_slice(&request.body).unwrap();
        let spans = body.pointer("/resourceSpans/0/scopeSpans/0/spans").unwrap();
        let ids = spans.as_array().unwrap().iter();
        traces.extend(ids.map(|span| span["traceId"].as_str().unwrap().to_owned()));
    }
    assert_eq!(traces.len(), 520);
}

#[tokio::test]
async fn a_batch_that_is_not_full_is_sent_after_a_while() {
    let collector = collector().await;
    let exporting = Exporting::start_with(&collector.url(), Pace::default(), [request(1, 3)]);
    exporting.counts(3, 0, 0).await;
    exporting.sink.leave(request(2, 1));
    exporting.counts(4, 0, 0).await;
}

// ---- a collector that cannot, or does not want to

/// Answers these one after the other, and then that it has all.
async fn moody(answers: Vec<Vec<Step>>) -> Upstream {
    let answers = Mutex::new(answers.into_iter());
    Upstream::start(move |_| {
        let next = answers.lock().unwrap().next();
        next.unwrap_or_else(|| answer(200, "", ""))
    })
    .await
}

#[tokio::test]
async fn what_may_pass_is_tried_again_with_the_same_spans() {
    let later = |status| answer(status, "", "busy");
    let collector = moody([429, 502, 503, 504].map(later).into()).await;
    let exporting = Exporting::start_with(&collector.url(), HASTE, [request(1, 2)]);
    exporting.counts(2, 0, 0).await;
    let seen = collector.seen();
    assert_eq!(seen.len(), 5);
    assert!(seen.iter().all(|request| request.body == seen[0].body));
}

#[tokio::test]
async fn a_collector_says_when_it_wants_to_be_asked_again() {
    let collector = moody(vec![answer(503, "retry-after: 0\r\n", "")]).await;
    // Without its word there would be no second time.
    let pace = Pace {
        first_pause: NEVER,
        longest_pause: NEVER,
        patience: NEVER / 2,
        ..HASTE
    };
    let exporting = Exporting::start_with(&collector.url(), pace, [request(1, 1)]);
    exporting.counts(1, 0, 0).await;
    assert_eq!(collector.count(), 2);
}

#[tokio::test]
async fn a_collector_that_wants_to_be_asked_tomorrow_is_asked_before() {
    let wish = "retry-after: Fri, 01 Jan 2100 00:00:00 GMT\r\n";
    let collector = moody(vec![
        answer(429, wish, ""),
        answer(429, "retry-after: 86400\r\n", ""),
    ])
    .await;
    let exporting = Exporting::start_with(&collector.url(), HASTE, [request(1, 1)]);
    exporting.counts(1, 0, 0).await;
    assert_eq!(collector.count(), 3);
}

#[tokio::test]
async fn a_batch_is_given_up_in_the_end_and_the_next_one_is_not() {
    let collector = moody(vec![answer(503, "", ""); 3]).await;
    let pace = Pace {
        patience: Duration::ZERO,
        ..HASTE
    };
    let exporting = Exporting::start_with(&collector.url(), pace, [request(1, 3)]);
    exporting.counts(0, 3, 0).await;
    exporting.sink.leave(request(2, 2));
    exporting.counts(0, 5, 0).await;
    exporting.sink.leave(request(3, 1));
    exporting.counts(0, 6, 0).await;
    exporting.sink.leave(request(4, 4));
    exporting.counts(4, 6, 0).await;
    assert_eq!(collector.count(), 4);
}

#[tokio::test]
async fn what_is_refused_is_not_sent_again() {
    let refusals =
        [400, 401, 404, 413, 500].map(|status| answer(status, "", "{\"message\": \"no\"}"));
    let elsewhere = answer(307, "location: /elsewhere\r\n", "");
    let collector = moody([&refusals[..], &[elsewhere]].concat()).await;
    let exporting = Exporting::start(&collector.url(), HASTE);
    for i in 1..=6 {
        exporting.sink.leave(request(i.into(), 1));
        exporting.counts(0, i, 0).await;
    }
    exporting.sink.leave(request(7, 1));
    exporting.counts(1, 6, 0).await;
    let targets: BTreeSet<String> = collector
        .seen()
        .iter()
        .map(|seen| seen.target().to_owned())
        .collect();
    assert_eq!((collector.count(), targets.len()), (7, 1));
    assert_eq!(exporting.said("it answers 400 Bad Request: no"), 1);
}

#[tokio::test]
async fn what_is_taken_in_part_is_counted_as_both() {
    let part = |rejected: &str| {
        let body = format!(
            r#"{{"partialSuccess": {{"rejectedSpans": {rejected}, "errorMessage": "too old"}}}}"#
        );
        answer(200, "", &body)
    };
    let collector = moody(vec![part("\"2\""), part("1"), part("\"0\""), part("4000")]).await;
    let exporting = Exporting::start(&collector.url(), HASTE);
    for (i, counts) in [(3, 2), (7, 3), (12, 3), (12, 8)].into_iter().enumerate() {
        exporting.sink.leave(request(1, 5));
        exporting.counts(counts.0, counts.1, 0).await;
        assert_eq!(collector.count(), i + 1);
    }
    assert_eq!(exporting.said("it refuses 2 of 5 spans: too old"), 1);
}

#[tokio::test]
async fn a_collector_that_comes_back_is_told_of_in_two_lines() {
    let port = Port::reserve();
    let endpoint = format!("http://{}", port.address);
    let exporting = Exporting::start_with(&endpoint, HASTE, [request(1, 1)]);
    eventually(|| exporting.said("spans cannot be sent") > 0).await;
    assert_eq!(exporting.said("connecting failed"), 1);
    let collector = {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(port.address).unwrap();
        socket.listen(16).unwrap()
    };
    let (taken, _) = soon(collector.accept()).await.unwrap();
    let answered = tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut taken = taken;
        let mut bytes = [0; 64 << 10];
        let _some = taken.read(&mut bytes).await.unwrap();
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
        taken.write_all(answer).await.unwrap();
        taken
    });
    exporting.counts(1, 0, 0).await;
    let _still_open = soon(answered).await.unwrap();
    assert_eq!(exporting.said("spans cannot be sent"), 1);
    assert_eq!(exporting.said("spans are sent again"), 1);
}

/// Each of these would be a line; one was told of, the others are within its minute.
#[tokio::test]
async fn a_collector_that_cannot_decide_does_not_fill_the_log() {
    let collector = Upstream::start({
        let turn = Mutex::new(0);
        move |_| {
            let mut turn = turn.lock().unwrap();
            *turn += 1;
            answer(if *turn % 2 == 1 { 400 } else { 200 }, "", "")
        }
    })
    .await;
    let exporting = Exporting::start(&collector.url(), HASTE);
    for i in 1..=10 {
        exporting.sink.leave(request(1, 1));
        exporting.counts(i / 2, i.div_ceil(2), 0).await;
    }
    assert_eq!(exporting.said("spans cannot be sent"), 1);
    assert_eq!(exporting.said("spans are sent again"), 1);
}

// ---- a collector that is none

#[tokio::test]
async fn a_connection_that_was_closed_meanwhile_costs_nothing() {
    let collector = Upstream::start(|_| [answer(200, "", "{}"), vec![Step::Close]].concat()).await;
    // A second try would have to wait.
    let pace = Pace {
        first_pause: NEVER,
        longest_pause: NEVER,
        ..HASTE
    };
    let exporting = Exporting::start(&collector.url(), pace);
    for i in 1..=3 {
        exporting.sink.leave(request(1, 1));
        exporting.counts(i, 0, 0).await;
        eventually(|| collector.connections().1 == 0).await;
    }
    assert_eq!(exporting.said("spans"), 0);
}

#[tokio::test]
async fn nonsense_and_resets_are_no_answer_and_no_end() {
    let noise = noise(100_000);
    let collector = moody(vec![
        vec![Step::Write(noise), Step::Close],
        vec![Step::Reset],
        vec![Step::Close],
        vec![Step::Write(b"SSH-2.0-OpenSSH\r\n".to_vec()), Step::Close],
        vec![
            Step::Write(b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n".to_vec()),
            Step::Close,
        ],
        vec![
            Step::Write(b"HTTP/1.1 100 Continue\r\n\r\n".repeat(1000)),
            Step::Close,
        ],
        vec![Step::Write(b"\0".repeat(1 << 20)), Step::Hang],
    ])
    .await;
    let exporting = Exporting::start_with(&collector.url(), HASTE, [request(1, 2)]);
    exporting.counts(2, 0, 0).await;
    assert_eq!(collector.count(), 8);
    assert_eq!(exporting.said("spans cannot be sent"), 1);
}

/// Its status says that it has them; nobody waits long for the rest, nor reads all of it.
#[tokio::test]
async fn an_answer_that_does_not_end_is_one_all_the_same() {
    let endless = b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n{".to_vec();
    let much = [&endless[..], &[b' '; 1 << 20]].concat();
    let collector = moody(vec![
        vec![Step::Write(endless), Step::Hang],
        vec![Step::Write(much), Step::Hang],
    ])
    .await;
    let pace = Pace {
        timeout: Duration::from_millis(300),
        ..HASTE
    };
    let exporting = Exporting::start(&collector.url(), pace);
    for i in 1..=3 {
        exporting.sink.leave(request(1, 1));
        exporting.counts(i, 0, 0).await;
    }
    assert_eq!((collector.count(), collector.connections().0), (3, 3));
}

#[tokio::test]
async fn a_collector_that_hangs_or_cannot_be_reached_is_asked_again() {
    let collector = moody(vec![vec![Step::Hang]; 2]).await;
    let pace = Pace {
        timeout: Duration::from_millis(100),
        ..HASTE
    };
    let exporting = Exporting::start_with(&collector.url(), pace, [request(1, 1)]);
    exporting.counts(1, 0, 0).await;
    assert_eq!(collector.count(), 3);
    assert_eq!(exporting.said("no answer within 100ms"), 1);

    let deaf = Deaf::start();
    let pace = Pace {
        patience: Duration::ZERO,
        ..pace
    };
    let exporting = Exporting::start_with(&deaf.url(), pace, [request(1, 1)]);
    exporting.counts(0, 1, 0).await;
}

#[tokio::test]
async fn what_waits_for_a_collector_is_bounded_and_who_leaves_it_never_waits() {
    let collector = Upstream::start(|_| vec![Step::Hang]).await;
    let pace = Pace {
        timeout: NEVER,
        last: Duration::ZERO,
        ..HASTE
    };
    let (sink, left, counts) = spans::channel(8);
    let mut exporting = Exporting::of(&collector.url(), pace, sink, left, counts);
    exporting.sink.leave(request(1, 2));
    eventually(|| collector.count() == 1).await;
    let began = clock::now();
    for i in 0..10_000 {
        exporting.sink.leave(request(i, 3));
    }
    assert!(clock::now() - began < Duration::from_secs(5));
    assert_eq!(counted(&exporting.counts), (0, 0, 3 * (10_000 - 8)));
    // In the end each of them is counted once.
    exporting.ended().await;
    assert_eq!(counted(&exporting.counts), (0, 0, 2 + 3 * 10_000));
    exporting.sink.leave(request(1, 1));
    assert_eq!(exporting.counts.dropped(), 2 + 3 * 10_000 + 1);
}

// ---- the end

#[tokio::test]
async fn what_there_is_in_the_end_is_sent() {
    let collector = collector().await;
    let pace = Pace {
        fill: NEVER,
        ..HASTE
    };
    let found = (1..=1500).map(|trace| request(trace, 1));
    let mut exporting = Exporting::start_with(&collector.url(), pace, found);
    exporting.ended().await;
    assert_eq!(counted(&exporting.counts), (1500, 0, 0));
}

#[tokio::test]
async fn a_pause_ends_with_the_process_and_the_batch_is_tried_once_more() {
    let collector = moody(vec![answer(503, "", "")]).await;
    let pace = Pace {
        first_pause: NEVER,
        longest_pause: NEVER,
        patience: 2 * NEVER,
        ..HASTE
    };
    let mut exporting = Exporting::start_with(&collector.url(), pace, [request(1, 1)]);
    eventually(|| exporting.said("spans cannot be sent") == 1).await;
    exporting.ended().await;
    assert_eq!(counted(&exporting.counts), (1, 0, 0));
    assert_eq!(collector.count(), 2);
}

#[tokio::test]
async fn a_collector_that_hangs_or_has_gone_does_not_hold_the_end_up() {
    let hanging = Upstream::start(|_| vec![Step::Hang]).await;
    let gone = format!("http://{}", Upstream::nobody().await);
    for (endpoint, failed, dropped) in [(&hanging.url(), 0, 1500), (&gone, 1500, 0)] {
        let found = (1..=1500).map(|trace| request(trace, 1));
        let pace = Pace {
            last: Duration::from_millis(500),
            ..Pace::default()
        };
        let mut exporting = Exporting::start_with(endpoint, pace, found);
        let began = clock::now();
        exporting.ended().await;
        assert!(clock::now() - began < Duration::from_secs(5), "{endpoint}");
        assert_eq!(
            counted(&exporting.counts),
            (0, failed, dropped),
            "{endpoint}"
        );
    }
}

// ---- the program

#[tokio::test]
async fn the_program_runs_and_ends_whatever_its_collector_does() {
    let main = Upstream::named("main", 200).await;
    let hanging = Upstream::start(|_| vec![Step::Hang]).await;
    let nobody = format!("http://{}", Upstream::nobody().await);
    let deaf = Deaf::start();
    for endpoint in [hanging.url(), nobody, deaf.url()] {
        let mut program = Program::start(json!({
            "main-target": main.url(), "canary-target": main.url(),
            "tracing": {"endpoint": endpoint}
        }))
        .await;
        assert_eq!(get(program.address, "/", "").await.status, 200);
        let metrics = Metrics(get(program.instrumentation, "/metrics", "").await.text());
        for result in ["sent", "failed"] {
            let series = format!("canary_router_spans_total{{result=\"{result}\"}}");
            assert_eq!(metrics.value(&series), 0.0);
        }
        metrics.value("canary_router_spans_total{result=\"dropped\"}");
        let began = clock::now();
        program.process.signal("TERM");
        assert_eq!(program.process.ended().await.code(), Some(0));
        assert!(clock::now() - began < Duration::from_secs(10), "{endpoint}");
    }
}

#[tokio::test]
async fn without_a_collector_there_is_nothing_to_count() {
    let router = router_to("http://127.0.0.1:9");
    let page = router.metrics().await.0;
    assert!(!page.contains("canary_router_spans_total"), "{page}");
}
