//! The index of session keys: which connection of this comet has which key. All shards write it.
//!
//! A key can reconnect on any shard while its old connection is still open on another, and a push
//! must reach the newest one, so this cannot be a table per shard. It is locked in stripes, for one
//! look-up at a time.
//!
//! The index also closes a race of goim v2: when a key reconnects just as its old connection ends,
//! the old one's disconnect can remove the record that logic has just made for the new one. So a
//! key stays in the table as *closing* until logic has answered its disconnect. A newcomer that
//! finds such an entry, or that sees that some disconnect finished while logic was accepting it,
//! registers itself once more.

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
/// Tables below this capacity are not shrunk.
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
    /// The connection has ended; logic has not answered its disconnect yet.
    closing: bool,
    /// An earlier connection with this key is being disconnected: register this one again once that
    /// is finished.
    register_again: bool,
}

/// What a newcomer found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entered {
    /// The connection that had the key until now and must be closed.
    pub(crate) superseded: Option<Location>,
    /// Logic may have removed the newcomer's record already: register it again.
    pub(crate) register_again: bool,
}

/// The index.
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

    /// Locks the stripe of a hash. Its bits are others than those that the table uses.
    fn stripe(&self, hash: u64) -> MutexGuard<'_, HashTable<Entry>> {
        self.stripes[stripe_of(hash)].lock()
    }

    /// Returns how many disconnects have finished. Must be read before logic is asked to accept a
    /// newcomer.
    pub(crate) fn disconnects(&self) -> u64 {
        self.disconnects.load(Ordering::SeqCst)
    }

    /// Enters a connection that logic has accepted. `disconnects` is what [`KeyIndex::disconnects`]
    /// returned before.
    pub(crate) fn enter(&self, key: &SessionKey, location: Location, disconnects: u64) -> Entered {
        let hash = self.hash(key);
        let mut keys = self.stripe(hash);
        let fresh = |register_again| Entry { key: key.clone(), location, closing: false, register_again };
        let before = match keys.entry(hash, |entry| entry.key == *key, |entry| self.hash(&entry.key)) {
            TableEntry::Vacant(vacant) => {
                vacant.insert(fresh(false));
                None
            }
            TableEntry::Occupied(mut occupied) => {
                let entry = occupied.get_mut();
                let is_disconnecting = entry.closing || entry.register_again;
                Some(std::mem::replace(entry, fresh(is_disconnecting)))
            }
        };
        drop(keys);
        Entered {
            superseded: before.filter(|entry| !entry.closing).map(|entry| entry.location),
            register_again: self.disconnects() != disconnects,
        }
    }

    /// Marks the entry of a connection that has ended. True when the key was still its own: then
    /// the caller disconnects it from logic, and calls [`KeyIndex::finish_disconnect`] once logic
    /// has answered.
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

    /// Removes the entry, since logic has answered the disconnect. Returns the connection that has
    /// taken over the key meanwhile, if it must be registered again.
    pub(crate) fn finish_disconnect(&self, key: &SessionKey, location: Location) -> Option<Location> {
        let hash = self.hash(key);
        let mut keys = self.stripe(hash);
        // Counted while locked: a newcomer with this key sees either the entry or the count.
        self.disconnects.fetch_add(1, Ordering::SeqCst);
        let mut found = keys.find_entry(hash, |entry| entry.key == *key).ok()?;
        if found.get().location != location {
            let entry = found.get_mut();
            return std::mem::take(&mut entry.register_again).then_some(entry.location);
        }
        found.remove();
        if keys.is_empty() {
            // A small table within a large free range would keep its page from the system.
            *keys = HashTable::new();
        } else if keys.capacity() > SHRINK_ABOVE && keys.len() < keys.capacity() / 4 {
            let capacity = keys.len() * 2;
            keys.shrink_to(capacity, |entry| self.hash(&entry.key));
        }
        None
    }

    /// Finds many keys; `found` gets the results in order. `likely` is called with the connections
    /// that will probably be found, before the texts of the keys are compared, so that they can be
    /// prefetched meanwhile.
    ///
    /// Each step is done for all keys before the next step, so that each step waits for memory once
    /// and not once per key. No lock is taken in between, since that would wait too.
    pub(crate) fn find_all(
        &self,
        keys: &[&SessionKey],
        mut likely: impl FnMut(&[Location]),
        found: &mut Vec<Option<Location>>,
    ) {
        if let [key] = keys {
            found.push(self.find_one(key, likely));
            return;
        }
        for keys in keys.chunks(BLOCK) {
            let hashes: SmallVec<[u64; BLOCK]> = keys.iter().map(|key| self.hash(key)).collect();
            let locked = self.lock_all(&hashes);
            let table = |hash: u64| locked[stripe_of(hash)].as_deref();
            let entries: SmallVec<[&Entry; BLOCK]> =
                hashes.iter().filter_map(|hash| table(*hash)?.find(*hash, |_| true)).collect();
            let locations: SmallVec<[Location; BLOCK]> = entries.iter().map(|entry| entry.location).collect();
            black_box(entries.iter().fold(0, |seen, entry| seen ^ prefetch_text(&entry.key)));
            likely(&locations);
            found.extend(keys.iter().zip(&hashes).map(|(key, hash)| {
                let entry = table(*hash)?.find(*hash, |entry| entry.key == **key)?;
                (!entry.closing).then_some(entry.location)
            }));
        }
    }

    fn find_one(&self, key: &SessionKey, likely: impl FnOnce(&[Location])) -> Option<Location> {
        let hash = self.hash(key);
        let keys = self.stripe(hash);
        let candidate = keys.find(hash, |_| true)?;
        black_box(prefetch_text(&candidate.key));
        likely(&[candidate.location]);
        let entry = keys.find(hash, |entry| entry.key == *key)?;
        (!entry.closing).then_some(entry.location)
    }

    /// Locks the stripes of these hashes, in ascending order.
    fn lock_all(&self, hashes: &[u64]) -> [Option<MutexGuard<'_, HashTable<Entry>>>; STRIPES] {
        let wanted = hashes.iter().fold(0_u64, |wanted, hash| wanted | 1 << stripe_of(*hash));
        std::array::from_fn(|index| {
            let lock = || self.stripes[index].lock();
            (wanted & 1 << index != 0).then(lock)
        })
    }

    /// Returns where the key's connection is.
    pub(crate) fn find(&self, key: &SessionKey) -> Option<Location> {
        let hash = self.hash(key);
        let keys = self.stripe(hash);
        keys.find(hash, |entry| entry.key == *key).filter(|entry| !entry.closing).map(|entry| entry.location)
    }
}

/// Prefetches the text of a key, which may be in two cache lines. The result has no meaning.
fn prefetch_text(key: &SessionKey) -> u8 {
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
    fn a_newcomer_takes_over_and_the_old_one_is_not_disconnected() {
        let index = KeyIndex::new();
        let key = SessionKey::from("k");
        assert_eq!(index.enter(&key, at(1), 0), Entered { superseded: None, register_again: false });
        assert_eq!(index.enter(&key, at(2), 0).superseded, Some(at(1)));
        assert!(!index.begin_disconnect(&key, at(1)));
        assert_eq!(index.find(&key), Some(at(2)));
    }

    #[test]
    fn a_newcomer_registers_again_when_a_disconnect_overlaps() {
        let index = KeyIndex::new();
        let key = SessionKey::from("k");
        index.enter(&key, at(1), index.disconnects());
        // The disconnect is not answered when the newcomer enters.
        assert!(index.begin_disconnect(&key, at(1)));
        assert_eq!(index.find(&key), None);
        assert_eq!(index.enter(&key, at(2), index.disconnects()).superseded, None);
        assert_eq!(index.finish_disconnect(&key, at(1)), Some(at(2)));
        // The disconnect is finished before the newcomer enters, but after logic had accepted it.
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
        let (mut likely, mut found) = (Vec::new(), Vec::new());
        index.find_all(&asked, |locations| likely.extend_from_slice(locations), &mut found);
        assert_eq!(found, asked.iter().map(|key| index.find(key)).collect::<Vec<_>>());
        assert_eq!(found.iter().flatten().count(), 2502);
        // Only by chance is something missing in what was likely: another entry may have a similar
        // hash.
        let missing = found.iter().flatten().filter(|location| !likely.contains(location)).count();
        assert!(missing < 500, "{missing} of {}", likely.len());
    }
}
