//! Sessions on a running comet: keys that reconnect, rooms, late answers of logic, what is reported
//! at the end.

use goim_comet::ListenerKind;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::harness::{eventually, start};
use goim_ports::{Generation, RoomId};

#[test]
fn late_answers_of_logic_keep_replies_in_order() {
    let server = start(|_| {});
    server.world.slow.store(true, Ordering::SeqCst);
    let mut client = server.client();
    // All at once: the token, a packet for the backend, a failing one, a heartbeat.
    let all = [
        crate::harness::packet(7, 1, b"k"),
        crate::harness::packet(1000, 2, b"x"),
        crate::harness::packet(4, 3, b"fail"),
        crate::harness::packet(2, 4, b""),
    ];
    std::io::Write::write_all(&mut client.socket, &all.concat()).unwrap();
    let seen: Vec<(i32, i32, Vec<u8>)> =
        (0..4).map(|_| client.read()).map(|got| (got.operation, got.sequence, got.body)).collect();
    let count = vec![0, 0, 0, 0];
    assert_eq!(seen, [(8, 1, vec![]), (1000, 2, b"x".to_vec()), (4, 3, vec![]), (3, 4, count)]);
    assert_eq!(server.metric("goim_comet_upstream_errors_total"), 1);
}

#[test]
fn a_client_that_does_not_wait_for_logic_leaves_no_record() {
    let server = start(|_| {});
    server.world.slow.store(true, Ordering::SeqCst);
    for key in ["a", "b", "c"] {
        server.client().send(7, 1, key.as_bytes());
    }
    eventually("the records are removed", || {
        server.comet.connections() == 0 && server.world.directory.lock().unwrap().is_empty()
    });
}

#[test]
fn a_refused_token_ends_the_connection_without_a_packet() {
    let server = start(|_| {});
    let mut client = server.client();
    client.send(7, 1, b"no");
    assert_eq!(client.try_read(crate::harness::TIMEOUT), None);
    assert_eq!(server.metric("goim_comet_connections_closed_total{reason=\"auth_refused\"}"), 1);
}

#[test]
fn the_newest_connection_of_a_key_wins_on_any_shard() {
    let server = start(|_| {});
    for slow in [false, true] {
        server.world.slow.store(slow, Ordering::SeqCst);
        let mut clients: Vec<_> = (0..8).map(|_| server.session("same")).collect();
        let mut newest = clients.pop().unwrap();
        for old in &mut clients {
            assert!(old.ends());
        }
        server.push(&["same"], 1000, b"for the newest");
        assert_eq!(newest.read().body, b"for the newest");
        assert!(server.world.directory.lock().unwrap().contains_key("same"));
        drop(newest);
        eventually("the record is removed", || server.world.directory.lock().unwrap().is_empty());
    }
}

#[test]
fn a_key_that_reconnects_while_it_disconnects_keeps_its_record() {
    for slow in [false, true] {
        let server = start(|_| {});
        server.world.slow.store(slow, Ordering::SeqCst);
        let mut client = server.session("k");
        for round in 0..100 {
            // The old connection ends at the same moment as the new one begins.
            let old = std::mem::replace(&mut client, server.client());
            let ending = std::thread::spawn(move || drop(old));
            client.authenticate("k");
            ending.join().unwrap();
            eventually("only the new connection is left", || server.comet.connections() == 1);
            eventually("the record exists", || server.world.directory.lock().unwrap().contains_key("k"));
            server.push(&["k"], 1000, b"still here");
            assert_eq!(client.read().body, b"still here", "slow {slow}, round {round}");
        }
    }
}

#[test]
fn counts_are_of_the_room_over_all_shards_and_the_cluster() {
    let server = start(|_| {});
    let room = RoomId::from("live://1");
    let mut clients: Vec<_> = (0..6).map(|index| server.session(&format!("k{index}@live://1"))).collect();
    for client in &mut clients {
        client.send(2, 9, b"");
        assert_eq!(client.read().body, 6_i32.to_be_bytes());
    }
    eventually("the comet reports", || {
        server.world.reports.lock().unwrap().last().is_some_and(|report| report.get(&room) == Some(&6))
    });
    // Forty more on other comets.
    *server.world.totals.lock().unwrap() = Arc::new([(room, 46)].into());
    eventually("the cluster is counted", || {
        clients[0].send(2, 9, b"");
        clients[0].read().body == 46_i32.to_be_bytes()
    });
    clients[0].send(12, 3, b"");
    assert_eq!(clients[0].read().operation, 13);
    clients[0].send(2, 9, b"");
    assert_eq!(clients[0].read().body, [0; 4], "no room, no count");
}

#[test]
fn a_negotiated_client_learns_its_identity_and_why_it_is_closed() {
    let server = start(|_| {});
    let mut client = server.client();
    client.send(7, 1, b"k@live://1!");
    let reply = client.read();
    let reply: serde_json::Value = serde_json::from_slice(&reply.body).unwrap();
    assert_eq!(
        (&reply["key"], &reply["rooms"][0], &reply["heartbeat"]),
        (&"k".into(), &"live://1".into(), &60.into())
    );
    let _newer = server.session("k");
    let notice = client.read();
    assert_eq!(notice.operation, 6);
    let body: serde_json::Value = serde_json::from_slice(&notice.body).unwrap();
    assert_eq!((&body["code"], &body["reconnect"]), (&3500.into(), &false.into()));
    assert!(client.ends());
}

#[test]
fn a_drain_closes_all_sessions_at_a_pace_and_leaves_no_record() {
    let server = start(|config| {
        config.drain.sessions_per_second = std::num::NonZeroU32::new(40).unwrap();
        config.drain.reconnect_delay_max = Duration::from_millis(700);
    });
    let mut clients: Vec<_> = (0..20).map(|index| server.session(&format!("k{index}!"))).collect();
    let began = std::time::Instant::now();
    server.runtime.block_on(server.comet.drain());
    assert!(began.elapsed() >= Duration::from_millis(250), "too fast: {:?}", began.elapsed());
    for client in &mut clients {
        let notice = client.read();
        let body: serde_json::Value = serde_json::from_slice(&notice.body).unwrap();
        assert_eq!((notice.operation, &body["code"]), (6, &3002.into()));
        assert!(body["delay_ms"].as_u64().unwrap() <= 700);
    }
    assert!(server.world.withdrawn.load(Ordering::SeqCst));
    assert!(server.world.directory.lock().unwrap().is_empty());
    assert!(std::net::TcpStream::connect(server.comet.addrs()[ListenerKind::Tcp][0]).is_err());
}

#[test]
fn sessions_are_registered_again_when_the_directory_has_another_generation() {
    let server = start(|config| config.report_interval = Duration::from_millis(10));
    let _client = server.session("k");
    let generation =
        |text: &str| *server.world.generation.lock().unwrap() = Some(Generation(text.to_owned()));
    let reports = || server.world.reports.lock().unwrap().len();
    let entered = || server.world.touched.lock().unwrap().len();
    let reported_again = || {
        let seen = reports();
        eventually("the comet reports twice", || reports() > seen + 2);
    };
    reported_again();
    generation("first");
    reported_again();
    assert_eq!(entered(), 0, "neither the first generation nor a missing one means a loss");
    generation("second");
    eventually("the session is entered again", || entered() == 1);
    reported_again();
    assert_eq!(entered(), 1, "once");
}
