//! What is sent through the proxies.

use std::fmt;

use clap::ValueEnum;

use super::{message::Exchange, wire::Wire};

/// A kind of traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Workload {
    /// GET, 1 KiB answer
    Plain,
    /// The same, with a question to a sidecar that answers 204
    Sidecar,
    /// POST of 16 KiB, 1 KiB answer
    Post,
    /// GET, 1 MiB answer
    Large,
    /// GET, 1 KiB answer, HTTP/1.1 over TLS
    Tls,
    /// GET, 1 KiB answer, HTTP/2 over TLS
    H2,
    /// GET, 1 KiB answer, HTTP/2 without TLS
    H2c,
    /// GET, 1 KiB answer, HTTP/2 without TLS on both sides (nginx: `grpc_pass`)
    H2Both,
    /// GET, 1 KiB answer, HTTP/1.1 over TLS, a connection for each request
    Handshake,
    /// Idle keep-alive connections that each made one request
    Idle,
}

impl Workload {
    pub fn exchange(self) -> Exchange {
        match self {
            Workload::Plain
            | Workload::Sidecar
            | Workload::Tls
            | Workload::H2
            | Workload::H2c
            | Workload::H2Both
            | Workload::Handshake
            | Workload::Idle => Exchange::new("GET", 0, 1024),
            Workload::Post => Exchange::new("POST", 16 << 10, 1024),
            Workload::Large => Exchange::new("GET", 0, 1 << 20),
        }
    }

    /// As `--help` says it.
    pub fn description(self) -> String {
        let value = self.to_possible_value();
        let help = value.as_ref().and_then(|value| value.get_help());
        help.map(ToString::to_string).unwrap_or_default()
    }

    pub fn asks_sidecar(self) -> bool {
        self == Workload::Sidecar
    }

    pub fn wire(self) -> Wire {
        let (tls, http2, http2_upstream) = match self {
            Workload::Tls | Workload::Handshake => (true, false, false),
            Workload::H2 => (true, true, false),
            Workload::H2c => (false, true, false),
            Workload::H2Both => (false, true, true),
            Workload::Plain
            | Workload::Sidecar
            | Workload::Post
            | Workload::Large
            | Workload::Idle => (false, false, false),
        };
        Wire {
            tls,
            http2,
            http2_upstream,
        }
    }

    /// A moderate load, in requests a second: about a fifth of what one core of nginx does. 0 where
    /// nobody sends at a rate.
    pub fn moderate_rate(self) -> u32 {
        match self {
            Workload::Plain | Workload::Idle => 10_000,
            Workload::Sidecar | Workload::Post => 5_000,
            Workload::Large => 400,
            Workload::Handshake => 1_000,
            Workload::Tls | Workload::H2 | Workload::H2c | Workload::H2Both => 0,
        }
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Workload::Plain => "plain",
            Workload::Sidecar => "sidecar",
            Workload::Post => "post",
            Workload::Large => "large",
            Workload::Tls => "tls",
            Workload::H2 => "h2",
            Workload::H2c => "h2c",
            Workload::H2Both => "h2-both",
            Workload::Handshake => "handshake",
            Workload::Idle => "idle",
        })
    }
}
