//! A process that takes the place of another one (`SIGUSR2`), and one that begins with the sockets of a service
//! manager: no connection is lost, and what was counted is not forgotten.

use std::{
    os::unix::net::UnixDatagram,
    path::PathBuf,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use tokio::sync::watch;

use crate::{
    drain::{Manner, Story, client},
    support::*,
};

/// A router and those that come after it. The last one is killed when this is dropped.
pub struct Line {
    pub program: Program,
    /// The process that serves.
    pub current: u32,
    generations: usize,
}

impl Line {
    pub async fn start(config: Value) -> Line {
        let mut file = json!({"log": {"level": "info"}});
        merge(&mut file, config);
        Line::of(Program::start(file).await)
    }

    /// The same, and nobody reads what they say.
    pub async fn start_stalled(config: Value) -> Line {
        Line::of(Program::start_stalled(config).await)
    }

    fn of(program: Program) -> Line {
        Line {
            current: program.process.id(),
            program,
            generations: 0,
        }
    }

    pub fn said(&self, text: &str) -> Vec<Value> {
        let lines = self.program.process.stdout().into_iter();
        lines
            .filter(|line| line.contains(text))
            .map(|line| serde_json::from_str(&line).unwrap())
            .collect()
    }

    /// Has the current process start one that takes its place, and waits until it has.
    pub async fn succeed(&mut self) {
        self.generations += 1;
        let has_failed = || self.said("this process goes on as before").len();
        let failures = has_failed();
        signal(self.current, "USR2");
        eventually(|| {
            let stderr = self.program.process.stderr();
            assert_eq!(has_failed(), failures, "{stderr:?}");
            self.said("another process has taken the place").len() == self.generations
        })
        .await;
        let said = self.said("another process has taken the place");
        let process = said[self.generations - 1]["process"].as_u64().unwrap();
        self.current = u32::try_from(process).unwrap();
    }

    pub async fn metrics(&self) -> Metrics {
        Metrics(
            get(self.program.instrumentation, "/metrics", "")
                .await
                .text(),
        )
    }

    pub async fn status(&self) -> Value {
        admin(self.program.instrumentation, "GET", "/status", "")
            .await
            .1
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let _best_effort = Command::new("kill")
            .args(["-9", &self.current.to_string()])
            .status();
    }
}

pub fn signal(process: u32, name: &str) {
    let status = Command::new("kill")
        .args([format!("-{name}"), process.to_string()])
        .status();
    assert!(status.unwrap().success(), "kill -{name} {process}");
}

/// The process that this one has started.
pub fn child_of(process: u32) -> Option<u32> {
    let all = std::fs::read_dir("/proc").unwrap().map(Result::unwrap);
    let mut numbers = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    numbers.find(|number| {
        // It may have ended meanwhile.
        let stat = std::fs::read_to_string(format!("/proc/{number}/stat")).unwrap_or_default();
        // proc(5): behind the name, in brackets, and the state.
        let behind = stat.rsplit_once(") ").map(|(_, rest)| rest[2..].to_owned());
        behind.is_some_and(|rest| rest.starts_with(&format!("{process} ")))
    })
}

/// Whether a process is gone, or waits for somebody to ask how it ended.
pub fn is_gone(process: u32) -> bool {
    match std::fs::read_to_string(format!("/proc/{process}/stat")) {
        // proc(5): behind the name, in brackets.
        Ok(stat) => stat
            .rsplit_once(") ")
            .is_some_and(|(_, rest)| rest.starts_with('Z')),
        Err(_) => true,
    }
}

/// Clients of every manner, until they are told to end.
struct Load {
    answered: Arc<AtomicUsize>,
    goes: watch::Sender<bool>,
    clients: Vec<tokio::task::JoinHandle<Story>>,
}

impl Load {
    fn on(address: std::net::SocketAddr, clients: usize) -> Load {
        let answered = Arc::new(AtomicUsize::new(0));
        let (goes, gone) = watch::channel(false);
        let manners = [
            Manner::Fresh,
            Manner::KeepAlive,
            Manner::Leisurely,
            Manner::Pipelining,
        ];
        let clients =
            manners.iter().cycle().take(clients).map(|manner| {
                tokio::spawn(client(*manner, address, answered.clone(), gone.clone()))
            });
        Load {
            clients: clients.collect(),
            answered,
            goes,
        }
    }

    async fn goes_on(&self) {
        let before = self.answered.load(Ordering::Relaxed);
        eventually(|| self.answered.load(Ordering::Relaxed) > before + 300).await;
    }

    /// When nobody listens any more. How many were answered.
    async fn ends(self) -> usize {
        self.goes.send_replace(true);
        let mut answered = 0;
        for client in self.clients {
            let story = soon(client).await.unwrap();
            assert_eq!(story.lost, [""; 0]);
            answered += story.answered;
        }
        answered
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_upgrades_under_load_cost_no_request() {
    let main = Upstream::named("main", 200).await;
    let mut line = Line::start(json!({
        "main-target": main.url(),
        "canary-target": main.url(),
        "log": {"access": "json"}
    }))
    .await;
    let load = Load::on(line.program.address, 32);
    let mut before = Vec::new();
    for _ in 0..10 {
        load.goes_on().await;
        before.push(line.current);
        line.succeed().await;
    }
    load.goes_on().await;
    eventually(|| line.program.process.has_ended() && before.iter().all(|old| is_gone(*old))).await;
    signal(line.current, "TERM");
    eventually(|| is_gone(line.current)).await;
    let answered = load.ends().await;
    assert_eq!(main.count(), answered);
    assert_eq!(
        line.said(r#""msg":"request""#).len(),
        answered,
        "lines in the access log"
    );
    assert_eq!(line.program.process.stderr(), [""; 0]);
}

#[tokio::test]
async fn what_is_in_flight_ends_where_it_began_while_the_new_process_serves() {
    let gate = Gate::shut();
    let main = {
        let gate = gate.clone();
        Upstream::start(move |request| match request.target() {
            "/slow" => vec![
                Step::Write("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nbegin".into()),
                Step::Wait(gate.clone()),
                Step::Write("-end-".into()),
            ],
            _ => answer(200, "", "main"),
        })
        .await
    };
    let mut line = Line::start(json!({
        "main-target": main.url(), "canary-target": main.url(),
        "router-server": {"shutdown-timeout": "1h"}
    }))
    .await;
    let mut slow = Client::connect(line.program.address).await;
    slow.send("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n").await;
    eventually(|| main.count() == 1).await;
    line.succeed().await;
    let answer = get(line.program.address, "/", "").await;
    assert_eq!(answer.text(), "main");
    // Health, metrics and commands are the new one's, on connections of before too.
    let status = line.status().await;
    assert_eq!(status["targets"]["main"]["inflight"], 0, "{status}");
    assert!(!line.program.process.has_ended());
    gate.open();
    let response = slow.response("GET").await.unwrap();
    assert_eq!(
        (response.text().as_str(), response.complete),
        ("begin-end-", true)
    );
    eventually(|| line.program.process.has_ended()).await;
}

#[tokio::test]
async fn a_new_process_that_cannot_start_leaves_the_old_one_as_it_was() {
    let main = Upstream::named("main", 200).await;
    let mut line = Line::start(json!({
        "main-target": main.url(), "canary-target": main.url(),
        "circuit-breaker": {"request-limit-canary": 5}
    }))
    .await;
    line.program.write("{");
    signal(line.current, "USR2");
    eventually(|| line.said("this process goes on as before").len() == 1).await;
    let said = line.said("this process goes on as before");
    assert!(
        said[0]["error"]
            .as_str()
            .unwrap()
            .contains("it has ended (exit status: 1)"),
        "{said:?}"
    );
    // In its own words.
    eventually(|| !line.program.process.stderr().is_empty()).await;
    assert!(line.program.process.stderr()[0].contains("not valid JSON"));
    assert_eq!(get(line.program.address, "/", "").await.text(), "main");
    let (code, _) = admin(line.program.instrumentation, "POST", "/limits/reset", "").await;
    assert_eq!(code, 200, "it decides as before");

    line.program.rewrite(json!({}));
    line.succeed().await;
    assert_eq!(get(line.program.address, "/", "").await.text(), "main");
}

/// The errors that are reserved when the old process stops counting come back when its requests have ended well.
async fn counts_go_on(state: Value) {
    let gate = Gate::shut();
    let main = Upstream::named("main", 200).await;
    let canary = {
        let gate = gate.clone();
        Upstream::start(move |request| {
            let status = match request.target() {
                "/bad" => 500,
                _ => 200,
            };
            let waits = request.target().starts_with("/slow");
            let wait = waits.then(|| Step::Wait(gate.clone()));
            let status = if request.target() == "/slow-bad" {
                500
            } else {
                status
            };
            wait.into_iter()
                .chain(answer(status, "", "canary"))
                .collect()
        })
        .await
    };
    let mut line = Line::start(json!({
        "main-target": main.url(), "canary-target": canary.url(),
        "circuit-breaker": {"request-limit-canary": 100, "error-limit-canary": 10},
        "traffic": {"weight": 100},
        "rollout": {"steps": [{"weight": 50, "for": "1h"}, {"weight": 100, "for": "1h"}]},
        "state": state,
        "router-server": {"shutdown-timeout": "1h"}
    }))
    .await;
    let port = line.program.instrumentation;
    let (code, _) = admin(port, "PUT", "/traffic/weight", r#"{"weight": 100}"#).await;
    assert_eq!(code, 200);
    let mut clients = Vec::new();
    for target in ["/bad", "/bad", "/slow", "/slow", "/slow-bad"] {
        // With a state file main answers until more may be counted by what is on disk.
        let before = canary.count();
        while canary.count() == before {
            let asked = main.count();
            let mut client = Client::connect(line.program.address).await;
            client
                .send(format!("GET {target} HTTP/1.1\r\nhost: a\r\n\r\n"))
                .await;
            eventually(|| canary.count() > before || main.count() > asked).await;
            clients.push((target, client));
        }
    }
    let mut slow = Vec::new();
    for (target, mut client) in clients {
        match target {
            "/bad" => drop(client.response("GET").await.unwrap()),
            _ => slow.push(client),
        }
    }
    let limits = |status: &Value| {
        let limits = &status["limits"];
        (
            limits["requests_remaining"].as_u64(),
            limits["errors_remaining"].as_u64(),
        )
    };
    assert_eq!(limits(&line.status().await), (Some(95), Some(5)));

    line.succeed().await;
    let status = line.status().await;
    assert_eq!(limits(&status), (Some(95), Some(5)), "{status}");
    assert_eq!(status["weight"], 100);
    let decisions = status["decisions"].as_array().unwrap();
    assert_eq!(decisions[0]["why"], "set-weight", "{decisions:?}");
    assert_eq!(get(line.program.address, "/", "").await.text(), "canary");

    gate.open();
    for mut client in slow {
        assert!(client.response("GET").await.unwrap().complete);
    }
    eventually(|| line.program.process.has_ended()).await;
    soon(async {
        while limits(&line.status().await) != (Some(94), Some(7)) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    // And so it is for the one after that.
    line.succeed().await;
    assert_eq!(limits(&line.status().await), (Some(94), Some(7)));
    let left = line
        .metrics()
        .await
        .value("canary_router_error_budget_remaining");
    assert_eq!(left, 7.0);
}

#[tokio::test]
async fn counts_and_weight_go_on_in_the_new_process() {
    counts_go_on(json!({})).await;
}

#[tokio::test]
async fn counts_and_weight_go_on_with_a_state_file_too() {
    let folder = Folder::new();
    let file = folder.0.join("state.json");
    counts_go_on(json!({"file": file})).await;
    assert!(file.is_file());
}

#[tokio::test]
async fn the_new_process_may_have_other_workers_and_another_port() {
    let main = Upstream::named("main", 200).await;
    let mut line = Line::start(json!({
        "main-target": main.url(), "canary-target": main.url(),
        "router-server": {"workers": 2}
    }))
    .await;
    let first = line.program.address;
    for workers in [5, 1, 3] {
        line.program
            .rewrite(json!({"router-server": {"workers": workers}}));
        line.succeed().await;
        // Whichever socket they come to.
        let answers = together((0..40).map(|_| get(first, "/", ""))).await;
        assert!(answers.iter().all(|answer| answer.text() == "main"));
    }
    let other = Port::reserve();
    line.program
        .rewrite(json!({"router-server": {"port": other.number()}}));
    let before = line.current;
    line.succeed().await;
    assert_eq!(get(other.address, "/", "").await.text(), "main");
    eventually(|| is_gone(before)).await;
    let refused = std::net::TcpStream::connect(first).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
}

/// Puts a pipe in the place of the file: who reads it waits for who writes.
fn pipe_for_configuration(line: &Line) -> PathBuf {
    let pipe = line.program.folder().join("config.json");
    std::fs::remove_file(&pipe).unwrap();
    let made = Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());
    pipe
}

#[tokio::test]
async fn sigterm_while_the_new_process_comes_up_ends_both() {
    let main = Upstream::named("main", 200).await;
    let mut line =
        Line::start(json!({"main-target": main.url(), "canary-target": main.url()})).await;
    // Nobody ever writes into it: the new process waits here.
    pipe_for_configuration(&line);
    signal(line.current, "USR2");
    eventually(|| line.said("SIGUSR2: starting the process").len() == 1).await;
    signal(line.current, "TERM");
    let status = line.program.process.ended().await;
    assert_eq!(status.code(), Some(0));
    assert!(std::net::TcpStream::connect(line.program.address).is_err());
}

#[tokio::test]
async fn sighup_while_the_new_process_comes_up_is_not_forgotten() {
    let main = Upstream::named("main", 200).await;
    let line = Line::start(json!({"main-target": main.url(), "canary-target": main.url()})).await;
    let pipe = pipe_for_configuration(&line);
    signal(line.current, "USR2");
    // This waits until the new process reads.
    let says_nothing = tokio::task::spawn_blocking({
        let pipe = pipe.clone();
        move || std::fs::OpenOptions::new().write(true).open(pipe).unwrap()
    });
    let says_nothing = soon(says_nothing).await.unwrap();
    line.program.rewrite(json!({"trim-prefix": "/a"}));
    signal(line.current, "HUP");
    // Said while the other one is waited for: two signals come in no order.
    signal(line.current, "USR2");
    eventually(|| pending_signals(line.current) == 0).await;
    drop(says_nothing);
    eventually(|| line.said("this process goes on as before").len() == 1).await;
    eventually(|| line.said("was read again and is in force").len() == 1).await;
}

/// Signals that a process has not looked at yet (proc(5), `ShdPnd`).
fn pending_signals(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let pending = status.lines().find_map(|line| line.strip_prefix("ShdPnd:"));
    u64::from_str_radix(pending.unwrap().trim(), 16).unwrap()
}

/// A router that a service manager starts with two sockets; by the shell, since a test cannot say which number a
/// descriptor is to have.
struct Managed {
    folder: Folder,
    proxy: std::net::TcpListener,
    instrumentation: std::net::TcpListener,
}

impl Managed {
    fn new(config: Value) -> Managed {
        let listen = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (proxy, instrumentation) = (listen(), listen());
        let port = |listener: &std::net::TcpListener| listener.local_addr().unwrap().port();
        let mut file = json!({
            "router-server": {"host": "127.0.0.1", "port": port(&proxy), "workers": 2},
            "instrumentation": {"host": "127.0.0.1", "port": port(&instrumentation)},
            "log": {"level": "info"}
        });
        merge(&mut file, config);
        let folder = Folder::new();
        folder.write("config.json", file.to_string());
        Managed {
            folder,
            proxy,
            instrumentation,
        }
    }

    fn start(&self, names: &str, environment: &[(&str, &str)]) -> Process {
        use std::os::fd::AsRawFd;
        let numbers = [&self.proxy, &self.instrumentation].map(|listener| {
            uapi::fcntl_setfd(listener.as_raw_fd(), 0).unwrap();
            listener.as_raw_fd().to_string()
        });
        let line = r#"exec 3<&"$1" 4<&"$2"; export LISTEN_PID=$$; exec "$3""#;
        let mut all = vec![("LISTEN_FDS", "2"), ("LISTEN_FDNAMES", names)];
        all.extend(environment);
        Process::start_by_shell(line, &[&*numbers[0], &*numbers[1]], &all, &self.folder)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarts_under_load_with_the_sockets_of_a_service_manager_cost_no_request() {
    let main = Upstream::named("main", 200).await;
    let managed = Managed::new(json!({"main-target": main.url(), "canary-target": main.url()}));
    let address = managed.proxy.local_addr().unwrap();
    let load = Load::on(address, 32);
    let mut process = managed.start("proxy:instrumentation", &[]);
    for round in 0..5 {
        load.goes_on().await;
        process.signal("TERM");
        let status = process.ended().await;
        assert_eq!(status.code(), Some(0), "{:?}", process.stdout());
        assert_eq!(process.stderr(), [""; 0]);
        // By their ports, where their names say nothing.
        let names = ["a.socket:b.socket", "proxy:instrumentation"][round % 2];
        process = managed.start(names, &[]);
    }
    load.goes_on().await;
    let port = managed.instrumentation.local_addr().unwrap();
    assert_eq!(get(port, "/health/live", "").await.status, 200);
    // And handed on to a process of a new version.
    process.signal("USR2");
    let is_handed = |process: &Process| {
        let log = process.log();
        let said = "another process has taken the place of this one, which drains";
        let said = log.iter().find(|line| line["msg"] == said);
        said.and_then(|line| line["process"].as_u64())
    };
    eventually(|| is_handed(&process).is_some()).await;
    let successor = u32::try_from(is_handed(&process).unwrap()).unwrap();
    load.goes_on().await;
    // From here on nobody begins; what the manager's sockets keep by then is for one more process.
    load.goes.send_replace(true);
    signal(successor, "TERM");
    eventually(|| is_gone(successor)).await;
    let _last = managed.start("proxy:instrumentation", &[]);
    assert!(load.ends().await > 2_000);
}

#[tokio::test]
async fn a_socket_that_nobody_has_configured_is_refused_with_what_to_do() {
    let managed = Managed::new(json!({
        "main-target": "http://127.0.0.1:1", "canary-target": "http://127.0.0.1:1"
    }));
    let mut process = managed.start("instrumentation:proxy", &[]);
    assert_eq!(process.ended().await.code(), Some(1));
    let said = process.stderr().join("\n");
    let port = managed.proxy.local_addr().unwrap().to_string();
    assert!(
        said.contains(&port) && said.contains("/instrumentation/port is another one"),
        "{said}"
    );
}

#[tokio::test]
async fn the_service_manager_is_told_what_goes_on() {
    let main = Upstream::named("main", 200).await;
    let managed = Managed::new(json!({"main-target": main.url(), "canary-target": main.url()}));
    let path = managed.folder.0.join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let told = || {
        let mut said = [0; 512];
        let length = socket.recv(&mut said).unwrap();
        String::from_utf8_lossy(&said[..length]).into_owned()
    };
    let environment = [("NOTIFY_SOCKET", path.to_str().unwrap())];
    let mut process = managed.start("proxy:instrumentation", &environment);
    assert_eq!(told().trim(), "READY=1");
    process.signal("HUP");
    let reloading = told();
    let (word, since) = reloading.trim().split_once('\n').unwrap();
    assert_eq!(word, "RELOADING=1");
    let since = since.strip_prefix("MONOTONIC_USEC=").unwrap();
    assert!(since.parse::<u64>().unwrap() > 0);
    assert_eq!(told().trim(), "READY=1");
    process.signal("USR2");
    // The order of the two is nobody's.
    let said = [told(), told()];
    let main_pid = said
        .iter()
        .find_map(|said| said.trim().strip_prefix("MAINPID="))
        .unwrap();
    assert!(said.iter().any(|said| said.trim() == "READY=1"), "{said:?}");
    let successor: u32 = main_pid.parse().unwrap();
    eventually(|| process.has_ended()).await;
    signal(successor, "TERM");
    assert_eq!(told().trim(), "STOPPING=1");
    eventually(|| is_gone(successor)).await;
}
