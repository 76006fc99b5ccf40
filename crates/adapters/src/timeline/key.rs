//! Names of timelines as bytes: short, and none a prefix of another.

use goim_ports::{CursorId, IdempotencyKey, Mid, TimelineId, TimelineSeq};

/// The key of a timeline: the prefix of the keys of its messages.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct TimelineKey(Box<[u8]>);

impl TimelineKey {
    /// Returns `None` for a name longer than 65,000 bytes: fjall's keys have at most 64 KiB.
    pub(crate) fn new(timeline: &TimelineId) -> Option<Self> {
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

    /// Returns the timeline of a key, or `None` when it is not a timeline's key.
    pub(crate) fn read(key: &[u8]) -> Option<TimelineId> {
        match key.split_first()? {
            (1, mid) => Some(TimelineId::Inbox(Mid(i64::from_be_bytes(mid.try_into().ok()?)))),
            (2, rest) => {
                let name = std::str::from_utf8(rest.get(2..)?).ok()?;
                Some(TimelineId::Room(name.into()))
            }
            _ => None,
        }
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn message(&self, seq: TimelineSeq) -> Vec<u8> {
        [&self.0, &seq.0.to_be_bytes()[..]].concat()
    }

    pub(crate) fn dedup(&self, sender: Mid, key: &IdempotencyKey) -> Vec<u8> {
        [&self.0, &sender.0.to_be_bytes()[..], key.as_bytes()].concat()
    }

    pub(crate) fn cursor(&self, mid: Mid) -> Vec<u8> {
        [&mid.0.to_be_bytes()[..], &self.0].concat()
    }
}

/// Returns the key of a cursor; `None` as for [`TimelineKey::new`].
pub(crate) fn cursor_key(cursor: &CursorId) -> Option<Vec<u8>> {
    Some(TimelineKey::new(&cursor.timeline)?.cursor(cursor.mid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_key_is_a_prefix_of_another() {
        let names = ["a://b", "a://bc", "a://b\0\0", "mid://x", "\u{1}://"];
        let mut timelines: Vec<TimelineId> = names.map(|name| TimelineId::Room(name.into())).into();
        timelines.extend([1, 256, i64::MAX].map(|mid| TimelineId::Inbox(Mid(mid))));
        let keys: Vec<TimelineKey> = timelines.iter().map(|id| TimelineKey::new(id).unwrap()).collect();
        for (index, key) in keys.iter().enumerate() {
            assert_eq!(TimelineKey::read(key.as_bytes()).as_ref(), timelines.get(index));
            for (other_index, other) in keys.iter().enumerate() {
                assert!(index == other_index || !other.as_bytes().starts_with(key.as_bytes()));
            }
        }
        let long = TimelineId::Room("x".repeat(65_001).into());
        assert_eq!(TimelineKey::new(&long), None);
    }
}
