//! Keys and records on disk. A change of what is written raises [`FORMAT`].
//!
//! | keyspace | key | value |
//! |---|---|---|
//! | `timelines` | timeline | epoch, oldest stored sequence, bytes before it: 8 bytes each |
//! | `messages` | timeline, sequence | a [`crate::timeline::record::Record`] |
//! | `cursors` | member, timeline | sequence |
//! | `dedup.<generation>` | timeline, sender, idempotency key | sequence |
//! | `state` | `generation` | number of the newest dedup generation, when it began |
//!
//! Integers are big endian, so that sequences sort in order. A timeline is a byte 1 and the member,
//! or a byte 2, the length of the name in two bytes and the name: no timeline's key is a prefix of
//! another's.

use goim_ports::{Epoch, TimelineSeq};

/// The format that this version reads and writes. 1 had other keyspaces and was never released.
pub(super) const FORMAT: u32 = 2;

/// Returns the sequence at the end of a message's key.
pub(super) fn seq_of(key: &[u8]) -> Option<TimelineSeq> {
    number(key.get(key.len().checked_sub(8)?..)?).map(TimelineSeq)
}

/// Reads a value that is a single number.
pub(super) fn number(bytes: &[u8]) -> Option<u64> {
    bytes.try_into().ok().map(u64::from_be_bytes)
}

/// The record of a timeline. Written when the timeline is created and when its oldest messages are
/// removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TimelineRecord {
    pub(super) epoch: Epoch,
    pub(super) first: TimelineSeq,
    /// The bytes of all removed messages: the [`crate::timeline::record::Record::total_bytes`] of
    /// the message before `first`.
    pub(super) bytes_before: u64,
}

impl TimelineRecord {
    pub(super) fn write(&self) -> [u8; 24] {
        let mut bytes = [0; 24];
        let fields = [self.epoch.0, self.first.0, self.bytes_before];
        for (slot, field) in bytes.chunks_exact_mut(8).zip(fields) {
            slot.copy_from_slice(&field.to_be_bytes());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_format_is_stable() {
        let record = TimelineRecord { epoch: Epoch(7), first: TimelineSeq(3), bytes_before: 258 };
        let written = record.write();
        assert_eq!(written, [0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(TimelineRecord::read(&written), Some(record));
        assert_eq!(TimelineRecord::read(&written[1..]), None);
    }
}
