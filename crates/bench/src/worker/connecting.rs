//! The first step of a client: a socket on its way, from an address and a port that are chosen here.
//!
//! The system could choose the port, but it looks for a free one among all that are taken, which costs a millisecond once
//! ten thousand of an address are: that would be measured as the server's.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;

use goim_session::{ClientRules, Moment};
use mio::net::TcpStream;
use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};

use crate::control::Target;
use crate::tracker::Tracker;

/// Bytes that the system keeps for all clients of a worker that do not read, and for one of them at least and at most.
///
/// Left alone it would keep half a megabyte for each client that is slower than the server, which no network of clients does, and the
/// age of what is kept would be taken for the server's. But with a window that is hardly larger than a segment TCP can come
/// to a halt until its persist timer ends, some 200 ms each time: so little is for clients that get little each.
const RECEIVE_BYTES: usize = 80 * 1024 * 1024;
const RECEIVE_BYTES_EACH: RangeInclusive<usize> = 8 * 1024..=256 * 1024;

/// Bytes that the system is to keep for each of so many clients.
pub(super) fn receive_bytes(clients: u32) -> usize {
    let share = RECEIVE_BYTES / (clients.max(1) as usize);
    share.clamp(*RECEIVE_BYTES_EACH.start(), *RECEIVE_BYTES_EACH.end())
}

/// Ports that are tried for one client before it is given up.
const TRIES: u16 = 64;

/// From one port that is taken to the next that is tried. A prime, so that neighbours do not follow each other.
const STRIDE: u32 = 2_503;

/// What a client needs to begin with.
pub(super) struct Beginning<'a> {
    pub(super) target: &'a Target,
    pub(super) source: Option<Source>,
    /// As [`receive_bytes`] has it.
    pub(super) receive_bytes: usize,
    pub(super) rules: Arc<ClientRules>,
    /// For targets inside TLS.
    pub(super) tls: Option<&'a Arc<rustls::ClientConfig>>,
    pub(super) token: Vec<u8>,
    pub(super) trackers: Box<[Tracker]>,
    pub(super) number: u32,
    pub(super) now: Moment,
}

/// Where a client connects from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Source {
    pub(super) addr: IpAddr,
    /// The first port that may be taken, and how many there are.
    pub(super) first: u16,
    pub(super) count: u16,
    /// The port that this client tries first, counted from the first.
    pub(super) place: u16,
}

impl Source {
    /// Ports in the order in which they are to be tried.
    fn ports(self) -> impl Iterator<Item = u16> {
        (0..TRIES).filter_map(move |at| {
            let offset = (u32::from(self.place) + u32::from(at) * STRIDE) % u32::from(self.count.max(1));
            u16::try_from(u32::from(self.first) + offset).ok()
        })
    }
}

/// Begins to connect.
///
/// # Errors
/// What the system says at once. What it says later comes as an event.
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
        // The first says that somebody listens there, the second that somebody is connected to the same place from there.
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
        // Ports in TIME_WAIT may be taken again.
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
    fn many_clients_keep_little_each_and_few_enough() {
        for (clients, bytes) in
            [(0, 262_144), (32, 262_144), (1_000, 83_886), (10_000, 8_388), (18_000, 8_192)]
        {
            assert_eq!(receive_bytes(clients), bytes, "{clients} clients");
        }
    }

    #[test]
    fn ports_stay_in_their_range_and_differ() {
        let source = Source { addr: Ipv4Addr::LOCALHOST.into(), first: 40_000, count: 3_000, place: 2_999 };
        let ports: Vec<u16> = source.ports().collect();
        assert_eq!(ports[..3], [42_999, 42_502, 42_005]);
        assert!(ports.iter().all(|port| (40_000..43_000).contains(port)), "{ports:?}");
        let different: std::collections::BTreeSet<_> = ports.iter().collect();
        assert_eq!(different.len(), usize::from(TRIES));
    }

    #[test]
    fn a_port_that_is_taken_is_passed_over() {
        let target = TcpListener::bind("127.0.0.1:0").unwrap();
        let (first, count) = crate::machine::outgoing_ports();
        let source = Source { addr: [127, 0, 0, 9].into(), first, count, place: 17 };
        let connect = || connect(target.local_addr().unwrap(), Some(source), 8192).unwrap();
        // Listens, so that not even SO_REUSEADDR gives it away.
        let taken = TcpListener::bind((source.addr, first + 17));
        let (one, two) = (connect(), connect());
        let ports = [one.local_addr().unwrap().port(), two.local_addr().unwrap().port()];
        assert!(ports[0] != ports[1] && !ports.contains(&(first + 17)), "{ports:?}, taken: {taken:?}");
    }
}
