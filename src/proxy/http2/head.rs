//! Message heads between what HTTP/2 has (a map, and pseudo-header fields, RFC 9113 section 8.3) and
//! what the pipeline has, which is HTTP/1's.
//!
//! The `h2` crate has refused what is no head at all: fields that belong to a connection, names that are
//! no lower-case tokens, values with CR, LF or NUL, pseudo-header fields that are missing, unknown, twice or
//! late, lengths that do not agree. What it lets pass and an HTTP/1 upstream could understand otherwise is
//! refused here.

use bytes::{Bytes, BytesMut};
use h2::ext::Protocol;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
    header, request,
    uri::{Authority, PathAndQuery, Scheme},
};

use crate::{
    config::Upstream,
    proxy::{
        error::Refusal,
        fields::{Fields, Known, KnownSet, Sink, put_field},
        http1::head::is_token,
        message::{RequestHead, ResponseHead},
        upload::{Message, Upload},
        uri::Target,
        websocket,
    },
};

/// Fields of one message that HTTP/2 is given to say: the map that the `h2` crate wants them in panics beyond
/// 32,768.
pub const MOST_FIELDS: usize = 16 << 10;
/// What makes a handshake of HTTP/1 what it is there, and is not said in HTTP/2 (RFC 8441 section 5).
const WEBSOCKET_KEY: HeaderName = header::SEC_WEBSOCKET_KEY;

/// The head of a request that a client has sent.
///
/// # Errors
/// It is not a request that may be passed on.
pub fn of_request(parts: &request::Parts, ended: bool) -> Result<RequestHead, Refusal> {
    let request::Parts {
        method,
        uri,
        headers,
        extensions,
        ..
    } = parts;
    let tunnel = extensions.get::<Protocol>();
    let mut extra: Vec<(&[u8], Vec<u8>)> = Vec::new();
    if let Some(host) = host(uri, headers)? {
        extra.push((b"host", host));
    }
    if let Some(protocol) = tunnel {
        // The h2 crate takes any text here (RFC 8441 section 4 has a token of RFC 9110 section 7.8).
        if protocol.as_str().is_empty() || !protocol.as_str().bytes().all(is_token) {
            return Err(Refusal::Bad(":protocol is not a token"));
        }
        // What it would be in HTTP/1, which is what the pipeline and most upstreams understand.
        extra.push((b"connection", b"upgrade".to_vec()));
        extra.push((b"upgrade", protocol.as_str().into()));
        extra.push((
            WEBSOCKET_KEY.as_str().as_bytes(),
            websocket::fresh_key().into_bytes(),
        ));
    }
    // What clients split for the sake of compression is one line again (RFC 9113 section 8.2.3).
    let mut cookies = headers.get_all(header::COOKIE).iter();
    if let (Some(first), Some(_)) = (cookies.next(), cookies.next()) {
        let mut joined = first.as_bytes().to_vec();
        for more in headers.get_all(header::COOKIE).iter().skip(1) {
            joined.extend_from_slice(b"; ");
            joined.extend_from_slice(more.as_bytes());
        }
        extra.push((b"cookie", joined));
    }
    let has_cookies = extra.last().is_some_and(|(name, _)| *name == b"cookie");
    let skipped = |name: &HeaderName| {
        *name == header::HOST
            || has_cookies && *name == header::COOKIE
            || tunnel.is_some() && *name == WEBSOCKET_KEY
    };
    let extra = extra.iter().map(|(name, value)| (*name, &value[..]));
    let passed = headers.iter().filter(|(name, _)| !skipped(name));
    let fields = fields(&extra.chain(passed.map(as_bytes)).collect::<Vec<_>>());
    check(&fields, ended)?;
    let method = match tunnel {
        Some(_) => Method::GET,
        None => method.clone(),
    };
    let target = uri.path_and_query().map_or("", PathAndQuery::as_str);
    Ok(RequestHead {
        target: Target::parse(&method, Bytes::copy_from_slice(target.as_bytes()))
            .map_err(Refusal::Bad)?,
        method,
        version: Version::HTTP_2,
        headers: fields,
    })
}

/// Whom the request is for: `:authority`, or `Host` where that is absent. They are the same, or somebody
/// is to be led astray (RFC 9113 section 8.3.1).
fn host(uri: &Uri, headers: &HeaderMap) -> Result<Option<Vec<u8>>, Refusal> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let authority = uri
        .authority()
        .map(|authority| authority.as_str().as_bytes());
    let host = match (authority, hosts.next().map(HeaderValue::as_bytes)) {
        (Some(authority), Some(host)) if !authority.eq_ignore_ascii_case(host) => {
            return Err(Refusal::Bad(
                ":authority and the Host header are not the same",
            ));
        }
        (Some(authority), _) => Some(authority),
        (None, host) => host,
    };
    match hosts.next() {
        Some(_) => Err(Refusal::Bad("there is more than one Host header")),
        None => Ok(host.map(<[u8]>::to_vec)),
    }
}

fn check(fields: &Fields, ended: bool) -> Result<(), Refusal> {
    if !are_named(fields) {
        return Err(Refusal::Bad("a header field has no valid name"));
    }
    // RFC 9113 section 8.2.1.
    let is_blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    if fields
        .iter()
        .any(|(_, value)| is_blank(value.first()) || is_blank(value.last()))
    {
        return Err(Refusal::Bad("a header field begins or ends with a blank"));
    }
    let mut lengths = fields.all(Known::ContentLength);
    match (lengths.next(), lengths.next()) {
        (None, _) => Ok(()),
        (Some(_), Some(_)) => Err(Refusal::Bad("there is more than one Content-Length")),
        (Some(length), None) => match length_of(length) {
            None => Err(Refusal::Bad("its Content-Length is not a number")),
            Some(1..) if ended => Err(Refusal::Bad("its Content-Length is of no content")),
            Some(_) => Ok(()),
        },
    }
}

/// `1*DIGIT` (RFC 9110 section 8.6).
fn length_of(digits: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(digits).ok()?;
    let all_digits = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
    all_digits.then(|| digits.parse().ok()).flatten()
}

/// The content length that a head announces.
pub fn announced(headers: &HeaderMap) -> Option<u64> {
    length_of(headers.get(header::CONTENT_LENGTH)?.as_bytes())
}

/// The head of a response that an upstream has sent; `None` if its fields are none.
pub fn of_response(status: StatusCode, headers: &HeaderMap) -> Option<ResponseHead> {
    Some(ResponseHead {
        status,
        reason: None,
        version: Version::HTTP_2,
        headers: of_trailers(headers)?,
    })
}

/// Fields of either side, such as trailers; `None` if some are none.
pub fn of_trailers(headers: &HeaderMap) -> Option<Fields> {
    let fields = fields(&headers.iter().map(as_bytes).collect::<Vec<_>>());
    are_named(&fields).then_some(fields)
}

/// Whether all names are tokens (RFC 9110 section 5.1): the `http` crate takes quotes in them too.
fn are_named(fields: &Fields) -> bool {
    fields
        .iter()
        .all(|(name, _)| name.iter().copied().all(is_token))
}

/// Fields as lines of HTTP/1.
fn fields(all: &[(&[u8], &[u8])]) -> Fields {
    let length = all.iter().map(|(name, value)| name.len() + value.len() + 4);
    let mut lines = BytesMut::with_capacity(length.sum());
    for (name, value) in all {
        put_field(&mut lines, name, value);
    }
    let lines = lines.freeze();
    let mut fields = Fields::within(lines.clone(), all.len());
    let mut at = 0;
    for (name, value) in all {
        let value_at = at + name.len() + 2;
        let end = value_at + value.len();
        fields.add(&lines[at..at + name.len()], &lines[value_at..end]);
        at = end + 2;
    }
    fields
}

fn as_bytes<'a>((name, value): (&'a HeaderName, &'a HeaderValue)) -> (&'a [u8], &'a [u8]) {
    (name.as_str().as_bytes(), value.as_bytes())
}

/// A request as an upstream is to get it, with `protocol` to begin a tunnel; `None` where HTTP/2 cannot say it.
pub fn request(
    upstream: &Upstream,
    message: &Message<'_>,
    protocol: Option<&[u8]>,
    upload: &Upload,
) -> Option<Request<()>> {
    let RequestHead {
        method,
        target,
        headers,
        ..
    } = message.head;
    let mut path = BytesMut::new();
    target.put_on(upstream, &mut path);
    let mut uri = http::uri::Parts::default();
    uri.scheme = Some(match upstream.tls {
        true => Scheme::HTTPS,
        false => Scheme::HTTP,
    });
    uri.authority = Some(Authority::try_from(upstream.host_header.as_bytes()).ok()?);
    uri.path_and_query = Some(PathAndQuery::from_maybe_shared(path.freeze()).ok()?);
    let mut request = Request::new(());
    *request.uri_mut() = Uri::from_parts(uri).ok()?;
    *request.method_mut() = method.clone();
    *request.version_mut() = Version::HTTP_2;
    let mut map = map(headers, message.ours())?;
    message.put_ours(&mut map);
    if let Some(length) = upload.said_length(message.head) {
        map.insert(header::CONTENT_LENGTH, length.into());
    }
    if let Some(protocol) = protocol {
        *request.method_mut() = Method::CONNECT;
        let protocol = std::str::from_utf8(protocol).ok()?;
        request.extensions_mut().insert(Protocol::from(protocol));
        map.remove(WEBSOCKET_KEY);
    }
    *request.headers_mut() = map;
    Some(request)
}

/// A response as a client is to get it; `None` if it has [too many](MOST_FIELDS) fields.
pub fn response(head: &ResponseHead) -> Option<Response<()>> {
    let mut response = Response::new(());
    *response.status_mut() = head.status;
    *response.headers_mut() = map(&head.headers, KnownSet::of(&[]))?;
    Some(response)
}

/// Trailers as either side is to get them; `None` if they are too many.
pub fn trailers(fields: &Fields) -> Option<HeaderMap> {
    map(fields, KnownSet::of(&[]))
}

fn map(fields: &Fields, skipped: KnownSet) -> Option<HeaderMap> {
    if fields.len() > MOST_FIELDS {
        return None;
    }
    let mut map = HeaderMap::with_capacity(fields.len() + 8);
    for (name, value) in fields.iter_without(skipped) {
        // Both were read by rules that are no less strict; what is not a field to HTTP/2 is not passed on.
        let name = HeaderName::from_bytes(name);
        let value = HeaderValue::from_maybe_shared(value);
        if let (Ok(name), Ok(value)) = (name, value) {
            map.append(name, value);
        }
    }
    Some(map)
}

impl Sink for HeaderMap {
    fn put(&mut self, start: &'static [u8], value: &[&[u8]]) {
        let name = start.strip_suffix(b": ").unwrap_or(start);
        let name = HeaderName::from_bytes(name).expect("what we say ourselves has a valid name");
        if let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from(value.concat())) {
            self.append(name, value);
        }
    }
}
