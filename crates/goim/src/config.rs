//! Everything that `goim serve` can be told: the roles' configurations put together, and what the process adds.
//!
//! A value of this type has been read but not judged: [`Config::check`] says what does not fit together. How values get
//! here from a file, the environment and the command line is the business of [`crate::settings`].

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;

use goim_adapters::memory::PushLogConfig;

use crate::machine;

/// What one process runs with.
#[derive(Debug, Clone)]
pub struct Config {
    /// Sockets, sessions, fan-out. An empty `comet.node.server` stands for the machine's host name.
    pub comet: goim_comet::Config,
    /// Identity, directories, the push API.
    pub logic: goim_logic::Config,
    /// Hand-over to comets.
    pub job: goim_job::Config,
    /// The push log between logic and job. `record_bytes_max` is taken from `logic.push`.
    pub push_log: PushLogConfig,
    /// The HTTP listener.
    pub http: HttpConfig,
    /// The gRPC listeners.
    pub rpc: RpcConfig,
    /// What the process says about itself.
    pub log: LogConfig,
}

/// Where the push API, the node list and the operator's pages are served.
#[derive(Debug, Clone)]
pub struct HttpConfig {
    /// Default `0.0.0.0:3111`. Port 0 takes a free one.
    pub listen: SocketAddr,
}

/// Where goim's gRPC services are served, for processes of a cluster. They have no protection of their own, so that by
/// default only this machine reaches them.
#[derive(Debug, Clone)]
pub struct RpcConfig {
    /// `goim.comet.Comet`, which job calls. Default `127.0.0.1:3109`; `None` leaves it closed.
    pub comet: Option<SocketAddr>,
    /// `goim.logic.Logic`, which comets call. Default `127.0.0.1:3119`; `None` leaves it closed.
    pub logic: Option<SocketAddr>,
    /// How connections of other nodes are kept.
    pub server: goim_adapters::grpc::ServerConfig,
}

/// The log on standard error.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// What is worth a line: `error`, `warn`, `info`, `debug`, `trace`, or directives by module such as
    /// `info,goim_comet=debug`. Default `info`.
    pub level: String,
    /// How a line looks. Default [`LogFormat::Pretty`].
    pub format: LogFormat,
}

/// How a line of the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Pretty,
    /// One JSON object a line, for collectors.
    Json,
}

impl Config {
    /// Fills in what depends on the machine, and what follows from another setting.
    pub(crate) fn complete(&mut self) {
        if self.comet.node.server.as_str().is_empty() {
            self.comet.node.server = machine::host_name().into();
        }
        self.push_log.record_bytes_max = self.logic.push.record_bytes_max;
    }
}

impl Default for Config {
    fn default() -> Self {
        let mut comet = goim_comet::Config::default();
        comet.node.server = "".into();
        Self {
            comet,
            logic: goim_logic::Config::default(),
            job: goim_job::Config::default(),
            push_log: PushLogConfig::default(),
            http: HttpConfig::default(),
            rpc: RpcConfig::default(),
            log: LogConfig::default(),
        }
    }
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self { listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 3111)) }
    }
}

impl Default for RpcConfig {
    fn default() -> Self {
        let local = |port| Some(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        Self { comet: local(3109), logic: local(3119), server: goim_adapters::grpc::ServerConfig::default() }
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: LogFormat::Pretty }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pretty => "pretty",
            Self::Json => "json",
        })
    }
}

impl FromStr for LogFormat {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "pretty" => Ok(Self::Pretty),
            "json" => Ok(Self::Json),
            _ => Err(()),
        }
    }
}
