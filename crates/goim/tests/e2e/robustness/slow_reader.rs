//! Sessions that never read: they cost bounded memory and delay no other session. Shown by
//! measuring the others.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::harness::child::Process;
use crate::harness::http::Http;
use crate::harness::{BOTH, Client, DEADLINE, Packet, Settings, Transport, Who, number};
use socket2::{Domain, Socket, Type};

/// Sessions that read, half TCP and half WebSocket.
const READERS: usize = 6;
/// Pushes to all in one run, and the size of each: together far more than any queue.
const PUSHES: usize = 1000;
const BODY: usize = 30_000;
/// Pushes in flight at a time: so few that no reader's queue is ever full.
const UNDER_WAY: usize = 4;
/// Pushes to each silent session alone, which share no memory with those to others.
const OWN_PUSHES: usize = 40;
/// What waits for one session at most, by configuration.
const QUEUE: usize = 256 * 1024;

#[test]
fn sessions_that_never_read_cost_little_and_delay_no_others() {
    let settings = Settings::new().set("comet.send.queue_bytes_max", "256 KiB");
    let alone = run(&Process::start(&settings), 0);
    eprintln!("without silent sessions: {alone:?}");
    for silent in [1, 50] {
        let with = run(&Process::start(&settings), silent);
        eprintln!("{silent} silent sessions: {with:?}");
        assert!(
            with.slowest < alone.slowest * 5 + Duration::from_secs(1),
            "{silent} silent: {with:?}, none: {alone:?}"
        );
        // What was pushed to all is 30 MB; what was pushed to them is 1.2 MB for each.
        let bound = alone.grown + silent * QUEUE * 3 / 2 + (8 << 20);
        assert!(with.grown < bound, "{silent} silent: {with:?}, none: {alone:?}");
    }
}

/// What one run showed.
#[derive(Debug)]
struct Outcome {
    /// The slowest delivery to a session that reads.
    slowest: Duration,
    /// Bytes by which the server grew.
    grown: usize,
}

/// Pushes to all while some sessions do not read, and checks what the others and, later, they get.
fn run(process: &Process, silent: usize) -> Outcome {
    let op = i32::try_from(number()).unwrap();
    let quiet: Vec<Who> = (0..silent).map(|_| Who::new().accepts(&[op])).collect();
    let silent: Vec<Client> = quiet
        .iter()
        .enumerate()
        .map(|(nth, who)| {
            let mut client = open_small(process.server.client_addr(BOTH[nth % 2]), BOTH[nth % 2]);
            client.send(&who.auth());
            client.expect(&Packet::new(8, 1, ""));
            client
        })
        .collect();
    let readers: Vec<Client> = (0..READERS)
        .map(|nth| Client::login(&process.server, BOTH[nth % 2], &Who::new().accepts(&[op])))
        .collect();
    let before = process.memory();
    let start = Instant::now();
    publish_to_each(process.server.addrs.http, op, &quiet, start);
    let received: Vec<AtomicUsize> = readers.iter().map(|_| AtomicUsize::new(0)).collect();
    let slowest = std::thread::scope(|scope| {
        let reading: Vec<_> = readers
            .into_iter()
            .zip(&received)
            .map(|(reader, received)| scope.spawn(move || read(reader, op, start, received)))
            .collect();
        publish(process.server.addrs.http, op, start, &received);
        reading.into_iter().map(|reader| reader.join().expect("a complete reader")).max().unwrap()
    });
    let grown = process.memory().saturating_sub(before);
    for client in silent {
        check_late_reader(client, op);
    }
    Outcome { slowest, grown }
}

/// The body of a push: its number, the moment in microseconds since `start`, and filling.
fn body(nth: usize, start: Instant) -> Vec<u8> {
    let mut body = vec![b'.'; BODY];
    body[..8].copy_from_slice(&(nth as u64).to_be_bytes());
    body[8..16].copy_from_slice(&u64::try_from(start.elapsed().as_micros()).unwrap().to_be_bytes());
    body
}

fn number_of(push: &Packet) -> usize {
    usize::try_from(u64::from_be_bytes(push.body[..8].try_into().unwrap())).unwrap()
}

/// Pushes to all, at the pace of the slowest of those that read.
fn publish(addr: SocketAddr, op: i32, start: Instant, received: &[AtomicUsize]) {
    let mut http = Http::connect(addr);
    for nth in 0..PUSHES {
        let asked = Instant::now();
        while received.iter().any(|received| received.load(Ordering::Acquire) + UNDER_WAY <= nth) {
            assert!(asked.elapsed() < DEADLINE, "a reader has stopped at push {nth}");
            std::thread::sleep(Duration::from_micros(200));
        }
        let answer = http.request(
            "POST",
            &format!("/goim/push/all?operation={op}"),
            &[],
            &body(OWN_PUSHES + nth, start),
        );
        assert_eq!(answer.text(), r#"{"code":0,"message":""}"#);
    }
}

fn publish_to_each(addr: SocketAddr, op: i32, quiet: &[Who], start: Instant) {
    let mut http = Http::connect(addr);
    for nth in 0..OWN_PUSHES {
        for who in quiet {
            let target = format!("/goim/push/keys?operation={op}&keys={}", who.key);
            let answer = http.request("POST", &target, &[], &body(nth, start));
            assert_eq!(answer.text(), r#"{"code":0,"message":""}"#);
        }
    }
}

/// All pushes, each in its turn; the slowest.
fn read(mut client: Client, op: i32, start: Instant, received: &AtomicUsize) -> Duration {
    let mut slowest = Duration::ZERO;
    for nth in 0..PUSHES {
        let push = client.pushed();
        assert_eq!((push.op, number_of(&push), push.body.len()), (op, OWN_PUSHES + nth, BODY));
        received.store(nth + 1, Ordering::Release);
        let sent = Duration::from_micros(u64::from_be_bytes(push.body[8..16].try_into().unwrap()));
        slowest = slowest.max(start.elapsed().saturating_sub(sent));
    }
    client.expect_nothing();
    slowest
}

/// What a session receives that begins to read at the end: whole packets in order, and not all of
/// them.
fn check_late_reader(mut client: Client, op: i32) {
    let mark = Packet::new(4, 99, "");
    client.send(&mark);
    let (mut last, mut count) = (None, 0);
    let started = Instant::now();
    loop {
        let packet = client.packet();
        let pushes = match packet.op {
            4 => break assert_eq!(packet, Packet::new(4, 99, "")),
            9 => Packet::decode_all(&packet.body),
            _ => vec![packet],
        };
        for push in pushes {
            assert!(push.op == op && push.body.len() == BODY);
            assert!(last < Some(number_of(&push)), "pushes in order");
            last = Some(number_of(&push));
            count += 1;
        }
        assert!(started.elapsed() < DEADLINE);
    }
    let all = PUSHES + OWN_PUSHES;
    assert!(
        (1..all).contains(&count),
        "{:?}: {count} of {all} pushes to one who did not read",
        client.transport()
    );
}

/// A connection whose own side takes as little as the system allows.
fn open_small(addr: SocketAddr, transport: Transport) -> Client {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None).unwrap();
    // Before connecting: the window that the peer sees is made of it.
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&addr.into()).unwrap();
    Client::over(socket.into(), transport)
}
