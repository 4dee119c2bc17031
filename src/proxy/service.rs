//! The pipeline: the whole life of one request, top to bottom.
//!
//! Facts of the request → [`decide()`] → (the sidecar) → a permit, or main → [`forward`] → the
//! reply. Its body settles permit and tally when it ends ([`super::body`]).
//!
//! A new rule about *where* a request goes is a variant of [`Reason`] and an arm in
//! [`crate::policy::decide`]; a new limit is a condition in [`crate::state::admission`]; a new
//! treatment of messages is in [`super::headers`] or [`super::forward`]. This function only says in
//! which order they come.

use std::{rc::Rc, sync::Arc, time::Instant};

use bytes::Bytes;
use http::{Method, StatusCode, Version};
use tracing::debug;

use super::{
    body::{Body, RequestBody},
    connection::Connection,
    error::{Chain, Refusal, RequestError},
    fields::{Fields, Known},
    forward::{self, Exchange},
    headers,
    http1::head,
    message::{RequestHead, ResponseHead},
    record::Record,
    sidecar,
    upgrade::Tunnel,
};
use crate::{
    policy::{
        Decision, Facts, Reason, Target,
        decide::{after_sidecar, decide, forced_by_header},
    },
    state::{Admission, Permit},
};

/// The path that is answered by the router itself.
const HEALTH: &str = "/application/health";

/// What the client gets.
pub struct Reply {
    /// The head; how the body is framed is not in it, except for a `Content-Length`.
    pub head: ResponseHead,
    /// The body.
    pub body: Body,
    /// How the connection goes on.
    pub then: Then,
}

/// How a connection goes on after a response.
pub enum Then {
    /// With the next request, if the client likes.
    Next,
    /// It closes: what follows on it cannot be trusted to be a request.
    Close,
    /// It speaks another protocol, this one.
    Tunnel(Bytes, Box<Tunnel>),
}

/// Answers one request. Its body is read from the connection.
pub async fn handle(request: RequestHead, connection: &Rc<Connection>, started: Instant) -> Reply {
    match route(request, connection, started).await {
        Ok(reply) => reply,
        Err(error) => explain(&error),
    }
}

async fn route(
    mut head: RequestHead,
    connection: &Rc<Connection>,
    started: Instant,
) -> Result<Reply, RequestError> {
    headers::vet(&head)?;
    if is_health_check(&head) {
        return Ok(text(StatusCode::OK, "OK"));
    }
    let worker = &connection.worker;
    let snapshot = worker.snapshot.current();
    let config = &snapshot.config;

    let upgrade = headers::wanted_upgrade(&head, !connection.is_body_over())?;
    let takes_trailers = headers::strip_hop_by_hop(&mut head.headers);
    head.target = head.target.trimmed(&config.trim_prefix);

    let facts = Facts {
        forced: forced_by_header(head.headers.get(Known::XCanary)),
        limits: worker.admission.spent(),
    };
    let timeout = forward::response_timeout(config);
    let stream = || RequestBody::streaming(Bytes::new(), connection, timeout);
    let (reason, body) = match (decide(facts, snapshot.rules), &config.sidecar) {
        (Decision::Route(reason), _) => (reason, stream()),
        // The rules ask for a sidecar only where there is one.
        (Decision::AskSidecar(_), None) => (Reason::NoSidecar, stream()),
        (Decision::AskSidecar(statuses), Some(sidecar)) => {
            let (answer, body) =
                sidecar::ask(connection, sidecar, &head, takes_trailers, timeout).await?;
            (after_sidecar(answer, statuses), body)
        }
    };

    let (reason, permit) = admit(reason, &worker.admission);
    let record = Record::new(Rc::clone(worker), reason, started, permit);
    Exchange {
        connection,
        config,
        head: &head,
        upgrade,
        takes_trailers,
    }
    .run(body, record)
    .await
}

/// HEAD is GET without the body (RFC 9110 section 9.3.2), and some probes prefer it.
fn is_health_check(head: &RequestHead) -> bool {
    head.target.path() == HEALTH.as_bytes() && matches!(head.method, Method::GET | Method::HEAD)
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
pub fn explain(error: &RequestError) -> Reply {
    debug!(error = %Chain(error), "request not forwarded");
    let mut reply = text(error.status(), format!("canary-router: {error}\n"));
    match error {
        RequestError::Refused(Refusal::Method) => {
            // What follows a CONNECT may be meant for the tunnel that was not made.
            reply.head.headers = own_fields(
                "content-type: text/plain; charset=utf-8\r\n\
                 allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS\r\n\r\n",
            );
            reply.then = Then::Close;
        }
        RequestError::Refused(_) | RequestError::Body(_) => reply.then = Then::Close,
        RequestError::Upstream(_) => {}
    }
    reply
}

fn text(status: StatusCode, text: impl Into<Bytes>) -> Reply {
    Reply {
        head: ResponseHead {
            status,
            reason: None,
            version: Version::HTTP_11,
            headers: own_fields("content-type: text/plain; charset=utf-8\r\n\r\n"),
        },
        body: Body::Text(text.into()),
        then: Then::Next,
    }
}

fn own_fields(section: &'static str) -> Fields {
    let section = Bytes::from_static(section.as_bytes());
    head::fields(&section, 8).expect("what we say ourselves is well-formed")
}
