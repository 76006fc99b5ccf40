//! The OpenAPI document, built from the table of routes.
//!
//! Paths and parameters are those of the table; [`schemas`] and [`responses`] are written out. The
//! test `tests/http/openapi.rs` validates real requests and responses of every route against them,
//! so that a member that is added on one side only fails.

mod responses;
mod schemas;

use std::sync::LazyLock;

use axum::body::Bytes;
use serde_json::{Map, Value, json};

use super::table::{Action, BodyMax, Param, ParamKind, Route, Verb};
use schemas::reference;

static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| Bytes::from(build().to_string()));

/// Returns the document as it is served.
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
            "description": "Pushes messages to sessions, members, rooms or every session, and returns the nodes that \
                clients connect to. Parameters are read from the query string only; lists are repeated parameters. \
                Code 0 means that the server accepted the message, not that a client received it.",
            "license": { "name": "MIT", "identifier": "MIT" },
        },
        "paths": paths,
        "components": { "schemas": schemas::all(), "securitySchemes": security_schemes() },
    })
}

fn security_schemes() -> Value {
    let key = "One of logic.http.api_keys.";
    json!({
        "bearer": { "type": "http", "scheme": "bearer", "description": key },
        "apiKey": { "type": "apiKey", "in": "header", "name": "X-API-Key", "description": key },
        "member": {
            "type": "http",
            "scheme": "bearer",
            "description": "The token with which the member connects.",
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
        "responses": responses::of(route),
    });
    if route.is_protected() {
        operation["security"] = json!([{ "bearer": [] }, { "apiKey": [] }, {}]);
    }
    if route.is_for_members() {
        operation["security"] = json!([{ "member": [] }, { "apiKey": [] }, {}]);
    }
    if route.has_body() {
        operation["requestBody"] = request_body(route);
    }
    operation
}

fn request_body(route: &Route) -> Value {
    let (description, required, content) = match route.action {
        Action::EndSessions => (
            "The sessions to end, and the reason.",
            true,
            json!({ "application/json": { "schema": reference("EndSessions") } }),
        ),
        Action::Ack | Action::DeleteMessage => (
            "A message of a timeline.",
            true,
            json!({ "application/json": { "schema": reference("MessageRef") } }),
        ),
        Action::PushBatch => (
            "The messages: a list, or one message per line.",
            true,
            json!({
                "application/json": { "schema": reference("Batch") },
                "application/x-ndjson": { "schema": reference("Message") },
            }),
        ),
        _ => (
            "The body of the packet: any bytes, any content type; may be empty.",
            false,
            json!({ "application/octet-stream": {} }),
        ),
    };
    let limit = match route.body {
        BodyMax::Bytes(bytes) => format!("{bytes} bytes"),
        BodyMax::Setting | BodyMax::None => "the setting logic.http.body_bytes_max (4 MiB)".to_owned(),
    };
    let description = format!("{description} At most {limit}.");
    json!({ "description": description, "required": required, "content": content })
}

/// `/goim/push/keys` is `pushKeys`, `/v1/push` is `push`.
fn operation_id(path: &str) -> String {
    let path = path.trim_start_matches("/goim").trim_start_matches("/v1").trim_end_matches(".json");
    let mut id = String::new();
    for part in path.split('/').filter(|part| !part.is_empty()) {
        let mut letters = part.chars();
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
        Action::RoomMembers | Action::OnlineTop | Action::OnlineRoom | Action::OnlineTotal => "online",
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
        "schema": parameter_schema(param),
        // Lists are repeated parameters: keys=a&keys=b.
        "style": "form",
        "explode": true,
    })
}

/// goim v2 treats a required number as one that is not zero, and a required text as one that is not
/// empty. The only required 64-bit numbers are limits, which are positive.
fn parameter_schema(param: &Param) -> Value {
    let mut schema = kind_schema(param.kind);
    match (param.required, param.kind) {
        (true, ParamKind::I32) => schema["not"] = json!({ "const": 0 }),
        (true, ParamKind::I64) => schema["minimum"] = json!(1),
        (true, ParamKind::Text) => schema["minLength"] = json!(1),
        _ => {}
    }
    schema
}

fn kind_schema(kind: ParamKind) -> Value {
    match kind {
        ParamKind::I32 => json!({ "type": "integer", "format": "int32" }),
        ParamKind::I64 => json!({ "type": "integer", "format": "int64" }),
        ParamKind::Text => json!({ "type": "string" }),
        ParamKind::TextList => json!({ "type": "array", "items": kind_schema(ParamKind::Text) }),
        ParamKind::I64List => json!({ "type": "array", "items": kind_schema(ParamKind::I64) }),
    }
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
    fn every_reference_leads_to_a_schema_and_every_schema_is_referenced() {
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
        for reference in &references {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
        for name in document["components"]["schemas"].as_object().unwrap().keys() {
            let reference = format!("#/components/schemas/{name}");
            assert!(references.contains(&&*reference), "{name} is not referenced");
        }
    }
}
