//! A client's side of a TLS handshake, and those who do not get through it.

use std::{io, sync::Arc, time::Instant};

use rustls::{ClientConfig, HandshakeKind};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, TlsStream};

use super::{
    super::{
        pki::{HTTP_1, HTTP_2, name},
        stream::Stream,
    },
    PATIENCE, Visitor,
};

/// An alert, as every TLS version says it.
const ALERT: u8 = 21;

impl Visitor {
    /// What this client offers; `None` where it speaks no TLS.
    pub(super) fn offer(&self) -> anyhow::Result<Option<Arc<ClientConfig>>> {
        if !self.world.is_tls.get() {
            return Ok(None);
        }
        let protocols: &[&[u8]] = match (self.is_by_http2(), self.percent()) {
            (true, 0..50) => &[HTTP_2],
            (true, _) => &[HTTP_2, HTTP_1],
            (false, 0..50) => &[HTTP_1],
            (false, _) => &[],
        };
        let is_old = self.percent() < 25;
        self.world.pki.client(protocols, is_old).map(Some)
    }

    /// What is spoken over a connection.
    pub(super) async fn over(&self, stream: TcpStream) -> io::Result<Stream> {
        stream.set_nodelay(true)?;
        let Some(config) = &self.tls else {
            return Ok(Stream::Plain(stream));
        };
        // It waits from now on, and may have got what the router shows before.
        let began = Instant::now();
        let name = name().map_err(io::Error::other)?;
        let connected = TlsConnector::from(Arc::clone(config)).connect(name, stream);
        let connected = timeout(PATIENCE, connected);
        let stream = connected.await.map_err(|_| io::ErrorKind::TimedOut)??;
        let wanted = self.is_by_http2().then_some(HTTP_2);
        let state = stream.get_ref().1;
        let agreed = state.alpn_protocol();
        let mut books = self.world.books.borrow_mut();
        if agreed.filter(|agreed| *agreed != HTTP_1) != wanted {
            books.problem(format!("{wanted:?} was wanted, and {agreed:?} agreed on"));
        }
        let kind = state.handshake_kind();
        let shown = state.peer_certificates().and_then(|chain| chain.first());
        // Resumed, it is the one from before.
        if kind != Some(HandshakeKind::Resumed) {
            let checked = match shown {
                Some(shown) => self.world.pki.check(shown, began),
                None => Err("no certificate".into()),
            };
            if let Err(why) = checked {
                books.problem(format!("the router has shown {why}"));
            }
        }
        let label = |what: Option<&str>| what.unwrap_or("?").to_owned();
        let version = state
            .protocol_version()
            .and_then(|version| version.as_str());
        let kind = kind.map(|kind| format!("{kind:?}"));
        let what = format!("{}, {}", label(version), label(kind.as_deref()));
        *books.handshakes.entry(what).or_default() += 1;
        Ok(Stream::Tls(Box::new(TlsStream::Client(stream))))
    }

    /// What one does not do before a first request.
    pub(super) async fn be_rude_in_the_handshake(&self) {
        let Ok(stream) = TcpStream::connect(self.address).await else {
            return;
        };
        match self.percent() {
            0..30 => self.break_off(stream).await,
            30..60 => {
                if let Ok(stream) = self.over(stream).await {
                    self.wait_a_bit().await;
                    self.leave(stream.split().1);
                }
            }
            60..75 => self.hesitate(stream).await,
            75..90 => {
                let text = b"GET /plain HTTP/1.1\r\nhost: soak.example\r\n\r\n";
                self.be_refused(stream, text).await;
            }
            _ => {
                let record = b"\x16\x03\x01\x00\x05\x63\x00\x00\x01\x00";
                self.be_refused(stream, record).await;
            }
        }
    }

    /// Some of what a client says first.
    fn part_of_hello(&self) -> Vec<u8> {
        let mut hello = self.world.pki.hello().unwrap_or_default();
        let most = hello.len().max(2);
        hello.truncate(self.draw(|random| random.usize(1..most)));
        hello
    }

    async fn break_off(&self, mut stream: TcpStream) {
        let _gone = stream.write_all(&self.part_of_hello()).await;
        self.wait_a_bit().await;
        self.leave(Stream::Plain(stream).split().1);
    }

    /// It is not waited for without end.
    async fn hesitate(&self, mut stream: TcpStream) {
        if self.percent() < 70 {
            let _gone = stream.write_all(&self.part_of_hello()).await;
        }
        let mut waste = Vec::new();
        if timeout(PATIENCE, stream.read_to_end(&mut waste))
            .await
            .is_err()
        {
            let mut books = self.world.books.borrow_mut();
            books.problem(format!("a handshake was waited for {PATIENCE:?}"));
        }
    }

    /// Says what begins no handshake.
    async fn be_refused(&self, mut stream: TcpStream, text: &[u8]) {
        let _gone = stream.write_all(text).await;
        let mut said = Vec::new();
        let ended = timeout(PATIENCE, stream.read_to_end(&mut said)).await;
        if ended.is_err() || said.first().is_some_and(|first| *first != ALERT) {
            let mut books = self.world.books.borrow_mut();
            let text = String::from_utf8_lossy(text);
            books.problem(format!("{said:?} and {ended:?} for {text:?} over TLS"));
        }
    }
}
