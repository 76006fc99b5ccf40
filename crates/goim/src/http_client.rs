//! One HTTP request for a command line: blocking, one connection, plain text.
//!
//! It is not for programs: it has no pool, no redirects, no TLS. Use `curl` for a push API behind
//! TLS.

use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// The maximum size of a response, in bytes. Those of the API are below 200.
const RESPONSE_BYTES_MAX: usize = 1 << 20;

/// A request.
pub(crate) struct Request<'a> {
    /// `http://host:port`.
    pub(crate) server: &'a str,
    /// Path and query, escaped.
    pub(crate) path: &'a str,
    /// Headers besides `host` and `content-length`.
    pub(crate) headers: Vec<(&'static str, String)>,
    /// The body.
    pub(crate) body: Vec<u8>,
    /// From the connection to the last byte of the response.
    pub(crate) timeout: Duration,
}

/// A response.
#[derive(Debug)]
pub(crate) struct Response {
    /// HTTP status.
    pub(crate) status: u16,
    /// The body.
    pub(crate) body: Vec<u8>,
}

/// Why there is no response.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    /// The server's address is not usable.
    #[error("{0}")]
    Url(String),
    /// No server listens there, or it does not talk HTTP.
    #[error("cannot reach {server}: {reason}; is `goim serve` running there?")]
    Unreachable {
        /// As given.
        server: String,
        /// The error.
        reason: String,
    },
    /// It took too long.
    #[error("{server} did not answer within {} s", .timeout.as_secs())]
    Timeout {
        /// As given.
        server: String,
        /// The time it had.
        timeout: Duration,
    },
}

impl Request<'_> {
    /// Sends it as a POST and waits for the response.
    pub(crate) fn post(self) -> Result<Response, RequestError> {
        let authority = authority(self.server)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let unreachable =
            |reason: String| RequestError::Unreachable { server: self.server.to_owned(), reason };
        let runtime = runtime.map_err(|error| unreachable(error.to_string()))?;
        let (server, timeout) = (self.server.to_owned(), self.timeout);
        runtime.block_on(async {
            match tokio::time::timeout(timeout, self.exchange(&authority)).await {
                Ok(result) => result.map_err(|error| unreachable(error.to_string())),
                Err(_) => Err(RequestError::Timeout { server, timeout }),
            }
        })
    }

    async fn exchange(&self, authority: &str) -> Result<Response, Box<dyn std::error::Error + Send + Sync>> {
        let stream = TcpStream::connect(authority).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // It ends when the sender is dropped or the server closes; the sender gets its error too.
        tokio::spawn(connection);
        let mut request = hyper::Request::post(self.path).header("host", authority);
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        let body = Full::new(Bytes::from(self.body.clone()));
        let response = sender.send_request(request.body(body)?).await?;
        let status = response.status().as_u16();
        let body =
            Limited::new(response.into_body(), RESPONSE_BYTES_MAX).collect().await?.to_bytes().to_vec();
        Ok(Response { status, body })
    }
}

/// `host:port` of `http://host[:port]`.
fn authority(server: &str) -> Result<String, RequestError> {
    let wrong =
        |why: &str| Err(RequestError::Url(format!("{server:?} is not the address of a push API: {why}")));
    let Some(rest) = server.strip_prefix("http://") else {
        return wrong(if server.starts_with("https://") {
            "only http:// is supported; use curl for https://"
        } else {
            "must be http://host:port"
        });
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.is_empty() || rest.contains(['/', '?', '#', '@', ' ']) {
        return wrong("must be http://host:port and nothing after it");
    }
    let has_port =
        rest.rsplit_once(':').is_some_and(|(host, port)| !host.ends_with(':') && port.parse::<u16>().is_ok());
    Ok(if has_port { rest.to_owned() } else { format!("{rest}:80") })
}

/// Escapes a value for a query.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_servers() {
        let check = |server: &str, expect: Option<&str>| {
            assert_eq!(authority(server).ok().as_deref(), expect, "{server}")
        };
        check("http://127.0.0.1:3111", Some("127.0.0.1:3111"));
        check("http://push.example/", Some("push.example:80"));
        check("http://[::1]:3111", Some("[::1]:3111"));
        check("http://[::1]", Some("[::1]:80"));
        check("https://push.example", None);
        check("127.0.0.1:3111", None);
        check("http://", None);
        check("http://host/path", None);
        check("http://user@host", None);
    }
}
