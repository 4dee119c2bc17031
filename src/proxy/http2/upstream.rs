//! HTTP/2 connections to one upstream, which its requests share.
//!
//! Each has a task of its own that reads and writes it; a request has a *slot* on it for as long as it
//! lasts. A connection that says that it ends, or has become too old, gets no more requests; those that it
//! has go on.

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    pin::pin,
    rc::{Rc, Weak},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use h2::client::{Builder, SendRequest};
use tokio::{sync::Notify, task::spawn_local};
use tracing::debug;

use super::wire::Wire;
use crate::{
    clock,
    policy::FailureKind,
    proxy::{
        error::UpstreamError,
        http1::{head::MAX_RESPONSE_BYTES, inbox::Scratch},
        io::Io,
    },
};

/// Requests on one connection at a time, should the upstream allow more: what holds one of them up on
/// the way holds all of them up.
pub const MOST_STREAMS: usize = 128;
/// What a response may be ahead of who reads it. RFC 9113's 64 KiB are little on a path of some length.
const STREAM_WINDOW: u32 = 256 << 10;
/// All responses of a connection together: so much that slow readers do not stop the others.
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * MOST_STREAMS as u32;
/// What is kept of one request that the connection does not take.
const SEND_BUFFER: usize = 64 << 10;
/// Requests given up within a second of which it is remembered that what still comes of them was on its way. What
/// comes of others looks like an error of the upstream's, and those are not counted: a connection would end by the
/// number of clients that leave, with all who stay on it.
const REMEMBERED: usize = 8 * MOST_STREAMS;

/// The connections of one worker to one upstream.
#[derive(Default)]
pub struct Shared(RefCell<Vec<Rc<Session>>>);

/// One of them.
struct Session {
    requests: RefCell<SendRequest<Bytes>>,
    /// Requests that are on it.
    active: Cell<usize>,
    /// One was on it before.
    used: Cell<bool>,
    born: Instant,
    idle_since: Cell<Instant>,
    wire: Rc<Wire>,
    /// It gets no more requests.
    retired: Cell<bool>,
    /// The upstream's settings have come, or nothing more will.
    settled: Notify,
}

/// A request's place on a connection. Dropped, it is free again.
pub struct Slot {
    session: Rc<Session>,
    since: Instant,
    is_reused: bool,
}

impl Shared {
    /// A place on a connection, if there is one; on the one that has most to do, so that the others age out.
    pub fn take(&self, max_age: Duration) -> Option<Slot> {
        let now = clock::recent();
        let mut sessions = self.0.borrow_mut();
        sessions.retain(|session| session.is_of_use(now, max_age));
        let free = sessions.iter().filter(|session| session.has_room());
        free.max_by_key(|session| session.active.get())
            .map(Slot::new)
    }

    /// Speaks HTTP/2 on a new connection, and keeps it for other requests.
    ///
    /// # Errors
    /// The connection's.
    pub async fn begin(
        &self,
        io: Io,
        scratch: Rc<RefCell<Scratch>>,
    ) -> Result<Slot, UpstreamError> {
        let session = Session::begin(io, scratch).await?;
        let slot = Slot::new(&session);
        self.0.borrow_mut().push(session);
        Ok(slot)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }

    /// Closes what has been idle for too long, is too old, or was closed by the upstream.
    pub fn evict(&self, now: Instant, idle_timeout: Duration, max_age: Duration) {
        self.0.borrow_mut().retain(|session| {
            let idle = now.saturating_duration_since(session.idle_since.get());
            let rests = session.active.get() == 0 && idle >= idle_timeout;
            session.is_of_use(now, max_age) && !rests
        });
    }
}

impl Session {
    async fn begin(io: Io, scratch: Rc<RefCell<Scratch>>) -> Result<Rc<Session>, UpstreamError> {
        let wire = Wire::new(io, BytesMut::new(), scratch, None);
        let (requests, connection) = Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(MAX_RESPONSE_BYTES as u32)
            .max_send_buffer_size(SEND_BUFFER)
            .max_concurrent_reset_streams(REMEMBERED)
            .max_local_error_reset_streams(None)
            .enable_push(false)
            .handshake(wire.end())
            .await
            .map_err(|error| UpstreamError::caused(FailureKind::Reset, error))?;
        let now = clock::now();
        let session = Rc::new(Session {
            requests: RefCell::new(requests),
            active: Cell::new(0),
            used: Cell::new(false),
            born: now,
            idle_since: Cell::new(now),
            wire: Rc::clone(&wire),
            retired: Cell::new(false),
            settled: Notify::new(),
        });
        // Without a claim on it: when nobody has one, the connection has nothing more to do, and ends.
        let known = Rc::downgrade(&session);
        spawn_local(async move {
            let mut connection = pin!(connection);
            let ended = poll_fn(|cx| {
                let polled = connection.as_mut().poll(cx);
                let _shows_in_reading = wire.poll_send(cx);
                // The first that an upstream sends are its settings (RFC 9113 section 3.4).
                let session = known
                    .upgrade()
                    .filter(|session| session.wire.heard().is_some());
                if let Some(session) = session {
                    session.settled.notify_waiters();
                }
                polled
            });
            if let Err(error) = ended.await {
                debug!(%error, "a connection to an upstream broke off");
            }
            if let Some(session) = Weak::upgrade(&known) {
                session.retired.set(true);
                session.settled.notify_waiters();
            }
        });
        Ok(session)
    }

    fn is_of_use(&self, now: Instant, max_age: Duration) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        let mut ended = || {
            matches!(
                self.requests.borrow_mut().poll_ready(&mut cx),
                Poll::Ready(Err(_))
            )
        };
        let is_young = now.saturating_duration_since(self.born) < max_age;
        // Some end by allowing none.
        let is_closed = self.capacity() == 0 && self.active.get() == 0;
        !self.retired.get() && is_young && !is_closed && !ended()
    }

    async fn settled(&self, limit: Duration) {
        let settled = self.settled.notified();
        if self.wire.heard().is_none() && !self.retired.get() {
            let _in_time = tokio::time::timeout(limit, settled).await;
        }
    }

    fn has_room(&self) -> bool {
        self.active.get() < self.capacity()
    }

    /// How many requests may be on it at a time. Until the upstream has said so, the one that it was made for.
    fn capacity(&self) -> usize {
        match self.wire.heard() {
            None => 1,
            Some(_) => MOST_STREAMS.min(self.requests.borrow().current_max_send_streams()),
        }
    }
}

/// A connection that may not have begun.
pub struct Settling(Weak<Session>);

impl Settling {
    /// How many requests may be on it at a time, when the upstream has said so; 0 if it is over before, or has not
    /// within `limit`.
    pub async fn capacity(self, limit: Duration) -> usize {
        let Some(session) = self.0.upgrade() else {
            return 0;
        };
        session.settled(limit).await;
        match session.wire.heard() {
            Some(_) => session.capacity(),
            None => 0,
        }
    }
}

impl Slot {
    fn new(session: &Rc<Session>) -> Slot {
        session.active.set(session.active.get() + 1);
        Slot {
            session: Rc::clone(session),
            since: clock::recent(),
            is_reused: session.used.replace(true),
        }
    }

    /// What requests are sent by.
    pub fn requests(&self) -> SendRequest<Bytes> {
        self.session.requests.borrow().clone()
    }

    /// When the connection was made.
    pub fn born(&self) -> Instant {
        self.session.born
    }

    /// Whether the connection served a request before.
    pub fn is_reused(&self) -> bool {
        self.is_reused
    }

    /// Waits until the upstream has said what it can do, or never will; not for longer than `limit`.
    pub async fn settled(&self, limit: Duration) {
        self.session.settled(limit).await;
    }

    /// What tells that too, without a place of its own.
    pub fn settling(&self) -> Settling {
        Settling(Rc::downgrade(&self.session))
    }

    /// Whether it takes tunnels (RFC 8441 section 3).
    pub fn takes_tunnels(&self) -> bool {
        self.session
            .requests
            .borrow()
            .is_extended_connect_protocol_enabled()
    }

    /// This request was not answered in time. If nothing at all came meanwhile, the connection may lead
    /// nowhere, and gets no more requests.
    pub fn gave_up(&self) {
        if self
            .session
            .wire
            .heard()
            .is_none_or(|heard| heard < self.since)
        {
            self.session.retired.set(true);
        }
    }

    /// The upstream has said that it takes no more of them.
    pub fn retire(&self) {
        self.session.retired.set(true);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.session.active.set(self.session.active.get() - 1);
        self.session.idle_since.set(clock::recent());
    }
}
