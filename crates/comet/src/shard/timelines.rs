//! Sessions that sync: their requests about timelines, where they resume, and the words that wait while a socket is full.
//!
//! comet keeps no timeline. It sees to it that a session asks only for what it may read, tells logic whether it is in the room that it
//! sends to, and lets words of the same timeline become one while they cannot be sent: the newest says all that the older ones do.

use bytes::Bytes;
use goim_ports::{
    LogicError, Operation, PacketBuf, Position, ResumePosition, Schema, Sequence, StoredAt, TimelineId,
    Upstream,
};
use goim_session::{EncodedPush, RequestFailure};
use goim_wire::sync::{self, Body as _};

use super::Shard;
use super::egress::UNLIMITED;
use crate::connection::ConnectionId;
use crate::inbox::Notice;
use crate::message::notify_packet;

/// Timelines of which a session can be behind at once: its inbox, and the rooms that it may be in. Of more the word is dropped, as it
/// would be when a queue is full.
const HELD_MAX: usize = 1024;

/// A request about a timeline is for.
struct Request {
    timeline: TimelineId,
    reads: bool,
}

impl Shard {
    /// Operations 4, 21 and 23 of an negotiated client. True when the packet is one of them: then it is dealt with.
    pub(super) fn is_about_timelines(operation: Operation) -> bool {
        [Operation::SEND, Operation::SYNC, Operation::ACK].contains(&operation)
    }

    /// Hands a request about a timeline to logic, once it is sure that the session may make it. The session takes no further packet until
    /// the answer is there.
    pub(super) fn ask_about_timeline(&mut self, slot: u32, packet: PacketBuf) {
        // Whoever names no timeline may have a route of the backend for it; logic says what is wrong otherwise.
        let request = read_request(&packet);
        let is_member = match &request {
            Some(Request { timeline, reads: true }) if !self.may_read(slot, timeline) => {
                let failure = RequestFailure::Failed;
                let detail = "the timeline is not one that this session may read";
                self.fail_request(slot, failure.code(), failure.label(), detail);
                return;
            }
            Some(Request { timeline: TimelineId::Room(room), .. }) => {
                let place = self.rooms.find(room.as_str());
                let mut own = self.connections[slot].memberships();
                place.is_some_and(|place| own.any(|membership| membership.is_in(place)))
            }
            _ => false,
        };
        let Some(upstream) = self.upstream_of(slot, packet, is_member) else { return };
        let id = self.connections.id(slot);
        let call = self.shared.logic.receive(upstream);
        if let Some(result) = self.call(call, move |result| Notice::Replied { connection: id, result }) {
            self.replied(slot, result);
        }
    }

    /// The version of such a packet says what the session reads: by it the bodies of messages are chosen.
    fn upstream_of(&self, slot: u32, packet: PacketBuf, is_member: bool) -> Option<Upstream> {
        let connection = self.connections.get(slot)?;
        let identity = connection.identity.clone()?;
        let packet = PacketBuf { version: connection.session.protover(), ..packet };
        let (mid, key, schema) = (identity.mid, identity.key, Schema::FIRST);
        Some(Upstream { mid, key, packet, schema, negotiated: true, is_member })
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
        if let Some(operation) = connection.session.reply_control(self.egress.pool(), body) {
            self.stats.packets_out(operation, 1, goim_wire::HEADER_LEN + body.len());
        }
        self.stage(slot);
    }

    /// Goes on giving a session what comes behind the positions that it came with: one after the other, and none while much waits.
    pub(super) fn resume_positions(&mut self, slot: u32) {
        loop {
            let Some(connection) = self.connections.get_mut(slot) else { return };
            let rules = self.listeners.rules();
            let is_full = connection.session.outbox().reply_bytes() > rules.reply_bytes_max;
            if is_full || connection.is_closing() || !connection.session.is_open() {
                return;
            }
            let id = ConnectionId { slot, generation: connection.generation };
            let Some(ResumePosition { timeline, position }) = connection.next_position() else { return };
            if !self.may_read(slot, &timeline) {
                self.connections[slot].finish_position();
                continue;
            }
            let Some(upstream) = self.upstream_of(slot, sync_packet(&timeline, position), false) else {
                return;
            };
            let call = self.shared.logic.receive(upstream);
            let resumed = move |result| Notice::Resumed { connection: id, result };
            let Some(result) = self.call(call, resumed) else { return };
            self.resumed_position(slot, result);
        }
    }

    /// What comes behind a position: given like a reply to the request that the client need not make. A client that gets none asks.
    pub(super) fn resumed_position(&mut self, slot: u32, result: Result<Bytes, LogicError>) {
        let connection = &mut self.connections[slot];
        connection.finish_position();
        match result {
            Ok(body) if body.is_empty() || !connection.session.is_open() => {}
            Ok(body) => {
                connection.session.tell(self.egress.pool(), Operation::SYNC_REPLY, &body);
                self.stats.packets_out(Operation::SYNC_REPLY, 1, goim_wire::HEADER_LEN + body.len());
                self.stage(slot);
            }
            Err(error) => {
                tracing::debug!(%error, "a session is not given what it has missed; it asks itself")
            }
        }
    }

    /// True when the word of a message is held back, since the session's socket is full.
    pub(super) fn hold_notification(&mut self, slot: u32, stored: &StoredAt) -> bool {
        let Some(connection) = self.connections.get_mut(slot) else { return false };
        if connection.writable && !connection.holds_notifications() || !connection.session.is_open() {
            return false;
        }
        connection.hold_notification(&stored.timeline, stored.position, HELD_MAX);
        self.stats.notifications_coalesced.add(1);
        true
    }

    /// Everything is out: what was held back goes now, one word for each timeline.
    pub(super) fn send_held_notifications(&mut self, slot: u32) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        let held = connection.take_notifications();
        for (timeline, position) in held {
            let word = EncodedPush::whole(notify_packet(&timeline, position, Vec::new()));
            let Some(connection) = self.connections.get_mut(slot) else { return };
            let bytes = word.len(connection.session.transport());
            self.egress.push(connection, &word, UNLIMITED, self.now);
            self.stats.packets_out(Operation::NOTIFY, 1, bytes);
        }
    }
}

/// What a request is about; `None` when it names no timeline.
fn read_request(packet: &PacketBuf) -> Option<Request> {
    let body = packet.body.clone();
    let (name, reads) = match packet.operation {
        Operation::SYNC => (sync::SyncRequest::read(body)?.timeline, true),
        Operation::ACK => (sync::Ack::read(body)?.timeline, true),
        _ => (sync::SendRequest::read(body)?.to, false),
    };
    Some(Request { timeline: TimelineId::parse(&name)?, reads })
}

fn sync_packet(timeline: &TimelineId, position: Position) -> PacketBuf {
    let position = Some(sync::Position { epoch: position.epoch.0, seq: position.seq.0 });
    let request = sync::SyncRequest { timeline: timeline.to_string(), position, limit: 0 };
    let body = request.write().into();
    PacketBuf { sequence: Sequence::NONE, ..PacketBuf::push(Operation::SYNC, body) }
}
