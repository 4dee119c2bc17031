//! The machine: which cores are whose, and how many files may be open.

use std::num::NonZeroU64;

use anyhow::{Context, Result, ensure};
use rustix::{
    process::{Resource, Rlimit, getrlimit, setrlimit},
    thread::{CpuSet, sched_getaffinity, sched_setaffinity, set_current_timer_slack},
};

/// Who runs where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cores {
    pub proxy: Vec<usize>,
    /// The load generator, the upstream and the sidecar.
    pub load: Vec<usize>,
}

impl Cores {
    /// A core for each worker of the proxy and the rest for the load; on a machine that is too small
    /// for that, everything everywhere.
    pub fn for_workers(workers: usize, all: &[usize]) -> Cores {
        match all.split_at_checked(workers) {
            Some((proxy, load)) if !load.is_empty() => Cores {
                proxy: proxy.to_vec(),
                load: load.to_vec(),
            },
            _ => Cores {
                proxy: all.to_vec(),
                load: all.to_vec(),
            },
        }
    }

    pub fn are_shared(&self) -> bool {
        self.proxy == self.load
    }

    /// Load generators and upstream threads: half of the load's cores each.
    pub fn load_threads(&self) -> usize {
        (self.load.len() / 2).max(1)
    }
}

/// The cores that this process may use.
pub fn cores() -> Result<Vec<usize>> {
    let set = sched_getaffinity(None)?;
    let cores: Vec<usize> = (0..CpuSet::MAX_CPU)
        .filter(|&core| set.is_set(core))
        .collect();
    ensure!(
        cores.len() >= 2,
        "one core is not enough: proxy and load would be on the same one"
    );
    Ok(cores)
}

/// From here on this thread, and what it starts, runs on these cores.
pub fn run_on(cores: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    for &core in cores {
        set.set(core);
    }
    sched_setaffinity(None, &set).context("cannot pin to a core")
}

/// Timers of this thread, and of those that it starts, fire when they are due: the kernel's usual
/// 50 µs of slack would be in every latency.
pub fn punctual_timers() -> Result<()> {
    set_current_timer_slack(NonZeroU64::new(1)).context("cannot set the timer slack")
}

/// Room for `files` in this process and in what it starts.
pub fn allow_open_files(files: u64) -> Result<()> {
    let now = getrlimit(Resource::Nofile);
    if now.current.is_none_or(|current| current >= files) {
        return Ok(());
    }
    let wanted = Rlimit {
        current: Some(files),
        maximum: now.maximum.map(|maximum| maximum.max(files)),
    };
    setrlimit(Resource::Nofile, wanted).with_context(|| {
        format!("{files} open files are needed: raise the limit with ulimit -n, or as root")
    })
}
