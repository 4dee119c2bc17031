//! What is spoken on either side of a proxy.

use std::fmt;

/// With neither of them it is HTTP/1.1 in the clear, everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wire {
    /// Clients come by TLS. HTTP/2 is offered to them in any case, as one would run it.
    pub tls: bool,
    /// They speak HTTP/2: by ALPN, without TLS by prior knowledge.
    pub http2: bool,
    /// The upstream is spoken to in HTTP/2, by prior knowledge.
    pub http2_upstream: bool,
}

// What all can do, so that it is what all do: it is asked of each answer, see `h2load`.
pub const TLS_VERSION: &str = "TLSv1.3";
pub const CIPHER: &str = "TLS_AES_128_GCM_SHA256";
pub const GROUP: &str = "X25519";

impl Wire {
    /// What the kit's own load generator can speak.
    pub fn is_plain(self) -> bool {
        !self.tls && !self.http2
    }

    /// What clients negotiate, in the words of ALPN.
    pub fn protocol(self) -> &'static str {
        match (self.http2, self.tls) {
            (true, true) => "h2",
            (true, false) => "h2c",
            (false, _) => "http/1.1",
        }
    }
}

impl fmt::Display for Wire {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.protocol())?;
        if self.tls {
            write!(
                f,
                " over {TLS_VERSION} ({CIPHER}, {GROUP}, a certificate of ECDSA P-256)"
            )?;
        }
        Ok(())
    }
}
