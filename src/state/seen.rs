//! Which keys have been evidence already: with sticky assignment a client is one draw, however often it comes.
//!
//! A broken client that fails whichever target it has, or a large one whose answers take long, would otherwise
//! be taken for many draws that all fell the same way. So of each key only what exceeds everything that it has
//! shown before is evidence, once per step where that was main's, and once per rollout where it was the
//! canary's: a client that has been main's in an earlier step is less likely than others to be the canary's in
//! this one, so counting it again favours the canary; one that was the canary's still is, for certain.
//!
//! A table of one byte for each of so many hashes. Two keys that share a place hide each other's evidence,
//! whichever targets they have: both share one table, so that this favours neither.

use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use crate::policy::{Target, analysis::LEVELS};

/// How many places there are.
const PLACES: usize = 1 << 16;

/// The greatest level that was exceeded.
const LEVEL: u8 = 0b0011_1111;
/// A failure was seen.
const FAILED: u8 = 0b0100_0000;
/// The canary has shown it.
const CANARYS: u8 = 0b1000_0000;

const _: () = assert!(LEVELS - 1 <= LEVEL as usize);

/// What the keys of one rollout have shown so far. Shared by all workers.
pub struct Seen {
    places: Box<[AtomicU8]>,
    /// In how many of them main has shown a failure since the last time that such places were made free.
    failed: AtomicU32,
}

impl Seen {
    /// Nothing yet.
    pub fn new() -> Seen {
        Seen {
            places: (0..PLACES).map(|_| AtomicU8::new(0)).collect(),
            failed: AtomicU32::new(0),
        }
    }

    /// Notes that an answer to `key` has exceeded `level` thresholds; how many of them are no news.
    pub fn answered(&self, target: Target, key: u64, level: usize) -> usize {
        let level = (level as u8).min(LEVEL);
        let before = self.raise(target, key, |place| {
            (level > place & LEVEL).then_some(place & !LEVEL | level)
        });
        usize::from((before & LEVEL).min(level))
    }

    /// Notes that a request of `key` failed; whether that is no news.
    pub fn failed(&self, target: Target, key: u64) -> bool {
        let before = self.raise(target, key, |place| {
            (place & FAILED == 0).then_some(place | FAILED)
        });
        let known = before & FAILED != 0;
        if !known && target == Target::Main {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
        known
    }

    /// Makes room if failures of main have taken half of it: they would hide the canary's. Main's clients that fail
    /// are counted once more then, which favours the canary.
    pub fn relieve(&self) {
        if self.failed.load(Ordering::Relaxed) as usize > PLACES / 2 {
            self.next_step();
        }
    }

    /// A step has begun.
    pub fn next_step(&self) {
        self.failed.store(0, Ordering::Relaxed);
        for place in &self.places {
            // Relaxed, here and below: nothing else hangs on it, and a request that ends at this moment may
            // count in either step.
            let _kept = place.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |place| {
                (place & CANARYS == 0).then_some(0)
            });
        }
    }

    /// A rollout has begun.
    pub fn clear(&self) {
        self.failed.store(0, Ordering::Relaxed);
        self.places
            .iter()
            .for_each(|place| place.store(0, Ordering::Relaxed));
    }

    /// All of it, to be kept.
    pub fn save(&self) -> Vec<u8> {
        let places = self.places.iter();
        places.map(|place| place.load(Ordering::Relaxed)).collect()
    }

    /// As it was kept. One of another length says nothing.
    pub fn restore(&self, saved: &[u8]) {
        if saved.len() == PLACES {
            for (place, saved) in self.places.iter().zip(saved) {
                place.store(*saved, Ordering::Relaxed);
            }
        }
    }

    /// What was there before.
    fn raise(&self, target: Target, key: u64, next: impl Fn(u8) -> Option<u8>) -> u8 {
        // Other bits than those that decide who is in the canary: its clients would be neighbours.
        let place = &self.places[key.wrapping_mul(0x9E37_79B9_7F4A_7C15) as usize >> 48];
        let whose = match target {
            Target::Main => 0,
            Target::Canary => CANARYS,
        };
        let raised = place.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |place| {
            next(place).map(|next| next | whose)
        });
        raised.unwrap_or_else(|unchanged| unchanged)
    }
}

impl Default for Seen {
    fn default() -> Seen {
        Seen::new()
    }
}

impl std::fmt::Debug for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Seen")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_key_only_what_exceeds_all_before_is_news() {
        let seen = Seen::new();
        assert_eq!(seen.answered(Target::Main, 7, 12), 0);
        assert_eq!(seen.answered(Target::Main, 7, 10), 10);
        assert_eq!(seen.answered(Target::Main, 7, 15), 12);
        assert!(!seen.failed(Target::Main, 7));
        assert!(seen.failed(Target::Main, 7));
        assert_eq!(
            seen.answered(Target::Main, 7, 40),
            15,
            "a failure is no latency"
        );
        assert_eq!(seen.answered(Target::Main, 8, 12), 0, "another key");
    }

    #[test]
    fn a_step_forgets_what_main_has_shown_and_a_rollout_everything() {
        let seen = Seen::new();
        seen.failed(Target::Main, 1);
        seen.failed(Target::Canary, 2);
        seen.next_step();
        assert!(!seen.failed(Target::Main, 1));
        assert!(seen.failed(Target::Canary, 2));
        seen.clear();
        assert!(!seen.failed(Target::Canary, 2));
    }

    /// After a million clients that had failed in main, no failure of the canary was news any more.
    #[test]
    fn failures_of_main_do_not_hide_those_of_the_canary_for_ever() {
        let seen = Seen::new();
        let key = |number: u64| number.wrapping_mul(0x2545_F491_4F6C_DD1D);
        for client in 0..1_000_000 {
            seen.failed(Target::Main, key(client));
            if client % 1_000 == 0 {
                seen.relieve();
            }
        }
        let canary = 2_000_000..2_001_000;
        let news = canary.filter(|client| !seen.failed(Target::Canary, key(*client)));
        assert!(news.count() > 400);
    }

    #[test]
    fn what_was_saved_is_restored() {
        let seen = Seen::new();
        seen.failed(Target::Canary, u64::MAX);
        let other = Seen::new();
        other.restore(&seen.save());
        assert!(other.failed(Target::Main, u64::MAX));
        other.restore(&[1, 2, 3]);
        assert!(other.failed(Target::Main, u64::MAX));
    }
}
