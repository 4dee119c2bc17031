//! TLS on the listener, and what is spoken under it; TLS and unix sockets towards upstreams that may
//! speak HTTP/2.

use std::{net::SocketAddr, process::Stdio};

use bytes::Bytes;
use h2::{client, server};
use rustls::version::{TLS12, TLS13};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncWriteExt, BufReader, copy_bidirectional},
    net::{TcpListener, TcpStream, UnixListener},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use crate::support::{
    h2peer::{H2Client, H2Upstream, When, answers, asks, receive},
    pki::{Authority, TlsClient},
    *,
};

/// A router that speaks TLS, its CA, and the files that both are in.
struct Secure {
    router: Router,
    authority: Authority,
    folder: Folder,
}

impl Secure {
    fn before(target: &str, server: Value) -> Secure {
        let folder = Folder::new();
        let authority = Authority::new("ours");
        let names = ["localhost", "127.0.0.1"];
        let mut tls = authority.issue(&names).write(&folder, "router");
        authority.write(&folder, "ca.pem");
        merge(&mut tls, server.get("tls").cloned().unwrap_or(json!({})));
        let mut server = server;
        server["tls"] = tls;
        Secure {
            router: router_with(target, json!({"router-server": server})),
            authority,
            folder,
        }
    }

    fn address(&self) -> SocketAddr {
        self.router.address
    }

    async fn stream(&self) -> TcpStream {
        TcpStream::connect(self.address()).await.unwrap()
    }

    /// What curl says: its standard output and its exit code.
    async fn curl(&self, arguments: &[&str]) -> (String, i32) {
        let ca = self.folder.0.join("ca.pem");
        let url = format!("https://localhost:{}/", self.address().port());
        let to = format!("localhost:{}:127.0.0.1", self.address().port());
        let mut command = std::process::Command::new("curl");
        command
            .args(["-q", "-sS", "--noproxy", "*", "--max-time", "15"])
            .args(["--resolve", &to, "--cacert", ca.to_str().unwrap()])
            .args(["-w", " %{http_version} %{http_code}"])
            .args(arguments)
            .arg(url)
            .stdin(Stdio::null());
        let ran = tokio::task::spawn_blocking(move || command.output());
        let output = soon(ran)
            .await
            .unwrap()
            .expect("curl: apt-get install curl");
        let text = String::from_utf8(output.stdout).unwrap();
        (text, output.status.code().unwrap())
    }
}

#[tokio::test]
async fn curl_speaks_the_version_that_it_wants_under_tls() {
    let upstream = Upstream::named("up", 200).await;
    let secure = Secure::before(&upstream.url(), json!({}));
    for (version, spoken) in [
        ("--http2", "up 2 200"),
        ("--http1.1", "up 1.1 200"),
        // It is answered in the version that we speak (RFC 9110 section 6.2).
        ("--http1.0", "up 1.1 200"),
        ("--no-alpn", "up 1.1 200"),
    ] {
        for tls in ["--tlsv1.2", "--tlsv1.3"] {
            let said = secure.curl(&[version, tls]).await;
            assert_eq!(said, (spoken.to_owned(), 0), "{version} {tls}");
        }
        let said = secure.curl(&[version, "--tls-max", "1.2"]).await;
        assert_eq!(said, (spoken.to_owned(), 0), "{version}");
    }
    for seen in upstream.seen() {
        assert_eq!(seen.header("x-forwarded-proto"), Some("https"));
        let host = format!("localhost:{}", secure.address().port());
        assert_eq!(seen.header("x-forwarded-host"), Some(&*host));
        let port = secure.address().port().to_string();
        assert_eq!(seen.header("x-forwarded-port"), Some(&*port));
    }
}

#[tokio::test]
async fn curl_speaks_http_2_by_prior_knowledge_on_the_port_of_http_1() {
    let upstream = Upstream::named("up", 200).await;
    let router = router_to(&upstream.url());
    let url = format!("http://{}/", router.address);
    for (version, spoken) in [
        ("--http2-prior-knowledge", "up 2 200"),
        ("--http1.1", "up 1.1 200"),
        // It asks for an upgrade, which is not what is done any more (RFC 9113 section 3.1).
        ("--http2", "up 1.1 200"),
    ] {
        let mut command = std::process::Command::new("curl");
        command
            .args(["-q", "-sS", "--noproxy", "*", "--max-time", "15", version])
            .args(["-w", " %{http_version} %{http_code}", &url])
            .stdin(Stdio::null());
        let output = soon(tokio::task::spawn_blocking(move || command.output())).await;
        let output = output.unwrap().expect("curl: apt-get install curl");
        assert_eq!(String::from_utf8_lossy(&output.stdout), spoken, "{version}");
    }
    assert_eq!(upstream.seen()[0].header("x-forwarded-proto"), Some("http"));
}

#[tokio::test]
async fn without_http2_nobody_is_offered_it() {
    let upstream = Upstream::named("up", 200).await;
    let secure = Secure::before(&upstream.url(), json!({"http2": false}));
    assert_eq!(secure.curl(&["--http2"]).await, ("up 1.1 200".into(), 0));
    let both = TlsClient::new(&secure.authority, &["h2", "http/1.1"]);
    let stream = soon(both.connect(secure.stream().await)).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));

    let router = router_with(&upstream.url(), json!({"router-server": {"http2": false}}));
    let mut client = Client::connect(router.address).await;
    let preface = [h2raw::PREFACE, &h2raw::settings(&[])].concat();
    client.send(preface).await;
    let answer = String::from_utf8_lossy(&client.rest().await).into_owned();
    assert!(
        answer.is_empty()
            || answer.starts_with("HTTP/1.1 400 ")
            || answer.starts_with("HTTP/1.1 505 "),
        "{answer}"
    );
}

/// A client that offers only what we do not speak is told so in the handshake (RFC 7301 section 3.2).
#[tokio::test]
async fn protocols_that_nobody_speaks_end_the_handshake() {
    let upstream = Upstream::named("up", 200).await;
    let secure = Secure::before(&upstream.url(), json!({}));
    let client = TlsClient::new(&secure.authority, &["http/0.9", "spdy/3"]);
    let refused = soon(client.connect(secure.stream().await)).await;
    assert!(refused.is_err());
    let client = TlsClient::new(&secure.authority, &["spdy/3", "h2"]);
    let stream = soon(client.connect(secure.stream().await)).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
}

#[tokio::test]
async fn tls_1_2_and_1_3_are_spoken_and_1_1_is_not() {
    let upstream = Upstream::named("up", 200).await;
    let secure = Secure::before(&upstream.url(), json!({}));
    for version in [&TLS12, &TLS13] {
        let client = TlsClient {
            versions: &[version],
            ..TlsClient::new(&secure.authority, &["h2"])
        };
        let stream = soon(client.connect(secure.stream().await)).await.unwrap();
        let mut client = H2Client::over(stream, &client::Builder::new()).await;
        assert_eq!(client.get("/", &[]).await.text(), "up");
    }
    // 35: the handshake failed. OpenSSL does not even offer 1.1 unless it is told to.
    let old = [
        "--tlsv1.1",
        "--tls-max",
        "1.1",
        "--ciphers",
        "DEFAULT@SECLEVEL=0",
    ];
    assert_eq!(secure.curl(&old).await.1, 35);
    // A ClientHello of TLS 1.1, by hand.
    let mut hello = vec![0x01, 0, 0, 45, 0x03, 0x02];
    hello.extend([7; 32]);
    hello.extend([0, 0, 4, 0xc0, 0x14, 0x00, 0x35, 1, 0, 0, 0]);
    hello[3] = (hello.len() - 4) as u8;
    let mut record = vec![0x16, 0x03, 0x01, 0, hello.len() as u8];
    record.extend(&hello);
    let mut raw = Client::connect(secure.address()).await;
    raw.send(record).await;
    let answer = raw.rest().await;
    // An alert: protocol_version, or that there is nothing in common.
    assert!(
        matches!(
            answer[..],
            [0x15, 0x03, _, 0, 2, 2, 70 | 40 | 47 | 50 | 109]
        ),
        "{answer:?}"
    );
    assert_eq!(upstream.count(), 2);
}

#[tokio::test]
async fn plain_text_on_a_port_of_tls_is_hung_up_on() {
    let upstream = Upstream::named("up", 200).await;
    let secure = Secure::before(&upstream.url(), json!({}));
    for plain in [&b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"[..], h2raw::PREFACE] {
        let mut client = Client::connect(secure.address()).await;
        client.send(plain).await;
        let answer = client.rest().await;
        assert!(answer.is_empty() || answer[0] == 0x15, "{answer:?}");
    }
    assert_eq!(upstream.connections(), (0, 0));
}

#[tokio::test]
async fn with_client_ca_only_its_clients_get_in() {
    let upstream = Upstream::named("up", 200).await;
    let folder = Folder::new();
    let (clients, others) = (Authority::new("clients"), Authority::new("others"));
    let ca = clients.write(&folder, "clients.pem");
    let secure = Secure::before(&upstream.url(), json!({"tls": {"client-ca": ca}}));
    let (good, bad) = (clients.issue(&["a client"]), others.issue(&["a client"]));
    for protocols in [&["h2"][..], &["http/1.1"]] {
        for versions in [&[&TLS12][..], &[&TLS13]] {
            for (shows, gets_in) in [(Some(&good), true), (Some(&bad), false), (None, false)] {
                let client = TlsClient {
                    shows,
                    versions,
                    ..TlsClient::new(&secure.authority, protocols)
                };
                let context = format!("{protocols:?} {versions:?} {gets_in}");
                // In TLS 1.3 a client hears of it only when it reads.
                let answer = async {
                    let stream = client.connect(secure.stream().await).await.ok()?;
                    if protocols == ["h2"] {
                        let builder = client::Builder::new();
                        let (sender, connection) =
                            builder.handshake::<_, Bytes>(stream).await.ok()?;
                        let connection = tokio::spawn(connection);
                        let mut sender = sender.ready().await.ok()?;
                        let (response, _) =
                            sender.send_request(asks("GET", "/", &[]), true).ok()?;
                        let got = receive(response).await;
                        connection.abort();
                        return (got.status == 200).then_some(());
                    }
                    let mut stream = BufReader::new(stream);
                    stream.write_all(head("GET /", "").as_bytes()).await.ok()?;
                    let response = read_response(&mut stream, "GET").await?;
                    (response.status == 200).then_some(())
                };
                assert_eq!(soon(answer).await.is_some(), gets_in, "{context}");
            }
        }
    }
    let refused = secure.curl(&["--http2"]).await;
    assert_ne!(refused.1, 0, "{refused:?}");
    assert_eq!(upstream.count(), 4);
}

#[tokio::test]
async fn requests_of_either_version_are_served_under_tls_at_the_same_time() {
    let upstream = Upstream::start(|request| answer(200, "", request.target())).await;
    let secure = Secure::before(&upstream.url(), json!({}));
    for i in 0..10 {
        let h2 = TlsClient::new(&secure.authority, &["h2"]);
        let stream = soon(h2.connect(secure.stream().await)).await.unwrap();
        let mut two = H2Client::over(stream, &client::Builder::new()).await;
        let h1 = TlsClient::new(&secure.authority, &["http/1.1"]);
        let stream = soon(h1.connect(secure.stream().await)).await.unwrap();
        let mut one = BufReader::new(stream);
        for j in 0..3 {
            let path = format!("/{i}/{j}");
            let request = head(&format!("GET {path}"), "");
            one.write_all(request.as_bytes()).await.unwrap();
            let response = read_response(&mut one, "GET").await.unwrap();
            assert_eq!((response.status, response.text()), (200, path.clone()));
            assert_eq!(two.get(&path, &[]).await.text(), path);
        }
    }
}

/// TLS has records of 16 KiB and more of its own; bodies go through it all the same.
#[tokio::test]
async fn large_bodies_pass_both_ways_under_tls() {
    let upstream = Upstream::start(|request| {
        let length = request.body.len();
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
        vec![Step::Write(head.into()), Step::Write(request.body.clone())]
    })
    .await;
    let secure = Secure::before(&upstream.url(), json!({}));
    let tls = TlsClient::new(&secure.authority, &["h2"]);
    let stream = soon(tls.connect(secure.stream().await)).await.unwrap();
    let mut client = H2Client::over(stream, &client::Builder::new()).await;
    for size in [1, 16_383, 16_384, 16_385, 5 << 20] {
        let body = noise(size);
        let got = client.post("/", &[], &body).await;
        assert_eq!(got.status, 200);
        assert_same(&got.body, &body);
    }
}

// ---- upstreams

/// An upstream under TLS that takes HTTP/2 or not, by ALPN.
async fn tls_upstream(acceptor: TlsAcceptor) -> (String, H2Upstream, Upstream, JoinSet<()>) {
    let two = H2Upstream::named("two", 200).await;
    let one = Upstream::named("one", 200).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!(
        "https://localhost:{}",
        listener.local_addr().unwrap().port()
    );
    let (behind_two, behind_one) = (two.address, one.address);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            connections.spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    return;
                };
                let behind = match stream.get_ref().1.alpn_protocol() {
                    Some(b"h2") => behind_two,
                    _ => behind_one,
                };
                let mut behind = TcpStream::connect(behind).await.unwrap();
                let _closed = copy_bidirectional(&mut stream, &mut behind).await;
            });
        }
    });
    (url, two, one, tasks)
}

#[tokio::test]
async fn the_protocol_towards_an_upstream_under_tls_is_what_is_configured_and_what_it_chooses() {
    let folder = Folder::new();
    let authority = Authority::new("upstreams");
    let ca = authority.write(&folder, "ca.pem");
    let identity = authority.issue(&["localhost"]);
    for (configured, offered, expected) in [
        ("auto", &["h2", "http/1.1"][..], Some("two")),
        ("auto", &["http/1.1"], Some("one")),
        ("auto", &[], Some("one")),
        ("auto", &["h2"], Some("two")),
        ("h2", &["h2", "http/1.1"], Some("two")),
        ("h2", &["h2"], Some("two")),
        ("http1", &["h2", "http/1.1"], Some("one")),
        ("http1", &["http/1.1"], Some("one")),
        ("http1", &[], Some("one")),
        // It cannot be had.
        ("h2", &["http/1.1"], None),
        ("http1", &["h2"], None),
    ] {
        let (url, two, one, _tasks) = tls_upstream(identity.acceptor(offered, None)).await;
        let client = json!({"protocol": configured, "tls": {"ca": ca}});
        let router = router_with(
            &url,
            json!({"proxy-client": {"to-main-and-canary": client}}),
        );
        for _ in 0..3 {
            let response = get(router.address, "/", "").await;
            let got = (response.status == 200).then(|| response.text());
            assert_eq!(got.as_deref(), expected, "{configured} {offered:?}");
            if expected.is_none() {
                assert_eq!(response.status, 502);
            }
            let mut client = H2Client::connect(router.address).await;
            let got = client.get("/", &[]).await;
            let got = (got.status == 200).then(|| got.text());
            assert_eq!(got.as_deref(), expected, "{configured} {offered:?}");
        }
        if expected == Some("two") {
            assert_eq!(two.connections().0, 1, "{configured} {offered:?}");
            assert_eq!(two.seen()[0].scheme.as_deref(), Some("https"));
        }
        assert!(two.count() == 0 || one.count() == 0);
    }
}

/// Without TLS there is nothing to choose by.
#[tokio::test]
async fn auto_is_http_1_towards_an_upstream_without_tls() {
    let upstream = Upstream::named("one", 200).await;
    let client = json!({"to-main-and-canary": {"protocol": "auto"}});
    let router = router_with(&upstream.url(), json!({"proxy-client": client}));
    assert_eq!(get(router.address, "/", "").await.text(), "one");
}

#[tokio::test]
async fn an_upstream_is_verified_by_the_ca_and_the_name_that_are_configured() {
    let folder = Folder::new();
    let (authority, other) = (Authority::new("upstreams"), Authority::new("others"));
    let (ca, wrong_ca) = (
        authority.write(&folder, "ca.pem"),
        other.write(&folder, "other.pem"),
    );
    let identity = authority.issue(&["service.internal"]);
    for protocol in ["http1", "h2", "auto"] {
        let offered = ["h2", "http/1.1"];
        let (url, _two, _one, _tasks) = tls_upstream(identity.acceptor(&offered, None)).await;
        for (tls, status) in [
            (json!({"ca": ca, "server-name": "service.internal"}), 200),
            (json!({"ca": ca}), 502),
            (json!({"ca": ca, "server-name": "other.internal"}), 502),
            (
                json!({"ca": wrong_ca, "server-name": "service.internal"}),
                502,
            ),
            (json!({"server-name": "service.internal"}), 502),
            (json!({"insecure-skip-verify": true}), 200),
        ] {
            let client = json!({"protocol": protocol, "tls": tls});
            let config = json!({"proxy-client": {"to-main-and-canary": client}});
            let router = router_with(&url, config);
            let response = get(router.address, "/", "").await;
            assert_eq!(response.status, status, "{protocol} {tls}");
        }
    }
}

#[tokio::test]
async fn an_upstream_that_asks_for_a_certificate_is_shown_ours() {
    let folder = Folder::new();
    let authority = Authority::new("upstreams");
    let ca = authority.write(&folder, "ca.pem");
    let ours = authority.issue(&["router"]).write(&folder, "router");
    let identity = authority.issue(&["localhost"]);
    for protocol in ["http1", "h2"] {
        let acceptor = identity.acceptor(&["h2", "http/1.1"], Some(&authority));
        let (url, _two, _one, _tasks) = tls_upstream(acceptor).await;
        let mut shown = json!({"ca": ca});
        for status in [502, 200] {
            let client = json!({"protocol": protocol, "tls": shown});
            let config = json!({"proxy-client": {"to-main-and-canary": client}});
            let router = router_with(&url, config);
            assert_eq!(
                get(router.address, "/", "").await.status,
                status,
                "{protocol}"
            );
            merge(&mut shown, ours.clone());
        }
    }
}

/// Behind this socket is who listens at `address`.
fn on_a_unix_socket(folder: &Folder, address: SocketAddr) -> (String, JoinSet<()>) {
    let path = folder.0.join("service.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            connections.spawn(async move {
                let mut behind = TcpStream::connect(address).await.unwrap();
                let _closed = copy_bidirectional(&mut stream, &mut behind).await;
            });
        }
    });
    (format!("http://unix:{}:", path.to_str().unwrap()), tasks)
}

#[tokio::test]
async fn upstreams_on_unix_sockets_are_reached_by_either_version() {
    let folder = Folder::new();
    let one = Upstream::start(|request| answer(200, "", request.target())).await;
    let (socket, _tasks) = on_a_unix_socket(&folder, one.address);
    let router = router_with(&format!("{socket}/base"), json!({}));
    let mut client = H2Client::connect(router.address).await;
    for _ in 0..3 {
        assert_eq!(get(router.address, "/a?b", "").await.text(), "/base/a?b");
        assert_eq!(client.get("/a?b", &[]).await.text(), "/base/a?b");
    }
    assert_eq!(one.seen()[0].header("host"), Some("localhost"));
    assert_eq!(one.connections().0, 1, "kept, and used again");

    let folder = Folder::new();
    let two = H2Upstream::with(server::Builder::new(), None, When::Whole, |asked| {
        answers(200, &[], &asked.path)
    });
    let (socket, _tasks) = on_a_unix_socket(&folder, two.address);
    let client = json!({"to-main-and-canary": {"protocol": "h2"}});
    let config = json!({"proxy-client": client, "main-header-host": "service.example"});
    let router = router_with(&format!("{socket}/base"), config);
    let mut client = H2Client::connect(router.address).await;
    for _ in 0..3 {
        assert_eq!(get(router.address, "/a?b", "").await.text(), "/base/a?b");
        assert_eq!(client.get("/a?b", &[]).await.text(), "/base/a?b");
    }
    assert_eq!(two.seen()[0].authority.as_deref(), Some("service.example"));
    assert_eq!(two.connections().0, 1);
}

#[tokio::test]
async fn a_sidecar_on_a_unix_socket_or_in_http_2_is_asked() {
    let (main, canary) = (
        Upstream::named("main", 200).await,
        Upstream::named("canary", 200).await,
    );
    let folder = Folder::new();
    let one = Upstream::named("", 200).await;
    let (socket, _tasks) = on_a_unix_socket(&folder, one.address);
    let two = H2Upstream::named("", 200).await;
    for (url, protocol) in [(format!("{socket}/decide"), "http1"), (two.url(), "h2")] {
        let router = Router::start(json!({
            "main-target": main.url(), "canary-target": canary.url(), "sidecar-url": url,
            "proxy-client": {"to-sidecar": {"protocol": protocol}}
        }));
        let response = request(router.address, "POST", "/a?b", "x-a: 1\r\n", "body").await;
        assert_eq!((response.status, &*response.text()), (200, "canary"));
        let mut client = H2Client::connect(router.address).await;
        let got = client.post("/a?b", &[("x-a", "1")], b"body").await;
        assert_eq!((got.status, &*got.text()), (200, "canary"));
    }
    for asked in one.seen() {
        assert_eq!((asked.target(), &*asked.text()), ("/decide/a?b", "body"));
        assert_eq!(asked.header("x-a"), Some("1"));
    }
    for asked in two.seen() {
        assert_eq!((&*asked.path, &*asked.text()), ("/a?b", "body"));
        assert_eq!(asked.header("x-a"), Some("1"));
    }
    assert_eq!((one.count(), two.count()), (2, 2));
}

#[tokio::test]
async fn a_unix_socket_that_is_not_there_is_502() {
    let folder = Folder::new();
    let path = folder.0.join("nobody.sock");
    let url = format!("http://unix:{}:/", path.to_str().unwrap());
    let router = router_to(&url);
    assert_eq!(get(router.address, "/", "").await.status, 502);
    // A file that is none, too; and when it is one it is used.
    folder.write("nobody.sock", "");
    assert_eq!(get(router.address, "/", "").await.status, 502);
    std::fs::remove_file(&path).unwrap();
    let upstream = Upstream::named("up", 200).await;
    let listener = UnixListener::bind(&path).unwrap();
    let behind = upstream.address;
    let _serving = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut behind = TcpStream::connect(behind).await.unwrap();
            tokio::spawn(async move {
                let _closed = copy_bidirectional(&mut stream, &mut behind).await;
            });
        }
    });
    assert_eq!(get(router.address, "/", "").await.text(), "up");
}
