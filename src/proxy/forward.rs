//! Sends a decided request to its upstream, and passes the answer on.
//!
//! A request for the canary of which nothing could be sent goes to main (`fallback.replay`); that
//! cannot do anything twice. A request is sent again on another connection for the same reason only:
//! the one from the pool had been closed before a byte of the request left.

use std::{rc::Rc, time::Duration};

use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response, StatusCode, Version,
    header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING, UPGRADE},
    request::Parts,
    uri::PathAndQuery,
};
use hyper::body::Incoming;
use tokio::sync::oneshot;
use tracing::{Level, debug, enabled};

use super::{
    body::{Body, RequestBody, ResponseBody},
    connection::Connection,
    error::{Refusal, RequestError, UpstreamError, classify},
    headers,
    pool::{Lease, Pool, Upgraded},
    record::Record,
    upgrade::Tunnel,
    uri,
    watch::Watch,
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
    /// The trimmed request target.
    pub target: PathAndQuery,
    /// The protocol that the client asks to switch to.
    pub upgrade: Option<HeaderValue>,
    /// The client's version of HTTP.
    pub version: Version,
}

/// An upstream's answer, and the connection that it came by.
struct Answer {
    response: Response<Incoming>,
    lease: Lease,
    tunnel: Option<oneshot::Receiver<Upgraded>>,
}

/// A request that got no answer; given back where nothing of it was sent.
struct Unanswered<E = RequestError> {
    error: E,
    unsent: Option<Request<RequestBody>>,
}

impl Exchange<'_> {
    /// Sends the request (`head` stripped and prepared) where its reason leads.
    ///
    /// # Errors
    /// No upstream gave a usable answer.
    pub async fn run(
        self,
        head: Parts,
        body: RequestBody,
        mut record: Record,
    ) -> Result<Response<Body>, RequestError> {
        let target = record.reason().target();
        let request = self.request(head, body, target);
        let unanswered = match self.send(target, request).await {
            Ok(answer) => return self.pass_on(target, answer, record),
            Err(unanswered) => unanswered,
        };
        if let RequestError::Upstream(error) = &unanswered.error {
            record.failed(target, error);
        }
        match (target, self.config.replay, unanswered.unsent) {
            (Target::Canary, Replay::Connect, Some(unsent)) => self.fall_back(unsent, record).await,
            _ => Err(unanswered.error),
        }
    }

    /// The canary could not be reached: main answers, and the client does not notice.
    async fn fall_back(
        self,
        request: Request<RequestBody>,
        mut record: Record,
    ) -> Result<Response<Body>, RequestError> {
        match self.send(Target::Main, request).await {
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

    /// All of the request that is the same for either upstream.
    fn request(&self, head: Parts, body: RequestBody, target: Target) -> Request<RequestBody> {
        let body = match self.config.log.request_body && enabled!(Level::DEBUG) {
            true => body.logged(target),
            false => body,
        };
        let mut request = Request::from_parts(head, body);
        // What hyper's server left there is not for hyper's client.
        request.extensions_mut().clear();
        *request.version_mut() = Version::HTTP_11;
        frame(&mut request);
        if let Some(protocol) = &self.upgrade {
            headers::ask_upgrade(request.headers_mut(), protocol.clone());
        }
        if self.version == Version::HTTP_11 {
            self.connection.pass_informational(&mut request);
        }
        request
    }

    async fn send(
        &self,
        target: Target,
        mut request: Request<RequestBody>,
    ) -> Result<Answer, Unanswered> {
        let (upstream, pool) = match target {
            Target::Main => (&self.config.main, &self.connection.worker.pools.main),
            Target::Canary => (&self.config.canary, &self.connection.worker.pools.canary),
        };
        *request.uri_mut() = uri::on(upstream, &self.target).map_err(|_| Unanswered {
            error: Refusal::Bad("the request target cannot be put behind the base path").into(),
            unsent: None,
        })?;
        request
            .headers_mut()
            .insert(HOST, upstream.host_header.clone());
        if enabled!(Level::DEBUG) {
            log_head(target, &request, &self.target);
        }
        let watch = &self.connection.watch;
        match send_once(watch, pool, upstream, request, self.upgrade.is_some()).await {
            Ok(answer) => Ok(answer),
            Err(Unanswered { error, unsent }) => {
                // Our own upload makes hyper fail too, when the client breaks it off.
                let error = match self.connection.has_broken_body() {
                    true => RequestError::Body,
                    false => RequestError::Upstream(error),
                };
                Err(Unanswered { error, unsent })
            }
        }
    }

    fn pass_on(
        self,
        target: Target,
        answer: Answer,
        mut record: Record,
    ) -> Result<Response<Body>, RequestError> {
        let Answer {
            response,
            lease,
            tunnel,
        } = answer;
        let (mut head, incoming) = response.into_parts();
        if enabled!(Level::DEBUG) {
            debug!(
                from = target.label(),
                status = head.status.as_u16(),
                headers_json = headers::masked(&head.headers).as_str(),
                "answered"
            );
        }
        if head.headers.contains_key(TRANSFER_ENCODING) && head.headers.contains_key(CONTENT_LENGTH)
        {
            // Whoever reads it next may believe the other one (RFC 9112 section 6.3).
            let error = UpstreamError::caused(
                FailureKind::Malformed,
                "it has both a Content-Length and a Transfer-Encoding",
            );
            record.failed(target, &error);
            return Err(error.into());
        }
        let protocol = head.headers.get(UPGRADE).cloned();
        headers::strip_hop_by_hop(&mut head.headers);
        head.version = Version::HTTP_11;
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            let (Some(tunnel), Some(protocol)) = (tunnel, protocol) else {
                let error = UpstreamError::caused(
                    FailureKind::Malformed,
                    "it answered 101, which nobody had asked for",
                );
                record.failed(target, &error);
                return Err(error.into());
            };
            headers::ask_upgrade(&mut head.headers, protocol);
            self.connection.switch(Tunnel(tunnel));
            let body = Body::text(Bytes::new(), self.connection);
            return Ok(Response::from_parts(head, body));
        }
        if Outcome::of_status(head.status.as_u16()) == Outcome::Failure {
            // Known for sure from the head; a success is one when its last byte has come.
            record.settle(Outcome::Failure);
        }
        let length_known = head.headers.contains_key(CONTENT_LENGTH);
        if self.version == Version::HTTP_10 && !length_known {
            self.connection.note_close_delimited();
        }
        let mut body = ResponseBody::new(incoming, target, lease, record);
        if self.config.log.response_body && enabled!(Level::DEBUG) {
            body = body.logged();
        }
        Ok(Response::from_parts(
            head,
            Body::upstream(body, self.connection),
        ))
    }
}

/// Sends on a connection from the pool, and on the next one if that turns out to have been closed
/// before the request left. Connecting has its own timeout, so that a request is still in hand when
/// that is over; `timeout` bounds both.
async fn send_once(
    watch: &Watch,
    pool: &Rc<Pool>,
    upstream: &Upstream,
    mut request: Request<RequestBody>,
    asks_upgrade: bool,
) -> Result<Answer, Unanswered<UpstreamError>> {
    let deadline = clock::now() + upstream.client.timeout;
    loop {
        let mut lease = match pool.lease(upstream).await {
            Ok(lease) => lease,
            Err(error) => {
                return Err(Unanswered {
                    error,
                    unsent: Some(request),
                });
            }
        };
        let tunnel = asks_upgrade.then(|| lease.upgraded());
        let reused = lease.reused;
        match watch.within(deadline, lease.send(request)).await {
            Ok(Ok(response)) => {
                return Ok(Answer {
                    response,
                    lease,
                    tunnel,
                });
            }
            Ok(Err(mut failed)) => match failed.take_message() {
                Some(unsent) if reused => request = unsent,
                unsent => {
                    return Err(Unanswered {
                        error: classify(failed.into_error()),
                        unsent,
                    });
                }
            },
            Err(_elapsed) => {
                return Err(Unanswered {
                    error: UpstreamError::new(FailureKind::Timeout),
                    unsent: None,
                });
            }
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
    mut request: Request<RequestBody>,
) -> Result<(Response<Incoming>, Lease), UpstreamError> {
    frame(&mut request);
    match send_once(&connection.watch, pool, upstream, request, false).await {
        Ok(Answer {
            response, lease, ..
        }) => Ok((response, lease)),
        Err(Unanswered { error, .. }) => Err(error),
    }
}

/// Says explicitly how the body is framed. hyper would guess for some methods that there is none:
/// a `GET` with chunks lost them.
fn frame(request: &mut Request<RequestBody>) {
    let has_body = !hyper::body::Body::is_end_stream(request.body());
    let length = request.body().length();
    let usually_has_body = matches!(
        *request.method(),
        Method::POST | Method::PUT | Method::PATCH
    );
    let headers = request.headers_mut();
    match length {
        // A length of zero is only worth saying where a body is expected (RFC 9110 section 8.6).
        Some(0) if !usually_has_body && !headers.contains_key(CONTENT_LENGTH) => {}
        Some(length) => {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
        None if has_body => {
            headers.remove(CONTENT_LENGTH);
            headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        None => {}
    }
}

/// The head of a request as it goes out, for the debug log; credentials are masked. The URI is shown
/// without what the configuration puts before it, where a key may be.
fn log_head(target: Target, request: &Request<RequestBody>, uri: &PathAndQuery) {
    debug!(
        to = target.label(),
        method = %request.method(),
        %uri,
        headers_json = headers::masked(request.headers()).as_str(),
        "forwarding"
    );
}

/// How long an upstream may take to answer after a request body's last progress.
pub fn response_timeout(config: &Config) -> Duration {
    // Main and canary share their client settings.
    config.main.client.timeout
}
