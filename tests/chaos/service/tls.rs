//! A service's side of a TLS handshake.

use std::{io, rc::Rc, sync::Arc, time::Duration};

use anyhow::Result;
use rustls::{ServerConfig, server::Acceptor};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{LazyConfigAcceptor, TlsStream, server::StartHandshake};

use super::{
    super::{
        pattern::mix,
        pki::{Flaw, HTTP_1, HTTP_2, Pki},
        stream::Stream,
    },
    Service,
};

/// What a service shows, until it is started anew.
pub struct Shown {
    /// To who offers HTTP/2: it speaks that, or does not know it; by TLS 1.3, or 1.2.
    honest: [Arc<ServerConfig>; 4],
    posing: [Arc<ServerConfig>; 3],
}

/// How a service that is not who it should be goes on when it is asked.
const POSES: u64 = 5;

impl Shown {
    pub fn new(pki: &Pki) -> Result<Shown> {
        let identity = pki.identity(None)?;
        let both: &[&[u8]] = &[HTTP_2, HTTP_1];
        let honest = [
            identity.server(both, false)?,
            identity.server(&[HTTP_1], false)?,
            identity.server(both, true)?,
            identity.server(&[HTTP_1], true)?,
        ];
        let posing = [Flaw::Authority, Flaw::Name, Flaw::Time];
        let [authority, name, time] =
            posing.map(|flaw| pki.identity(Some(flaw))?.server(both, false));
        Ok(Shown {
            honest,
            posing: [authority?, name?, time?],
        })
    }
}

/// Shakes hands on the connection with this number; whether HTTP/2 is spoken on it then. `None` where nothing is.
pub async fn greet(
    service: &Rc<Service>,
    stream: TcpStream,
    number: u64,
) -> io::Result<Option<(Stream, bool)>> {
    let chance = mix(service.world.seed ^ mix(number << 2 | service.peer as u64));
    let start = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
    if service.mode.poses.get() {
        return pose(service, start, chance).await.map(|()| None);
    }
    let offers = |protocol: &[u8]| {
        let offered = start.client_hello().alpn();
        offered.is_some_and(|mut offered| offered.any(|name| name == protocol))
    };
    // Who offers both may get either.
    let speaks_1 = offers(HTTP_1) && (!offers(HTTP_2) || chance.is_multiple_of(4));
    let is_old = (chance >> 8).is_multiple_of(4);
    let which = usize::from(speaks_1) + 2 * usize::from(is_old);
    let config = Arc::clone(&service.shown.borrow().honest[which]);
    let stream = start.into_stream(config).await?;
    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(HTTP_2);
    let stream = Stream::Tls(Box::new(TlsStream::Server(stream)));
    Ok(Some((stream, is_http2)))
}

/// The router says nothing to it.
async fn pose(
    service: &Rc<Service>,
    start: StartHandshake<TcpStream>,
    chance: u64,
) -> io::Result<()> {
    let how = (chance % POSES) as usize;
    let Some(config) = service.shown.borrow().posing.get(how).cloned() else {
        return break_off(start, how).await;
    };
    // What was said before it shows what is wrong has been heard.
    let mut stream = start.into_stream(config).await?;
    let read = timeout(Duration::from_secs(1), stream.read(&mut [0; 100])).await;
    if matches!(read, Ok(Ok(1..))) {
        let mut books = service.world.books.borrow_mut();
        let who = service.peer.label();
        books.problem(format!("who is not {who} was spoken to: {how}"));
    }
    Ok(())
}

async fn break_off(start: StartHandshake<TcpStream>, how: usize) -> io::Result<()> {
    let text: &[u8] = match how {
        3 => b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n",
        _ => b"",
    };
    let mut stream = start.io;
    stream.write_all(text).await?;
    stream.shutdown().await
}
