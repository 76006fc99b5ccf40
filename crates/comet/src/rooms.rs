//! The rooms of one shard, and the census of the whole comet.
//!
//! A shard owns the list of its members; nobody else touches it. The census is shared by the shards: per room one
//! counter of the sessions on this comet, one of those elsewhere, and which shards have members, so that a message goes
//! to those only. It is locked when a shard opens or closes a room, not when sessions join or leave.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use goim_ports::{RoomCounts, RoomId};
use slab::Slab;

/// Locks of the census. Rooms are spread over them by their name.
const STRIPES: usize = 64;

/// How many sessions a room has.
#[derive(Debug, Default)]
pub(crate) struct RoomCounter {
    here: AtomicU32,
    elsewhere: AtomicU32,
    /// Bit `n % 64` is set while shard `n` has members.
    shards: AtomicU64,
}

impl RoomCounter {
    /// Sessions in the room over the whole cluster, as far as is known.
    pub(crate) fn online(&self) -> u32 {
        self.here.load(Ordering::Relaxed).saturating_add(self.elsewhere.load(Ordering::Relaxed))
    }
}

/// All rooms of this comet.
pub(crate) struct Census {
    stripes: Vec<Mutex<HashMap<RoomId, Arc<RoomCounter>>>>,
    hasher: std::hash::RandomState,
}

impl Census {
    pub(crate) fn new() -> Self {
        Self {
            stripes: (0..STRIPES).map(|_| Mutex::default()).collect(),
            hasher: std::hash::RandomState::new(),
        }
    }

    fn stripe(&self, room: &RoomId) -> std::sync::MutexGuard<'_, HashMap<RoomId, Arc<RoomCounter>>> {
        use std::hash::BuildHasher as _;
        let index = self.hasher.hash_one(room) as usize % STRIPES;
        self.stripes[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shard `shard` opens the room.
    fn open(&self, room: &RoomId, shard: usize) -> Arc<RoomCounter> {
        let mut rooms = self.stripe(room);
        let counter = rooms.entry(room.clone()).or_default();
        counter.shards.fetch_or(1 << (shard % 64), Ordering::AcqRel);
        counter.clone()
    }

    /// Shard `shard` has no members left.
    fn close(&self, room: &RoomId, shard: usize, shards: usize) {
        let mut rooms = self.stripe(room);
        let Some(counter) = rooms.get(room) else { return };
        if shards <= 64 {
            counter.shards.fetch_and(!(1 << (shard % 64)), Ordering::AcqRel);
        }
        // The map and the shard that is leaving hold one reference each.
        if Arc::strong_count(counter) <= 2 {
            rooms.remove(room);
            if rooms.capacity() > 64 && rooms.len() < rooms.capacity() / 4 {
                rooms.shrink_to_fit();
            }
        }
    }

    /// The shards that may have members of the room, as bits modulo 64; zero when nobody has.
    pub(crate) fn shards_of(&self, room: &RoomId) -> u64 {
        self.stripe(room).get(room).map_or(0, |counter| counter.shards.load(Ordering::Acquire))
    }

    /// Rooms with sessions.
    pub(crate) fn len(&self) -> usize {
        self.stripes.iter().map(|stripe| stripe.lock().unwrap_or_else(PoisonError::into_inner).len()).sum()
    }

    /// Every room with the sessions that it has here.
    pub(crate) fn here(&self) -> HashMap<RoomId, u32> {
        let mut all = HashMap::new();
        for stripe in &self.stripes {
            let rooms = stripe.lock().unwrap_or_else(PoisonError::into_inner);
            let counted = rooms.iter().map(|(room, counter)| (room, counter.here.load(Ordering::Relaxed)));
            all.extend(counted.filter(|(_, count)| *count > 0).map(|(room, count)| (room.clone(), count)));
        }
        all
    }

    /// Takes over what the cluster has said: `totals` includes what this comet had `reported`.
    pub(crate) fn learn(&self, totals: &RoomCounts, reported: &RoomCounts) {
        for stripe in &self.stripes {
            let rooms = stripe.lock().unwrap_or_else(PoisonError::into_inner);
            for (room, counter) in rooms.iter() {
                let total = totals.get(room).copied().unwrap_or(0);
                let own = reported.get(room).copied().unwrap_or(0);
                counter.elsewhere.store(total.saturating_sub(own), Ordering::Relaxed);
            }
        }
    }
}

/// A session's place in a room of its shard.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Membership {
    room: u32,
    position: u32,
}

struct Room {
    id: RoomId,
    members: Vec<u32>,
    counter: Arc<RoomCounter>,
}

/// The rooms that have members on this shard. Members are slots of connections.
pub(crate) struct Rooms {
    shard: usize,
    shards: usize,
    census: Arc<Census>,
    by_id: HashMap<RoomId, u32>,
    rooms: Slab<Room>,
}

impl Rooms {
    pub(crate) fn new(shard: usize, shards: usize, census: Arc<Census>) -> Self {
        Self { shard, shards, census, by_id: HashMap::new(), rooms: Slab::new() }
    }

    /// The members of a room.
    pub(crate) fn members(&self, room: &RoomId) -> &[u32] {
        self.by_id
            .get(room)
            .and_then(|index| self.rooms.get(*index as usize))
            .map_or(&[], |room| &room.members)
    }

    /// True when the membership is in the room of this name.
    pub(crate) fn is_in(&self, membership: Membership, room: &str) -> bool {
        self.rooms.get(membership.room as usize).is_some_and(|entry| entry.id.as_str() == room)
    }

    /// Sessions in the room over the whole cluster.
    pub(crate) fn online(&self, membership: Membership) -> u32 {
        self.rooms.get(membership.room as usize).map_or(0, |room| room.counter.online())
    }

    /// Adds a connection at the end of the room's list.
    pub(crate) fn join(&mut self, id: RoomId, slot: u32) -> Membership {
        let index = match self.by_id.get(&id) {
            Some(index) => *index,
            None => {
                let counter = self.census.open(&id, self.shard);
                let index = self.rooms.insert(Room { id: id.clone(), members: Vec::new(), counter }) as u32;
                self.by_id.insert(id, index);
                index
            }
        };
        let room = &mut self.rooms[index as usize];
        room.counter.here.fetch_add(1, Ordering::Relaxed);
        room.members.push(slot);
        Membership { room: index, position: room.members.len() as u32 - 1 }
    }

    /// Takes a connection out. Gives the slot of the member that now stands in its place, whose membership the caller
    /// must set to the same position.
    pub(crate) fn leave(&mut self, membership: Membership) -> Option<(u32, Membership)> {
        let room = self.rooms.get_mut(membership.room as usize)?;
        let position = membership.position as usize;
        room.members.swap_remove(position);
        room.counter.here.fetch_sub(1, Ordering::Relaxed);
        let moved = room.members.get(position).map(|slot| (*slot, membership));
        if room.members.is_empty() {
            let room = self.rooms.remove(membership.room as usize);
            self.by_id.remove(&room.id);
            self.census.close(&room.id, self.shard, self.shards);
            self.shrink();
        } else if room.members.capacity() > 64 && room.members.len() < room.members.capacity() / 4 {
            room.members.shrink_to(room.members.len() * 2);
        }
        moved
    }

    /// Gives memory back when most rooms have gone.
    fn shrink(&mut self) {
        if self.by_id.capacity() > 256 && self.by_id.len() < self.by_id.capacity() / 4 {
            self.by_id.shrink_to_fit();
            self.rooms.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaving_keeps_every_other_position_true() {
        let census = Arc::new(Census::new());
        let mut rooms = Rooms::new(0, 1, census.clone());
        let id = RoomId::from("live://1");
        let mut places: HashMap<u32, Membership> =
            (0..5).map(|slot| (slot, rooms.join(id.clone(), slot))).collect();
        for gone in [0, 4, 2] {
            let place = places.remove(&gone).unwrap();
            if let Some((slot, moved)) = rooms.leave(place) {
                places.insert(slot, moved);
            }
            for (slot, place) in &places {
                assert_eq!(rooms.members(&id)[place.position as usize], *slot);
            }
            assert_eq!(census.here()[&id] as usize, places.len());
        }
        while let Some(slot) = places.keys().next().copied() {
            let place = places.remove(&slot).unwrap();
            if let Some((slot, moved)) = rooms.leave(place) {
                places.insert(slot, moved);
            }
        }
        assert!(census.here().is_empty());
        assert_eq!(census.shards_of(&id), 0);
    }
}
