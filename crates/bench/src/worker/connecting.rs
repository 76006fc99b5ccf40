//! The first step of a client: connecting a socket from an address and a port that are chosen here.
//!
//! The kernel could choose the port, but with ten thousand ports of an address in use its search
//! takes a millisecond, which would be measured as latency of the server.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;

use goim_session::{ClientRules, Millis};
use mio::net::TcpStream;
use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};

use crate::control::Target;
use crate::tracker::Tracker;

/// Receive buffers of all clients of a worker, and the range for one client, in bytes.
///
/// By default the kernel buffers half a megabyte for a client that is slower than the server. Real
/// networks do not, and the time in the buffer would be measured as latency of the server. But with
/// a window of about one segment, TCP can stall until its persist timer fires, about 200 ms. So
/// small buffers are used with many clients, where each gets little.
const RECEIVE_BYTES: usize = 80 * 1024 * 1024;
const RECEIVE_BYTES_EACH: RangeInclusive<usize> = 8 * 1024..=256 * 1024;

/// Returns the receive buffer of each of this many clients, in bytes.
pub(super) fn receive_bytes(clients: u32) -> usize {
    let share = RECEIVE_BYTES / (clients.max(1) as usize);
    share.clamp(*RECEIVE_BYTES_EACH.start(), *RECEIVE_BYTES_EACH.end())
}

/// Ports that are tried for one client.
const TRIES: u16 = 64;

/// The distance between two ports that are tried. A prime, so that clients with adjacent ports try
/// different ones.
const STRIDE: u32 = 2_503;

/// What a client is created with.
pub(super) struct Setup<'a> {
    pub(super) target: &'a Target,
    pub(super) source: Option<Source>,
    /// See [`receive_bytes`].
    pub(super) receive_bytes: usize,
    pub(super) rules: Arc<ClientRules>,
    /// For targets with TLS.
    pub(super) tls: Option<&'a Arc<rustls::ClientConfig>>,
    pub(super) token: Vec<u8>,
    pub(super) trackers: Box<[Tracker]>,
    pub(super) number: u32,
    pub(super) now: Millis,
}

/// The source address and ports of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Source {
    pub(super) addr: IpAddr,
    /// The first port.
    pub(super) first: u16,
    /// The number of ports.
    pub(super) count: u16,
    /// The port to try first, relative to the first port.
    pub(super) offset: u16,
}

impl Source {
    /// Returns the ports to try, in order.
    fn ports(self) -> impl Iterator<Item = u16> {
        (0..TRIES).filter_map(move |at| {
            let offset = (u32::from(self.offset) + u32::from(at) * STRIDE) % u32::from(self.count.max(1));
            u16::try_from(u32::from(self.first) + offset).ok()
        })
    }
}

/// Starts to connect.
///
/// # Errors
/// An immediate error of the system. A later one is reported as an event.
pub(super) fn connect(
    addr: SocketAddr,
    source: Option<Source>,
    receive_bytes: usize,
) -> io::Result<TcpStream> {
    let Some(source) = source else { return connect_from(addr, None, receive_bytes) };
    let mut result = Err(Errno::ADDRINUSE.into());
    for port in source.ports() {
        result = connect_from(addr, Some(SocketAddr::new(source.addr, port)), receive_bytes);
        let error = result.as_ref().err().map(io::Error::kind);
        // The port has a listener, or a connection to the same address.
        if !matches!(error, Some(io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable)) {
            break;
        }
    }
    result
}

fn connect_from(addr: SocketAddr, from: Option<SocketAddr>, receive_bytes: usize) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    socket.set_recv_buffer_size(receive_bytes)?;
    if let Some(from) = from {
        // Allows ports in TIME_WAIT.
        socket.set_reuse_address(true)?;
        socket.bind(&from.into())?;
    }
    match socket.connect(&addr.into()) {
        Err(error) if error.raw_os_error() != Some(Errno::INPROGRESS.raw_os_error()) => Err(error),
        _ => Ok(TcpStream::from_std(socket.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, TcpListener};

    #[test]
    fn many_clients_have_small_buffers_and_few_have_large_ones() {
        for (clients, bytes) in
            [(0, 262_144), (32, 262_144), (1_000, 83_886), (10_000, 8_388), (18_000, 8_192)]
        {
            assert_eq!(receive_bytes(clients), bytes, "{clients} clients");
        }
    }

    #[test]
    fn ports_are_in_range_and_different() {
        let source = Source { addr: Ipv4Addr::LOCALHOST.into(), first: 40_000, count: 3_000, offset: 2_999 };
        let ports: Vec<u16> = source.ports().collect();
        assert_eq!(ports[..3], [42_999, 42_502, 42_005]);
        assert!(ports.iter().all(|port| (40_000..43_000).contains(port)), "{ports:?}");
        let different: std::collections::BTreeSet<_> = ports.iter().collect();
        assert_eq!(different.len(), usize::from(TRIES));
    }

    #[test]
    fn a_port_in_use_is_skipped() {
        let target = TcpListener::bind("127.0.0.1:0").unwrap();
        let (first, count) = crate::machine::outgoing_ports();
        let source = Source { addr: [127, 0, 0, 9].into(), first, count, offset: 17 };
        let connect = || connect(target.local_addr().unwrap(), Some(source), 8192).unwrap();
        // A listener, so that SO_REUSEADDR does not allow the port.
        let taken = TcpListener::bind((source.addr, first + 17));
        let (one, two) = (connect(), connect());
        let ports = [one.local_addr().unwrap().port(), two.local_addr().unwrap().port()];
        assert!(ports[0] != ports[1] && !ports.contains(&(first + 17)), "{ports:?}, taken: {taken:?}");
    }
}
