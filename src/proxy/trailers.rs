//! Trailer fields (RFC 9110 section 6.5), past hyper.
//!
//! hyper sends only those that a `Trailer` header announced, and a server's only to a client that
//! sent `TE: trailers`. Upstreams and clients that do without worked behind the original, so a body
//! does not give its trailers to hyper: it leaves them in a [`Slot`], and [`Trailing`] writes them
//! where hyper has ended the chunked body, between its `0\r\n` and the last `\r\n`.
//!
//! The invariant that makes it safe: from the moment the slot is filled to the moment hyper has
//! flushed, the last two bytes that hyper writes are the end of that body. hyper encodes the end right
//! after the body has said that it is over; and nothing of a next message is given to hyper before
//! the slot is empty again ([`Slot::emptied`]).

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BufMut, BytesMut};
use http::{
    HeaderMap, HeaderName,
    header::{
        AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE,
        CONTENT_TYPE, COOKIE, EXPECT, HOST, MAX_FORWARDS, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION,
        RANGE, SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
    },
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What may not come after the content (RFC 9110 section 6.5.1): framing, routing, authentication,
/// and what says how the content is to be read.
const FORBIDDEN: [HeaderName; 19] = [
    AUTHORIZATION,
    CACHE_CONTROL,
    CONNECTION,
    CONTENT_ENCODING,
    CONTENT_LENGTH,
    CONTENT_RANGE,
    CONTENT_TYPE,
    COOKIE,
    EXPECT,
    HOST,
    MAX_FORWARDS,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    RANGE,
    SET_COOKIE,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

const END: &[u8] = b"\r\n";

/// The trailers of the message that is being written on a connection.
#[derive(Debug, Default)]
pub struct Slot {
    fields: RefCell<BytesMut>,
    filled: Cell<bool>,
    awaited: Cell<bool>,
}

impl Slot {
    /// An empty slot.
    pub fn new() -> Rc<Slot> {
        Rc::default()
    }

    /// Leaves trailers to be written where the body that ends now ends.
    pub fn fill(&self, trailers: &HeaderMap) {
        let mut fields = self.fields.borrow_mut();
        for (name, value) in trailers
            .iter()
            .filter(|(name, _)| !FORBIDDEN.contains(name))
        {
            fields.put_slice(name.as_str().as_bytes());
            fields.put_slice(b": ");
            fields.put_slice(value.as_bytes());
            fields.put_slice(END);
        }
        self.filled.set(!fields.is_empty());
    }

    /// Waits until there is nothing to be written, on the task that writes. Until then no other
    /// message may be given to hyper.
    pub async fn emptied(&self) {
        poll_fn(|_| match self.is_empty() {
            true => Poll::Ready(()),
            false => {
                self.awaited.set(true);
                Poll::Pending
            }
        })
        .await;
    }

    /// Whether there is nothing to be written.
    pub fn is_empty(&self) -> bool {
        !self.filled.get()
    }
}

/// A connection whose writer puts trailers in.
#[derive(Debug)]
pub struct Trailing<T> {
    /// The connection.
    pub io: T,
    slot: Rc<Slot>,
    /// The last bytes that hyper wrote, as long as they may be the end of a body with trailers.
    held: &'static [u8],
    /// Trailers on their way.
    rest: BytesMut,
}

impl<T: AsyncWrite + Unpin> Trailing<T> {
    /// Writes what bodies leave in `slot`.
    pub fn new(io: T, slot: Rc<Slot>) -> Trailing<T> {
        Trailing {
            io,
            slot,
            held: &[],
            rest: BytesMut::new(),
        }
    }

    /// Writes `buf`, but keeps a line end at its end back.
    fn poll_write_held(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_release(cx))?;
        let Some(start) = buf.strip_suffix(END) else {
            return Pin::new(&mut self.io).poll_write(cx, buf);
        };
        if !start.is_empty() {
            let written = ready!(Pin::new(&mut self.io).poll_write(cx, start))?;
            if written < start.len() {
                return Poll::Ready(Ok(written));
            }
        }
        self.held = END;
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_release(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.held.is_empty() {
            let written = ready!(Pin::new(&mut self.io).poll_write(cx, self.held))?;
            self.held = &self.held[nonzero(written)?..];
        }
        Poll::Ready(Ok(()))
    }

    /// hyper has nothing more to write: what is held back is the end of the body.
    fn poll_put_in(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.held.is_empty() {
            self.rest.unsplit(self.slot.fields.borrow_mut().split());
            self.rest.put_slice(self.held);
            self.held = &[];
        }
        self.poll_rest(cx)
    }

    /// Finishes a [`poll_put_in`](Trailing::poll_put_in) that has begun. Nothing may come between:
    /// hyper has a `100 Continue` of its own to send as soon as the next request asks for it.
    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let began = self.rest.has_remaining();
        while self.rest.has_remaining() {
            let written = ready!(Pin::new(&mut self.io).poll_write(cx, &self.rest))?;
            self.rest.advance(nonzero(written)?);
        }
        if began {
            self.slot.filled.set(false);
            if self.slot.awaited.take() {
                // Whoever waits in `emptied` was polled before this.
                cx.waker().wake_by_ref();
            }
        }
        Poll::Ready(Ok(()))
    }
}

fn nonzero(written: usize) -> io::Result<usize> {
    match written {
        0 => Err(io::ErrorKind::WriteZero.into()),
        written => Ok(written),
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Trailing<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Trailing<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_rest(cx))?;
        match this.slot.is_empty() {
            true => Pin::new(&mut this.io).poll_write(cx, buf),
            false => this.poll_write_held(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_rest(cx))?;
        if this.slot.is_empty() {
            return Pin::new(&mut this.io).poll_write_vectored(cx, bufs);
        }
        match bufs.iter().find(|buf| !buf.is_empty()) {
            Some(buf) => this.poll_write_held(cx, buf),
            None => Poll::Ready(Ok(0)),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.slot.is_empty() {
            ready!(this.poll_put_in(cx))?;
        }
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    /// Takes what it is given in pieces of given sizes, with a refusal between any two.
    struct Grudging {
        taken: Vec<u8>,
        pieces: Vec<usize>,
        refuse: bool,
    }

    impl AsyncWrite for Grudging {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.refuse = !self.refuse;
            if self.refuse {
                return Poll::Pending;
            }
            let size = self.pieces.pop().unwrap_or(usize::MAX).clamp(1, buf.len());
            self.taken.extend_from_slice(&buf[..size]);
            Poll::Ready(Ok(size))
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn until_ready<T>(mut poll: impl FnMut() -> Poll<T>) -> T {
        for _ in 0..10_000 {
            if let Poll::Ready(value) = poll() {
                return value;
            }
        }
        panic!("it never got ready");
    }

    /// Writes as hyper does: all of its buffer, then a flush.
    fn write_all(io: &mut Trailing<Grudging>, mut bytes: &[u8]) {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        while !bytes.is_empty() {
            let written = until_ready(|| Pin::new(&mut *io).poll_write(&mut cx, bytes)).unwrap();
            bytes = &bytes[written..];
        }
        until_ready(|| Pin::new(&mut *io).poll_flush(&mut cx)).unwrap();
    }

    proptest! {
        /// However the socket takes it, and whatever the body looks like, the trailers stand before
        /// the last line end, and messages without them are untouched.
        #[test]
        fn trailers_stand_before_the_last_line_end(
            body in "(\r\n|[a-z0]){0,20}",
            pieces in proptest::collection::vec(1usize..8, 0..40),
        ) {
            let slot = Slot::new();
            let mut io = Trailing::new(
                Grudging { taken: Vec::new(), pieces, refuse: false },
                Rc::clone(&slot),
            );
            write_all(&mut io, b"first\r\n\r\n");
            let mut trailers = HeaderMap::new();
            trailers.insert("x-sum", HeaderValue::from_static("1"));
            trailers.insert("content-length", HeaderValue::from_static("7"));
            slot.fill(&trailers);
            prop_assert!(!slot.is_empty());
            write_all(&mut io, format!("{body}\r\n0\r\n\r\n").as_bytes());
            prop_assert!(slot.is_empty());
            write_all(&mut io, b"next\r\n\r\n");
            let expected = format!("first\r\n\r\n{body}\r\n0\r\nx-sum: 1\r\n\r\nnext\r\n\r\n");
            prop_assert_eq!(String::from_utf8(io.io.taken).unwrap(), expected);
        }
    }

    /// The story: the socket filled up inside the trailers, the client finished its request body and
    /// asked for a 100 Continue, and got it in the middle of a trailer.
    #[test]
    fn nothing_comes_between_trailers_that_are_half_written() {
        let slot = Slot::new();
        let socket = Grudging {
            taken: Vec::new(),
            pieces: vec![3, 2, 5],
            refuse: false,
        };
        let mut io = Trailing::new(socket, Rc::clone(&slot));
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", HeaderValue::from_static("1"));
        slot.fill(&trailers);
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let end = b"0\r\n\r\n";
        let mut left = &end[..];
        while !left.is_empty() {
            let written = until_ready(|| Pin::new(&mut io).poll_write(&mut cx, left)).unwrap();
            left = &left[written..];
        }
        let flushing = (0..3).map(|_| Pin::new(&mut io).poll_flush(&mut cx).is_pending());
        assert!(
            flushing.collect::<Vec<_>>().contains(&true),
            "the socket took it all at once"
        );
        write_all(&mut io, b"HTTP/1.1 100 Continue\r\n\r\n");
        let expected = "0\r\nx-sum: 1\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n";
        assert_eq!(String::from_utf8(io.io.taken).unwrap(), expected);
    }

    #[test]
    fn trailers_of_which_none_may_pass_are_none() {
        let slot = Slot::new();
        let mut trailers = HeaderMap::new();
        for name in FORBIDDEN {
            trailers.insert(name, HeaderValue::from_static("x"));
        }
        slot.fill(&trailers);
        assert!(slot.is_empty());
    }
}
