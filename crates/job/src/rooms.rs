//! What gathers for each comet. Each has its own batches of a room, so that nobody waits for what another takes.

mod of_comet;

use std::collections::HashMap;
use std::sync::Arc;

use goim_ports::{AcceptedAt, Operation, Payload, RoomId, RoomPush, ServerId};
use tokio::time::Instant;

use crate::config::RoomConfig;
use crate::in_flight::{InFlight, Share};
pub(crate) use of_comet::Flight;
use of_comet::RoomsOfComet;

/// How many full batches of a comet may wait for the ones before them while other comets get theirs. A single comet may have one:
/// there is nobody to be held up, and a message should wait for no more than that.
const SEALED_MAX: usize = 32;

/// The rooms of all comets.
#[derive(Debug)]
pub(crate) struct Rooms {
    config: RoomConfig,
    in_flight: Arc<InFlight>,
    comets: HashMap<ServerId, RoomsOfComet>,
}

/// One message of a room.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    pub(crate) operation: Operation,
    /// One that is not plain is a batch by itself.
    pub(crate) payload: Payload,
    pub(crate) accepted_at: AcceptedAt,
    pub(crate) share: Share,
}

/// Messages of a room that travel together to one comet.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) server: ServerId,
    pub(crate) push: RoomPush,
    pub(crate) shares: Vec<Share>,
    pub(crate) flight: Flight,
}

impl Rooms {
    pub(crate) fn new(config: RoomConfig, in_flight: Arc<InFlight>) -> Self {
        Self { config, in_flight, comets: HashMap::new() }
    }

    /// False while full batches wait for the ones before them: then nothing more should be read. For a comet of which others
    /// should not wait, `is_late`, they may gather up to what may be in flight.
    pub(crate) fn has_room(&self, is_late: impl Fn(&ServerId) -> bool) -> bool {
        let max = if self.comets.len() > 1 { SEALED_MAX } else { 1 };
        !self.comets.iter().any(|(server, rooms)| rooms.sealed() >= max && !is_late(server))
    }

    /// Takes a message for one comet in. What must leave now because it is full goes to `out`.
    pub(crate) fn add(
        &mut self,
        server: &ServerId,
        room: &RoomId,
        message: Message,
        now: Instant,
        out: &mut Vec<Batch>,
    ) {
        if !self.comets.contains_key(server) {
            let rooms = RoomsOfComet::new(server.clone(), self.config.clone(), Arc::clone(&self.in_flight));
            self.comets.insert(server.clone(), rooms);
        }
        if let Some(rooms) = self.comets.get_mut(server) {
            rooms.add(room, message, now, out);
        }
    }

    /// What need not wait: the messages of rooms that were quiet. To be called when a read is worked off.
    pub(crate) fn take_woken(&mut self, now: Instant, out: &mut Vec<Batch>) {
        self.comets.values_mut().for_each(|rooms| rooms.take_woken(now, out));
    }

    /// What was gathered in intervals that are over, and behind batches that were handed over.
    pub(crate) fn take_due(&mut self, now: Instant, out: &mut Vec<Batch>) {
        self.comets.values_mut().for_each(|rooms| rooms.take_due(now, out));
    }

    /// When [`Rooms::take_due`] has something to do next by the clock.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.comets.values().filter_map(RoomsOfComet::next_due).min()
    }

    /// Everything that waits, for the end.
    pub(crate) fn take_all(&mut self, out: &mut Vec<Batch>) {
        self.comets.values_mut().for_each(|rooms| rooms.take_all(out));
    }

    /// Forgets comets that are not there any more, as soon as nothing waits for them.
    pub(crate) fn forget_gone(&mut self, is_there: impl Fn(&ServerId) -> bool) {
        self.comets.retain(|server, rooms| !rooms.is_empty() || is_there(server));
    }
}

#[cfg(test)]
mod tests;
