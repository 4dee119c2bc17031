//! Programs that others wrote: nginx in front of us, curl, promtool, Prometheus.
//!
//! A program that is missing fails its tests and says what to install; nothing is skipped.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use crate::support::*;

/// A directory that goes when the test does.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new() -> Scratch {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("peers-{}-{next}", std::process::id());
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    pub fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.0.join(name)).unwrap_or_default()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _best_effort = fs::remove_dir_all(&self.0);
    }
}

#[track_caller]
pub fn start(command: &mut Command, package: &str) -> Child {
    let program = command.get_program().to_string_lossy().into_owned();
    match command.spawn() {
        Ok(child) => child,
        Err(error) if error.kind() == ErrorKind::NotFound => panic!(
            "{program} is not installed, and this test is worth nothing without it: \
             apt-get install {package}"
        ),
        Err(error) => panic!("{program}: {error}"),
    }
}

/// A program that runs until the test ends.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// Runs a program to its end, while the scripted upstreams of the test go on.
pub async fn run(mut command: Command, package: &'static str, input: Vec<u8>) -> Output {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = start(&mut command, package);
    let mut stdin = child.stdin.take().unwrap();
    let feeding = tokio::task::spawn_blocking(move || {
        // A program may well have enough before the end.
        let _enough = stdin.write_all(&input);
    });
    let ended = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap());
    let output = soon(ended).await.unwrap();
    soon(feeding).await.unwrap();
    output
}

// ---- curl

struct Curl {
    stdout: Vec<u8>,
    stderr: String,
    code: i32,
}

impl Curl {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    #[track_caller]
    fn fine(self) -> Curl {
        assert_eq!(self.code, 0, "{}", self.stderr);
        self
    }
}

async fn curl(args: &[&str], input: Vec<u8>) -> Curl {
    let mut command = Command::new("curl");
    // `-q` first: no settings of the machine's owner.
    command
        .args([
            "-q",
            "--silent",
            "--show-error",
            "--noproxy",
            "*",
            "--max-time",
            "15",
        ])
        .args(args);
    let output = run(command, "curl", input).await;
    Curl {
        stdout: output.stdout,
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        code: output.status.code().unwrap(),
    }
}

#[tokio::test]
async fn curl_gets_and_posts_on_one_connection() {
    let upstream = Upstream::start(|request| {
        let said = format!(
            "{} {} {}.",
            request.method(),
            request.target(),
            request.text()
        );
        answer(200, "x-a: 1\r\n", &said)
    })
    .await;
    let router = router_to(&upstream.url());
    let url = format!("http://{}", router.address);
    let got = curl(
        &[
            "--http1.1",
            "-w",
            "%{http_version} %{http_code} %{num_connects}\n",
            &format!("{url}/a?b=%2F"),
            "--next",
            "--silent",
            "--noproxy",
            "*",
            "--data",
            "some body",
            "-w",
            "%{http_version} %{http_code} %{num_connects}\n",
            &format!("{url}/post"),
        ],
        Vec::new(),
    )
    .await
    .fine();
    assert_eq!(
        got.text(),
        "GET /a?b=%2F .1.1 200 1\nPOST /post some body.1.1 200 0\n"
    );
    for seen in upstream.seen() {
        assert!(seen.header("user-agent").unwrap().starts_with("curl/"));
        assert_eq!(seen.header("accept"), Some("*/*"));
        assert_eq!(seen.header("x-forwarded-for"), Some("127.0.0.1"));
    }
}

#[tokio::test]
async fn curl_understands_our_answer_to_head() {
    let upstream = Upstream::start(|_| {
        vec![Step::Write(
            b"HTTP/1.1 200 Fine\r\ncontent-length: 1234\r\nx-a: 1\r\n\r\n".to_vec(),
        )]
    })
    .await;
    let router = router_to(&upstream.url());
    let got = curl(
        &["--head", &format!("http://{}/", router.address)],
        Vec::new(),
    )
    .await
    .fine();
    let text = got.text();
    assert!(text.starts_with("HTTP/1.1 200 Fine\r\n"), "{text}");
    assert!(text.contains("\r\ncontent-length: 1234\r\n"), "{text}");
    assert!(text.ends_with("\r\n\r\n"), "{text}");
    assert_eq!(upstream.only().method(), "HEAD");
}

/// From 1 MiB on curl asks whether to continue.
#[tokio::test]
async fn curl_is_told_to_continue_with_a_large_upload() {
    let upstream = Upstream::named("thanks", 201).await;
    let router = router_to(&upstream.url());
    let got = curl(
        &[
            "-v",
            "-H",
            "expect: 100-continue",
            // Long enough that only our answer can make it go on.
            "--expect100-timeout",
            "60",
            "--data-binary",
            "@-",
            &format!("http://{}/", router.address),
        ],
        noise(3 << 20),
    )
    .await
    .fine();
    assert_eq!(got.text(), "thanks");
    assert!(
        got.stderr.contains("< HTTP/1.1 100 Continue"),
        "{}",
        got.stderr
    );
    let seen = upstream.only();
    assert_eq!(seen.header("content-length"), Some("3145728"));
    assert!(seen.body == noise(3 << 20));
}

#[tokio::test]
async fn curl_uploads_in_chunks() {
    let upstream = Upstream::named("thanks", 200).await;
    let router = router_to(&upstream.url());
    let url = format!("http://{}/file", router.address);
    let got = curl(&["--upload-file", "-", &url], noise(2 << 20))
        .await
        .fine();
    assert_eq!(got.text(), "thanks");
    let seen = upstream.only();
    assert_eq!(seen.start_line(), "PUT /file HTTP/1.1");
    assert_eq!(seen.header("transfer-encoding"), Some("chunked"));
    assert!(seen.body == noise(2 << 20));
}

#[tokio::test]
async fn curl_with_http_1_0_gets_a_chunked_answer_whole() {
    let upstream = Upstream::start(|_| {
        vec![Step::Write(
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\
              6\r\nhello \r\n5\r\nworld\r\n0\r\n\r\n"
                .to_vec(),
        )]
    })
    .await;
    let router = router_to(&upstream.url());
    let url = format!("http://{}/", router.address);
    for version in ["--http1.0", "--http1.1"] {
        let got = curl(&[version, &url], Vec::new()).await.fine();
        assert_eq!(got.text(), "hello world");
    }
}

#[tokio::test]
async fn curl_downloads_a_large_file() {
    let upstream = Upstream::start(|_| {
        vec![
            Step::Write(b"HTTP/1.1 200 OK\r\ncontent-length: 5242880\r\n\r\n".to_vec()),
            Step::Write(noise(5 << 20)),
        ]
    })
    .await;
    let router = router_to(&upstream.url());
    let got = curl(&[&format!("http://{}/", router.address)], Vec::new())
        .await
        .fine();
    assert!(got.stdout == noise(5 << 20));
}

#[tokio::test]
async fn curl_notices_that_a_response_was_cut_off() {
    for head in [
        "content-length: 10\r\n\r\nabc",
        "transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n",
    ] {
        let upstream = Upstream::start(move |_| {
            vec![
                Step::Write(format!("HTTP/1.1 200 OK\r\n{head}").into_bytes()),
                Step::Pause(Duration::from_millis(30)),
                Step::Close,
            ]
        })
        .await;
        let router = router_to(&upstream.url());
        let url = format!("http://{}/", router.address);
        for version in ["--http1.0", "--http1.1"] {
            let got = curl(&[version, &url], Vec::new()).await;
            // Partial file, or failure in receiving.
            assert!(
                matches!(got.code, 18 | 56),
                "{version}, {head}: {}",
                got.code
            );
        }
    }
}

// ---- nginx in front

/// nginx on a port of its own.
pub struct Nginx {
    pub address: SocketAddr,
    scratch: Scratch,
    _running: Running,
    /// Keeps the port ours: nobody else is given it, and nginx may share it.
    _port: Socket,
}

impl Nginx {
    async fn before(router: SocketAddr) -> Nginx {
        Nginx::start(|address, dir| {
            format!(
                "pid {dir}/pid;
                error_log {dir}/error.log info;
                events {{ worker_connections 128; }}
                http {{
                    access_log {dir}/access.log;
                    client_body_temp_path {dir}/body;
                    proxy_temp_path {dir}/proxy;
                    fastcgi_temp_path {dir}/fastcgi;
                    uwsgi_temp_path {dir}/uwsgi;
                    scgi_temp_path {dir}/scgi;
                    client_max_body_size 0;
                    map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
                    upstream router {{ server {router}; keepalive 4; }}
                    server {{
                        listen {address} reuseport;
                        proxy_http_version 1.1;
                        proxy_set_header Host $http_host;
                        proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
                        proxy_set_header Upgrade $http_upgrade;
                        proxy_set_header Connection $connection_upgrade;
                        location / {{ proxy_pass http://router; }}
                        location /streaming {{
                            proxy_pass http://router;
                            proxy_buffering off;
                            proxy_request_buffering off;
                        }}
                    }}
                }}"
            )
        })
        .await
    }

    /// Starts it with the configuration for its address, on which it listens with `reuseport`, and its folder, where
    /// its `error.log` is.
    pub async fn start(config: impl FnOnce(SocketAddr, &str) -> String) -> Nginx {
        let scratch = Scratch::new();
        let port = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        port.set_reuse_port(true).unwrap();
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        port.bind(&any.into()).unwrap();
        let address = port.local_addr().unwrap().as_socket().unwrap();
        let dir = scratch.0.to_str().unwrap();
        fs::write(scratch.path("nginx.conf"), config(address, dir)).unwrap();
        let mut command = Command::new("/usr/sbin/nginx");
        command
            .args(["-p", dir, "-e", &scratch.path("error.log")])
            .args(["-c", &scratch.path("nginx.conf")])
            // One process: to kill it is to end it.
            .args(["-g", "daemon off; master_process off;"])
            .stdin(Stdio::null())
            .stderr(File::create(scratch.path("stderr")).unwrap());
        let mut running = Running(start(&mut command, "nginx-light"));
        eventually(|| {
            if let Some(status) = running.0.try_wait().unwrap() {
                panic!("nginx: {status}: {}", scratch.read("error.log"));
            }
            std::net::TcpStream::connect(address).is_ok()
        })
        .await;
        Nginx {
            address,
            scratch,
            _running: running,
            _port: port,
        }
    }

    /// nginx finds nothing wrong with us.
    #[track_caller]
    pub fn is_content(&self) {
        let log = self.scratch.read("error.log");
        let complaints: Vec<_> = log
            .lines()
            .filter(|line| {
                ["[warn]", "[error]", "[crit]", "[alert]", "[emerg]"]
                    .iter()
                    .any(|level| line.contains(level))
            })
            // That it keeps a large body in a file is about its own buffers.
            .filter(|line| !line.contains("is buffered to a temporary file"))
            .collect();
        assert!(complaints.is_empty(), "{complaints:#?}");
    }
}

#[tokio::test]
async fn requests_come_through_nginx_on_connections_kept_alive() {
    let upstream = Upstream::start(|request| answer(200, "x-a: 1\r\n", request.target())).await;
    let router = router_to(&upstream.url());
    let nginx = Nginx::before(router.address).await;
    let mut client = Client::connect(nginx.address).await;
    for i in 0..20 {
        let response = client
            .roundtrip(
                "GET",
                format!("GET /{i}?a=%2F HTTP/1.1\r\nhost: client.example\r\n\r\n"),
            )
            .await;
        assert_eq!((response.status, response.complete), (200, true));
        assert_eq!(response.text(), format!("/{i}?a=%2F"));
        assert_eq!(response.header("x-a"), Some("1"));
    }
    for seen in upstream.seen() {
        assert_eq!(seen.header("x-forwarded-for"), Some("127.0.0.1, 127.0.0.1"));
        assert_eq!(seen.header("host"), Some(&*upstream.address.to_string()));
    }
    assert_eq!(upstream.connections(), (1, 1));
    nginx.is_content();
}

#[tokio::test]
async fn the_client_that_nginx_names_stays_first_in_x_forwarded_for() {
    let upstream = Upstream::named("up", 200).await;
    let router = router_to(&upstream.url());
    let nginx = Nginx::before(router.address).await;
    let headers = "x-forwarded-for: 192.0.2.1\r\n";
    assert_eq!(get(nginx.address, "/", headers).await.status, 200);
    assert_eq!(
        upstream.only().header("x-forwarded-for"),
        Some("192.0.2.1, 127.0.0.1, 127.0.0.1")
    );
}

#[tokio::test]
async fn large_bodies_pass_through_nginx_both_ways() {
    let upstream = Upstream::start(|request| {
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n",
            request.body.len()
        );
        vec![
            Step::Write(head.into_bytes()),
            Step::Write(request.body.clone()),
        ]
    })
    .await;
    let router = router_to(&upstream.url());
    let nginx = Nginx::before(router.address).await;
    for target in ["/", "/streaming"] {
        let url = format!("http://{}{target}", nginx.address);
        for transfer in ["content-length: 3145728", "transfer-encoding: chunked"] {
            let args = ["--data-binary", "@-", "-H", transfer, &url];
            let got = curl(&args, noise(3 << 20)).await.fine();
            assert!(got.stdout == noise(3 << 20), "{target}, {transfer}");
            assert!(upstream.seen().pop().unwrap().body == noise(3 << 20));
        }
    }
    nginx.is_content();
}

#[tokio::test]
async fn responses_without_a_body_keep_their_connection_to_nginx_usable() {
    let upstream = Upstream::start(|request| match request.target() {
        "/204" => answer(204, "", ""),
        "/304" => answer(304, "etag: \"x\"\r\n", ""),
        "/head" => vec![Step::Write(
            b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n".to_vec(),
        )],
        _ => answer(200, "", "up"),
    })
    .await;
    let router = router_to(&upstream.url());
    let nginx = Nginx::before(router.address).await;
    let mut client = Client::connect(nginx.address).await;
    for _ in 0..2 {
        for (method, target, status) in [
            ("GET", "/204", 204),
            ("GET", "/304", 304),
            ("HEAD", "/head", 200),
            ("GET", "/", 200),
        ] {
            let request = format!("{method} {target} HTTP/1.1\r\nhost: h\r\n\r\n");
            let response = client.roundtrip(method, request).await;
            assert_eq!((response.status, response.complete), (status, true));
        }
    }
    nginx.is_content();
}

#[tokio::test]
async fn a_cut_off_response_is_an_error_to_nginx_too() {
    let upstream = Upstream::start(|_| {
        vec![
            Step::Write(
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n".to_vec(),
            ),
            Step::Pause(Duration::from_millis(30)),
            Step::Close,
        ]
    })
    .await;
    let router = router_to(&upstream.url());
    let nginx = Nginx::before(router.address).await;
    let response = get(nginx.address, "/streaming", "").await;
    assert_eq!((response.status, response.complete), (200, false));
    assert_eq!(response.text(), "abc");
}

#[tokio::test]
async fn a_websocket_upgrade_comes_through_nginx() {
    let upstream = Upstream::start(|_| {
        let agrees = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n\
                      upgrade: websocket\r\nsec-websocket-accept: x\r\n\r\nhello ";
        vec![Step::Write(agrees.into()), Step::Echo]
    })
    .await;
    let router = router_to(&upstream.url());
    let nginx = Nginx::before(router.address).await;
    let mut client = Client::connect(nginx.address).await;
    client
        .send(
            "GET /chat HTTP/1.1\r\nhost: h\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: abc\r\n\r\n",
        )
        .await;
    let head = client.head().await.to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 101 "), "{head}");
    assert!(head.contains("\r\nupgrade: websocket\r\n"), "{head}");
    assert!(head.contains("\r\nsec-websocket-accept: x\r\n"), "{head}");
    client.expect("hello ").await;
    for i in 0..3 {
        client.send(format!("ping {i}")).await;
        client.expect(format!("ping {i}")).await;
    }
    let seen = upstream.only();
    assert_eq!(seen.header("upgrade"), Some("websocket"));
    assert_eq!(seen.header("sec-websocket-key"), Some("abc"));
    drop(client);
    eventually(|| upstream.connections().1 == 0).await;
    nginx.is_content();
}

// ---- Prometheus

#[tokio::test]
async fn promtool_complains_about_the_names_of_the_original_only() {
    let upstream = Upstream::named("up", 200).await;
    // All optional families too.
    let router = router_with(
        &upstream.url(),
        json!({"circuit-breaker": {"request-limit-canary": 10, "error-limit-canary": 10}}),
    );
    for header in ["", "x-canary: true\r\n", "x-canary: false\r\n"] {
        get(router.address, "/", header).await;
    }
    let page = router.metrics().await.0;
    let mut command = Command::new("promtool");
    command.args(["check", "metrics"]);
    let checked = run(command, "prometheus", page.into_bytes()).await;
    // 3: it has complaints.
    assert!(matches!(checked.status.code(), Some(0 | 3)));
    let said = [checked.stdout, checked.stderr].concat();
    let said = String::from_utf8(said).unwrap();
    // Dashboards know them by these names.
    let allowed = [
        "canary_router_request_count ",
        "canary_router_request_latency ",
    ];
    for complaint in said.lines().filter(|line| !line.is_empty()) {
        let known = allowed.iter().any(|name| complaint.starts_with(name));
        assert!(known, "{said}");
    }
}

/// A Prometheus on a free port.
pub struct Prometheus {
    pub address: SocketAddr,
    _running: Running,
    _scratch: Scratch,
}

impl Prometheus {
    /// Starts it with this configuration.
    pub async fn start(config: &str) -> Prometheus {
        let scratch = Scratch::new();
        fs::write(scratch.path("prometheus.yml"), config).unwrap();
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", scratch.path("prometheus.yml")))
            .arg(format!("--storage.tsdb.path={}", scratch.path("data")))
            .arg("--web.listen-address=127.0.0.1:0")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(scratch.path("log")).unwrap());
        let running = Running(start(&mut command, "prometheus"));
        // It took a free port, and tells which.
        let mut address = None;
        eventually(|| {
            address = scratch
                .read("log")
                .lines()
                .filter(|line| line.contains("msg=\"Listening on\""))
                .find_map(|line| line.split("address=").nth(1)?.trim().parse().ok());
            address.is_some()
        })
        .await;
        Prometheus {
            address: address.expect("it was just there"),
            _running: running,
            _scratch: scratch,
        }
    }

    /// The data of an answer of its API; `None` while it is not quite started.
    pub async fn api(&self, path: &str, parameters: &[(&str, &str)]) -> Option<Value> {
        let parameters: Vec<String> = parameters
            .iter()
            .map(|(name, value)| format!("{name}={}", encoded(value)))
            .collect();
        let target = format!("/api/v1/{path}?{}", parameters.join("&"));
        let response = get(self.address, &target, "").await;
        if response.status == 503 {
            return None;
        }
        let text = response.text();
        assert_eq!(response.status, 200, "{target}: {text}");
        let mut answer: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(answer["status"], "success", "{target}: {text}");
        Some(answer["data"].take())
    }

    /// What a query has for an answer now, value by value.
    pub async fn values(&self, query: &str) -> Vec<f64> {
        let Some(data) = self.api("query", &[("query", query)]).await else {
            return Vec::new();
        };
        let series = data["result"].as_array().unwrap();
        let value = |series: &Value| series["value"][1].as_str().unwrap().parse().unwrap();
        series.iter().map(value).collect()
    }

    /// Asks until a query has these values.
    pub async fn wait_for(&self, query: &str, expected: &[f64]) {
        soon(async {
            while self.values(query).await != expected {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await;
    }
}

/// As a value in a query string.
fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

#[tokio::test]
async fn prometheus_scrapes_us_and_finds_what_dashboards_ask_for() {
    let upstream = Upstream::named("up", 200).await;
    let router = router_to(&upstream.url());
    for header in ["", "", "x-canary: true\r\n"] {
        get(router.address, "/", header).await;
    }
    let prometheus = Prometheus::start(&format!(
        "global: {{scrape_interval: 1s, scrape_timeout: 1s}}\n\
         scrape_configs: [{{job_name: router, static_configs: [{{targets: ['{}']}}]}}]\n",
        router.instrumentation
    ))
    .await;
    for (query, value) in [
        ("up", 1.0),
        (
            r#"canary_router_request_count{reason="",target="main"}"#,
            2.0,
        ),
        (
            r#"canary_router_request_latency_count{target="canary"}"#,
            1.0,
        ),
        // 13 bounds and +Inf, for two targets.
        ("count(canary_router_request_latency_bucket)", 28.0),
        ("canary_router_build_info", 1.0),
    ] {
        prometheus.wait_for(query, &[value]).await;
    }
}
