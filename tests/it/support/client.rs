//! A client that writes and reads raw bytes.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncBufRead, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};

use super::{
    message::{Framing, Received, framing, read_body, read_head},
    soon,
};

/// One connection to the router.
pub struct Client(pub BufReader<TcpStream>);

/// A response as it came in.
#[derive(Debug, Clone)]
pub struct Response {
    pub status: u16,
    pub message: Received,
    /// Whether the body ended as its framing says; `false` if the connection ended before.
    pub complete: bool,
    /// The heads of the informational responses before it.
    pub informational: Vec<String>,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.message.header(name)
    }

    pub fn text(&self) -> String {
        self.message.text()
    }
}

impl Client {
    pub async fn connect(address: SocketAddr) -> Client {
        let stream = soon(TcpStream::connect(address)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Client(BufReader::new(stream))
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        soon(self.0.write_all(bytes.as_ref())).await.unwrap();
    }

    /// Reads the response to a request with `method`; `None` if the connection ended before one.
    pub async fn response(&mut self, method: &str) -> Option<Response> {
        read_response(&mut self.0, method).await
    }

    /// Sends a request and reads its response.
    pub async fn roundtrip(&mut self, method: &str, bytes: impl AsRef<[u8]>) -> Response {
        self.send(bytes).await;
        self.response(method).await.expect("a response")
    }

    /// Everything until the connection ends, whether properly or by a reset.
    pub async fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        let _reset = soon(self.0.read_to_end(&mut rest)).await;
        rest
    }

    /// Waits for the end of the connection; fails if anything comes before.
    pub async fn closed(&mut self) {
        assert_eq!(String::from_utf8_lossy(&self.rest().await), "");
    }
}

/// Reads the response to a request with `method`; `None` if the connection ended before one.
pub async fn read_response(
    reader: &mut (impl AsyncBufRead + Unpin),
    method: &str,
) -> Option<Response> {
    let mut informational = Vec::new();
    let head = loop {
        let head = soon(read_head(reader)).await.ok().flatten()?;
        match status(&head) {
            100 | 102..=199 => informational.push(head),
            _ => break head,
        }
    };
    let status = status(&head);
    let framing = match (method, status) {
        ("HEAD", _) | (_, 101 | 204 | 304) => Framing::None,
        _ => framing(&head, Framing::Close),
    };
    let mut message = Received {
        head,
        ..Received::default()
    };
    let complete = soon(read_body(reader, framing, &mut message)).await;
    Some(Response {
        status,
        message,
        complete,
        informational,
    })
}

fn status(head: &str) -> u16 {
    head.split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .expect("a status")
}

/// One request on a connection of its own; `headers` are lines that end in `\r\n`.
pub async fn request(
    address: SocketAddr,
    method: &str,
    target: &str,
    headers: &str,
    body: &str,
) -> Response {
    let length = match body {
        "" => String::new(),
        body => format!("content-length: {}\r\n", body.len()),
    };
    let mut client = Client::connect(address).await;
    let head =
        format!("{method} {target} HTTP/1.1\r\nhost: client.example\r\n{headers}{length}\r\n");
    client.roundtrip(method, format!("{head}{body}")).await
}

/// A GET on a connection of its own.
pub async fn get(address: SocketAddr, target: &str, headers: &str) -> Response {
    request(address, "GET", target, headers, "").await
}

/// A chunked body, a chunk for each piece; `trailers` are lines that end in `\r\n`.
pub fn chunked(pieces: &[&[u8]], trailers: &str) -> Vec<u8> {
    let mut body = Vec::new();
    for piece in pieces {
        body.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        body.extend_from_slice(piece);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(format!("0\r\n{trailers}\r\n").as_bytes());
    body
}

/// `bytes` in chunks of many sizes.
pub fn in_chunks(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let (mut rest, mut size) = (bytes, 1);
    while !rest.is_empty() {
        let (chunk, after) = rest.split_at(size.min(rest.len()));
        out.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        out.extend_from_slice(chunk);
        out.extend_from_slice(b"\r\n");
        rest = after;
        size = (size * 3 + 1) % 100_003;
    }
    out.extend_from_slice(b"0\r\n\r\n");
    out
}

pub fn head(start: &str, headers: &str) -> String {
    format!("{start} HTTP/1.1\r\nhost: client.example\r\n{headers}\r\n")
}

/// Large bodies are compared without being printed.
#[track_caller]
pub fn assert_same(got: &[u8], sent: &[u8]) {
    assert_eq!(got.len(), sent.len(), "length");
    let differs = got.iter().zip(sent).position(|(a, b)| a != b);
    assert_eq!(differs, None, "first difference");
}

/// Whether clients that ask for `/alive`, and have to be told so, get their answer while something else
/// goes on: ten in a row, within five seconds each (whom the kernel sends to the back twice waits for three).
pub async fn serves_others(address: SocketAddr) -> bool {
    for _ in 0..10 {
        let alive = get(address, "/alive", "");
        match tokio::time::timeout(Duration::from_secs(5), alive).await {
            Ok(alive) => assert_eq!(alive.text(), "alive"),
            Err(_) => return false,
        }
    }
    true
}
