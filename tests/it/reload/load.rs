//! A hundred reloads under load: no request fails, each is one configuration's as a whole, and nothing is left behind.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{io::AsyncWriteExt, task::JoinSet};

use super::*;
use crate::support::{
    h2peer::{Do, H2Client, H2Upstream, When, asks, fields, receive},
    pki::{Authority, TlsClient},
};

/// Of a download.
const LENGTH: usize = 300_000;

/// A service that says in each answer who it is and what it was told.
async fn telling(name: &'static str) -> Upstream {
    Upstream::start(move |request| {
        let said = |header| request.header(header).unwrap_or("-").to_owned();
        let told = format!(
            "x-name: {name}\r\nx-target: {}\r\nx-host: {}\r\nx-proto: {}\r\n",
            request.target(),
            said("host"),
            said("x-forwarded-proto")
        );
        match request.target().rsplit('/').next() {
            Some("tunnel") => {
                let agrees = format!(
                    "HTTP/1.1 101 X\r\nconnection: upgrade\r\nupgrade: websocket\r\n{told}\r\n"
                );
                vec![Step::Write(agrees.into()), Step::Echo]
            }
            Some("download") => {
                let head = format!("HTTP/1.1 200 X\r\n{told}content-length: {LENGTH}\r\n\r\n");
                let body = noise(LENGTH);
                let pause = Step::Pause(Duration::from_millis(5));
                vec![
                    Step::Write(head.into()),
                    Step::Write(body[..LENGTH / 2].to_vec()),
                    pause,
                    Step::Write(body[LENGTH / 2..].to_vec()),
                ]
            }
            _ => answer(200, &told, &request.body.len().to_string()),
        }
    })
    .await
}

/// The same in HTTP/2.
fn telling_in_http2(name: &'static str) -> H2Upstream {
    let mut builder = h2::server::Builder::new();
    builder.enable_connect_protocol();
    H2Upstream::with(builder, None, When::Head, move |asked| {
        let told = fields(&[
            ("x-name", name),
            ("x-target", &asked.path),
            ("x-host", asked.authority.as_deref().unwrap_or("-")),
            ("x-proto", asked.header("x-forwarded-proto").unwrap_or("-")),
        ]);
        let head = Do::Head(200, told);
        match asked.path.rsplit('/').next() {
            Some("tunnel") => vec![head, Do::Echo],
            Some("download") => {
                let body = noise(LENGTH);
                let (first, second) = body.split_at(LENGTH / 2);
                let pause = Do::Pause(Duration::from_millis(5));
                vec![
                    head,
                    Do::Data(first.into()),
                    pause,
                    Do::Data(second.into()),
                    Do::End,
                ]
            }
            Some("upload") => vec![Do::Read, head, Do::Data(b"100000".into()), Do::End],
            _ => vec![head, Do::End],
        }
    })
}

/// What a request to `/a/b/…` is answered by under each of the configurations; by the canary only where the sidecar
/// has said so, if there is one.
#[track_caller]
fn belongs_together(told: &BTreeMap<&str, String>, last: &str, sidecar: &str) -> &'static str {
    let name = told["x-name"].as_str();
    let (letter, target, proto) = match name.rsplit('-').next() {
        Some("a") => ("a", format!("/base-a/b/{last}"), "https"),
        _ => ("b", format!("/base-b/a/b/{last}"), "http"),
    };
    assert_eq!(told["x-target"], target, "{told:?}");
    assert_eq!(told["x-proto"], proto, "{told:?}");
    assert_eq!(told["x-host"], format!("host-{letter}"), "{told:?}");
    if letter == "a" {
        let expected = if sidecar == "200" {
            "canary-a"
        } else {
            "main-a"
        };
        assert_eq!(name, expected);
    }
    letter
}

const TOLD: [&str; 4] = ["x-name", "x-target", "x-host", "x-proto"];

/// Clients of all kinds.
struct Load {
    tasks: JoinSet<()>,
    stop: Arc<AtomicBool>,
    /// Answers, of either configuration.
    answered: Arc<[AtomicUsize; 2]>,
}

impl Load {
    fn on(address: SocketAddr) -> Load {
        let mut load = Load {
            tasks: JoinSet::new(),
            stop: Arc::default(),
            answered: Arc::default(),
        };
        for i in 0..4 {
            load.run(async move |on| {
                let mut client = Client::connect(address).await;
                while on.more() {
                    on.get(&mut client, "x", if i % 2 == 0 { "200" } else { "204" })
                        .await;
                }
            });
        }
        load.run(async move |on| {
            while on.more() {
                on.get(&mut Client::connect(address).await, "x", "200")
                    .await;
            }
        });
        load.run(async move |on| {
            let mut client = Client::connect(address).await;
            while on.more() {
                assert_same(
                    &on.get(&mut client, "download", "204").await.message.body,
                    &noise(LENGTH),
                );
            }
        });
        load.run(async move |on| {
            let mut client = Client::connect(address).await;
            let body = noise(100_000);
            while on.more() {
                let lines =
                    "x-sidecar: 200\r\nx-forwarded-proto: https\r\ncontent-length: 100000\r\n";
                client.send(head("POST /a/b/upload", lines)).await;
                for piece in body.chunks(25_000) {
                    client.send(piece).await;
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                let response = client.response("POST").await.expect("an answer");
                assert_eq!((response.status, &*response.text()), (200, "100000"));
                on.check(&response.message.head, "upload", "200");
            }
        });
        for rounds in [10, usize::MAX] {
            load.run(async move |on| {
                while on.more() {
                    let mut client = Client::connect(address).await;
                    let lines = "x-sidecar: 204\r\nx-forwarded-proto: https\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                                 sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
                    client.send(head("GET /a/b/tunnel", lines)).await;
                    let agreed = client.head().await;
                    assert!(agreed.starts_with("HTTP/1.1 101 "), "{agreed}");
                    on.check(&agreed, "tunnel", "204");
                    for round in 0..rounds {
                        let text = format!("round {round}");
                        client.send(&text).await;
                        client.expect(&text).await;
                        tokio::time::sleep(Duration::from_millis(1)).await;
                        if !on.more() {
                            break;
                        }
                    }
                }
            });
        }
        for _ in 0..2 {
            load.run(async move |on| {
                let client = H2Client::connect(address).await;
                let streams = (0..3).map(|i| {
                    let sender = client.sender.clone();
                    let on = &on;
                    async move {
                        let sidecar = if i == 0 { "204" } else { "200" };
                        let headers = [("x-sidecar", sidecar), ("x-forwarded-proto", "https")];
                        while on.more() {
                            let mut sender = sender.clone().ready().await.unwrap();
                            let asked = asks("GET", "/a/b/y", &headers);
                            let (response, _) = sender.send_request(asked, true).unwrap();
                            let got = soon(receive(response)).await;
                            assert_eq!((got.status, got.error.is_none()), (200, true), "{got:?}");
                            let value = |name| got.headers[name].to_str().unwrap().to_owned();
                            on.count(&TOLD.map(|name| (name, value(name))).into(), "y", sidecar);
                        }
                    }
                });
                futures_util::future::join_all(streams).await;
            });
        }
        load
    }

    fn run<F: Future<Output = ()> + Send + 'static>(&mut self, client: impl FnOnce(On) -> F) {
        let on = On {
            stop: self.stop.clone(),
            answered: self.answered.clone(),
        };
        self.tasks.spawn(client(on));
    }

    /// Ends it; how many answers there were by either configuration.
    async fn ended(self) -> [usize; 2] {
        self.stop.store(true, Ordering::SeqCst);
        // A client that has found something wrong has panicked.
        soon(self.tasks.join_all()).await;
        [0, 1].map(|i| self.answered[i].load(Ordering::SeqCst))
    }
}

/// What a client knows of the others.
struct On {
    stop: Arc<AtomicBool>,
    answered: Arc<[AtomicUsize; 2]>,
}

impl On {
    fn more(&self) -> bool {
        !self.stop.load(Ordering::SeqCst)
    }

    fn count(&self, told: &BTreeMap<&str, String>, last: &str, sidecar: &str) {
        let letter = belongs_together(told, last, sidecar);
        self.answered[usize::from(letter == "b")].fetch_add(1, Ordering::SeqCst);
    }

    fn check(&self, head: &str, last: &str, sidecar: &str) {
        let head = Received {
            head: head.to_owned(),
            ..Received::default()
        };
        let told = TOLD.map(|name| (name, head.header(name).unwrap_or("-").to_owned()));
        self.count(&told.into(), last, sidecar);
    }

    async fn get(&self, client: &mut Client, last: &str, sidecar: &str) -> Response {
        let lines = format!("x-sidecar: {sidecar}\r\nx-forwarded-proto: https\r\n");
        let response = client
            .roundtrip("GET", head(&format!("GET /a/b/{last}"), &lines))
            .await;
        assert_eq!((response.status, response.complete), (200, true));
        self.check(&response.message.head, last, sidecar);
        response
    }
}

/// What the program holds when nobody uses it: descriptors, threads, memory.
async fn at_rest(program: &Program) -> (usize, usize, u64) {
    // Its clients have gone; connections to upstreams that it keeps are few, and always as many.
    let connections = async || metric(program, "canary_router_connections").await;
    soon(async { while connections().await != 0.0 {} }).await;
    (program.descriptors(), program.threads(), program.memory())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_reloads_fail_no_request_and_leave_nothing_behind() {
    let old = [telling("main-a").await, telling("canary-a").await];
    let new = ["main-b", "canary-b"].map(telling_in_http2);
    let sidecar = Upstream::start(asked).await;
    let targets = |letter: &str, main: String, canary: String| {
        json!({
            "main-target": format!("{main}/base-{letter}"),
            "canary-target": format!("{canary}/base-{letter}"),
            "main-header-host": format!("host-{letter}"),
            "canary-header-host": format!("host-{letter}"),
            "trim-prefix": format!("/{letter}"),
        })
    };
    let mut a = targets("a", old[0].url(), old[1].url());
    merge(
        &mut a,
        json!({
            "sidecar-url": format!("{}/sidecar-a", sidecar.url()),
            "proxy-client": {"to-main-and-canary": {"timeout": "9s", "max-idle-conns": 10}},
            "circuit-breaker": {"request-limit-canary": 1_000_000, "failure-rate-threshold": 50},
            "router-server": {
                "trusted-proxies": ["127.0.0.1"], "max-connections": 200, "read-timeout": "9s", "write-timeout": "9s"
            },
            "log": {"access": "json"}
        }),
    );
    let mut b = targets("b", new[0].url(), new[1].url());
    merge(
        &mut b,
        json!({
            "sidecar-url": null, "traffic": {"weight": 50, "sticky": {"by": "cookie"}},
            "proxy-client": {"to-main-and-canary": {"timeout": "8s", "protocol": "h2"}},
            "circuit-breaker": {"error-limit-canary": 1000}, "fallback": {"replay": "failures"},
            "router-server": {"trusted-proxies": [], "max-connections": 0, "read-timeout": "8s", "write-timeout": "8s"},
            "log": {"access": "off", "level": "info"}
        }),
    );
    let program = Program::start(a.clone()).await;
    let mut reloads = 0;
    let mut some = async |number: usize| {
        let load = Load::on(program.address);
        for _ in 0..number {
            reloads += 1;
            change(&program, [&a, &b][reloads % 2].clone()).await;
            // Each has some answers.
            let before: usize = load
                .answered
                .iter()
                .map(|count| count.load(Ordering::SeqCst))
                .sum();
            eventually(|| {
                let now: usize = load
                    .answered
                    .iter()
                    .map(|count| count.load(Ordering::SeqCst))
                    .sum();
                now > before + 10
            })
            .await;
        }
        let answered = load.ended().await;
        let both = number == 1 || answered.iter().all(|&count| count > number);
        assert!(both, "{answered:?}");
        if reloads % 2 == 0 {
            // What is no longer asked is closed, within a second if it was in use at the time.
            for new in &new {
                eventually(|| new.connections().1 == 0).await;
            }
        }
        at_rest(&program).await
    };
    some(5).await;
    let after_5 = some(1).await;
    let after_100 = some(94).await;
    assert_eq!(after_100.1, after_5.1, "threads");
    // How many idle connections are kept is at most how many were in use at once, and varies; one left by each reload
    // would be 94 of them.
    assert!(
        after_100.0 <= after_5.0 + 20,
        "descriptors: {after_5:?} {after_100:?}"
    );
    assert!(
        after_100.2 < after_5.2 + (8 << 20),
        "memory: {after_5:?} {after_100:?}"
    );
    let asked = sidecar.seen();
    assert!(
        !asked.is_empty()
            && asked
                .iter()
                .all(|asked| asked.target().starts_with("/sidecar-a/b/"))
    );
    assert!(said(&program, "upstream failed").is_empty());
    assert_eq!(
        metric(
            &program,
            "canary_router_config_reloads_total{result=\"failed\"}"
        )
        .await,
        0.0
    );
}

/// Certificates, and which versions of HTTP are offered, alternate under clients that come and go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_handshake_fails_while_certificates_are_exchanged() {
    let folder = Folder::new();
    let authority = Authority::new("ours");
    let main = service("main").await;
    let of = |name: &str, http2: bool| {
        let tls = authority.issue(&["localhost"]).write(&folder, name);
        json!({"router-server": {"tls": tls, "http2": http2}})
    };
    let configs = [of("a", true), of("b", false), of("c", true)];
    let mut config = json!({"main-target": main.url(), "canary-target": main.url()});
    merge(&mut config, configs[0].clone());
    let program = Program::start(config).await;
    let stop = Arc::new(AtomicBool::new(false));
    let authority = Arc::new(authority);
    let mut clients = JoinSet::new();
    for i in 0..3 {
        let (stop, authority, address) = (stop.clone(), authority.clone(), program.address);
        clients.spawn(async move {
            let mut answered = 0;
            while !stop.load(Ordering::SeqCst) {
                let tls = TlsClient::new(&authority, &["http/1.1"]);
                let stream = tokio::net::TcpStream::connect(address).await.unwrap();
                let mut stream =
                    tokio::io::BufReader::new(soon(tls.connect(stream)).await.unwrap());
                // Some stay for longer than others, over some reloads.
                for _ in 0..=i * 20 {
                    stream
                        .write_all(head("GET /x", "").as_bytes())
                        .await
                        .unwrap();
                    let response = read_response(&mut stream, "GET").await.expect("an answer");
                    assert_eq!(response.text(), "main /x");
                    answered += 1;
                }
            }
            answered
        });
    }
    for round in 0..30 {
        let before = main.count();
        change(&program, configs[round % 3].clone()).await;
        eventually(|| main.count() > before + 5).await;
    }
    stop.store(true, Ordering::SeqCst);
    let answered: usize = soon(clients.join_all()).await.into_iter().sum();
    assert_eq!(answered, main.count());
}
