//! Keys and records on disk. Whoever changes what is written here raises [`FORMAT`].
//!
//! | keyspace | key | value |
//! |---|---|---|
//! | `timelines` | timeline | epoch, oldest sequence kept, bytes before it: 8 bytes each |
//! | `messages` | timeline, sequence | a [`Record`] |
//! | `cursors` | member, timeline | sequence |
//! | `once.<generation>` | timeline, sender, name | sequence |
//! | `state` | `generation` | number of the newest generation, when it began |
//!
//! Integers are big endian, so that sequences stand in order. A timeline is a byte 1 and the member, or a byte 2, the length of the
//! name in two bytes and the name: no timeline's key begins another's.

use std::sync::Arc;

use bytes::Bytes;
use goim_ports::{
    AcceptedAt, CursorId, Epoch, Extended, Mid, NewMessage, OnceKey, Operation, Schema, SchemaBody,
    StoredMessage, TimelineId, TimelineSeq,
};
use prost::Message as _;

/// What a folder must say that this can read.
pub(super) const FORMAT: u32 = 1;

/// The key of a timeline, the beginning of those of its messages.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct TimelineKey(Box<[u8]>);

impl TimelineKey {
    /// `None` for a name that is longer than 64 KiB, less what else stands in a key.
    pub(super) fn new(timeline: &TimelineId) -> Option<Self> {
        const NAME_BYTES_MAX: usize = 65_000;
        Some(Self(match timeline {
            TimelineId::Inbox(mid) => [&[1][..], &mid.0.to_be_bytes()].concat().into(),
            TimelineId::Room(room) => {
                let name = room.as_str().as_bytes();
                let len = u16::try_from(name.len()).ok().filter(|_| name.len() <= NAME_BYTES_MAX)?;
                [&[2][..], &len.to_be_bytes(), name].concat().into()
            }
        }))
    }

    /// The timeline that a key is of, if it is one.
    pub(super) fn read(key: &[u8]) -> Option<TimelineId> {
        match key.split_first()? {
            (1, mid) => Some(TimelineId::Inbox(Mid(i64::from_be_bytes(mid.try_into().ok()?)))),
            (2, rest) => {
                let name = std::str::from_utf8(rest.get(2..)?).ok()?;
                Some(TimelineId::Room(name.into()))
            }
            _ => None,
        }
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn message(&self, seq: TimelineSeq) -> Vec<u8> {
        [&self.0, &seq.0.to_be_bytes()[..]].concat()
    }

    pub(super) fn once(&self, sender: Mid, name: &OnceKey) -> Vec<u8> {
        [&self.0, &sender.0.to_be_bytes()[..], name.as_bytes()].concat()
    }

    pub(super) fn cursor(&self, mid: Mid) -> Vec<u8> {
        [&mid.0.to_be_bytes()[..], &self.0].concat()
    }
}

/// The key of a cursor; `None` as for [`TimelineKey::new`].
pub(super) fn cursor_key(cursor: &CursorId) -> Option<Vec<u8>> {
    Some(TimelineKey::new(&cursor.timeline)?.cursor(cursor.mid))
}

/// The sequence at the end of a message's key.
pub(super) fn seq_of(key: &[u8]) -> Option<TimelineSeq> {
    number(key.get(key.len().checked_sub(8)?..)?).map(TimelineSeq)
}

/// A number that stands alone.
pub(super) fn number(bytes: &[u8]) -> Option<u64> {
    bytes.try_into().ok().map(u64::from_be_bytes)
}

/// What is kept of a timeline beside its messages. Written when it begins and when its oldest messages go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TimelineRecord {
    pub(super) epoch: Epoch,
    pub(super) first: TimelineSeq,
    /// Bytes of all messages that are gone: what [`Record::total_bytes`] of the one before `first` was.
    pub(super) bytes_before: u64,
}

impl TimelineRecord {
    pub(super) fn write(&self) -> [u8; 24] {
        let mut bytes = [0; 24];
        let fields = [self.epoch.0, self.first.0, self.bytes_before];
        for (place, field) in bytes.chunks_exact_mut(8).zip(fields) {
            place.copy_from_slice(&field.to_be_bytes());
        }
        bytes
    }

    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let mut fields = bytes.chunks_exact(8).map(number);
        let mut next = || fields.next().flatten();
        let (epoch, first) = (Epoch(next()?), TimelineSeq(next()?));
        Some(Self { epoch, first, bytes_before: next()? })
    }
}

/// A message as it is kept.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Record {
    #[prost(int64, tag = "1")]
    sender: i64,
    #[prost(sint32, tag = "2")]
    operation: i32,
    /// Microseconds since 1970.
    #[prost(fixed64, tag = "3")]
    accepted_at: u64,
    /// Bytes of the bodies of all messages of the timeline up to and with this one, those that are gone too: how much lies between
    /// two messages is a subtraction.
    #[prost(uint64, tag = "4")]
    pub(super) total_bytes: u64,
    #[prost(bytes = "bytes", tag = "5")]
    body: Bytes,
    #[prost(message, repeated, tag = "6")]
    bodies: Vec<Body>,
    #[prost(bool, tag = "7")]
    without_first: bool,
    #[prost(bool, tag = "8")]
    is_deleted: bool,
}

/// The body in one more schema.
#[derive(Clone, PartialEq, prost::Message)]
struct Body {
    #[prost(uint32, tag = "1")]
    schema: u32,
    #[prost(bytes = "bytes", tag = "2")]
    body: Bytes,
}

impl Record {
    pub(super) fn new(message: NewMessage, total_bytes: u64) -> Self {
        let NewMessage { sender, operation, body, extension, accepted_at } = message;
        let (bodies, without_first) = match extension.as_deref() {
            Some(extended) => (extended.bodies.iter().map(Body::from).collect(), extended.without_first),
            None => (Vec::new(), false),
        };
        Self {
            sender: sender.0,
            operation: operation.0,
            accepted_at: accepted_at.0,
            total_bytes,
            body,
            bodies,
            without_first,
            is_deleted: false,
        }
    }

    /// `None` for what is no record.
    pub(super) fn read(bytes: Bytes) -> Option<Self> {
        Self::decode(bytes).ok()
    }

    pub(super) fn write(&self) -> Vec<u8> {
        self.encode_to_vec()
    }

    pub(super) fn accepted_at(&self) -> AcceptedAt {
        AcceptedAt(self.accepted_at)
    }

    /// Bytes of the bodies.
    pub(super) fn body_bytes(&self) -> usize {
        self.bodies
            .iter()
            .map(|body| body.body.len().saturating_add(8))
            .sum::<usize>()
            .saturating_add(self.body.len())
    }

    /// The same place without its body; `None` when it was so before.
    pub(super) fn deleted(self) -> Option<Self> {
        if self.is_deleted {
            return None;
        }
        Some(Self { body: Bytes::new(), bodies: Vec::new(), without_first: false, is_deleted: true, ..self })
    }

    pub(super) fn into_message(self, seq: TimelineSeq) -> StoredMessage {
        let is_deleted = self.is_deleted;
        let bodies: Vec<SchemaBody> = self.bodies.into_iter().filter_map(Body::into_schema_body).collect();
        let is_extended = self.without_first || !bodies.is_empty();
        let extended = Extended { bodies, without_first: self.without_first, ..Extended::default() };
        let message = NewMessage {
            sender: Mid(self.sender),
            operation: Operation(self.operation),
            body: self.body,
            extension: is_extended.then(|| Arc::new(extended)),
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
    fn no_key_begins_another() {
        let names = ["a://b", "a://bc", "a://b\0\0", "mid://x", "\u{1}://"];
        let mut timelines: Vec<TimelineId> = names.map(|name| TimelineId::Room(name.into())).into();
        timelines.extend([1, 256, i64::MAX].map(|mid| TimelineId::Inbox(Mid(mid))));
        let keys: Vec<TimelineKey> = timelines.iter().map(|id| TimelineKey::new(id).unwrap()).collect();
        for (place, key) in keys.iter().enumerate() {
            assert_eq!(TimelineKey::read(key.as_bytes()).as_ref(), timelines.get(place));
            for (other_place, other) in keys.iter().enumerate() {
                assert!(place == other_place || !other.as_bytes().starts_with(key.as_bytes()));
            }
        }
        let long = TimelineId::Room("x".repeat(65_001).into());
        assert_eq!(TimelineKey::new(&long), None);
    }

    #[test]
    fn what_is_on_disk_stays_readable() {
        let record = TimelineRecord { epoch: Epoch(7), first: TimelineSeq(3), bytes_before: 258 };
        let written = record.write();
        assert_eq!(written, [0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(TimelineRecord::read(&written), Some(record));
        assert_eq!(TimelineRecord::read(&written[1..]), None);
        let message = NewMessage {
            sender: Mid(5),
            operation: Operation(1000),
            body: Bytes::from_static(b"hi"),
            extension: None,
            accepted_at: AcceptedAt(1),
        };
        let record = Record::new(message, 9);
        let expected = [8, 5, 16, 208, 15, 25, 1, 0, 0, 0, 0, 0, 0, 0, 32, 9, 42, 2, b'h', b'i'];
        assert_eq!(record.write(), expected);
        assert_eq!(Record::read(Bytes::copy_from_slice(&expected)), Some(record));
        assert_eq!(Record::read(Bytes::from_static(b"\xff")), None);
    }
}
