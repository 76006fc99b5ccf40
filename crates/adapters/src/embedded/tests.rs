//! Timelines in a folder, as every store and as one that is opened again, broken, full.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use goim_ports::{
    Mid, ReadLimit, Retention, RetentionRules, TimelineError, TimelineId, TimelineSeq, TimelineStore as _,
};

use super::*;
use crate::conformance;

/// A folder of a test's own, removed with it.
struct Own(PathBuf);

impl Own {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("goim-timelines-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        Self(std::env::temp_dir().join(name))
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn config(folder: &Path) -> EmbeddedConfig {
    let rules = RetentionRules { retention_overrides: Vec::new(), otherwise: Retention::FOREVER };
    EmbeddedConfig::new(folder.to_owned(), rules, Duration::from_secs(3600))
}

/// New ones, in folders that end with the test.
fn fresh(owns: &std::cell::RefCell<Vec<Own>>) -> EmbeddedTimelines {
    let own = Own::new();
    let store = EmbeddedTimelines::open(config(&own.0)).unwrap();
    owns.borrow_mut().push(own);
    store
}

#[tokio::test(flavor = "multi_thread")]
async fn conforms() {
    let owns = std::cell::RefCell::default();
    conformance::timelines(async || fresh(&owns)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retains_what_it_should() {
    let own = Own::new();
    conformance::timelines_retain(
        async |rules| EmbeddedTimelines::open(EmbeddedConfig { rules, ..config(&own.0) }).unwrap(),
        async |store, now| tokio::task::block_in_place(|| store.retain(now)).unwrap(),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lasts_when_it_is_opened_again() {
    let own = Own::new();
    let open = || EmbeddedTimelines::open(config(&own.0)).unwrap();
    conformance::timelines_last(
        async || open(),
        async |store| {
            drop(store);
            open()
        },
    )
    .await;
}

#[tokio::test]
async fn a_folder_that_is_not_of_timelines_is_refused_in_words() {
    type Prepare = fn(&Path);
    let cases: [(&str, Prepare, &str); 5] = [
        (
            "another format",
            |folder| write(folder, "FORMAT", "goim timelines 999\n"),
            "of format 999, and this version reads format 1",
        ),
        ("no format at all", |folder| write(folder, "FORMAT", "\u{1}\u{2}"), "of format"),
        ("something else", |folder| write(folder, "letters.txt", "dear"), "is neither empty nor"),
        ("a file", |folder| std::fs::write(folder, "x").unwrap(), "cannot be used for timelines"),
        ("a start that was cut off", |folder| write(folder, "FORMAT.new", "goim tim"), ""),
    ];
    for (what, prepare, expected) in cases {
        let own = Own::new();
        prepare(&own.0);
        let opened = EmbeddedTimelines::open(config(&own.0));
        let text = opened.map(|_| String::new()).unwrap_or_else(|error| error.to_string());
        assert!(
            text.contains(expected) && (text.is_empty() || text.contains(own.0.to_str().unwrap())),
            "{what}: {text}"
        );
        assert_eq!(text.is_empty(), expected.is_empty(), "{what}: {text}");
        let _ = std::fs::remove_file(&own.0);
    }
}

fn write(folder: &Path, name: &str, text: &str) {
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join(name), text).unwrap();
}

#[tokio::test]
async fn one_process_at_a_time_has_a_folder() {
    let own = Own::new();
    let first = EmbeddedTimelines::open(config(&own.0)).unwrap();
    let text = EmbeddedTimelines::open(config(&own.0)).unwrap_err().to_string();
    assert!(text.contains("another process is using"), "{text}");
    drop(first);
    EmbeddedTimelines::open(config(&own.0)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn however_few_ends_are_known_no_place_is_given_twice() {
    let own = Own::new();
    let store = EmbeddedTimelines::open(EmbeddedConfig { head_cache_entries: 1, ..config(&own.0) }).unwrap();
    for round in 0..3 {
        // All of a call is one group.
        let appends =
            (0..40).map(|nth| conformance::append_of(TimelineId::Inbox(Mid(nth % 8 + 1)), vec![b'x']));
        let kept = store.append(appends.collect()).await.unwrap();
        let places: Vec<u64> = kept.iter().map(|kept| kept.position.seq.0).collect();
        let expected: Vec<u64> = (0..40).map(|nth| round * 5 + nth / 8 + 1).collect();
        assert_eq!(places, expected, "round {round}");
    }
}

#[tokio::test]
async fn what_waits_is_bounded() {
    let own = Own::new();
    let bound = EmbeddedConfig { pending_messages_max: 100, pending_bytes_max: 1 << 20, ..config(&own.0) };
    let store = EmbeddedTimelines::open(bound).unwrap();
    let timeline = TimelineId::Room("a://1".into());
    let append = |size: usize| store.append(vec![conformance::append_of(timeline.clone(), vec![b'x'; size])]);
    // Nobody waits for an answer: what is sent faster than it is written is refused sooner or later.
    let calls: Vec<_> = (0..200_000).map(|_| append(10)).collect();
    let (mut kept, mut busy) = (0_u64, 0_u64);
    for call in calls {
        match call.await {
            Ok(_) => kept += 1,
            Err(TimelineError::Busy(_)) => busy += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(kept >= 100 && busy > 0, "{kept} kept, {busy} refused");
    let head = store.heads(vec![timeline.clone()]).await.unwrap()[0];
    assert_eq!(head.latest.0, kept, "what was refused is not there");
    // One that is larger than all the room is taken when it is alone.
    append(2 << 20).await.unwrap();
}

/// Set for a test that plays the process that is killed, or the one on a disk of its own.
const FOLDER: &str = "GOIM_TIMELINES_TEST_FOLDER";

/// This program again, for one test, in its own mount namespace when it needs a disk of its own.
fn child(test: &str, folder: &Path, mount: Option<&str>) -> Command {
    let exe = std::env::current_exe().unwrap();
    let arguments = ["--exact", test, "--ignored", "--nocapture", "--test-threads=1"];
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

/// The part that is killed: appends from many tasks to timelines of its own choice, and says what was answered.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "the child of another test"]
async fn child_that_is_killed() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let store = Arc::new(EmbeddedTimelines::open(config(Path::new(&folder))).unwrap());
    let round = std::env::var("ROUND").unwrap();
    for writer in 0..16_u64 {
        let (store, round) = (Arc::clone(&store), round.clone());
        tokio::spawn(async move {
            for number in 0_u64.. {
                let timeline = TimelineId::Inbox(Mid(i64::try_from((writer * 7 + number) % 40 + 1).unwrap()));
                let body = format!("{round}.{writer}.{number} {}", "x".repeat((number % 50) as usize * 20));
                let kept =
                    store.append(vec![conformance::append_of(timeline.clone(), body.clone())]).await.unwrap()
                        [0];
                // One write a line: none is half there.
                let line = format!(
                    "{timeline} {} {} {}\n",
                    kept.position.epoch.0,
                    kept.position.seq,
                    &body[..body.find(' ').unwrap()]
                );
                std::io::Write::write_all(&mut std::io::stdout().lock(), line.as_bytes()).unwrap();
            }
        });
    }
    std::future::pending::<()>().await;
}

/// What was answered: the beginning of the body by timeline, epoch and sequence.
type Answered = BTreeMap<(String, u64, u64), String>;

/// Starts the child, kills it after so many answers, adds them.
fn run_and_kill(folder: &Path, round: usize, answers: usize, answered: &mut Answered) {
    let name = "embedded::tests::child_that_is_killed";
    let mut running =
        child(name, folder, None).env("ROUND", round.to_string()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(running.stdout.take().unwrap()).lines();
    let mut seen = 0;
    // What it has said before it died counts too.
    while let Some(Ok(line)) = lines.next() {
        let parts: Vec<&str> = line.split(' ').collect();
        let [timeline, epoch, seq, body] = parts[..] else { continue };
        let (Ok(epoch), Ok(seq)) = (epoch.parse(), seq.parse()) else { continue };
        let before = answered.insert((timeline.to_owned(), epoch, seq), body.to_owned());
        assert_eq!(before, None, "{timeline} {seq} was given twice");
        seen += 1;
        if seen == answers {
            running.kill().unwrap();
        }
    }
    running.wait().unwrap();
    assert!(seen >= answers, "the child ended by itself after {seen}");
}

/// Everything that was answered is there, and no timeline has a hole. Gives the number of messages.
async fn holds(store: &EmbeddedTimelines, answered: &Answered) -> usize {
    let all = ReadLimit { messages: usize::MAX, bytes: usize::MAX };
    let (mut there, mut found) = (Answered::new(), 0);
    for mid in 1..=40 {
        let timeline = TimelineId::Inbox(Mid(mid));
        let range = store.read(timeline.clone(), TimelineSeq(0), all).await.unwrap();
        for (stored, expected) in range.messages.iter().zip(1..) {
            assert_eq!(stored.seq.0, expected, "{timeline} has a hole");
            let body = std::str::from_utf8(stored.message.bodies.primary_bytes()).unwrap();
            let name = body.split(' ').next().unwrap().to_owned();
            there.insert((timeline.to_string(), range.head.epoch.0, expected), name);
            found += 1;
        }
        assert_eq!(range.head.latest.0, range.messages.len() as u64);
    }
    for (place, body) in answered {
        assert_eq!(there.get(place), Some(body), "{place:?} was answered");
    }
    found
}

#[tokio::test]
async fn nothing_that_was_answered_is_lost_by_kills() {
    let own = Own::new();
    let mut answered = Answered::new();
    for round in 0..8 {
        run_and_kill(&own.0, round, 300 + round * 777, &mut answered);
        let store = EmbeddedTimelines::open(config(&own.0)).unwrap();
        let found = holds(&store, &answered).await;
        assert!(found >= answered.len());
    }
}

/// The newest journal of the engine.
fn journal(folder: &Path) -> PathBuf {
    let files = std::fs::read_dir(folder.join("data")).unwrap().flatten().map(|entry| entry.path());
    let journals = files.filter(|path| path.extension().is_some_and(|extension| extension == "jnl"));
    journals.max_by_key(|path| path.metadata().unwrap().modified().unwrap()).unwrap()
}

#[tokio::test]
async fn a_torn_end_costs_no_more_than_the_end() {
    let own = Own::new();
    let mut answered = Answered::new();
    run_and_kill(&own.0, 0, 2_000, &mut answered);
    let torn = journal(&own.0);
    let whole = std::fs::read(&torn).unwrap();
    // Where the last batch ends: behind it are zeros, if anything.
    let end = whole.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    for (what, cut) in [("a byte", 1), ("a half", 40), ("much", 5_000)] {
        let mut part = whole[..end - cut].to_vec();
        std::fs::write(&torn, &part).unwrap();
        let store = EmbeddedTimelines::open(config(&own.0)).unwrap();
        let after = holds(&store, &Answered::new()).await;
        assert!(after > 0, "{what} is missing, and with it everything");
        let timeline = TimelineId::Inbox(Mid(1));
        store.append(vec![conformance::append_of(timeline, "x")]).await.unwrap();
        drop(store);
        let store = EmbeddedTimelines::open(config(&own.0)).unwrap();
        assert_eq!(holds(&store, &Answered::new()).await, after + 1, "{what}");
        drop(store);
        // Noise in place of the last bytes.
        part.extend(std::iter::repeat_n(0xA5, cut));
        std::fs::write(&torn, &part).unwrap();
    }
}

/// A child on a disk of its own has to be allowed to mount one.
fn may_mount() -> bool {
    let may = Command::new("unshare").args(["--mount", "true"]).status().is_ok_and(|status| status.success());
    assert!(may || std::env::var_os("CI").is_none(), "needs root, for a disk of its own");
    may
}

fn on_a_disk(test: &str, mount: impl Fn(&str) -> String) {
    if !may_mount() {
        eprintln!("passed over: needs root, for a disk of its own");
        return;
    }
    let own = Own::new();
    std::fs::create_dir_all(&own.0).unwrap();
    let mount = mount(own.0.to_str().unwrap());
    let output = child(&format!("embedded::tests::{test}"), &own.0, Some(&mount)).output().unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
fn a_folder_that_cannot_be_written_is_refused_in_words() {
    on_a_disk("child_on_a_disk_to_read", |folder| format!("mount -t tmpfs -o ro none '{folder}'"));
}

#[tokio::test]
#[ignore = "the child of another test"]
async fn child_on_a_disk_to_read() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let text = EmbeddedTimelines::open(config(Path::new(&folder))).unwrap_err().to_string();
    assert!(text.contains(folder.to_str().unwrap()) && text.contains("Read-only file system"), "{text}");
}

#[test]
fn a_full_disk_is_said_and_survived() {
    on_a_disk("child_on_a_small_disk", |folder| format!("mount -t tmpfs -o size=160m none '{folder}'"));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the child of another test"]
async fn child_on_a_small_disk() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let disk = Path::new(&folder);
    // What somebody else will remove.
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
    let mut kept: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    let mut errors = Vec::new();
    let until = Instant::now() + Duration::from_secs(60);
    while errors.len() < 3 {
        assert!(Instant::now() < until, "{} messages on a small disk", kept.len());
        let body = noise();
        match store.append(vec![conformance::append_of(timeline.clone(), body.clone())]).await {
            Ok(done) => drop(kept.insert(done[0].position.seq.0, body)),
            Err(error) => errors.push(error.to_string()),
        }
    }
    let last = errors.last().unwrap();
    assert!(last.contains("No space left") || last.contains(" MiB are free on the disk of "), "{errors:?}");
    std::fs::remove_file(&ballast).unwrap();
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        assert!(Instant::now() < until, "it does not recover: {:?}", errors.last());
        let body = noise();
        match store.append(vec![conformance::append_of(timeline.clone(), body.clone())]).await {
            Ok(done) => {
                kept.insert(done[0].position.seq.0, body);
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
            assert_eq!(stored.seq.0, expected, "a hole");
            if let Some(body) = kept.remove(&expected) {
                assert_eq!(stored.message.bodies.primary_bytes(), body);
            }
        }
        after = last.seq;
    }
    assert!(kept.is_empty(), "{:?} were answered and are not there", kept.keys());
}
