//! One request to an upstream and its response, polled by the client's own task: no second task, and
//! no wake-up between two.
//!
//! The request goes on being sent for as long as the response is read, and after it: neither waits for
//! the other. Where sending fails, what the upstream has answered is still read, since it may have
//! answered and closed before it had read all (an early 413).

use std::{
    future::poll_fn,
    io,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, StatusCode, Version};
use tokio::task::spawn_local;

use super::{
    connect::UpstreamIo,
    connection::{BrokenBody, Connection},
    error::UpstreamError,
    fields::{Known, KnownSet},
    headers,
    http1::{
        framing::{self, Decoder, Step},
        head::{self, Search},
    },
    message::{Frame, ResponseHead},
    pool::Lease,
    upload::{Unsent, Upload},
};
use crate::policy::FailureKind;

/// The most informational responses that are passed on for one request.
const MAX_INFORMATIONAL: usize = 16;
/// With more of them than this an upstream answers nothing.
const TOO_MANY_INFORMATIONAL: usize = 1000;

/// How much of a response that nobody wants is read so that its connection can be used again.
const DRAINED_BYTES: usize = 64 << 10;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The client broke its request body off.
    #[error("{0}")]
    Client(#[from] BrokenBody),
    /// The upstream's fault.
    #[error("{0}")]
    Upstream(#[from] UpstreamError),
}

/// A request that is being sent on a connection, and the response that comes back by it.
pub struct Call {
    /// `None` when the connection has gone back to its pool.
    lease: Option<Lease>,
    upload: Box<Upload>,
    search: Search,
    informational: usize,
    response: Decoder,
    /// Whether the response is over.
    over: bool,
    /// Whether the connection may serve another request.
    reusable: bool,
    /// Sending failed; what the upstream has answered is still read.
    send_failed: Option<io::Error>,
    /// The upstream has ended the connection, properly and without a word.
    hung_up: bool,
}

impl Call {
    /// Sends `upload` on the connection.
    pub fn new(lease: Lease, upload: Box<Upload>) -> Box<Call> {
        Box::new(Call {
            lease: Some(lease),
            upload,
            search: Search::default(),
            informational: 0,
            response: Decoder::ended(),
            over: false,
            reusable: false,
            send_failed: None,
            hung_up: false,
        })
    }

    /// How much of the request's body the connection has taken, framing included.
    pub fn body_sent(&self) -> u64 {
        self.upload.body_sent()
    }

    /// Gives the request back. What was not sent of it by now is not.
    pub fn take_upload(&mut self) -> Box<Upload> {
        if !self.upload.is_done() {
            self.reusable = false;
        }
        let spent = self.upload.spent();
        std::mem::replace(&mut self.upload, spent)
    }

    /// Whether what [`take_upload`](Call::take_upload) gives can be had [again](Upload::again).
    pub fn is_repeatable(&self) -> bool {
        self.upload.is_repeatable()
    }

    /// Reads what is left of the response, so that the connection can be used again; not for ever, not for
    /// longer than `timeout`, and nobody waits for it.
    pub fn drain(mut self: Box<Self>, timeout: Duration) {
        // Most of it has come already.
        let mut cx = Context::from_waker(Waker::noop());
        while let Poll::Ready(frame) = self.poll_frame(&mut cx) {
            if !matches!(frame, Some(Ok(Frame::Data(_)))) || self.is_over() {
                return;
            }
        }
        spawn_local(async move {
            let mut drained = 0;
            let read_all = async {
                while let Some(Ok(Frame::Data(data))) = poll_fn(|cx| self.poll_frame(cx)).await {
                    drained += data.len();
                    if drained > DRAINED_BYTES {
                        break;
                    }
                }
            };
            let _dropped_when_late = tokio::time::timeout(timeout, read_all).await;
        });
    }

    /// Gives the request back, after a failure, and whether it can be sent once more without anybody getting
    /// it twice: where nothing of it was sent, or the connection served others before, and had been closed
    /// when this one came. The latter is not tried with what may not be done twice (RFC 9110 section 9.2.2),
    /// since what the kernel says is as good as a proof and yet none: see
    /// [`UpstreamIo::has_refused_all_behind`].
    pub async fn into_unanswered(self: Box<Self>, method: &Method) -> (Box<Upload>, bool) {
        let Call {
            lease,
            mut upload,
            hung_up,
            ..
        } = *self;
        if upload.is_unsent() {
            return (upload, true);
        }
        let unread = match lease.filter(|lease| hung_up && lease.is_reused()) {
            Some(lease) if upload.is_bodiless() && method.is_idempotent() => {
                lease.has_refused().await
            }
            _ => false,
        };
        if unread {
            upload.rewind();
        }
        (upload, unread)
    }

    /// Sends, and waits for the head of the final response. Informational ones before it go to
    /// `client`.
    ///
    /// # Errors
    /// The client breaks its body off, or the upstream does not answer properly.
    pub fn poll_response(
        &mut self,
        method: &Method,
        client: Option<&Connection>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<ResponseHead, CallError>> {
        if let Poll::Ready(Err(broken)) = self.poll_upload(cx) {
            return Poll::Ready(Err(broken.into()));
        }
        let reset = |error: Option<io::Error>| match error {
            Some(error) => UpstreamError::caused(FailureKind::Reset, error),
            None => UpstreamError::new(FailureKind::Reset),
        };
        let lease = match (&mut self.lease, self.send_failed.is_some()) {
            (Some(lease), failed) if !(failed && self.upload.is_unsent()) => lease,
            _ => return Poll::Ready(Err(reset(self.send_failed.take()).into())),
        };
        loop {
            let parsed = head::parse_response(&mut lease.inbox.bytes, &mut self.search)
                .map_err(|bad| UpstreamError::caused(FailureKind::Malformed, bad))?;
            if let Some(head) = parsed {
                if head.status.is_informational() && head.status != StatusCode::SWITCHING_PROTOCOLS
                {
                    // 100 is ours to send: we do when the body is first asked for.
                    self.informational += 1;
                    let passed_on = head.status != StatusCode::CONTINUE
                        && self.informational <= MAX_INFORMATIONAL;
                    match client {
                        _ if self.informational > TOO_MANY_INFORMATIONAL => {
                            let error = UpstreamError::caused(
                                FailureKind::Malformed,
                                "it answers with informational responses only",
                            );
                            return Poll::Ready(Err(error.into()));
                        }
                        Some(client) if passed_on => pass_on(head, client, cx),
                        _ => {}
                    }
                    continue;
                }
                let framing =
                    framing::of_response(method, head.status, head.version, &head.headers)
                        .map_err(|bad| UpstreamError::caused(FailureKind::Malformed, bad))?;
                self.response = Decoder::new(framing, true);
                self.reusable = may_be_reused(&head) && self.response.may_be_followed();
                if head.status != StatusCode::SWITCHING_PROTOCOLS {
                    self.over = self.response.is_over();
                    self.give_back();
                }
                return Poll::Ready(Ok(head));
            }
            match ready!(lease.poll_fill(0, cx)) {
                Ok(1..) => {}
                Ok(0) if !lease.inbox.bytes.is_empty() => {
                    let error = UpstreamError::caused(
                        FailureKind::Malformed,
                        "it closed the connection within a response head",
                    );
                    return Poll::Ready(Err(error.into()));
                }
                Ok(0) => {
                    self.hung_up = self.informational == 0;
                    return Poll::Ready(Err(reset(self.send_failed.take()).into()));
                }
                Err(error) => return Poll::Ready(Err(reset(Some(error)).into())),
            }
        }
    }

    /// Goes on sending the request; ready when there is nothing more to send.
    ///
    /// # Errors
    /// The client breaks its body off.
    pub fn poll_upload(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BrokenBody>> {
        let Some(lease) = &mut self.lease else {
            return Poll::Ready(Ok(()));
        };
        if self.send_failed.is_some() {
            return Poll::Ready(Ok(()));
        }
        if !self.upload.is_done() {
            match ready!(self.upload.poll_send(&mut lease.io, cx)) {
                Ok(()) => {}
                Err(Unsent::Client(broken)) => {
                    self.lease = None;
                    return Poll::Ready(Err(broken));
                }
                Err(Unsent::Upstream(error)) => {
                    self.send_failed = Some(error);
                    self.reusable = false;
                }
            }
        }
        self.give_back();
        Poll::Ready(Ok(()))
    }

    /// The next piece of the response body.
    ///
    /// # Errors
    /// The upstream breaks its body off, or the client its own.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, CallError>>> {
        if self.over {
            return Poll::Ready(None);
        }
        if let Poll::Ready(Err(broken)) = self.poll_upload(cx) {
            return Poll::Ready(Some(Err(broken.into())));
        }
        let Some(lease) = &mut self.lease else {
            return Poll::Ready(None);
        };
        let broken = |why: UpstreamError| Poll::Ready(Some(Err(why.into())));
        let frame = loop {
            match self.response.step(&mut lease.inbox.bytes) {
                Ok(Step::Data(data)) => {
                    // Known at once, so that whoever sends it can say that it was all.
                    self.over = self.response.is_over();
                    break Some(Frame::Data(data));
                }
                Ok(Step::Trailers(trailers)) => {
                    self.over = true;
                    break Some(Frame::Trailers(trailers));
                }
                Ok(Step::End) => {
                    self.over = true;
                    break None;
                }
                Ok(Step::More) => {}
                Err(bad) => {
                    return broken(UpstreamError::caused(FailureKind::BodyCut, bad));
                }
            }
            match ready!(lease.poll_fill(self.response.expected(), cx)) {
                Ok(1..) => {}
                Ok(0) if matches!(self.response, Decoder::UntilClose) => {
                    self.over = true;
                    break None;
                }
                Ok(0) => {
                    return broken(UpstreamError::caused(
                        FailureKind::BodyCut,
                        "it closed the connection within a response body",
                    ));
                }
                Err(error) => return broken(UpstreamError::caused(FailureKind::BodyCut, error)),
            }
        };
        self.give_back();
        Poll::Ready(frame.map(Ok))
    }

    /// Whoever gets the response does not keep up.
    pub fn slow_down(&mut self) {
        if let Some(lease) = &mut self.lease {
            lease.inbox.slow_down();
        }
    }

    /// Whether the response is over.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// Whether request and response are over, and the connection given back or closed.
    pub fn is_done(&self) -> bool {
        self.lease.is_none()
    }

    /// The length of what is left of the response body, where it is known.
    pub fn length(&self) -> Option<u64> {
        self.response.length()
    }

    /// The connection, and what was read of it behind the head of a `101`.
    pub fn into_tunnel(self) -> Option<(UpstreamIo, Bytes)> {
        let Lease { io, inbox, .. } = self.lease?;
        Some((io, inbox.bytes.freeze()))
    }

    /// Gives the connection back to its pool once request and response are over, or closes it.
    fn give_back(&mut self) {
        if !self.over || !(self.upload.is_done() || self.send_failed.is_some()) {
            return;
        }
        if let Some(lease) = self.lease.take()
            && self.reusable
            && !self.upload.has_trailers()
        {
            lease.give_back(self.upload.sent());
        }
    }
}

fn pass_on(mut head: ResponseHead, client: &Connection, cx: &mut Context<'_>) {
    headers::strip_hop_by_hop(&mut head.headers);
    // RFC 9110 section 8.6.
    head.headers.remove(KnownSet::of(&[Known::ContentLength]));
    client.put_informational(&head);
    // What cannot be sent now is sent before the final response.
    let _later = client.poll_flush(cx);
}

/// RFC 9112 section 9.3.
fn may_be_reused(head: &ResponseHead) -> bool {
    let says = |token: &str| headers::connection_says(&head.headers, token);
    match head.version {
        Version::HTTP_11 => !says("close"),
        _ => says("keep-alive") && !says("close"),
    }
}
