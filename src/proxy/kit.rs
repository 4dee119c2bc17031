//! What a worker has made of a configuration, so that nothing of it is made for each request: its upstream
//! connections, above all.
//!
//! A request takes the kit of its snapshot and keeps it to its end; one that comes after a reload gets another one,
//! with those connections of the old one that are as they would be made now.

use std::{
    cell::RefCell,
    rc::Rc,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::{
    answers::Answers,
    http1::inbox::Scratch,
    pool::{Pool, Room},
    watch::Patience,
};
use crate::{
    config::{AccessLog, Config, Upstream},
    state::{Admission, Snapshot, trials},
};

/// What a worker has made of a configuration.
pub struct Kit {
    /// Which one that is.
    pub config: Arc<Config>,
    /// Limits and breakers.
    pub admission: Arc<Admission>,
    /// What the sidecar has said before, where it may be used again.
    pub answers: Option<Answers>,
    /// This worker's upstream connections.
    pub pools: Pools,
    /// Whether requests are told of, line by line.
    pub tells: bool,
    /// How long clients are waited for.
    pub patience: Patience,
    /// How often it is looked whether that is over.
    pub tick: Duration,
    /// For how many ticks of a rollout answers are waited for.
    pub horizon: u64,
}

/// The upstream connections of one worker.
pub struct Pools {
    /// To main.
    pub main: Rc<Pool>,
    /// To the canary.
    pub canary: Rc<Pool>,
    /// To the sidecar, where there is one.
    pub sidecar: Option<Rc<Pool>>,
}

/// What all kits of a worker are made with.
pub struct Makings {
    /// How many workers there are: each keeps its share of the idle connections.
    pub workers: usize,
    /// Where all connections read into.
    pub scratch: Rc<RefCell<Scratch>>,
    /// What the sidecar has said to any worker.
    pub answers: SharedAnswers,
}

impl Kit {
    /// For the configuration of this snapshot, with what can be used of the kit `before`.
    pub fn new(snapshot: &Snapshot, before: Option<&Kit>, makings: &Makings) -> Kit {
        let config = &snapshot.config;
        let server = &config.server;
        let tick = tick(config);
        Kit {
            admission: Arc::clone(&snapshot.admission),
            answers: makings.answers.under(config),
            pools: Pools::new(config, before.map(|kit| &kit.pools), makings),
            tells: config.log.access == AccessLog::Json,
            patience: Patience {
                read: server.read_timeout,
                write: server.write_timeout,
                idle: server.idle_timeout,
                blur: tick,
            },
            tick,
            // Main and canary share their client settings.
            horizon: trials::horizon(config.main.client.timeout),
            config: Arc::clone(config),
        }
    }
}

impl Pools {
    fn new(config: &Config, before: Option<&Pools>, makings: &Makings) -> Pools {
        let kept = |upstream: &Upstream, pool: Option<&Rc<Pool>>| {
            pool.filter(|pool| pool.is_for(upstream)).map(Rc::clone)
        };
        let make = |upstream: &Upstream, room: Rc<Room>| {
            Pool::new(upstream, room, Rc::clone(&makings.scratch))
        };
        let room = |upstream: &Upstream| {
            Room::new(
                upstream
                    .client
                    .max_idle_conns
                    .div_ceil(makings.workers.max(1)),
            )
        };
        let main = kept(&config.main, before.map(|pools| &pools.main));
        let canary = kept(&config.canary, before.map(|pools| &pools.canary));
        // Main and canary share their settings, and so their room.
        let shared = [&main, &canary].into_iter().flatten().next();
        let shared = shared.map_or_else(|| room(&config.main), |pool| pool.room());
        let sidecar = config.sidecar.as_ref().map(|sidecar| &sidecar.upstream);
        Pools {
            main: main.unwrap_or_else(|| make(&config.main, Rc::clone(&shared))),
            canary: canary.unwrap_or_else(|| make(&config.canary, shared)),
            sidecar: sidecar.map(|upstream| {
                let before = before.and_then(|pools| pools.sidecar.as_ref());
                kept(upstream, before).unwrap_or_else(|| make(upstream, room(upstream)))
            }),
        }
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &Rc<Pool>> {
        [&self.main, &self.canary].into_iter().chain(&self.sidecar)
    }
}

/// The sidecar's answers, which all workers share: those of one configuration are of use under another one where
/// that asks the same questions.
#[derive(Clone, Default)]
pub struct SharedAnswers(Arc<Mutex<Option<Known>>>);

/// The answers under the configuration that was asked for last.
type Known = (Arc<Config>, Option<Answers>);

impl SharedAnswers {
    fn under(&self, config: &Arc<Config>) -> Option<Answers> {
        // Nothing panics while it is held.
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let answers = match &*last {
            Some((known, answers)) if asks_alike(known, config) => answers.clone(),
            _ => {
                let sidecar = config.sidecar.as_ref();
                let cache = sidecar.and_then(|sidecar| sidecar.cache.as_ref());
                cache.map(Answers::new)
            }
        };
        *last = Some((Arc::clone(config), answers.clone()));
        answers
    }
}

fn asks_alike(one: &Arc<Config>, other: &Arc<Config>) -> bool {
    let question = |config: &Config| {
        let sidecar = config.sidecar.as_ref()?;
        let upstream = &sidecar.upstream;
        Some((
            (upstream.tls, upstream.address.clone()),
            upstream.base_path.clone(),
            upstream.query.clone(),
            (sidecar.body, sidecar.max_body),
            sidecar.cache.clone(),
            config.trim_prefix.clone(),
        ))
    };
    Arc::ptr_eq(one, other) || question(one) == question(other)
}

/// How often deadlines are checked: a timeout comes late by this much at most. A twentieth of the
/// shortest one, within bounds that keep it cheap.
fn tick(config: &Config) -> Duration {
    let server = &config.server;
    let shortest = [server.read_timeout, server.idle_timeout]
        .into_iter()
        .chain([config.main.client.timeout])
        .chain(
            config
                .sidecar
                .as_ref()
                .map(|sidecar| sidecar.upstream.client.timeout),
        )
        .min()
        .unwrap_or_default();
    (shortest / 20).clamp(Duration::from_millis(5), Duration::from_millis(100))
}
