//! HTTP/2 connections to one upstream, which its requests share.
//!
//! Each has a task of its own that reads and writes it; a request has a *slot* on it for as long as it
//! lasts. A connection that says that it ends, or has become too old, gets no more requests; those that it
//! has go on.

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    rc::{Rc, Weak},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;
use h2::client::{Builder, SendRequest};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
    task::spawn_local,
};
use tracing::debug;

use crate::{
    clock,
    policy::FailureKind,
    proxy::{error::UpstreamError, http1::head::MAX_RESPONSE_BYTES, io::Io},
};

/// Requests on one connection at a time, should the upstream allow more: what holds one of them up on
/// the way holds all of them up.
const MOST_STREAMS: usize = 128;
/// What a response may be ahead of who reads it. RFC 9113's 64 KiB are little on a path of some length.
const STREAM_WINDOW: u32 = 256 << 10;
/// All responses of a connection together: so much that slow readers do not stop the others.
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * MOST_STREAMS as u32;
/// What is kept of one request that the connection does not take.
const SEND_BUFFER: usize = 64 << 10;

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
    /// When something last came in.
    heard: Rc<Cell<Option<Instant>>>,
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
    pub async fn begin(&self, io: Io) -> Result<Slot, UpstreamError> {
        let session = Session::begin(io).await?;
        let slot = Slot::new(&session);
        self.0.borrow_mut().push(session);
        Ok(slot)
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
    async fn begin(io: Io) -> Result<Rc<Session>, UpstreamError> {
        let heard = Rc::new(Cell::new(None));
        let io = Heard {
            io,
            when: Rc::clone(&heard),
        };
        let (requests, connection) = Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(MAX_RESPONSE_BYTES as u32)
            .max_send_buffer_size(SEND_BUFFER)
            .enable_push(false)
            .handshake(io)
            .await
            .map_err(|error| UpstreamError::caused(FailureKind::Reset, error))?;
        let now = clock::now();
        let session = Rc::new(Session {
            requests: RefCell::new(requests),
            active: Cell::new(0),
            used: Cell::new(false),
            born: now,
            idle_since: Cell::new(now),
            heard,
            retired: Cell::new(false),
            settled: Notify::new(),
        });
        // Without a claim on it: when nobody has one, the connection has nothing more to do, and ends.
        let known = Rc::downgrade(&session);
        spawn_local(async move {
            let mut connection = pin!(connection);
            let ended = poll_fn(|cx| {
                let polled = connection.as_mut().poll(cx);
                // The first that an upstream sends are its settings (RFC 9113 section 3.4).
                let session = known
                    .upgrade()
                    .filter(|session| session.heard.get().is_some());
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
        !self.retired.get() && now.saturating_duration_since(self.born) < max_age && !ended()
    }

    /// One that allows none at all is asked nevertheless, and not another one in its place.
    fn has_room(&self) -> bool {
        let active = self.active.get();
        let allowed = self.requests.borrow().current_max_send_streams();
        active == 0 || active < allowed.min(MOST_STREAMS)
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

    /// Whether the connection served a request before.
    pub fn is_reused(&self) -> bool {
        self.is_reused
    }

    /// Waits until the upstream has said what it can do, or never will; not for longer than `limit`.
    pub async fn settled(&self, limit: Duration) {
        let settled = self.session.settled.notified();
        if self.session.heard.get().is_none() && !self.session.retired.get() {
            let _in_time = tokio::time::timeout(limit, settled).await;
        }
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
            .heard
            .get()
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

/// Notes when something comes in.
struct Heard {
    io: Io,
    when: Rc<Cell<Option<Instant>>>,
}

impl AsyncRead for Heard {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.io).poll_read(cx, buf);
        if polled.is_ready() {
            this.when.set(Some(clock::recent()));
        }
        polled
    }
}

impl AsyncWrite for Heard {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}
