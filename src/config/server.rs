//! `router-server`: where requests are taken, and how long for.

use super::{
    Listen, Server,
    error::Problems,
    judge::{set, span, to_usize},
    raw::RouterServer,
    tls::server_tls,
    traffic::networks,
    values::{Flag, Size},
};

const TRUSTED_PROXIES: &str = "/router-server/trusted-proxies";

/// What `max-connections` can be at most.
const MOST_CONNECTIONS: u64 = 10_000_000;

pub(super) fn server(raw: &RouterServer, problems: &mut Problems) -> Option<Server> {
    let host = set(&raw.host);
    if host.is_none() {
        problems.add(
            "/router-server/host",
            "is missing: write the address to listen on, such as \"127.0.0.1\", \
             or \"0.0.0.0\" for all",
        );
    }
    let port = raw.port.map(|port| port.0).filter(|port| *port != 0);
    if port.is_none() {
        problems.add(
            "/router-server/port",
            "is missing: write the TCP port to listen on, such as 1345",
        );
    }
    let workers = raw.workers.0;
    if workers > 1024 {
        problems.add(
            "/router-server/workers",
            format!(
                "{workers} threads are more than any machine needs: use 0 (one per core) to 1024"
            ),
        );
    }
    let max_connections = raw.max_connections.0;
    if max_connections > MOST_CONNECTIONS {
        problems.add(
            "/router-server/max-connections",
            format!(
                "{max_connections} connections are more than any machine holds: use 0 (as many as there \
                 are descriptors for) to {MOST_CONNECTIONS}"
            ),
        );
    }
    let max_header_bytes = raw.max_header_bytes.map_or(0, |Size(bytes)| bytes);
    if !(1 << 10..=256 << 10).contains(&max_header_bytes) {
        problems.add(
            "/router-server/max-header-bytes",
            format!("{max_header_bytes} is out of range: use \"1KiB\" to \"256KiB\""),
        );
    }
    let trusted_proxies = networks(TRUSTED_PROXIES, &raw.trusted_proxies, problems);
    let nobody_is_trusted = raw.trusted_proxies.0.is_empty() && !problems.has(TRUSTED_PROXIES);
    if raw.proxy_protocol.0 && nobody_is_trusted {
        problems.add(
            "/router-server/proxy-protocol",
            "has no effect: the PROXY header is read from /router-server/trusted-proxies only (a \
             connection of anybody else is taken as it is), and there are none; write the networks \
             that your proxies are in, such as [\"10.0.0.0/8\"], or take this out",
        );
    }
    let http2 = raw.http2.is_none_or(|Flag(on)| on);
    let tls = server_tls(&raw.tls, http2, problems);
    Some(Server {
        listen: Listen {
            host: host?.to_owned(),
            port: port?,
        },
        tls,
        http2,
        trusted_proxies,
        proxy_protocol: raw.proxy_protocol.0,
        workers: to_usize(workers),
        max_connections: to_usize(max_connections),
        read_timeout: span(raw.read_timeout),
        write_timeout: span(raw.write_timeout),
        idle_timeout: span(raw.idle_timeout),
        shutdown_timeout: span(raw.shutdown_timeout),
        max_header_bytes: to_usize(max_header_bytes),
    })
}

#[cfg(test)]
mod tests;
