//! Makes connections to upstreams.

use std::{
    future::{Future, poll_fn},
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsRawFd,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::{TcpStream, lookup_host},
    sync::Mutex,
    task::coop::unconstrained,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::error::{UpstreamError, classify_connect};
use crate::{
    clock,
    config::{Address, Config, Upstream},
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
/// How long an upstream that has ended a connection may take to refuse what is sent to it nevertheless:
/// a round trip.
const REFUSAL: Duration = Duration::from_millis(500);
/// How long the addresses of a name are used again.
const RESOLVED: Duration = Duration::from_secs(1);

/// How TLS is spoken to the upstreams of one kind. Cheap to clone.
#[derive(Clone)]
pub struct Tls(Option<Arc<ClientConfig>>);

/// TLS could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// There is nothing to verify a certificate with.
    #[error(
        "no root certificates were found to verify https:// upstreams with ({0}): install the \
         system's CA certificates (Debian: ca-certificates) or point SSL_CERT_FILE at a bundle"
    )]
    NoRoots(String),
    /// The library refuses.
    #[error("TLS cannot be set up: {0}")]
    Rustls(#[from] rustls::Error),
}

/// The TLS settings of all upstreams.
#[derive(Clone)]
pub struct TlsSettings {
    /// For main and canary.
    pub services: Tls,
    /// For the sidecar.
    pub sidecar: Tls,
}

impl TlsSettings {
    /// Reads the system's root certificates, if any upstream speaks TLS.
    ///
    /// # Errors
    /// There are no root certificates, but they are needed.
    pub fn new(config: &Config) -> Result<TlsSettings, TlsError> {
        let services = [&config.main, &config.canary];
        let sidecar = config.sidecar.as_ref().map(|sidecar| &sidecar.upstream);
        Ok(TlsSettings {
            services: Tls::new(services.into_iter().find(|upstream| upstream.tls))?,
            sidecar: Tls::new(sidecar.filter(|upstream| upstream.tls))?,
        })
    }
}

impl Tls {
    fn new(upstream: Option<&Upstream>) -> Result<Tls, TlsError> {
        let Some(upstream) = upstream else {
            return Ok(Tls(None));
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?;
        let mut config = if upstream.client_tls.insecure_skip_verify {
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(TrustAnyone(provider)))
                .with_no_client_auth()
        } else {
            builder
                .with_root_certificates(system_roots()?)
                .with_no_client_auth()
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Tls(Some(Arc::new(config))))
    }
}

fn system_roots() -> Result<RootCertStore, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let why: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
        return Err(TlsError::NoRoots(why.join("; ")));
    }
    Ok(roots)
}

/// Connects within `connect-timeout`: resolves the name, tries its addresses in turn, shakes hands.
///
/// # Errors
/// The kind says at which of these it failed; nothing of a request was sent.
pub async fn connect(
    upstream: &Upstream,
    tls: &Tls,
    resolver: &Resolver,
) -> Result<UpstreamIo, UpstreamError> {
    match timeout(
        upstream.client.connect_timeout,
        establish(upstream, tls, resolver),
    )
    .await
    {
        Ok(connected) => connected,
        Err(_elapsed) => Err(UpstreamError::new(FailureKind::ConnectTimeout)),
    }
}

async fn establish(
    upstream: &Upstream,
    tls: &Tls,
    resolver: &Resolver,
) -> Result<UpstreamIo, UpstreamError> {
    if let Address::Unix(_) = upstream.address {
        return Err(UpstreamError::new(FailureKind::Refused));
    }
    let addresses = resolver
        .resolve(upstream)
        .await
        .map_err(|error| UpstreamError::caused(FailureKind::Unresolved, error))?;
    let mut last = None;
    for address in addresses.iter() {
        match TcpStream::connect(address).await {
            Ok(stream) => return finish(stream, upstream, tls).await,
            Err(error) => last = Some(error),
        }
    }
    Err(match last {
        Some(error) => classify_connect(error),
        None => UpstreamError::new(FailureKind::Unresolved),
    })
}

/// Finds the addresses of one upstream's name, one question at a time: the system's resolver takes a
/// thread for as long as it takes, so a name server that hangs must not be asked by every request.
#[derive(Default)]
pub struct Resolver(Mutex<Option<(Instant, Rc<[SocketAddr]>)>>);

impl Resolver {
    async fn resolve(&self, upstream: &Upstream) -> io::Result<Rc<[SocketAddr]>> {
        let Address::Tcp { host, port } = &upstream.address else {
            return Ok(Rc::new([]));
        };
        if let Ok(address) = host.parse::<IpAddr>() {
            return Ok(Rc::new([SocketAddr::new(address, *port)]));
        }
        let mut known = self.0.lock().await;
        if let Some((when, addresses)) = &*known
            && clock::now().saturating_duration_since(*when) < RESOLVED
        {
            return Ok(Rc::clone(addresses));
        }
        let found = lookup_host((host.as_str(), *port)).await?;
        let addresses: Rc<[SocketAddr]> = found.collect();
        *known = Some((clock::now(), Rc::clone(&addresses)));
        Ok(addresses)
    }
}

async fn finish(
    stream: TcpStream,
    upstream: &Upstream,
    tls: &Tls,
) -> Result<UpstreamIo, UpstreamError> {
    stream.set_nodelay(true).map_err(classify_connect)?;
    let socket = SockRef::from(&stream);
    socket
        .set_tcp_keepalive(&keepalive())
        .map_err(classify_connect)?;
    socket
        .set_tcp_user_timeout(Some(UNREAD))
        .map_err(classify_connect)?;
    socket
        .set_tcp_notsent_lowat(UNSENT)
        .map_err(classify_connect)?;
    if !upstream.tls {
        return Ok(UpstreamIo::Plain(stream));
    }
    let refused = |why: String| UpstreamError::caused(FailureKind::Tls, why);
    let config = tls
        .0
        .clone()
        .ok_or_else(|| refused("TLS is not set up".into()))?;
    let host = match &upstream.address {
        Address::Tcp { host, .. } => host.clone(),
        Address::Unix(_) => "localhost".to_owned(),
    };
    let name = ServerName::try_from(host).map_err(|e| refused(e.to_string()))?;
    match TlsConnector::from(config).connect(name, stream).await {
        Ok(stream) => Ok(UpstreamIo::Tls(Box::new(stream))),
        Err(error) => Err(UpstreamError::caused(FailureKind::Tls, error)),
    }
}

/// The keepalive settings of every socket of ours.
pub fn keepalive() -> TcpKeepalive {
    TcpKeepalive::new()
        .with_time(KEEPALIVE)
        .with_interval(KEEPALIVE)
}

/// A connection to an upstream.
pub enum UpstreamIo {
    /// TCP.
    Plain(TcpStream),
    /// TLS over TCP.
    Tls(Box<TlsStream<TcpStream>>),
}

impl UpstreamIo {
    /// Whether an idle connection is still there and silent: one that has sent anything, or has been
    /// closed, is of no more use. Without a system call where nothing was received.
    pub fn is_quiet(&mut self) -> bool {
        let mut byte = [0];
        match self {
            UpstreamIo::Plain(io) => would_block(&io.try_read(&mut byte)),
            // What TLS says to itself (session tickets, key updates) is not the upstream's.
            UpstreamIo::Tls(io) => {
                let mut space = ReadBuf::new(&mut byte);
                let read = poll_fn(|cx| Pin::new(&mut *io).poll_read(cx, &mut space));
                // Not to be taken for silence: that this task has had its turn.
                let mut read = pin!(unconstrained(read));
                let mut cx = Context::from_waker(Waker::noop());
                read.as_mut().poll(&mut cx).is_pending()
            }
        }
    }

    /// Whether the upstream, which has ended the connection (a read came to its end), can have read
    /// nothing of what was sent behind the first `written` bytes. Where that cannot be told, as with TLS,
    /// it may have.
    ///
    /// The end came as a FIN, which acknowledges all that had been received when it was sent, and is
    /// processed behind that acknowledgement (RFC 9293 section 3.10.7.4). Where it acknowledged nothing
    /// behind `written`, the upstream closed first. But it may have closed its sending side only, and go
    /// on reading (Jetty does, when a connection has been idle for too long). So its refusal is waited
    /// for: who has closed both sides answers whatever comes with a reset (RFC 9293 section 3.6.1), who
    /// reads on acknowledges it. A reset alone would tell nothing: what it acknowledges is not processed,
    /// and it comes as well where data was received and then thrown away.
    ///
    /// Who reads on and then closes, before its kernel has taken the time to acknowledge (40 ms on Linux, as a
    /// rule), answers nothing; a segment that is sent twice may then be reset, by a kernel that no longer
    /// knows the connection (`tcp_max_tw_buckets`). So one on which anything was sent twice is not judged.
    ///
    /// Only an upstream is misunderstood that closes its sending side, so that it can answer nothing, acts
    /// on what comes then, and of its own accord resets the connection within that time.
    pub async fn has_refused_all_behind(&self, written: u64) -> bool {
        let UpstreamIo::Plain(io) = self else {
            return false;
        };
        // The SYN counts for one.
        let untouched = |info: &TcpInfo| info.acked == written + 1 && info.retransmitted == 0;
        if !TcpInfo::of(io).as_ref().is_some_and(untouched) {
            return false;
        }
        let _refused_or_not = timeout(REFUSAL, io.ready(Interest::ERROR)).await;
        TcpInfo::of(io).is_some_and(|info| info.closed && untouched(&info))
    }
}

/// What the kernel knows of a connection (`TCP_INFO`, tcp(7)).
struct TcpInfo {
    /// Whether it is over, as after a reset; one that only the peer has ended is not.
    closed: bool,
    /// How much of what was sent the peer has acknowledged (RFC 4898, `tcpEStatsAppHCThruOctetsAcked`).
    acked: u64,
    /// How many segments were sent a second time.
    retransmitted: u32,
}

impl TcpInfo {
    /// `None` where the kernel does not say.
    fn of(socket: &impl AsRawFd) -> Option<TcpInfo> {
        /// Where `struct tcp_info` of linux/tcp.h has `tcpi_state`, `tcpi_total_retrans` and
        /// `tcpi_bytes_acked`; it only ever grows at its end.
        const STATE: usize = 0;
        const TOTAL_RETRANS: usize = 100;
        const BYTES_ACKED: usize = 120;
        /// `TCP_CLOSE`, of `enum` in net/tcp_states.h.
        const CLOSE: u8 = 7;

        let mut info = [0; BYTES_ACKED + 8];
        let (tcp, option) = (uapi::c::IPPROTO_TCP, uapi::c::TCP_INFO);
        let length = uapi::getsockopt(socket.as_raw_fd(), tcp, option, &mut info).ok()?;
        let acked = info[..length].get(BYTES_ACKED..)?.try_into().ok()?;
        let retransmitted = info[TOTAL_RETRANS..TOTAL_RETRANS + 4].try_into().ok()?;
        Some(TcpInfo {
            closed: info[STATE] == CLOSE,
            acked: u64::from_ne_bytes(acked),
            retransmitted: u32::from_ne_bytes(retransmitted),
        })
    }
}

fn would_block(result: &io::Result<usize>) -> bool {
    matches!(result, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

impl AsyncRead for UpstreamIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            UpstreamIo::Plain(io) => Pin::new(io).poll_read(cx, buf),
            UpstreamIo::Tls(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for UpstreamIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            UpstreamIo::Plain(io) => Pin::new(io).poll_write(cx, buf),
            UpstreamIo::Tls(io) => Pin::new(io).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            UpstreamIo::Plain(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            UpstreamIo::Tls(io) => Pin::new(io).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            UpstreamIo::Plain(io) => io.is_write_vectored(),
            UpstreamIo::Tls(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            UpstreamIo::Plain(io) => Pin::new(io).poll_flush(cx),
            UpstreamIo::Tls(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            UpstreamIo::Plain(io) => Pin::new(io).poll_shutdown(cx),
            UpstreamIo::Tls(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}

/// `insecure-skip-verify`: takes any certificate, but still checks that the peer holds its key.
#[derive(Debug)]
struct TrustAnyone(Arc<CryptoProvider>);

impl ServerCertVerifier for TrustAnyone {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
