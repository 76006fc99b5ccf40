//! The messages that the clients of a worker have received: one account per stream.

use goim_wire::{Operation, Packet, Sequence, Version};

use crate::control::{StreamReport, Unexpected};
use crate::latency::Latency;
use crate::message::Message;
use crate::tracker::{Arrival, Tracker};

/// The size of the cache of bodies; more than are in flight at the same time.
const RECENT: usize = 4096;

/// The accounts of one worker.
#[derive(Debug)]
pub(crate) struct Ledger {
    run: u32,
    operation: Operation,
    streams: Vec<Account>,
    unexpected: Unexpected,
    /// Bodies that were checked, by stream and number. A message to many clients arrives thousands
    /// of times, and comparing is cheaper than checking.
    recent: Vec<(Vec<u8>, Option<Message>)>,
}

#[derive(Debug, Default)]
struct Account {
    delivered: u64,
    duplicate: u64,
    reordered: u64,
    latency: Latency,
    last_ns: Vec<u64>,
}

impl Ledger {
    pub(crate) fn new(run: u32, streams: u32, operation: Operation) -> Self {
        let streams = (0..streams).map(|_| Account::default()).collect();
        Self {
            run,
            operation,
            streams,
            unexpected: Unexpected::default(),
            recent: vec![(Vec::new(), None); RECENT],
        }
    }

    /// Creates the trackers of a client, one per stream.
    pub(crate) fn trackers(&self) -> Box<[Tracker]> {
        self.streams.iter().map(|_| Tracker::default()).collect()
    }

    /// Records a push that the client with these trackers has received.
    pub(crate) fn record(&mut self, trackers: &mut [Tracker], push: Packet<'_>, now_ns: u64) {
        let labels = (push.operation, push.version, push.sequence);
        if labels != (self.operation, Version::GOIM, Sequence::NONE) {
            self.unexpected.mislabelled += 1;
            return;
        }
        let Some(message) = self.check(push.body) else {
            self.unexpected.damaged += 1;
            return;
        };
        let stream = usize::try_from(message.stream).unwrap_or(usize::MAX);
        let (Some(account), Some(tracker)) = (self.streams.get_mut(stream), trackers.get_mut(stream)) else {
            self.unexpected.foreign += 1;
            return;
        };
        if message.run != self.run {
            self.unexpected.foreign += 1;
            return;
        }
        match tracker.arrive(message.number) {
            Arrival::New => account.delivered(&message, now_ns),
            Arrival::Late => {
                account.reordered += 1;
                account.delivered(&message, now_ns);
            }
            Arrival::Duplicate => account.duplicate += 1,
        }
    }

    fn check(&mut self, body: &[u8]) -> Option<Message> {
        let slot = Message::cache_key(body) as usize % RECENT;
        let (known, message) = &mut self.recent[slot];
        if known != body {
            known.clear();
            known.extend_from_slice(body);
            *message = Message::decode(body).ok();
        }
        *message
    }

    /// Returns the numbers of messages received for the first time, by stream.
    pub(crate) fn delivered(&self) -> impl Iterator<Item = u64> {
        self.streams.iter().map(|account| account.delivered)
    }

    /// Returns the packets that belong to no message of this run.
    pub(crate) fn unexpected(&self) -> &Unexpected {
        &self.unexpected
    }

    /// Discards the latencies. Received messages are still known.
    pub(crate) fn reset_latency(&mut self) {
        self.streams.iter_mut().for_each(|account| account.latency = Latency::default());
    }

    /// Returns the reports of all streams, given the trackers of all clients and the numbers of
    /// messages published.
    pub(crate) fn reports<'a>(
        &self,
        clients: impl Iterator<Item = &'a [Tracker]>,
        published: &[u32],
    ) -> Vec<StreamReport> {
        let mut lost = vec![0_u64; self.streams.len()];
        for trackers in clients {
            for ((lost, tracker), published) in lost.iter_mut().zip(trackers).zip(published) {
                *lost += tracker.missing(*published);
            }
        }
        self.streams.iter().zip(lost).map(|(account, lost)| account.report(lost)).collect()
    }
}

impl Account {
    fn delivered(&mut self, message: &Message, now_ns: u64) {
        self.delivered += 1;
        self.latency.record(message.due_ns, now_ns);
        let number = usize::try_from(message.number).unwrap_or(usize::MAX);
        // The message is valid, so its number was published, which bounds the length of the list.
        if self.last_ns.len() <= number {
            self.last_ns.resize(number.saturating_add(1), 0);
        }
        if let Some(last) = self.last_ns.get_mut(number) {
            *last = now_ns;
        }
    }

    fn report(&self, lost: u64) -> StreamReport {
        StreamReport {
            delivered: self.delivered,
            lost,
            duplicate: self.duplicate,
            reordered: self.reordered,
            latency: self.latency.samples(),
            last_ns: self.last_ns.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: u32 = 9;
    const OPERATION: Operation = Operation(1000);

    fn body(stream: u32, number: u32) -> Vec<u8> {
        Message { run: RUN, stream, number, due_ns: 1_000 }.encode(64)
    }

    fn push(body: &[u8]) -> Packet<'_> {
        Packet { version: Version::GOIM, operation: OPERATION, sequence: Sequence::NONE, body }
    }

    /// Two clients receive lists of (stream, number); three messages of the first stream and one of
    /// the second were published. Expects (delivered, lost, duplicate, reordered) of both streams.
    fn check(first: &[(u32, u32)], second: &[(u32, u32)], expect: [(u64, u64, u64, u64); 2]) {
        let mut ledger = Ledger::new(RUN, 2, OPERATION);
        let mut clients = [ledger.trackers(), ledger.trackers()];
        for (trackers, list) in clients.iter_mut().zip([first, second]) {
            for (stream, number) in list {
                ledger.record(trackers, push(&body(*stream, *number)), 2_000_000);
            }
        }
        let reports = ledger.reports(clients.iter().map(|trackers| &trackers[..]), &[3, 1]);
        let got: Vec<_> = reports.iter().map(|r| (r.delivered, r.lost, r.duplicate, r.reordered)).collect();
        assert_eq!(got, expect, "{first:?} {second:?}");
        assert_eq!(*ledger.unexpected(), Unexpected::default());
    }

    #[test]
    fn lost_duplicate_and_reordered_messages_are_found() {
        let all = [(0, 0), (1, 0), (0, 1), (0, 2)];
        check(&all, &all, [(6, 0, 0, 0), (2, 0, 0, 0)]);
        check(&all, &[(0, 0), (0, 2), (1, 0)], [(5, 1, 0, 0), (2, 0, 0, 0)]);
        check(&all, &[(0, 0), (0, 1)], [(5, 1, 0, 0), (1, 1, 0, 0)]);
        check(&all, &[(0, 0), (0, 1), (0, 1), (0, 2), (1, 0), (1, 0)], [(6, 0, 1, 0), (2, 0, 1, 0)]);
        check(&all, &[(0, 0), (0, 2), (0, 1), (1, 0)], [(6, 0, 0, 1), (2, 0, 0, 0)]);
        check(&all, &[], [(3, 3, 0, 0), (1, 1, 0, 0)]);
    }

    #[test]
    fn unexpected_packets_are_classified() {
        let check = |packet: Packet<'_>, expect: Unexpected| {
            let mut ledger = Ledger::new(RUN, 2, OPERATION);
            let mut trackers = ledger.trackers();
            ledger.record(&mut trackers, packet, 1);
            assert_eq!(*ledger.unexpected(), expect, "{packet:?}");
            assert_eq!(ledger.delivered().sum::<u64>(), 0);
        };
        let (damaged, foreign, mislabelled) = (
            Unexpected { damaged: 1, ..Unexpected::default() },
            Unexpected { foreign: 1, ..Unexpected::default() },
            Unexpected { mislabelled: 1, ..Unexpected::default() },
        );
        let valid = body(0, 0);
        let mut changed = valid.clone();
        changed[40] ^= 1;
        check(push(&changed), damaged.clone());
        check(push(&valid[..63]), damaged.clone());
        check(push(b""), damaged);
        check(push(&Message { run: RUN + 1, stream: 0, number: 0, due_ns: 0 }.encode(64)), foreign.clone());
        check(push(&body(2, 0)), foreign);
        check(Packet { operation: Operation(1001), ..push(&valid) }, mislabelled.clone());
        check(Packet { sequence: Sequence(1), ..push(&valid) }, mislabelled.clone());
        check(Packet { version: Version(2), ..push(&valid) }, mislabelled);
    }

    #[test]
    fn the_last_receiver_of_each_message_is_recorded() {
        let mut ledger = Ledger::new(RUN, 1, OPERATION);
        let mut clients = [ledger.trackers(), ledger.trackers()];
        for (client, number, at) in [(0, 0, 5), (0, 2, 6), (1, 0, 9), (1, 2, 10)] {
            ledger.record(&mut clients[client], push(&body(0, number)), at);
        }
        let reports = ledger.reports(clients.iter().map(|trackers| &trackers[..]), &[3]);
        assert_eq!(reports[0].last_ns, [9, 0, 10]);
        assert_eq!(reports[0].lost, 2);
    }
}
