//! The addresses of a server: parsed, resolved and tried.

use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

use clap::Args;

use crate::control::{Target, Transport};
use crate::error::BenchError;

/// How long a connection attempt to an address may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The addresses of a server.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub(crate) struct Endpoints {
    /// The TCP address
    #[arg(long, default_value = "127.0.0.1:3101", value_name = "HOST:PORT")]
    pub(crate) tcp: String,
    /// The WebSocket address
    #[arg(long, default_value = "ws://127.0.0.1:3102/sub", value_name = "URL")]
    pub(crate) ws: String,
    /// The address of TCP over TLS. Its certificate is not checked
    #[arg(long, default_value = "127.0.0.1:3104", value_name = "HOST:PORT")]
    pub(crate) tls: String,
    /// The address of WebSocket over TLS. Its certificate is not checked
    #[arg(long, default_value = "wss://127.0.0.1:3103/sub", value_name = "URL")]
    pub(crate) wss: String,
    /// The HTTP API
    #[arg(long, default_value = "http://127.0.0.1:3111", value_name = "URL")]
    pub(crate) http: String,
}

impl Endpoints {
    /// Resolves the address of each transport and connects to it once.
    ///
    /// # Errors
    /// [`BenchError::Usage`] for a malformed address, [`BenchError::Unreachable`].
    pub(crate) fn targets(&self, over: &[Transport]) -> Result<Vec<Target>, BenchError> {
        over.iter().map(|transport| self.target(*transport)).collect()
    }

    fn target(&self, transport: Transport) -> Result<Target, BenchError> {
        let (what, host, path) = match transport {
            Transport::Tcp => ("TCP", self.tcp.clone(), String::new()),
            Transport::Tls => ("TCP over TLS", self.tls.clone(), String::new()),
            Transport::WebSocket => {
                let (host, path) = split_url("ws", &self.ws)?;
                ("WebSocket", host, path)
            }
            Transport::WebSocketTls => {
                let (host, path) = split_url("wss", &self.wss)?;
                ("WebSocket over TLS", host, path)
            }
        };
        let addr = resolve(what, &host)?;
        Ok(Target { transport, addr, host, path })
    }
}

/// Splits `SCHEME://host:port/path` into `host:port` and the path.
fn split_url(scheme: &str, url: &str) -> Result<(String, String), BenchError> {
    let wrong = || {
        BenchError::Usage(format!("{url:?} is not a WebSocket address: expected {scheme}://host:port/path"))
    };
    let rest = url.strip_prefix(scheme).and_then(|rest| rest.strip_prefix("://")).ok_or_else(wrong)?;
    let (host, path) = rest.split_once('/').ok_or_else(wrong)?;
    if host.is_empty() || !host.contains(':') {
        return Err(wrong());
    }
    Ok((host.to_owned(), format!("/{path}")))
}

/// Returns the first address of a name that accepts a connection.
fn resolve(what: &'static str, at: &str) -> Result<SocketAddr, BenchError> {
    let unreachable = |reason: String| BenchError::Unreachable { what, at: at.to_owned(), reason };
    let addrs = at.to_socket_addrs().map_err(|error| unreachable(error.to_string()))?;
    let mut reason = "the name has no address".to_owned();
    for addr in addrs {
        match TcpStream::connect_timeout(&addr, CONNECT_TIMEOUT) {
            Ok(_) => return Ok(addr),
            Err(error) => reason = error.to_string(),
        }
    }
    Err(unreachable(reason))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn websocket_urls() {
        let check = |scheme: &str, url: &str, expect: Option<(&str, &str)>| {
            let expect = expect.map(|(host, path)| (host.to_owned(), path.to_owned()));
            assert_eq!(split_url(scheme, url).ok(), expect, "{url}");
        };
        check("ws", "ws://127.0.0.1:3102/sub", Some(("127.0.0.1:3102", "/sub")));
        check("ws", "ws://[::1]:1/", Some(("[::1]:1", "/")));
        check("ws", "ws://h:1/a/b?c", Some(("h:1", "/a/b?c")));
        check("wss", "wss://h:1/a", Some(("h:1", "/a")));
        check("wss", "ws://h:1/a", None);
        for wrong in ["wss://h:1/sub", "ws://h/sub", "ws://h:1", "h:1", ""] {
            check("ws", wrong, None);
        }
    }

    #[test]
    fn an_address_without_a_listener_is_unreachable() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap().to_string();
        assert_eq!(resolve("TCP", &at).unwrap(), listener.local_addr().unwrap());
        drop(listener);
        let error = resolve("TCP", &at).unwrap_err();
        assert_eq!(error.exit_status(), 69);
        assert!(error.to_string().contains(&at), "{error}");
        assert_eq!(resolve("TCP", "nowhere").unwrap_err().exit_status(), 69);
    }
}
