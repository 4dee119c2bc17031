//! A browser, Debian's Chromium, by the DevTools protocol: it opens pages, looks into them, and has hands.
//!
//! What a page complains about, its console, exceptions, its policy, is kept, and so is whom it has asked. Each page
//! has a profile of its own. The browser, its children and its folder end with the value.

use std::{
    collections::HashMap,
    net::SocketAddr,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use futures_util::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};
use tokio::{net::TcpStream, sync::oneshot};
use tokio_tungstenite::{WebSocketStream, tungstenite::Message};

use super::{Folder, PATIENCE, eventually, soon};

type Socket = WebSocketStream<TcpStream>;
type Answer = Result<Value, String>;

/// A running browser.
pub struct Browser {
    wire: Arc<Wire>,
    child: Child,
    profile: Folder,
}

/// A tab of it, in a profile of its own.
pub struct Page {
    wire: Arc<Wire>,
    session: String,
    target: String,
    context: String,
}

/// The protocol: answers find who has asked, events are kept.
struct Wire {
    sink: tokio::sync::Mutex<SplitSink<Socket, Message>>,
    asked: Mutex<HashMap<u64, oneshot::Sender<Answer>>>,
    next: AtomicU64,
    events: Mutex<Vec<Event>>,
}

struct Event {
    session: String,
    method: String,
    params: Value,
}

/// What is kept of what the browser tells.
const KEPT: [&str; 5] = [
    "Runtime.consoleAPICalled",
    "Runtime.exceptionThrown",
    "Log.entryAdded",
    "Audits.issueAdded",
    "Network.requestWillBeSent",
];

impl Browser {
    pub async fn start() -> Browser {
        let profile = Folder::new();
        // It ends with this process, even where that is killed and drops nothing.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--", "chromium"])
            .args(["--headless", "--no-sandbox", "--disable-gpu"])
            .args(["--disable-quic", "--no-first-run", "--disable-sync"])
            .args(["--disable-background-networking", "--disable-breakpad"])
            .args(["--disable-component-update", "--disable-dev-shm-usage"])
            .arg("--remote-debugging-port=0")
            .arg(format!("--user-data-dir={}", profile.0.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0);
        let mut child = crate::peers::start(&mut command, "chromium");
        let told = profile.0.join("DevToolsActivePort");
        let mut place = None;
        eventually(|| {
            if let Some(status) = child.try_wait().unwrap() {
                panic!("chromium: {status}: see `apt-get install chromium`");
            }
            let told = std::fs::read_to_string(&told).unwrap_or_default();
            let told = told.split_once('\n');
            place = told.and_then(|(port, path)| Some((port.parse().ok()?, path.to_owned())));
            place.is_some()
        })
        .await;
        let (port, path): (u16, String) = place.expect("it is there");
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let stream = soon(TcpStream::connect(address)).await.unwrap();
        let url = format!("ws://{address}{path}");
        let connected = soon(tokio_tungstenite::client_async(url, stream)).await;
        let (sink, stream) = connected.unwrap().0.split();
        let wire = Arc::new(Wire {
            sink: sink.into(),
            asked: Mutex::default(),
            next: AtomicU64::new(1),
            events: Mutex::default(),
        });
        tokio::spawn(Wire::listen(Arc::clone(&wire), stream));
        Browser {
            wire,
            child,
            profile,
        }
    }

    /// An empty page, of 1280 by 800.
    pub async fn page(&self) -> Page {
        let said = self.ask("Target.createBrowserContext", json!({})).await;
        self.tab(word(&said, "browserContextId")).await
    }

    /// The same in the profile, and the window, of another, which is in the background from now on.
    pub async fn page_before(&self, other: &Page) -> Page {
        self.tab(other.context.clone()).await
    }

    async fn tab(&self, context: String) -> Page {
        let blank = json!({"url": "about:blank", "browserContextId": context});
        let target = word(&self.ask("Target.createTarget", blank).await, "targetId");
        let flat = json!({"targetId": target, "flatten": true});
        let session = word(&self.ask("Target.attachToTarget", flat).await, "sessionId");
        let page = Page {
            wire: Arc::clone(&self.wire),
            session,
            target,
            context,
        };
        for domain in ["Page", "Runtime", "Log", "Audits", "Network", "Performance"] {
            page.ask(&format!("{domain}.enable"), json!({})).await;
        }
        page.is_sized(1280, 800, 1.0).await;
        page
    }

    async fn ask(&self, method: &str, params: Value) -> Value {
        self.wire.ask(None, method, params).await
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let group = Pid::from_child(&self.child);
        let _gone = kill_process_group(group, Signal::KILL);
        let _reaped = self.child.wait();
        // Its children are not ours to wait for, and may just be writing.
        for _ in 0..100 {
            let _best_effort = std::fs::remove_dir_all(&self.profile.0);
            if !self.profile.0.exists() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Wire {
    async fn listen(self: Arc<Self>, mut stream: SplitStream<Socket>) {
        while let Some(Ok(message)) = stream.next().await {
            let Message::Text(text) = message else {
                continue;
            };
            let mut message: Value = serde_json::from_str(&text).unwrap();
            if let Some(id) = message["id"].as_u64() {
                let answer = match message.get("error") {
                    Some(error) => Err(error.to_string()),
                    None => Ok(message["result"].take()),
                };
                let asked = self.asked.lock().unwrap().remove(&id);
                // Nobody may wait any more.
                let _left = asked.map(|asked| asked.send(answer));
                continue;
            }
            let method = word(&message, "method");
            if KEPT.contains(&&*method) {
                self.events.lock().unwrap().push(Event {
                    session: message["sessionId"].as_str().unwrap_or_default().to_owned(),
                    method,
                    params: message["params"].take(),
                });
            }
        }
        // Who waits is told that nothing comes.
        self.asked.lock().unwrap().clear();
    }

    async fn ask(&self, session: Option<&str>, method: &str, params: Value) -> Value {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mut message = json!({"id": id, "method": method, "params": params});
        if let Some(session) = session {
            message["sessionId"] = session.into();
        }
        let (asked, answer) = oneshot::channel();
        self.asked.lock().unwrap().insert(id, asked);
        let said = soon(async {
            let message = Message::text(message.to_string());
            self.sink.lock().await.send(message).await.unwrap();
            answer.await
        })
        .await;
        match said {
            Ok(Ok(result)) => result,
            Ok(Err(error)) => panic!("{method}: {error}"),
            Err(_) => panic!("{method}: the browser has gone"),
        }
    }
}

impl Page {
    /// A command of the protocol.
    pub async fn ask(&self, method: &str, params: Value) -> Value {
        self.wire.ask(Some(&self.session), method, params).await
    }

    /// Goes there, and waits until the page has loaded.
    pub async fn open(&self, url: &str) {
        let said = self.ask("Page.navigate", json!({"url": url})).await;
        assert_eq!(said.get("errorText"), None, "{url}");
        self.until(&format!(
            "document.readyState === 'complete' && location.href.startsWith({})",
            json!(url)
        ))
        .await;
    }

    pub async fn reload(&self) {
        self.evaluate("window.isOld = true").await;
        self.ask("Page.reload", json!({})).await;
        self.until("!window.isOld && document.readyState === 'complete'")
            .await;
    }

    /// What JavaScript says, in the page; promises are awaited.
    pub async fn evaluate(&self, script: &str) -> Value {
        match self.try_evaluate(script).await {
            Ok(value) => value,
            Err(error) => panic!("{script}: {error}"),
        }
    }

    async fn try_evaluate(&self, script: &str) -> Answer {
        let params = json!({"expression": script, "awaitPromise": true, "returnByValue": true});
        let mut said = self.ask("Runtime.evaluate", params).await;
        match said.get("exceptionDetails") {
            Some(details) => Err(details.to_string()),
            None => Ok(said["result"]["value"].take()),
        }
    }

    /// Waits until this holds in the page.
    #[track_caller]
    pub fn until(&self, condition: &str) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        async move {
            let mut said = Ok(Value::Null);
            let holds = async {
                while said != Ok(json!(true)) {
                    // While it is on its way to another page there is nothing to look into.
                    said = self.try_evaluate(&format!("!!({condition})")).await;
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            if tokio::time::timeout(PATIENCE, holds).await.is_err() {
                let shows = self.text("html").await;
                panic!("{condition}, at {caller}: {said:?}: {shows}");
            }
        }
    }

    /// The text of an element, as it is shown.
    pub async fn text(&self, selector: &str) -> String {
        let text = format!("{}.innerText", found(selector));
        let text = self.evaluate(&text).await;
        text.as_str().unwrap().to_owned()
    }

    /// An attribute, or null.
    pub async fn attribute(&self, selector: &str, name: &str) -> Value {
        self.evaluate(&format!(
            "{}.getAttribute({})",
            found(selector),
            json!(name)
        ))
        .await
    }

    // ---- hands

    /// Clicks into the middle of an element, which has to be what is there.
    #[track_caller]
    pub fn click(&self, selector: &str) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        async move {
            let place = format!(
                "(() => {{ const it = {}; it.scrollIntoView({{block: 'center', behavior: 'instant'}});
                    const {{x, y, width, height}} = it.getBoundingClientRect();
                    const [left, top] = [x + width / 2, y + height / 2];
                    const there = document.elementFromPoint(left, top);
                    return [left, top, it === there || it.contains(there)]; }})()",
                found(selector)
            );
            let place = self.evaluate(&place).await;
            assert_eq!(
                place[2], true,
                "{selector} is covered: {place}, at {caller}"
            );
            for kind in ["mouseMoved", "mousePressed", "mouseReleased"] {
                let pressed = kind != "mouseMoved";
                let button = if pressed { "left" } else { "none" };
                let params = json!({"type": kind, "x": place[0], "y": place[1], "button": button,
                    "clickCount": u8::from(pressed)});
                self.ask("Input.dispatchMouseEvent", params).await;
            }
        }
    }

    /// A key, by its name (UI Events KeyboardEvent key Values), goes down and up.
    pub async fn press(&self, key: &str) {
        let (code, number, text) = match key {
            "Enter" => ("Enter", 13, "\r"),
            "Tab" => ("Tab", 9, ""),
            "Escape" => ("Escape", 27, ""),
            " " => ("Space", 32, " "),
            "ArrowLeft" => ("ArrowLeft", 37, ""),
            "Home" => ("Home", 36, ""),
            "End" => ("End", 35, ""),
            "Delete" => ("Delete", 46, ""),
            other => panic!("{other}: teach it"),
        };
        for kind in ["keyDown", "keyUp"] {
            let mut params = json!({"type": kind, "key": key, "code": code,
                "windowsVirtualKeyCode": number});
            if kind == "keyDown" {
                params["text"] = text.into();
            }
            self.ask("Input.dispatchKeyEvent", params).await;
        }
    }

    /// Types into what has the focus, in place of what is selected.
    pub async fn type_in(&self, text: &str) {
        for letter in text.chars() {
            for kind in ["keyDown", "keyUp"] {
                let mut params = json!({"type": kind, "key": letter});
                if kind == "keyDown" {
                    params["text"] = json!(letter);
                }
                self.ask("Input.dispatchKeyEvent", params).await;
            }
        }
    }

    /// Goes on by Tab until this has the focus.
    pub async fn tab_to(&self, selector: &str) {
        for _ in 0..60 {
            let there = format!("document.activeElement === {}", found(selector));
            if self.evaluate(&there).await == true {
                return;
            }
            self.press("Tab").await;
        }
        panic!("{selector} cannot be reached by Tab");
    }

    // ---- what it is looked at with

    /// A window of so many CSS pixels, each of `scale` by `scale` of the screen's: 2 is a zoom of 200 %.
    pub async fn is_sized(&self, width: u32, height: u32, scale: f64) {
        let metrics =
            json!({"width": width, "height": height, "deviceScaleFactor": scale, "mobile": false});
        self.ask("Emulation.setDeviceMetricsOverride", metrics)
            .await;
    }

    /// What the system prefers: `[("prefers-color-scheme", "dark")]`.
    pub async fn prefers(&self, features: &[(&str, &str)]) {
        let features: Vec<Value> = features
            .iter()
            .map(|(name, value)| json!({"name": name, "value": value}))
            .collect();
        self.ask("Emulation.setEmulatedMedia", json!({"features": features}))
            .await;
    }

    /// Whether there is no network, for what begins from now on.
    pub async fn is_offline(&self, offline: bool) {
        let conditions = json!({"offline": offline, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1});
        self.ask("Network.emulateNetworkConditions", conditions)
            .await;
    }

    /// Whether it is the tab that is looked at.
    pub async fn is_in_front(&self) {
        let target = json!({"targetId": self.target});
        self.wire.ask(None, "Target.activateTarget", target).await;
    }

    /// A picture of all of it, however long it is.
    pub async fn picture(&self, file: &Path) {
        let size = "[innerWidth, document.documentElement.scrollHeight, devicePixelRatio]";
        let size = self.evaluate(size).await;
        let number = |i: usize| size[i].as_f64().unwrap();
        self.is_sized(number(0) as u32, number(1) as u32, number(2))
            .await;
        self.view(file).await;
    }

    /// A picture of what is in the window.
    pub async fn view(&self, file: &Path) {
        // What follows the size is drawn two frames later.
        let frames = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done))))";
        let bare = |hidden: bool| json!({"hidden": hidden});
        self.ask("Emulation.setScrollbarsHidden", bare(true)).await;
        self.evaluate(frames).await;
        let shot = self.ask("Page.captureScreenshot", json!({})).await;
        self.ask("Emulation.setScrollbarsHidden", bare(false)).await;
        let shot = STANDARD.decode(word(&shot, "data")).unwrap();
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, shot).unwrap();
    }

    /// A figure of the protocol's `Performance` domain, without what is garbage.
    pub async fn figure(&self, name: &str) -> f64 {
        self.ask("HeapProfiler.collectGarbage", json!({})).await;
        let figures = self.ask("Performance.getMetrics", json!({})).await;
        let figures = figures["metrics"].as_array().unwrap();
        let figure = figures.iter().find(|figure| figure["name"] == name);
        figure.unwrap()["value"].as_f64().unwrap()
    }

    // ---- what is kept of it

    fn events<T>(&self, take: impl Fn(&str, &Value) -> Option<T>) -> Vec<T> {
        let events = self.wire.events.lock().unwrap();
        let mine = events.iter().filter(|event| event.session == self.session);
        mine.filter_map(|event| take(&event.method, &event.params))
            .collect()
    }

    /// Everything on the console, all exceptions, and what the browser minds.
    pub fn complaints(&self) -> Vec<String> {
        self.events(|method, params| match method {
            "Network.requestWillBeSent" => None,
            method => Some(format!("{method}: {params}")),
        })
    }

    /// The same, without requests that failed, and without what a test does in the page by old ways, where it has to.
    pub fn complaints_but_the_network(&self) -> Vec<String> {
        self.events(
            |method, params| match (method, &params["entry"]["source"]) {
                ("Network.requestWillBeSent", _) => None,
                ("Log.entryAdded", source) if source == "network" => None,
                ("Audits.issueAdded", _) if params["issue"]["code"] == "DeprecationIssue" => None,
                (method, _) => Some(format!("{method}: {params}")),
            },
        )
    }

    /// Method and URL of all that it has asked for.
    pub fn requests(&self) -> Vec<String> {
        self.events(|method, params| {
            let request = &params["request"];
            (method == "Network.requestWillBeSent")
                .then(|| format!("{} {}", word(request, "method"), word(request, "url")))
        })
    }
}

/// The only element that fits.
fn found(selector: &str) -> String {
    let selector = json!(selector);
    format!(
        "((all) => {{ if (all.length !== 1) throw new Error({selector} + ': ' + all.length); return all[0]; }})\
         (document.querySelectorAll({selector}))"
    )
}

#[track_caller]
fn word(value: &Value, key: &str) -> String {
    let word = value[key].as_str();
    word.unwrap_or_else(|| panic!("no {key} in {value}"))
        .to_owned()
}
