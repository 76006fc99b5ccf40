//! Real requests and responses of every route, validated against the OpenAPI document.
//!
//! A member that is added to a type but not to its schema fails, and so does one that is added to
//! the schema only: every documented property must have been in some request or response.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::sync::Arc;

use bytes::Bytes;
use goim_logic::{Config, IdentityMethod};
use goim_ports::{
    AcceptedAt, Append, AppendError, AppendResult, Bodies, Broadcast, Call, CometError, CometPool, CometPort,
    CursorId, Epoch, Head, KeyPush, Mid, NewMessage, Operation, Position, Range, ReadLimit, RoomId,
    RoomMember, RoomMembers, RoomPush, Schema, SchemaBody, ServerId, StoredMessage, TimelineError,
    TimelineId, TimelineSeq, TimelineStore,
};
use serde_json::{Value, json};

use crate::client::{Response, request};
use crate::schema::Document;
use crate::world::{Fault, Server, comet};

/// A server and its document.
struct Api {
    server: Server,
    document: Document,
}

impl Api {
    async fn start(change: impl FnOnce(&mut Config)) -> Self {
        let server = Server::with_dependencies(change, |dependencies| {
            dependencies.timelines = Some(Arc::new(FixedTimelines));
            dependencies.comets = Arc::new(OneComet);
        })
        .await;
        let document = serde_json::from_str(&server.get("/openapi.json").await.body).unwrap();
        Self { server, document: Document::new(document) }
    }

    /// The pointer of an operation, with `/` in its path escaped.
    fn operation(method: &str, target: &str) -> String {
        let path = target.split('?').next().unwrap();
        format!("/paths/{}/{}", path.replace('/', "~1"), method.to_lowercase())
    }

    /// Sends a request and validates the response against the documented one of its status and
    /// content type.
    async fn exchange(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &str) -> Response {
        let response = self.server.connect().await.request(method, target, headers, body.as_bytes()).await;
        let content_type = response.header("content-type").unwrap().split(';').next().unwrap();
        let pointer = format!(
            "{}/responses/{}/content/{}/schema",
            Self::operation(method, target),
            response.status,
            content_type.replace('/', "~1")
        );
        assert!(self.document.at(&pointer).is_some(), "not documented: {pointer}\n{}", response.body);
        let value = serde_json::from_str(&response.body).unwrap();
        self.document.validate(&pointer, &value).unwrap_or_else(|error| panic!("{method} {target}: {error}"));
        response
    }

    async fn get(&self, target: &str) -> Response {
        self.exchange("GET", target, &[], "").await
    }

    /// The schema of the JSON bodies of a POST.
    fn body_schema(target: &str, content_type: &str) -> String {
        let content_type = content_type.replace('/', "~1");
        format!("{}/requestBody/content/{content_type}/schema", Self::operation("POST", target))
    }

    /// Sends a valid JSON body, then the same body with one member more and without each required
    /// member. Server and schema must agree on all of them.
    async fn post(&self, target: &str, body: &Value) -> Response {
        let schema = Self::body_schema(target, "application/json");
        let headers = [("content-type", "application/json")];
        self.document.validate(&schema, body).unwrap_or_else(|error| panic!("{target} {body}: {error}"));
        let accepted = self.exchange("POST", target, &headers, &body.to_string()).await;
        assert_eq!(accepted.status, 200, "{target} {body}: {}", accepted.body);
        self.refuses_other_members(target, body, "", &schema).await;
        for name in body.as_object().unwrap().keys() {
            let mut less = body.clone();
            less.as_object_mut().unwrap().remove(name);
            let response = self.exchange("POST", target, &headers, &less.to_string()).await;
            let is_valid = self.document.validate(&schema, &less).is_ok();
            assert_eq!(response.status == 200, is_valid, "{target} {less}: {}", response.body);
        }
        accepted
    }

    /// Adds a member to the object at `pointer` in a valid body. The server must refuse it, and the
    /// members that its error names must be those of the schema.
    async fn refuses_other_members(&self, target: &str, body: &Value, pointer: &str, schema: &str) {
        let mut more = body.clone();
        more.pointer_mut(pointer).unwrap()["other"] = json!(1);
        let headers = [("content-type", "application/json")];
        let refused = self.exchange("POST", target, &headers, &more.to_string()).await;
        assert_eq!(refused.status, 400, "{target} {more}: {}", refused.body);
        let envelope: Value = serde_json::from_str(&refused.body).unwrap();
        let mut named: BTreeSet<String> =
            envelope["message"].as_str().unwrap().split('`').skip(1).step_by(2).map(str::to_owned).collect();
        named.remove("other");
        assert_eq!(named, self.document.members(schema), "{target} {pointer}: {}", refused.body);
    }
}

/// One message of a batch, alone and as a line. Both formats must agree with their schema.
async fn push(api: &Api, message: Value) {
    api.post("/v1/push", &json!({ "messages": [message] })).await;
    let schema = Api::body_schema("/v1/push", "application/x-ndjson");
    let headers = [("content-type", "application/x-ndjson")];
    api.document.validate(&schema, &message).unwrap();
    assert_eq!(api.exchange("POST", "/v1/push", &headers, &message.to_string()).await.status, 200);
    for name in ["to", "operation"] {
        let mut wrong = message.clone();
        wrong[name] = Value::Null;
        assert!(api.document.validate(&schema, &wrong).is_err(), "{wrong}");
        let refused = api.exchange("POST", "/v1/push", &headers, &wrong.to_string()).await;
        assert_eq!(refused.status, 400, "{wrong}");
    }
    let body = json!({ "messages": [message] });
    for (pointer, schema) in [
        ("/messages/0", "/components/schemas/Message"),
        ("/messages/0/to", "/components/schemas/Message/properties/to"),
        ("/messages/0/bodies/0", "/components/schemas/SchemaBody"),
    ] {
        if body.pointer(pointer).is_some() {
            api.refuses_other_members("/v1/push", &body, pointer, schema).await;
        }
    }
}

#[tokio::test]
async fn every_request_and_response_has_its_schema() {
    let mut api = Api::start(|_| ()).await;
    api.server.world.set_rooms(&[("live://1", 2)]);
    api.server.world.set_comets(vec![comet("h1", 3)]);
    pushes(&api).await;
    timelines(&api).await;
    for target in [
        "/v1/rooms/members?type=live&room=1&limit=10",
        "/goim/online/top?type=live&limit=3",
        "/goim/online/room?type=live&rooms=1&rooms=2",
        "/goim/online/total",
        "/goim/nodes/weighted?platform=web",
        "/goim/nodes/instances",
        "/v1/protocol",
        "/openapi.json",
    ] {
        assert_eq!(api.get(target).await.status, 200, "{target}");
    }
    api.server.world.set_comets(Vec::new());
    api.get("/goim/nodes/instances").await;
    stream(&mut api).await;
    assert_eq!(api.document.unseen("/components/schemas"), [""; 0], "in no request or response");
    assert_eq!(api.document.unseen("/paths"), [""; 0], "in no request or response");
}

async fn pushes(api: &Api) {
    for target in [
        "/goim/push/keys?operation=1000&keys=k",
        "/goim/push/mids?operation=1000&mids=5",
        "/goim/push/mids?operation=1000&mids=5&delivery=stored&idempotency_key=a",
        "/goim/push/room?operation=1000&type=live&room=1",
        "/goim/push/room?operation=1000&type=live&room=1&delivery=stored",
        "/goim/push/all?operation=1000&speed=10",
    ] {
        let response = api.exchange("POST", target, &[], "x").await;
        assert!(response.body.starts_with(r#"{"code":0,"#), "{target}: {}", response.body);
    }
    for message in [
        json!({ "to": { "keys": ["k"] }, "operation": 1000, "body": "x" }),
        json!({ "to": { "mids": [5] }, "operation": 1000, "body_base64": "AAE=" }),
        json!({ "to": { "all": true, "speed": 5 }, "operation": 1000, "body": "x", "delivery": "transient" }),
        json!({ "to": { "room": "live://1" }, "operation": 1000, "delivery": "stored", "idempotency_key": "a",
                "bodies": [{ "schema": 1, "body": "x" }, { "schema": 2, "body_base64": "AAE=" }] }),
    ] {
        push(api, message).await;
    }
    for of in [json!({ "keys": ["k"] }), json!({ "mids": [5] }), json!({ "room": "live://1" })] {
        api.post("/v1/sessions/end", &json!({ "of": of, "reason": "revoked" })).await;
    }
}

async fn timelines(api: &Api) {
    let messages = api.get("/v1/sync?timeline=mid://5&mid=5&protover=1").await.body;
    for member in [r#""body":"#, r#""body_base64":"#, r#""deleted":"#, r#""unreadable":"#] {
        assert!(messages.contains(member), "{member} is not in {messages}");
    }
    for target in [
        "/v1/sync?timeline=live://1&epoch=9&seq=9&limit=1&wait=1ms",
        "/v1/history?timeline=mid://5&mid=5&limit=2",
        "/v1/unread?timelines=mid://5&timelines=live://1&mid=5",
    ] {
        assert_eq!(api.get(target).await.status, 200, "{target}");
    }
    api.post("/v1/ack?mid=5", &json!({ "timeline": "mid://5", "seq": 2 })).await;
    api.post("/v1/messages/delete", &json!({ "timeline": "mid://5", "seq": 2 })).await;
}

/// A stream of events, until the server stops.
async fn stream(api: &mut Api) {
    let mut connection = api.server.connect().await;
    let target = "/v1/sync?timeline=mid://5&mid=5";
    let headers = [("accept", "text/event-stream")];
    connection.send(&request("GET", target, &headers, b"")).await;
    let head = connection.head().await.unwrap().to_lowercase();
    assert!(head.contains("content-type: text/event-stream"), "{head}");
    let schema = "/paths/~1v1~1sync/get/responses/200/content/text~1event-stream/x-events";
    // The store has the same messages after every position, so that the stream never waits.
    loop {
        let chunk = connection.chunk().await;
        let field = |name: &str| chunk.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        let (event, data) = (field("event: "), serde_json::from_str(field("data: ")).unwrap());
        api.document.validate(&format!("{schema}/{event}"), &data).unwrap();
        if event == "end" {
            return;
        }
        api.server.stop();
    }
}

#[tokio::test]
async fn every_error_is_documented() {
    let stored = "/goim/push/mids?operation=1000&mids=5&delivery=stored";
    let batch = r#"{"messages":[{"to":{"room":"live://1"},"operation":1000,"body":"x"}]}"#;
    let json = [("content-type", "application/json")];
    let statuses = async |api: &Api, requests: &[(&str, &str, u16)]| {
        for (target, body, status) in requests {
            let method = if body.is_empty() { "GET" } else { "POST" };
            let response = api.exchange(method, target, &json, body).await;
            assert_eq!(response.status, *status, "{method} {target}: {}", response.body);
        }
    };
    let api = Api::start(|config| config.http.body_bytes_max = 200).await;
    let large = "x".repeat(201);
    statuses(
        &api,
        &[
            ("/goim/push/room", "x", 400),
            ("/goim/online/top?type=live&limit=x", "", 400),
            ("/goim/push/all?operation=1", &large, 413),
            ("/v1/push", "{", 400),
            ("/v1/ack?mid=5", "{}", 400),
            ("/v1/messages/delete", "[]", 400),
            ("/v1/sync?timeline=nothing&mid=5", "", 400),
            ("/v1/sync?timeline=mid://6&mid=5", "", 403),
            ("/v1/unread?timelines=mid://6", "", 400),
        ],
    )
    .await;
    let wrong_type = api.exchange("POST", "/v1/push", &[("content-type", "text/csv")], "x").await;
    assert_eq!(wrong_type.status, 415);
    api.server.world.state().append_error = Some(AppendError::Full);
    statuses(&api, &[("/goim/push/all?operation=1", "x", 429), ("/v1/push", batch, 429)]).await;
    api.server.world.state().append_error = Some(AppendError::Unavailable("gone".to_owned()));
    statuses(&api, &[("/goim/push/all?operation=1", "x", 200), ("/v1/push", batch, 503)]).await;
    api.server.world.state().append_error = Some(AppendError::Unknown("late".to_owned()));
    statuses(&api, &[("/goim/push/all?operation=1", "x", 200), ("/v1/push", batch, 504)]).await;
    api.server.world.state().append_error = None;
    api.server.world.state().directory_fault = Fault::Error("gone".to_owned());
    statuses(&api, &[("/v1/sessions/end", r#"{"of":{"mids":[5]}}"#, 503)]).await;

    let guarded = Api::start(|config| {
        config.http.api_keys = vec!["key".to_owned().into()];
        config.identity.method = IdentityMethod::Jwt;
    })
    .await;
    statuses(
        &guarded,
        &[
            ("/goim/push/all?operation=1", "x", 401),
            ("/v1/push", batch, 401),
            ("/v1/rooms/members?type=live&room=1&limit=1", "", 401),
            ("/v1/sync?timeline=mid://5", "", 401),
            ("/v1/ack", "{}", 401),
        ],
    )
    .await;

    let limited = Api::start(|config| config.http.requests_per_second_max = NonZeroU32::new(1)).await;
    statuses(&limited, &[("/goim/online/total", "", 429), ("/v1/history?timeline=mid://5", "", 429)]).await;

    let server = Server::start().await;
    let document = serde_json::from_str(&server.get("/openapi.json").await.body).unwrap();
    let without_store = Api { server, document: Document::new(document) };
    statuses(
        &without_store,
        &[
            (stored, "x", 501),
            ("/v1/sync?timeline=mid://5&mid=5", "", 501),
            ("/v1/messages/delete", r#"{"timeline":"mid://5","seq":1}"#, 501),
        ],
    )
    .await;
}

/// Every timeline has the same four messages: with text, with bytes, deleted, and in a schema that
/// few clients read.
struct FixedTimelines;

const HEAD: Head = Head { epoch: Epoch(1), latest: TimelineSeq(4), first: TimelineSeq(1) };

fn message(body: &'static [u8]) -> NewMessage {
    NewMessage {
        sender: Mid(7),
        operation: Operation(1000),
        bodies: Bodies::plain(Bytes::from_static(body)),
        accepted_at: AcceptedAt(1),
    }
}

fn range() -> Range {
    let other = SchemaBody { schema: Schema(9), body: Bytes::from_static(b"x") };
    let unreadable = NewMessage { bodies: Bodies::new(None, vec![other]).unwrap(), ..message(b"") };
    let messages = [message(b"text"), message(b"\xff"), message(b""), unreadable];
    let stored = messages.into_iter().zip(1..).map(|(message, seq)| StoredMessage {
        seq: TimelineSeq(seq),
        message,
        is_deleted: seq == 3,
    });
    Range { head: HEAD, messages: stored.collect() }
}

impl TimelineStore for FixedTimelines {
    fn append(&self, appends: Vec<Append>) -> Call<Result<Vec<AppendResult>, TimelineError>> {
        let position = Position { epoch: Epoch(1), seq: TimelineSeq(5) };
        Call::Ready(Ok(appends.iter().map(|_| AppendResult { position, is_duplicate: false }).collect()))
    }

    fn read(&self, _: TimelineId, _: TimelineSeq, _: ReadLimit) -> Call<Result<Range, TimelineError>> {
        Call::Ready(Ok(range()))
    }

    fn read_back(
        &self,
        _: TimelineId,
        _: Option<TimelineSeq>,
        _: ReadLimit,
    ) -> Call<Result<Range, TimelineError>> {
        Call::Ready(Ok(range()))
    }

    fn heads(&self, timelines: Vec<TimelineId>) -> Call<Result<Vec<Head>, TimelineError>> {
        Call::Ready(Ok(vec![HEAD; timelines.len()]))
    }

    fn delete(&self, _: TimelineId, _: TimelineSeq) -> Call<Result<bool, TimelineError>> {
        Call::Ready(Ok(true))
    }

    fn advance(&self, _: CursorId, to: TimelineSeq) -> Call<Result<TimelineSeq, TimelineError>> {
        Call::Ready(Ok(to))
    }

    fn cursors(&self, cursors: Vec<CursorId>) -> Call<Result<Vec<TimelineSeq>, TimelineError>> {
        Call::Ready(Ok(vec![TimelineSeq(1); cursors.len()]))
    }
}

/// A pool of one comet, which has one session in every room.
struct OneComet;

impl CometPool for OneComet {
    fn get(&self, _: &ServerId) -> Option<Arc<dyn CometPort>> {
        Some(Arc::new(Self))
    }

    fn all(&self) -> Vec<(ServerId, Arc<dyn CometPort>)> {
        vec![(ServerId::from("h1"), Arc::new(Self))]
    }
}

impl CometPort for OneComet {
    fn push(&self, _: KeyPush) -> Call<Result<(), CometError>> {
        Call::Ready(Ok(()))
    }

    fn broadcast(&self, _: Broadcast) -> Call<Result<(), CometError>> {
        Call::Ready(Ok(()))
    }

    fn push_room(&self, _: RoomPush) -> Call<Result<(), CometError>> {
        Call::Ready(Ok(()))
    }

    fn rooms(&self) -> Call<Result<Vec<RoomId>, CometError>> {
        Call::Ready(Ok(Vec::new()))
    }

    fn room_members(&self, _: RoomId, _: usize) -> Call<Result<RoomMembers, CometError>> {
        let members = vec![RoomMember { mid: Mid(5), key: "k".into() }];
        Call::Ready(Ok(RoomMembers { members, count: 1 }))
    }
}
