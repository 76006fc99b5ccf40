//! The documented responses of each route.

use serde_json::{Map, Value, json};

use super::schemas::{array, int32_with, object, reference};
use crate::http::table::{Action, Route};

const JSON: &str = "application/json";
/// goim v2 answers a wrong parameter with JSON under this content type.
const TEXT: &str = "text/plain";

/// A documented error: status, content type, schema, description.
type ErrorDoc = (u16, &'static str, &'static str, &'static str);

const RATE_LIMITED: ErrorDoc =
    (429, JSON, "Envelope", "Too many requests from this address. See Retry-After.");

const BAD_PARAMETER: ErrorDoc =
    (400, TEXT, "Envelope", "A parameter is missing or wrong; the message names it. The body is JSON.");

const NO_API_KEY: [ErrorDoc; 2] = [
    (401, JSON, "Envelope", "API keys are configured and the request has none of them."),
    (403, JSON, "Envelope", "No API key is configured and the request is not from this machine."),
];

const BODY: [ErrorDoc; 3] = [
    (400, JSON, "Envelope", "The body is broken or wrong; the message names the field."),
    (408, JSON, "Envelope", "The body did not arrive in time."),
    (413, JSON, "Envelope", "The body is too large; the message names the limit."),
];

const GOIM_PUSH: [ErrorDoc; 3] = [
    (429, JSON, "Envelope", "Too many requests, or the push log is full. See Retry-After."),
    (501, JSON, "Envelope", "`delivery=stored` on a server without a timeline store."),
    (503, JSON, "Envelope", "The timeline store is not available. The message is not stored."),
];

const BATCH: [ErrorDoc; 5] = [
    (415, JSON, "Envelope", "The content type is neither JSON nor NDJSON."),
    (
        429,
        JSON,
        "Accepted",
        "Too many requests, or the push log is full: the first `accepted` messages are accepted. See Retry-After.",
    ),
    (501, JSON, "Envelope", "Messages to be stored, on a server without a timeline store."),
    (
        503,
        JSON,
        "Accepted",
        "The push log, the timeline store or the directory is not available. The first `accepted` messages are \
         accepted, the others are not.",
    ),
    (
        504,
        JSON,
        "Accepted",
        "The messages may or may not be accepted. `accepted`, when present, is the number of messages, from the \
         front, that certainly are.",
    ),
];

const END_SESSIONS: [ErrorDoc; 3] = [
    (429, JSON, "Envelope", "Too many requests, or the push log is full. See Retry-After."),
    (503, JSON, "Envelope", "The push log or the directory is not available. No session is ended."),
    (504, JSON, "Envelope", "The order may or may not be accepted. It is safe to repeat."),
];

const MEMBER: [ErrorDoc; 5] = [
    (400, JSON, "Envelope", "The timeline's name is wrong."),
    (
        401,
        JSON,
        "Envelope",
        "The token is missing, invalid or expired, also when it expires during a long poll.",
    ),
    (403, JSON, "Envelope", "The token does not allow the timeline, or the backend has ended the session."),
    (501, JSON, "Envelope", "The server has no timeline store."),
    (503, JSON, "Envelope", "The timeline store or the identity service does not answer. Try again later."),
];

const SYNC: [ErrorDoc; 2] = [
    (
        429,
        JSON,
        "Envelope",
        "Too many requests, or too many long polls of the member or the address. See Retry-After.",
    ),
    (503, JSON, "Envelope", "Too many long polls, or the timeline store does not answer. See Retry-After."),
];

const DELETE: [ErrorDoc; 2] = [
    (501, JSON, "Envelope", "The server has no timeline store."),
    (503, JSON, "Envelope", "The timeline store does not answer. The message may be deleted."),
];

/// Returns the `responses` object of a route. A later error replaces an earlier one with the same
/// status and content type.
pub(super) fn of(route: &Route) -> Value {
    let mut all = Map::new();
    let mut add = |status: u16, content_type: &str, description: &str, schema: Value| {
        let entry = all.entry(status.to_string()).or_insert_with(|| json!({ "content": {} }));
        entry["description"] = description.into();
        entry["content"][content_type] = json!({ "schema": schema });
    };
    let is_goim_push =
        matches!(route.action, Action::PushKeys | Action::PushMids | Action::PushRoom | Action::PushAll);
    let description = if is_goim_push {
        "Accepted when the code is 0. Not accepted with code -400 or -500. Unknown with code -504."
    } else {
        "Done when the code is 0. Otherwise the code is -400 or -500, with goim v2's message."
    };
    add(200, JSON, description, success(route.action));
    if route.action == Action::Sync {
        add(200, "text/event-stream", description, json!({ "type": "string" }));
        let packet = json!({ "type": "string", "contentEncoding": "binary" });
        add(200, "application/octet-stream", description, packet);
    }
    for (status, content_type, schema, description) in errors(route) {
        add(status, content_type, description, reference(schema));
    }
    if let Some(stream) = all.get_mut("200").and_then(|ok| ok["content"].get_mut("text/event-stream")) {
        // OpenAPI 3.1 has no schema for the data of events.
        stream["x-events"] = json!({ "messages": reference("SyncReply"), "end": reference("StreamEnd") });
    }
    Value::Object(all)
}

fn errors(route: &Route) -> Vec<ErrorDoc> {
    let mut errors = vec![RATE_LIMITED];
    if !route.params.is_empty() {
        errors.push(BAD_PARAMETER);
    }
    if route.is_protected() {
        errors.extend(NO_API_KEY);
    }
    if route.has_body() {
        errors.extend(BODY);
    }
    if route.is_for_members() {
        errors.extend(MEMBER);
    }
    match route.action {
        Action::PushKeys | Action::PushMids | Action::PushRoom | Action::PushAll => errors.extend(GOIM_PUSH),
        Action::PushBatch => errors.extend(BATCH),
        Action::EndSessions => errors.extend(END_SESSIONS),
        Action::Sync => errors.extend(SYNC),
        Action::DeleteMessage => errors.extend(DELETE),
        _ => {}
    }
    errors
}

/// The schema of a response with status 200 under `application/json`.
fn success(action: Action) -> Value {
    let data = |schema: Value| envelope_with("data", &schema);
    match action {
        Action::PushKeys | Action::PushAll | Action::EndSessions => reference("Envelope"),
        // Only stored messages have positions.
        Action::PushMids | Action::PushRoom => envelope_with("data?", &reference("StoredPositions")),
        Action::PushBatch => reference("Accepted"),
        Action::Sync => data(reference("SyncReply")),
        Action::History => data(reference("History")),
        Action::Unread => data(array(&reference("Unread"))),
        Action::Ack => data(reference("AckReply")),
        Action::DeleteMessage => data(reference("Deleted")),
        // A room that is not UTF-8 has code -500 and no data.
        Action::RoomMembers => envelope_with("data?", &reference("RoomMembers")),
        Action::OnlineTop => data(array(&reference("RoomOnline"))),
        Action::OnlineRoom => data(json!({
            "type": "object",
            "description": "Sessions by room.",
            "additionalProperties": { "type": "integer", "format": "int32" },
        })),
        Action::OnlineTotal => data(reference("OnlineTotal")),
        Action::NodesWeighted => data(reference("Nodes")),
        Action::NodesInstances => data(json!({ "type": ["array", "null"], "items": reference("Instance") })),
        Action::Protocol => data(reference("Protocol")),
        Action::OpenApi => json!({ "type": "object", "additionalProperties": true }),
    }
}

fn envelope_with(member: &str, schema: &Value) -> Value {
    object(&json!({
        "code": int32_with("0 on success."),
        "message": { "type": "string" },
        member: schema,
    }))
}
