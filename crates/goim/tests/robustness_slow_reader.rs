//! Sessions that never read: they cost bounded memory and delay nobody. Shown by measuring the others.

#![allow(clippy::unwrap_used)]

mod harness;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use harness::child::Process;
use harness::http::Http;
use harness::{BOTH, Client, DEADLINE, Packet, Settings, Transport, Who, number, unique};
use socket2::{Domain, Socket, Type};

/// Sessions that read, half TCP and half WebSocket.
const READERS: usize = 10;
/// Pushes in one run, and the size of each: together far more than a session may queue.
const PUSHES: usize = 200;
const BODY: usize = 30_000;
/// What one session that does not read may cost the server: its queue, and what comes with it.
const QUEUE: usize = 256 * 1024;

#[test]
fn sessions_that_never_read_cost_little_and_delay_nobody() {
    let process = Process::start(&Settings::new().set("comet.send.queue_bytes_max", "256 KiB"));
    let alone = run(&process, 0);
    let before = process.memory();
    for silent in [1, 50] {
        let with = run(&process, silent);
        let grown = process.memory().saturating_sub(before);
        eprintln!(
            "{silent} silent: slowest delivery {with:?}, without them {alone:?}, memory + {} KiB",
            grown / 1024
        );
        assert!(
            with < alone * 5 + Duration::from_secs(1),
            "{silent} silent sessions: {with:?}, without {alone:?}"
        );
        // The queues, half as much again for what surrounds them, and a fixed share for the run itself.
        assert!(grown < silent * QUEUE * 3 / 2 + (16 << 20), "{silent} silent sessions cost {grown} bytes");
    }
}

/// Pushes to all while some sessions do not read, and checks what the others and, later, they get. Gives the slowest
/// delivery to one who reads.
fn run(process: &Process, silent: usize) -> Duration {
    let op = i32::try_from(number()).unwrap();
    let addr = |transport| process.server.client_addr(transport);
    let silent: Vec<Client> = (0..silent)
        .map(|nth| {
            let transport = BOTH[nth % 2];
            let mut client = open_small(addr(transport), transport);
            client.send(&Who::new().accepts(&[op]).auth());
            client.expect(&Packet::new(8, 1, ""));
            client
        })
        .collect();
    let readers: Vec<Client> = (0..READERS)
        .map(|nth| {
            Client::login(&process.server, BOTH[nth % 2], &Who::new().accepts(&[op]).room(&unique("r://")))
        })
        .collect();
    let start = Instant::now();
    let slowest = std::thread::scope(|scope| {
        let readers: Vec<_> =
            readers.into_iter().map(|reader| scope.spawn(move || read(reader, op, start))).collect();
        publish(process.server.addrs.http, op, start);
        readers.into_iter().map(|reader| reader.join().expect("a complete reader")).max().unwrap()
    });
    for client in silent {
        check_late_reader(client, op);
    }
    slowest
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

fn publish(addr: SocketAddr, op: i32, start: Instant) {
    let mut http = Http::connect(addr);
    for nth in 0..PUSHES {
        let answer = http.request("POST", &format!("/goim/push/all?operation={op}"), &[], &body(nth, start));
        assert_eq!(answer.text(), r#"{"code":0,"message":""}"#);
        // A pace that readers keep up with easily, so that what is measured is not their own queue.
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// All pushes, each in its turn; the slowest.
fn read(mut client: Client, op: i32, start: Instant) -> Duration {
    let mut slowest = Duration::ZERO;
    for nth in 0..PUSHES {
        let push = client.pushed();
        assert_eq!((push.op, number_of(&push), push.body.len()), (op, nth, BODY));
        let sent = Duration::from_micros(u64::from_be_bytes(push.body[8..16].try_into().unwrap()));
        slowest = slowest.max(start.elapsed().saturating_sub(sent));
    }
    client.expect_nothing();
    slowest
}

/// What a session gets that begins to read when all is over: whole packets in order, and not all of them.
fn check_late_reader(mut client: Client, op: i32) {
    let mark = Packet::new(4, 99, "");
    client.send(&mark);
    let (mut last, mut count) = (None, 0);
    let started = Instant::now();
    loop {
        let packet = client.packet();
        let pushes = match packet.op {
            4 => break assert_eq!(packet, mark),
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
    assert!(
        (1..PUSHES).contains(&count),
        "{:?}: {count} of {PUSHES} pushes to one who did not read",
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
