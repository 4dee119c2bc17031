//! Random UUIDs (RFC 9562 section 5.4), as nearly everything expects that takes names: what a request is called in
//! logs, ours and those of the services behind us (`X-Request-Id`), and what a process is by a collector of spans.
//!
//! They tell apart, and are no secret: the random number need not be a cryptographer's.

/// Where each byte stands: there are dashes between them.
const PLACES: [usize; 16] = [0, 2, 4, 6, 9, 11, 14, 16, 19, 21, 24, 26, 28, 30, 32, 34];
/// The six bits that say what kind of UUID it is: version 4, and the variant of the RFC.
const KIND: u128 = 0x4000_8000_0000_0000_0000;
/// Where they are.
const KIND_MASK: u128 = 0xf000_c000_0000_0000_0000;

/// A new one, from a random number, of which six bits are not used.
pub fn fresh(bits: u128) -> [u8; 36] {
    let bytes = (bits & !KIND_MASK | KIND).to_be_bytes();
    let mut text = [b'-'; 36];
    for (byte, at) in bytes.into_iter().zip(PLACES) {
        text[at..at + 2].copy_from_slice(&DIGITS[usize::from(byte)]);
    }
    text
}

/// Each byte in lower case (RFC 9562 section 4). It is for every request.
const DIGITS: [[u8; 2]; 256] = {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut digits = [[0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        digits[byte] = [HEX[byte >> 4], HEX[byte & 0xf]];
        byte += 1;
    }
    digits
};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(bits: u128) -> String {
        String::from_utf8(fresh(bits).to_vec()).unwrap()
    }

    #[test]
    fn it_is_a_uuid_of_version_4() {
        for (bits, expected) in [
            (0, "00000000-0000-4000-8000-000000000000"),
            (u128::MAX, "ffffffff-ffff-4fff-bfff-ffffffffffff"),
            (
                0x0123_4567_89ab_cdef_0123_4567_89ab_cdef,
                "01234567-89ab-4def-8123-456789abcdef",
            ),
            // The example of RFC 9562 appendix A.3.
            (
                0x9191_08f7_52d1_3320_5bac_f847_db41_48a8,
                "919108f7-52d1-4320-9bac-f847db4148a8",
            ),
        ] {
            assert_eq!(text(bits), expected);
        }
    }

    proptest! {
        #[test]
        fn all_other_bits_are_those_of_the_number(bits in any::<u128>()) {
            let text = text(bits);
            let lengths: Vec<usize> = text.split('-').map(str::len).collect();
            prop_assert_eq!(lengths, [8, 4, 4, 4, 12]);
            prop_assert_eq!(text.to_ascii_lowercase(), text.clone());
            let number = u128::from_str_radix(&text.replace('-', ""), 16).unwrap();
            prop_assert_eq!(number & !KIND_MASK, bits & !KIND_MASK);
            prop_assert_eq!(number & KIND_MASK, KIND);
        }
    }
}
