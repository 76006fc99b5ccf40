//! A steady load of pushes to keys, members and a room, sessions that count what they receive, and
//! the verdict on both.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::client::{SWITCHED, UPGRADE};
use super::http::{compose, escape};
use super::{DEADLINE, Packet, Transport, Who, eventually, frame, unique};

const OP: i32 = 1000;
const ROOM: &str = "live://load";
/// Between two heartbeats of a session; the server waits for minutes.
const HEARTBEAT: Duration = Duration::from_secs(30);
/// How often a session looks whether it is to end.
const LOOK: Duration = Duration::from_millis(200);
/// How long an answer is awaited: longer than a logic waits for Kafka, so that no late answer is
/// missed.
const ANSWERS_WITHIN: Duration = Duration::from_secs(20);
/// Between two rounds of pushes: one to a key, one to a member, one to the room.
const PAUSE: Duration = Duration::from_millis(10);
/// How long an accepted push may be in flight before it counts as lost.
const ARRIVES_WITHIN: Duration = Duration::from_secs(10);

/// The key of a session.
pub fn key_of(nth: usize) -> String {
    format!("load-key-{nth}")
}

fn mid_of(nth: usize) -> i64 {
    5_000_000 + i64::try_from(nth).unwrap()
}

fn key_target(nth: usize) -> String {
    format!("/goim/push/keys?operation={OP}&keys={}", key_of(nth))
}

fn mid_target(nth: usize) -> String {
    format!("/goim/push/mids?operation={OP}&mids={}", mid_of(nth))
}

fn room_target() -> String {
    let (kind, room) = ROOM.split_once("://").unwrap();
    format!("/goim/push/room?operation={OP}&type={}&room={}", escape(kind), escape(room))
}

/// A push of each kind: its name, its request target, and the session that it targets; `None` is
/// all.
pub fn pushes_to(nth: usize) -> [(&'static str, String, Option<usize>); 3] {
    [("key", key_target(nth), Some(nth)), ("mid", mid_target(nth), Some(nth)), ("room", room_target(), None)]
}

/// Status and body of an answer; `None` when there was none.
fn ask(addr: SocketAddr, target: &str, body: &[u8]) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&addr, Duration::from_secs(1)).ok()?;
    stream.set_read_timeout(Some(ANSWERS_WITHIN)).ok()?;
    stream.write_all(&compose("POST", target, &[("Connection", "close")], body)).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let status = answer.split(' ').nth(1)?.parse().ok()?;
    Some((status, answer.split_once("\r\n\r\n")?.1.to_owned()))
}

/// True when a push is answered with success.
pub fn is_accepted(logic: SocketAddr, target: &str, body: &str) -> bool {
    let answer = ask(logic, target, body.as_bytes());
    answer.is_some_and(|(status, text)| status == 200 && text.contains(r#""code":0,"#))
}

/// A push that was answered with success.
pub struct Push {
    /// What was pushed, different each time.
    pub body: String,
    /// The session; `None` is all, by the room.
    pub to: Option<usize>,
    /// When the request was made that was answered with success.
    pub begun_at: Instant,
    /// When the answer arrived.
    pub accepted_at: Instant,
}

/// What a publisher has done.
#[derive(Default)]
pub struct Published {
    /// What was answered with success.
    pub accepted: Vec<Push>,
    /// How many were not.
    pub refused: usize,
}

/// Pushes steadily, through both logics in turn, until stopped.
pub struct Publisher {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Published>,
}

impl Publisher {
    /// Starts it; `name` is in each body.
    pub fn start(name: &str, logics: [SocketAddr; 2], sessions: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (told, name) = (Arc::clone(&stop), unique(name));
        let thread = std::thread::spawn(move || {
            let mut published = Published::default();
            let mut number = 0_usize;
            while !told.load(Ordering::Relaxed) {
                let nth = number % sessions;
                for (kind, target, to) in pushes_to(nth) {
                    let body = format!("{name}-{kind}-{number}");
                    number += 1;
                    let begun_at = Instant::now();
                    if is_accepted(logics[number % 2], &target, &body) {
                        published.accepted.push(Push { body, to, begun_at, accepted_at: Instant::now() });
                    } else {
                        published.refused += 1;
                    }
                }
                std::thread::sleep(PAUSE);
            }
            published
        });
        Self { stop, thread }
    }

    /// Stops it.
    pub fn stop(self) -> Published {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// What a client is, and where it connects.
#[derive(Debug, Clone)]
pub struct Profile {
    /// Tried in this order.
    pub comets: Vec<SocketAddr>,
    /// The listener of all of them.
    pub transport: Transport,
    /// It sends `protover` 1, and so receives the reason for its end.
    pub is_negotiated: bool,
}

/// One connection of a client, from the auth reply to its end, both as the client sees them.
#[derive(Debug)]
pub struct Life {
    /// The comet.
    pub comet: SocketAddr,
    /// The client sends `protover`.
    pub is_negotiated: bool,
    /// When the auth reply arrived.
    pub began: Instant,
    /// When the end was seen.
    pub ended: Option<Instant>,
    /// The server's reason for the end.
    pub reason: Option<String>,
    received: HashMap<String, (usize, Instant)>,
}

impl Life {
    /// How often this was received, and when first.
    pub fn received(&self, body: &str) -> Option<(usize, Instant)> {
        self.received.get(body).copied()
    }
}

/// A client that reconnects whenever it is cut off, and counts what it receives.
pub struct Session {
    lives: Mutex<Vec<Life>>,
    connected: AtomicUsize,
    stop: AtomicBool,
}

impl Session {
    /// Connects; waits until it is in.
    pub fn start(nth: usize, profile: Profile) -> Arc<Self> {
        let (lives, connected, stop) = Default::default();
        let session = Arc::new(Self { lives, connected, stop });
        let own = Arc::clone(&session);
        std::thread::spawn(move || {
            let comets = profile.comets.iter().cycle();
            for comet in comets.take_while(|_| !own.stop.load(Ordering::Relaxed)) {
                // The first one again, as long as it lets the client in.
                while own.be_connected(nth, *comet, &profile).is_some() {
                    std::thread::sleep(Duration::from_millis(100));
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        eventually("a session is open", || session.times_connected() > 0);
        session
    }

    /// So many sessions over TCP, in turn on each comet.
    pub fn start_all(count: usize, comets: [SocketAddr; 2]) -> Vec<Arc<Self>> {
        let profile = |nth: usize| Profile {
            comets: vec![comets[nth % 2]],
            transport: Transport::Tcp,
            is_negotiated: false,
        };
        (0..count).map(|nth| Self::start(nth, profile(nth))).collect()
    }

    /// Until the connection ends; `None` when the client was not let in.
    fn be_connected(&self, nth: usize, comet: SocketAddr, profile: &Profile) -> Option<()> {
        let mut connection = Connection::open(comet, profile.transport).ok()?;
        let mut who = Who::new().room(ROOM).accepts(&[OP]);
        (who.key, who.mid) = (key_of(nth), mid_of(nth));
        let mut token: serde_json::Value = serde_json::from_str(&who.token()).unwrap();
        if profile.is_negotiated {
            token["protover"] = 1.into();
        }
        connection.send(&Packet::new(7, 1, token.to_string())).ok()?;
        let mut is_in = false;
        while !self.stop.load(Ordering::Relaxed) {
            let Ok(packets) = connection.receive() else { break };
            for packet in packets {
                match packet.op {
                    8 => {
                        is_in = true;
                        self.begin(comet, profile.is_negotiated);
                    }
                    6 if profile.is_negotiated => self.note_reason(&packet.body),
                    3 => {}
                    _ => self.note(String::from_utf8(packet.body).unwrap()),
                }
            }
        }
        if is_in {
            self.lives().last_mut().unwrap().ended = Some(Instant::now());
        }
        is_in.then_some(())
    }

    fn begin(&self, comet: SocketAddr, is_negotiated: bool) {
        let (ended, reason, received) = Default::default();
        let began = Instant::now();
        self.lives().push(Life { comet, is_negotiated, began, ended, reason, received });
        self.connected.fetch_add(1, Ordering::Relaxed);
    }

    fn note(&self, body: String) {
        let mut lives = self.lives();
        let life = lives.last_mut().expect("nothing comes before the auth reply");
        life.received.entry(body).or_insert((0, Instant::now())).0 += 1;
    }

    fn note_reason(&self, body: &[u8]) {
        let notice: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
        if let Some(life) = self.lives().last_mut().filter(|life| life.ended.is_none()) {
            life.reason =
                Some(format!("{} {}", notice["code"], notice["reason"].as_str().unwrap_or_default()));
        }
    }

    /// Its connections so far.
    pub fn lives(&self) -> MutexGuard<'_, Vec<Life>> {
        self.lives.lock().unwrap()
    }

    /// How often it has connected.
    pub fn times_connected(&self) -> usize {
        self.connected.load(Ordering::Relaxed)
    }

    fn count(&self, body: &str) -> usize {
        self.lives().iter().filter_map(|life| life.received(body)).map(|(count, _)| count).sum()
    }

    fn arrived(&self, body: &str) -> Option<Instant> {
        self.lives().iter().filter_map(|life| life.received(body)).map(|(_, at)| at).min()
    }

    /// Ends it.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// A connection that any end is an error of, and none is a fault of the test.
struct Connection {
    stream: TcpStream,
    transport: Transport,
    input: Vec<u8>,
    last_sent: Instant,
}

impl Connection {
    fn open(comet: SocketAddr, transport: Transport) -> std::io::Result<Self> {
        let mut stream = TcpStream::connect_timeout(&comet, Duration::from_secs(1))?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(DEADLINE))?;
        stream.set_read_timeout(Some(DEADLINE))?;
        if transport == Transport::Ws {
            stream.write_all(UPGRADE.as_bytes())?;
            let mut answer = vec![0; SWITCHED.len()];
            stream.read_exact(&mut answer)?;
            assert_eq!(answer, SWITCHED.as_bytes());
        }
        stream.set_read_timeout(Some(LOOK))?;
        Ok(Self { stream, transport, input: Vec::new(), last_sent: Instant::now() })
    }

    fn send(&mut self, packet: &Packet) -> std::io::Result<()> {
        self.last_sent = Instant::now();
        match self.transport {
            Transport::Tcp => self.stream.write_all(&packet.encode()),
            Transport::Ws => self.stream.write_all(&frame::masked(frame::BINARY, &packet.encode())),
        }
    }

    /// What has arrived after [`LOOK`] at most.
    fn receive(&mut self) -> std::io::Result<Vec<Packet>> {
        if self.last_sent.elapsed() > HEARTBEAT {
            self.send(&Packet::new(2, 2, ""))?;
        }
        let mut buffer = [0; 16 * 1024];
        match self.stream.read(&mut buffer) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(read) => self.input.extend_from_slice(&buffer[..read]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
        let mut packets = Vec::new();
        while let Some(next) = self.next() {
            match next {
                Ok(next) => packets.extend(next),
                // What arrived before the end counts.
                Err(_) if !packets.is_empty() => break,
                Err(error) => return Err(error),
            }
        }
        Ok(packets)
    }

    /// The next packet, or those of the next batch; `None` while it is not there to its end.
    fn next(&mut self) -> Option<std::io::Result<Vec<Packet>>> {
        let (packet, length) = match self.transport {
            Transport::Tcp => Packet::decode(&self.input)?,
            Transport::Ws => {
                let (frame, length) = frame::decode(&self.input)?;
                if frame.first != frame::BINARY {
                    return Some(Err(ErrorKind::UnexpectedEof.into()));
                }
                (Packet::decode(&frame.payload).expect("a message holds a packet").0, length)
            }
        };
        self.input.drain(..length);
        Some(Ok(if packet.op == 9 { Packet::decode_all(&packet.body) } else { vec![packet] }))
    }
}

/// Time from now until a push to the key and the member of each of these sessions arrives.
///
/// # Panics
/// When that takes longer than a test waits.
pub fn whole_again(logics: [SocketAddr; 2], sessions: &[Arc<Session>], of: &[usize]) -> Duration {
    let within = DEADLINE * u32::try_from(of.len()).unwrap();
    whole_again_within(within, logics, sessions, of).unwrap_or_else(|| panic!("not within {within:?}"))
}

/// The same; `None` when it takes longer than this.
pub fn whole_again_within(
    time: Duration,
    logics: [SocketAddr; 2],
    sessions: &[Arc<Session>],
    of: &[usize],
) -> Option<Duration> {
    let (started, mark) = (Instant::now(), unique("whole"));
    for nth in of {
        for (kind, target) in [("key", key_target(*nth)), ("mid", mid_target(*nth))] {
            let body = format!("{mark}-{kind}-{nth}");
            while !reaches(logics, &sessions[*nth], &target, &body) {
                if started.elapsed() > time {
                    eprintln!("{kind} of {nth} is not reached after {time:?}");
                    return None;
                }
            }
        }
    }
    Some(started.elapsed())
}

/// Pushes by both logics; true when it arrives at once.
fn reaches(logics: [SocketAddr; 2], session: &Session, target: &str, body: &str) -> bool {
    for logic in logics {
        let _ = is_accepted(logic, target, body);
    }
    let until = Instant::now() + Duration::from_millis(200);
    while session.count(body) == 0 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(2));
    }
    session.count(body) > 0
}

/// What became of what was accepted, at the sessions that were connected throughout.
pub struct Verdict {
    /// What never arrived: body and session.
    pub lost: Vec<String>,
    /// How many arrived more than once.
    pub doubled: usize,
    /// From the answer to the arrival, sorted.
    pub latencies: Vec<Duration>,
}

impl Verdict {
    /// Waits for pushes in flight, then judges; `throughout` are the sessions that count.
    pub fn of(published: &Published, sessions: &[Arc<Session>], throughout: &[usize]) -> Self {
        let receivers = |push: &Push| -> Vec<usize> {
            throughout.iter().copied().filter(|nth| push.to.is_none_or(|to| to == *nth)).collect()
        };
        let missing = || -> Vec<String> {
            let of = |push: &Push| {
                let lost = receivers(push).into_iter().filter(|nth| sessions[*nth].count(&push.body) == 0);
                lost.map(|nth| format!("{} at {nth}", push.body)).collect::<Vec<_>>()
            };
            published.accepted.iter().flat_map(of).collect()
        };
        let until = Instant::now() + ARRIVES_WITHIN;
        while !missing().is_empty() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(50));
        }
        let mut latencies = Vec::new();
        let mut doubled = 0;
        for push in &published.accepted {
            for nth in receivers(push) {
                doubled += sessions[nth].count(&push.body).saturating_sub(1);
                let arrived = sessions[nth].arrived(&push.body);
                latencies.extend(arrived.map(|at| at.saturating_duration_since(push.accepted_at)));
            }
        }
        latencies.sort_unstable();
        Self { lost: missing(), doubled, latencies }
    }

    /// The latency that so many of a hundred do not exceed.
    pub fn latency(&self, percent: usize) -> Duration {
        let last = self.latencies.len().saturating_sub(1);
        self.latencies.get(last * percent / 100).copied().unwrap_or_default()
    }
}
