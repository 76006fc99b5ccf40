//! Persistent HTTP connections with one request outstanding on each.

use std::io::{ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::error::BenchError;

/// Wait after a 429 response.
const RETRY_AFTER: Duration = Duration::from_millis(50);

/// What the server accepted.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    /// Messages accepted.
    pub(super) messages: u64,
    /// 429 responses.
    pub(super) throttled: u64,
}

/// The connections of a window. `make` encodes a request, given a connection and the number of its
/// first message.
pub(super) struct Driver<'a, F> {
    poll: Poll,
    connections: Vec<Connection>,
    /// The number of the next message of each connection.
    numbers: &'a mut [u32],
    /// Messages in a request.
    together: u32,
    make: F,
    outstanding: usize,
    counts: Counts,
}

impl<'a, F: Fn(usize, u32) -> Vec<u8>> Driver<'a, F> {
    /// Opens a connection for each number.
    ///
    /// # Errors
    /// When the server cannot be reached.
    pub(super) fn connect(
        url: &str,
        numbers: &'a mut [u32],
        together: u32,
        make: F,
    ) -> Result<Self, BenchError> {
        let authority = url.strip_prefix("http://").unwrap_or(url).trim_end_matches('/');
        let poll = Poll::new().map_err(failed)?;
        let mut connections = Vec::new();
        for index in 0..numbers.len() {
            let stream = std::net::TcpStream::connect(authority).map_err(failed)?;
            stream.set_nodelay(true).map_err(failed)?;
            stream.set_nonblocking(true).map_err(failed)?;
            let mut stream = TcpStream::from_std(stream);
            let interest = Interest::READABLE | Interest::WRITABLE;
            poll.registry().register(&mut stream, Token(index), interest).map_err(failed)?;
            connections.push(Connection::new(stream));
        }
        Ok(Self { poll, connections, numbers, together, make, outstanding: 0, counts: Counts::default() })
    }

    /// Sends requests until the deadline, and reads all responses.
    ///
    /// # Errors
    /// When a request is refused for another reason than load, or when a connection fails.
    pub(super) fn run(&mut self, deadline: Instant) -> Result<Counts, BenchError> {
        (0..self.connections.len()).try_for_each(|index| self.send(index))?;
        let mut events = Events::with_capacity(1024);
        // All connections may wait after a 429; the window continues until the deadline.
        while self.outstanding > 0
            || (Instant::now() < deadline && self.connections.iter().any(Connection::waits))
        {
            self.poll.poll(&mut events, Some(Duration::from_millis(20))).map_err(failed)?;
            let is_over = Instant::now() >= deadline;
            events.iter().try_for_each(|event| self.ready(event, is_over))?;
            self.retry(is_over)?;
        }
        Ok(self.counts)
    }

    fn ready(&mut self, event: &Event, is_over: bool) -> Result<(), BenchError> {
        let Token(index) = event.token();
        let connection = &mut self.connections[index];
        connection.flush().map_err(failed)?;
        if !event.is_readable() {
            return Ok(());
        }
        let Some(accepted) = connection.read_response(self.together)? else { return Ok(()) };
        self.outstanding -= 1;
        self.counts.messages += u64::from(accepted);
        self.numbers[index] += accepted;
        if is_over {
            return Ok(());
        }
        if accepted < self.together {
            self.counts.throttled += 1;
            connection.not_before = Some(Instant::now() + RETRY_AFTER);
            return Ok(());
        }
        self.send(index)
    }

    /// Sends the requests whose wait after a 429 has ended.
    fn retry(&mut self, is_over: bool) -> Result<(), BenchError> {
        let now = Instant::now();
        for index in 0..self.connections.len() {
            let not_before = &mut self.connections[index].not_before;
            if not_before.take_if(|at| now >= *at).is_some() && !is_over {
                self.send(index)?;
            }
        }
        Ok(())
    }

    fn send(&mut self, index: usize) -> Result<(), BenchError> {
        let request = (self.make)(index, self.numbers[index]);
        self.outstanding += 1;
        self.connections[index].send(request).map_err(failed)
    }
}

/// A persistent connection.
struct Connection {
    stream: TcpStream,
    output: Vec<u8>,
    written: usize,
    input: Vec<u8>,
    /// The end of the wait after a 429 response.
    not_before: Option<Instant>,
}

impl Connection {
    fn new(stream: TcpStream) -> Self {
        Self { stream, output: Vec::new(), written: 0, input: Vec::new(), not_before: None }
    }

    fn waits(&self) -> bool {
        self.not_before.is_some()
    }

    fn send(&mut self, request: Vec<u8>) -> std::io::Result<()> {
        (self.output, self.written) = (request, 0);
        self.flush()
    }

    fn flush(&mut self) -> std::io::Result<()> {
        while self.written < self.output.len() {
            match self.stream.write(&self.output[self.written..]) {
                Ok(len) => self.written += len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Returns the number of accepted messages once the response is complete.
    fn read_response(&mut self, together: u32) -> Result<Option<u32>, BenchError> {
        let mut piece = [0; 4096];
        loop {
            match self.stream.read(&mut piece) {
                Ok(0) => {
                    return Err(BenchError::Failed("the HTTP API closed a persistent connection".into()));
                }
                Ok(len) => self.input.extend_from_slice(&piece[..len]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(failed(error)),
            }
        }
        let response = crate::http::read_response(&self.input).map_err(BenchError::Failed)?;
        let Some((response, _)) = response else { return Ok(None) };
        self.input.clear();
        if response.status == 200 && response.body.starts_with(br#"{"code":0,"#) {
            return Ok(Some(together));
        }
        let text = String::from_utf8_lossy(&response.body).into_owned();
        if response.status == 429 {
            let value: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
            let accepted = value.get("accepted").and_then(serde_json::Value::as_u64).unwrap_or_default();
            return Ok(Some(u32::try_from(accepted).unwrap_or(together).min(together)));
        }
        Err(BenchError::Refused(format!("status {}, {}", response.status, text.trim())))
    }
}

fn failed(error: std::io::Error) -> BenchError {
    BenchError::failed("the HTTP API", error)
}
