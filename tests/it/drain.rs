//! SIGTERM to the real program under load: nobody who is connected loses a request, long transfers
//! have until `shutdown-timeout`, and what is cut does not look complete.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use canary_router::clock;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::watch,
};

use crate::support::*;

const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";

/// For less than this a connection may be idle and still be used: the router leaves it open for longer
/// when it drains.
const GRACE: Duration = Duration::from_millis(80);

/// How a client goes about it.
#[derive(Debug, Clone, Copy)]
pub enum Manner {
    /// A connection for each request.
    Fresh,
    /// One after the other on a connection, until it is told that it closes.
    KeepAlive,
    /// The same, with pauses.
    Leisurely,
    /// Four at once.
    Pipelining,
}

/// What became of the requests of a client.
#[derive(Debug, Default)]
pub struct Story {
    pub answered: usize,
    /// On a connection that had been idle for so long that the router had to close it some time.
    pub crossed: usize,
    pub lost: Vec<String>,
}

/// A client that goes on until connections are refused, or the process is `gone`.
pub async fn client(
    manner: Manner,
    address: std::net::SocketAddr,
    answered: Arc<AtomicUsize>,
    mut gone: watch::Receiver<bool>,
) -> Story {
    let mut story = Story::default();
    while !*gone.borrow() {
        // While the router stops listening the kernel lets SYNs be lost: that is as good as refused,
        // and it takes a second to find out.
        let connected = tokio::select! {
            biased;
            connected = tokio::net::TcpStream::connect(address) => connected,
            _ = gone.wait_for(|gone| *gone) => return story,
        };
        let stream = match connected {
            Ok(stream) => stream,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => return story,
            Err(error) => {
                story.lost.push(format!("{manner:?}: connecting: {error}"));
                return story;
            }
        };
        stream.set_nodelay(true).unwrap();
        let mut client = Client(tokio::io::BufReader::new(stream));
        let mut idle_since = None;
        'connection: for round in 0.. {
            if let Manner::Leisurely = manner {
                tokio::time::sleep(Duration::from_millis(round % 8 * 10)).await;
            }
            let batch = match manner {
                Manner::Pipelining => 4,
                Manner::Fresh | Manner::KeepAlive | Manner::Leisurely => 1,
            };
            let sent = client.0.write_all(GET.repeat(batch).as_bytes()).await;
            let idle = idle_since.map(|since| clock::now().saturating_duration_since(since));
            for i in 0..batch {
                let response = match sent {
                    Ok(()) => client.response("GET").await,
                    Err(_) => None,
                };
                let Some(response) = response else {
                    if i == 0 && idle.is_some_and(|idle| idle >= GRACE) {
                        story.crossed += 1;
                    } else {
                        let what = format!("{manner:?}: request {round}.{i}, idle {idle:?}");
                        story.lost.push(format!("{what}, {sent:?}"));
                    }
                    break 'connection;
                };
                let told = response.header("connection") == Some("close");
                if (response.status, &*response.text(), response.complete) != (200, "main", true) {
                    story.lost.push(format!("{manner:?}: {response:?}"));
                }
                story.answered += 1;
                answered.fetch_add(1, Ordering::Relaxed);
                if told {
                    // What was sent behind it may be sent again elsewhere: nothing of it was done.
                    if let extra @ [_, ..] = &*client.rest().await {
                        let extra = String::from_utf8_lossy(extra);
                        story
                            .lost
                            .push(format!("{manner:?}: after the last: {extra}"));
                    }
                    break 'connection;
                }
            }
            if let Manner::Fresh = manner {
                break;
            }
            idle_since = Some(clock::now());
        }
    }
    story
}

/// The kernel reset connections that it had completed between the last accept and the close of a
/// listening socket: one drain in ten under this load lost a request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_under_load_costs_no_request() {
    let main = Upstream::named("main", 200).await;
    let (mut answered_in_all, mut crossed) = (0, 0);
    for round in 0..20 {
        let mut program = Program::start(json!({
            "main-target": main.url(),
            "canary-target": main.url(),
            "router-server": {"shutdown-timeout": "1h"}
        }))
        .await;
        let answered = Arc::new(AtomicUsize::new(0));
        let (goes, gone) = watch::channel(false);
        let manners = [
            Manner::Fresh,
            Manner::KeepAlive,
            Manner::Leisurely,
            Manner::Pipelining,
        ];
        let clients = manners.iter().cycle().take(64).map(|manner| {
            tokio::spawn(client(
                *manner,
                program.address,
                answered.clone(),
                gone.clone(),
            ))
        });
        let clients: Vec<_> = clients.collect();
        // Each time at another moment of the load.
        eventually(|| answered.load(Ordering::Relaxed) > 150 + 23 * round).await;
        program.process.signal("TERM");
        let status = program.process.ended().await;
        goes.send_replace(true);
        for client in clients {
            let story = soon(client).await.unwrap();
            assert_eq!(story.lost, [""; 0], "in round {round}");
            answered_in_all += story.answered;
            crossed += story.crossed;
        }
        assert_eq!(status.code(), Some(0), "{:#?}", program.process.stdout());
        assert_eq!(program.process.stderr(), [""; 0]);
    }
    let seen = main.count();
    assert!(
        seen == answered_in_all,
        "{seen} forwarded, {answered_in_all} answered, {crossed} crossed"
    );
}

/// A main for long transfers: what it answers depends on the target, and waits in the middle.
fn transfers(gate: &Gate) -> impl Fn(&Received) -> Vec<Step> + Send + Sync + 'static {
    let gate = gate.clone();
    move |request| {
        let (head, first, second) = match request.target() {
            "/length" => ("content-length: 10\r\n", "begin", "-end-"),
            "/chunked" => (
                "transfer-encoding: chunked\r\n",
                "5\r\nbegin\r\n",
                "5\r\n-end-\r\n0\r\n\r\n",
            ),
            // An upload has been read to its end when this is asked.
            _ => return answer(200, "", &request.body.len().to_string()),
        };
        let begin = format!("HTTP/1.1 200 OK\r\n{head}\r\n{first}");
        vec![
            Step::Write(begin.into()),
            Step::Wait(gate.clone()),
            Step::Write(second.into()),
        ]
    }
}

/// A client for each kind of long transfer, in the middle of it.
struct Transfers {
    with_length: Client,
    in_chunks: Client,
    until_close: Client,
    upload: Client,
}

impl Transfers {
    async fn begin(address: std::net::SocketAddr) -> Transfers {
        let download = async |start: &str| {
            let mut client = Client::connect(address).await;
            client.send(format!("{start}\r\nhost: a\r\n\r\n")).await;
            let mut read = Vec::new();
            while !read.windows(5).any(|window| window == b"begin") {
                read.push(soon(client.0.read_u8()).await.unwrap());
            }
            client
        };
        let mut transfers = Transfers {
            with_length: download("GET /length HTTP/1.1").await,
            in_chunks: download("GET /chunked HTTP/1.1").await,
            until_close: download("GET /chunked HTTP/1.0").await,
            upload: Client::connect(address).await,
        };
        transfers.in_chunks.expect("\r\n").await;
        let upload =
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nbegin\r\n";
        transfers.upload.send(upload).await;
        transfers
    }
}

/// A witness that the workers drain: a connection of each is closed though it is not asked to.
async fn drains(program: &Program, idle: Vec<Client>) {
    program.process.signal("TERM");
    for mut client in idle {
        client.closed().await;
    }
}

async fn idle(address: std::net::SocketAddr) -> Vec<Client> {
    let mut clients = Vec::new();
    for _ in 0..8 {
        let mut client = Client::connect(address).await;
        let request = "GET /application/health HTTP/1.1\r\nhost: a\r\n\r\n";
        assert_eq!(client.roundtrip("GET", request).await.status, 200);
        clients.push(client);
    }
    clients
}

#[tokio::test]
async fn long_transfers_go_on_to_their_end_after_sigterm() {
    let gate = Gate::shut();
    let main = Upstream::start(transfers(&gate)).await;
    let mut program = Program::start(json!({
        "main-target": main.url(),
        "canary-target": main.url(),
        "router-server": {"shutdown-timeout": "1h"}
    }))
    .await;
    let mut transfers = Transfers::begin(program.address).await;
    eventually(|| main.connections().0 == 4).await;
    let idle = idle(program.address).await;
    drains(&program, idle).await;
    gate.open();
    assert_eq!(transfers.with_length.rest().await, b"-end-");
    assert_eq!(transfers.in_chunks.rest().await, b"5\r\n-end-\r\n0\r\n\r\n");
    let mut rest = Vec::new();
    let end = soon(transfers.until_close.0.read_to_end(&mut rest)).await;
    assert_eq!((end.unwrap(), &*rest), (5, &b"-end-"[..]));
    let upload = transfers
        .upload
        .roundtrip("POST", "5\r\n-end-\r\n0\r\n\r\n")
        .await;
    assert_eq!((upload.status, &*upload.text()), (200, "10"));
    assert_eq!(upload.header("connection"), Some("close"));
    assert_eq!(program.process.ended().await.code(), Some(0));
}

#[tokio::test]
async fn what_is_not_done_at_shutdown_timeout_is_cut_and_does_not_look_complete() {
    let gate = Gate::shut();
    let main = Upstream::start(transfers(&gate)).await;
    let mut program = Program::start(json!({
        "main-target": main.url(),
        "canary-target": main.url(),
        "router-server": {"shutdown-timeout": "700ms"}
    }))
    .await;
    let mut transfers = Transfers::begin(program.address).await;
    eventually(|| main.connections().0 == 4).await;
    let signalled = clock::now();
    program.process.signal("TERM");
    program.process.ended().await;
    let took = signalled.elapsed();
    assert!(took >= Duration::from_millis(700), "{took:?}");
    // Neither the five bytes that are missing, nor a last chunk, nor a proper end.
    for client in [&mut transfers.with_length, &mut transfers.in_chunks] {
        assert_eq!(client.rest().await, b"");
    }
    let mut rest = Vec::new();
    let end = soon(transfers.until_close.0.read_to_end(&mut rest)).await;
    assert_eq!(rest, b"");
    assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(transfers.upload.rest().await, b"");
    gate.open();
    eventually(|| main.connections().1 == 0).await;
    // The upload never came in whole.
    assert_eq!(main.count(), 3);
}
