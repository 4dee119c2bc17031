//! Request targets: the prefix that is trimmed, and the base that is put before.
//!
//! Bytes are never decoded, cleaned or re-encoded: `%2F`, `//` and `..` reach the upstream as the
//! client wrote them, and so does what RFC 3986 does not have in a path but browsers send.

use bytes::{BufMut, Bytes, BytesMut};
use http::{Method, uri::PathAndQuery};
use memchr::memchr;

use super::headers;
use crate::config::Upstream;

/// Path and query of a request. Either `*`, or it starts with a slash; it holds neither blanks nor
/// controls nor a fragment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target(Bytes);

impl Target {
    /// Judges the target of a request line. An absolute one (RFC 9112 section 3.2.2) is reduced to its
    /// path: a reverse proxy knows its upstreams without it.
    ///
    /// # Errors
    /// What is wrong, for the client.
    pub fn parse(method: &Method, target: Bytes) -> Result<Target, &'static str> {
        if target.iter().any(|byte| matches!(byte, 0..=b' ' | 127)) {
            return Err("the request target contains a blank or a control character");
        }
        if memchr(b'#', &target).is_some() {
            return Err("the request target contains a fragment");
        }
        match target.first() {
            Some(b'/') => return Ok(Target(target)),
            // An authority; no upstream gets to see such a request anyway.
            _ if *method == Method::CONNECT => return Ok(Target(Bytes::from_static(b"*"))),
            Some(b'*') if target.len() == 1 && *method == Method::OPTIONS => {
                return Ok(Target(target));
            }
            _ => {}
        }
        let behind_scheme = ["http://", "https://"].into_iter().find_map(|scheme| {
            let start = target.get(..scheme.len())?;
            start
                .eq_ignore_ascii_case(scheme.as_bytes())
                .then_some(scheme.len())
        });
        let start = behind_scheme.ok_or("the request target is not a path")?;
        let rest = &target[start..];
        let end = rest
            .iter()
            .position(|byte| matches!(byte, b'/' | b'?'))
            .unwrap_or(rest.len());
        if matches!(rest[..end].first(), None | Some(b':')) || !headers::is_valid_host(&rest[..end])
        {
            return Err("the request target has no valid authority");
        }
        Ok(match rest.get(end) {
            None => Target(Bytes::from_static(b"/")),
            Some(b'/') => Target(target.slice(start + end..)),
            Some(_) => Target([b"/", &rest[end..]].concat().into()),
        })
    }

    /// As it was written.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Up to the query.
    pub fn path(&self) -> &[u8] {
        &self.0[..self.path_length()]
    }

    /// What follows the first question mark, if there is one.
    pub fn query(&self) -> Option<&[u8]> {
        self.0.get(self.path_length() + 1..)
    }

    fn path_length(&self) -> usize {
        memchr(b'?', &self.0).unwrap_or(self.0.len())
    }

    /// With `prefix` taken off the path. Only at a segment border: `/foo` leaves `/foobar` alone.
    /// What is left starts with a slash; `*` stays.
    #[must_use]
    pub fn trimmed(&self, prefix: &str) -> Target {
        let trimmed = || {
            let rest = self.path().strip_prefix(prefix.as_bytes())?;
            let behind = prefix.len();
            match (rest.first(), prefix.ends_with('/')) {
                (Some(b'/'), _) => Some(self.0.slice(behind..)),
                // The slash is the prefix's own last one.
                (_, true) => Some(self.0.slice(behind - 1..)),
                (None, false) => Some([b"/", &self.0[behind..]].concat().into()),
                (Some(_), false) => None,
            }
        };
        match prefix.is_empty() {
            true => self.clone(),
            false => trimmed().map_or_else(|| self.clone(), Target),
        }
    }

    /// Writes the target as `upstream` sees it: base path and path joined with exactly one slash, both
    /// queries joined with `&`. `*` is no path, and asks about the server as a whole: it stays alone.
    pub fn put_on(&self, upstream: &Upstream, out: &mut BytesMut) {
        if &self.0[..] == b"*" {
            out.put_u8(b'*');
            return;
        }
        let (base, base_query) = (upstream.base_path.as_bytes(), upstream.query.as_deref());
        out.reserve(base.len() + self.0.len() + base_query.map_or(0, str::len) + 2);
        let path = match base_query {
            None => &self.0[..],
            Some(_) => self.path(),
        };
        out.put_slice(base);
        match base.ends_with(b"/") {
            true => out.put_slice(&path[1..]),
            false => out.put_slice(path),
        }
        let Some(base_query) = base_query else { return };
        out.put_u8(b'?');
        out.put_slice(base_query.as_bytes());
        if let Some(query @ [_, ..]) = self.query() {
            out.put_u8(b'&');
            out.put_slice(query);
        }
    }
}

/// Whether a target can be said in HTTP/2 as it is. The `h2` crate has targets as RFC 3986 has
/// them and browsers send them, which is a little less than anything.
pub fn can_be_said(target: &Target) -> bool {
    let said = PathAndQuery::try_from(target.as_bytes());
    said.is_ok_and(|said| said.as_str().as_bytes() == target.as_bytes())
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*, sample::select};

    use super::*;
    use crate::config::Config;

    fn parse(target: &str) -> Result<Target, &'static str> {
        let bytes = Bytes::copy_from_slice(target.as_bytes());
        Target::parse(&Method::OPTIONS, bytes)
    }

    fn text(bytes: &[u8]) -> String {
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    #[test]
    fn a_target_is_a_path_and_stays_as_it_is() {
        for target in [
            "/",
            "//",
            "/a/../b",
            "/%00%2F%2e",
            "/a?b?c",
            "/?",
            "*",
            "/<>`\"{}|^\\",
            "/\u{e9}",
            "/a@b:c",
        ] {
            assert_eq!(text(parse(target).unwrap().as_bytes()), target);
        }
        for (target, path) in [
            ("http://h", "/"),
            ("HTTPS://h:1/a?b", "/a?b"),
            ("http://h?b", "/?b"),
            ("http://[::1]/a", "/a"),
        ] {
            assert_eq!(text(parse(target).unwrap().as_bytes()), path);
        }
        for target in [
            "",
            "a",
            "a/b",
            "**",
            "*/",
            "?",
            "/a b",
            "/a#b",
            "/\t",
            "/\u{7f}",
            "http://",
            "http:///a",
            "http://u@h/",
            "ftp://h/",
            "http:/a",
            "://h/",
            "http://h:x/",
            "http://:80/",
        ] {
            assert!(parse(target).is_err(), "{target}");
        }
        let star = Target::parse(&Method::GET, Bytes::from_static(b"*"));
        assert!(star.is_err());
    }

    fn trim(target: &str, prefix: &str) -> String {
        text(parse(target).unwrap().trimmed(prefix).as_bytes())
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

    fn upstream(base: &str) -> Option<Upstream> {
        let main = serde_json::Value::from(format!("http://h{base}"));
        let file = format!(
            r#"{{"main-target": {main}, "canary-target": "http://c",
                "router-server": {{"host": "h", "port": 1}}}}"#
        );
        Some(Config::parse("test.json", &file).ok()?.main)
    }

    fn join(base: &str, target: &str) -> String {
        let mut out = BytesMut::new();
        let target = parse(target).unwrap();
        target.put_on(&upstream(base).unwrap(), &mut out);
        text(&out)
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
            ("/base", "*", "*"),
            ("?x=1", "*", "*"),
        ] {
            assert_eq!(join(base, target), expected, "{target} on {base}");
        }
    }

    /// What two readers of a request line would understand in the same way.
    fn is_one(target: &[u8]) -> bool {
        (target == b"*" || target.starts_with(b"/"))
            && !target
                .iter()
                .any(|byte| matches!(byte, 0..=b' ' | 127 | b'#'))
    }

    fn targets() -> impl Strategy<Value = Vec<u8>> {
        let starts = [
            "/",
            "*",
            "",
            "//",
            "/a",
            "http://h",
            "HTTPS://[::1]:8",
            "http://h:1/",
        ];
        let rest = prop_oneof![
            vec(select(&b"/a?&%*.:@[]\xe4"[..]), 0..12),
            vec(any::<u8>(), 0..12),
        ];
        (select(starts.to_vec()), rest).prop_map(|(start, rest)| [start.as_bytes(), &rest].concat())
    }

    fn texts(bytes: &'static [u8]) -> impl Strategy<Value = String> {
        vec(select(bytes), 0..8).prop_map(|bytes| bytes.into_iter().map(char::from).collect())
    }

    proptest! {
        /// Whatever a client asks for and whatever is configured, an upstream gets one target, with
        /// all that was asked for behind the base.
        #[test]
        fn what_is_written_is_one_target(
            bytes in targets(),
            prefix in texts(b"/a%*"),
            base in texts(b"/aa/?&%*/ab. \n\x7f\x80\"<{"),
            method in select(&[Method::GET, Method::OPTIONS, Method::CONNECT][..]),
        ) {
            let Ok(target) = Target::parse(&method, bytes.clone().into()) else {
                return Ok(());
            };
            prop_assert!(is_one(target.as_bytes()), "{:?}", target);
            let trimmed = target.trimmed(&format!("/{prefix}"));
            prop_assert!(is_one(trimmed.as_bytes()), "{:?}", trimmed);
            prop_assert_eq!(target.query(), trimmed.query());
            let Some(upstream) = upstream(&base) else {
                return Ok(());
            };
            let mut out = BytesMut::new();
            trimmed.put_on(&upstream, &mut out);
            prop_assert!(is_one(&out), "\"{}\"", out.escape_ascii());
            let base = upstream.base_path.as_bytes();
            let base = base.strip_suffix(b"/").unwrap_or(base);
            let naive = match (trimmed.as_bytes(), upstream.query.as_deref()) {
                (b"*", _) => b"*".to_vec(),
                (whole, None) => [base, whole].concat(),
                (_, Some(query)) => match trimmed.query() {
                    None | Some(b"") => [base, trimmed.path(), b"?", query.as_bytes()].concat(),
                    Some(more) => {
                        [base, trimmed.path(), b"?", query.as_bytes(), b"&", more].concat()
                    }
                },
            };
            prop_assert_eq!(out.escape_ascii().to_string(), naive.escape_ascii().to_string());
        }
    }
}
