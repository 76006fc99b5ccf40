//! The settings of comet, field by field.

use std::path::PathBuf;
use std::time::Duration;

use goim_comet::TlsConfig;

use super::value::Value;
use super::{Input, Setting, settings, value::show_duration};
use crate::Config;

pub(super) const SECTIONS: &[(&str, &str)] = &[
    ("comet", "Comet: the connections of clients."),
    ("comet.node", "Who this comet is in its cluster."),
    (
        "comet.listen",
        "Where clients connect. Each is a list of addresses; an empty list closes that door. Port 0 takes a free one.",
    ),
    ("comet.tls", "Certificate and key, PEM files. Without them the TLS listeners stay closed."),
    (
        "comet.limits",
        "What one client, and all together, may use. A client that breaks a limit is disconnected, and counted by reason.",
    ),
    ("comet.send", "How packets leave."),
    ("comet.sync", "What sessions that sync are told of messages in timelines."),
    (
        "comet.compression",
        "Bodies for clients whose protover has a compressing version, once for each message and version.",
    ),
    ("comet.events", "Events of sessions on their way to logic, and from there to events.url."),
    ("comet.compression.levels", "How hard is tried."),
    (
        "comet.recovery",
        "Sessions that have missed messages, since the comet was taken for dead and was not: it was frozen or cut off for so long that its sessions were swept, or that a job has dropped messages for it. Those that sync are told to look.",
    ),
    ("comet.drain", "How sessions are told to go when the process is asked to stop (SIGTERM)."),
];

pub(super) fn settings() -> Vec<Setting> {
    let mut table = settings! {
        [comet.shards] = "4", "Threads that own connections. Not set: one per core.";
        [comet.report_interval], "How often the comet reports its rooms and its load. Stretched by itself when a report takes more than a hundredth of it.";

        [comet.node.server] = "comet-1", "Name of the comet, unique in its cluster: sessions are found by it. Not set: this machine's host name.";
        [comet.node.region], "Region, for example \"sh\".";
        [comet.node.zone], "Zone inside the region, for example \"sh001\". A job that has a zone hands over to comets of that zone only, as goim's; without one to all.";
        [comet.node.env], "Deployment environment, for example \"dev\".";
        [comet.node.weight], "Share of new clients relative to other comets.";
        [comet.node.offline], "True: takes no new clients by way of the node list.";
        [comet.node.public_addrs], "Names or addresses, without port, under which clients reach this comet.";
        [comet.node.rpc_addr] = "10.0.0.7:3109", "Where other processes reach this comet's gRPC service, for the node list. Not set: where it listens.";

        [comet.listen.tcp], "Plain TCP.";
        [comet.listen.tcp_tls], "TCP inside TLS; needs a certificate.";
        [comet.listen.websocket], "WebSocket.";
        [comet.listen.websocket_tls], "WebSocket inside TLS; the default opens only when a certificate is configured.";
        [comet.listen.danmaku_tcp], "Plain TCP for clients that speak the dialect of live danmaku: docs/protocol.md.";
        [comet.listen.danmaku_tcp_tls], "TCP inside TLS for them; needs a certificate.";
        [comet.listen.danmaku_websocket], "WebSocket for them.";
        [comet.listen.danmaku_websocket_tls], "WebSocket inside TLS for them; needs a certificate.";
        [comet.listen.danmaku_room_type], "Their rooms are numbers; this is the type in front: with \"live\" room 1000 is live://1000.";
        [comet.listen.websocket_path], "The only request target that is upgraded to WebSocket.";
        [comet.listen.websocket_deflate], "Takes permessage-deflate where a client offers it, as browsers do: for clients that read no compressed version. What they get from comet.compression.threshold_bytes on is compressed, once for each message.";
        [comet.listen.websocket_lenient], "Accepts what goim accepts of old clients: text frames, unmasked frames, oversized control frames. False: strict RFC 6455.";
        [comet.listen.backlog], "Connections waiting to be accepted, per listener and shard; the kernel's somaxconn caps it.";
    };
    table.extend(tls());
    table.extend(settings! {
        [comet.limits.connections_max], "Connections in all. The process's limit of open files caps it too.";
        [comet.limits.connections_per_address_max] = "1000", "Connections from one address. Not set: no limit, since whole offices and carriers share one.";
        [comet.limits.accepts_per_second_max] = "5000", "New connections a second and shard. Not set: as fast as they come.";
        [comet.limits.handshake_timeout], "From accept to the end of authentication.";
        size [comet.limits.request_head_bytes_max], "The WebSocket upgrade request.";
        size [comet.limits.body_bytes_max], "Body of an inbound packet.";
        [comet.limits.packets_per_second_max] = "50", "Inbound packets a second of one client, on average. Not set: no limit. One above it is read later, not refused.";
        [comet.limits.rooms_max], "Rooms that one session may be in; a client of goim is in one.";
        [comet.limits.packets_burst], "Inbound packets that may come at once before packets_per_second_max applies.";

        size [comet.send.queue_bytes_max], "What waits for one session whose socket is full. Worst-case memory is this times the sessions that do not read; raise it to ride out longer stalls of mobile clients at that cost. The packet at the front does not count, whatever its size.";
        [comet.send.slow_consumer], "What happens to a packet that finds the queue full, by operation or range; the first that holds it counts. Policies: drop-newest, drop-oldest, close. For example [\"1000..1999 drop-oldest\", \"4 close\"].";
        [comet.send.slow_consumer_default], "What happens to operations that slow_consumer does not name.";
        size [comet.send.notsent_lowat_bytes], "What the kernel takes beyond what is on the wire (TCP_NOTSENT_LOWAT). Bounds the kernel's memory for a client that does not read at about 130 KB instead of 4 MB.";
        [comet.send.queued_commands_max], "Commands that wait for one shard. Full, the caller waits.";
        [comet.send.queued_sends_max], "Sends that commands of one shard lead to, until they are flushed: what bounds a message's wait here. What joins other messages to a session counts by its bytes only. Full, the caller waits.";
        [comet.send.paced_broadcasts_max], "Broadcasts with a speed that may be under way at once.";

        size [comet.sync.inline_bytes_max], "Bodies of stored messages up to this go along with the word that they are there, for sessions that want it. 0: none does.";
        [comet.compression.enabled], "Large bodies are compressed for clients that read it. Off, they leave as they are; what comes in is inflated all the same.";
        size [comet.compression.threshold_bytes], "Smaller bodies leave as they are.";
        size [comet.compression.inflated_bytes_max], "What a body that comes in may grow to. A larger one ends the connection.";
        [comet.compression.levels.zlib], "1 to 9.";
        [comet.compression.levels.brotli], "0 to 11. Above 5 the time grows much faster than the size shrinks.";
        [comet.compression.levels.zstd], "1 to 19.";

        [comet.events.interval], "How often events are told.";
        [comet.events.batch_max], "Events told at once.";
        [comet.events.waiting_max], "Events that wait while nobody takes them. More are dropped, and counted.";

        [comet.recovery.end_sessions], "Those that do not sync are ended with code 3006 (goim's clients see the end of the connection), so that they come back and know.";
        [comet.recovery.sessions_per_second], "Sessions a second that are ended or told to look.";

        [comet.drain.sessions_per_second], "Sessions a second that are told to go.";
        [comet.drain.deadline], "After this much time the rest is closed at once.";
        [comet.drain.reconnect_delay_max], "What an negotiated client is told to wait at most before it comes back, drawn evenly.";
    });
    table
}

/// The three settings of one optional group. Until both files are named the group is there with empty paths, which
/// `Config::check` tells from a complete one.
fn tls() -> Vec<Setting> {
    fn group(config: &mut Config) -> &mut TlsConfig {
        config.comet.tls.get_or_insert_with(|| TlsConfig::new(PathBuf::new(), PathBuf::new()))
    }
    fn file(input: Input<'_>) -> Option<PathBuf> {
        input.read::<Option<PathBuf>>().map(Option::unwrap_or_default)
    }
    vec![
        Setting {
            key: "comet.tls.cert_file",
            doc: "Certificate chain, leaf first.",
            example: "/etc/goim/tls.crt",
            secret: false,
            holds_secrets: || false,
            get: |config| config.comet.tls.as_ref().and_then(|tls| tls.cert_file.to_toml()),
            set: |config, input| {
                group(config).cert_file = file(input)?;
                Some(())
            },
            wants: Option::<PathBuf>::wants,
        },
        Setting {
            key: "comet.tls.key_file",
            doc: "Private key: PKCS#8, PKCS#1 or SEC1.",
            example: "/etc/goim/tls.key",
            secret: false,
            holds_secrets: || false,
            get: |config| config.comet.tls.as_ref().and_then(|tls| tls.key_file.to_toml()),
            set: |config, input| {
                group(config).key_file = file(input)?;
                Some(())
            },
            wants: Option::<PathBuf>::wants,
        },
        Setting {
            key: "comet.tls.reload_interval",
            doc: "How often the files are looked at; a changed pair serves new connections.",
            example: "",
            secret: false,
            holds_secrets: || false,
            get: |config| {
                let fresh = TlsConfig::new(PathBuf::new(), PathBuf::new());
                let interval = config.comet.tls.as_ref().unwrap_or(&fresh).reload_interval;
                Some(toml::Value::String(show_duration(interval)))
            },
            set: |config, input| {
                group(config).reload_interval = input.read()?;
                Some(())
            },
            wants: Duration::wants,
        },
    ]
}
