//! Prefetching of connections, keys and rooms before a shard handles them: see `crate::prefetch`.
//!
//! Nothing here has an effect other than on the caches, except [`Shard::prefetch_commands`], which
//! stores what it finds.

use std::hint::black_box;

use goim_ports::SessionKey;
use mio::Token;
use mio::event::Event;
use smallvec::SmallVec;

use super::Shard;
use super::listeners::WAKE;
use crate::inbox::{Command, Located, Queued, Targets};
use crate::key_index::Location;
use crate::prefetch::{BLOCK, is_sequential};

/// Shards of up to this many connections fit into the caches, at about 200 bytes each and what they
/// refer to. There a prefetch would cost some nanoseconds per connection and gain nothing.
const CACHED_MAX: usize = 2048;

impl Shard {
    fn is_cached(&self) -> bool {
        self.connections.len() <= CACHED_MAX
    }

    /// Prefetches connections that a push is queued on.
    pub(super) fn prefetch_receivers(&self, slots: &[u32]) {
        if !self.is_cached() && !is_sequential(slots.iter().copied()) {
            self.prefetch_all(slots.iter().copied());
        }
    }

    /// Prefetches the connections that the flush queue reaches next.
    pub(super) fn prefetch_flushes(&self) {
        let next = self.egress.upcoming().take(BLOCK);
        if !self.is_cached() && !is_sequential(next.clone()) {
            self.prefetch_all(next);
        }
    }

    /// Prefetches connections that have input, and the rooms whose counts a heartbeat asks for.
    pub(super) fn prefetch_input(&self, slots: impl Iterator<Item = u32> + Clone) {
        if self.is_cached() || slots.clone().nth(1).is_none() {
            return;
        }
        let connections = slots.filter_map(|slot| self.connections.get(slot));
        black_box(connections.clone().fold(0, |seen, connection| seen ^ connection.prefetch_for_input()));
        let memberships = connections.filter_map(|connection| connection.membership);
        black_box(memberships.fold(0, |seen, membership| seen ^ self.rooms.online(membership)));
    }

    /// Prefetches the connections of events.
    pub(super) fn prefetch_events<'a>(&self, events: impl Iterator<Item = &'a Event> + Clone) {
        let connections = events.map(Event::token).filter(|token| self.is_connection(*token));
        self.prefetch_input(connections.map(|token| token.0 as u32));
    }

    /// True when the token is neither a listener's nor the inbox's.
    fn is_connection(&self, token: Token) -> bool {
        token != WAKE && !self.listeners.has(token)
    }

    /// Looks up the keys of all pushes and stores the connections found; prefetches these, and
    /// members of rooms.
    pub(super) fn prefetch_commands(&mut self, commands: &mut [Queued]) {
        if self.is_cached() {
            return;
        }
        self.prefetch_rooms(commands);
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

    /// Returns the connections that a push is for.
    pub(super) fn located(&self, targets: Targets) -> Located {
        match targets {
            Targets::Connections(connections) => connections,
            Targets::Keys(keys) => self.here(keys.iter().map(|key| self.shared.keys.find(key))),
        }
    }

    /// Returns those that were found on this shard, and counts the others.
    fn here(&self, found: impl Iterator<Item = Option<Location>>) -> Located {
        let here = found.filter_map(|location| {
            let here = location.filter(|location| usize::from(location.shard) == self.peers.own_index());
            if here.is_none() {
                self.shared.unknown_keys.add(1);
            }
            here.map(|location| location.connection)
        });
        here.collect()
    }

    fn find_all(&self, keys: &[&SessionKey], found: &mut Vec<Option<Location>>) {
        let prefetch =
            |locations: &[Location]| self.prefetch_all(locations.iter().map(|at| at.connection.slot));
        self.shared.keys.find_all(keys, prefetch, found);
    }

    fn prefetch_rooms(&mut self, commands: &[Queued]) {
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
        let mut members = self.egress.take_receivers();
        self.rooms.prefetch(&hashes, &mut members);
        self.prefetch_all(members.iter().copied());
        self.egress.recycle_receivers(members);
    }

    fn prefetch_all(&self, slots: impl Iterator<Item = u32>) {
        let connections = slots.filter_map(|slot| self.connections.get(slot));
        black_box(connections.fold(0, |seen, connection| seen ^ connection.prefetch()));
    }
}

fn keys_of(command: &Command) -> Option<&[SessionKey]> {
    match command {
        Command::Push { targets: Targets::Keys(keys), .. } => Some(keys),
        _ => None,
    }
}
