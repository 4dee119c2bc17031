//! The router as a process: with a wall clock that can be stepped, and what the system knows of it.

use std::{
    cell::{Cell, RefCell},
    fs::{self, File},
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::{
    io::Errno,
    process::{
        Pid, Resource, Rlimit, Signal, WaitOptions, WaitStatus, getpid, kill_process, prlimit,
        set_child_subreaper, waitpid,
    },
};
use serde::Deserialize;
use socket2::{Domain, Socket, Type};
use tokio::{io::BufReader as AsyncReader, net::TcpStream, sync::mpsc, time::timeout};

use super::{
    books::Line,
    figures::Figures,
    stream::Stream,
    wire::{Body, Framing, Head},
};

/// A line of its log.
pub enum Told {
    Request(Box<Line>),
    Other {
        level: String,
        msg: String,
        wall: String,
        /// Another one, of which it tells.
        process: Option<i32>,
    },
    /// What is no line of a log.
    Garbled,
}

/// A folder for what it reads and writes; it goes with this value, unless it is kept.
pub struct Folder {
    pub path: PathBuf,
    pub is_kept: Cell<bool>,
}

impl Folder {
    pub fn new() -> Result<Folder> {
        let name = format!("canary-router-soak-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).with_context(|| path.display().to_string())?;
        Ok(Folder {
            path,
            is_kept: Cell::new(false),
        })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.is_kept.get() {
            let _best_effort = fs::remove_dir_all(&self.path);
        }
    }
}

/// A port that the system gave us: bound, and not listening, so that nobody else gets it.
pub struct Port {
    pub address: SocketAddr,
    _reservation: Socket,
}

impl Port {
    pub fn reserve() -> Result<Port> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
        let address = socket.local_addr()?.as_socket();
        Ok(Port {
            address: address.context("an address of its own family")?,
            _reservation: socket,
        })
    }
}

/// The router, whichever process that is.
pub struct Router {
    id: Cell<Pid>,
    /// Those that another one has taken the place of, and that have not ended yet.
    before: RefCell<Vec<Pid>>,
    folder: PathBuf,
    pub address: SocketAddr,
    pub instrumentation: SocketAddr,
    /// Nobody reads what it writes to stdout, while this is true.
    is_unread: Arc<AtomicBool>,
}

/// What the system knows of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resources {
    pub descriptors: usize,
    pub threads: usize,
    pub memory: u64,
    pub cpu: Duration,
}

/// How long an answer of its instrumentation port may take; it may have no descriptor to take a connection with.
const PATIENCE: Duration = Duration::from_secs(10);

impl Router {
    /// Starts `program` in `folder`, where its configuration is. Its log comes by the channel.
    pub fn start(
        program: &Path,
        folder: &Path,
        [address, instrumentation]: [SocketAddr; 2],
    ) -> Result<(Router, mpsc::UnboundedReceiver<(String, Told)>)> {
        // How those end that it starts, it is we who ask when it has ended itself.
        set_child_subreaper(Some(getpid())).context("cannot become a subreaper")?;
        let clock = folder.join("clock");
        fs::write(&clock, "+0\n")?;
        let mut child = Command::new("setpriv")
            .arg("--pdeathsig=KILL")
            .arg(program)
            .args(["-c", "config.json"])
            .current_dir(folder)
            .env("LD_PRELOAD", faketime()?)
            .env("FAKETIME_TIMESTAMP_FILE", &clock)
            // Its timers go by the monotonic clock, which cannot be stepped.
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env("FAKETIME_CACHE_DURATION", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(
                File::options()
                    .create(true)
                    .append(true)
                    .open(folder.join("stderr"))?,
            )
            .spawn()
            .context("setpriv (apt-get install util-linux)")?;
        let stdout = child.stdout.take().context("its stdout is a pipe")?;
        let is_unread = Arc::new(AtomicBool::new(false));
        let (sender, told) = mpsc::unbounded_channel();
        let unread = Arc::clone(&is_unread);
        thread::spawn(move || {
            for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
                while unread.load(Ordering::Relaxed) {
                    thread::sleep(Duration::from_millis(5));
                }
                let line = String::from_utf8_lossy(&line).into_owned();
                let told = Told::parse(&line);
                if sender.send((line, told)).is_err() {
                    return;
                }
            }
        });
        let router = Router {
            id: Cell::new(Pid::from_child(&child)),
            before: RefCell::default(),
            folder: folder.to_owned(),
            address,
            instrumentation,
            is_unread,
        };
        Ok((router, told))
    }

    /// Waits until it takes requests.
    pub async fn listens(&self) -> Result<()> {
        for _ in 0..1000 {
            if let Some(status) = self.has_ended()? {
                let said = fs::read_to_string(self.folder.join("stderr"))?;
                anyhow::bail!("the router does not start: {status:?}; it said:\n{said}");
            }
            if matches!(self.ask("GET", "/health/live", "").await, Ok((200, _))) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        anyhow::bail!("the router does not listen")
    }

    /// An answer of its instrumentation port.
    pub async fn ask(&self, method: &str, path: &str, body: &str) -> Result<(u16, String)> {
        let address = self.instrumentation;
        let asked = async {
            let stream = TcpStream::connect(address).await?;
            let (read, mut write) = Stream::Plain(stream).split();
            let request = format!(
                "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\
                 content-length: {}\r\n\r\n{body}",
                body.len()
            );
            write.send(request.as_bytes()).await?;
            let mut reader = AsyncReader::new(read);
            let head = Head::read(&mut reader).await?;
            let head = head.context("no answer")?;
            let mut body = Body::new(head.framing(Framing::Close)?);
            let mut text = Vec::new();
            while let Some(piece) = body.next(&mut reader, 64 << 10).await? {
                text.extend(piece);
            }
            anyhow::Ok((head.status()?, String::from_utf8(text)?))
        };
        let asked = timeout(PATIENCE, asked).await;
        asked
            .with_context(|| format!("{method} {path}: no answer for {PATIENCE:?}"))?
            .with_context(|| format!("{method} {path}"))
    }

    pub async fn figures(&self) -> Result<Figures> {
        let (status, page) = self.ask("GET", "/metrics", "").await?;
        ensure!(status == 200, "/metrics: {status}");
        Ok(Figures::parse(&page))
    }

    /// How it has ended, if it has.
    pub fn has_ended(&self) -> Result<Option<WaitStatus>> {
        ended(self.id.get())
    }

    /// Another process has taken the place of the one that was the router.
    pub fn is_now(&self, process: i32) {
        if let Some(process) = Pid::from_raw(process) {
            let before = self.id.replace(process);
            self.before.borrow_mut().push(before);
        }
    }

    /// How many of those before it have not ended yet.
    ///
    /// # Errors
    /// One has ended otherwise than it should.
    pub fn remaining(&self) -> Result<usize> {
        let mut before = self.before.borrow_mut();
        let mut left = Vec::new();
        for process in before.drain(..) {
            match ended(process)? {
                None => left.push(process),
                Some(status) => ensure!(
                    status.exit_status() == Some(0),
                    "a process that another one took the place of: {status:?}"
                ),
            }
        }
        *before = left;
        Ok(before.len())
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(self.id(), signal).context("it is gone")
    }

    /// Its wall clock is wrong by so many seconds from now on.
    pub fn set_clock(&self, seconds: i64) -> Result<()> {
        // Written whole or not at all: it is read at any time.
        let new = self.folder.join("clock.new");
        fs::write(&new, format!("{seconds:+}\n"))?;
        Ok(fs::rename(new, self.folder.join("clock"))?)
    }

    /// It may have descriptors with numbers below this; those that it has, it keeps.
    pub fn set_descriptors(&self, most: u64) -> Result<()> {
        let now = self.descriptor_limit()?;
        let limit = Rlimit {
            current: Some(most),
            maximum: now.maximum,
        };
        prlimit(Some(self.id()), Resource::Nofile, limit).context("prlimit")?;
        Ok(())
    }

    pub fn descriptor_limit(&self) -> Result<Rlimit> {
        let text = fs::read_to_string(self.proc("limits"))?;
        let line = text.lines().find(|line| line.starts_with("Max open files"));
        let mut words = line
            .context("no limit of files")?
            .split_whitespace()
            .skip(3);
        let mut next = || words.next().and_then(|word| word.parse().ok());
        Ok(Rlimit {
            current: next(),
            maximum: next(),
        })
    }

    /// Whether anybody reads its log.
    pub fn set_unread(&self, is_unread: bool) {
        self.is_unread.store(is_unread, Ordering::Relaxed);
    }

    pub fn resources(&self) -> Result<Resources> {
        let status = fs::read_to_string(self.proc("status"))?;
        let number = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            let word = line.and_then(|line| line.split_whitespace().next());
            word.and_then(|word| word.parse::<u64>().ok())
                .with_context(|| format!("no {key} in its status"))
        };
        let mut cpu = Duration::ZERO;
        for task in fs::read_dir(self.proc("task"))? {
            // It may have ended meanwhile.
            let text = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
            let nanos = text.split(' ').next().and_then(|nanos| nanos.parse().ok());
            cpu += Duration::from_nanos(nanos.unwrap_or(0));
        }
        Ok(Resources {
            descriptors: fs::read_dir(self.proc("fd"))?.count(),
            threads: number("Threads:")? as usize,
            memory: number("VmRSS:")? << 10,
            cpu,
        })
    }

    /// Waits for its end.
    pub async fn ended(&self, patience: Duration) -> Result<Option<WaitStatus>> {
        let start = Instant::now();
        while start.elapsed() < patience {
            if let Some(status) = self.has_ended()? {
                return Ok(Some(status));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(None)
    }

    /// What it has said on stderr since it was asked last.
    pub fn stderr(&self) -> Result<String> {
        let file = self.folder.join("stderr");
        let said = fs::read_to_string(&file)?;
        File::options().write(true).open(file)?.set_len(0)?;
        Ok(said)
    }

    pub fn id(&self) -> Pid {
        self.id.get()
    }

    fn proc(&self, file: &str) -> String {
        format!("/proc/{}/{file}", self.id())
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        let known = self.before.get_mut().drain(..).chain([self.id.get()]);
        known.for_each(kill);
        // Who has come after them unnoticed is ours when they are gone.
        for _ in 0..10 {
            children().into_iter().for_each(kill);
        }
    }
}

fn kill(process: Pid) {
    if let Ok(None) = ended(process) {
        let _ended_now = kill_process(process, Signal::KILL);
        let _status = waitpid(Some(process), WaitOptions::empty());
    }
}

/// The processes of this one, which starts no others.
fn children() -> Vec<Pid> {
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten();
    let lists =
        tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("children")).ok());
    let children = |list: String| -> Vec<Pid> {
        let numbers = list.split_whitespace().filter_map(|word| word.parse().ok());
        numbers.filter_map(Pid::from_raw).collect()
    };
    lists.flat_map(children).collect()
}

/// How a process has ended, if it has. One whose parent has not asked is not ours yet.
fn ended(process: Pid) -> Result<Option<WaitStatus>> {
    match waitpid(Some(process), WaitOptions::NOHANG) {
        Ok(ended) => Ok(ended.map(|(_, status)| status)),
        Err(Errno::CHILD) if std::path::Path::new(&format!("/proc/{process}")).exists() => Ok(None),
        Err(error) => Err(error).context("a process of which nobody knows how it has ended"),
    }
}

impl Told {
    fn parse(line: &str) -> Told {
        #[derive(Deserialize)]
        struct Other {
            level: String,
            msg: String,
            #[serde(rename = "@time")]
            wall: String,
            process: Option<i32>,
        }
        if line.contains(r#""msg":"request""#) {
            return serde_json::from_str(line)
                .map_or(Told::Garbled, |line| Told::Request(Box::new(line)));
        }
        let told = |other: Other| Told::Other {
            level: other.level,
            msg: other.msg,
            wall: other.wall,
            process: other.process,
        };
        serde_json::from_str(line).map_or(Told::Garbled, told)
    }
}

/// What lies to it about the time.
fn faketime() -> Result<PathBuf> {
    let folders = fs::read_dir("/usr/lib")?.filter_map(Result::ok);
    let libraries = folders.map(|folder| folder.path().join("faketime/libfaketimeMT.so.1"));
    let mut there = libraries.filter(|library| library.is_file());
    there
        .next()
        .context("libfaketime is not installed: apt-get install faketime")
}
