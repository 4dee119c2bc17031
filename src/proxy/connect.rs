//! Makes connections to upstreams.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::{TcpStream, UnixStream, lookup_host},
    sync::Mutex,
    time::timeout,
};
use tokio_rustls::{TlsConnector, TlsStream};

use super::{
    error::{UpstreamError, classify_connect},
    io::{Io, Socket},
};
use crate::{
    clock,
    config::{Address, Upstream},
    policy::FailureKind,
};

/// A dead peer that never says goodbye (power loss, a firewall that forgot) is noticed by the kernel
/// after about this long of silence and a few probes; it has no effect on slow but live peers.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// An upstream that takes nothing of what was sent to it for this long is given up by the kernel
/// (`TCP_USER_TIMEOUT`, tcp(7)). While a response is awaited `timeout` comes first; this is for tunnels.
const UNREAD: Duration = Duration::from_secs(60);
/// The kernel is given no more than this beyond what the upstream has room for
/// (`TCP_NOTSENT_LOWAT`, tcp(7)): so an upload that goes on slowly is seen to go on, and is not taken for
/// one that stalls.
const UNSENT: u32 = 128 << 10;
/// How long the addresses of a name are used again.
const RESOLVED: Duration = Duration::from_secs(1);

/// Connects within `connect-timeout`: resolves the name, tries its addresses in turn, shakes hands.
/// `http1_only` offers nothing else where there is a choice.
///
/// # Errors
/// The kind says at which of these it failed; nothing of a request was sent.
pub async fn connect(
    upstream: &Upstream,
    resolver: &Resolver,
    http1_only: bool,
) -> Result<Io, UpstreamError> {
    let limit = upstream.client.connect_timeout;
    let connecting = async {
        let socket = reach(upstream, resolver, clock::now() + limit).await?;
        match upstream.tls {
            false => Ok(Io::Plain(socket)),
            true => shake_hands(socket, upstream, http1_only).await,
        }
    };
    match timeout(limit, connecting).await {
        Ok(connected) => connected,
        Err(_elapsed) => Err(UpstreamError::new(FailureKind::ConnectTimeout)),
    }
}

async fn reach(
    upstream: &Upstream,
    resolver: &Resolver,
    deadline: Instant,
) -> Result<Socket, UpstreamError> {
    let (host, port) = match &upstream.address {
        Address::Tcp { host, port } => (host, *port),
        Address::Unix(path) => {
            let stream = UnixStream::connect(path).await.map_err(classify_connect)?;
            return Ok(Socket::Unix(stream));
        }
    };
    let addresses = resolver
        .resolve(host, port)
        .await
        .map_err(|error| UpstreamError::caused(FailureKind::Unresolved, error))?;
    let mut last = UpstreamError::new(FailureKind::Unresolved);
    for (tried, address) in addresses.iter().enumerate() {
        // One that answers nothing leaves the others their share of the time.
        let left = deadline.saturating_duration_since(clock::now());
        let share = left / (addresses.len() - tried) as u32;
        last = match timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                prepare(&stream).map_err(classify_connect)?;
                return Ok(Socket::Tcp(stream));
            }
            Ok(Err(error)) => classify_connect(error),
            Err(_elapsed) => UpstreamError::new(FailureKind::ConnectTimeout),
        };
    }
    Err(last)
}

/// Finds the addresses of one upstream's name, one question at a time: the system's resolver takes a
/// thread for as long as it takes, so a name server that hangs must not be asked by every request.
#[derive(Default)]
pub struct Resolver(Mutex<Option<(Instant, Rc<[SocketAddr]>)>>);

impl Resolver {
    async fn resolve(&self, host: &str, port: u16) -> io::Result<Rc<[SocketAddr]>> {
        if let Ok(address) = host.parse::<IpAddr>() {
            return Ok(Rc::new([SocketAddr::new(address, port)]));
        }
        let mut known = self.0.lock().await;
        if let Some((when, addresses)) = &*known
            && clock::now().saturating_duration_since(*when) < RESOLVED
        {
            return Ok(Rc::clone(addresses));
        }
        let found = lookup_host((host, port)).await?;
        let addresses: Rc<[SocketAddr]> = found.collect();
        *known = Some((clock::now(), Rc::clone(&addresses)));
        Ok(addresses)
    }
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(&keepalive())?;
    socket.set_tcp_user_timeout(Some(UNREAD))?;
    socket.set_tcp_notsent_lowat(UNSENT)
}

async fn shake_hands(
    socket: Socket,
    upstream: &Upstream,
    http1_only: bool,
) -> Result<Io, UpstreamError> {
    let refused = |why: String| UpstreamError::caused(FailureKind::Tls, why);
    let config = upstream
        .client_tls
        .offer(http1_only)
        .ok_or_else(|| refused("TLS is not set up".into()))?;
    let name = match (&upstream.client_tls.server_name, &upstream.address) {
        (Some(name), _) => name.clone(),
        (None, Address::Tcp { host, .. }) => {
            ServerName::try_from(host.clone()).map_err(|e| refused(e.to_string()))?
        }
        // As nginx calls it.
        (None, Address::Unix(_)) => {
            ServerName::try_from("localhost").map_err(|e| refused(e.to_string()))?
        }
    };
    match TlsConnector::from(Arc::clone(config))
        .connect(name, socket)
        .await
    {
        Ok(stream) => Ok(Io::Tls(Box::new(TlsStream::Client(stream)))),
        Err(error) if error.to_string().contains("CaUsedAsEndEntity") => Err(refused(format!(
            "{error}: its certificate is one for signing others; have it made as a server's (openssl req -x509 \
             -addext basicConstraints=critical,CA:FALSE)"
        ))),
        Err(error) => Err(UpstreamError::caused(FailureKind::Tls, error)),
    }
}

/// The keepalive settings of every socket of ours.
pub fn keepalive() -> TcpKeepalive {
    TcpKeepalive::new()
        .with_time(KEEPALIVE)
        .with_interval(KEEPALIVE)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use socket2::{Domain, Socket as RawSocket, Type};

    use super::*;
    use crate::config::Config;

    /// An address that lets connections wait for ever, and what makes it do so.
    fn deaf() -> (SocketAddr, Vec<RawSocket>) {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let listener = RawSocket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&any.into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let mut sockets = vec![listener];
        // The queue is for one; what the kernel has begun for others waits.
        for _ in 0..4 {
            let waiting = RawSocket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            waiting.set_nonblocking(true).unwrap();
            let _in_progress = waiting.connect(&address);
            sockets.push(waiting);
        }
        (address.as_socket().unwrap(), sockets)
    }

    #[tokio::test]
    async fn each_address_of_a_name_has_its_share_of_the_time() {
        let text = r#"{
            "main-target": "http://service.test", "canary-target": "http://service.test",
            "router-server": {"host": "127.0.0.1", "port": 1},
            "proxy-client": {"to-main-and-canary": {"connect-timeout": "900ms"}}
        }"#;
        let main = Config::parse("test", text).unwrap().main;
        let (deaf, _kept) = deaf();
        let refusing = {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap()
        };
        let good = TcpListener::bind("127.0.0.1:0").unwrap();
        let known =
            |addresses: &[SocketAddr]| Resolver(Mutex::new(Some((clock::now(), addresses.into()))));
        let began = clock::now();
        let resolver = known(&[deaf, refusing, good.local_addr().unwrap()]);
        let deadline = began + main.client.connect_timeout;
        let socket = reach(&main, &resolver, deadline).await.unwrap();
        assert!(matches!(socket, Socket::Tcp(_)));
        assert!(clock::now() < deadline);

        let deadline = clock::now() + main.client.connect_timeout;
        let failed = reach(&main, &known(&[deaf, refusing]), deadline).await;
        assert!(matches!(failed, Err(error) if error.kind == FailureKind::Refused));
    }
}
