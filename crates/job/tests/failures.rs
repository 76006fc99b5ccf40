//! Comets that hang, fail, leave and return, and a job that stops.

mod support;

use std::time::Duration;

use goim_job::{Config, InFlightConfig};
use goim_ports::CometError;
use support::{Mode, Recorder, Rig, pass, settle, to_all, to_key, to_room};

fn unavailable() -> Mode {
    Mode::Fails(CometError::Unavailable("test".to_owned()))
}

/// Three attempts of 5 s with pauses of 0.2 s between them.
const GIVEN_UP_AFTER: Duration = Duration::from_millis(15_400);

#[tokio::test(start_paused = true)]
async fn a_hung_comet_delays_no_other() {
    let (hung, healthy) = (Recorder::new(Mode::Never), Recorder::new(Mode::Immediate));
    let mut rig = Rig::new(Config::default(), &[("hung", &hung), ("healthy", &healthy)]);
    for n in 0..500 {
        let n = n.to_string();
        rig.append(vec![to_key("hung", "k", n.as_str()), to_key("healthy", "k", n.as_str())]);
        rig.append(vec![to_room(&format!("r{n}"), n.as_str()), to_all(0, n.as_str())]);
    }
    settle().await;
    assert_eq!(healthy.received().len(), 1_500);
    assert!(rig.start.elapsed() < Duration::from_millis(2));
    assert_eq!(rig.done(), None, "the first record is open");

    rig.until("given up", |rig| rig.done() == Some(1_999)).await;
    let elapsed = rig.start.elapsed();
    assert!((GIVEN_UP_AFTER..GIVEN_UP_AFTER * 11 / 10).contains(&elapsed), "{elapsed:?}");
    assert_eq!(rig.metric("job_dispatches_total{result=\"undeliverable\"}"), 1_500.0);
    assert_eq!(rig.metric("job_comets_down"), 1.0);
    assert!(hung.received().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_comet_that_was_down_gets_messages_again_when_it_answers() {
    let comet = Recorder::new(Mode::Never);
    let mut rig = Rig::new(Config::default(), &[("a", &comet)]);
    rig.append(vec![to_key("a", "k", "0")]);
    rig.until("given up", |rig| rig.done() == Some(0)).await;
    let attempts = comet.attempts();
    rig.append(vec![to_key("a", "k", "1")]);
    settle().await;
    assert_eq!((rig.done(), comet.attempts()), (Some(1), attempts), "undeliverable immediately");
    comet.set(Mode::Immediate);
    rig.until("up", |rig| rig.metric("job_comets_down") == 0.0).await;
    rig.until("notified", |_| comet.received().len() == 1).await;
    rig.append(vec![to_key("a", "k", "2")]);
    rig.until("done", |rig| rig.done() == Some(2)).await;
    assert_eq!(comet.summary(), ["all: ", "key:k: 2"]);
}

fn bodies(comet: &Recorder) -> Vec<String> {
    comet.received().iter().flat_map(|got| got.bodies.clone()).collect()
}

fn numbers(count: usize) -> Vec<String> {
    (0..count).map(|n| n.to_string()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_slow_comet_gets_everything() {
    let (slow, healthy) =
        (Recorder::new(Mode::After(Duration::from_millis(700))), Recorder::new(Mode::Immediate));
    let in_flight = InFlightConfig { records_max: 5.try_into().unwrap(), ..InFlightConfig::default() };
    let mut rig =
        Rig::new(Config { in_flight, ..Config::default() }, &[("slow", &slow), ("healthy", &healthy)]);
    for n in numbers(20) {
        rig.append(vec![to_room("r", n)]);
    }
    rig.until("delivered", |rig| rig.done() == Some(19)).await;
    assert_eq!((bodies(&slow), bodies(&healthy)), (numbers(20), numbers(20)));
    assert_eq!(rig.metric("job_dispatches_total{result=\"undeliverable\"}"), 0.0);
}

#[tokio::test(start_paused = true)]
async fn a_hung_comet_does_not_fill_the_in_flight_limit_for_long() {
    let (hung, healthy) = (Recorder::new(Mode::Never), Recorder::new(Mode::Immediate));
    let in_flight = InFlightConfig { records_max: 5.try_into().unwrap(), ..InFlightConfig::default() };
    let mut rig =
        Rig::new(Config { in_flight, ..Config::default() }, &[("hung", &hung), ("healthy", &healthy)]);
    for n in numbers(50) {
        rig.append(vec![to_key("hung", "k", n.as_str()), to_key("healthy", "k", n)]);
    }
    rig.until("delivered", |_| healthy.received().len() == 50).await;
    assert!(rig.start.elapsed() < Duration::from_millis(1200), "{:?}", rig.start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn room_messages_never_wait_for_a_hung_comet() {
    let (hung, healthy) = (Recorder::new(Mode::Never), Recorder::new(Mode::Immediate));
    let mut rig = Rig::new(Config::default(), &[("hung", &hung), ("healthy", &healthy)]);
    let mut waits = Vec::new();
    for (count, n) in numbers(100).into_iter().enumerate() {
        let before = rig.start.elapsed();
        rig.append(vec![to_room("r", n)]);
        rig.until("arrived", |_| bodies(&healthy).len() == count + 1).await;
        waits.push((rig.start.elapsed() - before).as_millis());
        pass(Duration::from_millis(20)).await;
    }
    assert!(waits.iter().all(|wait| *wait <= 15), "{waits:?}");
    assert_eq!(rig.metric("job_comets_down"), 0.0);
}

#[tokio::test(start_paused = true)]
async fn a_slow_comet_gets_messages_in_order_and_delays_no_other() {
    let (slow, healthy) =
        (Recorder::new(Mode::After(Duration::from_secs(4))), Recorder::new(Mode::Immediate));
    let mut rig = Rig::new(Config::default(), &[("slow", &slow), ("healthy", &healthy)]);
    for n in 0..50 {
        rig.append(vec![to_key("slow", "k", n.to_string()), to_key("healthy", "k", n.to_string())]);
    }
    settle().await;
    assert_eq!(healthy.received().len(), 50);
    rig.finish().await;
    assert!(slow.received().len() < 50, "the drain has a deadline");
    assert!(slow.received().len() >= 7);
    let expected: Vec<_> = (0..50).map(|n| format!("key:k: {n}")).collect();
    assert!(expected.starts_with(&slow.summary()), "{:?}", slow.summary());
    // Record 2n is for the slow comet, record 2n+1 for the other.
    assert_eq!(rig.done(), Some(i64::try_from(slow.received().len()).unwrap() * 2 - 1));
}

#[tokio::test(start_paused = true)]
async fn failed_calls_are_retried_in_order() {
    let comet = Recorder::new(Mode::Immediate);
    comet.next([unavailable(), Mode::Fails(CometError::Timeout)]);
    let mut rig = Rig::new(Config::default(), &[("a", &comet)]);
    rig.append(vec![to_key("a", "k", "1"), to_key("a", "k", "2")]);
    rig.finish().await;
    assert_eq!(comet.summary(), ["key:k: 1", "key:k: 2"]);
    assert_eq!(rig.metric("job_retries_total"), 2.0);
    assert_eq!(rig.metric("job_dispatches_total{result=\"delivered\"}"), 2.0);
}

#[tokio::test(start_paused = true)]
async fn a_comet_that_left_is_not_retried() {
    let comet = Recorder::new(unavailable());
    let mut rig = Rig::new(Config::default(), &[("a", &comet)]);
    rig.append(vec![to_key("a", "k", "1")]);
    settle().await;
    rig.pool.remove("a");
    rig.until("done", |rig| rig.done() == Some(0)).await;
    assert_eq!(comet.attempts(), 1);
    assert_eq!(rig.metric("job_dispatches_total{result=\"no_comet\"}"), 1.0);
}

#[tokio::test(start_paused = true)]
async fn a_retry_uses_the_comet_that_has_the_name_then() {
    let (old, new) = (Recorder::new(unavailable()), Recorder::new(Mode::Immediate));
    let mut rig = Rig::new(Config::default(), &[("a", &old)]);
    rig.append(vec![to_key("a", "k", "1")]);
    settle().await;
    rig.pool.insert("a", &new);
    rig.until("done", |rig| rig.done() == Some(0)).await;
    assert_eq!((old.attempts(), new.summary()), (1, vec!["key:k: 1".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn a_refused_push_is_not_retried() {
    let comet = Recorder::new(Mode::Fails(CometError::Invalid("no sense")));
    let mut rig = Rig::new(Config::default(), &[("a", &comet)]);
    rig.append(vec![to_key("a", "k", "1")]);
    rig.until("done", |rig| rig.done() == Some(0)).await;
    assert_eq!(comet.attempts(), 1);
    assert_eq!(rig.metric("job_dispatches_total{result=\"refused\"}"), 1.0);
}

#[tokio::test(start_paused = true)]
async fn a_busy_comet_is_retried_until_the_busy_timeout() {
    let busy = Mode::Fails(CometError::Busy { limit: 64 });
    let comet = Recorder::new(Mode::Immediate);
    comet.next(vec![busy.clone(); 100]);
    let mut rig = Rig::new(Config::default(), &[("a", &comet)]);
    rig.append(vec![to_all(5, "1"), to_key("a", "k", "2")]);
    rig.until("taken", |_| comet.received().len() == 2).await;
    assert_eq!(comet.attempts(), 102);
    comet.set(busy);
    rig.append(vec![to_all(5, "3")]);
    rig.until("given up", |rig| rig.done() == Some(2)).await;
    assert_eq!(rig.metric("job_dispatches_total{result=\"undeliverable\"}"), 1.0);
    assert_eq!(rig.metric("job_comets_down"), 0.0, "busy is not down");
}

#[tokio::test(start_paused = true)]
async fn a_comet_that_panics_harms_no_other() {
    let (broken, healthy) = (Recorder::new(Mode::Immediate), Recorder::new(Mode::Immediate));
    broken.next([Mode::Panics]);
    let mut rig = Rig::new(Config::default(), &[("broken", &broken), ("healthy", &healthy)]);
    rig.append(vec![to_key("broken", "k", "0"), to_key("healthy", "k", "1")]);
    rig.until("done", |rig| rig.done() == Some(1)).await;
    rig.append(vec![to_key("broken", "k", "2"), to_key("healthy", "k", "3")]);
    rig.until("done", |rig| rig.done() == Some(3)).await;
    assert_eq!(broken.summary(), ["key:k: 2"]);
    assert_eq!(rig.metric("job_worker_panics_total"), 1.0);
    assert_eq!(rig.metric("job_lane_calls"), 0.0);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_delivers_what_was_read() {
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
        let got = comet.received();
        let bodies: Vec<_> =
            got.iter().filter(|got| got.to == receiver).flat_map(|got| got.bodies.clone()).collect();
        assert_eq!(bodies, (0..20).map(|n| n.to_string()).collect::<Vec<_>>(), "{receiver}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_reads_no_more() {
    let comet = Recorder::new(Mode::Immediate);
    let mut rig = Rig::new(Config::default(), &[("a", &comet)]);
    settle().await;
    rig.shut_down();
    rig.append(vec![to_key("a", "k", "late")]);
    rig.ended().await;
    assert_eq!((comet.received().len(), rig.unread(), rig.done()), (0, 1, None));
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_ends_in_time_and_leaves_undelivered_records_open() {
    let (hung, healthy) = (Recorder::new(Mode::Never), Recorder::new(Mode::Immediate));
    let config = Config { drain_timeout: Duration::from_secs(2), ..Config::default() };
    let mut rig = Rig::new(config, &[("hung", &hung), ("healthy", &healthy)]);
    rig.append(vec![to_key("healthy", "k", "0"), to_key("hung", "k", "1"), to_key("healthy", "k", "2")]);
    settle().await;
    rig.shut_down();
    rig.ended().await;
    let elapsed = rig.start.elapsed();
    assert!((2_000..2_100).contains(&elapsed.as_millis()), "{elapsed:?}");
    assert_eq!((healthy.received().len(), rig.done()), (2, Some(0)));
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_log_ends_the_job() {
    let comet = Recorder::new(Mode::Immediate);
    let mut rig = Rig::new(Config::default(), &[("a", &comet)]);
    rig.append(vec![to_room("r", "1"), to_room("r", "2")]);
    assert!(rig.running());
    rig.finish().await;
    assert_eq!((comet.summary(), rig.done()), (vec!["room:r: 1 2".to_owned()], Some(1)));
}

#[tokio::test(start_paused = true)]
async fn a_comet_that_is_up_again_gets_the_time_of_its_last_dropped_message() {
    let comet = Recorder::new(Mode::Never);
    comet.accept_loss_reports();
    let mut rig = Rig::new(Config::default(), &[("a", &comet)]);
    rig.append(vec![to_key("a", "k", "0")]);
    rig.until("given up", |rig| rig.done() == Some(0)).await;
    pass(Duration::from_secs(7)).await;
    rig.append(vec![to_room("r", "1")]);
    rig.until("undeliverable immediately", |rig| rig.done() == Some(1)).await;
    pass(Duration::from_secs(30)).await;
    assert!(comet.loss_reports().is_empty());
    comet.set(Mode::Immediate);
    rig.until("up", |rig| rig.metric("job_comets_down") == 0.0).await;
    rig.until("notified", |_| !comet.loss_reports().is_empty()).await;
    // The open probe times out first, then the next one is answered.
    let [ago] = comet.loss_reports()[..] else { panic!("once: {:?}", comet.loss_reports()) };
    assert!((30..37).contains(&ago.as_secs()), "{ago:?}");
    assert_eq!(rig.metric("job_losses_notified_total"), 1.0);
    rig.append(vec![to_key("a", "k", "2")]);
    rig.until("done", |rig| rig.done() == Some(2)).await;
    pass(Duration::from_secs(60)).await;
    assert_eq!((comet.loss_reports().len(), comet.summary()), (1, vec!["key:k: 2".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn a_comet_that_returns_to_the_pool_is_notified_of_dropped_messages() {
    for (missed, record) in [
        (true, Some(to_room("r", "x"))),
        (true, Some(to_all(0, "x"))),
        (true, Some(to_key("a", "k", "x"))),
        (false, Some(to_key("b", "k", "x"))),
        (false, None),
    ] {
        let (absent, present) = (Recorder::new(Mode::Immediate), Recorder::new(Mode::Immediate));
        absent.accept_loss_reports();
        present.accept_loss_reports();
        let mut rig = Rig::new(Config::default(), &[("a", &absent), ("b", &present)]);
        rig.append(vec![to_room("r", "0"), to_all(0, "0")]);
        rig.until("done", |rig| rig.done() == Some(1)).await;
        rig.pool.remove("a");
        pass(Duration::from_secs(1)).await;
        let what = format!("{record:?}");
        rig.append(record.into_iter().collect());
        pass(Duration::from_secs(20)).await;
        rig.pool.insert("a", &absent);
        pass(Duration::from_secs(5)).await;
        let reports: Vec<u64> = absent.loss_reports().iter().map(Duration::as_secs).collect();
        assert_eq!(reports, if missed { vec![20] } else { vec![] }, "{what}");
        assert!(present.loss_reports().is_empty(), "{what}");
        rig.append(vec![to_room("r", "1")]);
        pass(Duration::from_secs(5)).await;
        assert_eq!(absent.loss_reports().len(), reports.len(), "once: {what}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_loss_report_that_fails_is_repeated() {
    let comet = Recorder::new(Mode::Immediate);
    comet.accept_loss_reports();
    let mut rig = Rig::new(Config::default(), &[("a", &comet)]);
    rig.append(vec![to_room("r", "0")]);
    rig.until("done", |rig| rig.done() == Some(0)).await;
    rig.pool.remove("a");
    pass(Duration::from_secs(1)).await;
    rig.append(vec![to_room("r", "1")]);
    rig.until("done", |rig| rig.done() == Some(1)).await;
    comet.set(unavailable());
    rig.pool.insert("a", &comet);
    pass(Duration::from_secs(10)).await;
    assert!(comet.loss_reports().is_empty());
    comet.set(Mode::Immediate);
    rig.until("notified", |_| !comet.loss_reports().is_empty()).await;
    assert!((10..13).contains(&comet.loss_reports()[0].as_secs()), "{:?}", comet.loss_reports());
}
