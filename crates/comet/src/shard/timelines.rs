//! Sessions that sync: their timeline requests, the positions at which they resume, and the
//! notifications that wait while their socket is full.
//!
//! comet stores no timeline. It checks what a session may read, reports to logic whether the sender
//! is in the room, and merges notifications of a timeline while they wait: the newest position
//! implies the others.

use bytes::Bytes;
use goim_ports::{
    LogicError, Operation, PacketBuf, Position, ResumePosition, Sequence, StoredAt, TimelineCall, TimelineId,
    TimelineRequest,
};
use goim_session::{EncodedPush, RequestFailure};
use goim_wire::sync::{self, Body as _};

use super::Shard;
use super::egress::UNLIMITED;
use crate::connection::{ConnectionId, Identity};
use crate::inbox::Notice;
use crate::message::notify_packet;

/// Timelines with a pending notification per session: its inbox, and the rooms that it may be in.
/// Notifications of further timelines are dropped.
const HELD_MAX: usize = 1024;

impl Shard {
    /// True for operations 4, 21 and 23, which negotiated clients send about timelines.
    pub(super) fn is_timeline_request(operation: Operation) -> bool {
        [Operation::SEND, Operation::SYNC, Operation::ACK].contains(&operation)
    }

    /// Sends a timeline request to logic if the session may make it. The session takes no further
    /// packet until logic has answered.
    pub(super) fn request_timeline(&mut self, slot: u32, packet: PacketBuf) {
        let PacketBuf { operation, sequence, body, .. } = packet;
        // A body without a readable timeline is sent to logic, which may have a route for it, or
        // reports what is wrong.
        let timeline = named_timeline(operation, body.clone());
        let call = if operation == Operation::SEND {
            let is_room_member = timeline.is_some_and(|timeline| self.is_in_room(slot, &timeline));
            TimelineCall::Send { body, is_room_member }
        } else if timeline.is_some_and(|timeline| !self.may_read(slot, &timeline)) {
            let failure = RequestFailure::Failed;
            let detail = "the timeline is not one that this session may read";
            self.fail_request(slot, failure.code(), failure.label(), detail);
            return;
        } else if operation == Operation::ACK {
            TimelineCall::Ack(body)
        } else {
            TimelineCall::Sync(body)
        };
        let Some(request) = self.timeline_request(slot, sequence, call) else { return };
        let id = self.connections.id(slot);
        let call = self.shared.logic.timeline(request);
        if let Some(result) = self.call(call, move |result| Notice::Replied { connection: id, result }) {
            self.replied(slot, result);
        }
    }

    fn is_in_room(&self, slot: u32, timeline: &TimelineId) -> bool {
        let TimelineId::Room(room) = timeline else { return false };
        let room = self.rooms.find(room.as_str());
        let mut memberships = self.connections[slot].memberships();
        room.is_some_and(|room| memberships.any(|membership| membership.is_in(room)))
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

    /// Sends the reply to a timeline request.
    pub(super) fn reply_timeline(&mut self, slot: u32, body: &Bytes) {
        let connection = &mut self.connections[slot];
        if let Some(operation) = connection.session.reply_control(self.egress.pool(), body) {
            self.stats.packets_out(operation, 1, goim_wire::HEADER_LEN + body.len());
        }
        self.stage(slot);
    }

    /// Syncs the positions at which a session resumes: one after another, and none while much
    /// waits.
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
            let call = TimelineCall::Sync(sync_request(&timeline, position));
            let Some(request) = self.timeline_request(slot, Sequence::NONE, call) else { return };
            let call = self.shared.logic.timeline(request);
            let resumed = move |result| Notice::Resumed { connection: id, result };
            let Some(result) = self.call(call, resumed) else { return };
            self.resumed_position(slot, result);
        }
    }

    /// Sends what follows a position, like the reply to a request that the client need not make.
    /// After a failure the client makes the request itself.
    pub(super) fn resumed_position(&mut self, slot: u32, result: Result<Bytes, LogicError>) {
        let connection = &mut self.connections[slot];
        connection.finish_position();
        match result {
            Ok(body) if body.is_empty() || !connection.session.is_open() => {}
            Ok(body) => {
                connection.session.send_control(self.egress.pool(), Operation::SYNC_REPLY, &body);
                self.stats.packets_out(Operation::SYNC_REPLY, 1, goim_wire::HEADER_LEN + body.len());
                self.stage(slot);
            }
            Err(error) => tracing::debug!(%error, "a position was not resumed; the client will sync"),
        }
    }

    /// Holds back a notification if the session's socket is full. True when it is held back.
    pub(super) fn hold_notification(&mut self, slot: u32, stored: &StoredAt) -> bool {
        let Some(connection) = self.connections.get_mut(slot) else { return false };
        if connection.writable && !connection.holds_notifications() || !connection.session.is_open() {
            return false;
        }
        connection.hold_notification(&stored.timeline, stored.position, HELD_MAX);
        self.stats.notifications_coalesced.add(1);
        true
    }

    /// Sends the notifications that were held back, one for each timeline, since everything else is
    /// written.
    pub(super) fn send_held_notifications(&mut self, slot: u32) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        for (timeline, position) in connection.take_notifications() {
            let notification = EncodedPush::whole(notify_packet(&timeline, position, Vec::new()));
            let Some(connection) = self.connections.get_mut(slot) else { return };
            let bytes = notification.len(connection.session.transport());
            self.egress.push(connection, &notification, UNLIMITED, self.now);
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
