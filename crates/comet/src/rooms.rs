//! The rooms of one shard, and the registry of the whole comet.
//!
//! A shard owns the list of its members; nobody else touches it. The registry is shared by the shards: per room one
//! counter of the sessions on this comet, one of those elsewhere, and which shards have members, so that a message goes
//! to those only. It is locked when a shard opens or closes a room, not when sessions join or leave.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::hint::black_box;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use goim_ports::{RoomCounts, RoomId, RoomsDelta, RoomsRevision, StripeDelta};
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use parking_lot::{Mutex, MutexGuard};
use slab::Slab;
use smallvec::SmallVec;

use crate::prefetch::BLOCK;

/// Locks of the registry. Rooms are spread over them by their name.
const STRIPES: usize = 64;
/// Tables below this many places keep them.
const SHRINK_ABOVE: usize = 256;
/// Rooms of more members on one comet count as large.
pub(crate) const SMALL_ROOM_MAX: u32 = 16;
/// Changes that each stripe keeps for who asks what is new: 16,384 in all.
const CHANGES_KEPT: usize = 256;
/// More rooms are not listed for who knows none: that would be megabytes, and a comet with so many has members of nearly every room.
const ROOMS_LISTED_MAX: usize = 100_000;
/// Counters of large rooms, spread over them by the hash of their name.
const LARGE_SLOTS: usize = 1024;

/// A room as all shards of this comet share it. Its name is here and nowhere else: there may be a million rooms of one.
#[derive(Debug)]
pub(crate) struct SharedRoom {
    id: RoomId,
    here: AtomicU32,
    elsewhere: AtomicU32,
    /// Bit `n % 64` is set while shard `n` has members.
    shards: AtomicU64,
}

impl SharedRoom {
    fn new(id: RoomId) -> Self {
        Self { id, here: AtomicU32::new(0), elsewhere: AtomicU32::new(0), shards: AtomicU64::new(0) }
    }

    /// Sessions in the room over the whole cluster, as far as is known.
    pub(crate) fn online(&self) -> u32 {
        self.here.load(Ordering::Relaxed).saturating_add(self.elsewhere.load(Ordering::Relaxed))
    }
}

/// Who has members of a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Holders {
    /// The shards that may have some, as bits modulo 64; zero when nobody has.
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
    /// Large rooms with this hash modulo the length: few bytes that stay in the caches say of nearly all rooms that they
    /// are small.
    large: Box<[AtomicU32]>,
    /// Somebody asks for changes, so that they are kept.
    is_watched: AtomicBool,
    /// Says that versions are this registry's.
    epoch: u64,
}

impl RoomRegistry {
    pub(crate) fn new() -> Self {
        let stripes = (0..STRIPES).map(|_| Mutex::default()).collect();
        let large = (0..LARGE_SLOTS).map(|_| AtomicU32::new(0)).collect();
        let hasher = RandomState::new();
        // As random as the hasher's keys are; zero is for who knows nothing.
        let epoch = hasher.hash_one("epoch").max(1);
        Self { stripes, hasher, large, is_watched: AtomicBool::new(false), epoch }
    }

    /// The hash of a room's name, by which all tables of this comet know it.
    pub(crate) fn hash(&self, room: &str) -> u64 {
        self.hasher.hash_one(room)
    }

    /// Takes the stripe from other bits of the hash than the table takes its place from.
    fn stripe(&self, hash: u64) -> MutexGuard<'_, Stripe> {
        let index = (hash >> 40) as usize % STRIPES;
        self.stripes[index].lock()
    }

    /// Shard `shard` opens the room.
    fn open(&self, room: RoomId, hash: u64, shard: usize) -> Arc<SharedRoom> {
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

    /// Shard `shard` has no members left, and gives its reference back.
    fn close(&self, room: Arc<SharedRoom>, hash: u64, shard: usize, shards: usize) {
        let mut stripe = self.stripe(hash);
        if shards <= 64 {
            room.shards.fetch_and(!(1 << (shard % 64)), Ordering::AcqRel);
        }
        // The table and the shard that is leaving hold one reference each.
        if Arc::strong_count(&room) > 2 {
            // Inside the lock, so that the last to leave counts right.
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
            let room_for = rooms.len() * 2;
            rooms.shrink_to(room_for, |room| self.hash(room.id.as_str()));
        }
    }

    fn large_slot(&self, hash: u64) -> &AtomicU32 {
        &self.large[hash as usize % LARGE_SLOTS]
    }

    /// False when a room whose name has this hash has at most [`SMALL_ROOM_MAX`] members here.
    pub(crate) fn may_be_large(&self, hash: u64) -> bool {
        self.large_slot(hash).load(Ordering::Relaxed) > 0
    }

    /// A session has joined the room.
    fn joined(&self, room: &SharedRoom, hash: u64) {
        if room.here.fetch_add(1, Ordering::Relaxed) == SMALL_ROOM_MAX {
            self.large_slot(hash).fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A session has left the room.
    fn left(&self, room: &SharedRoom) {
        if room.here.fetch_sub(1, Ordering::Relaxed) == SMALL_ROOM_MAX + 1 {
            self.large_slot(self.hash(room.id.as_str())).fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Who has members of the room with this hash and name.
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

    /// Rooms with sessions.
    pub(crate) fn len(&self) -> usize {
        self.each_stripe().map(|stripe| stripe.rooms.len()).sum()
    }

    /// Every room with the sessions that it has here.
    pub(crate) fn here(&self) -> HashMap<RoomId, u32> {
        let mut all = HashMap::new();
        for stripe in self.each_stripe() {
            let counted = stripe.rooms.iter().map(|room| (&room.id, room.here.load(Ordering::Relaxed)));
            all.extend(counted.filter(|(_, count)| *count > 0).map(|(room, count)| (room.clone(), count)));
        }
        all
    }

    /// Takes over what the cluster has said: `totals` includes what this comet had `reported`.
    pub(crate) fn learn(&self, totals: &RoomCounts, reported: &RoomCounts) {
        for stripe in self.each_stripe() {
            for room in &stripe.rooms {
                let total = totals.get(&room.id).copied().unwrap_or(0);
                let own = reported.get(&room.id).copied().unwrap_or(0);
                room.elsewhere.store(total.saturating_sub(own), Ordering::Relaxed);
            }
        }
    }
}

/// The last changes of a stripe. They are noted under its lock, so that their order is true.
#[derive(Debug, Default)]
struct Journal {
    /// Changes ever noted.
    version: u64,
    /// The last of them: whether the room has come.
    kept: VecDeque<(RoomId, bool)>,
}

impl Journal {
    fn note(&mut self, room: RoomId, has_come: bool) {
        if self.kept.len() == CHANGES_KEPT {
            self.kept.pop_front();
        }
        self.version += 1;
        self.kept.push_back((room, has_come));
    }

    /// The changes since that version, the last one of each room; `None` when they are no longer known.
    fn since(&self, version: u64) -> Option<HashMap<&RoomId, bool>> {
        let missed = usize::try_from(self.version.checked_sub(version)?).ok()?;
        let first = self.kept.len().checked_sub(missed)?;
        Some(self.kept.range(first..).map(|(room, has_come)| (room, *has_come)).collect())
    }
}

impl RoomRegistry {
    /// What has changed since `known`, and from now on keeps what changes. `None` when there is more to list than is listed.
    pub(crate) fn delta(&self, known: &RoomsRevision) -> Option<RoomsDelta> {
        // Before the first stripe is looked at: what changes in it later is noted.
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
            let stripe_news = match changes {
                Some(changes) if changes.is_empty() => continue,
                Some(changes) => of_changes(number as u32, changes),
                None => StripeDelta {
                    stripe: number as u32,
                    complete: true,
                    added: stripe.rooms.iter().map(|room| room.id.clone()).collect(),
                    removed: Vec::new(),
                },
            };
            delta.stripes.push(stripe_news);
        }
        Some(delta)
    }
}

fn of_changes(stripe: u32, changes: HashMap<&RoomId, bool>) -> StripeDelta {
    let mut delta = StripeDelta { stripe, ..StripeDelta::default() };
    for (room, has_come) in changes {
        if has_come { delta.added.push(room.clone()) } else { delta.removed.push(room.clone()) }
    }
    delta
}

/// A session's place in a room of its shard.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Membership {
    /// One above the index of the room, so that no membership takes no room.
    room: NonZeroU32,
    position: u32,
}

impl Membership {
    fn new(room: u32, position: u32) -> Self {
        Self { room: NonZeroU32::MIN.saturating_add(room), position }
    }

    fn room(self) -> usize {
        self.room.get() as usize - 1
    }

    /// True when both are in one room of one shard.
    pub(crate) fn same_room(self, other: Self) -> bool {
        self.room == other.room
    }

    /// True when it is in this room of the same shard.
    pub(crate) fn is_in(self, room: RoomPlace) -> bool {
        self.room() == room.0 as usize
    }
}

/// A room of a shard, for as long as nobody joins or leaves.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RoomPlace(u32);

struct Room {
    shared: Arc<SharedRoom>,
    /// Slots of connections; a room of few has them here.
    members: SmallVec<[u32; 4]>,
}

/// The rooms that have members on this shard. Members are slots of connections.
pub(crate) struct Rooms {
    shard: usize,
    shards: usize,
    registry: Arc<RoomRegistry>,
    /// Indexes into `rooms`, by the room's name.
    by_id: HashTable<u32>,
    rooms: Slab<Room>,
}

impl Rooms {
    pub(crate) fn new(shard: usize, shards: usize, registry: Arc<RoomRegistry>) -> Self {
        Self { shard, shards, registry, by_id: HashTable::new(), rooms: Slab::new() }
    }

    fn index_of(&self, hash: u64, room: &str) -> Option<u32> {
        let same = |index: &u32| self.rooms[*index as usize].shared.id.as_str() == room;
        self.by_id.find(hash, same).copied()
    }

    /// The room of this name, when it has members here: found once, and then compared with memberships as a number.
    pub(crate) fn find(&self, room: &str) -> Option<RoomPlace> {
        self.index_of(self.registry.hash(room), room).map(RoomPlace)
    }

    /// The members of the room with this hash and name.
    pub(crate) fn members(&self, hash: u64, room: &RoomId) -> &[u32] {
        let index = self.index_of(hash, room.as_str());
        index.map_or(&[], |index| &self.rooms[index as usize].members)
    }

    /// Reads what [`Rooms::members`] will read for rooms whose names have these hashes, one step of all of them after the
    /// other, so that each step waits for memory once. Adds the first members to `members`.
    pub(crate) fn prefetch(&self, hashes: &[u64], members: &mut Vec<u32>) {
        let indexes: SmallVec<[&u32; BLOCK]> =
            hashes.iter().filter_map(|hash| self.by_id.find(*hash, |_| true)).collect();
        let entries: SmallVec<[u32; BLOCK]> = indexes.iter().map(|index| **index).collect();
        let rooms: SmallVec<[&Room; BLOCK]> =
            entries.iter().filter_map(|index| self.rooms.get(*index as usize)).collect();
        members.extend(rooms.iter().flat_map(|room| room.members.iter().copied().take(2)));
        let texts: SmallVec<[&[u8]; BLOCK]> =
            rooms.iter().map(|room| room.shared.id.as_str().as_bytes()).collect();
        black_box(texts.iter().fold(0, |seen, text| seen ^ text.last().copied().unwrap_or(0)));
    }

    /// True when the membership is in the room of this name.
    pub(crate) fn is_in(&self, membership: Membership, room: &str) -> bool {
        self.rooms.get(membership.room()).is_some_and(|entry| entry.shared.id.as_str() == room)
    }

    /// The room's name.
    pub(crate) fn name(&self, membership: Membership) -> Option<&RoomId> {
        self.rooms.get(membership.room()).map(|entry| &entry.shared.id)
    }

    /// Sessions in the room over the whole cluster.
    pub(crate) fn online(&self, membership: Membership) -> u32 {
        self.rooms.get(membership.room()).map_or(0, |room| room.shared.online())
    }

    /// Adds a connection at the end of the room's list.
    pub(crate) fn join(&mut self, id: RoomId, slot: u32) -> Membership {
        let hash = self.registry.hash(id.as_str());
        let index = self.index_of(hash, id.as_str()).unwrap_or_else(|| self.open(id, hash));
        let room = &mut self.rooms[index as usize];
        self.registry.joined(&room.shared, hash);
        room.members.push(slot);
        Membership::new(index, room.members.len() as u32 - 1)
    }

    fn open(&mut self, id: RoomId, hash: u64) -> u32 {
        let shared = self.registry.open(id, hash, self.shard);
        let index = self.rooms.insert(Room { shared, members: SmallVec::new() }) as u32;
        let (rooms, registry) = (&self.rooms, &self.registry);
        let rehash = |index: &u32| registry.hash(rooms[*index as usize].shared.id.as_str());
        self.by_id.insert_unique(hash, index, rehash);
        index
    }

    /// Takes a connection out. Gives the slot of the member that now stands in its place, whose membership the caller
    /// must set to the same position.
    pub(crate) fn leave(&mut self, membership: Membership) -> Option<(u32, Membership)> {
        let room = self.rooms.get_mut(membership.room())?;
        let position = membership.position as usize;
        room.members.swap_remove(position);
        self.registry.left(&room.shared);
        let moved = room.members.get(position).map(|slot| (*slot, membership));
        if room.members.is_empty() {
            self.close(membership.room());
        } else if room.members.capacity() > 64 && room.members.len() < room.members.capacity() / 4 {
            let keep = room.members.len() * 2;
            let members = std::mem::replace(&mut room.members, SmallVec::with_capacity(keep));
            room.members.extend_from_slice(&members);
        }
        moved
    }

    fn close(&mut self, index: usize) {
        let room = self.rooms.remove(index);
        let hash = self.registry.hash(room.shared.id.as_str());
        if let Ok(entry) = self.by_id.find_entry(hash, |known| *known as usize == index) {
            entry.remove();
        }
        self.registry.close(room.shared, hash, self.shard, self.shards);
        self.shrink();
    }

    /// Gives memory back when most rooms have gone.
    fn shrink(&mut self) {
        if self.by_id.is_empty() {
            (self.by_id, self.rooms) = (HashTable::new(), Slab::new());
        } else if self.by_id.capacity() > SHRINK_ABOVE && self.by_id.len() < self.by_id.capacity() / 4 {
            let (rooms, registry, keep) = (&self.rooms, &self.registry, self.by_id.len() * 2);
            self.by_id.shrink_to(keep, |index| registry.hash(rooms[*index as usize].shared.id.as_str()));
            self.rooms.shrink_to_fit();
        }
    }
}

/// What a room of one member takes, by the sizes of its parts.
#[cfg(feature = "harness")]
pub(crate) const fn room_bytes(name_len: usize) -> usize {
    let counts = 2 * size_of::<usize>();
    let shared = counts + size_of::<SharedRoom>();
    let name = counts + name_len;
    // Each table has a byte of its own for every entry; the slab a word that tells full from free.
    let tables = (size_of::<Arc<SharedRoom>>() + 1 + size_of::<u32>() + 1) * 8 / 7;
    let own = size_of::<Room>() + size_of::<usize>();
    shared + name + tables + own
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaving_keeps_every_other_position_true() {
        let registry = Arc::new(RoomRegistry::new());
        let mut rooms = Rooms::new(0, 1, registry.clone());
        let id = RoomId::from("live://1");
        let mut places: HashMap<u32, Membership> =
            (0..5).map(|slot| (slot, rooms.join(id.clone(), slot))).collect();
        for gone in [0, 4, 2] {
            let place = places.remove(&gone).unwrap();
            if let Some((slot, moved)) = rooms.leave(place) {
                places.insert(slot, moved);
            }
            for (slot, place) in &places {
                assert_eq!(rooms.members(registry.hash(id.as_str()), &id)[place.position as usize], *slot);
            }
            assert_eq!(registry.here()[&id] as usize, places.len());
        }
        while let Some(slot) = places.keys().next().copied() {
            let place = places.remove(&slot).unwrap();
            if let Some((slot, moved)) = rooms.leave(place) {
                places.insert(slot, moved);
            }
        }
        assert!(registry.here().is_empty());
        assert_eq!(registry.holders(registry.hash(id.as_str()), &id), Holders::default());
    }

    #[test]
    fn a_room_is_large_while_it_has_many_members() {
        let registry = Arc::new(RoomRegistry::new());
        let mut rooms = Rooms::new(0, 1, registry.clone());
        let id = RoomId::from("live://1");
        let hash = registry.hash(id.as_str());
        let mut places: Vec<Membership> = Vec::new();
        for round in 0..2 {
            while places.len() < SMALL_ROOM_MAX as usize {
                places.push(rooms.join(id.clone(), places.len() as u32));
                assert!(!registry.may_be_large(hash), "{} members in round {round}", places.len());
            }
            for _ in 0..2 {
                places.push(rooms.join(id.clone(), places.len() as u32));
                assert!(registry.may_be_large(hash), "{} members in round {round}", places.len());
            }
            // From the end, so that nobody's place moves.
            while let Some(place) = places.pop() {
                rooms.leave(place);
                assert_eq!(registry.may_be_large(hash), places.len() > SMALL_ROOM_MAX as usize);
            }
        }
    }

    #[test]
    fn whoever_asks_what_is_new_knows_all_rooms() {
        let registry = Arc::new(RoomRegistry::new());
        let mut rooms = Rooms::new(0, 1, registry.clone());
        let mut places: HashMap<String, Membership> = HashMap::new();
        let (mut version, mut known) = (RoomsRevision::default(), HashMap::<RoomId, u32>::new());
        let mut random = 7_u64;
        for round in 0..200 {
            // Some rounds change more than is kept.
            for _ in 0..if round % 50 == 49 { 40_000 } else { round } {
                random =
                    random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let name = format!("live://{}", (random >> 33) % 300);
                match places.remove(&name) {
                    Some(place) => assert!(rooms.leave(place).is_none()),
                    None => drop(places.insert(name.clone(), rooms.join(name.as_str().into(), 1))),
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
            let mut there: Vec<_> = places.keys().cloned().collect();
            let mut said: Vec<_> = known.keys().map(ToString::to_string).collect();
            there.sort();
            said.sort();
            assert_eq!(said, there, "round {round}");
        }
        assert!(registry.delta(&version).unwrap().stripes.is_empty(), "nothing has changed");
        let other = RoomsRevision { epoch: version.epoch + 1, ..version };
        assert!(
            registry.delta(&other).unwrap().stripes.iter().all(|stripe| stripe.complete),
            "another start"
        );
    }

    #[test]
    fn looking_ahead_names_the_first_members() {
        let registry = Arc::new(RoomRegistry::new());
        let mut rooms = Rooms::new(0, 1, registry.clone());
        for slot in 0..3 {
            rooms.join("three".into(), slot);
        }
        rooms.join("one".into(), 7);
        let hashes = ["one", "none", "three"].map(|room| registry.hash(room));
        let mut members = Vec::new();
        rooms.prefetch(&hashes, &mut members);
        assert_eq!(members, [7, 0, 1]);
    }
}
