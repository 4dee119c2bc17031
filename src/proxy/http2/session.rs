//! A client's connection that speaks HTTP/2.
//!
//! One task serves all of its streams and then writes what they have to say, so that many small answers
//! leave together. The connection ends when the client or the process goes, when nothing was going on for
//! `idle-timeout`, and when the client owes us the rest of a frame for `read-timeout` or sends floods of
//! frames that are of no use ([`Guard`]).

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    pin::pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream::FuturesUnordered};
use h2::{Reason, server};
use slab::Slab;
use tokio::net::TcpStream;
use tracing::debug;

use super::{
    guard::Guard,
    stream::{self, Stream},
    wire::{Wire, WireEnd},
};
use crate::{
    clock,
    proxy::{
        forwarded::Peer,
        io::Io,
        notes::Flag,
        watch::{Order, Patience},
        worker::Worker,
    },
};

/// Requests of one client at a time. What nginx and Envoy have.
const MOST_STREAMS: u32 = 128;
/// What a client may send of one request ahead of who reads it.
const STREAM_WINDOW: u32 = 128 << 10;
/// And of all of them: so much that those that are not read stop no other.
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * MOST_STREAMS;
/// What is kept of one response that the connection does not take.
const SEND_BUFFER: usize = 64 << 10;
/// What the guard counts as one piece of content.
const PIECE: usize = 64 << 10;
/// How long a client may take to take our last words.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How long one whose connection ends in good order may take to read what was sent, as long as it says that it reads.
const UNREAD: Duration = Duration::from_secs(60);
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
    wire: Rc<Wire>,
    /// Since when nothing is going on, or what comes first is awaited.
    idle_since: Cell<Instant>,
    begun: Cell<bool>,
    drain_ordered: Cell<bool>,
    order: Cell<Option<Order>>,
    waker: RefCell<Option<Waker>>,
}

impl Session {
    /// With `peer` at the other end. `read` is what came in already.
    pub fn new(worker: Rc<Worker>, peer: Peer, io: Io, read: BytesMut) -> Rc<Session> {
        let now = clock::now();
        let guard = Some(Guard::new(now));
        let wire = Wire::new(io, read, Rc::clone(&worker.scratch), guard);
        Rc::new(Session {
            worker,
            peer: Rc::new(peer),
            streams: RefCell::default(),
            wire,
            idle_since: Cell::new(now),
            begun: Cell::new(false),
            drain_ordered: Cell::new(false),
            order: Cell::new(None),
            waker: RefCell::new(None),
        })
    }

    /// Serves the client until one of the two sides has had enough.
    pub async fn serve(self: Rc<Self>) {
        let most = self.worker.kit().config.server.max_header_bytes;
        let handshake = server::Builder::new()
            .max_concurrent_streams(MOST_STREAMS)
            .max_header_list_size(u32::try_from(most).unwrap_or(u32::MAX))
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buffer_size(SEND_BUFFER)
            .enable_connect_protocol()
            .handshake::<_, Bytes>(self.wire.end());
        let mut handshake = pin!(handshake);
        let begun = poll_fn(|cx| match self.orders(cx) {
            Some(Order::Expire | Order::Cut) => Poll::Ready(None),
            Some(Order::Drain | Order::Look) | None => {
                let polled = handshake.as_mut().poll(cx).map(Some);
                let _shows_in_reading = self.wire.poll_send(cx);
                polled
            }
        });
        let connection = match begun.await {
            Some(Ok(connection)) => connection,
            Some(Err(error)) => return debug!(%error, "a client does not speak HTTP/2"),
            None => return debug!("a client did not begin in time"),
        };
        self.begun.set(true);
        self.idle_since.set(clock::now());
        if let Some(most) = self.talk(connection).await {
            let lingering = Rc::clone(&self.wire).linger(LINGER_BYTES, LAST_WORDS);
            let _elapsed = tokio::time::timeout(most, lingering).await;
        }
    }

    /// If the client may still be sending at the end: for how long.
    async fn talk(
        self: &Rc<Self>,
        connection: server::Connection<WireEnd, Bytes>,
    ) -> Option<Duration> {
        let mut connection = pin!(connection);
        let mut requests = FuturesUnordered::new();
        let mut leaving = None;
        poll_fn(|cx| {
            let order = match self.wire.is_flooded() && leaving.is_none() {
                true => Some(Order::Expire),
                false => self.orders(cx),
            };
            match order {
                Some(Order::Expire) if leaving.is_none() => {
                    let (reason, flag) = match self.wire.is_flooded() {
                        true => (Reason::ENHANCE_YOUR_CALM, Flag::Refused),
                        false => (Reason::NO_ERROR, Flag::ClientTimedOut),
                    };
                    debug!(%reason, "a client's connection is closed");
                    connection.abrupt_shutdown(reason);
                    self.flag(flag);
                    requests.clear();
                    leaving = Some(Box::pin(tokio::time::sleep(LAST_WORDS)));
                }
                Some(Order::Drain) if leaving.is_none() => connection.graceful_shutdown(),
                Some(Order::Cut) => {
                    self.flag(Flag::Cut);
                    return Poll::Ready(None);
                }
                Some(Order::Expire | Order::Drain | Order::Look) | None => {}
            }
            if let Some(patience) = &mut leaving
                && patience.as_mut().poll(cx).is_ready()
            {
                return Poll::Ready(None);
            }
            loop {
                // First what there is to say.
                while let Poll::Ready(Some(())) = requests.poll_next_unpin(cx) {}
                match connection.poll_accept(cx) {
                    Poll::Ready(Some(Ok((request, respond)))) => {
                        let session = Rc::clone(self);
                        requests.push(stream::serve(session, request, respond));
                    }
                    Poll::Ready(Some(Err(error))) => {
                        debug!(%error, "a client's connection broke off");
                        self.flag(Flag::ClientGone);
                        return Poll::Ready(Some(LAST_WORDS));
                    }
                    Poll::Ready(None) => {
                        self.flag(Flag::ClientGone);
                        // It has not read all yet that is on its way, and acknowledges what it reads.
                        let most = if leaving.is_some() {
                            LAST_WORDS
                        } else {
                            UNREAD
                        };
                        return Poll::Ready(Some(most));
                    }
                    Poll::Pending => break,
                }
            }
            let _shows_in_reading = self.wire.poll_send(cx);
            Poll::Pending
        })
        .await
        // What was in flight for this client, if anything, is cancelled here.
    }

    /// What is in flight is given up, because of this.
    fn flag(&self, flag: Flag) {
        for (_, stream) in self.streams.borrow().iter() {
            stream.notes.flag(flag);
        }
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
        self.wire.served(bytes.div_ceil(PIECE).max(1));
    }

    /// Does something with what the kernel gave us.
    pub fn with_tcp(&self, act: impl FnOnce(&TcpStream)) {
        self.wire.with_tcp(act);
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
        // Frames are seen when they are whole, and of many uploads on a thin line one comes after the other: what
        // comes of one is progress of all.
        let content = self.wire.content_came();
        for (_, stream) in streams.iter() {
            if let Some(came) = content {
                stream.watch.body_came(came);
            }
            stream.watch.check(now, patience, None);
        }
        // What was handed over may still be on its way.
        let free_since = self.wire.free_since();
        let rests = streams.is_empty() && free_since.is_some();
        let idle_since = free_since.map_or(now, |free| free.max(self.idle_since.get()));
        let owed = self.wire.owed_since();
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
