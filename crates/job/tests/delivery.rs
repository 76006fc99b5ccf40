//! What comets receive, in which order, and when a position is done.

mod support;

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::time::Duration;

use goim_job::{Config, InFlightConfig, RoomConfig};
use goim_ports::{AcceptedAt, Operation, PushRecord};
use support::{Mode, Recorder, Rig, pass, settle, to_all, to_key, to_keys, to_room};

#[tokio::test(start_paused = true)]
async fn a_push_to_a_key_reaches_its_comet_unchanged() {
    let (a, b) = (Recorder::new(Mode::Immediate), Recorder::new(Mode::Immediate));
    let mut rig = Rig::new(Config::default(), &[("a", &a), ("b", &b)]);
    rig.append(vec![to_key("b", "k1", "hello")]);
    rig.until("done", |rig| rig.done() == Some(0)).await;
    assert!(a.received().is_empty());
    let got = &b.received()[0];
    assert_eq!((got.to.as_str(), got.bodies.as_slice()), ("key:k1", ["hello".to_owned()].as_slice()));
    assert_eq!((got.operation, got.accepted_at), (Some(Operation(1000)), Some(AcceptedAt(1_000))));
    assert_eq!(got.packet.operation, Operation::RAW);
    assert_eq!(got.packet.body[..], *b"\0\0\0\x15\0\x10\0\x01\0\0\x03\xe8\0\0\0\0hello");
    assert_eq!(rig.metric("job_dispatches_total{result=\"delivered\"}"), 1.0);
    assert_eq!(rig.metric("job_records_read_total{kind=\"keys\"}"), 1.0);
}

/// What the comet accepts immediately is done. The rest uses the lanes, in order per key.
#[tokio::test(start_paused = true)]
async fn an_idle_comet_accepts_what_it_can_on_the_fast_path() {
    for accepted in [0, 1, 5, 9, 10, 20] {
        let comet = Recorder::new(Mode::After(Duration::from_millis(50)));
        comet.accept_now([accepted]);
        let mut rig = Rig::new(Config::default(), &[("a", &comet)]);
        let keys = ["k1", "k2", "k3"];
        rig.append((0..10).map(|n| to_key("a", keys[n % 3], n.to_string())).collect());
        // Later pushes queue behind the calls in flight, though the comet would accept them
        // immediately.
        settle().await;
        comet.accept_now([100]);
        rig.append((10..16).map(|n| to_key("a", keys[n % 3], n.to_string())).collect());
        rig.finish().await;
        assert_eq!(rig.done(), Some(15), "{accepted} accepted");
        assert_eq!(rig.metric("job_dispatches_total{result=\"delivered\"}"), 16.0, "{accepted} accepted");
        assert_eq!(rig.metric("job_in_flight_records"), 0.0);
        let mut by_key: HashMap<String, Vec<usize>> = HashMap::new();
        for got in comet.received() {
            by_key.entry(got.to).or_default().push(got.bodies[0].parse().unwrap());
        }
        for (index, key) in keys.into_iter().enumerate() {
            let expected: Vec<usize> = (index..16).step_by(3).collect();
            assert_eq!(by_key[&format!("key:{key}")], expected, "{accepted} accepted, {key}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_push_to_many_keys_reaches_each_as_often_as_it_is_listed() {
    let comet = Recorder::new(Mode::Immediate);
    let mut rig = Rig::new(Config::default(), &[("a", &comet)]);
    let names: Vec<_> = (0..40).map(|n| format!("k{}", n % 39)).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    rig.append(vec![to_keys("a", &names, "x")]);
    rig.finish().await;
    assert_eq!(rig.done(), Some(0));
    let got = comet.received();
    let mut keys: Vec<_> = got.iter().flat_map(|got| got.to["key:".len()..].split(',')).collect();
    keys.sort_unstable();
    let mut expected = names.clone();
    expected.sort_unstable();
    assert_eq!(keys, expected);
    assert!(got.len() <= Config::default().comet.lanes.get(), "one call for each lane at most");
}

#[tokio::test(start_paused = true)]
async fn messages_without_a_comet_are_skipped_and_done() {
    let mut rig = Rig::new(Config::default(), &[]);
    rig.append(vec![to_key("gone", "k", "1"), to_all(0, "2"), to_all(7, "3"), to_room("r", "4")]);
    rig.until("done", |rig| rig.done() == Some(3)).await;
    assert_eq!(rig.metric("job_dispatches_total{result=\"no_comet\"}"), 4.0);
}

#[tokio::test(start_paused = true)]
async fn a_broadcast_reaches_all_and_shares_its_speed() {
    let comets = [(); 3].map(|()| Recorder::new(Mode::Immediate));
    let mut rig = Rig::new(Config::default(), &[("a", &comets[0]), ("b", &comets[1]), ("c", &comets[2])]);
    rig.append(vec![to_all(0, "fast"), to_all(100, "slow"), to_all(2, "slowest")]);
    rig.finish().await;
    for comet in comets {
        assert_eq!(comet.summary(), ["all: fast", "all: slow", "all: slowest"]);
        let speeds: Vec<_> = comet.received().iter().map(|got| got.speed).collect();
        assert_eq!(speeds, [None, Some(33), Some(1)]);
        assert_eq!(comet.received()[0].operation, Some(Operation(1000)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_lone_room_message_does_not_wait_and_the_next_ones_form_a_batch() {
    let (a, b) = (Recorder::new(Mode::Immediate), Recorder::new(Mode::Immediate));
    let mut rig = Rig::new(Config::default(), &[("a", &a), ("b", &b)]);
    rig.append(vec![to_room("r", "1")]);
    settle().await;
    assert_eq!(a.summary(), ["room:r: 1"]);
    assert!(rig.start.elapsed() < Duration::from_millis(2));
    for body in ["2", "3"] {
        rig.append(vec![to_room("r", body), to_room("other", body)]);
        settle().await;
    }
    assert_eq!(a.summary(), ["room:r: 1", "room:other: 2"], "each room has a separate interval");
    rig.until("done", |rig| rig.done() == Some(4)).await;
    let elapsed = rig.start.elapsed();
    assert!((10..=13).contains(&elapsed.as_millis()), "{elapsed:?}");
    let mut got = a.summary();
    got[2..].sort();
    assert_eq!(got, ["room:r: 1", "room:other: 2", "room:other: 3", "room:r: 2 3"]);
    assert_eq!(b.received().len(), 4);
    assert_eq!(rig.metric("job_room_batch_messages_sum"), 10.0);
    assert_eq!(rig.metric("job_room_batch_messages_count"), 8.0);
}

#[tokio::test(start_paused = true)]
async fn a_busy_room_loses_nothing_and_fills_batches() {
    let comet = Recorder::new(Mode::After(Duration::from_millis(1)));
    let mut rig = Rig::new(Config::default(), &[("a", &comet)]);
    for n in 0..1_000 {
        rig.append(vec![to_room("r", n.to_string())]);
    }
    rig.finish().await;
    let got = comet.received();
    let bodies: Vec<_> = got.iter().flat_map(|got| got.bodies.clone()).collect();
    assert_eq!(bodies, (0..1_000).map(|n| n.to_string()).collect::<Vec<_>>());
    assert!(got.iter().all(|got| got.bodies.len() <= 128));
    assert!(got.len() <= 52, "{} batches", got.len());
    assert_eq!(rig.done(), Some(999));
}

#[tokio::test(start_paused = true)]
async fn messages_of_an_overloaded_room_wait_for_two_calls_at_most() {
    let comet = Recorder::new(Mode::After(Duration::from_millis(100)));
    let mut rig = Rig::new(large_batches(), &[("a", &comet)]);
    for _ in 0..2_000 {
        let now = rig.start.elapsed().as_millis();
        rig.append(vec![to_room("hot", now.to_string())]);
        pass(Duration::from_millis(1)).await;
    }
    rig.finish().await;
    let hot: Vec<_> = comet.received().into_iter().filter(|got| got.to == "room:hot").collect();
    for got in &hot {
        let called = got.at.duration_since(rig.start).as_millis();
        for body in &got.bodies {
            let late = called - body.parse::<u128>().unwrap();
            assert!(late <= 210, "{body} was delivered {late} ms later");
        }
    }
    let messages: usize = hot.iter().map(|got| got.bodies.len()).sum();
    assert_eq!(messages, 2_000);
    assert!(hot.len() <= 25, "{} calls", hot.len());
}

#[tokio::test(start_paused = true)]
async fn nothing_is_read_while_a_full_batch_waits_for_an_earlier_one() {
    let comet = Recorder::new(Mode::After(Duration::from_millis(100)));
    let mut rig = Rig::new(large_batches(), &[("a", &comet)]);
    for n in 0..1_000 {
        rig.append(vec![to_room("hot", n.to_string())]);
    }
    rig.until("the first batch is in flight and the second is full", |rig| rig.unread() == 1_000 - 129).await;
    pass(Duration::from_millis(50)).await;
    assert_eq!(rig.unread(), 1_000 - 129, "1 in flight, 128 gathered");
    rig.finish().await;
    let bodies: Vec<_> = comet.received().iter().flat_map(|got| got.bodies.clone()).collect();
    assert_eq!(bodies, (0..1_000).map(|n| n.to_string()).collect::<Vec<_>>());
    assert_eq!(rig.done(), Some(999));
}

/// Batches of 128 messages.
fn large_batches() -> Config {
    let batch_messages_max = NonZeroUsize::MIN.saturating_add(127);
    Config { room: RoomConfig { batch_messages_max, ..RoomConfig::default() }, ..Config::default() }
}

/// A deterministic random number generator.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

#[tokio::test(start_paused = true)]
async fn order_per_key_and_per_room_survives_comets_of_any_speed() {
    const SEED: u64 = 20_261_122;
    let mut random = Random(SEED);
    let comets = [(); 3].map(|()| Recorder::new(Mode::Immediate));
    for comet in &comets {
        comet.next((0..20_000).map(|_| match random.below(4) {
            0 => Mode::Immediate,
            n => Mode::After(Duration::from_micros(random.below(n * 3_000))),
        }));
    }
    let mut rig = Rig::new(Config::default(), &[("a", &comets[0]), ("b", &comets[1]), ("c", &comets[2])]);
    let mut number = 0_u64;
    for _ in 0..800 {
        let batch: Vec<PushRecord> = (0..random.below(10))
            .map(|_| {
                number += 1;
                let server = ["a", "b", "c"][usize::try_from(random.below(3)).unwrap()];
                let (one, two) = (format!("k{}", random.below(20)), format!("k{}", random.below(20)));
                match random.below(5) {
                    0 | 1 => to_room(&format!("r{}", random.below(20)), number.to_string()),
                    2 => to_keys(server, &[&one, &two], number.to_string()),
                    3 => to_all(0, number.to_string()),
                    _ => to_key(server, &one, number.to_string()),
                }
            })
            .collect();
        if !batch.is_empty() {
            rig.append(batch);
        }
        pass(Duration::from_micros(random.below(2_000))).await;
    }
    rig.finish().await;
    assert_eq!(rig.done(), Some(i64::try_from(number).unwrap() - 1), "seed {SEED}");
    for comet in &comets {
        let mut last: HashMap<String, u64> = HashMap::new();
        for got in comet.received() {
            for receiver in got.to.trim_start_matches("key:").split(',') {
                for body in &got.bodies {
                    let number = body.parse().unwrap();
                    let before = last.insert(receiver.to_owned(), number);
                    // A key that is listed twice gets the message twice.
                    assert!(
                        before.is_none_or(|before| before <= number),
                        "seed {SEED}: {receiver} {before:?} {number}"
                    );
                }
            }
        }
        assert!(last.len() > 40, "seed {SEED}: all kinds of receivers occurred");
    }
}

#[tokio::test(start_paused = true)]
async fn done_waits_for_the_first_open_record() {
    let (slow, fast) = (Recorder::new(Mode::After(Duration::from_secs(1))), Recorder::new(Mode::Immediate));
    let mut rig = Rig::new(Config::default(), &[("slow", &slow), ("fast", &fast)]);
    rig.append(vec![to_key("fast", "k", "0"), to_key("slow", "k", "1"), to_key("fast", "k", "2")]);
    rig.until("delivered", |_| fast.received().len() == 2).await;
    settle().await;
    assert_eq!(rig.done(), Some(0));
    rig.until("done", |rig| rig.done() == Some(2)).await;
    assert!(rig.start.elapsed() >= Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn records_in_flight_are_bounded() {
    let comet = Recorder::new(Mode::After(Duration::from_millis(100)));
    let in_flight = InFlightConfig { records_max: 3.try_into().unwrap(), ..InFlightConfig::default() };
    let mut rig = Rig::new(Config { in_flight, ..Config::default() }, &[("a", &comet)]);
    for n in 0..10 {
        rig.append(vec![to_key("a", "k", n.to_string())]);
    }
    settle().await;
    assert_eq!(rig.unread(), 7);
    assert_eq!(rig.metric("job_in_flight_records"), 3.0);
    rig.finish().await;
    assert_eq!(comet.received().len(), 10);
    assert_eq!(rig.metric("job_in_flight_records"), 0.0);
    assert_eq!(rig.metric("job_in_flight_bytes"), 0.0);
    assert_eq!(rig.metric("job_lane_calls"), 0.0);
}

#[tokio::test(start_paused = true)]
async fn reading_resumes_after_failures() {
    let comet = Recorder::new(Mode::Immediate);
    let mut rig = Rig::new(Config::default(), &[("a", &comet)]);
    for _ in 0..8 {
        rig.fail_reading();
    }
    rig.append(vec![to_key("a", "k", "x")]);
    rig.until("done", |rig| rig.done() == Some(0)).await;
    assert_eq!(rig.metric("job_read_errors_total"), 8.0);
    // 0.1, 0.2, 0.4, 0.8, 1.6, then 3 s each.
    let elapsed = rig.start.elapsed().as_millis();
    assert!((12_000..12_300).contains(&elapsed), "{elapsed} ms");
}

#[tokio::test(start_paused = true)]
async fn a_fenced_job_delivers_what_it_has_and_returns_the_error() {
    let comet = Recorder::new(Mode::After(Duration::from_millis(100)));
    let mut rig = Rig::new(Config::default(), &[("a", &comet)]);
    rig.append(vec![to_key("a", "k", "x"), to_all(0, "y")]);
    rig.fence();
    assert_eq!(rig.fenced().await, Err(goim_ports::ReadError::Fenced("test".to_owned())));
    assert_eq!(comet.received().len(), 2);
    assert_eq!(rig.done(), Some(1));
    assert_eq!(rig.metric("job_read_errors_total"), 0.0, "it does not retry");
}

#[tokio::test(start_paused = true)]
async fn queued_pushes_share_calls_and_stay_in_order() {
    let comet = Recorder::new(Mode::After(Duration::from_millis(10)));
    comet.accept_groups();
    let mut rig = Rig::new(Config::default(), &[("a", &comet)]);
    for n in 0..1000 {
        rig.append(vec![to_key("a", "k", n.to_string())]);
        if n % 100 == 50 {
            rig.append(vec![to_all(0, "between")]);
        }
    }
    rig.until("done", |rig| rig.done() == Some(1009)).await;
    let to_key: Vec<_> = comet.received().into_iter().filter(|got| got.to == "key:k").collect();
    let bodies: Vec<_> = to_key.iter().flat_map(|got| got.bodies.clone()).collect();
    assert_eq!(bodies, (0..1000).map(|n| n.to_string()).collect::<Vec<_>>());
    let sizes = comet.group_sizes();
    assert!(sizes.len() < 20 && sizes.iter().all(|count| *count <= 256), "{sizes:?}");
    assert_eq!(rig.metric("job_dispatches_total{result=\"delivered\"}"), 1010.0);
}

#[tokio::test(start_paused = true)]
async fn a_comet_without_the_grouped_call_is_tried_once_a_minute() {
    let comet = Recorder::new(Mode::After(Duration::from_millis(10)));
    let mut rig = Rig::new(Config::default(), &[("a", &comet)]);
    for n in 0..100 {
        rig.append(vec![to_key("a", "k", n.to_string())]);
    }
    rig.until("done", |rig| rig.done() == Some(99)).await;
    assert_eq!(comet.received().len(), 100);
    assert_eq!(comet.attempts(), 101, "one grouped call, which it does not have");
    // It is replaced by one that has the call.
    comet.accept_groups();
    pass(Duration::from_secs(60)).await;
    for n in 100..200 {
        rig.append(vec![to_key("a", "k", n.to_string())]);
    }
    rig.until("done", |rig| rig.done() == Some(199)).await;
    assert!(!comet.group_sizes().is_empty());
}
