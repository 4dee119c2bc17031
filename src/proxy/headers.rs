//! What of a message head is ours, and what is passed on.
//!
//! First everything that belongs to one connection only is taken off (RFC 9110 section 7.6.1), then
//! what we add is added; never the other way round, or a client could have our additions removed by
//! naming them in `Connection`.

use std::{collections::HashSet, net::Ipv6Addr};

use bytes::{BufMut, Bytes, BytesMut};
use http::{Method, Version, uri::Authority};

use super::{
    error::Refusal,
    fields::{Fields, Known, KnownSet, put_field},
    message::{RequestHead, ResponseHead},
};

/// What belongs to one connection whether `Connection` names it or not.
const HOP_BY_HOP: KnownSet = KnownSet::of(&[
    Known::Connection,
    Known::ProxyConnection,
    Known::KeepAlive,
    Known::ProxyAuthenticate,
    Known::ProxyAuthorization,
    Known::Te,
    Known::TransferEncoding,
    Known::Upgrade,
]);

/// What `Connection` cannot have removed: the framing and routing of the message hang on it.
const NOT_REMOVABLE: KnownSet = KnownSet::of(&[Known::Host, Known::ContentLength, Known::Trailer]);

/// What may not come after the content (RFC 9110 section 6.5.1): framing, routing, authentication,
/// and what says how the content is to be read.
const NOT_IN_TRAILERS: [&str; 28] = [
    "authorization",
    "cache-control",
    "connection",
    "content-encoding",
    "content-length",
    "content-range",
    "content-type",
    "cookie",
    "expect",
    "forwarded",
    "host",
    "keep-alive",
    "max-forwards",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "range",
    "set-cookie",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-canary",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-proto",
    "x-request-id",
];

/// What could be used to act as the client.
const SECRET: [&str; 4] = [
    "authorization",
    "proxy-authorization",
    "cookie",
    "set-cookie",
];

/// Refuses what may not be forwarded at all.
///
/// # Errors
/// The refusal that the client gets.
pub fn vet(head: &RequestHead) -> Result<(), Refusal> {
    if head.method == Method::CONNECT || head.method == Method::TRACE {
        return Err(Refusal::Method);
    }
    // RFC 9112 section 3.2: exactly one valid Host, or 400.
    let mut hosts = head.headers.all(Known::Host);
    match (hosts.next(), hosts.next()) {
        (Some(host), None) if is_valid_host(host) => Ok(()),
        (None, _) if head.version < Version::HTTP_11 => Ok(()),
        (None, _) => Err(Refusal::Bad("the Host header is missing")),
        (Some(_), Some(_)) => Err(Refusal::Bad("there is more than one Host header")),
        (Some(_), None) => Err(Refusal::Bad("the Host header is not a host")),
    }
}

/// `host [ ":" port ]` (RFC 9110 section 7.2). It may be empty, which is what RFC 9112 section 3.2 has
/// clients send where the target has no authority.
pub fn is_valid_host(host: &[u8]) -> bool {
    // Nearly all of them are a name or an IPv4 address, and perhaps a port.
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-');
    let name = host.iter().position(|byte| !plain(byte));
    match name.map(|end| &host[end..]) {
        None => return true,
        Some([b':', port @ ..]) if port.len() <= 4 && port.iter().all(u8::is_ascii_digit) => {
            return true;
        }
        Some(_) => {}
    }
    Authority::try_from(host).is_ok_and(|host| {
        let port = &host.as_str()[host.host().len()..];
        let is_port = |port: &str| {
            port.is_empty()
                || port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok()
        };
        let port_is_valid = port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
        // Brackets are for IPv6 addresses (RFC 3986 section 3.2.2).
        let name_is_valid = match host.host().strip_prefix('[') {
            Some(literal) => literal
                .strip_suffix(']')
                .is_some_and(|literal| literal.parse::<Ipv6Addr>().is_ok()),
            None => !host.as_str().contains(['[', ']', '@']),
        };
        name_is_valid && !host.as_str().contains('@') && port_is_valid
    })
}

/// The protocol that a request asks to switch to, if it may: a tunnel is made for HTTP/1.1 requests
/// without a body, and never to `h2c`, which would take the connection out of our sight.
///
/// # Errors
/// A request with a body: whose bytes would be whose after the switch?
pub fn wanted_upgrade(head: &RequestHead, has_body: bool) -> Result<Option<Bytes>, Refusal> {
    let Some(protocol) = head.headers.get_bytes(Known::Upgrade) else {
        return Ok(None);
    };
    let h2c =
        || tokens(&head.headers, Known::Upgrade).any(|token| token.eq_ignore_ascii_case(b"h2c"));
    let named = connection_says(&head.headers, "upgrade");
    if !named || head.version < Version::HTTP_11 || h2c() {
        return Ok(None);
    }
    if has_body {
        return Err(Refusal::Bad(
            "a request that asks for an upgrade cannot have a body",
        ));
    }
    Ok(Some(protocol))
}

/// Takes off everything that belongs to this connection only, and what `Connection` names. Whether the
/// message said `TE: trailers`, the one `TE` that every hop understands.
pub fn strip_hop_by_hop(headers: &mut Fields) -> bool {
    if !headers.has_any(HOP_BY_HOP) {
        return false;
    }
    let trailers =
        tokens(headers, Known::Te).any(|coding| coding.eq_ignore_ascii_case(b"trailers"));
    // The usual tokens name no header, or one that goes anyway.
    let usual = [&b"keep-alive"[..], b"close", b"upgrade", b"te"];
    let is_usual = |token: &&[u8]| usual.iter().any(|usual| usual.eq_ignore_ascii_case(token));
    let named: HashSet<Vec<u8>> = tokens(headers, Known::Connection)
        .filter(|token| !is_usual(token))
        .map(<[u8]>::to_ascii_lowercase)
        .collect();
    if !named.is_empty() {
        headers.remove_named(&named, NOT_REMOVABLE);
    }
    headers.remove(HOP_BY_HOP);
    trailers
}

/// Asks for the switch again, on our own connection to the upstream or the client.
pub fn put_upgrade(head: &mut BytesMut, protocol: &[u8]) {
    head.put_slice(b"connection: upgrade\r\n");
    put_field(head, b"upgrade", protocol);
}

/// Takes off the trailer fields that may not be any.
pub fn keep_allowed_trailers(trailers: &mut Fields) {
    let forbidden = NOT_IN_TRAILERS.map(|name| name.as_bytes().to_vec());
    trailers.remove_named(&forbidden.into(), KnownSet::of(&[]));
}

/// The value of a cookie; of several with one name the first one counts (RFC 6265 section 5.4).
pub fn cookie<'a>(headers: &'a Fields, name: &'a [u8]) -> Option<&'a [u8]> {
    cookies(headers, name).next()
}

/// The values of all cookies of a name.
pub fn cookies<'a>(headers: &'a Fields, name: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    headers
        .all(Known::Cookie)
        .flat_map(|value| value.split(|&byte| byte == b';'))
        .filter_map(move |pair| {
            let pair = pair.trim_ascii();
            pair.strip_prefix(name)?.strip_prefix(b"=")
        })
}

/// Whether `Connection` holds this token.
pub fn connection_says(headers: &Fields, token: &str) -> bool {
    tokens(headers, Known::Connection).any(|one| one.eq_ignore_ascii_case(token.as_bytes()))
}

/// Whether a response is gRPC's (grpc/doc/PROTOCOL-HTTP2.md): `application/grpc`, perhaps with `+` and what
/// messages are written in, by HTTP/2. gRPC-Web is something else, which says its status in its content.
pub fn is_grpc(head: &ResponseHead) -> bool {
    const GRPC: &[u8] = b"application/grpc";
    if head.version != Version::HTTP_2 {
        return false;
    }
    head.headers
        .named("content-type")
        .next()
        .is_some_and(|kind| {
            let (start, rest) = kind.split_at(GRPC.len().min(kind.len()));
            start.eq_ignore_ascii_case(GRPC)
                && matches!(rest.first(), None | Some(b'+' | b';' | b' '))
        })
}

/// What gRPC says of how a call ended; of what is no number, that this is not known (2).
pub fn grpc_status(headers: &Fields) -> Option<u32> {
    let code = headers.named("grpc-status").next()?;
    let code = std::str::from_utf8(code)
        .ok()
        .and_then(|code| code.parse().ok());
    Some(code.unwrap_or(2))
}

/// Headers as a JSON object for the debug log: what could be used to act as the client is not shown.
pub fn masked(headers: &Fields) -> String {
    let mut shown = serde_json::Map::new();
    for (name, value) in headers.iter() {
        let name = String::from_utf8_lossy(name).to_ascii_lowercase();
        let value = match SECRET.contains(&name.as_str()) {
            true => "***".into(),
            false => String::from_utf8_lossy(value),
        };
        let joined = match shown.get(&name).and_then(serde_json::Value::as_str) {
            Some("***") => continue,
            Some(earlier) => format!("{earlier}, {value}"),
            None => value.into_owned(),
        };
        shown.insert(name, joined.into());
    }
    serde_json::Value::Object(shown).to_string()
}

/// The members of a list (RFC 9110 section 5.6.1) over all lines of a field. Whatever bytes one of
/// them holds, it hides no other.
fn tokens(headers: &Fields, known: Known) -> impl Iterator<Item = &[u8]> {
    headers
        .all(known)
        .flat_map(|value| value.split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::{fields::tests::fields, uri::Target};

    fn stripped(lines: &[(&str, &str)]) -> Vec<String> {
        let mut headers = fields(lines);
        strip_hop_by_hop(&mut headers);
        headers
            .iter()
            .map(|(name, _)| String::from_utf8(name.to_vec()).unwrap())
            .collect()
    }

    #[test]
    fn what_belongs_to_the_connection_is_removed() {
        assert_eq!(
            stripped(&[
                ("connection", "keep-alive"),
                ("keep-alive", "timeout=5"),
                ("proxy-connection", "keep-alive"),
                ("proxy-authenticate", "Basic"),
                ("proxy-authorization", "Basic eA=="),
                ("te", "gzip"),
                ("transfer-encoding", "chunked"),
                ("upgrade", "websocket"),
                ("trailer", "x-sum"),
                ("x-other", "stays"),
            ]),
            ["trailer", "x-other"]
        );
    }

    #[test]
    fn what_connection_names_is_removed_but_for_framing_and_host() {
        assert_eq!(
            stripped(&[
                (
                    "connection",
                    "close, X-Canary ,x-secret,, Host, content-length, bad name"
                ),
                ("x-canary", "true"),
                ("x-secret", "1"),
                ("host", "h"),
                ("content-length", "3"),
            ]),
            ["host", "content-length"]
        );
        assert_eq!(
            stripped(&[("connection", "x-a"), ("connection", "x-b"), ("x-b", "1")]),
            [""; 0]
        );
    }

    #[test]
    fn te_trailers_is_told_and_other_codings_are_not() {
        for connection in ["te", "keep-alive", "close, TE"] {
            let mut headers = fields(&[("connection", connection), ("te", "gzip, trailers")]);
            assert!(strip_hop_by_hop(&mut headers), "{connection}");
            assert!(headers.is_empty());
        }
        assert!(!strip_hop_by_hop(&mut fields(&[("te", "gzip")])));
    }

    #[test]
    fn odd_bytes_hide_no_token() {
        let mut headers = fields(&[("connection", "\u{e4}, x-a"), ("x-a", "1")]);
        assert!(connection_says(&headers, "X-A"));
        strip_hop_by_hop(&mut headers);
        assert!(headers.is_empty());
    }

    #[test]
    fn the_log_shows_no_credentials() {
        let headers = fields(&[
            ("cookie", "s=1"),
            ("Cookie", "t=2"),
            ("x", "1"),
            ("authorization", "Basic eA=="),
            ("accept", "*/*"),
            ("X", "2"),
        ]);
        let shown = masked(&headers);
        assert_eq!(
            shown,
            r#"{"cookie":"***","x":"1, 2","authorization":"***","accept":"*/*"}"#
        );
    }

    fn head(version: Version, lines: &[(&str, &str)]) -> RequestHead {
        RequestHead {
            method: Method::GET,
            target: Target::parse(&Method::GET, "/".into()).unwrap(),
            version,
            headers: fields(lines),
        }
    }

    #[test]
    fn exactly_one_valid_host() {
        for (lines, good) in [
            (&[("host", "example.org")][..], true),
            (&[("host", "example.org:8080")], true),
            (&[("host", "[::1]:80")], true),
            (&[("host", "")], true),
            (&[], false),
            (&[("host", "a"), ("host", "a")], false),
            (&[("host", "a b")], false),
            (&[("host", "a/b")], false),
            (&[("host", "u@h")], false),
            (&[("host", "a,b:x")], false),
            (&[("host", "a:+80")], false),
            (&[("host", ",,[1]")], false),
            (&[("host", "[1]")], false),
            (&[("host", "u@[::1]")], false),
            (&[("host", "a:")], true),
        ] {
            assert_eq!(
                vet(&head(Version::HTTP_11, lines)).is_ok(),
                good,
                "{lines:?}"
            );
        }
        assert!(vet(&head(Version::HTTP_10, &[])).is_ok());
        assert!(vet(&head(Version::HTTP_10, &[("host", "a"), ("host", "b")])).is_err());
    }

    #[test]
    fn an_upgrade_needs_connection_http_1_1_and_no_body_and_is_never_h2c() {
        let websocket = [
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
        ];
        let wanted = |version, lines: &[_], body| wanted_upgrade(&head(version, lines), body);
        assert_eq!(
            wanted(Version::HTTP_11, &websocket, false)
                .unwrap()
                .unwrap(),
            "websocket"
        );
        assert!(wanted(Version::HTTP_11, &websocket, true).is_err());
        assert_eq!(wanted(Version::HTTP_10, &websocket, false).unwrap(), None);
        assert_eq!(
            wanted(Version::HTTP_11, &websocket[1..], true).unwrap(),
            None
        );
        for h2c in ["h2c", "websocket, H2C"] {
            let lines = [("connection", "upgrade, http2-settings"), ("upgrade", h2c)];
            assert_eq!(wanted(Version::HTTP_11, &lines, false).unwrap(), None);
        }
    }

    #[test]
    fn the_first_cookie_of_a_name_counts() {
        let headers = fields(&[("Cookie", "a=1; sid=x=y;sid=2"), ("cookie", "late=3")]);
        for (name, expected) in [
            ("a", Some(&b"1"[..])),
            ("sid", Some(b"x=y")),
            ("late", Some(b"3")),
            ("si", None),
            ("A", None),
        ] {
            assert_eq!(cookie(&headers, name.as_bytes()), expected, "{name}");
        }
    }
}
