//! The protocol between the parent and its workers: one JSON object per line, commands down, events
//! up.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::latency::Samples;

/// How clients connect to a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
pub(crate) enum Transport {
    /// Packets on a TCP stream.
    Tcp,
    /// One packet per WebSocket message.
    #[value(name = "ws")]
    WebSocket,
    /// Packets on a TCP stream, over TLS.
    Tls,
    /// WebSocket over TLS.
    #[value(name = "wss")]
    WebSocketTls,
}

impl Transport {
    pub(crate) fn is_tls(self) -> bool {
        matches!(self, Self::Tls | Self::WebSocketTls)
    }

    pub(crate) fn is_websocket(self) -> bool {
        matches!(self, Self::WebSocket | Self::WebSocketTls)
    }

    /// Returns the name for reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::WebSocket => "WebSocket",
            Self::Tls => "TCP over TLS",
            Self::WebSocketTls => "WebSocket over TLS",
        }
    }
}

/// An address that clients connect to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Target {
    pub(crate) transport: Transport,
    pub(crate) addr: SocketAddr,
    /// The Host header of an upgrade.
    pub(crate) host: String,
    /// The request target of an upgrade.
    pub(crate) path: String,
}

/// The clients of one worker. Client `i` of all clients connects to target `i` modulo the number of
/// targets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// The run, see [`crate::message::Message`].
    pub(crate) run: u32,
    /// The number of streams of messages.
    pub(crate) streams: u32,
    pub(crate) targets: Vec<Target>,
    /// Source addresses; empty lets the kernel choose.
    pub(crate) sources: Vec<IpAddr>,
    /// Clients per source address; below the number of ports.
    pub(crate) clients_per_source: u32,
    /// Source ports: the first, and their number.
    pub(crate) ports: (u16, u16),
    /// The first client of this worker.
    pub(crate) first: u32,
    /// The number of clients of this worker.
    pub(crate) count: u32,
    /// The maximum number of connections being opened at the same time.
    pub(crate) connecting_max: u32,
    /// The operation of the messages. Clients subscribe to it and to the next two.
    pub(crate) operation: i32,
    /// The room that all clients join.
    pub(crate) room: String,
    /// The highest version that clients accept; `None` for clients of goim v2.
    pub(crate) protover: Option<i16>,
}

/// Returns the key of a client: 36 bytes.
pub(crate) fn key(run: u32, client: u32) -> String {
    format!("bench-{run:08x}-client-{client:014}")
}

/// Returns the member of a client.
pub(crate) fn member(client: u32) -> u32 {
    client.saturating_add(1)
}

/// A command of the parent to a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Command {
    /// Connect and authenticate all clients. Sent once to each worker.
    Connect(Plan),
    /// Send heartbeats, evenly spread.
    Heartbeat {
        /// Time between two heartbeats of one client, in milliseconds.
        interval_ms: u64,
        /// The clients of all workers, which share the interval.
        clients: u32,
    },
    /// Stop sending heartbeats.
    StopHeartbeats,
    /// From now on, count heartbeat replies that contain another number of online sessions.
    ExpectOnline(i32),
    /// Send a report, given the number of messages published in each stream.
    Report {
        /// One number per stream.
        published: Vec<u32>,
    },
    /// Discard the latencies recorded so far.
    ResetLatency,
    /// Close all connections without notice and connect again, with the same keys.
    Reconnect,
    /// Send heartbeats as fast as they are answered.
    HeartbeatWindows {
        /// Heartbeats that are sent together; the next ones follow when all of them are answered.
        window: u32,
    },
    /// Close the connections and end.
    Close,
}

/// An event of a worker for the parent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Event {
    /// Progress; sent several times per second, and immediately after a wave of messages.
    Progress(Progress),
    /// The response to [`Command::Report`].
    Report(Box<WorkerReport>),
    /// Clients that have reconnected after [`Command::Reconnect`], by number; sent immediately.
    Reconnected(Vec<u32>),
}

/// The progress of a worker. Counts start with the worker.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// Clients that are authenticated and connected.
    pub(crate) open: u32,
    /// When the last client was authenticated; 0 without clients.
    pub(crate) last_opened_ns: u64,
    /// Clients whose connection ended or could not be opened.
    pub(crate) ended: u32,
    /// Messages received for the first time, by stream.
    pub(crate) delivered: Vec<u64>,
    /// Heartbeats sent.
    pub(crate) heartbeats_sent: u64,
    /// Heartbeats answered.
    pub(crate) heartbeats_answered: u64,
    /// Bytes received, framing included and TLS excluded.
    pub(crate) received_bytes: u64,
    /// CPU time of the worker, in nanoseconds.
    pub(crate) cpu_ns: u64,
    /// The number of ended clients, by reason.
    pub(crate) reasons: BTreeMap<String, u32>,
}

/// Everything that a worker has counted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WorkerReport {
    /// One report per stream.
    pub(crate) streams: Vec<StreamReport>,
    /// From the first step of connecting to the auth reply.
    pub(crate) connect: Samples,
    pub(crate) heartbeats: HeartbeatReport,
    /// Packets that belong to no message of this run.
    pub(crate) unexpected: Unexpected,
}

/// The messages of one stream, over all clients of a worker.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StreamReport {
    /// Messages received for the first time.
    pub(crate) delivered: u64,
    /// Messages published and not received, counted for each client.
    pub(crate) lost: u64,
    /// Messages received more than once.
    pub(crate) duplicate: u64,
    /// Messages received after one that was published later.
    pub(crate) reordered: u64,
    /// From the time at which a message was due to its receipt.
    pub(crate) latency: Samples,
    /// When the last client of this worker received each message, by number; 0 for none.
    pub(crate) last_ns: Vec<u64>,
}

/// The heartbeats of a worker.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HeartbeatReport {
    pub(crate) sent: u64,
    pub(crate) answered: u64,
    /// Heartbeats not sent, because the previous one was unanswered.
    pub(crate) overdue: u64,
    /// Replies with another number of online sessions than expected.
    pub(crate) wrong_count: u64,
    /// From the time at which a heartbeat was due to its reply.
    pub(crate) latency: Samples,
}

/// Packets that belong to no message of this run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Unexpected {
    /// Bodies that are damaged, or that are not messages of a benchmark.
    pub(crate) damaged: u64,
    /// Valid messages of another run or stream.
    pub(crate) foreign: u64,
    /// Packets with another operation, version or sequence than a push, and replies without a
    /// request.
    pub(crate) mislabelled: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_fit_on_a_line_and_are_parsed_back() {
        let target = Target {
            transport: Transport::WebSocket,
            addr: "[::1]:3102".parse().unwrap(),
            host: "localhost:3102".into(),
            path: "/sub".into(),
        };
        let plan = Plan {
            run: 1,
            streams: 2,
            targets: vec![target],
            sources: vec!["127.0.0.2".parse().unwrap()],
            clients_per_source: 10,
            ports: (32_768, 28_231),
            first: 3,
            count: 4,
            connecting_max: 5,
            operation: 1000,
            room: "a\nb".into(),
            protover: Some(3),
        };
        for command in [
            Command::Connect(plan),
            Command::Heartbeat { interval_ms: 5, clients: 9 },
            Command::ExpectOnline(3),
            Command::Report { published: vec![1, 2] },
            Command::ResetLatency,
            Command::Reconnect,
            Command::HeartbeatWindows { window: 7 },
            Command::Close,
        ] {
            let line = serde_json::to_string(&command).unwrap();
            assert!(!line.contains('\n'), "{line}");
            assert_eq!(serde_json::from_str::<Command>(&line).unwrap(), command, "{line}");
        }
    }
}
