//! What of a message head is ours, and what is passed on.
//!
//! First everything that belongs to one connection only is taken off (RFC 9110 section 7.6.1), then
//! what we add is added; never the other way round, or a client could have our additions removed by
//! naming them in `Connection`.

use std::net::IpAddr;

use bytes::{BufMut, BytesMut};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Version,
    header::{
        AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE,
        CONTENT_TYPE, COOKIE, EXPECT, HOST, MAX_FORWARDS, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION,
        RANGE, SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
    },
    uri::Authority,
};

use super::{error::Refusal, http1::head, message::RequestHead};

/// Who decides, where the client may.
pub const X_CANARY: HeaderName = HeaderName::from_static("x-canary");
/// Says to the sidecar that it was not given the whole body.
pub const X_CANARY_BODY: HeaderName = HeaderName::from_static("x-canary-body");
/// The addresses that a request came through.
pub const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// What belongs to one connection whether `Connection` names it or not.
const HOP_BY_HOP: [HeaderName; 8] = [
    CONNECTION,
    PROXY_CONNECTION,
    KEEP_ALIVE,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// What `Connection` cannot have removed: the framing and routing of the message hang on it.
const NOT_REMOVABLE: [HeaderName; 3] = [HOST, CONTENT_LENGTH, TRAILER];

/// What may not come after the content (RFC 9110 section 6.5.1): framing, routing, authentication,
/// and what says how the content is to be read.
const NOT_IN_TRAILERS: [HeaderName; 22] = [
    AUTHORIZATION,
    CACHE_CONTROL,
    CONNECTION,
    CONTENT_ENCODING,
    CONTENT_LENGTH,
    CONTENT_RANGE,
    CONTENT_TYPE,
    COOKIE,
    EXPECT,
    HOST,
    KEEP_ALIVE,
    MAX_FORWARDS,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    PROXY_CONNECTION,
    RANGE,
    SET_COOKIE,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    X_CANARY,
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
    let mut hosts = head.headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) if is_valid_host(host.as_bytes()) => Ok(()),
        (None, _) if head.version < Version::HTTP_11 => Ok(()),
        (None, _) => Err(Refusal::Bad("the Host header is missing")),
        (Some(_), Some(_)) => Err(Refusal::Bad("there is more than one Host header")),
        (Some(_), None) => Err(Refusal::Bad("the Host header is not a host")),
    }
}

/// `host [ ":" port ]` (RFC 9110 section 7.2). It may be empty, which is what RFC 9112 section 3.2 has
/// clients send where the target has no authority.
pub fn is_valid_host(host: &[u8]) -> bool {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-');
    if host.iter().all(plain) {
        return true;
    }
    Authority::try_from(host).is_ok_and(|host| {
        let port = &host.as_str()[host.host().len()..];
        !host.as_str().contains('@') && (matches!(port, "" | ":") || host.port_u16().is_some())
    })
}

/// The protocol that a request asks to switch to, if it may: a tunnel is made for HTTP/1.1 requests
/// without a body, and never to `h2c`, which would take the connection out of our sight.
///
/// # Errors
/// A request with a body: whose bytes would be whose after the switch?
pub fn wanted_upgrade(head: &RequestHead, has_body: bool) -> Result<Option<HeaderValue>, Refusal> {
    let Some(protocol) = head.headers.get(UPGRADE) else {
        return Ok(None);
    };
    let named = connection_says(&head.headers, "upgrade");
    let h2c = || {
        protocol.to_str().is_ok_and(|protocols| {
            protocols
                .split(',')
                .any(|one| one.trim().eq_ignore_ascii_case("h2c"))
        })
    };
    if !named || head.version != Version::HTTP_11 || h2c() {
        return Ok(None);
    }
    if has_body {
        return Err(Refusal::Bad(
            "a request that asks for an upgrade cannot have a body",
        ));
    }
    Ok(Some(protocol.clone()))
}

/// Takes off everything that belongs to this connection only, and what `Connection` names.
/// `TE: trailers` stays: it is the one `TE` that every hop understands.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if let Some(connection) = headers.get(CONNECTION) {
        // The usual values name no header, or one that goes anyway.
        let usual = [
            &b"keep-alive"[..],
            b"close",
            b"Keep-Alive",
            b"Upgrade",
            b"upgrade",
        ];
        let several = headers.get_all(CONNECTION).iter().nth(1).is_some();
        if several || !usual.contains(&connection.as_bytes()) {
            let named: Vec<HeaderName> = connection_tokens(headers)
                .filter_map(|token| token.parse().ok())
                .filter(|name| !NOT_REMOVABLE.contains(name))
                .collect();
            let trailers = named.contains(&TE) && accepts_trailers(headers);
            for name in named {
                headers.remove(name);
            }
            if trailers {
                headers.insert(TE, HeaderValue::from_static("trailers"));
            }
        }
    }
    let trailers = headers.contains_key(TE) && accepts_trailers(headers);
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// Makes a stripped request head ready for any upstream: adds the client's address to
/// `X-Forwarded-For`, and takes off `Expect`, which we answer ourselves.
pub fn prepare(headers: &mut HeaderMap, client: &HeaderValue) {
    headers.remove(EXPECT);
    let mut earlier = headers.get_all(X_FORWARDED_FOR).iter();
    let value = match (earlier.next(), earlier.next()) {
        (None, _) => client.clone(),
        _ => {
            let mut joined = Vec::new();
            for value in headers.get_all(X_FORWARDED_FOR) {
                joined.extend_from_slice(value.as_bytes());
                joined.extend_from_slice(b", ");
            }
            joined.extend_from_slice(client.as_bytes());
            HeaderValue::from_bytes(&joined).unwrap_or_else(|_| client.clone())
        }
    };
    headers.insert(X_FORWARDED_FOR, value);
}

/// Asks for the switch again, on our own connection to the upstream or the client.
pub fn put_upgrade(head: &mut BytesMut, protocol: &HeaderValue) {
    head.put_slice(b"connection: upgrade\r\n");
    head::put_field(head, &UPGRADE, protocol.as_bytes());
}

/// Takes off the trailer fields that may not be any.
pub fn keep_allowed_trailers(trailers: &mut HeaderMap) {
    for name in &NOT_IN_TRAILERS {
        trailers.remove(name);
    }
}

/// Whether `Connection` holds this token.
pub fn connection_says(headers: &HeaderMap, token: &str) -> bool {
    connection_tokens(headers).any(|one| one.eq_ignore_ascii_case(token))
}

/// The address of a client as `X-Forwarded-For` shows it. An IPv4 client of a dual-stack listener is
/// shown as IPv4.
pub fn forwarded_for(client: IpAddr) -> HeaderValue {
    HeaderValue::from_str(&client.to_canonical().to_string())
        .expect("an IP address is made of digits, letters, dots and colons")
}

/// Headers as a JSON object for the debug log: what could be used to act as the client is not shown.
pub fn masked(headers: &HeaderMap) -> String {
    const SECRET: [HeaderName; 4] = [AUTHORIZATION, PROXY_AUTHORIZATION, COOKIE, SET_COOKIE];
    let shown = headers.keys().map(|name| {
        let values: Vec<_> = match SECRET.contains(name) {
            true => vec!["***".into()],
            false => headers
                .get_all(name)
                .iter()
                .map(|value| String::from_utf8_lossy(value.as_bytes()))
                .collect(),
        };
        (name.to_string(), serde_json::Value::from(values.join(", ")))
    });
    serde_json::Value::Object(shown.collect()).to_string()
}

fn accepts_trailers(headers: &HeaderMap) -> bool {
    headers
        .get_all(TE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| {
            value
                .split(',')
                .any(|coding| coding.trim().eq_ignore_ascii_case("trailers"))
        })
}

fn connection_tokens(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::uri::Target;

    fn map(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        lines
            .iter()
            .map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                )
            })
            .collect()
    }

    fn stripped(lines: &[(&'static str, &'static str)]) -> Vec<String> {
        let mut headers = map(lines);
        strip_hop_by_hop(&mut headers);
        let mut left: Vec<String> = headers.keys().map(ToString::to_string).collect();
        left.sort();
        left
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
            ["content-length", "host"]
        );
        assert_eq!(
            stripped(&[("connection", "x-a"), ("connection", "x-b"), ("x-b", "1")]),
            [""; 0]
        );
    }

    #[test]
    fn te_trailers_stays_and_other_codings_go() {
        for connection in ["te", "keep-alive", "close, TE"] {
            let mut headers = map(&[("connection", connection), ("te", "gzip, trailers")]);
            strip_hop_by_hop(&mut headers);
            assert_eq!(headers.get(TE).unwrap(), "trailers", "{connection}");
        }
    }

    #[test]
    fn the_client_address_is_appended_to_what_was_there() {
        let client = forwarded_for("::ffff:192.0.2.1".parse().unwrap());
        let mut headers = HeaderMap::new();
        prepare(&mut headers, &client);
        assert_eq!(headers[X_FORWARDED_FOR], "192.0.2.1");
        let mut headers = map(&[("x-forwarded-for", "a, b"), ("x-forwarded-for", "c")]);
        prepare(&mut headers, &client);
        assert_eq!(headers[X_FORWARDED_FOR], "a, b, c, 192.0.2.1");
        assert_eq!(headers.get_all(X_FORWARDED_FOR).iter().count(), 1);
    }

    #[test]
    fn the_log_shows_no_credentials() {
        let headers = map(&[
            ("cookie", "s=1"),
            ("authorization", "Basic eA=="),
            ("accept", "*/*"),
        ]);
        let shown = masked(&headers);
        assert_eq!(
            shown,
            r#"{"cookie":"***","authorization":"***","accept":"*/*"}"#
        );
    }

    fn head(version: Version, lines: &[(&'static str, &'static str)]) -> RequestHead {
        RequestHead {
            method: Method::GET,
            target: Target::parse(&Method::GET, "/".into()).unwrap(),
            version,
            headers: map(lines),
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
}
