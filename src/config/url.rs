//! The URLs of services, as the file has them.

use http::{HeaderValue, Uri};

use super::{Client, Upstream, error::Problems};

/// Reads `http[s]://host[:port][/base/path][?query]`.
pub(super) fn parse_url(
    path: &str,
    url: &str,
    client: Client,
    problems: &mut Problems,
) -> Option<Upstream> {
    let mut refuse = |why: &str| {
        problems.add(path, format!("{why}: {:?}", masked_url(url)));
        None
    };
    const NOT_A_URL: &str = "not an absolute URL such as \"http://host:port/base/path\"";
    let Ok(uri) = url.parse::<Uri>() else {
        return refuse(NOT_A_URL);
    };
    let tls = match uri.scheme_str() {
        Some("http") => false,
        Some("https") => true,
        Some(_) => return refuse("neither http:// nor https://"),
        None => return refuse(NOT_A_URL),
    };
    let Some(authority) = uri.authority() else {
        return refuse("has no host");
    };
    if authority.as_str().contains('@') {
        return refuse("a user and password here would not be sent to anybody; take them out");
    }
    if url.contains('#') {
        return refuse("has a fragment (#…), which no server ever sees, take it out");
    }
    let host = authority
        .host()
        .trim_start_matches('[')
        .trim_end_matches(']');
    if host.is_empty() {
        return refuse("has no host");
    }
    let port = match (authority.port_u16(), authority.as_str().rsplit_once(':')) {
        (Some(0), _) => return refuse("port 0 cannot be connected to"),
        (Some(port), _) => port,
        // A colon outside of an IPv6 address with nothing usable behind it.
        (None, Some((_, rest))) if !rest.ends_with(']') => {
            return refuse("the port is not a number");
        }
        (None, _) if tls => 443,
        (None, _) => 80,
    };
    let Ok(host_header) = HeaderValue::from_str(authority.as_str()) else {
        return refuse("has no usable host");
    };
    Some(Upstream {
        tls,
        host: host.to_owned(),
        port,
        host_header,
        base_path: match uri.path() {
            "/" => String::new(),
            path => path.to_owned(),
        },
        query: uri
            .query()
            .filter(|query| !query.is_empty())
            .map(str::to_owned),
        client,
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
