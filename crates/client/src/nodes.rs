//! The node list of logic: addresses of comets, heartbeat interval, backoff.

use std::time::Duration;

use serde::Deserialize;
use tokio_rustls::TlsConnector;

use crate::backoff::Jitter;
use crate::http::{self, HttpError};
use crate::{Backoff, ConfigError, Endpoint, EndpointError, Scheme, TlsRoots, tls};

/// The reply of `/goim/nodes/weighted`: nodes in the order in which to try them.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct NodeList {
    /// The domain of all nodes; may be empty.
    pub domain: String,
    /// The port for TCP.
    pub tcp_port: Option<u16>,
    /// The port for WebSocket.
    pub ws_port: Option<u16>,
    /// The port for WebSocket inside TLS.
    pub wss_port: Option<u16>,
    /// How often a client should send a heartbeat.
    pub heartbeat: Option<Duration>,
    /// The server ends a session after this many heartbeat intervals without a heartbeat.
    pub heartbeat_max: Option<u32>,
    /// Host names or addresses, best first.
    pub nodes: Vec<String>,
    /// The delays between connection attempts. `None` if the list contains none.
    pub backoff: Option<Backoff>,
}

/// Where to get the node list, and which transport to use.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodeSource {
    /// The HTTP address of logic, for example `https://goim.example.org` or
    /// `http://127.0.0.1:3111`. HTTPS trusts the certificates in
    /// [`crate::ClientConfig::tls_roots`].
    pub url: String,
    /// The platform sent to logic. With `web` the list contains host names under logic's domain,
    /// with every other value addresses. Default: none.
    pub platform: Option<String>,
    /// The transport. The list has ports for [`Scheme::Tcp`], [`Scheme::Ws`] and [`Scheme::Wss`].
    pub scheme: Scheme,
}

impl NodeSource {
    /// Uses the list of the logic at `url`, for connections with `scheme`.
    pub fn new(url: impl Into<String>, scheme: Scheme) -> Self {
        Self { url: url.into(), platform: None, scheme }
    }

    /// Sets the platform.
    #[must_use]
    pub fn platform(mut self, platform: impl Into<String>) -> Self {
        self.platform = Some(platform.into());
        self
    }

    /// Requests the list. `roots` are the trusted certificates for an `https` URL.
    ///
    /// # Errors
    /// See [`NodesError`]. The whole request takes at most `timeout`.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection.
    pub async fn fetch(&self, roots: &TlsRoots, timeout: Duration) -> Result<NodeList, NodesError> {
        let tls = if self.uses_https() { Some(tls::connector(roots)?) } else { None };
        self.fetch_with(tls.as_ref(), timeout).await
    }

    pub(crate) fn uses_https(&self) -> bool {
        self.url.get(..8).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https://"))
    }

    pub(crate) async fn fetch_with(
        &self,
        tls: Option<&TlsConnector>,
        timeout: Duration,
    ) -> Result<NodeList, NodesError> {
        let platform = self.platform.as_deref().unwrap_or_default();
        if !platform.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')) {
            return Err(NodesError::BadPlatform(platform.to_owned()));
        }
        let url = format!("{}/goim/nodes/weighted?platform={platform}", self.url.trim_end_matches('/'));
        let get = http::get(&url, tls, NodeList::RESPONSE_BYTES_MAX);
        let body = tokio::time::timeout(timeout, get).await.map_err(|_| NodesError::TimedOut)??;
        NodeList::from_json(&body)
    }
}

impl NodeList {
    /// The maximum size of the response; a list has five nodes.
    const RESPONSE_BYTES_MAX: usize = 256 * 1024;

    /// Parses the reply of `/goim/nodes/weighted`.
    ///
    /// # Errors
    /// [`NodesError::BadReply`], [`NodesError::Refused`].
    pub fn from_json(reply: &[u8]) -> Result<Self, NodesError> {
        let reply: Reply =
            serde_json::from_slice(reply).map_err(|error| NodesError::BadReply(error.to_string()))?;
        if reply.code != 0 {
            return Err(NodesError::Refused { code: reply.code, message: reply.message });
        }
        let data = reply.data.unwrap_or_default();
        let seconds = |seconds: u32| Some(Duration::from_secs(seconds.into())).filter(|time| !time.is_zero());
        Ok(Self {
            domain: data.domain,
            tcp_port: port(data.tcp_port)?,
            ws_port: port(data.ws_port)?,
            wss_port: port(data.wss_port)?,
            heartbeat: seconds(data.heartbeat),
            heartbeat_max: Some(data.heartbeat_max).filter(|max| *max > 0),
            nodes: data.nodes,
            backoff: data.backoff.map(Backoff::from),
        })
    }

    /// Returns the nodes as endpoints, in order.
    ///
    /// # Errors
    /// [`NodesError::NoPort`] when the list has no port for the transport, [`NodesError::NoNodes`]
    /// when it is empty, [`NodesError::BadNode`] when a node is not a valid host.
    pub fn endpoints(&self, scheme: Scheme) -> Result<Vec<Endpoint>, NodesError> {
        let port = match scheme {
            Scheme::Tcp => self.tcp_port,
            Scheme::Ws => self.ws_port,
            Scheme::Wss => self.wss_port,
            Scheme::Tls => None,
        };
        let port = port.ok_or(NodesError::NoPort(scheme.as_str()))?;
        let hosts = self.nodes.iter().filter(|node| !node.is_empty());
        let endpoints = hosts.map(|host| Endpoint::new(scheme, host, port)).collect::<Result<Vec<_>, _>>()?;
        if endpoints.is_empty() {
            return Err(NodesError::NoNodes);
        }
        Ok(endpoints)
    }
}

fn port(number: u32) -> Result<Option<u16>, NodesError> {
    let port = u16::try_from(number).map_err(|_| NodesError::BadReply(format!("{number} is not a port")))?;
    Ok(Some(port).filter(|port| *port > 0))
}

/// Why there is no node list.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodesError {
    /// The trusted certificates cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The platform contains characters that are not allowed in a query.
    #[error("bad platform {0:?}: letters, digits, '-', '_' and '.' are expected")]
    BadPlatform(String),
    /// The request failed.
    #[error("node list not available: {0}")]
    Http(#[from] HttpError),
    /// There was no complete response in time.
    #[error("node list not available: no response in time")]
    TimedOut,
    /// The response is not goim's JSON.
    #[error("invalid node list: {0}")]
    BadReply(String),
    /// Logic replied with an error.
    #[error("node list refused with code {code}: {message}")]
    Refused {
        /// goim's error code.
        code: i64,
        /// The error message.
        message: String,
    },
    /// The list has no port for this transport.
    #[error("the node list has no port for {0}")]
    NoPort(&'static str),
    /// The list is empty.
    #[error("the node list is empty")]
    NoNodes,
    /// A node in the list is not a valid host.
    #[error("the node list has a bad node: {0}")]
    BadNode(#[from] EndpointError),
}

#[derive(Deserialize)]
struct Reply {
    #[serde(default)]
    code: i64,
    #[serde(default)]
    message: String,
    data: Option<Data>,
}

/// Logic omits fields that are zero or empty.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Data {
    domain: String,
    tcp_port: u32,
    ws_port: u32,
    wss_port: u32,
    heartbeat: u32,
    heartbeat_max: u32,
    nodes: Vec<String>,
    backoff: Option<BackoffData>,
}

/// Delays in seconds. goim v2 sends whole seconds; fractions are accepted as well.
#[derive(Deserialize, Default)]
#[serde(default)]
struct BackoffData {
    max_delay: f64,
    base_delay: f64,
    factor: f64,
    jitter: f64,
}

impl From<BackoffData> for Backoff {
    /// Missing and invalid values are replaced by goim v2's defaults.
    fn from(data: BackoffData) -> Self {
        let default = Self::GOIM;
        let delay = |seconds: f64, default| {
            Duration::try_from_secs_f64(seconds).ok().filter(|delay| !delay.is_zero()).unwrap_or(default)
        };
        Self {
            base_delay: delay(data.base_delay, default.base_delay),
            max_delay: delay(data.max_delay, default.max_delay),
            factor: if data.factor >= 1.0 { data.factor } else { default.factor },
            jitter: Jitter::Proportional(data.jitter.clamp(0.0, 1.0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPLY: &str = r#"{"code":0,"message":"","data":{"domain":"conn.goim.io","tcp_port":3101,"ws_port":3102,
        "wss_port":3103,"heartbeat":240,"nodes":["a.goim.io","","b.goim.io"],
        "backoff":{"max_delay":300,"base_delay":3,"factor":1.8,"jitter":0.3},"heartbeat_max":2}}"#;

    #[test]
    fn goims_reply_is_parsed() {
        let list = NodeList::from_json(REPLY.as_bytes()).unwrap();
        assert_eq!(list.heartbeat, Some(Duration::from_secs(240)));
        assert_eq!(list.backoff, Some(Backoff::GOIM));
        let endpoints = list.endpoints(Scheme::Ws).unwrap();
        let texts: Vec<String> = endpoints.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["ws://a.goim.io:3102/sub", "ws://b.goim.io:3102/sub"]);
        assert!(matches!(list.endpoints(Scheme::Tls), Err(NodesError::NoPort("tls"))));
    }

    #[test]
    fn omitted_and_invalid_values_are_replaced() {
        let list =
            NodeList::from_json(br#"{"code":0,"data":{"nodes":[],"backoff":{"jitter":1.3}}}"#).unwrap();
        assert_eq!(list.heartbeat, None);
        assert_eq!(list.backoff, Some(Backoff { jitter: Jitter::Proportional(1.0), ..Backoff::GOIM }));
        let list = NodeList { tcp_port: Some(1), ..list };
        assert!(matches!(list.endpoints(Scheme::Tcp), Err(NodesError::NoNodes)));
    }

    #[test]
    fn invalid_replies_are_errors() {
        let bad = |reply: &str| NodeList::from_json(reply.as_bytes()).unwrap_err();
        assert!(matches!(bad("<html>"), NodesError::BadReply(_)));
        assert!(matches!(bad(r#"{"code":0,"data":{"tcp_port":70000}}"#), NodesError::BadReply(_)));
        assert!(matches!(bad(r#"{"code":-500,"message":"no"}"#), NodesError::Refused { code: -500, .. }));
    }
}
