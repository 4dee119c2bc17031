//! The commands that need no router: whether a configuration can be used, and what can be in one; what can be said on
//! the command line, for shells and man(1).
//!
//! They read files and the environment, and print. They bind nothing, connect to nobody and leave nothing
//! behind.

mod man;

use std::{
    io::{self, Write},
    path::PathBuf,
};

use clap::{Command, Subcommand, ValueEnum};

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
    /// Print a script that has a shell complete the command line
    ///
    /// For bash: canary-router completions bash >/etc/bash_completion.d/canary-router
    Completions {
        /// Which shell it is for
        shell: Shell,
    },
    /// Print the manual page
    ///
    /// canary-router man >/usr/local/share/man/man1/canary-router.1
    #[command(hide = true)]
    Man,
}

/// What completions there are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum Shell {
    Bash,
    Zsh,
    Fish,
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

/// Does what is asked, and prints it on stdout. `program` is the whole command line.
///
/// # Errors
/// It did not work; nothing was printed.
pub fn run(command: &Offline, program: Command) -> Result<(), Error> {
    let output = match command {
        Offline::Check { config } => {
            let config = Source::new(config.as_deref()).load()?;
            format!("{:#}\n", config.effective).into_bytes()
        }
        Offline::Schema { markdown: false } => format!("{:#}\n", config::schema()).into_bytes(),
        Offline::Schema { markdown: true } => config::reference().into_bytes(),
        Offline::Completions { shell } => completions(*shell, program),
        Offline::Man => man::page(program).map_err(Error::Output)?,
    };
    print(&output)
}

fn completions(shell: Shell, mut program: Command) -> Vec<u8> {
    let shell = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let name = program.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut program, &*name, &mut script);
    // For bash it spells a name with a hyphen in two ways, and so nothing behind a command is completed
    // (clap issue 6421). Where that is mended this does nothing.
    let spelt = |between: &str| name.replace('-', between);
    let script = String::from_utf8_lossy(&script);
    script
        .replace(&spelt("__subcmd__"), &spelt("__"))
        .into_bytes()
}

fn print(output: &[u8]) -> Result<(), Error> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(output).and_then(|()| stdout.flush());
    match written {
        // Whoever reads has seen enough: `canary-router check | head -1`.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(Error::Output),
    }
}
