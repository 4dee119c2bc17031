//! A request on its way to an upstream: what its head says there, and its body as it comes.

use std::{
    io,
    task::{Context, Poll, ready},
};

use bytes::{BufMut, Bytes, BytesMut};
use http::Method;

use super::{
    body::RequestBody,
    connection::BrokenBody,
    fields::{Fields, Known, KnownSet, Sink, put_field},
    forwarded::{self, Origin, Peer},
    headers,
    http1::{chunked, head, outbox::Outbox},
    io::Io,
    message::{Frame, RequestHead},
    trace,
};
use crate::config::Upstream;

/// The lines that we add to a head, but for what has a length of its own.
const HEAD_ROOM: usize = 448;

/// What is ours to say in a request, but for where it comes from.
const OURS: KnownSet = KnownSet::of(&[Known::Host, Known::ContentLength, Known::Expect]);

/// What a request says, to whichever upstream it goes.
pub struct Message<'a> {
    /// The head, without what belongs to the client's connection; its target is trimmed.
    pub head: &'a RequestHead,
    /// Who is at the other end of the client's connection.
    pub peer: &'a Peer,
    /// Where it comes from.
    pub origin: &'a Origin<'a>,
    /// What it is called, where its client did not say so.
    pub request_id: Option<&'a [u8]>,
    /// Whether the client said `TE: trailers`.
    pub takes_trailers: bool,
    /// The protocol that it asks to switch to.
    pub upgrade: Option<&'a [u8]>,
    /// For a sidecar: what it gets of the body.
    pub sidecar: Option<Part>,
    /// The span that what comes of it is a part of, instead of the client's.
    pub trace: Option<trace::Context>,
}

/// How much of a request body a sidecar gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    All,
    /// The beginning, for the rest is too long, or late.
    Beginning,
    /// Nothing, as it wants (`sidecar.body`).
    None,
}

impl Message<'_> {
    /// What of the client's fields is not passed on, because it is ours to say.
    pub fn ours(&self) -> KnownSet {
        let ours = OURS.and(self.origin.replaced());
        let ours = match self.sidecar {
            None => ours,
            Some(_) => ours.with(Known::XCanaryBody),
        };
        match self.trace {
            None => ours,
            // What came is of no trace, or of one that nobody can make out (sections 4.2 and 4.3 of the
            // recommendation).
            Some(trace) if trace.begins => ours.with(Known::Traceparent).with(Known::Tracestate),
            Some(_) => ours.with(Known::Traceparent),
        }
    }

    /// Writes what is ours to say, but for what belongs to one connection or to a version of HTTP.
    pub fn put_ours(&self, out: &mut impl Sink) {
        forwarded::put_forwarded(&self.head.headers, self.peer, self.origin, out);
        if let Some(id) = self.request_id {
            out.put(b"x-request-id: ", &[id]);
        }
        if let Some(trace) = self.trace {
            out.put(b"traceparent: ", &[trace.to_header().as_bytes()]);
        }
        if self.takes_trailers {
            out.put(b"te: ", &[b"trailers"]);
        }
        match self.sidecar {
            Some(Part::Beginning) => out.put(b"x-canary-body: ", &[b"partial"]),
            Some(Part::None) => out.put(b"x-canary-body: ", &[b"none"]),
            Some(Part::All) | None => {}
        }
    }
}

/// A request on its way out. Nothing of it belongs to a connection, so it can be taken to another one
/// as long as nothing was sent.
pub struct Upload {
    body: RequestBody,
    coding: Coding,
    outbox: Outbox,
    /// How much of the outbox is the head.
    head_length: usize,
    /// Bytes that a connection took.
    sent: u64,
    ended: bool,
    /// Some servers take trailers for the beginning of another request.
    has_trailers: bool,
}

/// How a request body is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Coding {
    None,
    Length(u64),
    Chunked,
}

impl Upload {
    /// Of a request with this body; its head comes with [`Upload::address`].
    pub fn new(body: RequestBody) -> Box<Upload> {
        let coding = match body.length() {
            _ if body.is_over() => Coding::None,
            Some(length) => Coding::Length(length),
            None => Coding::Chunked,
        };
        // It is handed around: a pointer is, and what it points to stays where it is.
        Box::new(Upload {
            ended: body.is_over(),
            body,
            coding,
            outbox: Outbox::default(),
            head_length: 0,
            sent: 0,
            has_trailers: false,
        })
    }

    /// Writes the head for `upstream`, instead of an earlier one of which nothing was sent.
    pub fn address(&mut self, upstream: &Upstream, message: &Message<'_>) {
        let RequestHead {
            method,
            target,
            headers,
            ..
        } = message.head;
        let host = upstream.host_header.as_bytes();
        let length = headers.written_length() + target.as_bytes().len() + host.len();
        let mut head = BytesMut::with_capacity(length + HEAD_ROOM);
        head.put_slice(method.as_str().as_bytes());
        head.put_u8(b' ');
        target.put_on(upstream, &mut head);
        head.put_slice(b" HTTP/1.1\r\n");
        put_field(&mut head, b"host", host);
        headers.put_without(message.ours(), &mut head);
        message.put_ours(&mut head);
        match self.said_length(message.head) {
            Some(length) => head::put_length(&mut head, length),
            None if self.coding == Coding::Chunked => {
                head.put_slice(b"transfer-encoding: chunked\r\n");
            }
            None => {}
        }
        if let Some(protocol) = message.upgrade {
            headers::put_upgrade(&mut head, protocol);
        }
        head.put_slice(b"\r\n");
        let earlier = std::mem::replace(&mut self.head_length, head.len());
        match earlier {
            0 => *self.outbox.buf() = head,
            earlier => self.outbox.replace_start(earlier, &head),
        }
    }

    /// Its body.
    pub fn body(&mut self) -> &mut RequestBody {
        &mut self.body
    }

    /// Whether trailers went out, or will.
    pub fn has_trailers(&self) -> bool {
        self.has_trailers
    }

    /// How much of the body a connection has taken, framing included.
    pub fn body_sent(&self) -> u64 {
        self.sent.saturating_sub(self.head_length as u64)
    }

    /// Whether some of it is written as HTTP/1 has it, and waits to be sent.
    pub fn is_written(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Whether nothing of the request can have reached anybody.
    pub fn is_unsent(&self) -> bool {
        self.sent == 0
    }

    /// How much of it a connection has taken.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// The `Content-Length` that it is sent with, if any.
    pub fn said_length(&self, head: &RequestHead) -> Option<u64> {
        match self.coding {
            Coding::Length(length) => Some(length),
            Coding::Chunked => None,
            // Zero is only worth saying where a body is expected (RFC 9110 section 8.6).
            Coding::None => {
                let expected = matches!(head.method, Method::POST | Method::PUT | Method::PATCH)
                    || head.headers.has(Known::ContentLength);
                expected.then_some(0)
            }
        }
    }

    /// Some of it was sent by other means than [`poll_send`](Upload::poll_send).
    pub fn note_sent(&mut self, bytes: u64) {
        self.sent += bytes;
    }

    /// Whether there is no body, so that nothing that was sent is gone.
    pub fn is_bodiless(&self) -> bool {
        self.coding == Coding::None
    }

    /// Forgets that anything was sent of a request without a body, so that it can be addressed and sent once
    /// more.
    pub fn rewind(&mut self) {
        self.outbox = Outbox::default();
        self.head_length = 0;
        self.sent = 0;
    }

    /// The length of the body, where it is known.
    pub fn length(&self) -> Option<u64> {
        match self.coding {
            Coding::None => Some(0),
            Coding::Length(length) => Some(length),
            Coding::Chunked => None,
        }
    }

    /// The same request from its beginning, for another upstream; `None` where too much of its body has
    /// gone by, or none of it was [kept](RequestBody::keep).
    pub fn again(mut self: Box<Self>) -> Option<Box<Upload>> {
        if self.is_bodiless() {
            self.rewind();
            return Some(self);
        }
        self.body.again().map(Upload::new)
    }

    /// Whether it can be had [again](Upload::again).
    pub fn is_repeatable(&self) -> bool {
        self.is_bodiless() || self.body.is_kept()
    }

    /// What stays with its connection when it is taken from there: there is nothing to send any more, but what
    /// was sent was sent.
    pub fn spent(&self) -> Box<Upload> {
        let mut spent = Upload::new(RequestBody::whole(Bytes::new(), None));
        spent.sent = self.sent;
        spent.has_trailers = self.has_trailers;
        spent
    }

    /// Whether all of it was sent.
    pub fn is_done(&self) -> bool {
        self.ended && self.outbox.is_empty()
    }

    /// Sends; ready when all is sent.
    ///
    /// # Errors
    /// The client's body breaks off, or the connection.
    pub fn poll_send(&mut self, io: &mut Io, cx: &mut Context<'_>) -> Poll<Result<(), Unsent>> {
        loop {
            while !self.ended && !self.outbox.is_full() {
                match self.body.poll_frame(cx) {
                    Poll::Ready(Some(Ok(frame))) => self.put(frame),
                    Poll::Ready(None) => self.end(None),
                    Poll::Ready(Some(Err(broken))) => {
                        return Poll::Ready(Err(Unsent::Client(broken)));
                    }
                    Poll::Pending => break,
                }
            }
            if self.outbox.is_empty() {
                return match self.ended {
                    true => Poll::Ready(Ok(())),
                    false => Poll::Pending,
                };
            }
            let polled = self.outbox.poll_write(io, cx, &mut self.sent);
            if polled.is_pending() {
                self.body.slow_down();
            }
            if let Err(error) = ready!(polled) {
                if matches!(io, Io::Tls(_)) {
                    // Some of it may have left before it failed.
                    self.sent = self.sent.max(1);
                }
                return Poll::Ready(Err(Unsent::Upstream(error)));
            }
        }
    }

    fn put(&mut self, frame: Frame) {
        match frame {
            Frame::Data(data) if self.coding == Coding::Chunked => {
                self.outbox.put_chunk(data);
            }
            Frame::Data(data) => self.outbox.put(data),
            Frame::Trailers(mut trailers) => {
                headers::keep_allowed_trailers(&mut trailers);
                self.end(Some(&trailers));
            }
        }
    }

    fn end(&mut self, trailers: Option<&Fields>) {
        self.ended = true;
        if self.coding == Coding::Chunked {
            self.has_trailers = trailers.is_some();
            chunked::put_end(self.outbox.buf(), trailers);
        }
    }
}

/// Why a request cannot be sent to its end.
pub enum Unsent {
    /// The client broke its body off.
    Client(BrokenBody),
    /// The connection broke.
    Upstream(io::Error),
}
