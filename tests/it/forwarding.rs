//! What goes in comes out: request targets, methods and heads.

use serde_json::json;

use crate::support::*;

#[tokio::test]
async fn base_path_and_query_of_the_target_come_before_those_of_the_request() {
    let upstream = Upstream::named("up", 200).await;
    for (base, target, expected) in [
        ("", "/foo?x", "/foo?x"),
        ("/", "/foo", "/foo"),
        ("/base", "/foo", "/base/foo"),
        ("/base/", "/foo", "/base/foo"),
        ("/base", "/", "/base/"),
        ("/base?x=1", "/foo", "/base/foo?x=1"),
        ("/base/?x=1", "/foo?y=2", "/base/foo?x=1&y=2"),
        ("?x=1", "/foo?y=2&z=%26", "/foo?x=1&y=2&z=%26"),
        ("/base", "//foo/../%2e", "/base//foo/../%2e"),
    ] {
        let router = router_to(&format!("{}{base}", upstream.url()));
        assert_eq!(get(router.address, target, "").await.status, 200);
        let seen = upstream.seen().pop().unwrap();
        assert_eq!(seen.target(), expected, "{target} on {base}");
    }
}

#[tokio::test]
async fn the_request_target_is_passed_verbatim() {
    let upstream = Upstream::named("up", 200).await;
    let router = router_to(&upstream.url());
    let mut client = Client::connect(router.address).await;
    for target in [
        "/",
        "//",
        "//a//b//",
        "/a/../b",
        "/../../a",
        "/./a/.",
        "/%2e%2e/%2E/a",
        "/a%2Fb%2fc",
        "/a%00b",
        "/a%zz%",
        "/a?",
        "/?",
        "/a??b?c",
        "/a?x=%20+&y&&=z&x=1;2",
        "/a?u=http://example.org/../x",
        "/a;p=1,2/b:c@d!$'()*~",
        "/%C3%A4/%e4",
        "/a{b}|c^[d]",
        "/application/health/",
        "/application//health",
    ] {
        let response = client
            .roundtrip("GET", head(&format!("GET {target}"), ""))
            .await;
        assert_eq!(response.status, 200, "{target}");
        let seen = upstream.seen().pop().unwrap();
        assert_eq!(seen.start_line(), format!("GET {target} HTTP/1.1"));
    }
}

#[tokio::test]
async fn an_absolute_form_target_is_reduced_to_its_path_and_query() {
    let upstream = Upstream::named("up", 200).await;
    let router = router_with(&upstream.url(), json!({"trim-prefix": "/foo"}));
    for (target, expected) in [
        ("http://client.example/foo/bar?x=%2F", "/bar?x=%2F"),
        ("http://client.example/a//b/..", "/a//b/.."),
        ("http://client.example", "/"),
        ("http://other.example:81/foo/bar", "/bar"),
    ] {
        assert_eq!(get(router.address, target, "").await.status, 200);
        let seen = upstream.seen().pop().unwrap();
        assert_eq!(seen.target(), expected, "{target}");
        assert_eq!(seen.header("host"), Some(&*upstream.address.to_string()));
    }
}

#[tokio::test]
async fn options_asterisk_is_passed_on() {
    let upstream = Upstream::named("up", 200).await;
    let router = router_to(&upstream.url());
    let response = request(router.address, "OPTIONS", "*", "", "").await;
    assert_eq!(response.status, 200);
    assert_eq!(upstream.only().start_line(), "OPTIONS * HTTP/1.1");
}

/// Not what RFC 3986 asks for, but clients send it, and no upstream minded so far.
#[tokio::test]
async fn a_target_that_is_no_ascii_text_is_passed_verbatim() {
    let upstream = ByHand::start().await;
    let router = router_to(&upstream.url());
    for target in ["/ü/日本?q=ä".as_bytes(), b"/\xff\xfe", b"/<a>`\"{|}^\\?[]"] {
        let mut client = Client::connect(router.address).await;
        client
            .send([b"GET ", target, b" HTTP/1.1\r\nhost: h\r\n\r\n"].concat())
            .await;
        let mut seen = upstream.accept().await;
        let head = seen.raw_head().await;
        assert!(head.starts_with(&[b"GET ", target, b" HTTP/1.1\r\n"].concat()));
    }
}

#[tokio::test]
async fn every_usual_method_is_passed_on_with_and_without_a_body() {
    let upstream = Upstream::start(|request| answer(200, "", request.method())).await;
    let router = router_to(&upstream.url());
    for method in [
        "GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "PURGE", "X-ANY",
    ] {
        for body in ["", "some body"] {
            let response = request(router.address, method, "/", "", body).await;
            assert_eq!((response.status, &*response.text()), (200, method));
            let seen = upstream.seen().pop().unwrap();
            assert_eq!((seen.method(), &*seen.text()), (method, body));
            assert_eq!(seen.header("transfer-encoding"), None, "{method}");
            match (body, method) {
                ("", "POST" | "PUT" | "PATCH") => {}
                ("", _) => assert_eq!(seen.header("content-length"), None, "{method}"),
                (body, _) => assert_eq!(
                    seen.header("content-length"),
                    Some(&*body.len().to_string()),
                    "{method}"
                ),
            }
        }
    }
}

#[tokio::test]
async fn a_head_response_keeps_its_content_length_and_has_no_body() {
    let upstream = Upstream::start(|request| match request.method() {
        "HEAD" => vec![Step::Write(
            b"HTTP/1.1 200 OK\r\ncontent-length: 1234\r\netag: \"x\"\r\n\r\n".to_vec(),
        )],
        _ => answer(200, "", "next"),
    })
    .await;
    let router = router_to(&upstream.url());
    let mut client = Client::connect(router.address).await;
    let response = client.roundtrip("HEAD", head("HEAD /", "")).await;
    assert_eq!(response.status, 200);
    assert_eq!(response.header("content-length"), Some("1234"));
    assert_eq!(response.header("etag"), Some("\"x\""));
    // A body would be taken for the next response here.
    assert_eq!(
        client.roundtrip("GET", head("GET /", "")).await.text(),
        "next"
    );
    assert_eq!(
        upstream.connections().0,
        1,
        "its connection can be used again"
    );
}

/// Zero would be a lie about what a GET would get.
#[tokio::test]
async fn a_head_response_without_a_content_length_is_given_none() {
    for headers in ["etag: \"x\"\r\n", "transfer-encoding: chunked\r\n"] {
        let upstream = Upstream::start(move |request| match request.method() {
            "HEAD" => vec![Step::Write(
                format!("HTTP/1.1 200 OK\r\n{headers}\r\n").into_bytes(),
            )],
            _ => answer(200, "", "next"),
        })
        .await;
        let router = router_to(&upstream.url());
        let mut client = Client::connect(router.address).await;
        let response = client.roundtrip("HEAD", head("HEAD /", "")).await;
        assert_eq!(response.status, 200);
        assert_eq!(response.header("content-length"), None, "{headers}");
        assert_eq!(
            client.roundtrip("GET", head("GET /", "")).await.text(),
            "next"
        );
    }
}

#[tokio::test]
async fn responses_to_204_and_304_have_no_body_and_keep_their_headers() {
    let upstream = Upstream::start(|request| match request.target() {
        "/204" => answer(204, "x-a: 1\r\n", ""),
        "/304" => answer(304, "etag: \"x\"\r\n", ""),
        _ => answer(200, "", "next"),
    })
    .await;
    let router = router_to(&upstream.url());
    let mut client = Client::connect(router.address).await;

    let response = client.roundtrip("GET", head("GET /204", "")).await;
    assert_eq!((response.status, response.header("x-a")), (204, Some("1")));
    assert_eq!(response.header("content-length"), None);
    assert_eq!(response.header("transfer-encoding"), None);
    assert_eq!(
        client.roundtrip("GET", head("GET /", "")).await.text(),
        "next"
    );

    let response = client.roundtrip("GET", head("GET /304", "")).await;
    assert_eq!(response.status, 304);
    assert_eq!(response.header("transfer-encoding"), None);
    assert_eq!(response.header("etag"), Some("\"x\""));
    assert_eq!(
        client.roundtrip("GET", head("GET /", "")).await.text(),
        "next"
    );
}

/// Its `Content-Length`, which says what a 200 would have had, need not be sent (RFC 9110 section 8.6);
/// hyper leaves it out. Wherever it is, it must not be taken for a body's.
#[tokio::test]
async fn a_304_with_a_content_length_has_no_body() {
    let upstream = Upstream::start(|request| match request.target() {
        "/304" => answer(304, "content-length: 77\r\n", ""),
        _ => answer(200, "", "next"),
    })
    .await;
    let router = router_to(&upstream.url());
    let mut client = Client::connect(router.address).await;
    let response = client.roundtrip("GET", head("GET /304", "")).await;
    assert_eq!(response.status, 304);
    assert_eq!(
        client.roundtrip("GET", head("GET /", "")).await.text(),
        "next"
    );
    assert!(matches!(
        response.header("content-length"),
        None | Some("77")
    ));
}

#[tokio::test]
async fn a_reason_phrase_of_its_own_survives() {
    let upstream = Upstream::start(|_| {
        vec![Step::Write(
            b"HTTP/1.1 299 Mostly Fine, Really\r\ncontent-length: 0\r\n\r\n".to_vec(),
        )]
    })
    .await;
    let router = router_to(&upstream.url());
    let response = get(router.address, "/", "").await;
    assert_eq!(
        response.message.start_line(),
        "HTTP/1.1 299 Mostly Fine, Really"
    );
}
