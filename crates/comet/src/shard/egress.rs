//! What a shard sends: which sessions wait for a flush, which pushes are in flight, how many bytes
//! wait.
//!
//! Owns the order of flushes and the accounting of waiting bytes. Does not own sockets and
//! outboxes: these belong to the connections, which are passed in. Invariant: `waiting_bytes` is
//! the sum over all connections of their waiting bytes of pushes, each counted up to
//! [`WAITING_BYTES_COUNTED`].

mod flush_queue;
mod in_flight;

use std::cell::OnceCell;
use std::io;
use std::time::Duration;

use goim_ports::AcceptedAt;
use goim_session::{Admission, EncodedPush, Millis, OutboxPool, QueueLimit, SlowConsumerPolicy};

use crate::connection::{Connection, ConnectionId};
use crate::connections::Connections;
use crate::inbox::Sends;
use crate::stats::ShardStats;

use flush_queue::FlushQueue;
use in_flight::{InFlightPush, InFlightPushes};

/// Outbox queues pooled for sessions that will need one.
const POOLED_QUEUES: usize = 1024;
/// Bytes that may wait for each session on average, and at least in all, before publishers must
/// wait.
const WAITING_BYTES_EACH: usize = 2 * 1024;
const WAITING_BYTES_MIN: usize = 4 * 1024 * 1024;
/// The most that one session counts for in `waiting_bytes`: however much waits for a few slow
/// readers, they alone never make publishers wait.
const WAITING_BYTES_COUNTED: usize = 8 * 1024;
/// A session lags once more bytes of pushes than this wait for it, or a quarter of its queue's
/// bound if that is less.
const LAGGING_BYTES: usize = 64 * 1024;
/// How long full sockets may delay the completion of a push. After that the policies of the
/// sessions' own queues apply, so that peers that died together block publishers for no longer. It
/// is also how long a lagging session still counts as one that reads after its socket last took
/// something: a client's machine may stop for some hundred milliseconds, and a client that does not
/// read must not make anyone wait.
const FULL_TIMEOUT: Duration = Duration::from_secs(1);

/// The limit of pushes that are few by their nature.
pub(super) const UNLIMITED: QueueLimit =
    QueueLimit { bytes_max: usize::MAX, policy: SlowConsumerPolicy::DropNewest };

/// When a push is flushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// At the end of this turn.
    Urgent,
    /// When the flush queue reaches the session.
    Queued,
}

/// The sending side of a shard.
pub(super) struct Egress {
    /// Memory for outboxes in which more than one push waits.
    pool: OutboxPool,
    /// Buffer in which the pieces of one write are gathered.
    gather: Vec<u8>,
    /// Buffer for the receivers of the push being queued.
    receivers: Vec<u32>,
    /// Sessions to flush at the end of the turn: those with replies, and receivers of pushes to
    /// few.
    urgent: Vec<u32>,
    queue: FlushQueue,
    in_flight: InFlightPushes,
    waiting_bytes: usize,
    lagging_bytes: usize,
}

impl Egress {
    /// Creates the sending side; `queue_bytes_max` is the bound of each session's queue.
    pub(super) fn new(queue_bytes_max: usize) -> Self {
        Self {
            pool: OutboxPool::new(POOLED_QUEUES),
            gather: Vec::new(),
            receivers: Vec::new(),
            urgent: Vec::new(),
            queue: FlushQueue::default(),
            in_flight: InFlightPushes::default(),
            waiting_bytes: 0,
            lagging_bytes: LAGGING_BYTES.min(queue_bytes_max / 4),
        }
    }

    /// The memory for replies.
    pub(super) fn pool(&mut self) -> &mut OutboxPool {
        &mut self.pool
    }

    /// Has the session flushed at the end of the turn.
    #[inline]
    pub(super) fn flush_urgently(&mut self, slot: u32, connection: &mut Connection) {
        if !connection.urgent {
            connection.urgent = true;
            self.urgent.push(slot);
        }
    }

    /// Has the session flushed when the flush queue reaches it.
    #[inline]
    pub(super) fn flush_in_order(&mut self, slot: u32, connection: &mut Connection) {
        if !connection.in_flush_queue {
            connection.in_flush_queue = true;
            self.queue.push(slot);
        }
    }

    /// Takes the sessions to flush at the end of this turn. What a flush marks as urgent waits for
    /// the next turn.
    pub(super) fn take_urgent(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.urgent)
    }

    /// Takes back the list of [`Egress::take_urgent`], for its memory.
    pub(super) fn recycle_urgent(&mut self, mut slots: Vec<u32>) {
        if self.urgent.is_empty() {
            slots.clear();
            self.urgent = slots;
        }
    }

    /// Takes the next session off the flush queue.
    #[inline]
    pub(super) fn next_in_order(&mut self) -> Option<u32> {
        self.queue.pop()
    }

    /// The sessions that the flush queue reaches next.
    pub(super) fn upcoming(&self) -> impl Iterator<Item = u32> + Clone {
        self.queue.iter()
    }

    /// True when some session waits for a flush.
    pub(super) fn has_flushes(&self) -> bool {
        !self.urgent.is_empty() || !self.queue.is_empty()
    }

    /// True when pushes are in flight, whose completion must be checked again soon.
    pub(super) fn has_in_flight(&self) -> bool {
        !self.in_flight.is_empty()
    }

    /// Takes the buffer for receivers, empty.
    pub(super) fn take_receivers(&mut self) -> Vec<u32> {
        let mut receivers = std::mem::take(&mut self.receivers);
        receivers.clear();
        receivers
    }

    /// Takes the buffer for receivers back.
    pub(super) fn recycle_receivers(&mut self, receivers: Vec<u32>) {
        self.receivers = receivers;
    }

    /// Queues a push on the session.
    #[inline]
    pub(super) fn push(
        &mut self,
        connection: &mut Connection,
        push: &EncodedPush,
        limit: QueueLimit,
        now: Millis,
    ) -> Admission {
        let before = connection.session.outbox().push_bytes();
        let admission = connection.session.push(&mut self.pool, push, limit);
        let after = connection.session.outbox().push_bytes();
        if before <= self.lagging_bytes && after > self.lagging_bytes {
            connection.set_drained_at(Some(now));
        }
        self.outbox_changed(before, after);
        admission
    }

    /// Writes once what waits for the session. True when its socket is full now.
    #[inline]
    pub(super) fn write(&mut self, connection: &mut Connection, now: Millis) -> io::Result<bool> {
        let sent = connection.socket.write(connection.session.outbox(), &mut self.gather)?;
        let before = connection.session.outbox().push_bytes();
        connection.session.written(&mut self.pool, sent.taken);
        let after = connection.session.outbox().push_bytes();
        if before > self.lagging_bytes && sent.taken > 0 {
            connection.set_drained_at((after > self.lagging_bytes).then_some(now));
        }
        self.outbox_changed(before, after);
        Ok(sent.full)
    }

    /// Drops what waits for a connection that is being removed.
    pub(super) fn discard(&mut self, connection: &mut Connection) {
        self.outbox_changed(connection.session.outbox().push_bytes(), 0);
        connection.session.discard(&mut self.pool);
    }

    #[inline]
    fn outbox_changed(&mut self, before: usize, after: usize) {
        let counted = |len: usize| len.min(WAITING_BYTES_COUNTED);
        self.waiting_bytes = (self.waiting_bytes + counted(after)).saturating_sub(counted(before));
    }

    /// True when the session does not keep up with what is published to it.
    #[inline]
    pub(super) fn is_lagging(&self, connection: &Connection) -> bool {
        connection.session.outbox().push_bytes() > self.lagging_bytes
    }

    /// True when much waits for many sessions. Then the network or the machine of all of them is
    /// slow, not some readers, and publishers must wait for it.
    fn sockets_are_full(&self, connections: usize) -> bool {
        self.waiting_bytes > WAITING_BYTES_MIN.max(connections * WAITING_BYTES_EACH)
    }

    /// Notes that a push was queued on its receivers. It is in flight until they are flushed;
    /// `sends` is held until then. `lagging` is the last receiver when all that took the push lag.
    pub(super) fn begin(
        &mut self,
        stage: Stage,
        lagging: Option<ConnectionId>,
        accepted_at: Option<AcceptedAt>,
        sends: Sends,
        now: Millis,
    ) {
        let push = InFlightPush { passed: self.queue.end(), began: now, accepted_at, lagging, _sends: sends };
        match stage {
            Stage::Urgent => self.in_flight.add_urgent(push),
            Stage::Queued => self.in_flight.add_queued(push),
        }
    }

    /// Ends the pushes that are no longer in flight: their latency is counted, and others may take
    /// their place.
    pub(super) fn complete(&mut self, now: Millis, connections: &Connections, stats: &ShardStats) {
        let is_lagging = |id: ConnectionId| {
            let Some(slot) = connections.find(id) else { return false };
            let connection = &connections[slot];
            let reads = connection.drained_at().is_some_and(|at| now < at.after(FULL_TIMEOUT));
            reads && connection.session.outbox().push_bytes() > self.lagging_bytes
        };
        let is_recent = |began: Millis| now < began.after(FULL_TIMEOUT);
        // The clock is read once for all of them, and not at all when nothing completes.
        let clock = OnceCell::new();
        let count = |accepted_at: Option<AcceptedAt>| {
            if let Some(accepted_at) = accepted_at {
                stats.push_latency.observe(accepted_at.until(*clock.get_or_init(AcceptedAt::now)));
            }
        };
        self.in_flight
            .complete_urgent(|push| is_recent(push.began) && push.lagging.is_some_and(is_lagging), count);
        let sockets_are_full = self.sockets_are_full(connections.len());
        let is_held_up = |push: &InFlightPush| sockets_are_full && is_recent(push.began);
        self.in_flight.complete_queued(self.queue.passed(), is_held_up, count);
    }

    /// Frees what traffic took; only while nothing waits for a flush.
    pub(super) fn release_memory(&mut self) {
        self.pool.release();
        self.urgent = Vec::new();
        self.queue.release_memory();
        self.in_flight.release_memory();
        self.receivers = Vec::new();
        self.gather = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use goim_ports::{Operation, PacketBuf};

    use super::*;
    use crate::connection::testing::open_session;

    const LIMIT: QueueLimit = QueueLimit { bytes_max: 1024 * 1024, policy: SlowConsumerPolicy::DropNewest };

    fn push(len: usize) -> EncodedPush {
        EncodedPush::new(PacketBuf::push(Operation(1000), Bytes::from(vec![b'x'; len])))
    }

    fn connections(count: u32) -> Connections {
        let mut connections = Connections::default();
        (0..count).for_each(|_| {
            let generation = connections.next_generation();
            connections.insert(open_session(generation));
        });
        connections
    }

    #[test]
    fn waiting_bytes_are_counted_up_to_a_bound_for_each_session() {
        let mut connections = connections(3);
        let mut egress = Egress::new(LIMIT.bytes_max);
        let small = push(100);
        let len = small.len(connections[0].session.transport());
        for slot in 0..2 {
            egress.push(&mut connections[slot], &small, LIMIT, Millis(0));
        }
        assert_eq!(egress.waiting_bytes, 2 * len);
        for _ in 0..10 {
            egress.push(&mut connections[2], &push(WAITING_BYTES_COUNTED), LIMIT, Millis(0));
        }
        assert_eq!(egress.waiting_bytes, 2 * len + WAITING_BYTES_COUNTED);
        assert!(!egress.write(&mut connections[0], Millis(0)).unwrap());
        assert_eq!(egress.waiting_bytes, len + WAITING_BYTES_COUNTED);
        for slot in 1..3 {
            egress.discard(&mut connections[slot]);
        }
        assert_eq!(egress.waiting_bytes, 0);
    }

    #[test]
    fn a_session_is_queued_once_for_each_kind_of_flush() {
        let mut connections = connections(2);
        let mut egress = Egress::new(LIMIT.bytes_max);
        assert!(!egress.has_flushes());
        for slot in [0, 1, 0] {
            egress.flush_in_order(slot, &mut connections[slot]);
            egress.flush_urgently(slot, &mut connections[slot]);
        }
        assert_eq!(egress.upcoming().collect::<Vec<_>>(), [0, 1]);
        let urgent = egress.take_urgent();
        assert_eq!(urgent, [0, 1]);
        egress.recycle_urgent(urgent);
        assert!(egress.has_flushes());
        assert_eq!([egress.next_in_order(), egress.next_in_order()], [Some(0), Some(1)]);
        assert!(!egress.has_flushes());
    }

    #[test]
    fn a_push_to_a_lagging_session_is_in_flight_until_it_is_written_or_too_old() {
        let mut connections = connections(1);
        let mut egress = Egress::new(LIMIT.bytes_max);
        let stats = ShardStats::default();
        let large = push(LAGGING_BYTES);
        for _ in 0..2 {
            egress.push(&mut connections[0], &large, LIMIT, Millis(0));
        }
        assert!(egress.is_lagging(&connections[0]));
        let id = connections.id(0);
        let begin = |egress: &mut Egress, now| {
            egress.begin(Stage::Urgent, Some(id), Some(AcceptedAt::now()), Sends::for_test(), now);
        };
        begin(&mut egress, Millis(0));
        egress.complete(Millis(10), &connections, &stats);
        assert!(egress.has_in_flight());
        // The session has not read for the whole timeout: publishers wait no longer.
        egress.complete(Millis(1000), &connections, &stats);
        assert!(!egress.has_in_flight());
        // It reads, so that it may be waited for again, until it has caught up.
        egress.write(&mut connections[0], Millis(1500)).unwrap();
        egress.push(&mut connections[0], &large, LIMIT, Millis(1500));
        egress.push(&mut connections[0], &large, LIMIT, Millis(1500));
        begin(&mut egress, Millis(1500));
        egress.complete(Millis(1600), &connections, &stats);
        assert!(egress.has_in_flight());
        while !connections[0].session.outbox().is_empty() {
            egress.write(&mut connections[0], Millis(1700)).unwrap();
        }
        egress.complete(Millis(1700), &connections, &stats);
        assert!(!egress.has_in_flight());
        let (counts, _) = stats.push_latency.read();
        assert_eq!(counts.iter().sum::<u64>(), 2);
    }
}
