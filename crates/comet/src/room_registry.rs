//! The rooms of a whole comet, shared by its shards.
//!
//! For each room: a counter of its sessions on this comet, one of those on other comets, and which
//! shards have members, so that a message is sent to these only. Owns no members. Locked when a
//! shard opens or closes a room, not when sessions join or leave.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use goim_ports::{RoomCounts, RoomId, RoomsDelta, RoomsRevision, StripeDelta};
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use parking_lot::{Mutex, MutexGuard};

/// Locks of the registry. Rooms are spread over them by the hash of their names.
const STRIPES: usize = 64;
/// Tables below this capacity are not shrunk.
const SHRINK_ABOVE: usize = 256;
/// Rooms with more members on one comet are large.
pub(crate) const SMALL_ROOM_MAX: u32 = 16;
/// Changes that each stripe remembers for deltas: 16,384 in all.
const CHANGES_MAX: usize = 256;
/// A complete list has at most this many rooms. More would be megabytes, and a comet with so many
/// rooms has members of nearly every room.
const ROOMS_LISTED_MAX: usize = 100_000;
/// Counters of large rooms. Rooms are spread over them by the hash of their names.
const LARGE_SLOTS: usize = 1024;

/// What all shards share of a room. The name is stored here only: there may be a million rooms with
/// one member.
#[derive(Debug)]
pub(crate) struct SharedRoom {
    id: RoomId,
    /// Sessions on this comet.
    here: AtomicU32,
    /// Sessions on other comets, as last reported.
    elsewhere: AtomicU32,
    /// Bit `n % 64` is set while shard `n` has members.
    shards: AtomicU64,
}

impl SharedRoom {
    fn new(id: RoomId) -> Self {
        Self { id, here: AtomicU32::new(0), elsewhere: AtomicU32::new(0), shards: AtomicU64::new(0) }
    }

    /// Returns the room's name.
    pub(crate) fn id(&self) -> &RoomId {
        &self.id
    }

    /// Returns how many sessions of the whole cluster are in the room, as last reported.
    pub(crate) fn online(&self) -> u32 {
        self.here.load(Ordering::Relaxed).saturating_add(self.elsewhere.load(Ordering::Relaxed))
    }
}

/// Which shards have members of a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Holders {
    /// Bit `n % 64` is set when shard `n` may have members; zero when none has.
    pub(crate) shards: u64,
    /// Members on this comet.
    pub(crate) here: u32,
}

#[derive(Default)]
struct Stripe {
    rooms: HashTable<Arc<SharedRoom>>,
    journal: Journal,
}

/// All rooms of this comet.
pub(crate) struct RoomRegistry {
    stripes: Box<[Mutex<Stripe>]>,
    hasher: RandomState,
    /// How many large rooms have this hash modulo the length. These few bytes stay in the caches
    /// and show for nearly all small rooms that they are small.
    large: Box<[AtomicU32]>,
    /// Deltas were asked for, so that changes are remembered.
    is_watched: AtomicBool,
    /// Distinguishes revisions of this registry from those of another.
    epoch: u64,
}

impl RoomRegistry {
    pub(crate) fn new() -> Self {
        let stripes = (0..STRIPES).map(|_| Mutex::default()).collect();
        let large = (0..LARGE_SLOTS).map(|_| AtomicU32::new(0)).collect();
        let hasher = RandomState::new();
        // As random as the keys of the hasher. Zero is the epoch of a reader without a revision.
        let epoch = hasher.hash_one("epoch").max(1);
        Self { stripes, hasher, large, is_watched: AtomicBool::new(false), epoch }
    }

    /// Returns the hash of a room's name, which all tables of this comet use.
    pub(crate) fn hash(&self, room: &str) -> u64 {
        self.hasher.hash_one(room)
    }

    /// Locks the stripe of a hash. Its bits are others than those that the table uses.
    fn stripe(&self, hash: u64) -> MutexGuard<'_, Stripe> {
        let index = (hash >> 40) as usize % STRIPES;
        self.stripes[index].lock()
    }

    /// Opens the room on shard `shard`.
    pub(crate) fn open(&self, room: RoomId, hash: u64, shard: usize) -> Arc<SharedRoom> {
        let mut stripe = self.stripe(hash);
        let Stripe { rooms, journal } = &mut *stripe;
        let rehash = |room: &Arc<SharedRoom>| self.hash(room.id.as_str());
        let entry = rooms.entry(hash, |known| known.id == room, rehash);
        if self.is_watched.load(Ordering::Relaxed) && matches!(entry, Entry::Vacant(_)) {
            journal.note(room.clone(), true);
        }
        let shared = entry.or_insert_with(|| Arc::new(SharedRoom::new(room))).get().clone();
        shared.shards.fetch_or(1 << (shard % 64), Ordering::AcqRel);
        shared
    }

    /// Closes the room on shard `shard`, which has no members left and gives its reference back.
    pub(crate) fn close(&self, room: Arc<SharedRoom>, hash: u64, shard: usize, shards: usize) {
        let mut stripe = self.stripe(hash);
        if shards <= 64 {
            room.shards.fetch_and(!(1 << (shard % 64)), Ordering::AcqRel);
        }
        // The table and the closing shard hold one reference each.
        if Arc::strong_count(&room) > 2 {
            // Dropped while locked, so that the last shard to close counts correctly.
            drop(room);
            return;
        }
        let Stripe { rooms, journal } = &mut *stripe;
        if let Ok(entry) = rooms.find_entry(hash, |known| Arc::ptr_eq(known, &room)) {
            entry.remove();
            if self.is_watched.load(Ordering::Relaxed) {
                journal.note(room.id.clone(), false);
            }
        }
        if rooms.is_empty() {
            *rooms = HashTable::new();
        } else if rooms.capacity() > SHRINK_ABOVE && rooms.len() < rooms.capacity() / 4 {
            let capacity = rooms.len() * 2;
            rooms.shrink_to(capacity, |room| self.hash(room.id.as_str()));
        }
    }

    fn large_slot(&self, hash: u64) -> &AtomicU32 {
        &self.large[hash as usize % LARGE_SLOTS]
    }

    /// False when a room whose name has this hash has at most [`SMALL_ROOM_MAX`] members here.
    pub(crate) fn may_be_large(&self, hash: u64) -> bool {
        self.large_slot(hash).load(Ordering::Relaxed) > 0
    }

    /// Counts a session that has joined the room.
    pub(crate) fn joined(&self, room: &SharedRoom, hash: u64) {
        if room.here.fetch_add(1, Ordering::Relaxed) == SMALL_ROOM_MAX {
            self.large_slot(hash).fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts a session that has left the room.
    pub(crate) fn left(&self, room: &SharedRoom) {
        if room.here.fetch_sub(1, Ordering::Relaxed) == SMALL_ROOM_MAX + 1 {
            self.large_slot(self.hash(room.id.as_str())).fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Returns which shards have members of the room with this hash and name.
    pub(crate) fn holders(&self, hash: u64, room: &RoomId) -> Holders {
        let stripe = self.stripe(hash);
        stripe.rooms.find(hash, |known| known.id == *room).map_or_else(Holders::default, |room| Holders {
            shards: room.shards.load(Ordering::Acquire),
            here: room.here.load(Ordering::Relaxed),
        })
    }

    fn each_stripe(&self) -> impl Iterator<Item = MutexGuard<'_, Stripe>> {
        self.stripes.iter().map(Mutex::lock)
    }

    /// Returns how many rooms have sessions here.
    pub(crate) fn len(&self) -> usize {
        self.each_stripe().map(|stripe| stripe.rooms.len()).sum()
    }

    /// Returns every room with the number of its sessions here.
    pub(crate) fn here(&self) -> HashMap<RoomId, u32> {
        let mut all = HashMap::new();
        for stripe in self.each_stripe() {
            let counted = stripe.rooms.iter().map(|room| (&room.id, room.here.load(Ordering::Relaxed)));
            all.extend(counted.filter(|(_, count)| *count > 0).map(|(room, count)| (room.clone(), count)));
        }
        all
    }

    /// Updates the counts of other comets from those of the cluster. `totals` includes what this
    /// comet had `reported`.
    pub(crate) fn update_totals(&self, totals: &RoomCounts, reported: &RoomCounts) {
        for stripe in self.each_stripe() {
            for room in &stripe.rooms {
                let total = totals.get(&room.id).copied().unwrap_or(0);
                let own = reported.get(&room.id).copied().unwrap_or(0);
                room.elsewhere.store(total.saturating_sub(own), Ordering::Relaxed);
            }
        }
    }
}

/// The last changes of a stripe, in order: they are noted while the stripe is locked.
#[derive(Debug, Default)]
struct Journal {
    /// How many changes were ever noted.
    version: u64,
    /// The last of them: the room, and whether it was added.
    changes: VecDeque<(RoomId, bool)>,
}

impl Journal {
    fn note(&mut self, room: RoomId, added: bool) {
        if self.changes.len() == CHANGES_MAX {
            self.changes.pop_front();
        }
        self.version += 1;
        self.changes.push_back((room, added));
    }

    /// Returns the changes since that version, the last one of each room; `None` when they are no
    /// longer remembered.
    fn since(&self, version: u64) -> Option<HashMap<&RoomId, bool>> {
        let missed = usize::try_from(self.version.checked_sub(version)?).ok()?;
        let first = self.changes.len().checked_sub(missed)?;
        Some(self.changes.range(first..).map(|(room, added)| (room, *added)).collect())
    }
}

impl RoomRegistry {
    /// Returns what has changed since `known`; from now on changes are remembered. `None` when the
    /// reader needs the complete list and there are more than [`ROOMS_LISTED_MAX`] rooms.
    pub(crate) fn delta(&self, known: &RoomsRevision) -> Option<RoomsDelta> {
        // Set before the first stripe is read, so that what changes later is noted.
        self.is_watched.store(true, Ordering::SeqCst);
        let is_known = known.epoch == self.epoch && known.stripes.len() == STRIPES;
        if !is_known && self.len() > ROOMS_LISTED_MAX {
            return None;
        }
        let mut delta = RoomsDelta::default();
        delta.version.epoch = self.epoch;
        for (number, stripe) in self.each_stripe().enumerate() {
            delta.version.stripes.push(stripe.journal.version);
            let changes = if is_known { stripe.journal.since(known.stripes[number]) } else { None };
            let stripe_delta = match changes {
                Some(changes) if changes.is_empty() => continue,
                Some(changes) => of_changes(number as u32, changes),
                None => StripeDelta {
                    stripe: number as u32,
                    complete: true,
                    added: stripe.rooms.iter().map(|room| room.id.clone()).collect(),
                    removed: Vec::new(),
                },
            };
            delta.stripes.push(stripe_delta);
        }
        Some(delta)
    }
}

fn of_changes(stripe: u32, changes: HashMap<&RoomId, bool>) -> StripeDelta {
    let mut delta = StripeDelta { stripe, ..StripeDelta::default() };
    for (room, added) in changes {
        if added { delta.added.push(room.clone()) } else { delta.removed.push(room.clone()) }
    }
    delta
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rooms::{Membership, Rooms};

    #[test]
    fn a_room_is_large_while_it_has_many_members() {
        let registry = Arc::new(RoomRegistry::new());
        let mut rooms = Rooms::new(0, 1, registry.clone());
        let id = RoomId::from("live://1");
        let hash = registry.hash(id.as_str());
        let mut memberships: Vec<Membership> = Vec::new();
        for round in 0..2 {
            while memberships.len() < SMALL_ROOM_MAX as usize {
                memberships.push(rooms.join(id.clone(), memberships.len() as u32));
                assert!(!registry.may_be_large(hash), "{} members in round {round}", memberships.len());
            }
            for _ in 0..2 {
                memberships.push(rooms.join(id.clone(), memberships.len() as u32));
                assert!(registry.may_be_large(hash), "{} members in round {round}", memberships.len());
            }
            // From the end, so that no other member moves.
            while let Some(membership) = memberships.pop() {
                rooms.leave(membership);
                assert_eq!(registry.may_be_large(hash), memberships.len() > SMALL_ROOM_MAX as usize);
            }
        }
    }

    #[test]
    fn deltas_add_up_to_all_rooms() {
        let registry = Arc::new(RoomRegistry::new());
        let mut rooms = Rooms::new(0, 1, registry.clone());
        let mut memberships: HashMap<String, Membership> = HashMap::new();
        let (mut version, mut known) = (RoomsRevision::default(), HashMap::<RoomId, u32>::new());
        let mut random = 7_u64;
        for round in 0..200 {
            // Some rounds have more changes than are remembered.
            for _ in 0..if round % 50 == 49 { 40_000 } else { round } {
                random =
                    random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let name = format!("live://{}", (random >> 33) % 300);
                match memberships.remove(&name) {
                    Some(membership) => assert!(rooms.leave(membership).is_none()),
                    None => drop(memberships.insert(name.clone(), rooms.join(name.as_str().into(), 1))),
                }
            }
            let delta = registry.delta(&version).unwrap();
            version = delta.version;
            for stripe in delta.stripes {
                if stripe.complete {
                    known.retain(|_, of| *of != stripe.stripe);
                }
                known.retain(|room, _| !stripe.removed.contains(room));
                known.extend(stripe.added.into_iter().map(|room| (room, stripe.stripe)));
            }
            let mut expected: Vec<_> = memberships.keys().cloned().collect();
            let mut listed: Vec<_> = known.keys().map(ToString::to_string).collect();
            expected.sort();
            listed.sort();
            assert_eq!(listed, expected, "round {round}");
        }
        assert!(registry.delta(&version).unwrap().stripes.is_empty(), "nothing has changed");
        let other = RoomsRevision { epoch: version.epoch + 1, ..version };
        assert!(
            registry.delta(&other).unwrap().stripes.iter().all(|stripe| stripe.complete),
            "another start"
        );
    }
}
