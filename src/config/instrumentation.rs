//! `instrumentation`: where metrics, health and commands are, and who may give commands.
//!
//! A token is shown nowhere: not in a problem either, which is why none of them quotes it.

use std::net::IpAddr;

use super::{
    Instrumentation, Listen, Server, Token, error::Problems, files::read, judge::set,
    raw::Instrumentation as RawInstrumentation,
};

/// In bytes. A shorter one can be found by trying.
const SHORTEST_TOKEN: usize = 16;

pub(super) fn instrumentation(
    raw: &RawInstrumentation,
    server: Option<&Server>,
    problems: &mut Problems,
) -> Instrumentation {
    let listen = Listen {
        host: set(&raw.host).unwrap_or_default().to_owned(),
        port: raw.port.map_or(0, |port| port.0),
    };
    if let Some(server) = server
        && server.listen.port == listen.port
        && (server.listen.host == listen.host
            || is_any(&listen.host)
            || is_any(&server.listen.host))
    {
        problems.add(
            "/instrumentation/port",
            format!(
                "{} is /router-server/port too: give the metrics a port of their own",
                listen.port
            ),
        );
    }
    Instrumentation {
        listen,
        token: token(raw, problems),
    }
}

fn token(raw: &RawInstrumentation, problems: &mut Problems) -> Option<Token> {
    const PATH: &str = "/instrumentation/token";
    const FILE_PATH: &str = "/instrumentation/token-file";
    let written = raw.token.as_str().trim();
    let Some(file) = set(&raw.token_file) else {
        return match written {
            "" => None,
            written => judged(written, PATH, problems),
        };
    };
    if !written.is_empty() {
        problems.add(
            FILE_PATH,
            "stands beside /instrumentation/token: keep one of them",
        );
        return None;
    }
    match read(file) {
        Ok(content) => {
            // What is not UTF-8 is no visible ASCII.
            let content = String::from_utf8_lossy(&content);
            judged(content.trim(), FILE_PATH, problems)
        }
        Err(why) => {
            problems.add(FILE_PATH, why);
            None
        }
    }
}

/// More than RFC 6750 section 2.1 lets a bearer token be, and still a value that every header can carry.
fn judged(token: &str, path: &str, problems: &mut Problems) -> Option<Token> {
    if token.len() < SHORTEST_TOKEN || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        problems.add(
            path,
            format!(
                "is no token that is hard to guess and fits into a header: use {SHORTEST_TOKEN} or \
                 more visible ASCII characters without spaces; `openssl rand -hex 32` makes one"
            ),
        );
        return None;
    }
    Some(Token(token.to_owned()))
}

fn is_any(host: &str) -> bool {
    host.parse::<IpAddr>()
        .is_ok_and(|address| address.is_unspecified())
}
