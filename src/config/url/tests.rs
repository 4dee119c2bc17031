use serde_json::json;

use super::*;
use crate::config::tests::{read, refused, with};

#[test]
fn a_unix_socket_is_a_target_like_any_other() {
    let socket = "/run/app.sock";
    let longest = format!("/{}", "s".repeat(LONGEST_SOCKET - 1));
    for (url, path, base, query) in [
        ("http://unix:/run/app.sock", socket, "", None),
        ("http://unix:/run/app.sock:", socket, "", None),
        ("http://unix:/run/app.sock:/", socket, "", None),
        ("http://unix:/run/app.sock:/base", socket, "/base", None),
        (
            "http://unix:/run/app.sock:/a:b/?k=1:2",
            socket,
            "/a:b/",
            Some("k=1:2"),
        ),
        ("http://unix:/run/app.sock:?k=1", socket, "", Some("k=1")),
        ("http://unix:/run/app.sock?k=1", socket, "", Some("k=1")),
        ("HTTP://unix:/run/app.sock:?", socket, "", None),
        (
            "http://unix:/run/a b@c%20.sock:/x",
            "/run/a b@c%20.sock",
            "/x",
            None,
        ),
        (&format!("http://unix:{longest}:/x"), &longest, "/x", None),
    ] {
        let config = read(with(json!({"main-target": url, "sidecar-url": url})));
        for upstream in [config.main, config.sidecar.unwrap().upstream] {
            assert_eq!(upstream.address, Address::Unix(path.into()), "{url}");
            assert_eq!(
                (&*upstream.base_path, upstream.query.as_deref()),
                (base, query),
                "{url}"
            );
            assert_eq!(upstream.host_header, "localhost", "{url}");
            assert!(!upstream.tls, "{url}");
        }
    }
}

#[test]
fn a_unix_socket_may_have_tls_and_another_host() {
    let config = read(with(json!({
        "canary-target": "https://unix:/run/app.sock", "canary-header-host": "new.example"
    })));
    assert!(config.canary.tls);
    assert_eq!(config.canary.address, Address::Unix("/run/app.sock".into()));
    assert_eq!(config.canary.host_header, "new.example");
}

#[test]
fn a_host_that_is_called_unix_is_one() {
    for (url, port) in [("http://unix:8080/x", 8080), ("http://unix/x", 80)] {
        let config = read(with(json!({"main-target": url})));
        let host = "unix".to_owned();
        assert_eq!(config.main.address, Address::Tcp { host, port });
        assert_eq!(config.main.base_path, "/x");
    }
}

#[test]
fn a_unix_socket_that_cannot_work_is_refused_where_it_is_written() {
    let long = format!("http://unix:/{}:/x", "s".repeat(LONGEST_SOCKET));
    for (url, hint) in [
        ("http://unix:", "names no unix socket"),
        ("http://unix::/base", "names no unix socket"),
        ("http://unix:?k=1", "names no unix socket"),
        (
            "http://unix:run/app.sock",
            "is not absolute; start it with a slash",
        ),
        ("http://unix:@abstract", "is not absolute"),
        ("http://unix:/", "ends with a slash"),
        ("http://unix:/run/app.sock/", "stands behind a colon"),
        ("http://unix:/run/app.sock:8080", "is no base path"),
        ("http://unix:/run/app.sock:base", "is no base path"),
        ("http://unix:/run/app.sock:/a b", "is no base path"),
        ("http://unix:/run/app.sock:/a#b", "fragment"),
        ("http://unix:/run/app\0.sock", "zero byte"),
        (&long, "longer than the 107 bytes"),
        (
            "unix:/run/app.sock",
            "\"http://unix:/run/app.sock:/base/path\"",
        ),
        ("ftp://unix:/run/app.sock", "neither http:// nor https://"),
    ] {
        for key in ["main-target", "canary-target", "sidecar-url"] {
            refused(with(json!({key: url})), &format!("/{key}"), hint);
        }
    }
}

#[test]
fn of_a_unix_socket_only_the_query_is_masked() {
    let url = "http://unix:/run/a@b.sock:/base?key=hunter2";
    let config = read(with(json!({"main-target": url})));
    let shown = &config.effective["main-target"];
    assert_eq!(shown, "http://unix:/run/a@b.sock:/base?***");
    let (key, secret) = ("main-target", "http://unix:run/app.sock?key=hunter2");
    let refused = crate::config::tests::problems(with(json!({key: secret})));
    assert!(!format!("{refused:?}").contains("hunter2"), "{refused:?}");
}
