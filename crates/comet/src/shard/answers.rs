//! What logic decides, and what a session asks of the shard: authentication, rooms, heartbeats, the business.

use std::time::Duration;

use bytes::Bytes;
use goim_ports::{
    Accepted, Call, ConnectError, ConnectRequest, LogicError, PacketBuf, RoomId, Sequence, SessionRef,
    Upstream, Version,
};
use goim_session::{CloseReason, Established, Moment};

use super::Shard;
use crate::connection::{ConnectionId, Identity};
use crate::inbox::Notice;
use crate::key_index::Location;

/// The directory is told that a session lives when this long has passed, and up to twice as long: goim's records
/// expire after 30 minutes, so one miss is forgiven.
const TOUCH_MIN: Duration = Duration::from_secs(5 * 60);

/// Sessions that logic is told of in a second after it may have forgotten all of them: so that ten thousand are known again after
/// two seconds, and a million do not ask for it at once.
const CONFIRMED_PER_SECOND: f64 = 5000.0;

/// Telling logic of all sessions again.
pub(super) struct Confirming {
    /// The next slot.
    cursor: u32,
    credit: f64,
    seen: Moment,
}

impl Shard {
    /// Asks logic about a token.
    pub(super) fn authenticate(&mut self, slot: u32, token: Bytes) {
        let connection = &mut self.connections[slot];
        let id = ConnectionId { slot, generation: connection.generation };
        let request = ConnectRequest {
            server: self.shared.server.clone(),
            cookie: connection.session.take_cookie(),
            token,
            remote: connection.remote(),
        };
        let farewells = self.shared.keys.farewells();
        match self.shared.logic.connect(request) {
            Call::Ready(result) => self.connected(id, farewells, result),
            Call::Pending(answer) => {
                let own = self.peers[self.index].clone();
                self.shared.runtime.spawn(async move {
                    let result = answer.await;
                    own.notice(Notice::Connected { connection: id, farewells, result });
                });
            }
        }
    }

    pub(super) fn take_notice(&mut self, notice: Notice) {
        match notice {
            Notice::Connected { connection, farewells, result } => {
                self.connected(connection, farewells, result);
                if let Some(slot) = self.find(connection) {
                    self.take_input(slot);
                }
            }
            Notice::Replied { connection, result } => {
                if let Some(slot) = self.find(connection) {
                    self.replied(slot, result);
                    self.take_input(slot);
                }
            }
            Notice::Superseded(connection) => {
                if let Some(slot) = self.find(connection) {
                    self.close(slot, CloseReason::Superseded);
                }
            }
            Notice::Confirm(connection) => {
                if let Some(slot) = self.find(connection) {
                    self.touch(slot);
                }
            }
            Notice::ConfirmAll => {
                self.confirming = Some(Confirming { cursor: 0, credit: 0.0, seen: self.now });
            }
            Notice::Drain { sessions_per_second, deadline, delay_max } => {
                self.begin_drain(sessions_per_second, deadline, delay_max);
            }
        }
    }

    fn connected(&mut self, id: ConnectionId, farewells: u64, result: Result<Accepted, ConnectError>) {
        let slot = self.find(id).filter(|slot| !self.connections[*slot].is_closing());
        match (slot, result) {
            (Some(slot), Ok(accepted)) => self.open(slot, farewells, accepted),
            (Some(slot), Err(error)) => {
                let remote = self.connections[slot].remote();
                let reason = match &error {
                    ConnectError::Refused(_) => CloseReason::AuthRefused,
                    ConnectError::Unavailable(_) => CloseReason::AuthUnavailable,
                };
                tracing::debug!(%remote, %error, "no session");
                self.close(slot, reason);
            }
            // The client did not wait for the answer, and logic has entered a session that is not there.
            (None, Ok(accepted)) => {
                let location = Location { shard: self.index as u16, connection: id };
                match self.shared.keys.find(&accepted.key) {
                    Some(holder) => {
                        self.peers[usize::from(holder.shard)].notice(Notice::Confirm(holder.connection));
                    }
                    None => self.say_farewell(Identity { key: accepted.key, mid: accepted.mid }, location),
                }
            }
            (None, Err(_)) => {}
        }
    }

    /// Opens the session that logic has accepted.
    fn open(&mut self, slot: u32, farewells: u64, accepted: Accepted) {
        let connection = &mut self.connections[slot];
        let id = ConnectionId { slot, generation: connection.generation };
        let location = Location { shard: self.index as u16, connection: id };
        let reply = match accepted.protover {
            Some(protover) => auth_reply(&accepted, protover, self.shared.server.as_str()),
            None => Vec::new(),
        };
        let established = Established {
            accepts: &accepted.accepts,
            heartbeat: accepted.heartbeat,
            protover: accepted.protover,
            reply: &reply,
        };
        connection.session.authenticated(&mut self.pool, self.now, &established);
        connection.identity = Some(Identity { key: accepted.key.clone(), mid: accepted.mid });
        self.stats.sessions.up();
        self.stats.packets_out(goim_ports::Operation::AUTH_REPLY, 1, goim_wire::HEADER_LEN + reply.len());
        let touch_in = TOUCH_MIN + Duration::from_millis(self.random(TOUCH_MIN.as_millis() as u64));
        self.connections[slot].touch_after = self.now.after(touch_in);
        let entered = self.shared.keys.enter(&accepted.key, location, farewells);
        if let Some(old) = entered.superseded {
            self.peers[usize::from(old.shard)].notice(Notice::Superseded(old.connection));
        }
        if entered.confirm {
            self.touch(slot);
        }
        if let Some(room) = accepted.room {
            self.join(slot, room);
        }
        self.arm(slot);
        self.stage(slot);
        if accepted.heartbeat.is_zero() {
            self.close(slot, CloseReason::HeartbeatTimeout);
        }
    }

    /// Tells logic that a session is alive. Nobody waits for the answer: the next time will do.
    pub(super) fn touch(&mut self, slot: u32) {
        let Some(session) = self.session_ref(slot) else { return };
        if let Call::Pending(answer) = self.shared.logic.heartbeat(session) {
            self.shared.runtime.spawn(async move {
                if let Err(error) = answer.await {
                    tracing::debug!(%error, "a session's record was not renewed; the next heartbeat tries again");
                }
            });
        }
    }

    /// Goes on telling logic of all sessions, as many as are due.
    pub(super) fn confirm_some(&mut self) {
        let Some(mut confirming) = self.confirming.take() else { return };
        let passed = confirming.seen.until(self.now).as_secs_f64();
        confirming.seen = self.now;
        confirming.credit =
            (confirming.credit + passed * CONFIRMED_PER_SECOND).min(CONFIRMED_PER_SECOND / 10.0);
        while confirming.credit >= 1.0 {
            if confirming.cursor >= self.connections.end() {
                return;
            }
            confirming.credit -= 1.0;
            self.touch(confirming.cursor);
            confirming.cursor += 1;
        }
        self.confirming = Some(confirming);
    }

    fn session_ref(&self, slot: u32) -> Option<SessionRef> {
        let identity = self.connections.get(slot)?.identity.as_ref()?;
        let server = self.shared.server.clone();
        Some(SessionRef { mid: identity.mid, key: identity.key.clone(), server })
    }

    pub(super) fn heartbeat(&mut self, slot: u32, version: Version, sequence: Sequence) {
        let connection = &mut self.connections[slot];
        let online = connection.membership.map_or(0, |membership| self.rooms.online(membership));
        connection.session.reply_heartbeat(&mut self.pool, version, sequence, online);
        self.stats.packets_out(goim_ports::Operation::HEARTBEAT_REPLY, 1, goim_wire::HEADER_LEN + 4);
        if self.now >= connection.touch_after {
            let touch_in = TOUCH_MIN + Duration::from_millis(self.random(TOUCH_MIN.as_millis() as u64));
            self.connections[slot].touch_after = self.now.after(touch_in);
            self.touch(slot);
        }
    }

    /// Moves a session to another room in one step; to the one that it is in, nothing happens.
    pub(super) fn change_room(&mut self, slot: u32, room: &str) {
        let connection = &self.connections[slot];
        self.stats.packets_out(
            goim_ports::Operation::CHANGE_ROOM_REPLY,
            1,
            goim_wire::HEADER_LEN + room.len(),
        );
        if connection.membership.is_some_and(|membership| self.rooms.is_in(membership, room)) {
            return;
        }
        self.leave_room(slot);
        if !room.is_empty() {
            self.join(slot, RoomId::from(room));
        }
    }

    fn join(&mut self, slot: u32, room: RoomId) {
        self.connections[slot].membership = Some(self.rooms.join(room, slot));
    }

    pub(super) fn leave_room(&mut self, slot: u32) {
        let Some(membership) = self.connections[slot].membership.take() else { return };
        if let Some((moved, place)) = self.rooms.leave(membership) {
            self.connections[moved].membership = Some(place);
        }
    }

    /// Hands a packet to the business. The session takes no further packet until the answer is there.
    pub(super) fn upstream(&mut self, slot: u32, packet: PacketBuf) {
        let connection = &self.connections[slot];
        let Some(identity) = connection.identity.as_ref() else { return };
        let id = ConnectionId { slot, generation: connection.generation };
        let upstream = Upstream { mid: identity.mid, key: identity.key.clone(), packet };
        match self.shared.logic.receive(upstream) {
            Call::Ready(result) => self.replied(slot, result),
            Call::Pending(answer) => {
                let own = self.peers[self.index].clone();
                self.shared.runtime.spawn(async move {
                    let result = answer.await;
                    own.notice(Notice::Replied { connection: id, result });
                });
            }
        }
    }

    /// The reply goes out whether or not the business was reached: goim's clients count on one.
    fn replied(&mut self, slot: u32, result: Result<Bytes, LogicError>) {
        let body = result.unwrap_or_else(|error| {
            self.stats.upstream_errors.add(1);
            tracing::debug!(%error, "a packet was not handled; the client gets an empty reply");
            Bytes::new()
        });
        let connection = &mut self.connections[slot];
        if let Some(operation) = connection.session.reply_upstream(&mut self.pool, &body) {
            self.stats.packets_out(operation, 1, goim_wire::HEADER_LEN + body.len());
        }
        self.stage(slot);
    }
}

/// The body of the auth reply for an extended client.
fn auth_reply(accepted: &Accepted, protover: Version, server: &str) -> Vec<u8> {
    let rooms: Vec<&str> = accepted.room.iter().map(RoomId::as_str).collect();
    serde_json::json!({
        "code": 0,
        "mid": accepted.mid.0,
        "key": accepted.key.as_str(),
        "protover": protover.0,
        "heartbeat": accepted.heartbeat.as_secs(),
        "rooms": rooms,
        "server": server,
    })
    .to_string()
    .into_bytes()
}
