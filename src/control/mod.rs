//! The control plane, on a thread of its own: a loaded data plane never starves a scrape or a
//! readiness probe, and a slow scraper never holds up a request.

pub mod admin;
pub mod analyst;
pub mod dashboard;
pub mod decisions;
pub mod events;
pub mod files;
pub mod guard;
pub mod history;
pub mod impatient;
pub mod keeper;
pub mod metrics;
pub mod minute;
pub mod readiness;
pub mod reload;
pub mod status;
pub mod summary;
pub mod traces;
pub mod weights;

use std::{
    cell::RefCell,
    io,
    net::TcpListener as StdListener,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    rc::Rc,
    sync::{Arc, mpsc},
    time::Duration,
};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::TcpListener,
    runtime,
    sync::{
        Semaphore,
        mpsc::{UnboundedReceiver, UnboundedSender},
        oneshot, watch,
    },
    task::{LocalSet, spawn_local},
    time::{MissedTickBehavior, interval},
};
use tracing::{debug, error};

use self::{
    admin::Admin,
    analyst::Analyst,
    impatient::Impatient,
    minute::{Minute, Second},
    reload::Load,
};
use crate::{
    clock,
    config::Config,
    policy::Target,
    state::{
        Durability, Lifecycle, Progress, Published, Reloads, Seen, SharedProgress, SpanCounts,
        Tally, Trials,
    },
};

/// How many clients of the instrumentation port are served at a time.
const MAX_CONNECTIONS: usize = 64;
/// How long a client may take to send a request head, idle time included.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// How long who is connected may take to get an answer when another process has taken the place of this one.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How often it is looked whether anything follows from what the workers saw.
const LOOK: Duration = Duration::from_millis(200);

/// How often it is looked whether the configuration has changed.
const WATCH: Duration = Duration::from_secs(1);

/// What the control plane is told by the process's own thread.
#[derive(Debug)]
pub enum Order {
    /// Read the configuration again, and say what has become of it.
    Reload(oneshot::Sender<Result<(), String>>),
    /// Leave all further decisions to a process that comes after this one; say when what was decided is kept.
    Freeze(oneshot::Sender<()>),
    /// There is none: go on.
    Resume,
    /// It serves: whoever comes now is for it.
    Leave,
}

/// By which orders come.
pub type Orders = UnboundedSender<Order>;

/// What the control plane looks at.
pub struct Control {
    /// The configuration in force.
    pub published: Arc<Published>,
    /// What each worker counts.
    pub tallies: Vec<Arc<Tally>>,
    /// What each worker saw of the requests that chance has assigned.
    pub trials: Vec<Arc<Trials>>,
    /// Of whom it was seen.
    pub seen: Arc<Seen>,
    /// Where what is to be kept of the rollout is left.
    pub progress: Arc<SharedProgress>,
    /// What it goes on from.
    pub opening: Progress,
    /// The state is written for the last time when this is gone, too.
    pub keeping: Option<mpsc::Sender<keeper::Order>>,
    /// How writing the state file goes, if there is one.
    pub durability: Option<Arc<Durability>>,
    /// Reads the configuration again, if it can be.
    pub load: Option<Load>,
    /// Has the log go by it.
    pub log: fn(&Config),
    /// How reading it again goes.
    pub reloads: Arc<Reloads>,
    /// What became of spans, where requests are traced.
    pub spans: Option<Arc<SpanCounts>>,
    /// How many lines of the log there was no room for.
    pub dropped_lines: fn() -> u64,
    /// Where the process stands.
    pub lifecycle: Arc<Lifecycle>,
}

/// Decides and watches until `stop` changes or closes, and serves the instrumentation port, where there is one. Blocks
/// its thread.
///
/// # Errors
/// No runtime could be made, or the metrics could not be registered.
pub fn run(
    listener: Option<StdListener>,
    control: Control,
    orders: UnboundedReceiver<Order>,
    stop: watch::Receiver<bool>,
) -> io::Result<()> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    LocalSet::new().block_on(&runtime, work(listener, control, orders, stop))
}

async fn work(
    listener: Option<StdListener>,
    control: Control,
    orders: UnboundedReceiver<Order>,
    mut stop: watch::Receiver<bool>,
) -> io::Result<()> {
    let listener = listener.map(TcpListener::from_std).transpose()?;
    let address = match &listener {
        Some(listener) => Some(listener.local_addr()?),
        None => None,
    };
    let now = clock::uptime();
    let minute = Rc::new(RefCell::new(Minute::new(control.tallies.clone(), now)));
    let analyst = Rc::new(RefCell::new(Analyst::new(&control, now)));
    let admin = Admin::new(&control, address, Rc::clone(&analyst), Rc::clone(&minute));
    let admin = Rc::new(admin.map_err(io::Error::other)?);
    spawn_local(look(
        Rc::clone(&analyst),
        Rc::clone(&minute),
        Rc::clone(&admin),
    ));
    let (leave, left) = watch::channel(false);
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    spawn_local(obey(orders, Rc::clone(&admin), leave));
    spawn_local(watch_files(control.published, Rc::clone(&admin)));
    if let Some(listener) = listener {
        spawn_local(serve(
            listener,
            Rc::clone(&admin),
            Arc::clone(&places),
            left,
        ));
    }
    // Nobody sends anything but that.
    let _stopped = stop.wait_for(|stop| *stop).await;
    if admin.is_frozen() {
        // Both processes have listened for a moment, and who came to this one does not know.
        let all = places.acquire_many(MAX_CONNECTIONS as u32);
        let _silent = tokio::time::timeout(LAST_WORDS, all).await;
    }
    // The workers are gone: nothing comes behind.
    let mut analyst = analyst.borrow_mut();
    if !admin.is_frozen() {
        look_once(&mut analyst, &mut minute.borrow_mut());
        analyst.keep(clock::uptime());
    }
    Ok(())
}

async fn serve(
    listener: TcpListener,
    admin: Rc<Admin>,
    places: Arc<Semaphore>,
    mut left: watch::Receiver<bool>,
) {
    loop {
        let next = async {
            // Who waits for a place waits in the kernel's queue.
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            _ = left.wait_for(|left| *left) => return,
            next = next => next,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (admin, mut left) = (Rc::clone(&admin), left.clone());
        spawn_local(async move {
            let _place = place;
            let (begin, mut begun) = watch::channel(false);
            let service = service_fn(|request| {
                begin.send_replace(true);
                let admin = Rc::clone(&admin);
                async move { admin.answer(request).await }
            });
            let mut served = pin!(
                http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEAD_TIMEOUT)
                    .serve_connection(TokioIo::new(Impatient::new(stream)), service)
            );
            // One that has not begun would be closed at once, with what it is about to ask.
            let is_over = async {
                let _left = left.wait_for(|left| *left).await;
                let _begun = begun.wait_for(|begun| *begun).await;
            };
            let served = tokio::select! {
                served = &mut served => served,
                () = is_over => {
                    served.as_mut().graceful_shutdown();
                    served.await
                }
            };
            if let Err(error) = served {
                debug!(%error, "instrumentation connection ended");
            }
        });
    }
}

/// Does what it is told. Who asked may not wait for it any more.
async fn obey(mut orders: UnboundedReceiver<Order>, admin: Rc<Admin>, leave: watch::Sender<bool>) {
    while let Some(order) = orders.recv().await {
        match order {
            Order::Reload(done) => {
                let reloaded = admin.reload("SIGHUP").await;
                let _nobody = done.send(reloaded.map_err(|refused| refused.to_string()));
            }
            Order::Freeze(done) => {
                admin.freeze();
                let _nobody = done.send(());
            }
            Order::Resume => admin.resume(),
            Order::Leave => {
                admin.leave();
                leave.send_replace(true);
            }
        }
    }
}

/// Has it read again when it has changed, where that is wanted.
async fn watch_files(published: Arc<Published>, admin: Rc<Admin>) {
    let mut looks = interval(WATCH);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        let is_wanted = published.load().config.watch && !admin.is_frozen();
        if is_wanted && admin.have_files_changed() {
            // What is wrong is said where everybody looks.
            let _said = admin.reload("a file has changed").await;
        }
    }
}

/// Looks at what the workers saw, for as long as this thread runs.
async fn look(analyst: Rc<RefCell<Analyst>>, minute: Rc<RefCell<Minute>>, admin: Rc<Admin>) {
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        let second = match admin.is_frozen() {
            false => look_once(&mut analyst.borrow_mut(), &mut minute.borrow_mut()),
            true => minute.borrow_mut().look(clock::uptime()),
        };
        if let Some(second) = second {
            admin.second(second, clock::uptime());
        }
    }
}

/// What the targets did in the last second, where one is over.
fn look_once(analyst: &mut Analyst, minute: &mut Minute) -> Option<[Second; Target::ALL.len()]> {
    let (now, wall) = (clock::uptime(), clock::wall());
    // They hold no more than counts; whatever they have left half done, the canary gets nothing after it.
    let looked = catch_unwind(AssertUnwindSafe(|| {
        analyst.look(now, wall);
        minute.look(now)
    }));
    looked.unwrap_or_else(|_| {
        error!("the judge has panicked: this is a bug of canary-router, please report it");
        analyst.failed(now, wall);
        None
    })
}
