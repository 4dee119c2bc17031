//! The whole router, between a client that says anything and upstreams that answer anything.
//!
//! An input is what the client sends and, behind a byte 0xFE each, what the upstreams answer, in the order in which
//! they are asked; where there are no more of these, with what they were asked for. A byte 0xFD goes over to the next
//! piece of what is sent. The first byte of all chooses the router; the first ones of an answer say when it comes and
//! what comes behind it ([`script`]).
//!
//! What is held, besides that nothing panics on any thread and that all comes to an end:
//! * what an upstream gets is a well-formed request, to us and to hyper;
//! * each was sent by the client, with this target and this body, and none reaches an upstream twice;
//! * what the client gets are whole responses in the order of its requests, not more of them, and at most one that is
//!   cut off;
//! * another client, beside this one and after it, gets its own answer, and nothing of it goes anywhere else.

#![no_main]

use std::{
    cell::Cell,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    rc::Rc,
    time::Duration,
};

use libfuzzer_sys::fuzz_target;
use ours::Arriving;
use script::{Answer, Input, Script};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    runtime::Runtime,
    task::LocalSet,
};
use upstream::in_pieces;
use world::World;

mod check;
#[path = "../../../tests/codec/ours.rs"]
#[allow(dead_code)]
mod ours;
#[path = "../../../tests/codec/reference.rs"]
#[allow(dead_code, clippy::unwrap_used)]
mod reference;
mod script;
#[path = "../../../tests/it/support/strict.rs"]
#[allow(dead_code, clippy::unwrap_used)]
mod strict;
mod upstream;
mod world;

/// How long anything may take. Far more than it needs: only what hangs gets there.
const PATIENCE: Duration = Duration::from_secs(20);

/// Awaits `future`, which must not hang.
async fn soon<F: Future>(future: F) -> F::Output {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("nothing happened for {PATIENCE:?}"),
    }
}

struct Fuzzer {
    runtime: Runtime,
    tasks: LocalSet,
    world: Rc<World>,
}

thread_local! {
    static FUZZER: Fuzzer = {
        let builder = &mut tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_all().build().expect("there is room for one");
        let tasks = LocalSet::new();
        let world = tasks.block_on(&runtime, World::new());
        Fuzzer { runtime, tasks, world }
    };
    static CLIENTS: Cell<u32> = const { Cell::new(0) };
}

/// Each client has an address of its own, by which upstreams know whose a request is.
fn next_client() -> IpAddr {
    let client = CLIENTS.get();
    CLIENTS.set(client + 1);
    let [_, a, b, c] = client.to_be_bytes();
    // 127.0.0.1 and all that is near it is somebody else's.
    Ipv4Addr::new(127, 16 + a % 64, b, c).into()
}

fuzz_target!(|input: &[u8]| {
    let Some(input) = Input::read(input) else {
        return;
    };
    FUZZER.with(
        |Fuzzer {
             runtime,
             tasks,
             world,
         }| {
            tasks.block_on(runtime, soon(run(world, &input)));
        },
    );
});

async fn run(world: &World, input: &Input<'_>) {
    let router = world.router(input.router);
    let client = next_client();
    world.begin(Script::new(client, input));
    let beside = async {
        // Whom an answer is for that nobody has asked for is not known.
        if !input.answers.iter().any(Answer::may_be_for_another) {
            check_other(world, router.address, false).await;
        }
    };
    let (answer, ()) = tokio::join!(exchange(router.address, client, input), beside);
    world.until_all_is_said().await;
    let seen = world.end();
    check_other(world, router.address, true).await;
    check::exchange(router, input, &answer, &seen);
}

/// All that the client gets.
async fn exchange(router: SocketAddr, client: IpAddr, input: &Input<'_>) -> Vec<u8> {
    let mut stream = connect(router, client).await;
    let (mut read, mut write) = stream.split();
    let sending = async {
        let sent = in_pieces(&mut write, &input.pieces).await;
        if sent.is_ok() && !input.leaves {
            let _gone = write.shutdown().await;
        }
    };
    let mut answer = Vec::new();
    if input.leaves {
        sending.await;
    } else {
        let _reset = tokio::join!(sending, read.read_to_end(&mut answer));
    }
    answer
}

async fn connect(router: SocketAddr, client: IpAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("there are descriptors");
    socket
        .bind((client, 0).into())
        .expect("all of 127.0.0.0/8 is ours");
    let stream = socket.connect(router).await.expect("the router listens");
    stream.set_nodelay(true).expect("it is connected");
    stream
}

/// Another client asks for something, which it must get, or at least nothing else.
async fn check_other(world: &World, router: SocketAddr, surely: bool) {
    let client = next_client();
    let secret = world.expect(client);
    let mut stream = connect(router, client).await;
    let request = format!(
        "{}GET /other HTTP/1.1\r\nhost: h\r\nx-secret: {secret}\r\nconnection: close\r\n\r\n",
        world.greeting(router)
    );
    let _gone = stream.write_all(request.as_bytes()).await;
    let mut answer = Vec::new();
    let _reset = stream.read_to_end(&mut answer).await;
    let (response, status) = match &strict::responses(&answer, &["GET"]).as_deref() {
        Ok([only]) => (only.body.clone(), only.status()),
        other => panic!("another client got {other:?}"),
    };
    match status {
        200 => assert_eq!(
            response,
            secret.as_bytes(),
            "another client got {}",
            answer.escape_ascii()
        ),
        _ if surely => panic!("another client got {}", answer.escape_ascii()),
        502 | 504 => {}
        _ => panic!("another client got {}", answer.escape_ascii()),
    }
}

/// The bytes of the client, as our codec reads them.
fn requests(bytes: &[u8]) -> (Vec<ours::Request>, ours::Stop) {
    ours::requests(Arriving::new(bytes, &[]), world::MAX_HEADER_BYTES)
}
