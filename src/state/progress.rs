//! How far a rollout has come: what the control plane knows of it, and what is to survive the process.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering},
};

use serde_json::Value;

use super::sync::{AtomicU64, Mutex, lock};
use crate::policy::{
    Weight,
    analysis::Evidence,
    rollout::{Rollout, Step},
};

/// Everything that a process needs to go on where another one was.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// Phase, step and weight.
    pub rollout: Rollout,
    /// Main and the canary, as the log shows their URLs.
    pub targets: [String; 2],
    /// The steps that it was begun with.
    pub steps: Vec<Step>,
    /// `traffic.weight` of the process that wrote it.
    pub configured: Weight,
    /// What was counted so far.
    pub evidence: Evidence,
    /// Which keys it was counted of; see [`super::Seen`].
    pub seen: Vec<u8>,
    /// The latest decisions, newest first, as people read them.
    pub decisions: VecDeque<Value>,
    /// How many there have been.
    pub numbered: u64,
}

/// The latest [`Progress`], on its way from the control plane to the disk.
#[derive(Debug)]
pub struct SharedProgress {
    latest: Mutex<(u64, Option<Arc<Progress>>)>,
    written: AtomicU64,
}

impl SharedProgress {
    /// From what was found on disk.
    pub fn new(found: Option<Arc<Progress>>) -> Arc<SharedProgress> {
        Arc::new(SharedProgress {
            latest: Mutex::new((0, found)),
            written: AtomicU64::new(0),
        })
    }

    /// This is to be on disk now. Its version.
    pub fn keep(&self, progress: Progress) -> u64 {
        let mut latest = lock(&self.latest);
        latest.0 += 1;
        latest.1 = Some(Arc::new(progress));
        latest.0
    }

    /// What is to be on disk, and its version.
    pub fn latest(&self) -> (u64, Option<Arc<Progress>>) {
        lock(&self.latest).clone()
    }

    /// This version is on disk.
    pub fn set_written(&self, version: u64) {
        // Relaxed: who waits for it looks again.
        self.written.store(version, Ordering::Relaxed);
    }

    /// Whether this version is on disk.
    pub fn is_written(&self, version: u64) -> bool {
        self.written.load(Ordering::Relaxed) >= version
    }
}
