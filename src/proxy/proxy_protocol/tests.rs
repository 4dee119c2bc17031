use std::{
    pin::pin,
    task::{Context, Poll, Waker},
};

use proptest::{collection::vec, prelude::*, sample::select};
use tokio::io::AsyncWriteExt;

use super::*;

const BEHIND: &[u8] = b"GET / HTTP/1.1\r\n";

/// What is read, and what is left, of bytes that are all there.
fn read_of(mut bytes: &[u8]) -> (Result<Option<SocketAddr>, NoHeader>, &[u8]) {
    let Poll::Ready(read) = poll(&mut bytes) else {
        panic!("a slice is always ready");
    };
    (read, bytes)
}

fn poll<R: AsyncRead + Unpin>(io: &mut R) -> Poll<Result<Option<SocketAddr>, NoHeader>> {
    pin!(read(io)).poll(&mut Context::from_waker(Waker::noop()))
}

fn is_cut(read: &Result<Option<SocketAddr>, NoHeader>) -> bool {
    matches!(read, Err(NoHeader::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof)
}

fn version_2(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
    let length = (block.len() as u16).to_be_bytes();
    [&VERSION_2[..], &[command, family], &length, block].concat()
}

fn block(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let octets = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    [
        octets(source.ip()),
        octets(destination.ip()),
        source.port().to_be_bytes().to_vec(),
        destination.port().to_be_bytes().to_vec(),
    ]
    .concat()
}

fn v4() -> Vec<u8> {
    block(
        "192.0.2.1:56324".parse().unwrap(),
        "198.51.100.2:443".parse().unwrap(),
    )
}

fn v6() -> Vec<u8> {
    block(
        "[2001:db8::1]:56324".parse().unwrap(),
        "[2001:db8::2]:443".parse().unwrap(),
    )
}

/// Headers that are good, and whom they name.
fn good() -> Vec<(Vec<u8>, &'static str)> {
    let longest = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
    // ALPN "h2", and padding.
    let vectors = [&b"\x01\x00\x02h2\x04\x01\x00"[..], &[0; 256]].concat();
    let mut all = vec![];
    for (line, client) in [
        (
            "PROXY TCP4 192.168.0.1 192.168.0.11 56324 443",
            "192.168.0.1:56324",
        ),
        (
            "PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535",
            "255.255.255.255:65535",
        ),
        ("PROXY TCP4 0.0.0.0 0.0.0.0 0 0", "0.0.0.0:0"),
        (
            "PROXY TCP6 2001:db8::1 2001:DB8::2 1 65535",
            "[2001:db8::1]:1",
        ),
        ("PROXY TCP6 :: :: 0 0", "[::]:0"),
        (
            "PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2",
            "[::ffff:192.0.2.1]:1",
        ),
        ("PROXY UNKNOWN", ""),
        ("PROXY UNKNOWN ", ""),
        ("PROXY UNKNOWN \r\r", ""),
        ("PROXY UNKNOWN a  b \n \r c", ""),
    ] {
        all.push((format!("{line}\r\n").into_bytes(), client));
    }
    for (protocol, client) in [
        ("TCP6", "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535"),
        ("UNKNOWN", ""),
    ] {
        let line = format!("PROXY {protocol} {longest} {longest} 65535 65535\r\n");
        all.push((line.into_bytes(), client));
    }
    all.push((b"PROXY UNKNOWN \xff\xfe\r\n".to_vec(), ""));
    for (command, family, block, client) in [
        (0x21, 0x11, v4(), "192.0.2.1:56324"),
        (0x21, 0x12, v4(), "192.0.2.1:56324"),
        (0x21, 0x21, v6(), "[2001:db8::1]:56324"),
        (0x21, 0x22, v6(), "[2001:db8::1]:56324"),
        (
            0x21,
            0x11,
            [&v4()[..], &vectors].concat(),
            "192.0.2.1:56324",
        ),
        (
            0x21,
            0x21,
            [&v6()[..], &vectors].concat(),
            "[2001:db8::1]:56324",
        ),
        (
            0x21,
            0x11,
            [&v4()[..], &[7; MAX_BLOCK - 12]].concat(),
            "192.0.2.1:56324",
        ),
        (0x21, 0x31, vec![b'/'; 216], ""),
        (0x21, 0x32, vec![b'/'; 216], ""),
        (0x21, 0x00, vec![], ""),
        (0x21, 0x00, vectors.clone(), ""),
        // A transport that nobody knows: the addresses are to be ignored.
        (0x21, 0x10, v4(), ""),
        (0x21, 0x01, vec![], ""),
        (0x20, 0x00, vec![], ""),
        (0x20, 0x11, v4(), ""),
        // Of a health check the family is ignored, whatever it is.
        (0x20, 0xff, vec![1, 2, 3], ""),
        (0x20, 0x11, vec![], ""),
    ] {
        all.push((version_2(command, family, &block), client));
    }
    all
}

#[test]
fn good_headers_name_their_client_and_nothing_behind_them_is_read() {
    for (header, client) in good() {
        let shown = header.escape_ascii().to_string();
        let bytes = [&header[..], BEHIND].concat();
        let (read, left) = read_of(&bytes);
        assert_eq!(read.expect(&shown), client.parse().ok(), "{shown}");
        assert_eq!(left, BEHIND, "{shown}");
    }
}

#[tokio::test]
async fn a_header_that_is_cut_anywhere_is_waited_for_and_missed_at_the_end() {
    for (header, client) in good() {
        for end in 0..header.len() {
            assert!(is_cut(&read_of(&header[..end]).0), "{end}");
            let (mut sender, mut receiver) = tokio::io::duplex(1 << 14);
            sender.write_all(&header[..end]).await.unwrap();
            assert!(poll(&mut receiver).is_pending(), "{end}");
        }
        // Byte by byte it is the same.
        let (mut sender, mut receiver) = tokio::io::duplex(1);
        let (sent, read) = tokio::join!(sender.write_all(&header), read(&mut receiver));
        sent.unwrap();
        assert_eq!(read.unwrap(), client.parse().ok());
    }
}

#[test]
fn what_is_no_header_is_told_by_its_first_bytes() {
    for bytes in [
        &b"GET / HTTP/1.1\r\n"[..],
        b"PRI * HTTP/2.0\r\n\r\n",
        b"\x16\x03\x01",
        b"P ",
        b"PROX ",
        b"PROXY\t",
        b"PROXYTCP4",
        b"proxy ",
        b" PROXY ",
        b"\r\n\r\n\0\r\nQUIX",
        b"\r\n\r\nGET",
        b"\n",
    ] {
        let (read, _) = read_of(bytes);
        assert!(
            matches!(read, Err(NoHeader::Missing)),
            "{}",
            bytes.escape_ascii()
        );
    }
    assert!(is_cut(&read_of(b"").0));
}

#[test]
fn a_malformed_line_is_refused() {
    for line in [
        "PROXY TCP4 192.0.2.1 192.0.2.2 1 2 ",
        "PROXY TCP4 192.0.2.1 192.0.2.2 1 2 3",
        "PROXY TCP4 192.0.2.1 192.0.2.2 1 ",
        "PROXY TCP4 192.0.2.1 192.0.2.2 1",
        "PROXY TCP4 192.0.2.1 192.0.2.2",
        "PROXY TCP4 192.0.2.1",
        "PROXY TCP4 ",
        "PROXY  TCP4 192.0.2.1 192.0.2.2 1 2",
        "PROXY TCP4  192.0.2.1 192.0.2.2 1 2",
        "PROXY TCP4 192.0.2.1\t192.0.2.2 1 2",
        "PROXY tcp4 192.0.2.1 192.0.2.2 1 2",
        "PROXY TCP5 192.0.2.1 192.0.2.2 1 2",
        "PROXY UDP4 192.0.2.1 192.0.2.2 1 2",
        "PROXY UNKNOWNS",
        "PROXY UNKNOW ",
        "PROXY unknown",
        "PROXY       ",
        "PROXY TCP4 2001:db8::1 2001:db8::2 1 2",
        "PROXY TCP4 192.0.2.1 2001:db8::2 1 2",
        "PROXY TCP4 ::ffff:192.0.2.1 192.0.2.2 1 2",
        "PROXY TCP6 192.0.2.1 192.0.2.2 1 2",
        "PROXY TCP6 [::1] ::2 1 2",
        "PROXY TCP6 fe80::1%eth0 ::2 1 2",
        "PROXY TCP6 1::2::3 ::2 1 2",
        "PROXY TCP6 1:2:3:4:5:6:7 ::2 1 2",
        "PROXY TCP6 12345::1 ::2 1 2",
        "PROXY TCP4 192.0.2.01 192.0.2.2 1 2",
        "PROXY TCP4 192.0.2 192.0.2.2 1 2",
        "PROXY TCP4 192.0.2.256 192.0.2.2 1 2",
        "PROXY TCP4 192.0.2.1. 192.0.2.2 1 2",
        "PROXY TCP4 example.org 192.0.2.2 1 2",
        "PROXY TCP4 192.0.2.1 192.0.2.2 65536 2",
        "PROXY TCP4 192.0.2.1 192.0.2.2 1 65536",
        "PROXY TCP4 192.0.2.1 192.0.2.2 01 2",
        "PROXY TCP4 192.0.2.1 192.0.2.2 1 00",
        "PROXY TCP4 192.0.2.1 192.0.2.2 +1 2",
        "PROXY TCP4 192.0.2.1 192.0.2.2 1 -2",
        "PROXY TCP4 192.0.2.1 192.0.2.2 0x1 2",
        "PROXY TCP4 192.0.2.1 192.0.2.2  2",
        "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r",
        "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\nGET",
        "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\rGET",
        "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\0",
        "PROXY TCP4 192.0.2.1 192.0.2.2 1 \u{664}",
    ] {
        let bytes = format!("{line}\r\n");
        let (read, left) = read_of(bytes.as_bytes());
        assert!(matches!(read, Err(NoHeader::Malformed(_))), "{line:?}");
        assert!(left.is_empty(), "{line:?}");
    }
}

#[test]
fn a_line_ends_within_107_bytes() {
    for (length, good) in [(105, true), (106, false), (107, false), (200, false)] {
        for filler in ["x", "\r", "\n", " "] {
            let mut line = format!("PROXY UNKNOWN {}", filler.repeat(200));
            line.truncate(length);
            let bytes = line + "\r\n";
            let (read, left) = read_of(bytes.as_bytes());
            match good {
                true => assert!(matches!(read, Ok(None)) && left.is_empty()),
                false => assert!(matches!(read, Err(NoHeader::Malformed(_))), "{filler:?}"),
            }
            assert!(bytes.len() - left.len() <= MAX_LINE);
        }
    }
}

#[test]
fn a_malformed_block_is_refused() {
    for (command, family, block) in [
        (0x11, 0x11, v4()),
        (0x31, 0x11, v4()),
        (0x01, 0x11, v4()),
        (0x22, 0x11, v4()),
        (0x2f, 0x11, v4()),
        (0x21, 0x13, v4()),
        (0x21, 0x23, v6()),
        (0x21, 0x0f, vec![]),
        (0x21, 0x41, v4()),
        (0x21, 0xf0, v4()),
        (0x21, 0x11, v4()[..11].to_vec()),
        (0x21, 0x11, vec![]),
        (0x21, 0x21, v6()[..35].to_vec()),
        (0x21, 0x21, v4()),
        (0x21, 0x11, vec![0; MAX_BLOCK + 1]),
        (0x20, 0x00, vec![0; MAX_BLOCK + 1]),
        (0x21, 0x00, vec![0; 65535]),
    ] {
        let bytes = version_2(command, family, &block);
        let (read, left) = read_of(&bytes);
        let shown = (command, family, block.len());
        assert!(matches!(read, Err(NoHeader::Malformed(_))), "{shown:x?}");
        // It is known before the block is read.
        assert_eq!(left.len(), block.len(), "{shown:x?}");
    }
}

/// Bytes that are nearly a header.
fn odd() -> impl Strategy<Value = Vec<u8>> {
    let starts = [
        &b""[..],
        b"PROXY ",
        b"PROXY TCP4 ",
        b"PROXY TCP6 ::",
        b"PROXY UNKNOWN",
        VERSION_2,
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0",
    ];
    let rest = prop_oneof![
        vec(any::<u8>(), 0..200),
        vec(select(&b"\r\n 12.:P\0\x21"[..]), 0..200),
    ];
    (select(starts.to_vec()), rest).prop_map(|(start, rest)| [start, &rest].concat())
}

proptest! {
    #[test]
    fn any_addresses_are_read_in_both_versions(
        source in any::<SocketAddr>(),
        destination in any::<SocketAddr>(),
        vectors in vec(any::<u8>(), 0..300),
    ) {
        let client = SocketAddr::new(source.ip(), source.port());
        let destination_ip = match source.is_ipv4() {
            true => Ipv4Addr::LOCALHOST.into(),
            false => IpAddr::from(Ipv6Addr::LOCALHOST),
        };
        let destination = SocketAddr::new(destination_ip, destination.port());
        let (protocol, family) = match source.is_ipv4() {
            true => ("TCP4", 0x11),
            false => ("TCP6", 0x21),
        };
        let line = format!(
            "PROXY {protocol} {} {} {} {}\r\n",
            source.ip(), destination.ip(), source.port(), destination.port()
        );
        let block = [block(source, destination), vectors].concat();
        for header in [line.into_bytes(), version_2(0x21, family, &block)] {
            let bytes = [&header[..], BEHIND].concat();
            let (read, left) = read_of(&bytes);
            prop_assert_eq!(read.unwrap(), Some(client));
            prop_assert_eq!(left, BEHIND);
        }
    }

    #[test]
    fn no_bytes_are_too_odd(bytes in odd()) {
        let (read, left) = read_of(&bytes);
        let consumed = bytes.len() - left.len();
        prop_assert!(consumed <= 16 + MAX_BLOCK);
        if let Ok(client) = read {
            // The header is all of it, and the same without what is behind.
            let (again, left) = read_of(&bytes[..consumed]);
            prop_assert_eq!(again.unwrap(), client);
            prop_assert!(left.is_empty());
            prop_assert!(is_cut(&read_of(&bytes[..consumed - 1]).0));
        }
    }
}
