//! Many clients: idle ones, all at once, and hundreds that attack by taking their time. Whoever else
//! comes is served as ever.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use canary_router::clock;
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpSocket, TcpStream},
};

use crate::support::*;

const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";

/// How long one request on a connection of its own takes.
async fn served(address: SocketAddr) -> Duration {
    let began = clock::now();
    let response = get(address, "/", "").await;
    assert_eq!((response.status, &*response.text()), (200, "main"));
    began.elapsed()
}

/// As for who is alone, and while the first wave of a crowd rolls in, not for ever.
#[track_caller]
fn assert_prompt(mut times: Vec<Duration>) {
    times.sort();
    let (median, longest) = (times[times.len() / 2], times[times.len() - 1]);
    assert!(median < Duration::from_millis(500), "median: {median:?}");
    assert!(longest < Duration::from_secs(5), "longest: {longest:?}");
}

const MANY: usize = 10_000;
/// What an idle connection may cost. Futures are larger in a debug build, a third of it as measured.
const EACH: u64 = 40 << 10;

/// So many idle connections, each of which has had an answer.
async fn idle(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    let part = |_| async move {
        let mut clients = Vec::new();
        for _ in 0..count / 20 {
            let stream = soon(TcpStream::connect(address)).await.unwrap();
            let mut client = Client(BufReader::with_capacity(512, stream));
            let response = client.roundtrip("GET", GET).await;
            assert_eq!((response.status, &*response.text()), (200, "main"));
            clients.push(client.0.into_inner());
        }
        clients
    };
    let parts = together((0..20).map(part)).await;
    parts.into_iter().flatten().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_idle_connections_are_little_and_a_storm_of_them_passes() {
    room_for_descriptors(16_000);
    let main = Upstream::named("main", 200).await;
    let program = Program::start_with_descriptors(
        16_000,
        json!({
            "main-target": main.url(),
            "canary-target": main.url(),
            "router-server": {"idle-timeout": "1h"},
            // The queue of main, in the storm, is not what is tested.
            "proxy-client": {"to-main-and-canary": {"timeout": "1h", "connect-timeout": "1h"}}
        }),
    )
    .await;
    served(program.address).await;
    let base = program.memory();
    let mut rounds = Vec::new();
    for _ in 0..2 {
        let mut clients = idle(program.address, MANY).await;
        assert!(program.descriptors() > MANY);
        assert_prompt(vec![served(program.address).await]);
        // They are all still there.
        for client in clients.iter_mut().step_by(997) {
            client.write_all(GET.as_bytes()).await.unwrap();
            let mut first = [0; 12];
            soon(client.read_exact(&mut first)).await.unwrap();
            assert_eq!(&first, b"HTTP/1.1 200");
        }
        let memory = program.memory();
        rounds.push(memory);
        let each = (memory - base) / MANY as u64;
        assert!(each < EACH, "{each} bytes for an idle connection");
        drop(clients);
        eventually(|| program.descriptors() < MANY / 100).await;
    }
    assert!(
        rounds[1] < rounds[0] + rounds[0] / 10,
        "it grows: {rounds:?}"
    );

    // All of them at the same moment, while half as many leave.
    let leaving = idle(program.address, MANY / 2).await;
    let address = program.address;
    let storm = together((0..MANY / 2).map(|_| async move {
        let stream = soon(TcpStream::connect(address)).await.unwrap();
        let mut client = Client(BufReader::with_capacity(512, stream));
        client.roundtrip("GET", GET).await.status
    }));
    let (statuses, ()) = tokio::join!(storm, async { drop(leaving) });
    let others: Vec<_> = statuses.iter().filter(|status| **status != 200).collect();
    assert_eq!(others, [&0; 0], "of {}", statuses.len());
    assert_prompt(vec![served(address).await]);
    eventually(|| program.descriptors() < MANY / 2).await;
}

/// How many attack at once.
const ATTACKERS: usize = 300;
/// What one of them may make us hold: those who read nothing of a response are the dearest.
const WASTE: u64 = 1 << 20;
/// Between two bytes of one who drips.
const DRIP: Duration = Duration::from_millis(50);

/// A main that answers `/large` with a lot, and everything else with its name.
async fn generous_main() -> SocketAddr {
    let listener = listen();
    let address = listener.local_addr().unwrap();
    let large: &'static [u8] = noise(2 << 20).leak();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(serve_generously(stream, large));
        }
    });
    address
}

async fn serve_generously(stream: TcpStream, large: &[u8]) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let (mut line, mut start, mut length) = (String::new(), String::new(), 0);
        while line != "\r\n" {
            line.clear();
            if stream.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            if start.is_empty() {
                start.clone_from(&line);
            }
            if let Some(value) = line.strip_prefix("content-length: ") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut body = stream.take(length);
        tokio::io::copy(&mut body, &mut tokio::io::sink()).await?;
        stream = body.into_inner();
        let answer = match start.contains("/large") {
            true => large,
            false => b"main",
        };
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n",
            answer.len()
        );
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(answer).await?;
    }
}

/// A connection of which the client's kernel takes next to nothing before the client does.
async fn connect_narrowly(address: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4 << 10).unwrap();
    socket.connect(address).await.unwrap()
}

/// While so many attack, each of them over and over again, others are served as ever; when they have
/// gone, so has what they took. An attacker counts his steps; the attack lasts for `steps` of each.
async fn assert_harmless<A, F>(steps: u64, attacker: A)
where
    A: Fn(TcpStream, &'static AtomicU64) -> F + Copy + Send + 'static,
    F: Future<Output = std::io::Result<()>> + Send,
{
    room_for_descriptors(4 * ATTACKERS);
    let main = generous_main().await;
    let target = format!("http://{main}");
    let program = Program::start(json!({
        "main-target": target,
        "canary-target": target,
        "router-server": {"read-timeout": "2s", "write-timeout": "1s"},
        "proxy-client": {"to-main-and-canary": {"idle-conn-timeout": "500ms", "timeout": "1h"}}
    }))
    .await;
    let address = program.address;
    served(address).await;
    let (calm, base) = (program.descriptors(), program.memory());

    let progress: &AtomicU64 = Box::leak(Box::default());
    let begun: &AtomicU64 = Box::leak(Box::default());
    let mut attack = tokio::task::JoinSet::new();
    for _ in 0..ATTACKERS {
        attack.spawn(async move {
            loop {
                let stream = connect_narrowly(address).await;
                begun.fetch_add(1, Ordering::Relaxed);
                let _thrown_out = attacker(stream, progress).await;
            }
        });
    }
    eventually(|| begun.load(Ordering::Relaxed) >= ATTACKERS as u64).await;

    let mut kept = Client::connect(address).await;
    let mut times = Vec::new();
    while progress.load(Ordering::Relaxed) < steps * ATTACKERS as u64 || times.len() < 40 {
        times.push(served(address).await);
        let began = clock::now();
        assert_eq!(kept.roundtrip("GET", GET).await.text(), "main");
        times.push(began.elapsed());
        assert!(times.len() < 20_000, "the attack does not get on");
        tokio::time::sleep(DRIP / 10).await;
    }
    assert_prompt(times);
    let grown = program.memory() - base;
    let each = grown / ATTACKERS as u64;
    assert!(each < WASTE, "{each} bytes for an attacker");
    drop(attack);
    drop(kept);
    // But for those of a worker that had not begun when we looked.
    eventually(|| program.descriptors() <= calm + 10).await;
    assert_prompt(vec![served(address).await]);
}

/// Sends `piece` again and again.
async fn drip(stream: &mut TcpStream, piece: &[u8], steps: &AtomicU64) -> std::io::Result<()> {
    loop {
        stream.write_all(piece).await?;
        steps.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(DRIP).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_that_drip_hold_nobody_up() {
    assert_harmless(50, |mut stream, steps| async move {
        stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n").await?;
        drip(&mut stream, b"x: y\r\n", steps).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_drip_hold_nobody_up() {
    assert_harmless(30, |mut stream, steps| async move {
        let head = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\n";
        stream.write_all(head).await?;
        drip(&mut stream, b"x", steps).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_that_drip_hold_nobody_up() {
    assert_harmless(30, |mut stream, steps| async move {
        let head = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
        stream.write_all(head).await?;
        drip(&mut stream, b"1\r\nx\r\n", steps).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_say_nothing_hold_nobody_up() {
    assert_harmless(1, |mut stream, steps| async move {
        let _end = stream.read(&mut [0; 100]).await?;
        steps.fetch_add(1, Ordering::Relaxed);
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_read_nothing_hold_nobody_up() {
    assert_harmless(1, |mut stream, steps| async move {
        let head = b"GET /large HTTP/1.1\r\nhost: a\r\n\r\n";
        stream.write_all(head).await?;
        // Until the router has had enough: only who sends is told.
        while stream.write(b"x").await.is_ok() {
            tokio::time::sleep(DRIP).await;
        }
        steps.fetch_add(1, Ordering::Relaxed);
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_read_drop_by_drop_hold_nobody_up() {
    assert_harmless(30, |mut stream, steps| async move {
        let head = b"GET /large HTTP/1.1\r\nhost: a\r\n\r\n";
        stream.write_all(head).await?;
        loop {
            let _byte = stream.read_u8().await?;
            steps.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(DRIP).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_leave_at_once_hold_nobody_up() {
    assert_harmless(20, |mut stream, steps| async move {
        let head = b"GET /large HTTP/1.1\r\nhost: a\r\n\r\n";
        stream.write_all(head).await?;
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        drop(stream);
        steps.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(DRIP).await;
        Ok(())
    })
    .await;
}

/// What slowhttptest calls a range attack: a header that asks for a thousand parts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_with_a_thousand_ranges_hold_nobody_up() {
    assert_harmless(20, |stream, steps| async move {
        let ranges: Vec<_> = (0..1000).map(|i| format!("5-{i}")).collect();
        let ranges = ranges.join(",");
        let head = format!("GET / HTTP/1.1\r\nhost: a\r\nrange: bytes=0-,{ranges}\r\n\r\n");
        let mut client = Client(BufReader::with_capacity(512, stream));
        loop {
            client.0.write_all(head.as_bytes()).await?;
            let Some(response) = client.response("GET").await else {
                return Ok(());
            };
            assert_eq!(response.text(), "main");
            steps.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(DRIP).await;
        }
    })
    .await;
}
