//! Bytes that came in on a connection and are not yet understood.

use std::{
    future::Future,
    io,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};

/// Where connections of one thread read into, one after the other: what is read is copied to where it
/// is kept, as much as it is, so that a connection that waits holds no buffer.
pub type Scratch = Box<[u8; SCRATCH]>;

const SCRATCH: usize = 64 << 10;
/// From this much on that is known to come, it is read where it is kept, without copying.
const LARGE: u64 = 24 << 10;
/// The largest single read.
const MOST: u64 = 128 << 10;

/// An empty scratch buffer.
pub fn scratch() -> Scratch {
    vec![0; SCRATCH]
        .into_boxed_slice()
        .try_into()
        .expect("it has this length")
}

/// The bytes of one connection.
#[derive(Debug, Default)]
pub struct Inbox {
    /// Those not yet taken.
    pub bytes: BytesMut,
    /// Whether the last read filled the scratch buffer: then there is more where that came from.
    in_flood: bool,
}

impl Inbox {
    /// Reads once. `expected` is how much is known to come. Says how much came; 0 is the end.
    ///
    /// # Errors
    /// The connection's.
    pub fn poll_fill<R>(
        &mut self,
        io: &mut R,
        scratch: &mut Scratch,
        expected: u64,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>>
    where
        R: AsyncRead + Unpin,
    {
        if expected >= LARGE || self.in_flood {
            let expected = expected.clamp(SCRATCH as u64, MOST);
            self.bytes.reserve(expected as usize);
            let read = ready!(pin!(io.read_buf(&mut self.bytes)).poll(cx))?;
            self.in_flood = read >= SCRATCH / 2;
            return Poll::Ready(Ok(read));
        }
        let mut space = ReadBuf::new(&mut scratch[..]);
        ready!(Pin::new(io).poll_read(cx, &mut space))?;
        let read = space.filled();
        self.in_flood = read.len() == SCRATCH;
        self.bytes.extend_from_slice(read);
        Poll::Ready(Ok(read.len()))
    }

    /// Lets go of memory, where nothing is kept in it.
    pub fn rest(&mut self) {
        if self.bytes.is_empty() {
            *self = Inbox::default();
        }
    }
}
