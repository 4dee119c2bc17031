//! The proxies that are compared, each configured for the same work: the same protocol to the upstream
//! over kept connections, `X-Forwarded-For`, no access log. With TLS, the same version and certificate,
//! and HTTP/2 is offered; a handshake ends with two tickets, as it does by default with all of them, and
//! nobody comes back with one. The router has everything on that is on by default, and metrics and
//! both of the canary's limits.

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::{Result, ensure};
use serde_json::json;

use super::{
    certificate::{BOTH, CERTIFICATE, KEY},
    machine::allow_open_files,
    process::{Folder, Process, find, free_address},
    wire::Wire,
};

/// One of those that are compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proxy {
    Router { name: String, binary: PathBuf },
    Nginx { buffering: bool },
    Haproxy,
}

/// What it is to do.
#[derive(Debug, Clone, Copy)]
pub struct Task {
    pub workers: usize,
    pub wire: Wire,
    /// From clients, or requests that they have in flight; each may need one to the upstream.
    pub connections: usize,
    pub upstream: SocketAddr,
    pub sidecar: Option<SocketAddr>,
    /// What the router guards the canary with.
    pub guards: Guards,
}

/// What stands before the canary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guards {
    /// Nothing, and the sidecar sends everything there.
    Off,
    /// Both limits; the sidecar sends nothing there.
    Limits,
    /// Both limits, a breaker with both thresholds, replays; the sidecar sends everything there.
    All,
    /// Both limits; the weight sends half of it there.
    Weight,
    /// The same as the step of a rollout; it is to be started.
    Rollout,
    /// As `Limits`, with an access log.
    Logged,
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Proxy::Router { name, .. } => name,
            Proxy::Nginx { buffering: true } => "nginx",
            Proxy::Nginx { buffering: false } => "nginx, unbuffered",
            Proxy::Haproxy => "haproxy",
        })
    }
}

impl Proxy {
    /// The program that it is.
    pub fn program(&self) -> Result<PathBuf> {
        match self {
            Proxy::Router { name, binary } => {
                ensure!(
                    binary.is_file(),
                    "{name}: no such file: {}",
                    binary.display()
                );
                Ok(std::path::absolute(binary)?)
            }
            Proxy::Nginx { .. } => find("nginx", "nginx-light"),
            Proxy::Haproxy => find("haproxy", "haproxy"),
        }
    }

    /// Runs it on the cores of the caller.
    pub fn start(&self, task: &Task, folder: &Folder) -> Result<Process> {
        allow_open_files(task.connections as u64 + 5_000)?;
        let address = free_address()?;
        let program = self.program()?;
        match self {
            Proxy::Router { .. } => {
                let config = folder.write("router.json", &router(address, task)?)?;
                Process::start(&program, [Path::new("-c"), &config], address, folder)
            }
            Proxy::Nginx { buffering } => {
                let config = folder.write("nginx.conf", &nginx(address, task, *buffering))?;
                let prefix = [Path::new("-p"), &folder.0, Path::new("-c"), &config];
                let log = ["-e", "stderr"].map(Path::new);
                Process::start(&program, prefix.into_iter().chain(log), address, folder)
            }
            Proxy::Haproxy => {
                let config = folder.write("haproxy.cfg", &haproxy(address, task))?;
                let arguments = ["-db", "-f"].map(Path::new);
                let arguments = arguments.into_iter().chain([config.as_path()]);
                Process::start(&program, arguments, address, folder)
            }
        }
    }
}

/// Limits that are never reached: what is measured is that they are watched.
pub fn router(address: SocketAddr, task: &Task) -> Result<String> {
    router_with(address, free_address()?, task)
}

/// The same, with an instrumentation port that the caller has to know.
pub fn router_with(
    address: SocketAddr,
    instrumentation: SocketAddr,
    task: &Task,
) -> Result<String> {
    let mut config = json!({
        "main-target": format!("http://{}", task.upstream),
        "canary-target": format!("http://{}", task.upstream),
        "router-server": {
            "host": address.ip().to_string(),
            "port": address.port(),
            "workers": task.workers,
            "idle-timeout": "300s"
        },
        "instrumentation": {
            "host": address.ip().to_string(),
            "port": instrumentation.port()
        }
    });
    // Older builds do not know these keys: they are there where they are needed.
    if task.wire.tls {
        config["router-server"]["tls"] = json!({"certificate": CERTIFICATE, "private-key": KEY});
    }
    if task.wire.http2_upstream {
        config["proxy-client"] = json!({"to-main-and-canary": {"protocol": "h2"}});
    }
    match task.guards {
        Guards::Weight => config["traffic"] = json!({"weight": 50}),
        Guards::Rollout => {
            config["rollout"] = json!({"steps": [{"weight": 50, "for": "24h"}]});
        }
        Guards::Logged => config["log"] = json!({"level": "warn", "access": "json"}),
        Guards::Off | Guards::Limits | Guards::All => {}
    }
    if let Some(sidecar) = task.sidecar {
        config["sidecar-url"] = format!("http://{sidecar}").into();
        if task.guards != Guards::Limits {
            // It says 204 to everything.
            config["canary-sidecar-status"] = 204.into();
            config["main-sidecar-status"] = 200.into();
        }
    }
    if task.guards != Guards::Off {
        config["circuit-breaker"] = json!({
            "request-limit-canary": 1_000_000_000,
            "error-limit-canary": 1_000_000_000
        });
    }
    if task.guards == Guards::All {
        let breaker = &mut config["circuit-breaker"];
        breaker["failure-rate-threshold"] = 50.into();
        breaker["slow-call-rate-threshold"] = 50.into();
        breaker["slow-call-duration"] = "1s".into();
        config["fallback"] = json!({"replay": "failures"});
    }
    Ok(format!("{config:#}\n"))
}

fn nginx(address: SocketAddr, task: &Task, buffering: bool) -> String {
    let Task {
        workers,
        upstream,
        wire,
        ..
    } = task;
    // As long as the bench lasts; the usual end after 1000 requests would be one nginx's alone.
    let idle = match wire.http2 {
        true => task.connections.max(256),
        false => 256,
    };
    let kept = format!("keepalive {idle}; keepalive_requests 1000000000;");
    let worker_connections = 3 * task.connections + 256;
    let (sidecar, ask, question) = match task.sidecar {
        None => Default::default(),
        Some(sidecar) => (
            format!("upstream sidecar {{ server {sidecar}; {kept} }}"),
            "auth_request /.sidecar;",
            "location = /.sidecar {
                internal;
                proxy_pass http://sidecar;
                proxy_pass_request_body off;
                proxy_set_header Content-Length \"\";
                proxy_set_header Host $host;
                proxy_set_header Connection \"\";
                proxy_set_header X-Original-URI $request_uri;
                proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            }",
        ),
    };
    // Without buffering there is one buffer, and with its usual 4 KiB nginx is at its slowest.
    let buffering = match buffering {
        true => "proxy_buffering on;",
        false => "proxy_buffering off; proxy_buffer_size 64k; proxy_buffers 8 64k;",
    };
    let (listen, certificate) = match (wire.tls, wire.http2) {
        (true, _) => (
            " ssl http2",
            format!(
                "ssl_protocols TLSv1.3;
                ssl_certificate {CERTIFICATE};
                ssl_certificate_key {KEY};"
            ),
        ),
        (false, true) => (" http2", String::new()),
        (false, false) => Default::default(),
    };
    // It has no other way to speak HTTP/2 to an upstream.
    let pass = match wire.http2_upstream {
        true => "grpc_pass grpc://main;
                    grpc_set_header Host $host;
                    grpc_set_header X-Forwarded-For $proxy_add_x_forwarded_for;"
            .to_owned(),
        false => format!(
            "proxy_pass http://main;
                    {buffering}
                    proxy_set_header Host $host;
                    proxy_set_header Connection \"\";
                    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;"
        ),
    };
    format!(
        "daemon off;
        user root;
        pid nginx.pid;
        error_log stderr error;
        worker_processes {workers};
        events {{ worker_connections {worker_connections}; }}
        http {{
            access_log off;
            keepalive_requests 1000000000;
            keepalive_timeout 300s;
            client_body_buffer_size 64k;
            client_body_temp_path body;
            proxy_temp_path proxy;
            fastcgi_temp_path fastcgi;
            uwsgi_temp_path uwsgi;
            scgi_temp_path scgi;
            proxy_http_version 1.1;
            upstream main {{ server {upstream}; {kept} }}
            {sidecar}
            server {{
                listen {address}{listen} reuseport backlog=4096;
                {certificate}
                location / {{
                    {ask}
                    {pass}
                }}
                {question}
            }}
        }}
        "
    )
}

fn haproxy(address: SocketAddr, task: &Task) -> String {
    let Task {
        workers,
        upstream,
        wire,
        ..
    } = task;
    let maxconn = task.connections + 100;
    let listen = match (wire.tls, wire.http2) {
        (true, _) => format!(" ssl crt {BOTH} alpn h2,http/1.1 ssl-min-ver TLSv1.3"),
        (false, true) => " proto h2".to_owned(),
        (false, false) => String::new(),
    };
    let speak = match wire.http2_upstream {
        true => " proto h2",
        false => "",
    };
    format!(
        "global
            nbthread {workers}
            maxconn {maxconn}
            no strict-limits
            # It would stop keeping connections to the server when a quarter of its files are in use.
            tune.pool-low-fd-ratio 80
            tune.pool-high-fd-ratio 90
        defaults
            mode http
            option forwardfor
            http-reuse always
            timeout connect 5s
            timeout client 300s
            timeout server 60s
            timeout http-keep-alive 300s
        frontend bench
            bind {address} backlog 4096{listen}
            default_backend main
        backend main
            server main {upstream}{speak}
        "
    )
}
