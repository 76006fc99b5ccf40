//! The timeline bodies of `testdata/wire/sync.json`, which were written from `api/sync.proto`,
//! against the types.

use crate::golden_file::{entries, hex, load};
use bytes::Bytes;
use goim_wire::sync::{
    Ack, AckReply, Body, Message, Notify, Position, SendReply, SendRequest, SyncReply, SyncRequest,
};
use serde_json::Value;

fn number<N: TryFrom<i128> + Default>(value: &Value) -> N {
    let number =
        value.as_i64().map(i128::from).or_else(|| value.as_u64().map(i128::from)).unwrap_or_default();
    number.try_into().unwrap_or_else(|_| panic!("{value} is out of range"))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn flag(value: &Value) -> bool {
    value.as_bool().unwrap_or_default()
}

fn bytes(value: &Value) -> Bytes {
    if value.is_null() { Bytes::new() } else { hex(value).into() }
}

fn position(value: &Value) -> Option<Position> {
    value.is_object().then(|| Position { epoch: number(&value["epoch"]), seq: number(&value["seq"]) })
}

fn messages(value: &Value) -> Vec<Message> {
    let message = |value: &Value| Message {
        seq: number(&value["seq"]),
        operation: number(&value["operation"]),
        version: number(&value["version"]),
        time_ms: number(&value["time_ms"]),
        sender: number(&value["sender"]),
        body: bytes(&value["body"]),
        deleted: flag(&value["deleted"]),
        unreadable: flag(&value["unreadable"]),
    };
    value.as_array().into_iter().flatten().map(message).collect()
}

/// Decodes `given` as a body of this kind and encodes it again; `None` if it is malformed. `fields`
/// is the expected value.
fn again(kind: &str, given: &[u8], fields: &Value) -> Option<Vec<u8>> {
    fn of<B: Body + PartialEq + std::fmt::Debug>(given: &[u8], expected: B) -> Option<Vec<u8>> {
        let read = B::read(Bytes::copy_from_slice(given))?;
        assert_eq!(read, expected);
        Some(read.write())
    }
    let (timeline, seq) = (text(&fields["timeline"]), number(&fields["seq"]));
    let at = position(&fields["position"]);
    match kind {
        "notify" => {
            let latest = position(&fields["latest"]);
            of(given, Notify { timeline, latest, messages: messages(&fields["messages"]) })
        }
        "sync" => of(given, SyncRequest { timeline, position: at, limit: number(&fields["limit"]) }),
        "sync_reply" => of(
            given,
            SyncReply {
                timeline,
                epoch: number(&fields["epoch"]),
                messages: messages(&fields["messages"]),
                latest: number(&fields["latest"]),
                more: flag(&fields["more"]),
                gap: flag(&fields["gap"]),
                after: number(&fields["after"]),
            },
        ),
        "ack" => of(given, Ack { timeline, seq }),
        "ack_reply" => of(given, AckReply { timeline, seq, unread: number(&fields["unread"]) }),
        "send" => of(
            given,
            SendRequest {
                to: text(&fields["to"]),
                operation: number(&fields["operation"]),
                body: bytes(&fields["body"]),
                client_id: text(&fields["client_id"]),
            },
        ),
        "send_reply" => of(given, SendReply { position: at, duplicate: flag(&fields["duplicate"]) }),
        kind => panic!("no body is called {kind}"),
    }
}

fn kind(entry: &Value) -> &str {
    entry["kind"].as_str().unwrap_or_else(|| panic!("no kind in {entry}"))
}

#[test]
fn bodies_of_timelines() {
    let file = load("sync.json");
    for entry in entries(&file, "writes") {
        let given = hex(&entry["bytes"]);
        assert_eq!(again(kind(entry), &given, &entry["fields"]), Some(given), "{entry}");
    }
    for entry in entries(&file, "reads") {
        assert!(again(kind(entry), &hex(&entry["bytes"]), &entry["fields"]).is_some(), "{entry}");
    }
    for entry in entries(&file, "refused") {
        assert_eq!(again(kind(entry), &hex(&entry["bytes"]), &Value::Null), None, "{entry}");
    }
}
