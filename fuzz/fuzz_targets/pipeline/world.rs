//! The routers, and what their upstreams see. A router is started when it is first asked for, and stays.

use std::{
    cell::{Cell, OnceCell, RefCell},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    rc::Rc,
};

use canary_router::{
    app::{App, Running},
    config::Config,
};
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, UnixListener},
    sync::Notify,
};

use super::{
    script::Script,
    upstream::{self, Seen, Source},
};

/// As all routers have it.
pub const MAX_HEADER_BYTES: usize = 8 << 10;

/// How the routers differ.
const KINDS: usize = 6;

pub struct World {
    main: SocketAddr,
    canary: PathBuf,
    sidecar: PathBuf,
    routers: [OnceCell<Router>; KINDS],
    script: RefCell<Option<Script>>,
    seen: RefCell<Vec<Seen>>,
    others: RefCell<Vec<(IpAddr, String)>>,
    saying: Rc<Saying>,
}

/// How many answers are being said.
#[derive(Default)]
struct Saying {
    count: Cell<usize>,
    less: Notify,
}

/// An answer that is.
pub struct Said(Rc<Saying>);

impl Drop for Said {
    fn drop(&mut self) {
        self.0.count.set(self.0.count.get() - 1);
        self.0.less.notify_one();
    }
}

pub struct Router {
    pub address: SocketAddr,
    pub config: Config,
    /// Whether a client may be preceded by a PROXY header.
    pub greets: bool,
    _running: Running,
}

impl World {
    pub async fn new() -> Rc<World> {
        let folder = std::env::temp_dir();
        let socket = |name| folder.join(format!("canary-fuzz-{}-{name}", std::process::id()));
        let (canary, sidecar) = (socket("canary"), socket("sidecar"));
        let main = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("there are ports");
        let world = Rc::new(World {
            main: main.local_addr().expect("it is bound"),
            canary: canary.clone(),
            sidecar: sidecar.clone(),
            routers: Default::default(),
            script: RefCell::default(),
            seen: RefCell::default(),
            others: RefCell::default(),
            saying: Rc::default(),
        });
        let listen = |path: &Path| UnixListener::bind(path).expect("the path is free");
        upstream::serve_tcp(Rc::clone(&world), Source::Main, main);
        upstream::serve_unix(Rc::clone(&world), Source::Canary, listen(&canary));
        upstream::serve_unix(Rc::clone(&world), Source::Sidecar, listen(&sidecar));
        world
    }

    pub fn router(&self, kind: usize) -> &Router {
        let kind = kind % KINDS;
        self.routers[kind].get_or_init(|| self.start(kind))
    }

    fn start(&self, kind: usize) -> Router {
        let long = "1h";
        let mut file = json!({
            "main-target": format!("http://{}", self.main),
            "canary-target": format!("http://unix:{}", self.canary.display()),
            "traffic": {"weight": 0},
            "router-server": {
                "host": "127.0.0.1", "port": 1, "workers": 1, "max-header-bytes": MAX_HEADER_BYTES,
                "read-timeout": long, "write-timeout": long, "idle-timeout": long,
            },
            "proxy-client": {
                "to-main-and-canary": {"timeout": "50m", "connect-timeout": "10s"},
                "to-sidecar": {"timeout": "50m", "connect-timeout": "10s"},
            },
        });
        let changes = match kind {
            0 => json!({}),
            // The canary, and main where that fails.
            1 => json!({
                "traffic": {"weight": 100},
                "fallback": {"replay": "failures", "budget": 100, "methods": ["GET", "HEAD", "PUT"],
                    "max-body": "64B", "static": {"status": 503, "body": "sorry"}},
            }),
            // As the sidecar says.
            2 => json!({
                "traffic": {"weight": 100},
                "sidecar-url": format!("http://unix:{}", self.sidecar.display()),
                "sidecar": {"max-body": "8B"},
            }),
            // Behind proxies that are trusted, with targets that are not passed on as they are.
            3 => json!({
                "main-target": format!("http://{}/base?key=1", self.main),
                "canary-target": format!("http://unix:{}", self.canary.display()),
                "trim-prefix": "/app",
                "traffic": {"weight": 50, "sticky": {"by": "cookie"}},
                "router-server": {"trusted-proxies": ["127.0.0.0/8"]},
            }),
            // Behind one that says whom it brings.
            4 => {
                json!({"router-server": {"trusted-proxies": ["127.0.0.0/8"], "proxy-protocol": true}})
            }
            // A sidecar that is asked without bodies, and whose answers are kept.
            5 => json!({
                "traffic": {"weight": 100},
                "sidecar-url": format!("http://unix:{}", self.sidecar.display()),
                "sidecar": {"body": "none", "cache": {"key": ["path", "header:x-key"], "ttl": "1ms"}},
                "fallback": {"replay": "off"},
            }),
            _ => unreachable!("there is no other kind"),
        };
        merge(&mut file, changes);
        let mut config =
            Config::parse("fuzz", &file.to_string()).unwrap_or_else(|why| panic!("{why}"));
        config.server.listen.port = 0;
        let running = App::bind(config.clone()).and_then(App::start);
        let running = running.unwrap_or_else(|why| panic!("{why}"));
        Router {
            address: running.proxy_address(),
            greets: config.server.proxy_protocol,
            config,
            _running: running,
        }
    }

    /// What another client has to say first.
    pub fn greeting(&self, router: SocketAddr) -> &'static str {
        let mut routers = self.routers.iter().filter_map(OnceCell::get);
        match routers.any(|other| other.address == router && other.greets) {
            true => "PROXY UNKNOWN\r\n",
            false => "",
        }
    }

    /// An input begins.
    pub fn begin(&self, script: Script) {
        self.seen.take();
        self.script.replace(Some(script));
    }

    /// It is over: who still asks is told the usual.
    pub fn end(&self) -> Vec<Seen> {
        self.script.take();
        self.seen.take()
    }

    /// What the client of the input that runs is to be answered.
    pub fn with_script<T>(&self, use_it: impl FnOnce(&mut Script) -> T) -> Option<T> {
        self.script.borrow_mut().as_mut().map(use_it)
    }

    /// An answer is said until what this gives back is dropped.
    pub fn saying(&self) -> Said {
        self.saying.count.set(self.saying.count.get() + 1);
        Said(Rc::clone(&self.saying))
    }

    pub async fn until_all_is_said(&self) {
        while self.saying.count.get() > 0 {
            self.saying.less.notified().await;
        }
    }

    pub fn saw(&self, seen: Seen) {
        self.seen.borrow_mut().push(seen);
    }

    /// This other client is going to ask, and to get what is given back here.
    pub fn expect(&self, client: IpAddr) -> String {
        let secret = format!("secret-of-{client}-");
        let mut others = self.others.borrow_mut();
        others.push((client, secret.clone()));
        // Those before are gone.
        if others.len() > 8 {
            others.remove(0);
        }
        secret
    }

    pub fn secret_of(&self, client: IpAddr) -> Option<String> {
        let others = self.others.borrow();
        let found = others.iter().find(|(other, _)| *other == client);
        found.map(|(_, secret)| secret.clone())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for path in [&self.canary, &self.sidecar] {
            let _gone = std::fs::remove_file(path);
        }
    }
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}
