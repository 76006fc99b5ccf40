//! Keys and records on disk. Whoever changes what is written here raises [`FORMAT`].
//!
//! | keyspace | key | value |
//! |---|---|---|
//! | `timelines` | timeline | epoch, oldest sequence kept, bytes before it: 8 bytes each |
//! | `messages` | timeline, sequence | a [`crate::timeline::record::Record`] |
//! | `cursors` | member, timeline | sequence |
//! | `once.<generation>` | timeline, sender, name | sequence |
//! | `state` | `generation` | number of the newest generation, when it began |
//!
//! Integers are big endian, so that sequences stand in order. A timeline is a byte 1 and the member, or a byte 2, the length of the
//! name in two bytes and the name: no timeline's key begins another's.

use goim_ports::{Epoch, TimelineSeq};

/// What a folder must say that this can read.
pub(super) const FORMAT: u32 = 1;

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
    /// Bytes of all messages that are gone: what [`crate::timeline::record::Record::total_bytes`] of the one before `first` was.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_disk_stays_readable() {
        let record = TimelineRecord { epoch: Epoch(7), first: TimelineSeq(3), bytes_before: 258 };
        let written = record.write();
        assert_eq!(written, [0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(TimelineRecord::read(&written), Some(record));
        assert_eq!(TimelineRecord::read(&written[1..]), None);
    }
}
