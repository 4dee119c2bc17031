//! The pipeline: the whole life of one request, top to bottom.
//!
//! Facts of the request → [`decide()`] → (the sidecar) → (a draw by the weight) → a permit, or main →
//! [`forward`] → the reply. Its body settles permit and tally when it ends ([`super::body`]).
//!
//! A new rule about *where* a request goes is a variant of [`Reason`] and an arm in
//! [`crate::policy::decide`]; a new limit is a condition in [`crate::state::admission`]; a new
//! treatment of messages is in [`super::headers`] or [`super::forward`]. This function only says in
//! which order they come.

use std::{borrow::Cow, sync::Arc, time::Instant};

use bytes::{BufMut, Bytes, BytesMut};
use http::{Method, StatusCode, Version};
use tracing::debug;

use super::{
    body::{Body, RequestBody},
    client::Client,
    error::{Refusal, RequestError},
    fields::{Known, KnownSet, put_field},
    forward::{self, Exchange},
    forwarded::{self, Origin, Peer},
    headers,
    http1::head::{self, BadHead},
    http2::head::MOST_FIELDS,
    kit::Kit,
    message::{RequestHead, ResponseHead},
    notes::{Flag, Notes},
    record::Record,
    sidecar::{self, Question},
    upgrade::Tunnel,
    uri,
};
use crate::{
    causes::Chain,
    clock,
    config::FixedAnswer,
    policy::{
        Decision, Facts, Reason, Target,
        decide::{after_sidecar, decide, forced_by_header},
    },
    state::{Admission, Permit, Snapshot, Trial},
    uuid,
};

/// The path that is answered by the router itself.
const HEALTH: &str = "/application/health";

/// Name and value of a field.
type Line<'a> = (&'a [u8], &'a [u8]);

const TEXT: Line<'_> = (b"content-type", b"text/plain; charset=utf-8");
const METHODS: &[u8] = b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

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
pub async fn handle(request: RequestHead, client: &Client, started: Instant) -> Reply {
    match route(request, client, started).await {
        Ok(reply) => reply,
        Err(error) => explain(&error, client.notes()),
    }
}

async fn route(
    mut head: RequestHead,
    client: &Client,
    started: Instant,
) -> Result<Reply, RequestError> {
    headers::vet(&head)?;
    if is_health_check(&head) {
        return Ok(own(StatusCode::OK, &[TEXT], "OK"));
    }
    let (worker, peer) = (client.worker(), client.peer());
    let snapshot = worker.snapshot.current();
    let kit = &*worker.kit_for(&snapshot);
    let config = &*snapshot.config;

    let upgrade = headers::wanted_upgrade(&head, !client.is_body_over())?;
    let takes_trailers = headers::strip_hop_by_hop(&mut head.headers);
    head.target = head.target.trimmed(&config.trim_prefix);

    if config.speaks_http2 {
        // Here, and not where it would be the upstream's failure.
        if head.headers.len() > MOST_FIELDS {
            return Err(Refusal::Head(BadHead::TooLarge).into());
        }
        if !uri::can_be_said(&head.target) {
            return Err(Refusal::Bad("the request target cannot be said in HTTP/2").into());
        }
    }

    let proxies = &config.server.trusted_proxies;
    if let Some(trusted) = &config.trusted_overrides {
        let client = forwarded::origin(&head.headers, peer, proxies).client;
        if !trusted.iter().any(|net| net.contains(&client)) {
            head.headers.remove(KnownSet::of(&[Known::XCanary]));
        }
    }
    let origin = forwarded::origin(&head.headers, peer, proxies);
    let request_id = made_request_id(&head);
    let request_id = request_id.as_ref().map(|id| &id[..]);
    let notes = client.notes();
    let called = || request_id.or_else(|| head.headers.get(Known::XRequestId));
    notes.came_from(&origin, peer, called);
    let facts = Facts {
        forced: forced_by_header(head.headers.get(Known::XCanary)),
        barriers: kit.admission.barriers(clock::uptime),
        weight: snapshot.split.weight,
    };
    let timeout = forward::response_timeout(config);
    let stream = || RequestBody::streaming(Bytes::new(), client, timeout);
    let (reason, body) = match (decide(facts, snapshot.rules), &config.sidecar) {
        (Decision::Route(reason), _) => (reason, stream()),
        (Decision::Eligible, _) => (Reason::WeightCanary, stream()),
        // The rules ask for a sidecar only where there is one.
        (Decision::AskSidecar(_), None) => (Reason::NoSidecar, stream()),
        (Decision::AskSidecar(statuses), Some(sidecar)) => {
            let question = Question {
                kit,
                head: &head,
                origin: &origin,
                request_id,
                takes_trailers,
                response_timeout: timeout,
                statuses,
            };
            let (answer, body) = sidecar::decide(client, sidecar, &question).await?;
            (after_sidecar(answer, statuses), body)
        }
    };

    let (reason, trial) = match reason.is_eligible() {
        true => draw(reason, &snapshot, kit, &head, &origin, client),
        false => (reason, None),
    };
    let (admitted, permit) = admit(reason, &kit.admission);
    let decided = clock::recent();
    notes.add(|entry| {
        entry.decided = Some((admitted, decided));
        entry.statuses = config.sidecar_statuses;
    });
    let mut record = Record::new(client.clone(), admitted, started, permit);
    // What was demoted is not where chance has put it.
    if let Some((snapshot, trial)) = trial
        && admitted == reason
    {
        record.judge(snapshot, trial);
    }
    Exchange {
        client,
        kit,
        config,
        head: &head,
        origin: &origin,
        request_id,
        upgrade,
        takes_trailers,
    }
    .run(body, record)
    .await
}

/// Draws for an eligible request: by the weight of this moment, since the sidecar may have taken its time and a
/// rollback holds at once. If the judge is to know how it ends, says for what.
#[inline(never)] // It is not for every request, and would make the future of all of them larger.
fn draw(
    reason: Reason,
    began: &Snapshot,
    kit: &Kit,
    head: &RequestHead,
    origin: &Origin<'_>,
    client: &Client,
) -> (Reason, Option<(Arc<Snapshot>, Trial)>) {
    let worker = client.worker();
    let snapshot = worker.snapshot.current();
    let is_own = Arc::ptr_eq(&kit.config, &snapshot.config);
    // What another configuration makes the weight is not for this request.
    let split = match is_own || snapshot.split.rolled_back {
        true => snapshot.split,
        false => began.split,
    };
    let sticky = kit.config.traffic.sticky.as_ref();
    let address = || shown(origin, client.peer());
    let lot = worker.lots.draw(split, sticky, head, address);
    client.set_cookie(lot.cookie);
    let reason = reason.drawn(lot.target);
    // Where something stands before one of the targets, requests are missing there, and nothing can be compared.
    // And a request that began under another configuration may go to another service than the one that is judged.
    let is_comparable = || is_own && kit.admission.is_clear();
    let tick = split.tick.filter(|_| is_comparable());
    let trial = tick.map(|tick| {
        let trial = Trial {
            tick,
            target: lot.target,
            key: lot.key,
            is_new: lot.is_new,
        };
        (snapshot, trial)
    });
    (reason, trial)
}

/// The client's address as text.
pub fn shown<'a>(origin: &Origin<'_>, peer: &'a Peer) -> Cow<'a, str> {
    match origin.client == peer.address {
        true => Cow::Borrowed(&peer.text),
        false => Cow::Owned(origin.client.to_string()),
    }
}

/// What a request is called that does not say so itself.
fn made_request_id(head: &RequestHead) -> Option<[u8; 36]> {
    let said = head.headers.get(Known::XRequestId);
    match said.is_some_and(|id| !id.is_empty()) {
        true => None,
        false => Some(uuid::fresh(fastrand::u128(..))),
    }
}

/// HEAD is GET without the body (RFC 9110 section 9.3.2), and some probes prefer it.
fn is_health_check(head: &RequestHead) -> bool {
    head.target.path() == HEALTH.as_bytes() && matches!(head.method, Method::GET | Method::HEAD)
}

/// A request for the canary needs a permit; refused, it goes to main. Whether main may have it is for
/// later: it may have the canary's too.
fn admit(reason: Reason, admission: &Arc<Admission>) -> (Reason, Option<Permit>) {
    match (reason.target(), reason) {
        (Target::Main, reason) => (reason, None),
        (Target::Canary, Reason::HeaderTrue) => (reason, Some(admission.admit_forced())),
        (Target::Canary, reason) => match admission.admit(clock::uptime) {
            Ok(permit) => (reason, Some(permit)),
            Err(refusal) => (reason.demoted(refusal), None),
        },
    }
}

/// What was configured for when nobody else can answer.
pub fn fixed(answer: &FixedAnswer) -> Reply {
    let content_type = (&b"content-type"[..], answer.content_type.as_bytes());
    own(answer.status, &[content_type], answer.body.clone())
}

/// The answer to a request that no upstream answered, which is noted if that is its client's doing.
pub fn explain(error: &RequestError, notes: &Notes) -> Reply {
    debug!(error = %Chain(error), "request not forwarded");
    match error {
        RequestError::Refused(_) => notes.flag(Flag::Refused),
        RequestError::Body(_) => notes.flag(Flag::BodyBroken),
        // Noted with who did it.
        RequestError::Upstream(_) | RequestError::MainOpen(_) => {}
    }
    let text = format!("canary-router: {error}\n");
    let mut reply = match error {
        RequestError::Refused(Refusal::Method) => {
            own(error.status(), &[TEXT, (b"allow", METHODS)], text)
        }
        RequestError::MainOpen(refused) => {
            // Whole seconds (RFC 9110 section 10.2.3), and not at once.
            let seconds = refused
                .retry_after
                .as_secs_f64()
                .ceil()
                .max(1.0)
                .to_string();
            let retry_after = (&b"retry-after"[..], seconds.as_bytes());
            own(error.status(), &[TEXT, retry_after], text)
        }
        _ => own(error.status(), &[TEXT], text),
    };
    reply.then = match error {
        // What follows a CONNECT may be meant for the tunnel that was not made.
        RequestError::Refused(_) | RequestError::Body(_) => Then::Close,
        RequestError::Upstream(_) | RequestError::MainOpen(_) => Then::Next,
    };
    reply
}

/// An answer of our own.
fn own(status: StatusCode, lines: &[Line<'_>], body: impl Into<Bytes>) -> Reply {
    let mut section = BytesMut::new();
    for (name, value) in lines {
        put_field(&mut section, name, value);
    }
    section.put_slice(b"\r\n");
    let section = section.freeze();
    Reply {
        head: ResponseHead {
            status,
            reason: None,
            version: Version::HTTP_11,
            headers: head::fields(&section, 8).expect("what we say ourselves is well-formed"),
        },
        body: Body::Text(body.into()),
        then: Then::Next,
    }
}
