//! Room messages that gather into batches, for each comet separately.
//!
//! Each comet has separate batches, so that no comet waits for what another has not accepted yet.

mod comet_rooms;

use std::collections::HashMap;
use std::sync::Arc;

use goim_ports::{PushRecord, RoomId, ServerId};
use tokio::time::Instant;

use crate::completion::Ack;
use crate::config::RoomConfig;
use crate::delivery::Delivery;
use crate::in_flight::InFlight;
use comet_rooms::CometRooms;

/// The maximum number of full batches that wait for earlier ones, per comet, while other comets are
/// served.
///
/// A single comet may have one: reading on would serve no other comet, and a message should not
/// wait for more than one batch.
const FULL_BATCHES_MAX: usize = 32;

/// The rooms of all comets.
#[derive(Debug)]
pub(crate) struct Rooms {
    config: RoomConfig,
    in_flight: Arc<InFlight>,
    comets: HashMap<ServerId, CometRooms>,
}

impl Rooms {
    pub(crate) fn new(config: RoomConfig, in_flight: Arc<InFlight>) -> Self {
        Self { config, in_flight, comets: HashMap::new() }
    }

    /// Returns whether more records may be read: false while too many full batches wait for earlier
    /// ones.
    ///
    /// Batches for a comet that `is_slow` do not count. They gather up to the in-flight limit.
    pub(crate) fn has_capacity(&self, is_slow: impl Fn(&ServerId) -> bool) -> bool {
        let max = if self.comets.len() > 1 { FULL_BATCHES_MAX } else { 1 };
        !self.comets.iter().any(|(server, rooms)| rooms.full_batches() >= max && !is_slow(server))
    }

    /// Adds a record for `room` to the batch for one comet. A full batch is added to `out`.
    pub(crate) fn add(
        &mut self,
        server: &ServerId,
        room: &RoomId,
        record: &PushRecord,
        ack: Ack,
        now: Instant,
        out: &mut Vec<Delivery>,
    ) {
        if !self.comets.contains_key(server) {
            let rooms = CometRooms::new(server.clone(), self.config.clone(), Arc::clone(&self.in_flight));
            self.comets.insert(server.clone(), rooms);
        }
        if let Some(rooms) = self.comets.get_mut(server) {
            rooms.add(room, record, ack, now, out);
        }
    }

    /// Takes the batches of rooms that were idle before this read. Call it once a read is
    /// processed.
    pub(crate) fn take_activated(&mut self, now: Instant, out: &mut Vec<Delivery>) {
        self.comets.values_mut().for_each(|rooms| rooms.take_activated(now, out));
    }

    /// Takes the batches whose interval has ended or whose previous batch has completed.
    pub(crate) fn take_due(&mut self, now: Instant, out: &mut Vec<Delivery>) {
        self.comets.values_mut().for_each(|rooms| rooms.take_due(now, out));
    }

    /// Returns when the next interval ends.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.comets.values().filter_map(CometRooms::next_due).min()
    }

    /// Takes all batches, for the drain.
    pub(crate) fn take_all(&mut self, out: &mut Vec<Delivery>) {
        self.comets.values_mut().for_each(|rooms| rooms.take_all(out));
    }

    /// Removes comets that left the pool, once no batch waits for them.
    pub(crate) fn remove_departed(&mut self, is_present: impl Fn(&ServerId) -> bool) {
        self.comets.retain(|server, rooms| !rooms.is_empty() || is_present(server));
    }
}

#[cfg(test)]
mod tests;
