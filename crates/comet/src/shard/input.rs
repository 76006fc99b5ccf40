//! Reading what clients send: bytes go into the session, and what it asks for is done.

use std::sync::Arc;

use bytes::Bytes;
use goim_compression::{InflateError, inflate_message};
use goim_ports::{Operation, PacketBuf, Sequence, Version};
use goim_session::{CloseReason, Millis, OutboxPool, ServerRules, ServerSession, Step};
use mio::event::Event;

use super::Shard;
use crate::token_bucket::Rate;
use crate::transport::Received;

/// Bytes read from one connection in one turn, so that others get their share.
const INPUT_PER_TURN: usize = 256 * 1024;

/// What a session asks for, without references to the buffers that it was read from.
enum Action {
    /// More input is needed.
    Wait,
    /// Nothing is to be done.
    Continue,
    /// A packet with a body of this length was handled by the session itself.
    Handled(Operation, usize),
    Authenticate(Bytes),
    Heartbeat(Version, Sequence),
    ChangeRoom(String),
    JoinRooms(Bytes),
    LeaveRooms(Bytes),
    Refresh(Bytes),
    Upstream(PacketBuf),
    Close(CloseReason),
}

impl Action {
    fn of(step: Result<Step<'_>, CloseReason>) -> Self {
        match step {
            Ok(Step::Idle) => Self::Wait,
            // The content of an inflated message is not compressed again.
            Ok(Step::Handled { packet: None } | Step::Inflate { .. }) => Self::Continue,
            Ok(Step::Handled { packet: Some((operation, body_len)) }) => Self::Handled(operation, body_len),
            Ok(Step::Authenticate { token }) => Self::Authenticate(Bytes::copy_from_slice(token)),
            Ok(Step::Heartbeat { version, sequence }) => Self::Heartbeat(version, sequence),
            Ok(Step::ChangeRoom { room }) => Self::ChangeRoom(String::from_utf8_lossy(room).into_owned()),
            Ok(Step::Rooms { join: true, rooms }) => Self::JoinRooms(Bytes::copy_from_slice(rooms)),
            Ok(Step::Rooms { join: false, rooms }) => Self::LeaveRooms(Bytes::copy_from_slice(rooms)),
            Ok(Step::Refresh { token }) => Self::Refresh(Bytes::copy_from_slice(token)),
            Ok(Step::Upstream { packet }) => Self::Upstream(packet.to_owned()),
            Err(reason) => Self::Close(reason),
        }
    }

    /// The operation of the packet that was read, and the length of its body.
    fn packet(&self) -> Option<(Operation, usize)> {
        Some(match self {
            Self::Wait | Self::Continue | Self::Close(_) => return None,
            Self::Handled(operation, body_len) => (*operation, *body_len),
            Self::Authenticate(token) => (Operation::AUTH, token.len()),
            Self::Heartbeat(..) => (Operation::HEARTBEAT, 0),
            Self::ChangeRoom(room) => (Operation::CHANGE_ROOM, room.len()),
            Self::JoinRooms(rooms) => (Operation::JOIN_ROOMS, rooms.len()),
            Self::LeaveRooms(rooms) => (Operation::LEAVE_ROOMS, rooms.len()),
            Self::Refresh(token) => (Operation::REFRESH_TOKEN, token.len()),
            Self::Upstream(packet) => (packet.operation, packet.body.len()),
        })
    }
}

/// Has the session read on in `bytes` from `at`.
fn next_action(
    session: &mut ServerSession,
    rules: &ServerRules,
    pool: &mut OutboxPool,
    now: Millis,
    bytes: &mut [u8],
    at: &mut usize,
) -> Action {
    match session.step(rules, pool, now, bytes, at) {
        Ok(Step::Inflate { message }) => {
            match inflate_message(message, rules.framing.websocket.message_bytes_max) {
                Ok(message) => Action::of(session.inflated(rules, pool, now, &message)),
                Err(InflateError::TooLarge(_)) => Action::Close(CloseReason::InflatedTooLarge),
                Err(InflateError::Malformed(_)) => Action::Close(CloseReason::BadCompression),
            }
        }
        step => Action::of(step),
    }
}

impl Shard {
    pub(super) fn socket_ready(&mut self, slot: u32, event: &Event) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        if event.is_readable() || event.is_read_closed() || event.is_error() {
            connection.readable = true;
            connection.half_closed |= event.is_read_closed() || event.is_error();
        }
        if event.is_writable() && !connection.writable {
            connection.writable = true;
            self.stats.blocked.down();
            self.flush(slot);
        }
        self.take_input(slot);
    }

    /// Reads input as long as there is some and the session wants it, within the turn's share.
    pub(super) fn take_input(&mut self, slot: u32) {
        let mut budget = INPUT_PER_TURN;
        while let Some(connection) = self.connections.get_mut(slot) {
            if connection.is_closing() {
                self.discard_input(slot);
                return;
            }
            let rules = self.listeners.rules();
            if connection.throttled_until().is_some() || !connection.session.wants_input(rules) {
                break;
            }
            if let Some(mut unread) = connection.take_unread() {
                self.feed(slot, &mut unread);
                continue;
            }
            if !connection.readable {
                break;
            }
            if budget == 0 {
                self.resume(slot);
                break;
            }
            let mut scratch = self.ingress.take_scratch();
            match connection.socket.read(&mut scratch, connection.half_closed) {
                Received::Input { bytes, more } => {
                    connection.readable = more;
                    budget = budget.saturating_sub(bytes.len());
                    self.feed(slot, bytes);
                }
                Received::Nothing { more } => connection.readable = more,
                Received::End => {
                    connection.half_closed = true;
                    self.close(slot, CloseReason::PeerClosed);
                }
                Received::Lost => self.close(slot, CloseReason::ConnectionLost),
                Received::BadTls(error) => {
                    tracing::debug!(remote = %connection.remote(), error, "TLS failed");
                    connection.socket.flush_alert();
                    self.close(slot, CloseReason::BadTls);
                }
            }
            self.ingress.recycle_scratch(scratch);
        }
        self.stage_if_needed(slot);
    }

    /// Has the connection's input continue in the next turn.
    pub(super) fn resume(&mut self, slot: u32) {
        self.ingress.resume(slot, &mut self.connections[slot]);
    }

    fn stage_if_needed(&mut self, slot: u32) {
        if let Some(connection) = self.connections.get(slot)
            && (!connection.session.outbox().is_empty() || connection.socket.holds_output())
        {
            self.stage(slot);
        }
    }

    /// Passes bytes to the session until they are used up or it wants no more; then the rest is
    /// stored.
    fn feed(&mut self, slot: u32, bytes: &mut [u8]) {
        // A count that all shards share would be contended; this one is cloned by one shard only.
        let rules = Arc::clone(self.listeners.rules());
        let mut at = 0;
        loop {
            self.make_room_for_replies(slot);
            let Some(connection) = self.connections.get_mut(slot) else { return };
            if connection.is_closing() {
                return;
            }
            if !connection.session.wants_input(&rules) || connection.throttled_until().is_some() {
                connection.store_unread(&bytes[at..]);
                return;
            }
            let pool = self.egress.pool();
            let action = next_action(&mut connection.session, &rules, pool, self.now, bytes, &mut at);
            match action {
                Action::Wait => return,
                Action::Continue => continue,
                _ => {}
            }
            if let Some((operation, body_len)) = action.packet() {
                self.stats.packet_in(operation, body_len);
            }
            self.charge(slot);
            self.act(slot, action);
        }
    }

    /// Flushes a session that wants no input because too many replies wait: what the socket takes
    /// now makes room.
    fn make_room_for_replies(&mut self, slot: u32) {
        let Some(connection) = self.connections.get(slot) else { return };
        let wants_input = connection.session.wants_input(self.listeners.rules());
        if !wants_input && !connection.session.outbox().is_empty() && !connection.is_closing() {
            self.flush(slot);
        }
    }

    fn act(&mut self, slot: u32, action: Action) {
        match action {
            Action::Wait | Action::Continue | Action::Handled(..) => {}
            Action::Authenticate(token) => self.authenticate(slot, token),
            Action::Heartbeat(version, sequence) => self.heartbeat(slot, version, sequence),
            Action::ChangeRoom(room) => self.change_room(slot, &room),
            Action::JoinRooms(rooms) => self.change_rooms(slot, true, &rooms),
            Action::LeaveRooms(rooms) => self.change_rooms(slot, false, &rooms),
            Action::Refresh(token) => self.refresh(slot, token),
            Action::Upstream(packet) => self.upstream(slot, packet),
            Action::Close(reason) => self.close(slot, reason),
        }
    }

    /// Charges a packet to the connection's rate limit. When that is used up, input waits for a
    /// token.
    fn charge(&mut self, slot: u32) {
        let limits = &self.shared.config.limits;
        let Some(per_second) = limits.packets_per_second_max else { return };
        let Some(connection) = self.connections.get_mut(slot) else { return };
        let rate = Rate::with_burst(per_second, limits.packets_burst);
        let bucket = connection.rate_limit(self.now, &rate);
        bucket.refill(self.now, &rate);
        bucket.spend();
        if !bucket.has_token() {
            let wait = bucket.until_token(&rate);
            connection.throttle(self.now.after(wait));
            self.arm(slot);
        }
    }

    /// Reads and drops what a client sends after its session has ended, until the end of its
    /// stream.
    fn discard_input(&mut self, slot: u32) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        let mut scratch = self.ingress.take_scratch();
        let mut gone = false;
        let mut budget = 4;
        while connection.readable && budget > 0 && !gone {
            budget -= 1;
            match connection.socket.read(&mut scratch, connection.half_closed) {
                Received::Input { more, .. } | Received::Nothing { more } => connection.readable = more,
                Received::End | Received::Lost | Received::BadTls(_) => gone = true,
            }
        }
        self.ingress.recycle_scratch(scratch);
        if gone {
            self.remove(slot);
        } else if connection.readable {
            self.resume(slot);
        }
    }
}
