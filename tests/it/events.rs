//! What a dashboard is told (`/events`), and the page that is told it.

use std::{
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use serde_json::{Value, json};

use crate::support::*;

/// Somebody who watches.
struct Viewer(BufReader<TcpStream>);

impl Viewer {
    /// Begins to watch; the status of the answer.
    fn begin(address: SocketAddr) -> (u16, Viewer) {
        let mut stream = TcpStream::connect(address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        write!(stream, "GET /events HTTP/1.1\r\nhost: {address}\r\n\r\n").unwrap();
        let mut viewer = Viewer(BufReader::new(stream));
        let status = viewer.line();
        let status = status.split(' ').nth(1).unwrap().parse().unwrap();
        (status, viewer)
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "the stream has ended");
        line
    }

    /// The next event: its name and data. It stands in one chunk, so the lines between are of no interest.
    fn event(&mut self) -> (String, Value) {
        let name = loop {
            if let Some(name) = self.line().strip_prefix("event: ") {
                break name.trim().to_owned();
            }
        };
        let line = self.line();
        let data = line.strip_prefix("data: ").unwrap();
        (name, serde_json::from_str(data).unwrap())
    }

    fn hello(&mut self) -> Value {
        let (name, hello) = self.event();
        assert_eq!(name, "hello");
        openapi::assert_is("Hello", &hello);
        hello
    }

    fn tick(&mut self) -> Value {
        let (name, tick) = self.event();
        assert_eq!(name, "tick");
        openapi::assert_is("Tick", &tick);
        tick
    }
}

/// A value of a row by its column.
fn of<'a>(hello: &Value, row: &'a Value, column: &str) -> &'a Value {
    let columns = hello["columns"].as_array().unwrap();
    assert_eq!(columns.len(), row.as_array().unwrap().len());
    let at = columns.iter().position(|name| name == column).unwrap();
    &row[at]
}

async fn beside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

#[tokio::test]
async fn who_watches_is_told_what_was_and_each_second_what_is_new() {
    let main = Upstream::named("main", 200).await;
    let canary = Upstream::named("canary", 500).await;
    let router = Router::start(json!({
        "main-target": main.url(),
        "canary-target": canary.url(),
        "traffic": {"weight": 2.5},
    }));
    let address = router.instrumentation;
    let (mut viewer, hello) = beside(move || {
        let (status, mut viewer) = Viewer::begin(address);
        assert_eq!(status, 200);
        let hello = viewer.hello();
        (viewer, hello)
    })
    .await;
    assert_eq!(hello["changes"], "open");
    for _ in 0..3 {
        get(router.address, "/", "x-canary: true\r\n").await;
    }
    // When they are counted, and in which second, is the router's business.
    let (mut viewer, rows) = beside(move || {
        let mut rows = Vec::new();
        let counted = |rows: &[Value], hello: &Value| {
            let counts = rows.iter().map(|row| of(hello, row, "canary.requests"));
            counts.map(|count| count.as_u64().unwrap()).sum::<u64>()
        };
        while counted(&rows, &hello) < 3 {
            let tick = viewer.tick();
            let row = tick["row"].clone();
            assert_eq!(tick["status"]["decisions"], json!([]));
            assert_eq!(*of(&hello, &row, "weight"), 2.5);
            assert_eq!(*of(&hello, &row, "evidence"), Value::Null);
            assert_eq!(*of(&hello, &row, "main.p50"), Value::Null);
            rows.push(row);
        }
        let last = rows.last().unwrap();
        assert!(of(&hello, last, "canary.p99").as_f64().unwrap() < 1.0);
        let failures = rows.iter().map(|row| of(&hello, row, "canary.failures"));
        assert_eq!(
            failures.map(|count| count.as_u64().unwrap()).sum::<u64>(),
            3
        );
        let ends = rows
            .iter()
            .map(|row| of(&hello, row, "uptime").as_f64().unwrap());
        assert!(ends.is_sorted_by(|a, b| a < b), "{rows:?}");
        (viewer, rows)
    })
    .await;

    // Who comes later is told the same.
    let again = beside(move || Viewer::begin(address).1.hello()).await;
    let told = again["rows"].as_array().unwrap();
    for row in &rows {
        assert!(told.contains(row), "{row} of {told:?}");
    }

    // What is done shows at once, or a second later.
    router
        .change("PUT", "/traffic/weight", r#"{"weight": 7}"#)
        .await;
    beside(move || {
        while viewer.tick()["status"]["weight"] != 7 {}
        let tick = viewer.tick();
        let decision = &tick["status"]["decisions"][0];
        assert_eq!(decision["why"], "set-weight");
        assert_eq!(decision["figures"], Value::Null);
    })
    .await;
}

#[tokio::test]
async fn too_many_who_watch_are_told_so_and_take_nobody_elses_place() {
    let router = router_to("http://127.0.0.1:9");
    let address = router.instrumentation;
    let mut viewers = beside(move || {
        let each = (0..32).map(|_| {
            let (status, mut viewer) = Viewer::begin(address);
            assert_eq!(status, 200);
            viewer.hello();
            viewer
        });
        each.collect::<Vec<_>>()
    })
    .await;
    let refused = get(address, "/events", "").await;
    assert_eq!(refused.status, 503);
    openapi::assert_answers("GET", "/events", &refused);
    assert_eq!(get(address, "/metrics", "").await.status, 200);
    // All of them are told on.
    beside(move || {
        for viewer in &mut viewers {
            viewer.tick();
        }
        viewers.truncate(31);
        // One leaves, which shows when it is to be told something.
        loop {
            let (status, mut viewer) = Viewer::begin(address);
            if status == 200 {
                break viewer.hello();
            }
        }
    })
    .await;
}

#[tokio::test]
async fn another_process_is_another_instance() {
    let hello = |router: &Router| {
        let address = router.instrumentation;
        beside(move || Viewer::begin(address).1.hello())
    };
    let [one, other] = [
        router_to("http://127.0.0.1:9"),
        router_to("http://127.0.0.1:9"),
    ];
    let same = [hello(&one).await, hello(&one).await];
    assert_eq!(same[0]["instance"], same[1]["instance"]);
    assert_ne!(same[0]["instance"], hello(&other).await["instance"]);
}

#[tokio::test]
async fn it_says_who_may_change_anything() {
    let token = json!({"instrumentation": {"token": "0123456789abcdef"}});
    let open = json!({"instrumentation": {"host": "0.0.0.0"}});
    for (config, expected) in [(json!({}), "open"), (token, "token"), (open, "closed")] {
        let router = router_with("http://127.0.0.1:9", config);
        let address = SocketAddr::from(([127, 0, 0, 1], router.instrumentation.port()));
        let hello = beside(move || Viewer::begin(address).1.hello()).await;
        assert_eq!(hello["changes"], expected);
    }
}

#[tokio::test]
async fn a_drain_does_not_wait_for_who_watches() {
    let mut router = router_to("http://127.0.0.1:9");
    let address = router.instrumentation;
    let mut viewer = beside(move || {
        let (_, mut viewer) = Viewer::begin(address);
        viewer.hello();
        viewer
    })
    .await;
    router.drain();
    router.ended().await.unwrap();
    beside(move || {
        let mut rest = String::new();
        while viewer.0.read_line(&mut rest).is_ok_and(|read| read > 0) {}
    })
    .await;
}
