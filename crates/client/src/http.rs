//! One HTTP GET, for the node list: no redirects, no TLS, no connection kept.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Why a GET has failed.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// Not `http://host:port/...`.
    #[error("bad URL {0:?}: http://host:port is expected")]
    BadUrl(String),
    /// The connection could not be made, or broke.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The answer is not HTTP/1, or ends too early.
    #[error("bad HTTP answer: {0}")]
    BadAnswer(&'static str),
    /// The answer is larger than it may be.
    #[error("the answer exceeds {limit} bytes")]
    TooLong {
        /// Bytes, head and body.
        limit: usize,
    },
    /// Another status than 200.
    #[error("status {0}")]
    Status(u16),
}

/// Fetches `url` and gives the body; head and body may have `limit` bytes.
pub(crate) async fn get(url: &str, limit: usize) -> Result<Vec<u8>, HttpError> {
    let bad_url = || HttpError::BadUrl(url.to_owned());
    if !url.chars().all(|c| c.is_ascii_graphic()) {
        return Err(bad_url());
    }
    let rest = url.strip_prefix("http://").ok_or_else(bad_url)?;
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let has_port = authority.rfind(':') > authority.rfind(']');
    let address = if has_port { authority.to_owned() } else { format!("{authority}:80") };
    let mut stream = TcpStream::connect(&address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    loop {
        let ended = stream.read_buf(&mut answer).await? == 0;
        if answer.len() > limit {
            return Err(HttpError::TooLong { limit });
        }
        if let Some(body) = whole_body(&answer, ended)? {
            return Ok(body);
        }
        if ended {
            return Err(HttpError::BadAnswer("it ends too early"));
        }
    }
}

/// The body, when the answer is there in whole. `ended`: nothing more will come.
fn whole_body(answer: &[u8], ended: bool) -> Result<Option<Vec<u8>>, HttpError> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut headers);
    let status = response.parse(answer).map_err(|_| HttpError::BadAnswer("not HTTP/1"))?;
    let httparse::Status::Complete(head_len) = status else { return Ok(None) };
    let code = response.code.unwrap_or_default();
    if code != 200 {
        return Err(HttpError::Status(code));
    }
    let body = answer.get(head_len..).unwrap_or_default();
    let header = |name: &str| {
        let found = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        found.and_then(|header| str::from_utf8(header.value).ok())
    };
    if header("Transfer-Encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
        return join_chunks(body);
    }
    match header("Content-Length") {
        Some(text) => {
            let len: usize = text.trim().parse().map_err(|_| HttpError::BadAnswer("bad Content-Length"))?;
            Ok(body.get(..len).map(<[u8]>::to_vec))
        }
        None => Ok(ended.then(|| body.to_vec())),
    }
}

fn join_chunks(mut rest: &[u8]) -> Result<Option<Vec<u8>>, HttpError> {
    let mut body = Vec::new();
    loop {
        let size = httparse::parse_chunk_size(rest).map_err(|_| HttpError::BadAnswer("bad chunk"))?;
        let httparse::Status::Complete((head_len, size)) = size else { return Ok(None) };
        if size == 0 {
            return Ok(Some(body));
        }
        let size = usize::try_from(size).map_err(|_| HttpError::BadAnswer("bad chunk"))?;
        let end = head_len.checked_add(size).ok_or(HttpError::BadAnswer("bad chunk"))?;
        let (Some(chunk), Some(behind)) = (rest.get(head_len..end), end.checked_add(2)) else {
            return Ok(None);
        };
        let Some(next) = rest.get(behind..) else { return Ok(None) };
        body.extend_from_slice(chunk);
        rest = next;
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// Answers one GET with `answer` and closes.
    async fn fetch(answer: &'static str) -> Result<Vec<u8>, HttpError> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/x?y=z", listener.local_addr().unwrap());
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                assert_ne!(stream.read_buf(&mut request).await.unwrap(), 0);
            }
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8(request).unwrap()
        });
        let result = get(&url, 200).await;
        assert!(server.await.unwrap().starts_with("GET /x?y=z HTTP/1.1\r\nHost: 127.0.0.1:"));
        result
    }

    #[tokio::test]
    async fn bodies_are_read_however_their_length_is_told() {
        let by_length = fetch("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok, more").await;
        assert_eq!(by_length.unwrap(), b"ok");
        let by_end = fetch("HTTP/1.0 200 OK\r\n\r\nok").await;
        assert_eq!(by_end.unwrap(), b"ok");
        let chunked =
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1;x=y\r\nk\r\n0\r\n\r\n";
        assert_eq!(fetch(chunked).await.unwrap(), b"ok");
    }

    #[tokio::test]
    async fn what_is_no_answer_is_an_error() {
        let short = fetch("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nok").await;
        assert!(matches!(short, Err(HttpError::BadAnswer(_))), "{short:?}");
        let long = Box::leak(format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(200)).into_boxed_str());
        assert!(matches!(fetch(long).await, Err(HttpError::TooLong { limit: 200 })));
        let missing = fetch("HTTP/1.1 404 Not Found\r\n\r\n").await;
        assert!(matches!(missing, Err(HttpError::Status(404))), "{missing:?}");
        for url in ["https://h/", "h", "http://h/a b", ""] {
            assert!(matches!(get(url, 1).await, Err(HttpError::BadUrl(_))), "{url}");
        }
    }
}
