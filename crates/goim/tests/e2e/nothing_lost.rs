//! Nothing lost: a server that is killed again and again, clients that are cut off, restarted and
//! slow, and a publisher that retries until it is answered. Every client receives everything that
//! was answered exactly once, in order. The same for a cluster, whose comets, logics and jobs are
//! killed one after the other, and whose clients move between the comets.
//!
//! Short runs are among the tests; `make nothing-lost` makes long ones. `KILLS` is the number of
//! kills; `SEED` repeats a run as far as threads and processes allow.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::harness::child::Process;
use crate::harness::fleet::Fleet;
use crate::harness::postgres::Postgres;
use crate::harness::{Settings, random, unique};
use goim_client::{
    Backoff, Client, ClientConfig, Event, Identity, Position, PositionStore, PositionStoreError, SyncConfig,
};
use serde_json::{Value, json};

const MEMBERS: i64 = 12;
const ROOMS: i64 = 3;

fn millis(number: usize) -> Duration {
    Duration::from_millis(number as u64)
}

/// What was answered: by timeline and place the number of the message.
type Answered = BTreeMap<(String, u64), u64>;

/// What an application has received, and its positions: stored together, as an application's
/// database would.
#[derive(Default)]
struct Received {
    /// By timeline: epoch, sequence and number of each message, in the order received.
    messages: BTreeMap<String, Vec<(u64, u64, u64)>>,
    positions: BTreeMap<String, Position>,
    resets: usize,
}

struct Kept(Arc<Mutex<Received>>);

impl PositionStore for Kept {
    async fn load(&self, timeline: &str) -> Result<Option<Position>, PositionStoreError> {
        Ok(self.0.lock().unwrap().positions.get(timeline).copied())
    }

    /// It is stored with the messages.
    async fn save(&self, _: &str, _: Position) -> Result<(), PositionStoreError> {
        Ok(())
    }
}

fn timelines_of(mid: i64) -> [String; 2] {
    [format!("mid://{mid}"), format!("live://{}", mid % ROOMS)]
}

/// One application: follows its timelines, and is slow or restarted now and then.
async fn application(
    mid: i64,
    endpoints: Vec<SocketAddr>,
    received: Arc<Mutex<Received>>,
    stop: Arc<AtomicBool>,
    seed: u64,
) {
    let mut random = random::Random::new(seed);
    while !stop.load(Ordering::Relaxed) {
        let [inbox, room] = timelines_of(mid);
        // Now at one comet, now at another.
        let mut endpoints: Vec<goim_client::Endpoint> =
            endpoints.iter().map(|door| format!("tcp://{door}").parse().unwrap()).collect();
        let first = random.below(endpoints.len());
        endpoints.rotate_left(first);
        let identity = Identity::new(mid).rooms([room.clone()]);
        let mut config = ClientConfig::new(endpoints, identity);
        config.sync = Some(SyncConfig::new([inbox, room], Kept(Arc::clone(&received))));
        config.backoff = Some(Backoff {
            base_delay: Duration::from_millis(20),
            max_delay: Duration::from_millis(300),
            ..Backoff::default()
        });
        let (client, mut events) = Client::start(config).unwrap();
        // Restarted after some events; never, when all is over and the last are awaited.
        let mut left = 20 + random.below(200);
        while left > 0 {
            let next = tokio::time::timeout(Duration::from_millis(100), events.recv()).await;
            let Ok(event) = next else {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                continue;
            };
            match event.expect("the client goes on") {
                Event::Messages { timeline, messages, position } => {
                    let mut received = received.lock().unwrap();
                    let list = received.messages.entry(timeline.clone()).or_default();
                    for message in messages {
                        let body = message.body.expect("nothing was deleted");
                        let number =
                            std::str::from_utf8(&body).unwrap().split(' ').next().unwrap().parse().unwrap();
                        list.push((position.epoch, message.seq, number));
                    }
                    received.positions.insert(timeline, position);
                    left -= 1;
                }
                Event::Gap { timeline, position } => {
                    let mut received = received.lock().unwrap();
                    received.resets += 1;
                    received.positions.insert(timeline, position);
                }
                _ => {}
            }
            if random.below(100) == 0 {
                tokio::time::sleep(millis(random.below(300))).await;
            }
        }
        client.close().await;
    }
}

/// One request; `None` when there is no answer.
fn request(http: SocketAddr, body: &str) -> Option<Value> {
    let mut stream = TcpStream::connect_timeout(&http, Duration::from_secs(1)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    let head = format!(
        "POST /v1/push HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(body.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (_, json) = answer.split_once("\r\n\r\n")?;
    serde_json::from_str(json).ok().filter(|answer: &Value| answer["code"] == 0)
}

/// Publishes numbered messages at a steady rate, each until it is answered, and records their
/// positions.
fn publish(
    endpoints: &[SocketAddr],
    stop: &AtomicBool,
    published: &AtomicU64,
    answered: &Mutex<Answered>,
    seed: u64,
) {
    let mut random = random::Random::new(seed);
    while !stop.load(Ordering::Relaxed) {
        let number = published.fetch_add(1, Ordering::Relaxed);
        let to = if random.below(3) == 0 {
            json!({ "room": format!("live://{}", random.below(ROOMS as usize)) })
        } else {
            let mids: Vec<usize> =
                (0..1 + random.below(3)).map(|_| 1 + random.below(MEMBERS as usize)).collect();
            json!({ "mids": mids })
        };
        let text = format!("{number} {}", "x".repeat(random.below(3_000)));
        let message = json!({
            "to": to, "operation": 1000, "body": text, "delivery": "stored", "idempotency_key": number.to_string(),
        });
        let body = json!({ "messages": [message] }).to_string();
        let answer = loop {
            match request(*random.one(endpoints), &body) {
                Some(answer) => break answer,
                // Whether it was stored or not: the key makes it one message.
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        let mut answered = answered.lock().unwrap();
        for placed in answer["positions"][0].as_array().unwrap() {
            let timeline = placed["timeline"].as_str().unwrap().to_owned();
            let before = answered.insert((timeline, placed["seq"].as_u64().unwrap()), number);
            assert_eq!(before, None, "a place was given twice: {placed}");
        }
        drop(answered);
        std::thread::sleep(millis(random.below(8)));
    }
}

/// What a run shows.
#[derive(Debug)]
struct Outcome {
    kills: u64,
    published: u64,
    places: usize,
    deliveries: usize,
    resets: usize,
}

/// What is killed.
trait System {
    /// Where clients connect, and where messages are published.
    fn endpoints(&self) -> (Vec<SocketAddr>, Vec<SocketAddr>);

    /// Kills a part, and starts it again after a while.
    fn kill(&mut self, random: &mut random::Random);
}

/// One process on a folder.
struct Alone {
    settings: Settings,
    server: Option<Process>,
    folder: PathBuf,
}

impl Alone {
    fn start() -> Self {
        let folder = std::env::temp_dir().join(unique(&format!("goim-nothing-lost-{}", std::process::id())));
        let settings = Settings::new().set("timelines.folder", folder.to_str().unwrap());
        Self { server: Some(Process::start(&settings)), settings, folder }
    }
}

impl System for Alone {
    fn endpoints(&self) -> (Vec<SocketAddr>, Vec<SocketAddr>) {
        let addrs = self.server.as_ref().unwrap().server.addrs;
        (vec![addrs.tcp], vec![addrs.http])
    }

    fn kill(&mut self, random: &mut random::Random) {
        let server = self.server.take().unwrap();
        let addrs = server.server.addrs;
        server.kill();
        std::thread::sleep(millis(random.below(200)));
        self.server = Some(Process::start_again(&self.settings, addrs));
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        self.server = None;
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Two comets, two logics and two jobs over Kafka, Redis and PostgreSQL.
struct Together {
    fleet: Fleet,
    _postgres: Arc<Postgres>,
}

impl Together {
    fn start() -> Self {
        let postgres = Postgres::shared();
        let setting = format!("timelines.postgres={}", postgres.database());
        Self { fleet: Fleet::start_with(&[&setting]), _postgres: postgres }
    }
}

impl System for Together {
    fn endpoints(&self) -> (Vec<SocketAddr>, Vec<SocketAddr>) {
        (self.fleet.comets.to_vec(), self.fleet.logics.to_vec())
    }

    fn kill(&mut self, random: &mut random::Random) {
        let name = *random.one(&["comet1", "comet2", "logic1", "logic2", "job1", "job2"]);
        self.fleet.tell("kill", name);
        std::thread::sleep(millis(random.below(500)));
        self.fleet.tell("again", name);
    }
}

fn run(mut system: impl System, kills: u64, seed: u64) -> Outcome {
    let (comets, logics) = system.endpoints();
    let (publishing, following) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (published, answered) = (Arc::new(AtomicU64::new(0)), Arc::new(Mutex::new(Answered::new())));
    let publishers: Vec<_> = (0..4)
        .map(|nth| {
            let (stop, published, answered) = (publishing.clone(), published.clone(), answered.clone());
            let logics = logics.clone();
            std::thread::spawn(move || publish(&logics, &stop, &published, &answered, seed ^ (nth + 1) << 8))
        })
        .collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let received: Vec<Arc<Mutex<Received>>> = (0..MEMBERS).map(|_| Arc::default()).collect();
    let applications: Vec<_> = received
        .iter()
        .zip(1..)
        .map(|(received, mid)| {
            let seed = seed ^ (mid as u64) << 16;
            runtime.spawn(application(mid, comets.clone(), Arc::clone(received), following.clone(), seed))
        })
        .collect();
    let mut random = random::Random::new(seed);
    for kill in 1..=kills {
        std::thread::sleep(millis(200 + random.below(1_200)));
        system.kill(&mut random);
        if kill % 20 == 0 {
            eprintln!("{kill} of {kills} kills, {} messages answered", answered.lock().unwrap().len());
        }
    }
    std::thread::sleep(Duration::from_millis(500));
    publishing.store(true, Ordering::Relaxed);
    publishers.into_iter().for_each(|publisher| publisher.join().unwrap());
    let answered = answered.lock().unwrap().clone();
    let heads =
        |timeline: &str| answered.keys().filter(|(own, _)| own == timeline).map(|(_, seq)| *seq).max();
    let until = Instant::now() + Duration::from_secs(60);
    for (received, mid) in received.iter().zip(1..) {
        for timeline in timelines_of(mid) {
            let Some(latest) = heads(&timeline) else { continue };
            while received
                .lock()
                .unwrap()
                .positions
                .get(&timeline)
                .is_none_or(|position| position.seq < latest)
            {
                assert!(Instant::now() < until, "{mid} does not catch up with {timeline}");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
    following.store(true, Ordering::Relaxed);
    for application in applications {
        runtime.block_on(application).unwrap();
    }
    let mut outcome = Outcome {
        kills,
        published: published.load(Ordering::Relaxed),
        places: answered.len(),
        deliveries: 0,
        resets: 0,
    };
    for (received, mid) in received.iter().zip(1..) {
        let received = received.lock().unwrap();
        outcome.resets += received.resets;
        for timeline in timelines_of(mid) {
            let list = received.messages.get(&timeline).cloned().unwrap_or_default();
            outcome.deliveries += list.len();
            for ((epoch, seq, number), expected) in list.iter().zip(1..) {
                assert_eq!(*seq, expected, "{mid} got {timeline} out of order, twice, or not at all");
                assert_eq!(*epoch, list[0].0, "{timeline} has begun anew");
                let kept = answered.get(&(timeline.clone(), *seq));
                assert!(
                    kept.is_none_or(|kept| kept == number),
                    "{timeline} {seq}: {number}, answered was {kept:?}"
                );
            }
            let latest = heads(&timeline).unwrap_or_default();
            assert!(list.len() as u64 >= latest, "{mid} lacks the end of {timeline}");
        }
    }
    outcome
}

/// Runs and prints what it has shown.
fn check(system: impl System, default_kills: u64) {
    let kills =
        std::env::var("KILLS").ok().map_or(default_kills, |text| text.parse().expect("KILLS is a number"));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let outcome = run(system, kills, random::Random::seed("SEED", u64::from(now.subsec_nanos())));
    let Outcome { kills, published, places, deliveries, resets } = outcome;
    eprintln!(
        "{kills} kills: {published} messages published, {places} places answered, {deliveries} deliveries, each once and in \
         order, {resets} resets"
    );
    assert_eq!(resets, 0, "nothing was to be removed");
    assert!(places > 100 && deliveries > 100, "hardly anything was published");
}

#[test]
fn everything_that_was_answered_is_delivered_once_and_in_order_through_kills() {
    check(Alone::start(), 8);
}

#[test]
#[ignore = "starts a cluster of processes: scripts/cluster-death.sh, make nothing-lost"]
fn the_same_of_a_cluster() {
    check(Together::start(), 8);
}
