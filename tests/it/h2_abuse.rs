//! HTTP/2 clients that cost more than they pay: floods of frames that cost them nothing, streams that
//! they do not want, answers that they do not read.
//!
//! Whatever it is, the router's memory stays flat, others are served meanwhile, an upstream is not made
//! to pay, and who does it is hung up on, unless it costs nothing. All of it is bounded in count.

use std::{net::SocketAddr, time::Duration};

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{
    h2raw::{code::*, get, head, *},
    hpack::{block, indexed, indexing},
    *,
};

const MIB: u64 = 1 << 20;

/// By how much the router's memory may grow.
const GROWTH: u64 = 32 * MIB;

/// What became of one who did it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Met {
    /// The connection was ended, and GOAWAY said this before.
    Ended(Option<u32>),
    /// Everything was taken, and a PING behind it answered.
    Borne,
}

/// What a client does: it says `begin`, then all of `rest`.
struct Flood {
    name: &'static str,
    settings: Vec<(u16, u32)>,
    begin: Vec<u8>,
    /// The same bytes often, or other ones each time.
    rest: Rest,
    /// Whether it reads what it is answered.
    reads: bool,
    /// Whether it may be borne.
    may_be_borne: bool,
}

enum Rest {
    Again(Vec<u8>, u32),
    /// For streams 1, 3, 5 and so on.
    Streams(fn(u32) -> Vec<u8>, u32),
}

impl Flood {
    /// One that reads, and has to be ended.
    fn new(name: &'static str, rest: Rest) -> Flood {
        Flood {
            name,
            settings: Vec::new(),
            begin: Vec::new(),
            rest,
            reads: true,
            may_be_borne: false,
        }
    }

    /// The bytes, some 16 KiB at a time.
    fn pieces(&self) -> impl Iterator<Item = Vec<u8>> {
        let times = match self.rest {
            Rest::Again(_, times) | Rest::Streams(_, times) => times,
        };
        let mut i = 0;
        std::iter::from_fn(move || {
            let mut piece = Vec::new();
            while i < times && piece.len() < 16_384 {
                match &self.rest {
                    Rest::Again(frames, _) => piece.extend(frames),
                    Rest::Streams(frames, _) => piece.extend(frames(2 * i + 1)),
                }
                i += 1;
            }
            (!piece.is_empty()).then_some(piece)
        })
    }

    async fn run(&self, address: SocketAddr) -> Met {
        let mut raw = Raw::client_with(address, &self.settings).await;
        if self.reads {
            let (mut reader, mut writer) = (raw.reader, raw.writer);
            let sending = async move {
                let mut sent = writer.write_all(&self.begin).await;
                for piece in self.pieces() {
                    if sent.is_err() {
                        break;
                    }
                    sent = writer.write_all(&piece).await;
                }
                let _gone = writer.write_all(&ping(b"borne?!?")).await;
                // It stays open: who reads says when it is over.
                writer
            };
            let reading = async {
                let mut said = None;
                while let Some(frame) = read_frame(&mut reader).await {
                    if frame.kind == kind::PING && frame.payload == b"borne?!?" {
                        return Met::Borne;
                    }
                    said = said.or(frame.code().filter(|_| frame.kind == kind::GOAWAY));
                }
                Met::Ended(said)
            };
            let (met, _writer) = soon(async { tokio::join!(reading, sending) }).await;
            return met;
        }
        // Whether it is over shows when nothing more can be written.
        let mut alive = raw.sends(&self.begin).await;
        for piece in self.pieces() {
            alive = alive && raw.sends(&piece).await;
        }
        let mut waited = 0;
        while alive && waited < 200 {
            tokio::time::sleep(Duration::from_millis(25)).await;
            waited += 1;
            alive = raw.sends(&ping(b"waiting!")).await;
        }
        match alive {
            true => Met::Borne,
            false => Met::Ended(None),
        }
    }
}

/// An upstream that answers only those who ask whether it is alive.
struct Counting {
    upstream: Upstream,
}

impl Counting {
    async fn start() -> Counting {
        let upstream = Upstream::start(|request| match request.target() {
            "/alive" => answer(200, "", "alive"),
            "/small" => answer(200, "", &"x".repeat(4000)),
            _ => vec![Step::Hang],
        })
        .await;
        Counting { upstream }
    }

    /// How often it was asked something else, in whole or in part: each time that took a connection.
    fn asked(&self) -> usize {
        self.upstream.connections().0
    }
}

/// A router of its own, that is not impatient.
async fn program(upstream: &str) -> Program {
    let program = Program::start(json!({
        "main-target": upstream,
        "canary-target": upstream,
        "router-server": {"read-timeout": "1h", "write-timeout": "2s", "idle-timeout": "1h"},
        "proxy-client": {"to-main-and-canary": {"timeout": "1h"}}
    }))
    .await;
    for _ in 0..20 {
        let mut raw = Raw::client(program.address).await;
        assert_eq!(raw.get(1, "/alive").await.status, 200);
    }
    assert!(serves_others(program.address).await);
    program
}

/// Does it, twice at a time, and looks at everyone's state.
async fn withstands(floods: Vec<Flood>) {
    let mut wrong = Vec::new();
    for flood in floods {
        let counting = Counting::start().await;
        let program = program(&counting.upstream.url()).await;
        let base = program.peak_memory();
        let address = program.address;
        let (one, other, served) = tokio::join!(
            flood.run(address),
            flood.run(address),
            serves_others(address)
        );
        let met = [one, other];
        let mut whys = Vec::new();
        let growth = program.peak_memory().saturating_sub(base);
        if growth > GROWTH {
            whys.push(format!("it grew by {} KiB", growth >> 10));
        }
        if !served {
            whys.push("others were not served".to_owned());
        }
        if !flood.may_be_borne && met.contains(&Met::Borne) {
            whys.push("it was borne".to_owned());
        }
        let asked = counting.asked();
        if asked > 2000 {
            whys.push(format!("the upstream was asked {asked} times"));
        }
        if !serves_others(address).await {
            whys.push("nobody is served behind it".to_owned());
        }
        // What was given up is given up towards the upstream too.
        let open = || counting.upstream.connections().1;
        if !soon_enough(|| open() <= 2).await {
            whys.push(format!("{} connections to the upstream are left", open()));
        }
        if !whys.is_empty() {
            wrong.push(format!("{}: {}; {met:?}", flood.name, whys.join(", ")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

async fn soon_enough(mut condition: impl FnMut() -> bool) -> bool {
    for _ in 0..500 {
        if condition() {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    false
}

fn open(stream: u32) -> Vec<u8> {
    post(stream, "/hangs")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_are_reset_at_once_end_the_connection() {
    withstands(vec![
        Flood::new(
            "a GET, reset",
            Rest::Streams(
                |stream| [get(stream, "/hangs"), rst_stream(stream, CANCEL)].concat(),
                20_000,
            ),
        ),
        Flood::new(
            "a POST, reset",
            Rest::Streams(
                |stream| [open(stream), rst_stream(stream, CANCEL)].concat(),
                20_000,
            ),
        ),
        Flood::new(
            "a POST with data, reset",
            Rest::Streams(
                |stream| {
                    [
                        open(stream),
                        data(stream, 0, "x"),
                        rst_stream(stream, NO_ERROR),
                    ]
                    .concat()
                },
                20_000,
            ),
        ),
    ])
    .await;
}

/// Streams that the client makes us reset: who counts RST_STREAM of clients only does not see it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_we_are_made_to_reset_end_the_connection() {
    const STREAMS: u32 = 20_000;
    let makes = |name, frames| Flood::new(name, Rest::Streams(frames, STREAMS));
    withstands(vec![
        makes("WINDOW_UPDATE by 0", |stream| {
            [open(stream), window_update(stream, 0)].concat()
        }),
        makes("WINDOW_UPDATE above the maximum", |stream| {
            [open(stream), window_update(stream, (1 << 31) - 1)].concat()
        }),
        makes("DATA behind the end", |stream| {
            [get(stream, "/hangs"), data(stream, 0, "x")].concat()
        }),
        makes("HEADERS that end nothing", |stream| {
            let again = headers(stream, flag::END_HEADERS, block([("x-a", "b")]));
            [open(stream), again].concat()
        }),
        makes("PRIORITY of itself", |stream| {
            [open(stream), priority(stream, stream, 0)].concat()
        }),
        makes("PRIORITY of 4 bytes", |stream| {
            [open(stream), frame(kind::PRIORITY, 0, stream, [0, 0, 0, 0])].concat()
        }),
        makes("a request that is none", |stream| {
            headers(stream, flag::ALL, block([(":method", "GET")]))
        }),
        makes("a length that is another", |stream| {
            let of_one = [
                block(pseudo("POST", "/hangs")),
                block([("content-length", "1")]),
            ]
            .concat();
            [
                headers(stream, flag::END_HEADERS, of_one),
                data(stream, flag::END_STREAM, "more"),
            ]
            .concat()
        }),
    ])
    .await;
}

/// As many as may be are open at any time, and each is reset as soon as the upstream has it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_has_no_more_of_a_clients_requests_than_the_client_may_have_streams() {
    const REQUESTS: u32 = 3_000;
    let counting = Counting::start().await;
    let program = program(&counting.upstream.url()).await;
    let mut raw = Raw::client(program.address).await;
    let most = raw
        .setting(setting::MAX_CONCURRENT_STREAMS)
        .expect("a limit");
    assert!(most <= 1000, "{most} streams");
    let mut most_open = 0;
    let mut ended = false;
    let mut stream = 1;
    while !ended && stream < 2 * REQUESTS {
        let mut frames = Vec::new();
        for _ in 0..50 {
            frames.extend(get(stream, "/hangs"));
            frames.extend(rst_stream(stream, CANCEL));
            stream += 2;
        }
        frames.extend(ping(b"in time?"));
        ended = !raw.sends(frames).await;
        while !ended {
            match raw.next().await {
                Some(frame) if frame.kind == kind::PING => break,
                Some(_) => {}
                None => ended = true,
            }
        }
        most_open = most_open.max(counting.upstream.connections().1);
    }
    assert!(
        most_open <= most as usize + 4,
        "{most_open} requests at a time of a client that may have {most}"
    );
    assert!(ended, "{REQUESTS} resets were borne");
    assert!(counting.asked() <= 2000, "{} requests", counting.asked());
    assert!(soon_enough(|| counting.upstream.connections().1 <= 2).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn header_blocks_without_an_end_end_the_connection() {
    let unfinished = || headers(1, flag::END_STREAM, block(pseudo("GET", "/hangs")));
    let of = |name, piece: Vec<u8>, times| Flood {
        begin: unfinished(),
        ..Flood::new(name, Rest::Again(continuation(1, 0, piece), times))
    };
    let trailers = Flood {
        begin: [open(1), headers(1, flag::END_STREAM, block([("x-a", "b")]))].concat(),
        ..Flood::new(
            "CONTINUATION of trailers",
            Rest::Again(
                continuation(1, 0, block([("x-a", "b".repeat(4000))])),
                20_000,
            ),
        )
    };
    withstands(vec![
        of("empty CONTINUATION", Vec::new(), 500_000),
        of("CONTINUATION of a byte", vec![0x80 | 16], 500_000),
        of("CONTINUATION of a field", block([("x-a", "b")]), 200_000),
        of(
            "full CONTINUATION",
            block((0..4).map(|_| ("x-a", "b".repeat(4000)))),
            4_000,
        ),
        // A text that is announced to be long, and comes in drops.
        of(
            "CONTINUATION of a long text",
            {
                let mut start = block([("x-a", "")]);
                start.pop();
                start.extend([0x7f, 0x80, 0x80, 0x80, 0x08]);
                start.extend([b'b'; 1000]);
                start
            },
            20_000,
        ),
        trailers,
    ])
    .await;
}

/// An entry of 4,000 bytes, and many indices of one byte.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_header_block_that_unpacks_to_megabytes_takes_no_memory() {
    let large = indexing("x-a", "b".repeat(4_000));
    // The newest entry of the dynamic table.
    let many = indexed(62).repeat(16_000);
    let bomb = |stream: u32| {
        let block = [&block(pseudo("GET", "/hangs")), &large[..], &many].concat();
        head(stream, flag::END_STREAM, block)
    };
    let counting = Counting::start().await;
    let program = program(&counting.upstream.url()).await;
    let base = program.peak_memory();
    for _ in 0..20 {
        let mut raw = Raw::client(program.address).await;
        let streams = [1, 3, 5, 7, 9];
        raw.sends(streams.map(bomb).concat()).await;
        for stream in streams {
            let answer = raw.answer(stream).await;
            match answer.end {
                End::Whole => assert_eq!(answer.status, 431),
                End::Closed | End::GoAway(_) => break,
                End::Reset(_) => {}
            }
        }
    }
    let growth = program.peak_memory() - base;
    assert!(growth < GROWTH, "it grew by {} KiB", growth >> 10);
    assert!(counting.asked() < 10, "{}", counting.asked());
    assert!(serves_others(program.address).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_that_want_an_answer_which_nobody_reads_end_the_connection() {
    let unread = |name, frames: Vec<u8>, times| Flood {
        reads: false,
        ..Flood::new(name, Rest::Again(frames, times))
    };
    withstands(vec![
        unread("PING, unread", ping(NOTHING), 3_000_000),
        unread("SETTINGS, unread", settings(&[]), 3_000_000),
        unread(
            "SETTINGS of six, unread",
            settings(&[
                (setting::HEADER_TABLE_SIZE, 0),
                (setting::HEADER_TABLE_SIZE, 4096),
                (setting::INITIAL_WINDOW_SIZE, 0),
                (setting::INITIAL_WINDOW_SIZE, 65_535),
                (setting::MAX_FRAME_SIZE, 16_384),
                (setting::MAX_FRAME_SIZE, 16_385),
            ]),
            500_000,
        ),
        Flood {
            reads: false,
            ..Flood::new(
                "requests that are none, unread",
                Rest::Streams(
                    |stream| headers(stream, flag::ALL, block([(":method", "GET")])),
                    500_000,
                ),
            )
        },
    ])
    .await;
}

const NOTHING: &[u8; 8] = &[0; 8];

/// What they cost us is what they cost to send; who ends it does well, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_that_cost_little_take_nothing_from_others() {
    let borne = |name, frames: Vec<u8>, times| Flood {
        may_be_borne: true,
        ..Flood::new(name, Rest::Again(frames, times))
    };
    let upload = |name, frames: Vec<u8>, times| Flood {
        begin: open(1),
        ..borne(name, frames, times)
    };
    let padded = data(1, flag::PADDED, [&[255][..], &[0; 255]].concat());
    withstands(vec![
        borne("PING", ping(NOTHING), 300_000),
        borne("SETTINGS", settings(&[]), 300_000),
        borne(
            "SETTINGS of two windows",
            settings(&[
                (setting::INITIAL_WINDOW_SIZE, 0),
                (setting::INITIAL_WINDOW_SIZE, 65_535),
            ]),
            200_000,
        ),
        borne("unknown frames", frame(99, 0, 0, [0; 100]), 200_000),
        borne("WINDOW_UPDATE by 1", window_update(0, 1), 300_000),
        borne("pongs", frame(kind::PING, flag::ACK, 0, NOTHING), 300_000),
        borne("acknowledgements", settings_ack(), 300_000),
        borne("PRIORITY of one stream", priority(1, 0, 0), 300_000),
        Flood {
            may_be_borne: true,
            ..Flood::new(
                "PRIORITY of many streams",
                Rest::Streams(|stream| priority(stream, stream + 2, 7), 300_000),
            )
        },
        upload("DATA of padding", padded, 20_000),
        upload(
            "WINDOW_UPDATE of a stream by 1",
            window_update(1, 1),
            300_000,
        ),
        Flood {
            begin: [open(1), rst_stream(1, CANCEL)].concat(),
            ..borne(
                "RST_STREAM of a closed stream",
                rst_stream(1, CANCEL),
                300_000,
            )
        },
    ])
    .await;
}

/// They would be nothing to an upstream but an empty chunk, or nothing at all, and cost everybody their time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn empty_data_without_an_end_ends_the_connection() {
    withstands(vec![Flood {
        begin: open(1),
        ..Flood::new("empty DATA", Rest::Again(data(1, 0, ""), 500_000))
    }])
    .await;
}

/// Answers that are asked for and not taken: the upstreams are held back, and nothing piles up here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_nobody_takes_are_not_kept() {
    const BODY: usize = 16 << 20;
    let upstream = Upstream::start(|request| match request.target() {
        "/alive" => answer(200, "", "alive"),
        _ => vec![
            Step::Write(format!("HTTP/1.1 200 OK\r\ncontent-length: {BODY}\r\n\r\n").into()),
            Step::Write(vec![b'x'; BODY]),
        ],
    })
    .await;
    // No window at all, and a large one of the connection that the streams do not use.
    for (ours, begin) in [
        (vec![(setting::INITIAL_WINDOW_SIZE, 0)], Vec::new()),
        (
            vec![(setting::INITIAL_WINDOW_SIZE, 0)],
            window_update(0, 1 << 30),
        ),
        // All the windows in the world, and nobody who reads.
        (
            vec![(setting::INITIAL_WINDOW_SIZE, (1 << 31) - 1)],
            window_update(0, 1 << 30),
        ),
    ] {
        let program = program(&upstream.url()).await;
        let base = program.peak_memory();
        let mut clients = Vec::new();
        for _ in 0..3 {
            let mut raw = Raw::client_with(program.address, &ours).await;
            let most = raw
                .setting(setting::MAX_CONCURRENT_STREAMS)
                .unwrap()
                .min(60);
            raw.send(&begin).await;
            let requests: Vec<u8> = (0..most).flat_map(|i| get(2 * i + 1, "/large")).collect();
            raw.send(requests).await;
            clients.push(raw);
        }
        eventually(|| upstream.connections().1 > 50).await;
        assert!(serves_others(program.address).await);
        // At write-timeout they are given up.
        eventually(|| upstream.connections().1 <= 2).await;
        let growth = program.peak_memory() - base;
        assert!(growth < 2 * GROWTH, "it grew by {} KiB", growth >> 10);
        assert!(serves_others(program.address).await);
    }
}

/// A window that opens by a byte at a time: each byte goes out in a frame of its own, and that is all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_window_that_opens_byte_by_byte_is_served_byte_by_byte() {
    let counting = Counting::start().await;
    let program = program(&counting.upstream.url()).await;
    let base = program.peak_memory();
    let ours = [(setting::INITIAL_WINDOW_SIZE, 0)];
    let mut raw = Raw::client_with(program.address, &ours).await;
    raw.send(get(1, "/small")).await;
    let mut body = 0;
    raw.send(window_update(1, 1)).await;
    while let Some(frame) = raw.event().await {
        if frame.kind == kind::DATA {
            assert!(frame.payload.len() <= 1);
            body += frame.payload.len();
            if frame.ends_stream() {
                break;
            }
            raw.send(window_update(1, 1)).await;
        }
    }
    assert_eq!(body, 4000);
    assert!(program.peak_memory() - base < GROWTH);
}

/// A connection that says nothing any more costs little, whatever it was used for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_idle_connections_take_little_memory() {
    const CLIENTS: u64 = 1_000;
    room_for_descriptors(8_000);
    let counting = Counting::start().await;
    let program = program(&counting.upstream.url()).await;
    let base = program.memory();
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let mut raw = Raw::client(program.address).await;
        assert_eq!(raw.get(1, "/alive").await.text(), "alive");
        clients.push(raw);
    }
    let each = program.memory().saturating_sub(base) / CLIENTS;
    assert!(each < 40 << 10, "a connection takes {each} bytes");
}

/// Not even the preface, many times: nothing of them is kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_end_in_the_handshake_leave_nothing() {
    let counting = Counting::start().await;
    let program = program(&counting.upstream.url()).await;
    let (base, descriptors) = (program.peak_memory(), program.descriptors());
    for _ in 0..2_000 {
        let mut stream = TcpStream::connect(program.address).await.unwrap();
        stream.write_all(&PREFACE[..20]).await.unwrap();
        drop(stream);
        let mut stream = TcpStream::connect(program.address).await.unwrap();
        let bytes = [PREFACE, &settings(&[]), &get(1, "/hangs")].concat();
        stream.write_all(&bytes).await.unwrap();
        let _settings = soon(stream.read(&mut [0; 9])).await;
        socket2::SockRef::from(&stream)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
    }
    assert!(soon_enough(|| program.descriptors() <= descriptors + 8).await);
    let growth = program.peak_memory() - base;
    assert!(growth < GROWTH, "it grew by {} KiB", growth >> 10);
    assert!(serves_others(program.address).await);
}
