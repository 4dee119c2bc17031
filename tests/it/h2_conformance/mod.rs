//! RFC 9113 and RFC 7541 to the letter: what a peer may send is accepted, what it may not is answered
//! with the error that the RFC says. The cases are those of h2spec, with its numbers and its conditions;
//! where it is content with any response head, it has to be that of a 200 here.

mod frames;
mod generic;
mod messages;
mod streams;

use std::{net::SocketAddr, time::Duration};

use serde_json::json;
use tokio::time::timeout;

use crate::support::{
    h2raw::{self, code::*, *},
    hpack::{Decoder, block, indexed, table_size},
    *,
};

/// For how long something is waited for that may never come.
const PATIENCE: Duration = Duration::from_secs(5);

/// What happens in a case.
enum Step {
    Send(Vec<u8>),
    Until(Until),
}

use Step::{Send, Until as Wait};

/// What has to come.
#[derive(Debug, Clone, Copy)]
enum Until {
    /// SETTINGS before anything else.
    Settings,
    /// The acknowledgement of SETTINGS.
    SettingsAck,
    /// The head of a 200.
    Head,
    /// The next DATA has that many bytes.
    Data(u32),
    AnyData,
    /// END_STREAM.
    StreamEnd,
    /// An answer to a PING with this payload, and to no other.
    Pong(&'static [u8; 8]),
    /// The same, or the end.
    PongOrEnd(&'static [u8; 8]),
    /// RST_STREAM or GOAWAY with one of these codes, or the end.
    StreamError(&'static [u32]),
    /// GOAWAY with one of these codes, or the end.
    ConnectionError(&'static [u32]),
    /// GOAWAY with this code.
    GoAway(u32),
    /// RST_STREAM of the first stream with this code.
    Reset(u32),
    /// The end of the connection.
    End,
}

struct Case {
    /// Its number with h2spec.
    number: String,
    name: &'static str,
    /// Whether it begins with prefaces and settings, acknowledged.
    shakes_hands: bool,
    steps: Vec<Step>,
}

/// What the other side allows, on which some cases hang.
#[derive(Debug, Clone, Copy)]
struct Allows {
    streams: u32,
    frame: usize,
    table: usize,
}

/// Does it; why it fails.
async fn run(address: SocketAddr, case: Case) -> Result<(), String> {
    let mut raw = match case.shakes_hands {
        true => Raw::client(address).await,
        false => Raw::connect(address).await,
    };
    let mut decoder = Decoder::default();
    for step in case.steps {
        match step {
            Send(bytes) => {
                raw.sends(bytes).await;
            }
            Wait(until) => wait(&mut raw, &mut decoder, until)
                .await
                .map_err(|why| format!("{} {}: {why}", case.number, case.name))?,
        }
    }
    Ok(())
}

async fn wait(raw: &mut Raw, decoder: &mut Decoder, until: Until) -> Result<(), String> {
    let mut came = Vec::new();
    loop {
        let Ok(frame) = timeout(PATIENCE, raw.next()).await else {
            return Err(format!(
                "nothing more, instead of {until:?}, after {came:?}"
            ));
        };
        match verdict(until, frame.as_ref(), decoder) {
            Some(true) => return Ok(()),
            Some(false) => return Err(format!("{frame:?} instead of {until:?}, after {came:?}")),
            None => came.push(frame.expect("the end is final")),
        }
    }
}

/// Whether that is it; `None` if it may still come.
fn verdict(until: Until, frame: Option<&Frame>, decoder: &mut Decoder) -> Option<bool> {
    let ended = || {
        matches!(
            until,
            Until::End | Until::StreamError(_) | Until::ConnectionError(_) | Until::PongOrEnd(_)
        )
    };
    let Some(frame) = frame else {
        return Some(ended());
    };
    let is = |kind, ack| frame.kind == kind && frame.has(flag::ACK) == ack;
    match until {
        Until::Settings => Some(is(kind::SETTINGS, false)),
        Until::SettingsAck => is(kind::SETTINGS, true).then_some(true),
        Until::Head => match frame.kind {
            kind::HEADERS => {
                let fields = decoder.decode(&frame.payload).ok()?;
                Some(values(&fields, ":status") == ["200"])
            }
            kind::RST_STREAM | kind::GOAWAY => Some(false),
            _ => None,
        },
        Until::Data(length) if frame.kind == kind::DATA => {
            Some(frame.payload.len() as u32 == length)
        }
        Until::AnyData if frame.kind == kind::DATA => Some(true),
        Until::StreamEnd => frame.ends_stream().then_some(true),
        Until::Pong(payload) | Until::PongOrEnd(payload) if frame.kind == kind::PING => {
            Some(frame.has(flag::ACK) && frame.payload == payload)
        }
        Until::StreamError(codes)
            if matches!(frame.kind, kind::RST_STREAM | kind::GOAWAY)
                && codes.contains(&frame.code()?) =>
        {
            Some(true)
        }
        Until::ConnectionError(codes)
            if frame.kind == kind::GOAWAY && codes.contains(&frame.code()?) =>
        {
            Some(true)
        }
        Until::GoAway(code) if frame.kind == kind::GOAWAY => Some(frame.code() == Some(code)),
        Until::Reset(code) if frame.kind == kind::RST_STREAM => {
            Some(frame.stream == 1 && frame.code() == Some(code))
        }
        _ => None,
    }
}

// ---- what is sent in more than one case

const NOTHING: &[u8; 8] = &[0; 8];

fn ask(method: &'static str) -> Vec<u8> {
    block(pseudo(method, "/"))
}

/// A GET on stream 1, whole, with this block.
fn whole(block: impl AsRef<[u8]>) -> Step {
    Send(headers(1, flag::ALL, block))
}

/// A GET, and `behind` in the same block.
fn with(behind: &[u8]) -> Step {
    whole([&ask("GET"), behind].concat())
}

/// A GET with one more field.
fn field(name: &str, value: &str) -> Step {
    with(&block([(name, value)]))
}

/// A field of 4,000 bytes.
fn dummy() -> Vec<u8> {
    block([("x-dummy0", "x".repeat(4000))])
}

fn set(id: u16, value: u32) -> Step {
    Send(settings(&[(id, value)]))
}

const STREAM_CLOSED_HERE: Step = Wait(Until::StreamError(&[STREAM_CLOSED]));
const MALFORMED: Step = Wait(Until::StreamError(&[PROTOCOL_ERROR]));
const PROTOCOL: Step = Wait(Until::ConnectionError(&[PROTOCOL_ERROR]));
const COMPRESSION: Step = Wait(Until::ConnectionError(&[COMPRESSION_ERROR]));
const ANSWERED: Step = Wait(Until::Head);

/// The cases of one section.
fn section(
    cases: &mut Vec<Case>,
    section: &str,
    of: impl IntoIterator<Item = (&'static str, Vec<Step>)>,
) {
    for (i, (name, steps)) in of.into_iter().enumerate() {
        cases.push(Case {
            number: format!("{section}/{}", i + 1),
            name,
            shakes_hands: !matches!(section, "generic/1" | "http2/3.5"),
            steps,
        });
    }
}

fn cases(allows: Allows) -> Vec<Case> {
    let mut cases = Vec::new();
    generic::generic(&mut cases);
    streams::frames_and_streams(&mut cases, allows);
    frames::definitions(&mut cases);
    messages::messages(&mut cases);
    messages::compression(&mut cases, allows);
    cases
}

/// Runs all of them; which fail, and why.
async fn failures(address: SocketAddr) -> Vec<String> {
    let raw = Raw::client(address).await;
    let allows = Allows {
        streams: raw
            .setting(setting::MAX_CONCURRENT_STREAMS)
            .expect("a limit of streams"),
        frame: raw.setting(setting::MAX_FRAME_SIZE).unwrap_or(16_384) as usize,
        table: raw.setting(setting::HEADER_TABLE_SIZE).unwrap_or(4096) as usize,
    };
    let cases = cases(allows);
    assert_eq!(cases.len(), 148);
    let all = together(cases.into_iter().map(move |case| run(address, case))).await;
    all.into_iter().filter_map(Result::err).collect()
}

/// A service with a body of some KB.
async fn service() -> Upstream {
    Upstream::start(|request| match request.method() {
        "HEAD" => vec![crate::support::Step::Write(
            b"HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n".to_vec(),
        )],
        _ => answer(200, "", &"x".repeat(5000)),
    })
    .await
}

/// So long that no error can be for being late.
fn patient() -> serde_json::Value {
    json!({
        "router-server": {"read-timeout": "1h", "write-timeout": "1h", "idle-timeout": "1h"},
        "proxy-client": {"to-main-and-canary": {"timeout": "1h"}}
    })
}

#[tokio::test]
async fn every_case_of_h2spec_passes() {
    let upstream = service().await;
    let router = router_with(&upstream.url(), patient());
    let failures = failures(router.address).await;
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    // And it is well.
    let mut raw = Raw::client(router.address).await;
    assert_eq!(raw.get(1, "/").await.status, 200);
}
