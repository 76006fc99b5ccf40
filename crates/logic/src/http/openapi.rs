//! The description of the API for machines, made of the table of routes.

use std::sync::LazyLock;

use axum::body::Bytes;
use serde_json::{Map, Value, json};

use super::messages::MESSAGES_MAX;
use super::table::{Action, BodyMax, Kind, Param, Route, Verb};

static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| Bytes::from(build().to_string()));

/// The document, as it is served.
pub(super) fn document() -> Bytes {
    DOCUMENT.clone()
}

fn build() -> Value {
    let mut paths = Map::new();
    for route in Route::ALL {
        let method = if route.verb == Verb::Get { "get" } else { "post" };
        let mut methods = Map::new();
        methods.insert(method.to_owned(), operation(route));
        paths.insert(route.path.to_owned(), Value::Object(methods));
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "goim",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Pushes messages to sessions, members, rooms or everybody, and tells clients where to \
                connect. Parameters are read from the query string only, lists are repeated parameters. An answer \
                is right when its `code` is 0; success means that the message is accepted, not that it is delivered.",
            "license": { "name": "MIT", "identifier": "MIT" },
        },
        "paths": paths,
        "components": {
            "schemas": schemas(),
            "securitySchemes": {
                "bearer": { "type": "http", "scheme": "bearer", "description": "One of logic.http.api_keys." },
                "member": { "type": "http", "scheme": "bearer", "description": "The token with which the member connects." },
                "apiKey": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "X-API-Key",
                    "description": "One of logic.http.api_keys.",
                },
            },
        },
    })
}

fn operation(route: &Route) -> Value {
    let mut operation = json!({
        "operationId": operation_id(route.path),
        "summary": route.summary,
        "description": route.description,
        "tags": [tag(route)],
        "parameters": route.params.iter().map(parameter).collect::<Vec<_>>(),
        "responses": responses(route),
    });
    if route.is_protected() {
        operation["security"] = json!([{ "bearer": [] }, { "apiKey": [] }, {}]);
    }
    if route.is_for_members() {
        operation["security"] = json!([{ "member": [] }, { "apiKey": [] }, {}]);
    }
    if route.has_body() {
        let mut body = request_body(route.action);
        let most = match route.body {
            BodyMax::Bytes(bytes) => format!("{bytes} bytes"),
            BodyMax::Setting | BodyMax::None => "the setting logic.http.body_bytes_max (4 MiB)".to_owned(),
        };
        let description = body["description"].as_str().unwrap_or_default();
        body["description"] = format!("{description} At most {most}.").into();
        operation["requestBody"] = body;
    }
    operation
}

fn request_body(action: Action) -> Value {
    if action == Action::EndSessions {
        return json!({
            "description": "Whose sessions, and why.",
            "required": true,
            "content": { "application/json": { "schema": { "$ref": "#/components/schemas/EndSessions" } } },
        });
    }
    if matches!(action, Action::Ack | Action::DeleteMessage) {
        return json!({
            "description": "A place in a timeline.",
            "required": true,
            "content": { "application/json": { "schema": { "$ref": "#/components/schemas/Place" } } },
        });
    }
    if action != Action::PushBatch {
        return json!({
            "description": "The body of the packet, any bytes, of any content type; may be empty.",
            "required": false,
            "content": { "application/octet-stream": {} },
        });
    }
    let message = json!({ "$ref": "#/components/schemas/Message" });
    json!({
        "description": "The messages: in a list, or one a line.",
        "required": true,
        "content": {
            "application/json": { "schema": {
                "type": "object",
                "properties": {
                    "messages": { "type": "array", "items": message, "maxItems": MESSAGES_MAX },
                },
                "required": ["messages"],
                "additionalProperties": false,
            } },
            "application/x-ndjson": { "schema": message },
        },
    })
}

/// `/goim/push/keys` is `pushKeys`, `/v1/push` is `push`.
fn operation_id(path: &str) -> String {
    let path = path.trim_start_matches("/goim").trim_start_matches("/v1").trim_end_matches(".json");
    let mut id = String::new();
    for word in path.split('/').filter(|word| !word.is_empty()) {
        let mut letters = word.chars();
        match letters.next() {
            Some(first) if !id.is_empty() => id.extend(first.to_uppercase()),
            first => id.extend(first),
        }
        id.extend(letters);
    }
    id
}

fn tag(route: &Route) -> &'static str {
    match route.action {
        Action::PushKeys | Action::PushMids | Action::PushRoom | Action::PushAll | Action::PushBatch => {
            "push"
        }
        Action::EndSessions => "sessions",
        Action::Sync | Action::History | Action::Unread | Action::Ack | Action::DeleteMessage => "timelines",
        Action::RoomMembers => "online",
        Action::OnlineTop | Action::OnlineRoom | Action::OnlineTotal => "online",
        Action::NodesWeighted | Action::NodesInstances => "nodes",
        Action::Protocol | Action::OpenApi => "description",
    }
}

fn parameter(param: &Param) -> Value {
    json!({
        "name": param.name,
        "in": "query",
        "required": param.required,
        "description": param.description,
        "schema": schema_of_param(param),
        // Lists are repeated: keys=a&keys=b.
        "style": "form",
        "explode": true,
    })
}

/// As goim means it, a required number is one that is not zero, and a required text one that is not empty. The only
/// required 64-bit number is how many rooms are wanted.
fn schema_of_param(param: &Param) -> Value {
    let mut schema = schema_of(param.kind);
    match (param.required, param.kind) {
        (true, Kind::I32) => schema["not"] = json!({ "const": 0 }),
        (true, Kind::I64) => schema["minimum"] = json!(1),
        (true, Kind::Text) => schema["minLength"] = json!(1),
        _ => {}
    }
    schema
}

fn schema_of(kind: Kind) -> Value {
    match kind {
        Kind::I32 => json!({ "type": "integer", "format": "int32" }),
        Kind::I64 => json!({ "type": "integer", "format": "int64" }),
        Kind::Text => json!({ "type": "string" }),
        Kind::TextList => json!({ "type": "array", "items": schema_of(Kind::Text) }),
        Kind::I64List => json!({ "type": "array", "items": schema_of(Kind::I64) }),
    }
}

fn responses(route: &Route) -> Value {
    let mut responses = Map::new();
    let mut add = |status: &str, description: &str, content_type: &str, schema: Value| {
        let content = json!({ content_type: { "schema": schema } });
        responses.insert(status.to_owned(), json!({ "description": description, "content": content }));
    };
    let envelope = || json!({ "$ref": "#/components/schemas/Envelope" });
    let accepted = || json!({ "$ref": "#/components/schemas/Accepted" });
    let json_type = "application/json";
    let success = match data_schema(route.action) {
        _ if route.action == Action::OpenApi => json!({ "type": "object" }),
        _ if route.action == Action::PushBatch => accepted(),
        None => envelope(),
        Some(data) => json!({
            "allOf": [envelope(), { "type": "object", "properties": { "data": data }, "required": ["data"] }],
        }),
    };
    add(
        "200",
        match route.action {
            Action::PushKeys | Action::PushMids | Action::PushRoom | Action::PushAll => {
                "Done when the code is 0. Otherwise -400 or -500 and, where goim has one, a text: it is not in the log; or -504: \
                 it may or may not be in the log."
            }
            _ => "Done when the code is 0. Otherwise -400 or -500 and, where goim has one, a text.",
        },
        json_type,
        success,
    );
    if !route.params.is_empty() {
        add(
            "400",
            "A parameter is missing or wrong; the text names it. The body is JSON.",
            "text/plain",
            envelope(),
        );
    }
    if route.has_body() {
        add("401", "API keys are configured and none of them was presented.", json_type, envelope());
        add(
            "403",
            "No API key is configured and the request is not from this machine.",
            json_type,
            envelope(),
        );
        add("408", "The body did not arrive in time.", json_type, envelope());
        add(
            "413",
            "The body is larger than the server takes; the text names the limit.",
            json_type,
            envelope(),
        );
        let gone = match route.action {
            Action::PushKeys | Action::PushMids | Action::PushRoom | Action::PushAll => {
                "What is to be stored cannot be: the store is gone. It is not kept."
            }
            Action::EndSessions => "The push log or the directory is gone. No session is ended.",
            _ => "Not done in time. It may be done in part.",
        };
        add("503", gone, json_type, envelope());
    }
    if route.action == Action::EndSessions {
        add(
            "504",
            "The order may or may not be in the push log. It may be given again.",
            json_type,
            envelope(),
        );
    }
    add("429", "Too many requests, or the push log is full. See Retry-After.", json_type, envelope());
    if route.action == Action::Sync {
        add(
            "401",
            "No token, or one that is not good, or that has ended while the request waited.",
            json_type,
            envelope(),
        );
        add(
            "403",
            "The token is not for this timeline, or the backend has ended the session.",
            json_type,
            envelope(),
        );
        add(
            "429",
            "Too many requests, or as many of the member or from the address wait as may. See Retry-After.",
            json_type,
            envelope(),
        );
        add(
            "503",
            "As many requests wait as may, or the store does not answer. See Retry-After.",
            json_type,
            envelope(),
        );
    }
    if route.action == Action::PushBatch {
        add("200", "All messages are accepted.", json_type, accepted());
        add(
            "400",
            "A message is wrong, none is accepted; the text names it, its field, and what would be right.",
            json_type,
            envelope(),
        );
        add("415", "The body is neither JSON nor lines of JSON.", json_type, envelope());
        add(
            "429",
            "Too many requests, or the push log is full: then the messages in front are accepted, and \
             `accepted` says how many. See Retry-After.",
            json_type,
            accepted(),
        );
        add(
            "503",
            "The push log, the store or the directory is gone. The messages in front are accepted, as many as \
             `accepted` says; the others are not in the log.",
            json_type,
            accepted(),
        );
        add(
            "504",
            "The messages may or may not be in the log. `accepted`, when it is there, says how many in front surely \
             are.",
            json_type,
            accepted(),
        );
    }
    Value::Object(responses)
}

/// What the envelope holds.
fn data_schema(action: Action) -> Option<Value> {
    let reference = |name: &str| json!({ "$ref": format!("#/components/schemas/{name}") });
    Some(match action {
        Action::PushKeys
        | Action::PushMids
        | Action::PushRoom
        | Action::PushAll
        | Action::PushBatch
        | Action::EndSessions
        | Action::OpenApi => return None,
        Action::Sync => reference("SyncReply"),
        Action::History => reference("History"),
        Action::Unread => json!({ "type": "array", "items": reference("Unread") }),
        Action::Ack => reference("AckReply"),
        Action::DeleteMessage => {
            json!({ "type": "object", "properties": { "deleted": { "type": "boolean" } }, "required": ["deleted"] })
        }
        Action::RoomMembers => reference("RoomMembers"),
        Action::OnlineTop => json!({ "type": "array", "items": reference("RoomOnline") }),
        Action::OnlineRoom => json!({
            "type": "object",
            "description": "Sessions by room.",
            "additionalProperties": { "type": "integer", "format": "int32" },
        }),
        Action::OnlineTotal => reference("OnlineTotal"),
        Action::Protocol => reference("Protocol"),
        Action::NodesWeighted => reference("Nodes"),
        Action::NodesInstances => json!({ "type": ["array", "null"], "items": reference("Instance") }),
    })
}

/// One way to name receivers. Those who are everybody may be named with a speed.
fn receivers(field: &str, schema: Value) -> Value {
    let mut properties = Map::new();
    properties.insert(field.to_owned(), schema);
    if field == "all" {
        let description = "Sessions per second over all comets. As fast as it goes when it is not given.";
        let speed = json!({ "type": "integer", "minimum": 1, "description": description });
        properties.insert("speed".to_owned(), speed);
    }
    json!({ "type": "object", "properties": properties, "required": [field], "additionalProperties": false })
}

/// What there is of timelines, added to the other schemas.
fn timeline_schemas() -> Value {
    let text = || json!({ "type": "string" });
    let number =
        |description: &str| json!({ "type": "integer", "format": "int64", "description": description });
    let boolean = |description: &str| json!({ "type": "boolean", "description": description });
    let messages = || json!({ "type": "array", "items": { "$ref": "#/components/schemas/TimelineMessage" } });
    let object = |properties: Value| {
        let names: Vec<&String> =
            properties.as_object().map(|object| object.keys().collect()).unwrap_or_default();
        json!({ "type": "object", "required": names, "properties": properties })
    };
    let mut schemas = json!({
        "Place": object(json!({ "timeline": text(), "seq": number("The message.") })),
        "SyncReply": object(json!({
            "timeline": text(),
            "epoch": number("Of the timeline; 0: nothing was ever appended."),
            "latest": number("Where the timeline ends."),
            "after": number("What the messages follow."),
            "more": boolean("There is more behind them."),
            "gap": boolean("There is a hole between what the client has and these messages."),
            "messages": messages(),
        })),
        "History": object(json!({
            "timeline": text(),
            "epoch": number("Of the timeline."),
            "latest": number("Where it ends."),
            "first": number("The oldest message that is kept."),
            "more": boolean("There are older ones."),
            "messages": messages(),
        })),
        "Unread": object(json!({
            "timeline": text(),
            "unread": number("Messages behind the cursor that are kept."),
            "cursor": number("Up to where the member has read."),
            "epoch": number("Of the timeline."),
            "latest": number("Where it ends."),
        })),
        "AckReply": object(json!({
            "timeline": text(),
            "seq": number("Where the cursor is."),
            "unread": number("Messages behind it."),
        })),
    });
    schemas["TimelineMessage"] = json!({
        "type": "object",
        "properties": {
            "seq": number("Its place: 1, 2, 3 and so on without holes."),
            "operation": { "type": "integer", "format": "int32" },
            "version": { "type": "integer", "format": "int32", "description": "How the body is to be read." },
            "time_ms": number("When it was accepted, since 1970."),
            "sender": number("The member that has sent it; 0: the backend."),
            "body": text(),
            "body_base64": { "type": "string", "contentEncoding": "base64" },
            "deleted": boolean("Its body is gone."),
            "unreadable": boolean("There is no body in a schema that the client reads."),
        },
        "required": ["seq", "operation", "version", "time_ms", "sender"],
    });
    schemas["Placed"] = object(json!({
        "timeline": text(),
        "epoch": number("Of the timeline."),
        "seq": number("The message's place."),
        "duplicate": boolean("It was there before."),
    }));
    schemas
}

fn schemas() -> Value {
    let mut all = other_schemas();
    if let (Value::Object(all), Value::Object(more)) = (&mut all, timeline_schemas()) {
        all.extend(more);
    }
    all
}

fn other_schemas() -> Value {
    let text = || json!({ "type": "string" });
    let texts = || json!({ "type": "array", "items": { "type": "string" } });
    let integer = || json!({ "type": "integer", "format": "int32" });
    let long = || json!({ "type": "integer", "format": "int64" });
    let float = || json!({ "type": "number", "format": "float" });
    json!({
        "Envelope": {
            "type": "object",
            "properties": { "code": integer(), "message": text() },
            "required": ["code", "message"],
        },
        "Accepted": {
            "type": "object",
            "properties": {
                "code": integer(),
                "message": text(),
                "accepted": { "type": "integer", "description": "Messages, from the front, that are accepted." },
                "positions": {
                    "type": "array",
                    "description": "Of stored messages: for each where it is now, by receiver.",
                    "items": { "type": "array", "items": { "$ref": "#/components/schemas/Placed" } },
                },
            },
            "required": ["code", "message"],
        },
        "Message": {
            "type": "object",
            "properties": {
                "to": {
                    "oneOf": [
                        receivers("keys", json!({ "type": "array", "items": text(), "minItems": 1 })),
                        receivers("mids", json!({ "type": "array", "items": long(), "minItems": 1 })),
                        receivers("room", json!({ "type": "string", "description": "`type://id`." })),
                        receivers("all", json!({ "const": true })),
                    ],
                },
                "operation": { "type": "integer", "format": "int32", "not": { "const": 0 } },
                "body": text(),
                "body_base64": { "type": "string", "contentEncoding": "base64" },
                "bodies": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": 16,
                    "items": { "$ref": "#/components/schemas/BodyInSchema" },
                    "description": "The message in several schemas; each session gets the highest that it reads, and \
                                    one that reads none of them nothing.",
                },
                "delivery": { "enum": ["transient", "stored"], "description": "`stored`: kept in the timelines of `mids` or `room` first. \
                    All messages of a request are, or none." },
                "idempotency_key": { "type": "string", "minLength": 1, "maxLength": 128 },
            },
            "required": ["to", "operation"],
            "oneOf": [{ "required": ["body"] }, { "required": ["body_base64"] }, { "required": ["bodies"] }],
            "additionalProperties": false,
        },
        "BodyInSchema": {
            "type": "object",
            "properties": {
                "schema": { "type": "integer", "minimum": 1, "maximum": 65535 },
                "body": text(),
                "body_base64": { "type": "string", "contentEncoding": "base64" },
            },
            "required": ["schema"],
            "oneOf": [{ "required": ["body"] }, { "required": ["body_base64"] }],
            "additionalProperties": false,
        },
        "Protocol": {
            "type": "object",
            "properties": {
                "protover": { "type": "integer", "description": "The highest version that the server sends." },
                "versions": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {
                            "version": integer(), "schema": integer(),
                            "encoding": { "enum": ["identity", "zlib", "brotli", "zstd"] },
                        },
                        "required": ["version", "schema", "encoding"],
                    },
                },
            },
            "required": ["protover", "versions"],
        },
        "EndSessions": {
            "type": "object",
            "properties": {
                "of": {
                    "oneOf": [
                        receivers("keys", json!({ "type": "array", "items": text(), "minItems": 1 })),
                        receivers("mids", json!({ "type": "array", "items": long(), "minItems": 1 })),
                        receivers("room", json!({ "type": "string", "description": "`type://id`." })),
                    ],
                },
                "reason": { "enum": ["kicked", "revoked"] },
            },
            "required": ["of"],
            "additionalProperties": false,
        },
        "RoomMembers": {
            "type": "object",
            "properties": {
                "count": long(),
                "members": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": { "mid": long(), "key": text(), "server": text() },
                        "required": ["mid", "key", "server"],
                    },
                },
            },
            "required": ["count", "members"],
        },
        "RoomOnline": {
            "type": "object",
            "properties": { "room_id": text(), "count": integer() },
            "required": ["room_id", "count"],
        },
        "OnlineTotal": {
            "type": "object",
            "properties": { "conn_count": long(), "ip_count": long() },
            "required": ["conn_count", "ip_count"],
        },
        "Backoff": {
            "type": "object",
            "description": "Seconds, and factors without a unit.",
            "properties": {
                "max_delay": integer(), "base_delay": integer(), "factor": float(), "jitter": float(),
            },
        },
        "Nodes": {
            "type": "object",
            "properties": {
                "domain": text(),
                "tcp_port": integer(),
                "ws_port": integer(),
                "wss_port": integer(),
                "heartbeat": { "type": "integer", "format": "int32", "description": "Seconds." },
                "nodes": texts(),
                "backoff": { "$ref": "#/components/schemas/Backoff" },
                "heartbeat_max": integer(),
            },
            "required": ["nodes", "backoff"],
        },
        "Instance": {
            "type": "object",
            "properties": {
                "region": text(),
                "zone": text(),
                "env": text(),
                "appid": text(),
                "hostname": text(),
                "addrs": texts(),
                "version": text(),
                "latest_timestamp": long(),
                "metadata": { "type": "object", "additionalProperties": text() },
            },
            "required": ["hostname", "addrs", "metadata"],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_has_every_route_with_every_parameter() {
        let document: Value = serde_json::from_slice(&document()).unwrap();
        assert_eq!(document["openapi"], "3.1.0");
        assert_eq!(document["paths"].as_object().unwrap().len(), Route::ALL.len());
        let mut ids = std::collections::BTreeSet::new();
        for route in Route::ALL {
            let method = if route.verb == Verb::Get { "get" } else { "post" };
            let operation = &document["paths"][route.path][method];
            assert!(ids.insert(operation["operationId"].as_str().unwrap().to_owned()), "{}", route.path);
            let parameters = operation["parameters"].as_array().unwrap();
            assert_eq!(parameters.len(), route.params.len(), "{}", route.path);
            for (param, described) in route.params.iter().zip(parameters) {
                assert_eq!(described["name"], param.name);
                assert_eq!(described["required"], param.required);
                assert!(!described["description"].as_str().unwrap().is_empty());
            }
            let is_guarded = route.is_protected() || route.is_for_members();
            assert_eq!(operation["security"].is_array(), is_guarded, "{}", route.path);
            assert_eq!(operation["requestBody"].is_object(), route.has_body(), "{}", route.path);
        }
        assert!(ids.contains("pushKeys") && ids.contains("openapi"), "{ids:?}");
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn walk<'v>(value: &'v Value, found: &mut Vec<&'v str>) {
            match value {
                Value::Object(members) => {
                    found.extend(members.get("$ref").and_then(Value::as_str));
                    members.values().for_each(|member| walk(member, found));
                }
                Value::Array(elements) => elements.iter().for_each(|element| walk(element, found)),
                _ => {}
            }
        }
        let document = build();
        let mut references = Vec::new();
        walk(&document, &mut references);
        assert!(references.len() > 10);
        for reference in references {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
    }
}
