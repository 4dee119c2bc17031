//! `101`: connections that stop being HTTP.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::{
    accept_async, client_async,
    tungstenite::{
        Message,
        protocol::{CloseFrame, frame::coding::CloseCode},
    },
};

use crate::support::*;

const ASKS: &str = "GET /chat?room=1 HTTP/1.1\r\nhost: client.example\r\n\
                    connection: keep-alive, Upgrade\r\nupgrade: echo/1.0\r\nx-key: abc\r\n\r\n";
const AGREES: &str = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n\
                      upgrade: echo/1.0\r\nx-accept: def\r\n\r\n";

/// A tunnel: the client's end and the service's.
async fn tunnel() -> (Router, Client, Client) {
    tunnel_with(json!({})).await
}

async fn tunnel_with(config: serde_json::Value) -> (Router, Client, Client) {
    let upstream = ByHand::start().await;
    let router = router_with(&upstream.url(), config);
    let mut client = Client::connect(router.address).await;
    client.send(ASKS).await;
    let mut service = upstream.accept().await;
    service.head().await;
    service.send(AGREES).await;
    assert!(client.head().await.starts_with("HTTP/1.1 101 "));
    (router, client, service)
}

#[tokio::test]
async fn an_upgrade_is_asked_for_agreed_to_and_tunnelled_both_ways() {
    let upstream = ByHand::start().await;
    let router = router_to(&upstream.url());
    let mut client = Client::connect(router.address).await;
    client.send(ASKS).await;

    let mut service = upstream.accept().await;
    let asked = service.request().await;
    assert_eq!(asked.start_line(), "GET /chat?room=1 HTTP/1.1");
    assert_eq!(asked.header("upgrade"), Some("echo/1.0"));
    let connection = asked.header("connection").unwrap().to_ascii_lowercase();
    assert_eq!(connection, "upgrade");
    assert_eq!(asked.header("x-key"), Some("abc"));

    service.send(AGREES).await;
    let response = client.response("GET").await.unwrap();
    assert_eq!(
        response.message.start_line(),
        "HTTP/1.1 101 Switching Protocols"
    );
    assert_eq!(response.header("upgrade"), Some("echo/1.0"));
    assert_eq!(response.header("x-accept"), Some("def"));
    assert_eq!(response.header("content-length"), None);
    assert_eq!(response.header("transfer-encoding"), None);

    for round in 0..3 {
        // What looks like HTTP is no longer looked at.
        client
            .send(format!("GET /{round} HTTP/1.1\r\n\r\n\0\u{ff}"))
            .await;
        service
            .expect(format!("GET /{round} HTTP/1.1\r\n\r\n\0\u{ff}"))
            .await;
        service.send(format!("HTTP/1.1 {round}\r\n\r\n")).await;
        client.expect(format!("HTTP/1.1 {round}\r\n\r\n")).await;
    }
}

#[tokio::test]
async fn bytes_right_behind_either_head_are_not_lost() {
    let upstream = ByHand::start().await;
    let router = router_to(&upstream.url());
    let mut client = Client::connect(router.address).await;
    client.send(format!("{ASKS}early from the client")).await;
    let mut service = upstream.accept().await;
    service.head().await;
    service
        .send(format!("{AGREES}early from the service"))
        .await;
    client.head().await;
    client.expect("early from the service").await;
    service.expect("early from the client").await;
    client.send(", more").await;
    service.expect(", more").await;
    service.send(", more").await;
    client.expect(", more").await;
}

#[tokio::test]
async fn a_tunnel_carries_more_than_fits_into_any_buffer() {
    let (_router, mut client, mut service) = tunnel().await;
    let data: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
    let (to_service, from_client) = (data.clone(), data.clone());
    let ((), ()) = tokio::join!(client.send(&to_service), service.expect(&from_client));
    let ((), ()) = tokio::join!(service.send(&data), client.expect(&data));
}

#[tokio::test]
async fn either_end_may_finish_while_the_other_goes_on() {
    let (_router, mut client, mut service) = tunnel().await;
    client.send("last words").await;
    client.finish().await;
    service.expect("last words").await;
    service.closed().await;
    service.send("still here").await;
    client.expect("still here").await;
    drop(service);
    client.closed().await;

    let (_router, mut client, mut service) = tunnel().await;
    service.send("last words").await;
    service.finish().await;
    client.expect("last words").await;
    client.closed().await;
    client.send("still here").await;
    service.expect("still here").await;
    drop(client);
    service.closed().await;
}

#[tokio::test]
async fn a_tunnel_ends_when_an_end_closes_or_breaks() {
    for reset in [false, true] {
        let (_router, client, mut service) = tunnel().await;
        match reset {
            false => drop(client),
            true => client.reset(),
        }
        service.closed().await;

        let (_router, mut client, service) = tunnel().await;
        match reset {
            false => drop(service),
            true => service.reset(),
        }
        client.closed().await;
    }
}

#[tokio::test]
async fn nothing_of_a_tunnel_stays_behind() {
    let upstream = Upstream::start(|_| vec![Step::Write(AGREES.into()), Step::Echo]).await;
    let router = router_to(&upstream.url());
    for _ in 0..3 {
        let mut client = Client::connect(router.address).await;
        client.send(ASKS).await;
        client.head().await;
        client.send("ping").await;
        client.expect("ping").await;
        drop(client);
        eventually(|| upstream.connections().1 == 0).await;
    }
}

/// Quiet for longer than any timeout of ours: a chat in which nobody says anything.
#[tokio::test]
async fn a_quiet_tunnel_stays_open() {
    let (_router, mut client, mut service) = tunnel_with(json!({
        "router-server": {
            "read-timeout": "100ms", "write-timeout": "100ms", "idle-timeout": "100ms"
        },
        "proxy-client": {"to-main-and-canary": {
            "timeout": "100ms", "idle-conn-timeout": "100ms"
        }}
    }))
    .await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    client.send("ping").await;
    service.expect("ping").await;
    service.send("pong").await;
    client.expect("pong").await;
}

#[tokio::test]
async fn an_upgrade_that_the_upstream_does_not_agree_to_leaves_http() {
    for status in [200, 426] {
        let upstream =
            Upstream::start(move |_| answer(status, "upgrade: other\r\nx-a: 1\r\n", "no")).await;
        let router = router_to(&upstream.url());
        let mut client = Client::connect(router.address).await;
        for _ in 0..2 {
            let response = client.roundtrip("GET", ASKS).await;
            assert_eq!((response.status, &*response.text()), (status, "no"));
            assert_eq!(response.header("x-a"), Some("1"));
        }
        let plain = "GET /plain HTTP/1.1\r\nhost: h\r\n\r\n";
        let response = client.roundtrip("GET", plain).await;
        assert_eq!((response.status, &*response.text()), (status, "no"));
        assert_eq!(upstream.seen()[2].target(), "/plain");
        assert_eq!(upstream.connections().0, 1);
    }
}

#[tokio::test]
async fn an_upgrade_to_h2c_is_not_passed_on() {
    let upstream = Upstream::named("up", 200).await;
    let router = router_to(&upstream.url());
    for upgrade in ["h2c", "H2C", "websocket, h2c"] {
        let headers = format!(
            "connection: Upgrade, HTTP2-Settings\r\nupgrade: {upgrade}\r\nhttp2-settings: AAMA\r\n"
        );
        let response = get(router.address, "/", &headers).await;
        assert_eq!((response.status, &*response.text()), (200, "up"));
        let seen = upstream.seen().pop().unwrap();
        for name in ["upgrade", "http2-settings"] {
            assert_eq!(seen.header(name), None, "{upgrade}");
        }
        let connection = seen.header("connection").unwrap_or_default();
        assert!(!connection.to_ascii_lowercase().contains("upgrade"));
    }
}

#[tokio::test]
async fn an_upgrade_that_connection_does_not_name_is_not_passed_on() {
    let upstream = Upstream::named("up", 200).await;
    let router = router_to(&upstream.url());
    assert_eq!(
        get(router.address, "/", "upgrade: echo\r\n").await.status,
        200
    );
    assert_eq!(upstream.only().header("upgrade"), None);
}

/// Whose bytes would they be after the switch? This is how requests are split.
#[tokio::test]
async fn an_upgrade_on_a_request_with_a_body_is_400_and_the_end() {
    for body in [
        "content-length: 4\r\n\r\nbody",
        "transfer-encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
    ] {
        let upstream = Upstream::named("up", 200).await;
        let router = router_to(&upstream.url());
        let mut client = Client::connect(router.address).await;
        let request = format!(
            "POST / HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: echo/1.0\r\n{body}"
        );
        assert_eq!(client.roundtrip("POST", request).await.status, 400);
        client.closed().await;
        assert_eq!(upstream.connections(), (0, 0));
    }
}

/// Only what was asked for: a service cannot turn a plain request into a tunnel past us.
#[tokio::test]
async fn a_101_that_nobody_asked_for_is_502() {
    let upstream =
        Upstream::start(|_| vec![Step::Write(format!("{AGREES}evil").into()), Step::Hang]).await;
    let router = router_to(&upstream.url());
    for headers in [
        "",
        "upgrade: echo/1.0\r\n",
        "connection: upgrade\r\nupgrade: h2c\r\n",
    ] {
        let response = get(router.address, "/", headers).await;
        assert_eq!(
            (response.status, response.complete),
            (502, true),
            "{headers}"
        );
        assert!(!response.text().contains("evil"));
        eventually(|| upstream.connections().1 == 0).await;
    }
}

#[tokio::test]
async fn a_sidecar_decides_about_upgrades_too() {
    for (status, expected) in [(200, "canary"), (204, "main")] {
        let sidecar = Upstream::named("", status).await;
        let tunnels = |name: &'static str| {
            Upstream::start(move |_| {
                vec![Step::Write(format!("{AGREES}{name} ").into()), Step::Echo]
            })
        };
        let (main, canary) = (tunnels("main").await, tunnels("canary").await);
        let router = Router::start(json!({
            "main-target": main.url(), "canary-target": canary.url(), "sidecar-url": sidecar.url()
        }));
        let mut client = Client::connect(router.address).await;
        client.send(format!("{ASKS}early, ")).await;
        client.head().await;
        client.expect(format!("{expected} early, ")).await;
        client.send("late").await;
        client.expect("late").await;
        assert_eq!(sidecar.only().header("x-key"), Some("abc"));
        let upstream = if expected == "main" { &main } else { &canary };
        assert_eq!(upstream.only().header("upgrade"), Some("echo/1.0"));
        drop(client);
        eventually(|| upstream.connections().1 == 0).await;
    }
}

/// One that speaks real WebSocket and says everything again.
async fn websocket_echo(listener: TcpListener) -> Option<CloseFrame> {
    let (stream, _) = listener.accept().await.unwrap();
    let mut service = accept_async(stream).await.unwrap();
    let mut closed = None;
    while let Some(Ok(message)) = service.next().await {
        match message {
            Message::Close(frame) => closed = frame,
            Message::Text(_) | Message::Binary(_) => service.send(message).await.unwrap(),
            _ => {}
        }
    }
    closed
}

#[tokio::test]
async fn a_real_websocket_client_and_server_understand_each_other() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let router = router_to(&url);

    let client = async {
        let stream = TcpStream::connect(router.address).await.unwrap();
        let (mut client, response) = client_async("ws://client.example/chat", stream)
            .await
            .unwrap();
        assert_eq!(response.status().as_u16(), 101);
        let binary: Vec<u8> = (0..200_000_u32).map(|i| (i % 256) as u8).collect();
        for message in [
            Message::text("hello, wörld"),
            Message::text(""),
            Message::binary(binary),
        ] {
            client.send(message.clone()).await.unwrap();
            assert!(client.next().await.unwrap().unwrap() == message);
        }
        client
            .send(Message::Ping("are you there".into()))
            .await
            .unwrap();
        let pong = client.next().await.unwrap().unwrap();
        assert_eq!(pong, Message::Pong("are you there".into()));

        let bye = CloseFrame {
            code: CloseCode::Normal,
            reason: "bye".into(),
        };
        client.close(Some(bye.clone())).await.unwrap();
        let answered = client.next().await.unwrap().unwrap();
        assert_eq!(answered, Message::Close(Some(bye.clone())));
        // The service has closed the connection under it too.
        assert!(client.next().await.is_none());
        bye
    };
    let (closed, bye) = soon(async { tokio::join!(websocket_echo(listener), client) }).await;
    assert_eq!(closed, Some(bye));
}
