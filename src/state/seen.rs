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

/// What a place has shown; all of it fits into a byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    /// The greatest level that was exceeded.
    level: u8,
    /// The canary has exceeded it, or some of it.
    is_canarys: bool,
    /// Whose failure was seen first.
    failed: Option<Target>,
}

const RADIX: u8 = LEVELS as u8;
const _: () = assert!(LEVELS * 6 <= 1 << 8);

impl Place {
    fn of(byte: u8) -> Place {
        let kind = byte / RADIX;
        Place {
            level: byte % RADIX,
            is_canarys: kind >= 3,
            failed: match kind % 3 {
                0 => None,
                1 => Some(Target::Main),
                _ => Some(Target::Canary),
            },
        }
    }

    fn byte(self) -> u8 {
        let failed = match self.failed {
            None => 0,
            Some(Target::Main) => 1,
            Some(Target::Canary) => 2,
        };
        self.level + RADIX * (3 * u8::from(self.is_canarys) + failed)
    }

    /// Without what main has shown.
    fn canarys(self) -> Place {
        Place {
            level: if self.is_canarys { self.level } else { 0 },
            failed: self.failed.filter(|target| *target == Target::Canary),
            ..self
        }
    }
}

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
        let level = (level as u8).min(RADIX - 1);
        let before = self.change(key, |place| {
            (level > place.level).then_some(Place {
                level,
                is_canarys: place.is_canarys || target == Target::Canary,
                ..place
            })
        });
        usize::from(before.level.min(level))
    }

    /// Notes that a request of `key` failed; whether that is no news.
    pub fn failed(&self, target: Target, key: u64) -> bool {
        let before = self.change(key, |place| {
            place.failed.is_none().then_some(Place {
                failed: Some(target),
                ..place
            })
        });
        if before.failed.is_none() && target == Target::Main {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
        before.failed.is_some()
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
            let _was = place.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |place| {
                Some(Place::of(place).canarys().byte())
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
            let is_mains = |byte: &&u8| Place::of(**byte).failed == Some(Target::Main);
            let failed = saved.iter().filter(is_mains).count();
            self.failed.store(failed as u32, Ordering::Relaxed);
        }
    }

    /// What was there before.
    fn change(&self, key: u64, next: impl Fn(Place) -> Option<Place>) -> Place {
        // Other bits than those that decide who is in the canary: its clients would be neighbours.
        let place = &self.places[key.wrapping_mul(0x9E37_79B9_7F4A_7C15) as usize >> 48];
        let changed = place.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |place| {
            next(Place::of(place)).map(Place::byte)
        });
        Place::of(changed.unwrap_or_else(|unchanged| unchanged))
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

    fn key(number: u64) -> u64 {
        fastrand::Rng::with_seed(number).u64(..)
    }

    #[test]
    fn a_place_is_a_byte() {
        for byte in 0..6 * RADIX {
            assert_eq!(Place::of(byte).byte(), byte);
        }
    }

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

    /// Of a thousand clients that fail in the canary after these have failed in main, how many are news.
    fn news_behind(seen: &Seen, main: std::ops::Range<u64>) -> usize {
        for client in main {
            seen.failed(Target::Main, key(client));
            if client % 1_000 == 0 {
                seen.relieve();
            }
        }
        let canary = 2_000_000..2_001_000;
        let news = canary.filter(|client| !seen.failed(Target::Canary, key(*client)));
        news.count()
    }

    /// After a million clients that had failed in main, no failure of the canary was news any more.
    #[test]
    fn failures_of_main_do_not_hide_those_of_the_canary_for_ever() {
        let seen = Seen::new();
        assert!(news_behind(&seen, 0..1_000_000) > 400);
    }

    /// Places that the canary's latencies had taken were never made free of main's failures.
    #[test]
    fn failures_of_main_do_not_hide_those_of_the_canary_where_that_was_slow_either() {
        let seen = Seen::new();
        for client in 0..1_000_000 {
            seen.answered(Target::Canary, key(client), 5);
        }
        assert!(news_behind(&seen, 1_000_000..2_000_000) > 400);
        assert_eq!(
            seen.answered(Target::Canary, key(0), 5),
            5,
            "its latencies are as they were"
        );
    }

    /// After a restart failures of main could take all of it.
    #[test]
    fn failures_of_main_that_were_restored_take_their_room_too() {
        let (before, seen) = (Seen::new(), Seen::new());
        for client in 0..40_000 {
            before.failed(Target::Main, key(client));
        }
        seen.restore(&before.save());
        assert!(news_behind(&seen, 40_000..1_040_000) > 400);
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
