//! Requests that have begun go on by what they began with, to the upstream that they began with; those that come
//! after it, on old connections too, by what is in force.

use bytes::Bytes;

use super::*;
use crate::support::h2peer::{Do, H2Client, H2Upstream, asks, fields, send};

const OK: &str = "HTTP/1.1 200 X\r\ncontent-length: 3\r\n\r\nold";

/// What everything goes to after the reload, and by it: nothing of the old configuration leads here.
async fn new_world() -> (Upstream, Value) {
    let new = service("new").await;
    let config = json!({
        "main-target": format!("{}/base", new.url()),
        "canary-target": format!("{}/base", new.url()),
        "sidecar-url": null,
        "trim-prefix": "/b",
        "traffic": {"weight": 0},
        "proxy-client": {"to-main-and-canary": {"timeout": "150ms", "connect-timeout": "100ms"}},
        "router-server": {"read-timeout": "10s", "write-timeout": "10s"}
    });
    (new, config)
}

async fn is_new(address: SocketAddr) {
    assert_eq!(get(address, "/b/x", "").await.text(), "new /base/x");
}

#[tokio::test]
async fn a_request_whose_sidecar_has_not_answered_goes_on_by_what_it_began_with() {
    let (sidecar, canary, main) = (
        ByHand::start().await,
        ByHand::start().await,
        ByHand::start().await,
    );
    let (_new, after) = new_world().await;
    let program = Program::start(json!({
        "main-target": main.url(), "canary-target": format!("{}/old", canary.url()), "sidecar-url": sidecar.url(),
        "trim-prefix": "/a", "canary-header-host": "old.example",
        "proxy-client": {"to-sidecar": {"timeout": "15s"}},
        "fallback": {"replay": "failures"}
    }))
    .await;
    let mut clients = [
        Client::connect(program.address).await,
        Client::connect(program.address).await,
    ];
    let mut asked = Vec::new();
    for client in &mut clients {
        client.send(head("GET /a/b/x", "")).await;
        let mut question = sidecar.accept().await;
        question.request().await;
        asked.push(question);
    }
    change(&program, after).await;
    is_new(program.address).await;
    for question in &mut asked {
        question
            .send("HTTP/1.1 200 X\r\ncontent-length: 0\r\n\r\n")
            .await;
    }
    // The first one is answered by the old canary.
    let mut services = Vec::new();
    for _ in 0..2 {
        let mut service = canary.accept().await;
        let got = service.request().await;
        assert_eq!(got.target(), "/old/b/x");
        assert_eq!(got.header("host"), Some("old.example"));
        services.push(service);
    }
    services[0].send(OK).await;
    // The other one fails, and the old main has it then.
    services.pop().unwrap().reset();
    let mut again = main.accept().await;
    assert_eq!(again.request().await.target(), "/b/x");
    again.send(OK).await;
    for client in &mut clients {
        let response = client.response("GET").await.unwrap();
        assert_eq!((response.status, &*response.text()), (200, "old"));
        // And the next one on the same connection is a new one.
        let next = client.roundtrip("GET", head("GET /b/y", "")).await;
        assert_eq!(next.text(), "new /base/y");
    }
}

#[tokio::test]
async fn a_rollback_holds_for_a_request_of_an_earlier_configuration_too() {
    let sidecar = ByHand::start().await;
    let (main, canary) = (service("main").await, service("canary").await);
    let program = Program::start(json!({
        "main-target": main.url(), "canary-target": canary.url(), "sidecar-url": sidecar.url(),
        "proxy-client": {"to-sidecar": {"timeout": "15s"}}
    }))
    .await;
    let mut client = Client::connect(program.address).await;
    client.send(head("GET /x", "")).await;
    let mut asked = sidecar.accept().await;
    asked.request().await;
    change(&program, json!({"trim-prefix": "/x"})).await;
    let (code, _) = admin(program.instrumentation, "POST", "/rollout/abort", "").await;
    assert_eq!(code, 200);
    asked
        .send("HTTP/1.1 200 X\r\ncontent-length: 0\r\n\r\n")
        .await;
    assert_eq!(client.response("GET").await.unwrap().text(), "main /x");
}

/// Both ways and a tunnel, and longer than any timeout of the new configuration lets a request be.
#[tokio::test]
async fn uploads_downloads_and_tunnels_go_on() {
    let main = ByHand::start().await;
    let (_new, after) = new_world().await;
    let program =
        Program::start(json!({"main-target": main.url(), "canary-target": main.url()})).await;
    let connect = || Client::connect(program.address);
    let (mut up, mut down, mut tunnel) = (connect().await, connect().await, connect().await);
    let body = noise(300_000);

    up.send(head("POST /up", "content-length: 300000\r\n"))
        .await;
    up.send(&body[..100_000]).await;
    let mut taking = main.accept().await;
    taking.head().await;
    taking.expect(&body[..100_000]).await;

    down.send(head("GET /down", "")).await;
    let mut giving = main.accept().await;
    giving.request().await;
    giving
        .send("HTTP/1.1 200 X\r\ncontent-length: 300000\r\n\r\n")
        .await;
    giving.send(&body[..100_000]).await;
    down.head().await;
    down.expect(&body[..100_000]).await;

    tunnel
        .send("GET /t HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n")
        .await;
    let mut other_end = main.accept().await;
    other_end.head().await;
    other_end
        .send("HTTP/1.1 101 X\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n")
        .await;
    assert!(tunnel.head().await.starts_with("HTTP/1.1 101 "));

    for _ in 0..3 {
        change(&program, after.clone()).await;
        is_new(program.address).await;
    }
    // The new timeout is over by then.
    let slow = Upstream::start(|_| vec![Step::Hang]).await;
    let mut slower = after.clone();
    merge(
        &mut slower,
        json!({"main-target": slow.url(), "canary-target": slow.url()}),
    );
    change(&program, slower).await;
    assert_eq!(get(program.address, "/", "").await.status, 504);

    for _ in 0..2 {
        tunnel.send("ping").await;
        other_end.expect("ping").await;
        other_end.send("pong").await;
        tunnel.expect("pong").await;
    }
    up.send(&body[100_000..]).await;
    taking.expect(&body[100_000..]).await;
    taking.send(OK).await;
    assert_eq!(up.response("POST").await.unwrap().text(), "old");
    giving.send(&body[100_000..]).await;
    down.expect(&body[100_000..]).await;

    // Nobody keeps what nobody will ask for.
    taking.closed().await;
    giving.closed().await;
    change(&program, after).await;
    for client in [&mut up, &mut down] {
        let next = client.roundtrip("GET", head("GET /b/y", "")).await;
        assert_eq!(next.text(), "new /base/y");
    }
}

/// A timeout that a request began with holds for it, though another one is in force: a longer and a shorter one.
#[tokio::test]
async fn the_timeout_of_a_request_is_that_which_it_began_with() {
    let hangs = Upstream::start(|request| match request.target() {
        "/slow" => [
            vec![Step::Pause(std::time::Duration::from_millis(700))],
            answer(200, "", "late"),
        ]
        .concat(),
        _ => vec![Step::Hang],
    })
    .await;
    let with = |timeout: &str| {
        json!({
            "main-target": hangs.url(), "canary-target": hangs.url(),
            "proxy-client": {"to-main-and-canary": {"timeout": timeout, "connect-timeout": "100ms"}}
        })
    };
    let program = Program::start(with("30s")).await;
    let mut patient = Client::connect(program.address).await;
    patient.send(head("GET /slow", "")).await;
    eventually(|| hangs.count() == 1).await;
    change(&program, with("150ms")).await;
    let mut impatient = Client::connect(program.address).await;
    impatient.send(head("GET /", "")).await;
    eventually(|| hangs.count() == 2).await;
    change(&program, with("30s")).await;
    assert_eq!(impatient.response("GET").await.unwrap().status, 504);
    assert_eq!(patient.response("GET").await.unwrap().text(), "late");
}

/// A stream that both sides send on.
struct Chat {
    sending: h2::SendStream<Bytes>,
    receiving: h2::RecvStream,
}

impl Chat {
    async fn begin(client: &mut H2Client) -> Chat {
        let asks = asks(
            "POST",
            "/chat",
            &[("content-type", "application/grpc"), ("te", "trailers")],
        );
        let (response, sending) = client.begin(asks, false).await.unwrap();
        let receiving = soon(response).await.unwrap().into_body();
        Chat { sending, receiving }
    }

    /// Says something, and hears it again.
    async fn says(&mut self, bytes: &[u8]) {
        soon(send(&mut self.sending, Bytes::copy_from_slice(bytes)))
            .await
            .unwrap();
        let mut heard = Vec::new();
        while heard.len() < bytes.len() {
            let piece = soon(self.receiving.data())
                .await
                .expect("more to hear")
                .unwrap();
            self.receiving
                .flow_control()
                .release_capacity(piece.len())
                .unwrap();
            heard.extend_from_slice(&piece);
        }
        assert_same(&heard, bytes);
    }

    async fn ends(mut self) {
        self.sending.send_data(Bytes::new(), true).unwrap();
        while let Some(piece) = soon(self.receiving.data()).await {
            assert_eq!(piece.unwrap(), Bytes::new());
        }
        let trailers = soon(self.receiving.trailers()).await.unwrap();
        assert!(trailers.is_none());
    }
}

#[tokio::test]
async fn streams_of_http2_go_on_and_the_next_ones_on_their_connection_are_new() {
    let grpc = || fields(&[("content-type", "application/grpc"), ("grpc-status", "0")]);
    let old = H2Upstream::eager(move |_| vec![Do::Head(200, grpc()), Do::Echo]).await;
    let (_new, mut after) = new_world().await;
    let program = Program::start(json!({
        "main-target": old.url(), "canary-target": old.url(),
        "proxy-client": {"to-main-and-canary": {"protocol": "h2"}}
    }))
    .await;
    let mut client = H2Client::connect(program.address).await;
    let mut chats = Vec::new();
    for _ in 0..4 {
        let mut chat = Chat::begin(&mut client).await;
        chat.says(b"before").await;
        chats.push(chat);
    }
    // The first change is none of the connection to the old one.
    let mut name = json!({"trim-prefix": "/nothing"});
    merge(
        &mut name,
        json!({"main-target": format!("{}/other", old.url())}),
    );
    change(&program, name).await;
    let mut chat = Chat::begin(&mut client).await;
    chat.says(b"in between").await;
    chats.push(chat);
    assert_eq!(old.connections(), (1, 1));
    let heads = old.heads();
    assert_eq!(heads[heads.len() - 1].path, "/other/chat");

    merge(
        &mut after,
        json!({"proxy-client": {"to-main-and-canary": {"protocol": "http1"}}}),
    );
    for _ in 0..3 {
        change(&program, after.clone()).await;
        assert_eq!(client.get("/b/x", &[]).await.text(), "new /base/x");
        is_new(program.address).await;
        for chat in &mut chats {
            chat.says(&noise(100_000)).await;
        }
    }
    assert_eq!(old.connections(), (1, 1));
    for chat in chats {
        chat.ends().await;
    }
    assert_eq!(old.resets(), []);
    eventually(|| old.connections() == (1, 0)).await;
    assert_eq!(client.get("/b/x", &[]).await.text(), "new /base/x");
}

/// Each of a dozen settings, on a connection of either version that was there before.
#[tokio::test]
async fn old_connections_have_all_of_the_new_configuration() {
    let echo = |name: &'static str| {
        Upstream::start(move |request| {
            let said = |header| request.all(header).join(",");
            let text = format!(
                "{name} {} {} {} {}",
                request.target(),
                said("host"),
                said("x-forwarded-for"),
                said("x-forwarded-proto")
            );
            answer(200, "", &text)
        })
    };
    let (main, canary) = (echo("main").await, echo("canary").await);
    let program =
        Program::start(json!({"main-target": main.url(), "canary-target": canary.url()})).await;
    let mut one = Client::connect(program.address).await;
    let mut two = H2Client::connect(program.address).await;
    let headers = [
        ("x-forwarded-for", "192.0.2.7"),
        ("x-forwarded-proto", "https"),
        ("x-canary", "true"),
    ];
    let mut both = async |target: &str| {
        let lines: String = headers
            .iter()
            .map(|(name, value)| format!("{name}: {value}\r\n"))
            .collect();
        let first = one
            .roundtrip("GET", head(&format!("GET {target}"), &lines))
            .await;
        let second = two.get(target, &headers).await;
        assert_eq!((first.status, first.text()), (second.status, second.text()));
        first.text()
    };
    let host = canary.address;
    assert_eq!(
        both("/a/x").await,
        format!("canary /a/x {host} 192.0.2.7, 127.0.0.1 http")
    );
    for (config, text) in [
        (
            json!({"trim-prefix": "/a"}),
            format!("canary /x {host} 192.0.2.7, 127.0.0.1 http"),
        ),
        (
            json!({"canary-header-host": "c.example"}),
            "canary /a/x c.example 192.0.2.7, 127.0.0.1 http".into(),
        ),
        // As before: what the one before it has said is gone.
        (
            json!({}),
            format!("canary /a/x {host} 192.0.2.7, 127.0.0.1 http"),
        ),
        (
            json!({"router-server": {"trusted-proxies": ["127.0.0.1"]}}),
            format!("canary /a/x {host} 192.0.2.7, 127.0.0.1 https"),
        ),
        (
            json!({}),
            format!("canary /a/x {host} 192.0.2.7, 127.0.0.1 http"),
        ),
        (
            json!({"override": {"trusted": []}}),
            format!("main /a/x {} 192.0.2.7, 127.0.0.1 http", main.address),
        ),
        (
            json!({"override": {"trusted": ["192.0.2.7"]}, "router-server": {"trusted-proxies": ["127.0.0.0/8"]}}),
            format!("canary /a/x {host} 192.0.2.7, 127.0.0.1 https"),
        ),
        (
            json!({"override": {"trusted": ["192.0.2.7"]}}),
            format!("main /a/x {} 192.0.2.7, 127.0.0.1 http", main.address),
        ),
    ] {
        change(&program, config.clone()).await;
        assert_eq!(both("/a/x").await, text, "{config}");
    }
}
