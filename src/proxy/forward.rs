//! Sends a decided request to its upstream, and passes the answer on.
//!
//! A request for the canary that the canary does not answer well goes to main (`fallback.replay`): where
//! nothing of it can have been read, since that cannot do anything twice, and otherwise if it may be done
//! twice, can be had again, and is within the budget. Nothing of the canary's answer has gone to the client
//! by then. A request is sent again on another connection for the first reason only: the one from the pool
//! had been closed before a byte of the request left, or, as the kernel's acknowledgements prove, before
//! the upstream could read a byte of it.

use std::{future::poll_fn, rc::Rc, time::Duration};

use bytes::Bytes;
use http::{StatusCode, Version};
use tracing::{Level, debug, enabled};

use super::{
    body::{Body, RequestBody, ResponseBody},
    call::{Call, CallError, Fate},
    client::Client,
    error::{RequestError, UpstreamError},
    fields::Known,
    forwarded::Origin,
    headers,
    kit::Kit,
    message::{RequestHead, ResponseHead},
    notes::Flag,
    pool::{Leased, Pool, Want},
    record::Record,
    service::{self, Reply, Then},
    upgrade::Tunnel,
    upload::{Message, Upload},
};
use crate::{
    clock,
    config::{Config, FixedAnswer, Replay, Upstream},
    policy::{FailureKind, Fallback, Target, breaker::Refused, is_grpc_failure},
    state::Permit,
};

/// How often a request is sent at most to an upstream whose connections end before they look at it.
const MOST_TRIES: usize = 10;

/// A request that is decided, and what its sending depends on.
pub struct Exchange<'a> {
    /// The client.
    pub client: &'a Client,
    /// What is made of the configuration that this request goes by.
    pub kit: &'a Kit,
    /// That configuration.
    pub config: &'a Config,
    /// The head, stripped and prepared; its target is trimmed.
    pub head: &'a RequestHead,
    /// Where the request comes from.
    pub origin: &'a Origin<'a>,
    /// What it is called, where its client did not say so.
    pub request_id: Option<&'a [u8]>,
    /// The protocol that the client asks to switch to.
    pub upgrade: Option<Bytes>,
    /// Whether the client said `TE: trailers`.
    pub takes_trailers: bool,
}

/// An upstream's answer, and the connection that it comes by.
pub struct Answer {
    /// Its head.
    pub head: ResponseHead,
    /// What its body comes by.
    pub call: Call,
}

/// A request that got no answer.
struct Unanswered<E = RequestError> {
    error: E,
    request: Returned,
}

/// What is left of a request that got no answer.
enum Returned {
    /// All of it: nothing of it can have been read.
    Unread(Box<Upload>),
    /// What was not sent; the rest may have been read.
    Sent(Box<Upload>),
    /// Nothing: the client has broken it off.
    Lost,
}

impl Exchange<'_> {
    /// Sends the request where its reason leads, and elsewhere if that is allowed and of use.
    ///
    /// # Errors
    /// Nobody gave a usable answer, and there is no static one.
    pub async fn run(self, body: RequestBody, record: Record) -> Result<Reply, RequestError> {
        let target = record.reason().target();
        let tally = &self.client.worker().tally;
        let mut upload = Upload::new(body);
        if self.config.log.request_body && enabled!(Level::DEBUG) {
            upload.body().logged(target);
        }
        let answered = match target {
            Target::Main => self.to_main(upload, record).await,
            Target::Canary => self.to_canary(upload, record).await,
        };
        let error = match answered {
            Ok(reply) => return Ok(reply),
            Err(error) => error,
        };
        let Some(fixed) = self.instead_of(&error) else {
            return Err(error);
        };
        tally.fallback(match target {
            Target::Main => Fallback::MainStatic,
            Target::Canary => Fallback::CanaryStatic,
        });
        self.client.notes().flag(Flag::Static);
        Ok(service::fixed(fixed))
    }

    async fn to_main(
        &self,
        upload: Box<Upload>,
        mut record: Record,
    ) -> Result<Reply, RequestError> {
        match self.permit_for_main() {
            Ok(permit) => record.moved(permit),
            Err(refused) => {
                self.client.notes().flag(Flag::MainBreakerOpen);
                return Err(self.give_up(RequestError::MainOpen(refused), record));
            }
        }
        match self.send(Target::Main, upload, &mut record).await {
            Ok(answer) => self.pass_on(Target::Main, answer, record),
            Err(unanswered) => Err(self.give_up(unanswered.error, record)),
        }
    }

    async fn to_canary(
        &self,
        mut upload: Box<Upload>,
        mut record: Record,
    ) -> Result<Reply, RequestError> {
        let fallback = &self.config.fallback;
        let may_be_repeated = fallback.replay == Replay::Failures && self.is_idempotent();
        if may_be_repeated {
            upload.body().keep(fallback.max_body);
        }
        // A call keeps bodies for reasons of its own: what is longer than `max-body` is not for main all the same.
        let may_be_repeated = may_be_repeated && upload.is_repeatable();
        match self.send(Target::Canary, upload, &mut record).await {
            Ok(mut answer) => {
                let is_bad = fallback.statuses.contains(&answer.head.status.as_u16())
                    || has_failed_by_grpc(&answer.head);
                let wanted = is_bad && may_be_repeated && answer.call.is_repeatable();
                // What is not replayed stays with its call, which may not have sent all of it yet.
                let again = self.within_budget(wanted).and_then(|permit| {
                    let upload = answer.call.take_upload().again()?;
                    Some((upload, permit))
                });
                match again {
                    Some((upload, permit)) => {
                        // By a rule that its status is good for, it has done what it should.
                        record.completed();
                        answer.call.drain(self.config.canary.client.timeout);
                        Box::pin(self.replay(upload, permit, record)).await
                    }
                    None => self.pass_on(Target::Canary, answer, record),
                }
            }
            Err(Unanswered { error, request }) => {
                let again = match request {
                    // Of no use to the canary and no burden to main, which would have had it without a
                    // canary: the budget is not for this.
                    Returned::Unread(unread) if fallback.replay != Replay::Off => {
                        self.permit_for_main().ok().map(|permit| (unread, permit))
                    }
                    Returned::Sent(upload) if may_be_repeated => self
                        .within_budget(upload.is_repeatable())
                        .and_then(|permit| Some((upload.again()?, permit))),
                    Returned::Unread(_) | Returned::Sent(_) | Returned::Lost => {
                        let _counted = self.within_budget(false);
                        None
                    }
                };
                match again {
                    Some((upload, permit)) => Box::pin(self.replay(upload, permit, record)).await,
                    None => Err(self.give_up(error, record)),
                }
            }
        }
    }

    /// Whether the request may be sent twice (RFC 9110 section 9.2.2; the `Idempotency-Key` header field,
    /// draft-ietf-httpapi-idempotency-key-header).
    fn is_idempotent(&self) -> bool {
        self.config.fallback.methods.contains(&self.head.method)
            || self.head.headers.named("idempotency-key").next().is_some()
    }

    /// Counts a request that the canary has had, and looks whether it may go to main as well, if that is
    /// `wanted`.
    fn within_budget(&self, wanted: bool) -> Option<Option<Permit>> {
        if self.config.fallback.replay != Replay::Failures {
            return None;
        }
        // First: what main does not take costs nothing of the budget.
        let permit = match wanted {
            true => self.permit_for_main().ok(),
            false => None,
        };
        let again = permit.is_some();
        if self
            .kit
            .admission
            .may_repeat(again, clock::moment(clock::recent()))
        {
            return permit;
        }
        if again {
            self.client.worker().tally.fallback(Fallback::OverBudget);
        }
        None
    }

    fn permit_for_main(&self) -> Result<Option<Permit>, Refused> {
        self.kit.admission.admit_main(clock::uptime)
    }

    /// The canary has failed, and is charged: main answers, and the client does not notice.
    async fn replay(
        &self,
        upload: Box<Upload>,
        permit: Option<Permit>,
        mut record: Record,
    ) -> Result<Reply, RequestError> {
        record.end_trial();
        record.moved(permit);
        self.client.notes().flag(Flag::Replayed);
        match self.send(Target::Main, upload, &mut record).await {
            Ok(answer) => {
                record.fell_back(Fallback::Replayed);
                self.pass_on(Target::Main, answer, record)
            }
            Err(unanswered) => {
                record.fell_back(Fallback::ReplayFailed);
                Err(self.give_up(unanswered.error, record))
            }
        }
    }

    /// Sends, and charges the upstream for its answer, or for having none.
    async fn send(
        &self,
        target: Target,
        upload: Box<Upload>,
        record: &mut Record,
    ) -> Result<Answer, Unanswered> {
        let (upstream, pool) = match target {
            Target::Main => (&self.config.main, &self.kit.pools.main),
            Target::Canary => (&self.config.canary, &self.kit.pools.canary),
        };
        let message = Message {
            head: self.head,
            peer: self.client.peer(),
            origin: self.origin,
            request_id: self.request_id,
            takes_trailers: self.takes_trailers,
            upgrade: self.upgrade.as_deref(),
            sidecar: None,
            trace: self.client.notes().sending(target),
        };
        if enabled!(Level::DEBUG) {
            log(target, self.head, upload.length());
        }
        let informed = self.head.version >= Version::HTTP_11;
        record.sending(self.client.is_body_over());
        let sent = send_once(self.client, pool, upstream, &message, upload, informed).await;
        record.has_all_since(self.client.watch().uploaded());
        record.has_connection_since(self.client.watch().connected());
        match sent {
            Ok(answer) => {
                // Of a 101 it is not known yet whether anybody had asked for it.
                if answer.head.status != StatusCode::SWITCHING_PROTOCOLS {
                    record.answered(target, &answer.head);
                }
                Ok(answer)
            }
            Err(Unanswered { error, request }) => {
                let error = match error {
                    CallError::Client(broken) => broken.into(),
                    CallError::Upstream(error) => {
                        record.failed(target, &error);
                        error.into()
                    }
                };
                Err(Unanswered { error, request })
            }
        }
    }

    /// No upstream answers: the request is over but for what the client is told instead.
    fn give_up(&self, error: RequestError, mut record: Record) -> RequestError {
        record.responds(match self.instead_of(&error) {
            Some(fixed) => fixed.status,
            None => error.status(),
        });
        error
    }

    /// What was configured for when nobody else can answer, if that is so.
    fn instead_of(&self, error: &RequestError) -> Option<&FixedAnswer> {
        match error {
            RequestError::Upstream(_) | RequestError::MainOpen(_) => {
                self.config.fallback.fixed.as_ref()
            }
            RequestError::Refused(_) | RequestError::Body(_) => None,
        }
    }

    fn pass_on(
        &self,
        target: Target,
        answer: Answer,
        mut record: Record,
    ) -> Result<Reply, RequestError> {
        let Answer { mut head, call } = answer;
        if enabled!(Level::DEBUG) {
            debug!(
                from = target.label(),
                status = head.status.as_u16(),
                headers_json = headers::masked(&head.headers).as_str(),
                "answered"
            );
        }
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            let protocol = head.headers.get_bytes(Known::Upgrade);
            let protocol = protocol.filter(|protocol| !protocol.is_empty());
            headers::strip_hop_by_hop(&mut head.headers);
            let (Some(_), Some(protocol), Some((io, read))) =
                (&self.upgrade, protocol, call.into_tunnel())
            else {
                let error = UpstreamError::caused(
                    FailureKind::Malformed,
                    "it answered 101, which nobody had asked for",
                );
                record.failed(target, &error);
                return Err(self.give_up(error.into(), record));
            };
            record.answered(target, &head);
            record.responds(head.status);
            return Ok(Reply {
                head,
                body: Body::Text(Bytes::new()),
                then: Then::Tunnel(protocol, Box::new(Tunnel { io, read })),
            });
        }
        headers::strip_hop_by_hop(&mut head.headers);
        record.responds(head.status);
        let mut body = ResponseBody::new(call, target, record);
        if self.config.log.response_body && enabled!(Level::DEBUG) {
            body.logged();
        }
        Ok(Reply {
            head,
            body: Body::Upstream(body),
            then: Then::Next,
        })
    }
}

/// Whether a head is all there is of an answer of gRPC's, and says that the server has failed.
fn has_failed_by_grpc(head: &ResponseHead) -> bool {
    headers::is_grpc(head) && headers::grpc_status(&head.headers).is_some_and(is_grpc_failure)
}

/// Sends on a connection from the pool, and on a new one if that turns out to have been closed before
/// the upstream could read anything of the request. Connecting has its own timeout, so that a request is
/// still in hand when that is over; `timeout` bounds both.
async fn send_once(
    client: &Client,
    pool: &Rc<Pool>,
    upstream: &Upstream,
    message: &Message<'_>,
    mut upload: Box<Upload>,
    informed: bool,
) -> Result<Answer, Unanswered<CallError>> {
    let mut deadline = clock::now() + upstream.client.timeout;
    let method = &message.head.method;
    let mut tries = 0;
    loop {
        tries += 1;
        let want = Want {
            new: tries > 1,
            // What is written for one version cannot be sent by the other.
            http1: upload.is_written(),
            tunnel: message.upgrade.is_some(),
        };
        let asked = clock::recent();
        let leased = pool.lease(upstream, want).await;
        let reused = leased.as_ref().is_ok_and(Leased::is_reused);
        let called = match leased {
            Ok(leased) => {
                let made = leased.was_made_since(asked);
                if made {
                    client.watch().connected_now();
                }
                // Who has waited for others' connections has no time left for a request.
                if made && clock::recent() >= deadline {
                    return Err(Unanswered {
                        error: UpstreamError::new(FailureKind::ConnectTimeout).into(),
                        request: Returned::Unread(upload),
                    });
                }
                Call::new(leased, upload, upstream, message)
            }
            Err(error) => Err((error, upload)),
        };
        let mut call = match called {
            Ok(call) => call,
            Err((_, unread)) if reused && tries < MOST_TRIES => {
                upload = unread;
                continue;
            }
            Err((error, upload)) => {
                return Err(Unanswered {
                    error: error.into(),
                    request: Returned::Unread(upload),
                });
            }
        };
        let informed = informed.then_some(client);
        let response = poll_fn(|cx| {
            let sent = call.body_sent();
            let polled = call.poll_response(method, informed, cx);
            // A service that takes the body slowly is at work. A sidecar has its time, and no more.
            if call.body_sent() > sent && message.sidecar.is_none() {
                client.watch().upload_moved(upstream.client.timeout);
            }
            polled
        });
        let error = match client.watch().within(deadline, response).await {
            Ok(Ok(head)) => return Ok(Answer { head, call }),
            Ok(Err(error)) => error,
            Err(_elapsed) => {
                call.gave_up();
                return Err(Unanswered {
                    error: UpstreamError::new(FailureKind::Timeout).into(),
                    request: Returned::Sent(call.take_upload()),
                });
            }
        };
        let by_http2 = matches!(call, Call::Http2(_));
        if matches!(error, CallError::Client(_)) {
            // Of what the client broke off there is nothing to send to anybody.
            let request = Returned::Lost;
            return Err(Unanswered { error, request });
        }
        // Boxed: it is rare, and would take its room in every request.
        let (returned, fate) = Box::pin(call.into_unanswered(method)).await;
        // Another connection may be about to end too, where many requests go to one that takes few.
        let most = match fate {
            Fate::PerhapsRead => 0,
            Fate::Unread if reused || by_http2 => 2,
            Fate::Unread => 0,
            Fate::TurnedAway => MOST_TRIES,
        };
        if tries < most {
            debug!("the upstream has not looked at the request, which is sent again");
            upload = returned;
            deadline = client.watch().renewed(deadline, upstream.client.timeout);
            continue;
        }
        let request = match fate {
            Fate::PerhapsRead => Returned::Sent(returned),
            Fate::Unread | Fate::TurnedAway => Returned::Unread(returned),
        };
        return Err(Unanswered { error, request });
    }
}

/// Asks the sidecar: the same sending, without any of the passing on.
///
/// # Errors
/// No answer in time.
pub async fn ask(
    client: &Client,
    pool: &Rc<Pool>,
    upstream: &Upstream,
    message: &Message<'_>,
    body: RequestBody,
) -> Result<Answer, UpstreamError> {
    let upload = Upload::new(body);
    match send_once(client, pool, upstream, message, upload, false).await {
        Ok(Answer { head, .. }) if head.status == StatusCode::SWITCHING_PROTOCOLS => {
            Err(UpstreamError::caused(
                FailureKind::Malformed,
                "it answered 101, which nobody had asked for",
            ))
        }
        Ok(answer) => Ok(answer),
        Err(Unanswered { error, .. }) => match error {
            CallError::Upstream(error) => Err(error),
            // It is given a body that is whole.
            CallError::Client(broken) => Err(UpstreamError::caused(FailureKind::Reset, broken)),
        },
    }
}

/// The head of a request as it goes out, for the debug log; credentials are masked. The target is
/// shown without what the configuration puts before it, where a key may be.
fn log(target: Target, head: &RequestHead, length: Option<u64>) {
    debug!(
        to = target.label(),
        method = %head.method,
        uri = %String::from_utf8_lossy(head.target.as_bytes()),
        length,
        headers_json = headers::masked(&head.headers).as_str(),
        "forwarding"
    );
}

/// How long an upstream may take to answer after a request body's last progress.
pub fn response_timeout(config: &Config) -> Duration {
    // Main and canary share their client settings.
    config.main.client.timeout
}
