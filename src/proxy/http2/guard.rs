//! Watches what a client sends on an HTTP/2 connection, beside the `h2` crate, which understands it.
//!
//! `h2` bounds what a client can have us keep. It bounds neither how long a client may let us wait for
//! the rest of what it has begun, nor how many frames it may send that bring nothing; that is seen
//! here. Frames are known by their headers alone (RFC 9113 section 4.1), and payloads are skipped, so a
//! frame costs the same whatever its length. Nothing is refused here, not even a wrong preface, and
//! nothing closed: `h2` does the one, and whoever asks the [`Guard`] the other.
//!
//! However the bytes are cut, the state is the same.

use std::time::{Duration, Instant};

/// How long the preface is (RFC 9113 section 3.4).
const PREFACE: u32 = 24;
/// How long a frame header is (RFC 9113 section 4.1).
const HEADER: usize = 9;

// Frame types and flags (RFC 9113 section 6).
const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;
const RST_STREAM: u8 = 0x3;
const CONTINUATION: u8 = 0x9;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;

/// What frames are paid from: a client that was quiet for a while has this much. It is more than the
/// odd frames of any client that is alive, and as frames of a few bytes it is less than 100 KB.
const MOST: u32 = 4_000;
/// So much time brings 1: a thousand PINGs a second are less than a hundredth of a core.
const PERIOD: Duration = Duration::from_millis(1);
/// A frame that by itself is of no use.
const USELESS: u32 = 1;
/// A stream that is given up has cost us a request, which is as much as very many frames. 200 at once
/// must go through (a page that is left, a gRPC client that shuts down); rapid reset (CVE-2023-44487)
/// is found after 250, or beyond 62 a second. The HEADERS that opened the stream bring nothing to set
/// against it, nor against a stream that a client has us reset: what a stream was worth shows when it
/// is answered.
const RESET: u32 = 16;
/// A piece of a response. Up to 64 KiB of it are four DATA frames of the smallest maximum size, and an
/// eager client acknowledges each with two WINDOW_UPDATEs and measures with a PING or two (gRPC). And
/// who gives up less than half of its streams once they were answered is no attacker.
const SERVED: u32 = 16;
/// Content in a frame of some size.
const CONTENT: u32 = 1;
/// From this length on. Less may be a message of a stream of small ones, so it costs nothing, but must
/// not pay for other frames: or a byte would pay for a PING.
const SUBSTANTIAL: u32 = 64;
/// Header blocks of 64 KiB and more need that many CONTINUATIONs of the smallest maximum size; beyond,
/// they are cut small without need.
const CONTINUATIONS: u8 = 4;

/// What a client owes, and whether it wastes our time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    /// What is being received,
    part: Part,
    /// and how much of it is still to come.
    left: u32,
    /// The header of the current frame, as far as it has come.
    header: [u8; HEADER],
    /// The first frame, which is part of the preface, has come.
    greeted: bool,
    /// A header block is open, with so many CONTINUATIONs so far.
    block: Option<u8>,
    /// The highest stream that was opened.
    opened: u32,
    owed: Option<Instant>,
    /// When some of a DATA frame last came.
    content: Option<Instant>,
    /// What is left to pay frames from, when it was last filled up.
    budget: u32,
    filled: Instant,
    flooded: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Preface,
    Header,
    Payload,
}

/// A frame header.
struct Frame {
    length: u32,
    kind: u8,
    flags: u8,
    stream: u32,
}

impl Guard {
    /// For a connection that begins now, with the preface.
    pub fn new(now: Instant) -> Guard {
        Guard {
            part: Part::Preface,
            left: PREFACE,
            header: [0; HEADER],
            greeted: false,
            block: None,
            opened: 0,
            owed: Some(now),
            content: None,
            budget: MOST,
            filled: now,
            flooded: false,
        }
    }

    /// Bytes came in, in their order, however cut.
    pub fn received(&mut self, mut bytes: &[u8], now: Instant) {
        while !bytes.is_empty() {
            let (here, rest) = bytes.split_at(bytes.len().min(self.left as usize));
            bytes = rest;
            self.owed.get_or_insert(now);
            if self.part == Part::Payload && self.header[3] == DATA {
                self.content = Some(now);
            }
            if self.part == Part::Header {
                let start = HEADER - self.left as usize;
                self.header[start..start + here.len()].copy_from_slice(here);
            }
            self.left -= here.len() as u32;
            match (self.part, self.left) {
                (Part::Preface, 0) => self.expect_header(),
                (Part::Header, 0) => self.frame_began(now),
                (Part::Payload, left) => self.payload_came(left, now),
                (Part::Preface | Part::Header, _) => {}
            }
        }
    }

    fn expect_header(&mut self) {
        self.part = Part::Header;
        self.left = HEADER as u32;
    }

    fn frame_began(&mut self, now: Instant) {
        let frame = self.frame();
        self.charge(&frame, now);
        match frame.kind {
            HEADERS | CONTINUATION if frame.flags & END_HEADERS != 0 => self.block = None,
            HEADERS => self.block = Some(0),
            CONTINUATION => self.block = self.block.map(|so_far| so_far.saturating_add(1)),
            _ => {}
        }
        if frame.kind == HEADERS {
            self.opened = self.opened.max(frame.stream);
        }
        self.part = Part::Payload;
        self.payload_came(frame.length, now);
    }

    fn payload_came(&mut self, left: u32, now: Instant) {
        self.left = left;
        let owes_more = !self.greeted || self.block.is_some();
        if left == 0 {
            self.greeted = true;
            if self.block.is_none() {
                self.owed = None;
            }
            self.expect_header();
        } else if self.frame().kind == DATA && !owes_more {
            self.owed = Some(now);
        }
    }

    fn frame(&self) -> Frame {
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = self.header;
        Frame {
            length: u32::from_be_bytes([0, l0, l1, l2]),
            kind,
            flags,
            // The highest bit is reserved.
            stream: u32::from_be_bytes([s0, s1, s2, s3]) & (u32::MAX >> 1),
        }
    }

    fn charge(&mut self, frame: &Frame, now: Instant) {
        let cost = match frame.kind {
            DATA if frame.length >= SUBSTANTIAL => {
                self.earn(CONTENT);
                0
            }
            DATA if frame.length > 0 || frame.flags & END_STREAM != 0 => 0,
            // A stream's identifier is higher than those before it (RFC 9113 section 5.1.1).
            HEADERS if frame.stream > self.opened => 0,
            CONTINUATION if self.block.is_some_and(|so_far| so_far < CONTINUATIONS) => 0,
            RST_STREAM => RESET,
            // Trailers among them: hardly any request has some, and none twice.
            _ => USELESS,
        };
        if cost == 0 {
            return;
        }
        self.fill_up(now);
        match self.budget.checked_sub(cost) {
            Some(left) => self.budget = left,
            None => self.flooded = true,
        }
    }

    fn fill_up(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.filled);
        let periods = (elapsed.as_nanos() / PERIOD.as_nanos()).min(MOST.into()) as u32;
        self.earn(periods);
        // What is left of a period counts the next time, but for one who has enough anyway.
        self.filled = match periods {
            MOST => now,
            periods => self.filled + PERIOD * periods,
        };
    }

    fn earn(&mut self, much: u32) {
        self.budget = MOST.min(self.budget + much);
    }

    /// Something of use was done: a response head was sent, or a piece of its content, of at most
    /// 64 KiB. It pays for frames of the client.
    pub fn served(&mut self) {
        self.earn(SERVED);
    }

    /// Since when the client owes the rest of something that it began: the preface, of which the first
    /// frame is a part (RFC 9113 section 3.4), a frame, or a header block (HEADERS without END_HEADERS,
    /// up to the CONTINUATION with it). Of a DATA frame: since its last byte came. It is the client's
    /// debt only as long as its bytes are read.
    pub fn owed_since(&self) -> Option<Instant> {
        self.owed
    }

    /// When some of the content of a request last came, be it in the middle of a frame.
    pub fn content_came(&self) -> Option<Instant> {
        self.content
    }

    /// Whether the client has sent more frames that cost us work and bring nothing than anybody needs.
    /// Once it has, this stays so.
    pub fn is_flooded(&self) -> bool {
        self.flooded
    }
}

#[cfg(test)]
mod tests;
