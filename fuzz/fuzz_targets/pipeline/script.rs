//! What an input says: who sends what, and who answers what.

use std::{collections::VecDeque, net::IpAddr};

/// Goes over to the next piece of what is sent.
const PIECE: u8 = 0xFD;
/// Goes over to the next answer.
const ANSWER: u8 = 0xFE;
/// More would only be slow.
const MOST_BYTES: usize = 16 << 10;
const MOST_PIECES: usize = 6;

/// An input, taken apart.
pub struct Input<'a> {
    /// Which router it is for.
    pub router: usize,
    /// Whether the client leaves when it has sent all.
    pub leaves: bool,
    pub pieces: Vec<&'a [u8]>,
    pub answers: Vec<Answer>,
}

/// An answer of an upstream. It begins with letters that say how it is given:
/// * `<`: before anything was asked, on a new connection;
/// * `^`: when the head of the request is there;
/// * `$`: and then the connection is closed;
/// * `~`: and then it is reset.
#[derive(Debug, Clone)]
pub struct Answer {
    pub when: When,
    pub then: Then,
    pub pieces: Vec<Vec<u8>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    Early,
    Head,
    Whole,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// Closed where only that ends the answer.
    Next,
    Close,
    Reset,
}

impl<'a> Input<'a> {
    pub fn read(input: &'a [u8]) -> Option<Input<'a>> {
        let (&options, rest) = input.split_first()?;
        if rest.len() > MOST_BYTES {
            return None;
        }
        let mut parts = rest.split(|byte| *byte == ANSWER);
        Some(Input {
            router: usize::from(options & 7),
            leaves: options & 8 != 0,
            pieces: pieces(parts.next()?).collect(),
            answers: parts.map(Answer::read).collect(),
        })
    }

    /// All that the client sends.
    pub fn bytes(&self) -> Vec<u8> {
        self.pieces.concat()
    }
}

fn pieces(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.splitn(MOST_PIECES, |byte| *byte == PIECE)
}

impl Answer {
    fn read(mut bytes: &[u8]) -> Answer {
        let (mut when, mut then) = (When::Whole, Then::Next);
        while let Some((first, rest)) = bytes.split_first() {
            match first {
                b'<' => when = When::Early,
                b'^' => when = When::Head,
                b'$' => then = Then::Close,
                b'~' => then = Then::Reset,
                _ => break,
            }
            bytes = rest;
        }
        Answer {
            when,
            then,
            pieces: pieces(bytes).map(<[u8]>::to_vec).collect(),
        }
    }

    /// What is said to whoever has asked for `body`.
    pub fn usual(body: &[u8]) -> Answer {
        let length = format!(
            "HTTP/1.1 200 OK\r\nx-usual: 1\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        Answer {
            when: When::Whole,
            then: Then::Next,
            pieces: vec![[length.as_bytes(), body].concat()],
        }
    }

    pub fn is_early(&self) -> bool {
        self.when == When::Early
    }

    /// Whether some of it may come when its connection is given to somebody else.
    pub fn may_be_for_another(&self) -> bool {
        self.is_early() || self.pieces.len() > 1
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.pieces.concat()
    }
}

/// What the upstreams answer the client of an input.
pub struct Script {
    pub client: IpAddr,
    pub answers: VecDeque<Answer>,
}

impl Script {
    pub fn new(client: IpAddr, input: &Input<'_>) -> Script {
        Script {
            client,
            answers: input.answers.iter().cloned().collect(),
        }
    }
}
