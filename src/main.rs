//! The command line: reads the configuration, starts the router, passes signals on; or talks to a router that
//! runs.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use canary_router::{
    VERSION,
    app::{App, Running},
    cli::{self, Verb},
    config::Config,
    telemetry,
};
use clap::Parser;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info, warn};

/// How long the threads may take to notice that they are to end at once.
const LAST_MOMENT: Duration = Duration::from_millis(500);

/// A canary reverse proxy: decides per request between the old and the new version of a service.
///
/// Without a command it is the router. The commands talk to a router that runs, through its
/// instrumentation port.
#[derive(Parser)]
#[command(
    name = "canary-router",
    version,
    about,
    args_conflicts_with_subcommands = true
)]
struct Arguments {
    /// The configuration file (JSON; config.template.json has every key with its default).
    #[arg(short, long, value_name = "FILE", default_value = "config.json")]
    config: PathBuf,
    #[command(subcommand)]
    verb: Option<Verb>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match &arguments.verb {
        Some(verb) => cli::run(verb).map_err(Into::into),
        None => run(&arguments.config),
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

fn run(file: &Path) -> Result<()> {
    let config = Config::load(file)?;
    let _log_until_the_end = telemetry::init(config.log).context("cannot start the log")?;
    info!(version = VERSION, "canary-router starts");
    info!(file = %file.display(), "configuration loaded");
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
        let source = file.to_owned();
        let app = App::bind(config)?.reloading(move || Config::load(&source));
        supervise(app.start()?, signals).await
    })
}

/// Waits for the end: a first signal drains, a second one stops at once.
async fn supervise(mut running: Running, mut signals: Signals) -> Result<()> {
    info!(address = %running.proxy_address(), "taking requests");
    match running.instrumentation_address() {
        Some(address) => {
            info!(%address, "metrics at /metrics, health at /health/live and /health/ready")
        }
        None => info!("no metrics: there is no instrumentation section"),
    }
    loop {
        tokio::select! {
            ended = running.ended() => return gone(ended),
            said = signals.next() => match said {
                // The log says what has become of it.
                Said::Reread => drop(running.reload().await),
                Said::Stop(name) => {
                    info!(signal = name, "draining: no new connections");
                    break;
                }
            },
        }
    }
    running.drain();
    tokio::select! {
        ended = running.ended() => gone(ended),
        name = signals.stop() => {
            warn!(signal = name, "second signal: stopping at once");
            running.cut();
            // What was served is still told of.
            let _in_vain = tokio::time::timeout(LAST_MOMENT, running.ended()).await;
            bail!("stopped by a second signal before the drain had ended")
        }
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
    Stop(&'static str),
}

struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Signals> {
        Ok(Signals {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> Said {
        tokio::select! {
            _ = self.hangup.recv() => Said::Reread,
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
