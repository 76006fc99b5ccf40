//! The stored form of a message in durable stores: protobuf, so that a later version may add
//! fields.

use bytes::Bytes;
use goim_ports::{
    AcceptedAt, Bodies, Mid, NewMessage, Operation, Schema, SchemaBody, StoredMessage, TimelineSeq,
};
use prost::Message as _;

/// A stored message.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Record {
    #[prost(int64, tag = "1")]
    sender: i64,
    #[prost(sint32, tag = "2")]
    operation: i32,
    /// Microseconds since 1970.
    #[prost(fixed64, tag = "3")]
    accepted_at: u64,
    /// The bytes of the bodies of all messages of the timeline up to this one, including removed
    /// ones. The size of a range of messages is a difference.
    #[prost(uint64, tag = "4")]
    pub(crate) total_bytes: u64,
    #[prost(bytes = "bytes", tag = "5")]
    body: Bytes,
    #[prost(message, repeated, tag = "6")]
    bodies: Vec<Body>,
    #[prost(bool, tag = "7")]
    no_primary_body: bool,
    #[prost(bool, tag = "8")]
    is_deleted: bool,
}

/// The body in an additional schema.
#[derive(Clone, PartialEq, prost::Message)]
struct Body {
    #[prost(uint32, tag = "1")]
    schema: u32,
    #[prost(bytes = "bytes", tag = "2")]
    body: Bytes,
}

impl Record {
    pub(crate) fn new(message: NewMessage, total_bytes: u64) -> Self {
        let NewMessage { sender, operation, bodies, accepted_at } = message;
        Self {
            sender: sender.0,
            operation: operation.0,
            accepted_at: accepted_at.0,
            total_bytes,
            body: bodies.primary().cloned().unwrap_or_default(),
            bodies: bodies.others().iter().map(Body::from).collect(),
            no_primary_body: bodies.primary().is_none(),
            is_deleted: false,
        }
    }

    /// Returns `None` for bytes that are no record.
    pub(crate) fn read(bytes: Bytes) -> Option<Self> {
        Self::decode(bytes).ok()
    }

    pub(crate) fn write(&self) -> Vec<u8> {
        self.encode_to_vec()
    }

    pub(crate) fn accepted_at(&self) -> AcceptedAt {
        AcceptedAt(self.accepted_at)
    }

    /// Returns the bytes of the bodies.
    pub(crate) fn body_bytes(&self) -> usize {
        self.bodies
            .iter()
            .map(|body| body.body.len().saturating_add(8))
            .sum::<usize>()
            .saturating_add(self.body.len())
    }

    /// Returns the tombstone of the message; `None` when it is deleted already.
    pub(crate) fn deleted(self) -> Option<Self> {
        if self.is_deleted {
            return None;
        }
        Some(Self {
            body: Bytes::new(),
            bodies: Vec::new(),
            no_primary_body: false,
            is_deleted: true,
            ..self
        })
    }

    pub(crate) fn into_message(self, seq: TimelineSeq) -> StoredMessage {
        let is_deleted = self.is_deleted;
        let bodies: Vec<SchemaBody> = self.bodies.into_iter().filter_map(Body::into_schema_body).collect();
        let bodies = Bodies::new((!self.no_primary_body).then_some(self.body), bodies);
        let message = NewMessage {
            sender: Mid(self.sender),
            operation: Operation(self.operation),
            // A record without any body is never written.
            bodies: bodies.unwrap_or_else(|| Bodies::plain(Bytes::new())),
            accepted_at: AcceptedAt(self.accepted_at),
        };
        StoredMessage { seq, message, is_deleted }
    }
}

impl From<&SchemaBody> for Body {
    fn from(SchemaBody { schema, body }: &SchemaBody) -> Self {
        Self { schema: schema.0.into(), body: body.clone() }
    }
}

impl Body {
    fn into_schema_body(self) -> Option<SchemaBody> {
        let schema = Schema(u16::try_from(self.schema).ok()?);
        Some(SchemaBody { schema, body: self.body })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_format_is_stable() {
        let message = NewMessage {
            sender: Mid(5),
            operation: Operation(1000),
            bodies: Bodies::plain(Bytes::from_static(b"hi")),
            accepted_at: AcceptedAt(1),
        };
        let record = Record::new(message, 9);
        let expected = [8, 5, 16, 208, 15, 25, 1, 0, 0, 0, 0, 0, 0, 0, 32, 9, 42, 2, b'h', b'i'];
        assert_eq!(record.write(), expected);
        assert_eq!(Record::read(Bytes::copy_from_slice(&expected)), Some(record));
        assert_eq!(Record::read(Bytes::from_static(b"\xff")), None);
    }
}
