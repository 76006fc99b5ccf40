//! What logic decides, and what a session asks of the shard: authentication, rooms, heartbeats, the backend.

use std::time::Duration;

use bytes::Bytes;
use goim_compression::{InflateError, inflate};
use goim_ports::{
    Accepted, Call, ConnectError, ConnectRequest, Encoding, EventKind, LogicError, NoSession, PacketBuf,
    RoomId, Schema, Sequence, ServerId, Upstream, Version,
};
use goim_session::{CloseReason, Established, Moment, RequestFailure};

use super::Shard;
use crate::connection::{ConnectionId, Identity};
use crate::danmaku;
use crate::inbox::Notice;
use crate::listener::Dialect;
use crate::message::Syncs;

impl Shard {
    /// Asks logic about a token.
    pub(super) fn authenticate(&mut self, slot: u32, token: Bytes) {
        let Some(token) = self.read_token(slot, token) else {
            return self.refuse(slot, CloseReason::AuthRefused);
        };
        let id = self.connections.id(slot);
        let connection = &mut self.connections[slot];
        let facts = connection.session.take_facts();
        let request = ConnectRequest {
            server: self.shared.server.clone(),
            cookie: facts.cookie,
            user_agent: facts.user_agent,
            token,
            remote: connection.remote(),
        };
        let disconnects = self.shared.keys.disconnects();
        // A little before the session is cut for being late: then its client can still be told why.
        let time =
            Duration::from_millis(self.now.until(connection.session.deadline()).as_millis() as u64 * 9 / 10);
        let token = request.token.clone();
        match self.shared.logic.connect(request) {
            Call::Ready(result) => {
                self.connected(id, disconnects, result.map_err(|error| known(error, &token)))
            }
            Call::Pending(answer) => {
                let own = self.peers.own().clone();
                self.shared.runtime.spawn(async move {
                    let mut answer = std::pin::pin!(answer.into_future());
                    let connected = |result: Result<Accepted, ConnectError>| {
                        let result = result.map_err(|error| known(error, &token));
                        own.notice(Notice::Connected { connection: id, disconnects, result });
                    };
                    if let Ok(result) = tokio::time::timeout(time, &mut answer).await {
                        return connected(result);
                    }
                    connected(Err(ConnectError::unavailable("logic did not answer in time")));
                    // A session that is accepted after all is told farewell.
                    connected(answer.await);
                });
            }
        }
    }

    /// The token in goim's words. `None` when it is none in the words of the listener's dialect.
    fn read_token(&mut self, slot: u32, token: Bytes) -> Option<Bytes> {
        let connection = &mut self.connections[slot];
        match self.listeners.kind(connection.listener).dialect() {
            Dialect::Goim => Some(token),
            Dialect::Danmaku => {
                let auth = danmaku::read_auth(&token, &self.shared.config.listen.danmaku_room_type)?;
                connection.class = self.shared.versions.class_of_danmaku(auth.encoding);
                Some(auth.token)
            }
        }
    }

    /// Ends a connection that gets no session.
    fn refuse(&mut self, slot: u32, reason: CloseReason) {
        let connection = &mut self.connections[slot];
        if self.listeners.kind(connection.listener).dialect() == Dialect::Danmaku {
            connection.session.reply_refused(self.egress.pool(), danmaku::REFUSED);
        }
        self.close(slot, reason);
    }

    /// Returns the answer of a call that is resolved already. Otherwise the runtime awaits it, and it comes back to this
    /// shard as the notice that `notice` makes of it.
    pub(super) fn call<T: Send + 'static>(
        &self,
        call: Call<T>,
        notice: impl FnOnce(T) -> Notice + Send + 'static,
    ) -> Option<T> {
        match call {
            Call::Ready(answer) => Some(answer),
            Call::Pending(answer) => {
                let own = self.peers.own().clone();
                self.shared.runtime.spawn(async move { own.notice(notice(answer.await)) });
                None
            }
        }
    }

    pub(super) fn take_notice(&mut self, notice: Notice) {
        match notice {
            Notice::Connected { connection, disconnects, result } => {
                self.connected(connection, disconnects, result);
                if let Some(slot) = self.connections.find(connection) {
                    self.take_input(slot);
                }
            }
            Notice::Replied { connection, result } => {
                if let Some(slot) = self.connections.find(connection) {
                    self.replied(slot, result);
                    self.take_input(slot);
                }
            }
            Notice::Resumed { connection, result } => {
                if let Some(slot) = self.connections.find(connection) {
                    self.resumed_position(slot, result);
                    self.resume_positions(slot);
                }
            }
            Notice::Refreshed { connection, result } => {
                if let Some(slot) = self.connections.find(connection) {
                    self.refreshed(slot, result);
                    self.take_input(slot);
                }
            }
            Notice::Superseded(connection) => {
                if let Some(slot) = self.connections.find(connection) {
                    self.close(slot, CloseReason::Superseded);
                }
            }
            Notice::Register(connection) => {
                if let Some(slot) = self.connections.find(connection) {
                    self.register_session(slot);
                }
            }
            Notice::Members { room, limit, answer } => {
                // Whoever asked may have gone.
                let _ = answer.send(self.members_of(&room, limit));
            }
            Notice::RegisterAll => self.begin_reregistration(),
            Notice::Recover { ago, register } => self.begin_recovery(ago, register),
            Notice::Sync(connection) => {
                if let Some(slot) = self.connections.find(connection) {
                    self.request_sync(slot);
                }
            }
            Notice::Drain { sessions_per_second, deadline, delay_max } => {
                self.begin_drain(sessions_per_second, deadline, delay_max);
            }
        }
    }

    fn connected(&mut self, id: ConnectionId, disconnects: u64, result: Result<Accepted, ConnectError>) {
        let slot = self.connections.find(id).filter(|slot| !self.connections[*slot].is_closing());
        match (slot, result) {
            (Some(slot), Ok(accepted)) => self.open(slot, disconnects, accepted),
            (Some(slot), Err(error)) => {
                let connection = &mut self.connections[slot];
                tracing::debug!(remote = %connection.remote(), %error, "no session");
                if error.negotiated {
                    connection.session.is_known_extended();
                }
                self.refuse(slot, reason_of(error.reason));
            }
            // The client did not wait for the answer, and logic has entered a session that is not there.
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
        let location = self.peers.locate(self.connections.id(slot));
        let connection = &mut self.connections[slot];
        let rooms = rooms_of(&accepted, self.shared.config.limits.rooms_max.get());
        let versions = &self.shared.versions;
        let dialect = self.listeners.kind(connection.listener).dialect();
        let highest = versions.table().highest();
        let protover =
            accepted.protover.filter(|_| dialect == Dialect::Goim).map(|protover| protover.min(highest));
        let class = match dialect {
            Dialect::Goim => versions.class_of(protover, connection.session.deflates(), syncs_of(&accepted)),
            Dialect::Danmaku => connection.class,
        };
        let reply = match protover {
            Some(protover) => welcome(&accepted, protover, &rooms, &self.shared.server),
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
        connection.identity = Some(Identity { key: accepted.key.clone(), mid: accepted.mid });
        connection.class = class;
        self.shared.versions.session_opened(class);
        self.stats.sessions.up();
        self.stats.packets_out(goim_ports::Operation::AUTH_REPLY, 1, goim_wire::HEADER_LEN + reply.len());
        self.schedule_renewal(slot);
        let entered = self.shared.keys.enter(&accepted.key, location, disconnects);
        if let Some(old) = entered.superseded {
            self.peers.notify(old, Notice::Superseded);
        }
        if entered.register_again {
            self.register_session(slot);
        }
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

    pub(super) fn heartbeat(&mut self, slot: u32, version: Version, sequence: Sequence) {
        let connection = &mut self.connections[slot];
        let online = connection.membership.map_or(0, |membership| self.rooms.online(membership));
        connection.session.reply_heartbeat(self.egress.pool(), version, sequence, online);
        self.stats.packets_out(goim_ports::Operation::HEARTBEAT_REPLY, 1, goim_wire::HEADER_LEN + 4);
        if self.now >= connection.renew_after {
            self.schedule_renewal(slot);
            self.register_session(slot);
        }
    }

    /// Hands a packet to the backend. The session takes no further packet until the answer is there.
    pub(super) fn upstream(&mut self, slot: u32, packet: PacketBuf) {
        let connection = &self.connections[slot];
        let Some(identity) = connection.identity.clone() else { return };
        let id = self.connections.id(slot);
        let negotiated = connection.session.is_extended();
        if negotiated && Self::is_about_timelines(packet.operation) {
            return self.ask_about_timeline(slot, packet);
        }
        // goim ignores the version.
        let Some((schema, packet)) =
            (if negotiated { self.read(slot, packet) } else { Some((Schema::FIRST, packet)) })
        else {
            return;
        };
        let upstream = Upstream {
            mid: identity.mid,
            key: identity.key.clone(),
            packet,
            schema,
            negotiated,
            is_member: false,
        };
        let call = self.shared.logic.receive(upstream);
        if let Some(result) = self.call(call, move |result| Notice::Replied { connection: id, result }) {
            self.replied(slot, result);
        }
    }

    /// The reply goes out whether or not the backend was reached: goim's clients count on one.
    pub(super) fn replied(&mut self, slot: u32, result: Result<Bytes, LogicError>) {
        let body = match result {
            Ok(body) => body,
            Err(error) => {
                self.stats.upstream_errors.add(1);
                tracing::debug!(%error, "a packet was not handled");
                let failure = match &error {
                    LogicError::Unavailable(_) => RequestFailure::Unavailable,
                    LogicError::Failed(_) => RequestFailure::Failed,
                    LogicError::Busy(_) => RequestFailure::Busy,
                    LogicError::Late(_) => RequestFailure::NotInTime,
                    LogicError::Limited { .. } => RequestFailure::RateLimited,
                };
                let retry_after = match error {
                    LogicError::Limited { retry_after } => Some(retry_after),
                    _ => None,
                };
                if self.fail_request_until(slot, failure.code(), failure.label(), "", retry_after) {
                    return;
                }
                // A client of goim gets goim's empty echo.
                Bytes::new()
            }
        };
        let connection = &mut self.connections[slot];
        let is_about_timelines = connection.session.awaited_operation().is_some_and(Self::is_about_timelines);
        if connection.session.is_extended() && is_about_timelines {
            return self.replied_about_timeline(slot, &body);
        }
        let (written, body) = if connection.session.is_extended() && !body.is_empty() {
            let schema =
                self.shared.versions.schema_of(connection.session.awaited().unwrap_or(Version::GOIM));
            let (version, body) = self.shared.versions.write(connection.session.protover(), schema, body);
            (Some(version), body)
        } else {
            (None, body)
        };
        if let Some(operation) = connection.session.reply_upstream(self.egress.pool(), written, &body) {
            self.stats.packets_out(operation, 1, goim_wire::HEADER_LEN + body.len());
        }
        self.stage(slot);
    }

    /// The body of a packet of an negotiated client as its version says. `None` when that could not be done, and the client has been
    /// told or is gone.
    fn read(&mut self, slot: u32, packet: PacketBuf) -> Option<(Schema, PacketBuf)> {
        let versions = &self.shared.versions;
        let Some(row) = versions.table().row(packet.version) else {
            let failure = RequestFailure::BadRequest;
            self.fail_request(slot, failure.code(), failure.label(), "the version is not in the table");
            return None;
        };
        if row.encoding == Encoding::Identity {
            return Some((row.schema, packet));
        }
        match inflate(row.encoding, &packet.body, versions.config().inflated_bytes_max) {
            Ok(body) => Some((row.schema, PacketBuf { body: body.into(), ..packet })),
            Err(error) => {
                tracing::debug!(remote = %self.connections[slot].remote(), %error, "a body cannot be inflated");
                self.close(
                    slot,
                    match error {
                        InflateError::TooLarge(_) => CloseReason::InflatedTooLarge,
                        InflateError::Malformed(_) => CloseReason::BadCompression,
                    },
                );
                None
            }
        }
    }
}

/// The error with what the token says of its client, where whoever should have read it was not
/// reached: an negotiated client is told that it may come back.
fn known(error: ConnectError, token: &[u8]) -> ConnectError {
    if error.negotiated || !error.is_unavailable() {
        return error;
    }
    let negotiated =
        serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(token).is_ok_and(|said| {
            said.iter().any(|(name, value)| name.eq_ignore_ascii_case("protover") && value.is_i64())
        });
    ConnectError { negotiated, ..error }
}

/// What a session is to be told of messages in timelines.
fn syncs_of(accepted: &Accepted) -> Syncs {
    match &accepted.syncing {
        None => Syncs::No,
        Some(syncing) if syncing.notify_only => Syncs::NotifyOnly,
        Some(_) => Syncs::WithMessages,
    }
}

/// The rooms that a session begins in: the one of goim first, each once, as many as it may be in.
fn rooms_of(accepted: &Accepted, rooms_max: usize) -> Vec<RoomId> {
    let mut rooms: Vec<RoomId> = accepted.room.iter().cloned().collect();
    for room in &accepted.rooms {
        if rooms.len() < rooms_max && !room.as_str().is_empty() && !rooms.contains(room) {
            rooms.push(room.clone());
        }
    }
    rooms
}

/// The body of the auth reply for an negotiated client.
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

/// When a token's end is by a shard's clock.
pub(super) fn expires(now: Moment, at: Option<goim_ports::ExpiresAt>) -> Moment {
    at.map_or(Moment::NEVER, |at| now.after(at.left()))
}

/// What a client is told that gets no session.
pub(super) fn reason_of(reason: NoSession) -> CloseReason {
    match reason {
        NoSession::Unavailable => CloseReason::AuthUnavailable,
        NoSession::Refused => CloseReason::AuthRefused,
        NoSession::Expired => CloseReason::TokenExpired,
        NoSession::NotYet => CloseReason::TokenNotYetValid,
        NoSession::Audience => CloseReason::TokenAudience,
        NoSession::Signature => CloseReason::TokenSignature,
        NoSession::Mismatch => CloseReason::TokenMismatch,
        NoSession::Denied => CloseReason::AuthDenied,
        NoSession::Room => CloseReason::RoomNotAllowed,
    }
}
