//! The connections of one shard, by slot. Owns their memory, which slots are free and the
//! generations; not what a connection does.
//!
//! Connections are stored in pages: growing copies nothing, and a page without connections is
//! freed. The lowest free slot is used first, so that what remains after a mass departure becomes
//! dense again.

use std::ops::{Index, IndexMut};

use crate::connection::{Connection, ConnectionId};

/// Slots in a page: large enough that the page's own cost is negligible, small enough that a few
/// remaining connections keep few pages.
const PAGE_SLOTS: usize = 256;
const BITMAP_LEN: usize = PAGE_SLOTS / 64;

struct Page {
    slots: Box<[Option<Connection>]>,
    /// Bit `n` is set while slot `n` is taken.
    taken: [u64; BITMAP_LEN],
}

impl Page {
    fn new() -> Self {
        Self { slots: (0..PAGE_SLOTS).map(|_| None).collect(), taken: [0; BITMAP_LEN] }
    }

    fn is_empty(&self) -> bool {
        self.taken == [0; BITMAP_LEN]
    }

    fn first_free(&self) -> Option<usize> {
        let index = self.taken.iter().position(|bits| *bits != u64::MAX)?;
        Some(index * 64 + self.taken[index].trailing_ones() as usize)
    }
}

/// The table of connections.
#[derive(Default)]
pub(crate) struct Connections {
    pages: Vec<Option<Page>>,
    /// No page below this one has a free slot.
    free_from: usize,
    /// An empty page: a single connection that is opened and closed repeatedly must not allocate a
    /// page each time.
    spare: Option<Page>,
    len: usize,
    /// The generation given out last; wraps.
    newest: u32,
}

impl Connections {
    /// The generation of the newest connection.
    pub(crate) fn newest(&self) -> u32 {
        self.newest
    }

    /// Returns the generation for a new connection.
    pub(crate) fn next_generation(&mut self) -> u32 {
        self.newest = self.newest.wrapping_add(1);
        self.newest
    }

    /// Returns the slot of the connection, unless it was removed and its slot reused.
    #[inline]
    pub(crate) fn find(&self, id: ConnectionId) -> Option<u32> {
        self.get(id.slot).filter(|found| found.generation == id.generation).map(|_| id.slot)
    }

    /// Returns the id of the connection in `slot`.
    ///
    /// # Panics
    /// When the slot is free.
    #[inline]
    pub(crate) fn id(&self, slot: u32) -> ConnectionId {
        ConnectionId { slot, generation: self[slot].generation }
    }

    /// Returns the slot that [`Connections::insert`] will use.
    pub(crate) fn vacant(&mut self) -> u32 {
        while let Some(page) = self.pages.get(self.free_from) {
            match page {
                None => return (self.free_from * PAGE_SLOTS) as u32,
                Some(page) => {
                    if let Some(offset) = page.first_free() {
                        return (self.free_from * PAGE_SLOTS + offset) as u32;
                    }
                }
            }
            self.free_from += 1;
        }
        (self.free_from * PAGE_SLOTS) as u32
    }

    /// Adds a connection and returns its slot.
    pub(crate) fn insert(&mut self, connection: Connection) -> u32 {
        let slot = self.vacant();
        let (index, offset) = split(slot as usize);
        if self.pages.len() <= index {
            self.pages.resize_with(index + 1, || None);
        }
        let spare = &mut self.spare;
        let page = self.pages[index].get_or_insert_with(|| spare.take().unwrap_or_else(Page::new));
        page.slots[offset] = Some(connection);
        page.taken[offset / 64] |= 1 << (offset % 64);
        self.len += 1;
        slot
    }

    /// Removes a connection.
    pub(crate) fn remove(&mut self, slot: u32) -> Option<Connection> {
        let (index, offset) = split(slot as usize);
        let page = self.pages.get_mut(index)?.as_mut()?;
        let connection = page.slots[offset].take()?;
        page.taken[offset / 64] &= !(1 << (offset % 64));
        self.len -= 1;
        self.free_from = self.free_from.min(index);
        if page.is_empty() {
            self.spare = self.pages[index].take();
            while matches!(self.pages.last(), Some(None)) {
                self.pages.pop();
            }
        }
        Some(connection)
    }

    pub(crate) fn get(&self, slot: u32) -> Option<&Connection> {
        let (index, offset) = split(slot as usize);
        self.pages.get(index)?.as_ref()?.slots[offset].as_ref()
    }

    pub(crate) fn get_mut(&mut self, slot: u32) -> Option<&mut Connection> {
        let (index, offset) = split(slot as usize);
        self.pages.get_mut(index)?.as_mut()?.slots[offset].as_mut()
    }

    /// One above the highest slot in use.
    pub(crate) fn end(&self) -> u32 {
        (self.pages.len() * PAGE_SLOTS) as u32
    }

    /// How many connections there are.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns all connections with their slots, lowest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &Connection)> {
        let pages = self.pages.iter().enumerate().filter_map(|(index, page)| Some((index, page.as_ref()?)));
        pages.flat_map(|(index, page)| {
            let slots = page.slots.iter().enumerate();
            slots.filter_map(move |(offset, connection)| {
                Some(((index * PAGE_SLOTS + offset) as u32, connection.as_ref()?))
            })
        })
    }
}

fn split(slot: usize) -> (usize, usize) {
    (slot / PAGE_SLOTS, slot % PAGE_SLOTS)
}

impl Index<u32> for Connections {
    type Output = Connection;

    fn index(&self, slot: u32) -> &Connection {
        self.get(slot).expect("the slot is in use")
    }
}

impl IndexMut<u32> for Connections {
    fn index_mut(&mut self, slot: u32) -> &mut Connection {
        self.get_mut(slot).expect("the slot is in use")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::testing::open_session;

    fn insert(connections: &mut Connections) -> ConnectionId {
        let generation = connections.next_generation();
        let slot = connections.insert(open_session(generation));
        connections.id(slot)
    }

    #[test]
    fn a_reused_slot_has_another_id() {
        let mut connections = Connections::default();
        let ids: Vec<_> = (0..3).map(|_| insert(&mut connections)).collect();
        assert_eq!(ids.iter().map(|id| id.slot).collect::<Vec<_>>(), [0, 1, 2]);
        assert!(connections.remove(1).is_some() && connections.remove(1).is_none());
        assert_eq!((connections.find(ids[1]), connections.vacant()), (None, 1));
        let new = insert(&mut connections);
        assert_eq!((new.slot, new.generation), (1, connections.newest()));
        assert_eq!((connections.find(ids[1]), connections.find(new)), (None, Some(1)));
        assert_eq!((connections.len(), connections.find(ids[2])), (3, Some(2)));
    }

    #[test]
    fn the_lowest_free_slot_is_used_and_empty_pages_are_freed() {
        let mut connections = Connections::default();
        for _ in 0..3 * PAGE_SLOTS {
            insert(&mut connections);
        }
        let end = |connections: &Connections| connections.end() as usize / PAGE_SLOTS;
        assert_eq!(end(&connections), 3);
        for slot in PAGE_SLOTS as u32..3 * PAGE_SLOTS as u32 {
            connections.remove(slot);
        }
        assert_eq!((end(&connections), connections.len()), (1, PAGE_SLOTS));
        connections.remove(7);
        assert_eq!(insert(&mut connections).slot, 7);
        assert_eq!(insert(&mut connections).slot as usize, PAGE_SLOTS);
        assert_eq!(connections.iter().count(), PAGE_SLOTS + 1);
    }
}
