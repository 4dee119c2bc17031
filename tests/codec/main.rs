//! Our HTTP/1 codecs, compared with hyper's client and server: where ours read something else, it is
//! one of the differences that are listed here.

// In a test, what is not as expected has to end it.
#![allow(clippy::unwrap_used)]

mod generate;
mod ours;
mod reference;
mod requests;
mod responses;

use canary_router::proxy::http1::chunked::Malformed;

/// In the order of their names: a map of fields keeps that of equal names only.
fn by_name(mut lines: ours::Lines) -> ours::Lines {
    lines.sort_by(|(a, _), (b, _)| a.cmp(b));
    lines
}

/// Where a body breaks off for us, but not for hyper, and that is meant. `extension` says which bytes
/// behind a chunk size only we mind.
fn is_stricter_in_body(malformed: Malformed, bytes: &[u8], extension: fn(u8) -> bool) -> bool {
    match malformed {
        // More digits than 64 bits have, though the first ones are zeros.
        Malformed::Size => bytes
            .windows(17)
            .any(|digits| digits.iter().all(u8::is_ascii_hexdigit)),
        Malformed::Extension => bytes.iter().copied().any(extension),
        // A line of the trailers that ends with LF alone.
        Malformed::Trailers => bytes
            .windows(2)
            .any(|end| end[0] != b'\r' && end[1] == b'\n'),
        Malformed::ExtensionsTooLong | Malformed::LineEnd => false,
    }
}
