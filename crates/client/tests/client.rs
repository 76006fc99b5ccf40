//! The client against a test server over real sockets.

#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod server;

use std::time::Duration;

use goim_client::{
    AuthBody, Backoff, Client, ClientConfig, ConnectError, DisconnectReason, Event, Events, HeartbeatError,
    HttpError, Identity, Jitter, MemoryPositions, NodeSource, NodesError, Operation, Position, PositionStore,
    PositionStoreError, ReconnectPolicy, RoomError, Scheme, SendError, SyncConfig, SyncRules, Target,
    TimelineError, TlsRoots, Token, TokenProvider, TokenReason,
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
        jitter: Jitter::Proportional(0.5),
    });
    config.request_timeout = PATIENCE;
    config
}

async fn event(events: &mut Events) -> Event {
    let event = tokio::time::timeout(PATIENCE, events.recv()).await;
    event.expect("no event in time").expect("the client ended")
}

/// Waits until a condition holds that no event announces.
async fn until(condition: impl Fn() -> bool) {
    let polling = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, polling).await.expect("the condition holds in time");
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
    let end = tokio::time::timeout(PATIENCE, events.recv()).await.expect("no end in time");
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
        assert_eq!(peer.seen().await, Seen::Closed);
        expect_end(&mut events).await;
        assert_eq!(client.send(Operation(1000), "").await, Err(SendError::Closed));
    }
}

#[tokio::test]
async fn concurrent_requests_get_their_own_replies() {
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
async fn requests_wait_for_a_server_that_does_not_read() {
    let mut server = Server::start(Scheme::Wss).await;
    let mut config = config(&server, identity());
    config.requests_max = 4000.try_into().unwrap();
    let (client, _events) = Client::connect(config).await.unwrap();
    let peer = server.peer().await;
    peer.order(Order::Freeze);
    // 16 MB: more than the buffers of the system hold.
    let tasks: Vec<_> = (0..4000_u32)
        .map(|number| {
            let client = client.clone();
            tokio::spawn(async move {
                let body = [&number.to_be_bytes()[..], &[b'.'; 4000]].concat();
                assert_eq!(client.send(Operation(1000), body.clone()).await.unwrap(), body);
            })
        })
        .collect();
    until(|| client.stats().requests_delayed > 0).await;
    assert!(tasks.iter().all(|task| !task.is_finished()));
    peer.order(Order::Thaw);
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn a_reconnect_restores_room_and_subscriptions() {
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
async fn with_a_raw_token_the_state_is_restored_by_requests() {
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
async fn requests_in_flight_fail_with_their_connection() {
    let mut server = Server::start(Scheme::Tcp).await;
    let (client, mut events) = Client::connect(config(&server, identity())).await.unwrap();
    let mut peer = server.peer().await;
    expect_connected(&mut events).await;
    let asking = client.clone();
    let request = tokio::spawn(async move { asking.send(Operation(1001), "x").await });
    assert!(matches!(peer.seen().await, Seen::Upstream(1001, ..)));
    // The address is no longer served.
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
async fn changes_without_a_connection_are_part_of_the_next() {
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
    // An attempt may have been in progress during the changes; requests then follow its auth reply.
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
        assert!(!server.has_peer(), "it reconnected");
    }
}

#[tokio::test]
async fn a_draining_server_redirects_the_client() {
    let mut old = Server::start(Scheme::Ws).await;
    let mut new = Server::start(Scheme::Ws).await;
    let mut config = config(&old, identity());
    // The server's delay replaces a longer backoff as well as a shorter one.
    config.backoff = Some(Backoff { base_delay: PATIENCE * 2, max_delay: PATIENCE * 2, ..Backoff::GOIM });
    let (_client, mut events) = Client::connect(config).await.unwrap();
    let peer = old.peer().await;
    expect_connected(&mut events).await;
    peer.close(CloseReason::Draining, &format!(r#","delay_ms":30,"node":"{}""#, new.endpoint.authority()));
    match event(&mut events).await {
        Event::Disconnected { retry_in, .. } => assert_eq!(retry_in, Some(Duration::from_millis(30))),
        other => panic!("{other:?}"),
    }
    new.peer().await;
    assert!(!old.has_peer(), "it reconnected to the old node");
}

/// A provider whose tokens have the number of the call as their member.
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
async fn the_provider_is_called_only_when_the_server_asks_for_a_new_token() {
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
async fn without_a_provider_a_refused_token_stops_the_client() {
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
async fn a_full_event_queue_stops_reading_and_loses_nothing() {
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
    until(|| client.stats().pauses > 0).await;
    // Twice the heartbeat timeout: a client that does not read must not consider the server dead.
    tokio::time::pause();
    for _ in 0..12 {
        tokio::time::advance(Duration::from_millis(50)).await;
        tokio::task::yield_now().await;
    }
    tokio::time::resume();
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
async fn an_application_without_events_can_send_requests() {
    let mut server = Server::start(Scheme::Tcp).await;
    let mut config = config(&server, identity());
    config.events_max = 1.try_into().unwrap();
    let (client, events) = Client::connect(config).await.unwrap();
    drop(events);
    let mut peer = server.peer().await;
    for _ in 0..20 {
        peer.push(1000, 0, b"discarded");
    }
    assert_eq!(client.send(Operation(1000), "x").await.unwrap(), "x");
    assert!(client.stats().events_discarded >= 20, "{:?}", client.stats());
    drop(client);
    assert!(matches!(peer.seen().await, Seen::Upstream(..)));
    assert_eq!(peer.seen().await, Seen::Closed, "the client ends with its last handle");
}

#[tokio::test]
async fn without_handles_the_client_keeps_receiving() {
    let mut server = Server::start(Scheme::Tcp).await;
    let (client, mut events) = Client::connect(config(&server, identity())).await.unwrap();
    drop(client);
    let mut peer = server.peer().await;
    expect_connected(&mut events).await;
    peer.push(1000, 0, b"still here");
    expect_push(&mut events, 1000, b"still here").await;
    drop(events);
    assert_eq!(peer.seen().await, Seen::Closed);
}

#[tokio::test]
async fn a_dropped_send_does_not_affect_others() {
    let mut server = Server::start(Scheme::Tcp).await;
    let (client, mut events) = Client::connect(config(&server, identity())).await.unwrap();
    let mut peer = server.peer().await;
    expect_connected(&mut events).await;
    drop(client.send(Operation(1000), "never polled"));
    for number in 0..50 {
        // Polled once, so that the task has it, and dropped.
        let dropped = client.send(Operation(1000), format!("dropped {number}"));
        let mut dropped = Box::pin(dropped);
        assert!(
            std::future::poll_fn(|cx| std::task::Poll::Ready(dropped.as_mut().poll(cx).is_pending())).await
        );
        if number % 2 == 0 {
            tokio::task::yield_now().await;
        }
        drop(dropped);
        let body = format!("completed {number}");
        assert_eq!(client.send(Operation(1000), body.clone()).await.unwrap(), body);
    }
    client.close().await;
    loop {
        match peer.seen().await {
            Seen::Upstream(_, _, body) => assert_ne!(body, b"never polled"),
            Seen::Closed => break,
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_late_reply_is_discarded() {
    let mut server = Server::start(Scheme::Tcp).await;
    let mut config = config(&server, identity());
    config.request_timeout = Duration::from_millis(50);
    let (client, mut events) = Client::connect(config).await.unwrap();
    let mut peer = server.peer().await;
    expect_connected(&mut events).await;
    assert_eq!(client.send(Operation(1001), "x").await, Err(SendError::TimedOut));
    let Seen::Upstream(1001, sequence, _) = peer.seen().await else { panic!("not seen") };
    peer.push(1001, sequence, b"late");
    peer.push(1000, 0, b"a push after it");
    expect_push(&mut events, 1000, b"a push after it").await;
    assert_eq!(client.stats().replies_late, 1);
}

#[tokio::test]
async fn a_refused_request_has_the_servers_error() {
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
async fn heartbeats_are_periodic_and_a_silent_server_is_abandoned() {
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
async fn an_unknown_certificate_is_not_trusted() {
    let server = Server::start(Scheme::Wss).await;
    let other = Server::start(Scheme::Wss).await;
    let mut config = config(&server, identity());
    config.tls_roots = TlsRoots::Pem(other.roots.clone());
    match Client::connect(config).await {
        Err(ConnectError::Io { source, .. }) => {
            assert!(source.to_string().contains("certificate"), "{source}")
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn endpoints_are_tried_in_order() {
    let closed = Server::start(Scheme::Tcp).await.endpoint.clone();
    let wrong = Server::start(Scheme::Tcp).await;
    let mut right = Server::start(Scheme::Ws).await;
    // A TCP listener does not respond to a WebSocket handshake; it waits for a token.
    let websocket_to_stream = format!("ws://{}/sub", wrong.endpoint.authority()).parse().unwrap();
    let mut config = config(&right, identity());
    config.target = Target::Endpoints(vec![closed, websocket_to_stream, right.endpoint.clone()]);
    config.connect_timeout = Duration::from_millis(500);
    let (_client, mut events) = Client::connect(config).await.unwrap();
    right.peer().await;
    expect_connected(&mut events).await;
}

/// Serves one node list, over TLS if `acceptor` is given. Returns the address.
async fn serve_node_list(comet: &Server, acceptor: Option<tokio_rustls::TlsAcceptor>) -> String {
    use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

    async fn respond(mut stream: impl AsyncRead + AsyncWrite + Unpin, port: u16) {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            assert_ne!(stream.read_buf(&mut request).await.unwrap(), 0);
        }
        assert!(request.starts_with(b"GET /goim/nodes/weighted?platform=ios HTTP/1.1\r\n"));
        let nodes = format!(r#"{{"ws_port":{port},"heartbeat":1,"nodes":["127.0.0.1"]}}"#);
        let body = format!(r#"{{"code":0,"message":"","data":{nodes}}}"#);
        let response = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        stream.write_all(response.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
    }

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let port = comet.endpoint.port();
    let scheme = if acceptor.is_some() { "https" } else { "http" };
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        match acceptor {
            None => respond(stream, port).await,
            Some(acceptor) => {
                if let Ok(stream) = acceptor.accept(stream).await {
                    respond(stream, port).await;
                }
            }
        }
    });
    format!("{scheme}://{address}")
}

#[tokio::test]
async fn the_node_list_gives_the_endpoint_and_the_heartbeat_interval() {
    for https in [false, true] {
        let mut comet = Server::start(Scheme::Ws).await;
        let (acceptor, roots) = server::certificate();
        let url = serve_node_list(&comet, https.then_some(acceptor)).await;
        let source = NodeSource::new(url, Scheme::Ws).platform("ios");
        let mut config = ClientConfig::new(source, identity());
        config.tls_roots = TlsRoots::Pem(roots);
        let (_client, mut events) = Client::connect(config).await.unwrap();
        let peer = comet.peer().await;
        expect_connected(&mut events).await;
        assert!(matches!(event(&mut events).await, Event::Online(ONLINE)));
        // Logic is no longer available; the last list is used.
        peer.close(CloseReason::Shutdown, "");
        assert!(matches!(event(&mut events).await, Event::Disconnected { retry_in: Some(_), .. }));
        comet.peer().await;
    }
}

#[tokio::test]
async fn an_https_node_list_needs_a_trusted_certificate() {
    let comet = Server::start(Scheme::Ws).await;
    let (acceptor, _) = server::certificate();
    let source = NodeSource::new(serve_node_list(&comet, Some(acceptor)).await, Scheme::Ws);
    let refused = source.fetch(&TlsRoots::Pem(comet.roots.clone()), PATIENCE).await;
    match refused {
        Err(NodesError::Http(HttpError::Io(error))) => {
            assert!(error.to_string().contains("certificate"), "{error}")
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn without_a_node_list_the_first_retries_are_quick() {
    let closed = Server::start(Scheme::Tcp).await.endpoint.clone();
    let (client, mut events) = Client::start(ClientConfig::new(closed, identity())).unwrap();
    for ceiling in [500, 1000] {
        match event(&mut events).await {
            Event::ConnectFailed { retry_in: Some(delay), .. } => {
                assert!(delay <= Duration::from_millis(ceiling), "{delay:?}");
            }
            other => panic!("{other:?}"),
        }
    }
    client.close().await;
}

fn syncing(
    server: &Server,
    timelines: impl IntoIterator<Item = &'static str>,
    store: impl PositionStore,
) -> ClientConfig {
    let mut config = config(server, identity());
    config.sync = Some(SyncConfig::new(timelines, store));
    config
}

async fn expect_messages(events: &mut Events, timeline: &str, seqs: &[u64]) {
    match event(events).await {
        Event::Messages { timeline: received, messages, position } => {
            assert_eq!(received, timeline);
            assert_eq!(messages.iter().map(|message| message.seq).collect::<Vec<_>>(), seqs);
            assert_eq!(Some(&position.seq), seqs.last());
        }
        other => panic!("{other:?} instead of messages"),
    }
}

#[tokio::test]
async fn timelines_are_subscribed_and_unsubscribed_while_connected() {
    for scheme in [Scheme::Tcp, Scheme::Wss] {
        let mut server = Server::start(scheme).await;
        server.stored.store(3, std::sync::atomic::Ordering::SeqCst);
        let store = std::sync::Arc::new(MemoryPositions::default());
        store.save("live://5", Position { epoch: 1, seq: 2 }).await.unwrap();
        let config = syncing(&server, [], std::sync::Arc::clone(&store));
        let (client, mut events) = Client::connect(config).await.unwrap();
        let mut peer = server.peer().await;
        assert_eq!(peer.token()["resume"], serde_json::json!({}), "a client that syncs");
        expect_connected(&mut events).await;

        client.subscribe_timeline("live://5").await.unwrap();
        assert_eq!(peer.seen().await, Seen::Sync("live://5".to_owned(), 2));
        expect_messages(&mut events, "live://5", &[3]).await;
        assert_eq!(store.get("live://5").unwrap().seq, 2, "not processed yet");
        client.subscribe_timeline("live://5").await.unwrap();
        client.subscribe_timeline("live://6").await.unwrap();
        assert_eq!(peer.seen().await, Seen::Sync("live://6".to_owned(), 0));
        // Without a position, the server chooses the start: here the beginning.
        expect_messages(&mut events, "live://6", &[1, 2, 3]).await;
        assert_eq!(store.get("live://5").unwrap().seq, 3);

        client.unsubscribe_timeline("live://6").await.unwrap();
        client.unsubscribe_timeline("live://7").await.unwrap();
        events.save_position().await.unwrap();
        assert_eq!(store.get("live://6"), Some(Position { epoch: 1, seq: 3 }));
        peer.order(Order::Cut);
        assert!(matches!(event(&mut events).await, Event::Disconnected { .. }));
        let peer = server.peer().await;
        assert_eq!(peer.token()["resume"], serde_json::json!({"live://5": {"epoch": 1, "seq": 3}}));
        client.close().await;
    }
}

#[tokio::test]
async fn timelines_subscribed_without_a_connection_are_part_of_the_next() {
    let port = Server::start(Scheme::Tcp).await.endpoint.port();
    let endpoint = goim_client::Endpoint::new(Scheme::Tcp, "127.0.0.1", port).unwrap();
    let mut config = ClientConfig::new(endpoint, identity());
    config.backoff = Some(Backoff { base_delay: Duration::from_millis(20), ..Backoff::default() });
    config.sync = Some(SyncConfig::new(["mid://7", "live://8"], MemoryPositions::default()));
    let (client, mut events) = Client::start(config).unwrap();
    assert!(matches!(event(&mut events).await, Event::ConnectFailed { .. }));
    client.subscribe_timeline("live://9").await.unwrap();
    client.unsubscribe_timeline("live://8").await.unwrap();
    let mut server = Server::start_on(Scheme::Tcp, port).await;
    server.stored.store(1, std::sync::atomic::Ordering::SeqCst);
    let mut peer = server.peer().await;
    // The test server does not sync the positions in the token by itself, so the client requests
    // what the token did not contain, and the rest after its timeout. An attempt in progress during
    // the changes has an outdated token; then everything is requested.
    let resume = peer.token()["resume"].clone();
    if resume.get("live://9").is_some() {
        assert_eq!(resume.as_object().unwrap().keys().collect::<Vec<_>>(), ["live://9", "mid://7"]);
    } else {
        assert_eq!(peer.seen().await, Seen::Sync("live://9".to_owned(), 0));
    }
    client.close().await;
}

#[tokio::test]
async fn sync_is_disabled_without_a_configuration() {
    let server = Server::start(Scheme::Tcp).await;
    let (client, _events) = Client::connect(config(&server, identity())).await.unwrap();
    assert!(matches!(client.subscribe_timeline("live://1").await, Err(TimelineError::SyncDisabled)));
    assert!(matches!(client.unsubscribe_timeline("live://1").await, Err(TimelineError::SyncDisabled)));
}

/// A store whose loads fail a number of times, and whose saves always fail.
struct BrokenStore(std::sync::atomic::AtomicU32);

impl PositionStore for BrokenStore {
    async fn load(&self, _: &str) -> Result<Option<Position>, PositionStoreError> {
        let left = self.0.load(std::sync::atomic::Ordering::SeqCst);
        if left == 0 {
            return Ok(None);
        }
        self.0.store(left - 1, std::sync::atomic::Ordering::SeqCst);
        Err("no database".into())
    }

    async fn save(&self, _: &str, _: Position) -> Result<(), PositionStoreError> {
        Err("the disk is full".into())
    }
}

#[tokio::test]
async fn errors_of_the_position_store_reach_the_application() {
    let mut server = Server::start(Scheme::Tcp).await;
    server.stored.store(1, std::sync::atomic::Ordering::SeqCst);
    let failed = Client::connect(syncing(&server, ["mid://7"], BrokenStore(1.into()))).await;
    assert!(matches!(failed, Err(ConnectError::Positions { .. })), "{failed:?}");

    let mut config = syncing(&server, ["mid://7"], BrokenStore(2.into()));
    config.sync.as_mut().unwrap().rules =
        SyncRules { reply_timeout: Duration::from_millis(50), ..SyncRules::default() };
    let (client, mut events) = Client::start(config).unwrap();
    for _ in 0..2 {
        match event(&mut events).await {
            Event::ConnectFailed { error: ConnectError::Positions { timeline, .. }, retry_in: Some(_) } => {
                assert_eq!(timeline, "mid://7");
            }
            other => panic!("{other:?}"),
        }
    }
    expect_connected(&mut events).await;
    server.peer().await;
    expect_messages(&mut events, "mid://7", &[1]).await;
    match event(&mut events).await {
        Event::PositionNotSaved { timeline, position, error } => {
            assert_eq!((timeline.as_str(), position.seq), ("mid://7", 1));
            assert_eq!(error.to_string(), "the disk is full");
        }
        other => panic!("{other:?}"),
    }
    client.close().await;

    let config = syncing(&server, [], BrokenStore(1.into()));
    let (client, _events) = Client::connect(config).await.unwrap();
    let failed = client.subscribe_timeline("live://1").await;
    assert!(matches!(failed, Err(TimelineError::Store(_))), "{failed:?}");
    client.subscribe_timeline("live://1").await.unwrap();
}
