//! The composition root: from a [`Config`] to running threads, and back, or to the process that comes after this one.

pub mod sockets;
pub mod succession;

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc as std_mpsc},
    thread,
};

use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, info};

use crate::{
    clock,
    config::{Config, ConfigError, LONGEST_TIMEOUT},
    control::{
        self, Control, Orders, analyst,
        keeper::{self, Keeper, StateError, Writer, random_salt},
        reload::Load,
        traces::{self, CollectorError, Exporter, Pace},
    },
    policy::quota::ErrorQuota,
    proxy::{
        access::Lines,
        kit::SharedAnswers,
        listener,
        places::Places,
        split::Lots,
        worker::{self, Run, Setup},
    },
    state::{
        Admission, Durability, Kept, Lifecycle, Phase, Published, Reloads, Seen, SharedProgress,
        Snapshot, SpanCounts, SpanSink, Spans, Tally, Trials,
        admission::{Terms, Used},
        spans, trials,
    },
    telemetry,
};

use self::{
    sockets::{Inherited, Sockets},
    succession::{Correction, Corrections, Predecessor, Program, Successor},
};

/// Everything that can fail has been done: the sockets are bound.
pub struct App {
    config: Config,
    load: Option<Load>,
    sockets: Sockets,
    before: Before,
    traced: Option<Traced>,
}

/// What was before this process.
enum Before {
    /// What is kept of an earlier one, if anything is.
    Kept(Option<Keeper>),
    /// One whose place this one takes.
    Runs(Predecessor),
}

/// The way of spans to the collector.
struct Traced {
    sink: SpanSink,
    left: std_mpsc::Receiver<Spans>,
    counts: Arc<SpanCounts>,
    exporter: Exporter,
}

/// Why the process cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listening address cannot be had.
    #[error("cannot listen on {host}:{port} ({key}): {error}{}", hint(.error))]
    Listen {
        /// Where the address is configured.
        key: &'static str,
        /// The configured host.
        host: String,
        /// The configured port.
        port: u16,
        /// What the system said.
        error: io::Error,
    },
    /// What the service manager has passed cannot be used.
    #[error("a socket that the service manager has passed (LISTEN_FDS) cannot be used: {0}")]
    Passed(#[source] io::Error),
    /// It has passed what nobody has configured.
    #[error(
        "the service manager has passed a socket for {address} (its name is {name:?}), but {why}"
    )]
    Foreign {
        /// How it calls the socket.
        name: String,
        /// Where it listens.
        address: SocketAddr,
        /// What differs, and what to do.
        why: String,
    },
    /// The process whose place this one takes does not say what it has counted.
    #[error("the running process does not hand its state over: {0}")]
    Succession(#[source] io::Error),
    /// What an earlier process has left cannot be used.
    #[error("/state/file: {0}")]
    State(StateError),
    /// Spans could be sent to nobody.
    #[error(transparent)]
    Traces(#[from] CollectorError),
    /// A thread cannot be started.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] io::Error),
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            ": another process listens there; stop it, or choose another port"
        }
        io::ErrorKind::PermissionDenied => {
            ": ports below 1024 need privileges; choose a higher one, or grant CAP_NET_BIND_SERVICE"
        }
        io::ErrorKind::AddrNotAvailable => ": this machine has no such address",
        _ => "",
    }
}

/// A started router. Dropping it does not stop its threads; [`Running::drain`] does.
pub struct Running {
    run: watch::Sender<Run>,
    lifecycle: Arc<Lifecycle>,
    published: Arc<Published>,
    progress: Arc<SharedProgress>,
    salt: u128,
    orders: Orders,
    /// The listening sockets once more, until nobody is to have them any more.
    sockets: Mutex<Option<Inherited>>,
    corrections: Option<Corrections>,
    stop_control: watch::Sender<bool>,
    /// When this and the control thread's are dropped, the state is written for the last time.
    keeping: Option<std_mpsc::Sender<keeper::Order>>,
    ended: mpsc::UnboundedReceiver<Result<(), String>>,
    workers: usize,
    threads: usize,
    gone: usize,
    proxy_address: SocketAddr,
    instrumentation_address: Option<SocketAddr>,
}

impl App {
    /// Binds the sockets.
    ///
    /// # Errors
    /// What keeps the process from starting.
    pub fn bind(config: Config) -> Result<App, StartError> {
        App::with(config, Inherited::default(), None)
    }

    /// The same, with what the service manager has passed to this process, or a process that it is to come after.
    ///
    /// # Errors
    /// What keeps the process from starting.
    pub fn inherit(config: Config) -> Result<App, StartError> {
        match Predecessor::of_this_process().map_err(StartError::Succession)? {
            Some((predecessor, inherited)) => App::with(config, inherited, Some(predecessor)),
            None => {
                let inherited = Inherited::from_manager(&config)?;
                App::with(config, inherited, None)
            }
        }
    }

    fn with(
        config: Config,
        inherited: Inherited,
        predecessor: Option<Predecessor>,
    ) -> Result<App, StartError> {
        raise_descriptor_limit();
        let before = match (predecessor, &config.state) {
            // It has the state file as long as it counts.
            (Some(predecessor), _) => Before::Runs(predecessor),
            (None, Some(state)) => {
                Before::Kept(Some(Keeper::open(&state.path).map_err(StartError::State)?))
            }
            (None, None) => Before::Kept(None),
        };
        let traced = traced(&config)?;
        let workers = match config.server.workers {
            0 => thread::available_parallelism().map_or(1, Into::into),
            workers => workers,
        };
        Ok(App {
            sockets: Sockets::new(&config, workers, inherited)?,
            config,
            load: None,
            before,
            traced,
        })
    }

    /// The same, which reads its configuration again by `load` when it is told to ([`Running::reload`]).
    #[must_use]
    pub fn reloading(
        self,
        load: impl Fn() -> Result<Config, ConfigError> + Send + Sync + 'static,
    ) -> App {
        App {
            load: Some(Arc::new(load)),
            ..self
        }
    }

    /// Starts the threads.
    ///
    /// # Errors
    /// The system gives us no thread, or no longer knows our sockets.
    pub fn start(self) -> Result<Running, StartError> {
        let config = self.config;
        let sockets = self.sockets;
        let (mut predecessor, keeper) = match self.before {
            Before::Kept(keeper) => (None, keeper),
            Before::Runs(mut predecessor) => {
                // From here on it counts no more: this is the last moment at which it can be asked.
                let kept = predecessor.take().map_err(StartError::Succession)?;
                let keeper = match &config.state {
                    Some(state) => Some(Keeper::open(&state.path).map_err(StartError::State)?),
                    None => None,
                };
                let keeper = keeper.map(|keeper| keeper.with(kept.clone()));
                (Some((predecessor, kept)), keeper)
            }
        };
        let handed = predecessor.as_ref().map(|(_, kept)| kept);
        let kept = keeper.as_ref().map(Keeper::kept).or(handed).cloned();
        let kept = match kept {
            Some(kept) => kept,
            None => Kept {
                salt: random_salt().map_err(StartError::State)?,
                ..Kept::default()
            },
        };
        let salt = kept.salt;
        let now = clock::uptime();
        let terms = Terms::of(&config);
        let admission = Admission::restore(terms, &kept.restored, now);
        let found = kept.progress.as_deref();
        // Before the first request: it may be that the canary is to get nothing.
        let opening = analyst::opening(&config, found, clock::wall());
        let split = analyst::first_split(&opening);
        let phase = opening.rollout.position.phase;
        info!(
            weight = split.weight.percent(),
            phase = phase.label(),
            "the canary's share of eligible requests, in percent"
        );
        let places = Places::new(config.server.max_connections);
        let published = Published::new(Snapshot::new(config, admission).with_split(split));
        let seen = Arc::<Seen>::default();
        let progress = SharedProgress::new(Some(Arc::new(opening.clone())));
        let lifecycle = Arc::new(Lifecycle::default());
        let reloads = Arc::new(Reloads::new(clock::wall()));
        let (run, watching) = watch::channel(Run::On);
        let (stop_control, control_stopped) = watch::channel(false);
        let (report, ended) = mpsc::unbounded_channel();
        let (orders, ordered) = mpsc::unbounded_channel();
        let workers = sockets.proxy.len();
        let proxy_address = local_address(sockets.proxy.iter().flatten().next())?;
        let instrumentation_address = match &sockets.instrumentation {
            Some(listener) => Some(local_address(Some(listener))?),
            None => None,
        };
        let to_leave = sockets.to_leave().map_err(StartError::Thread)?;

        let kept = match keeper {
            Some(keeper) => {
                let durability = Arc::<Durability>::default();
                let writer = keeper.start(
                    terms,
                    Arc::clone(&published),
                    Arc::clone(&durability),
                    Arc::clone(&progress),
                );
                let report = EndReport {
                    who: "state",
                    report: Some(report.clone()),
                };
                Some((keep(writer, report)?, durability))
            }
            None => None,
        };
        let (keeping, durability) = kept.unzip();
        let threads =
            workers + 1 + usize::from(keeping.is_some()) + usize::from(self.traced.is_some());
        let mut spans = None;
        if let Some(traced) = self.traced {
            let report = EndReport {
                who: "traces",
                report: Some(report.clone()),
            };
            let stop = control_stopped.clone();
            spawn("traces", move || {
                report.send(traced.exporter.run(traced.left, stop))
            })?;
            spans = Some((traced.sink, traced.counts));
        }
        // The sinks are for the workers, one each: when they are gone, there are no more spans.
        let (sink, spans) = spans.unzip();
        let mut tallies = Vec::with_capacity(workers);
        let mut trials = Vec::with_capacity(workers);
        let shared = worker::Shared {
            published: Arc::clone(&published),
            answers: SharedAnswers::default(),
            lots: Lots::new(salt),
            access: access_log(),
            spans: sink,
            places,
            workers,
        };
        for (i, listeners) in sockets.proxy.into_iter().enumerate() {
            let (writer, tally) = Tally::new();
            tallies.push(tally);
            let most = trials::horizon(LONGEST_TIMEOUT);
            let (trials_writer, own) = Trials::new(Arc::clone(&seen), most);
            trials.push(own);
            let setup = Setup {
                listeners,
                tally: writer,
                trials: trials_writer,
                shared: shared.clone(),
                run: watching.clone(),
            };
            let report = EndReport {
                who: "worker",
                report: Some(report.clone()),
            };
            spawn(&format!("worker-{i}"), move || {
                report.send(worker::run(setup))
            })?;
        }
        let control = Control {
            published: Arc::clone(&published),
            tallies,
            trials,
            seen,
            progress: Arc::clone(&progress),
            opening,
            keeping: keeping.clone(),
            durability,
            load: self.load,
            log: |config| telemetry::set(config.log),
            reloads,
            spans,
            dropped_lines: telemetry::dropped_lines,
            lifecycle: Arc::clone(&lifecycle),
        };
        let report = EndReport {
            who: "control",
            report: Some(report),
        };
        spawn("control", move || {
            report.send(control::run(
                sockets.instrumentation,
                control,
                ordered,
                control_stopped,
            ))
        })?;
        lifecycle.enter(Phase::Serving);
        let mut corrections = None;
        if let Some((mut predecessor, _)) = predecessor.take() {
            // If it is gone by now, there is nobody to be told.
            let told = predecessor.serves(sockets.shared);
            corrections = told.and_then(|()| predecessor.corrections()).ok();
        }
        Ok(Running {
            run,
            lifecycle,
            published,
            progress,
            salt,
            orders,
            sockets: Mutex::new(Some(to_leave)),
            corrections,
            stop_control,
            keeping,
            ended,
            workers,
            threads,
            gone: 0,
            proxy_address,
            instrumentation_address,
        })
    }
}

impl Running {
    /// Where requests are taken.
    pub fn proxy_address(&self) -> SocketAddr {
        self.proxy_address
    }

    /// Where metrics and health are found, if anywhere.
    pub fn instrumentation_address(&self) -> Option<SocketAddr> {
        self.instrumentation_address
    }

    /// Has the configuration read again, whether or not the result is waited for. When it is in force, or the log says
    /// why it is not, this is over.
    ///
    /// # Errors
    /// All stays as it was: what was read cannot be used, or a router that runs cannot do it.
    pub fn reload(&self) -> impl Future<Output = Result<(), String>> + use<> {
        let (done, is_done) = oneshot::channel();
        // Who is gone does not answer either.
        let _gone = self.orders.send(control::Order::Reload(done));
        async {
            let gone = |_| "the router is ending".to_owned();
            is_done.await.map_err(gone)?
        }
    }

    /// Starts `program` to take the place of this process, and returns when it has: then this one takes no more
    /// connections, and [`ended`](Running::ended) says when it has finished what it has.
    ///
    /// Dropped before, the new process is ended; see [`unfreeze`](Running::unfreeze).
    ///
    /// # Errors
    /// It has not: this process goes on as before.
    pub async fn hand_over(&mut self, program: &Program) -> Result<Successor, String> {
        let sockets = self.sockets().as_ref().map(Inherited::try_clone);
        let sockets = sockets.ok_or("it is ending")?;
        let mut successor = sockets
            .and_then(|sockets| program.succeed(sockets))
            .map_err(|error| format!("it cannot be started: {error}"))?;
        let shared = match successor.wants().await {
            Ok(()) => {
                let (counted, errors) = self.freeze().await;
                successor.serves(&counted, errors).await
            }
            Err(error) => Err(error),
        };
        let shared = match shared {
            Ok(shared) => shared,
            Err(error) => {
                drop(successor);
                self.unfreeze();
                return Err(error);
            }
        };
        let is_managed = self.sockets().take().is_some_and(|sockets| sockets.managed);
        self.lifecycle.enter(Phase::Draining);
        // It is gone only with its process.
        let _gone = self.orders.send(control::Order::Leave);
        self.run.send_replace(match (shared.proxy, is_managed) {
            (true, _) => Run::HandedOver,
            (false, true) => Run::Released,
            (false, false) => Run::Drain,
        });
        Ok(successor)
    }

    fn sockets(&self) -> MutexGuard<'_, Option<Inherited>> {
        // Nothing panics while it is held.
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has nothing counted or decided any more. What was, as it is written; and its errors.
    async fn freeze(&self) -> (String, ErrorQuota) {
        let (done, is_done) = oneshot::channel();
        if self.orders.send(control::Order::Freeze(done)).is_ok() {
            let _gone = is_done.await;
        }
        if let Some(keeping) = &self.keeping {
            let (done, is_done) = oneshot::channel();
            if keeping.send(keeper::Order::Pause(done)).is_ok() {
                // It is as fast as the disk is.
                let _gone = is_done.await;
            }
        }
        let admission = &self.published.load().admission;
        let used = admission.freeze();
        // What comes back from here on is told later.
        let errors = admission.quota();
        let used = Used {
            errors: errors.claimed(),
            ..used
        };
        let kept = Kept {
            restored: admission.to_restore(used, clock::uptime()),
            progress: self.progress.latest().1,
            salt: self.salt,
        };
        (kept.to_text(clock::wall()), errors)
    }

    /// Goes on to count and decide, where [`hand_over`](Running::hand_over) was dropped before it was over.
    pub fn unfreeze(&self) {
        let snapshot = self.published.load();
        match &self.keeping {
            // No further than is on disk.
            Some(keeping) => {
                let _gone = keeping.send(keeper::Order::Resume);
            }
            None => snapshot.admission.unfreeze(),
        }
        if let Some(sockets) = &*self.sockets() {
            // The other one may have made them its own.
            let sockets = sockets.proxy.iter().chain(&sockets.instrumentation);
            for socket in sockets {
                let patience = snapshot.config.server.write_timeout;
                if let Err(error) = listener::adopt(socket, patience) {
                    debug!(%error, "a socket keeps the write-timeout of the other process");
                }
            }
        }
        let _gone = self.orders.send(control::Order::Resume);
    }

    /// How many errors are counted, and may still come of what is in flight.
    pub fn errors(&self) -> ErrorQuota {
        self.published.load().admission.quota()
    }

    /// What the process before this one still tells, if there is one; to be asked for once.
    pub fn corrections(&mut self) -> Option<Corrections> {
        self.corrections.take()
    }

    /// The process before this one has counted so many more errors, or fewer.
    pub fn correct(&self, by: Correction) {
        let admission = &self.published.load().admission;
        admission.correct_errors(by.errors, by.failed);
    }

    /// Stops accepting and lets what is in flight end, for `shutdown-timeout` at most.
    pub fn drain(&self) {
        self.lifecycle.enter(Phase::Draining);
        // Whoever passed the sockets keeps them, with what waits in their queues.
        let is_managed = self.sockets().take().is_some_and(|sockets| sockets.managed);
        self.run.send_replace(match is_managed {
            true => Run::Released,
            false => Run::Drain,
        });
    }

    /// Stops at once: what is in flight is cut.
    pub fn cut(&self) {
        self.run.send_replace(Run::Cut);
    }

    /// Returns when all threads have ended: after a [`drain`](Running::drain), or because one of them
    /// failed.
    ///
    /// # Errors
    /// What a thread died of. The others may still be running; the process should not.
    pub async fn ended(&mut self) -> Result<(), String> {
        while self.gone < self.threads {
            match self.ended.recv().await {
                Some(Ok(())) => self.gone += 1,
                Some(Err(why)) => return Err(why),
                None => break,
            }
            if self.gone == self.workers {
                // Health says "draining" up to here, and up to here something may be counted or traced.
                self.stop_control.send_replace(true);
                self.keeping = None;
            }
        }
        Ok(())
    }
}

/// Where the log is, which there is once in a process.
fn access_log() -> Lines {
    let lines = telemetry::lines();
    Arc::new(move |piece: &[u8]| lines.write(piece))
}

fn traced(config: &Config) -> Result<Option<Traced>, CollectorError> {
    let Some(tracing) = &config.tracing else {
        return Ok(None);
    };
    let (sink, left, counts) = spans::channel(traces::ROOM);
    let exporter = Exporter::new(tracing, Arc::clone(&counts), Pace::default())?;
    Ok(Some(Traced {
        sink,
        left,
        counts,
        exporter,
    }))
}

/// As many descriptors as the process may have: the limit that it starts with is often the one of an
/// interactive shell. Where that fails, it has as many as before.
fn raise_descriptor_limit() {
    use uapi::c::RLIMIT_NOFILE;
    let raised = uapi::getrlimit(RLIMIT_NOFILE as _).and_then(|mut limit| {
        limit.rlim_cur = limit.rlim_max;
        uapi::setrlimit(RLIMIT_NOFILE as _, &limit)
    });
    if let Err(error) = raised {
        debug!(%error, "the limit of file descriptors stays as it is");
    }
}

/// Goes on writing the state on a thread of its own, until what this gives back is dropped, and all clones of it.
fn keep(writer: Writer, report: EndReport) -> Result<std_mpsc::Sender<keeper::Order>, StartError> {
    let (orders, ordered) = std_mpsc::channel();
    spawn("state", move || {
        writer.run(&ordered);
        report.send(Ok(()));
    })?;
    Ok(orders)
}

/// Reports the end of a thread, however it ends.
struct EndReport {
    who: &'static str,
    report: Option<mpsc::UnboundedSender<Result<(), String>>>,
}

impl EndReport {
    fn send(mut self, ended: io::Result<()>) {
        let who = self.who;
        self.tell(ended.map_err(|error| format!("the {who} thread failed: {error}")));
    }

    fn tell(&mut self, ended: Result<(), String>) {
        if let Some(report) = self.report.take() {
            // Nobody listens any more when the process is ending anyway.
            let _nobody = report.send(ended);
        }
    }
}

impl Drop for EndReport {
    fn drop(&mut self) {
        self.tell(Err(format!("the {} thread panicked", self.who)));
    }
}

fn local_address(listener: Option<&TcpListener>) -> Result<SocketAddr, StartError> {
    listener
        .ok_or_else(|| io::Error::other("no socket was bound"))
        .and_then(TcpListener::local_addr)
        .map_err(StartError::Thread)
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), StartError> {
    thread::Builder::new()
        .name(name.into())
        .spawn(work)
        .map(drop)
        .map_err(StartError::Thread)
}
