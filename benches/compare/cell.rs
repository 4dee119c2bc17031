//! One measurement: one proxy, one workload, one round.

use std::{fmt, net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};

use crate::kit::{
    h2load::Pace,
    load::{Done, Load, Until},
    machine::{Cores, Others, run_on},
    message::Exchange,
    process::Folder,
    proxies::{Guards, Proxy, Task},
    upstream::{Role, Seen, Upstream},
    workload::Workload,
};

/// What is measured, and how.
pub struct Cell<'a> {
    pub workload: Workload,
    pub workers: usize,
    pub cores: &'a Cores,
    pub connections: usize,
    /// On each of them, where h2load sends.
    pub streams: usize,
    pub seconds: f64,
    /// Of the open loop, or of the connections where each request has its own; 0 for none.
    pub rate: u32,
    pub folder: &'a Folder,
}

/// What came out.
#[derive(Debug, Clone, Copy)]
pub struct Measured {
    /// CPU time of the proxy per request.
    pub cpu_us: f64,
    /// `None` where it is given.
    pub requests_per_second: Option<f64>,
    pub latency: Option<Latency>,
    /// The part of the machine that was busy with what is not ours, 0 to 1.
    pub others: f64,
}

/// From the moment when a request was due.
#[derive(Debug, Clone, Copy)]
pub struct Latency {
    pub p50_us: f64,
    pub p99_us: f64,
}

/// Before anything is measured: connections are made, pools filled, memory allocated.
const WARM_UP: Duration = Duration::from_millis(500);

impl Cell<'_> {
    pub fn measure(&self, proxy: &Proxy) -> Result<Measured> {
        match self.workload.wire().is_plain() {
            true => self.measure_by_kit(proxy),
            false => self.measure_by_h2load(proxy),
        }
    }

    /// How it was sent, for those who read the table.
    pub fn note(&self) -> String {
        let wire = self.workload.wire();
        if wire.is_plain() {
            return match self.rate {
                0 => String::new(),
                rate => format!(
                    "Latency at {rate} requests/s, open loop, from the moment a request was due.\n"
                ),
            };
        }
        match self.pace() {
            Pace::Loop {
                connections,
                streams,
            } => format!(
                "Sent by h2load, which has no open loop and hence no latency: {connections} connections, \
                 {streams} in flight on each, {wire}.\n"
            ),
            Pace::Connect { per_second } => format!(
                "Sent by h2load: {per_second} connections a second, {wire}; CPU is of the whole, \
                 from accepting the connection to closing it.\n"
            ),
        }
    }

    fn measure_by_kit(&self, proxy: &Proxy) -> Result<Measured> {
        run_on(&self.cores.load)?;
        let threads = self.cores.load_threads();
        let upstream = Upstream::start(Role::Upstream, threads)?;
        let sidecar = Upstream::start(Role::Sidecar, threads)?;
        run_on(&self.cores.proxy)?;
        let task = Task {
            workers: self.workers,
            wire: self.workload.wire(),
            connections: self.connections,
            upstream: upstream.address,
            sidecar: self.workload.asks_sidecar().then_some(sidecar.address),
            guards: Guards::Limits,
        };
        let process = proxy.start(&task, self.folder)?;
        run_on(&self.cores.load)?;

        let exchange = self.workload.exchange();
        let mut loads = self.connect(process.address, &exchange, threads)?;
        closed_loop(&mut loads, WARM_UP)?;
        let (seen, asked) = (upstream.seen(), sidecar.seen());
        let cpu = process.cpu()?;
        let others = Others::watch(cpu)?;
        let done = closed_loop(&mut loads, Duration::from_secs_f64(self.seconds))?;
        let cpu = process.cpu()? - cpu;
        forwarded(done.requests, seen, upstream.seen()).context("to the upstream")?;
        if task.sidecar.is_some() {
            forwarded(done.requests, asked, sidecar.seen()).context("to the sidecar")?;
        }
        let latency = self.latency(&mut loads[0])?;
        let others = others.part(process.cpu()?)?;
        drop(loads);
        process.stop()?;
        Ok(Measured {
            cpu_us: cpu.as_secs_f64() * 1e6 / done.requests as f64,
            requests_per_second: Some(done.requests as f64 / done.elapsed.as_secs_f64()),
            latency,
            others,
        })
    }

    fn connect<'a>(
        &self,
        to: SocketAddr,
        exchange: &'a Exchange,
        threads: usize,
    ) -> Result<Vec<Load<'a>>> {
        let each = (self.connections / threads).max(1);
        (0..threads)
            .map(|_| Load::connect(to, each, exchange))
            .collect()
    }

    fn latency(&self, load: &mut Load) -> Result<Option<Latency>> {
        if self.rate == 0 {
            return Ok(None);
        }
        let requests = (f64::from(self.rate) * self.seconds) as u64;
        let mut latencies = load.open_loop(self.rate, requests)?;
        latencies.sort_unstable();
        let quantile = |of_all: f64| {
            let last = latencies.len() - 1;
            latencies[(last as f64 * of_all).round() as usize].as_secs_f64() * 1e6
        };
        Ok(Some(Latency {
            p50_us: quantile(0.50),
            p99_us: quantile(0.99),
        }))
    }
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{:.2} µs CPU", self.cpu_us)?;
        if let Some(per_second) = self.requests_per_second {
            write!(f, ", {per_second:.0} requests/s")?;
        }
        if let Some(Latency { p50_us, p99_us }) = self.latency {
            write!(f, ", p50 {p50_us:.0} µs, p99 {p99_us:.0} µs")?;
        }
        write!(f, ", others {:.0} %", self.others * 100.0)
    }
}

/// One thread for each load.
fn closed_loop(loads: &mut [Load], time: Duration) -> Result<Done> {
    let done: Vec<Done> = std::thread::scope(|scope| {
        let running: Vec<_> = loads
            .iter_mut()
            .map(|load| scope.spawn(move || load.closed_loop(Until::Elapsed(time))))
            .collect();
        running
            .into_iter()
            .map(|thread| thread.join().expect("the load generator does not panic"))
            .collect::<Result<_>>()
    })?;
    Ok(Done {
        requests: done.iter().map(|done| done.requests).sum(),
        elapsed: done.iter().map(|done| done.elapsed).max().unwrap_or(time),
    })
}

/// Each request once, over connections that were kept: else it is not the work that we mean.
pub fn forwarded(requests: u64, before: Seen, after: Seen) -> Result<()> {
    let arrived = after.requests - before.requests;
    ensure!(
        arrived == requests,
        "{requests} requests were answered, but {arrived} forwarded"
    );
    let connections = after.connections - before.connections;
    ensure!(
        connections * 20 <= requests,
        "{connections} connections were made for {requests} requests: they are not kept"
    );
    Ok(())
}
