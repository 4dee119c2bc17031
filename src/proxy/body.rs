//! Bodies on their way through: one type each way, no boxed trait objects.

use std::{
    future::poll_fn,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use tracing::debug;

use super::{
    call::{Call, CallError},
    client::Client,
    connection::BrokenBody,
    error::UpstreamError,
    fields::Fields,
    message::Frame,
    record::Record,
    watch::Watch,
};
use crate::{clock, policy::Target};

/// How much of a body is logged at most.
const LOGGED_BYTES: usize = 4 << 10;

/// A request body towards an upstream: what was read of it already, then the rest as it comes.
pub struct RequestBody {
    read: Bytes,
    /// `None` for a body that is whole: nothing is waited for.
    rest: Option<Rest>,
    trailers: Option<Fields>,
    /// What has gone by, where it may be wanted once more.
    kept: Option<Box<Kept>>,
    log: Option<BodyLog>,
}

/// The beginning of a body that is not to be longer than so much.
struct Kept {
    data: BytesMut,
    trailers: Option<Fields>,
    most: usize,
}

/// What of a request body is still to come in.
struct Rest {
    client: Client,
    /// How long the upstream may take to answer after the last byte.
    timeout: Duration,
}

impl Drop for Rest {
    fn drop(&mut self) {
        self.client.watch().upload_over();
    }
}

impl RequestBody {
    /// A body that was read to its end.
    pub fn whole(read: Bytes, trailers: Option<Fields>) -> RequestBody {
        RequestBody {
            read,
            rest: None,
            trailers,
            kept: None,
            log: None,
        }
    }

    /// A body of which `read` was read, and the rest is to come from the client.
    pub fn streaming(read: Bytes, client: &Client, timeout: Duration) -> RequestBody {
        let mut body = RequestBody::whole(read, None);
        if !client.is_body_over() {
            body.rest = Some(Rest {
                client: client.clone(),
                timeout,
            });
        }
        body
    }

    /// Keeps what goes by, so that the body can be had [again](RequestBody::again), unless it turns out to
    /// be longer than `most` bytes.
    pub fn keep(&mut self, most: usize) {
        let fits = self.length().is_none_or(|length| length <= most as u64);
        if fits && !self.is_over() {
            self.kept = Some(Box::new(Kept {
                data: BytesMut::new(),
                trailers: None,
                most,
            }));
        }
    }

    /// Whether it can be had again.
    pub fn is_kept(&self) -> bool {
        self.kept.is_some()
    }

    /// How long it may be at most to be had again, where it is kept.
    pub fn kept_up_to(&self) -> Option<usize> {
        self.kept.as_ref().map(|kept| kept.most)
    }

    /// The body from its beginning: what was kept, then what is still to come.
    pub fn again(self) -> Option<RequestBody> {
        let kept = self.kept?;
        Some(RequestBody {
            // What was not taken yet was all in front.
            read: match self.read.is_empty() {
                true => kept.data.freeze(),
                false => self.read,
            },
            rest: self.rest,
            trailers: kept.trailers.or(self.trailers),
            kept: None,
            log: None,
        })
    }

    /// Logs the body when it ends, up to a cap.
    pub fn logged(&mut self, target: Target) {
        self.log = Some(BodyLog::new("request body", target));
    }

    /// Whether there is nothing of it, or nothing left.
    pub fn is_over(&self) -> bool {
        self.read.is_empty() && self.rest.is_none() && self.trailers.is_none()
    }

    /// The length of what is left, where it is known. With trailers it does not matter: they need
    /// chunks around the body.
    pub fn length(&self) -> Option<u64> {
        let rest = match (&self.trailers, &self.rest) {
            (Some(_), _) => return None,
            (None, None) => 0,
            (None, Some(rest)) => rest.client.body_length()?,
        };
        Some(self.read.len() as u64 + rest)
    }

    /// The next piece.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BrokenBody>>> {
        let frame = if self.read.is_empty() {
            match ready!(self.poll_rest(cx)) {
                None => self
                    .trailers
                    .take()
                    .map(|trailers| Ok(Frame::Trailers(trailers))),
                frame => frame,
            }
        } else {
            Some(Ok(Frame::Data(std::mem::take(&mut self.read))))
        };
        if let (Some(log), Some(Ok(Frame::Data(data)))) = (&mut self.log, &frame) {
            log.add(data);
        }
        if let Some(kept) = &mut self.kept {
            match &frame {
                Some(Ok(Frame::Data(data))) if kept.data.len() + data.len() > kept.most => {
                    self.kept = None;
                }
                // Copied: a small piece would hold on to the whole buffer that it was read into.
                Some(Ok(Frame::Data(data))) => kept.data.extend_from_slice(data),
                Some(Ok(Frame::Trailers(trailers))) => kept.trailers = Some(trailers.clone()),
                Some(Err(_)) | None => {}
            }
        }
        Poll::Ready(frame)
    }

    /// The upstream does not keep up; see [`Inbox::slow_down`](super::http1::inbox::Inbox::slow_down).
    pub fn slow_down(&self) {
        if let Some(rest) = &self.rest {
            rest.client.slow_down();
        }
    }

    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BrokenBody>>> {
        let Some(Rest { client, timeout }) = &self.rest else {
            return Poll::Ready(None);
        };
        let polled = client.poll_body(cx);
        client.watch().uploading(polled.is_pending(), *timeout);
        let frame = ready!(polled);
        if client.is_body_over() || !matches!(frame, Some(Ok(_))) {
            self.rest = None;
        }
        Poll::Ready(frame)
    }
}

/// A response body towards a client.
pub enum Body {
    /// A short answer of our own.
    Text(Bytes),
    /// An upstream's answer.
    Upstream(ResponseBody),
}

/// Why a response cannot be sent to its end.
#[derive(Debug, thiserror::Error)]
pub enum BrokenResponse {
    /// The client's own request body broke off, and the exchange with it.
    #[error("{0}")]
    Request(#[from] BrokenBody),
    /// The upstream broke its response off.
    #[error("{0}")]
    Upstream(#[from] UpstreamError),
}

/// An upstream's response body, with all that hangs on its end.
pub struct ResponseBody {
    call: Call,
    target: Target,
    record: Option<Record>,
    log: Option<BodyLog>,
}

impl ResponseBody {
    /// `record` belongs to the request, `target` is who answered it (main, where a request for the
    /// canary fell back).
    pub fn new(call: Call, target: Target, record: Record) -> ResponseBody {
        ResponseBody {
            call,
            target,
            record: Some(record),
            log: None,
        }
    }

    /// The client does not get this response, but one with that status.
    pub fn replaced_by(&mut self, status: StatusCode) {
        if let Some(record) = &mut self.record {
            record.responds(status);
        }
    }

    /// Logs the body when it ends, up to a cap.
    pub fn logged(&mut self) {
        self.log = Some(BodyLog::new("response body", self.target));
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BrokenResponse>>> {
        match ready!(self.call.poll_frame(cx)) {
            Some(Ok(frame)) => {
                if let (Some(log), Frame::Data(data)) = (&mut self.log, &frame) {
                    log.add(data);
                }
                match (&mut self.record, &frame) {
                    (Some(record), Frame::Data(_)) => record.content_came(),
                    (Some(record), Frame::Trailers(trailers)) => record.trailers_came(trailers),
                    (None, _) => {}
                }
                if self.call.is_over() {
                    self.completed();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(CallError::Client(broken))) => {
                if let Some(mut record) = self.record.take() {
                    record.ignored();
                }
                Poll::Ready(Some(Err(broken.into())))
            }
            Some(Err(CallError::Upstream(error))) => {
                if let Some(mut record) = self.record.take() {
                    record.failed(self.target, &error);
                }
                Poll::Ready(Some(Err(error.into())))
            }
            None => {
                self.completed();
                Poll::Ready(None)
            }
        }
    }

    fn completed(&mut self) {
        if let Some(mut record) = self.record.take() {
            record.completed();
        }
    }
}

impl Body {
    /// The length of what is left, where it is known.
    pub fn length(&self) -> Option<u64> {
        match self {
            Body::Text(text) => Some(text.len() as u64),
            Body::Upstream(body) => body.call.length(),
        }
    }

    /// The next piece.
    pub fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame, BrokenResponse>>> {
        match self {
            Body::Text(text) if text.is_empty() => Poll::Ready(None),
            Body::Text(text) => Poll::Ready(Some(Ok(Frame::Data(std::mem::take(text))))),
            Body::Upstream(body) => body.poll_frame(cx),
        }
    }

    /// The client does not keep up; see [`Inbox::slow_down`](super::http1::inbox::Inbox::slow_down).
    pub fn slow_down(&mut self) {
        if let Body::Upstream(body) = self {
            body.call.slow_down();
        }
    }

    /// Whether the request that this is the response to was sent to its end, or given up, and the
    /// connection given back.
    pub fn is_exchange_over(&self) -> bool {
        match self {
            Body::Text(_) => true,
            Body::Upstream(body) => body.call.is_done(),
        }
    }

    /// Whether it is over, and counted.
    pub fn is_settled(&self) -> bool {
        match self {
            Body::Text(text) => text.is_empty(),
            Body::Upstream(body) => body.call.is_over() && body.record.is_none(),
        }
    }

    /// Whether it is known that nothing more comes.
    pub fn is_over(&self) -> bool {
        match self {
            Body::Text(text) => text.is_empty(),
            Body::Upstream(body) => body.call.is_over(),
        }
    }

    /// Sends the rest of the request that this is the response to, when the response is over already; for
    /// `timeout` at most. Whether it came to its end.
    pub async fn finish_upload(&mut self, watch: &Watch, timeout: Duration) -> bool {
        if self.is_exchange_over() {
            return true;
        }
        let sent = poll_fn(|cx| self.poll_upload(cx));
        let sent = watch.within(clock::now() + timeout, sent).await;
        matches!(sent, Ok(Ok(())))
    }

    /// Goes on sending the request that this is the response to, while the client does not read it, or
    /// when it is over.
    ///
    /// # Errors
    /// The client's request body broke off.
    pub fn poll_upload(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BrokenBody>> {
        match self {
            Body::Text(_) => Poll::Ready(Ok(())),
            Body::Upstream(body) => body.call.poll_upload(cx),
        }
    }
}

/// Keeps the beginning of a body for the debug log. What is forwarded is not touched.
struct BodyLog {
    what: &'static str,
    target: Target,
    kept: Vec<u8>,
    length: u64,
}

impl BodyLog {
    fn new(what: &'static str, target: Target) -> BodyLog {
        BodyLog {
            what,
            target,
            kept: Vec::new(),
            length: 0,
        }
    }

    fn add(&mut self, data: &Bytes) {
        self.length += data.len() as u64;
        let room = LOGGED_BYTES - self.kept.len();
        self.kept.extend_from_slice(&data[..data.len().min(room)]);
    }
}

impl Drop for BodyLog {
    fn drop(&mut self) {
        debug!(
            to = self.target.label(),
            length = self.length,
            truncated = self.length > self.kept.len() as u64,
            body = %String::from_utf8_lossy(&self.kept),
            "{}", self.what
        );
    }
}
