//! A service's side of an HTTP/2 connection.

use std::{
    future::poll_fn,
    io,
    rc::Rc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use canary_router::policy::is_grpc_failure;
use h2::{Reason, RecvStream, SendStream, server};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use tokio::{task::JoinSet, time::sleep};

use super::{
    super::{
        books::Seen,
        pattern::{Author, Pattern},
        stream::Stream as Bytestream,
        trouble::{Lie, What},
    },
    HALFWAY, How, Order, PIECE, Service,
};

const LIES: [Lie; 8] = [
    Lie::Silence,
    Lie::Reset,
    Lie::Refuse,
    Lie::Short,
    Lie::CutBody,
    Lie::HalfBody,
    Lie::Early,
    Lie::SlowBody,
];

/// After so many requests a connection is given up, in good order.
const MOST_REQUESTS: u64 = 400;

/// Serves requests until one of the two has had enough.
pub async fn converse(service: &Rc<Service>, stream: Bytestream) -> io::Result<()> {
    let mut builder = server::Builder::new();
    builder.enable_connect_protocol().max_concurrent_streams(64);
    let mut connection = builder
        .handshake::<_, Bytes>(stream)
        .await
        .map_err(io::Error::other)?;
    // They end with the connection.
    let mut streams = JoinSet::new();
    let mut count = 0;
    while let Some(accepted) = connection.accept().await {
        let (request, respond) = accepted.map_err(io::Error::other)?;
        count += 1;
        if count == MOST_REQUESTS {
            connection.graceful_shutdown();
            let now = Instant::now();
            let mut troubles = service.world.troubles.borrow_mut();
            troubles.was(What::Leaves, Some(service.peer), now, now);
        }
        let service = Rc::clone(service);
        streams.spawn_local(async move {
            let path = request.uri().path().to_owned();
            let Some(order) = Order::at(&path, &service) else {
                return;
            };
            let mut stream = Stream::new(&service, request, respond, order);
            // How it ends is in the books.
            let _ended = stream.run().await;
        });
    }
    Ok(())
}

struct Stream {
    service: Rc<Service>,
    order: Order,
    place: Option<usize>,
    lie: Option<Lie>,
    method: Method,
    body: RecvStream,
    content: Pattern,
    respond: server::SendResponse<Bytes>,
    sending: Option<SendStream<Bytes>>,
}

impl Stream {
    fn new(
        service: &Rc<Service>,
        request: Request<RecvStream>,
        respond: server::SendResponse<Bytes>,
        mut order: Order,
    ) -> Stream {
        let (head, body) = request.into_parts();
        // An upgrade that the router could not say here is a plain request.
        if order.how == How::Tunnel && head.method != Method::CONNECT {
            order.how = How::Length;
            order.status = 400;
        }
        let scheme = head.headers.get("x-forwarded-proto");
        service.check_scheme(order.id, scheme.and_then(|scheme| scheme.to_str().ok()));
        let mut books = service.world.books.borrow_mut();
        let place = books.seen(service.peer, order.id);
        let lie = service.lie_to(&order, place, &LIES);
        books.note(service.peer, order.id, place, |seen| seen.lie = lie);
        Stream {
            service: Rc::clone(service),
            content: Pattern::new(order.id, Author::Client),
            order,
            place,
            lie,
            method: head.method,
            body,
            respond,
            sending: None,
        }
    }

    fn note(&self, note: impl FnOnce(&mut Seen)) {
        let mut books = self.service.world.books.borrow_mut();
        books.note(self.service.peer, self.order.id, self.place, note);
    }

    async fn run(&mut self) -> Result<(), h2::Error> {
        match self.lie {
            Some(Lie::Refuse) => return self.reset(Reason::REFUSED_STREAM),
            Some(Lie::Early) if self.order.how != How::Tunnel => {
                self.note(|seen| seen.length = Some(0));
                return self.head(413, true);
            }
            _ => {}
        }
        match self.order.how {
            How::Tunnel => {
                self.note(|seen| {
                    seen.whole = Some(0);
                    seen.length = Some(0);
                });
            }
            How::Echo => {}
            _ => {
                while let Some(piece) = self.next().await? {
                    drop(piece);
                }
                let got = self.content.length();
                self.note(|seen| seen.whole = Some(got));
            }
        }
        self.service.think().await;
        match self.lie {
            Some(Lie::Silence) => return self.hang().await,
            Some(Lie::Reset) => return self.reset(Reason::INTERNAL_ERROR),
            _ => {}
        }
        match self.order.how {
            How::Tunnel | How::Echo if self.lie != Some(Lie::Fails) => self.echo().await,
            _ => self.answer().await,
        }
    }

    async fn next(&mut self) -> Result<Option<Bytes>, h2::Error> {
        let Some(piece) = self.body.data().await else {
            return Ok(None);
        };
        let piece = piece?;
        self.body.flow_control().release_capacity(piece.len())?;
        if self.order.how != How::Tunnel {
            self.content.read(&piece);
        }
        if !self.content.is_right() {
            self.note(|seen| seen.is_wrong = true);
        }
        Ok(Some(piece))
    }

    fn head(&mut self, status: u16, ends: bool) -> Result<(), h2::Error> {
        self.note(|seen| seen.status = Some(status));
        let mut head = Response::new(());
        *head.status_mut() = StatusCode::from_u16(status).unwrap_or_default();
        let fields = head.headers_mut();
        fields.insert(
            "x-from",
            HeaderValue::from_static(self.service.peer.label()),
        );
        fields.insert("x-id", self.order.id.into());
        fields.insert("x-got", self.content.length().into());
        if self.is_grpc() {
            fields.insert("content-type", HeaderValue::from_static("application/grpc"));
        }
        let says = self.service.says(&self.order, status, self.lie);
        if let Some(holds) = says {
            fields.insert("cache-control", HeaderValue::from_static(holds));
        }
        let says_length = self.order.how == How::Length || self.lie == Some(Lie::Short);
        if says_length && !ends && status != 204 {
            fields.insert("content-length", self.order.length.into());
        }
        self.sending = Some(self.respond.send_response(head, ends)?);
        Ok(())
    }

    fn is_grpc(&self) -> bool {
        // What it says of itself is what counts, in both directions.
        self.order.how == How::Grpc
    }

    async fn answer(&mut self) -> Result<(), h2::Error> {
        let status = match self.lie {
            Some(Lie::Fails) => [500, 502, 503, 504][self.order.id as usize % 4],
            _ if self.order.how == How::Grpc => 200,
            _ => self.order.status,
        };
        let has_body = self.method != Method::HEAD && !matches!(status, 204 | 304);
        let length = if has_body { self.order.length } else { 0 };
        let is_truth = matches!(self.lie, None | Some(Lie::Fails | Lie::SlowBody));
        if is_truth || length < 2 {
            self.note(|seen| {
                seen.length = Some(length);
                if !is_truth {
                    seen.lie = None;
                }
            });
        }
        let ends = length == 0 && !self.is_grpc();
        self.head(status, ends)?;
        if ends {
            return Ok(());
        }
        let mut content = Pattern::new(self.order.id, self.service.peer.author());
        let whole = match is_truth || length < 2 {
            true => length,
            false => length / 2,
        };
        self.put(&mut content, whole).await?;
        match self.lie {
            _ if whole == length => {}
            Some(Lie::CutBody) => return self.reset(Reason::INTERNAL_ERROR),
            Some(Lie::HalfBody) => {
                sleep(HALFWAY).await;
                return self.reset(Reason::INTERNAL_ERROR);
            }
            _ => {}
        }
        self.finish()
    }

    async fn put(&mut self, content: &mut Pattern, length: u64) -> Result<(), h2::Error> {
        let mut left = length;
        while left > 0 {
            let piece = content.next(left.min(PIECE) as usize);
            left -= piece.len() as u64;
            if self.lie == Some(Lie::SlowBody) {
                sleep(Duration::from_millis(30)).await;
            }
            let length = piece.len() as u64;
            self.send(piece.into()).await?;
            self.note(|seen| seen.sent += length);
        }
        Ok(())
    }

    async fn send(&mut self, bytes: Bytes) -> Result<(), h2::Error> {
        match &mut self.sending {
            Some(sending) => send(sending, bytes).await,
            None => Err(Reason::INTERNAL_ERROR.into()),
        }
    }

    fn finish(&mut self) -> Result<(), h2::Error> {
        let code = self.order.status;
        if self.is_grpc() && is_grpc_failure(code.into()) {
            self.note(|seen| seen.has_failed_by_grpc = true);
        }
        let says_grpc = self.is_grpc() || self.order.how == How::Echo;
        let Some(sending) = &mut self.sending else {
            return Ok(());
        };
        match says_grpc {
            true => {
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", code.into());
                sending.send_trailers(trailers)
            }
            false => sending.send_data(Bytes::new(), true),
        }
    }

    async fn echo(&mut self) -> Result<(), h2::Error> {
        // Another lie than those before is none here.
        self.lie = None;
        self.note(|seen| seen.lie = None);
        self.head(200, false)?;
        while let Some(piece) = self.next().await? {
            self.send(piece).await?;
        }
        if self.order.how == How::Echo {
            let got = self.content.length();
            self.note(|seen| {
                seen.whole = Some(got);
                seen.length = Some(got);
            });
        }
        self.finish()
    }

    fn reset(&mut self, reason: Reason) -> Result<(), h2::Error> {
        match &mut self.sending {
            Some(sending) => sending.send_reset(reason),
            None => self.respond.send_reset(reason),
        }
        Ok(())
    }

    /// Until the other side gives the stream up.
    async fn hang(&mut self) -> Result<(), h2::Error> {
        poll_fn(|cx| match &mut self.sending {
            Some(sending) => sending.poll_reset(cx),
            None => self.respond.poll_reset(cx),
        })
        .await
        .map(drop)
    }
}

/// Sends as the window allows.
pub async fn send(stream: &mut SendStream<Bytes>, mut bytes: Bytes) -> Result<(), h2::Error> {
    while !bytes.is_empty() {
        stream.reserve_capacity(bytes.len());
        let granted = poll_fn(|cx| stream.poll_capacity(cx)).await;
        let granted = granted.ok_or(h2::Error::from(Reason::STREAM_CLOSED))??;
        stream.send_data(bytes.split_to(granted.min(bytes.len())), false)?;
    }
    Ok(())
}
