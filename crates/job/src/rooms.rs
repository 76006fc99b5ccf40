//! Which messages of a room travel together, and when. Takes time as an argument and calls nobody.
//!
//! One batch of a room is on its way at a time. What comes meanwhile gathers and leaves together, so that batches grow as
//! comets become slower, and a message waits for one batch before it and not for a row of them.
//!
//! All rooms have the same interval, so intervals end in the order in which they began: a plain queue is the timer.

use std::collections::{HashMap, VecDeque};
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use goim_ports::{AcceptedAt, Operation, RoomId, RoomPush, Sequence, Version};
use goim_wire::{HEADER_LEN, Packet, batch::BatchBuilder};
use tokio::time::Instant;

use crate::config::RoomConfig;
use crate::in_flight::Ticket;
use crate::silence::LATE;

/// How long a batch that is out keeps its room's next back: a comet that hangs must not hold up the others until it is
/// given up. When one of several comets has answered it is [`LATE`], when none has it is this.
const OUT_MAX: Duration = Duration::from_secs(1);

/// The rooms that had a message within the last interval, or have one on its way.
#[derive(Debug)]
pub(crate) struct Rooms {
    config: RoomConfig,
    rooms: HashMap<RoomId, Room>,
    /// When intervals end, earliest first. An entry counts only if it is still its room's.
    ends: VecDeque<(Instant, RoomId)>,
    /// Rooms that were quiet and got a message by the present read.
    woken: Vec<RoomId>,
    /// Rooms whose batch has been handed over, with the number of that batch.
    landed: Arc<Mutex<Vec<(RoomId, u64)>>>,
    /// When a batch that is still out, and was answered by some, keeps its room's next back no longer; earliest first.
    late: VecDeque<(Instant, RoomId, u64, Arc<AtomicBool>)>,
    /// The same of one that nobody has answered.
    overdue: VecDeque<(Instant, RoomId, u64)>,
    /// Number of the next batch.
    next_flight: u64,
    /// Full batches that wait for the one before.
    sealed: usize,
}

#[derive(Debug, Default)]
struct Room {
    /// End of the interval that began with the last batch; `None` before the first one.
    ends: Option<Instant>,
    /// The number of the batch that is on its way. Whatever comes meanwhile gathers, so that batches grow with the load.
    out: Option<u64>,
    /// Full batches behind it.
    sealed: VecDeque<Waiting>,
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

/// A batch that has not left.
#[derive(Debug)]
struct Waiting {
    push: RoomPush,
    tickets: Vec<Ticket>,
}

/// A batch on its way. Dropped when it was handed over to every comet or given up: then the room's next may leave.
#[derive(Debug)]
pub(crate) struct Flight {
    room: RoomId,
    number: u64,
    landed: Arc<Mutex<Vec<(RoomId, u64)>>>,
    is_answered: Arc<AtomicBool>,
}

impl Flight {
    /// One comet is done with it.
    pub(crate) fn has_answer(&self) {
        self.is_answered.store(true, Ordering::Relaxed);
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let landed = (self.room.clone(), self.number);
        self.landed.lock().unwrap_or_else(PoisonError::into_inner).push(landed);
    }
}

impl Rooms {
    pub(crate) fn new(config: RoomConfig) -> Self {
        let (rooms, ends, woken, landed, late, overdue) = Default::default();
        Self { config, rooms, ends, woken, landed, late, overdue, next_flight: 0, sealed: 0 }
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
        if room.ends.is_none() && room.builder.is_empty() && room.out.is_none() {
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
            if self.rooms.get(&id).is_some_and(|room| room.ends.is_none() && room.out.is_none()) {
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
        while let Some((_, id, number, is_answered)) = self.late.pop_front_if(|(at, ..)| *at <= now) {
            if is_answered.load(Ordering::Relaxed) {
                self.is_no_longer_out(&id, number, now, out);
            }
        }
        while let Some((_, id, number)) = self.overdue.pop_front_if(|(at, ..)| *at <= now) {
            self.is_no_longer_out(&id, number, now, out);
        }
    }

    /// Sees which batches were handed over, and has what waits behind them leave.
    fn land(&mut self, now: Instant, out: &mut Vec<Batch>) {
        let landed = mem::take(&mut *self.landed.lock().unwrap_or_else(PoisonError::into_inner));
        for (id, number) in landed {
            self.is_no_longer_out(&id, number, now, out);
        }
    }

    fn is_no_longer_out(&mut self, id: &RoomId, number: u64, now: Instant, out: &mut Vec<Batch>) {
        if let Some(room) = self.rooms.get_mut(id)
            && room.out == Some(number)
        {
            room.out = None;
            self.go_on(id, now, out);
        }
    }

    /// Has the next batch of a room leave, if nothing is on its way and its time has come.
    fn go_on(&mut self, id: &RoomId, now: Instant, out: &mut Vec<Batch>) {
        let Some(room) = self.rooms.get_mut(id) else { return };
        if room.out.is_some() {
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
        let late = self.late.front().map(|(at, ..)| *at);
        let overdue = self.overdue.front().map(|(at, ..)| *at);
        let ends = self.ends.front().map(|(ends, _)| *ends);
        ends.into_iter().chain(late).chain(overdue).min()
    }

    /// Everything that waits, for the end.
    pub(crate) fn take_all(&mut self, out: &mut Vec<Batch>) {
        self.ends.clear();
        self.woken.clear();
        self.late.clear();
        self.overdue.clear();
        self.sealed = 0;
        for (id, mut room) in self.rooms.drain() {
            let waiting = room.sealed.drain(..).collect::<Vec<_>>().into_iter().chain(room.take(&id));
            out.extend(waiting.map(|batch| fly(batch, u64::MAX, &self.landed)));
        }
    }

    /// A batch is full: it leaves, or stands behind the one that is on its way.
    fn full(&mut self, id: &RoomId, now: Instant, out: &mut Vec<Batch>) {
        match self.rooms.get_mut(id) {
            Some(room) if room.out.is_some() => {
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
        let number = self.next_flight;
        self.next_flight += 1;
        (room.ends, room.out) = (Some(ends), Some(number));
        self.ends.push_back((ends, id.clone()));
        self.overdue.push_back((now + OUT_MAX, id.clone(), number));
        let batch = fly(batch, number, &self.landed);
        self.late.push_back((now + LATE, id.clone(), number, Arc::clone(&batch.flight.is_answered)));
        out.push(batch);
    }
}

fn fly(batch: Waiting, number: u64, landed: &Arc<Mutex<Vec<(RoomId, u64)>>>) -> Batch {
    let Waiting { push, tickets } = batch;
    let flight =
        Flight { room: push.room.clone(), number, landed: Arc::clone(landed), is_answered: Arc::default() };
    Batch { push, tickets, flight }
}

impl Room {
    fn take(&mut self, id: &RoomId) -> Option<Waiting> {
        if self.builder.is_empty() {
            return None;
        }
        let packet = mem::take(&mut self.builder).finish();
        let push = RoomPush { room: id.clone(), packet, accepted_at: self.accepted_at.take() };
        Some(Waiting { push, tickets: mem::take(&mut self.tickets) })
    }
}

#[cfg(test)]
mod tests;
