//! The loop of a job: reads records, dispatches them to lanes, and reports to the log what is done.
//!
//! Owns reading and back-pressure; it waits only for its next event, and for the lanes at the end.
//! Both waits keep reporting done positions. A lane accepts everything within the in-flight limit,
//! so one comet's backlog never blocks the dispatch to others.

mod fast_path;

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use goim_ports::{
    Broadcast, CometPool, KeyPush, LogEntry, PushLogReader, PushRecord, PushTarget, ReadError, RoomId,
    ServerId,
};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::completion::{Ack, CompletionGuard};
use crate::config::{CometConfig, Config};
use crate::delivery::{Delivery, Push, encode, share_of_speed};
use crate::in_flight::InFlight;
use crate::lane::Lanes;
use crate::losses::{self, Losses, Presence};
use crate::metrics::{Metrics, Outcome};
use crate::rooms::Rooms;
use crate::routing::{Reply, Routing};
use fast_path::{FastPath, IdleComet};

/// Interval of removing the state of comets that left the pool.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// Interval of checking, while a comet is absent, whether it has returned.
const PRESENCE_INTERVAL: Duration = Duration::from_millis(200);

/// Interval of checking, while reading is stopped, whether a comet that hangs is the reason.
const HUNG_CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// Pause after the first failed read. It doubles with each further one, up to [`READ_PAUSE_MAX`].
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
    next_presence_update: Instant,
    next_sweep: Instant,
    /// While reading fails: when the next attempt is due, and the pause that led to it.
    read_pause: Option<(Instant, Duration)>,
}

enum Event {
    Read(Vec<LogEntry>),
    ReadFailed(ReadError),
    /// A comet has replied with the changes of its rooms.
    Rooms(Reply),
    /// A record or batch has completed, or a timer has fired.
    Housekeeping,
    /// Shutdown, or the end of the log.
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
            next_presence_update: Instant::now(),
            next_sweep: Instant::now(),
            read_pause: None,
        }
    }

    pub(crate) async fn run(mut self, shutdown: impl Future<Output = ()> + Send) -> Result<(), ReadError> {
        self.next_sweep = Instant::now() + SWEEP_INTERVAL;
        self.update_presence(false);
        let mut shutdown = pin!(shutdown);
        let ended = loop {
            match self.next_event(shutdown.as_mut()).await {
                Event::Read(entries) => self.on_records(entries).await,
                Event::ReadFailed(error @ (ReadError::Ended(_) | ReadError::Fenced(_))) => break Err(error),
                Event::ReadFailed(error) => self.on_read_error(&error),
                Event::Rooms(reply) => {
                    let mut resolved = Vec::new();
                    self.routing.on_reply(reply, Instant::now(), &mut resolved);
                    self.enqueue(resolved);
                }
                Event::Housekeeping => {}
                Event::End => break Ok(()),
            }
            self.housekeeping();
        };
        let (records, _) = self.in_flight.load();
        tracing::info!(records, "job stops reading and delivers the records in flight");
        let drained = timeout(self.drain_timeout, self.drain()).await;
        if drained.is_err() {
            let (records, _) = self.in_flight.load();
            tracing::warn!(records, "job stops with undelivered records");
        }
        ended
    }

    async fn next_event(&mut self, shutdown: Pin<&mut (impl Future<Output = ()> + Send)>) -> Event {
        let now = Instant::now();
        let mut due = self.rooms.next_due().map_or(self.next_sweep, |due| due.min(self.next_sweep));
        if !self.has_capacity() {
            due = due.min(now + HUNG_CHECK_INTERVAL);
        }
        due = self.routing.next_query(now).map_or(due, |next| due.min(next));
        if self.presence.has_absent() {
            due = due.min(self.next_presence_update.max(now));
        }
        let paused = self.read_pause.map(|(until, _)| until).filter(|until| *until > now);
        let may_read = paused.is_none() && self.has_capacity();
        tokio::select! {
            biased;
            () = shutdown => Event::End,
            // Before reading: a log that always has more must not delay gathered messages.
            () = sleep_until(paused.map_or(due, |until| until.min(due))) => Event::Housekeeping,
            reply = self.routing.reply() => Event::Rooms(reply),
            read = self.reader.read(), if may_read => match read {
                Ok(Some(entries)) => Event::Read(entries),
                Ok(None) => Event::End,
                Err(error) => Event::ReadFailed(error),
            },
            () = self.in_flight.changed() => Event::Housekeeping,
        }
    }

    /// Returns whether more records may be read.
    fn has_capacity(&self) -> bool {
        self.in_flight.has_capacity() && self.rooms.has_capacity(|server| self.lanes.is_slow(server))
    }

    fn on_read_error(&mut self, error: &ReadError) {
        self.metrics.read_errors.inc();
        let pause = self.read_pause.map_or(READ_PAUSE_MIN, |(_, pause)| READ_PAUSE_MAX.min(pause * 2));
        if self.read_pause.is_none() {
            tracing::warn!(%error, "push log cannot be read; retrying");
        }
        self.read_pause = Some((Instant::now() + pause, pause));
    }

    async fn on_records(&mut self, entries: Vec<LogEntry>) {
        if self.read_pause.take().is_some() {
            tracing::info!("push log can be read again");
        }
        let mut has_fan_out = false;
        let mut fast_path = FastPath::default();
        for entry in entries {
            self.metrics.record_read(&entry.record.target);
            has_fan_out |= !matches!(entry.record.target, PushTarget::Keys { .. });
            let Some(entry) = fast_path.add(entry, &self.lanes, &self.in_flight) else { continue };
            self.dispatch_record(entry);
        }
        self.push_to_idle_comets(fast_path);
        // After the dispatch: comets that are absent now have missed these messages.
        if has_fan_out {
            self.update_presence(true);
        }
        let mut batches = Vec::new();
        self.rooms.take_activated(Instant::now(), &mut batches);
        self.dispatch_batches(batches);
        // A log that always has more must not keep the thread from the lanes' workers.
        tokio::task::yield_now().await;
    }

    /// Pushes to idle comets without lanes. Pushes that a comet cannot accept now go through lanes.
    fn push_to_idle_comets(&mut self, fast_path: FastPath) {
        for IdleComet { server, pushes, mut records } in fast_path.into_comets() {
            let rest = match self.pool.get(&server) {
                Some(comet) => comet.push_now(pushes),
                None => pushes,
            };
            let rest_of_records = records.split_off(records.len().saturating_sub(rest.len()));
            self.metrics.delivered(records.len());
            self.in_flight.finish_silently(&records);
            for (push, id) in rest.into_iter().zip(rest_of_records) {
                let ack = Ack::new(&self.in_flight, id);
                self.dispatch_to_keys(server.clone(), push, &ack);
            }
        }
    }

    /// Updates which comets are absent, and notifies those that have returned of dropped messages.
    fn update_presence(&mut self, had_fan_out: bool) {
        let now = Instant::now();
        self.next_presence_update = now + PRESENCE_INTERVAL;
        for server in self.presence.update(&*self.pool, &self.losses, had_fan_out, now) {
            // A comet that is down is notified when it answers a probe.
            if self.lanes.is_down(&server) {
                continue;
            }
            let Some(last) = self.losses.take(&server) else { continue };
            let (pool, config) = (Arc::clone(&self.pool), self.comet.clone());
            let (metrics, losses) = (Arc::clone(&self.metrics), Arc::clone(&self.losses));
            tokio::spawn(async move {
                while !losses::report(&server, last, &pool, &config, &metrics).await {
                    if pool.get(&server).is_none() {
                        losses.record(&server, last);
                        return;
                    }
                    sleep(config.probe_interval).await;
                }
            });
        }
    }

    /// Does periodic work. Cheap when there is none.
    fn housekeeping(&mut self) {
        self.report_done();
        if !self.in_flight.has_capacity() {
            self.lanes.mark_hung_down();
        }
        let now = Instant::now();
        if now >= self.next_presence_update {
            self.update_presence(false);
        }
        let mut batches = Vec::new();
        self.rooms.take_due(now, &mut batches);
        self.dispatch_batches(batches);
        self.routing.send_queries(now);
        if now >= self.next_sweep {
            self.lanes.remove_departed();
            self.rooms.remove_departed(|server| self.pool.get(server).is_some());
            self.routing.remove_departed();
            self.presence.remove_old(&self.losses, now);
            self.next_sweep = now + SWEEP_INTERVAL;
        }
    }

    /// Dispatches a record to its comets. A room's message may gather in a batch first.
    fn dispatch_record(&mut self, entry: LogEntry) {
        let LogEntry { position, record } = entry;
        let id = self.in_flight.register(position, &record);
        let ack = Ack::new(&self.in_flight, id);
        match record {
            ref record @ PushRecord { target: PushTarget::Room(ref room), .. } => {
                self.add_to_batches(room, record, &ack);
            }
            PushRecord { target: PushTarget::Keys { server, keys }, operation, payload, accepted_at } => {
                let payload = payload.map(|body| encode(operation, body));
                let push = KeyPush { keys, operation, payload, accepted_at: Some(accepted_at) };
                self.dispatch_to_keys(server, push, &ack);
            }
            PushRecord { target: PushTarget::All { speed }, operation, payload, accepted_at } => {
                let payload = payload.map(|body| encode(operation, body));
                let broadcast = Broadcast { operation, payload, accepted_at: Some(accepted_at), speed };
                self.dispatch_to_all(&broadcast, &ack);
            }
        }
    }

    /// Dispatches a push to keys: one delivery for each lane that has keys of it.
    fn dispatch_to_keys(&mut self, server: ServerId, mut push: KeyPush, ack: &Ack) {
        if self.pool.get(&server).is_none() {
            self.metrics.delivery_ended(Outcome::NoComet);
            self.losses.record(&server, Instant::now());
            tracing::debug!(%server, "push for a comet that is not in the pool");
            return;
        }
        for keys in self.lanes.split(std::mem::take(&mut push.keys)) {
            let push = Push::Keys(KeyPush { keys, ..push.clone() });
            self.lanes.enqueue(Delivery::new(server.clone(), push, CompletionGuard::Push(ack.clone())));
        }
    }

    fn dispatch_to_all(&mut self, broadcast: &Broadcast, ack: &Ack) {
        let comets = self.pool.all();
        if comets.is_empty() {
            self.metrics.delivery_ended(Outcome::NoComet);
        }
        let speed = broadcast.speed.map(|speed| share_of_speed(speed, comets.len()));
        for (server, _) in comets {
            let push = Push::All(Broadcast { speed, ..broadcast.clone() });
            self.lanes.enqueue(Delivery::new(server, push, CompletionGuard::Push(ack.clone())));
        }
    }

    /// Adds a room's message to the batch for each comet, and dispatches the batches that are full.
    fn add_to_batches(&mut self, room: &RoomId, record: &PushRecord, ack: &Ack) {
        let comets = self.pool.all();
        if comets.is_empty() {
            self.metrics.delivery_ended(Outcome::NoComet);
        }
        let (now, mut batches) = (Instant::now(), Vec::new());
        for (server, _) in comets {
            self.rooms.add(&server, room, record, ack.clone(), now, &mut batches);
        }
        self.dispatch_batches(batches);
    }

    /// Dispatches batches of rooms to the comets that may have sessions of the room.
    fn dispatch_batches(&mut self, batches: Vec<Delivery>) {
        for batch in batches {
            self.metrics.room_batch_messages.observe(batch.guard.records_len() as f64);
            let mut routed = Vec::new();
            match &batch.push {
                // A single comet has all sessions: no reply could exclude it.
                Push::Room(push) if self.pool.all().len() != 1 => {
                    let room = push.room.clone();
                    self.routing.route(&room, batch, Instant::now(), &mut routed);
                }
                _ => routed.push(batch),
            }
            self.enqueue(routed);
        }
    }

    fn enqueue(&mut self, deliveries: Vec<Delivery>) {
        deliveries.into_iter().for_each(|delivery| self.lanes.enqueue(delivery));
    }

    fn report_done(&mut self) {
        for position in self.in_flight.take_done() {
            self.reader.done(position);
        }
        let (records, bytes) = self.in_flight.load();
        self.metrics.in_flight_records.set(i64::try_from(records).unwrap_or(i64::MAX));
        self.metrics.in_flight_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// Delivers everything that was read.
    async fn drain(&mut self) {
        // Pending batches first: they are the oldest of their rooms. No comet is queried any more.
        let mut rest = self.routing.take_all();
        let mut batches = Vec::new();
        self.rooms.take_all(&mut batches);
        for batch in &batches {
            self.metrics.room_batch_messages.observe(batch.guard.records_len() as f64);
        }
        rest.extend(batches);
        self.enqueue(rest);
        loop {
            tokio::select! {
                () = self.lanes.drain() => break,
                () = self.in_flight.changed() => self.report_done(),
            }
        }
        self.report_done();
    }
}
