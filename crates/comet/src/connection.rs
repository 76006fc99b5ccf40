//! One connection as its shard stores it: socket, session, memberships. No behaviour beyond its own
//! fields.
//!
//! There may be a million of these, nearly all idle. What only few have at a time is in [`Rare`],
//! which is boxed.

use std::net::{IpAddr, Ipv6Addr};

use goim_ports::{Mid, Position, ResumePosition, RoomScope, SessionKey, TimelineId};
use goim_session::{Millis, ServerSession};

use crate::message::ProfileId;
use crate::rooms::Membership;
use crate::timers::Tick;
use crate::token_bucket::{Rate, TokenBucket};
use crate::transport::Socket;

/// Names a connection of one shard. The generation distinguishes it from others that used the slot
/// before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ConnectionId {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

/// A connection. The order of the fields is that of memory: what a push needs is together, in two
/// or three cache lines of the four that a connection uses.
#[repr(C)]
pub(crate) struct Connection {
    /// As an IPv6 address: one byte less than an `IpAddr`.
    remote: Ipv6Addr,
    /// Who is authenticated; `None` before and after the session.
    pub(crate) identity: Option<Identity>,
    /// When the session's record is to be renewed next.
    pub(crate) renew_after: Millis,
    /// The tick of its entry on the timer wheel.
    pub(crate) armed: Option<Tick>,
    pub(crate) membership: Option<Membership>,
    pub(crate) generation: u32,
    /// When the token expires, in seconds since the comet's start; `u32::MAX` is never.
    expires_s: u32,
    /// Index of the listener that accepted it.
    pub(crate) listener: u8,
    /// Which variant of a message the session gets.
    pub(crate) profile: ProfileId,
    /// The kernel may hold input.
    pub(crate) readable: bool,
    /// The peer has ended its stream, or it broke: reads must go to the end.
    pub(crate) half_closed: bool,
    /// The kernel takes output.
    pub(crate) writable: bool,
    /// It is in the flush queue.
    pub(crate) in_flush_queue: bool,
    /// It is in the list of connections to flush at the end of the turn.
    pub(crate) urgent: bool,
    /// It is in the list of connections whose input continues in the next turn.
    pub(crate) resumed: bool,
    rare: Option<Box<Rare>>,
    pub(crate) socket: Socket,
    /// Begins with the fields that a push needs.
    pub(crate) session: ServerSession,
}

/// What few connections have at a time.
#[derive(Default)]
struct Rare {
    unread: Option<Box<[u8]>>,
    throttled_until: Option<Millis>,
    closing: Option<Closing>,
    rate_limit: Option<TokenBucket>,
    /// Rooms besides the one of `membership`.
    further_rooms: Vec<Membership>,
    /// The rooms that the session may be in; `None` is any room.
    scope: Option<RoomScope>,
    /// While the session lags: when its socket last took bytes, or when it began to lag.
    drained_at: Option<Millis>,
    /// For a session that syncs.
    syncing: Option<SyncState>,
}

/// What a session that syncs is still to be sent.
#[derive(Default)]
struct SyncState {
    /// Positions to resume at, the next one last.
    positions: Vec<ResumePosition>,
    /// Logic was asked for what follows one of them.
    asking: bool,
    /// Notifications that wait for the socket: the newest position of each timeline.
    notifications: Vec<(TimelineId, Position)>,
}

/// The member and key of a session.
#[derive(Clone)]
pub(crate) struct Identity {
    pub(crate) key: SessionKey,
    pub(crate) mid: Mid,
}

/// A connection that is being closed: the session has ended, the socket stays open until the peer
/// has seen the end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Closing {
    /// When the socket is closed in any case.
    pub(crate) until: Millis,
    /// Our side of the stream has ended.
    pub(crate) ended: bool,
}

impl Connection {
    /// Creates a connection that was just accepted; it may be written to.
    pub(crate) fn new(
        socket: Socket,
        session: ServerSession,
        generation: u32,
        listener: u8,
        remote: IpAddr,
    ) -> Self {
        let remote = match remote {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        Self {
            socket,
            session,
            generation,
            armed: None,
            identity: None,
            membership: None,
            expires_s: u32::MAX,
            renew_after: Millis::NEVER,
            rare: None,
            remote,
            listener,
            profile: ProfileId::V2,
            readable: false,
            half_closed: false,
            writable: true,
            in_flush_queue: false,
            urgent: false,
            resumed: false,
        }
    }

    /// Reads from each cache line that a push and its flush need, so that all are loaded at once.
    /// The result has no meaning; it keeps the reads from being optimised out.
    pub(crate) fn prefetch(&self) -> u32 {
        let session = &self.session;
        let flags = [self.socket.holds_output(), session.outbox().is_empty(), session.is_open()];
        flags.iter().fold(self.generation, |seen, flag| seen << 1 ^ u32::from(*flag))
    }

    /// The same for input.
    pub(crate) fn prefetch_for_input(&self) -> u32 {
        self.prefetch() ^ self.renew_after.0 as u32 ^ self.session.deadline().0 as u32
    }

    /// Returns the client's address.
    pub(crate) fn remote(&self) -> IpAddr {
        self.remote.to_canonical()
    }

    /// Returns when the session's token expires.
    pub(crate) fn expires(&self) -> Millis {
        if self.expires_s == u32::MAX { Millis::NEVER } else { Millis(u64::from(self.expires_s) * 1000) }
    }

    /// Sets when the token expires, rounded up to whole seconds. [`Millis::NEVER`] is never.
    pub(crate) fn set_expires(&mut self, at: Millis) {
        self.expires_s = u32::try_from(at.0.div_ceil(1000)).unwrap_or(u32::MAX);
    }

    /// Returns when the connection must be checked in any case.
    pub(crate) fn deadline(&self) -> Millis {
        let session = self.session.deadline().min(self.expires());
        let Some(rare) = &self.rare else { return session };
        match rare.closing {
            Some(closing) => closing.until,
            None => session.min(rare.throttled_until.unwrap_or(Millis::NEVER)),
        }
    }

    /// Returns how the connection is being closed, if it is.
    pub(crate) fn closing(&self) -> Option<Closing> {
        self.rare.as_ref().and_then(|rare| rare.closing)
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing().is_some()
    }

    pub(crate) fn set_closing(&mut self, closing: Closing) {
        self.rare.get_or_insert_default().closing = Some(closing);
    }

    /// True when input was read that the session does not take yet, since an answer for it is
    /// outstanding.
    pub(crate) fn has_unread(&self) -> bool {
        self.rare.as_ref().is_some_and(|rare| rare.unread.is_some())
    }

    pub(crate) fn take_unread(&mut self) -> Option<Box<[u8]>> {
        let unread = self.rare.as_mut()?.unread.take();
        self.shrink();
        unread
    }

    /// Stores input for later; nothing when it is empty.
    pub(crate) fn store_unread(&mut self, input: &[u8]) {
        if !input.is_empty() {
            self.rare.get_or_insert_default().unread = Some(input.into());
        }
    }

    /// Returns until when input waits because of the rate limit, if it does.
    pub(crate) fn throttled_until(&self) -> Option<Millis> {
        self.rare.as_ref().and_then(|rare| rare.throttled_until)
    }

    pub(crate) fn throttle(&mut self, until: Millis) {
        self.rare.get_or_insert_default().throttled_until = Some(until);
    }

    pub(crate) fn unthrottle(&mut self) {
        if let Some(rare) = &mut self.rare {
            rare.throttled_until = None;
        }
        self.shrink();
    }

    /// Returns the bucket of packets that the client may send; full for a client that has sent none
    /// yet.
    pub(crate) fn rate_limit(&mut self, now: Millis, rate: &Rate) -> &mut TokenBucket {
        let limit = &mut self.rare.get_or_insert_default().rate_limit;
        limit.get_or_insert_with(|| TokenBucket::full(now, rate))
    }

    /// Returns the rooms besides the one of `membership`.
    pub(crate) fn further_rooms(&self) -> &[Membership] {
        self.rare.as_ref().map_or(&[], |rare| &rare.further_rooms)
    }

    /// Returns every room that the session is in.
    pub(crate) fn memberships(&self) -> impl Iterator<Item = Membership> {
        self.membership.into_iter().chain(self.further_rooms().iter().copied())
    }

    pub(crate) fn add_room(&mut self, membership: Membership) {
        self.rare.get_or_insert_default().further_rooms.push(membership);
    }

    /// Removes a further room from the list; the caller leaves it.
    pub(crate) fn take_room(&mut self, which: impl Fn(Membership) -> bool) -> Option<Membership> {
        let rooms = &mut self.rare.as_mut()?.further_rooms;
        let index = rooms.iter().position(|membership| which(*membership))?;
        let taken = rooms.swap_remove(index);
        if rooms.is_empty() {
            *rooms = Vec::new();
        }
        self.shrink();
        Some(taken)
    }

    /// Updates the membership in a room in which the session has another position now.
    pub(crate) fn set_position(&mut self, moved: Membership) {
        if self.membership.is_some_and(|membership| membership.same_room(moved)) {
            self.membership = Some(moved);
            return;
        }
        let further = self.rare.as_mut().map(|rare| &mut rare.further_rooms);
        let found = further.into_iter().flatten().find(|membership| membership.same_room(moved));
        if let Some(found) = found {
            *found = moved;
        }
    }

    /// Returns the rooms that the session may be in; `None` is any room.
    pub(crate) fn scope(&self) -> Option<&RoomScope> {
        self.rare.as_ref().and_then(|rare| rare.scope.as_ref())
    }

    pub(crate) fn set_scope(&mut self, scope: Option<RoomScope>) {
        match (&mut self.rare, scope) {
            (None, None) => {}
            (None, scope) => self.rare.get_or_insert_default().scope = scope,
            (Some(rare), scope) => rare.scope = scope,
        }
        self.shrink();
    }

    /// Notes that the session began to lag, or that its socket took bytes while it lagged; `None`
    /// when it no longer lags.
    pub(crate) fn set_drained_at(&mut self, now: Option<Millis>) {
        match (&mut self.rare, now) {
            (Some(rare), now) => rare.drained_at = now,
            (None, Some(_)) => self.rare.get_or_insert_default().drained_at = now,
            (None, None) => return,
        }
        self.shrink();
    }

    /// Returns when the socket of a lagging session last took bytes, or when the session began to
    /// lag.
    pub(crate) fn drained_at(&self) -> Option<Millis> {
        self.rare.as_ref().and_then(|rare| rare.drained_at)
    }

    /// Sets the positions that the client resumes at.
    pub(crate) fn set_positions(&mut self, mut positions: Vec<ResumePosition>) {
        if positions.is_empty() {
            return;
        }
        positions.reverse();
        self.rare.get_or_insert_default().syncing.get_or_insert_default().positions = positions;
    }

    /// Takes the next of them, unless one is being worked on.
    pub(crate) fn next_position(&mut self) -> Option<ResumePosition> {
        let syncing = self.rare.as_mut()?.syncing.as_mut().filter(|syncing| !syncing.asking)?;
        let next = syncing.positions.pop()?;
        syncing.asking = true;
        Some(next)
    }

    pub(crate) fn finish_position(&mut self) {
        if let Some(syncing) = self.rare.as_mut().and_then(|rare| rare.syncing.as_mut()) {
            syncing.asking = false;
        }
        self.shrink();
    }

    /// True while something of timelines is to be sent to the session.
    pub(crate) fn is_syncing(&self) -> bool {
        self.rare.as_ref().is_some_and(|rare| rare.syncing.is_some())
    }

    /// True while notifications wait for the socket.
    pub(crate) fn holds_notifications(&self) -> bool {
        self.rare
            .as_ref()
            .and_then(|rare| rare.syncing.as_ref())
            .is_some_and(|syncing| !syncing.notifications.is_empty())
    }

    /// Stores a timeline's notification for later, in place of an older one. With `max` timelines
    /// it is dropped.
    pub(crate) fn hold_notification(&mut self, timeline: &TimelineId, position: Position, max: usize) {
        let notifications =
            &mut self.rare.get_or_insert_default().syncing.get_or_insert_default().notifications;
        let has_room = notifications.len() < max;
        match notifications.iter_mut().find(|(known, _)| known == timeline) {
            Some((_, newest)) if newest.epoch == position.epoch && newest.seq >= position.seq => {}
            Some((_, newest)) => *newest = position,
            None if has_room => notifications.push((timeline.clone(), position)),
            None => {}
        }
    }

    pub(crate) fn take_notifications(&mut self) -> Vec<(TimelineId, Position)> {
        let syncing = self.rare.as_mut().and_then(|rare| rare.syncing.as_mut());
        let notifications =
            syncing.map(|syncing| std::mem::take(&mut syncing.notifications)).unwrap_or_default();
        self.shrink();
        notifications
    }

    /// Frees the box when nothing is in it.
    fn shrink(&mut self) {
        let Some(rare) = &mut self.rare else { return };
        let is_idle = |syncing: &mut SyncState| {
            syncing.positions.is_empty() && !syncing.asking && syncing.notifications.is_empty()
        };
        let _ = rare.syncing.take_if(is_idle);
        let Rare { unread, throttled_until, closing, rate_limit, further_rooms, scope, drained_at, syncing } =
            &**rare;
        let has_times = throttled_until.is_some() || drained_at.is_some();
        let has_rooms = !further_rooms.is_empty() || scope.is_some();
        let is_empty = unread.is_none() && closing.is_none() && rate_limit.is_none() && syncing.is_none();
        if is_empty && !has_times && !has_rooms {
            self.rare = None;
        }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use std::time::Duration;

    use goim_ports::{Operation, Sequence, Version};
    use goim_session::{Established, OutboxPool, Step, Transport};

    use super::*;
    use crate::config::Config;
    use crate::shared::session_rules;
    use crate::transport::Stream;

    /// Opens a session over a socket that takes every write.
    pub(crate) fn open_session(generation: u32) -> Connection {
        let rules = session_rules(&Config::default());
        let mut pool = OutboxPool::new(0);
        let mut session = ServerSession::new(Transport::Stream, &rules, Millis(0));
        let mut auth = Vec::new();
        let (version, operation, sequence) = (Version::GOIM, Operation::AUTH, Sequence(1));
        goim_wire::Packet { version, operation, sequence, body: b"token" }.encode(&mut auth);
        let step = session.step(&rules, &mut pool, Millis(0), &mut auth, &mut 0);
        assert!(matches!(step, Ok(Step::Authenticate { .. })));
        let established =
            Established { accepts: &[], heartbeat: Duration::from_secs(60), protover: None, reply: &[] };
        session.authenticated(&mut pool, Millis(0), &established);
        let reply = session.outbox().len();
        session.written(&mut pool, reply);
        let socket = Socket::new(Stream::Sink, None).unwrap();
        Connection::new(socket, session, generation, 0, IpAddr::from([127, 0, 0, 1]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_small() {
        assert!(size_of::<Option<Connection>>() <= 216, "{}", size_of::<Option<Connection>>());
    }
}
