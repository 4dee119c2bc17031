//! The pipeline: the whole life of one request, top to bottom.
//!
//! Facts of the request → [`decide()`] → (the sidecar) → a permit, or main → [`forward`] → the
//! response. Its body settles permit and tally when it ends ([`super::body`]).
//!
//! A new rule about *where* a request goes is a variant of [`Reason`] and an arm in
//! [`crate::policy::decide`]; a new limit is a condition in [`crate::state::admission`]; a new
//! treatment of messages is in [`super::headers`] or [`super::forward`]. This function only says in
//! which order they come.

use std::{rc::Rc, sync::Arc, time::Instant};

use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{ALLOW, CONNECTION, CONTENT_TYPE},
};
use hyper::body::{Body as _, Incoming};
use tracing::debug;

use super::{
    body::{Body, RequestBody},
    connection::Connection,
    error::{Chain, ClientGone, Origin, Refusal, RequestError},
    forward::{self, Exchange},
    headers,
    record::Record,
    sidecar, uri,
    watch::Stage,
};
use crate::{
    clock,
    policy::{
        Decision, Facts, Reason, Target,
        decide::{after_sidecar, decide, forced_by_header},
    },
    state::{Admission, Permit},
};

/// The path that is answered by the router itself.
const HEALTH: &str = "/application/health";

/// Answers one request.
///
/// # Errors
/// None that the client could be told of: it has left.
pub async fn handle(
    request: Request<Incoming>,
    connection: Rc<Connection>,
) -> Result<Response<Body>, ClientGone> {
    let started = clock::now();
    connection.watch.enter(Stage::Request, started);
    let mut response = match route(request, &connection, started).await {
        Ok(response) => response,
        Err(error) => {
            if error.origin() == Origin::Downstream {
                connection.note_unread_body();
            }
            explain(&error, &connection)
        }
    };
    if connection.worker.is_draining() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
        response
            .headers_mut()
            .insert(CONNECTION, HeaderValue::from_static("close"));
    }
    connection.ready_for_response().await;
    connection.watch.enter(Stage::Response, clock::now());
    Ok(response)
}

async fn route(
    request: Request<Incoming>,
    connection: &Rc<Connection>,
    started: Instant,
) -> Result<Response<Body>, RequestError> {
    if is_health_check(&request) {
        return Ok(Response::new(Body::text("OK", connection)));
    }
    let worker = &connection.worker;
    let snapshot = worker.snapshot.current();
    let config = &snapshot.config;

    let (mut head, body) = request.into_parts();
    headers::vet(&head)?;
    let upgrade = headers::wanted_upgrade(&head, !body.is_end_stream())?;
    headers::strip_hop_by_hop(&mut head.headers);
    headers::prepare(&mut head.headers, &connection.forwarded_for);
    let target = uri::trimmed(&head.uri, &config.trim_prefix)
        .map_err(|_| Refusal::Bad("the request target has no path behind the prefix"))?;

    let facts = Facts {
        forced: forced_by_header(
            head.headers
                .get(headers::X_CANARY)
                .map(HeaderValue::as_bytes),
        ),
        limits: worker.admission.spent(),
    };
    let timeout = forward::response_timeout(config);
    let stream = |body| RequestBody::streaming(Bytes::new(), body, connection, timeout);
    let (reason, body) = match (decide(facts, snapshot.rules), &config.sidecar) {
        (Decision::Route(reason), _) => (reason, stream(body)),
        // The rules ask for a sidecar only where there is one.
        (Decision::AskSidecar(_), None) => (Reason::NoSidecar, stream(body)),
        (Decision::AskSidecar(statuses), Some(sidecar)) => {
            let (answer, body) =
                sidecar::ask(connection, sidecar, &head, &target, body, timeout).await?;
            (after_sidecar(answer, statuses), body)
        }
    };

    let (reason, permit) = admit(reason, &worker.admission);
    let record = Record::new(Rc::clone(worker), reason, started, permit);
    let version = head.version;
    Exchange {
        connection,
        config,
        target,
        upgrade,
        version,
    }
    .run(head, body, record)
    .await
}

/// HEAD is GET without the body (RFC 9110 section 9.3.2), and some probes prefer it.
fn is_health_check(request: &Request<Incoming>) -> bool {
    request.uri().path() == HEALTH && matches!(*request.method(), Method::GET | Method::HEAD)
}

/// A request for the canary needs a permit; refused, it goes to main.
fn admit(reason: Reason, admission: &Arc<Admission>) -> (Reason, Option<Permit>) {
    match (reason.target(), reason) {
        (Target::Main, reason) => (reason, None),
        (Target::Canary, Reason::HeaderTrue) => (reason, Some(admission.admit_forced())),
        (Target::Canary, reason) => match admission.admit() {
            Some(permit) => (reason, Some(permit)),
            None => (reason.demoted(), None),
        },
    }
}

/// The answer to a request that no upstream answered.
fn explain(error: &RequestError, connection: &Rc<Connection>) -> Response<Body> {
    debug!(error = %Chain(error), "request not forwarded");
    let status = error.status();
    let text = format!("canary-router: {error}\n");
    let mut response = Response::new(Body::text(text, connection));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    match error {
        // What follows on this connection cannot be trusted to be a request.
        RequestError::Refused(Refusal::Bad(_)) | RequestError::Body => {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        RequestError::Refused(Refusal::Method) => {
            headers.insert(
                ALLOW,
                HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"),
            );
        }
        RequestError::Upstream(_) => {}
    }
    response
}
