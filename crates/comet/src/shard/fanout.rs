//! Sending what others publish: to keys, to a room, to everybody.

use std::num::NonZeroU32;
use std::time::Duration;

use goim_ports::{AcceptedAt, Operation, RoomId};
use goim_session::{Admission, CloseReason, EncodedPush, Moment, QueueLimit};

use super::{Shard, queue_limit};
use crate::inbox::{Command, Pace};
use crate::stats::Drop;

/// How often a paced broadcast goes on.
pub(super) const PACE_TICK: Duration = Duration::from_millis(20);

/// A broadcast that goes out at a speed. New sessions may come while it does; they are not for it.
pub(super) struct PacedBroadcast {
    operation: Operation,
    push: EncodedPush,
    pace: Pace,
    accepted_at: Option<AcceptedAt>,
    /// The next slot to be looked at, and the last generation that was there at the start.
    cursor: usize,
    newest: u32,
    credit: f64,
    seen: Moment,
}

impl Shard {
    pub(super) fn take_command(&mut self, command: Command) {
        match command {
            Command::Push { targets, operation, push, accepted_at } => {
                let limit = queue_limit(&self.shared.config, operation);
                for target in targets {
                    match self.find(target) {
                        Some(slot) if self.connections[slot as usize].session.accepts(operation) => {
                            self.deliver(slot, operation, &push, limit);
                        }
                        Some(_) => {}
                        None => self.stats.dropped(Drop::Gone, 1),
                    }
                }
                self.accepted.extend(accepted_at);
            }
            Command::Room { room, operation, push, accepted_at } => {
                self.send_to_room(&room, operation, &push);
                self.accepted.extend(accepted_at);
            }
            Command::Broadcast { operation, push, pace: Some(pace), accepted_at } => {
                self.begin_paced(operation, push, pace, accepted_at);
            }
            Command::Broadcast { operation, push, pace: None, accepted_at } => {
                self.send_to_all(operation, &push);
                self.accepted.extend(accepted_at);
            }
        }
    }

    fn send_to_room(&mut self, room: &RoomId, operation: Operation, push: &EncodedPush) {
        let limit = queue_limit(&self.shared.config, operation);
        let mut receivers = std::mem::take(&mut self.receivers);
        receivers.clear();
        receivers.extend_from_slice(self.rooms.members(room));
        for slot in receivers.iter().copied() {
            self.deliver(slot, operation, push, limit);
        }
        self.receivers = receivers;
    }

    fn send_to_all(&mut self, operation: Operation, push: &EncodedPush) {
        let limit = queue_limit(&self.shared.config, operation);
        let mut receivers = std::mem::take(&mut self.receivers);
        receivers.clear();
        let wanting = self.connections.iter().filter(|(_, connection)| connection.session.accepts(operation));
        receivers.extend(wanting.map(|(slot, _)| slot as u32));
        for slot in receivers.iter().copied() {
            self.deliver(slot, operation, push, limit);
        }
        self.receivers = receivers;
    }

    /// Queues a push on one session, and flushes it at the end of the turn.
    fn deliver(&mut self, slot: u32, operation: Operation, push: &EncodedPush, limit: QueueLimit) {
        let Some(connection) = self.connections.get_mut(slot as usize) else { return };
        let len = push.bytes(connection.session.transport()).len();
        if connection.writable && !connection.session.outbox().has_room(len, limit.bytes_max) {
            // The queue is full of this turn's messages, not because the peer is slow.
            self.flush(slot);
        }
        let Some(connection) = self.connections.get_mut(slot as usize) else { return };
        if connection.closing.is_some() || !connection.session.is_open() {
            self.stats.dropped(Drop::Gone, 1);
            return;
        }
        match connection.session.push(&mut self.pool, push, limit) {
            Admission::Queued => {}
            Admission::DroppedOlder(count) => self.stats.dropped(Drop::Oldest, count),
            Admission::DroppedNewest => {
                self.stats.dropped(Drop::Newest, 1);
                return;
            }
            Admission::MustClose => {
                self.stats.dropped(Drop::Closed, 1);
                self.close(slot, CloseReason::SlowConsumer);
                return;
            }
        }
        self.stats.packets_out(operation, 1, len);
        self.stage(slot);
    }

    /// Writes what waits on a connection, as much as its socket takes.
    pub(super) fn flush(&mut self, slot: u32) {
        while let Some(connection) = self.connections.get_mut(slot as usize) {
            if !connection.writable {
                return;
            }
            if connection.session.outbox().is_empty() && !connection.socket.holds_output() {
                self.flushed(slot);
                return;
            }
            self.stats.writes.add(1);
            match connection.socket.write(connection.session.outbox(), &mut self.gather) {
                Ok(sent) => {
                    connection.session.written(&mut self.pool, sent.taken);
                    if sent.full {
                        connection.writable = false;
                        self.stats.blocked.up();
                    }
                }
                Err(error) => {
                    tracing::debug!(remote = %connection.remote, %error, "a write failed");
                    if connection.closing.is_some() {
                        self.remove(slot);
                    } else {
                        self.close(slot, CloseReason::ConnectionLost);
                    }
                    return;
                }
            }
        }
    }

    /// Everything is out: a closing connection ends, another may have room for replies and so for input again.
    fn flushed(&mut self, slot: u32) {
        let connection = &self.connections[slot as usize];
        if connection.closing.is_some() {
            self.end_stream(slot);
            return;
        }
        let rules = &self.rules[usize::from(connection.listener)];
        let input_waits = connection.readable || connection.unread.is_some();
        if input_waits && connection.throttled_until.is_none() && connection.session.wants_input(rules) {
            self.resume(slot);
        }
    }

    fn begin_paced(
        &mut self,
        operation: Operation,
        push: EncodedPush,
        pace: Pace,
        accepted_at: Option<AcceptedAt>,
    ) {
        let (newest, seen) = (self.generation, self.now);
        self.paced.push(PacedBroadcast {
            operation,
            push,
            pace,
            accepted_at,
            cursor: 0,
            newest,
            credit: 1.0,
            seen,
        });
        self.stats.paced_broadcasts.set(self.paced.len());
    }

    /// Sends the part of each paced broadcast that is due.
    pub(super) fn pace_broadcasts(&mut self) {
        if self.paced.is_empty() {
            return;
        }
        let mut paced = std::mem::take(&mut self.paced);
        paced.retain_mut(|broadcast| self.pace_one(broadcast));
        paced.append(&mut self.paced);
        self.paced = paced;
        self.stats.paced_broadcasts.set(self.paced.len());
    }

    /// False when the broadcast is complete.
    fn pace_one(&mut self, broadcast: &mut PacedBroadcast) -> bool {
        let passed = broadcast.seen.until(self.now).as_secs_f64();
        let speed = f64::from(NonZeroU32::get(broadcast.pace.speed));
        // At most a fifth of a second is made up for: smooth comes before exact.
        broadcast.credit = (broadcast.credit + passed * speed).min((speed / 5.0).max(1.0));
        broadcast.seen = self.now;
        let limit = queue_limit(&self.shared.config, broadcast.operation);
        while broadcast.credit >= 1.0 {
            let Some(slot) = self.next_paced(broadcast) else {
                self.accepted.extend(broadcast.accepted_at);
                return false;
            };
            broadcast.credit -= 1.0;
            self.deliver(slot, broadcast.operation, &broadcast.push, limit);
        }
        true
    }

    fn next_paced(&self, broadcast: &mut PacedBroadcast) -> Option<u32> {
        while broadcast.cursor < self.connections.capacity() {
            let slot = broadcast.cursor;
            broadcast.cursor += 1;
            let Some(connection) = self.connections.get(slot) else { continue };
            // Generations wrap; the difference tells older from newer.
            let newer = connection.id.generation.wrapping_sub(broadcast.newest) as i32 > 0;
            if !newer && connection.session.accepts(broadcast.operation) {
                return Some(slot as u32);
            }
        }
        None
    }
}
