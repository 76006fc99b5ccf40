//! The size of a push record on goim's Kafka topic.
//!
//! The documented record limit refers to this size, so every push log uses it.

use goim_ports::{PushRecord, PushTarget};
use prost::encoding::encoded_len_varint;

/// The bytes that goim's Kafka client adds to key and value.
const RECORD_HEAD: usize = 26;

/// The targets in goim's enumeration.
const TYPE_ROOM: i32 = 1;
const TYPE_BROADCAST: i32 = 2;

/// Returns the size that goim's limit applies to: the record's head, its key and its value
/// (`goim.logic.PushMsg`).
pub(crate) fn kafka_len(record: &PushRecord) -> usize {
    RECORD_HEAD + record.partition_key().len() + value_len(record)
}

fn value_len(record: &PushRecord) -> usize {
    let target = match &record.target {
        PushTarget::Keys { server, keys } => {
            let keys: usize = keys.iter().map(|key| one_text(key.as_str().len())).sum();
            text(server.as_str().len()) + keys
        }
        PushTarget::Room(room) => int(TYPE_ROOM) + text(room.as_str().len()),
        PushTarget::All { speed } => {
            int(TYPE_BROADCAST) + speed.map_or(0, |speed| int(i32::try_from(speed.get()).unwrap_or(i32::MAX)))
        }
    };
    target + int(record.operation.0) + text(record.payload.primary_bytes().len()) + extension_len(record)
}

/// Returns the size of the additional payload, with an allowance for its encoding.
fn extension_len(record: &PushRecord) -> usize {
    if record.payload.is_plain() { 0 } else { 16 + record.payload.extension_len() }
}

/// A text or bytes field: absent when empty.
fn text(len: usize) -> usize {
    if len == 0 { 0 } else { one_text(len) }
}

/// One element of a repeated text field: present also when empty.
fn one_text(len: usize) -> usize {
    1 + encoded_len_varint(len as u64) + len
}

/// An `int32` field: absent when zero; a negative one takes ten bytes, as protobuf has it.
fn int(value: i32) -> usize {
    if value == 0 { 0 } else { 1 + encoded_len_varint(i64::from(value).cast_unsigned()) }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use bytes::Bytes;
    use goim_ports::{AcceptedAt, Operation, Payload};

    use super::*;

    #[track_caller]
    fn check(target: PushTarget, operation: i32, body: &'static [u8], value: usize) {
        let record = PushRecord {
            target,
            operation: Operation(operation),
            payload: Payload::plain(Bytes::from_static(body)),
            accepted_at: AcceptedAt(0),
        };
        assert_eq!(value_len(&record), value, "{record:?}");
        assert_eq!(kafka_len(&record), 26 + record.partition_key().len() + value, "{record:?}");
    }

    #[test]
    fn lengths_are_those_of_captured_records() {
        // Rows 65, 66 and 67 of goim's conformance table.
        check(PushTarget::Room("live://1000".into()), 1000, b"hello", 25);
        let keys = vec!["k1".into(), "k2".into()];
        check(PushTarget::Keys { server: "comet01".into(), keys }, 1000, b"hello", 27);
        check(PushTarget::All { speed: NonZeroU32::new(64) }, 1000, b"hello", 14);
    }

    #[test]
    fn absent_fields_take_nothing() {
        check(PushTarget::Keys { server: "s".into(), keys: vec!["k".into()] }, 0, b"", 6);
        check(PushTarget::All { speed: None }, -1, b"", 2 + 11);
    }
}
