//! The whole thing on one screen: a main, a canary that fails now and then, a sidecar and the router,
//! on free ports of this machine, with some traffic through them; then a rollout of the same canary, how the
//! judge ends it, and the dashboard to look at.
//!
//!     cargo run --release --example demo

// It prints: that is what a demo is for.
#![allow(clippy::print_stdout)]

use std::{
    cell::RefCell,
    collections::BTreeMap,
    convert::Infallible,
    error::Error,
    net::SocketAddr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use canary_router::{app::App, config::Config};
use http_body_util::{BodyExt, Empty, Full};
use hyper::{
    Request, Response, StatusCode, body::Bytes, client, server::conn::http1, service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    task::{LocalSet, spawn_local},
    time::interval,
};

#[path = "sidecar.rs"]
mod sidecar;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// In the rollout: requests per second, and the longest that it may take.
const RATE: u32 = 100;
const PATIENCE: Duration = Duration::from_secs(30);
/// Requests per second afterwards, so that there is something to see.
const AFTERWARDS: u32 = 20;

/// How many users the demo has, and how often each of them comes.
const USERS: u64 = 200;
const ROUNDS: u64 = 3;
/// The canary fails every so many requests.
const FAILS_EVERY: u64 = 4;
const ERROR_LIMIT: u64 = 10;

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    LocalSet::new().block_on(&runtime, run())
}

async fn run() -> Result<()> {
    let main = start_service("main", None).await?;
    let canary = start_service("canary", Some(FAILS_EVERY)).await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let sidecar = listener.local_addr()?;
    spawn_local(sidecar::serve(listener));

    let file = serde_json::json!({
        "main-target": format!("http://{main}"),
        "canary-target": format!("http://{canary}"),
        "sidecar-url": format!("http://{sidecar}"),
        "circuit-breaker": {"error-limit-canary": ERROR_LIMIT},
        "router-server": {"host": "127.0.0.1", "port": free_port().await?},
        "instrumentation": {"host": "127.0.0.1", "port": free_port().await?}
    });
    let file = format!("{file:#}\n");
    let path = std::env::temp_dir().join(format!("canary-router-demo-{}.json", std::process::id()));
    std::fs::write(&path, &file)?;

    println!("The configuration, {}:\n{file}", path.display());
    let mut running = App::bind(Config::load(&path)?)?.start()?;
    let router = running.proxy_address();
    let metrics = running
        .instrumentation_address()
        .ok_or("the configuration has one")?;

    println!(
        "{} requests of {USERS} users. The sidecar gives the canary those whose number ends in 0;\n\
         the canary fails every {FAILS_EVERY}th request; after {ERROR_LIMIT} errors it gets no more.\n",
        USERS * ROUNDS
    );
    let mut answers = BTreeMap::new();
    for i in 0..USERS * ROUNDS {
        let user = (i % USERS).to_string();
        let (_, answer) = ask(router, "GET", "/hello", ("x-user-id", &user)).await?;
        *answers.entry(answer).or_insert(0) += 1;
    }
    println!("What the clients got:");
    for (answer, count) in answers {
        println!("  {count:5}  {}", answer.trim_end());
    }
    println!("\nWhat the metrics say:");
    let (_, page) = ask(metrics, "GET", "/metrics", ("accept", "text/plain")).await?;
    for line in page.lines() {
        let shown = line.starts_with("canary_router_request_count")
            || line.starts_with("canary_router_error_budget");
        if shown && !line.ends_with(" 0") || line.starts_with("canary_router_error_budget") {
            println!("  {line}");
        }
    }
    let (rolling, rolled_out) = roll_out(main, canary).await?;
    spawn_local(go_on(rolling));
    println!(
        "\nIt is all still there. Try:\n  \
         curl -i http://{router}/hello\n  \
         curl -i -H 'X-User-Id: 10' http://{router}/hello\n  \
         curl -i -H 'X-Canary: true' http://{router}/hello\n  \
         curl http://{router}/application/health\n  \
         curl http://{metrics}/metrics\n  \
         curl http://{metrics}/health/ready\n  \
         curl http://{rolled_out}/status\n  \
         curl -X POST http://{rolled_out}/rollout/start\n\n\
         And open http://{rolled_out}/ in a browser: the dashboard of the rollout, through which {AFTERWARDS} requests\n\
         per second go on.\n\n\
         Ctrl-C ends it."
    );
    tokio::signal::ctrl_c().await?;
    println!("\nStopping.");
    running.drain();
    running.ended().await?;
    std::fs::remove_file(&path)?;
    Ok(())
}

/// Some traffic, without end. What becomes of it the dashboard shows.
async fn go_on(router: SocketAddr) {
    let mut ticks = interval(Duration::from_secs(1) / AFTERWARDS);
    loop {
        ticks.tick().await;
        spawn_local(async move {
            let _seen = ask(router, "GET", "/hello", ("accept", "*/*")).await;
        });
    }
}

/// Rolls the canary out, without a sidecar, and shows what becomes of that. Where its router takes requests, and
/// where commands.
async fn roll_out(main: SocketAddr, canary: SocketAddr) -> Result<(SocketAddr, SocketAddr)> {
    let file = serde_json::json!({
        "main-target": format!("http://{main}"),
        "canary-target": format!("http://{canary}"),
        "rollout": {"steps": [{"weight": 5, "for": "10m"}, {"weight": 50, "for": "10m"}]},
        "router-server": {"host": "127.0.0.1", "port": free_port().await?},
        "instrumentation": {"host": "127.0.0.1", "port": free_port().await?}
    });
    println!(
        "\nA rollout of the same canary, {RATE} requests per second, 5 % of them for the canary:"
    );
    let running = App::bind(Config::parse("demo", &file.to_string())?)?.start()?;
    let router = running.proxy_address();
    let admin = running
        .instrumentation_address()
        .ok_or("the configuration has one")?;
    let json = ("accept", "application/json");
    ask(admin, "POST", "/rollout/start", json).await?;
    let answers = Rc::new(RefCell::new(BTreeMap::new()));
    let mut ticks = interval(Duration::from_secs(1) / RATE);
    let started = ticks.tick().await;
    let mut seconds = 0;
    let status = loop {
        ticks.tick().await;
        let answers = Rc::clone(&answers);
        spawn_local(async move {
            if let Ok((_, answer)) = ask(router, "GET", "/hello", json).await {
                *answers.borrow_mut().entry(answer).or_insert(0) += 1;
            }
        });
        let passed = started.elapsed();
        if passed.as_secs() > seconds {
            seconds = passed.as_secs();
            let (_, status) = ask(admin, "GET", "/status", json).await?;
            let status: serde_json::Value = serde_json::from_str(&status)?;
            let evidence = &status["evidence"];
            println!(
                "  after {seconds} s: {}, weight {} %, evidence against the canary {:.1} of {:.1}",
                status["rollout"]["phase"].as_str().unwrap_or_default(),
                status["weight"],
                evidence["overall"].as_f64().unwrap_or_default(),
                evidence["threshold"].as_f64().unwrap_or_default(),
            );
            if status["rollout"]["phase"] == "rolled-back" {
                break status;
            }
        }
        if passed > PATIENCE {
            return Err("the judge has not seen that the canary fails".into());
        }
    };
    println!(
        "  {}",
        status["decisions"][0]["text"].as_str().unwrap_or_default()
    );
    for (answer, count) in answers.borrow().iter() {
        println!("  {count:5}  {}", answer.trim_end());
    }
    // It serves on until the process ends.
    std::mem::forget(running);
    Ok((router, admin))
}

/// A port that was free a moment ago.
async fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0").await?.local_addr()?.port())
}

/// A service that says its name, and fails every `fails_every`th time.
async fn start_service(name: &'static str, fails_every: Option<u64>) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let count = Arc::new(AtomicU64::new(0));
    spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let count = Arc::clone(&count);
            let service = service_fn(move |_| {
                let number = count.fetch_add(1, Ordering::Relaxed) + 1;
                let fails = fails_every.is_some_and(|every| number.is_multiple_of(every));
                async move { Ok::<_, Infallible>(say(name, fails)) }
            });
            spawn_local(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    Ok(address)
}

fn say(name: &str, fails: bool) -> Response<Full<Bytes>> {
    let (status, text) = match fails {
        true => (
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("500 from {name}\n"),
        ),
        false => (StatusCode::OK, format!("200 from {name}\n")),
    };
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response
}

async fn ask(
    address: SocketAddr,
    method: &str,
    path: &str,
    (name, value): (&str, &str),
) -> Result<(StatusCode, String)> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = client::conn::http1::handshake(TokioIo::new(stream)).await?;
    spawn_local(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", address.to_string())
        .header(name, value)
        .body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    Ok((status, String::from_utf8(body.to_vec())?))
}
