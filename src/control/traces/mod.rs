//! Sends the workers' spans to a collector, in OTLP over HTTP with JSON.
//!
//! On a thread of its own, and of what becomes of them there the workers see nothing: a collector that refuses, hangs
//! or answers nonsense costs spans, which are counted, and one line in the log. What is in memory is what the channel
//! has room for, and one batch.

mod collector;
mod otlp;

use std::{
    io, mem,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{
        Arc,
        mpsc::{Receiver, TryRecvError},
    },
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::{runtime, select, sync::watch, task::LocalSet, time::sleep};
use tracing::{debug, error, info, warn};

pub use collector::CollectorError;

use self::{
    collector::{Answer, Collector},
    otlp::Resource,
};
use crate::{
    clock,
    config::Tracing,
    state::{SpanCounts, Spans},
};

/// Requests whose spans may wait: some megabytes at most.
pub const ROOM: usize = 4096;

/// A batch is full with so many spans.
const FULL: usize = 512;
/// How often it is looked for spans. Waiting for them would have the workers wake this thread, a system call each
/// time.
const LOOK: Duration = Duration::from_millis(20);
/// There is no more than one line about a collector that fails in this time.
const QUIET: Duration = Duration::from_secs(60);

/// How long things may take.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// How long a batch that is not full waits for more.
    pub fill: Duration,
    /// How long the collector may take to answer, connecting included.
    pub timeout: Duration,
    /// The pause after a first failure; it doubles with each.
    pub first_pause: Duration,
    /// What the doubling ends at, and how long a collector may have us wait (`Retry-After`).
    pub longest_pause: Duration,
    /// For how long a batch is tried.
    pub patience: Duration,
    /// How long the end may take.
    pub last: Duration,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace {
            fill: Duration::from_secs(1),
            timeout: Duration::from_secs(10),
            first_pause: Duration::from_millis(500),
            longest_pause: Duration::from_secs(30),
            patience: Duration::from_secs(60),
            last: Duration::from_secs(2),
        }
    }
}

/// Sends spans to one collector.
pub struct Exporter {
    collector: Collector,
    resource: Resource,
    counts: Arc<SpanCounts>,
    pace: Pace,
    trouble: Trouble,
    /// Spans that were taken from the channel, and of which it is not known what becomes.
    in_hand: usize,
}

impl Exporter {
    /// Connects to nobody yet.
    ///
    /// # Errors
    /// TLS is to be spoken and cannot be set up.
    pub fn new(
        tracing: &Tracing,
        counts: Arc<SpanCounts>,
        pace: Pace,
    ) -> Result<Exporter, CollectorError> {
        Ok(Exporter {
            collector: Collector::new(&tracing.endpoint)?,
            resource: Resource::new(&tracing.service_name),
            counts,
            pace,
            trouble: Trouble::default(),
            in_hand: 0,
        })
    }

    /// Sends what is left for it until `stop` changes or closes; then what there is, as far as `Pace::last` allows.
    /// Blocks its thread.
    ///
    /// # Errors
    /// No runtime could be made.
    pub fn run(mut self, left: Receiver<Spans>, stop: watch::Receiver<bool>) -> io::Result<()> {
        let stop = Stop(stop);
        loop {
            let runtime = runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let ended = catch_unwind(AssertUnwindSafe(|| {
                LocalSet::new().block_on(&runtime, self.export(&left, stop.clone()))
            }));
            // A name server that hangs has a thread that would be waited for.
            runtime.shutdown_background();
            if ended.is_ok() {
                return Ok(());
            }
            // Requests go on without it, so it goes on too.
            error!("sending spans has panicked: this is a bug of canary-router, please report it");
            self.counts.add_failed(mem::take(&mut self.in_hand));
            self.collector.hang_up();
            thread::sleep(Duration::from_secs(1));
        }
    }

    async fn export(&mut self, left: &Receiver<Spans>, stop: Stop) {
        let last = self.pace.last;
        let mut stopped = stop.clone();
        {
            let work = pin!(self.work(left, stop));
            let late = pin!(async {
                stopped.wait().await;
                sleep(last).await;
            });
            select! {
                () = work => {}
                () = late => {}
            }
        }
        let rest: usize = left.try_iter().map(|spans| spans.spans.len()).sum();
        self.counts.add_dropped(rest + mem::take(&mut self.in_hand));
    }

    async fn work(&mut self, left: &Receiver<Spans>, mut stop: Stop) {
        loop {
            let batch = self.collect(left, &mut stop).await;
            if batch.is_empty() {
                return;
            }
            self.deliver(batch, &mut stop).await;
        }
    }

    /// Waits for a batch. Once it is to stop, what there is; in the end, nothing.
    async fn collect(&mut self, left: &Receiver<Spans>, stop: &mut Stop) -> Vec<Spans> {
        let mut batch = Vec::new();
        let mut since = None;
        loop {
            // Before the channel is looked at: what is left before the end is not overlooked.
            let is_last = stop.is_on();
            while self.in_hand < FULL {
                match left.try_recv() {
                    Ok(spans) => {
                        self.in_hand += spans.spans.len();
                        batch.push(spans);
                    }
                    Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
                }
            }
            let now = clock::now();
            let is_due = !batch.is_empty() && now - *since.get_or_insert(now) >= self.pace.fill;
            if is_last || is_due || self.in_hand >= FULL {
                return batch;
            }
            stop.or(LOOK).await;
        }
    }

    /// Sends a batch, again and again if need be, and counts what becomes of it.
    async fn deliver(&mut self, batch: Vec<Spans>, stop: &mut Stop) {
        let spans = self.in_hand;
        let body = Bytes::from(otlp::encode(&self.resource, &batch));
        drop(batch);
        let began = clock::now();
        let mut pause = self.pace.first_pause;
        let sent = loop {
            let answer = self.collector.post(&body, self.pace.timeout).await;
            let (why, wished) = match answer {
                Answer::Taken => {
                    self.trouble.over(&self.collector);
                    break spans;
                }
                Answer::TakenInPart { refused, why } => {
                    let refused = usize::try_from(refused).unwrap_or(spans).min(spans);
                    let why = format!("it refuses {refused} of {spans} spans: {why}");
                    self.trouble.told(&self.collector, &why);
                    break spans - refused;
                }
                Answer::Refused(why) => {
                    self.trouble.told(&self.collector, &why);
                    break 0;
                }
                Answer::Later { why, wished } => (why, wished),
                Answer::None(why) => (why, None),
            };
            self.trouble.told(&self.collector, &why);
            debug!(collector = %self.collector, error = %why, spans, "spans not sent");
            let pause_now = match wished {
                Some(wished) => wished.min(self.pace.longest_pause),
                // Up to a fifth more by chance, so that many routers do not come together.
                None => pause.mul_f64(1.0 + fastrand::f64() / 5.0),
            };
            let is_late = clock::now() - began + pause_now > self.pace.patience;
            if is_late || stop.is_on() {
                break 0;
            }
            // When it is to stop, it is tried once more, at once.
            stop.or(pause_now).await;
            pause = (pause * 2).min(self.pace.longest_pause);
        };
        self.counts.add_sent(sent);
        self.counts.add_failed(spans - sent);
        self.in_hand = 0;
    }
}

/// When it is to end: where what is sent here is true, or nobody is left who could send it.
#[derive(Clone)]
struct Stop(watch::Receiver<bool>);

impl Stop {
    fn is_on(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }

    async fn wait(&mut self) {
        let _closed = self.0.wait_for(|stop| *stop).await;
    }

    /// Waits for so long, or until then. Where it is on already, no time at all.
    async fn or(&mut self, time: Duration) {
        select! {
            () = self.wait() => {}
            () = sleep(time) => {}
        }
    }
}

/// What the log was told of a collector that fails: a line when it begins, one when it is over, and not many of them
/// from one that cannot decide.
#[derive(Default)]
struct Trouble {
    is_known: bool,
    told: Option<Instant>,
}

impl Trouble {
    fn told(&mut self, collector: &Collector, why: &str) {
        let now = clock::now();
        if self.is_known || self.told.is_some_and(|told| now - told < QUIET) {
            return;
        }
        (self.is_known, self.told) = (true, Some(now));
        warn!(%collector, error = why, "spans cannot be sent: what there is no room for is dropped");
    }

    fn over(&mut self, collector: &Collector) {
        if mem::take(&mut self.is_known) {
            info!(%collector, "spans are sent again");
        }
    }
}
