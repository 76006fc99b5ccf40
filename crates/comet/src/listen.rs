//! Opens the listeners: one socket per address and shard; the kernel spreads connections over them
//! (SO_REUSEPORT).

use std::net::SocketAddr;

use mio::net::TcpListener;
use socket2::{Domain, Protocol, Socket, Type};

use crate::config::Config;
use crate::listener::{ListenAddrs, ListenerKind};

/// Why a comet did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address could not be listened on.
    #[error("cannot listen on {addr}: {error}")]
    Listen {
        /// The address as configured.
        addr: SocketAddr,
        /// The error of the system.
        error: std::io::Error,
    },
    /// The certificate or the key cannot be used.
    #[error("TLS: {0}")]
    Tls(String),
    /// A thread or a poll could not be created.
    #[error("cannot start a shard: {0}")]
    Shard(std::io::Error),
}

/// The listeners of all shards.
pub(crate) struct Listening {
    /// By shard.
    pub(crate) shards: Vec<Vec<(TcpListener, ListenerKind)>>,
    /// The addresses that they are bound to.
    pub(crate) addrs: ListenAddrs,
}

/// Opens all listeners of the configuration for `shards` shards.
pub(crate) fn open(config: &Config, shards: usize, tls: bool) -> Result<Listening, StartError> {
    let mut open =
        Listening { shards: (0..shards).map(|_| Vec::new()).collect(), addrs: ListenAddrs::default() };
    for (kind, addrs) in config.listen.addrs.iter().filter(|(kind, _)| tls || !kind.is_tls()) {
        for addr in addrs {
            let bound = open.open_one(config, kind, *addr)?;
            open.addrs[kind].push(bound);
        }
    }
    Ok(open)
}

impl Listening {
    fn open_one(
        &mut self,
        config: &Config,
        kind: ListenerKind,
        addr: SocketAddr,
    ) -> Result<SocketAddr, StartError> {
        let failed = |error| StartError::Listen { addr, error };
        // With SO_REUSEPORT a second server could share the port unnoticed. A first bind without it
        // detects that.
        let probe = bind(config, addr, false).map_err(failed)?;
        let bound = probe.local_addr().map_err(failed)?.as_socket().unwrap_or(addr);
        drop(probe);
        for shard in &mut self.shards {
            let socket = bind(config, bound, true).map_err(failed)?;
            socket.listen(config.listen.backlog).map_err(failed)?;
            shard.push((TcpListener::from_std(socket.into()), kind));
        }
        Ok(bound)
    }
}

/// Creates a socket with the options that accepted connections inherit.
fn bind(config: &Config, addr: SocketAddr, shared: bool) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    // Messages are gathered before they are written, so Nagle's algorithm could only add delay.
    socket.set_tcp_nodelay(true)?;
    if let Err(error) = socket.set_tcp_notsent_lowat(config.send.notsent_lowat_bytes) {
        tracing::warn!(%error, "TCP_NOTSENT_LOWAT is not available; slow readers use more kernel memory");
    }
    socket.bind(&addr.into())?;
    Ok(socket)
}
