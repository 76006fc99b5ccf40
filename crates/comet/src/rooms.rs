//! The rooms that have members on one shard.
//!
//! A shard owns the lists of its members, and only its thread accesses them. What the shards of a
//! comet share of a room is in `room_registry`. Invariant: the position in a [`Membership`] is the
//! index of its connection in the room's list.

use std::hint::black_box;
use std::num::NonZeroU32;
use std::sync::Arc;

use goim_ports::RoomId;
use hashbrown::HashTable;
use slab::Slab;
use smallvec::SmallVec;

use crate::prefetch::BLOCK;
use crate::room_registry::{RoomRegistry, SharedRoom};

/// Tables below this capacity are not shrunk.
const SHRINK_ABOVE: usize = 256;

/// A session's membership in a room of its shard: the room, and the position in its list.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Membership {
    /// One above the index of the room, so that an `Option` of a membership takes no more memory.
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

    /// True when both are in the same room of the same shard.
    pub(crate) fn same_room(self, other: Self) -> bool {
        self.room == other.room
    }

    /// True when it is in this room, of the same shard.
    pub(crate) fn is_in(self, room: RoomIndex) -> bool {
        self.room() == room.0 as usize
    }
}

/// Names a room of a shard until the next session joins or leaves.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RoomIndex(u32);

struct Room {
    shared: Arc<SharedRoom>,
    /// Slots of connections; up to four are stored inline.
    members: SmallVec<[u32; 4]>,
}

/// The rooms that have members on this shard. Members are slots of connections.
pub(crate) struct Rooms {
    shard: usize,
    shards: usize,
    registry: Arc<RoomRegistry>,
    /// Indexes into `rooms`, by the name of the room.
    by_id: HashTable<u32>,
    rooms: Slab<Room>,
}

impl Rooms {
    pub(crate) fn new(shard: usize, shards: usize, registry: Arc<RoomRegistry>) -> Self {
        Self { shard, shards, registry, by_id: HashTable::new(), rooms: Slab::new() }
    }

    fn index_of(&self, hash: u64, room: &str) -> Option<u32> {
        let same = |index: &u32| self.rooms[*index as usize].shared.id().as_str() == room;
        self.by_id.find(hash, same).copied()
    }

    /// Returns the room of this name if it has members here. Found once, it is compared with
    /// memberships as a number.
    pub(crate) fn find(&self, room: &str) -> Option<RoomIndex> {
        self.index_of(self.registry.hash(room), room).map(RoomIndex)
    }

    /// Returns the members of the room with this hash and name.
    pub(crate) fn members(&self, hash: u64, room: &RoomId) -> &[u32] {
        let index = self.index_of(hash, room.as_str());
        index.map_or(&[], |index| &self.rooms[index as usize].members)
    }

    /// Prefetches what [`Rooms::members`] reads for rooms whose names have these hashes. Each step
    /// is done for all of them before the next, so that each step waits for memory once. Adds the
    /// first members of each room to `members`.
    pub(crate) fn prefetch(&self, hashes: &[u64], members: &mut Vec<u32>) {
        let indexes: SmallVec<[&u32; BLOCK]> =
            hashes.iter().filter_map(|hash| self.by_id.find(*hash, |_| true)).collect();
        let entries: SmallVec<[u32; BLOCK]> = indexes.iter().map(|index| **index).collect();
        let rooms: SmallVec<[&Room; BLOCK]> =
            entries.iter().filter_map(|index| self.rooms.get(*index as usize)).collect();
        members.extend(rooms.iter().flat_map(|room| room.members.iter().copied().take(2)));
        let texts: SmallVec<[&[u8]; BLOCK]> =
            rooms.iter().map(|room| room.shared.id().as_str().as_bytes()).collect();
        black_box(texts.iter().fold(0, |seen, text| seen ^ text.last().copied().unwrap_or(0)));
    }

    /// True when the membership is in the room of this name.
    pub(crate) fn is_in(&self, membership: Membership, room: &str) -> bool {
        self.rooms.get(membership.room()).is_some_and(|entry| entry.shared.id().as_str() == room)
    }

    /// Returns the room's name.
    pub(crate) fn name(&self, membership: Membership) -> Option<&RoomId> {
        self.rooms.get(membership.room()).map(|entry| entry.shared.id())
    }

    /// Returns how many sessions of the whole cluster are in the room.
    pub(crate) fn online(&self, membership: Membership) -> u32 {
        self.rooms.get(membership.room()).map_or(0, |room| room.shared.online())
    }

    /// Adds a connection at the end of the room's list, and opens the room if it has none.
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
        let rehash = |index: &u32| registry.hash(rooms[*index as usize].shared.id().as_str());
        self.by_id.insert_unique(hash, index, rehash);
        index
    }

    /// Removes a connection. The last member of the list moves to its position: returns its slot
    /// and its new membership, which the caller must set.
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
        let hash = self.registry.hash(room.shared.id().as_str());
        if let Ok(entry) = self.by_id.find_entry(hash, |known| *known as usize == index) {
            entry.remove();
        }
        self.registry.close(room.shared, hash, self.shard, self.shards);
        self.shrink();
    }

    /// Frees memory when most rooms were closed.
    fn shrink(&mut self) {
        if self.by_id.is_empty() {
            (self.by_id, self.rooms) = (HashTable::new(), Slab::new());
        } else if self.by_id.capacity() > SHRINK_ABOVE && self.by_id.len() < self.by_id.capacity() / 4 {
            let (rooms, registry, keep) = (&self.rooms, &self.registry, self.by_id.len() * 2);
            self.by_id.shrink_to(keep, |index| registry.hash(rooms[*index as usize].shared.id().as_str()));
            self.rooms.shrink_to_fit();
        }
    }
}

/// Returns the memory of a room with one member, by the sizes of its parts.
#[cfg(feature = "harness")]
pub(crate) const fn room_bytes(name_len: usize) -> usize {
    let counts = 2 * size_of::<usize>();
    let shared = counts + size_of::<SharedRoom>();
    let name = counts + name_len;
    // A hash table has one more byte per entry; the slab a `usize` that marks used entries.
    let tables = (size_of::<Arc<SharedRoom>>() + 1 + size_of::<u32>() + 1) * 8 / 7;
    let own = size_of::<Room>() + size_of::<usize>();
    shared + name + tables + own
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::room_registry::Holders;

    #[test]
    fn leaving_keeps_every_other_position_true() {
        let registry = Arc::new(RoomRegistry::new());
        let mut rooms = Rooms::new(0, 1, registry.clone());
        let id = RoomId::from("live://1");
        let mut memberships: HashMap<u32, Membership> =
            (0..5).map(|slot| (slot, rooms.join(id.clone(), slot))).collect();
        for gone in [0, 4, 2] {
            let membership = memberships.remove(&gone).unwrap();
            if let Some((slot, moved)) = rooms.leave(membership) {
                memberships.insert(slot, moved);
            }
            for (slot, membership) in &memberships {
                assert_eq!(
                    rooms.members(registry.hash(id.as_str()), &id)[membership.position as usize],
                    *slot
                );
            }
            assert_eq!(registry.here()[&id] as usize, memberships.len());
        }
        while let Some(slot) = memberships.keys().next().copied() {
            let membership = memberships.remove(&slot).unwrap();
            if let Some((slot, moved)) = rooms.leave(membership) {
                memberships.insert(slot, moved);
            }
        }
        assert!(registry.here().is_empty());
        assert_eq!(registry.holders(registry.hash(id.as_str()), &id), Holders::default());
    }

    #[test]
    fn a_prefetch_returns_the_first_members() {
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
