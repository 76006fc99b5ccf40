//! The services over real sockets: calls captured from goim, calls of our own clients, and
//! failures.

mod backend;
mod captured;
mod failures;
mod fakes;
mod ports;

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::client::Grpc;
use tonic::codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use super::*;
use fakes::{FakeComet, FakeLogic};

/// A server on an ephemeral port.
struct Served {
    address: String,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<(), ServeError>>,
}

impl Served {
    async fn new(services: Routes) -> Self {
        Self::at("127.0.0.1:0", services, ServerConfig::default()).await
    }

    async fn at(address: &str, services: Routes, config: ServerConfig) -> Self {
        // After a restart another process may have the port.
        let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
        let listener = loop {
            match TcpListener::bind(address).await {
                Ok(listener) => break listener,
                Err(error) => assert!(std::time::Instant::now() < until, "{address}: {error}"),
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        };
        let address = listener.local_addr().unwrap().to_string();
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(serve(listener, config, services, async { drop(stopped.await) }));
        Self { address, stop: Some(stop), task }
    }

    async fn comet(comet: &Arc<FakeComet>) -> Self {
        Self::new(comet_service(Arc::clone(comet) as Arc<_>)).await
    }

    async fn logic(logic: &Arc<FakeLogic>) -> Self {
        Self::new(logic_service(Arc::clone(logic) as Arc<_>, fakes::nodes())).await
    }

    fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.address)).unwrap().connect_lazy()
    }

    async fn stop(&mut self) {
        self.stop.take();
        (&mut self.task).await.unwrap().unwrap();
    }
}

/// Sends an encoded message and returns the encoded reply.
async fn raw(channel: Channel, path: &str, message: Bytes, gzip: bool) -> Result<Bytes, Status> {
    let mut client = Grpc::new(channel).max_encoding_message_size(usize::MAX);
    if gzip {
        client =
            client.send_compressed(CompressionEncoding::Gzip).accept_compressed(CompressionEncoding::Gzip);
    }
    client.ready().await.map_err(|error| Status::from_error(error.into()))?;
    let path: PathAndQuery = path.parse().unwrap();
    Ok(client.unary(Request::new(message), path, RawCodec).await?.into_inner())
}

struct RawCodec;

impl Codec for RawCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(message);
        Ok(())
    }
}

impl Decoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

fn hex(text: &str) -> Bytes {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks_exact(2).map(byte).collect::<Vec<_>>().into()
}
