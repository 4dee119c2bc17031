//! The access log: a line of JSON for each request, when it is over.
//!
//! A worker writes its lines into memory and hands them on in one piece, when there are many or when it looks at
//! its deadlines next: who writes them out is not its concern, and nothing here waits.

use std::{cell::RefCell, io::Write, sync::Arc, time::Instant};

use super::notes::{Client, Entry};
use crate::{
    clock,
    policy::{SidecarResult, SidecarStatuses},
};

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
    pub fn add(&self, entry: &Entry, statuses: SidecarStatuses, now: Instant) {
        let mut waiting = self.waiting.borrow_mut();
        put_line(&mut waiting, entry, statuses, now);
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

fn put_line(out: &mut Vec<u8>, entry: &Entry, statuses: SidecarStatuses, now: Instant) {
    let time = humantime::format_rfc3339_millis(clock::wall());
    put(
        out,
        format_args!("{{\"@time\":\"{time}\",\"level\":\"info\",\"msg\":\"request\""),
    );
    match &entry.client {
        Client::Peer(text) => put_text(out, "client", text.as_bytes()),
        Client::Behind(address) => put(out, format_args!(",\"client\":\"{address}\"")),
    }
    match &entry.asked {
        Some(asked) => {
            put_text(out, "method", asked.method.as_str().as_bytes());
            put_text(out, "path", &asked.path);
            put(out, format_args!(",\"protocol\":\"{:?}\"", asked.version));
        }
        None => put(
            out,
            format_args!(",\"method\":null,\"path\":null,\"protocol\":null"),
        ),
    }
    put_number(out, "status", entry.status.map(|status| status.as_u16()));
    put(
        out,
        format_args!(
            ",\"request_bytes\":{},\"response_bytes\":{}",
            entry.request_bytes, entry.response_bytes
        ),
    );
    match entry.decided {
        Some((reason, _)) => {
            put_text(out, "target", reason.target().label().as_bytes());
            put_text(out, "reason", reason.label(statuses).as_bytes());
        }
        None => put(out, format_args!(",\"target\":null,\"reason\":null")),
    }
    // The one whose answer, or failure, the client got.
    let last = entry.attempts.last();
    let status = last.and_then(|attempt| attempt.answered.map(|(status, _)| status));
    put_number(out, "upstream_status", status);
    let took = last.map(|attempt| {
        let answered = attempt.answered.map(|(_, head)| head);
        let failed = attempt.failed.map(|(_, failed)| failed);
        seconds(attempt.started, answered.or(failed).unwrap_or(now))
    });
    put_number(out, "upstream_seconds", took);
    let asked = entry.question.as_ref();
    let took = asked.map(|question| seconds(question.started, question.ended));
    put_number(out, "sidecar_seconds", took);
    put_number(out, "seconds", Some(seconds(entry.started, now)));
    match entry.request_id.is_empty() {
        true => put(out, format_args!(",\"request_id\":null")),
        false => put_text(out, "request_id", &entry.request_id),
    }
    if let Some(trace) = &entry.trace {
        put(out, format_args!(",\"trace_id\":\"{:032x}\"", trace.id));
    }
    put(out, format_args!(",\"flags\":["));
    for (i, flag) in flags(entry).enumerate() {
        let comma = if i == 0 { "" } else { "," };
        put(out, format_args!("{comma}\"{flag}\""));
    }
    out.extend_from_slice(b"]}\n");
}

/// What went wrong, in order: `canary_timeout`, `replayed`.
pub fn flags(entry: &Entry) -> impl Iterator<Item = String> {
    let sidecar = entry.question.as_ref().and_then(|question| {
        let failed = question.result == SidecarResult::Error;
        failed.then(|| "sidecar_failed".to_owned())
    });
    let upstreams = entry.attempts.iter().filter_map(|attempt| {
        let (kind, _) = attempt.failed?;
        Some(format!("{}_{}", attempt.target.label(), kind.label()))
    });
    let others = entry.flags.iter().map(|flag| flag.label().to_owned());
    sidecar.into_iter().chain(upstreams).chain(others)
}

fn put(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    let _into_memory = out.write_fmt(text);
}

fn put_number(out: &mut Vec<u8>, name: &str, value: Option<impl std::fmt::Display>) {
    match value {
        Some(value) => put(out, format_args!(",\"{name}\":{value}")),
        None => put(out, format_args!(",\"{name}\":null")),
    }
}

/// What a peer has sent is escaped, and what is no UTF-8 replaced.
fn put_text(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    put(out, format_args!(",\"{name}\":"));
    let _into_memory = serde_json::to_writer(&mut *out, &String::from_utf8_lossy(value));
}

/// To the microsecond, as a number that JSON has.
fn seconds(from: Instant, to: Instant) -> f64 {
    let micros = to.saturating_duration_since(from).as_micros();
    micros as f64 / 1e6
}
