//! Comets that hang, fail, go and come back, and a job that stops.

mod support;

use std::time::Duration;

use goim_job::{Config, InFlightConfig};
use goim_ports::CometError;
use support::{Mode, Recorder, Rig, settle, to_all, to_key, to_room};

fn unavailable() -> Mode {
    Mode::Fails(CometError::Unavailable("test".to_owned()))
}

/// Three tries of 5 s with a pause of 0.2 s before the second and the third.
const GIVEN_UP_AFTER: Duration = Duration::from_millis(15_400);

#[tokio::test(start_paused = true)]
async fn a_hung_comet_delays_nobody_else() {
    let (hung, well) = (Recorder::new(Mode::Never), Recorder::new(Mode::AtOnce));
    let mut rig = Rig::new(Config::default(), &[("hung", &hung), ("well", &well)]);
    for n in 0..500 {
        let n = n.to_string();
        rig.append(vec![to_key("hung", "k", n.as_str()), to_key("well", "k", n.as_str())]);
        rig.append(vec![to_room(&format!("r{n}"), n.as_str()), to_all(0, n.as_str())]);
    }
    settle().await;
    assert_eq!(well.got().len(), 1_500);
    assert!(rig.start.elapsed() < Duration::from_millis(2));
    assert_eq!(rig.done(), None, "nothing is done before the first record is");

    rig.until("given up", |rig| rig.done() == Some(1_999)).await;
    let elapsed = rig.start.elapsed();
    assert!((GIVEN_UP_AFTER..GIVEN_UP_AFTER * 11 / 10).contains(&elapsed), "{elapsed:?}");
    assert_eq!(rig.metric("job_handovers_total{result=\"undeliverable\"}"), 1_500.0);
    assert_eq!(rig.metric("job_comets_down"), 1.0);
    assert!(hung.got().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_comet_that_was_given_up_gets_messages_again_when_it_answers() {
    let comet = Recorder::new(Mode::Never);
    let mut rig = Rig::new(Config::default(), &[("a", &comet)]);
    rig.append(vec![to_key("a", "k", "0")]);
    rig.until("given up", |rig| rig.done() == Some(0)).await;
    let asked = comet.asked();
    rig.append(vec![to_key("a", "k", "1")]);
    settle().await;
    assert_eq!((rig.done(), comet.asked()), (Some(1), asked), "given up at once");
    comet.set(Mode::AtOnce);
    rig.until("back", |rig| rig.metric("job_comets_down") == 0.0).await;
    rig.until("told", |_| comet.got().len() == 1).await;
    rig.append(vec![to_key("a", "k", "2")]);
    rig.until("done", |rig| rig.done() == Some(2)).await;
    assert_eq!(comet.summary(), ["all: ", "key:k: 2"]);
}

fn bodies(comet: &Recorder) -> Vec<String> {
    comet.got().iter().flat_map(|got| got.bodies.clone()).collect()
}

fn numbers(count: usize) -> Vec<String> {
    (0..count).map(|n| n.to_string()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_comet_that_answers_late_is_waited_for() {
    let (slow, well) = (Recorder::new(Mode::After(Duration::from_millis(700))), Recorder::new(Mode::AtOnce));
    let in_flight = InFlightConfig { records_max: 5.try_into().unwrap(), ..InFlightConfig::default() };
    let mut rig = Rig::new(Config { in_flight, ..Config::default() }, &[("slow", &slow), ("well", &well)]);
    for n in numbers(20) {
        rig.append(vec![to_room("r", n)]);
    }
    rig.until("handed over", |rig| rig.done() == Some(19)).await;
    assert_eq!((bodies(&slow), bodies(&well)), (numbers(20), numbers(20)));
    assert_eq!(rig.metric("job_handovers_total{result=\"undeliverable\"}"), 0.0);
}

#[tokio::test(start_paused = true)]
async fn a_comet_that_hangs_does_not_fill_what_may_be_in_flight_for_long() {
    let (hung, well) = (Recorder::new(Mode::Never), Recorder::new(Mode::AtOnce));
    let in_flight = InFlightConfig { records_max: 5.try_into().unwrap(), ..InFlightConfig::default() };
    let mut rig = Rig::new(Config { in_flight, ..Config::default() }, &[("hung", &hung), ("well", &well)]);
    for n in numbers(50) {
        rig.append(vec![to_key("hung", "k", n.as_str()), to_key("well", "k", n)]);
    }
    rig.until("handed over", |_| well.got().len() == 50).await;
    assert!(rig.start.elapsed() < Duration::from_millis(1200), "{:?}", rig.start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_rooms_messages_never_wait_for_a_comet_that_hangs() {
    let (hung, well) = (Recorder::new(Mode::Never), Recorder::new(Mode::AtOnce));
    let mut rig = Rig::new(Config::default(), &[("hung", &hung), ("well", &well)]);
    let mut waits = Vec::new();
    for (count, n) in numbers(100).into_iter().enumerate() {
        let before = rig.start.elapsed();
        rig.append(vec![to_room("r", n)]);
        rig.until("arrived", |_| bodies(&well).len() == count + 1).await;
        waits.push((rig.start.elapsed() - before).as_millis());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(waits.iter().all(|wait| *wait <= 15), "{waits:?}");
    assert_eq!(rig.metric("job_comets_down"), 0.0);
}

#[tokio::test(start_paused = true)]
async fn a_slow_comet_gets_everything_in_order_and_delays_nobody() {
    let (slow, well) = (Recorder::new(Mode::After(Duration::from_secs(4))), Recorder::new(Mode::AtOnce));
    let mut rig = Rig::new(Config::default(), &[("slow", &slow), ("well", &well)]);
    for n in 0..50 {
        rig.append(vec![to_key("slow", "k", n.to_string()), to_key("well", "k", n.to_string())]);
    }
    settle().await;
    assert_eq!(well.got().len(), 50);
    rig.finish().await;
    assert!(slow.got().len() < 50, "the drain has a deadline");
    assert!(slow.got().len() >= 7);
    let expected: Vec<_> = (0..50).map(|n| format!("key:k: {n}")).collect();
    assert!(expected.starts_with(&slow.summary()), "{:?}", slow.summary());
    // Record 2n is the slow comet's, record 2n+1 the other's.
    assert_eq!(rig.done(), Some(i64::try_from(slow.got().len()).unwrap() * 2 - 1));
}

#[tokio::test(start_paused = true)]
async fn what_fails_is_tried_again_in_order() {
    let comet = Recorder::new(Mode::AtOnce);
    comet.next([unavailable(), Mode::Fails(CometError::Timeout)]);
    let mut rig = Rig::new(Config::default(), &[("a", &comet)]);
    rig.append(vec![to_key("a", "k", "1"), to_key("a", "k", "2")]);
    rig.finish().await;
    assert_eq!(comet.summary(), ["key:k: 1", "key:k: 2"]);
    assert_eq!(rig.metric("job_retries_total"), 2.0);
    assert_eq!(rig.metric("job_handovers_total{result=\"delivered\"}"), 2.0);
}

#[tokio::test(start_paused = true)]
async fn a_comet_that_leaves_is_not_tried_again() {
    let comet = Recorder::new(unavailable());
    let mut rig = Rig::new(Config::default(), &[("a", &comet)]);
    rig.append(vec![to_key("a", "k", "1")]);
    settle().await;
    rig.pool.remove("a");
    rig.until("done", |rig| rig.done() == Some(0)).await;
    assert_eq!(comet.asked(), 1);
    assert_eq!(rig.metric("job_handovers_total{result=\"no_comet\"}"), 1.0);
}

#[tokio::test(start_paused = true)]
async fn the_next_try_goes_to_the_comet_that_has_the_name_then() {
    let (old, new) = (Recorder::new(unavailable()), Recorder::new(Mode::AtOnce));
    let mut rig = Rig::new(Config::default(), &[("a", &old)]);
    rig.append(vec![to_key("a", "k", "1")]);
    settle().await;
    rig.pool.insert("a", &new);
    rig.until("done", |rig| rig.done() == Some(0)).await;
    assert_eq!((old.asked(), new.summary()), (1, vec!["key:k: 1".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn a_refused_push_is_not_tried_again() {
    let comet = Recorder::new(Mode::Fails(CometError::Invalid("no sense")));
    let mut rig = Rig::new(Config::default(), &[("a", &comet)]);
    rig.append(vec![to_key("a", "k", "1")]);
    rig.until("done", |rig| rig.done() == Some(0)).await;
    assert_eq!(comet.asked(), 1);
    assert_eq!(rig.metric("job_handovers_total{result=\"refused\"}"), 1.0);
}

#[tokio::test(start_paused = true)]
async fn a_busy_comet_is_waited_for_but_not_for_ever() {
    let busy = Mode::Fails(CometError::Busy { limit: 64 });
    let comet = Recorder::new(Mode::AtOnce);
    comet.next(vec![busy.clone(); 100]);
    let mut rig = Rig::new(Config::default(), &[("a", &comet)]);
    rig.append(vec![to_all(5, "1"), to_key("a", "k", "2")]);
    rig.until("taken", |_| comet.got().len() == 2).await;
    assert_eq!(comet.asked(), 102);
    comet.set(busy);
    rig.append(vec![to_all(5, "3")]);
    rig.until("given up", |rig| rig.done() == Some(2)).await;
    assert_eq!(rig.metric("job_handovers_total{result=\"undeliverable\"}"), 1.0);
    assert_eq!(rig.metric("job_comets_down"), 0.0, "busy is not down");
}

#[tokio::test(start_paused = true)]
async fn a_comet_that_panics_harms_nobody_else() {
    let (broken, well) = (Recorder::new(Mode::AtOnce), Recorder::new(Mode::AtOnce));
    broken.next([Mode::Panics]);
    let mut rig = Rig::new(Config::default(), &[("broken", &broken), ("well", &well)]);
    rig.append(vec![to_key("broken", "k", "0"), to_key("well", "k", "1")]);
    rig.until("done", |rig| rig.done() == Some(1)).await;
    rig.append(vec![to_key("broken", "k", "2"), to_key("well", "k", "3")]);
    rig.until("done", |rig| rig.done() == Some(3)).await;
    assert_eq!(broken.summary(), ["key:k: 2"]);
    assert_eq!(rig.metric("job_worker_panics_total"), 1.0);
    assert_eq!(rig.metric("job_lane_calls"), 0.0);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_hands_over_what_was_read() {
    let comet = Recorder::new(Mode::After(Duration::from_millis(300)));
    let mut rig = Rig::new(Config::default(), &[("a", &comet)]);
    for n in 0..20 {
        rig.append(vec![
            to_key("a", "k", n.to_string()),
            to_room("r", n.to_string()),
            to_all(0, n.to_string()),
        ]);
    }
    settle().await;
    assert_eq!(rig.unread(), 0);
    rig.shut_down();
    rig.ended().await;
    assert_eq!(rig.done(), Some(59));
    for receiver in ["key:k", "room:r", "all"] {
        let got = comet.got();
        let bodies: Vec<_> =
            got.iter().filter(|got| got.to == receiver).flat_map(|got| got.bodies.clone()).collect();
        assert_eq!(bodies, (0..20).map(|n| n.to_string()).collect::<Vec<_>>(), "{receiver}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_does_not_read_on() {
    let comet = Recorder::new(Mode::AtOnce);
    let mut rig = Rig::new(Config::default(), &[("a", &comet)]);
    settle().await;
    rig.shut_down();
    rig.append(vec![to_key("a", "k", "late")]);
    rig.ended().await;
    assert_eq!((comet.got().len(), rig.unread(), rig.done()), (0, 1, None));
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_ends_in_time_and_leaves_undone_what_was_not_handed_over() {
    let (hung, well) = (Recorder::new(Mode::Never), Recorder::new(Mode::AtOnce));
    let config = Config { drain_timeout: Duration::from_secs(2), ..Config::default() };
    let mut rig = Rig::new(config, &[("hung", &hung), ("well", &well)]);
    rig.append(vec![to_key("well", "k", "0"), to_key("hung", "k", "1"), to_key("well", "k", "2")]);
    settle().await;
    rig.shut_down();
    rig.ended().await;
    let elapsed = rig.start.elapsed();
    assert!((2_000..2_100).contains(&elapsed.as_millis()), "{elapsed:?}");
    assert_eq!((well.got().len(), rig.done()), (2, Some(0)));
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_log_is_the_end_of_the_job() {
    let comet = Recorder::new(Mode::AtOnce);
    let mut rig = Rig::new(Config::default(), &[("a", &comet)]);
    rig.append(vec![to_room("r", "1"), to_room("r", "2")]);
    assert!(rig.running());
    rig.finish().await;
    assert_eq!((comet.summary(), rig.done()), (vec!["room:r: 1 2".to_owned()], Some(1)));
}

#[tokio::test(start_paused = true)]
async fn a_comet_that_answers_again_is_told_when_the_last_message_for_it_was_dropped() {
    let comet = Recorder::new(Mode::Never);
    comet.hears_of_losses();
    let mut rig = Rig::new(Config::default(), &[("a", &comet)]);
    rig.append(vec![to_key("a", "k", "0")]);
    rig.until("given up", |rig| rig.done() == Some(0)).await;
    tokio::time::sleep(Duration::from_secs(7)).await;
    rig.append(vec![to_room("r", "1")]);
    rig.until("given up at once", |rig| rig.done() == Some(1)).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(comet.missed().is_empty());
    comet.set(Mode::AtOnce);
    rig.until("back", |rig| rig.metric("job_comets_down") == 0.0).await;
    rig.until("told", |_| !comet.missed().is_empty()).await;
    // A probe waits for its deadline, then for the next.
    let [ago] = comet.missed()[..] else { panic!("once: {:?}", comet.missed()) };
    assert!((30..37).contains(&ago.as_secs()), "{ago:?}");
    assert_eq!(rig.metric("job_losses_told_total"), 1.0);
    rig.append(vec![to_key("a", "k", "2")]);
    rig.until("done", |rig| rig.done() == Some(2)).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!((comet.missed().len(), comet.summary()), (1, vec!["key:k: 2".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn a_comet_that_comes_back_to_the_list_is_told_what_it_has_missed() {
    for (missed, record) in [
        (true, Some(to_room("r", "x"))),
        (true, Some(to_all(0, "x"))),
        (true, Some(to_key("a", "k", "x"))),
        (false, Some(to_key("b", "k", "x"))),
        (false, None),
    ] {
        let (gone, stays) = (Recorder::new(Mode::AtOnce), Recorder::new(Mode::AtOnce));
        gone.hears_of_losses();
        stays.hears_of_losses();
        let mut rig = Rig::new(Config::default(), &[("a", &gone), ("b", &stays)]);
        rig.append(vec![to_room("r", "0"), to_all(0, "0")]);
        rig.until("done", |rig| rig.done() == Some(1)).await;
        rig.pool.remove("a");
        tokio::time::sleep(Duration::from_secs(1)).await;
        let what = format!("{record:?}");
        rig.append(record.into_iter().collect());
        tokio::time::sleep(Duration::from_secs(20)).await;
        rig.pool.insert("a", &gone);
        tokio::time::sleep(Duration::from_secs(5)).await;
        let told: Vec<u64> = gone.missed().iter().map(Duration::as_secs).collect();
        assert_eq!(told, if missed { vec![20] } else { vec![] }, "{what}");
        assert!(stays.missed().is_empty(), "{what}");
        rig.append(vec![to_room("r", "1")]);
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(gone.missed().len(), told.len(), "once: {what}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_comet_that_does_not_hear_of_its_loss_is_told_again() {
    let comet = Recorder::new(Mode::AtOnce);
    comet.hears_of_losses();
    let mut rig = Rig::new(Config::default(), &[("a", &comet)]);
    rig.append(vec![to_room("r", "0")]);
    rig.until("done", |rig| rig.done() == Some(0)).await;
    rig.pool.remove("a");
    tokio::time::sleep(Duration::from_secs(1)).await;
    rig.append(vec![to_room("r", "1")]);
    rig.until("done", |rig| rig.done() == Some(1)).await;
    comet.set(unavailable());
    rig.pool.insert("a", &comet);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(comet.missed().is_empty());
    comet.set(Mode::AtOnce);
    rig.until("told", |_| !comet.missed().is_empty()).await;
    assert!((10..13).contains(&comet.missed()[0].as_secs()), "{:?}", comet.missed());
}
