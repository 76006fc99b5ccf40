//! Bad input: 100,000 mutated packets and handshakes, over TCP and WebSocket, against a server in a
//! separate process. It neither ends nor grows nor leaks descriptors, and well-behaved clients
//! notice nothing.
//!
//! The same seed gives the same inputs. `GOIM_TEST_SEED` and `GOIM_TEST_INPUTS` change the seed and
//! the number.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::harness;
use crate::harness::child::Process;
use crate::harness::client::UPGRADE;
use crate::harness::frame::{BINARY, masked, unmasked};
use crate::harness::http::Http;
use crate::harness::random::Random;
use crate::harness::{BOTH, Client, DEADLINE, Packet, Settings, Transport, Who, eventually, unique};

/// Threads that send bad input.
const SENDERS: u64 = 4;
/// What the server may grow by between a fifth of the inputs and all of them.
const GROWTH_MAX: usize = 16 << 20;
/// The longest wait for a heartbeat's reply meanwhile, on a busy machine.
const REPLY_MAX: Duration = Duration::from_secs(3);

#[test]
fn mutated_packets_and_handshakes_disturb_no_other_session() {
    let seed = Random::seed("GOIM_TEST_SEED", 20_220_603);
    let inputs = usize::try_from(Random::seed("GOIM_TEST_INPUTS", 100_000)).unwrap();
    let mut process = Process::start(&Settings::new().handshake_timeout("5s"));
    let room = unique("calm") + "://1";
    let people: Vec<Who> = (0..4).map(|_| Who::new().room(&room)).collect();
    let (stop, pushed) = (AtomicBool::new(false), AtomicUsize::new(0));

    std::thread::scope(|scope| {
        // Also when an assertion below ends this scope: it waits for its threads.
        let stopping = StopOnDrop(&stop);
        let clients =
            people.iter().enumerate().map(|(nth, who)| Client::login(&process.server, BOTH[nth % 2], who));
        // All are in the room before the first reads its count.
        let clients: Vec<Client> = clients.collect();
        let watchers: Vec<_> = clients
            .into_iter()
            .map(|client| {
                let (stop, pushed) = (&stop, &pushed);
                scope.spawn(move || watch(client, stop, pushed))
            })
            .collect();
        let mut http = Http::connect(process.server.addrs.http);
        // Answered: the server has this connection among its descriptors too.
        assert_eq!(http.request("GET", "/readyz", &[], b"").status, 200);
        scope.spawn(|| publish(http, &people, &room, &stop, &pushed));

        let before = process.descriptors();
        attack(&process, seed, inputs / 5);
        eventually("the attackers' descriptors are closed", || process.descriptors() <= before);
        let warm = process.memory();
        attack(&process, seed.wrapping_add(1), inputs - inputs / 5);
        eventually("the attackers' descriptors are closed", || process.descriptors() <= before);
        let (after, memory) = (process.descriptors(), process.memory());
        eprintln!("descriptors {before} -> {after}, memory {} -> {} KiB", warm / 1024, memory / 1024);
        assert!(memory < warm + GROWTH_MAX, "memory grew from {warm} to {memory} bytes");

        drop(stopping);
        for watcher in watchers {
            let slowest = watcher.join().expect("a client that was not disturbed");
            assert!(slowest < REPLY_MAX, "a heartbeat waited {slowest:?}");
        }
    });
    assert!(process.is_running());
    assert!(pushed.load(Ordering::SeqCst) > 50, "pushes went on all the time");
    Client::login(&process.server, Transport::Tcp, &Who::new()).expect_nothing();
    Client::login(&process.server, Transport::Ws, &Who::new()).expect_nothing();
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A good client: heartbeats all the time, and every push in order. Returns the longest wait for a
/// reply.
fn watch(mut client: Client, stop: &AtomicBool, pushed: &AtomicUsize) -> Duration {
    let (mut seq, mut next, mut slowest) = (0, [0, 0], Duration::ZERO);
    loop {
        let stopping = stop.load(Ordering::SeqCst);
        seq += 1;
        let asked = Instant::now();
        client.send(&Packet::new(2, seq, ""));
        loop {
            let packet = client.packet();
            if packet.op == 3 {
                assert_eq!(packet.seq, seq);
                // At the end the others of the room leave.
                assert!(packet.body == [0, 0, 0, 4] || stop.load(Ordering::SeqCst), "{:?}", packet.body);
                break;
            }
            let packets = if packet.op == 9 { Packet::decode_all(&packet.body) } else { vec![packet] };
            for packet in packets {
                let which = usize::try_from(packet.op - 1000).expect("a push");
                assert_eq!(packet.body, next[which].to_string().into_bytes(), "pushes in order");
                next[which] += 1;
            }
        }
        slowest = slowest.max(asked.elapsed());
        if stopping && next == [pushed.load(Ordering::SeqCst); 2] {
            return slowest;
        }
        assert!(asked.elapsed() < DEADLINE);
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Numbered pushes to the good clients' keys and to their room until stopped.
fn publish(mut http: Http, people: &[Who], room: &str, stop: &AtomicBool, pushed: &AtomicUsize) {
    let keys: String = people.iter().map(|who| format!("&keys={}", who.key)).collect();
    let (kind, name) = room.split_once("://").unwrap();
    let targets = [
        format!("/goim/push/keys?operation=1000{keys}"),
        format!("/goim/push/room?operation=1001&type={kind}&room={name}"),
    ];
    while !stop.load(Ordering::SeqCst) {
        let body = pushed.load(Ordering::SeqCst).to_string();
        for target in &targets {
            assert_eq!(
                http.request("POST", target, &[], body.as_bytes()).text(),
                r#"{"code":0,"message":""}"#
            );
        }
        pushed.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn attack(process: &Process, seed: u64, inputs: usize) {
    let started = Instant::now();
    let sent = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for nth in 0..SENDERS {
            let (sent, process) = (&sent, &process);
            scope.spawn(move || {
                let mut random = Random::new(seed ^ nth << 32);
                while sent.load(Ordering::Relaxed) < inputs {
                    sent.fetch_add(connection(process, &mut random), Ordering::Relaxed);
                }
            });
        }
    });
    eprintln!("{} inputs in {:?}", sent.into_inner(), started.elapsed());
}

/// Bad input on one connection, until the server ends it or the stream is out of step. Returns the
/// number of inputs.
fn connection(process: &Process, random: &mut Random) -> usize {
    let transport = *random.one(&BOTH);
    if transport == Transport::Ws && random.chance(15) {
        let mut client = Client::connect(&process.server, transport);
        let request = mutate(UPGRADE.as_bytes(), random);
        client.send_bytes(&request);
        leave(client, &request);
        return 1;
    }
    let who = Who::new().accepts(&[7777]);
    let mut client = if random.chance(80) {
        Client::login(&process.server, transport, &who)
    } else {
        let mut client = Client::open(&process.server, transport);
        let auth = mutate(&who.auth().encode(), random);
        client.send_as_packet(&auth);
        leave(client, &auth);
        return 1;
    };
    for sent in 1..=50 {
        let (bytes, whole) = input(transport, random);
        let mark = Packet::new(4, i32::try_from(0x0100_0000 + sent).unwrap(), "");
        client.send_bytes(&bytes);
        if !whole {
            leave(client, &bytes);
            return sent;
        }
        client.send(&mark);
        if !client.answers(&mark) {
            return sent;
        }
    }
    leave(client, b"");
    50
}

/// Half-closes and waits for the server's end, which must follow.
fn leave(mut client: Client, sent: &[u8]) {
    client.finish();
    assert!(client.rest_within(DEADLINE).is_some(), "still open after {}", harness::hex::show(sent));
}

/// A mutated packet as bytes to send, and whether the reader is at the beginning of a packet after
/// it, should it accept it.
fn input(transport: Transport, random: &mut Random) -> (Vec<u8>, bool) {
    let good = [
        Packet::new(2, 1, ""),
        Packet::new(4, 2, "a message"),
        Packet::new(12, 3, "room://1"),
        Packet::new(14, 4, "1,2,3"),
        Packet::new(16, 5, "1,2,3"),
        Packet::new(1000, 6, vec![b'x'; 300]),
        Packet::new(7, 7, "{}"),
    ];
    let packet = mutate(&random.one(&good).encode(), random);
    if transport == Transport::Tcp {
        let whole = is_whole(&packet);
        return (packet, whole);
    }
    match random.below(4) {
        // Any payload in a good frame: it is read, or the connection ends.
        0 | 1 => (masked(BINARY, &packet), true),
        2 => (
            unmasked(*random.one(&[0x81, 0x82, 0x80, 0x02, 0x89, 0x8a]), &packet[..packet.len().min(125)]),
            false,
        ),
        _ => (mutate(&masked(BINARY, &packet), random), false),
    }
}

/// Whether a TCP reader that follows the rules finds exactly these bytes to be a packet.
fn is_whole(packet: &[u8]) -> bool {
    packet.len() >= 16
        && u32::from_be_bytes(packet[..4].try_into().unwrap()) as usize == packet.len()
        && packet[4..6] == [0, 16]
}

/// One to four small changes.
fn mutate(bytes: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..=random.below(4) {
        if bytes.is_empty() {
            bytes.push(random.byte());
        }
        let at = random.below(bytes.len());
        match random.below(9) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = *random.one(&[0, 1, 0x7f, 0x80, 0xff, b'\r', b'\n', b' ', b'"', b'{']),
            2 => bytes[at] = random.byte(),
            3 => bytes.truncate(at),
            4 => bytes.insert(at, random.byte()),
            5 => drop(bytes.remove(at)),
            6 => {
                let end = (at + 1 + random.below(16)).min(bytes.len());
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
            // Behind the header, so that the packet stays one in its form.
            _ if bytes.len() > 16 => {
                let at = 16 + random.below(bytes.len() - 16);
                bytes[at] = random.byte();
            }
            _ if bytes.len() == 16 => {
                let at = 6 + random.below(10);
                bytes[at] = random.byte();
            }
            _ => {}
        }
    }
    bytes
}
