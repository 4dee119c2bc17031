//! SIGTERM to the real program while its clients, or its upstreams, speak HTTP/2: GOAWAY, and nobody
//! loses a request.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use canary_router::clock::now;
use h2::client;
use serde_json::json;
use tokio::{net::TcpStream, sync::watch};

use crate::support::{
    h2peer::{Do, H2Client, H2Upstream, answers, asks, fields, receive},
    h2raw::{Raw, code::*, data, flag, get, kind, post},
    *,
};

/// What became of the requests of a client.
#[derive(Debug, Default)]
struct Story {
    answered: usize,
    /// Of which the router said that it has not looked at them.
    turned_away: usize,
    lost: Vec<String>,
}

/// A client that asks `at_once` times at a time on one connection after the other, until connections
/// are refused, or the process is `gone`.
async fn client(
    at_once: usize,
    address: SocketAddr,
    answered: Arc<AtomicUsize>,
    mut gone: watch::Receiver<bool>,
) -> Story {
    let mut story = Story::default();
    loop {
        let connected = tokio::select! {
            biased;
            connected = TcpStream::connect(address) => connected,
            _ = gone.wait_for(|gone| *gone) => return story,
        };
        let stream = match connected {
            Ok(stream) => stream,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => return story,
            Err(error) => {
                story.lost.push(format!("connecting: {error}"));
                return story;
            }
        };
        let Ok((sender, connection)) = client::handshake::<_>(stream).await else {
            story.lost.push("shaking hands".into());
            continue;
        };
        let connection = tokio::spawn(connection);
        'connection: loop {
            let mut batch = Vec::new();
            for _ in 0..at_once {
                let Ok(mut ready) = sender.clone().ready().await else {
                    break;
                };
                match ready.send_request(asks("GET", "/", &[]), true) {
                    Ok((response, _)) => batch.push(response),
                    Err(_) => break,
                }
            }
            if batch.is_empty() {
                break 'connection;
            }
            let mut over = batch.len() < at_once;
            for response in batch {
                let got = receive(response).await;
                match got.error {
                    None if (got.status, &*got.text()) == (200, "main") => {
                        story.answered += 1;
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                    Some(error) if error.is_go_away() || error.is_reset() && got.status == 0 => {
                        let reason = error.reason();
                        match reason {
                            Some(h2::Reason::NO_ERROR | h2::Reason::REFUSED_STREAM) => {
                                story.turned_away += 1;
                            }
                            _ => story.lost.push(format!("{error:?}")),
                        }
                        over = true;
                    }
                    error => {
                        story.lost.push(format!("{} {error:?}", got.status));
                        over = true;
                    }
                }
            }
            if over {
                break 'connection;
            }
        }
        drop(sender);
        connection.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_under_load_costs_no_request_in_http_2() {
    let one = Upstream::named("main", 200).await;
    let two = H2Upstream::named("main", 200).await;
    for (url, protocol) in [(one.url(), "http1"), (two.url(), "h2")] {
        let (mut answered_in_all, mut turned_away) = (0, 0);
        let before = one.count() + two.count();
        for round in 0..6 {
            let mut program = Program::start(json!({
                "main-target": url,
                "canary-target": url,
                "router-server": {"shutdown-timeout": "1h"},
                "proxy-client": {"to-main-and-canary": {"protocol": protocol}}
            }))
            .await;
            let answered = Arc::new(AtomicUsize::new(0));
            let (goes, gone) = watch::channel(false);
            let clients = [1, 1, 4, 32].iter().cycle().take(32).map(|at_once| {
                tokio::spawn(client(
                    *at_once,
                    program.address,
                    answered.clone(),
                    gone.clone(),
                ))
            });
            let clients: Vec<_> = clients.collect();
            // Each time at another moment of the load.
            eventually(|| answered.load(Ordering::Relaxed) > 400 + 77 * round).await;
            program.process.signal("TERM");
            let status = program.process.ended().await;
            goes.send_replace(true);
            for client in clients {
                let story = soon(client).await.unwrap();
                assert_eq!(story.lost, [""; 0], "{protocol}, in round {round}");
                answered_in_all += story.answered;
                turned_away += story.turned_away;
            }
            assert_eq!(status.code(), Some(0), "{:#?}", program.process.stdout());
            assert_eq!(program.process.stderr(), [""; 0]);
        }
        // Who was turned away may ask somebody else: nobody has seen his request.
        let seen = one.count() + two.count() - before;
        assert!(
            seen == answered_in_all,
            "{protocol}: {seen} forwarded, {answered_in_all} answered, {turned_away} turned away"
        );
    }
}

/// A main whose answers wait in the middle.
async fn waiting(gate: &Gate) -> H2Upstream {
    let gate = gate.clone();
    H2Upstream::start(move |asked| match asked.method.as_str() {
        "GET" => vec![
            Do::Head(200, fields(&[])),
            Do::Data(b"begin".to_vec()),
            Do::Wait(gate.clone()),
            Do::Data(b"-end-".to_vec()),
            Do::End,
        ],
        _ => answers(200, &[], &asked.body.len().to_string()),
    })
    .await
}

/// A connection with a download and an upload on it, both in the middle.
async fn in_the_middle(address: SocketAddr) -> Raw {
    let mut raw = Raw::client(address).await;
    raw.send([get(1, "/"), post(3, "/"), data(3, 0, "begin")].concat())
        .await;
    loop {
        let frame = raw.event().await.expect("the beginning");
        if frame.kind == kind::HEADERS {
            raw.fields(frame).await;
        } else if frame.kind == kind::DATA {
            assert_eq!(frame.payload, b"begin");
            return raw;
        }
    }
}

async fn program(main: &str, shutdown_timeout: &str) -> Program {
    Program::start(json!({
        "main-target": main,
        "canary-target": main,
        "router-server": {"shutdown-timeout": shutdown_timeout},
        "proxy-client": {"to-main-and-canary": {"protocol": "h2", "timeout": "1h"}}
    }))
    .await
}

#[tokio::test]
async fn long_transfers_go_on_to_their_end_after_sigterm_in_http_2() {
    let gate = Gate::shut();
    let main = waiting(&gate).await;
    let mut program = program(&main.url(), "1h").await;
    let mut raw = in_the_middle(program.address).await;
    // Two that are idle: they are told, and hung up on.
    let idle = [
        Raw::client(program.address).await,
        Raw::client(program.address).await,
    ];
    program.process.signal("TERM");
    for mut idle in idle {
        assert_eq!(idle.ended().await, Some(NO_ERROR));
    }
    gate.open();
    raw.send(data(3, flag::END_STREAM, "-end-")).await;
    let (mut told, mut ends, mut body) = (None, Vec::new(), Vec::new());
    while let Some(frame) = raw.event().await {
        match frame.kind {
            kind::GOAWAY => told = frame.code(),
            kind::DATA if frame.stream == 1 => body.extend(&frame.payload),
            kind::DATA if !frame.payload.is_empty() => assert_eq!(frame.payload, b"10"),
            kind::RST_STREAM => panic!("{frame:?}"),
            _ => {}
        }
        if frame.ends_stream() {
            ends.push(frame.stream);
        }
    }
    ends.sort_unstable();
    assert_eq!(
        (told, &ends[..], &body[..]),
        (Some(NO_ERROR), &[1, 3][..], &b"-end-"[..])
    );
    assert_eq!(program.process.ended().await.code(), Some(0));
}

#[tokio::test]
async fn what_is_not_done_at_shutdown_timeout_does_not_look_complete_in_http_2() {
    let gate = Gate::shut();
    let main = waiting(&gate).await;
    let mut program = program(&main.url(), "700ms").await;
    let mut raw = in_the_middle(program.address).await;
    let since = now();
    program.process.signal("TERM");
    program.process.ended().await;
    assert!(
        since.elapsed() >= Duration::from_millis(700),
        "{:?}",
        since.elapsed()
    );
    while let Some(frame) = raw.event().await {
        assert!(!frame.ends_stream(), "{frame:?}");
        assert!(frame.kind != kind::DATA, "{frame:?}");
    }
    gate.open();
    eventually(|| main.streams().1 == 0).await;
    // The upload never came in whole.
    assert_eq!(main.count(), 1);
}

/// Between the two GOAWAYs a client may not know yet: what it sends then is served.
#[tokio::test]
async fn a_request_that_crosses_the_goodbye_is_answered() {
    let gate = Gate::shut();
    let main = waiting(&gate).await;
    let mut program = program(&main.url(), "1h").await;
    let mut raw = in_the_middle(program.address).await;
    program.process.signal("TERM");
    // The first one says no more than that there will be another (RFC 9113 section 6.8).
    let first = soon(async {
        loop {
            let frame = raw.next().await.expect("GOAWAY");
            if frame.kind == kind::GOAWAY {
                break frame;
            }
        }
    })
    .await;
    assert_eq!(
        (first.code(), first.last_stream()),
        (Some(NO_ERROR), Some(u32::MAX >> 1))
    );
    raw.send(post(5, "/")).await;
    raw.send(data(5, flag::END_STREAM, "crosses")).await;
    let answer = raw.answer(5).await;
    assert_eq!((answer.status, &*answer.text()), (200, "7"), "{answer:?}");
    gate.open();
    raw.send(data(3, flag::END_STREAM, "-end-")).await;
    raw.ended().await;
    assert_eq!(program.process.ended().await.code(), Some(0));
}

/// A drain ends when the last request does, however long a client keeps its connection.
#[tokio::test]
async fn a_client_that_stays_does_not_hold_a_drain_up() {
    let main = H2Upstream::named("main", 200).await;
    let mut program = program(&main.url(), "1h").await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        let mut client = H2Client::connect(program.address).await;
        assert_eq!(client.get("/", &[]).await.text(), "main");
        clients.push(client);
        // And some that say nothing at all, not even that they have understood.
        let mut raw = Raw::client(program.address).await;
        assert_eq!(raw.get(1, "/").await.text(), "main");
        std::mem::forget(raw);
    }
    let since = now();
    program.process.signal("TERM");
    assert_eq!(program.process.ended().await.code(), Some(0));
    assert!(
        since.elapsed() < Duration::from_secs(5),
        "{:?}",
        since.elapsed()
    );
    for mut client in clients {
        client.ended().await.unwrap();
    }
}
