//! Cookies: what a client is known by is what we have signed for this epoch, and what we set is read back.

#![no_main]

use std::{sync::LazyLock, time::Duration};

use bytes::{Bytes, BytesMut};
use canary_router::{
    config::{SameSite, Sticky, StickyCookie},
    policy::Weight,
    proxy::{
        fields::{Fields, Known},
        headers,
        http1::head::{self, Search},
        message::RequestHead,
        split::{Lot, Lots},
    },
    state::Split,
};
use libfuzzer_sys::fuzz_target;

const NAME: &str = "canary-router";
/// Cookies that we have given out stand in the input as one byte each, from this one on.
const GIVEN_OUT: u8 = 0x10;
const EPOCHS: u64 = 4;

static STICKY: LazyLock<Sticky> = LazyLock::new(|| {
    Sticky::Cookie(StickyCookie {
        name: NAME.into(),
        max_age: Duration::from_secs(60),
        secure: true,
        same_site: SameSite::Lax,
    })
});
static OURS: LazyLock<Lots> = LazyLock::new(|| Lots::new(0xfeed));

/// Of each epoch the value of a cookie, and what its client is known by. The last ones are another installation's.
static GIVEN: LazyLock<Vec<(Vec<u8>, Option<u64>)>> = LazyLock::new(|| {
    let others = Lots::new(0xbeef);
    let given = |lots: &Lots, epoch| {
        let lot = draw(lots, epoch, &request(b""));
        (set(&lot).expect("it is new").to_vec(), lot.key)
    };
    let ours = (0..EPOCHS).map(|epoch| given(&OURS, epoch));
    ours.chain((0..EPOCHS).map(|epoch| given(&others, epoch)))
        .collect()
});

fuzz_target!(|input: &[u8]| {
    let Some((&epoch, rest)) = input.split_first() else {
        return;
    };
    let epoch = u64::from(epoch) % EPOCHS;
    let mut lines = Vec::new();
    for &byte in rest {
        match GIVEN.get(usize::from(byte.wrapping_sub(GIVEN_OUT))) {
            Some((value, _)) => lines.extend_from_slice(value),
            None => lines.push(byte),
        }
    }
    let section = Bytes::from([&lines[..], b"\r\n\r\n"].concat());
    let lines = section.iter().filter(|byte| **byte == b'\n').count();
    let Ok(fields) = head::fields(&section, lines) else {
        return;
    };
    let said = naive(&fields);
    let names = [&b"a"[..], b"A", b"", b"a b", NAME.as_bytes()];
    for name in names {
        let read = headers::cookies(&fields, name);
        let naive = said.iter().filter(|(known, _)| known == name);
        assert!(read.eq(naive.map(|(_, value)| &value[..])));
    }

    let head = RequestHead {
        headers: fields,
        ..request(b"")
    };
    let lot = draw(&OURS, epoch, &head);
    let (genuine, key) = &GIVEN[epoch as usize];
    // The case of the digits of a signature is nobody's secret.
    let is_genuine = |value: &[u8]| {
        let (what, signature) = value.split_at(value.len().saturating_sub(64));
        let (genuine_what, genuine_signature) = genuine.split_at(genuine.len() - 64);
        what == genuine_what && signature.eq_ignore_ascii_case(genuine_signature)
    };
    let has_it = said
        .iter()
        .any(|(name, value)| name == NAME.as_bytes() && is_genuine(value));
    assert_eq!(!lot.is_new, has_it);
    match set(&lot) {
        None => assert_eq!(lot.key, *key),
        Some(value) => {
            let cookie = [b"cookie: ", NAME.as_bytes(), b"=", value, b"\r\n"].concat();
            let again = draw(&OURS, epoch, &request(&cookie));
            assert!(!again.is_new && again.key == lot.key);
            let elsewhere = draw(&OURS, (epoch + 1) % EPOCHS, &request(&cookie));
            assert!(elsewhere.is_new);
        }
    }
});

/// All cookies that are said, in order.
fn naive(fields: &Fields) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut all = Vec::new();
    for line in fields.all(Known::Cookie) {
        for pair in line.split(|byte| *byte == b';') {
            let pair = pair.trim_ascii();
            // A name may hold what ends it for others: nobody has such a one configured.
            let end = pair.iter().position(|byte| *byte == b'=');
            if let Some(end) = end {
                all.push((pair[..end].to_vec(), pair[end + 1..].to_vec()));
            }
        }
    }
    all
}

fn draw(lots: &Lots, epoch: u64, head: &RequestHead) -> Lot {
    let split = Split {
        rolled_back: false,
        weight: Weight::new(5000).expect("it is one"),
        epoch,
        tick: None,
        since: 0,
    };
    lots.draw(split, Some(&STICKY), head, || {
        unreachable!("a cookie is asked for")
    })
}

fn request(lines: &[u8]) -> RequestHead {
    let mut bytes =
        BytesMut::from(&[b"GET / HTTP/1.1\r\nhost: h\r\n", lines, b"\r\n"].concat()[..]);
    head::parse_request(&mut bytes, &mut Search::default(), 1 << 16)
        .ok()
        .flatten()
        .expect("it is one")
}

/// The value of the cookie that is set, which is a line.
fn set(lot: &Lot) -> Option<&[u8]> {
    let line = lot.cookie.as_deref()?;
    assert!(line.iter().all(|byte| matches!(byte, b' '..=b'~')));
    let value = line.strip_prefix(NAME.as_bytes())?.strip_prefix(b"=")?;
    let end = value.iter().position(|byte| *byte == b';');
    Some(&value[..end.expect("attributes follow")])
}
