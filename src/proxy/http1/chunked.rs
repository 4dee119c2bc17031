//! The chunked transfer coding (RFC 9112 section 7.1), both ways.

use bytes::{Buf, BufMut, BytesMut};

use super::{
    framing::Step,
    head::{self, MAX_TRAILER_BYTES, Search},
};
use crate::proxy::fields::{Fields, KnownSet};

/// What all chunk extensions of one body may be long together: nobody uses them but to attack.
const MAX_EXTENSION_BYTES: usize = 16 << 10;
/// As many digits as 64 bits have.
const MAX_DIGITS: u8 = 16;

/// The chunks are not what the RFC says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Not 1 to 16 hex digits.
    #[error("a chunk size is not a hexadecimal number of 64 bits")]
    Size,
    /// Neither `;` nor CRLF after the size, or a control character in an extension.
    #[error("a chunk extension is malformed")]
    Extension,
    /// Together beyond what anybody needs.
    #[error("the chunk extensions are too long")]
    ExtensionsTooLong,
    /// A line ends with something else.
    #[error("a chunk does not end with CRLF")]
    LineEnd,
    /// Not fields, or too many.
    #[error("the trailer section is malformed or too long")]
    Trailers,
}

/// Takes chunks apart.
#[derive(Debug)]
pub struct Chunked {
    state: State,
    /// Bytes of extensions and blanks so far.
    extensions: usize,
    /// Whether blanks may follow a size.
    padded: bool,
    /// How far the end of the trailers was looked for.
    search: Search,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// In a size of which `digits` were read.
    Size { size: u64, digits: u8 },
    /// Blanks after a size.
    Padding { size: u64 },
    /// Behind a `;`.
    Extension { size: u64 },
    /// Behind the CR of a size line.
    SizeLineFeed { size: u64 },
    /// In the data of a chunk.
    Data { left: u64 },
    /// Behind the data.
    DataReturn,
    /// Behind the CR that follows the data.
    DataLineFeed,
    /// Behind the last chunk.
    Trailers,
}

const NEXT: State = State::Size { size: 0, digits: 0 };

impl Chunked {
    /// At the first size. `padded` lets blanks follow a size, as some old servers pad them.
    pub fn new(padded: bool) -> Chunked {
        Chunked {
            state: NEXT,
            extensions: 0,
            padded,
            search: Search::default(),
        }
    }

    /// What is left of the current chunk.
    pub fn expected(&self) -> u64 {
        match self.state {
            State::Data { left } => left,
            _ => 0,
        }
    }

    /// Takes the next piece out of `buf`. Framing is consumed as it is understood, so that nothing is
    /// read twice however slowly it comes.
    ///
    /// # Errors
    /// The first byte that is wrong.
    pub fn step(&mut self, buf: &mut BytesMut) -> Result<Step, Malformed> {
        loop {
            if self.state == State::Trailers {
                return trailers(buf, &mut self.search);
            }
            if let State::Data { left } = &mut self.state {
                if buf.is_empty() {
                    return Ok(Step::More);
                }
                let taken = usize::try_from(*left).map_or(buf.len(), |left| left.min(buf.len()));
                *left -= taken as u64;
                if *left == 0 {
                    self.state = State::DataReturn;
                }
                return Ok(Step::Data(buf.split_to(taken).freeze()));
            }
            if !self.frame(buf)? {
                return Ok(Step::More);
            }
        }
    }

    /// Reads framing up to the next data, or to the trailers; whether it got there.
    fn frame(&mut self, buf: &mut BytesMut) -> Result<bool, Malformed> {
        let mut read = 0;
        for byte in buf.iter().copied() {
            read += 1;
            self.state = match (self.state, byte) {
                (State::Size { size, digits }, byte) if byte.is_ascii_hexdigit() => {
                    if digits == MAX_DIGITS {
                        return Err(Malformed::Size);
                    }
                    let digit = char::from(byte).to_digit(16).unwrap_or_default();
                    State::Size {
                        size: size << 4 | u64::from(digit),
                        digits: digits + 1,
                    }
                }
                (State::Size { digits: 0, .. }, _) => return Err(Malformed::Size),
                (State::Size { size, .. } | State::Padding { size }, byte) => match byte {
                    b'\r' => State::SizeLineFeed { size },
                    b';' => State::Extension { size },
                    b' ' | b'\t' if self.padded => {
                        self.count_extension()?;
                        State::Padding { size }
                    }
                    _ => return Err(Malformed::Extension),
                },
                (State::Extension { size }, b'\r') => State::SizeLineFeed { size },
                (State::Extension { .. }, 0..=8 | 10..=31 | 127) => {
                    return Err(Malformed::Extension);
                }
                (extension @ State::Extension { .. }, _) => {
                    self.count_extension()?;
                    extension
                }
                (State::SizeLineFeed { size: 0 }, b'\n') => State::Trailers,
                (State::SizeLineFeed { size }, b'\n') => State::Data { left: size },
                (State::DataReturn, b'\r') => State::DataLineFeed,
                (State::DataLineFeed, b'\n') => NEXT,
                (State::SizeLineFeed { .. } | State::DataReturn | State::DataLineFeed, _) => {
                    return Err(Malformed::LineEnd);
                }
                // Left to `step`.
                (state @ (State::Data { .. } | State::Trailers), _) => state,
            };
            if matches!(self.state, State::Data { .. } | State::Trailers) {
                buf.advance(read);
                return Ok(true);
            }
        }
        buf.advance(read);
        Ok(false)
    }

    fn count_extension(&mut self) -> Result<(), Malformed> {
        self.extensions += 1;
        match self.extensions > MAX_EXTENSION_BYTES {
            true => Err(Malformed::ExtensionsTooLong),
            false => Ok(()),
        }
    }
}

/// The trailer section is read when it is there as a whole.
fn trailers(buf: &mut BytesMut, search: &mut Search) -> Result<Step, Malformed> {
    if buf.starts_with(b"\r\n") {
        buf.advance(2);
        return Ok(Step::End);
    }
    match head::parse_trailers(buf, search) {
        Ok(Some(trailers)) => Ok(Step::Trailers(trailers)),
        Ok(None) if buf.len() <= MAX_TRAILER_BYTES => Ok(Step::More),
        Ok(None) | Err(_) => Err(Malformed::Trailers),
    }
}

/// The line before the data of a chunk.
pub fn put_size(out: &mut BytesMut, size: usize) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let digits = (usize::BITS - size.leading_zeros()).div_ceil(4).max(1);
    for digit in (0..digits).rev() {
        out.put_u8(HEX[size >> (4 * digit) & 0xf]);
    }
    out.put_slice(b"\r\n");
}

/// The last chunk, and the trailer fields, which the caller has vetted.
pub fn put_end(out: &mut BytesMut, trailers: Option<&Fields>) {
    out.put_slice(b"0\r\n");
    if let Some(trailers) = trailers {
        trailers.put_without(KnownSet::of(&[]), out);
    }
    out.put_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Feeds `bytes` in pieces of `piece`; the content and trailers, if that was all of a body, and
    /// what was left over.
    fn decode(
        bytes: &[u8],
        piece: usize,
        padded: bool,
    ) -> Result<Option<(Vec<u8>, usize, usize)>, Malformed> {
        let mut chunks = Chunked::new(padded);
        let mut buf = BytesMut::new();
        let mut content = Vec::new();
        let mut fed = 0;
        loop {
            match chunks.step(&mut buf)? {
                Step::Data(data) => content.extend_from_slice(&data),
                Step::Trailers(trailers) => {
                    return Ok(Some((
                        content,
                        trailers.len(),
                        bytes.len() - fed + buf.len(),
                    )));
                }
                Step::End => return Ok(Some((content, 0, bytes.len() - fed + buf.len()))),
                Step::More if fed == bytes.len() => return Ok(None),
                Step::More => {
                    let next = bytes.len().min(fed + piece);
                    buf.extend_from_slice(&bytes[fed..next]);
                    fed = next;
                }
            }
        }
    }

    #[test]
    fn what_the_rfc_allows_is_read_in_pieces_of_any_size() {
        for (bytes, content, trailers, left) in [
            (&b"0\r\n\r\n"[..], &b""[..], 0, 0),
            (b"5\r\nhello\r\n0\r\n\r\n", b"hello", 0, 0),
            (
                b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n",
                b"hello world",
                0,
                0,
            ),
            (b"00A\r\n0123456789\r\n000\r\n\r\n", b"0123456789", 0, 0),
            (b"1;a=b;c=\"d e\"\r\nx\r\n0;last\r\n\r\n", b"x", 0, 0),
            (b"1\r\nx\r\n0\r\nX-Sum: 1\r\nY: 2\r\n\r\n", b"x", 2, 0),
            (b"1\r\n\r\r\n0\r\n\r\nGET / ", b"\r", 0, 6),
        ] {
            for piece in 1..=bytes.len() {
                let got = decode(bytes, piece, false);
                assert_eq!(
                    got,
                    Ok(Some((content.to_vec(), trailers, left))),
                    "{:?} in pieces of {piece}",
                    String::from_utf8_lossy(bytes)
                );
            }
        }
    }

    #[test]
    fn anything_else_is_malformed() {
        use Malformed::*;
        for (bytes, expected) in [
            (&b"\r\n"[..], Size),
            (b"0x5\r\nhello\r\n", Extension),
            (b"x\r\n", Size),
            (b"-1\r\n", Size),
            (b"+1\r\n", Size),
            (b" 1\r\n", Size),
            (b"00000000000000005\r\nhello\r\n", Size),
            (b"5 \r\nhello\r\n", Extension),
            (b"5 ;a\r\nhello\r\n", Extension),
            (b"5\nhello\r\n", Extension),
            (b"5;a\nhello\r\n", Extension),
            (b"5;a\0\r\nhello\r\n", Extension),
            (b"5;a\rb\r\nhello\r\n", LineEnd),
            (b"5\r\r\nhello\r\n", LineEnd),
            (b"5\r\nhello\n0\r\n\r\n", LineEnd),
            (b"5\r\nhelloX\r\n", LineEnd),
            (b"5\r\nhello\rX", LineEnd),
            (b"0\r\nbad name: 1\r\n\r\n", Trailers),
            (b"0\r\na: 1\n\r\n", Trailers),
            (b"0\r\na: 1\r\n b\r\n\r\n", Trailers),
            (b"0\r\n\n", Trailers),
        ] {
            for piece in 1..=bytes.len() {
                let got = decode(bytes, piece, false);
                assert_eq!(got, Err(expected), "{:?}", String::from_utf8_lossy(bytes));
            }
        }
        for blank in ["1 \r\nx\r\n0\r\n\r\n", "1\t ;e\r\nx\r\n0  \r\n\r\n"] {
            assert!(decode(blank.as_bytes(), 3, false).is_err());
            assert_eq!(
                decode(blank.as_bytes(), 3, true),
                Ok(Some((b"x".to_vec(), 0, 0)))
            );
        }
    }

    #[test]
    fn what_has_no_end_is_given_up() {
        let mut endless = b"1;".to_vec();
        endless.resize(MAX_EXTENSION_BYTES + 3, b'a');
        assert_eq!(
            decode(&endless, 1000, false),
            Err(Malformed::ExtensionsTooLong)
        );
        let mut padding = b"1".to_vec();
        padding.resize(MAX_EXTENSION_BYTES + 3, b' ');
        assert_eq!(
            decode(&padding, 1000, true),
            Err(Malformed::ExtensionsTooLong)
        );
        let chunk = b"1;0123456789\r\nx\r\n".repeat(MAX_EXTENSION_BYTES / 10 + 1);
        assert_eq!(
            decode(&chunk, 1000, false),
            Err(Malformed::ExtensionsTooLong)
        );
        let mut trailers = b"0\r\na: ".to_vec();
        trailers.resize(2 * MAX_TRAILER_BYTES, b'a');
        assert_eq!(decode(&trailers, 1000, false), Err(Malformed::Trailers));
    }

    proptest! {
        /// Whatever is written is read again, however it is cut.
        #[test]
        fn what_is_encoded_is_decoded(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..300), 0..5),
            piece in 1usize..400,
        ) {
            let mut bytes = BytesMut::new();
            for chunk in &chunks {
                put_size(&mut bytes, chunk.len());
                bytes.put_slice(chunk);
                bytes.put_slice(b"\r\n");
            }
            put_end(&mut bytes, None);
            prop_assert_eq!(decode(&bytes, piece, false), Ok(Some((chunks.concat(), 0, 0))));
        }

        #[test]
        fn sizes_are_hexadecimal(size in any::<usize>()) {
            let mut out = BytesMut::new();
            put_size(&mut out, size);
            prop_assert_eq!(String::from_utf8_lossy(&out), format!("{size:x}\r\n"));
        }
    }
}
