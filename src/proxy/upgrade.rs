//! Tunnels: what follows a `101` is no longer HTTP, and is copied both ways until both ends close.

use bytes::Bytes;
use tokio::io::{self, AsyncRead, AsyncWrite, AsyncWriteExt};

use super::connect::UpstreamIo;

/// A tunnel that is agreed on.
pub struct Tunnel {
    /// The upstream's end.
    pub io: UpstreamIo,
    /// What the upstream sent behind its `101`.
    pub read: Bytes,
}

impl Tunnel {
    /// Copies until both directions have ended. `read` is what came from the client before the
    /// switch was through.
    ///
    /// # Errors
    /// Either side broke off; the other one is closed then too.
    pub async fn run<C>(mut self, client: &mut C, read: &[u8]) -> io::Result<()>
    where
        C: AsyncRead + AsyncWrite + Unpin,
    {
        client.write_all(&self.read).await?;
        client.flush().await?;
        self.io.write_all(read).await?;
        self.io.flush().await?;
        io::copy_bidirectional(client, &mut self.io).await?;
        Ok(())
    }
}
