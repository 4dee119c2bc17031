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

use tokio::task::spawn_local;

use super::{
    connect::{Resolver, connect},
    error::UpstreamError,
    http1::inbox::{Inbox, Scratch},
    http2::{
        opening::Openings,
        upstream::{MOST_STREAMS, Shared, Slot},
    },
    io::Io,
    refusal::has_refused_all_behind,
};
use crate::{
    clock,
    config::{Protocol, Upstream},
    policy::FailureKind,
};

/// The idle connections to one upstream.
pub struct Pool {
    /// As far as it says how they are made.
    upstream: Upstream,
    /// Nobody asks for them any more.
    retired: Cell<bool>,
    resolver: Resolver,
    idle: RefCell<Vec<Idle>>,
    room: Rc<Room>,
    scratch: Rc<RefCell<Scratch>>,
    /// Connections that requests share.
    shared: Shared,
    /// Such connections that are being made.
    openings: Openings,
    /// How many requests the last one takes at a time, as far as is known.
    capacity: Cell<usize>,
    /// Whether the last one was, or is expected to be, such a connection.
    is_shared: Cell<bool>,
}

/// What a request wants of its connection.
#[derive(Debug, Clone, Copy)]
pub struct Want {
    /// It has to be new.
    pub new: bool,
    /// It has to speak HTTP/1.1, where there is a choice.
    pub http1: bool,
    /// It is to become a tunnel.
    pub tunnel: bool,
}

/// What a request gets.
pub enum Leased {
    /// A connection, for itself.
    Http1(Lease),
    /// A place on one.
    Http2(Slot),
}

/// How many idle connections may be kept; pools may share it.
pub struct Room {
    used: Cell<usize>,
    limit: usize,
}

struct Idle {
    io: Io,
    written: u64,
    since: Instant,
    born: Instant,
}

/// A connection for one request.
pub struct Lease {
    /// The connection.
    pub io: Io,
    /// What it has sent us and was not yet understood.
    pub inbox: Inbox,
    /// How many bytes the requests before sent on it.
    written: u64,
    born: Instant,
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
    pub fn new(upstream: &Upstream, room: Rc<Room>, scratch: Rc<RefCell<Scratch>>) -> Rc<Pool> {
        Rc::new(Pool {
            upstream: upstream.clone(),
            retired: Cell::new(false),
            resolver: Resolver::default(),
            idle: RefCell::new(Vec::new()),
            room,
            scratch,
            shared: Shared::default(),
            openings: Openings::default(),
            capacity: Cell::new(MOST_STREAMS),
            is_shared: Cell::new(upstream.client.protocol != Protocol::Http1),
        })
    }

    /// Whether its connections are as they would be made to this upstream.
    pub fn is_for(&self, upstream: &Upstream) -> bool {
        let own = &self.upstream;
        own.address == upstream.address
            && own.tls == upstream.tls
            && own.client == upstream.client
            && own.client_tls == upstream.client_tls
    }

    /// The room that its idle connections have.
    pub fn room(&self) -> Rc<Room> {
        Rc::clone(&self.room)
    }

    /// Nobody will ask for its connections any more, but who has been given it already: what is idle, or becomes so,
    /// is closed.
    pub fn retire(&self) {
        self.retired.set(true);
        self.evict(clock::now());
    }

    /// Whether it has no connection that it would have to close.
    pub fn is_empty(&self) -> bool {
        self.idle.borrow().is_empty() && self.shared.is_empty()
    }

    /// A connection for a request: one from before, or a new one.
    ///
    /// # Errors
    /// No connection could be made.
    pub async fn lease(
        self: &Rc<Self>,
        upstream: &Upstream,
        want: Want,
    ) -> Result<Leased, UpstreamError> {
        if !self.may_share(upstream, want) {
            return match if want.new { None } else { self.take_idle() } {
                Some(idle) => Ok(self.leased(idle)),
                None => {
                    let io = connect(upstream, &self.resolver, true).await?;
                    Ok(self.fresh(io))
                }
            };
        }
        // Who comes together shares what the first one makes, as far as it goes.
        let deadline = clock::now() + upstream.client.connect_timeout;
        let opening = loop {
            if let Some(leased) = self.take_any(want) {
                return Ok(leased);
            }
            match self.openings.join().filter(|_| self.is_shared.get()) {
                Some(seat) => seat.ended(deadline).await?,
                None => break self.openings.begin(self.capacity.get()),
            }
        };
        let io = connect(upstream, &self.resolver, false).await?;
        let is_shared = match upstream.client.protocol {
            Protocol::Http2 if upstream.tls && !io.agreed_on_http2() => {
                let why = "it does not agree on HTTP/2 (ALPN)";
                return Err(UpstreamError::caused(FailureKind::Tls, why));
            }
            Protocol::Http2 => true,
            Protocol::Auto | Protocol::Http1 => io.agreed_on_http2(),
        };
        self.is_shared.set(is_shared);
        if !is_shared {
            return Ok(self.fresh(io));
        }
        let slot = self.shared.begin(io, Rc::clone(&self.scratch)).await?;
        let limit = upstream.client.connect_timeout;
        if want.tunnel {
            slot.settled(limit).await;
        }
        // This request need not wait for what the upstream allows; the others do.
        let (pool, settling) = (Rc::clone(self), slot.settling());
        spawn_local(async move {
            pool.capacity.set(settling.capacity(limit).await.max(1));
            drop(opening);
        });
        Ok(Leased::Http2(slot))
    }

    /// Whether HTTP/2 is spoken, or may be.
    fn may_share(&self, upstream: &Upstream, want: Want) -> bool {
        match upstream.client.protocol {
            Protocol::Http1 => false,
            Protocol::Http2 => true,
            // Of what speaks both a tunnel is had more surely by HTTP/1.1.
            Protocol::Auto => upstream.tls && !want.http1 && !want.tunnel,
        }
    }

    fn take_any(self: &Rc<Self>, want: Want) -> Option<Leased> {
        // What has refused a request takes no more of them.
        let slot = self.shared.take(self.upstream.client.max_conn_age);
        let idle = || match want.new {
            true => None,
            false => self.take_idle(),
        };
        slot.map(Leased::Http2)
            .or_else(|| Some(self.leased(idle()?)))
    }

    fn fresh(self: &Rc<Self>, io: Io) -> Leased {
        self.leased(Idle {
            io,
            written: 0,
            since: clock::recent(),
            born: clock::recent(),
        })
    }

    fn leased(self: &Rc<Self>, idle: Idle) -> Leased {
        let Idle {
            io, written, born, ..
        } = idle;
        Leased::Http1(Lease {
            io,
            inbox: Inbox::default(),
            written,
            born,
            pool: Rc::clone(self),
        })
    }

    /// Closes what has been idle for too long, or was closed by the upstream.
    pub fn evict(&self, now: Instant) {
        self.idle.borrow_mut().retain_mut(|idle| {
            let keep = self.is_fresh(idle, now) && idle.io.is_quiet();
            if !keep {
                self.room.used.set(self.room.used.get() - 1);
            }
            keep
        });
        let client = &self.upstream.client;
        let idle_timeout = match self.retired.get() {
            true => Duration::ZERO,
            false => client.idle_conn_timeout,
        };
        self.shared.evict(now, idle_timeout, client.max_conn_age);
    }

    /// The connection that became idle last.
    fn take_idle(&self) -> Option<Idle> {
        let mut idle = self.idle.borrow_mut();
        let now = clock::recent();
        while let Some(mut last) = idle.pop() {
            self.room.used.set(self.room.used.get() - 1);
            if self.is_fresh(&last, now) && last.io.is_quiet() {
                return Some(last);
            }
        }
        None
    }

    fn is_fresh(&self, idle: &Idle, now: Instant) -> bool {
        let client = &self.upstream.client;
        !self.retired.get()
            && now.saturating_duration_since(idle.since) < client.idle_conn_timeout
            && now.saturating_duration_since(idle.born) < client.max_conn_age
    }
}

impl Leased {
    /// Whether the connection was made since `then`, for this request or for one that came with it.
    pub fn was_made_since(&self, then: Instant) -> bool {
        match self {
            Leased::Http1(lease) => !lease.is_reused(),
            Leased::Http2(slot) => slot.born() >= then,
        }
    }

    /// Whether the connection served a request before: then the upstream may have closed it meanwhile.
    pub fn is_reused(&self) -> bool {
        match self {
            Leased::Http1(lease) => lease.is_reused(),
            Leased::Http2(slot) => slot.is_reused(),
        }
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
    /// [`has_refused_all_behind`].
    pub async fn has_refused(&self) -> bool {
        has_refused_all_behind(&self.io, self.written).await
    }

    /// Gives the connection back after a request of `sent` bytes, and a response that was read to its end.
    /// Where more came behind it, which nobody asked for, it is closed.
    pub fn give_back(self, sent: u64) {
        let Lease {
            io,
            inbox,
            written,
            born,
            pool,
        } = self;
        let is_wanted = !pool.retired.get() && pool.room.used.get() < pool.room.limit;
        if inbox.bytes.is_empty() && is_wanted {
            pool.room.used.set(pool.room.used.get() + 1);
            pool.idle.borrow_mut().push(Idle {
                io,
                written: written + sent,
                since: clock::recent(),
                born,
            });
        }
    }
}
