//! goim's service `goim.comet.Comet` over a comet.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use goim_ports::{Broadcast, CometError, CometPort, KeyPush, Operation, RoomId, RoomPush, SessionKey};
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use super::convert::{accepted_at_of, packet_of, payload_of};
use super::proto::cluster::{
    DescribeReply, DescribeReq, MessagesMissedReply, MessagesMissedReq, PushManyReply, PushManyReq,
    RoomMember, RoomMembersReply, RoomMembersReq, RoomsRevision, RoomsSinceReply, RoomsSinceReq, StripeDelta,
    comet_server as cluster_server,
};
use super::proto::comet::comet_server::{Comet, CometServer};
use super::proto::comet::{
    BroadcastReply, BroadcastReq, BroadcastRoomReply, BroadcastRoomReq, PushMsgReply, PushMsgReq, RoomsReply,
    RoomsReq,
};
use super::server::accepting;
use super::status;

struct CometService(Arc<dyn CometPort>);

/// Creates the service, for [`super::serve`].
///
/// Sends the packet of the request, with its version, operation and sequence: a backend may call
/// directly.
#[must_use]
pub fn comet_service(comet: Arc<dyn CometPort>) -> Routes {
    let own = accepting!(cluster_server::CometServer::new(CometService(Arc::clone(&comet))));
    Routes::new(accepting!(CometServer::new(CometService(comet)))).add_service(own)
}

fn reply<T>(answer: Result<(), CometError>, reply: T) -> Result<Response<T>, Status> {
    answer.map(|()| Response::new(reply)).map_err(|error| status::from_comet(&error))
}

#[allow(clippy::result_large_err)]
fn push_of(request: PushMsgReq) -> Result<KeyPush, Status> {
    let (Some(proto), false) = (request.proto, request.keys.is_empty()) else {
        return Err(Status::unknown(status::PUSH_ARGUMENTS));
    };
    let payload = payload_of(packet_of(proto), request.extension);
    Ok(KeyPush {
        keys: request.keys.into_iter().map(SessionKey::from).collect(),
        operation: Operation(request.proto_op),
        payload: payload.ok_or_else(|| Status::unknown(status::PUSH_ARGUMENTS))?,
        accepted_at: accepted_at_of(request.accepted_at),
    })
}

#[tonic::async_trait]
impl Comet for CometService {
    async fn push_msg(&self, request: Request<PushMsgReq>) -> Result<Response<PushMsgReply>, Status> {
        let push = push_of(request.into_inner())?;
        reply(self.0.push(push).await, PushMsgReply {})
    }

    async fn broadcast(&self, request: Request<BroadcastReq>) -> Result<Response<BroadcastReply>, Status> {
        let request = request.into_inner();
        let Some(proto) = request.proto else {
            return Err(Status::unknown(status::BROADCAST_ARGUMENTS));
        };
        let payload = payload_of(packet_of(proto), request.extension);
        let broadcast = Broadcast {
            operation: Operation(request.proto_op),
            payload: payload.ok_or_else(|| Status::unknown(status::BROADCAST_ARGUMENTS))?,
            accepted_at: accepted_at_of(request.accepted_at),
            speed: u32::try_from(request.speed).ok().and_then(NonZeroU32::new),
        };
        reply(self.0.broadcast(broadcast).await, BroadcastReply {})
    }

    async fn broadcast_room(
        &self,
        request: Request<BroadcastRoomReq>,
    ) -> Result<Response<BroadcastRoomReply>, Status> {
        let request = request.into_inner();
        let (Some(proto), false) = (request.proto, request.room_id.is_empty()) else {
            return Err(Status::unknown(status::ROOM_ARGUMENTS));
        };
        let packet = packet_of(proto);
        let operation = packet.carried_operation();
        let payload = payload_of(packet, request.extension);
        let push = RoomPush {
            room: request.room_id.into(),
            operation,
            payload: payload.ok_or_else(|| Status::unknown(status::ROOM_ARGUMENTS))?,
            accepted_at: accepted_at_of(request.accepted_at),
        };
        reply(self.0.push_room(push).await, BroadcastRoomReply {})
    }

    async fn rooms(&self, _: Request<RoomsReq>) -> Result<Response<RoomsReply>, Status> {
        let rooms = self.0.rooms().await.map_err(|error| status::from_comet(&error))?;
        let rooms = rooms.into_iter().map(|room| (room.to_string(), true)).collect();
        Ok(Response::new(RoomsReply { rooms }))
    }
}

#[tonic::async_trait]
impl cluster_server::Comet for CometService {
    async fn push_many(&self, request: Request<PushManyReq>) -> Result<Response<PushManyReply>, Status> {
        let pushes = request.into_inner().pushes.into_iter().map(push_of).collect::<Result<Vec<_>, _>>()?;
        // Lanes ensure that the caller has no other call for these keys in flight.
        for push in self.0.push_now(pushes) {
            self.0.push(push).await.map_err(|error| status::from_comet(&error))?;
        }
        Ok(Response::new(PushManyReply {}))
    }

    async fn rooms_since(
        &self,
        request: Request<RoomsSinceReq>,
    ) -> Result<Response<RoomsSinceReply>, Status> {
        let known = request.into_inner().known.unwrap_or_default();
        let known = goim_ports::RoomsRevision { epoch: known.epoch, stripes: known.stripes };
        let delta = self.0.rooms_since(known).await.map_err(|error| status::from_comet(&error))?;
        let texts = |rooms: Vec<RoomId>| rooms.iter().map(ToString::to_string).collect();
        let stripe = |delta: goim_ports::StripeDelta| StripeDelta {
            stripe: delta.stripe,
            complete: delta.complete,
            added: texts(delta.added),
            removed: texts(delta.removed),
        };
        let goim_ports::RoomsRevision { epoch, stripes } = delta.version;
        Ok(Response::new(RoomsSinceReply {
            version: Some(RoomsRevision { epoch, stripes }),
            stripes: delta.stripes.into_iter().map(stripe).collect(),
        }))
    }

    async fn messages_missed(
        &self,
        request: Request<MessagesMissedReq>,
    ) -> Result<Response<MessagesMissedReply>, Status> {
        let ago = Duration::from_millis(request.into_inner().ago_ms);
        reply(self.0.messages_missed(ago).await, MessagesMissedReply {})
    }

    async fn room_members(
        &self,
        request: Request<RoomMembersReq>,
    ) -> Result<Response<RoomMembersReply>, Status> {
        let RoomMembersReq { room, limit } = request.into_inner();
        let found = self.0.room_members(room.into(), limit as usize).await;
        let found = found.map_err(|error| status::from_comet(&error))?;
        let member =
            |member: goim_ports::RoomMember| RoomMember { mid: member.mid.0, key: member.key.to_string() };
        let members = found.members.into_iter().map(member).collect();
        Ok(Response::new(RoomMembersReply { members, count: found.count }))
    }

    async fn describe(&self, _: Request<DescribeReq>) -> Result<Response<DescribeReply>, Status> {
        let node = self.0.describe().await.map_err(|error| status::from_comet(&error))?;
        Ok(Response::new(DescribeReply {
            server: node.server.to_string(),
            region: node.region,
            zone: node.zone,
            env: node.env,
            public_addrs: node.public_addrs,
            weight: node.weight,
            offline: node.offline,
            connections: node.connections,
            addresses: node.addresses,
        }))
    }
}
