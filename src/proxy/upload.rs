//! A request on its way to an upstream: what its head says there, and its body as it comes.

use std::{
    io,
    task::{Context, Poll, ready},
};

use bytes::{BufMut, Bytes, BytesMut};
use http::Method;

use super::{
    body::RequestBody,
    connect::UpstreamIo,
    connection::BrokenBody,
    fields::{Fields, Known, KnownSet, put_field},
    headers,
    http1::{chunked, head, outbox::Outbox},
    message::{Frame, RequestHead},
};
use crate::config::Upstream;

/// The lines that we add to a head, but for what has a length of its own.
const HEAD_ROOM: usize = 256;

/// What is ours to say in a request.
const OURS: KnownSet = KnownSet::of(&[
    Known::Host,
    Known::ContentLength,
    Known::Expect,
    Known::XForwardedFor,
]);
/// And in a question to the sidecar.
const OURS_TO_SIDECAR: KnownSet = OURS.with(Known::XCanaryBody);

/// What a request says, to whichever upstream it goes.
pub struct Message<'a> {
    /// The head, without what belongs to the client's connection; its target is trimmed.
    pub head: &'a RequestHead,
    /// The client's address.
    pub client: &'a str,
    /// Whether the client said `TE: trailers`.
    pub takes_trailers: bool,
    /// The protocol that it asks to switch to.
    pub upgrade: Option<&'a [u8]>,
    /// For a sidecar: what it gets of the body.
    pub sidecar: Option<Part>,
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
        headers.put_without(
            match message.sidecar {
                None => OURS,
                Some(_) => OURS_TO_SIDECAR,
            },
            &mut head,
        );
        headers::put_forwarded_for(headers, message.client.as_bytes(), &mut head);
        if message.takes_trailers {
            head.put_slice(b"te: trailers\r\n");
        }
        match message.sidecar {
            Some(Part::Beginning) => head.put_slice(b"x-canary-body: partial\r\n"),
            Some(Part::None) => head.put_slice(b"x-canary-body: none\r\n"),
            Some(Part::All) | None => {}
        }
        match self.coding {
            Coding::Length(length) => head::put_length(&mut head, length),
            Coding::Chunked => head.put_slice(b"transfer-encoding: chunked\r\n"),
            // A length of zero is only worth saying where a body is expected (RFC 9110 section 8.6).
            Coding::None
                if matches!(*method, Method::POST | Method::PUT | Method::PATCH)
                    || headers.has(Known::ContentLength) =>
            {
                head::put_length(&mut head, 0);
            }
            Coding::None => {}
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

    /// Whether nothing of the request can have reached anybody.
    pub fn is_unsent(&self) -> bool {
        self.sent == 0
    }

    /// How much of it a connection has taken.
    pub fn sent(&self) -> u64 {
        self.sent
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
    pub fn poll_send(
        &mut self,
        io: &mut UpstreamIo,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Unsent>> {
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
                if matches!(io, UpstreamIo::Tls(_)) {
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
