//! One worker's connections to one upstream.
//!
//! Idle connections are a stack: the one that was used last is taken first, so under falling load
//! the others age out. No lock and no channel: everything here belongs to one thread.

use std::{
    cell::{Cell, RefCell},
    io,
    rc::Rc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use super::{
    connect::{Resolver, Tls, UpstreamIo, connect},
    error::UpstreamError,
    http1::inbox::{Inbox, Scratch},
};
use crate::{clock, config::Upstream};

/// The idle connections to one upstream.
pub struct Pool {
    tls: Tls,
    resolver: Resolver,
    idle: RefCell<Vec<Idle>>,
    room: Rc<Room>,
    scratch: Rc<RefCell<Scratch>>,
    idle_timeout: Duration,
}

/// How many idle connections may be kept; pools may share it.
pub struct Room {
    used: Cell<usize>,
    limit: usize,
}

struct Idle {
    io: UpstreamIo,
    written: u64,
    since: Instant,
}

/// A connection for one request.
pub struct Lease {
    /// The connection.
    pub io: UpstreamIo,
    /// What it has sent us and was not yet understood.
    pub inbox: Inbox,
    /// How many bytes the requests before sent on it.
    written: u64,
    pool: Rc<Pool>,
}

impl Room {
    /// Room for `limit` idle connections.
    pub fn new(limit: usize) -> Rc<Room> {
        Rc::new(Room {
            used: Cell::new(0),
            limit,
        })
    }
}

impl Pool {
    /// An empty pool. Its connections are read by way of `scratch`.
    pub fn new(
        tls: Tls,
        room: Rc<Room>,
        scratch: Rc<RefCell<Scratch>>,
        idle_timeout: Duration,
    ) -> Rc<Pool> {
        Rc::new(Pool {
            tls,
            resolver: Resolver::default(),
            idle: RefCell::new(Vec::new()),
            room,
            scratch,
            idle_timeout,
        })
    }

    /// The connection that became idle last, or a new one: if there is none, or it has to be `new`.
    ///
    /// # Errors
    /// No connection could be made.
    pub async fn lease(
        self: &Rc<Self>,
        upstream: &Upstream,
        new: bool,
    ) -> Result<Lease, UpstreamError> {
        let (io, written) = match if new { None } else { self.take_idle() } {
            Some(idle) => idle,
            None => (connect(upstream, &self.tls, &self.resolver).await?, 0),
        };
        Ok(Lease {
            io,
            inbox: Inbox::default(),
            written,
            pool: Rc::clone(self),
        })
    }

    /// Closes what has been idle for too long, or was closed by the upstream.
    pub fn evict(&self, now: Instant) {
        self.idle.borrow_mut().retain_mut(|idle| {
            let keep =
                now.saturating_duration_since(idle.since) < self.idle_timeout && idle.io.is_quiet();
            if !keep {
                self.room.used.set(self.room.used.get() - 1);
            }
            keep
        });
    }

    fn take_idle(&self) -> Option<(UpstreamIo, u64)> {
        let mut idle = self.idle.borrow_mut();
        let now = clock::recent();
        while let Some(Idle {
            mut io,
            written,
            since,
        }) = idle.pop()
        {
            self.room.used.set(self.room.used.get() - 1);
            let fresh = now.saturating_duration_since(since) < self.idle_timeout;
            if fresh && io.is_quiet() {
                return Some((io, written));
            }
        }
        None
    }
}

impl Lease {
    /// Reads once from the connection into its inbox; see [`Inbox::poll_fill`].
    ///
    /// # Errors
    /// The connection's.
    pub fn poll_fill(&mut self, expected: u64, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut scratch = self.pool.scratch.borrow_mut();
        self.inbox
            .poll_fill(&mut self.io, &mut scratch, expected, cx)
    }

    /// Whether it served a request before: then the upstream may have closed it meanwhile.
    pub fn is_reused(&self) -> bool {
        self.written > 0
    }

    /// Whether the upstream, which has ended the connection, can have read nothing of this request; see
    /// [`UpstreamIo::has_refused_all_behind`].
    pub async fn has_refused(&self) -> bool {
        self.io.has_refused_all_behind(self.written).await
    }

    /// Gives the connection back after a request of `sent` bytes, and a response that was read to its end.
    /// Where more came behind it, which nobody asked for, it is closed.
    pub fn give_back(self, sent: u64) {
        let Lease {
            io,
            inbox,
            written,
            pool,
            ..
        } = self;
        if inbox.bytes.is_empty() && pool.room.used.get() < pool.room.limit {
            pool.room.used.set(pool.room.used.get() + 1);
            pool.idle.borrow_mut().push(Idle {
                io,
                written: written + sent,
                since: clock::recent(),
            });
        }
    }
}
