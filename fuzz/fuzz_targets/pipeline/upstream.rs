//! The upstreams: they take nothing but proper requests, note whose they are, and answer as the input says.

use std::{io, net::IpAddr, rc::Rc, time::Duration};

use http::Method;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    task::spawn_local,
};

use super::{
    ours::{self, Arriving, End, NoResponse},
    reference,
    script::{Answer, Then, When},
    strict::{self, Kind, Message, Not},
    world::World,
};

/// Between two pieces of what is sent.
const PAUSE: Duration = Duration::from_millis(1);

/// Which upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Main,
    Canary,
    Sidecar,
}

/// A request that an upstream got of the client of an input.
#[derive(Debug)]
pub struct Seen {
    pub by: Source,
    pub request: Message,
}

trait Stream: AsyncRead + AsyncWrite + Unpin + 'static {
    fn reset(&self);
}

impl Stream for TcpStream {
    fn reset(&self) {
        let _gone = self.set_zero_linger();
    }
}

impl Stream for UnixStream {
    /// What was sent to it and not read does that.
    fn reset(&self) {}
}

pub fn serve_tcp(world: Rc<World>, source: Source, listener: TcpListener) {
    spawn_local(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("there are descriptors");
            let _best_effort = stream.set_nodelay(true);
            spawn_local(serve(Rc::clone(&world), source, stream));
        }
    });
}

pub fn serve_unix(world: Rc<World>, source: Source, listener: UnixListener) {
    spawn_local(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("there are descriptors");
            spawn_local(serve(Rc::clone(&world), source, stream));
        }
    });
}

async fn serve<S: Stream>(world: Rc<World>, source: Source, stream: S) {
    let mut upstream = Upstream {
        world,
        source,
        stream,
        buffer: Vec::new(),
        is_new: true,
    };
    while upstream.answer_one().await.is_some() {}
}

struct Upstream<S> {
    world: Rc<World>,
    source: Source,
    stream: S,
    buffer: Vec<u8>,
    is_new: bool,
}

impl<S: Stream> Upstream<S> {
    /// `None` where the connection is over.
    async fn answer_one(&mut self) -> Option<()> {
        let mut said = None;
        // On one that is kept it could be taken for the answer to whoever asks next.
        if std::mem::take(&mut self.is_new)
            && let Some(early) = self.early()
        {
            said = Some(early.clone());
            self.say(&early).await?;
        }
        let head = self.read_head().await?;
        let client = client_of(&head);
        let answer = match said.is_some() {
            true => None,
            false => Some(self.answer_to(client, &head)),
        };
        if let Some(answer) = &answer
            && answer.when == When::Head
        {
            self.say(answer).await?;
        }
        let request = self.read_whole().await?;
        let method = request
            .start
            .split(|byte| *byte == b' ')
            .next()
            .and_then(|name| Method::from_bytes(name).ok())?;
        let is_the_clients = self.world.with_script(|script| script.client) == Some(client);
        if is_the_clients {
            self.world.saw(Seen {
                by: self.source,
                request,
            });
        }
        if let Some(answer) = &answer
            && answer.when != When::Head
        {
            self.say(answer).await?;
        }
        let answer = answer.or(said)?;
        self.end(&answer, &method).await
    }

    fn early(&self) -> Option<Answer> {
        let early = self.world.with_script(|script| {
            let is_early = script.answers.front().is_some_and(Answer::is_early);
            is_early.then(|| script.answers.pop_front()).flatten()
        });
        early.flatten()
    }

    fn answer_to(&self, client: IpAddr, head: &Message) -> Answer {
        if let Some(secret) = self.world.secret_of(client) {
            assert_eq!(
                head.all("x-secret"),
                [secret.as_bytes()],
                "another client's request is another one"
            );
            return Answer::usual(secret.as_bytes());
        }
        let scripted = self
            .world
            .with_script(|script| match script.client == client {
                true => script.answers.pop_front(),
                false => None,
            });
        scripted
            .flatten()
            .unwrap_or_else(|| Answer::usual(head.target()))
    }

    async fn say(&mut self, answer: &Answer) -> Option<()> {
        let _until_it_is_said = self.world.saying();
        in_pieces(&mut self.stream, &answer.pieces).await.ok()
    }

    /// What there is of a request when its head is there.
    async fn read_head(&mut self) -> Option<Message> {
        loop {
            let end = self.buffer.windows(4).position(|end| end == b"\r\n\r\n");
            if let Some(end) = end {
                // Without what announces a body.
                let head: Vec<&[u8]> = self.buffer[..end]
                    .split(|byte| *byte == b'\n')
                    .map(|line| line.strip_suffix(b"\r").unwrap_or(line))
                    .filter(|line| {
                        !line.starts_with(b"content-length:")
                            && !line.starts_with(b"transfer-encoding:")
                    })
                    .collect();
                let head = [&head.join(&b"\r\n"[..])[..], b"\r\n\r\n"].concat();
                return match strict::read(&head, Kind::Request) {
                    Ok((head, _)) => Some(head),
                    Err(why) => panic!("{why:?}: {}", self.buffer.escape_ascii()),
                };
            }
            self.read_more().await?;
        }
    }

    async fn read_whole(&mut self) -> Option<Message> {
        loop {
            match strict::read(&self.buffer, Kind::Request) {
                Ok((request, length)) => {
                    is_one_to_hyper(&request, &self.buffer[..length]);
                    self.buffer.drain(..length);
                    return Some(request);
                }
                Err(Not::Yet) => self.read_more().await?,
                Err(why) => panic!("{why:?}: {}", self.buffer.escape_ascii()),
            }
        }
    }

    async fn read_more(&mut self) -> Option<()> {
        let read = self.stream.read_buf(&mut self.buffer).await;
        read.ok().filter(|read| *read > 0).map(drop)
    }

    /// Goes on, or ends the connection.
    async fn end(&mut self, answer: &Answer, method: &Method) -> Option<()> {
        let bytes = answer.bytes();
        let read = ours::response(method, Arriving::new(&bytes, &[]));
        let only_its_end_ends_it = match &read {
            Err(why) => *why == NoResponse::Cut,
            Ok(response) => response.until_close || response.content.end == End::Cut,
        };
        match answer.then {
            Then::Reset => {
                self.stream.reset();
                None
            }
            Then::Close => None,
            Then::Next if only_its_end_ends_it => None,
            Then::Next => {
                let is_tunnel = read.is_ok_and(|response| response.status == 101);
                if is_tunnel {
                    self.tunnel().await;
                    return None;
                }
                Some(())
            }
        }
    }

    /// Says everything back until the other side ends.
    async fn tunnel(&mut self) {
        let mut buffer = std::mem::take(&mut self.buffer);
        loop {
            if self.stream.write_all(&buffer).await.is_err() {
                return;
            }
            buffer.clear();
            if !matches!(self.stream.read_buf(&mut buffer).await, Ok(1..)) {
                return;
            }
        }
    }
}

/// With a pause between them, so that each comes by itself.
pub async fn in_pieces<S: AsyncWrite + Unpin>(
    stream: &mut S,
    pieces: &[impl AsRef<[u8]>],
) -> io::Result<()> {
    for (i, piece) in pieces.iter().enumerate() {
        if i > 0 {
            tokio::time::sleep(PAUSE).await;
        }
        stream.write_all(piece.as_ref()).await?;
    }
    Ok(())
}

/// Whose request it is: the router has put the address of its connection last.
fn client_of(head: &Message) -> IpAddr {
    let lines = head.all("x-forwarded-for");
    let [line] = lines[..] else {
        panic!("not one X-Forwarded-For: {head:?}");
    };
    let last = line.rsplit(|byte| *byte == b',').next().unwrap_or_default();
    let last = String::from_utf8_lossy(last.trim_ascii());
    last.parse()
        .unwrap_or_else(|_| panic!("no address is the last one: {head:?}"))
}

/// What is a request to us is the same to hyper.
fn is_one_to_hyper(request: &Message, bytes: &[u8]) {
    let read = reference::requests(Arriving::new(bytes, &[]));
    // hyper does not take all targets that browsers send.
    let odd = |byte: &u8| b"<>`|^\\\"{}".contains(byte) || *byte >= 0x80;
    match &read[..] {
        [] if request.target().iter().any(odd) => {}
        [only] => {
            assert_eq!(only.body, request.body, "{}", bytes.escape_ascii());
            assert_eq!(only.end, reference::End::Whole, "{}", bytes.escape_ascii());
        }
        other => panic!("hyper reads {other:?}: {}", bytes.escape_ascii()),
    }
}
