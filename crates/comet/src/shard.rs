//! One shard: a thread with its own poll, listeners, connections, rooms and timers.
//!
//! A turn of the loop takes what is ready (sockets, inbox, timers), stages bytes on the sessions touched, then flushes
//! each of them once. Nothing here waits for a peer, for another shard or for logic.
//!
//! This file owns the loop and the state; what happens in it is in the files beside: `accept` lets connections
//! in, `input` takes their bytes, `answers` deals with logic's, `requests` has rooms and new tokens, `fanout` sends, `ending` lets them go,
//! `recovery` sees to those that have missed something.

mod accept;
mod answers;
#[cfg(feature = "harness")]
mod by_hand;
mod ending;
mod fanout;
mod foresee;
mod input;
mod recovery;
mod requests;
mod timelines;

use std::collections::VecDeque;
use std::io;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use goim_ports::{LogicPort, ServerId};
use goim_session::{CloseReason, Moment, OutboxPool, QueueLimit, ServerRules};
use mio::{Events, Poll, Token};
use smallvec::SmallVec;

use crate::address_book::AddressBook;
use crate::config::Config;
use crate::connection::ConnectionId;
use crate::connections::Connections;
use crate::inbox::{Inbox, Queued, ShardHandle};
use crate::key_index::KeyIndex;
use crate::listener::ListenerKind;
use crate::rooms::Rooms;
use crate::stats::{ShardStats, SharedCounter};
use crate::timers::{Tick, TimerWheel};
use crate::transport::Scratch;

use accept::Listener;
use answers::Confirming;
use ending::Draining;
use fanout::{PacedBroadcast, Work};
pub(crate) use foresee::BLOCK;
use recovery::{Accepted, Recovering};

/// The poll's token for the inbox. Listeners count down from here; connections count up from zero.
pub(crate) const WAKE: Token = Token(usize::MAX);
/// Readiness taken from the kernel in one turn.
const EVENTS_MAX: usize = 1024;
/// Commands taken in one turn, so that sockets are looked at between.
const COMMANDS_PER_TURN: usize = 256;
/// Sessions of the ring that are flushed in one turn: some two milliseconds of work, after which sockets and inbox are
/// looked at again.
const RING_FLUSHES_PER_TURN: usize = 256;
/// Queues kept for sessions that will need one.
const POOLED_QUEUES: usize = 1024;
/// Without anything to send for this long, a shard gives back the memory that traffic took.
const QUIET: Duration = Duration::from_secs(1);
/// Connections that a shard must have had for their departure to be worth a new thread.
const DEPARTURE_MIN: usize = 1000;
/// Longest sleep: a broken timer must not stop a shard for good.
const SLEEP_MAX: Duration = Duration::from_secs(1);

/// What all shards of a comet share.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) server: ServerId,
    pub(crate) logic: Arc<dyn LogicPort>,
    pub(crate) runtime: tokio::runtime::Handle,
    pub(crate) events: Arc<crate::events::Events>,
    pub(crate) versions: Arc<crate::message::Versions>,
    pub(crate) keys: KeyIndex,
    /// Keys pushed to that this comet does not hold.
    pub(crate) unknown_keys: Arc<SharedCounter>,
    pub(crate) addresses: AddressBook,
    pub(crate) census: Arc<crate::rooms::Census>,
    pub(crate) certificates: Option<Arc<crate::tls::CertificateStore>>,
    /// Farewells that logic has not answered yet.
    pub(crate) farewells: Arc<std::sync::atomic::AtomicUsize>,
    pub(crate) started: Instant,
    pub(crate) recoveries: Recoveries,
}

/// How often the comet was taken for dead.
#[derive(Debug, Default)]
pub(crate) struct Recoveries {
    /// Its sessions were swept.
    pub(crate) swept: SharedCounter,
    /// A job has dropped messages for it.
    pub(crate) given_up: SharedCounter,
}

/// What the limits of a push are: by the range of its operation.
fn queue_limit(config: &Config, operation: goim_ports::Operation) -> QueueLimit {
    let send = &config.send;
    let special = send.slow_consumer.iter().find(|(range, _)| range.contains(&operation.0));
    let policy = special.map_or(send.slow_consumer_default, |(_, policy)| *policy);
    QueueLimit { bytes_max: send.queue_bytes_max, policy }
}

/// A shard.
pub(crate) struct Shard {
    index: usize,
    shared: Arc<Shared>,
    /// All shards, this one included.
    peers: Vec<ShardHandle>,
    stats: Arc<ShardStats>,
    poll: Poll,
    inbox: Inbox,
    listeners: Vec<Listener>,
    /// Kinds of connections, by listener; outlives the listeners.
    kinds: Vec<ListenerKind>,
    /// Rules of sessions, by listener.
    rules: Vec<Arc<ServerRules>>,
    connections: Connections,
    rooms: Rooms,
    timers: TimerWheel,
    pool: OutboxPool,
    scratch: Scratch,
    gather: Vec<u8>,
    /// Receivers of the message being sent.
    receivers: Vec<u32>,
    now: Moment,
    generation: u32,
    /// To be flushed at the end of the turn: answers, and pushes to few.
    urgent: Vec<u32>,
    /// Sessions that have something to send, in the order in which they are flushed, some in each turn. One that gets
    /// more keeps its place, so that under load many messages share one write, and none waits longer than a round.
    ring: VecDeque<u32>,
    /// Sessions that have ever left the ring.
    ring_left: u64,
    /// Commands that are staged and not yet flushed, oldest first.
    works: VecDeque<Work>,
    /// The same of those that are flushed in this turn.
    works_of_turn: Vec<Work>,
    /// Those of earlier turns whose receivers are behind, oldest first.
    late: VecDeque<Work>,
    /// Bytes in all outboxes, each counted up to a bound.
    waiting_bytes: usize,
    /// Input that goes on in the next turn.
    resumed: Vec<u32>,
    /// Something was staged, or a connection ended, since memory was given back; when for the last time.
    traffic_seen: Option<Moment>,
    /// The most connections since the shard has had its thread.
    connections_peak: usize,
    wants_new_thread: bool,
    due: Vec<(ConnectionId, Tick)>,
    paced: Vec<PacedBroadcast>,
    accept_credit: f64,
    accept_seen: Moment,
    accept_paused_until: Option<Moment>,
    accept_silent_until: Moment,
    draining: Option<Draining>,
    confirming: Option<Confirming>,
    recovering: Option<Recovering>,
    accepted: Accepted,
    seed: u64,
}

impl Shard {
    #[expect(clippy::too_many_arguments, reason = "all of it is made by one caller, once")]
    pub(crate) fn new(
        index: usize,
        shared: Arc<Shared>,
        peers: Vec<ShardHandle>,
        stats: Arc<ShardStats>,
        poll: Poll,
        inbox: Inbox,
        listeners: Vec<(mio::net::TcpListener, ListenerKind)>,
        rules: Vec<Arc<ServerRules>>,
    ) -> io::Result<Self> {
        let kinds = listeners.iter().map(|(_, kind)| *kind).collect();
        let listeners = accept::register(&poll, listeners)?;
        let rooms = Rooms::new(index, peers.len(), shared.census.clone());
        let seed = 0x9e37_79b9_7f4a_7c15 ^ (u64::from(std::process::id()) << 20) ^ index as u64;
        Ok(Self {
            index,
            shared,
            peers,
            stats,
            poll,
            inbox,
            listeners,
            kinds,
            rules,
            connections: Connections::default(),
            rooms,
            timers: TimerWheel::new(),
            pool: OutboxPool::new(POOLED_QUEUES),
            scratch: Scratch::new(),
            gather: Vec::new(),
            receivers: Vec::new(),
            now: Moment(0),
            generation: 0,
            urgent: Vec::new(),
            ring: VecDeque::new(),
            ring_left: 0,
            works: VecDeque::new(),
            waiting_bytes: 0,
            works_of_turn: Vec::new(),
            late: VecDeque::new(),
            resumed: Vec::new(),
            traffic_seen: None,
            connections_peak: 0,
            wants_new_thread: false,
            due: Vec::new(),
            paced: Vec::new(),
            accept_credit: 0.0,
            accept_seen: Moment(0),
            accept_paused_until: None,
            accept_silent_until: Moment(0),
            draining: None,
            confirming: None,
            recovering: None,
            accepted: Accepted::default(),
            seed,
        })
    }

    /// Runs until a drain is complete, or until many connections have left: then the shard is given back, to go on on a
    /// thread of its own. The old thread's cache of freed memory, some hundred pieces all over the heap that would keep
    /// their pages from the system, goes with the thread.
    pub(crate) fn run(mut self) -> Option<Self> {
        let mut events = Events::with_capacity(EVENTS_MAX);
        self.tell_time();
        self.wants_new_thread = false;
        while !self.is_drained() {
            if self.wants_new_thread {
                return Some(self);
            }
            let sleep = self.sleep_time();
            let sleep = if self.inbox.fall_asleep(sleep.is_zero()) { sleep } else { Duration::ZERO };
            let polled = self.poll.poll(&mut events, Some(sleep));
            self.inbox.wake_up();
            if let Err(error) = polled
                && error.kind() != io::ErrorKind::Interrupted
            {
                tracing::error!(shard = self.index, %error, "poll failed; the shard goes on");
                std::thread::sleep(Duration::from_millis(10));
            }
            let began = Instant::now();
            self.tell_time();
            self.turn(&events);
            self.stats.turn.observe(began.elapsed());
        }
        tracing::debug!(shard = self.index, "shard has ended");
        None
    }

    fn turn(&mut self, events: &Events) {
        for resumed in std::mem::take(&mut self.resumed) {
            if let Some(connection) = self.connections.get_mut(resumed) {
                connection.resumed = false;
                self.take_input(resumed);
            }
        }
        let mut ahead = events.iter();
        for (nth, event) in events.iter().enumerate() {
            if nth % BLOCK == 0 {
                self.foresee_events(ahead.clone().take(BLOCK));
                ahead.nth(BLOCK - 1);
            }
            match event.token() {
                WAKE => {}
                token if self.is_listener(token) => self.listener_ready(token),
                Token(slot) => self.socket_ready(slot as u32, event),
            }
        }
        self.accept_all();
        while let Some(notice) = self.inbox.notice() {
            self.take_notice(notice);
        }
        self.take_commands();
        self.pace_broadcasts();
        self.look_at_due();
        self.drain_some();
        self.confirm_some();
        self.recover_some();
        self.flush_urgent();
        self.flush_ring();
        self.end_works();
        self.look_for_quiet();
    }

    fn take_commands(&mut self) {
        let mut commands: SmallVec<[Queued; BLOCK]> = SmallVec::new();
        for _ in 0..COMMANDS_PER_TURN / BLOCK {
            commands.extend(std::iter::from_fn(|| self.inbox.command()).take(BLOCK));
            self.look_up(&mut commands);
            let was_last = commands.len() < BLOCK;
            commands.drain(..).for_each(|command| self.take_command(command));
            if was_last {
                break;
            }
        }
        self.inbox.tell_depth();
    }

    fn tell_time(&mut self) {
        let elapsed = self.shared.started.elapsed();
        self.now = Moment(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX));
    }

    /// How long the poll may sleep.
    fn sleep_time(&self) -> Duration {
        if !self.resumed.is_empty()
            || !self.urgent.is_empty()
            || !self.ring.is_empty()
            || self.accepting_goes_on()
        {
            return Duration::ZERO;
        }
        let timers = self.timers.wait(self.now).unwrap_or(SLEEP_MAX);
        let is_pacing = !self.paced.is_empty()
            || self.draining.is_some()
            || self.confirming.is_some()
            || self.recovering.is_some();
        let pace = if is_pacing { fanout::PACE_TICK } else { SLEEP_MAX };
        let accept = self.accept_paused_until.map_or(SLEEP_MAX, |until| self.now.until(until));
        let pace =
            if self.works.is_empty() && self.late.is_empty() { pace } else { pace.min(fanout::PACE_TICK) };
        let quiet = self.traffic_seen.map_or(SLEEP_MAX, |seen| self.now.until(seen.after(QUIET)));
        timers.min(pace).min(accept).min(quiet).min(SLEEP_MAX)
    }

    /// The connection, unless it has gone and its slot was given to another.
    fn find(&self, id: ConnectionId) -> Option<u32> {
        self.connections.get(id.slot).filter(|found| found.generation == id.generation).map(|_| id.slot)
    }

    /// Looks at the connections whose tick has come.
    fn look_at_due(&mut self) {
        let mut due = std::mem::take(&mut self.due);
        self.timers.turn(self.now, &mut due);
        for (id, tick) in due.drain(..) {
            let Some(slot) = self.find(id) else { continue };
            let connection = &mut self.connections[slot];
            match connection.armed {
                Some(armed) if armed == tick => connection.armed = None,
                // Further away than one round of the wheel, and in this slot again.
                Some(armed) if Tick::same_slot(armed, tick) && armed > tick => {
                    self.timers.keep(id, armed);
                    continue;
                }
                _ => continue,
            }
            self.look_at(slot);
            self.arm(slot);
        }
        if due.capacity() <= EVENTS_MAX {
            self.due = due;
        }
    }

    /// Does what the deadlines of a connection ask for.
    fn look_at(&mut self, slot: u32) {
        let now = self.now;
        let Some(connection) = self.connections.get_mut(slot) else { return };
        if let Some(closing) = connection.closing() {
            if now >= closing.until {
                self.remove(slot);
            }
            return;
        }
        if now >= connection.expires() && connection.session.is_open() {
            self.close(slot, CloseReason::TokenExpired);
            return;
        }
        if let Some(reason) = connection.session.expired(now) {
            self.close(slot, reason);
            return;
        }
        if connection.throttled_until().is_some_and(|until| now >= until) {
            connection.unthrottle();
            self.take_input(slot);
        }
    }

    /// Sees to it that the connection is looked at by its deadline.
    fn arm(&mut self, slot: u32) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        let deadline = connection.deadline();
        if deadline == Moment::NEVER || connection.armed.is_some_and(|armed| armed <= Tick::at(deadline)) {
            return;
        }
        let id = ConnectionId { slot, generation: connection.generation };
        connection.armed = Some(self.timers.arm(id, deadline));
    }

    /// Flushes the session at the end of the turn.
    fn stage(&mut self, slot: u32) {
        let connection = &mut self.connections[slot];
        if !connection.urgent {
            connection.urgent = true;
            self.urgent.push(slot);
        }
    }

    /// Flushes the session when its turn comes in the ring.
    fn stage_in_ring(&mut self, slot: u32) {
        let connection = &mut self.connections[slot];
        if !connection.in_ring {
            connection.in_ring = true;
            self.ring.push_back(slot);
        }
    }

    fn flush_urgent(&mut self) {
        if self.urgent.is_empty() {
            return;
        }
        // Flushing can make room for replies, take input and so stage again; that waits for the next turn at most.
        let mut urgent = std::mem::take(&mut self.urgent);
        for slot in urgent.drain(..) {
            if let Some(connection) = self.connections.get_mut(slot) {
                connection.urgent = false;
                self.flush(slot);
            }
        }
        if self.urgent.is_empty() {
            self.urgent = urgent;
        }
    }

    fn flush_ring(&mut self) {
        for nth in 0..RING_FLUSHES_PER_TURN {
            if nth % BLOCK == 0 {
                self.foresee_ring();
            }
            let Some(slot) = self.ring.pop_front() else { return };
            self.ring_left += 1;
            if let Some(connection) = self.connections.get_mut(slot) {
                connection.in_ring = false;
                self.flush(slot);
            }
        }
    }

    /// Gives back what traffic took when there has been none for a while: an idle session must not cost more because
    /// messages have passed.
    fn look_for_quiet(&mut self) {
        if !self.ring.is_empty() || !self.urgent.is_empty() {
            return;
        }
        if self.traffic_seen.is_some_and(|seen| self.now >= seen.after(QUIET)) {
            self.traffic_seen = None;
            if self.timers.len() > 2 * self.connections.len() {
                let connections = &self.connections;
                self.timers.purge(|id| {
                    connections.get(id.slot).is_some_and(|found| found.generation == id.generation)
                });
            }
            self.pool.release();
            self.urgent = Vec::new();
            self.ring = VecDeque::new();
            self.works = VecDeque::new();
            self.works_of_turn = Vec::new();
            self.late = VecDeque::new();
            self.resumed.shrink_to_fit();
            self.receivers = Vec::new();
            self.gather = Vec::new();
            self.due.shrink_to_fit();
            if self.connections_peak > DEPARTURE_MIN && self.connections.len() < self.connections_peak / 4 {
                self.connections_peak = self.connections.len();
                self.wants_new_thread = true;
            }
        }
    }

    /// A number below `below`, or zero when that is zero. Not for secrets: spreads work over time.
    fn random(&mut self, below: u64) -> u64 {
        // xorshift64
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        self.seed.checked_rem(below).unwrap_or(0)
    }
}

/// A shard's part of something that is given per second for all of them; at least one.
pub(crate) fn share(per_second: NonZeroU32, shards: usize) -> NonZeroU32 {
    let shards = u32::try_from(shards).unwrap_or(u32::MAX).max(1);
    NonZeroU32::new(per_second.get().div_ceil(shards)).unwrap_or(NonZeroU32::MIN)
}
