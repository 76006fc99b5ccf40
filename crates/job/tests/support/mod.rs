//! A push log and comets that a test drives and looks into.
#![allow(dead_code, reason = "each test file uses its part")]
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

/// A job at work, with both of its ends in the test's hands.
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

    /// Appends records that are read together.
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

    /// Somebody else reads in its place.
    pub(crate) fn shut_out(&self) {
        let error = ReadError::Fenced("test".to_owned());
        self.log.as_ref().expect("open").send(Err(error)).expect("the job reads");
    }

    /// Waits until it says that it was shut out.
    pub(crate) async fn shut_out_ended(&mut self) -> Result<(), ReadError> {
        (&mut self.job).await.expect("the job does not panic")
    }

    /// Offset of the last record that the job has called done.
    pub(crate) fn done(&self) -> Option<i64> {
        let done = self.done.lock().unwrap();
        assert!(done.is_sorted(), "positions go up: {done:?}");
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

    /// Waits for the job's end.
    pub(crate) async fn ended(&mut self) {
        (&mut self.job).await.expect("the job does not panic").expect("nobody has shut it out");
    }

    /// Ends the log and waits until the job has worked it off.
    pub(crate) async fn finish(&mut self) {
        self.end_log();
        self.ended().await;
    }

    /// Lets virtual time pass until `condition` holds; fails after ten minutes of it.
    pub(crate) async fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !condition(self) {
            assert!(start.elapsed() < Duration::from_secs(600), "in vain: {what}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// A metric's value as the text format has it, for example `job_handovers_total{result="delivered"}`.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in\n{text}")).parse().unwrap()
    }
}

/// Lets everything happen that can happen without time passing.
pub(crate) async fn settle() {
    tokio::time::sleep(Duration::from_nanos(1)).await;
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

/// How a comet answers.
#[derive(Debug, Clone)]
pub(crate) enum Mode {
    AtOnce,
    /// After this time.
    After(Duration),
    Never,
    Fails(CometError),
    Panics,
}

/// A comet that writes down what it gets.
#[derive(Default)]
pub(crate) struct Recorder {
    state: Arc<Mutex<Record>>,
}

#[derive(Default)]
struct Record {
    /// Modes of the next calls; then `mode`.
    next: VecDeque<Mode>,
    mode: Option<Mode>,
    calls: Vec<Got>,
    asked: usize,
    /// Pushes that each of the next calls for many takes at once; further ones take none.
    at_once: VecDeque<usize>,
    /// Takes many in one call; how many came in each.
    many: Option<Vec<usize>>,
    /// Can be told that messages were dropped; how long ago the last of them was, each time.
    missed: Option<Vec<Duration>>,
    /// Where somebody is; a comet without this cannot tell.
    rooms: Option<BTreeSet<String>>,
    /// How long an answer about rooms takes; it is true of the moment of the question.
    rooms_delay: Duration,
}

/// A message that a comet took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Got {
    /// `key:…,…`, `room:…` or `all`.
    pub(crate) to: String,
    /// The bodies of the inner packets.
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

    /// Takes the word that messages were dropped for it.
    pub(crate) fn hears_of_losses(&self) {
        self.state.lock().unwrap().missed = Some(Vec::new());
    }

    /// How long ago the last of the messages was that were dropped for it, each time that it was told.
    pub(crate) fn missed(&self) -> Vec<Duration> {
        self.state.lock().unwrap().missed.clone().unwrap_or_default()
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.state.lock().unwrap().mode = Some(mode);
    }

    pub(crate) fn next(&self, modes: impl IntoIterator<Item = Mode>) {
        self.state.lock().unwrap().next.extend(modes);
    }

    /// Each of the next calls that bring many pushes takes so many of them at once.
    pub(crate) fn take_at_once(&self, counts: impl IntoIterator<Item = usize>) {
        self.state.lock().unwrap().at_once.extend(counts);
    }

    /// Takes many pushes in one call.
    pub(crate) fn takes_many(&self) {
        self.state.lock().unwrap().many = Some(Vec::new());
    }

    /// How many pushes came in each call that brought many.
    pub(crate) fn many(&self) -> Vec<usize> {
        self.state.lock().unwrap().many.clone().unwrap_or_default()
    }

    /// Somebody is in these rooms, and in no others.
    pub(crate) fn has_rooms(&self, rooms: &[&str]) {
        self.state.lock().unwrap().rooms = Some(rooms.iter().map(|room| (*room).to_owned()).collect());
    }

    /// An answer about rooms takes so long.
    pub(crate) fn tells_rooms_after(&self, delay: Duration) {
        self.state.lock().unwrap().rooms_delay = delay;
    }

    /// What it took, in the order in which it took it.
    pub(crate) fn got(&self) -> Vec<Got> {
        self.state.lock().unwrap().calls.clone()
    }

    /// `to: body body` of what it took.
    pub(crate) fn summary(&self) -> Vec<String> {
        self.got().iter().map(|got| format!("{}: {}", got.to, got.bodies.join(" "))).collect()
    }

    /// How often it was asked to take something, successfully or not.
    pub(crate) fn asked(&self) -> usize {
        self.state.lock().unwrap().asked
    }

    fn answer(&self, got: Got) -> Call<Result<(), CometError>> {
        let mut state = self.state.lock().unwrap();
        state.asked += 1;
        let mode = state.next.pop_front().or_else(|| state.mode.clone()).unwrap_or(Mode::AtOnce);
        let shared = Arc::clone(&self.state);
        match mode {
            Mode::AtOnce => {
                state.calls.push(got);
                Call::Ready(Ok(()))
            }
            Mode::After(delay) => Call::pending(async move {
                tokio::time::sleep(delay).await;
                shared.lock().unwrap().calls.push(got);
                Ok(())
            }),
            Mode::Never => Call::pending(std::future::pending()),
            Mode::Fails(error) => Call::Ready(Err(error)),
            Mode::Panics => {
                drop(state);
                panic!("as the test wants it")
            }
        }
    }
}

fn got(to: String, packet: PacketBuf, accepted_at: Option<AcceptedAt>) -> Got {
    let bodies = batch::packets(&packet.body)
        .map(|packet| String::from_utf8(packet.expect("whole").body.to_vec()).expect("text"))
        .collect();
    Got { to, bodies, operation: None, speed: None, accepted_at, packet, at: Instant::now() }
}

fn got_by_key(push: KeyPush) -> Got {
    let keys: Vec<_> = push.keys.iter().map(|key| key.as_str()).collect();
    let got = got(format!("key:{}", keys.join(",")), push.payload.into_primary().unwrap(), push.accepted_at);
    Got { operation: Some(push.operation), ..got }
}

impl CometPort for Recorder {
    fn push(&self, push: KeyPush) -> Call<Result<(), CometError>> {
        self.answer(got_by_key(push))
    }

    fn push_many(&self, pushes: Vec<KeyPush>) -> Call<Result<(), CometError>> {
        let mut state = self.state.lock().unwrap();
        let Some(many) = &mut state.many else {
            state.asked += 1;
            return Call::Ready(Err(CometError::Unsupported));
        };
        many.push(pushes.len());
        let shared = Arc::clone(&self.state);
        Call::pending(async move {
            tokio::time::sleep(Duration::from_millis(10)).await;
            shared.lock().unwrap().calls.extend(pushes.into_iter().map(got_by_key));
            Ok(())
        })
    }

    fn push_now(&self, mut pushes: Vec<KeyPush>) -> Vec<KeyPush> {
        let mut state = self.state.lock().unwrap();
        let count = state.at_once.pop_front().unwrap_or(0).min(pushes.len());
        let taken: Vec<Got> = pushes.drain(..count).map(got_by_key).collect();
        state.calls.extend(taken);
        pushes
    }

    fn broadcast(&self, broadcast: Broadcast) -> Call<Result<(), CometError>> {
        let got = got("all".to_owned(), broadcast.payload.into_primary().unwrap(), broadcast.accepted_at);
        let speed = broadcast.speed.map(NonZeroU32::get);
        self.answer(Got { operation: Some(broadcast.operation), speed, ..got })
    }

    fn push_room(&self, push: RoomPush) -> Call<Result<(), CometError>> {
        self.answer(got(
            format!("room:{}", push.room),
            push.payload.into_primary().unwrap(),
            push.accepted_at,
        ))
    }

    fn rooms_since(&self, known: RoomsRevision) -> Call<Result<RoomsDelta, CometError>> {
        let state = self.state.lock().unwrap();
        let Some(rooms) = &state.rooms else { return Call::Ready(Err(CometError::Invalid("cannot tell"))) };
        let come = rooms.iter().map(|room| room.as_str().into()).collect();
        let stripes = vec![StripeDelta { stripe: 0, complete: true, added: come, removed: Vec::new() }];
        let version =
            RoomsRevision { epoch: 1, stripes: vec![known.stripes.first().map_or(1, |known| known + 1)] };
        let (delay, news) = (state.rooms_delay, RoomsDelta { version, stripes });
        Call::pending(async move {
            tokio::time::sleep(delay).await;
            Ok(news)
        })
    }

    fn messages_missed(&self, ago: Duration) -> Call<Result<(), CometError>> {
        let mut state = self.state.lock().unwrap();
        if let Some(Mode::Fails(error)) = state.mode.clone() {
            return Call::Ready(Err(error));
        }
        match &mut state.missed {
            Some(missed) => missed.push(ago),
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
