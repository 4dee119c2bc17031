//! HTTP/2 where it went wrong before, or nearly: what a review has found.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use h2::{Reason, RecvStream, client::SendRequest, ext::Protocol, server};
use http::{Method, Request, Response as Head, StatusCode};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::{
    ServerConfig,
    crypto::ring::default_provider,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use crate::support::{
    h2peer::{Asked, H2Upstream, When, answers},
    h2raw::{
        self, PREFACE, Raw, code, data, flag, goaway, headers, kind, ping, setting, settings,
        window_update,
    },
    *,
};

const PAUSE: Duration = Duration::from_millis(300);

/// A connection of a client that speaks HTTP/2.
async fn speak(address: SocketAddr, window: u32) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    speak_on(stream, window).await
}

async fn speak_on(stream: TcpStream, window: u32) -> SendRequest<Bytes> {
    let (requests, connection) = h2::client::Builder::new()
        .initial_window_size(window)
        .initial_connection_window_size(16 << 20)
        .handshake(stream)
        .await
        .unwrap();
    tokio::spawn(async move {
        let _broken = connection.await;
    });
    requests.ready().await.unwrap()
}

fn to(method: &str, path: &str) -> Request<()> {
    Request::builder()
        .method(method)
        .uri(format!("http://client.example{path}"))
        .body(())
        .unwrap()
}

async fn whole(mut body: RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut all = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len()).unwrap();
        all.extend_from_slice(&data);
    }
    body.trailers().await?;
    Ok(all)
}

/// What a service does with each request.
type Act = dyn Fn(Request<RecvStream>, server::SendResponse<Bytes>, usize) + Send + Sync;

/// A service that speaks HTTP/2.
struct Service {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

/// How its connections begin.
#[derive(Clone)]
struct Begin {
    tls: Option<TlsAcceptor>,
    after: Duration,
    streams: Option<u32>,
    /// After so many requests the first connection ends, and refuses all others.
    ends_after: Option<usize>,
}

const PLAIN: Begin = Begin {
    tls: None,
    after: Duration::ZERO,
    streams: None,
    ends_after: None,
};

trait Both: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Both for T {}

impl Service {
    fn start(
        begin: Begin,
        act: impl Fn(Request<RecvStream>, server::SendResponse<Bytes>, usize) + Send + Sync + 'static,
    ) -> Service {
        let listener = listen();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let act: Arc<Act> = Arc::new(act);
        let mut tasks = JoinSet::new();
        let count = connections.clone();
        tasks.spawn(async move {
            let mut serving = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let number = count.fetch_add(1, Ordering::SeqCst);
                let (begin, act) = (begin.clone(), act.clone());
                serving.spawn(async move {
                    tokio::time::sleep(begin.after).await;
                    let io: Box<dyn Both> = match &begin.tls {
                        None => Box::new(stream),
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => Box::new(stream),
                            Err(_) => return,
                        },
                    };
                    let mut builder = server::Builder::new();
                    if let Some(streams) = begin.streams {
                        builder.max_concurrent_streams(streams);
                    }
                    let Ok(mut connection) = builder.handshake::<_, Bytes>(io).await else {
                        return;
                    };
                    let mut seen = 0;
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        seen += 1;
                        match begin.ends_after {
                            Some(most) if number == 0 => {
                                let mut respond = respond;
                                respond.send_reset(Reason::REFUSED_STREAM);
                                if seen >= most {
                                    connection.graceful_shutdown();
                                }
                            }
                            _ => act(request, respond, number),
                        }
                    }
                });
            }
        });
        Service {
            address,
            connections,
            _tasks: tasks,
        }
    }

    fn made(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

fn respond_ok(mut respond: server::SendResponse<Bytes>) {
    let mut stream = respond.send_response(Head::new(()), false).unwrap();
    stream.send_data(Bytes::from_static(b"fine"), true).unwrap();
}

fn tls(protocols: &[&[u8]]) -> TlsAcceptor {
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(signing_key.serialize_der()));
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    TlsAcceptor::from(Arc::new(config))
}

fn speaking(protocol: &str) -> Value {
    json!({"proxy-client": {"to-main-and-canary": {
        "protocol": protocol, "tls": {"insecure-skip-verify": true}
    }}})
}

fn h2_router(target: String) -> Router {
    router_with(
        &target,
        json!({"proxy-client": {"to-main-and-canary": {"protocol": "h2"}}}),
    )
}

fn statuses(all: &[Response]) -> String {
    let mut all: Vec<u16> = all.iter().map(|one| one.status).collect();
    all.sort_unstable();
    format!("{all:?}")
}

/// `:protocol` is a line of HTTP/1 further on, but the `h2` crate looks at UTF-8 only.
#[tokio::test]
async fn a_protocol_that_would_split_a_request_is_refused() {
    let upstream = ByHand::start().await;
    let router = router_to(&upstream.url());
    let mut requests = speak(router.address, 1 << 20).await;
    let mut request = to("GET", "/socket");
    *request.method_mut() = Method::CONNECT;
    let evil = "websocket\r\nx-canary: true\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: a";
    request.extensions_mut().insert(Protocol::from(evil));
    let (response, _stream) = requests.send_request(request, false).unwrap();
    let came = tokio::select! {
        mut connection = upstream.accept() => {
            let mut read = vec![0; 4096];
            let length = soon(connection.0.read(&mut read)).await.unwrap();
            String::from_utf8_lossy(&read[..length]).into_owned()
        }
        _refused = soon(response) => String::new(),
    };
    assert!(!came.contains("\r\nGET /smuggled"), "{came}");
}

/// An answer of ours to a request that has a body.
#[tokio::test]
async fn an_answer_of_ours_arrives_though_the_request_is_not_read() {
    let nobody = Upstream::nobody().await;
    let router = router_to(&format!("http://{nobody}"));
    let mut requests = speak(router.address, 1 << 20).await;
    let (response, _upload) = requests.send_request(to("POST", "/"), false).unwrap();
    let response = soon(response).await.expect("an answer, not a reset alone");
    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    assert!(!soon(whole(response.into_body())).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_client_that_does_not_send_its_request_is_told_so() {
    let upstream = Upstream::named("main", 200).await;
    let router = router_with(
        &upstream.url(),
        json!({"router-server": {"read-timeout": "300ms"}}),
    );
    let mut requests = speak(router.address, 1 << 20).await;
    let (response, _upload) = requests.send_request(to("POST", "/"), false).unwrap();
    let response = soon(response).await.expect("408, not a reset alone");
    assert_eq!(response.status(), StatusCode::REQUEST_TIMEOUT);
}

/// `write-timeout` is for a client that takes nothing.
#[tokio::test]
async fn a_client_that_reads_slowly_gets_all() {
    let body = "x".repeat(32 << 10);
    let upstream = Upstream::start(move |_| answer(200, "", &body)).await;
    let router = router_with(
        &upstream.url(),
        json!({"router-server": {"write-timeout": "1s"}}),
    );
    let mut requests = speak(router.address, 1000).await;
    let (response, _) = requests.send_request(to("GET", "/"), true).unwrap();
    let mut body = soon(response).await.unwrap().into_body();
    let mut all = 0;
    while let Some(data) = soon(body.data()).await {
        let data = data.unwrap_or_else(|error| panic!("{error} after {all}"));
        all += data.len();
        tokio::time::sleep(Duration::from_millis(100)).await;
        body.flow_control().release_capacity(data.len()).unwrap();
    }
    assert_eq!(all, 32 << 10);
}

/// What speaks HTTP/1 only is connected to by all at once.
#[tokio::test]
async fn where_http1_is_agreed_on_nobody_waits_for_the_others_handshakes() {
    let upstream = Upstream::named("main", 200).await;
    let listener = listen();
    let target = format!("https://{}", listener.local_addr().unwrap());
    let (acceptor, behind) = (tls(&[b"http/1.1"]), upstream.address);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                tokio::time::sleep(PAUSE).await;
                let mut stream = acceptor.accept(stream).await.unwrap();
                let mut upstream = TcpStream::connect(behind).await.unwrap();
                let _closed = tokio::io::copy_bidirectional(&mut stream, &mut upstream).await;
            });
        }
    });
    let router = router_with(&target, speaking("auto"));
    let address = router.address;
    let all = together((0..20).map(move |_| get(address, "/", ""))).await;
    assert!(
        all.iter().all(|one| one.status == 200),
        "{}",
        statuses(&all)
    );
}

/// One that takes few requests at a time has others on other connections.
#[tokio::test]
async fn a_connection_that_is_full_leaves_the_others_no_queue() {
    let begin = Begin {
        tls: Some(tls(&[b"h2"])),
        after: PAUSE,
        streams: Some(1),
        ..PLAIN
    };
    let service = Service::start(begin, |_, respond, _| {
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(2)).await;
            respond_ok(respond);
        });
    });
    let router = router_with(&format!("https://{}", service.address), speaking("h2"));
    let address = router.address;
    let all = together((0..12).map(move |_| get(address, "/", ""))).await;
    assert!(
        all.iter().all(|one| one.status == 200),
        "{}",
        statuses(&all)
    );
}

/// What one connection has refused goes to another one together.
#[tokio::test]
async fn requests_of_a_connection_that_ends_share_the_next_one() {
    let begin = Begin {
        tls: Some(tls(&[b"h2"])),
        after: PAUSE,
        ends_after: Some(41),
        ..PLAIN
    };
    let service = Service::start(begin, |_, respond, _| respond_ok(respond));
    let router = router_with(&format!("https://{}", service.address), speaking("h2"));
    let address = router.address;
    assert_eq!(get(address, "/", "").await.status, 200);
    let all = together((0..40).map(move |_| get(address, "/", ""))).await;
    assert!(
        all.iter().all(|one| one.status == 200) && service.made() < 10,
        "{} by {} connections",
        statuses(&all),
        service.made()
    );
}

/// RFC 9110 section 9.3.2: nothing more is to be waited for.
#[tokio::test]
async fn an_answer_to_head_is_over_with_its_head() {
    let open = Arc::new(Mutex::new(Vec::new()));
    let service = Service::start(PLAIN, move |request, mut respond, _| {
        if request.method() == Method::HEAD {
            let stream = respond.send_response(Head::new(()), false).unwrap();
            open.lock().unwrap().push(stream);
        } else {
            respond_ok(respond);
        }
    });
    let router = h2_router(format!("http://{}", service.address));
    let mut client = Client::connect(router.address).await;
    let first = client.roundtrip("HEAD", head("HEAD /", "")).await;
    assert_eq!(first.status, 200);
    client.send(head("GET /", "")).await;
    let second = tokio::time::timeout(Duration::from_secs(8), client.response("GET")).await;
    assert_eq!(second.expect("no answer in 8 s").unwrap().status, 200);
}

/// RFC 9110 section 7.8: who does not want to switch ignores it.
#[tokio::test]
async fn an_upgrade_that_an_http2_upstream_does_not_know_is_not_its_failure() {
    let service = Service::start(PLAIN, |_, respond, _| respond_ok(respond));
    let nobody = Upstream::named("main", 200).await;
    let router = Router::start(json!({
        "main-target": nobody.url(),
        "canary-target": format!("http://{}", service.address),
        "router-server": {"workers": 1},
        "proxy-client": {"to-main-and-canary": {"protocol": "h2"}},
        "circuit-breaker": {"error-limit-canary": 3}
    }));
    let wanted = "x-canary: true\r\nconnection: upgrade\r\nupgrade: anything\r\n";
    let mut all = Vec::new();
    for _ in 0..20 {
        all.push(get(router.address, "/", wanted).await);
    }
    assert!(
        all.iter().all(|one| one.status == 200) && service.made() < 5,
        "{} by {} connections",
        statuses(&all),
        service.made()
    );
}

/// The first burst on a connection is ahead of what its upstream allows.
#[tokio::test]
async fn what_never_left_for_the_canary_goes_to_main() {
    let kept = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::new(AtomicUsize::new(0));
    let begin = Begin {
        streams: Some(1),
        ..PLAIN
    };
    let (keep, count) = (kept.clone(), seen.clone());
    let canary = Service::start(begin, move |_, respond, _| {
        count.fetch_add(1, Ordering::SeqCst);
        keep.lock().unwrap().push(respond);
    });
    let main = Service::start(PLAIN, |_, respond, _| respond_ok(respond));
    let router = Router::start(json!({
        "main-target": format!("http://{}", main.address),
        "canary-target": format!("http://{}", canary.address),
        "router-server": {"workers": 1},
        "proxy-client": {"to-main-and-canary": {"protocol": "h2", "timeout": "1s"}}
    }));
    let address = router.address;
    let all = together((0..10).map(move |_| get(address, "/", "x-canary: true\r\n"))).await;
    let lost = all.iter().filter(|one| one.status != 200).count();
    assert!(
        lost <= seen.load(Ordering::SeqCst),
        "the canary saw {}: {}",
        seen.load(Ordering::SeqCst),
        statuses(&all)
    );
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
    out
}

/// It has all of the answer.
async fn early_answer(last: &'static [u8]) {
    let listener = listen();
    let router = h2_router(format!("http://{}", listener.local_addr().unwrap()));
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut read = vec![0; 1 << 16];
        let _settings = stream.read(&mut read).await.unwrap();
        stream.write_all(&frame(4, 0, 0, &[])).await.unwrap();
        tokio::time::sleep(PAUSE).await;
        let _request = stream.read(&mut read).await.unwrap();
        // 413 as a literal.
        let mut out = frame(1, 4, 1, b"\x08\x03413");
        out.extend(frame(0, 1, 1, &[b'x'; 12345]));
        out.extend_from_slice(last);
        stream.write_all(&out).await.unwrap();
        if last.is_empty() {
            // Without a reset on the way.
            stream.shutdown().await.unwrap();
        }
        while let Ok(1..) = stream.read(&mut read).await {}
    });
    let mut client = Client::connect(router.address).await;
    let head = head("POST /", "content-length: 100000\r\n");
    client.send(format!("{head}beginning")).await;
    let response = client.response("POST").await.unwrap();
    assert_eq!(response.status, 413);
    assert!(response.complete, "{}", response.text().len());
}

#[tokio::test]
async fn an_early_answer_is_whole_though_the_upstream_resets() {
    early_answer(b"\0\0\x04\x03\0\0\0\0\x01\0\0\0\0").await;
}

/// What was handed over is not written yet.
#[tokio::test]
async fn a_slow_reader_gets_all_while_the_router_drains() {
    slow_reader(true).await;
}

async fn slow_reader(drains: bool) {
    const MANY: usize = 120;
    let body = "x".repeat(60 << 10);
    let upstream = Upstream::start(move |_| answer(200, "", &body)).await;
    let mut router = router_with(&upstream.url(), json!({}));
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4 << 10).unwrap();
    let mut stream = socket.connect(router.address).await.unwrap();
    let mut hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    // A window of 1 MiB for each, and enough for all.
    hello.extend(frame(4, 0, 0, &[0, 4, 0, 16, 0, 0]));
    hello.extend(frame(8, 0, 0, &(1u32 << 30).to_be_bytes()));
    for number in 0..MANY as u32 {
        hello.extend(frame(1, 5, 2 * number + 1, b"\x82\x86\x84\x41\x01a"));
    }
    stream.write_all(&hello).await.unwrap();
    let count = "canary_router_request_count{reason=\"\",target=\"main\"}";
    router.counts(count, MANY as f64).await;
    if drains {
        router.drain();
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    let mut all = Vec::new();
    let read = stream.read_to_end(&mut all);
    let _end = tokio::time::timeout(Duration::from_secs(5), read).await;
    let (mut rest, mut ended) = (&all[..], 0);
    while rest.len() >= 9 {
        let length = u32::from_be_bytes([0, rest[0], rest[1], rest[2]]) as usize;
        ended += usize::from(rest[3] == 0 && rest[4] & 1 == 1);
        rest = rest.get(9 + length..).unwrap_or_default();
    }
    assert_eq!(ended, MANY, "of {} bytes", all.len());
    if drains {
        router.ended().await.unwrap();
    }
}

/// So many lines fit into the largest head.
#[tokio::test]
async fn a_head_of_many_lines_ends_no_connection() {
    let lines = "a:\r\n".repeat(40_000);
    let upstream = Upstream::start(move |request| match request.head.contains("/many") {
        true => answer(200, &lines, "many"),
        false => answer(200, "", "few"),
    })
    .await;
    let router = router_to(&upstream.url());
    let mut requests = speak(router.address, 1 << 20).await;
    let (many, _) = requests.send_request(to("GET", "/many"), true).unwrap();
    let _whatever = soon(many).await;
    let (few, _) = requests
        .send_request(to("GET", "/few"), true)
        .expect("the connection goes on");
    assert_eq!(soon(few).await.unwrap().status(), 200);
}

/// Whether the canary's breaker is open.
async fn opened(router: &Router) -> f64 {
    let series = "canary_router_breaker_state{state=\"open\",target=\"canary\"}";
    router.metrics().await.value(series)
}

/// The end of an answer without content is an end.
#[tokio::test]
async fn an_answer_without_content_is_a_success_of_the_canary() {
    let main = Upstream::named("main", 200).await;
    let canary = Upstream::start(|request| match request.head.contains("/bad") {
        true => answer(500, "", "bad"),
        false => answer(204, "", ""),
    })
    .await;
    let router = Router::start(json!({
        "main-target": main.url(),
        "canary-target": canary.url(),
        "router-server": {"workers": 1},
        "circuit-breaker": {"failure-rate-threshold": 50, "minimum-number-of-calls": 10}
    }));
    let mut requests = speak(router.address, 1 << 20).await;
    for number in 0..25 {
        let path = if number < 15 { "/good" } else { "/bad" };
        let mut request = to("GET", path);
        let forced = http::HeaderValue::from_static("true");
        request.headers_mut().insert("x-canary", forced);
        let (response, _) = requests.send_request(request, true).unwrap();
        let response = soon(response).await.unwrap();
        soon(whole(response.into_body())).await.unwrap();
    }
    // 10 of 25 are less than half.
    assert_eq!(opened(&router).await, 0.0);
}

/// What waits for its turn on a connection has not left.
#[tokio::test]
async fn what_an_upstream_gives_no_turn_goes_to_main() {
    let listener = listen();
    let canary = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        // It takes no other: one that it took and closed at once would be a 502.
        drop(listener);
        let mut read = vec![0; 1 << 16];
        stream.write_all(&frame(4, 0, 0, &[])).await.unwrap();
        // The preface, settings and their acknowledgement come in as many pieces as they like.
        let mut seen = Vec::new();
        while !seen.windows(2).any(|two| two == [1, 5]) {
            let length = stream.read(&mut read).await.unwrap();
            seen.extend_from_slice(&read[..length]);
        }
        // From now on no more.
        let mut out = frame(1, 5, 1, b"\x88");
        out.extend(frame(4, 0, 0, &[0, 3, 0, 0, 0, 0]));
        stream.write_all(&out).await.unwrap();
        while let Ok(length @ 1..) = stream.read(&mut read).await {
            assert!(
                !read[..length].windows(2).any(|two| two == [1, 5]),
                "a request"
            );
        }
    });
    let main = Service::start(PLAIN, |_, respond, _| respond_ok(respond));
    let router = Router::start(json!({
        "main-target": format!("http://{}", main.address),
        "canary-target": format!("http://{canary}"),
        "router-server": {"workers": 1},
        "proxy-client": {"to-main-and-canary": {"protocol": "h2", "timeout": "1s"}}
    }));
    assert_eq!(
        get(router.address, "/", "x-canary: true\r\n").await.status,
        200
    );
    tokio::time::sleep(PAUSE).await;
    assert_eq!(
        get(router.address, "/", "x-canary: true\r\n").await.status,
        200
    );
}

/// An upstream that does not read what some of its requests upload has to do with those alone.
#[tokio::test]
async fn uploads_that_stall_do_not_stop_the_others_of_their_client() {
    let listener = listen_narrowly();
    let deaf = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            kept.push(stream);
        }
    });
    let main = Upstream::named("main", 200).await;
    let router = Router::start(json!({
        "main-target": main.url(),
        "canary-target": format!("http://{deaf}"),
        "router-server": {"workers": 1, "read-timeout": "2s"},
        "proxy-client": {"to-main-and-canary": {"timeout": "15s"}}
    }));
    let upload_of = Bytes::from(vec![b'x'; 8 << 20]);
    let mut requests = speak(router.address, 1 << 20).await;
    let mut kept = Vec::new();
    for _ in 0..20 {
        let mut request = to("POST", "/");
        let forced = http::HeaderValue::from_static("true");
        request.headers_mut().insert("x-canary", forced);
        let (response, mut upload) = requests.send_request(request, false).unwrap();
        upload.reserve_capacity(8 << 20);
        upload.send_data(upload_of.clone(), false).unwrap();
        kept.push((response, upload));
    }
    tokio::time::sleep(PAUSE * 3).await;
    let (response, mut upload) = requests.send_request(to("POST", "/"), false).unwrap();
    upload
        .send_data(Bytes::from_static(b"small"), true)
        .unwrap();
    let response = tokio::time::timeout(Duration::from_secs(6), response).await;
    assert_eq!(response.expect("nothing in 6 s").unwrap().status(), 200);
}

/// The control of the one above.
#[tokio::test]
async fn a_slow_reader_gets_all_while_the_router_does_not_drain() {
    slow_reader(false).await;
}

/// A handshake that nobody begins is not waited for.
#[tokio::test]
async fn a_client_that_has_not_begun_does_not_hold_a_drain_up() {
    let folder = Folder::new();
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let cert = folder.write("cert.pem", cert.pem());
    let key = folder.write("key.pem", signing_key.serialize_pem());
    let main = Upstream::named("main", 200).await;
    let mut router = router_with(
        &main.url(),
        json!({"router-server": {
            "read-timeout": "15s",
            "tls": {"certificate": cert.to_str().unwrap(), "private-key": key.to_str().unwrap()}
        }}),
    );
    let _silent = TcpStream::connect(router.address).await.unwrap();
    tokio::time::sleep(PAUSE).await;
    router.drain();
    let ended = tokio::time::timeout(Duration::from_secs(5), router.ended()).await;
    ended.expect("5 s are over").unwrap();
}

/// A tunnel as a client of HTTP/2 asks for it.
fn tunnel() -> Request<()> {
    let mut request = to("GET", "/socket");
    *request.method_mut() = Method::CONNECT;
    request.extensions_mut().insert(Protocol::from("websocket"));
    request
}

/// The upstream's end of a tunnel.
async fn switched(upstream: &ByHand) -> Client {
    let mut connection = upstream.accept().await;
    let head = connection.head().await;
    let key = head
        .lines()
        .find_map(|line| line.strip_prefix("sec-websocket-key: "))
        .unwrap();
    let accept = tokio_tungstenite::tungstenite::handshake::derive_accept_key(key.as_bytes());
    connection
        .send(format!(
            "HTTP/1.1 101 X\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-accept: {accept}\r\n\r\n"
        ))
        .await;
    connection
}

/// The other direction goes on.
#[tokio::test]
async fn either_end_of_a_tunnel_may_finish_first() {
    let upstream = ByHand::start().await;
    let router = router_to(&upstream.url());
    let mut requests = speak(router.address, 1 << 20).await;
    let (response, mut up) = requests.send_request(tunnel(), false).unwrap();
    let mut connection = switched(&upstream).await;
    let response = soon(response).await.unwrap();
    assert_eq!(response.status(), 200);
    // RFC 9110 section 8.6: none where a tunnel is. The `h2` crate and others hold us to it.
    assert_eq!(response.headers().get("content-length"), None);
    let mut down = response.into_body();
    up.send_data(Bytes::from_static(b"ping"), true).unwrap();
    connection.expect("ping").await;
    connection.closed().await;
    connection.send("pong").await;
    assert_eq!(soon(down.data()).await.unwrap().unwrap(), "pong");
    connection.finish().await;
    // Its end may come as a frame of its own, without content.
    let rest = soon(down.data()).await;
    assert!(rest.is_none_or(|rest| rest.unwrap().is_empty()));
}

/// It does not look as if it had finished.
#[tokio::test]
async fn a_tunnel_that_breaks_at_one_end_breaks_at_the_other() {
    let upstream = ByHand::start().await;
    let router = router_to(&upstream.url());
    let mut requests = speak(router.address, 1 << 20).await;
    let (response, _up) = requests.send_request(tunnel(), false).unwrap();
    let connection = switched(&upstream).await;
    let mut down = soon(response).await.unwrap().into_body();
    connection.reset();
    assert!(soon(down.data()).await.unwrap().is_err());

    let (response, mut up) = requests.send_request(tunnel(), false).unwrap();
    let mut connection = switched(&upstream).await;
    let _down = soon(response).await.unwrap();
    up.send_reset(Reason::CANCEL);
    connection.closed().await;
}

/// What comes late with its connection does not leave any more.
#[tokio::test]
async fn a_request_whose_time_is_over_is_not_sent() {
    let begin = Begin {
        tls: Some(tls(&[b"h2"])),
        after: Duration::from_millis(700),
        streams: Some(1),
        ..PLAIN
    };
    let seen = Arc::new(AtomicUsize::new(0));
    let count = seen.clone();
    let service = Service::start(begin, move |request, respond, _| {
        count.fetch_add(1, Ordering::SeqCst);
        let pause = match request.method() {
            &Method::GET => 3,
            _ => 0,
        };
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(pause)).await;
            tokio::time::sleep(PAUSE).await;
            respond_ok(respond);
        });
    });
    let mut config = speaking("h2");
    let client = json!({"proxy-client": {"to-main-and-canary": {"timeout": "1s"}}});
    merge(&mut config, client);
    let router = router_with(&format!("https://{}", service.address), config);
    let address = router.address;
    let first = tokio::spawn(async move { get(address, "/", "").await.status });
    tokio::time::sleep(Duration::from_millis(720)).await;
    let before = seen.load(Ordering::SeqCst);
    let all = together((0..2).map(move |_| request(address, "POST", "/", "", ""))).await;
    let served = all.iter().filter(|one| one.status == 200).count();
    tokio::time::sleep(PAUSE).await;
    assert_eq!(
        seen.load(Ordering::SeqCst) - before,
        served,
        "{}",
        statuses(&all)
    );
    drop(first);
}

/// The upstream has closed the connection by then, and with a reset.
#[tokio::test]
async fn an_early_answer_of_http1_arrives() {
    let upstream = ByHand::start().await;
    let router = router_to(&upstream.url());
    let mut requests = speak(router.address, 1 << 20).await;
    let (response, mut upload) = requests.send_request(to("POST", "/"), false).unwrap();
    upload
        .send_data(vec![b'x'; 200 << 10].into(), false)
        .unwrap();
    let mut connection = upstream.accept().await;
    let _head = connection.head().await;
    tokio::time::sleep(PAUSE).await;
    connection
        .send("HTTP/1.1 413 X\r\nconnection: close\r\ncontent-length: 3\r\n\r\nbig")
        .await;
    drop(connection);
    let response = soon(response).await.expect("413, not a reset alone");
    assert_eq!(response.status(), 413);
    assert_eq!(soon(whole(response.into_body())).await.unwrap(), b"big");
}

/// And nothing new is taken.
#[tokio::test]
async fn a_stream_that_is_open_ends_well_while_the_router_drains() {
    let gate = Gate::shut();
    let waits = gate.clone();
    let upstream = Upstream::start(move |_| {
        let mut steps = vec![Step::Wait(waits.clone())];
        steps.extend(answer(200, "", "late"));
        steps
    })
    .await;
    let mut router = router_to(&upstream.url());
    let mut requests = speak(router.address, 1 << 20).await;
    let _idle = speak(router.address, 1 << 20).await;
    let (response, _) = requests.send_request(to("GET", "/"), true).unwrap();
    eventually(|| upstream.count() == 1).await;
    router.drain();
    tokio::time::sleep(Duration::from_secs(3)).await;
    gate.open();
    let response = soon(response).await.unwrap();
    assert_eq!(soon(whole(response.into_body())).await.unwrap(), b"late");
    router.ended().await.unwrap();
}

/// A request of HTTP/1, a stream of HTTP/2 behind it.
#[tokio::test]
async fn a_tunnel_goes_to_an_upstream_of_http2() {
    let listener = listen();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut builder = server::Builder::new();
                builder.enable_connect_protocol();
                let mut connection = builder.handshake::<_, Bytes>(stream).await.unwrap();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    tokio::spawn(async move {
                        let breaks = request.uri().path() == "/break";
                        let mut down = respond.send_response(Head::new(()), false).unwrap();
                        let mut up = request.into_body();
                        while let Some(Ok(data)) = up.data().await {
                            up.flow_control().release_capacity(data.len()).unwrap();
                            down.send_data(data, false).unwrap();
                            if breaks {
                                tokio::time::sleep(PAUSE).await;
                                return down.send_reset(Reason::CANCEL);
                            }
                        }
                        down.send_data(Bytes::from_static(b"end"), true).unwrap();
                    });
                }
            });
        }
    });
    let router = h2_router(format!("http://{address}"));
    for path in ["/", "/break"] {
        let mut client = Client::connect(router.address).await;
        let fields = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n";
        let response = client
            .roundtrip("HEAD", head(&format!("GET {path}"), fields))
            .await;
        assert_eq!(response.status, 101);
        client.send("ping").await;
        client.expect("ping").await;
        if path == "/" {
            client.finish().await;
            client.expect("end").await;
        }
        client.closed().await;
    }
}

/// As nginx does it: all of the answer, and then that no more of the request is wanted.
#[tokio::test]
async fn an_early_answer_arrives_though_some_of_the_request_waits() {
    let listener = listen();
    let router = h2_router(format!("http://{}", listener.local_addr().unwrap()));
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut read = vec![0; 1 << 20];
        stream.write_all(&frame(4, 0, 0, &[])).await.unwrap();
        tokio::time::sleep(PAUSE * 2).await;
        let _request = stream.read(&mut read).await.unwrap();
        let mut out = frame(1, 4, 1, b"\x08\x03413");
        out.extend(frame(0, 1, 1, b"too much"));
        out.extend(frame(3, 0, 1, &[0; 4]));
        stream.write_all(&out).await.unwrap();
        while let Ok(1..) = stream.read(&mut read).await {}
    });
    let mut requests = speak(router.address, 1 << 20).await;
    let (response, mut upload) = requests.send_request(to("POST", "/"), false).unwrap();
    // More than the upstream has room for.
    upload
        .send_data(vec![b'x'; 200 << 10].into(), false)
        .unwrap();
    let response = soon(response).await.expect("413, not a reset alone");
    assert_eq!(response.status(), 413);
    assert_eq!(
        soon(whole(response.into_body())).await.unwrap(),
        b"too much"
    );
}

#[tokio::test]
async fn a_connection_that_is_silent_gets_no_more_requests() {
    let listener = listen();
    let address = listener.local_addr().unwrap();
    let service = Service::start(PLAIN, |_, respond, _| respond_ok(respond));
    let behind = service.address;
    tokio::spawn(async move {
        let _silent = listener.accept().await.unwrap();
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut upstream = TcpStream::connect(behind).await.unwrap();
            tokio::spawn(async move {
                let _end = tokio::io::copy_bidirectional(&mut stream, &mut upstream).await;
            });
        }
    });
    let router = router_with(
        &format!("http://{address}"),
        json!({"proxy-client": {"to-main-and-canary": {"protocol": "h2", "timeout": "1s"}}}),
    );
    assert_eq!(get(router.address, "/", "").await.status, 504);
    assert_eq!(get(router.address, "/", "").await.status, 200);
}

/// It is cancelled where it has gone to.
#[tokio::test]
async fn a_request_that_its_client_cancels_is_cancelled() {
    let cancelled = Arc::new(AtomicUsize::new(0));
    let count = cancelled.clone();
    let service = Service::start(PLAIN, move |_, mut respond, _| {
        let count = count.clone();
        tokio::spawn(async move {
            let _reason = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
            count.fetch_add(1, Ordering::SeqCst);
        });
    });
    let router = h2_router(format!("http://{}", service.address));
    let mut requests = speak(router.address, 1 << 20).await;
    let (response, mut stream) = requests.send_request(to("GET", "/"), true).unwrap();
    tokio::time::sleep(PAUSE).await;
    stream.send_reset(Reason::CANCEL);
    drop(response);
    eventually(|| cancelled.load(Ordering::SeqCst) == 1).await;
    let client = Client::connect(router.address).await;
    let mut client = client;
    client.send(head("GET /", "")).await;
    tokio::time::sleep(PAUSE).await;
    drop(client);
    eventually(|| cancelled.load(Ordering::SeqCst) == 2).await;
    assert_eq!(service.made(), 1);
}

/// A call whose server has failed at once, and one of which it says nothing.
#[tokio::test]
async fn a_grpc_answer_that_is_a_head_alone_is_counted() {
    let main = Service::start(PLAIN, |_, respond, _| respond_ok(respond));
    let canary = Service::start(PLAIN, |_, mut respond, _| {
        let mut head = Head::new(());
        let kind = http::HeaderValue::from_static("application/grpc");
        head.headers_mut().insert("content-type", kind);
        respond.send_response(head, true).unwrap();
    });
    let router = Router::start(json!({
        "main-target": format!("http://{}", main.address),
        "canary-target": format!("http://{}", canary.address),
        "router-server": {"workers": 1},
        "proxy-client": {"to-main-and-canary": {"protocol": "h2"}},
        "circuit-breaker": {"failure-rate-threshold": 50, "minimum-number-of-calls": 5}
    }));
    let mut requests = speak(router.address, 1 << 20).await;
    for _ in 0..6 {
        let mut request = to("POST", "/");
        let forced = http::HeaderValue::from_static("true");
        request.headers_mut().insert("x-canary", forced);
        let (response, _) = requests.send_request(request, true).unwrap();
        soon(whole(soon(response).await.unwrap().into_body()))
            .await
            .unwrap();
    }
    assert_eq!(opened(&router).await, 1.0);
}

/// RFC 9110 section 15.4.5: its `Content-Length` is of what it does not have, however its end is said.
#[tokio::test]
async fn a_304_ends_well_though_its_end_comes_behind_its_head() {
    let service = Service::start(PLAIN, |_, mut respond, _| {
        let mut head = Head::new(());
        *head.status_mut() = StatusCode::NOT_MODIFIED;
        let length = http::HeaderValue::from_static("1000");
        head.headers_mut().insert("content-length", length);
        let mut stream = respond.send_response(head, false).unwrap();
        tokio::spawn(async move {
            tokio::time::sleep(PAUSE).await;
            let _reset = stream.send_data(Bytes::new(), true);
        });
    });
    let router = h2_router(format!("http://{}", service.address));
    let mut client = Client::connect(router.address).await;
    for _ in 0..2 {
        let response = client.roundtrip("GET", head("GET /", "")).await;
        assert_eq!(response.status, 304);
    }
}

/// A router whose requests all go to the canary, in HTTP/2, and to main if that fails.
fn replaying(main: &str, canary: &str, fallback: Value) -> Router {
    let mut config = json!({
        "main-target": main,
        "canary-target": canary,
        "router-server": {"workers": 1},
        "traffic": {"weight": 100},
        "proxy-client": {"to-main-and-canary": {"protocol": "h2"}},
        "fallback": {"replay": "failures", "budget": 100}
    });
    merge(&mut config, json!({"fallback": fallback}));
    Router::start(config)
}

/// What is kept for an upstream that refuses a request is not for this.
#[tokio::test]
async fn a_body_beyond_max_body_is_not_replayed_by_http2_either() {
    let main = H2Upstream::named("main", 200).await;
    let canary = H2Upstream::named("canary", 503).await;
    for max_body in [0, 4] {
        let fallback = json!({"max-body": max_body});
        let router = replaying(&main.url(), &canary.url(), fallback);
        let got = request(router.address, "PUT", "/", "", "5 byt").await;
        assert_eq!((got.status, &*got.text()), (503, "canary"), "{max_body}");
    }
    assert_eq!(main.count(), 0);
}

/// Speaks HTTP/2 on the next connection, takes a request in and says that it has not looked at it.
async fn turn_away(listener: &TcpListener, pause: Duration) -> Raw {
    let (stream, _) = soon(listener.accept()).await.unwrap();
    let mut raw = Raw::server(stream, &[]).await;
    while raw.event().await.unwrap().kind != kind::DATA {}
    tokio::time::sleep(pause).await;
    raw.send(goaway(0, code::NO_ERROR)).await;
    raw
}

/// Nor is less of it kept than `max-body` says, since it was sent before.
#[tokio::test]
async fn a_body_within_max_body_is_replayed_though_a_connection_turned_it_away() {
    let listener = listen();
    let canary = format!("http://{}", listener.local_addr().unwrap());
    let main = H2Upstream::named("main", 200).await;
    let router = replaying(&main.url(), &canary, json!({"max-body": "128KiB"}));
    tokio::spawn(async move {
        let _first = turn_away(&listener, Duration::ZERO).await;
        let builder = server::Builder::new();
        let fails = |_: &Asked| answers(503, &[], "canary");
        let _second = H2Upstream::on(listener, builder, None, When::Whole, fails);
        std::future::pending::<()>().await;
    });
    let body = "x".repeat(100 << 10);
    let got = request(router.address, "PUT", "/", "", &body).await;
    assert_eq!((got.status, &*got.text()), (200, "main"));
    assert_eq!(main.only().body.len(), body.len());
}

/// `timeout` is for the upstream: a body that makes progress renews it, and so it is for the next connection.
#[tokio::test]
async fn a_request_that_took_long_to_come_has_its_time_on_the_next_connection() {
    let listener = listen();
    let target = format!("http://{}", listener.local_addr().unwrap());
    let config =
        json!({"proxy-client": {"to-main-and-canary": {"protocol": "h2", "timeout": "300ms"}}});
    let router = router_with(&target, config);
    tokio::spawn(async move {
        let _first = turn_away(&listener, PAUSE * 2).await;
        let answers = |_: &Asked| answers(200, &[], "up");
        let builder = server::Builder::new();
        let _second = H2Upstream::on(listener, builder, None, When::Whole, answers);
        std::future::pending::<()>().await;
    });
    let mut client = Client::connect(router.address).await;
    client
        .send(head("POST /", "content-length: 9\r\n") + "some ")
        .await;
    tokio::time::sleep(PAUSE * 4).await;
    let response = client.roundtrip("POST", "body").await;
    assert_eq!((response.status, &*response.text()), (200, "up"));
}

/// What an upstream had sent when it learnt that nobody wants it is no error of its.
#[tokio::test]
async fn a_client_that_leaves_takes_no_others_requests_with_it() {
    const MANY: usize = 120;
    let listener = listen();
    let router = h2_router(format!("http://{}", listener.local_addr().unwrap()));
    let mut stays = Client::connect(router.address).await;
    stays.send(head("GET /stays", "")).await;
    let (stream, _) = soon(listener.accept()).await.unwrap();
    let mut upstream = Raw::server(stream, &[]).await;
    let next = async |upstream: &mut Raw, kind: u8| loop {
        let frame = upstream.event().await.expect("the connection goes on");
        if frame.kind == kind {
            break frame.stream;
        }
    };
    let wanted = next(&mut upstream, kind::HEADERS).await;
    let mut leaves = Raw::client(router.address).await;
    let mut unwanted = Vec::new();
    for number in 0..MANY as u32 {
        leaves.send(h2raw::get(2 * number + 1, "/leaves")).await;
        let stream = next(&mut upstream, kind::HEADERS).await;
        upstream
            .send(headers(stream, flag::END_HEADERS, b"\x88"))
            .await;
        unwanted.push(stream);
    }
    drop(leaves);
    for _ in 0..MANY {
        next(&mut upstream, kind::RST_STREAM).await;
    }
    // One piece of each at a time, as responses come that are long.
    for _ in 0..20 {
        let pieces = unwanted.iter().map(|stream| data(*stream, 0, b"piece"));
        let all = pieces.collect::<Vec<_>>().concat();
        upstream.sends([all, ping(b"received")].concat()).await;
        while upstream
            .next()
            .await
            .is_some_and(|frame| frame.kind != kind::PING)
        {}
    }
    upstream
        .sends(headers(wanted, flag::END_HEADERS, b"\x88"))
        .await;
    upstream
        .sends(data(wanted, flag::END_STREAM, b"fine"))
        .await;
    let response = stays.response("GET").await.unwrap();
    assert_eq!((response.status, &*response.text()), (200, "fine"));
}

/// It acknowledges what it reads, as all clients do, also when we have closed.
#[tokio::test]
async fn a_long_answer_arrives_whole_that_ends_while_the_router_drains() {
    const LENGTH: usize = 2 << 20;
    let gate = Gate::shut();
    let waits = gate.clone();
    let upstream = Upstream::start(move |_| {
        let head = format!("HTTP/1.1 200 X\r\ncontent-length: {LENGTH}\r\n\r\n");
        vec![
            Step::Write(head.into()),
            Step::Wait(waits.clone()),
            Step::Write(vec![b'x'; LENGTH]),
        ]
    })
    .await;
    let mut router = router_to(&upstream.url());
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4 << 10).unwrap();
    let mut client = Raw::on(socket.connect(router.address).await.unwrap());
    let window = settings(&[(setting::INITIAL_WINDOW_SIZE, 64 << 20)]);
    client
        .send([PREFACE, &window, &window_update(0, 64 << 20)].concat())
        .await;
    client.send(h2raw::get(1, "/")).await;
    while client.event().await.unwrap().kind != kind::HEADERS {}
    router.drain();
    // Once that it goes, and then from which stream on.
    for _ in 0..2 {
        while client.event().await.unwrap().kind != kind::GOAWAY {}
    }
    gate.open();
    let answer = client.answer(1).await;
    assert_eq!((answer.end, answer.body.len()), (h2raw::End::Whole, LENGTH));
    drop(client);
    router.ended().await.unwrap();
}
