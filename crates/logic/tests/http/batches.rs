//! Batches: which messages are in the push log, and what the answer reports about the rest.

use goim_ports::AppendError;

use crate::client::Response;
use crate::world::{Fault, Server, flat};

const JSON: &str = "application/json";
const LINES: &str = "application/x-ndjson";

async fn push(server: &Server, content_type: &str, body: &str) -> Response {
    let headers = [("Content-Type", content_type)];
    server.connect().await.request("POST", "/v1/push", &headers, body.as_bytes()).await
}

/// One message to a room per body.
fn lines(bodies: impl IntoIterator<Item = impl std::fmt::Display>) -> String {
    let line = |body| format!(r#"{{"to":{{"room":"live://1"}},"operation":1000,"body":"{body}"}}"#);
    bodies.into_iter().map(line).collect::<Vec<_>>().join("\n")
}

fn log(server: &Server) -> Vec<(String, i32, String)> {
    let text = |(target, operation, body)| (target, operation, String::from_utf8(body).unwrap());
    server.world.take_log().iter().map(flat).map(text).collect()
}

#[tokio::test]
async fn all_kinds_of_receivers_in_order_with_one_append() {
    let server = Server::start().await;
    for (mid, key, comet) in [(5, "a", "one"), (5, "b", "two"), (0, "c", "one")] {
        server.world.enter(mid, key, comet);
    }
    let messages = [
        r#"{"to":{"keys":["c","b","gone","a","c"]},"operation":1000,"body":"1"}"#,
        r#"{"to":{"keys":["gone"]},"operation":1000,"body":"2"}"#,
        r#"{"to":{"mids":[5,7]},"operation":1001,"body":"3"}"#,
        r#"{"to":{"room":"live://1"},"operation":1002,"body_base64":"NA=="}"#,
        r#"{"to":{"all":true,"speed":9},"operation":1003,"body":""}"#,
        r#"{"to":{"keys":["b"]},"operation":-1,"body":"6"}"#,
    ];
    let expected: Vec<_> = [
        ("one: c a c", 1000, "1"),
        ("two: b", 1000, "1"),
        ("one: a", 1001, "3"),
        ("two: b", 1001, "3"),
        ("room live://1", 1002, "4"),
        ("all 9", 1003, ""),
        ("two: b", -1, "6"),
    ]
    .map(|(target, operation, body)| (target.to_owned(), operation, body.to_owned()))
    .into();
    let document = format!(r#"{{"messages":[{}]}}"#, messages.join(","));
    for (content_type, body) in [(JSON, document), (LINES, messages.join("\n"))] {
        let response = push(&server, content_type, &body).await;
        assert_eq!(response.status_and_body(), (200, r#"{"code":0,"message":"","accepted":6}"#));
        assert_eq!(response.header("content-type"), Some("application/json; charset=utf-8"));
        assert_eq!(log(&server), expected, "{content_type}");
    }
    assert_eq!(server.world.state().append_calls, 2);
    assert_eq!(
        push(&server, LINES, "").await.status_and_body(),
        (200, r#"{"code":0,"message":"","accepted":0}"#)
    );
}

#[tokio::test]
async fn an_invalid_message_is_named_and_none_is_accepted() {
    let server = Server::start().await;
    let good = lines(["x"]);
    let wrong = r#"{"to":{"room":"live"},"operation":1000,"body":"x"}"#;
    let response = push(&server, JSON, &format!(r#"{{"messages":[{good},{wrong}]}}"#)).await;
    let text = "messages[1]: to: room: must be type://id, for example live://1000 at line 1 column";
    assert_eq!(response.status, 400);
    assert!(response.body.starts_with(&format!(r#"{{"code":-400,"message":"{text}"#)), "{response:?}");
    let response = push(&server, LINES, &format!("{good}\n{wrong}\n{good}")).await;
    assert!(response.body.contains("line 2: to: room: must be type://id"), "{response:?}");
    let large = lines(["x".to_owned(), "y".repeat(1_000_000)]);
    let response = push(&server, LINES, &large).await;
    let text =
        r#"{"code":-400,"message":"line 2: body: makes a record of 1000053 bytes; 1000000 is the most"}"#;
    assert_eq!(response.status_and_body(), (400, text));
    assert!(log(&server).is_empty());
}

#[tokio::test]
async fn a_full_log_reports_how_many_were_accepted() {
    let server = Server::start().await;
    {
        let mut state = server.world.state();
        state.append_error = Some(AppendError::Full);
        state.appends_left = 3;
    }
    let response = push(&server, LINES, &lines(0..5)).await;
    let expected = r#"{"code":-429,"message":"the push log is full; try again later","accepted":3}"#;
    assert_eq!(response.status_and_body(), (429, expected));
    assert_eq!(response.header("retry-after"), Some("1"));
    let bodies: Vec<_> = log(&server).into_iter().map(|(_, _, body)| body).collect();
    assert_eq!(bodies, ["0", "1", "2"]);
}

#[tokio::test]
async fn a_message_counts_when_all_of_its_records_are_in_the_log() {
    let server = Server::start().await;
    for (key, comet) in [("a", "one"), ("b", "two")] {
        server.world.enter(5, key, comet);
    }
    let to_both = r#"{"to":{"mids":[5]},"operation":1000,"body":"x"}"#;
    for (taken, accepted) in [(0, 0), (1, 0), (2, 1), (3, 1)] {
        {
            let mut state = server.world.state();
            state.append_error = Some(AppendError::Unavailable("gone".to_owned()));
            state.appends_left = taken;
        }
        let response = push(&server, LINES, &[to_both, to_both].join("\n")).await;
        // The message is in the log for one comet and not for the other, so the outcome is unknown.
        let (status, text) = match taken % 2 {
            0 => (503, "gone"),
            _ => (504, "the push may or may not be in the log"),
        };
        let expected = format!(r#"{{"code":-{status},"message":"{text}","accepted":{accepted}}}"#);
        assert_eq!(response.status_and_body(), (status, expected.as_str()), "{taken} records taken");
    }
}

#[tokio::test]
async fn without_the_directory_none_is_accepted() {
    let server = Server::start().await;
    server.world.state().directory_fault = Fault::Error("no directory".to_owned());
    for to in [r#"{"keys":["a"]}"#, r#"{"mids":[5]}"#] {
        let message = format!(r#"{{"to":{to},"operation":1000,"body":"x"}}"#);
        let response = push(&server, LINES, &format!("{}\n{message}", lines(["x"]))).await;
        let expected = r#"{"code":-503,"message":"no directory","accepted":0}"#;
        assert_eq!(response.status_and_body(), (503, expected), "{to}");
    }
    assert!(log(&server).is_empty());
}

#[tokio::test]
async fn authorized_and_limited_like_other_pushes() {
    let server = Server::with(|config| {
        config.http.api_keys = vec!["correct horse battery".to_owned().into()];
        config.http.body_bytes_max = 1_000_000;
    })
    .await;
    let body = lines(["x"]);
    assert_eq!(push(&server, LINES, &body).await.status, 401);
    let with_key = async |content_type: &str, body: &str| {
        let headers = [("Content-Type", content_type), ("X-API-Key", "correct horse battery")];
        server.connect().await.request("POST", "/v1/push", &headers, body.as_bytes()).await
    };
    assert_eq!(with_key(LINES, &body).await.status, 200);
    assert_eq!(with_key(LINES, &" ".repeat(1_000_001)).await.status, 413);
    let response = with_key("text/plain", &body).await;
    let expected =
        r#"{"code":-415,"message":"the content type must be application/json or application/x-ndjson"}"#;
    assert_eq!(response.status_and_body(), (415, expected));
    let response = server.get("/v1/push").await;
    assert_eq!(response.status_and_body(), (404, "404 page not found"));
}
