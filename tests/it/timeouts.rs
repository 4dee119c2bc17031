//! Who is waited for, and for how long. The limits that a test is not about are far away.

use std::{
    io::ErrorKind,
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use canary_router::clock::now;
use serde_json::{Value, json};
use socket2::{Domain, SockRef, Socket, Type};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::{sleep, timeout},
};

use crate::support::*;

const LIMIT: Duration = Duration::from_millis(300);
/// Pauses that come nowhere near the limit even on a busy machine.
const SHORT: Duration = Duration::from_millis(20);

/// A router on which `set` is short, and everything else an hour.
fn router(target: &str, set: Value) -> Router {
    let mut server = json!({"read-timeout": "1h", "write-timeout": "1h", "idle-timeout": "1h"});
    let mut client = json!({"timeout": "1h", "idle-conn-timeout": "1h"});
    for (key, value) in set.as_object().unwrap() {
        match server.get(key) {
            Some(_) => server[key] = value.clone(),
            None => client[key] = value.clone(),
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

fn post(headers: &str) -> String {
    format!("POST / HTTP/1.1\r\nhost: client.example\r\n{headers}\r\n")
}

const GET: &str = "GET / HTTP/1.1\r\nhost: client.example\r\n\r\n";

// ---- clients that keep us waiting

#[tokio::test]
async fn a_silent_connection_is_closed_at_read_timeout() {
    let upstream = Upstream::named("up", 200).await;
    let router = router(&upstream.url(), json!({"read-timeout": "300ms"}));
    let connected = now();
    let mut client = Client::connect(router.address).await;
    client.closed().await;
    assert_at(LIMIT, connected);
}

#[tokio::test]
async fn half_a_head_is_408_at_read_timeout_and_the_end() {
    let upstream = Upstream::named("up", 200).await;
    let router = router(&upstream.url(), json!({"read-timeout": "300ms"}));
    for before in ["", GET] {
        let mut client = Client::connect(router.address).await;
        if !before.is_empty() {
            assert_eq!(client.roundtrip("GET", before).await.status, 200);
        }
        let begun = now();
        client.send("GET / HTTP/1.1\r\nhost: cl").await;
        let response = client.response("GET").await.expect("an answer");
        assert_eq!((response.status, response.complete), (408, true));
        assert_eq!(response.header("connection"), Some("close"));
        client.closed().await;
        assert_at(LIMIT, begun);
    }
}

/// Old clients send an empty line behind a request. It was taken for the beginning of the next one,
/// and the client, which had nothing more to say, got a 408 for that.
#[tokio::test]
async fn a_connection_with_an_empty_line_behind_a_request_is_idle() {
    let upstream = Upstream::named("up", 200).await;
    let router = router(&upstream.url(), json!({"read-timeout": "300ms"}));
    let request = post("content-length: 2\r\n") + "hi";
    let mut at_once = Client::connect(router.address).await;
    let answered = at_once.roundtrip("POST", request.clone() + "\r\n").await;
    assert_eq!(answered.status, 200);
    let mut later = Client::connect(router.address).await;
    assert_eq!(later.roundtrip("POST", &request).await.status, 200);
    later.send("\r\n").await;
    // Two who do begin a request then: when the second one is too late, so would the others be.
    for _ in 0..2 {
        let mut late = Client::connect(router.address).await;
        let response = late.roundtrip("GET", "GET / HTTP/1.1\r\nho").await;
        assert_eq!(response.status, 408);
    }
    for mut client in [at_once, later] {
        assert_eq!(client.roundtrip("GET", GET).await.status, 200);
    }
}

#[tokio::test]
async fn a_dripping_head_gets_no_more_time_than_another() {
    let upstream = Upstream::named("up", 200).await;
    let router = router(&upstream.url(), json!({"read-timeout": "300ms"}));
    let mut client = Client::connect(router.address).await;
    let begun = now();
    client.send("GET / HTTP/1.1\r\nx-drip: ").await;
    soon(async {
        while timeout(SHORT, client.0.fill_buf()).await.is_err() {
            client.0.write_all(b"x").await.unwrap();
        }
    })
    .await;
    assert_eq!(client.response("GET").await.expect("an answer").status, 408);
    assert_at(LIMIT, begun);
}

#[tokio::test]
async fn an_idle_connection_is_closed_at_idle_timeout() {
    let upstream = Upstream::named("up", 200).await;
    for read_timeout in ["100ms", "1h"] {
        let router = router(
            &upstream.url(),
            json!({"read-timeout": read_timeout, "idle-timeout": "600ms"}),
        );
        let mut client = Client::connect(router.address).await;
        let mut idle = now();
        for _ in 0..2 {
            idle = now();
            assert_eq!(client.roundtrip("GET", GET).await.status, 200);
            // Longer than the shorter read-timeout: that is for heads that have begun.
            sleep(LIMIT).await;
        }
        client.closed().await;
        assert_at(2 * LIMIT, idle);
    }
}

async fn assert_stalled_uploads_are_408(sidecar: Option<&Upstream>) {
    let upstream = Upstream::named("up", 200).await;
    let mut config = json!({
        "router-server": {"read-timeout": "300ms", "write-timeout": "1h"},
        "proxy-client": {"to-main-and-canary": {"timeout": "1h"}}
    });
    if let Some(sidecar) = sidecar {
        config["sidecar-url"] = sidecar.url().into();
    }
    let router = router_with(&upstream.url(), config);
    for (framing, part) in [
        ("content-length: 10\r\n", "abc"),
        ("content-length: 10\r\n", ""),
        ("transfer-encoding: chunked\r\n", "3\r\nabc\r\n"),
        ("transfer-encoding: chunked\r\n", "3\r\na"),
    ] {
        let mut client = Client::connect(router.address).await;
        let begun = now();
        client.send(post(framing) + part).await;
        let response = client.response("POST").await.expect("an answer");
        assert_eq!((response.status, response.complete), (408, true));
        client.closed().await;
        assert_at(LIMIT, begun);
        eventually(|| upstream.connections().1 == 0).await;
    }
    assert_eq!(upstream.count(), 0, "nothing of it may look whole");
}

#[tokio::test]
async fn a_request_body_that_stalls_is_408_and_the_end() {
    assert_stalled_uploads_are_408(None).await;
}

/// The sidecar's own timeout, 2 s here, has nothing to do with it.
#[tokio::test]
async fn a_request_body_that_stalls_is_408_with_a_sidecar_too() {
    let sidecar = Upstream::named("", 204).await;
    assert_stalled_uploads_are_408(Some(&sidecar)).await;
}

/// The original cut it after `read-timeout`, and a naive wait for the response after `timeout`.
#[tokio::test]
async fn a_slow_upload_may_take_longer_than_any_timeout() {
    let upstream = Upstream::named("up", 200).await;
    let router = router(
        &upstream.url(),
        json!({"read-timeout": "300ms", "write-timeout": "300ms", "timeout": "300ms"}),
    );
    for (framing, piece, end) in [
        ("content-length: 50\r\n", "x", ""),
        ("transfer-encoding: chunked\r\n", "1\r\nx\r\n", "0\r\n\r\n"),
    ] {
        let mut client = Client::connect(router.address).await;
        let begun = now();
        client.send(post(framing)).await;
        for _ in 0..50 {
            client.send(piece).await;
            sleep(SHORT).await;
        }
        client.send(end).await;
        assert_eq!(client.response("POST").await.unwrap().status, 200);
        assert!(begun.elapsed() > 3 * LIMIT);
        assert_eq!(upstream.seen().pop().unwrap().body.len(), 50);
    }
}

#[tokio::test]
async fn a_slow_response_may_take_longer_than_any_timeout() {
    let upstream = Upstream::start(|_| {
        let mut steps = vec![Step::Write(
            b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n".to_vec(),
        )];
        for _ in 0..50 {
            steps.extend([Step::Write(b"x".to_vec()), Step::Pause(SHORT)]);
        }
        steps
    })
    .await;
    let router = router(
        &upstream.url(),
        json!({
            "read-timeout": "300ms", "write-timeout": "300ms", "idle-timeout": "300ms",
            "timeout": "300ms"
        }),
    );
    let begun = now();
    let response = get(router.address, "/", "").await;
    assert!(response.complete);
    assert_eq!(response.message.body.len(), 50);
    assert!(begun.elapsed() > 3 * LIMIT);
}

/// Server-sent events: the service has nothing to say for a while, and nobody is to blame.
#[tokio::test]
async fn a_pause_in_the_middle_of_a_response_may_be_longer_than_any_timeout() {
    let upstream = ByHand::start().await;
    let router = router(
        &upstream.url(),
        json!({
            "read-timeout": "200ms", "write-timeout": "200ms", "idle-timeout": "200ms",
            "timeout": "200ms", "idle-conn-timeout": "200ms"
        }),
    );
    let mut client = Client::connect(router.address).await;
    client.send(GET).await;
    let mut service = upstream.accept().await;
    service.head().await;
    service
        .send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        .await;
    client.head().await;
    for _ in 0..2 {
        sleep(Duration::from_millis(600)).await;
        service.send("8\r\ndata: x\n\r\n").await;
        client.expect("8\r\ndata: x\n\r\n").await;
    }
    service.send("0\r\n\r\n").await;
    client.expect("0\r\n\r\n").await;
}

/// More than all socket buffers on the way hold together.
const HUGE: usize = 64 << 20;

async fn huge() -> Upstream {
    Upstream::start(|_| {
        vec![
            Step::Write(format!("HTTP/1.1 200 OK\r\ncontent-length: {HUGE}\r\n\r\n").into_bytes()),
            Step::Write(vec![b'x'; HUGE]),
        ]
    })
    .await
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_closed_at_write_timeout() {
    let upstream = huge().await;
    let router = router(&upstream.url(), json!({"write-timeout": "300ms"}));
    let mut client = Client::connect(router.address).await;
    let begun = now();
    client.send(GET).await;
    eventually(|| upstream.connections() == (1, 1)).await;
    eventually(|| upstream.connections().1 == 0).await;
    let waited = begun.elapsed();
    assert!(
        waited >= LIMIT && waited < Duration::from_secs(4),
        "{waited:?}"
    );
    let response = client.response("GET").await.unwrap();
    assert!(!response.complete);
    assert!(response.message.body.len() < HUGE);
}

#[tokio::test]
async fn a_client_that_reads_slowly_is_not_cut() {
    let upstream = huge().await;
    let router = router(&upstream.url(), json!({"write-timeout": "300ms"}));
    let mut client = Client::connect(router.address).await;
    let begun = now();
    client.send(GET).await;
    client.head().await;
    let mut piece = vec![0; 1 << 20];
    for _ in 0..HUGE / piece.len() {
        soon(client.0.read_exact(&mut piece)).await.unwrap();
        sleep(SHORT).await;
    }
    assert!(begun.elapsed() > 3 * LIMIT);
}

/// Progress is what the client takes, not what fits into our socket's buffer: a system says that
/// there is room again only when a good part of the buffer is free.
#[tokio::test]
async fn a_client_that_reads_very_slowly_is_not_cut() {
    let upstream = huge().await;
    let router = router(&upstream.url(), json!({"write-timeout": "300ms"}));
    let mut client = slow_reader(router.address).await;
    client.send(GET).await;
    client.head().await;
    let begun = now();
    let mut piece = [0; 4 << 10];
    while begun.elapsed() < 5 * LIMIT {
        let read = soon(client.0.read(&mut piece)).await;
        assert!(
            matches!(read, Ok(1..)),
            "{read:?} after {:?}",
            begun.elapsed()
        );
        sleep(SHORT).await;
    }
}

/// A client with a small receive buffer.
async fn slow_reader(address: SocketAddr) -> Client {
    let client = Client::connect(address).await;
    SockRef::from(client.0.get_ref())
        .set_recv_buffer_size(8 << 10)
        .unwrap();
    client
}

// ---- upstreams that keep us waiting

#[tokio::test]
async fn an_upstream_that_never_answers_is_504_at_timeout() {
    let upstream = Upstream::start(|_| vec![Step::Hang]).await;
    let router = router(&upstream.url(), json!({"timeout": "300ms"}));
    for (method, body) in [("GET", ""), ("POST", "body")] {
        let begun = now();
        let response = request(router.address, method, "/", "", body).await;
        assert_eq!((response.status, response.complete), (504, true));
        assert_at(LIMIT, begun);
        eventually(|| upstream.connections().1 == 0).await;
    }
    assert_eq!(upstream.count(), 2);
}

#[tokio::test]
async fn a_dripping_response_head_gets_no_more_time_than_another() {
    let upstream = Upstream::start(|_| {
        let mut steps = vec![Step::Write(b"HTTP/1.1 200 OK\r\nx-drip: ".to_vec())];
        for _ in 0..500 {
            steps.extend([Step::Write(b"x".to_vec()), Step::Pause(SHORT)]);
        }
        steps
    })
    .await;
    let router = router(&upstream.url(), json!({"timeout": "300ms"}));
    let begun = now();
    assert_eq!(get(router.address, "/", "").await.status, 504);
    assert_at(LIMIT, begun);
}

#[tokio::test]
async fn an_upstream_that_reads_nothing_of_an_upload_is_504() {
    let upstream = ByHand::start().await;
    let router = router(&upstream.url(), json!({"timeout": "1s"}));
    let mut client = Client::connect(router.address).await;
    let begun = now();
    client
        .send(post(&format!("content-length: {HUGE}\r\n")))
        .await;
    let mut service = upstream.accept().await;
    service.head().await;
    // Until all buffers on the way are full.
    let piece = vec![b'x'; 64 << 10];
    let mut blocked = now();
    while matches!(timeout(LIMIT / 3, client.0.write(&piece)).await, Ok(Ok(_))) {
        blocked = now();
    }
    let response = client.response("POST").await.expect("an answer");
    assert_eq!((response.status, response.complete), (504, true));
    assert!(begun.elapsed() >= LIMIT, "{:?}", begun.elapsed());
    assert!(blocked.elapsed() < 6 * LIMIT, "{:?}", blocked.elapsed());
}

/// An upload that its upstream reads slowly, but steadily, for longer than `timeout`.
async fn assert_slow_reading_is_not_504(size: usize, sidecar: Option<&Upstream>) {
    /// Bytes a second.
    const PACE: f64 = 400_000.0;
    let limit = Duration::from_millis(800);
    let upstream = ByHand::on(listen_narrowly());
    let mut config = json!({"proxy-client": {"to-main-and-canary": {"timeout": "800ms"}}});
    if let Some(sidecar) = sidecar {
        config["sidecar-url"] = sidecar.url().into();
    }
    let router = router_with(&upstream.url(), config);
    let mut client = Client::connect(router.address).await;
    client
        .send(post(&format!("content-length: {size}\r\n")))
        .await;
    let uploading = tokio::spawn(async move {
        // What is answered before the end shows below.
        let _cut = client.0.write_all(&vec![b'x'; size]).await;
        client.response("POST").await
    });
    let mut service = upstream.accept().await;
    service.head().await;
    let begun = now();
    let mut left = size;
    while left > 0 {
        let elapsed = begun.elapsed();
        let due = match elapsed < limit * 5 / 2 {
            true => (elapsed.as_secs_f64() * PACE) as usize - (size - left),
            false => left,
        };
        let mut piece = vec![0; due];
        let read = soon(service.0.read_exact(&mut piece)).await;
        assert!(read.is_ok(), "{read:?} after {elapsed:?}");
        left -= due;
        sleep(SHORT).await;
    }
    service
        .send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        .await;
    let response = soon(uploading).await.unwrap().expect("an answer");
    assert_eq!((response.status, &*response.text()), (200, "ok"));
}

/// Our system said that there is room again only when a megabyte of the socket's buffer was free, and
/// what went on in the meantime was taken for an upload that stalls.
#[tokio::test]
async fn an_upstream_that_reads_an_upload_slowly_is_not_504() {
    assert_slow_reading_is_not_504(16 << 20, None).await;
}

/// The part that the sidecar was sent leaves in one piece, and only its end counted as progress.
#[tokio::test]
async fn an_upstream_that_reads_an_upload_slowly_is_not_504_with_a_sidecar_either() {
    let sidecar = Upstream::named("", 204).await;
    // More than the sidecar gets, and a body that was read whole for it.
    for size in [16 << 20, 1_000_000] {
        assert_slow_reading_is_not_504(size, Some(&sidecar)).await;
    }
}

/// They are not the answer that is waited for.
#[tokio::test]
async fn informational_responses_do_not_stop_the_clock() {
    let upstream = Upstream::start(|_| {
        let mut steps = Vec::new();
        for _ in 0..500 {
            steps.push(Step::Write(b"HTTP/1.1 102 Processing\r\n\r\n".to_vec()));
            steps.push(Step::Pause(SHORT));
        }
        steps
    })
    .await;
    let router = router(&upstream.url(), json!({"timeout": "300ms"}));
    let begun = now();
    assert_eq!(get(router.address, "/", "").await.status, 504);
    assert_at(LIMIT, begun);
}

/// A listener that takes no further connection, as one behind a firewall that drops packets.
fn unreachable() -> (Socket, Vec<TcpStream>, SocketAddr) {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    listener.bind(&any.into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    // Until one is not accepted: then the queue is full.
    let mut queued = Vec::new();
    loop {
        match TcpStream::connect_timeout(&address, Duration::from_millis(100)) {
            Ok(stream) => queued.push(stream),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::TimedOut);
                return (listener, queued, address);
            }
        }
    }
}

#[tokio::test]
async fn connecting_is_bounded_by_connect_timeout_and_by_timeout() {
    let (_listener, _queued, address) = unreachable();
    for set in [
        json!({"connect-timeout": "300ms"}),
        json!({"timeout": "300ms"}),
    ] {
        let router = router(&format!("http://{address}"), set);
        let begun = now();
        assert_eq!(get(router.address, "/", "").await.status, 504);
        assert_at(LIMIT, begun);
    }
}

#[tokio::test]
async fn connect_timeout_includes_the_tls_handshake() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", silent.local_addr().unwrap());
    let router = router(
        &url,
        json!({"connect-timeout": "300ms", "tls": {"insecure-skip-verify": true}}),
    );
    let begun = now();
    assert_eq!(get(router.address, "/", "").await.status, 504);
    assert_at(LIMIT, begun);
}

#[tokio::test]
async fn an_upstream_connection_is_closed_when_idle_for_idle_conn_timeout() {
    let upstream = Upstream::named("up", 200).await;
    let router = router(&upstream.url(), json!({"idle-conn-timeout": "300ms"}));
    let mut client = Client::connect(router.address).await;
    let idle = now();
    assert_eq!(client.roundtrip("GET", GET).await.status, 200);
    eventually(|| upstream.connections() == (1, 0)).await;
    assert!(idle.elapsed() >= LIMIT);
    assert_eq!(client.roundtrip("GET", GET).await.status, 200);
    assert_eq!(upstream.connections().0, 2);
}

#[tokio::test]
async fn max_idle_conns_bounds_the_idle_connections_and_not_the_busy_ones() {
    let upstream = ByHand::start().await;
    let router = router(&upstream.url(), json!({"max-idle-conns": 2}));
    let mut pairs = Vec::new();
    for _ in 0..6 {
        let mut client = Client::connect(router.address).await;
        client.send(GET).await;
        let mut service = upstream.accept().await;
        service.head().await;
        pairs.push((client, service));
    }
    let mut services = Vec::new();
    for (mut client, mut service) in pairs {
        service
            .send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            .await;
        assert_eq!(client.response("GET").await.unwrap().status, 200);
        services.push(service);
    }
    // The first two to become idle are kept.
    for service in &mut services[2..] {
        service.closed().await;
    }
    for service in &mut services[..2] {
        let closed = timeout(SHORT, service.0.fill_buf()).await;
        assert!(closed.is_err(), "{closed:?}");
    }
}

/// The connection was taken for idle when the response was through, the rest of the upload for the
/// next request's head, and a 408 for that was written behind the response.
#[tokio::test]
async fn an_upload_that_goes_on_behind_its_response_is_read_to_its_end() {
    let upstream = ByHand::start().await;
    let router = router_with(
        &upstream.url(),
        json!({"router-server": {"read-timeout": "200ms"}}),
    );
    let mut client = Client::connect(router.address).await;
    client
        .send("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 10\r\n\r\n0")
        .await;
    let mut early = upstream.accept().await;
    early.head().await;
    early
        .send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        .await;
    assert_eq!(client.response("POST").await.unwrap().text(), "ok");
    for digit in 1..10 {
        tokio::time::sleep(std::time::Duration::from_millis(60)).await;
        client.send(digit.to_string()).await;
    }
    early.expect("0123456789").await;
    // And the connection is one for the next request.
    client.send("GET /next HTTP/1.1\r\nhost: h\r\n\r\n").await;
    assert!(early.head().await.starts_with("GET /next "));
}

/// Idle was when hyper had taken the last byte: a client that read later than `idle-timeout` lost what
/// was still to be written. That is a few hundred KB behind what the kernel holds, and how much that
/// is differs, so many lengths are tried.
#[tokio::test]
async fn a_late_reader_gets_the_end_of_its_response_however_short_the_idle_timeout() {
    let upstream = Upstream::start(|request| {
        let length = request.target()[1..].parse().unwrap();
        answer(200, "", &"x".repeat(length))
    })
    .await;
    let router = router_with(
        &upstream.url(),
        json!({"router-server": {"idle-timeout": "100ms"}}),
    );
    let address = router.address;
    together((2..32).map(|step: usize| async move {
        let length = step * (256 << 10);
        let mut client = Client::connect(address).await;
        client
            .send(format!("GET /{length} HTTP/1.1\r\nhost: h\r\n\r\n"))
            .await;
        client.head().await;
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        let mut read = 0;
        let mut piece = vec![0; 64 << 10];
        while read < length {
            match soon(client.0.read(&mut piece)).await {
                Ok(more @ 1..) => read += more,
                end => panic!("{end:?} after {read} of {length} bytes"),
            }
        }
    }))
    .await;
}
