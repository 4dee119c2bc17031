//! The load generator: keep-alive connections in one thread, on epoll. It checks the status and the
//! length of every answer, and any surprise ends the run: a proxy that fails fast must not look fast.
//!
//! Two ways to send. *Closed loop*: each connection sends its next request when it has its answer,
//! which is for throughput and CPU time. *Open loop*: requests are due at fixed times, whatever the
//! proxy does; a latency counts from the moment a request was due, so the wait of those that a slow
//! answer held up is in it (no coordinated omission).

use std::{
    collections::VecDeque,
    io::{ErrorKind, Read, Write},
    mem::MaybeUninit,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::{
    event::{
        Timespec,
        epoll::{self, EventData, EventFlags},
    },
    fd::OwnedFd,
};
use socket2::{Domain, Socket, Type};

use super::message::{Exchange, Reader, judge_answer};

/// An answer that takes longer is a failure.
const PATIENCE: Duration = Duration::from_secs(20);
/// Connections from one source address: below the usual range of ephemeral ports.
const PER_SOURCE: usize = 20_000;

/// Taken from the kernel at once.
const EVENTS: usize = 256;

/// When a closed loop ends.
#[derive(Debug, Clone, Copy)]
pub enum Until {
    Requests(u64),
    Elapsed(Duration),
}

/// What a closed loop has done.
#[derive(Debug, Clone, Copy)]
pub struct Done {
    pub requests: u64,
    pub elapsed: Duration,
}

/// Open connections to one proxy, all idle between two runs.
pub struct Load<'a> {
    exchange: &'a Exchange,
    epoll: OwnedFd,
    connections: Vec<Connection>,
    buffer: Vec<u8>,
}

struct Connection {
    stream: TcpStream,
    reader: Reader,
    /// Bytes of the request that are still to be written.
    unsent: usize,
    /// When the request was due.
    due: Instant,
}

impl<'a> Load<'a> {
    pub fn connect(to: SocketAddr, connections: usize, exchange: &'a Exchange) -> Result<Load<'a>> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut opened = Vec::with_capacity(connections);
        for number in 0..connections {
            let stream = connect(to, number / PER_SOURCE)
                .with_context(|| format!("connection {number} to {to}"))?;
            let flags = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
            epoll::add(&epoll, &stream, EventData::new_u64(number as u64), flags)?;
            opened.push(Connection {
                stream,
                reader: Reader::default(),
                unsent: 0,
                due: Instant::now(),
            });
        }
        Ok(Load {
            exchange,
            epoll,
            connections: opened,
            buffer: vec![0; 256 << 10],
        })
    }

    /// All connections at once, each as fast as it gets answers.
    pub fn closed_loop(&mut self, until: Until) -> Result<Done> {
        let start = Instant::now();
        let mut started = 0;
        let mut may_start = move || {
            let may = match until {
                Until::Requests(requests) => started < requests,
                Until::Elapsed(time) => start.elapsed() < time,
            };
            started += u64::from(may);
            may
        };
        let (mut in_flight, mut requests) = (0, 0);
        for number in 0..self.connections.len() {
            if may_start() {
                self.start(number, start)?;
                in_flight += 1;
            }
        }
        while in_flight > 0 {
            for number in self.wait(PATIENCE)? {
                if self.advance(number)? {
                    requests += 1;
                    match may_start() {
                        true => self.start(number, start)?,
                        false => in_flight -= 1,
                    }
                }
            }
        }
        Ok(Done {
            requests,
            elapsed: start.elapsed(),
        })
    }

    /// `requests` of them, due at `rate` a second, on the connection that has been idle for longest.
    /// The latencies, in the order of the answers.
    pub fn open_loop(&mut self, rate: u32, requests: u64) -> Result<Vec<Duration>> {
        let start = Instant::now();
        let due = |number: u64| start + Duration::from_secs(number) / rate;
        let mut idle: VecDeque<usize> = (0..self.connections.len()).collect();
        let mut latencies = Vec::with_capacity(requests as usize);
        let mut next = 0;
        while (latencies.len() as u64) < requests {
            let now = Instant::now();
            while next < requests && due(next) <= now {
                let Some(number) = idle.pop_front() else {
                    break;
                };
                self.start(number, due(next))?;
                next += 1;
            }
            let patience = match next < requests && !idle.is_empty() {
                true => due(next).saturating_duration_since(Instant::now()),
                false => PATIENCE,
            };
            for number in self.wait(patience)? {
                if self.advance(number)? {
                    latencies.push(self.connections[number].due.elapsed());
                    idle.push_back(number);
                }
            }
        }
        Ok(latencies)
    }

    /// One request on each connection, `at_once` of them in flight at most.
    pub fn once_each(&mut self, at_once: usize) -> Result<()> {
        let (mut next, mut in_flight) = (0, 0);
        while next < self.connections.len() || in_flight > 0 {
            while next < self.connections.len() && in_flight < at_once {
                self.start(next, Instant::now())?;
                next += 1;
                in_flight += 1;
            }
            for number in self.wait(PATIENCE)? {
                in_flight -= usize::from(self.advance(number)?);
            }
        }
        Ok(())
    }

    /// The connections to which something happened.
    fn wait(&mut self, patience: Duration) -> Result<Vec<usize>> {
        let mut numbers = Vec::with_capacity(EVENTS);
        wait(&self.epoll, &mut numbers, patience)?;
        ensure!(
            patience < PATIENCE || !numbers.is_empty(),
            "no answer within {PATIENCE:?}"
        );
        Ok(numbers)
    }

    fn start(&mut self, number: usize, due: Instant) -> Result<()> {
        let connection = &mut self.connections[number];
        connection.due = due;
        connection.unsent = self.exchange.request.len();
        connection.send(self.exchange)
    }

    /// As far as it goes; true when the answer is complete.
    fn advance(&mut self, number: usize) -> Result<bool> {
        self.connections[number]
            .advance(self.exchange, &mut self.buffer)
            .with_context(|| format!("connection {number}"))
    }
}

impl Connection {
    fn send(&mut self, exchange: &Exchange) -> Result<()> {
        while self.unsent > 0 {
            let from = exchange.request.len() - self.unsent;
            match self.stream.write(&exchange.request[from..]) {
                Ok(written) => self.unsent -= written,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context("the request cannot be written"),
            }
        }
        Ok(())
    }

    fn advance(&mut self, exchange: &Exchange, buffer: &mut [u8]) -> Result<bool> {
        self.send(exchange)?;
        loop {
            let read = match self.stream.read(buffer) {
                Ok(0) => bail!("closed by the proxy"),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error).context("the answer cannot be read"),
            };
            let ended = self.reader.take(&buffer[..read], |head| {
                judge_answer(head, exchange.answer_bytes)
            })?;
            if ended {
                ensure!(self.unsent == 0, "answered before the request had ended");
                return Ok(true);
            }
            if read < buffer.len() {
                return Ok(false);
            }
        }
    }
}

/// `source` 0 leaves the source address to the kernel.
fn connect(to: SocketAddr, source: usize) -> Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    if source > 0 {
        let address = IpAddr::V4(Ipv4Addr::new(127, 0, 1, u8::try_from(source)?));
        socket.bind(&SocketAddr::new(address, 0).into())?;
    }
    socket.connect(&to.into())?;
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// `epoll_wait` with a timeout that is exact to the nanosecond; `keys` are those that something
/// happened to.
pub fn wait(epoll: &OwnedFd, keys: &mut Vec<usize>, timeout: Duration) -> Result<()> {
    let timeout = Timespec::try_from(timeout).context("a timeout beyond reason")?;
    let mut events = [const { MaybeUninit::uninit() }; EVENTS];
    let (events, _) = epoll::wait(epoll, &mut events, Some(&timeout))?;
    keys.clear();
    keys.extend(events.iter().map(|event| event.data.u64() as usize));
    Ok(())
}
