//! Sends a decided request to its upstream, and passes the answer on.
//!
//! A request for the canary of which nothing could be sent goes to main (`fallback.replay`); that
//! cannot do anything twice. A request is sent again on another connection for the same reason only:
//! the one from the pool had been closed before a byte of the request left, or, as the kernel's
//! acknowledgements prove, before the upstream could read a byte of it.

use std::{future::poll_fn, rc::Rc, time::Duration};

use bytes::Bytes;
use http::{StatusCode, Version};
use tracing::{Level, debug, enabled};

use super::{
    body::{Body, RequestBody, ResponseBody},
    call::{Call, CallError},
    connection::Connection,
    error::{RequestError, UpstreamError},
    fields::Known,
    headers,
    message::{RequestHead, ResponseHead},
    pool::Pool,
    record::Record,
    service::{Reply, Then},
    upgrade::Tunnel,
    upload::{Message, Upload},
};
use crate::{
    clock,
    config::{Config, Replay, Upstream},
    policy::{FailureKind, FallbackOutcome, Outcome, Target},
};

/// A request that is decided, and what its sending depends on.
pub struct Exchange<'a> {
    /// The client's connection.
    pub connection: &'a Rc<Connection>,
    /// The configuration that this request goes by.
    pub config: &'a Config,
    /// The head, stripped and prepared; its target is trimmed.
    pub head: &'a RequestHead,
    /// The protocol that the client asks to switch to.
    pub upgrade: Option<Bytes>,
    /// Whether the client said `TE: trailers`.
    pub takes_trailers: bool,
}

/// An upstream's answer, and the connection that it comes by.
struct Answer {
    head: ResponseHead,
    call: Box<Call>,
}

/// A request that got no answer; given back where nothing of it can have been read.
struct Unanswered<E = RequestError> {
    error: E,
    unsent: Option<Box<Upload>>,
}

impl Exchange<'_> {
    /// Sends the request where its reason leads.
    ///
    /// # Errors
    /// No upstream gave a usable answer.
    pub async fn run(self, body: RequestBody, mut record: Record) -> Result<Reply, RequestError> {
        let target = record.reason().target();
        let mut upload = Upload::new(body);
        if self.config.log.request_body && enabled!(Level::DEBUG) {
            upload.body().logged(target);
        }
        let unanswered = match self.send(target, upload).await {
            Ok(answer) => return self.pass_on(target, answer, record),
            Err(unanswered) => unanswered,
        };
        if let RequestError::Upstream(error) = &unanswered.error {
            record.failed(target, error);
        }
        match (target, self.config.fallback.replay, unanswered.unsent) {
            (Target::Canary, Replay::Connect | Replay::Failures, Some(unsent)) => {
                self.fall_back(unsent, record).await
            }
            _ => Err(unanswered.error),
        }
    }

    /// The canary could not be reached: main answers, and the client does not notice.
    async fn fall_back(
        self,
        unsent: Box<Upload>,
        mut record: Record,
    ) -> Result<Reply, RequestError> {
        match self.send(Target::Main, unsent).await {
            Ok(answer) => {
                record.fell_back(FallbackOutcome::Answered);
                self.pass_on(Target::Main, answer, record)
            }
            Err(unanswered) => {
                record.fell_back(FallbackOutcome::Failed);
                if let RequestError::Upstream(error) = &unanswered.error {
                    record.failed(Target::Main, error);
                }
                Err(unanswered.error)
            }
        }
    }

    async fn send(&self, target: Target, upload: Box<Upload>) -> Result<Answer, Unanswered> {
        let (upstream, pool) = match target {
            Target::Main => (&self.config.main, &self.connection.worker.pools.main),
            Target::Canary => (&self.config.canary, &self.connection.worker.pools.canary),
        };
        let message = Message {
            head: self.head,
            client: &self.connection.forwarded_for,
            takes_trailers: self.takes_trailers,
            upgrade: self.upgrade.as_deref(),
            partial: None,
        };
        if enabled!(Level::DEBUG) {
            log(target, self.head, upload.length());
        }
        let informed = self.head.version == Version::HTTP_11;
        send_once(self.connection, pool, upstream, &message, upload, informed)
            .await
            .map_err(|Unanswered { error, unsent }| Unanswered {
                error: match error {
                    CallError::Client(broken) => broken.into(),
                    CallError::Upstream(error) => error.into(),
                },
                unsent,
            })
    }

    fn pass_on(
        self,
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
                return Err(error.into());
            };
            return Ok(Reply {
                head,
                body: Body::Text(Bytes::new()),
                then: Then::Tunnel(protocol, Box::new(Tunnel { io, read })),
            });
        }
        headers::strip_hop_by_hop(&mut head.headers);
        if Outcome::of_status(head.status.as_u16()) == Outcome::Failure {
            // Known for sure from the head; a success is one when its last byte has come.
            record.settle(Outcome::Failure);
        }
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

/// Sends on a connection from the pool, and on a new one if that turns out to have been closed before
/// the upstream could read anything of the request. Connecting has its own timeout, so that a request is
/// still in hand when that is over; `timeout` bounds both.
async fn send_once(
    connection: &Connection,
    pool: &Rc<Pool>,
    upstream: &Upstream,
    message: &Message<'_>,
    mut upload: Box<Upload>,
    informed: bool,
) -> Result<Answer, Unanswered<CallError>> {
    let deadline = clock::now() + upstream.client.timeout;
    let method = &message.head.method;
    let mut closed = false;
    loop {
        upload.address(upstream, message);
        let lease = match pool.lease(upstream, closed).await {
            Ok(lease) => lease,
            Err(error) => {
                return Err(Unanswered {
                    error: error.into(),
                    unsent: Some(upload),
                });
            }
        };
        let reused = lease.is_reused();
        let mut call = Call::new(lease, upload);
        let client = informed.then_some(connection);
        let response = poll_fn(|cx| {
            let sent = call.body_sent();
            let polled = call.poll_response(method, client, cx);
            // A service that takes the body slowly is at work. A sidecar has its time, and no more.
            if call.body_sent() > sent && message.partial.is_none() {
                connection.watch.upload_moved(upstream.client.timeout);
            }
            polled
        });
        let error = match connection.watch.within(deadline, response).await {
            Ok(Ok(head)) => return Ok(Answer { head, call }),
            Ok(Err(error)) => error,
            Err(_elapsed) => {
                return Err(Unanswered {
                    error: UpstreamError::new(FailureKind::Timeout).into(),
                    unsent: None,
                });
            }
        };
        let unsent = match error {
            // Of what the client broke off there is nothing to send to anybody.
            CallError::Client(_) => None,
            CallError::Upstream(_) => {
                // Boxed: it is rare, and would take its room in every request.
                Box::pin(call.into_unread()).await
            }
        };
        match unsent {
            Some(unsent) if reused => {
                debug!("the upstream had closed the connection; the request is sent again");
                (upload, closed) = (unsent, true);
            }
            unsent => return Err(Unanswered { error, unsent }),
        }
    }
}

/// Asks the sidecar: the same sending, without any of the passing on.
///
/// # Errors
/// No answer in time.
pub async fn ask(
    connection: &Connection,
    pool: &Rc<Pool>,
    upstream: &Upstream,
    message: &Message<'_>,
    body: RequestBody,
) -> Result<(StatusCode, Box<Call>), UpstreamError> {
    let upload = Upload::new(body);
    match send_once(connection, pool, upstream, message, upload, false).await {
        Ok(Answer { head, .. }) if head.status == StatusCode::SWITCHING_PROTOCOLS => {
            Err(UpstreamError::caused(
                FailureKind::Malformed,
                "it answered 101, which nobody had asked for",
            ))
        }
        Ok(Answer { head, call }) => Ok((head.status, call)),
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
