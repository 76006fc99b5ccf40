//! Which messages of a room travel together, and when. Takes time as an argument and calls nobody.
//!
//! All rooms have the same interval, so intervals end in the order in which they began: a plain queue is the timer.

use std::collections::{HashMap, VecDeque};
use std::mem;

use bytes::Bytes;
use goim_ports::{AcceptedAt, Operation, RoomId, RoomPush, Sequence, Version};
use goim_wire::{HEADER_LEN, Packet, batch::BatchBuilder};
use tokio::time::Instant;

use crate::config::RoomConfig;
use crate::in_flight::Ticket;

/// The rooms that had a message within the last interval.
#[derive(Debug)]
pub(crate) struct Rooms {
    config: RoomConfig,
    rooms: HashMap<RoomId, Room>,
    /// When intervals end, earliest first. An entry counts only if it is still its room's.
    ends: VecDeque<(Instant, RoomId)>,
    /// Rooms that were quiet and got a message by the present read.
    woken: Vec<RoomId>,
}

#[derive(Debug, Default)]
struct Room {
    /// End of the interval that began with the last batch; `None` before the first one.
    ends: Option<Instant>,
    builder: BatchBuilder,
    tickets: Vec<Ticket>,
    accepted_at: Option<AcceptedAt>,
}

/// One message of a room.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) operation: Operation,
    pub(crate) body: Bytes,
    pub(crate) accepted_at: AcceptedAt,
    pub(crate) ticket: Ticket,
}

/// Messages of a room that travel together.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) push: RoomPush,
    pub(crate) tickets: Vec<Ticket>,
}

impl Rooms {
    pub(crate) fn new(config: RoomConfig) -> Self {
        Self { config, rooms: HashMap::new(), ends: VecDeque::new(), woken: Vec::new() }
    }

    /// Takes a message in. What must leave now because it is full goes to `out`.
    pub(crate) fn add(&mut self, id: &RoomId, message: Message, now: Instant, out: &mut Vec<Batch>) {
        let packet = Packet {
            version: Version::GOIM,
            operation: message.operation,
            sequence: Sequence::NONE,
            body: &message.body,
        };
        let (bytes_max, messages_max) = (self.config.batch_bytes_max, self.config.batch_messages_max.get());
        let crowded = |room: &Room| {
            !room.builder.is_empty() && room.builder.bytes_len() + HEADER_LEN + message.body.len() > bytes_max
        };
        if self.rooms.get(id).is_some_and(crowded) {
            self.flush(id, now, out);
        }
        let room = self.rooms.entry(id.clone()).or_default();
        if room.ends.is_none() && room.builder.is_empty() {
            self.woken.push(id.clone());
        }
        room.builder.push(packet);
        room.tickets.push(message.ticket);
        let oldest = room.accepted_at.map_or(message.accepted_at, |oldest| oldest.min(message.accepted_at));
        room.accepted_at = Some(oldest);
        if room.builder.len() >= messages_max || room.builder.bytes_len() >= bytes_max {
            self.flush(id, now, out);
        }
    }

    /// What need not wait: the messages of rooms that were quiet. To be called when a read is worked off.
    pub(crate) fn take_woken(&mut self, now: Instant, out: &mut Vec<Batch>) {
        for id in mem::take(&mut self.woken) {
            if self.rooms.get(&id).is_some_and(|room| room.ends.is_none()) {
                self.flush(&id, now, out);
            }
        }
    }

    /// What was gathered in intervals that are over. A room that gathered nothing is forgotten.
    pub(crate) fn take_due(&mut self, now: Instant, out: &mut Vec<Batch>) {
        while let Some((ends, id)) = self.ends.pop_front_if(|(ends, _)| *ends <= now) {
            match self.rooms.get(&id) {
                Some(room) if room.ends != Some(ends) => {}
                Some(room) if room.builder.is_empty() => drop(self.rooms.remove(&id)),
                Some(_) => self.flush(&id, now, out),
                None => {}
            }
        }
    }

    /// When [`Rooms::take_due`] has something to do next.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.ends.front().map(|(ends, _)| *ends)
    }

    /// Everything that waits, for the end.
    pub(crate) fn take_all(&mut self, out: &mut Vec<Batch>) {
        self.ends.clear();
        self.woken.clear();
        for (id, mut room) in self.rooms.drain() {
            out.extend(room.take(&id));
        }
    }

    fn flush(&mut self, id: &RoomId, now: Instant, out: &mut Vec<Batch>) {
        let Some(room) = self.rooms.get_mut(id) else { return };
        out.extend(room.take(id));
        let ends = now + self.config.batch_interval;
        room.ends = Some(ends);
        self.ends.push_back((ends, id.clone()));
    }
}

impl Room {
    fn take(&mut self, id: &RoomId) -> Option<Batch> {
        if self.builder.is_empty() {
            return None;
        }
        let packet = mem::take(&mut self.builder).finish();
        let push = RoomPush { room: id.clone(), packet, accepted_at: self.accepted_at.take() };
        Some(Batch { push, tickets: mem::take(&mut self.tickets) })
    }
}

#[cfg(test)]
mod tests;
