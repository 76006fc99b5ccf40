//! Peers that are unreachable, stop, restart or hang; and the shutdown of a server.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use goim_ports::{CometError, CometPort, KeyPush, Operation, PacketBuf, Payload};

use tokio::net::TcpStream;
use tonic::codegen::http;

use super::*;

fn push() -> KeyPush {
    let packet = PacketBuf::push(Operation(1), Bytes::new());
    KeyPush {
        keys: vec!["k".into()],
        operation: Operation(1),
        payload: Payload::plain(packet),
        accepted_at: None,
    }
}

#[tokio::test]
async fn a_stopped_comet_is_unavailable_until_it_restarts() {
    let comet = Arc::new(FakeComet::default());
    let mut served = Served::comet(&comet).await;
    let address = served.address.clone();
    let remote = GrpcComet::new(&address, ClientConfig::default()).unwrap();
    for _ in 0..3 {
        remote.push(push()).await.unwrap();
        served.stop().await;
        let error = remote.push(push()).await.unwrap_err();
        assert!(matches!(error, CometError::Unavailable(_)), "{error:?}");
        served =
            Served::at(&address, comet_service(Arc::clone(&comet) as Arc<_>), ServerConfig::default()).await;
    }
    remote.push(push()).await.unwrap();
}

#[tokio::test]
async fn a_comet_that_does_not_answer_times_out() {
    let comet = Arc::new(FakeComet::default());
    let served = Served::comet(&comet).await;
    let config = ClientConfig { call_timeout: Duration::from_millis(50), ..ClientConfig::default() };
    let remote = GrpcComet::new(&served.address, config).unwrap();
    comet.hangs.store(true, Ordering::Relaxed);
    for _ in 0..3 {
        let start = Instant::now();
        assert_eq!(remote.push(push()).await, Err(CometError::Timeout));
        assert!(start.elapsed() >= Duration::from_millis(50));
    }
    comet.hangs.store(false, Ordering::Relaxed);
    remote.push(push()).await.unwrap();
}

/// A peer that accepts the connection and sends nothing: as if its machine had lost the network.
#[tokio::test]
async fn a_dead_connection_is_replaced() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let config = ClientConfig {
        call_timeout: Duration::from_millis(50),
        unanswered_max: 2,
        ..ClientConfig::default()
    };
    let remote = GrpcComet::new(&address, config).unwrap();
    let silent = tokio::spawn(async move {
        let first = listener.accept().await.unwrap();
        // The second connection is served.
        (first, listener)
    });
    for _ in 0..2 {
        assert_eq!(remote.push(push()).await, Err(CometError::Timeout));
    }
    let (_first, listener) = silent.await.unwrap();
    let comet: Arc<FakeComet> = Arc::default();
    let serving = serve(
        listener,
        ServerConfig::default(),
        comet_service(comet as Arc<_>),
        std::future::pending::<()>(),
    );
    tokio::spawn(serving);
    let start = Instant::now();
    while remote.push(push()).await.is_err() {
        assert!(start.elapsed() < Duration::from_secs(10));
    }
}

/// goim's clients ping every ten seconds, even without a call in flight. A server that counts pings
/// closes after four.
#[tokio::test]
async fn a_client_may_ping_as_often_as_it_likes() {
    let comet = Arc::new(FakeComet::default());
    let served = Served::comet(&comet).await;
    let socket = TcpStream::connect(&served.address).await.unwrap();
    let (mut client, mut connection) = h2::client::handshake(socket).await.unwrap();
    let mut pings = connection.ping_pong().unwrap();
    let connection = tokio::spawn(connection);
    for _ in 0..100 {
        pings.ping(h2::Ping::opaque()).await.unwrap();
    }
    // The requests of a Go client, header by header; the message is the one of row 68.
    for _ in 0..2 {
        let request = http::Request::post(format!("http://{}/goim.comet.Comet/PushMsg", served.address))
            .header("content-type", "application/grpc")
            .header("user-agent", "grpc-go/1.22.3")
            .header("te", "trailers");
        let (reply, mut body) = client.send_request(request.body(()).unwrap(), false).unwrap();
        let message = "0a026b31121b08011009221500000015001000010000 03e80000000068656c6c6f18e807";
        body.send_data(hex(&format!("0000000024{message}")), true).unwrap();
        let mut reply = reply.await.unwrap();
        assert_eq!(reply.status(), http::StatusCode::OK);
        assert_eq!(reply.headers()["content-type"], "application/grpc");
        assert!(reply.headers().get("grpc-encoding").is_none(), "goim's job cannot read a compressed reply");
        assert_eq!(reply.body_mut().data().await.unwrap().unwrap(), hex("0000000000"));
        let trailers = reply.body_mut().trailers().await.unwrap().unwrap();
        assert_eq!(trailers["grpc-status"], "0");
        pings.ping(h2::Ping::opaque()).await.unwrap();
    }
    assert_eq!(comet.take_calls().len(), 2);
    assert!(!connection.is_finished());
}

#[tokio::test]
async fn a_stopping_server_lets_calls_end_but_not_for_ever() {
    let comet = Arc::new(FakeComet::default());
    comet.hangs.store(true, Ordering::Relaxed);
    let config = ServerConfig { connection_age_grace: Duration::from_millis(200), ..ServerConfig::default() };
    let mut served = Served::at("127.0.0.1:0", comet_service(Arc::clone(&comet) as Arc<_>), config).await;
    let remote = GrpcComet::new(&served.address, ClientConfig::default()).unwrap();
    let call = tokio::spawn(remote.push(push()).into_future());
    while comet.calls.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    let start = Instant::now();
    served.stop().await;
    assert!(start.elapsed() >= Duration::from_millis(200), "{:?}", start.elapsed());
    call.abort();
}
