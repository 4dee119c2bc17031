//! Message heads: start line and fields.
//!
//! Lines are counted as they come in, so a head is looked through once however slowly it drips. When it
//! is whole, `httparse` takes the fields apart: it refuses control characters, folded lines and blanks
//! before a colon. Values are slices of the bytes that were read.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{Method, StatusCode, Version};
use httparse::{EMPTY_HEADER, Header};
use memchr::{memchr, memchr_iter};

use crate::proxy::{
    fields::Fields,
    message::{RequestHead, ResponseHead},
    uri::Target,
};

/// What the trailers of one message may be long.
pub const MAX_TRAILER_BYTES: usize = 64 << 10;
/// What the head of a response may be long.
pub const MAX_RESPONSE_BYTES: usize = 256 << 10;
/// How a client begins that speaks HTTP/2 (RFC 9113 section 3.4), up to where it looks like a request.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\n";
/// Heads with no more lines than this need no memory to be taken apart in.
const USUAL_LINES: usize = 48;

/// Why a request head is refused. The texts are for the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadHead {
    /// It is not valid HTTP/1.
    #[error("{0}")]
    Malformed(&'static str),
    /// The request line alone is beyond the limit.
    #[error("the request target is too long")]
    TargetTooLong,
    /// The head is beyond the limit.
    #[error("the request header section is too large")]
    TooLarge,
    /// Another major version of HTTP.
    #[error("this version of HTTP is not supported here")]
    Version,
    /// It is the beginning of HTTP/2, and was left where it stood.
    #[error("HTTP/2 is not spoken here")]
    Http2Preface,
}

/// A response head that is not valid HTTP/1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadResponse(pub &'static str);

/// How far a growing buffer has been searched for the end of a head.
#[derive(Debug, Default)]
pub struct Search {
    /// Bytes that hold no end.
    searched: usize,
    /// Where the line begins that is not yet ended.
    line: usize,
    /// How many lines are ended.
    lines: usize,
    /// How long the first one is, with its line end.
    first: usize,
}

/// A line that ends with LF alone.
struct BareLineFeed;

impl Search {
    /// The length of the section that starts `buf`, with the empty line at its end, once it is there.
    fn end(&mut self, buf: &[u8], bare_allowed: bool) -> Result<Option<usize>, BareLineFeed> {
        let from = self.searched;
        for at in memchr_iter(b'\n', &buf[from..]) {
            let at = from + at;
            let content = &buf[self.line..at];
            let content = match content.strip_suffix(b"\r") {
                Some(content) => content,
                None if bare_allowed => content,
                None => return Err(BareLineFeed),
            };
            if content.is_empty() {
                return Ok(Some(at + 1));
            }
            self.line = at + 1;
            self.lines += 1;
            if self.lines == 1 {
                self.first = at + 1;
            }
        }
        self.searched = buf.len();
        Ok(None)
    }
}

/// Takes a request head out of `buf`, once it is there as a whole. `search` is a fresh one for each
/// head.
///
/// # Errors
/// The first thing that is wrong.
pub fn parse_request(
    buf: &mut BytesMut,
    search: &mut Search,
    max_bytes: usize,
) -> Result<Option<RequestHead>, BadHead> {
    // RFC 9112 section 2.2: empty lines before a request line are let pass.
    while search.searched == 0 && buf.starts_with(b"\r\n") {
        buf.advance(2);
    }
    if search.searched == 0 && &buf[..] == b"\r" {
        return Ok(None);
    }
    let seen_before = search.searched;
    let end = search.end(buf, false).map_err(|BareLineFeed| {
        BadHead::Malformed("a line of the header section does not end with CRLF")
    })?;
    if end.unwrap_or(buf.len()) > max_bytes {
        return Err(match search.first {
            0 => BadHead::TargetTooLong,
            first if first > max_bytes => BadHead::TargetTooLong,
            _ => BadHead::TooLarge,
        });
    }
    let Some(end) = end else {
        // Whoever does not speak HTTP at all is told at once.
        if seen_before == 0 && buf.first().is_some_and(|byte| !is_token(*byte)) {
            return Err(BadHead::Malformed("the request line is malformed"));
        }
        return Ok(None);
    };
    let (lines, first) = (search.lines, search.first);
    *search = Search::default();
    if &buf[..end] == HTTP2_PREFACE {
        return Err(BadHead::Http2Preface);
    }
    let head = buf.split_to(end).freeze();
    if first == 0 {
        return Err(BadHead::Malformed("the request line is malformed"));
    }
    let (method, target, version) = request_line(&head[..first - 2])?;
    let target = Target::parse(&method, head.slice_ref(target)).map_err(BadHead::Malformed)?;
    let headers = fields(&head.slice(first..), lines)
        .map_err(|BadFields| BadHead::Malformed("a header field is malformed"))?;
    Ok(Some(RequestHead {
        method,
        target,
        version,
        headers,
    }))
}

/// `method SP request-target SP HTTP-version` (RFC 9112 section 3), with single spaces.
fn request_line(line: &[u8]) -> Result<(Method, &[u8], Version), BadHead> {
    let bad = BadHead::Malformed("the request line is malformed");
    let (method, rest) = split_at_space(line).ok_or(bad)?;
    let (target, version) = split_at_space(rest).ok_or(bad)?;
    let method = Method::from_bytes(method).map_err(|_| bad)?;
    let version = match version {
        b"HTTP/1.1" => Version::HTTP_11,
        b"HTTP/1.0" => Version::HTTP_10,
        // A later minor version is compatible (RFC 9110 section 6.2).
        [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'2'..=b'9'] => Version::HTTP_11,
        [b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9'] => {
            return Err(BadHead::Version);
        }
        _ => return Err(bad),
    };
    Ok((method, target, version))
}

fn split_at_space(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = memchr(b' ', line)?;
    Some((&line[..at], &line[at + 1..]))
}

/// RFC 9110 section 5.6.2.
pub fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Takes a response head out of `buf`, once it is there as a whole.
///
/// # Errors
/// It is not a valid head, or too long.
pub fn parse_response(
    buf: &mut BytesMut,
    search: &mut Search,
) -> Result<Option<ResponseHead>, BadResponse> {
    let end = search.end(buf, true).unwrap_or(None);
    if end.unwrap_or(buf.len()) > MAX_RESPONSE_BYTES {
        return Err(BadResponse("its header section is too large"));
    }
    let Some(end) = end else {
        let start = &buf[..buf.len().min(5)];
        return match b"HTTP/".starts_with(start) {
            true => Ok(None),
            false => Err(BadResponse("it does not begin with an HTTP/1 status line")),
        };
    };
    let (lines, first) = (search.lines, search.first);
    *search = Search::default();
    let head = buf.split_to(end).freeze();
    let line = head[..first].strip_suffix(b"\n").unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let (version, status, reason) =
        status_line(line).ok_or(BadResponse("it does not begin with an HTTP/1 status line"))?;
    let reason = match status.canonical_reason() {
        Some(usual) if usual.as_bytes() == reason => None,
        _ => Some(head.slice_ref(reason)),
    };
    let headers = fields(&head.slice(first..), lines)
        .map_err(|BadFields| BadResponse("one of its header fields is malformed"))?;
    Ok(Some(ResponseHead {
        status,
        reason,
        version,
        headers,
    }))
}

/// `HTTP-version SP status-code [ SP reason-phrase ]` (RFC 9112 section 4). The space before an empty
/// reason is often forgotten.
fn status_line(line: &[u8]) -> Option<(Version, StatusCode, &[u8])> {
    let version = match line.get(..9)? {
        b"HTTP/1.1 " => Version::HTTP_11,
        b"HTTP/1.0 " => Version::HTTP_10,
        _ => return None,
    };
    let status = StatusCode::from_bytes(line.get(9..12)?).ok()?;
    let reason = match line.get(12..)? {
        [] => &[],
        [b' ', reason @ ..] => reason,
        _ => return None,
    };
    let is_text = |byte: &u8| matches!(byte, b'\t' | b' '..=b'~' | 0x80..);
    reason
        .iter()
        .all(is_text)
        .then_some((version, status, reason))
}

/// Takes a trailer section that is not empty out of `buf`, once it is there as a whole.
///
/// # Errors
/// It is malformed.
pub fn parse_trailers(
    buf: &mut BytesMut,
    search: &mut Search,
) -> Result<Option<Fields>, BadFields> {
    let end = search.end(buf, false).map_err(|BareLineFeed| BadFields)?;
    match end {
        None => Ok(None),
        Some(end) if end > MAX_TRAILER_BYTES => Err(BadFields),
        Some(end) => fields(&buf.split_to(end).freeze(), search.lines).map(Some),
    }
}

/// A field is malformed, or trailers are too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadFields;

/// The fields of a section that ends with an empty line; they are at most `lines`.
///
/// # Errors
/// They are malformed.
pub fn fields(section: &Bytes, lines: usize) -> Result<Fields, BadFields> {
    let mut few = [EMPTY_HEADER; USUAL_LINES];
    let mut many = Vec::new();
    let room: &mut [Header<'_>] = match few.get_mut(..lines) {
        Some(few) => few,
        None => {
            many.resize(lines, EMPTY_HEADER);
            &mut many
        }
    };
    let Ok(httparse::Status::Complete((_, found))) = httparse::parse_headers(section, room) else {
        return Err(BadFields);
    };
    let mut fields = Fields::within(section.clone(), found.len());
    for field in found {
        fields.add(field.name.as_bytes(), field.value);
    }
    Ok(fields)
}

/// Writes a `Content-Length`.
pub fn put_length(out: &mut BytesMut, length: u64) {
    let mut digits = itoa::Buffer::new();
    out.put_slice(b"content-length: ");
    out.put_slice(digits.format(length).as_bytes());
    out.put_slice(b"\r\n");
}

/// Writes `HTTP/1.1`, status and reason, with the line end.
pub fn put_status_line(out: &mut BytesMut, status: StatusCode, reason: Option<&[u8]>) {
    let reason = reason.or(status.canonical_reason().map(str::as_bytes));
    out.put_slice(b"HTTP/1.1 ");
    out.put_slice(status.as_str().as_bytes());
    out.put_slice(b" ");
    out.put_slice(reason.unwrap_or_default());
    out.put_slice(b"\r\n");
}
