//! Large bodies go through it, and wait in front of it, without being held. Measured from outside, in
//! `/proc`.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};

use crate::support::*;

const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
const MIB: u64 = 1 << 20;

/// How much goes through at once in the tests of memory.
const LARGE: u64 = 1024 * MIB;
/// By how much its memory may grow meanwhile.
const GROWTH: u64 = 32 * MIB;

/// Endless content in which every shift and every loss shows.
struct Pattern {
    period: Vec<u8>,
    at: usize,
}

impl Pattern {
    fn new() -> Pattern {
        Pattern {
            period: noise(65_521),
            at: 0,
        }
    }

    /// The next bytes, as many as there are at hand.
    fn next(&mut self, at_most: u64) -> &[u8] {
        let start = self.at;
        let length = at_most.min((self.period.len() - start) as u64) as usize;
        self.at = (start + length) % self.period.len();
        &self.period[start..start + length]
    }

    #[track_caller]
    fn check(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let expected = self.next(bytes.len() as u64);
            let (now, later) = bytes.split_at(expected.len());
            assert!(now == expected, "something was lost, or made up");
            bytes = later;
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framed {
    Length,
    Chunks,
}

impl Framed {
    fn header(self, length: u64) -> String {
        match self {
            Framed::Length => format!("content-length: {length}\r\n"),
            Framed::Chunks => "transfer-encoding: chunked\r\n".to_owned(),
        }
    }
}

/// Writes a body as fast as it is taken, and counts what was.
async fn write_body(to: &mut Client, framed: Framed, length: u64, written: &AtomicU64) {
    let mut pattern = Pattern::new();
    let mut left = length;
    while left > 0 {
        let piece = pattern.next(left);
        left -= piece.len() as u64;
        if framed == Framed::Chunks {
            let size = format!("{:x}\r\n", piece.len());
            to.0.write_all(size.as_bytes()).await.unwrap();
        }
        to.0.write_all(piece).await.unwrap();
        if framed == Framed::Chunks {
            to.0.write_all(b"\r\n").await.unwrap();
        }
        written.fetch_add(piece.len() as u64, Ordering::Relaxed);
    }
    if framed == Framed::Chunks {
        to.0.write_all(b"0\r\n\r\n").await.unwrap();
    }
}

/// Reads a body with this head to its end, which must be what was written.
async fn read_body(from: &mut Client, head: &str, length: u64) {
    let mut pattern = Pattern::new();
    let mut read = 0;
    let mut piece = vec![0; 256 << 10];
    let chunked = head.to_lowercase().contains("transfer-encoding: chunked");
    loop {
        let mut left = match chunked {
            true => {
                let mut line = String::new();
                from.0.read_line(&mut line).await.unwrap();
                u64::from_str_radix(line.trim_end(), 16).expect("a chunk size")
            }
            false => length - read,
        };
        if left == 0 {
            break;
        }
        while left > 0 {
            let room = piece.len().min(left as usize);
            let got = from.0.read(&mut piece[..room]).await.unwrap();
            assert!(got > 0, "it ended after {read} bytes");
            pattern.check(&piece[..got]);
            left -= got as u64;
            read += got as u64;
        }
        if chunked {
            from.expect("\r\n").await;
        }
    }
    assert_eq!(read, length);
    if chunked {
        from.expect("\r\n").await;
    }
}

/// An upload through the router; the upstream begins to read when `reads` says so.
async fn upload(
    program: &Program,
    main: &ByHand,
    framed: Framed,
    length: u64,
    reads: impl AsyncFnOnce(&AtomicU64),
) {
    let written = AtomicU64::new(0);
    let mut client = Client::connect(program.address).await;
    let uploading = async {
        let start = format!(
            "POST / HTTP/1.1\r\nhost: a\r\n{}\r\n",
            framed.header(length)
        );
        client.send(start).await;
        write_body(&mut client, framed, length, &written).await;
        let response = client.response("POST").await.expect("an answer");
        assert_eq!(response.status, 201);
    };
    let receiving = async {
        let mut service = main.accept().await;
        let head = service.head().await;
        reads(&written).await;
        read_body(&mut service, &head, length).await;
        service
            .send("HTTP/1.1 201 X\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
            .await;
    };
    tokio::join!(uploading, receiving);
}

/// A download through the router; the client begins to read the body when `reads` says so.
async fn download(
    program: &Program,
    main: &ByHand,
    framed: Framed,
    length: u64,
    reads: impl AsyncFnOnce(&AtomicU64),
) {
    let written = AtomicU64::new(0);
    let sending = async {
        let mut service = main.accept().await;
        service.head().await;
        let header = framed.header(length);
        let start = format!("HTTP/1.1 200 X\r\nconnection: close\r\n{header}\r\n");
        service.send(start).await;
        write_body(&mut service, framed, length, &written).await;
    };
    let mut client = Client::connect(program.address).await;
    let receiving = async {
        client.send(GET).await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        reads(&written).await;
        read_body(&mut client, &head, length).await;
    };
    tokio::join!(sending, receiving);
}

async fn at_once(_written: &AtomicU64) {}

/// Waits until nothing more is taken from who writes. That must be soon: buffers are bounded.
async fn when_all_is_full(written: &AtomicU64) {
    let mut before = u64::MAX;
    soon(async {
        loop {
            let now = written.load(Ordering::Relaxed);
            if now > 0 && now == before {
                break;
            }
            before = now;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    })
    .await;
    // Four socket buffers, of which Linux makes the largest 6 MiB, and ours.
    assert!(before < 40 * MIB, "{} MiB were taken", before / MIB);
}

/// A router that has had small transfers of all kinds, and the memory that it needed for them.
async fn warmed_up(main: &ByHand, config: serde_json::Value) -> (Program, u64) {
    let mut file = json!({
        "main-target": main.url(),
        "canary-target": main.url(),
        // A transfer takes as long as it takes.
        "proxy-client": {"to-main-and-canary": {"timeout": "1h"}}
    });
    merge(&mut file, config);
    let program = Program::start(file).await;
    for framed in [Framed::Length, Framed::Chunks] {
        download(&program, main, framed, 2 * MIB, at_once).await;
        upload(&program, main, framed, 2 * MIB, at_once).await;
    }
    let base = program.peak_memory();
    (program, base)
}

#[track_caller]
fn assert_flat(program: &Program, base: u64) {
    let growth = program.peak_memory() - base;
    assert!(growth < GROWTH, "it grew by {} MiB", growth / MIB);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_huge_download_takes_no_memory() {
    let main = ByHand::start().await;
    let (program, base) = warmed_up(&main, json!({})).await;
    for framed in [Framed::Length, Framed::Chunks] {
        download(&program, &main, framed, LARGE, at_once).await;
    }
    assert_flat(&program, base);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_huge_upload_takes_no_memory() {
    let main = ByHand::start().await;
    let (program, base) = warmed_up(&main, json!({})).await;
    for framed in [Framed::Length, Framed::Chunks] {
        upload(&program, &main, framed, LARGE, at_once).await;
    }
    assert_flat(&program, base);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_huge_upload_takes_no_memory_with_a_sidecar_either() {
    let main = ByHand::start().await;
    let sidecar = Upstream::start(asked).await;
    let (program, base) = warmed_up(&main, json!({"sidecar-url": sidecar.url()})).await;
    for (i, framed) in [Framed::Length, Framed::Chunks].into_iter().enumerate() {
        upload(&program, &main, framed, LARGE, at_once).await;
        let asked = sidecar.seen();
        assert_eq!(asked.len(), 4 + i + 1);
        let last = asked.last().unwrap();
        assert_eq!(last.header("x-canary-body"), Some("partial"));
        assert_eq!(last.body.len() as u64, MIB);
    }
    assert_flat(&program, base);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_holds_the_upstream_back_and_takes_no_memory() {
    let main = ByHand::start().await;
    let (program, base) = warmed_up(&main, json!({})).await;
    for framed in [Framed::Length, Framed::Chunks] {
        download(&program, &main, framed, LARGE / 8, when_all_is_full).await;
    }
    assert_flat(&program, base);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_that_does_not_read_holds_the_client_back_and_takes_no_memory() {
    let main = ByHand::start().await;
    let sidecar = Upstream::start(asked).await;
    for config in [json!({}), json!({"sidecar-url": sidecar.url()})] {
        let (program, base) = warmed_up(&main, config).await;
        for framed in [Framed::Length, Framed::Chunks] {
            upload(&program, &main, framed, LARGE / 8, when_all_is_full).await;
        }
        assert_flat(&program, base);
    }
}

/// What is kept of each line counts here, and not what is in it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_of_thousands_of_lines_take_little_memory_and_no_more_each_time() {
    const CLIENTS: usize = 200;
    const LINES: usize = 4_000;
    let gate = Gate::shut();
    let waiting = gate.clone();
    let main = Upstream::start(move |_| {
        [vec![Step::Wait(waiting.clone())], answer(200, "", "main")].concat()
    })
    .await;
    let program = Program::start(json!({
        "main-target": main.url(),
        "canary-target": main.url(),
        "proxy-client": {"to-main-and-canary": {"timeout": "1h"}}
    }))
    .await;
    let head = head("GET /", &"a:\r\n".repeat(LINES));
    let base = program.peak_memory();
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let mut client = Client::connect(program.address).await;
        client.send(&head).await;
        clients.push(client);
    }
    // All of them are there at the same time.
    eventually(|| main.count() == CLIENTS).await;
    gate.open();
    for client in &mut clients {
        assert_eq!(client.response("GET").await.unwrap().status, 200);
    }
    let once = program.peak_memory();
    let each = (once - base) / (CLIENTS * LINES) as u64;
    assert!(each < 80, "a line of 4 bytes took {each}");
    for _ in 0..2 {
        clients = together(clients.into_iter().map(|mut client| {
            let head = head.clone();
            async move {
                assert_eq!(client.roundtrip("GET", head).await.status, 200);
                client
            }
        }))
        .await;
    }
    assert_flat(&program, once);
}
