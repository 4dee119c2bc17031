//! HTTP/1.1 as both ends of the soak read it: to the letter, and without a panic, since what comes may be a lie.

use std::io;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};

use super::stream::ReadEnd;

pub type Reader = BufReader<ReadEnd>;

/// More than any head here has.
const MOST: usize = 512 << 10;

/// The head of a message.
#[derive(Debug, Clone, Default)]
pub struct Head {
    pub start: String,
    fields: Vec<(String, String)>,
}

impl Head {
    /// The next one; `None` where the connection ends before a byte of it.
    pub async fn read(reader: &mut Reader) -> io::Result<Option<Head>> {
        let mut text = Vec::new();
        while !text.ends_with(b"\r\n\r\n") {
            if reader.read_until(b'\n', &mut text).await? == 0 {
                return match text.is_empty() {
                    true => Ok(None),
                    false => Err(io::ErrorKind::UnexpectedEof.into()),
                };
            }
            if text.len() > MOST {
                return Err(bad("a head without end"));
            }
        }
        let text = String::from_utf8(text).map_err(|_| bad("a head that is no UTF-8"))?;
        let mut lines = text.split("\r\n");
        let start = lines.next().unwrap_or_default().to_owned();
        let fields = lines.filter(|line| !line.is_empty()).map(|line| {
            let (name, value) = line.split_once(':').ok_or_else(|| bad(line))?;
            Ok((name.to_owned(), value.trim().to_owned()))
        });
        let fields = fields.collect::<io::Result<_>>()?;
        Ok(Some(Head { start, fields }))
    }

    /// The first value of a field.
    pub fn field(&self, name: &str) -> Option<&str> {
        let is_meant = |(said, _): &&(String, String)| said.eq_ignore_ascii_case(name);
        self.fields
            .iter()
            .find(is_meant)
            .map(|(_, value)| value.as_str())
    }

    /// A word of the start line.
    pub fn word(&self, n: usize) -> &str {
        self.start.split(' ').nth(n).unwrap_or_default()
    }

    /// Of a response.
    pub fn status(&self) -> io::Result<u16> {
        let is_http = self.start.starts_with("HTTP/1.");
        let status = self.word(1).parse().ok().filter(|_| is_http);
        status.ok_or_else(|| bad(&self.start))
    }

    /// Whether the connection ends behind this message.
    pub fn closes(&self) -> bool {
        let says = self.field("connection");
        says.is_some_and(|says| says.eq_ignore_ascii_case("close"))
    }

    pub fn framing(&self, otherwise: Framing) -> io::Result<Framing> {
        match (
            self.field("transfer-encoding"),
            self.field("content-length"),
        ) {
            (Some(coding), None) if coding.eq_ignore_ascii_case("chunked") => Ok(Framing::Chunked),
            (None, Some(length)) => length
                .parse()
                .map(Framing::Length)
                .map_err(|_| bad("a length that is no number")),
            (None, None) => Ok(otherwise),
            _ => Err(bad("it is not clear where the message ends")),
        }
    }
}

/// How a body is delimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    Length(u64),
    Chunked,
    Close,
}

/// A body on its way in.
#[derive(Debug)]
pub struct Body {
    framing: Framing,
    /// Of the body, or of the chunk.
    left: u64,
    in_chunk: bool,
    /// Behind it.
    pub trailers: Vec<(String, String)>,
    is_over: bool,
}

impl Body {
    pub fn new(framing: Framing) -> Body {
        let left = match framing {
            Framing::Length(length) => length,
            Framing::Chunked | Framing::Close => 0,
        };
        Body {
            framing,
            left,
            in_chunk: false,
            trailers: Vec::new(),
            is_over: framing == Framing::Length(0),
        }
    }

    /// The next piece, of `most` bytes at most; `None` at its end.
    pub async fn next(&mut self, reader: &mut Reader, most: usize) -> io::Result<Option<Vec<u8>>> {
        if self.is_over {
            return Ok(None);
        }
        let room = match self.framing {
            Framing::Close => most,
            Framing::Length(_) => self.left.min(most as u64) as usize,
            Framing::Chunked => {
                if !self.in_chunk && !self.begin_chunk(reader).await? {
                    return Ok(None);
                }
                self.left.min(most as u64) as usize
            }
        };
        let mut piece = vec![0; room];
        let read = reader.read(&mut piece).await?;
        piece.truncate(read);
        if read == 0 {
            self.is_over = true;
            return match self.framing {
                Framing::Close => Ok(None),
                _ => Err(io::ErrorKind::UnexpectedEof.into()),
            };
        }
        if self.framing != Framing::Close {
            self.left -= read as u64;
            self.is_over = self.left == 0 && self.framing != Framing::Chunked;
            if self.left == 0 && self.framing == Framing::Chunked {
                self.in_chunk = false;
                expect_line(reader, "").await?;
            }
        }
        Ok(Some(piece))
    }

    /// Whether there is another one; if not, the trailers have been read.
    async fn begin_chunk(&mut self, reader: &mut Reader) -> io::Result<bool> {
        let line = line(reader).await?;
        self.left = u64::from_str_radix(&line, 16).map_err(|_| bad("no chunk size"))?;
        self.in_chunk = self.left > 0;
        if self.in_chunk {
            return Ok(true);
        }
        loop {
            let line = self::line(reader).await?;
            if line.is_empty() {
                self.is_over = true;
                return Ok(false);
            }
            let (name, value) = line.split_once(':').ok_or_else(|| bad("no trailer"))?;
            self.trailers
                .push((name.to_owned(), value.trim().to_owned()));
        }
    }
}

async fn expect_line(reader: &mut Reader, expected: &str) -> io::Result<()> {
    match line(reader).await? == expected {
        true => Ok(()),
        false => Err(bad("a chunk is longer than it says")),
    }
}

async fn line(reader: &mut Reader) -> io::Result<String> {
    let mut line = String::new();
    reader.take(MOST as u64).read_line(&mut line).await?;
    match line.strip_suffix("\r\n") {
        Some(line) => Ok(line.to_owned()),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

pub fn bad(what: &str) -> io::Error {
    let what: String = what.chars().take(80).collect();
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// A chunk.
pub fn chunk(bytes: &[u8]) -> Vec<u8> {
    let mut chunk = format!("{:x}\r\n", bytes.len()).into_bytes();
    chunk.extend_from_slice(bytes);
    chunk.extend_from_slice(b"\r\n");
    chunk
}
