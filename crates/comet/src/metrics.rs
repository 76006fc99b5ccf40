//! The metrics of a comet for Prometheus, read from the shards' counters on each scrape.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use goim_session::CloseReason;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use crate::inbox::ShardHandle;
use crate::listener::ListenerKind;
use crate::message::CompressionStats;
use crate::shared::Shared;
use crate::stats::{BOUNDS_US, DROPS, Histogram, RANGES, ShardStats, SharedCounter};

/// Collects the metrics of all shards.
pub(crate) struct CometCollector {
    pub(crate) shared: Arc<Shared>,
    pub(crate) shards: Vec<Arc<ShardStats>>,
    pub(crate) handles: Arc<[ShardHandle]>,
}

impl std::fmt::Debug for CometCollector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CometCollector")
    }
}

type Encoded = Result<(), std::fmt::Error>;
/// One label with its value, or none.
type Label<'a> = Vec<(&'a str, String)>;

impl Collector for CometCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Encoded {
        let out = &mut encoder;
        self.connections(out)?;
        self.traffic(out)?;
        self.queues(out)?;
        self.compression(out)?;
        let events = &self.shared.events;
        let told = events.delivered();
        counters(out, "events_delivered", "Events of sessions that logic has taken", &one(told))?;
        let dropped = events.dropped();
        counters(
            out,
            "events_dropped",
            "Events of sessions dropped since the queue was full",
            &one(dropped),
        )?;
        gauges(
            out,
            "events_queued",
            "Events of sessions that are queued for logic",
            &one(events.queued() as u64),
        )?;
        self.times(out)
    }
}

impl CometCollector {
    fn sum(&self, read: impl Fn(&ShardStats) -> u64) -> u64 {
        self.shards.iter().map(|shard| read(shard)).sum()
    }

    /// Returns one row for each name, with the sum of what `read` returns for its index.
    fn rows<'a>(
        &self,
        label: &'a str,
        names: impl IntoIterator<Item = &'static str>,
        read: impl Fn(&ShardStats, usize) -> u64,
    ) -> Vec<(Label<'a>, u64)> {
        let named = names.into_iter().enumerate();
        named
            .map(|(index, name)| (vec![(label, name.to_owned())], self.sum(|shard| read(shard, index))))
            .collect()
    }

    fn connections(&self, out: &mut DescriptorEncoder<'_>) -> Encoded {
        let kinds = || ListenerKind::ALL.iter().map(|kind| kind.label());
        let reasons = CloseReason::ALL.iter().map(|reason| reason.label());
        let held = self.rows("transport", kinds(), |shard, index| shard.connections[index].get());
        let accepted = self.rows("transport", kinds(), |shard, index| shard.accepted[index].get());
        let closed = self.rows("reason", reasons, |shard, index| shard.closes[index].get());
        gauges(out, "connections", "Connections held", &held)?;
        gauges(out, "sessions", "Authenticated connections", &one(self.sum(|shard| shard.sessions.get())))?;
        let addresses = self.shared.addresses.addresses() as u64;
        gauges(out, "client_addresses", "Distinct addresses of clients", &one(addresses))?;
        gauges(out, "rooms", "Rooms with sessions", &one(self.shared.rooms.len() as u64))?;
        counters(out, "connections_accepted", "Connections accepted", &accepted)?;
        let errors = self.sum(|shard| shard.accept_errors.get());
        counters(out, "accept_errors", "Connections that could not be accepted or set up", &one(errors))?;
        counters(out, "connections_closed", "Connections ended, by reason", &closed)
    }

    fn traffic(&self, out: &mut DescriptorEncoder<'_>) -> Encoded {
        let rows = |read_in: fn(&ShardStats, usize) -> u64, read_out: fn(&ShardStats, usize) -> u64| {
            let mut rows = self.rows("operations", RANGES, read_in);
            rows.iter_mut().for_each(|(labels, _)| labels.push(("direction", "in".to_owned())));
            let mut sent = self.rows("operations", RANGES, read_out);
            sent.iter_mut().for_each(|(labels, _)| labels.push(("direction", "out".to_owned())));
            rows.append(&mut sent);
            rows
        };
        let packets = rows(|shard, i| shard.packets_in[i].get(), |shard, i| shard.packets_out[i].get());
        counters(out, "packets", "Packets, by range of operations; a batch counts once", &packets)?;
        let bytes = rows(|shard, i| shard.bytes_in[i].get(), |shard, i| shard.bytes_out[i].get());
        counters(out, "bytes", "Bodies of packets in, whole packets with framing out", &bytes)?;
        let writes = self.sum(|shard| shard.writes.get());
        counters(out, "socket_writes", "System calls that wrote to sockets", &one(writes))?;
        let errors = self.sum(|shard| shard.upstream_errors.get());
        counters(out, "upstream_errors", "Packets of clients that logic did not handle", &one(errors))?;
        let refused = self.sum(|shard| shard.rooms_refused.get());
        counters(
            out,
            "rooms_refused",
            "Rooms that clients wanted to be in and their tokens did not allow",
            &one(refused),
        )
    }

    fn compression(&self, out: &mut DescriptorEncoder<'_>) -> Encoded {
        let rows = |read: fn(&CompressionStats) -> &AtomicU64| -> Vec<(Label<'_>, u64)> {
            let label = |encoding: &str| vec![("encoding", encoding.to_owned())];
            let compressed = self.shared.profiles.compressor().stats();
            compressed.map(|(encoding, of)| (label(encoding), read(of).load(Ordering::Relaxed))).collect()
        };
        counters(
            out,
            "compressions",
            "Bodies compressed; each is shared by all that get it",
            &rows(|of| &of.count),
        )?;
        counters(
            out,
            "compression_input_bytes",
            "Bytes of bodies before they were compressed",
            &rows(|of| &of.input_bytes),
        )?;
        counters(out, "compression_output_bytes", "Bytes that they had then", &rows(|of| &of.output_bytes))
    }

    fn queues(&self, out: &mut DescriptorEncoder<'_>) -> Encoded {
        let mut dropped = self.rows("reason", DROPS, |shard, index| shard.drops[index].get());
        dropped.push((vec![("reason", "unknown_key".to_owned())], self.shared.unknown_keys.get()));
        counters(out, "pushes_dropped", "Pushes not sent to a session, by reason", &dropped)?;
        let joined = self.sum(|shard| shard.notifications_coalesced.get());
        let help = "Notifications of stored messages merged per timeline while a socket was full";
        counters(out, "notifications_coalesced", help, &one(joined))?;
        let looks = self.sum(|shard| shard.resyncs.get());
        let help = "Sessions asked to sync since messages for this comet were dropped";
        counters(out, "resyncs", help, &one(looks))?;
        let causes = &self.shared.recoveries;
        let of = |cause: &str, count: &SharedCounter| (vec![("cause", cause.to_owned())], count.get());
        let rows = [of("swept", &causes.swept), of("given_up", &causes.given_up)];
        let help =
            "Times that this comet was taken for dead: logic swept its sessions, or a job dropped messages";
        counters(out, "recoveries", help, &rows)?;
        let blocked = self.sum(|shard| shard.blocked.get());
        gauges(out, "sessions_blocked", "Sessions whose socket is full", &one(blocked))?;
        let paced = self.by_shard(|shard| shard.paced_broadcasts.get());
        gauges(out, "paced_broadcasts", "Broadcasts with a speed that run", &paced)?;
        let depth = self.by_shard(|shard| shard.inbox_depth.load(Ordering::Relaxed) as u64);
        gauges(out, "inbox_commands", "Commands that wait for a shard", &depth)?;
        let sends = self.handles.iter().enumerate();
        let sends: Vec<_> =
            sends.map(|(index, shard)| (vec![("shard", index.to_string())], shard.sends_waiting())).collect();
        gauges(out, "sends_pending", "Sends that commands will lead to, waiting and staged", &sends)
    }

    fn by_shard(&self, read: impl Fn(&ShardStats) -> u64) -> Vec<(Label<'static>, u64)> {
        let numbered = self.shards.iter().enumerate();
        numbered.map(|(index, shard)| (vec![("shard", index.to_string())], read(shard))).collect()
    }

    fn times(&self, out: &mut DescriptorEncoder<'_>) -> Encoded {
        let help = "From acceptance by logic to the socket, per message and shard";
        self.histograms(out, "push_latency_seconds", help, |shard| &shard.push_latency)?;
        self.histograms(out, "shard_turn_seconds", "Work in one turn of a shard's loop", |shard| &shard.turn)
    }

    fn histograms(
        &self,
        out: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        pick: impl Fn(&ShardStats) -> &Histogram,
    ) -> Encoded {
        let name = full(name);
        let mut family = out.encode_descriptor(&name, help, None, MetricType::Histogram)?;
        for (index, shard) in self.shards.iter().enumerate() {
            let (counts, sum_us) = pick(shard).read();
            let bounds = BOUNDS_US.iter().map(|us| *us as f64 / 1e6).chain([f64::INFINITY]);
            let buckets: Vec<(f64, u64)> = bounds.zip(counts.iter().copied()).collect();
            let labels = [("shard", index.to_string())];
            let mut row = family.encode_family(&labels)?;
            row.encode_histogram::<NoLabelSet>(sum_us as f64 / 1e6, counts.iter().sum(), &buckets, None)?;
        }
        Ok(())
    }
}

fn one(value: u64) -> Vec<(Label<'static>, u64)> {
    vec![(Vec::new(), value)]
}

fn full(name: &str) -> String {
    format!("goim_comet_{name}")
}

fn counters(out: &mut DescriptorEncoder<'_>, name: &str, help: &str, rows: &[(Label<'_>, u64)]) -> Encoded {
    let name = full(name);
    let mut family = out.encode_descriptor(&name, help, None, MetricType::Counter)?;
    for (labels, value) in rows {
        family.encode_family(labels)?.encode_counter::<NoLabelSet, u64, u64>(value, None)?;
    }
    Ok(())
}

fn gauges(out: &mut DescriptorEncoder<'_>, name: &str, help: &str, rows: &[(Label<'_>, u64)]) -> Encoded {
    let name = full(name);
    let mut family = out.encode_descriptor(&name, help, None, MetricType::Gauge)?;
    for (labels, value) in rows {
        family.encode_family(labels)?.encode_gauge(value)?;
    }
    Ok(())
}
