//! A comet on another machine, as job sees it.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use goim_ports::{
    Broadcast, Call, CometError, CometNode, CometPort, KeyPush, Mid, RoomId, RoomMember, RoomMembers,
    RoomPush, RoomsDelta, RoomsRevision, StripeDelta,
};
use tonic::transport::Channel;

use super::address::AddressError;
use super::channel::{ClientConfig, Connection, REPLY_BYTES_MAX};
use super::convert::{extension_of, micros_of, primary_proto_of};
use super::proto::cluster::{
    self, DescribeReq, MessagesMissedReq, PushManyReq, RoomMembersReq, RoomsSinceReq,
    comet_client as cluster_client,
};
use super::proto::comet::comet_client::CometClient;
use super::proto::comet::{BroadcastReq, BroadcastRoomReq, PushMsgReq, RoomsReq};
use super::status;

/// A comet behind its RPC address. One connection; every call has a deadline.
#[derive(Debug, Clone)]
pub struct GrpcComet {
    connection: Arc<Connection>,
}

impl GrpcComet {
    /// Creates a client of the comet at `address`, for example `grpc://10.0.0.1:3109`. Connects
    /// with the first call.
    ///
    /// # Errors
    /// [`AddressError`] if the address is invalid. An unreachable comet fails the first call.
    pub fn new(address: &str, config: ClientConfig) -> Result<Self, AddressError> {
        Ok(Self { connection: Arc::new(Connection::new(address, config)?) })
    }

    fn call<T, U, F>(
        &self,
        call: impl FnOnce(CometClient<Channel>) -> F + Send + 'static,
        answer: impl FnOnce(T) -> U + Send + 'static,
    ) -> Call<Result<U, CometError>>
    where
        T: Send + 'static,
        F: Future<Output = Result<tonic::Response<T>, tonic::Status>> + Send + 'static,
    {
        let connection = Arc::clone(&self.connection);
        Call::pending(async move {
            let reply = connection
                .call(|channel| call(CometClient::new(channel).max_decoding_message_size(REPLY_BYTES_MAX)))
                .await;
            reply.map(answer).map_err(|error| status::to_comet(&error))
        })
    }
}

fn request_of(push: KeyPush) -> PushMsgReq {
    PushMsgReq {
        keys: push.keys.iter().map(ToString::to_string).collect(),
        extension: extension_of(&push.payload),
        proto: Some(primary_proto_of(push.payload, push.operation)),
        proto_op: push.operation.0,
        accepted_at: micros_of(push.accepted_at),
    }
}

impl CometPort for GrpcComet {
    fn push_many(&self, pushes: Vec<KeyPush>) -> Call<Result<(), CometError>> {
        let connection = Arc::clone(&self.connection);
        let request = PushManyReq { pushes: pushes.into_iter().map(request_of).collect() };
        Call::pending(async move {
            let call =
                |channel| async move { cluster_client::CometClient::new(channel).push_many(request).await };
            connection.call(call).await.map(drop).map_err(|error| status::to_comet(&error))
        })
    }

    fn push(&self, push: KeyPush) -> Call<Result<(), CometError>> {
        let request = request_of(push);
        self.call(async move |mut comet| comet.push_msg(request).await, drop)
    }

    fn broadcast(&self, broadcast: Broadcast) -> Call<Result<(), CometError>> {
        let speed = broadcast.speed.map_or(0, NonZeroU32::get);
        let request = BroadcastReq {
            proto_op: broadcast.operation.0,
            extension: extension_of(&broadcast.payload),
            proto: Some(primary_proto_of(broadcast.payload, broadcast.operation)),
            speed: i32::try_from(speed).unwrap_or(i32::MAX),
            accepted_at: micros_of(broadcast.accepted_at),
        };
        self.call(async move |mut comet| comet.broadcast(request).await, drop)
    }

    fn push_room(&self, push: RoomPush) -> Call<Result<(), CometError>> {
        let request = BroadcastRoomReq {
            room_id: push.room.to_string(),
            extension: extension_of(&push.payload),
            proto: Some(primary_proto_of(push.payload, push.operation)),
            accepted_at: micros_of(push.accepted_at),
        };
        self.call(async move |mut comet| comet.broadcast_room(request).await, drop)
    }

    fn rooms(&self) -> Call<Result<Vec<RoomId>, CometError>> {
        self.call(
            async |mut comet| comet.rooms(RoomsReq {}).await,
            |reply| reply.rooms.into_keys().map(RoomId::from).collect(),
        )
    }

    fn rooms_since(&self, known: RoomsRevision) -> Call<Result<RoomsDelta, CometError>> {
        let connection = Arc::clone(&self.connection);
        Call::pending(async move {
            let RoomsRevision { epoch, stripes } = known;
            let request = RoomsSinceReq { known: Some(cluster::RoomsRevision { epoch, stripes }) };
            let call = |channel| async move {
                let client = cluster_client::CometClient::new(channel);
                client.max_decoding_message_size(REPLY_BYTES_MAX).rooms_since(request).await
            };
            let reply = connection.call(call).await.map_err(|error| status::to_comet(&error))?;
            let rooms = |texts: Vec<String>| texts.into_iter().map(RoomId::from).collect();
            let stripe = |delta: cluster::StripeDelta| StripeDelta {
                stripe: delta.stripe,
                complete: delta.complete,
                added: rooms(delta.added),
                removed: rooms(delta.removed),
            };
            let cluster::RoomsRevision { epoch, stripes } = reply.version.unwrap_or_default();
            Ok(RoomsDelta {
                version: RoomsRevision { epoch, stripes },
                stripes: reply.stripes.into_iter().map(stripe).collect(),
            })
        })
    }

    fn messages_missed(&self, ago: Duration) -> Call<Result<(), CometError>> {
        let connection = Arc::clone(&self.connection);
        let request = MessagesMissedReq { ago_ms: u64::try_from(ago.as_millis()).unwrap_or(u64::MAX) };
        Call::pending(async move {
            let call = |channel| async move {
                cluster_client::CometClient::new(channel).messages_missed(request).await
            };
            connection.call(call).await.map(drop).map_err(|error| status::to_comet(&error))
        })
    }

    fn room_members(&self, room: RoomId, limit: usize) -> Call<Result<RoomMembers, CometError>> {
        let connection = Arc::clone(&self.connection);
        Call::pending(async move {
            let limit = u32::try_from(limit).unwrap_or(u32::MAX);
            let request = RoomMembersReq { room: room.to_string(), limit };
            let call = |channel| async move {
                let client = cluster_client::CometClient::new(channel);
                client.max_decoding_message_size(REPLY_BYTES_MAX).room_members(request).await
            };
            let reply = connection.call(call).await.map_err(|error| status::to_comet(&error))?;
            let member =
                |member: cluster::RoomMember| RoomMember { mid: Mid(member.mid), key: member.key.into() };
            Ok(RoomMembers { members: reply.members.into_iter().map(member).collect(), count: reply.count })
        })
    }

    fn describe(&self) -> Call<Result<CometNode, CometError>> {
        let connection = Arc::clone(&self.connection);
        Call::pending(async move {
            let call = |channel| async move {
                cluster_client::CometClient::new(channel).describe(DescribeReq {}).await
            };
            let reply = connection.call(call).await.map_err(|error| status::to_comet(&error))?;
            Ok(CometNode {
                server: reply.server.into(),
                region: reply.region,
                zone: reply.zone,
                env: reply.env,
                rpc_addrs: Vec::new(),
                public_addrs: reply.public_addrs,
                weight: reply.weight,
                offline: reply.offline,
                connections: reply.connections,
                addresses: reply.addresses,
                latest_timestamp: 0,
            })
        })
    }
}
