//! A cluster of processes under a steady load of pushes to keys, members and rooms: each process in
//! turn is killed and started again, restarted gracefully, or frozen.
//!
//! A push counts when it was answered with success. None of those may be missing at a session that
//! was connected throughout. docs/reliability.md quotes the tables that this prints.
//! `DEATH_OF=kafka,redis` leaves out the others.

use std::sync::Arc;
use std::time::Duration;

use crate::harness::fleet::Fleet;
use crate::harness::load::{Published, Publisher, Session, Verdict, whole_again};

/// In all, half of them on each comet.
const SESSIONS: usize = 16;
/// How long it may take until all sessions are reached again after the killed process is back.
const WHOLE_AGAIN: Duration = Duration::from_secs(10);
/// A message for a hung comet waits until the comet is given up, 15 s; the first one of a room
/// waits a quarter of a second.
const UNDELAYED: Duration = Duration::from_millis(1500);

struct Row {
    name: String,
    published: Published,
    verdict: Verdict,
    whole_again: Duration,
}

impl Row {
    fn print(&self) {
        eprintln!(
            "| {} | {} | {} | {} | {} | {:.1} s | {} ms | {} ms |",
            self.name,
            self.published.accepted.len(),
            self.published.refused,
            self.verdict.lost.len(),
            self.verdict.doubled,
            self.whole_again.as_secs_f64(),
            self.verdict.latency(50).as_millis(),
            self.verdict.latency(100).as_millis(),
        );
    }

    fn check(&self) {
        let Self { name, verdict, .. } = self;
        assert!(verdict.lost.is_empty(), "{name}: {:?} ...", &verdict.lost[..verdict.lost.len().min(20)]);
        assert!(self.published.accepted.len() > 200, "{name}: hardly anything was accepted");
        assert!(self.whole_again < WHOLE_AGAIN, "{name}: whole after {:?}", self.whole_again);
    }
}

fn judge(rows: &[Row]) {
    eprintln!(
        "\n| what | accepted | refused | lost | received twice | whole again after | median latency | longest |"
    );
    eprintln!("|---|---|---|---|---|---|---|---|");
    rows.iter().for_each(Row::print);
    rows.iter().for_each(Row::check);
}

/// Those that are not on this comet; all when it is none.
fn not_on(name: &str) -> Vec<usize> {
    (0..SESSIONS).filter(|nth| name != format!("comet{}", nth % 2 + 1)).collect()
}

/// Load before, during `happens`, and after it until all are reached; then the verdict on the
/// sessions that were connected throughout.
fn under_load(
    name: &str,
    fleet: &Fleet,
    sessions: &[Arc<Session>],
    throughout: &[usize],
    happens: impl FnOnce(),
) -> Row {
    eprintln!("{name}");
    let publisher = Publisher::start(name, fleet.logics, sessions.len());
    std::thread::sleep(Duration::from_secs(1));
    happens();
    let all: Vec<usize> = (0..sessions.len()).collect();
    let whole_again = whole_again(fleet.logics, sessions, &all);
    std::thread::sleep(Duration::from_secs(1));
    let published = publisher.stop();
    let verdict = Verdict::of(&published, sessions, throughout);
    Row { name: name.to_owned(), published, verdict, whole_again }
}

fn chosen(names: &[&'static str]) -> Vec<&'static str> {
    let only = std::env::var("DEATH_OF").unwrap_or_default();
    names
        .iter()
        .copied()
        .filter(|name| only.is_empty() || only.split(',').any(|part| part == *name))
        .collect()
}

#[test]
#[ignore = "kills processes for minutes; run by scripts/cluster-death.sh"]
fn nothing_that_was_accepted_is_lost() {
    let fleet = Fleet::start();
    let sessions = Session::start_all(SESSIONS, fleet.comets);

    let mut rows = Vec::new();
    for victim in chosen(&["job1", "logic1", "redis", "kafka", "comet1"]) {
        rows.push(under_load(&format!("kill -9 {victim}"), &fleet, &sessions, &not_on(victim), || {
            fleet.tell("kill", victim);
            std::thread::sleep(Duration::from_secs(2));
            fleet.tell("again", victim);
        }));
    }
    for name in chosen(&["logic1", "logic2", "job1", "job2", "comet1", "comet2", "kafka"]) {
        rows.push(under_load(&format!("restart {name}"), &fleet, &sessions, &not_on(name), || {
            fleet.tell("restart", name);
        }));
    }
    judge(&rows);

    let mut rows = Vec::new();
    for name in chosen(&["comet1"]) {
        let frozen = |fleet: &Fleet| {
            fleet.tell("freeze", name);
            std::thread::sleep(Duration::from_secs(8));
            fleet.tell("thaw", name);
        };
        let row = under_load(&format!("freeze {name}"), &fleet, &sessions, &not_on(name), || frozen(&fleet));
        let longest = row.verdict.latency(100);
        rows.push(row);
        judge(&rows);
        assert!(longest < UNDELAYED, "a message to another comet took {longest:?}");
    }
    sessions.iter().for_each(|session| session.stop());
}
