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

use slab::Slab;
use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpStream},
    runtime,
    sync::{Notify, watch},
    task::{LocalSet, spawn_local},
    time::{Interval, MissedTickBehavior, interval, sleep_until},
};
use tracing::{debug, info, warn};

use super::{
    access::{AccessLog, Lines},
    arrival::{self, Arrived},
    date::Date,
    http1::inbox::{self, Scratch},
    kit::{Kit, Makings, SharedAnswers},
    listener,
    places::{Place, Places},
    pool::Pool,
    record::Warnings,
    split::Lots,
    trace::Tracer,
    watch::Order,
};
use crate::{
    clock,
    state::{Published, Snapshot, TallyWriter, TrialsWriter, snapshot::Reader, spans::SpanSink},
};

/// How often idle upstream connections are looked through.
const EVICTION: Duration = Duration::from_secs(1);

/// How long silent connections are left open where nobody waits for this process to end: their clients may be about
/// to say something.
const NO_HURRY: Duration = Duration::from_secs(1);

/// How long connections that are cut may take to notice.
const LAST_MOMENT: Duration = Duration::from_millis(100);

/// What all tasks of a worker share.
pub struct Worker {
    /// What the control plane decided.
    pub snapshot: Reader,
    kit: RefCell<Rc<Kit>>,
    makings: Makings,
    /// Connections of earlier kits that are still in use.
    retired: RefCell<Vec<Rc<Pool>>>,
    places: Arc<Places>,
    /// What accepted connections inherit of their listener: how long a client may take nothing.
    inherited: Duration,
    /// It is, or was, another one since.
    patience_varies: Cell<bool>,
    /// What this worker counts.
    pub tally: TallyWriter,
    /// And of what chance has assigned.
    pub trials: TrialsWriter,
    /// How it is drawn.
    pub lots: Lots,
    /// Keeps warnings about upstreams from drowning the log.
    pub warnings: Warnings,
    /// Where requests are told of, line by line, if they are.
    pub access: AccessLog,
    /// Where they are told of as spans, if they may be.
    pub tracer: Option<Tracer>,
    /// Where all connections read into.
    pub scratch: Rc<RefCell<Scratch>>,
    /// The value of `Date`, brought up to date by the sweep of deadlines.
    pub date: RefCell<Date>,
    draining: Cell<Option<Instant>>,
    connections: RefCell<Slab<Arrived>>,
    emptied: Notify,
}

/// Whether the process goes on. Workers watch it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Run {
    /// It does.
    On,
    /// It drains: nothing new is accepted.
    Drain,
    /// It drains; its listeners are left to who has passed them, and to whoever comes next.
    Released,
    /// It drains; a process that has come after it takes connections from its listeners already.
    HandedOver,
    /// It ends at once: what is in flight is cut.
    Cut,
}

/// What a worker is made of, before it has its thread.
pub struct Setup {
    /// Its listening sockets.
    pub listeners: Vec<StdListener>,
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
    /// What the sidecar has said before.
    pub answers: SharedAnswers,
    /// How it is drawn who gets the canary.
    pub lots: Lots,
    /// Where lines of the access log go.
    pub access: Lines,
    /// Where spans are left, if requests are traced.
    pub spans: Option<SpanSink>,
    /// `max-connections`.
    pub places: Arc<Places>,
    /// How many they are: each keeps its share of the idle connections.
    pub workers: usize,
}

impl Worker {
    /// Whether the process is about to stop.
    pub fn is_draining(&self) -> bool {
        self.draining.get().is_some()
    }

    /// What is made of the configuration in force.
    pub fn kit(&self) -> Rc<Kit> {
        let kit = self.kit.borrow();
        if self.snapshot.is_current(&kit.config) {
            return Rc::clone(&kit);
        }
        drop(kit);
        self.refit(&self.snapshot.current())
    }

    /// What is made of the configuration of `snapshot`, which was the current one just now.
    pub fn kit_for(&self, snapshot: &Snapshot) -> Rc<Kit> {
        let kit = self.kit.borrow();
        if Arc::ptr_eq(&kit.config, &snapshot.config) {
            return Rc::clone(&kit);
        }
        drop(kit);
        self.refit(snapshot)
    }

    #[cold]
    fn refit(&self, snapshot: &Snapshot) -> Rc<Kit> {
        let before = Rc::clone(&self.kit.borrow());
        let kit = Rc::new(Kit::new(snapshot, Some(&before), &self.makings));
        let is_kept = |pool: &&Rc<Pool>| kit.pools.all().any(|kept| Rc::ptr_eq(kept, pool));
        for pool in before.pools.all().filter(|pool| !is_kept(pool)) {
            pool.retire();
            self.retired.borrow_mut().push(Rc::clone(pool));
        }
        self.places.resize(kit.config.server.max_connections);
        self.trials.wait_for(kit.horizon);
        if kit.patience.write != self.inherited {
            self.patience_varies.set(true);
        }
        self.kit.replace(Rc::clone(&kit));
        kit
    }

    /// Has the kernel wait for a client as long as the configuration in force says, where it may not do so by itself.
    pub fn set_patience(&self, socket: &TcpStream) {
        if self.patience_varies.get() {
            let _gone = listener::set_patience(&SockRef::from(socket), self.kit().patience.write);
        }
    }

    fn new(shared: Shared, tally: TallyWriter, trials: TrialsWriter) -> Rc<Worker> {
        let Shared {
            published,
            answers,
            lots,
            access,
            spans,
            places,
            workers,
        } = shared;
        let scratch = Rc::new(RefCell::new(inbox::scratch()));
        let makings = Makings {
            workers,
            scratch: Rc::clone(&scratch),
            answers,
        };
        let kit = Kit::new(&published.load(), None, &makings);
        trials.wait_for(kit.horizon);
        Rc::new(Worker {
            snapshot: published.reader(),
            inherited: kit.patience.write,
            patience_varies: Cell::new(false),
            kit: RefCell::new(Rc::new(kit)),
            makings,
            retired: RefCell::default(),
            places,
            tally,
            trials,
            lots,
            warnings: Warnings::default(),
            access: AccessLog::new(access),
            tracer: spans.map(Tracer::new),
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

    async fn check_deadlines(self: Rc<Self>) {
        let mut ticks = every(self.kit().tick);
        let mut evicted = clock::now();
        let mut write_timeout = self.inherited;
        loop {
            ticks.tick().await;
            let now = clock::now();
            let kit = self.kit();
            if ticks.period() != kit.tick {
                ticks = every(kit.tick);
            }
            let patience = &kit.patience;
            let is_new = std::mem::replace(&mut write_timeout, patience.write) != patience.write;
            self.date.borrow_mut().refresh();
            self.access.flush();
            self.trials.close(self.snapshot.current().split.since);
            let draining = self.draining.get();
            for (_, arrived) in self.connections.borrow().iter() {
                match arrived {
                    Arrived::Unknown(watch) => watch.check(now, patience, draining),
                    Arrived::Http1(connection) => {
                        connection.watch.check(now, patience, draining);
                        connection.shed();
                        if is_new {
                            connection.with_tcp(|socket| self.set_patience(socket));
                        }
                    }
                    Arrived::Http2(session) => {
                        session.check(now, patience, draining);
                        if is_new {
                            session.with_tcp(|socket| self.set_patience(socket));
                        }
                    }
                }
            }
            if now.saturating_duration_since(evicted) >= EVICTION {
                evicted = now;
                let mut retired = self.retired.borrow_mut();
                for pool in kit.pools.all().chain(&*retired) {
                    pool.evict(now);
                }
                // Who has a connection still gives it back to a pool that takes none.
                retired.retain(|pool| !pool.is_empty());
            }
        }
    }

    /// Stops listening such that nobody who is connected loses a request by it.
    async fn stop_listening(self: &Rc<Self>, listeners: Vec<TcpListener>, settled: Instant) {
        match listeners.iter().try_for_each(listener::begin_no_more) {
            Ok(()) => loop {
                tokio::select! {
                    biased;
                    accepted = listener::accept(&listeners, &self.warnings.accepting) => {
                        self.serve(accepted, None);
                    }
                    () = sleep_until(settled.into()) => break,
                }
            },
            Err(error) => debug!(%error, "connections may be lost where listening ends"),
        }
        for accepted in listeners.into_iter().flat_map(listener::accept_waiting) {
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
        listeners,
        tally,
        trials,
        shared,
        mut run,
    } = setup;
    let worker = Worker::new(shared, tally, trials);
    let listeners: io::Result<Vec<_>> = listeners.into_iter().map(TcpListener::from_std).collect();
    let listeners = listeners?;
    spawn_local(Rc::clone(&worker).check_deadlines());
    loop {
        let accepted = tokio::select! {
            biased;
            _ = run.wait_for(|run| *run != Run::On) => break,
            accepted = listener::accept(&listeners, &worker.warnings.accepting) => accepted,
        };
        // How many places there are may have changed.
        let _in_force = worker.kit();
        // One connection has been accepted meanwhile; those behind it wait in the kernel's queue.
        let place = tokio::select! {
            place = worker.places.one() => place,
            _ = run.wait_for(|run| *run != Run::On) => None,
        };
        worker.serve(accepted, place);
    }
    let now = clock::now();
    let timeout = worker.kit().config.server.shutdown_timeout;
    let how = *run.borrow();
    let settling = match how {
        // They have to be closed before they are cut.
        Run::HandedOver => NO_HURRY.min(timeout / 2),
        Run::Released | Run::Drain | Run::Cut | Run::On => listener::SETTLING,
    };
    let settled = now + settling.min(timeout);
    // Responses say `Connection: close` from now on; the patience with silent connections counts from
    // when the last of them is there.
    worker.draining.set(Some(settled));
    match how {
        // What waits in their queues is for who has them.
        Run::Released | Run::HandedOver => drop(listeners),
        Run::Drain | Run::Cut | Run::On => tokio::select! {
            () = worker.stop_listening(listeners, settled) => {}
            _ = run.wait_for(|run| *run == Run::Cut) => {}
        },
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

fn every(tick: Duration) -> Interval {
    let mut ticks = interval(tick);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
