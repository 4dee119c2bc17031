//! Just enough HTTP/1.1 to read what was sent, and strict about it.

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt};

/// A message as it was read off a socket.
#[derive(Debug, Clone, Default)]
pub struct Received {
    /// The start line and the headers, as they were.
    pub head: String,
    pub body: Vec<u8>,
    pub trailers: String,
}

impl Received {
    pub fn start_line(&self) -> &str {
        self.head.lines().next().unwrap_or_default()
    }

    pub fn method(&self) -> &str {
        self.start_line().split(' ').next().unwrap_or_default()
    }

    pub fn target(&self) -> &str {
        self.start_line().split(' ').nth(1).unwrap_or_default()
    }

    /// All values of a header, in order.
    pub fn all(&self, name: &str) -> Vec<&str> {
        values(&self.head, name)
    }

    /// The only value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let all = self.all(name);
        assert!(
            all.len() < 2,
            "{name} is there {} times: {}",
            all.len(),
            self.head
        );
        all.first().copied()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

pub fn values<'a>(head: &'a str, name: &str) -> Vec<&'a str> {
    head.lines()
        .skip(1)
        .filter_map(|line| line.split_once(':'))
        .filter(|(n, _)| n.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
        .collect()
}

/// How a body is delimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    None,
    Length(usize),
    Chunked,
    Close,
}

/// Reads a head up to and including the empty line; `None` at the end of the connection before a
/// byte of it.
pub async fn read_head<R: AsyncBufRead + Unpin>(reader: &mut R) -> std::io::Result<Option<String>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if reader.read_until(b'\n', &mut head).await? == 0 {
            return match head.is_empty() {
                true => Ok(None),
                false => Err(std::io::ErrorKind::UnexpectedEof.into()),
            };
        }
    }
    Ok(Some(String::from_utf8_lossy(&head).into_owned()))
}

pub fn framing(head: &str, otherwise: Framing) -> Framing {
    if let Some(coding) = values(head, "transfer-encoding").last() {
        assert!(coding.eq_ignore_ascii_case("chunked"), "{head}");
        return Framing::Chunked;
    }
    match values(head, "content-length").first() {
        Some(length) => Framing::Length(length.parse().expect("a length")),
        None => otherwise,
    }
}

/// Reads a body into `message`; false if the connection ended before the body did.
pub async fn read_body<R: AsyncBufRead + Unpin>(
    reader: &mut R,
    framing: Framing,
    message: &mut Received,
) -> bool {
    match framing {
        Framing::None => true,
        Framing::Close => reader.read_to_end(&mut message.body).await.is_ok(),
        Framing::Length(length) => {
            while message.body.len() < length {
                let mut piece = vec![0; (length - message.body.len()).min(64 << 10)];
                match reader.read(&mut piece).await {
                    Ok(read @ 1..) => message.body.extend_from_slice(&piece[..read]),
                    _ => return false,
                }
            }
            true
        }
        Framing::Chunked => read_chunks(reader, message).await.unwrap_or(false),
    }
}

async fn read_chunks<R: AsyncBufRead + Unpin>(
    reader: &mut R,
    message: &mut Received,
) -> std::io::Result<bool> {
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).await?;
        let Some(size) = line.strip_suffix("\r\n") else {
            return Ok(false);
        };
        let size = usize::from_str_radix(size, 16).expect("a chunk size");
        if size == 0 {
            break;
        }
        let start = message.body.len();
        message.body.resize(start + size, 0);
        if let Err(error) = reader.read_exact(&mut message.body[start..]).await {
            message.body.truncate(start);
            return Err(error);
        }
        let mut end = [0; 2];
        reader.read_exact(&mut end).await?;
        assert_eq!(&end, b"\r\n");
    }
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).await? == 0 {
            return Ok(false);
        }
        if line == "\r\n" {
            return Ok(true);
        }
        message.trailers.push_str(&line);
    }
}
