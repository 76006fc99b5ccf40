//! The backend as a service: its requests, and the meaning of its replies.

use std::sync::Mutex;
use std::time::Duration;

use goim_ports::{LogicError, Mid, Operation, PacketBuf, Schema, Sequence, Upstream, UpstreamPort};
use tonic::Response;

use super::*;
use crate::grpc::proto::backend::backend_server::{Backend, BackendServer};
use crate::grpc::proto::backend::{HandleReply, HandleReq};

/// A backend that replies as the body of the request asks.
#[derive(Default)]
struct Own(Arc<Mutex<Vec<HandleReq>>>);

#[tonic::async_trait]
impl Backend for Own {
    async fn handle(&self, request: Request<HandleReq>) -> Result<Response<HandleReply>, Status> {
        let request = request.into_inner();
        self.0.lock().unwrap().push(request.clone());
        match &request.body[..] {
            b"no" => Err(Status::permission_denied("no")),
            b"down" => Err(Status::unavailable("down")),
            b"hang" => std::future::pending().await,
            b"slow" => {
                tokio::time::sleep(Duration::from_millis(60)).await;
                Ok(Response::new(HandleReply { body: Bytes::from_static(b"at last") }))
            }
            body => Ok(Response::new(HandleReply { body: [b"answer to ", body].concat().into() })),
        }
    }
}

fn upstream(body: &'static [u8]) -> Upstream {
    let packet =
        PacketBuf { sequence: Sequence(9), ..PacketBuf::push(Operation(2000), Bytes::from_static(body)) };
    Upstream { mid: Mid(7), key: "ключ".into(), packet, schema: Schema(3), negotiated: true }
}

#[tokio::test]
async fn packets_reach_the_backend_and_replies_return() {
    let asked = Arc::new(Mutex::default());
    let served = Served::new(Routes::new(BackendServer::new(Own(Arc::clone(&asked))))).await;
    let backend = GrpcBackend::new(&format!("grpc://{}", served.address), ClientConfig::default()).unwrap();
    let send = async |body, time| backend.send(upstream(body), Duration::from_millis(time)).await;
    assert_eq!(send(b"hello", 2000).await, Ok(Bytes::from_static(b"answer to hello")));
    let expected = HandleReq {
        mid: 7,
        key: "ключ".to_owned(),
        operation: 2000,
        sequence: 9,
        schema: 3,
        body: Bytes::from_static(b"hello"),
    };
    assert_eq!(*asked.lock().unwrap(), [expected]);
    assert!(matches!(send(b"no", 2000).await, Err(LogicError::Failed(_))));
    assert!(matches!(send(b"down", 2000).await, Err(LogicError::Unavailable(_))));
    assert!(matches!(send(b"hang", 50).await, Err(LogicError::Late(_))));
    drop(served);
    let nobody = GrpcBackend::new("grpc://127.0.0.1:1", ClientConfig::default()).unwrap();
    assert!(matches!(
        nobody.send(upstream(b"x"), Duration::from_secs(1)).await,
        Err(LogicError::Unavailable(_))
    ));
    assert!(GrpcBackend::new("grpc://nowhere", ClientConfig::default()).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_drains_fails_no_call() {
    let asked = Arc::new(Mutex::default());
    // Every connection is drained, again and again, with calls in flight.
    let config =
        ServerConfig { connection_age_max: Some(Duration::from_millis(40)), ..ServerConfig::default() };
    let routes = Routes::new(BackendServer::new(Own(Arc::clone(&asked))));
    let served = Served::at("127.0.0.1:0", routes, config).await;
    let backend = GrpcBackend::new(&format!("grpc://{}", served.address), ClientConfig::default()).unwrap();
    let until = std::time::Instant::now() + Duration::from_secs(2);
    let callers: Vec<_> = (0..16)
        .map(|_| {
            let backend = backend.clone();
            tokio::spawn(async move {
                let mut calls = 0;
                while std::time::Instant::now() < until {
                    assert_eq!(
                        backend.send(upstream(b"slow"), Duration::from_secs(4)).await,
                        Ok(Bytes::from_static(b"at last"))
                    );
                    calls += 1;
                }
                calls
            })
        })
        .collect();
    let mut calls = 0;
    for caller in callers {
        calls += caller.await.unwrap();
    }
    assert!(calls > 100, "{calls} calls");
    assert_eq!(asked.lock().unwrap().len(), calls, "each was made once");
}
