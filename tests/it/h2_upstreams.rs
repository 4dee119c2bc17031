//! Connections to upstreams that speak HTTP/2: how they are shared, how they end, and upstreams that
//! lie on them.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use h2::{Reason, server};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinSet};

use crate::support::{
    h2peer::{Do, H2Client, H2Upstream, When, answers, asks, receive},
    h2raw::{End, Raw, code::*, head, *},
    hpack::{block, indexed, indexing},
    *,
};

fn router_speaking_h2(url: &str, client: Value) -> Router {
    let mut config = json!({"protocol": "h2", "timeout": "5s"});
    merge(&mut config, client);
    router_with(url, json!({"proxy-client": {"to-main-and-canary": config}}))
}

// ---- shared, and given up in good order

#[tokio::test]
async fn a_connection_is_shared_and_kept() {
    let upstream = H2Upstream::named("up", 200).await;
    let router = router_speaking_h2(&upstream.url(), json!({}));
    for _ in 0..20 {
        assert_eq!(
            crate::support::get(router.address, "/", "").await.text(),
            "up"
        );
    }
    assert_eq!(upstream.connections(), (1, 1));
}

#[tokio::test]
async fn an_upstream_that_says_goodbye_behind_each_answer_loses_no_request() {
    let upstream =
        H2Upstream::start(|_| [answers(200, &[], "up"), vec![Do::GoAway]].concat()).await;
    let router = router_speaking_h2(&upstream.url(), json!({}));
    let mut client = H2Client::connect(router.address).await;
    for _ in 0..20 {
        assert_eq!(client.get("/", &[]).await.text(), "up");
        let got = client.post("/", &[], b"body").await;
        assert_eq!((got.status, &*got.text()), (200, "up"));
    }
    assert_eq!(upstream.count(), 40);
    eventually(|| upstream.connections().1 <= 1).await;
}

#[tokio::test]
async fn what_is_in_flight_when_an_upstream_says_goodbye_comes_to_its_end() {
    let gate = Gate::shut();
    let waiting = gate.clone();
    let upstream = H2Upstream::start(move |asked| match asked.path.as_str() {
        "/goodbye" => [vec![Do::GoAway], answers(200, &[], "goodbye")].concat(),
        _ => [vec![Do::Wait(waiting.clone())], answers(200, &[], "up")].concat(),
    })
    .await;
    let router = router_speaking_h2(&upstream.url(), json!({"timeout": "1h"}));
    let mut client = H2Client::connect(router.address).await;
    let mut asked = Vec::new();
    for _ in 0..50 {
        asked.push(client.begin(asks("GET", "/", &[]), true).await.unwrap().0);
    }
    eventually(|| upstream.streams().1 == 50).await;
    assert_eq!(client.get("/goodbye", &[]).await.text(), "goodbye");
    // Who comes now comes by another connection.
    asked.push(client.begin(asks("GET", "/", &[]), true).await.unwrap().0);
    eventually(|| upstream.connections().0 == 2).await;
    gate.open();
    for response in asked {
        assert_eq!(soon(receive(response)).await.text(), "up");
    }
}

/// An upstream played by hand, which lies to some.
struct Played {
    url: String,
    connections: Arc<AtomicUsize>,
    _server: tokio::task::JoinHandle<()>,
}

impl Played {
    /// `lie` says what is answered to the requests that `lies` counts from 0; others get a 200.
    async fn start(
        lie: impl Fn(u32) -> Vec<u8> + Send + Sync + 'static,
        lies: Range<usize>,
    ) -> Played {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let connections = Arc::new(AtomicUsize::new(0));
        let counter = connections.clone();
        let lie = Arc::new(lie);
        let server = tokio::spawn(async move {
            let mut clients = JoinSet::new();
            let asked = Arc::new(AtomicUsize::new(0));
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                counter.fetch_add(1, Ordering::SeqCst);
                let (lie, lies, asked) = (lie.clone(), lies.clone(), asked.clone());
                clients.spawn(async move {
                    let mut raw = Raw::server(stream, &[]).await;
                    loop {
                        // Until a request is whole.
                        let stream = loop {
                            match raw.event().await {
                                Some(frame) if frame.ends_stream() => break frame.stream,
                                Some(_) => {}
                                None => return,
                            }
                        };
                        let answer = match lies.contains(&asked.fetch_add(1, Ordering::SeqCst)) {
                            true => lie(stream),
                            false => fine(stream),
                        };
                        if !raw.sends(answer).await {
                            return;
                        }
                    }
                });
            }
        });
        Played {
            url,
            connections,
            _server: server,
        }
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

fn fine(stream: u32) -> Vec<u8> {
    let fields = block([(":status", "200"), ("content-length", "4")]);
    [
        headers(stream, flag::END_HEADERS, fields),
        data(stream, flag::END_STREAM, "fine"),
    ]
    .concat()
}

/// It has not looked at it (RFC 9113 section 8.7), so nobody need know.
#[tokio::test]
async fn a_request_that_an_upstream_refuses_to_look_at_is_sent_again() {
    for (what, refusal) in [
        (
            "REFUSED_STREAM",
            (|stream| rst_stream(stream, REFUSED_STREAM)) as fn(u32) -> Vec<u8>,
        ),
        ("GOAWAY before it", |stream| goaway(stream - 1, NO_ERROR)),
    ] {
        for (method, body) in [("GET", ""), ("POST", ""), ("POST", "body")] {
            let upstream = Played::start(refusal, 1..2).await;
            let router = router_speaking_h2(&upstream.url, json!({}));
            for refused in [false, true] {
                let response = request(router.address, method, "/", "", body).await;
                match (response.status, &*response.text()) {
                    (200, "fine") => {}
                    // Of a body nothing is kept that has been handed on.
                    (502, _) if refused && !body.is_empty() => {}
                    other => panic!("{what} {method} {body}: {other:?}"),
                }
            }
            let mut client = H2Client::connect(router.address).await;
            assert_eq!(client.get("/", &[]).await.text(), "fine");
        }
    }
}

/// One that never does is not asked for ever.
#[tokio::test]
async fn an_upstream_that_refuses_everything_is_502_soon() {
    let upstream = Played::start(|stream| rst_stream(stream, REFUSED_STREAM), 0..usize::MAX).await;
    let router = router_speaking_h2(&upstream.url, json!({}));
    let since = canary_router::clock::now();
    assert_eq!(
        crate::support::get(router.address, "/", "").await.status,
        502
    );
    assert!(
        since.elapsed() < Duration::from_secs(3),
        "{:?}",
        since.elapsed()
    );
    assert!(upstream.connections() < 10, "{}", upstream.connections());
}

/// What it may have looked at is not sent again, unless who may say so has.
#[tokio::test]
async fn a_request_that_an_upstream_resets_is_502_and_not_sent_again() {
    let upstream = H2Upstream::start(|_| vec![Do::Reset(Reason::INTERNAL_ERROR)]).await;
    let router = router_speaking_h2(&upstream.url(), json!({}));
    for (i, (method, body)) in [("GET", ""), ("POST", "body")].into_iter().enumerate() {
        let response = request(router.address, method, "/", "", body).await;
        assert_eq!((response.status, response.complete), (502, true));
        assert_eq!(upstream.count(), i + 1);
    }
}

/// All that is in flight on a connection goes with it, and is not sent again; who comes next has another.
#[tokio::test]
async fn a_connection_that_an_upstream_gives_up_takes_what_is_on_it_and_no_more() {
    for end in [Do::Abort(Reason::INTERNAL_ERROR), Do::Drop] {
        let upstream = H2Upstream::start(move |asked| match asked.path.as_str() {
            "/end" => vec![end.clone()],
            "/waits" => vec![Do::Hang],
            _ => answers(200, &[], "up"),
        })
        .await;
        let router = router_speaking_h2(&upstream.url(), json!({"timeout": "1h"}));
        let mut client = H2Client::connect(router.address).await;
        let mut asked = Vec::new();
        for _ in 0..10 {
            let request = asks("POST", "/waits", &[]);
            asked.push(client.begin(request, true).await.unwrap().0);
        }
        eventually(|| upstream.count() == 10).await;
        asked.push(
            client
                .begin(asks("POST", "/end", &[]), true)
                .await
                .unwrap()
                .0,
        );
        for response in asked {
            assert_eq!(soon(receive(response)).await.status, 502);
        }
        assert_eq!(client.get("/", &[]).await.text(), "up");
        assert_eq!((upstream.count(), upstream.connections().0), (12, 2));
    }
}

#[tokio::test]
async fn more_requests_than_an_upstream_takes_on_a_connection_are_all_answered() {
    for most in [1, 3, 10] {
        let mut builder = server::Builder::new();
        builder.max_concurrent_streams(most);
        let gate = Gate::shut();
        let waiting = gate.clone();
        let upstream = H2Upstream::with(builder, None, When::Whole, move |asked| {
            let waits = vec![Do::Wait(waiting.clone())];
            [waits, answers(200, &[], &asked.path)].concat()
        });
        let router = router_speaking_h2(&upstream.url(), json!({"timeout": "1h"}));
        let mut client = H2Client::connect(router.address).await;
        let mut asked = Vec::new();
        for i in 0..30 {
            let request = asks("GET", &format!("/{i}"), &[]);
            asked.push(client.begin(request, true).await.unwrap().0);
        }
        eventually(|| upstream.streams().1 >= most as usize).await;
        gate.open();
        for (i, response) in asked.into_iter().enumerate() {
            let got = soon(receive(response)).await;
            assert_eq!((got.status, got.text()), (200, format!("/{i}")), "{most}");
        }
    }
}

#[tokio::test]
async fn a_connection_that_is_too_old_is_not_used_again_and_what_is_on_it_goes_on() {
    let gate = Gate::shut();
    let waiting = gate.clone();
    let two = H2Upstream::start(move |asked| match asked.path.as_str() {
        "/long" => [vec![Do::Wait(waiting.clone())], answers(200, &[], "long")].concat(),
        _ => answers(200, &[], "up"),
    })
    .await;
    let router = router_speaking_h2(&two.url(), json!({"max-conn-age": "1s", "timeout": "1h"}));
    let mut client = H2Client::connect(router.address).await;
    let (long, _) = client.begin(asks("GET", "/long", &[]), true).await.unwrap();
    for _ in 0..3 {
        assert_eq!(client.get("/", &[]).await.text(), "up");
    }
    assert_eq!(two.connections().0, 1);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    for _ in 0..3 {
        assert_eq!(client.get("/", &[]).await.text(), "up");
    }
    assert_eq!(two.connections(), (2, 2));
    gate.open();
    assert_eq!(soon(receive(long)).await.text(), "long");
    eventually(|| two.connections() == (2, 1)).await;

    // The same in HTTP/1.
    let one = Upstream::named("up", 200).await;
    let config = json!({"proxy-client": {"to-main-and-canary": {"max-conn-age": "1s"}}});
    let router = router_with(&one.url(), config);
    for connections in [1, 2] {
        for _ in 0..3 {
            assert_eq!(
                crate::support::get(router.address, "/", "").await.text(),
                "up"
            );
        }
        assert_eq!(one.connections().0, connections);
        tokio::time::sleep(Duration::from_millis(1100)).await;
    }
}

#[tokio::test]
async fn an_idle_connection_is_closed_at_idle_conn_timeout() {
    let upstream = H2Upstream::named("up", 200).await;
    let router = router_speaking_h2(&upstream.url(), json!({"idle-conn-timeout": "300ms"}));
    assert_eq!(
        crate::support::get(router.address, "/", "").await.text(),
        "up"
    );
    assert_eq!(upstream.connections(), (1, 1));
    eventually(|| upstream.connections() == (1, 0)).await;
    assert_eq!(
        crate::support::get(router.address, "/", "").await.text(),
        "up"
    );
    assert_eq!(upstream.connections().0, 2);
}

/// Its connections are closed while nobody asks; who asks next does not notice.
#[tokio::test]
async fn an_upstream_that_has_been_restarted_is_used_again() {
    let port = Port::reserve();
    let address = port.address;
    let listen_again = || {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(address).unwrap();
        socket.listen(1024).unwrap()
    };
    let start = |name: &'static str| {
        let builder = server::Builder::new();
        H2Upstream::on(listen_again(), builder, None, When::Whole, move |_| {
            answers(200, &[], name)
        })
    };
    let router = router_speaking_h2(&format!("http://{address}"), json!({}));
    for name in ["first", "second", "third"] {
        let upstream = start(name);
        for _ in 0..5 {
            let response = crate::support::get(router.address, "/", "").await;
            assert_eq!((response.status, &*response.text()), (200, name));
        }
        upstream.stop();
        drop(upstream);
        // Nobody is there for a moment.
        soon(async { while crate::support::get(router.address, "/", "").await.status != 502 {} })
            .await;
    }
}

// ---- those that lie

/// What an upstream answers to a request on this stream, and whether its head may arrive as it is.
type Lie = (&'static str, fn(u32) -> Vec<u8>, bool);

fn only(stream: u32, fields: &[(&str, &str)]) -> Vec<u8> {
    headers(stream, flag::ALL, block(fields.iter().copied()))
}

const LIES: &[Lie] = &[
    (
        "HTTP/1.1",
        |_| b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil".to_vec(),
        false,
    ),
    ("noise", |_| vec![0xff; 100], false),
    ("no status", |s| only(s, &[("x-a", "b")]), false),
    (
        "two statuses",
        |s| only(s, &[(":status", "200"), (":status", "201")]),
        false,
    ),
    (
        "a status of two digits",
        |s| only(s, &[(":status", "20")]),
        false,
    ),
    (
        "a status of four digits",
        |s| only(s, &[(":status", "2000")]),
        false,
    ),
    (
        "a status that is no number",
        |s| only(s, &[(":status", "abc")]),
        false,
    ),
    (
        "a status below 100",
        |s| only(s, &[(":status", "099")]),
        false,
    ),
    ("a 101", |s| only(s, &[(":status", "101")]), false),
    (
        "an informational head that ends the stream",
        |s| only(s, &[(":status", "103")]),
        false,
    ),
    (
        "the method of a request",
        |s| only(s, &[(":status", "200"), (":method", "GET")]),
        false,
    ),
    (
        "an unknown pseudo-header field",
        |s| only(s, &[(":status", "200"), (":x", "y")]),
        false,
    ),
    (
        "a late status",
        |s| only(s, &[("x-a", "b"), (":status", "200")]),
        false,
    ),
    (
        "capital letters",
        |s| only(s, &[(":status", "200"), ("X-A", "b")]),
        false,
    ),
    (
        "a line end in a value",
        |s| only(s, &[(":status", "200"), ("x-a", "b\r\nx-evil: 1")]),
        false,
    ),
    (
        "a NUL in a value",
        |s| only(s, &[(":status", "200"), ("x-a", "b\0")]),
        false,
    ),
    (
        "a line end in a name",
        |s| only(s, &[(":status", "200"), ("x-a\r\nx-evil", "1")]),
        false,
    ),
    (
        "a blank in a name",
        |s| only(s, &[(":status", "200"), ("x a", "1")]),
        false,
    ),
    (
        "a quote in a name",
        |s| only(s, &[(":status", "200"), ("x\"a", "1")]),
        true,
    ),
    (
        "a colon in a name",
        |s| only(s, &[(":status", "200"), ("x:a", "1")]),
        false,
    ),
    (
        "connection",
        |s| only(s, &[(":status", "200"), ("connection", "close")]),
        false,
    ),
    (
        "transfer-encoding",
        |s| only(s, &[(":status", "200"), ("transfer-encoding", "chunked")]),
        false,
    ),
    (
        "keep-alive",
        |s| only(s, &[(":status", "200"), ("keep-alive", "timeout=5")]),
        false,
    ),
    (
        "upgrade",
        |s| only(s, &[(":status", "200"), ("upgrade", "x")]),
        false,
    ),
    (
        "two lengths",
        |s| {
            only(
                s,
                &[
                    (":status", "200"),
                    ("content-length", "0"),
                    ("content-length", "5"),
                ],
            )
        },
        false,
    ),
    (
        "a length that is no number",
        |s| only(s, &[(":status", "200"), ("content-length", "+5")]),
        false,
    ),
    (
        "a length of nothing",
        |s| only(s, &[(":status", "200"), ("content-length", "5")]),
        true,
    ),
    (
        "DATA that is too short",
        |s| {
            let fields = block([(":status", "200"), ("content-length", "5")]);
            [
                headers(s, flag::END_HEADERS, fields),
                data(s, flag::END_STREAM, "evil"),
            ]
            .concat()
        },
        true,
    ),
    (
        "DATA that is too long",
        |s| {
            let fields = block([(":status", "200"), ("content-length", "3")]);
            [
                headers(s, flag::END_HEADERS, fields),
                data(s, flag::END_STREAM, "evil"),
            ]
            .concat()
        },
        true,
    ),
    (
        "DATA without a head",
        |s| data(s, flag::END_STREAM, "evil"),
        false,
    ),
    (
        "a head on another stream",
        |s| only(s + 2, &[(":status", "200")]),
        false,
    ),
    (
        "a head on stream 0",
        |_| only(0, &[(":status", "200")]),
        false,
    ),
    (
        "a push",
        |s| {
            let promise = [&2_u32.to_be_bytes(), &block(pseudo("GET", "/"))[..]].concat();
            frame(kind::PUSH_PROMISE, flag::END_HEADERS, s, promise)
        },
        false,
    ),
    (
        "trailers that end nothing",
        |s| {
            [
                headers(s, flag::END_HEADERS, block([(":status", "200")])),
                data(s, 0, "evil"),
                headers(s, flag::END_HEADERS, block([("x-sum", "1")])),
            ]
            .concat()
        },
        true,
    ),
    (
        "a status in trailers",
        |s| {
            [
                headers(s, flag::END_HEADERS, block([(":status", "200")])),
                data(s, 0, "evil"),
                headers(s, flag::ALL, block([(":status", "200")])),
            ]
            .concat()
        },
        true,
    ),
    (
        "an index beyond the tables",
        |s| headers(s, flag::ALL, indexed(100)),
        false,
    ),
    (
        "a frame that is too large",
        |s| data(s, 0, vec![0; 20_000]),
        false,
    ),
    (
        "SETTINGS that are none",
        |_| settings(&[(setting::MAX_FRAME_SIZE, 1)]),
        false,
    ),
    (
        "a window above its maximum",
        |_| window_update(0, u32::MAX >> 1),
        false,
    ),
    ("WINDOW_UPDATE by 0", |s| window_update(s, 0), false),
    (
        "a head of a megabyte",
        |s| {
            let fields = [
                block([(":status", "200")]),
                block([("x-a", "b".repeat(1 << 20))]),
            ];
            head(s, flag::END_STREAM, fields.concat())
        },
        false,
    ),
    (
        "a head that unpacks to megabytes",
        |s| {
            let fields = [
                block([(":status", "200")]),
                indexing("x-a", "b".repeat(4000)),
                indexed(62).repeat(10_000),
            ];
            head(s, flag::END_STREAM, fields.concat())
        },
        false,
    ),
    (
        "a head without an end",
        |s| {
            let more = continuation(s, 0, block([("x-a", "b".repeat(4000))]));
            let begin = headers(s, flag::END_STREAM, block([(":status", "200")]));
            [begin, more.repeat(5000)].concat()
        },
        false,
    ),
    ("GOAWAY with an error", |s| goaway(s, INTERNAL_ERROR), false),
];

/// Of those all but what is wrong with them may arrive.
const LEFT_OUT: [&str; 3] = [
    "a quote in a name",
    "the method of a request",
    "a status in trailers",
];

/// A response is never made up: what is a lie is a 502, or is cut off where it shows late.
#[tokio::test]
async fn what_is_no_response_is_502_or_visibly_cut() {
    let mut wrong = Vec::new();
    for (what, lie, may_begin) in LIES {
        for http2 in [false, true] {
            let upstream = Played::start(lie, 0..1).await;
            let router = router_speaking_h2(&upstream.url, json!({"timeout": "2s"}));
            let (status, whole, fields) = match http2 {
                false => {
                    let response = crate::support::get(router.address, "/", "").await;
                    (response.status, response.complete, response.message.head)
                }
                true => {
                    let mut raw = Raw::client(router.address).await;
                    let answer = raw.get(1, "/").await;
                    let fields = format!("{:?}", answer.fields);
                    (answer.status, answer.end == End::Whole, fields)
                }
            };
            let fits = match (status, whole) {
                // 504 where it may still be thinking.
                (502, true) | (504, true) => true,
                // It had begun when it showed; or nothing of it arrives.
                (0 | 200, false) => *may_begin,
                // What is too much may also be left out.
                (200, true) => LEFT_OUT.contains(what) && !fields.contains("x\"a"),
                _ => false,
            };
            if !fits || fields.contains("x-evil") {
                wrong.push(format!(
                    "{what}, HTTP/2 {http2}: {status} {whole} {fields:.300}"
                ));
            }
            // The next one gets its own answer.
            let next = crate::support::get(router.address, "/", "").await;
            if (next.status, &*next.text()) != (200, "fine") {
                wrong.push(format!("{what}, HTTP/2 {http2}: then {next:?}"));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

/// What comes behind an answer, or without a question, changes nothing for anybody.
#[tokio::test]
async fn frames_that_nobody_asked_for_change_no_answer() {
    for extra in [
        |_| ping(b"hello???"),
        |_| settings(&[(setting::INITIAL_WINDOW_SIZE, 10)]),
        |stream| window_update(stream, 1),
        |stream| rst_stream(stream, NO_ERROR),
        |stream| priority(stream + 2, stream, 1),
        |_| frame(99, 0xff, 0, [0; 50]),
        |stream| frame(99, 0xff, stream, [0; 50]),
    ] as [fn(u32) -> Vec<u8>; 7]
    {
        let upstream =
            Played::start(move |stream| [fine(stream), extra(stream)].concat(), 0..10).await;
        let router = router_speaking_h2(&upstream.url, json!({}));
        for _ in 0..15 {
            let response = crate::support::get(router.address, "/", "").await;
            assert_eq!((response.status, &*response.text()), (200, "fine"));
        }
    }
}

/// Floods of an upstream, while it has a request and while it has none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_that_floods_takes_no_memory_and_no_time_from_others() {
    for (what, flood) in [
        ("PING", ping(&[0; 8])),
        ("SETTINGS", settings(&[])),
        ("WINDOW_UPDATE", window_update(0, 1)),
        ("unknown frames", frame(99, 0, 0, [0; 100])),
        ("PRIORITY", priority(1, 0, 1)),
        ("empty DATA", data(1, 0, "")),
        (
            "hints",
            headers(1, flag::END_HEADERS, block([(":status", "103")])),
        ),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let main = format!("http://{}", listener.local_addr().unwrap());
        let piece = flood.repeat(20_000 / flood.len());
        let flooding = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let piece = piece.clone();
                connections.spawn(async move {
                    let mut raw = Raw::server(stream, &[]).await;
                    while raw.event().await.is_some_and(|frame| !frame.ends_stream()) {}
                    if what == "empty DATA" {
                        let fields = block([(":status", "200")]);
                        raw.sends(headers(1, flag::END_HEADERS, fields)).await;
                    }
                    // Of what comes back nothing is read.
                    for _ in 0..2000 {
                        if !raw.sends(&piece).await {
                            return;
                        }
                    }
                });
            }
        });
        let program = Program::start(json!({
            "main-target": main,
            "canary-target": main,
            "router-server": {"workers": 1},
            "proxy-client": {"to-main-and-canary": {"protocol": "h2", "timeout": "2s"}}
        }))
        .await;
        let base = program.peak_memory();
        let asked = tokio::spawn(crate::support::get(program.address, "/", ""));
        for _ in 0..20 {
            let health = crate::support::get(program.address, "/application/health", "");
            let health = tokio::time::timeout(Duration::from_secs(5), health).await;
            assert_eq!(health.expect("in time").status, 200, "{what}");
        }
        let status = soon(asked).await.unwrap().status;
        assert!(matches!(status, 200 | 502 | 504), "{what}: {status}");
        let growth = program.peak_memory() - base;
        assert!(growth < 32 << 20, "{what}: it grew by {} KiB", growth >> 10);
        flooding.abort();
    }
}
