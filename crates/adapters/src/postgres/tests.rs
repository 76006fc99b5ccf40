//! Timelines on a real PostgreSQL that the tests start: conformance, two stores on one database,
//! and the server's death.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use goim_ports::{
    IdempotencyKey, ReadLimit, Retention, RetentionRules, TimelineError, TimelineId, TimelineSeq,
    TimelineStore as _,
};

use super::*;
use crate::conformance;

/// A PostgreSQL server for one test, stopped on drop.
struct TestPostgres {
    folder: PathBuf,
    url: String,
}

impl TestPostgres {
    /// Starts a server.
    fn start() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("goim-postgres-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let mut own = Self { folder: std::env::temp_dir().join(name), url: String::new() };
        let output = own.script("start");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        own.url = String::from_utf8(output.stdout).unwrap().trim().to_owned();
        own
    }

    fn script(&self, verb: &str) -> Output {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/engines/postgres.sh");
        Command::new(script).arg(verb).arg(&self.folder).output().unwrap()
    }

    fn config(&self, database: &str) -> PostgresConfig {
        let rules = RetentionRules { retention_overrides: Vec::new(), otherwise: Retention::FOREVER };
        let url = self.url.replace("/postgres", &format!("/{database}")).replacen(
            &format!("{database}:"),
            "postgres:",
            1,
        );
        PostgresConfig::new(url, rules, Duration::from_secs(3600))
    }

    async fn client(&self) -> tokio_postgres::Client {
        let (client, connection) = tokio_postgres::connect(&self.url, tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    /// Creates an empty database.
    async fn database(&self) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("own{}", NEXT.fetch_add(1, Ordering::Relaxed));
        self.client().await.batch_execute(&format!("CREATE DATABASE {name}")).await.unwrap();
        name
    }

    async fn store(&self, database: &str) -> PostgresTimelines {
        PostgresTimelines::connect(self.config(database)).await.unwrap()
    }
}

impl Drop for TestPostgres {
    fn drop(&mut self) {
        self.script("stop");
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: scripts/test.sh"]
async fn conforms() {
    let own = TestPostgres::start();
    conformance::timelines(async || own.store(&own.database().await).await).await;
    conformance::timelines_retain(
        async |rules| {
            let config = PostgresConfig { rules, ..own.config(&own.database().await) };
            PostgresTimelines::connect(config).await.unwrap()
        },
        async |store, now| store.retain(now).await.unwrap(),
    )
    .await;
    let database = own.database().await;
    conformance::timelines_last(
        async || own.store(&database).await,
        async |store| {
            drop(store);
            own.store(&database).await
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: scripts/test.sh"]
async fn stores_that_share_a_timeline_leave_no_gap_and_share_idempotency_keys() {
    let own = TestPostgres::start();
    let database = own.database().await;
    let stores = [Arc::new(own.store(&database).await), Arc::new(own.store(&database).await)];
    let timelines = ["a://1", "a://2", "a://3"].map(|name| TimelineId::Room(name.into()));
    let tasks: Vec<_> = (0..8_usize)
        .map(|task| {
            let (store, timelines) = (Arc::clone(&stores[task % 2]), timelines.clone());
            tokio::spawn(async move {
                let mut fresh = 0;
                for number in 0..60_usize {
                    // Each message is appended by all tasks, to one, two or three timelines at
                    // once.
                    let some = timelines.iter().cycle().skip(task + number).take(1 + number % 3);
                    let appends = some.map(|timeline| goim_ports::Append {
                        idempotency_key: IdempotencyKey::new(number.to_string()),
                        ..conformance::append_of(timeline.clone(), number.to_string())
                    });
                    let kept = store.append(appends.collect()).await.unwrap();
                    fresh += kept.iter().filter(|kept| !kept.is_duplicate).count();
                }
                fresh
            })
        })
        .collect();
    let mut fresh = 0;
    for task in tasks {
        fresh += task.await.unwrap();
    }
    let all = ReadLimit { messages: usize::MAX, bytes: usize::MAX };
    let mut found = 0;
    for timeline in timelines {
        let range = stores[0].read(timeline, TimelineSeq(0), all).await.unwrap();
        let seqs: Vec<u64> = range.messages.iter().map(|stored| stored.seq.0).collect();
        assert_eq!(seqs, (1..=range.head.latest.0).collect::<Vec<_>>());
        let bodies: std::collections::BTreeSet<_> =
            range.messages.iter().map(|stored| stored.message.bodies.primary().unwrap().clone()).collect();
        assert_eq!(bodies.len(), range.messages.len(), "each key once");
        found += range.messages.len();
    }
    assert_eq!(found, fresh);
}

/// The appends of a publisher task, counted for the test that kills the server.
#[derive(Default)]
struct Progress {
    is_stopped: AtomicBool,
    stored: AtomicU32,
    failed: AtomicU32,
}

impl Progress {
    /// Waits until `counter` has grown by `more`.
    async fn wait_for(counter: &AtomicU32, more: u32) {
        let (target, deadline) =
            (counter.load(Ordering::Relaxed) + more, Instant::now() + Duration::from_secs(30));
        while counter.load(Ordering::Relaxed) < target {
            assert!(Instant::now() < deadline, "not within 30 s");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// What a publisher got: sequences and bodies of stored messages, and the errors before retries.
type Published = (TimelineId, Vec<(TimelineSeq, String)>, Vec<String>);

/// Appends messages until it is stopped. Retries each with its key until it is confirmed.
async fn publish(store: Arc<PostgresTimelines>, progress: Arc<Progress>, task: usize) -> Published {
    let timeline = TimelineId::Room(format!("a://{}", task % 3).into());
    let (mut stored, mut errors) = (Vec::new(), Vec::new());
    for number in 0.. {
        if progress.is_stopped.load(Ordering::Relaxed) {
            break;
        }
        let body = format!("{task}.{number}");
        loop {
            let append = goim_ports::Append {
                idempotency_key: IdempotencyKey::new(body.clone()),
                ..conformance::append_of(timeline.clone(), body.clone())
            };
            match store.append(vec![append]).await {
                Ok(results) => {
                    stored.push((results[0].position.seq, body));
                    progress.stored.fetch_add(1, Ordering::Relaxed);
                    break;
                }
                Err(error @ (TimelineError::Unavailable(_) | TimelineError::Unknown(_))) => {
                    errors.push(error.to_string());
                    progress.failed.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
    (timeline, stored, errors)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: scripts/test.sh"]
async fn the_death_of_the_server_loses_no_confirmed_message() {
    let own = TestPostgres::start();
    let config = PostgresConfig { deadline: Duration::from_secs(2), ..own.config("postgres") };
    let store = Arc::new(PostgresTimelines::connect(config).await.unwrap());
    let progress = Arc::new(Progress::default());
    let tasks: Vec<_> =
        (0..8).map(|task| tokio::spawn(publish(Arc::clone(&store), Arc::clone(&progress), task))).collect();
    for _ in 0..3 {
        Progress::wait_for(&progress.stored, 100).await;
        own.script("kill");
        Progress::wait_for(&progress.failed, 1).await;
        assert!(own.script("start").status.success());
    }
    Progress::wait_for(&progress.stored, 100).await;
    progress.is_stopped.store(true, Ordering::Relaxed);
    let mut all_errors = Vec::new();
    let all = ReadLimit { messages: usize::MAX, bytes: usize::MAX };
    for task in tasks {
        let (timeline, stored, errors) = task.await.unwrap();
        let range = store.read(timeline.clone(), TimelineSeq(0), all).await.unwrap();
        for (seq, body) in &stored {
            let found = range.messages.iter().find(|found| found.seq == *seq);
            let found = found.map(|found| found.message.bodies.primary_bytes());
            assert_eq!(found, Some(body.as_bytes()), "{timeline} {seq}");
        }
        let seqs: Vec<u64> = range.messages.iter().map(|stored| stored.seq.0).collect();
        assert_eq!(seqs, (1..=range.head.latest.0).collect::<Vec<_>>());
        all_errors.extend(errors);
    }
    let names_server = |error: &String| error.contains("postgres 127.0.0.1:");
    assert!(all_errors.iter().all(names_server), "{:?}", all_errors.first());
}

async fn connect_error(url: &str) -> String {
    let rules = RetentionRules { retention_overrides: Vec::new(), otherwise: Retention::FOREVER };
    let config = PostgresConfig::new(url.to_owned(), rules, Duration::from_secs(60));
    let config = PostgresConfig { deadline: Duration::from_millis(500), ..config };
    PostgresTimelines::connect(config).await.unwrap_err().to_string()
}

#[tokio::test]
async fn unusable_addresses_are_reported_without_the_password() {
    let text = connect_error("postgres://goim:secret@127.0.0.1:port/db").await;
    assert!(text.contains("expected postgres://") && !text.contains("secret"), "{text}");
    // No server listens on this port.
    let closed = "127.0.0.1:1";
    let started = Instant::now();
    let text = connect_error(&format!("postgres://goim:secret@{closed}/db")).await;
    assert!(text.contains(closed) && !text.contains("secret"), "{text}");
    assert!(started.elapsed() < Duration::from_secs(10));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: scripts/test.sh"]
async fn tables_of_an_unknown_version_are_refused() {
    let own = TestPostgres::start();
    drop(own.store("postgres").await);
    for version in [1, 3, 99] {
        let change = format!("UPDATE goim_schema SET version = {version}");
        own.client().await.batch_execute(&change).await.unwrap();
        let text = connect_error(&own.url).await;
        let expected = format!("of version {version}, and this version of goim supports version 2");
        assert!(text.contains(&expected), "{text}");
    }
}
