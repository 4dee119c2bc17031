//! The dashboard in a browser, as an operator sees and uses it.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::io::AsyncBufReadExt;

use crate::{
    admin_phases::{Pair, steps, until},
    rollout::Traffic,
    support::{
        browser::{Browser, Page},
        *,
    },
};

const LIVE: &str = "document.querySelector('#connection').dataset.state === 'live'";
const LOST: &str = "document.querySelector('#connection').dataset.state === 'lost'";
const ASKS: &str = "document.querySelector('#confirm').open";
const TOKEN: &str = "0123456789abcdef";
const BUTTONS: [&str; 8] = [
    "weight",
    "start",
    "pause",
    "resume",
    "promote",
    "abort",
    "reset-breakers",
    "reset-limits",
];

/// The dashboard of a router, once it is live.
async fn dashboard(browser: &Browser, address: SocketAddr) -> Page {
    let page = browser.page().await;
    page.open(&format!("http://{address}/")).await;
    page.until(LIVE).await;
    page
}

fn in_phase(phase: &str) -> String {
    format!("document.querySelector('#rollout').dataset.phase === '{phase}'")
}

fn button(action: &str) -> String {
    format!("[data-action={action}]")
}

/// What the last command came to, once it has come to something.
async fn result(page: &Page, outcome: &str) -> String {
    page.until(&format!(
        "!{ASKS} && document.querySelector('#result').dataset.outcome === '{outcome}'"
    ))
    .await;
    page.text("#result").await
}

// ---- what it shows

#[tokio::test]
async fn the_page_lives_by_its_policy_and_asks_nobody_but_its_router() {
    let router = router_to("http://127.0.0.1:9");
    let browser = Browser::start().await;
    let page = dashboard(&browser, router.instrumentation).await;
    page.click("#theme").await;
    page.click(&button("promote")).await;
    page.click("[data-confirm]").await;
    page.until("document.querySelectorAll('#decisions li').length === 1")
        .await;
    page.click("#all-decisions").await;
    page.until("document.querySelector('#result').innerText.includes('are shown')")
        .await;
    assert_eq!(page.complaints(), [""; 0]);
    let ours = format!("http://{}/", router.instrumentation);
    let requests = page.requests();
    for (method, path) in [
        ("GET", ""),
        ("GET", "events"),
        ("POST", "rollout/promote"),
        ("GET", "decisions"),
    ] {
        let wanted = format!("{method} {ours}{path}");
        assert!(requests.contains(&wanted), "{wanted} in {requests:?}");
    }
    for request in &requests {
        let (_, url) = request.split_once(' ').unwrap();
        assert!(
            url.starts_with(&ours) || url.starts_with("data:"),
            "{request}"
        );
    }

    // The policy holds, and the kit sees what it forbids.
    page.evaluate(
        "(() => { const script = document.createElement('script'); script.text = 'window.isDone = true';
            const image = document.createElement('img'); image.src = 'http://127.0.0.1:9/';
            document.body.append(script, image); })()",
    )
    .await;
    assert_eq!(page.evaluate("window.isDone === true").await, false);
    eventually(|| {
        let complaints = page.complaints().join("\n");
        let forbidden = ["script-src", "img-src"];
        forbidden.iter().all(|part| complaints.contains(part))
    })
    .await;
}

/// A canary that fails so often yet, and then answers.
async fn canary(failures: Arc<AtomicI64>) -> Upstream {
    Upstream::start(move |_| {
        let fails = failures.fetch_sub(1, Ordering::SeqCst) > 0;
        answer(if fails { 500 } else { 200 }, "", "canary")
    })
    .await
}

fn rollout() -> Value {
    json!({"steps": [{"weight": 5, "for": "10m"}, {"weight": 50, "for": "10m"}]})
}

#[tokio::test]
async fn a_rollback_is_shown_as_it_happens() {
    let failures = Arc::new(AtomicI64::new(0));
    let (main, canary) = (
        Upstream::named("main", 200).await,
        canary(failures.clone()).await,
    );
    let router = Router::start(json!({
        "main-target": main.url(), "canary-target": canary.url(), "rollout": rollout()
    }));
    let browser = Browser::start().await;
    let page = dashboard(&browser, router.instrumentation).await;
    page.evaluate("window.isTheSame = true").await;
    let _traffic = Traffic::start(router.address, Duration::from_millis(10));
    router.change("POST", "/rollout/start", "").await;
    page.until(&format!(
        "{} && document.querySelector('#canary-card [data-value=rate]').innerText.endsWith('/s')",
        in_phase("progressing")
    ))
    .await;
    let share = page.text("#canary-card [data-value=share]").await;
    assert_eq!(share.replace('\u{a0}', " "), "5 %");
    let step = "[data-step='1'][aria-current=step]";
    assert!(page.text(step).await.contains("5\u{a0}%"));
    assert_eq!(page.attribute("#summary", "data-level").await, "idle");
    assert_eq!(
        page.evaluate("document.title").await,
        "● Step 1 of 2 – canary-router"
    );

    // One failure is evidence, and not enough of it.
    failures.store(1, Ordering::SeqCst);
    page.until("Number(document.querySelector('.meter.against').ariaValueNow) > 0.5")
        .await;
    assert_eq!(page.evaluate(&in_phase("progressing")).await, true);
    failures.store(i64::MAX, Ordering::SeqCst);
    let status = until(&router, |status| {
        status["rollout"]["phase"] == "rolled-back"
    })
    .await;
    let since = Instant::now();
    page.until(&in_phase("rolled-back")).await;
    assert!(since.elapsed() < Duration::from_secs(5));
    assert_eq!(page.attribute("#summary", "data-level").await, "bad");
    let decision = status["decisions"][0]["text"].as_str().unwrap();
    let verdict = page.text("#verdict").await;
    assert_eq!(verdict, status["summary"]["text"].as_str().unwrap());
    let decided = page.text("#decisions li.bad").await;
    assert!(decided.contains(&decision[1..]), "{decided}");
    assert!(decided.contains("the judge"), "{decided}");
    let share = page.text("#canary-card [data-value=share]").await;
    assert_eq!(share.replace('\u{a0}', " "), "0 %");
    let step = page.text("[data-step='1'][data-state=failed]").await;
    assert!(step.contains("rolled back after"), "{step}");
    let title = page.evaluate("document.title").await;
    assert_eq!(title, "● Rolled back – canary-router");
    let news = page.evaluate("document.querySelector('#announcement').textContent");
    let news = news.await.to_string();
    assert!(
        news.contains("Rolled back") && news.contains(&decision[1..]),
        "{news}"
    );
    // When it happened stands in each chart, and the evidence from before it.
    let marks = "[...document.querySelectorAll('[data-chart]:not([hidden]) .mark.bad text')].map(mark => mark.textContent)";
    assert_eq!(page.evaluate(marks).await, json!(vec!["rolled back"; 5]));
    page.until(
        "document.querySelector('[data-chart=evidence] .line.canary').getAttribute('d').length > 5",
    )
    .await;
    let evidence = page.evaluate("Number(document.querySelector('.meter.against').ariaValueNow)");
    assert!(evidence.await.as_f64() >= status["evidence"]["threshold"].as_f64());
    assert_eq!(page.evaluate("window.isTheSame").await, true);
    assert_eq!(page.complaints(), [""; 0]);
}

// ---- what is done with it

/// How somebody gets things done.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Hand {
    Mouse,
    Keyboard,
}

impl Hand {
    async fn push(self, page: &Page, selector: &str, key: &str) {
        match self {
            Hand::Mouse => page.click(selector).await,
            Hand::Keyboard => {
                page.tab_to(selector).await;
                page.press(key).await;
            }
        }
    }

    async fn leave(self, page: &Page) {
        match self {
            Hand::Mouse => page.click("[data-cancel]").await,
            Hand::Keyboard => page.press("Escape").await,
        }
        page.until(&format!("!{ASKS}")).await;
    }
}

/// What an operator can change.
fn changeable(status: &Value) -> Value {
    let parts = ["weight", "breakers", "limits", "decisions"].map(|part| status[part].clone());
    json!([parts, status["rollout"]["phase"], status["rollout"]["step"]])
}

#[tokio::test]
async fn each_button_asks_and_does_what_it_says_by_mouse_and_by_keyboard() {
    let pair = Pair::new().await;
    let mut config = pair.config(steps());
    merge(
        &mut config,
        json!({"circuit-breaker": {
            "error-limit-canary": 10, "failure-rate-threshold": 50, "minimum-number-of-calls": 3,
            "wait-open": "1h", "max-wait-open": "1h"
        }}),
    );
    let router = Router::start(config);
    let browser = Browser::start().await;
    let page = dashboard(&browser, router.instrumentation).await;
    for hand in [Hand::Mouse, Hand::Keyboard] {
        pair.is_healthy(false);
        for _ in 0..3 {
            get(router.address, "/", "x-canary: true\r\n").await;
        }
        until(&router, |status| {
            status["breakers"]["canary"] == "open" && status["limits"]["errors_remaining"] == 7
        })
        .await;
        for (action, done, said) in [
            ("weight", json!([7.25, "idle"]), "gets 7.25 %"),
            (
                "start",
                json!([5, "progressing"]),
                "has begun: the canary gets 5 %",
            ),
            ("pause", json!([5, "paused"]), "paused in step 1"),
            ("resume", json!([5, "progressing"]), "goes on with step 1"),
            (
                "promote",
                json!([100, "succeeded"]),
                "all eligible requests",
            ),
            ("abort", json!([0, "rolled-back"]), "no eligible requests"),
            ("reset-breakers", json!("closed"), "breakers are closed"),
            ("reset-limits", json!(10), "begin afresh"),
        ] {
            let selector = button(action);
            let what = format!("{action} by {hand:?}");
            page.until(&format!(
                "document.querySelector('{selector}').ariaDisabled !== 'true'"
            ))
            .await;
            let before = router.status().await;
            hand.push(&page, &selector, "Enter").await;
            page.until(ASKS).await;
            if action == "weight" {
                page.type_in("99").await;
            }
            hand.leave(&page).await;
            let focus = format!("document.activeElement.matches('{selector}')");
            assert_eq!(page.evaluate(&focus).await, true, "{what}");
            assert_eq!(
                changeable(&router.status().await),
                changeable(&before),
                "{what}"
            );

            hand.push(&page, &selector, " ").await;
            page.until(ASKS).await;
            let asked = page.text("#confirm-text").await;
            assert!(asked.len() > 20, "{what}: {asked}");
            match (action, hand) {
                ("weight", Hand::Keyboard) => {
                    page.type_in("7.25").await;
                    page.press("Enter").await;
                }
                ("weight", Hand::Mouse) => {
                    page.type_in("7.25").await;
                    page.click("[data-confirm]").await;
                }
                _ => hand.push(&page, "[data-confirm]", "Enter").await,
            }
            let shown = result(&page, "ok").await.replace('\u{a0}', " ");
            assert!(shown.contains(said), "{what}: {shown}");
            let status = router.status().await;
            let is = match action {
                "reset-breakers" => status["breakers"]["canary"].clone(),
                "reset-limits" => status["limits"]["errors_remaining"].clone(),
                _ => json!([status["weight"], status["rollout"]["phase"]]),
            };
            assert_eq!(is, done, "{what}");
            assert_eq!(page.evaluate(&focus).await, true, "{what}");
            page.click("#dismiss").await;
        }
    }
    assert_eq!(page.complaints(), [""; 0]);
}

/// What is not possible is refused by the page where it knows, and by the router where it does not.
#[tokio::test]
async fn what_makes_no_sense_is_refused_with_a_reason() {
    let pair = Pair::new().await;
    let router = Router::start(pair.config(steps()));
    let browser = Browser::start().await;
    let page = dashboard(&browser, router.instrumentation).await;
    let before = changeable(&router.status().await);
    for (action, why) in [
        ("pause", "nothing to pause"),
        ("resume", "nothing to resume"),
        ("reset-breakers", "All breakers are closed"),
        ("reset-limits", "No limit is configured"),
    ] {
        let selector = button(action);
        page.click(&selector).await;
        assert_eq!(page.evaluate(ASKS).await, false, "{action}");
        assert_eq!(page.attribute(&selector, "aria-disabled").await, "true");
        let why_not = format!(
            "document.getElementById(document.querySelector('{selector}').getAttribute('aria-describedby')).textContent"
        );
        let said = page.evaluate(&why_not).await.to_string();
        assert!(said.contains(why), "{action}: {said}");
        let section =
            "document.activeElement.closest('section').querySelector('[data-why]').innerText";
        let shown = page.evaluate(section).await.to_string();
        assert_eq!(shown, said, "{action}");
    }
    for weight in ["101", "-1", "1.234", ""] {
        page.click(&button("weight")).await;
        page.until(ASKS).await;
        match weight {
            "" => page.press("Delete").await,
            _ => page.type_in(weight).await,
        }
        page.press("Enter").await;
        page.until("document.querySelector('#confirm-problem').innerText.includes('0 to 100')")
            .await;
        assert_eq!(page.attribute("#weight", "aria-invalid").await, "true");
        Hand::Keyboard.leave(&page).await;
    }
    // A key that is held down asks, and does not say yes.
    page.tab_to(&button("start")).await;
    for _ in 0..5 {
        let held = json!({"type": "keyDown", "key": "Enter", "code": "Enter", "text": "\r",
            "windowsVirtualKeyCode": 13, "autoRepeat": true});
        page.ask("Input.dispatchKeyEvent", held).await;
    }
    assert_eq!(page.evaluate(ASKS).await, true);
    assert_eq!(changeable(&router.status().await), before);

    // Somebody else is faster, by less than a tick: the page is kept from hearing of it.
    page.evaluate(
        "(() => { const other = new XMLHttpRequest(); other.open('POST', '/rollout/start', false); other.send();
            document.querySelector('[data-confirm]').click(); })()",
    )
    .await;
    let said = result(&page, "failed").await;
    assert!(
        said.contains("a rollout is under way already (progressing)"),
        "{said}"
    );
    assert_eq!(
        router.status().await["decisions"].as_array().unwrap().len(),
        1
    );
    // What failed stays until somebody has seen it.
    page.click("#dismiss").await;
    assert_eq!(page.text("#result").await, "");
    assert_eq!(page.complaints_but_the_network(), [""; 0]);
}

/// A browser has six connections to a host, and the feeds of six tabs had them all: a command waited for ever.
#[tokio::test]
async fn a_command_goes_through_from_the_sixth_tab() {
    let router = router_to("http://127.0.0.1:9");
    let browser = Browser::start().await;
    let mut tabs = vec![dashboard(&browser, router.instrumentation).await];
    for _ in 2..=6 {
        let page = browser.page_before(&tabs[0]).await;
        page.open(&format!("http://{}/", router.instrumentation))
            .await;
        page.until(LIVE).await;
        tabs.push(page);
    }
    let page = &tabs[5];
    page.click(&button("abort")).await;
    page.click("[data-confirm]").await;
    result(page, "ok").await;
    page.until(&in_phase("rolled-back")).await;
    page.click("#all-decisions").await;
    page.until("document.querySelector('#result').innerText.includes('are shown')")
        .await;
    for page in tabs {
        page.until("seen.status.rollout.phase === 'rolled-back'")
            .await;
        assert_eq!(page.evaluate("seen.connection").await, "live");
        assert_eq!(page.complaints(), [""; 0]);
    }
}

// ---- who may

/// Whether the token is anywhere but in the page's own memory.
async fn traces(page: &Page) -> Vec<&'static str> {
    let mut traces = Vec::new();
    for (place, text) in [
        ("address", "location.href"),
        ("page", "document.documentElement.outerHTML"),
        (
            "fields",
            "[...document.querySelectorAll('input')].map(input => input.value).join()",
        ),
        ("tab", "JSON.stringify(sessionStorage)"),
        ("browser", "JSON.stringify(localStorage)"),
        ("history", "JSON.stringify(history.state)"),
    ] {
        let text = page.evaluate(text).await.to_string();
        if text.contains(TOKEN) {
            traces.push(place);
        }
    }
    if page
        .requests()
        .iter()
        .any(|request| request.contains(TOKEN))
    {
        traces.push("requests");
    }
    traces
}

#[tokio::test]
async fn the_token_is_asked_for_once_and_kept_nowhere_unless_that_is_wished() {
    let router = router_with(
        "http://127.0.0.1:9",
        json!({"instrumentation": {"token": TOKEN}}),
    );
    let browser = Browser::start().await;
    let page = dashboard(&browser, router.instrumentation).await;
    let says = |words: &str| {
        format!("document.querySelector('#confirm-problem').innerText.includes('{words}')")
    };
    let asks_for_it = "document.querySelector('#token').checkVisibility()";
    page.click(&button("promote")).await;
    page.until(asks_for_it).await;
    page.press("Enter").await;
    page.until(&says("need the router")).await;
    page.type_in("a wrong one").await;
    page.press("Enter").await;
    page.until(&says("is not the one in instrumentation.token"))
        .await;
    assert_eq!(page.evaluate(ASKS).await, true);
    assert_eq!(
        page.evaluate("document.activeElement.id + document.activeElement.value")
            .await,
        "token"
    );
    assert_eq!(router.status().await["rollout"]["phase"], "idle");
    page.type_in(TOKEN).await;
    page.press("Enter").await;
    result(&page, "ok").await;
    assert_eq!(router.status().await["rollout"]["phase"], "succeeded");

    page.click(&button("abort")).await;
    page.until(ASKS).await;
    assert_eq!(page.evaluate(asks_for_it).await, false);
    page.click("[data-confirm]").await;
    page.until(&in_phase("rolled-back")).await;
    assert_eq!(traces(&page).await, [""; 0]);

    // Forgotten with the page; kept for the tab by who wants that.
    page.reload().await;
    page.until(LIVE).await;
    page.click(&button("promote")).await;
    page.until(asks_for_it).await;
    page.type_in(TOKEN).await;
    page.click("input[name=keep]").await;
    page.click("[data-confirm]").await;
    page.until(&in_phase("succeeded")).await;
    assert_eq!(traces(&page).await, ["tab"]);
    page.reload().await;
    page.until(LIVE).await;
    page.click(&button("abort")).await;
    page.until(ASKS).await;
    assert_eq!(page.evaluate(asks_for_it).await, false);
    page.click("[data-confirm]").await;
    page.until(&in_phase("rolled-back")).await;

    // One that holds no more is asked for again, and not kept.
    page.evaluate(
        "Object.keys(sessionStorage).forEach(key => { sessionStorage[key] = 'it was changed'; })",
    )
    .await;
    page.reload().await;
    page.until(LIVE).await;
    page.click(&button("promote")).await;
    page.click("[data-confirm]").await;
    page.until(&format!("{asks_for_it} && {}", says("is not the one")))
        .await;
    assert_eq!(page.evaluate("sessionStorage.length").await, 0);
    assert_eq!(router.status().await["rollout"]["phase"], "rolled-back");
    assert_eq!(page.complaints_but_the_network(), [""; 0]);
}

#[tokio::test]
async fn where_nobody_may_change_anything_the_page_says_what_to_configure() {
    let router = router_with(
        "http://127.0.0.1:9",
        json!({"instrumentation": {"host": "0.0.0.0"}}),
    );
    let address = SocketAddr::from(([127, 0, 0, 1], router.instrumentation.port()));
    let browser = Browser::start().await;
    let page = dashboard(&browser, address).await;
    for action in BUTTONS {
        page.click(&button(action)).await;
        assert_eq!(page.evaluate(ASKS).await, false, "{action}");
        assert_eq!(
            page.attribute(&button(action), "aria-disabled").await,
            "true"
        );
    }
    let said = page.text("#closed").await;
    for word in ["instrumentation.token", "instrumentation.host", "restart"] {
        assert!(said.contains(word), "{said}");
    }
    assert_eq!(page.complaints(), [""; 0]);
}

// ---- what is lost

/// What the chart of the requests says of main's greatest rate.
const MOST: &str = "Number(/main between [^ ]+ and ([0-9.]+)/.exec(document.querySelector('#words-rate').textContent)?.[1] ?? 0)";

#[tokio::test]
async fn a_restart_is_survived_with_what_was_seen_before_it() {
    let main = Upstream::named("main", 200).await;
    let (proxy, metrics) = (Port::reserve(), Port::reserve());
    let folder = Folder::new();
    let config = json!({
        "main-target": main.url(), "canary-target": main.url(),
        "router-server": {"host": "127.0.0.1", "port": proxy.number(), "workers": 1},
        "instrumentation": {"host": "127.0.0.1", "port": metrics.number()}
    });
    folder.write("config.json", config.to_string());
    let mut process = Process::start(&folder, &[]);
    process.listens(proxy.address).await;
    process.listens(metrics.address).await;
    let browser = Browser::start().await;
    let page = dashboard(&browser, metrics.address).await;
    page.evaluate("window.isTheSame = true").await;
    let traffic = Traffic::start(proxy.address, Duration::from_millis(20));
    page.until(&format!("{MOST} > 5")).await;
    drop(traffic);

    // It hangs, and keeps its connections.
    process.signal("STOP");
    page.until(LOST).await;
    process.signal("CONT");
    page.until(LIVE).await;

    process.kill();
    page.until(LOST).await;
    let said = page.text("#connection").await;
    assert!(said.contains("connection lost, data is"), "{said}");
    let title = page.evaluate("document.title").await;
    assert_eq!(title, "● Connection lost – canary-router");
    // What is asked meanwhile is answered by the page.
    page.click(&button("abort")).await;
    page.until("document.querySelector('#confirm [data-part=stale]').checkVisibility()")
        .await;
    page.click("[data-confirm]").await;
    let failed = result(&page, "failed").await;
    assert!(failed.contains("cannot be reached"), "{failed}");

    // It is there again before the viewer's network is.
    page.is_offline(true).await;
    let mut process = Process::start(&folder, &[]);
    process.listens(metrics.address).await;
    let feeds = || {
        page.requests()
            .iter()
            .filter(|request| request.ends_with("/events"))
            .count()
    };
    let before = feeds();
    eventually(|| feeds() > before + 1).await;
    assert_eq!(page.evaluate(LOST).await, true);
    page.is_offline(false).await;
    page.until(LIVE).await;
    page.until("document.querySelectorAll('[data-chart=rate] .mark.restarted').length === 1")
        .await;
    assert!(page.evaluate(MOST).await.as_f64().unwrap() > 5.0);
    let news = page.evaluate("document.querySelector('#announcement').textContent");
    assert_eq!(news.await, "Connected again.");
    assert_eq!(page.evaluate("window.isTheSame").await, true);
    assert_eq!(page.complaints_but_the_network(), [""; 0]);
}

#[tokio::test]
async fn who_is_one_too_many_is_told_and_let_in_by_itself() {
    let router = router_to("http://127.0.0.1:9");
    let browser = Browser::start().await;
    let page = dashboard(&browser, router.instrumentation).await;
    let mut viewers = Vec::new();
    for _ in 0..31 {
        let mut viewer = Client::connect(router.instrumentation).await;
        viewer.send(head("GET /events", "")).await;
        assert!(viewer.head().await.contains(" 200 "));
        viewers.push(viewer);
    }
    let late = browser.page().await;
    late.open(&format!("http://{}/", router.instrumentation))
        .await;
    late.until(LOST).await;
    let said = late.text("#connection").await;
    assert_eq!(said, "no connection, retrying");
    assert_eq!(page.evaluate(LIVE).await, true);
    drop(viewers);
    late.until(LIVE).await;
    for page in [page, late] {
        assert_eq!(page.complaints_but_the_network(), [""; 0]);
    }
}

// ---- what it is told by others

/// What a page that begins to watch is told.
async fn hello(router: &Router) -> Value {
    let mut viewer = Client::connect(router.instrumentation).await;
    viewer.send(head("GET /events", "")).await;
    soon(async {
        loop {
            let mut line = String::new();
            viewer.0.read_line(&mut line).await.unwrap();
            if let Some(data) = line.strip_prefix("data: ") {
                return serde_json::from_str(data).unwrap();
            }
        }
    })
    .await
}

fn event(name: &str, data: &Value) -> Step {
    Step::Write(format!("event: {name}\ndata: {data}\n\n").into())
}

/// The router's page, by a server that says in `/events` what it is given.
async fn fake(router: &Router, events: Vec<Step>) -> Upstream {
    let page = get(router.instrumentation, "/", "").await;
    let headers = ["content-type", "content-security-policy"]
        .map(|name| format!("{name}: {}\r\n", page.header(name).unwrap()))
        .concat();
    let html = page.text();
    Upstream::start(move |request| match request.target() {
        "/" => answer(200, &headers, &html),
        "/events" => {
            let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";
            let mut steps = vec![Step::Write(head.into())];
            steps.extend(events.clone());
            steps.push(Step::Hang);
            steps
        }
        _ => answer(404, "", "{}"),
    })
    .await
}

const HOSTILE: &str = "<img src=x onerror='window.isHacked = true'><script>window.isHacked = true</script>\"'`${1}&lt;\u{202e}";

/// In place of each text.
fn poison(value: &mut Value) {
    match value {
        Value::String(text) => *text = HOSTILE.into(),
        Value::Array(all) => all.iter_mut().for_each(poison),
        Value::Object(all) => {
            let texts = all.iter_mut().filter(|(name, _)| *name != "time");
            texts.for_each(|(_, value)| poison(value));
        }
        _ => {}
    }
}

#[tokio::test]
async fn what_looks_like_markup_is_shown_and_not_done() {
    let folder = Folder::new();
    let file = folder.0.join("<img src=x onerror=alert(1)>.json");
    let mut router = router_with(
        "http://127.0.0.1:9/'&lt;b&gt;${1}'",
        json!({"state": {"file": file}}),
    );
    let status = router
        .change("PUT", "/traffic/weight", r#"{"weight": 3}"#)
        .await;
    let url = status["targets"]["main"]["url"].as_str().unwrap();
    let browser = Browser::start().await;
    let page = dashboard(&browser, router.instrumentation).await;
    assert_eq!(page.text("#main-card .url").await, url);
    let guards = page.text("#guards").await;
    assert!(
        guards.contains("<img src=x onerror=alert(1)>.json"),
        "{guards}"
    );

    // Whoever has got a router to say anything at all.
    let mut hello = hello(&router).await;
    let mut status = hello["status"].clone();
    let mut decision = status["decisions"][0].clone();
    decision["to"]["phase"] = "rolled-back".into();
    status["state"] = json!({"file": "", "written": false, "error": ""});
    status["decisions"] = json!([decision, decision]);
    status["rollout"]["steps"] = json!([{"weight": 5, "for_seconds": 3}]);
    for spoilt in [0, 1] {
        let mut status = status.clone();
        let parts: &[&str] = match spoilt {
            0 => &["version", "summary", "targets", "state", "breakers"],
            _ => &["rollout", "decisions"],
        };
        for part in parts {
            poison(&mut status[*part]);
        }
        hello["status"] = status;
        let server = fake(&router, vec![event("hello", &hello)]).await;
        let page = dashboard(&browser, server.address).await;
        page.until(&format!(
            "document.body.innerText.includes({})",
            json!(HOSTILE)
        ))
        .await;
        assert_eq!(
            page.evaluate("document.querySelectorAll('script').length")
                .await,
            1
        );
        assert_eq!(
            page.evaluate("document.querySelectorAll('img, b').length")
                .await,
            0
        );
        assert_eq!(page.evaluate("window.isHacked === undefined").await, true);
        assert_eq!(page.complaints(), [""; 0]);
    }
    assert_eq!(page.complaints(), [""; 0]);
    // It writes its state before it ends: the folder goes after that.
    router.drain();
    router.ended().await.unwrap();
}

#[tokio::test]
async fn nothing_scrolls_sideways_however_narrow_the_window_and_long_the_words() {
    let pair = Pair::new().await;
    let router = Router::start(pair.config(steps()));
    let mut hello = hello(&router).await;
    let status = &mut hello["status"];
    let long = "word".repeat(60);
    for target in ["main", "canary"] {
        status["targets"][target] = json!({"url": format!("http://{long}/"), "requests": 123_456_789,
            "failures": 12_345_678, "requests_per_second": 123_456_789.0, "failure_ratio": 0.1234,
            "latency_seconds": {"p50": 123.4, "p90": 1234.5, "p99": 12345.6}, "inflight": 123_456});
    }
    status["version"] = "12.34.56-and-a-long-word".into();
    status["summary"] = json!({"level": "bad", "text": format!("Rolled back: {long}")});
    status["state"] = json!({"file": format!("/{long}"), "written": false, "error": long});
    status["weight"] = 33.33.into();
    let steps =
        (1..=12).map(|step| json!({"weight": f64::from(step) * 7.77, "for_seconds": 98765.0}));
    status["rollout"] = json!({"phase": "paused", "step": 3, "steps": steps.collect::<Vec<_>>(),
        "elapsed_seconds": 123_456.7, "extended": true, "dry_run": true, "epoch": 0});
    status["limits"] = json!({"requests_remaining": 123_456_789, "errors_remaining": 0,
        "requests_limit": 1_234_567_890, "errors_limit": 1_234_567});
    status["decisions"] = json!([{"number": 1, "time": "2020-11-25T07:46:31.123Z", "by": "judge", "why": "unhealthy",
        "text": long, "from": {"phase": "progressing", "step": 1, "weight": 1},
        "to": {"phase": "rolled-back", "step": 1, "weight": 0}}]);
    let server = fake(&router, vec![event("hello", &hello)]).await;
    let browser = Browser::start().await;
    let page = browser.page().await;
    for (name, address) in [("real", router.instrumentation), ("long", server.address)] {
        for (width, height, scale) in [
            (320, 640, 2.0),
            (390, 844, 3.0),
            (640, 400, 2.0),
            (1280, 800, 1.0),
        ] {
            page.is_sized(width, height, scale).await;
            page.open(&format!("http://{address}/")).await;
            page.until(LIVE).await;
            let fits = "(() => { const wide = [...document.querySelectorAll('body *')].filter(each => each.scrollWidth > each.clientWidth + 1
                    && each.clientWidth > 1 && ['auto', 'scroll'].includes(getComputedStyle(each).overflowX));
                const {scrollWidth} = document.documentElement;
                return scrollWidth <= innerWidth && wide.length === 0 ? '' : `${scrollWidth} of ${innerWidth}, ${wide.map(each => each.className)}`; })()";
            assert_eq!(page.evaluate(fits).await, "", "{name} at {width}");
            // All that can be pushed can be seen, and the question fits as well.
            for action in BUTTONS {
                page.click(&button(action)).await;
                if page.evaluate(ASKS).await == false {
                    continue;
                }
                let inside = "(() => { const {left, right, top, bottom} = document.querySelector('#confirm').getBoundingClientRect();
                    return left >= 0 && right <= innerWidth && top >= 0 && bottom <= innerHeight; })()";
                assert_eq!(
                    page.evaluate(inside).await,
                    true,
                    "{name} {action} at {width}"
                );
                assert_eq!(page.evaluate(fits).await, "", "{name} {action} at {width}");
                page.click("[data-cancel]").await;
            }
        }
    }
    page.prefers(&[("prefers-reduced-motion", "reduce")]).await;
    let moves = "[...document.querySelectorAll('*')].filter(each => getComputedStyle(each).transitionDuration !== '0s' || getComputedStyle(each).animationName !== 'none').length";
    assert_eq!(page.evaluate(moves).await, 0);
    assert_eq!(page.complaints(), [""; 0]);
}

// ---- who reads it otherwise

fn axe() -> String {
    let lib = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../tools/lib");
    let pythons = std::fs::read_dir(&lib).into_iter().flatten();
    let file = pythons
        .map(|python| {
            python
                .unwrap()
                .path()
                .join("site-packages/axe_core_python/axe.min.js")
        })
        .find(|file| file.exists());
    let file =
        file.unwrap_or_else(|| panic!("no axe-core in {}: tests/run installs it", lib.display()));
    std::fs::read_to_string(file).unwrap()
}

/// What axe-core finds wrong, in light and in dark.
async fn assert_is_accessible(page: &Page, state: &str) {
    for scheme in ["light", "dark"] {
        page.prefers(&[("prefers-color-scheme", scheme)]).await;
        page.until(&format!(
            "document.documentElement.dataset.theme === '{scheme}'"
        ))
        .await;
        let found = page
            .evaluate(
                "axe.run(document).then(({violations}) => violations.map(({id, nodes}) =>
                    `${id}: ${nodes.map(({html, failureSummary}) => html + ' ' + failureSummary).join('; ')}`))",
            )
            .await;
        assert_eq!(found, json!([]), "{state}, {scheme}");
    }
}

/// Role, name and description of everything that a screen reader is told.
async fn heard(page: &Page) -> Vec<[String; 3]> {
    let tree = page.ask("Accessibility.getFullAXTree", json!({})).await;
    let nodes = tree["nodes"].as_array().unwrap().iter();
    let text = |value: &Value| value["value"].as_str().unwrap_or_default().to_owned();
    nodes
        .filter(|node| node["ignored"] != true)
        .map(|node| ["role", "name", "description"].map(|part| text(&node[part])))
        .collect()
}

#[tokio::test]
async fn who_cannot_see_it_or_not_well_is_told_the_same() {
    let failures = Arc::new(AtomicI64::new(0));
    let (main, canary) = (
        Upstream::named("main", 200).await,
        canary(failures.clone()).await,
    );
    let router = Router::start(json!({
        "main-target": main.url(), "canary-target": canary.url(), "rollout": rollout(),
        "circuit-breaker": {"error-limit-canary": 1000}
    }));
    let browser = Browser::start().await;
    let page = dashboard(&browser, router.instrumentation).await;
    page.evaluate(&axe()).await;
    assert_is_accessible(&page, "idle").await;
    // It would say so.
    let spoilt = "(() => { const field = document.createElement('input'); document.body.append(field);
        return axe.run(document).then(({violations}) => { field.remove(); return violations.map(({id}) => id); }); })()";
    let found = page.evaluate(spoilt).await;
    assert!(
        found.as_array().unwrap().contains(&json!("label")),
        "{found}"
    );
    let _traffic = Traffic::start(router.address, Duration::from_millis(10));
    router.change("POST", "/rollout/start", "").await;
    page.until(&in_phase("progressing")).await;
    page.until(&format!("{MOST} > 0")).await;
    assert_is_accessible(&page, "progressing").await;

    let heard_now = heard(&page).await;
    let is_there = |role: &str, name: &str| {
        let found = heard_now
            .iter()
            .find(|[r, n, _]| r == role && n.contains(name));
        found.unwrap_or_else(|| panic!("no {role} \"{name}\" in {heard_now:#?}"))
    };
    for (role, name) in [
        ("banner", ""),
        ("main", ""),
        ("heading", "canary-router"),
        ("heading", "Main and canary in the last minute"),
        ("heading", "Last 15 minutes"),
        ("heading", "Rollout"),
        ("heading", "Judge"),
        ("heading", "Breakers, limits, state"),
        ("heading", "Decisions"),
        ("region", "Rollout"),
        ("image", "the canary gets 5"),
        ("list", "Steps"),
        ("meter", "Evidence against the canary"),
        ("meter", "Errors left"),
        ("status", ""),
        ("button", "Dark appearance"),
        ("button", "Start"),
        ("button", "Pause"),
        ("button", "Resume"),
        ("button", "Promote"),
        ("button", "Set weight"),
        ("button", "Abort"),
        ("button", "Reset breakers"),
        ("button", "Reset limits"),
        ("slider", "Failing requests"),
        ("slider", "Latency, p50"),
        ("slider", "Latency, p99"),
        ("slider", "Evidence against the canary"),
    ] {
        is_there(role, name);
    }
    for (chart, said) in [
        ("Requests", "/s; canary between"),
        ("Failing", "main between 0\u{a0}%"),
        ("p99", "\u{a0}ms"),
    ] {
        let [_, _, words] = is_there("slider", chart);
        assert!(words.contains(said), "{words}");
    }
    assert!(
        heard_now
            .iter()
            .all(|[role, name, _]| role != "button" || !name.is_empty())
    );
    // The charts go by arrow keys.
    page.tab_to("[data-chart=rate] .plot").await;
    let value = "document.activeElement.ariaValueText";
    let last = page.evaluate(value).await;
    page.press("Home").await;
    let first = page.evaluate(value).await;
    assert!(first.to_string().contains("main nothing"), "{first}");
    page.press("End").await;
    page.press("ArrowLeft").await;
    assert!(page.evaluate(value).await != first, "{last}");

    page.click(&button("promote")).await;
    assert_is_accessible(&page, "asking").await;
    let asking = heard(&page).await;
    let dialog = asking.iter().find(|[role, ..]| role == "dialog");
    assert_eq!(dialog.unwrap()[1], "Promote the canary");
    assert!(
        !asking
            .iter()
            .any(|[role, name, _]| role == "button" && name == "Pause")
    );
    page.press("Escape").await;

    failures.store(i64::MAX, Ordering::SeqCst);
    page.until(&in_phase("rolled-back")).await;
    page.is_sized(390, 844, 1.0).await;
    assert_is_accessible(&page, "rolled back, on a phone").await;
    page.is_sized(1280, 800, 1.0).await;
    page.click("#all-decisions").await;
    page.until("document.querySelectorAll('#decisions details').length > 0")
        .await;
    assert_is_accessible(&page, "rolled back").await;
    // The system's own colours, and whose line is whose.
    page.prefers(&[("forced-colors", "active")]).await;
    for (one, other) in [
        (".legend.main .swatch", ".legend.canary .swatch"),
        (".split-main", ".split"),
        (".meter.against span", ".meter.against"),
        ("button[aria-disabled]", "button:not([aria-disabled])"),
    ] {
        let look = |selector: &str| {
            format!(
                "(({{backgroundColor, color}}) => `${{backgroundColor}} ${{color}}`)(getComputedStyle(document.querySelector({})))",
                json!(selector)
            )
        };
        let (one, other) = (
            page.evaluate(&look(one)).await,
            page.evaluate(&look(other)).await,
        );
        assert_ne!(one, other);
    }
    let headings = page.evaluate("[...document.querySelectorAll('h1, h2, h3')].filter(h => h.checkVisibility()).map(h => Number(h.tagName[1]))");
    let headings: Vec<u64> = serde_json::from_value(headings.await).unwrap();
    assert_eq!(headings[0], 1);
    assert!(
        headings.windows(2).all(|pair| pair[1] <= pair[0] + 1),
        "{headings:?}"
    );
    assert_eq!(page.complaints(), [""; 0]);
}

// ---- what it costs

/// A feed of many seconds, in few: 900 rows, and a tick for each second after. It waits at each gate.
fn seconds(hello: &Value, parts: &[(u64, Gate)]) -> Vec<Step> {
    let columns = hello["columns"].as_array().unwrap();
    let start = hello["now"].as_u64().unwrap();
    let row = |uptime: u64| -> Value {
        let noise = uptime * 7919 % 23;
        let value = |column: &Value| match column.as_str().unwrap() {
            "uptime" => json!(uptime),
            "weight" => json!(5),
            "evidence" => json!(noise as f64 / 10.0),
            column if column.ends_with("requests") => json!(90 + noise),
            column if column.ends_with("failures") => json!(noise / 20),
            _ => json!(0.01 + noise as f64 / 1e3),
        };
        columns.iter().map(value).collect()
    };
    let at = |uptime: u64| start + uptime * 1000;
    let decision = |number: u64| {
        let time = humantime::format_rfc3339_millis(
            std::time::UNIX_EPOCH + Duration::from_millis(at(number * 30)),
        );
        json!({"number": number, "time": time.to_string(), "by": "operator", "why": "set-weight", "text": format!("number {number}"),
            "from": {"phase": "idle", "step": 0, "weight": 1}, "to": {"phase": "idle", "step": 0, "weight": 5}})
    };
    let status = |uptime: u64| {
        let mut status = hello["status"].clone();
        status["version"] = format!("second {uptime}").into();
        let newest = uptime / 30;
        let decisions = (newest - 9..=newest).rev().map(decision);
        status["decisions"] = decisions.collect();
        status["summary"]["text"] = format!("In second {uptime} all is well").into();
        status
    };
    let mut uptime = 900;
    let mut first = hello.clone();
    first["rows"] = (1..=uptime).map(row).collect();
    first["now"] = at(uptime).into();
    first["uptime"] = uptime.into();
    first["status"] = status(uptime);
    let mut steps = vec![event("hello", &first)];
    for (ticks, gate) in parts {
        for _ in 0..*ticks {
            uptime += 1;
            let tick = json!({"now": at(uptime), "uptime": uptime, "row": row(uptime), "status": status(uptime)});
            steps.push(event("tick", &tick));
            // The page has to have its turn: as fast as this no router is.
            steps.push(Step::Pause(Duration::from_millis(4)));
        }
        steps.push(Step::Wait(gate.clone()));
    }
    steps
}

#[tokio::test]
async fn a_page_that_is_left_open_does_not_grow_and_costs_nothing_unseen() {
    let pair = Pair::new().await;
    let router = Router::start(pair.config(steps()));
    let gates = [Gate::shut(), Gate::shut(), Gate::shut()];
    let parts = [
        (60, gates[0].clone()),
        (600, gates[1].clone()),
        (300, gates[2].clone()),
    ];
    let events = seconds(&hello(&router).await, &parts);
    let server = fake(&router, events).await;
    let browser = Browser::start().await;
    let page = dashboard(&browser, server.address).await;
    let until_second = |second: u64| format!("seen.status.version === 'second {second}'");
    let figures = async || {
        let mut figures = Vec::new();
        for name in [
            "Nodes",
            "JSEventListeners",
            "JSHeapUsedSize",
            "LayoutCount",
            "RecalcStyleCount",
            "TaskDuration",
        ] {
            figures.push(page.figure(name).await);
        }
        let elements = page.evaluate("document.querySelectorAll('*').length").await;
        (elements.as_f64().unwrap(), figures)
    };
    page.until(&until_second(960)).await;
    let (elements, before) = figures().await;
    gates[0].open();
    page.until(&until_second(1560)).await;
    let (elements_after, after) = figures().await;
    // A minute more stands on a chart now and then.
    assert!(elements_after <= elements + 30.0);
    assert!(after[0] <= before[0] + 100.0, "nodes");
    assert_eq!(after[1], before[1], "listeners");
    assert!(after[2] <= before[2] + 1e6, "bytes");

    let front = browser.page_before(&page).await;
    front.is_in_front().await;
    page.until("document.hidden").await;
    let (_, before) = figures().await;
    gates[1].open();
    page.until(&until_second(1860)).await;
    let (_, unseen) = figures().await;
    assert!(unseen[3] <= before[3] + 3.0, "layouts");
    let shown = page
        .evaluate("document.querySelector('#version').textContent")
        .await;
    assert_eq!(shown, "second 1560");
    page.is_in_front().await;
    page.until("document.querySelector('#version').textContent === 'second 1860'")
        .await;
    assert_eq!(page.complaints(), [""; 0]);
}

// ---- pictures

/// How many requests there are a second, and how they are answered.
async fn service(
    name: &'static str,
    typical: f64,
    fails: impl Fn() -> f64 + Send + Sync + 'static,
) -> Upstream {
    Upstream::start(move |_| {
        // Log-normal: the sum of twelve is normal enough.
        let normal = (0..12).map(|_| fastrand::f64()).sum::<f64>() - 6.0;
        let takes = Duration::from_secs_f64(typical * (0.45 * normal).exp());
        let status = if fastrand::f64() < fails() { 500 } else { 200 };
        let mut steps = vec![Step::Pause(takes)];
        steps.extend(answer(status, "", name));
        steps
    })
    .await
}

/// Takes a quarter of an hour, and makes what the README shows:
/// `cargo test --test it -- --ignored --exact dashboard::the_pictures_of_the_readme`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a quarter of an hour of traffic"]
async fn the_pictures_of_the_readme() {
    let minutes = |minutes: f64| Duration::from_secs_f64(minutes * 60.0);
    let begun = Instant::now();
    let bad_from = Arc::new(AtomicU64::new(u64::MAX));
    let browser = Browser::start().await;
    let mut shown = Vec::new();
    for is_bad in [false, true] {
        let bad_from = bad_from.clone();
        let main = service("main", 0.0115, || 0.0012).await;
        let canary = service("canary", 0.0104, move || {
            let is_late = begun.elapsed().as_secs() >= bad_from.load(Ordering::SeqCst);
            if is_bad && is_late { 0.18 } else { 0.001 }
        })
        .await;
        let steps = [5, 10, 25, 50, 100].map(|weight| json!({"weight": weight, "for": "3m"}));
        let router = Router::start(json!({
            "main-target": main.url(), "canary-target": canary.url(), "rollout": {"steps": steps},
            "circuit-breaker": {"error-limit-canary": 200}
        }));
        let address = router.address;
        let traffic = tokio::spawn(async move {
            let mut requests = tokio::task::JoinSet::new();
            loop {
                let now = begun.elapsed().as_secs_f64();
                let rate = 46.0 + 11.0 * (now / 130.0).sin() + 4.0 * (now / 31.0).sin();
                tokio::time::sleep(Duration::from_secs_f64(
                    -(1.0 - fastrand::f64()).ln() / rate,
                ))
                .await;
                while requests.try_join_next().is_some() {}
                requests.spawn(async move { get(address, "/", "").await.status });
            }
        });
        let page = dashboard(&browser, router.instrumentation).await;
        shown.push((router, page, traffic, main, canary));
    }
    tokio::time::sleep(minutes(1.5)).await;
    for (router, ..) in &shown {
        router.change("POST", "/rollout/start", "").await;
    }
    bad_from.store(11 * 60, Ordering::SeqCst);
    tokio::time::sleep_until((begun + minutes(13.1)).into()).await;
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../screenshots");
    let (good, bad) = (&shown[0].1, &shown[1].1);
    for (page, scheme) in [(good, "light"), (bad, "dark")] {
        page.prefers(&[("prefers-color-scheme", scheme)]).await;
        // Down to the steps of the rollout, and all of it.
        let end =
            "Math.ceil(document.querySelector('#rollout').getBoundingClientRect().bottom) + 24";
        let end = page.evaluate(end).await.as_u64().unwrap();
        page.is_sized(1280, end as u32, 1.0).await;
        page.view(&folder.join(format!("dashboard-{scheme}.png")))
            .await;
        page.picture(&folder.join(format!("dashboard-{scheme}-whole.png")))
            .await;
    }
    bad.is_sized(390, 844, 2.0).await;
    bad.view(&folder.join("dashboard-phone.png")).await;
    bad.picture(&folder.join("dashboard-phone-whole.png")).await;
    for (_, page, traffic, ..) in shown {
        traffic.abort();
        assert_eq!(page.complaints(), [""; 0]);
    }
}
