//! Spans of requests, on their way from the workers to who exports them.
//!
//! A worker leaves all spans of a request at once, when it has ended. There is room for so many requests: it never
//! waits for more, and what does not fit is dropped and counted.

use std::{
    borrow::Cow,
    sync::{
        Arc,
        atomic::Ordering,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::SystemTime,
};

use super::sync::AtomicU64;

/// The spans of one request, the first of them its own.
#[derive(Debug, Clone, PartialEq)]
pub struct Spans {
    /// Which trace they belong to; not 0 (W3C Trace Context section 3.2.2.3).
    pub trace: u128,
    /// `tracestate` as it came, for the first of them.
    pub trace_state: Option<Box<str>>,
    /// At least one; the parents of the others are among them.
    pub spans: Vec<Span>,
}

/// Something that took its time.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// Not 0.
    pub id: u64,
    /// The span that it is a part of, which may be somebody else's; `None` where a trace begins.
    pub parent: Option<u64>,
    /// Of few different ones: what differs per request is an attribute.
    pub name: Cow<'static, str>,
    /// On which side of a call.
    pub kind: SpanKind,
    /// When it began.
    pub started: SystemTime,
    /// When it was over; not before it began, unless the clock was set.
    pub ended: SystemTime,
    /// What is known of it.
    pub attributes: Vec<(&'static str, Attribute)>,
    /// What went wrong, if something did.
    pub error: Option<Cow<'static, str>>,
}

/// On which side of a call a span is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpanKind {
    /// No call to anybody.
    Internal,
    /// A request that we were sent.
    Server,
    /// A request that we sent.
    Client,
}

/// Something that is known of a span.
#[derive(Debug, Clone, PartialEq)]
pub enum Attribute {
    /// A text.
    Text(Cow<'static, str>),
    /// A whole number.
    Number(i64),
    /// Another number.
    Real(f64),
}

/// Where workers leave spans. One each: cheap to clone.
#[derive(Debug, Clone)]
pub struct SpanSink {
    room: SyncSender<Spans>,
    counts: Arc<SpanCounts>,
}

impl SpanSink {
    /// Leaves them for who exports them. Never waits: what there is no room for is dropped and counted.
    pub fn leave(&self, spans: Spans) {
        let count = spans.spans.len();
        if self.room.try_send(spans).is_err() {
            self.counts.add_dropped(count);
        }
    }
}

/// What became of spans. Whatever is in none of these is still on its way.
#[derive(Debug, Default)]
pub struct SpanCounts {
    sent: AtomicU64,
    dropped: AtomicU64,
    failed: AtomicU64,
}

// Relaxed, all of them: they order nothing else, and who reads one late is late by a moment.
impl SpanCounts {
    /// The collector has taken so many.
    pub fn add_sent(&self, spans: usize) {
        self.sent.fetch_add(spans as u64, Ordering::Relaxed);
    }

    /// There was no room for so many, or no time before the end.
    pub fn add_dropped(&self, spans: usize) {
        self.dropped.fetch_add(spans as u64, Ordering::Relaxed);
    }

    /// The collector has not taken so many.
    pub fn add_failed(&self, spans: usize) {
        self.failed.fetch_add(spans as u64, Ordering::Relaxed);
    }

    /// Spans that the collector has taken.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Spans that nobody has tried to send: there was no room for them, or no time before the end.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Spans that the collector has refused, or could not be sent.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }
}

/// Room for the spans of `capacity` requests (1 or more): where they are left, where they are taken from, and what
/// became of them.
pub fn channel(capacity: usize) -> (SpanSink, Receiver<Spans>, Arc<SpanCounts>) {
    let (room, left) = sync_channel(capacity);
    let counts = Arc::<SpanCounts>::default();
    let sink = SpanSink {
        room,
        counts: Arc::clone(&counts),
    };
    (sink, left, counts)
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn spans(count: usize) -> Spans {
        let span = Span {
            id: 1,
            parent: None,
            name: "GET".into(),
            kind: SpanKind::Server,
            started: UNIX_EPOCH,
            ended: UNIX_EPOCH,
            attributes: Vec::new(),
            error: None,
        };
        Spans {
            trace: 1,
            trace_state: None,
            spans: vec![span; count],
        }
    }

    #[test]
    fn what_does_not_fit_is_dropped_and_counted_span_by_span() {
        let (sink, left, counts) = channel(2);
        let other = sink.clone();
        sink.leave(spans(1));
        other.leave(spans(2));
        assert_eq!(counts.dropped(), 0);
        sink.leave(spans(3));
        other.leave(spans(4));
        assert_eq!(counts.dropped(), 7);
        assert_eq!(left.recv(), Ok(spans(1)));
        sink.leave(spans(5));
        drop((sink, other));
        let rest: Vec<Spans> = left.iter().collect();
        assert_eq!(rest, [spans(2), spans(5)]);
        assert_eq!(counts.dropped(), 7);
    }

    #[test]
    fn what_nobody_takes_any_more_is_dropped_and_counted() {
        let (sink, left, counts) = channel(2);
        drop(left);
        sink.leave(spans(3));
        assert_eq!(counts.dropped(), 3);
        assert_eq!((counts.sent(), counts.failed()), (0, 0));
    }
}
