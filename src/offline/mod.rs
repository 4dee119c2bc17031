//! The commands that need no router: whether a configuration can be used, and what can be in one.
//!
//! They read files and the environment, and print. They bind nothing, connect to nobody and leave nothing
//! behind.

use std::{
    io::{self, Write},
    path::PathBuf,
};

use clap::Subcommand;

use crate::config::{self, ConfigError, Source};

/// What can be asked without a router.
#[derive(Debug, Subcommand)]
pub enum Offline {
    /// Say whether a configuration can be used, and print it with its defaults
    ///
    /// The file and the environment are read as the router does when it starts. What can be used is printed
    /// in JSON, secrets masked; what is wrong is said on stderr, and the exit status is 1.
    Check {
        /// The configuration file [default: config.json]
        #[arg(short, long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Print the JSON Schema of the configuration file
    ///
    /// Editors complete and check the file by it: canary-router schema >config.schema.json, and in the file,
    /// first, "$schema": "./config.schema.json".
    Schema {
        /// Print the reference of all keys instead, in Markdown
        #[arg(long)]
        markdown: bool,
    },
}

/// Why it did not work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The output cannot be written.
    #[error("cannot write the output: {0}")]
    Output(io::Error),
}

/// Does what is asked, and prints it on stdout.
///
/// # Errors
/// It did not work; nothing was printed.
pub fn run(command: &Offline) -> Result<(), Error> {
    let text = match command {
        Offline::Check { config } => {
            let config = Source::new(config.as_deref()).load()?;
            format!("{:#}\n", config.effective)
        }
        Offline::Schema { markdown: false } => format!("{:#}\n", config::schema()),
        Offline::Schema { markdown: true } => config::reference(),
    };
    print(&text)
}

fn print(text: &str) -> Result<(), Error> {
    let mut stdout = io::stdout().lock();
    let written = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush());
    match written {
        // Whoever reads has seen enough: `canary-router check | head -1`.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(Error::Output),
    }
}
