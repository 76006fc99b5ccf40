//! Which comets a room's messages may skip because they have no session in the room.
//!
//! A comet's room set may be stale, so absence is never inferred from it. A message for a room that
//! is not in the set is held back, the comet is queried for changes, and only a reply to a query
//! that was sent after the message had been read decides. That reply contains every session that
//! was in the room when the message was accepted. Presence in the set is enough to send
//! immediately: a stale entry costs one call, not a message. A comet that cannot answer (goim's,
//! one with too many rooms, one that does not respond) gets everything.

use std::collections::{HashMap, VecDeque};
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use goim_ports::{Call, CometError, CometPool, RoomId, RoomsDelta, RoomsRevision, ServerId};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use crate::delivery::Delivery;
use crate::metrics::Metrics;

/// The minimum time between two queries to a comet. Messages that arrive meanwhile share the next
/// reply.
const QUERY_INTERVAL: Duration = Duration::from_millis(10);
/// The maximum age of a room set in use. Rooms that became empty get useless calls for this long.
const REFRESH_INTERVAL: Duration = Duration::from_secs(1);
/// The timeout of a query.
const QUERY_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a comet that did not reply gets everything before the next query.
const BROADCAST_AFTER_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a comet without the query, or with too many rooms, gets everything before the next
/// query.
const BROADCAST_IF_UNSUPPORTED: Duration = Duration::from_secs(60);

/// The room sets of all comets, and the deliveries that wait for a reply.
pub(crate) struct Routing {
    pool: Arc<dyn CometPool>,
    metrics: Arc<Metrics>,
    comets: HashMap<ServerId, RoomSet>,
    reply_sender: mpsc::UnboundedSender<Reply>,
    /// At most one per comet.
    replies: mpsc::UnboundedReceiver<Reply>,
}

/// A comet's reply to a query.
pub(crate) struct Reply {
    server: ServerId,
    changes: Result<RoomsDelta, CometError>,
}

/// One comet's rooms, as of its last reply.
#[derive(Default)]
struct RoomSet {
    version: RoomsRevision,
    /// The rooms, each with its stripe on the comet.
    rooms: HashMap<RoomId, u32>,
    /// The comet gets everything until then.
    broadcast_until: Option<Instant>,
    /// Batches of rooms that are not in the set, oldest first. At most one per room: the next batch
    /// of a room leaves only when this one has completed.
    pending: VecDeque<(RoomId, Delivery)>,
    /// The length of `pending` when the open query was sent; `None` without an open query.
    queried: Option<usize>,
    last_query: Option<Instant>,
    /// Whether a batch was routed since the last query.
    is_used: bool,
}

impl Routing {
    pub(crate) fn new(pool: Arc<dyn CometPool>, metrics: Arc<Metrics>) -> Self {
        let (reply_sender, replies) = mpsc::unbounded_channel();
        Self { pool, metrics, comets: HashMap::new(), reply_sender, replies }
    }

    /// Routes a room's batch to its comet: it is added to `out`, or waits for a reply.
    pub(crate) fn route(&mut self, room: &RoomId, delivery: Delivery, now: Instant, out: &mut Vec<Delivery>) {
        let set = self.comets.entry(delivery.server.clone()).or_default();
        set.is_used = true;
        let is_broadcast = set.broadcast_until.is_some_and(|until| until > now);
        if is_broadcast || set.rooms.contains_key(room) {
            // This cannot overtake a pending batch of the room: none is dispatched while one is
            // pending.
            out.push(delivery);
        } else {
            set.pending.push_back((room.clone(), delivery));
        }
    }

    /// Queries the comets that are due.
    pub(crate) fn send_queries(&mut self, now: Instant) {
        for (server, set) in &mut self.comets {
            if set.next_query(now).is_none_or(|due| due > now) {
                continue;
            }
            // The reply decides for these batches only. A batch that is added later may be for a
            // session that joined after the comet has put its reply together.
            set.queried = Some(set.pending.len());
            (set.last_query, set.is_used) = (Some(now), false);
            let query = self.pool.get(server).map(|comet| comet.rooms_since(set.version.clone()));
            let (reply_sender, server) = (self.reply_sender.clone(), server.clone());
            tokio::spawn(async move {
                let changes = match query {
                    None => Err(CometError::Unavailable("it has left the pool".to_owned())),
                    Some(Call::Ready(changes)) => changes,
                    Some(Call::Pending(changes)) => {
                        timeout(QUERY_TIMEOUT, changes).await.unwrap_or(Err(CometError::Timeout))
                    }
                };
                // Fails only after the job has ended.
                let _ = reply_sender.send(Reply { server, changes });
            });
        }
    }

    /// Returns when [`Routing::send_queries`] has the next query to send.
    pub(crate) fn next_query(&self, now: Instant) -> Option<Instant> {
        self.comets.values().filter_map(|set| set.next_query(now)).min()
    }

    /// Waits for the next reply.
    ///
    /// # Cancel safety
    /// Dropping the future loses no reply.
    pub(crate) async fn reply(&mut self) -> Reply {
        match self.replies.recv().await {
            Some(reply) => reply,
            // Unreachable: this struct holds a sender.
            None => std::future::pending().await,
        }
    }

    /// Applies a reply, and resolves the batches that were pending when its query was sent.
    pub(crate) fn on_reply(&mut self, reply: Reply, now: Instant, out: &mut Vec<Delivery>) {
        let Some(set) = self.comets.get_mut(&reply.server) else { return };
        let queried = set.queried.take().unwrap_or(0);
        match reply.changes {
            Ok(changes) => {
                set.apply(changes);
                let skipped = set.resolve(queried, out);
                self.metrics.room_dispatches_skipped.inc_by(skipped);
            }
            Err(error) => {
                let pause = match error {
                    CometError::Unsupported | CometError::Invalid(_) => BROADCAST_IF_UNSUPPORTED,
                    _ => BROADCAST_AFTER_TIMEOUT,
                };
                tracing::debug!(server = %reply.server, %error, "comet does not report its rooms; it gets all room messages");
                let pending = mem::take(&mut set.pending);
                out.extend(pending.into_iter().map(|(_, delivery)| delivery));
                // The set is dropped with its version: the next query asks for all rooms again.
                *set = RoomSet { broadcast_until: Some(now + pause), ..RoomSet::default() };
            }
        }
    }

    /// Takes all pending batches, for the drain: it does not wait for replies.
    pub(crate) fn take_all(&mut self) -> Vec<Delivery> {
        let sets = mem::take(&mut self.comets);
        sets.into_values().flat_map(|set| set.pending).map(|(_, delivery)| delivery).collect()
    }

    /// Removes comets that left the pool.
    pub(crate) fn remove_departed(&mut self) {
        self.comets.retain(|server, set| !set.pending.is_empty() || self.pool.get(server).is_some());
    }
}

impl RoomSet {
    /// Returns when the comet should be queried next: `now` for the first query, `None` if no query
    /// is needed.
    fn next_query(&self, now: Instant) -> Option<Instant> {
        let is_needed = self.is_used || !self.pending.is_empty();
        if self.queried.is_some() || !is_needed {
            return None;
        }
        // Pending batches need a reply soon. Otherwise the query only refreshes the set.
        let pause = if self.pending.is_empty() { REFRESH_INTERVAL } else { QUERY_INTERVAL };
        let next = self.last_query.map_or(now, |last| last + pause);
        // No batch is pending while the comet gets everything, so this delays no message.
        Some(self.broadcast_until.map_or(next, |until| next.max(until)))
    }

    fn apply(&mut self, changes: RoomsDelta) {
        self.broadcast_until = None;
        self.version = changes.version;
        for stripe in changes.stripes {
            if stripe.complete {
                self.rooms.retain(|_, of| *of != stripe.stripe);
            }
            for room in &stripe.removed {
                self.rooms.remove(room);
            }
            self.rooms.extend(stripe.added.into_iter().map(|room| (room, stripe.stripe)));
        }
    }

    /// Sends or skips the first `count` pending batches. Returns the number of skipped ones.
    ///
    /// Dropping a skipped delivery completes its records: the comet has no receiver.
    fn resolve(&mut self, count: usize, out: &mut Vec<Delivery>) -> u64 {
        let mut skipped = 0;
        for (room, delivery) in self.pending.drain(..count.min(self.pending.len())) {
            if self.rooms.contains_key(&room) {
                out.push(delivery);
            } else {
                skipped += 1;
            }
        }
        skipped
    }
}
