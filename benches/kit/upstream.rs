//! The upstream and the sidecar: as cheap as they can be, so that the core they share with the load
//! generator lasts longer than the proxy's.
//!
//! `/bytes/N` is answered with N bytes, once the request has been read to its end. A sidecar answers
//! 204 to everything. Requests and connections are counted, which is how the benches know that a
//! proxy really forwarded, asked, and kept its connections.

use std::{
    collections::HashMap,
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::{
    event::epoll::{self, EventData, EventFlags},
    fd::OwnedFd,
};
use slab::Slab;
use socket2::{Domain, Socket, Type};

use super::{
    load::wait,
    message::{Reader, content_length},
};

/// How it answers.
#[derive(Debug, Clone, Copy)]
pub enum Role {
    /// `/bytes/N` with N bytes.
    Upstream,
    /// Everything with 204: main.
    Sidecar,
}

/// What it has seen.
#[derive(Debug, Clone, Copy, Default)]
pub struct Seen {
    pub requests: u64,
    pub connections: u64,
}

/// A running server; it ends when this is dropped.
pub struct Upstream {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    requests: AtomicU64,
    connections: AtomicU64,
    stop: AtomicBool,
}

impl Upstream {
    /// Threads inherit the affinity of the caller.
    pub fn start(role: Role, threads: usize) -> Result<Upstream> {
        let mut address = SocketAddr::from(([127, 0, 0, 1], 0));
        let shared = Arc::new(Shared::default());
        let mut running = Vec::new();
        for _ in 0..threads.max(1) {
            let listener = listen(address).context("the upstream cannot listen")?;
            address = listener.local_addr()?;
            let shared = Arc::clone(&shared);
            running.push(std::thread::spawn(move || {
                // A connection that breaks rules ends alone; this is our own failure.
                if let Err(error) = Server::new(role, &shared, listener).and_then(Server::run) {
                    panic!("the upstream: {error:#}");
                }
            }));
        }
        Ok(Upstream {
            address,
            shared,
            threads: running,
        })
    }

    /// Up to now.
    pub fn seen(&self) -> Seen {
        // Relaxed, here and where they are counted: read when the proxies are silent.
        Seen {
            requests: self.shared.requests.load(Ordering::Relaxed),
            connections: self.shared.connections.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // If it panicked it has said so.
            let _ended = thread.join();
        }
    }
}

struct Server<'a> {
    role: Role,
    shared: &'a Shared,
    listener: TcpListener,
    epoll: OwnedFd,
    connections: Slab<Connection>,
    answers: Answers,
    buffer: Vec<u8>,
}

/// Answers that were given before, by their length.
type Answers = HashMap<u64, Rc<[u8]>>;

struct Connection {
    stream: TcpStream,
    reader: Reader,
    /// Chosen by the request's head, sent when its body has ended.
    answer: Rc<[u8]>,
    unsent: usize,
}

const LISTENER: usize = usize::MAX;

impl<'a> Server<'a> {
    fn new(role: Role, shared: &'a Shared, listener: TcpListener) -> Result<Server<'a>> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(
            &epoll,
            &listener,
            EventData::new_u64(LISTENER as u64),
            EventFlags::IN,
        )?;
        Ok(Server {
            role,
            shared,
            listener,
            epoll,
            connections: Slab::new(),
            answers: HashMap::new(),
            buffer: vec![0; 256 << 10],
        })
    }

    fn run(mut self) -> Result<()> {
        let mut ready = Vec::new();
        while !self.shared.stop.load(Ordering::Relaxed) {
            wait(&self.epoll, &mut ready, Duration::from_millis(100))?;
            for key in ready.drain(..) {
                match key {
                    LISTENER => self.accept()?,
                    key => self.advance(key),
                }
            }
        }
        Ok(())
    }

    fn accept(&mut self) -> Result<()> {
        loop {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            self.shared.connections.fetch_add(1, Ordering::Relaxed);
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            let entry = self.connections.vacant_entry();
            let data = EventData::new_u64(entry.key() as u64);
            let flags = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
            epoll::add(&self.epoll, &stream, data, flags)?;
            entry.insert(Connection {
                stream,
                reader: Reader::default(),
                answer: Rc::default(),
                unsent: 0,
            });
        }
    }

    fn advance(&mut self, key: usize) {
        let connection = &mut self.connections[key];
        let open = connection
            .advance(self.role, self.shared, &mut self.answers, &mut self.buffer)
            .unwrap_or_else(|error| {
                eprintln!("the upstream hangs up: {error:#}");
                false
            });
        if !open {
            self.connections.remove(key);
        }
    }
}

impl Connection {
    /// As far as it goes; false when the peer has closed.
    fn advance(
        &mut self,
        role: Role,
        shared: &Shared,
        answers: &mut Answers,
        buffer: &mut [u8],
    ) -> Result<bool> {
        self.send()?;
        loop {
            let read = match self.stream.read(buffer) {
                Ok(0) => return Ok(false),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
                // The proxy was stopped: that is how its run ends.
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(false),
                Err(error) => return Err(error.into()),
            };
            let ended = self.reader.take(&buffer[..read], |head| {
                self.answer = answer(role, head, answers)?;
                content_length(head)
            })?;
            if ended {
                shared.requests.fetch_add(1, Ordering::Relaxed);
                self.unsent = self.answer.len();
                self.send()?;
            }
            if read < buffer.len() {
                return Ok(true);
            }
        }
    }

    fn send(&mut self) -> Result<()> {
        while self.unsent > 0 {
            let from = self.answer.len() - self.unsent;
            match self.stream.write(&self.answer[from..]) {
                Ok(written) => self.unsent -= written,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

fn answer(role: Role, head: &[u8], answers: &mut Answers) -> Result<Rc<[u8]>> {
    let bytes = match role {
        Role::Sidecar => 0,
        Role::Upstream => bytes_asked_for(head)
            .with_context(|| format!("not for /bytes/N: {}", head.escape_ascii()))?,
    };
    let made = answers.entry(bytes).or_insert_with(|| match role {
        Role::Sidecar => Rc::from(&b"HTTP/1.1 204 No Content\r\nServer: bench\r\n\r\n"[..]),
        Role::Upstream => {
            let mut answer = format!(
                "HTTP/1.1 200 OK\r\n\
                 Server: bench\r\n\
                 Date: Thu, 01 Jan 2026 00:00:00 GMT\r\n\
                 Content-Type: application/octet-stream\r\n\
                 Content-Length: {bytes}\r\n\
                 Cache-Control: no-store\r\n\r\n"
            )
            .into_bytes();
            answer.resize(answer.len() + bytes as usize, b'y');
            answer.into()
        }
    });
    Ok(Rc::clone(made))
}

fn bytes_asked_for(head: &[u8]) -> Option<u64> {
    let target = head.split(|&byte| byte == b' ').nth(1)?;
    let number = target.strip_prefix(b"/bytes/")?;
    std::str::from_utf8(number).ok()?.parse().ok()
}

/// Several listeners may share an address: the kernel shares out the connections.
fn listen(address: SocketAddr) -> Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    Ok(socket.into())
}
