//! A minimal HTTP/1.1 client. A library would hide details that the tests check.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A response.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    /// Names in lower case, in order.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Response {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Status and body, to compare both at once.
    pub(crate) fn status_and_body(&self) -> (u16, &str) {
        (self.status, &self.body)
    }
}

pub(crate) struct Connection {
    stream: TcpStream,
    unread: Vec<u8>,
}

impl Connection {
    pub(crate) async fn open(addr: SocketAddr) -> Self {
        Self { stream: TcpStream::connect(addr).await.unwrap(), unread: Vec::new() }
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    pub(crate) async fn request(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Response {
        self.send(&request(method, target, headers, body)).await;
        self.response(method).await
    }

    /// Closes the sending half.
    pub(crate) async fn finish(&mut self) {
        self.stream.shutdown().await.unwrap();
    }

    /// Reads the next response; `method` decides whether it has a body.
    pub(crate) async fn response(&mut self, method: &str) -> Response {
        loop {
            let head = self.head().await.expect("the connection ended instead of an answer");
            let mut lines = head.split("\r\n");
            let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
            if status == 100 {
                continue;
            }
            let headers: Vec<(String, String)> = lines
                .filter_map(|line| line.split_once(": "))
                .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
                .collect();
            let mut response = Response { status, headers, body: String::new() };
            let length = response.header("content-length").map_or(0, |length| length.parse().unwrap());
            assert_eq!(response.header("transfer-encoding"), None);
            if method != "HEAD" {
                response.body = String::from_utf8(self.take(length).await).unwrap();
            }
            return response;
        }
    }

    /// Reads the next head without its empty line; `None` at the end of the stream.
    pub(crate) async fn head(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.unread.windows(4).position(|window| window == b"\r\n\r\n") {
                let head = String::from_utf8(self.unread.drain(..end + 4).collect()).unwrap();
                return Some(head.trim_end().to_owned());
            }
            if !self.read().await {
                assert!(self.unread.is_empty(), "half a head: {:?}", self.unread);
                return None;
            }
        }
    }

    /// Reads the next chunk of a chunked body; empty at its end.
    pub(crate) async fn chunk(&mut self) -> String {
        let end = loop {
            if let Some(end) = self.unread.windows(2).position(|window| window == b"\r\n") {
                break end;
            }
            assert!(self.read().await, "the connection ended before a chunk");
        };
        let line = String::from_utf8(self.take(end + 2).await).unwrap();
        let length = usize::from_str_radix(line.trim_end(), 16).unwrap();
        let mut chunk = self.take(length + 2).await;
        chunk.truncate(length);
        String::from_utf8(chunk).unwrap()
    }

    /// True when the server closed the connection and sent nothing more.
    pub(crate) async fn is_closed(&mut self) -> bool {
        !self.read().await && self.unread.is_empty()
    }

    async fn take(&mut self, length: usize) -> Vec<u8> {
        while self.unread.len() < length {
            assert!(self.read().await, "the connection ended inside a body");
        }
        self.unread.drain(..length).collect()
    }

    async fn read(&mut self) -> bool {
        let mut buffer = [0; 4096];
        let count = self.stream.read(&mut buffer).await.unwrap_or(0);
        self.unread.extend_from_slice(&buffer[..count]);
        count > 0
    }
}

/// A request in wire format. Adds Content-Length unless the headers define the body's length.
pub(crate) fn request(method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut head = format!("{method} {target} HTTP/1.1\r\nHost: logic\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let chunked = headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("transfer-encoding"));
    if !chunked && (method != "GET" || !body.is_empty()) {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    [head.as_bytes(), body].concat()
}
