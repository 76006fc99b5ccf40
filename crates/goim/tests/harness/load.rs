//! A steady load of pushes to keys, members and a room, sessions that count what they get, and what the two say together.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::http::{compose, escape};
use super::{Packet, Who, eventually, unique};

const OP: i32 = 1000;
const ROOM: &str = "live://load";
/// Between two rounds of pushes: one to a key, one to a member, one to the room.
const PAUSE: Duration = Duration::from_millis(10);
/// How long a push that was accepted may be on its way before it counts as lost.
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

/// Status and body of an answer; `None` when there was none.
fn ask(addr: SocketAddr, target: &str, body: &[u8]) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&addr, Duration::from_secs(1)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    stream.write_all(&compose("POST", target, &[("Connection", "close")], body)).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let status = answer.split(' ').nth(1)?.parse().ok()?;
    Some((status, answer.split_once("\r\n\r\n")?.1.to_owned()))
}

fn is_accepted(logic: SocketAddr, target: &str, body: &str) -> bool {
    let answer = ask(logic, target, body.as_bytes());
    answer.is_some_and(|(status, text)| status == 200 && text.contains(r#""code":0,"#))
}

/// A push that was answered with success.
pub struct Push {
    /// What was pushed, different each time.
    pub body: String,
    /// The session; `None` is all, by the room.
    pub to: Option<usize>,
    /// When the answer came.
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

/// Pushes steadily, by both logics in turn, until told to stop.
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
                let pushes = [
                    ("key", key_target(nth), Some(nth)),
                    ("mid", mid_target(nth), Some(nth)),
                    ("room", room_target(), None),
                ];
                for (kind, target, to) in pushes {
                    let body = format!("{name}-{kind}-{number}");
                    number += 1;
                    if is_accepted(logics[number % 2], &target, &body) {
                        published.accepted.push(Push { body, to, accepted_at: Instant::now() });
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

/// A client that comes back whenever it is cut off, and counts what it gets.
pub struct Session {
    received: Mutex<HashMap<String, (usize, Instant)>>,
    connected: AtomicUsize,
    stop: AtomicBool,
}

impl Session {
    /// Connects; waits until it is in.
    pub fn start(nth: usize, comet: SocketAddr) -> Arc<Self> {
        let (received, connected, stop) = Default::default();
        let session = Arc::new(Self { received, connected, stop });
        let own = Arc::clone(&session);
        std::thread::spawn(move || {
            while !own.stop.load(Ordering::Relaxed) {
                let _ = own.be_connected(nth, comet);
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        eventually("a session is open", || session.times_connected() > 0);
        session
    }

    /// So many sessions, in turn on each comet.
    pub fn start_all(count: usize, comets: [SocketAddr; 2]) -> Vec<Arc<Self>> {
        (0..count).map(|nth| Self::start(nth, comets[nth % 2])).collect()
    }

    fn be_connected(&self, nth: usize, comet: SocketAddr) -> std::io::Result<()> {
        let mut stream = TcpStream::connect_timeout(&comet, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_millis(200)))?;
        let mut who = Who::new().room(ROOM).accepts(&[OP]);
        (who.key, who.mid) = (key_of(nth), mid_of(nth));
        stream.write_all(&who.auth().encode())?;
        let (mut input, mut buffer) = (Vec::new(), [0; 16 * 1024]);
        while !self.stop.load(Ordering::Relaxed) {
            let read = match stream.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(read) => read,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error),
            };
            input.extend_from_slice(&buffer[..read]);
            while Packet::is_complete(&input) {
                let (packet, length) = Packet::decode(&input).unwrap();
                input.drain(..length);
                if packet.op == 8 {
                    self.connected.fetch_add(1, Ordering::Relaxed);
                } else {
                    let body = String::from_utf8(packet.body).unwrap();
                    self.received.lock().unwrap().entry(body).or_insert((0, Instant::now())).0 += 1;
                }
            }
        }
        Ok(())
    }

    /// How often it has come in.
    pub fn times_connected(&self) -> usize {
        self.connected.load(Ordering::Relaxed)
    }

    fn count(&self, body: &str) -> usize {
        self.received.lock().unwrap().get(body).map_or(0, |(count, _)| *count)
    }

    fn arrived(&self, body: &str) -> Option<Instant> {
        self.received.lock().unwrap().get(body).map(|(_, at)| *at)
    }

    /// Ends it.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Time from now until a push to the key and the member of each of these sessions arrives.
pub fn whole_again(logics: [SocketAddr; 2], sessions: &[Arc<Session>], of: &[usize]) -> Duration {
    let (started, mark) = (Instant::now(), unique("whole"));
    for nth in of {
        for (kind, target) in [("key", key_target(*nth)), ("mid", mid_target(*nth))] {
            let body = format!("{mark}-{kind}-{nth}");
            eventually(&format!("{kind} of {nth} is reached"), || {
                let arrived = || sessions[*nth].count(&body) > 0;
                for logic in logics {
                    let _ = is_accepted(logic, &target, &body);
                }
                let until = Instant::now() + Duration::from_millis(200);
                while !arrived() && Instant::now() < until {
                    std::thread::sleep(Duration::from_millis(2));
                }
                arrived()
            });
        }
    }
    started.elapsed()
}

/// What became of what was accepted, at the sessions that were connected throughout.
pub struct Verdict {
    /// What never came: body and session.
    pub lost: Vec<String>,
    /// How many came more than once.
    pub doubled: usize,
    /// From the answer to the arrival, sorted.
    pub latencies: Vec<Duration>,
}

impl Verdict {
    /// Waits for what is still on its way, then judges; `throughout` are the sessions that count.
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
