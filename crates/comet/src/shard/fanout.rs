//! Sending what others publish: to keys, to a room, to everybody.

use std::num::NonZeroU32;
use std::time::Duration;

use goim_ports::{AcceptedAt, Operation, RoomId, StoredAt};
use goim_session::{Admission, CloseReason, Millis, QueueLimit};

use super::foresee::BLOCK;
use super::{Shard, queue_limit};
use crate::connection::ConnectionId;
use crate::inbox::{Command, Pace, Queued, Sends};
use crate::message::Outgoing;
use crate::stats::Drop;

/// How often a paced broadcast goes on.
pub(super) const PACE_TICK: Duration = Duration::from_millis(20);

/// Receivers up to which a push is flushed in the turn that stages it; more of them take their turn in the ring.
const URGENT_MAX: usize = 32;

/// Bytes that may wait for each session on average before publishers have to wait, and at least in all.
const WAITING_BYTES_EACH: usize = 2 * 1024;
const WAITING_BYTES_MIN: usize = 4 * 1024 * 1024;
/// What one session counts for at most among the bytes that wait: a few slow readers, whatever waits for them, hold nobody
/// up.
const WAITING_BYTES_COUNTED: usize = 8 * 1024;
/// Bytes of pushes that wait for a session from which on it is behind what is published to it. A quarter of the queue's bound
/// is enough where that is less.
const BEHIND_BYTES: usize = 64 * 1024;
/// How long a command counts as not over because sockets are full: after that the sessions' own queues and policies have
/// the word, so that peers that have died together hold nobody up for longer. It is also how long a session that is behind is
/// taken for one that reads after its socket has last taken something: a client's machine may stop for some hundred
/// milliseconds, and who does not read must not keep anybody waiting.
const FULL_PATIENCE: Duration = Duration::from_secs(1);

/// A command that is staged: over when the ring has come to where it was then.
pub(super) struct Work {
    /// Count of sessions that will have left the ring when all of this one's have.
    until: u64,
    began: Millis,
    accepted_at: Option<AcceptedAt>,
    /// The last receiver, when all that took the message were behind when they did.
    behind: Option<ConnectionId>,
    _sends: Sends,
}

/// Where a push waits for its flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Flushed in this turn.
    Urgent,
    /// Flushed when its turn comes in the ring.
    Ring,
}

/// What was queued for the receivers of one command.
#[derive(Default)]
struct Sent {
    packets: usize,
    bytes: usize,
    /// How many of the receivers are behind, and the last of them.
    behind: usize,
    last_behind: Option<ConnectionId>,
    /// How many of the packets joined others that wait in the ring already.
    joined: usize,
}

impl Sent {
    /// The last receiver, if all that took the message are behind.
    fn all_behind(&self) -> Option<ConnectionId> {
        self.last_behind.filter(|_| self.behind == self.packets)
    }

    fn staged(&self, stage: Stage) -> Staged {
        Staged { stage, behind: self.all_behind(), receivers: self.packets, joined: self.joined }
    }
}

/// How a command was staged.
struct Staged {
    stage: Stage,
    /// What [`Work::behind`] is to say.
    behind: Option<ConnectionId>,
    /// Sessions that took it, and those of them that something waited for in the ring already: they cost no further send.
    receivers: usize,
    joined: usize,
}

/// A broadcast that goes out at a speed. New sessions may come while it does; they are not for it.
pub(super) struct PacedBroadcast {
    operation: Operation,
    push: Outgoing,
    pace: Pace,
    accepted_at: Option<AcceptedAt>,
    /// The next slot to be looked at, and the last generation that was there at the start.
    cursor: u32,
    newest: u32,
    credit: f64,
    seen: Millis,
}

impl Shard {
    pub(super) fn take_command(&mut self, queued: Queued) {
        let Queued { command, mut sends } = queued;
        self.traffic_seen = Some(self.now);
        if let Some(reason) = command.push().end() {
            self.end_all(command, reason);
            return;
        }
        let (Staged { stage, behind, joined, receivers }, accepted_at) = match command {
            Command::Push { targets, operation, push, accepted_at } => {
                (self.send_to(&self.located(targets), operation, &push), accepted_at)
            }
            Command::Room { room, hash, operation, push, accepted_at } => {
                (self.send_to_room(&room, hash, operation, &push), accepted_at)
            }
            Command::Broadcast { operation, push, pace: None, accepted_at } => {
                (self.send_to_all(operation, &push), accepted_at)
            }
            Command::Broadcast { operation, push, pace: Some(pace), accepted_at } => {
                self.begin_paced(operation, push, pace, accepted_at);
                return;
            }
        };
        sends.joined(joined, receivers);
        let until = self.ring_left + self.ring.len() as u64;
        let work = Work { until, began: self.now, accepted_at, behind, _sends: sends };
        match stage {
            Stage::Urgent => self.works_of_turn.push(work),
            Stage::Ring => self.works.push_back(work),
        }
    }

    /// Ends the sessions that a command is for.
    fn end_all(&mut self, command: Command, reason: CloseReason) {
        let slots: Vec<u32> = match command {
            Command::Push { targets, .. } => {
                self.located(targets).iter().filter_map(|target| self.find(*target)).collect()
            }
            Command::Room { room, hash, .. } => self.rooms.members(hash, &room).to_vec(),
            Command::Broadcast { .. } => self.connections.iter().map(|(slot, _)| slot).collect(),
        };
        for slot in slots {
            if self.connections.get(slot).is_some_and(|connection| connection.session.is_open()) {
                self.close(slot, reason);
            }
        }
    }

    /// Sees which commands are over: their latency is counted, and others may come in their place.
    pub(super) fn end_works(&mut self) {
        self.end_urgent_works();
        let sockets_are_full = self.sockets_are_full();
        while let Some(work) = self.works.front().filter(|work| work.until <= self.ring_left) {
            if sockets_are_full && self.now < work.began.after(FULL_PATIENCE) {
                return;
            }
            let accepted_at = self.works.pop_front().and_then(|work| work.accepted_at);
            self.count_latency(accepted_at, AcceptedAt::now());
        }
    }

    /// A push to few is over when it is flushed, unless all its receivers are behind still, and read: who publishes to them
    /// faster than they read has to wait, or their queues would run over.
    fn end_urgent_works(&mut self) {
        if self.late.is_empty() && self.works_of_turn.is_empty() {
            return;
        }
        let now = AcceptedAt::now();
        while self.late.front().is_some_and(|work| !self.is_late(work)) {
            let accepted_at = self.late.pop_front().and_then(|work| work.accepted_at);
            self.count_latency(accepted_at, now);
        }
        let mut works = std::mem::take(&mut self.works_of_turn);
        for work in works.drain(..) {
            if self.is_late(&work) {
                self.late.push_back(work);
            } else {
                self.count_latency(work.accepted_at, now);
            }
        }
        self.works_of_turn = works;
    }

    fn is_late(&self, work: &Work) -> bool {
        let Some(slot) = work.behind.and_then(|receiver| self.find(receiver)) else { return false };
        let drained_at = self.connections[slot].drained_at();
        let drains = drained_at.is_some_and(|at| self.now < at.after(FULL_PATIENCE));
        drains && self.now < work.began.after(FULL_PATIENCE) && self.is_behind(slot)
    }

    fn is_behind(&self, slot: u32) -> bool {
        self.connections[slot].session.outbox().push_bytes() > self.behind_bytes()
    }

    fn behind_bytes(&self) -> usize {
        BEHIND_BYTES.min(self.shared.config.send.queue_bytes_max / 4)
    }

    /// True when much waits for many sessions: then it is not some slow readers that must not hold up the others, but the
    /// network or the machine of all of them, and publishers have to wait for it.
    fn sockets_are_full(&self) -> bool {
        self.waiting_bytes > WAITING_BYTES_MIN.max(self.connections.len() * WAITING_BYTES_EACH)
    }

    /// Keeps the count of bytes of pushes that wait when those of a session have changed from so many bytes to so many.
    pub(super) fn outbox_changed(&mut self, before: usize, after: usize) {
        let counted = |len: usize| len.min(WAITING_BYTES_COUNTED);
        self.waiting_bytes = (self.waiting_bytes + counted(after)).saturating_sub(counted(before));
    }

    fn count_latency(&self, accepted_at: Option<AcceptedAt>, now: AcceptedAt) {
        if let Some(accepted_at) = accepted_at {
            self.stats.push_latency.observe(accepted_at.until(now));
        }
    }

    fn send_to(&mut self, targets: &[ConnectionId], operation: Operation, push: &Outgoing) -> Staged {
        let limit = queue_limit(&self.shared.config, operation);
        let stage = if targets.len() <= URGENT_MAX { Stage::Urgent } else { Stage::Ring };
        let mut sent = Sent::default();
        for target in targets {
            match self.find(*target) {
                Some(slot) if self.wants(slot, operation, push) => {
                    self.deliver_counted(slot, push, limit, stage, &mut sent);
                }
                Some(_) => {}
                None => self.stats.dropped(Drop::Gone, 1),
            }
        }
        self.stats.packets_out(operation, sent.packets, sent.bytes);
        sent.staged(stage)
    }

    /// Whether a message to keys is for this session.
    fn wants(&self, slot: u32, operation: Operation, push: &Outgoing) -> bool {
        let connection = &self.connections[slot];
        connection.session.accepts(operation)
            || push.stored().is_some() && self.shared.versions.syncs(connection.class)
    }

    fn send_to_room(&mut self, room: &RoomId, hash: u64, operation: Operation, push: &Outgoing) -> Staged {
        let mut receivers = std::mem::take(&mut self.receivers);
        receivers.clear();
        receivers.extend_from_slice(self.rooms.members(hash, room));
        let staged = self.send_to_many(&receivers, operation, push);
        self.receivers = receivers;
        staged
    }

    fn send_to_all(&mut self, operation: Operation, push: &Outgoing) -> Staged {
        let mut receivers = std::mem::take(&mut self.receivers);
        receivers.clear();
        // Whoever syncs need not ask for words of timelines.
        let is_word = operation == Operation::NOTIFY;
        let versions = &self.shared.versions;
        let wanting = self.connections.iter().filter(|(_, connection)| {
            connection.session.accepts(operation) || is_word && versions.syncs(connection.class)
        });
        receivers.extend(wanting.map(|(slot, _)| slot));
        let staged = self.send_to_many(&receivers, operation, push);
        self.receivers = receivers;
        staged
    }

    fn send_to_many(&mut self, receivers: &[u32], operation: Operation, push: &Outgoing) -> Staged {
        let limit = queue_limit(&self.shared.config, operation);
        let stage = if receivers.len() <= URGENT_MAX { Stage::Urgent } else { Stage::Ring };
        let mut sent = Sent::default();
        for block in receivers.chunks(BLOCK) {
            self.foresee(block);
            for slot in block {
                self.deliver_counted(*slot, push, limit, stage, &mut sent);
            }
        }
        self.stats.packets_out(operation, sent.packets, sent.bytes);
        sent.staged(stage)
    }

    fn deliver_counted(
        &mut self,
        slot: u32,
        push: &Outgoing,
        limit: QueueLimit,
        stage: Stage,
        sent: &mut Sent,
    ) {
        let joins =
            stage == Stage::Ring && self.connections.get(slot).is_some_and(|connection| connection.in_ring);
        if let Some(bytes) = self.deliver(slot, push, limit, stage) {
            sent.packets += 1;
            sent.bytes += bytes;
            sent.joined += usize::from(joins);
            if stage == Stage::Urgent && self.is_behind(slot) {
                let generation = self.connections[slot].generation;
                sent.behind += 1;
                sent.last_behind = Some(ConnectionId { slot, generation });
            }
        }
    }

    /// Queues a push on one session and has it flushed. Gives the bytes that it takes; `None` when the session did not take it.
    fn deliver(&mut self, slot: u32, push: &Outgoing, limit: QueueLimit, stage: Stage) -> Option<usize> {
        let behind_bytes = self.behind_bytes();
        let connection = self.connections.get_mut(slot)?;
        if let Some(stored) = push.stored()
            && self.shared.versions.syncs(connection.class)
            && self.hold_word(slot, stored)
        {
            return None;
        }
        let connection = self.connections.get_mut(slot)?;
        // A client of goim's cannot be told; who syncs is told along with the word.
        let tells_sender = |stored: &&StoredAt| {
            !stored.sender.is_anonymous()
                && connection.session.is_negotiated()
                && !self.shared.versions.syncs(connection.class)
        };
        let push = match push.stored().filter(tells_sender) {
            Some(stored) => push.with_sender(stored),
            None => push.for_class(connection.class, &self.shared.versions),
        };
        let Some(push) = push else {
            self.stats.dropped(Drop::Unreadable, 1);
            return None;
        };
        if !connection.session.outbox().is_empty() && connection.writable {
            let len = push.len(connection.session.transport());
            if !connection.session.outbox().has_room(len, limit.bytes_max) {
                // The queue is full of what was not flushed yet, not because the peer is slow.
                self.flush(slot);
            }
        }
        let connection = self.connections.get_mut(slot)?;
        if connection.is_closing() || !connection.session.is_open() {
            self.stats.dropped(Drop::Gone, 1);
            return None;
        }
        let bytes = push.len(connection.session.transport());
        let before = connection.session.outbox().push_bytes();
        let admission = connection.session.push(&mut self.pool, push, limit);
        let after = connection.session.outbox().push_bytes();
        if before <= behind_bytes && after > behind_bytes {
            connection.set_drained_at(Some(self.now));
        }
        self.outbox_changed(before, after);
        match admission {
            Admission::Queued => {}
            Admission::DroppedOlder(count) => self.stats.dropped(Drop::Oldest, count),
            Admission::DroppedNewest => {
                self.stats.dropped(Drop::Newest, 1);
                return None;
            }
            Admission::MustClose => {
                self.stats.dropped(Drop::Closed, 1);
                self.close(slot, CloseReason::SlowConsumer);
                return None;
            }
        }
        match stage {
            // What stands in the ring already goes out now, with everything before it.
            Stage::Urgent => self.stage(slot),
            Stage::Ring => self.stage_in_ring(slot),
        }
        Some(bytes)
    }

    /// Writes what waits on a connection, as much as its socket takes.
    pub(super) fn flush(&mut self, slot: u32) {
        let behind_bytes = self.behind_bytes();
        while let Some(connection) = self.connections.get_mut(slot) {
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
                    let before = connection.session.outbox().push_bytes();
                    connection.session.written(&mut self.pool, sent.taken);
                    let after = connection.session.outbox().push_bytes();
                    if before > behind_bytes && sent.taken > 0 {
                        connection.set_drained_at((after > behind_bytes).then_some(self.now));
                    }
                    if sent.full {
                        connection.writable = false;
                        self.stats.blocked.up();
                    }
                    self.outbox_changed(before, after);
                }
                Err(error) => {
                    tracing::debug!(remote = %connection.remote(), %error, "a write failed");
                    if connection.is_closing() {
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
        let connection = &self.connections[slot];
        if connection.is_closing() {
            self.end_stream(slot);
            return;
        }
        if connection.is_syncing() {
            self.release_words(slot);
            self.resume_positions(slot);
        }
        let connection = &self.connections[slot];
        let rules = &self.rules[usize::from(connection.listener)];
        let input_waits = connection.readable || connection.has_unread();
        if input_waits && connection.throttled_until().is_none() && connection.session.wants_input(rules) {
            self.resume(slot);
        }
    }

    fn begin_paced(
        &mut self,
        operation: Operation,
        push: Outgoing,
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
                self.count_latency(broadcast.accepted_at, AcceptedAt::now());
                return false;
            };
            broadcast.credit -= 1.0;
            if let Some(bytes) = self.deliver(slot, &broadcast.push, limit, Stage::Urgent) {
                self.stats.packets_out(broadcast.operation, 1, bytes);
            }
        }
        true
    }

    fn next_paced(&self, broadcast: &mut PacedBroadcast) -> Option<u32> {
        while broadcast.cursor < self.connections.end() {
            let slot = broadcast.cursor;
            broadcast.cursor += 1;
            let Some(connection) = self.connections.get(slot) else { continue };
            // Generations wrap; the difference tells older from newer.
            let newer = connection.generation.wrapping_sub(broadcast.newest) as i32 > 0;
            let is_word = broadcast.operation == Operation::NOTIFY;
            let syncs = is_word && self.shared.versions.syncs(connection.class);
            if !newer && (syncs || connection.session.accepts(broadcast.operation)) {
                return Some(slot);
            }
        }
        None
    }
}
