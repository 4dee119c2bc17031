//! A service's side of an HTTP/1 connection.

use std::{fmt::Write, io, rc::Rc, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use ring::digest;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader},
    time::{sleep, timeout},
};

use super::{
    super::{
        pattern::{Author, Pattern},
        stream::{Stream, WriteEnd},
        trouble::Lie,
        wire::{Body, Framing, Head, Reader, chunk},
    },
    HALFWAY, How, Order, PIECE, Service,
};

const LIES: [Lie; 17] = [
    Lie::Silence,
    Lie::DripHead,
    Lie::Reset,
    Lie::Close,
    Lie::Garbage,
    Lie::TwoLengths,
    Lie::LengthAndChunks,
    Lie::Flood,
    Lie::Unasked101,
    Lie::Short,
    Lie::BadChunk,
    Lie::CutBody,
    Lie::HalfBody,
    Lie::NoGoodbye,
    Lie::Extra,
    Lie::Early,
    Lie::SlowBody,
];

/// Serves requests until one of the two has had enough.
pub async fn converse(service: &Rc<Service>, stream: Stream) -> io::Result<()> {
    let (read, mut write) = stream.split();
    let mut reader = BufReader::new(read);
    loop {
        let head = match Head::read(&mut reader).await {
            Ok(Some(head)) => head,
            Ok(None) => return Ok(()),
            Err(error) => return not_a_request(service, error),
        };
        let Some(order) = Order::at(head.word(1), service) else {
            return Ok(());
        };
        service.check_scheme(order.id, head.field("x-forwarded-proto"));
        let exchange = Exchange::new(service, head, order);
        if !exchange.run(&mut reader, &mut write).await? {
            return Ok(());
        }
    }
}

/// The router may break off, but it does not talk nonsense.
fn not_a_request(service: &Service, error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::InvalidData {
        let mut books = service.world.books.borrow_mut();
        books.problem(format!(
            "{} got what is no request: {error}",
            service.peer.label()
        ));
    }
    Err(error)
}

struct Exchange<'a> {
    service: &'a Rc<Service>,
    head: Head,
    order: Order,
    place: Option<usize>,
    lie: Option<Lie>,
}

impl Exchange<'_> {
    fn new(service: &Rc<Service>, head: Head, order: Order) -> Exchange<'_> {
        let mut books = service.world.books.borrow_mut();
        let place = books.seen(service.peer, order.id);
        let lie = service.lie_to(&order, place, &LIES);
        books.note(service.peer, order.id, place, |seen| seen.lie = lie);
        Exchange {
            service,
            head,
            order,
            place,
            lie,
        }
    }

    fn note(&self, note: impl FnOnce(&mut super::super::books::Seen)) {
        let mut books = self.service.world.books.borrow_mut();
        books.note(self.service.peer, self.order.id, self.place, note);
    }

    /// Whether another request may follow.
    async fn run(&self, reader: &mut Reader, write: &mut WriteEnd) -> io::Result<bool> {
        if self.order.how == How::Tunnel && self.head.field("upgrade").is_some() {
            return self.tunnel(reader, write).await.map(|()| false);
        }
        let framing = self.head.framing(Framing::Length(0));
        let framing = framing
            .or_else(|error| not_a_request(self.service, error).map(|()| Framing::Length(0)))?;
        let awaits = self.head.field("expect").is_some();
        if self.lie == Some(Lie::Early) {
            return self.answer_early(reader, write).await.map(|()| false);
        }
        if awaits && framing != Framing::Length(0) {
            write.send(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        let mut body = Body::new(framing);
        let mut content = Pattern::new(self.order.id, Author::Client);
        if self.order.how == How::Echo {
            return self.echo(&mut body, &mut content, reader, write).await;
        }
        while let Some(piece) = self.next(&mut body, reader).await? {
            self.read(&mut content, &piece);
        }
        self.note(|seen| seen.whole = Some(content.length()));
        self.service.think().await;
        match self.lie {
            None | Some(Lie::Fails | Lie::SlowBody) => self.answer(&content, write).await,
            Some(lie) => {
                // Without TLS nobody says goodbye.
                let is_moot = lie == Lie::NoGoodbye && !write.is_tls();
                if is_of_body(lie) && !self.has_body() || is_moot {
                    self.note(|seen| seen.lie = None);
                    return self.answer(&content, write).await;
                }
                self.deceive(lie, &content, reader, write)
                    .await
                    .map(|()| false)
            }
        }
    }

    async fn next(&self, body: &mut Body, reader: &mut Reader) -> io::Result<Option<Vec<u8>>> {
        let piece = body.next(reader, PIECE as usize).await;
        if let Err(error) = &piece
            && error.kind() == io::ErrorKind::InvalidData
        {
            let error = io::Error::new(io::ErrorKind::InvalidData, error.to_string());
            return not_a_request(self.service, error).map(|()| None);
        }
        piece
    }

    fn read(&self, content: &mut Pattern, piece: &[u8]) {
        content.read(piece);
        if !content.is_right() {
            self.note(|seen| seen.is_wrong = true);
        }
    }

    fn status(&self) -> u16 {
        match self.lie {
            Some(Lie::Fails) => [500, 502, 503, 504][self.order.id as usize % 4],
            _ if self.order.how == How::Grpc => 200,
            _ => self.order.status,
        }
    }

    fn has_body(&self) -> bool {
        self.head.word(0) != "HEAD" && !matches!(self.status(), 204 | 304)
    }

    /// The head of an answer, without what says how long it is.
    fn answer_head(&self, status: u16, got: u64) -> String {
        self.note(|seen| seen.status = Some(status));
        let mut head = format!("HTTP/1.1 {status} As Ordered\r\n");
        if let Some(holds) = self.service.says(&self.order, status, self.lie) {
            let _into_memory = write!(head, "cache-control: {holds}\r\n");
        }
        let from = self.service.peer.label();
        let id = self.order.id;
        let _into_memory = write!(head, "x-from: {from}\r\nx-id: {id}\r\nx-got: {got}\r\n");
        if self.order.how == How::Grpc {
            head.push_str("content-type: application/grpc\r\ntrailer: grpc-status\r\n");
        }
        head
    }

    fn content(&self) -> Pattern {
        Pattern::new(self.order.id, self.service.peer.author())
    }

    async fn answer(&self, got: &Pattern, write: &mut WriteEnd) -> io::Result<bool> {
        let status = self.status();
        let mut head = self.answer_head(status, got.length());
        let has_body = self.has_body();
        // A server that goes away announces it, every now and then.
        let mut closes = self.order.id.is_multiple_of(61);
        let is_chunked = matches!(self.order.how, How::Chunks | How::Grpc);
        match self.order.how {
            _ if status == 204 => {}
            How::Chunks | How::Grpc => head.push_str("transfer-encoding: chunked\r\n"),
            How::Close => closes = true,
            _ => {
                let _into_memory = write!(head, "content-length: {}\r\n", self.order.length);
            }
        }
        if closes {
            head.push_str("connection: close\r\n");
        }
        head.push_str("\r\n");
        write.send(head.as_bytes()).await?;
        let length = if has_body { self.order.length } else { 0 };
        self.note(|seen| seen.length = Some(length));
        if has_body {
            self.put(&mut self.content(), length, is_chunked, write)
                .await?;
            if self.order.how == How::Grpc {
                let trailers = format!("0\r\ngrpc-status: {}\r\n\r\n", self.order.status);
                write.send(trailers.as_bytes()).await?;
            } else if is_chunked {
                write.send(b"0\r\n\r\n").await?;
            }
        }
        if closes {
            write.shutdown().await?;
        }
        Ok(!closes)
    }

    async fn put(
        &self,
        content: &mut Pattern,
        length: u64,
        is_chunked: bool,
        write: &mut WriteEnd,
    ) -> io::Result<()> {
        let mut left = length;
        while left > 0 {
            let piece = content.next(left.min(PIECE) as usize);
            left -= piece.len() as u64;
            if self.lie == Some(Lie::SlowBody) {
                sleep(Duration::from_millis(30)).await;
            }
            match is_chunked {
                true => write.send(&chunk(&piece)).await?,
                false => write.send(&piece).await?,
            }
            self.note(|seen| seen.sent += piece.len() as u64);
        }
        Ok(())
    }

    async fn echo(
        &self,
        body: &mut Body,
        content: &mut Pattern,
        reader: &mut Reader,
        write: &mut WriteEnd,
    ) -> io::Result<bool> {
        if let Some(lie @ (Lie::Silence | Lie::Reset | Lie::Close | Lie::Garbage)) = self.lie {
            return self
                .deceive(lie, content, reader, write)
                .await
                .map(|()| false);
        }
        // Another lie than these is none here.
        self.note(|seen| seen.lie = None);
        self.service.think().await;
        let mut head = self.answer_head(200, 0);
        head.push_str("transfer-encoding: chunked\r\n\r\n");
        write.send(head.as_bytes()).await?;
        while let Some(piece) = self.next(body, reader).await? {
            self.read(content, &piece);
            write.send(&chunk(&piece)).await?;
        }
        self.note(|seen| {
            seen.whole = Some(content.length());
            seen.length = Some(content.length());
        });
        let end = match self.head.field("te") {
            Some(_) => format!("0\r\ngrpc-status: {}\r\n\r\n", self.order.status),
            None => "0\r\n\r\n".into(),
        };
        write.send(end.as_bytes()).await?;
        Ok(true)
    }

    async fn tunnel(&self, reader: &mut Reader, write: &mut WriteEnd) -> io::Result<()> {
        self.note(|seen| {
            seen.whole = Some(0);
            seen.length = Some(0);
        });
        self.service.think().await;
        match self.lie {
            Some(Lie::Fails) => {
                let mut head = self.answer_head(self.status(), 0);
                head.push_str("content-length: 0\r\nconnection: close\r\n\r\n");
                write.send(head.as_bytes()).await?;
                return write.shutdown().await;
            }
            Some(lie @ (Lie::Silence | Lie::Reset | Lie::Close | Lie::Garbage)) => {
                let nothing = Pattern::new(0, Author::Client);
                return self.deceive(lie, &nothing, reader, write).await;
            }
            _ => self.note(|seen| seen.lie = None),
        }
        let mut head = self.answer_head(101, 0);
        let key = self.head.field("sec-websocket-key").unwrap_or_default();
        let accept = accept(key);
        let _into_memory = write!(
            head,
            "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: {accept}\r\n\r\n"
        );
        write.send(head.as_bytes()).await?;
        let mut some = vec![0; PIECE as usize];
        loop {
            match reader.read(&mut some).await? {
                0 => return write.shutdown().await,
                read => write.send(&some[..read]).await?,
            }
        }
    }

    /// The whole answer, while the request is still on its way.
    async fn answer_early(&self, reader: &mut Reader, write: &mut WriteEnd) -> io::Result<()> {
        self.note(|seen| seen.length = Some(0));
        let mut head = self.answer_head(413, 0);
        head.push_str("content-length: 0\r\nconnection: close\r\n\r\n");
        write.send(head.as_bytes()).await?;
        write.shutdown().await?;
        // So that a reset does not overtake it.
        let mut waste = vec![0; 64 << 10];
        let drained = async { while let Ok(1..) = reader.read(&mut waste).await {} };
        let _or_not = timeout(Duration::from_secs(2), drained).await;
        Ok(())
    }

    async fn deceive(
        &self,
        lie: Lie,
        got: &Pattern,
        reader: &mut Reader,
        write: &mut WriteEnd,
    ) -> io::Result<()> {
        let length = self.order.length.max(16);
        let half = length / 2;
        let head = |length: &str| {
            format!(
                "{}{length}\r\n",
                self.answer_head(self.status(), got.length())
            )
        };
        let content = &mut self.content();
        match lie {
            Lie::Silence => return until_closed(reader).await,
            Lie::DripHead => {
                let slow = head(&format!(
                    "content-length: 0\r\nx-long: {}\r\n",
                    "x".repeat(600)
                ));
                for byte in slow.bytes() {
                    write.send(&[byte]).await?;
                    sleep(Duration::from_millis(20)).await;
                }
            }
            Lie::Reset => return write.resets(),
            Lie::Close => {}
            Lie::Garbage => write.send(b"SSH-2.0-OpenSSH_9.2p1\r\n\r\n").await?,
            Lie::TwoLengths => {
                let both = head("content-length: 3\r\ncontent-length: 4\r\n");
                write.send(format!("{both}abcd").as_bytes()).await?;
            }
            Lie::LengthAndChunks => {
                let both = head("content-length: 3\r\ntransfer-encoding: chunked\r\n");
                write
                    .send(format!("{both}3\r\nabc\r\n0\r\n\r\n").as_bytes())
                    .await?;
            }
            Lie::Flood => {
                let hint = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n".repeat(2000);
                let end = head("content-length: 0\r\n");
                write.send(format!("{hint}{end}").as_bytes()).await?;
            }
            Lie::Unasked101 => {
                self.note(|seen| seen.status = Some(101));
                let switch = "HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n";
                write.send(switch.as_bytes()).await?;
            }
            Lie::Short => {
                let head = head(&format!("content-length: {length}\r\n"));
                write.send(head.as_bytes()).await?;
                self.put(content, half, false, write).await?;
            }
            Lie::BadChunk => {
                write
                    .send(head("transfer-encoding: chunked\r\n").as_bytes())
                    .await?;
                self.put(content, half, true, write).await?;
                write.send(b"zz\r\n").await?;
            }
            Lie::CutBody | Lie::HalfBody => {
                write
                    .send(head("transfer-encoding: chunked\r\n").as_bytes())
                    .await?;
                self.put(content, half, true, write).await?;
                if lie == Lie::HalfBody {
                    let _closed_before = timeout(HALFWAY, until_closed(reader)).await;
                }
                return write.resets();
            }
            Lie::NoGoodbye => {
                write.send(head("connection: close\r\n").as_bytes()).await?;
                return self.put(content, half, false, write).await;
            }
            Lie::Extra => {
                self.note(|seen| seen.length = Some(length));
                let mut all = head(&format!("content-length: {length}\r\n")).into_bytes();
                all.extend(content.next(length as usize));
                // At once: what comes when the next request has been sent already looks like its answer, to anybody.
                let other = "HTTP/1.1 200 OK\r\nx-from: nobody\r\ncontent-length: 3\r\n\r\nboo";
                all.extend(other.bytes());
                write.send(&all).await?;
                return until_closed(reader).await;
            }
            Lie::Refuse | Lie::Early | Lie::SlowBody | Lie::Fails => {}
        }
        write.shutdown().await
    }
}

/// Whether it shows by a body only, and is the truth where there is none.
fn is_of_body(lie: Lie) -> bool {
    matches!(
        lie,
        Lie::Short | Lie::BadChunk | Lie::CutBody | Lie::HalfBody | Lie::NoGoodbye | Lie::Extra
    )
}

async fn until_closed(reader: &mut Reader) -> io::Result<()> {
    let mut waste = vec![0; 4096];
    while let 1.. = reader.read(&mut waste).await? {}
    Ok(())
}

/// RFC 6455 section 4.2.2.
pub fn accept(key: &str) -> String {
    let text = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(digest::digest(
        &digest::SHA1_FOR_LEGACY_USE_ONLY,
        text.as_bytes(),
    ))
}
