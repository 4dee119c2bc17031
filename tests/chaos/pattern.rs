//! Bodies that say whose they are: every byte follows from the request's number, who sends it and where it stands, so
//! that a byte that is lost, doubled or of another request shows, and nobody has to keep what was sent.

/// Who has written a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Author {
    Client,
    Main,
    Canary,
    Sidecar,
}

/// A body as far as it has been written or read.
#[derive(Debug, Clone)]
pub struct Pattern {
    key: u64,
    at: u64,
    /// All that was read so far was as it should be.
    is_right: bool,
}

impl Pattern {
    pub fn new(id: u64, author: Author) -> Pattern {
        Pattern {
            key: mix(id << 2 | author as u64),
            at: 0,
            is_right: true,
        }
    }

    /// The next `length` bytes.
    pub fn next(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.each(&mut bytes, |byte, right| *byte = right);
        bytes
    }

    /// These have come next.
    pub fn read(&mut self, bytes: &[u8]) {
        let mut is_right = true;
        // In pieces, so that nothing is allocated.
        let mut right = [0; 512];
        for piece in bytes.chunks(right.len()) {
            let right = &mut right[..piece.len()];
            self.each(right, |byte, right| *byte = right);
            is_right &= right == piece;
        }
        self.is_right &= is_right;
    }

    pub fn length(&self) -> u64 {
        self.at
    }

    pub fn is_right(&self) -> bool {
        self.is_right
    }

    fn each(&mut self, bytes: &mut [u8], put: impl Fn(&mut u8, u8)) {
        let mut block = mix(self.key ^ (self.at / 8)).to_le_bytes();
        for byte in bytes {
            if self.at.is_multiple_of(8) {
                block = mix(self.key ^ (self.at / 8)).to_le_bytes();
            }
            put(byte, block[(self.at % 8) as usize]);
            self.at += 1;
        }
    }
}

/// The finaliser of SplitMix64: numbers that lie close together come out far apart.
pub fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ z >> 31
}
