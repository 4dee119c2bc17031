//! What can be said on the command line to a router that runs, and which request each of it is.

use std::{path::PathBuf, str::FromStr};

use clap::{Args, Subcommand, ValueEnum};
use http::Method;
use serde_json::{Value, json};

use super::client::Url;

/// What is asked of a running router.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Show how a running router is doing
    Status {
        /// Show it again each second, until Ctrl-C
        #[arg(long)]
        watch: bool,
        #[command(flatten)]
        #[allow(missing_docs)]
        options: Options,
    },
    /// Set the canary's share of the eligible requests
    Weight {
        /// 0 to 100, with at most two decimals
        #[arg(allow_negative_numbers = true)]
        percent: Percent,
        #[command(flatten)]
        #[allow(missing_docs)]
        options: Options,
    },
    /// Move a rollout
    Rollout {
        /// What it shall do
        #[arg(value_name = "COMMAND")]
        command: RolloutCommand,
        #[command(flatten)]
        #[allow(missing_docs)]
        options: Options,
    },
    /// Close the circuit breakers
    Breaker {
        /// What they shall do
        #[arg(value_name = "COMMAND")]
        command: Reset,
        #[command(flatten)]
        #[allow(missing_docs)]
        options: Options,
    },
    /// Have a running router read its configuration again
    Reload {
        #[command(flatten)]
        #[allow(missing_docs)]
        options: Options,
    },
    /// Give the canary its limits of requests and errors again
    Limits {
        /// What they shall do
        #[arg(value_name = "COMMAND")]
        command: Reset,
        #[command(flatten)]
        #[allow(missing_docs)]
        options: Options,
    },
}

/// What a rollout can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RolloutCommand {
    /// Begin with the first step, with fresh evidence
    Start,
    /// Stay at this weight; the judge goes on
    Pause,
    /// Go on with the step that was paused
    Resume,
    /// Give the canary everything
    Promote,
    /// Give the canary nothing
    Abort,
}

/// What limits and breakers can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Reset {
    /// Begin afresh
    Reset,
}

/// Where the router is, and how its answer is shown.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// The router's instrumentation port
    #[arg(
        long,
        value_name = "URL",
        env = "CANARY_ROUTER_URL",
        default_value = "http://127.0.0.1:8888"
    )]
    pub(super) url: Url,
    /// A file that holds the router's token (instrumentation.token) and nothing else
    #[arg(long, value_name = "FILE", env = "CANARY_ROUTER_TOKEN_FILE")]
    pub(super) token_file: Option<PathBuf>,
    /// Print the router's answer as it is, in JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// A share in percent, in hundredths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Percent(u32);

impl FromStr for Percent {
    type Err = &'static str;

    /// `5`, `0.25`, `5%`.
    fn from_str(text: &str) -> Result<Percent, &'static str> {
        const WANTED: &str =
            "a share in percent is 0 to 100 with at most two decimals, as in 5 or 0.25";
        let number = text.strip_suffix('%').unwrap_or(text).trim_end();
        let (whole, decimals) = number.split_once('.').unwrap_or((number, "0"));
        let digits = |text: &str, most: usize| {
            (1..=most).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
        };
        if !digits(whole, 3) || !digits(decimals, 2) {
            return Err(WANTED);
        }
        let hundredths: u32 = format!("{whole}{decimals:0<2}")
            .parse()
            .map_err(|_| WANTED)?;
        match hundredths {
            0..=10_000 => Ok(Percent(hundredths)),
            _ => Err(WANTED),
        }
    }
}

impl Percent {
    fn to_json(self) -> Value {
        match self.0 % 100 {
            0 => json!(self.0 / 100),
            _ => json!(f64::from(self.0) / 100.0),
        }
    }
}

/// One request to the router.
pub(super) struct Request {
    pub method: Method,
    pub path: &'static str,
    pub body: Option<Value>,
}

impl Request {
    fn post(path: &'static str) -> Request {
        Request {
            method: Method::POST,
            path,
            body: None,
        }
    }
}

impl Verb {
    pub(super) fn options(&self) -> &Options {
        match self {
            Verb::Status { options, .. }
            | Verb::Weight { options, .. }
            | Verb::Rollout { options, .. }
            | Verb::Breaker { options, .. }
            | Verb::Reload { options }
            | Verb::Limits { options, .. } => options,
        }
    }

    pub(super) fn request(&self) -> Request {
        match self {
            Verb::Status { .. } => Request {
                method: Method::GET,
                path: "/status",
                body: None,
            },
            Verb::Weight { percent, .. } => Request {
                method: Method::PUT,
                path: "/traffic/weight",
                body: Some(json!({"weight": percent.to_json()})),
            },
            Verb::Rollout { command, .. } => Request::post(match command {
                RolloutCommand::Start => "/rollout/start",
                RolloutCommand::Pause => "/rollout/pause",
                RolloutCommand::Resume => "/rollout/resume",
                RolloutCommand::Promote => "/rollout/promote",
                RolloutCommand::Abort => "/rollout/abort",
            }),
            Verb::Breaker {
                command: Reset::Reset,
                ..
            } => Request::post("/breaker/reset"),
            Verb::Reload { .. } => Request::post("/reload"),
            Verb::Limits {
                command: Reset::Reset,
                ..
            } => Request::post("/limits/reset"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_is_exact_to_two_decimals() {
        let read = |text: &str| {
            text.parse::<Percent>()
                .map(|percent| percent.to_json().to_string())
        };
        for (text, json) in [
            ("0", "0"),
            ("5", "5"),
            ("5%", "5"),
            ("5 %", "5"),
            ("005", "5"),
            ("5.0", "5"),
            ("0.25", "0.25"),
            ("0.29", "0.29"),
            ("99.99", "99.99"),
            ("12.5", "12.5"),
            ("100.00", "100"),
        ] {
            assert_eq!(read(text).as_deref(), Ok(json), "{text}");
        }
        for text in [
            "", "%", ".", ".5", "5.", "-1", "+5", "100.01", "101", "0.001", "1e1", "five", "5%%",
            "٥", "1000", "NaN", "0x5", "1,5", " 5",
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
