//! HTTP/1.1 as RFC 9112 writes it, with no tolerance at all: what we send must pass here.

use std::{
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};

use super::soon;

/// A message that is as it has to be.
#[derive(Clone, Default)]
pub struct Message {
    pub start: Vec<u8>,
    pub fields: Vec<(String, Vec<u8>)>,
    pub body: Vec<u8>,
    pub trailers: Vec<(String, Vec<u8>)>,
}

impl Message {
    pub fn target(&self) -> &[u8] {
        self.start.split(|byte| *byte == b' ').nth(1).unwrap()
    }

    pub fn status(&self) -> u16 {
        std::str::from_utf8(self.target()).unwrap().parse().unwrap()
    }

    /// All values of a field, in order; names are in lower case.
    pub fn all(&self, name: &str) -> Vec<&[u8]> {
        values(&self.fields, name)
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = &self.body[..self.body.len().min(100)];
        write!(f, "{} ({})", self.start.escape_ascii(), body.escape_ascii())?;
        for (name, value) in &self.trailers {
            write!(f, " {name}: {}", value.escape_ascii())?;
        }
        Ok(())
    }
}

fn values<'a>(fields: &'a [(String, Vec<u8>)], name: &str) -> Vec<&'a [u8]> {
    fields
        .iter()
        .filter(|(n, _)| n == name)
        .map(|(_, value)| &**value)
        .collect()
}

/// What is being read.
#[derive(Debug, Clone, Copy)]
pub enum Kind<'a> {
    Request,
    /// The response to a request with this method.
    Response(&'a str),
}

/// Why there is no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Not {
    Yet,
    Ever(&'static str),
}

/// Reads a message off the front of `bytes`, and says how long it is. A response without a length is
/// all that there is.
pub fn read(bytes: &[u8], kind: Kind) -> Result<(Message, usize), Not> {
    let mut rest = bytes;
    let mut message = Message {
        start: line(&mut rest)?.to_vec(),
        ..Message::default()
    };
    let bodiless = match kind {
        Kind::Request => {
            request_line(&message.start)?;
            false
        }
        Kind::Response(method) => {
            let status = status_line(&message.start)?;
            method == "HEAD" || matches!(status, b"204" | b"304") || status[0] == b'1'
        }
    };
    message.fields = fields(&mut rest)?;
    let coding = message.all("transfer-encoding");
    let length = message.all("content-length");
    match (kind, &coding[..], &length[..]) {
        (Kind::Request, _, _) if message.all("host").len() != 1 => {
            return Err(Not::Ever("not one Host"));
        }
        _ if bodiless => {}
        (_, [], [length]) => {
            let length = number(length, 10)?;
            message.body = take(&mut rest, length)?.to_vec();
        }
        (_, [b"chunked"], []) => {
            loop {
                let size = number(line(&mut rest)?, 16)?;
                if size == 0 {
                    break;
                }
                message.body.extend_from_slice(take(&mut rest, size)?);
                if take(&mut rest, 2)? != b"\r\n" {
                    return Err(Not::Ever("a chunk that does not end with its data"));
                }
            }
            message.trailers = fields(&mut rest)?;
        }
        (Kind::Request, [], []) => {}
        (Kind::Response(_), [], []) => message.body = std::mem::take(&mut rest).to_vec(),
        _ => return Err(Not::Ever("framed in more than one way, or in none")),
    }
    Ok((message, bytes.len() - rest.len()))
}

fn request_line(line: &[u8]) -> Result<(), Not> {
    let parts: Vec<_> = line.split(|byte| *byte == b' ').collect();
    match parts[..] {
        [method, target, b"HTTP/1.1"]
            if token(method)
                && !target.is_empty()
                && target
                    .iter()
                    .all(|byte| !matches!(byte, 0..=32 | 127 | b'#')) =>
        {
            Ok(())
        }
        _ => Err(Not::Ever("no request line")),
    }
}

fn status_line(line: &[u8]) -> Result<&[u8], Not> {
    // An HTTP/1.0 client may be answered in its own words.
    let rest = line
        .strip_prefix(b"HTTP/1.1 ")
        .or(line.strip_prefix(b"HTTP/1.0 "));
    match rest {
        Some(rest) if rest.len() > 3 && rest[3] == b' ' => match &rest[..3] {
            status if number(status, 10)? >= 100 && !rest.contains(&0) => Ok(status),
            _ => Err(Not::Ever("no status")),
        },
        _ => Err(Not::Ever("no status line")),
    }
}

fn fields(rest: &mut &[u8]) -> Result<Vec<(String, Vec<u8>)>, Not> {
    let mut fields = Vec::new();
    loop {
        let line = line(rest)?;
        if line.is_empty() {
            return Ok(fields);
        }
        let colon = line.iter().position(|byte| *byte == b':');
        match colon.map(|colon| (&line[..colon], &line[colon + 1..])) {
            Some((name, value)) if token(name) && !value.contains(&0) => fields.push((
                String::from_utf8_lossy(name).to_ascii_lowercase(),
                value.trim_ascii().to_vec(),
            )),
            _ => return Err(Not::Ever("no header field")),
        }
    }
}

/// A line up to its CRLF, which is not part of it.
fn line<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], Not> {
    let end = rest.iter().position(|byte| *byte == b'\n');
    let line = &rest[..end.ok_or(Not::Yet)?];
    *rest = &rest[line.len() + 1..];
    match line {
        [line @ .., b'\r'] if !line.contains(&b'\r') => Ok(line),
        _ => Err(Not::Ever("a bare CR or LF")),
    }
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8], Not> {
    let (taken, after) = rest.split_at_checked(length).ok_or(Not::Yet)?;
    *rest = after;
    Ok(taken)
}

fn token(name: &[u8]) -> bool {
    let special = b"!#$%&'*+-.^_`|~";
    let fits = |byte: &u8| byte.is_ascii_alphanumeric() || special.contains(byte);
    !name.is_empty() && name.iter().all(fits)
}

fn number(digits: &[u8], radix: u32) -> Result<usize, Not> {
    let digits = str::from_utf8(digits).unwrap_or_default();
    if !digits.chars().all(|digit| digit.is_digit(radix)) {
        return Err(Not::Ever("no number"));
    }
    usize::from_str_radix(digits, radix).map_err(|_| Not::Ever("no number"))
}

/// The responses in `bytes`; the first ones are to requests with these methods, all others to GET.
pub fn responses(bytes: &[u8], methods: &[&str]) -> Result<Vec<Message>, String> {
    let mut rest = bytes;
    let mut responses = Vec::new();
    while !rest.is_empty() {
        let method = methods.get(responses.len()).unwrap_or(&"GET");
        match read(rest, Kind::Response(method)) {
            Ok((response, length)) => {
                responses.push(response);
                rest = &rest[length..];
            }
            Err(not) => return Err(format!("{not:?}: {}", rest.escape_ascii())),
        }
    }
    Ok(responses)
}

/// Sends `bytes`, `piece` of them at a time, on a connection of its own, and reads until it ends;
/// both at once, and whatever becomes of the sending.
pub async fn exchange(address: SocketAddr, bytes: &[u8], piece: usize) -> Vec<u8> {
    let mut stream = soon(TcpStream::connect(address)).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut read, mut write) = stream.split();
    let sending = async {
        for piece in bytes.chunks(piece) {
            if write.write_all(piece).await.is_err() {
                break;
            }
        }
    };
    let mut answer = Vec::new();
    let ((), _reset) = soon(async { tokio::join!(sending, read.read_to_end(&mut answer)) }).await;
    answer
}

/// A service that accepts nothing but proper requests, and remembers them.
pub struct Strict {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Message>>>,
    heard: Arc<Mutex<Vec<u8>>>,
    wrong: Arc<Mutex<Vec<String>>>,
    server: JoinHandle<()>,
}

impl Strict {
    /// Answers every request with this status, and with its target as the body.
    pub async fn start(status: u16) -> Strict {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::new(Mutex::new(Vec::new()));
        let wrong = Arc::new(Mutex::new(Vec::new()));
        let server = {
            let (seen, heard, wrong) = (seen.clone(), heard.clone(), wrong.clone());
            tokio::spawn(async move {
                let mut clients = JoinSet::new();
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    let (seen, heard, wrong) = (seen.clone(), heard.clone(), wrong.clone());
                    clients.spawn(async move {
                        let _broken = serve(stream, status, &seen, &heard, &wrong).await;
                    });
                }
            })
        };
        Strict {
            address,
            seen,
            heard,
            wrong,
            server,
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The requests so far, each of them whole.
    pub fn seen(&self) -> Vec<Message> {
        self.seen.lock().unwrap().clone()
    }

    /// The requests since the last time.
    pub fn take(&self) -> Vec<Message> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }

    /// Every byte since the last time, whether it became a request or not.
    pub fn take_bytes(&self) -> Vec<u8> {
        std::mem::take(&mut self.heard.lock().unwrap())
    }

    /// What was no request since the last time, with why.
    pub fn take_wrong(&self) -> Vec<String> {
        std::mem::take(&mut self.wrong.lock().unwrap())
    }

    /// What was no request, with why.
    pub fn wrong(&self) -> Vec<String> {
        self.wrong.lock().unwrap().clone()
    }
}

impl Drop for Strict {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(
    mut stream: TcpStream,
    status: u16,
    seen: &Mutex<Vec<Message>>,
    heard: &Mutex<Vec<u8>>,
    wrong: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = Vec::new();
    loop {
        match read(&buffer, Kind::Request) {
            Ok((request, length)) => {
                buffer.drain(..length);
                let target = request.target().to_vec();
                let bodiless = request.start.starts_with(b"HEAD ") || status == 204;
                seen.lock().unwrap().push(request);
                let mut answer = format!("HTTP/1.1 {status} X\r\n").into_bytes();
                if status != 204 {
                    let length = format!("content-length: {}\r\n", target.len());
                    answer.extend_from_slice(length.as_bytes());
                }
                answer.extend_from_slice(b"\r\n");
                if !bodiless {
                    answer.extend_from_slice(&target);
                }
                stream.write_all(&answer).await?;
            }
            Err(Not::Yet) => {
                let before = buffer.len();
                if stream.read_buf(&mut buffer).await? == 0 {
                    return Ok(());
                }
                heard.lock().unwrap().extend_from_slice(&buffer[before..]);
            }
            Err(Not::Ever(why)) => {
                let bytes = &buffer[..buffer.len().min(2000)];
                let what = format!("{why}: {}", bytes.escape_ascii());
                wrong.lock().unwrap().push(what);
                return Ok(());
            }
        }
    }
}
