//! Sessions that sync, all on one poll: they authenticate, and count what they receive.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;
use std::time::Duration;

use goim_wire::sync::{Body as _, SyncReply};
use goim_wire::{Operation, Packet, PacketBuf, Sequence, Version};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::error::BenchError;

/// One session.
pub(super) struct Session {
    token: Vec<u8>,
    input: Vec<u8>,
    /// Authenticated.
    pub(super) is_open: bool,
    /// Messages in sync replies.
    pub(super) messages: u64,
    /// Pushes and notifications.
    received: u64,
}

impl Session {
    /// Creates a session that syncs a timeline from its start and joins a room. Either may be
    /// empty.
    pub(super) fn new(mid: u64, timeline: &str, room: &str) -> Self {
        let mut positions = serde_json::Map::new();
        if !timeline.is_empty() {
            positions.insert(timeline.to_owned(), serde_json::json!({ "epoch": 0, "seq": 0 }));
        }
        let body = serde_json::json!({
            "mid": mid, "room_id": room, "accepts": [], "protover": 1, "resume": positions,
        });
        let body = body.to_string();
        let packet = Packet {
            version: Version::GOIM,
            operation: Operation::AUTH,
            sequence: Sequence(1),
            body: body.as_bytes(),
        };
        let token = packet.to_owned().to_message_bytes().to_vec();
        Self { token, input: Vec::new(), is_open: false, messages: 0, received: 0 }
    }

    /// Processes all complete packets. Returns the output.
    fn process(&mut self) -> Vec<u8> {
        let (mut at, mut output) = (0, Vec::new());
        while let Some(length) = self.input.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()) {
            let length = usize::try_from(i32::from_be_bytes(length)).unwrap_or(usize::MAX);
            let Some(bytes) = self.input.get(at..at.saturating_add(length)) else { break };
            at += length;
            let Ok(packet) = Packet::from_message(bytes, usize::MAX) else { break };
            match packet.operation {
                Operation::AUTH_REPLY => self.is_open = true,
                Operation::SYNC_REPLY => {
                    let reply =
                        SyncReply::read(bytes::Bytes::copy_from_slice(packet.body)).unwrap_or_default();
                    self.messages += reply.messages.len() as u64;
                    if reply.more {
                        output.extend(next_request(&reply));
                    }
                }
                _ => self.received += 1,
            }
        }
        self.input.drain(..at);
        output
    }
}

/// Encodes the request for the next messages.
fn next_request(reply: &SyncReply) -> Vec<u8> {
    let seq = reply.messages.last().map_or(reply.after, |message| message.seq);
    let position = Some(goim_wire::sync::Position { epoch: reply.epoch, seq });
    let request = goim_wire::sync::SyncRequest { timeline: reply.timeline.clone(), position, limit: 0 };
    PacketBuf { sequence: Sequence(2), ..PacketBuf::push(Operation::SYNC, request.write().into()) }
        .to_message_bytes()
        .to_vec()
}

/// All sessions.
pub(super) struct Sessions {
    poll: Poll,
    events: Events,
    all: Vec<(TcpStream, Session)>,
    scratch: Vec<u8>,
    received: u64,
}

impl Sessions {
    /// Connects and authenticates all sessions.
    ///
    /// # Errors
    /// When one cannot connect.
    pub(super) fn open(addr: SocketAddr, sessions: Vec<Session>) -> Result<Self, BenchError> {
        let failed = |error| BenchError::failed("a session cannot connect", error);
        let poll = Poll::new().map_err(failed)?;
        let mut all = Vec::with_capacity(sessions.len());
        for (number, session) in sessions.into_iter().enumerate() {
            let mut stream = std::net::TcpStream::connect(addr).map_err(failed)?;
            stream.write_all(&session.token).map_err(failed)?;
            stream.set_nonblocking(true).map_err(failed)?;
            let mut stream = TcpStream::from_std(stream);
            poll.registry().register(&mut stream, Token(number), Interest::READABLE).map_err(failed)?;
            all.push((stream, session));
        }
        let (events, scratch) = (Events::with_capacity(1024), vec![0; 256 * 1024]);
        Ok(Self { poll, events, all, scratch, received: 0 })
    }

    /// Processes all input, waiting up to 10 ms for it.
    ///
    /// # Errors
    /// When a connection breaks.
    pub(super) fn poll(&mut self) -> Result<(), BenchError> {
        let failed = |error| BenchError::failed("a session's connection broke", error);
        match self.poll.poll(&mut self.events, Some(Duration::from_millis(10))) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            polled => polled.map_err(failed)?,
        }
        for event in &self.events {
            let Some((stream, session)) = self.all.get_mut(event.token().0) else { continue };
            loop {
                match stream.read(&mut self.scratch) {
                    Ok(0) => return Err(BenchError::Failed("the server has closed a session".into())),
                    Ok(count) => session.input.extend_from_slice(&self.scratch[..count]),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => return Err(failed(error)),
                }
            }
            let before = session.received;
            let output = session.process();
            self.received += session.received - before;
            if !output.is_empty() {
                // A request is short, and nothing else is queued on the socket.
                stream.write_all(&output).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Returns true when this is true of all sessions.
    pub(super) fn all(&self, is_so: impl Fn(&Session) -> bool) -> bool {
        self.all.iter().all(|(_, session)| is_so(session))
    }

    /// Returns the pushes and notifications of all sessions.
    pub(super) fn received(&self) -> u64 {
        self.received
    }
}
