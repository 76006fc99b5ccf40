//! Peers that are not there, go, come back or hang; and the end of a server.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use goim_ports::{CometError, CometPort, KeyPush, Operation, PacketBuf};

use super::*;

fn push() -> KeyPush {
    let packet = PacketBuf::push(Operation(1), Bytes::new());
    KeyPush { keys: vec!["k".into()], operation: Operation(1), packet, accepted_at: None }
}

#[tokio::test]
async fn a_comet_that_is_gone_is_unavailable_and_found_again_when_it_is_back() {
    let comet = Arc::new(FakeComet::default());
    let mut served = Served::comet(&comet).await;
    let address = served.address.clone();
    let remote = GrpcComet::new(&address, ClientConfig::default()).unwrap();
    for _ in 0..3 {
        remote.push(push()).await.unwrap();
        served.stop().await;
        let error = remote.push(push()).await.unwrap_err();
        assert!(matches!(error, CometError::Unavailable(_)), "{error:?}");
        served = Served::at(&address, comet_service(Arc::clone(&comet) as Arc<_>), ServerConfig::default()).await;
    }
    remote.push(push()).await.unwrap();
}

#[tokio::test]
async fn a_comet_that_does_not_answer_is_given_a_deadline() {
    let comet = Arc::new(FakeComet::default());
    let served = Served::comet(&comet).await;
    let config = ClientConfig { call_deadline: Duration::from_millis(50), ..ClientConfig::default() };
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

/// A peer that takes the connection and says nothing: as one whose machine has lost its network.
#[tokio::test]
async fn a_dead_connection_is_replaced() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let config =
        ClientConfig { call_deadline: Duration::from_millis(50), unanswered_max: 2, ..ClientConfig::default() };
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
    let serving =
        serve(listener, ServerConfig::default(), comet_service(comet as Arc<_>), std::future::pending::<()>());
    tokio::spawn(serving);
    let start = Instant::now();
    while remote.push(push()).await.is_err() {
        assert!(start.elapsed() < Duration::from_secs(10));
    }
}

#[tokio::test]
async fn a_stopping_server_lets_calls_end_but_not_for_ever() {
    let comet = Arc::new(FakeComet::default());
    comet.hangs.store(true, Ordering::Relaxed);
    let config = ServerConfig { grace: Duration::from_millis(200), ..ServerConfig::default() };
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
