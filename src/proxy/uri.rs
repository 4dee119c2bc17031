//! Request targets: the prefix that is trimmed, and the base that is put before.
//!
//! Bytes are never decoded, cleaned or re-encoded: `%2F`, `//` and `..` reach the upstream as the
//! client wrote them.

use http::uri::{InvalidUri, PathAndQuery, Uri};

use crate::config::Upstream;

/// The path and query of a request with `prefix` taken off the path.
///
/// Only at a segment border: `/foo` leaves `/foobar` alone. What is left starts with a slash. An
/// absolute-form target (RFC 9112 section 3.2.2) is reduced to its path; `*` stays.
///
/// # Errors
/// None for a target that was parsed before; the signature is the parser's.
pub fn trimmed(uri: &Uri, prefix: &str) -> Result<PathAndQuery, InvalidUri> {
    let Some(target) = uri.path_and_query() else {
        return Ok(PathAndQuery::from_static("/"));
    };
    if prefix.is_empty() {
        return Ok(target.clone());
    }
    let Some(rest) = target.path().strip_prefix(prefix) else {
        return Ok(target.clone());
    };
    let path = match (rest.starts_with('/'), prefix.ends_with('/')) {
        (true, _) => rest.to_owned(),
        (false, true) => format!("/{rest}"),
        (false, false) if rest.is_empty() => "/".to_owned(),
        (false, false) => return Ok(target.clone()),
    };
    match target.query() {
        Some(query) => PathAndQuery::try_from(format!("{path}?{query}")),
        None => PathAndQuery::try_from(path),
    }
}

/// The target as `upstream` sees it: base path and path joined with exactly one slash, both queries
/// joined with `&`.
///
/// # Errors
/// None for parts that were parsed before; the signature is the parser's.
pub fn on(upstream: &Upstream, target: &PathAndQuery) -> Result<Uri, InvalidUri> {
    let target = match (upstream.base_path.as_str(), upstream.query.as_deref()) {
        ("", None) => target.clone(),
        (base, base_query) => {
            let path = target.path();
            let mut joined = String::with_capacity(
                base.len() + target.as_str().len() + base_query.map_or(0, str::len) + 2,
            );
            joined.push_str(base);
            match (base.ends_with('/'), path.starts_with('/')) {
                (true, true) => joined.push_str(&path[1..]),
                (false, false) if !base.is_empty() => {
                    joined.push('/');
                    joined.push_str(path);
                }
                _ => joined.push_str(path),
            }
            match (base_query, target.query()) {
                (None, None) => {}
                (Some(query), None | Some("")) | (None, Some(query)) => {
                    joined.push('?');
                    joined.push_str(query);
                }
                (Some(base_query), Some(query)) => {
                    joined.push('?');
                    joined.push_str(base_query);
                    joined.push('&');
                    joined.push_str(query);
                }
            }
            PathAndQuery::try_from(joined)?
        }
    };
    Ok(Uri::from(target))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn trim(target: &str, prefix: &str) -> String {
        trimmed(&target.parse().unwrap(), prefix)
            .unwrap()
            .to_string()
    }

    #[test]
    fn a_prefix_is_trimmed_at_segment_borders_only() {
        for (prefix, target, expected) in [
            ("/foo", "/foo/bar", "/bar"),
            ("/foo", "/foo", "/"),
            ("/foo", "/foo/", "/"),
            ("/foo/", "/foo/bar", "/bar"),
            ("/foo/", "/foo/", "/"),
            ("/foo/", "/foo", "/foo"),
            ("/foo", "/foobar", "/foobar"),
            ("/foo", "/bar/foo", "/bar/foo"),
            ("/foo", "/foo?x=1", "/?x=1"),
            ("/foo", "/foo/bar?x=/foo", "/bar?x=/foo"),
            ("/foo", "/foo/a%2Fb", "/a%2Fb"),
            ("/foo", "/foo//bar", "//bar"),
            ("/foo", "/foo/../bar", "/../bar"),
            ("/a/b", "/a/b/c", "/c"),
            ("", "/foo", "/foo"),
            ("/foo", "/%66oo/bar", "/%66oo/bar"),
            ("/foo", "http://example.org/foo/bar?q", "/bar?q"),
            ("", "http://example.org", "/"),
            ("/foo", "*", "*"),
            ("/foo", "/foo?", "/?"),
        ] {
            assert_eq!(trim(target, prefix), expected, "{prefix} off {target}");
        }
    }

    fn join(base: &str, target: &str) -> String {
        let text = format!(
            r#"{{"main-target": "http://h{base}", "canary-target": "http://c",
                "router-server": {{"host": "h", "port": 1}}}}"#
        );
        let config = Config::parse("test.json", &text).unwrap();
        on(&config.main, &target.parse().unwrap())
            .unwrap()
            .to_string()
    }

    #[test]
    fn base_and_path_are_joined_with_one_slash_and_queries_with_an_ampersand() {
        for (base, target, expected) in [
            ("", "/foo?x", "/foo?x"),
            ("/", "/foo", "/foo"),
            ("/", "//foo", "//foo"),
            ("/base", "/foo", "/base/foo"),
            ("/base/", "/foo", "/base/foo"),
            ("/base", "/", "/base/"),
            ("/base", "/foo?y=2", "/base/foo?y=2"),
            ("/base?x=1", "/foo", "/base/foo?x=1"),
            ("/base?x=1", "/foo?y=2", "/base/foo?x=1&y=2"),
            ("?x=1", "/foo?y=2", "/foo?x=1&y=2"),
            ("/base?x=1", "/foo?", "/base/foo?x=1"),
            ("/base", "/foo?", "/base/foo?"),
            ("", "/a%2Fb/../c//d?e=%20&f", "/a%2Fb/../c//d?e=%20&f"),
            ("", "*", "*"),
        ] {
            assert_eq!(join(base, target), expected, "{target} on {base}");
        }
    }
}
