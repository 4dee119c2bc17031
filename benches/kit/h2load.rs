//! h2load, for what this kit's own load generator does not speak: TLS and HTTP/2. It is as strict:
//! each answer a 200 of the right length, and TLS as `wire` has it, or the run ends.
//!
//! It sends in a closed loop. Its way to send at a rate wakes up every ten milliseconds, which would
//! be in every latency: there are none from here.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use super::{
    certificate::HOST,
    load::Done,
    process::{command, find},
    wire::{CIPHER, GROUP, TLS_VERSION, Wire},
};

/// An answer that takes longer is a failure.
const PATIENCE: &str = "--connection-inactivity-timeout=20s";

/// How it sends.
#[derive(Debug, Clone, Copy)]
pub enum Pace {
    /// Each stream of each connection as fast as it gets answers.
    Loop { connections: usize, streams: usize },
    /// A connection for each request, so many in a second.
    Connect { per_second: u32 },
}

/// What is sent to whom; runs on the cores of the caller.
pub struct H2load<'a> {
    pub to: SocketAddr,
    pub wire: Wire,
    pub pace: Pace,
    pub answer_bytes: u64,
    pub threads: usize,
    /// Where it runs.
    pub folder: &'a Path,
}

/// Where it is, or how to get it.
pub fn program() -> Result<PathBuf> {
    find("h2load", "nghttp2-client")
}

impl H2load<'_> {
    /// All connections are made, used and closed in this time, by a process of its own.
    pub fn run(&self, requests: u64) -> Result<Done> {
        let scheme = if self.wire.tls { "https" } else { "http" };
        let mut h2load = command(&program()?);
        h2load
            .current_dir(self.folder)
            .arg(format!("--requests={requests}"))
            .arg(format!("--tls13-ciphers={CIPHER}"))
            .arg(format!("--groups={GROUP}"))
            .arg(format!("--connect-to={}", self.to))
            .args([
                PATIENCE,
                "--header=user-agent: bench",
                "--header=accept: */*",
            ]);
        if !self.wire.http2 {
            h2load.arg("--h1");
        }
        match self.pace {
            Pace::Loop {
                connections,
                streams,
            } => h2load
                .arg(format!("--clients={connections}"))
                .arg(format!("--max-concurrent-streams={streams}"))
                .arg(format!("--threads={}", self.threads.min(connections))),
            Pace::Connect { per_second } => h2load
                .arg(format!("--clients={requests}"))
                // The shortest period that it knows: one second's connections are not made at once.
                .arg(format!("--rate={}", (per_second / 100).max(1)))
                .arg("--rate-period=10ms"),
        };
        h2load.arg(format!("{scheme}://{HOST}/bytes/{}", self.answer_bytes));
        let output = h2load.output().context("h2load cannot be started")?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(
            output.status.success(),
            "h2load: {}: {}{said}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        self.judge(&said, requests)
            .with_context(|| format!("h2load said:\n{said}"))
    }

    fn judge(&self, said: &str, requests: u64) -> Result<Done> {
        let bytes = requests * self.answer_bytes;
        let mut expected = vec![
            format!(" {requests} succeeded, 0 failed, 0 errored, 0 timeout\n"),
            format!("status codes: {requests} 2xx, 0 3xx, 0 4xx, 0 5xx\n"),
            format!(" ({bytes}) data\n"),
            format!("Application protocol: {}\n", self.wire.protocol()),
        ];
        if self.wire.tls {
            expected.extend([
                format!("TLS Protocol: {TLS_VERSION}\n"),
                format!("Cipher: {CIPHER}\n"),
                format!("Server Temp Key: {GROUP} "),
            ]);
        }
        for expected in expected {
            ensure!(said.contains(&expected), "not as it should be: {expected}");
        }
        Ok(Done {
            requests,
            elapsed: elapsed(said, requests).context("it does not say how fast it was")?,
        })
    }
}

/// From `finished in 998.33ms, 1001.68 req/s, 145.75KB/s`: of the two, the rate has one unit only.
fn elapsed(said: &str, requests: u64) -> Option<Duration> {
    let line = said.lines().find(|line| line.starts_with("finished in"))?;
    let (rate, _) = line.split_once(" req/s")?;
    let rate: f64 = rate.rsplit(' ').next()?.parse().ok()?;
    Duration::try_from_secs_f64(requests as f64 / rate).ok()
}
