//! `router-server`: where requests are taken, and how long for.

use super::{
    Listen, Server,
    error::Problems,
    judge::{set, span, to_usize},
    raw::RouterServer,
    tls::server_tls,
    values::Size,
};

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
    let max_header_bytes = raw.max_header_bytes.map_or(0, |Size(bytes)| bytes);
    if !(1 << 10..=256 << 10).contains(&max_header_bytes) {
        problems.add(
            "/router-server/max-header-bytes",
            format!("{max_header_bytes} is out of range: use \"1KiB\" to \"256KiB\""),
        );
    }
    let tls = server_tls(&raw.tls, problems);
    Some(Server {
        listen: Listen {
            host: host?.to_owned(),
            port: port?,
        },
        tls,
        workers: to_usize(workers),
        read_timeout: span(raw.read_timeout),
        write_timeout: span(raw.write_timeout),
        idle_timeout: span(raw.idle_timeout),
        shutdown_timeout: span(raw.shutdown_timeout),
        max_header_bytes: to_usize(max_header_bytes),
    })
}
