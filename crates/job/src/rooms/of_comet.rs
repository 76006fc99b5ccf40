//! The rooms of one comet: which messages leave together, and when. Takes time as an argument and calls nobody.
//!
//! One batch of a room is on its way to the comet at a time. What comes meanwhile gathers and leaves together, so that batches grow
//! as the comet becomes slower, and a message waits for one batch before it and not for a row of them.
//!
//! All rooms have the same interval, so intervals end in the order in which they began: a plain queue is the timer.

use std::collections::{HashMap, VecDeque};
use std::mem;
use std::sync::{Arc, Mutex, PoisonError};

use goim_ports::{AcceptedAt, Payload, RoomId, RoomPush, Sequence, ServerId, Version};
use goim_wire::{HEADER_LEN, Packet, batch::BatchBuilder};
use tokio::time::Instant;

use super::{Batch, Message};
use crate::config::RoomConfig;
use crate::in_flight::{InFlight, Share};

/// The rooms that had a message for the comet within the last interval, or have one on its way to it.
#[derive(Debug)]
pub(super) struct RoomsOfComet {
    server: ServerId,
    config: RoomConfig,
    rooms: HashMap<RoomId, Room>,
    /// When intervals end, earliest first. An entry counts only if it is still its room's.
    ends: VecDeque<(Instant, RoomId)>,
    /// Rooms that were quiet and got a message by the present read.
    woken: Vec<RoomId>,
    landed: Arc<Landed>,
    /// Full batches that wait for the one before.
    sealed: usize,
}

#[derive(Debug, Default)]
struct Room {
    /// End of the interval that began with the last batch; `None` before the first one.
    ends: Option<Instant>,
    /// A batch is on its way. Whatever comes meanwhile gathers, so that batches grow with the load.
    is_out: bool,
    /// Full batches behind it.
    sealed: VecDeque<Waiting>,
    builder: BatchBuilder,
    shares: Vec<Share>,
    accepted_at: Option<AcceptedAt>,
    /// Of a message that is not plain: everything but the packet, which is alone in the builder.
    special: Option<Payload<()>>,
}

/// A batch that has not left.
#[derive(Debug)]
struct Waiting {
    push: RoomPush,
    shares: Vec<Share>,
}

/// The rooms whose batch the comet has, or will never have.
#[derive(Debug)]
struct Landed {
    rooms: Mutex<Vec<RoomId>>,
    in_flight: Arc<InFlight>,
}

impl Landed {
    fn take(&self) -> Vec<RoomId> {
        mem::take(&mut *self.rooms.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A batch on its way. Dropped when it was handed over or given up: then the room's next may leave.
#[derive(Debug)]
pub(crate) struct Flight {
    room: RoomId,
    landed: Arc<Landed>,
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.landed.rooms.lock().unwrap_or_else(PoisonError::into_inner).push(self.room.clone());
        // After that, so that whoever is told finds it.
        self.landed.in_flight.tell();
    }
}

impl RoomsOfComet {
    pub(super) fn new(server: ServerId, config: RoomConfig, in_flight: Arc<InFlight>) -> Self {
        let landed = Arc::new(Landed { rooms: Mutex::default(), in_flight });
        let (rooms, ends, woken) = Default::default();
        Self { server, config, rooms, ends, woken, landed, sealed: 0 }
    }

    /// How many full batches wait for the ones before them.
    pub(super) fn sealed(&self) -> usize {
        self.sealed
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rooms.is_empty()
    }

    /// Takes a message in. What must leave now because it is full goes to `out`.
    pub(super) fn add(&mut self, id: &RoomId, message: Message, now: Instant, out: &mut Vec<Batch>) {
        self.land(now, out);
        let packet = Packet {
            version: Version::GOIM,
            operation: message.operation,
            sequence: Sequence::NONE,
            body: message.payload.primary_bytes(),
        };
        let (bytes_max, messages_max) = (self.config.batch_bytes_max, self.config.batch_messages_max.get());
        let crowded = |room: &Room| {
            let bytes = room.builder.bytes_len() + HEADER_LEN + packet.body.len();
            !room.builder.is_empty() && (bytes > bytes_max || !message.payload.is_plain())
        };
        if self.rooms.get(id).is_some_and(crowded) {
            self.full(id, now, out);
        }
        let room = self.rooms.entry(id.clone()).or_default();
        if room.ends.is_none() && room.builder.is_empty() && !room.is_out {
            self.woken.push(id.clone());
        }
        room.builder.push(packet);
        room.shares.push(message.share);
        let oldest = room.accepted_at.map_or(message.accepted_at, |oldest| oldest.min(message.accepted_at));
        room.accepted_at = Some(oldest);
        let is_alone = !message.payload.is_plain();
        room.special = is_alone.then(|| message.payload.map(drop));
        if is_alone || room.builder.len() >= messages_max || room.builder.bytes_len() >= bytes_max {
            self.full(id, now, out);
        }
    }

    /// What need not wait: the messages of rooms that were quiet. To be called when a read is worked off.
    pub(super) fn take_woken(&mut self, now: Instant, out: &mut Vec<Batch>) {
        for id in mem::take(&mut self.woken) {
            if self.rooms.get(&id).is_some_and(|room| room.ends.is_none() && !room.is_out) {
                self.flush(&id, now, out);
            }
        }
    }

    /// What was gathered in intervals that are over, and behind batches that were handed over. A room that gathered
    /// nothing is forgotten.
    pub(super) fn take_due(&mut self, now: Instant, out: &mut Vec<Batch>) {
        while let Some((ends, id)) = self.ends.pop_front_if(|(ends, _)| *ends <= now) {
            if self.rooms.get(&id).is_some_and(|room| room.ends == Some(ends)) {
                self.go_on(&id, now, out);
            }
        }
        self.land(now, out);
    }

    /// Sees which batches were handed over, and has what waits behind them leave.
    fn land(&mut self, now: Instant, out: &mut Vec<Batch>) {
        for id in self.landed.take() {
            if let Some(room) = self.rooms.get_mut(&id) {
                room.is_out = false;
                self.go_on(&id, now, out);
            }
        }
    }

    /// Has the next batch of a room leave, if nothing is on its way and its time has come.
    fn go_on(&mut self, id: &RoomId, now: Instant, out: &mut Vec<Batch>) {
        let Some(room) = self.rooms.get_mut(id) else { return };
        if room.is_out {
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

    /// When [`RoomsOfComet::take_due`] has something to do next by the clock.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.ends.front().map(|(ends, _)| *ends)
    }

    /// Everything that waits, for the end.
    pub(super) fn take_all(&mut self, out: &mut Vec<Batch>) {
        self.ends.clear();
        self.woken.clear();
        self.sealed = 0;
        for (id, mut room) in self.rooms.drain() {
            let waiting = room.sealed.drain(..).collect::<Vec<_>>().into_iter().chain(room.take(&id));
            out.extend(waiting.map(|batch| fly(&self.server, batch, &self.landed)));
        }
    }

    /// A batch is full: it leaves, or stands behind the one that is on its way.
    fn full(&mut self, id: &RoomId, now: Instant, out: &mut Vec<Batch>) {
        match self.rooms.get_mut(id) {
            Some(room) if room.is_out => {
                if let Some(batch) = room.take(id) {
                    room.sealed.push_back(batch);
                    self.sealed += 1;
                }
            }
            _ => self.flush(id, now, out),
        }
    }

    fn flush(&mut self, id: &RoomId, now: Instant, out: &mut Vec<Batch>) {
        let batch = self.rooms.get_mut(id).and_then(|room| room.take(id));
        if let Some(batch) = batch {
            self.leave(id, batch, now, out);
        }
    }

    fn leave(&mut self, id: &RoomId, batch: Waiting, now: Instant, out: &mut Vec<Batch>) {
        let Some(room) = self.rooms.get_mut(id) else { return };
        let ends = now + self.config.batch_interval;
        (room.ends, room.is_out) = (Some(ends), true);
        self.ends.push_back((ends, id.clone()));
        out.push(fly(&self.server, batch, &self.landed));
    }
}

fn fly(server: &ServerId, batch: Waiting, landed: &Arc<Landed>) -> Batch {
    let Waiting { push, shares } = batch;
    let flight = Flight { room: push.room.clone(), landed: Arc::clone(landed) };
    Batch { server: server.clone(), push, shares, flight }
}

impl Room {
    fn take(&mut self, id: &RoomId) -> Option<Waiting> {
        if self.builder.is_empty() {
            return None;
        }
        let packet = mem::take(&mut self.builder).finish();
        let push = RoomPush {
            room: id.clone(),
            operation: packet.carried_operation(),
            payload: match self.special.take() {
                Some(special) => special.map(|()| packet),
                None => Payload::plain(packet),
            },
            accepted_at: self.accepted_at.take(),
        };
        Some(Waiting { push, shares: mem::take(&mut self.shares) })
    }
}
