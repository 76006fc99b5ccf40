//! Members with names: they come back to what they had, and no two have one name.

use goim_ports::ReadError;

use super::*;

fn named(config: &KafkaConfig, name: &str) -> KafkaConfig {
    KafkaConfig { instance_id: Some(name.to_owned()), ..config.clone() }
}

/// Pushes to all partitions every 20 ms and measures from the push until one of the processes has
/// read it.
struct Load {
    sent: std::collections::HashMap<String, Instant>,
    longest: Duration,
}

impl Load {
    async fn run(&mut self, log: &KafkaPushLog, readers: &[&child::Reader], round: &str, time: Duration) {
        let until = Instant::now() + time;
        let mut n = 0;
        while Instant::now() < until {
            n += 1;
            let body = format!("{round}-{n}");
            log.append(record_for_key(&format!("k{n}"), body.clone())).await.unwrap();
            self.sent.insert(body, Instant::now());
            tokio::time::sleep(Duration::from_millis(20)).await;
            self.hear(readers);
        }
    }

    fn hear(&mut self, readers: &[&child::Reader]) {
        for body in readers.iter().flat_map(|reader| reader.has_read()) {
            if let Some(since) = self.sent.remove(&body) {
                self.longest = self.longest.max(since.elapsed());
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_is_killed_and_comes_back_goes_on_at_once_and_no_other_notices() {
    let Some(broker) = broker() else { return };
    // Nobody waits for this to be over.
    let config = KafkaConfig { session_timeout: Duration::from_secs(30), ..with_topic(&broker, 8).await };
    let log = KafkaPushLog::start(config.clone()).await.unwrap();
    let mut other = KafkaPushLogReader::join(named(&config, "job2")).await.unwrap();
    let stats = other.stats();
    let mut victim = child::Reader::start_working(&named(&config, "job1"));
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
    // To all partitions, so that some are the victim's.
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
        victim = child::Reader::start_working(&named(&config, "job1"));
        victim.reads_after(push).await;
        eprintln!("round {round}: reads {:?} after it was killed", killed.elapsed());
        assert!(killed.elapsed() < Duration::from_secs(15), "{:?}", killed.elapsed());
    }
    assert_eq!(stats().rebalances, rebalances, "the other has noticed");
    other.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_with_a_name_that_stops_and_comes_back_goes_on_at_once() {
    let Some(broker) = broker() else { return };
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
async fn a_member_with_a_name_may_stop_while_the_group_is_agreeing() {
    let Some(broker) = broker() else { return };
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
async fn of_two_members_with_one_name_the_first_is_told_and_ends() {
    let Some(broker) = broker() else { return };
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
    let ended = tokio::time::timeout(Duration::from_secs(20), ended).await.expect("it is told");
    let ReadError::Fenced(text) = &ended else { panic!("{ended:?}") };
    for part in ["\"job1\"", &config.group, "kafka.instance_id", "comet.node.server"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert_eq!(first.read().await, Err(ended), "again and again");
    log.append(record_for_key("k", "after")).await.unwrap();
    let entries = read(&mut second, 1).await;
    assert!(
        bodies(&entries).contains(&"after".to_owned())
            || bodies(&read(&mut second, 1).await).contains(&"after".to_owned())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_is_fenced_by_a_membership_of_its_own_joins_again() {
    let Some(broker) = broker() else { return };
    let config = KafkaConfig { instance_id: Some("job1".to_owned()), ..with_topic(&broker, 2).await };
    let (log, mut reader) = both_ends(&config).await;
    let stats = reader.stats();
    log.append(record_for_key("k", "before")).await.unwrap();
    let entries = read(&mut reader, 1).await;
    reader.done(entries[0].position);
    becomes("it is committed", || committed(&config, 2) == 1).await;
    // Another membership under its name, in which nobody lives any more.
    let mut other = KafkaPushLogReader::join(config.clone()).await.unwrap();
    reader.loses_its_membership();
    let until = Instant::now() + Duration::from_secs(30);
    while other.stats()().partitions == 0 {
        assert!(Instant::now() < until, "the other has no partitions");
        let _ = tokio::time::timeout(Duration::from_millis(100), other.read()).await;
    }
    tokio::task::spawn_blocking(move || drop(other)).await.unwrap();
    for n in 0..8 {
        log.append(record_for_key(&format!("k{n}"), format!("{n}"))).await.unwrap();
    }
    // What it reads before it hears of that is not committed, and comes again.
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
async fn a_member_with_a_name_goes_on_after_a_broker_was_away_for_longer_than_its_session() {
    if broker().is_none() {
        return;
    }
    let (own, broker) = OwnBroker::start();
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
        // So there is a commit that waits until the coordinator is back, and the membership is
        // another one by then.
        entries.iter().for_each(|entry| reader.done(entry.position));
        let away = tokio::time::timeout(config.session_timeout + Duration::from_secs(2), async {
            loop {
                reader.read().await.expect("a broker that is away is no end");
            }
        });
        assert!(away.await.is_err());
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

/// A job that is killed thirty times while pushes run. `KILLS` and `SESSION` (in ms) in the
/// environment change it.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes; for the figures of docs/reliability.md"]
async fn thirty_kills_under_load() {
    let Some(broker) = broker() else { return };
    let number = |name: &str, default: u64| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    let config = KafkaConfig {
        session_timeout: Duration::from_millis(number("SESSION", 10_000)),
        auto_offset_reset: OffsetReset::Latest,
        ..with_topic(&broker, 8).await
    };
    let log = KafkaPushLog::start(config.clone()).await.unwrap();
    let mut readers = [
        child::Reader::start_working(&named(&config, "job1")),
        child::Reader::start_working(&named(&config, "job2")),
    ];
    for reader in &mut readers {
        reader.reads_after(|| log.append(record_for_key(&unique("k"), "x"))).await;
    }
    let mut load = Load { sent: Default::default(), longest: Duration::ZERO };
    for round in 0..number("KILLS", 30) {
        let nth = usize::try_from(round % 2).unwrap();
        load.hear(&[&readers[nth]]);
        readers[nth].kill();
        readers[nth] = child::Reader::start_working(&named(&config, &format!("job{}", nth + 1)));
        let both: Vec<&child::Reader> = readers.iter().collect();
        load.run(&log, &both, &round.to_string(), Duration::from_secs(3)).await;
    }
    let both: Vec<&child::Reader> = readers.iter().collect();
    load.run(&log, &both, "end", Duration::from_secs(20)).await;
    eprintln!("longest from push to read {:?}; {} not read", load.longest, load.sent.len());
}
