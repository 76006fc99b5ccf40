//! Out of descriptors: the server survives more connections than it may have, serves those that it
//! has, and serves new ones again when descriptors are free.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::harness;
use crate::harness::child::Process;
use crate::harness::{BOTH, Client, Settings, Transport, Who, eventually};

/// Descriptors that the server may have, and connections that are made to it.
const DESCRIPTORS: u32 = 160;
const CONNECTIONS: usize = 400;

#[test]
fn more_connections_than_descriptors_are_survived() {
    let mut process = Process::start_with(&Settings::new().handshake_timeout("60s"), DESCRIPTORS);
    let who = BOTH.map(|_| Who::new());
    let mut sessions = [0, 1].map(|nth| Client::login(&process.server, BOTH[nth], &who[nth]));
    // The kernel completes connections that the server has not accepted; some may be refused as
    // well.
    let crowd: Vec<TcpStream> = (0..CONNECTIONS)
        .filter_map(|nth| TcpStream::connect(process.server.client_addr(BOTH[nth % 2])).ok())
        .collect();
    assert!(crowd.len() > CONNECTIONS / 2, "{} connections", crowd.len());

    // Those inside are served as before, and the listeners do not spin.
    let (busy, began) = (cpu_time(&process), Instant::now());
    while began.elapsed() < Duration::from_secs(2) {
        for session in &mut sessions {
            let asked = Instant::now();
            session.heartbeat();
            assert!(asked.elapsed() < Duration::from_secs(2), "a heartbeat waited {:?}", asked.elapsed());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let busy = cpu_time(&process) - busy;
    eprintln!("{} descriptors, {busy:?} of processor time in {:?}", process.descriptors(), began.elapsed());
    assert!(busy < Duration::from_secs(1), "the server was busy for {busy:?} of two seconds");
    // Some that the test runner has left open may be added.
    assert!(process.descriptors() <= DESCRIPTORS as usize + 8, "{} descriptors", process.descriptors());
    assert!(process.is_running());

    drop(crowd);
    eventually("there is room again", || process.descriptors() < DESCRIPTORS as usize / 2);
    for transport in BOTH {
        let newcomer = Who::new();
        let mut client = Client::login(&process.server, transport, &newcomer);
        process.server.push_keys(1000, &[&newcomer.key, &who[0].key], "hello");
        client.expect_push(1000, "hello");
        sessions[0].expect_push(1000, "hello");
    }
    for session in &mut sessions {
        session.heartbeat();
    }
    assert_eq!(process.server.get("/readyz").status, 200);
}

#[test]
fn the_limit_of_connections_keeps_room_for_those_inside() {
    let settings = Settings::new().set("comet.limits.connections_max", "20");
    let process = Process::start(&settings);
    let mut inside: Vec<Client> =
        (0..20).map(|nth| Client::login(&process.server, BOTH[nth % 2], &Who::new())).collect();
    for transport in BOTH {
        Client::connect(&process.server, transport).expect_closed();
    }
    for session in &mut inside {
        session.expect_nothing();
    }
    drop(inside.pop());
    eventually("there is room for one", || {
        let mut client = Client::connect(&process.server, Transport::Tcp);
        client.send(&Who::new().auth());
        client.answers(&harness::Packet::new(8, 1, ""))
    });
}

/// Processor time that a process has used.
fn cpu_time(process: &Process) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.id())).unwrap();
    // After the command's closing bracket: user and system time are the 12th and 13th field, in
    // hundredths.
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}
