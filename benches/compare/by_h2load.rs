//! The same measurement where h2load sends.
//!
//! It runs twice: the first time warms the proxy up and shows how many requests take as long as wanted.
//! What is divided by them is the proxy's CPU time over all of the second run, in which its connections
//! are made as well: a handshake for some thousand requests, save where that is the point.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result};

use super::cell::{Cell, Measured, forwarded};
use crate::kit::{
    h2load::{H2load, Pace},
    load::Done,
    machine::{Others, run_on},
    nghttpd::Nghttpd,
    process::Folder,
    proxies::{Guards, Proxy, Task},
    upstream::{Role, Seen, Upstream},
    wire::Wire,
    workload::Workload,
};

/// Per stream, of the first run.
const WARM_UP_REQUESTS: u64 = 50;
/// Of the first run, where the rate is known.
const WARM_UP: f64 = 0.5;
/// More connections are not open at once where each request has its own.
const HANDSHAKES_AT_ONCE: usize = 1024;

/// Whom the proxy forwards to.
enum Behind {
    Http1(Upstream),
    Http2(Nghttpd),
}

impl Cell<'_> {
    pub fn measure_by_h2load(&self, proxy: &Proxy) -> Result<Measured> {
        let wire = self.workload.wire();
        let threads = self.cores.load_threads();
        let answer_bytes = self.workload.exchange().answer_bytes;
        run_on(&self.cores.load)?;
        let behind = Behind::start(wire, answer_bytes, threads, self.folder)?;
        run_on(&self.cores.proxy)?;
        let pace = self.pace();
        let task = Task {
            workers: self.workers,
            wire,
            connections: match pace {
                Pace::Loop {
                    connections,
                    streams,
                } => connections * streams,
                Pace::Connect { .. } => HANDSHAKES_AT_ONCE,
            },
            upstream: behind.address(),
            sidecar: None,
            guards: Guards::Limits,
        };
        let process = proxy.start(&task, self.folder)?;
        run_on(&self.cores.load)?;

        let h2load = H2load {
            to: process.address,
            wire,
            pace,
            answer_bytes,
            threads,
            folder: &self.folder.0,
        };
        let requests = self.requests(&h2load)?;
        let seen = behind.seen()?;
        let cpu = process.cpu()?;
        let others = Others::watch(cpu + behind.cpu()?)?;
        let done = h2load.run(requests)?;
        let cpu_after = process.cpu()?;
        let others = others.part(cpu_after + behind.cpu()?)?;
        behind.forwarded(requests, seen)?;
        process.stop()?;
        Ok(Measured {
            cpu_us: (cpu_after - cpu).as_secs_f64() * 1e6 / requests as f64,
            requests_per_second: match pace {
                Pace::Loop { .. } => Some(per_second(&done)),
                Pace::Connect { .. } => None,
            },
            latency: None,
            others,
        })
    }

    pub fn pace(&self) -> Pace {
        match self.workload {
            Workload::Handshake => Pace::Connect {
                per_second: self.rate,
            },
            _ => Pace::Loop {
                connections: self.connections,
                streams: self.streams,
            },
        }
    }

    /// How many take `seconds`, by a first run.
    fn requests(&self, h2load: &H2load) -> Result<u64> {
        match h2load.pace {
            Pace::Connect { per_second } => {
                h2load.run((f64::from(per_second) * WARM_UP) as u64)?;
                Ok((f64::from(per_second) * self.seconds) as u64)
            }
            Pace::Loop {
                connections,
                streams,
            } => {
                let done = h2load.run(WARM_UP_REQUESTS * (connections * streams) as u64)?;
                let wanted = (per_second(&done) * self.seconds) as u64;
                Ok(wanted.max((connections * streams) as u64))
            }
        }
    }
}

fn per_second(done: &Done) -> f64 {
    done.requests as f64 / done.elapsed.as_secs_f64()
}

impl Behind {
    fn start(wire: Wire, answer_bytes: u64, threads: usize, folder: &Folder) -> Result<Behind> {
        Ok(match wire.http2_upstream {
            true => Behind::Http2(Nghttpd::start(&[answer_bytes], threads, folder)?),
            false => Behind::Http1(Upstream::start(Role::Upstream, threads)?),
        })
    }

    fn address(&self) -> SocketAddr {
        match self {
            Behind::Http1(upstream) => upstream.address,
            Behind::Http2(nghttpd) => nghttpd.address(),
        }
    }

    fn cpu(&self) -> Result<Duration> {
        match self {
            // In this process.
            Behind::Http1(_) => Ok(Duration::ZERO),
            Behind::Http2(nghttpd) => nghttpd.cpu(),
        }
    }

    /// Of nghttpd, the sockets only.
    fn seen(&self) -> Result<Seen> {
        Ok(match self {
            Behind::Http1(upstream) => upstream.seen(),
            Behind::Http2(nghttpd) => Seen {
                requests: 0,
                connections: nghttpd.sockets()?,
            },
        })
    }

    /// See `cell::forwarded`. Nobody makes up the bytes that nghttpd answers with: that they came is
    /// enough there.
    fn forwarded(&self, requests: u64, before: Seen) -> Result<()> {
        let mut after = self.seen()?;
        if let Behind::Http2(_) = self {
            after.requests = before.requests + requests;
            // Those that have ended are forgotten at some time.
            after.connections = after.connections.max(before.connections);
        }
        forwarded(requests, before, after).context("to the upstream")
    }
}
