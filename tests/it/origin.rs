//! Who a request comes from: what upstreams are told about it, whom we believe, and the PROXY header,
//! in either version of HTTP.
//!
//! Everybody here comes from 127.0.0.1; who that is to the router is a matter of its configuration.

use std::{collections::HashSet, net::SocketAddr};

use canary_router::clock::now;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::support::{
    h2peer::{H2Client, Pairs},
    pki::{Authority, TlsClient},
    *,
};

/// What an upstream was told of a request.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    for_whom: String,
    proto: String,
    host: Option<String>,
    port: String,
    forwarded: Option<String>,
}

fn told(seen: &Received) -> Told {
    let text = |name: &str| seen.header(name).map(str::to_owned);
    Told {
        for_whom: text("x-forwarded-for").unwrap(),
        proto: text("x-forwarded-proto").unwrap(),
        host: text("x-forwarded-host"),
        port: text("x-forwarded-port").unwrap(),
        forwarded: text("forwarded"),
    }
}

fn router(upstream: &Upstream, server: Value) -> Router {
    router_with(&upstream.url(), json!({"router-server": server}))
}

/// A request by HTTP/1.1 and one by HTTP/2, with these headers; what the upstream was told of each.
async fn both(router: &Router, upstream: &Upstream, headers: Pairs<'_>) -> [Received; 2] {
    let before = upstream.count();
    let lines: String = headers
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    assert_eq!(get(router.address, "/", &lines).await.status, 200);
    let mut client = H2Client::connect(router.address).await;
    assert_eq!(client.get("/", headers).await.status, 200);
    let seen = upstream.seen();
    [seen[before].clone(), seen[before + 1].clone()]
}

const CLAIMS: Pairs = &[
    ("x-forwarded-for", "192.0.2.1"),
    ("x-forwarded-proto", "https"),
    ("x-forwarded-host", "shop.example"),
    ("x-forwarded-port", "8443"),
    ("forwarded", "for=192.0.2.1;proto=https;host=shop.example"),
];

#[tokio::test]
async fn upstreams_are_told_who_asks_for_what() {
    let upstream = Upstream::named("up", 200).await;
    let router = router(&upstream, json!({}));
    for seen in both(&router, &upstream, &[]).await {
        let expected = Told {
            for_whom: "127.0.0.1".into(),
            proto: "http".into(),
            host: Some("client.example".into()),
            port: "80".into(),
            forwarded: None,
        };
        assert_eq!(told(&seen), expected);
    }
}

/// Anybody could say that.
#[tokio::test]
async fn what_a_stranger_says_of_itself_is_replaced_and_its_address_appended() {
    let upstream = Upstream::named("up", 200).await;
    for trusted in [json!([]), json!(["10.0.0.0/8", "::1"])] {
        let router = router(&upstream, json!({"trusted-proxies": trusted}));
        for seen in both(&router, &upstream, CLAIMS).await {
            let expected = Told {
                for_whom: "192.0.2.1, 127.0.0.1".into(),
                proto: "http".into(),
                host: Some("client.example".into()),
                port: "80".into(),
                forwarded: None,
            };
            assert_eq!(told(&seen), expected);
        }
    }
}

#[tokio::test]
async fn what_a_trusted_proxy_says_is_passed_on() {
    let upstream = Upstream::named("up", 200).await;
    let router = router(&upstream, json!({"trusted-proxies": ["127.0.0.0/8"]}));
    for seen in both(&router, &upstream, CLAIMS).await {
        let expected = Told {
            for_whom: "192.0.2.1, 127.0.0.1".into(),
            proto: "https".into(),
            host: Some("shop.example".into()),
            port: "8443".into(),
            forwarded: Some("for=192.0.2.1;proto=https;host=shop.example".into()),
        };
        assert_eq!(told(&seen), expected);
    }
    // It says less: then what is known otherwise is said.
    for seen in both(&router, &upstream, &[("x-forwarded-proto", "https")]).await {
        let expected = Told {
            for_whom: "127.0.0.1".into(),
            proto: "https".into(),
            host: Some("client.example".into()),
            port: "443".into(),
            forwarded: None,
        };
        assert_eq!(told(&seen), expected);
    }
}

/// By an address that goes to the canary, and one that does not, decisions show whom the router
/// takes a client for.
#[tokio::test]
async fn only_a_trusted_proxys_word_decides_who_the_client_is() {
    let (main, canary) = (
        Upstream::named("main", 200).await,
        Upstream::named("canary", 200).await,
    );
    let forwarded = |client: &str| {
        [
            ("x-forwarded-for", client.to_owned()),
            ("x-canary", "true".to_owned()),
        ]
    };
    for (trusted, client, believed) in [
        // Who is believed is who is written in `override.trusted`.
        (json!(["127.0.0.1"]), "192.0.2.7", true),
        (json!(["127.0.0.1"]), "192.0.3.7", false),
        (json!([]), "192.0.2.7", false),
        // The last one who is no trusted proxy.
        (json!(["127.0.0.1"]), "192.0.3.7, 192.0.2.7", true),
        (json!(["127.0.0.1"]), "192.0.2.7, 192.0.3.7", false),
        (
            json!(["127.0.0.1", "192.0.3.0/24"]),
            "192.0.2.7, 192.0.3.7",
            true,
        ),
        // Only a proxy of ours could have added what comes behind nonsense.
        (json!(["127.0.0.1"]), "192.0.2.7, unknown", false),
    ] {
        let router = Router::start(json!({
            "main-target": main.url(), "canary-target": canary.url(),
            "router-server": {"trusted-proxies": trusted},
            "override": {"trusted": ["192.0.2.0/24"]}
        }));
        let headers = forwarded(client);
        let headers: Vec<_> = headers
            .iter()
            .map(|(name, value)| (*name, &**value))
            .collect();
        let lines: String = headers
            .iter()
            .map(|(name, value)| format!("{name}: {value}\r\n"))
            .collect();
        let expected = if believed { "canary" } else { "main" };
        let context = format!("{trusted} {client}");
        assert_eq!(
            get(router.address, "/", &lines).await.text(),
            expected,
            "{context}"
        );
        let mut two = H2Client::connect(router.address).await;
        assert_eq!(two.get("/", &headers).await.text(), expected, "{context}");
    }
}

#[tokio::test]
async fn each_request_has_an_id_of_its_own_or_its_clients() {
    let upstream = Upstream::named("up", 200).await;
    let router = router(&upstream, json!({}));
    let mut ids = HashSet::new();
    for _ in 0..20 {
        for seen in both(&router, &upstream, &[]).await {
            let id = seen.header("x-request-id").unwrap().to_owned();
            let groups: Vec<_> = id.split('-').map(str::len).collect();
            assert_eq!(groups, [8, 4, 4, 4, 12], "{id}");
            assert!(ids.insert(id), "twice the same");
        }
    }
    for seen in both(&router, &upstream, &[("x-request-id", "mine/1")]).await {
        assert_eq!(seen.header("x-request-id"), Some("mine/1"));
    }
}

#[tokio::test]
async fn a_sidecar_is_told_the_same() {
    let upstream = Upstream::named("up", 200).await;
    let sidecar = Upstream::named("", 204).await;
    let config = json!({"sidecar-url": sidecar.url()});
    let router = router_with(&upstream.url(), config);
    for seen in both(&router, &upstream, CLAIMS).await {
        let asked = sidecar
            .seen()
            .into_iter()
            .find(|asked| asked.header("x-request-id") == seen.header("x-request-id"))
            .expect("the same id");
        assert_eq!(told(&asked), told(&seen));
    }
}

// ---- PROXY headers

const V2: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// A header of version 2.
fn version_2(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
    let length = (block.len() as u16).to_be_bytes();
    [&V2[..], &[command, family], &length, block].concat()
}

/// The addresses and ports of an IPv4 client and of who took it.
const BLOCK_4: [u8; 12] = [192, 0, 2, 9, 198, 51, 100, 1, 0x30, 0x39, 0x01, 0xbb];

fn block_6() -> Vec<u8> {
    let client: std::net::Ipv6Addr = "2001:db8::9".parse().unwrap();
    let taker: std::net::Ipv6Addr = "2001:db8::1".parse().unwrap();
    [
        &client.octets()[..],
        &taker.octets(),
        &[0x30, 0x39, 0x01, 0xbb],
    ]
    .concat()
}

/// Asks by HTTP/1.1 behind these bytes; `None` if the connection ends without an answer.
async fn behind(address: SocketAddr, header: &[u8]) -> Option<u16> {
    let mut client = Client::connect(address).await;
    let request = head("GET /", "connection: close\r\n");
    client.send([header, request.as_bytes()].concat()).await;
    client.response("GET").await.map(|response| response.status)
}

fn proxied(upstream: &Upstream) -> Router {
    router(
        upstream,
        json!({"trusted-proxies": ["127.0.0.0/8"], "proxy-protocol": true, "read-timeout": "1s"}),
    )
}

#[tokio::test]
async fn a_proxy_header_says_who_the_client_is() {
    let upstream = Upstream::named("up", 200).await;
    let router = proxied(&upstream);
    let with_vectors = [&BLOCK_4[..], &[0x04, 0, 3, 1, 2, 3]].concat();
    let cases: [(Vec<u8>, &str); 11] = [
        (
            b"PROXY TCP4 192.0.2.9 198.51.100.1 12345 443\r\n".to_vec(),
            "192.0.2.9",
        ),
        (
            b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n".to_vec(),
            "255.255.255.255",
        ),
        (
            b"PROXY TCP6 2001:db8::9 2001:db8::1 12345 443\r\n".to_vec(),
            "2001:db8::9",
        ),
        // An IPv4 client of a dual-stack listener.
        (
            b"PROXY TCP6 ::ffff:192.0.2.9 ::1 12345 443\r\n".to_vec(),
            "192.0.2.9",
        ),
        // What is not known is not said: the load balancer is the client.
        (b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.1"),
        (
            b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n".to_vec(),
            "127.0.0.1",
        ),
        (version_2(0x21, 0x11, &BLOCK_4), "192.0.2.9"),
        (version_2(0x21, 0x11, &with_vectors), "192.0.2.9"),
        (version_2(0x21, 0x21, &block_6()), "2001:db8::9"),
        // Its own health check.
        (version_2(0x20, 0x00, b""), "127.0.0.1"),
        (version_2(0x21, 0x00, b""), "127.0.0.1"),
    ];
    for (header, client) in &cases {
        let context = header.escape_ascii().to_string();
        assert_eq!(behind(router.address, header).await, Some(200), "{context}");
        let seen = upstream.seen().pop().unwrap();
        assert_eq!(seen.header("x-forwarded-for"), Some(*client), "{context}");
    }
    // In pieces, and behind it HTTP/2.
    for (header, client) in &cases {
        let mut stream = TcpStream::connect(router.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        for byte in header {
            use tokio::io::AsyncWriteExt;
            stream.write_all(&[*byte]).await.unwrap();
        }
        let mut two = H2Client::over(stream, &h2::client::Builder::new()).await;
        for _ in 0..2 {
            assert_eq!(two.get("/", &[]).await.text(), "up");
            let seen = upstream.seen().pop().unwrap();
            assert_eq!(seen.header("x-forwarded-for"), Some(*client));
        }
    }
}

#[tokio::test]
async fn a_proxy_header_stands_before_tls() {
    let upstream = Upstream::named("up", 200).await;
    let folder = Folder::new();
    let authority = Authority::new("ours");
    let tls = authority.issue(&["localhost"]).write(&folder, "router");
    let router = router(
        &upstream,
        json!({"trusted-proxies": ["127.0.0.0/8"], "proxy-protocol": true, "tls": tls}),
    );
    for protocols in [&["h2"][..], &["http/1.1"]] {
        let mut stream = TcpStream::connect(router.address).await.unwrap();
        {
            use tokio::io::AsyncWriteExt;
            let header = version_2(0x21, 0x11, &BLOCK_4);
            stream.write_all(&header).await.unwrap();
        }
        let client = TlsClient::new(&authority, protocols);
        let stream = soon(client.connect(stream)).await.unwrap();
        if protocols == ["h2"] {
            let mut two = H2Client::over(stream, &h2::client::Builder::new()).await;
            assert_eq!(two.get("/", &[]).await.text(), "up");
        } else {
            use tokio::io::AsyncWriteExt;
            let mut stream = tokio::io::BufReader::new(stream);
            stream
                .write_all(head("GET /", "").as_bytes())
                .await
                .unwrap();
            let response = read_response(&mut stream, "GET").await.unwrap();
            assert_eq!(response.text(), "up");
        }
        let seen = upstream.seen().pop().unwrap();
        assert_eq!(seen.header("x-forwarded-for"), Some("192.0.2.9"));
        assert_eq!(seen.header("x-forwarded-proto"), Some("https"));
    }
}

#[tokio::test]
async fn a_trusted_proxys_connection_without_a_proper_header_is_closed() {
    let upstream = Upstream::named("up", 200).await;
    let router = proxied(&upstream);
    let long = [b"PROXY TCP4 ".to_vec(), vec![b'1'; 200], b"\r\n".to_vec()].concat();
    let headers: [Vec<u8>; 20] = [
        b"".to_vec(),
        b"PROXY\r\n".to_vec(),
        b"PROXY \r\n".to_vec(),
        b"proxy TCP4 192.0.2.9 198.51.100.1 12345 443\r\n".to_vec(),
        b" PROXY TCP4 192.0.2.9 198.51.100.1 12345 443\r\n".to_vec(),
        b"PROXY TCP4 192.0.2.9 198.51.100.1 12345 443\n".to_vec(),
        b"PROXY TCP4 192.0.2.9 198.51.100.1 12345\r\n".to_vec(),
        b"PROXY TCP4 192.0.2.9 198.51.100.1 12345 443 x\r\n".to_vec(),
        b"PROXY TCP4 192.0.2.9 198.51.100.1 12345 65536\r\n".to_vec(),
        b"PROXY TCP4 192.0.2.9 198.51.100.1 -1 443\r\n".to_vec(),
        b"PROXY TCP4 192.0.2.256 198.51.100.1 12345 443\r\n".to_vec(),
        b"PROXY TCP4 2001:db8::9 198.51.100.1 12345 443\r\n".to_vec(),
        b"PROXY TCP6 192.0.2.9 198.51.100.1 12345 443\r\n".to_vec(),
        b"PROXY UDP4 192.0.2.9 198.51.100.1 12345 443\r\n".to_vec(),
        b"PROXY  TCP4 192.0.2.9 198.51.100.1 12345 443\r\n".to_vec(),
        long,
        version_2(0x11, 0x11, &BLOCK_4),
        version_2(0x22, 0x11, &BLOCK_4),
        version_2(0x21, 0x11, &BLOCK_4[..8]),
        version_2(0x21, 0x21, &BLOCK_4),
    ];
    for header in headers {
        let answered = behind(router.address, &header).await;
        assert_eq!(answered, None, "{}", header.escape_ascii());
    }
    assert_eq!(upstream.connections(), (0, 0));
}

#[tokio::test]
async fn half_a_proxy_header_is_closed_at_read_timeout() {
    let upstream = Upstream::named("up", 200).await;
    let router = proxied(&upstream);
    let whole = version_2(0x21, 0x11, &BLOCK_4);
    for begun in [
        &b""[..],
        b"PROXY TCP4 192.0.2.9 ",
        &whole[..5],
        &whole[..20],
    ] {
        let mut client = Client::connect(router.address).await;
        let since = now();
        client.send(begun).await;
        client.closed().await;
        let waited = since.elapsed().as_millis();
        assert!((1000..3000).contains(&waited), "{waited} ms");
    }
    assert_eq!(upstream.connections(), (0, 0));
}

/// They are taken as they are: what looks like a PROXY header is no request.
#[tokio::test]
async fn a_strangers_proxy_header_is_no_request_and_says_nothing() {
    let upstream = Upstream::named("up", 200).await;
    let server = json!({"trusted-proxies": ["10.0.0.0/8"], "proxy-protocol": true});
    let router = router(&upstream, server);
    assert_eq!(behind(router.address, b"").await, Some(200));
    let header = b"PROXY TCP4 192.0.2.9 198.51.100.1 12345 443\r\n";
    assert_eq!(behind(router.address, header).await, Some(400));
    let header = version_2(0x21, 0x11, &BLOCK_4);
    assert_eq!(behind(router.address, &header).await, Some(400));
    assert_eq!(upstream.only().header("x-forwarded-for"), Some("127.0.0.1"));
}

/// Whom a load balancer brings is not trusted because it is.
#[tokio::test]
async fn a_client_behind_a_proxy_header_is_believed_only_if_it_is_trusted_itself() {
    let upstream = Upstream::named("up", 200).await;
    let router = proxied(&upstream);
    for (client, proto) in [("192.0.2.9", "http"), ("127.0.0.5", "https")] {
        let header = format!("PROXY TCP4 {client} 198.51.100.1 12345 443\r\n");
        let mut connection = Client::connect(router.address).await;
        let claims: String = CLAIMS
            .iter()
            .map(|(name, value)| format!("{name}: {value}\r\n"))
            .collect();
        let request = head("GET /", &claims);
        let response = connection.roundtrip("GET", header + &request).await;
        assert_eq!(response.status, 200);
        let seen = upstream.seen().pop().unwrap();
        let for_whom = format!("192.0.2.1, {client}");
        assert_eq!(seen.header("x-forwarded-for"), Some(&*for_whom));
        assert_eq!(seen.header("x-forwarded-proto"), Some(proto));
    }
}

// ---- how many there may be

/// Beyond it they wait, and are served when there is room.
#[tokio::test]
async fn more_connections_than_max_connections_wait_for_their_turn() {
    let upstream = Upstream::named("up", 200).await;
    let config = json!({"router-server": {"max-connections": 3, "workers": 1}});
    let router = router_with(&upstream.url(), config);
    let mut served = Vec::new();
    for _ in 0..3 {
        let mut client = Client::connect(router.address).await;
        assert_eq!(client.roundtrip("GET", head("GET /", "")).await.status, 200);
        served.push(client);
    }
    // One more, which is connected as far as the kernel is concerned.
    let mut waiting = Client::connect(router.address).await;
    waiting.send(head("GET /waits", "")).await;
    // All others go on.
    for client in &mut served {
        for _ in 0..5 {
            assert_eq!(client.roundtrip("GET", head("GET /", "")).await.status, 200);
        }
    }
    assert!(upstream.seen().iter().all(|seen| seen.target() == "/"));
    drop(served.pop());
    assert_eq!(waiting.response("GET").await.unwrap().status, 200);
}
