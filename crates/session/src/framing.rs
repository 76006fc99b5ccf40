//! Packets inside their transport: the only place that distinguishes a byte stream from WebSocket.
//!
//! TLS and the socket are below this and not known here. A WebSocket connection starts as an HTTP
//! request; the upgrade is part of the framing, so that the state machines above see packets only.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::OnceCell;

use crate::CloseReason;
use bytes::Bytes;
use goim_websocket::{self as websocket, Event, FrameError, Kind, Opcode, handshake};
use goim_wire::{
    DecodeError, HEADER_LEN, Header, Operation, Packet, PacketBuf, Sequence, StreamDecoder, Version,
};

/// The transport of packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// Packets on a byte stream.
    Stream,
    /// One packet in each WebSocket message.
    WebSocket,
}

/// Limits and rules of the framing, shared by all connections of a listener.
#[derive(Debug, Clone)]
pub struct FramingRules {
    /// Maximum inbound body in bytes.
    pub body_bytes_max: usize,
    /// Maximum size of the upgrade request or its response, in bytes.
    pub head_bytes_max: usize,
    /// The only request target that is upgraded.
    pub path: String,
    /// Whether to accept permessage-deflate if a client offers it.
    pub deflate: bool,
    /// Rules of WebSocket frames.
    pub websocket: websocket::Rules,
}

/// Returns the rules of frames at the server's end: strict, or as lenient as goim. No frame or
/// message is larger than `message_bytes_max`.
#[must_use]
pub fn websocket_rules(lenient: bool, message_bytes_max: usize) -> websocket::Rules {
    websocket::Rules {
        role: websocket::Role::Server,
        lenient,
        frame_bytes_max: message_bytes_max,
        message_bytes_max,
    }
}

/// A part of the input.
#[derive(Debug)]
pub(crate) enum Incoming<'a> {
    Packet(Packet<'a>),
    /// A message to inflate and then decode as a packet.
    Deflated(&'a [u8]),
    /// The upgrade is complete. At the server: the response to the request, and the facts of the
    /// request. At the client both are empty.
    Upgraded {
        response: Vec<u8>,
        facts: UpgradeFacts,
    },
    Ping(&'a [u8]),
    /// Nothing for the caller.
    Nothing,
    /// The peer sent a close frame.
    Closed,
}

/// Headers of the upgrade request, for authentication. All empty over a byte stream.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UpgradeFacts {
    /// The first `Cookie` header.
    pub cookie: String,
    /// The first `User-Agent` header.
    pub user_agent: String,
}

/// Why the input cannot be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FramingError {
    /// Not a packet.
    #[error("bad packet: {0}")]
    Packet(#[from] DecodeError),
    /// Not a WebSocket frame, or one that violates the rules.
    #[error("bad frame: {0}")]
    Frame(#[from] FrameError),
    /// Not the expected upgrade to WebSocket; `answer` may be sent before closing.
    #[error("bad upgrade: {reason}")]
    Upgrade {
        /// The error.
        reason: String,
        /// A complete HTTP response for the error.
        answer: Vec<u8>,
    },
}

impl FramingError {
    /// Returns what may be sent before the connection closes. A lenient listener sends nothing for
    /// invalid frames, as goim; a strict one sends the code of the error, as RFC 6455 requires.
    pub(crate) fn closing_frame(self, rules: &FramingRules) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Frame(error) if !rules.websocket.lenient => {
                Transport::WebSocket.close_frame(error.close_code(), "", &mut out);
            }
            Self::Packet(_) | Self::Frame(_) => {}
            Self::Upgrade { answer, .. } => out = answer,
        }
        out
    }

    /// Returns the close reason.
    pub(crate) fn reason(&self) -> CloseReason {
        match self {
            Self::Packet(_) => CloseReason::BadPacket,
            Self::Frame(_) => CloseReason::BadFrame,
            Self::Upgrade { .. } => CloseReason::BadUpgrade,
        }
    }
}

/// The framing of one connection, for either end.
#[derive(Debug)]
pub(crate) enum Framing {
    Stream(StreamDecoder),
    /// Waiting for the upgrade request; stores the part received so far.
    #[expect(clippy::box_collection, reason = "two pointers in every connection")]
    Upgrading(Box<Vec<u8>>),
    /// Waiting for the response to the upgrade request.
    Answering(Box<Answer>),
    WebSocket(websocket::Reader),
}

/// The response to an upgrade request, received in part.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The key of the request.
    key: String,
    /// The bytes received so far.
    head: Vec<u8>,
}

impl Framing {
    pub(crate) fn server(transport: Transport) -> Self {
        match transport {
            Transport::Stream => Self::Stream(StreamDecoder::new()),
            Transport::WebSocket => Self::Upgrading(Box::default()),
        }
    }

    /// Creates the client's end: with the key of the upgrade request, or for a byte stream.
    pub(crate) fn client(upgrade_key: Option<String>) -> Self {
        match upgrade_key {
            None => Self::Stream(StreamDecoder::new()),
            Some(key) => Self::Answering(Box::new(Answer { key, head: Vec::new() })),
        }
    }

    pub(crate) fn transport(&self) -> Transport {
        match self {
            Self::Stream(_) => Transport::Stream,
            Self::Upgrading(_) | Self::Answering(_) | Self::WebSocket(_) => Transport::WebSocket,
        }
    }

    /// Returns true if the peer reads messages compressed by permessage-deflate.
    pub(crate) fn deflates(&self) -> bool {
        matches!(self, Self::WebSocket(reader) if reader.deflates())
    }

    /// Returns the next part of `input` from `*at` on, or `None` when `input` is consumed.
    pub(crate) fn next<'a>(
        &'a mut self,
        rules: &FramingRules,
        input: &'a mut [u8],
        at: &mut usize,
    ) -> Result<Option<Incoming<'a>>, FramingError> {
        if let Self::Upgrading(head) = self {
            let Some((upgrade, used)) = read_upgrade(head, rules, input, at)? else { return Ok(None) };
            *at = at.saturating_add(used);
            let (reader, response) = if rules.deflate && upgrade.deflate {
                (websocket::Reader::deflating(), handshake::response_deflating(&upgrade.key))
            } else {
                (websocket::Reader::new(), handshake::response(&upgrade.key))
            };
            *self = Self::WebSocket(reader);
            let facts = UpgradeFacts { cookie: upgrade.cookie, user_agent: upgrade.user_agent };
            return Ok(Some(Incoming::Upgraded { response, facts }));
        }
        if let Self::Answering(answer) = self {
            let Some(used) = read_answer(answer, rules, input, at)? else { return Ok(None) };
            *at = at.saturating_add(used);
            *self = Self::WebSocket(websocket::Reader::new());
            let facts = UpgradeFacts::default();
            return Ok(Some(Incoming::Upgraded { response: Vec::new(), facts }));
        }
        match self {
            Self::Stream(decoder) => {
                let packet = decoder.next(input, at, rules.body_bytes_max)?;
                Ok(packet.map(Incoming::Packet))
            }
            Self::WebSocket(reader) => match reader.next(&rules.websocket, input, at)? {
                None => Ok(None),
                Some(event) => frame(event, rules.body_bytes_max).map(Some),
            },
            Self::Upgrading(_) | Self::Answering(_) => Ok(None),
        }
    }
}

/// Close codes of RFC 6455 that the server uses.
const NORMAL: u16 = 1000;
const GOING_AWAY: u16 = 1001;

impl Transport {
    /// Appends the reply to a ping.
    pub(crate) fn pong(self, payload: &[u8], out: &mut Vec<u8>) {
        if self == Self::WebSocket {
            websocket::encode_frame(out, Opcode::Pong, payload, None);
        }
    }

    /// Appends the reply to the peer's close frame.
    pub(crate) fn goodbye(self, out: &mut Vec<u8>) {
        self.close_frame(NORMAL, "", out);
    }

    /// Appends a close frame, if the transport has one.
    pub(crate) fn append_close(self, reason: &str, out: &mut Vec<u8>) {
        self.close_frame(GOING_AWAY, reason, out);
    }

    fn close_frame(self, code: u16, reason: &str, out: &mut Vec<u8>) {
        if self == Self::WebSocket {
            websocket::encode_frame(out, Opcode::Close, &websocket::close_payload(code, reason), None);
        }
    }

    /// Appends a packet for this peer only. `mask` is for the client's end of a WebSocket.
    pub(crate) fn encode(self, packet: Packet<'_>, mask: Option<[u8; 4]>, out: &mut Vec<u8>) {
        match self {
            // A run of packets needs no header on a stream.
            Self::Stream if packet.operation == Operation::RAW => out.extend_from_slice(packet.body),
            Self::Stream => packet.encode(out),
            Self::WebSocket => {
                let head = websocket::frame_head(Opcode::Binary, packet.encoded_len(), mask);
                out.extend_from_slice(head.as_slice());
                let from = out.len();
                packet.encode(out);
                if let (Some(mask), Some(payload)) = (mask, out.get_mut(from..)) {
                    websocket::apply_mask(payload, mask, 0);
                }
            }
        }
    }
}

/// Waits for the complete request head. Returns the upgrade and the number of bytes of `input` from
/// `*at` on that belong to it.
fn read_upgrade(
    head: &mut Vec<u8>,
    rules: &FramingRules,
    input: &[u8],
    at: &mut usize,
) -> Result<Option<(handshake::Upgrade, usize)>, FramingError> {
    let rest = input.get(*at..).unwrap_or_default();
    let before = head.len();
    // A head that is complete in the caller's buffer is not copied.
    let result = if before == 0 {
        handshake::read_request(rest, &rules.path, rules.head_bytes_max)
    } else {
        head.extend_from_slice(rest);
        handshake::read_request(head, &rules.path, rules.head_bytes_max)
    };
    match result {
        Ok(Some((upgrade, consumed))) => Ok(Some((upgrade, consumed.saturating_sub(before)))),
        Ok(None) => {
            if before == 0 {
                head.extend_from_slice(rest);
            }
            *at = input.len();
            Ok(None)
        }
        Err(error) => Err(FramingError::Upgrade {
            reason: alloc::string::ToString::to_string(&error),
            answer: handshake::refusal(&error),
        }),
    }
}

/// Waits for the complete response to the upgrade request. Returns the number of bytes of `input`
/// from `*at` on that belong to it.
fn read_answer(
    answer: &mut Answer,
    rules: &FramingRules,
    input: &[u8],
    at: &mut usize,
) -> Result<Option<usize>, FramingError> {
    let before = answer.head.len();
    answer.head.extend_from_slice(input.get(*at..).unwrap_or_default());
    match handshake::read_response(&answer.head, &answer.key, rules.head_bytes_max) {
        Ok(Some(consumed)) => Ok(Some(consumed.saturating_sub(before))),
        Ok(None) => {
            *at = input.len();
            Ok(None)
        }
        Err(error) => Err(FramingError::Upgrade {
            reason: alloc::string::ToString::to_string(&error),
            answer: Vec::new(),
        }),
    }
}

fn frame(event: Event<'_>, body_bytes_max: usize) -> Result<Incoming<'_>, FramingError> {
    Ok(match event {
        Event::Message { kind: Kind::Deflated, payload } => Incoming::Deflated(payload),
        Event::Message { payload, .. } => Incoming::Packet(Packet::from_message(payload, body_bytes_max)?),
        Event::Ping(payload) => Incoming::Ping(payload),
        Event::Pong(_) => Incoming::Nothing,
        Event::Close { .. } => Incoming::Closed,
    })
}

/// A packet for many receivers, encoded once for each transport and shared by reference.
///
/// A packet to one session uses one transport, so the WebSocket form is created for the first
/// receiver that needs it.
#[derive(Debug, Clone)]
pub struct EncodedPush {
    // Pointers to shared bytes, so that a queue entry costs one pointer for each receiver.
    stream: Arc<Bytes>,
    websocket: OnceCell<Arc<Bytes>>,
    version: Version,
    operation: Operation,
    sequence: Sequence,
    wrapping: Wrapping,
}

/// How a packet is encoded on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrapping {
    /// Header and body.
    Packet,
    /// A run of packets: alone on a stream, with a header in a WebSocket message.
    Batch,
    /// A run of packets, alone on every transport.
    Run,
}

impl EncodedPush {
    /// Encodes `packet`; the body of a batch is moved, not copied.
    #[must_use]
    pub fn new(packet: PacketBuf) -> Self {
        let PacketBuf { version, operation, sequence, .. } = packet;
        let (wrapping, stream) = match operation {
            Operation::RAW => (Wrapping::Batch, packet.body),
            _ => (Wrapping::Packet, packet.to_message_bytes()),
        };
        Self { stream: Arc::new(stream), websocket: OnceCell::new(), version, operation, sequence, wrapping }
    }

    /// Encodes `packet` with its header on every transport, even if it is a batch: a compressed
    /// body is not a run of packets.
    #[must_use]
    pub fn whole(packet: PacketBuf) -> Self {
        let PacketBuf { version, operation, sequence, .. } = packet;
        let stream = Arc::new(packet.to_message_bytes());
        Self { stream, websocket: OnceCell::new(), version, operation, sequence, wrapping: Wrapping::Packet }
    }

    /// Creates a run of complete packets without a header on every transport: over WebSocket in one
    /// message.
    #[must_use]
    pub fn run(packets: Bytes) -> Self {
        let PacketBuf { version, operation, sequence, body } = PacketBuf::push(Operation::RAW, packets);
        let (stream, websocket) = (Arc::new(body), OnceCell::new());
        Self { stream, websocket, version, operation, sequence, wrapping: Wrapping::Run }
    }

    /// Returns the same bytes with separate reference counts, for another thread: two threads with
    /// thousands of receivers each must not contend for one counter.
    #[must_use]
    pub fn for_another_thread(&self) -> Self {
        let apart = |bytes: &Arc<Bytes>| Arc::new(Bytes::clone(bytes));
        let websocket = self.websocket.get().map_or_else(OnceCell::new, |bytes| OnceCell::from(apart(bytes)));
        Self { stream: apart(&self.stream), websocket, ..*self }
    }

    /// Returns the packet.
    #[must_use]
    pub fn into_packet(self) -> PacketBuf {
        let Self { stream, version, operation, sequence, wrapping, .. } = self;
        let bytes = Arc::unwrap_or_clone(stream);
        let body = if wrapping == Wrapping::Packet { bytes.slice(HEADER_LEN..) } else { bytes };
        PacketBuf { version, operation, sequence, body }
    }

    /// Returns the WebSocket frame of the message compressed by permessage-deflate: `compress` gets
    /// the payload. `None` if it returns none.
    #[must_use]
    pub fn deflated(&self, compress: impl FnOnce(&[u8]) -> Option<Vec<u8>>) -> Option<Bytes> {
        let header = self.batch_header();
        let header = header.as_ref().map_or(&[][..], |header| header);
        let payload = compress(&[header, self.stream.as_ref()].concat())?;
        let head = websocket::frame_head(Opcode::Binary, payload.len(), None).deflated();
        Some(Bytes::from([head.as_slice(), payload.as_slice()].concat()))
    }

    /// Returns the same packet with this frame over WebSocket.
    #[must_use]
    pub fn with_frame(self, frame: Bytes) -> Self {
        Self { websocket: OnceCell::from(Arc::new(frame)), ..self }
    }

    /// The header before a run of packets in a message.
    fn batch_header(&self) -> Option<[u8; HEADER_LEN]> {
        let Self { stream, version, operation, sequence, wrapping, .. } = self;
        (*wrapping == Wrapping::Batch)
            .then(|| Header::new(*version, *operation, *sequence, stream.len()).to_bytes())
    }

    fn websocket(&self) -> &Arc<Bytes> {
        self.websocket.get_or_init(|| {
            let stream = &self.stream;
            let header = self.batch_header();
            let header = header.as_ref().map_or(&[][..], |header| header);
            let payload_len = header.len().saturating_add(stream.len());
            let head = websocket::frame_head(Opcode::Binary, payload_len, None);
            let mut message = Vec::with_capacity(head.as_slice().len().saturating_add(payload_len));
            message.extend_from_slice(head.as_slice());
            message.extend_from_slice(header);
            message.extend_from_slice(stream);
            Arc::new(Bytes::from(message))
        })
    }

    /// Returns the size in bytes on one transport.
    #[must_use]
    pub fn len(&self, transport: Transport) -> usize {
        self.bytes(transport).len()
    }

    /// Returns true if there is nothing to send: a run without packets.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.stream.is_empty()
    }

    /// Returns the bytes for one transport.
    #[inline]
    #[must_use]
    pub fn bytes(&self, transport: Transport) -> &Arc<Bytes> {
        match transport {
            Transport::Stream => &self.stream,
            Transport::WebSocket => self.websocket(),
        }
    }
}
