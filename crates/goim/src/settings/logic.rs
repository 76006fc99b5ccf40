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
    (
        "logic.upstream",
        "Packets of clients that are not goim's own. Without a route they are answered with an empty body, as in goim.",
    ),
    ("logic.timelines", "How timelines are read and written. Where they are kept is timelines.folder."),
    (
        "logic.timelines.send",
        "What members may send by themselves, and how fast. The quota of a member is for all its sessions together, in each logic for itself; beyond it an negotiated client is told 3113 with the time to wait.",
    ),
    (
        "logic.timelines.send_webhook",
        "Whether a member may send what logic.timelines.send.allowed does not: asked by POST with JSON: mid, to, in_room, operation (4, or from 1000 on), body_bytes. 200 or 204 is yes, 401 or 403 no; anything else is no decision, and the client may try again.",
    ),
    ("logic.http", "The HTTP API. Its address is http.listen."),
    (
        "logic.identity",
        "Who may connect. \"open\" believes the clients, as goim does: for development and trusted networks. \"jwt\" believes tokens that somebody has signed whose key is known. \"webhook\" asks the backend.",
    ),
    (
        "logic.identity.jwt",
        "JSON Web Tokens with HS256, RS256, ES256 or EdDSA, in the member `token` of the auth packet. Claims: mid (required), exp, nbf, aud, iss, key, rooms, rooms_allowed, accepts. A key is taken for one algorithm only.",
    ),
    (
        "logic.identity.webhook",
        "The backend is asked by POST with JSON: token, mid, key, room_id, rooms, platform, protover, ip, cookie, user_agent, server. It answers 200 with JSON: mid (required), key, rooms, rooms_allowed, accepts, expires_at (seconds since 1970); or 401 or 403, or {\"refuse\": \"why\"}. Anything else is no decision, and the client may come back.",
    ),
];

pub(super) fn settings() -> Vec<Setting> {
    settings! {
        [logic.directory_timeout], "How long a directory may take to answer; below comet.limits.handshake_timeout.";
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
        [logic.push.append_timeout], "How long the push log may take for one record; then the push may or may not be in it, and its publisher is told so. In a cluster at least push_log.append_timeout, kafka.delivery_timeout and 2s together: Kafka's own answer is waited for.";

        [logic.upstream.routes], "Where packets go, by operation: a list of tables with operations (\"1000..1999\", or one), to (http://, https://, grpc://host:port with goim.backend.Backend, kafka://topic), and where wanted timeout (2s, all tries together), retries (0; only for what may be done twice), calls_max (256 at once), duplicates (a time within which a packet with the same sequence of the same member gets the answer of the first; clients must not repeat sequences then) and secret (for HTTP, presented as a bearer).";

        [logic.timelines.reply_messages_max], "Messages of one answer to a sync, at most.";
        size [logic.timelines.reply_bytes_max], "Bytes of bodies of one answer; a single larger message is given all the same.";
        [logic.timelines.store_timeout], "How long the store may take. What was to be kept then may or may not be.";
        [logic.timelines.long_poll_timeout], "How long a request over HTTP may wait for messages; below what proxies cut off.";
        [logic.timelines.long_polls_max], "Streams and requests that may wait for messages at once. Of more, those that have messages to get are answered at once, the others refused with 503 and Retry-After. No more than logic.http.connections_max.";
        [logic.timelines.long_polls_per_member_max], "Those of one member; more are refused with 429. A stream is of one timeline. \"none\": no limit.";
        [logic.timelines.long_polls_per_address_max] = "1000", "Those from one address, or one /64 network of IPv6; more are refused with 429. Not set: no limit, since whole offices and carriers share one.";
        [logic.timelines.notify_retries_max], "Words of stored messages that may be tried again at once, when directory or push log did not take them; more are left, and clients find the messages with their next sync.";

        [logic.timelines.send.allowed], "Which operations a member may send to rooms that its session is in, and to its own inbox, such as [\"live://*: 4, 1000..1999\", \"mid://*: 1000\"]: a name or a beginning with * behind, then 4 and ranges from 1000 on. Operation 4 to its own inbox is always allowed, the operations of the protocol never. In text rules are separated by ;.";
        [logic.timelines.send.messages_per_second_max], "Messages a second of one member, on average.";
        [logic.timelines.send.messages_burst], "Messages that may come at once before that applies.";
        size [logic.timelines.send.bytes_per_second_max], "Bytes a second of one member, on average: what it can fill a disk with.";
        size [logic.timelines.send.bytes_burst], "Bytes that may come at once before that applies; a larger message is taken when nothing is owed.";
        [logic.timelines.send.tracked_members_max], "Members whose sending is remembered, of those who have sent lately. More share the quota of one.";

        [logic.timelines.send_webhook.url], "Where the backend is asked: https:// or http://. Not set: nobody may.";
        secret [logic.timelines.send_webhook.secret] = "the-secret-of-this-hook", "Presented as `Authorization: Bearer`, so that the backend knows who asks.";
        [logic.timelines.send_webhook.timeout], "From the question to the last byte of the answer.";
        [logic.timelines.send_webhook.calls_max], "Questions under way at once. More wait for `timeout` at most.";

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

        [logic.identity.method], "\"open\", \"jwt\" or \"webhook\".";
        [logic.identity.allow_remote], "With \"open\": clients from elsewhere than this machine are let in, whoever they say they are. Off, `goim serve` refuses to listen to others with \"open\".";
        [logic.identity.allow_client_keys], "Without \"open\": a client may name its session where neither its token nor the backend does. Whoever knows the key of another's session can then take it over.";

        [logic.identity.devices], "On how many devices a member may be at once: \"all\", \"one-per-platform\", \"newest\" (one), or \"at-most 3\". Whoever comes last stays; an negotiated client that has to go is told 3506.";

        secret [logic.identity.jwt.secrets], "Shared secrets for HS256, each at least 32 bytes; several while one replaces another. Better in the environment than in a file: GOIM_LOGIC_IDENTITY_JWT_SECRETS.";
        [logic.identity.jwt.public_keys], "Files with public keys in PEM: RSA (RS256), P-256 (ES256) or Ed25519 (EdDSA).";
        [logic.identity.jwt.jwks_url] = "https://login.example.com/.well-known/jwks.json", "Where the public keys are published, as a JSON Web Key Set. Keys are chosen by their name (kid); a new one is fetched when a token names it.";
        [logic.identity.jwt.jwks_refresh_interval], "Keys from there are fetched again when they are older; those that are there stay good while the place does not answer.";
        [logic.identity.jwt.jwks_retry_pause], "The shortest time between two fetches, whatever names of keys tokens invent.";
        [logic.identity.jwt.audience], "Whom a token must be for (aud): one of these. None: not looked at.";
        [logic.identity.jwt.issuer], "Whom a token must be from (iss): one of these. None: from anybody who has a key.";
        [logic.identity.jwt.mid_claim], "The claim with the member's number: an integer, or a text that is one.";
        [logic.identity.jwt.allow_no_exp], "Tokens without an end (exp) are taken.";
        [logic.identity.jwt.leeway], "How far the clocks of whoever signs and of this machine may differ.";

        [logic.identity.webhook.url], "Where the backend is asked: https:// or http://.";
        secret [logic.identity.webhook.secret] = "the-secret-of-this-hook", "Presented as `Authorization: Bearer`, so that the backend knows who asks.";
        [logic.identity.webhook.timeout], "From the question to the last byte of the answer; below logic.directory_timeout.";
        [logic.identity.webhook.calls_max], "Questions under way at once. More wait for `timeout` at most.";

    }
}
