//! The end: what is in flight is finished, nothing new begins, and it does not take for ever.

use std::{net::SocketAddr, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpSocket,
};

use crate::support::*;

const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";

/// A router with one worker (so that what one connection sees holds for all), and its main.
async fn router(
    main: impl Fn(&Received) -> Vec<Step> + Send + Sync + 'static,
    config: Value,
) -> (Router, Upstream) {
    let main = Upstream::start(main).await;
    let mut file = json!({
        "main-target": main.url(),
        "canary-target": main.url(),
        "router-server": {"workers": 1},
        // Longer than a test has patience: nothing ends by itself.
        "proxy-client": {"to-main-and-canary": {"timeout": "1h"}}
    });
    merge(&mut file, config);
    (Router::start(file), main)
}

/// A main that answers once the gate is open.
fn behind(gate: &Gate) -> impl Fn(&Received) -> Vec<Step> + Send + Sync + 'static {
    let gate = gate.clone();
    move |_| [vec![Step::Wait(gate.clone())], answer(200, "", "main")].concat()
}

/// A keep-alive connection that has had one answer.
async fn idle(address: SocketAddr) -> Client {
    let mut client = Client::connect(address).await;
    // Answered without an upstream, so whatever main does.
    let response = client
        .roundtrip("GET", "GET /application/health HTTP/1.1\r\nhost: a\r\n\r\n")
        .await;
    assert_eq!(response.header("connection"), None);
    client
}

/// A connection on which a request is in flight.
async fn in_flight(router: &Router, main: &Upstream, bytes: &str) -> Client {
    let before = main.count();
    let mut client = Client::connect(router.address).await;
    client.send(bytes).await;
    eventually(|| main.count() > before).await;
    client
}

/// Begins the drain, and returns when the worker has.
async fn drain(router: &Router) {
    let mut witness = idle(router.address).await;
    router.drain();
    witness.closed().await;
}

async fn ready(router: &Router) -> u16 {
    get(router.instrumentation, "/health/ready", "")
        .await
        .status
}

#[tokio::test]
async fn a_request_in_flight_is_finished_and_told_that_the_connection_ends() {
    let gate = Gate::shut();
    let (mut router, main) = router(behind(&gate), json!({})).await;
    let mut clients = Vec::new();
    for _ in 0..5 {
        clients.push(in_flight(&router, &main, GET).await);
    }
    drain(&router).await;
    gate.open();
    for mut client in clients {
        let response = client.response("GET").await.unwrap();
        assert_eq!((response.status, response.text().as_str()), (200, "main"));
        assert_eq!(response.header("connection"), Some("close"));
        client.closed().await;
    }
    router.ended().await.unwrap();
}

#[tokio::test]
async fn before_the_drain_nobody_is_told_to_close() {
    let (mut router, _main) = router(|_| answer(200, "", "main"), json!({})).await;
    let mut client = Client::connect(router.address).await;
    for _ in 0..3 {
        let response = client.roundtrip("GET", GET).await;
        assert_eq!(response.header("connection"), None);
    }
    drain(&router).await;
    client.closed().await;
    router.ended().await.unwrap();
}

#[tokio::test]
async fn idle_connections_are_closed_at_once() {
    let (mut router, _main) = router(
        |_| answer(200, "", "main"),
        json!({
            "router-server": {
                "workers": 2, "idle-timeout": "1h", "read-timeout": "1h", "shutdown-timeout": "1h"
            }
        }),
    )
    .await;
    let mut clients = Vec::new();
    for _ in 0..10 {
        clients.push(idle(router.address).await);
        // And one that has never said anything.
        clients.push(Client::connect(router.address).await);
    }
    router.drain();
    let closed = async {
        for mut client in clients {
            client.closed().await;
        }
        router.ended().await.unwrap();
    };
    tokio::time::timeout(Duration::from_secs(2), closed)
        .await
        .expect("at once");
}

#[tokio::test]
async fn new_connections_are_refused_while_the_rest_is_finished() {
    let gate = Gate::shut();
    let (mut router, main) = router(behind(&gate), json!({})).await;
    let mut client = in_flight(&router, &main, GET).await;
    drain(&router).await;
    let refused = std::net::TcpStream::connect(router.address).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    gate.open();
    assert_eq!(client.response("GET").await.unwrap().status, 200);
    router.ended().await.unwrap();
}

#[tokio::test]
async fn a_request_that_meets_the_drain_is_answered_whole_or_not_at_all() {
    for round in 0..10 {
        let (mut router, main) = router(
            |_| answer(200, "", "main"),
            json!({"router-server": {"workers": 2}}),
        )
        .await;
        let mut clients = Vec::new();
        for _ in 0..10 {
            clients.push(idle(router.address).await);
        }
        // Each time the requests come a little later.
        let delay = Duration::from_millis(round * 15);
        router.drain();
        let answers = together(
            clients
                .into_iter()
                .enumerate()
                .map(|(i, mut client)| async move {
                    tokio::time::sleep(delay + Duration::from_micros(100 * i as u64)).await;
                    let _closed_meanwhile = client.0.write_all(GET.as_bytes()).await;
                    String::from_utf8_lossy(&client.rest().await).into_owned()
                }),
        )
        .await;
        let answered = answers.iter().filter(|answer| !answer.is_empty()).count();
        for answer in answers.iter().filter(|answer| !answer.is_empty()) {
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            assert!(answer.to_lowercase().contains("\r\nconnection: close\r\n"));
            assert!(answer.ends_with("\r\n\r\nmain"), "{answer}");
        }
        assert_eq!(main.count(), answered, "none was forwarded for nothing");
        router.ended().await.unwrap();
    }
}

#[tokio::test]
async fn connections_that_the_kernel_took_are_served_though_the_drain_began() {
    let (mut router, _main) = router(
        |_| answer(200, "", "main"),
        json!({"router-server": {"workers": 2}}),
    )
    .await;
    let address = router.address;
    let mut clients = Vec::new();
    for _ in 0..20 {
        let mut client = Client::connect(address).await;
        client.send(GET).await;
        clients.push(client);
    }
    router.drain();
    for mut client in clients {
        let response = client.response("GET").await.expect("an answer");
        assert_eq!((response.status, response.text().as_str()), (200, "main"));
    }
    router.ended().await.unwrap();
}

#[tokio::test]
async fn a_request_whose_head_is_on_its_way_is_answered() {
    let (mut router, _main) = router(|_| answer(200, "", "main"), json!({})).await;
    let mut fresh = Client::connect(router.address).await;
    fresh.send("GET / HTTP/1.1\r\nho").await;
    let mut kept = idle(router.address).await;
    kept.send("GET / HTTP/1.1\r\nho").await;
    drain(&router).await;
    for client in [&mut fresh, &mut kept] {
        let response = client.roundtrip("GET", "st: a\r\n\r\n").await;
        assert_eq!((response.status, response.text().as_str()), (200, "main"));
        assert_eq!(response.header("connection"), Some("close"));
        client.closed().await;
    }
    router.ended().await.unwrap();
}

#[tokio::test]
async fn a_request_whose_body_is_on_its_way_is_answered() {
    let (mut router, main) = router(|_| answer(200, "", "main"), json!({})).await;
    let mut client = Client::connect(router.address).await;
    client
        .send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nsome")
        .await;
    eventually(|| main.connections().0 == 1).await;
    drain(&router).await;
    let response = client.roundtrip("POST", " body").await;
    assert_eq!((response.status, response.text().as_str()), (200, "main"));
    assert_eq!(response.header("connection"), Some("close"));
    assert_eq!(main.only().text(), "some body");
    client.closed().await;
    router.ended().await.unwrap();
}

#[tokio::test]
async fn a_long_transfer_is_finished() {
    for framing in ["transfer-encoding: chunked", "content-length: 40"] {
        let gate = Gate::shut();
        let waiting = gate.clone();
        let (mut router, _main) = router(
            move |_| {
                let in_chunks = framing.ends_with("chunked");
                let piece = match in_chunks {
                    true => b"4\r\npart\r\n".to_vec(),
                    false => b"part".to_vec(),
                };
                let head = format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n");
                let mut steps = vec![Step::Write(head.into()), Step::Write(piece.clone())];
                steps.push(Step::Wait(waiting.clone()));
                for _ in 0..9 {
                    steps.push(Step::Pause(Duration::from_millis(10)));
                    steps.push(Step::Write(piece.clone()));
                }
                if in_chunks {
                    steps.push(Step::Write(b"0\r\n\r\n".to_vec()));
                }
                steps
            },
            json!({}),
        )
        .await;
        let mut client = Client::connect(router.address).await;
        client.send(GET).await;
        // The response has begun: it is too late to say anything in its head.
        let mut first = [0; 12];
        soon(client.0.read_exact(&mut first)).await.unwrap();
        assert_eq!(&first, b"HTTP/1.1 200");
        drain(&router).await;
        gate.open();
        let rest = String::from_utf8_lossy(&client.rest().await).into_owned();
        let (_head, body) = rest.split_once("\r\n\r\n").unwrap();
        assert_eq!(body.matches("part").count(), 10, "{framing}: {rest}");
        if framing.ends_with("chunked") {
            assert!(body.ends_with("0\r\n\r\n"), "{rest}");
        }
        router.ended().await.unwrap();
    }
}

#[tokio::test]
async fn a_request_that_takes_too_long_is_cut_at_the_shutdown_timeout() {
    let (mut router, main) = router(
        |_| vec![Step::Hang],
        json!({"router-server": {"shutdown-timeout": "300ms"}}),
    )
    .await;
    let mut client = in_flight(&router, &main, GET).await;
    router.drain();
    router.ended().await.unwrap();
    assert_eq!(client.rest().await, b"");
    eventually(|| main.connections().1 == 0).await;
}

#[tokio::test]
async fn a_transfer_that_takes_too_long_is_cut_and_does_not_look_complete() {
    for framing in ["transfer-encoding: chunked", "content-length: 40"] {
        let (mut router, _main) = router(
            move |_| {
                let piece = match framing.ends_with("chunked") {
                    true => "4\r\npart\r\n",
                    false => "part",
                };
                let head = format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n{piece}");
                vec![Step::Write(head.into()), Step::Hang]
            },
            json!({"router-server": {"shutdown-timeout": "200ms"}}),
        )
        .await;
        let mut client = Client::connect(router.address).await;
        client.send(GET).await;
        let mut first = [0; 12];
        soon(client.0.read_exact(&mut first)).await.unwrap();
        router.drain();
        router.ended().await.unwrap();
        let rest = String::from_utf8_lossy(&client.rest().await).into_owned();
        assert_eq!(rest.matches("part").count(), 1, "{framing}: {rest}");
        assert!(!rest.ends_with("0\r\n\r\n"), "{rest}");
    }
}

#[tokio::test]
async fn a_tunnel_is_let_be_until_the_shutdown_timeout() {
    let (mut router, _main) = router(
        |_| {
            let head =
                "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
            vec![Step::Write(head.into()), Step::Echo]
        },
        json!({"router-server": {"shutdown-timeout": "500ms"}}),
    )
    .await;
    let mut client = Client::connect(router.address).await;
    let response = client
        .roundtrip(
            "GET",
            "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n",
        )
        .await;
    assert_eq!(response.status, 101);
    drain(&router).await;
    client.send("over").await;
    let mut echoed = [0; 4];
    soon(client.0.read_exact(&mut echoed)).await.unwrap();
    assert_eq!(&echoed, b"over");
    router.ended().await.unwrap();
    client.closed().await;
}

#[tokio::test]
async fn a_client_that_reads_nothing_does_not_hold_the_drain_up() {
    let (mut router, main) = router(
        |_| answer(200, "", &"x".repeat(32 << 20)),
        json!({"router-server": {"shutdown-timeout": "300ms"}}),
    )
    .await;
    let client = in_flight(&router, &main, GET).await;
    router.drain();
    router.ended().await.unwrap();
    drop(client);
}

#[tokio::test]
async fn readiness_is_withdrawn_for_as_long_as_the_drain_takes() {
    let gate = Gate::shut();
    let (mut router, main) = router(behind(&gate), json!({})).await;
    assert_eq!(ready(&router).await, 200);
    let mut client = in_flight(&router, &main, GET).await;
    assert_eq!(ready(&router).await, 200);
    router.drain();
    assert_eq!(ready(&router).await, 503);
    gate.open();
    assert_eq!(client.response("GET").await.unwrap().status, 200);
    router.ended().await.unwrap();
    let gone = std::net::TcpStream::connect(router.instrumentation).unwrap_err();
    assert_eq!(gone.kind(), std::io::ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn a_drain_with_nothing_to_do_ends() {
    let (mut router, _main) = router(
        |_| answer(200, "", "main"),
        json!({"router-server": {"workers": 2, "shutdown-timeout": "1h"}}),
    )
    .await;
    router.drain();
    // A second one is no different.
    router.drain();
    router.ended().await.unwrap();
}

#[tokio::test]
async fn of_pipelined_requests_the_one_in_flight_is_the_last() {
    let gate = Gate::shut();
    let (mut router, main) = router(behind(&gate), json!({})).await;
    let mut client = in_flight(&router, &main, &GET.repeat(2)).await;
    drain(&router).await;
    gate.open();
    let response = client.response("GET").await.unwrap();
    assert_eq!((response.status, response.text().as_str()), (200, "main"));
    assert_eq!(response.header("connection"), Some("close"));
    client.closed().await;
    assert_eq!(main.count(), 1, "the other one can be sent again elsewhere");
    router.ended().await.unwrap();
}

/// It was reset like one that is cut, because its upload was not over: what the client had not read yet
/// was lost.
#[tokio::test]
async fn a_response_that_is_whole_is_not_reset_at_shutdown_timeout_though_its_upload_is_not() {
    const SIZE: usize = 500_000;
    let upstream = ByHand::start().await;
    let mut router = router_with(
        &upstream.url(),
        json!({
            "router-server": {"shutdown-timeout": "300ms", "read-timeout": "1h"},
            "proxy-client": {"to-main-and-canary": {"timeout": "1h"}}
        }),
    );
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(8 << 10).unwrap();
    let mut client = Client(BufReader::new(
        socket.connect(router.address).await.unwrap(),
    ));
    client
        .send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nsome")
        .await;
    let mut main = upstream.accept().await;
    main.head().await;
    main.expect("some").await;
    main.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {SIZE}\r\n\r\n"))
        .await;
    main.send(noise(SIZE)).await;
    // It was read to its end, and written by the one worker when that does something else.
    router.counts(&reason("", "main"), 1.0).await;
    drain(&router).await;
    router.ended().await.unwrap();
    let response = client.response("POST").await.unwrap();
    assert_eq!((response.status, response.complete), (200, true));
    assert_same(&response.message.body, &noise(SIZE));
}

/// A response that ends with its connection looked complete when the process ended.
#[tokio::test]
async fn a_response_without_a_length_that_is_cut_at_shutdown_timeout_is_reset() {
    let upstream = ByHand::start().await;
    let mut router = router_with(
        &upstream.url(),
        json!({"router-server": {"shutdown-timeout": "200ms"}}),
    );
    let mut client = Client::connect(router.address).await;
    client.send("GET / HTTP/1.0\r\nhost: h\r\n\r\n").await;
    let mut main = upstream.accept().await;
    main.head().await;
    main.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n")
        .await;
    client.head().await;
    client.expect("ok").await;
    router.drain();
    router.ended().await.unwrap();
    let end = tokio::io::AsyncReadExt::read(&mut client.0, &mut [0; 8]).await;
    assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}
