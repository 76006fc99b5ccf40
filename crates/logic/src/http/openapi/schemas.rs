//! The schemas of request and response bodies, by area.

use serde_json::{Map, Value, json};

use crate::http::messages::{MESSAGES_MAX, SCHEMAS_MAX};

/// Returns all schemas by name.
pub(super) fn all() -> Value {
    let mut all = Map::new();
    for area in
        [envelopes(), messages(), timeline_requests(), timeline_replies(), rooms(), nodes(), protocol()]
    {
        if let Value::Object(schemas) = area {
            all.extend(schemas);
        }
    }
    Value::Object(all)
}

pub(super) fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

/// An object with these members. A name that ends in `?` is an optional member.
pub(super) fn object(members: &Value) -> Value {
    let (mut properties, mut required) = (Map::new(), Vec::new());
    for (name, schema) in members.as_object().into_iter().flatten() {
        match name.strip_suffix('?') {
            Some(optional) => properties.insert(optional.to_owned(), schema.clone()),
            None => {
                required.push(name.clone());
                properties.insert(name.clone(), schema.clone())
            }
        };
    }
    json!({ "type": "object", "properties": properties, "required": required })
}

/// An object in a request: the server refuses other members.
fn closed(members: &Value) -> Value {
    let mut schema = object(members);
    schema["additionalProperties"] = json!(false);
    schema
}

pub(super) fn array(items: &Value) -> Value {
    json!({ "type": "array", "items": items })
}

fn text() -> Value {
    json!({ "type": "string" })
}

fn base64() -> Value {
    json!({ "type": "string", "contentEncoding": "base64" })
}

fn int32() -> Value {
    json!({ "type": "integer", "format": "int32" })
}

pub(super) fn int32_with(description: &str) -> Value {
    json!({ "type": "integer", "format": "int32", "description": description })
}

fn int64(description: &str) -> Value {
    json!({ "type": "integer", "format": "int64", "description": description })
}

fn boolean(description: &str) -> Value {
    json!({ "type": "boolean", "description": description })
}

fn envelopes() -> Value {
    let code = || int32_with("0 on success.");
    json!({
        "Envelope": object(&json!({ "code": code(), "message": text() })),
        "Accepted": object(&json!({
            "code": code(),
            "message": text(),
            "accepted?": { "type": "integer", "description": "The number of messages, from the front, that are accepted." },
            "positions?": {
                "type": "array",
                "description": "For stored messages: one list of positions per message, one position per receiver.",
                "items": array(&reference("StoredPosition")),
            },
        })),
        "StoredPosition": object(&json!({
            "timeline": text(),
            "epoch": int64("The epoch of the timeline."),
            "seq": int64("The sequence number of the message."),
            "duplicate": boolean("An earlier request with the same idempotency key stored the message."),
        })),
        "StoredPositions": object(&json!({ "positions": array(&reference("StoredPosition")) })),
    })
}

/// The ways to name receivers in a request.
fn receivers(with_all: bool) -> Value {
    let list = |items: Value| json!({ "type": "array", "items": items, "minItems": 1 });
    let mut ways = vec![
        closed(&json!({ "keys": list(text()) })),
        closed(&json!({ "mids": list(json!({ "type": "integer", "format": "int64", "minimum": 1 })) })),
        closed(&json!({ "room": { "type": "string", "description": "`type://id`." } })),
    ];
    if with_all {
        let speed = "Sessions per second over all comets. Unlimited by default.";
        ways.push(closed(&json!({
            "all": { "const": true },
            "speed?": { "type": "integer", "minimum": 1, "description": speed },
        })));
    }
    json!({ "oneOf": ways })
}

fn messages() -> Value {
    let mut message = closed(&json!({
        "to": receivers(true),
        "operation": { "type": "integer", "format": "int32", "not": { "const": 0 } },
        "body?": text(),
        "body_base64?": base64(),
        "bodies?": {
            "type": "array",
            "minItems": 1,
            "maxItems": SCHEMAS_MAX,
            "items": reference("SchemaBody"),
            "description": "The message in several schemas. A session receives the highest schema that it reads, and \
                            nothing when it reads none of them.",
        },
        "delivery?": {
            "enum": ["transient", "stored"],
            "description": "`stored`: append the message to the timelines of `mids` or `room` before it is pushed. \
                            All messages of a request are stored, or none.",
        },
        "idempotency_key?": { "type": "string", "minLength": 1, "maxLength": 128 },
    }));
    message["oneOf"] =
        json!([{ "required": ["body"] }, { "required": ["body_base64"] }, { "required": ["bodies"] }]);
    let mut schema_body = closed(&json!({
        "schema": { "type": "integer", "minimum": 1, "maximum": 65535 },
        "body?": text(),
        "body_base64?": base64(),
    }));
    schema_body["oneOf"] = json!([{ "required": ["body"] }, { "required": ["body_base64"] }]);
    let list = json!({ "type": "array", "items": reference("Message"), "maxItems": MESSAGES_MAX });
    json!({
        "Batch": closed(&json!({ "messages": list })),
        "Message": message,
        "SchemaBody": schema_body,
        "EndSessions": closed(&json!({
            "of": receivers(false),
            "reason?": { "enum": ["kicked", "revoked"] },
        })),
    })
}

fn timeline_requests() -> Value {
    json!({
        "MessageRef": closed(&json!({
            "timeline": text(),
            "seq": int64("The sequence number of the message."),
        })),
    })
}

fn timeline_replies() -> Value {
    let epoch = || int64("The epoch of the timeline; 0 when it has no message yet.");
    let latest = || int64("The sequence number of the newest message.");
    let messages = || array(&reference("TimelineMessage"));
    json!({
        "SyncReply": object(&json!({
            "timeline": text(),
            "epoch": epoch(),
            "latest": latest(),
            "after": int64("The sequence number before the first of these messages."),
            "more": boolean("Newer messages follow."),
            "gap": boolean("Messages between the client's position and these messages are missing."),
            "messages": messages(),
        })),
        "History": object(&json!({
            "timeline": text(),
            "epoch": epoch(),
            "latest": latest(),
            "first": int64("The sequence number of the oldest stored message."),
            "more": boolean("Older messages follow."),
            "messages": messages(),
        })),
        "Unread": object(&json!({
            "timeline": text(),
            "unread": int64("The number of stored messages after the cursor."),
            "cursor": int64("The sequence number up to which the member has read."),
            "epoch": epoch(),
            "latest": latest(),
        })),
        "AckReply": object(&json!({
            "timeline": text(),
            "seq": int64("The sequence number of the cursor."),
            "unread": int64("The number of stored messages after the cursor."),
        })),
        "Deleted": object(&json!({ "deleted": boolean("The message existed.") })),
        "StreamEnd": object(&json!({
            "code": int32_with("The close code, as in operation 6."),
            "reason": text(),
            "reconnect": boolean("The client should reconnect."),
            "delay_ms": int32_with("The delay before it reconnects."),
        })),
        "TimelineMessage": object(&json!({
            "seq": int64("The sequence number: 1, 2, 3 and so on without gaps."),
            "operation": int32(),
            "version": int32_with("The packet version, which defines the schema and encoding of the body."),
            "time_ms": int64("When the server accepted the message, in milliseconds since 1970."),
            "sender": int64("The member that sent the message; 0 is the backend."),
            "body?": text(),
            "body_base64?": base64(),
            "deleted?": boolean("The body was deleted."),
            "unreadable?": boolean("The message has no body in a schema that the client reads."),
        })),
    })
}

fn rooms() -> Value {
    json!({
        "RoomMembers": object(&json!({
            "count": int64("The number of sessions in the room, over all comets."),
            "members": array(&reference("RoomMember")),
        })),
        "RoomMember": object(&json!({
            "mid": int64("The member; 0 is an anonymous session."),
            "key": text(),
            "server": text(),
        })),
        "RoomOnline": object(&json!({ "room_id": text(), "count": int32() })),
        "OnlineTotal": object(&json!({
            "conn_count": int64("The number of connections."),
            "ip_count": int64("The number of client addresses, counted per comet."),
        })),
    })
}

fn nodes() -> Value {
    let float = || json!({ "type": "number", "format": "float" });
    json!({
        "Backoff": object(&json!({
            "max_delay?": int32_with("Seconds."),
            "base_delay?": int32_with("Seconds."),
            "factor?": float(),
            "jitter?": float(),
        })),
        "Nodes": object(&json!({
            "domain?": text(),
            "tcp_port?": int32(),
            "ws_port?": int32(),
            "wss_port?": int32(),
            "heartbeat?": int32_with("Seconds."),
            "nodes": array(&text()),
            "backoff": reference("Backoff"),
            "heartbeat_max?": int32(),
        })),
        "Instance": object(&json!({
            "region": text(),
            "zone": text(),
            "env": text(),
            "appid": text(),
            "hostname": text(),
            "addrs": array(&text()),
            "version": text(),
            "latest_timestamp": int64("Nanoseconds since 1970."),
            "metadata": { "type": "object", "additionalProperties": text() },
        })),
    })
}

fn protocol() -> Value {
    json!({
        "Protocol": object(&json!({
            "protover": int32_with("The highest packet version that the server sends."),
            "versions": array(&reference("PacketVersion")),
        })),
        "PacketVersion": object(&json!({
            "version": int32(),
            "schema": int32(),
            "encoding": { "enum": ["identity", "zlib", "brotli", "zstd"] },
        })),
    })
}
