//! The size of a record in goim v2's Kafka, whatever push log is used.
//!
//! The limit is goim v2's: a push that its Kafka client would refuse is refused here with the same
//! message, so that an embedded server accepts no message that a cluster would refuse.

use goim_ports::{PushRecord, PushTarget, ServerId, SessionKey};

/// What goim v2's Kafka client adds to the sizes of key and value.
const KAFKA_OVERHEAD_BYTES: usize = 26;

/// Returns the size that the limit applies to, in bytes.
pub(crate) fn size(record: &PushRecord) -> usize {
    KAFKA_OVERHEAD_BYTES + record.partition_key().len() + message_len(record)
}

/// The length of goim v2's `PushMsg`. Fields with their default value are not encoded.
fn message_len(record: &PushRecord) -> usize {
    const TYPE: usize = 2;
    let text = |text: &str| if text.is_empty() { 0 } else { bytes_len(text.len()) };
    let target = match &record.target {
        PushTarget::Keys { server, keys } => {
            let keys: usize = keys.iter().map(SessionKey::as_str).map(|key| bytes_len(key.len())).sum();
            text(ServerId::as_str(server)) + keys
        }
        PushTarget::Room(room) => TYPE + text(room.as_str()),
        PushTarget::All { speed } => TYPE + speed.map_or(0, |speed| 1 + varint_len(u64::from(speed.get()))),
    };
    let operation = match record.operation.0 {
        0 => 0,
        // Negative numbers are encoded with 64 bits.
        number => 1 + varint_len(i64::from(number).cast_unsigned()),
    };
    let body = record.payload.primary_bytes();
    let body = if body.is_empty() { 0 } else { bytes_len(body.len()) };
    // What goim v2 does not have counts with a few bytes of overhead.
    let extension = if record.payload.is_plain() { 0 } else { 16 + record.payload.extension_len() };
    target + operation + body + extension
}

/// The length of a field of bytes: tag, length, bytes.
fn bytes_len(len: usize) -> usize {
    1 + varint_len(len as u64) + len
}

fn varint_len(value: u64) -> usize {
    let bits = 64 - (value | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use goim_ports::{AcceptedAt, Operation, Payload, RoomId};

    fn record(target: PushTarget, operation: i32, body: &'static [u8]) -> PushRecord {
        PushRecord {
            target,
            operation: Operation(operation),
            payload: Payload::plain(Bytes::from_static(body)),
            accepted_at: AcceptedAt(0),
        }
    }

    /// The values are those of the conformance table, in hex without spaces.
    #[test]
    fn rows_65_to_67_the_length_of_captured_messages() {
        let check =
            |record: PushRecord, hex: &str| assert_eq!(message_len(&record), hex.len() / 2, "{record:?}");
        check(
            record(PushTarget::Room(RoomId::from("live://1000")), 1000, b"hello"),
            "080110e8072a0b6c6976653a2f2f313030303a0568656c6c6f",
        );
        let keys = vec![SessionKey::from("k1"), SessionKey::from("k2")];
        check(
            record(PushTarget::Keys { server: ServerId::from("comet01"), keys }, 1000, b"hello"),
            "10e8072207636f6d6574303132026b3132026b323a0568656c6c6f",
        );
        let speed = std::num::NonZeroU32::new(64);
        check(record(PushTarget::All { speed }, 1000, b"hello"), "080210e80718403a0568656c6c6f");
        check(record(PushTarget::All { speed: None }, -7, b""), "080210f9ffffffffffffffff01");
        check(record(PushTarget::All { speed: None }, 0, b""), "0802");
    }

    #[test]
    fn varints_grow_every_seven_bits() {
        for (value, length) in [(0, 1), (127, 1), (128, 2), (16_383, 2), (16_384, 3), (u64::MAX, 10)] {
            assert_eq!(varint_len(value), length, "{value}");
        }
    }
}
