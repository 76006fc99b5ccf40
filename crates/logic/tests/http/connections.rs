//! HTTP/1.1 connections: what goim v2's clients do with them, and their timeouts.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use tokio::sync::Notify;

use crate::client::request;
use crate::world::{Server, flat};

const TOTAL: &str = "/goim/online/total";

fn push(body: &[u8]) -> Vec<u8> {
    request("POST", "/goim/push/all?operation=1", &[], body)
}

#[tokio::test]
async fn row_95_pipelined_requests_are_answered_and_logged_in_order() {
    let server = Server::start().await;
    let mut connection = server.connect().await;
    connection.send(&[push(b"one"), request("GET", TOTAL, &[], b""), push(b"two")].concat()).await;
    assert_eq!(connection.response("POST").await.body, r#"{"code":0,"message":""}"#);
    assert!(connection.response("GET").await.body.contains("conn_count"));
    assert_eq!(connection.response("POST").await.body, r#"{"code":0,"message":""}"#);
    let bodies: Vec<_> = server.world.take_log().iter().map(|record| flat(record).2).collect();
    assert_eq!(bodies, [b"one", b"two"]);
}

#[tokio::test]
async fn row_95_chunks_are_put_together() {
    let server = Server::start().await;
    let body = b"3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n";
    let mut connection = server.connect().await;
    let headers = [("Transfer-Encoding", "chunked")];
    let response = connection.request("POST", "/goim/push/all?operation=1", &headers, body).await;
    assert_eq!(response.status, 200);
    assert_eq!(server.world.take_log()[0].payload.primary_bytes(), b"hello");
}

#[tokio::test]
async fn row_95_a_client_that_expects_100_continue_gets_it() {
    let server = Server::start().await;
    let mut connection = server.connect().await;
    let head = b"POST /goim/push/all?operation=1 HTTP/1.1\r\nHost: l\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";
    connection.send(head).await;
    assert_eq!(connection.head().await.as_deref(), Some("HTTP/1.1 100 Continue"));
    connection.send(b"hello").await;
    assert_eq!(connection.response("POST").await.status, 200);
    assert_eq!(server.world.take_log()[0].payload.primary_bytes(), b"hello");
    // A request that will be refused gets no 100.
    let head =
        b"POST /goim/push/all HTTP/1.1\r\nHost: l\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";
    connection.send(head).await;
    let refused = connection.head().await.unwrap();
    assert!(refused.starts_with("HTTP/1.1 400 "), "{refused}");
}

#[tokio::test]
async fn row_95_connection_close_and_http_1_0_end_the_connection() {
    let server = Server::start().await;
    for head in [
        "GET /goim/online/total HTTP/1.1\r\nHost: l\r\nConnection: close\r\n\r\n",
        "GET /goim/online/total HTTP/1.0\r\n\r\n",
    ] {
        let mut connection = server.connect().await;
        connection.send(head.as_bytes()).await;
        assert_eq!(connection.response("GET").await.status, 200);
        assert!(connection.is_closed().await);
    }
    let mut connection = server.connect().await;
    connection.send(b"GET /goim/online/total HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").await;
    assert_eq!(connection.response("GET").await.header("connection"), Some("keep-alive"));
    assert_eq!(connection.request("GET", TOTAL, &[], b"").await.status, 200);
}

#[tokio::test]
async fn a_client_that_closes_its_half_gets_its_answer() {
    let server = Server::start().await;
    let gate = Arc::new(Notify::new());
    server.world.state().append_gate = Some(Arc::clone(&gate));
    let mut connection = server.connect().await;
    connection.send(&push(b"x")).await;
    connection.finish().await;
    // Gives the server time to see the end. The test does not depend on how much.
    tokio::time::sleep(Duration::from_millis(20)).await;
    gate.notify_one();
    assert_eq!(connection.response("POST").await.status, 200);
    assert!(connection.is_closed().await);
}

#[tokio::test]
async fn row_96_trailing_slashes() {
    let server = Server::start().await;
    for (method, target, status, location) in [
        ("GET", "/goim/online/total/?", 301, Some("/goim/online/total?")),
        ("GET", "/goim/online/top/?type='\u{e9}", 301, Some("/goim/online/top?type='%c3%a9")),
        ("POST", "/goim/push/all/?operation=1", 307, Some("/goim/push/all?operation=1")),
        ("GET", "/goim/push/all/", 404, None),
        ("HEAD", "/goim/online/total/", 404, None),
        ("GET", "/goim/online/total//", 404, None),
        ("GET", "/goim/online/%74otal", 200, None),
        ("GET", "/goim/online/%ztotal", 404, None),
    ] {
        let response = server.connect().await.request(method, target, &[], b"").await;
        assert_eq!((response.status, response.header("location")), (status, location), "{method} {target}");
    }
}

#[tokio::test]
async fn the_caller_adds_routes() {
    let extra = Router::new().route("/metrics", get(|| async { "figures" }));
    let server = Server::with_extra(|_| (), extra).await;
    assert_eq!(server.get("/metrics").await.status_and_body(), (200, "figures"));
    assert_eq!(server.get("/elsewhere").await.status_and_body(), (404, "404 page not found"));
    assert_eq!(server.get("/openapi.json").await.status, 200);
}

#[tokio::test]
async fn a_client_that_does_not_finish_its_head_is_disconnected() {
    let server = Server::with(|config| config.http.header_timeout = Duration::from_millis(50)).await;
    let mut silent = server.connect().await;
    let mut slow = server.connect().await;
    slow.send(b"GET /goim/online/total HTTP/1.1\r\nHo").await;
    // Also on a connection that has served a request.
    let mut second = server.connect().await;
    assert_eq!(second.request("GET", TOTAL, &[], b"").await.status, 200);
    second.send(b"GET /goim").await;
    assert!(silent.is_closed().await);
    assert!(slow.is_closed().await);
    assert!(second.is_closed().await);
}

#[tokio::test]
async fn idle_connections_have_their_own_timeout() {
    let server = Server::with(|config| {
        config.http.header_timeout = Duration::from_millis(20);
        config.http.idle_timeout = Duration::from_millis(300);
    })
    .await;
    let mut connection = server.connect().await;
    let started = tokio::time::Instant::now();
    assert_eq!(connection.request("GET", TOTAL, &[], b"").await.status, 200);
    assert!(connection.is_closed().await);
    assert!(started.elapsed() >= Duration::from_millis(290), "{:?}", started.elapsed());
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_their_turn() {
    let server = Server::with(|config| config.http.connections_max = 2).await;
    let mut first = server.connect().await;
    let mut second = server.connect().await;
    assert_eq!(first.request("GET", TOTAL, &[], b"").await.status, 200);
    assert_eq!(second.request("GET", TOTAL, &[], b"").await.status, 200);
    let mut third = server.connect().await;
    third.send(&request("GET", TOTAL, &[], b"")).await;
    let early = tokio::time::timeout(Duration::from_millis(50), third.response("GET")).await;
    assert!(early.is_err(), "{early:?}");
    drop(first);
    assert_eq!(third.response("GET").await.status, 200);
}

#[tokio::test]
async fn stopping_answers_requests_in_flight_and_closes_the_rest() {
    let mut server = Server::start().await;
    let mut idle = server.connect().await;
    assert_eq!(idle.request("GET", TOTAL, &[], b"").await.status, 200);
    let mut busy = server.connect().await;
    busy.send(b"POST /goim/push/all?operation=1 HTTP/1.1\r\nHost: l\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        .await;
    // Now the request is certainly in flight.
    assert!(busy.head().await.is_some());
    server.stop();
    assert!(idle.is_closed().await);
    busy.send(b"hi").await;
    assert_eq!(busy.response("POST").await.status, 200);
    assert!(busy.is_closed().await);
    server.stopped().await;
}

#[tokio::test]
async fn stopping_has_a_timeout() {
    let mut server = Server::with(|config| config.http.shutdown_timeout = Duration::from_millis(50)).await;
    let mut busy = server.connect().await;
    busy.send(b"POST /goim/push/all?operation=1 HTTP/1.1\r\nHost: l\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        .await;
    assert!(busy.head().await.is_some());
    server.stop();
    server.stopped().await;
    assert!(busy.is_closed().await);
}
