//! A proxy as a process: started, waited for, accounted, stopped.

use std::{
    ffi::OsStr,
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

/// A folder for configurations and logs; it goes with this value.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new() -> Result<Folder> {
        let name = format!("bench-{}", std::process::id());
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
        Ok(Folder(path))
    }

    pub fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.0.join(name);
        // haproxy will have a line's end at the very end.
        fs::write(&path, format!("{}\n", text.trim_end()))
            .with_context(|| path.display().to_string())?;
        Ok(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _gone = fs::remove_dir_all(&self.0);
    }
}

/// A running proxy; dropped, it is told to stop and waited for.
pub struct Process {
    child: Child,
    /// Where it takes requests.
    pub address: SocketAddr,
}

impl Process {
    /// Starts `program`, which inherits the affinity of the caller, and waits until it listens.
    pub fn start<S: AsRef<OsStr>>(
        program: &Path,
        arguments: impl IntoIterator<Item = S>,
        address: SocketAddr,
        folder: &Folder,
    ) -> Result<Process> {
        let name = program.file_name().unwrap_or_default();
        let log = folder.0.join(name).with_extension("log");
        let output = File::create(&log)?;
        let child = command(program)
            .args(arguments)
            .current_dir(&folder.0)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .context("setpriv (apt-get install util-linux)")?;
        let mut process = Process { child, address };
        process.wait_until_it_listens().with_context(|| {
            let said = fs::read_to_string(&log).unwrap_or_default();
            format!("{} does not start; it said:\n{said}", program.display())
        })?;
        Ok(process)
    }

    fn wait_until_it_listens(&mut self) -> Result<()> {
        let start = Instant::now();
        while TcpStream::connect(self.address).is_err() {
            if let Some(status) = self.child.try_wait()? {
                bail!("{status}");
            }
            ensure!(
                start.elapsed() < Duration::from_secs(60),
                "no listener after 60 s"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// CPU time so far, user and system, of all threads of the process and of its children.
    ///
    /// From `schedstat`, which is what `stat` shows rounded to a hundredth of a second.
    pub fn cpu(&self) -> Result<Duration> {
        let mut total = Duration::ZERO;
        for pid in self.family()? {
            for task in fs::read_dir(format!("/proc/{pid}/task"))? {
                let text = fs::read_to_string(task?.path().join("schedstat"))?;
                let on_cpu = text.split(' ').next().unwrap_or_default();
                total += Duration::from_nanos(on_cpu.parse()?);
            }
        }
        Ok(total)
    }

    /// Resident memory of the process and its children; what they share is counted for each.
    pub fn rss_bytes(&self) -> Result<u64> {
        let mut total = 0;
        for pid in self.family()? {
            let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
            let kib = line.unwrap_or_default().trim().trim_end_matches(" kB");
            total += kib.parse::<u64>().context("no VmRSS")? * 1024;
        }
        Ok(total)
    }

    /// The process and its children: nginx's workers are.
    fn family(&self) -> Result<Vec<u32>> {
        let mut family = vec![self.pid()];
        for entry in fs::read_dir("/proc")? {
            let name = entry?.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            // Others come and go: who cannot be read is none of ours.
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let after_name = stat.rsplit(')').next().unwrap_or_default();
            if after_name.split_whitespace().nth(1) == Some(&self.pid().to_string()) {
                family.push(pid);
            }
        }
        Ok(family)
    }

    /// Asks it to stop, and waits until it has.
    pub fn stop(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM)?;
        let start = Instant::now();
        while self.child.try_wait()?.is_none() {
            if start.elapsed() > Duration::from_secs(60) {
                self.child.kill()?;
                self.child.wait()?;
                bail!("did not stop within 60 s");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("process {}: {error:#}", self.pid());
        }
    }
}

/// A program that ends when this one does: nothing is left when the bench itself is killed.
pub fn command(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.arg("--pdeathsig=TERM").arg(program);
    command
}

/// A port that nobody listens on at the moment.
pub fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// The path of a program, or which Debian package has it.
pub fn find(program: &str, package: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(program))
        .find(|path| path.is_file())
        .with_context(|| format!("{program} is not installed: apt-get install {package}"))
}
