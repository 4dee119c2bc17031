//! Where a request ends: whatever is tried, an upstream never sees a request that was not sent as
//! one, and never half a body as a whole (RFC 9112 sections 6 and 7).
//!
//! Requests are made from tables, in all combinations, with another request behind each. The service
//! is one that accepts nothing but proper HTTP/1.1.

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use serde_json::json;

use crate::support::{
    strict::{Message, Strict, exchange, responses},
    *,
};

/// A header, as one or several lines.
struct Lines(Vec<u8>, Is);

/// How a part of a request is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Is {
    /// Not there, or something else that must be ignored.
    Nothing,
    Good,
    /// May be refused, and has only one meaning if it is not.
    Odd,
    Bad,
}

/// A request that an upstream may get: target and body.
type Request = (&'static str, Vec<u8>);

struct Case {
    bytes: Vec<u8>,
    /// What an upstream gets of it, with whether the rest is refused; `None`: nothing.
    taken: Option<(Vec<Request>, bool)>,
    may_be_refused: bool,
}

const TARGETS: [&str; 4] = ["/front", "/inner", "/next", "/last"];
const INNER: &str = "GET /inner?ID HTTP/1.1\r\nHost: h\r\n\r\n";
const NEXT: &str = "GET /next?ID HTTP/1.1\r\nHost: h\r\n\r\n";
const LAST: &str = "GET /last?ID HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";

fn alone(target: &'static str) -> Request {
    (target, Vec::new())
}

impl Case {
    /// A POST with these header lines and `payload`, which is read like that, and two requests more.
    fn post(lines: &[u8], payload: &str, read: Option<(Vec<Request>, bool)>, odd: bool) -> Case {
        let start = "POST /front?ID HTTP/1.1\r\nHost: h\r\n";
        let taken = read.map(|(mut requests, refused)| {
            if !refused {
                requests.extend([alone("/next"), alone("/last")]);
            }
            (requests, refused)
        });
        Case {
            bytes: [
                start.as_bytes(),
                lines,
                b"\r\n",
                payload.as_bytes(),
                NEXT.as_bytes(),
                LAST.as_bytes(),
            ]
            .concat(),
            taken,
            may_be_refused: odd,
        }
    }

    /// What is wrong with this answer, and with what the services saw.
    fn judge(&self, answer: &[u8], seen: &[Vec<Request>]) -> Result<(), String> {
        let answers = responses(answer, &[])?;
        let statuses: Vec<u16> = answers.iter().map(Message::status).collect();
        let refusal = |last: Option<&Message>| {
            last.is_some_and(|last| {
                matches!(last.status(), 400 | 431 | 501) && last.all("connection") == [b"close"]
            })
        };
        let refused =
            statuses.len() == 1 && refusal(answers.last()) && seen.iter().all(Vec::is_empty);
        let taken = self.taken.as_ref().is_some_and(|(requests, refused)| {
            let (good, rest) = answers.split_at(requests.len().min(answers.len()));
            good.len() == requests.len()
                && good.iter().all(|good| good.status() == 200)
                && rest.len() == usize::from(*refused)
                && (!refused || refusal(rest.last()))
                && seen.iter().all(|seen| seen == requests)
        });
        match (refused, taken) {
            (_, true) => Ok(()),
            (true, _) if self.taken.is_none() || self.may_be_refused => Ok(()),
            _ => {
                let show =
                    |(target, body): &Request| format!("{target} {:.99}", body.escape_ascii());
                let seen = seen
                    .iter()
                    .map(|seen| seen.iter().map(show).collect::<Vec<_>>());
                let seen = seen.collect::<Vec<_>>();
                Err(format!("answered {statuses:?}, services saw {seen:?}"))
            }
        }
    }
}

/// Sends each, `piece` bytes at a time, to routers without and with a sidecar.
async fn hold(mut cases: Vec<Case>, piece: usize) {
    for (id, case) in cases.iter_mut().enumerate() {
        sign(&mut case.bytes, id);
        let requests = case.taken.iter_mut().flat_map(|(requests, _)| requests);
        requests.for_each(|(_, body)| sign(body, id));
    }
    let cases = Arc::new(cases);
    let mut wrong = Vec::new();
    for with_sidecar in [false, true] {
        let upstream = Strict::start(200).await;
        let sidecar = Strict::start(204).await;
        let mut config = json!({"router-server": {"read-timeout": "2s", "idle-timeout": "2s"}});
        if with_sidecar {
            config["sidecar-url"] = sidecar.url().into();
        }
        let router = router_with(&upstream.url(), config);
        // No two of a batch have the same name.
        for batch in (0..cases.len()).collect::<Vec<_>>().chunks(26 * 26) {
            let answers = in_parallel(router.address, &cases, batch, piece).await;
            let (by_upstream, by_sidecar) = (upstream.take(), sidecar.take());
            let seen = [by_name(&by_upstream), by_name(&by_sidecar)];
            let seen = &seen[..1 + usize::from(with_sidecar)];
            for (id, answer) in batch.iter().zip(answers) {
                let of_this = |seen: &HashMap<&[u8], Vec<Request>>| {
                    seen.get(&name(*id)[..]).cloned().unwrap_or_default()
                };
                let seen: Vec<Vec<Request>> = seen.iter().map(of_this).collect();
                if let Err(why) = cases[*id].judge(&answer, &seen) {
                    let sent = cases[*id].bytes.escape_ascii().to_string();
                    wrong.push(format!("sidecar {with_sidecar}: {sent:.500}\n    {why}"));
                }
            }
        }
        wrong.extend(upstream.wrong().into_iter().chain(sidecar.wrong()));
    }
    let count = wrong.len();
    assert!(
        wrong.is_empty(),
        "{count} of {}:\n{}",
        2 * cases.len(),
        wrong.join("\n")
    );
}

/// Two letters, which come back after 26 * 26.
fn name(id: usize) -> [u8; 2] {
    [b'a' + (id / 26 % 26) as u8, b'a' + (id % 26) as u8]
}

/// Puts the name where `ID` is: it is as long, so no length changes.
fn sign(bytes: &mut [u8], id: usize) {
    for at in 0..bytes.len().saturating_sub(2) {
        if bytes[at..].starts_with(b"?ID") {
            bytes[at + 1..at + 3].copy_from_slice(&name(id));
        }
    }
}

async fn in_parallel(
    router: SocketAddr,
    cases: &Arc<Vec<Case>>,
    batch: &[usize],
    piece: usize,
) -> Vec<Vec<u8>> {
    let mut answers = Vec::new();
    for some in batch.chunks(16) {
        let handles: Vec<_> = some
            .iter()
            .map(|&id| {
                let cases = cases.clone();
                tokio::spawn(async move { exchange(router, &cases[id].bytes, piece).await })
            })
            .collect();
        for handle in handles {
            answers.push(handle.await.unwrap());
        }
    }
    answers
}

/// Requests by the name behind their target.
fn by_name(seen: &[Message]) -> HashMap<&[u8], Vec<Request>> {
    let mut requests: HashMap<&[u8], Vec<Request>> = HashMap::new();
    for seen in seen {
        let (target, name) = seen.target().split_at(seen.target().len() - 2);
        let is = |known: &&&str| target.strip_suffix(b"?") == Some(known.as_bytes());
        let target = *TARGETS.iter().find(is).expect("a target that was sent");
        requests
            .entry(name)
            .or_default()
            .push((target, seen.body.clone()));
    }
    requests
}

// ---- heads

/// `Content-Length: n`, in every way to write it.
fn lengths(n: usize) -> Vec<Lines> {
    let overflown = (1_u128 << 64) + n as u128;
    let texts = [
        ("".to_owned(), Is::Nothing),
        (format!("Content-Length: {n}\r\n"), Is::Good),
        (format!("content-length:{n}\r\n"), Is::Good),
        (format!("CONTENT-LENGTH: \t {n}\t \r\n"), Is::Good),
        (format!("Content-Length: 00{n}\r\n"), Is::Odd),
        (format!("Content_Length: {n}\r\n"), Is::Nothing),
        (format!("X-Content-Length: {n}\r\n"), Is::Nothing),
        (format!("Content-Length: +{n}\r\n"), Is::Bad),
        (format!("Content-Length: -{n}\r\n"), Is::Bad),
        ("Content-Length:\r\n".into(), Is::Bad),
        ("Content-Length: \r\n".into(), Is::Bad),
        (format!("Content-Length: {n} {n}\r\n"), Is::Bad),
        (format!("Content-Length: {n},{n}\r\n"), Is::Bad),
        (format!("Content-Length: {n}, {n}\r\n"), Is::Bad),
        (format!("Content-Length: {n},\r\n"), Is::Bad),
        (format!("Content-Length: ,{n}\r\n"), Is::Bad),
        (format!("Content-Length: {n};\r\n"), Is::Bad),
        (format!("Content-Length: 0x{n:x}\r\n"), Is::Bad),
        (format!("Content-Length: {n}.0\r\n"), Is::Bad),
        (format!("Content-Length: {n}e0\r\n"), Is::Bad),
        (format!("Content-Length: \"{n}\"\r\n"), Is::Bad),
        (format!("Content-Length: {n}_\r\n"), Is::Bad),
        (format!("Content-Length: {n}\x0b\r\n"), Is::Bad),
        (format!("Content-Length: \x0c{n}\r\n"), Is::Bad),
        (format!("Content-Length: {n}\0\r\n"), Is::Bad),
        (format!("Content-Length: \u{a0}{n}\r\n"), Is::Bad),
        (format!("Content-Length: {overflown}\r\n"), Is::Bad),
        (format!("Content-Length: {}\r\n", "9".repeat(40)), Is::Bad),
        (
            format!("Content-Length: {n}\r\nContent-Length: {n}\r\n"),
            Is::Bad,
        ),
        (
            format!("Content-Length: {n}\r\nContent-Length: 0\r\n"),
            Is::Bad,
        ),
        (
            format!("Content-Length: 0\r\nContent-Length: {n}\r\n"),
            Is::Bad,
        ),
        (
            format!("Content-Length: {n}\r\nA: b\r\ncontent-length: {n}\r\n"),
            Is::Bad,
        ),
        (
            format!("Content-Length:\r\nContent-Length: {n}\r\n"),
            Is::Bad,
        ),
        (format!("Content-Length : {n}\r\n"), Is::Bad),
        (format!("Content-Length\t: {n}\r\n"), Is::Bad),
        (format!("Content-Length\0: {n}\r\n"), Is::Bad),
        (format!("Content-Length\x0b: {n}\r\n"), Is::Bad),
        (format!("Content-Length\r: {n}\r\n"), Is::Bad),
        (format!("Content-Length\n: {n}\r\n"), Is::Bad),
        (format!("Content-Length {n}\r\n"), Is::Bad),
        (format!(" Content-Length: {n}\r\n"), Is::Bad),
        (format!("\tContent-Length: {n}\r\n"), Is::Bad),
        (format!("Content-Length:\r\n {n}\r\n"), Is::Bad),
        (format!("Content-Length: {n}\r\n 0\r\n"), Is::Bad),
        (format!("Content-Length: {n}\r\n \r\n"), Is::Bad),
        (format!("Content-Length: {n}\n"), Is::Bad),
        (format!("A: b\nContent-Length: {n}\r\n"), Is::Bad),
        (format!("A: b\rContent-Length: {n}\r\n"), Is::Bad),
        (format!("Content-Length: {n}\rA: b\r\n"), Is::Bad),
        (format!("Content-Length: {n}\r\r\n"), Is::Bad),
        (format!("Content-\r\nLength: {n}\r\n"), Is::Bad),
    ];
    lines(texts)
}

/// `Transfer-Encoding: chunked`, in every way to write it.
fn codings() -> Vec<Lines> {
    let texts = [
        ("", Is::Nothing),
        ("Transfer-Encoding: chunked\r\n", Is::Good),
        ("transfer-encoding:chunked\r\n", Is::Good),
        ("TRANSFER-ENCODING: \t CHUNKED\t \r\n", Is::Good),
        ("Transfer-Encoding: cHuNkEd\r\n", Is::Good),
        ("Transfer-Encoding: chunked,\r\n", Is::Odd),
        ("Transfer-Encoding: , chunked\r\n", Is::Odd),
        ("Transfer_Encoding: chunked\r\n", Is::Nothing),
        ("X-Transfer-Encoding: chunked\r\n", Is::Nothing),
        ("TE: chunked\r\n", Is::Nothing),
        ("Transfer-Encoding:\r\n", Is::Bad),
        ("Transfer-Encoding: ,\r\n", Is::Bad),
        ("Transfer-Encoding: identity\r\n", Is::Bad),
        ("Transfer-Encoding: gzip\r\n", Is::Bad),
        ("Transfer-Encoding: xchunked\r\n", Is::Bad),
        ("Transfer-Encoding: chunkedx\r\n", Is::Bad),
        ("Transfer-Encoding: chun ked\r\n", Is::Bad),
        ("Transfer-Encoding: chunked chunked\r\n", Is::Bad),
        ("Transfer-Encoding: chunked, chunked\r\n", Is::Bad),
        ("Transfer-Encoding: gzip, chunked\r\n", Is::Bad),
        ("Transfer-Encoding: gzip,chunked\r\n", Is::Bad),
        ("Transfer-Encoding: chunked, gzip\r\n", Is::Bad),
        ("Transfer-Encoding: chunked, identity\r\n", Is::Bad),
        ("Transfer-Encoding: identity, chunked\r\n", Is::Bad),
        ("Transfer-Encoding: chunked;q=1\r\n", Is::Bad),
        ("Transfer-Encoding: chunked;\r\n", Is::Bad),
        ("Transfer-Encoding: \"chunked\"\r\n", Is::Bad),
        ("Transfer-Encoding: 'chunked'\r\n", Is::Bad),
        ("Transfer-Encoding: chunked\x0b\r\n", Is::Bad),
        ("Transfer-Encoding: \x0bchunked\r\n", Is::Bad),
        ("Transfer-Encoding: \x0cchunked\r\n", Is::Bad),
        ("Transfer-Encoding: chunked\0\r\n", Is::Bad),
        ("Transfer-Encoding: \0chunked\r\n", Is::Bad),
        ("Transfer-Encoding: \u{a0}chunked\r\n", Is::Bad),
        // The Kelvin sign is a k to who folds case as Unicode does.
        ("Transfer-Encoding: chun\u{212a}ed\r\n", Is::Bad),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            Is::Bad,
        ),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
            Is::Bad,
        ),
        (
            "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n",
            Is::Bad,
        ),
        (
            "Transfer-Encoding: gzip\r\nA: b\r\ntransfer-encoding: chunked\r\n",
            Is::Bad,
        ),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n",
            Is::Bad,
        ),
        (
            "Transfer-Encoding:\r\nTransfer-Encoding: chunked\r\n",
            Is::Bad,
        ),
        ("Transfer-Encoding : chunked\r\n", Is::Bad),
        ("Transfer-Encoding\t: chunked\r\n", Is::Bad),
        ("Transfer-Encoding\0: chunked\r\n", Is::Bad),
        ("Transfer-Encoding\x0b: chunked\r\n", Is::Bad),
        ("Transfer-Encoding\r: chunked\r\n", Is::Bad),
        ("Transfer-Encoding\n: chunked\r\n", Is::Bad),
        ("Transfer-Encoding chunked\r\n", Is::Bad),
        (" Transfer-Encoding: chunked\r\n", Is::Bad),
        ("\tTransfer-Encoding: chunked\r\n", Is::Bad),
        ("Transfer-Encoding:\r\n chunked\r\n", Is::Bad),
        ("Transfer-Encoding: chunked\r\n , identity\r\n", Is::Bad),
        ("Transfer-Encoding: chunked\r\n \r\n", Is::Bad),
        ("Transfer-Encoding: chunked\n", Is::Bad),
        ("A: b\nTransfer-Encoding: chunked\r\n", Is::Bad),
        ("A: b\rTransfer-Encoding: chunked\r\n", Is::Bad),
        ("Transfer-Encoding: chunked\rA: b\r\n", Is::Bad),
        ("Transfer-Encoding: chunked\r\r\n", Is::Bad),
        ("Transfer-\r\nEncoding: chunked\r\n", Is::Bad),
    ];
    lines(texts)
}

fn lines<T: Into<String>>(texts: impl IntoIterator<Item = (T, Is)>) -> Vec<Lines> {
    let bytes = |text: String| match text.split_once('\u{a0}') {
        // One byte of Latin-1 that some take for a space.
        Some((before, after)) => [before.as_bytes(), b"\xa0", after.as_bytes()].concat(),
        None => text.into_bytes(),
    };
    texts
        .into_iter()
        .map(|(text, is)| Lines(bytes(text.into()), is))
        .collect()
}

/// A payload; the length to say of it; what it is when the length, the chunks or nothing counts. Then
/// the rest comes as requests, or is refused.
type Payload = (String, usize, Read, Read, Read);
type Read = (Vec<Request>, bool);

fn payloads() -> [Payload; 3] {
    let front = |body: &str, more: &[Request], refused| {
        let requests = [&[("/front", body.as_bytes().to_vec())], more].concat();
        (requests, refused)
    };
    let inner = || [alone("/inner")];
    let chunk = "5\r\n(xyz)\r\n0\r\n\r\n".to_owned();
    let hidden_by_length = format!("0\r\n\r\n{INNER}");
    let hidden_by_chunk = format!("{:x}\r\n{INNER}\r\n0\r\n\r\n", INNER.len());
    [
        (
            chunk.clone(),
            chunk.len(),
            front(&chunk, &[], false),
            front("(xyz)", &[], false),
            front("", &[], true),
        ),
        (
            hidden_by_length.clone(),
            hidden_by_length.len(),
            front(&hidden_by_length, &[], false),
            front("", &inner(), false),
            front("", &[], true),
        ),
        (
            hidden_by_chunk,
            4,
            front(&format!("{:x}\r\n", INNER.len()), &inner(), true),
            front(INNER, &[], false),
            front("", &[], true),
        ),
    ]
}

/// All of `lengths` with those of `codings` that are not `Bad`, and the other way round, in either
/// order, around each payload.
fn heads() -> Vec<Case> {
    let mut cases = Vec::new();
    for (payload, n, by_length, by_chunks, by_neither) in payloads() {
        // The bodies have names in them that are filled in later.
        for length in &lengths(n) {
            for coding in &codings() {
                let read = match (length.1, coding.1) {
                    (Is::Bad, Is::Bad) => continue,
                    (Is::Bad, _) | (_, Is::Bad) => None,
                    (Is::Nothing, Is::Nothing) => Some(&by_neither),
                    (_, Is::Nothing) => Some(&by_length),
                    (Is::Nothing, _) => Some(&by_chunks),
                    // Both.
                    _ => None,
                };
                let odd = length.1 == Is::Odd || coding.1 == Is::Odd;
                let lines = match cases.len() % 2 {
                    0 => [&length.0[..], &coding.0].concat(),
                    _ => [&coding.0[..], &length.0].concat(),
                };
                cases.push(Case::post(&lines, &payload, read.cloned(), odd));
            }
        }
    }
    cases
}

#[tokio::test]
async fn a_head_that_can_be_read_in_two_ways_is_refused_and_nothing_is_smuggled() {
    hold(heads(), usize::MAX).await;
}

/// The same must not depend on how TCP cuts it.
#[tokio::test]
async fn a_head_that_comes_byte_by_byte_is_read_like_any_other() {
    let every_17th = heads().into_iter().step_by(17).collect();
    hold(every_17th, 1).await;
}

// ---- chunks

/// Parts of a chunked body; every combination of a variant with the usual of the others.
fn chunked_bodies() -> Vec<Case> {
    use Is::{Bad, Good, Odd};
    let long = format!("5;{}", "x".repeat(1000));
    let sizes = [
        ("5", Good),
        ("05", Good),
        ("5;a", Good),
        ("5;a=b", Good),
        ("5;a=\"b;c\"", Good),
        ("5 ; a = b", Odd),
        ("5;a=b;c", Good),
        (&long, Good),
        ("5 ", Odd),
        ("5\t", Odd),
        ("5;", Odd),
        ("5;\u{e4}", Odd),
        ("0000000000000005", Odd),
        ("00000000000000005", Bad),
        ("10000000000000005", Bad),
        ("FFFFFFFFFFFFFFFFF", Bad),
        ("100000005x", Bad),
        (" 5", Bad),
        ("\t5", Bad),
        ("+5", Bad),
        ("-5", Bad),
        ("0x5", Bad),
        ("0X5", Bad),
        ("x5", Bad),
        ("5h", Bad),
        ("5_", Bad),
        ("5,", Bad),
        ("5.", Bad),
        ("5 5", Bad),
        ("5\x0b", Bad),
        ("5\x0c", Bad),
        ("5\0", Bad),
        ("\x005", Bad),
        ("\"5\"", Bad),
        ("", Bad),
        (";a", Bad),
        ("g", Bad),
        ("\u{661}", Bad),
        ("5;a\nb", Bad),
        ("5;a\rb", Bad),
        ("5;a=\"\n\"", Bad),
        ("5;a=\"\r\"", Bad),
        ("5;a\0b", Odd),
        ("5\r", Bad),
        ("5;a\r", Bad),
        ("5\n", Bad),
    ];
    let size_ends = [
        ("\r\n", Good),
        ("\n", Bad),
        ("\r", Bad),
        ("\n\r", Bad),
        ("", Bad),
    ];
    let datas = [("(xyz)", Good), ("(xy)", Bad), ("(xyz))", Bad), ("", Bad)];
    let data_ends = [
        ("\r\n", Good),
        ("\n", Bad),
        ("\r", Bad),
        ("\n\r", Bad),
        ("\r\r\n", Bad),
        ("\r\n\r\n", Bad),
        ("\0\r\n", Bad),
        ("  ", Bad),
        ("", Bad),
    ];
    let lasts = [
        ("0\r\n", Good),
        ("000\r\n", Odd),
        ("0;a=b\r\n", Odd),
        ("0\n", Bad),
        ("0\r", Bad),
        ("0\r\r\n", Bad),
        ("-0\r\n", Bad),
        ("+0\r\n", Bad),
        ("0x0\r\n", Bad),
        (" 0\r\n", Bad),
        ("0;a\nb\r\n", Bad),
        ("00000000000000000\r\n", Bad),
        ("10000000000000000\r\n", Bad),
        ("\r\n", Bad),
        ("", Bad),
    ];
    let trailers = [
        ("\r\n", Good),
        ("X-Sum: 1\r\n\r\n", Good),
        ("X-Sum: 1\r\nx-sum:2\r\n\r\n", Good),
        ("Content-Length: 999\r\n\r\n", Odd),
        ("Transfer-Encoding: identity\r\n\r\n", Odd),
        ("Host: other\r\n\r\n", Odd),
        ("Connection: close\r\n\r\n", Odd),
        ("\n", Bad),
        ("\r\r\n", Bad),
        ("X-Sum: 1\n\r\n", Bad),
        ("X-Sum: 1\r\n\n", Bad),
        ("X-Sum: 1\n\n", Bad),
        ("X-Sum : 1\r\n\r\n", Bad),
        (" X-Sum: 1\r\n\r\n", Bad),
        ("X-Sum: 1\r\n 2\r\n\r\n", Bad),
        ("X-Sum: a\rb\r\n\r\n", Bad),
        ("X-Sum: a\0b\r\n\r\n", Bad),
        ("X\0: 1\r\n\r\n", Bad),
        (": 1\r\n\r\n", Bad),
        ("X-Sum\r\n\r\n", Bad),
        ("X Sum: 1\r\n\r\n", Bad),
        ("X(: 1\r\n\r\n", Bad),
    ];
    let columns: [&[(&str, Is)]; 6] = [&sizes, &size_ends, &datas, &data_ends, &lasts, &trailers];
    let mut cases = Vec::new();
    let mut add = |row: [(&str, Is); 6]| {
        let [size, size_end, data, data_end, last, trailers] = row.map(|(text, _)| text);
        let chunk = format!("{size}{size_end}{data}{data_end}");
        let bad = row.iter().any(|(_, is)| *is == Bad);
        let odd = row.iter().any(|(_, is)| *is == Odd);
        // Alone, and behind a good chunk.
        for before in ["", "2\r\nab\r\n"] {
            let payload = format!("{before}{chunk}{last}{trailers}");
            let body = match before {
                "" => "(xyz)",
                _ => "ab(xyz)",
            };
            let read = (!bad).then(|| (vec![("/front", body.as_bytes().to_vec())], false));
            cases.push(Case::post(
                b"Transfer-Encoding: chunked\r\n",
                &payload,
                read,
                odd,
            ));
        }
    };
    let usual = columns.map(|column| column[0]);
    add(usual);
    for (i, column) in columns.iter().enumerate() {
        for variant in &column[1..] {
            let mut row = usual;
            row[i] = *variant;
            add(row);
            // And with what is no more than odd elsewhere.
            if i != 0 && variant.1 == Bad {
                row[0] = sizes[3];
                add(row);
            }
        }
    }
    cases
}

#[tokio::test]
async fn a_chunked_body_that_is_not_well_formed_reaches_nobody() {
    hold(chunked_bodies(), usize::MAX).await;
}

#[tokio::test]
async fn a_chunked_body_that_comes_byte_by_byte_is_read_like_any_other() {
    hold(chunked_bodies(), 1).await;
}

/// Behind more than any buffer holds, and less than `sidecar.max-body`: the sidecar may have the
/// beginning of a longer one.
#[tokio::test]
async fn a_malformed_chunk_behind_many_good_ones_reaches_nobody() {
    let mut cases = Vec::new();
    for bad in [
        "0x5\r\n(xyz)\r\n",
        "5\n(xyz)\r\n",
        "5\r\n(xyz)0\r\n",
        "5;\n\r\n(xyz)\r\n",
    ] {
        let good = format!("10000\r\n{}\r\n", "x".repeat(0x10000)).repeat(8);
        let payload = format!("{good}{bad}0\r\n\r\n");
        cases.push(Case::post(
            b"Transfer-Encoding: chunked\r\n",
            &payload,
            None,
            false,
        ));
    }
    hold(cases, usize::MAX).await;
}

/// However much more of it there is, the answer comes, and comes whole.
#[tokio::test]
async fn chunk_extensions_and_trailers_without_end_are_refused() {
    let mut cases = Vec::new();
    let mebibyte = "x".repeat(1 << 20);
    for payload in [
        format!("5;{mebibyte}\r\n(xyz)\r\n0\r\n\r\n"),
        format!("5;a=\"{mebibyte}\"\r\n(xyz)\r\n0\r\n\r\n"),
        format!("5{}\r\n(xyz)\r\n0\r\n\r\n", " ".repeat(1 << 20)),
        format!("{}5\r\n(xyz)\r\n0\r\n\r\n", "0".repeat(1 << 20)),
        format!("5\r\n(xyz)\r\n0;{mebibyte}\r\n\r\n"),
        format!("5\r\n(xyz)\r\n0\r\nX-Sum: {mebibyte}\r\n\r\n"),
        format!("5\r\n(xyz)\r\n0\r\n{mebibyte}: 1\r\n\r\n"),
        format!("5\r\n(xyz)\r\n0\r\n{}\r\n", "X-Sum: 1\r\n".repeat(100_000)),
    ] {
        let lines = b"Transfer-Encoding: chunked\r\n";
        cases.push(Case::post(lines, &payload, None, false));
    }
    hold(cases, usize::MAX).await;
}

/// `size + 2`, say, must not be a small number.
#[tokio::test]
async fn bodies_as_large_as_a_number_can_be_never_end() {
    let upstream = Strict::start(200).await;
    let sidecar = Strict::start(204).await;
    let mut bodies: Vec<String> = [
        "7FFFFFFFFFFFFFFF",
        "8000000000000000",
        "FFFFFFFFFFFFFFF0",
        "FFFFFFFFFFFFFFFD",
        "FFFFFFFFFFFFFFFE",
        "FFFFFFFFFFFFFFFF",
    ]
    .map(|size| format!("transfer-encoding: chunked\r\n\r\n{size}\r\n(xyz)\r\n0\r\n\r\n"))
    .into();
    bodies.extend(
        [
            i64::MAX as u64,
            1 << 63,
            u64::MAX - 2,
            u64::MAX - 1,
            u64::MAX,
        ]
        .map(|length| format!("content-length: {length}\r\n\r\n(xyz)")),
    );
    for config in [json!({}), json!({"sidecar-url": sidecar.url()})] {
        let router = router_with(&upstream.url(), config);
        for body in &bodies {
            let mut client = Client::connect(router.address).await;
            client
                .send(format!("POST / HTTP/1.1\r\nhost: h\r\n{body}{NEXT}"))
                .await;
            client.finish().await;
            let answer = client.rest().await;
            let answers = responses(&answer, &["POST"]).unwrap();
            assert!(answers.len() < 2, "{body}: {}", answer.escape_ascii());
            for answer in answers {
                let status = answer.status();
                assert!(matches!(status, 400 | 408 | 413 | 431), "{body}: {status}");
            }
            assert_eq!(get(router.address, "/alive", "").await.status, 200);
        }
    }
    let all = [upstream.seen(), sidecar.seen()].concat();
    assert!(all.iter().all(|seen| seen.target() == b"/alive"), "{all:?}");
    assert_eq!((upstream.wrong(), sidecar.wrong()), (vec![], vec![]));
}

/// Whatever has been read when the rest comes: half a line, half a number, half of a CRLF.
#[tokio::test]
async fn requests_may_be_cut_anywhere() {
    let upstream = Strict::start(200).await;
    let router = router_to(&upstream.url());
    let requests = "\r\nPOST /1 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n\
                    a;x=\"y\"\r\n0123456789\r\n2\r\nab\r\n0;z\r\nX-Sum: 1\r\nx-end: 2\r\n\r\n\
                    POST /2 HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\n(xyz)\
                    GET /3 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
    let mut health = Client::connect(router.address).await;
    for cut in 1..requests.len() {
        let mut client = Client::connect(router.address).await;
        client.send(&requests[..cut]).await;
        // There is one worker, so by now it has looked at what was there.
        for _ in 0..2 {
            let asked = head("GET /application/health", "");
            assert_eq!(health.roundtrip("GET", asked).await.status, 200);
        }
        client.send(&requests[cut..]).await;
        let answers = responses(&client.rest().await, &[]).unwrap();
        let bodies: Vec<_> = answers.iter().map(|answer| &*answer.body).collect();
        assert_eq!(bodies, [b"/1", b"/2", b"/3"], "{:?}", &requests[..cut]);
        let seen = upstream.take();
        let bodies: Vec<_> = seen.iter().map(|seen| &*seen.body).collect();
        assert_eq!(bodies, [&b"0123456789ab"[..], b"(xyz)", b""]);
        let trailers: Vec<_> = seen[0].trailers.iter().map(|(name, _)| &**name).collect();
        assert_eq!(trailers, ["x-sum", "x-end"]);
    }
    assert_eq!(upstream.wrong(), [""; 0]);
}

/// Each is larger than a buffer, and the next one begins in the middle of one.
#[tokio::test]
async fn large_bodies_one_behind_the_other_arrive_byte_for_byte() {
    let upstream = Strict::start(200).await;
    let sidecar = Strict::start(204).await;
    for config in [json!({}), json!({"sidecar-url": sidecar.url()})] {
        let router = router_with(&upstream.url(), config);
        let mut bytes = Vec::new();
        let sizes = [1, 8191, 8192, 8193, 65_535, 65_536, 65_537, 300_000, 2];
        for (i, size) in sizes.into_iter().enumerate() {
            let start = format!("POST /{i} HTTP/1.1\r\nHost: h\r\n");
            bytes.extend_from_slice(start.as_bytes());
            if i % 2 == 0 {
                let lines = format!("Content-Length: {size}\r\n\r\n");
                bytes.extend_from_slice(lines.as_bytes());
                bytes.extend_from_slice(&noise(size));
            } else {
                bytes.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
                bytes.extend_from_slice(&in_chunks(&noise(size)));
            }
        }
        bytes.extend_from_slice(LAST.as_bytes());
        let answer = exchange(router.address, &bytes, usize::MAX).await;
        assert_eq!(responses(&answer, &[]).unwrap().len(), sizes.len() + 1);
        let seen = upstream.take();
        for (seen, size) in seen.iter().zip(sizes) {
            assert_same(&seen.body, &noise(size));
        }
    }
    assert_eq!((upstream.wrong(), sidecar.wrong()), (vec![], vec![]));
}

/// A coding that nobody here implements is `501` (RFC 9112 section 6.1); what is no coding's name is
/// malformed, and that is the client's fault.
#[tokio::test]
async fn a_transfer_encoding_that_is_no_name_is_400_and_not_501() {
    let upstream = Upstream::start(|_| answer(200, "", "up")).await;
    let router = router_to(&upstream.url());
    for (coding, status) in [
        (&b"identity"[..], 501),
        (b"gzip", 501),
        (b"", 400),
        (b",", 400),
        (b"gzip, deflate", 400),
        (b"gzip;q=1", 400),
        (b"gz ip", 400),
        (b"\"gzip\"", 400),
        (b"ch\xfcnked", 400),
        ("chu\u{17f}ked".as_bytes(), 400),
    ] {
        let mut client = Client::connect(router.address).await;
        let start = b"POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: ";
        client
            .send([start, coding, b"\r\n\r\n0\r\n\r\n"].concat())
            .await;
        let response = client.response("POST").await.unwrap();
        assert_eq!(response.status, status, "{}", coding.escape_ascii());
        client.closed().await;
    }
    assert_eq!(upstream.count(), 0);
}
