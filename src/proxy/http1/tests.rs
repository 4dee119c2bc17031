//! Heads and chunks against naive readers, however they are cut; what is written is read again.

use bytes::{BufMut, BytesMut};
use http::Version;
use proptest::{collection::vec, prelude::*, sample::select};

use super::{
    chunked::{Chunked, Malformed},
    framing::Step,
    head::{self, BadHead, BadResponse, Search},
};
use crate::proxy::{
    fields::{Fields, KnownSet},
    message::{RequestHead, ResponseHead},
};

const MAX: usize = 4096;

/// What `parse` makes of `bytes` in pieces of these sizes, over and over (none: all at once), and
/// what it leaves.
fn in_pieces<T, E>(
    bytes: &[u8],
    sizes: &[usize],
    mut parse: impl FnMut(&mut BytesMut, &mut Search) -> Result<Option<T>, E>,
) -> Result<Option<(T, Vec<u8>)>, E> {
    let (mut buf, mut search) = (BytesMut::new(), Search::default());
    let mut rest = bytes;
    for i in 0.. {
        let size = match sizes {
            [] => rest.len(),
            sizes => sizes[i % sizes.len()].min(rest.len()),
        };
        buf.extend_from_slice(&rest[..size]);
        rest = &rest[size..];
        if let Some(head) = parse(&mut buf, &mut search)? {
            return Ok(Some((head, [&buf[..], rest].concat())));
        }
        if rest.is_empty() {
            return Ok(None);
        }
    }
    unreachable!("sizes are not 0")
}

fn request(bytes: &[u8], sizes: &[usize]) -> Result<Option<(RequestHead, Vec<u8>)>, BadHead> {
    in_pieces(bytes, sizes, |buf, search| {
        head::parse_request(buf, search, MAX)
    })
}

fn response(bytes: &[u8], sizes: &[usize]) -> Result<Option<(ResponseHead, Vec<u8>)>, BadResponse> {
    in_pieces(bytes, sizes, head::parse_response)
}

fn lines(fields: &Fields) -> Vec<(Vec<u8>, Vec<u8>)> {
    fields
        .iter()
        .map(|(name, value)| (name.to_vec(), value.to_vec()))
        .collect()
}

fn said(head: &RequestHead) -> impl PartialEq + std::fmt::Debug + use<> {
    let lines = lines(&head.headers);
    (
        head.method.clone(),
        head.target.clone(),
        head.version,
        lines,
    )
}

fn answered(head: &ResponseHead) -> impl PartialEq + std::fmt::Debug + use<> {
    let lines = lines(&head.headers);
    (head.status, head.reason.clone(), head.version, lines)
}

fn sizes() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![Just(Vec::new()), Just(vec![1]), vec(1usize..30, 1..5)]
}

fn tokens() -> impl Strategy<Value = Vec<u8>> {
    let token: Vec<u8> = (0..=255u8)
        .filter(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte))
        .collect();
    vec(select(token), 1..8)
}

/// Values as they may be, with blanks around and inside.
fn values() -> impl Strategy<Value = Vec<u8>> {
    let text: Vec<u8> = (0..=255)
        .filter(|byte| matches!(byte, b'\t' | b' '..=126 | 128..))
        .collect();
    vec(select(text), 0..10)
}

fn sections() -> impl Strategy<Value = Vec<(Vec<u8>, Vec<u8>)>> {
    prop_oneof![
        9 => vec((tokens(), values()), 0..6),
        1 => vec((tokens(), values()), 45..52),
    ]
}

fn written(start: &[u8], section: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = [start, b"\r\n"].concat();
    for (name, value) in section {
        bytes.extend([name, &b":"[..], value, b"\r\n"].concat());
    }
    bytes.extend_from_slice(b"\r\n");
    bytes
}

fn trimmed(section: &[(Vec<u8>, Vec<u8>)]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let trim = |value: &[u8]| {
        let start = value.iter().position(|byte| !blank(byte));
        let end = value.iter().rposition(|byte| !blank(byte));
        match (start, end) {
            (Some(start), Some(end)) => value[start..=end].to_vec(),
            _ => Vec::new(),
        }
    };
    section
        .iter()
        .map(|(name, value)| (name.clone(), trim(value)))
        .collect()
}

proptest! {
    /// Every valid head is read as it is meant, however it is cut, and so is what we write of it.
    #[test]
    fn a_request_head_is_what_it_says(
        method in tokens(),
        path in vec(select(&b"/a?%*.\x80<"[..]), 0..9),
        minor in 0u8..4,
        section in sections(),
        empty_lines in 0usize..3,
        behind in vec(any::<u8>(), 0..9),
        sizes in sizes(),
    ) {
        let target = [b"/", &path[..]].concat();
        let line = [&method, &b" "[..], &target, b" HTTP/1.", &[b'0' + minor]].concat();
        let before = b"\r\n".repeat(empty_lines);
        let bytes = [&before, &written(&line, &section)[..], &behind].concat();
        let (head, left) = request(&bytes, &sizes).unwrap().expect("it is whole");
        prop_assert_eq!(head.method.as_str().as_bytes(), &method);
        prop_assert_eq!(head.target.as_bytes(), &target);
        prop_assert_eq!(head.version == Version::HTTP_10, minor == 0);
        prop_assert_eq!(lines(&head.headers), trimmed(&section));
        prop_assert_eq!(left, behind);

        let mut again = BytesMut::from(&line[..]);
        again.put_slice(b"\r\n");
        head.headers.put_without(KnownSet::of(&[]), &mut again);
        again.put_slice(b"\r\n");
        let (again, _) = request(&again, &[]).unwrap().expect("it is whole");
        prop_assert_eq!(said(&again), said(&head));
    }

    #[test]
    fn a_response_head_is_what_it_says(
        status in 100u16..1000,
        reason in values(),
        minor in 0u8..2,
        section in sections(),
        behind in vec(any::<u8>(), 0..9),
        sizes in sizes(),
    ) {
        let start = format!("HTTP/1.{minor} {status} ");
        let line = [start.as_bytes(), &reason].concat();
        let bytes = [&written(&line, &section)[..], &behind].concat();
        let (head, left) = response(&bytes, &sizes).unwrap().expect("it is whole");
        prop_assert_eq!(head.status.as_u16(), status);
        let usual = head.status.canonical_reason().map(str::as_bytes);
        prop_assert_eq!(head.reason.as_deref().or(usual), Some(&reason[..]));
        prop_assert_eq!(lines(&head.headers), trimmed(&section));
        prop_assert_eq!(left, behind);

        let mut again = BytesMut::new();
        head::put_status_line(&mut again, head.status, head.reason.as_deref());
        head.headers.put_without(KnownSet::of(&[]), &mut again);
        again.put_slice(b"\r\n");
        let (again, _) = response(&again, &[]).unwrap().expect("it is whole");
        let head = ResponseHead { version: Version::HTTP_11, ..head };
        prop_assert_eq!(answered(&again), answered(&head));
    }

    /// Whatever comes, it is read as a head, waited for or refused; and the same in pieces, except
    /// that another of its faults may be noticed first.
    #[test]
    fn any_bytes_are_read_or_refused(
        bytes in prop_oneof![
            vec(any::<u8>(), 0..60),
            vec(select(&b"\r\n\r\n: \taG/\0"[..]), 0..30),
            vec(select(&["GET / HTTP/1.1", "HTTP/1.1 200 OK", "\r\n", "\r\n", "\n", "\r", " ", "a:", "b"][..]), 0..12)
                .prop_map(|parts| parts.concat().into_bytes()),
        ],
        sizes in sizes(),
    ) {
        let said = |read: Option<(RequestHead, Vec<u8>)>| read.map(|(head, left)| (said(&head), left));
        match (request(&bytes, &[]), request(&bytes, &sizes)) {
            (Err(_), Err(_)) => {}
            (whole, cut) => prop_assert_eq!(whole.map(said), cut.map(said)),
        }
        let answered =
            |read: Option<(ResponseHead, Vec<u8>)>| read.map(|(head, left)| (answered(&head), left));
        match (response(&bytes, &[]), response(&bytes, &sizes)) {
            (Err(_), Err(_)) => {}
            (whole, cut) => prop_assert_eq!(whole.map(answered), cut.map(answered)),
        }
        let mut left = BytesMut::from(&bytes[..]);
        if let Ok(Some(_)) = head::parse_trailers(&mut left, &mut Search::default()) {
            let taken = &bytes[..bytes.len() - left.len()];
            prop_assert!(taken.ends_with(b"\r\n"));
            prop_assert!(!taken.windows(2).any(|end| end[0] != b'\r' && end[1] == b'\n'));
        }
    }
}

/// Content, number of trailer fields and bytes that are left, if it is whole.
type Body = (Vec<u8>, usize, usize);

fn decode(bytes: &[u8], piece: usize, padded: bool) -> Result<Option<Body>, Malformed> {
    let mut chunks = Chunked::new(padded);
    let (mut buf, mut content) = (BytesMut::new(), Vec::new());
    let mut pieces = bytes.chunks(piece);
    loop {
        let trailers = match chunks.step(&mut buf)? {
            Step::Data(data) => {
                content.extend_from_slice(&data);
                continue;
            }
            Step::More => match pieces.next() {
                None => return Ok(None),
                Some(piece) => {
                    buf.extend_from_slice(piece);
                    continue;
                }
            },
            Step::Trailers(trailers) => trailers.len(),
            Step::End => 0,
        };
        let left = buf.len() + pieces.map(<[u8]>::len).sum::<usize>();
        return Ok(Some((content, trailers, left)));
    }
}

/// What a body of chunks is to somebody who has all of it before him.
#[derive(Debug, PartialEq)]
enum Naive {
    /// Content, number of trailer fields, bytes that are left.
    Whole(Vec<u8>, usize, usize),
    Wrong,
    /// Perhaps the beginning of one.
    Cut,
}

fn naive(bytes: &[u8], padded: bool) -> Naive {
    let mut rest = bytes;
    let mut content = Vec::new();
    loop {
        let size = match naive_line(&mut rest) {
            Ok(line) => naive_size(line, padded),
            Err(other) => return other,
        };
        let Some(size) = size else {
            return Naive::Wrong;
        };
        if size == 0 {
            break;
        }
        let Some((data, behind)) = rest.split_at_checked(size) else {
            return Naive::Cut;
        };
        content.extend_from_slice(data);
        match behind {
            [b'\r', b'\n', behind @ ..] => rest = behind,
            [] | [b'\r'] => return Naive::Cut,
            _ => return Naive::Wrong,
        }
    }
    let mut trailers = 0;
    let mut is_wrong = false;
    loop {
        match naive_line(&mut rest) {
            Ok(b"") if is_wrong => return Naive::Wrong,
            Ok(b"") => return Naive::Whole(content, trailers, rest.len()),
            Ok(line) => is_wrong |= !naive_field(line),
            Err(other) => return other,
        }
        trailers += 1;
    }
}

fn naive_line<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], Naive> {
    let end = rest.iter().position(|byte| *byte == b'\n');
    let (line, behind) = rest.split_at(end.ok_or(Naive::Cut)?);
    *rest = &behind[1..];
    line.strip_suffix(b"\r").ok_or(Naive::Wrong)
}

fn naive_size(line: &[u8], padded: bool) -> Option<usize> {
    let line = str::from_utf8(line).ok()?;
    let (size, extension) = line.split_once(';').unwrap_or((line, ""));
    let size = match padded {
        true => size.trim_end_matches([' ', '\t']),
        false => size,
    };
    let is_size = size.len() <= 16 && size.bytes().all(|byte| byte.is_ascii_hexdigit());
    let has_controls = extension
        .bytes()
        .any(|byte| byte != b'\t' && byte.is_ascii_control());
    (is_size && !has_controls).then(|| usize::from_str_radix(size, 16).ok())?
}

fn naive_field(line: &[u8]) -> bool {
    match line.iter().position(|byte| *byte == b':') {
        None | Some(0) => false,
        Some(colon) => {
            line[..colon].iter().all(u8::is_ascii_alphanumeric) && !line.contains(&b'\r')
        }
    }
}

fn agrees(bytes: &[u8], piece: usize, padded: bool) -> Result<(), String> {
    let (got, expected) = (decode(bytes, piece, padded), naive(bytes, padded));
    let agree = match (&got, &expected) {
        (Ok(Some((content, trailers, left))), Naive::Whole(c, t, l)) => {
            (content, trailers, left) == (c, t, l)
        }
        // What cannot become a body is refused at its first wrong byte.
        (Err(_), Naive::Wrong | Naive::Cut) | (Ok(None), Naive::Cut) => true,
        _ => false,
    };
    let text = bytes.escape_ascii();
    match agree {
        true => Ok(()),
        false => Err(format!(
            "\"{text}\" in pieces of {piece}: {got:?}, not {expected:?}"
        )),
    }
}

/// Every string over a small alphabet, behind some beginnings.
#[test]
fn every_short_body_is_what_it_is_to_a_naive_reader() {
    const ALPHABET: &[u8] = b"01aF;\r\n x:";
    for (start, length) in [
        ("", 4),
        ("1\r\nx\r\n", 4),
        ("0\r\n", 5),
        ("1;", 4),
        ("2 ", 4),
    ] {
        for length in 0..=length {
            let mut digits = vec![0; length];
            loop {
                let text: Vec<u8> = digits.iter().map(|digit| ALPHABET[*digit]).collect();
                let bytes = [start.as_bytes(), &text].concat();
                agrees(&bytes, 1, false).unwrap();
                agrees(&bytes, bytes.len().max(1), true).unwrap();
                let Some(next) = digits.iter().position(|digit| *digit + 1 < ALPHABET.len()) else {
                    break;
                };
                digits[..next].fill(0);
                digits[next] += 1;
            }
        }
    }
}

proptest! {
    #[test]
    fn a_long_body_is_what_it_is_to_a_naive_reader(
        parts in vec(
            select(&["1\r\nx\r\n", "3\r\nabc\r\n", "0\r\n", "\r\n", "a", "0", "\r", "\n", ";", " ", "x:1\r\n", "F", "000000000000000"][..]),
            0..12,
        ),
        piece in 1usize..20,
        padded in any::<bool>(),
    ) {
        agrees(parts.concat().as_bytes(), piece, padded).map_err(TestCaseError::fail)?;
    }
}
