//! Which connection of this comet has which key: the one table that all shards write.
//!
//! A key can come back on any shard while its old connection still stands on another, and a push by key must find the
//! newest one, so this cannot be a table per shard. It is locked in stripes, for the time of one look-up.
//!
//! It also closes a gap that goim has: when a key comes back just as its old connection ends, the old one's farewell
//! to logic can remove the record that the new one has just made. So a key that is being taken leave of stays in the
//! table as *closing* until logic has answered; a newcomer that meets such an entry, or that sees that any farewell
//! was finished while its own greeting was under way, tells logic once more that it is there.

use std::hash::{BuildHasher as _, RandomState};
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};

use goim_ports::SessionKey;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry as TableEntry;
use parking_lot::{Mutex, MutexGuard};
use smallvec::SmallVec;

use crate::connection::ConnectionId;
use crate::prefetch::BLOCK;

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

#[derive(Debug)]
struct Entry {
    key: SessionKey,
    location: Location,
    /// The connection has ended; logic is being told.
    closing: bool,
    /// A farewell to an earlier connection with this key is under way: confirm this one when it is through.
    register_again: bool,
}

/// What a newcomer met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entered {
    /// The connection that had the key until now and must be closed.
    pub(crate) superseded: Option<Location>,
    /// Logic may have removed the newcomer's record already: register it again.
    pub(crate) register_again: bool,
}

/// The table.
pub(crate) struct KeyIndex {
    stripes: Vec<Mutex<HashTable<Entry>>>,
    hasher: RandomState,
    disconnects: AtomicU64,
}

impl KeyIndex {
    pub(crate) fn new() -> Self {
        Self {
            stripes: (0..STRIPES).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            disconnects: AtomicU64::new(0),
        }
    }

    fn hash(&self, key: &SessionKey) -> u64 {
        self.hasher.hash_one(key)
    }

    /// Takes the stripe from other bits of the hash than the table takes its place from.
    fn stripe(&self, hash: u64) -> MutexGuard<'_, HashTable<Entry>> {
        self.stripes[stripe_of(hash)].lock()
    }

    /// How many disconnects are finished. To be read before logic is asked to accept a newcomer.
    pub(crate) fn disconnects(&self) -> u64 {
        self.disconnects.load(Ordering::SeqCst)
    }

    /// Enters a connection that logic has accepted. `disconnects` is what [`KeyIndex::disconnects`] said before.
    pub(crate) fn enter(&self, key: &SessionKey, location: Location, disconnects: u64) -> Entered {
        let hash = self.hash(key);
        let mut keys = self.stripe(hash);
        let fresh = |register_again| Entry { key: key.clone(), location, closing: false, register_again };
        let before = match keys.entry(hash, |entry| entry.key == *key, |entry| self.hash(&entry.key)) {
            TableEntry::Vacant(place) => {
                place.insert(fresh(false));
                None
            }
            TableEntry::Occupied(mut place) => {
                let entry = place.get_mut();
                let met_farewell = entry.closing || entry.register_again;
                Some(std::mem::replace(entry, fresh(met_farewell)))
            }
        };
        drop(keys);
        Entered {
            superseded: before.filter(|entry| !entry.closing).map(|entry| entry.location),
            register_again: self.disconnects() != disconnects,
        }
    }

    /// The connection has ended. True when the key was still its own: then logic must be told, and
    /// [`KeyIndex::finish_disconnect`] called when it has answered.
    pub(crate) fn begin_disconnect(&self, key: &SessionKey, location: Location) -> bool {
        let hash = self.hash(key);
        match self.stripe(hash).find_mut(hash, |entry| entry.key == *key) {
            Some(entry) if entry.location == location => {
                entry.closing = true;
                true
            }
            _ => false,
        }
    }

    /// Logic has answered the farewell. Gives a connection that has taken the key over meanwhile and must be confirmed.
    pub(crate) fn finish_disconnect(&self, key: &SessionKey, location: Location) -> Option<Location> {
        let hash = self.hash(key);
        let mut keys = self.stripe(hash);
        // Counted inside the lock: who enters the key later sees either the entry or the count.
        self.disconnects.fetch_add(1, Ordering::SeqCst);
        let mut place = keys.find_entry(hash, |entry| entry.key == *key).ok()?;
        if place.get().location != location {
            let entry = place.get_mut();
            return std::mem::take(&mut entry.register_again).then_some(entry.location);
        }
        place.remove();
        if keys.is_empty() {
            // A small table somewhere in a large free stretch would keep its page from the system.
            *keys = HashTable::new();
        } else if keys.capacity() > SHRINK_ABOVE && keys.len() < keys.capacity() / 4 {
            let kept = keys.len() * 2;
            keys.shrink_to(kept, |entry| self.hash(&entry.key));
        }
        None
    }

    /// The same for many keys, each in its place. `probably` is told of the connections that are likely to be found, once
    /// their places are known and before the texts of the keys are compared: to fetch them from memory meanwhile.
    ///
    /// One step of all keys is done before the next step of the first, so that each step waits for memory once and not
    /// once for each key. No lock is taken between, since that too would wait.
    pub(crate) fn find_all(
        &self,
        keys: &[&SessionKey],
        mut probably: impl FnMut(&[Location]),
        found: &mut Vec<Option<Location>>,
    ) {
        if let [key] = keys {
            found.push(self.find_one(key, probably));
            return;
        }
        for keys in keys.chunks(BLOCK) {
            let hashes: SmallVec<[u64; BLOCK]> = keys.iter().map(|key| self.hash(key)).collect();
            let locked = self.lock_all(&hashes);
            let table = |hash: u64| locked[stripe_of(hash)].as_deref();
            let likely: SmallVec<[&Entry; BLOCK]> =
                hashes.iter().filter_map(|hash| table(*hash)?.find(*hash, |_| true)).collect();
            let locations: SmallVec<[Location; BLOCK]> = likely.iter().map(|entry| entry.location).collect();
            black_box(likely.iter().fold(0, |seen, entry| seen ^ ends(&entry.key)));
            probably(&locations);
            found.extend(keys.iter().zip(&hashes).map(|(key, hash)| {
                let entry = table(*hash)?.find(*hash, |entry| entry.key == **key)?;
                (!entry.closing).then_some(entry.location)
            }));
        }
    }

    fn find_one(&self, key: &SessionKey, probably: impl FnOnce(&[Location])) -> Option<Location> {
        let hash = self.hash(key);
        let keys = self.stripe(hash);
        let likely = keys.find(hash, |_| true)?;
        black_box(ends(&likely.key));
        probably(&[likely.location]);
        let entry = keys.find(hash, |entry| entry.key == *key)?;
        (!entry.closing).then_some(entry.location)
    }

    /// Locks the stripes of these hashes, lowest first.
    fn lock_all(&self, hashes: &[u64]) -> [Option<MutexGuard<'_, HashTable<Entry>>>; STRIPES] {
        let wanted = hashes.iter().fold(0_u64, |wanted, hash| wanted | 1 << stripe_of(*hash));
        std::array::from_fn(|index| {
            let lock = || self.stripes[index].lock();
            (wanted & 1 << index != 0).then(lock)
        })
    }

    /// Where the key's connection is.
    pub(crate) fn find(&self, key: &SessionKey) -> Option<Location> {
        let hash = self.hash(key);
        let keys = self.stripe(hash);
        keys.find(hash, |entry| entry.key == *key).filter(|entry| !entry.closing).map(|entry| entry.location)
    }
}

/// Reads the key's text from memory, which may lie in two lines of it. The number means nothing.
fn ends(key: &SessionKey) -> u8 {
    let text = key.as_str().as_bytes();
    text.first().copied().unwrap_or(0) ^ text.last().copied().unwrap_or(0)
}

fn stripe_of(hash: u64) -> usize {
    (hash >> 40) as usize % STRIPES
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
        assert_eq!(index.enter(&key, at(1), 0), Entered { superseded: None, register_again: false });
        assert_eq!(index.enter(&key, at(2), 0).superseded, Some(at(1)));
        assert!(!index.begin_disconnect(&key, at(1)));
        assert_eq!(index.find(&key), Some(at(2)));
    }

    #[test]
    fn a_newcomer_is_confirmed_when_a_farewell_overlaps() {
        let index = KeyIndex::new();
        let key = SessionKey::from("k");
        index.enter(&key, at(1), index.disconnects());
        // The farewell is under way when the newcomer enters.
        assert!(index.begin_disconnect(&key, at(1)));
        assert_eq!(index.find(&key), None);
        assert_eq!(index.enter(&key, at(2), index.disconnects()).superseded, None);
        assert_eq!(index.finish_disconnect(&key, at(1)), Some(at(2)));
        // The farewell is through before the newcomer enters, but after logic had accepted it.
        let before = index.disconnects();
        assert!(index.begin_disconnect(&key, at(2)));
        assert_eq!(index.finish_disconnect(&key, at(2)), None);
        assert!(index.enter(&key, at(3), before).register_again);
    }

    #[test]
    fn many_keys_are_found_as_each_alone() {
        let index = KeyIndex::new();
        let keys: Vec<SessionKey> = (0..5000).map(|n| SessionKey::from(format!("key {n}"))).collect();
        for (slot, key) in keys.iter().enumerate().filter(|(slot, _)| slot % 3 != 0) {
            index.enter(key, at(slot as u32), 0);
        }
        for (slot, key) in keys.iter().enumerate().filter(|(slot, _)| slot % 3 == 1 && slot % 2 == 0) {
            assert!(index.begin_disconnect(key, at(slot as u32)));
        }
        let asked: Vec<&SessionKey> = keys.iter().chain(&keys[..3]).collect();
        let (mut foretold, mut found) = (Vec::new(), Vec::new());
        index.find_all(&asked, |locations| foretold.extend_from_slice(locations), &mut found);
        assert_eq!(found, asked.iter().map(|key| index.find(key)).collect::<Vec<_>>());
        assert_eq!(found.iter().flatten().count(), 2502);
        // Nothing is missing in what was foretold but by chance: another entry may look like the one that is meant.
        let missing = found.iter().flatten().filter(|location| !foretold.contains(location)).count();
        assert!(missing < 500, "{missing} of {}", foretold.len());
    }
}
