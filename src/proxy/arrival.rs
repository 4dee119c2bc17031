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
    sync::Arc,
    task::Poll,
    time::Duration,
};

use bytes::BytesMut;
use tokio::{net::TcpStream, task::spawn_local};
use tokio_rustls::{TlsAcceptor, TlsStream};
use tracing::debug;

use super::{
    connection::Connection,
    conversation,
    forwarded::Peer,
    http2::session::Session,
    io::{Io, Socket},
    places::Place,
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

/// Serves a connection that was accepted from `address`, until it is over. It is known to the worker from
/// now on.
pub fn serve(worker: &Rc<Worker>, socket: TcpStream, address: SocketAddr, place: Option<Place>) {
    worker.set_patience(&socket);
    let io = Io::Plain(Socket::Tcp(socket));
    let kit = worker.kit();
    let server = &kit.config.server;
    let peer = Peer::new(address.ip(), false);
    if server.tls.is_some() || server.proxy_protocol && peer.is_within(&server.trusted_proxies) {
        let watch = Rc::new(Watch::new());
        let registration = Registration::new(worker, Arrived::Unknown(Rc::clone(&watch)));
        spawn_local(greeted(
            Rc::clone(worker),
            registration,
            watch,
            io,
            peer,
            place,
        ));
    } else {
        // Most wait in here most of the time: nothing of what may come is part of it.
        let connection = Connection::new(Rc::clone(worker), io, peer);
        let arrived = Arrived::Http1(Rc::clone(&connection));
        let registration = Registration::new(worker, arrived);
        spawn_local(http1(connection, registration, place));
    }
}

/// One that has something to say before HTTP.
async fn greeted(
    worker: Rc<Worker>,
    registration: Registration,
    watch: Rc<Watch>,
    io: Io,
    peer: Peer,
    place: Option<Place>,
) {
    let greeting = Box::pin(greet(&worker, io, peer));
    let (io, peer) = match unless_ordered(&watch, greeting).await {
        Some(Some(greeted)) => greeted,
        Some(None) => return,
        None => return debug!("a client did not begin in time"),
    };
    drop(watch);
    // Nobody could see it meanwhile.
    if let Some(socket) = io.tcp() {
        worker.set_patience(socket);
    }
    if io.agreed_on_http2() {
        Box::pin(http2(worker, registration, io, BytesMut::new(), peer)).await;
        drop(place);
    } else {
        let connection = Connection::new(worker, io, peer);
        let registration = registration.now(Arrived::Http1(Rc::clone(&connection)));
        Box::pin(http1(connection, registration, place)).await;
    }
}

/// Reads what stands before HTTP. `None` where it is not as it should be.
async fn greet(worker: &Worker, mut io: Io, mut peer: Peer) -> Option<(Io, Peer)> {
    let kit = worker.kit();
    let server = &kit.config.server;
    if server.proxy_protocol && peer.is_within(&server.trusted_proxies) {
        match proxy_protocol::read(&mut io).await {
            Ok(Some(client)) => {
                peer = Peer::new(client.ip(), false);
            }
            // A health check of the load balancer's own.
            Ok(None) => {}
            Err(error) => {
                debug!(%error, peer = peer.text, "no PROXY header came from a trusted proxy");
                return None;
            }
        }
    }
    let Some(tls) = &server.tls else {
        return Some((io, peer));
    };
    let Io::Plain(socket) = io else {
        return Some((io, peer));
    };
    match TlsAcceptor::from(Arc::clone(&tls.handshake))
        .accept(socket)
        .await
    {
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

async fn http1(connection: Rc<Connection>, registration: Registration, place: Option<Place>) {
    if let Some(connection) = conversation::serve(connection).await {
        // Nobody else has to do with it any more.
        let registration = registration.now(Arrived::Unknown(Rc::default()));
        let worker = Rc::clone(&connection.worker);
        if let Some((peer, io, read)) = connection.into_parts() {
            Box::pin(http2(worker, registration, io, read, peer)).await;
        }
    }
    drop(place);
}

async fn http2(worker: Rc<Worker>, registration: Registration, io: Io, read: BytesMut, peer: Peer) {
    let session = Session::new(Rc::clone(&worker), peer, io, read);
    let _until_it_ends = registration.now(Arrived::Http2(Rc::clone(&session)));
    session.serve().await;
}
