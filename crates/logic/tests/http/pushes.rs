//! What a push request appends to the push log.

use std::time::Duration;

use goim_ports::{AppendError, Mid};

use crate::world::{Fault, Server, flat};

/// The outcome is unknown.
const UNKNOWN: &str = r#"{"code":-504,"message":"the push may or may not be in the log"}"#;

const OK: (u16, &str) = (200, r#"{"code":0,"message":""}"#);

/// Sends a push and compares what was appended: target, operation, body.
async fn check(server: &Server, target: &str, body: &[u8], expected: &[(&str, i32)]) {
    assert_eq!(server.post(target, body).await.status_and_body(), OK, "{target}");
    let records: Vec<_> = server.world.take_log().iter().map(flat).collect();
    let expected: Vec<_> = expected
        .iter()
        .map(|(target, operation)| ((*target).to_owned(), *operation, body.to_vec()))
        .collect();
    assert_eq!(records, expected, "{target}");
}

#[tokio::test]
async fn rows_57_and_90_keys_in_order_grouped_by_comet() {
    let server = Server::start().await;
    for (key, comet) in [("a", "one"), ("b", "two"), ("c", "one"), ("ключ /?&%", "two")] {
        server.world.enter(0, key, comet);
    }
    let to = "/goim/push/keys?operation=1000";
    check(&server, &format!("{to}&keys=a"), b"hello", &[("one: a", 1000)]).await;
    check(
        &server,
        &format!("{to}&keys=b&keys=a&keys=unknown&keys=c"),
        b"x",
        &[("two: b", 1000), ("one: a c", 1000)],
    )
    .await;
    check(&server, &format!("{to}&keys=a&keys=a"), b"", &[("one: a a", 1000)]).await;
    check(&server, &format!("{to}&keys=a,b"), b"x", &[]).await;
    check(&server, &format!("{to}&keys=unknown"), b"x", &[]).await;
    check(&server, &format!("{to}&keys=&keys=%ff"), b"x", &[]).await;
    check(
        &server,
        &format!("{to}&keys=%D0%BA%D0%BB%D1%8E%D1%87+/?%26%25"),
        b"x",
        &[("two: ключ /?&%", 1000)],
    )
    .await;
    check(&server, "/goim/push/keys?operation=-5&keys=a", b"x", &[("one: a", -5)]).await;
    check(&server, "/goim/push/keys?Operation=7&keys=a", b"x", &[("one: a", 0)]).await;
    check(&server, "/goim/push/keys?operation=1000&operation=2&keys=a", b"x", &[("one: a", 1000)]).await;
}

#[tokio::test]
async fn row_88_each_session_of_a_member_gets_it_once() {
    let server = Server::start().await;
    for (mid, key, comet) in
        [(5, "a", "one"), (5, "b", "two"), (5, "c", "one"), (6, "d", "one"), (0, "e", "one")]
    {
        server.world.enter(mid, key, comet);
    }
    let five = [("one: a c", 1000), ("two: b", 1000)];
    check(&server, "/goim/push/mids?operation=1000&mids=5", b"x", &five).await;
    check(&server, "/goim/push/mids?operation=1000&mids=5&mids=5&mids=999", b"x", &five).await;
    // Row 109: one record for all sessions on one comet.
    check(
        &server,
        "/goim/push/mids?operation=1000&mids=6&mids=5",
        b"x",
        &[("one: a c d", 1000), ("two: b", 1000)],
    )
    .await;
    // Row 107: anonymous members have no sessions that can be looked up.
    let asked = std::mem::take(&mut server.world.state().asked_mids);
    assert_eq!(
        asked,
        [vec![5], vec![5, 999], vec![5, 6]].map(|mids| mids.into_iter().map(Mid).collect::<Vec<_>>())
    );
    check(&server, "/goim/push/mids?operation=1000&mids=0&mids=-3&mids=", b"x", &[]).await;
    assert!(server.world.state().asked_mids.is_empty());
}

#[tokio::test]
async fn rows_91_92_94_and_106_rooms_and_all() {
    let server = Server::start().await;
    let all_bytes: Vec<u8> = (0..=255).collect();
    let room = |kind: &str, room: &str| format!("/goim/push/room?operation=1000&type={kind}&room={room}");
    check(&server, &room("live", "1000"), &all_bytes, &[("room live://1000", 1000)]).await;
    check(&server, &room("live", "1000"), b"", &[("room live://1000", 1000)]).await;
    let chinese = room("%E7%9B%B4%E6%92%AD", "%E6%88%BF%E9%97%B4%E4%B8%80");
    check(&server, &chinese, b"x", &[("room 直播://房间一", 1000)]).await;
    check(&server, &room("a", "b/c?d=e%23f"), b"x", &[("room a://b/c?d=e#f", 1000)]).await;
    check(&server, &room("live", "+x+"), b"x", &[("room live:// x ", 1000)]).await;
    let long = "r".repeat(1990);
    check(&server, &room("live", &long), b"x", &[(&format!("room live://{long}"), 1000)]).await;
    for (speed, expected) in
        [("", "all 0"), ("&speed=", "all 0"), ("&speed=-1", "all 0"), ("&speed=1000000", "all 1000000")]
    {
        check(&server, &format!("/goim/push/all?operation=1000{speed}"), b"x", &[(expected, 1000)]).await;
    }
    let response = server.post(&room("live", "%ff"), b"x").await;
    assert_eq!(
        response.status_and_body(),
        (200, r#"{"code":-500,"message":"string field contains invalid UTF-8"}"#)
    );
}

#[tokio::test]
async fn row_58_the_largest_record_and_one_byte_more() {
    let server = Server::start().await;
    let target = "/goim/push/room?operation=1000&type=live&room=1000";
    // 26, the key of 11, type 2, operation 3, room 13, body 1 + 3 + its length.
    let largest = 1_000_000 - (26 + 11 + 2 + 3 + 13 + 4);
    assert_eq!(server.post(target, &vec![7; largest]).await.status_and_body(), OK);
    assert_eq!(server.world.take_log()[0].payload.primary_bytes().len(), largest);
    let too_large = "kafka server: Message was too large, server rejected it to avoid allocation error.";
    let expected = format!(r#"{{"code":-500,"message":"{too_large}"}}"#);
    assert_eq!(server.post(target, &vec![7; largest + 1]).await.status_and_body(), (200, expected.as_str()));
    assert!(server.world.take_log().is_empty());
}

#[tokio::test]
async fn a_full_log_has_retry_after() {
    let server = Server::start().await;
    server.world.enter(5, "a", "one");
    server.world.state().append_error = Some(AppendError::Full);
    for target in [
        "/goim/push/keys?operation=1&keys=a",
        "/goim/push/mids?operation=1&mids=5",
        "/goim/push/room?operation=1&type=a&room=b",
        "/goim/push/all?operation=1",
    ] {
        let response = server.post(target, b"x").await;
        let expected = r#"{"code":-429,"message":"the push log is full; try again later"}"#;
        assert_eq!(response.status_and_body(), (429, expected), "{target}");
        assert_eq!(response.header("retry-after"), Some("1"), "{target}");
        assert_eq!(response.header("content-type"), Some("application/json; charset=utf-8"));
    }
}

#[tokio::test]
async fn the_first_failure_ends_a_push() {
    let server = Server::start().await;
    for (key, comet) in [("a", "one"), ("b", "two"), ("c", "three")] {
        server.world.enter(5, key, comet);
    }
    {
        let mut state = server.world.state();
        state.append_error = Some(AppendError::Unavailable("gone".to_owned()));
        state.appends_left = 1;
    }
    // A part of the push is in the log.
    let response = server.post("/goim/push/keys?operation=1&keys=a&keys=b&keys=c", b"x").await;
    assert_eq!(response.status_and_body(), (200, UNKNOWN));
    let records: Vec<_> = server.world.take_log().iter().map(|record| flat(record).0).collect();
    assert_eq!(records, ["one: a"]);
    // Nothing of the push is in the log.
    let response = server.post("/goim/push/keys?operation=1&keys=a&keys=b&keys=c", b"x").await;
    assert_eq!(response.status_and_body(), (200, r#"{"code":-400,"message":""}"#));
    let response = server.post("/goim/push/mids?operation=1&mids=5", b"x").await;
    assert_eq!(response.status_and_body(), (200, r#"{"code":-500,"message":"gone"}"#));
    for (taken, error) in [(1, AppendError::Full), (2, AppendError::Unavailable("gone".to_owned()))] {
        {
            let mut state = server.world.state();
            (state.append_error, state.appends_left) = (Some(error), taken);
        }
        let response = server.post("/goim/push/mids?operation=1&mids=5", b"x").await;
        assert_eq!(response.status_and_body(), (200, UNKNOWN), "{taken} taken");
        server.world.state().appends_left = taken;
        let response = server.post("/v1/sessions/end", br#"{"of":{"mids":[5]},"reason":"kicked"}"#).await;
        assert_eq!(response.status_and_body(), (504, UNKNOWN), "{taken} taken");
    }
}

/// Every route has the same answer for an unknown outcome, whatever its cause.
#[tokio::test]
async fn an_unknown_outcome_has_one_answer_on_every_route() {
    const ONE: &[u8] = br#"{"messages":[{"to":{"mids":[5]},"operation":1000,"body":"x"}]}"#;
    const MANY: &[u8] = br#"{"messages":[{"to":{"room":"live://1"},"operation":1000,"body":"x"},
        {"to":{"keys":["a"]},"operation":1000,"body":"x"},{"to":{"all":true},"operation":1000,"body":"x"}]}"#;
    const END: [&[u8]; 3] = [
        br#"{"of":{"mids":[5]},"reason":"kicked"}"#,
        br#"{"of":{"keys":["a"]}}"#,
        br#"{"of":{"room":"live://1"},"reason":"revoked"}"#,
    ];
    let goims = [
        "/goim/push/keys?operation=1&keys=a",
        "/goim/push/mids?operation=1&mids=5",
        "/goim/push/room?operation=1&type=live&room=1",
        "/goim/push/all?operation=1",
    ];
    let json = [("Content-Type", "application/json")];
    let unknown_but = UNKNOWN.replace('}', r#","accepted":0}"#);
    // The log does not answer in time; the request has no time left.
    for (append, request) in [(20, 30_000), (30_000, 20)] {
        let server = Server::with(|config| {
            config.push.append_timeout = Duration::from_millis(append);
            config.http.request_timeout = Duration::from_millis(request);
        })
        .await;
        server.world.enter(5, "a", "one");
        server.world.state().append_hangs = true;
        for target in goims {
            assert_eq!(server.post(target, b"x").await.status_and_body(), (200, UNKNOWN), "{target}");
        }
        for body in [ONE, MANY] {
            let response = server.connect().await.request("POST", "/v1/push", &json, body).await;
            let expected = if append < request { &unknown_but } else { UNKNOWN };
            assert_eq!(response.status_and_body(), (504, expected));
        }
        for body in END {
            let response = server.post("/v1/sessions/end", body).await;
            assert_eq!(response.status_and_body(), (504, UNKNOWN), "{}", String::from_utf8_lossy(body));
        }
    }
}

#[tokio::test]
async fn a_hanging_dependency_times_out() {
    let server = Server::with(|config| {
        config.push.append_timeout = Duration::from_millis(20);
        config.directory_timeout = Duration::from_millis(20);
    })
    .await;
    server.world.state().append_hangs = true;
    let response = server.post("/goim/push/all?operation=1", b"x").await;
    assert_eq!(response.status_and_body(), (200, UNKNOWN));
    server.world.state().directory_fault = Fault::Hangs;
    let response = server.post("/goim/push/mids?operation=1&mids=5", b"x").await;
    assert_eq!(
        response.status_and_body(),
        (200, r#"{"code":-500,"message":"the directory did not answer in time"}"#)
    );
    let response = server.post("/goim/push/keys?operation=1&keys=a", b"x").await;
    assert_eq!(response.status_and_body(), (200, r#"{"code":-400,"message":""}"#));
}

#[tokio::test]
async fn a_pending_answer_is_awaited() {
    let server = Server::start().await;
    server.world.enter(5, "a", "one");
    server.world.state().directory_fault = Fault::Slow;
    check(&server, "/goim/push/keys?operation=1&keys=a", b"x", &[("one: a", 1)]).await;
    check(&server, "/goim/push/mids?operation=1&mids=5", b"x", &[("one: a", 1)]).await;
}
