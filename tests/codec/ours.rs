//! What our codecs make of the bytes of a connection: the loops of `proxy::call` and
//! `proxy::conversation` without their sockets, so that thousands of connections are read in a second.
//! `tests/it` and `fuzz/` use this file too.

use bytes::BytesMut;
use canary_router::proxy::{
    error::Refusal,
    fields::Fields,
    headers,
    http1::{
        chunked::Malformed,
        framing::{self, Decoder, Step, Unclear},
        head::{self, BadResponse, Search},
    },
    message::{RequestHead, ResponseHead},
};
use http::{Method, StatusCode, Version};

/// Names in lower case, and values.
pub type Lines = Vec<(String, Vec<u8>)>;

/// The bytes that one end of a connection sends before it closes, and how they arrive.
#[derive(Debug, Clone)]
pub struct Arriving<'a> {
    bytes: &'a [u8],
    sizes: &'a [usize],
    pieces: usize,
}

impl<'a> Arriving<'a> {
    /// In pieces of these sizes, over and over; none is all at once.
    pub fn new(bytes: &'a [u8], sizes: &'a [usize]) -> Arriving<'a> {
        Arriving {
            bytes,
            sizes,
            pieces: 0,
        }
    }

    /// The next piece; `None` is the end of the connection.
    pub fn next(&mut self) -> Option<&'a [u8]> {
        let size = match self.sizes {
            [] => self.bytes.len(),
            sizes => sizes[self.pieces % sizes.len()].max(1),
        };
        self.pieces += 1;
        let (piece, rest) = self.bytes.split_at(size.min(self.bytes.len()));
        self.bytes = rest;
        Some(piece).filter(|piece| !piece.is_empty())
    }

    fn fill(&mut self, buf: &mut BytesMut) -> bool {
        let piece = self.next().unwrap_or_default();
        buf.extend_from_slice(piece);
        !piece.is_empty()
    }
}

/// How a body ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Whole,
    Cut,
    Malformed(Malformed),
}

/// A body, as far as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    pub bytes: Vec<u8>,
    pub trailers: Lines,
    pub end: End,
}

/// A response that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The informational ones before it.
    pub informational: Vec<StatusCode>,
    pub version: Version,
    pub status: StatusCode,
    pub fields: Lines,
    pub content: Content,
    /// Whether only the end of the connection ends it.
    pub until_close: bool,
    /// Whether the connection may be used again.
    pub reusable: bool,
}

/// Why there is no response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoResponse {
    Bad(BadResponse),
    Unclear(Unclear),
    /// The connection ended before its head did.
    Cut,
}

/// Reads the response to a request with `method`.
pub fn response(method: &Method, mut arriving: Arriving) -> Result<Response, NoResponse> {
    let mut buf = BytesMut::new();
    let mut informational = Vec::new();
    let head = loop {
        let head = response_head(&mut buf, &mut arriving)?;
        if !head.status.is_informational() || head.status == StatusCode::SWITCHING_PROTOCOLS {
            break head;
        }
        informational.push(head.status);
    };
    let framing = framing::of_response(method, head.status, head.version, &head.headers)
        .map_err(NoResponse::Unclear)?;
    let decoder = Decoder::new(framing, true);
    let until_close = !decoder.may_be_followed();
    let says = |token| headers::connection_says(&head.headers, token);
    let stays = match head.version {
        Version::HTTP_11 => !says("close"),
        _ => says("keep-alive") && !says("close"),
    };
    let stays = stays && !until_close && head.status != StatusCode::SWITCHING_PROTOCOLS;
    let content = content(decoder, &mut buf, &mut arriving);
    let reusable =
        stays && content.end == End::Whole && buf.is_empty() && arriving.next().is_none();
    Ok(Response {
        informational,
        version: head.version,
        status: head.status,
        fields: lines(&head.headers),
        content,
        until_close,
        reusable,
    })
}

fn response_head(buf: &mut BytesMut, arriving: &mut Arriving) -> Result<ResponseHead, NoResponse> {
    let mut search = Search::default();
    loop {
        if let Some(head) = head::parse_response(buf, &mut search).map_err(NoResponse::Bad)? {
            return Ok(head);
        }
        if !arriving.fill(buf) {
            return Err(NoResponse::Cut);
        }
    }
}

/// A request that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub method: Method,
    pub target: Vec<u8>,
    pub version: Version,
    pub fields: Lines,
    pub content: Content,
}

/// Why no further request was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The connection ended, perhaps within a head.
    Ended,
    /// One of them said so.
    Closed,
    /// The next one is refused.
    Refused(Refusal),
    /// The last one's body has no end.
    Broken,
}

/// Reads the requests of a connection.
pub fn requests(mut arriving: Arriving, max_header_bytes: usize) -> (Vec<Request>, Stop) {
    let mut buf = BytesMut::new();
    let mut requests = Vec::new();
    loop {
        let head = match request_head(&mut buf, &mut arriving, max_header_bytes) {
            Ok(Some(head)) => head,
            Ok(None) => return (requests, Stop::Ended),
            Err(refusal) => return (requests, Stop::Refused(refusal)),
        };
        let decoder = match judged(&head) {
            Ok(decoder) => decoder,
            Err(refusal) => return (requests, Stop::Refused(refusal)),
        };
        let content = content(decoder, &mut buf, &mut arriving);
        let says = |token| headers::connection_says(&head.headers, token);
        let stays = match head.version {
            Version::HTTP_11 => !says("close"),
            _ => says("keep-alive") && !says("close"),
        };
        let whole = content.end == End::Whole;
        requests.push(Request {
            target: head.target.as_bytes().to_vec(),
            fields: lines(&head.headers),
            method: head.method,
            version: head.version,
            content,
        });
        match (whole, stays) {
            (false, _) => return (requests, Stop::Broken),
            (true, false) => return (requests, Stop::Closed),
            (true, true) => {}
        }
    }
}

fn judged(head: &RequestHead) -> Result<Decoder, Refusal> {
    let framing = framing::of_request(head.version, &head.headers)?;
    headers::vet(head)?;
    let decoder = Decoder::new(framing, false);
    headers::wanted_upgrade(head, !decoder.is_over())?;
    Ok(decoder)
}

fn request_head(
    buf: &mut BytesMut,
    arriving: &mut Arriving,
    max_header_bytes: usize,
) -> Result<Option<RequestHead>, Refusal> {
    let mut search = Search::default();
    loop {
        if let Some(head) = head::parse_request(buf, &mut search, max_header_bytes)? {
            return Ok(Some(head));
        }
        if !arriving.fill(buf) {
            return Ok(None);
        }
    }
}

fn content(mut decoder: Decoder, buf: &mut BytesMut, arriving: &mut Arriving) -> Content {
    let mut content = Content {
        bytes: Vec::new(),
        trailers: Vec::new(),
        end: End::Whole,
    };
    content.end = loop {
        match decoder.step(buf) {
            Ok(Step::Data(data)) => {
                assert!(!data.is_empty(), "a piece of content is never empty");
                content.bytes.extend_from_slice(&data);
            }
            Ok(Step::Trailers(trailers)) => {
                content.trailers = lines(&trailers);
                break End::Whole;
            }
            Ok(Step::End) => break End::Whole,
            Ok(Step::More) if arriving.fill(buf) => {}
            Ok(Step::More) => match decoder {
                Decoder::UntilClose => break End::Whole,
                Decoder::Length(_) | Decoder::Chunked(_) => break End::Cut,
            },
            Err(malformed) => break End::Malformed(malformed),
        }
    };
    content
}

/// Names in lower case, and values.
pub fn lines(fields: &Fields) -> Lines {
    fields
        .iter()
        .map(|(name, value)| {
            let name = String::from_utf8_lossy(name).to_ascii_lowercase();
            (name, value.to_vec())
        })
        .collect()
}
