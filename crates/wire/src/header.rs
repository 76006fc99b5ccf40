//! The 16 bytes before every body, and the types of their fields.
//!
//! The readers ([`crate::stream`], [`crate::packet`]) check lengths; this file only defines the
//! layout.

use core::fmt;

/// Size of a header in bytes. HeaderLen on the wire has this value.
pub const HEADER_LEN: usize = 16;

/// The format of a packet's body: a row of the version table. goim passes it on without using it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub i16);

impl Version {
    /// The version of every packet that goim sends: schema 1, not compressed.
    pub const GOIM: Self = Self(1);
}

/// The sender's number for a packet. A reply has the number of its request; pushes have zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sequence(pub i32);

impl Sequence {
    /// The sequence of packets that reply to nothing.
    pub const NONE: Self = Self(0);
}

/// The kind of a packet, by which comet routes it. Any `i32` is legal on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Operation(pub i32);

impl Operation {
    /// Client requests a heartbeat reply; the only packet that keeps a session alive.
    pub const HEARTBEAT: Self = Self(2);
    /// Reply to a heartbeat: the number of sessions in the room as an `i32`.
    pub const HEARTBEAT_REPLY: Self = Self(3);
    /// Client sends a message upstream.
    pub const SEND: Self = Self(4);
    /// Reply to [`Operation::SEND`] for negotiated clients. goim never sends it: it echoes
    /// operation 4.
    pub const SEND_REPLY: Self = Self(5);
    /// The last packet before the server closes, for negotiated clients.
    pub const DISCONNECT: Self = Self(6);
    /// Client authenticates; the body is the token.
    pub const AUTH: Self = Self(7);
    /// Reply to [`Operation::AUTH`].
    pub const AUTH_REPLY: Self = Self(8);
    /// A run of complete packets. Without a header on a stream, with a header on WebSocket.
    pub const RAW: Self = Self(9);
    /// Client moves to the room in the body; an empty body leaves the room.
    pub const CHANGE_ROOM: Self = Self(12);
    /// Reply to [`Operation::CHANGE_ROOM`], with the body of the request.
    pub const CHANGE_ROOM_REPLY: Self = Self(13);
    /// Client subscribes to operations.
    pub const SUBSCRIBE: Self = Self(14);
    /// Reply to [`Operation::SUBSCRIBE`], with the body of the request.
    pub const SUBSCRIBE_REPLY: Self = Self(15);
    /// Client unsubscribes from operations.
    pub const UNSUBSCRIBE: Self = Self(16);
    /// Reply to [`Operation::UNSUBSCRIBE`], with the body of the request.
    pub const UNSUBSCRIBE_REPLY: Self = Self(17);
    /// Notification that a timeline has grown, for negotiated clients.
    pub const NOTIFY: Self = Self(20);
    /// Client requests the messages after a position, for negotiated clients.
    pub const SYNC: Self = Self(21);
    /// Reply to [`Operation::SYNC`].
    pub const SYNC_REPLY: Self = Self(22);
    /// Client acknowledges messages up to a sequence, for negotiated clients.
    pub const ACK: Self = Self(23);
    /// Reply to [`Operation::ACK`].
    pub const ACK_REPLY: Self = Self(24);
    /// The request with this sequence failed, for negotiated clients.
    pub const ERROR: Self = Self(25);
    /// Client joins the rooms that the body lists in JSON, for negotiated clients.
    pub const JOIN_ROOMS: Self = Self(26);
    /// Reply to [`Operation::JOIN_ROOMS`].
    pub const JOIN_ROOMS_REPLY: Self = Self(27);
    /// Client leaves the rooms that the body lists in JSON, for negotiated clients.
    pub const LEAVE_ROOMS: Self = Self(28);
    /// Reply to [`Operation::LEAVE_ROOMS`].
    pub const LEAVE_ROOMS_REPLY: Self = Self(29);
    /// Client presents a new token, for negotiated clients.
    pub const REFRESH_TOKEN: Self = Self(30);
    /// Reply to [`Operation::REFRESH_TOKEN`].
    pub const REFRESH_TOKEN_REPLY: Self = Self(31);
    /// A member's message with its sender, for negotiated clients that do not sync.
    pub const MEMBER_MESSAGE: Self = Self(32);
    /// The first operation of the backend's range.
    pub const BACKEND_MIN: Self = Self(1000);
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A header as on the wire, not checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Size of header and body in bytes. Untrusted until a reader has checked it.
    pub packet_len: i32,
    /// Must be 16; stored so that a reader can report another value.
    pub header_len: i16,
    /// See [`Version`].
    pub version: Version,
    /// See [`Operation`].
    pub operation: Operation,
    /// See [`Sequence`].
    pub sequence: Sequence,
}

impl Header {
    /// Creates the header of a packet with a body of `body_len` bytes.
    ///
    /// The length saturates for a body of more than 2 GiB, and readers refuse the packet.
    #[must_use]
    pub fn new(version: Version, operation: Operation, sequence: Sequence, body_len: usize) -> Self {
        let packet_len = i32::try_from(body_len.saturating_add(HEADER_LEN)).unwrap_or(i32::MAX);
        Self { packet_len, header_len: 16, version, operation, sequence }
    }

    /// Decodes a header.
    #[must_use]
    pub fn parse(bytes: &[u8; HEADER_LEN]) -> Self {
        let [p0, p1, p2, p3, h0, h1, v0, v1, o0, o1, o2, o3, s0, s1, s2, s3] = *bytes;
        Self {
            packet_len: i32::from_be_bytes([p0, p1, p2, p3]),
            header_len: i16::from_be_bytes([h0, h1]),
            version: Version(i16::from_be_bytes([v0, v1])),
            operation: Operation(i32::from_be_bytes([o0, o1, o2, o3])),
            sequence: Sequence(i32::from_be_bytes([s0, s1, s2, s3])),
        }
    }

    /// Encodes a header.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; HEADER_LEN] {
        let [p0, p1, p2, p3] = self.packet_len.to_be_bytes();
        let [h0, h1] = self.header_len.to_be_bytes();
        let [v0, v1] = self.version.0.to_be_bytes();
        let [o0, o1, o2, o3] = self.operation.0.to_be_bytes();
        let [s0, s1, s2, s3] = self.sequence.0.to_be_bytes();
        [p0, p1, p2, p3, h0, h1, v0, v1, o0, o1, o2, o3, s0, s1, s2, s3]
    }
}
