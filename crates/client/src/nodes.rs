//! The node list that logic hands out: where comets are, how often to send heartbeats, how to come back.

use std::time::Duration;

use serde::Deserialize;

use crate::http::{self, HttpError};
use crate::{Backoff, Endpoint, EndpointError, Scheme};

/// The answer of `/goim/nodes/weighted`: nodes in the order in which they should be tried.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeList {
    /// Name that stands for all nodes; may be empty.
    pub domain: String,
    /// Port for plain TCP.
    pub tcp_port: Option<u16>,
    /// Port for WebSocket.
    pub ws_port: Option<u16>,
    /// Port for WebSocket inside TLS.
    pub wss_port: Option<u16>,
    /// How often a client should send a heartbeat.
    pub heartbeat: Option<Duration>,
    /// Heartbeats that may be missing before the server ends a session.
    pub heartbeat_max: Option<u32>,
    /// Host names or addresses, best first.
    pub nodes: Vec<String>,
    /// How to come back after a connection has ended.
    pub backoff: Option<Backoff>,
}

/// Which node list, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSource {
    /// Logic's HTTP address, for example `http://127.0.0.1:3111`. Only plain HTTP; fetch the list yourself and use
    /// [`NodeList::from_json`] where that is not enough.
    pub url: String,
    /// Said to logic; `web` gives host names under logic's domain, everything else addresses. Default: not said.
    pub platform: Option<String>,
    /// Transport to connect by. The list has ports for [`Scheme::Tcp`], [`Scheme::Ws`] and [`Scheme::Wss`].
    pub scheme: Scheme,
}

impl NodeSource {
    /// The list of the logic at `url`, for connections by `scheme`.
    pub fn new(url: impl Into<String>, scheme: Scheme) -> Self {
        Self { url: url.into(), platform: None, scheme }
    }
}

impl NodeList {
    /// Bytes of the answer that are read at most; a list has five nodes.
    const ANSWER_BYTES_MAX: usize = 256 * 1024;

    /// Asks the logic at `url` (for example `http://127.0.0.1:3111`) for its list.
    ///
    /// # Errors
    /// See [`NodesError`]; all of it, the connection included, must be done within `timeout`.
    ///
    /// # Cancel safety
    /// Nothing happens after the future is dropped.
    pub async fn fetch(url: &str, platform: Option<&str>, timeout: Duration) -> Result<Self, NodesError> {
        let platform = platform.unwrap_or_default();
        if !platform.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')) {
            return Err(NodesError::BadPlatform(platform.to_owned()));
        }
        let url = format!("{}/goim/nodes/weighted?platform={platform}", url.trim_end_matches('/'));
        let get = http::get(&url, Self::ANSWER_BYTES_MAX);
        let body = tokio::time::timeout(timeout, get).await.map_err(|_| NodesError::TimedOut)??;
        Self::from_json(&body)
    }

    /// Reads the answer of `/goim/nodes/weighted`.
    ///
    /// # Errors
    /// [`NodesError::BadAnswer`], [`NodesError::Refused`].
    pub fn from_json(answer: &[u8]) -> Result<Self, NodesError> {
        let answer: Answer =
            serde_json::from_slice(answer).map_err(|error| NodesError::BadAnswer(error.to_string()))?;
        if answer.code != 0 {
            return Err(NodesError::Refused { code: answer.code, message: answer.message });
        }
        let data = answer.data.unwrap_or_default();
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

    /// The nodes as endpoints, in order.
    ///
    /// # Errors
    /// [`NodesError::NoPort`] when the list has no port for the transport, [`NodesError::NoNodes`] when it is empty,
    /// [`NodesError::BadNode`] when a name in it is no host.
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
    let port = u16::try_from(number).map_err(|_| NodesError::BadAnswer(format!("{number} is no port")))?;
    Ok(Some(port).filter(|port| *port > 0))
}

/// Why there is no node list.
#[derive(Debug, thiserror::Error)]
pub enum NodesError {
    /// The platform has characters that cannot stand in a query.
    #[error("bad platform {0:?}: letters, digits, '-', '_' and '.' are expected")]
    BadPlatform(String),
    /// Logic could not be asked.
    #[error("node list not available: {0}")]
    Http(#[from] HttpError),
    /// No whole answer came in time.
    #[error("node list not available: no answer in time")]
    TimedOut,
    /// Not goim's JSON.
    #[error("node list not understood: {0}")]
    BadAnswer(String),
    /// Logic has answered with an error.
    #[error("node list refused with code {code}: {message}")]
    Refused {
        /// goim's error code.
        code: i64,
        /// Logic's words.
        message: String,
    },
    /// The list has no port for this transport.
    #[error("the node list has no port for {0}")]
    NoPort(&'static str),
    /// The list is empty.
    #[error("the node list is empty")]
    NoNodes,
    /// A name in the list is no host.
    #[error("the node list has a bad node: {0}")]
    BadNode(#[from] EndpointError),
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    code: i64,
    #[serde(default)]
    message: String,
    data: Option<Data>,
}

/// Members are left out when zero or empty.
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

/// Delays in seconds. goim has whole ones; fractions are taken as well.
#[derive(Deserialize, Default)]
#[serde(default)]
struct BackoffData {
    max_delay: f64,
    base_delay: f64,
    factor: f64,
    jitter: f64,
}

impl From<BackoffData> for Backoff {
    /// What is missing or makes no sense is replaced by the default.
    fn from(data: BackoffData) -> Self {
        let default = Self::default();
        let delay = |seconds: f64, default| {
            Duration::try_from_secs_f64(seconds).ok().filter(|delay| !delay.is_zero()).unwrap_or(default)
        };
        Self {
            base_delay: delay(data.base_delay, default.base_delay),
            max_delay: delay(data.max_delay, default.max_delay),
            factor: if data.factor >= 1.0 { data.factor } else { default.factor },
            jitter: data.jitter.clamp(0.0, 1.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &str = r#"{"code":0,"message":"","data":{"domain":"conn.goim.io","tcp_port":3101,"ws_port":3102,
        "wss_port":3103,"heartbeat":240,"nodes":["a.goim.io","","b.goim.io"],
        "backoff":{"max_delay":300,"base_delay":3,"factor":1.8,"jitter":0.3},"heartbeat_max":2}}"#;

    #[test]
    fn goims_answer_is_understood() {
        let list = NodeList::from_json(ANSWER.as_bytes()).unwrap();
        assert_eq!(list.heartbeat, Some(Duration::from_secs(240)));
        assert_eq!(list.backoff, Some(Backoff::default()));
        let endpoints = list.endpoints(Scheme::Ws).unwrap();
        let texts: Vec<String> = endpoints.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["ws://a.goim.io:3102/sub", "ws://b.goim.io:3102/sub"]);
        assert!(matches!(list.endpoints(Scheme::Tls), Err(NodesError::NoPort("tls"))));
    }

    #[test]
    fn omitted_members_and_wild_numbers_fall_back() {
        let list =
            NodeList::from_json(br#"{"code":0,"data":{"nodes":[],"backoff":{"jitter":1.3}}}"#).unwrap();
        assert_eq!(list.heartbeat, None);
        assert_eq!(list.backoff, Some(Backoff { jitter: 1.0, ..Backoff::default() }));
        let list = NodeList { tcp_port: Some(1), ..list };
        assert!(matches!(list.endpoints(Scheme::Tcp), Err(NodesError::NoNodes)));
    }

    #[test]
    fn what_is_no_list_is_an_error() {
        let bad = |answer: &str| NodeList::from_json(answer.as_bytes()).unwrap_err();
        assert!(matches!(bad("<html>"), NodesError::BadAnswer(_)));
        assert!(matches!(bad(r#"{"code":0,"data":{"tcp_port":70000}}"#), NodesError::BadAnswer(_)));
        assert!(matches!(bad(r#"{"code":-500,"message":"no"}"#), NodesError::Refused { code: -500, .. }));
    }
}
