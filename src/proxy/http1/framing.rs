//! Where the body of a message ends (RFC 9112 section 6).

use bytes::{Bytes, BytesMut};
use http::{Method, StatusCode, Version};

use super::{
    chunked::{self, Chunked},
    head::is_token,
};
use crate::proxy::fields::{Fields, Known};

/// How far a body goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    Empty,
    /// This many bytes; may be 0.
    Length(u64),
    /// Up to the last chunk.
    Chunked,
    /// Up to the end of the connection. Responses only.
    UntilClose,
}

/// Why a message's body has no clear end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unclear {
    /// RFC 9112 section 6.3: the sign of an attempt at smuggling.
    #[error("it has both a Content-Length and a Transfer-Encoding")]
    LengthAndCoding,
    /// Of the two it may be the other one that somebody believes.
    #[error("it has more than one Content-Length")]
    Lengths,
    /// A length is digits, at most 64 bits of them.
    #[error("its Content-Length is not a number")]
    Length,
    /// RFC 9112 section 6.1: `chunked` is the last coding, and applied once.
    #[error("its Transfer-Encoding is not just \"chunked\"")]
    Codings,
    /// A coding that we do not know.
    #[error("its Transfer-Encoding is not implemented here")]
    UnknownCoding,
    /// RFC 9112 section 6.1: HTTP/1.0 has no transfer codings.
    #[error("it has a Transfer-Encoding but is HTTP/1.0")]
    CodingIn10,
}

/// The body of a request.
///
/// # Errors
/// Anything that two readers could understand differently.
pub fn of_request(version: Version, headers: &Fields) -> Result<Framing, Unclear> {
    Ok(said(version, headers)?.unwrap_or(Framing::Empty))
}

/// The body of the response to a request with `method`.
///
/// # Errors
/// Anything that two readers could understand differently, if there is a body.
pub fn of_response(
    method: &Method,
    status: StatusCode,
    version: Version,
    headers: &Fields,
) -> Result<Framing, Unclear> {
    // Also where there is no body: whoever gets the head may think otherwise.
    let said = said(version, headers)?;
    match is_bodiless(status) || *method == Method::HEAD {
        true => Ok(Framing::Empty),
        false => Ok(said.unwrap_or(Framing::UntilClose)),
    }
}

/// Whether responses with this status never have a body (RFC 9110 section 6.4.1).
pub fn is_bodiless(status: StatusCode) -> bool {
    status.is_informational() || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

fn said(version: Version, headers: &Fields) -> Result<Option<Framing>, Unclear> {
    let mut codings = headers.all(Known::TransferEncoding);
    let mut lengths = headers.all(Known::ContentLength);
    match (codings.next(), lengths.next()) {
        (None, None) => Ok(None),
        (Some(_), Some(_)) => Err(Unclear::LengthAndCoding),
        (Some(_), None) if version < Version::HTTP_11 => Err(Unclear::CodingIn10),
        (Some(_), None) if codings.next().is_some() => Err(Unclear::Codings),
        (Some(coding), None) => match coding {
            coding if coding.eq_ignore_ascii_case(b"chunked") => Ok(Some(Framing::Chunked)),
            // One that could be a coding's name; everything else is not a coding that we lack.
            coding if is_coding(coding) && !names_chunked(coding) => Err(Unclear::UnknownCoding),
            _ => Err(Unclear::Codings),
        },
        (None, Some(_)) if lengths.next().is_some() => Err(Unclear::Lengths),
        (None, Some(length)) => number(length)
            .map(|length| Some(Framing::Length(length)))
            .ok_or(Unclear::Length),
    }
}

/// A `token` (RFC 9110 section 10.1.4); parameters are for codings that have any, and none is known.
fn is_coding(name: &[u8]) -> bool {
    !name.is_empty() && name.iter().copied().all(is_token)
}

fn names_chunked(codings: &[u8]) -> bool {
    codings
        .to_ascii_lowercase()
        .windows(b"chunked".len())
        .any(|window| window == b"chunked")
}

/// `1*DIGIT` (RFC 9110 section 8.6), and nothing else that Rust would call a number.
fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |number, digit| {
        let digit = char::from(*digit).to_digit(10)?;
        number.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

/// Takes a body out of the bytes of a connection.
#[derive(Debug)]
pub enum Decoder {
    /// This many bytes are still to come; at 0 the body is over.
    Length(u64),
    /// Chunks.
    Chunked(Chunked),
    /// All that comes.
    UntilClose,
}

/// What a [`Decoder`] found.
#[derive(Debug)]
pub enum Step {
    /// Some of the content; never empty.
    Data(Bytes),
    /// The trailer fields; the body is over.
    Trailers(Fields),
    /// The body is over.
    End,
    /// More bytes are needed.
    More,
}

impl Decoder {
    /// For a body that is over, or that is not there.
    pub const fn ended() -> Decoder {
        Decoder::Length(0)
    }

    /// For a body of this framing. `padded` lets blanks follow a chunk size.
    pub fn new(framing: Framing, padded: bool) -> Decoder {
        match framing {
            Framing::Empty => Decoder::ended(),
            Framing::Length(length) => Decoder::Length(length),
            Framing::Chunked => Decoder::Chunked(Chunked::new(padded)),
            Framing::UntilClose => Decoder::UntilClose,
        }
    }

    /// Takes the next piece out of `buf`.
    ///
    /// # Errors
    /// The chunks are malformed; there is no going on with this connection.
    pub fn step(&mut self, buf: &mut BytesMut) -> Result<Step, chunked::Malformed> {
        match self {
            Decoder::Length(0) => Ok(Step::End),
            _ if buf.is_empty() => Ok(Step::More),
            Decoder::Length(left) => {
                let taken = usize::try_from(*left).map_or(buf.len(), |left| left.min(buf.len()));
                *left -= taken as u64;
                Ok(Step::Data(buf.split_to(taken).freeze()))
            }
            Decoder::Chunked(chunks) => {
                let step = chunks.step(buf)?;
                if matches!(step, Step::End | Step::Trailers(_)) {
                    *self = Decoder::ended();
                }
                Ok(step)
            }
            Decoder::UntilClose => Ok(Step::Data(buf.split().freeze())),
        }
    }

    /// Whether the body is over.
    pub fn is_over(&self) -> bool {
        matches!(self, Decoder::Length(0))
    }

    /// Whether another message can follow on the connection.
    pub fn may_be_followed(&self) -> bool {
        !matches!(self, Decoder::UntilClose)
    }

    /// How much is known to be still to come; 0 where that is not known.
    pub fn expected(&self) -> u64 {
        match self {
            Decoder::Length(left) => *left,
            Decoder::Chunked(chunks) => chunks.expected(),
            Decoder::UntilClose => 0,
        }
    }

    /// The length of all that is to come, where it is known.
    pub fn length(&self) -> Option<u64> {
        match self {
            Decoder::Length(left) => Some(*left),
            Decoder::Chunked(_) | Decoder::UntilClose => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::fields::tests::fields;

    const CL: &str = "content-length";
    const TE: &str = "transfer-encoding";

    #[test]
    fn a_request_has_one_clear_end_or_is_refused() {
        use Framing::*;
        for (lines, expected) in [
            (&[][..], Ok(Empty)),
            (&[(CL, "0")], Ok(Length(0))),
            (&[(CL, "42")], Ok(Length(42))),
            (&[(CL, "007")], Ok(Length(7))),
            (&[(CL, "18446744073709551615")], Ok(Length(u64::MAX))),
            (&[(CL, "18446744073709551616")], Err(Unclear::Length)),
            (&[(CL, "")], Err(Unclear::Length)),
            (&[(CL, "+5")], Err(Unclear::Length)),
            (&[(CL, "-1")], Err(Unclear::Length)),
            (&[(CL, "5 6")], Err(Unclear::Length)),
            (&[(CL, "0x5")], Err(Unclear::Length)),
            (&[(CL, "5, 5")], Err(Unclear::Length)),
            (&[(CL, "5"), (CL, "5")], Err(Unclear::Lengths)),
            (&[(CL, "5"), (CL, "6")], Err(Unclear::Lengths)),
            (&[(TE, "chunked")], Ok(Chunked)),
            (&[(TE, "Chunked")], Ok(Chunked)),
            (&[(TE, "chunked"), (TE, "chunked")], Err(Unclear::Codings)),
            (&[(TE, "chunked, chunked")], Err(Unclear::Codings)),
            (&[(TE, "gzip, chunked")], Err(Unclear::Codings)),
            (&[(TE, "chunked;x=1")], Err(Unclear::Codings)),
            (&[(TE, "xchunked")], Err(Unclear::Codings)),
            (&[(TE, "identity")], Err(Unclear::UnknownCoding)),
            (&[(TE, "gzip")], Err(Unclear::UnknownCoding)),
            (&[(TE, "")], Err(Unclear::Codings)),
            (&[(TE, "gzip, deflate")], Err(Unclear::Codings)),
            (&[(TE, "ch\u{fc}nked")], Err(Unclear::Codings)),
            (&[(TE, "chun ked")], Err(Unclear::Codings)),
            (&[(CL, "5"), (TE, "chunked")], Err(Unclear::LengthAndCoding)),
            (&[(CL, "5"), (TE, "")], Err(Unclear::LengthAndCoding)),
        ] {
            let got = of_request(Version::HTTP_11, &fields(lines));
            assert_eq!(got, expected, "{lines:?}");
        }
        let coding = fields(&[(TE, "chunked")]);
        assert_eq!(
            of_request(Version::HTTP_10, &coding),
            Err(Unclear::CodingIn10)
        );
    }

    #[test]
    fn a_response_ends_as_its_request_status_and_fields_say() {
        use Framing::*;
        let length = &[(CL, "5")][..];
        for (method, status, lines, expected) in [
            ("GET", 200, length, Length(5)),
            ("GET", 200, &[(TE, "chunked")], Chunked),
            ("GET", 200, &[], UntilClose),
            ("HEAD", 200, length, Empty),
            ("HEAD", 200, &[], Empty),
            ("GET", 204, length, Empty),
            ("GET", 304, length, Empty),
            ("GET", 103, &[], Empty),
            ("GET", 205, &[], UntilClose),
        ] {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            let status = StatusCode::from_u16(status).unwrap();
            let got = of_response(&method, status, Version::HTTP_11, &fields(lines));
            assert_eq!(got, Ok(expected), "{method} {status} {lines:?}");
        }
        let both = fields(&[(CL, "5"), (TE, "chunked")]);
        for (method, status) in [
            (Method::GET, StatusCode::OK),
            (Method::HEAD, StatusCode::OK),
        ] {
            let got = of_response(&method, status, Version::HTTP_11, &both);
            assert_eq!(got, Err(Unclear::LengthAndCoding));
        }
    }

    #[test]
    fn a_length_takes_what_is_its_own_and_no_more() {
        let mut buf = BytesMut::from(&b"helloGET"[..]);
        let mut decoder = Decoder::new(Framing::Length(7), false);
        assert!(matches!(decoder.step(&mut buf), Ok(Step::Data(data)) if data == "helloGE"));
        assert!(matches!(decoder.step(&mut buf), Ok(Step::End)));
        assert_eq!(&buf[..], b"T");
    }
}
