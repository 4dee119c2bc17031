//! A process that takes the place of another one, without a connection lost between them.
//!
//! The old one starts the new one with its listening sockets and one end of a socket pair. The new one reads its
//! configuration and does all that can fail; then it wants what was counted. From then on the old one counts no more:
//! what needs a permit goes to main. When the new one takes connections the old one takes none, and finishes what it
//! has; what becomes of the errors that it had reserved it goes on telling. Should the new one end before it serves, the
//! old one goes on as if nothing had been.
//!
//! Both say a line of JSON at a time. The old one: what was counted (as in a state file), then
//! `{"errors": -2, "failed": 1}`, so many more than it had said, and how many requests have failed. The new one: `{"wants": "state"}`, then
//! `{"serves": {"proxy": true, "instrumentation": true}}`, which is whether it has the sockets.

use std::{
    env,
    ffi::OsString,
    io::{self, BufRead, BufReader, Write},
    net::TcpListener,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
    process::{Child, Command, ExitStatus},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader as AsyncBufReader, Lines},
    net::{
        UnixStream as AsyncUnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::{sleep, timeout},
};

use super::sockets::{Inherited, Shared, listener_of};
use crate::{clock, policy::quota::ErrorQuota, state::Kept};

/// Tells the new process what it was started with. Not one of the configuration's names.
const VARIABLE: &str = "_CANARY_ROUTER_SUCCESSION";
/// How long the new one may take until it wants what was counted.
const COMING_UP: Duration = Duration::from_secs(60);
/// How long each of the two then waits for the other.
const CLOSE: Duration = Duration::from_secs(10);

/// The descriptors that the new process begins with.
#[derive(Debug, Serialize, Deserialize)]
struct Legacy {
    talk: i32,
    proxy: Vec<i32>,
    instrumentation: Option<i32>,
    managed: bool,
}

/// Starts this program anew.
#[derive(Debug)]
pub struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
}

/// The process that is to come after this one. Dropped before it serves, it is ended.
pub struct Successor {
    child: Child,
    serves: bool,
    /// What it knows of the errors.
    told: ErrorQuota,
    said: Lines<AsyncBufReader<OwnedReadHalf>>,
    talk: OwnedWriteHalf,
}

/// The process that was before this one.
pub struct Predecessor {
    talk: BufReader<UnixStream>,
}

/// What the new process says.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Word {
    Wants(What),
    Serves(Serves),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum What {
    State,
}

#[derive(Debug, Deserialize)]
struct Serves {
    proxy: bool,
    instrumentation: bool,
}

impl Program {
    /// As it was started. To be asked for at the start: the file may be replaced.
    ///
    /// # Errors
    /// The system does not say which file it is.
    pub fn of_this_process() -> io::Result<Program> {
        Ok(Program {
            path: env::current_exe()?,
            arguments: env::args_os().skip(1).collect(),
        })
    }

    /// Starts it with these sockets.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn succeed(&self, sockets: Inherited) -> io::Result<Successor> {
        let (ours, theirs) = UnixStream::pair()?;
        // Open in the new process only, and here until it is started.
        let leave = |descriptor: &dyn AsRawFd| {
            let number = descriptor.as_raw_fd();
            uapi::fcntl_setfd(number, 0).map_err(io::Error::from)?;
            Ok::<_, io::Error>(number)
        };
        let proxy: io::Result<_> = sockets.proxy.iter().map(|socket| leave(socket)).collect();
        let legacy = Legacy {
            talk: leave(&theirs)?,
            proxy: proxy?,
            instrumentation: sockets
                .instrumentation
                .as_ref()
                .map(|socket| leave(socket))
                .transpose()?,
            managed: sockets.managed,
        };
        let child = Command::new(&self.path)
            .args(&self.arguments)
            .env(VARIABLE, json!(legacy).to_string())
            .spawn()?;
        ours.set_nonblocking(true)?;
        let (said, talk) = AsyncUnixStream::from_std(ours)?.into_split();
        Ok(Successor {
            child,
            serves: false,
            told: ErrorQuota::default(),
            said: AsyncBufReader::new(said).lines(),
            talk,
        })
    }
}

impl Successor {
    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// It has come up, and wants what was counted.
    ///
    /// # Errors
    /// It has ended, or takes too long.
    pub async fn wants(&mut self) -> Result<(), String> {
        match self.next(COMING_UP).await? {
            Word::Wants(What::State) => Ok(()),
            Word::Serves(_) => Err("it did not ask for what was counted".into()),
        }
    }

    /// Has it read its configuration again.
    pub fn reread(&self) {
        // It may have ended.
        let _gone = uapi::kill(self.child.id().cast_signed(), uapi::c::SIGHUP);
    }

    /// Tells it, `errors` among them. When it serves, says of which sockets.
    ///
    /// # Errors
    /// It has ended, or takes too long.
    pub async fn serves(&mut self, counted: &str, errors: ErrorQuota) -> Result<Shared, String> {
        self.told = errors;
        let told = self.tell(counted).await;
        told.map_err(|error| format!("it does not listen: {error}"))?;
        match self.next(CLOSE).await? {
            Word::Serves(Serves {
                proxy,
                instrumentation,
            }) => {
                self.serves = true;
                Ok(Shared {
                    proxy,
                    instrumentation,
                })
            }
            Word::Wants(What::State) => Err("it asked twice".into()),
        }
    }

    /// Tells it what has become of the errors since it was told of them last.
    ///
    /// # Errors
    /// It is not there any more, or listens no more.
    pub async fn correct(&mut self, errors: ErrorQuota) -> io::Result<()> {
        let told = std::mem::replace(&mut self.told, errors);
        if told == errors {
            return Ok(());
        }
        let by = errors.claimed().cast_signed() - told.claimed().cast_signed();
        let failed = i64::from(errors.errors) - i64::from(told.errors);
        let line = format!("{}\n", json!({"errors": by, "failed": failed}));
        self.tell(&line).await
    }

    /// Who is stopped (SIGSTOP) would hold this process up for ever.
    async fn tell(&mut self, line: &str) -> io::Result<()> {
        timeout(CLOSE, self.talk.write_all(line.as_bytes())).await?
    }

    /// How it has ended: its end of the talk goes a moment before it.
    async fn ended(&mut self) -> Option<ExitStatus> {
        for _ in 0..100 {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            sleep(Duration::from_millis(10)).await;
        }
        None
    }

    async fn next(&mut self, patience: Duration) -> Result<Word, String> {
        let line = match timeout(patience, self.said.next_line()).await {
            Ok(Ok(Some(line))) => line,
            Ok(Ok(None)) => {
                // What is wrong it has said where this process would have.
                return Err(match self.ended().await {
                    Some(status) => format!("it has ended ({status}); its own words say why"),
                    None => "it has ended; its own words say why".into(),
                });
            }
            Ok(Err(error)) => return Err(format!("it cannot be heard: {error}")),
            Err(_elapsed) => return Err(format!("it took longer than {patience:?}")),
        };
        serde_json::from_str(&line).map_err(|_| format!("it says what is not understood: {line}"))
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        if !self.serves {
            // It may have ended by itself.
            let _already_gone = self.child.kill();
            let _status = self.child.wait();
        }
    }
}

impl Predecessor {
    /// The process that has started this one to come after it, if one has; and its sockets.
    ///
    /// # Errors
    /// What it has left cannot be used.
    pub fn of_this_process() -> io::Result<Option<(Predecessor, Inherited)>> {
        let Ok(legacy) = env::var(VARIABLE) else {
            return Ok(None);
        };
        let Legacy {
            talk,
            proxy,
            instrumentation,
            managed,
        } = serde_json::from_str(&legacy).map_err(io::Error::other)?;
        let proxy: io::Result<Vec<_>> = proxy.into_iter().map(listener).collect();
        let talk = UnixStream::from(owned(talk)?);
        talk.set_read_timeout(Some(CLOSE))?;
        let inherited = Inherited {
            proxy: proxy?,
            instrumentation: instrumentation.map(listener).transpose()?,
            managed,
        };
        let talk = BufReader::new(talk);
        Ok(Some((Predecessor { talk }, inherited)))
    }

    /// Has it count no more, and leave its state file. What it has counted.
    ///
    /// # Errors
    /// It does not say so.
    pub fn take(&mut self) -> io::Result<Kept> {
        self.say(&json!({"wants": "state"}))?;
        let mut line = String::new();
        self.talk.read_line(&mut line)?;
        Kept::parse(&line, clock::wall()).map_err(io::Error::other)
    }

    /// Has it take no more connections.
    ///
    /// # Errors
    /// It is not there any more: then it takes none.
    pub fn serves(&mut self, shared: Shared) -> io::Result<()> {
        let Shared {
            proxy,
            instrumentation,
        } = shared;
        self.say(&json!({"serves": {"proxy": proxy, "instrumentation": instrumentation}}))
    }

    /// What it still tells: how many more errors there are.
    ///
    /// # Errors
    /// There is no runtime.
    pub fn corrections(self) -> io::Result<Corrections> {
        let talk = self.talk.into_inner();
        talk.set_nonblocking(true)?;
        let talk = AsyncUnixStream::from_std(talk)?;
        Ok(Corrections(AsyncBufReader::new(talk).lines()))
    }

    fn say(&mut self, word: &serde_json::Value) -> io::Result<()> {
        let line = format!("{word}\n");
        self.talk.get_mut().write_all(line.as_bytes())
    }
}

/// What has become of errors that another process had counted.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Correction {
    /// There are so many more, or fewer.
    pub errors: i64,
    /// So many requests have failed.
    pub failed: i64,
}

/// What the process before this one still tells.
pub struct Corrections(Lines<AsyncBufReader<AsyncUnixStream>>);

impl Corrections {
    /// What has become of the errors; `None` when it has ended.
    pub async fn next(&mut self) -> Option<Correction> {
        let line = self.0.next_line().await.ok()??;
        serde_json::from_str(&line).ok()
    }
}

fn listener(number: i32) -> io::Result<TcpListener> {
    listener_of(owned(number)?)
}

/// Which this process does not leave to those that it starts.
fn owned(number: i32) -> io::Result<OwnedFd> {
    let descriptor = uapi::OwnedFd::new(number);
    uapi::fcntl_setfd(number, uapi::c::FD_CLOEXEC).map_err(io::Error::from)?;
    Ok(descriptor.into())
}
