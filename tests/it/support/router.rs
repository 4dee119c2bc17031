//! A router in this process, on free ports.

use std::net::SocketAddr;

use canary_router::{
    app::{App, Running},
    config::Config,
};
use serde_json::{Value, json};

use super::{Client, get, soon};

/// A running router. It drains when dropped.
pub struct Router {
    pub address: SocketAddr,
    pub instrumentation: SocketAddr,
    running: Running,
}

impl Router {
    /// Starts one. `config` needs the targets; the listeners are on free ports whatever it says.
    pub fn start(config: Value) -> Router {
        let mut file = json!({
            "router-server": {"host": "127.0.0.1", "port": 1, "workers": 2},
            "instrumentation": {"host": "127.0.0.1", "port": 2}
        });
        merge(&mut file, config);
        let mut config =
            Config::parse("test.json", &file.to_string()).unwrap_or_else(|error| panic!("{error}"));
        config.server.listen.port = 0;
        config
            .instrumentation
            .as_mut()
            .expect("it is set above")
            .listen
            .port = 0;
        let running = App::bind(config).unwrap().start().unwrap();
        Router {
            address: running.proxy_address(),
            instrumentation: running.instrumentation_address().unwrap(),
            running,
        }
    }

    /// Stops accepting and finishes what is in flight.
    pub fn drain(&self) {
        self.running.drain();
    }

    /// Waits until all its threads have ended.
    pub async fn ended(&mut self) -> Result<(), String> {
        soon(self.running.ended()).await
    }

    /// `/status` as it is now.
    pub async fn status(&self) -> Value {
        let (code, status) = admin(self.instrumentation, "GET", "/status", "").await;
        assert_eq!(code, 200, "{status}");
        status
    }

    /// Changes something; the new status.
    pub async fn change(&self, method: &str, path: &str, body: &str) -> Value {
        let (code, status) = admin(self.instrumentation, method, path, body).await;
        assert_eq!(code, 200, "{method} {path}: {status}");
        status
    }

    /// What Prometheus would see now.
    pub async fn metrics(&self) -> Metrics {
        let page = get(self.instrumentation, "/metrics", "").await;
        assert_eq!(page.status, 200);
        Metrics(page.text())
    }

    /// Waits until a series has this value: a request is counted when its response has ended, which
    /// the client may see a moment earlier.
    #[track_caller]
    pub fn counts<'a>(&'a self, series: &'a str, value: f64) -> impl Future<Output = ()> + 'a {
        soon(async move {
            while self.metrics().await.value(series) != value {
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
        })
    }
}

/// A request to an instrumentation port, as an operator on this machine makes it; status and JSON of its answer.
pub async fn admin(address: SocketAddr, method: &str, path: &str, body: &str) -> (u16, Value) {
    let mut client = Client::connect(address).await;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let response = client.roundtrip(method, head).await;
    let answer = serde_json::from_slice(&response.message.body);
    (response.status, answer.unwrap_or(Value::Null))
}

impl Drop for Router {
    fn drop(&mut self) {
        self.running.drain();
    }
}

/// Merges `from` into `into`, objects key by key.
pub fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

/// A scraped page.
pub struct Metrics(pub String);

impl Metrics {
    /// The value of a series, named as on the page with its labels in order but without `version`.
    #[track_caller]
    pub fn value(&self, series: &str) -> f64 {
        let version = format!("version=\"{}\"", canary_router::VERSION);
        let line = self
            .0
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.rsplit_once(' '))
            .map(|(name, value)| {
                let name = name
                    .replace(&format!(",{version}"), "")
                    .replace(&version, "");
                (name.replace("{}", ""), value)
            })
            .find(|(name, _)| name == series);
        match line {
            Some((_, value)) => value.parse().unwrap(),
            None => panic!("no series {series} in\n{}", self.0),
        }
    }
}
