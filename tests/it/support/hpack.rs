//! HPACK (RFC 7541): an encoder that hides nothing, and a decoder for what we are answered.
//!
//! What is encoded is literal, without indexing and never Huffman-coded, so that a test's header block is
//! its bytes. The decoder knows all of it, and forgives nothing.

use std::collections::VecDeque;

/// A header field as it is on the wire.
pub type Field = (Vec<u8>, Vec<u8>);

/// A header block of literal fields.
pub fn block<N: AsRef<[u8]>, V: AsRef<[u8]>>(fields: impl IntoIterator<Item = (N, V)>) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name.as_ref(), value.as_ref()] {
            integer(&mut block, 0, 7, text.len());
            block.extend_from_slice(text);
        }
    }
    block
}

/// The same, but each field becomes the newest one of the dynamic table.
pub fn indexing<N: AsRef<[u8]>, V: AsRef<[u8]>>(name: N, value: V) -> Vec<u8> {
    let mut literal = block([(name, value)]);
    literal[0] = 0x40;
    literal
}

/// A field that is in a table.
pub fn indexed(index: usize) -> Vec<u8> {
    let mut block = Vec::new();
    integer(&mut block, 0x80, 7, index);
    block
}

/// A change of the size of the dynamic table.
pub fn table_size(size: usize) -> Vec<u8> {
    let mut block = Vec::new();
    integer(&mut block, 0x20, 5, size);
    block
}

/// Section 5.1: an integer in the last `bits` of a byte, and behind it where it does not fit.
fn integer(into: &mut Vec<u8>, first: u8, bits: u32, mut value: usize) {
    let full = (1_usize << bits) - 1;
    if value < full {
        into.push(first | value as u8);
        return;
    }
    into.push(first | full as u8);
    value -= full;
    while value >= 128 {
        into.push(0x80 | (value & 127) as u8);
        value >>= 7;
    }
    into.push(value as u8);
}

/// Decodes the header blocks of one direction of a connection, in order.
pub struct Decoder {
    table: VecDeque<Field>,
    size: usize,
    limit: usize,
}

impl Default for Decoder {
    fn default() -> Decoder {
        Decoder {
            table: VecDeque::new(),
            size: 0,
            limit: 4096,
        }
    }
}

impl Decoder {
    pub fn decode(&mut self, mut block: &[u8]) -> Result<Vec<Field>, &'static str> {
        let mut fields = Vec::new();
        while let [first, ..] = *block {
            match first {
                0x80.. => fields.push(self.entry(number(&mut block, 7)?)?),
                0x40.. => {
                    let field = self.literal(&mut block, 6)?;
                    self.size += 32 + field.0.len() + field.1.len();
                    self.table.push_front(field.clone());
                    self.evict();
                    fields.push(field);
                }
                0x20.. => {
                    self.limit = number(&mut block, 5)?;
                    self.evict();
                }
                _ => fields.push(self.literal(&mut block, 4)?),
            }
        }
        Ok(fields)
    }

    fn literal(&self, block: &mut &[u8], bits: u32) -> Result<Field, &'static str> {
        let name = match number(block, bits)? {
            0 => text(block)?,
            index => self.entry(index)?.0,
        };
        Ok((name, text(block)?))
    }

    fn entry(&self, index: usize) -> Result<Field, &'static str> {
        let index = index.checked_sub(1).ok_or("index 0")?;
        match STATIC.get(index) {
            Some((name, value)) => Ok((name.as_bytes().to_vec(), value.as_bytes().to_vec())),
            None => self
                .table
                .get(index - STATIC.len())
                .cloned()
                .ok_or("an index beyond both tables"),
        }
    }

    fn evict(&mut self) {
        while self.size > self.limit {
            let (name, value) = self.table.pop_back().expect("what has a size");
            self.size -= 32 + name.len() + value.len();
        }
    }
}

fn number(block: &mut &[u8], bits: u32) -> Result<usize, &'static str> {
    let full = (1_usize << bits) - 1;
    let mut value = usize::from(byte(block)?) & full;
    if value < full {
        return Ok(value);
    }
    for shift in [0, 7, 14, 21] {
        let next = byte(block)?;
        value += usize::from(next & 127) << shift;
        if next < 128 {
            return Ok(value);
        }
    }
    Err("an integer that is too large")
}

fn byte(block: &mut &[u8]) -> Result<u8, &'static str> {
    let (first, rest) = block.split_first().ok_or("a block that ends too early")?;
    *block = rest;
    Ok(*first)
}

fn text(block: &mut &[u8]) -> Result<Vec<u8>, &'static str> {
    let huffman = block.first().is_some_and(|first| *first >= 128);
    let length = number(block, 7)?;
    let (text, rest) = block
        .split_at_checked(length)
        .ok_or("a text that ends too early")?;
    *block = rest;
    match huffman {
        true => unhuffman(text),
        false => Ok(text.to_vec()),
    }
}

/// The code is canonical: among codes of the same length, they go up with the byte; all that has to be
/// known is how long each is.
fn unhuffman(coded: &[u8]) -> Result<Vec<u8>, &'static str> {
    let mut text = Vec::new();
    let (mut code, mut length, mut first) = (0_u32, 0_u8, 0_u32);
    for bit in coded
        .iter()
        .flat_map(|byte| (0..8).rev().map(move |i| byte >> i & 1))
    {
        code = code << 1 | u32::from(bit);
        first <<= 1;
        length += 1;
        let of_this_length = || (0..=255_u8).filter(|byte| LENGTHS[usize::from(*byte)] == length);
        let count = of_this_length().count() as u32;
        if code - first < count {
            text.extend(of_this_length().nth((code - first) as usize));
            (code, length, first) = (0, 0, 0);
        } else if length == 30 {
            return Err("the end-of-string symbol");
        } else {
            first += count;
        }
    }
    match length {
        0..8 if code == (1 << length) - 1 => Ok(text),
        _ => Err("padding that is none"),
    }
}

/// How many bits the code of each byte has (RFC 7541, appendix B).
const LENGTHS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28,
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5,
    5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6,
    6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22,
    23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22,
    21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20,
    22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19,
    21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22,
    22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
];

/// Appendix A.
const STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

/// The examples of appendix C: requests and responses, in both codings.
#[test]
fn the_decoder_reads_the_examples_of_the_rfc() {
    let bytes = |hex: &str| -> Vec<u8> {
        let digits: Vec<u8> = hex.bytes().filter(|byte| *byte != b' ').collect();
        digits
            .chunks(2)
            .map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    };
    for blocks in [
        [
            "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
            "8286 84be 5808 6e6f 2d63 6163 6865",
            "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
        ],
        [
            "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
            "8286 84be 5886 a8eb 1064 9cbf",
            "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
        ],
    ] {
        let mut decoder = Decoder::default();
        let decoded = blocks.map(|block| {
            let fields = decoder.decode(&bytes(block)).unwrap();
            let lines = fields.into_iter().map(|(name, value)| {
                format!(
                    "{}={}",
                    String::from_utf8(name).unwrap(),
                    String::from_utf8(value).unwrap()
                )
            });
            lines.collect::<Vec<_>>().join(" ")
        });
        let start = ":method=GET :scheme=http :path=/ :authority=www.example.com";
        assert_eq!(decoded[0], start);
        assert_eq!(decoded[1], format!("{start} cache-control=no-cache"));
        assert_eq!(
            decoded[2],
            ":method=GET :scheme=https :path=/index.html :authority=www.example.com \
             custom-key=custom-value"
        );
    }
    // A table of 256 bytes, from which something is evicted.
    let mut decoder = Decoder::default();
    decoder.decode(&table_size(256)).unwrap();
    let blocks = [
        "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e \
         919d 29ad 1718 63c7 8f0b 97c8 e9ae 82ae 43d3",
        "4883 640e ffc1 c0bf",
        "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 \
         821d d7f2 e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed \
         4ee5 b106 3d50 07",
    ];
    let decoded = blocks.map(|block| decoder.decode(&bytes(block)).unwrap());
    assert_eq!(decoded[0][0], (b":status".to_vec(), b"302".to_vec()));
    assert_eq!(decoded[1][0], (b":status".to_vec(), b"307".to_vec()));
    let cookie = "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1";
    assert_eq!(
        decoded[2].last(),
        Some(&(b"set-cookie".to_vec(), cookie.as_bytes().to_vec()))
    );
    assert_eq!(decoder.size, 215);
}
