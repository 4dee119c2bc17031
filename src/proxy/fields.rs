//! Header and trailer fields, as places in the bytes that they were read from.
//!
//! A proxy passes nearly all fields on as they are. So they are not put into a map but left where they
//! stand; those that the proxy itself has to do with are marked when they are read, and of the others
//! it only has to know where they begin and end. Names keep the case in which they were written.

use std::{collections::HashSet, fmt, ops::Range};

use bytes::{BufMut, Bytes, BytesMut};

/// The fields of a message, in their order.
#[derive(Clone, Default)]
pub struct Fields {
    bytes: Bytes,
    list: Vec<Field>,
    /// A bit for each [`Known`] that is among them.
    present: u32,
}

#[derive(Clone, Copy)]
struct Field {
    name: Span,
    value: Span,
    known: Option<Known>,
    /// Whether it stands there just as it would be written: `name: value CRLF`.
    plain: bool,
}

#[derive(Clone, Copy)]
struct Span {
    start: u32,
    end: u32,
}

/// The fields that the proxy has to do with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Known {
    Connection,
    ContentLength,
    Cookie,
    Date,
    Expect,
    Forwarded,
    Host,
    KeepAlive,
    ProxyAuthenticate,
    ProxyAuthorization,
    ProxyConnection,
    Te,
    Traceparent,
    Tracestate,
    Trailer,
    TransferEncoding,
    Upgrade,
    XCanary,
    XCanaryBody,
    XForwardedFor,
    XForwardedHost,
    XForwardedPort,
    XForwardedProto,
    XRequestId,
}

impl Known {
    /// All of them, with their names in lower case.
    const NAMES: [(Known, &'static [u8]); 24] = [
        (Known::Connection, b"connection"),
        (Known::ContentLength, b"content-length"),
        (Known::Cookie, b"cookie"),
        (Known::Date, b"date"),
        (Known::Expect, b"expect"),
        (Known::Forwarded, b"forwarded"),
        (Known::Host, b"host"),
        (Known::KeepAlive, b"keep-alive"),
        (Known::ProxyAuthenticate, b"proxy-authenticate"),
        (Known::ProxyAuthorization, b"proxy-authorization"),
        (Known::ProxyConnection, b"proxy-connection"),
        (Known::Te, b"te"),
        (Known::Traceparent, b"traceparent"),
        (Known::Tracestate, b"tracestate"),
        (Known::Trailer, b"trailer"),
        (Known::TransferEncoding, b"transfer-encoding"),
        (Known::Upgrade, b"upgrade"),
        (Known::XCanary, b"x-canary"),
        (Known::XCanaryBody, b"x-canary-body"),
        (Known::XForwardedFor, b"x-forwarded-for"),
        (Known::XForwardedHost, b"x-forwarded-host"),
        (Known::XForwardedPort, b"x-forwarded-port"),
        (Known::XForwardedProto, b"x-forwarded-proto"),
        (Known::XRequestId, b"x-request-id"),
    ];

    /// The name in lower case.
    pub const fn name(self) -> &'static [u8] {
        Known::NAMES[self as usize].1
    }

    const fn bit(self) -> u32 {
        1 << self as u32
    }

    /// The one with this name, in whatever case.
    fn of(name: &[u8]) -> Option<Known> {
        // Length and first letter leave one, or none, to be compared; but for two, which differ in their
        // 13th letter.
        let first = name.first()?.to_ascii_lowercase();
        let candidate = match (name.len(), first) {
            (2, b't') => Known::Te,
            (4, b'd') => Known::Date,
            (4, b'h') => Known::Host,
            (6, b'c') => Known::Cookie,
            (6, b'e') => Known::Expect,
            (7, b't') => Known::Trailer,
            (7, b'u') => Known::Upgrade,
            (8, b'x') => Known::XCanary,
            (9, b'f') => Known::Forwarded,
            (10, b'c') => Known::Connection,
            (10, b'k') => Known::KeepAlive,
            (10, b't') => Known::Tracestate,
            (11, b't') => Known::Traceparent,
            (12, b'x') => Known::XRequestId,
            (13, b'x') => Known::XCanaryBody,
            (14, b'c') => Known::ContentLength,
            (15, b'x') => Known::XForwardedFor,
            (16, b'p') => Known::ProxyConnection,
            (16, b'x') if matches!(name[12], b'h' | b'H') => Known::XForwardedHost,
            (16, b'x') => Known::XForwardedPort,
            (17, b'x') => Known::XForwardedProto,
            (17, b't') => Known::TransferEncoding,
            (18, b'p') => Known::ProxyAuthenticate,
            (19, b'p') => Known::ProxyAuthorization,
            _ => return None,
        };
        name.eq_ignore_ascii_case(candidate.name())
            .then_some(candidate)
    }
}

/// A set of [`Known`].
#[derive(Debug, Clone, Copy)]
pub struct KnownSet(u32);

impl KnownSet {
    /// Of these.
    pub const fn of(all: &[Known]) -> KnownSet {
        let mut bits = 0;
        let mut i = 0;
        while i < all.len() {
            bits |= all[i].bit();
            i += 1;
        }
        KnownSet(bits)
    }

    /// And this one.
    pub const fn with(self, known: Known) -> KnownSet {
        KnownSet(self.0 | known.bit())
    }

    /// These and those.
    pub const fn and(self, other: KnownSet) -> KnownSet {
        KnownSet(self.0 | other.0)
    }

    const fn contains(self, known: Option<Known>) -> bool {
        match known {
            Some(known) => self.0 & known.bit() != 0,
            None => false,
        }
    }
}

impl Fields {
    /// No fields, which will stand in `bytes` and are about `count`.
    pub fn within(bytes: Bytes, count: usize) -> Fields {
        Fields {
            bytes,
            list: Vec::with_capacity(count),
            present: 0,
        }
    }

    /// Adds one. Both parts are slices of the bytes that these fields stand in.
    #[inline(always)]
    pub fn add(&mut self, name: &[u8], value: &[u8]) {
        let start = self.bytes.as_ptr() as usize;
        let span = |part: &[u8], or: u32| match part.is_empty() {
            true => Span { start: or, end: or },
            false => {
                let start = (part.as_ptr() as usize - start) as u32;
                Span {
                    start,
                    end: start + part.len() as u32,
                }
            }
        };
        let name_span = span(name, 0);
        let value_span = span(value, name_span.end + 2);
        let (between, after) = (name_span.end as usize, value_span.end as usize);
        let plain = value_span.start == name_span.end + 2
            && self.bytes.get(between..between + 2) == Some(b": ")
            && self.bytes.get(after..after + 2) == Some(b"\r\n");
        // An empty value may stand somewhere else.
        let value = match (value.is_empty(), plain) {
            (true, false) => Span { start: 0, end: 0 },
            _ => value_span,
        };
        let known = Known::of(name);
        self.present |= known.map_or(0, Known::bit);
        self.list.push(Field {
            name: name_span,
            value,
            known,
            plain,
        });
    }

    /// Whether this field is there.
    pub fn has(&self, known: Known) -> bool {
        self.present & known.bit() != 0
    }

    /// Whether any of these is there.
    pub fn has_any(&self, set: KnownSet) -> bool {
        self.present & set.0 != 0
    }

    /// The values of this field, one for each line that has it.
    pub fn all(&self, known: Known) -> impl DoubleEndedIterator<Item = &[u8]> {
        let list = match self.has(known) {
            true => &self.list[..],
            false => &[],
        };
        list.iter()
            .filter(move |field| field.known == Some(known))
            .map(|field| self.at(field.value))
    }

    /// The values of all fields of a name that is not among the [`Known`] ones, in lower case or not. It
    /// looks at every field.
    pub fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.iter()
            .filter(|(field, _)| field.eq_ignore_ascii_case(name.as_bytes()))
            .map(|(_, value)| value)
    }

    /// The first value of this field.
    pub fn get(&self, known: Known) -> Option<&[u8]> {
        self.all(known).next()
    }

    /// The first value of this field, to keep.
    pub fn get_bytes(&self, known: Known) -> Option<Bytes> {
        self.get(known).map(|value| self.bytes.slice_ref(value))
    }

    /// Takes some fields off.
    pub fn remove(&mut self, set: KnownSet) {
        if self.has_any(set) {
            self.list.retain(|field| !set.contains(field.known));
            self.present &= !set.0;
        }
    }

    /// Takes the fields with these names (in lower case) off, but for those in `kept`.
    pub fn remove_named(&mut self, names: &HashSet<Vec<u8>>, kept: KnownSet) {
        let bytes = &self.bytes;
        self.list.retain(|field| {
            let name = field.name.of(bytes).to_ascii_lowercase();
            kept.contains(field.known) || !names.contains(&name)
        });
        self.present = self
            .list
            .iter()
            .filter_map(|field| field.known)
            .fold(0, |present, known| present | known.bit());
    }

    /// Names and values, in their order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.list
            .iter()
            .map(|field| (self.at(field.name), self.at(field.value)))
    }

    /// Names and values, to keep, in their order, but for some.
    pub fn iter_without(&self, skipped: KnownSet) -> impl Iterator<Item = (&[u8], Bytes)> {
        let passed = self
            .list
            .iter()
            .filter(move |field| !skipped.contains(field.known));
        passed.map(|field| {
            let value = field.value.start as usize..field.value.end as usize;
            (self.at(field.name), self.bytes.slice(value))
        })
    }

    /// How many bytes they take at most when written.
    pub fn written_length(&self) -> usize {
        self.bytes.len() + 4 * self.list.len()
    }

    /// How many they are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Writes them, but for some. Lines that stand one after the other are copied at once.
    pub fn put_without(&self, skipped: KnownSet, out: &mut BytesMut) {
        let mut run = 0..0;
        for field in &self.list {
            if skipped.contains(field.known) {
                continue;
            }
            let line = field.name.start as usize..field.value.end as usize + 2;
            if field.plain && line.start == run.end {
                run.end = line.end;
                continue;
            }
            out.put_slice(&self.bytes[run.clone()]);
            run = match field.plain {
                true => line,
                false => {
                    put_field(out, self.at(field.name), self.at(field.value));
                    0..0
                }
            };
        }
        out.put_slice(&self.bytes[run]);
    }

    fn at(&self, span: Span) -> &[u8] {
        span.of(&self.bytes)
    }
}

impl Span {
    fn of(self, bytes: &[u8]) -> &[u8] {
        let range: Range<usize> = self.start as usize..self.end as usize;
        &bytes[range]
    }
}

impl fmt::Debug for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        f.debug_map()
            .entries(self.iter().map(|(name, value)| (text(name), text(value))))
            .finish()
    }
}

/// Where fields are written to: the bytes of an HTTP/1 head, or the map of an HTTP/2 one.
pub trait Sink {
    /// Writes one, behind those before it: its name in lower case with `: ` behind it, and its value in pieces.
    fn put(&mut self, start: &'static [u8], value: &[&[u8]]);
}

impl Sink for BytesMut {
    #[inline]
    fn put(&mut self, start: &'static [u8], value: &[&[u8]]) {
        self.put_slice(start);
        for piece in value {
            self.put_slice(piece);
        }
        self.put_slice(b"\r\n");
    }
}

/// Writes one field.
pub fn put_field(out: &mut BytesMut, name: &[u8], value: &[u8]) {
    out.reserve(name.len() + value.len() + 4);
    out.put_slice(name);
    out.put_slice(b": ");
    out.put_slice(value);
    out.put_slice(b"\r\n");
}

#[cfg(test)]
pub(in crate::proxy) mod tests {
    use proptest::{collection::vec, prelude::*, sample::select};

    use super::*;
    use crate::proxy::http1::head;

    /// Fields with these names and values.
    pub fn fields(lines: &[(&str, &str)]) -> Fields {
        let mut text = String::new();
        for (name, value) in lines {
            text += &format!("{name}: {value}\r\n");
        }
        parse(&(text + "\r\n"))
    }

    fn parse(section: &str) -> Fields {
        let section = Bytes::copy_from_slice(section.as_bytes());
        head::fields(&section, 1000).unwrap()
    }

    fn written(fields: &Fields, skipped: &[Known]) -> String {
        let mut out = BytesMut::new();
        fields.put_without(KnownSet::of(skipped), &mut out);
        assert!(out.len() <= fields.written_length());
        String::from_utf8(out.to_vec()).unwrap()
    }

    #[test]
    fn every_known_field_is_known_by_its_name_in_any_case() {
        for (i, (known, name)) in Known::NAMES.iter().enumerate() {
            assert_eq!(*known as usize, i);
            assert_eq!(Known::of(name), Some(*known));
            assert_eq!(Known::of(&name.to_ascii_uppercase()), Some(*known));
            assert_eq!(Known::of(&[name, &b"x"[..]].concat()), None);
            let mut other = name.to_vec();
            let last = other.len() - 1;
            other[last] = b'_';
            assert_eq!(Known::of(&other), None);
        }
        assert_eq!(Known::of(b""), None);
    }

    #[test]
    fn what_is_written_is_what_was_read_without_its_blanks() {
        let fields = parse(
            "A: 1\r\nHost: h\r\nB:2\r\nc:  3 \r\nd:\r\ne: \r\nContent-Length: 1\r\nf: 4\r\n\r\n",
        );
        assert_eq!(fields.len(), 8);
        let all = "A: 1\r\nHost: h\r\nB: 2\r\nc: 3\r\nd: \r\ne: \r\nContent-Length: 1\r\nf: 4\r\n";
        assert_eq!(written(&fields, &[]), all);
        assert_eq!(
            written(&fields, &[Known::Host, Known::ContentLength]),
            "A: 1\r\nB: 2\r\nc: 3\r\nd: \r\ne: \r\nf: 4\r\n"
        );
        assert_eq!(fields.get(Known::Host), Some(&b"h"[..]));
        assert!(!fields.has(Known::Te));
        // A line feed alone, where it is let pass, is not passed on.
        assert_eq!(
            written(&parse("a: 1\nb: 2\r\nc: 3\n\r\n"), &[]),
            "a: 1\r\nb: 2\r\nc: 3\r\n"
        );
    }

    #[test]
    fn a_value_in_pieces_is_written_as_one() {
        let mut out = BytesMut::new();
        Sink::put(&mut out, b"x-forwarded-for: ", &[b"a", b", ", b"b"]);
        Sink::put(&mut out, b"b: ", &[]);
        put_field(&mut out, b"C", b"1");
        assert_eq!(out, "x-forwarded-for: a, b\r\nb: \r\nC: 1\r\n");
    }

    #[test]
    fn what_is_removed_is_gone() {
        let mut fields = fields(&[
            ("te", "a"),
            ("x", "1"),
            ("TE", "b"),
            ("y", "2"),
            ("Date", "d"),
        ]);
        assert_eq!(fields.all(Known::Te).count(), 2);
        fields.remove(KnownSet::of(&[Known::Te]));
        assert!(!fields.has(Known::Te));
        assert_eq!(written(&fields, &[]), "x: 1\r\ny: 2\r\nDate: d\r\n");
        let names = [b"y".to_vec(), b"date".to_vec()].into();
        fields.remove_named(&names, KnownSet::of(&[Known::Date]));
        assert_eq!(written(&fields, &[]), "x: 1\r\nDate: d\r\n");
        fields.remove_named(&names, KnownSet::of(&[]));
        assert!(!fields.has(Known::Date));
    }

    /// Names of ours, in any case, and others.
    fn names() -> impl Strategy<Value = String> {
        let ours = (0..Known::NAMES.len(), any::<bool>()).prop_map(|(i, upper)| {
            let name = String::from_utf8(Known::NAMES[i].1.to_vec()).unwrap();
            if upper {
                name.to_ascii_uppercase()
            } else {
                name
            }
        });
        prop_oneof![
            ours,
            select(&["a", "X-B", "hosts", "t"][..]).prop_map(str::to_owned)
        ]
    }

    /// Sections in which lines are written in all ways that are let pass.
    fn sections() -> impl Strategy<Value = Vec<(String, String, String)>> {
        let between = select(&[":", ": ", ": ", ": ", ":  ", ":\t"][..]);
        let value = select(&["", "v", "a b", "close, x-b", "\u{e4}"][..]);
        let end = select(&["\r\n", "\r\n", "\r\n", " \r\n", "\t\r\n", "\n"][..]);
        let line = (names(), between, value, end).prop_map(|(name, between, value, end)| {
            (
                format!("{name}{between}{value}{end}"),
                name,
                value.to_owned(),
            )
        });
        vec(line, 0..8)
    }

    proptest! {
        /// Lines are copied in runs; it must not show.
        #[test]
        fn lines_are_written_as_if_one_by_one(
            section in sections(),
            removed in 0u32..1 << Known::NAMES.len(),
            named in vec(names(), 0..3),
            kept in 0u32..1 << Known::NAMES.len(),
            skipped in 0u32..1 << Known::NAMES.len(),
        ) {
            let text: String = section.iter().map(|(line, ..)| line.as_str()).collect();
            let mut fields = parse(&(text + "\r\n"));
            prop_assert_eq!(fields.len(), section.len());
            fields.remove(KnownSet(removed));
            let named: HashSet<Vec<u8>> =
                named.into_iter().map(|name| name.to_ascii_lowercase().into_bytes()).collect();
            fields.remove_named(&named, KnownSet(kept));
            let is_in = |set: u32, name: &str| KnownSet(set).contains(Known::of(name.as_bytes()));
            let left: Vec<_> = section
                .iter()
                .map(|(_, name, value)| (name.as_str(), value.as_str()))
                .filter(|(name, _)| !is_in(removed, name))
                .filter(|(name, _)| {
                    let is_named = named.contains(name.to_ascii_lowercase().as_bytes());
                    is_in(kept, name) || !is_named
                })
                .collect();
            prop_assert!(
                fields.iter().eq(left.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())))
            );
            for (known, name) in Known::NAMES {
                let values: Vec<_> = left
                    .iter()
                    .filter(|(other, _)| other.as_bytes().eq_ignore_ascii_case(name))
                    .map(|(_, value)| value.as_bytes())
                    .collect();
                prop_assert_eq!(fields.has(known), !values.is_empty());
                prop_assert_eq!(fields.get(known), values.first().copied());
                prop_assert_eq!(fields.all(known).collect::<Vec<_>>(), values);
            }
            let mut naive = String::new();
            for (name, value) in left {
                if !is_in(skipped, name) {
                    naive += &format!("{name}: {value}\r\n");
                }
            }
            let mut out = BytesMut::new();
            fields.put_without(KnownSet(skipped), &mut out);
            prop_assert_eq!(str::from_utf8(&out).unwrap(), naive);
            prop_assert!(out.len() <= fields.written_length());
        }
    }
}
