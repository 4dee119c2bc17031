use serde_json::json;

use super::*;

fn progressing() -> Value {
    json!({
        "version": "0.1.0",
        "uptime_seconds": 8040.2,
        "summary": {"level": "idle", "text": "Nothing speaks against the canary so far"},
        "targets": {
            "main": {
                "url": "http://127.0.0.1:8081", "requests": 5700, "failures": 12,
                "requests_per_second": 95.0, "failure_ratio": 0.0021,
                "latency_seconds": {"p50": 0.012, "p90": 0.030, "p99": 0.081}
            },
            "canary": {
                "url": "http://127.0.0.1:8082", "requests": 300, "failures": 1,
                "requests_per_second": 5.0, "failure_ratio": 0.0036,
                "latency_seconds": {"p50": 0.0013, "p90": 0.031, "p99": 12.34}
            }
        },
        "weight": 5,
        "rollout": {
            "phase": "progressing", "step": 2,
            "steps": [
                {"weight": 1, "for_seconds": 600}, {"weight": 5, "for_seconds": 600},
                {"weight": 25, "for_seconds": 3600}, {"weight": 50.5, "for_seconds": 86400}
            ],
            "elapsed_seconds": 250.0, "extended": false, "dry_run": false, "epoch": 0
        },
        "breakers": {"canary": "closed", "main": "closed", "sidecar": "closed"},
        "limits": {
            "requests_remaining": null, "errors_remaining": 12,
            "requests_limit": null, "errors_limit": 15
        },
        "state": {"file": "state.json", "written": true},
        "evidence": {
            "verdict": "inconclusive", "errors": 0.4, "latency": -1.2, "overall": -0.1,
            "threshold": 4.6, "safe_ratio": 1.0, "acceptable_failure_rate": 2.1, "enough": 3.0,
            "requests": {"main": 5000, "canary": 260}, "failures": {"main": 10, "canary": 1}
        },
        "decisions": [
            {
                "number": 18, "time": "2026-11-25T10:05:00Z", "by": "operator", "why": "paused",
                "text": "an operator paused the rollout",
                "from": {"phase": "progressing", "step": 2, "weight": 5},
                "to": {"phase": "paused", "step": 2, "weight": 5}, "figures": null
            },
            {
                "number": 17, "time": "2026-11-25T10:00:00Z", "by": "judge", "why": "step-passed",
                "text": "the step's time is over and there is enough evidence",
                "from": {"phase": "progressing", "step": 1, "weight": 1},
                "to": {"phase": "progressing", "step": 2, "weight": 5}, "figures": {"any": ["thing"]}
            }
        ]
    })
}

fn changed(change: impl Fn(&mut Value)) -> String {
    let mut value = progressing();
    change(&mut value);
    status(&value)
}

#[test]
fn a_rollout_that_progresses() {
    assert_eq!(
        status(&progressing()),
        "\
canary-router 0.1.0, up 2 h 14 min
verdict   idle: Nothing speaks against the canary so far
rollout   progressing, step 2 of 4: 5 % for 10 min (4 min 10 s so far)
weight    5 %          breaker  closed        limits  errors 12 of 15 left, requests unlimited
               requests/s   failures      p50      p90      p99
main                 95.0      0.2 %    12 ms    30 ms    81 ms
canary                5.0      0.4 %   1.3 ms    31 ms   12.3 s
evidence  errors 0.4, latency -1.2, together -0.1 of 4.6 for a rollback: inconclusive
          safe ratio 1.0, acceptable failure rate 2.1, one of them 3.0 to go on
          main 10 of 5000 failed, canary 1 of 260 failed
decisions
  2026-11-25 10:05:00Z  progressing -> paused: an operator paused the rollout
  2026-11-25 10:00:00Z  step 1 -> 2, 1 % -> 5 %: the step's time is over and there is enough evidence
"
    );
}

#[test]
fn a_router_that_has_nothing_to_tell() {
    let page = status(&json!({
        "version": "0.1.0",
        "uptime_seconds": 0.4,
        "targets": {
            "main": {
                "requests": 0, "failures": 0, "requests_per_second": 0.0, "failure_ratio": null,
                "latency_seconds": {"p50": null, "p90": null, "p99": null}
            },
            "canary": {
                "requests": 0, "failures": 0, "requests_per_second": 0.0, "failure_ratio": null,
                "latency_seconds": {"p50": null, "p90": null, "p99": null}
            }
        },
        "weight": 0.25,
        "rollout": {
            "phase": "idle", "step": 0, "steps": [], "elapsed_seconds": 0.0,
            "extended": false, "dry_run": false, "epoch": 0
        },
        "breakers": {"canary": "closed", "main": "closed", "sidecar": "closed"},
        "limits": {"requests_remaining": null, "errors_remaining": null},
        "evidence": null,
        "decisions": []
    }));
    assert_eq!(
        page,
        "\
canary-router 0.1.0, up 0 s
rollout   idle
weight    0.25 %       breaker  closed        limits  errors unlimited, requests unlimited
               requests/s   failures      p50      p90      p99
main                  0.0          -        -        -        -
canary                0.0          -        -        -        -
evidence  none: no rollout is being judged
decisions none
"
    );
}

#[test]
fn a_router_that_tells_nothing_we_know_has_a_page_all_the_same() {
    for value in [
        json!({}),
        json!(null),
        json!([1]),
        json!("status"),
        json!({"weight": "5", "rollout": [], "targets": 7, "limits": "none", "decisions": {}}),
        json!({"rollout": {"phase": 1, "step": -1, "steps": {}}, "decisions": [null, 7, {}]}),
    ] {
        let page = status(&value);
        assert!(
            page.starts_with("canary-router -, up -\nrollout   -\n"),
            "{page}"
        );
    }
}

#[test]
fn what_a_later_version_says_beside_is_not_shown() {
    let page = changed(|status| {
        status["new"] = json!({"a": 1});
        status["rollout"]["new"] = json!(true);
        status["targets"]["third"] = json!({});
        status["decisions"][0]["new"] = json!([]);
    });
    assert_eq!(page, status(&progressing()));
}

#[test]
fn every_phase_has_its_line() {
    let line = |change: Value| {
        let page = changed(|status| {
            for (key, value) in change.as_object().unwrap() {
                status["rollout"][key] = value.clone();
            }
        });
        page.lines().nth(2).unwrap().to_owned()
    };
    for (change, shown) in [
        (
            json!({"phase": "paused", "extended": true}),
            "rollout   paused, step 2 of 4: 5 % for 10 min (4 min 10 s so far, extended)",
        ),
        (
            json!({"dry_run": true, "step": 4}),
            "rollout   progressing, step 4 of 4: 50.5 % for 1 d (4 min 10 s so far), dry run",
        ),
        (
            json!({"phase": "succeeded", "step": 4}),
            "rollout   succeeded in step 4 of 4",
        ),
        (
            json!({"phase": "rolled-back"}),
            "rollout   rolled-back in step 2 of 4",
        ),
        (
            json!({"phase": "rolled-back", "step": 0}),
            "rollout   rolled-back",
        ),
        (json!({"phase": "idle"}), "rollout   idle"),
        (json!({"phase": "frozen"}), "rollout   frozen, step 2 of 4"),
        // The steps may have become fewer since.
        (
            json!({"step": 9}),
            "rollout   progressing, step 9 of 4 (4 min 10 s so far)",
        ),
        (
            json!({"step": 2, "steps": null, "elapsed_seconds": null}),
            "rollout   progressing, step 2 (- so far)",
        ),
    ] {
        assert_eq!(line(change), shown);
    }
}

#[test]
fn breakers_that_are_not_closed_are_named() {
    for (breakers, shown) in [
        (
            json!({"canary": "open", "main": "closed", "sidecar": "closed"}),
            "open",
        ),
        (
            json!({"canary": "half_open", "main": "closed", "sidecar": "closed"}),
            "half-open",
        ),
        (
            json!({"canary": "closed", "main": "open", "sidecar": "half_open"}),
            "closed, main open, sidecar half-open",
        ),
        (json!({"canary": null}), "-"),
    ] {
        assert_eq!(super::breakers(&breakers), shown);
    }
}

#[test]
fn limits_tell_none_from_unknown() {
    let shown = |value: Value| limits(&value);
    assert_eq!(
        shown(json!({"requests_remaining": 0, "errors_remaining": null})),
        "errors unlimited, requests 0 left"
    );
    assert_eq!(shown(json!({})), "errors -, requests -");
}

#[test]
fn evidence_without_its_optional_parts() {
    let page = changed(|status| {
        status["evidence"]["latency"] = Value::Null;
        status["evidence"]["acceptable_failure_rate"] = Value::Null;
    });
    let line = |number: usize| page.lines().nth(number).unwrap();
    assert_eq!(
        line(7),
        "evidence  errors 0.4, together -0.1 of 4.6 for a rollback: inconclusive"
    );
    assert_eq!(line(8), "          safe ratio 1.0 of 3.0 to go on");
}

#[test]
fn a_decision_that_moved_nothing_is_its_sentence() {
    let position = json!({"phase": "progressing", "step": 1, "weight": 1});
    let shown = decision(&json!({
        "time": "2026-11-25T10:00:00Z", "text": "an operator closed the breakers",
        "from": position, "to": position
    }));
    assert_eq!(
        shown,
        "2026-11-25 10:00:00Z  an operator closed the breakers"
    );
    assert_eq!(decision(&json!({})), "-  -");
}

#[test]
fn what_the_router_writes_cannot_steer_the_terminal() {
    let page = changed(|status| {
        status["version"] = json!("\x1b[2J1");
        status["decisions"][0]["text"] = json!("one\ntwo\x1b]0;title\x07");
    });
    assert!(page.starts_with("canary-router [2J1, up"), "{page}");
    assert!(page.contains(": one two ]0;title\n"), "{page}");
}

#[test]
fn numbers_have_the_digits_that_matter() {
    let table = |show: fn(&Value) -> String, rows: &[(Value, &str)]| {
        for (value, shown) in rows {
            assert_eq!(show(value), *shown, "{value}");
        }
    };
    table(
        duration,
        &[
            (json!(0), "0 s"),
            (json!(0.9), "0 s"),
            (json!(59.99), "59 s"),
            (json!(60), "1 min"),
            (json!(3601), "1 h"),
            (json!(3660), "1 h 1 min"),
            (json!(90_000), "1 d 1 h"),
            (json!(86_400 * 400), "400 d"),
            (json!(-5), "0 s"),
            (json!("5"), "-"),
        ],
    );
    table(
        ratio,
        &[
            (json!(0), "0 %"),
            (json!(1e-9), "<0.01 %"),
            (json!(0.0002), "0.02 %"),
            (json!(0.00096), "0.1 %"),
            (json!(0.0021), "0.2 %"),
            (json!(0.0996), "10 %"),
            (json!(1), "100 %"),
            (json!(null), "-"),
        ],
    );
    table(
        milliseconds,
        &[
            (json!(0.0004), "0.4 ms"),
            (json!(0.00999), "10 ms"),
            (json!(9.9996), "10.0 s"),
            (json!(1.5), "1500 ms"),
            (json!(60), "60.0 s"),
        ],
    );
    table(
        strength,
        &[
            (json!(-0.04), "0.0"),
            (json!(4.605), "4.6"),
            (json!(-1.25), "-1.3"),
        ],
    );
    table(
        percent,
        &[
            (json!(5.0), "5 %"),
            (json!(0.25), "0.25 %"),
            (json!(100), "100 %"),
        ],
    );
}

#[test]
fn a_state_that_is_not_on_disk_is_said_so() {
    let mut status = json!({"state": {"file": "s.json", "written": false, "error": "disk full"}});
    let line =
        "state     NOT ON DISK (disk full): what changes now is forgotten when the router ends";
    assert!(super::status(&status).lines().any(|shown| shown == line));
    status["state"] = json!({"file": "s.json", "written": true});
    assert!(!super::status(&status).contains("NOT ON DISK"));
}
