//! Who gets the canary by chance: shares, sticky clients, and who may choose for himself.

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::support::*;

async fn pair(config: Value) -> (Upstream, Upstream, Router) {
    let main = Upstream::named("main", 200).await;
    let canary = Upstream::named("canary", 200).await;
    let mut file = json!({"main-target": main.url(), "canary-target": canary.url()});
    merge(&mut file, config);
    let router = Router::start(file);
    (main, canary, router)
}

async fn set_weight(router: &Router, percent: f64) {
    let body = json!({"weight": percent}).to_string();
    let status = router.change("PUT", "/traffic/weight", &body).await;
    assert_eq!(status["weight"].as_f64(), Some(percent));
}

/// Which of a hundred users get the canary.
async fn canary_users(router: &Router, header: &str) -> HashSet<usize> {
    let address = router.address;
    let header = header.to_owned();
    let answers = together((0..100).map(move |user| {
        let line = format!("{header}: user-{user}\r\n");
        async move { (user, get(address, "/", &line).await.text()) }
    }))
    .await;
    let canary = answers.into_iter().filter(|(_, name)| name == "canary");
    canary.map(|(user, _)| user).collect()
}

#[tokio::test]
async fn each_request_is_drawn_by_the_weight_of_the_moment_and_the_ends_are_exact() {
    let (_main, canary, router) = pair(json!({"traffic": {"weight": 30}})).await;
    let address = router.address;
    let ask = async |n: usize| {
        let before = canary.count();
        together((0..n).map(move |_| get(address, "/", ""))).await;
        canary.count() - before
    };
    // Six standard deviations.
    let share = ask(1000).await;
    assert!((213..=387).contains(&share), "{share}");
    let metrics = router.metrics().await;
    let counted = metrics.value(&reason("Routed via weight: canary", "canary"))
        + metrics.value(&reason("Routed via weight: main", "main"));
    assert!(counted > 900.0, "{counted}");
    set_weight(&router, 0.0).await;
    assert_eq!(ask(300).await, 0);
    set_weight(&router, 100.0).await;
    assert_eq!(ask(300).await, 300);
    let share = router.metrics().await.value("canary_router_weight_ratio");
    assert_eq!(share, 1.0);
}

#[tokio::test]
async fn a_sidecars_canary_is_eligible_and_chance_has_the_last_word() {
    let trio = Trio::named(json!({"traffic": {"weight": 50}})).await;
    let address = trio.router.address;
    together((0..400).map(move |_| get(address, "/", ""))).await;
    together((0..100).map(move |_| get(address, "/", "x-sidecar: 204\r\n"))).await;
    let (main, canary, sidecar) = trio.seen();
    assert_eq!((main + canary, sidecar), (500, 500));
    assert!((140..=260).contains(&canary), "{canary}");
    let drawn = "Sidecar returns status code 200, but weight chose main";
    let router = &trio.router;
    router
        .counts(&reason(drawn, "main"), (400 - canary) as f64)
        .await;
    let chosen = reason("Sidecar returns status code 200", "canary");
    router.counts(&chosen, canary as f64).await;
}

#[tokio::test]
async fn a_ramp_moves_clients_into_the_canary_only_and_the_way_back_out_of_it_only() {
    let sticky = json!({"traffic": {"weight": 5, "sticky": {"by": "header:X-User-Id"}}});
    let (_main, _canary, router) = pair(sticky).await;
    let mut before = canary_users(&router, "x-user-id").await;
    assert_eq!(canary_users(&router, "X-USER-ID").await, before);
    for percent in [25.0, 60.0, 99.99] {
        set_weight(&router, percent).await;
        let now = canary_users(&router, "x-user-id").await;
        assert!(before.is_subset(&now), "{percent}: {before:?} {now:?}");
        before = now;
    }
    assert!(before.len() > 90);
    for percent in [40.0, 10.0, 0.01] {
        set_weight(&router, percent).await;
        let now = canary_users(&router, "x-user-id").await;
        assert!(now.is_subset(&before), "{percent}: {before:?} {now:?}");
        before = now;
    }
    assert!(before.len() < 5);
}

fn cookie(response: &Response) -> Option<String> {
    let set = response.header("set-cookie")?;
    Some(set.split(';').next().unwrap().to_owned())
}

#[tokio::test]
async fn our_cookie_binds_to_both_targets_until_a_rollback() {
    let sticky = json!({"traffic": {"weight": 50, "sticky": {"by": "cookie", "max-age": "1h"}}});
    let (main, canary, router) = pair(sticky).await;
    let mut clients = Vec::new();
    for _ in 0..40 {
        let first = get(router.address, "/", "").await;
        let set = first.header("set-cookie").unwrap();
        let attributes = "; Path=/; Max-Age=3600; HttpOnly; SameSite=Lax";
        assert!(
            set.starts_with("canary-router=") && set.ends_with(attributes),
            "{set}"
        );
        clients.push((cookie(&first).unwrap(), first.text()));
    }
    let names: HashSet<&str> = clients.iter().map(|(_, name)| &**name).collect();
    assert_eq!(names.len(), 2, "both targets bind");
    for (cookie, name) in &clients {
        for _ in 0..3 {
            let again = get(router.address, "/", &format!("cookie: a=b; {cookie}\r\n")).await;
            assert_eq!(
                (again.text(), again.header("set-cookie")),
                (name.clone(), None)
            );
        }
    }
    // The services see it as any other cookie.
    let seen = [main.seen(), canary.seen()].concat();
    assert!(
        seen.iter()
            .any(|request| request.header("cookie").is_some())
    );

    // Where chance has no say there is nothing to remember.
    for percent in [0.0, 100.0] {
        set_weight(&router, percent).await;
        assert_eq!(cookie(&get(router.address, "/", "").await), None);
    }
    router.change("POST", "/rollout/abort", "").await;
    for (cookie, _) in &clients {
        let line = format!("cookie: {cookie}\r\n");
        assert_eq!(get(router.address, "/", &line).await.text(), "main");
    }
    set_weight(&router, 50.0).await;
    let mut moved = 0;
    for (old, name) in &clients {
        let again = get(router.address, "/", &format!("cookie: {old}\r\n")).await;
        assert!(cookie(&again).is_some(), "it is drawn anew");
        moved += usize::from(again.text() != *name);
    }
    assert!(moved > 0);
}

#[tokio::test]
async fn a_client_is_bound_by_an_answer_of_our_own_too() {
    let main = Upstream::named("main", 200).await;
    let router = Router::start(json!({
        "main-target": main.url(),
        "canary-target": format!("http://{}", Upstream::nobody().await),
        "fallback": {"replay": "off"},
        "traffic": {"weight": 99.99, "sticky": {"by": "cookie", "cookie": "lot"}}
    }));
    let response = get(router.address, "/", "").await;
    assert_eq!(response.status, 502);
    assert!(cookie(&response).unwrap().starts_with("lot="));
}

#[tokio::test]
async fn the_limits_hold_for_what_the_weight_chose() {
    let main = Upstream::named("main", 200).await;
    let canary = Upstream::named("canary", 500).await;
    let router = Router::start(json!({
        "main-target": main.url(), "canary-target": canary.url(),
        "traffic": {"weight": 100}, "circuit-breaker": {"error-limit-canary": 15}
    }));
    let address = router.address;
    let answers = together((0..400).map(move |_| get(address, "/", ""))).await;
    let errors = answers.iter().filter(|answer| answer.status == 500).count();
    assert_eq!((errors, canary.count()), (15, 15));
    assert_eq!(get(address, "/", "").await.text(), "main");
    router
        .counts(&reason("Routed via weight: canary", "canary"), 15.0)
        .await;
    let metrics = router.metrics().await;
    let demoted = metrics.value(&reason(
        "Routed via weight: canary, but canary limit reached",
        "main",
    ));
    let refused = metrics.value(&reason("Canary error limit reached", "main"));
    assert_eq!(demoted + refused, 386.0);
}

#[tokio::test]
async fn only_the_trusted_choose_for_themselves() {
    for (trusted, expected, header) in [
        (json!(["127.0.0.0/8", "::1"]), "canary", Some("true")),
        (json!(["10.0.0.0/8"]), "main", None),
        (json!([]), "main", None),
    ] {
        let trio = Trio::named(json!({"override": {"trusted": trusted}})).await;
        let lines = "x-canary: true\r\nX-Canary: true\r\nx-sidecar: 204\r\n";
        let response = get(trio.router.address, "/", lines).await;
        assert_eq!(response.text(), expected, "{trusted}");
        let seen = [trio.main.seen(), trio.canary.seen(), trio.sidecar.seen()].concat();
        for request in &seen {
            assert_eq!(
                request.all("x-canary").first().copied(),
                header,
                "{trusted}"
            );
        }
        assert_eq!(seen.len(), if header.is_some() { 1 } else { 2 });
    }
}
