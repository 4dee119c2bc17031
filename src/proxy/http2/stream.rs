//! One request of a client that speaks HTTP/2, from its head to the last byte of its response.

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    pin::pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{Reason, RecvStream, ext::Protocol, server::SendResponse};
use http::{HeaderValue, Method, Request, StatusCode, Version, header};
use tracing::debug;

use super::{
    flow::{Incoming, Outgoing, StreamIo},
    head,
    session::Session,
};
use crate::{
    clock,
    policy::FailureKind,
    proxy::{
        body::{Body, BrokenResponse},
        client::Client,
        connection::BrokenBody,
        error::{Refusal, RequestError, UpstreamError},
        fields::{Fields, Known},
        forward,
        forwarded::Peer,
        headers,
        http1::framing,
        message::{Frame, RequestHead, ResponseHead},
        notes::{Flag, Notes},
        service::{self, Reply, Then},
        upgrade::Tunnel,
        watch::{Order, Stage, Watch},
        websocket,
        worker::Worker,
    },
};

/// What a client gets that lets us wait for too long with its request.
const TOO_SLOW: &str = "canary-router: the request did not come in time\n";

/// A request of a client, and what belongs to it. Its parts are borrowed for the length of one poll only.
pub struct Stream {
    /// The worker that serves it.
    pub worker: Rc<Worker>,
    /// What it waits for.
    pub watch: Watch,
    /// Who is at the other end of the connection.
    pub peer: Rc<Peer>,
    /// By what the client is known from now on, as the value of `Set-Cookie`.
    pub cookie: Cell<Option<Box<[u8]>>>,
    /// What is to be told of it.
    pub notes: Notes,
    session: Rc<Session>,
    /// `None` when a tunnel has it.
    body: RefCell<Option<Incoming>>,
    /// The request asks for a tunnel: what comes is not its body.
    is_tunnel: bool,
    /// The client waits for a `100 Continue` before it sends its body.
    continue_awaited: Cell<bool>,
    respond: RefCell<SendResponse<Bytes>>,
}

/// How a stream ends.
enum End {
    /// As it should.
    Done,
    /// What was sent must not look complete.
    Broken,
    /// The client wants no answer any more, or has left.
    Left,
    /// The client let us wait for too long, before a response began or after.
    Expired(Stage),
    /// The process ends.
    Cut,
}

/// Serves one request.
pub async fn serve(
    session: Rc<Session>,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
) {
    let started = clock::now();
    let (parts, incoming) = request.into_parts();
    let is_tunnel = parts.extensions.get::<Protocol>().is_some();
    let ended = incoming.is_end_stream();
    let head = head::of_request(&parts, ended);
    let continue_awaited = || {
        let expected = parts.headers.get(header::EXPECT);
        expected.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
    };
    let stream = Rc::new(Stream {
        worker: Rc::clone(&session.worker),
        watch: Watch::new(),
        peer: Rc::clone(&session.peer),
        cookie: Cell::new(None),
        notes: Notes::default(),
        body: RefCell::new(Some(Incoming::of_request(
            incoming,
            head::announced(&parts.headers),
        ))),
        is_tunnel,
        continue_awaited: Cell::new(!ended && continue_awaited()),
        respond: RefCell::new(respond),
        session,
    });
    stream.watch.enter(Stage::Request, started);
    let (worker, peer) = (&stream.worker, &stream.peer);
    stream
        .notes
        .begin(worker, peer, head.as_ref().ok(), started);
    let _registered = stream.session.register(&stream);
    let end = {
        let mut talk = pin!(stream.answer(head, started));
        poll_fn(|cx| {
            match stream.watch.orders(cx.waker()) {
                Some(Order::Expire) => return Poll::Ready(End::Expired(stream.watch.stage())),
                Some(Order::Cut) => return Poll::Ready(End::Cut),
                // That it has left shows on its connection.
                Some(Order::Drain | Order::Look) | None => {}
            }
            talk.as_mut().poll(cx)
        })
        .await
        // What was in flight for this request, if anything, is cancelled here.
    };
    match end {
        End::Done => {}
        End::Left => {
            stream.notes.flag(Flag::ClientGone);
            debug!("the client has cancelled its request");
        }
        End::Broken => stream.reset(Reason::INTERNAL_ERROR),
        End::Expired(stage) => {
            stream.notes.flag(Flag::ClientTimedOut);
            match stage {
                Stage::Request => stream.refuse_late(),
                _ => stream.reset(Reason::CANCEL),
            }
        }
        End::Cut => {
            stream.notes.flag(Flag::Cut);
            stream.reset(Reason::INTERNAL_ERROR);
        }
    }
    stream.notes.end();
}

impl Stream {
    /// The next piece of the request body. A client that waits to be told to send it is told.
    pub fn poll_body(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BrokenBody>>> {
        let mut body = self.body.borrow_mut();
        let Some(body) = body.as_mut().filter(|_| !self.is_tunnel) else {
            return Poll::Ready(None);
        };
        if self.continue_awaited.take() {
            self.inform(&ResponseHead {
                status: StatusCode::CONTINUE,
                reason: None,
                version: Version::HTTP_2,
                headers: Fields::default(),
            });
        }
        let polled = ready!(body.poll_frame(cx));
        Poll::Ready(polled.map(|frame| {
            frame.map_err(|error| {
                debug!(%error, "a request body broke off");
                BrokenBody::Cut
            })
        }))
    }

    /// Whether the request was read to its end.
    pub fn is_body_over(&self) -> bool {
        self.is_tunnel || self.body.borrow().as_ref().is_none_or(Incoming::is_over)
    }

    /// How much of the request body is still to be read, where that is known.
    pub fn body_length(&self) -> Option<u64> {
        match self.body.borrow().as_ref().filter(|_| !self.is_tunnel) {
            Some(body) => body.length(),
            None => Some(0),
        }
    }

    /// Sends an informational response before the final one.
    pub fn inform(&self, head: &ResponseHead) {
        if let Some(response) = head::response(head) {
            // Where it cannot be sent nothing can.
            let _never_mind = self.respond.borrow_mut().send_informational(response);
        }
    }

    async fn answer(
        self: &Rc<Self>,
        head: Result<RequestHead, Refusal>,
        started: std::time::Instant,
    ) -> End {
        let is_head = matches!(&head, Ok(head) if head.method == Method::HEAD);
        let key = match (self.is_tunnel, &head) {
            (true, Ok(head)) => head
                .headers
                .named("sec-websocket-key")
                .next()
                .map(<[u8]>::to_vec),
            _ => None,
        };
        let handled = async {
            match head {
                Ok(head) => {
                    let client = Client::Http2(Rc::clone(self));
                    service::handle(head, &client, started).await
                }
                Err(refusal) => service::explain(&RequestError::from(refusal), &self.notes),
            }
        };
        let reply = {
            let mut handled = pin!(handled);
            let until_left = poll_fn(|cx| {
                if let Poll::Ready(reply) = handled.as_mut().poll(cx) {
                    return Poll::Ready(Some(reply));
                }
                match self.respond.borrow_mut().poll_reset(cx) {
                    Poll::Ready(_) => Poll::Ready(None),
                    Poll::Pending => Poll::Pending,
                }
            });
            match until_left.await {
                Some(reply) => reply,
                None => return End::Left,
            }
        };
        self.respond(reply, is_head, key.as_deref()).await
    }

    async fn respond(self: &Rc<Self>, reply: Reply, is_head: bool, key: Option<&[u8]>) -> End {
        let switches = matches!(reply.then, Then::Tunnel(..));
        let wrong = if self.is_tunnel && !switches && reply.head.status.is_success() {
            // It would look as if there were a tunnel (RFC 8441 section 4).
            Some("it has not switched to the protocol that was asked for")
        } else if reply.head.headers.len() > head::MOST_FIELDS {
            Some("its answer has too many fields for HTTP/2")
        } else {
            None
        };
        let reply = match wrong {
            Some(why) => {
                self.notes.failed(FailureKind::Malformed);
                let error = UpstreamError::caused(FailureKind::Malformed, why);
                let explained = service::explain(&error.into(), &self.notes);
                if let Body::Upstream(mut body) = reply.body {
                    body.replaced_by(explained.head.status);
                }
                explained
            }
            None => reply,
        };
        let Reply {
            mut head,
            mut body,
            then,
        } = reply;
        if switches {
            if !accepts(&head, key) {
                self.notes.failed(FailureKind::Malformed);
                return End::Broken;
            }
            head.status = StatusCode::OK;
            head.headers.remove_named(
                &[b"sec-websocket-accept".to_vec()].into(),
                crate::proxy::fields::KnownSet::of(&[]),
            );
        }
        self.continue_awaited.set(false);
        let bodiless = is_head || framing::is_bodiless(head.status);
        let ends = !switches && (bodiless || body.is_over());
        let Some(response) = self.head(&head, &body, switches) else {
            return End::Broken;
        };
        self.notes.add(|entry| entry.status = Some(head.status));
        // It holds on to all that was read with it.
        drop(head);
        self.watch.enter(Stage::Response, clock::recent());
        let sent = self.respond.borrow_mut().send_response(response, ends);
        let mut outgoing = match sent {
            Ok(stream) => Outgoing::new(stream),
            Err(error) => {
                debug!(%error, "a response cannot be sent");
                return End::Left;
            }
        };
        self.session.served(0);
        if let Then::Tunnel(_, tunnel) = then {
            return self.run_tunnel(*tunnel, outgoing).await;
        }
        let sending = poll_fn(|cx| self.poll_send(&mut body, &mut outgoing, ends, cx));
        match sending.await {
            Ok(()) => {}
            Err(end) => return end,
        }
        self.watch.enter(Stage::Finishing, clock::recent());
        let timeout = forward::response_timeout(&self.worker.kit().config);
        body.finish_upload(&self.watch, timeout).await;
        // A request that is not over is given up when this is dropped, by NO_ERROR (RFC 9113 section 8.1) and
        // behind the response; a reset of ours would overtake it.
        End::Done
    }

    fn head(&self, head: &ResponseHead, body: &Body, switches: bool) -> Option<http::Response<()>> {
        let mut response = head::response(head)?;
        let fields = response.headers_mut();
        if !head.headers.has(Known::Date)
            && let Ok(date) = HeaderValue::from_bytes(self.worker.date.borrow().as_bytes())
        {
            fields.insert(header::DATE, date);
        }
        if let Some(cookie) = self.cookie.take()
            && let Ok(cookie) = HeaderValue::from_bytes(&cookie)
        {
            fields.append(header::SET_COOKIE, cookie);
        }
        // RFC 9110 section 8.6; and what follows the head of a tunnel is not its content.
        let has_length = head.status != StatusCode::NO_CONTENT && !switches;
        match (body, has_length) {
            (Body::Text(text), true) => {
                fields.insert(header::CONTENT_LENGTH, text.len().into());
            }
            (_, true) => {}
            (_, false) => {
                fields.remove(header::CONTENT_LENGTH);
            }
        }
        Some(response)
    }

    /// Ready when all is sent. `ended` says that the client needs none of it; it is read to its end all the
    /// same.
    fn poll_send(
        &self,
        body: &mut Body,
        outgoing: &mut Outgoing,
        ended: bool,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), End>> {
        // Perhaps since an earlier poll, which had to wait for room.
        let mut is_last = ended || outgoing.has_last();
        loop {
            let sent = outgoing.sent();
            let gone = outgoing.poll_gone(cx);
            if outgoing.sent() > sent {
                self.watch.writing(false);
            }
            self.watch.writing(gone.is_pending());
            match gone {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(Err(End::Left)),
                Poll::Pending => {
                    body.slow_down();
                    // The request goes on whether the client reads its response or not.
                    if let Poll::Ready(Err(broken)) = body.poll_upload(cx) {
                        return Poll::Ready(Err(self.broken(&broken.into())));
                    }
                    return Poll::Pending;
                }
            }
            if is_last && body.is_settled() {
                return Poll::Ready(Ok(()));
            }
            let put = match body.poll_frame(cx) {
                Poll::Ready(Some(Ok(Frame::Data(data)))) => {
                    self.session.served(data.len());
                    match ended {
                        true => Ok(()),
                        false => {
                            let length = data.len() as u64;
                            self.notes.add(|entry| entry.response_bytes += length);
                            is_last = body.is_over();
                            outgoing.put(data, is_last)
                        }
                    }
                }
                Poll::Ready(Some(Ok(Frame::Trailers(mut trailers)))) => {
                    headers::keep_allowed_trailers(&mut trailers);
                    is_last = true;
                    match ended {
                        true => Ok(()),
                        false => match head::trailers(&trailers) {
                            Some(trailers) => outgoing.end_with(trailers),
                            None => return Poll::Ready(Err(End::Broken)),
                        },
                    }
                }
                Poll::Ready(None) => match std::mem::replace(&mut is_last, true) {
                    true => return Poll::Ready(Ok(())),
                    false => outgoing.put(Bytes::new(), true),
                },
                Poll::Ready(Some(Err(broken))) => {
                    return Poll::Ready(Err(self.broken(&broken)));
                }
                Poll::Pending => {
                    // Nothing is to be sent at the moment, so a reset shows nowhere else.
                    return match outgoing.poll_reset(cx) {
                        Poll::Ready(_) if !ended => Poll::Ready(Err(End::Left)),
                        _ => Poll::Pending,
                    };
                }
            };
            if put.is_err() {
                return Poll::Ready(Err(End::Left));
            }
        }
    }

    fn broken(&self, broken: &BrokenResponse) -> End {
        debug!(error = %broken, "response broke off");
        End::Broken
    }

    async fn run_tunnel(self: &Rc<Self>, tunnel: Tunnel, outgoing: Outgoing) -> End {
        let Some(incoming) = self.body.take() else {
            return End::Broken;
        };
        let mut client = StreamIo::new(outgoing, incoming);
        match tunnel.run(&mut client, &[], &self.notes).await {
            Ok(()) => End::Done,
            Err(error) => {
                debug!(%error, "tunnel broke off");
                End::Broken
            }
        }
    }

    fn refuse_late(&self) {
        let status = StatusCode::REQUEST_TIMEOUT;
        self.notes.add(|entry| {
            entry.status = Some(status);
            entry.response_bytes += TOO_SLOW.len() as u64;
        });
        let mut response = http::Response::new(());
        *response.status_mut() = StatusCode::REQUEST_TIMEOUT;
        *response.version_mut() = Version::HTTP_2;
        let length = HeaderValue::from(TOO_SLOW.len());
        response
            .headers_mut()
            .insert(header::CONTENT_LENGTH, length);
        let sent = self.respond.borrow_mut().send_response(response, false);
        if let Ok(mut stream) = sent {
            let _best_effort = stream.send_data(Bytes::from_static(TOO_SLOW.as_bytes()), true);
        }
    }

    fn reset(&self, reason: Reason) {
        self.respond.borrow_mut().send_reset(reason);
    }
}

/// Whether an upstream's `101` is the answer to the handshake that was made for an HTTP/2 client.
fn accepts(head: &ResponseHead, key: Option<&[u8]>) -> bool {
    let Some(key) = key else { return true };
    let said = head.headers.named("sec-websocket-accept").next();
    said.is_some_and(|said| said == websocket::accept(key).as_bytes())
}
