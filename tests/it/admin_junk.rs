//! What becomes of junk on the instrumentation port: it is told what to send instead, and nothing changes.

use serde_json::{Value, json};

use super::admin::{ALIAS, WEIGHT, ask, error, router, state};
use crate::support::*;

/// Sends what must be refused: with a reason, with what to send instead, and without a change.
async fn refused(router: &Router, path: &str, body: impl AsRef<[u8]>, allowed: &[u16]) {
    let (method, example) = match path {
        WEIGHT => ("PUT", r#"{"weight": 5}"#),
        _ => ("POST", r#"{"old_weight": 0.95, "new_weight": 0.05}"#),
    };
    let body = body.as_ref();
    let shown = String::from_utf8_lossy(&body[..body.len().min(80)]).into_owned();
    let response = ask(router, method, path, "", body).await;
    assert!(
        allowed.contains(&response.status),
        "{path} {shown}: {}",
        response.text()
    );
    openapi::assert_answers(method, path, &response);
    let said = error(&response);
    assert!(said.contains(example), "{path} {shown}: {said}");
    assert!(said.len() < 400, "{path} {shown}: {said}");
}

#[tokio::test]
async fn junk_for_a_weight_is_refused_with_what_to_send_and_changes_nothing() {
    let (_main, _canary, router) = router(json!({"traffic": {"weight": 3}})).await;
    let before = state(&router).await;
    let mut too_long = format!("{{\"weight\": 5{}", " ".repeat(64 << 10));
    too_long.truncate(64 << 10);
    too_long.push('}');
    for path in [WEIGHT, ALIAS] {
        for body in [
            "",
            " ",
            "weight=5",
            "{\"weight\": 5",
            "{\"weight\": NaN}",
            "{\"weight\": Infinity}",
            "{'weight': 5}",
            "{\"weight\": 5} {}",
            "{\"weight\": 05}",
            "{\"weight\": 5,}",
        ] {
            refused(&router, path, body, &[400]).await;
        }
        for body in ["[5]", "5", "null", "\"5\"", "true", "{}"] {
            refused(&router, path, body, &[422]).await;
        }
        refused(&router, path, b"{\"weight\": 5, \"\xff\": 1}", &[400]).await;
        refused(&router, path, "[".repeat(60_000), &[400]).await;
        refused(&router, path, "{\"weight\":".repeat(6_000), &[400]).await;
        refused(&router, path, format!("[{}1]", "1,".repeat(30_000)), &[422]).await;
        refused(
            &router,
            path,
            format!("{{\"{}\": 1}}", "\u{1}".repeat(10)).replace('\u{1}', "\\u0001"),
            &[422],
        )
        .await;
        refused(
            &router,
            path,
            format!("{{\"{}\": 1}}", "k".repeat(60_000)),
            &[422],
        )
        .await;
        refused(&router, path, &too_long, &[413]).await;
        refused(&router, path, " ".repeat(300 << 10), &[413]).await;
    }
    for value in [
        "\"5\"", "null", "true", "[5]", "{}", "-1", "-0.01", "100.01", "101", "0.001", "5.005",
        "1e308", "1e-9", "-1e-5",
    ] {
        refused(&router, WEIGHT, format!("{{\"weight\": {value}}}"), &[422]).await;
    }
    refused(&router, WEIGHT, "{\"weight\": 1e400}", &[400, 422]).await;
    refused(
        &router,
        WEIGHT,
        format!("{{\"weight\": \"{}\"}}", "5".repeat(60_000)),
        &[422],
    )
    .await;
    for body in [
        r#"{"Weight": 5}"#,
        r#"{"weight": 5, "wieght": 5}"#,
        r#"{"weight": 5, "old_weight": 0.95, "new_weight": 0.05}"#,
        r#"{"weight": 5, "weight": 50}"#,
        r#"{"weight": 50, "weight": 50}"#,
    ] {
        refused(&router, WEIGHT, body, &[422]).await;
    }
    for (old, new) in [
        ("0.9", "0.05"),
        ("0.95", "0.0479"),
        ("0.95", "0.0521"),
        ("-0.0005", "1.0"),
        ("1.0005", "0"),
        ("-1", "2"),
        ("2", "-1"),
        ("0.94995", "0.05005"),
        ("0.5", "0.5000001"),
        ("95", "5"),
        ("\"0.95\"", "\"0.05\""),
        ("null", "0.05"),
        ("1e308", "-1e308"),
    ] {
        let body = format!("{{\"old_weight\": {old}, \"new_weight\": {new}}}");
        refused(&router, ALIAS, body, &[422]).await;
    }
    for body in [
        r#"{"new_weight": 0.05}"#,
        r#"{"old_weight": 0.95}"#,
        r#"{"weight": 5}"#,
        r#"{"old_weight": 0.95, "new_weight": 0.05, "new_weight": 0.05}"#,
    ] {
        refused(&router, ALIAS, body, &[422]).await;
    }
    assert_eq!(state(&router).await, before);
}

#[tokio::test]
async fn every_weight_that_is_one_is_taken_to_a_hundredth() {
    let (_main, _canary, router) = router(json!({})).await;
    for (said, set) in [
        ("0", json!(0)),
        ("0.01", json!(0.01)),
        ("0.29", json!(0.29)),
        ("99.99", json!(99.99)),
        ("100", json!(100)),
        ("100.0", json!(100)),
        ("1e1", json!(10)),
        ("5.10", json!(5.1)),
        ("-0", json!(0)),
    ] {
        let body = format!(" {{\"weight\" : {said} }}\n");
        let status = router.change("PUT", WEIGHT, &body).await;
        assert_eq!(
            (&status["weight"], &status["decisions"][0]["to"]["weight"]),
            (&set, &set)
        );
    }
    for (old, new, set) in [
        ("0.95", "0.05", json!(5)),
        ("0.9999", "0.0001", json!(0.01)),
        ("0.949", "0.05", json!(5)),
        ("0.951", "0.05", json!(5)),
        ("0.95", "0.049", json!(4.9)),
        ("0.95", "0.051", json!(5.1)),
        ("0", "1", json!(100)),
        ("1", "0", json!(0)),
        ("0.001", "1", json!(100)),
        ("1", "0.001", json!(0.1)),
        ("0.33", "0.67", json!(67)),
    ] {
        let body = format!("{{\"old_weight\": {old}, \"new_weight\": {new}}}");
        let status = router.change("POST", ALIAS, &body).await;
        assert_eq!(status["weight"], set, "{old} {new}");
    }
}

#[tokio::test]
async fn a_body_that_never_comes_is_given_up_and_holds_nobody_up() {
    let (_main, _canary, router) = router(json!({})).await;
    let before = state(&router).await;
    let head = format!(
        "PUT {WEIGHT} HTTP/1.1\r\nhost: {}\r\ncontent-length: 12\r\n\r\n",
        router.instrumentation
    );
    let mut slow = Client::connect(router.instrumentation).await;
    slow.send(&head).await;
    let mut half = Client::connect(router.instrumentation).await;
    half.send(format!("{head}{{\"wei")).await;
    half.finish().await;
    let half = half.response("PUT").await;
    assert!(half.is_none_or(|half| half.status == 400));
    assert_eq!(state(&router).await, before);
    let response = slow.response("PUT").await.unwrap();
    assert_eq!(response.status, 408);
    openapi::assert_answers("PUT", WEIGHT, &response);
    assert!(error(&response).contains("send"));
    slow.closed().await;
    assert_eq!(state(&router).await, before);
}

#[tokio::test]
async fn a_body_may_come_in_chunks_and_after_a_100_but_not_from_a_stranger() {
    let (_main, _canary, router) = router(json!({})).await;
    let host = format!("host: {}\r\n", router.instrumentation);
    let connect = || Client::connect(router.instrumentation);
    let head = format!("PUT {WEIGHT} HTTP/1.1\r\n{host}transfer-encoding: chunked\r\n\r\n");
    let body = chunked(&[b"{\"wei", b"ght\"", b": 11}"], "");
    let taken = connect()
        .await
        .roundtrip("PUT", [head.as_bytes(), &body].concat())
        .await;
    assert_eq!(taken.status, 200, "{}", taken.text());
    assert_eq!(state(&router).await["weight"], 11);
    let long = in_chunks(&b" ".repeat(70 << 10));
    let refused = connect()
        .await
        .roundtrip("PUT", [head.as_bytes(), &long].concat())
        .await;
    assert_eq!(refused.status, 413);
    let cut = connect()
        .await
        .roundtrip("PUT", format!("{head}zz\r\n"))
        .await;
    assert_eq!(cut.status, 400);
    openapi::assert_answers("PUT", WEIGHT, &cut);

    let expect = |headers: &str, length: usize| {
        format!(
            "PUT {WEIGHT} HTTP/1.1\r\n{host}{headers}expect: 100-continue\r\ncontent-length: {length}\r\n\r\n"
        )
    };
    let mut client = connect().await;
    client.send(expect("", 13)).await;
    client.expect("HTTP/1.1 100 Continue\r\n\r\n").await;
    assert_eq!(client.roundtrip("PUT", "{\"weight\": 1}").await.status, 200);
    for (headers, length, status) in [
        ("origin: http://evil.example\r\n", 13, 403),
        // Nobody is asked for what is refused.
        ("", 100 << 20, 413),
    ] {
        let response = connect()
            .await
            .roundtrip("PUT", expect(headers, length))
            .await;
        assert_eq!((response.status, response.informational), (status, vec![]));
    }
    assert_eq!(state(&router).await["weight"], 1);
}

#[tokio::test]
async fn requests_in_one_piece_are_answered_in_their_order() {
    let (_main, _canary, router) = router(json!({})).await;
    let host = router.instrumentation;
    let mut all = String::new();
    for weight in ["1", "x", "3"] {
        let body = format!("{{\"weight\": {weight}}}");
        all += &format!(
            "PUT {WEIGHT} HTTP/1.1\r\nhost: {host}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        all += &format!("GET /status HTTP/1.1\r\nhost: {host}\r\n\r\n");
    }
    let mut client = Client::connect(host).await;
    client.send(all).await;
    let mut seen = Vec::new();
    for method in ["PUT", "GET"].repeat(3) {
        let response = client.response(method).await.unwrap();
        let answer: Value = serde_json::from_slice(&response.message.body).unwrap();
        seen.push((response.status, answer["weight"].as_u64()));
    }
    let expected = [
        (200, Some(1)),
        (200, Some(1)),
        (400, None),
        (200, Some(1)),
        (200, Some(3)),
        (200, Some(3)),
    ];
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn a_head_that_is_too_long_is_refused_and_hurts_nobody() {
    let (_main, _canary, router) = router(json!({})).await;
    for head in [
        format!(
            "GET /status HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n",
            "x".repeat(1 << 20)
        ),
        format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "x".repeat(1 << 20)),
        format!("GET /status HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(5_000)),
        "\0\0\0\r\n\r\n".into(),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(),
    ] {
        let mut client = Client::connect(router.instrumentation).await;
        // It may hang up before it has read all.
        let _cut = tokio::io::AsyncWriteExt::write_all(&mut client.0, head.as_bytes()).await;
        if let Some(response) = client.response("GET").await {
            assert!((400..500).contains(&response.status), "{}", response.status);
        }
        assert_eq!(ask(&router, "GET", "/status", "", "").await.status, 200);
    }
}

/// It kept one of the 64 places for ever.
#[tokio::test]
async fn who_does_not_take_his_answers_is_hung_up_on() {
    let (_main, _canary, router) = router(json!({})).await;
    let mut client = Client::connect(router.instrumentation).await;
    let request = format!(
        "GET /metrics HTTP/1.1\r\nhost: {}\r\n\r\n",
        router.instrumentation
    );
    soon(async {
        let ask = |client: &mut Client| {
            let asked = request.clone().into_bytes();
            let stream = client.0.get_ref();
            stream.try_write(&asked)
        };
        loop {
            client.0.get_ref().writable().await.unwrap();
            match ask(&mut client) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_hung_up) => break,
                Ok(_) => {}
            }
        }
    })
    .await;
    assert_eq!(ask(&router, "GET", "/status", "", "").await.status, 200);
}
