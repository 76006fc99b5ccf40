//! The server's end of a connection.
//!
//! The driver feeds bytes ([`ServerSession::step`]), does what a [`Step`] asks for, and writes what the outbox holds.
//! Answers that need others (authentication, the backend, the online count) are put in by the driver; until the
//! answer to the first two is there, no further packet is taken, which keeps replies in order without a queue.
//!
//! What goim does and this keeps: packets before authentication are dropped without a word; every packet after it has
//! exactly one reply, with its version and sequence; nothing but operation 2 keeps a session alive; a violation closes
//! without a packet.

use alloc::boxed::Box;
use core::time::Duration;

use goim_wire::{Operation, Packet, Sequence, Version, control};
use smallvec::SmallVec;

use crate::framing::{EncodedPush, Framing, FramingRules, Incoming, Transport, UpgradeFacts};
use crate::outbox::{Admission, Outbox, OutboxPool, QueueLimit};
use crate::{CloseReason, Millis};

/// Operations that one session may subscribe to. Twice as many as one packet of the default size can name; 16 KiB.
pub const SUBSCRIPTIONS_MAX: usize = 4096;

/// What all sessions of a listener have in common.
#[derive(Debug, Clone)]
pub struct ServerRules {
    /// What the framing checks.
    pub framing: FramingRules,
    /// From the first moment to the end of authentication.
    pub handshake_timeout: Duration,
    /// Bytes of replies that may wait before no more input is taken.
    pub reply_bytes_max: usize,
}

/// What the driver has to do.
#[derive(Debug)]
pub enum Step<'a> {
    /// The input is used up.
    Idle,
    /// Something was dealt with inside; call again.
    Handled {
        /// What it was, with the length of its body, when it was a packet.
        packet: Option<(Operation, usize)>,
    },
    /// Somebody presents a token: find out, then call [`ServerSession::authenticated`] or close.
    Authenticate {
        /// Body of the auth packet.
        token: &'a [u8],
    },
    /// The session is alive; call [`ServerSession::reply_heartbeat`] with the online count of its room.
    Heartbeat {
        /// To be handed back.
        version: Version,
        /// To be handed back.
        sequence: Sequence,
    },
    /// The session moves to this room, or out of its room when the name is empty. The reply is queued already.
    ChangeRoom {
        /// The room's name as it came.
        room: &'a [u8],
    },
    /// An negotiated client wants to be in these rooms as well, or no longer; call [`ServerSession::reply_control`].
    Rooms {
        /// True for joining.
        join: bool,
        /// Body of the packet: a list in JSON.
        rooms: &'a [u8],
    },
    /// An negotiated client presents a new token: find out, then call [`ServerSession::reply_control`] or
    /// [`ServerSession::reply_error`].
    Refresh {
        /// Body of the packet.
        token: &'a [u8],
    },
    /// A message under permessage-deflate: inflate it, within a bound, and call [`ServerSession::inflated`] with what comes out.
    Inflate {
        /// What came, without the four bytes that RFC 7692 leaves out.
        message: &'a [u8],
    },
    /// A packet for the backend; call [`ServerSession::reply_upstream`] with its answer.
    Upstream {
        /// The packet.
        packet: Packet<'a>,
    },
}

/// What authentication has found out about a session.
#[derive(Debug, Clone)]
pub struct Established<'a> {
    /// Operations that the session wants pushed.
    pub accepts: &'a [Operation],
    /// The session ends when this much time passes without a heartbeat.
    pub heartbeat: Duration,
    /// The packet version that an negotiated client reads; `None` for a goim client.
    pub protover: Option<Version>,
    /// Body of the auth reply: empty for goim clients.
    pub reply: &'a [u8],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// No acceptable packet yet.
    Unauthenticated,
    /// The token is with logic.
    Authenticating {
        version: Version,
        sequence: Sequence,
    },
    Open,
    /// A packet is with the backend.
    AwaitingReply {
        version: Version,
        operation: Operation,
        sequence: Sequence,
    },
    /// Nothing is read any more; what waits may still be sent.
    Closed,
}

/// What taking a packet changes in a session. The packet may lie in the rest of it.
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
    // Always: a call for each packet would cost a twentieth of a heartbeat.
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

/// One connection, seen from the server. The fields lie in this order: what a push needs comes first and together, since
/// with many sessions each line of memory is one to wait for.
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
    /// Between upgrade and authentication only.
    facts: Option<Box<UpgradeFacts>>,
}

impl ServerSession {
    /// A connection that has just been accepted.
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

    /// How packets are carried.
    #[must_use]
    pub fn transport(&self) -> Transport {
        self.framing.transport()
    }

    /// True when the client reads messages that permessage-deflate has compressed.
    #[must_use]
    pub fn deflates(&self) -> bool {
        self.framing.deflates()
    }

    /// True between authentication and the end.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open | Phase::AwaitingReply { .. })
    }

    /// True when the client has said that it knows more than goim.
    #[must_use]
    pub fn is_negotiated(&self) -> bool {
        self.protover.is_some()
    }

    /// True when input would be taken: no answer is outstanding and the replies that wait are few.
    #[must_use]
    pub fn wants_input(&self, rules: &ServerRules) -> bool {
        matches!(self.phase, Phase::Unauthenticated | Phase::Open)
            && self.outbox.reply_bytes() <= rules.reply_bytes_max
    }

    /// When [`ServerSession::expired`] is to be asked.
    #[must_use]
    pub fn deadline(&self) -> Millis {
        self.deadline
    }

    /// The reason to close, when the deadline has passed.
    #[must_use]
    pub fn expired(&self, now: Millis) -> Option<CloseReason> {
        if now < self.deadline {
            return None;
        }
        Some(if self.is_open() { CloseReason::HeartbeatTimeout } else { CloseReason::HandshakeTimeout })
    }

    /// What the upgrade request said, once: it is not needed after authentication.
    pub fn take_facts(&mut self) -> UpgradeFacts {
        self.facts.take().map(|facts| *facts).unwrap_or_default()
    }

    /// The packet version that the client reads: that of goim when it has named none.
    #[must_use]
    pub fn protover(&self) -> Version {
        self.protover.unwrap_or(Version::GOIM)
    }

    /// True when the session wants pushes of this operation.
    #[must_use]
    pub fn accepts(&self, operation: Operation) -> bool {
        self.accepts.binary_search(&operation).is_ok()
    }

    /// What waits to be sent.
    #[must_use]
    pub fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    // --- input

    /// Takes the next thing off `input` from `*at` on and says what is to be done. Call again until [`Step::Idle`],
    /// as long as [`ServerSession::wants_input`]; input that is left over then must be kept and offered again.
    ///
    /// # Errors
    /// The reason to close. What waits in the outbox (a pong, an answer to a bad upgrade) may be sent before.
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
                taking.outbox.reply(pool, |out| out.extend(error.last_words(&rules.framing)));
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

    /// The framing, and all that what it reads may change: a packet may lie in the one while it changes the other.
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

    /// Goes on with a message that [`Step::Inflate`] has asked for: what it carries is dealt with as in [`ServerSession::step`].
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

    /// The token was good: queues the auth reply and opens the session.
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

    /// The version of the packet that waits for an answer.
    #[must_use]
    pub fn awaited(&self) -> Option<Version> {
        match self.phase {
            Phase::AwaitingReply { version, .. } => Some(version),
            _ => None,
        }
    }

    /// The operation of the packet that waits for an answer.
    #[must_use]
    pub fn awaited_operation(&self) -> Option<Operation> {
        match self.phase {
            Phase::AwaitingReply { operation, .. } => Some(operation),
            _ => None,
        }
    }

    /// Queues a packet that answers nothing and must not be lost, for an negotiated client. The caller sees to it that few wait.
    pub fn tell(&mut self, pool: &mut OutboxPool, operation: Operation, body: &[u8]) {
        self.reply(pool, Version::GOIM, operation, Sequence::NONE, body);
    }

    /// Queues the reply to a request of an negotiated client whose reply has an operation of its own: that of the request and one. Gives
    /// that operation.
    pub fn reply_control(&mut self, pool: &mut OutboxPool, body: &[u8]) -> Option<Operation> {
        let Phase::AwaitingReply { version, operation, sequence } = self.phase else { return None };
        self.phase = Phase::Open;
        let reply = Operation(operation.0.wrapping_add(1));
        self.reply(pool, version, reply, sequence, body);
        Some(reply)
    }

    /// Tells an negotiated client that its request has failed, and takes input again. Gives the operation that has failed; `None`, and
    /// nothing is done, for a client of goim.
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

    /// Queues an auth reply for somebody who gets no session: for a dialect that has one. The connection is to be closed then.
    pub fn reply_refused(&mut self, pool: &mut OutboxPool, body: &[u8]) {
        let Phase::Authenticating { version, sequence } = self.phase else { return };
        self.reply(pool, version, Operation::AUTH_REPLY, sequence, body);
    }

    /// The client has said, in a token that was not accepted, that it knows more than goim: it may be told why.
    pub fn mark_negotiated(&mut self) {
        self.protover = Some(Version::GOIM);
    }

    /// Queues the answer of the backend to the packet that waits for it, and takes input again. Gives the operation
    /// that was answered.
    ///
    /// The version is that of the packet, unless the body is written as `written` says.
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

    /// Queues a push. The caller has looked at the subscription where that matters.
    pub fn push(&mut self, pool: &mut OutboxPool, push: &EncodedPush, limit: QueueLimit) -> Admission {
        if !self.is_open() {
            return Admission::DroppedNewest;
        }
        self.outbox.push(pool, push.bytes(self.transport()), limit)
    }

    /// Takes `len` bytes off the front of the outbox: they are written.
    pub fn written(&mut self, pool: &mut OutboxPool, len: usize) {
        self.outbox.advance(pool, len);
    }

    /// Ends the session: nothing is read or pushed any more. An negotiated client is told why, and where to go; a goim
    /// client sees the end of the connection only, as in goim.
    pub fn close(&mut self, pool: &mut OutboxPool, reason: CloseReason, farewell: &[u8]) {
        let was_there = self.phase != Phase::Closed && self.phase != Phase::Unauthenticated;
        let told = was_there && self.is_negotiated() && reason != CloseReason::PeerClosed;
        if told {
            self.reply(pool, Version::GOIM, Operation::DISCONNECT, Sequence::NONE, farewell);
            let transport = self.transport();
            self.outbox.reply(pool, |out| transport.going_away(reason.label(), out));
        }
        self.phase = Phase::Closed;
        self.deadline = Millis::NEVER;
    }

    /// Gives the memory of what still waits back to the pool.
    pub fn discard(&mut self, pool: &mut OutboxPool) {
        self.outbox.clear(pool);
    }
}

/// Adds operations, sorted, so that one client's list costs nobody a walk over it. Beyond [`SUBSCRIPTIONS_MAX`] the rest
/// is left out.
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
