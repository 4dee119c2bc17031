//! What happens on a connection before its first request: who is it, is it encrypted, and which HTTP does
//! it speak.
//!
//! A load balancer may say in a PROXY header whom it brings; a TLS handshake says which HTTP (ALPN, RFC
//! 7301); without TLS a client that begins with the preface of HTTP/2 speaks that (RFC 9113 section 3.3), and
//! any other one HTTP/1.

use std::{
    future::{Future, poll_fn},
    net::SocketAddr,
    pin::pin,
    rc::Rc,
    task::Poll,
    time::Duration,
};

use bytes::BytesMut;
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsStream};
use tracing::debug;

use super::{
    connection::Connection,
    conversation,
    forwarded::Peer,
    http2::session::Session,
    io::{Io, Socket},
    proxy_protocol,
    watch::{Order, Watch},
    worker::{Registration, Worker},
};

/// How long what comes before HTTP may still take when the process drains.
const DRAIN_GRACE: Duration = Duration::from_secs(1);

/// A connection in whichever state it is, as the worker looks after it.
pub enum Arrived {
    /// It is not known yet what it is.
    Unknown(Rc<Watch>),
    /// It speaks HTTP/1.
    Http1(Rc<Connection>),
    /// It speaks HTTP/2.
    Http2(Rc<Session>),
}

/// Serves a connection that was accepted from `address`, until it is over. It is known to the worker as
/// [`Arrived::Unknown`].
pub async fn serve(
    worker: Rc<Worker>,
    registration: Registration,
    watch: Rc<Watch>,
    socket: TcpStream,
    address: SocketAddr,
) {
    let mut io = Io::Plain(Socket::Tcp(socket));
    let mut peer = Peer::new(address.ip(), &worker.trusted_proxies, false);
    let has_header = worker.proxy_protocol && peer.trusted;
    if worker.tls.is_some() || has_header {
        // Boxed, here and below: a connection that waits in HTTP/1 has no use for the room.
        let greeting = Box::pin(greet(&worker, io, peer, has_header));
        match unless_ordered(&watch, greeting).await {
            Some(Some(greeted)) => (io, peer) = greeted,
            Some(None) => return,
            None => return debug!("a client did not begin in time"),
        }
    }
    drop(watch);
    match io.agreed_on_http2() {
        true => Box::pin(http2(worker, registration, io, BytesMut::new(), peer)).await,
        false => http1(worker, registration, io, peer).await,
    }
}

/// Reads what stands before HTTP. `None` where it is not as it should be.
async fn greet(
    worker: &Worker,
    mut io: Io,
    mut peer: Peer,
    has_header: bool,
) -> Option<(Io, Peer)> {
    if has_header {
        match proxy_protocol::read(&mut io).await {
            Ok(Some(client)) => {
                peer = Peer::new(client.ip(), &worker.trusted_proxies, false);
            }
            // A health check of the load balancer's own.
            Ok(None) => {}
            Err(error) => {
                debug!(%error, peer = peer.text, "no PROXY header came from a trusted proxy");
                return None;
            }
        }
    }
    let Some(tls) = &worker.tls else {
        return Some((io, peer));
    };
    let Io::Plain(socket) = io else {
        return Some((io, peer));
    };
    match TlsAcceptor::from(tls.current()).accept(socket).await {
        Ok(stream) => {
            peer.secure = true;
            Some((Io::Tls(Box::new(TlsStream::Server(stream))), peer))
        }
        Err(error) => {
            debug!(%error, peer = peer.text, "the TLS handshake with a client failed");
            None
        }
    }
}

/// `None` if the worker has had enough of it first.
async fn unless_ordered<F: Future>(watch: &Watch, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut patience = None;
    poll_fn(|cx| {
        match watch.orders(cx.waker()) {
            Some(Order::Expire | Order::Cut) => return Poll::Ready(None),
            Some(Order::Drain) => patience = Some(Box::pin(tokio::time::sleep(DRAIN_GRACE))),
            Some(Order::Look) | None => {}
        }
        match (future.as_mut().poll(cx), &mut patience) {
            (Poll::Pending, Some(patience)) => patience.as_mut().poll(cx).map(|()| None),
            (polled, _) => polled.map(Some),
        }
    })
    .await
}

async fn http1(worker: Rc<Worker>, registration: Registration, io: Io, peer: Peer) {
    let connection = Connection::new(Rc::clone(&worker), io, peer);
    let registration = registration.now(Arrived::Http1(Rc::clone(&connection)));
    let Some(connection) = conversation::serve(connection).await else {
        return;
    };
    // Nobody else has to do with it any more.
    let registration = registration.now(Arrived::Unknown(Rc::default()));
    if let Some((peer, io, read)) = connection.into_parts() {
        Box::pin(http2(worker, registration, io, read, peer)).await;
    }
}

async fn http2(worker: Rc<Worker>, registration: Registration, io: Io, read: BytesMut, peer: Peer) {
    let session = Session::new(Rc::clone(&worker), peer, io, read);
    let _until_it_ends = registration.now(Arrived::Http2(Rc::clone(&session)));
    session.serve().await;
}
