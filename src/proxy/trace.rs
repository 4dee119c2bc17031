//! Traces: the spans of a request, for a collector (`tracing`), and what upstreams are told of them.
//!
//! A request that belongs to a trace already (`traceparent`, W3C Trace Context) goes on with it, and is sampled if
//! that is; of the others a share begins one. What is not sampled is passed on as it came.

use std::{
    borrow::Cow,
    time::{Instant, SystemTime},
};

use super::{
    access,
    fields::Known,
    message::RequestHead,
    notes::{Attempt, Entry, Question},
};
use crate::{
    clock,
    policy::{SidecarResult, Weight},
    state::spans::{Attribute, Span, SpanKind, SpanSink, Spans},
};

/// Begins traces, and leaves them for who exports them.
pub struct Tracer {
    sink: SpanSink,
}

/// A trace that a request is a part of.
pub struct Trace {
    /// Not 0.
    pub id: u128,
    /// The span of whoever sent the request.
    parent: Option<u64>,
    /// The request's own.
    span: u64,
    state: Option<Box<str>>,
}

impl Trace {
    /// What an upstream is told, for which there is this span.
    pub fn context(&self, span: u64) -> Context {
        Context {
            trace: self.id,
            span,
            begins: self.parent.is_none(),
        }
    }
}

/// What an upstream is told: what it does is a part of this span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context {
    /// Not 0.
    pub trace: u128,
    /// Not 0.
    pub span: u64,
    /// Nobody has told us of it.
    pub begins: bool,
}

impl Tracer {
    /// Which leaves spans there.
    pub fn new(sink: SpanSink) -> Tracer {
        Tracer { sink }
    }

    /// The trace that a request is a part of, if it is to be told; `sample` is the share of requests without a trace
    /// that begin one.
    pub fn begin(&self, head: &RequestHead, sample: Weight) -> Option<Trace> {
        let mut said = head.headers.all(Known::Traceparent);
        // Of several nobody knows which one is meant (section 3.2 of the recommendation): none.
        let parent = match (said.next(), said.next()) {
            (Some(said), None) => parse(said),
            _ => None,
        };
        match parent {
            Some(Parent { sampled: false, .. }) => None,
            Some(parent) => Some(Trace {
                id: parent.trace,
                parent: Some(parent.span),
                span: fresh_span(),
                state: state(head),
            }),
            None if sample.takes(fastrand::u64(..)) => Some(Trace {
                id: fastrand::u128(1..),
                parent: None,
                span: fresh_span(),
                state: None,
            }),
            None => None,
        }
    }

    /// Hands them on.
    pub fn leave(&self, spans: Spans) {
        self.sink.leave(spans);
    }
}

/// The name of a new span.
pub fn fresh_span() -> u64 {
    fastrand::u64(1..)
}

impl Context {
    /// The value of `traceparent`: version 00, and sampled.
    pub fn to_header(self) -> String {
        format!("00-{:032x}-{:016x}-01", self.trace, self.span)
    }
}

struct Parent {
    trace: u128,
    span: u64,
    sampled: bool,
}

/// Section 3.2.2 of the recommendation. Of a later version what is known of it is taken (section 3.2.4); what is
/// anything else is as if it were not there.
fn parse(said: &[u8]) -> Option<Parent> {
    let (known, rest) = said.split_at_checked(55)?;
    let known = std::str::from_utf8(known).ok()?;
    let mut parts = known.split('-');
    let (version, trace) = (parts.next()?, parts.next()?);
    let (span, flags) = (parts.next()?, parts.next()?);
    let lengths = [version, trace, span, flags].map(str::len);
    let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'-');
    if lengths != [2, 32, 16, 2] || parts.next().is_some() || !known.bytes().all(is_hex) {
        return None;
    }
    let fits = match version {
        "ff" => false,
        "00" => rest.is_empty(),
        _ => rest.is_empty() || rest.starts_with(b"-"),
    };
    let parent = Parent {
        trace: u128::from_str_radix(trace, 16).ok()?,
        span: u64::from_str_radix(span, 16).ok()?,
        sampled: u8::from_str_radix(flags, 16).ok()? & 1 == 1,
    };
    (fits && parent.trace != 0 && parent.span != 0).then_some(parent)
}

/// `tracestate`, whose lines are one list.
fn state(head: &RequestHead) -> Option<Box<str>> {
    let lines: Vec<_> = head.headers.all(Known::Tracestate).collect();
    if lines.is_empty() {
        return None;
    }
    let joined = lines.join(&b","[..]);
    String::from_utf8(joined).ok().map(Into::into)
}

/// The spans of a request that is over: its own, the decision with the question to the sidecar in it, and one for
/// each upstream. Names of attributes are OpenTelemetry's semantic conventions for HTTP, but for our own.
pub fn spans(entry: &Entry, trace: &Trace, now: Instant) -> Spans {
    let wall = clock::wall();
    let at = |moment: Instant| wall - now.saturating_duration_since(moment);
    let method = Method::of(entry);
    let mut spans = vec![request(entry, trace, method, at(entry.started), wall)];
    let question = entry.question.as_ref();
    if entry.decided.is_some() || question.is_some() {
        let decided = entry.decided.map_or(now, |(_, decided)| decided);
        let attributes = entry.decided.map(|(reason, _)| {
            vec![
                ("canary_router.target", reason.target().label().into()),
                ("canary_router.reason", reason.label(entry.statuses).into()),
            ]
        });
        let decision = Span {
            id: fresh_span(),
            parent: Some(trace.span),
            name: "decide".into(),
            kind: SpanKind::Internal,
            started: at(entry.started),
            ended: at(decided),
            attributes: attributes.unwrap_or_default(),
            error: entry.decided.is_none().then(|| "given up".into()),
        };
        let parent = decision.id;
        spans.push(decision);
        spans.extend(question.map(|question| asked(question, parent, method, now, at)));
    }
    for (i, attempt) in entry.attempts.iter().enumerate() {
        let is_last = i + 1 == entry.attempts.len();
        spans.push(sent(attempt, trace, method, is_last, now, at));
    }
    Spans {
        trace: trace.id,
        trace_state: trace.state.clone(),
        spans,
    }
}

/// A request's method. Names of spans, and of methods, are to be few (semantic conventions, HTTP spans).
#[derive(Clone, Copy)]
struct Method {
    name: &'static str,
    said: &'static str,
}

impl Method {
    const KNOWN: [&str; 9] = [
        "CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE",
    ];
    const OTHER: Method = Method {
        name: "HTTP",
        said: "_OTHER",
    };

    fn of(entry: &Entry) -> Method {
        let asked = entry.asked.as_ref().map(|asked| asked.method.as_str());
        let known = Method::KNOWN
            .into_iter()
            .find(|known| Some(*known) == asked);
        known.map_or(Method::OTHER, |known| Method {
            name: known,
            said: known,
        })
    }
}

fn request(
    entry: &Entry,
    trace: &Trace,
    method: Method,
    started: SystemTime,
    ended: SystemTime,
) -> Span {
    let mut attributes = vec![("http.request.method", method.said.into())];
    if let Some(asked) = &entry.asked {
        if asked.method.as_str() != method.said {
            let original = text(asked.method.as_str());
            attributes.push(("http.request.method_original", original.into()));
        }
        let path = String::from_utf8_lossy(&asked.path).into_owned();
        attributes.push(("url.path", path.into()));
        let version = format!("{:?}", asked.version);
        let version = match version.trim_start_matches("HTTP/") {
            "2.0" => "2",
            version => version,
        };
        attributes.push(("network.protocol.name", "http".into()));
        attributes.push(("network.protocol.version", text(version).into()));
    }
    attributes.push(("client.address", text(&entry.client).into()));
    if let Some(status) = entry.status {
        attributes.push((
            "http.response.status_code",
            Attribute::Number(status.as_u16().into()),
        ));
    }
    attributes.push(("http.request.body.size", number(entry.request_bytes)));
    attributes.push(("http.response.body.size", number(entry.response_bytes)));
    let id = String::from_utf8_lossy(&entry.request_id).into_owned();
    attributes.push(("canary_router.request_id", id.into()));
    let flags = access::flags(entry).collect::<Vec<_>>().join(",");
    let failed = entry.status.is_none_or(|status| status.is_server_error());
    let error = failed.then(|| match flags.is_empty() {
        true => Cow::Borrowed("the answer is a failure"),
        false => Cow::Owned(flags.clone()),
    });
    if failed {
        let kind = entry.status.map(|status| status.as_str().to_owned());
        let kind = kind.unwrap_or_else(|| "no answer".into());
        attributes.push(("error.type", kind.into()));
    }
    if !flags.is_empty() {
        attributes.push(("canary_router.flags", flags.into()));
    }
    Span {
        id: trace.span,
        parent: trace.parent,
        name: method.name.into(),
        kind: SpanKind::Server,
        started,
        ended,
        attributes,
        error,
    }
}

/// A question to the sidecar, which is a part of the decision.
fn asked(
    question: &Question,
    parent: u64,
    method: Method,
    now: Instant,
    at: impl Fn(Instant) -> SystemTime,
) -> Span {
    let mut attributes = vec![
        ("http.request.method", method.said.into()),
        ("canary_router.upstream", "sidecar".into()),
    ];
    let result = question.answered.map(|(result, _)| result);
    attributes.extend(result.map(|result| ("canary_router.sidecar_result", result.label().into())));
    let error = match result {
        Some(SidecarResult::Error) => Some("the sidecar failed".into()),
        Some(_) => None,
        None => Some("given up".into()),
    };
    Span {
        id: question.span,
        parent: Some(parent),
        name: method.name.into(),
        kind: SpanKind::Client,
        started: at(question.started),
        ended: at(question.answered.map_or(now, |(_, answered)| answered)),
        attributes,
        error,
    }
}

/// A request to an upstream: it lasts until the response has ended where the client got that, and else until it was
/// known what came of it.
fn sent(
    attempt: &Attempt,
    trace: &Trace,
    method: Method,
    is_last: bool,
    now: Instant,
    at: impl Fn(Instant) -> SystemTime,
) -> Span {
    let mut attributes = vec![
        ("http.request.method", method.said.into()),
        ("canary_router.upstream", attempt.target.label().into()),
    ];
    if let Some((status, _)) = attempt.answered {
        attributes.push((
            "http.response.status_code",
            Attribute::Number(status.into()),
        ));
    }
    // To who sends a request 4xx is an error too (semantic conventions, HTTP client spans).
    let (error, ended) = match (attempt.failed, attempt.answered) {
        (Some((kind, failed)), _) => (Some((kind.label().into(), kind.label())), failed),
        (None, Some((status, head))) => {
            let kind = (status >= 400).then(|| status.to_string());
            let error = kind.map(|kind| (kind.into(), "the answer is a failure"));
            (error, if is_last { now } else { head })
        }
        (None, None) => (Some(("given up".into(), "given up")), now),
    };
    let (kind, error): (Option<Cow<'static, str>>, _) = error.unzip();
    attributes.extend(kind.map(|kind| ("error.type", kind.into())));
    Span {
        id: attempt.span,
        parent: Some(trace.span),
        name: method.name.into(),
        kind: SpanKind::Client,
        started: at(attempt.started),
        ended: at(ended),
        attributes,
        error: error.map(Cow::Borrowed),
    }
}

fn text(text: &str) -> Cow<'static, str> {
    Cow::Owned(text.to_owned())
}

fn number(count: u64) -> Attribute {
    Attribute::Number(i64::try_from(count).unwrap_or(i64::MAX))
}

impl From<&'static str> for Attribute {
    fn from(text: &'static str) -> Attribute {
        Attribute::Text(text.into())
    }
}

impl From<String> for Attribute {
    fn from(text: String) -> Attribute {
        Attribute::Text(text.into())
    }
}

impl From<Cow<'static, str>> for Attribute {
    fn from(text: Cow<'static, str>) -> Attribute {
        Attribute::Text(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_is_what_the_recommendation_says() {
        const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
        const SPAN: &str = "00f067aa0ba902b7";
        let read = |said: &str| parse(said.as_bytes()).map(|parent| parent.sampled);
        for (said, expected) in [
            (format!("00-{TRACE}-{SPAN}-01"), Some(true)),
            (format!("00-{TRACE}-{SPAN}-00"), Some(false)),
            (format!("00-{TRACE}-{SPAN}-03"), Some(true)),
            (format!("cc-{TRACE}-{SPAN}-01"), Some(true)),
            (format!("cc-{TRACE}-{SPAN}-01-what-will-be"), Some(true)),
            (format!("cc-{TRACE}-{SPAN}-01.what"), None),
            (format!("00-{TRACE}-{SPAN}-01-more"), None),
            (format!("ff-{TRACE}-{SPAN}-01"), None),
            (format!("00-{}-{SPAN}-01", "0".repeat(32)), None),
            (format!("00-{TRACE}-{}-01", "0".repeat(16)), None),
            (format!("00-{}-{SPAN}-01", TRACE.to_uppercase()), None),
            (format!("00-{TRACE}-{SPAN}-1"), None),
            (format!("00-{TRACE}-{SPAN}"), None),
            (format!("00-{TRACE}{SPAN}--01"), None),
            (format!("00-{}+-{SPAN}-01", &TRACE[1..]), None),
            (String::new(), None),
            ("\u{e4}".repeat(40), None),
        ] {
            assert_eq!(read(&said), expected, "{said}");
        }
        let parent = parse(format!("00-{TRACE}-{SPAN}-01").as_bytes()).unwrap();
        let context = Context {
            trace: parent.trace,
            span: parent.span,
            begins: false,
        };
        assert_eq!(context.to_header(), format!("00-{TRACE}-{SPAN}-01"));
    }
}
