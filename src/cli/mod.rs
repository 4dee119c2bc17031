//! The command line of a router that runs: asks for its status, moves its weight and its rollout.
//!
//! It is a client of the instrumentation port and nothing else: what it knows of a router is what the router
//! answers, so it works from another machine, on another version, and when the router itself is in trouble. It decides
//! nothing; whether a command makes sense now is the router's to say, and what the router says of it is
//! passed on.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde_json::Value;

mod client;
mod verbs;
mod view;
mod watch;

pub use verbs::{Options, Percent, Reset, RolloutCommand, Verb};

use client::{Call, Token};

/// Why it did not work. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The token cannot be had.
    #[error("{}: {why}", file.display())]
    Token {
        /// Where it should be.
        file: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Nobody is there.
    #[error(
        "cannot connect to {url}: {why}: is the router running, and is this its instrumentation port? \
         Say where it is with --url"
    )]
    Unreachable {
        /// Where it was looked for.
        url: String,
        /// What the system says.
        why: io::Error,
    },
    /// It does not answer, or not with HTTP, or stops in the middle.
    #[error("{url}: {why}: is this the router's instrumentation port? Say where it is with --url")]
    NotOurs {
        /// Who was asked.
        url: String,
        /// What came instead.
        why: String,
    },
    /// The router wants a token, or another one.
    #[error("{said} (401): {what_to_do}")]
    Unauthorized {
        /// The router's word.
        said: String,
        /// Which depends on whether there was a token.
        what_to_do: String,
    },
    /// The router does not do it, and says why.
    #[error("{said} ({status})")]
    Refused {
        /// The router's word.
        said: String,
        /// The status of its answer.
        status: u16,
    },
    /// There is no runtime to be had, or no signals.
    #[error("cannot begin: {0}")]
    System(io::Error),
    /// The output cannot be written.
    #[error("cannot write the output: {0}")]
    Output(io::Error),
}

/// Does what is asked, and prints the router's status afterwards on stdout.
///
/// # Errors
/// It did not work; nothing was printed but by `--watch`.
pub fn run(verb: &Verb) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::System)?;
    let done = runtime.block_on(carry_out(verb));
    // A name that is still being resolved is not waited for.
    runtime.shutdown_background();
    match done {
        // Whoever reads has seen enough: `canary-router status | head -1`.
        Err(Error::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => done,
    }
}

async fn carry_out(verb: &Verb) -> Result<(), Error> {
    let options = verb.options();
    let call = Call {
        url: &options.url,
        token: options.token_file.as_deref().map(token).transpose()?,
    };
    let request = verb.request();
    match verb {
        Verb::Status { watch: true, .. } => watch::watch(&call, &request, options.json).await,
        _ => print(&shown(&call.make(&request).await?, options.json)),
    }
}

fn shown(status: &Value, json: bool) -> String {
    match json {
        true => format!("{status:#}\n"),
        false => view::status(status),
    }
}

fn token(file: &Path) -> Result<Token, Error> {
    let failed = |why: String| Error::Token {
        file: file.to_owned(),
        why,
    };
    let text = std::fs::read_to_string(file).map_err(|error| {
        failed(format!(
            "{error}: --token-file names the file that holds the router's token"
        ))
    })?;
    Token::new(text.trim()).map_err(|why| failed(why.into()))
}

fn print(text: &str) -> Result<(), Error> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(Error::Output)
}

fn complain(text: &str) {
    let _nobody_listens = writeln!(io::stderr(), "{text}");
}

/// What somebody else wrote, as text for a terminal that obeys no orders in it.
fn harmless(text: &str) -> String {
    let text = text.replace(char::is_control, " ");
    text.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_write_cannot_steer_the_terminal() {
        assert_eq!(harmless("\x1b[2J no\r\n\u{9b}1m"), "[2J no   1m");
    }
}
