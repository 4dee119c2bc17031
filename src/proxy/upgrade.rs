//! Tunnels: what follows a `101` is no longer HTTP, and is copied both ways until both ends close.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use tokio::io::{self, AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::{http2::flow::StreamIo, io::Io, notes::Notes};

/// A tunnel that is agreed on.
pub struct Tunnel {
    /// The upstream's end.
    pub io: UpstreamEnd,
    /// What the upstream sent behind its `101`.
    pub read: Bytes,
}

/// What a tunnel's upstream end is.
pub enum UpstreamEnd {
    /// A connection of its own.
    Connection(Io),
    /// A stream of one (RFC 8441).
    Stream(StreamIo),
}

impl Tunnel {
    /// Copies until both directions have ended. `read` is what came from the client before the
    /// switch was through. What went through is in the notes, however it ends.
    ///
    /// # Errors
    /// Either side broke off; the other one is closed then too.
    pub async fn run<C>(self, client: &mut C, read: &[u8], notes: &Notes) -> io::Result<()>
    where
        C: AsyncRead + AsyncWrite + Unpin,
    {
        notes.add(|entry| entry.request_bytes += read.len() as u64);
        let mut client = Counted { io: client, notes };
        client.write_all(&self.read).await?;
        client.flush().await?;
        match self.io {
            UpstreamEnd::Connection(mut upstream) => copy(&mut client, &mut upstream, read).await,
            UpstreamEnd::Stream(mut upstream) => copy(&mut client, &mut upstream, read).await,
        }
    }
}

async fn copy<C, U>(client: &mut C, upstream: &mut U, read: &[u8]) -> io::Result<()>
where
    C: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    upstream.write_all(read).await?;
    upstream.flush().await?;
    io::copy_bidirectional(client, upstream).await.map(drop)
}

/// The client's end, where it is noted what comes and goes.
struct Counted<'a, C> {
    io: &'a mut C,
    notes: &'a Notes,
}

impl<C: AsyncRead + Unpin> AsyncRead for Counted<'_, C> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut *self.io).poll_read(cx, buf))?;
        let read = buf.filled().len() - before;
        self.notes.add(|entry| entry.request_bytes += read as u64);
        Poll::Ready(Ok(()))
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for Counted<'_, C> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut *self.io).poll_write(cx, buf))?;
        self.notes
            .add(|entry| entry.response_bytes += written as u64);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io).poll_shutdown(cx)
    }
}
