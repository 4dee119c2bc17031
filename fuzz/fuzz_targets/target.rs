//! Request targets: whatever is accepted, trimmed and put on a base is still one target.

#![no_main]

use std::sync::LazyLock;

use bytes::{Bytes, BytesMut};
use canary_router::{
    config::{Config, Upstream},
    proxy::uri::Target,
};
use http::Method;
use libfuzzer_sys::fuzz_target;

static UPSTREAMS: LazyLock<Vec<Upstream>> = LazyLock::new(|| {
    let bases = ["", "/", "/base", "/base/", "/base?x=1", "?x=1", "/%2F//?"];
    bases
        .iter()
        .map(|base| {
            let file = format!(
                r#"{{"main-target": "http://h{base}", "canary-target": "http://c",
                    "router-server": {{"host": "h", "port": 1}}}}"#
            );
            Config::parse("fuzz", &file).expect("it is valid").main
        })
        .collect()
});

const PREFIXES: [&str; 6] = ["", "/", "/a", "/a/", "/a/b", "/%2F"];

fuzz_target!(|input: (u8, u8, &[u8])| {
    let (method, prefix, target) = input;
    let method = match method % 3 {
        0 => Method::GET,
        1 => Method::OPTIONS,
        _ => Method::CONNECT,
    };
    let Ok(target) = Target::parse(&method, Bytes::copy_from_slice(target)) else {
        return;
    };
    is_one(target.as_bytes());
    let trimmed = target.trimmed(PREFIXES[usize::from(prefix) % PREFIXES.len()]);
    is_one(trimmed.as_bytes());
    for upstream in UPSTREAMS.iter() {
        let mut out = BytesMut::new();
        trimmed.put_on(upstream, &mut out);
        is_one(&out);
        let asterisk = trimmed.as_bytes() == b"*";
        assert!(out.starts_with(upstream.base_path.as_bytes()) != asterisk || out == "*");
    }
});

fn is_one(target: &[u8]) {
    assert!(target == b"*" || target.starts_with(b"/"));
    assert!(
        !target
            .iter()
            .any(|byte| matches!(byte, 0..=b' ' | 127 | b'#'))
    );
}
