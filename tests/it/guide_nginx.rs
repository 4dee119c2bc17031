//! The configurations of nginx that the guide shows, between clients and services that look closely.

use std::{net::SocketAddr, process::Command};

use serde_json::{Value, json};

use crate::{
    grpc::{Service, play},
    guide::{Block, blocks, page},
    peers::{Nginx, Running, Scratch, start},
    support::*,
};

/// The file of a page with this name.
fn file(page: &str, name: &str) -> String {
    let found = blocks(page).into_iter().find_map(|block| match block {
        Block::File { name: found, text } if found == name => Some(text),
        _ => None,
    });
    found.unwrap_or_else(|| panic!("no {name}"))
}

/// A snippet of a page, in this language.
fn snippet(page: &str, of: &str) -> String {
    let found = blocks(page).into_iter().find_map(|block| match block {
        Block::Other { language, text } if language == of => Some(text),
        _ => None,
    });
    found.unwrap_or_else(|| panic!("no snippet of {of}"))
}

/// Replaces what is there exactly once.
#[track_caller]
fn with(text: &str, old: &str, new: &str) -> String {
    assert_eq!(text.matches(old).count(), 1, "{old} in {text}");
    text.replace(old, new)
}

/// A configuration of a page before this router. Its second server, of gRPC, is on `grpc`.
async fn nginx(config: &str, router: &Program, grpc: &Port) -> Nginx {
    let (_for_trying, config) = config.split_once("\n\n").unwrap();
    Nginx::start(|address, folder| {
        let config = with(
            config,
            "listen 127.0.0.1:8080;",
            &format!("listen {address} reuseport;"),
        );
        let config = with(
            &config,
            "127.0.0.1:8083 http2",
            &format!("{} http2", grpc.address),
        );
        let config = config.replace("127.0.0.1:1345", &router.address.to_string());
        format!("pid {folder}/pid;\nerror_log {folder}/error.log info;\n{config}")
    })
    .await
}

/// The router of a page, before these.
async fn router(page: &str, main: &str, canary: &str, more: Value) -> Program {
    let mut config: Value = serde_json::from_str(&file(page, "config.json")).unwrap();
    merge(
        &mut config,
        json!({"main-target": main, "canary-target": canary}),
    );
    merge(&mut config, more);
    Program::start(config).await
}

#[tokio::test]
async fn nginx_says_who_the_client_is_keeps_connections_and_lets_nobody_choose() {
    let page = page("how-to/behind-nginx.md");
    let main = Upstream::start(|request| match request.target() {
        "/socket" => {
            let agrees = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n\
                          upgrade: websocket\r\n\r\nhello ";
            vec![Step::Write(agrees.into()), Step::Echo]
        }
        // One event, and no end.
        "/events" => vec![
            Step::Write(
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n7\r\ndata: 1\r\n".into(),
            ),
            Step::Hang,
        ],
        _ => answer(200, "", "main"),
    })
    .await;
    let canary = Upstream::named("canary", 200).await;
    let router = router(&page, &main.url(), &canary.url(), json!({})).await;
    let nginx = nginx(&file(&page, "nginx.conf"), &router, &Port::reserve()).await;

    let lies = "x-canary: true\r\nx-forwarded-for: 192.0.2.1\r\nx-forwarded-proto: https\r\n\
                x-forwarded-host: evil.example\r\nforwarded: for=192.0.2.1\r\nx-request-id: mine\r\n";
    assert_eq!(get(nginx.address, "/", lies).await.text(), "main");
    let seen = main.only();
    for (name, value) in [
        ("x-canary", None),
        // The client, and nginx.
        ("x-forwarded-for", Some("127.0.0.1, 127.0.0.1")),
        ("x-forwarded-proto", Some("http")),
        ("x-forwarded-host", Some("client.example")),
        ("forwarded", None),
    ] {
        assert_eq!(seen.header(name), value, "{name}");
    }
    let port = nginx.address.port().to_string();
    assert_eq!(seen.header("x-forwarded-port"), Some(&*port));
    assert_eq!(seen.header("x-request-id").map(str::len), Some(32));

    for _ in 0..20 {
        assert_eq!(get(nginx.address, "/", "").await.status, 200);
    }
    let metrics = get(router.instrumentation, "/metrics", "").await.text();
    assert!(
        metrics.contains("\ncanary_router_connections 1\n"),
        "{metrics}"
    );

    let mut client = Client::connect(nginx.address).await;
    client
        .send(
            "GET /socket HTTP/1.1\r\nhost: h\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n",
        )
        .await;
    assert!(client.head().await.starts_with("HTTP/1.1 101 "));
    client.expect("hello ").await;
    client.send("ping").await;
    client.expect("ping").await;

    let mut listens = Client::connect(nginx.address).await;
    listens
        .send("GET /events HTTP/1.1\r\nhost: h\r\n\r\n")
        .await;
    assert!(listens.head().await.starts_with("HTTP/1.1 200 "));
    listens.expect("7\r\ndata: 1").await;
    nginx.is_content();
}

#[tokio::test]
async fn who_may_choose_for_himself_can_and_nobody_else() {
    let page = page("how-to/behind-nginx.md");
    let (main, canary) = (
        Upstream::named("main", 200).await,
        Upstream::named("canary", 200).await,
    );
    let router = router(&page, &main.url(), &canary.url(), json!({})).await;
    let config = file(&page, "nginx.conf");
    let config = with(
        &config,
        "proxy_set_header X-Canary          \"\";",
        "proxy_set_header X-Canary $x_canary;",
    );
    let snippet = snippet(&page, "nginx");
    for (network, name) in [("10.0.0.0/8", "main"), ("127.0.0.0/8", "canary")] {
        let snippet = with(&snippet, "10.0.0.0/8", network);
        let config = with(
            &config,
            "    upstream canary_router",
            &format!("{snippet}upstream canary_router"),
        );
        let nginx = nginx(&config, &router, &Port::reserve()).await;
        let answer = get(nginx.address, "/", "x-canary: true\r\n").await;
        assert_eq!(answer.text(), name, "{network}");
    }
}

#[tokio::test]
async fn calls_of_grpc_go_through_nginx_and_router() {
    let page = page("how-to/behind-nginx.md");
    let service = Service::start(&[]);
    let h2 = json!({"proxy-client": {"to-main-and-canary": {"protocol": "h2"}}});
    let router = router(&page, &service.url(), &service.url(), h2).await;
    let grpc = Port::reserve();
    let nginx = nginx(&file(&page, "nginx.conf"), &router, &grpc).await;
    for scenario in ["one_request_one_response", "ping_pong", "statuses"] {
        play(scenario, grpc.address, service.address, None);
    }
    nginx.is_content();
}

// ---- what nginx did before, and what it does now

/// A part of a page's configuration, with these addresses for those of the page.
async fn part(page: &str, name: &str, addresses: &[(&str, SocketAddr)]) -> Nginx {
    let mut config = file(page, name);
    for (theirs, ours) in addresses {
        assert!(config.contains(theirs), "no {theirs} in {name}");
        config = config.replace(theirs, &ours.to_string());
    }
    Nginx::start(|address, folder| {
        let config = with(&config, "listen 127.0.0.1:8080;", &format!("listen {address} reuseport;"));
        format!(
            "pid {folder}/pid;\nerror_log {folder}/error.log info;\nevents {{}}\nhttp {{\naccess_log off;\n\
             client_body_temp_path {folder}/body;\n{config}\n}}\n"
        )
    })
    .await
}

/// Who answers each of so many users.
async fn users(address: SocketAddr, count: usize) -> Vec<String> {
    let mut client = Client::connect(address).await;
    let mut answers = Vec::new();
    for user in 0..count {
        let head = format!("GET / HTTP/1.1\r\nhost: h\r\nx-user-id: {user}\r\n\r\n");
        answers.push(client.roundtrip("GET", head).await.text());
        if user % 500 == 499 {
            // nginx closes a connection after a thousand requests.
            client = Client::connect(address).await;
        }
    }
    answers
}

#[tokio::test]
async fn split_clients_and_the_router_split_alike() {
    const USERS: usize = 2000;
    let page = page("how-to/from-split-clients.md");
    let (main, canary) = (
        Upstream::named("main", 200).await,
        Upstream::named("canary", 200).await,
    );
    let upstreams = [
        ("127.0.0.1:8081", main.address),
        ("127.0.0.1:8082", canary.address),
    ];
    let before = part(&page, "split.conf", &upstreams).await;
    let scratch = Scratch::new();
    let state = json!({"state": {"file": scratch.path("state.json")}});
    let router = router(&page, &main.url(), &canary.url(), state).await;
    let after = part(&page, "after.conf", &[("127.0.0.1:1345", router.address)]).await;
    for nginx in [&before, &after] {
        let drawn = users(nginx.address, USERS).await;
        let share = drawn.iter().filter(|name| *name == "canary").count();
        // A fifth of them, within six standard deviations: of the router's draws, that is. nginx' are always the same.
        assert!((292..=508).contains(&share), "{share}");
        assert!(
            users(nginx.address, USERS).await == drawn,
            "a user has changed sides"
        );
    }
    // Who asks for the canary gets what it was given.
    let mut client = Client::connect(after.address).await;
    let names = users(after.address, 20).await;
    for (user, name) in names.iter().enumerate() {
        let head =
            format!("GET / HTTP/1.1\r\nhost: h\r\nx-user-id: {user}\r\nx-canary: true\r\n\r\n");
        assert_eq!(client.roundtrip("GET", head).await.text(), *name);
    }
    after.is_content();
}

#[tokio::test]
async fn auth_request_and_the_sidecar_decide_alike_and_only_one_of_them_survives_its_service() {
    let page = page("how-to/from-auth-request.md");
    let (main, canary) = (
        Upstream::named("main", 200).await,
        Upstream::named("canary", 200).await,
    );
    let port = Port::reserve();
    let scratch = Scratch::new();
    let script = with(
        &file(&page, "decide.py"),
        "8083",
        &port.number().to_string(),
    );
    std::fs::write(scratch.path("decide.py"), script).unwrap();
    let mut command = Command::new("python3");
    command
        .arg(scratch.path("decide.py"))
        .stderr(std::process::Stdio::null());
    let service = Running(start(&mut command, "python3"));
    eventually(|| std::net::TcpStream::connect(port.address).is_ok()).await;
    let before = part(
        &page,
        "variant.conf",
        &[
            ("127.0.0.1:8081", main.address),
            ("127.0.0.1:8082", canary.address),
            ("127.0.0.1:8083", port.address),
        ],
    )
    .await;
    let sidecar = json!({"sidecar-url": format!("http://{}/sidecar", port.address)});
    let router = router(&page, &main.url(), &canary.url(), sidecar).await;
    let after = part(&page, "after.conf", &[("127.0.0.1:1345", router.address)]).await;
    let decided = users(before.address, 100).await;
    assert_eq!(decided.iter().filter(|name| *name == "canary").count(), 50);
    assert_eq!(users(after.address, 100).await, decided);
    for nginx in [&before, &after] {
        let checkout = get(nginx.address, "/checkout?x", "x-user-id: 1\r\n").await;
        assert_eq!(checkout.text(), "main");
        let body = "x-user-id: 1\r\ncontent-length: 4\r\n";
        let mut client = Client::connect(nginx.address).await;
        let head = format!("POST / HTTP/1.1\r\nhost: h\r\n{body}\r\nbody");
        assert_eq!(client.roundtrip("POST", head).await.text(), "canary");
        assert_eq!(canary.seen().pop().unwrap().text(), "body");
    }
    after.is_content();
    drop(service);
    assert_eq!(
        get(before.address, "/", "x-user-id: 1\r\n").await.status,
        500
    );
    let answer = get(after.address, "/", "x-user-id: 1\r\n").await;
    assert_eq!((answer.status, &*answer.text()), (200, "main"));
}
