//! What holds for clients' connections: for new ones all of it, and for those that are there how long they are waited
//! for.

use std::time::Duration;

use bytes::Bytes;
use h2::client;
use tokio::io::{AsyncWriteExt, BufReader};

use super::*;
use crate::support::{
    h2peer::{asks, receive},
    h2raw::{self, Raw, setting, window_update},
    hpack,
    pki::{Authority, Identity, TlsClient},
};

/// More than all buffers on the way hold together.
const HUGE: usize = 64 << 20;

/// Answers with more than anybody takes who does not read, after a while, or at once.
async fn upstream() -> Upstream {
    Upstream::start(|request| match request.target() {
        "/huge" => vec![
            Step::Write(format!("HTTP/1.1 200 OK\r\ncontent-length: {HUGE}\r\n\r\n").into_bytes()),
            Step::Write(vec![b'x'; HUGE]),
        ],
        "/slow" => [
            vec![Step::Pause(Duration::from_millis(2500))],
            answer(200, "", "slow"),
        ]
        .concat(),
        _ => answer(200, "", "up"),
    })
    .await
}

fn waits(read: &str, write: &str, idle: &str) -> Value {
    json!({"router-server": {"read-timeout": read, "write-timeout": write, "idle-timeout": idle}})
}

async fn with(upstream: &Upstream, config: Value) -> Program {
    let mut file = json!({"main-target": upstream.url(), "canary-target": upstream.url()});
    merge(&mut file, config);
    Program::start(file).await
}

/// Connections of clients that let us wait, in all the ways that there are.
struct Waiting {
    silent: Client,
    idle: Client,
    half_a_head: Client,
    upload: Client,
    idle_h2: Raw,
    half_a_frame: Raw,
}

impl Waiting {
    async fn at(address: SocketAddr) -> Waiting {
        let mut idle = Client::connect(address).await;
        assert_eq!(idle.roundtrip("GET", head("GET /", "")).await.text(), "up");
        let mut half_a_head = Client::connect(address).await;
        half_a_head.send("GET / HTTP/1.1\r\nhost").await;
        let mut upload = Client::connect(address).await;
        upload.send(head("POST /", "content-length: 10\r\n")).await;
        upload.send("half").await;
        let mut idle_h2 = Raw::client(address).await;
        assert_eq!(idle_h2.get(1, "/").await.text(), "up");
        let mut half_a_frame = Raw::client(address).await;
        half_a_frame.send(&h2raw::get(1, "/")[..7]).await;
        Waiting {
            silent: Client::connect(address).await,
            idle,
            half_a_head,
            upload,
            idle_h2,
            half_a_frame,
        }
    }

    /// They are given up, each in its own way.
    async fn are_given_up(mut self) {
        self.silent.closed().await;
        self.idle.closed().await;
        assert_eq!(self.half_a_head.response("GET").await.unwrap().status, 408);
        assert_eq!(self.upload.response("POST").await.unwrap().status, 408);
        assert_eq!(self.idle_h2.ended().await, Some(0));
        assert_eq!(self.half_a_frame.ended().await, Some(0));
    }
}

#[tokio::test]
async fn who_lets_us_wait_is_waited_for_as_long_as_the_new_configuration_says() {
    let upstream = upstream().await;
    let program = with(&upstream, waits("1h", "1h", "1h")).await;
    let before = Waiting::at(program.address).await;
    change(&program, waits("300ms", "1h", "300ms")).await;
    before.are_given_up().await;
    // And who comes then.
    Waiting::at(program.address).await.are_given_up().await;
}

#[tokio::test]
async fn who_lets_us_wait_is_waited_for_longer_if_the_new_configuration_says_so() {
    let upstream = upstream().await;
    let program = with(&upstream, waits("2s", "2s", "2s")).await;
    let mut waiting = Waiting::at(program.address).await;
    change(&program, waits("1h", "1h", "1h")).await;
    assert_eq!(get(program.address, "/slow", "").await.text(), "slow");
    let up = |response: Response| assert_eq!(response.text(), "up");
    up(waiting.silent.roundtrip("GET", head("GET /", "")).await);
    up(waiting.idle.roundtrip("GET", head("GET /", "")).await);
    up(waiting.half_a_head.roundtrip("GET", ": a\r\n\r\n").await);
    up(waiting.upload.roundtrip("POST", " more.").await);
    assert_eq!(waiting.idle_h2.get(3, "/").await.text(), "up");
    waiting.half_a_frame.send(&h2raw::get(1, "/")[7..]).await;
    assert_eq!(waiting.half_a_frame.answer(1).await.text(), "up");
}

/// Of HTTP/1 the kernel finds out, and it was told of the old one when the connection, or its listener, was made.
#[tokio::test]
async fn who_does_not_read_is_cut_by_the_new_write_timeout_on_connections_of_any_age() {
    let (main, huge) = (upstream().await, upstream().await);
    let mut config = waits("1h", "1h", "1h");
    merge(&mut config, json!({"canary-target": huge.url()}));
    let program = with(&main, config).await;
    let ask = head("GET /huge", "x-canary: true\r\n");
    let (mut clients, mut idle) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        let mut client = Client::connect(program.address).await;
        client.send(&ask).await;
        clients.push(client);
        let mut client = Client::connect(program.address).await;
        assert_eq!(
            client.roundtrip("GET", head("GET /", "")).await.text(),
            "up"
        );
        idle.push(client);
    }
    let ours = [(setting::INITIAL_WINDOW_SIZE, (1 << 31) - 1)];
    let mut client_h2 = Raw::client_with(program.address, &ours).await;
    let block = [&h2raw::pseudo("GET", "/huge")[..], &[("x-canary", "true")]].concat();
    let ask_h2 = h2raw::headers(1, h2raw::flag::ALL, hpack::block(block));
    client_h2
        .send([window_update(0, 1 << 30), ask_h2].concat())
        .await;
    eventually(|| huge.count() == 5).await;
    change(&program, waits("1h", "300ms", "1h")).await;
    for _ in 0..8 {
        let mut client = Client::connect(program.address).await;
        client.send(&ask).await;
        clients.push(client);
    }
    for mut client in idle {
        client.send(&ask).await;
        clients.push(client);
    }
    // All that were begun are given up, and none of their clients has read anything.
    eventually(|| huge.connections() == (17, 0)).await;
    drop(clients);
}

#[tokio::test]
async fn the_number_of_connections_that_there_may_be_goes_up_and_down() {
    let upstream = upstream().await;
    let most = |most: usize| json!({"router-server": {"max-connections": most, "workers": 1}});
    let program = with(&upstream, most(0)).await;
    let ask = head("GET /", "");
    let mut clients = Vec::new();
    for _ in 0..6 {
        let mut client = Client::connect(program.address).await;
        assert_eq!(client.roundtrip("GET", &ask).await.text(), "up");
        clients.push(client);
    }
    change(&program, most(4)).await;
    let count = async || metric(&program, "canary_router_connections").await;
    let mut waiting = Vec::new();
    for _ in 0..3 {
        let mut client = Client::connect(program.address).await;
        client.send(&ask).await;
        waiting.push(client);
    }
    // Those that are there stay, and are served.
    for client in &mut clients {
        assert_eq!(client.roundtrip("GET", &ask).await.text(), "up");
    }
    assert_eq!(count().await, 6.0);
    assert_eq!(upstream.count(), 12);
    clients.truncate(4);
    soon(async { while count().await != 4.0 {} }).await;
    for client in &mut clients {
        assert_eq!(client.roundtrip("GET", &ask).await.text(), "up");
    }
    assert_eq!((count().await, upstream.count()), (4.0, 16));
    clients.truncate(3);
    assert_eq!(waiting[0].response("GET").await.unwrap().text(), "up");
    assert_eq!((count().await, upstream.count()), (4.0, 17));
    // Upwards those that wait have their places at once.
    change(&program, most(6)).await;
    for client in &mut waiting[1..] {
        assert_eq!(client.response("GET").await.unwrap().text(), "up");
    }
    change(&program, most(1)).await;
    change(&program, most(0)).await;
    for _ in 0..20 {
        let mut client = Client::connect(program.address).await;
        assert_eq!(client.roundtrip("GET", &ask).await.text(), "up");
        clients.push(client);
    }
    assert_eq!(count().await, 26.0);
}

/// Who answers a client that trusts this CA and shows this, if anybody does: in which version of HTTP.
async fn answered(
    address: SocketAddr,
    trusts: &Authority,
    shows: Option<&Identity>,
) -> Option<&'static str> {
    let tls = TlsClient {
        shows,
        ..TlsClient::new(trusts, &["h2", "http/1.1"])
    };
    let stream = tls
        .connect(soon(tokio::net::TcpStream::connect(address)).await.ok()?)
        .await
        .ok()?;
    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
        let (sender, connection) = client::Builder::new()
            .handshake::<_, Bytes>(stream)
            .await
            .ok()?;
        let connection = tokio::spawn(connection);
        let mut sender = sender.ready().await.ok()?;
        let (response, _) = sender.send_request(asks("GET", "/", &[]), true).ok()?;
        let got = receive(response).await;
        connection.abort();
        return (got.status == 200).then_some("h2");
    }
    let mut stream = BufReader::new(stream);
    stream.write_all(head("GET /", "").as_bytes()).await.ok()?;
    let response = read_response(&mut stream, "GET").await?;
    (response.status == 200).then_some("http/1.1")
}

#[tokio::test]
async fn tls_its_certificates_and_the_versions_of_http_are_those_of_the_new_configuration_for_new_connections()
 {
    let (up, folder) = (upstream().await, Folder::new());
    let (ours, next, clients) = (
        Authority::new("ours"),
        Authority::new("next"),
        Authority::new("clients"),
    );
    let names = ["localhost"];
    let (first, second) = (
        ours.issue(&names).write(&folder, "a"),
        next.issue(&names).write(&folder, "b"),
    );
    let ca = clients.write(&folder, "clients.pem");
    let known = clients.issue(&["a client"]);
    let program = with(&up, json!({})).await;
    let address = program.address;
    let mut plain = Client::connect(address).await;
    let ask = head("GET /", "");
    assert_eq!(plain.roundtrip("GET", &ask).await.text(), "up");
    let mut with_ca = first.clone();
    merge(&mut with_ca, json!({"client-ca": ca}));
    let tls = |tls: &Value, http2: bool| json!({"router-server": {"tls": tls, "http2": http2}});
    for (config, trusts_ours, trusts_next, shows) in [
        (tls(&json!("off"), true), None, None, None),
        (tls(&first, true), Some("h2"), None, Some("h2")),
        (tls(&second, true), None, Some("h2"), None),
        (tls(&first, false), Some("http/1.1"), None, Some("http/1.1")),
        (tls(&with_ca, true), None, None, Some("h2")),
        (tls(&first, true), Some("h2"), None, Some("h2")),
        (tls(&json!("off"), true), None, None, None),
    ] {
        change(&program, config.clone()).await;
        assert_eq!(
            answered(address, &ours, None).await,
            trusts_ours,
            "{config}"
        );
        assert_eq!(
            answered(address, &next, None).await,
            trusts_next,
            "{config}"
        );
        assert_eq!(
            answered(address, &ours, Some(&known)).await,
            shows,
            "{config}"
        );
        // Who was there stays, and speaks as before.
        assert_eq!(plain.roundtrip("GET", &ask).await.text(), "up");
        let mut newcomer = Client::connect(address).await;
        newcomer.send(&ask).await;
        let answer = newcomer.response("GET").await;
        assert_eq!(
            answer.is_some(),
            config["router-server"]["tls"] == "off",
            "{config}"
        );
    }
    // Without TLS as well.
    let mut old = Raw::client(address).await;
    assert_eq!(old.get(1, "/").await.text(), "up");
    change(&program, tls(&json!("off"), false)).await;
    assert_eq!(old.get(3, "/").await.text(), "up");
    let mut newcomer = Client::connect(address).await;
    newcomer.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    assert_eq!(newcomer.response("GET").await.unwrap().status, 400);
    change(&program, tls(&json!("off"), true)).await;
    assert_eq!(Raw::client(address).await.get(1, "/").await.text(), "up");
}

#[tokio::test]
async fn a_connection_of_before_has_the_new_limit_of_its_heads_and_none_has_to_say_proxy() {
    let up = upstream().await;
    let program = with(&up, json!({})).await;
    let mut old = Client::connect(program.address).await;
    let long = head("GET /", &format!("x-long: {}\r\n", "x".repeat(20_000)));
    assert_eq!(old.roundtrip("GET", &long).await.status, 200);
    let proxies = json!({"trusted-proxies": ["127.0.0.1"], "proxy-protocol": true, "max-header-bytes": "8KiB"});
    change(&program, json!({"router-server": proxies})).await;
    let mut new = Client::connect(program.address).await;
    new.send("PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n").await;
    assert_eq!(new.roundtrip("GET", head("GET /", "")).await.status, 200);
    let forwarded = |received: Received| received.all("x-forwarded-for").join(",");
    assert_eq!(forwarded(up.seen().pop().unwrap()), "192.0.2.1");
    assert_eq!(old.roundtrip("GET", head("GET /", "")).await.status, 200);
    assert_eq!(forwarded(up.seen().pop().unwrap()), "127.0.0.1");
    assert_eq!(old.roundtrip("GET", &long).await.status, 431);
}
