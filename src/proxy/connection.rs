//! One client connection: what it has received and has yet to send, and where its current request's
//! body ends. [`super::conversation`] says what happens on it, and in which order.

use std::{
    cell::{Cell, RefCell},
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::{BufMut, BytesMut};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, Interest, ReadBuf, Ready},
    net::TcpStream,
};

use super::{
    fields::KnownSet,
    forwarded::Peer,
    http1::{
        chunked,
        framing::{Decoder, Framing, Step},
        head::{self, BadHead, Search},
        inbox::Inbox,
        outbox::Outbox,
    },
    io::Io,
    message::{Frame, RequestHead, ResponseHead},
    notes::Notes,
    watch::{Stage, Watch},
    worker::Worker,
};
use crate::clock;

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// A client connection. Its parts are borrowed for the length of one poll only.
pub struct Connection {
    /// The worker that serves it.
    pub worker: Rc<Worker>,
    /// What it waits for.
    pub watch: Watch,
    /// Who is at the other end.
    pub peer: Peer,
    /// By what the client is known from its current request on, as the value of `Set-Cookie`.
    pub cookie: Cell<Option<Box<[u8]>>>,
    /// What is to be told of its current request.
    pub notes: Notes,
    io: RefCell<Io>,
    inbox: RefCell<Inbox>,
    search: RefCell<Search>,
    outbox: RefCell<Outbox>,
    body: RefCell<Decoder>,
    /// The client waits for a `100 Continue` before it sends its body.
    continue_awaited: Cell<bool>,
    /// It has served a request.
    served: Cell<bool>,
    /// No further request is waited for.
    leaving: Cell<bool>,
}

/// Why a request did not come in.
#[derive(Debug)]
pub enum NoRequest {
    /// What came is none.
    Bad(BadHead),
    /// The client speaks HTTP/2.
    Http2,
    /// The connection is over.
    Ended,
}

/// Why a request body did not come in to its end.
#[derive(Debug, thiserror::Error)]
pub enum BrokenBody {
    /// The connection broke, or ended.
    #[error("the connection ended before the request body did")]
    Cut,
    /// What came are no chunks.
    #[error("the request body is malformed: {0}")]
    Malformed(#[from] chunked::Malformed),
}

impl Connection {
    /// With `peer` at the other end.
    pub fn new(worker: Rc<Worker>, io: Io, peer: Peer) -> Rc<Connection> {
        Rc::new(Connection {
            worker,
            watch: Watch::new(),
            peer,
            cookie: Cell::new(None),
            notes: Notes::default(),
            io: RefCell::new(io),
            inbox: RefCell::default(),
            search: RefCell::default(),
            outbox: RefCell::default(),
            body: RefCell::new(Decoder::ended()),
            continue_awaited: Cell::new(false),
            served: Cell::new(false),
            leaving: Cell::new(false),
        })
    }

    /// What is left of it for another protocol: the other end, the connection, and what was read of it.
    /// `None` while somebody still has to do with it.
    pub fn into_parts(self: Rc<Self>) -> Option<(Peer, Io, BytesMut)> {
        let Connection {
            peer, io, inbox, ..
        } = Rc::into_inner(self)?;
        Some((peer, io.into_inner(), inbox.into_inner().bytes))
    }

    /// A request has come, or what was to be one.
    pub fn note(&self, head: Option<&RequestHead>, started: Instant) {
        self.notes.begin(&self.worker, &self.peer, head, started);
    }

    /// Waits for the next request head.
    ///
    /// # Errors
    /// There is none.
    pub fn poll_request(&self, cx: &mut Context<'_>) -> Poll<Result<RequestHead, NoRequest>> {
        let max = self.worker.kit().config.server.max_header_bytes;
        let mut search = self.search.borrow_mut();
        loop {
            if let Some(parsed) = self.parse_request(&mut search, max) {
                return Poll::Ready(parsed);
            }
            let read = match self.poll_fill(cx, 0) {
                Poll::Pending if self.leaving.get() && self.inbox.borrow().bytes.is_empty() => {
                    Ok(0)
                }
                Poll::Pending => return Poll::Pending,
                Poll::Ready(read) => read,
            };
            if !matches!(read, Ok(1..)) {
                return Poll::Ready(Err(NoRequest::Ended));
            }
        }
    }

    fn parse_request(
        &self,
        search: &mut Search,
        max_bytes: usize,
    ) -> Option<Result<RequestHead, NoRequest>> {
        let bytes = &mut self.inbox.borrow_mut().bytes;
        if bytes.is_empty() {
            return None;
        }
        match head::parse_request(bytes, search, max_bytes) {
            Ok(Some(head)) => return Some(Ok(head)),
            Ok(None) => {}
            Err(BadHead::Http2Preface) if self.takes_http2() => {
                return Some(Err(NoRequest::Http2));
            }
            Err(bad) => return Some(Err(NoRequest::Bad(bad))),
        }
        if !bytes.is_empty() {
            self.watch.received();
        }
        None
    }

    /// Whether a client may begin with HTTP/2 here (RFC 9113 section 3.3): on a new connection, which has
    /// not agreed on anything else.
    fn takes_http2(&self) -> bool {
        let is_new = matches!(self.watch.stage(), Stage::Fresh | Stage::Head) && !self.served.get();
        is_new && matches!(*self.io.borrow(), Io::Plain(_)) && self.worker.kit().config.server.http2
    }

    /// A request was read up to its body.
    pub fn begin_body(&self, framing: Framing, continue_awaited: bool) {
        *self.body.borrow_mut() = Decoder::new(framing, false);
        self.continue_awaited.set(continue_awaited);
    }

    /// The next piece of the request body. A client that waits to be told to send it is told.
    pub fn poll_body(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BrokenBody>>> {
        let mut body = self.body.borrow_mut();
        loop {
            match body.step(&mut self.inbox.borrow_mut().bytes) {
                Ok(Step::Data(data)) => return Poll::Ready(Some(Ok(Frame::Data(data)))),
                Ok(Step::Trailers(trailers)) => {
                    return Poll::Ready(Some(Ok(Frame::Trailers(trailers))));
                }
                Ok(Step::End) => return Poll::Ready(None),
                Ok(Step::More) => {}
                Err(malformed) => return Poll::Ready(Some(Err(malformed.into()))),
            }
            if self.continue_awaited.take() {
                self.outbox.borrow_mut().buf().put_slice(CONTINUE);
            }
            if !self.is_flushed() {
                // An error shows when reading.
                let _sent_later = self.poll_flush(cx);
            }
            if !matches!(ready!(self.poll_fill(cx, body.expected())), Ok(1..)) {
                return Poll::Ready(Some(Err(BrokenBody::Cut)));
            }
        }
    }

    /// Whoever gets the request body does not keep up.
    pub fn slow_down(&self) {
        self.inbox.borrow_mut().slow_down();
    }

    /// Whether the request was read to its end.
    pub fn is_body_over(&self) -> bool {
        self.body.borrow().is_over()
    }

    /// How much of the request body is still to be read, where that is known.
    pub fn body_length(&self) -> Option<u64> {
        self.body.borrow().length()
    }

    /// The final response begins: it is too late to tell the client to send its body. Whether the
    /// client was waiting for that.
    pub fn give_up_continue(&self) -> bool {
        self.continue_awaited.take()
    }

    /// Puts an informational response (RFC 9110 section 15.2) before the final one.
    pub fn put_informational(&self, head: &ResponseHead) {
        self.put(|out| {
            head::put_status_line(out, head.status, head.reason.as_deref());
            head.headers.put_without(KnownSet::of(&[]), out);
            out.put_slice(b"\r\n");
        });
    }

    /// Has something written to the client, after what is there already.
    pub fn put(&self, write: impl FnOnce(&mut BytesMut)) {
        write(self.outbox.borrow_mut().buf());
    }

    /// The same with all of the outbox.
    pub fn with_outbox<T>(&self, act: impl FnOnce(&mut Outbox) -> T) -> T {
        act(&mut self.outbox.borrow_mut())
    }

    /// Sends all that is to be sent.
    ///
    /// # Errors
    /// The connection's.
    pub fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut outbox = self.outbox.borrow_mut();
        let mut written = 0;
        outbox.poll_write(&mut *self.io.borrow_mut(), cx, &mut written)
    }

    /// Whether all was sent.
    pub fn is_flushed(&self) -> bool {
        self.outbox.borrow().is_empty()
    }

    /// A request is over: the connection waits for the next one, if that is not there yet.
    pub fn rest(&self) {
        self.served.set(true);
        let mut inbox = self.inbox.borrow_mut();
        inbox.rest();
        // What is there already of the next head, if anything, is noticed when it is looked at.
        self.watch.enter(Stage::Idle, clock::recent());
    }

    /// Lets go of memory, if the connection waits for a request.
    pub fn shed(&self) {
        if self.watch.stage() == Stage::Idle {
            self.outbox.borrow_mut().rest();
        }
    }

    /// No further request is waited for; one that is on its way to us already is answered.
    pub fn leave(&self) {
        self.leaving.set(true);
    }

    /// Whether the client has closed its end, as far as can be seen without reading what it sent. It
    /// may still read what it gets.
    pub fn has_client_left(&self) -> bool {
        self.is(Interest::READABLE, Ready::is_read_closed)
    }

    /// Whether the connection is broken, so that nothing can be sent to the client. If not, the task is
    /// woken when that happens while the client sends nothing.
    pub fn poll_broken(&self, cx: &mut Context<'_>) -> bool {
        let quiet = self.io.borrow().socket().poll_read_ready(cx).is_pending();
        !quiet && self.is(Interest::WRITABLE, Ready::is_write_closed)
    }

    /// What is known of the socket, without asking the kernel.
    fn is(&self, interest: Interest, what: impl FnOnce(Ready) -> bool) -> bool {
        let io = self.io.borrow();
        io.socket().known(interest).is_some_and(what)
    }

    /// Whether the client has sent something that was not read.
    pub fn has_unread(&self) -> bool {
        !self.is_body_over()
            || !self.inbox.borrow().bytes.is_empty()
            || self.io.borrow().has_unread()
    }

    /// Has the close that follows be a reset: the one way to say that what was sent was not all.
    pub fn reset(&self) {
        self.with_tcp(|tcp| {
            let _best_effort = SockRef::from(tcp).set_linger(Some(Duration::ZERO));
        });
    }

    /// Does something with what the kernel gave us.
    pub fn with_tcp(&self, act: impl FnOnce(&TcpStream)) {
        if let Some(tcp) = self.io.borrow().tcp() {
            act(tcp);
        }
    }

    /// Writes `bytes` if the socket takes them at once.
    pub fn try_write(&self, bytes: &[u8]) {
        self.io.borrow_mut().try_write(bytes);
    }

    fn poll_fill(&self, cx: &mut Context<'_>, expected: u64) -> Poll<io::Result<usize>> {
        self.inbox.borrow_mut().poll_fill(
            &mut *self.io.borrow_mut(),
            &mut self.worker.scratch.borrow_mut(),
            expected,
            cx,
        )
    }
}

/// The connection without HTTP, for a tunnel and for the last goodbye.
pub struct Raw<'a>(pub &'a Connection);

impl Raw<'_> {
    /// What was read already.
    pub fn take_read(&self) -> BytesMut {
        std::mem::take(&mut self.0.inbox.borrow_mut().bytes)
    }

    /// Says that nothing more will be sent.
    ///
    /// # Errors
    /// The connection's.
    pub async fn finish(&mut self) -> io::Result<()> {
        self.shutdown().await
    }
}

impl AsyncRead for Raw<'_> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.io.borrow_mut()).poll_read(cx, buf)
    }
}

impl AsyncWrite for Raw<'_> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.io.borrow_mut()).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.io.borrow_mut()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.io.borrow_mut()).poll_shutdown(cx)
    }
}
