//! The composition root: from a [`Config`] to running threads, and back.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::{Arc, mpsc as std_mpsc},
    thread,
    time::Duration,
};

use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, info};

use crate::{
    clock,
    config::{Config, ConfigError, Listen},
    control::{
        self, Control, Wishes, analyst,
        keeper::{Keeper, StateError, Writer, random_salt},
        reload::Load,
        traces::{self, CollectorError, Exporter, Pace},
    },
    proxy::{
        access::Lines,
        kit::SharedAnswers,
        listener,
        places::Places,
        split::Lots,
        worker::{self, Run, Setup, Shared},
    },
    state::{
        Admission, Durability, Lifecycle, Phase, Published, Reloads, Seen, SharedProgress,
        Snapshot, SpanCounts, SpanSink, Spans, Tally, Trials, admission::Terms, spans, trials,
    },
    telemetry,
};

/// Everything that can fail has been done: the sockets are bound.
pub struct App {
    config: Config,
    load: Option<Load>,
    proxy: Vec<TcpListener>,
    instrumentation: Option<TcpListener>,
    keeper: Option<Keeper>,
    traced: Option<Traced>,
    /// What makes the draws of this installation its own.
    salt: u128,
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
    wishes: Wishes,
    stop_control: watch::Sender<bool>,
    /// When this and the control thread's are dropped, the state is written for the last time.
    stop_keeper: Option<std_mpsc::Sender<()>>,
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
        raise_descriptor_limit();
        let keeper = match &config.state {
            Some(state) => Some(Keeper::open(&state.path).map_err(StartError::State)?),
            None => None,
        };
        let salt = match &keeper {
            Some(keeper) => keeper.kept().salt,
            None => random_salt().map_err(StartError::State)?,
        };
        let traced = traced(&config)?;
        let workers = match config.server.workers {
            0 => thread::available_parallelism().map_or(1, Into::into),
            workers => workers,
        };
        let write_timeout = config.server.write_timeout;
        let proxy = bind(
            "/router-server",
            &config.server.listen,
            workers,
            write_timeout,
        )?;
        let instrumentation = match &config.instrumentation {
            Some(section) => bind("/instrumentation", &section.listen, 1, write_timeout)?.pop(),
            None => None,
        };
        Ok(App {
            config,
            load: None,
            proxy,
            instrumentation,
            keeper,
            traced,
            salt,
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
        let now = clock::uptime();
        let config = self.config;
        let terms = Terms::of(&config);
        let admission = match &self.keeper {
            Some(keeper) => Admission::restore(terms, &keeper.kept().restored, now),
            None => Admission::new(terms, now),
        };
        let found = self.keeper.as_ref().map(Keeper::kept);
        let found = found.and_then(|kept| kept.progress.as_deref());
        // Before the first request: it may be that the canary is to get nothing.
        let opening = analyst::opening(&config, found, clock::wall());
        let split = analyst::first_split(&opening);
        let phase = opening.rollout.position.phase;
        info!(
            weight = split.weight.percent(),
            phase = phase.label(),
            "the canary's share of eligible requests, in percent"
        );
        // Main and canary share their client settings.
        let horizon = trials::horizon(config.main.client.timeout);
        let places = Places::new(config.server.max_connections);
        let published = Published::new(Snapshot::new(config, admission).with_split(split));
        let seen = Arc::<Seen>::default();
        let progress = SharedProgress::new(Some(Arc::new(opening.clone())));
        let lifecycle = Arc::new(Lifecycle::default());
        let reloads = Arc::new(Reloads::new(clock::wall()));
        let (run, watching) = watch::channel(Run::On);
        let (stop_control, control_stopped) = watch::channel(false);
        let (report, ended) = mpsc::unbounded_channel();
        let (wishes, wished) = mpsc::unbounded_channel();
        let workers = self.proxy.len();
        let proxy_address = local_address(self.proxy.first())?;
        let instrumentation_address = match &self.instrumentation {
            Some(listener) => Some(local_address(Some(listener))?),
            None => None,
        };

        let kept = match self.keeper {
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
        let (stop_keeper, durability) = kept.unzip();
        let threads =
            workers + 1 + usize::from(stop_keeper.is_some()) + usize::from(self.traced.is_some());
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
        let shared = Shared {
            published: Arc::clone(&published),
            answers: SharedAnswers::default(),
            lots: Lots::new(self.salt),
            access: access_log(),
            spans: sink,
            places,
            workers,
        };
        for (i, listener) in self.proxy.into_iter().enumerate() {
            let (writer, tally) = Tally::new();
            tallies.push(tally);
            let (trials_writer, own) = Trials::new(Arc::clone(&seen), horizon);
            trials.push(own);
            let setup = Setup {
                listener,
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
            published,
            tallies,
            trials,
            seen,
            progress,
            opening,
            keeping: stop_keeper.clone(),
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
        let instrumentation = self.instrumentation;
        spawn("control", move || {
            report.send(control::run(
                instrumentation,
                control,
                wished,
                control_stopped,
            ))
        })?;
        lifecycle.enter(Phase::Serving);
        Ok(Running {
            run,
            lifecycle,
            wishes,
            stop_control,
            stop_keeper,
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

    /// Has the configuration read again. When it is in force, or the log says why it is not, this is over.
    ///
    /// # Errors
    /// All stays as it was: what was read cannot be used, or a router that runs cannot do it.
    pub async fn reload(&self) -> Result<(), String> {
        let (wish, fulfilled) = oneshot::channel();
        let gone = || "the router is ending".to_owned();
        self.wishes.send(wish).map_err(|_| gone())?;
        fulfilled.await.map_err(|_| gone())?
    }

    /// Stops accepting and lets what is in flight end, for `shutdown-timeout` at most.
    pub fn drain(&self) {
        self.lifecycle.enter(Phase::Draining);
        self.run.send_replace(Run::Drain);
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
                self.stop_keeper = None;
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
fn keep(writer: Writer, report: EndReport) -> Result<std_mpsc::Sender<()>, StartError> {
    let (stop, stopped) = std_mpsc::channel();
    spawn("state", move || {
        writer.run(&stopped);
        report.send(Ok(()));
    })?;
    Ok(stop)
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

fn bind(
    key: &'static str,
    listen: &Listen,
    count: usize,
    write_timeout: Duration,
) -> Result<Vec<TcpListener>, StartError> {
    listener::bind(listen, count, write_timeout).map_err(|error| StartError::Listen {
        key,
        host: listen.host.clone(),
        port: listen.port,
        error,
    })
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
