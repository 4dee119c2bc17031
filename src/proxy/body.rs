//! Bodies on their way through: one enum each way, no boxed trait objects.

use std::{
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use tracing::debug;

use super::{
    connection::Connection, error::BodyError, pool::Lease, record::Record, trailers::Slot,
    watch::Stage,
};
use crate::{
    clock,
    policy::{FailureKind, Outcome, Target},
    proxy::error::UpstreamError,
};

/// How much of a body is logged at most.
const LOGGED_BYTES: usize = 4 << 10;

/// A request body towards an upstream: what was read of it already, then the rest as it comes.
pub struct RequestBody {
    read: Option<Bytes>,
    rest: Option<Incoming>,
    trailers: Option<HeaderMap>,
    /// `None` for a body that is whole: nothing is waited for.
    client: Option<Client>,
    /// Where trailers are left for the connection that the body goes out on.
    slot: Option<Rc<Slot>>,
    log: Option<BodyLog>,
}

/// The client at the other end of a request body that is still coming in, as long as it is.
struct Client {
    connection: Rc<Connection>,
    /// How long the upstream may take to answer after the last byte.
    timeout: Duration,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.connection.upload_ended();
    }
}

impl RequestBody {
    /// A body that was read to its end.
    pub fn whole(read: Bytes, trailers: Option<HeaderMap>) -> RequestBody {
        RequestBody {
            read: Some(read).filter(|read| !read.is_empty()),
            rest: None,
            trailers,
            client: None,
            slot: None,
            log: None,
        }
    }

    /// A body of which `read` was read, and the `rest` is to come.
    pub fn streaming(
        read: Bytes,
        rest: Incoming,
        connection: &Rc<Connection>,
        timeout: Duration,
    ) -> RequestBody {
        if HttpBody::is_end_stream(&rest) {
            return RequestBody::whole(read, None);
        }
        let mut body = RequestBody::whole(read, None);
        body.rest = Some(rest);
        connection.upload_began();
        body.client = Some(Client {
            connection: Rc::clone(connection),
            timeout,
        });
        body
    }

    /// Has trailers left in this slot.
    pub fn leave_trailers(&mut self, slot: &Rc<Slot>) {
        self.slot = Some(Rc::clone(slot));
    }

    /// Logs the body when it ends, up to a cap.
    pub fn logged(mut self, target: Target) -> RequestBody {
        self.log = Some(BodyLog::new("request body", target));
        self
    }

    /// The length, where it is known.
    pub fn length(&self) -> Option<u64> {
        HttpBody::size_hint(self).exact()
    }

    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(rest) = &mut self.rest else {
            return Poll::Ready(None);
        };
        let polled = Pin::new(&mut *rest).poll_frame(cx);
        if let Some(Client {
            connection,
            timeout,
        }) = &self.client
        {
            connection.watch.uploading(polled.is_pending(), *timeout);
        }
        let frame = match ready!(polled) {
            Some(Err(error)) => {
                if let Some(client) = &self.client {
                    client.connection.note_broken_body();
                }
                return Poll::Ready(Some(Err(BodyError::Downstream(error))));
            }
            frame => frame,
        };
        let last = match &frame {
            Some(Ok(frame)) => frame.is_trailers() || HttpBody::is_end_stream(rest),
            _ => true,
        };
        if last {
            self.rest = None;
            self.client = None;
        }
        Poll::Ready(frame.map(|frame| frame.map_err(BodyError::Downstream)))
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let body = self.get_mut();
        let frame = if let Some(read) = body.read.take() {
            Some(Ok(Frame::data(read)))
        } else {
            match ready!(body.poll_rest(cx)) {
                None => body
                    .trailers
                    .take()
                    .map(|trailers| Ok(Frame::trailers(trailers))),
                frame => frame,
            }
        };
        if let (Some(log), Some(Ok(frame))) = (&mut body.log, &frame) {
            log.add(frame);
        }
        Poll::Ready(frame.and_then(|frame| leave_trailers(frame, body.slot.as_deref())))
    }

    fn is_end_stream(&self) -> bool {
        self.read.is_none() && self.rest.is_none() && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let read = self.read.as_ref().map_or(0, Bytes::len) as u64;
        if self.trailers.is_some() {
            // Trailers need chunks around the body, and a known length would do away with them.
            return SizeHint::default();
        }
        let rest = self
            .rest
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), HttpBody::size_hint);
        match rest.exact() {
            Some(rest) => SizeHint::with_exact(read + rest),
            None => SizeHint::default(),
        }
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if let (Some(_), Some(client)) = (&self.rest, &self.client) {
            client.connection.note_unread_body();
        }
    }
}

/// Takes trailers out of a body's frames: they go past hyper, and end the body.
fn leave_trailers(
    frame: Result<Frame<Bytes>, BodyError>,
    slot: Option<&Slot>,
) -> Option<Result<Frame<Bytes>, BodyError>> {
    match frame.map(Frame::into_trailers) {
        Err(error) => Some(Err(error)),
        Ok(Err(data)) => Some(Ok(data)),
        Ok(Ok(trailers)) => {
            if let Some(slot) = slot {
                slot.fill(&trailers);
            }
            None
        }
    }
}

/// A response body towards a client. When it ends or is dropped, its connection is finishing.
pub struct Body {
    kind: Kind,
    connection: Rc<Connection>,
}

enum Kind {
    Text(Option<Bytes>),
    Upstream(ResponseBody),
}

/// An upstream's response body, with all that hangs on its end.
pub struct ResponseBody {
    incoming: Incoming,
    target: Target,
    lease: Option<Lease>,
    record: Record,
    log: Option<BodyLog>,
}

impl ResponseBody {
    /// `record` belongs to the request, `target` is who answered it (main, where a request for the
    /// canary fell back).
    pub fn new(incoming: Incoming, target: Target, lease: Lease, record: Record) -> ResponseBody {
        let mut body = ResponseBody {
            incoming,
            target,
            lease: Some(lease),
            record,
            log: None,
        };
        if HttpBody::is_end_stream(&body.incoming) {
            body.ended();
        }
        body
    }

    /// Logs the body when it ends, up to a cap.
    pub fn logged(mut self) -> ResponseBody {
        self.log = Some(BodyLog::new("response body", self.target));
        self
    }

    fn ended(&mut self) {
        self.record.settle(Outcome::Success);
        if let Some(lease) = self.lease.take() {
            lease.give_back();
        }
    }

    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
        connection: &Connection,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match ready!(Pin::new(&mut self.incoming).poll_frame(cx)) {
            Some(Ok(frame)) => {
                if let Some(log) = &mut self.log {
                    log.add(&frame);
                }
                // hyper does not ask again after the last byte of a known length, nor after trailers.
                if frame.is_trailers() || HttpBody::is_end_stream(&self.incoming) {
                    self.ended();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                if connection.has_broken_body() {
                    // The client broke its own request off, and hyper the exchange.
                    self.record.settle(Outcome::Ignored);
                } else {
                    let cut = UpstreamError::caused(FailureKind::BodyCut, error.to_string());
                    self.record.failed(self.target, &cut);
                }
                self.lease = None;
                Poll::Ready(Some(Err(BodyError::Upstream(error))))
            }
            None => {
                self.ended();
                Poll::Ready(None)
            }
        }
    }
}

impl Body {
    /// A short answer of our own.
    pub fn text(text: impl Into<Bytes>, connection: &Rc<Connection>) -> Body {
        let text = Some(text.into()).filter(|text: &Bytes| !text.is_empty());
        Body {
            kind: Kind::Text(text),
            connection: Rc::clone(connection),
        }
    }

    /// An upstream's answer.
    pub fn upstream(body: ResponseBody, connection: &Rc<Connection>) -> Body {
        Body {
            kind: Kind::Upstream(body),
            connection: Rc::clone(connection),
        }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let body = self.get_mut();
        match &mut body.kind {
            Kind::Text(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Kind::Upstream(upstream) => {
                let frame = ready!(upstream.poll_frame(cx, &body.connection));
                // Without chunks there is no place for them.
                let slot =
                    (!body.connection.is_close_delimited()).then_some(&*body.connection.trailers);
                Poll::Ready(frame.and_then(|frame| leave_trailers(frame, slot)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Text(text) => text.is_none(),
            Kind::Upstream(body) => HttpBody::is_end_stream(&body.incoming),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Text(text) => SizeHint::with_exact(text.as_ref().map_or(0, Bytes::len) as u64),
            Kind::Upstream(body) => HttpBody::size_hint(&body.incoming),
        }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        // Handed over is not written: the connection is idle when hyper has flushed.
        self.connection.watch.enter(Stage::Finishing, clock::now());
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

    fn add(&mut self, frame: &Frame<Bytes>) {
        let Some(data) = frame.data_ref() else { return };
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
