//! Room messages reach every comet with sessions in the room, and skip only comets without any.

mod support;

use std::time::Duration;

use goim_job::Config;
use support::{Mode, Recorder, Rig, pass, settle, to_room};

const SKIPPED: &str = "job_room_dispatches_skipped_total";

fn comets(rig: &[(&str, &[&str])]) -> Vec<std::sync::Arc<Recorder>> {
    let make = |(_, rooms): &(&str, &[&str])| {
        let comet = Recorder::new(Mode::Immediate);
        comet.set_rooms(rooms);
        comet
    };
    rig.iter().map(make).collect()
}

#[tokio::test(start_paused = true)]
async fn a_comet_without_sessions_in_the_room_is_skipped_and_counted() {
    let comets = comets(&[("a", &["r", "s"]), ("b", &["s"]), ("c", &[])]);
    let mut rig = Rig::new(Config::default(), &[("a", &comets[0]), ("b", &comets[1]), ("c", &comets[2])]);
    for n in 0..10 {
        rig.append(vec![to_room("r", format!("r{n}")), to_room("s", format!("s{n}"))]);
        pass(Duration::from_millis(30)).await;
    }
    rig.until("done", |rig| rig.done() == Some(19)).await;
    let got = |at: usize, room: &str| comets[at].received().iter().filter(|got| got.to == room).count();
    assert_eq!([got(0, "room:r"), got(0, "room:s")], [10, 10]);
    assert_eq!([got(1, "room:r"), got(1, "room:s")], [0, 10]);
    assert_eq!([got(2, "room:r"), got(2, "room:s")], [0, 0]);
    assert_eq!(rig.metric(SKIPPED), 30.0);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_joined_first_gets_the_message_and_an_empty_room_is_skipped_soon() {
    let comets = comets(&[("a", &["r"]), ("b", &[])]);
    let mut rig = Rig::new(Config::default(), &[("a", &comets[0]), ("b", &comets[1])]);
    for n in 0..20 {
        let is_occupied = n % 2 == 1;
        comets[1].set_rooms(if is_occupied { &["r"] } else { &[] });
        rig.append(vec![to_room("r", n.to_string())]);
        rig.until("done", |rig| rig.done() == Some(n)).await;
        if !is_occupied {
            // Longer than the refresh interval: the room set no longer has the room.
            pass(Duration::from_secs(2)).await;
        }
    }
    let bodies =
        |at: usize| comets[at].received().iter().flat_map(|got| got.bodies.clone()).collect::<Vec<_>>();
    assert_eq!(bodies(0), (0..20).map(|n| n.to_string()).collect::<Vec<_>>());
    for n in (1..20).step_by(2) {
        assert!(bodies(1).contains(&n.to_string()), "{n} is missing: {:?}", bodies(1));
    }
    assert!(rig.metric(SKIPPED) >= 1.0);
}

#[tokio::test(start_paused = true)]
async fn a_reply_resolves_only_what_was_read_before_its_query() {
    let comets = comets(&[("a", &["r"]), ("b", &[])]);
    comets[1].set_rooms_delay(Duration::from_millis(100));
    let mut rig = Rig::new(Config::default(), &[("a", &comets[0]), ("b", &comets[1])]);
    rig.append(vec![to_room("r", "before the session joined")]);
    rig.until("queried", |_| comets[1].queries() == 1).await;
    // The reply to the open query does not contain this.
    comets[1].set_rooms(&["r"]);
    rig.append(vec![to_room("r", "after the query")]);
    rig.until("received", |_| comets[0].received().len() == 2).await;
    assert!(rig.start.elapsed() < Duration::from_millis(100), "a known room does not wait for the reply");
    rig.until("done", |rig| rig.done() == Some(1)).await;
    assert_eq!(comets[1].summary(), ["room:r: after the query"]);
}

#[tokio::test(start_paused = true)]
async fn order_holds_for_a_room_that_was_not_known_at_first() {
    let comets = comets(&[("a", &["r"]), ("b", &["r"])]);
    comets[1].set_rooms_delay(Duration::from_millis(35));
    let mut rig = Rig::new(Config::default(), &[("a", &comets[0]), ("b", &comets[1])]);
    for n in 0..50 {
        rig.append(vec![to_room("r", n.to_string())]);
        pass(Duration::from_millis(3)).await;
    }
    rig.until("done", |rig| rig.done() == Some(49)).await;
    for comet in &comets {
        let bodies: Vec<_> = comet.received().iter().flat_map(|got| got.bodies.clone()).collect();
        assert_eq!(bodies, (0..50).map(|n| n.to_string()).collect::<Vec<_>>());
    }
}

#[tokio::test(start_paused = true)]
async fn a_comet_that_cannot_list_its_rooms_or_does_not_reply_gets_everything() {
    let (empty, other, silent) =
        (Recorder::new(Mode::Immediate), Recorder::new(Mode::Immediate), Recorder::new(Mode::Immediate));
    empty.set_rooms(&[]);
    silent.set_rooms(&[]);
    silent.set_rooms_delay(Duration::from_secs(3600));
    let mut rig = Rig::new(Config::default(), &[("empty", &empty), ("other", &other), ("silent", &silent)]);
    for n in 0..5 {
        rig.append(vec![to_room("r", n.to_string())]);
        settle().await;
    }
    rig.until("done", |rig| rig.done() == Some(4)).await;
    let count = |comet: &Recorder| comet.received().iter().map(|got| got.bodies.len()).sum::<usize>();
    assert_eq!((count(&empty), count(&other), count(&silent)), (0, 5, 5));
}

#[tokio::test(start_paused = true)]
async fn a_single_comet_is_never_queried() {
    let comet = Recorder::new(Mode::Immediate);
    comet.set_rooms(&[]);
    let mut rig = Rig::new(Config::default(), &[("a", &comet)]);
    rig.append(vec![to_room("r", "1")]);
    rig.until("done", |rig| rig.done() == Some(0)).await;
    assert_eq!(comet.summary(), ["room:r: 1"]);
}

#[tokio::test(start_paused = true)]
async fn pending_batches_are_delivered_when_the_job_stops() {
    let comets = comets(&[("a", &["r"]), ("b", &["r"])]);
    comets[1].set_rooms_delay(Duration::from_millis(900));
    let mut rig = Rig::new(Config::default(), &[("a", &comets[0]), ("b", &comets[1])]);
    rig.append(vec![to_room("r", "1")]);
    settle().await;
    rig.shut_down();
    rig.ended().await;
    assert_eq!(comets[1].summary(), ["room:r: 1"]);
    assert_eq!(rig.done(), Some(0));
}
