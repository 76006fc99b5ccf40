//! Listening, and what to say when it fails: the address, the setting, and what to do.

use std::io;
use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpSocket};

use crate::Config;
use crate::settings::ConfigError;
use crate::wait::Passing;

/// Why a system did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is impossible.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// An address cannot be listened on.
    #[error("cannot listen on {addr} ({setting}): {error}\n  {}", remedy(.error, .setting))]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// The setting that it comes from.
        setting: &'static str,
        /// What the system said.
        error: io::Error,
    },
    /// A key for signed tokens cannot be used.
    #[error(transparent)]
    Key(#[from] goim_logic::KeyError),
    /// Packets of clients cannot go where they should.
    #[error(transparent)]
    Route(#[from] crate::RouteError),
    /// Messages cannot be kept where they should be.
    #[error(transparent)]
    Timelines(#[from] crate::TimelinesError),
    /// comet did not start for another reason: its certificate, its threads.
    #[error("comet does not start: {0}")]
    Comet(goim_comet::StartError),
}

impl Passing for StartError {
    fn waits_for(&self) -> Option<String> {
        match self {
            Self::Timelines(error) => error.waits_for(),
            _ => None,
        }
    }
}

fn remedy(error: &io::Error, setting: &str) -> String {
    let other = format!("--set {setting}=HOST:PORT");
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!(
                "another process has this port, perhaps another goim: stop it, or choose another with {other}"
            )
        }
        io::ErrorKind::PermissionDenied => {
            format!(
                "ports below 1024 need the capability CAP_NET_BIND_SERVICE: give it, or choose another with {other}"
            )
        }
        io::ErrorKind::AddrNotAvailable => {
            format!("this machine does not have that address: choose one that it has with {other}")
        }
        _ => format!("choose another with {other}"),
    }
}

/// A listener and where it is.
pub(crate) struct Bound {
    pub(crate) listener: TcpListener,
    pub(crate) addr: SocketAddr,
}

/// Listens on `addr`, which `setting` named.
pub(crate) async fn listen(setting: &'static str, addr: SocketAddr) -> Result<Bound, StartError> {
    let bound = async {
        let listener = TcpListener::bind(addr).await?;
        let addr = listener.local_addr()?;
        Ok(Bound { listener, addr })
    };
    bound.await.map_err(|error| StartError::Listen { addr, setting, error })
}

/// The same, if there is an address.
pub(crate) async fn listen_if(
    setting: &'static str,
    addr: Option<SocketAddr>,
) -> Result<Option<Bound>, StartError> {
    match addr {
        Some(addr) => listen(setting, addr).await.map(Some),
        None => Ok(None),
    }
}

/// An address that is taken, and where nobody is answered yet: who connects is refused, as long as
/// what would answer waits for an engine.
#[cfg(feature = "cluster")]
pub(crate) struct Reserved {
    socket: TcpSocket,
    pub(crate) addr: SocketAddr,
    setting: &'static str,
}

/// Connections that may wait to be accepted, as many as tokio lets wait.
#[cfg(feature = "cluster")]
const BACKLOG: u32 = 1024;

#[cfg(feature = "cluster")]
impl Reserved {
    /// Takes `addr`, which `setting` named.
    pub(crate) fn new(setting: &'static str, addr: SocketAddr) -> Result<Self, StartError> {
        let bound = || {
            let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            socket.set_reuseaddr(true)?;
            socket.bind(addr)?;
            let addr = socket.local_addr()?;
            Ok(Self { socket, addr, setting })
        };
        bound().map_err(|error| StartError::Listen { addr, setting, error })
    }

    /// Answers from now on.
    pub(crate) fn listen(self) -> Result<Bound, StartError> {
        let Self { socket, addr, setting } = self;
        let listener = socket.listen(BACKLOG);
        let listener = listener.map_err(|error| StartError::Listen { addr, setting, error })?;
        Ok(Bound { listener, addr })
    }
}

/// Looks whether the clients' ports are free.
///
/// comet's shards share each port (`SO_REUSEPORT`), and so would a second goim of the same user: both would start, and
/// the system would spread the clients over them. A socket without the option is refused where another listens.
pub(crate) fn probe_clients(config: &Config) -> Result<(), StartError> {
    for (setting, addr) in config.listeners() {
        if !setting.starts_with("comet.") || addr.port() == 0 {
            continue;
        }
        let probe = || -> io::Result<()> {
            let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            // Ports of connections that have just ended count as free, as for comet's own listeners.
            socket.set_reuseaddr(true)?;
            socket.bind(addr)
        };
        probe().map_err(|error| StartError::Listen { addr, setting, error })?;
    }
    Ok(())
}

/// comet's error with the setting that it is about.
pub(crate) fn comet_error(error: goim_comet::StartError, config: &Config) -> StartError {
    match error {
        goim_comet::StartError::Listen { addr, error } => {
            let named = config
                .listeners()
                .into_iter()
                .find(|(setting, own)| setting.starts_with("comet.") && *own == addr);
            StartError::Listen { addr, setting: named.map_or("comet.listen", |(setting, _)| setting), error }
        }
        other => StartError::Comet(other),
    }
}
