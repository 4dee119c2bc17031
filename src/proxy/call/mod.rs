//! One request to an upstream and its response, polled by the client's own task: no second task, and
//! no wake-up between two (but for what HTTP/2 connections share).
//!
//! The request goes on being sent for as long as the response is read, and after it: neither waits for
//! the other. Where sending fails, what the upstream has answered is still read, since it may have
//! answered and closed before it had read all (an early 413).

mod http1;
mod http2;

use std::{
    future::poll_fn,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, StatusCode};
use tokio::task::spawn_local;

use self::{http1::Http1, http2::Http2};
use super::{
    client::Client,
    connection::BrokenBody,
    error::UpstreamError,
    message::{Frame, ResponseHead},
    pool::Leased,
    upgrade::UpstreamEnd,
    upload::{Message, Upload},
};
use crate::{config::Upstream, policy::FailureKind};

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

/// What is known of a request that got no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Somebody may have read it.
    PerhapsRead,
    /// Nobody has: it can be sent once more without anybody getting it twice.
    Unread,
    /// The same, because its connection ends, as all do now and then.
    TurnedAway,
}

/// A request that is being sent on a connection, and the response that comes back by it.
pub enum Call {
    /// By a connection of its own.
    Http1(Box<Http1>),
    /// By a stream of a connection that others use too.
    Http2(Box<Http2>),
}

/// Hands a call to whichever it is.
macro_rules! either {
    ($call:expr, $one:ident => $do:expr) => {
        match $call {
            Call::Http1($one) => $do,
            Call::Http2($one) => $do,
        }
    };
}

impl Call {
    /// Sends a request on a connection.
    ///
    /// # Errors
    /// It cannot be said in this version of HTTP, or the connection is over. With the request, of which
    /// nothing was sent.
    pub fn new(
        leased: Leased,
        mut upload: Box<Upload>,
        upstream: &Upstream,
        message: &Message<'_>,
    ) -> Result<Call, (UpstreamError, Box<Upload>)> {
        match leased {
            Leased::Http1(lease) => {
                upload.address(upstream, message);
                Ok(Call::Http1(Http1::new(lease, upload)))
            }
            Leased::Http2(slot) => Http2::new(slot, upload, upstream, message).map(Call::Http2),
        }
    }

    /// How much of the request's body the connection has taken, framing included.
    pub fn body_sent(&self) -> u64 {
        either!(self, call => call.body_sent())
    }

    /// Gives the request back. What was not sent of it by now is not.
    pub fn take_upload(&mut self) -> Box<Upload> {
        either!(self, call => call.take_upload())
    }

    /// Whether what [`take_upload`](Call::take_upload) gives can be had [again](Upload::again).
    pub fn is_repeatable(&self) -> bool {
        either!(self, call => call.is_repeatable())
    }

    /// The upstream was given up, because it did not answer in time.
    pub fn gave_up(&self) {
        match self {
            // Its connection is closed with it.
            Call::Http1(_) => {}
            Call::Http2(call) => call.gave_up(),
        }
    }

    /// Reads what is left of the response, so that the connection can be used again; not for ever, not for
    /// longer than `timeout`, and nobody waits for it.
    pub fn drain(mut self, timeout: Duration) {
        if matches!(self, Call::Http2(_)) {
            // The other streams of its connection go on.
            return;
        }
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

    /// Gives the request back, after a failure, and what became of it.
    pub async fn into_unanswered(self, method: &Method) -> (Box<Upload>, Fate) {
        match self {
            Call::Http1(call) => call.into_unanswered(method).await,
            Call::Http2(call) => call.into_unanswered(),
        }
    }

    /// Sends, and waits for the head of the final response. Informational ones before it go to
    /// `client`.
    ///
    /// # Errors
    /// The client breaks its body off, or the upstream does not answer properly.
    pub fn poll_response(
        &mut self,
        method: &Method,
        client: Option<&Client>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<ResponseHead, CallError>> {
        either!(self, call => call.poll_response(method, client, cx))
    }

    /// Goes on sending the request; ready when there is nothing more to send.
    ///
    /// # Errors
    /// The client breaks its body off.
    pub fn poll_upload(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BrokenBody>> {
        either!(self, call => call.poll_upload(cx))
    }

    /// The next piece of the response body.
    ///
    /// # Errors
    /// The upstream breaks its body off, or the client its own.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, CallError>>> {
        either!(self, call => call.poll_frame(cx))
    }

    /// Whoever gets the response does not keep up.
    pub fn slow_down(&mut self) {
        match self {
            Call::Http1(call) => call.slow_down(),
            // What is not taken is not made room for.
            Call::Http2(_) => {}
        }
    }

    /// Whether the response is over.
    pub fn is_over(&self) -> bool {
        either!(self, call => call.is_over())
    }

    /// Whether request and response are over, and the connection given back or closed.
    pub fn is_done(&self) -> bool {
        either!(self, call => call.is_done())
    }

    /// The length of what is left of the response body, where it is known.
    pub fn length(&self) -> Option<u64> {
        either!(self, call => call.length())
    }

    /// The connection, and what was read of it behind the head of a `101`.
    pub fn into_tunnel(self) -> Option<(UpstreamEnd, Bytes)> {
        match self {
            Call::Http1(call) => call
                .into_tunnel()
                .map(|(io, read)| (UpstreamEnd::Connection(io), read)),
            Call::Http2(call) => call
                .into_tunnel()
                .map(|io| (UpstreamEnd::Stream(io), Bytes::new())),
        }
    }
}

/// Informational responses of one call.
#[derive(Default)]
struct Informational(usize);

impl Informational {
    /// Passes one on, within bounds.
    fn came(
        &mut self,
        head: ResponseHead,
        client: Option<&Client>,
        cx: &mut Context<'_>,
    ) -> Result<(), UpstreamError> {
        self.0 += 1;
        if self.0 > TOO_MANY_INFORMATIONAL {
            return Err(UpstreamError::caused(
                FailureKind::Malformed,
                "it answers with informational responses only",
            ));
        }
        // 100 is ours to send: we do when the body is first asked for.
        let passed_on = head.status != StatusCode::CONTINUE && self.0 <= MAX_INFORMATIONAL;
        if let (true, Some(client)) = (passed_on, client) {
            client.inform(head, cx);
        }
        Ok(())
    }

    fn none_came(&self) -> bool {
        self.0 == 0
    }
}
