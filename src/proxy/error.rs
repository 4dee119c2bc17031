//! What can fail while a request is worked on: one variant per what failed, and one place that says
//! which status it is and whom it is charged to.

use std::{error::Error, fmt, io};

use http::StatusCode;

use super::{
    connection::BrokenBody,
    http1::{framing::Unclear, head::BadHead},
};
use crate::policy::{FailureKind, breaker::Refused};

/// A request that we do not forward, and why the client is told so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The message is not valid HTTP/1.1, or ambiguous.
    #[error("{0}")]
    Bad(&'static str),
    /// Its head cannot be read.
    #[error("{0}")]
    Head(#[from] BadHead),
    /// It is not clear where its body ends.
    #[error("where the request ends is not clear: {0}")]
    Unclear(#[from] Unclear),
    /// `CONNECT` and `TRACE` are not for a reverse proxy.
    #[error("this method is not allowed here")]
    Method,
}

/// Why a request got no answer from an upstream.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// We do not forward it.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// Its body broke off or is malformed.
    #[error("the request body could not be read: {0}")]
    Body(#[from] BrokenBody),
    /// The upstream failed.
    #[error("{0}")]
    Upstream(#[from] UpstreamError),
    /// Main has failed too often, and is left alone for a while.
    #[error("the service is not available at the moment")]
    MainOpen(Refused),
}

/// What went wrong with an upstream, for the log; the client learns the kind only.
#[derive(Debug)]
pub struct UpstreamError {
    /// The kind, for label, status and policy.
    pub kind: FailureKind,
    /// What the system or the library said.
    pub source: Option<Box<dyn Error + Send + Sync>>,
}

impl Refusal {
    /// The status that the client gets.
    pub fn status(&self) -> StatusCode {
        match self {
            // 505 would be for a request that is one but for its version; this may be anything.
            Refusal::Bad(_)
            | Refusal::Head(BadHead::Malformed(_) | BadHead::Version | BadHead::Http2Preface) => {
                StatusCode::BAD_REQUEST
            }
            Refusal::Head(BadHead::TargetTooLong) => StatusCode::URI_TOO_LONG,
            Refusal::Head(BadHead::TooLarge) => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            // RFC 9112 section 6.1.
            Refusal::Unclear(Unclear::UnknownCoding) => StatusCode::NOT_IMPLEMENTED,
            Refusal::Unclear(_) => StatusCode::BAD_REQUEST,
            Refusal::Method => StatusCode::METHOD_NOT_ALLOWED,
        }
    }
}

impl RequestError {
    /// The status that the client gets.
    pub fn status(&self) -> StatusCode {
        match self {
            RequestError::Refused(refusal) => refusal.status(),
            RequestError::Body(_) => StatusCode::BAD_REQUEST,
            RequestError::MainOpen(_) => StatusCode::SERVICE_UNAVAILABLE,
            RequestError::Upstream(error) => match error.kind {
                FailureKind::Timeout | FailureKind::ConnectTimeout => StatusCode::GATEWAY_TIMEOUT,
                FailureKind::Unresolved
                | FailureKind::Refused
                | FailureKind::Tls
                | FailureKind::Reset
                | FailureKind::Malformed
                | FailureKind::BodyCut => StatusCode::BAD_GATEWAY,
            },
        }
    }
}

impl UpstreamError {
    /// Without a cause of its own, such as a timeout.
    pub fn new(kind: FailureKind) -> UpstreamError {
        UpstreamError { kind, source: None }
    }

    /// With what the system or a library said.
    pub fn caused(
        kind: FailureKind,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> UpstreamError {
        UpstreamError {
            kind,
            source: Some(source.into()),
        }
    }
}

impl fmt::Display for UpstreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            FailureKind::Unresolved => "the upstream's name has no address",
            FailureKind::Refused => "the upstream cannot be connected to",
            FailureKind::ConnectTimeout => "connecting to the upstream took too long",
            FailureKind::Tls => "the TLS handshake with the upstream failed",
            FailureKind::Timeout => "the upstream did not answer in time",
            FailureKind::Reset => "the upstream closed the connection without an answer",
            FailureKind::Malformed => "the upstream's answer is not valid HTTP",
            FailureKind::BodyCut => "the upstream broke off its answer",
        })
    }
}

impl Error for UpstreamError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source
            .as_ref()
            .map(|source| &**source as &(dyn Error + 'static))
    }
}

/// What failing to connect means.
pub fn classify_connect(error: io::Error) -> UpstreamError {
    let kind = match error.kind() {
        io::ErrorKind::TimedOut => FailureKind::ConnectTimeout,
        _ => FailureKind::Refused,
    };
    UpstreamError::caused(kind, error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::causes::Chain;

    #[test]
    fn an_upstreams_failure_is_502_or_504_and_a_clients_is_not() {
        for kind in FailureKind::ALL {
            let error = RequestError::from(UpstreamError::new(kind));
            let late = matches!(kind, FailureKind::Timeout | FailureKind::ConnectTimeout);
            assert_eq!(
                error.status().as_u16(),
                if late { 504 } else { 502 },
                "{kind:?}"
            );
        }
        for (error, status) in [
            (RequestError::from(BrokenBody::Cut), 400),
            (Refusal::Bad("x").into(), 400),
            (Refusal::Method.into(), 405),
            (Refusal::from(BadHead::TargetTooLong).into(), 414),
            (Refusal::from(BadHead::TooLarge).into(), 431),
            (Refusal::from(BadHead::Version).into(), 400),
            (Refusal::from(Unclear::UnknownCoding).into(), 501),
            (Refusal::from(Unclear::LengthAndCoding).into(), 400),
        ] {
            assert_eq!(error.status().as_u16(), status, "{error}");
        }
    }

    #[test]
    fn a_chain_shows_every_cause() {
        let error = UpstreamError::caused(FailureKind::Refused, io::Error::other("no route"));
        assert_eq!(
            Chain(&error).to_string(),
            "the upstream cannot be connected to: no route"
        );
    }
}
