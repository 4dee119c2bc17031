//! Large bodies go through it in HTTP/2 without being held, and who does not read holds up who sends.
//! Measured from outside, in `/proc`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use h2::server;
use serde_json::json;
use tokio::io::AsyncWriteExt;

use crate::support::{
    h2peer::{Do, H2Client, H2Upstream, When, asks, fields, send},
    *,
};

const MIB: u64 = 1 << 20;
/// How much goes through at once.
const LARGE: u64 = 256 * MIB;
/// By how much its memory may grow meanwhile.
const GROWTH: u64 = 32 * MIB;

const PROTOCOLS: [&str; 2] = ["http1", "h2"];

/// A service of either version that sends as long as it is read, and counts how much that was.
struct Sender {
    url: String,
    sent: Arc<AtomicU64>,
    _server: Box<dyn std::any::Any>,
}

impl Sender {
    async fn start(protocol: &str) -> Sender {
        let sent = Arc::new(AtomicU64::new(0));
        let counter = sent.clone();
        if protocol == "h2" {
            // As many pieces as are asked for; each counts when there was room for it.
            let listener = listen();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let server = tokio::spawn(async move {
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    let counter = counter.clone();
                    tokio::spawn(async move {
                        let mut connection = server::handshake(stream).await.unwrap();
                        while let Some(Ok((_, mut respond))) = connection.accept().await {
                            let counter = counter.clone();
                            tokio::spawn(async move {
                                let head = http::Response::new(());
                                let mut stream = respond.send_response(head, false).unwrap();
                                let piece = Bytes::from(vec![b'x'; 64 << 10]);
                                for _ in 0..LARGE / piece.len() as u64 {
                                    if send(&mut stream, piece.clone()).await.is_err() {
                                        return;
                                    }
                                    counter.fetch_add(piece.len() as u64, Ordering::Relaxed);
                                }
                                let _gone = stream.send_data(Bytes::new(), true);
                            });
                        }
                    });
                }
            });
            return Sender {
                url,
                sent,
                _server: Box::new(server),
            };
        }
        let by_hand = ByHand::start().await;
        let url = by_hand.url();
        let server = tokio::spawn(async move {
            loop {
                let mut service = by_hand.accept().await;
                let counter = counter.clone();
                tokio::spawn(async move {
                    service.head().await;
                    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {LARGE}\r\n\r\n");
                    service.send(head).await;
                    let piece = vec![b'x'; 64 << 10];
                    for _ in 0..LARGE / piece.len() as u64 {
                        if service.0.write_all(&piece).await.is_err() {
                            return;
                        }
                        counter.fetch_add(piece.len() as u64, Ordering::Relaxed);
                    }
                });
            }
        });
        Sender {
            url,
            sent,
            _server: Box::new(server),
        }
    }
}

async fn program(target: &str, protocol: &str) -> (Program, u64) {
    let program = Program::start(json!({
        "main-target": target,
        "canary-target": target,
        "router-server": {"read-timeout": "1h", "write-timeout": "1h"},
        "proxy-client": {"to-main-and-canary": {"timeout": "1h", "protocol": protocol}}
    }))
    .await;
    for _ in 0..20 {
        let health = get(program.address, "/application/health", "").await;
        assert_eq!(health.status, 200);
        let mut client = H2Client::connect(program.address).await;
        assert_eq!(client.get("/application/health", &[]).await.status, 200);
    }
    let base = program.peak_memory();
    (program, base)
}

#[track_caller]
fn assert_flat(program: &Program, base: u64, what: &str) {
    let growth = program.peak_memory() - base;
    assert!(growth < GROWTH, "{what}: it grew by {} MiB", growth / MIB);
}

/// Waits until nothing more is taken.
async fn when_all_is_full(moved: &AtomicU64, what: &str) {
    let mut before = u64::MAX;
    soon(async {
        loop {
            let now = moved.load(Ordering::Relaxed);
            if now > 0 && now == before {
                break;
            }
            before = now;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    })
    .await;
    // Four socket buffers, of which Linux makes the largest 6 MiB, and windows.
    assert!(before < 40 * MIB, "{what}: {} MiB were taken", before / MIB);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_huge_download_takes_no_memory_whether_its_client_reads_or_not() {
    for protocol in PROTOCOLS {
        let sender = Sender::start(protocol).await;
        let (program, base) = program(&sender.url, protocol).await;
        let mut client = H2Client::connect(program.address).await;
        let (response, _) = client.begin(asks("GET", "/", &[]), true).await.unwrap();
        let mut body = soon(response).await.unwrap().into_body();
        // Nothing is read for a while; then all of it.
        when_all_is_full(&sender.sent, protocol).await;
        let mut read = 0;
        while let Some(piece) = soon(body.data()).await {
            let piece = piece.unwrap();
            body.flow_control().release_capacity(piece.len()).unwrap();
            read += piece.len() as u64;
        }
        assert_eq!(read, LARGE);
        assert_flat(&program, base, protocol);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_huge_upload_takes_no_memory_whether_its_upstream_reads_or_not() {
    for protocol in PROTOCOLS {
        let gate = Gate::shut();
        let received = Arc::new(AtomicU64::new(0));
        let (url, _server): (String, Box<dyn std::any::Any>) = match protocol {
            "h2" => {
                let waiting = gate.clone();
                // What it has read it has kept, here, which is of no consequence.
                let upstream =
                    H2Upstream::with(server::Builder::new(), None, When::Head, move |_| {
                        vec![
                            Do::Wait(waiting.clone()),
                            Do::Read,
                            Do::Whole(201, fields(&[])),
                        ]
                    });
                (upstream.url(), Box::new(upstream))
            }
            _ => {
                let by_hand = ByHand::start().await;
                let url = by_hand.url();
                let (waiting, received) = (gate.clone(), received.clone());
                let server = tokio::spawn(async move {
                    let mut service = by_hand.accept().await;
                    service.head().await;
                    waiting.passed().await;
                    let mut piece = vec![0; 256 << 10];
                    while received.load(Ordering::Relaxed) < LARGE {
                        use tokio::io::AsyncReadExt;
                        let read = service.0.read(&mut piece).await.unwrap();
                        assert!(read > 0);
                        received.fetch_add(read as u64, Ordering::Relaxed);
                    }
                    service
                        .send("HTTP/1.1 201 X\r\ncontent-length: 0\r\n\r\n")
                        .await;
                    service.rest().await;
                });
                (url, Box::new(server))
            }
        };
        let (program, base) = program(&url, protocol).await;
        let mut client = H2Client::connect(program.address).await;
        let length = LARGE.to_string();
        let request = asks("POST", "/", &[("content-length", &length)]);
        let (response, mut sending) = client.begin(request, false).await.unwrap();
        let taken = Arc::new(AtomicU64::new(0));
        let counter = taken.clone();
        let uploading = tokio::spawn(async move {
            let piece = Bytes::from(vec![b'x'; 64 << 10]);
            for _ in 0..LARGE / piece.len() as u64 {
                send(&mut sending, piece.clone()).await.unwrap();
                counter.fetch_add(piece.len() as u64, Ordering::Relaxed);
            }
            sending.send_data(Bytes::new(), true).unwrap();
        });
        when_all_is_full(&taken, protocol).await;
        gate.open();
        soon(uploading).await.unwrap();
        assert_eq!(soon(response).await.unwrap().status(), 201, "{protocol}");
        assert_flat(&program, base, protocol);
    }
}

/// A connection's worth of uploads that nobody reads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_uploads_that_nobody_reads_take_little_memory() {
    for protocol in PROTOCOLS {
        let gate = Gate::shut();
        let waiting = gate.clone();
        let two = H2Upstream::with(server::Builder::new(), None, When::Head, move |_| {
            vec![
                Do::Wait(waiting.clone()),
                Do::Read,
                Do::Whole(201, fields(&[])),
            ]
        });
        let one = ByHand::on(listen_narrowly());
        let url = if protocol == "h2" {
            two.url()
        } else {
            one.url()
        };
        let (program, base) = program(&url, protocol).await;
        let mut client = H2Client::connect(program.address).await;
        let mut uploads = Vec::new();
        let taken = Arc::new(AtomicU64::new(0));
        for _ in 0..100 {
            let request = asks("POST", "/", &[]);
            let (_response, mut sending) = client.begin(request, false).await.unwrap();
            let counter = taken.clone();
            uploads.push(tokio::spawn(async move {
                let piece = Bytes::from(vec![b'x'; 16 << 10]);
                while send(&mut sending, piece.clone()).await.is_ok() {
                    counter.fetch_add(piece.len() as u64, Ordering::Relaxed);
                }
            }));
        }
        let mut before = u64::MAX;
        soon(async {
            loop {
                let now = taken.load(Ordering::Relaxed);
                if now > 0 && now == before {
                    break;
                }
                before = now;
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        })
        .await;
        let growth = program.peak_memory() - base;
        assert!(
            growth < 64 * MIB,
            "{protocol}: {} MiB for {} MiB that were taken",
            growth / MIB,
            before / MIB
        );
        for upload in uploads {
            upload.abort();
        }
    }
}
