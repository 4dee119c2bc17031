use proptest::{collection::vec, prelude::*, sample::select};

use super::*;
use crate::clock;

const PRIORITY: u8 = 0x2;
const SETTINGS: u8 = 0x4;
const PUSH_PROMISE: u8 = 0x5;
const PING: u8 = 0x6;
const GOAWAY: u8 = 0x7;
const WINDOW_UPDATE: u8 = 0x8;
const ACK: u8 = 0x1;

fn frame(kind: u8, flags: u8, stream: u32, length: usize) -> Vec<u8> {
    let mut bytes = (length as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.resize(HEADER + length, 0xaa);
    bytes
}

/// A client on a clock of its own.
struct Client {
    guard: Guard,
    now: Instant,
    stream: u32,
}

impl Client {
    /// One that has not sent anything.
    fn fresh() -> Client {
        let now = clock::now();
        Client {
            guard: Guard::new(now),
            now,
            stream: 0,
        }
    }

    /// One whose preface has come.
    fn new() -> Client {
        let mut client = Client::fresh();
        client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        client.frame(SETTINGS, 0, 0, 36);
        assert_eq!(client.owed(), None);
        client
    }

    fn send(&mut self, bytes: &[u8]) {
        self.guard.received(bytes, self.now);
    }

    fn frame(&mut self, kind: u8, flags: u8, stream: u32, length: usize) {
        self.send(&frame(kind, flags, stream, length));
    }

    /// Opens a stream.
    fn request(&mut self) -> u32 {
        self.stream = match self.stream {
            0 => 1,
            last => last + 2,
        };
        self.frame(HEADERS, END_HEADERS, self.stream, 40);
        self.stream
    }

    fn wait(&mut self, micros: u64) {
        self.now += Duration::from_micros(micros);
    }

    /// How many microseconds it has owed something for.
    fn owed(&self) -> Option<u64> {
        let since = self.guard.owed_since()?;
        Some((self.now - since).as_micros() as u64)
    }

    /// After how many rounds, with so many microseconds before each, it is a flood.
    fn rounds(&mut self, wait: u64, most: u32, mut round: impl FnMut(&mut Client)) -> u32 {
        for count in 1..=most {
            self.wait(wait);
            round(self);
            if self.guard.is_flooded() {
                return count;
            }
        }
        u32::MAX
    }
}

const NEVER: u32 = u32::MAX;

#[test]
fn the_preface_is_owed_from_the_beginning_until_its_first_frame_has_come() {
    let mut client = Client::fresh();
    client.wait(5);
    assert_eq!(client.owed(), Some(5));
    client.send(b"PRI * HTTP/2.0\r\n\r\nSM");
    client.wait(5);
    assert_eq!(client.owed(), Some(10));
    client.send(b"\r\n\r\n");
    client.wait(5);
    assert_eq!(client.owed(), Some(15));
    let settings = frame(SETTINGS, 0, 0, 6);
    client.send(&settings[..14]);
    assert_eq!(client.owed(), Some(15));
    client.send(&settings[14..]);
    assert_eq!(client.owed(), None);
    // Content in its place is no way to put it off.
    let mut client = Client::fresh();
    client.send(&[b'x'; PREFACE as usize]);
    client.wait(5);
    client.send(&frame(DATA, 0, 1, 100)[..50]);
    assert_eq!(client.owed(), Some(5));
}

#[test]
fn a_frame_is_owed_from_its_first_byte_to_its_last() {
    for (kind, flags) in [
        (HEADERS, END_HEADERS),
        (SETTINGS, 0),
        (PING, 0),
        (0x77, 0xff),
    ] {
        let bytes = frame(kind, flags, 1, 20);
        let mut client = Client::new();
        for byte in &bytes[..bytes.len() - 1] {
            client.send(&[*byte]);
            client.wait(1);
        }
        assert_eq!(client.owed(), Some(bytes.len() as u64 - 1), "{kind}");
        client.send(&bytes[bytes.len() - 1..]);
        assert_eq!(client.owed(), None, "{kind}");
    }
    // One without a payload ends with its header.
    let mut client = Client::new();
    client.frame(SETTINGS, ACK, 0, 0);
    assert_eq!(client.owed(), None);
}

#[test]
fn a_header_block_is_owed_until_its_end() {
    let mut client = Client::new();
    client.frame(HEADERS, END_STREAM, 1, 20);
    for owed in 1..10 {
        client.wait(1);
        assert_eq!(client.owed(), Some(owed));
        client.frame(CONTINUATION, 0, 1, 20);
    }
    // What must not stand in it neither ends it nor puts its end off.
    client.frame(DATA, 0, 1, 20);
    client.send(&frame(DATA, 0, 1, 20)[..10]);
    assert_eq!(client.owed(), Some(9));
    client.send(&frame(DATA, 0, 1, 20)[10..]);
    let last = frame(CONTINUATION, END_HEADERS, 1, 20);
    client.send(&last[..28]);
    assert_eq!(client.owed(), Some(9));
    client.send(&last[28..]);
    assert_eq!(client.owed(), None);
}

#[test]
fn content_is_owed_since_some_came() {
    let mut client = Client::new();
    let bytes = frame(DATA, 0, 1, 1000);
    client.send(&bytes[..5]);
    client.wait(7);
    assert_eq!(client.owed(), Some(7));
    client.send(&bytes[5..9]);
    assert_eq!(client.owed(), Some(0));
    client.wait(7);
    assert_eq!(client.owed(), Some(7));
    client.send(&bytes[9..500]);
    client.wait(3);
    client.send(&[]);
    assert_eq!(client.owed(), Some(3));
    client.send(&bytes[500..]);
    assert_eq!(client.owed(), None);
}

#[test]
fn frames_without_use_are_a_flood() {
    for (kind, flags, stream, length) in [
        (PING, 0, 0, 8),
        (PING, ACK, 0, 8),
        (SETTINGS, 0, 0, 0),
        (SETTINGS, ACK, 0, 0),
        (PRIORITY, 0, 1, 5),
        (WINDOW_UPDATE, 0, 0, 4),
        (WINDOW_UPDATE, 0, 1, 4),
        (PUSH_PROMISE, 0, 1, 20),
        (GOAWAY, 0, 0, 8),
        (0x10, 0, 0, 30),
        (0xff, 0xff, 0, 0),
        (DATA, 0, 1, 0),
        (CONTINUATION, 0, 1, 0),
        (CONTINUATION, END_HEADERS, 1, 10),
        // On a stream that was opened long ago.
        (HEADERS, END_HEADERS, 1, 10),
    ] {
        let flood = |wait, most| {
            let mut client = Client::new();
            client.request();
            client.rounds(wait, most, |client| {
                client.frame(kind, flags, stream, length)
            })
        };
        let what = (kind, flags);
        // The first SETTINGS was one, too.
        assert_eq!(flood(0, 5_000), MOST, "{what:?}");
        // 10,000 a second.
        assert!((4_000..4_500).contains(&flood(100, 10_000)), "{what:?}");
        // 1,000 a second, for a minute.
        assert_eq!(flood(1000, 60_000), NEVER, "{what:?}");
    }
}

#[test]
fn what_is_left_of_a_period_counts_the_next_time() {
    // 1,052 a second, which lasts for a minute.
    let pings = Client::new().rounds(1_900, 10_000, |client| {
        client.frame(PING, 0, 0, 8);
        client.frame(PING, 0, 0, 8);
    });
    assert_eq!(pings, NEVER);
}

#[test]
fn the_reserved_bit_of_a_stream_is_not_part_of_it() {
    let mut client = Client::new();
    client.frame(HEADERS, END_HEADERS, 1 << 31 | 1, 20);
    client.stream = 1;
    let requests = client.rounds(0, 10_000, |client| {
        client.request();
    });
    assert_eq!(requests, NEVER);
}

#[test]
fn continuations_without_end_are_a_flood_and_a_few_are_not() {
    let mut client = Client::new();
    client.frame(HEADERS, 0, 1, 16_384);
    let endless = client.rounds(0, 10_000, |client| client.frame(CONTINUATION, 0, 1, 1));
    assert_eq!(endless, MOST + u32::from(CONTINUATIONS));
    // As many with each request as 80 KiB of headers need.
    let mut client = Client::new();
    let large = client.rounds(10, 20_000, |client| {
        client.stream += 2;
        client.frame(HEADERS, 0, client.stream, 0);
        for _ in 1..CONTINUATIONS {
            client.frame(CONTINUATION, 0, client.stream, 0);
        }
        client.frame(CONTINUATION, END_HEADERS, client.stream, 0);
    });
    assert_eq!(large, NEVER);
}

#[test]
fn rapid_reset_is_a_flood_and_200_at_once_are_none() {
    let reset = |client: &mut Client| {
        let stream = client.request();
        client.frame(RST_STREAM, 0, stream, 4);
    };
    // 10,000 a second are found within 30 ms, 1,000 a second within 300.
    assert!((250..300).contains(&Client::new().rounds(100, 10_000, reset)));
    assert!((250..300).contains(&Client::new().rounds(1_000, 10_000, reset)));
    // Answering every third in between does not hide it.
    let mut answered = 0;
    let partly = Client::new().rounds(100, 10_000, |client| {
        reset(client);
        answered += 1;
        if answered % 3 == 0 {
            client.guard.served();
            client.guard.served();
        }
    });
    assert!(partly < 1_000, "{partly}");
    // 50 a second for ten minutes.
    assert_eq!(Client::new().rounds(20_000, 30_000, reset), NEVER);

    // A browser leaves its pages: each stream had a PRIORITY and a WINDOW_UPDATE.
    let mut client = Client::new();
    let leaves = client.rounds(4_000_000, 100, |client| {
        let streams: Vec<u32> = (0..200).map(|_| client.request()).collect();
        for stream in &streams {
            client.frame(PRIORITY, 0, *stream, 5);
            client.frame(WINDOW_UPDATE, 0, *stream, 4);
        }
        for stream in streams {
            client.frame(RST_STREAM, 0, stream, 4);
        }
    });
    assert_eq!(leaves, NEVER);

    // A client gives every stream up as soon as its response has begun.
    let mut client = Client::new();
    let impatient = client.rounds(10, 100_000, |client| {
        let stream = client.request();
        client.guard.served();
        client.frame(RST_STREAM, 0, stream, 4);
    });
    assert_eq!(impatient, NEVER);
}

#[test]
fn streams_that_the_client_has_us_reset_are_a_flood() {
    // "MadeYouReset" (CVE-2025-8671): a WINDOW_UPDATE of zero makes it our reset.
    let mut client = Client::new();
    let made = client.rounds(10, 10_000, |client| {
        let stream = client.request();
        client.frame(WINDOW_UPDATE, 0, stream, 4);
    });
    assert!(made < 4_100, "{made}");
}

#[test]
fn what_conformance_tests_send_is_no_flood() {
    let mut client = Client::new();
    for kind in 0..=u8::MAX {
        client.frame(kind, 0, 1, 0);
        client.frame(kind, 0xff, 0, 20);
    }
    assert!(!client.guard.is_flooded());
}

#[test]
fn whoever_is_served_may_acknowledge_it() {
    // 1 GiB/s down, in pieces of 64 KiB; each DATA frame is acknowledged twice, each piece is
    // measured with a PING, and so do we.
    let mut client = Client::new();
    client.request();
    let download = client.rounds(60, 40_000, |client| {
        client.guard.served();
        for _ in 0..4 {
            client.frame(WINDOW_UPDATE, 0, 0, 4);
            client.frame(WINDOW_UPDATE, 0, 1, 4);
        }
        client.frame(PING, 0, 0, 8);
        client.frame(PING, ACK, 0, 8);
    });
    assert_eq!(download, NEVER);
    // A gRPC stream of 10,000 messages a second each way, all of it acknowledged.
    let mut client = Client::new();
    client.request();
    let messages = client.rounds(100, 50_000, |client| {
        client.frame(DATA, 0, 1, 12);
        client.guard.served();
        client.frame(WINDOW_UPDATE, 0, 0, 4);
        client.frame(WINDOW_UPDATE, 0, 1, 4);
        client.frame(PING, 0, 0, 8);
    });
    assert_eq!(messages, NEVER);
    // 20,000 requests a second, with all that may come with one.
    let mut client = Client::new();
    let requests = client.rounds(50, 40_000, |client| {
        let stream = client.request();
        client.frame(WINDOW_UPDATE, 0, stream, 4);
        client.frame(PRIORITY, 0, stream, 5);
        client.frame(0x10, 0, 0, 20);
        client.frame(DATA, 0, stream, 100);
        client.frame(HEADERS, END_HEADERS | END_STREAM, stream, 20);
        client.guard.served();
    });
    assert_eq!(requests, NEVER);
}

#[test]
fn uploads_in_pieces_of_any_size_are_no_flood() {
    for (length, wait) in [(1, 10), (12, 100), (63, 10), (64, 10), (16_384, 20)] {
        let mut client = Client::new();
        client.request();
        let upload = client.rounds(wait, 20_000, |client| client.frame(DATA, 0, 1, length));
        assert_eq!(upload, NEVER, "{length}");
        client.frame(DATA, END_STREAM, 1, 0);
        assert!(!client.guard.is_flooded());
    }
    // Requests that end with an empty frame.
    let mut client = Client::new();
    let empty = client.rounds(10, 100_000, |client| {
        let stream = client.request();
        client.frame(DATA, END_STREAM, stream, 0);
    });
    assert_eq!(empty, NEVER);
}

#[test]
fn a_byte_of_content_pays_for_nothing_and_some_of_it_for_one_frame() {
    let beside = |length| {
        Client::new().rounds(10, 20_000, |client| {
            client.frame(DATA, 0, 1, length);
            client.frame(PING, 0, 0, 8);
        })
    };
    assert!(beside(1) < 4_100);
    assert!(beside(63) < 4_100);
    assert_eq!(beside(64), NEVER);
}

#[test]
fn a_flood_stays_one_and_what_was_saved_is_bounded() {
    let mut client = Client::new();
    for _ in 0..100_000 {
        client.guard.served();
    }
    client.wait(3_600_000_000);
    let ping = |client: &mut Client| client.frame(PING, 0, 0, 8);
    assert_eq!(client.rounds(0, 5_000, ping), MOST + 1);
    client.wait(3_600_000_000);
    client.guard.served();
    client.request();
    assert!(client.guard.is_flooded());
}

#[test]
fn it_is_small() {
    assert!(size_of::<Guard>() <= 80, "{}", size_of::<Guard>());
}

/// Frames as they are, or nearly.
fn frames() -> impl Strategy<Value = Vec<u8>> {
    let length = select(&[0, 0, 1, 4, 5, 8, 63, 64, 300][..]);
    let flags = select(&[0, ACK, END_HEADERS, ACK | END_HEADERS, 0xff][..]);
    let one = (0u8..11, flags, 0u32..6, length)
        .prop_map(|(kind, flags, stream, length)| frame(kind, flags, stream, length));
    let junk = vec(any::<u8>(), 0..30);
    vec(prop_oneof![20 => one, 1 => junk], 0..20).prop_map(|frames| frames.concat())
}

proptest! {
    #[test]
    fn however_the_bytes_are_cut_the_state_is_the_same(
        turns in vec((frames(), 0u64..5_000, 0u32..3, vec(any::<prop::sample::Index>(), 0..8)), 1..8),
        budget in 0..MOST,
    ) {
        let mut whole = Client::fresh();
        whole.guard.budget = budget;
        let mut cut = whole.guard.clone();
        let mut bytewise = whole.guard.clone();
        let mut preface = vec![b'x'; PREFACE as usize];
        for (frames, wait, served, cuts) in turns {
            let bytes = [std::mem::take(&mut preface), frames].concat();
            whole.wait(wait);
            whole.send(&bytes);
            let mut cuts: Vec<usize> =
                cuts.iter().map(|at| at.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            for pair in cuts.windows(2) {
                cut.received(&bytes[pair[0]..pair[1]], whole.now);
            }
            for byte in bytes.chunks(1) {
                bytewise.received(byte, whole.now);
            }
            for _ in 0..served {
                whole.guard.served();
                cut.served();
                bytewise.served();
            }
            prop_assert_eq!(&cut, &whole.guard);
            prop_assert_eq!(&bytewise, &whole.guard);
        }
    }

    /// Lengths, types and times may be anything; the times may even go back.
    #[test]
    fn no_bytes_are_too_odd(turns in vec((vec(any::<u8>(), 0..200), any::<u32>()), 0..20)) {
        let mut client = Client::fresh();
        let start = client.now;
        for (bytes, micros) in turns {
            client.now = start + Duration::from_micros(micros.into());
            client.send(&bytes);
            prop_assert!(client.guard.left > 0);
            prop_assert!(client.guard.budget <= MOST);
        }
    }
}
