//! Session-end orders between logics: a Redis stream (`goim:ends`, Redis 5) of some thousand
//! entries.
//!
//! Each entry is one JSON object in the field `end`. A long list of members or keys is split into
//! several entries.

use goim_ports::{CloseReason, DirectoryError, EndCursor, EndTarget, Mid, SessionEnd};
use redis::{Cmd, cmd};
use serde::{Deserialize, Serialize};

use super::sessions::answer;
use super::store::RedisStore;

const STREAM: &str = "goim:ends";
/// The approximate length of the stream: far more than is appended between two reads of a logic.
const ENTRIES_MAX: usize = 4_096;
/// The maximum number of members or keys in one entry.
const TARGETS_MAX: usize = 1_000;
/// The maximum number of entries in one read.
const PAGE: usize = 1_000;

/// An entry.
#[derive(Serialize, Deserialize)]
struct Entry {
    origin: u64,
    code: u16,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    keys: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    mids: Vec<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    room: Option<String>,
}

impl Entry {
    fn of(SessionEnd { of, reason, origin }: SessionEnd) -> Vec<Self> {
        let empty = || Self { origin, code: reason.code(), keys: Vec::new(), mids: Vec::new(), room: None };
        match of {
            EndTarget::Keys(keys) => {
                let part = |keys: &[goim_ports::SessionKey]| {
                    let keys = keys.iter().map(ToString::to_string).collect();
                    Self { keys, ..empty() }
                };
                keys.chunks(TARGETS_MAX).map(part).collect()
            }
            EndTarget::Mids(mids) => {
                let part = |mids: &[Mid]| Self { mids: mids.iter().map(|mid| mid.0).collect(), ..empty() };
                mids.chunks(TARGETS_MAX).map(part).collect()
            }
            EndTarget::Room(room) => vec![Self { room: Some(room.to_string()), ..empty() }],
        }
    }

    fn into_end(self) -> SessionEnd {
        let of = match self.room {
            Some(room) => EndTarget::Room(room.into()),
            None if self.mids.is_empty() => {
                EndTarget::Keys(self.keys.iter().map(|key| key.as_str().into()).collect())
            }
            None => EndTarget::Mids(self.mids.into_iter().map(Mid).collect()),
        };
        // A newer logic may know more reasons.
        let reason = CloseReason::from_code(self.code).unwrap_or(CloseReason::Kicked);
        SessionEnd { of, reason, origin: self.origin }
    }
}

pub(super) async fn append(store: &RedisStore, end: SessionEnd) -> Result<(), DirectoryError> {
    let commands: Vec<Cmd> = Entry::of(end)
        .iter()
        // Plain data always serialises.
        .filter_map(|entry| serde_json::to_string(entry).ok())
        .map(|entry| {
            let mut command = cmd("XADD");
            command.arg(STREAM).arg("MAXLEN").arg("~").arg(ENTRIES_MAX).arg("*").arg("end").arg(entry);
            command
        })
        .collect();
    store.run(commands).await.map(drop)
}

/// Entries as Redis returns them: an id, and the names and values of the fields.
type Entries = Vec<(String, Vec<String>)>;

pub(super) async fn read_after(
    store: &RedisStore,
    cursor: Option<EndCursor>,
) -> Result<(EndCursor, Vec<SessionEnd>), DirectoryError> {
    let Some(EndCursor(cursor)) = cursor else {
        let newest = cmd("XREVRANGE").arg(STREAM).arg("+").arg("-").arg("COUNT").arg(1).to_owned();
        let entries: Entries = answer(store.run(vec![newest]).await?.into_iter().next())?;
        let newest = entries.into_iter().next().map_or_else(|| "0-0".to_owned(), |(id, _)| id);
        return Ok((EndCursor(newest), Vec::new()));
    };
    let mut asked = cmd("XREAD");
    asked.arg("COUNT").arg(PAGE).arg("STREAMS").arg(STREAM).arg(&cursor);
    let streams: Option<Vec<(String, Entries)>> = answer(store.run(vec![asked]).await?.into_iter().next())?;
    let entries: Entries = streams.into_iter().flatten().flat_map(|(_, entries)| entries).collect();
    let cursor = entries.last().map_or(cursor, |(id, _)| id.clone());
    let end = |fields: &[String]| serde_json::from_str(fields.get(1)?).ok().map(Entry::into_end);
    Ok((EndCursor(cursor), entries.iter().filter_map(|(_, fields)| end(fields)).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use goim_ports::SessionKey;

    #[test]
    fn an_end_becomes_entries_and_an_end_again() {
        let of = |of| SessionEnd { of, reason: CloseReason::Kicked, origin: u64::MAX };
        let keys = |range: std::ops::Range<u32>| -> Vec<SessionKey> {
            range.map(|number| SessionKey::from(number.to_string())).collect()
        };
        for (end, expected) in [
            (of(EndTarget::Room("live://1".into())), vec![of(EndTarget::Room("live://1".into()))]),
            (of(EndTarget::Mids(vec![Mid(7), Mid(-1)])), vec![of(EndTarget::Mids(vec![Mid(7), Mid(-1)]))]),
            (
                of(EndTarget::Keys(keys(0..1_001))),
                vec![of(EndTarget::Keys(keys(0..1_000))), of(EndTarget::Keys(keys(1_000..1_001)))],
            ),
        ] {
            let entries = Entry::of(end).into_iter();
            let read = entries.map(|entry| {
                let text = serde_json::to_string(&entry).unwrap();
                serde_json::from_str::<Entry>(&text).unwrap().into_end()
            });
            assert_eq!(read.collect::<Vec<_>>(), expected);
        }
    }
}
