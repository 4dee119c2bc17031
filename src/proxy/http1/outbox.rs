//! Bytes on their way out of a connection.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::AsyncWrite;

use super::chunked;

/// From this length on, a piece of content is not copied.
const LARGE: usize = 8 << 10;

/// Heads, framing and small pieces are copied together and leave with one write; a large piece goes
/// out as it is, between what was put in before and after it.
#[derive(Debug, Default)]
pub struct Outbox {
    before: BytesMut,
    large: Bytes,
    after: BytesMut,
    /// Something was written that the connection may not have sent: TLS keeps what its socket does
    /// not take.
    unflushed: bool,
}

impl Outbox {
    /// Where to write heads and framing.
    pub fn buf(&mut self) -> &mut BytesMut {
        match self.large.is_empty() {
            true => &mut self.before,
            false => &mut self.after,
        }
    }

    /// Puts content in. At most one large piece at a time: see [`is_full`](Outbox::is_full).
    pub fn put(&mut self, data: Bytes) {
        if data.len() < LARGE || !self.large.is_empty() {
            self.buf().put_slice(&data);
        } else {
            self.large = data;
        }
    }

    /// Puts content in as a chunk of its own.
    pub fn put_chunk(&mut self, data: Bytes) {
        chunked::put_size(self.buf(), data.len());
        self.put(data);
        self.buf().put_slice(b"\r\n");
    }

    /// Whether more should be put in only when this has been written.
    pub fn is_full(&self) -> bool {
        !self.large.is_empty() || self.before.len() >= LARGE
    }

    /// Whether all was sent.
    pub fn is_empty(&self) -> bool {
        self.is_written() && !self.unflushed
    }

    fn is_written(&self) -> bool {
        self.before.is_empty() && self.large.is_empty() && self.after.is_empty()
    }

    /// Lets go of memory, where nothing is kept in it.
    pub fn rest(&mut self) {
        if self.is_empty() {
            *self = Outbox::default();
        }
    }

    /// Throws the first `length` bytes away, of which none was written, and puts others there.
    pub fn replace_start(&mut self, length: usize, start: &[u8]) {
        let kept = self.before.split_off(length);
        self.before.clear();
        self.before.put_slice(start);
        self.before.unsplit(kept);
    }

    /// Sends all there is. How many bytes the connection took, also where that was not all, is added to
    /// `written`.
    ///
    /// # Errors
    /// The connection's.
    pub fn poll_write<W>(
        &mut self,
        io: &mut W,
        cx: &mut Context<'_>,
        written: &mut u64,
    ) -> Poll<io::Result<()>>
    where
        W: AsyncWrite + Unpin,
    {
        while !self.is_written() {
            let took = if self.large.is_empty() {
                ready!(Pin::new(&mut *io).poll_write(cx, &self.before))?
            } else {
                let slices = [
                    IoSlice::new(&self.before),
                    IoSlice::new(&self.large),
                    IoSlice::new(&self.after),
                ];
                ready!(Pin::new(&mut *io).poll_write_vectored(cx, &slices))?
            };
            if took == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            *written += took as u64;
            self.unflushed = true;
            self.took(took);
        }
        if self.unflushed {
            ready!(Pin::new(io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    fn took(&mut self, mut took: usize) {
        let before = took.min(self.before.len());
        self.before.advance(before);
        took -= before;
        let large = took.min(self.large.len());
        self.large.advance(large);
        took -= large;
        self.after.advance(took);
        if self.large.is_empty() {
            self.large = Bytes::new();
            if self.before.is_empty() {
                self.before = std::mem::take(&mut self.after);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Takes a few bytes at a time, and sometimes none.
    struct Grudging {
        taken: Vec<u8>,
        pieces: Vec<usize>,
    }

    impl AsyncWrite for Grudging {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            let socket = self.get_mut();
            let piece = match socket.pieces.pop() {
                None => buf.len(),
                Some(0) => return Poll::Pending,
                Some(piece) => piece.min(buf.len()),
            };
            socket.taken.extend_from_slice(&buf[..piece]);
            Poll::Ready(Ok(piece))
        }

        fn poll_write_vectored(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bufs: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let all: Vec<u8> = bufs.iter().flat_map(|buf| buf.to_vec()).collect();
            self.poll_write(cx, &all)
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    proptest! {
        /// What is put in comes out, in that order, however little the socket takes and whenever.
        #[test]
        fn everything_goes_out_in_order(
            sizes in proptest::collection::vec((0usize..20_000, 0u8..4), 1..12),
            pieces in proptest::collection::vec(0usize..30_000, 0..40),
        ) {
            let mut outbox = Outbox::default();
            let mut socket = Grudging { taken: Vec::new(), pieces };
            let mut expected = Vec::new();
            let mut written = 0;
            let mut cx = Context::from_waker(std::task::Waker::noop());
            for (size, writes) in sizes {
                let mark = expected.len() as u8;
                expected.extend_from_slice(b"size\r\n");
                outbox.buf().put_slice(b"size\r\n");
                expected.resize(expected.len() + size, mark);
                outbox.put(Bytes::from(vec![mark; size]));
                for _ in 0..writes {
                    let _pending = outbox.poll_write(&mut socket, &mut cx, &mut written);
                }
            }
            while outbox.poll_write(&mut socket, &mut cx, &mut written).is_pending() {}
            prop_assert!(outbox.is_empty());
            prop_assert_eq!(written, expected.len() as u64);
            prop_assert!(socket.taken == expected);
        }
    }

    /// Takes everything, and sends it only when flushed often enough: TLS whose socket is full.
    struct Lazy {
        refusals: usize,
        kept: bool,
    }

    impl AsyncWrite for Lazy {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.get_mut().kept = true;
            Poll::Ready(Ok(buf.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            let socket = self.get_mut();
            if socket.refusals > 0 {
                socket.refusals -= 1;
                return Poll::Pending;
            }
            socket.kept = false;
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[test]
    fn what_is_written_is_sent_only_when_it_is_flushed() {
        let mut socket = Lazy {
            refusals: 2,
            kept: false,
        };
        let mut outbox = Outbox::default();
        outbox.put(Bytes::from_static(b"the end of an upload"));
        let mut cx = Context::from_waker(std::task::Waker::noop());
        for _ in 0..2 {
            let polled = outbox.poll_write(&mut socket, &mut cx, &mut 0);
            assert!(polled.is_pending() && !outbox.is_empty());
        }
        let polled = outbox.poll_write(&mut socket, &mut cx, &mut 0);
        assert!(polled.is_ready() && outbox.is_empty() && !socket.kept);
    }

    #[test]
    fn a_start_that_was_not_written_can_be_replaced() {
        let mut outbox = Outbox::default();
        outbox.buf().put_slice(b"old head|");
        outbox.put(Bytes::from_static(b"body"));
        outbox.replace_start(9, b"a new and longer head|");
        assert_eq!(&outbox.before[..], b"a new and longer head|body");
    }
}
