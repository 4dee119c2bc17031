//! Clients by HTTP/1.

use std::{
    fmt::Write,
    io,
    pin::pin,
    rc::Rc,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpSocket, TcpStream},
    time::sleep,
};

use super::{
    super::{
        books::{End, Sort},
        pattern::{Author, Pattern},
        service::{How, accept},
        stream::{Stream, WriteEnd},
        wire::{Body, Framing, Head, Reader, chunk},
    },
    Content, Got, Request, Visitor, content, wrong,
};

/// How long a connection is kept: less than the router would.
const KEPT: Duration = Duration::from_secs(3);
const PIECE: u64 = 16 << 10;

/// A connection to the router.
pub struct Connection {
    pub reader: Reader,
    pub write: WriteEnd,
    /// When it was last used, if it was.
    used: Option<Instant>,
}

impl Connection {
    pub async fn open(visitor: &Visitor) -> io::Result<Connection> {
        let stream = TcpStream::connect(visitor.address).await?;
        Ok(Connection::over(visitor.over(stream).await?))
    }

    /// One whose client takes little before it reads.
    pub async fn narrow(visitor: &Visitor) -> io::Result<Connection> {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(8 << 10)?;
        let stream = socket.connect(visitor.address).await?;
        Ok(Connection::over(visitor.over(stream).await?))
    }

    fn over(stream: Stream) -> Connection {
        let (read, write) = stream.split();
        Connection {
            reader: BufReader::new(read),
            write,
            used: None,
        }
    }

    /// Ends it, by a reset if it is to be `hard`.
    pub fn end(self, hard: bool) {
        if hard {
            let _closed_already = self.write.resets();
        }
    }
}

/// How a request is sent, beside what it says.
#[derive(Debug, Clone, Copy, Default)]
pub struct Manner {
    is_chunked: bool,
    expects: bool,
    /// The connection is to end.
    closes: bool,
    is_old: bool,
    /// How long it rests between two pieces that it reads.
    slowly: Option<Duration>,
}

impl Visitor {
    pub async fn by_http1(self: Rc<Self>, pause: Duration) {
        let mut kept: Option<Connection> = None;
        while self.rest(pause).await {
            let is_old = |connection: &Connection| {
                let used = connection.used;
                used.is_some_and(|used| used.elapsed() > KEPT)
            };
            kept = kept.filter(|connection| !is_old(connection));
            match self.percent() {
                0..74 => kept = self.one(kept.take()).await,
                74..82 => kept = self.pipeline(kept.take()).await,
                82..86 => self.tunnel().await,
                percent => self.be_rude(percent).await,
            }
        }
    }

    /// One request; the connection, if it goes on.
    async fn one(&self, kept: Option<Connection>) -> Option<Connection> {
        let request = self.usual(Sort::Http1);
        let manner = Manner {
            is_chunked: self.percent() < 40,
            expects: request.sends > 0 && self.percent() < 15,
            closes: self.percent() < 8,
            is_old: self.percent() < 3,
            slowly: (self.percent() < 3).then_some(Duration::from_millis(2)),
        };
        let mut connection = match kept {
            Some(connection) => connection,
            None => match Connection::open(self).await {
                Ok(connection) => connection,
                Err(error) => {
                    self.end(request.id, self.not_sent(&error));
                    return None;
                }
            },
        };
        let mut goes_on = false;
        self.patiently(request.id, async {
            let is_used = connection.used.is_some();
            let (got, may_follow) = self.exchange(&mut connection, &request, manner).await;
            goes_on = may_follow;
            got.end(is_used)
        })
        .await;
        connection.used = Some(Instant::now());
        goes_on.then_some(connection)
    }

    /// Sends a request and reads its answer; whether another one may follow.
    pub(super) async fn exchange(
        &self,
        connection: &mut Connection,
        request: &Request,
        manner: Manner,
    ) -> (Got, bool) {
        let Connection { reader, write, .. } = connection;
        let head = head(request, manner);
        if manner.expects && !manner.is_old {
            let _or_it_has_answered = write.send(head.as_bytes()).await;
            let first = Head::read(reader).await;
            let says_so = matches!(&first, Ok(Some(head)) if head.word(1) == "100");
            if !says_so {
                let got = self.read_on(reader, request, manner, first).await;
                return (got.0, false);
            }
        } else if write.send(head.as_bytes()).await.is_err() {
            // It may have answered all the same.
            return (self.read(reader, request, manner).await.0, false);
        }
        let mut sent = false;
        let (got, may_follow) = {
            let mut upload = pin!(upload(write, request, manner));
            let mut answer = pin!(self.read(reader, request, manner));
            loop {
                tokio::select! {
                    biased;
                    answered = &mut answer => break answered,
                    _ = &mut upload, if !sent => sent = true,
                }
            }
        };
        let ends = manner.closes || manner.is_old;
        (got, may_follow && sent && !ends)
    }

    pub(super) async fn read(
        &self,
        reader: &mut Reader,
        request: &Request,
        manner: Manner,
    ) -> (Got, bool) {
        let first = Head::read(reader).await;
        self.read_on(reader, request, manner, first).await
    }

    /// Reads an answer that begins with this head; whether another one may follow.
    async fn read_on(
        &self,
        reader: &mut Reader,
        request: &Request,
        manner: Manner,
        mut head: io::Result<Option<Head>>,
    ) -> (Got, bool) {
        let (head, status) = loop {
            let read = match head {
                Ok(Some(read)) => read,
                Ok(None) => return (Got::Nothing, false),
                Err(error) => return (wrong(&error).unwrap_or(Got::Nothing), false),
            };
            match read.status() {
                Ok(100 | 102..=199) => head = Head::read(reader).await,
                Ok(status) => break (read, status),
                Err(error) => return (Got::Wrong(error.to_string()), false),
            }
        };
        self.keep(head.field("set-cookie"));
        let mut content = match content(request.id, &head) {
            Ok(content) => content,
            Err(why) => return (Got::Wrong(why), false),
        };
        let framing = match (request.method, status) {
            ("HEAD", _) | (_, 204 | 304) => Ok(Framing::Length(0)),
            _ => head.framing(Framing::Close),
        };
        let framing = match framing {
            Ok(framing) => framing,
            Err(error) => return (Got::Wrong(error.to_string()), false),
        };
        let most = if manner.slowly.is_some() {
            4 << 10
        } else {
            64 << 10
        };
        let mut body = Body::new(framing);
        loop {
            match body.next(reader, most).await {
                Ok(Some(piece)) => content.read(&piece),
                Ok(None) => break,
                Err(error) => {
                    return (
                        wrong(&error).unwrap_or_else(|| content.cut(status, error)),
                        false,
                    );
                }
            }
            if let Some(rest) = manner.slowly {
                sleep(rest).await;
            }
        }
        let may_follow = !head.closes() && framing != Framing::Close;
        (content.ended(status), may_follow)
    }

    /// Several requests at once; the connection, if it goes on.
    async fn pipeline(&self, kept: Option<Connection>) -> Option<Connection> {
        let count = self.draw(|random| random.usize(2..7));
        let mut all = Vec::new();
        let mut requests = Vec::new();
        for _ in 0..count {
            let (method, sends) = match self.percent() {
                0..60 => ("GET", 0),
                60..70 => ("HEAD", 0),
                _ => ("POST", self.draw(|random| random.u64(1..2000))),
            };
            let how = if self.percent() < 50 {
                How::Length
            } else {
                How::Chunks
            };
            let length = self.draw(|random| random.u64(..3000));
            let request = self.request(Sort::Http1, method, (200, length, how), sends);
            let manner = Manner {
                is_chunked: self.percent() < 50,
                ..Manner::default()
            };
            all.extend_from_slice(head(&request, manner).as_bytes());
            let mut body = Pattern::new(request.id, Author::Client);
            let body = body.next(sends as usize);
            match manner.is_chunked && sends > 0 {
                true => {
                    all.extend_from_slice(&chunk(&body));
                    all.extend_from_slice(b"0\r\n\r\n");
                }
                false => all.extend_from_slice(&body),
            }
            requests.push(request);
        }
        let connection = match kept {
            Some(connection) => Ok(connection),
            None => Connection::open(self).await,
        };
        let mut connection = match connection {
            Ok(connection) => connection,
            Err(error) => {
                for request in requests {
                    self.end(request.id, self.not_sent(&error));
                }
                return None;
            }
        };
        let is_used = connection.used.is_some();
        let _or_it_has_closed = connection.write.send(&all).await;
        let mut goes_on = true;
        for (place, request) in requests.into_iter().enumerate() {
            if !goes_on {
                let behind = End::NoAnswer {
                    may_be_untaken: true,
                };
                self.end(request.id, behind);
                continue;
            }
            let reader = &mut connection.reader;
            self.patiently(request.id, async {
                let read = self.read(reader, &request, Manner::default()).await;
                goes_on = read.1;
                read.0.end(is_used || place > 0)
            })
            .await;
        }
        connection.used = Some(Instant::now());
        goes_on.then_some(connection)
    }

    /// A WebSocket, as far as a proxy sees it: a switch of protocols, and bytes both ways.
    async fn tunnel(&self) {
        let mut request = self.request(Sort::Tunnel, "GET", (101, 0, How::Tunnel), 0);
        let key = "dGhlIHNhbXBsZSBub25jZQ==";
        for (name, value) in [
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", key),
        ] {
            request.fields.push((name, value.into()));
        }
        let mut connection = match Connection::open(self).await {
            Ok(connection) => connection,
            Err(error) => return self.end(request.id, self.not_sent(&error)),
        };
        let length = self.draw(|random| random.u64(..200 << 10));
        let rests = self.draw(|random| Duration::from_millis(random.u64(..40)));
        let leaves = self.percent() < 15;
        self.patiently(request.id, async {
            let head = head(&request, Manner::default());
            let _or_it_has_answered = connection.write.send(head.as_bytes()).await;
            let first = Head::read(&mut connection.reader).await;
            let switches = matches!(&first, Ok(Some(head)) if head.word(1) == "101");
            let Ok(Some(head)) = first
                .as_ref()
                .map(Option::as_ref)
                .map(|head| head.filter(|_| switches))
            else {
                let reader = &mut connection.reader;
                let got = self
                    .read_on(reader, &request, Manner::default(), first)
                    .await;
                return got.0.end(false);
            };
            if head.field("sec-websocket-accept") != Some(&accept(key)) {
                return End::Wrong("the switch is not the answer to this key".into());
            }
            let content = match content(request.id, head) {
                Ok(content) => content.echoes(),
                Err(why) => return End::Wrong(why),
            };
            let got = echo(&mut connection, content, length, rests, leaves).await;
            got.map_or(End::Left, |got| got.end(false))
        })
        .await;
        connection.end(leaves && self.percent() < 50);
    }
}

/// Sends and has it sent back; `None` if it leaves in the middle.
async fn echo(
    connection: &mut Connection,
    mut content: Content,
    length: u64,
    rests: Duration,
    leaves: bool,
) -> Option<Got> {
    const SWITCHED: u16 = 101;
    let mut said = Pattern::new(content.id, Author::Client);
    while said.length() < length {
        let piece = said.next((length - said.length()).min(PIECE) as usize);
        if leaves && said.length() * 2 > length {
            return None;
        }
        if let Err(error) = connection.write.send(&piece).await {
            return Some(content.cut(SWITCHED, error));
        }
        let mut back = vec![0; piece.len()];
        match connection.reader.read_exact(&mut back).await {
            Ok(_) => content.read(&back),
            Err(error) => return Some(content.cut(SWITCHED, error)),
        }
        sleep(rests).await;
    }
    let _gone = connection.write.shutdown().await;
    let mut rest = Vec::new();
    let ended = connection.reader.read_to_end(&mut rest).await;
    content.read(&rest);
    if let Err(error) = ended {
        return Some(content.cut(SWITCHED, error));
    }
    if content.length < length {
        return Some(content.cut(SWITCHED, "it ended"));
    }
    Some(match content.ended(SWITCHED) {
        // Its bytes are no body.
        Got::Whole { status, by, .. } => Got::Whole {
            status,
            length: 0,
            by,
        },
        other => other,
    })
}

/// The head of a request.
pub fn head(request: &Request, manner: Manner) -> String {
    let Request {
        method,
        path,
        fields,
        sends,
        ..
    } = request;
    let version = if manner.is_old { "1.0" } else { "1.1" };
    let mut head = format!("{method} {path} HTTP/{version}\r\nhost: soak.example\r\n");
    for (name, value) in fields {
        let _into_memory = write!(head, "{name}: {value}\r\n");
    }
    let has_body = *sends > 0;
    match manner.is_chunked && !manner.is_old {
        true if has_body => head.push_str("transfer-encoding: chunked\r\n"),
        false if has_body => {
            let _into_memory = write!(head, "content-length: {sends}\r\n");
        }
        _ => {}
    }
    if manner.expects && !manner.is_old {
        head.push_str("expect: 100-continue\r\n");
    }
    if manner.closes {
        head.push_str("connection: close\r\n");
    }
    head.push_str("\r\n");
    head
}

async fn upload(write: &mut WriteEnd, request: &Request, manner: Manner) -> io::Result<()> {
    let mut content = Pattern::new(request.id, Author::Client);
    let is_chunked = manner.is_chunked && !manner.is_old && request.sends > 0;
    while content.length() < request.sends {
        let left = request.sends - content.length();
        let piece = content.next(left.min(PIECE) as usize);
        match is_chunked {
            true => write.send(&chunk(&piece)).await?,
            false => write.send(&piece).await?,
        }
    }
    if is_chunked {
        write.send(b"0\r\n\r\n").await?;
    }
    Ok(())
}
