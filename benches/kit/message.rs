//! As much of HTTP/1.1 as the benches speak: a request with its expected answer, and a reader of
//! messages that are framed by `Content-Length`. Chunked messages are refused, loudly: no proxy has
//! a reason to make one out of what the benches send.

use anyhow::{Context, Result, bail, ensure};

/// One request, ready to be written, and what has to come back.
#[derive(Debug)]
pub struct Exchange {
    pub request: Vec<u8>,
    pub answer_bytes: u64,
}

impl Exchange {
    /// With a body, if it has any, of `body_bytes`; the upstream answers with `answer_bytes`.
    pub fn new(method: &str, body_bytes: usize, answer_bytes: u64) -> Exchange {
        let mut request = format!(
            "{method} /bytes/{answer_bytes} HTTP/1.1\r\n\
             Host: bench.example\r\n\
             User-Agent: canary-router-bench\r\n\
             Accept: */*\r\n"
        )
        .into_bytes();
        if body_bytes > 0 {
            request.extend_from_slice(format!("Content-Length: {body_bytes}\r\n").as_bytes());
        }
        request.extend_from_slice(b"\r\n");
        request.resize(request.len() + body_bytes, b'x');
        Exchange {
            request,
            answer_bytes,
        }
    }
}

/// Reads one message at a time, in whatever pieces it comes.
#[derive(Debug, Default)]
pub struct Reader {
    /// The head, as far as it has come; empty while a body is read.
    head: Vec<u8>,
    /// Bytes of the body that are still to come; `None` while the head is read.
    body_left: Option<u64>,
}

impl Reader {
    /// Takes the next bytes off the wire. `judge` sees the head once, without its last empty line,
    /// and says how long the body is. True when the message has ended; bytes beyond its end are an
    /// error, because nobody here pipelines.
    pub fn take(&mut self, bytes: &[u8], judge: impl FnOnce(&[u8]) -> Result<u64>) -> Result<bool> {
        let mut body = bytes;
        let mut left = match self.body_left {
            Some(left) => left,
            None if self.head.is_empty() => match end_of_head(bytes) {
                // The usual case: a head in one piece is not copied.
                Some(end) => {
                    body = &bytes[end..];
                    judge(&bytes[..end - 2])?
                }
                None => {
                    self.head.extend_from_slice(bytes);
                    return Ok(false);
                }
            },
            None => {
                let known = self.head.len();
                self.head.extend_from_slice(bytes);
                let Some(end) = end_of_head(&self.head) else {
                    return Ok(false);
                };
                body = &bytes[end - known..];
                let length = judge(&self.head[..end - 2])?;
                self.head.clear();
                length
            }
        };
        left = left
            .checked_sub(body.len() as u64)
            .with_context(|| format!("{} bytes after the body", body.len() as u64 - left))?;
        self.body_left = (left > 0).then_some(left);
        Ok(left == 0)
    }
}

/// The length of the body that follows `head`: 0 where nothing says otherwise.
pub fn content_length(head: &[u8]) -> Result<u64> {
    let mut length = 0;
    for line in head.split(|&byte| byte == b'\n').skip(1) {
        let Some(colon) = line.iter().position(|&byte| byte == b':') else {
            continue;
        };
        let (name, value) = (&line[..colon], &line[colon + 1..]);
        if name.eq_ignore_ascii_case(b"content-length") {
            length = std::str::from_utf8(value)?.trim().parse()?;
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            bail!("a chunked message: {}", head.escape_ascii());
        }
    }
    Ok(length)
}

/// What the load generator asks of an answer's head.
pub fn judge_answer(head: &[u8], answer_bytes: u64) -> Result<u64> {
    ensure!(
        head.starts_with(b"HTTP/1.1 200 "),
        "not a 200: {}",
        head.escape_ascii()
    );
    let length = content_length(head)?;
    ensure!(
        length == answer_bytes,
        "{length} bytes of body instead of {answer_bytes}: {}",
        head.escape_ascii()
    );
    Ok(length)
}

/// Where the head ends, its empty line included.
fn end_of_head(bytes: &[u8]) -> Option<usize> {
    bytes
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .map(|at| at + 4)
}
