//! The rooms of one comet: which messages form a batch, and when it leaves. Does no I/O; time is an
//! argument.
//!
//! At most one batch of a room is in flight to the comet. Messages that arrive meanwhile gather for
//! the next one, so batches grow as the comet slows down, and a message waits for one earlier batch
//! at most, not for a queue of them. All rooms have the same interval, so intervals end in the
//! order in which they began: a plain queue serves as timer.

use std::collections::{HashMap, VecDeque};
use std::mem;
use std::sync::Arc;

use goim_ports::{AcceptedAt, Payload, PushRecord, RoomId, RoomPush, Sequence, ServerId, Version};
use goim_wire::{HEADER_LEN, Packet, batch::BatchBuilder};
use tokio::time::Instant;

use crate::completion::{Ack, Acked, BatchGuard, CompletionGuard};
use crate::config::RoomConfig;
use crate::delivery::{Delivery, Push};
use crate::in_flight::InFlight;

/// The rooms that had a message for the comet within the last interval, or have a batch in flight.
#[derive(Debug)]
pub(super) struct CometRooms {
    server: ServerId,
    config: RoomConfig,
    rooms: HashMap<RoomId, Room>,
    /// Ends of intervals, earliest first. An entry is valid only if it equals its room's
    /// `interval_end`.
    interval_ends: VecDeque<(Instant, RoomId)>,
    /// Rooms that were idle and got a message in the current read.
    activated: Vec<RoomId>,
    acked: Arc<Acked>,
    /// The number of full batches that wait for an earlier one, over all rooms.
    full_batches: usize,
}

#[derive(Debug, Default)]
struct Room {
    /// The end of the interval that began with the last batch; `None` before the first batch.
    interval_end: Option<Instant>,
    is_in_flight: bool,
    /// Full batches that wait for the one in flight.
    full: VecDeque<Delivery>,
    builder: BatchBuilder,
    acks: Vec<Ack>,
    /// Of the oldest message in `builder`.
    accepted_at: Option<AcceptedAt>,
    /// Of a message that is not plain: its payload without the packet, which is alone in `builder`.
    special: Option<Payload<()>>,
}

impl CometRooms {
    pub(super) fn new(server: ServerId, config: RoomConfig, in_flight: Arc<InFlight>) -> Self {
        let (rooms, interval_ends, activated) = Default::default();
        Self {
            server,
            config,
            rooms,
            interval_ends,
            activated,
            acked: Acked::new(in_flight),
            full_batches: 0,
        }
    }

    pub(super) fn full_batches(&self) -> usize {
        self.full_batches
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rooms.is_empty()
    }

    /// Adds a message. A full batch is added to `out` unless an earlier one is in flight.
    pub(super) fn add(
        &mut self,
        id: &RoomId,
        record: &PushRecord,
        ack: Ack,
        now: Instant,
        out: &mut Vec<Delivery>,
    ) {
        self.process_acked(now, out);
        let packet = Packet {
            version: Version::GOIM,
            operation: record.operation,
            sequence: Sequence::NONE,
            body: record.payload.primary_bytes(),
        };
        let (bytes_max, messages_max) = (self.config.batch_bytes_max, self.config.batch_messages_max.get());
        // The rest of a payload applies to one message, so such a message is a separate batch.
        let is_alone = !record.payload.is_plain();
        let has_no_space = |room: &Room| {
            let bytes = room.builder.bytes_len() + HEADER_LEN + packet.body.len();
            !room.builder.is_empty() && (bytes > bytes_max || is_alone)
        };
        if self.rooms.get(id).is_some_and(has_no_space) {
            self.seal(id, now, out);
        }
        let room = self.rooms.entry(id.clone()).or_default();
        if room.interval_end.is_none() && room.builder.is_empty() && !room.is_in_flight {
            self.activated.push(id.clone());
        }
        room.builder.push(packet);
        room.acks.push(ack);
        let oldest = room.accepted_at.map_or(record.accepted_at, |oldest| oldest.min(record.accepted_at));
        room.accepted_at = Some(oldest);
        room.special = is_alone.then(|| record.payload.clone().map(drop));
        if is_alone || room.builder.len() >= messages_max || room.builder.bytes_len() >= bytes_max {
            self.seal(id, now, out);
        }
    }

    /// Takes the batches of rooms that were idle before this read: they need not wait for an
    /// interval.
    pub(super) fn take_activated(&mut self, now: Instant, out: &mut Vec<Delivery>) {
        for id in mem::take(&mut self.activated) {
            if self.rooms.get(&id).is_some_and(|room| room.interval_end.is_none() && !room.is_in_flight) {
                self.flush(&id, now, out);
            }
        }
    }

    /// Takes the batches whose interval has ended or whose previous batch has completed.
    ///
    /// A room that gathered nothing in its interval is removed.
    pub(super) fn take_due(&mut self, now: Instant, out: &mut Vec<Delivery>) {
        while let Some((end, id)) = self.interval_ends.pop_front_if(|(end, _)| *end <= now) {
            if self.rooms.get(&id).is_some_and(|room| room.interval_end == Some(end)) {
                self.dispatch_next(&id, now, out);
            }
        }
        self.process_acked(now, out);
    }

    /// Returns when the next interval ends.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.interval_ends.front().map(|(end, _)| *end)
    }

    /// Takes all batches, for the drain.
    pub(super) fn take_all(&mut self, out: &mut Vec<Delivery>) {
        self.interval_ends.clear();
        self.activated.clear();
        self.full_batches = 0;
        for (id, mut room) in self.rooms.drain() {
            let rest = room.take_batch(&self.server, &id);
            out.extend(room.full);
            out.extend(rest);
        }
    }

    /// Processes completed batches and dispatches what waited for them.
    fn process_acked(&mut self, now: Instant, out: &mut Vec<Delivery>) {
        for id in self.acked.take() {
            if let Some(room) = self.rooms.get_mut(&id) {
                room.is_in_flight = false;
                self.dispatch_next(&id, now, out);
            }
        }
    }

    /// Dispatches the next batch of a room if none is in flight and the interval has ended.
    ///
    /// A full batch does not wait for the interval. A room without messages at its end is idle
    /// again.
    fn dispatch_next(&mut self, id: &RoomId, now: Instant, out: &mut Vec<Delivery>) {
        let Some(room) = self.rooms.get_mut(id) else { return };
        if room.is_in_flight {
            return;
        }
        if let Some(batch) = room.full.pop_front() {
            self.full_batches -= 1;
            self.dispatch(id, batch, now, out);
        } else if room.interval_end.is_none_or(|end| end <= now) {
            if room.builder.is_empty() {
                self.rooms.remove(id);
            } else {
                self.flush(id, now, out);
            }
        }
    }

    /// Closes a full batch: dispatches it, or queues it if an earlier one is in flight.
    fn seal(&mut self, id: &RoomId, now: Instant, out: &mut Vec<Delivery>) {
        match self.rooms.get_mut(id) {
            Some(room) if room.is_in_flight => {
                if let Some(batch) = room.take_batch(&self.server, id) {
                    room.full.push_back(batch);
                    self.full_batches += 1;
                }
            }
            _ => self.flush(id, now, out),
        }
    }

    fn flush(&mut self, id: &RoomId, now: Instant, out: &mut Vec<Delivery>) {
        let batch = self.rooms.get_mut(id).and_then(|room| room.take_batch(&self.server, id));
        if let Some(batch) = batch {
            self.dispatch(id, batch, now, out);
        }
    }

    fn dispatch(&mut self, id: &RoomId, mut batch: Delivery, now: Instant, out: &mut Vec<Delivery>) {
        let Some(room) = self.rooms.get_mut(id) else { return };
        let end = now + self.config.batch_interval;
        (room.interval_end, room.is_in_flight) = (Some(end), true);
        self.interval_ends.push_back((end, id.clone()));
        // Only now: a guard that is dropped reports the room's batch in flight as completed.
        if let CompletionGuard::Batch(_, guard) = &mut batch.guard {
            *guard = Some(BatchGuard::new(id.clone(), &self.acked));
        }
        out.push(batch);
    }
}

impl Room {
    /// Takes what has gathered as a batch; `None` if it is empty.
    fn take_batch(&mut self, server: &ServerId, id: &RoomId) -> Option<Delivery> {
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
        let guard = CompletionGuard::Batch(mem::take(&mut self.acks), None);
        Some(Delivery::new(server.clone(), Push::Room(push), guard))
    }
}
