//! The response to a request: read the same however it is cut.

#![no_main]

use http::Method;
use libfuzzer_sys::fuzz_target;
use ours::Arriving;

#[path = "../../tests/codec/ours.rs"]
#[allow(dead_code)]
mod ours;

fuzz_target!(|input: (bool, Vec<u8>, &[u8])| {
    let (is_head, sizes, bytes) = input;
    let sizes: Vec<usize> = sizes.into_iter().map(usize::from).collect();
    let method = match is_head {
        true => Method::HEAD,
        false => Method::GET,
    };
    let whole = ours::response(&method, Arriving::new(bytes, &[]));
    let cut = ours::response(&method, Arriving::new(bytes, &sizes));
    match (cut, whole) {
        // What is wrong with it may be noticed at another of its faults.
        (Err(_), Err(_)) => {}
        (cut, whole) => {
            assert_eq!(cut, whole);
            let response = whole.expect("they are equal, and not both refused");
            let content = &response.content;
            for (name, value) in response.fields.iter().chain(&content.trailers) {
                assert!(!name.is_empty() && !name.contains([' ', '\t', ':', '\r', '\n', '\0']));
                assert!(!value.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)));
            }
            assert!(!is_head || content.bytes.is_empty());
        }
    }
});
