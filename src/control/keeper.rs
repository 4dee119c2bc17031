//! Keeps on disk what is to survive the process: the counts, the breakers, the salt.
//!
//! A thread of its own looks at them fifty times a second and writes when [`Ledger`] says so: beside the
//! file, synchronised, renamed, the folder synchronised, so that there is always one whole file. Where the
//! disk refuses, the router goes on and says so; the counts are then in memory only.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::Duration,
};

use tokio::sync::oneshot;
use tracing::{error, info};

use crate::{
    clock,
    state::{
        Durability, Kept, Ledger, Published, SharedProgress, admission::Terms, ledger::Look,
        persist::Unusable,
    },
};

/// How often it looks.
const TICK: Duration = Duration::from_millis(20);
/// A state file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// What is in it.
    #[error("{}: {why}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: Unusable,
    },
    /// It is there, but cannot be read: what is in it is not to be guessed at.
    #[error("{}: cannot be read ({error}): see who may read it, or name another file in /state/file", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Nothing could be written there: no wish that anybody has.
    #[error(
        "{}: its folder is not there: make it, or wait until it is mounted, or name another file in /state/file",
        path.display()
    )]
    NoFolder {
        /// The file.
        path: PathBuf,
    },
    /// Another process has it.
    #[error("{}: another canary-router uses it: give each a file of its own in /state/file", path.display())]
    Taken {
        /// The file.
        path: PathBuf,
    },
    /// The system gives no random numbers.
    #[error("no random numbers for the salt: {0}")]
    Random(String),
}

/// The state file, read and taken.
pub struct Keeper {
    path: PathBuf,
    /// Held for as long as the process lives; absent where the disk refused.
    lock: Option<File>,
    kept: Kept,
}

/// What its thread is told.
pub enum Order {
    /// Write what there is, with nothing ahead, and leave the file to somebody else: no count rises any more. Says
    /// when that is done.
    Pause(oneshot::Sender<()>),
    /// Go on: nobody else has taken it.
    Resume,
}

/// A state file that is being written.
pub struct Writer {
    keeper: Keeper,
    ledger: Ledger,
    published: Arc<Published>,
    durability: Arc<Durability>,
}

impl Keeper {
    /// Takes the file and reads it; where there is none it begins with nothing.
    ///
    /// # Errors
    /// There is one that cannot be used.
    pub fn open(path: &Path) -> Result<Keeper, StateError> {
        let path = &behind_links(path)?;
        // Before anything is put beside it: it may be a file of somebody else's.
        read(path)?;
        let lock = match take(path) {
            Ok(lock) => Some(lock),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(StateError::Taken { path: path.into() });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(StateError::NoFolder { path: path.into() });
            }
            // A disk that cannot be written is told of when it is written.
            Err(_) => None,
        };
        // Who had it until now has written for the last time.
        let kept = match read(path)? {
            Some(kept) => kept,
            None => Kept {
                salt: random_salt()?,
                ..Kept::default()
            },
        };
        Ok(Keeper {
            path: path.into(),
            lock,
            kept,
        })
    }

    /// What was found.
    pub fn kept(&self) -> &Kept {
        &self.kept
    }

    /// Goes on with this instead, which is newer.
    #[must_use]
    pub fn with(self, kept: Kept) -> Keeper {
        Keeper { kept, ..self }
    }

    /// Writes what is used so far, before anything more may be. To be called before the first request.
    pub fn start(
        self,
        terms: Terms,
        published: Arc<Published>,
        durability: Arc<Durability>,
        progress: Arc<SharedProgress>,
    ) -> Writer {
        let mut writer = Writer {
            ledger: Ledger::new(self.kept.clone(), terms, progress),
            keeper: self,
            published,
            durability,
        };
        writer.look(false);
        writer
    }
}

impl Writer {
    /// Watches until `orders` is closed; then writes what there is in the end, with nothing ahead.
    pub fn run(mut self, orders: &Receiver<Order>) {
        let mut paused = false;
        loop {
            match orders.recv_timeout(TICK) {
                Err(RecvTimeoutError::Timeout) if paused => {}
                Err(RecvTimeoutError::Timeout) => self.look(false),
                Err(RecvTimeoutError::Disconnected) => break,
                Ok(Order::Pause(done)) => {
                    self.published.load().admission.freeze();
                    self.look(true);
                    self.keeper.lock = None;
                    paused = true;
                    // Who asked may have given up.
                    let _nobody = done.send(());
                }
                Ok(Order::Resume) => {
                    paused = false;
                    // The other one may have written.
                    self.ledger.write_again();
                    self.look(false);
                }
            }
        }
        if !paused {
            self.look(true);
        }
    }

    fn look(&mut self, closing: bool) {
        let Keeper { path, lock, .. } = &mut self.keeper;
        let put = |text: &str| {
            take_late(lock, path)?;
            replace(path, text.as_bytes())
        };
        let (now, wall) = (clock::uptime(), clock::wall());
        let admission = || Arc::clone(&self.published.load().admission);
        let look = match closing {
            false => self.ledger.look(admission, now, wall, put),
            true => self.ledger.close(admission, now, wall, put),
        };
        match look {
            Look::Nothing => {}
            Look::Written => {
                if self.durability.succeeded() {
                    info!(file = %path.display(), "the state is on disk again");
                }
            }
            Look::Failed(error) => {
                if self.durability.failed(error.to_string()) {
                    error!(
                        file = %path.display(),
                        %error,
                        "the state cannot be written: what is counted from now on is forgotten when this \
                         process ends"
                    );
                }
            }
        }
    }
}

/// What is in the file, if there is one.
fn read(path: &Path) -> Result<Option<Kept>, StateError> {
    let unusable = |why| StateError::Unusable {
        path: path.into(),
        why,
    };
    match fs::read_to_string(path) {
        Ok(text) => match Kept::parse(&text, clock::wall()) {
            Ok(kept) => Ok(Some(kept)),
            Err(why) => Err(unusable(why)),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            Err(unusable(Unusable::Foreign("it is not text".into())))
        }
        Err(error) => Err(StateError::Unreadable {
            path: path.into(),
            error,
        }),
    }
}

fn beside(path: &Path, what: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(what);
    name.into()
}

/// Takes the file for this process.
fn take(path: &Path) -> io::Result<File> {
    let lock = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(beside(path, ".lock"))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(fs::TryLockError::WouldBlock) => Err(io::Error::new(
            io::ErrorKind::WouldBlock,
            "another canary-router uses it",
        )),
        Err(fs::TryLockError::Error(error)) => Err(error),
    }
}

/// Takes the file if it could not be taken before, by a disk that has recovered since: another process
/// may have it now. Some file systems know no locks at all; they are written without.
fn take_late(lock: &mut Option<File>, path: &Path) -> io::Result<()> {
    if lock.is_none() {
        match take(path) {
            Ok(taken) => *lock = Some(taken),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
            Err(_) => {}
        }
    }
    Ok(())
}

/// After this the file is the new one, whatever happens; before it, the old one.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = beside(path, ".new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    File::open(folder(path))?.sync_all()
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// A link is followed here, once: a rename would put the file in the place of the link, and its lock would
/// be another one for each name.
fn behind_links(path: &Path) -> Result<PathBuf, StateError> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_symlink() => {
            fs::canonicalize(path).map_err(|error| StateError::Unreadable {
                path: path.into(),
                error,
            })
        }
        _ => Ok(path.into()),
    }
}

/// Of a router that has kept none.
///
/// # Errors
/// The system gives no random numbers.
pub fn random_salt() -> Result<u128, StateError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| StateError::Random(error.to_string()))?;
    Ok(u128::from_ne_bytes(bytes))
}
