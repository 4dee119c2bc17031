//! What must be true when nothing is going on: nothing is left, and everything was counted.

use std::{
    rc::Rc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, ensure};
use tokio::time::sleep;

use super::{
    World,
    clerk::Log,
    config,
    counts::{self, Counts},
    router::Resources,
    stage::Stage,
};

/// How long it may take until nothing of a round is left.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Who looks whether that is so.
pub struct Auditor {
    world: Rc<World>,
    stage: Rc<Stage>,
    log: Rc<Log>,
    /// The router at rest.
    base: Resources,
    /// What it had told and counted when it was looked last.
    before: (Counts, Counts),
}

impl Auditor {
    /// While nothing has been done yet.
    pub fn new(world: &Rc<World>, stage: &Rc<Stage>, log: &Rc<Log>) -> Result<Auditor> {
        Ok(Auditor {
            world: Rc::clone(world),
            stage: Rc::clone(stage),
            log: Rc::clone(log),
            base: stage.router.resources()?,
            before: Default::default(),
        })
    }

    /// Looks at everything; the router at rest.
    pub async fn audit(&mut self) -> Result<Resources> {
        let start = Instant::now();
        let mut left = self.what_is_left().await?;
        while !left.is_empty() && start.elapsed() < PATIENCE {
            sleep(Duration::from_millis(100)).await;
            left = self.what_is_left().await?;
        }
        for what in left {
            self.problem(format!("after {PATIENCE:?} there is still {what}"));
        }
        {
            let mut books = self.world.books.borrow_mut();
            books.close(&self.world.troubles.borrow());
        }
        let rests = self.stage.router.resources()?;
        self.compare().await?;
        self.check_limits().await?;
        self.check_clock();
        self.check_stderr()?;
        Ok(rests)
    }

    fn problem(&self, what: String) {
        self.stage.problem(what);
    }

    async fn what_is_left(&self) -> Result<Vec<String>> {
        let figures = self.stage.router.figures().await?;
        let now = self.stage.router.resources()?;
        let gauge = |name| figures.sum(name, &[]) as usize;
        let counts = [
            (
                "requests in flight",
                gauge("canary_router_inflight_requests"),
                0,
            ),
            ("connections", gauge("canary_router_connections"), 0),
            ("descriptors", now.descriptors, self.base.descriptors),
            ("threads", now.threads, self.base.threads),
            (
                "requests that the log does not know",
                self.world.books.borrow().untold(),
                0,
            ),
            (
                "processes before this one",
                self.stage.router.remaining()?,
                0,
            ),
        ];
        let left = counts.iter().filter(|(_, count, base)| count > base);
        let left = left.map(|(what, count, base)| format!("{what}: {count} and not {base}"));
        Ok(left.collect())
    }

    /// What the router has counted, with what its log tells of.
    async fn compare(&mut self) -> Result<()> {
        let figures = self.stage.router.figures().await?;
        let counted = counts::counted(&figures);
        let (told, anew) = {
            let mut books = self.world.books.borrow_mut();
            let anew = std::mem::take(&mut books.is_counted_anew);
            (books.told.clone(), anew)
        };
        let before = (&self.before.0, &self.before.1);
        for what in counts::differ((&told, &counted), before, anew) {
            self.problem(what);
        }
        self.before = (told, counted);
        let dropped = figures.sum("canary_router_log_lines_dropped_total", &[]);
        if dropped > 0.0 {
            self.problem(format!("{dropped} lines of the log were dropped"));
        }
        Ok(())
    }

    /// What was reserved was given back, and what was charged was deserved.
    async fn check_limits(&self) -> Result<()> {
        let before = self.remaining().await?;
        let (least, most) = {
            let mut books = self.world.books.borrow_mut();
            let charged = std::mem::take(&mut books.charged);
            let is_known = std::mem::replace(&mut books.is_charged_known, true);
            if is_known { charged } else { (0, u64::MAX) }
        };
        let charged = config::ERRORS - before[0];
        if !(least..=most).contains(&charged) {
            self.problem(format!(
                "the canary was charged {charged} errors, and made {least} to {most}"
            ));
        }
        let (status, text) = self.stage.router.ask("POST", "/limits/reset", "").await?;
        ensure!(status == 200, "/limits/reset: {status}: {text}");
        let after = self.remaining().await?;
        if after != [config::ERRORS, config::REQUESTS] {
            self.problem(format!(
                "of {} errors and {} requests {after:?} are left when nothing is in flight",
                config::ERRORS,
                config::REQUESTS
            ));
        }
        Ok(())
    }

    async fn remaining(&self) -> Result<[u64; 2]> {
        let figures = self.stage.router.figures().await?;
        let left = |name| figures.value(name).map(|value| value as u64);
        let errors = left("canary_router_error_budget_remaining");
        let requests = left("canary_router_request_budget_remaining");
        Ok([
            errors.context("no budget of errors")?,
            requests.context("no budget of requests")?,
        ])
    }

    /// Its wall clock is as wrong as it was made: else nothing was tried by it.
    fn check_clock(&self) {
        let Some((said, when)) = self.log.wall.get() else {
            return self.problem("it says nothing".into());
        };
        let seconds = |time: SystemTime| {
            let since = time.duration_since(SystemTime::UNIX_EPOCH);
            since.unwrap_or_default().as_secs_f64()
        };
        let wrong = seconds(said) - seconds(SystemTime::now() - when.elapsed());
        let meant = self.stage.clock.get() as f64;
        if (wrong - meant).abs() > 5.0 {
            self.problem(format!(
                "its wall clock is wrong by {wrong:.1} s, and was made to be by {meant}"
            ));
        }
    }

    /// Only what the process says that cannot take its place is meant.
    pub fn check_stderr(&self) -> Result<()> {
        let said = self.stage.router.stderr()?;
        if !said.is_empty() && self.stage.failed_upgrades.take() == 0 {
            self.problem(format!("on stderr: {said}"));
        }
        Ok(())
    }
}
