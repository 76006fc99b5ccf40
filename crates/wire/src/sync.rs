//! Bodies of operations 4, 5 and 20 to 24: `api/sync.proto` as types.
//!
//! Used by both ends of a connection and the HTTP API. Knows nothing of how timelines are stored.

// Code derived by prost is not ours to lint.
#![allow(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use alloc::string::String;
use alloc::vec::Vec;

use bytes::Bytes;

/// A position in a timeline.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct Position {
    /// Generated when the timeline was created; zero if unknown.
    #[prost(uint64, tag = "1")]
    pub epoch: u64,
    /// The latest message up to here; zero for none.
    #[prost(uint64, tag = "2")]
    pub seq: u64,
}

/// A message of a timeline.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Message {
    /// Its sequence: 1, 2, 3 and so on without gaps.
    #[prost(uint64, tag = "1")]
    pub seq: u64,
    /// The operation, as in the packet of a push.
    #[prost(int32, tag = "2")]
    pub operation: i32,
    /// The format of the body: a packet version.
    #[prost(int32, tag = "3")]
    pub version: i32,
    /// When the publisher's request was accepted, in milliseconds since 1970.
    #[prost(int64, tag = "4")]
    pub time_ms: i64,
    /// The member that sent it; zero for the backend.
    #[prost(int64, tag = "5")]
    pub sender: i64,
    /// The body.
    #[prost(bytes = "bytes", tag = "6")]
    pub body: Bytes,
    /// Whether it was deleted: there is no body, only the sequence.
    #[prost(bool, tag = "7")]
    pub deleted: bool,
    /// Whether no body is in a schema that the client reads.
    #[prost(bool, tag = "8")]
    pub unreadable: bool,
}

/// Operation 20: a timeline has grown. Operation 32 has the same body, always with one message.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Notify {
    /// The timeline's name. Empty, with all other fields empty: notifications were lost, and every
    /// timeline must be synced.
    #[prost(string, tag = "1")]
    pub timeline: String,
    /// The latest position.
    #[prost(message, optional, tag = "2")]
    pub latest: Option<Position>,
    /// The latest messages, if they are few and small.
    #[prost(message, repeated, tag = "3")]
    pub messages: Vec<Message>,
}

/// Operation 21: requests the messages after a position.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct SyncRequest {
    /// The timeline's name.
    #[prost(string, tag = "1")]
    pub timeline: String,
    /// The client's position. Absent, or with epoch zero: starts at the member's cursor.
    #[prost(message, optional, tag = "2")]
    pub position: Option<Position>,
    /// Maximum number of messages; zero leaves it to the server.
    #[prost(uint32, tag = "3")]
    pub limit: u32,
}

/// Operation 22.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct SyncReply {
    /// The timeline's name.
    #[prost(string, tag = "1")]
    pub timeline: String,
    /// The current epoch; zero if nothing was ever appended.
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
    /// The messages after `after`, ascending, without gaps.
    #[prost(message, repeated, tag = "3")]
    pub messages: Vec<Message>,
    /// The latest sequence.
    #[prost(uint64, tag = "4")]
    pub latest: u64,
    /// Whether there are more messages after these.
    #[prost(bool, tag = "5")]
    pub more: bool,
    /// Whether there is a gap between the client's position and these messages.
    #[prost(bool, tag = "6")]
    pub gap: bool,
    /// The sequence before the first message.
    #[prost(uint64, tag = "7")]
    pub after: u64,
}

/// Operation 23: the member has read messages up to a sequence.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Ack {
    /// The timeline's name.
    #[prost(string, tag = "1")]
    pub timeline: String,
    /// The latest message that was read.
    #[prost(uint64, tag = "2")]
    pub seq: u64,
}

/// Operation 24.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct AckReply {
    /// The timeline's name.
    #[prost(string, tag = "1")]
    pub timeline: String,
    /// The cursor.
    #[prost(uint64, tag = "2")]
    pub seq: u64,
    /// Number of messages after the cursor.
    #[prost(uint64, tag = "3")]
    pub unread: u64,
}

/// Operation 4: a message for a timeline.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct SendRequest {
    /// The timeline's name.
    #[prost(string, tag = "1")]
    pub to: String,
    /// The operation of the message; zero for 4.
    #[prost(int32, tag = "2")]
    pub operation: i32,
    /// The body.
    #[prost(bytes = "bytes", tag = "3")]
    pub body: Bytes,
    /// Identifies the message among those of its sender; empty for none.
    #[prost(string, tag = "4")]
    pub client_id: String,
}

/// Operation 5.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct SendReply {
    /// The position of the message.
    #[prost(message, optional, tag = "1")]
    pub position: Option<Position>,
    /// Whether it had been appended before.
    #[prost(bool, tag = "2")]
    pub duplicate: bool,
}

/// The body of one of these operations.
pub trait Body: Sized {
    /// Decodes the body; `None` if it is malformed.
    fn read(bytes: Bytes) -> Option<Self>;

    /// Encodes the body.
    fn write(&self) -> Vec<u8>;
}

impl<M: prost::Message + Default> Body for M {
    fn read(bytes: Bytes) -> Option<Self> {
        Self::decode(bytes).ok()
    }

    fn write(&self) -> Vec<u8> {
        self.encode_to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_have_the_bytes_of_the_contract() {
        let position = Some(Position { epoch: 300, seq: 2 });
        let message = Message {
            seq: 2,
            operation: 1000,
            version: 1,
            time_ms: 1,
            sender: 7,
            body: Bytes::from_static(b"hi"),
            deleted: false,
            unreadable: false,
        };
        let notify = Notify { timeline: "mid://7".into(), latest: position, messages: alloc::vec![message] };
        let written = notify.write();
        assert_eq!(
            written,
            b"\x0a\x07mid://7\x12\x05\x08\xac\x02\x10\x02\x1a\x0f\x08\x02\x10\xe8\x07\x18\x01\x20\x01\x28\x07\x32\x02hi"
        );
        assert_eq!(Notify::read(written.into()), Some(notify));
        let request = SyncRequest { timeline: "a://b".into(), position, limit: 5 };
        assert_eq!(request.write(), b"\x0a\x05a://b\x12\x05\x08\xac\x02\x10\x02\x18\x05");
        let send = SendRequest {
            to: "a://b".into(),
            operation: 0,
            body: Bytes::from_static(b"x"),
            client_id: "1".into(),
        };
        assert_eq!(send.write(), b"\x0a\x05a://b\x1a\x01x\x22\x011");
        assert_eq!(SyncReply::read(Bytes::from_static(b"\xff")), None);
        assert_eq!(SyncReply::read(Bytes::new()), Some(SyncReply::default()));
    }
}
