use std::time::Duration;

use serde_json::{Value, json};

use crate::config::{
    Protocol,
    tests::{problems, read, refused, with},
};

fn server(keys: Value) -> Value {
    with(json!({"router-server": keys}))
}

#[test]
fn what_the_listener_takes_from_whom_is_read() {
    let config = read(server(json!({
        "http2": "false", "trusted-proxies": ["10.0.0.0/8", "::1"], "proxy-protocol": true,
        "max-connections": "10000000"
    })));
    let trusted = ["10.0.0.0/8", "::1/128"].map(|network| network.parse().unwrap());
    assert_eq!(config.server.trusted_proxies, trusted);
    assert!(!config.server.http2 && config.server.proxy_protocol);
    assert_eq!(config.server.max_connections, 10_000_000);
    assert_eq!(read(config.effective).server, config.server);
    // Whom the listener believes is not whom X-Canary is believed from.
    assert_eq!(config.trusted_overrides, None);
    assert_eq!(
        read(server(json!({"max-connections": 1})))
            .server
            .max_connections,
        1
    );
}

#[test]
fn a_listener_that_cannot_work_is_refused_where_it_is_written() {
    for (keys, key, hint) in [
        (json!({"http2": "on"}), "http2", "true or false"),
        (
            json!({"trusted-proxies": "10.0.0.0/8"}),
            "trusted-proxies",
            "a list of strings",
        ),
        (
            json!({"trusted-proxies": ["127.0.0.1", "proxy.example"]}),
            "trusted-proxies/1",
            "neither a network nor an address",
        ),
        (
            json!({"trusted-proxies": ["10.1.2.3/8"]}),
            "trusted-proxies/0",
            "\"10.0.0.0/8\"",
        ),
        (
            json!({"max-connections": 10_000_001}),
            "max-connections",
            "use 0 (as many as there are descriptors for) to 10000000",
        ),
        (
            json!({"max-connections": -1}),
            "max-connections",
            "0 or more",
        ),
        (
            json!({"proxy-protocol": true}),
            "proxy-protocol",
            "is read from /router-server/trusted-proxies only",
        ),
        // Networks that are none are one problem, not two.
        (
            json!({"proxy-protocol": true, "trusted-proxies": ["x"]}),
            "trusted-proxies/0",
            "neither a network nor an address",
        ),
        (
            json!({"proxy-protocol": true, "trusted-proxies": 7}),
            "trusted-proxies",
            "a list of strings",
        ),
    ] {
        let found = problems(server(keys.clone()));
        assert_eq!(found.len(), 1, "{found:#?}");
        refused(server(keys), &format!("/router-server/{key}"), hint);
    }
}

#[test]
fn what_is_spoken_to_upstreams_and_for_how_long_is_read() {
    for (written, protocol) in [
        ("http1", Protocol::Http1),
        ("h2", Protocol::Http2),
        (" auto ", Protocol::Auto),
        ("", Protocol::Http1),
    ] {
        let keys = json!({"protocol": written, "max-conn-age": "1s"});
        let config = read(with(json!({
            "sidecar-url": "http://sidecar.example", "proxy-client": {"to-sidecar": keys}
        })));
        let client = config.sidecar.unwrap().upstream.client;
        assert_eq!(client.protocol, protocol);
        assert_eq!(client.max_conn_age, Duration::from_secs(1));
        assert_eq!(config.main.client.max_conn_age, Duration::from_secs(300));
        assert_eq!(config.main.client.protocol, Protocol::Http1);
    }
}

#[test]
fn a_client_that_cannot_work_is_refused_where_it_is_written() {
    for client in ["to-main-and-canary", "to-sidecar"] {
        for (keys, key, hint) in [
            (
                json!({"protocol": "http2"}),
                "protocol",
                "did you mean \"h2\"? the words here are http1, h2, auto",
            ),
            (
                json!({"protocol": "H2"}),
                "protocol",
                "did you mean \"h2\"?",
            ),
            (
                json!({"protocol": "http/1.1"}),
                "protocol",
                "did you mean \"http1\"?",
            ),
            (json!({"protocol": 2}), "protocol", "expected a string"),
            (
                json!({"max-conn-age": "999ms"}),
                "max-conn-age",
                "use \"1s\" or more",
            ),
            (
                json!({"max-conn-age": "ever"}),
                "max-conn-age",
                "a duration",
            ),
        ] {
            let file = with(json!({"proxy-client": {client: keys}}));
            assert_eq!(problems(file.clone()).len(), 1);
            refused(file, &format!("/proxy-client/{client}/{key}"), hint);
        }
    }
}
