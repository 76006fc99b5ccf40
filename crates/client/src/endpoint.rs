//! Addresses of servers: transport, host, port and path.

use std::fmt;
use std::str::FromStr;

/// The transport of packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// `tcp`: packets on a TCP stream. Default port 3101.
    Tcp,
    /// `tls`: packets on a TCP stream inside TLS. Default port 3103.
    Tls,
    /// `ws`: WebSocket. Default port 3102.
    Ws,
    /// `wss`: WebSocket inside TLS. Default port 3103.
    Wss,
}

impl Scheme {
    const ALL: [Self; 4] = [Self::Tcp, Self::Tls, Self::Ws, Self::Wss];

    /// Returns the text before `://`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Ws => "ws",
            Self::Wss => "wss",
        }
    }

    /// Returns goim's port for this transport.
    #[must_use]
    pub const fn default_port(self) -> u16 {
        match self {
            Self::Tcp => 3101,
            Self::Ws => 3102,
            Self::Tls | Self::Wss => 3103,
        }
    }

    /// Returns whether the connection is encrypted.
    #[must_use]
    pub const fn is_tls(self) -> bool {
        matches!(self, Self::Tls | Self::Wss)
    }

    /// Returns whether packets are WebSocket messages.
    #[must_use]
    pub const fn is_websocket(self) -> bool {
        matches!(self, Self::Ws | Self::Wss)
    }
}

/// One address to connect to.
///
/// ```
/// use goim_client::Endpoint;
///
/// let endpoint: Endpoint = "ws://127.0.0.1".parse()?;
/// assert_eq!(endpoint.to_string(), "ws://127.0.0.1:3102/sub");
/// assert_eq!("tls://[::1]:4000".parse::<Endpoint>()?.port(), 4000);
/// # Ok::<(), goim_client::EndpointError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    scheme: Scheme,
    /// Without the brackets of an IPv6 address.
    host: String,
    port: u16,
    /// Empty for `tcp` and `tls`.
    path: String,
}

impl Endpoint {
    /// The default path of the WebSocket.
    pub const DEFAULT_PATH: &'static str = "/sub";

    /// Creates an endpoint on `host`, a name or an address, with the default path.
    ///
    /// # Errors
    /// [`EndpointError::BadHost`].
    pub fn new(scheme: Scheme, host: &str, port: u16) -> Result<Self, EndpointError> {
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
        if host.is_empty() || !host.chars().all(plain) {
            return Err(EndpointError::BadHost(host.to_owned()));
        }
        let path = if scheme.is_websocket() { Self::DEFAULT_PATH } else { "" };
        Ok(Self { scheme, host: host.to_owned(), port, path: path.to_owned() })
    }

    /// Returns the transport.
    #[must_use]
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Returns the name or address; an IPv6 address is without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Returns the TCP port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the path of the WebSocket; empty for `tcp` and `tls`.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Returns `host:port`, with an IPv6 address in brackets.
    #[must_use]
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// Returns this endpoint on another node: a host, or a host and a port.
    pub(crate) fn on_node(&self, node: &str) -> Option<Self> {
        let (host, port) = split_port(node).ok()?;
        let mut moved = Self::new(self.scheme, host, port.unwrap_or(self.port)).ok()?;
        moved.path.clone_from(&self.path);
        Some(moved)
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let (name, rest) = text.split_once("://").ok_or(EndpointError::NoScheme)?;
        let scheme = Scheme::ALL.into_iter().find(|scheme| scheme.as_str() == name);
        let scheme = scheme.ok_or_else(|| EndpointError::UnknownScheme(name.to_owned()))?;
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (host, port) = split_port(authority)?;
        let mut endpoint = Self::new(scheme, host, port.unwrap_or(scheme.default_port()))?;
        match (scheme.is_websocket(), path) {
            (_, "") | (false, "/") => {}
            (false, _) => return Err(EndpointError::PathOnStream),
            (true, path) if path.chars().all(|c| c.is_ascii_graphic()) => path.clone_into(&mut endpoint.path),
            (true, path) => return Err(EndpointError::BadPath(path.to_owned())),
        }
        Ok(endpoint)
    }
}

fn split_port(authority: &str) -> Result<(&str, Option<u16>), EndpointError> {
    let bracket = authority.rfind(']').unwrap_or(0);
    let colon = authority.rfind(':').filter(|colon| *colon > bracket || bracket == 0);
    let Some(colon) = colon else { return Ok((authority, None)) };
    let (host, port) = (&authority[..colon], &authority[colon + 1..]);
    if bracket == 0 && host.contains(':') {
        // Without brackets, the last group of an IPv6 address would be parsed as a port.
        return Err(EndpointError::BadHost(authority.to_owned()));
    }
    match port.parse::<u16>() {
        Ok(number) if number > 0 => Ok((host, Some(number))),
        _ => Err(EndpointError::BadPort(port.to_owned())),
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme.as_str(), self.authority(), self.path)
    }
}

/// Why a text is not an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EndpointError {
    /// There is no `://`.
    #[error("an endpoint begins with tcp://, tls://, ws:// or wss://")]
    NoScheme,
    /// An unknown transport.
    #[error("unknown transport {0:?}: use tcp, tls, ws or wss")]
    UnknownScheme(String),
    /// The host is empty or contains invalid characters. IPv6 addresses need brackets.
    #[error("bad host {0:?}")]
    BadHost(String),
    /// Not a number from 1 to 65535.
    #[error("bad port {0:?}: a number from 1 to 65535 is expected")]
    BadPort(String),
    /// The path contains spaces or control characters.
    #[error("bad path {0:?}")]
    BadPath(String),
    /// `tcp` and `tls` endpoints have no path.
    #[error("tcp and tls endpoints have no path")]
    PathOnStream,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_parsed_with_goims_default_ports() {
        let check = |text: &str, expect: &str| {
            let endpoint: Endpoint = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(endpoint.to_string(), expect);
            assert_eq!(expect.parse::<Endpoint>().unwrap(), endpoint, "{expect}");
        };
        check("tcp://127.0.0.1", "tcp://127.0.0.1:3101");
        check("tcp://h:1/", "tcp://h:1");
        check("tls://im.example.org", "tls://im.example.org:3103");
        check("ws://h", "ws://h:3102/sub");
        check("ws://h:80/", "ws://h:80/");
        check("ws://h:80/a/b?c=d", "ws://h:80/a/b?c=d");
        check("wss://[::1]", "wss://[::1]:3103/sub");
        check("wss://[::1]:99/sub", "wss://[::1]:99/sub");
    }

    #[test]
    fn invalid_endpoints_are_refused_with_the_reason() {
        let check = |text: &str, expect| assert_eq!(text.parse::<Endpoint>(), Err(expect), "{text}");
        check("127.0.0.1:3101", EndpointError::NoScheme);
        check("http://h", EndpointError::UnknownScheme("http".to_owned()));
        check("tcp://", EndpointError::BadHost(String::new()));
        check("tcp://user@h", EndpointError::BadHost("user@h".to_owned()));
        check("tcp://::1", EndpointError::BadHost("::1".to_owned()));
        check("tcp://h:0", EndpointError::BadPort("0".to_owned()));
        check("tcp://h:", EndpointError::BadPort(String::new()));
        check("tcp://h:65536", EndpointError::BadPort("65536".to_owned()));
        check("tcp://h/sub", EndpointError::PathOnStream);
        check("ws://h/a b", EndpointError::BadPath("/a b".to_owned()));
    }

    #[test]
    fn another_node_keeps_transport_and_path() {
        let endpoint: Endpoint = "ws://old:80/x".parse().unwrap();
        assert_eq!(endpoint.on_node("new").unwrap().to_string(), "ws://new:80/x");
        assert_eq!(endpoint.on_node("[::1]:81").unwrap().to_string(), "ws://[::1]:81/x");
        assert_eq!(endpoint.on_node("bad host"), None);
    }
}
