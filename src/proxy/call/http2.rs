//! A call by HTTP/2: a stream of a connection that is shared.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use h2::{Reason, client::ResponseFuture};
use http::{Method, Response, StatusCode};

use super::{CallError, Fate, Informational};
use crate::{
    config::Upstream,
    policy::FailureKind,
    proxy::{
        client::Client,
        connection::BrokenBody,
        error::UpstreamError,
        fields::{Known, put_field},
        headers,
        http1::{
            framing,
            head::{fields, is_token},
        },
        http2::{
            flow::{Incoming, Outgoing, StreamIo},
            head,
            upstream::Slot,
        },
        message::{Frame, ResponseHead},
        upload::{Message, Upload},
        websocket,
    },
};

/// What is kept of a request's body, so that it can be sent once more if the upstream refuses it without having
/// looked at it, as one that restarts does: most calls of gRPC's are shorter.
const KEPT: usize = 64 << 10;

/// A request on a stream, and the response that comes back by it.
pub struct Http2 {
    /// `None` when request and response are over.
    slot: Option<Slot>,
    upload: Box<Upload>,
    outgoing: Outgoing,
    /// The request's end has been handed over.
    ended: bool,
    /// Some of its body has been taken from the client.
    begun: bool,
    /// The upstream takes no more of the request; what it answers is still read.
    send_failed: Option<h2::Error>,
    response: ResponseFuture,
    informational: Informational,
    incoming: Option<Incoming>,
    /// For a tunnel: the protocol, and the key by which an HTTP/1 client knows the answer.
    tunnel: Option<(Bytes, Option<Bytes>)>,
}

impl Http2 {
    /// Begins the request.
    ///
    /// # Errors
    /// It cannot be said in HTTP/2, or the connection is over. With the request, of which nothing was sent.
    pub fn new(
        slot: Slot,
        mut upload: Box<Upload>,
        upstream: &Upstream,
        message: &Message<'_>,
    ) -> Result<Box<Http2>, (UpstreamError, Box<Upload>)> {
        // Who does not want to switch, or cannot be asked to, ignores it (RFC 9110 section 7.8).
        let may = |protocol: &&[u8]| slot.takes_tunnels() && protocol.iter().copied().all(is_token);
        let upgrade = message.upgrade.filter(may);
        let tunnel = upgrade.map(|protocol| {
            let key = message.head.headers.named("sec-websocket-key").next();
            (
                Bytes::copy_from_slice(protocol),
                key.map(Bytes::copy_from_slice),
            )
        });
        let Some(request) = head::request(upstream, message, upgrade, &upload) else {
            let why = "the request cannot be said in HTTP/2";
            return Err((UpstreamError::caused(FailureKind::Malformed, why), upload));
        };
        let ended = upload.body().is_over() && tunnel.is_none();
        match slot.requests().send_request(request, ended) {
            Ok((response, stream)) => {
                upload.note_sent(1);
                if !upload.body().is_kept() {
                    upload.body().keep(KEPT);
                }
                Ok(Box::new(Http2 {
                    slot: Some(slot),
                    upload,
                    outgoing: Outgoing::new(stream),
                    ended,
                    begun: false,
                    send_failed: None,
                    response,
                    informational: Informational::default(),
                    incoming: None,
                    tunnel,
                }))
            }
            Err(error) => {
                slot.retire();
                Err((UpstreamError::caused(FailureKind::Reset, error), upload))
            }
        }
    }

    pub fn body_sent(&self) -> u64 {
        self.outgoing.sent()
    }

    pub fn take_upload(&mut self) -> Box<Upload> {
        if !self.ended {
            self.ended = true;
            self.outgoing.reset(Reason::CANCEL);
        }
        let spent = self.upload.spent();
        std::mem::replace(&mut self.upload, spent)
    }

    pub fn is_repeatable(&self) -> bool {
        self.upload.is_repeatable()
    }

    pub fn gave_up(&self) {
        if let Some(slot) = &self.slot {
            slot.gave_up();
        }
    }

    /// What was refused was not looked at (RFC 9113 section 8.7).
    pub fn into_unanswered(self) -> (Box<Upload>, Fate) {
        let Http2 {
            mut upload,
            begun,
            send_failed,
            ..
        } = self;
        let fate = match &send_failed {
            Some(error) if is_refusal(error) && error.is_go_away() => Fate::TurnedAway,
            Some(error) if is_refusal(error) => Fate::Unread,
            _ => return (upload, Fate::PerhapsRead),
        };
        match (begun, upload.is_repeatable()) {
            (false, _) => {
                upload.rewind();
                (upload, fate)
            }
            (true, true) => {
                let most = upload.body().kept_up_to().unwrap_or(KEPT);
                match upload.again() {
                    Some(mut again) => {
                        again.body().keep(most);
                        (again, fate)
                    }
                    None => unreachable!("what is repeatable can be had again"),
                }
            }
            // Some of it is gone.
            (true, false) => (upload, Fate::PerhapsRead),
        }
    }

    pub fn poll_response(
        &mut self,
        method: &Method,
        client: Option<&Client>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<ResponseHead, CallError>> {
        if let Poll::Ready(Err(broken)) = self.poll_upload(cx) {
            return Poll::Ready(Err(broken.into()));
        }
        while let Poll::Ready(Some(informed)) = self.response.poll_informational(cx) {
            let informed = informed.map_err(|error| self.unanswered(error))?;
            let head = head::of_response(informed.status(), informed.headers());
            let head = head.ok_or_else(no_fields)?;
            if head.status == StatusCode::SWITCHING_PROTOCOLS {
                // RFC 9113 section 8.6.
                let why = "it answered 101, which HTTP/2 does not have";
                return Poll::Ready(Err(
                    UpstreamError::caused(FailureKind::Malformed, why).into()
                ));
            }
            self.informational.came(head, client, cx)?;
        }
        let response = match ready!(Pin::new(&mut self.response).poll(cx)) {
            Ok(response) => response,
            Err(error) => return Poll::Ready(Err(self.unanswered(error).into())),
        };
        let (parts, stream) = response.into_parts();
        let incoming = match *method == Method::HEAD || framing::is_bodiless(parts.status) {
            // Nothing comes, though some upstreams say so only later.
            true => Incoming::unwanted(stream),
            // The `h2` crate checks it against what comes.
            false => Incoming::new(stream, head::announced(&parts.headers)),
        };
        let parts = Response::from_parts(parts, ());
        let head = match (&self.tunnel, parts.status()) {
            (Some((protocol, key)), StatusCode::OK) => switching(protocol, key.as_deref(), &parts),
            _ => {
                self.tunnel = None;
                head::of_response(parts.status(), parts.headers())
            }
        };
        let head = head.ok_or_else(no_fields)?;
        self.incoming = Some(incoming);
        if self.tunnel.is_none() {
            self.let_go();
        }
        Poll::Ready(Ok(head))
    }

    fn unanswered(&mut self, error: h2::Error) -> UpstreamError {
        if (error.is_go_away() || is_refusal(&error))
            && let Some(slot) = &self.slot
        {
            slot.retire();
        }
        let kind = match error.is_library() {
            true => FailureKind::Malformed,
            false => FailureKind::Reset,
        };
        let text = match kind {
            FailureKind::Malformed => {
                format!("it does not speak HTTP/2 (proxy-client.*.protocol), or badly: {error}")
            }
            _ => error.to_string(),
        };
        self.send_failed = Some(error);
        UpstreamError::caused(kind, text)
    }

    pub fn poll_upload(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BrokenBody>> {
        // What follows a tunnel's head is not the request's.
        if self.tunnel.is_some() || self.send_failed.is_some() {
            return Poll::Ready(Ok(()));
        }
        loop {
            let gone = self.outgoing.poll_gone(cx);
            if gone.is_pending() {
                self.upload.body().slow_down();
            }
            if let Err(error) = ready!(gone) {
                return self.fail(error);
            }
            if self.ended {
                self.let_go();
                return Poll::Ready(Ok(()));
            }
            let body = self.upload.body();
            let put = match ready!(body.poll_frame(cx)) {
                Some(Ok(Frame::Data(data))) => {
                    self.ended = body.is_over();
                    self.begun = true;
                    self.outgoing.put(data, self.ended)
                }
                Some(Ok(Frame::Trailers(mut trailers))) => {
                    headers::keep_allowed_trailers(&mut trailers);
                    (self.ended, self.begun) = (true, true);
                    // Too many of them are none.
                    let trailers = head::trailers(&trailers).unwrap_or_default();
                    self.outgoing.end_with(trailers)
                }
                None => {
                    self.ended = true;
                    self.outgoing.put(Bytes::new(), true)
                }
                Some(Err(broken)) => {
                    self.ended = true;
                    self.outgoing.reset(Reason::CANCEL);
                    self.slot = None;
                    return Poll::Ready(Err(broken));
                }
            };
            if let Err(error) = put {
                return self.fail(error);
            }
        }
    }

    fn fail(&mut self, error: h2::Error) -> Poll<Result<(), BrokenBody>> {
        self.send_failed = Some(error);
        self.let_go();
        Poll::Ready(Ok(()))
    }

    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, CallError>>> {
        if self.is_over() {
            return Poll::Ready(None);
        }
        if let Poll::Ready(Err(broken)) = self.poll_upload(cx) {
            return Poll::Ready(Some(Err(broken.into())));
        }
        let Some(incoming) = &mut self.incoming else {
            return Poll::Ready(None);
        };
        let polled = ready!(incoming.poll_frame(cx));
        if incoming.is_over() {
            self.let_go();
        }
        Poll::Ready(polled.map(|frame| {
            frame.map_err(|error| UpstreamError::caused(FailureKind::BodyCut, error).into())
        }))
    }

    pub fn is_over(&self) -> bool {
        self.incoming.as_ref().is_some_and(Incoming::is_over)
    }

    pub fn is_done(&self) -> bool {
        self.slot.is_none()
    }

    pub fn length(&self) -> Option<u64> {
        self.incoming.as_ref()?.length()
    }

    pub fn into_tunnel(self) -> Option<StreamIo> {
        self.tunnel?;
        Some(StreamIo::new(self.outgoing, self.incoming?).with(self.slot))
    }

    /// Frees the place on the connection once request and response are over.
    fn let_go(&mut self) {
        if self.is_over() && (self.ended || self.send_failed.is_some()) {
            self.slot = None;
        }
    }
}

/// Whether the upstream says that it has not done anything with the request: the stream was refused, or
/// came after the last one that it looked at.
fn is_refusal(error: &h2::Error) -> bool {
    error.is_remote()
        && (error.is_go_away()
            || error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM))
}

fn no_fields() -> UpstreamError {
    UpstreamError::caused(
        FailureKind::Malformed,
        "one of its header fields is malformed",
    )
}

/// The same as HTTP/1 says it: the tunnel is there.
fn switching(protocol: &[u8], key: Option<&[u8]>, response: &Response<()>) -> Option<ResponseHead> {
    let said = head::of_response(StatusCode::SWITCHING_PROTOCOLS, response.headers())?;
    let mut section = BytesMut::new();
    for (name, value) in said.headers.iter() {
        let is_framing = name == Known::ContentLength.name();
        if !is_framing {
            put_field(&mut section, name, value);
        }
    }
    put_field(&mut section, b"connection", b"upgrade");
    put_field(&mut section, b"upgrade", protocol);
    if let Some(key) = key {
        put_field(
            &mut section,
            b"sec-websocket-accept",
            websocket::accept(key).as_bytes(),
        );
    }
    section.extend_from_slice(b"\r\n");
    let section = section.freeze();
    let lines = said.headers.len() + 4;
    let headers = fields(&section, lines).ok()?;
    Some(ResponseHead { headers, ..said })
}
