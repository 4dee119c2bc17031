//! A rollout, its evidence, what an operator has said and who gets the canary outlive a reload that is not about them.

use std::{collections::BTreeMap, time::Duration};

use super::*;

/// Main and a canary that are both well, with what asks for `/wait` waiting for the gate.
async fn targets() -> (Upstream, Upstream, Gate) {
    let gate = Gate::shut();
    let named = |name: &'static str| {
        let waiting = gate.clone();
        Upstream::start(move |request| match request.target() {
            "/wait" => [vec![Step::Wait(waiting.clone())], answer(500, "", name)].concat(),
            _ => answer(200, "", name),
        })
    };
    let (main, canary) = (named("main").await, named("canary").await);
    (main, canary, gate)
}

fn steps(weights: &[u64]) -> Value {
    let steps = weights
        .iter()
        .map(|weight| json!({"weight": weight, "for": "1h"}));
    json!({"rollout": {"steps": steps.collect::<Vec<_>>(), "latency-slack": "10s"}})
}

fn with(main: &Upstream, canary: &Upstream, config: Value) -> Value {
    let mut file = json!({"main-target": main.url(), "canary-target": canary.url()});
    merge(&mut file, config);
    file
}

async fn command(program: &Program, method: &str, path: &str, body: &str) -> Value {
    let (code, status) = admin(program.instrumentation, method, path, body).await;
    assert_eq!(code, 200, "{status}");
    status
}

async fn set_weight(program: &Program, weight: f64) {
    let body = json!({"weight": weight}).to_string();
    command(program, "PUT", "/traffic/weight", &body).await;
}

/// Waits for the first status of which this holds.
async fn until(program: &Program, holds: impl Fn(&Value) -> bool) -> Value {
    soon(async {
        loop {
            let status = status(program).await;
            if holds(&status) {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
}

/// How many requests are evidence, of both targets.
fn evidence(status: &Value) -> u64 {
    let requests = &status["evidence"]["requests"];
    ["main", "canary"]
        .iter()
        .map(|name| requests[name].as_u64().unwrap_or(0))
        .sum()
}

async fn ask(program: &Program, times: usize) {
    let address = program.address;
    for answer in together((0..times).map(move |_| get(address, "/", ""))).await {
        assert_eq!(answer.status, 200);
    }
}

fn why(status: &Value) -> &str {
    status["decisions"][0]["why"].as_str().unwrap_or_default()
}

#[tokio::test]
async fn a_rollout_goes_on_with_all_that_is_known_of_it() {
    let (main, canary, _) = targets().await;
    let program = Program::start(with(&main, &canary, steps(&[50, 60]))).await;
    command(&program, "POST", "/rollout/start", "").await;
    ask(&program, 40).await;
    let before = until(&program, |status| evidence(status) == 40).await;
    let started = before["decisions"].clone();
    for config in [
        json!({}),
        json!({"log": {"access": "json"}, "trim-prefix": "/a"}),
        json!({"main-header-host": "a.example", "proxy-client": {"to-main-and-canary": {"timeout": "9s"}}}),
        json!({"traffic": {"weight": 7}}),
        json!({"circuit-breaker": {"request-limit-canary": 1000}}),
    ] {
        let after = change(&program, config.clone()).await;
        assert_eq!(after["rollout"]["phase"], "progressing", "{config}");
        assert_eq!(
            (&after["rollout"]["step"], &after["weight"]),
            (&json!(1), &json!(50))
        );
        assert_eq!(evidence(&after), 40, "{config}");
        assert_eq!(after["decisions"], started, "{config}");
        assert!(
            after["rollout"]["elapsed_seconds"].as_f64()
                >= before["rollout"]["elapsed_seconds"].as_f64()
        );
    }
    // What is asked from now on is evidence too, and so is what had begun before.
    ask(&program, 10).await;
    assert_eq!(
        change(&program, json!({})).await["rollout"]["phase"],
        "progressing"
    );
    ask(&program, 10).await;
    until(&program, |status| evidence(status) == 60).await;
    let paused = command(&program, "POST", "/rollout/pause", "").await;
    assert_eq!(paused["decisions"].as_array().unwrap().len(), 2);
    let still = change(&program, json!({"trim-prefix": "/b"})).await;
    assert_eq!(
        (&still["rollout"]["phase"], evidence(&still)),
        (&json!("paused"), 60)
    );
    assert_eq!(still["decisions"], paused["decisions"]);
}

#[tokio::test]
async fn other_steps_pause_a_rollout_and_none_roll_it_back() {
    let (main, canary, _) = targets().await;
    let program = Program::start(with(&main, &canary, steps(&[40, 60]))).await;
    command(&program, "POST", "/rollout/start", "").await;
    let other = steps(&[30, 70, 80]);
    let paused = change(&program, other.clone()).await;
    assert_eq!(
        (&paused["rollout"]["phase"], &paused["weight"]),
        (&json!("paused"), &json!(40))
    );
    assert_eq!(paused["rollout"]["steps"].as_array().unwrap().len(), 3);
    let again = change(&program, other.clone()).await;
    assert_eq!(again["decisions"], paused["decisions"], "it is said once");
    // Resumed it is by the new ones.
    let resumed = command(&program, "POST", "/rollout/resume", "").await;
    assert_eq!(
        (&resumed["rollout"]["phase"], &resumed["weight"]),
        (&json!("progressing"), &json!(30))
    );
    let mut fewer = other;
    fewer["rollout"] = Value::Null;
    let gone = change(&program, fewer.clone()).await;
    assert_eq!(
        (&gone["rollout"]["phase"], &gone["weight"]),
        (&json!("rolled-back"), &json!(0))
    );
    ask(&program, 20).await;
    assert_eq!(canary.count(), 0);
    // Nothing but a command moves on from there.
    let back = change(&program, json!({})).await;
    assert_eq!(back["rollout"]["phase"], "rolled-back");
    command(&program, "POST", "/rollout/start", "").await;
    assert_eq!(status(&program).await["weight"], 40);
}

/// What an earlier canary does, or did, says nothing of the one that there is.
#[tokio::test]
async fn with_other_targets_the_evidence_is_gone_and_what_is_in_flight_to_the_old_ones_is_none() {
    let (main, canary, gate) = targets().await;
    let next = Upstream::named("next", 200).await;
    let config = with(&main, &canary, steps(&[50, 60]));
    let program = Program::start(config).await;
    command(&program, "POST", "/rollout/start", "").await;
    ask(&program, 40).await;
    until(&program, |status| evidence(status) == 40).await;
    // So many failures would end any rollout.
    let address = program.address;
    let waiting = tokio::spawn(together((0..60).map(move |_| get(address, "/wait", ""))));
    eventually(|| main.count() + canary.count() == 100).await;
    let epoch = status(&program).await["rollout"]["epoch"].as_u64().unwrap();

    let to_next = json!({"canary-target": next.url(), "traffic": {"weight": 20}});
    let after = change(&program, to_next.clone()).await;
    assert_eq!(
        (&after["rollout"]["phase"], &after["weight"]),
        (&json!("idle"), &json!(20))
    );
    assert_eq!(after["rollout"]["epoch"], epoch + 1);
    assert_eq!(after["evidence"], Value::Null);
    command(&program, "POST", "/rollout/start", "").await;
    gate.open();
    assert!(
        waiting
            .await
            .unwrap()
            .iter()
            .all(|answer| answer.status == 500)
    );
    ask(&program, 30).await;
    let judged = until(&program, |status| evidence(status) == 30).await;
    assert_eq!(
        judged["evidence"]["failures"],
        json!({"main": 0, "canary": 0})
    );
    assert_eq!(judged["rollout"]["phase"], "progressing", "{judged}");
    assert!(next.count() > 0);
    // And the way back is another canary too.
    let back = change(&program, json!({})).await;
    assert_eq!(
        (&back["rollout"]["phase"], &back["evidence"]),
        (&json!("idle"), &Value::Null)
    );
}

/// A rule by which nothing was counted cannot judge what was counted by another one.
#[tokio::test]
async fn a_rule_that_counts_otherwise_begins_with_new_evidence_and_any_other_does_not() {
    let (main, canary, _) = targets().await;
    let program = Program::start(with(&main, &canary, steps(&[50]))).await;
    command(&program, "POST", "/rollout/start", "").await;
    ask(&program, 20).await;
    until(&program, |status| evidence(status) == 20).await;
    for (rule, kept) in [
        (json!({"on-inconclusive": "pause"}), true),
        (json!({"error-ratio": 3}), true),
        (json!({"failure": "non-2xx"}), false),
    ] {
        let after = change(&program, json!({"rollout": rule})).await;
        assert_eq!(after["rollout"]["phase"], "progressing", "{rule}");
        assert_eq!(evidence(&after), if kept { 20 } else { 0 }, "{rule}");
    }
}

/// How long an answer is waited for is by the timeout in force: else a canary that hangs for longer than that of the
/// start would never have failed.
#[tokio::test]
async fn a_canary_that_hangs_until_a_longer_timeout_than_before_has_failed() {
    let main = Upstream::named("main", 200).await;
    let hangs = Upstream::start(|_| vec![Step::Hang]).await;
    let timeout =
        |timeout: &str| json!({"proxy-client": {"to-main-and-canary": {"timeout": timeout}}});
    let mut config = with(&main, &hangs, timeout("500ms"));
    merge(&mut config, steps(&[50]));
    let program = Program::start(config).await;
    change(&program, timeout("4s")).await;
    command(&program, "POST", "/rollout/start", "").await;
    let address = program.address;
    let asked = tokio::spawn(together((0..100).map(move |_| get(address, "/", ""))));
    until(&program, |status| {
        status["rollout"]["phase"] == "rolled-back"
    })
    .await;
    asked.await.unwrap();
}

#[tokio::test]
async fn a_weight_that_was_set_by_hand_stays_until_the_file_says_another_one() {
    let (main, canary, _) = targets().await;
    let weight = |weight: u64| json!({"traffic": {"weight": weight}});
    let program = Program::start(with(&main, &canary, weight(10))).await;
    set_weight(&program, 100.0).await;
    for config in [weight(10), json!({"trim-prefix": "/a"}), steps(&[5])] {
        let after = change(&program, config).await;
        assert_eq!(
            (&after["weight"], why(&after)),
            (&json!(100), "set-weight"),
            "{after}"
        );
        ask(&program, 5).await;
    }
    assert_eq!(canary.count(), 15);
    let after = change(&program, weight(0)).await;
    assert_eq!(after["weight"], 0);
    ask(&program, 10).await;
    assert_eq!(canary.count(), 15);
    // By hand again, and by the file again: what it said at the start is news by now.
    set_weight(&program, 100.0).await;
    assert_eq!(change(&program, weight(0)).await["weight"], 100);
    assert_eq!(change(&program, weight(10)).await["weight"], 10);
}

/// Who got what, by the cookie or the header that it is known by.
async fn users(
    program: &Program,
    cookies: Option<&BTreeMap<usize, String>>,
) -> BTreeMap<usize, (String, String)> {
    let mut users = BTreeMap::new();
    for user in 0..40 {
        let known = match cookies {
            Some(cookies) => format!("cookie: {}\r\n", cookies[&user]),
            None => format!("x-user: {user}\r\n"),
        };
        let answer = get(program.address, "/", &known).await;
        let cookie = answer
            .header("set-cookie")
            .map(|cookie| cookie.split(';').next().unwrap().to_owned());
        users.insert(user, (answer.text(), cookie.unwrap_or_default()));
    }
    users
}

#[tokio::test]
async fn sticky_clients_stay_where_they_are() {
    let (main, canary, _) = targets().await;
    let sticky =
        |by: &str, weight: f64| json!({"traffic": {"weight": weight, "sticky": {"by": by}}});
    let program = Program::start(with(&main, &canary, sticky("header:x-user", 50.0))).await;
    let before = users(&program, None).await;
    let canaries = |users: &BTreeMap<usize, (String, String)>| -> Vec<usize> {
        users
            .iter()
            .filter(|(_, (name, _))| name == "canary")
            .map(|(user, _)| *user)
            .collect()
    };
    assert!(!canaries(&before).is_empty() && canaries(&before).len() < 40);
    for config in [
        json!({}),
        json!({"trim-prefix": "/a"}),
        json!({"circuit-breaker": {"error-limit-canary": 5}}),
    ] {
        change(&program, config).await;
        assert_eq!(users(&program, None).await, before);
    }
    // A higher weight moves clients in, and nobody out.
    change(&program, sticky("header:x-user", 80.0)).await;
    let more = canaries(&users(&program, None).await);
    assert!(
        canaries(&before).iter().all(|user| more.contains(user)) && more.len() < 40,
        "{more:?}"
    );
    change(&program, json!({})).await;
    assert_eq!(users(&program, None).await, before);

    // By the cookie that the router sets.
    change(&program, sticky("cookie", 50.0)).await;
    let first = users(&program, None).await;
    let cookies: BTreeMap<usize, String> = first
        .iter()
        .map(|(user, (_, cookie))| (*user, cookie.clone()))
        .collect();
    assert!(cookies.values().all(|cookie| !cookie.is_empty()));
    let names = |users: &BTreeMap<usize, (String, String)>| -> Vec<String> {
        users.values().map(|(name, _)| name.clone()).collect()
    };
    change(&program, {
        let mut config = sticky("cookie", 50.0);
        merge(
            &mut config,
            json!({"trim-prefix": "/a", "main-header-host": "a.example"}),
        );
        config
    })
    .await;
    let again = users(&program, Some(&cookies)).await;
    assert_eq!(names(&again), names(&first));
    assert!(
        again.values().all(|(_, cookie)| cookie.is_empty()),
        "they are known already"
    );
    let (code, status) = admin(program.instrumentation, "POST", "/rollout/abort", "").await;
    assert_eq!(code, 200);
    let epoch = &status["rollout"]["epoch"];
    assert_eq!(
        &change(&program, sticky("cookie", 50.0)).await["rollout"]["epoch"],
        epoch
    );
    assert!(canaries(&users(&program, Some(&cookies)).await).is_empty());
}

/// A kill behind a reload forgets nothing of it either.
#[tokio::test]
async fn what_a_reload_has_decided_is_on_disk_when_it_is_answered() {
    let (main, canary, _) = targets().await;
    let folder = Folder::new();
    let state = json!({"state": {"file": folder.0.join("state.json")}});
    let with = |config: Value| {
        let mut file = with(&main, &canary, config);
        merge(&mut file, state.clone());
        file
    };
    let mut program = Program::start(with(steps(&[40, 60]))).await;
    command(&program, "POST", "/rollout/start", "").await;
    let before = change(&program, steps(&[30, 70])).await;
    program.process.kill();
    let mut program = Program::start(with(steps(&[30, 70]))).await;
    let after = status(&program).await;
    for part in ["phase", "step", "epoch"] {
        assert_eq!(after["rollout"][part], before["rollout"][part], "{part}");
    }
    assert_eq!(after["rollout"]["phase"], "paused");
    assert_eq!((&after["weight"], why(&after)), (&json!(40), why(&before)));
    let configured = json!({"rollout": null, "traffic": {"weight": 25}});
    let gone = change(&program, configured.clone()).await;
    assert_eq!(gone["rollout"]["phase"], "rolled-back");
    program.process.kill();
    let program = Program::start(with(configured)).await;
    assert_eq!(status(&program).await["rollout"], gone["rollout"]);
}
