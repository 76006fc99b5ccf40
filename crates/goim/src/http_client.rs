//! One HTTP request for a command line: blocking, one connection, plain text.
//!
//! Not a client for programs: there is no pool, no redirect, no TLS. A push API behind TLS is reached with `curl`.

use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Largest answer that is read, in bytes. The API's own are below 200.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// What is asked.
pub(crate) struct Request<'a> {
    /// `http://host:port`.
    pub(crate) server: &'a str,
    /// Path and query, escaped.
    pub(crate) path: &'a str,
    /// Headers besides `host` and `content-length`.
    pub(crate) headers: Vec<(&'static str, String)>,
    /// What is sent.
    pub(crate) body: Vec<u8>,
    /// For everything together.
    pub(crate) deadline: Duration,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    /// HTTP status.
    pub(crate) status: u16,
    /// The body.
    pub(crate) body: Vec<u8>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    /// The server's address is none.
    #[error("{0}")]
    Url(String),
    /// Nobody listens there, or it is no HTTP.
    #[error("cannot reach {server}: {reason}; is `goim serve` running there?")]
    Unreachable {
        /// As given.
        server: String,
        /// What went wrong.
        reason: String,
    },
    /// It took too long.
    #[error("{server} did not answer within {} s", .deadline.as_secs())]
    Timeout {
        /// As given.
        server: String,
        /// How long it had.
        deadline: Duration,
    },
}

impl Request<'_> {
    /// Sends it with POST and waits for the answer.
    pub(crate) fn post(self) -> Result<Answer, RequestError> {
        let authority = authority(self.server)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let unreachable =
            |reason: String| RequestError::Unreachable { server: self.server.to_owned(), reason };
        let runtime = runtime.map_err(|error| unreachable(error.to_string()))?;
        let (server, deadline) = (self.server.to_owned(), self.deadline);
        runtime.block_on(async {
            match tokio::time::timeout(deadline, self.exchange(&authority)).await {
                Ok(result) => result.map_err(|error| unreachable(error.to_string())),
                Err(_) => Err(RequestError::Timeout { server, deadline }),
            }
        })
    }

    async fn exchange(&self, authority: &str) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
        let stream = TcpStream::connect(authority).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Ends when the sender is dropped or the server closes; its error comes to the sender too.
        tokio::spawn(connection);
        let mut request = hyper::Request::post(self.path).header("host", authority);
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        let body = Full::new(Bytes::from(self.body.clone()));
        let response = sender.send_request(request.body(body)?).await?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await?.to_bytes().to_vec();
        Ok(Answer { status, body })
    }
}

/// `host:port` of `http://host[:port]`.
fn authority(server: &str) -> Result<String, RequestError> {
    let wrong = |why: &str| Err(RequestError::Url(format!("{server:?} is no address of a push API: {why}")));
    let Some(rest) = server.strip_prefix("http://") else {
        return wrong(if server.starts_with("https://") {
            "only http:// is spoken here; use curl for https://"
        } else {
            "wants http://host:port"
        });
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.is_empty() || rest.contains(['/', '?', '#', '@', ' ']) {
        return wrong("wants http://host:port and nothing after it");
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
