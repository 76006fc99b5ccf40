//! How far the jobs are: the ends of the push log, and the offsets that they have committed.
//!
//! Jobs commit what the comets have accepted. A push that was accepted before the log's ends were
//! read is drained when a later read finds commits that have reached those ends.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(250);
/// How long a broker may take to answer.
const DEADLINE: Duration = Duration::from_secs(2);

/// One look.
#[derive(Debug, Clone)]
struct Look {
    /// The ends are those of this moment or later.
    begun: Instant,
    /// The commits are those of this moment or earlier.
    ended: Instant,
    group: String,
    ends: Vec<i64>,
    /// Of the same partitions.
    committed: Vec<Option<i64>>,
}

impl Look {
    /// True when the commits of this look are as far as the ends of an earlier one.
    fn has_drained(&self, before: &Self) -> bool {
        self.group == before.group
            && before
                .ends
                .iter()
                .zip(&self.committed)
                .all(|(end, at)| *end == 0 || at.is_some_and(|at| at >= *end))
    }

    /// The same where a partition counts that has no commits: the group began at its end, and
    /// nothing was read since.
    fn has_drained_if_read(&self, before: &Self) -> bool {
        self.group == before.group
            && before.ends.iter().zip(&self.committed).all(|(end, at)| at.is_none_or(|at| at >= *end))
    }
}

/// Reads a topic's offsets from time to time, until it is dropped.
pub struct LogWatch {
    looks: Arc<Mutex<Vec<Look>>>,
    group: Arc<Mutex<String>>,
    stop: Arc<AtomicBool>,
}

impl LogWatch {
    /// Starts to look at a topic with the eyes of a group.
    pub fn start(broker: &str, topic: &str, group: &str) -> Self {
        let (looks, stop): (Arc<Mutex<Vec<Look>>>, Arc<AtomicBool>) = Default::default();
        let group = Arc::new(Mutex::new(group.to_owned()));
        let watch = Self { looks: Arc::clone(&looks), group: Arc::clone(&group), stop: Arc::clone(&stop) };
        let (broker, topic) = (broker.to_owned(), topic.to_owned());
        std::thread::spawn(move || {
            let mut eyes = None;
            while !stop.load(Ordering::Relaxed) {
                let group = group.lock().unwrap().clone();
                let consumer = match eyes.take() {
                    Some((of, consumer)) if of == group => consumer,
                    _ => consumer_of(&broker, &group),
                };
                match look(&consumer, &topic, &group) {
                    Ok(look) => looks.lock().unwrap().push(look),
                    Err(error) => eprintln!("cannot look at the log: {error}"),
                }
                eyes = Some((group, consumer));
                std::thread::sleep(PAUSE);
            }
        });
        watch
    }

    /// The jobs are of another group from now on.
    pub fn set_group(&self, group: &str) {
        group.clone_into(&mut self.group.lock().unwrap());
    }

    /// When it was known that everything was drained that had been accepted at a time; `None` while
    /// it is not.
    pub fn drained_at(&self, accepted: Instant) -> Option<Instant> {
        let looks = self.looks.lock().unwrap();
        let first = looks.partition_point(|look| look.begun < accepted);
        let before = looks.get(first)?;
        looks[first..].iter().find(|look| look.has_drained(before)).map(|look| look.ended)
    }

    /// Waits until everything is drained that has been accepted; false when that takes longer than
    /// this.
    pub fn is_drained_within(&self, time: Duration) -> bool {
        let now = Instant::now();
        while now.elapsed() < time {
            let looks = self.looks.lock().unwrap();
            let first = looks.partition_point(|look| look.begun < now);
            if let (Some(before), Some(last)) = (looks.get(first), looks.last())
                && last.has_drained_if_read(before)
            {
                return true;
            }
            drop(looks);
            std::thread::sleep(PAUSE);
        }
        false
    }
}

impl Drop for LogWatch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// It reads nothing, and is not a member of the group.
fn consumer_of(broker: &str, group: &str) -> BaseConsumer {
    ClientConfig::new()
        .set("bootstrap.servers", broker)
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("reconnect.backoff.max.ms", "500")
        .create()
        .unwrap()
}

fn look(consumer: &BaseConsumer, topic: &str, group: &str) -> Result<Look, rdkafka::error::KafkaError> {
    let begun = Instant::now();
    let metadata = consumer.fetch_metadata(Some(topic), DEADLINE)?;
    let mut partitions: Vec<i32> = metadata.topics()[0].partitions().iter().map(|each| each.id()).collect();
    partitions.sort_unstable();
    let mut list = TopicPartitionList::new();
    for partition in &partitions {
        list.add_partition(topic, *partition);
    }
    let list = consumer.committed_offsets(list, DEADLINE)?;
    let ended = Instant::now();
    let committed = partitions.iter().map(|partition| {
        match list.find_partition(topic, *partition).map(|element| element.offset()) {
            Some(Offset::Offset(offset)) => Some(offset),
            _ => None,
        }
    });
    let committed = committed.collect();
    let ends: Result<Vec<i64>, _> = partitions
        .iter()
        .map(|partition| consumer.fetch_watermarks(topic, *partition, DEADLINE).map(|(_, end)| end))
        .collect();
    Ok(Look { begun, ended, group: group.to_owned(), ends: ends?, committed })
}
