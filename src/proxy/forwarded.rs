//! Who a request comes from, when proxies that we trust may stand before us, and what upstreams are
//! told about it.
//!
//! `X-Forwarded-*` and `Forwarded` (RFC 7239) are written by proxies, and by anybody who would like to
//! be one. So they count if the connection's peer is trusted (`router-server.trusted-proxies`), and of
//! the addresses in them only those that a trusted proxy has added. What is not believed is not passed
//! on either, but for `X-Forwarded-For`: there the peer's own address is appended, as always, and shows
//! what it stands behind. Nobody is refused here.
//!
//! All that has to be known of a request whose peer is not trusted is its `Host`; nothing is allocated.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::{
    fields::{Fields, Known, KnownSet, Sink},
    headers,
};

/// What we write anew, whoever the peer is.
const OURS: KnownSet = KnownSet::of(&[
    Known::XForwardedFor,
    Known::XForwardedHost,
    Known::XForwardedPort,
    Known::XForwardedProto,
]);
/// And what says where a request comes from.
const ALL: KnownSet = OURS.with(Known::Forwarded);

/// What is known of the client before a request is read.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its address. An IPv4 client of a dual-stack listener has an IPv4 one.
    pub address: IpAddr,
    /// The same, as `X-Forwarded-For` shows it.
    pub text: String,
    /// Whether it spoke TLS to us.
    pub secure: bool,
}

/// Where a request comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin<'a> {
    /// The client's address; of an IPv4 client an IPv4 one.
    pub client: IpAddr,
    /// The scheme that the client used; a token.
    pub proto: &'a [u8],
    /// The host that it asked for, perhaps with a port; never empty.
    pub host: Option<&'a [u8]>,
    /// The port that it asked for; never empty.
    pub port: &'a [u8],
    /// Whether what its peer says of it is believed, if that says anything.
    pub believed: bool,
}

/// What proxies said; `None` where they did not, or not clearly.
#[derive(Default)]
struct Told<'a> {
    client: Option<IpAddr>,
    proto: Option<&'a [u8]>,
    host: Option<&'a [u8]>,
    port: Option<&'a [u8]>,
}

impl Peer {
    /// At this address.
    pub fn new(address: IpAddr, secure: bool) -> Peer {
        let address = address.to_canonical();
        Peer {
            address,
            text: address.to_string(),
            secure,
        }
    }

    /// Whether one of these networks has it. To be asked for each request: there may be others by now.
    pub fn is_within(&self, trusted: &[IpNet]) -> bool {
        is_within(self.address, trusted)
    }
}

impl Origin<'_> {
    /// Which fields of its request are not passed on as they are. `Forwarded` is, of one that is believed,
    /// without an element of ours.
    pub fn replaced(&self) -> KnownSet {
        match self.believed {
            true => OURS,
            false => ALL,
        }
    }
}

/// Where a request of `peer` comes from. A trusted peer's `X-Forwarded-Proto`, `-Host` and `-Port` are
/// taken as they are, if there is one line of each: of several, some may be what a client sent to a
/// proxy that appends. What is missing is what `Forwarded` says, and then what is known otherwise: the
/// peer's address and scheme, `Host`, its port, or the usual one of the scheme.
pub fn origin<'a>(headers: &'a Fields, peer: &Peer, trusted: &[IpNet]) -> Origin<'a> {
    let believed = headers.has_any(ALL) && peer.is_within(trusted);
    let told = match believed {
        true => told(headers, peer, trusted),
        false => Told::default(),
    };
    let proto = told.proto.unwrap_or(match peer.secure {
        true => b"https",
        false => b"http",
    });
    let host = told.host.or_else(|| {
        let host = headers.get(Known::Host);
        host.filter(|host| !host.is_empty())
    });
    Origin {
        client: told.client.unwrap_or_else(|| peer.address.to_canonical()),
        proto,
        host,
        port: told
            .port
            .or_else(|| port_of(host?))
            .unwrap_or_else(|| usual_port(proto)),
        believed,
    }
}

fn told<'a>(headers: &'a Fields, peer: &Peer, trusted: &[IpNet]) -> Told<'a> {
    let standard = match headers.has(Known::Forwarded) {
        true => read_forwarded(headers, trusted).unwrap_or_default(),
        false => Told::default(),
    };
    Told {
        client: match headers.has(Known::XForwardedFor) {
            true => Some(first_untrusted(headers, peer, trusted)),
            false => standard.client,
        },
        proto: match headers.has(Known::XForwardedProto) {
            true => only(headers, Known::XForwardedProto).filter(|proto| is_token(proto)),
            false => standard.proto,
        },
        host: match headers.has(Known::XForwardedHost) {
            true => only(headers, Known::XForwardedHost),
            false => standard.host,
        },
        port: only(headers, Known::XForwardedPort),
    }
}

/// Each proxy appends whom it got the request from. So from the end on, the addresses are true up to and
/// with the first one that is not a trusted proxy's; what is no address ends them before.
fn first_untrusted(headers: &Fields, peer: &Peer, trusted: &[IpNet]) -> IpAddr {
    let mut client = peer.address.to_canonical();
    let members = headers
        .all(Known::XForwardedFor)
        .rev()
        .flat_map(|line| line.rsplit(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|member| !member.is_empty());
    for member in members {
        let Some(address) = address_of(member) else {
            break;
        };
        client = address;
        if !is_within(address, trusted) {
            break;
        }
    }
    client
}

/// An address, perhaps with a port: a node of RFC 7239 section 6 that is not hidden, or an IPv6 address
/// without brackets, as it stands in `X-Forwarded-For`.
fn address_of(node: &[u8]) -> Option<IpAddr> {
    let node = str::from_utf8(node).ok()?;
    if let Ok(address) = node.parse::<IpAddr>() {
        return Some(address.to_canonical());
    }
    let (address, behind) = match node.strip_prefix('[') {
        Some(rest) => {
            let (address, behind) = rest.split_once(']')?;
            (IpAddr::V6(address.parse::<Ipv6Addr>().ok()?), behind)
        }
        None => {
            let (address, behind) = node.split_at(node.find(':')?);
            (IpAddr::V4(address.parse::<Ipv4Addr>().ok()?), behind)
        }
    };
    let behind_is_valid = match behind.strip_prefix(':') {
        None => behind.is_empty(),
        Some(port) => match port.strip_prefix('_') {
            Some(hidden) => is_token(hidden.as_bytes()),
            None => is_port(port.as_bytes()),
        },
    };
    behind_is_valid.then(|| address.to_canonical())
}

/// What the element of `Forwarded` says that the last untrusted peer of a trusted proxy is in. `None` if
/// any of it is malformed: then nobody knows who wrote what.
///
/// The elements are read from their beginning, because of the quotes, and so each one that does not
/// name a trusted proxy is the one that is looked for, until a later one is.
fn read_forwarded<'a>(headers: &'a Fields, trusted: &[IpNet]) -> Option<Told<'a>> {
    let mut found: Option<Told<'_>> = None;
    for mut rest in headers.all(Known::Forwarded) {
        while !rest.is_empty() {
            let Some(element) = Element::take(&mut rest)? else {
                continue;
            };
            let client = element.node.and_then(address_of);
            let is_proxy = client.is_some_and(|client| is_within(client, trusted));
            match &mut found {
                // A hidden client counts as the nearest proxy whose address is known.
                Some(found) if is_proxy => found.client = found.client.or(client),
                _ => {
                    found = Some(Told {
                        client,
                        proto: element.proto.filter(|proto| is_token(proto)),
                        host: element
                            .host
                            .filter(|host| !host.is_empty() && headers::is_valid_host(host)),
                        port: None,
                    });
                }
            }
        }
    }
    found
}

/// An element of `Forwarded` (RFC 7239 section 4).
#[derive(Debug, Default, PartialEq, Eq)]
struct Element<'a> {
    node: Option<&'a [u8]>,
    proto: Option<&'a [u8]>,
    host: Option<&'a [u8]>,
}

impl Element<'_> {
    /// Takes one off, and the comma behind it; `None` if it is malformed, `Some(None)` if it is empty.
    fn take<'a>(rest: &mut &'a [u8]) -> Option<Option<Element<'a>>> {
        let mut element = Element::default();
        let mut is_empty = true;
        loop {
            *rest = rest.trim_ascii_start();
            match rest.split_first() {
                None => break,
                Some((b',', behind)) => {
                    *rest = behind;
                    break;
                }
                Some((b';', behind)) => {
                    *rest = behind;
                    continue;
                }
                Some(_) => {}
            }
            let (name, value) = take_pair(rest)?;
            is_empty = false;
            let place = match name {
                name if name.eq_ignore_ascii_case(b"for") => &mut element.node,
                name if name.eq_ignore_ascii_case(b"proto") => &mut element.proto,
                name if name.eq_ignore_ascii_case(b"host") => &mut element.host,
                _ => continue,
            };
            if place.replace(value).is_some() {
                return None;
            }
        }
        Some((!is_empty).then_some(element))
    }
}

/// Takes `name=value` off, which a separator or nothing must follow.
fn take_pair<'a>(rest: &mut &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    let name = take_while(rest, is_token_byte);
    *rest = rest.strip_prefix(b"=")?;
    let value = match rest.strip_prefix(b"\"") {
        Some(quoted) => {
            *rest = quoted;
            take_quoted(rest)?
        }
        None => {
            // Strictly, a value with these has to be quoted; many who write one with a port do not know.
            let unquoted = take_while(rest, |byte| {
                is_token_byte(byte) || matches!(byte, b':' | b'[' | b']')
            });
            (!unquoted.is_empty()).then_some(unquoted)?
        }
    };
    let ends = matches!(rest.trim_ascii_start().first(), None | Some(b',' | b';'));
    (ends && !name.is_empty()).then_some((name, value))
}

/// Takes the rest of a quoted string off (RFC 9110 section 5.6.4). Backslashes stay in it: none is
/// needed in an address, a host or a scheme, and what has one is none.
fn take_quoted<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let whole = *rest;
    let mut end = 0;
    loop {
        end += match whole.get(end)? {
            b'"' => break,
            b'\\' => 2,
            _ => 1,
        };
    }
    *rest = &whole[end + 1..];
    Some(&whole[..end])
}

fn take_while<'a>(rest: &mut &'a [u8], taken: impl Fn(u8) -> bool) -> &'a [u8] {
    let end = rest.iter().position(|byte| !taken(*byte));
    let (start, behind) = rest.split_at(end.unwrap_or(rest.len()));
    *rest = behind;
    start
}

/// The value of a field that has one line, and is not empty.
fn only(headers: &Fields, known: Known) -> Option<&[u8]> {
    let mut lines = headers.all(known);
    match (lines.next(), lines.next()) {
        (Some(value), None) if !value.is_empty() => Some(value),
        _ => None,
    }
}

fn is_within(address: IpAddr, networks: &[IpNet]) -> bool {
    networks.iter().any(|network| network.contains(&address))
}

/// RFC 9110 section 5.6.2.
fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|byte| is_token_byte(*byte))
}

fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn is_port(text: &[u8]) -> bool {
    matches!(text.len(), 1..=5) && text.iter().all(u8::is_ascii_digit)
}

/// The port in a host, if one is.
fn port_of(host: &[u8]) -> Option<&[u8]> {
    let colon = host.iter().rposition(|byte| *byte == b':')?;
    let (name, port) = (&host[..colon], &host[colon + 1..]);
    // An IPv6 address without brackets is no host, but a proxy may have sent one.
    let name_is_whole = name.ends_with(b"]") || !name.contains(&b':');
    (name_is_whole && is_port(port)).then_some(port)
}

fn usual_port(proto: &[u8]) -> &'static [u8] {
    // Some proxies say `wss` of a WebSocket.
    match proto.eq_ignore_ascii_case(b"https") || proto.eq_ignore_ascii_case(b"wss") {
        true => b"443",
        false => b"80",
    }
}

/// Tells an upstream: `X-Forwarded-For`, which is what was there and the peer behind it,
/// `X-Forwarded-Proto`, `-Host` if there is one, and `-Port`.
pub fn put_forwarded(headers: &Fields, peer: &Peer, origin: &Origin<'_>, out: &mut impl Sink) {
    let name = b"x-forwarded-for: ";
    let peer = peer.text.as_bytes();
    let earlier = || {
        let lines = headers.all(Known::XForwardedFor);
        lines.filter(|line| !line.is_empty())
    };
    let mut lines = earlier();
    match (lines.next(), lines.next()) {
        (None, _) => out.put(name, &[peer]),
        (Some(line), None) => out.put(name, &[line, b", ", peer]),
        (Some(_), Some(_)) => {
            let lines = earlier().flat_map(|line| [line, b", "]);
            let pieces: Vec<&[u8]> = lines.chain([peer]).collect();
            out.put(name, &pieces);
        }
    }
    out.put(b"x-forwarded-proto: ", &[origin.proto]);
    if let Some(host) = origin.host {
        out.put(b"x-forwarded-host: ", &[host]);
    }
    out.put(b"x-forwarded-port: ", &[origin.port]);
}

#[cfg(test)]
mod tests;
