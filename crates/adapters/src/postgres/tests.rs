//! Timelines on a real PostgreSQL, started by the tests: as every store, shared by two, and through the server's death.

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

/// A PostgreSQL of a test's own, ended with it.
struct Own {
    folder: PathBuf,
    url: String,
}

impl Own {
    /// `None` where PostgreSQL cannot be had, which is a failure when everything must run.
    fn start() -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("goim-postgres-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let mut own = Self { folder: std::env::temp_dir().join(name), url: String::new() };
        let output = own.script("start");
        if output.status.code() == Some(2) {
            assert!(std::env::var_os("CI").is_none(), "{}", String::from_utf8_lossy(&output.stderr));
            eprintln!("passed over: {}", String::from_utf8_lossy(&output.stderr));
            return None;
        }
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        own.url = String::from_utf8(output.stdout).unwrap().trim().to_owned();
        Some(own)
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

    /// An empty database of this server.
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

impl Drop for Own {
    fn drop(&mut self) {
        self.script("stop");
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn conforms() {
    let Some(own) = Own::start() else { return };
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
async fn two_that_share_a_timeline_leave_no_hole_and_know_each_others_names() {
    let Some(own) = Own::start() else { return };
    let database = own.database().await;
    let stores = [Arc::new(own.store(&database).await), Arc::new(own.store(&database).await)];
    let timelines = ["a://1", "a://2", "a://3"].map(|name| TimelineId::Room(name.into()));
    let tasks: Vec<_> = (0..8_usize)
        .map(|task| {
            let (store, timelines) = (Arc::clone(&stores[task % 2]), timelines.clone());
            tokio::spawn(async move {
                let mut fresh = 0;
                for number in 0..60_usize {
                    // Each message is appended by all tasks, to one, two or three timelines at once.
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
        assert_eq!(bodies.len(), range.messages.len(), "each name once");
        found += range.messages.len();
    }
    assert_eq!(found, fresh);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_death_of_the_server_costs_nothing_that_was_answered() {
    let Some(own) = Own::start() else { return };
    let mut config = own.config("postgres");
    config.deadline = Duration::from_secs(2);
    let store = Arc::new(PostgresTimelines::connect(config).await.unwrap());
    let stop = Arc::new(AtomicBool::new(false));
    let tasks: Vec<_> = (0..8)
        .map(|task| {
            let (store, stop) = (Arc::clone(&store), Arc::clone(&stop));
            tokio::spawn(async move {
                let timeline = TimelineId::Room(format!("a://{}", task % 3).into());
                let (mut kept, mut refused) = (Vec::new(), Vec::new());
                for number in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let body = format!("{task}.{number}");
                    // Until it is answered, as a publisher with a key does.
                    loop {
                        let append = goim_ports::Append {
                            idempotency_key: IdempotencyKey::new(body.clone()),
                            ..conformance::append_of(timeline.clone(), body.clone())
                        };
                        match store.append(vec![append]).await {
                            Ok(done) => {
                                kept.push((done[0].position.seq, body.clone()));
                                break;
                            }
                            Err(error @ (TimelineError::Unavailable(_) | TimelineError::Unknown(_))) => {
                                refused.push(error.to_string());
                                tokio::time::sleep(Duration::from_millis(20)).await;
                            }
                            Err(error) => panic!("{error}"),
                        }
                    }
                }
                (timeline, kept, refused)
            })
        })
        .collect();
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        own.script("kill");
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(own.script("start").status.success());
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    stop.store(true, Ordering::Relaxed);
    let (mut count, mut errors) = (0, Vec::new());
    let all = ReadLimit { messages: usize::MAX, bytes: usize::MAX };
    for task in tasks {
        let (timeline, kept, refused) = task.await.unwrap();
        let range = store.read(timeline.clone(), TimelineSeq(0), all).await.unwrap();
        for (seq, body) in &kept {
            let stored = range.messages.iter().find(|stored| stored.seq == *seq);
            assert_eq!(
                stored.map(|stored| stored.message.bodies.primary_bytes()),
                Some(body.as_bytes()),
                "{timeline} {seq}"
            );
        }
        let seqs: Vec<u64> = range.messages.iter().map(|stored| stored.seq.0).collect();
        assert_eq!(seqs, (1..=range.head.latest.0).collect::<Vec<_>>());
        count += kept.len();
        errors.extend(refused);
    }
    assert!(count > 100 && !errors.is_empty(), "{count} kept, {} refused", errors.len());
    assert!(errors.iter().all(|error| error.contains("postgres 127.0.0.1:")), "{:?}", errors.first());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_used_is_refused_in_words() {
    let rules = || RetentionRules { retention_overrides: Vec::new(), otherwise: Retention::FOREVER };
    let connect = async |url: &str| {
        let mut config = PostgresConfig::new(url.to_owned(), rules(), Duration::from_secs(60));
        config.deadline = Duration::from_millis(500);
        PostgresTimelines::connect(config).await.unwrap_err().to_string()
    };
    let text = connect("postgres://goim:secret@127.0.0.1:port/db").await;
    assert!(text.contains("wants postgres://") && !text.contains("secret"), "{text}");
    // A port that the system draws for nobody.
    let nobody = "127.0.0.1:1";
    let started = Instant::now();
    let text = connect(&format!("postgres://goim:secret@{nobody}/db")).await;
    assert!(text.contains(nobody) && !text.contains("secret"), "{text}");
    assert!(started.elapsed() < Duration::from_secs(10));
    let Some(own) = Own::start() else { return };
    drop(own.store("postgres").await);
    own.client().await.batch_execute("UPDATE goim_schema SET version = 99").await.unwrap();
    let text = connect(&own.url).await;
    assert!(text.contains("of version 99, and this reads up to version 1"), "{text}");
}
