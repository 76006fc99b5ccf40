//! A room's messages go to the comets that have somebody of the room, and never past one.

mod support;

use std::time::Duration;

use goim_job::Config;
use support::{Mode, Recorder, Rig, settle, to_room};

const SAVED: &str = "job_room_calls_saved_total";

fn comets(rig: &[(&str, &[&str])]) -> Vec<std::sync::Arc<Recorder>> {
    let make = |(_, rooms): &(&str, &[&str])| {
        let comet = Recorder::new(Mode::AtOnce);
        comet.has_rooms(rooms);
        comet
    };
    rig.iter().map(make).collect()
}

#[tokio::test(start_paused = true)]
async fn a_comet_without_anybody_of_the_room_is_left_out_and_counted() {
    let comets = comets(&[("a", &["r", "s"]), ("b", &["s"]), ("c", &[])]);
    let mut rig = Rig::new(Config::default(), &[("a", &comets[0]), ("b", &comets[1]), ("c", &comets[2])]);
    for n in 0..10 {
        rig.append(vec![to_room("r", format!("r{n}")), to_room("s", format!("s{n}"))]);
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    rig.until("done", |rig| rig.done() == Some(19)).await;
    let got = |at: usize, room: &str| comets[at].got().iter().filter(|got| got.to == room).count();
    assert_eq!([got(0, "room:r"), got(0, "room:s")], [10, 10]);
    assert_eq!([got(1, "room:r"), got(1, "room:s")], [0, 10]);
    assert_eq!([got(2, "room:r"), got(2, "room:s")], [0, 0]);
    assert_eq!(rig.metric(SAVED), 30.0);
}

#[tokio::test(start_paused = true)]
async fn who_joins_before_a_message_gets_it_and_who_has_left_costs_no_call_for_long() {
    let comets = comets(&[("a", &["r"]), ("b", &[])]);
    let mut rig = Rig::new(Config::default(), &[("a", &comets[0]), ("b", &comets[1])]);
    for n in 0..20 {
        let is_there = n % 2 == 1;
        comets[1].has_rooms(if is_there { &["r"] } else { &[] });
        rig.append(vec![to_room("r", n.to_string())]);
        rig.until("done", |rig| rig.done() == Some(n)).await;
        if !is_there {
            // Then the next question says so.
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
    }
    let bodies = |at: usize| comets[at].got().iter().flat_map(|got| got.bodies.clone()).collect::<Vec<_>>();
    assert_eq!(bodies(0), (0..20).map(|n| n.to_string()).collect::<Vec<_>>());
    for n in (1..20).step_by(2) {
        assert!(bodies(1).contains(&n.to_string()), "{n} is missing: {:?}", bodies(1));
    }
    assert!(rig.metric(SAVED) >= 1.0);
}

#[tokio::test(start_paused = true)]
async fn an_answer_decides_only_what_was_read_before_its_question() {
    let comets = comets(&[("a", &["r"]), ("b", &[])]);
    comets[1].tells_rooms_after(Duration::from_millis(100));
    let mut rig = Rig::new(Config::default(), &[("a", &comets[0]), ("b", &comets[1])]);
    rig.append(vec![to_room("r", "before anybody came")]);
    tokio::time::sleep(Duration::from_millis(50)).await;
    // The question is on its way, and its answer knows nothing of this.
    comets[1].has_rooms(&["r"]);
    rig.append(vec![to_room("r", "behind the question")]);
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(comets[0].got().len(), 2, "who is known does not wait");
    rig.until("done", |rig| rig.done() == Some(1)).await;
    assert_eq!(comets[1].summary(), ["room:r: behind the question"]);
}

#[tokio::test(start_paused = true)]
async fn order_is_kept_for_who_was_not_known_at_first() {
    let comets = comets(&[("a", &["r"]), ("b", &["r"])]);
    comets[1].tells_rooms_after(Duration::from_millis(35));
    let mut rig = Rig::new(Config::default(), &[("a", &comets[0]), ("b", &comets[1])]);
    for n in 0..50 {
        rig.append(vec![to_room("r", n.to_string())]);
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    rig.until("done", |rig| rig.done() == Some(49)).await;
    for comet in &comets {
        let bodies: Vec<_> = comet.got().iter().flat_map(|got| got.bodies.clone()).collect();
        assert_eq!(bodies, (0..50).map(|n| n.to_string()).collect::<Vec<_>>());
    }
}

#[tokio::test(start_paused = true)]
async fn a_comet_that_cannot_tell_or_does_not_answer_gets_everything() {
    let (told, other, silent) =
        (Recorder::new(Mode::AtOnce), Recorder::new(Mode::AtOnce), Recorder::new(Mode::AtOnce));
    told.has_rooms(&[]);
    silent.has_rooms(&[]);
    silent.tells_rooms_after(Duration::from_secs(3600));
    let mut rig = Rig::new(Config::default(), &[("told", &told), ("other", &other), ("silent", &silent)]);
    for n in 0..5 {
        rig.append(vec![to_room("r", n.to_string())]);
        settle().await;
    }
    rig.until("done", |rig| rig.done() == Some(4)).await;
    let count = |comet: &Recorder| comet.got().iter().map(|got| got.bodies.len()).sum::<usize>();
    assert_eq!((count(&told), count(&other), count(&silent)), (0, 5, 5));
}

#[tokio::test(start_paused = true)]
async fn a_single_comet_is_never_asked() {
    let comet = Recorder::new(Mode::AtOnce);
    comet.has_rooms(&[]);
    let mut rig = Rig::new(Config::default(), &[("a", &comet)]);
    rig.append(vec![to_room("r", "1")]);
    rig.until("done", |rig| rig.done() == Some(0)).await;
    assert_eq!(comet.summary(), ["room:r: 1"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_parked_when_the_job_stops_is_handed_over() {
    let comets = comets(&[("a", &["r"]), ("b", &["r"])]);
    comets[1].tells_rooms_after(Duration::from_millis(900));
    let mut rig = Rig::new(Config::default(), &[("a", &comets[0]), ("b", &comets[1])]);
    rig.append(vec![to_room("r", "1")]);
    settle().await;
    rig.shut_down();
    rig.ended().await;
    assert_eq!(comets[1].summary(), ["room:r: 1"]);
    assert_eq!(rig.done(), Some(0));
}
