//! The server's end of a connection.
//!
//! The driver passes in bytes ([`ServerSession::step`]), does what a [`Step`] requires, and writes
//! the outbox. It also brings the results that the session waits for (authentication, the backend,
//! the online count); until the first two are known no further packet is read, which keeps replies
//! in order without a queue.
//!
//! As in goim: packets before authentication are dropped silently; every packet after it has
//! exactly one reply, with its version and sequence; only operation 2 keeps a session alive; a
//! violation closes without a packet.

use alloc::boxed::Box;
use core::time::Duration;

use goim_wire::{Operation, Packet, Sequence, Version, control};
use smallvec::SmallVec;

use crate::framing::{EncodedPush, Framing, FramingRules, Incoming, Transport, UpgradeFacts};
use crate::outbox::{Admission, Outbox, OutboxPool, QueueLimit};
use crate::{CloseReason, Millis};

/// Maximum number of subscriptions of a session. Twice as many as one packet of the default size
/// can name; 16 KiB.
pub const SUBSCRIPTIONS_MAX: usize = 4096;

/// Settings that all sessions of a listener share.
#[derive(Debug, Clone)]
pub struct ServerRules {
    /// Limits and rules of the framing.
    pub framing: FramingRules,
    /// Time from the start to the end of authentication.
    pub handshake_timeout: Duration,
    /// Bytes of queued replies above which no more input is read.
    pub reply_bytes_max: usize,
}

/// What the driver has to do.
#[derive(Debug)]
pub enum Step<'a> {
    /// The input is consumed.
    Idle,
    /// Something was handled internally; call again.
    Handled {
        /// Its operation and the length of its body, if it was a packet.
        packet: Option<(Operation, usize)>,
    },
    /// A client authenticates: check the token, then call [`ServerSession::authenticated`] or
    /// close.
    Authenticate {
        /// Body of the auth packet.
        token: &'a [u8],
    },
    /// The session is alive; call [`ServerSession::reply_heartbeat`] with the number of sessions in
    /// its room.
    Heartbeat {
        /// For the reply.
        version: Version,
        /// For the reply.
        sequence: Sequence,
    },
    /// The session moves to this room, or leaves its room if the name is empty. The reply is queued
    /// already.
    ChangeRoom {
        /// The room's name as received.
        room: &'a [u8],
    },
    /// A negotiated client joins or leaves further rooms; call [`ServerSession::reply_control`].
    Rooms {
        /// Whether it joins them.
        join: bool,
        /// Body of the packet: a list in JSON.
        rooms: &'a [u8],
    },
    /// A negotiated client sends a new token: check it, then call [`ServerSession::reply_control`]
    /// or [`ServerSession::reply_error`].
    Refresh {
        /// Body of the packet.
        token: &'a [u8],
    },
    /// A message under permessage-deflate: inflate it, within a limit, and call
    /// [`ServerSession::inflated`] with the result.
    Inflate {
        /// The payload, without the four bytes that RFC 7692 omits.
        message: &'a [u8],
    },
    /// A packet for the backend; call [`ServerSession::reply_upstream`] with its reply.
    Upstream {
        /// The packet.
        packet: Packet<'a>,
    },
}

/// The result of a successful authentication.
#[derive(Debug, Clone)]
pub struct Established<'a> {
    /// The operations that the session subscribes to.
    pub accepts: &'a [Operation],
    /// The session ends after this time without a heartbeat.
    pub heartbeat: Duration,
    /// The highest packet version that a negotiated client reads; `None` for a client of goim.
    pub protover: Option<Version>,
    /// Body of the auth reply: empty for goim clients.
    pub reply: &'a [u8],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// No valid packet yet.
    Unauthenticated,
    /// Logic checks the token.
    Authenticating {
        version: Version,
        sequence: Sequence,
    },
    Open,
    /// The backend handles a packet.
    AwaitingReply {
        version: Version,
        operation: Operation,
        sequence: Sequence,
    },
    /// Nothing is read any more; the outbox may still be written.
    Closed,
}

/// The parts of a session that a packet can change. The packet itself may borrow from the rest.
struct Taking<'s> {
    outbox: &'s mut Outbox,
    accepts: &'s mut SmallVec<[Operation; 4]>,
    phase: &'s mut Phase,
    deadline: &'s mut Millis,
    facts: &'s mut Option<Box<UpgradeFacts>>,
    heartbeat_ms: u32,
    now: Millis,
    transport: Transport,
    negotiated: bool,
}

impl Taking<'_> {
    // Always inlined: a call for each packet would cost 5 % of a heartbeat.
    #[inline(always)]
    fn packet<'a>(self, pool: &mut OutboxPool, packet: Packet<'a>) -> Result<Step<'a>, CloseReason> {
        let Packet { version, operation, sequence, body } = packet;
        let handled = Step::Handled { packet: Some((operation, body.len())) };
        if *self.phase == Phase::Unauthenticated {
            if operation != Operation::AUTH {
                return Ok(handled);
            }
            *self.phase = Phase::Authenticating { version, sequence };
            return Ok(Step::Authenticate { token: body });
        }
        let transport = self.transport;
        let mut echo = |operation| {
            let packet = Packet { version, operation, sequence, body };
            self.outbox.reply(pool, |out| transport.encode(packet, None, out));
        };
        match operation {
            Operation::HEARTBEAT => {
                *self.deadline = self.now.after(Duration::from_millis(u64::from(self.heartbeat_ms)));
                Ok(Step::Heartbeat { version, sequence })
            }
            Operation::CHANGE_ROOM => {
                echo(Operation::CHANGE_ROOM_REPLY);
                Ok(Step::ChangeRoom { room: body })
            }
            Operation::SUBSCRIBE => {
                echo(Operation::SUBSCRIBE_REPLY);
                subscribe(self.accepts, &control::parse_operations(body).unwrap_or_default());
                Ok(handled)
            }
            Operation::UNSUBSCRIBE => {
                echo(Operation::UNSUBSCRIBE_REPLY);
                let mut gone = control::parse_operations(body).unwrap_or_default();
                gone.sort_unstable();
                self.accepts.retain(|operation| gone.binary_search(operation).is_err());
                Ok(handled)
            }
            _ => {
                *self.phase = Phase::AwaitingReply { version, operation, sequence };
                Ok(match operation {
                    Operation::JOIN_ROOMS if self.negotiated => Step::Rooms { join: true, rooms: body },
                    Operation::LEAVE_ROOMS if self.negotiated => Step::Rooms { join: false, rooms: body },
                    Operation::REFRESH_TOKEN if self.negotiated => Step::Refresh { token: body },
                    _ => Step::Upstream { packet },
                })
            }
        }
    }
}

/// A connection, seen from the server. The fields are in this order so that those for a push are
/// first and together: with many sessions, each cache line is a miss.
#[derive(Debug)]
#[repr(C)]
pub struct ServerSession {
    outbox: Outbox,
    /// Sorted.
    accepts: SmallVec<[Operation; 4]>,
    framing: Framing,
    phase: Phase,
    protover: Option<Version>,
    /// In milliseconds.
    heartbeat_ms: u32,
    deadline: Millis,
    /// Only between the upgrade and authentication.
    facts: Option<Box<UpgradeFacts>>,
}

impl ServerSession {
    /// Creates the session of a connection that was just accepted.
    #[must_use]
    pub fn new(transport: Transport, rules: &ServerRules, now: Millis) -> Self {
        Self {
            framing: Framing::server(transport),
            phase: Phase::Unauthenticated,
            outbox: Outbox::new(),
            deadline: now.after(rules.handshake_timeout),
            heartbeat_ms: 0,
            accepts: SmallVec::new(),
            protover: None,
            facts: None,
        }
    }

    // --- getters

    /// Returns the transport.
    #[must_use]
    pub fn transport(&self) -> Transport {
        self.framing.transport()
    }

    /// Returns true if the client reads messages compressed by permessage-deflate.
    #[must_use]
    pub fn deflates(&self) -> bool {
        self.framing.deflates()
    }

    /// Returns true between authentication and the end.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open | Phase::AwaitingReply { .. })
    }

    /// Returns true if the client has sent a protocol version, and is not a client of goim.
    #[must_use]
    pub fn is_negotiated(&self) -> bool {
        self.protover.is_some()
    }

    /// Returns true if input would be read: no result is awaited, and few replies are queued.
    #[must_use]
    pub fn wants_input(&self, rules: &ServerRules) -> bool {
        matches!(self.phase, Phase::Unauthenticated | Phase::Open)
            && self.outbox.reply_bytes() <= rules.reply_bytes_max
    }

    /// Returns when [`ServerSession::expired`] is due.
    #[must_use]
    pub fn deadline(&self) -> Millis {
        self.deadline
    }

    /// Returns the reason to close if the deadline has passed.
    #[must_use]
    pub fn expired(&self, now: Millis) -> Option<CloseReason> {
        if now < self.deadline {
            return None;
        }
        Some(if self.is_open() { CloseReason::HeartbeatTimeout } else { CloseReason::HandshakeTimeout })
    }

    /// Takes the headers of the upgrade request: they are not needed after authentication.
    pub fn take_facts(&mut self) -> UpgradeFacts {
        self.facts.take().map(|facts| *facts).unwrap_or_default()
    }

    /// Returns the highest packet version that the client reads: goim's if it has sent none.
    #[must_use]
    pub fn protover(&self) -> Version {
        self.protover.unwrap_or(Version::GOIM)
    }

    /// Returns true if the session has subscribed to this operation.
    #[must_use]
    pub fn accepts(&self, operation: Operation) -> bool {
        self.accepts.binary_search(&operation).is_ok()
    }

    /// Returns the queue of bytes to send.
    #[must_use]
    pub fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    // --- input

    /// Handles the next part of `input` from `*at` on and returns what to do. Call again until
    /// [`Step::Idle`], as long as [`ServerSession::wants_input`]; the rest of the input must be
    /// stored and passed in again later.
    ///
    /// # Errors
    /// The reason to close. The outbox (a pong, a response to an invalid upgrade) may be written
    /// before.
    pub fn step<'a>(
        &'a mut self,
        rules: &ServerRules,
        pool: &mut OutboxPool,
        now: Millis,
        input: &'a mut [u8],
        at: &mut usize,
    ) -> Result<Step<'a>, CloseReason> {
        if !self.wants_input(rules) {
            return Ok(Step::Idle);
        }
        let (framing, taking) = self.parts(now);
        let transport = taking.transport;
        let incoming = match framing.next(&rules.framing, input, at) {
            Ok(incoming) => incoming,
            Err(error) => {
                let reason = error.reason();
                taking.outbox.reply(pool, |out| out.extend(error.closing_frame(&rules.framing)));
                return Err(reason);
            }
        };
        let packet = match incoming {
            None => return Ok(Step::Idle),
            Some(Incoming::Packet(packet)) => packet,
            Some(Incoming::Deflated(message)) => return Ok(Step::Inflate { message }),
            Some(Incoming::Nothing) => return Ok(Step::Handled { packet: None }),
            Some(Incoming::Upgraded { response, facts }) => {
                *taking.facts = (facts != UpgradeFacts::default()).then(|| Box::new(facts));
                taking.outbox.reply(pool, |out| out.extend_from_slice(&response));
                return Ok(Step::Handled { packet: None });
            }
            Some(Incoming::Ping(payload)) => {
                taking.outbox.reply(pool, |out| transport.pong(payload, out));
                return Ok(Step::Handled { packet: None });
            }
            Some(Incoming::Closed) => {
                taking.outbox.reply(pool, |out| transport.goodbye(out));
                return Err(CloseReason::PeerClosed);
            }
        };
        taking.packet(pool, packet)
    }

    /// Splits the session into the framing and the parts that a packet can change: a packet may
    /// borrow from the one while it changes the other.
    #[inline(always)]
    fn parts(&mut self, now: Millis) -> (&mut Framing, Taking<'_>) {
        let (transport, negotiated) = (self.framing.transport(), self.protover.is_some());
        let taking = Taking {
            outbox: &mut self.outbox,
            accepts: &mut self.accepts,
            phase: &mut self.phase,
            deadline: &mut self.deadline,
            facts: &mut self.facts,
            heartbeat_ms: self.heartbeat_ms,
            now,
            transport,
            negotiated,
        };
        (&mut self.framing, taking)
    }

    /// Handles the message that [`Step::Inflate`] has returned, as [`ServerSession::step`] does.
    ///
    /// # Errors
    /// The reason to close.
    pub fn inflated<'a>(
        &mut self,
        rules: &ServerRules,
        pool: &mut OutboxPool,
        now: Millis,
        message: &'a [u8],
    ) -> Result<Step<'a>, CloseReason> {
        let packet = Packet::from_message(message, rules.framing.body_bytes_max);
        let packet = packet.map_err(|_| CloseReason::BadPacket)?;
        let (_, taking) = self.parts(now);
        taking.packet(pool, packet)
    }

    // --- answers of others

    /// Opens the session after a successful authentication: queues the auth reply.
    pub fn authenticated(&mut self, pool: &mut OutboxPool, now: Millis, established: &Established<'_>) {
        let Phase::Authenticating { version, sequence } = self.phase else { return };
        self.phase = Phase::Open;
        self.heartbeat_ms = u32::try_from(established.heartbeat.as_millis()).unwrap_or(u32::MAX);
        self.deadline = now.after(established.heartbeat);
        self.protover = established.protover;
        subscribe(&mut self.accepts, established.accepts);
        self.reply(pool, version, Operation::AUTH_REPLY, sequence, established.reply);
    }

    /// Queues the reply to a heartbeat.
    pub fn reply_heartbeat(
        &mut self,
        pool: &mut OutboxPool,
        version: Version,
        sequence: Sequence,
        online: u32,
    ) {
        self.reply(pool, version, Operation::HEARTBEAT_REPLY, sequence, &control::online_count(online));
    }

    /// Returns the version of the packet that waits for its reply.
    #[must_use]
    pub fn awaited(&self) -> Option<Version> {
        match self.phase {
            Phase::AwaitingReply { version, .. } => Some(version),
            _ => None,
        }
    }

    /// Returns the operation of the packet that waits for its reply.
    #[must_use]
    pub fn awaited_operation(&self) -> Option<Operation> {
        match self.phase {
            Phase::AwaitingReply { operation, .. } => Some(operation),
            _ => None,
        }
    }

    /// Queues a packet that replies to nothing and must not be dropped, for a negotiated client.
    /// The caller limits their number.
    pub fn send_control(&mut self, pool: &mut OutboxPool, operation: Operation, body: &[u8]) {
        self.reply(pool, Version::GOIM, operation, Sequence::NONE, body);
    }

    /// Queues the reply to a request of a negotiated client, with the operation of the request plus
    /// one. Returns that operation.
    pub fn reply_control(&mut self, pool: &mut OutboxPool, body: &[u8]) -> Option<Operation> {
        let Phase::AwaitingReply { version, operation, sequence } = self.phase else { return None };
        self.phase = Phase::Open;
        let reply = Operation(operation.0.wrapping_add(1));
        self.reply(pool, version, reply, sequence, body);
        Some(reply)
    }

    /// Fails the request of a negotiated client, and continues to read. Returns the operation of
    /// the request; `None`, without any effect, for a client of goim.
    pub fn reply_error(
        &mut self,
        pool: &mut OutboxPool,
        body: impl FnOnce(Operation) -> alloc::vec::Vec<u8>,
    ) -> Option<Operation> {
        let Phase::AwaitingReply { version, operation, sequence } = self.phase else { return None };
        if !self.is_negotiated() {
            return None;
        }
        self.phase = Phase::Open;
        self.reply(pool, version, Operation::ERROR, sequence, &body(operation));
        Some(operation)
    }

    /// Queues an auth reply for a client that gets no session, in a protocol variant that has one.
    /// The connection must be closed then.
    pub fn reply_refused(&mut self, pool: &mut OutboxPool, body: &[u8]) {
        let Phase::Authenticating { version, sequence } = self.phase else { return };
        self.reply(pool, version, Operation::AUTH_REPLY, sequence, body);
    }

    /// Marks the client as negotiated although its token was not accepted: it can receive the
    /// reason.
    pub fn mark_negotiated(&mut self) {
        self.protover = Some(Version::GOIM);
    }

    /// Queues the backend's reply to the packet that waits for it, and continues to read. Returns
    /// the operation of the packet.
    ///
    /// The version is that of the packet, unless `written` names another one for the body.
    pub fn reply_upstream(
        &mut self,
        pool: &mut OutboxPool,
        written: Option<Version>,
        body: &[u8],
    ) -> Option<Operation> {
        let Phase::AwaitingReply { version, operation, sequence } = self.phase else { return None };
        self.phase = Phase::Open;
        self.reply(pool, written.unwrap_or(version), operation, sequence, body);
        Some(operation)
    }

    fn reply(
        &mut self,
        pool: &mut OutboxPool,
        version: Version,
        operation: Operation,
        sequence: Sequence,
        body: &[u8],
    ) {
        let transport = self.transport();
        let packet = Packet { version, operation, sequence, body };
        self.outbox.reply(pool, |out| transport.encode(packet, None, out));
    }

    // --- output

    /// Queues a push. The caller has checked the subscription if it matters.
    pub fn push(&mut self, pool: &mut OutboxPool, push: &EncodedPush, limit: QueueLimit) -> Admission {
        if !self.is_open() {
            return Admission::DroppedNewest;
        }
        self.outbox.push(pool, push.bytes(self.transport()), limit)
    }

    /// Removes the first `len` bytes of the outbox: they are written.
    pub fn written(&mut self, pool: &mut OutboxPool, len: usize) {
        self.outbox.advance(pool, len);
    }

    /// Ends the session: nothing is read or pushed any more. A negotiated client gets the
    /// disconnect packet; a client of goim only sees the end of the connection, as in goim.
    pub fn close(&mut self, pool: &mut OutboxPool, reason: CloseReason, notice: &[u8]) {
        let was_there = self.phase != Phase::Closed && self.phase != Phase::Unauthenticated;
        let sends_notice = was_there && self.is_negotiated() && reason != CloseReason::PeerClosed;
        if sends_notice {
            self.reply(pool, Version::GOIM, Operation::DISCONNECT, Sequence::NONE, notice);
            let transport = self.transport();
            self.outbox.reply(pool, |out| transport.append_close(reason.label(), out));
        }
        self.phase = Phase::Closed;
        self.deadline = Millis::NEVER;
    }

    /// Returns the memory of what is still queued to the pool.
    pub fn discard(&mut self, pool: &mut OutboxPool) {
        self.outbox.clear(pool);
    }
}

/// Inserts operations, sorted, so that a client's list cannot slow down the lookups. Those beyond
/// [`SUBSCRIPTIONS_MAX`] are left out.
fn subscribe(accepts: &mut SmallVec<[Operation; 4]>, wanted: &[Operation]) {
    for operation in wanted {
        if accepts.len() >= SUBSCRIPTIONS_MAX {
            return;
        }
        if let Err(place) = accepts.binary_search(operation) {
            accepts.insert(place, *operation);
        }
    }
}
