//! The settings of the process itself: its HTTP and gRPC listeners and its log.

use super::value::Value;
use super::{Setting, settings};

pub(super) const SECTIONS: &[(&str, &str)] = &[
    (
        "versions",
        "What versions of packets mean: the schema of a body, and how it is encoded. An negotiated client says the highest that it reads (protover).",
    ),
    (
        "events",
        "What happens to sessions, for a backend that wants to know: connect, disconnect, join, leave, in batches, each at least once and with an id by which a second time is known. All roles must have the same.",
    ),
    (
        "timelines",
        "Messages that are kept (delivery=stored): the inbox of each member and the timeline of each room. Members sync them over their connections and over HTTP.",
    ),
    (
        "http",
        "The push API, the node list, and the operator's pages: /metrics, /healthz, /readyz, /openapi.json.",
    ),
    (
        "rpc",
        "goim's gRPC services. They know no passwords: open them beyond this machine only inside a network that you trust.",
    ),
    ("rpc.server", "How connections of other nodes are kept; the defaults are goim's."),
    ("push_log", "The push log inside this process: what logic has accepted and job has still to hand over."),
    (
        "cluster",
        "`goim comet`, `goim logic` and `goim job` as processes of their own: how they find each other. `goim serve` needs none of this.",
    ),
    (
        "kafka",
        "The push log of a cluster: logic writes to it, job reads it. Topic, keys and values are goim's.",
    ),
    ("redis", "The directories of a cluster: sessions, room counts, the list of comets. Keys are goim's."),
    ("log", "The log on standard error."),
];

pub(super) fn settings() -> Vec<Setting> {
    settings! {
        [versions.rows], "The table: add rows such as \"4 = schema 2, identity\" and \"5 = schema 2, zstd\", and never change or take away one. All comets and logics must have the same; clients find it at /v1/protocol. In text rows are separated by ;.";

        [events.url] = "http://127.0.0.1:8000/sessions", "Where events go: http:// or https:// (by POST, {\"events\": [...]}; any answer of 2xx takes them) or kafka://topic (one record each, JSON). Not set: nobody wants to know.";
        secret [events.secret] = "the-secret-of-this-hook", "For HTTP: presented as `Authorization: Bearer`.";

        [timelines.folder] = "/var/lib/goim/timelines", "Where they are kept: a folder of this machine, made when it is not there; one process at a time has it. With neither this nor timelines.postgres messages are pushed and not kept.";
        secret [timelines.postgres] = "postgres://goim@127.0.0.1:5432/goim", "Or on PostgreSQL, which any number of logics share: postgres://user:password@host:port/database. Tables are made when they are not there.";
        [timelines.offline_url] = "https://push.example.com/away", "Where members are told of who have no session when a message is stored for them, for a mobile push provider: http:// or https:// (by POST, {\"offline\": [...]}, any answer of 2xx takes them) or kafka://topic (one record each, JSON). Not set: nobody wants to know.";
        secret [timelines.offline_secret] = "the-secret-of-this-hook", "For HTTP: presented as `Authorization: Bearer`.";
        [timelines.messages_max], "Messages of a timeline that are kept; the oldest go first.";
        [timelines.age_max], "How long a message is kept.";
        size [timelines.bytes_max], "Bytes of a timeline's bodies that are kept; the newest message stays whatever its size.";
        [timelines.retention_overrides], "Other rules for timelines of some kinds, the part of the name before ://, such as [\"live: 1000 messages, 1h, 8MiB\", \"mid: 720h\"]; inboxes are of the kind mid. In text rules are separated by ;.";
        [timelines.duplicate_window], "How long a client id or an idempotency key stands for its message, at least; twice as long at most.";
        [timelines.pending_messages_max], "Messages that may wait to be written; more are refused with 429.";
        size [timelines.pending_bytes_max], "The same in bytes.";
        size [timelines.cache_bytes], "Memory for what is read from the folder again and again.";
        [timelines.head_cache_entries], "Timelines in the folder of which the end is known without a look at the disk: so many that were written to lately, at most twice as many; about 100 B each.";
        [timelines.retention_interval], "Time between two passes that remove what is not to be kept any longer. A pass takes a tenth of a processor at most.";

        [http.listen], "Address of the HTTP listener. Port 0 takes a free one.";

        [rpc.comet] = "127.0.0.1:3109", "goim.comet.Comet, which job calls. \"none\" leaves it closed.";
        [rpc.logic] = "127.0.0.1:3119", "goim.logic.Logic, which comets call. \"none\" leaves it closed.";

        [rpc.server.keepalive_interval], "A connection on which nothing has come for this long is pinged.";
        [rpc.server.keepalive_timeout], "A connection that leaves a ping without answer for this long is closed.";
        [rpc.server.connection_age_max], "A connection that is older is told to go, so that clients spread over new nodes. \"none\": never.";
        [rpc.server.grace], "How long calls may go on after that, and when the server stops.";
        [rpc.server.calls_max], "Calls under way on one connection. More wait at the client.";

        [push_log.records_max], "Records between their acceptance and their hand-over to comets.";
        size [push_log.bytes_max], "The same in bytes, with 160 B for the housekeeping of each: what a burst may cost. An empty log takes one record of any size that logic.push.record_bytes_max allows.";
        [push_log.append_timeout], "How long a push waits for room before it is refused: it is not in the log then.";
        [push_log.waiting_max], "Pushes that may wait for room at once. One more is refused at once.";
        [push_log.age_max], "Age of the oldest record that is not read yet, beyond which pushes wait as if the log were full: what bounds a message's wait here.";
        [push_log.read_records_max], "Records that one read of job gives at most.";

        [cluster.directory], "Where the list of comets is: \"redis\", where each keeps its record alive; \"list\", cluster.comets, each of which is asked; \"discovery\", a bilibili/discovery server, where logics are found too: for life beside goim's own processes.";
        [cluster.comets], "Addresses of comets, for the directory \"list\": grpc://host:port, or dns://name:port for every address that DNS has for a name.";
        [cluster.discovery], "HOST:PORT of discovery servers, for the directory \"discovery\". Region, zone and env are those of comet.node, in every role.";
        [cluster.discovery_host] = "logic-1", "What this process is called on discovery; no other may be called so. Not set: comet.node.server, and for logic and job that with -logic or -job behind it.";
        [cluster.logic_addr] = "10.0.0.2:3119", "Where comets reach this logic, for the directory \"discovery\". Not set: where rpc.logic listens.";
        [cluster.logic], "Addresses of logics, for comets, unless discovery knows them: grpc://host:port, or dns://name:port for every address that DNS has for a name. Calls take turns, and go to another when one does not answer.";
        [cluster.lease], "How long a comet is listed that says nothing; then its sessions are removed. Several of comet.report_interval. Discovery has a time of its own.";
        [cluster.refresh], "How often the list of comets is read.";
        [cluster.room_counts_ttl], "How long the sum of the rooms' counts over all comets is used before it is made anew.";
        [cluster.comet_admin_listen], "Address of /metrics, /healthz and /readyz of `goim comet`. Port 0 takes a free one.";
        [cluster.job_admin_listen], "The same of `goim job`.";

        [kafka.brokers], "HOST:PORT of some brokers; the others are found by them.";
        [kafka.topic], "The topic; it must exist, unless the brokers make topics by themselves.";
        [kafka.group], "The consumer group of the jobs. goim's Go jobs must not be in it: docs/migrating-from-goim.md.";
        [kafka.instance_id], "What this job is called in the group (group.instance.id); no other job may be called so. Back within kafka.session_timeout it goes on with its partitions at once, and no other job notices. Empty: as comet.node.server, which is the host's name when it is not set. \"none\": no name; the job leaves the group when it stops, and each return makes the group agree anew.";
        [kafka.auto_offset_reset], "Where a group begins that has committed nothing: \"latest\", as goim, or \"earliest\". It is committed before the first job joins. Partitions that come later, and a topic that is made again, are read from their beginning.";
        [kafka.dead_letter_topic] = "goim-dead-letters", "Where records go that are no pushes. \"none\": they are logged, counted and dropped.";
        [kafka.delivery_timeout], "How long a push is tried before its publisher is told that it may or may not be in the log.";
        [kafka.session_timeout], "How long a job may be silent before its partitions go to others: the longest wait when a job dies and does not come back, or is stopped for good.";
        [kafka.commit_interval], "How often offsets are committed: what comes again after a crash.";
        secret [kafka.properties], "Properties of librdkafka, for what has no setting of its own, such as { \"client.rack\" = \"z1\" } or, in a binary built with the feature kafka-tls, { \"security.protocol\" = \"SASL_SSL\", \"sasl.mechanism\" = \"SCRAM-SHA-512\", \"sasl.username\" = \"goim\", \"sasl.password\" = \"...\" }. What order and completeness rest on is set after them.";

        secret [redis.url] = "redis://127.0.0.1:6379", "One server: redis://[user:password@]host:port[/database]; rediss:// inside TLS. With Sentinels the address is theirs to give: scheme, user, password and database of this one are used at the master.";
        secret [redis.cluster] = "[\"redis://10.0.0.1:6379\", \"redis://10.0.0.2:6379\"]", "Some nodes of a Redis cluster, in place of one server.";
        secret [redis.sentinels] = "[\"redis://10.0.0.1:26379\"]", "Some Sentinels, in place of one server.";
        [redis.master], "What the Sentinels call the master.";
        [redis.ca_file] = "/etc/goim/redis-ca.pem", "Who signed Redis's certificate, PEM, for addresses that begin with rediss://. Not set: those whom the system trusts.";
        [redis.cert_file] = "/etc/goim/redis.crt", "This process's certificate, which Redis asks for unless it has \"tls-auth-clients no\".";
        [redis.key_file] = "/etc/goim/redis.key", "Its private key: PKCS#8, PKCS#1 or SEC1.";
        [redis.session_ttl], "How long a record of a session lives that nobody touches. More than twice the time between a session's heartbeats to logic.";
        [redis.deadline], "How long a command may take.";
        [redis.recovery_grace], "How long comets may take to enter their sessions again when Redis has lost what it had: until then a push to somebody who is not found is refused, not answered as if he were not there. A comet enters 5,000 sessions a second and shard.";

        [log.level], "error, warn, info, debug, trace, or directives by module: \"info,goim_comet=debug\".";
        [log.format], "\"pretty\" for people, \"json\" for collectors (one object a line).";
    }
}
