//! Asks the sidecar whether a request is for main or for the canary.
//!
//! The sidecar gets what the upstream will get: method, headers, query, and the body, up to
//! `sidecar.max-body`. Whatever it does (refuses, hangs, drips, dies, answers without end), the
//! request is none the worse: the answer is main within the sidecar's timeout, the upstream gets the
//! request whole, and no more than `max-body` of it is held in memory.

use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, HeaderValue, Request, Version,
    header::{CONTENT_LENGTH, HOST},
    request::Parts,
    uri::PathAndQuery,
};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use tokio::task::spawn_local;
use tracing::{debug, warn};

use super::{
    body::RequestBody,
    connection::Connection,
    error::{Chain, RequestError},
    forward,
    headers::X_CANARY_BODY,
    pool::Lease,
    uri,
};
use crate::{clock, config::Sidecar, policy::SidecarAnswer, proxy::error::Refusal};

/// How much of a sidecar's response body is read so that its connection can be used again.
const DRAINED_BYTES: usize = 64 << 10;
/// The first allocation for a body whose length is not known, or is too large to be believed.
const FIRST_ALLOCATION: usize = 16 << 10;

/// The request body as far as it was read for the sidecar.
struct Collected {
    read: Bytes,
    trailers: Option<HeaderMap>,
    /// What is still to come; `None` for a body that is whole.
    rest: Option<Incoming>,
}

/// Asks. Gives back the answer, and the request body for the upstream.
///
/// # Errors
/// The request body broke off: nobody gets any of it.
pub async fn ask(
    connection: &Rc<Connection>,
    sidecar: &Sidecar,
    head: &Parts,
    target: &PathAndQuery,
    body: Incoming,
    response_timeout: std::time::Duration,
) -> Result<(SidecarAnswer, RequestBody), RequestError> {
    let collected = collect(connection, body, sidecar).await?;
    let question = question(sidecar, head, target, &collected)?;
    let body = match collected.rest {
        None => RequestBody::whole(collected.read, collected.trailers),
        Some(rest) => RequestBody::streaming(collected.read, rest, connection, response_timeout),
    };
    let pools = &connection.worker.pools;
    let answer = match forward::ask(connection, &pools.sidecar, &sidecar.upstream, question).await {
        Ok((response, lease)) => {
            let status = response.status().as_u16();
            drain(response.into_body(), lease, sidecar);
            SidecarAnswer::Status(status)
        }
        Err(error) => {
            if let Some(suppressed) = connection.worker.warnings.sidecar.allow() {
                let kind = error.kind.label();
                warn!(kind, error = %Chain(&error), suppressed, "sidecar failed, the request goes to main");
            }
            SidecarAnswer::Failed
        }
    };
    Ok((answer, body))
}

/// Reads the body, up to `max-body`. A client that pauses for longer than the sidecar's timeout is
/// not waited for either: it may be waiting for a response to what it has sent.
async fn collect(
    connection: &Rc<Connection>,
    mut body: Incoming,
    sidecar: &Sidecar,
) -> Result<Collected, RequestError> {
    let mut read = BytesMut::new();
    let mut only: Option<Bytes> = None;
    loop {
        let length = read.len() + only.as_ref().map_or(0, Bytes::len);
        if Body::is_end_stream(&body) {
            return Ok(Collected {
                read: joined(only, read),
                trailers: None,
                rest: None,
            });
        }
        if length > sidecar.max_body {
            return Ok(Collected {
                read: joined(only, read),
                trailers: None,
                rest: Some(body),
            });
        }
        let deadline = clock::now() + sidecar.upstream.client.timeout;
        connection.watch.reading_body(true);
        let frame = connection.watch.within(deadline, body.frame()).await;
        connection.watch.reading_body(false);
        let frame = match frame {
            Err(_elapsed) => {
                let read = joined(only, read);
                return Ok(Collected {
                    read,
                    trailers: None,
                    rest: Some(body),
                });
            }
            Ok(None) => {
                return Ok(Collected {
                    read: joined(only, read),
                    trailers: None,
                    rest: None,
                });
            }
            Ok(Some(Err(error))) => {
                debug!(%error, "the request body broke off");
                return Err(RequestError::Body);
            }
            Ok(Some(Ok(frame))) => frame,
        };
        match frame.into_data() {
            // Most bodies are one piece, which is not copied. Of many small pieces each one would
            // keep the whole buffer alive that it was read into; copied they take what they are.
            Ok(data) if length == 0 => only = Some(data),
            Ok(data) => {
                if let Some(first) = only.take() {
                    let expected = Body::size_hint(&body).lower() as usize;
                    read.reserve(first.len() + data.len() + expected.min(FIRST_ALLOCATION));
                    read.extend_from_slice(&first);
                }
                read.extend_from_slice(&data);
            }
            Err(frame) => {
                let trailers = frame.into_trailers().ok();
                return Ok(Collected {
                    read: joined(only, read),
                    trailers,
                    rest: None,
                });
            }
        }
    }
}

fn joined(only: Option<Bytes>, read: BytesMut) -> Bytes {
    only.unwrap_or_else(|| read.freeze())
}

fn question(
    sidecar: &Sidecar,
    head: &Parts,
    target: &PathAndQuery,
    collected: &Collected,
) -> Result<Request<RequestBody>, RequestError> {
    let given = collected
        .read
        .slice(..collected.read.len().min(sidecar.max_body));
    let partial = collected.rest.is_some() || given.len() < collected.read.len();
    let mut question = Request::new(RequestBody::whole(given, None));
    *question.method_mut() = head.method.clone();
    *question.version_mut() = Version::HTTP_11;
    *question.uri_mut() = uri::on(&sidecar.upstream, target)
        .map_err(|_| Refusal::Bad("the request target cannot be put behind the base path"))?;
    let headers = question.headers_mut();
    *headers = head.headers.clone();
    headers.insert(HOST, sidecar.upstream.host_header.clone());
    headers.remove(CONTENT_LENGTH);
    // Ours to say, so a client cannot.
    headers.remove(X_CANARY_BODY);
    if partial {
        headers.insert(X_CANARY_BODY, HeaderValue::from_static("partial"));
    }
    Ok(question)
}

/// Reads what the sidecar says beyond its status, so that the connection can be used again; not for
/// ever, and nobody waits for it.
fn drain(mut body: Incoming, lease: Lease, sidecar: &Sidecar) {
    if Body::is_end_stream(&body) {
        return lease.give_back();
    }
    let timeout = sidecar.upstream.client.timeout;
    spawn_local(async move {
        let mut drained = 0;
        let read_all = async {
            loop {
                match body.frame().await {
                    None => return true,
                    Some(Err(_)) => return false,
                    Some(Ok(frame)) => drained += frame.data_ref().map_or(0, Bytes::len),
                }
                if drained > DRAINED_BYTES {
                    return false;
                }
            }
        };
        if let Ok(true) = tokio::time::timeout(timeout, read_all).await {
            lease.give_back();
        }
    });
}
