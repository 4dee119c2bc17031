//! Message heads as the pipeline sees them, whatever they look like on a connection.

use bytes::Bytes;
use http::{Method, StatusCode, Version};

use super::{fields::Fields, uri::Target};

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
    pub headers: Fields,
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
    pub headers: Fields,
}

/// A piece of a body.
#[derive(Debug)]
pub enum Frame {
    /// Content; never empty.
    Data(Bytes),
    /// Trailer fields; the body is over.
    Trailers(Fields),
}
