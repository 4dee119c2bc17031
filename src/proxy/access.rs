//! The access log: a line of JSON for each request, when it is over.
//!
//! A worker writes its lines into memory and hands them on in one piece, when there are many or when it looks at
//! its deadlines next: who writes them out is not its concern, and nothing here waits.

use std::{cell::RefCell, io::Write, sync::Arc, time::Instant};

use http::Version;

use super::notes::Entry;
use crate::{clock, policy::SidecarResult};

/// Where whole lines go.
pub type Lines = Arc<dyn Fn(&[u8]) + Send + Sync>;

/// How much is handed on at once.
const PIECE: usize = 32 << 10;

/// The access log of one worker.
pub struct AccessLog {
    lines: Lines,
    waiting: RefCell<Vec<u8>>,
}

impl AccessLog {
    /// Whose lines go there.
    pub fn new(lines: Lines) -> AccessLog {
        AccessLog {
            lines,
            waiting: RefCell::default(),
        }
    }

    /// A request is over.
    pub fn add(&self, entry: &Entry, now: Instant) {
        let mut waiting = self.waiting.borrow_mut();
        put_line(&mut waiting, entry, now);
        if waiting.len() >= PIECE {
            self.hand_on(&mut waiting);
        }
    }

    /// Hands on what there is.
    pub fn flush(&self) {
        let mut waiting = self.waiting.borrow_mut();
        if !waiting.is_empty() {
            self.hand_on(&mut waiting);
        }
    }

    fn hand_on(&self, waiting: &mut Vec<u8>) {
        (self.lines)(waiting);
        waiting.clear();
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        self.flush();
    }
}

fn put_line(out: &mut Vec<u8>, entry: &Entry, now: Instant) {
    put(out, r#"{"@time":""#);
    let _into_memory = write!(out, "{}", humantime::format_rfc3339_millis(clock::wall()));
    put(out, r#"","level":"info","msg":"request","client":"#);
    put_text(out, entry.client.as_bytes());
    match &entry.asked {
        Some(asked) => {
            put(out, r#","method":"#);
            put_text(out, asked.method.as_str().as_bytes());
            put(out, r#","path":"#);
            put_text(out, &asked.path);
            put(out, r#","protocol":"#);
            put(out, protocol(asked.version));
        }
        None => put(out, r#","method":null,"path":null,"protocol":null"#),
    }
    put(out, r#","status":"#);
    put_number(out, entry.status.map(|status| status.as_u16()));
    put(out, r#","request_bytes":"#);
    put_number(out, Some(entry.request_bytes));
    put(out, r#","response_bytes":"#);
    put_number(out, Some(entry.response_bytes));
    match entry.decided {
        Some((reason, _)) => {
            put(out, r#","target":""#);
            put(out, reason.target().label());
            put(out, r#"","reason":"#);
            put_text(out, reason.label(entry.statuses).as_bytes());
        }
        None => put(out, r#","target":null,"reason":null"#),
    }
    // The one whose answer, or failure, the client got.
    let last = entry.attempts.last();
    put(out, r#","upstream_status":"#);
    put_number(
        out,
        last.and_then(|attempt| attempt.answered.map(|(status, _)| status)),
    );
    put(out, r#","upstream_seconds":"#);
    put_seconds(
        out,
        last.map(|attempt| {
            let answered = attempt.answered.map(|(_, head)| head);
            let failed = attempt.failed.map(|(_, failed)| failed);
            (attempt.started, answered.or(failed).unwrap_or(now))
        }),
    );
    put(out, r#","sidecar_seconds":"#);
    let question = entry.question.as_ref();
    put_seconds(
        out,
        question.map(|question| {
            let answered = question.answered.map(|(_, answered)| answered);
            (question.started, answered.unwrap_or(now))
        }),
    );
    put(out, r#","seconds":"#);
    put_seconds(out, Some((entry.started, now)));
    put(out, r#","request_id":"#);
    match entry.request_id.is_empty() {
        true => put(out, "null"),
        false => put_text(out, &entry.request_id),
    }
    if let Some(trace) = &entry.trace {
        let _into_memory = write!(out, r#","trace_id":"{:032x}""#, trace.id);
    }
    put(out, r#","flags":["#);
    for (i, flag) in flags(entry).enumerate() {
        put(out, if i == 0 { "\"" } else { ",\"" });
        put(out, &flag);
        put(out, "\"");
    }
    put(out, "]}\n");
}

/// What went wrong, in order: `canary_timeout`, `replayed`.
pub fn flags(entry: &Entry) -> impl Iterator<Item = String> {
    let sidecar = entry.question.as_ref().and_then(|question| {
        let (result, _) = question.answered?;
        let failed = result == SidecarResult::Error;
        failed.then(|| "sidecar_failed".to_owned())
    });
    let upstreams = entry.attempts.iter().filter_map(|attempt| {
        let (kind, _) = attempt.failed?;
        Some(format!("{}_{}", attempt.target.label(), kind.label()))
    });
    let others = entry.flags.iter().map(|flag| flag.label().to_owned());
    sidecar.into_iter().chain(upstreams).chain(others)
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => r#""HTTP/1.0""#,
        Version::HTTP_11 => r#""HTTP/1.1""#,
        Version::HTTP_2 => r#""HTTP/2.0""#,
        _ => "null",
    }
}

// Written by hand, for it is for every request: with `format!` a line took twice as many instructions.

fn put(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(text.as_bytes());
}

fn put_number(out: &mut Vec<u8>, number: Option<impl itoa::Integer>) {
    match number {
        Some(number) => put(out, itoa::Buffer::new().format(number)),
        None => put(out, "null"),
    }
}

/// What a peer has sent is escaped, and what is no UTF-8 replaced.
fn put_text(out: &mut Vec<u8>, text: &[u8]) {
    let is_plain = |byte: &u8| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\');
    if text.iter().all(is_plain) {
        out.push(b'"');
        out.extend_from_slice(text);
        out.push(b'"');
    } else {
        let _into_memory = serde_json::to_writer(&mut *out, &String::from_utf8_lossy(text));
    }
}

/// From one moment to another, to the microsecond.
fn put_seconds(out: &mut Vec<u8>, moments: Option<(Instant, Instant)>) {
    let Some((from, to)) = moments else {
        return put(out, "null");
    };
    let took = to.saturating_duration_since(from);
    put_number(out, Some(took.as_secs()));
    let mut digits = *b".000000";
    let mut micros = took.subsec_micros();
    for digit in digits[1..].iter_mut().rev() {
        *digit = b'0' + (micros % 10) as u8;
        micros /= 10;
    }
    out.extend_from_slice(&digits);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn written(put: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        put(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn seconds_have_six_digits() {
        let from = clock::now();
        for (micros, expected) in [
            (0, "0.000000"),
            (7, "0.000007"),
            (1_279, "0.001279"),
            (1_000_000, "1.000000"),
            (61_900_050, "61.900050"),
        ] {
            let to = from + Duration::from_micros(micros);
            assert_eq!(written(|out| put_seconds(out, Some((from, to)))), expected);
        }
        // Moments of other threads may be earlier by a bit.
        let earlier = from + Duration::from_secs(1);
        let seconds = written(|out| put_seconds(out, Some((earlier, from))));
        assert_eq!(seconds, "0.000000");
        assert_eq!(written(|out| put_seconds(out, None)), "null");
    }

    #[test]
    fn whatever_a_peer_sends_is_one_string_of_json() {
        for text in [
            &b"/plain"[..],
            b"",
            b"/\"quoted\\\"",
            b"/line\nfeed\r\0\x1b[2J\x7f",
            "/\u{e4}\u{2028}".as_bytes(),
            b"/\xff\xfe",
        ] {
            let json = written(|out| put_text(out, text));
            let read: String = serde_json::from_str(&json).unwrap();
            assert_eq!(read, String::from_utf8_lossy(text));
            assert!(!json.contains(['\n', '\r', '\x1b', '\0']), "{json}");
        }
    }
}
