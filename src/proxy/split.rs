//! Chance: which of the eligible requests go to the canary (`traffic`).
//!
//! By default each request is a draw of its own. With sticky assignment a client is one: what it is known by is
//! hashed with a secret salt, and the hash is compared with the weight. So a client stays where it is while the
//! weight stays, a greater weight moves clients only into the canary, and a smaller one only out of it; both
//! targets bind alike. A request that does not say what its client is known by is a draw of its own.
//!
//! Our own cookie is a random number with a signature. It also says in which epoch it was given out; one of
//! an earlier epoch, before a rollback, counts no more, so the unlucky are others the next time.

use std::borrow::Cow;

use bytes::BufMut;
use ring::hmac;
use siphasher::sip::SipHasher24;

use super::{headers, message::RequestHead};
use crate::{
    config::{SameSite, Sticky, StickyCookie},
    policy::Target,
    state::Split,
};

/// The secret that makes this installation's draws its own.
#[derive(Debug, Clone)]
pub struct Lots {
    hash: SipHasher24,
    sign: hmac::Key,
}

/// What a client is known by, so that two kinds of keys that look the same are not.
#[derive(Debug, Clone, Copy)]
enum Kind {
    OurCookie,
    Header,
    Cookie,
    Address,
}

/// What chance said.
#[derive(Debug, PartialEq, Eq)]
pub struct Lot {
    /// Where the request goes.
    pub target: Target,
    /// What its client is known by, if it said so, as a number.
    pub key: Option<u64>,
    /// It is known by it from now on.
    pub is_new: bool,
    /// The cookie that it is to get, as the value of `Set-Cookie`.
    pub cookie: Option<Box<[u8]>>,
}

impl Lots {
    /// From the salt of this installation.
    pub fn new(salt: u128) -> Lots {
        let bytes = salt.to_le_bytes();
        Lots {
            hash: SipHasher24::new_with_key(&bytes),
            sign: hmac::Key::new(hmac::HMAC_SHA256, &bytes),
        }
    }

    /// Draws for an eligible request.
    pub fn draw<'a>(
        &self,
        split: Split,
        sticky: Option<&Sticky>,
        head: &RequestHead,
        client: impl FnOnce() -> Cow<'a, str>,
    ) -> Lot {
        let mut lot = Lot {
            target: Target::Main,
            key: None,
            is_new: false,
            cookie: None,
        };
        if !split.weight.is_certain() {
            match sticky {
                None => {}
                Some(Sticky::Cookie(cookie)) => {
                    self.by_our_cookie(cookie, split.epoch, head, &mut lot)
                }
                Some(Sticky::Header(name)) => {
                    let value = head.headers.named(name.as_str()).next();
                    lot.key = self.point(Kind::Header, value.unwrap_or_default());
                }
                Some(Sticky::NamedCookie(name)) => {
                    let value = headers::cookie(&head.headers, name.as_bytes());
                    lot.key = self.point(Kind::Cookie, value.unwrap_or_default());
                }
                Some(Sticky::ClientIp) => lot.key = self.point(Kind::Address, client().as_bytes()),
            }
        }
        let point = lot.key.unwrap_or_else(|| fastrand::u64(..));
        if split.weight.takes(point) {
            lot.target = Target::Canary;
        }
        lot
    }

    fn by_our_cookie(&self, cookie: &StickyCookie, epoch: u64, head: &RequestHead, lot: &mut Lot) {
        // Of several the one that is ours: a page can set one of the same name in front of it.
        let id = headers::cookies(&head.headers, cookie.name.as_bytes())
            .find_map(|value| self.read(value, epoch));
        let id = id.unwrap_or_else(|| {
            let id = fastrand::u64(..);
            lot.is_new = true;
            lot.cookie = Some(self.set_cookie(cookie, epoch, id));
            id
        });
        lot.key = self.point(Kind::OurCookie, &id.to_le_bytes());
    }

    /// Where a client stands who is known by this; nobody is known by nothing.
    fn point(&self, kind: Kind, key: &[u8]) -> Option<u64> {
        use std::hash::Hasher;
        if key.is_empty() {
            return None;
        }
        let mut hash = self.hash;
        hash.write(&[kind as u8]);
        hash.write(key);
        Some(hash.finish())
    }

    /// The number in a cookie that we gave out in this epoch.
    fn read(&self, value: &[u8], epoch: u64) -> Option<u64> {
        let value = std::str::from_utf8(value).ok()?;
        let (said, tag) = value.rsplit_once('.')?;
        let (when, id) = said.split_once('.')?;
        if when.parse() != Ok(epoch) || id.len() != 16 {
            return None;
        }
        let id = u64::from_str_radix(id, 16).ok()?;
        let tag = from_hex(tag)?;
        hmac::verify(&self.sign, said.as_bytes(), &tag).ok()?;
        Some(id)
    }

    fn set_cookie(&self, cookie: &StickyCookie, epoch: u64, id: u64) -> Box<[u8]> {
        let said = format!("{epoch}.{id:016x}");
        let tag = hmac::sign(&self.sign, said.as_bytes());
        let mut out = Vec::with_capacity(192);
        out.put_slice(cookie.name.as_bytes());
        out.put_u8(b'=');
        out.put_slice(said.as_bytes());
        out.put_u8(b'.');
        for byte in tag.as_ref() {
            out.put_slice(format!("{byte:02x}").as_bytes());
        }
        let same_site = match cookie.same_site {
            SameSite::Strict => "Strict",
            SameSite::Lax => "Lax",
            SameSite::None => "None",
        };
        let max_age = cookie.max_age.as_secs();
        let attributes = format!("; Path=/; Max-Age={max_age}; HttpOnly; SameSite={same_site}");
        out.put_slice(attributes.as_bytes());
        if cookie.secure {
            out.put_slice(b"; Secure");
        }
        out.into()
    }
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests;
