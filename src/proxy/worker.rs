//! One data-plane thread: a runtime, a listener, pools, a tally. What it has is its own and `!Send`;
//! with the other workers it shares the snapshot and the canary's budgets.

use std::{
    cell::{Cell, RefCell},
    io,
    net::{SocketAddr, TcpListener as StdListener},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use slab::Slab;
use tokio::{
    net::{TcpListener, TcpStream},
    runtime,
    sync::{Notify, OwnedSemaphorePermit, Semaphore, watch},
    task::{LocalSet, spawn_local},
    time::{MissedTickBehavior, interval, sleep_until},
};
use tracing::{debug, info, warn};

use super::{
    access::{AccessLog, Lines},
    answers::Answers,
    arrival::{self, Arrived},
    date::Date,
    http1::inbox::{self, Scratch},
    listener,
    pool::{Pool, Room},
    record::Warnings,
    split::Lots,
    tls::{ServedTls, Tls, TlsSettings},
    trace::Tracer,
    watch::{Order, Patience},
};
use crate::{
    clock,
    config::{Client, Config},
    state::{Admission, Published, TallyWriter, TrialsWriter, snapshot::Reader, spans::SpanSink},
};

/// How often idle upstream connections are looked through.
const EVICTION: Duration = Duration::from_secs(1);

/// How long connections that are cut may take to notice.
const LAST_MOMENT: Duration = Duration::from_millis(100);

/// What all tasks of a worker share.
pub struct Worker {
    /// What the control plane decided.
    pub snapshot: Reader,
    /// Limits and breakers.
    pub admission: Arc<Admission>,
    /// What the sidecar has said before, where it may be used again.
    pub answers: Option<Answers>,
    /// What this worker counts.
    pub tally: TallyWriter,
    /// And of what chance has assigned.
    pub trials: TrialsWriter,
    /// How it is drawn.
    pub lots: Lots,
    /// This worker's upstream connections.
    pub pools: Pools,
    /// Keeps warnings about upstreams from drowning the log.
    pub warnings: Warnings,
    /// Where requests are told of, line by line, if they are.
    pub access: Option<AccessLog>,
    /// And as spans.
    pub tracer: Option<Tracer>,
    /// The largest request head.
    pub max_header_bytes: usize,
    /// How TLS is spoken to clients, where it is.
    pub tls: Option<ServedTls>,
    /// Whether clients may speak HTTP/2.
    pub http2: bool,
    /// Who is believed when he says whom he brings.
    pub trusted_proxies: Box<[IpNet]>,
    /// Whether they say so before anything else.
    pub proxy_protocol: bool,
    /// Where all connections read into.
    pub scratch: Rc<RefCell<Scratch>>,
    /// The value of `Date`, brought up to date by the sweep of deadlines.
    pub date: RefCell<Date>,
    draining: Cell<Option<Instant>>,
    connections: RefCell<Slab<Arrived>>,
    emptied: Notify,
}

/// The upstream connections of one worker.
pub struct Pools {
    /// To main.
    pub main: Rc<Pool>,
    /// To the canary.
    pub canary: Rc<Pool>,
    /// To the sidecar.
    pub sidecar: Rc<Pool>,
}

/// Whether the process goes on. Workers watch it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Run {
    /// It does.
    On,
    /// It drains: nothing new is accepted.
    Drain,
    /// It ends at once: what is in flight is cut.
    Cut,
}

/// What a worker is made of, before it has its thread.
pub struct Setup {
    /// Its listening socket.
    pub listener: StdListener,
    /// What it counts with.
    pub tally: TallyWriter,
    /// And tells the judge with.
    pub trials: TrialsWriter,
    /// What it has in common with the other workers.
    pub shared: Shared,
    /// Tells when to stop.
    pub run: watch::Receiver<Run>,
}

/// What all workers have in common.
#[derive(Clone)]
pub struct Shared {
    /// Where they find the snapshot.
    pub published: Arc<Published>,
    /// Limits and breakers.
    pub admission: Arc<Admission>,
    /// What the sidecar has said before, where it may be used again.
    pub answers: Option<Answers>,
    /// How it is drawn who gets the canary.
    pub lots: Lots,
    /// How they speak TLS.
    pub tls: TlsSettings,
    /// Where lines of the access log go, if there is one.
    pub access: Option<Lines>,
    /// Where spans are left, if requests are traced.
    pub spans: Option<SpanSink>,
    /// `max-connections`, where there is a limit.
    pub places: Option<Arc<Semaphore>>,
    /// How many they are: each keeps its share of the idle connections.
    pub workers: usize,
}

impl Worker {
    /// Whether the process is about to stop.
    pub fn is_draining(&self) -> bool {
        self.draining.get().is_some()
    }

    fn new(
        shared: Shared,
        tally: TallyWriter,
        trials: TrialsWriter,
        config: &Config,
    ) -> Rc<Worker> {
        let Shared {
            published,
            admission,
            answers,
            lots,
            tls,
            access,
            spans,
            places: _,
            workers,
        } = shared;
        let share = |limit: usize| Room::new(limit.div_ceil(workers.max(1)));
        let services = share(config.main.client.max_idle_conns);
        let client = config.main.client;
        let scratch = Rc::new(RefCell::new(inbox::scratch()));
        let pool =
            |tls: Tls, room, client: &Client| Pool::new(tls, room, Rc::clone(&scratch), client);
        let service = |room| pool(tls.services.clone(), room, &client);
        let sidecar = config
            .sidecar
            .as_ref()
            .map_or(client, |sidecar| sidecar.upstream.client);
        Rc::new(Worker {
            snapshot: published.reader(),
            admission,
            answers,
            tally,
            trials,
            lots,
            pools: Pools {
                main: service(Rc::clone(&services)),
                canary: service(services),
                sidecar: pool(tls.sidecar.clone(), share(sidecar.max_idle_conns), &sidecar),
            },
            warnings: Warnings::default(),
            access: access.map(AccessLog::new),
            tracer: spans
                .zip(config.tracing.as_ref())
                .map(|(sink, tracing)| Tracer::new(sink, tracing.sample)),
            max_header_bytes: config.server.max_header_bytes,
            tls: tls.clients,
            http2: config.server.http2,
            trusted_proxies: config.server.trusted_proxies.clone().into(),
            proxy_protocol: config.server.proxy_protocol,
            scratch,
            date: RefCell::default(),
            draining: Cell::new(None),
            connections: RefCell::new(Slab::new()),
            emptied: Notify::new(),
        })
    }

    fn serve(self: &Rc<Self>, (stream, address): (TcpStream, SocketAddr), place: Option<Place>) {
        // It is registered at once: from here on a drain waits for it.
        arrival::serve(self, stream, address, place);
    }

    async fn check_deadlines(self: Rc<Self>, patience: Patience, tick: Duration) {
        let mut ticks = interval(tick);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut evicted = clock::now();
        loop {
            ticks.tick().await;
            let now = clock::now();
            self.date.borrow_mut().refresh();
            if let Some(log) = &self.access {
                log.flush();
            }
            self.trials.close(self.snapshot.current().split.since);
            let draining = self.draining.get();
            for (_, arrived) in self.connections.borrow().iter() {
                match arrived {
                    Arrived::Unknown(watch) => watch.check(now, &patience, draining),
                    Arrived::Http1(connection) => {
                        connection.watch.check(now, &patience, draining);
                        connection.shed();
                    }
                    Arrived::Http2(session) => session.check(now, &patience, draining),
                }
            }
            if now.saturating_duration_since(evicted) >= EVICTION {
                evicted = now;
                for pool in [&self.pools.main, &self.pools.canary, &self.pools.sidecar] {
                    pool.evict(now);
                }
            }
        }
    }

    /// Stops listening such that nobody who is connected loses a request by it.
    async fn stop_listening(self: &Rc<Self>, listener: TcpListener, settled: Instant) {
        match listener::begin_no_more(&listener) {
            Ok(()) => loop {
                tokio::select! {
                    biased;
                    accepted = listener::accept(&listener) => self.serve(accepted, None),
                    () = sleep_until(settled.into()) => break,
                }
            },
            Err(error) => debug!(%error, "connections may be lost where listening ends"),
        }
        for accepted in listener::accept_waiting(listener) {
            self.serve(accepted, None);
        }
    }

    /// Lets what is in flight end. Says how many connections had to be cut at the deadline.
    async fn drain(&self, deadline: Instant, run: &mut watch::Receiver<Run>) -> usize {
        tokio::select! {
            () = self.until_empty() => return 0,
            () = sleep_until(deadline.into()) => {}
            _ = run.wait_for(|run| *run == Run::Cut) => {}
        }
        let cut = self.connections.borrow().len();
        for (_, arrived) in self.connections.borrow().iter() {
            match arrived {
                Arrived::Unknown(watch) => watch.give(Order::Cut),
                Arrived::Http1(connection) => connection.watch.give(Order::Cut),
                Arrived::Http2(session) => session.give(Order::Cut),
            }
        }
        // Their tasks say so to the clients: without a reset, a response that ends with the
        // connection would look complete.
        let _in_vain = tokio::time::timeout(LAST_MOMENT, self.until_empty()).await;
        cut
    }

    async fn until_empty(&self) {
        while !self.connections.borrow().is_empty() {
            self.emptied.notified().await;
        }
    }
}

/// A connection is looked after as long as this lives.
pub struct Registration {
    worker: Rc<Worker>,
    key: usize,
}

impl Registration {
    /// For a connection of this worker's.
    pub fn new(worker: &Rc<Worker>, arrived: Arrived) -> Registration {
        let mut connections = worker.connections.borrow_mut();
        let key = connections.insert(arrived);
        worker.tally.connections(connections.len());
        Registration {
            key,
            worker: Rc::clone(worker),
        }
    }

    /// The same connection, of which more is known.
    #[must_use]
    pub fn now(self, arrived: Arrived) -> Registration {
        if let Some(known) = self.worker.connections.borrow_mut().get_mut(self.key) {
            *known = arrived;
        }
        self
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut connections = self.worker.connections.borrow_mut();
        connections.remove(self.key);
        self.worker.tally.connections(connections.len());
        if connections.is_empty() {
            self.worker.emptied.notify_one();
        }
    }
}

/// The life of a worker: serves until told to drain, drains, ends. Blocks its thread.
///
/// # Errors
/// No runtime could be made.
pub fn run(setup: Setup) -> io::Result<()> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let tasks = LocalSet::new();
    let ended = tasks.block_on(&runtime, work(setup));
    // What had to be cut is dropped here, and its sockets closed with it.
    drop(tasks);
    // A question to a name server that hangs is not waited for.
    runtime.shutdown_background();
    ended
}

async fn work(setup: Setup) -> io::Result<()> {
    let Setup {
        listener,
        tally,
        trials,
        shared,
        mut run,
    } = setup;
    let places = shared.places.clone();
    let snapshot = shared.published.load();
    let config = &snapshot.config;
    let worker = Worker::new(shared, tally, trials, config);
    let listener = TcpListener::from_std(listener)?;

    let patience = Patience {
        read: config.server.read_timeout,
        write: config.server.write_timeout,
        idle: config.server.idle_timeout,
        blur: tick(config),
    };
    spawn_local(Rc::clone(&worker).check_deadlines(patience, tick(config)));
    loop {
        let accepted = tokio::select! {
            biased;
            _ = run.wait_for(|run| *run != Run::On) => break,
            accepted = listener::accept(&listener) => accepted,
        };
        let place = tokio::select! {
            place = one_of(places.as_ref()) => place,
            _ = run.wait_for(|run| *run != Run::On) => None,
        };
        worker.serve(accepted, place);
    }
    let now = clock::now();
    let timeout = config.server.shutdown_timeout;
    let settled = now + listener::SETTLING.min(timeout);
    // Responses say `Connection: close` from now on; the patience with silent connections counts from
    // when the last of them is there.
    worker.draining.set(Some(settled));
    tokio::select! {
        () = worker.stop_listening(listener, settled) => {}
        _ = run.wait_for(|run| *run == Run::Cut) => {}
    }
    match worker.drain(now + timeout, &mut run).await {
        0 => info!("worker drained"),
        cut if *run.borrow() == Run::Cut => warn!(connections = cut, "connections were cut"),
        cut => warn!(
            connections = cut,
            "shutdown-timeout is over: connections were cut"
        ),
    }
    Ok(())
}

/// A connection's right to be there.
pub type Place = OwnedSemaphorePermit;

/// Waits for a place, where they are counted. One connection of each worker has been accepted meanwhile; those
/// behind it wait in the kernel's queue.
async fn one_of(places: Option<&Arc<Semaphore>>) -> Option<Place> {
    // Nobody closes it.
    Arc::clone(places?).acquire_owned().await.ok()
}

/// How often deadlines are checked: a timeout comes late by this much at most. A twentieth of the
/// shortest one, within bounds that keep it cheap.
fn tick(config: &Config) -> Duration {
    let server = &config.server;
    let shortest = [server.read_timeout, server.idle_timeout]
        .into_iter()
        .chain([config.main.client.timeout])
        .chain(
            config
                .sidecar
                .as_ref()
                .map(|sidecar| sidecar.upstream.client.timeout),
        )
        .min()
        .unwrap_or_default();
    (shortest / 20).clamp(Duration::from_millis(5), Duration::from_millis(100))
}
