//! An upstream that speaks HTTP/2 by prior knowledge: nghttpd, which takes a third of nginx's time
//! for an answer. It answers `/bytes/N` for the lengths that it was told at its start.

use std::{fs, net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::Result;

use super::process::{Folder, Process, find, free_address};

/// A running server; it ends when this is dropped.
pub struct Nghttpd {
    process: Process,
}

/// More than any proxy wants to have in flight on a connection.
const STREAMS: &str = "--max-concurrent-streams=1000";

/// Where it is, or how to get it.
pub fn program() -> Result<PathBuf> {
    find("nghttpd", "nghttp2-server")
}

impl Nghttpd {
    /// Runs on the cores of the caller.
    pub fn start(answers: &[u64], threads: usize, folder: &Folder) -> Result<Nghttpd> {
        let root = folder.0.join("root");
        fs::create_dir_all(root.join("bytes"))?;
        for &bytes in answers {
            let name = root.join("bytes").join(bytes.to_string());
            fs::write(name, vec![b'y'; usize::try_from(bytes)?])?;
        }
        let address = free_address()?;
        let arguments = [
            "--no-tls".to_owned(),
            STREAMS.to_owned(),
            format!("--workers={threads}"),
            format!("--address={}", address.ip()),
            format!("--htdocs={}", root.display()),
            address.port().to_string(),
        ];
        let process = Process::start(&program()?, arguments, address, folder)?;
        Ok(Nghttpd { process })
    }

    pub fn address(&self) -> SocketAddr {
        self.process.address
    }

    /// CPU time so far.
    pub fn cpu(&self) -> Result<Duration> {
        self.process.cpu()
    }

    /// Two for each connection, one for each that has ended within the last minute. It counts
    /// nothing itself; this is how one sees that a proxy keeps what it opens.
    pub fn sockets(&self) -> Result<u64> {
        let here = format!(":{:04X}", self.process.address.port());
        let everybody = fs::read_to_string("/proc/net/tcp")?;
        // sl local_address rem_address st
        let ours = everybody.lines().filter(|line| {
            let mut addresses = line.split_whitespace().skip(1).take(2);
            addresses.any(|address| address.ends_with(&here))
        });
        Ok(ours.count() as u64)
    }
}
