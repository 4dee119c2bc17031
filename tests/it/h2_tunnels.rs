//! WebSockets where one side, or both, speak HTTP/2 (RFC 8441).

use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use h2::{Reason, RecvStream, SendStream, ext::Protocol, server};
use http::{Request, Response};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    net::TcpListener,
};
use tokio_tungstenite::{
    WebSocketStream, accept_async, client_async,
    tungstenite::{Message, protocol::Role},
};

use crate::support::{
    h2peer::{Do, H2Client, H2Upstream, When, asks, fields, send},
    h2raw::{Raw, setting},
    *,
};

/// The handshake of RFC 6455, section 1.3.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

fn opening(path: &str) -> Request<()> {
    let mut request = asks(
        "CONNECT",
        path,
        &[
            ("sec-websocket-version", "13"),
            ("sec-websocket-protocol", "chat"),
            ("origin", "http://client.example"),
        ],
    );
    request
        .extensions_mut()
        .insert(Protocol::from_static("websocket"));
    request
}

/// A tunnel's end at a client that speaks HTTP/2.
struct Tunnel {
    head: Response<()>,
    incoming: RecvStream,
    outgoing: SendStream<Bytes>,
    _client: H2Client,
}

impl Tunnel {
    async fn open(router: &Router, request: Request<()>) -> Tunnel {
        let mut client = H2Client::connect(router.address).await;
        // Whether it may shows in the settings of the router.
        eventually(|| client.sender.is_extended_connect_protocol_enabled()).await;
        let (response, outgoing) = client.begin(request, false).await.unwrap();
        let (head, incoming) = soon(response).await.unwrap().into_parts();
        Tunnel {
            head: Response::from_parts(head, ()),
            incoming,
            outgoing,
            _client: client,
        }
    }

    async fn say(&mut self, bytes: &[u8]) {
        let bytes = Bytes::copy_from_slice(bytes);
        soon(send(&mut self.outgoing, bytes)).await.unwrap();
    }

    async fn expect(&mut self, bytes: &[u8]) {
        let mut read = Vec::new();
        while read.len() < bytes.len() {
            let piece = soon(self.incoming.data()).await.expect("more").unwrap();
            self.incoming
                .flow_control()
                .release_capacity(piece.len())
                .unwrap();
            read.extend_from_slice(&piece);
        }
        assert_same(&read, bytes);
    }

    /// As something that can be read and written.
    fn into_stream(self) -> DuplexStream {
        let (ours, theirs) = duplex(64 << 10);
        let (mut read, mut write) = tokio::io::split(ours);
        let Tunnel {
            mut incoming,
            mut outgoing,
            _client: client,
            ..
        } = self;
        tokio::spawn(async move {
            while let Some(Ok(piece)) = incoming.data().await {
                let _ended = incoming.flow_control().release_capacity(piece.len());
                if write.write_all(&piece).await.is_err() {
                    return;
                }
            }
            let _ended = write.shutdown().await;
        });
        tokio::spawn(async move {
            let _client = client;
            let mut piece = vec![0; 16 << 10];
            while let Ok(length @ 1..) = read.read(&mut piece).await {
                let piece = Bytes::copy_from_slice(&piece[..length]);
                if send(&mut outgoing, piece).await.is_err() {
                    return;
                }
            }
            let _ended = outgoing.send_data(Bytes::new(), true);
            let _closed = std::future::poll_fn(|cx| outgoing.poll_reset(cx)).await;
        });
        theirs
    }
}

fn accepting(key: &str) -> String {
    // What an upstream does: the kit of WebSockets knows how.
    tokio_tungstenite::tungstenite::handshake::derive_accept_key(key.as_bytes())
}

/// An upstream in HTTP/2 that takes tunnels, and says everything again.
fn echoing(takes: bool) -> H2Upstream {
    let mut builder = server::Builder::new();
    if takes {
        builder.enable_connect_protocol();
    }
    H2Upstream::with(builder, None, When::Head, |asked| {
        match asked.path.as_str() {
            "/refused" => vec![
                Do::Head(403, fields(&[("x-why", "because")])),
                Do::Data(b"no".to_vec()),
                Do::End,
            ],
            _ => vec![
                Do::Head(200, fields(&[("sec-websocket-protocol", "chat")])),
                Do::Echo,
            ],
        }
    })
}

fn speaking_h2(url: &str, more: Value) -> Router {
    let mut config = json!({"proxy-client": {"to-main-and-canary": {"protocol": "h2"}}});
    merge(&mut config, more);
    router_with(url, config)
}

#[tokio::test]
async fn clients_are_told_that_they_may_open_tunnels() {
    let upstream = Upstream::named("up", 200).await;
    let router = router_to(&upstream.url());
    let raw = Raw::client(router.address).await;
    assert_eq!(raw.setting(setting::ENABLE_CONNECT_PROTOCOL), Some(1));
}

#[tokio::test]
async fn a_tunnel_from_http_2_to_http_1_is_a_handshake_and_then_bytes() {
    let upstream = ByHand::start().await;
    let router = router_to(&upstream.url());
    let opening = Tunnel::open(&router, opening("/chat?room=1"));
    let answering = async {
        let mut service = upstream.accept().await;
        let asked = service.request().await;
        let accept = accepting(asked.header("sec-websocket-key").expect("a key"));
        service
            .send(format!(
                "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                 sec-websocket-accept: {accept}\r\nsec-websocket-protocol: chat\r\n\r\nearly "
            ))
            .await;
        (asked, service)
    };
    let (mut tunnel, (asked, mut service)) = tokio::join!(opening, answering);

    assert_eq!(asked.start_line(), "GET /chat?room=1 HTTP/1.1");
    assert_eq!(asked.header("upgrade"), Some("websocket"));
    assert!(
        asked
            .header("connection")
            .unwrap()
            .eq_ignore_ascii_case("upgrade")
    );
    assert_eq!(asked.header("sec-websocket-version"), Some("13"));
    assert_eq!(asked.header("sec-websocket-protocol"), Some("chat"));
    assert_eq!(asked.header("origin"), Some("http://client.example"));
    assert_eq!(asked.header("content-length"), None);
    assert_eq!(asked.header("transfer-encoding"), None);

    let head = &tunnel.head;
    assert_eq!(head.status(), 200);
    assert_eq!(head.headers()["sec-websocket-protocol"], "chat");
    for name in [
        "sec-websocket-accept",
        "upgrade",
        "connection",
        "content-length",
    ] {
        assert!(!head.headers().contains_key(name), "{name}");
    }

    tunnel.expect(b"early ").await;
    for round in 0..3 {
        let said = format!("GET /{round} HTTP/1.1\r\n\r\n\0\u{ff}");
        tunnel.say(said.as_bytes()).await;
        service.expect(&said).await;
        service.send(format!("answer {round}")).await;
        tunnel.expect(format!("answer {round}").as_bytes()).await;
    }
    // More than fits into any buffer, both ways.
    let data = noise(3_000_000);
    tokio::join!(tunnel.say(&data), service.expect(&data));
    tokio::join!(service.send(&data), tunnel.expect(&data));
    // Each end may finish for itself.
    tunnel.outgoing.send_data(Bytes::new(), true).unwrap();
    service.closed().await;
    service.send("last words").await;
    tunnel.expect(b"last words").await;
    drop(service);
    assert!(matches!(
        soon(tunnel.incoming.data()).await,
        None | Some(Ok(_))
    ));
}

#[tokio::test]
async fn a_tunnel_from_http_2_to_http_2_is_a_tunnel() {
    let upstream = echoing(true);
    let router = speaking_h2(&upstream.url(), json!({}));
    for _ in 0..2 {
        let mut tunnel = Tunnel::open(&router, opening("/chat?room=1")).await;
        assert_eq!(tunnel.head.status(), 200);
        assert_eq!(tunnel.head.headers()["sec-websocket-protocol"], "chat");
        // No more at a time than fits into the windows: who only talks is not answered.
        for piece in noise(1_000_000).chunks(20_000) {
            tunnel.say(piece).await;
            tunnel.expect(piece).await;
        }
        tunnel.outgoing.send_data(Bytes::new(), true).unwrap();
        let end = soon(tunnel.incoming.data()).await;
        assert!(matches!(&end, None | Some(Ok(_))), "{end:?}");
    }
    let asked = &upstream.seen()[0];
    assert_eq!(asked.method, "CONNECT");
    assert_eq!(asked.protocol.as_deref(), Some("websocket"));
    assert_eq!(
        (&*asked.path, asked.scheme.as_deref()),
        ("/chat?room=1", Some("http"))
    );
    assert_eq!(asked.header("sec-websocket-version"), Some("13"));
    for name in ["sec-websocket-key", "upgrade", "connection"] {
        assert_eq!(asked.header(name), None, "{name}");
    }
    assert_eq!(upstream.connections().0, 1);
}

#[tokio::test]
async fn a_tunnel_from_http_1_to_http_2_is_a_handshake_and_then_bytes() {
    let upstream = echoing(true);
    let router = speaking_h2(&upstream.url(), json!({}));
    let mut client = Client::connect(router.address).await;
    client
        .send(head(
            "GET /chat?room=1",
            &format!(
                "connection: keep-alive, Upgrade\r\nupgrade: websocket\r\n\
                 sec-websocket-version: 13\r\nsec-websocket-key: {KEY}\r\n"
            ),
        ))
        .await;
    client.send("early ").await;
    let answer = client.head().await.to_ascii_lowercase();
    assert!(answer.starts_with("http/1.1 101 "), "{answer}");
    assert!(answer.contains("\r\nupgrade: websocket\r\n"), "{answer}");
    assert!(answer.contains("\r\nconnection: upgrade\r\n"), "{answer}");
    let accept = format!(
        "\r\nsec-websocket-accept: {}\r\n",
        ACCEPT.to_ascii_lowercase()
    );
    assert!(answer.contains(&accept), "{answer}");
    assert!(!answer.contains("\r\ncontent-length"), "{answer}");
    client.expect("early ").await;
    for i in 0..3 {
        client.send(format!("ping {i}")).await;
        client.expect(format!("ping {i}")).await;
    }
    let asked = upstream.heads().remove(0);
    assert_eq!(asked.method, "CONNECT");
    assert_eq!(asked.protocol.as_deref(), Some("websocket"));
    assert_eq!(asked.header("sec-websocket-key"), None);
    client.finish().await;
    client.closed().await;
    eventually(|| upstream.streams().1 == 0).await;
}

#[tokio::test]
async fn a_refusal_passes_with_what_it_says_by_either_version() {
    let one = Upstream::start(|_| answer(403, "x-why: because\r\n", "no")).await;
    let two = echoing(true);
    for router in [router_to(&one.url()), speaking_h2(&two.url(), json!({}))] {
        let mut tunnel = Tunnel::open(&router, opening("/refused")).await;
        assert_eq!(tunnel.head.status(), 403);
        assert_eq!(tunnel.head.headers()["x-why"], "because");
        tunnel.expect(b"no").await;
        let mut client = Client::connect(router.address).await;
        let asks = format!(
            "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
             sec-websocket-key: {KEY}\r\n"
        );
        let response = client.roundtrip("GET", head("GET /refused", &asks)).await;
        assert_eq!((response.status, &*response.text()), (403, "no"));
        assert_eq!(response.header("x-why"), Some("because"));
    }
}

/// A 200 is what opens a tunnel in HTTP/2, and nothing of the kind in HTTP/1.
#[tokio::test]
async fn an_upstream_that_answers_200_in_http_1_opens_no_tunnel() {
    let upstream = Upstream::named("a page", 200).await;
    let router = router_to(&upstream.url());
    let tunnel = Tunnel::open(&router, opening("/")).await;
    assert_eq!(tunnel.head.status(), 502);
}

/// It did not understand what it was asked, or is another one than that.
#[tokio::test]
async fn an_upstream_that_accepts_another_handshake_opens_no_tunnel() {
    for accept in [format!("sec-websocket-accept: {ACCEPT}\r\n"), String::new()] {
        let upstream = Upstream::start(move |_| {
            let agrees = format!(
                "HTTP/1.1 101 X\r\nconnection: upgrade\r\nupgrade: websocket\r\n{accept}\r\nevil"
            );
            vec![Step::Write(agrees.into()), Step::Hang]
        })
        .await;
        let router = router_to(&upstream.url());
        let mut client = H2Client::connect(router.address).await;
        eventually(|| client.sender.is_extended_connect_protocol_enabled()).await;
        let (response, _sending) = client.begin(opening("/"), false).await.unwrap();
        match soon(response).await {
            Ok(response) => assert_eq!(response.status(), 502),
            Err(error) => assert!(error.is_reset(), "{error:?}"),
        }
        eventually(|| upstream.connections().1 == 0).await;
    }
}

#[tokio::test]
async fn an_upstream_in_http_2_that_takes_no_tunnels_is_502() {
    let upstream = echoing(false);
    let router = speaking_h2(&upstream.url(), json!({}));
    for _ in 0..2 {
        let tunnel = Tunnel::open(&router, opening("/")).await;
        assert_eq!(tunnel.head.status(), 502);
    }
    // Everything else goes on.
    let mut client = H2Client::connect(router.address).await;
    let got = client.post("/", &[], b"body").await;
    assert_eq!((got.status, &*got.text()), (200, "body"));
}

#[tokio::test]
async fn a_connect_that_is_no_tunnel_is_405() {
    let upstream = Upstream::named("up", 200).await;
    let router = router_to(&upstream.url());
    let mut client = H2Client::connect(router.address).await;
    let mut request = Request::new(());
    *request.method_mut() = http::Method::CONNECT;
    *request.uri_mut() = "evil.example:443".parse().unwrap();
    let (response, _sending) = client.begin(request, false).await.unwrap();
    assert_eq!(soon(response).await.unwrap().status(), 405);
    assert_eq!(upstream.connections(), (0, 0));
}

#[tokio::test]
async fn a_tunnel_ends_when_an_end_leaves() {
    for resets in [false, true] {
        let upstream = Upstream::start(|request| {
            let accept = accepting(request.header("sec-websocket-key").unwrap());
            let agrees = format!(
                "HTTP/1.1 101 X\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                 sec-websocket-accept: {accept}\r\n\r\n"
            );
            vec![Step::Write(agrees.into()), Step::Echo]
        })
        .await;
        let two = echoing(true);
        let to_one = router_to(&upstream.url());
        let to_two = speaking_h2(&two.url(), json!({}));
        for router in [&to_one, &to_two] {
            let mut tunnel = Tunnel::open(router, opening("/")).await;
            tunnel.say(b"ping").await;
            tunnel.expect(b"ping").await;
            if resets {
                tunnel.outgoing.send_reset(Reason::CANCEL);
                eventually(|| upstream.connections().1 == 0 && two.streams().1 == 0).await;
            } else {
                drop(tunnel);
            }
            eventually(|| upstream.connections().1 == 0 && two.streams().1 == 0).await;
        }
    }
    // And the other way round.
    let upstream = ByHand::start().await;
    let router = router_to(&upstream.url());
    for resets in [false, true] {
        let opening = Tunnel::open(&router, opening("/"));
        let answering = async {
            let mut service = upstream.accept().await;
            let asked = service.request().await;
            let accept = accepting(asked.header("sec-websocket-key").unwrap());
            service
                .send(format!(
                    "HTTP/1.1 101 X\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                     sec-websocket-accept: {accept}\r\n\r\n"
                ))
                .await;
            service
        };
        let (mut tunnel, service) = tokio::join!(opening, answering);
        match resets {
            true => service.reset(),
            false => drop(service),
        }
        match soon(tunnel.incoming.data()).await {
            None => {}
            Some(Ok(piece)) => assert!(piece.is_empty()),
            Some(Err(error)) => assert!(error.is_reset(), "{error:?}"),
        }
    }
}

/// Quiet for longer than any timeout of ours: a chat in which nobody says anything.
#[tokio::test]
async fn a_quiet_tunnel_stays_open() {
    let two = echoing(true);
    let router = speaking_h2(
        &two.url(),
        json!({
            "router-server": {
                "read-timeout": "100ms", "write-timeout": "100ms", "idle-timeout": "100ms"
            },
            "proxy-client": {"to-main-and-canary": {
                "timeout": "100ms", "idle-conn-timeout": "100ms", "max-conn-age": "1s"
            }}
        }),
    );
    let mut tunnel = Tunnel::open(&router, opening("/")).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    tunnel.say(b"ping").await;
    tunnel.expect(b"ping").await;
}

#[tokio::test]
async fn a_sidecar_decides_about_tunnels_too() {
    let (main, canary) = (echoing(true), echoing(true));
    for (status, expected) in [(200, &canary), (204, &main)] {
        let sidecar = Upstream::named("", status).await;
        let router = Router::start(json!({
            "main-target": main.url(), "canary-target": canary.url(), "sidecar-url": sidecar.url(),
            "router-server": {"workers": 1},
            "proxy-client": {"to-main-and-canary": {"protocol": "h2"}}
        }));
        let mut tunnel = Tunnel::open(&router, opening("/chat")).await;
        tunnel.say(b"ping").await;
        tunnel.expect(b"ping").await;
        assert_eq!(expected.heads().len(), 1);
        assert_eq!(sidecar.only().target(), "/chat");
    }
}

/// One that speaks real WebSocket and says everything again.
async fn websocket_echo(listener: TcpListener) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        tokio::spawn(async move {
            let mut service = accept_async(stream).await.unwrap();
            while let Some(Ok(message)) = service.next().await {
                if matches!(message, Message::Text(_) | Message::Binary(_)) {
                    service.send(message).await.unwrap();
                }
            }
        });
    }
}

async fn converse<S>(client: &mut WebSocketStream<S>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    for message in [
        Message::text("hello, wörld"),
        Message::text(""),
        Message::binary(noise(200_000)),
    ] {
        soon(client.send(message.clone())).await.unwrap();
        assert!(soon(client.next()).await.unwrap().unwrap() == message);
    }
    soon(client.send(Message::Ping("are you there".into())))
        .await
        .unwrap();
    let pong = soon(client.next()).await.unwrap().unwrap();
    assert_eq!(pong, Message::Pong("are you there".into()));
    soon(client.close(None)).await.unwrap();
    let answered = soon(client.next()).await.unwrap().unwrap();
    assert!(matches!(answered, Message::Close(_)));
}

#[tokio::test]
async fn real_websockets_understand_each_other_through_http_2() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let echo = tokio::spawn(websocket_echo(listener));
    // The client speaks HTTP/2, and its service HTTP/1.
    let last = router_to(&url);
    let tunnel = Tunnel::open(&last, opening("/chat")).await;
    assert_eq!(tunnel.head.status(), 200);
    let stream = tunnel.into_stream();
    converse(&mut WebSocketStream::from_raw_socket(stream, Role::Client, None).await).await;
    // Both speak HTTP/1, and two routers between them HTTP/2.
    let first = speaking_h2(&format!("http://{}", last.address), json!({}));
    let stream = tokio::net::TcpStream::connect(first.address).await.unwrap();
    let (mut client, response) = soon(client_async("ws://client.example/chat", stream))
        .await
        .unwrap();
    assert_eq!(response.status().as_u16(), 101);
    converse(&mut client).await;
    echo.abort();
}
