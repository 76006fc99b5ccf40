//! What one run of a scenario came to, with everything accounted for.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::control::{BeatReport, Report, Strays, StreamReport};
use crate::latency::{Latency, Percentiles};
use crate::server::Usage;

/// What one run came to.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Outcome {
    pub(crate) clients: u32,
    pub(crate) connect: Connect,
    pub(crate) quiet: Quiet,
    pub(crate) heartbeats: Beats,
    pub(crate) room: Stream,
    pub(crate) all: Stream,
    /// The server's memory, when its process could be looked at.
    pub(crate) memory: Option<Memory>,
    /// Share of the machine's processors that went to other processes meanwhile: what else disturbed the run.
    pub(crate) others_share: Option<f64>,
    pub(crate) strays: Stray,
    /// Clients that ended before they were told to, by reason.
    pub(crate) ended: BTreeMap<String, u32>,
}

/// Connecting and authenticating everybody.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Connect {
    pub(crate) seconds: f64,
    pub(crate) per_second: f64,
    /// From a client's first step to the reply to its token.
    pub(crate) latency: Percentiles,
    pub(crate) server_cpu_us_each: Option<f64>,
    pub(crate) client_cpu_us_each: f64,
}

/// The time with nothing but heartbeats.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Quiet {
    pub(crate) seconds: f64,
    pub(crate) heartbeats: u64,
    /// Share of one core.
    pub(crate) server_core_share: Option<f64>,
    pub(crate) server_cpu_us_each: Option<f64>,
    pub(crate) client_cpu_us_each: f64,
}

/// All heartbeats of the run.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Beats {
    pub(crate) sent: u64,
    pub(crate) answered: u64,
    /// Not sent, because the one before was unanswered.
    pub(crate) overdue: u64,
    /// Answered with another number online than there was.
    pub(crate) wrong_count: u64,
    pub(crate) latency: Percentiles,
}

/// One stream of messages.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Stream {
    pub(crate) messages: u32,
    /// Messages times clients.
    pub(crate) expected: u64,
    pub(crate) delivered: u64,
    pub(crate) lost: u64,
    pub(crate) doubled: u64,
    pub(crate) reordered: u64,
    /// From the moment a message was due to its receipt, over all deliveries.
    pub(crate) latency: Percentiles,
    /// From the moment a message was due until the last client had it, over all messages.
    pub(crate) last_receiver: Percentiles,
    /// How long the publisher waited for its answer.
    pub(crate) answer: Percentiles,
    /// Heartbeats not counted: they are taken off at what they cost in the quiet time.
    pub(crate) server_cpu_us_each: Option<f64>,
    pub(crate) client_cpu_us_each: f64,
}

/// The server's memory in the course of a run.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Memory {
    /// Before the first client.
    pub(crate) before: Usage,
    /// Everybody authenticated, no message yet.
    pub(crate) idle: Usage,
    /// After all messages.
    pub(crate) after_traffic: Usage,
    /// Everybody gone.
    pub(crate) after_leaving: Usage,
}

/// What came and was no message of this run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Stray {
    pub(crate) damaged: u64,
    pub(crate) foreign: u64,
    pub(crate) mislabelled: u64,
}

impl Outcome {
    /// What is wrong with it; empty when everything arrived once, in order and whole, nobody fell off, and every
    /// heartbeat was answered rightly.
    pub(crate) fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut fault = |count: u64, text: &str| {
            if count > 0 {
                faults.push(format!("{count} {text}"));
            }
        };
        for (stream, name) in [(&self.room, "to the room"), (&self.all, "to all")] {
            fault(stream.lost, &format!("deliveries {name} lost"));
            fault(stream.doubled, &format!("deliveries {name} doubled"));
            fault(stream.reordered, &format!("deliveries {name} out of order"));
        }
        fault(self.strays.damaged, "packets damaged");
        fault(self.strays.foreign, "packets of another run");
        fault(self.strays.mislabelled, "packets that nobody has sent or asked for");
        fault(self.heartbeats.sent.saturating_sub(self.heartbeats.answered), "heartbeats unanswered");
        fault(self.heartbeats.overdue, "heartbeats held back because the one before was unanswered");
        fault(self.heartbeats.wrong_count, "heartbeats answered with a wrong number online");
        for (reason, count) in &self.ended {
            fault(u64::from(*count), &format!("clients ended {reason}"));
        }
        faults
    }
}

impl Memory {
    /// Bytes per client that the server took for idle clients.
    pub(crate) fn per_client(&self, clients: u32, of: impl Fn(&Usage) -> u64) -> f64 {
        let grown = of(&self.idle).saturating_sub(of(&self.before));
        float(grown) / f64::from(clients.max(1))
    }
}

/// The reports of all workers, added up.
#[derive(Debug, Default)]
pub(crate) struct Sum {
    pub(crate) connect: Latency,
    pub(crate) beats: Beats,
    pub(crate) strays: Stray,
    streams: Vec<StreamSum>,
}

#[derive(Debug, Default)]
struct StreamSum {
    counts: StreamReport,
    latency: Latency,
}

impl Sum {
    pub(crate) fn of(reports: &[Report]) -> Self {
        let mut sum = Self::default();
        let mut beat_latency = Latency::default();
        for report in reports {
            sum.connect.add(&report.connect);
            let BeatReport { sent, answered, overdue, wrong_count, latency } = &report.beats;
            sum.beats.sent += sent;
            sum.beats.answered += answered;
            sum.beats.overdue += overdue;
            sum.beats.wrong_count += wrong_count;
            beat_latency.add(latency);
            let Strays { damaged, foreign, mislabelled } = report.strays;
            sum.strays.damaged += damaged;
            sum.strays.foreign += foreign;
            sum.strays.mislabelled += mislabelled;
            sum.streams.resize_with(sum.streams.len().max(report.streams.len()), StreamSum::default);
            for (stream, more) in sum.streams.iter_mut().zip(&report.streams) {
                stream.add(more);
            }
        }
        sum.beats.latency = beat_latency.percentiles();
        sum
    }

    /// Latency over all streams.
    pub(crate) fn latency(&self) -> Latency {
        let mut all = Latency::default();
        self.streams.iter().for_each(|stream| all.add(&stream.latency.samples()));
        all
    }

    /// (lost, doubled, reordered) over all streams.
    pub(crate) fn wrong(&self) -> (u64, u64, u64) {
        self.streams.iter().fold((0, 0, 0), |(lost, doubled, reordered), stream| {
            let counts = &stream.counts;
            (lost + counts.lost, doubled + counts.doubled, reordered + counts.reordered)
        })
    }

    /// When the last client had each message of a stream, by number; 0 for none.
    pub(crate) fn last_ns(&self, stream: usize) -> &[u64] {
        self.streams.get(stream).map_or(&[], |stream| &stream.counts.last_ns)
    }

    /// One stream's account, given when its messages were due.
    pub(crate) fn stream(&self, at: usize, clients: u32, published: &Published) -> Stream {
        let none = StreamSum::default();
        let StreamSum { counts, latency } = self.streams.get(at).unwrap_or(&none);
        let mut last_receiver = Latency::default();
        for (due_ns, last_ns) in published.due_ns.iter().zip(&counts.last_ns).filter(|(_, last)| **last > 0) {
            last_receiver.record(*due_ns, *last_ns);
        }
        let messages = u32::try_from(published.due_ns.len()).unwrap_or(u32::MAX);
        Stream {
            messages,
            expected: u64::from(messages) * u64::from(clients),
            delivered: counts.delivered,
            lost: counts.lost,
            doubled: counts.doubled,
            reordered: counts.reordered,
            latency: latency.percentiles(),
            last_receiver: last_receiver.percentiles(),
            answer: published.answer.percentiles(),
            server_cpu_us_each: published.server_cpu.map(|cpu| each(cpu, counts.delivered)),
            client_cpu_us_each: each(published.client_cpu, counts.delivered),
        }
    }
}

impl StreamSum {
    fn add(&mut self, more: &StreamReport) {
        let counts = &mut self.counts;
        counts.delivered += more.delivered;
        counts.lost += more.lost;
        counts.doubled += more.doubled;
        counts.reordered += more.reordered;
        counts.last_ns.resize(counts.last_ns.len().max(more.last_ns.len()), 0);
        for (last, other) in counts.last_ns.iter_mut().zip(&more.last_ns) {
            *last = (*last).max(*other);
        }
        self.latency.add(&more.latency);
    }
}

/// What was published of one stream.
#[derive(Debug, Default)]
pub(crate) struct Published {
    /// When each message was due, by number.
    pub(crate) due_ns: Vec<u64>,
    pub(crate) answer: Latency,
    /// Processor time that went into it, heartbeats taken off.
    pub(crate) server_cpu: Option<Duration>,
    pub(crate) client_cpu: Duration,
}

/// Microseconds for each of `count`.
pub(crate) fn each(time: Duration, count: u64) -> f64 {
    time.as_secs_f64() * 1e6 / float(count.max(1))
}

#[expect(clippy::cast_precision_loss, reason = "for figures that are shown; they are far below 2^53")]
pub(crate) fn float(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(last_ns: &[u64], delivered: u64, lost: u64) -> Report {
        let mut latency = Latency::default();
        last_ns.iter().for_each(|last| latency.record(0, *last));
        let stream = StreamReport {
            delivered,
            lost,
            latency: latency.samples(),
            last_ns: last_ns.to_vec(),
            ..StreamReport::default()
        };
        let beats = BeatReport { sent: 5, answered: 4, ..BeatReport::default() };
        Report { streams: vec![stream], beats, ..Report::default() }
    }

    #[test]
    fn workers_are_added_up() {
        let millis = 1_000_000;
        let sum = Sum::of(&[worker(&[30 * millis, 20 * millis], 5, 1), worker(&[10 * millis], 3, 3)]);
        let published = Published {
            due_ns: vec![5 * millis, 5 * millis, 5 * millis],
            server_cpu: Some(Duration::from_micros(80)),
            ..Published::default()
        };
        let stream = sum.stream(0, 4, &published);
        assert_eq!((stream.messages, stream.expected), (3, 12));
        assert_eq!((stream.delivered, stream.lost), (8, 4));
        assert_eq!(stream.latency.samples, 3);
        assert_eq!(stream.last_receiver.samples, 2, "the third message has reached nobody");
        assert_eq!(stream.last_receiver.max.as_millis(), 25);
        assert_eq!(stream.server_cpu_us_each, Some(10.0));
        assert_eq!((sum.beats.sent, sum.beats.answered), (10, 8));
        assert_eq!(sum.stream(7, 4, &Published::default()).delivered, 0);
    }

    #[test]
    fn whatever_is_missing_is_a_fault() {
        let stream = Sum::default().stream(0, 1, &Published::default());
        let sound = Outcome {
            clients: 1,
            connect: Connect {
                seconds: 1.0,
                per_second: 1.0,
                latency: Percentiles::default(),
                server_cpu_us_each: None,
                client_cpu_us_each: 0.0,
            },
            quiet: Quiet {
                seconds: 1.0,
                heartbeats: 1,
                server_core_share: None,
                server_cpu_us_each: None,
                client_cpu_us_each: 0.0,
            },
            heartbeats: Beats { sent: 3, answered: 3, ..Beats::default() },
            room: stream.clone(),
            all: stream,
            memory: None,
            others_share: None,
            strays: Stray::default(),
            ended: BTreeMap::new(),
        };
        let check = |change: fn(&mut Outcome), expect: &[&str]| {
            let mut outcome = sound.clone();
            change(&mut outcome);
            assert_eq!(outcome.faults(), expect);
        };
        check(|_| {}, &[]);
        check(|o| o.room.lost = 2, &["2 deliveries to the room lost"]);
        check(|o| o.all.doubled = 1, &["1 deliveries to all doubled"]);
        check(|o| o.all.reordered = 1, &["1 deliveries to all out of order"]);
        check(|o| o.strays.damaged = 1, &["1 packets damaged"]);
        check(|o| o.strays.foreign = 1, &["1 packets of another run"]);
        check(|o| o.strays.mislabelled = 1, &["1 packets that nobody has sent or asked for"]);
        check(|o| o.heartbeats.answered = 2, &["1 heartbeats unanswered"]);
        check(|o| o.heartbeats.wrong_count = 1, &["1 heartbeats answered with a wrong number online"]);
        check(|o| o.ended = [("while open: x".into(), 4)].into(), &["4 clients ended while open: x"]);
    }
}
