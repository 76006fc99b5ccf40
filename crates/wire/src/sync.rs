//! Bodies of operations 4, 5 and 20 to 24: `api/sync.proto` as types.
//!
//! Both ends of a connection and the HTTP API have these; what a timeline is, they do not know.

// What prost derives is not ours to lint.
#![allow(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use alloc::string::String;
use alloc::vec::Vec;

use bytes::Bytes;

/// How far somebody is in a timeline.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct Position {
    /// Drawn when the timeline was created; zero: not known.
    #[prost(uint64, tag = "1")]
    pub epoch: u64,
    /// The newest message that is meant; zero: none.
    #[prost(uint64, tag = "2")]
    pub seq: u64,
}

/// A message of a timeline.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Message {
    /// Its place: 1, 2, 3 and so on without holes.
    #[prost(uint64, tag = "1")]
    pub seq: u64,
    /// What the message is, as in the packet of a push.
    #[prost(int32, tag = "2")]
    pub operation: i32,
    /// How the body is to be read: a packet version.
    #[prost(int32, tag = "3")]
    pub version: i32,
    /// When it was accepted, in milliseconds since 1970.
    #[prost(int64, tag = "4")]
    pub time_ms: i64,
    /// The member that has sent it; zero: the backend.
    #[prost(int64, tag = "5")]
    pub sender: i64,
    /// What it says.
    #[prost(bytes = "bytes", tag = "6")]
    pub body: Bytes,
    /// It was deleted: there is no body, and the place stays.
    #[prost(bool, tag = "7")]
    pub deleted: bool,
    /// There is no body in a schema that the client reads.
    #[prost(bool, tag = "8")]
    pub unreadable: bool,
}

/// Operation 20: the timeline has grown. Operation 32 has the same body, always with one message.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Notify {
    /// Its name. Empty, and nothing else with it: words were lost, and each timeline that is followed is to be asked for.
    #[prost(string, tag = "1")]
    pub timeline: String,
    /// Where it ends.
    #[prost(message, optional, tag = "2")]
    pub latest: Option<Position>,
    /// The newest messages, when they are few and small.
    #[prost(message, repeated, tag = "3")]
    pub messages: Vec<Message>,
}

/// Operation 21: what comes behind a position?
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct SyncRequest {
    /// The timeline's name.
    #[prost(string, tag = "1")]
    pub timeline: String,
    /// What the client has. Absent, or with epoch zero: it begins at the member's cursor.
    #[prost(message, optional, tag = "2")]
    pub position: Option<Position>,
    /// Messages at most; zero: as many as the server gives.
    #[prost(uint32, tag = "3")]
    pub limit: u32,
}

/// Operation 22.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct SyncReply {
    /// The timeline's name.
    #[prost(string, tag = "1")]
    pub timeline: String,
    /// Of the timeline now; zero: nothing was ever appended.
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
    /// Ascending, without holes, behind `after`.
    #[prost(message, repeated, tag = "3")]
    pub messages: Vec<Message>,
    /// Where the timeline ends.
    #[prost(uint64, tag = "4")]
    pub latest: u64,
    /// There is more behind these messages.
    #[prost(bool, tag = "5")]
    pub more: bool,
    /// There is a hole between what the client has and these messages.
    #[prost(bool, tag = "6")]
    pub gap: bool,
    /// What the messages follow.
    #[prost(uint64, tag = "7")]
    pub after: u64,
}

/// Operation 23: the member has read up to here.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Ack {
    /// The timeline's name.
    #[prost(string, tag = "1")]
    pub timeline: String,
    /// The newest message that was read.
    #[prost(uint64, tag = "2")]
    pub seq: u64,
}

/// Operation 24.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct AckReply {
    /// The timeline's name.
    #[prost(string, tag = "1")]
    pub timeline: String,
    /// Where the cursor is now.
    #[prost(uint64, tag = "2")]
    pub seq: u64,
    /// Messages behind it.
    #[prost(uint64, tag = "3")]
    pub unread: u64,
}

/// Operation 4: a message for a timeline.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct SendRequest {
    /// The timeline's name.
    #[prost(string, tag = "1")]
    pub to: String,
    /// What the message is; zero: 4.
    #[prost(int32, tag = "2")]
    pub operation: i32,
    /// What it says.
    #[prost(bytes = "bytes", tag = "3")]
    pub body: Bytes,
    /// Names the message among those of its sender; empty: it has no name.
    #[prost(string, tag = "4")]
    pub client_id: String,
}

/// Operation 5.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct SendReply {
    /// Where the message is.
    #[prost(message, optional, tag = "1")]
    pub position: Option<Position>,
    /// It was there before.
    #[prost(bool, tag = "2")]
    pub duplicate: bool,
}

/// A body of these operations.
pub trait Body: Sized {
    /// Reads it; `None` for bytes that are none.
    fn read(bytes: Bytes) -> Option<Self>;

    /// Writes it.
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
