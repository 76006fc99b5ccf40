//! Start offsets: new groups, new partitions, recreated topics, offsets out of range.

use std::collections::BTreeSet;

use parking_lot::Mutex;
use rdkafka::TopicPartitionList;
use rdkafka::admin::NewPartitions;
use rdkafka::topic_partition_list::Offset;

use super::*;

fn admin(broker: &str) -> AdminClient<rdkafka::client::DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", broker).create().unwrap()
}

async fn raise(broker: &str, topic: &str, partitions: usize) {
    let raised = [&NewPartitions::new(topic, partitions)];
    let raised = admin(broker).create_partitions(raised, &AdminOptions::new()).await.unwrap();
    assert!(raised.iter().all(Result::is_ok), "{raised:?}");
}

async fn recreate(broker: &str, topic: &str, partitions: i32) {
    let admin = admin(broker);
    let gone = admin.delete_topics(&[topic], &AdminOptions::new()).await.unwrap();
    assert!(gone.iter().all(Result::is_ok), "{gone:?}");
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1)).set("retention.ms", "-1");
        let made = admin.create_topics([&new], &AdminOptions::new()).await.unwrap();
        match &made[0] {
            Ok(_) => return,
            // The old topic is not completely deleted yet.
            Err(error) => assert!(Instant::now() < until, "{error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The records that a reader task has read and marked as done.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<BTreeSet<String>>>);

impl Seen {
    fn by(mut reader: KafkaPushLogReader) -> (Self, tokio::task::JoinHandle<()>) {
        let seen = Self::default();
        let of_task = seen.clone();
        let task = tokio::spawn(async move {
            while let Ok(Some(entries)) = reader.read().await {
                for entry in entries {
                    of_task.0.lock().extend(bodies(std::slice::from_ref(&entry)));
                    reader.done(entry.position);
                }
            }
        });
        (seen, task)
    }

    fn missing(&self, of: &[String]) -> Vec<String> {
        let seen = self.0.lock();
        of.iter().filter(|body| !seen.contains(*body)).cloned().collect()
    }

    /// Waits until all of these have been read.
    async fn has(&self, what: &str, of: &[String]) {
        let until = Instant::now() + Duration::from_secs(40);
        while !self.missing(of).is_empty() {
            let missing = self.missing(of);
            assert!(
                Instant::now() < until,
                "{what}: {} of {} are lost: {missing:?}",
                missing.len(),
                of.len()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Appends one push to each of many keys, so that all partitions have some.
async fn append_to_all(log: &KafkaPushLog, round: &str) -> Vec<String> {
    let mut sent = Vec::new();
    for n in 0..48 {
        let body = format!("{round}-{n}");
        log.append(record_for_key(&format!("k{n}"), body.clone())).await.unwrap();
        sent.push(body);
    }
    sent
}

/// Appends records that a group starting at the end must not read.
async fn newest(config: KafkaConfig) -> (KafkaConfig, Arc<KafkaPushLog>) {
    let config = KafkaConfig { auto_offset_reset: OffsetReset::Latest, ..config };
    let log = KafkaPushLog::start(config.clone()).await.unwrap();
    append_to_all(&log, "before").await;
    (config, log)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka: scripts/test.sh"]
async fn partitions_added_under_load_are_read_from_their_beginning() {
    let broker = broker();
    let (config, log) = newest(with_topic(&broker, 4).await).await;
    let reader = KafkaPushLogReader::join(config.clone()).await.unwrap();
    let (seen, task) = Seen::by(reader);
    let mut sent = append_to_all(&log, "first").await;
    seen.has("before they are raised", &sent).await;
    raise(&broker, &config.topic, 12).await;
    let raised = Instant::now();
    // A log that starts now knows all partitions; the reader does not yet.
    let knows_all = KafkaPushLog::start(config.clone()).await.unwrap();
    sent.extend(append_to_all(&knows_all, "new").await);
    for round in 0..10 {
        sent.extend(append_to_all(&log, &format!("old-{round}")).await);
    }
    seen.has("after they were raised", &sent).await;
    eprintln!("all partitions are read {:?} after they were raised", raised.elapsed());
    assert!(raised.elapsed() < Duration::from_secs(20), "{:?}", raised.elapsed());
    assert!(seen.missing(&["before-0".to_owned()]).len() == 1, "a new group begins at the end");
    task.abort();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka: scripts/test.sh"]
async fn partitions_added_while_a_static_member_is_offline_are_read() {
    let broker = broker();
    let config = KafkaConfig {
        instance_id: Some("job1".to_owned()),
        session_timeout: Duration::from_secs(30),
        ..with_topic(&broker, 2).await
    };
    let (config, log) = newest(config).await;
    let (seen, task) = Seen::by(KafkaPushLogReader::join(config.clone()).await.unwrap());
    let sent = append_to_all(&log, "first").await;
    seen.has("before they are raised", &sent).await;
    task.abort();
    let _ = task.await;
    raise(&broker, &config.topic, 6).await;
    let knows_all = KafkaPushLog::start(config.clone()).await.unwrap();
    let sent = append_to_all(&knows_all, "new").await;
    let (seen, task) = Seen::by(KafkaPushLogReader::join(config.clone()).await.unwrap());
    seen.has("after they were raised", &sent).await;
    task.abort();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka: scripts/test.sh"]
async fn a_new_group_restarts_at_its_start_after_a_crash_before_the_first_commit() {
    let broker = broker();
    for name in [None, Some("job1".to_owned())] {
        let config = KafkaConfig { instance_id: name, ..with_topic(&broker, 4).await };
        let (config, log) = newest(config).await;
        let mut child = child_process::Reader::start(&config);
        child.reads_after(|| log.append(record_for_key("k0", "is read, and not done"))).await;
        child.kill();
        let sent = append_to_all(&log, "without a reader").await;
        let (seen, task) = Seen::by(KafkaPushLogReader::join(config.clone()).await.unwrap());
        seen.has("of a killed job", &sent).await;
        seen.has("of a killed job", &["is read, and not done".to_owned()]).await;
        assert!(seen.missing(&["before-0".to_owned()]).len() == 1);
        task.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka: scripts/test.sh"]
async fn a_new_group_continues_after_a_stop_before_the_first_periodic_commit() {
    let broker = broker();
    for name in [None, Some("job1".to_owned())] {
        let config = KafkaConfig {
            commit_interval: Duration::from_secs(3600),
            instance_id: name,
            ..with_topic(&broker, 4).await
        };
        let (config, log) = newest(config).await;
        let mut reader = KafkaPushLogReader::join(config.clone()).await.unwrap();
        log.append(record_for_key("k0", "done")).await.unwrap();
        let done = read(&mut reader, 1).await;
        reader.done(done[0].position);
        tokio::task::spawn_blocking(move || drop(reader)).await.unwrap();
        let sent = append_to_all(&log, "without a reader").await;
        let (seen, task) = Seen::by(KafkaPushLogReader::join(config.clone()).await.unwrap());
        seen.has("of a stopped job", &sent).await;
        assert_eq!(seen.missing(&["before-0".to_owned(), "done".to_owned()]).len(), 2, "its commit was made");
        task.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka: scripts/test.sh"]
async fn concurrently_started_jobs_of_a_new_group_lose_nothing() {
    let broker = broker();
    let (config, log) = newest(with_topic(&broker, 6).await).await;
    let joins: Vec<_> = (0..3)
        .map(|_| {
            let (config, log) = (config.clone(), Arc::clone(&log));
            tokio::spawn(async move {
                let reader = KafkaPushLogReader::join(config).await.unwrap();
                (reader, append_to_all(&log, &unique("joined")).await)
            })
        })
        .collect();
    let (mut sent, mut all, mut tasks) = (Vec::new(), Vec::new(), Vec::new());
    for join in joins {
        let (reader, of_it) = join.await.unwrap();
        sent.extend(of_it);
        let (seen, task) = Seen::by(reader);
        all.push(seen);
        tasks.push(task);
    }
    becomes("every push is seen by one of them", || {
        let all: BTreeSet<String> = all.iter().flat_map(|seen| seen.0.lock().clone()).collect();
        sent.iter().all(|body| all.contains(body))
    })
    .await;
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka: scripts/test.sh"]
async fn a_recreated_topic_is_read_from_its_beginning() {
    let broker = broker();
    // Fewer records than the old topic had, and more: then the old position is valid in the new
    // topic. Immediately, and after the reader has noticed that the topic is missing.
    for (records, is_slow) in [(5, false), (60, false), (60, true)] {
        let (config, mut log) = newest(with_topic(&broker, 1).await).await;
        let reader = KafkaPushLogReader::join(config.clone()).await.unwrap();
        let stats = reader.stats();
        let (seen, task) = Seen::by(reader);
        let sent: Vec<String> = append_to_all(&log, "old").await;
        seen.has("of the old topic", &sent).await;
        becomes("all of it is committed", || committed(&config, 1) == 96).await;
        if is_slow {
            let errors = stats().errors;
            let gone = admin(&broker).delete_topics(&[&config.topic], &AdminOptions::new()).await.unwrap();
            assert!(gone.iter().all(Result::is_ok), "{gone:?}");
            // A running log would recreate the topic, with the broker's default partitions.
            drop(std::mem::replace(
                &mut log,
                KafkaPushLog::start(with_topic(&broker, 1).await).await.unwrap(),
            ));
            becomes("the reader has missed the topic", || stats().errors > errors).await;
            let _ = with_named_topic(&broker, &config.topic, 1).await;
            log = KafkaPushLog::start(config.clone()).await.unwrap();
        } else {
            recreate(&broker, &config.topic, 1).await;
        }
        let again = KafkaPushLog::start(config.clone()).await.unwrap();
        let mut sent = Vec::new();
        for n in 0..records {
            let (key, bodies) = ("k", [format!("new-{n}"), format!("new-{n}-too")]);
            for body in bodies {
                again.append(record_for_key(key, body.clone())).await.unwrap();
                sent.push(body);
            }
        }
        seen.has(&format!("of the new topic, {records} twice, slow: {is_slow}"), &sent).await;
        // A log of the old topic writes to the new one.
        log.append(record_for_key("k", "by the old log")).await.unwrap();
        seen.has("of the old log", &["by the old log".to_owned()]).await;
        becomes("all of it is committed", || committed(&config, 1) == 2 * records + 1).await;
        task.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka: scripts/test.sh"]
async fn after_retention_removed_a_position_reading_continues_at_the_oldest_record() {
    let broker = broker();
    let (config, log) = newest(with_topic(&broker, 1).await).await;
    let mut reader = KafkaPushLogReader::join(config.clone()).await.unwrap();
    let sent = append_to_all(&log, "new").await;
    let entries = read(&mut reader, 48).await;
    reader.done(entries[9].position);
    becomes("ten are committed", || committed(&config, 1) == 58).await;
    tokio::task::spawn_blocking(move || drop(reader)).await.unwrap();
    let mut taken = TopicPartitionList::new();
    taken.add_partition_offset(&config.topic, 0, Offset::Offset(68)).unwrap();
    admin(&broker).delete_records(&taken, &AdminOptions::new()).await.unwrap();
    let (seen, task) = Seen::by(KafkaPushLogReader::join(config.clone()).await.unwrap());
    seen.has("of what is left", &sent[20..]).await;
    task.abort();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka: scripts/test.sh"]
async fn partitions_without_offsets_of_a_known_group_are_read_from_their_beginning() {
    let broker = broker();
    let (config, log) = newest(with_topic(&broker, 3).await).await;
    // Like a group of Go jobs: committed only where something was pushed.
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &broker)
        .set("group.id", &config.group)
        .create()
        .unwrap();
    let (_, end) = tokio::task::block_in_place(|| {
        consumer.fetch_watermarks(&config.topic, 1, Duration::from_secs(10)).unwrap()
    });
    let mut known = TopicPartitionList::new();
    known.add_partition_offset(&config.topic, 1, Offset::Offset(end)).unwrap();
    tokio::task::block_in_place(|| consumer.commit(&known, rdkafka::consumer::CommitMode::Sync).unwrap());
    let sent = append_to_all(&log, "without a reader").await;
    let (seen, task) = Seen::by(KafkaPushLogReader::join(config.clone()).await.unwrap());
    seen.has("of a group that goes on", &sent).await;
    task.abort();
}
