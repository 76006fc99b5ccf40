//! A push log and comets that a test controls and inspects.
#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::unwrap_used, reason = "this is test code")]

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use goim_job::{Config, Job};
use goim_ports::{
    AcceptedAt, BoxFuture, Broadcast, Call, CometError, CometPool, CometPort, KeyPush, LogEntry, LogPosition,
    Operation, PacketBuf, Payload, PushLogReader, PushRecord, PushTarget, ReadError, RoomId, RoomPush,
    RoomsDelta, RoomsRevision, ServerId, StripeDelta,
};
use goim_wire::batch;
use prometheus_client::registry::Registry;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// A running job between a push log and comets that the test controls.
pub(crate) struct Rig {
    log: Option<mpsc::UnboundedSender<Result<Vec<LogEntry>, ReadError>>>,
    next_offset: i64,
    done: Arc<Mutex<Vec<LogPosition>>>,
    unread: Arc<Mutex<usize>>,
    pub(crate) pool: Arc<Pool>,
    shutdown: Option<oneshot::Sender<()>>,
    job: JoinHandle<Result<(), ReadError>>,
    registry: Registry,
    pub(crate) start: Instant,
}

struct Reader {
    log: mpsc::UnboundedReceiver<Result<Vec<LogEntry>, ReadError>>,
    done: Arc<Mutex<Vec<LogPosition>>>,
    unread: Arc<Mutex<usize>>,
}

impl PushLogReader for Reader {
    fn read(&mut self) -> BoxFuture<'_, Result<Option<Vec<LogEntry>>, ReadError>> {
        Box::pin(async {
            let read = self.log.recv().await.transpose()?;
            *self.unread.lock().unwrap() -= read.as_ref().map_or(0, Vec::len);
            Ok(read)
        })
    }

    fn done(&mut self, position: LogPosition) {
        self.done.lock().unwrap().push(position);
    }
}

impl Rig {
    pub(crate) fn new(config: Config, comets: &[(&str, &Arc<Recorder>)]) -> Self {
        let (log, records) = mpsc::unbounded_channel();
        let (done, unread): (Arc<Mutex<Vec<_>>>, Arc<Mutex<usize>>) = Default::default();
        let pool = Arc::new(Pool::default());
        for (server, comet) in comets {
            pool.insert(server, comet);
        }
        let reader = Reader { log: records, done: Arc::clone(&done), unread: Arc::clone(&unread) };
        let job = Job::new(config, Box::new(reader), Arc::clone(&pool) as Arc<dyn CometPool>);
        let mut registry = Registry::default();
        job.register_metrics(&mut registry);
        let (shutdown, signal) = oneshot::channel::<()>();
        let job = tokio::spawn(job.run(async move { drop(signal.await) }));
        let (log, shutdown) = (Some(log), Some(shutdown));
        Self { log, next_offset: 0, done, unread, pool, shutdown, job, registry, start: Instant::now() }
    }

    /// Appends records that are returned by one read.
    pub(crate) fn append(&mut self, records: Vec<PushRecord>) {
        *self.unread.lock().unwrap() += records.len();
        let entries = records.into_iter().map(|record| {
            self.next_offset += 1;
            LogEntry { position: LogPosition { partition: 0, offset: self.next_offset - 1 }, record }
        });
        let entries = entries.collect();
        self.log.as_ref().expect("open").send(Ok(entries)).expect("the job reads");
    }

    pub(crate) fn fail_reading(&self) {
        let error = ReadError::Unavailable("test".to_owned());
        self.log.as_ref().expect("open").send(Err(error)).expect("the job reads");
    }

    /// Fails the next read: another reader has replaced this one.
    pub(crate) fn fence(&self) {
        let error = ReadError::Fenced("test".to_owned());
        self.log.as_ref().expect("open").send(Err(error)).expect("the job reads");
    }

    /// Waits until the job has ended, and returns its result.
    pub(crate) async fn fenced(&mut self) -> Result<(), ReadError> {
        (&mut self.job).await.expect("the job does not panic")
    }

    /// The offset of the last position that the job has reported as done.
    pub(crate) fn done(&self) -> Option<i64> {
        let done = self.done.lock().unwrap();
        assert!(done.is_sorted(), "positions ascend: {done:?}");
        done.last().map(|position| position.offset)
    }

    pub(crate) fn unread(&self) -> usize {
        *self.unread.lock().unwrap()
    }

    pub(crate) fn running(&self) -> bool {
        !self.job.is_finished()
    }

    pub(crate) fn shut_down(&mut self) {
        self.shutdown.take();
    }

    pub(crate) fn end_log(&mut self) {
        self.log.take();
    }

    /// Waits until the job has ended without an error.
    pub(crate) async fn ended(&mut self) {
        (&mut self.job).await.expect("the job does not panic").expect("no other reader has replaced it");
    }

    /// Ends the log and waits until the job has delivered everything.
    pub(crate) async fn finish(&mut self) {
        self.end_log();
        self.ended().await;
    }

    /// Lets virtual time pass until `condition` holds; fails after ten minutes of it.
    pub(crate) async fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !condition(self) {
            assert!(start.elapsed() < Duration::from_secs(600), "timed out: {what}");
            pass(Duration::from_millis(1)).await;
        }
    }

    /// The value of a metric in the text format, such as `job_retries_total`.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in\n{text}")).parse().unwrap()
    }
}

/// Runs everything that can run without time passing.
pub(crate) async fn settle() {
    pass(Duration::from_nanos(1)).await;
}

/// Lets virtual time pass. It costs no real time, because the clock of these tests is paused.
pub(crate) async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

#[derive(Default)]
pub(crate) struct Pool(Mutex<HashMap<ServerId, Arc<dyn CometPort>>>);

impl Pool {
    pub(crate) fn insert(&self, server: &str, comet: &Arc<Recorder>) {
        self.0.lock().unwrap().insert(server.into(), Arc::clone(comet) as Arc<dyn CometPort>);
    }

    pub(crate) fn remove(&self, server: &str) {
        self.0.lock().unwrap().remove(server);
    }
}

impl CometPool for Pool {
    fn get(&self, server: &ServerId) -> Option<Arc<dyn CometPort>> {
        self.0.lock().unwrap().get(server).cloned()
    }

    fn all(&self) -> Vec<(ServerId, Arc<dyn CometPort>)> {
        self.0.lock().unwrap().iter().map(|(server, comet)| (server.clone(), Arc::clone(comet))).collect()
    }
}

/// How a comet answers a call.
#[derive(Debug, Clone)]
pub(crate) enum Mode {
    Immediate,
    /// Accepts the push after this time.
    After(Duration),
    Never,
    Fails(CometError),
    Panics,
}

/// A comet that records what it receives.
#[derive(Default)]
pub(crate) struct Recorder {
    state: Arc<Mutex<Record>>,
}

#[derive(Default)]
struct Record {
    /// The modes of the next calls. Later calls use `mode`.
    next: VecDeque<Mode>,
    mode: Option<Mode>,
    received: Vec<Received>,
    attempts: usize,
    /// Queries for rooms.
    queries: usize,
    /// The number of pushes that each of the next fast-path calls accepts. Later calls accept none.
    accept_now: VecDeque<usize>,
    /// The size of each call with several pushes; `None` if the comet does not have the call.
    groups: Option<Vec<usize>>,
    /// The age of the last dropped message in each loss report; `None` without the call.
    loss_reports: Option<Vec<Duration>>,
    /// The rooms with sessions; `None` if the comet does not have the query.
    rooms: Option<BTreeSet<String>>,
    /// The delay of a reply about rooms. It has the rooms of the moment of the query.
    rooms_delay: Duration,
}

/// A message that a comet has accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Received {
    /// `key:…,…`, `room:…` or `all`.
    pub(crate) to: String,
    /// The bodies of the packets in the batch.
    pub(crate) bodies: Vec<String>,
    pub(crate) operation: Option<Operation>,
    pub(crate) speed: Option<u32>,
    pub(crate) accepted_at: Option<AcceptedAt>,
    pub(crate) packet: PacketBuf,
    /// When the call was made.
    pub(crate) at: Instant,
}

impl Recorder {
    pub(crate) fn new(mode: Mode) -> Arc<Self> {
        let comet = Self::default();
        comet.set(mode);
        Arc::new(comet)
    }

    /// Accepts reports of dropped messages from now on.
    pub(crate) fn accept_loss_reports(&self) {
        self.state.lock().unwrap().loss_reports = Some(Vec::new());
    }

    /// The age of the last dropped message in each report.
    pub(crate) fn loss_reports(&self) -> Vec<Duration> {
        self.state.lock().unwrap().loss_reports.clone().unwrap_or_default()
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.state.lock().unwrap().mode = Some(mode);
    }

    pub(crate) fn next(&self, modes: impl IntoIterator<Item = Mode>) {
        self.state.lock().unwrap().next.extend(modes);
    }

    /// Sets how many pushes each of the next fast-path calls accepts.
    pub(crate) fn accept_now(&self, counts: impl IntoIterator<Item = usize>) {
        self.state.lock().unwrap().accept_now.extend(counts);
    }

    /// Accepts several pushes in one call from now on.
    pub(crate) fn accept_groups(&self) {
        self.state.lock().unwrap().groups = Some(Vec::new());
    }

    /// The number of pushes in each call with several.
    pub(crate) fn group_sizes(&self) -> Vec<usize> {
        self.state.lock().unwrap().groups.clone().unwrap_or_default()
    }

    /// Sets the rooms that have sessions.
    pub(crate) fn set_rooms(&self, rooms: &[&str]) {
        self.state.lock().unwrap().rooms = Some(rooms.iter().map(|room| (*room).to_owned()).collect());
    }

    /// Sets the delay of replies about rooms.
    pub(crate) fn set_rooms_delay(&self, delay: Duration) {
        self.state.lock().unwrap().rooms_delay = delay;
    }

    /// What it has accepted, in order.
    pub(crate) fn received(&self) -> Vec<Received> {
        self.state.lock().unwrap().received.clone()
    }

    /// `to: body body` for each accepted message.
    pub(crate) fn summary(&self) -> Vec<String> {
        self.received().iter().map(|got| format!("{}: {}", got.to, got.bodies.join(" "))).collect()
    }

    /// The number of pushes to it, accepted or not.
    pub(crate) fn attempts(&self) -> usize {
        self.state.lock().unwrap().attempts
    }

    /// The number of queries for its rooms.
    pub(crate) fn queries(&self) -> usize {
        self.state.lock().unwrap().queries
    }

    fn answer(&self, received: Received) -> Call<Result<(), CometError>> {
        let mut state = self.state.lock().unwrap();
        state.attempts += 1;
        let mode = state.next.pop_front().or_else(|| state.mode.clone()).unwrap_or(Mode::Immediate);
        let shared = Arc::clone(&self.state);
        match mode {
            Mode::Immediate => {
                state.received.push(received);
                Call::Ready(Ok(()))
            }
            Mode::After(delay) => Call::pending(async move {
                pass(delay).await;
                shared.lock().unwrap().received.push(received);
                Ok(())
            }),
            Mode::Never => Call::pending(std::future::pending()),
            Mode::Fails(error) => Call::Ready(Err(error)),
            Mode::Panics => {
                drop(state);
                panic!("intended by the test")
            }
        }
    }
}

fn received(to: String, packet: PacketBuf, accepted_at: Option<AcceptedAt>) -> Received {
    let bodies = batch::packets(&packet.body)
        .map(|packet| String::from_utf8(packet.expect("whole").body.to_vec()).expect("text"))
        .collect();
    Received { to, bodies, operation: None, speed: None, accepted_at, packet, at: Instant::now() }
}

fn received_by_keys(push: KeyPush) -> Received {
    let keys: Vec<_> = push.keys.iter().map(|key| key.as_str()).collect();
    let received =
        received(format!("key:{}", keys.join(",")), push.payload.into_primary().unwrap(), push.accepted_at);
    Received { operation: Some(push.operation), ..received }
}

impl CometPort for Recorder {
    fn push(&self, push: KeyPush) -> Call<Result<(), CometError>> {
        self.answer(received_by_keys(push))
    }

    fn push_many(&self, pushes: Vec<KeyPush>) -> Call<Result<(), CometError>> {
        let mut state = self.state.lock().unwrap();
        let Some(groups) = &mut state.groups else {
            state.attempts += 1;
            return Call::Ready(Err(CometError::Unsupported));
        };
        groups.push(pushes.len());
        let shared = Arc::clone(&self.state);
        Call::pending(async move {
            pass(Duration::from_millis(10)).await;
            shared.lock().unwrap().received.extend(pushes.into_iter().map(received_by_keys));
            Ok(())
        })
    }

    fn push_now(&self, mut pushes: Vec<KeyPush>) -> Vec<KeyPush> {
        let mut state = self.state.lock().unwrap();
        let count = state.accept_now.pop_front().unwrap_or(0).min(pushes.len());
        let taken: Vec<Received> = pushes.drain(..count).map(received_by_keys).collect();
        state.received.extend(taken);
        pushes
    }

    fn broadcast(&self, broadcast: Broadcast) -> Call<Result<(), CometError>> {
        let received =
            received("all".to_owned(), broadcast.payload.into_primary().unwrap(), broadcast.accepted_at);
        let speed = broadcast.speed.map(NonZeroU32::get);
        self.answer(Received { operation: Some(broadcast.operation), speed, ..received })
    }

    fn push_room(&self, push: RoomPush) -> Call<Result<(), CometError>> {
        self.answer(received(
            format!("room:{}", push.room),
            push.payload.into_primary().unwrap(),
            push.accepted_at,
        ))
    }

    fn rooms_since(&self, known: RoomsRevision) -> Call<Result<RoomsDelta, CometError>> {
        let mut state = self.state.lock().unwrap();
        state.queries += 1;
        let Some(rooms) = &state.rooms else {
            return Call::Ready(Err(CometError::Invalid("no list of rooms")));
        };
        let come = rooms.iter().map(|room| room.as_str().into()).collect();
        let stripes = vec![StripeDelta { stripe: 0, complete: true, added: come, removed: Vec::new() }];
        let version =
            RoomsRevision { epoch: 1, stripes: vec![known.stripes.first().map_or(1, |known| known + 1)] };
        let (delay, news) = (state.rooms_delay, RoomsDelta { version, stripes });
        Call::pending(async move {
            pass(delay).await;
            Ok(news)
        })
    }

    fn messages_missed(&self, ago: Duration) -> Call<Result<(), CometError>> {
        let mut state = self.state.lock().unwrap();
        if let Some(Mode::Fails(error)) = state.mode.clone() {
            return Call::Ready(Err(error));
        }
        match &mut state.loss_reports {
            Some(reports) => reports.push(ago),
            None => return Call::Ready(Err(CometError::Unsupported)),
        }
        Call::Ready(Ok(()))
    }

    fn rooms(&self) -> Call<Result<Vec<RoomId>, CometError>> {
        match self.state.lock().unwrap().mode.clone() {
            Some(Mode::Never) => Call::pending(std::future::pending()),
            Some(Mode::Fails(error)) => Call::Ready(Err(error)),
            _ => Call::Ready(Ok(Vec::new())),
        }
    }
}

fn record(target: PushTarget, body: impl Into<String>) -> PushRecord {
    let body = Bytes::from(body.into());
    PushRecord {
        target,
        operation: Operation(1000),
        payload: Payload::plain(body),
        accepted_at: AcceptedAt(1_000),
    }
}

pub(crate) fn to_keys(server: &str, keys: &[&str], body: impl Into<String>) -> PushRecord {
    let keys = keys.iter().map(|key| (*key).into()).collect();
    record(PushTarget::Keys { server: server.into(), keys }, body)
}

pub(crate) fn to_key(server: &str, key: &str, body: impl Into<String>) -> PushRecord {
    to_keys(server, &[key], body)
}

pub(crate) fn to_room(room: &str, body: impl Into<String>) -> PushRecord {
    record(PushTarget::Room(room.into()), body)
}

pub(crate) fn to_all(speed: u32, body: impl Into<String>) -> PushRecord {
    record(PushTarget::All { speed: NonZeroU32::new(speed) }, body)
}
