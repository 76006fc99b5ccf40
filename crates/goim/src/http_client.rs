//! One HTTP request of the command line: blocking, over the HTTP client of the adapters.

use std::time::Duration;

use goim_adapters::http::HyperClient;
use goim_ports::{HttpClient, HttpError, HttpRequest, HttpResponse};

/// The maximum size of a response, in bytes. Those of the API are below 200.
const RESPONSE_BYTES_MAX: usize = 1 << 20;

/// A request.
pub(crate) struct Request<'a> {
    /// `http://host:port` or `https://host`.
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

/// Why there is no response.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    /// The server's address is not usable.
    #[error("{0}")]
    Url(String),
    /// No server listens there, its certificate is not trusted, or it does not talk HTTP.
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
    pub(crate) fn post(self) -> Result<HttpResponse, RequestError> {
        let origin = origin(self.server)?;
        let server = self.server.to_owned();
        let unreachable = |reason: String| RequestError::Unreachable { server: server.clone(), reason };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| unreachable(error.to_string()))?;
        let request = HttpRequest {
            body: Some(self.body.into()),
            url: format!("{origin}{}", self.path),
            headers: self.headers,
            timeout: self.timeout,
            answer_bytes_max: RESPONSE_BYTES_MAX,
        };
        let response = runtime.block_on(async { HyperClient::new().send(request).await });
        response.map_err(|error| match error {
            HttpError::Timeout(timeout) => RequestError::Timeout { server: server.clone(), timeout },
            error => unreachable(error.to_string()),
        })
    }
}

/// The scheme, host and port of a server's address, without a slash at its end.
fn origin(server: &str) -> Result<&str, RequestError> {
    let wrong =
        |why: &str| Err(RequestError::Url(format!("{server:?} is not the address of a push API: {why}")));
    let Some(rest) = server.strip_prefix("http://").or_else(|| server.strip_prefix("https://")) else {
        return wrong("must be http://host:port or https://host");
    };
    let host = rest.strip_suffix('/').unwrap_or(rest);
    if host.is_empty() || host.contains(['/', '?', '#', '@', ' ']) {
        return wrong("must be http://host:port or https://host, and nothing after it");
    }
    Ok(server.strip_suffix('/').unwrap_or(server))
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
            assert_eq!(origin(server).ok(), expect, "{server}");
        };
        check("http://127.0.0.1:3111", Some("http://127.0.0.1:3111"));
        check("http://push.example/", Some("http://push.example"));
        check("http://[::1]:3111", Some("http://[::1]:3111"));
        check("https://push.example", Some("https://push.example"));
        check("127.0.0.1:3111", None);
        check("http://", None);
        check("https:///", None);
        check("http://host/path", None);
        check("http://user@host", None);
    }
}
