//! A connection's bytes, whoever is at its other end: TCP or a unix socket, with TLS over it or not.

use std::{
    future::{Future, poll_fn},
    io::{self, IoSlice},
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf, Ready},
    net::{TcpStream, UnixStream},
    task::coop::unconstrained,
};
use tokio_rustls::TlsStream;

/// What the kernel gives us.
pub enum Socket {
    /// A connection on the network.
    Tcp(TcpStream),
    /// A connection on this machine.
    Unix(UnixStream),
}

/// A connection.
pub enum Io {
    /// As the kernel gives it.
    Plain(Socket),
    /// Encrypted.
    Tls(Box<TlsStream<Socket>>),
}

impl Socket {
    /// What is known of the socket, without asking the kernel. If that is nothing, this task is not
    /// woken by it either.
    pub fn known(&self, interest: Interest) -> Option<Ready> {
        let mut cx = Context::from_waker(Waker::noop());
        let state = match self {
            Socket::Tcp(io) => pin!(unconstrained(io.ready(interest))).poll(&mut cx),
            Socket::Unix(io) => pin!(unconstrained(io.ready(interest))).poll(&mut cx),
        };
        match state {
            Poll::Ready(Ok(state)) => Some(state),
            Poll::Ready(Err(_)) | Poll::Pending => None,
        }
    }

    /// Whether there may be something to read; if not, this task is woken when there is.
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Socket::Tcp(io) => io.poll_read_ready(cx),
            Socket::Unix(io) => io.poll_read_ready(cx),
        }
    }

    fn try_read(&self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(io) => io.try_read(buf),
            Socket::Unix(io) => io.try_read(buf),
        }
    }
}

impl Io {
    /// What is under the encryption.
    pub fn socket(&self) -> &Socket {
        match self {
            Io::Plain(socket) => socket,
            Io::Tls(io) => io.get_ref().0,
        }
    }

    /// The TCP connection, where it is one.
    pub fn tcp(&self) -> Option<&TcpStream> {
        match self.socket() {
            Socket::Tcp(io) => Some(io),
            Socket::Unix(_) => None,
        }
    }

    /// Whether the other end speaks HTTP/2, as far as that was agreed on in the TLS handshake (ALPN,
    /// RFC 7301).
    pub fn agreed_on_http2(&self) -> bool {
        match self {
            Io::Plain(_) => false,
            Io::Tls(io) => io.get_ref().1.alpn_protocol() == Some(b"h2"),
        }
    }

    /// Whether something came in, or may have, that was not read. What was sent is not kept.
    pub fn has_unread(&self) -> bool {
        match self {
            Io::Plain(socket) => socket.try_read(&mut [0]).is_ok_and(|read| read > 0),
            Io::Tls(_) => {
                let state = self.socket().known(Interest::READABLE);
                state.is_some_and(|state| state.is_readable() && !state.is_read_closed())
            }
        }
    }

    /// Writes `bytes` if the other end takes them at once.
    pub fn try_write(&mut self, bytes: &[u8]) {
        let mut cx = Context::from_waker(Waker::noop());
        if let Poll::Ready(Ok(_best_effort)) = Pin::new(&mut *self).poll_write(&mut cx, bytes) {
            let _sent_or_not = Pin::new(self).poll_flush(&mut cx);
        }
    }

    /// Whether an idle connection is still there and silent: one that has sent anything, or has been
    /// closed, is of no more use. Without a system call where nothing was received.
    pub fn is_quiet(&mut self) -> bool {
        let mut byte = [0];
        match self {
            Io::Plain(socket) => {
                let read = socket.try_read(&mut byte);
                matches!(read, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
            }
            // What TLS says to itself (session tickets, key updates) is not the other end's.
            Io::Tls(io) => {
                let mut space = ReadBuf::new(&mut byte);
                let read = poll_fn(|cx| Pin::new(&mut *io).poll_read(cx, &mut space));
                // Not to be taken for silence: that this task has had its turn.
                let mut read = pin!(unconstrained(read));
                let mut cx = Context::from_waker(Waker::noop());
                read.as_mut().poll(&mut cx).is_pending()
            }
        }
    }
}

/// The methods of [`AsyncRead`] and [`AsyncWrite`], handed to whichever it is.
macro_rules! hand_on {
    ($($type:ident: $($variant:ident)|+;)+) => {$(
        impl AsyncRead for $type {
            fn poll_read(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buf: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                match self.get_mut() { $($type::$variant(io) => Pin::new(io).poll_read(cx, buf),)+ }
            }
        }

        impl AsyncWrite for $type {
            fn poll_write(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buf: &[u8],
            ) -> Poll<io::Result<usize>> {
                match self.get_mut() { $($type::$variant(io) => Pin::new(io).poll_write(cx, buf),)+ }
            }

            fn poll_write_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bufs: &[IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                match self.get_mut() {
                    $($type::$variant(io) => Pin::new(io).poll_write_vectored(cx, bufs),)+
                }
            }

            fn is_write_vectored(&self) -> bool {
                match self { $($type::$variant(io) => io.is_write_vectored(),)+ }
            }

            fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() { $($type::$variant(io) => Pin::new(io).poll_flush(cx),)+ }
            }

            fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() { $($type::$variant(io) => Pin::new(io).poll_shutdown(cx),)+ }
            }
        }
    )+};
}
hand_on! {
    Socket: Tcp | Unix;
    Io: Plain | Tls;
}
