//! One connection as its shard holds it: socket, session, memberships. No behaviour beyond its own fields.
//!
//! There may be a million of these, nearly all of them idle: what few connections have at a time is in [`Rare`].

use std::net::{IpAddr, Ipv6Addr};

use goim_ports::{Mid, Position, ResumePosition, RoomScope, SessionKey, TimelineId};
use goim_session::{Moment, ServerSession};

use crate::message::ClassId;
use crate::rooms::Membership;
use crate::timers::Tick;
use crate::token_bucket::{Rate, TokenBucket};
use crate::transport::Socket;

/// Names a connection of one shard. The generation tells it from those that had the slot before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ConnectionId {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

/// A connection. The fields lie in this order: what a push needs is together, in two or three lines of memory of the four
/// that a connection touches.
#[repr(C)]
pub(crate) struct Connection {
    /// In the form of IPv6, without the byte that tells the families apart.
    remote: Ipv6Addr,
    /// Who it is, once that is known.
    pub(crate) identity: Option<Identity>,
    /// When the directory is to be told again that the session lives.
    pub(crate) renew_after: Moment,
    /// The tick of its entry on the timer wheel.
    pub(crate) armed: Option<Tick>,
    pub(crate) membership: Option<Membership>,
    pub(crate) generation: u32,
    /// When the token ends, in seconds since the comet's start; the largest number is never.
    expires_s: u32,
    /// Which listener it came through.
    pub(crate) listener: u8,
    /// Which form of a message the session gets.
    pub(crate) class: ClassId,
    /// The kernel may hold input.
    pub(crate) readable: bool,
    /// The peer has ended its stream, or it broke: reads must go to the end.
    pub(crate) half_closed: bool,
    /// The kernel takes output.
    pub(crate) writable: bool,
    /// In the ring of those that have something to send.
    pub(crate) in_flush_queue: bool,
    /// In the list of those to be flushed at the end of the turn.
    pub(crate) urgent: bool,
    /// In the list of those whose input goes on in the next turn.
    pub(crate) resumed: bool,
    rare: Option<Box<Rare>>,
    pub(crate) socket: Socket,
    /// Has what a push needs in front.
    pub(crate) session: ServerSession,
}

/// What few connections have at a time.
#[derive(Default)]
struct Rare {
    unread: Option<Box<[u8]>>,
    throttled_until: Option<Moment>,
    closing: Option<Closing>,
    rate_limit: Option<TokenBucket>,
    /// Rooms besides the one of `membership`.
    further_rooms: Vec<Membership>,
    /// The rooms that the session may be in; `None` is any.
    scope: Option<RoomScope>,
    /// Much waits for the session: when its socket last took something of it, or when it became much.
    drained_at: Option<Moment>,
    /// For a session that syncs.
    syncing: Option<SyncOptions>,
}

/// What a session that syncs is still to be given.
#[derive(Default)]
struct SyncOptions {
    /// Positions that it came with, the next one last.
    positions: Vec<ResumePosition>,
    /// What comes behind one of them is being found out.
    asking: bool,
    /// Words that wait for the socket: the newest position of each timeline.
    words: Vec<(TimelineId, Position)>,
}

/// Who a session is.
#[derive(Clone)]
pub(crate) struct Identity {
    pub(crate) key: SessionKey,
    pub(crate) mid: Mid,
}

/// The end of a connection under way: the session is over; the socket is kept until the peer has seen the end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Closing {
    /// Then the socket is closed whatever is left.
    pub(crate) until: Moment,
    /// Our side of the stream has been ended.
    pub(crate) ended: bool,
}

impl Connection {
    /// A connection that was just accepted; it may be written to.
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
            renew_after: Moment::NEVER,
            rare: None,
            remote,
            listener,
            class: ClassId::GOIM,
            readable: false,
            half_closed: false,
            writable: true,
            in_flush_queue: false,
            urgent: false,
            resumed: false,
        }
    }

    /// Reads from each line of memory that a push and its flush need, and gives a number that means nothing: so that all
    /// of these are fetched at once.
    pub(crate) fn prefetch(&self) -> u32 {
        let session = &self.session;
        let flags = [self.socket.holds_output(), session.outbox().is_empty(), session.is_open()];
        flags.iter().fold(self.generation, |seen, flag| seen << 1 ^ u32::from(*flag))
    }

    /// The same for what comes in.
    pub(crate) fn prefetch_for_input(&self) -> u32 {
        self.prefetch() ^ self.renew_after.0 as u32 ^ self.session.deadline().0 as u32
    }

    /// The client's address.
    pub(crate) fn remote(&self) -> IpAddr {
        self.remote.to_canonical()
    }

    /// When the session's token ends.
    pub(crate) fn expires(&self) -> Moment {
        if self.expires_s == u32::MAX { Moment::NEVER } else { Moment(u64::from(self.expires_s) * 1000) }
    }

    /// The token ends then: a part of a second counts as a whole one. [`Moment::NEVER`] is never.
    pub(crate) fn set_expires(&mut self, at: Moment) {
        self.expires_s = u32::try_from(at.0.div_ceil(1000)).unwrap_or(u32::MAX);
    }

    /// When the connection must be looked at, whatever happens until then.
    pub(crate) fn deadline(&self) -> Moment {
        let session = self.session.deadline().min(self.expires());
        let Some(rare) = &self.rare else { return session };
        match rare.closing {
            Some(closing) => closing.until,
            None => session.min(rare.throttled_until.unwrap_or(Moment::NEVER)),
        }
    }

    /// The end of the connection, when it is under way.
    pub(crate) fn closing(&self) -> Option<Closing> {
        self.rare.as_ref().and_then(|rare| rare.closing)
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing().is_some()
    }

    pub(crate) fn set_closing(&mut self, closing: Closing) {
        self.rare.get_or_insert_default().closing = Some(closing);
    }

    /// Input that was read and not taken yet, while an answer of others is outstanding.
    pub(crate) fn has_unread(&self) -> bool {
        self.rare.as_ref().is_some_and(|rare| rare.unread.is_some())
    }

    pub(crate) fn take_unread(&mut self) -> Option<Box<[u8]>> {
        let unread = self.rare.as_mut()?.unread.take();
        self.tidy();
        unread
    }

    /// Keeps input for later; nothing when it is empty.
    pub(crate) fn keep_unread(&mut self, input: &[u8]) {
        if !input.is_empty() {
            self.rare.get_or_insert_default().unread = Some(input.into());
        }
    }

    /// The rate of packets is used up until then.
    pub(crate) fn throttled_until(&self) -> Option<Moment> {
        self.rare.as_ref().and_then(|rare| rare.throttled_until)
    }

    pub(crate) fn throttle(&mut self, until: Moment) {
        self.rare.get_or_insert_default().throttled_until = Some(until);
    }

    pub(crate) fn unthrottle(&mut self) {
        if let Some(rare) = &mut self.rare {
            rare.throttled_until = None;
        }
        self.tidy();
    }

    /// The bucket of packets that the client may still send; full for one that has sent nothing yet.
    pub(crate) fn rate_limit(&mut self, now: Moment, rate: &Rate) -> &mut TokenBucket {
        let limit = &mut self.rare.get_or_insert_default().rate_limit;
        limit.get_or_insert_with(|| TokenBucket::full(now, rate))
    }

    /// The rooms besides the one of `membership`.
    pub(crate) fn further_rooms(&self) -> &[Membership] {
        self.rare.as_ref().map_or(&[], |rare| &rare.further_rooms)
    }

    /// Every room that the session is in.
    pub(crate) fn memberships(&self) -> impl Iterator<Item = Membership> {
        self.membership.into_iter().chain(self.further_rooms().iter().copied())
    }

    pub(crate) fn add_room(&mut self, membership: Membership) {
        self.rare.get_or_insert_default().further_rooms.push(membership);
    }

    /// Takes a further room off the list; whoever calls leaves it.
    pub(crate) fn take_room(&mut self, which: impl Fn(Membership) -> bool) -> Option<Membership> {
        let rooms = &mut self.rare.as_mut()?.further_rooms;
        let place = rooms.iter().position(|membership| which(*membership))?;
        let taken = rooms.swap_remove(place);
        if rooms.is_empty() {
            *rooms = Vec::new();
        }
        self.tidy();
        Some(taken)
    }

    /// The session has another place in a room that it is in.
    pub(crate) fn moved(&mut self, place: Membership) {
        if self.membership.is_some_and(|membership| membership.same_room(place)) {
            self.membership = Some(place);
            return;
        }
        let further = self.rare.as_mut().map(|rare| &mut rare.further_rooms);
        let found = further.into_iter().flatten().find(|membership| membership.same_room(place));
        if let Some(found) = found {
            *found = place;
        }
    }

    /// The rooms that the session may be in; `None` is any.
    pub(crate) fn scope(&self) -> Option<&RoomScope> {
        self.rare.as_ref().and_then(|rare| rare.scope.as_ref())
    }

    pub(crate) fn set_scope(&mut self, scope: Option<RoomScope>) {
        match (&mut self.rare, scope) {
            (None, None) => {}
            (None, scope) => self.rare.get_or_insert_default().scope = scope,
            (Some(rare), scope) => rare.scope = scope,
        }
        self.tidy();
    }

    /// Much has begun to wait for the session, or its socket has taken something of it; `None` when there is no longer much.
    pub(crate) fn set_drained_at(&mut self, now: Option<Moment>) {
        match (&mut self.rare, now) {
            (Some(rare), now) => rare.drained_at = now,
            (None, Some(_)) => self.rare.get_or_insert_default().drained_at = now,
            (None, None) => return,
        }
        self.tidy();
    }

    /// When the socket last took something while much waited, or when that began.
    pub(crate) fn drained_at(&self) -> Option<Moment> {
        self.rare.as_ref().and_then(|rare| rare.drained_at)
    }

    /// Positions that the client came with.
    pub(crate) fn set_positions(&mut self, mut positions: Vec<ResumePosition>) {
        if positions.is_empty() {
            return;
        }
        positions.reverse();
        self.rare.get_or_insert_default().syncing.get_or_insert_default().positions = positions;
    }

    /// The next of them, unless one is being dealt with.
    pub(crate) fn next_position(&mut self) -> Option<ResumePosition> {
        let syncing = self.rare.as_mut()?.syncing.as_mut().filter(|syncing| !syncing.asking)?;
        let next = syncing.positions.pop()?;
        syncing.asking = true;
        Some(next)
    }

    pub(crate) fn position_is_done(&mut self) {
        if let Some(syncing) = self.rare.as_mut().and_then(|rare| rare.syncing.as_mut()) {
            syncing.asking = false;
        }
        self.tidy();
    }

    /// True while a session is to be given something of timelines.
    pub(crate) fn is_syncing(&self) -> bool {
        self.rare.as_ref().is_some_and(|rare| rare.syncing.is_some())
    }

    /// True while words wait for the socket.
    pub(crate) fn holds_words(&self) -> bool {
        self.rare
            .as_ref()
            .and_then(|rare| rare.syncing.as_ref())
            .is_some_and(|syncing| !syncing.words.is_empty())
    }

    /// Keeps the word of a timeline for later, in place of an older one; of more timelines than `max` it is dropped.
    pub(crate) fn hold_word(&mut self, timeline: &TimelineId, position: Position, max: usize) {
        let words = &mut self.rare.get_or_insert_default().syncing.get_or_insert_default().words;
        let has_room = words.len() < max;
        match words.iter_mut().find(|(known, _)| known == timeline) {
            Some((_, newest)) if newest.epoch == position.epoch && newest.seq >= position.seq => {}
            Some((_, newest)) => *newest = position,
            None if has_room => words.push((timeline.clone(), position)),
            None => {}
        }
    }

    pub(crate) fn take_words(&mut self) -> Vec<(TimelineId, Position)> {
        let syncing = self.rare.as_mut().and_then(|rare| rare.syncing.as_mut());
        let words = syncing.map(|syncing| std::mem::take(&mut syncing.words)).unwrap_or_default();
        self.tidy();
        words
    }

    /// Gives the box back when nothing is in it.
    fn tidy(&mut self) {
        let Some(rare) = &mut self.rare else { return };
        let is_idle = |syncing: &mut SyncOptions| {
            syncing.positions.is_empty() && !syncing.asking && syncing.words.is_empty()
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
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_small() {
        assert!(size_of::<Option<Connection>>() <= 216, "{}", size_of::<Option<Connection>>());
    }
}
