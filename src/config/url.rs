//! The URLs of services, as the file has them.

use std::{fmt, sync::Arc};

use http::{HeaderValue, Uri, uri::PathAndQuery};

use super::{Address, Client, ClientTls, Endpoint, Upstream, error::Problems};

/// The longest path of a unix socket, in bytes: what `sun_path` has room for beside the zero at its end
/// (unix(7)).
const LONGEST_SOCKET: usize = 107;

/// Reads `http[s]://host[:port][/base/path][?query]` or, as nginx writes it,
/// `http[s]://unix:/path/of/socket[:[/base/path]][?query]`.
pub(super) fn parse_url(
    path: &str,
    url: &str,
    client: Client,
    client_tls: &Arc<ClientTls>,
    problems: &mut Problems,
) -> Option<Upstream> {
    let read = match unix_socket(url) {
        Some((tls, rest)) => read_unix(url, tls, rest),
        None => read_tcp(url),
    };
    let target = read
        .map_err(|why| problems.add(path, format!("{why}: {:?}", masked_text(url))))
        .ok()?;
    Some(Upstream {
        tls: target.tls,
        address: target.address,
        host_header: target.host_header,
        base_path: match target.base.as_ref().map_or("/", PathAndQuery::path) {
            "/" => String::new(),
            path => path.to_owned(),
        },
        query: target
            .base
            .as_ref()
            .and_then(PathAndQuery::query)
            .filter(|query| !query.is_empty())
            .map(str::to_owned),
        client,
        client_tls: Arc::clone(client_tls),
    })
}

/// Whether TLS is spoken to who has this URL, whatever else is wrong with it.
pub(super) fn is_https(url: &Option<String>) -> bool {
    let scheme = url.as_deref().unwrap_or_default().trim().get(..6);
    scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case("https:"))
}

/// What a collector's base URL is followed by, as `OTEL_EXPORTER_OTLP_ENDPOINT` is (OpenTelemetry, *OTLP
/// Exporter Configuration*).
const SPANS: &str = "/v1/traces";

/// Reads the base URL of a collector: `http[s]://host[:port][/base/path][?query]`.
pub(super) fn parse_endpoint(path: &str, url: &str, problems: &mut Problems) -> Option<Endpoint> {
    read_endpoint(url)
        .map_err(|why| problems.add(path, format!("{why}: {:?}", masked_text(url))))
        .ok()
}

fn read_endpoint(url: &str) -> Result<Endpoint, &'static str> {
    let unix = || Err("is a unix socket, and spans go by TCP; write \"http://127.0.0.1:4318\"");
    if url.starts_with("unix:") || unix_socket(url).is_some_and(|(_, path)| path.starts_with('/')) {
        return unix();
    }
    let target = read_tcp(url)?;
    let Address::Tcp { host, port } = target.address else {
        return unix();
    };
    let base = target.base.as_ref().map_or("/", PathAndQuery::path);
    let base = base.trim_end_matches('/');
    if base.ends_with(SPANS) {
        return Err("ends with /v1/traces, which is appended to it; take that out");
    }
    let query = target.base.as_ref().and_then(PathAndQuery::query);
    let path = match query {
        None | Some("") => format!("{base}{SPANS}"),
        Some(query) => format!("{base}{SPANS}?{query}"),
    };
    Ok(Endpoint {
        tls: target.tls,
        host,
        port,
        host_header: target.host_header,
        path: path.parse().map_err(|_| "has no usable path")?,
    })
}

/// What a URL says.
struct Target {
    tls: bool,
    address: Address,
    host_header: HeaderValue,
    base: Option<PathAndQuery>,
}

const FRAGMENT: &str = "has a fragment (#…), which no server ever sees, take it out";

fn read_tcp(url: &str) -> Result<Target, &'static str> {
    const NOT_A_URL: &str = "not an absolute URL such as \"http://host:port/base/path\"";
    if url.starts_with("unix:") {
        return Err("a unix socket is written as in \"http://unix:/run/app.sock:/base/path\"");
    }
    let uri: Uri = url.parse().map_err(|_| NOT_A_URL)?;
    let tls = match uri.scheme_str() {
        Some("http") => false,
        Some("https") => true,
        Some(_) => return Err("neither http:// nor https://"),
        None => return Err(NOT_A_URL),
    };
    let authority = uri.authority().ok_or("has no host")?;
    if authority.as_str().contains('@') {
        return Err("a user and password here would not be sent to anybody; take them out");
    }
    if url.contains('#') {
        return Err(FRAGMENT);
    }
    let host = authority
        .host()
        .trim_start_matches('[')
        .trim_end_matches(']');
    if host.is_empty() {
        return Err("has no host");
    }
    let port = match (authority.port_u16(), authority.as_str().rsplit_once(':')) {
        (Some(0), _) => return Err("port 0 cannot be connected to"),
        (Some(port), _) => port,
        // A colon outside of an IPv6 address with nothing usable behind it.
        (None, Some((_, rest))) if !rest.ends_with(']') => {
            return Err("the port is not a number");
        }
        (None, _) if tls => 443,
        (None, _) => 80,
    };
    Ok(Target {
        tls,
        address: Address::Tcp {
            host: host.to_owned(),
            port,
        },
        host_header: HeaderValue::from_str(authority.as_str()).map_err(|_| "has no usable host")?,
        base: uri.path_and_query().cloned(),
    })
}

/// Whether TLS is spoken over the unix socket that this names, and what is written behind `unix:`.
fn unix_socket(url: &str) -> Option<(bool, &str)> {
    let (scheme, rest) = url.split_once("://")?;
    let tls = scheme.eq_ignore_ascii_case("https");
    let rest = rest.strip_prefix("unix:")?;
    let is_ours = tls || scheme.eq_ignore_ascii_case("http");
    // A host that is called so has a port behind it.
    let is_socket = is_ours && !rest.starts_with(|c: char| c.is_ascii_digit());
    is_socket.then_some((tls, rest))
}

/// The colon behind the socket's path is what ends it; a question mark does it too, where there is no base.
fn read_unix(url: &str, tls: bool, rest: &str) -> Result<Target, &'static str> {
    if url.contains('#') {
        return Err(FRAGMENT);
    }
    let end = rest.find([':', '?']).unwrap_or(rest.len());
    let (socket, base) = rest.split_at(end);
    let base = base.strip_prefix(':').unwrap_or(base);
    if socket.is_empty() {
        return Err(
            "names no unix socket; write it as in \"http://unix:/run/app.sock:/base/path\"",
        );
    }
    if !socket.starts_with('/') {
        return Err(
            "the path of the unix socket is not absolute; start it with a slash, as in \
                    \"http://unix:/run/app.sock\"",
        );
    }
    if socket.ends_with('/') {
        return Err(
            "the path of the unix socket ends with a slash; a base path stands behind a \
                    colon, as in \"http://unix:/run/app.sock:/base/path\"",
        );
    }
    if socket.len() > LONGEST_SOCKET {
        return Err(
            "the path of the unix socket is longer than the 107 bytes that the system takes; \
                    give the socket a shorter one",
        );
    }
    if socket.contains('\0') {
        return Err("there is a zero byte in the path of the unix socket; take it out");
    }
    const NOT_A_BASE: &str = "what stands behind the unix socket is no base path; start it with a \
                              slash, as in \"http://unix:/run/app.sock:/base/path\"";
    let base = match base {
        "" => None,
        base if base.starts_with(['/', '?']) => Some(base.parse().map_err(|_| NOT_A_BASE)?),
        _ => return Err(NOT_A_BASE),
    };
    Ok(Target {
        tls,
        address: Address::Unix(socket.into()),
        host_header: HeaderValue::from_static("localhost"),
        base,
    })
}

/// A URL whose credentials and query, where keys for APIs live, are not shown.
pub(super) fn masked_url(url: &str) -> String {
    let (url, query) = match url.split_once('?') {
        Some((url, _)) => (url, "?***"),
        None => (url, ""),
    };
    let start = url.find("://").map_or(0, |at| at + 3);
    let end = url[start..].find('/').map_or(url.len(), |at| start + at);
    match url[start..end].rfind('@') {
        Some(at) => format!("{}***{}{query}", &url[..start], &url[start + at..]),
        None => format!("{url}{query}"),
    }
}

/// The same of what is no URL: all that could be credentials is not shown.
pub(super) fn masked_text(text: &str) -> String {
    let masked = masked_url(text);
    let start = masked.find("://").map_or(0, |at| at + 3);
    match masked[start..].rfind('@') {
        Some(at) => format!("{}***{}", &masked[..start], &masked[start + at..]),
        None => masked,
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream")
            .field("tls", &self.tls)
            .field("address", &self.address)
            .field("host_header", &self.host_header)
            .field("base_path", &self.base_path)
            .field("query", &self.query.as_ref().map(|_| "***"))
            .field("client", &self.client)
            .field("client_tls", &self.client_tls)
            .finish()
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("tls", &self.tls)
            .field("host", &self.host)
            .field("port", &self.port)
            .field("host_header", &self.host_header)
            .field("path", &masked_url(self.path.as_str()))
            .finish()
    }
}

#[cfg(test)]
mod tests;
