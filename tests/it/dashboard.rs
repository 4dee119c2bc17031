//! The dashboard in a browser, as an operator sees and uses it.

use std::net::SocketAddr;

use crate::support::{
    browser::{Browser, Page},
    *,
};

const LIVE: &str = "document.querySelector('#connection').dataset.state === 'live'";

/// The dashboard of a router, once it is live.
async fn dashboard(browser: &Browser, address: SocketAddr) -> Page {
    let page = browser.page().await;
    page.open(&format!("http://{address}/")).await;
    page.until(LIVE).await;
    page
}

#[tokio::test]
async fn the_page_lives_by_its_policy_and_asks_nobody_but_its_router() {
    let router = router_to("http://127.0.0.1:9");
    let browser = Browser::start().await;
    let page = dashboard(&browser, router.instrumentation).await;
    page.click("#theme").await;
    page.click("[data-action=promote]").await;
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

    // The policy holds, and the kit sees when it is needed.
    page.evaluate(
        "(() => { const script = document.createElement('script'); script.text = 'window.isDone = true';
            document.body.append(script);
            const image = document.createElement('img'); image.src = 'http://127.0.0.1:9/'; document.body.append(image); })()",
    )
    .await;
    assert_eq!(page.evaluate("window.isDone === true").await, false);
    eventually(|| {
        let complaints = page.complaints().join("\n");
        ["script-src", "img-src"]
            .iter()
            .all(|part| complaints.contains(part))
    })
    .await;
}
