//! HTTP/1.1 messages as bytes: heads, body framing, chunks (RFC 9112). No I/O and no clock in here,
//! so all of it can be tested, fuzzed and compared byte by byte.
//!
//! A proxy is only as safe as its reading of a message is the same as everybody else's: where two
//! readers could disagree on where a message ends, one request becomes two (request smuggling). So a
//! message that is not exactly what the RFC says is not repaired but refused, and one that is passed
//! on is written anew from what was understood of it. What is refused:
//!
//! | in | what | where |
//! |---|---|---|
//! | request line | another shape than `token SP target SP HTTP/1.x`; a target that is no path, or has blanks, controls or a fragment | [`head`], [`super::uri`] |
//! | line ends | a bare LF or CR anywhere in the head of a request, or in the framing of its body | [`head`], [`chunked`] |
//! | fields | a blank before the colon, a folded line, NUL and other controls, an empty or invalid name | `httparse`, in [`head`] |
//! | framing | `Content-Length` beside `Transfer-Encoding`; either of them twice; anything but digits or `chunked` in them; `Transfer-Encoding` in HTTP/1.0 | [`framing`] |
//! | chunks | a size that is not 1 to 16 hex digits, a line end that is not CRLF, extensions without end | [`chunked`] |
//! | size | a head beyond `max-header-bytes`: 414 if the request line did it, else 431 | [`head`] |
//!
//! Responses are read by the same code. Towards old upstreams two liberties are taken, which cannot be
//! passed on because heads and chunks are written anew: a bare LF may end a line of a head, and blanks
//! may follow a chunk size.

pub mod chunked;
pub mod framing;
pub mod head;
pub mod inbox;
pub mod outbox;

#[cfg(test)]
mod tests;
