//! One request to the instrumentation port, and its answer.
//!
//! A connection each, closed afterwards: a person's commands are seconds apart. Plain HTTP only, as that port
//! speaks; redirects are not followed, so a token goes nowhere but where it was meant to.

use std::{fmt, pin::pin, str::FromStr, time::Duration};

use bytes::Bytes;
use http::{
    HeaderValue, Request as HttpRequest, StatusCode, Uri,
    header::{ACCEPT, AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, USER_AGENT},
};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use super::{Error, harmless, verbs::Request};
use crate::{VERSION, causes::Chain};

/// How long an answer may take, from the name's resolution to its last byte.
const PATIENCE: Duration = Duration::from_secs(10);

/// A status has a few kilobytes.
const LONGEST_ANSWER: usize = 4 << 20;

/// Where a router's instrumentation port is: `http://HOST[:PORT][/BASE]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    host: String,
    port: u16,
    authority: String,
    base: String,
}

impl FromStr for Url {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Url, &'static str> {
        const WANTED: &str = "not the address of an instrumentation port: write http://HOST:PORT";
        let uri: Uri = text.parse().map_err(|_| WANTED)?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => {
                return Err(
                    "the instrumentation port speaks plain HTTP: write http://, and to reach a router on \
                     another machine safely, take a tunnel (ssh -L 8888:127.0.0.1:8888 MACHINE)",
                );
            }
            _ => return Err(WANTED),
        }
        let authority = uri.authority().ok_or(WANTED)?;
        if authority.as_str().contains('@') {
            return Err("a URL is no place for a password: give a token with --token-file");
        }
        if uri.query().is_some() || authority.host().is_empty() {
            return Err(WANTED);
        }
        // A port that is none reads as no port.
        let port = match authority.as_str().strip_prefix(authority.host()) {
            Some("") => 80,
            _ => authority.port_u16().ok_or(WANTED)?,
        };
        let host = authority.host();
        let bare = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'));
        Ok(Url {
            host: bare.unwrap_or(host).to_owned(),
            port,
            authority: authority.to_string(),
            base: uri.path().trim_end_matches('/').to_owned(),
        })
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.authority, self.base)
    }
}

/// What the router knows its operators by.
pub struct Token(HeaderValue);

impl Token {
    /// # Errors
    /// It is none.
    pub fn new(text: &str) -> Result<Token, &'static str> {
        if text.is_empty() {
            return Err("it is empty: it must hold the router's token");
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(
                "it does not hold a token: that is one line of visible ASCII without blanks",
            );
        }
        let mut value = HeaderValue::from_str(&format!("Bearer {text}"))
            .map_err(|_| "it does not hold a token")?;
        value.set_sensitive(true);
        Ok(Token(value))
    }
}

/// Who is asked, and as whom.
pub struct Call<'a> {
    pub url: &'a Url,
    pub token: Option<Token>,
}

impl Call<'_> {
    /// Makes a request; the status that the router answers.
    ///
    /// # Errors
    /// There was none.
    pub async fn make(&self, request: &Request) -> Result<Value, Error> {
        let (status, body) = tokio::time::timeout(PATIENCE, self.exchange(request))
            .await
            .map_err(|_| self.not_ours(format!("no answer within {} s", PATIENCE.as_secs())))??;
        self.read(status, &body)
    }

    async fn exchange(&self, request: &Request) -> Result<(StatusCode, Bytes), Error> {
        let stream = TcpStream::connect((&*self.url.host, self.url.port))
            .await
            .map_err(|why| Error::Unreachable {
                url: self.url.to_string(),
                why,
            })?;
        let broken = |error: hyper::Error| self.not_ours(Chain(&error).to_string());
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        let answer = async {
            let response = sender
                .send_request(self.message(request)?)
                .await
                .map_err(broken)?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, LONGEST_ANSWER)
                .collect()
                .await
                .map_err(|error| self.not_ours(Chain(&*error).to_string()))?;
            Ok((head.status, body.to_bytes()))
        };
        let mut answer = pin!(answer);
        // The connection moves the bytes, and may end before the last of them were looked at.
        tokio::select! {
            biased;
            answer = &mut answer => answer,
            _ended = connection => answer.await,
        }
    }

    fn message(&self, request: &Request) -> Result<HttpRequest<Full<Bytes>>, Error> {
        let mut message = HttpRequest::builder()
            .method(&request.method)
            .uri(format!("{}{}", self.url.base, request.path))
            .header(HOST, &self.url.authority)
            .header(USER_AGENT, format!("canary-router/{VERSION}"))
            .header(ACCEPT, "application/json")
            .header(CONNECTION, "close");
        if let Some(Token(token)) = &self.token {
            message = message.header(AUTHORIZATION, token);
        }
        let body = match &request.body {
            Some(body) => {
                message = message.header(CONTENT_TYPE, "application/json");
                body.to_string()
            }
            None => String::new(),
        };
        message
            .body(Full::from(body))
            .map_err(|error| self.not_ours(error.to_string()))
    }

    fn read(&self, status: StatusCode, body: &[u8]) -> Result<Value, Error> {
        let json: Option<Value> = serde_json::from_slice(body).ok();
        if status.is_success() {
            return match json {
                Some(json) if json["rollout"].is_object() => Ok(json),
                Some(_) => Err(self.not_ours("the answer is not a router's status".into())),
                None => Err(self.not_ours("the answer is not JSON".into())),
            };
        }
        let said = json.as_ref().and_then(|json| json["error"].as_str());
        let refused = status.is_client_error() || status.is_server_error();
        match said.filter(|_| refused) {
            None => Err(self.not_ours(format!("it answers {status}, and not as a router does"))),
            Some(said) if status == StatusCode::UNAUTHORIZED => Err(Error::Unauthorized {
                said: harmless(said),
                what_to_do: match self.token {
                    None => "give the router's token with --token-file FILE",
                    Some(_) => "the file of --token-file holds another token than the router's",
                }
                .into(),
            }),
            Some(said) => Err(Error::Refused {
                said: harmless(said),
                status: status.as_u16(),
            }),
        }
    }

    fn not_ours(&self, why: String) -> Error {
        Error::NotOurs {
            url: self.url.to_string(),
            why,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_where_to_connect_and_what_to_ask_for() {
        for (text, host, port, base) in [
            ("http://127.0.0.1:8888", "127.0.0.1", 8888, ""),
            ("http://127.0.0.1:8888/", "127.0.0.1", 8888, ""),
            ("HTTP://router.example", "router.example", 80, ""),
            ("http://[::1]:8888/canary/", "::1", 8888, "/canary"),
            ("http://router:1/a/b", "router", 1, "/a/b"),
        ] {
            let url: Url = text.parse().unwrap();
            assert_eq!(
                (&*url.host, url.port, &*url.base),
                (host, port, base),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_url_of_ours_is_refused_with_what_to_write() {
        for (text, said) in [
            ("https://127.0.0.1:8888", "http://"),
            ("127.0.0.1:8888", "http://HOST:PORT"),
            ("localhost", "http://HOST:PORT"),
            ("", "http://HOST:PORT"),
            ("/status", "http://HOST:PORT"),
            ("ftp://a", "http://HOST:PORT"),
            ("http://", "http://HOST:PORT"),
            ("http://a:99999", "http://HOST:PORT"),
            ("http://a:", "http://HOST:PORT"),
            ("http://a:b", "http://HOST:PORT"),
            ("http://a/?b", "http://HOST:PORT"),
            ("http://a b", "http://HOST:PORT"),
            ("http://me:secret@a", "--token-file"),
        ] {
            let refused = text.parse::<Url>().unwrap_err();
            assert!(refused.contains(said), "{text}: {refused}");
        }
    }

    #[test]
    fn a_token_is_one_word_of_ascii() {
        assert!(Token::new("ab-CD_12.~+/=").is_ok());
        for text in ["", "two words", "two\nlines", "caf\u{e9}", "\0"] {
            assert!(Token::new(text).is_err(), "{text:?}");
        }
    }
}
