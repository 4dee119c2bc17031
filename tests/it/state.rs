//! What survives the process, with the real program: stopped, killed, on a disk that fails.
//!
//! The promise is over all lives together: a `kill -9` at any moment may cost the canary some of its
//! budgets, and never gives it any.

use std::{
    net::SocketAddr,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::*;

const ERRORS_LEFT: &str = "canary_router_error_budget_remaining";
const REQUESTS_LEFT: &str = "canary_router_request_budget_remaining";
const WRITTEN: &str = "canary_router_state_writes_total{result=\"succeeded\"}";
const NOT_WRITTEN: &str = "canary_router_state_writes_total{result=\"failed\"}";

/// An installation: a folder, two ports and a configuration, in which one router after the other runs.
struct House {
    folder: Folder,
    proxy: Port,
    metrics: Port,
    main: Upstream,
    canary: Upstream,
    _sidecar: Upstream,
}

impl House {
    /// Main answers 200, the sidecar says canary, the canary does what it is told.
    async fn new(
        canary: impl Fn(&Received) -> Vec<Step> + Send + Sync + 'static,
        config: Value,
    ) -> House {
        let house = House {
            folder: Folder::new(),
            proxy: Port::reserve(),
            metrics: Port::reserve(),
            main: Upstream::named("main", 200).await,
            canary: Upstream::start(canary).await,
            _sidecar: Upstream::start(asked).await,
        };
        std::fs::create_dir(house.folder.0.join("state")).unwrap();
        let listen = |port: &Port| json!({"host": "127.0.0.1", "port": port.number()});
        let mut file = json!({
            "main-target": house.main.url(),
            "canary-target": house.canary.url(),
            "sidecar-url": house._sidecar.url(),
            "router-server": {"workers": 2},
            "state": {"file": "state/state.json"},
        });
        merge(&mut file, config);
        merge(
            &mut file,
            json!({"router-server": listen(&house.proxy), "instrumentation": listen(&house.metrics)}),
        );
        house.folder.write("config.json", file.to_string());
        house
    }

    fn path(&self) -> PathBuf {
        self.folder.0.join("state/state.json")
    }

    /// What is on disk.
    fn kept(&self) -> Value {
        serde_json::from_str(&std::fs::read_to_string(self.path()).unwrap()).unwrap()
    }

    async fn start(&self) -> Process {
        self.started(Process::start(&self.folder, &[])).await
    }

    /// Its disk can be made to fail.
    async fn start_with_a_disk(&self) -> Process {
        self.started(Process::start_with_a_disk(&self.folder, &[]))
            .await
    }

    async fn started(&self, mut process: Process) -> Process {
        process.listens(self.proxy.address).await;
        process.listens(self.metrics.address).await;
        // The kernel takes connections before anybody looks at them, or at the state.
        assert_eq!(
            get(self.metrics.address, "/health/live", "").await.status,
            200
        );
        process
    }

    /// `SIGTERM`, and another one.
    async fn restart(&self, mut process: Process) -> Process {
        process.signal("TERM");
        let status = process.ended().await;
        assert!(status.success(), "{status}: {:?}", process.stdout());
        self.start().await
    }

    /// `kill -9`, and another one.
    async fn kill_and_start(&self, mut process: Process) -> Process {
        process.kill();
        self.start().await
    }

    async fn get(&self) -> (u16, String) {
        let response = get(self.proxy.address, "/", "").await;
        (response.status, response.text())
    }

    async fn metric(&self, series: &str) -> f64 {
        let page = get(self.metrics.address, "/metrics", "").await;
        Metrics(page.text()).value(series)
    }

    /// Waits until a series is as it should be.
    async fn shows(&self, series: &str, right: impl Fn(f64) -> bool) {
        soon(async {
            while !right(self.metric(series).await) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }

    async fn ready(&self) -> (u16, Value) {
        let response = get(self.metrics.address, "/health/ready", "").await;
        let body = serde_json::from_str(&response.text()).unwrap();
        (response.status, body)
    }

    /// Starts a router that must not start; what it says, on one line.
    async fn refused(&self) -> String {
        let mut process = Process::start(&self.folder, &[]);
        let status = process.ended().await;
        assert_eq!(status.code(), Some(1), "{:?}", process.stdout());
        let said = process.stderr().join(" ");
        assert!(
            said.contains("state/state.json"),
            "the file is named: {said}"
        );
        said
    }
}

fn limits(limits: Value) -> Value {
    json!({"circuit-breaker": limits})
}

fn named(status: u16) -> impl Fn(&Received) -> Vec<Step> + Send + Sync + 'static {
    move |_| answer(status, "", "canary")
}

/// Clients that ask as fast as they are answered, whatever happens to the router, until this is dropped.
struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
}

impl Load {
    fn on(address: SocketAddr, clients: usize) -> Load {
        let load = Load {
            stop: Arc::default(),
            answered: Arc::default(),
        };
        for _ in 0..clients {
            let (stop, answered) = (load.stop.clone(), load.answered.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let _broken = ask(address, &answered).await;
                    tokio::task::yield_now().await;
                }
            });
        }
        load
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

async fn ask(address: SocketAddr, answered: &AtomicUsize) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        .await?;
    let mut response = Vec::new();
    stream.read_to_end(&mut response).await?;
    if response.starts_with(b"HTTP/1.1") {
        answered.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

// ---- what survives

#[tokio::test]
async fn both_limits_survive_a_stop_to_the_last_count() {
    let house = House::new(
        |request| answer(if request.target() == "/bad" { 500 } else { 200 }, "", ""),
        limits(json!({"error-limit-canary": 40, "request-limit-canary": 100})),
    )
    .await;
    let mut process = house.start().await;
    let (mut requests, mut errors) = (0, 0);
    // One after the other, and as fast as they are let: the file runs ahead all the time.
    for life in 0..4 {
        for i in 0..5 + life {
            let target = if i % 2 == 0 { "/bad" } else { "/" };
            let before = house.canary.count();
            let mut status = 0;
            soon(async {
                while house.canary.count() == before {
                    status = get(house.proxy.address, target, "").await.status;
                }
            })
            .await;
            requests += 1;
            errors += usize::from(status == 500);
        }
        process = house.restart(process).await;
        assert_eq!(
            house.metric(REQUESTS_LEFT).await,
            100.0 - requests as f64,
            "life {life}"
        );
        // Nothing is in flight: what is left is what was not charged.
        assert_eq!(
            house.metric(ERRORS_LEFT).await,
            40.0 - errors as f64,
            "life {life}"
        );
    }
    assert!(errors >= 8, "the canary was used: {errors}");
    process.signal("TERM");
    process.ended().await;
    let kept = &house.kept()["limits"];
    assert_eq!(
        (kept["requests"].as_u64(), kept["errors"].as_u64()),
        (Some(requests as u64), Some(errors as u64))
    );
}

#[tokio::test]
async fn a_canary_that_always_fails_gives_no_more_bad_answers_than_the_limit_in_20_lives() {
    const LIMIT: usize = 300;
    let house = House::new(named(500), limits(json!({"error-limit-canary": LIMIT}))).await;
    let _load = Load::on(house.proxy.address, 12);
    let mut lives = Vec::new();
    for life in 0..20 {
        let before = house.canary.count();
        let mut process = house.start().await;
        // Another moment each time, from the first failure on.
        if life % 2 == 0 {
            let began = Instant::now();
            while house.canary.count() == before && began.elapsed() < Duration::from_millis(300) {
                tokio::task::yield_now().await;
            }
        }
        tokio::time::sleep(Duration::from_micros(fastrand::u64(0..40_000))).await;
        process.kill();
        lives.push(house.canary.count() - before);
        assert!(house.canary.count() <= LIMIT, "{lives:?}");
    }
    // A last one with all the time in the world.
    let _process = house.start().await;
    house.shows(ERRORS_LEFT, |left| left == 0.0).await;
    assert!(house.canary.count() <= LIMIT, "{lives:?}");
    let used = lives.iter().filter(|&&life| life > 0).count();
    assert!(used > 3, "they had something to count: {lives:?}");
}

#[tokio::test]
async fn the_canary_gets_no_more_requests_than_the_limit_in_20_lives() {
    const LIMIT: usize = 2_000;
    let house = House::new(named(200), limits(json!({"request-limit-canary": LIMIT}))).await;
    let load = Load::on(house.proxy.address, 12);
    let mut lives = Vec::new();
    for _ in 0..20 {
        let before = house.canary.count();
        let mut process = house.start().await;
        tokio::time::sleep(Duration::from_micros(fastrand::u64(0..60_000))).await;
        process.kill();
        lives.push(house.canary.count() - before);
    }
    let _process = house.start().await;
    house.shows(REQUESTS_LEFT, |left| left == 0.0).await;
    // Main gets the rest, and goes on getting it.
    let (main, answered) = (house.main.count(), load.answered.load(Ordering::Relaxed));
    eventually(|| house.main.count() > main + 20).await;
    assert!(load.answered.load(Ordering::Relaxed) > answered);
    assert!(house.canary.count() <= LIMIT, "{lives:?}");
    let used = lives.iter().filter(|&&life| life > 0).count();
    assert!(used > 3, "they had something to count: {lives:?}");
}

#[tokio::test]
async fn killed_in_the_moment_in_which_the_limit_is_reached_it_is_reached_for_good() {
    for limit in [1, 2, 5, 15] {
        let house = House::new(named(500), limits(json!({"error-limit-canary": limit}))).await;
        let mut process = house.start().await;
        soon(async { while house.get().await.0 != 500 || house.canary.count() < limit {} }).await;
        // Nobody waits for anything here.
        process.kill();
        let process = house.start().await;
        assert_eq!(house.metric(ERRORS_LEFT).await, 0.0);
        for _ in 0..20 {
            assert_eq!(house.get().await, (200, "main".into()));
        }
        // Nor does it come back.
        let process = house.restart(process).await;
        let _process = house.kill_and_start(process).await;
        assert_eq!(house.get().await, (200, "main".into()));
        assert_eq!(house.canary.count(), limit);
    }
}

#[tokio::test]
async fn killed_with_failures_that_nobody_has_waited_for_none_is_forgotten() {
    const LIMIT: usize = 60;
    let house = House::new(named(500), limits(json!({"error-limit-canary": LIMIT}))).await;
    for failures in [1, 2, 3, 1, 5, 2, 1, 8, 1, 1] {
        let mut process = house.start().await;
        let before = house.canary.count();
        let mut seen = 0;
        for _ in 0..40 * failures {
            seen += usize::from(house.get().await.0 == 500);
            if seen == failures {
                break;
            }
        }
        process.kill();
        assert_eq!(house.canary.count() - before, seen);
        let kept = house.kept()["limits"]["errors"].as_u64().unwrap() as usize;
        assert!(
            kept >= house.canary.count(),
            "{kept} of {}",
            house.canary.count()
        );
    }
    assert!(house.canary.count() <= LIMIT);
}

#[tokio::test]
async fn with_little_traffic_a_kill_costs_little() {
    let house = House::new(
        named(200),
        limits(json!({"error-limit-canary": 15, "request-limit-canary": 100})),
    )
    .await;
    let process = house.start().await;
    // Two a second.
    for _ in 0..5 {
        assert_eq!(house.get().await.1, "canary", "and nobody is held up");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let _process = house.kill_and_start(process).await;
    let requests = 100.0 - 5.0 - house.metric(REQUESTS_LEFT).await;
    let errors = 15.0 - house.metric(ERRORS_LEFT).await;
    assert!((0.0..=2.0 * 2.0).contains(&requests), "{requests}");
    assert!((0.0..=2.0).contains(&errors), "{errors}");
}

#[tokio::test]
async fn the_salt_stays_and_is_each_ones_own() {
    let mut salts = Vec::new();
    for _ in 0..2 {
        let house = House::new(named(200), json!({})).await;
        let process = house.start().await;
        let salt = house.kept()["salt"].as_str().unwrap().to_owned();
        assert_eq!(salt.len(), 32);
        let process = house.restart(process).await;
        assert_eq!(house.kept()["salt"], salt);
        let _process = house.kill_and_start(process).await;
        assert_eq!(house.kept()["salt"], salt);
        salts.push(salt);
    }
    assert_ne!(salts[0], salts[1]);
}

// ---- the breaker

/// One failure opens it, one probe closes it.
fn breaker(wait: &str) -> Value {
    limits(json!({
        "failure-rate-threshold": 50, "minimum-number-of-calls": 1, "permitted-half-open": 1,
        "wait-open": wait, "max-wait-open": "1h"
    }))
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    since.as_millis() as u64
}

impl House {
    /// Of the canary's breaker, as it is on disk: until when, and how often in a row it opened.
    fn breaker(&self) -> (Option<u64>, u64) {
        let breaker = &self.kept()["breakers"]["canary"];
        (
            breaker["open-until-ms"].as_u64(),
            breaker["openings"].as_u64().unwrap(),
        )
    }
}

#[tokio::test]
async fn an_open_breaker_stays_open_over_a_kill_until_the_time_that_it_had() {
    let healthy = Arc::new(AtomicBool::new(false));
    let is_healthy = healthy.clone();
    let house = House::new(
        move |_| {
            answer(
                if is_healthy.load(Ordering::SeqCst) {
                    200
                } else {
                    500
                },
                "",
                "canary",
            )
        },
        breaker("2s"),
    )
    .await;
    let process = house.start().await;
    assert_eq!(house.get().await.0, 500);
    assert_eq!(house.get().await.1, "main", "it is open");
    eventually(|| house.breaker().0.is_some()).await;
    let (until, openings) = house.breaker();
    let until = until.unwrap();
    assert_eq!(openings, 1);
    assert!((now_ms() + 500..now_ms() + 2_300).contains(&until));

    let process = house.kill_and_start(process).await;
    healthy.store(true, Ordering::SeqCst);
    // It is asked all the time, and another kill moves nothing.
    let mut process = Some(process);
    let mut killed = false;
    let probed = soon(async {
        loop {
            let (_, who) = house.get().await;
            if who == "canary" {
                return now_ms();
            }
            if !killed && now_ms() + 1_000 > until {
                killed = true;
                process = Some(house.kill_and_start(process.take().unwrap()).await);
            }
        }
    })
    .await;
    // A millisecond is lost in writing it.
    assert!(probed + 2 >= until, "{} ms early", until - probed);
    assert!(probed < until + 1_000, "{} ms late", probed - until);
    assert_eq!(house.get().await.1, "canary", "one good probe closes it");
    eventually(|| house.breaker().0.is_none()).await;
    let _process = house.kill_and_start(process.unwrap()).await;
    assert_eq!(house.get().await.1, "canary", "and closed it stays");
}

#[tokio::test]
async fn a_breaker_that_opens_again_waits_longer_after_a_kill_too() {
    let house = House::new(named(500), breaker("300ms")).await;
    let mut process = house.start().await;
    for opening in 1..=4 {
        // The first one, or the only probe.
        soon(async { while house.get().await.0 != 500 {} }).await;
        eventually(|| house.breaker().1 == opening).await;
        let left = house.breaker().0.unwrap().saturating_sub(now_ms());
        let wait = 300 << (opening - 1);
        assert!(left <= wait * 11 / 10 + 2, "{left} of {wait}");
        assert!(left + 250 > wait, "{left} of {wait}");
        process = match opening % 2 {
            0 => house.restart(process).await,
            _ => house.kill_and_start(process).await,
        };
        assert_eq!(house.breaker().1, opening, "it does not begin anew");
    }
    assert_eq!(house.canary.count(), 4);
}

// ---- the file

#[tokio::test]
async fn the_first_start_makes_a_file_that_nobody_else_may_read() {
    let house = House::new(named(200), limits(json!({"error-limit-canary": 15}))).await;
    assert!(!house.path().exists());
    let process = house.start().await;
    let mode = |path: PathBuf| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(house.path()), 0o600);
    assert_eq!(house.kept()["kind"], "canary-router state");
    let _process = house.restart(process).await;
    assert_eq!(mode(house.path()), 0o600);
    let (status, body) = house.ready().await;
    assert_eq!(status, 200);
    assert_eq!(
        body["state"],
        json!({"file": "state/state.json", "written": true})
    );
}

#[tokio::test]
async fn without_a_state_file_nothing_is_said_of_one() {
    let house = House::new(named(200), json!({"state": {"file": ""}})).await;
    let _process = house.start().await;
    let (status, body) = house.ready().await;
    assert_eq!((status, body.get("state")), (200, None));
    let page = get(house.metrics.address, "/metrics", "").await.text();
    assert!(!page.contains("state_writes"), "{page}");
    assert_eq!(
        std::fs::read_dir(house.folder.0.join("state"))
            .unwrap()
            .count(),
        0
    );
}

#[tokio::test]
async fn a_file_that_cannot_be_understood_is_refused_by_name_and_left_as_it_is() {
    let house = House::new(named(200), json!({})).await;
    let mut process = house.start().await;
    process.signal("TERM");
    process.ended().await;
    let whole = std::fs::read(house.path()).unwrap();
    let text = String::from_utf8(whole.clone()).unwrap();
    let newer = text.replace("\"version\":2", "\"version\":3");
    for (content, expected) in [
        (&whole[..whole.len() / 2], "torn or damaged"),
        (&whole[..whole.len() - 2], "torn or damaged"),
        (b"", "torn or damaged"),
        (b"what somebody wrote", "torn or damaged"),
        (b"{\"main-target\": \"http://a\"}", "not a state file"),
        (b"[]", "not a state file"),
        (b"\x7fELF\x00\xff\xfe\x80", "not a state file"),
        (newer.as_bytes(), "has version 3"),
    ] {
        std::fs::write(house.path(), content).unwrap();
        let before = std::fs::metadata(house.path()).unwrap();
        let said = house.refused().await;
        assert!(said.contains(expected), "{said}");
        assert!(
            ["move it away", "must name a file of its own"]
                .iter()
                .any(|way_out| said.contains(way_out)),
            "what to do: {said}"
        );
        let after = std::fs::metadata(house.path()).unwrap();
        assert_eq!(std::fs::read(house.path()).unwrap(), content);
        assert_eq!(
            (before.ino(), before.mtime_nsec(), before.mode()),
            (after.ino(), after.mtime_nsec(), after.mode())
        );
    }
    // Moved away, as it says, it begins anew.
    std::fs::rename(house.path(), house.folder.0.join("old.json")).unwrap();
    let _process = house.start().await;
    assert_ne!(std::fs::read(house.path()).unwrap(), newer.as_bytes());
}

#[tokio::test]
async fn what_is_there_and_cannot_be_read_is_not_taken_for_nothing() {
    let house = House::new(named(200), json!({})).await;
    // Tests may run as root, who may read everything; a folder is no file for root either.
    std::fs::create_dir(house.path()).unwrap();
    let said = house.refused().await;
    assert!(said.contains("cannot be read"), "{said}");
    assert!(said.contains("/state/file"), "what to do: {said}");
    assert!(house.path().is_dir());
}

#[tokio::test]
async fn a_folder_that_is_not_there_is_a_mistake_and_not_an_empty_one() {
    let house = House::new(named(200), json!({})).await;
    std::fs::remove_dir(house.folder.0.join("state")).unwrap();
    let said = house.refused().await;
    assert!(said.contains("its folder is not there"), "{said}");
    // Nor is a file in its place.
    house.folder.write("state", "x");
    let said = house.refused().await;
    assert!(said.contains("cannot be read"), "{said}");
}

#[tokio::test]
async fn a_link_stays_one_and_what_it_leads_to_is_written() {
    let house = House::new(named(200), limits(json!({"request-limit-canary": 10}))).await;
    let target = house.folder.0.join("target.json");
    // Where it leads nowhere, nothing is begun in its place.
    std::os::unix::fs::symlink(&target, house.path()).unwrap();
    assert!(house.refused().await.contains("cannot be read"));
    std::fs::remove_file(house.path()).unwrap();
    let mut process = house.start().await;
    process.signal("TERM");
    process.ended().await;
    std::fs::rename(house.path(), &target).unwrap();
    std::os::unix::fs::symlink(&target, house.path()).unwrap();
    let process = house.start().await;
    assert_eq!(house.get().await.1, "canary");
    let process = house.restart(process).await;
    assert_eq!(house.metric(REQUESTS_LEFT).await, 9.0);
    assert!(house.path().is_symlink());
    assert!(target.is_file() && !target.is_symlink());
    drop(process);
}

/// Was: who could not take the lock at first never tried again, and two routers wrote one file in turns.
#[tokio::test]
async fn a_file_that_could_not_be_taken_at_first_is_taken_when_it_is_written() {
    let house = House::new(named(200), limits(json!({"request-limit-canary": 1_000}))).await;
    let lock = house.folder.0.join("state/state.json.lock");
    // Nobody can write to a folder.
    std::fs::create_dir(&lock).unwrap();
    let _process = house.start().await;
    std::fs::remove_dir(&lock).unwrap();
    soon(async {
        while !lock.is_file() {
            assert_eq!(house.get().await.0, 200);
        }
    })
    .await;
    let said = house.refused().await;
    assert!(said.contains("another canary-router uses it"), "{said}");
}

#[tokio::test]
async fn a_second_router_with_the_same_file_is_refused_by_name() {
    let house = House::new(named(200), limits(json!({"request-limit-canary": 10}))).await;
    let mut process = house.start().await;
    let said = house.refused().await;
    assert!(said.contains("another canary-router uses it"), "{said}");
    assert!(said.contains("/state/file"), "what to do: {said}");
    assert_eq!(house.get().await.1, "canary");
    // The lock goes with its process, however that ends.
    process.kill();
    let _process = house.start().await;
}

#[tokio::test]
async fn a_write_that_a_crash_cut_off_leaves_the_old_file_whole() {
    let house = House::new(named(200), limits(json!({"request-limit-canary": 100}))).await;
    let process = house.start().await;
    for _ in 0..3 {
        house.get().await;
    }
    let process = house.restart(process).await;
    let left = house.metric(REQUESTS_LEFT).await;
    drop(process);
    // As it is between the write and the rename, or in the middle of the write.
    let salt = house.kept()["salt"].clone();
    let whole = std::fs::read(house.path()).unwrap();
    for cut in [0, whole.len() / 2, whole.len()] {
        let beside = house.folder.0.join("state/state.json.new");
        std::fs::write(&beside, &whole[..cut]).unwrap();
        let process = house.start().await;
        assert_eq!(house.kept()["salt"], salt);
        assert!(!beside.exists(), "it was used and renamed");
        assert!(house.metric(REQUESTS_LEFT).await > left - 10.0);
        house.restart(process).await;
    }
}

// ---- how often

#[tokio::test]
async fn an_idle_router_writes_nothing() {
    let house = House::new(
        named(200),
        limits(json!({"error-limit-canary": 15, "request-limit-canary": 1_000_000})),
    )
    .await;
    let _process = house.start().await;
    let address = house.proxy.address;
    together((0..50).map(|_| async move { get(address, "/", "").await.status })).await;
    // It comes down to nothing ahead of time, which takes a few seconds.
    let settled = |file: std::fs::Metadata| (file.ino(), file.mtime(), file.mtime_nsec());
    let look = || settled(std::fs::metadata(house.path()).unwrap());
    let mut last = (look(), Instant::now());
    soon(async {
        while last.1.elapsed() < Duration::from_secs(2) {
            tokio::time::sleep(Duration::from_millis(50)).await;
            if look() != last.0 {
                last = (look(), Instant::now());
            }
        }
    })
    .await;
    let written = house.metric(WRITTEN).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(house.metric(WRITTEN).await, written);
    assert_eq!(look(), last.0);
}

/// Files written per second while `per_second` requests go to the canary, each of which takes that long.
async fn writes_per_second(per_second: u32, takes: Duration, config: Value) -> f64 {
    let house = House::new(
        move |_| [vec![Step::Pause(takes)], answer(200, "", "canary")].concat(),
        limits(config),
    )
    .await;
    let _process = house.start().await;
    let answered = Arc::<AtomicUsize>::default();
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / per_second);
    let began = Instant::now();
    let mut first = None;
    while began.elapsed() < Duration::from_secs(5) {
        ticks.tick().await;
        let (address, answered) = (house.proxy.address, answered.clone());
        tokio::spawn(async move { ask(address, &answered).await });
        if first.is_none() && began.elapsed() > Duration::from_secs(2) {
            first = Some((
                house.metric(WRITTEN).await,
                house.canary.count(),
                Instant::now(),
            ));
        }
    }
    let (writes, canary, since) = first.unwrap();
    let seconds = since.elapsed().as_secs_f64();
    let rate = (house.canary.count() - canary) as f64 / seconds;
    assert!(rate > f64::from(per_second) / 2.0, "only {rate} a second");
    (house.metric(WRITTEN).await - writes) / seconds
}

#[tokio::test]
async fn under_a_steady_load_it_writes_a_few_times_a_second() {
    for (takes, config) in [
        (
            0,
            json!({"error-limit-canary": 1_000, "request-limit-canary": 1_000_000}),
        ),
        (
            50,
            json!({"error-limit-canary": 1_000, "request-limit-canary": 1_000_000}),
        ),
        (
            50,
            json!({"error-limit-canary": 60, "request-limit-canary": 10_000}),
        ),
    ] {
        let takes = Duration::from_millis(takes);
        let writes = writes_per_second(200, takes, config.clone()).await;
        assert!(writes <= 6.0, "{takes:?} {config}: {writes:.1} a second");
    }
}

// ---- a disk that fails

/// How often the log says this.
fn said(process: &Process, what: &str) -> usize {
    let log = process.log();
    log.iter()
        .filter(|line| line.to_string().contains(what))
        .count()
}

const CANNOT: &str = "the state cannot be written";
const AGAIN: &str = "the state is on disk again";

/// What holds while nothing can be written, for whatever reason; waits for a few attempts.
async fn goes_on_without(house: &House, process: &Process, error: &str) {
    soon(async {
        while house.metric(NOT_WRITTEN).await < 1.0 {
            house.get().await;
        }
    })
    .await;
    house.shows(NOT_WRITTEN, |failed| failed >= 3.0).await;
    for _ in 0..30 {
        let (status, who) = house.get().await;
        assert_eq!((status, who.as_str()), (200, "canary"), "nobody is held up");
    }
    assert_eq!(said(process, CANNOT), 1, "{:#?}", process.log());
    let (status, body) = house.ready().await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(body["state"]["written"], false, "{body}");
    assert_eq!(body["state"]["file"], "state/state.json");
    let told = body["state"]["error"].as_str().unwrap();
    assert!(told.contains(error), "{told}");
    let (_, shown) = admin(house.metrics.address, "GET", "/status", "").await;
    assert_eq!(shown["state"]["written"], false, "{shown}");
}

/// What holds afterwards.
async fn is_well_again(house: &House, process: &Process) {
    soon(async { while house.ready().await.1["state"]["written"] != true {} }).await;
    assert_eq!(house.ready().await.1["state"].get("error"), None);
    eventually(|| said(process, AGAIN) == 1).await;
    assert_eq!(said(process, CANNOT), 1);
}

#[tokio::test]
async fn on_a_full_disk_it_goes_on_and_says_so_and_nothing_is_lost_when_there_is_room_again() {
    let house = House::new(
        named(200),
        limits(json!({"error-limit-canary": 1_000, "request-limit-canary": 1_000})),
    )
    .await;
    let process = house.start_with_a_disk().await;
    assert_eq!(house.get().await.1, "canary");
    process.may_write(false);
    goes_on_without(&house, &process, "File too large").await;
    assert!(house.kept().is_object(), "the old one is whole");
    process.may_write(true);
    is_well_again(&house, &process).await;
    // What was counted meanwhile is there, also for one that is killed.
    let used = house.canary.count() as f64;
    let process = house.kill_and_start(process).await;
    assert!(house.metric(REQUESTS_LEFT).await <= 1_000.0 - used);
    let left = house.metric(REQUESTS_LEFT).await;
    let _process = house.restart(process).await;
    assert_eq!(house.metric(REQUESTS_LEFT).await, left);
}

#[tokio::test]
async fn a_folder_that_goes_and_comes_back_is_the_same() {
    let house = House::new(
        named(200),
        limits(json!({"error-limit-canary": 1_000, "request-limit-canary": 1_000})),
    )
    .await;
    let process = house.start().await;
    let (here, away) = (house.folder.0.join("state"), house.folder.0.join("away"));
    std::fs::rename(&here, &away).unwrap();
    goes_on_without(&house, &process, "No such file or directory").await;
    std::fs::rename(&away, &here).unwrap();
    is_well_again(&house, &process).await;
    let used = house.canary.count() as f64;
    let _process = house.restart(process).await;
    assert_eq!(house.metric(REQUESTS_LEFT).await, 1_000.0 - used);
}

#[tokio::test]
async fn a_disk_that_is_full_from_the_start_keeps_nobody_from_starting() {
    let house = House::new(named(200), limits(json!({"request-limit-canary": 1_000}))).await;
    let process = house.start().await;
    for _ in 0..7 {
        assert_eq!(house.get().await.1, "canary");
    }
    let process = house.restart(process).await;
    drop(process);
    let kept = std::fs::read(house.path()).unwrap();
    let process = Process::start_on_a_full_disk(&house.folder, &[]);
    let process = house.started(process).await;
    // What is on disk can be read all the same.
    assert!(house.metric(REQUESTS_LEFT).await <= 993.0);
    goes_on_without(&house, &process, "File too large").await;
    assert_eq!(std::fs::read(house.path()).unwrap(), kept);
    process.may_write(true);
    is_well_again(&house, &process).await;
}

#[tokio::test]
async fn the_limits_hold_as_long_as_the_process_where_nothing_can_be_written() {
    let house = House::new(named(500), limits(json!({"error-limit-canary": 40}))).await;
    let process = Process::start_on_a_full_disk(&house.folder, &[]);
    let mut process = house.started(process).await;
    let address = house.proxy.address;
    together((0..200).map(|_| async move { get(address, "/", "").await.status })).await;
    soon(async { while house.get().await.1 != "main" {} }).await;
    assert_eq!(house.canary.count(), 40);
    // And it ends as it should.
    process.signal("TERM");
    assert!(process.ended().await.success());
    assert!(!house.path().exists());
}

#[tokio::test]
async fn a_disk_that_is_well_again_is_noticed_without_traffic() {
    let house = House::new(named(200), limits(json!({"error-limit-canary": 15}))).await;
    let process = house.start_with_a_disk().await;
    process.may_write(false);
    // Few at a time, and then nobody: in the end the counts are what was written at first.
    let address = house.proxy.address;
    together((0..8).map(|_| async move { get(address, "/", "").await.status })).await;
    house.shows(NOT_WRITTEN, |failed| failed >= 1.0).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    process.may_write(true);
    is_well_again(&house, &process).await;
}
