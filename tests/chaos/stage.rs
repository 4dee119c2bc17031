//! Carries out what is planned, and expects of the router what it promises of it.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fs,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use fastrand::Rng;
use rustix::process::Signal;
use serde_json::Value;
use tokio::{net::TcpStream, sync::Mutex, time::sleep};

use super::{
    World,
    config::{self, Addresses},
    plan::{Act, By, Lane},
    router::{Folder, Port, Router},
    service::Service,
    trouble::What,
};

/// The router, and everything around it.
pub struct Stage {
    pub world: Rc<World>,
    pub folder: Folder,
    pub addresses: Addresses,
    pub services: [Rc<Service>; 3],
    pub router: Router,
    /// How many descriptors it may have at all.
    pub descriptors: u64,
    /// By how much its wall clock is wrong.
    pub clock: Cell<i64>,
    pub started: Instant,
    /// Whoever changes the configuration file, or has it read.
    pub file: Mutex<()>,
    /// Another process may take its place.
    pub may_be_replaced: Cell<bool>,
    /// How often it has said that no other process could take its place.
    pub failed_upgrades: Cell<u32>,
    /// How often what was done.
    pub done: RefCell<BTreeMap<&'static str, u64>>,
    /// What was done, and when.
    pub history: RefCell<Vec<String>>,
    pub _ports: [Port; 2],
}

/// Fewer than it has already, so that only what it closes can be opened again.
const FEW: u64 = 32;

/// In the ledger.
const EXCHANGES: &str = "exchanges of the router's certificate";

/// It has answered, and not what it should.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refused(String);

impl Stage {
    /// Everything that is planned for one lane.
    pub async fn play(&self, lane: Lane) {
        for (pause, act) in lane {
            sleep(pause).await;
            if matches!(act, Act::Upgrade) && !self.may_be_replaced.get() {
                continue;
            }
            *self.done.borrow_mut().entry(act.label()).or_default() += 1;
            self.say(format!("{act:?}"));
            if let Err(error) = self.act(&act).await {
                self.problem(format!("{act:?}: {error:#}"));
            }
        }
    }

    fn say(&self, what: String) {
        let at = self.started.elapsed().as_secs_f64();
        self.history.borrow_mut().push(format!("{at:9.3} {what}"));
    }

    pub fn problem(&self, what: String) {
        let at = self.started.elapsed().as_secs_f64();
        let mut books = self.world.books.borrow_mut();
        books.problem(format!("at {at:.3} s: {what}"));
    }

    async fn act(&self, act: &Act) -> Result<()> {
        let since = Instant::now();
        if act.may_raise() {
            self.world.troubles.borrow_mut().abort(false);
        }
        let service = |peer: super::trouble::Peer| &self.services[peer as usize];
        match *act {
            Act::Restart { peer, hard, away } => service(peer).restart(hard, away).await?,
            Act::Stall { peer, time } => service(peer).stall(time).await,
            Act::Deaf { peer, time } => service(peer).go_deaf(time).await,
            Act::Lie {
                peer,
                percent,
                time,
            } => service(peer).lie(percent, time).await,
            Act::Fail {
                peer,
                percent,
                time,
            } => service(peer).fail(percent, time).await,
            Act::Slow { peer, pause, time } => service(peer).slow_down(pause, time).await,
            Act::Pose { peer, time } => service(peer).pose(time).await,
            Act::Reload { number, by } => {
                let config = config::varied(&self.addresses, &mut Rng::with_seed(number));
                self.reload(&config, by, number.is_multiple_of(2)).await?;
            }
            Act::BadReload { number, by } => {
                let (text, status) = config::bad(&self.addresses, &mut Rng::with_seed(number));
                self.world.has_expected_errors.set(true);
                self.reload_in_vain(&text, by, status).await?;
            }
            Act::Rollout(command) => {
                let path = format!("/rollout/{command}");
                self.command("POST", &path, "", &[200, 409]).await?;
                // Which is possible at any time.
                if command == "abort" && !self.was_poor(since) {
                    self.world.troubles.borrow_mut().abort(true);
                }
            }
            Act::Weight(percent) => {
                let body = format!("{{\"weight\": {percent}}}");
                self.command("PUT", "/traffic/weight", &body, &[200, 409])
                    .await?;
            }
            Act::ResetBreakers => self.command("POST", "/breaker/reset", "", &[200]).await?,
            Act::ResetLimits => {
                self.command("POST", "/limits/reset", "", &[200]).await?;
                // What is in flight is charged before or after it.
                self.world.books.borrow_mut().is_charged_known = false;
            }
            Act::FewDescriptors { time } => self.take_descriptors(time).await?,
            Act::Clock { seconds } => {
                self.clock.set(seconds);
                self.router.set_clock(seconds)?;
            }
            Act::Crowd { count, time } => self.crowd(count, time).await,
            Act::Upgrade => self.upgrade().await?,
            Act::BadUpgrade { number } => self.upgrade_in_vain(number).await?,
            Act::UnreadLog { time } => {
                self.router.set_unread(true);
                sleep(time).await;
                self.router.set_unread(false);
            }
        }
        Ok(())
    }

    /// Has the router read this, and another certificate if it is to be exchanged.
    pub async fn reload(&self, config: &Value, by: By, exchanges: bool) -> Result<()> {
        // A process that starts reads it, too.
        let _alone = self.file.lock().await;
        let path = self.folder.path.join("config.json");
        let before = fs::read(&path)?;
        if exchanges && self.world.is_tls.get() {
            self.world.pki.exchange(&self.folder.path)?;
            *self.done.borrow_mut().entry(EXCHANGES).or_default() += 1;
        }
        let given = {
            let mut books = self.world.books.borrow_mut();
            books.sayings.is_given(config::ttl(config))
        };
        let reloaded = self.reread(&config.to_string(), by, 200).await;
        match reloaded {
            // Else it goes by the one or the other.
            Ok(is_read) => {
                if is_read {
                    let mut books = self.world.books.borrow_mut();
                    books.sayings.is_in_force(&given);
                    self.world.pki.is_read();
                }
                Ok(())
            }
            Err(error) => {
                fs::write(&path, before)?;
                Err(error)
            }
        }
    }

    /// Has the router read what it cannot use.
    async fn reload_in_vain(&self, text: &str, by: By, status: u16) -> Result<()> {
        let _alone = self.file.lock().await;
        let path = self.folder.path.join("config.json");
        let before = fs::read(&path)?;
        let reloaded = self.reread(text, by, status).await;
        fs::write(&path, before)?;
        reloaded.map(drop)
    }

    /// Whether it has surely read it.
    async fn reread(&self, text: &str, by: By, status: u16) -> Result<bool> {
        let is_good = status == 200;
        let result = if is_good { "succeeded" } else { "failed" };
        let from = Instant::now();
        let before = self.reloads(result).await?;
        fs::write(self.folder.path.join("config.json"), text)?;
        let done = match by {
            By::Port => self.asked("POST", "/reload", "", &[status]).await,
            By::Signal => {
                self.router.signal(Signal::HUP)?;
                self.has_reread(result, before).await
            }
        };
        let Err(error) = done else {
            return Ok(true);
        };
        // It may have had no descriptor to read it with.
        match self.was_poor(from) {
            true => Ok(false),
            false => Err(error),
        }
    }

    async fn has_reread(&self, result: &str, before: f64) -> Result<()> {
        for _ in 0..200 {
            sleep(Duration::from_millis(50)).await;
            if self.reloads(result).await? > before {
                return Ok(());
            }
        }
        anyhow::bail!("no reload {result} after SIGHUP")
    }

    async fn reloads(&self, result: &str) -> Result<f64> {
        let figures = self.router.figures().await?;
        let labels = [("result", result)];
        Ok(figures.sum("canary_router_config_reloads_total", &labels))
    }

    async fn command(&self, method: &str, path: &str, body: &str, good: &[u16]) -> Result<()> {
        let from = Instant::now();
        match self.asked(method, path, body, good).await {
            Err(error) if error.is::<Refused>() || !self.was_poor(from) => Err(error),
            _ => Ok(()),
        }
    }

    /// # Errors
    /// [`Refused`], where it has answered something else.
    async fn asked(&self, method: &str, path: &str, body: &str, good: &[u16]) -> Result<()> {
        let (status, text) = self.router.ask(method, path, body).await?;
        match good.contains(&status) {
            true => Ok(()),
            false => Err(Refused(format!(
                "{method} {path}: {status} instead of {good:?}: {text}"
            ))
            .into()),
        }
    }

    /// A new process takes the place of the router, and nobody notices.
    async fn upgrade(&self) -> Result<()> {
        let _alone = self.file.lock().await;
        let before = self.router.id();
        self.world.books.borrow_mut().is_counted_anew = true;
        self.router.signal(Signal::USR2)?;
        for _ in 0..1000 {
            sleep(Duration::from_millis(10)).await;
            if self.router.id() != before {
                return Ok(());
            }
        }
        anyhow::bail!("nobody has taken its place after SIGUSR2")
    }

    /// A new process cannot, and the router goes on.
    async fn upgrade_in_vain(&self, number: u64) -> Result<()> {
        let _alone = self.file.lock().await;
        self.world.has_expected_errors.set(true);
        let path = self.folder.path.join("config.json");
        let good = fs::read(&path)?;
        fs::write(
            &path,
            config::unusable(&self.addresses, &mut Rng::with_seed(number)),
        )?;
        let before = self.failed_upgrades.get();
        self.router.signal(Signal::USR2)?;
        let mut tries = 0..1000;
        while self.failed_upgrades.get() == before && tries.next().is_some() {
            sleep(Duration::from_millis(10)).await;
        }
        fs::write(&path, good)?;
        let has_failed = self.failed_upgrades.get() > before;
        anyhow::ensure!(has_failed, "SIGUSR2 goes unanswered");
        Ok(())
    }

    /// Whether the router had few descriptors since then.
    fn was_poor(&self, from: Instant) -> bool {
        let troubles = self.world.troubles.borrow();
        troubles.was_there(What::FewDescriptors, from, Instant::now())
    }

    async fn take_descriptors(&self, time: Duration) -> Result<()> {
        self.world.has_expected_errors.set(true);
        let trouble = self
            .world
            .troubles
            .borrow_mut()
            .begin(What::FewDescriptors, None);
        self.router.set_descriptors(FEW)?;
        sleep(time).await;
        self.router.set_descriptors(self.descriptors)?;
        self.world.troubles.borrow_mut().end(trouble);
        Ok(())
    }

    async fn crowd(&self, count: usize, time: Duration) {
        let address = self.router.address;
        let mut crowd = Vec::new();
        let hello = self.world.pki.hello().unwrap_or_default();
        for place in 0..count {
            if let Ok(stream) = TcpStream::connect(address).await {
                // Some begin a handshake, and let the router wait for the rest of it.
                if self.world.is_tls.get() && place % 2 == 0 {
                    let _gone = stream.try_write(&hello[..hello.len() / 2]);
                }
                crowd.push(stream);
            }
        }
        sleep(time).await;
    }

    /// Clients speak TLS from now on, or no longer; there are none at the moment.
    pub async fn speak(&self, is_tls: bool) -> Result<()> {
        self.world.is_tls.set(is_tls);
        self.addresses.is_tls.set(is_tls);
        self.say(format!("clients speak TLS: {is_tls}"));
        let config = config::calm(&self.addresses);
        self.reload(&config, By::Port, true).await
    }

    /// Everything is as in the beginning: the configuration, the weight, the descriptors.
    pub async fn calm(&self) -> Result<()> {
        self.say("everything becomes calm".into());
        self.world.troubles.borrow_mut().abort(false);
        self.router.set_descriptors(self.descriptors)?;
        let config = config::calm(&self.addresses);
        self.reload(&config, By::Port, true)
            .await
            .context("the calm configuration")?;
        self.command("POST", "/rollout/abort", "", &[200]).await?;
        self.command("PUT", "/traffic/weight", "{\"weight\": 100}", &[200])
            .await?;
        self.command("POST", "/breaker/reset", "", &[200]).await
    }
}
