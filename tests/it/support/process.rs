//! The real program, as a process of its own.

use std::{
    io::{BufRead, BufReader, PipeReader, Read},
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread::JoinHandle,
};

use serde_json::Value;
use socket2::{Domain, Socket, Type};

use super::{eventually, soon};

/// A folder of its own for a test; it goes with this value.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new() -> Folder {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!(
            "canary-router-test-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Folder(path)
    }

    /// Writes a file, and returns its path.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, content).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _best_effort = std::fs::remove_dir_all(&self.0);
    }
}

/// A port that the system gave us, for a program that is told its port by a file.
///
/// The socket is bound but does not listen: the kernel gives the port to nobody else, but lets a
/// socket with `SO_REUSEADDR`, as listeners have, bind and listen beside it.
pub struct Port {
    pub address: SocketAddr,
    _reservation: Socket,
}

impl Port {
    pub fn reserve() -> Port {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        let any: SocketAddr = ([127, 0, 0, 1], 0).into();
        socket.bind(&any.into()).unwrap();
        Port {
            address: socket.local_addr().unwrap().as_socket().unwrap(),
            _reservation: socket,
        }
    }

    pub fn number(&self) -> u16 {
        self.address.port()
    }
}

const BINARY: &str = env!("CARGO_BIN_EXE_canary-router");

/// A running `canary-router`. It is killed when dropped.
pub struct Process {
    child: Child,
    stdout: Output,
    stderr: Output,
    /// What it writes and nobody reads.
    stalled: Option<PipeReader>,
}

/// What a process wrote so far, and the thread that reads it.
#[derive(Default)]
struct Output {
    lines: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
}

impl Process {
    /// Starts it in `folder`.
    pub fn start(folder: &Folder, arguments: &[&str]) -> Process {
        Process::spawn(Command::new(BINARY), folder, arguments)
    }

    /// Starts it in `folder` with these variables besides.
    pub fn start_with_environment(
        environment: &[(&str, &str)],
        folder: &Folder,
        arguments: &[&str],
    ) -> Process {
        let mut command = Command::new(BINARY);
        command.envs(environment.iter().copied());
        Process::spawn(command, folder, arguments)
    }

    /// Has the shell start it in `folder` by this line, whose last argument is the program.
    pub fn start_by_shell(
        line: &str,
        arguments: &[&str],
        environment: &[(&str, &str)],
        folder: &Folder,
    ) -> Process {
        let mut command = Command::new("bash");
        command
            .args(["-c", line, "bash"])
            .args(arguments)
            .arg(BINARY);
        command.envs(environment.iter().copied());
        Process::spawn(command, folder, &[])
    }

    /// Starts it in `folder`; nobody reads its stdout, the pipe is closed.
    pub fn start_unread(folder: &Folder, arguments: &[&str]) -> Process {
        let (_closed, stdout) = std::io::pipe().unwrap();
        Process::spawn_into(stdout.into(), Command::new(BINARY), folder, arguments)
    }

    /// Starts it in `folder`; nobody reads its stdout, though somebody could.
    pub fn start_stalled(folder: &Folder, arguments: &[&str]) -> Process {
        let (unread, stdout) = std::io::pipe().unwrap();
        let mut process =
            Process::spawn_into(stdout.into(), Command::new(BINARY), folder, arguments);
        process.stalled = Some(unread);
        process
    }

    /// Has somebody read what nobody did.
    pub fn goes_on(&mut self) {
        self.stdout = Output::read(self.stalled.take().expect("it was started stalled"));
    }

    /// Starts it in `folder` with room for that many descriptors.
    pub fn start_with_descriptors(
        descriptors: usize,
        folder: &Folder,
        arguments: &[&str],
    ) -> Process {
        // prlimit becomes it: the child is the router.
        let mut command = Command::new("prlimit");
        command.arg(format!("--nofile={descriptors}")).arg(BINARY);
        Process::spawn(command, folder, arguments)
    }

    /// Starts it in `folder` so that a file that may not grow ([`Process::may_write`]) is an error to it, as on
    /// a full disk, and not the end.
    pub fn start_with_a_disk(folder: &Folder, arguments: &[&str]) -> Process {
        let mut command = Command::new("sh");
        command.args(["-c", r#"trap '' XFSZ; exec "$0" "$@""#, BINARY]);
        Process::spawn(command, folder, arguments)
    }

    /// The same, and so far it may not.
    pub fn start_on_a_full_disk(folder: &Folder, arguments: &[&str]) -> Process {
        let mut command = Command::new("sh");
        let line = r#"trap '' XFSZ; exec prlimit --fsize=0: "$0" "$@""#;
        command.args(["-c", line, BINARY]);
        Process::spawn(command, folder, arguments)
    }

    /// Whether it can write to files from now on. Its output goes to pipes, which are none.
    pub fn may_write(&self, may: bool) {
        let limit = match may {
            true => "--fsize=1048576:",
            false => "--fsize=0:",
        };
        let status = Command::new("prlimit")
            .args(["--pid", &self.child.id().to_string(), limit])
            .status()
            .unwrap();
        assert!(status.success(), "prlimit {limit}: {status}");
    }

    fn spawn(command: Command, folder: &Folder, arguments: &[&str]) -> Process {
        Process::spawn_into(Stdio::piped(), command, folder, arguments)
    }

    fn spawn_into(
        stdout: Stdio,
        mut command: Command,
        folder: &Folder,
        arguments: &[&str],
    ) -> Process {
        let mut child = command
            .args(arguments)
            .current_dir(&folder.0)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = child.stdout.take().map(Output::read).unwrap_or_default();
        let stderr = Output::read(child.stderr.take().unwrap());
        Process {
            child,
            stdout,
            stderr,
            stalled: None,
        }
    }

    /// Whether it has ended, though others may go on to write into its output.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The lines on stdout so far.
    pub fn stdout(&self) -> Vec<String> {
        self.stdout.lines.lock().unwrap().clone()
    }

    /// The lines on stderr so far.
    pub fn stderr(&self) -> Vec<String> {
        self.stderr.lines.lock().unwrap().clone()
    }

    /// The log so far: every line on stdout is a JSON object.
    #[track_caller]
    pub fn log(&self) -> Vec<Value> {
        let parse = |line: &String| match serde_json::from_str(line) {
            Ok(line @ Value::Object(_)) => line,
            _ => panic!("not a JSON object: {line}"),
        };
        self.stdout().iter().map(parse).collect()
    }

    /// Waits until it takes connections at `address` and has its signal handlers.
    pub async fn listens(&mut self, address: SocketAddr) {
        eventually(|| self.accepts(address) && self.catches_signals()).await;
    }

    /// Waits until it takes connections at `address`, without a pause: this is the very moment.
    pub async fn takes_connections(&mut self, address: SocketAddr) {
        soon(async {
            while !self.accepts(address) {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    fn accepts(&mut self, address: SocketAddr) -> bool {
        if let Some(status) = self.child.try_wait().unwrap() {
            panic!("it ended with {status}: {:#?}", self.stderr());
        }
        std::net::TcpStream::connect(address).is_ok()
    }

    /// Linux tells which signals a process has handlers for (proc(5), `SigCgt`).
    fn catches_signals(&self) -> bool {
        const SIGINT_AND_SIGTERM: u64 = 1 << (2 - 1) | 1 << (15 - 1);
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).unwrap();
        let caught = status
            .lines()
            .find_map(|line| line.strip_prefix("SigCgt:"))
            .expect("a set of signals");
        let caught = u64::from_str_radix(caught.trim(), 16).unwrap();
        caught & SIGINT_AND_SIGTERM == SIGINT_AND_SIGTERM
    }

    /// Sends it a signal, named as `kill` names it.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .arg(format!("-{name}"))
            .arg(self.child.id().to_string())
            .status()
            .unwrap();
        assert!(status.success(), "kill -{name}: {status}");
    }

    /// `kill -9`, at once.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for its end, and for all of its output.
    pub async fn ended(&mut self) -> ExitStatus {
        let mut ended = None;
        eventually(|| {
            ended = self.child.try_wait().unwrap();
            ended.is_some()
        })
        .await;
        for output in [&mut self.stdout, &mut self.stderr] {
            if let Some(reader) = output.reader.take() {
                reader.join().unwrap();
            }
        }
        ended.expect("it was just there")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It has ended already where the test waited for it.
        let _ended = self.child.kill();
        let _ended = self.child.wait();
    }
}

impl Output {
    fn read(pipe: impl Read + Send + 'static) -> Output {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let reader = {
            let lines = lines.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                    lines.lock().unwrap().push(line);
                }
            })
        };
        Output {
            lines,
            reader: Some(reader),
        }
    }
}
