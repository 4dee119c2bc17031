//! Whether what is to survive the process is on disk: written by who writes it, read by readiness and
//! metrics.

use super::sync::{Mutex, lock};

/// How writing the state goes.
#[derive(Debug, Default)]
pub struct Durability(Mutex<Writes>);

/// How it has gone so far.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Writes {
    /// Files written.
    pub succeeded: u64,
    /// Files that could not be.
    pub failed: u64,
    /// Why the last one could not be, if it could not.
    pub failure: Option<String>,
}

impl Durability {
    /// It is on disk. Whether that is news.
    pub fn succeeded(&self) -> bool {
        let mut writes = lock(&self.0);
        writes.succeeded += 1;
        writes.failure.take().is_some()
    }

    /// It is not. Whether that is news.
    pub fn failed(&self, why: String) -> bool {
        let mut writes = lock(&self.0);
        writes.failed += 1;
        writes.failure.replace(why).is_none()
    }

    /// How it has gone so far.
    pub fn writes(&self) -> Writes {
        lock(&self.0).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_change_is_news() {
        let durability = Durability::default();
        assert!(!durability.succeeded());
        assert!(durability.failed("full".into()));
        assert!(!durability.failed("still full".into()));
        let writes = durability.writes();
        assert_eq!((writes.succeeded, writes.failed), (1, 2));
        assert_eq!(writes.failure.as_deref(), Some("still full"));
        assert!(durability.succeeded());
        assert_eq!(durability.writes().failure, None);
    }
}
