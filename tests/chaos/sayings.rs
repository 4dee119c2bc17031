//! What the sidecar has said, to what kind of question, and how long its word holds: where there is a cache, the
//! router may decide by that and by nothing else.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use super::trouble::MARGIN;

/// What makes two questions the same in all configurations with a cache: who asks, and the method.
pub type Key = (u64, &'static str);

/// Longer than it takes until all that was decided by it is settled.
const REMEMBERED: Duration = Duration::from_secs(60);

#[derive(Default)]
pub struct Sayings {
    by_key: HashMap<Key, VecDeque<Saying>>,
    caches: Vec<Cache>,
}

struct Saying {
    said: Instant,
    status: u16,
    /// Where it says so itself.
    holds: Option<Duration>,
}

/// A time in which a cache may have been there.
struct Cache {
    ttl: Duration,
    from: Instant,
    to: Option<Instant>,
}

impl Sayings {
    /// The router is given a configuration: its cache keeps answers for so long.
    pub fn is_given(&mut self, ttl: Option<Duration>) -> Given {
        let before = self.caches.len();
        if let Some(ttl) = ttl {
            self.caches.push(Cache {
                ttl,
                from: Instant::now(),
                to: None,
            });
        }
        Given { before }
    }

    /// It goes by that from now on, and by no other.
    pub fn is_in_force(&mut self, given: &Given) {
        let now = Instant::now();
        for cache in &mut self.caches[..given.before] {
            cache.to.get_or_insert(now);
        }
    }

    /// The sidecar has said this.
    pub fn say(&mut self, key: Key, status: u16, holds: Option<Duration>) {
        let now = Instant::now();
        // Who had begun before that goes on by it.
        let may_matter = |cache: &Cache| cache.to.is_none_or(|over| now - over < REMEMBERED);
        if !self.caches.iter().any(may_matter) {
            return;
        }
        let sayings = self.by_key.entry(key).or_default();
        while sayings
            .front()
            .is_some_and(|saying| now - saying.said > REMEMBERED)
        {
            sayings.pop_front();
        }
        sayings.push_back(Saying {
            said: now,
            status,
            holds,
        });
    }

    /// Whether a request from then to then may have been decided by such a word, said to another one.
    pub fn held(&self, key: Key, is_it: impl Fn(u16) -> bool, from: Instant, to: Instant) -> bool {
        let to = to + MARGIN;
        let then = self
            .caches
            .iter()
            .filter(|cache| cache.from <= to && cache.to.is_none_or(|over| from <= over + MARGIN));
        let Some(ttl) = then.map(|cache| cache.ttl).max() else {
            return false;
        };
        // Who waits for the same answer shares it, however short it holds.
        let held = |saying: &Saying| {
            let until = saying.said + saying.holds.unwrap_or(ttl) + MARGIN;
            saying.said <= to && from <= until && is_it(saying.status)
        };
        let mut sayings = self.by_key.get(&key).into_iter().flatten().rev();
        sayings.any(held)
    }
}

/// A configuration that the router was given, and that may not be in force yet.
pub struct Given {
    /// How many caches there had been before.
    before: usize,
}
