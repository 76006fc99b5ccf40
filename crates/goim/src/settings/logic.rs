//! The settings of logic, field by field.

use super::value::Value;
use super::{Setting, settings};

pub(super) const SECTIONS: &[(&str, &str)] = &[
    ("logic", "Logic: who may connect, what is pushed to whom, which comet a client should go to."),
    ("logic.node", "What clients are told of the comets by /goim/nodes/weighted."),
    (
        "logic.backoff",
        "How clients are told to come back after a loss: after base_delay, then factor times longer each time up to max_delay, each wait changed at random by up to jitter of itself.",
    ),
    ("logic.push", "What is pushed."),
    ("logic.http", "The HTTP API. Its address is http.listen."),
];

pub(super) fn settings() -> Vec<Setting> {
    settings! {
        [logic.directory_deadline], "How long a directory may take to answer; below comet.limits.handshake_timeout.";
        [logic.regions], "Regions with the provinces that belong to them, for example { sh = [\"Shanghai\", \"Jiangsu\"] }. goim never finds out a client's province, so that only a region with the province \"\" is ever a client's.";

        [logic.node.default_domain], "Where clients go when no comet is known.";
        [logic.node.host_domain], "Appended to a comet's name to make its domain.";
        [logic.node.tcp_port], "Port of the comets' TCP listener, as clients see it.";
        [logic.node.ws_port], "Port of the comets' WebSocket listener, as clients see it.";
        [logic.node.wss_port], "Port of the comets' WebSocket listener inside TLS, as clients see it.";
        [logic.node.heartbeat], "How often a client should send a heartbeat. Clients are told whole seconds.";
        [logic.node.heartbeat_max], "How many heartbeats may be missing before a session is ended.";
        [logic.node.region_weight], "A comet in the client's own region counts this many times its weight.";

        [logic.backoff.max_delay], "Longest wait, in seconds.";
        [logic.backoff.base_delay], "First wait, in seconds.";
        [logic.backoff.factor], "Growth from one wait to the next, at least 1.";
        [logic.backoff.jitter], "Share of a wait that is left to chance, 0 to 1.";

        size [logic.push.record_bytes_max], "Largest record of the push log, counted as goim's Kafka client counts: 26, the record's key, and goim's message around the body.";
        [logic.push.append_deadline], "How long the push log may take for one record. The push then fails, and may or may not be in the log.";

        size [logic.http.body_bytes_max], "Largest request body. Well above logic.push.record_bytes_max, so that goim's users see goim's error for a message that is a little too large.";
        size [logic.http.head_bytes_max], "Largest request head: request line and headers. A request target ends at 65,534 bytes whatever this says.";
        [logic.http.headers_max], "Most headers in a request.";
        secret [logic.http.api_keys], "Keys of which a push request must present one, each at least 16 bytes. None: pushes are taken from this machine only. Better in the environment than in a file: GOIM_LOGIC_HTTP_API_KEYS.";
        [logic.http.requests_per_second_max] = "1000", "Requests a second that one client address may make, on average; as many may come at once. An IPv6 client is its /64 network. Not set: no limit.";
        [logic.http.header_timeout], "Until a request's head is there: from the start of a new connection, then from the first byte of each further head.";
        [logic.http.idle_timeout], "How long a connection may be silent between two requests.";
        [logic.http.request_timeout], "From the end of a request's head to its answer.";
        [logic.http.connections_max], "Connections held at once. More wait to be accepted.";
        [logic.http.shutdown_timeout], "How long requests under way may take to end when the server stops.";
    }
}
