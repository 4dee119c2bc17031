//! What the kernel knows of how far an upstream that has ended a connection had read.

use std::{os::fd::AsRawFd, time::Duration};

use tokio::{io::Interest, time::timeout};

use super::io::{Io, Socket};

/// How long an upstream that has ended a connection may take to refuse what is sent to it nevertheless:
/// a round trip.
const REFUSAL: Duration = Duration::from_millis(500);

/// Whether the upstream, which has ended the connection (a read came to its end), can have read
/// nothing of what was sent behind the first `written` bytes. Where that cannot be told, as with TLS
/// or a unix socket, it may have.
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
pub async fn has_refused_all_behind(io: &Io, written: u64) -> bool {
    let Io::Plain(Socket::Tcp(io)) = io else {
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
