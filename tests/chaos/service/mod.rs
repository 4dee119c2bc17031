//! The services behind the router: main, canary and sidecar are one program, which answers what a request's own path
//! says, verifies what it gets, and can be stopped, stalled, and made to lie.

mod http1;
mod http2;
mod tls;

pub use http1::accept;
pub use http2::send;

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::SocketAddr,
    rc::Rc,
    time::Duration,
};

use anyhow::Result;
use canary_router::policy::Target;
use socket2::{Domain, SockRef, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::{AbortHandle, JoinHandle, spawn_local},
};

use super::{
    World,
    pattern::{Author, mix},
    router::Port,
    stream::Stream,
    trouble::{Lie, Peer, What},
};
use tls::Shown;

/// How much is written at once.
const PIECE: u64 = 16 << 10;
/// How long it rests in the middle of a body that it will not end.
const HALFWAY: Duration = Duration::from_secs(3);

/// A service, and the addresses that it keeps while it is away.
pub struct Service {
    pub peer: Peer,
    pub address: SocketAddr,
    /// Where it speaks TLS.
    pub tls_address: SocketAddr,
    world: Rc<World>,
    /// Nobody else gets the ports.
    _ports: [Port; 2],
    shown: RefCell<Shown>,
    listeners: RefCell<Vec<JoinHandle<()>>>,
    connections: RefCell<HashMap<u64, Connection>>,
    next: Cell<u64>,
    mode: Mode,
}

/// How it treats requests.
#[derive(Default)]
struct Mode {
    /// Percent of them that are lied to.
    lies: Cell<u64>,
    /// Percent of them that it says it failed.
    fails: Cell<u64>,
    /// How long it takes to think.
    pause: Cell<Duration>,
    is_stalled: Cell<bool>,
    poses: Cell<bool>,
    is_deaf: Cell<bool>,
    changed: Notify,
}

struct Connection {
    task: Option<AbortHandle>,
    /// The same socket once more, to say how it ends.
    socket: Socket,
}

impl Service {
    pub fn start(peer: Peer, world: &Rc<World>) -> Result<Rc<Service>> {
        let ports = [Port::reserve()?, Port::reserve()?];
        let service = Rc::new(Service {
            peer,
            address: ports[0].address,
            tls_address: ports[1].address,
            world: Rc::clone(world),
            _ports: ports,
            shown: RefCell::new(Shown::new(&world.pki)?),
            listeners: RefCell::default(),
            connections: RefCell::default(),
            next: Cell::new(0),
            mode: Mode::default(),
        });
        service.listen()?;
        Ok(service)
    }

    fn listen(self: &Rc<Self>) -> Result<()> {
        for (address, is_tls) in [(self.address, false), (self.tls_address, true)] {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            socket.set_nonblocking(true)?;
            socket.bind(&address.into())?;
            socket.listen(1024)?;
            let listener = TcpListener::from_std(socket.into())?;
            let service = Rc::clone(self);
            let task = spawn_local(async move {
                loop {
                    service.until(|mode| !mode.is_deaf.get()).await;
                    if let Ok((stream, _)) = listener.accept().await {
                        service.serve(stream, is_tls);
                    }
                }
            });
            self.listeners.borrow_mut().push(task);
        }
        Ok(())
    }

    fn serve(self: &Rc<Self>, stream: TcpStream, is_tls: bool) {
        let Ok(socket) = SockRef::from(&stream).try_clone() else {
            return;
        };
        let number = self.next.replace(self.next.get() + 1);
        let connection = Connection { task: None, socket };
        self.connections.borrow_mut().insert(number, connection);
        let service = Rc::clone(self);
        let task = spawn_local(async move {
            // How a connection ends is in the books of its requests.
            let _ended = match is_tls {
                true => service.converse_by_tls(stream, number).await,
                false => service.converse(stream).await,
            };
            service.connections.borrow_mut().remove(&number);
        });
        if let Some(connection) = self.connections.borrow_mut().get_mut(&number) {
            connection.task = Some(task.abort_handle());
        }
    }

    async fn converse_by_tls(
        self: &Rc<Self>,
        stream: TcpStream,
        number: u64,
    ) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        match tls::greet(self, stream, number).await? {
            Some((stream, true)) => http2::converse(self, stream).await,
            Some((stream, false)) => http1::converse(self, stream).await,
            None => Ok(()),
        }
    }

    async fn converse(self: &Rc<Self>, stream: TcpStream) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        let mut first = [0; 3];
        if stream.peek(&mut first).await? < first.len() {
            // It was sent in one piece, so this is the end.
            return Ok(());
        }
        let stream = Stream::Plain(stream);
        match &first == b"PRI" {
            true => http2::converse(self, stream).await,
            false => http1::converse(self, stream).await,
        }
    }

    /// It goes away for a while: its connections end, by a reset if that is to be `hard`. Who comes back has another
    /// certificate.
    pub async fn restart(self: &Rc<Self>, hard: bool, away: Duration) -> Result<()> {
        let trouble = self.trouble(What::Down);
        let listeners = self.listeners.take();
        for listener in listeners {
            listener.abort();
            let _aborted = listener.await;
        }
        for (_, Connection { task, socket }) in self.connections.borrow_mut().drain() {
            if hard {
                let _closed_already = socket.set_linger(Some(Duration::ZERO));
            }
            if let Some(task) = task {
                task.abort();
            }
        }
        tokio::time::sleep(away).await;
        self.shown.replace(Shown::new(&self.world.pki)?);
        let listens = self.listen();
        self.world.troubles.borrow_mut().end(trouble);
        listens
    }

    /// It takes requests and does not answer.
    pub async fn stall(&self, time: Duration) {
        self.be(What::Stalls, &self.mode.is_stalled, time).await;
    }

    /// It accepts no connection; those that there are go on.
    pub async fn go_deaf(&self, time: Duration) {
        self.be(What::Deaf, &self.mode.is_deaf, time).await;
    }

    /// Where it speaks TLS it is not who it should be; connections that there are go on.
    pub async fn pose(&self, time: Duration) {
        self.be(What::Poses, &self.mode.poses, time).await;
    }

    /// It lies to so many percent of requests.
    pub async fn lie(&self, percent: u64, time: Duration) {
        self.mode.lies.set(percent);
        tokio::time::sleep(time).await;
        self.mode.lies.set(0);
    }

    /// It fails so many percent of requests, and says so.
    pub async fn fail(&self, percent: u64, time: Duration) {
        self.mode.fails.set(percent);
        tokio::time::sleep(time).await;
        self.mode.fails.set(0);
    }

    /// It thinks for so long before it answers.
    pub async fn slow_down(&self, pause: Duration, time: Duration) {
        self.mode.pause.set(pause);
        tokio::time::sleep(time).await;
        self.mode.pause.set(Duration::ZERO);
    }

    /// It is so for a time, which is a trouble.
    async fn be(&self, what: What, mode: &Cell<bool>, time: Duration) {
        let trouble = self.trouble(what);
        mode.set(true);
        tokio::time::sleep(time).await;
        mode.set(false);
        self.mode.changed.notify_waiters();
        self.world.troubles.borrow_mut().end(trouble);
    }

    fn trouble(&self, what: What) -> usize {
        let mut troubles = self.world.troubles.borrow_mut();
        troubles.begin(what, Some(self.peer))
    }

    async fn until(&self, condition: impl Fn(&Mode) -> bool) {
        loop {
            let changed = self.mode.changed.notified();
            if condition(&self.mode) {
                return;
            }
            changed.await;
        }
    }

    /// Before it answers.
    async fn think(&self) {
        self.until(|mode| !mode.is_stalled.get()).await;
        let pause = self.mode.pause.get();
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
    }

    /// The router says how its clients speak to it.
    fn check_scheme(&self, id: u64, said: Option<&str>) {
        let right = match self.world.is_tls.get() {
            true => "https",
            false => "http",
        };
        if said != Some(right) {
            let mut books = self.world.books.borrow_mut();
            let who = self.peer.label();
            books.problem(format!(
                "{who} was told {said:?} of request {id}, which came by {right}"
            ));
        }
    }

    /// A sidecar's answer: how long it may be used, if it says so.
    fn says(&self, order: &Order, status: u16, lie: Option<Lie>) -> Option<&'static str> {
        if self.peer != Peer::Sidecar {
            return None;
        }
        let mut books = self.world.books.borrow_mut();
        let (user, _) = books.key(order.id)?;
        let (text, holds) = match user {
            5 => (Some("max-age=1"), Some(Duration::from_secs(1))),
            6 => (Some("no-store"), Some(Duration::ZERO)),
            _ => (None, None),
        };
        if lie.is_none_or(|lie| !lie.spoils_head()) {
            books.say(order.id, status, holds);
        }
        text
    }

    /// What it does to a request that it gets for the `nth` time.
    fn lie_to(&self, order: &Order, nth: Option<usize>, lies: &[Lie]) -> Option<Lie> {
        let chance = mix(self.world.seed ^ mix(order.id << 2 | self.peer as u64));
        let percent = chance % 100;
        if percent < self.mode.lies.get() {
            let lie = lies[(chance >> 32) as usize % lies.len()];
            // Who is refused again and again is not refused for a reason that passes.
            return Some(lie).filter(|lie| *lie != Lie::Refuse || nth.is_none_or(|nth| nth < 2));
        }
        (percent < self.mode.lies.get() + self.mode.fails.get()).then_some(Lie::Fails)
    }
}

/// What a request asks its service to do.
#[derive(Debug, Clone)]
pub struct Order {
    pub id: u64,
    pub status: u16,
    /// Of the body.
    pub length: u64,
    pub how: How,
}

/// How it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    Length,
    Chunks,
    /// The end of the connection is the end of the body.
    Close,
    /// What comes is sent back, as it comes.
    Echo,
    Tunnel,
    /// The status is gRPC's.
    Grpc,
}

impl How {
    const ALL: [(How, &'static str); 6] = [
        (How::Length, "length"),
        (How::Chunks, "chunks"),
        (How::Close, "close"),
        (How::Echo, "echo"),
        (How::Tunnel, "tunnel"),
        (How::Grpc, "grpc"),
    ];
}

impl Order {
    pub fn path(&self) -> String {
        let Order {
            id, status, length, ..
        } = self;
        let how = How::ALL.iter().find(|(how, _)| *how == self.how);
        let how = how.map_or("", |(_, word)| word);
        format!("/{id}/{status}/{length}/{how}")
    }

    fn parse(path: &str) -> Option<Order> {
        let mut words = path.strip_prefix('/')?.split('/');
        let mut next = || words.next();
        let (id, status, length, how) = (next()?, next()?, next()?, next()?);
        let how = How::ALL.iter().find(|(_, word)| *word == how)?.0;
        Some(Order {
            id: id.parse().ok()?,
            status: status.parse().ok()?,
            length: length.parse().ok()?,
            how,
        })
    }

    /// What this service does with it.
    fn at(path: &str, service: &Service) -> Option<Order> {
        let order = Order::parse(path);
        let Some(mut order) = order else {
            let mut books = service.world.books.borrow_mut();
            books.problem(format!("{} got {path:?}", service.peer.label()));
            return None;
        };
        if service.peer == Peer::Sidecar {
            // The same to all who ask alike, and after a while something else.
            let books = service.world.books.borrow();
            let about = books.question(order.id);
            let says_canary = mix(service.world.seed ^ about).is_multiple_of(2);
            order.status = if says_canary { 200 } else { 204 };
            order.length = 0;
            order.how = How::Length;
        }
        Some(order)
    }
}

impl Peer {
    pub fn author(self) -> Author {
        match self {
            Peer::Main => Author::Main,
            Peer::Canary => Author::Canary,
            Peer::Sidecar => Author::Sidecar,
        }
    }
}

impl From<Target> for Peer {
    fn from(target: Target) -> Peer {
        match target {
            Target::Main => Peer::Main,
            Target::Canary => Peer::Canary,
        }
    }
}
