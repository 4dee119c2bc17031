//! What idle connections cost: each makes one request and then stays.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::kit::{
    load::Load,
    machine::{Cores, run_on},
    process::Folder,
    proxies::{Guards, Proxy, Task},
    upstream::{Role, Upstream},
    workload::Workload,
};

/// Resident memory of a proxy, in bytes.
pub struct Memory {
    pub proxy: String,
    pub before: u64,
    pub after: u64,
}

/// Few requests at a time, so that it is the idle connections that are seen and not a flood.
const AT_ONCE: usize = 32;
/// For what a proxy does once a connection has been idle for a while.
const SETTLE: Duration = Duration::from_secs(3);

/// One turn each: memory repeats well.
pub fn measure(
    proxies: &[Proxy],
    connections: usize,
    cores: &Cores,
    folder: &Folder,
) -> Result<Vec<Memory>> {
    proxies
        .iter()
        .map(|proxy| {
            let memory = measure_one(proxy, connections, cores, folder)
                .with_context(|| format!("{proxy}"))?;
            eprintln!("idle, {proxy}: {} bytes", memory.after);
            Ok(memory)
        })
        .collect()
}

fn measure_one(
    proxy: &Proxy,
    connections: usize,
    cores: &Cores,
    folder: &Folder,
) -> Result<Memory> {
    run_on(&cores.load)?;
    let upstream = Upstream::start(Role::Upstream, cores.load_threads())?;
    run_on(&cores.proxy)?;
    let task = Task {
        workers: cores.proxy.len(),
        wire: Workload::Idle.wire(),
        connections,
        upstream: upstream.address,
        sidecar: None,
        guards: Guards::Limits,
    };
    let process = proxy.start(&task, folder)?;
    run_on(&cores.load)?;
    let before = process.rss_bytes()?;
    let exchange = Workload::Idle.exchange();
    let mut load = Load::connect(process.address, connections, &exchange)?;
    load.once_each(AT_ONCE)?;
    std::thread::sleep(SETTLE);
    let after = process.rss_bytes()?;
    // All of them are still there.
    load.once_each(AT_ONCE).context("after the idle time")?;
    let upstream_connections = upstream.seen().connections;
    ensure!(
        upstream_connections <= 4 * AT_ONCE as u64,
        "{upstream_connections} connections to the upstream: they are not kept"
    );
    drop(load);
    process.stop()?;
    Ok(Memory {
        proxy: proxy.to_string(),
        before,
        after,
    })
}
