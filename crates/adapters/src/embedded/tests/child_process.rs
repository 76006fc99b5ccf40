//! The tests that other tests run in a child process: one that is killed, and those on a disk of
//! their own.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use goim_ports::{Mid, ReadLimit, TimelineId, TimelineSeq, TimelineStore as _};

use super::config;
use crate::conformance;
use crate::embedded::EmbeddedTimelines;

/// Names the folder for the child process.
const FOLDER: &str = "GOIM_TIMELINES_TEST_FOLDER";

/// Returns a command that runs one test of this module in a child process, in a mount namespace
/// with `mount` when it needs its own disk.
pub(super) fn command(test: &str, folder: &Path, mount: Option<&str>) -> Command {
    let exe = std::env::current_exe().unwrap();
    let test = format!("embedded::tests::child_process::{test}");
    let arguments = ["--exact", &test, "--ignored", "--nocapture", "--test-threads=1"];
    let mut command = match mount {
        None => Command::new(exe),
        Some(mount) => {
            let mut command = Command::new("unshare");
            command.args(["--mount", "sh", "-ec", &format!("{mount}\nexec \"$0\" \"$@\"")]).arg(exe);
            command
        }
    };
    command.args(arguments).env(FOLDER, folder);
    command
}

/// Appends from many tasks to 40 timelines, and prints the confirmed positions, until it is killed.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "the child of another test"]
async fn appends_until_killed() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let store = Arc::new(EmbeddedTimelines::open(config(Path::new(&folder))).unwrap());
    let round = std::env::var("ROUND").unwrap();
    for writer in 0..16_u64 {
        let (store, round) = (Arc::clone(&store), round.clone());
        tokio::spawn(async move {
            for number in 0_u64.. {
                let timeline = TimelineId::Inbox(Mid(i64::try_from((writer * 7 + number) % 40 + 1).unwrap()));
                let body = format!("{round}.{writer}.{number} {}", "x".repeat((number % 50) as usize * 20));
                let stored =
                    store.append(vec![conformance::append_of(timeline.clone(), body.clone())]).await.unwrap()
                        [0];
                // One write per line, so that no line is torn.
                let line = format!(
                    "{timeline} {} {} {}\n",
                    stored.position.epoch.0,
                    stored.position.seq,
                    &body[..body.find(' ').unwrap()]
                );
                std::io::Write::write_all(&mut std::io::stdout().lock(), line.as_bytes()).unwrap();
            }
        });
    }
    std::future::pending::<()>().await;
}

#[tokio::test]
#[ignore = "the child of another test"]
async fn open_fails_on_a_read_only_disk() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let text = EmbeddedTimelines::open(config(Path::new(&folder))).unwrap_err().to_string();
    assert!(text.contains(folder.to_str().unwrap()) && text.contains("Read-only file system"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the child of another test"]
async fn recovers_from_a_full_disk() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let disk = Path::new(&folder);
    // Removed later, as an operator would.
    let ballast = disk.join("ballast");
    std::fs::write(&ballast, vec![1; 80 << 20]).unwrap();
    let store = EmbeddedTimelines::open(config(&disk.join("timelines"))).unwrap();
    let mut state = 1_u64;
    let mut noise = || -> Vec<u8> {
        let next = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        };
        (0..64 << 10).map(next).collect()
    };
    let timeline = TimelineId::Room("a://1".into());
    let mut stored_bodies: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    let mut errors = Vec::new();
    let until = Instant::now() + Duration::from_secs(60);
    while errors.len() < 3 {
        assert!(Instant::now() < until, "{} messages on a small disk", stored_bodies.len());
        let body = noise();
        match store.append(vec![conformance::append_of(timeline.clone(), body.clone())]).await {
            Ok(done) => drop(stored_bodies.insert(done[0].position.seq.0, body)),
            Err(error) => errors.push(error.to_string()),
        }
    }
    let last = errors.last().unwrap();
    assert!(last.contains("No space left") || last.contains(" MiB are free on the disk of "), "{errors:?}");
    std::fs::remove_file(&ballast).unwrap();
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        assert!(Instant::now() < until, "no recovery: {:?}", errors.last());
        let body = noise();
        match store.append(vec![conformance::append_of(timeline.clone(), body.clone())]).await {
            Ok(done) => {
                stored_bodies.insert(done[0].position.seq.0, body);
                break;
            }
            Err(error) => errors.push(error.to_string()),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let limit = ReadLimit { messages: 100, bytes: usize::MAX };
    let mut after = TimelineSeq(0);
    loop {
        let range = store.read(timeline.clone(), after, limit).await.unwrap();
        let Some(last) = range.messages.last() else { break };
        for (stored, expected) in range.messages.iter().zip(after.0 + 1..) {
            assert_eq!(stored.seq.0, expected, "a gap");
            if let Some(body) = stored_bodies.remove(&expected) {
                assert_eq!(stored.message.bodies.primary_bytes(), body);
            }
        }
        after = last.seq;
    }
    assert!(stored_bodies.is_empty(), "{:?} were confirmed and are missing", stored_bodies.keys());
}
