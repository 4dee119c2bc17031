//! What can fail while a request is worked on: one variant per what failed, and one place that says
//! which status it is and whom it is charged to.

use std::{error::Error, fmt, io};

use http::StatusCode;

use super::{
    connection::BrokenBody,
    http1::{framing::Unclear, head::BadHead},
};
use crate::policy::{FailureKind, Outcome};

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

/// Whose fault a failure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The client's.
    Downstream,
    /// The service's that we sent the request to.
    Upstream,
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
            Refusal::Bad(_) | Refusal::Head(BadHead::Malformed(_)) => StatusCode::BAD_REQUEST,
            Refusal::Head(BadHead::TargetTooLong) => StatusCode::URI_TOO_LONG,
            Refusal::Head(BadHead::TooLarge) => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Refusal::Head(BadHead::Version) => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            // RFC 9112 section 6.1.
            Refusal::Unclear(Unclear::UnknownCoding) => StatusCode::NOT_IMPLEMENTED,
            Refusal::Unclear(_) => StatusCode::BAD_REQUEST,
            Refusal::Method => StatusCode::METHOD_NOT_ALLOWED,
        }
    }
}

impl RequestError {
    /// Whose fault it is.
    pub fn origin(&self) -> Origin {
        match self {
            RequestError::Refused(_) | RequestError::Body(_) => Origin::Downstream,
            RequestError::Upstream(_) => Origin::Upstream,
        }
    }

    /// The status that the client gets.
    pub fn status(&self) -> StatusCode {
        match self {
            RequestError::Refused(refusal) => refusal.status(),
            RequestError::Body(_) => StatusCode::BAD_REQUEST,
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

    /// What it means for the canary, if it was there.
    pub fn outcome(&self) -> Outcome {
        match self.origin() {
            Origin::Downstream => Outcome::Ignored,
            Origin::Upstream => Outcome::Failure,
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
            FailureKind::Malformed => "the upstream's answer is not valid HTTP/1.1",
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

/// An error with all of its causes in one line, for a log field.
pub struct Chain<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut next = self.0.source();
        while let Some(cause) = next {
            write!(f, ": {cause}")?;
            next = cause.source();
        }
        Ok(())
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

    #[test]
    fn only_upstream_failures_are_charged_and_they_are_502_or_504() {
        for kind in FailureKind::ALL {
            let error = RequestError::from(UpstreamError::new(kind));
            assert_eq!(error.outcome(), Outcome::Failure);
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
        ] {
            assert_eq!(
                (error.outcome(), error.status().as_u16()),
                (Outcome::Ignored, status)
            );
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
