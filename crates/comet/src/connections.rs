//! The connections of one shard, by slot. Owns where they lie in memory and which slots are free, not what they are.
//!
//! They lie in pages, so that growing copies nothing and a page whose connections have all gone is given back. The
//! lowest free slot is taken first: what stays after a mass departure moves together as others come.

use std::ops::{Index, IndexMut};

use crate::connection::Connection;

/// Slots in a page: large enough that the page's own costs vanish, small enough that few of them are kept by stragglers.
const PAGE_SLOTS: usize = 256;
const WORDS: usize = PAGE_SLOTS / 64;

struct Page {
    slots: Box<[Option<Connection>]>,
    /// Bit `n` is set while slot `n` is taken.
    taken: [u64; WORDS],
}

impl Page {
    fn new() -> Self {
        Self { slots: (0..PAGE_SLOTS).map(|_| None).collect(), taken: [0; WORDS] }
    }

    fn is_empty(&self) -> bool {
        self.taken == [0; WORDS]
    }

    fn first_free(&self) -> Option<usize> {
        let word = self.taken.iter().position(|word| *word != u64::MAX)?;
        Some(word * 64 + self.taken[word].trailing_ones() as usize)
    }
}

/// The table.
#[derive(Default)]
pub(crate) struct Connections {
    pages: Vec<Option<Page>>,
    /// No page below this one has a free slot.
    free_from: usize,
    /// An empty page, so that one connection that comes and goes does not make and free a page each time.
    spare: Option<Page>,
    len: usize,
}

impl Connections {
    /// The slot that [`Connections::insert`] will take.
    pub(crate) fn vacant(&mut self) -> u32 {
        while let Some(page) = self.pages.get(self.free_from) {
            match page {
                None => return (self.free_from * PAGE_SLOTS) as u32,
                Some(page) => {
                    if let Some(place) = page.first_free() {
                        return (self.free_from * PAGE_SLOTS + place) as u32;
                    }
                }
            }
            self.free_from += 1;
        }
        (self.free_from * PAGE_SLOTS) as u32
    }

    /// Adds a connection and gives its slot.
    pub(crate) fn insert(&mut self, connection: Connection) -> u32 {
        let slot = self.vacant();
        let (index, place) = split(slot as usize);
        if self.pages.len() <= index {
            self.pages.resize_with(index + 1, || None);
        }
        let spare = &mut self.spare;
        let page = self.pages[index].get_or_insert_with(|| spare.take().unwrap_or_else(Page::new));
        page.slots[place] = Some(connection);
        page.taken[place / 64] |= 1 << (place % 64);
        self.len += 1;
        slot
    }

    /// Takes a connection out.
    pub(crate) fn remove(&mut self, slot: u32) -> Option<Connection> {
        let (index, place) = split(slot as usize);
        let page = self.pages.get_mut(index)?.as_mut()?;
        let connection = page.slots[place].take()?;
        page.taken[place / 64] &= !(1 << (place % 64));
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
        let (index, place) = split(slot as usize);
        self.pages.get(index)?.as_ref()?.slots[place].as_ref()
    }

    pub(crate) fn get_mut(&mut self, slot: u32) -> Option<&mut Connection> {
        let (index, place) = split(slot as usize);
        self.pages.get_mut(index)?.as_mut()?.slots[place].as_mut()
    }

    /// One above the highest slot that may be taken.
    pub(crate) fn end(&self) -> u32 {
        (self.pages.len() * PAGE_SLOTS) as u32
    }

    /// Connections held.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All connections with their slots, lowest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &Connection)> {
        let pages = self.pages.iter().enumerate().filter_map(|(index, page)| Some((index, page.as_ref()?)));
        pages.flat_map(|(index, page)| {
            let slots = page.slots.iter().enumerate();
            slots.filter_map(move |(place, connection)| {
                Some(((index * PAGE_SLOTS + place) as u32, connection.as_ref()?))
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
        self.get(slot).expect("the slot is taken")
    }
}

impl IndexMut<u32> for Connections {
    fn index_mut(&mut self, slot: u32) -> &mut Connection {
        self.get_mut(slot).expect("the slot is taken")
    }
}
