//! gRPC calls with messages written field by field, as goim's contract numbers them.

use std::net::SocketAddr;

use bytes::{Buf, BufMut};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Endpoint;
use tonic::{Request, Status};

use super::Packet;
use super::server::runtime;

/// Calls a method, for example `/goim.comet.Comet/PushMsg`, with the bytes of a message. Returns
/// the bytes of the answer.
///
/// # Errors
/// The status that the server answers.
pub fn call(addr: SocketAddr, method: &'static str, message: Vec<u8>) -> Result<Vec<u8>, Status> {
    runtime().block_on(async move {
        let endpoint = Endpoint::from_shared(format!("http://{addr}")).unwrap().timeout(super::DEADLINE);
        let mut client = tonic::client::Grpc::new(endpoint.connect().await.expect("a gRPC server"));
        client.ready().await.expect("a gRPC server");
        let path = PathAndQuery::from_static(method);
        client.unary(Request::new(message), path, Bytes).await.map(tonic::Response::into_inner)
    })
}

/// A number as a field.
pub fn number(field: u32, value: i64) -> Vec<u8> {
    [varint(u64::from(field) << 3), varint(value.cast_unsigned())].concat()
}

/// Bytes, a text or a message as a field.
pub fn bytes(field: u32, value: impl AsRef<[u8]>) -> Vec<u8> {
    let value = value.as_ref();
    [varint(u64::from(field) << 3 | 2), varint(value.len() as u64), value.to_vec()].concat()
}

/// `goim.protocol.Proto`.
pub fn proto(packet: &Packet) -> Vec<u8> {
    let numbers = [(1, i64::from(packet.ver)), (2, i64::from(packet.op)), (3, i64::from(packet.seq))];
    let mut message: Vec<u8> = numbers.into_iter().flat_map(|(field, value)| number(field, value)).collect();
    message.extend(bytes(4, &packet.body));
    message
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value > 0x7f {
        bytes.push(u8::try_from(value & 0x7f).unwrap() | 0x80);
        value >>= 7;
    }
    bytes.push(u8::try_from(value).unwrap());
    bytes
}

/// Messages that are bytes already.
struct Bytes;

impl Codec for Bytes {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, message: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&message);
        Ok(())
    }
}

impl Decoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut message = vec![0; buffer.remaining()];
        buffer.copy_to_slice(&mut message);
        Ok(Some(message))
    }
}
