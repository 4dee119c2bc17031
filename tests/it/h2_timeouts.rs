//! Who is waited for over HTTP/2 and in the handshake of TLS, and for how long. The limits that a test
//! is not about are far away.

use std::time::{Duration, Instant};

use canary_router::clock::now;
use serde_json::{Value, json};
use socket2::SockRef;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};

use crate::support::{
    h2peer::{self, Do, H2Client, H2Upstream},
    h2raw::{code::*, get, *},
    hpack::block,
    pki::{Authority, TlsClient},
    *,
};

const LIMIT: Duration = Duration::from_millis(300);
/// Pauses that come nowhere near the limit even on a busy machine.
const SHORT: Duration = Duration::from_millis(20);

/// A router on which `set` is short, and everything else an hour.
fn router(target: &str, set: Value) -> Router {
    let mut server = json!({"read-timeout": "1h", "write-timeout": "1h", "idle-timeout": "1h"});
    let mut client = json!({"timeout": "1h", "idle-conn-timeout": "1h"});
    for (key, value) in set.as_object().unwrap() {
        match key.as_str() {
            "read-timeout" | "write-timeout" | "idle-timeout" | "tls" => {
                server[key] = value.clone();
            }
            _ => client[key] = value.clone(),
        }
    }
    router_with(
        target,
        json!({"router-server": server, "proxy-client": {"to-main-and-canary": client}}),
    )
}

/// Not before the limit, and not long after it.
#[track_caller]
fn assert_at(limit: Duration, since: Instant) {
    let waited = since.elapsed();
    assert!(waited >= limit, "too early: {waited:?}");
    assert!(
        waited < limit + Duration::from_millis(1500),
        "too late: {waited:?}"
    );
}

/// Writes byte by byte, with pauses, until the other side has something to say, or has left.
async fn drip(stream: &mut Raw, bytes: &[u8]) {
    soon(async {
        for byte in bytes {
            if stream.writer.write_all(&[*byte]).await.is_err() {
                return;
            }
            if timeout(SHORT, stream.reader.fill_buf()).await.is_ok() {
                return;
            }
        }
    })
    .await;
}

// ---- clients that do not get to the point

#[tokio::test]
async fn what_is_begun_and_not_ended_is_closed_at_read_timeout() {
    let upstream = Upstream::named("up", 200).await;
    let router = router(&upstream.url(), json!({"read-timeout": "300ms"}));
    let begun = [PREFACE, &settings(&[])].concat();
    let of_a_request = get(1, "/");
    let unfinished = headers(1, flag::END_STREAM, block(pseudo("GET", "/")));
    let cases: [(&str, Vec<u8>); 9] = [
        ("half a preface", PREFACE[..17].to_vec()),
        ("a preface without SETTINGS", PREFACE.to_vec()),
        ("half of SETTINGS", begun[..begun.len() - 3].to_vec()),
        ("half a frame header", [&begun, &of_a_request[..5]].concat()),
        ("half a HEADERS", [&begun, &of_a_request[..20]].concat()),
        (
            "a block without its end",
            [&begun, &unfinished[..]].concat(),
        ),
        (
            "half a CONTINUATION",
            [
                &begun,
                &unfinished[..],
                &continuation(1, flag::END_HEADERS, [0; 100])[..50],
            ]
            .concat(),
        ),
        ("half a PING", [&begun, &ping(&[0; 8])[..12]].concat()),
        (
            "half an unknown frame",
            [&begun, &frame(99, 0, 0, [0; 5000])[..3000]].concat(),
        ),
    ];
    let mut wrong = Vec::new();
    for (what, bytes) in cases {
        let mut raw = Raw::connect(router.address).await;
        let since = now();
        raw.send(bytes).await;
        // Nothing is acknowledged: that would go on with what was begun.
        let ended = async {
            let mut said = None;
            while let Some(frame) = raw.next().await {
                said = frame.code();
            }
            said
        };
        let ended = timeout(LIMIT + Duration::from_millis(1500), ended).await;
        if since.elapsed() < LIMIT || !matches!(ended, Ok(None | Some(NO_ERROR | PROTOCOL_ERROR))) {
            wrong.push(format!("{what}: {ended:?} after {:?}", since.elapsed()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(upstream.connections(), (0, 0));
}

#[tokio::test]
async fn what_drips_gets_no_more_time_than_another() {
    let upstream = Upstream::named("up", 200).await;
    let router = router(&upstream.url(), json!({"read-timeout": "300ms"}));
    let long = block([("x-drip", "x".repeat(8000))]);
    let unfinished = headers(1, flag::END_STREAM, block(pseudo("GET", "/")));
    let drops: Vec<u8> = long
        .iter()
        .flat_map(|byte| continuation(1, 0, [*byte]))
        .collect();
    let cases: [(&str, Vec<u8>, Vec<u8>); 4] = [
        // Four more than it has: what is long enough is looked at sooner.
        ("a preface", Vec::new(), PREFACE[..20].to_vec()),
        (
            "HEADERS",
            [PREFACE, &settings(&[])].concat(),
            headers(1, flag::ALL, &long),
        ),
        (
            "a block in one CONTINUATION",
            [PREFACE, &settings(&[]), &unfinished].concat(),
            continuation(1, 0, &long),
        ),
        (
            "a block in many CONTINUATIONs",
            [PREFACE, &settings(&[]), &unfinished].concat(),
            drops,
        ),
    ];
    for (what, at_once, drops) in cases {
        let mut raw = Raw::connect(router.address).await;
        let since = now();
        raw.send(&at_once).await;
        if !at_once.is_empty() {
            // What comes of the settings is no answer to what drips.
            assert_eq!(raw.next().await.unwrap().kind, kind::SETTINGS);
            while raw.next().await.unwrap().kind != kind::SETTINGS {}
        }
        drip(&mut raw, &drops).await;
        while raw.next().await.is_some() {}
        let waited = since.elapsed();
        assert!(
            waited >= LIMIT && waited < LIMIT + Duration::from_millis(1500),
            "{what}: {waited:?}"
        );
    }
    assert_eq!(upstream.connections(), (0, 0));
}

#[tokio::test]
async fn an_idle_connection_is_closed_at_idle_timeout_and_told_so() {
    let upstream = Upstream::named("up", 200).await;
    for read_timeout in ["100ms", "1h"] {
        let router = router(
            &upstream.url(),
            json!({"read-timeout": read_timeout, "idle-timeout": "600ms"}),
        );
        // One that never asked anything, and one that did.
        let mut idle = now();
        let mut raw = Raw::client(router.address).await;
        assert_eq!(raw.ended().await, Some(NO_ERROR));
        assert_at(2 * LIMIT, idle);

        let mut raw = Raw::client(router.address).await;
        for stream in [1, 3] {
            assert_eq!(raw.get(stream, "/").await.status, 200);
            idle = now();
            sleep(LIMIT).await;
        }
        assert_eq!(raw.ended().await, Some(NO_ERROR));
        assert_at(2 * LIMIT, idle);
    }
}

/// Whoever only asks whether we are still there wants nothing.
#[tokio::test]
async fn pings_do_not_keep_an_idle_connection_open() {
    let upstream = Upstream::named("up", 200).await;
    let router = router(&upstream.url(), json!({"idle-timeout": "600ms"}));
    let mut raw = Raw::client(router.address).await;
    let idle = now();
    let said = soon(async {
        loop {
            raw.sends(ping(b"is it on")).await;
            match raw.next().await {
                Some(frame) if frame.kind == kind::GOAWAY => break frame.code(),
                Some(_) => sleep(SHORT).await,
                None => break None,
            }
        }
    })
    .await;
    assert_eq!(said, Some(NO_ERROR));
    assert_at(2 * LIMIT, idle);
}

// ---- uploads

#[tokio::test]
async fn a_request_body_that_stalls_is_408_and_the_connection_goes_on() {
    let sidecar = Upstream::named("", 204).await;
    for with_sidecar in [false, true] {
        let upstream = Upstream::named("up", 200).await;
        let mut config = json!({
            "router-server": {"read-timeout": "300ms", "write-timeout": "1h"},
            "proxy-client": {"to-main-and-canary": {"timeout": "1h"}}
        });
        if with_sidecar {
            config["sidecar-url"] = sidecar.url().into();
        }
        let router = router_with(&upstream.url(), config);
        let mut raw = Raw::client(router.address).await;
        for (stream, body) in [(1, ""), (5, "abc")] {
            let since = now();
            raw.send(post(stream, "/")).await;
            if !body.is_empty() {
                raw.send(data(stream, 0, body)).await;
            }
            let answer = raw.answer(stream).await;
            assert_eq!(answer.status, 408, "{answer:?}");
            assert_at(LIMIT, since);
            // Before a sidecar has all of it, nothing goes to the upstream; then one may be idle.
            eventually(|| upstream.connections().1 <= usize::from(with_sidecar)).await;
            assert_eq!(raw.get(stream + 2, "/").await.status, 200);
        }
        let seen = upstream.seen();
        assert!(
            seen.iter().all(|seen| seen.method() == "GET"),
            "nothing of it may look whole"
        );
    }
}

/// The rest of a frame cannot come on another stream, so everything waits for it.
#[tokio::test]
async fn half_a_data_frame_ends_the_connection_at_read_timeout() {
    let upstream = Upstream::named("up", 200).await;
    let router = router(&upstream.url(), json!({"read-timeout": "300ms"}));
    let mut raw = Raw::client(router.address).await;
    raw.send(post(1, "/")).await;
    let since = now();
    raw.send(&data(1, 0, "x".repeat(100))[..50]).await;
    raw.ended().await;
    assert_at(LIMIT, since);
    eventually(|| upstream.connections().1 == 0).await;
    assert_eq!(upstream.count(), 0);
}

#[tokio::test]
async fn a_slow_upload_may_take_longer_than_any_timeout() {
    let plain = Upstream::named("up", 200).await;
    let h2 = H2Upstream::named("up", 200).await;
    for (url, protocol) in [(plain.url(), "http1"), (h2.url(), "h2")] {
        let router = router(
            &url,
            json!({
                "read-timeout": "300ms", "write-timeout": "300ms", "idle-timeout": "300ms",
                "timeout": "300ms", "protocol": protocol
            }),
        );
        let mut raw = Raw::client(router.address).await;
        let begun = now();
        raw.send(post(1, "/")).await;
        for _ in 0..50 {
            raw.send(data(1, 0, "x")).await;
            sleep(SHORT).await;
        }
        // And a frame that comes in drops.
        for byte in data(1, flag::END_STREAM, "x".repeat(50)) {
            raw.send([byte]).await;
            sleep(SHORT).await;
        }
        let answer = raw.answer(1).await;
        assert_eq!((answer.status, answer.end), (200, End::Whole), "{protocol}");
        assert!(begun.elapsed() > 3 * LIMIT);
    }
    assert_eq!(plain.only().body.len(), 100);
    assert_eq!(h2.only().body.len(), 100);
}

// ---- responses

#[tokio::test]
async fn a_slow_response_may_take_longer_than_any_timeout() {
    let upstream = H2Upstream::start(|_| {
        let mut steps = vec![Do::Head(200, h2peer::fields(&[]))];
        for _ in 0..50 {
            steps.extend([Do::Data(b"x".to_vec()), Do::Pause(SHORT)]);
        }
        steps.push(Do::End);
        steps
    })
    .await;
    let router = router(
        &upstream.url(),
        json!({
            "read-timeout": "300ms", "write-timeout": "300ms", "idle-timeout": "300ms",
            "timeout": "300ms", "idle-conn-timeout": "300ms", "protocol": "h2"
        }),
    );
    let mut raw = Raw::client(router.address).await;
    let begun = now();
    let answer = raw.get(1, "/").await;
    assert_eq!((answer.body.len(), answer.end), (50, End::Whole));
    assert!(begun.elapsed() > 3 * LIMIT);
}

/// Server-sent events: the service has nothing to say for a while, and nobody is to blame.
#[tokio::test]
async fn a_pause_in_the_middle_of_a_response_may_be_longer_than_any_timeout() {
    let plain = Upstream::start(|_| {
        vec![
            Step::Write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nx".to_vec()),
            Step::Pause(4 * LIMIT),
            Step::Write(b"y".to_vec()),
        ]
    })
    .await;
    let h2 = H2Upstream::start(|_| {
        vec![
            Do::Head(200, h2peer::fields(&[])),
            Do::Data(b"x".to_vec()),
            Do::Pause(4 * LIMIT),
            Do::Data(b"y".to_vec()),
            Do::End,
        ]
    })
    .await;
    for (url, protocol) in [(plain.url(), "http1"), (h2.url(), "h2")] {
        let router = router(
            &url,
            json!({
                "read-timeout": "200ms", "write-timeout": "200ms", "idle-timeout": "200ms",
                "timeout": "200ms", "idle-conn-timeout": "200ms", "protocol": protocol
            }),
        );
        let mut raw = Raw::client(router.address).await;
        let answer = raw.get(1, "/").await;
        assert_eq!(
            (&*answer.text(), answer.end),
            ("xy", End::Whole),
            "{protocol}"
        );
    }
}

/// More than all buffers on the way hold together.
const HUGE: usize = 64 << 20;

async fn huge() -> Upstream {
    Upstream::start(|request| match request.target() {
        "/small" => answer(200, "", "small"),
        _ => vec![
            Step::Write(format!("HTTP/1.1 200 OK\r\ncontent-length: {HUGE}\r\n\r\n").into_bytes()),
            Step::Write(vec![b'x'; HUGE]),
        ],
    })
    .await
}

/// Only that stream: others have windows of their own.
#[tokio::test]
async fn a_stream_whose_window_stays_shut_is_reset_at_write_timeout() {
    let upstream = huge().await;
    let router = router(&upstream.url(), json!({"write-timeout": "300ms"}));
    for window in [0, 1000, 65_535] {
        let ours = [(setting::INITIAL_WINDOW_SIZE, window)];
        let mut raw = Raw::client_with(router.address, &ours).await;
        raw.send(window_update(0, 1 << 20)).await;
        let since = now();
        raw.send(get(1, "/huge")).await;
        let mut body = 0;
        let end = loop {
            let frame = raw.event().await.expect("not the end of the connection");
            match frame.kind {
                kind::HEADERS => assert_eq!(raw.fields(frame).await[0].1, b"200"),
                kind::DATA => body += frame.payload.len(),
                kind::RST_STREAM | kind::GOAWAY => break frame,
                _ => {}
            }
        };
        assert_eq!((end.kind, end.stream), (kind::RST_STREAM, 1), "{end:?}");
        assert_ne!(end.code(), Some(NO_ERROR));
        assert_eq!(body, window as usize);
        assert_at(LIMIT, since);
        eventually(|| upstream.connections().1 <= 1).await;
        raw.send([get(3, "/small"), window_update(3, 1000)].concat())
            .await;
        assert_eq!(raw.answer(3).await.text(), "small");
    }
}

#[tokio::test]
async fn a_client_that_never_opens_the_window_of_its_connection_is_given_up_at_write_timeout() {
    let upstream = huge().await;
    let router = router(&upstream.url(), json!({"write-timeout": "300ms"}));
    let ours = [(setting::INITIAL_WINDOW_SIZE, 1 << 20)];
    let mut raw = Raw::client_with(router.address, &ours).await;
    let since = now();
    raw.send([get(1, "/huge"), get(3, "/huge")].concat()).await;
    let mut body = 0;
    let mut given_up = Vec::new();
    while given_up.len() < 2 {
        match raw.event().await {
            Some(frame) if frame.kind == kind::DATA => body += frame.payload.len(),
            Some(frame) if frame.kind == kind::RST_STREAM => given_up.push(frame.stream),
            Some(_) => {}
            None => break,
        }
    }
    assert_eq!(body, 65_535);
    assert_at(LIMIT, since);
    eventually(|| upstream.connections().1 == 0).await;
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_closed_at_write_timeout() {
    let upstream = huge().await;
    let router = router(&upstream.url(), json!({"write-timeout": "300ms"}));
    let ours = [(setting::INITIAL_WINDOW_SIZE, (1 << 31) - 1)];
    let mut raw = Raw::client_with(router.address, &ours).await;
    raw.send(window_update(0, 1 << 30)).await;
    let since = now();
    raw.send(get(1, "/huge")).await;
    eventually(|| upstream.connections() == (1, 1)).await;
    eventually(|| upstream.connections().1 == 0).await;
    let waited = since.elapsed();
    assert!(
        waited >= LIMIT && waited < Duration::from_secs(4),
        "{waited:?}"
    );
    let mut body = 0;
    let mut whole = false;
    while let Some(frame) = raw.event().await {
        whole |= frame.ends_stream();
        body += frame.payload.len();
        if frame.kind == kind::RST_STREAM {
            break;
        }
    }
    assert!(!whole && body < HUGE);
}

#[tokio::test]
async fn a_client_that_opens_its_windows_slowly_is_not_cut() {
    let upstream = huge().await;
    let router = router(&upstream.url(), json!({"write-timeout": "300ms"}));
    let mut raw = Raw::client(router.address).await;
    let begun = now();
    raw.send(get(1, "/huge")).await;
    let mut body = 0;
    while begun.elapsed() < 5 * LIMIT {
        let frame = raw.event().await.expect("more");
        assert!(
            matches!(frame.kind, kind::DATA | kind::HEADERS | kind::WINDOW_UPDATE),
            "{frame:?}"
        );
        if frame.kind == kind::DATA {
            body += frame.payload.len();
        }
        if body >= 65_535 {
            sleep(SHORT).await;
            raw.send([window_update(0, 100), window_update(1, 100)].concat())
                .await;
        }
    }
}

/// Progress is what the client takes, not what fits into our socket's buffer.
#[tokio::test]
async fn a_client_that_reads_very_slowly_is_not_cut() {
    let upstream = huge().await;
    let router = router(&upstream.url(), json!({"write-timeout": "300ms"}));
    let stream = soon(TcpStream::connect(router.address)).await.unwrap();
    SockRef::from(&stream)
        .set_recv_buffer_size(8 << 10)
        .unwrap();
    let mut raw = Raw::on(stream);
    let ours = settings(&[(setting::INITIAL_WINDOW_SIZE, (1 << 31) - 1)]);
    let frames = [PREFACE, &ours, &window_update(0, 1 << 30), &get(1, "/huge")];
    raw.send(frames.concat()).await;
    let begun = now();
    let mut piece = [0; 4 << 10];
    while begun.elapsed() < 5 * LIMIT {
        let read = soon(raw.reader.read(&mut piece)).await;
        assert!(
            matches!(read, Ok(1..)),
            "{read:?} after {:?}",
            begun.elapsed()
        );
        sleep(SHORT).await;
    }
}

// ---- upstreams that speak HTTP/2

#[tokio::test]
async fn an_upstream_that_never_answers_is_504_at_timeout_and_its_stream_reset() {
    let upstream = H2Upstream::eager(|asked| match asked.path.as_str() {
        "/small" => h2peer::answers(200, &[], "small"),
        _ => vec![Do::Hang],
    })
    .await;
    let router = router(
        &upstream.url(),
        json!({"timeout": "300ms", "protocol": "h2"}),
    );
    for (i, (method, body)) in [("GET", ""), ("POST", "body")].into_iter().enumerate() {
        let since = now();
        let response = request(router.address, method, "/", "", body).await;
        assert_eq!((response.status, response.complete), (504, true));
        assert_at(LIMIT, since);
        eventually(|| upstream.resets() == vec![h2::Reason::CANCEL; i + 1]).await;
    }
    assert_eq!(
        crate::support::get(router.address, "/small", "")
            .await
            .text(),
        "small"
    );
}

/// Accepts, reads and says nothing. The next request does not get that connection.
#[tokio::test]
async fn an_upstream_that_does_not_shake_hands_is_504_at_timeout() {
    let upstream = ByHand::start().await;
    let router = router(
        &upstream.url(),
        json!({"timeout": "300ms", "protocol": "h2"}),
    );
    for _ in 0..2 {
        let since = now();
        let asking = crate::support::get(router.address, "/", "");
        let silent = async {
            let mut service = upstream.accept().await;
            let _preface = service.rest().await;
        };
        let (response, ()) = tokio::join!(asking, silent);
        assert_eq!((response.status, response.complete), (504, true));
        assert_at(LIMIT, since);
    }
}

#[tokio::test]
async fn a_dripping_response_head_gets_no_more_time_than_another() {
    let upstream = ByHand::start().await;
    let router = router(
        &upstream.url(),
        json!({"timeout": "300ms", "protocol": "h2"}),
    );
    let since = now();
    let asking = crate::support::get(router.address, "/", "");
    let dripping = async {
        let service = upstream.accept().await;
        let mut raw = Raw::server(service.0.into_inner(), &[]).await;
        while raw.event().await.expect("a request").kind != kind::HEADERS {}
        raw.send(headers(1, 0, block([(":status", "200")]))).await;
        for _ in 0..500 {
            let drop = continuation(1, 0, block([("x-drip", "x")]));
            if raw.writer.write_all(&drop).await.is_err() {
                return;
            }
            if let Ok(None) = timeout(SHORT, raw.event()).await {
                return;
            }
            if since.elapsed() > 4 * LIMIT {
                return;
            }
        }
    };
    let (response, ()) = tokio::join!(asking, dripping);
    assert_eq!(response.status, 504);
    assert!(since.elapsed() >= LIMIT);
}

#[tokio::test]
async fn an_upstream_that_opens_no_window_for_an_upload_is_504() {
    let mut builder = h2::server::Builder::new();
    builder.initial_window_size(1000);
    let upstream = H2Upstream::with(builder, None, h2peer::When::Head, |_| vec![Do::Hang]);
    let router = router(
        &upstream.url(),
        json!({"timeout": "600ms", "protocol": "h2"}),
    );
    let mut client = H2Client::connect(router.address).await;
    let since = now();
    let got = client.post("/", &[], &vec![b'x'; 1 << 20]).await;
    assert_eq!(got.status, 504, "{got:?}");
    assert!(since.elapsed() >= 2 * LIMIT, "{:?}", since.elapsed());
    assert!(since.elapsed() < 10 * LIMIT, "{:?}", since.elapsed());
    eventually(|| upstream.streams().1 == 0).await;
}

/// An upstream that takes an upload slowly, but steadily, for longer than `timeout`.
#[tokio::test]
async fn an_upstream_that_opens_its_windows_slowly_is_waited_for() {
    let upstream = ByHand::start().await;
    let router = router(
        &upstream.url(),
        json!({"timeout": "300ms", "protocol": "h2"}),
    );
    let mut client = H2Client::connect(router.address).await;
    let since = now();
    let body = vec![b'x'; 75_000];
    let uploading = client.post("/", &[], &body);
    let taking = async {
        let service = upstream.accept().await;
        let mut raw = Raw::server(service.0.into_inner(), &[]).await;
        let mut taken = 0;
        while let Some(frame) = raw.event().await {
            assert!(
                matches!(frame.kind, kind::HEADERS | kind::DATA | kind::WINDOW_UPDATE),
                "{frame:?} after {taken} bytes and {:?}",
                since.elapsed()
            );
            if frame.kind == kind::DATA {
                taken += frame.payload.len();
                if frame.ends_stream() {
                    break;
                }
                if taken >= 65_535 {
                    sleep(SHORT).await;
                    raw.send([window_update(0, 100), window_update(1, 100)].concat())
                        .await;
                }
            }
        }
        raw.send(headers(1, flag::ALL, block([(":status", "201")])))
            .await;
        taken
    };
    let (got, taken) = tokio::join!(uploading, taking);
    assert_eq!((got.status, taken), (201, body.len()));
    assert!(since.elapsed() > 3 * LIMIT);
}

// ---- TLS

fn with_tls() -> (Folder, Authority, Value) {
    let folder = Folder::new();
    let authority = Authority::new("ours");
    let tls = authority.issue(&["localhost"]).write(&folder, "router");
    (folder, authority, tls)
}

#[tokio::test]
async fn a_handshake_that_does_not_come_about_is_closed_at_read_timeout() {
    let upstream = Upstream::named("up", 200).await;
    let (_folder, _authority, tls) = with_tls();
    let router = router(
        &upstream.url(),
        json!({"read-timeout": "300ms", "tls": tls}),
    );
    // A record of a ClientHello that is announced to be long.
    let hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
    for begun in [&b""[..], &hello[..1], &hello[..5], hello] {
        let mut client = Client::connect(router.address).await;
        let since = now();
        client.send(begun).await;
        let rest = client.rest().await;
        // An alert may be said.
        assert!(rest.is_empty() || rest[0] == 21, "{rest:?}");
        assert_at(LIMIT, since);
    }
    assert_eq!(upstream.connections(), (0, 0));
}

#[tokio::test]
async fn a_dripping_handshake_gets_no_more_time_than_another() {
    let upstream = Upstream::named("up", 200).await;
    let (_folder, _authority, tls) = with_tls();
    let router = router(
        &upstream.url(),
        json!({"read-timeout": "300ms", "tls": tls}),
    );
    let hello = [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        &[0; 500],
    ]
    .concat();
    let mut raw = Raw::connect(router.address).await;
    let since = now();
    drip(&mut raw, &hello).await;
    let mut rest = Vec::new();
    let _reset = soon(raw.reader.read_to_end(&mut rest)).await;
    assert_at(LIMIT, since);
}

#[tokio::test]
async fn silence_behind_a_handshake_is_closed_at_read_timeout() {
    let upstream = Upstream::named("up", 200).await;
    let (_folder, authority, tls) = with_tls();
    let router = router(
        &upstream.url(),
        json!({"read-timeout": "300ms", "tls": tls}),
    );
    for protocols in [&["h2"][..], &["http/1.1"], &[]] {
        let stream = TcpStream::connect(router.address).await.unwrap();
        let since = now();
        let client = TlsClient::new(&authority, protocols);
        let mut stream = soon(client.connect(stream)).await.unwrap();
        let mut rest = Vec::new();
        let _ended = soon(stream.read_to_end(&mut rest)).await;
        assert_at(LIMIT, since);
    }
}

/// The time for the handshake is not there a second time for the head.
#[tokio::test]
async fn an_idle_connection_under_tls_is_closed_at_idle_timeout() {
    let upstream = Upstream::named("up", 200).await;
    let (_folder, authority, tls) = with_tls();
    let router = router(
        &upstream.url(),
        json!({"read-timeout": "1h", "idle-timeout": "600ms", "tls": tls}),
    );
    let stream = TcpStream::connect(router.address).await.unwrap();
    let client = TlsClient::new(&authority, &["h2"]);
    let stream = soon(client.connect(stream)).await.unwrap();
    let mut client = H2Client::over(stream, &h2::client::Builder::new()).await;
    assert_eq!(client.get("/", &[]).await.status, 200);
    let idle = now();
    client.ended().await.unwrap();
    assert_at(2 * LIMIT - SHORT, idle);
}
