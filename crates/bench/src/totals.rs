//! The reports of all workers, added up.

use std::collections::BTreeMap;

use crate::control::{HeartbeatReport, StreamReport, Unexpected, WorkerReport};
use crate::figures::float;
use crate::latency::Latency;

/// The reports of all workers, added up.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    /// From the first step of connecting to the reply to the token.
    pub(crate) connect: Latency,
    pub(crate) heartbeats: Heartbeats,
    /// From the time at which a heartbeat was due to its reply.
    pub(crate) heartbeat_latency: Latency,
    pub(crate) unexpected: Unexpected,
    streams: Vec<StreamTotals>,
}

/// All heartbeats of a run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Heartbeats {
    pub(crate) sent: u64,
    pub(crate) answered: u64,
    /// Not sent, because the previous one was unanswered.
    pub(crate) overdue: u64,
    /// Answered with a wrong number of online sessions.
    pub(crate) wrong_count: u64,
}

impl Heartbeats {
    /// Returns a line about all heartbeats of a system.
    pub(crate) fn account(&self, name: &str) -> String {
        let number = |count: u64| crate::table::number(float(count));
        format!("{name}: {} of {} heartbeats answered", number(self.answered), number(self.sent))
    }

    /// Returns the faults of the heartbeats of a system.
    pub(crate) fn faults(&self, name: &str) -> Vec<String> {
        let counts = [
            (self.sent.saturating_sub(self.answered), "heartbeats unanswered"),
            (self.overdue, "heartbeats not sent, because the previous one was unanswered"),
            (self.wrong_count, "heartbeats answered with a wrong number of online sessions"),
        ];
        let wrong = counts.into_iter().filter(|(count, _)| *count > 0);
        wrong.map(|(count, what)| format!("{name}: {count} {what}")).collect()
    }
}

#[derive(Debug, Default)]
struct StreamTotals {
    counts: StreamReport,
    latency: Latency,
}

impl Totals {
    /// Adds up the reports of all workers.
    pub(crate) fn of(reports: &[WorkerReport]) -> Self {
        let mut totals = Self::default();
        for report in reports {
            totals.connect.add(&report.connect);
            let HeartbeatReport { sent, answered, overdue, wrong_count, latency } = &report.heartbeats;
            totals.heartbeats.sent += sent;
            totals.heartbeats.answered += answered;
            totals.heartbeats.overdue += overdue;
            totals.heartbeats.wrong_count += wrong_count;
            totals.heartbeat_latency.add(latency);
            let Unexpected { damaged, foreign, mislabelled } = report.unexpected;
            totals.unexpected.damaged += damaged;
            totals.unexpected.foreign += foreign;
            totals.unexpected.mislabelled += mislabelled;
            let streams = totals.streams.len().max(report.streams.len());
            totals.streams.resize_with(streams, StreamTotals::default);
            for (stream, more) in totals.streams.iter_mut().zip(&report.streams) {
                stream.add(more);
            }
        }
        totals
    }

    /// Returns the latency of deliveries, over all streams.
    pub(crate) fn latency(&self) -> Latency {
        let mut all = Latency::default();
        self.streams.iter().for_each(|stream| all.add(&stream.latency.samples()));
        all
    }

    /// Returns the numbers of lost, duplicate and reordered deliveries, over all streams.
    pub(crate) fn faults(&self) -> (u64, u64, u64) {
        self.streams.iter().fold((0, 0, 0), |(lost, duplicate, reordered), stream| {
            let counts = &stream.counts;
            (lost + counts.lost, duplicate + counts.duplicate, reordered + counts.reordered)
        })
    }

    /// Returns when the last client received each message of a stream, by number; 0 for a message
    /// without receiver.
    pub(crate) fn last_ns(&self, stream: usize) -> &[u64] {
        self.streams.get(stream).map_or(&[], |stream| &stream.counts.last_ns)
    }
}

impl StreamTotals {
    fn add(&mut self, more: &StreamReport) {
        let counts = &mut self.counts;
        counts.delivered += more.delivered;
        counts.lost += more.lost;
        counts.duplicate += more.duplicate;
        counts.reordered += more.reordered;
        counts.last_ns.resize(counts.last_ns.len().max(more.last_ns.len()), 0);
        for (last, other) in counts.last_ns.iter_mut().zip(&more.last_ns) {
            *last = (*last).max(*other);
        }
        self.latency.add(&more.latency);
    }
}

/// Lists the most frequent reasons, one per line with its count.
pub(crate) fn list_reasons(reasons: &BTreeMap<String, u32>) -> String {
    let mut sorted: Vec<_> = reasons.iter().collect();
    sorted.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    sorted.into_iter().take(5).map(|(reason, count)| format!("\n  {count} {reason}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(last_ns: &[u64], delivered: u64, lost: u64) -> WorkerReport {
        let mut latency = Latency::default();
        last_ns.iter().for_each(|last| latency.record(0, *last));
        let stream = StreamReport {
            delivered,
            lost,
            latency: latency.samples(),
            last_ns: last_ns.to_vec(),
            ..StreamReport::default()
        };
        let heartbeats = HeartbeatReport { sent: 5, answered: 4, ..HeartbeatReport::default() };
        WorkerReport { streams: vec![stream], heartbeats, ..WorkerReport::default() }
    }

    #[test]
    fn workers_are_added_up() {
        let totals = Totals::of(&[worker(&[30, 20], 5, 1), worker(&[10, 40, 50], 3, 3)]);
        assert_eq!(totals.faults(), (4, 0, 0));
        assert_eq!(totals.latency().percentiles().samples, 5);
        assert_eq!(totals.last_ns(0), [30, 40, 50]);
        assert_eq!(totals.last_ns(7), [0_u64; 0]);
        assert_eq!((totals.heartbeats.sent, totals.heartbeats.answered), (10, 8));
    }

    #[test]
    fn unanswered_and_wrong_heartbeats_are_faults() {
        let sound = Heartbeats { sent: 3, answered: 3, ..Heartbeats::default() };
        assert_eq!(sound.faults("server"), Vec::<String>::new());
        let wrong = Heartbeats { answered: 2, overdue: 4, wrong_count: 1, ..sound };
        let faults = wrong.faults("server");
        assert_eq!(faults.len(), 3, "{faults:?}");
        assert_eq!(faults[0], "server: 1 heartbeats unanswered");
        assert_eq!(wrong.account("server"), "server: 2 of 3 heartbeats answered");
    }

    #[test]
    fn the_most_frequent_reasons_are_listed_first() {
        let reasons = [("a".to_owned(), 1), ("b".to_owned(), 3)].into();
        assert_eq!(list_reasons(&reasons), "\n  3 b\n  1 a");
    }
}
