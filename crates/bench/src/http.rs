//! A blocking HTTP client for publishers: one request after the other on one persistent connection.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::error::BenchError;

/// How long a response may take.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(40);

/// A connection that was idle for longer is not reused: the server may be closing it, and it would
/// be unknown whether a push that meets this was accepted.
const IDLE_MAX: Duration = Duration::from_secs(2);

/// The maximum size of a response, in bytes. Those of the push API are below 200.
const RESPONSE_BYTES_MAX: usize = 256 * 1024;

/// A connection to an HTTP API.
#[derive(Debug)]
pub(crate) struct Api {
    authority: String,
    /// A header of every request, such as the API key, with its CRLF.
    header: String,
    stream: TcpStream,
    used_at: Instant,
    /// Input after the last response.
    received: Vec<u8>,
}

/// A response of the API.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
    /// `Retry-After`, where it is a number of seconds.
    pub(crate) retry_after: Option<Duration>,
}

impl Api {
    /// Connects to `http://host:port`.
    ///
    /// # Errors
    /// [`BenchError::Usage`] for another form of address, [`BenchError::Unreachable`].
    pub(crate) fn connect(url: &str, api_key: Option<&str>) -> Result<Self, BenchError> {
        let authority = authority(url)?;
        let header = match api_key {
            Some(key) if key.contains(['\r', '\n']) => {
                return Err(BenchError::Usage("the API key contains a line break".into()));
            }
            Some(key) => format!("Authorization: Bearer {key}\r\n"),
            None => String::new(),
        };
        let stream = open(&authority)?;
        Ok(Self { authority, header, stream, used_at: Instant::now(), received: Vec::new() })
    }

    /// Sends a POST request. `headers` are additional ones, each with its CRLF.
    ///
    /// # Errors
    /// [`BenchError::Failed`] when the connection breaks, or when the response is not HTTP.
    pub(crate) fn post(&mut self, path: &str, headers: &str, body: &[u8]) -> Result<Response, BenchError> {
        let request = self.request(path, headers, body);
        self.send(&request)?;
        self.response()
    }

    /// Sends a GET request.
    ///
    /// # Errors
    /// See [`Api::post`].
    pub(crate) fn get(&mut self, path: &str, headers: &str) -> Result<Response, BenchError> {
        let Self { authority, header, .. } = &*self;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {authority}\r\n{header}{headers}\r\n");
        self.send(request.as_bytes())?;
        self.response()
    }

    /// Sends several POST requests to the same path at once. Returns the responses in the same
    /// order.
    ///
    /// # Errors
    /// See [`Api::post`].
    pub(crate) fn post_together(
        &mut self,
        path: &str,
        bodies: &[Vec<u8>],
    ) -> Result<Vec<Response>, BenchError> {
        let requests: Vec<u8> = bodies.iter().flat_map(|body| self.request(path, "", body)).collect();
        self.send(&requests)?;
        bodies.iter().map(|_| self.response()).collect()
    }

    fn request(&self, path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
        let Self { authority, header, .. } = self;
        let len = body.len();
        let mut request = format!(
            "POST {path} HTTP/1.1\r\nHost: {authority}\r\n{header}{headers}Content-Length: {len}\r\n\r\n"
        )
        .into_bytes();
        request.extend_from_slice(body);
        request
    }

    fn send(&mut self, requests: &[u8]) -> Result<(), BenchError> {
        if self.used_at.elapsed() > IDLE_MAX {
            self.stream = open(&self.authority)?;
        }
        self.received.clear();
        self.stream
            .write_all(requests)
            .map_err(|error| BenchError::failed("no response from the HTTP API", error))
    }

    /// Reads the next response. Input after it stays for the next call.
    fn response(&mut self) -> Result<Response, BenchError> {
        let failed = |error| BenchError::failed("no response from the HTTP API", error);
        loop {
            if let Some((response, len)) =
                read_response(&self.received).map_err(|error| failed(io::Error::other(error)))?
            {
                self.received.drain(..len);
                self.used_at = Instant::now();
                return Ok(response);
            }
            let mut piece = [0; 4096];
            match self.stream.read(&mut piece) {
                Ok(0) => return Err(failed(io::ErrorKind::UnexpectedEof.into())),
                Ok(len) => self.received.extend_from_slice(piece.get(..len).unwrap_or_default()),
                Err(error) => return Err(failed(error)),
            }
        }
    }
}

fn open(authority: &str) -> Result<TcpStream, BenchError> {
    let unreachable = |error: io::Error| BenchError::Unreachable {
        what: "the HTTP API",
        at: authority.to_owned(),
        reason: error.to_string(),
    };
    let stream = TcpStream::connect(authority).map_err(unreachable)?;
    stream.set_nodelay(true).map_err(unreachable)?;
    stream.set_read_timeout(Some(RESPONSE_TIMEOUT)).map_err(unreachable)?;
    Ok(stream)
}

/// Returns `host:port` of `http://host:port`.
fn authority(url: &str) -> Result<String, BenchError> {
    let rest = url.strip_prefix("http://").map(|rest| rest.strip_suffix('/').unwrap_or(rest));
    match rest {
        Some(rest) if !rest.is_empty() && !rest.contains(['/', '?', '#', '@']) => Ok(rest.to_owned()),
        _ => Err(BenchError::Usage(format!("{url:?} is not an HTTP API: expected http://host:port"))),
    }
}

/// Parses the response at the start of `bytes`. Returns it with its length once it is complete.
pub(crate) fn read_response(bytes: &[u8]) -> Result<Option<(Response, usize)>, String> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut headers);
    let head = match response.parse(bytes).map_err(|error| format!("the response is not HTTP: {error}"))? {
        httparse::Status::Complete(head) => head,
        httparse::Status::Partial if bytes.len() > RESPONSE_BYTES_MAX => {
            return Err("the head of the response is too long".into());
        }
        httparse::Status::Partial => return Ok(None),
    };
    let length = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let length =
        length.and_then(|header| std::str::from_utf8(header.value).ok()?.trim().parse::<usize>().ok());
    let Some(length) = length.filter(|length| *length <= RESPONSE_BYTES_MAX) else {
        return Err("the response has no valid Content-Length".into());
    };
    let after = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case("retry-after"));
    let after = after.and_then(|header| std::str::from_utf8(header.value).ok()?.trim().parse().ok());
    let (status, retry_after) = (response.code.unwrap_or_default(), after.map(Duration::from_secs));
    let body = bytes.get(head..head.saturating_add(length));
    Ok(body.map(|body| (Response { status, body: body.to_vec(), retry_after }, head.saturating_add(length))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn addresses() {
        assert_eq!(authority("http://127.0.0.1:3111/").unwrap(), "127.0.0.1:3111");
        assert_eq!(authority("http://[::1]:1").unwrap(), "[::1]:1");
        for wrong in ["https://a:1", "a:1", "http://", "http://a/b", "http://u@a:1"] {
            assert_eq!(authority(wrong).unwrap_err().exit_status(), 64, "{wrong}");
        }
    }

    #[test]
    fn responses_arrive_in_any_pieces() {
        let text = b"HTTP/1.1 200 OK\r\ncontent-LENGTH: 5\r\n\r\nhello";
        for cut in 0..text.len() {
            assert_eq!(read_response(&text[..cut]), Ok(None), "{cut}");
        }
        let response = Response { status: 200, body: b"hello".to_vec(), retry_after: None };
        assert_eq!(read_response(text), Ok(Some((response, text.len()))));
        assert!(read_response(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
        assert!(read_response(b"hello\r\n\r\n").is_err());
    }

    #[test]
    fn two_requests_on_one_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut seen = Vec::new();
            for _ in 0..2 {
                let mut request = Vec::new();
                while !request.ends_with(b"body") {
                    let mut byte = [0];
                    stream.read_exact(&mut byte).unwrap();
                    request.push(byte[0]);
                }
                stream.write_all(b"HTTP/1.1 400 Bad\r\nContent-Length: 2\r\n\r\nno").unwrap();
                seen.push(String::from_utf8(request).unwrap());
            }
            seen
        });
        let mut api = Api::connect(&url, Some("secret")).unwrap();
        for path in ["/one", "/two"] {
            assert_eq!(
                api.post(path, "", b"body").unwrap(),
                Response { status: 400, body: b"no".to_vec(), retry_after: None }
            );
        }
        let seen = server.join().unwrap();
        assert!(seen[0].starts_with("POST /one HTTP/1.1\r\nHost: 127.0.0.1:"), "{seen:?}");
        assert!(
            seen[1].contains("\r\nAuthorization: Bearer secret\r\nContent-Length: 4\r\n\r\n"),
            "{seen:?}"
        );
    }

    #[test]
    fn an_unreachable_api() {
        // The kernel never assigns this port.
        let addr = "127.0.0.1:1";
        let error = Api::connect(&format!("http://{addr}"), None).unwrap_err();
        assert_eq!(error.exit_status(), 69, "{error}");
        assert!(error.to_string().contains(addr), "{error}");
    }
}
