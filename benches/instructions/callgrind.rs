//! The router under callgrind.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use super::Request;
use crate::kit::{
    load::{Load, Until},
    process::{Folder, Process, free_address},
    proxies::{self, Guards, Task},
    upstream::{Role, Upstream},
    wire::Wire,
};

/// Runs it.
pub struct Callgrind<'a> {
    pub valgrind: PathBuf,
    pub router: PathBuf,
    pub folder: &'a Folder,
}

impl Callgrind<'_> {
    /// The difference of two runs, by the difference of their requests.
    pub fn per_request(&self, request: Request, short: u64, long: u64) -> Result<u64> {
        let less = self.total(request, short)?;
        let more = self.total(request, long)?;
        Ok((more - less) / (long - short))
    }

    fn total(&self, request: Request, requests: u64) -> Result<u64> {
        let out = self.record(request, requests)?;
        let text = fs::read_to_string(&out)?;
        let total = text.lines().find_map(|line| line.strip_prefix("totals: "));
        Ok(total.context("callgrind wrote no totals")?.parse()?)
    }

    /// One process from start to end; where callgrind wrote to, until the next run.
    pub fn record(&self, request: Request, requests: u64) -> Result<PathBuf> {
        let upstream = Upstream::start(Role::Upstream, 1)?;
        let sidecar = Upstream::start(Role::Sidecar, 1)?;
        let (address, instrumentation) = (free_address()?, free_address()?);
        let task = Task {
            workers: 1,
            wire: Wire::default(),
            connections: 1,
            upstream: upstream.address,
            sidecar: request.asks_sidecar().then_some(sidecar.address),
            guards: request.guards(),
        };
        let config = self.folder.write(
            "router.json",
            &proxies::router_with(address, instrumentation, &task)?,
        )?;
        let out = self.folder.0.join("callgrind.out");
        let _old = fs::remove_file(&out);
        // The same addresses each time: what hashes or sorts by address does so the same way.
        let process = Process::start(
            Path::new("setarch"),
            [
                "--addr-no-randomize".as_ref(),
                self.valgrind.as_os_str(),
                "--tool=callgrind".as_ref(),
                format!("--callgrind-out-file={}", out.display()).as_ref(),
                self.router.as_os_str(),
                "-c".as_ref(),
                config.as_os_str(),
            ],
            address,
            self.folder,
        )?;
        if task.guards == Guards::Rollout {
            let started = Command::new(&self.router)
                .args(["rollout", "start", "--url"])
                .arg(format!("http://{instrumentation}"))
                .output()?;
            ensure!(started.status.success(), "{started:?}");
        }
        let exchange = request.exchange();
        let mut load = Load::connect(address, 1, &exchange)?;
        load.closed_loop(Until::Requests(requests))?;
        drop(load);
        process.stop()?;
        Ok(out)
    }
}
