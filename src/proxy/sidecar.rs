//! Asks the sidecar whether a request is for main or for the canary.
//!
//! The sidecar gets what the upstream will get: method, headers, query, and the body, up to
//! `sidecar.max-body`. Whatever it does (refuses, hangs, drips, dies, answers without end), the
//! request is none the worse: the answer is main within the sidecar's timeout, the upstream gets the
//! request whole, and no more than `max-body` of it is held in memory.

use std::{
    future::poll_fn,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use tracing::{debug, warn};

use super::{
    answers::{self, Kept, NoAnswer},
    body::RequestBody,
    client::Client,
    error::RequestError,
    fields::Fields,
    forward::{self, Answer},
    forwarded::Origin,
    kit::Kit,
    message::{Frame, RequestHead},
    service,
    upload::{Message, Part},
};
use crate::{
    causes::Chain,
    clock,
    config::{Sidecar, SidecarBody},
    policy::{
        CacheResult, Outcome, Reason, SidecarAnswer, SidecarResult, SidecarStatuses,
        breaker::Ticket, decide::after_sidecar,
    },
    state::Gate,
};

/// The first allocation for a body whose length is not known, or is too large to be believed.
const FIRST_ALLOCATION: usize = 16 << 10;

/// The request body as far as it was read for the sidecar.
struct Collected {
    read: Bytes,
    trailers: Option<Fields>,
    /// Whether that is all of it.
    whole: bool,
}

/// Asks, or knows the answer already. Gives it back with the request body for the upstream.
///
/// # Errors
/// The request body broke off: nobody gets any of it.
pub async fn decide(
    client: &Client,
    sidecar: &Sidecar,
    question: &Question<'_>,
) -> Result<(SidecarAnswer, RequestBody), RequestError> {
    let worker = client.worker();
    let untouched = || RequestBody::streaming(Bytes::new(), client, question.response_timeout);
    let kit = question.kit;
    let cache = kit.answers.as_ref().zip(sidecar.cache.as_ref());
    let cache = cache.map(|(answers, declared)| {
        let key = answers::key(&declared.key, question.head, || {
            service::shown(question.origin, client.peer())
        });
        (answers, declared.ttl, key)
    });
    if let Some((answers, _, key)) = &cache
        && let Some(answer) = Box::pin(answers.kept(key)).await
    {
        worker.tally.cache(CacheResult::Hit);
        return Ok((answer, untouched()));
    }
    if kit.admission.sidecar().refuses(clock::uptime).is_some() {
        worker.tally.sidecar(SidecarResult::BreakerOpen, None);
        return Ok((SidecarAnswer::Failed, untouched()));
    }
    // Now, and not when it is this request's turn to ask: a client may take its time with its body, and
    // neither who waits for the same answer nor the sidecar's breaker is to wait for that.
    let (given, part, body) = match sidecar.body {
        SidecarBody::None => (Bytes::new(), Part::None, untouched()),
        SidecarBody::Full => shared_out(collect(client, sidecar).await?, client, sidecar, question),
    };
    let asked = ask(client, sidecar, question, given, part);
    let answer = match cache {
        None => asked.await.answer,
        Some((answers, ttl, key)) => {
            let asked = async { asked.await.to_be_kept(ttl) };
            // Boxed, here and above: it would take its room in every request, also without a cache.
            let (answer, result) = Box::pin(answers.get(key, asked)).await;
            worker.tally.cache(result);
            answer
        }
    };
    Ok((answer, body))
}

/// What the sidecar gets of a body, and what the upstream.
fn shared_out(
    collected: Collected,
    client: &Client,
    sidecar: &Sidecar,
    question: &Question<'_>,
) -> (Bytes, Part, RequestBody) {
    let Collected {
        read,
        trailers,
        whole,
    } = collected;
    let given = read.slice(..read.len().min(sidecar.max_body));
    let part = match whole && given.len() == read.len() {
        true => Part::All,
        false => Part::Beginning,
    };
    let body = match whole {
        true => RequestBody::whole(read, trailers),
        false => RequestBody::streaming(read, client, question.response_timeout),
    };
    (given, part, body)
}

/// What the sidecar is asked about.
pub struct Question<'a> {
    /// What is made of the configuration that this request goes by.
    pub kit: &'a Kit,
    /// The request as the upstream will get it.
    pub head: &'a RequestHead,
    /// Where it comes from.
    pub origin: &'a Origin<'a>,
    /// What it is called, where its client did not say so.
    pub request_id: Option<&'a [u8]>,
    /// Whether the client said `TE: trailers`.
    pub takes_trailers: bool,
    /// How long the upstream may take to answer.
    pub response_timeout: Duration,
    /// What its answers mean.
    pub statuses: SidecarStatuses,
}

/// What came of asking.
struct Asked {
    answer: SidecarAnswer,
    /// How long the answer may be used, where it says so.
    max_age: Option<Duration>,
}

impl Asked {
    const FAILED: Asked = Asked {
        answer: SidecarAnswer::Failed,
        max_age: None,
    };

    fn to_be_kept(&self, ttl: Duration) -> Result<Kept, NoAnswer> {
        match self.answer {
            SidecarAnswer::Status(status) => Ok(Kept {
                status,
                ttl: self.max_age.unwrap_or(ttl),
            }),
            SidecarAnswer::Failed => Err(NoAnswer),
        }
    }
}

/// Asks, and gives the sidecar this part of the request body.
async fn ask(
    client: &Client,
    sidecar: &Sidecar,
    question: &Question<'_>,
    given: Bytes,
    part: Part,
) -> Asked {
    let worker = client.worker();
    let kit = question.kit;
    let Some(pool) = &kit.pools.sidecar else {
        // There is one where there is a sidecar.
        return Asked::FAILED;
    };
    let gate = kit.admission.sidecar();
    let Some(turn) = Turn::begin(gate, sidecar.upstream.client.timeout) else {
        worker.tally.sidecar(SidecarResult::BreakerOpen, None);
        return Asked::FAILED;
    };
    let trace = client.notes().asking();
    let message = Message {
        head: question.head,
        peer: client.peer(),
        origin: question.origin,
        request_id: question.request_id,
        takes_trailers: question.takes_trailers,
        upgrade: None,
        sidecar: Some(part),
        trace,
    };
    let given = RequestBody::whole(given, None);
    let asked = forward::ask(client, pool, &sidecar.upstream, &message, given).await;
    let (outcome, result, asked) = match asked {
        Ok(Answer { head, call }) => {
            call.drain(sidecar.upstream.client.timeout);
            let answer = SidecarAnswer::Status(head.status.as_u16());
            let asked = Asked {
                answer,
                max_age: answers::max_age(&head.headers),
            };
            (
                Outcome::Success,
                result_of(answer, question.statuses),
                asked,
            )
        }
        Err(error) => {
            if let Some(suppressed) = worker.warnings.sidecar.allow() {
                let kind = error.kind.label();
                warn!(kind, error = %Chain(&error), suppressed, "sidecar failed, the request goes to main");
            }
            (Outcome::Failure, SidecarResult::Error, Asked::FAILED)
        }
    };
    client.notes().asked(result);
    let took = turn.end(outcome);
    worker.tally.sidecar(result, Some(took));
    asked
}

/// A request's turn to ask. If its client leaves when the sidecar has had half of its time, the sidecar has
/// failed: otherwise clients that are less patient than `to-sidecar.timeout` would go on asking one that
/// hangs.
struct Turn<'a> {
    gate: &'a Gate,
    /// `None` once it is over.
    ticket: Option<Ticket>,
    began: Instant,
    patience: Duration,
}

impl<'a> Turn<'a> {
    /// `None` where the sidecar is not to be asked.
    fn begin(gate: &'a Gate, timeout: Duration) -> Option<Turn<'a>> {
        Some(Turn {
            ticket: Some(gate.admit(clock::uptime).ok()?),
            gate,
            began: clock::now(),
            patience: timeout / 2,
        })
    }

    /// The sidecar has answered, or has failed. How long it took.
    fn end(mut self, outcome: Outcome) -> Duration {
        let now = clock::now();
        self.settle(outcome, now);
        now.saturating_duration_since(self.began)
    }

    fn settle(&mut self, outcome: Outcome, now: Instant) {
        let took = now.saturating_duration_since(self.began);
        if let Some(ticket) = self.ticket.take() {
            let chance = fastrand::f64();
            self.gate
                .settle(ticket, outcome, took, clock::moment(now), chance);
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if self.ticket.is_none() {
            return;
        }
        let now = clock::now();
        let outcome = match now.saturating_duration_since(self.began) < self.patience {
            true => Outcome::Ignored,
            false => Outcome::Failure,
        };
        self.settle(outcome, now);
    }
}

fn result_of(answer: SidecarAnswer, statuses: SidecarStatuses) -> SidecarResult {
    match after_sidecar(answer, statuses) {
        Reason::SidecarCanary => SidecarResult::Canary,
        Reason::SidecarMain => SidecarResult::Main,
        _ => SidecarResult::NonStandard,
    }
}

/// Reads the body, up to `max-body`. A client that pauses for longer than the sidecar's timeout is
/// not waited for either: it may be waiting for a response to what it has sent.
async fn collect(client: &Client, sidecar: &Sidecar) -> Result<Collected, RequestError> {
    let mut read = BytesMut::new();
    let mut only: Option<Bytes> = None;
    let mut trailers = None;
    let whole = loop {
        let length = read.len() + only.as_ref().map_or(0, Bytes::len);
        if client.is_body_over() {
            break true;
        }
        if length > sidecar.max_body {
            break false;
        }
        let deadline = clock::now() + sidecar.upstream.client.timeout;
        client.watch().reading_body(true);
        let frame = poll_fn(|cx| client.poll_body(cx));
        let frame = client.watch().within(deadline, frame).await;
        client.watch().reading_body(false);
        let data = match frame {
            Err(_elapsed) => break false,
            Ok(None) => break true,
            Ok(Some(Err(error))) => {
                debug!(%error, "the request body broke off");
                return Err(error.into());
            }
            Ok(Some(Ok(Frame::Trailers(fields)))) => {
                trailers = Some(fields);
                break true;
            }
            Ok(Some(Ok(Frame::Data(data)))) => data,
        };
        // Most bodies are one piece, which is not copied. Of many small pieces each one would keep the
        // whole buffer alive that it was read into; copied they take what they are.
        if length == 0 {
            only = Some(data);
            continue;
        }
        if let Some(first) = only.take() {
            let expected = client.body_length().unwrap_or(0) as usize;
            read.reserve(first.len() + data.len() + expected.min(FIRST_ALLOCATION));
            read.extend_from_slice(&first);
        }
        read.extend_from_slice(&data);
    };
    Ok(Collected {
        read: only.unwrap_or_else(|| read.freeze()),
        trailers,
        whole,
    })
}
