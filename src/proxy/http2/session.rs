//! A client's connection that speaks HTTP/2.
//!
//! One task serves all of its streams and then writes what they have to say, so that many small answers
//! leave together. The connection ends when the client or the process goes, when nothing was going on for
//! `idle-timeout`, and when the client owes us the rest of a frame for `read-timeout` or sends floods of
//! frames that are of no use ([`Guard`]).

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use bytes::{Buf, Bytes, BytesMut};
use futures_util::{StreamExt, stream::FuturesUnordered};
use h2::{Reason, server};
use slab::Slab;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    task::spawn_local,
};
use tracing::debug;

use super::{
    guard::Guard,
    stream::{self, Stream},
};
use crate::{
    clock,
    proxy::{
        forwarded::Peer,
        io::Io,
        watch::{Order, Patience},
        worker::Worker,
    },
};

/// Requests of one client at a time. What nginx and Envoy have.
const MOST_STREAMS: u32 = 128;
/// What a client may send of one request ahead of who reads it.
const STREAM_WINDOW: u32 = 256 << 10;
/// And of all of them.
const CONNECTION_WINDOW: u32 = 4 << 20;
/// What is kept of one response that the connection does not take.
const SEND_BUFFER: usize = 64 << 10;
/// What the guard counts as one piece of content.
const PIECE: usize = 64 << 10;
/// How long a client may take to take our last words.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How many bytes are thrown away meanwhile, so that our last words are not destroyed by a reset.
const LINGER_BYTES: usize = 1 << 20;
/// How long a client without requests may take to say that it has seen that we go.
const DRAIN_GRACE: Duration = Duration::from_secs(1);

/// The connection. Its parts are borrowed for the length of one poll only.
pub struct Session {
    /// The worker that serves it.
    pub worker: Rc<Worker>,
    /// Who is at the other end.
    pub peer: Rc<Peer>,
    streams: RefCell<Slab<Rc<Stream>>>,
    line: Rc<Line>,
    /// Since when nothing is going on, or what comes first is awaited.
    idle_since: Cell<Instant>,
    begun: Cell<bool>,
    drain_ordered: Cell<bool>,
    order: Cell<Option<Order>>,
    waker: RefCell<Option<Waker>>,
}

impl Session {
    /// With `peer` at the other end.
    pub fn new(worker: Rc<Worker>, peer: Peer) -> Rc<Session> {
        let now = clock::now();
        Rc::new(Session {
            worker,
            peer: Rc::new(peer),
            streams: RefCell::default(),
            line: Rc::new(Line {
                guard: RefCell::new(Guard::new(now)),
                blocked: Cell::new(false),
                free_since: Cell::new(now),
            }),
            idle_since: Cell::new(now),
            begun: Cell::new(false),
            drain_ordered: Cell::new(false),
            order: Cell::new(None),
            waker: RefCell::new(None),
        })
    }

    /// Serves the client until one of the two sides has had enough. `read` is what came in already.
    pub async fn serve(self: Rc<Self>, io: Io, read: BytesMut) {
        let lingers = Rc::new(Cell::new(false));
        let io = Guarded {
            io: Some(io),
            read,
            line: Rc::clone(&self.line),
            lingers: Rc::clone(&lingers),
        };
        let handshake = server::Builder::new()
            .max_concurrent_streams(MOST_STREAMS)
            .max_header_list_size(u32::try_from(self.worker.max_header_bytes).unwrap_or(u32::MAX))
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buffer_size(SEND_BUFFER)
            .enable_connect_protocol()
            .handshake::<_, Bytes>(io);
        let mut handshake = pin!(handshake);
        let begun = poll_fn(|cx| match self.orders(cx) {
            Some(Order::Expire | Order::Cut) => Poll::Ready(None),
            Some(Order::Drain | Order::Look) | None => handshake.as_mut().poll(cx).map(Some),
        });
        let connection = match begun.await {
            Some(Ok(connection)) => connection,
            Some(Err(error)) => return debug!(%error, "a client does not speak HTTP/2"),
            None => return debug!("a client did not begin in time"),
        };
        self.begun.set(true);
        self.idle_since.set(clock::now());
        self.talk(connection, &lingers).await;
    }

    async fn talk(
        self: &Rc<Self>,
        connection: server::Connection<Guarded, Bytes>,
        lingers: &Cell<bool>,
    ) {
        let mut connection = pin!(connection);
        let mut requests = FuturesUnordered::new();
        let mut leaving = None;
        poll_fn(|cx| {
            let order = match self.line.guard.borrow().is_flooded() && leaving.is_none() {
                true => Some(Order::Expire),
                false => self.orders(cx),
            };
            match order {
                Some(Order::Expire) if leaving.is_none() => {
                    let reason = match self.line.guard.borrow().is_flooded() {
                        true => Reason::ENHANCE_YOUR_CALM,
                        false => Reason::NO_ERROR,
                    };
                    debug!(%reason, "a client's connection is closed");
                    lingers.set(true);
                    connection.abrupt_shutdown(reason);
                    requests.clear();
                    leaving = Some(Box::pin(tokio::time::sleep(LAST_WORDS)));
                }
                Some(Order::Drain) if leaving.is_none() => connection.graceful_shutdown(),
                Some(Order::Cut) => return Poll::Ready(()),
                Some(Order::Expire | Order::Drain | Order::Look) | None => {}
            }
            if let Some(patience) = &mut leaving
                && patience.as_mut().poll(cx).is_ready()
            {
                return Poll::Ready(());
            }
            loop {
                // First what there is to say: it is written when the connection is looked at.
                while let Poll::Ready(Some(())) = requests.poll_next_unpin(cx) {}
                match connection.poll_accept(cx) {
                    Poll::Ready(Some(Ok((request, respond)))) => {
                        let session = Rc::clone(self);
                        requests.push(stream::serve(session, request, respond));
                    }
                    Poll::Ready(Some(Err(error))) => {
                        debug!(%error, "a client's connection broke off");
                        lingers.set(true);
                        return Poll::Ready(());
                    }
                    Poll::Ready(None) => return Poll::Ready(()),
                    Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await;
        // What was in flight for this client, if anything, is cancelled here.
    }

    /// A stream is looked after as long as what this gives lives.
    pub fn register(self: &Rc<Self>, stream: &Rc<Stream>) -> Registration {
        Registration {
            key: self.streams.borrow_mut().insert(Rc::clone(stream)),
            session: Rc::clone(self),
        }
    }

    /// The head of a response was sent, or this much of its content.
    pub fn served(&self, bytes: usize) {
        let mut guard = self.line.guard.borrow_mut();
        for _piece in 0..bytes.div_ceil(PIECE).max(1) {
            guard.served();
        }
    }

    /// Called by the connection's task whenever it runs.
    fn orders(&self, cx: &Context<'_>) -> Option<Order> {
        let mut slot = self.waker.borrow_mut();
        if !slot
            .as_ref()
            .is_some_and(|known| known.will_wake(cx.waker()))
        {
            *slot = Some(cx.waker().clone());
        }
        self.order.take()
    }

    /// Tells the connection's task what to do, whatever is going on.
    pub fn give(&self, order: Order) {
        self.order.set(Some(order));
        if let Some(waker) = self.waker.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }

    /// Called by the worker a few times a second: wakes the tasks for which something is overdue.
    /// `draining` says since when the worker drains.
    pub fn check(&self, now: Instant, patience: &Patience, draining: Option<Instant>) {
        let late = |since: Instant, limit: Duration| {
            now.saturating_duration_since(since) >= limit + patience.blur
        };
        let streams = self.streams.borrow();
        for (_, stream) in streams.iter() {
            stream.watch.check(now, patience, None);
        }
        let rests = streams.is_empty();
        let idle_since = self.idle_since.get();
        let owed = self.line.owed_since();
        let expired = match (self.begun.get(), rests) {
            (false, _) => late(idle_since, patience.read),
            (true, true) => late(idle_since, patience.idle),
            (true, false) => false,
        };
        let gone = |drained: Instant| rests && late(drained.max(idle_since), DRAIN_GRACE);
        if expired
            || owed.is_some_and(|since| late(since, patience.read))
            || draining.is_some_and(gone)
        {
            self.give(Order::Expire);
        } else if draining.is_some() && self.begun.get() && !self.drain_ordered.replace(true) {
            self.give(Order::Drain);
        }
    }
}

/// Registers a stream with its connection.
pub struct Registration {
    session: Rc<Session>,
    key: usize,
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut streams = self.session.streams.borrow_mut();
        streams.remove(self.key);
        if streams.is_empty() {
            self.session.idle_since.set(clock::recent());
        }
    }
}

/// What is noted of the bytes of a connection.
struct Line {
    guard: RefCell<Guard>,
    /// The client does not take what we write: then we do not read either.
    blocked: Cell<bool>,
    /// Since when it does.
    free_since: Cell<Instant>,
}

impl Line {
    fn wrote(&self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if self.blocked.replace(polled.is_pending()) && polled.is_ready() {
            self.free_since.set(clock::recent());
        }
        polled
    }

    /// Since when the client owes us the rest of something.
    fn owed_since(&self) -> Option<Instant> {
        let since = self.guard.borrow().owed_since()?;
        (!self.blocked.get()).then(|| since.max(self.free_since.get()))
    }
}

/// The connection, whose bytes the guard gets to see.
struct Guarded {
    /// Always there, until it is dropped.
    io: Option<Io>,
    /// What came in before it was known what it is.
    read: BytesMut,
    line: Rc<Line>,
    /// The client may still be sending when it is dropped.
    lingers: Rc<Cell<bool>>,
}

impl Guarded {
    fn io(self: Pin<&mut Self>) -> Pin<&mut Io> {
        let io = self.get_mut().io.as_mut();
        Pin::new(io.expect("it is taken when this is dropped"))
    }
}

impl AsyncRead for Guarded {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let polled = match this.read.is_empty() {
            true => Pin::new(&mut *this).io().poll_read(cx, buf),
            false => {
                let length = this.read.len().min(buf.remaining());
                buf.put_slice(&this.read[..length]);
                this.read.advance(length);
                Poll::Ready(Ok(()))
            }
        };
        let read = &buf.filled()[before..];
        if !read.is_empty() {
            this.line.guard.borrow_mut().received(read, clock::recent());
        }
        polled
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let line = Rc::clone(&self.line);
        line.wrote(self.io().poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let line = Rc::clone(&self.line);
        line.wrote(self.io().poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.as_ref().is_some_and(AsyncWrite::is_write_vectored)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io().poll_shutdown(cx)
    }
}

impl Drop for Guarded {
    /// A reset, which follows where a client still sends, would destroy what it has not read of our last
    /// words: so what it sends is thrown away for a while.
    fn drop(&mut self) {
        if let (true, Some(io)) = (self.lingers.get(), self.io.take()) {
            spawn_local(async move {
                let _elapsed = tokio::time::timeout(LAST_WORDS, linger(io)).await;
            });
        }
    }
}

async fn linger(mut io: Io) {
    let mut scratch = vec![0; 4096];
    let mut left = LINGER_BYTES;
    while let Ok(read @ 1..) = io.read(&mut scratch).await {
        left = left.saturating_sub(read);
        if left == 0 {
            return;
        }
    }
}
