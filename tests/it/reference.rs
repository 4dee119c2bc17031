//! Random connections, valid, odd and damaged, cut anywhere and in pieces of any size: the router says
//! and passes on what the codecs alone make of them. `tests/codec` compares those with hyper.

use std::{collections::HashSet, future::Future};

use canary_router::proxy::error::Refusal;
use http::{Method, StatusCode};
use proptest::{
    collection::vec,
    prelude::*,
    sample::select,
    test_runner::{TestCaseResult, TestRunner},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::{Builder, Runtime},
};

use crate::support::{
    strict::{self, Kind, Message, Strict},
    *,
};

#[path = "../codec/generate.rs"]
mod generate;
#[path = "../codec/ours.rs"]
mod ours;

use ours::{Arriving, Content, End, Lines, NoResponse, Stop};

/// As the router's own.
const MAX_HEADER_BYTES: usize = 64 << 10;

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// Runs `check` with cases of `strategy`, one after the other; a failure is shrunk.
fn hold<S, F>(cases: u32, strategy: S, runtime: &Runtime, check: impl Fn(S::Value) -> F)
where
    S: Strategy,
    F: Future<Output = TestCaseResult>,
{
    let mut runner = TestRunner::new(generate::cases(cases));
    let held = runner.run(&strategy, |case| runtime.block_on(check(case)));
    held.unwrap_or_else(|error| panic!("{error}"));
}

/// Sends all of it, says that it was all, and reads until the other side ends.
async fn exchange(mut stream: TcpStream, mut arriving: Arriving<'_>) -> Vec<u8> {
    stream.set_nodelay(true).unwrap();
    let (mut read, mut write) = stream.split();
    let sending = async {
        while let Some(piece) = arriving.next() {
            if write.write_all(piece).await.is_err() {
                return;
            }
        }
        let _gone = write.shutdown().await;
    };
    let mut answer = Vec::new();
    let ((), _reset) = soon(async { tokio::join!(sending, read.read_to_end(&mut answer)) }).await;
    answer
}

/// The final responses to requests with these methods, perhaps one more, and whatever is behind the
/// last whole one.
fn finals<'a>(mut bytes: &'a [u8], methods: &[Method]) -> (Vec<Message>, &'a [u8]) {
    let mut finals: Vec<Message> = Vec::new();
    loop {
        let method = methods.get(finals.len()).unwrap_or(&Method::GET);
        let read = strict::read(bytes, Kind::Response(method.as_str()));
        // What is refused may have been a HEAD.
        let read = read.or_else(|not| match finals.len() == methods.len() {
            true => strict::read(bytes, Kind::Response("HEAD")),
            false => Err(not),
        });
        match read {
            Ok((message, length)) if length > 0 => {
                bytes = &bytes[length..];
                if message.status() >= 200 {
                    finals.push(message);
                }
            }
            _ => return (finals, bytes),
        }
    }
}

fn texts(messages: &[Message]) -> Vec<String> {
    let text = |message| format!("{message:?}");
    messages.iter().map(text).collect()
}

/// One connection of a client.
async fn connection(
    bytes: &[u8],
    sizes: &[usize],
    router: &Router,
    upstream: &Strict,
) -> TestCaseResult {
    let (requests, stop) = ours::requests(Arriving::new(bytes, &[]), MAX_HEADER_BYTES);
    let stream = soon(TcpStream::connect(router.address)).await.unwrap();
    let answer = exchange(stream, Arriving::new(bytes, sizes)).await;
    let seen = upstream.take();
    let methods: Vec<Method> = requests
        .iter()
        .map(|request| request.method.clone())
        .collect();
    let (answers, behind) = finals(&answer, &methods);
    let context = format!(
        "\"{}\" in {sizes:?}\nis {requests:?}, {stop:?}\nanswered \"{}\", seen {:?}",
        bytes.escape_ascii(),
        answer.escape_ascii(),
        texts(&seen),
    );
    prop_assert!(behind.is_empty(), "no whole answer: {}", context);
    prop_assert!(
        upstream.wrong().is_empty(),
        "{:?}: {}",
        upstream.wrong(),
        context
    );
    let (whole, broken): (Vec<_>, Vec<_>) = requests
        .iter()
        .partition(|request| request.content.end == End::Whole);

    // Who is behind us has got all that is whole, in order, and nothing else.
    prop_assert_eq!(seen.len(), whole.len(), "{}", &context);
    for (request, seen) in whole.iter().zip(&seen) {
        let target = &request.target[..];
        let line = [
            request.method.as_str().as_bytes(),
            b" ",
            target,
            b" HTTP/1.1",
        ]
        .concat();
        prop_assert_eq!(
            seen.start.escape_ascii().to_string(),
            line.escape_ascii().to_string()
        );
        prop_assert_eq!(&seen.body, &request.content.bytes, "{}", &context);
        prop_assert_eq!(
            allowed(&seen.trailers),
            allowed(&request.content.trailers),
            "{}",
            &context
        );
    }

    // The client has got an answer to each of them, and one more to what is wrong.
    let statuses: Vec<u16> = answers.iter().map(Message::status).collect();
    prop_assert!(statuses.len() >= whole.len(), "{}", context);
    let (to_whole, more) = statuses.split_at(whole.len());
    prop_assert!(to_whole.iter().all(|status| *status == 200), "{}", context);
    for (request, answer) in whole.iter().zip(&answers) {
        let echoed = match request.method == Method::HEAD {
            true => &b""[..],
            false => &request.target,
        };
        prop_assert_eq!(&answer.body, echoed, "{}", &context);
    }
    let is_cut = broken.iter().any(|request| request.content.end == End::Cut);
    let expected = match stop {
        Stop::Refused(Refusal::Method) => more == [405],
        Stop::Refused(refusal) => more == [refusal.status().as_u16()],
        // What was cut off may be answered, to nobody.
        Stop::Broken if is_cut => matches!(more, [] | [400]),
        Stop::Broken => more == [400],
        Stop::Ended | Stop::Closed => more.is_empty(),
    };
    prop_assert!(expected, "{}", context);
    Ok(())
}

/// Those that may be there.
fn allowed(trailers: &[(String, Vec<u8>)]) -> Vec<&(String, Vec<u8>)> {
    let allowed = trailers.iter().filter(|(name, _)| name.starts_with("x-"));
    allowed.collect()
}

#[test]
fn of_any_connection_the_whole_requests_pass_and_nothing_else() {
    let runtime = runtime();
    let upstream = runtime.block_on(Strict::start(200));
    let router = router_to(&upstream.url());
    let cases = (generate::requests(), generate::sizes());
    hold(1200, cases, &runtime, |(bytes, sizes)| {
        let (router, upstream) = (&router, &upstream);
        async move { connection(&bytes, &sizes, router, upstream).await }
    });
}

/// Requests that are valid by what they are made of, not by what our codecs make of them.
const VALID: &[(&str, &str)] = &[
    ("GET /N HTTP/1.1\r\nHost: h\r\n\r\n", ""),
    (
        "GET http://other/N HTTP/1.1\r\nHost: h\r\nConnection: X-Smuggle, Content-Length\r\nX-Smuggle: 1\r\n\r\n",
        "",
    ),
    ("HEAD /N HTTP/1.1\r\nhost: h\r\n\r\n", ""),
    ("GET /N HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", ""),
    (
        "\r\nDELETE /N HTTP/1.1\r\nHost:h\r\nContent-Length: 0\r\n\r\n",
        "",
    ),
    (
        "POST /N HTTP/1.1\r\nHost: h\r\nContent-Length: 40\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: smuggl\r\n\r\n",
        "GET /smuggled HTTP/1.1\r\nHost: smuggl\r\n\r\n",
    ),
    (
        "POST /N HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3;a=\"b\"\r\nx\r\n\r\n005\r\n0\r\n\r\n\r\n0\r\n\r\n",
        "x\r\n0\r\n\r\n",
    ),
    (
        "PUT /N HTTP/1.1\r\nTransfer-Encoding: Chunked\r\nHost: h\r\nTE: trailers\r\nConnection: TE\r\n\r\nA\r\n0123456789\r\n0\r\nX-Sum: 1\r\nContent-Length: 9\r\n\r\n",
        "0123456789",
    ),
];

/// Requests that are not, with `/bad` for a target where they have one, and what they are answered.
const INVALID: &[(&str, u16)] = &[
    ("GET /bad HTTP/1.1\r\n\r\n", 400),
    ("GET /bad HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n", 400),
    ("GET /bad HTTP/1.1\nHost: h\n\n", 400),
    ("GET /bad HTTP/1.1\r\nHost: h\r\nX : 1\r\n\r\n", 400),
    ("GET /bad HTTP/1.1\r\nHost: h\r\nX: 1\r\n 2\r\n\r\n", 400),
    ("GET /bad HTTP/1.1\r\nHost: h\r\nX: \0\r\n\r\n", 400),
    ("GET /bad  HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    ("GET /bad HTTP/2.0\r\nHost: h\r\n\r\n", 400),
    ("CONNECT h:1 HTTP/1.1\r\nHost: h\r\n\r\n", 405),
    ("TRACE /bad HTTP/1.1\r\nHost: h\r\n\r\n", 405),
    (
        "POST /bad HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    (
        "POST /bad HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n",
        400,
    ),
    (
        "POST /bad HTTP/1.1\r\nHost: h\r\nContent-Length: +0\r\n\r\n",
        400,
    ),
    (
        "POST /bad HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    (
        "POST /bad HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: identity\r\n\r\n",
        501,
    ),
    (
        "POST /bad HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    (
        "POST /bad HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nxy\r\n0\r\n\r\n",
        400,
    ),
    (
        "POST /bad HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0x0\r\n\r\n",
        400,
    ),
    (
        "POST /bad HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\n\r\n",
        400,
    ),
    (
        "POST /bad HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: x\r\nContent-Length: 1\r\n\r\nx",
        400,
    ),
];

#[test]
fn what_is_valid_before_the_first_invalid_is_answered_in_order_and_nothing_else_passes() {
    let runtime = runtime();
    let upstream = runtime.block_on(Strict::start(200));
    let router = router_to(&upstream.url());
    let invalid = prop_oneof![1 => Just(None), 3 => select(INVALID).prop_map(Some)];
    let sequence = vec(select(VALID), 0..6);
    // What stands behind may look like anything, even like a request.
    let behind = vec(select(VALID), 0..3);
    let cut = prop_oneof![2 => Just(None), 1 => any::<prop::sample::Index>().prop_map(Some)];
    let cases = (sequence, invalid, behind, cut, generate::sizes());
    hold(
        500,
        cases,
        &runtime,
        |(valid, invalid, behind, cut, sizes)| {
            let (router, upstream) = (&router, &upstream);
            async move {
                let mut bytes = Vec::new();
                let mut ends = Vec::new();
                for (i, (text, _)) in valid.iter().enumerate() {
                    bytes.extend_from_slice(text.replace("/N", &format!("/{i}")).as_bytes());
                    ends.push(bytes.len());
                }
                if let Some((text, _)) = invalid {
                    bytes.extend_from_slice(text.as_bytes());
                    ends.push(bytes.len());
                    for (text, _) in behind {
                        bytes.extend_from_slice(text.as_bytes());
                    }
                }
                if let Some(cut) = cut {
                    bytes.truncate(cut.index(bytes.len() + 1));
                }
                let whole = ends[..valid.len()]
                    .iter()
                    .filter(|end| **end <= bytes.len())
                    .count();
                let stream = soon(TcpStream::connect(router.address)).await.unwrap();
                let answer = exchange(stream, Arriving::new(&bytes, &sizes)).await;
                let seen = upstream.take();
                let context = format!(
                    "\"{}\" in {sizes:?}\nanswered \"{}\", seen {:?}",
                    bytes.escape_ascii(),
                    answer.escape_ascii(),
                    texts(&seen),
                );
                prop_assert!(
                    upstream.wrong().is_empty(),
                    "{:?}: {}",
                    upstream.wrong(),
                    context
                );
                prop_assert_eq!(seen.len(), whole, "{}", &context);
                for (i, (seen, (text, body))) in seen.iter().zip(&valid).enumerate() {
                    let method = text.trim_start().split(' ').next().unwrap();
                    let line = format!("{method} /{i} HTTP/1.1");
                    prop_assert_eq!(&seen.start, line.as_bytes(), "{}", &context);
                    prop_assert_eq!(&seen.body, body.as_bytes(), "{}", &context);
                    prop_assert!(seen.all("x-smuggle").is_empty(), "{}", context);
                }
                let methods: Vec<Method> = valid[..whole]
                    .iter()
                    .map(|(text, _)| {
                        text.trim_start()
                            .split(' ')
                            .next()
                            .unwrap()
                            .parse()
                            .unwrap()
                    })
                    .collect();
                let (answers, rest) = finals(&answer, &methods);
                prop_assert!(rest.is_empty(), "{}", context);
                let statuses: Vec<u16> = answers.iter().map(Message::status).collect();
                let mut expected = vec![200; whole];
                match invalid {
                    Some((_, status)) if *ends.last().unwrap() <= bytes.len() => {
                        expected.push(status)
                    }
                    // What is cut off may be known to be wrong already, and its body is known to be cut.
                    _ if statuses.len() == whole + 1 && statuses[whole] >= 400 => {
                        expected.push(statuses[whole])
                    }
                    _ => {}
                }
                prop_assert_eq!(statuses, expected, "{}", &context);
                Ok(())
            }
        },
    );
}

/// Plays upstream. It closes a connection only where its response has to end by that, so that one
/// that is of no more use would be used again if the router did not know.
struct Talker {
    listener: TcpListener,
    kept: Option<TcpStream>,
    /// Whether the router is to use that one again.
    reusable: bool,
}

impl Talker {
    /// Says these bytes in answer to the next request; whether that came on the connection kept.
    async fn answer(&mut self, mut arriving: Arriving<'_>) -> (TcpStream, bool) {
        let mut kept = self.kept.take();
        let (mut stream, reused) = loop {
            let mut byte = [0];
            let read = async {
                match &mut kept {
                    Some(stream) => stream.peek(&mut byte).await.unwrap_or(0),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                read = read => match (read, kept.take()) {
                    (1.., Some(stream)) => break (stream, true),
                    _ => kept = None,
                },
                accepted = self.listener.accept() => break (accepted.unwrap().0, false),
            }
        };
        stream.set_nodelay(true).unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        while let Some(piece) = arriving.next() {
            if stream.write_all(piece).await.is_err() {
                break;
            }
        }
        (stream, reused)
    }
}

/// What of the fields goes on to the client.
fn passed_on(fields: &Lines, without: &[&str]) -> Lines {
    let named: HashSet<String> = fields
        .iter()
        .filter(|(name, _)| name == "connection")
        .flat_map(|(_, value)| value.split(|byte| *byte == b','))
        .map(|token| String::from_utf8_lossy(token.trim_ascii()).to_ascii_lowercase())
        .filter(|name| name != "trailer")
        .collect();
    let passes = |name: &String| !named.contains(name) && !without.contains(&name.as_str());
    fields
        .iter()
        .filter(|(name, _)| passes(name))
        .cloned()
        .collect()
}

const OF_THE_CONNECTION: &[&str] = &[
    "connection",
    "transfer-encoding",
    "upgrade",
    "content-length",
    "date",
];

async fn response(
    method: &Method,
    bytes: &[u8],
    sizes: &[usize],
    router: &Router,
    talker: &tokio::sync::Mutex<Talker>,
) -> TestCaseResult {
    let mut talker = talker.lock().await;
    let was_reusable = talker.reusable;
    let expected = ours::response(method, Arriving::new(bytes, &[]));
    let ends = match &expected {
        Err(why) => *why == NoResponse::Cut,
        Ok(response) => response.until_close || response.content.end == End::Cut,
    };
    let request = format!("{method} / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n");
    let mut client = soon(TcpStream::connect(router.address)).await.unwrap();
    client.write_all(request.as_bytes()).await.unwrap();
    let (stream, was_reused) = soon(talker.answer(Arriving::new(bytes, sizes))).await;
    talker.reusable = expected.as_ref().is_ok_and(|response| response.reusable);
    talker.kept = Some(stream).filter(|_| !ends);
    let mut answer = Vec::new();
    let _reset = soon(client.read_to_end(&mut answer)).await;
    let context = format!(
        "{method} \"{}\" in {sizes:?}\nis {expected:?}\nanswered \"{}\"",
        bytes.escape_ascii(),
        answer.escape_ascii()
    );
    prop_assert_eq!(
        was_reused,
        was_reusable,
        "the connection before: {}",
        &context
    );
    let mut informational = Vec::new();
    let mut rest = &answer[..];
    let got = loop {
        match strict::read(rest, Kind::Response(method.as_str())) {
            Ok((message, length)) if message.status() < 200 => {
                informational.push(StatusCode::from_u16(message.status()).unwrap());
                rest = &rest[length..];
            }
            other => break other,
        }
    };
    let is_502 = matches!(&got, Ok((message, _)) if message.status() == 502);
    let expected = match expected {
        Err(NoResponse::Bad(_) | NoResponse::Unclear(_) | NoResponse::Cut) => {
            prop_assert!(is_502, "{}", context);
            return Ok(());
        }
        Ok(response) if response.status == StatusCode::SWITCHING_PROTOCOLS => {
            prop_assert!(is_502, "{}", context);
            return Ok(());
        }
        Ok(response) => response,
    };
    let mut early = expected.informational.clone();
    early.retain(|status| *status != StatusCode::CONTINUE);
    prop_assert_eq!(informational, early, "{}", &context);
    if expected.content.end != End::Whole {
        // What there was of it may have come, but not as all of it.
        prop_assert!(
            matches!(got, Err(strict::Not::Yet)),
            "{:?}: {}",
            got,
            context
        );
        return Ok(());
    }
    let Ok((message, length)) = got else {
        return Err(TestCaseError::fail(format!("{got:?}: {context}")));
    };
    prop_assert_eq!(length, rest.len(), "{}", &context);
    prop_assert_eq!(message.status(), expected.status.as_u16(), "{}", &context);
    let Content {
        bytes, trailers, ..
    } = &expected.content;
    prop_assert_eq!(&message.body, bytes, "{}", &context);
    prop_assert_eq!(
        allowed(&message.trailers),
        allowed(trailers),
        "{}",
        &context
    );
    prop_assert_eq!(
        passed_on(&message.fields, OF_THE_CONNECTION),
        passed_on(&expected.fields, OF_THE_CONNECTION),
        "{}",
        &context
    );
    Ok(())
}

#[test]
fn any_response_is_passed_on_as_it_is_or_is_502_or_cut() {
    let runtime = runtime();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let router = router_to(&format!("http://{}", listener.local_addr().unwrap()));
    let talker = tokio::sync::Mutex::new(Talker {
        listener,
        kept: None,
        reusable: false,
    });
    let methods = select(&[Method::GET, Method::GET, Method::HEAD][..]);
    let cases = (methods, generate::responses(), generate::sizes());
    hold(1200, cases, &runtime, |(method, bytes, sizes)| {
        let (router, talker) = (&router, &talker);
        async move { response(&method, &bytes, &sizes, router, talker).await }
    });
}
