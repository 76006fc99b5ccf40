//! Sessions that sync: their requests about timelines, where they resume, and the words that wait while a socket is full.
//!
//! comet keeps no timeline. It sees to it that a session asks only for what it may read, tells logic whether it is in the room that it
//! sends to, and lets words of the same timeline become one while they cannot be sent: the newest says all that the older ones do.

use bytes::Bytes;
use goim_ports::{
    Call, LogicError, Operation, PacketBuf, Position, ResumePosition, Sequence, StoredAt, TimelineCall,
    TimelineId, TimelineRequest,
};
use goim_session::{EncodedPush, QueueLimit, RequestFailure, SlowConsumerPolicy};
use goim_wire::sync::{self, Body as _};

use super::Shard;
use crate::connection::{ConnectionId, Identity};
use crate::inbox::Notice;
use crate::message::notify_packet;

/// Timelines of which a session can be behind at once: its inbox, and the rooms that it may be in. Of more the word is dropped, as it
/// would be when a queue is full.
const HELD_MAX: usize = 1024;

impl Shard {
    /// Operations 4, 21 and 23 of an negotiated client. True when the packet is one of them: then it is dealt with.
    pub(super) fn is_about_timelines(operation: Operation) -> bool {
        [Operation::SEND, Operation::SYNC, Operation::ACK].contains(&operation)
    }

    /// Sends a request about a timeline to logic, once it is sure that the session may make it. The session reads no
    /// further packet until the answer is received.
    pub(super) fn ask_about_timeline(&mut self, slot: u32, packet: PacketBuf) {
        let PacketBuf { operation, sequence, body, .. } = packet;
        // A body without a readable timeline goes to logic, which says what is wrong, or has a route for it.
        let timeline = named_timeline(operation, body.clone());
        let call = match operation {
            Operation::SEND => TimelineCall::Send { body, is_room_member: self.is_in_room(slot, timeline) },
            _ => {
                if timeline.is_some_and(|timeline| !self.may_read(slot, &timeline)) {
                    let failure = RequestFailure::Failed;
                    let detail = "the timeline is not one that this session may read";
                    self.fail_request(slot, failure.code(), failure.label(), detail);
                    return;
                }
                if operation == Operation::ACK { TimelineCall::Ack(body) } else { TimelineCall::Sync(body) }
            }
        };
        let Some(request) = self.timeline_request(slot, sequence, call) else { return };
        let connection = &self.connections[slot];
        let id = ConnectionId { slot, generation: connection.generation };
        match self.shared.logic.timeline(request) {
            Call::Ready(result) => self.replied(slot, result),
            Call::Pending(answer) => {
                let own = self.peers[self.index].clone();
                self.shared.runtime.spawn(async move {
                    own.notice(Notice::Replied { connection: id, result: answer.await });
                });
            }
        }
    }

    fn is_in_room(&self, slot: u32, timeline: Option<TimelineId>) -> bool {
        let Some(TimelineId::Room(room)) = timeline else { return false };
        let place = self.rooms.find(room.as_str());
        let mut own = self.connections[slot].memberships();
        place.is_some_and(|place| own.any(|membership| membership.is_in(place)))
    }

    fn timeline_request(&self, slot: u32, sequence: Sequence, call: TimelineCall) -> Option<TimelineRequest> {
        let connection = self.connections.get(slot)?;
        let Identity { mid, key } = connection.identity.clone()?;
        Some(TimelineRequest { mid, key, protover: connection.session.protover(), sequence, call })
    }

    fn may_read(&self, slot: u32, timeline: &TimelineId) -> bool {
        let connection = &self.connections[slot];
        match timeline {
            TimelineId::Inbox(mid) => {
                connection.identity.as_ref().is_some_and(|identity| identity.mid == *mid)
            }
            TimelineId::Room(room) => connection.scope().is_none_or(|scope| scope.allows(room.as_str())),
        }
    }

    /// The answer to such a request.
    pub(super) fn replied_about_timeline(&mut self, slot: u32, body: &Bytes) {
        let connection = &mut self.connections[slot];
        if let Some(operation) = connection.session.reply_control(&mut self.pool, body) {
            self.stats.packets_out(operation, 1, goim_wire::HEADER_LEN + body.len());
        }
        self.stage(slot);
    }

    /// Goes on giving a session what comes behind the positions that it came with: one after the other, and none while much waits.
    pub(super) fn resume_positions(&mut self, slot: u32) {
        loop {
            let Some(connection) = self.connections.get_mut(slot) else { return };
            let rules = &self.rules[usize::from(connection.listener)];
            let is_full = connection.session.outbox().reply_bytes() > rules.reply_bytes_max;
            if is_full || connection.is_closing() || !connection.session.is_open() {
                return;
            }
            let id = ConnectionId { slot, generation: connection.generation };
            let Some(ResumePosition { timeline, position }) = connection.next_position() else { return };
            if !self.may_read(slot, &timeline) {
                self.connections[slot].position_is_done();
                continue;
            }
            let call = TimelineCall::Sync(sync_request(&timeline, position));
            let Some(request) = self.timeline_request(slot, Sequence::NONE, call) else { return };
            match self.shared.logic.timeline(request) {
                Call::Ready(result) => self.resumed_position(slot, result),
                Call::Pending(answer) => {
                    let own = self.peers[self.index].clone();
                    self.shared.runtime.spawn(async move {
                        own.notice(Notice::Resumed { connection: id, result: answer.await });
                    });
                    return;
                }
            }
        }
    }

    /// What comes behind a position: given like a reply to the request that the client need not make. A client that gets none asks.
    pub(super) fn resumed_position(&mut self, slot: u32, result: Result<Bytes, LogicError>) {
        let connection = &mut self.connections[slot];
        connection.position_is_done();
        match result {
            Ok(body) if body.is_empty() || !connection.session.is_open() => {}
            Ok(body) => {
                connection.session.tell(&mut self.pool, Operation::SYNC_REPLY, &body);
                self.stats.packets_out(Operation::SYNC_REPLY, 1, goim_wire::HEADER_LEN + body.len());
                self.stage(slot);
            }
            Err(error) => {
                tracing::debug!(%error, "a session is not given what it has missed; it asks itself")
            }
        }
    }

    /// True when the word of a message is held back, since the session's socket is full.
    pub(super) fn hold_word(&mut self, slot: u32, stored: &StoredAt) -> bool {
        let Some(connection) = self.connections.get_mut(slot) else { return false };
        if connection.writable && !connection.holds_words() || !connection.session.is_open() {
            return false;
        }
        connection.hold_word(&stored.timeline, stored.position, HELD_MAX);
        self.stats.words_joined.add(1);
        true
    }

    /// Everything is out: what was held back goes now, one word for each timeline.
    pub(super) fn release_words(&mut self, slot: u32) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        let held = connection.take_words();
        let limit = QueueLimit { bytes_max: usize::MAX, policy: SlowConsumerPolicy::DropNewest };
        for (timeline, position) in held {
            let word = EncodedPush::whole(notify_packet(&timeline, position, Vec::new()));
            let Some(connection) = self.connections.get_mut(slot) else { return };
            let before = connection.session.outbox().push_bytes();
            let bytes = word.len(connection.session.transport());
            connection.session.push(&mut self.pool, &word, limit);
            let after = connection.session.outbox().push_bytes();
            self.outbox_changed(before, after);
            self.stats.packets_out(Operation::NOTIFY, 1, bytes);
        }
    }
}

/// Returns the timeline that a request names; `None` if the body cannot be read or names none.
fn named_timeline(operation: Operation, body: Bytes) -> Option<TimelineId> {
    let name = match operation {
        Operation::SYNC => sync::SyncRequest::read(body)?.timeline,
        Operation::ACK => sync::Ack::read(body)?.timeline,
        _ => sync::SendRequest::read(body)?.to,
    };
    TimelineId::parse(&name)
}

fn sync_request(timeline: &TimelineId, position: Position) -> Bytes {
    let position = Some(sync::Position { epoch: position.epoch.0, seq: position.seq.0 });
    sync::SyncRequest { timeline: timeline.to_string(), position, limit: 0 }.write().into()
}
