//! The loop: reads records, spreads them over the lanes, and tells the log what is done.
//!
//! It waits in two places only: for something to do, and at the end for the lanes. In both it goes on telling the log what is
//! done. A lane takes whatever may be in flight, so that what one comet does not take keeps nothing from the others.

use std::future::Future;
use std::num::NonZeroU32;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use goim_ports::{
    Broadcast, CometPool, KeyPush, LogEntry, Operation, PacketBuf, PushLogReader, PushRecord, PushTarget,
    ReadError, RoomId, ServerId,
};
use goim_wire::batch::BatchBuilder;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::at_once::{AtOnce, ToIdle};
use crate::config::{CometConfig, Config};
use crate::in_flight::{InFlight, Share};
use crate::lane::{Request, Stake};
use crate::lanes::{Assignment, Lanes};
use crate::losses::{self, Losses, Presence};
use crate::metrics::{Metrics, Outcome};
use crate::rooms::{Batch, Message, Rooms};
use crate::routing::{Answer, Routing};

/// How often comets that have gone are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// How often is looked, while a comet is gone, whether it is back.
const PRESENCE_INTERVAL: Duration = Duration::from_millis(200);

/// How often is looked, while nothing can be read, whether a comet that hangs is the reason.
const HUNG_CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// Pause after the first failed read; doubled with each further one up to [`READ_PAUSE_MAX`].
const READ_PAUSE_MIN: Duration = Duration::from_millis(100);
const READ_PAUSE_MAX: Duration = Duration::from_secs(3);

/// The reading side of a job.
pub(crate) struct Intake {
    drain_timeout: Duration,
    reader: Box<dyn PushLogReader>,
    pool: Arc<dyn CometPool>,
    rooms: Rooms,
    lanes: Lanes,
    routing: Routing,
    in_flight: Arc<InFlight>,
    metrics: Arc<Metrics>,
    comet: CometConfig,
    losses: Arc<Losses>,
    presence: Presence,
    next_look: Instant,
    next_sweep: Instant,
    /// Since when reading fails: not before then, and the pause that led to it.
    read_pause: Option<(Instant, Duration)>,
}

enum Event {
    Read(Vec<LogEntry>),
    ReadFailed(ReadError),
    /// A comet has said which rooms it has.
    Rooms(Answer),
    /// Something is finished, or due by the clock.
    Housekeeping,
    /// Shut down, or the log is used up.
    End,
}

impl Intake {
    pub(crate) fn new(
        config: Config,
        reader: Box<dyn PushLogReader>,
        pool: Arc<dyn CometPool>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let in_flight = Arc::new(InFlight::new(config.in_flight));
        let losses: Arc<Losses> = Arc::default();
        let comet = config.comet.clone();
        Self {
            drain_timeout: config.drain_timeout,
            reader,
            rooms: Rooms::new(config.room, Arc::clone(&in_flight)),
            lanes: Lanes::new(config.comet, Arc::clone(&pool), Arc::clone(&metrics), Arc::clone(&losses)),
            routing: Routing::new(Arc::clone(&pool), Arc::clone(&metrics)),
            in_flight,
            pool,
            metrics,
            comet,
            losses,
            presence: Presence::default(),
            next_look: Instant::now(),
            next_sweep: Instant::now(),
            read_pause: None,
        }
    }

    pub(crate) async fn run(mut self, shutdown: impl Future<Output = ()> + Send) -> Result<(), ReadError> {
        self.next_sweep = Instant::now() + SWEEP_INTERVAL;
        self.look_who_is_there(false);
        let mut shutdown = pin!(shutdown);
        let ended = loop {
            match self.next_event(shutdown.as_mut()).await {
                Event::Read(entries) => self.take(entries).await,
                Event::ReadFailed(error @ (ReadError::Ended(_) | ReadError::Fenced(_))) => break Err(error),
                Event::ReadFailed(error) => self.read_failed(&error),
                Event::Rooms(answer) => {
                    let mut decided = Vec::new();
                    self.routing.learn(answer, Instant::now(), &mut decided);
                    self.assign(decided);
                }
                Event::Housekeeping => {}
                Event::End => break Ok(()),
            }
            self.housekeeping();
        };
        let (records, _) = self.in_flight.load();
        tracing::info!(records, "job stops reading and hands over what it has");
        let drained = timeout(self.drain_timeout, self.drain()).await;
        if drained.is_err() {
            let (records, _) = self.in_flight.load();
            tracing::warn!(records, "job stops with records that were not handed over");
        }
        ended
    }

    async fn next_event(&mut self, shutdown: Pin<&mut (impl Future<Output = ()> + Send)>) -> Event {
        let now = Instant::now();
        let mut due = self.rooms.next_due().map_or(self.next_sweep, |due| due.min(self.next_sweep));
        if !self.has_room() {
            due = due.min(now + HUNG_CHECK_INTERVAL);
        }
        due = self.routing.next_due(now).map_or(due, |next| due.min(next));
        if self.presence.misses_some() {
            due = due.min(self.next_look.max(now));
        }
        let paused = self.read_pause.map(|(until, _)| until).filter(|until| *until > now);
        let may_read = paused.is_none() && self.has_room();
        tokio::select! {
            biased;
            () = shutdown => Event::End,
            // Before reading, so that a log that always has more does not keep gathered messages waiting.
            () = sleep_until(paused.map_or(due, |until| until.min(due))) => Event::Housekeeping,
            answer = self.routing.answer() => Event::Rooms(answer),
            read = self.reader.read(), if may_read => match read {
                Ok(Some(entries)) => Event::Read(entries),
                Ok(None) => Event::End,
                Err(error) => Event::ReadFailed(error),
            },
            () = self.in_flight.changed() => Event::Housekeeping,
        }
    }

    /// True when more may be read.
    fn has_room(&self) -> bool {
        self.in_flight.has_room() && self.rooms.has_room(|server| self.lanes.is_late(server))
    }

    fn read_failed(&mut self, error: &ReadError) {
        self.metrics.read_errors.inc();
        let pause = self.read_pause.map_or(READ_PAUSE_MIN, |(_, pause)| READ_PAUSE_MAX.min(pause * 2));
        if self.read_pause.is_none() {
            tracing::warn!(%error, "the push log cannot be read; trying again");
        }
        self.read_pause = Some((Instant::now() + pause, pause));
    }

    async fn take(&mut self, entries: Vec<LogEntry>) {
        if self.read_pause.take().is_some() {
            tracing::info!("the push log can be read again");
        }
        let mut for_all = false;
        let mut at_once = AtOnce::default();
        for entry in entries {
            self.metrics.read(&entry.record.target);
            for_all |= !matches!(entry.record.target, PushTarget::Keys { .. });
            let Some(entry) = at_once.take(entry, &self.lanes, &self.in_flight) else { continue };
            let assignments = self.spread(entry);
            self.assign(assignments);
        }
        self.push_at_once(at_once);
        // Who is not there has missed it.
        if for_all {
            self.look_who_is_there(true);
        }
        let mut batches = Vec::new();
        self.rooms.take_woken(Instant::now(), &mut batches);
        self.assign_batches(batches);
        // A log that always has more must not keep the thread from the lanes.
        tokio::task::yield_now().await;
    }

    /// Hands pushes over without a detour through lanes; what their comets cannot take now goes there.
    fn push_at_once(&mut self, at_once: AtOnce) {
        for ToIdle { server, pushes, mut tickets } in at_once.into_comets() {
            let rest = match self.pool.get(&server) {
                Some(comet) => comet.push_now(pushes),
                None => pushes,
            };
            let rest_of_tickets = tickets.split_off(tickets.len().saturating_sub(rest.len()));
            self.metrics.delivered(tickets.len());
            self.in_flight.finish_untold(&tickets);
            for (push, ticket) in rest.into_iter().zip(rest_of_tickets) {
                let share = Share::new(&self.in_flight, ticket);
                let assignments = self.spread_keys(&server, push, &share);
                self.assign(assignments);
            }
        }
    }

    /// Notes which comets have gone, and tells those that are back of what was dropped for them meanwhile.
    fn look_who_is_there(&mut self, for_all: bool) {
        let now = Instant::now();
        self.next_look = now + PRESENCE_INTERVAL;
        for server in self.presence.look(&*self.pool, &self.losses, for_all, now) {
            // One that is given up is told when it answers.
            if self.lanes.is_down(&server) {
                continue;
            }
            let Some(last) = self.losses.take(&server) else { continue };
            let (pool, config) = (Arc::clone(&self.pool), self.comet.clone());
            let (metrics, losses) = (Arc::clone(&self.metrics), Arc::clone(&self.losses));
            tokio::spawn(async move {
                while !losses::tell(&server, last, &pool, &config, &metrics).await {
                    if pool.get(&server).is_none() {
                        losses.note(&server, last);
                        return;
                    }
                    sleep(config.probe_interval).await;
                }
            });
        }
    }

    /// What has to be done from time to time, cheap when there is nothing to do.
    fn housekeeping(&mut self) {
        self.report_done();
        if !self.in_flight.has_room() {
            self.lanes.give_up_hung();
        }
        let now = Instant::now();
        if now >= self.next_look {
            self.look_who_is_there(false);
        }
        let mut batches = Vec::new();
        self.rooms.take_due(now, &mut batches);
        self.assign_batches(batches);
        self.routing.ask(now);
        if now >= self.next_sweep {
            self.lanes.forget_gone();
            self.rooms.forget_gone(|server| self.pool.get(server).is_some());
            self.routing.forget_gone();
            self.presence.forget_gone(&self.losses, now);
            self.next_sweep = now + SWEEP_INTERVAL;
        }
    }

    /// The calls that a record leads to now; messages for rooms may wait for others.
    fn spread(&mut self, entry: LogEntry) -> Vec<Assignment> {
        let LogEntry { position, record } = entry;
        let ticket = self.in_flight.enter(position, &record);
        let share = Share::new(&self.in_flight, ticket);
        let PushRecord { target, operation, payload, accepted_at } = record;
        match target {
            PushTarget::Room(room) => {
                let message = Message { operation, payload, accepted_at, share };
                let batches = self.gather(&room, &message);
                batches.into_iter().flat_map(|batch| self.spread_batch(batch)).collect()
            }
            PushTarget::Keys { server, keys } => {
                let payload = payload.map(|body| raw(operation, body));
                let push = KeyPush { keys, operation, payload, accepted_at: Some(accepted_at) };
                self.spread_keys(&server, push, &share)
            }
            PushTarget::All { speed } => {
                let payload = payload.map(|body| raw(operation, body));
                let to_all = Broadcast { operation, payload, accepted_at: Some(accepted_at), speed };
                self.spread_broadcast(&to_all, &share)
            }
        }
    }

    fn spread_keys(&self, server: &ServerId, mut push: KeyPush, share: &Share) -> Vec<Assignment> {
        if self.pool.get(server).is_none() {
            self.metrics.handed_over(Outcome::NoComet);
            self.losses.note(server, Instant::now());
            tracing::debug!(%server, "push for a comet that is not known");
            return Vec::new();
        }
        let parts = self.lanes.split(std::mem::take(&mut push.keys)).into_iter();
        let part = parts.map(|(lane, keys)| {
            let request = Request::Keys(KeyPush { keys, ..push.clone() });
            let stake = Stake::Push(share.clone());
            Assignment { server: server.clone(), lane, request, stake }
        });
        part.collect()
    }

    fn spread_broadcast(&self, broadcast: &Broadcast, share: &Share) -> Vec<Assignment> {
        let comets = self.pool.all();
        if comets.is_empty() {
            self.metrics.handed_over(Outcome::NoComet);
        }
        let speed = broadcast.speed.map(|speed| share_of_speed(speed, comets.len()));
        let part = comets.into_iter().map(|(server, _)| {
            let request = Request::All(Broadcast { speed, ..broadcast.clone() });
            let stake = Stake::Push(share.clone());
            Assignment { server, lane: self.lanes.broadcast_lane(), request, stake }
        });
        part.collect()
    }

    /// Adds a room's message to what gathers for each comet. Gives what must leave now.
    fn gather(&mut self, room: &RoomId, message: &Message) -> Vec<Batch> {
        let comets = self.pool.all();
        if comets.is_empty() {
            self.metrics.handed_over(Outcome::NoComet);
        }
        let (now, mut batches) = (Instant::now(), Vec::new());
        for (server, _) in comets {
            self.rooms.add(&server, room, message.clone(), now, &mut batches);
        }
        batches
    }

    /// The call of a batch, whether or not somebody of the room is there.
    fn call_of(&self, batch: Batch) -> (RoomId, Assignment) {
        self.metrics.room_batch_messages.observe(batch.shares.len() as f64);
        let Batch { server, push, shares, flight } = batch;
        let room = push.room.clone();
        let lane = self.lanes.lane_of(room.as_str());
        let stake = Stake::Batch(shares, flight);
        (room, Assignment { server, lane, request: Request::Room(push), stake })
    }

    fn spread_batch(&mut self, batch: Batch) -> Vec<Assignment> {
        let (room, assignment) = self.call_of(batch);
        // A single comet is where everybody is.
        if self.pool.all().len() == 1 {
            return vec![assignment];
        }
        let mut leaving = Vec::new();
        self.routing.route(&room, assignment, Instant::now(), &mut leaving);
        leaving
    }

    fn assign_batches(&mut self, batches: Vec<Batch>) {
        for batch in batches {
            let assignments = self.spread_batch(batch);
            self.assign(assignments);
        }
    }

    fn assign(&mut self, assignments: Vec<Assignment>) {
        assignments.into_iter().for_each(|assignment| self.lanes.assign(assignment));
    }

    fn report_done(&mut self) {
        for position in self.in_flight.take_done() {
            self.reader.done(position);
        }
        let (records, bytes) = self.in_flight.load();
        self.metrics.in_flight_records.set(i64::try_from(records).unwrap_or(i64::MAX));
        self.metrics.in_flight_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    async fn drain(&mut self) {
        let mut batches = Vec::new();
        self.rooms.take_all(&mut batches);
        // What is parked is the oldest of its rooms. Nobody is asked any more.
        let mut rest = self.routing.take_all();
        rest.extend(batches.into_iter().map(|batch| self.call_of(batch).1));
        self.assign(rest);
        loop {
            tokio::select! {
                () = self.lanes.finish() => break,
                () = self.in_flight.changed() => self.report_done(),
            }
        }
        self.report_done();
    }
}

/// One message as comets want it: a packet inside a batch.
pub(crate) fn raw(operation: Operation, body: Bytes) -> PacketBuf {
    BatchBuilder::one(PacketBuf::push(operation, body).as_packet())
}

/// The share of one comet in a speed over all: at least one, since none would mean as fast as it goes.
fn share_of_speed(speed: NonZeroU32, comets: usize) -> NonZeroU32 {
    let comets = u32::try_from(comets).unwrap_or(u32::MAX).max(1);
    NonZeroU32::new(speed.get() / comets).unwrap_or(NonZeroU32::MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speed_is_shared_and_never_lost() {
        for (speed, comets, share) in [(100, 2, 50), (100, 3, 33), (1, 2, 1), (7, 1, 7), (5, 0, 5)] {
            let speed = NonZeroU32::new(speed).expect("not zero");
            assert_eq!(share_of_speed(speed, comets).get(), share, "{speed} over {comets}");
        }
    }

    #[test]
    fn a_message_is_a_packet_in_a_batch() {
        // Row 68 of goim's conformance table.
        let packet = raw(Operation(1000), Bytes::from_static(b"hello"));
        assert_eq!((packet.version.0, packet.operation, packet.sequence.0), (1, Operation::RAW, 0));
        assert_eq!(packet.body[..], *b"\0\0\0\x15\0\x10\0\x01\0\0\x03\xe8\0\0\0\0hello");
    }
}
