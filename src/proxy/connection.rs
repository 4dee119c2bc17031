//! One client connection: hyper's server on it, and what hyper does not do itself.
//!
//! hyper does not time out a silent client ([`super::watch`] does, and for one that reads nothing the
//! kernel, [`super::listener`]), drops
//! informational responses ([`super::informational`]) and most trailers ([`super::trailers`]), and
//! closes a connection on which the client is still sending in a way that can destroy the answer
//! (RFC 9112 section 9.6).

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Request};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::TcpStream,
};
use tracing::debug;

use super::{
    body::RequestBody,
    error::Chain,
    headers,
    informational::Informational,
    service,
    trailers::{self, Trailing},
    upgrade::Tunnel,
    watch::{Order, Stage, Watch},
    worker::Worker,
};
use crate::clock;

/// The most headers a request may have; hyper's own default of 100 is too few.
const MAX_HEADERS: usize = 512;
/// How long, and how many bytes of it, a client may go on sending what nobody wants any more.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 1 << 20;
/// What a client gets that let us wait for too long with a request.
const LAST_WORDS: &[u8] =
    b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// What the requests of one client connection share.
pub struct Connection {
    /// The worker that serves it.
    pub worker: Rc<Worker>,
    /// What it waits for.
    pub watch: Watch,
    /// The client's address, as `X-Forwarded-For` shows it.
    pub forwarded_for: HeaderValue,
    /// The trailers of the response that is being written.
    pub trailers: Rc<trailers::Slot>,
    informational: Arc<Informational>,
    tunnel: RefCell<Option<Tunnel>>,
    uploading: Cell<bool>,
    broken_body: Cell<bool>,
    unread_body: Cell<bool>,
    close_delimited: Cell<bool>,
}

impl Connection {
    /// For a client at `peer`.
    pub fn new(worker: Rc<Worker>, peer: SocketAddr) -> Rc<Connection> {
        Rc::new(Connection {
            worker,
            watch: Watch::new(),
            forwarded_for: headers::forwarded_for(peer.ip()),
            trailers: trailers::Slot::new(),
            informational: Arc::default(),
            tunnel: RefCell::new(None),
            uploading: Cell::new(false),
            broken_body: Cell::new(false),
            unread_body: Cell::new(false),
            close_delimited: Cell::new(false),
        })
    }

    /// A request body goes to an upstream as it comes in.
    pub fn upload_began(&self) {
        self.uploading.set(true);
    }

    /// It was read to its end, or given up.
    pub fn upload_ended(&self) {
        self.uploading.set(false);
        self.watch.upload_over();
        if !self.watch.is_write_blocked() {
            self.flushed();
        }
    }

    /// Nothing of a response is left to be written.
    fn flushed(&self) {
        if self.watch.stage() == Stage::Finishing && !self.uploading.get() {
            self.watch.enter(Stage::Idle, clock::now());
        }
    }

    /// The client's request body broke off: what hyper's client says next is not the upstream's fault.
    pub fn note_broken_body(&self) {
        self.broken_body.set(true);
    }

    /// Whether the client's request body broke off.
    pub fn has_broken_body(&self) -> bool {
        self.broken_body.get()
    }

    /// Part of a request was not read: the client may still be sending when we close.
    pub fn note_unread_body(&self) {
        self.unread_body.set(true);
    }

    /// The response ends with the connection: cut off, it must not look complete.
    pub fn note_close_delimited(&self) {
        self.close_delimited.set(true);
    }

    /// Whether the response ends with the connection.
    pub fn is_close_delimited(&self) -> bool {
        self.close_delimited.get()
    }

    /// Once the `101` that is being returned has been written, the connection is a tunnel.
    pub fn switch(&self, tunnel: Tunnel) {
        *self.tunnel.borrow_mut() = Some(tunnel);
    }

    /// Has the informational responses to `request` passed on to the client.
    pub fn pass_informational(&self, request: &mut Request<RequestBody>) {
        self.informational.pass(request, self.watch.waker());
    }

    /// Waits until what goes past hyper is on its way. hyper must not be given a response before.
    pub async fn ready_for_response(&self) {
        self.informational.passed().await;
        self.trailers.emptied().await;
    }
}

/// Serves a client until one of the two sides has had enough.
pub async fn serve(stream: TcpStream, connection: Rc<Connection>) {
    let io = DownstreamIo {
        stream,
        connection: Rc::clone(&connection),
        was_blocked: false,
    };
    let io = Trailing::new(io, Rc::clone(&connection.trailers));
    let service = service_fn(|request| service::handle(request, Rc::clone(&connection)));
    let mut http = http1::Builder::new()
        .max_headers(MAX_HEADERS)
        .max_header_size(connection.worker.max_header_bytes)
        .header_read_timeout(None)
        .serve_connection(TokioIo::new(io), service);
    let ended = poll_fn(|cx| {
        match connection.watch.orders(cx.waker()) {
            Some(Order::Drain) => Pin::new(&mut http).graceful_shutdown(),
            Some(Order::Expire) => return Poll::Ready(Ended::Expired(connection.watch.stage())),
            Some(Order::Cut) => return Poll::Ready(Ended::Cut(connection.watch.stage())),
            Some(Order::Leave) => return Poll::Ready(Ended::Left),
            None => {}
        }
        Pin::new(&mut http).poll(cx).map(Ended::Http)
    })
    .await;
    // What was in flight for this client, if anything, is cancelled here.
    let parts = http.into_parts();
    let io = parts.io.into_inner().io;
    match ended {
        Ended::Http(Ok(())) => {
            let tunnel = connection.tunnel.borrow_mut().take();
            match tunnel {
                Some(tunnel) => run_tunnel(tunnel, io, parts.read_buf).await,
                None => close(io, connection.unread_body.get()).await,
            }
        }
        Ended::Http(Err(error)) => {
            debug!(error = %Chain(&error), "client connection ended");
            if connection.close_delimited.get() && error.is_user() {
                return reset(&io.stream);
            }
            close(io, error.is_parse() || connection.unread_body.get()).await;
        }
        Ended::Expired(Stage::Head | Stage::Request) => {
            // Nothing of an answer was sent. If the socket takes no more, so be it.
            let _best_effort = io.stream.try_write(LAST_WORDS);
            close(io, true).await;
        }
        Ended::Expired(Stage::Fresh | Stage::Idle) => close(io, false).await,
        // It does not send the rest of what nobody waits for.
        Ended::Expired(Stage::Response | Stage::Finishing) => close(io, true).await,
        Ended::Left => debug!("the client has left"),
        Ended::Cut(Stage::Response | Stage::Finishing) => reset(&io.stream),
        Ended::Cut(Stage::Fresh | Stage::Idle | Stage::Head | Stage::Request) => {}
    }
}

/// Makes the close that follows a reset: the one way to say that what was sent was not all.
fn reset(stream: &TcpStream) {
    let _best_effort = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

enum Ended {
    Http(hyper::Result<()>),
    /// The client let us wait for too long, at this stage.
    Expired(Stage),
    /// The client has left in the middle of an exchange.
    Left,
    /// The process ends, at this stage.
    Cut(Stage),
}

/// Runs the tunnel, for as long as the process does.
async fn run_tunnel(tunnel: Tunnel, mut io: DownstreamIo, read: Bytes) {
    let connection = Rc::clone(&io.connection);
    connection.watch.enter(Stage::Response, clock::now());
    let expired = poll_fn(|cx| match connection.watch.orders(cx.waker()) {
        Some(Order::Expire | Order::Cut) => Poll::Ready(()),
        Some(Order::Drain | Order::Leave) | None => Poll::Pending,
    });
    tokio::select! {
        ended = tunnel.run(&mut io, read) => {
            if let Err(error) = ended {
                debug!(%error, "tunnel broke off");
            }
        }
        () = expired => debug!("tunnel closed: the process ends"),
    }
}

/// Closes; where the client may still be sending, says first that we send no more, and throws away
/// what comes for a while, so that our answer is not destroyed on its way by a reset.
async fn close(mut io: DownstreamIo, client_may_send: bool) {
    if io.stream.shutdown().await.is_ok() && client_may_send {
        let _elapsed = tokio::time::timeout(LINGER, linger(&mut io.stream)).await;
    }
}

async fn linger(stream: &mut TcpStream) {
    let mut scratch = [0; 4096];
    let mut left = LINGER_BYTES;
    while let Ok(read @ 1..) = stream.read(&mut scratch).await {
        left = left.saturating_sub(read);
        if left == 0 {
            return;
        }
    }
}

/// The client's socket, with notes for the watch.
struct DownstreamIo {
    stream: TcpStream,
    connection: Rc<Connection>,
    /// Whether there was no room for what hyper had to write since it last had written all.
    was_blocked: bool,
}

impl DownstreamIo {
    /// Whether the client has closed its end, as far as can be seen without reading what it sent.
    fn has_ended(&self, cx: &mut Context<'_>) -> bool {
        let mut byte = [0];
        match self.stream.poll_peek(cx, &mut ReadBuf::new(&mut byte)) {
            Poll::Ready(peeked) => matches!(peeked, Ok(0) | Err(_)),
            Poll::Pending => false,
        }
    }

    fn note_written(&mut self, blocked: bool) {
        self.connection.watch.writing(blocked);
        self.was_blocked |= blocked;
    }
}

impl AsyncRead for DownstreamIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let io = self.get_mut();
        let before = buf.filled().len();
        let polled = Pin::new(&mut io.stream).poll_read(cx, buf);
        if polled.is_ready() && buf.filled().len() > before {
            io.connection.watch.received();
        }
        polled
    }
}

impl AsyncWrite for DownstreamIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let io = self.get_mut();
        let polled = Pin::new(&mut io.stream).poll_write(cx, buf);
        io.note_written(polled.is_pending());
        polled
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let io = self.get_mut();
        let polled = Pin::new(&mut io.stream).poll_write_vectored(cx, bufs);
        io.note_written(polled.is_pending());
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// hyper flushes when its own buffer is empty: between two messages. That is the one moment at
    /// which something of ours can be written between them.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let io = self.get_mut();
        if io.connection.watch.should_look() && io.has_ended(cx) {
            io.connection.watch.give(Order::Leave);
        }
        if io.connection.informational.is_waiting() {
            let polled = io.connection.informational.poll_write(&mut io.stream, cx);
            io.note_written(polled.is_pending());
            return polled;
        }
        ready!(Pin::new(&mut io.stream).poll_flush(cx))?;
        io.connection.flushed();
        if std::mem::take(&mut io.was_blocked) {
            // hyper may have read a request while it could not write, and would not look at it again
            // before the client sends more.
            cx.waker().wake_by_ref();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
