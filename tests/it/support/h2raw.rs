//! HTTP/2 frame by frame, for peers that do not do as they should: nothing here keeps a test from
//! writing what it likes.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

use super::{
    hpack::{self, Decoder, Field},
    soon,
};

/// What a client says first.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Types of frames.
pub mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const PRIORITY: u8 = 2;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PUSH_PROMISE: u8 = 5;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

/// Flags of frames.
pub mod flag {
    pub const END_STREAM: u8 = 0x1;
    pub const ACK: u8 = 0x1;
    pub const END_HEADERS: u8 = 0x4;
    pub const PADDED: u8 = 0x8;
    pub const PRIORITY: u8 = 0x20;
    /// A header block that is whole, and all there is.
    pub const ALL: u8 = END_STREAM | END_HEADERS;
}

/// Error codes.
pub mod code {
    pub const NO_ERROR: u32 = 0;
    pub const PROTOCOL_ERROR: u32 = 1;
    pub const INTERNAL_ERROR: u32 = 2;
    pub const FLOW_CONTROL_ERROR: u32 = 3;
    pub const STREAM_CLOSED: u32 = 5;
    pub const FRAME_SIZE_ERROR: u32 = 6;
    pub const REFUSED_STREAM: u32 = 7;
    pub const CANCEL: u32 = 8;
    pub const COMPRESSION_ERROR: u32 = 9;
}

/// Settings.
pub mod setting {
    pub const HEADER_TABLE_SIZE: u16 = 1;
    pub const ENABLE_PUSH: u16 = 2;
    pub const MAX_CONCURRENT_STREAMS: u16 = 3;
    pub const INITIAL_WINDOW_SIZE: u16 = 4;
    pub const MAX_FRAME_SIZE: u16 = 5;
    pub const MAX_HEADER_LIST_SIZE: u16 = 6;
    pub const ENABLE_CONNECT_PROTOCOL: u16 = 8;
}

/// A frame with any type, flags, stream and payload.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: impl AsRef<[u8]>) -> Vec<u8> {
    let payload = payload.as_ref();
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

pub fn data(stream: u32, flags: u8, bytes: impl AsRef<[u8]>) -> Vec<u8> {
    frame(kind::DATA, flags, stream, bytes)
}

/// HEADERS with this block.
pub fn headers(stream: u32, flags: u8, block: impl AsRef<[u8]>) -> Vec<u8> {
    frame(kind::HEADERS, flags, stream, block)
}

/// As many of HEADERS and CONTINUATION as the block needs; without END_HEADERS among `flags` the last one
/// has it all the same.
pub fn head(stream: u32, flags: u8, block: impl AsRef<[u8]>) -> Vec<u8> {
    let mut pieces = block.as_ref().chunks(16_384).peekable();
    let mut frames = Vec::new();
    let mut kind = kind::HEADERS;
    let mut flags = flags & !flag::END_HEADERS;
    while let Some(piece) = pieces.next() {
        if pieces.peek().is_none() {
            flags |= flag::END_HEADERS;
        }
        frames.extend(frame(kind, flags, stream, piece));
        (kind, flags) = (kind::CONTINUATION, 0);
    }
    frames
}

pub fn continuation(stream: u32, flags: u8, block: impl AsRef<[u8]>) -> Vec<u8> {
    frame(kind::CONTINUATION, flags, stream, block)
}

/// A dependency, and a weight from 0 to 255.
pub fn priority(stream: u32, depends_on: u32, weight: u8) -> Vec<u8> {
    let mut payload = depends_on.to_be_bytes().to_vec();
    payload.push(weight);
    frame(kind::PRIORITY, 0, stream, payload)
}

pub fn rst_stream(stream: u32, code: u32) -> Vec<u8> {
    frame(kind::RST_STREAM, 0, stream, code.to_be_bytes())
}

pub fn settings(settings: &[(u16, u32)]) -> Vec<u8> {
    let mut payload = Vec::new();
    for (id, value) in settings {
        payload.extend(id.to_be_bytes());
        payload.extend(value.to_be_bytes());
    }
    frame(kind::SETTINGS, 0, 0, payload)
}

pub fn settings_ack() -> Vec<u8> {
    frame(kind::SETTINGS, flag::ACK, 0, "")
}

pub fn ping(payload: &[u8; 8]) -> Vec<u8> {
    frame(kind::PING, 0, 0, payload)
}

pub fn goaway(last: u32, code: u32) -> Vec<u8> {
    frame(
        kind::GOAWAY,
        0,
        0,
        [last.to_be_bytes(), code.to_be_bytes()].concat(),
    )
}

pub fn window_update(stream: u32, by: u32) -> Vec<u8> {
    frame(kind::WINDOW_UPDATE, 0, stream, by.to_be_bytes())
}

/// The pseudo-header fields of a request to `client.example`, in plain.
pub fn pseudo<'a>(method: &'a str, path: &'a str) -> [(&'a str, &'a str); 4] {
    [
        (":method", method),
        (":scheme", "http"),
        (":path", path),
        (":authority", "client.example"),
    ]
}

/// A GET that is whole.
pub fn get(stream: u32, path: &str) -> Vec<u8> {
    headers(stream, flag::ALL, hpack::block(pseudo("GET", path)))
}

/// The head of a POST.
pub fn post(stream: u32, path: &str) -> Vec<u8> {
    let block = hpack::block(pseudo("POST", path));
    headers(stream, flag::END_HEADERS, block)
}

/// A frame as it came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The last of a stream: END_STREAM.
    pub fn ends_stream(&self) -> bool {
        matches!(self.kind, kind::DATA | kind::HEADERS) && self.has(flag::END_STREAM)
    }

    /// The code of a RST_STREAM or a GOAWAY.
    pub fn code(&self) -> Option<u32> {
        let at = match self.kind {
            kind::RST_STREAM => 0,
            kind::GOAWAY => 4,
            _ => return None,
        };
        self.number(at)
    }

    /// The last stream that a GOAWAY lets live.
    pub fn last_stream(&self) -> Option<u32> {
        (self.kind == kind::GOAWAY).then(|| self.number(0))?
    }

    fn number(&self, at: usize) -> Option<u32> {
        let bytes = self.payload.get(at..at + 4)?;
        Some(u32::from_be_bytes(bytes.try_into().expect("four of them")))
    }

    /// What is in a SETTINGS frame.
    pub fn settings(&self) -> Vec<(u16, u32)> {
        let of = |pair: &[u8]| {
            (
                u16::from_be_bytes([pair[0], pair[1]]),
                u32::from_be_bytes([pair[2], pair[3], pair[4], pair[5]]),
            )
        };
        self.payload.chunks_exact(6).map(of).collect()
    }
}

/// How a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// With END_STREAM.
    Whole,
    /// RST_STREAM.
    Reset(u32),
    /// A GOAWAY that leaves it out, or with an error.
    GoAway(u32),
    /// The connection ended.
    Closed,
}

/// What came on a stream.
#[derive(Debug, Clone)]
pub struct Answer {
    /// 0 if there was no final head.
    pub status: u16,
    pub fields: Vec<Field>,
    pub body: Vec<u8>,
    pub trailers: Vec<Field>,
    /// The statuses of informational heads.
    pub informational: Vec<u16>,
    pub end: End,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// All values of a field, in order.
pub fn values(fields: &[Field], name: &str) -> Vec<String> {
    fields
        .iter()
        .filter(|(n, _)| n == name.as_bytes())
        .map(|(_, value)| String::from_utf8_lossy(value).into_owned())
        .collect()
}

/// One connection, as the client or as the server.
pub struct Raw {
    pub reader: BufReader<OwnedReadHalf>,
    pub writer: OwnedWriteHalf,
    /// What the other side set.
    pub settings: Vec<(u16, u32)>,
    decoder: Decoder,
}

impl Raw {
    /// Nothing is said yet.
    pub async fn connect(address: SocketAddr) -> Raw {
        Raw::on(soon(TcpStream::connect(address)).await.unwrap())
    }

    pub fn on(stream: TcpStream) -> Raw {
        stream.set_nodelay(true).unwrap();
        let (reader, writer) = stream.into_split();
        Raw {
            reader: BufReader::new(reader),
            writer,
            settings: Vec::new(),
            decoder: Decoder::default(),
        }
    }

    /// A client whose settings are acknowledged, as are the server's.
    pub async fn client(address: SocketAddr) -> Raw {
        Raw::client_with(address, &[]).await
    }

    pub async fn client_with(address: SocketAddr, ours: &[(u16, u32)]) -> Raw {
        let mut raw = Raw::connect(address).await;
        raw.send([PREFACE, &settings(ours)].concat()).await;
        raw.shake_hands().await;
        raw
    }

    /// A server, from the preface on.
    pub async fn server(stream: TcpStream, ours: &[(u16, u32)]) -> Raw {
        let mut raw = Raw::on(stream);
        let mut preface = [0; PREFACE.len()];
        soon(raw.reader.read_exact(&mut preface)).await.unwrap();
        assert_eq!(
            preface.escape_ascii().to_string(),
            PREFACE.escape_ascii().to_string()
        );
        // A client need not wait for any of it: what else it says comes behind its settings.
        let frame = raw.next().await.expect("SETTINGS, not the end");
        assert_eq!((frame.kind, frame.has(flag::ACK)), (kind::SETTINGS, false));
        raw.settings.extend(frame.settings());
        raw.send([settings(ours), settings_ack()].concat()).await;
        raw
    }

    async fn shake_hands(&mut self) {
        let (mut theirs, mut acknowledged) = (false, false);
        while !(theirs && acknowledged) {
            let frame = self.next().await.expect("SETTINGS, not the end");
            match (frame.kind, frame.has(flag::ACK)) {
                (kind::SETTINGS, true) => acknowledged = true,
                (kind::SETTINGS, false) => {
                    theirs = true;
                    self.settings.extend(frame.settings());
                    self.send(settings_ack()).await;
                }
                (kind::WINDOW_UPDATE, _) => {}
                _ => panic!("{frame:?} in the handshake"),
            }
        }
    }

    /// What the other side set, or what holds when it did not.
    pub fn setting(&self, id: u16) -> Option<u32> {
        let mut of_this_id = self.settings.iter().filter(|(i, _)| *i == id);
        of_this_id.next_back().map(|(_, value)| *value)
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        assert!(self.sends(bytes).await, "the connection has ended");
    }

    /// The same, to someone who may have had enough; whether it was taken.
    pub async fn sends(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        soon(self.writer.write_all(bytes.as_ref())).await.is_ok()
    }

    /// The next frame, whatever it is; `None` at the end of the connection, proper or not.
    pub async fn next(&mut self) -> Option<Frame> {
        soon(read_frame(&mut self.reader)).await
    }

    /// The next frame, while settings are acknowledged and pings answered.
    pub async fn event(&mut self) -> Option<Frame> {
        loop {
            let frame = self.next().await?;
            match (frame.kind, frame.has(flag::ACK)) {
                (kind::SETTINGS, false) => {
                    self.settings.extend(frame.settings());
                    self.sends(settings_ack()).await;
                }
                (kind::PING, false) => {
                    let ack = super::h2raw::frame(kind::PING, flag::ACK, 0, &frame.payload);
                    self.sends(ack).await;
                }
                (kind::SETTINGS | kind::PING, true) => {}
                _ => return Some(frame),
            }
        }
    }

    /// Decodes the block that begins with this HEADERS frame, and reads what continues it.
    pub async fn fields(&mut self, mut head: Frame) -> Vec<Field> {
        assert!(
            !head.has(flag::PADDED) && !head.has(flag::PRIORITY),
            "{head:?}: neither is sent by anyone here"
        );
        while !head.has(flag::END_HEADERS) {
            let more = self.next().await.expect("CONTINUATION");
            assert_eq!((more.kind, more.stream), (kind::CONTINUATION, head.stream));
            head.payload.extend(more.payload);
            head.flags |= more.flags & flag::END_HEADERS;
        }
        let fields = self.decoder.decode(&head.payload);
        fields.unwrap_or_else(|why| panic!("{why}: {}", head.payload.escape_ascii()))
    }

    /// Everything on a stream until it ends. Windows are opened as they are used.
    pub async fn answer(&mut self, stream: u32) -> Answer {
        let mut answer = Answer {
            status: 0,
            fields: Vec::new(),
            body: Vec::new(),
            trailers: Vec::new(),
            informational: Vec::new(),
            end: End::Closed,
        };
        while let Some(frame) = self.event().await {
            let (ends, of_this) = (frame.ends_stream(), frame.stream == stream);
            match frame.kind {
                kind::HEADERS => {
                    let fields = self.fields(frame).await;
                    if !of_this {
                        continue;
                    }
                    match values(&fields, ":status").first() {
                        Some(status) if status.starts_with('1') => {
                            answer.informational.push(status.parse().unwrap());
                        }
                        Some(status) => {
                            answer.status = status.parse().unwrap();
                            answer.fields = fields;
                        }
                        None => answer.trailers = fields,
                    }
                }
                kind::DATA => {
                    if !frame.payload.is_empty() {
                        let length = frame.payload.len() as u32;
                        self.sends(window_update(0, length)).await;
                        if !ends {
                            self.sends(window_update(frame.stream, length)).await;
                        }
                    }
                    if of_this {
                        answer.body.extend(frame.payload);
                    }
                }
                kind::RST_STREAM if of_this => {
                    answer.end = End::Reset(frame.code().expect("four bytes"));
                    return answer;
                }
                kind::GOAWAY => {
                    let code = frame.code().expect("eight bytes");
                    if code != code::NO_ERROR || frame.last_stream() < Some(stream) {
                        answer.end = End::GoAway(code);
                        return answer;
                    }
                }
                _ => {}
            }
            if ends && of_this {
                answer.end = End::Whole;
                return answer;
            }
        }
        answer
    }

    /// Asks for `path` and waits for the answer.
    pub async fn get(&mut self, stream: u32, path: &str) -> Answer {
        if !self.sends(get(stream, path)).await {
            // Why is there to read, or it has ended.
            return self.answer(stream).await;
        }
        self.answer(stream).await
    }

    /// Waits for the end of the connection; the code of a GOAWAY before it.
    pub async fn ended(&mut self) -> Option<u32> {
        let mut code = None;
        while let Some(frame) = self.event().await {
            code = match frame.kind {
                kind::GOAWAY => frame.code(),
                _ => code,
            };
        }
        code
    }
}

/// A frame; `None` when there is no more.
pub async fn read_frame(reader: &mut (impl AsyncReadExt + Unpin)) -> Option<Frame> {
    let mut head = [0; 9];
    reader.read_exact(&mut head).await.ok()?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
    let mut payload = vec![0; length];
    reader.read_exact(&mut payload).await.ok()?;
    Some(Frame {
        kind: head[3],
        flags: head[4],
        stream: u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & (u32::MAX >> 1),
        payload,
    })
}
