//! What is said between the parent and its workers: one JSON object a line, commands down, events up.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::latency::Samples;

/// How packets are carried to a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
pub(crate) enum Carrier {
    /// Packets on a TCP stream.
    Tcp,
    /// One packet per WebSocket message.
    #[value(name = "ws")]
    WebSocket,
    /// Packets on a TCP stream inside TLS.
    Tls,
    /// WebSocket inside TLS.
    #[value(name = "wss")]
    WebSocketTls,
}

impl Carrier {
    pub(crate) fn is_tls(self) -> bool {
        matches!(self, Self::Tls | Self::WebSocketTls)
    }

    pub(crate) fn is_websocket(self) -> bool {
        matches!(self, Self::WebSocket | Self::WebSocketTls)
    }
}

/// Where clients connect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Target {
    pub(crate) carrier: Carrier,
    pub(crate) addr: SocketAddr,
    /// What is written into the Host line of an upgrade.
    pub(crate) host: String,
    /// Request target of an upgrade.
    pub(crate) path: String,
}

/// The clients of one worker. Client `i` of all goes to target `i` modulo their number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// The run, see [`crate::message::Message`].
    pub(crate) run: u32,
    /// Streams whose messages will come.
    pub(crate) streams: u32,
    pub(crate) targets: Vec<Target>,
    /// Addresses to connect from; empty leaves that to the system.
    pub(crate) sources: Vec<IpAddr>,
    /// Clients on one source address; fewer than there are ports.
    pub(crate) clients_per_source: u32,
    /// Ports to connect from: the first, and how many.
    pub(crate) ports: (u16, u16),
    /// The first of this worker's clients.
    pub(crate) first: u32,
    /// How many it has.
    pub(crate) count: u32,
    /// Connections that may be on their way at once.
    pub(crate) in_flight_max: u32,
    /// Operation of the messages that will come; clients subscribe to it and the next two.
    pub(crate) operation: i32,
    /// The one room that all of them are in.
    pub(crate) room: String,
    /// The highest version that they read; `None` for clients of goim.
    pub(crate) protover: Option<i16>,
}

/// From the parent to a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Command {
    /// Connects and authenticates; once in the life of a worker.
    Connect(Plan),
    /// Begins to send heartbeats, evenly spread.
    Beat {
        /// Time between two of one client, in milliseconds.
        interval_ms: u64,
        /// All clients, of which this worker has some: they share the interval.
        clients: u32,
    },
    /// Sends no further heartbeats.
    StopBeats,
    /// From now on a heartbeat's answer must say that as many are online.
    ExpectOnline(i32),
    /// Asks for everything, given how many messages of each stream were published.
    Report {
        /// One number for each stream.
        published: Vec<u32>,
    },
    /// Begins new distributions of latency.
    Fresh,
    /// Closes all connections without a word and connects again, everybody with the same key.
    Return,
    /// Sends heartbeats as fast as they are answered, until told to stop.
    Dense {
        /// Heartbeats that go out together; the next as many when all of them are answered.
        window: u32,
    },
    /// Ends the connections and the worker.
    Close,
}

/// From a worker to the parent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Event {
    /// How far it is. Comes several times a second, and as soon as a wave of messages is over.
    Progress(Progress),
    /// The answer to [`Command::Report`].
    Report(Box<Report>),
    /// Clients that have just come back after [`Command::Return`], by their number. Comes at once.
    Returned(Vec<u32>),
}

/// How far a worker is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// Authenticated and still there.
    pub(crate) open: u32,
    /// When the last client was authenticated; 0 while there is none.
    pub(crate) last_opened_ns: u64,
    /// Gone, or never there.
    pub(crate) ended: u32,
    /// Messages received for the first time, by stream.
    pub(crate) delivered: Vec<u64>,
    /// Heartbeats sent.
    pub(crate) beats_sent: u64,
    /// Heartbeats answered.
    pub(crate) beats_answered: u64,
    /// Bytes received, with everything around the messages, inside TLS without it.
    pub(crate) received_bytes: u64,
    /// The worker's own processor time in nanoseconds.
    pub(crate) cpu_ns: u64,
    /// Why clients have ended, and how many did for that reason.
    pub(crate) reasons: BTreeMap<String, u32>,
}

/// All that a worker knows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// One for each stream.
    pub(crate) streams: Vec<StreamReport>,
    /// From the first step of connecting to the auth reply.
    pub(crate) connect: Samples,
    pub(crate) beats: BeatReport,
    /// What came and was no message of this run.
    pub(crate) strays: Strays,
}

/// What came of one stream, over all clients of a worker.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StreamReport {
    /// Messages received for the first time.
    pub(crate) delivered: u64,
    /// Published and not received: one for each client and message.
    pub(crate) lost: u64,
    /// Received again.
    pub(crate) doubled: u64,
    /// Received behind one that was published after them.
    pub(crate) reordered: u64,
    /// From due to received.
    pub(crate) latency: Samples,
    /// By number: when the last client of this worker had it. 0 for none.
    pub(crate) last_ns: Vec<u64>,
}

/// What came of the heartbeats.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BeatReport {
    pub(crate) sent: u64,
    pub(crate) answered: u64,
    /// Unanswered when the next was due; that one was not sent then.
    pub(crate) overdue: u64,
    /// Answers that said another number online than expected.
    pub(crate) wrong_count: u64,
    /// From due to answered.
    pub(crate) latency: Samples,
}

/// Packets that nobody of this run has published.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Strays {
    /// Bodies that are damaged or no message at all.
    pub(crate) damaged: u64,
    /// Sound messages of another run or stream.
    pub(crate) foreign: u64,
    /// With another operation, version or mark than a push has.
    pub(crate) mislabelled: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_fits_on_a_line_and_comes_back() {
        let target = Target {
            carrier: Carrier::WebSocket,
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
            in_flight_max: 5,
            operation: 1000,
            room: "a\nb".into(),
            protover: Some(3),
        };
        for command in [
            Command::Connect(plan),
            Command::Beat { interval_ms: 5, clients: 9 },
            Command::ExpectOnline(3),
            Command::Report { published: vec![1, 2] },
            Command::Fresh,
            Command::Return,
            Command::Dense { window: 7 },
            Command::Close,
        ] {
            let line = serde_json::to_string(&command).unwrap();
            assert!(!line.contains('\n'), "{line}");
            assert_eq!(serde_json::from_str::<Command>(&line).unwrap(), command, "{line}");
        }
    }
}
