//! The header of the PROXY protocol, in which a load balancer that does not speak HTTP says whose
//! connection it passes on: versions 1 and 2 of HAProxy's `doc/proxy-protocol.txt`, "the spec" below.
//!
//! It is read where the configuration says that there is one, and never guessed at: whoever may leave
//! it out may also forge it. Not a byte behind the header is read, for that belongs to TLS or HTTP.
//! How long it may take is the caller's concern.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use tokio::io::{AsyncRead, AsyncReadExt};

/// What version 1 begins with.
const VERSION_1: &[u8] = b"PROXY ";
/// What version 2 begins with.
const VERSION_2: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// So long is a line of version 1 at most, with its CRLF (spec section 2.1).
const MAX_LINE: usize = 107;
/// So long is what follows the 16 bytes of version 2 at most: addresses, and vectors of which we use
/// none. The spec has no bound below 64 KiB but means a header to fit into a TCP segment of 536 bytes.
const MAX_BLOCK: usize = 4 << 10;

/// Why a connection has no usable header. It is to be closed.
#[derive(Debug, thiserror::Error)]
pub enum NoHeader {
    /// The connection broke, or ended within the header.
    #[error("the connection ended before its PROXY header did: {0}")]
    Io(#[from] io::Error),
    /// It begins with something else.
    #[error(
        "the connection does not begin with a PROXY header: have the load balancer send one, or turn \
         the PROXY protocol off here"
    )]
    Missing,
    /// It begins like one.
    #[error("the PROXY header is malformed: {0}")]
    Malformed(&'static str),
}

/// Reads the header, and nothing behind it. The client's address, as it was written: an IPv4 client may
/// have a mapped IPv6 one. `None` where the connection's own peer counts: it was made by the load
/// balancer for itself (`LOCAL`, for a health check), or for a client without an IP address (`UNKNOWN`,
/// `AF_UNSPEC`, `AF_UNIX`).
///
/// Dropped early, it has read a part of the header, which is lost.
///
/// # Errors
/// [`NoHeader`], as soon as it is known.
pub async fn read<R: AsyncRead + Unpin>(io: &mut R) -> Result<Option<SocketAddr>, NoHeader> {
    let mut bytes = [0; MAX_LINE];
    let mut length = 0;
    // No header is shorter than the signature of version 2.
    while length < VERSION_2.len() {
        length += match io.read(&mut bytes[length..VERSION_2.len()]).await? {
            0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            more => more,
        };
        let is_start_of = |whole: &[u8]| {
            let compared = length.min(whole.len());
            bytes[..compared] == whole[..compared]
        };
        if !is_start_of(VERSION_1) && !is_start_of(VERSION_2) {
            return Err(NoHeader::Missing);
        }
    }
    match bytes.starts_with(VERSION_1) {
        true => read_line(io, &mut bytes).await,
        false => read_block(io, &mut bytes).await,
    }
}

/// Of version 1, of which the beginning has been read.
async fn read_line<R: AsyncRead + Unpin>(
    io: &mut R,
    bytes: &mut [u8; MAX_LINE],
) -> Result<Option<SocketAddr>, NoHeader> {
    let mut length = VERSION_2.len();
    while !bytes[..length].ends_with(b"\r\n") {
        // As much of the end of the line is still to come.
        let wanted = match bytes[..length].ends_with(b"\r") {
            true => 1,
            false => 2,
        };
        let end = length + wanted;
        if end > MAX_LINE {
            return Err(NoHeader::Malformed("its line is longer than 107 bytes"));
        }
        io.read_exact(&mut bytes[length..end]).await?;
        length = end;
    }
    if bytes.starts_with(b"PROXY UNKNOWN") && matches!(bytes[13], b' ' | b'\r') {
        // Whatever follows is to be ignored, even if it is no text.
        return Ok(None);
    }
    let line = str::from_utf8(&bytes[..length - 2]).unwrap_or_default();
    let mut words = line.split(' ').skip(1);
    let mut word = || words.next().unwrap_or_default();
    let client = match word() {
        "TCP4" => addresses::<Ipv4Addr>([word(), word()], [word(), word()]),
        "TCP6" => addresses::<Ipv6Addr>([word(), word()], [word(), word()]),
        _ => Err("its protocol is not TCP4, TCP6 or UNKNOWN"),
    };
    match words.next() {
        None => client.map(Some).map_err(NoHeader::Malformed),
        Some(_) => Err(NoHeader::Malformed("something follows its ports")),
    }
}

/// The first of two addresses and ports; the other ones must be some, too.
fn addresses<A: FromStr + Into<IpAddr>>(
    [source, destination]: [&str; 2],
    [source_port, destination_port]: [&str; 2],
) -> Result<SocketAddr, &'static str> {
    let address = |text: &str| {
        text.parse::<A>()
            .map_err(|_| "an address is not one of its protocol")
    };
    let client = address(source)?;
    address(destination)?;
    let client = SocketAddr::new(client.into(), port(source_port)?);
    port(destination_port)?;
    Ok(client)
}

/// Without a sign or heading zeroes, which `parse` lets pass.
fn port(text: &str) -> Result<u16, &'static str> {
    let canonical = text == "0" || text.starts_with(|first| matches!(first, '1'..='9'));
    text.parse()
        .ok()
        .filter(|_| canonical)
        .ok_or("a port is not a number from 0 to 65535")
}

/// Of version 2, of which the signature has been read.
async fn read_block<R: AsyncRead + Unpin>(
    io: &mut R,
    bytes: &mut [u8; MAX_LINE],
) -> Result<Option<SocketAddr>, NoHeader> {
    let mut head = [0; 4];
    io.read_exact(&mut head).await?;
    let [version_and_command, family_and_protocol, high, low] = head;
    if version_and_command >> 4 != 2 {
        return Err(NoHeader::Malformed("its version is neither 1 nor 2"));
    }
    let is_local = match version_and_command & 0xf {
        0 => true,
        1 => false,
        _ => return Err(NoHeader::Malformed("its command is not LOCAL or PROXY")),
    };
    // The addresses of datagrams are taken as well: whoever sends them here means their client.
    let addressed = match (family_and_protocol >> 4, family_and_protocol & 0xf) {
        _ if is_local => 0,
        (0..=3, 0) | (0 | 3, 1 | 2) => 0,
        (1, 1 | 2) => 12,
        (2, 1 | 2) => 36,
        (0..=3, _) => return Err(NoHeader::Malformed("its transport protocol is not known")),
        _ => return Err(NoHeader::Malformed("its address family is not known")),
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length > MAX_BLOCK {
        return Err(NoHeader::Malformed("it is longer than 4 KiB"));
    }
    if length < addressed {
        return Err(NoHeader::Malformed("it is too short for its addresses"));
    }
    io.read_exact(&mut bytes[..addressed]).await?;
    let client = client(&bytes[..addressed]);
    let mut left = length - addressed;
    while left > 0 {
        let part = left.min(bytes.len());
        left -= io.read_exact(&mut bytes[..part]).await?;
    }
    Ok(client)
}

/// Source and destination address, source and destination port.
fn client(addresses: &[u8]) -> Option<SocketAddr> {
    match *addresses {
        [a, b, c, d, _, _, _, _, high, low, _, _] => {
            let port = u16::from_be_bytes([high, low]);
            Some(SocketAddr::new(Ipv4Addr::new(a, b, c, d).into(), port))
        }
        [ref source @ .., high, low, _, _] => {
            let address: [u8; 16] = *source.first_chunk()?;
            let port = u16::from_be_bytes([high, low]);
            Some(SocketAddr::new(Ipv6Addr::from(address).into(), port))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
