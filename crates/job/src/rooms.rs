//! Which messages of a room travel together, and when. Takes time as an argument and calls nobody.
//!
//! One batch of a room is on its way at a time. What comes meanwhile gathers and leaves together, so that batches grow as
//! comets become slower, and a message waits for one batch before it and not for a row of them.
//!
//! All rooms have the same interval, so intervals end in the order in which they began: a plain queue is the timer.

use std::collections::{HashMap, VecDeque};
use std::mem;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use goim_ports::{AcceptedAt, Operation, RoomId, RoomPush, Sequence, Version};
use goim_wire::{HEADER_LEN, Packet, batch::BatchBuilder};
use tokio::time::Instant;

use crate::config::RoomConfig;
use crate::in_flight::Ticket;

/// The rooms that had a message within the last interval, or have one on its way.
#[derive(Debug)]
pub(crate) struct Rooms {
    config: RoomConfig,
    rooms: HashMap<RoomId, Room>,
    /// When intervals end, earliest first. An entry counts only if it is still its room's.
    ends: VecDeque<(Instant, RoomId)>,
    /// Rooms that were quiet and got a message by the present read.
    woken: Vec<RoomId>,
    /// Rooms whose batch has been handed over.
    landed: Arc<Mutex<Vec<RoomId>>>,
    /// Full batches that wait for the one before.
    sealed: usize,
}

#[derive(Debug, Default)]
struct Room {
    /// End of the interval that began with the last batch; `None` before the first one.
    ends: Option<Instant>,
    /// A batch is on its way. Whatever comes meanwhile gathers, so that batches grow with the load.
    out: bool,
    /// Full batches behind it.
    sealed: VecDeque<Batch>,
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
    pub(crate) flight: Flight,
}

/// A batch on its way. Dropped when it was handed over to every comet or given up: then the room's next may leave.
#[derive(Debug)]
pub(crate) struct Flight {
    room: RoomId,
    landed: Arc<Mutex<Vec<RoomId>>>,
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.landed.lock().unwrap_or_else(PoisonError::into_inner).push(self.room.clone());
    }
}

impl Rooms {
    pub(crate) fn new(config: RoomConfig) -> Self {
        let (rooms, ends, woken, landed) = Default::default();
        Self { config, rooms, ends, woken, landed, sealed: 0 }
    }

    /// False while a full batch waits for the one before it: then nothing more should be read.
    pub(crate) fn has_room(&self) -> bool {
        self.sealed == 0
    }

    /// Takes a message in. What must leave now because it is full goes to `out`.
    pub(crate) fn add(&mut self, id: &RoomId, message: Message, now: Instant, out: &mut Vec<Batch>) {
        self.land(now, out);
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
            self.full(id, now, out);
        }
        let room = self.rooms.entry(id.clone()).or_default();
        if room.ends.is_none() && room.builder.is_empty() && !room.out {
            self.woken.push(id.clone());
        }
        room.builder.push(packet);
        room.tickets.push(message.ticket);
        let oldest = room.accepted_at.map_or(message.accepted_at, |oldest| oldest.min(message.accepted_at));
        room.accepted_at = Some(oldest);
        if room.builder.len() >= messages_max || room.builder.bytes_len() >= bytes_max {
            self.full(id, now, out);
        }
    }

    /// What need not wait: the messages of rooms that were quiet. To be called when a read is worked off.
    pub(crate) fn take_woken(&mut self, now: Instant, out: &mut Vec<Batch>) {
        for id in mem::take(&mut self.woken) {
            if self.rooms.get(&id).is_some_and(|room| room.ends.is_none() && !room.out) {
                self.flush(&id, now, out);
            }
        }
    }

    /// What was gathered in intervals that are over, and behind batches that were handed over. A room that gathered
    /// nothing is forgotten.
    pub(crate) fn take_due(&mut self, now: Instant, out: &mut Vec<Batch>) {
        while let Some((ends, id)) = self.ends.pop_front_if(|(ends, _)| *ends <= now) {
            if self.rooms.get(&id).is_some_and(|room| room.ends == Some(ends)) {
                self.go_on(&id, now, out);
            }
        }
        self.land(now, out);
    }

    /// Sees which batches were handed over, and has what waits behind them leave.
    fn land(&mut self, now: Instant, out: &mut Vec<Batch>) {
        let landed = mem::take(&mut *self.landed.lock().unwrap_or_else(PoisonError::into_inner));
        for id in landed {
            if let Some(room) = self.rooms.get_mut(&id) {
                room.out = false;
                self.go_on(&id, now, out);
            }
        }
    }

    /// Has the next batch of a room leave, if nothing is on its way and its time has come.
    fn go_on(&mut self, id: &RoomId, now: Instant, out: &mut Vec<Batch>) {
        let Some(room) = self.rooms.get_mut(id) else { return };
        if room.out {
            return;
        }
        if let Some(batch) = room.sealed.pop_front() {
            self.sealed -= 1;
            self.leave(id, batch, now, out);
        } else if room.ends.is_none_or(|ends| ends <= now) {
            if room.builder.is_empty() {
                self.rooms.remove(id);
            } else {
                self.flush(id, now, out);
            }
        }
    }

    /// When [`Rooms::take_due`] has something to do next by the clock.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.ends.front().map(|(ends, _)| *ends)
    }

    /// Everything that waits, for the end.
    pub(crate) fn take_all(&mut self, out: &mut Vec<Batch>) {
        self.ends.clear();
        self.woken.clear();
        self.sealed = 0;
        for (id, mut room) in self.rooms.drain() {
            out.extend(room.sealed.drain(..));
            out.extend(room.take(&id, &self.landed));
        }
    }

    /// A batch is full: it leaves, or stands behind the one that is on its way.
    fn full(&mut self, id: &RoomId, now: Instant, out: &mut Vec<Batch>) {
        match self.rooms.get_mut(id) {
            Some(room) if room.out => {
                if let Some(batch) = room.take(id, &self.landed) {
                    room.sealed.push_back(batch);
                    self.sealed += 1;
                }
            }
            _ => self.flush(id, now, out),
        }
    }

    fn flush(&mut self, id: &RoomId, now: Instant, out: &mut Vec<Batch>) {
        let batch = self.rooms.get_mut(id).and_then(|room| room.take(id, &self.landed));
        if let Some(batch) = batch {
            self.leave(id, batch, now, out);
        }
    }

    fn leave(&mut self, id: &RoomId, batch: Batch, now: Instant, out: &mut Vec<Batch>) {
        let Some(room) = self.rooms.get_mut(id) else { return };
        let ends = now + self.config.batch_interval;
        (room.ends, room.out) = (Some(ends), true);
        self.ends.push_back((ends, id.clone()));
        out.push(batch);
    }
}

impl Room {
    fn take(&mut self, id: &RoomId, landed: &Arc<Mutex<Vec<RoomId>>>) -> Option<Batch> {
        if self.builder.is_empty() {
            return None;
        }
        let packet = mem::take(&mut self.builder).finish();
        let push = RoomPush { room: id.clone(), packet, accepted_at: self.accepted_at.take() };
        let flight = Flight { room: id.clone(), landed: Arc::clone(landed) };
        Some(Batch { push, tickets: mem::take(&mut self.tickets), flight })
    }
}

#[cfg(test)]
mod tests;
