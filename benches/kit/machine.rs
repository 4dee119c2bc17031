//! The machine: which cores are whose, how many files may be open, and who else is busy on it.

use std::{
    fs,
    num::NonZeroU64,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::{
    process::{Resource, Rlimit, getrlimit, setrlimit},
    thread::{CpuSet, sched_getaffinity, sched_setaffinity, set_current_timer_slack},
    time::{ClockId, clock_gettime},
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

/// Watches how much of the machine is busy with what is not ours.
pub struct Others {
    since: Instant,
    everybody: Duration,
    ours: Duration,
}

impl Others {
    /// From now on; `running` is the CPU time that our running processes, the proxy above all, have
    /// had so far. Those that end meanwhile are known.
    pub fn watch(running: Duration) -> Result<Others> {
        Ok(Others {
            since: Instant::now(),
            everybody: busy()?.0,
            ours: own_cpu()? + running,
        })
    }

    /// The part that others had, 0 to 1; `running` as above.
    pub fn part(&self, running: Duration) -> Result<f64> {
        let (everybody, cores) = busy()?;
        let all = everybody.saturating_sub(self.everybody);
        let ours = (own_cpu()? + running).saturating_sub(self.ours);
        let others = all.saturating_sub(ours).as_secs_f64();
        Ok(others / (self.since.elapsed().as_secs_f64() * cores as f64))
    }
}

/// Returns when others have used less than this part of the machine for a moment, or when `patience`
/// ends.
pub fn wait_for_quiet(part: f64, patience: Duration) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < patience {
        let others = Others::watch(Duration::ZERO)?;
        sleep(Duration::from_millis(500));
        if others.part(Duration::ZERO)? < part {
            break;
        }
    }
    Ok(())
}

/// CPU time of everybody, to a hundredth of a second, and on how many cores. What other virtual
/// machines took from us is in it, where we are in one.
fn busy() -> Result<(Duration, usize)> {
    let stat = fs::read_to_string("/proc/stat")?;
    // cpu  user nice system idle iowait irq softirq steal
    let mut columns = stat.split_whitespace().skip(1).map(str::parse::<u64>);
    let mut ticks = 0;
    for column in 0..8 {
        let spent = columns.next().context("/proc/stat is too short")??;
        ticks += if matches!(column, 3 | 4) { 0 } else { spent };
    }
    let cores = stat.lines().filter(|line| line.starts_with("cpu")).count() - 1;
    Ok((of_ticks(ticks)?, cores))
}

/// Of this process, and of its children that have ended.
fn own_cpu() -> Result<Duration> {
    let spent = clock_gettime(ClockId::ProcessCPUTime);
    let spent = Duration::try_from(spent).context("a negative CPU time")?;
    let stat = fs::read_to_string("/proc/self/stat")?;
    // Behind the name come 13 columns, then cutime and cstime.
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let children = after_name.split_whitespace().skip(13).take(2);
    let ticks: Vec<u64> = children.map(str::parse).collect::<Result<_, _>>()?;
    Ok(spent + of_ticks(ticks.iter().sum())?)
}

fn of_ticks(ticks: u64) -> Result<Duration> {
    let per_second = u32::try_from(rustix::param::clock_ticks_per_second())?;
    Ok(Duration::from_secs(ticks) / per_second)
}
