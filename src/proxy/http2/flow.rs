//! The content of a stream, either way, by the rules of flow control (RFC 9113 section 5.2): no more is
//! handed over than the other side has made room for, and room is made for what was taken, no earlier. So
//! who does not read stops who sends, and what is held in between is bounded.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream};
use http::HeaderMap;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{head, upstream::Slot};
use crate::proxy::message::Frame;

/// What is sent on a stream.
pub struct Outgoing {
    stream: SendStream<Bytes>,
    /// What there is no room for yet.
    waiting: Bytes,
    /// Nothing comes behind it.
    last: bool,
    /// How much has gone.
    sent: u64,
}

impl Outgoing {
    /// Nothing is waiting.
    pub fn new(stream: SendStream<Bytes>) -> Outgoing {
        Outgoing {
            stream,
            waiting: Bytes::new(),
            last: false,
            sent: 0,
        }
    }

    /// Puts content in, when what was put in before is [gone](Outgoing::poll_gone); `last` ends the stream
    /// with it.
    ///
    /// # Errors
    /// The stream's.
    pub fn put(&mut self, data: Bytes, last: bool) -> Result<(), h2::Error> {
        self.last = last;
        if data.is_empty() {
            return match last {
                true => self.stream.send_data(data, true),
                false => Ok(()),
            };
        }
        self.waiting = data;
        Ok(())
    }

    /// Ends the stream with trailers, when what was put in before is gone.
    ///
    /// # Errors
    /// The stream's.
    pub fn end_with(&mut self, trailers: HeaderMap) -> Result<(), h2::Error> {
        self.last = true;
        self.stream.send_trailers(trailers)
    }

    /// Sends what waits; ready when that was all.
    ///
    /// # Errors
    /// The stream's, also where the other side has reset it.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        while !self.waiting.is_empty() {
            let room = ready!(self.poll_room(self.waiting.len(), cx))?;
            let piece = self.waiting.split_to(room.min(self.waiting.len()));
            let last = self.last && self.waiting.is_empty();
            self.sent += piece.len() as u64;
            self.stream.send_data(piece, last)?;
        }
        Poll::Ready(Ok(()))
    }

    /// Whether the end of it was put in.
    pub fn has_last(&self) -> bool {
        self.last
    }

    /// How much of the content has gone.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// How much can be sent, of as much as is wanted.
    fn poll_room(&mut self, wanted: usize, cx: &mut Context<'_>) -> Poll<Result<usize, h2::Error>> {
        self.stream.reserve_capacity(wanted);
        // Only an increase is told of.
        match self.stream.capacity() {
            0 => match ready!(self.stream.poll_capacity(cx)) {
                Some(room) => Poll::Ready(room),
                None => Poll::Ready(Err(Reason::CANCEL.into())),
            },
            room => Poll::Ready(Ok(room)),
        }
    }

    /// Ready when the other side has reset the stream, or the connection is over.
    pub fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<Result<Reason, h2::Error>> {
        self.stream.poll_reset(cx)
    }

    /// Says that nothing more will come, and why.
    pub fn reset(&mut self, reason: Reason) {
        self.stream.send_reset(reason);
    }
}

/// What comes in on a stream.
pub struct Incoming {
    stream: RecvStream,
    part: Part,
    /// What is still to come, where that is known.
    left: Option<u64>,
    /// What was taken and not yet made room for.
    taken: usize,
    /// A request is not to look whole before it is: its last piece waits for its end.
    is_request: bool,
    held: Bytes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Content,
    Trailers,
    Over,
}

impl Incoming {
    /// Of which nothing is to come that anybody wants.
    pub fn unwanted(stream: RecvStream) -> Incoming {
        Incoming {
            part: Part::Over,
            left: Some(0),
            stream,
            taken: 0,
            is_request: false,
            held: Bytes::new(),
        }
    }

    /// Of which `announced` is to come, if that is known. The `h2` crate sees to it that it does.
    pub fn new(stream: RecvStream, announced: Option<u64>) -> Incoming {
        let over = stream.is_end_stream();
        Incoming {
            part: match over {
                true => Part::Over,
                false => Part::Content,
            },
            left: match over {
                true => Some(0),
                false => announced,
            },
            stream,
            taken: 0,
            is_request: false,
            held: Bytes::new(),
        }
    }

    /// The same of a request: where a length was announced, nobody gets all of it before the stream has ended, and
    /// so cannot take more than that for the end.
    pub fn of_request(stream: RecvStream, announced: Option<u64>) -> Incoming {
        Incoming {
            is_request: true,
            ..Incoming::new(stream, announced)
        }
    }

    /// The next piece.
    ///
    /// # Errors
    /// The stream's; it is over then.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, h2::Error>>> {
        if self.held.is_empty() {
            self.make_room();
        }
        let polled = match self.poll_next(cx) {
            // An upstream may close behind an answer that is whole, though it has not said that it is.
            Poll::Ready(Some(Err(_))) if self.left == Some(0) && !self.is_request => {
                Poll::Ready(None)
            }
            polled => polled,
        };
        if let Poll::Ready(None | Some(Err(_))) = &polled {
            self.part = Part::Over;
            self.held = Bytes::new();
        }
        polled
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, h2::Error>>> {
        while self.part == Part::Content {
            match ready!(self.stream.poll_data(cx)?) {
                Some(data) => {
                    if self.stream.is_end_stream() {
                        self.part = Part::Over;
                    }
                    if !data.is_empty() {
                        self.taken = data.len();
                        self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                        let is_last = self.is_request && self.left == Some(0);
                        if is_last && self.part == Part::Content {
                            self.held = data;
                        } else {
                            return Poll::Ready(Some(Ok(Frame::Data(data))));
                        }
                    }
                }
                None => self.part = Part::Trailers,
            }
        }
        if !self.held.is_empty() {
            let held = std::mem::take(&mut self.held);
            return Poll::Ready(Some(Ok(Frame::Data(held))));
        }
        if self.part == Part::Over {
            return Poll::Ready(None);
        }
        let trailers = ready!(self.stream.poll_trailers(cx))?;
        self.part = Part::Over;
        Poll::Ready(trailers.map(|trailers| {
            let trailers = head::of_trailers(&trailers).ok_or(Reason::PROTOCOL_ERROR)?;
            Ok(Frame::Trailers(trailers))
        }))
    }

    fn make_room(&mut self) {
        // It fails where more is made room for than was taken.
        let _never_more = self.stream.flow_control().release_capacity(self.taken);
        self.taken = 0;
    }

    /// Whether nothing more comes.
    pub fn is_over(&self) -> bool {
        self.part == Part::Over && self.held.is_empty()
    }

    /// How much content is still to come, where that is known.
    pub fn length(&self) -> Option<u64> {
        match self.is_over() {
            true => Some(0),
            false => self.left.map(|left| left + self.held.len() as u64),
        }
    }
}

/// A stream as a connection of its own: a tunnel's end (RFC 8441).
pub struct StreamIo {
    outgoing: Outgoing,
    incoming: Incoming,
    read: Bytes,
    /// The place that it takes on a connection to an upstream.
    _slot: Option<Slot>,
}

impl StreamIo {
    /// Of the two directions of a stream.
    pub fn new(outgoing: Outgoing, incoming: Incoming) -> StreamIo {
        StreamIo {
            outgoing,
            incoming,
            read: Bytes::new(),
            _slot: None,
        }
    }

    /// The same, with its place on a connection.
    #[must_use]
    pub fn with(self, slot: Option<Slot>) -> StreamIo {
        StreamIo {
            _slot: slot,
            ..self
        }
    }
}

impl AsyncRead for StreamIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.read.is_empty() {
            match ready!(this.incoming.poll_frame(cx)) {
                Some(Ok(Frame::Data(data))) => this.read = data,
                Some(Ok(Frame::Trailers(_))) | None => return Poll::Ready(Ok(())),
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
            }
        }
        let length = this.read.len().min(buf.remaining());
        buf.put_slice(&this.read[..length]);
        this.read.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for StreamIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let outgoing = &mut self.get_mut().outgoing;
        let room = ready!(outgoing.poll_room(buf.len(), cx)).map_err(io::Error::other)?;
        let length = room.min(buf.len());
        let piece = Bytes::copy_from_slice(&buf[..length]);
        outgoing
            .stream
            .send_data(piece, false)
            .map_err(io::Error::other)?;
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The connection's own task sends it.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ended = self.get_mut().outgoing.stream.send_data(Bytes::new(), true);
        Poll::Ready(ended.map_err(io::Error::other))
    }
}
