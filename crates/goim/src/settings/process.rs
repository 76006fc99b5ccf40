//! The settings of the process itself: its HTTP and gRPC listeners and its log.

use super::value::Value;
use super::{Setting, settings};

pub(super) const SECTIONS: &[(&str, &str)] = &[
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
    ("log", "The log on standard error."),
];

pub(super) fn settings() -> Vec<Setting> {
    settings! {
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
        [push_log.append_deadline], "How long a push waits for room before it is refused.";
        [push_log.waiting_max], "Pushes that may wait for room at once. One more is refused at once.";
        [push_log.age_max], "Age of the oldest record that is not read yet, beyond which pushes wait as if the log were full: what bounds a message's wait here.";
        [push_log.read_records_max], "Records that one read of job gives at most.";

        [log.level], "error, warn, info, debug, trace, or directives by module: \"info,goim_comet=debug\".";
        [log.format], "\"pretty\" for people, \"json\" for collectors (one object a line).";
    }
}
