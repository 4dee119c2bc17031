//! The two halves of a WebSocket handshake in HTTP/1.1 (RFC 6455 section 4) that a proxy has to say itself
//! where the other side speaks HTTP/2, which has no need of them (RFC 8441 section 5).

use base64::{Engine, engine::general_purpose::STANDARD};
use ring::digest;

/// RFC 6455 section 1.3.
const MAGIC: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// A `Sec-WebSocket-Key` of our own.
pub fn fresh_key() -> String {
    STANDARD.encode(fastrand::u128(..).to_le_bytes())
}

/// The `Sec-WebSocket-Accept` that answers it.
pub fn accept(key: &[u8]) -> String {
    let mut hash = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    hash.update(key);
    hash.update(MAGIC);
    STANDARD.encode(hash.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6455 section 1.3.
    #[test]
    fn a_key_is_accepted_as_in_the_rfc() {
        assert_eq!(
            accept(b"dGhlIHNhbXBsZSBub25jZQ=="),
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
        assert_eq!(STANDARD.decode(fresh_key()).unwrap().len(), 16);
        assert_ne!(fresh_key(), fresh_key());
    }
}
