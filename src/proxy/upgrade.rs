//! Tunnels: what follows a `101` is no longer HTTP, and is copied both ways until both ends close.

use bytes::Bytes;
use tokio::{
    io::{self, AsyncRead, AsyncWrite, AsyncWriteExt},
    sync::oneshot,
};

use super::pool::Upgraded;

/// A tunnel that is agreed on: the client's half is handed over when its `101` has been written.
pub struct Tunnel(pub oneshot::Receiver<Upgraded>);

impl Tunnel {
    /// Copies until both directions have ended. `read` is what came from the client before the
    /// switch was through.
    ///
    /// # Errors
    /// Either side broke off; the other one is closed then too.
    pub async fn run<C>(self, client: &mut C, read: Bytes) -> io::Result<()>
    where
        C: AsyncRead + AsyncWrite + Unpin,
    {
        let Ok(mut upstream) = self.0.await else {
            return Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "the upstream has left",
            ));
        };
        client.write_all(&upstream.read).await?;
        client.flush().await?;
        upstream.io.write_all(&read).await?;
        upstream.io.flush().await?;
        io::copy_bidirectional(client, &mut upstream.io).await?;
        Ok(())
    }
}
