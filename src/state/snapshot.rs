//! What the control plane decided and every request reads: immutable, swapped whole.
//!
//! A request takes the current snapshot once, at its start, and keeps it to its end; a snapshot that
//! is published meanwhile is for the requests after it.

use std::{cell::RefCell, sync::Arc, time::Duration};

use arc_swap::{ArcSwap, Cache};

use super::{Admission, admission::Terms, trials};
use crate::{
    config::Config,
    policy::{
        Rules, Weight,
        analysis::{LatencyRule, Thresholds},
    },
};

/// One consistent state of everything that an operator can set.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The configuration in force.
    pub config: Arc<Config>,
    /// What decisions depend on, out of it.
    pub rules: Rules,
    /// At which latencies the targets are compared.
    pub thresholds: Arc<Thresholds>,
    /// Limits and breakers, by its terms.
    pub admission: Arc<Admission>,
    /// Who gets the canary at this moment.
    pub split: Split,
}

/// How eligible requests are split between the two targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Split {
    /// The canary's share.
    pub weight: Weight,
    /// The canary was rolled back: it gets nothing, by whatever a request has begun with.
    pub rolled_back: bool,
    /// What was promised to clients in an earlier one holds no longer.
    pub epoch: u64,
    /// Where a rollout is under way: the tick that requests belong to which are assigned now.
    pub tick: Option<u64>,
    /// No request that is assigned from now on belongs to a tick before this one.
    pub since: u64,
}

impl Snapshot {
    /// Computes what does not differ per request.
    pub fn new(config: Config, admission: Arc<Admission>) -> Snapshot {
        Snapshot {
            rules: config.rules(),
            thresholds: Arc::new(thresholds(&config)),
            admission,
            split: Split {
                weight: config.traffic.weight,
                rolled_back: false,
                epoch: 0,
                tick: None,
                since: trials::FIRST,
            },
            config: Arc::new(config),
        }
    }

    /// For requests that begin from now on: another configuration, under which the counts and breakers go on, and
    /// the split too, until somebody says another one.
    #[must_use]
    pub fn reconfigured(&self, config: Config, now: Duration) -> Snapshot {
        let admission = self.admission.renewed(Terms::of(&config), now);
        Snapshot {
            split: self.split,
            ..Snapshot::new(config, admission)
        }
    }

    /// The same with another split.
    #[must_use]
    pub fn with_split(&self, split: Split) -> Snapshot {
        Snapshot {
            split,
            ..self.clone()
        }
    }
}

fn thresholds(config: &Config) -> Thresholds {
    let rollout = config.rollout.as_ref();
    let rule = rollout.and_then(|rollout| rollout.judge.latency);
    Thresholds::new(rule.unwrap_or(LatencyRule {
        margin: 0.0,
        slack: Duration::ZERO,
    }))
}

/// The place where the current snapshot is found.
#[derive(Debug)]
pub struct Published(ArcSwap<Snapshot>);

impl Published {
    /// Starts with a first snapshot.
    pub fn new(snapshot: Snapshot) -> Arc<Published> {
        Arc::new(Published(ArcSwap::from_pointee(snapshot)))
    }

    /// The current snapshot, for those who look seldom.
    pub fn load(&self) -> Arc<Snapshot> {
        self.0.load_full()
    }

    /// Replaces the current snapshot; requests that began keep theirs.
    pub fn publish(&self, snapshot: Snapshot) {
        self.0.store(Arc::new(snapshot));
    }

    /// A view for one worker thread, which looks at every request.
    pub fn reader(self: &Arc<Self>) -> Reader {
        Reader(RefCell::new(Cache::new(Shared(Arc::clone(self)))))
    }
}

/// One worker's view: while nothing was published a look costs one relaxed load and a reference
/// count.
pub struct Reader(RefCell<Cache<Shared, Arc<Snapshot>>>);

impl Reader {
    /// The current snapshot.
    pub fn current(&self) -> Arc<Snapshot> {
        Arc::clone(self.0.borrow_mut().load())
    }

    /// Whether this configuration is the one in force.
    pub fn is_current(&self, config: &Arc<Config>) -> bool {
        Arc::ptr_eq(&self.0.borrow_mut().load().config, config)
    }
}

/// Lets the cache reach through our own type.
struct Shared(Arc<Published>);

impl std::ops::Deref for Shared {
    type Target = ArcSwap<Snapshot>;

    fn deref(&self) -> &ArcSwap<Snapshot> {
        &self.0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(main: &str) -> Snapshot {
        let text = format!(
            r#"{{"main-target": "http://{main}", "canary-target": "http://c",
                "router-server": {{"host": "h", "port": 1}}}}"#
        );
        let config = Config::parse("test.json", &text).unwrap();
        let admission = Admission::new(Terms::of(&config), Duration::ZERO);
        Snapshot::new(config, admission)
    }

    #[test]
    fn a_reader_sees_what_was_published_last_and_a_request_keeps_what_it_took() {
        let published = Published::new(snapshot("a"));
        let reader = published.reader();
        let taken = reader.current();
        published.publish(snapshot("b"));
        assert_eq!(taken.config.main.host_header, "a");
        assert_eq!(reader.current().config.main.host_header, "b");
        assert_eq!(published.load().config.main.host_header, "b");
    }
}
