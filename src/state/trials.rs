//! What the judge is told: how the requests ended that chance assigned, by the tick in which they started.
//!
//! Each worker has the writing end of its own [`Trials`]: a ring of ticks, and a *watermark*, below which it
//! writes nothing any more. A tick below the watermarks of all workers is closed, and read once. Its requests
//! have all been answered or have failed by then, so that what ends fast counts no sooner than what ends slowly.
//! Two things are not waited for, of both targets alike: the rest of an answer that goes on for some ticks
//! ([`BODY_HORIZON`]), as downloads and streams do; if it breaks off later, that says nothing. And an answer that does
//! not come within the *horizon*, which is longer than the timeout: then its client is still sending.
//!
//! The control plane numbers the ticks and sees to it that the ring never overtakes itself: it publishes no
//! tick before it has read the one whose slot that will have. So nothing is ever lost or counted twice.

use std::{
    cell::Cell,
    marker::PhantomData,
    sync::{Arc, OnceLock, atomic::Ordering},
    time::Duration,
};

use super::{
    seen::Seen,
    sync::{AtomicU32, AtomicU64},
};
use crate::policy::{
    Target,
    analysis::{Counts, LEVELS},
};

/// The number of the first tick: those before it are closed from the start.
pub const FIRST: u64 = 1;
/// After so many ticks the rest of an answer is not waited for.
pub const BODY_HORIZON: u64 = 3;

/// How many ticks, of a second, an answer is waited for that may take this long: it may begin at the end of its tick,
/// and its timeout comes a little late.
pub fn horizon(timeout: Duration) -> u64 {
    timeout.as_secs() + 3
}

/// What one worker has seen.
#[derive(Debug)]
// See `Tally`: no worker slows another one's counting.
#[repr(align(128))]
pub struct Trials {
    /// Made when there is something to count: there is room for the longest timeout that a configuration may come
    /// with, and most of that is never used.
    slots: Box<[OnceLock<Box<Slot>>]>,
    /// Nothing is written any more to ticks below.
    watermark: AtomicU64,
}

/// One tick.
#[derive(Debug)]
struct Slot {
    /// Which one it is.
    tick: AtomicU64,
    /// By [`Target::index`].
    arms: [Arm; Target::ALL.len()],
}

/// One target in one tick.
#[derive(Debug)]
struct Arm {
    /// Answers, by how many thresholds they exceeded.
    answered: [AtomicU32; LEVELS],
    /// Clients that left without an answer, by how many thresholds they had waited for.
    left: [AtomicU32; LEVELS],
    /// Of both, how often so many thresholds were no news of their key.
    known: [AtomicU32; LEVELS],
    /// Requests that got no good answer.
    failed: AtomicU32,
    /// Answers that broke off.
    cut: AtomicU32,
    /// Of both, those that were no news of their key.
    failed_again: AtomicU32,
}

/// The writing end. Not `Sync` and not `Clone`, like that of a tally.
#[derive(Debug)]
pub struct TrialsWriter {
    trials: Arc<Trials>,
    seen: Arc<Seen>,
    /// How many requests of each tick have no answer, and how many have one that goes on.
    unanswered: Box<[Cell<u32>]>,
    answered: Box<[Cell<u32>]>,
    /// For so many ticks answers are waited for.
    horizon: Cell<u64>,
    /// The watermark, as this thread knows it.
    floor: Cell<u64>,
    /// The latest tick that it knows of.
    newest: Cell<u64>,
    one_thread: PhantomData<Cell<()>>,
}

/// A request that chance has assigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trial {
    /// The tick in which it started.
    pub tick: u64,
    /// What it got.
    pub target: Target,
    /// What its client is known by, where that decided.
    pub key: Option<u64>,
    /// Its client is known by it from now on. Clients that do not take it come as new ones each time; how long
    /// their answers take is no evidence, since it would be that of one client many times.
    pub is_new: bool,
}

impl Trials {
    /// Without any, and its only writer. All writers share what was `seen`. Answers are waited for so many ticks, unless
    /// [fewer](TrialsWriter::wait_for) are enough; there is room for twice as many.
    pub fn new(seen: Arc<Seen>, most: u64) -> (TrialsWriter, Arc<Trials>) {
        let room = 2 * most.max(BODY_HORIZON);
        let counts = || (0..room).map(|_| Cell::new(0)).collect();
        let trials = Arc::new(Trials {
            slots: (0..room).map(|_| OnceLock::new()).collect(),
            watermark: AtomicU64::new(FIRST),
        });
        (
            TrialsWriter {
                trials: Arc::clone(&trials),
                seen,
                unanswered: counts(),
                answered: counts(),
                horizon: Cell::new(most),
                floor: Cell::new(FIRST),
                newest: Cell::new(FIRST - 1),
                one_thread: PhantomData,
            },
            trials,
        )
    }

    /// How many ticks may be open at a time.
    pub fn room(&self) -> usize {
        self.slots.len() - 1
    }

    /// Ticks below this one are closed.
    pub fn watermark(&self) -> u64 {
        // Acquire: with it comes everything that was written before, which is all that will be.
        self.watermark.load(Ordering::Acquire)
    }

    /// Adds what happened in a closed tick.
    pub fn add_to(&self, tick: u64, counts: &mut Counts) {
        let Some(slot) = self.slots[self.index(tick)].get() else {
            return;
        };
        // Relaxed, here and below: the watermark orders it.
        if slot.tick.load(Ordering::Relaxed) == tick {
            for target in Target::ALL {
                slot.arms[target.index()].add_to(target, counts);
            }
        }
    }

    fn index(&self, tick: u64) -> usize {
        (tick % self.slots.len() as u64) as usize
    }
}

impl Default for Slot {
    fn default() -> Slot {
        Slot {
            // No tick has this number.
            tick: AtomicU64::new(u64::MAX),
            arms: Target::ALL.map(|_| Arm {
                answered: zeroes(),
                left: zeroes(),
                known: zeroes(),
                failed: AtomicU32::new(0),
                cut: AtomicU32::new(0),
                failed_again: AtomicU32::new(0),
            }),
        }
    }
}

impl Arm {
    fn add_to(&self, target: Target, counts: &mut Counts) {
        let of = target.index();
        let read = |cell: &AtomicU32| u64::from(cell.load(Ordering::Relaxed));
        let (failed, cut) = (read(&self.failed), read(&self.cut));
        let answered: u64 = self.answered.iter().map(read).sum();
        counts.requests[of] += answered + failed;
        counts.failures[of] += failed + cut;
        counts.failed[of] += failed + cut - read(&self.failed_again);
        // Who exceeds a threshold exceeds all below: from the top down. No answer has exceeded fewer of them than
        // were known, but the two stand at different levels.
        let (mut exceeded, mut known) = (0, 0);
        for (level, counts) in counts.slow.iter_mut().enumerate().rev() {
            exceeded += read(&self.answered[level + 1]) + read(&self.left[level + 1]);
            known += read(&self.known[level + 1]);
            counts[of] += exceeded - known;
        }
    }
}

impl TrialsWriter {
    /// From now on answers are waited for so many ticks, or the most for which there is room.
    pub fn wait_for(&self, horizon: u64) {
        let most = self.trials.slots.len() as u64 / 2;
        self.horizon.set(horizon.min(most));
    }

    /// A request has been assigned. It is to be [ended](TrialsWriter::end), whatever becomes of it.
    pub fn begin(&self, trial: Trial) {
        // First: what is left of a tick that had its place is to be gone.
        if trial.tick > self.newest.get() {
            self.close(trial.tick);
        }
        add_here(&self.unanswered[self.trials.index(trial.tick)]);
    }

    /// It got a good answer, which exceeded `level` thresholds of its target.
    pub fn answered(&self, trial: Trial, level: usize) {
        if trial.tick >= self.floor.get() {
            let index = self.trials.index(trial.tick);
            take_here(&self.unanswered[index]);
            add_here(&self.answered[index]);
        }
        self.took(trial, level, |arm| &arm.answered);
    }

    /// Its client left when no answer had come within `level` thresholds of its target. That is neither an answer nor
    /// a failure, but an answer would have taken longer: were it nothing, what hangs for longer than its clients
    /// are patient would never look slow. How long they are patient hangs on no target.
    pub fn left(&self, trial: Trial, level: usize) {
        self.took(trial, level, |arm| &arm.left);
    }

    fn took(&self, trial: Trial, level: usize, count: impl Fn(&Arm) -> &[AtomicU32; LEVELS]) {
        let Some(arm) = self.arm(trial) else { return };
        let level = match trial.is_new {
            true => 0,
            false => level,
        };
        add(&count(arm)[level]);
        if let Some(key) = trial.key {
            match self.seen.answered(trial.target, key, level) {
                0 => {}
                known => add(&arm.known[known]),
            }
        }
    }

    /// It failed.
    pub fn failed(&self, trial: Trial) {
        self.failure(trial, |arm| &arm.failed);
    }

    /// It had got a good answer, which broke off.
    pub fn cut(&self, trial: Trial) {
        self.failure(trial, |arm| &arm.cut);
    }

    /// Nothing more is to come of it, `is_answered` if it has been.
    pub fn end(&self, trial: Trial, is_answered: bool) {
        if trial.tick >= self.floor.get() {
            let index = self.trials.index(trial.tick);
            take_here(match is_answered {
                true => &self.answered[index],
                false => &self.unanswered[index],
            });
        }
    }

    /// Closes what can be closed: requests that are assigned from now on belong to `now` or later. To be called
    /// several times a second.
    pub fn close(&self, now: u64) {
        self.newest.set(now.max(self.newest.get()));
        let oldest = now.saturating_sub(self.horizon.get());
        let oldest_body = now.saturating_sub(BODY_HORIZON);
        // Before a first request there may be many ticks: no more of them than have a place.
        let room = self.trials.slots.len() as u64;
        let mut floor = self.floor.get().max(oldest.saturating_sub(room));
        while floor < now {
            let index = self.trials.index(floor);
            let (unanswered, answered) = (&self.unanswered[index], &self.answered[index]);
            let is_waited_for = floor >= oldest && unanswered.get() > 0
                || floor >= oldest_body && answered.get() > 0;
            if is_waited_for {
                break;
            }
            unanswered.set(0);
            answered.set(0);
            floor += 1;
        }
        self.floor.set(floor);
        // Release: see `Trials::watermark`.
        self.trials.watermark.store(floor, Ordering::Release);
    }

    fn failure(&self, trial: Trial, count: impl Fn(&Arm) -> &AtomicU32) {
        let Some(arm) = self.arm(trial) else { return };
        add(count(arm));
        if trial
            .key
            .is_some_and(|key| self.seen.failed(trial.target, key))
        {
            add(&arm.failed_again);
        }
    }

    /// Where it counts, if it still does.
    fn arm(&self, trial: Trial) -> Option<&Arm> {
        let Trial { tick, target, .. } = trial;
        if tick < self.floor.get() {
            return None;
        }
        let slot = self.trials.slots[self.trials.index(tick)].get_or_init(Box::default);
        if slot.tick.load(Ordering::Relaxed) != tick {
            // It was read long ago.
            for arm in &slot.arms {
                let cells = arm.answered.iter().chain(&arm.left).chain(&arm.known);
                for cell in cells.chain([&arm.failed, &arm.cut, &arm.failed_again]) {
                    cell.store(0, Ordering::Relaxed);
                }
            }
            slot.tick.store(tick, Ordering::Relaxed);
        }
        Some(&slot.arms[target.index()])
    }
}

fn add_here(cell: &Cell<u32>) {
    cell.set(cell.get() + 1);
}

fn take_here(cell: &Cell<u32>) {
    cell.set(cell.get() - 1);
}

fn zeroes<const N: usize>() -> [AtomicU32; N] {
    std::array::from_fn(|_| AtomicU32::new(0))
}

fn add(cell: &AtomicU32) {
    // No read-modify-write: this thread is the only writer.
    cell.store(cell.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

#[cfg(test)]
mod tests;
