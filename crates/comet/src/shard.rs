//! One shard: a thread with its own poll, listeners, connections, rooms and timers.
//!
//! A turn of the loop takes what is ready (sockets, inbox, timers), queues bytes on the sessions
//! concerned, then flushes each of them once. Nothing here waits for a peer, for another shard or
//! for logic.
//!
//! This file owns the loop. The state is in separate types (`egress`, `ingress`, `listeners`,
//! `scan`, `idle`, `peers`), which know nothing of the shard; the other files implement what the
//! loop calls.

mod accept;
mod accept_history;
mod auth;
mod close;
mod drain;
mod egress;
mod fanout;
mod flush;
#[cfg(feature = "harness")]
mod harness;
mod idle;
mod ingress;
mod input;
mod listeners;
mod memberships;
mod notices;
mod paced;
mod peers;
mod prefetch;
mod presence;
mod random;
mod recovery;
mod replies;
mod scan;
mod timelines;
mod upstream;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use goim_session::{CloseReason, Millis, ServerRules};
use mio::{Events, Poll, Token};
use smallvec::SmallVec;

use crate::connection::ConnectionId;
use crate::connections::Connections;
use crate::inbox::{Inbox, Queued, ShardHandle};
use crate::listener::ListenerKind;
use crate::prefetch::BLOCK;
use crate::rooms::Rooms;
use crate::shared::Shared;
use crate::stats::ShardStats;
use crate::timers::{Tick, TimerWheel};

use egress::Egress;
use idle::IdleTracker;
use ingress::Ingress;
use listeners::Listeners;
pub(crate) use listeners::WAKE;
use peers::Peers;
use random::Random;
use scan::{SCAN_INTERVAL, Scans};

/// Readiness taken from the kernel in one turn.
const EVENTS_MAX: usize = 1024;
/// Commands taken in one turn, so that sockets are served in between.
const COMMANDS_PER_TURN: usize = 256;
/// Longest sleep: a wrong timer must not stop a shard for good.
const SLEEP_MAX: Duration = Duration::from_secs(1);

/// What a shard is made of, besides what all shards share.
pub(crate) struct Parts {
    pub(crate) stats: Arc<ShardStats>,
    pub(crate) poll: Poll,
    pub(crate) inbox: Inbox,
    pub(crate) listeners: Vec<(mio::net::TcpListener, ListenerKind)>,
    /// Rules of all sessions.
    pub(crate) rules: ServerRules,
}

/// A shard.
pub(crate) struct Shard {
    peers: Peers,
    shared: Arc<Shared>,
    stats: Arc<ShardStats>,
    poll: Poll,
    inbox: Inbox,
    listeners: Listeners,
    connections: Connections,
    rooms: Rooms,
    timers: TimerWheel<ConnectionId>,
    ingress: Ingress,
    egress: Egress,
    scans: Scans,
    idle: IdleTracker,
    random: Random,
    /// The time of this turn, since the start of the comet.
    now: Millis,
}

impl Shard {
    /// Creates shard `index` of those in `handles`.
    ///
    /// # Errors
    /// When the poll does not take a listener.
    pub(crate) fn new(
        index: usize,
        handles: Arc<[ShardHandle]>,
        shared: Arc<Shared>,
        parts: Parts,
    ) -> io::Result<Self> {
        let Parts { stats, poll, inbox, listeners, rules } = parts;
        Ok(Self {
            listeners: Listeners::new(&poll, listeners, rules, &shared.config.limits)?,
            rooms: Rooms::new(index, handles.len(), shared.rooms.clone()),
            egress: Egress::new(shared.config.send.queue_bytes_max),
            peers: Peers::new(index, handles),
            shared,
            stats,
            poll,
            inbox,
            connections: Connections::default(),
            timers: TimerWheel::new(),
            ingress: Ingress::new(),
            scans: Scans::default(),
            idle: IdleTracker::default(),
            random: Random::new(index),
            now: Millis(0),
        })
    }

    /// Runs until a drain is complete; returns the shard when it is to go on with a new thread
    /// ([`IdleTracker`]).
    pub(crate) fn run(mut self) -> Option<Self> {
        let mut events = Events::with_capacity(EVENTS_MAX);
        self.update_clock();
        self.idle.on_new_thread();
        while !self.is_drained() {
            if self.idle.wants_new_thread() {
                return Some(self);
            }
            let sleep = self.sleep_time();
            let sleep = if self.inbox.fall_asleep(sleep.is_zero()) { sleep } else { Duration::ZERO };
            let polled = self.poll.poll(&mut events, Some(sleep));
            self.inbox.wake_up();
            if let Err(error) = polled
                && error.kind() != io::ErrorKind::Interrupted
            {
                tracing::error!(shard = self.peers.own_index(), %error, "poll failed; the shard continues");
                std::thread::sleep(Duration::from_millis(10));
            }
            let began = Instant::now();
            self.update_clock();
            self.turn(&events);
            self.stats.turn.observe(began.elapsed());
        }
        tracing::debug!(shard = self.peers.own_index(), "shard has ended");
        None
    }

    fn turn(&mut self, events: &Events) {
        for slot in self.ingress.take_resumed() {
            if let Some(connection) = self.connections.get_mut(slot) {
                connection.resumed = false;
                self.take_input(slot);
            }
        }
        let mut ahead = events.iter();
        for (nth, event) in events.iter().enumerate() {
            if nth % BLOCK == 0 {
                self.prefetch_events(ahead.clone().take(BLOCK));
                ahead.nth(BLOCK - 1);
            }
            match event.token() {
                WAKE => {}
                token if self.listeners.has(token) => self.listeners.set_ready(token),
                Token(slot) => self.socket_ready(slot as u32, event),
            }
        }
        self.accept_all();
        while let Some(notice) = self.inbox.notice() {
            self.take_notice(notice);
        }
        self.take_commands();
        self.continue_paced_broadcasts();
        self.fire_timers();
        self.continue_drain();
        self.continue_reregistration();
        self.continue_recovery();
        self.flush_urgent();
        self.flush_in_order();
        self.egress.complete(self.now, &self.connections, &self.stats);
        self.release_idle_memory();
    }

    fn take_commands(&mut self) {
        let mut commands: SmallVec<[Queued; BLOCK]> = SmallVec::new();
        for _ in 0..COMMANDS_PER_TURN / BLOCK {
            commands.extend(std::iter::from_fn(|| self.inbox.command()).take(BLOCK));
            self.prefetch_commands(&mut commands);
            let was_last = commands.len() < BLOCK;
            commands.drain(..).for_each(|command| self.take_command(command));
            if was_last {
                break;
            }
        }
        self.inbox.publish_depth();
    }

    fn update_clock(&mut self) {
        let elapsed = self.shared.started.elapsed();
        self.now = Millis(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX));
    }

    /// How long the poll may sleep.
    fn sleep_time(&self) -> Duration {
        if self.ingress.has_resumed() || self.egress.has_flushes() || self.listeners.can_accept(self.now) {
            return Duration::ZERO;
        }
        let is_scanning = self.scans.are_active() || self.egress.has_in_flight();
        let scan = is_scanning.then_some(SCAN_INTERVAL);
        let timers = self.timers.wait(self.now);
        let accept = self.listeners.pause(self.now);
        let idle = self.idle.wait(self.now);
        [scan, timers, accept, idle].into_iter().flatten().fold(SLEEP_MAX, Duration::min)
    }

    /// Checks the connections whose tick has fired.
    fn fire_timers(&mut self) {
        let mut fired = self.timers.fire(self.now);
        for (id, tick) in fired.drain(..) {
            let Some(slot) = self.connections.find(id) else { continue };
            let connection = &mut self.connections[slot];
            match connection.armed {
                Some(armed) if armed == tick => connection.armed = None,
                // More than one round of the wheel ahead, in the same slot.
                Some(armed) if Tick::same_slot(armed, tick) && armed > tick => {
                    self.timers.put_back(id, armed);
                    continue;
                }
                _ => continue,
            }
            self.check_deadlines(slot);
            self.arm(slot);
        }
        self.timers.recycle(fired);
    }

    /// Does what the deadlines of a connection require.
    fn check_deadlines(&mut self, slot: u32) {
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

    /// Arms the connection's timer for its deadline, unless it fires earlier anyway.
    fn arm(&mut self, slot: u32) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        let deadline = connection.deadline();
        if deadline == Millis::NEVER || connection.armed.is_some_and(|armed| armed <= Tick::at(deadline)) {
            return;
        }
        let id = ConnectionId { slot, generation: connection.generation };
        connection.armed = Some(self.timers.arm(id, deadline));
    }

    /// Frees what traffic took once there has been none for a while.
    fn release_idle_memory(&mut self) {
        if self.egress.has_flushes() || !self.idle.take_idle(self.now, self.connections.len()) {
            return;
        }
        if self.timers.len() > 2 * self.connections.len() {
            let connections = &self.connections;
            self.timers.retain(|id| connections.find(id).is_some());
        }
        self.timers.release_memory();
        self.egress.release_memory();
        self.ingress.release_memory();
    }
}
