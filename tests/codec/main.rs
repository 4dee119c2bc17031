//! Our HTTP/1 codecs, compared with hyper's client and server: where ours read something else, it is
//! one of the differences that are listed here.

// In a test, what is not as expected has to end it.
#![allow(clippy::unwrap_used)]

mod generate;
mod ours;
mod reference;
mod requests;
mod responses;

/// In the order of their names: a map of fields keeps that of equal names only.
fn by_name(mut lines: ours::Lines) -> ours::Lines {
    lines.sort_by(|(a, _), (b, _)| a.cmp(b));
    lines
}
