//! Looking at many things shortly before they are dealt with, so that they come from memory at once.
//!
//! With a million sessions hardly anything of the next one is in a cache. Dealt with one by one, each waits for memory
//! several times over, and the processor cannot look far enough ahead to begin with the next. A short loop that only looks
//! has many of them on their way from memory at once. So work on many goes in blocks: look at a block, then do it.

use std::hint::black_box;

use goim_ports::SessionKey;
use mio::event::Event;
use smallvec::SmallVec;

use super::Shard;
use crate::inbox::{Command, Located, Queued, Targets};
use crate::key_index::Location;

/// Connections looked at before the first of them is dealt with: more than the processor has loads under way, few enough
/// to stay in its nearest caches until their turn.
pub(crate) const BLOCK: usize = 64;
/// Shards of up to so many connections lie in the caches whole, some 200 bytes each and what hangs on it: there, looking
/// would cost some nanoseconds for each connection and bring nothing.
const CACHED_MAX: usize = 2048;
/// Slots up to so far apart are neighbours.
const NEIGHBOUR_MAX: u32 = 4;

impl Shard {
    fn is_cached(&self) -> bool {
        self.connections.len() <= CACHED_MAX
    }

    /// Looks at connections that are to be written to.
    pub(super) fn foresee(&self, slots: &[u32]) {
        if !self.is_cached() && !is_run(slots.iter().copied()) {
            self.look_at_all(slots.iter().copied());
        }
    }

    /// Looks at the connections that are flushed next in the ring.
    pub(super) fn foresee_ring(&self) {
        let next = self.ring.iter().copied().take(BLOCK);
        if !self.is_cached() && !is_run(next.clone()) {
            self.look_at_all(next);
        }
    }

    /// Looks at connections that have input, and at the rooms whose counts they may ask for.
    pub(super) fn foresee_input(&self, slots: impl Iterator<Item = u32> + Clone) {
        if self.is_cached() || slots.clone().nth(1).is_none() {
            return;
        }
        let connections = slots.filter_map(|slot| self.connections.get(slot));
        black_box(connections.clone().fold(0, |seen, connection| seen ^ connection.glance_for_input()));
        let memberships = connections.filter_map(|connection| connection.membership);
        black_box(memberships.fold(0, |seen, membership| seen ^ self.rooms.online(membership)));
    }

    /// The same for what a poll has found.
    pub(super) fn foresee_events<'a>(&self, events: impl Iterator<Item = &'a Event> + Clone) {
        let connections = events.map(Event::token).filter(|token| self.is_connection(*token));
        self.foresee_input(connections.map(|token| token.0 as u32));
    }

    /// Finds the connections of pushes by key, and looks at them and at the members of rooms.
    pub(super) fn look_up(&mut self, commands: &mut [Queued]) {
        if self.is_cached() {
            return;
        }
        self.look_at_rooms(commands);
        let keys: SmallVec<[&SessionKey; BLOCK]> =
            commands.iter().filter_map(|queued| keys_of(&queued.command)).flatten().collect();
        if keys.is_empty() {
            return;
        }
        let mut found = Vec::with_capacity(keys.len());
        self.find_all(&keys, &mut found);
        drop(keys);
        let mut found = found.into_iter();
        for queued in commands {
            if let Command::Push { targets, .. } = &mut queued.command
                && let Targets::Keys(keys) = targets
            {
                let located = found.by_ref().take(keys.len());
                *targets = Targets::Connections(self.here(located));
            }
        }
    }

    /// The connections that a push is for.
    pub(super) fn located(&self, targets: Targets) -> Located {
        match targets {
            Targets::Connections(connections) => connections,
            Targets::Keys(keys) => self.here(keys.iter().map(|key| self.shared.keys.find(key))),
        }
    }

    /// Those that were found on this shard; the others are counted.
    fn here(&self, found: impl Iterator<Item = Option<Location>>) -> Located {
        let here = found.filter_map(|location| {
            let here = location.filter(|location| usize::from(location.shard) == self.index);
            if here.is_none() {
                self.shared.unknown_keys.add(1);
            }
            here.map(|location| location.connection)
        });
        here.collect()
    }

    fn find_all(&self, keys: &[&SessionKey], found: &mut Vec<Option<Location>>) {
        let probably =
            |locations: &[Location]| self.look_at_all(locations.iter().map(|at| at.connection.slot));
        self.shared.keys.find_all(keys, probably, found);
    }

    fn look_at_rooms(&mut self, commands: &[Queued]) {
        let hashes: SmallVec<[u64; BLOCK]> = commands
            .iter()
            .filter_map(|queued| match queued.command {
                Command::Room { hash, .. } => Some(hash),
                _ => None,
            })
            .collect();
        if hashes.is_empty() {
            return;
        }
        let mut members = std::mem::take(&mut self.receivers);
        members.clear();
        self.rooms.look_ahead(&hashes, &mut members);
        self.look_at_all(members.iter().copied());
        self.receivers = members;
    }

    fn look_at_all(&self, slots: impl Iterator<Item = u32>) {
        let looked = slots.filter_map(|slot| self.connections.get(slot));
        black_box(looked.fold(0, |seen, connection| seen ^ connection.glance()));
    }
}

/// True when nearly all slots lie beside the one before: the processor foresees these itself.
fn is_run(slots: impl Iterator<Item = u32> + Clone) -> bool {
    let steps = slots.clone().zip(slots.skip(1));
    steps.filter(|(slot, next)| slot.abs_diff(*next) > NEIGHBOUR_MAX).count() <= BLOCK / 8
}

fn keys_of(command: &Command) -> Option<&[SessionKey]> {
    match command {
        Command::Push { targets: Targets::Keys(keys), .. } => Some(keys),
        _ => None,
    }
}
