//! Who may change anything through the instrumentation port.
//!
//! With a token: who has it. Without one: who is on this machine, and only where the port listens there alone. In
//! neither case a page that some other site has put into an operator's browser: browsers say where a request
//! comes from (`Origin`, RFC 6454 section 7; `Sec-Fetch-Site`, W3C Fetch Metadata), and a name that a
//! stranger has pointed at this machine (DNS rebinding) is not this machine's.

use std::net::{IpAddr, SocketAddr};

use http::{
    HeaderMap, StatusCode, Uri,
    header::{AUTHORIZATION, HOST, ORIGIN},
    uri::Authority,
};
use ring::hmac;

use crate::config::Instrumentation;

/// Decides on requests that change something.
pub struct Guard {
    token: Option<Token>,
    is_loopback: bool,
}

/// Compared by what it is hashed to, so that how long that takes tells nothing about it.
struct Token {
    key: hmac::Key,
    tag: hmac::Tag,
}

/// Why a request may not change anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forbidden {
    /// A page of another site has sent it.
    CrossOrigin,
    /// The name that it was sent to is not known to be ours.
    ForeignHost,
    /// There is no token, and others than this machine can reach the port.
    NoToken,
    /// It has not said the token.
    TokenMissing,
    /// It has said another one.
    TokenWrong,
}

impl Forbidden {
    /// The status of the answer.
    pub fn status(self) -> StatusCode {
        match self {
            Forbidden::CrossOrigin | Forbidden::ForeignHost | Forbidden::NoToken => {
                StatusCode::FORBIDDEN
            }
            Forbidden::TokenMissing | Forbidden::TokenWrong => StatusCode::UNAUTHORIZED,
        }
    }

    /// What to do.
    pub fn text(self) -> &'static str {
        match self {
            Forbidden::CrossOrigin => {
                "a page of another site has sent this: changes are taken from the router's own pages and from \
                 programs"
            }
            Forbidden::ForeignHost => {
                "without instrumentation.token changes are taken under an address of this machine only: use \
                 127.0.0.1, [::1] or localhost, or set a token"
            }
            Forbidden::NoToken => {
                "changes are not taken here: set instrumentation.token (or token-file) and send it as \
                 Authorization: Bearer, or set instrumentation.host to 127.0.0.1"
            }
            Forbidden::TokenMissing => {
                "the token is missing: send instrumentation.token as Authorization: Bearer TOKEN"
            }
            Forbidden::TokenWrong => "the token is not the one in instrumentation.token",
        }
    }
}

impl Guard {
    /// For a port that listens there, if there is one.
    pub fn new(instrumentation: Option<&Instrumentation>, address: Option<SocketAddr>) -> Guard {
        let token = instrumentation.and_then(|instrumentation| instrumentation.token.as_ref());
        Guard {
            token: token.map(|token| {
                let key = hmac::Key::new(hmac::HMAC_SHA256, b"canary-router token");
                let tag = hmac::sign(&key, token.as_str().as_bytes());
                Token { key, tag }
            }),
            is_loopback: address.is_some_and(|address| address.ip().to_canonical().is_loopback()),
        }
    }

    /// Who may change anything, in a word: everybody on this machine (`open`), who has the token (`token`), or
    /// nobody (`closed`).
    pub fn who(&self) -> &'static str {
        match (&self.token, self.is_loopback) {
            (Some(_), _) => "token",
            (None, true) => "open",
            (None, false) => "closed",
        }
    }

    /// # Errors
    /// It may not.
    pub fn check(&self, headers: &HeaderMap) -> Result<(), Forbidden> {
        if !is_same_origin(headers) {
            return Err(Forbidden::CrossOrigin);
        }
        let Some(token) = &self.token else {
            return match self.is_loopback {
                false => Err(Forbidden::NoToken),
                true if !is_this_machine(headers) => Err(Forbidden::ForeignHost),
                true => Ok(()),
            };
        };
        let Some(said) = headers.get(AUTHORIZATION) else {
            return Err(Forbidden::TokenMissing);
        };
        // RFC 9110 section 11.1: the scheme's case does not matter.
        let said = said.as_bytes();
        let said = match said.split_at_checked(7) {
            Some((scheme, said)) if scheme.eq_ignore_ascii_case(b"bearer ") => said.trim_ascii(),
            _ => return Err(Forbidden::TokenMissing),
        };
        hmac::verify(&token.key, said, token.tag.as_ref()).map_err(|_| Forbidden::TokenWrong)
    }
}

fn is_same_origin(headers: &HeaderMap) -> bool {
    let mut sites = headers.get_all("sec-fetch-site").iter();
    if !sites.all(|site| matches!(site.as_bytes(), b"same-origin" | b"none")) {
        return false;
    }
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    headers.get_all(ORIGIN).iter().all(|origin| {
        let origin = origin
            .to_str()
            .ok()
            .and_then(|origin| origin.parse::<Uri>().ok());
        let origin = origin
            .as_ref()
            .and_then(Uri::authority)
            .map(Authority::as_str);
        match (origin, host) {
            (Some(origin), Some(host)) => origin.eq_ignore_ascii_case(host),
            _ => false,
        }
    })
}

fn is_this_machine(headers: &HeaderMap) -> bool {
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    let Some(host) = host.and_then(|host| host.parse::<Authority>().ok()) else {
        return false;
    };
    let host = host.host().trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn guard(is_loopback: bool, token: Option<&str>) -> Guard {
        let token = token.map(|token| {
            let key = hmac::Key::new(hmac::HMAC_SHA256, b"test");
            let tag = hmac::sign(&key, token.as_bytes());
            Token { key, tag }
        });
        Guard { token, is_loopback }
    }

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn without_a_token_this_machine_may_and_nobody_else() {
        let local = guard(true, None);
        for (host, expected) in [
            ("127.0.0.1:8888", Ok(())),
            ("127.9.9.9", Ok(())),
            ("localhost:8888", Ok(())),
            ("LOCALHOST", Ok(())),
            ("[::1]:8888", Ok(())),
            ("evil.example:8888", Err(Forbidden::ForeignHost)),
            ("127.0.0.1.evil.example", Err(Forbidden::ForeignHost)),
            ("10.0.0.1", Err(Forbidden::ForeignHost)),
            ("", Err(Forbidden::ForeignHost)),
        ] {
            assert_eq!(local.check(&headers(&[("host", host)])), expected, "{host}");
            let everywhere = guard(false, None).check(&headers(&[("host", host)]));
            assert_eq!(everywhere, Err(Forbidden::NoToken), "{host}");
        }
    }

    #[test]
    fn with_a_token_who_has_it_may() {
        let guard = guard(false, Some("0123456789abcdef"));
        for (said, expected) in [
            (None, Err(Forbidden::TokenMissing)),
            (Some("Bearer 0123456789abcdef"), Ok(())),
            (Some("bearer  0123456789abcdef"), Ok(())),
            (Some("Bearer 0123456789abcde"), Err(Forbidden::TokenWrong)),
            (Some("Bearer 0123456789abcdeff"), Err(Forbidden::TokenWrong)),
            (Some("Bearer "), Err(Forbidden::TokenWrong)),
            (Some("Basic 0123456789abcdef"), Err(Forbidden::TokenMissing)),
            (Some("0123456789abcdef"), Err(Forbidden::TokenMissing)),
        ] {
            let mut lines = vec![("host", "router.example:8888")];
            lines.extend(said.map(|said| ("authorization", said)));
            assert_eq!(guard.check(&headers(&lines)), expected, "{said:?}");
        }
    }

    #[test]
    fn a_page_of_another_site_may_not_whatever_it_knows() {
        let guard = guard(true, Some("0123456789abcdef"));
        let check = |name: &'static str, value: &str| {
            guard.check(&headers(&[
                ("host", "127.0.0.1:8888"),
                ("authorization", "Bearer 0123456789abcdef"),
                (name, value),
            ]))
        };
        for origin in [
            "http://evil.example",
            "null",
            "http://127.0.0.1:9999",
            "http://localhost:8888",
            "",
            "127.0.0.1",
        ] {
            assert_eq!(
                check("origin", origin),
                Err(Forbidden::CrossOrigin),
                "{origin}"
            );
        }
        assert_eq!(check("origin", "http://127.0.0.1:8888"), Ok(()));
        for site in ["cross-site", "same-site", "anything"] {
            assert_eq!(check("sec-fetch-site", site), Err(Forbidden::CrossOrigin));
        }
        for site in ["same-origin", "none"] {
            assert_eq!(check("sec-fetch-site", site), Ok(()));
        }
    }
}
