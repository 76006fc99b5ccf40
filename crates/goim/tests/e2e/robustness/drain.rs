//! Stopping: gracefully on SIGTERM, and hard on SIGKILL with clients that reconnect.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::harness::capture::packets;
use crate::harness::child::Process;
use crate::harness::{BOTH, Client, DEADLINE, Packet, Settings, Transport, Who, eventually, unique};

#[test]
fn on_sigterm_sessions_end_at_the_pace_and_the_exit_code_is_zero() {
    const SESSIONS: usize = 60;
    let settings =
        Settings::new().set("comet.drain.sessions_per_second", "30").set("comet.drain.timeout", "20s");
    let mut process = Process::start(&settings);
    let sessions: Vec<Client> =
        (0..SESSIONS).map(|nth| Client::login(&process.server, BOTH[nth % 2], &Who::new())).collect();
    assert_eq!(process.server.get("/readyz").status, 200);

    let asked = Instant::now();
    process.terminate();
    eventually("/readyz says no", || process.server.get("/readyz").status == 503);
    assert!(process.is_running(), "it is draining");
    // Sixty at thirty a second. goim's own clients get no packet, only the end.
    let mut ends: Vec<Duration> = std::thread::scope(|scope| {
        let waiting: Vec<_> = sessions
            .into_iter()
            .map(|mut session| {
                scope.spawn(move || {
                    session.expect_closed_politely();
                    asked.elapsed()
                })
            })
            .collect();
        waiting.into_iter().map(|session| session.join().unwrap()).collect()
    });
    ends.sort();
    let (median, last) = (ends[SESSIONS / 2], ends[SESSIONS - 1]);
    eprintln!("ended: half after {median:?}, all after {last:?}");
    assert!(last > Duration::from_millis(1500), "all sessions ended within {last:?}");
    assert!(last < Duration::from_secs(10), "the last session ended after {last:?}");
    assert!(median > last / 5 && median < last * 4 / 5, "half ended within {median:?} of {last:?}");

    let status = process.wait();
    assert_eq!(status.code(), Some(0), "{status}");
    for transport in BOTH {
        assert!(
            TcpStream::connect(process.server.client_addr(transport)).is_err(),
            "nobody listens any more"
        );
    }
}

#[test]
fn sessions_that_stay_are_closed_at_the_deadline() {
    let settings =
        Settings::new().set("comet.drain.sessions_per_second", "1").set("comet.drain.timeout", "1s");
    let mut process = Process::start(&settings);
    let mut sessions: Vec<Client> =
        (0..20).map(|nth| Client::login(&process.server, BOTH[nth % 2], &Who::new())).collect();
    let asked = Instant::now();
    process.terminate();
    for session in &mut sessions {
        session.expect_closed_politely();
    }
    assert_eq!(process.wait().code(), Some(0));
    let took = asked.elapsed();
    assert!((Duration::from_millis(800)..Duration::from_secs(10)).contains(&took), "it took {took:?}");
}

#[test]
fn pushes_accepted_before_sigterm_reach_the_sessions_that_are_still_connected() {
    const PUSHES: usize = 50;
    let settings =
        Settings::new().set("comet.drain.sessions_per_second", "2").set("comet.drain.timeout", "2s");
    let mut process = Process::start(&settings);
    let room = unique("drain") + "://1";
    let sessions: Vec<Client> =
        (0..10).map(|nth| Client::login(&process.server, BOTH[nth % 2], &Who::new().room(&room))).collect();
    for nth in 0..PUSHES {
        process.server.push_room(1000, &room, nth.to_string());
    }
    process.terminate();
    std::thread::scope(|scope| {
        for mut session in sessions {
            scope.spawn(move || {
                let bytes = session.rest();
                let pushes = packets(&bytes, session.transport() == Transport::Ws);
                let all: Vec<Packet> = (0..PUSHES).map(|nth| Packet::new(1000, 0, nth.to_string())).collect();
                assert_eq!(pushes, all);
            });
        }
    });
    assert_eq!(process.wait().code(), Some(0));
}

#[test]
fn a_negotiated_client_receives_the_reason_of_a_drain() {
    let settings = Settings::new().set("comet.drain.reconnect_delay_max", "2s");
    let mut process = Process::start(&settings);
    let mut clients = BOTH.map(|transport| {
        let mut client = Client::open(&process.server, transport);
        client.send(&Packet::new(7, 1, r#"{"mid":1,"protover":1}"#));
        assert_eq!(client.packet().op, 8);
        client
    });
    process.terminate();
    for client in &mut clients {
        let last = client.packet();
        assert_eq!(last.op, 6, "{last:?}");
        let told: serde_json::Value = serde_json::from_slice(&last.body).unwrap();
        assert!(told["code"].is_i64() && told["reason"].is_string() && told["reconnect"] == true, "{told}");
        assert!(told["delay_ms"].as_u64().is_some_and(|delay| delay <= 2000), "{told}");
        client.expect_closed_politely();
    }
    assert_eq!(process.wait().code(), Some(0));
}

#[test]
fn after_a_kill_and_a_restart_clients_reconnect() {
    let process = Process::start(&Settings::new());
    let addrs = process.server.addrs;
    let room = unique("again") + "://1";
    let people: Vec<Who> = (0..20).map(|_| Who::new().room(&room)).collect();
    let mut sessions: Vec<Client> = people
        .iter()
        .enumerate()
        .map(|(nth, who)| Client::login(&process.server, BOTH[nth % 2], who))
        .collect();
    process.kill();
    for session in &mut sessions {
        session.expect_closed();
    }
    let process = Process::start_again(&Settings::new(), addrs);
    let mut sessions: Vec<Client> =
        people.iter().enumerate().map(|(nth, who)| come_back(&process, nth, who)).collect();
    process.server.push_room(1000, &room, "room");
    for (session, who) in sessions.iter_mut().zip(&people) {
        session.expect_push(1000, "room");
        process.server.push_keys(1000, &[&who.key], "key");
        session.expect_push(1000, "key");
    }
    assert_eq!(sessions[0].heartbeat(), 20);
}

/// As a client does it: again and again until it is let in.
fn come_back(process: &Process, nth: usize, who: &Who) -> Client {
    let transport = BOTH[nth % 2];
    let started = Instant::now();
    loop {
        if TcpStream::connect(process.server.client_addr(transport)).is_ok() {
            return Client::login(&process.server, transport, who);
        }
        assert!(started.elapsed() < DEADLINE, "{transport:?}: nobody listens");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_second_sigterm_ends_the_wait() {
    let settings =
        Settings::new().set("comet.drain.sessions_per_second", "1").set("comet.drain.timeout", "30s");
    let mut process = Process::start(&settings);
    let _sessions: Vec<Client> =
        (0..30).map(|_| Client::login(&process.server, Transport::Tcp, &Who::new())).collect();
    process.terminate();
    eventually("/readyz says no", || process.server.get("/readyz").status == 503);
    let asked = Instant::now();
    process.terminate();
    process.wait_within(DEADLINE);
    assert!(asked.elapsed() < Duration::from_secs(10), "it took {:?}", asked.elapsed());
}
