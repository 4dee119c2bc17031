//! Fields: what is stripped is gone, and what is written is what was read.

#![no_main]

use bytes::{Bytes, BytesMut};
use canary_router::proxy::{
    fields::{Known, KnownSet},
    headers,
    http1::head,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|section: &[u8]| {
    let lines = section.iter().filter(|byte| **byte == b'\n').count();
    let section = Bytes::copy_from_slice(section);
    let Ok(mut fields) = head::fields(&section, lines) else {
        return;
    };
    let named: Vec<Vec<u8>> = fields
        .all(Known::Connection)
        .flat_map(|value| value.split(|byte| *byte == b','))
        .map(|token| token.trim_ascii().to_ascii_lowercase())
        .collect();
    headers::strip_hop_by_hop(&mut fields);
    let mut naive = Vec::new();
    for (name, value) in fields.iter() {
        let name = name.to_ascii_lowercase();
        let kept = [&b"host"[..], b"content-length", b"trailer"];
        assert!(kept.contains(&&name[..]) || !named.contains(&name));
        let gone = [
            "connection",
            "keep-alive",
            "te",
            "transfer-encoding",
            "upgrade",
        ];
        assert!(!gone.iter().any(|gone| gone.as_bytes() == name));
        assert!(
            !name.starts_with(b"proxy-")
                || !matches!(name.len(), 16 | 18 | 19)
                || !matches!(
                    &name[6..],
                    b"connection" | b"authenticate" | b"authorization"
                )
        );
        if name != b"host" {
            naive.extend_from_slice(name.as_slice());
            naive.extend_from_slice(b": ");
            naive.extend_from_slice(value);
            naive.extend_from_slice(b"\r\n");
        }
    }
    let mut out = BytesMut::new();
    fields.put_without(KnownSet::of(&[Known::Host]), &mut out);
    assert!(out.len() <= fields.written_length());
    // It reads as what it was.
    let written = [&out[..], b"\r\n"].concat();
    let again = head::fields(&Bytes::from(written), lines).expect("what we write can be read");
    let without_host = fields
        .iter()
        .filter(|(name, _)| !name.eq_ignore_ascii_case(b"host"));
    assert!(again.iter().eq(without_host));
    assert!(out.eq_ignore_ascii_case(&naive) && out.len() == naive.len());
});
