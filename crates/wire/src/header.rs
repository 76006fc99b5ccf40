//! The sixteen bytes in front of every body, and the types of their fields.
//!
//! Checks of length belong to the readers ([`crate::stream`], [`crate::packet`]); this file only lays out bytes.

use core::fmt;

/// Bytes in a header. HeaderLen on the wire must have this value.
pub const HEADER_LEN: usize = 16;

/// How a packet's body is to be read: a row of the version table. goim carries it and never looks at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub i16);

impl Version {
    /// What goim puts into every packet that it makes itself: schema 1, not compressed.
    pub const GOIM: Self = Self(1);
}

/// The sender's mark for a packet. A reply carries the mark of its request; pushes carry zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sequence(pub i32);

impl Sequence {
    /// The mark of packets that answer nothing.
    pub const NONE: Self = Self(0);
}

/// What a packet is. All that comet looks at to route it; any `i32` is legal on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Operation(pub i32);

impl Operation {
    /// Client asks for the heartbeat reply; the only packet that keeps a session alive.
    pub const HEARTBEAT: Self = Self(2);
    /// Reply to a heartbeat: the online count of the room as an `i32`.
    pub const HEARTBEAT_REPLY: Self = Self(3);
    /// Client sends a message upstream.
    pub const SEND: Self = Self(4);
    /// Reply to [`Operation::SEND`] for negotiated clients. goim never sends it: it echoes operation 4.
    pub const SEND_REPLY: Self = Self(5);
    /// The last packet before the server closes, for negotiated clients.
    pub const DISCONNECT: Self = Self(6);
    /// Client authenticates; the body is the token.
    pub const AUTH: Self = Self(7);
    /// Reply to [`Operation::AUTH`].
    pub const AUTH_REPLY: Self = Self(8);
    /// A run of complete packets. Bare on a stream, wrapped in a header of its own on WebSocket.
    pub const RAW: Self = Self(9);
    /// Client moves to the room named in the body; an empty body leaves.
    pub const CHANGE_ROOM: Self = Self(12);
    /// Reply to [`Operation::CHANGE_ROOM`], with the body of the request.
    pub const CHANGE_ROOM_REPLY: Self = Self(13);
    /// Client adds operations that it wants pushed.
    pub const SUBSCRIBE: Self = Self(14);
    /// Reply to [`Operation::SUBSCRIBE`], with the body of the request.
    pub const SUBSCRIBE_REPLY: Self = Self(15);
    /// Client removes operations that it wants pushed.
    pub const UNSUBSCRIBE: Self = Self(16);
    /// Reply to [`Operation::UNSUBSCRIBE`], with the body of the request.
    pub const UNSUBSCRIBE_REPLY: Self = Self(17);
    /// A timeline has grown, for negotiated clients.
    pub const NOTIFY: Self = Self(20);
    /// Client asks for what comes behind a position, for negotiated clients.
    pub const SYNC: Self = Self(21);
    /// Reply to [`Operation::SYNC`].
    pub const SYNC_REPLY: Self = Self(22);
    /// Client has read up to a sequence, for negotiated clients.
    pub const ACK: Self = Self(23);
    /// Reply to [`Operation::ACK`].
    pub const ACK_REPLY: Self = Self(24);
    /// The request that carries the sequence has failed, for negotiated clients.
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
    /// First operation of the range that belongs to the backend.
    pub const BACKEND_MIN: Self = Self(1000);
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A header as it stands on the wire, nothing checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Header and body, in bytes. Untrusted until a reader has checked it.
    pub packet_len: i32,
    /// Must be 16; kept so that a reader can say what was there instead.
    pub header_len: i16,
    /// See [`Version`].
    pub version: Version,
    /// See [`Operation`].
    pub operation: Operation,
    /// See [`Sequence`].
    pub sequence: Sequence,
}

impl Header {
    /// Header of a packet with a body of `body_len` bytes.
    ///
    /// A body beyond 2 GiB cannot be expressed; the length then saturates, and a reader refuses the packet.
    #[must_use]
    pub fn new(version: Version, operation: Operation, sequence: Sequence, body_len: usize) -> Self {
        let packet_len = i32::try_from(body_len.saturating_add(HEADER_LEN)).unwrap_or(i32::MAX);
        Self { packet_len, header_len: 16, version, operation, sequence }
    }

    /// Takes a header apart.
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

    /// Lays a header out.
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
