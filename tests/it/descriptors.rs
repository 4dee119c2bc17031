//! When there are no file descriptors left: alive, idle, of use to whom it has, and soon well again.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::*;

const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";

/// How many descriptors the router has in the tests in which they are too few.
const FEW: usize = 64;

/// That many more or less are nobody's connections: a worker that just started, an upstream connection
/// in the pool.
const SOME: usize = 10;

/// More connections than it has descriptors for; it has taken as many as it can.
async fn exhaust(program: &Program) -> Vec<Client> {
    let mut attackers = Vec::new();
    for _ in 0..4 * FEW {
        attackers.push(Client::connect(program.address).await);
    }
    eventually(|| program.descriptors_below(FEW) == FEW).await;
    attackers
}

/// With nothing to do but to try again to accept it had most of a core, in proxies of others.
#[tokio::test]
async fn without_descriptors_it_lives_idles_serves_whom_it_has_and_recovers() {
    let main = Upstream::named("main", 200).await;
    let mut program = Program::start_with_descriptors(
        FEW,
        json!({
            "main-target": main.url(),
            "canary-target": main.url(),
            // Only the attackers decide when they leave.
            "router-server": {"workers": 2, "read-timeout": "1h", "idle-timeout": "1h"},
            "proxy-client": {"to-main-and-canary": {"idle-conn-timeout": "1h"}}
        }),
    )
    .await;
    let mut scraper = Client::connect(program.instrumentation).await;
    let live = "GET /health/live HTTP/1.1\r\nhost: a\r\n\r\n";
    assert_eq!(scraper.roundtrip("GET", live).await.status, 200);
    // Whichever workers they are with: their upstream connections are there.
    let mut clients = Vec::new();
    for _ in 0..4 {
        let mut client = Client::connect(program.address).await;
        assert_eq!(client.roundtrip("GET", GET).await.text(), "main");
        clients.push(client);
    }

    let calm = program.descriptors();
    let since = Instant::now();
    let attackers = exhaust(&program).await;
    let before = program.cpu_time();
    // The one time that has to go by: it is what is measured.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let busy = program.cpu_time() - before;
    assert!(busy <= Duration::from_millis(80), "{busy:?} of a second");

    for client in &mut clients {
        let response = client.roundtrip("GET", GET).await;
        assert_eq!((response.status, &*response.text()), (200, "main"));
    }
    assert_eq!(scraper.roundtrip("GET", live).await.status, 200);
    assert_eq!(program.descriptors_below(FEW), FEW);

    drop(attackers);
    // Served as soon as there is room, the queue of dead connections before it notwithstanding.
    assert_eq!(get(program.address, "/", "").await.text(), "main");
    eventually(|| program.descriptors() <= calm + SOME).await;
    // Each worker says so once a second.
    let log = program.process.log();
    let warned = log
        .iter()
        .filter(|line| line["msg"] == "cannot accept connections; trying again")
        .count();
    let most = 2 * (since.elapsed().as_secs() as usize + 1);
    assert!((1..=most).contains(&warned), "{log:#?}");
    program.process.signal("TERM");
    drop(clients);
    assert_eq!(program.process.ended().await.code(), Some(0));
    assert_eq!(program.process.stderr(), [""; 0]);
}

#[tokio::test]
async fn a_request_for_which_there_is_no_upstream_connection_is_a_502_and_costs_nobody_else() {
    let gate = Gate::shut();
    let waiting = gate.clone();
    let main = Upstream::start(move |request| {
        let mut steps = match request.target() {
            "/wait" => vec![Step::Wait(waiting.clone())],
            _ => Vec::new(),
        };
        steps.extend(answer(200, "", "main"));
        steps
    })
    .await;
    let program = Program::start_with_descriptors(
        FEW,
        json!({
            "main-target": main.url(),
            "canary-target": main.url(),
            "router-server": {"workers": 1, "read-timeout": "1h"},
            "proxy-client": {"to-main-and-canary": {"timeout": "1h", "idle-conn-timeout": "1h"}}
        }),
    )
    .await;
    let mut scraper = Client::connect(program.instrumentation).await;
    let live = "GET /health/live HTTP/1.1\r\nhost: a\r\n\r\n";
    assert_eq!(scraper.roundtrip("GET", live).await.status, 200);
    let mut first = Client::connect(program.address).await;
    let mut second = Client::connect(program.address).await;
    assert_eq!(second.roundtrip("GET", GET).await.status, 200);
    // The one upstream connection that there is, is taken.
    first.send("GET /wait HTTP/1.1\r\nhost: a\r\n\r\n").await;
    eventually(|| main.count() == 2).await;
    assert_eq!(main.connections().0, 1);

    let attackers = exhaust(&program).await;
    for _ in 0..3 {
        for extra in ["", "x-canary: true\r\n"] {
            let request = format!("GET / HTTP/1.1\r\nhost: a\r\n{extra}\r\n");
            assert_eq!(second.roundtrip("GET", request).await.status, 502);
        }
    }
    assert_eq!(scraper.roundtrip("GET", live).await.status, 200);
    gate.open();
    assert_eq!(first.response("GET").await.unwrap().text(), "main");
    // Back in the pool.
    assert_eq!(second.roundtrip("GET", GET).await.status, 200);
    assert_eq!(main.connections().0, 1);

    drop(attackers);
    let (one, other) = tokio::join!(
        get(program.address, "/", ""),
        get(program.address, "/", "x-canary: true\r\n")
    );
    assert_eq!((one.status, other.status), (200, 200));
}
