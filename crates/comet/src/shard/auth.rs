//! Authentication: a token becomes a session, or the connection is closed with the reason.

use std::time::Duration;

use bytes::Bytes;
use goim_ports::{
    Accepted, Call, ConnectError, ConnectRequest, EventKind, ExpiresAt, Operation, RefreshRequest, Refreshed,
    RoomId, ServerId, Version,
};
use goim_session::{CloseReason, Established, Millis};

use super::Shard;
use crate::connection::{ConnectionId, Identity};
use crate::danmaku;
use crate::inbox::Notice;
use crate::listener::Dialect;
use crate::message::SyncMode;

impl Shard {
    /// Asks logic about a token.
    pub(super) fn authenticate(&mut self, slot: u32, token: Bytes) {
        let Some(token) = self.goim_token(slot, token) else {
            return self.refuse(slot, CloseReason::AuthRefused);
        };
        let id = self.connections.id(slot);
        let connection = &mut self.connections[slot];
        let facts = connection.session.take_facts();
        let left = self.now.until(connection.session.deadline());
        let request = ConnectRequest {
            server: self.shared.server.clone(),
            cookie: facts.cookie,
            user_agent: facts.user_agent,
            token: token.clone(),
            remote: connection.remote(),
        };
        // Read before logic is asked: see `KeyIndex`.
        let disconnects = self.shared.keys.disconnects();
        match self.shared.logic.connect(request) {
            Call::Ready(result) => {
                self.connected(id, disconnects, result.map_err(|error| with_negotiation(error, &token)));
            }
            Call::Pending(answer) => {
                let own = self.peers.own().clone();
                // A little before the session ends for its missed deadline, so that its client
                // still learns why.
                let timeout = Duration::from_millis(left.as_millis() as u64 * 9 / 10);
                self.shared.runtime.spawn(async move {
                    let mut answer = std::pin::pin!(answer);
                    let connected = |result: Result<Accepted, ConnectError>| {
                        let result = result.map_err(|error| with_negotiation(error, &token));
                        own.notice(Notice::Connected { connection: id, disconnects, result });
                    };
                    if let Ok(result) = tokio::time::timeout(timeout, &mut answer).await {
                        return connected(result);
                    }
                    connected(Err(ConnectError::unavailable("logic did not answer in time")));
                    // A session that logic accepts nevertheless is disconnected from it again.
                    connected(answer.await);
                });
            }
        }
    }

    /// Returns the token as goim has it. `None` when it is no token of the listener's protocol.
    fn goim_token(&mut self, slot: u32, token: Bytes) -> Option<Bytes> {
        let connection = &mut self.connections[slot];
        match self.listeners.kind(connection.listener).dialect() {
            Dialect::Goim => Some(token),
            Dialect::Danmaku => {
                let auth = danmaku::read_auth(&token, &self.shared.config.listen.danmaku_room_type)?;
                connection.profile = self.shared.profiles.for_danmaku(auth.encoding);
                Some(auth.token)
            }
        }
    }

    /// Closes a connection that gets no session.
    fn refuse(&mut self, slot: u32, reason: CloseReason) {
        let connection = &mut self.connections[slot];
        if self.listeners.kind(connection.listener).dialect() == Dialect::Danmaku {
            connection.session.reply_refused(self.egress.pool(), danmaku::REFUSED);
        }
        self.close(slot, reason);
    }

    /// Handles logic's decision about a token.
    pub(super) fn connected(
        &mut self,
        id: ConnectionId,
        disconnects: u64,
        result: Result<Accepted, ConnectError>,
    ) {
        let slot = self.connections.find(id).filter(|slot| !self.connections[*slot].is_closing());
        match (slot, result) {
            (Some(slot), Ok(accepted)) => self.open(slot, disconnects, accepted),
            (Some(slot), Err(error)) => {
                let connection = &mut self.connections[slot];
                tracing::debug!(remote = %connection.remote(), %error, "no session");
                if error.negotiated {
                    connection.session.mark_negotiated();
                }
                self.refuse(slot, error.reason.into());
            }
            // The client did not wait for the answer, and logic has a record of a session that does
            // not exist.
            (None, Ok(accepted)) => match self.shared.keys.find(&accepted.key) {
                Some(holder) => self.peers.notify(holder, Notice::Register),
                None => {
                    let identity = Identity { key: accepted.key, mid: accepted.mid };
                    self.disconnect(identity, self.peers.locate(id));
                }
            },
            (None, Err(_)) => {}
        }
    }

    /// Opens the session that logic has accepted.
    fn open(&mut self, slot: u32, disconnects: u64, accepted: Accepted) {
        let rooms = initial_rooms(&accepted, self.shared.config.limits.rooms_max.get());
        let protover = self.negotiate(slot, &accepted);
        self.reply_welcome(slot, &accepted, protover, &rooms);
        self.take_key(slot, disconnects, &accepted);
        let connection = &mut self.connections[slot];
        connection.set_scope(accepted.scope);
        connection.set_expires(expires(self.now, accepted.expires_at));
        if self.shared.events.are_enabled() {
            self.shared.events.note(EventKind::Connect, accepted.mid, &accepted.key, rooms.clone(), "");
        }
        let mut rooms = rooms.into_iter();
        if accepted.room.is_some()
            && let Some(room) = rooms.next()
        {
            self.join(slot, room);
        }
        for room in rooms {
            self.join_further(slot, room);
        }
        self.arm(slot);
        self.stage(slot);
        if let Some(syncing) = accepted.syncing.filter(|_| protover.is_some()) {
            self.connections[slot].set_positions(syncing.resume);
            self.resume_positions(slot);
        }
        if accepted.heartbeat.is_zero() {
            self.close(slot, CloseReason::HeartbeatTimeout);
        }
    }

    /// Sets the profile of a session. Returns the protocol version that both sides support; `None`
    /// for a client that named none.
    fn negotiate(&mut self, slot: u32, accepted: &Accepted) -> Option<Version> {
        let profiles = &self.shared.profiles;
        let connection = &mut self.connections[slot];
        let dialect = self.listeners.kind(connection.listener).dialect();
        let protover = accepted.protover.filter(|_| dialect == Dialect::Goim);
        let protover = protover.map(|protover| protover.min(profiles.table().highest()));
        if dialect == Dialect::Goim {
            let deflates = connection.session.deflates();
            connection.profile = profiles.for_goim(protover, deflates, sync_mode(accepted));
        }
        profiles.session_opened(connection.profile);
        protover
    }

    fn reply_welcome(&mut self, slot: u32, accepted: &Accepted, protover: Option<Version>, rooms: &[RoomId]) {
        let connection = &mut self.connections[slot];
        let dialect = self.listeners.kind(connection.listener).dialect();
        let reply = match protover {
            Some(protover) => welcome(accepted, protover, rooms, &self.shared.server),
            None if dialect == Dialect::Danmaku => danmaku::WELCOME.to_vec(),
            None => Vec::new(),
        };
        let established = Established {
            accepts: &accepted.accepts,
            heartbeat: accepted.heartbeat,
            protover,
            reply: &reply,
        };
        connection.session.authenticated(self.egress.pool(), self.now, &established);
        self.stats.sessions.up();
        self.stats.packets_out(Operation::AUTH_REPLY, 1, goim_wire::HEADER_LEN + reply.len());
    }

    /// Enters the session in the key index. The session that had the key is closed.
    fn take_key(&mut self, slot: u32, disconnects: u64, accepted: &Accepted) {
        let location = self.peers.locate(self.connections.id(slot));
        self.connections[slot].identity = Some(Identity { key: accepted.key.clone(), mid: accepted.mid });
        self.schedule_renewal(slot);
        let entered = self.shared.keys.enter(&accepted.key, location, disconnects);
        if let Some(old) = entered.superseded {
            self.peers.notify(old, Notice::Superseded);
        }
        if entered.register_again {
            self.register_session(slot);
        }
    }

    /// Operation 30: asks logic about a new token. The session takes no further packet until logic
    /// has answered.
    pub(super) fn refresh(&mut self, slot: u32, token: Bytes) {
        let Some(session) = self.session_ref(slot) else { return };
        let id = self.connections.id(slot);
        let request = RefreshRequest { session, token, remote: self.connections[slot].remote() };
        let call = self.shared.logic.refresh(request);
        if let Some(result) = self.call(call, move |result| Notice::Refreshed { connection: id, result }) {
            self.refreshed(slot, result);
        }
    }

    /// Applies a new token. One that is not accepted changes nothing: the session ends with the
    /// token that it has.
    pub(super) fn refreshed(&mut self, slot: u32, result: Result<Refreshed, ConnectError>) {
        if self.connections[slot].is_closing() {
            return;
        }
        match result {
            Ok(Refreshed { scope, expires_at }) => {
                let expires = expires(self.now, expires_at);
                let connection = &mut self.connections[slot];
                connection.set_scope(scope);
                connection.set_expires(expires);
                self.leave_forbidden(slot);
                self.arm(slot);
                self.reply_control(
                    slot,
                    &serde_json::json!({ "code": 0, "expires_at": expires_at.map(|at| at.0) }),
                );
            }
            Err(error) => {
                tracing::debug!(%error, "a new token was not accepted");
                let reason = error.reason.close_reason();
                self.fail_request(slot, reason.code(), reason.label(), "");
            }
        }
    }
}

/// Returns an error of a server that could not read the token, completed with the protocol version
/// in the token: a negotiated client learns that it may reconnect.
fn with_negotiation(error: ConnectError, token: &[u8]) -> ConnectError {
    if error.negotiated || !error.is_unavailable() {
        return error;
    }
    let members = serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(token);
    let is_protover = |(name, value): (&String, &serde_json::Value)| {
        name.eq_ignore_ascii_case("protover") && value.is_i64()
    };
    let negotiated = members.is_ok_and(|members| members.iter().any(is_protover));
    ConnectError { negotiated, ..error }
}

/// Returns how a session gets stored messages.
fn sync_mode(accepted: &Accepted) -> SyncMode {
    match &accepted.syncing {
        None => SyncMode::Off,
        Some(options) if options.notify_only => SyncMode::NotifyOnly,
        Some(_) => SyncMode::WithMessages,
    }
}

/// Returns the rooms that a session begins in: the one of goim v2 first, each once, at most
/// `rooms_max` with the further ones.
fn initial_rooms(accepted: &Accepted, rooms_max: usize) -> Vec<RoomId> {
    let mut rooms: Vec<RoomId> = accepted.room.iter().cloned().collect();
    for room in &accepted.rooms {
        if rooms.len() < rooms_max && !room.as_str().is_empty() && !rooms.contains(room) {
            rooms.push(room.clone());
        }
    }
    rooms
}

/// Encodes the auth reply for a negotiated client.
fn welcome(accepted: &Accepted, protover: Version, rooms: &[RoomId], server: &ServerId) -> Vec<u8> {
    let rooms: Vec<&str> = rooms.iter().map(RoomId::as_str).collect();
    let reply = serde_json::json!({
        "code": 0,
        "mid": accepted.mid.0,
        "key": accepted.key.as_str(),
        "protover": protover.0,
        "heartbeat": accepted.heartbeat.as_secs(),
        "rooms": rooms,
        "server": server.as_str(),
        "expires_at": accepted.expires_at.map(|at| at.0),
    });
    reply.to_string().into_bytes()
}

/// Returns when a token expires, by the shard's clock.
fn expires(now: Millis, at: Option<ExpiresAt>) -> Millis {
    at.map_or(Millis::NEVER, |at| now.after(at.left()))
}
