//! Static members: they resume with their partitions, and names are unique.

use goim_ports::ReadError;

use super::*;

fn named(config: &KafkaConfig, name: &str) -> KafkaConfig {
    KafkaConfig { instance_id: Some(name.to_owned()), ..config.clone() }
}

/// Pushes to all partitions every 20 ms, and measures the time until one of the processes has read
/// the push.
struct Load {
    sent: std::collections::HashMap<String, Instant>,
    longest: Duration,
}

impl Load {
    async fn run(
        &mut self,
        log: &KafkaPushLog,
        readers: &[&child_process::Reader],
        round: &str,
        time: Duration,
    ) {
        let until = Instant::now() + time;
        let mut n = 0;
        while Instant::now() < until {
            n += 1;
            let body = format!("{round}-{n}");
            log.append(record_for_key(&format!("k{n}"), body.clone())).await.unwrap();
            self.sent.insert(body, Instant::now());
            tokio::time::sleep(Duration::from_millis(20)).await;
            self.collect(readers);
        }
    }

    fn collect(&mut self, readers: &[&child_process::Reader]) {
        for body in readers.iter().flat_map(|reader| reader.has_read()) {
            if let Some(since) = self.sent.remove(&body) {
                self.longest = self.longest.max(since.elapsed());
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka: scripts/test.sh"]
async fn a_killed_static_member_resumes_without_a_rebalance() {
    let broker = broker();
    // No test waits for the session timeout.
    let config = KafkaConfig { session_timeout: Duration::from_secs(30), ..with_topic(&broker, 8).await };
    let log = KafkaPushLog::start(config.clone()).await.unwrap();
    let mut other = KafkaPushLogReader::join(named(&config, "job2")).await.unwrap();
    let stats = other.stats();
    let mut victim = child_process::Reader::start_working(&named(&config, "job1"));
    let other = tokio::spawn(async move {
        let mut seen = 0;
        while let Ok(Some(entries)) = other.read().await {
            for entry in entries {
                seen += 1;
                other.done(entry.position);
            }
        }
        seen
    });
    // To all partitions, so that the victim gets some.
    let push = || async {
        for n in 0..16 {
            log.append(record_for_key(&format!("k{n}"), "x")).await?;
        }
        Ok(())
    };
    victim.reads_after(push).await;
    becomes("both have some", || (1..8).contains(&stats().partitions)).await;
    let rebalances = stats().rebalances;
    for round in 0..3 {
        victim.kill();
        let killed = Instant::now();
        victim = child_process::Reader::start_working(&named(&config, "job1"));
        victim.reads_after(push).await;
        eprintln!("round {round}: reads {:?} after it was killed", killed.elapsed());
        assert!(killed.elapsed() < Duration::from_secs(15), "{:?}", killed.elapsed());
    }
    assert_eq!(stats().rebalances, rebalances, "the other was rebalanced");
    other.abort();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka: scripts/test.sh"]
async fn a_stopped_static_member_resumes_immediately() {
    let broker = broker();
    let config = KafkaConfig {
        session_timeout: Duration::from_secs(30),
        instance_id: Some("job1".to_owned()),
        ..with_topic(&broker, 4).await
    };
    let (log, mut reader) = both_ends(&config).await;
    for n in 0..20 {
        log.append(record_for_key("k", format!("{n}"))).await.unwrap();
    }
    let entries = read(&mut reader, 20).await;
    reader.done(entries[14].position);
    let stopped = Instant::now();
    tokio::task::spawn_blocking(move || drop(reader)).await.unwrap();
    eprintln!("stopped within {:?}", stopped.elapsed());
    let mut reader = KafkaPushLogReader::join(config.clone()).await.unwrap();
    assert_eq!(bodies(&read(&mut reader, 5).await), ["15", "16", "17", "18", "19"]);
    eprintln!("reads {:?} after it began to stop", stopped.elapsed());
    assert!(stopped.elapsed() < Duration::from_secs(10), "{:?}", stopped.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka: scripts/test.sh"]
async fn a_static_member_may_stop_during_a_rebalance() {
    let broker = broker();
    let config = with_topic(&broker, 8).await;
    for nth in 0..20 {
        let config = named(&config, &format!("job{}", nth % 3));
        let stops = KafkaPushLogReader::join(config).await.unwrap();
        tokio::time::sleep(Duration::from_millis(nth * 5)).await;
        tokio::task::spawn_blocking(move || drop(stops)).await.unwrap();
    }
    let (log, mut reader) = both_ends(&named(&config, "job9")).await;
    log.append(record_for_room("live://1", "after")).await.unwrap();
    assert_eq!(read(&mut reader, 1).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka: scripts/test.sh"]
async fn of_two_members_with_one_name_the_first_is_fenced() {
    let broker = broker();
    let config = KafkaConfig { instance_id: Some("job1".to_owned()), ..with_topic(&broker, 2).await };
    let (log, mut first) = both_ends(&config).await;
    log.append(record_for_key("k", "before")).await.unwrap();
    let entries = read(&mut first, 1).await;
    first.done(entries[0].position);
    let mut second = KafkaPushLogReader::join(config.clone()).await.unwrap();
    let ended = async {
        loop {
            if let Err(error) = first.read().await {
                return error;
            }
        }
    };
    let ended = tokio::time::timeout(Duration::from_secs(20), ended).await.expect("it is fenced");
    let ReadError::Fenced(text) = &ended else { panic!("{ended:?}") };
    for part in ["\"job1\"", &config.group, "kafka.instance_id", "comet.node.server"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert_eq!(first.read().await, Err(ended), "permanently");
    log.append(record_for_key("k", "after")).await.unwrap();
    let entries = read(&mut second, 1).await;
    assert!(
        bodies(&entries).contains(&"after".to_owned())
            || bodies(&read(&mut second, 1).await).contains(&"after".to_owned())
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka: scripts/test.sh"]
async fn a_member_fenced_by_its_own_next_membership_rejoins() {
    let broker = broker();
    let config = KafkaConfig { instance_id: Some("job1".to_owned()), ..with_topic(&broker, 2).await };
    let (log, mut reader) = both_ends(&config).await;
    let stats = reader.stats();
    log.append(record_for_key("k", "before")).await.unwrap();
    let entries = read(&mut reader, 1).await;
    reader.done(entries[0].position);
    becomes("it is committed", || committed(&config, 2) == 1).await;
    // Another membership with the same name, whose process is stopped.
    let mut other = KafkaPushLogReader::join(config.clone()).await.unwrap();
    reader.lose_membership();
    let until = Instant::now() + Duration::from_secs(30);
    while other.stats()().partitions == 0 {
        assert!(Instant::now() < until, "the other has no partitions");
        let _ = tokio::time::timeout(Duration::from_millis(100), other.read()).await;
    }
    tokio::task::spawn_blocking(move || drop(other)).await.unwrap();
    for n in 0..8 {
        log.append(record_for_key(&format!("k{n}"), format!("{n}"))).await.unwrap();
    }
    // Records read before the fencing are not committed, and are read again.
    let until = Instant::now() + Duration::from_secs(30);
    while committed(&config, 2) < 9 {
        assert!(Instant::now() < until, "{} are committed", committed(&config, 2));
        let soon = tokio::time::timeout(Duration::from_millis(200), reader.read()).await;
        for entry in soon.map_or(Vec::new(), |read| read.expect("it goes on").unwrap()) {
            reader.done(entry.position);
        }
    }
    assert!(stats().read >= 9, "counted on: {:?}", stats());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka: scripts/test.sh"]
async fn a_static_member_resumes_after_a_broker_outage_longer_than_its_session() {
    let (own, broker) = TestBroker::start();
    let config = KafkaConfig { instance_id: Some("job1".to_owned()), ..with_topic(&broker, 4).await };
    let (log, mut reader) = both_ends(&config).await;
    for round in 0..3 {
        let body = format!("{round}");
        for n in 0..8 {
            while log.append(record_for_key(&format!("k{n}"), body.clone())).await.is_err() {}
        }
        let mut entries = read(&mut reader, 1).await;
        while entries.iter().filter(|entry| entry.record.payload.primary_bytes() == body.as_bytes()).count()
            < 8
        {
            entries.extend(read(&mut reader, 1).await);
        }
        own.script("kill");
        // So a commit waits until the coordinator is back, when the membership has changed.
        entries.iter().for_each(|entry| reader.done(entry.position));
        let outage = tokio::time::timeout(config.session_timeout + Duration::from_secs(2), async {
            loop {
                reader.read().await.expect("an unreachable broker is no fatal error");
            }
        });
        assert!(outage.await.is_err());
        own.script("start");
        let until = Instant::now() + Duration::from_secs(20);
        while committed(&config, 4) < 8 * (round + 1) {
            assert!(Instant::now() < until, "{} are committed", committed(&config, 4));
            let soon = tokio::time::timeout(Duration::from_millis(200), reader.read()).await;
            for entry in soon.map_or(Vec::new(), |read| read.expect("it goes on").unwrap()) {
                reader.done(entry.position);
            }
        }
    }
}

/// A job that is killed thirty times under load. The environment variables `KILLS` and `SESSION`
/// (in ms) change it.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes; for the figures of docs/reliability.md"]
async fn thirty_kills_under_load_takes_minutes() {
    let broker = broker();
    let number = |name: &str, default: u64| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    let config = KafkaConfig {
        session_timeout: Duration::from_millis(number("SESSION", 10_000)),
        auto_offset_reset: OffsetReset::Latest,
        ..with_topic(&broker, 8).await
    };
    let log = KafkaPushLog::start(config.clone()).await.unwrap();
    let mut readers = [
        child_process::Reader::start_working(&named(&config, "job1")),
        child_process::Reader::start_working(&named(&config, "job2")),
    ];
    for reader in &mut readers {
        reader.reads_after(|| log.append(record_for_key(&unique("k"), "x"))).await;
    }
    let mut load = Load { sent: Default::default(), longest: Duration::ZERO };
    for round in 0..number("KILLS", 30) {
        let nth = usize::try_from(round % 2).unwrap();
        load.collect(&[&readers[nth]]);
        readers[nth].kill();
        readers[nth] = child_process::Reader::start_working(&named(&config, &format!("job{}", nth + 1)));
        let both: Vec<&child_process::Reader> = readers.iter().collect();
        load.run(&log, &both, &round.to_string(), Duration::from_secs(3)).await;
    }
    let both: Vec<&child_process::Reader> = readers.iter().collect();
    load.run(&log, &both, "end", Duration::from_secs(20)).await;
    eprintln!("longest from push to read {:?}; {} not read", load.longest, load.sent.len());
}
