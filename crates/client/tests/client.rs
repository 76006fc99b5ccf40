//! The client against a server over real sockets.

// The functions around the tests are tests too; clippy's own exception covers only what is marked as one.
#![allow(clippy::unwrap_used)]

mod server;

use std::time::Duration;

use goim_client::{
    AuthBody, Backoff, Client, ClientConfig, ConnectError, DisconnectReason, Event, Events, HeartbeatError,
    Identity, NodeSource, Operation, ReconnectPolicy, RoomError, Scheme, SendError, Target, TlsRoots, Token,
    TokenProvider, TokenReason,
};
use goim_session::CloseReason;
use goim_wire::batch::BatchBuilder;
use goim_wire::{Packet, Sequence, Version};
use server::{ONLINE, Order, PATIENCE, Seen, Server};

const SCHEMES: [Scheme; 4] = [Scheme::Tcp, Scheme::Ws, Scheme::Tls, Scheme::Wss];

fn identity() -> Identity {
    Identity::new(7).key("k").room("live://1").accepts([1000])
}

fn config(server: &Server, auth: impl Into<goim_client::Auth>) -> ClientConfig {
    let mut config = ClientConfig::new(server.endpoint.clone(), auth);
    config.tls_roots = TlsRoots::Pem(server.roots.clone());
    config.backoff = Some(Backoff {
        base_delay: Duration::from_millis(20),
        max_delay: PATIENCE,
        factor: 1.1,
        jitter: 0.5,
    });
    config.request_timeout = PATIENCE;
    config
}

async fn event(events: &mut Events) -> Event {
    let event = tokio::time::timeout(PATIENCE, events.next()).await;
    event.expect("no event in time").expect("the client has ended")
}

async fn expect_connected(events: &mut Events) {
    let event = event(events).await;
    assert!(matches!(event, Event::Connected { .. }), "{event:?}");
}

async fn expect_push(events: &mut Events, operation: i32, body: &[u8]) {
    match event(events).await {
        Event::Push(push) => assert_eq!((push.operation.0, &push.body[..]), (operation, body)),
        other => panic!("{other:?} instead of a push"),
    }
}

async fn expect_end(events: &mut Events) {
    let end = tokio::time::timeout(PATIENCE, events.next()).await.expect("no end in time");
    assert!(end.is_none(), "{end:?} after the last event");
}

#[tokio::test]
async fn every_transport_carries_everything() {
    for scheme in SCHEMES {
        let mut server = Server::start(scheme).await;
        let (client, mut events) = Client::connect(config(&server, identity())).await.unwrap();
        let mut peer = server.peer().await;
        let expect = r#"{"mid":7,"key":"k","room_id":"live://1","accepts":[1000],"protover":1}"#;
        assert_eq!(String::from_utf8_lossy(&peer.token), expect, "{scheme:?}");
        match event(&mut events).await {
            Event::Connected { endpoint, reply } => {
                assert_eq!((endpoint, reply.mid), (server.endpoint.clone(), Some(7)));
            }
            other => panic!("{other:?}"),
        }

        assert_eq!(client.heartbeat().await, Ok(ONLINE));
        assert_eq!(peer.seen().await, Seen::Heartbeat);
        client.change_room("live://2").await.unwrap();
        assert_eq!(peer.seen().await, Seen::Room("live://2".to_owned()));
        client.leave_room().await.unwrap();
        assert_eq!(peer.seen().await, Seen::Room(String::new()));
        client.subscribe(&[Operation(1001)]).await.unwrap();
        client.unsubscribe(&[Operation(1000)]).await.unwrap();
        assert_eq!(client.send(Operation(1000), "hello").await.unwrap(), "hello");
        assert!(matches!(peer.seen().await, Seen::Upstream(1000, _, body) if body == b"hello"));

        peer.push(1000, 0, b"one");
        let mut batch = BatchBuilder::new();
        for body in [b"two", b"thr"] {
            let (version, operation, sequence) = (Version::GOIM, Operation(1001), Sequence::NONE);
            batch.push(Packet { version, operation, sequence, body });
        }
        peer.order(Order::Push(batch.finish()));
        let long = vec![b'x'; 300_000];
        peer.push(1002, 0, &long);
        expect_push(&mut events, 1000, b"one").await;
        expect_push(&mut events, 1001, b"two").await;
        expect_push(&mut events, 1001, b"thr").await;
        expect_push(&mut events, 1002, &long).await;

        client.close().await;
        assert_eq!(peer.seen().await, Seen::Gone);
        expect_end(&mut events).await;
        assert_eq!(client.send(Operation(1000), "").await, Err(SendError::Closed));
    }
}

#[tokio::test]
async fn many_requests_at_once_each_get_their_own_reply() {
    for scheme in [Scheme::Tcp, Scheme::Wss] {
        let server = Server::start(scheme).await;
        let mut config = config(&server, identity());
        config.requests_max = 3.try_into().unwrap();
        let (client, _events) = Client::connect(config).await.unwrap();
        let tasks: Vec<_> = (0..200)
            .map(|number: u32| {
                let client = client.clone();
                tokio::spawn(async move {
                    let body = number.to_string();
                    assert_eq!(client.send(Operation(1000), body.clone()).await.unwrap(), body);
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    }
}

#[tokio::test]
async fn requests_wait_for_a_server_that_does_not_read_and_none_is_lost() {
    let mut server = Server::start(Scheme::Wss).await;
    let mut config = config(&server, identity());
    config.requests_max = 4000.try_into().unwrap();
    let (client, _events) = Client::connect(config).await.unwrap();
    let peer = server.peer().await;
    peer.order(Order::Freeze);
    // 16 MB: more than the system takes on the way.
    let tasks: Vec<_> = (0..4000_u32)
        .map(|number| {
            let client = client.clone();
            tokio::spawn(async move {
                let body = [&number.to_be_bytes()[..], &[b'.'; 4000]].concat();
                assert_eq!(client.send(Operation(1000), body.clone()).await.unwrap(), body);
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(tasks.iter().all(|task| !task.is_finished()));
    peer.order(Order::Thaw);
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn after_a_cut_the_client_returns_to_the_room_and_subscriptions_it_has_now() {
    let mut server = Server::start(Scheme::Tcp).await;
    let (client, mut events) = Client::connect(config(&server, identity())).await.unwrap();
    let peer = server.peer().await;
    expect_connected(&mut events).await;
    client.change_room("live://2").await.unwrap();
    client.subscribe(&[Operation(1001), Operation(1002)]).await.unwrap();
    client.unsubscribe(&[Operation(1000)]).await.unwrap();
    peer.order(Order::Cut);
    match event(&mut events).await {
        Event::Disconnected { reason: DisconnectReason::Closed | DisconnectReason::Io(_), retry_in } => {
            assert!(retry_in.is_some());
        }
        other => panic!("{other:?}"),
    }
    let peer = server.peer().await;
    let token = peer.token();
    assert_eq!((&token["room_id"], token["mid"].as_i64()), (&"live://2".into(), Some(7)));
    assert_eq!(token["accepts"].to_string(), "[1001,1002]");
    expect_connected(&mut events).await;
    peer.push(1001, 0, b"again");
    expect_push(&mut events, 1001, b"again").await;
    assert_eq!(client.stats().connected, 2);
}

#[tokio::test]
async fn with_a_raw_token_the_wishes_follow_it() {
    let mut server = Server::start(Scheme::Ws).await;
    let (client, mut events) = Client::connect(config(&server, Token::new("raw"))).await.unwrap();
    let peer = server.peer().await;
    expect_connected(&mut events).await;
    client.change_room("live://2").await.unwrap();
    peer.order(Order::Cut);
    assert!(matches!(event(&mut events).await, Event::Disconnected { .. }));
    let mut peer = server.peer().await;
    assert_eq!(peer.token, b"raw");
    assert_eq!(peer.seen().await, Seen::Room("live://2".to_owned()));
}

#[tokio::test]
async fn requests_in_flight_at_a_cut_fail_and_say_how_far_they_came() {
    let mut server = Server::start(Scheme::Tcp).await;
    let (client, mut events) = Client::connect(config(&server, identity())).await.unwrap();
    let mut peer = server.peer().await;
    expect_connected(&mut events).await;
    let asking = client.clone();
    let request = tokio::spawn(async move { asking.send(Operation(1001), "x").await });
    assert!(matches!(peer.seen().await, Seen::Upstream(1001, ..)));
    // Nobody serves this address any more.
    drop(server);
    peer.order(Order::Cut);
    assert_eq!(request.await.unwrap(), Err(SendError::Disconnected { may_have_arrived: true }));
    assert!(matches!(event(&mut events).await, Event::Disconnected { .. }));
    let unsent = client.send(Operation(1000), "x").await;
    assert_eq!(unsent, Err(SendError::Disconnected { may_have_arrived: false }));
    assert_eq!(client.heartbeat().await, Err(HeartbeatError::Disconnected));
    assert_eq!(client.stats().requests_cut, 1);
    assert!(matches!(event(&mut events).await, Event::ConnectFailed { retry_in: Some(_), .. }));
}

#[tokio::test]
async fn wishes_made_without_a_connection_are_part_of_the_next() {
    let port = {
        let server = Server::start(Scheme::Tcp).await;
        server.endpoint.port()
    };
    let endpoint = goim_client::Endpoint::new(Scheme::Tcp, "127.0.0.1", port).unwrap();
    let mut config = ClientConfig::new(endpoint, identity());
    config.backoff = Some(Backoff { base_delay: Duration::from_millis(20), ..Backoff::default() });
    assert!(matches!(Client::connect(config.clone()).await, Err(ConnectError::Io { .. })));
    let (client, mut events) = Client::start(config).unwrap();
    assert!(matches!(event(&mut events).await, Event::ConnectFailed { .. }));
    client.change_room("live://9").await.unwrap();
    client.subscribe(&[Operation(1009)]).await.unwrap();
    let mut server = Server::start_on(Scheme::Tcp, port).await;
    let mut peer = server.peer().await;
    let token = peer.token();
    // An attempt may have been under way while the wishes were made; those that it did not hold come behind it.
    if token["room_id"] == "live://9" {
        assert_eq!(token["accepts"].to_string(), "[1000,1009]");
    } else {
        assert_eq!(peer.seen().await, Seen::Room("live://9".to_owned()));
    }
}

#[tokio::test]
async fn a_superseded_client_stops() {
    for scheme in SCHEMES {
        let mut server = Server::start(scheme).await;
        let (client, mut events) = Client::connect(config(&server, identity())).await.unwrap();
        let peer = server.peer().await;
        expect_connected(&mut events).await;
        peer.close(CloseReason::Superseded, "");
        match event(&mut events).await {
            Event::Disconnected { reason: DisconnectReason::Notice(notice), retry_in: None } => {
                assert_eq!((notice.code, notice.reconnect), (Some(3500), ReconnectPolicy::Never));
            }
            other => panic!("{other:?}"),
        }
        expect_end(&mut events).await;
        assert_eq!(client.change_room("live://2").await, Err(RoomError::Closed));
        client.close().await;
        assert!(!server.has_peer(), "it came back");
    }
}

#[tokio::test]
async fn a_draining_server_sends_the_client_to_another_node() {
    let mut old = Server::start(Scheme::Ws).await;
    let mut new = Server::start(Scheme::Ws).await;
    let (_client, mut events) = Client::connect(config(&old, identity())).await.unwrap();
    let peer = old.peer().await;
    expect_connected(&mut events).await;
    peer.close(CloseReason::Draining, &format!(r#","delay_ms":30,"node":"{}""#, new.endpoint.authority()));
    match event(&mut events).await {
        Event::Disconnected { retry_in: Some(delay), .. } => assert!(delay >= Duration::from_millis(30)),
        other => panic!("{other:?}"),
    }
    new.peer().await;
    assert!(!old.has_peer(), "it came back to the old node");
}

/// A provider that counts: tokens are JSON with the number of the call and the reason in it.
fn provider() -> TokenProvider {
    let calls = std::sync::Arc::new(std::sync::atomic::AtomicI64::new(0));
    TokenProvider::new(move |why| {
        let call = calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
        async move {
            assert_eq!(why == TokenReason::First, call == 1, "call {call}");
            Ok(AuthBody::Identity(Identity::new(call)))
        }
    })
}

#[tokio::test]
async fn a_new_token_is_asked_for_when_the_server_wants_one_and_only_then() {
    let mut server = Server::start(Scheme::Tcp).await;
    let (_client, mut events) = Client::connect(config(&server, provider())).await.unwrap();
    let peer = server.peer().await;
    assert_eq!(peer.token()["mid"], 1);
    expect_connected(&mut events).await;
    peer.close(CloseReason::AuthRefused, "");
    assert!(matches!(event(&mut events).await, Event::Disconnected { retry_in: Some(_), .. }));
    let peer = server.peer().await;
    assert_eq!(peer.token()["mid"], 2);
    peer.order(Order::Cut);
    let peer = server.peer().await;
    assert_eq!(peer.token()["mid"], 2);
}

#[tokio::test]
async fn without_a_provider_a_new_token_cannot_be_had_and_the_client_stops() {
    let mut server = Server::start(Scheme::Tcp).await;
    let (_client, mut events) = Client::connect(config(&server, identity())).await.unwrap();
    let peer = server.peer().await;
    expect_connected(&mut events).await;
    peer.close(CloseReason::AuthRefused, "");
    assert!(matches!(event(&mut events).await, Event::Disconnected { retry_in: None, .. }));
    expect_end(&mut events).await;
}

#[tokio::test]
async fn a_refused_token_fails_the_first_connection_and_is_renewed_later() {
    for scheme in SCHEMES {
        let server = Server::start(scheme).await;
        let refused = Client::connect(config(&server, Token::new("bad"))).await;
        assert!(matches!(refused, Err(ConnectError::ClosedDuringAuth { .. })), "{refused:?}");
    }
    let server = Server::start(Scheme::Tcp).await;

    let provider = TokenProvider::new(|why| async move {
        Ok(Token::new(if why == TokenReason::First { "bad" } else { "{}" }).into())
    });
    let (client, mut events) = Client::start(config(&server, provider)).unwrap();
    assert!(matches!(
        event(&mut events).await,
        Event::ConnectFailed { error: ConnectError::ClosedDuringAuth { .. }, retry_in: Some(_) }
    ));
    expect_connected(&mut events).await;
    assert_eq!(client.stats().connects_failed, 1);

    let failing = TokenProvider::new(|_| async { Err("no service".into()) });
    let failed = Client::connect(config(&server, failing)).await;
    assert!(matches!(failed, Err(ConnectError::Token(_))), "{failed:?}");
    let long = Client::connect(config(&server, Token::new(vec![b'x'; 4097]))).await;
    assert!(matches!(long, Err(ConnectError::TokenTooLong { len: 4097, limit: 4096 })), "{long:?}");
}

#[tokio::test]
async fn an_application_that_takes_no_events_holds_the_server_back_and_loses_nothing() {
    const PUSHES: u32 = 2000;
    let mut server = Server::start(Scheme::Tcp).await;
    let mut config = config(&server, identity());
    config.events_max = 4.try_into().unwrap();
    config.heartbeat_interval = Some(Duration::from_millis(50));
    config.heartbeat_timeout = Duration::from_millis(300);
    let (client, mut events) = Client::connect(config).await.unwrap();
    let peer = server.peer().await;
    let filler = vec![b'.'; 16 * 1024];
    for number in 0..PUSHES {
        let body = [&number.to_be_bytes()[..], &filler[..]].concat();
        peer.push(1000, 0, &body);
    }
    while client.stats().pauses == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // More than the heartbeat's patience: a client that does not read must not take silence for death.
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert!(client.stats().pushes <= 5, "{:?}", client.stats());
    let mut next = 0_u32;
    while next < PUSHES {
        match event(&mut events).await {
            Event::Push(push) => {
                assert_eq!(push.body[..4], next.to_be_bytes());
                next += 1;
            }
            Event::Connected { .. } | Event::Online(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(client.stats().connected, 1);
}

#[tokio::test]
async fn an_application_without_interest_in_events_still_makes_requests() {
    let mut server = Server::start(Scheme::Tcp).await;
    let mut config = config(&server, identity());
    config.events_max = 1.try_into().unwrap();
    let (client, events) = Client::connect(config).await.unwrap();
    drop(events);
    let mut peer = server.peer().await;
    for _ in 0..20 {
        peer.push(1000, 0, b"nobody listens");
    }
    assert_eq!(client.send(Operation(1000), "x").await.unwrap(), "x");
    assert!(client.stats().events_discarded >= 20, "{:?}", client.stats());
    drop(client);
    assert!(matches!(peer.seen().await, Seen::Upstream(..)));
    assert_eq!(peer.seen().await, Seen::Gone, "with the last handle the client ends");
}

#[tokio::test]
async fn without_handles_the_client_goes_on_receiving() {
    let mut server = Server::start(Scheme::Tcp).await;
    let (client, mut events) = Client::connect(config(&server, identity())).await.unwrap();
    drop(client);
    let mut peer = server.peer().await;
    expect_connected(&mut events).await;
    peer.push(1000, 0, b"still here");
    expect_push(&mut events, 1000, b"still here").await;
    drop(events);
    assert_eq!(peer.seen().await, Seen::Gone);
}

#[tokio::test]
async fn a_dropped_send_disturbs_no_other() {
    let mut server = Server::start(Scheme::Tcp).await;
    let (client, mut events) = Client::connect(config(&server, identity())).await.unwrap();
    let mut peer = server.peer().await;
    expect_connected(&mut events).await;
    drop(client.send(Operation(1000), "never polled"));
    for number in 0..50 {
        // Polled once, so that it is with the task, and dropped.
        let dropped = client.send(Operation(1000), format!("dropped {number}"));
        let mut dropped = Box::pin(dropped);
        assert!(
            std::future::poll_fn(|cx| std::task::Poll::Ready(dropped.as_mut().poll(cx).is_pending())).await
        );
        if number % 2 == 0 {
            tokio::task::yield_now().await;
        }
        drop(dropped);
        let body = format!("kept {number}");
        assert_eq!(client.send(Operation(1000), body.clone()).await.unwrap(), body);
    }
    client.close().await;
    loop {
        match peer.seen().await {
            Seen::Upstream(_, _, body) => assert_ne!(body, b"never polled"),
            Seen::Gone => break,
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_late_reply_goes_to_nobody() {
    let mut server = Server::start(Scheme::Tcp).await;
    let mut config = config(&server, identity());
    config.request_timeout = Duration::from_millis(50);
    let (client, mut events) = Client::connect(config).await.unwrap();
    let mut peer = server.peer().await;
    expect_connected(&mut events).await;
    assert_eq!(client.send(Operation(1001), "x").await, Err(SendError::TimedOut));
    let Seen::Upstream(1001, sequence, _) = peer.seen().await else { panic!("not seen") };
    peer.push(1001, sequence, b"late");
    peer.push(1000, 0, b"a push behind it");
    expect_push(&mut events, 1000, b"a push behind it").await;
    assert_eq!(client.stats().replies_late, 1);
}

#[tokio::test]
async fn a_request_that_the_server_refuses_says_why() {
    let mut server = Server::start(Scheme::Ws).await;
    let (client, mut events) = Client::connect(config(&server, identity())).await.unwrap();
    let mut peer = server.peer().await;
    expect_connected(&mut events).await;
    let asking = client.clone();
    let request = tokio::spawn(async move { asking.send(Operation(1001), "x").await });
    let Seen::Upstream(1001, sequence, _) = peer.seen().await else { panic!("not seen") };
    peer.push(25, sequence, br#"{"code":4001,"message":"too fast","retry_after_ms":250}"#);
    match request.await.unwrap() {
        Err(SendError::Refused(error)) => {
            assert_eq!((error.code, error.message.as_str()), (4001, "too fast"));
            assert_eq!(error.retry_after, Some(Duration::from_millis(250)));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(client.send(Operation(7), "").await, Err(SendError::Reserved(7)));
    let long = client.send(Operation(1000), vec![0; 4097]).await;
    assert_eq!(long, Err(SendError::BodyTooLong { len: 4097, limit: 4096 }));
}

#[tokio::test]
async fn heartbeats_go_out_by_themselves_and_a_silent_server_is_left() {
    let mut server = Server::start(Scheme::Tls).await;
    let mut config = config(&server, identity());
    config.heartbeat_interval = Some(Duration::from_millis(30));
    config.heartbeat_timeout = Duration::from_millis(200);
    let (_client, mut events) = Client::connect(config).await.unwrap();
    let mut peer = server.peer().await;
    expect_connected(&mut events).await;
    for _ in 0..3 {
        assert!(matches!(event(&mut events).await, Event::Online(ONLINE)));
        assert_eq!(peer.seen().await, Seen::Heartbeat);
    }
    peer.order(Order::Freeze);
    loop {
        match event(&mut events).await {
            Event::Online(_) => {}
            Event::Disconnected { reason, retry_in } => {
                assert!(matches!(reason, DisconnectReason::HeartbeatLost), "{reason:?}");
                assert!(retry_in.is_some());
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    server.peer().await;
}

#[tokio::test]
async fn a_server_that_nobody_vouches_for_is_not_trusted() {
    let server = Server::start(Scheme::Wss).await;
    let stranger = Server::start(Scheme::Wss).await;
    let mut config = config(&server, identity());
    config.tls_roots = TlsRoots::Pem(stranger.roots.clone());
    match Client::connect(config).await {
        Err(ConnectError::Io { source, .. }) => {
            assert!(source.to_string().contains("certificate"), "{source}")
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn endpoints_are_tried_in_order_until_one_answers() {
    let gone = Server::start(Scheme::Tcp).await.endpoint.clone();
    let wrong = Server::start(Scheme::Tcp).await;
    let mut right = Server::start(Scheme::Ws).await;
    // A byte stream where WebSocket is expected answers nothing; its server waits for a token.
    let websocket_to_stream = format!("ws://{}/sub", wrong.endpoint.authority()).parse().unwrap();
    let mut config = config(&right, identity());
    config.target = Target::Endpoints(vec![gone, websocket_to_stream, right.endpoint.clone()]);
    config.connect_timeout = Duration::from_millis(500);
    let (_client, mut events) = Client::connect(config).await.unwrap();
    right.peer().await;
    expect_connected(&mut events).await;
}

#[tokio::test]
async fn the_node_list_tells_where_to_go() {
    let mut comet = Server::start(Scheme::Ws).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let port = comet.endpoint.port();
    tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = vec![0; 1000];
        let len = stream.read(&mut request).await.unwrap();
        assert!(request[..len].starts_with(b"GET /goim/nodes/weighted?platform=ios HTTP/1.1\r\n"));
        let body = format!(
            r#"{{"code":0,"message":"","data":{{"ws_port":{port},"heartbeat":1,"nodes":["127.0.0.1"]}}}}"#
        );
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        stream.write_all(answer.as_bytes()).await.unwrap();
    });
    let mut source = NodeSource::new(url, Scheme::Ws);
    source.platform = Some("ios".to_owned());
    let (_client, mut events) = Client::connect(ClientConfig::new(source, identity())).await.unwrap();
    let peer = comet.peer().await;
    expect_connected(&mut events).await;
    // The heartbeat interval is the list's, and the last list serves when logic is gone.
    assert!(matches!(event(&mut events).await, Event::Online(ONLINE)));
    peer.close(CloseReason::Shutdown, "");
    assert!(matches!(event(&mut events).await, Event::Disconnected { retry_in: Some(_), .. }));
    comet.peer().await;
}
