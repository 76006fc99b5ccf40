//! Two comets in separate network namespaces; one is cut off silently, and the cut is healed.
//!
//! `scripts/cluster-partition.sh` makes the namespaces and runs this inside.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::harness::eventually;
use crate::harness::fleet::Fleet;
use crate::harness::load::{Publisher, Session, Verdict, key_of, whole_again};

/// In all, half of them on each comet.
const SESSIONS: usize = 16;
const WHOLE_AGAIN: Duration = Duration::from_secs(10);
/// As in `cluster_death`: far below the time after which a comet is given up.
const UNDELAYED: Duration = Duration::from_millis(1500);

fn partition(verb: &str, name: &str) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/cluster-partition.sh");
    assert!(Command::new(script).args([verb, name]).status().unwrap().success(), "{verb} {name}");
}

#[test]
#[ignore = "needs network namespaces; run by scripts/cluster-partition.sh"]
fn a_comet_that_is_cut_off_delays_no_others_and_returns() {
    assert!(std::env::var_os("PARTITION_ID").is_some(), "run scripts/cluster-partition.sh");
    let fleet = Fleet::start();
    let sessions = Session::start_all(SESSIONS, fleet.comets);
    let all: Vec<usize> = (0..SESSIONS).collect();
    let (cut_off, others): (Vec<usize>, Vec<usize>) = all.iter().partition(|nth| *nth % 2 == 0);
    whole_again(fleet.logics, &sessions, &all);

    let publisher = Publisher::start("partition", fleet.logics, SESSIONS);
    std::thread::sleep(Duration::from_secs(1));
    partition("cut", "comet1");
    let cut = Instant::now();
    eventually("the sessions of the comet that is cut off are swept", || {
        cut_off.iter().all(|nth| !fleet.redis_has(&format!("key_{}", key_of(*nth))))
    });
    let swept = cut.elapsed();
    std::thread::sleep(Duration::from_secs(5));
    assert!(others.iter().all(|nth| fleet.redis_has(&format!("key_{}", key_of(*nth)))), "the others stay");
    partition("heal", "comet1");
    let back = whole_again(fleet.logics, &sessions, &all);
    std::thread::sleep(Duration::from_secs(1));
    let published = publisher.stop();
    let verdict = Verdict::of(&published, &sessions, &others);

    eprintln!(
        "\n| accepted | refused | lost | received twice | swept after | back after | median latency | longest |"
    );
    eprintln!("|---|---|---|---|---|---|---|---|");
    eprintln!(
        "| {} | {} | {} | {} | {:.1} s | {:.1} s | {} ms | {} ms |",
        published.accepted.len(),
        published.refused,
        verdict.lost.len(),
        verdict.doubled,
        swept.as_secs_f64(),
        back.as_secs_f64(),
        verdict.latency(50).as_millis(),
        verdict.latency(100).as_millis(),
    );
    assert!(verdict.lost.is_empty(), "{:?}", &verdict.lost[..verdict.lost.len().min(20)]);
    assert!(verdict.latency(100) < UNDELAYED, "a message to the other comet took {:?}", verdict.latency(100));
    assert!(back < WHOLE_AGAIN, "back after {back:?}");
    sessions.iter().for_each(|session| session.stop());
}
