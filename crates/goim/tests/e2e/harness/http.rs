//! A small HTTP/1.1 client on a plain socket, with which requests can be malformed and pipelined.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use super::DEADLINE;

/// An answer.
#[derive(Debug, Clone)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Names in lower case, in the order received.
    pub headers: Vec<(String, String)>,
    /// The body, unchunked.
    pub body: Vec<u8>,
}

impl Response {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("a body in UTF-8")
    }

    /// The first header with this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {}", self.text()))
    }
}

/// A connection to the HTTP API.
pub struct Http {
    stream: TcpStream,
    received: Vec<u8>,
}

impl Http {
    /// Connects.
    pub fn connect(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).expect("the HTTP address");
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, received: Vec::new() }
    }

    /// One request with a Host and, unless `headers` contain `Transfer-Encoding`, a Content-Length.
    pub fn request(&mut self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
        self.send(&compose(method, target, headers, body));
        self.response(method == "HEAD")
    }

    /// Bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the server takes a request");
    }

    /// The next response; an interim one (100) is skipped. `bodiless`: the request was HEAD.
    pub fn response(&mut self, bodiless: bool) -> Response {
        loop {
            let head = self.head();
            let mut lines = head.split("\r\n");
            let status =
                lines.next().unwrap().split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
            let headers: Vec<(String, String)> = lines
                .map(|line| line.split_once(':').expect("a header"))
                .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
                .collect();
            if status == 100 {
                continue;
            }
            let mut response = Response { status, headers, body: Vec::new() };
            if !bodiless {
                response.body = self.body(&response);
            }
            return response;
        }
    }

    fn head(&mut self) -> String {
        loop {
            if let Some(end) = self.received.windows(4).position(|four| four == b"\r\n\r\n") {
                let head = self.received.drain(..end + 4).collect::<Vec<_>>();
                return String::from_utf8(head[..end].to_vec()).expect("a head in UTF-8");
            }
            assert!(self.fill(), "the connection ended inside a response head");
        }
    }

    fn body(&mut self, response: &Response) -> Vec<u8> {
        if response.header("transfer-encoding") == Some("chunked") {
            let mut body = Vec::new();
            loop {
                let size = usize::from_str_radix(&self.line(), 16).expect("a chunk size");
                body.extend(self.exactly(size));
                assert_eq!(self.line(), "", "a chunk ends with a line end");
                if size == 0 {
                    return body;
                }
            }
        }
        match response.header("content-length") {
            Some(length) => self.exactly(length.parse().expect("a length")),
            None => Vec::new(),
        }
    }

    fn line(&mut self) -> String {
        loop {
            if let Some(end) = self.received.windows(2).position(|two| two == b"\r\n") {
                let line = self.received.drain(..end + 2).collect::<Vec<_>>();
                return String::from_utf8(line[..end].to_vec()).unwrap();
            }
            assert!(self.fill(), "the connection ended inside a line");
        }
    }

    fn exactly(&mut self, length: usize) -> Vec<u8> {
        while self.received.len() < length {
            assert!(self.fill(), "the connection ended inside a body");
        }
        self.received.drain(..length).collect()
    }

    /// Waits for the end of the connection; nothing may arrive before it.
    pub fn expect_closed(&mut self) {
        assert!(self.received.is_empty(), "bytes after the answer");
        assert!(!self.fill(), "bytes instead of the end of the connection");
    }

    fn fill(&mut self) -> bool {
        let mut buffer = [0; 16 * 1024];
        match self.stream.read(&mut buffer) {
            Ok(read) => {
                self.received.extend(&buffer[..read]);
                read > 0
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => false,
            Err(error) => panic!("no HTTP answer: {error}"),
        }
    }
}

/// The bytes of a request.
pub fn compose(method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut head = format!("{method} {target} HTTP/1.1\r\nHost: test\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("transfer-encoding")) {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    [head.as_bytes(), body].concat()
}

/// `text` with everything but letters, digits and `-_.~` written as `%xx`.
pub fn escape(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}
