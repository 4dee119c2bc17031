//! Who writes things down while the soak goes on: what the router tells, how much memory it has, and when this
//! machine is late.

use std::{
    cell::{Cell, RefCell},
    fs::File,
    io::{BufWriter, Seek, Write},
    path::Path,
    rc::Rc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::Result;
use rustix::process::Pid;
use tokio::{sync::mpsc, time::sleep};

use super::{World, router::Told, stage::Stage, trouble::What};

/// The router's log, for who has to find out what was wrong.
pub struct Log {
    file: RefCell<BufWriter<File>>,
    /// What time it said it was, and when.
    pub wall: Cell<Option<(SystemTime, Instant)>>,
}

/// What the router complains of when that was meant.
const EXPECTED: [&str; 3] = [
    "the configuration stays as it was",
    "the state cannot be written",
    "SIGUSR2: this process goes on as before",
];

impl Log {
    pub fn new(folder: &Path) -> Result<Rc<Log>> {
        Ok(Rc::new(Log {
            file: RefCell::new(BufWriter::new(File::create(folder.join("log"))?)),
            wall: Cell::new(None),
        }))
    }

    /// Begins anew, with an empty file: what was right nobody will read.
    pub fn forget(&self) -> Result<()> {
        let mut file = self.file.borrow_mut();
        file.flush()?;
        file.get_mut().set_len(0)?;
        file.rewind()?;
        Ok(())
    }

    pub fn flush(&self) -> Result<()> {
        Ok(self.file.borrow_mut().flush()?)
    }
}

/// Enters what the router tells, until it ends.
pub async fn keep_books(
    stage: Rc<Stage>,
    log: Rc<Log>,
    mut told: mpsc::UnboundedReceiver<(String, Told)>,
) {
    while let Some((text, told)) = told.recv().await {
        if let Err(error) = writeln!(log.file.borrow_mut(), "{text}") {
            stage.problem(format!("the log cannot be kept: {error}"));
        }
        match told {
            Told::Request(line) => stage.world.books.borrow_mut().line(*line),
            Told::Other {
                level,
                msg,
                wall,
                process,
            } => {
                if let Ok(wall) = humantime::parse_rfc3339(&wall) {
                    log.wall.set(Some((wall, Instant::now())));
                }
                if let Some(process) = process {
                    stage.router.is_now(process);
                }
                let is_meant = EXPECTED.iter().position(|known| msg.starts_with(known));
                if is_meant == Some(EXPECTED.len() - 1) {
                    stage.failed_upgrades.set(stage.failed_upgrades.get() + 1);
                }
                let is_meant = is_meant.is_some() && stage.world.has_expected_errors.get();
                if level == "error" && !is_meant || msg.contains("panicked") {
                    stage.problem(format!("an error in the log: {text}"));
                }
            }
            Told::Garbled => stage.problem(format!("no line of a log: {text}")),
        }
    }
}

/// Settles requests that are over.
pub async fn settle(world: Rc<World>) {
    loop {
        sleep(Duration::from_millis(250)).await;
        world.books.borrow_mut().settle(&world.troubles.borrow());
    }
}

/// Notes when this machine is not punctual: the router is not either, then.
pub async fn watch_lag(world: Rc<World>) {
    const TICK: Duration = Duration::from_millis(20);
    const MOST: Duration = Duration::from_millis(150);
    // Who is a little late all the time is late, too: more than a third of it adds up.
    let mut sum = Duration::ZERO;
    loop {
        let before = Instant::now();
        sleep(TICK).await;
        let now = Instant::now();
        let took = now - before;
        let late = took.saturating_sub(TICK);
        sum = (sum + late).saturating_sub(took / 3).min(2 * MOST);
        if late > MOST || sum > MOST {
            world
                .troubles
                .borrow_mut()
                .was(What::Lag, None, before, now);
        }
    }
}

/// Bytes of memory that the router had, second by second, as long as it is the same process.
///
/// By itself with TLS, and without: it takes more.
#[derive(Default)]
pub struct Memory {
    process: Cell<Option<Pid>>,
    at_work: RefCell<[Vec<u64>; 2]>,
    at_rest: RefCell<[Vec<u64>; 2]>,
}

/// What does not count: until everything was needed once.
const WARM_UP: usize = 10;

impl Memory {
    /// So much when there are requests.
    pub fn at_work(&self, process: Pid, is_tls: bool, bytes: u64) {
        if self.process.replace(Some(process)) != Some(process) {
            self.at_work.take();
            self.at_rest.take();
        }
        self.at_work.borrow_mut()[usize::from(is_tls)].push(bytes);
    }

    /// So much when there are none.
    pub fn at_rest(&self, is_tls: bool, bytes: u64) {
        self.at_rest.borrow_mut()[usize::from(is_tls)].push(bytes);
    }

    /// Whether it grows: the medians of the first quarter and of the last one may differ by a part of the first and a
    /// fixed amount, which is more while there are requests, since they need some.
    pub fn grown(&self) -> Vec<String> {
        let (at_work, at_rest) = (self.at_work.borrow(), self.at_rest.borrow());
        let at_work = at_work.iter().map(|it| ("at work", it.get(WARM_UP..)));
        let at_work = at_work.map(|(when, samples)| (when, samples, 4, 8 << 20));
        let at_rest = at_rest.iter().map(|it| ("at rest", it.get(1..)));
        let at_rest = at_rest.map(|(when, samples)| (when, samples, 10, 4 << 20));
        let looks = at_work.chain(at_rest);
        let grown = looks.filter_map(|(when, samples, part, more)| {
            let (first, last) = quarters(samples?)?;
            (last > first + first / part + more).then(|| {
                let (first, last) = (first >> 10, last >> 10);
                format!("memory grows: {first} KiB at first and {last} KiB at last, {when}")
            })
        });
        grown.collect()
    }

    /// The medians of what there was at work, without TLS.
    pub fn medians(&self) -> Option<(u64, u64)> {
        quarters(self.at_work.borrow()[0].get(WARM_UP..)?)
    }
}

/// The medians of the first and of the last quarter.
fn quarters(samples: &[u64]) -> Option<(u64, u64)> {
    let quarter = samples.len() / 4;
    let median = |some: &[u64]| {
        let mut some = some.to_vec();
        some.sort_unstable();
        some.get(some.len() / 2).copied()
    };
    let last = samples.len() - quarter;
    Some((median(&samples[..quarter])?, median(&samples[last..])?))
}

/// Looks after the router.
pub async fn watch_router(stage: Rc<Stage>, memory: Rc<Memory>) {
    loop {
        sleep(Duration::from_secs(1)).await;
        if let (false, Ok(Some(status))) = (stage.world.is_ending.get(), stage.router.has_ended()) {
            // Everything else comes of that.
            let mut books = stage.world.books.borrow_mut();
            books
                .problems
                .insert(0, format!("the router has ended: {status:?}"));
            return;
        }
        // Between two processes there may be none.
        if let (true, Ok(now)) = (stage.world.is_open.get(), stage.router.resources()) {
            memory.at_work(stage.router.id(), stage.world.is_tls.get(), now.memory);
        }
    }
}
