//! TLS towards upstreams.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::{
    ServerConfig,
    crypto::ring::default_provider,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use serde_json::{Value, json};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use crate::support::*;

/// Speaks TLS with a certificate that nobody knows, in front of a scripted upstream. It lives as
/// long as the set of its tasks.
async fn tls_before(upstream: &Upstream) -> (String, JoinSet<()>) {
    let acceptor = acceptor();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let behind = upstream.address;
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(pass(acceptor.clone(), stream, behind));
        }
    });
    (url, tasks)
}

/// At a small weight most requests of a canary need a connection of their own: a canary that is as fast as main
/// was rolled back for the time that the handshake takes.
#[tokio::test]
async fn the_handshake_of_a_canary_that_gets_little_is_not_its_latency() {
    let main = Upstream::named("main", 200).await;
    // Each connection is for one request.
    let canary = Upstream::start(|_| {
        let mut steps = answer(200, "connection: close\r\n", "canary");
        steps.push(Step::Close);
        steps
    })
    .await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let far = format!("https://{}", listener.local_addr().unwrap());
    let (acceptor, behind) = (acceptor(), canary.address);
    let _tls = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            connections.spawn(async move {
                tokio::time::sleep(Duration::from_millis(200)).await;
                pass(acceptor, stream, behind).await;
            });
        }
    });
    let router = Router::start(json!({
        "main-target": main.url(),
        "canary-target": far,
        "proxy-client": trusting("to-main-and-canary"),
        // Half of what the handshake takes, and more than a machine with other tests on it.
        "rollout": {"steps": [{"weight": 50, "for": "1h"}], "latency-slack": "100ms"}
    }));
    router.change("POST", "/rollout/start", "").await;
    let address = router.address;
    for _ in 0..10 {
        together((0..20).map(move |_| get(address, "/", ""))).await;
    }
    let status = soon(async {
        loop {
            let status = router.status().await;
            let requests = &status["evidence"]["requests"];
            if requests["main"].as_u64().unwrap() + requests["canary"].as_u64().unwrap() == 200 {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    assert_eq!(
        status["rollout"]["phase"], "progressing",
        "{}",
        status["evidence"]
    );
}

fn acceptor() -> TlsAcceptor {
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(signing_key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

async fn pass(acceptor: TlsAcceptor, stream: TcpStream, behind: SocketAddr) {
    // A client that does not trust us ends the handshake.
    let Ok(mut stream) = acceptor.accept(stream).await else {
        return;
    };
    let Ok(mut upstream) = TcpStream::connect(behind).await else {
        return;
    };
    let _either_closed = copy_bidirectional(&mut stream, &mut upstream).await;
}

fn trusting(client: &str) -> Value {
    json!({client: {"tls": {"insecure-skip-verify": true}}})
}

#[tokio::test]
async fn with_insecure_skip_verify_a_self_signed_upstream_is_used() {
    let upstream = Upstream::named("up", 200).await;
    let (url, _tls) = tls_before(&upstream).await;
    for url in [url.clone(), url.replace("127.0.0.1", "localhost")] {
        let router = router_with(
            &url,
            json!({"proxy-client": trusting("to-main-and-canary")}),
        );
        let mut client = Client::connect(router.address).await;
        for _ in 0..3 {
            let response = client
                .roundtrip("GET", "GET /a?b HTTP/1.1\r\nhost: client.example\r\n\r\n")
                .await;
            assert_eq!((response.status, &*response.text()), (200, "up"));
            let seen = upstream.seen().pop().unwrap();
            assert_eq!(seen.target(), "/a?b");
            assert_eq!(seen.header("host"), Some(&url["https://".len()..]));
        }
    }
    assert_eq!(upstream.connections().0, 2, "one for each router");
}

#[tokio::test]
async fn a_large_body_passes_both_ways_over_tls() {
    const SIZE: usize = 3 << 20;
    let upstream = Upstream::start(|request| {
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n",
            request.body.len()
        );
        vec![
            Step::Write(head.into_bytes()),
            Step::Write(request.body.clone()),
        ]
    })
    .await;
    let (url, _tls) = tls_before(&upstream).await;
    let router = router_with(
        &url,
        json!({"proxy-client": trusting("to-main-and-canary")}),
    );
    let body: Vec<u8> = (0..SIZE).map(|i| (i * i % 251) as u8).collect();
    let mut client = Client::connect(router.address).await;
    client
        .send(format!(
            "POST / HTTP/1.1\r\nhost: client.example\r\ncontent-length: {SIZE}\r\n\r\n"
        ))
        .await;
    let response = client.roundtrip("POST", &body).await;
    assert_eq!((response.status, response.complete), (200, true));
    assert!(upstream.only().body == body);
    assert!(response.message.body == body);
}

/// What TLS had taken counted as sent, but some of it was kept where the socket was full, and nobody
/// sent that. How much a socket takes differs, so many lengths are tried.
#[tokio::test]
async fn an_upload_to_a_slow_reader_arrives_to_its_end_over_tls() {
    const UPLOADS: usize = 24;
    let upstream = Upstream::named("up", 200).await;
    let listener = listen_narrowly();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let router = router_with(
        &url,
        json!({"proxy-client": {"to-main-and-canary": {
            "timeout": "1500ms", "tls": {"insecure-skip-verify": true}
        }}}),
    );
    let address = router.address;
    let mut uploads = JoinSet::new();
    for i in 1..=UPLOADS {
        uploads.spawn(async move {
            let body = noise(i * 16_000);
            let start = format!("content-length: {}\r\n", body.len());
            let mut client = Client::connect(address).await;
            client.send(head("POST /", &start)).await;
            (client.roundtrip("POST", &body).await, body)
        });
    }
    let (acceptor, mut shaken) = (acceptor(), Vec::new());
    for _ in 0..UPLOADS {
        let (stream, _) = soon(listener.accept()).await.unwrap();
        shaken.push(soon(acceptor.accept(stream)).await.unwrap());
    }
    // When the one worker has answered others, it has sent what it can.
    for _ in 0..10 {
        get(address, "/application/health", "").await;
    }
    let _reading: JoinSet<_> = shaken
        .into_iter()
        .map(|mut stream| {
            let behind = upstream.address;
            async move {
                let mut upstream = TcpStream::connect(behind).await.unwrap();
                let _either_closed = copy_bidirectional(&mut stream, &mut upstream).await;
            }
        })
        .collect();
    while let Some(upload) = soon(uploads.join_next()).await {
        let (response, body) = upload.unwrap();
        assert_eq!(response.status, 200, "{} bytes", body.len());
        assert!(upstream.seen().iter().any(|seen| seen.body == body));
    }
}

#[tokio::test]
async fn a_certificate_that_cannot_be_verified_is_502() {
    let upstream = Upstream::named("up", 200).await;
    let (url, _tls) = tls_before(&upstream).await;
    for config in [json!({}), json!({"proxy-client": trusting("to-sidecar")})] {
        let router = router_with(&url, config);
        for header in ["", "x-canary: false\r\n"] {
            let response = get(router.address, "/", header).await;
            assert_eq!((response.status, response.complete), (502, true));
        }
        router
            .counts(
                "canary_router_upstream_failures_total{kind=\"tls\",target=\"main\"}",
                2.0,
            )
            .await;
    }
    assert_eq!(upstream.connections(), (0, 0), "nothing was sent");
}

/// No byte of the request left, so main can have it.
#[tokio::test]
async fn a_canary_that_cannot_be_verified_is_replaced_by_main() {
    let (main, canary) = (
        Upstream::named("main", 200).await,
        Upstream::named("canary", 200).await,
    );
    let (url, _tls) = tls_before(&canary).await;
    let router = Router::start(json!({"main-target": main.url(), "canary-target": url}));
    let response = request(router.address, "POST", "/", "x-canary: true\r\n", "body").await;
    assert_eq!((response.status, &*response.text()), (200, "main"));
    assert_eq!(main.only().text(), "body");
    assert_eq!(canary.connections(), (0, 0));
}

#[tokio::test]
async fn a_sidecar_is_asked_over_tls() {
    let upstream = Upstream::named("up", 200).await;
    let sidecar = Upstream::named("", 200).await;
    let (url, _tls) = tls_before(&sidecar).await;
    let canary = "canary_router_request_count{reason=\"Sidecar returns status code 200\",\
                  target=\"canary\"}";
    let failed = "canary_router_request_count{reason=\"Sidecar error\",target=\"main\"}";
    for (client, series) in [("to-sidecar", canary), ("to-main-and-canary", failed)] {
        let config = json!({"sidecar-url": url, "proxy-client": trusting(client)});
        let router = router_with(&upstream.url(), config);
        let response = request(router.address, "POST", "/a?b", "", "body").await;
        assert_eq!((response.status, &*response.text()), (200, "up"));
        router.counts(series, 1.0).await;
        let asked = sidecar.only();
        assert_eq!((asked.target(), &*asked.text()), ("/a?b", "body"));
    }
}

#[tokio::test]
async fn an_upstream_that_speaks_no_tls_is_502() {
    let upstream = ByHand::start().await;
    let url = upstream.url().replace("http:", "https:");
    let router = router_with(
        &url,
        json!({"proxy-client": trusting("to-main-and-canary")}),
    );
    let mut client = Client::connect(router.address).await;
    client.send("GET / HTTP/1.1\r\nhost: h\r\n\r\n").await;
    let mut service = upstream.accept().await;
    service
        .send("HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
        .await;
    assert_eq!(client.response("GET").await.unwrap().status, 502);
}

#[tokio::test]
async fn an_upgrade_is_tunnelled_over_tls() {
    let upstream = Upstream::start(|_| {
        let agrees = "HTTP/1.1 101 X\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\nhello ";
        vec![Step::Write(agrees.into()), Step::Echo]
    })
    .await;
    let (url, _tls) = tls_before(&upstream).await;
    let router = router_with(
        &url,
        json!({"proxy-client": trusting("to-main-and-canary")}),
    );
    let mut client = Client::connect(router.address).await;
    client
        .send("GET / HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\nearly ")
        .await;
    client.head().await;
    client.expect("hello early ").await;
    client.send("late").await;
    client.expect("late").await;
    client.finish().await;
    client.closed().await;
    eventually(|| upstream.connections().1 == 0).await;
}

/// The end of the body is the end of the connection, and TLS can tell that from a cut.
#[tokio::test]
async fn a_response_cut_off_under_tls_is_cut_off_for_the_client() {
    let upstream = Upstream::start(|_| {
        vec![
            Step::Write(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc".to_vec()),
            Step::Close,
        ]
    })
    .await;
    let (url, _tls) = tls_before(&upstream).await;
    let router = router_with(
        &url,
        json!({"proxy-client": trusting("to-main-and-canary")}),
    );
    let response = get(router.address, "/", "").await;
    assert_eq!((response.status, response.complete), (200, false));
    assert_eq!(response.text(), "abc");
}
