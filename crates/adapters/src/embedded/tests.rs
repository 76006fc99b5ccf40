//! Timelines in a folder: conformance, reopening, kills, torn journals, full disks.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use goim_ports::{
    Mid, ReadLimit, Retention, RetentionRules, TimelineError, TimelineId, TimelineSeq, TimelineStore as _,
};

use super::*;
use crate::conformance;

mod child_process;

/// A folder for one test, removed on drop.
struct TempFolder(PathBuf);

impl TempFolder {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("goim-timelines-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        Self(std::env::temp_dir().join(name))
    }
}

impl Drop for TempFolder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn config(folder: &Path) -> EmbeddedConfig {
    let rules = RetentionRules { retention_overrides: Vec::new(), otherwise: Retention::FOREVER };
    EmbeddedConfig::new(folder.to_owned(), rules, Duration::from_secs(3600))
}

/// Opens a store in a new folder.
fn fresh(owns: &std::cell::RefCell<Vec<TempFolder>>) -> EmbeddedTimelines {
    let own = TempFolder::new();
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
    let own = TempFolder::new();
    conformance::timelines_retain(
        async |rules| EmbeddedTimelines::open(EmbeddedConfig { rules, ..config(&own.0) }).unwrap(),
        async |store, now| tokio::task::block_in_place(|| store.retain(now)).unwrap(),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lasts_when_it_is_opened_again() {
    let own = TempFolder::new();
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
async fn a_folder_of_something_else_is_refused() {
    type Prepare = fn(&Path);
    let cases: [(&str, Prepare, &str); 6] = [
        (
            "another format",
            |folder| write(folder, "FORMAT", "goim timelines 999\n"),
            "of format 999, and this version reads format 2",
        ),
        (
            "the format before the first release",
            |folder| write(folder, "FORMAT", "goim timelines 1\n"),
            "of format 1, and this version reads format 2",
        ),
        ("no format at all", |folder| write(folder, "FORMAT", "\u{1}\u{2}"), "of format"),
        ("something else", |folder| write(folder, "letters.txt", "dear"), "is neither empty nor"),
        ("a file", |folder| std::fs::write(folder, "x").unwrap(), "cannot be used for timelines"),
        ("a start that was cut off", |folder| write(folder, "FORMAT.new", "goim tim"), ""),
    ];
    for (what, prepare, expected) in cases {
        let own = TempFolder::new();
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
    let own = TempFolder::new();
    let first = EmbeddedTimelines::open(config(&own.0)).unwrap();
    let text = EmbeddedTimelines::open(config(&own.0)).unwrap_err().to_string();
    assert!(text.contains("another process is using"), "{text}");
    drop(first);
    EmbeddedTimelines::open(config(&own.0)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_tail_cache_gives_no_sequence_twice() {
    let own = TempFolder::new();
    let store = EmbeddedTimelines::open(EmbeddedConfig { head_cache_entries: 1, ..config(&own.0) }).unwrap();
    for round in 0..3 {
        // The appends of one call are one commit group.
        let appends =
            (0..40).map(|nth| conformance::append_of(TimelineId::Inbox(Mid(nth % 8 + 1)), vec![b'x']));
        let results = store.append(appends.collect()).await.unwrap();
        let seqs: Vec<u64> = results.iter().map(|result| result.position.seq.0).collect();
        let expected: Vec<u64> = (0..40).map(|nth| round * 5 + nth / 8 + 1).collect();
        assert_eq!(seqs, expected, "round {round}");
    }
}

#[tokio::test]
async fn the_write_queue_is_bounded() {
    let own = TempFolder::new();
    let bound = EmbeddedConfig { pending_messages_max: 100, pending_bytes_max: 1 << 20, ..config(&own.0) };
    let store = EmbeddedTimelines::open(bound).unwrap();
    let timeline = TimelineId::Room("a://1".into());
    let append = |size: usize| store.append(vec![conformance::append_of(timeline.clone(), vec![b'x'; size])]);
    // The calls are not awaited: they are sent faster than they are written, so some are refused.
    let calls: Vec<_> = (0..200_000).map(|_| append(10)).collect();
    let (mut stored, mut busy) = (0_u64, 0_u64);
    for call in calls {
        match call.await {
            Ok(_) => stored += 1,
            Err(TimelineError::Busy(_)) => busy += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(stored >= 100 && busy > 0, "{stored} stored, {busy} refused");
    let head = store.heads(vec![timeline.clone()]).await.unwrap()[0];
    assert_eq!(head.latest.0, stored, "refused messages are not stored");
    // A message larger than the limit is admitted when the queue is empty.
    append(2 << 20).await.unwrap();
}

/// The confirmed messages: the start of the body by timeline, epoch and sequence.
type Confirmed = BTreeMap<(String, u64, u64), String>;

/// Runs the child, kills it after a number of confirmations, and adds them.
fn run_and_kill(folder: &Path, round: usize, answers: usize, confirmed: &mut Confirmed) {
    let mut command = child_process::command("appends_until_killed", folder, None);
    let mut running = command.env("ROUND", round.to_string()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(running.stdout.take().unwrap()).lines();
    let mut seen = 0;
    // Lines that it printed before it was killed count too.
    while let Some(Ok(line)) = lines.next() {
        let parts: Vec<&str> = line.split(' ').collect();
        let [timeline, epoch, seq, body] = parts[..] else { continue };
        let (Ok(epoch), Ok(seq)) = (epoch.parse(), seq.parse()) else { continue };
        let before = confirmed.insert((timeline.to_owned(), epoch, seq), body.to_owned());
        assert_eq!(before, None, "{timeline} {seq} was assigned twice");
        seen += 1;
        if seen == answers {
            running.kill().unwrap();
        }
    }
    running.wait().unwrap();
    assert!(seen >= answers, "the child ended by itself after {seen}");
}

/// Checks that all confirmed messages are stored and no timeline has a gap. Returns the number of
/// messages.
async fn verify(store: &EmbeddedTimelines, confirmed: &Confirmed) -> usize {
    let all = ReadLimit { messages: usize::MAX, bytes: usize::MAX };
    let (mut there, mut found) = (Confirmed::new(), 0);
    for mid in 1..=40 {
        let timeline = TimelineId::Inbox(Mid(mid));
        let range = store.read(timeline.clone(), TimelineSeq(0), all).await.unwrap();
        for (stored, expected) in range.messages.iter().zip(1..) {
            assert_eq!(stored.seq.0, expected, "{timeline} has a gap");
            let body = std::str::from_utf8(stored.message.bodies.primary_bytes()).unwrap();
            let name = body.split(' ').next().unwrap().to_owned();
            there.insert((timeline.to_string(), range.head.epoch.0, expected), name);
            found += 1;
        }
        assert_eq!(range.head.latest.0, range.messages.len() as u64);
    }
    for (position, body) in confirmed {
        assert_eq!(there.get(position), Some(body), "{position:?} was confirmed");
    }
    found
}

#[tokio::test]
async fn kills_lose_no_confirmed_message() {
    let own = TempFolder::new();
    let mut confirmed = Confirmed::new();
    for round in 0..8 {
        run_and_kill(&own.0, round, 300 + round * 777, &mut confirmed);
        let store = EmbeddedTimelines::open(config(&own.0)).unwrap();
        let found = verify(&store, &confirmed).await;
        assert!(found >= confirmed.len());
    }
}

/// Returns the newest journal file of the engine.
fn journal(folder: &Path) -> PathBuf {
    let files = std::fs::read_dir(folder.join("data")).unwrap().flatten().map(|entry| entry.path());
    let journals = files.filter(|path| path.extension().is_some_and(|extension| extension == "jnl"));
    journals.max_by_key(|path| path.metadata().unwrap().modified().unwrap()).unwrap()
}

#[tokio::test]
async fn a_torn_journal_loses_only_its_end() {
    let own = TempFolder::new();
    let mut confirmed = Confirmed::new();
    run_and_kill(&own.0, 0, 2_000, &mut confirmed);
    let torn = journal(&own.0);
    let whole = std::fs::read(&torn).unwrap();
    // The end of the last batch; zeros may follow.
    let end = whole.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    for (what, cut) in [("a byte", 1), ("a half", 40), ("much", 5_000)] {
        let mut part = whole[..end - cut].to_vec();
        std::fs::write(&torn, &part).unwrap();
        let store = EmbeddedTimelines::open(config(&own.0)).unwrap();
        let after = verify(&store, &Confirmed::new()).await;
        assert!(after > 0, "{what} is missing, and everything else");
        let timeline = TimelineId::Inbox(Mid(1));
        store.append(vec![conformance::append_of(timeline, "x")]).await.unwrap();
        drop(store);
        let store = EmbeddedTimelines::open(config(&own.0)).unwrap();
        assert_eq!(verify(&store, &Confirmed::new()).await, after + 1, "{what}");
        drop(store);
        // Replace the last bytes with noise.
        part.extend(std::iter::repeat_n(0xA5, cut));
        std::fs::write(&torn, &part).unwrap();
    }
}

/// Returns whether this process may mount a disk for a child process.
fn may_mount() -> bool {
    let may = Command::new("unshare").args(["--mount", "true"]).status().is_ok_and(|status| status.success());
    assert!(may || std::env::var_os("CI").is_none(), "needs root, to mount a disk");
    may
}

fn on_a_disk(test: &str, mount: impl Fn(&str) -> String) {
    if !may_mount() {
        eprintln!("skipped: needs root, to mount a disk");
        return;
    }
    let own = TempFolder::new();
    std::fs::create_dir_all(&own.0).unwrap();
    let mount = mount(own.0.to_str().unwrap());
    let output = child_process::command(test, &own.0, Some(&mount)).output().unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
#[ignore = "needs root: scripts/test.sh"]
fn a_folder_that_cannot_be_written_is_refused() {
    on_a_disk("open_fails_on_a_read_only_disk", |folder| format!("mount -t tmpfs -o ro none '{folder}'"));
}

#[test]
#[ignore = "needs root: scripts/test.sh"]
fn a_full_disk_is_reported_and_survived() {
    on_a_disk("recovers_from_a_full_disk", |folder| format!("mount -t tmpfs -o size=160m none '{folder}'"));
}
