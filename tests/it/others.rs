//! HTTP/2 with programs that others wrote: nginx behind us, h2load and a browser before us.

use std::{
    fs::{self, File},
    net::SocketAddr,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
};

use futures_util::{SinkExt, StreamExt};
use serde_json::json;
use socket2::{Domain, Socket, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, handshake::derive_accept_key, protocol::Role},
};

use crate::{
    peers::{Running, Scratch, run, start},
    support::{pki::Authority, *},
};

// ---- nginx

/// It speaks HTTP/2 without TLS, and ends a connection after ten requests.
struct Nginx {
    address: SocketAddr,
    _scratch: Scratch,
    _running: Running,
    /// Keeps the port ours: nobody else is given it, and nginx may share it.
    _port: Socket,
}

impl Nginx {
    async fn start() -> Nginx {
        let scratch = Scratch::new();
        let port = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        port.set_reuse_port(true).unwrap();
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        port.bind(&any.into()).unwrap();
        let address = port.local_addr().unwrap().as_socket().unwrap();
        let dir = scratch.0.to_str().unwrap();
        let config = format!(
            "daemon off;
            master_process off;
            pid {dir}/pid;
            error_log {dir}/error.log info;
            events {{ worker_connections 256; }}
            http {{
                access_log off;
                client_body_temp_path {dir}/body;
                proxy_temp_path {dir}/proxy;
                fastcgi_temp_path {dir}/fastcgi;
                uwsgi_temp_path {dir}/uwsgi;
                scgi_temp_path {dir}/scgi;
                keepalive_requests 10;
                server {{
                    listen {address} reuseport http2;
                    location / {{ return 200 \"$server_protocol $request_uri\"; }}
                }}
            }}"
        );
        fs::write(scratch.path("nginx.conf"), config).unwrap();
        let mut command = Command::new("/usr/sbin/nginx");
        command
            .args(["-p", dir, "-e", &scratch.path("error.log")])
            .args(["-c", &scratch.path("nginx.conf")])
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
            _scratch: scratch,
            _running: running,
            _port: port,
        }
    }
}

/// Every tenth request is the last that it looks at; those behind it are refused by GOAWAY.
#[tokio::test]
async fn no_request_is_lost_to_an_nginx_that_ends_its_http2_connections() {
    let nginx = Nginx::start().await;
    let router = router_with(
        &format!("http://{}", nginx.address),
        json!({"proxy-client": {"to-main-and-canary": {"protocol": "h2"}}}),
    );
    let address = router.address;
    for _ in 0..10 {
        let all = together((0..30).map(move |number| async move {
            match number % 2 {
                0 => get(address, "/a?b", "").await,
                // As calls of gRPC's are: what was sent of them has to be there again.
                _ => request(address, "POST", "/a?b", "", "a body").await,
            }
        }))
        .await;
        for response in all {
            let said = (response.status, response.text());
            assert_eq!(said, (200, "HTTP/2.0 /a?b".to_owned()));
        }
    }
}

// ---- h2load

#[tokio::test]
async fn h2load_gets_all_of_its_answers() {
    let main = Upstream::named("main", 200).await;
    let router = router_to(&main.url());
    let mut command = Command::new("h2load");
    command
        .args(["-n", "2000", "-c", "4", "-m", "32"])
        .arg(format!("http://{}/", router.address));
    let output = run(command, "nghttp2-client", Vec::new()).await;
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        said.contains("2000 succeeded, 0 failed, 0 errored"),
        "{said}"
    );
    assert!(said.contains("Application protocol: h2c"), "{said}");
}

// ---- a browser

const PAGE: &str = "<!doctype html><title>t</title><script>
    const socket = new WebSocket('wss://' + location.host + '/socket');
    socket.onopen = () => socket.send('hello');
    socket.onmessage = message => fetch('/said?' + message.data + '-by-' +
        performance.getEntriesByType('navigation')[0].nextHopProtocol);
    socket.onerror = () => fetch('/said?error');
</script>";

/// Gives the page away, echoes on the socket, and keeps what it is told.
async fn site(told: Arc<Mutex<Vec<String>>>) -> SocketAddr {
    let listener = listen();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(visit(stream, told.clone()));
        }
    });
    address
}

async fn visit(mut stream: TcpStream, told: Arc<Mutex<Vec<String>>>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let head = String::from_utf8(head).unwrap();
    let path = head.split(' ').nth(1).unwrap().to_owned();
    let key = head
        .lines()
        .find_map(|line| line.strip_prefix("sec-websocket-key: "));
    if let (Some(key), "/socket") = (key, &*path) {
        let accept = derive_accept_key(key.as_bytes());
        let switched = format!(
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-accept: {accept}\r\n\r\n"
        );
        stream.write_all(switched.as_bytes()).await.unwrap();
        let mut socket = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
        while let Some(Ok(message)) = socket.next().await {
            if let Message::Text(text) = message {
                socket.send(Message::Text(text)).await.unwrap();
            }
        }
        return;
    }
    let page = if path == "/" { PAGE } else { "" };
    let answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n{page}",
        page.len()
    );
    let _sent = stream.write_all(answer.as_bytes()).await;
    told.lock().unwrap().push(path);
}

/// The page, the WebSocket and what it says come by one connection.
#[tokio::test]
async fn a_browser_has_its_page_and_its_websocket_by_http2() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let site = site(told.clone()).await;
    let folder = Folder::new();
    let tls = Authority::new("ours")
        .issue(&["localhost"])
        .write(&folder, "router");
    let router = router_with(
        &format!("http://{site}"),
        json!({"router-server": {"tls": tls}}),
    );
    let mut command = Command::new("chromium");
    command
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
        ])
        .args(["--no-first-run", "--disable-background-networking"])
        .args([
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
        ])
        .args(["--ignore-certificate-errors", "--remote-debugging-port=0"])
        .arg(format!(
            "--user-data-dir={}",
            folder.0.join("profile").display()
        ))
        .arg(format!("https://localhost:{}/", router.address.port()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let _browser = Running(start(&mut command, "chromium"));
    let said = || {
        let told = told.lock().unwrap();
        told.iter()
            .find_map(|path| path.strip_prefix("/said?").map(str::to_owned))
    };
    eventually(|| said().is_some()).await;
    assert_eq!(said().as_deref(), Some("hello-by-h2"));
}
