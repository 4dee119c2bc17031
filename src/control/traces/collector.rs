//! A collector of spans: one connection to it, and what it answers.
//!
//! What it says is not believed further than that: an answer is bounded in time and size, redirects are not followed,
//! and what cannot be read is taken for no answer.

use std::{fmt, io, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{
    HeaderMap, Request, Response, StatusCode, Uri,
    header::{CONTENT_TYPE, HOST, RETRY_AFTER, USER_AGENT},
};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::{JoinHandle, spawn_local},
    time::timeout,
};
use tokio_rustls::TlsConnector;

use crate::{VERSION, causes::Chain, clock, config::Endpoint, roots};

/// Bytes of an answer that are read.
const LONGEST_ANSWER: usize = 64 << 10;
/// Characters of what it says that are passed on.
const LONGEST_WORD: usize = 200;

/// TLS to a collector could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum CollectorError {
    /// There is nothing to verify its certificate with.
    #[error(
        "/tracing/endpoint: no root certificates were found to verify the collector with ({0}): install the \
         system's CA certificates (Debian: ca-certificates), or point SSL_CERT_FILE at a bundle"
    )]
    NoRoots(String),
    /// Its host cannot be in a certificate.
    #[error(
        "/tracing/endpoint: no certificate can be for the host {0:?}: write the name in the collector's certificate"
    )]
    Name(String),
    /// The library refuses.
    #[error("/tracing/endpoint: TLS cannot be set up: {0}")]
    Rustls(#[from] rustls::Error),
}

/// What becomes of a request to the collector.
pub enum Answer {
    /// It has taken all.
    Taken,
    /// It has taken the others (`partialSuccess`).
    TakenInPart {
        /// How many it has not.
        refused: u64,
        /// What it says.
        why: String,
    },
    /// It has not, and never will.
    Refused(String),
    /// It could not; it may be tried again.
    Later {
        /// What it says.
        why: String,
        /// After which time it wants to be asked.
        wished: Option<Duration>,
    },
    /// There was none.
    None(String),
}

/// Where spans are sent. `Display` does not show the query.
pub struct Collector {
    endpoint: Endpoint,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    connection: Option<Connection>,
}

/// A connection, read and written by a task of its own.
struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    task: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl fmt::Display for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Endpoint {
            host_header, path, ..
        } = &self.endpoint;
        let scheme = if self.endpoint.tls { "https" } else { "http" };
        let host = host_header.to_str().unwrap_or_default();
        write!(f, "{scheme}://{host}{}", path.path())
    }
}

impl Collector {
    /// Connects to nobody yet.
    ///
    /// # Errors
    /// TLS is to be spoken and cannot be set up.
    pub fn new(endpoint: &Endpoint) -> Result<Collector, CollectorError> {
        Ok(Collector {
            tls: match endpoint.tls {
                true => Some((TlsConnector::from(client_config()?), name(&endpoint.host)?)),
                false => None,
            },
            endpoint: endpoint.clone(),
            connection: None,
        })
    }

    /// Gives up the connection, if there is one.
    pub fn hang_up(&mut self) {
        self.connection = None;
    }

    /// Has it take `body`, and answer within this time. A connection that has become of no use meanwhile is made
    /// anew.
    pub async fn post(&mut self, body: &Bytes, limit: Duration) -> Answer {
        let head = match timeout(limit, self.exchange(body)).await {
            Ok(Ok(head)) => head,
            Ok(Err(why)) => return Answer::None(why),
            Err(_elapsed) => return Answer::None(format!("no answer within {limit:?}")),
        };
        let (connection, response) = head;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, LONGEST_ANSWER).collect();
        let said = match timeout(limit, body).await {
            Ok(Ok(body)) => {
                self.connection = Some(connection);
                body.to_bytes()
            }
            // Its status has told what has become of the spans.
            Ok(Err(_)) | Err(_) => Bytes::new(),
        };
        read(head.status, &head.headers, &said)
    }

    async fn exchange(&mut self, body: &Bytes) -> Result<(Connection, Response<Incoming>), String> {
        if let Some(kept) = self.connection.take()
            && let Ok(answered) = self.ask(kept, body).await
        {
            return Ok(answered);
        }
        let connection = self.connect().await?;
        self.ask(connection, body).await
    }

    async fn ask(
        &self,
        mut connection: Connection,
        body: &Bytes,
    ) -> Result<(Connection, Response<Incoming>), String> {
        let sender = &mut connection.sender;
        sender
            .ready()
            .await
            .map_err(|error| Chain(&error).to_string())?;
        let response = sender.send_request(self.message(body.clone())?).await;
        let response = response.map_err(|error| Chain(&error).to_string())?;
        Ok((connection, response))
    }

    fn message(&self, body: Bytes) -> Result<Request<Full<Bytes>>, String> {
        Request::post(Uri::from(self.endpoint.path.clone()))
            .header(HOST, &self.endpoint.host_header)
            .header(USER_AGENT, format!("canary-router/{VERSION}"))
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| error.to_string())
    }

    async fn connect(&self) -> Result<Connection, String> {
        let Endpoint { host, port, .. } = &self.endpoint;
        let failed = |error: io::Error| format!("connecting failed: {error}");
        let stream = TcpStream::connect((&**host, *port)).await.map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        match &self.tls {
            None => greet(stream).await,
            Some((connector, name)) => {
                let shaken = connector.connect(name.clone(), stream).await;
                greet(shaken.map_err(|error| format!("the TLS handshake failed: {error}"))?).await
            }
        }
    }
}

async fn greet(
    stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
) -> Result<Connection, String> {
    let handshake = http1::handshake(TokioIo::new(stream)).await;
    let (sender, connection) = handshake.map_err(|error| Chain(&error).to_string())?;
    let task = spawn_local(async move {
        // Who waits for an answer is told as well.
        let _ended = connection.await;
    });
    Ok(Connection { sender, task })
}

/// What an answer means (OpenTelemetry Protocol 1.0, *OTLP/HTTP Response*).
fn read(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Answer {
    let said: Value = serde_json::from_slice(body).unwrap_or_default();
    let with_status = || match word(&said["message"]) {
        Some(message) => format!("it answers {status}: {message}"),
        None => format!("it answers {status}"),
    };
    match status.as_u16() {
        200..=299 => {
            let partial = &said["partialSuccess"];
            match whole(&partial["rejectedSpans"]) {
                0 => Answer::Taken,
                refused => Answer::TakenInPart {
                    refused,
                    why: word(&partial["errorMessage"]).unwrap_or_else(|| "no reason given".into()),
                },
            }
        }
        429 | 502..=504 => Answer::Later {
            why: with_status(),
            wished: wished(headers),
        },
        _ => Answer::Refused(with_status()),
    }
}

/// A 64-bit number as Protobuf writes it, a string, or as others do.
fn whole(value: &Value) -> u64 {
    let text = value.as_str().and_then(|text| text.parse().ok());
    value.as_u64().or(text).unwrap_or(0)
}

/// The beginning of a text, if there is one.
fn word(value: &Value) -> Option<String> {
    let text = value.as_str().filter(|text| !text.is_empty())?;
    Some(text.chars().take(LONGEST_WORD).collect())
}

/// `Retry-After`: seconds, or a date (RFC 9110 section 10.2.3).
fn wished(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(clock::wall()).unwrap_or_default())
}

fn client_config() -> Result<Arc<ClientConfig>, CollectorError> {
    let roots = roots::system().map_err(CollectorError::NoRoots)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn name(host: &str) -> Result<ServerName<'static>, CollectorError> {
    ServerName::try_from(host.to_owned()).map_err(|_| CollectorError::Name(host.into()))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn answer(status: u16, retry_after: Option<&'static str>, body: &str) -> Answer {
        let mut headers = HeaderMap::new();
        if let Some(value) = retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from_static(value));
        }
        let status = StatusCode::from_u16(status).unwrap();
        read(status, &headers, body.as_bytes())
    }

    #[test]
    fn what_is_taken_in_part_is_read_in_every_form() {
        for (body, expected) in [
            ("", None),
            ("{}", None),
            ("no JSON", None),
            (r#"{"partialSuccess": {}}"#, None),
            (r#"{"partialSuccess": null}"#, None),
            (
                r#"{"partialSuccess": {"rejectedSpans": "0", "errorMessage": "hm"}}"#,
                None,
            ),
            (r#"{"partialSuccess": {"rejectedSpans": -3}}"#, None),
            (
                r#"{"partialSuccess": {"rejectedSpans": "3", "errorMessage": "too old"}}"#,
                Some((3, "too old")),
            ),
            (
                r#"{"partialSuccess": {"rejectedSpans": 3}}"#,
                Some((3, "no reason given")),
            ),
        ] {
            match (answer(200, None, body), expected) {
                (Answer::Taken, None) => {}
                (Answer::TakenInPart { refused, why }, Some(expected)) => {
                    assert_eq!((refused, &*why), expected, "{body}");
                }
                _ => panic!("{body}"),
            }
        }
    }

    #[test]
    fn only_what_may_pass_is_tried_again() {
        for status in [429, 502, 503, 504] {
            let answer = answer(status, None, "");
            assert!(matches!(answer, Answer::Later { .. }), "{status}");
        }
        for status in [301, 307, 400, 401, 404, 413, 500, 501, 505] {
            let answer = answer(status, None, "");
            assert!(matches!(answer, Answer::Refused(_)), "{status}");
        }
    }

    #[test]
    fn what_it_says_of_a_refusal_is_passed_on_in_part() {
        let body = format!(r#"{{"code": 3, "message": "bad{}"}}"#, "x".repeat(10_000));
        let Answer::Refused(why) = answer(400, None, &body) else {
            panic!("it was taken");
        };
        assert!(why.starts_with("it answers 400 Bad Request: badx"), "{why}");
        assert!(why.len() < 300, "{why}");
    }

    #[test]
    fn a_wish_to_be_asked_later_is_seconds_or_a_date() {
        for (written, expected) in [
            ("0", Some(0)),
            (" 7 ", Some(7)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(0)),
            ("-1", None),
            ("soon", None),
            ("99999999999999999999", None),
        ] {
            let Answer::Later { wished, .. } = answer(503, Some(written), "") else {
                panic!("it was taken");
            };
            assert_eq!(wished, expected.map(Duration::from_secs), "{written}");
        }
        let Answer::Later { wished, .. } = answer(503, Some("Fri, 01 Jan 2100 00:00:00 GMT"), "")
        else {
            panic!("it was taken");
        };
        assert!(wished.unwrap() > Duration::from_secs(365 * 24 * 3600));
    }
}
