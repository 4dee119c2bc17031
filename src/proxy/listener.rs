//! The listening sockets of the proxy port: one per worker, between which the kernel shares new
//! connections out (`SO_REUSEPORT`, socket(7)), or those that somebody else has made.

use std::{
    future::poll_fn,
    io,
    net::{SocketAddr, TcpListener as StdListener, ToSocketAddrs},
    task::Poll,
    time::Duration,
};

use socket2::{Domain, Protocol, SockFilter, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tracing::warn;

use super::{connect::keepalive, record::Throttle};
use crate::config::Listen;

/// Connections that may wait in the kernel for us to accept them; the kernel has its own limit too
/// (`net.core.somaxconn`).
const BACKLOG: i32 = 4096;
/// The kernel takes milliseconds in an `int`.
const MAX_USER_TIMEOUT: Duration = Duration::from_millis(i32::MAX as u64);
/// How long to let be after accepting failed for want of descriptors or memory.
const BACK_OFF: Duration = Duration::from_millis(100);

/// Binds `count` sockets to the same address. Port 0 takes a free one.
///
/// A client that takes nothing of what was sent to it for `write_timeout` loses its connection. That
/// is the kernel's to find out (`TCP_USER_TIMEOUT`, tcp(7), RFC 5482): it alone sees the progress of
/// one that reads slowly out of a full socket buffer.
///
/// # Errors
/// The name has no address, or the address cannot be listened on, another listener included.
pub fn bind(
    listen: &Listen,
    count: usize,
    write_timeout: Duration,
) -> io::Result<Vec<StdListener>> {
    let mut address = resolve(listen)?;
    // With SO_REUSEPORT alone a second router would quietly take half of the first one's
    // connections. A socket without it finds out whether somebody is there.
    let probe = socket(address, false, write_timeout)?;
    probe.bind(&address.into())?;
    if address.port() == 0
        && let Some(taken) = probe.local_addr()?.as_socket()
    {
        address = taken;
    }
    drop(probe);
    join(address, count.max(1), write_timeout)
}

/// Binds `count` more sockets to an address that others of ours listen on.
///
/// # Errors
/// The system's; one of them is that the others are not of this kind.
pub fn join(
    address: SocketAddr,
    count: usize,
    write_timeout: Duration,
) -> io::Result<Vec<StdListener>> {
    (0..count)
        .map(|_| {
            let socket = socket(address, true, write_timeout)?;
            socket.bind(&address.into())?;
            socket.listen(BACKLOG)?;
            Ok(socket.into())
        })
        .collect()
}

/// As [`bind`], where others of ours may listen on the same port, of another address that covers this one.
///
/// # Errors
/// As for [`bind`]; those others are not of this kind.
pub fn bind_beside(
    listen: &Listen,
    count: usize,
    write_timeout: Duration,
) -> io::Result<Vec<StdListener>> {
    join(resolve(listen)?, count.max(1), write_timeout)
}

/// Makes a listening socket that somebody else has made one of ours.
///
/// # Errors
/// The system's.
pub fn adopt(listener: &StdListener, write_timeout: Duration) -> io::Result<()> {
    prepare(&SockRef::from(listener), write_timeout)
}

/// All addresses of a name.
///
/// # Errors
/// Nobody knows it.
pub fn addresses(listen: &Listen) -> io::Result<Vec<SocketAddr>> {
    let addresses = (listen.host.as_str(), listen.port).to_socket_addrs()?;
    Ok(addresses.collect())
}

/// The address of a name; IPv4 where there is a choice, as the original did.
fn resolve(listen: &Listen) -> io::Result<SocketAddr> {
    let mut addresses = addresses(listen)?;
    addresses.sort_by_key(SocketAddr::is_ipv6);
    addresses
        .first()
        .copied()
        .ok_or_else(|| io::Error::other("the name has no address"))
}

fn socket(address: SocketAddr, shared: bool, write_timeout: Duration) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    prepare(&SockRef::from(&socket), write_timeout)?;
    Ok(socket)
}

fn prepare(socket: &SockRef<'_>, write_timeout: Duration) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    // Accepted connections inherit all of these, so they cost no system call of their own.
    set_patience(socket, write_timeout)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&keepalive())
}

/// How long a connection, or each that is accepted of a listener, may take nothing of what is sent to it.
///
/// # Errors
/// The system's.
pub fn set_patience(socket: &SockRef<'_>, write_timeout: Duration) -> io::Result<()> {
    socket.set_tcp_user_timeout(Some(write_timeout.min(MAX_USER_TIMEOUT)))
}

/// The next connection, of whichever listener. A failure that passes (no descriptors left, a client that had second
/// thoughts) is waited out, without spinning, and told of as often as `warnings` allow.
pub async fn accept(listeners: &[TcpListener], warnings: &Throttle) -> (TcpStream, SocketAddr) {
    loop {
        // Of several, another one is first each time.
        let first = match listeners.len() {
            0 | 1 => 0,
            count => fastrand::usize(..count),
        };
        let accepted = poll_fn(|cx| {
            let (before, from) = listeners.split_at(first);
            let mut polled = from.iter().chain(before).map(|it| it.poll_accept(cx));
            polled.find(Poll::is_ready).unwrap_or(Poll::Pending)
        });
        match accepted.await {
            Ok(accepted) => return accepted,
            Err(error) if is_about_the_client(&error) => {}
            Err(error) => {
                if let Some(suppressed) = warnings.allow() {
                    warn!(%error, suppressed, "cannot accept connections; trying again");
                }
                tokio::time::sleep(BACK_OFF).await;
            }
        }
    }
}

/// How long connections that the kernel had begun when we stopped beginning new ones may take to be
/// there: the last third of a handshake is on its way to us.
pub const SETTLING: Duration = Duration::from_millis(100);

/// Lets the kernel begin no more connections on this socket, while those that it has begun, or queued
/// for us, go on as before.
///
/// A listening socket that is closed resets what is in its queue, and what comes in between the last
/// `accept` and the `close` too: requests of clients who had been told that they are connected. Nothing
/// but this (a filter on the socket, socket(7)) makes it stop listening first. `shutdown` empties the
/// queue as `close` does, and a backlog of 0 leaves room for one. A client whose SYN is lost here
/// sends it again after a second (RFC 6298), and is refused then, or finds our successor.
///
/// # Errors
/// The system has no such filters: then the two moments stay as close to each other as they can be.
pub fn begin_no_more(listener: &TcpListener) -> io::Result<()> {
    SockRef::from(listener).attach_filter(&NO_SYN)
}

/// Drops a segment that has SYN and not ACK set; connections inherit it, and do not mind. A filter on a
/// TCP socket sees a segment from its TCP header on.
const NO_SYN: [SockFilter; 5] = {
    const LOAD_BYTE: u16 = 0x30;
    const AND: u16 = 0x54;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const FLAGS: u32 = 13;
    const SYN: u32 = 0x02;
    const ACK: u32 = 0x10;
    [
        SockFilter::new(LOAD_BYTE, 0, 0, FLAGS),
        SockFilter::new(AND, 0, 0, SYN | ACK),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, SYN),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ]
};

/// What is in the kernel's queue at this moment: those clients' connections were accepted on our
/// behalf, so they get their answer although we are about to stop listening.
pub fn accept_waiting(listener: TcpListener) -> Vec<(TcpStream, SocketAddr)> {
    let Ok(listener) = listener.into_std() else {
        return Vec::new();
    };
    std::iter::from_fn(|| {
        loop {
            match listener.accept() {
                Ok((stream, peer)) => {
                    let stream = stream
                        .set_nonblocking(true)
                        .and_then(|()| TcpStream::from_std(stream));
                    return stream.ok().map(|stream| (stream, peer));
                }
                Err(error) if is_about_the_client(&error) => {}
                Err(_nothing_more) => return None,
            }
        }
    })
    .collect()
}

fn is_about_the_client(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(15);

    fn localhost(port: u16) -> Listen {
        Listen {
            host: "127.0.0.1".into(),
            port,
        }
    }

    #[test]
    fn all_sockets_share_one_free_port() {
        let sockets = bind(&localhost(0), 3, LIMIT).unwrap();
        let ports: Vec<u16> = sockets
            .iter()
            .map(|s| s.local_addr().unwrap().port())
            .collect();
        assert_eq!(ports, [ports[0]; 3]);
        assert_ne!(ports[0], 0);
    }

    #[test]
    fn a_second_router_on_the_same_port_is_an_error() {
        let first = bind(&localhost(0), 2, LIMIT).unwrap();
        let port = first[0].local_addr().unwrap().port();
        assert_eq!(
            bind(&localhost(port), 2, LIMIT).unwrap_err().kind(),
            io::ErrorKind::AddrInUse
        );
    }

    #[tokio::test]
    async fn a_listener_that_begins_no_more_keeps_what_it_has() {
        use std::io::{Read, Write};
        let listener = bind(&localhost(0), 1, LIMIT).unwrap().remove(0);
        let listener = TcpListener::from_std(listener).unwrap();
        let address = listener.local_addr().unwrap();
        let mut before = std::net::TcpStream::connect(address).unwrap();
        before.write_all(b"hello").unwrap();
        begin_no_more(&listener).unwrap();
        let after = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
        after.set_nonblocking(true).unwrap();
        let _in_progress = after.connect(&address.into()).unwrap_err();

        let mut accepted = accept_waiting(listener);
        assert_eq!(accepted.len(), 1, "the one from before");
        let (stream, _) = accepted.remove(0);
        let mut stream = stream.into_std().unwrap();
        stream.set_nonblocking(false).unwrap();
        let mut read = [0; 10];
        stream.read_exact(&mut read[..5]).unwrap();
        before.write_all(b"again").unwrap();
        stream.read_exact(&mut read[5..]).unwrap();
        assert_eq!(&read, b"helloagain");
    }
}
