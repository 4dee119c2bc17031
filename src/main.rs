//! The command line: reads the configuration, starts the router, passes signals on; or talks to a router that
//! runs.

use std::{path::PathBuf, pin::pin, process::ExitCode, time::Duration};

use anyhow::{Context, Result, bail};
use canary_router::{
    COMMIT, LONG_VERSION, VERSION,
    app::{
        App, Running,
        succession::{Correction, Corrections, Program, Successor},
    },
    cli::{self, Verb},
    config::Source,
    offline::{self, Offline},
    telemetry,
};
use clap::{CommandFactory, Parser, Subcommand};
use futures_util::future::{Fuse, FutureExt};
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{debug, error, info, warn};

/// How long the threads may take to notice that they are to end at once.
const LAST_MOMENT: Duration = Duration::from_millis(500);

/// How often the process that comes after this one is told what was counted since.
const CORRECTIONS: Duration = Duration::from_millis(100);

/// A canary reverse proxy: decides per request between the old and the new version of a service.
///
/// Without a command it is the router. status, weight, rollout, breaker, reload and limits talk to a router that
/// runs, through its instrumentation port.
#[derive(Parser)]
#[command(
    name = "canary-router",
    version = LONG_VERSION,
    about,
    args_conflicts_with_subcommands = true
)]
struct Arguments {
    /// The configuration file [default: config.json]
    ///
    /// JSON; config.template.json has every key with its default. Each can be set from the environment too,
    /// which wins: CANARY_ROUTER_CIRCUIT_BREAKER__ERROR_LIMIT_CANARY=5 is error-limit-canary in
    /// circuit-breaker. With such a variable, and without -c, config.json need not be there.
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    #[command(flatten)]
    Running(Verb),
    #[command(flatten)]
    Offline(Offline),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match &arguments.command {
        Some(Command::Running(verb)) => cli::run(verb).map_err(Into::into),
        Some(Command::Offline(command)) => {
            offline::run(command, Arguments::command()).map_err(Into::into)
        }
        None => run(Source::new(arguments.config.as_deref())),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Before there is a configuration there is no log to say it in.
            #[allow(clippy::print_stderr)]
            {
                eprintln!("{error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(source: Source) -> Result<()> {
    // Before anybody puts another file there.
    let program = Program::of_this_process().context("cannot find the file of this program")?;
    let config = source.load()?;
    let _log_until_the_end = telemetry::init(config.log).context("cannot start the log")?;
    info!(version = VERSION, commit = COMMIT, "canary-router starts");
    info!(file = %source, "configuration loaded");
    if !config.variables.is_empty() {
        let variables = config.variables.join(" ");
        info!(variables, "the environment sets keys");
    }
    info!(
        config_json = config.effective.to_string().as_str(),
        "effective configuration"
    );

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot make a runtime")?;
    runtime.block_on(async {
        // Before the first connection is taken: from then on a signal must find somebody who drains.
        let signals = Signals::new().context("cannot listen for signals")?;
        let app = App::inherit(config)?.reloading(move || source.load_again());
        supervise(app.start()?, signals, program).await
    })
}

/// Waits for the end: a first signal drains, a second one stops at once.
async fn supervise(mut running: Running, mut signals: Signals, program: Program) -> Result<()> {
    info!(address = %running.proxy_address(), "taking requests");
    match running.instrumentation_address() {
        Some(address) => {
            info!(%address, "dashboard at /, metrics at /metrics, health at /health/live and /health/ready")
        }
        None => info!("no metrics: there is no instrumentation section"),
    }
    tell_manager(&[NotifyState::Ready]);
    let mut corrections = running.corrections();
    // Who reads from a disk that hangs is not to hold up what else is said.
    let mut reloading = pin!(Fuse::terminated());
    let successor = loop {
        let said = tokio::select! {
            ended = running.ended() => return gone(ended),
            said = signals.next() => said,
            // The log says what has become of it.
            _done = &mut reloading => {
                tell_manager(&[NotifyState::Ready]);
                continue;
            }
            by = next_correction(&mut corrections) => {
                heard(&running, by, &mut corrections);
                continue;
            }
        };
        match said {
            Said::Reread => {
                tell_manager(&[NotifyState::Reloading]);
                reloading.set(running.reload().fuse());
            }
            Said::Succeed => {
                info!("SIGUSR2: starting the process that takes the place of this one");
                // Who comes next may have read the configuration before this was said.
                let mut reread = false;
                let handed = {
                    let mut succession = pin!(succeed(&mut running, &program));
                    loop {
                        tokio::select! {
                            handed = &mut succession => break Ok(handed),
                            said = signals.next() => match said {
                                Said::Stop(name) => break Err(name),
                                Said::Reread => reread = true,
                                Said::Succeed => {}
                            },
                        }
                    }
                };
                if reread {
                    match &handed {
                        Ok(Ok(successor)) => successor.reread(),
                        Ok(Err(_)) => reloading.set(running.reload().fuse()),
                        Err(_) => {}
                    }
                }
                match handed {
                    Ok(Ok(successor)) => break Some(successor),
                    Ok(Err(error)) => {
                        error!(error, "SIGUSR2: this process goes on as before");
                    }
                    Err(name) => {
                        running.unfreeze();
                        info!(signal = name, "draining: no new connections");
                        break None;
                    }
                }
            }
            Said::Stop(name) => {
                info!(signal = name, "draining: no new connections");
                break None;
            }
        }
    };
    match successor {
        Some(successor) => {
            let process = successor.id();
            info!(
                process,
                "another process has taken the place of this one, which drains"
            );
            tell_manager(&[NotifyState::MainPid(process)]);
            finish(running, signals, Some(successor), corrections).await
        }
        None => {
            tell_manager(&[NotifyState::Stopping]);
            running.drain();
            finish(running, signals, None, None).await
        }
    }
}

/// Ends when everything that is in flight has, or at a second signal.
async fn finish(
    mut running: Running,
    mut signals: Signals,
    mut successor: Option<Successor>,
    mut corrections: Option<Corrections>,
) -> Result<()> {
    let mut looks = tokio::time::interval(CORRECTIONS);
    let ended = loop {
        tokio::select! {
            ended = running.ended() => break ended,
            name = signals.stop() => {
                warn!(signal = name, "second signal: stopping at once");
                running.cut();
                // What was served is still told of.
                let _in_vain = tokio::time::timeout(LAST_MOMENT, running.ended()).await;
                correct(&running, &mut successor).await;
                bail!("stopped by a second signal before the drain had ended")
            }
            by = next_correction(&mut corrections) => heard(&running, by, &mut corrections),
            _ = looks.tick() => correct(&running, &mut successor).await,
        }
    };
    correct(&running, &mut successor).await;
    // What the one before this one still tells is for the one after it, which hears nobody else.
    while ended.is_ok() && successor.is_some() && corrections.is_some() {
        tokio::select! {
            by = next_correction(&mut corrections) => heard(&running, by, &mut corrections),
            _ = signals.stop() => break,
        }
        correct(&running, &mut successor).await;
    }
    gone(ended)
}

/// Tells who has come after this process what has become of the errors that were reserved.
async fn correct(running: &Running, successor: &mut Option<Successor>) {
    if let Some(after) = successor
        && after.correct(running.errors()).await.is_err()
    {
        *successor = None;
    }
}

/// The process before this one has told something, or ended.
fn heard(running: &Running, by: Option<Correction>, corrections: &mut Option<Corrections>) {
    match by {
        Some(by) => running.correct(by),
        None => *corrections = None,
    }
}

async fn succeed(running: &mut Running, program: &Program) -> Result<Successor, String> {
    if std::process::id() == 1 {
        return Err(
            "process 1 of a container ends it when it ends: start a container with the new version instead".into(),
        );
    }
    running.hand_over(program).await
}

/// What the process before this one says next; never, where there is none.
async fn next_correction(corrections: &mut Option<Corrections>) -> Option<Correction> {
    match corrections {
        Some(corrections) => corrections.next().await,
        None => std::future::pending().await,
    }
}

/// Tells the service manager, if there is one that wants to know (sd_notify(3)).
fn tell_manager(states: &[NotifyState<'_>]) {
    // systemd wants to know since when, to tell this reload from an earlier one.
    let since = match states {
        [NotifyState::Reloading] => NotifyState::monotonic_usec_now().ok(),
        _ => None,
    };
    let told: Vec<_> = states.iter().cloned().chain(since).collect();
    if let Err(error) = sd_notify::notify(&told) {
        debug!(%error, "the service manager was not told");
    }
}

fn gone(ended: Result<(), String>) -> Result<()> {
    match ended {
        Ok(()) => {
            info!("stopped");
            Ok(())
        }
        Err(why) => {
            error!(%why, "stopping");
            bail!(why)
        }
    }
}

enum Said {
    Reread,
    Succeed,
    Stop(&'static str),
}

struct Signals {
    hangup: Signal,
    successor: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Signals> {
        Ok(Signals {
            hangup: signal(SignalKind::hangup())?,
            successor: signal(SignalKind::user_defined2())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> Said {
        tokio::select! {
            _ = self.hangup.recv() => Said::Reread,
            _ = self.successor.recv() => Said::Succeed,
            _ = self.terminate.recv() => Said::Stop("SIGTERM"),
            _ = self.interrupt.recv() => Said::Stop("SIGINT"),
        }
    }

    async fn stop(&mut self) -> &'static str {
        loop {
            if let Said::Stop(name) = self.next().await {
                return name;
            }
        }
    }
}
