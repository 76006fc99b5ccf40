//! Taking what clients send: bytes into the session, and what it asks for done.

use std::sync::Arc;

use bytes::Bytes;
use goim_compression::{InflateError, inflate_message};
use goim_ports::{Operation, PacketBuf, Sequence, Version};
use goim_session::{CloseReason, Step};
use mio::event::Event;

use super::Shard;
use crate::token_bucket::Rate;
use crate::transport::Received;

/// Bytes taken from one connection in one turn, so that others have theirs.
const INPUT_PER_TURN: usize = 256 * 1024;

/// What a session asks for, free of the buffers that it was read from.
enum Action {
    Authenticate(Bytes),
    Heartbeat(Version, Sequence),
    ChangeRoom(String),
    ChangeRooms(bool, Bytes),
    Refresh(Bytes),
    Upstream(PacketBuf),
    Close(CloseReason),
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

    /// Takes input as long as there is some and the session wants it, within the turn's share.
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

    /// The connection's input goes on in the next turn.
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

    /// Gives bytes to the session until they are used up, or it wants no more: then the rest is kept.
    fn feed(&mut self, slot: u32, bytes: &mut [u8]) {
        let mut at = 0;
        // A clone of this shard's own: a count shared by all shards would be contended.
        let rules = Arc::clone(self.listeners.rules());
        let rules = rules.as_ref();
        while let Some(connection) = self.connections.get_mut(slot) {
            if connection.is_closing() {
                return;
            }
            if !connection.session.wants_input(rules) && !connection.session.outbox().is_empty() {
                // Too many replies wait; what the socket takes now makes room.
                self.flush(slot);
            }
            let Some(connection) = self.connections.get_mut(slot) else { return };
            if connection.is_closing() {
                return;
            }
            let mut inflated_message = None;
            let wanted = connection.session.wants_input(rules) && connection.throttled_until().is_none();
            if !wanted {
                connection.keep_unread(&bytes[at..]);
                return;
            }
            let step = match connection.session.step(rules, self.egress.pool(), self.now, bytes, &mut at) {
                Ok(Step::Inflate { message }) => {
                    let inflated = inflate_message(message, rules.framing.websocket.message_bytes_max);
                    match inflated.map(|message| inflated_message.insert(message)) {
                        Ok(message) => {
                            connection.session.inflated(rules, self.egress.pool(), self.now, message)
                        }
                        Err(InflateError::TooLarge(_)) => Err(CloseReason::InflatedTooLarge),
                        Err(InflateError::Malformed(_)) => Err(CloseReason::BadCompression),
                    }
                }
                step => step,
            };
            let action = match step {
                Ok(Step::Idle) => return,
                // What is inflated is not inflated again.
                Ok(Step::Handled { packet: None } | Step::Inflate { .. }) => continue,
                Ok(Step::Handled { packet: Some((operation, body_len)) }) => {
                    self.stats.packet_in(operation, body_len);
                    self.charge(slot);
                    continue;
                }
                Ok(Step::Authenticate { token }) => {
                    self.stats.packet_in(Operation::AUTH, token.len());
                    Action::Authenticate(Bytes::copy_from_slice(token))
                }
                Ok(Step::Heartbeat { version, sequence }) => {
                    self.stats.packet_in(Operation::HEARTBEAT, 0);
                    Action::Heartbeat(version, sequence)
                }
                Ok(Step::ChangeRoom { room }) => {
                    self.stats.packet_in(Operation::CHANGE_ROOM, room.len());
                    Action::ChangeRoom(String::from_utf8_lossy(room).into_owned())
                }
                Ok(Step::Rooms { join, rooms }) => {
                    let operation = if join { Operation::JOIN_ROOMS } else { Operation::LEAVE_ROOMS };
                    self.stats.packet_in(operation, rooms.len());
                    Action::ChangeRooms(join, Bytes::copy_from_slice(rooms))
                }
                Ok(Step::Refresh { token }) => {
                    self.stats.packet_in(Operation::REFRESH_TOKEN, token.len());
                    Action::Refresh(Bytes::copy_from_slice(token))
                }
                Ok(Step::Upstream { packet }) => {
                    self.stats.packet_in(packet.operation, packet.body.len());
                    Action::Upstream(packet.to_owned())
                }
                Err(reason) => Action::Close(reason),
            };
            self.charge(slot);
            self.act(slot, action);
        }
    }

    fn act(&mut self, slot: u32, action: Action) {
        match action {
            Action::Authenticate(token) => self.authenticate(slot, token),
            Action::Heartbeat(version, sequence) => self.heartbeat(slot, version, sequence),
            Action::ChangeRoom(room) => self.change_room(slot, &room),
            Action::ChangeRooms(join, rooms) => self.change_rooms(slot, join, &rooms),
            Action::Refresh(token) => self.refresh(slot, token),
            Action::Upstream(packet) => self.upstream(slot, packet),
            Action::Close(reason) => self.close(slot, reason),
        }
    }

    /// Charges a packet to the connection's rate limit. When that is used up, input waits until there is a token.
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

    /// Reads and drops what a client sends after its session has ended, until it has seen the end.
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
