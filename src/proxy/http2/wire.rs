//! A connection as the `h2` crate gets it: its bytes, read in large pieces and written in large pieces.
//!
//! `h2` writes each piece of content by itself and wants it sent. Here what it writes is kept until the
//! connection's task has nothing more to say ([`Wire::poll_send`]), or until it is much: so many small
//! messages leave with one system call, and one TLS record.

use std::{
    cell::{Cell, RefCell},
    io::{self, IoSlice},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::timeout,
};

use super::guard::Guard;
use crate::{
    clock,
    proxy::{http1::inbox::Scratch, io::Io},
};

/// What is kept; a TLS record has no more.
const KEPT: usize = 16 << 10;

/// The connection. Its parts are borrowed for the length of one poll only.
pub struct Wire {
    io: RefCell<Io>,
    /// What came in and was not yet taken.
    read: RefCell<BytesMut>,
    /// What was written and not yet sent.
    kept: RefCell<BytesMut>,
    scratch: Rc<RefCell<Scratch>>,
    /// Sees what a client sends.
    guard: Option<RefCell<Guard>>,
    /// When something last came in.
    heard: Cell<Option<Instant>>,
    /// The other side does not take what we write: then we do not read either.
    blocked: Cell<bool>,
    /// Since when it does.
    free_since: Cell<Instant>,
}

/// What `h2` gets of it.
pub struct WireEnd(Rc<Wire>);

impl Wire {
    /// Of which `read` came in already. A `guard` is to see all that comes in.
    pub fn new(
        io: Io,
        read: BytesMut,
        scratch: Rc<RefCell<Scratch>>,
        guard: Option<Guard>,
    ) -> Rc<Wire> {
        let wire = Wire {
            io: RefCell::new(io),
            read: RefCell::default(),
            kept: RefCell::default(),
            scratch,
            guard: guard.map(RefCell::new),
            heard: Cell::new(None),
            blocked: Cell::new(false),
            free_since: Cell::new(clock::recent()),
        };
        if !read.is_empty() {
            wire.came(&read);
        }
        wire.read.replace(read);
        Rc::new(wire)
    }

    /// The end that `h2` gets.
    pub fn end(self: &Rc<Self>) -> WireEnd {
        WireEnd(Rc::clone(self))
    }

    /// Sends what was written; to be called when there is nothing more to say at the moment.
    ///
    /// # Errors
    /// The connection's. It shows in the next read or write too.
    pub fn poll_send(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut io = self.io.borrow_mut();
        let mut kept = self.kept.borrow_mut();
        let polled = send(&mut io, &mut kept, cx);
        self.noted(polled)
    }

    /// Reads and throws away what the other side still sends, up to `most` bytes and until it is silent for
    /// `patience`, so that our last words are not destroyed by a reset.
    pub async fn linger(self: Rc<Self>, mut most: usize, patience: Duration) {
        let mut end = WireEnd(self);
        let mut scratch = vec![0; 4096];
        while let Ok(Ok(read @ 1..)) = timeout(patience, end.read(&mut scratch)).await {
            most = most.saturating_sub(read);
            if most == 0 {
                return;
            }
        }
    }

    /// Does something with what the kernel gave us.
    pub fn with_tcp(&self, act: impl FnOnce(&TcpStream)) {
        if let Some(tcp) = self.io.borrow().tcp() {
            act(tcp);
        }
    }

    /// Something of use was done for the client, so many times.
    pub fn served(&self, times: usize) {
        if let Some(guard) = &self.guard {
            let mut guard = guard.borrow_mut();
            (0..times).for_each(|_| guard.served());
        }
    }

    /// Whether the client sends floods of what is of no use.
    pub fn is_flooded(&self) -> bool {
        self.guard
            .as_ref()
            .is_some_and(|guard| guard.borrow().is_flooded())
    }

    /// Since when the client owes us the rest of something, which we would read.
    pub fn owed_since(&self) -> Option<Instant> {
        let since = self.guard.as_ref()?.borrow().owed_since()?;
        (!self.blocked.get()).then(|| since.max(self.free_since.get()))
    }

    /// When some of the content of a client's requests last came.
    pub fn content_came(&self) -> Option<Instant> {
        self.guard.as_ref()?.borrow().content_came()
    }

    /// When something last came in.
    pub fn heard(&self) -> Option<Instant> {
        self.heard.get()
    }

    /// Since when the other side takes what is written; `None` while it does not.
    pub fn free_since(&self) -> Option<Instant> {
        (!self.blocked.get()).then(|| self.free_since.get())
    }

    fn came(&self, bytes: &[u8]) {
        let now = clock::recent();
        self.heard.set(Some(now));
        if let Some(guard) = &self.guard {
            guard.borrow_mut().received(bytes, now);
        }
    }

    fn noted<T>(&self, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if self.blocked.replace(polled.is_pending()) && polled.is_ready() {
            self.free_since.set(clock::recent());
        }
        polled
    }
}

fn send(io: &mut Io, kept: &mut BytesMut, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    while !kept.is_empty() {
        match ready!(Pin::new(&mut *io).poll_write(cx, kept))? {
            0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            sent => kept.advance(sent),
        }
    }
    // Most connections wait most of the time, and need no room then.
    *kept = BytesMut::new();
    Pin::new(io).poll_flush(cx)
}

impl AsyncRead for WireEnd {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let wire = &self.get_mut().0;
        let mut read = wire.read.borrow_mut();
        if read.is_empty() {
            let mut scratch = wire.scratch.borrow_mut();
            let mut space = ReadBuf::new(&mut scratch[..]);
            ready!(Pin::new(&mut *wire.io.borrow_mut()).poll_read(cx, &mut space))?;
            let came = space.filled();
            if !came.is_empty() {
                wire.came(came);
            }
            let (taken, left) = came.split_at(came.len().min(buf.remaining()));
            buf.put_slice(taken);
            read.extend_from_slice(left);
            return Poll::Ready(Ok(()));
        }
        let taken = read.len().min(buf.remaining());
        buf.put_slice(&read[..taken]);
        read.advance(taken);
        if read.is_empty() {
            *read = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for WireEnd {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wire = &self.get_mut().0;
        let mut kept = wire.kept.borrow_mut();
        let length: usize = bufs.iter().map(|buf| buf.len()).sum();
        if kept.len() + length <= KEPT {
            bufs.iter().for_each(|buf| kept.extend_from_slice(buf));
            return Poll::Ready(Ok(length));
        }
        let mut io = wire.io.borrow_mut();
        if length < KEPT / 2 {
            // It fits when what there is has gone.
            ready!(wire.noted(send(&mut io, &mut kept, cx)))?;
            bufs.iter().for_each(|buf| kept.extend_from_slice(buf));
            return Poll::Ready(Ok(length));
        }
        loop {
            let slices: Vec<_> = [IoSlice::new(&kept)]
                .into_iter()
                .chain(bufs.iter().map(|buf| IoSlice::new(buf)))
                .collect();
            let written = Pin::new(&mut *io).poll_write_vectored(cx, &slices);
            let written = ready!(wire.noted(written))?;
            if written == 0 {
                return Poll::Ready(Ok(0));
            }
            let ours = written.min(kept.len());
            kept.advance(ours);
            if written > ours {
                return Poll::Ready(Ok(written - ours));
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// It is sent when there is nothing more to say: see [`Wire::poll_send`].
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let wire = &self.get_mut().0;
        ready!(wire.poll_send(cx))?;
        Pin::new(&mut *wire.io.borrow_mut()).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, task::Waker};

    use tokio::{io::AsyncWriteExt, net::UnixStream};

    use super::*;
    use crate::proxy::{http1::inbox, io::Socket};

    fn wire() -> (Rc<Wire>, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let scratch = Rc::new(RefCell::new(inbox::scratch()));
        let io = Io::Plain(Socket::Unix(ours));
        (Wire::new(io, BytesMut::new(), scratch, None), theirs)
    }

    async fn send(wire: &Wire) {
        poll_fn(|cx| wire.poll_send(cx)).await.unwrap();
    }

    async fn next(theirs: &mut UnixStream) -> Vec<u8> {
        let mut read = vec![0; 1 << 20];
        let length = theirs.read(&mut read).await.unwrap();
        read[..length].to_vec()
    }

    #[tokio::test]
    async fn small_pieces_leave_together_when_there_is_nothing_more_to_say() {
        let (wire, mut theirs) = wire();
        let mut end = wire.end();
        for piece in [&b"one "[..], b"two ", b"three"] {
            end.write_all(piece).await.unwrap();
            end.flush().await.unwrap();
        }
        assert!(theirs.try_read(&mut [0]).is_err());
        send(&wire).await;
        assert_eq!(next(&mut theirs).await, b"one two three");
        assert_eq!(wire.kept.borrow().capacity(), 0);
    }

    #[tokio::test]
    async fn the_order_is_kept_whatever_the_length() {
        let (wire, mut theirs) = wire();
        let lengths = [3, 20_000, 1, 9_000, 9_000, 16_384, 7, 100_000, 5];
        let reading = async {
            let mut all = Vec::new();
            theirs.read_to_end(&mut all).await.unwrap();
            all
        };
        let mut end = wire.end();
        let writing = async {
            let mut sent = Vec::new();
            for (number, length) in lengths.into_iter().enumerate() {
                let piece = vec![number as u8; length];
                let (start, rest) = piece.split_at(length / 3);
                let mut left = [start, rest].concat();
                while !left.is_empty() {
                    let at = left.len() / 2;
                    let (start, rest) = left.split_at(at);
                    let slices = [IoSlice::new(start), IoSlice::new(rest)];
                    let taken = end.write_vectored(&slices).await.unwrap();
                    assert!(taken > 0);
                    left.drain(..taken);
                }
                sent.extend(piece);
            }
            // What is kept goes before the end.
            end.shutdown().await.unwrap();
            sent
        };
        let (sent, read) = tokio::join!(writing, reading);
        assert!(read == sent);
    }

    #[tokio::test]
    async fn who_does_not_read_is_seen_and_holds_no_more_than_a_little() {
        let (wire, mut theirs) = wire();
        let mut end = wire.end();
        let mut cx = Context::from_waker(Waker::noop());
        let mut taken = 0;
        while let Poll::Ready(Ok(more)) = Pin::new(&mut end).poll_write(&mut cx, &[b'x'; 4000]) {
            taken += more;
        }
        assert!(wire.free_since().is_none());
        assert!(wire.kept.borrow().len() <= KEPT);
        let reading = async {
            let mut read = 0;
            while read < taken {
                read += next(&mut theirs).await.len();
            }
        };
        tokio::join!(send(&wire), reading);
        assert!(wire.free_since().is_some());
    }

    #[tokio::test]
    async fn what_there_is_no_room_for_is_given_the_next_time() {
        let (wire, mut theirs) = wire();
        theirs.write_all(b"hello world").await.unwrap();
        let mut end = wire.end();
        let mut read = [0; 5];
        end.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"hello");
        assert!(wire.heard().is_some());
        let mut rest = [0; 16];
        let length = end.read(&mut rest).await.unwrap();
        assert_eq!(&rest[..length], b" world");
        drop(theirs);
        assert_eq!(end.read(&mut rest).await.unwrap(), 0);
    }
}
