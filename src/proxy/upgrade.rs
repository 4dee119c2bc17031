//! Tunnels: what follows a `101` is no longer HTTP, and is copied both ways until both ends close.

use bytes::Bytes;
use tokio::io::{self, AsyncRead, AsyncWrite, AsyncWriteExt};

use super::{http2::flow::StreamIo, io::Io};

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
    /// switch was through. How many bytes came from the client, and from the upstream.
    ///
    /// # Errors
    /// Either side broke off; the other one is closed then too.
    pub async fn run<C>(self, client: &mut C, read: &[u8]) -> io::Result<(u64, u64)>
    where
        C: AsyncRead + AsyncWrite + Unpin,
    {
        client.write_all(&self.read).await?;
        client.flush().await?;
        let (up, down) = match self.io {
            UpstreamEnd::Connection(mut upstream) => copy(client, &mut upstream, read).await,
            UpstreamEnd::Stream(mut upstream) => copy(client, &mut upstream, read).await,
        }?;
        Ok((up + read.len() as u64, down + self.read.len() as u64))
    }
}

async fn copy<C, U>(client: &mut C, upstream: &mut U, read: &[u8]) -> io::Result<(u64, u64)>
where
    C: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    upstream.write_all(read).await?;
    upstream.flush().await?;
    io::copy_bidirectional(client, upstream).await
}
