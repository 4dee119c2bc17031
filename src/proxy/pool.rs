//! One worker's connections to one upstream.
//!
//! Idle connections are a stack: the one that was used last is taken first, so under falling load
//! the others age out. No lock and no channel: everything here belongs to one thread.

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    pin::Pin,
    rc::Rc,
    task::Poll,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http1},
};
use hyper_util::rt::TokioIo;
use tokio::{io::AsyncWriteExt, sync::oneshot, task::spawn_local};
use tracing::debug;

use super::{
    body::RequestBody,
    connect::{ReadFirst, Resolver, Tls, UpstreamIo, connect},
    error::{Chain, UpstreamError, classify},
    trailers::{Slot, Trailing},
};
use crate::{clock, config::Upstream};

/// The most headers a response may have; hyper's own default of 100 is too few.
const MAX_HEADERS: usize = 512;

/// The idle connections to one upstream.
pub struct Pool {
    tls: Tls,
    resolver: Resolver,
    idle: RefCell<Vec<Idle>>,
    room: Rc<Room>,
    idle_timeout: Duration,
}

/// How many idle connections may be kept; pools may share it.
pub struct Room {
    used: Cell<usize>,
    limit: usize,
}

struct Idle {
    link: Link,
    since: Instant,
}

/// One connection: hyper's handle, and the way to get it back after a `101`.
struct Link {
    sender: http1::SendRequest<RequestBody>,
    upgrade: Rc<RefCell<Option<oneshot::Sender<Upgraded>>>>,
    trailers: Rc<Slot>,
    /// Dropped with the link, it ends the connection's task: hyper by itself would not while it has
    /// something to send.
    _alive: oneshot::Sender<()>,
}

/// A connection that no longer speaks HTTP.
pub struct Upgraded {
    /// The connection.
    pub io: UpstreamIo,
    /// What was read of it beyond the `101`.
    pub read: Bytes,
}

/// A connection for one request.
pub struct Lease {
    link: Link,
    pool: Rc<Pool>,
    /// How long it may take to become ready again after a response has ended.
    settle: Duration,
    /// Whether it served a request before: then the upstream may have closed it meanwhile.
    pub reused: bool,
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
    /// An empty pool.
    pub fn new(tls: Tls, room: Rc<Room>, idle_timeout: Duration) -> Rc<Pool> {
        Rc::new(Pool {
            tls,
            resolver: Resolver::default(),
            idle: RefCell::new(Vec::new()),
            room,
            idle_timeout,
        })
    }

    /// The connection that became idle last, or a new one.
    ///
    /// # Errors
    /// No connection could be made.
    pub async fn lease(self: &Rc<Self>, upstream: &Upstream) -> Result<Lease, UpstreamError> {
        let (link, reused) = match self.take_idle() {
            Some(link) => (link, true),
            None => (open(upstream, &self.tls, &self.resolver).await?, false),
        };
        Ok(Lease {
            link,
            pool: Rc::clone(self),
            settle: upstream.client.timeout,
            reused,
        })
    }

    /// Closes what has been idle for too long.
    pub fn evict(&self, now: Instant) {
        self.idle.borrow_mut().retain(|idle| {
            let keep = !idle.link.sender.is_closed()
                && now.saturating_duration_since(idle.since) < self.idle_timeout;
            if !keep {
                self.room.used.set(self.room.used.get() - 1);
            }
            keep
        });
    }

    fn take_idle(&self) -> Option<Link> {
        let mut idle = self.idle.borrow_mut();
        let now = clock::now();
        while let Some(Idle { link, since }) = idle.pop() {
            self.room.used.set(self.room.used.get() - 1);
            let fresh = now.saturating_duration_since(since) < self.idle_timeout;
            if fresh && link.is_ready() {
                return Some(link);
            }
        }
        None
    }

    fn keep(&self, link: Link) {
        if self.room.used.get() < self.room.limit {
            self.room.used.set(self.room.used.get() + 1);
            self.idle.borrow_mut().push(Idle {
                link,
                since: clock::now(),
            });
        }
    }
}

impl Lease {
    /// Sends a request.
    ///
    /// # Errors
    /// Where nothing of the request was sent it is given back.
    pub async fn send(
        &mut self,
        mut request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, TrySendError<Request<RequestBody>>> {
        request.body_mut().leave_trailers(&self.link.trailers);
        self.link.sender.try_send_request(request).await
    }

    /// The raw connection, once the upstream has answered `101`. To be asked for before the request
    /// is sent.
    pub fn upgraded(&self) -> oneshot::Receiver<Upgraded> {
        let (sender, receiver) = oneshot::channel();
        *self.link.upgrade.borrow_mut() = Some(sender);
        receiver
    }

    /// Gives the connection back after its response has ended. Where it is of no more use, because
    /// the upstream closes it, it is closed; where the request is still being sent, that may go on
    /// for another `timeout`.
    pub fn give_back(self) {
        let Lease {
            mut link,
            pool,
            settle,
            ..
        } = self;
        if link.is_ready() {
            pool.keep(link);
        } else if !link.sender.is_closed() {
            spawn_local(async move {
                let settled = tokio::time::timeout(settle, link.sender.ready()).await;
                if matches!(settled, Ok(Ok(()))) && link.is_ready() {
                    pool.keep(link);
                }
            });
        }
    }
}

impl Link {
    fn is_ready(&self) -> bool {
        self.trailers.is_empty() && self.sender.is_ready()
    }
}

/// Opens a connection, and starts the task that drives it for as long as its sender lives.
async fn open(upstream: &Upstream, tls: &Tls, resolver: &Resolver) -> Result<Link, UpstreamError> {
    let io = connect(upstream, tls, resolver).await?;
    let trailers = Slot::new();
    let (sender, mut connection) = http1::Builder::new()
        .max_headers(MAX_HEADERS)
        .handshake::<_, RequestBody>(TokioIo::new(Trailing::new(
            ReadFirst::new(io),
            Rc::clone(&trailers),
        )))
        .await
        .map_err(classify)?;
    let upgrade = Rc::new(RefCell::new(None::<oneshot::Sender<Upgraded>>));
    let wanted = Rc::clone(&upgrade);
    let (alive, mut dropped) = oneshot::channel::<()>();
    spawn_local(async move {
        let ended = poll_fn(|cx| match connection.poll_without_shutdown(cx) {
            Poll::Ready(ended) => Poll::Ready(Some(ended)),
            Poll::Pending => Pin::new(&mut dropped).poll(cx).map(|_| None),
        })
        .await;
        match ended {
            Some(Ok(())) => {}
            Some(Err(error)) => {
                debug!(error = %Chain(&error), "upstream connection ended");
                return;
            }
            None => return,
        }
        let parts = connection.into_parts();
        let mut io = parts.io.into_inner().io.io;
        let wanted = wanted.borrow_mut().take();
        match wanted {
            // A receiver that is gone means that the client is: the connection closes.
            Some(wanted) => drop(wanted.send(Upgraded {
                io,
                read: parts.read_buf,
            })),
            // TLS says goodbye before it closes. Whether the peer still listens is its own affair.
            None => drop(io.shutdown().await),
        }
    });
    Ok(Link {
        sender,
        upgrade,
        trailers,
        _alive: alive,
    })
}
