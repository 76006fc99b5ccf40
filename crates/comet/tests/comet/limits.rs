//! Limits on a running comet: connections, addresses, rates, slow consumers, paced broadcasts.

use std::io::Write;
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::harness::{Client, eventually, start};
use goim_comet::{ListenerKind, SlowConsumerPolicy};

#[test]
fn connections_in_total_and_per_address() {
    let server = start(|config| {
        config.limits.connections_max = 3;
        config.limits.connections_per_address_max = NonZeroU32::new(2);
    });
    let addr = server.comet.addrs()[ListenerKind::Tcp][0];
    let from = |source: [u8; 4]| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&std::net::SocketAddr::from((source, 0)).into()).unwrap();
        socket.connect(&addr.into()).unwrap();
        std::net::TcpStream::from(socket)
    };
    let mut first = server.session("a");
    let _second = server.session("b");
    assert!(server.client().ends(), "a third connection of one address");
    let _other = from([127, 0, 0, 2]);
    eventually("three connections are held", || server.comet.connections() == 3);
    let one_too_many = from([127, 0, 0, 3]);
    one_too_many.set_read_timeout(Some(crate::harness::TIMEOUT)).unwrap();
    assert!(matches!(std::io::Read::read(&mut &one_too_many, &mut [0]), Ok(0) | Err(_)));
    // Open connections are not disturbed.
    first.send(2, 1, b"");
    assert_eq!(first.read().operation, 3);
    assert_eq!(server.metric("goim_comet_connections_closed_total{reason=\"too_many_from_address\"}"), 1);
    assert_eq!(server.metric("goim_comet_connections_closed_total{reason=\"too_many_connections\"}"), 1);
}

#[test]
fn a_connection_without_a_handshake_is_closed() {
    let server = start(|config| config.limits.handshake_timeout = Duration::from_millis(300));
    let mut tcp = server.client();
    let mut websocket = Client::connect(server.comet.addrs()[ListenerKind::Websocket][0]);
    websocket.socket.write_all(b"GET /sub HTTP/1.1\r\nHost:").unwrap();
    let began = Instant::now();
    assert!(tcp.ends() && websocket.ends());
    assert!(began.elapsed() >= Duration::from_millis(290), "{:?}", began.elapsed());
    assert_eq!(server.metric("goim_comet_connections_closed_total{reason=\"handshake_timeout\"}"), 2);
}

#[test]
fn an_endless_request_head_is_refused() {
    let server = start(|_| {});
    let mut client = Client::connect(server.comet.addrs()[ListenerKind::Websocket][0]);
    // The server may end the connection before everything is written.
    let _ = client.socket.write_all(format!("GET /sub HTTP/1.1\r\nX: {}", "y".repeat(20_000)).as_bytes());
    assert!(client.ends());
    eventually("it is counted", || {
        server.metric("goim_comet_connections_closed_total{reason=\"bad_upgrade\"}") == 1
    });
}

#[test]
fn packets_above_the_rate_are_read_later_and_all_answered() {
    let server = start(|config| {
        config.limits.packets_per_second_max = NonZeroU32::new(100);
        config.limits.packets_burst = NonZeroU32::new(10).unwrap();
    });
    let mut client = server.session("k");
    let began = Instant::now();
    let all: Vec<u8> = (0..60).flat_map(|sequence| crate::harness::packet(2, sequence, b"")).collect();
    client.socket.write_all(&all).unwrap();
    for sequence in 0..60 {
        assert_eq!(client.read().sequence, sequence);
    }
    assert!(began.elapsed() >= Duration::from_millis(450), "60 packets at 100/s took {:?}", began.elapsed());
}

#[test]
fn slow_consumers_by_policy() {
    for (policy, operation, counter) in [
        (SlowConsumerPolicy::DropNewest, 1000, "slow_consumer_newest"),
        (SlowConsumerPolicy::DropOldest, 1001, "slow_consumer_oldest"),
    ] {
        let server = start(|config| {
            config.send.queue_bytes_max = 64 * 1024;
            config.send.slow_consumer = vec![(1001..=1001, SlowConsumerPolicy::DropOldest)];
        });
        let mut client = server.session("slow");
        let mut sent = 0_u32;
        let dropped = || server.metric(&format!("goim_comet_pushes_dropped_total{{reason=\"{counter}\"}}"));
        while dropped() < 20 {
            let mut body = vec![0; 32 * 1024];
            body[..4].copy_from_slice(&sent.to_be_bytes());
            server.push(&["slow"], operation, &body);
            sent += 1;
            assert!(sent < 10_000, "nothing is ever dropped");
        }
        let mut seen = Vec::new();
        while let Some(got) = client.try_read(Duration::from_millis(500)) {
            seen.push(u32::from_be_bytes(got.body[..4].try_into().unwrap()));
        }
        assert!(seen.is_sorted(), "{policy:?}: what is queued stays in order: {seen:?}");
        assert_eq!(seen.len() as u64 + dropped(), u64::from(sent), "{policy:?}: queued and dropped are all");
        let has_last = seen.last() == Some(&(sent - 1));
        assert_eq!(has_last, policy == SlowConsumerPolicy::DropOldest, "{policy:?}: {seen:?} of {sent}");
    }
}

#[test]
fn slow_consumers_can_be_closed() {
    let server = start(|config| {
        config.send.queue_bytes_max = 64 * 1024;
        config.send.slow_consumer_default = SlowConsumerPolicy::Close;
    });
    let mut other = server.session("other");
    let _slow = server.session("slow");
    let mut sent = 0;
    while server.comet.connections() == 2 {
        server.push(&["slow"], 1000, &vec![0; 32 * 1024]);
        sent += 1;
        assert!(sent < 10_000, "the slow session is never closed");
    }
    server.push(&["other"], 1000, b"undisturbed");
    assert_eq!(other.read().body, b"undisturbed");
    assert_eq!(server.metric("goim_comet_connections_closed_total{reason=\"slow_consumer\"}"), 1);
}

#[test]
fn a_fast_reader_loses_nothing_when_a_turn_exceeds_its_queue() {
    // A burst is larger than the queue, and smaller than queue and socket together: it must be
    // flushed while it is received.
    const BURST: u8 = 12;
    let server = start(|config| config.send.queue_bytes_max = 64 * 1024);
    let mut client = server.session("quick");
    for first in (0..240).step_by(usize::from(BURST)) {
        for number in first..first + BURST {
            server.push(&["quick"], 1000, &vec![number; 8 * 1024]);
        }
        let seen: Vec<u8> = (0..BURST).map(|_| client.read().body[0]).collect();
        assert_eq!(seen, (first..first + BURST).collect::<Vec<u8>>());
    }
}

#[test]
fn a_paced_broadcast_is_spread_over_time_and_reaches_all_once() {
    let server = start(|_| {});
    let mut clients: Vec<_> = (0..30).map(|index| server.session(&format!("k{index}"))).collect();
    let began = Instant::now();
    server.broadcast(b"slowly", Some(60));
    let mut arrivals = Vec::new();
    for client in &mut clients {
        assert_eq!(client.read().body, b"slowly");
        arrivals.push(began.elapsed());
    }
    let last = arrivals.iter().max().unwrap();
    assert!(*last >= Duration::from_millis(150), "30 sessions at 60/s were reached within {last:?}");
    assert_eq!(server.metric("goim_comet_packets_total{operations=\"backend\",direction=\"out\"}"), 30);
}

#[test]
fn a_strict_listener_reports_what_was_wrong_with_a_frame() {
    let server = start(|config| config.listen.websocket_lenient = false);
    let mut client = Client::connect(server.comet.addrs()[ListenerKind::Websocket][0]);
    client
        .socket
        .write_all(
            b"GET /sub HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
              Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n\x82\x00",
        )
        .unwrap();
    let mut all = Vec::new();
    client.socket.set_read_timeout(Some(crate::harness::TIMEOUT)).unwrap();
    std::io::Read::read_to_end(&mut client.socket, &mut all).unwrap();
    assert!(all.ends_with(&[0x88, 0x02, 0x03, 0xea]), "close code 1002 expected: {all:x?}");
}

#[test]
fn a_room_message_is_sent_to_the_room_whatever_the_subscription() {
    let server = start(|_| {});
    let mut inside: Vec<_> = (0..4).map(|index| server.session(&format!("in{index}@r"))).collect();
    let mut outside = server.session("out@r2");
    for number in 0..100_u8 {
        server.push_room("r", &[number]);
    }
    for client in &mut inside {
        let bodies: Vec<u8> = (0..100).map(|_| client.read().body[0]).collect();
        assert_eq!(bodies, (0..100).collect::<Vec<u8>>());
    }
    outside.send(2, 1, b"");
    assert_eq!(outside.read().operation, 3, "nothing else was received");
}

#[test]
fn histograms_have_an_unbounded_bucket() {
    let server = start(|_| {});
    let text = server.metrics();
    assert!(text.contains("goim_comet_push_latency_seconds_bucket{le=\"+Inf\",shard=\"0\"}"), "{text}");
}

#[test]
fn a_batch_for_a_room_counts_as_the_operation_that_it_carries() {
    let server = start(|config| {
        config.send.queue_bytes_max = 64 * 1024;
        config.send.slow_consumer = vec![(1001..=1001, SlowConsumerPolicy::Close)];
    });
    let _slow = server.session("slow@r");
    let mut sent = 0;
    while server.comet.connections() == 1 {
        let batch = crate::harness::packet(1001, 0, &vec![0; 32 * 1024]);
        server.push_room_packet("r", 9, &batch);
        sent += 1;
        assert!(sent < 10_000, "the policy of operation 1001 is never applied");
    }
    assert_eq!(server.metric("goim_comet_pushes_dropped_total{reason=\"slow_consumer_closed\"}"), 1);
    assert!(server.metric("goim_comet_packets_total{operations=\"backend\",direction=\"out\"}") > 0);
}

#[test]
fn a_publisher_waits_for_few_slow_readers_and_nothing_is_lost() {
    const SESSIONS: usize = 4;
    const PUSHES: u32 = 400;
    let server = start(|config| {
        config.shards = Some(NonZeroUsize::MIN);
        config.send.queue_bytes_max = 256 * 1024;
        // What may be in flight, for one of them or all, is half of a queue.
        config.send.queued_sends_max = NonZeroU32::new(128).unwrap();
    });
    let keys: Vec<String> = (0..SESSIONS).map(|number| format!("k{number}")).collect();
    let clients: Vec<Client> = keys.iter().map(|key| server.session(key)).collect();
    let published = AtomicU32::new(0);
    std::thread::scope(|scope| {
        let reads = clients.into_iter().map(|mut client| {
            let (server, published) = (&server, &published);
            scope.spawn(move || {
                let waits = || server.metric("goim_comet_sends_pending") >= 120;
                for number in 0..PUSHES {
                    // At a third of the publisher's pace, unless the publisher must wait.
                    let due = (number * 3).min(PUSHES);
                    eventually("it is time", || published.load(Ordering::Acquire) >= due || waits());
                    assert_eq!(client.read().body[..4], number.to_be_bytes());
                }
            })
        });
        let reads: Vec<_> = reads.collect();
        for number in 0..PUSHES {
            let mut body = vec![0; 8 * 1024];
            body[..4].copy_from_slice(&number.to_be_bytes());
            keys.iter().for_each(|key| server.push(&[key.as_str()], 1000, &body));
            published.store(number + 1, Ordering::Release);
        }
        reads.into_iter().for_each(|read| read.join().unwrap());
    });
    assert_eq!(server.metric("goim_comet_pushes_dropped_total{reason=\"slow_consumer_newest\"}"), 0);
}
