//! Clients by HTTP/2: many requests at a time on a connection, gRPC among them.

use std::{io, rc::Rc, time::Duration};

use bytes::Bytes;
use futures_util::future::join_all;
use h2::{Reason, RecvStream, SendStream, client, ext::Protocol};
use http::Method;
use tokio::{
    net::TcpStream,
    task::{JoinHandle, spawn_local},
    time::{sleep, timeout},
};

use super::{
    super::{
        books::{End, Sort},
        pattern::{Author, Pattern},
        service::{How, send},
    },
    Content, Got, PATIENCE, Request, Visitor,
};

const PIECE: u64 = 16 << 10;

struct Connection {
    sender: client::SendRequest<Bytes>,
    task: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Connection {
    async fn open(visitor: &Visitor) -> io::Result<Connection> {
        let stream = TcpStream::connect(visitor.address).await?;
        let stream = visitor.over(stream).await?;
        let handshake = client::handshake(stream).await;
        let (sender, connection) = handshake.map_err(io::Error::other)?;
        let task = spawn_local(async move {
            // How it ends is told to its streams.
            let _ended = connection.await;
        });
        Ok(Connection { sender, task })
    }
}

/// When a client takes back what it has asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leaves {
    Never,
    AtOnce,
    InTheBody,
    InTheAnswer,
}

impl Visitor {
    pub async fn by_http2(self: Rc<Self>, pause: Duration) {
        let mut kept: Option<Connection> = None;
        // As many requests as others make, but some at a time.
        let at_once = 4;
        while self.rest(pause * at_once).await {
            let is_over = |connection: &Connection| connection.task.is_finished();
            kept = kept.filter(|connection| !is_over(connection));
            let is_fresh = kept.is_none();
            let connection = match kept.take() {
                Some(connection) => connection,
                None => match timeout(PATIENCE, Connection::open(&self)).await {
                    Ok(Ok(connection)) => connection,
                    _ if self.world.is_ending.get() => return,
                    failed => {
                        let why = failed.map(|it| it.err());
                        let mut books = self.world.books.borrow_mut();
                        books.problem(format!("no connection of HTTP/2 could be had: {why:?}"));
                        continue;
                    }
                },
            };
            let count = self.draw(|random| random.u32(1..2 * at_once));
            let all = join_all((0..count).map(|_| self.one_stream(&connection.sender, is_fresh)));
            match self.percent() {
                // It is gone in the middle of it.
                0..3 => self.leave_all(&connection, is_fresh).await,
                percent => {
                    all.await;
                    kept = Some(connection).filter(|_| percent < 90);
                }
            }
        }
    }

    /// Requests, and then the end of the connection.
    async fn leave_all(&self, connection: &Connection, is_fresh: bool) {
        let some = join_all((0..4).map(|_| async {
            let request = self.usual(Sort::Http2);
            let id = request.id;
            let asked = self.ask(&connection.sender, &request, Leaves::Never, is_fresh);
            let left = timeout(Duration::from_millis(20), asked).await;
            self.end(id, left.unwrap_or(End::Left));
        }));
        some.await;
    }

    async fn one_stream(&self, sender: &client::SendRequest<Bytes>, is_fresh: bool) {
        match self.percent() {
            0..62 => {
                let request = self.usual(Sort::Http2);
                let asked = self.ask(sender, &request, Leaves::Never, is_fresh);
                self.patiently(request.id, asked).await;
            }
            62..67 => {
                let request = self.usual(Sort::Http2);
                let leaves = match self.percent() % 3 {
                    0 => Leaves::AtOnce,
                    1 => Leaves::InTheBody,
                    _ => Leaves::InTheAnswer,
                };
                let asked = self.ask(sender, &request, leaves, is_fresh);
                self.patiently(request.id, asked).await;
            }
            67..85 => {
                let code = if self.percent() < 90 { 0 } else { 13 };
                let (length, sends) = (self.some_length(), self.some_length());
                let order = (code, length, How::Grpc);
                let mut request = self.request(Sort::Grpc, "POST", order, sends);
                request
                    .fields
                    .push(("content-type", "application/grpc".into()));
                request.fields.push(("te", "trailers".into()));
                let asked = self.ask(sender, &request, Leaves::Never, is_fresh);
                self.patiently(request.id, asked).await;
            }
            85..93 => {
                let length = self.draw(|random| random.u64(1..100 << 10));
                let order = (0, length, How::Echo);
                let mut request = self.request(Sort::Grpc, "POST", order, length);
                request
                    .fields
                    .push(("content-type", "application/grpc".into()));
                request.fields.push(("te", "trailers".into()));
                // It waits to be spoken to.
                self.mark_slow(request.id);
                let talk = self.talk(sender, &request, is_fresh);
                self.patiently(request.id, talk).await;
            }
            _ => {
                let length = self.draw(|random| random.u64(1..100 << 10));
                let order = (101, length, How::Tunnel);
                let request = self.request(Sort::Tunnel, "CONNECT", order, 0);
                let talk = self.talk(sender, &request, is_fresh);
                self.patiently(request.id, talk).await;
            }
        }
    }

    /// A request and its answer.
    async fn ask(
        &self,
        sender: &client::SendRequest<Bytes>,
        request: &Request,
        leaves: Leaves,
        is_fresh: bool,
    ) -> End {
        let ends = request.sends == 0;
        let (response, mut upload) = match begin(sender, request, ends).await {
            Ok(begun) => begun,
            Err(error) => return no_answer(&error, is_fresh),
        };
        match leaves {
            Leaves::AtOnce => {
                upload.send_reset(Reason::CANCEL);
                return End::Left;
            }
            Leaves::InTheBody if !ends => {
                let half =
                    Pattern::new(request.id, Author::Client).next(request.sends as usize / 2);
                let _or_it_has_answered = send(&mut upload, half.into()).await;
                upload.send_reset(Reason::CANCEL);
                return End::Left;
            }
            _ => {}
        }
        let sending = async {
            let mut content = Pattern::new(request.id, Author::Client);
            while content.length() < request.sends {
                let left = request.sends - content.length();
                let piece = content.next(left.min(PIECE) as usize);
                send(&mut upload, piece.into()).await?;
            }
            match ends {
                true => Ok(()),
                false => upload.send_data(Bytes::new(), true),
            }
        };
        let reading = async {
            let read = self.read_stream(request.id, response, leaves).await;
            match read {
                Ok((status, content, ended)) => match (leaves, ended) {
                    (Leaves::InTheAnswer, Err(_)) => End::Left,
                    (_, Ok(())) => content.ended(status).end(false),
                    (_, Err(why)) => content.cut(status, why).end(false),
                },
                Err(Unread::Failed(error)) => no_answer(&error, is_fresh),
                Err(Unread::Wrong(why)) => End::Wrong(why),
            }
        };
        // An answer may come before the request is over, and instead of it.
        tokio::pin!(sending, reading);
        let mut sent = false;
        loop {
            tokio::select! {
                biased;
                end = &mut reading => return end,
                _ = &mut sending, if !sent => sent = true,
            }
        }
    }

    async fn read_stream(
        &self,
        id: u64,
        response: client::ResponseFuture,
        leaves: Leaves,
    ) -> Result<(u16, Content, Result<(), String>), Unread> {
        let (status, mut content, mut body) = self.head_of(id, response).await?;
        let slowly = self.percent() < 3;
        while let Some(piece) = body.data().await {
            let piece = match piece {
                Ok(piece) => piece,
                Err(error) => return Ok((status, content, Err(error.to_string()))),
            };
            content.read(&piece);
            if leaves == Leaves::InTheAnswer {
                return Ok((status, content, Err("it has left".into())));
            }
            if slowly {
                // By its length: a narrow window comes in many pieces.
                sleep(Duration::from_micros(piece.len() as u64 / 2)).await;
            }
            let _gone = body.flow_control().release_capacity(piece.len());
        }
        let trailers = body.trailers().await;
        let ended = trailers.map(drop).map_err(|error| error.to_string());
        Ok((status, content, ended))
    }

    async fn head_of(
        &self,
        id: u64,
        response: client::ResponseFuture,
    ) -> Result<(u16, Content, RecvStream), Unread> {
        let (head, body) = response.await.map_err(Unread::Failed)?.into_parts();
        let field = |name| head.headers.get(name).and_then(|value| value.to_str().ok());
        self.keep(field("set-cookie"));
        let content = Content::new(id, field("x-from"), field("x-id"));
        let content = content.map_err(Unread::Wrong)?;
        Ok((head.status.as_u16(), content, body))
    }

    /// Sends, and has it sent back piece by piece: a stream of gRPC's, or a tunnel.
    async fn talk(
        &self,
        sender: &client::SendRequest<Bytes>,
        request: &Request,
        is_fresh: bool,
    ) -> End {
        let (response, mut upload) = match begin(sender, request, false).await {
            Ok(begun) => begun,
            Err(error) => return no_answer(&error, is_fresh),
        };
        let (status, content, mut body) = match self.head_of(request.id, response).await {
            Ok(head) => head,
            Err(Unread::Failed(error)) => return no_answer(&error, is_fresh),
            Err(Unread::Wrong(why)) => return End::Wrong(why),
        };
        let is_tunnel = request.method == "CONNECT";
        let mut content = match status {
            200 => content.echoes(),
            _ => content,
        };
        let length = match is_tunnel {
            true => 50 << 10,
            false => request.sends,
        };
        let mut said = Pattern::new(request.id, Author::Client);
        while said.length() < length && status == 200 {
            let piece = said.next((length - said.length()).min(PIECE) as usize);
            if let Err(error) = send(&mut upload, piece.into()).await {
                return content.cut(status, error).end(false);
            }
            while content.length < said.length() {
                match body.data().await {
                    Some(Ok(back)) => {
                        content.read(&back);
                        let _gone = body.flow_control().release_capacity(back.len());
                    }
                    Some(Err(error)) => return content.cut(status, error).end(false),
                    None => return content.cut(status, "it ended").end(false),
                }
            }
        }
        let _gone = upload.send_data(Bytes::new(), true);
        while let Some(piece) = body.data().await {
            let piece = match piece {
                Ok(piece) => piece,
                Err(error) => return content.cut(status, error).end(false),
            };
            content.read(&piece);
            let _gone = body.flow_control().release_capacity(piece.len());
        }
        if let Err(error) = body.trailers().await {
            return content.cut(status, error).end(false);
        }
        if status == 200 && content.length < length {
            return content.cut(status, "it ended").end(false);
        }
        match content.ended(status) {
            // Its bytes are no body.
            Got::Whole { status, by, .. } if is_tunnel && status == 200 => End::Whole {
                status,
                length: 0,
                by,
            },
            got => got.end(false),
        }
    }
}

/// Why there is nothing to read.
enum Unread {
    Failed(h2::Error),
    Wrong(String),
}

/// A request that got no answer. One that the router refused, or that its connection ended before, was not taken.
fn no_answer(error: &h2::Error, is_fresh: bool) -> End {
    let is_refused = error.reason() == Some(Reason::REFUSED_STREAM);
    let is_over = error.is_go_away() || error.is_io();
    End::NoAnswer {
        may_be_untaken: is_refused || is_over && !is_fresh,
    }
}

async fn begin(
    sender: &client::SendRequest<Bytes>,
    request: &Request,
    ends: bool,
) -> Result<(client::ResponseFuture, SendStream<Bytes>), h2::Error> {
    let mut sender = sender.clone().ready().await?;
    let is_tunnel = request.method == "CONNECT";
    let mut head = http::Request::builder()
        .method(Method::from_bytes(request.method.as_bytes()).unwrap_or_default())
        .uri(format!("{}://soak.example{}", request.scheme, request.path))
        .version(http::Version::HTTP_2);
    for (name, value) in &request.fields {
        head = head.header(*name, value);
    }
    if is_tunnel {
        head = head
            .extension(Protocol::from_static("websocket"))
            .header("sec-websocket-version", "13");
        // It says in its settings whether it takes them.
        while !sender.is_extended_connect_protocol_enabled() {
            sleep(Duration::from_millis(5)).await;
        }
    } else if request.sends > 0 && !request.path.ends_with("/echo") {
        // Who announces a length does not wait for an answer before its end: the router holds the last piece back
        // until then.
        head = head.header("content-length", request.sends);
    }
    let head = head
        .body(())
        .map_err(|_| h2::Error::from(Reason::INTERNAL_ERROR))?;
    sender.send_request(head, ends)
}
