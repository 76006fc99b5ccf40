//! Opening listeners, and errors that name the address, the setting and the remedy.

use std::io;
use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpSocket};

use crate::Config;
use crate::settings::ConfigError;
use crate::wait::Transient;

/// Why a system did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// An address cannot be listened on.
    #[error("cannot listen on {addr} ({setting}): {error}\n  {}", remedy(.error, .setting))]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// The setting with the address.
        setting: String,
        /// The system's error.
        error: io::Error,
    },
    /// A key for signed tokens cannot be used.
    #[error(transparent)]
    Key(#[from] goim_logic::KeyError),
    /// A destination of packets or events cannot be used.
    #[error(transparent)]
    Route(#[from] crate::RouteError),
    /// The store of timelines cannot be used.
    #[error(transparent)]
    TimelineStore(#[from] crate::TimelineStoreError),
    /// comet did not start for another reason: its certificate, its threads.
    #[error("comet does not start: {0}")]
    Comet(goim_comet::StartError),
}

impl Transient for StartError {
    fn waiting_for(&self) -> Option<String> {
        match self {
            Self::TimelineStore(error) => error.waiting_for(),
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
                "ports below 1024 need the capability CAP_NET_BIND_SERVICE: grant it, or choose another with {other}"
            )
        }
        io::ErrorKind::AddrNotAvailable => {
            format!("this machine does not have that address: choose one that it has with {other}")
        }
        _ => format!("choose another with {other}"),
    }
}

/// A listener and its address.
pub(crate) struct Bound {
    pub(crate) listener: TcpListener,
    pub(crate) addr: SocketAddr,
}

/// Listens on `addr`, the value of `setting`.
pub(crate) async fn listen(setting: &str, addr: SocketAddr) -> Result<Bound, StartError> {
    let bound = async {
        let listener = TcpListener::bind(addr).await?;
        let addr = listener.local_addr()?;
        Ok(Bound { listener, addr })
    };
    bound.await.map_err(|error| StartError::Listen { addr, setting: setting.to_owned(), error })
}

/// The same, if there is an address.
pub(crate) async fn listen_if(setting: &str, addr: Option<SocketAddr>) -> Result<Option<Bound>, StartError> {
    match addr {
        Some(addr) => listen(setting, addr).await.map(Some),
        None => Ok(None),
    }
}

/// A bound address that does not accept connections yet, because its service waits for an engine.
#[cfg(feature = "cluster")]
pub(crate) struct Reserved {
    socket: TcpSocket,
    pub(crate) addr: SocketAddr,
    setting: &'static str,
}

/// The maximum number of connections waiting to be accepted, as tokio has it.
#[cfg(feature = "cluster")]
const BACKLOG: u32 = 1024;

#[cfg(feature = "cluster")]
impl Reserved {
    /// Binds `addr`, the value of `setting`.
    pub(crate) fn new(setting: &'static str, addr: SocketAddr) -> Result<Self, StartError> {
        let bound = || {
            let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            socket.set_reuseaddr(true)?;
            socket.bind(addr)?;
            let addr = socket.local_addr()?;
            Ok(Self { socket, addr, setting })
        };
        bound().map_err(|error| StartError::Listen { addr, setting: setting.to_owned(), error })
    }

    /// Starts to listen.
    pub(crate) fn listen(self) -> Result<Bound, StartError> {
        let Self { socket, addr, setting } = self;
        let listener = socket.listen(BACKLOG);
        let listener =
            listener.map_err(|error| StartError::Listen { addr, setting: setting.to_owned(), error })?;
        Ok(Bound { listener, addr })
    }
}

/// Tests whether the clients' ports are free.
///
/// comet's shards share each port (`SO_REUSEPORT`). A second goim of the same user could share it
/// too: both would start, and the kernel would spread the clients over them. A bind without that
/// option fails where another process listens.
pub(crate) fn probe_clients(config: &Config) -> Result<(), StartError> {
    for (setting, addr) in config.listeners() {
        if !setting.starts_with("comet.") || addr.port() == 0 {
            continue;
        }
        let probe = || -> io::Result<()> {
            let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            // Ports of connections that have just ended count as free, as for comet's own
            // listeners.
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
            let mut clients = config.listeners().into_iter().filter(|(key, _)| key.starts_with("comet."));
            let setting = clients.find(|(_, own)| *own == addr).map(|(setting, _)| setting);
            StartError::Listen { addr, setting: setting.unwrap_or_else(|| "comet.listen".to_owned()), error }
        }
        other => StartError::Comet(other),
    }
}
