//! The requests of a connection: read the same however they are cut, and framed in one way only.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ours::{Arriving, Stop};

#[path = "../../tests/codec/ours.rs"]
#[allow(dead_code)]
mod ours;

const MAX_HEADER_BYTES: usize = 4096;

fuzz_target!(|input: (Vec<u8>, &[u8])| {
    let (sizes, bytes) = input;
    let sizes: Vec<usize> = sizes.into_iter().map(usize::from).collect();
    let whole = ours::requests(Arriving::new(bytes, &[]), MAX_HEADER_BYTES);
    let (requests, stop) = ours::requests(Arriving::new(bytes, &sizes), MAX_HEADER_BYTES);
    // The same requests; what is wrong with the next one may be noticed at another of its faults.
    assert_eq!(requests, whole.0);
    match (stop, whole.1) {
        (Stop::Refused(_), Stop::Refused(_)) => {}
        (cut, whole) => assert_eq!(cut, whole),
    }
    for request in &requests {
        let named = |name: &str| request.fields.iter().filter(|line| line.0 == name).count();
        assert!(named("content-length") + named("transfer-encoding") < 2);
        assert!(named("host") < 2);
        for byte in &request.target {
            assert!(!matches!(byte, 0..=b' ' | 127 | b'#'));
        }
        for (name, value) in request.fields.iter().chain(&request.content.trailers) {
            assert!(!name.is_empty() && !name.contains([' ', '\t', ':', '\r', '\n', '\0']));
            assert!(!value.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)));
        }
    }
});
