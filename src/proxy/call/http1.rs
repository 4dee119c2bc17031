//! A call by HTTP/1.1: the connection is the call's alone until both messages are over.

use std::{
    io,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{Method, StatusCode, Version};

use super::{CallError, Fate, Informational};
use crate::{
    policy::FailureKind,
    proxy::{
        client::Client,
        connection::BrokenBody,
        error::UpstreamError,
        headers,
        http1::{
            framing::{self, Decoder, Step},
            head::{self, Search},
        },
        io::Io,
        message::{Frame, ResponseHead},
        pool::Lease,
        upload::{Unsent, Upload},
    },
};

/// A request that is being sent on a connection, and the response that comes back by it.
pub struct Http1 {
    /// `None` when the connection has gone back to its pool.
    lease: Option<Lease>,
    upload: Box<Upload>,
    search: Search,
    informational: Informational,
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

impl Http1 {
    /// Sends `upload` on the connection.
    pub fn new(lease: Lease, upload: Box<Upload>) -> Box<Http1> {
        Box::new(Http1 {
            lease: Some(lease),
            upload,
            search: Search::default(),
            informational: Informational::default(),
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

    /// Whether what [`take_upload`](Http1::take_upload) gives can be had [again](Upload::again).
    pub fn is_repeatable(&self) -> bool {
        self.upload.is_repeatable()
    }

    /// Gives the request back, after a failure, and whether it can be sent once more without anybody getting
    /// it twice: where nothing of it was sent, or the connection served others before, and had been closed
    /// when this one came. The latter is not tried with what may not be done twice (RFC 9110 section 9.2.2),
    /// since what the kernel says is as good as a proof and yet none: see
    /// [`has_refused_all_behind`](crate::proxy::refusal::has_refused_all_behind).
    pub async fn into_unanswered(self: Box<Self>, method: &Method) -> (Box<Upload>, Fate) {
        let Http1 {
            lease,
            mut upload,
            hung_up,
            ..
        } = *self;
        if upload.is_unsent() {
            return (upload, Fate::Unread);
        }
        let unread = match lease.filter(|lease| hung_up && lease.is_reused()) {
            Some(lease) if upload.is_bodiless() && method.is_idempotent() => {
                lease.has_refused().await
            }
            _ => false,
        };
        if !unread {
            return (upload, Fate::PerhapsRead);
        }
        upload.rewind();
        (upload, Fate::Unread)
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
                    self.informational.came(head, client, cx)?;
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
                    self.hung_up = self.informational.none_came();
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
    pub fn into_tunnel(self) -> Option<(Io, Bytes)> {
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

/// RFC 9112 section 9.3.
fn may_be_reused(head: &ResponseHead) -> bool {
    let says = |token: &str| headers::connection_says(&head.headers, token);
    match head.version {
        Version::HTTP_11 => !says("close"),
        _ => says("keep-alive") && !says("close"),
    }
}
