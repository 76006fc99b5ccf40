//! One HTTP GET, for the node list: no redirects, no proxy, one connection per request.

use std::io;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::dialer::Socket;

/// Why a GET request failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HttpError {
    /// Not `http://host:port/...` or `https://host:port/...`.
    #[error("bad URL {0:?}: http://host:port or https://host:port is expected")]
    BadUrl(String),
    /// The connection could not be made, or it failed. For HTTPS also a certificate that is not
    /// trusted.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The response is not valid HTTP/1, or it is incomplete.
    #[error("bad HTTP response: {0}")]
    BadResponse(String),
    /// The body of the response exceeds the limit.
    #[error("the response exceeds {limit} bytes")]
    TooLong {
        /// The limit in bytes.
        limit: usize,
    },
    /// A status other than 200.
    #[error("status {0}")]
    Status(u16),
}

/// Requests `url` and returns the body, at most `limit` bytes. `tls` is needed for `https`.
pub(crate) async fn get(url: &str, tls: Option<&TlsConnector>, limit: usize) -> Result<Vec<u8>, HttpError> {
    let bad_url = || HttpError::BadUrl(url.to_owned());
    let uri: Uri = url.parse().map_err(|_| bad_url())?;
    let authority = uri.authority().ok_or_else(bad_url)?;
    let (default_port, is_tls) = match uri.scheme_str() {
        Some("http") => (80, false),
        Some("https") => (443, true),
        _ => return Err(bad_url()),
    };
    let host = authority.host().trim_matches(['[', ']']);
    let stream = TcpStream::connect((host, authority.port_u16().unwrap_or(default_port))).await?;
    let socket: Box<dyn Socket> = match (is_tls, tls) {
        (false, _) => Box::new(stream),
        (true, Some(connector)) => {
            let name = ServerName::try_from(host.to_owned()).map_err(|_| bad_url())?;
            Box::new(connector.connect(name, stream).await?)
        }
        (true, None) => return Err(io::Error::other("TLS is not configured").into()),
    };
    let bad_response = |error: hyper::Error| HttpError::BadResponse(error.to_string());
    let (mut sender, connection) =
        http1::handshake::<_, Empty<Bytes>>(TokioIo::new(socket)).await.map_err(bad_response)?;
    let request = Request::get(uri.path_and_query().map_or("/", |target| target.as_str()))
        .header(HOST, authority.as_str())
        .header(CONNECTION, "close")
        .body(Empty::new())
        .map_err(|_| bad_url())?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(bad_response)?;
        if response.status() != StatusCode::OK {
            return Err(HttpError::Status(response.status().as_u16()));
        }
        let body = Limited::new(response.into_body(), limit).collect().await;
        let body = body.map_err(|error| match error.downcast::<hyper::Error>() {
            Ok(error) => bad_response(*error),
            Err(error) if error.is::<LengthLimitError>() => HttpError::TooLong { limit },
            Err(error) => HttpError::BadResponse(error.to_string()),
        })?;
        Ok(body.to_bytes().into())
    };
    // The exchange makes progress only while the connection is polled. When the connection ends
    // first, everything that it received is queued for the exchange.
    tokio::pin!(exchange);
    tokio::select! {
        biased;
        result = &mut exchange => result,
        _ = connection => exchange.await,
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// Sends `response` to one GET request and closes.
    async fn fetch(response: &str) -> Result<Vec<u8>, HttpError> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/x?y=z", listener.local_addr().unwrap());
        let response = response.to_owned();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                assert_ne!(stream.read_buf(&mut request).await.unwrap(), 0);
            }
            stream.write_all(response.as_bytes()).await.unwrap();
            String::from_utf8(request).unwrap()
        });
        let result = get(&url, None, 200).await;
        let request = server.await.unwrap().to_lowercase();
        assert!(request.starts_with("get /x?y=z http/1.1\r\nhost: 127.0.0.1:"), "{request}");
        result
    }

    #[tokio::test]
    async fn bodies_of_every_framing_are_read() {
        let by_length = fetch("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok, more").await;
        assert_eq!(by_length.unwrap(), b"ok");
        let by_end = fetch("HTTP/1.0 200 OK\r\n\r\nok").await;
        assert_eq!(by_end.unwrap(), b"ok");
        let chunked =
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1;x=y\r\nk\r\n0\r\n\r\n";
        assert_eq!(fetch(chunked).await.unwrap(), b"ok");
    }

    #[tokio::test]
    async fn failures_are_told_apart() {
        let short = fetch("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nok").await;
        assert!(matches!(short, Err(HttpError::BadResponse(_))), "{short:?}");
        let garbage = fetch("SSH-2.0-x\r\n\r\n").await;
        assert!(matches!(garbage, Err(HttpError::BadResponse(_))), "{garbage:?}");
        let long = format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(201));
        assert!(matches!(fetch(&long).await, Err(HttpError::TooLong { limit: 200 })));
        let missing = fetch("HTTP/1.1 404 Not Found\r\n\r\n").await;
        assert!(matches!(missing, Err(HttpError::Status(404))), "{missing:?}");
        for url in ["ftp://h/", "h", "http://h/a b", "", "/x"] {
            assert!(matches!(get(url, None, 1).await, Err(HttpError::BadUrl(_))), "{url}");
        }
    }
}
