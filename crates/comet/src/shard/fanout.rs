//! Sending what others publish: to keys, to a room, to all sessions.
//!
//! Owns which sessions a push is for and which of its variants each gets. When it is written is up
//! to `egress`.

use goim_ports::{Operation, RoomId, StoredAt};
use goim_session::{Admission, CloseReason, EncodedPush, QueueLimit};

use super::Shard;
use super::egress::Stage;
use crate::config::Config;
use crate::connection::{Connection, ConnectionId};
use crate::inbox::{Command, Queued};
use crate::message::Outgoing;
use crate::prefetch::BLOCK;
use crate::stats::Drop;

/// A push to at most this many receivers is flushed in the turn that queues it. Receivers of a push
/// to more wait in the flush queue, where several pushes can share a write.
const URGENT_MAX: usize = 32;

/// What was queued on the receivers of one command.
#[derive(Default)]
struct Deliveries {
    packets: usize,
    bytes: usize,
    /// How many of the receivers lag, and the last of them.
    lagging: usize,
    last_lagging: Option<ConnectionId>,
    /// Packets for sessions that were in the flush queue already: they cost no further write.
    joined: usize,
}

impl Deliveries {
    /// The last receiver, if all that took the push lag.
    fn all_lagging(&self) -> Option<ConnectionId> {
        self.last_lagging.filter(|_| self.lagging == self.packets)
    }
}

impl Shard {
    /// Queues the command's push on its receivers, or ends their sessions.
    pub(super) fn take_command(&mut self, queued: Queued) {
        let Queued { command, mut sends } = queued;
        self.idle.note_traffic(self.now);
        if let Some(reason) = command.push().disconnect_reason() {
            self.end_all(command, reason);
            return;
        }
        let ((stage, deliveries), accepted_at) = match command {
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
                self.begin_paced_broadcast(operation, push, pace, accepted_at);
                return;
            }
        };
        sends.joined(deliveries.joined, deliveries.packets);
        self.egress.begin(stage, deliveries.all_lagging(), accepted_at, sends, self.now);
    }

    /// Ends the sessions that a command is for.
    fn end_all(&mut self, command: Command, reason: CloseReason) {
        let slots: Vec<u32> = match command {
            Command::Push { targets, .. } => {
                self.located(targets).iter().filter_map(|target| self.connections.find(*target)).collect()
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

    fn send_to(
        &mut self,
        targets: &[ConnectionId],
        operation: Operation,
        push: &Outgoing,
    ) -> (Stage, Deliveries) {
        let limit = queue_limit(&self.shared.config, operation);
        let stage = stage_for(targets.len());
        let mut deliveries = Deliveries::default();
        for target in targets {
            match self.connections.find(*target) {
                Some(slot) if self.is_for(&self.connections[slot], operation, push) => {
                    self.deliver_counted(slot, push, limit, stage, &mut deliveries);
                }
                Some(_) => {}
                None => self.stats.dropped(Drop::Gone, 1),
            }
        }
        self.stats.packets_out(operation, deliveries.packets, deliveries.bytes);
        (stage, deliveries)
    }

    /// True when a push to keys is for this session. A session that syncs is notified of stored
    /// messages whatever it has subscribed to.
    fn is_for(&self, connection: &Connection, operation: Operation, push: &Outgoing) -> bool {
        connection.session.accepts(operation)
            || push.stored().is_some() && self.shared.profiles.syncs(connection.profile)
    }

    fn send_to_room(
        &mut self,
        room: &RoomId,
        hash: u64,
        operation: Operation,
        push: &Outgoing,
    ) -> (Stage, Deliveries) {
        let mut receivers = self.egress.take_receivers();
        receivers.extend_from_slice(self.rooms.members(hash, room));
        self.send_to_many(receivers, operation, push)
    }

    fn send_to_all(&mut self, operation: Operation, push: &Outgoing) -> (Stage, Deliveries) {
        let mut receivers = self.egress.take_receivers();
        let subscribed =
            self.connections.iter().filter(|(_, connection)| self.is_subscribed(connection, operation));
        receivers.extend(subscribed.map(|(slot, _)| slot));
        self.send_to_many(receivers, operation, push)
    }

    /// True when the session gets broadcasts of the operation. A session that syncs need not
    /// subscribe to notifications.
    pub(super) fn is_subscribed(&self, connection: &Connection, operation: Operation) -> bool {
        connection.session.accepts(operation)
            || operation == Operation::NOTIFY && self.shared.profiles.syncs(connection.profile)
    }

    fn send_to_many(
        &mut self,
        receivers: Vec<u32>,
        operation: Operation,
        push: &Outgoing,
    ) -> (Stage, Deliveries) {
        let limit = queue_limit(&self.shared.config, operation);
        let stage = stage_for(receivers.len());
        let mut deliveries = Deliveries::default();
        for block in receivers.chunks(BLOCK) {
            self.prefetch_receivers(block);
            for slot in block {
                self.deliver_counted(*slot, push, limit, stage, &mut deliveries);
            }
        }
        self.egress.recycle_receivers(receivers);
        self.stats.packets_out(operation, deliveries.packets, deliveries.bytes);
        (stage, deliveries)
    }

    fn deliver_counted(
        &mut self,
        slot: u32,
        push: &Outgoing,
        limit: QueueLimit,
        stage: Stage,
        deliveries: &mut Deliveries,
    ) {
        // Asked before the delivery, which puts the session into the queue.
        let joins = stage == Stage::Queued
            && self.connections.get(slot).is_some_and(|connection| connection.in_flush_queue);
        if let Some(bytes) = self.deliver(slot, push, limit, stage) {
            deliveries.packets += 1;
            deliveries.bytes += bytes;
            deliveries.joined += usize::from(joins);
            if stage == Stage::Urgent && self.egress.is_lagging(&self.connections[slot]) {
                deliveries.lagging += 1;
                deliveries.last_lagging = Some(self.connections.id(slot));
            }
        }
    }

    /// Returns the variant of a push that a session gets; `None` when it reads none of the bodies.
    #[inline]
    fn variant_for<'a>(&self, connection: &Connection, push: &'a Outgoing) -> Option<&'a EncodedPush> {
        // A push has no field for its sender. A v2 client never learns it; one that syncs learns it
        // from the notification.
        let tells_sender = |stored: &&StoredAt| {
            !stored.sender.is_anonymous()
                && connection.session.is_negotiated()
                && !self.shared.profiles.syncs(connection.profile)
        };
        match push.stored().filter(tells_sender) {
            Some(stored) => push.with_sender(stored),
            None => push.for_profile(connection.profile, &self.shared.profiles),
        }
    }

    /// Queues a push on one session and has it flushed. Returns its length in bytes; `None` when
    /// the session did not take it.
    pub(super) fn deliver(
        &mut self,
        slot: u32,
        push: &Outgoing,
        limit: QueueLimit,
        stage: Stage,
    ) -> Option<usize> {
        let connection = self.connections.get(slot)?;
        // Most pushes are of no timeline: they skip this condition, and the one in `variant_for`.
        if let Some(stored) = push.stored()
            && self.shared.profiles.syncs(connection.profile)
            && self.hold_notification(slot, stored)
        {
            return None;
        }
        let connection = self.connections.get(slot)?;
        let Some(push) = self.variant_for(connection, push) else {
            self.stats.dropped(Drop::Unreadable, 1);
            return None;
        };
        let bytes = push.len(connection.session.transport());
        let outbox = connection.session.outbox();
        if !outbox.is_empty() && connection.writable && !outbox.has_room(bytes, limit.bytes_max) {
            // The queue is full of what was not flushed yet, not because the client is slow. The
            // limit is for slow clients only: flush first.
            self.flush(slot);
        }
        // A flush can close and even remove the connection.
        let connection = self.connections.get_mut(slot)?;
        if connection.is_closing() || !connection.session.is_open() {
            self.stats.dropped(Drop::Gone, 1);
            return None;
        }
        match self.egress.push(connection, push, limit, self.now) {
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
            // Flushes everything that waits for the session, also what is queued for later.
            Stage::Urgent => self.egress.flush_urgently(slot, connection),
            Stage::Queued => self.egress.flush_in_order(slot, connection),
        }
        Some(bytes)
    }
}

/// Returns the bound of a session's queue for pushes of this operation, and the policy beyond it.
pub(super) fn queue_limit(config: &Config, operation: Operation) -> QueueLimit {
    let send = &config.send;
    let special = send.slow_consumer.iter().find(|(range, _)| range.contains(&operation.0));
    let policy = special.map_or(send.slow_consumer_default, |(_, policy)| *policy);
    QueueLimit { bytes_max: send.queue_bytes_max, policy }
}

fn stage_for(receivers: usize) -> Stage {
    if receivers <= URGENT_MAX { Stage::Urgent } else { Stage::Queued }
}
