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
/// How often the room of a read is doubled: up to 512 KiB. Large reads make large writes, which cost
/// fewer system calls; and a congestion control that measures the path (BBR) takes small ones for a
/// slow path, and goes slowly itself.
const DOUBLINGS: u8 = 3;

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
    /// How often in a row a read got all that it had room for: then there is more where that came from,
    /// and the next one has twice the room.
    filled: u8,
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
        let mut room = SCRATCH << self.filled;
        let read = if expected >= LARGE || self.filled > 0 {
            if expected > 0 {
                room = expected.clamp(SCRATCH as u64, room as u64) as usize;
            }
            self.bytes.reserve(room);
            ready!(pin!(io.read_buf(&mut self.bytes)).poll(cx))?
        } else {
            let mut space = ReadBuf::new(&mut scratch[..]);
            ready!(Pin::new(io).poll_read(cx, &mut space))?;
            let read = space.filled();
            self.bytes.extend_from_slice(read);
            read.len()
        };
        self.filled = match read >= room {
            true => DOUBLINGS.min(self.filled + 1),
            false => 0,
        };
        Poll::Ready(Ok(read))
    }

    /// Whoever gets what is read does not keep up: reads little at a time, so that little is kept.
    pub fn slow_down(&mut self) {
        self.filled = 0;
    }

    /// Lets go of memory, where nothing is kept in it.
    pub fn rest(&mut self) {
        if self.bytes.is_empty() {
            *self = Inbox::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives as much as there is room for, up to so much at a time, and remembers how much room.
    struct Flood {
        most: usize,
        rooms: Vec<usize>,
    }

    impl AsyncRead for Flood {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            let flood = self.get_mut();
            flood.rooms.push(buf.remaining() >> 10);
            let given = vec![b'a'; buf.remaining().min(flood.most)];
            buf.put_slice(&given);
            Poll::Ready(Ok(()))
        }
    }

    /// The room of each read in KiB, where all that is read is taken at once.
    fn rooms(inbox: &mut Inbox, most: usize, expected: u64, reads: usize) -> Vec<usize> {
        let mut flood = Flood {
            most,
            rooms: Vec::new(),
        };
        let mut scratch = scratch();
        let mut cx = Context::from_waker(std::task::Waker::noop());
        for _ in 0..reads {
            let read = inbox.poll_fill(&mut flood, &mut scratch, expected, &mut cx);
            assert!(matches!(read, Poll::Ready(Ok(1..))));
            // What is on its way out holds on to its memory.
            std::mem::forget(inbox.bytes.split().freeze());
        }
        flood.rooms
    }

    #[test]
    fn reads_grow_while_they_are_filled_and_no_further_than_half_a_mebibyte() {
        for expected in [0, 1 << 30] {
            let rooms = rooms(&mut Inbox::default(), usize::MAX, expected, 7);
            assert_eq!(rooms, [64, 128, 256, 512, 512, 512, 512], "{expected}");
        }
    }

    #[test]
    fn reads_are_small_where_little_comes() {
        for expected in [0, 1 << 30] {
            let rooms = rooms(&mut Inbox::default(), 60 << 10, expected, 5);
            assert_eq!(rooms, [64; 5], "{expected}");
        }
    }

    #[test]
    fn reads_are_small_again_when_nobody_takes_what_was_read() {
        let mut inbox = Inbox::default();
        rooms(&mut inbox, usize::MAX, 1 << 30, 5);
        inbox.slow_down();
        assert_eq!(rooms(&mut inbox, usize::MAX, 1 << 30, 2), [64, 128]);
    }

    #[test]
    fn no_more_room_is_made_than_is_needed() {
        let mut inbox = Inbox::default();
        rooms(&mut inbox, usize::MAX, 1 << 30, 5);
        assert_eq!(rooms(&mut inbox, usize::MAX, 100 << 10, 1), [100]);
    }
}
