//! The sidecars of `sample/sidecars`, in three languages: one contract, asked through a router.

use std::{
    fs,
    net::SocketAddr,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use serde_json::json;
use tokio::net::{TcpListener, TcpStream};

use crate::{
    peers::{Running, Scratch, run, start},
    support::*,
};

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/sample/sidecars/");
const METHODS: [&str; 8] = [
    "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND",
];
const USERS: u32 = 300;

/// A sidecar that takes connections, and with it what counts them.
struct Sample {
    port: Port,
    relay: SocketAddr,
    connections: Arc<AtomicUsize>,
    _running: Running,
}

impl Sample {
    async fn start(mut command: Command, package: &str) -> Sample {
        let port = Port::reserve();
        command.arg(port.address.to_string()).stdin(Stdio::null());
        let mut running = Running(start(&mut command, package));
        eventually(|| {
            assert_eq!(running.0.try_wait().unwrap(), None, "it has ended");
            std::net::TcpStream::connect(port.address).is_ok()
        })
        .await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (to, relay) = (port.address, listener.local_addr().unwrap());
        let connections = Arc::new(AtomicUsize::new(0));
        let count = connections.clone();
        tokio::spawn(async move {
            while let Ok((mut router, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(async move {
                    let mut sidecar = TcpStream::connect(to).await.unwrap();
                    let _ended = tokio::io::copy_bidirectional(&mut router, &mut sidecar).await;
                });
            }
        });
        Sample {
            port,
            relay,
            connections,
            _running: running,
        }
    }
}

/// The share of users that get the canary, by the first four bytes of a hash. All three agree on it.
fn is_among_the_ten_percent(user: &str) -> bool {
    let digest = ring::digest::digest(&ring::digest::SHA256, user.as_bytes());
    let first = digest.as_ref()[..4].try_into().unwrap();
    u32::from_be_bytes(first) % 100 < 10
}

/// Asks the router, and says who has answered.
async fn who(
    client: &mut Client,
    method: &str,
    target: &str,
    headers: &str,
    body: &[u8],
) -> String {
    let head = format!("{method} {target} HTTP/1.1\r\nhost: a\r\n{headers}\r\n");
    let response = client
        .roundtrip(method, [head.as_bytes(), body].concat())
        .await;
    assert_eq!(response.status, 200, "{head}");
    assert!(response.complete, "{head}");
    response.header("x-name").unwrap().to_owned()
}

async fn named(name: &'static str) -> Upstream {
    let header = format!("x-name: {name}\r\n");
    Upstream::start(move |request| match request.method() {
        "HEAD" => vec![Step::Write(
            format!("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n{header}\r\n").into(),
        )],
        _ => answer(200, &header, "body"),
    })
    .await
}

/// What a router needs of a sidecar, and what `docs/how-to/sidecar.md` says of these.
async fn keeps_the_contract(sample: Sample) {
    let (main, canary) = (named("main").await, named("canary").await);
    let router = Router::start(json!({
        "main-target": main.url(),
        "canary-target": canary.url(),
        "sidecar-url": format!("http://{}/decide", sample.relay)
    }));
    let mut client = Client::connect(router.address).await;
    let mut asked = 0;

    // The rule: a header, a cookie, a hash.
    for (headers, name) in [
        ("", "main"),
        ("x-plan: beta\r\n", "canary"),
        ("x-plan: free\r\n", "main"),
        ("cookie: a=b; beta=yes; c=d\r\n", "canary"),
        ("cookie: beta=yes\r\n", "canary"),
        ("cookie: beta=no; notbeta=yes\r\n", "main"),
        ("x-user-id: \r\n", "main"),
    ] {
        for method in METHODS {
            assert_eq!(
                who(&mut client, method, "/", headers, b"").await,
                name,
                "{method} {headers}"
            );
            asked += 1;
        }
    }
    let mut chosen = 0;
    for user in 0..USERS {
        let user = format!("user-{user}");
        let expected = is_among_the_ten_percent(&user);
        let headers = format!("x-user-id: {user}\r\n");
        let name = who(&mut client, "GET", "/", &headers, b"").await;
        assert_eq!(name == "canary", expected, "{user}: {name}");
        chosen += u32::from(expected);
        asked += 1;
    }
    assert!((USERS / 20..USERS / 6).contains(&chosen), "{chosen}");

    // Paths that a framework would have its own ideas of, and a client's path that is the health check's.
    let long = format!("/?{}", "q".repeat(8 << 10));
    // (Not `*`: Go's server answers that by itself.)
    for target in ["//a/../b", "/%2e%2e/%2F", "/health", "/a?b=%20c&d", &long] {
        assert_eq!(
            who(&mut client, "GET", target, "", b"").await,
            "main",
            "{target}"
        );
        asked += 1;
    }
    let large = format!("x-large: {}\r\nx-plan: beta\r\n", "x".repeat(40 << 10));
    assert_eq!(who(&mut client, "GET", "/", &large, b"").await, "canary");
    asked += 1;

    // Bodies, up to more than the sidecar gets; the upstream gets all of each.
    for length in [0, 1, 100 << 10, 700 << 10, 3 << 20] {
        let body = noise(length);
        let framed = [
            (format!("content-length: {length}\r\n"), body.clone()),
            (
                "transfer-encoding: chunked\r\n".to_owned(),
                in_chunks(&body),
            ),
        ];
        for (headers, bytes) in framed {
            let headers = format!("{headers}x-plan: beta\r\n");
            assert_eq!(
                who(&mut client, "POST", "/body", &headers, &bytes).await,
                "canary",
                "{length}"
            );
            let seen = canary.seen().pop().unwrap();
            assert!(seen.body == body, "{length}: {} bytes", seen.body.len());
            asked += 1;
        }
    }
    // One client's connection is one worker's, which asks on one connection.
    assert_eq!(sample.connections.load(Ordering::SeqCst), 1);

    // Many at once.
    let clients = (0..64).map(|number| {
        let address = router.address;
        async move {
            let mut client = Client::connect(address).await;
            for round in 0..5 {
                let user = format!("user-{}", number * 5 + round);
                let headers = format!("x-user-id: {user}\r\n");
                let name = who(&mut client, "GET", "/", &headers, b"").await;
                assert_eq!(name == "canary", is_among_the_ten_percent(&user), "{user}");
            }
        }
    });
    together(clients).await;
    asked += 64 * 5;

    // It has answered them all, with its two words.
    let results = |name: &str| format!("canary_router_sidecar_results_total{{result=\"{name}\"}}");
    let metrics = router.metrics().await;
    let [main, canary, error, other] =
        ["main", "canary", "error", "non_standard"].map(|name| metrics.value(&results(name)));
    assert_eq!((main + canary, error, other), (f64::from(asked), 0.0, 0.0));

    // Who looks after it asks it by itself.
    let health = get(sample.port.address, "/health", "").await;
    assert_eq!(health.status, 200);
}

#[tokio::test]
async fn the_sidecar_in_python_keeps_the_contract() {
    let mut command = Command::new("python3");
    command.arg(format!("{SAMPLE}python/sidecar.py"));
    keeps_the_contract(Sample::start(command, "python3").await).await;
}

#[tokio::test]
async fn the_sidecar_in_node_keeps_the_contract() {
    let mut command = Command::new("node");
    command.arg(format!("{SAMPLE}node/sidecar.js"));
    let sample = Sample::start(command, "nodejs").await;
    // Longer than the router keeps its own: proxy-client.to-sidecar.idle-conn-timeout, 30 s.
    let health = get(sample.port.address, "/health", "").await;
    assert_eq!(health.header("keep-alive"), Some("timeout=60"));
    keeps_the_contract(sample).await;
}

#[tokio::test]
async fn the_sidecar_in_go_keeps_the_contract() {
    let scratch = Scratch::new();
    let program = scratch.path("sidecar");
    let mut build = Command::new("go");
    build
        .args(["build", "-o", &program])
        .arg(format!("{SAMPLE}go/sidecar.go"))
        // What it compiles is kept from one run to the next; it asks nobody for anything.
        .env("GOCACHE", concat!(env!("CARGO_TARGET_TMPDIR"), "/go-build"))
        .env("GOPROXY", "off");
    let built = run(build, "golang-go", Vec::new()).await;
    assert!(built.status.success(), "{built:?}");
    keeps_the_contract(Sample::start(Command::new(program), "golang-go").await).await;
}

#[test]
fn each_of_them_needs_nothing_but_its_standard_library() {
    for (file, imported, own) in [
        ("go/sidecar.go", "\t\"", "."),
        ("node/sidecar.js", "require(\"", "node:"),
    ] {
        let text = fs::read_to_string(format!("{SAMPLE}{file}")).unwrap();
        let names: Vec<&str> = text
            .split(imported)
            .skip(1)
            .map(|rest| rest.split('"').next().unwrap())
            .collect();
        assert!(!names.is_empty(), "{file}");
        for name in names {
            match own {
                // Go's own have no host in front.
                "." => assert!(!name.contains('.'), "{file}: {name}"),
                own => assert!(name.starts_with(own), "{file}: {name}"),
            }
        }
    }
}
