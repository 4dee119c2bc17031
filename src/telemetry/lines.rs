//! Lines on their way out: kept in memory until a thread of their own has written them.
//!
//! Whoever has lines leaves them and goes on, whatever becomes of the other end. What waits is bounded in bytes;
//! what does not fit is dropped line by line, and counted. Lines that were left together stay together.

use std::{
    io::{self, Write},
    mem,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

/// Bytes that may wait, beside as many that are being written.
const ROOM: usize = 16 << 20;
/// Bytes of room that are kept for what comes next.
const KEPT: usize = 64 << 10;
/// How long the end waits for what there is to be written: whoever reads it may have stalled.
const PATIENCE: Duration = Duration::from_secs(1);

/// What a pipe takes in one piece, whoever else writes to it (`PIPE_BUF`, pipe(7)).
const ATOMIC: usize = 4096;

/// Where lines are left. Cheap to clone; by default they go nowhere.
#[derive(Clone, Default)]
pub struct Lines(Option<Arc<Queue>>);

/// When this is dropped, what there is has its time to be written.
#[must_use]
pub struct Guard(Arc<Queue>);

#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    /// There is something to write, or there will be nothing more.
    filled: Condvar,
    /// Everything is written.
    ended: Condvar,
    dropped: AtomicU64,
}

#[derive(Default)]
struct Waiting {
    bytes: Vec<u8>,
    /// Waking who does not sleep would be a system call each time.
    sleeps: bool,
    closed: bool,
    ended: bool,
}

/// Begins to write what is left.
///
/// # Errors
/// The system gives us no thread.
pub fn start(to: impl Write + Send + 'static) -> io::Result<(Lines, Guard)> {
    let queue = Arc::<Queue>::default();
    let taken = Arc::clone(&queue);
    thread::Builder::new()
        .name("log".into())
        .spawn(move || taken.write_to(to))?;
    Ok((Lines(Some(Arc::clone(&queue))), Guard(queue)))
}

impl Lines {
    /// Leaves one or more whole lines, each with its line feed. Nobody waits for them to be written.
    pub fn write(&self, lines: &[u8]) {
        if let Some(queue) = &self.0 {
            queue.leave(lines);
        }
    }

    /// How many there was no room for.
    pub fn dropped(&self) -> u64 {
        // Relaxed: it orders nothing else.
        let dropped = |queue: &Arc<Queue>| queue.dropped.load(Ordering::Relaxed);
        self.0.as_ref().map_or(0, dropped)
    }
}

/// Each write is whole lines.
impl Write for Lines {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        Lines::write(self, lines);
        Ok(lines.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Queue {
    fn leave(&self, lines: &[u8]) {
        let mut waiting = self.lock();
        if waiting.bytes.len() + lines.len() > ROOM {
            drop(waiting);
            let count = memchr::memchr_iter(b'\n', lines).count() as u64;
            // Relaxed: it orders nothing else.
            self.dropped.fetch_add(count, Ordering::Relaxed);
            return;
        }
        waiting.bytes.extend_from_slice(lines);
        if mem::take(&mut waiting.sleeps) {
            drop(waiting);
            self.filled.notify_one();
        }
    }

    fn write_to(&self, mut to: impl Write) {
        let mut bytes = Vec::new();
        while self.take(&mut bytes) {
            // Who reads it has gone: there is nobody to tell, and there may be somebody again.
            let written = pieces(&bytes).try_for_each(|piece| to.write_all(piece));
            let _lost = written.and_then(|()| to.flush());
            bytes.clear();
            bytes.shrink_to(KEPT);
        }
        self.lock().ended = true;
        self.ended.notify_all();
    }

    /// Waits for lines; `false` when there will be none any more.
    fn take(&self, bytes: &mut Vec<u8>) -> bool {
        let mut waiting = self.lock();
        while waiting.bytes.is_empty() {
            if waiting.closed {
                return false;
            }
            waiting.sleeps = true;
            let woken = self.filled.wait(waiting);
            waiting = woken.unwrap_or_else(PoisonError::into_inner);
        }
        mem::swap(&mut waiting.bytes, bytes);
        true
    }

    /// Held for as long as it takes to copy some lines. Nothing panics meanwhile.
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whole lines, as many in each piece as are written at once; a longer line is a piece of its own. The process before
/// this one, or the one after it, writes there too, and no line of one is to end up in a line of the other: nor if
/// it begins while this one waits for somebody to read.
fn pieces(lines: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut left = lines;
    std::iter::from_fn(move || {
        let whole = &left[..left.len().min(ATOMIC)];
        let end = match memchr::memrchr(b'\n', whole) {
            Some(end) => end,
            None => memchr::memchr(b'\n', left).or(left.len().checked_sub(1))?,
        };
        let (piece, rest) = left.split_at(end + 1);
        left = rest;
        Some(piece)
    })
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut waiting = self.0.lock();
        waiting.closed = true;
        self.0.filled.notify_one();
        let ended = |waiting: &mut Waiting| !waiting.ended;
        let _stalled = self
            .0
            .ended
            .wait_timeout_while(waiting, PATIENCE, ended)
            .map(drop);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    use super::*;

    /// Takes what is written when somebody asks for it, and not before.
    struct Stalled(SyncSender<Vec<u8>>);

    impl Write for Stalled {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            match self.0.send(bytes.to_vec()) {
                Ok(()) => Ok(bytes.len()),
                Err(_) => Err(io::ErrorKind::BrokenPipe.into()),
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn stalled() -> (Lines, Guard, Receiver<Vec<u8>>) {
        let (to, taken) = sync_channel(0);
        let (lines, guard) = start(Stalled(to)).unwrap();
        (lines, guard, taken)
    }

    /// Leaves a line and waits until it is being written.
    fn begin(lines: &Lines) {
        lines.write(b"first\n");
        let queue = lines.0.as_ref().unwrap();
        while !queue.lock().bytes.is_empty() {
            thread::yield_now();
        }
    }

    #[test]
    fn what_there_is_in_the_end_is_written() {
        let (lines, guard, taken) = stalled();
        let reader = thread::spawn(move || taken.iter().flatten().collect::<Vec<u8>>());
        let other = lines.clone();
        lines.write(b"a\n");
        other.write(b"b\nc\n");
        drop(guard);
        assert_eq!(reader.join().unwrap(), b"a\nb\nc\n");
        assert_eq!(lines.dropped(), 0);
    }

    #[test]
    fn what_there_is_no_room_for_is_dropped_line_by_line_and_nobody_waits() {
        let (lines, guard, taken) = stalled();
        begin(&lines);
        let mut most = vec![b'x'; ROOM - 2];
        most.push(b'\n');
        lines.write(&most);
        assert_eq!(lines.dropped(), 0);
        lines.write(b"two\nlines\n");
        assert_eq!(lines.dropped(), 2);
        lines.write(b"\n");
        lines.write(b"\n");
        assert_eq!(lines.dropped(), 3, "one had room");
        // There is room again when it is taken.
        assert_eq!(taken.recv().unwrap(), b"first\n");
        assert_eq!(taken.recv().unwrap().len(), ROOM - 1);
        assert_eq!(taken.recv().unwrap(), b"\n");
        lines.write(b"last\n");
        assert_eq!(taken.recv().unwrap(), b"last\n");
        assert_eq!(lines.dropped(), 3);
        drop(taken);
        drop(guard);
    }

    #[test]
    fn the_end_does_not_wait_for_a_reader_that_has_stalled() {
        let (lines, guard, taken) = stalled();
        begin(&lines);
        drop(guard);
        drop(taken);
        // Nor does anybody else, afterwards.
        lines.write(b"too late\n");
    }

    #[test]
    fn a_reader_that_has_gone_does_not_end_it() {
        let (lines, guard, taken) = stalled();
        begin(&lines);
        drop(taken);
        begin(&lines);
        begin(&lines);
        assert_eq!(lines.dropped(), 0);
        drop(guard);
    }

    #[test]
    fn where_others_write_too_lines_are_written_in_pieces_that_stay_whole() {
        let line = |length: usize, byte: u8| [vec![byte; length - 1], vec![b'\n']].concat();
        let lines = [
            line(4_000, b'a'),
            line(96, b'b'),
            line(1, b'c'),
            line(9_000, b'd'),
            line(10, b'e'),
            line(4_087, b'f'),
        ];
        let all = lines.concat();
        let lengths: Vec<usize> = pieces(&all).map(<[u8]>::len).collect();
        assert_eq!(lengths, [4_096, 1, 9_000, 10, 4_087]);
        assert_eq!(pieces(&all).collect::<Vec<_>>().concat(), all);
        assert_eq!(pieces(b"").count(), 0);
        assert_eq!(pieces(b"no end").collect::<Vec<_>>(), [b"no end"]);
    }
}
