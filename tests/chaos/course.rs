//! The course of a soak: rounds, each with its audit, and the end.

use std::{
    fs,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use fastrand::Rng;
use rustix::process::Signal;
use tokio::{
    task::{JoinHandle, JoinSet, spawn_local},
    time::{sleep, timeout},
};

use super::{
    Args, World,
    audit::{Auditor, PATIENCE},
    clerk::{self, Log, Memory},
    client::Visitor,
    config::{self, Addresses},
    ledger::Ledger,
    pattern::mix,
    plan,
    router::{Folder, Port, Resources, Router},
    service::Service,
    stage::Stage,
    trouble::Peer,
};

/// How many clients there are.
const VISITORS: u32 = 48;
/// Nothing happens at the beginning of a round and at its end.
const CALM: Duration = Duration::from_millis(1500);
/// What a round takes beside what happens in it: what was begun ends, and all is looked at.
const AFTERWARDS: Duration = Duration::from_secs(5);
/// For the drain at the end.
const END: Duration = Duration::from_secs(6);

/// Whether everything adds up.
pub async fn run(args: &Args, world: &Rc<World>) -> Result<bool> {
    let started = Instant::now();
    let mut soak = Soak::start(args, world).await?;
    println!("seed {}, process {:?}", args.seed, soak.stage.router.id());
    if let Err(error) = soak.rounds(started).await {
        soak.problem(format!("it cannot go on: {error:#}"));
    }
    soak.conclude(started.elapsed())
}

struct Soak {
    args: Args,
    world: Rc<World>,
    stage: Rc<Stage>,
    log: Rc<Log>,
    auditor: Auditor,
    memory: Rc<Memory>,
    /// The router at rest, before the first round and after each.
    rests: Vec<Resources>,
    clerk: JoinHandle<()>,
    watches: Vec<JoinHandle<()>>,
}

impl Soak {
    async fn start(args: &Args, world: &Rc<World>) -> Result<Soak> {
        let folder = Folder::new()?;
        let path = folder.path.clone();
        let [main, canary, sidecar] = Peer::ALL.map(|peer| Service::start(peer, world));
        let services = [main?, canary?, sidecar?];
        let (proxy, instrumentation) = (Port::reserve()?, Port::reserve()?);
        let [main, canary, sidecar] = services
            .each_ref()
            .map(|it| format!("http://{}", it.address));
        let by_tls = services
            .each_ref()
            .map(|it| format!("https://{}", it.tls_address));
        let addresses = Addresses {
            main,
            canary,
            sidecar,
            by_tls,
            port: proxy.address.port(),
            instrumentation: instrumentation.address.port(),
            is_tls: Default::default(),
        };
        fs::create_dir(path.join("state"))?;
        world.pki.write(&path)?;
        world.pki.exchange(&path)?;
        let config = config::calm(&addresses).to_string();
        fs::write(path.join("config.json"), config)?;
        let program = fs::canonicalize(&args.router);
        let program = program.with_context(|| args.router.display().to_string())?;
        let ports = [proxy.address, instrumentation.address];
        let (router, told) = Router::start(&program, &path, ports)?;
        router.listens().await?;
        let limit = router.descriptor_limit()?.current;
        let started = Instant::now();
        world.books.borrow_mut().open_at(started);
        let stage = Rc::new(Stage {
            world: Rc::clone(world),
            folder,
            addresses,
            services,
            descriptors: limit.context("no limit of files")?,
            router,
            clock: Default::default(),
            started,
            file: Default::default(),
            may_be_replaced: Default::default(),
            failed_upgrades: Default::default(),
            done: Default::default(),
            history: Default::default(),
            _ports: [proxy, instrumentation],
        });
        let log = Log::new(&path)?;
        let memory = Rc::new(Memory::default());
        let clerk = spawn_local(clerk::keep_books(Rc::clone(&stage), Rc::clone(&log), told));
        let watches = vec![
            spawn_local(clerk::settle(Rc::clone(world))),
            spawn_local(clerk::watch_lag(Rc::clone(world))),
            spawn_local(clerk::watch_router(Rc::clone(&stage), Rc::clone(&memory))),
        ];
        // What is made when it is first needed has been by then.
        sleep(Duration::from_millis(500)).await;
        Ok(Soak {
            args: args.clone(),
            world: Rc::clone(world),
            auditor: Auditor::new(world, &stage, &log)?,
            rests: vec![stage.router.resources()?],
            stage,
            log,
            memory,
            clerk,
            watches,
        })
    }

    /// One after the other, as long as all is well.
    async fn rounds(&mut self, started: Instant) -> Result<()> {
        let time = Duration::from_secs(self.args.seconds).saturating_sub(END);
        let length = (time / 3).clamp(Duration::from_secs(10), Duration::from_secs(40));
        let mut number = 0;
        while number == 0 || started.elapsed() + length <= time + Duration::from_secs(2) {
            number += 1;
            // Then one process lives to the end, and must not grow.
            let may_be_replaced = started.elapsed() < time / 3;
            self.round(number, length, may_be_replaced).await?;
            if self.has_problems() {
                return Ok(());
            }
        }
        self.end(number).await
    }

    fn has_problems(&self) -> bool {
        !self.world.books.borrow().problems.is_empty()
    }

    fn problem(&self, what: String) {
        self.stage.problem(what);
    }

    fn visitors(&self, round: u64) -> JoinSet<()> {
        self.world.is_open.set(true);
        let pause = Duration::from_secs(1) * VISITORS / self.args.rate.max(1);
        let mut visitors = JoinSet::new();
        for name in 0..u64::from(VISITORS) {
            let name = round * 1000 + name;
            let (world, address) = (Rc::clone(&self.world), self.stage.router.address);
            visitors.spawn_local(Visitor::visit(world, address, name, pause));
        }
        visitors
    }

    async fn round(&mut self, number: u64, length: Duration, may_be_replaced: bool) -> Result<()> {
        self.world.has_expected_errors.set(false);
        self.stage.may_be_replaced.set(may_be_replaced);
        self.speak(number).await?;
        let visitors = self.visitors(number);
        sleep(CALM).await;
        let trouble = length.saturating_sub(2 * CALM + AFTERWARDS);
        let mut random = Rng::with_seed(mix(self.args.seed ^ mix(number)));
        let mut lanes = JoinSet::new();
        for lane in plan::lanes(&mut random, trouble) {
            let stage = Rc::clone(&self.stage);
            lanes.spawn_local(async move { stage.play(lane).await });
        }
        lanes.join_all().await;
        if let Err(error) = self.stage.calm().await {
            self.problem(format!("it does not become calm: {error:#}"));
        }
        sleep(CALM).await;
        self.close(visitors).await;
        let rests = self.auditor.audit().await?;
        self.memory.at_rest(self.world.is_tls.get(), rests.memory);
        self.rests.push(rests);
        if !self.has_problems() {
            self.log.forget()?;
        }
        let books = self.world.books.borrow();
        println!(
            "round {number}: {} requests so far, {} problems; {} descriptors, {} threads, {} KiB at rest",
            books.begun,
            books.problems.len(),
            rests.descriptors,
            rests.threads,
            rests.memory >> 10
        );
        Ok(())
    }

    /// In every second round clients speak TLS.
    async fn speak(&self, round: u64) -> Result<()> {
        let is_tls = (self.args.seed + round).is_multiple_of(2);
        self.stage.speak(is_tls).await.context("TLS, or none")
    }

    /// Clients finish what they have begun.
    async fn close(&self, visitors: JoinSet<()>) {
        self.world.is_open.set(false);
        if timeout(2 * PATIENCE, visitors.join_all()).await.is_err() {
            self.problem("clients do not come to an end".into());
        }
    }

    /// It drains while there is traffic, and nobody notices.
    async fn end(&mut self, rounds: u64) -> Result<()> {
        self.world.has_expected_errors.set(false);
        self.speak(rounds + 1).await?;
        let visitors = self.visitors(0);
        sleep(CALM).await;
        self.world.is_ending.set(true);
        self.stage.router.signal(Signal::TERM)?;
        match self.stage.router.ended(PATIENCE).await? {
            Some(status) if status.exit_status() == Some(0) => {}
            other => self.problem(format!("SIGTERM under load: {other:?}")),
        }
        self.close(visitors).await;
        if timeout(PATIENCE, &mut self.clerk).await.is_err() {
            self.problem("its log does not end".into());
        }
        {
            let mut books = self.world.books.borrow_mut();
            books.close(&self.world.troubles.borrow());
        }
        self.auditor.check_stderr()
    }

    /// Says it all.
    fn conclude(self, took: Duration) -> Result<bool> {
        for watch in &self.watches {
            watch.abort();
        }
        for grown in self.memory.grown() {
            self.problem(grown);
        }
        let books = self.world.books.borrow();
        let ledger = Ledger {
            books: &books,
            troubles: &self.world.troubles.borrow(),
            done: &self.stage.done.borrow(),
            rests: &self.rests,
            memory: self.memory.medians(),
            took,
        };
        print!("{ledger}");
        if books.problems.is_empty() {
            println!("\neverything balances");
            return Ok(true);
        }
        for problem in books.problems.iter().take(20) {
            println!("\n{problem}");
        }
        let history = self.stage.history.borrow();
        let count = books.problems.len();
        println!(
            "\n{count} problems; seed {}; what was done:",
            self.args.seed
        );
        for line in history.iter().skip(history.len().saturating_sub(150)) {
            println!("{line}");
        }
        self.log.flush()?;
        let path = &self.stage.folder.path;
        fs::write(path.join("problems"), books.problems.join("\n\n"))?;
        fs::write(path.join("history"), history.join("\n"))?;
        println!(
            "the router's log, its files, problems and history: {}",
            path.display()
        );
        self.stage.folder.is_kept.set(true);
        Ok(false)
    }
}
