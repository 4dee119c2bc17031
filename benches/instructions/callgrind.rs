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
    process::{Folder, Process, find, free_address},
    proxies::{self, Task},
    upstream::{Role, Upstream},
};

/// Runs it.
pub struct Callgrind<'a> {
    pub valgrind: PathBuf,
    pub router: PathBuf,
    pub folder: &'a Folder,
}

/// Before a profile begins.
const WARM_UP: u64 = 200;

impl Callgrind<'_> {
    /// The difference of two runs, by the difference of their requests.
    pub fn per_request(&self, request: Request, short: u64, long: u64) -> Result<u64> {
        let less = self.total(request, short)?;
        let more = self.total(request, long)?;
        Ok((more - less) / (long - short))
    }

    fn total(&self, request: Request, requests: u64) -> Result<u64> {
        let out = self.run(request, requests, |_| Ok(()))?;
        let text = fs::read_to_string(&out)?;
        let total = text.lines().find_map(|line| line.strip_prefix("totals: "));
        Ok(total.context("callgrind wrote no totals")?.parse()?)
    }

    /// The functions with most instructions, without and with what they call.
    pub fn profile(&self, request: Request, requests: u64, top: usize) -> Result<String> {
        let control = find("callgrind_control", "valgrind")?;
        let out = self.run(request, requests, |pid| {
            let zeroed = Command::new(&control)
                .args(["--zero", &pid.to_string()])
                .output()?;
            ensure!(
                zeroed.status.success(),
                "callgrind_control: {}",
                String::from_utf8_lossy(&zeroed.stderr)
            );
            Ok(())
        })?;
        let mut text = String::new();
        for inclusive in ["no", "yes"] {
            let annotated = Command::new(find("callgrind_annotate", "valgrind")?)
                .arg(format!("--inclusive={inclusive}"))
                .arg("--auto=no")
                .arg(&out)
                .output()?;
            let listing = String::from_utf8_lossy(&annotated.stdout);
            text += &format!("### {requests} requests, inclusive: {inclusive}\n\n");
            for line in listing
                .lines()
                .skip_while(|line| !line.contains("PROGRAM TOTALS"))
                .take(top + 5)
            {
                text += &shortened(line);
                text.push('\n');
            }
            text.push('\n');
        }
        Ok(text)
    }

    /// One process from start to end; `warm` is called with its pid after the warm-up. Where
    /// callgrind wrote to.
    fn run(
        &self,
        request: Request,
        requests: u64,
        warm: impl FnOnce(u32) -> Result<()>,
    ) -> Result<PathBuf> {
        let upstream = Upstream::start(Role::Upstream, 1)?;
        let sidecar = Upstream::start(Role::Sidecar, 1)?;
        let address = free_address()?;
        let task = Task {
            workers: 1,
            connections: 1,
            upstream: upstream.address,
            sidecar: (request == Request::Sidecar).then_some(sidecar.address),
        };
        let config = self
            .folder
            .write("router.json", &proxies::router(address, &task)?)?;
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
        let exchange = request.exchange();
        let mut load = Load::connect(address, 1, &exchange)?;
        load.closed_loop(Until::Requests(WARM_UP))?;
        warm(process.pid())?;
        load.closed_loop(Until::Requests(requests))?;
        drop(load);
        process.stop()?;
        Ok(out)
    }
}

/// Without the path of the binary and most of the type parameters, in which names drown.
fn shortened(line: &str) -> String {
    let name_only = line.rsplit_once(" [").map_or(line, |(name, _)| name);
    name_only.chars().take(160).collect()
}
