//! Clients and servers that sync, in virtual time: the client's loop and the server's answers are
//! the real ones. The network between them loses, duplicates, delays and reorders packets,
//! connections break, and old messages are removed. Thousands of seeds; a seed that fails is
//! printed and can be run alone with `SEED`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::harness::random::Random;
use goim_adapters::memory::{
    MemoryDevices, MemoryNodes, MemoryRooms, MemorySessions, MemoryTimelines, SharedComets,
};
use goim_logic::{Dependencies, Logic, StoredPush, StoredTo};
use goim_ports::{
    AcceptedAt, AppendError, Appended, Bodies, Call, HttpClient, HttpError, HttpRequest, HttpResponse,
    IdempotencyKey, LogicPort as _, Mid, NewMessage, Operation, PushLog, PushRecord, Retention,
    RetentionRules, Sequence, StoredAt, TimelineCall, TimelineRequest, Version,
};
use goim_session::Millis;
use goim_session::timeline_sync::{Action, SyncId, SyncRules, TimelineSync};
use goim_wire::sync::{self, Body as _};

const CLIENTS: usize = 4;
const MID: Mid = Mid(7);
const INBOX: &str = "mid://7";
/// Few messages are stored, so that a client that is offline for long finds a gap.
const ROOM: &str = "short://1";
const TIMELINES: [&str; 2] = [INBOX, ROOM];

/// The backend of a simulation without one.
struct Nobody;

impl HttpClient for Nobody {
    fn send(&self, _: HttpRequest) -> Call<Result<HttpResponse, HttpError>> {
        Call::pending(std::future::pending())
    }
}

/// The notifications of stored messages that logic sends.
#[derive(Default)]
struct Notifications(Mutex<Vec<(StoredAt, bytes::Bytes)>>);

impl PushLog for Notifications {
    fn append(&self, record: PushRecord) -> Call<Result<(), AppendError>> {
        self.note(record);
        Call::Ready(Ok(()))
    }

    fn append_all(&self, records: Vec<PushRecord>) -> Call<Appended> {
        let accepted = records.len();
        records.into_iter().for_each(|record| self.note(record));
        Call::Ready(Appended { accepted, error: None })
    }
}

impl Notifications {
    fn note(&self, record: PushRecord) {
        let stored = record.payload.stored().cloned().unwrap();
        let body = record.payload.primary().cloned().unwrap_or_default();
        self.0.lock().unwrap().push((stored, body));
    }
}

/// A packet in flight.
#[derive(Debug, Clone)]
enum Packet {
    Ask(SyncId, sync::SyncRequest),
    Reply(Option<SyncId>, sync::SyncReply),
    Notify(sync::Notify),
}

/// Something that happens at a moment.
#[derive(Debug, Clone)]
enum Happening {
    /// A packet arrives, if its connection is still the same.
    AtServer {
        client: usize,
        connection: u64,
        packet: Packet,
    },
    AtClient {
        client: usize,
        connection: u64,
        packet: Packet,
    },
    Connect(usize),
    Cut(usize),
    Publish,
    Retain,
    Timeout(usize),
}

struct Client {
    sync: TimelineSync,
    connection: Option<u64>,
    /// What the application has: by timeline its messages since the last gap, and where they begin.
    received: BTreeMap<String, Vec<(u64, u64)>>,
    begins: BTreeMap<String, u64>,
    resets: usize,
}

struct World {
    random: Random,
    logic: Arc<Logic>,
    notifications: Arc<Notifications>,
    store: Arc<MemoryTimelines>,
    clients: Vec<Client>,
    now: Millis,
    queue: BTreeMap<(Millis, u64), Happening>,
    events: u64,
    connections: u64,
    /// What was published: by timeline the number of the message in each place.
    published: BTreeMap<String, Vec<u64>>,
    is_calm: bool,
}

/// What a run showed.
#[derive(Debug, Default)]
struct Seen {
    resets: usize,
    delivered: usize,
}

impl World {
    fn new(seed: u64) -> Self {
        let rules = RetentionRules {
            retention_overrides: vec![(
                "short".to_owned(),
                Retention { messages_max: 8, ..Retention::FOREVER },
            )],
            otherwise: Retention::FOREVER,
        };
        let store = Arc::new(MemoryTimelines::new(rules, Duration::from_secs(3600)));
        let notifications = Arc::new(Notifications::default());
        let mut config = goim_logic::Config::default();
        config.timelines.reply_messages_max = 5;
        let dependencies = Dependencies {
            sessions: Arc::new(MemorySessions::new()),
            rooms: Arc::new(MemoryRooms::new()),
            devices: Arc::new(MemoryDevices::default()),
            nodes: Arc::new(MemoryNodes::new()),
            push_log: notifications.clone(),
            comets: Arc::new(SharedComets::new()),
            http: Arc::new(Nobody),
            timelines: Some(store.clone()),
        };
        let logic = Logic::new(config, dependencies).unwrap();
        let clients = (0..CLIENTS)
            .map(|_| {
                let mut sync = TimelineSync::new(SyncRules::default());
                TIMELINES.iter().for_each(|timeline| sync.subscribe(*timeline, sync::Position::default()));
                let (received, begins) = Default::default();
                Client { sync, connection: None, received, begins, resets: 0 }
            })
            .collect();
        Self {
            random: Random::new(seed),
            logic,
            notifications,
            store,
            clients,
            now: Millis(0),
            queue: BTreeMap::new(),
            events: 0,
            connections: 0,
            published: BTreeMap::new(),
            is_calm: false,
        }
    }

    fn at(&mut self, delay_ms: usize, happening: Happening) {
        self.events += 1;
        let at = self.now.after(Duration::from_millis(delay_ms as u64));
        self.queue.insert((at, self.events), happening);
    }

    /// Sends a packet: it may be lost, arrive twice, and be overtaken by others.
    fn send(&mut self, to_server: bool, client: usize, connection: u64, packet: &Packet) {
        let copies = match self.random.below(20) {
            0 if !self.is_calm => 0,
            1 if !self.is_calm => 2,
            _ => 1,
        };
        for _ in 0..copies {
            let delay = match self.random.below(10) {
                0 if !self.is_calm => self.random.below(20_000),
                _ => self.random.below(200),
            };
            let packet = packet.clone();
            let happening = if to_server {
                Happening::AtServer { client, connection, packet }
            } else {
                Happening::AtClient { client, connection, packet }
            };
            self.at(delay, happening);
        }
    }

    async fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::AtServer { client, connection, packet: Packet::Ask(id, request) } => {
                // The session is known as long as the connection is.
                if self.clients[client].connection == Some(connection) {
                    let reply = self.answer(&request).await;
                    self.send(false, client, connection, &Packet::Reply(Some(id), reply));
                }
            }
            Happening::AtServer { packet, .. } => panic!("{packet:?} is not for a server"),
            Happening::AtClient { client, connection, packet } => {
                let Client { sync, connection: current, .. } = &mut self.clients[client];
                if *current == Some(connection) {
                    match packet {
                        Packet::Reply(id, reply) => sync.replied(self.now, id, reply),
                        Packet::Notify(notify) => sync.notified(self.now, notify),
                        Packet::Ask(..) => panic!("a client is asked nothing"),
                    }
                    self.run_sync(client);
                }
            }
            Happening::Connect(client) => self.connect(client).await,
            Happening::Cut(client) => {
                if self.clients[client].connection.take().is_some() {
                    self.clients[client].sync.disconnected();
                    let away = if self.random.chance(20) { 300_000 } else { 3_000 };
                    let away = self.random.below(away);
                    self.at(away, Happening::Connect(client));
                }
            }
            Happening::Publish => self.publish().await,
            Happening::Retain => self.store.retain(AcceptedAt::now()),
            Happening::Timeout(client) => {
                let now = self.now;
                let sync = &mut self.clients[client].sync;
                if sync.deadline() <= now {
                    sync.handle_timeout(now);
                    self.run_sync(client);
                }
            }
        }
    }

    async fn connect(&mut self, client: usize) {
        if self.clients[client].connection.is_some() {
            return;
        }
        self.connections += 1;
        let connection = self.connections;
        self.clients[client].connection = Some(connection);
        let resumed = self.random.chance(50);
        let now = self.now;
        self.clients[client].sync.connected(now, resumed);
        if resumed {
            let positions: Vec<_> = self.clients[client]
                .sync
                .positions()
                .map(|(timeline, position)| (timeline.to_owned(), position))
                .collect();
            for (timeline, position) in positions {
                let request = sync::SyncRequest { timeline, position: Some(position), limit: 0 };
                let reply = self.answer(&request).await;
                self.send(false, client, connection, &Packet::Reply(None, reply));
            }
        }
        if !self.is_calm {
            let held = self.random.below(60_000);
            self.at(held, Happening::Cut(client));
        }
        self.run_sync(client);
    }

    /// What the server answers: logic's own code over the real store.
    async fn answer(&self, request: &sync::SyncRequest) -> sync::SyncReply {
        let request = TimelineRequest {
            mid: MID,
            key: "k".into(),
            protover: Version::GOIM,
            sequence: Sequence::NONE,
            call: TimelineCall::Sync(request.write().into()),
        };
        sync::SyncReply::read(self.logic.timeline(request).await.unwrap()).unwrap()
    }

    async fn publish(&mut self) {
        let timeline = *self.random.one(&TIMELINES);
        let to = match timeline {
            INBOX => StoredTo::Mids(vec![MID]),
            room => StoredTo::Room(room.into()),
        };
        let list = self.published.entry(timeline.to_owned()).or_default();
        let number = list.len() as u64 + 1;
        let message = NewMessage {
            sender: Mid(0),
            operation: Operation(1000),
            bodies: Bodies::plain(number.to_string().into()),
            accepted_at: AcceptedAt::now(),
        };
        let push = StoredPush { to, message, idempotency_key: IdempotencyKey::new(number.to_string()) };
        let placed = self.logic.push_stored(vec![push]).await.unwrap();
        assert_eq!(placed[0][0].appended.position.seq.0, number);
        list.push(number);
        // The inbox's sessions are in no directory here: both notifications are made the same way.
        let mut notifications = std::mem::take(&mut *self.notifications.0.lock().unwrap());
        if notifications.is_empty() {
            let position = placed[0][0].appended.position;
            let timeline = placed[0][0].timeline.clone();
            let accepted_at = AcceptedAt(0);
            notifications.push((
                StoredAt { timeline, position, sender: Mid(0), accepted_at },
                number.to_string().into(),
            ));
        }
        for (stored, body) in notifications {
            let latest = sync::Position { epoch: stored.position.epoch.0, seq: stored.position.seq.0 };
            let inline = sync::Message { seq: latest.seq, operation: 1000, body, ..sync::Message::default() };
            let messages = if self.random.chance(50) { vec![inline] } else { Vec::new() };
            let notify =
                sync::Notify { timeline: stored.timeline.to_string(), latest: Some(latest), messages };
            for client in 0..CLIENTS {
                if let Some(connection) = self.clients[client].connection {
                    self.send(false, client, connection, &Packet::Notify(notify.clone()));
                }
            }
        }
    }

    /// Does what a client's loop wants.
    fn run_sync(&mut self, client: usize) {
        let now = self.now;
        while let Some(wanted) = self.clients[client].sync.poll(now) {
            match wanted {
                Action::SendSync { id, request } => {
                    let connection = self.clients[client].connection.expect("it asks when it is connected");
                    self.send(true, client, connection, &Packet::Ask(id, request));
                }
                Action::Deliver { timeline, messages, position } => {
                    let list = self.clients[client].received.entry(timeline).or_default();
                    for message in &messages {
                        let number = std::str::from_utf8(&message.body).unwrap().parse().unwrap();
                        list.push((message.seq, number));
                    }
                    assert_eq!(messages.last().unwrap().seq, position.seq);
                }
                Action::Gap { timeline, position } => {
                    let client = &mut self.clients[client];
                    client.resets += 1;
                    let had = client.received.remove(&timeline).unwrap_or_default();
                    let last = had.last().map_or(0, |(seq, _)| *seq);
                    assert!(position.seq > last, "a hole before what it has: {last}, {position:?}");
                    client.begins.insert(timeline, position.seq);
                }
            }
        }
        let deadline = self.clients[client].sync.deadline();
        if deadline != Millis::NEVER {
            let delay = usize::try_from(now.until(deadline).as_millis()).unwrap();
            self.at(delay, Happening::Timeout(client));
        }
    }

    async fn run_until(&mut self, end: Millis) {
        while let Some(entry) = self.queue.first_entry().filter(|entry| entry.key().0 <= end) {
            let ((at, _), happening) = entry.remove_entry();
            self.now = self.now.max(at);
            self.happen(happening).await;
        }
        self.now = end;
    }

    fn check(&self) -> Seen {
        let mut seen = Seen::default();
        for (number, client) in self.clients.iter().enumerate() {
            seen.resets += client.resets;
            for timeline in TIMELINES {
                let published = self.published.get(timeline).map_or(0, Vec::len) as u64;
                let received = client.received.get(timeline).cloned().unwrap_or_default();
                // A client without a position begins at the oldest stored message.
                let first = received.first().map_or(published, |(seq, _)| seq - 1);
                let never = if timeline == ROOM { first } else { 0 };
                let begins = client.begins.get(timeline).copied().unwrap_or(never);
                let expected: Vec<(u64, u64)> = (begins + 1..=published).map(|seq| (seq, seq)).collect();
                assert_eq!(received, expected, "client {number}, {timeline}, {} resets", client.resets);
                assert!(timeline == ROOM || begins == 0, "nothing of the inbox was removed");
                seen.delivered += received.len();
            }
        }
        seen
    }
}

async fn run(seed: u64) -> Seen {
    let mut world = World::new(seed);
    for client in 0..CLIENTS {
        let delay = world.random.below(1000);
        world.at(delay, Happening::Connect(client));
    }
    let storm = 600_000;
    for _ in 0..60 {
        let (publish, retain) = (world.random.below(storm), world.random.below(storm));
        world.at(publish, Happening::Publish);
        world.at(retain, Happening::Retain);
    }
    world.run_until(Millis(storm as u64)).await;
    // From here on nothing is lost, and all clients stay; a resync makes up for notifications that
    // were lost before.
    world.is_calm = true;
    for client in 0..CLIENTS {
        world.at(400_000, Happening::Connect(client));
    }
    world.run_until(Millis(storm as u64 + 1_200_000)).await;
    world.check()
}

#[test]
fn every_message_arrives_once_and_in_order_or_a_gap_is_reported() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let only = std::env::var("SEED").ok().map(|seed| seed.parse::<u64>().expect("SEED is a number"));
    let seeds = std::env::var("SEEDS").map_or(2_000, |seeds| seeds.parse().expect("SEEDS is a number"));
    let mut total = Seen::default();
    for seed in only.map_or(0..seeds, |seed| seed..seed + 1) {
        let run = std::panic::AssertUnwindSafe(|| runtime.block_on(run(seed)));
        let Seen { resets, delivered } =
            std::panic::catch_unwind(run).unwrap_or_else(|_| panic!("SEED={seed}"));
        total = Seen { resets: total.resets + resets, delivered: total.delivered + delivered };
    }
    eprintln!("{total:?}");
    assert!(only.is_some() || total.resets > 100 && total.delivered > 100_000, "{total:?}");
}
