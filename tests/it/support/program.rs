//! The real program on free ports, and what the system knows of it.

use std::{net::SocketAddr, process::Command, time::Duration};

use serde_json::{Value, json};

use super::{Folder, Port, Process, merge};

/// A running `canary-router` that takes requests.
pub struct Program {
    pub process: Process,
    pub address: SocketAddr,
    pub instrumentation: SocketAddr,
    file: Value,
    folder: Folder,
    _ports: [Port; 2],
}

impl Program {
    /// Starts it with two workers. `config` needs the targets; the listeners are on free ports.
    pub async fn start(config: Value) -> Program {
        Program::spawn(config, Process::start).await
    }

    /// The same, and nobody reads its stdout.
    pub async fn start_stalled(config: Value) -> Program {
        Program::spawn(config, Process::start_stalled).await
    }

    /// The same, with room for that many descriptors.
    pub async fn start_with_descriptors(descriptors: usize, config: Value) -> Program {
        Program::spawn(config, |folder, arguments| {
            Process::start_with_descriptors(descriptors, folder, arguments)
        })
        .await
    }

    async fn spawn(config: Value, start: impl FnOnce(&Folder, &[&str]) -> Process) -> Program {
        let (proxy, metrics) = (Port::reserve(), Port::reserve());
        let mut file = json!({
            "router-server": {"workers": 2},
            "log": {"level": "warn"}
        });
        merge(&mut file, config);
        let listen = |port: &Port| json!({"host": "127.0.0.1", "port": port.number()});
        merge(
            &mut file,
            json!({"router-server": listen(&proxy), "instrumentation": listen(&metrics)}),
        );
        let folder = Folder::new();
        folder.write("config.json", file.to_string());
        let mut process = start(&folder, &[]);
        process.listens(proxy.address).await;
        process.listens(metrics.address).await;
        Program {
            process,
            address: proxy.address,
            instrumentation: metrics.address,
            file,
            folder,
            _ports: [proxy, metrics],
        }
    }

    /// Writes its configuration anew, as it was at the start but for `change`, at once for who reads it.
    pub fn rewrite(&self, change: Value) {
        let mut file = self.file.clone();
        merge(&mut file, change);
        self.write(&file.to_string());
    }

    /// The same, with any text.
    pub fn write(&self, text: &str) {
        let new = self.folder.write("config.json.new", text);
        std::fs::rename(new, self.path("config.json")).unwrap();
    }

    /// Where a file of its folder is.
    pub fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.0.join(name)
    }

    /// Where it runs.
    pub fn folder(&self) -> &std::path::Path {
        &self.folder.0
    }

    /// How many descriptors it has open.
    pub fn descriptors(&self) -> usize {
        self.descriptors_below(usize::MAX)
    }

    /// The same, of those that a limit of `limit` lets it have: it may have inherited others.
    pub fn descriptors_below(&self, limit: usize) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.process.id()))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|number| number.parse::<usize>().unwrap() < limit)
            .count()
    }

    /// Whether all of its threads are stopped, by a signal.
    pub fn is_stopped(&self) -> bool {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.process.id())).unwrap();
        tasks.into_iter().all(|task| {
            let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap();
            // proc(5): behind the name, in brackets.
            stat.rsplit_once(") ")
                .is_some_and(|(_, state)| state.starts_with('T'))
        })
    }

    /// The processor time that it has had, of all threads, to 10 ms.
    pub fn cpu_time(&self) -> Duration {
        let stat = self.proc("stat");
        // proc(5): utime and stime are the 14th and the 15th field; the second one, in brackets, may
        // have spaces in it. Linux shows them in hundredths of a second.
        let (_, fields) = stat.rsplit_once(") ").expect("a name in brackets");
        let ticks = fields.split(' ').skip(11).take(2);
        let ticks: u64 = ticks.map(|ticks| ticks.parse::<u64>().unwrap()).sum();
        Duration::from_millis(ticks * 10)
    }

    /// Bytes of memory that it has now.
    pub fn memory(&self) -> u64 {
        self.status("VmRSS:")
    }

    /// Bytes of memory that it had at most.
    pub fn peak_memory(&self) -> u64 {
        self.status("VmHWM:")
    }

    /// How many threads it has.
    pub fn threads(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/task", self.process.id()))
            .unwrap()
            .count()
    }

    fn status(&self, key: &str) -> u64 {
        let status = self.proc("status");
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
        kib.expect("kilobytes").parse::<u64>().unwrap() << 10
    }

    fn proc(&self, file: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{file}", self.process.id())).unwrap()
    }
}

/// Gives this process, the test, room for that many descriptors.
pub fn room_for_descriptors(descriptors: usize) {
    let status = Command::new("prlimit")
        .args(["--pid", &std::process::id().to_string()])
        .arg(format!("--nofile={descriptors}:"))
        .status()
        .unwrap();
    assert!(
        status.success(),
        "this test needs {descriptors} descriptors: see `ulimit -Hn`"
    );
}
