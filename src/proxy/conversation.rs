//! What happens on a client connection, in order: a request is read, answered, the response written,
//! and so on until one of the two sides has had enough.

use std::{
    future::poll_fn,
    pin::pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{BufMut, BytesMut};
use http::{Method, StatusCode, Version};
use tokio::io::AsyncReadExt;
use tracing::debug;

use super::{
    body::{Body, BrokenResponse},
    client::Client,
    connection::{Connection, NoRequest, Raw},
    error::{Refusal, RequestError},
    fields::{Fields, Known, KnownSet, put_field},
    forward, headers,
    http1::{chunked, framing, head},
    message::{Frame, RequestHead, ResponseHead},
    notes::Flag,
    service::{self, Reply, Then},
    upgrade::Tunnel,
    watch::{Order, Stage},
};
use crate::clock;

/// How long, and how many bytes of it, a client may go on sending what nobody wants any more.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 1 << 20;
/// A request body that nobody wants is read up to here, so that the connection can go on.
const SKIPPED_BYTES: u64 = 64 << 10;
/// The lines that we add to a head.
const HEAD_ROOM: usize = 256;
/// A body up to here leaves with its head, so there is to be room for both.
const SMALL: u64 = 8 << 10;
/// What a client gets that let us wait for too long with a request.
const LAST_WORDS: &[u8] =
    b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// How a connection ends.
enum End {
    /// Nothing more is to be said.
    Quiet,
    /// The client may still be sending what was not asked for.
    Unread,
    /// What was sent must not look complete.
    Broken,
    /// It is HTTP/2.
    Http2,
    /// It is no longer HTTP.
    Tunnel(Box<Tunnel>),
    /// The client let us wait for too long, at this stage.
    Expired(Stage),
    /// The client has left in the middle of an exchange.
    Left,
    /// The process ends, at this stage.
    Cut(Stage),
}

/// Serves a client until one of the two sides has had enough, or the client turns out to speak HTTP/2: then
/// gives the connection back.
pub async fn serve(connection: Rc<Connection>) -> Option<Rc<Connection>> {
    let end = {
        let mut talk = pin!(talk(&connection));
        poll_fn(|cx| {
            match connection.watch.orders(cx.waker()) {
                Some(Order::Drain) => connection.leave(),
                Some(Order::Expire) => return Poll::Ready(End::Expired(connection.watch.stage())),
                Some(Order::Cut) => return Poll::Ready(End::Cut(connection.watch.stage())),
                Some(Order::Look) if connection.has_client_left() => return Poll::Ready(End::Left),
                Some(Order::Look) | None => {}
            }
            let talked = talk.as_mut().poll(cx);
            let waits = matches!(connection.watch.stage(), Stage::Request | Stage::Response);
            if talked.is_pending() && waits && connection.poll_broken(cx) {
                return Poll::Ready(End::Left);
            }
            talked
        })
        .await
        // What was in flight for this client, if anything, is cancelled here.
    };
    match end {
        End::Http2 => return Some(connection),
        End::Quiet => close(&connection, connection.has_unread()).await,
        End::Unread => close(&connection, true).await,
        End::Broken => connection.reset(),
        End::Tunnel(tunnel) => Box::pin(run_tunnel(&connection, *tunnel)).await,
        End::Expired(stage @ (Stage::Head | Stage::Request)) => {
            if stage == Stage::Head {
                connection.note(None, clock::now());
            }
            connection.notes.add(|entry| {
                entry.status = Some(StatusCode::REQUEST_TIMEOUT);
                entry.flags.push(Flag::ClientTimedOut);
            });
            // Nothing of an answer was sent, but perhaps of one that announces it.
            if connection.is_flushed() {
                connection.try_write(LAST_WORDS);
            }
            close(&connection, true).await;
        }
        End::Expired(Stage::Fresh | Stage::Idle) => close(&connection, false).await,
        // It does not send the rest of what nobody waits for.
        End::Expired(Stage::Response | Stage::Finishing) => {
            connection.notes.flag(Flag::ClientTimedOut);
            close(&connection, true).await;
        }
        End::Left => {
            connection.notes.flag(Flag::ClientGone);
            debug!("the client has left");
        }
        End::Cut(stage) => {
            connection.notes.flag(Flag::Cut);
            // Else nothing was sent that is not whole.
            if stage == Stage::Response {
                connection.reset();
            }
        }
    }
    connection.notes.end();
    None
}

/// All requests of a client, one after the other.
async fn talk(connection: &Rc<Connection>) -> End {
    loop {
        let head = match poll_fn(|cx| connection.poll_request(cx)).await {
            Ok(head) => head,
            Err(NoRequest::Ended) => return End::Quiet,
            Err(NoRequest::Http2) => return End::Http2,
            Err(NoRequest::Bad(bad)) => {
                let refused = RequestError::from(Refusal::from(bad));
                let facts = Facts::of_no_request();
                connection.note(None, clock::now());
                let refusal = service::explain(&refused, &connection.notes);
                let end = Box::pin(respond(connection, &facts, refusal)).await;
                return end.unwrap_or(End::Unread);
            }
        };
        // A connection that waits is small, because what a request needs is not part of it.
        if let Some(end) = Box::pin(answer(connection, head)).await {
            return end;
        }
        connection.notes.end();
        connection.rest();
    }
}

/// One request. `None` if another may follow.
async fn answer(connection: &Rc<Connection>, head: RequestHead) -> Option<End> {
    let started = clock::now();
    connection.watch.enter(Stage::Request, started);
    connection.note(Some(&head), started);
    let facts = Facts::of(&head);
    let reply = match framing::of_request(head.version, &head.headers) {
        Ok(framing) => {
            // RFC 9110 section 10.1.1.
            let continue_awaited = head.version == Version::HTTP_11
                && head
                    .headers
                    .get(Known::Expect)
                    .is_some_and(|expected| expected.eq_ignore_ascii_case(b"100-continue"));
            connection.begin_body(framing, continue_awaited);
            let client = Client::Http1(Rc::clone(connection));
            service::handle(head, &client, started).await
        }
        Err(unclear) => service::explain(&Refusal::from(unclear).into(), &connection.notes),
    };
    respond(connection, &facts, reply).await
}

/// What of a request its response depends on.
struct Facts {
    version: Version,
    is_head: bool,
    /// Whether the client wants the connection to go on.
    stays: bool,
}

impl Facts {
    fn of(head: &RequestHead) -> Facts {
        let says = |token| headers::connection_says(&head.headers, token);
        Facts {
            version: head.version,
            is_head: head.method == Method::HEAD,
            stays: match head.headers.has(Known::Connection) {
                true if says("close") => false,
                true if head.version == Version::HTTP_10 => says("keep-alive"),
                _ => head.version == Version::HTTP_11,
            },
        }
    }

    /// For the answer to what is not a request.
    fn of_no_request() -> Facts {
        Facts {
            version: Version::HTTP_11,
            is_head: false,
            stays: false,
        }
    }
}

/// How the body of a response is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Coding {
    /// Not at all (RFC 9110 section 6.4.1).
    None,
    /// As its `Content-Length` says.
    Length,
    Chunked,
    /// Up to the end of the connection: for HTTP/1.0.
    UntilClose,
}

/// Writes a response. `None` if another request may follow.
async fn respond(connection: &Rc<Connection>, facts: &Facts, reply: Reply) -> Option<End> {
    let Reply { head, body, then } = reply;
    let coding = coding(facts, &head, &body);
    let refused = matches!(then, Then::Close);
    // Whether the client sends its body all the same is its own choice.
    let uncertain = connection.give_up_continue() && !connection.is_body_over();
    let stays = facts.stays
        && coding != Coding::UntilClose
        && !refused
        && !uncertain
        && !connection.worker.is_draining()
        && (matches!(body, Body::Upstream(_)) || can_skip_body(connection));
    connection.put(|out| put_head(out, connection, facts, &head, &body, coding, stays, &then));
    connection
        .notes
        .add(|entry| entry.status = Some(head.status));
    // It holds on to all that was read with it.
    drop(head);
    connection.watch.enter(Stage::Response, clock::recent());
    let mut sending = Sending {
        body,
        coding,
        ended: false,
        broken: None,
    };
    match poll_fn(|cx| sending.poll(connection, cx)).await {
        Ok(()) => {}
        Err(Broken::Client) => return Some(End::Left),
        Err(Broken::Response(broken)) => {
            debug!(error = %broken, "response broke off");
            return Some(match coding {
                Coding::UntilClose => End::Broken,
                _ => End::Unread,
            });
        }
    }
    if let Then::Tunnel(_, tunnel) = then {
        return Some(End::Tunnel(tunnel));
    }
    connection.watch.enter(Stage::Finishing, clock::recent());
    if !stays && !connection.is_body_over() {
        // The response is known to be over, though the request is not.
        let _already_gone = Raw(connection).finish().await;
    }
    let timeout = forward::response_timeout(&connection.worker.kit().config);
    let finished = sending.body.finish_upload(&connection.watch, timeout).await;
    match stays {
        // More of what was refused may be on its way.
        false if finished && !refused => Some(End::Quiet),
        true if finished && skip_body(connection).await => None,
        _ => Some(End::Unread),
    }
}

fn coding(facts: &Facts, head: &ResponseHead, body: &Body) -> Coding {
    let bodiless = framing::is_bodiless(head.status);
    match (body.length(), facts.version) {
        _ if bodiless || facts.is_head => Coding::None,
        (Some(_), _) => Coding::Length,
        (None, Version::HTTP_11) => Coding::Chunked,
        (None, _) => Coding::UntilClose,
    }
}

#[allow(clippy::too_many_arguments)]
fn put_head(
    out: &mut BytesMut,
    connection: &Connection,
    facts: &Facts,
    head: &ResponseHead,
    body: &Body,
    coding: Coding,
    stays: bool,
    then: &Then,
) {
    out.reserve(
        head.headers.written_length() + HEAD_ROOM + body.length().unwrap_or(0).min(SMALL) as usize,
    );
    head::put_status_line(out, head.status, head.reason.as_deref());
    // RFC 9110 section 8.6: there is none where there cannot be a body at all.
    let has_length = matches!(coding, Coding::None | Coding::Length)
        && head.status != StatusCode::NO_CONTENT
        && !head.status.is_informational();
    let skipped = match has_length {
        true => KnownSet::of(&[]),
        false => KnownSet::of(&[Known::ContentLength]),
    };
    head.headers.put_without(skipped, out);
    if !head.headers.has(Known::Date) {
        put_field(out, b"date", connection.worker.date.borrow().as_bytes());
    }
    if let Some(cookie) = connection.cookie.take() {
        put_field(out, b"set-cookie", &cookie);
    }
    let length = match body {
        Body::Text(text) if has_length => Some(text.len() as u64),
        // HTTP/2 need not say it.
        Body::Upstream(_)
            if coding == Coding::Length && !head.headers.has(Known::ContentLength) =>
        {
            body.length()
        }
        _ => None,
    };
    if let Some(length) = length {
        head::put_length(out, length);
    }
    if coding == Coding::Chunked {
        out.put_slice(b"transfer-encoding: chunked\r\n");
    }
    match then {
        Then::Tunnel(protocol, _) => headers::put_upgrade(out, protocol),
        _ if !stays => out.put_slice(b"connection: close\r\n"),
        _ if facts.version == Version::HTTP_10 => out.put_slice(b"connection: keep-alive\r\n"),
        _ => {}
    }
    out.put_slice(b"\r\n");
}

/// A response on its way to the client.
struct Sending {
    body: Body,
    coding: Coding,
    ended: bool,
    broken: Option<BrokenResponse>,
}

/// Why a response was not sent to its end.
enum Broken {
    /// By the client, or the way to it.
    Client,
    Response(BrokenResponse),
}

impl Sending {
    /// Ready when all is sent. What there is of a response that breaks off is sent first.
    fn poll(&mut self, connection: &Connection, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        loop {
            let mut waits = false;
            while !self.ended && !connection.with_outbox(|outbox| outbox.is_full()) {
                match self.body.poll_frame(cx) {
                    Poll::Ready(Some(Ok(frame))) => self.put(connection, frame),
                    Poll::Ready(Some(Err(broken))) => {
                        self.broken = Some(broken);
                        self.ended = true;
                    }
                    Poll::Ready(None) => self.end(connection, None),
                    Poll::Pending => {
                        waits = true;
                        break;
                    }
                }
            }
            match connection.poll_flush(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_gone)) => return Poll::Ready(Err(Broken::Client)),
                Poll::Pending => {
                    self.body.slow_down();
                    // The request goes on whether the client reads its response or not.
                    if let Poll::Ready(Err(broken)) = self.body.poll_upload(cx) {
                        return Poll::Ready(Err(Broken::Response(broken.into())));
                    }
                    return Poll::Pending;
                }
            }
            if self.ended {
                return Poll::Ready(match self.broken.take() {
                    Some(broken) => Err(Broken::Response(broken)),
                    None => Ok(()),
                });
            }
            if waits {
                return Poll::Pending;
            }
        }
    }

    fn put(&mut self, connection: &Connection, frame: Frame) {
        if let (Frame::Data(data), true) = (&frame, self.coding != Coding::None) {
            let length = data.len() as u64;
            connection.notes.add(|entry| entry.response_bytes += length);
        }
        match (frame, self.coding) {
            // A text that answers HEAD.
            (Frame::Data(_), Coding::None) => {}
            (Frame::Data(data), Coding::Chunked) => {
                connection.with_outbox(|outbox| outbox.put_chunk(data));
            }
            (Frame::Data(data), Coding::Length | Coding::UntilClose) => {
                connection.with_outbox(|outbox| outbox.put(data));
            }
            (Frame::Trailers(mut trailers), _) => {
                headers::keep_allowed_trailers(&mut trailers);
                self.end(connection, Some(&trailers));
            }
        }
    }

    fn end(&mut self, connection: &Connection, trailers: Option<&Fields>) {
        self.ended = true;
        if self.coding == Coding::Chunked {
            connection.put(|out| chunked::put_end(out, trailers));
        }
    }
}

/// Whether what is left of a request that nobody reads is little, and will come.
fn can_skip_body(connection: &Connection) -> bool {
    let little = |left| left <= SKIPPED_BYTES;
    connection.is_body_over() || connection.body_length().is_some_and(little)
}

/// Reads what is left of a request that nobody reads. Whether it came to its end.
async fn skip_body(connection: &Connection) -> bool {
    let mut skipped = 0;
    while !connection.is_body_over() && skipped <= SKIPPED_BYTES {
        connection.watch.reading_body(true);
        let frame = poll_fn(|cx| connection.poll_body(cx)).await;
        connection.watch.reading_body(false);
        match frame {
            Some(Ok(Frame::Data(data))) => skipped += data.len() as u64,
            Some(Ok(Frame::Trailers(_))) | None => {}
            Some(Err(_)) => return false,
        }
    }
    connection.notes.add(|entry| entry.request_bytes += skipped);
    connection.is_body_over()
}

/// Runs the tunnel, for as long as the process does.
async fn run_tunnel(connection: &Connection, tunnel: Tunnel) {
    connection.watch.enter(Stage::Response, clock::now());
    let expired = poll_fn(|cx| match connection.watch.orders(cx.waker()) {
        Some(Order::Expire | Order::Cut) => Poll::Ready(()),
        Some(Order::Drain | Order::Look) | None => Poll::Pending,
    });
    let mut raw = Raw(connection);
    let read = raw.take_read();
    tokio::select! {
        ended = tunnel.run(&mut raw, &read, &connection.notes) => {
            if let Err(error) = ended {
                debug!(%error, "tunnel broke off");
            }
        }
        () = expired => {
            connection.notes.flag(Flag::Cut);
            debug!("tunnel closed: the process ends");
        }
    }
}

/// Closes; where the client may still be sending, says first that we send no more, and throws away
/// what comes for a while, so that our answer is not destroyed on its way by a reset (RFC 9112
/// section 9.6).
async fn close(connection: &Connection, client_may_send: bool) {
    // What comes now is no part of it.
    connection.notes.end();
    let mut raw = Raw(connection);
    if raw.finish().await.is_ok() && client_may_send {
        let _elapsed = tokio::time::timeout(LINGER, linger(&mut raw)).await;
    }
}

async fn linger(raw: &mut Raw<'_>) {
    let mut scratch = vec![0; 4096];
    let mut left = LINGER_BYTES;
    while let Ok(read @ 1..) = raw.read(&mut scratch).await {
        left = left.saturating_sub(read);
        if left == 0 {
            return;
        }
    }
}
