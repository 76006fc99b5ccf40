//! What comets get, in which order, and when the log hears of it.

mod support;

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::time::Duration;

use goim_job::{Config, InFlightConfig, RoomConfig};
use goim_ports::{AcceptedAt, Operation, PushRecord};
use support::{Mode, Recorder, Rig, settle, to_all, to_key, to_keys, to_room};

#[tokio::test(start_paused = true)]
async fn a_push_by_key_goes_to_its_comet_as_it_was_accepted() {
    let (a, b) = (Recorder::new(Mode::AtOnce), Recorder::new(Mode::AtOnce));
    let mut rig = Rig::new(Config::default(), &[("a", &a), ("b", &b)]);
    rig.append(vec![to_key("b", "k1", "hello")]);
    rig.until("done", |rig| rig.done() == Some(0)).await;
    assert!(a.got().is_empty());
    let got = &b.got()[0];
    assert_eq!((got.to.as_str(), got.bodies.as_slice()), ("key:k1", ["hello".to_owned()].as_slice()));
    assert_eq!((got.operation, got.accepted_at), (Some(Operation(1000)), Some(AcceptedAt(1_000))));
    assert_eq!(got.packet.operation, Operation::RAW);
    assert_eq!(got.packet.body[..], *b"\0\0\0\x15\0\x10\0\x01\0\0\x03\xe8\0\0\0\0hello");
    assert_eq!(rig.metric("job_handovers_total{result=\"delivered\"}"), 1.0);
    assert_eq!(rig.metric("job_records_read_total{kind=\"keys\"}"), 1.0);
}

/// What a comet takes on the spot is done; the rest follows through the lanes, each key in its order.
#[tokio::test(start_paused = true)]
async fn a_comet_with_nothing_before_it_takes_at_once_what_it_can() {
    for at_once in [0, 1, 5, 9, 10, 20] {
        let comet = Recorder::new(Mode::After(Duration::from_millis(50)));
        comet.take_at_once([at_once]);
        let mut rig = Rig::new(Config::default(), &[("a", &comet)]);
        let keys = ["k1", "k2", "k3"];
        rig.append((0..10).map(|n| to_key("a", keys[n % 3], n.to_string())).collect());
        // What comes while calls are out goes behind them, though the comet would take it at once.
        settle().await;
        comet.take_at_once([100]);
        rig.append((10..16).map(|n| to_key("a", keys[n % 3], n.to_string())).collect());
        rig.finish().await;
        assert_eq!(rig.done(), Some(15), "{at_once} at once");
        assert_eq!(rig.metric("job_handovers_total{result=\"delivered\"}"), 16.0, "{at_once} at once");
        assert_eq!(rig.metric("job_in_flight_records"), 0.0);
        let mut by_key: HashMap<String, Vec<usize>> = HashMap::new();
        for got in comet.got() {
            by_key.entry(got.to).or_default().push(got.bodies[0].parse().unwrap());
        }
        for (index, key) in keys.into_iter().enumerate() {
            let expected: Vec<usize> = (index..16).step_by(3).collect();
            assert_eq!(by_key[&format!("key:{key}")], expected, "{at_once} at once, {key}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_push_to_many_keys_reaches_each_as_often_as_it_is_named() {
    let comet = Recorder::new(Mode::AtOnce);
    let mut rig = Rig::new(Config::default(), &[("a", &comet)]);
    let names: Vec<_> = (0..40).map(|n| format!("k{}", n % 39)).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    rig.append(vec![to_keys("a", &names, "x")]);
    rig.finish().await;
    assert_eq!(rig.done(), Some(0));
    let got = comet.got();
    let mut keys: Vec<_> = got.iter().flat_map(|got| got.to["key:".len()..].split(',')).collect();
    keys.sort_unstable();
    let mut expected = names.clone();
    expected.sort_unstable();
    assert_eq!(keys, expected);
    assert!(got.len() <= Config::default().comet.lanes.get(), "one call for each lane at most");
}

#[tokio::test(start_paused = true)]
async fn what_nobody_can_get_is_skipped_and_done() {
    let mut rig = Rig::new(Config::default(), &[]);
    rig.append(vec![to_key("gone", "k", "1"), to_all(0, "2"), to_all(7, "3"), to_room("r", "4")]);
    rig.until("done", |rig| rig.done() == Some(3)).await;
    assert_eq!(rig.metric("job_handovers_total{result=\"no_comet\"}"), 4.0);
}

#[tokio::test(start_paused = true)]
async fn a_broadcast_reaches_all_and_shares_its_speed() {
    let comets = [(); 3].map(|()| Recorder::new(Mode::AtOnce));
    let mut rig = Rig::new(Config::default(), &[("a", &comets[0]), ("b", &comets[1]), ("c", &comets[2])]);
    rig.append(vec![to_all(0, "fast"), to_all(100, "slow"), to_all(2, "slowest")]);
    rig.finish().await;
    for comet in comets {
        assert_eq!(comet.summary(), ["all: fast", "all: slow", "all: slowest"]);
        let speeds: Vec<_> = comet.got().iter().map(|got| got.speed).collect();
        assert_eq!(speeds, [None, Some(33), Some(1)]);
        assert_eq!(comet.got()[0].operation, Some(Operation(1000)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_lone_room_message_does_not_wait_and_those_that_follow_travel_together() {
    let (a, b) = (Recorder::new(Mode::AtOnce), Recorder::new(Mode::AtOnce));
    let mut rig = Rig::new(Config::default(), &[("a", &a), ("b", &b)]);
    rig.append(vec![to_room("r", "1")]);
    settle().await;
    assert_eq!(a.summary(), ["room:r: 1"]);
    assert!(rig.start.elapsed() < Duration::from_millis(2));
    for body in ["2", "3"] {
        rig.append(vec![to_room("r", body), to_room("other", body)]);
        settle().await;
    }
    assert_eq!(a.summary(), ["room:r: 1", "room:other: 2"], "each room has its own interval");
    rig.until("done", |rig| rig.done() == Some(4)).await;
    let elapsed = rig.start.elapsed();
    assert!((10..=13).contains(&elapsed.as_millis()), "{elapsed:?}");
    let mut got = a.summary();
    got[2..].sort();
    assert_eq!(got, ["room:r: 1", "room:other: 2", "room:other: 3", "room:r: 2 3"]);
    assert_eq!(b.got().len(), 4);
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
    let got = comet.got();
    let bodies: Vec<_> = got.iter().flat_map(|got| got.bodies.clone()).collect();
    assert_eq!(bodies, (0..1_000).map(|n| n.to_string()).collect::<Vec<_>>());
    assert!(got.iter().all(|got| got.bodies.len() <= 128));
    assert!(got.len() <= 52, "{} batches", got.len());
    assert_eq!(rig.done(), Some(999));
}

#[tokio::test(start_paused = true)]
async fn a_room_that_comets_cannot_keep_up_with_is_late_by_two_calls_at_most() {
    let comet = Recorder::new(Mode::After(Duration::from_millis(100)));
    let mut rig = Rig::new(large_batches(), &[("a", &comet)]);
    for _ in 0..2_000 {
        let now = rig.start.elapsed().as_millis();
        rig.append(vec![to_room("hot", now.to_string())]);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    rig.finish().await;
    let hot: Vec<_> = comet.got().into_iter().filter(|got| got.to == "room:hot").collect();
    for got in &hot {
        let called = got.at.duration_since(rig.start).as_millis();
        for body in &got.bodies {
            let late = called - body.parse::<u128>().unwrap();
            assert!(late <= 210, "{body} was handed over {late} ms later");
        }
    }
    let messages: usize = hot.iter().map(|got| got.bodies.len()).sum();
    assert_eq!(messages, 2_000);
    assert!(hot.len() <= 25, "{} calls", hot.len());
}

#[tokio::test(start_paused = true)]
async fn nothing_is_read_while_a_full_batch_waits_for_the_one_before() {
    let comet = Recorder::new(Mode::After(Duration::from_millis(100)));
    let mut rig = Rig::new(large_batches(), &[("a", &comet)]);
    for n in 0..1_000 {
        rig.append(vec![to_room("hot", n.to_string())]);
    }
    rig.until("the first batch is out and the second is full", |rig| rig.unread() == 1_000 - 129).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(rig.unread(), 1_000 - 129, "one out, 128 gathered");
    rig.finish().await;
    let bodies: Vec<_> = comet.got().iter().flat_map(|got| got.bodies.clone()).collect();
    assert_eq!(bodies, (0..1_000).map(|n| n.to_string()).collect::<Vec<_>>());
    assert_eq!(rig.done(), Some(999));
}

/// Batches of 128 messages.
fn large_batches() -> Config {
    let batch_messages_max = NonZeroUsize::MIN.saturating_add(127);
    Config { room: RoomConfig { batch_messages_max, ..RoomConfig::default() }, ..Config::default() }
}

/// Numbers that look random and are the same each time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

#[tokio::test(start_paused = true)]
async fn order_per_key_and_per_room_survives_comets_of_any_speed() {
    const SEED: u64 = 20_261_122;
    let mut dice = Dice(SEED);
    let comets = [(); 3].map(|()| Recorder::new(Mode::AtOnce));
    for comet in &comets {
        comet.next((0..20_000).map(|_| match dice.below(4) {
            0 => Mode::AtOnce,
            n => Mode::After(Duration::from_micros(dice.below(n * 3_000))),
        }));
    }
    let mut rig = Rig::new(Config::default(), &[("a", &comets[0]), ("b", &comets[1]), ("c", &comets[2])]);
    let mut number = 0_u64;
    for _ in 0..800 {
        let batch: Vec<PushRecord> = (0..dice.below(10))
            .map(|_| {
                number += 1;
                let server = ["a", "b", "c"][usize::try_from(dice.below(3)).unwrap()];
                let (one, two) = (format!("k{}", dice.below(20)), format!("k{}", dice.below(20)));
                match dice.below(5) {
                    0 | 1 => to_room(&format!("r{}", dice.below(20)), number.to_string()),
                    2 => to_keys(server, &[&one, &two], number.to_string()),
                    3 => to_all(0, number.to_string()),
                    _ => to_key(server, &one, number.to_string()),
                }
            })
            .collect();
        if !batch.is_empty() {
            rig.append(batch);
        }
        tokio::time::sleep(Duration::from_micros(dice.below(2_000))).await;
    }
    rig.finish().await;
    assert_eq!(rig.done(), Some(i64::try_from(number).unwrap() - 1), "seed {SEED}");
    for comet in &comets {
        let mut last: HashMap<String, u64> = HashMap::new();
        for got in comet.got() {
            for receiver in got.to.trim_start_matches("key:").split(',') {
                for body in &got.bodies {
                    let number = body.parse().unwrap();
                    let before = last.insert(receiver.to_owned(), number);
                    // A key that is named twice gets the message twice.
                    assert!(
                        before.is_none_or(|before| before <= number),
                        "seed {SEED}: {receiver} {before:?} {number}"
                    );
                }
            }
        }
        assert!(last.len() > 40, "seed {SEED}: all kinds of receivers were there");
    }
}

#[tokio::test(start_paused = true)]
async fn done_waits_for_the_first_that_is_not() {
    let (slow, fast) = (Recorder::new(Mode::After(Duration::from_secs(1))), Recorder::new(Mode::AtOnce));
    let mut rig = Rig::new(Config::default(), &[("slow", &slow), ("fast", &fast)]);
    rig.append(vec![to_key("fast", "k", "0"), to_key("slow", "k", "1"), to_key("fast", "k", "2")]);
    rig.until("handed over", |_| fast.got().len() == 2).await;
    settle().await;
    assert_eq!(rig.done(), Some(0));
    rig.until("done", |rig| rig.done() == Some(2)).await;
    assert!(rig.start.elapsed() >= Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn what_is_in_flight_is_bounded() {
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
    assert_eq!(comet.got().len(), 10);
    assert_eq!(rig.metric("job_in_flight_records"), 0.0);
    assert_eq!(rig.metric("job_in_flight_bytes"), 0.0);
    assert_eq!(rig.metric("job_lane_calls"), 0.0);
}

#[tokio::test(start_paused = true)]
async fn reading_goes_on_after_failures() {
    let comet = Recorder::new(Mode::AtOnce);
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
async fn a_job_that_is_shut_out_hands_over_what_it_has_and_says_why_it_ends() {
    let comet = Recorder::new(Mode::After(Duration::from_millis(100)));
    let mut rig = Rig::new(Config::default(), &[("a", &comet)]);
    rig.append(vec![to_key("a", "k", "x"), to_all(0, "y")]);
    rig.shut_out();
    assert_eq!(rig.shut_out_ended().await, Err(goim_ports::ReadError::Fenced("test".to_owned())));
    assert_eq!(comet.got().len(), 2);
    assert_eq!(rig.done(), Some(1));
    assert_eq!(rig.metric("job_read_errors_total"), 0.0, "it does not try again");
}

#[tokio::test(start_paused = true)]
async fn pushes_that_wait_behind_each_other_travel_together_and_in_order() {
    let comet = Recorder::new(Mode::After(Duration::from_millis(10)));
    comet.takes_many();
    let mut rig = Rig::new(Config::default(), &[("a", &comet)]);
    for n in 0..1000 {
        rig.append(vec![to_key("a", "k", n.to_string())]);
        if n % 100 == 50 {
            rig.append(vec![to_all(0, "between")]);
        }
    }
    rig.until("done", |rig| rig.done() == Some(1009)).await;
    let to_key: Vec<_> = comet.got().into_iter().filter(|got| got.to == "key:k").collect();
    let bodies: Vec<_> = to_key.iter().flat_map(|got| got.bodies.clone()).collect();
    assert_eq!(bodies, (0..1000).map(|n| n.to_string()).collect::<Vec<_>>());
    let many = comet.many();
    assert!(many.len() < 20 && many.iter().all(|count| *count <= 256), "{many:?}");
    assert_eq!(rig.metric("job_handovers_total{result=\"delivered\"}"), 1010.0);
}

#[tokio::test(start_paused = true)]
async fn a_comet_that_takes_them_one_by_one_is_asked_once_a_minute() {
    let comet = Recorder::new(Mode::After(Duration::from_millis(10)));
    let mut rig = Rig::new(Config::default(), &[("a", &comet)]);
    for n in 0..100 {
        rig.append(vec![to_key("a", "k", n.to_string())]);
    }
    rig.until("done", |rig| rig.done() == Some(99)).await;
    assert_eq!(comet.got().len(), 100);
    assert_eq!(comet.asked(), 101, "one call for many, which it did not know");
    // It is replaced by one that knows.
    comet.takes_many();
    tokio::time::sleep(Duration::from_secs(60)).await;
    for n in 100..200 {
        rig.append(vec![to_key("a", "k", n.to_string())]);
    }
    rig.until("done", |rig| rig.done() == Some(199)).await;
    assert!(!comet.many().is_empty());
}
