//! Which connection of this comet has which key: the one table that all shards write.
//!
//! A key can come back on any shard while its old connection still stands on another, and a push by key must find the
//! newest one, so this cannot be a table per shard. It is locked in stripes, for the time of one look-up.
//!
//! It also closes a gap that goim has: when a key comes back just as its old connection ends, the old one's farewell
//! to logic can remove the record that the new one has just made. So a key that is being taken leave of stays in the
//! table as *departing* until logic has answered; a newcomer that meets such an entry, or that sees that any farewell
//! was finished while its own greeting was under way, tells logic once more that it is there.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use goim_ports::SessionKey;

use crate::connection::ConnectionId;

/// Locks. Keys are spread over them by their hash.
const STRIPES: usize = 64;
/// Tables below this many places keep them.
const SHRINK_ABOVE: usize = 256;

/// A connection of this comet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Location {
    pub(crate) shard: u16,
    pub(crate) connection: ConnectionId,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    location: Location,
    /// The connection has ended; logic is being told.
    departing: bool,
    /// A farewell to an earlier connection with this key is under way: confirm this one when it is through.
    confirm: bool,
}

/// What a newcomer met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entered {
    /// The connection that had the key until now and must be closed.
    pub(crate) superseded: Option<Location>,
    /// Logic may have forgotten the newcomer already: tell it again.
    pub(crate) confirm: bool,
}

/// The table.
pub(crate) struct KeyIndex {
    stripes: Vec<Mutex<HashMap<SessionKey, Entry>>>,
    hasher: std::hash::RandomState,
    farewells: AtomicU64,
}

impl KeyIndex {
    pub(crate) fn new() -> Self {
        Self {
            stripes: (0..STRIPES).map(|_| Mutex::default()).collect(),
            hasher: std::hash::RandomState::new(),
            farewells: AtomicU64::new(0),
        }
    }

    fn stripe(&self, key: &SessionKey) -> MutexGuard<'_, HashMap<SessionKey, Entry>> {
        use std::hash::BuildHasher as _;
        let index = self.hasher.hash_one(key) as usize % STRIPES;
        self.stripes[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many farewells are finished. To be read before logic is asked to accept a newcomer.
    pub(crate) fn farewells(&self) -> u64 {
        self.farewells.load(Ordering::SeqCst)
    }

    /// Enters a connection that logic has accepted. `farewells` is what [`KeyIndex::farewells`] said before.
    pub(crate) fn enter(&self, key: &SessionKey, location: Location, farewells: u64) -> Entered {
        let mut keys = self.stripe(key);
        let before = keys.insert(key.clone(), Entry { location, departing: false, confirm: false });
        let met_farewell = before.is_some_and(|entry| entry.departing || entry.confirm);
        if met_farewell && let Some(entry) = keys.get_mut(key) {
            entry.confirm = true;
        }
        drop(keys);
        Entered {
            superseded: before.filter(|entry| !entry.departing).map(|entry| entry.location),
            confirm: self.farewells() != farewells,
        }
    }

    /// The connection has ended. True when the key was still its own: then logic must be told, and
    /// [`KeyIndex::departed`] called when it has answered.
    pub(crate) fn depart(&self, key: &SessionKey, location: Location) -> bool {
        let mut keys = self.stripe(key);
        match keys.get_mut(key) {
            Some(entry) if entry.location == location => {
                entry.departing = true;
                true
            }
            _ => false,
        }
    }

    /// Logic has answered the farewell. Gives a connection that has taken the key over meanwhile and must be confirmed.
    pub(crate) fn departed(&self, key: &SessionKey, location: Location) -> Option<Location> {
        let mut keys = self.stripe(key);
        // Counted inside the lock: who enters the key later sees either the entry or the count.
        self.farewells.fetch_add(1, Ordering::SeqCst);
        let entry = keys.get_mut(key)?;
        if entry.location == location {
            keys.remove(key);
            if keys.is_empty() {
                // A small table somewhere in a large free stretch would keep its page from the system.
                *keys = HashMap::new();
            } else if keys.capacity() > SHRINK_ABOVE && keys.len() < keys.capacity() / 4 {
                let kept = keys.len() * 2;
                keys.shrink_to(kept);
            }
            return None;
        }
        std::mem::take(&mut entry.confirm).then_some(entry.location)
    }

    /// Where the key's connection is.
    pub(crate) fn find(&self, key: &SessionKey) -> Option<Location> {
        self.stripe(key).get(key).filter(|entry| !entry.departing).map(|entry| entry.location)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(slot: u32) -> Location {
        Location { shard: 0, connection: ConnectionId { slot, generation: 1 } }
    }

    #[test]
    fn a_newcomer_takes_over_and_the_old_one_says_no_farewell() {
        let index = KeyIndex::new();
        let key = SessionKey::from("k");
        assert_eq!(index.enter(&key, at(1), 0), Entered { superseded: None, confirm: false });
        assert_eq!(index.enter(&key, at(2), 0).superseded, Some(at(1)));
        assert!(!index.depart(&key, at(1)));
        assert_eq!(index.find(&key), Some(at(2)));
    }

    #[test]
    fn a_newcomer_is_confirmed_when_a_farewell_overlaps() {
        let index = KeyIndex::new();
        let key = SessionKey::from("k");
        index.enter(&key, at(1), index.farewells());
        // The farewell is under way when the newcomer enters.
        assert!(index.depart(&key, at(1)));
        assert_eq!(index.find(&key), None);
        assert_eq!(index.enter(&key, at(2), index.farewells()).superseded, None);
        assert_eq!(index.departed(&key, at(1)), Some(at(2)));
        // The farewell is through before the newcomer enters, but after logic had accepted it.
        let before = index.farewells();
        assert!(index.depart(&key, at(2)));
        assert_eq!(index.departed(&key, at(2)), None);
        assert!(index.enter(&key, at(3), before).confirm);
    }
}
