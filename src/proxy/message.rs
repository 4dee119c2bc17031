//! Message heads as the pipeline sees them, whatever they look like on a connection.

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, Version};

use super::uri::Target;

/// The head of a request.
#[derive(Debug)]
pub struct RequestHead {
    /// The method.
    pub method: Method,
    /// What is asked for.
    pub target: Target,
    /// The client's version of HTTP.
    pub version: Version,
    /// The fields.
    pub headers: HeaderMap,
}

/// The head of a response.
#[derive(Debug)]
pub struct ResponseHead {
    /// The status.
    pub status: StatusCode,
    /// The reason phrase, where it is not the usual one.
    pub reason: Option<Bytes>,
    /// The upstream's version of HTTP.
    pub version: Version,
    /// The fields.
    pub headers: HeaderMap,
}

/// A piece of a body.
#[derive(Debug)]
pub enum Frame {
    /// Content; never empty.
    Data(Bytes),
    /// Trailer fields; the body is over.
    Trailers(HeaderMap),
}

impl ResponseHead {
    /// A head of our own.
    pub fn new(status: StatusCode) -> ResponseHead {
        ResponseHead {
            status,
            reason: None,
            version: Version::HTTP_11,
            headers: HeaderMap::new(),
        }
    }
}
