//! goim's service `goim.logic.Logic` over logic.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use goim_ports::{
    ConnectRequest, LogicPort, Mid, OnlineReport, RefreshRequest, Schema, SessionRef, Upstream,
};
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use super::convert::{
    counts_of, event_of, map_of, packet_of, rooms_of, syncing_message_of, timeline_request_of,
};
use super::proto::cluster::logic_server::{Logic as ClusterLogic, LogicServer as ClusterServer};
use super::proto::cluster::{EventsReply, EventsReq, RefreshReply, RefreshReq, TimelineReply, TimelineReq};
use super::proto::logic::logic_server::{Logic, LogicServer};
use super::proto::logic::{
    ConnectReply, ConnectReq, DisconnectReply, DisconnectReq, HeartbeatReply, HeartbeatReq, NodesReply,
    NodesReq, OnlineReply, OnlineReq, ReceiveReply, ReceiveReq,
};
use super::server::accepting;
use super::status;

/// Returns the comets for a client, by platform and by the client's address.
pub type NodesFn = Arc<dyn Fn(&str, &str) -> NodesReply + Send + Sync>;

struct LogicService {
    logic: Arc<dyn LogicPort>,
    nodes: NodesFn,
}

/// Creates the service, for [`super::serve`].
///
/// A Go comet does not send the client's address, which is then `0.0.0.0`.
#[must_use]
pub fn logic_service(logic: Arc<dyn LogicPort>, nodes: NodesFn) -> Routes {
    let own = ClusterServer::new(OwnService { logic: Arc::clone(&logic) });
    Routes::new(accepting!(LogicServer::new(LogicService { logic, nodes }))).add_service(own)
}

/// The calls of our own comets.
struct OwnService {
    logic: Arc<dyn LogicPort>,
}

#[tonic::async_trait]
impl ClusterLogic for OwnService {
    async fn events(&self, request: Request<EventsReq>) -> Result<Response<EventsReply>, Status> {
        let events = request.into_inner().events.into_iter().map(event_of).collect();
        self.logic.events(events).await.map_err(status::from_logic)?;
        Ok(Response::new(EventsReply {}))
    }

    async fn refresh(&self, request: Request<RefreshReq>) -> Result<Response<RefreshReply>, Status> {
        let RefreshReq { mid, key, server, token, remote } = request.into_inner();
        let session = SessionRef { mid: Mid(mid), key: key.into(), server: server.into() };
        let request = RefreshRequest { session, token, remote: address_of(&remote) };
        let refreshed = self.logic.refresh(request).await.map_err(status::from_connect)?;
        let expires_at = refreshed.expires_at.map(|at| at.0);
        Ok(Response::new(RefreshReply { scope: rooms_of(refreshed.scope), expires_at }))
    }

    async fn timeline(&self, request: Request<TimelineReq>) -> Result<Response<TimelineReply>, Status> {
        let request = timeline_request_of(request.into_inner());
        let request = request.ok_or_else(|| Status::invalid_argument("the request names no call"))?;
        let body = self.logic.timeline(request).await.map_err(status::from_logic)?;
        Ok(Response::new(TimelineReply { body }))
    }
}

/// A Go comet does not send the client's address.
fn address_of(text: &str) -> IpAddr {
    text.parse().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
}

#[tonic::async_trait]
impl Logic for LogicService {
    async fn connect(&self, request: Request<ConnectReq>) -> Result<Response<ConnectReply>, Status> {
        let request = request.into_inner();
        let request = ConnectRequest {
            server: request.server.into(),
            cookie: request.cookie,
            user_agent: request.user_agent,
            token: request.token,
            remote: address_of(&request.remote),
        };
        let accepted = self.logic.connect(request).await.map_err(status::from_connect)?;
        Ok(Response::new(ConnectReply {
            mid: accepted.mid.0,
            key: accepted.key.to_string(),
            room_id: accepted.room.map(|room| room.to_string()).unwrap_or_default(),
            accepts: accepted.accepts.into_iter().map(|operation| operation.0).collect(),
            heartbeat: i64::try_from(accepted.heartbeat.as_nanos()).unwrap_or(i64::MAX),
            protover: accepted.protover.map(|version| i32::from(version.0)),
            rooms: accepted.rooms.iter().map(ToString::to_string).collect(),
            scope: rooms_of(accepted.scope),
            expires_at: accepted.expires_at.map(|at| at.0),
            syncing: accepted.syncing.map(|syncing| syncing_message_of(&syncing)),
        }))
    }

    async fn disconnect(&self, request: Request<DisconnectReq>) -> Result<Response<DisconnectReply>, Status> {
        let DisconnectReq { mid, key, server } = request.into_inner();
        let session = SessionRef { mid: Mid(mid), key: key.into(), server: server.into() };
        let has = self.logic.disconnect(session).await.map_err(status::from_logic)?;
        Ok(Response::new(DisconnectReply { has }))
    }

    async fn heartbeat(&self, request: Request<HeartbeatReq>) -> Result<Response<HeartbeatReply>, Status> {
        let HeartbeatReq { mid, key, server } = request.into_inner();
        let session = SessionRef { mid: Mid(mid), key: key.into(), server: server.into() };
        self.logic.heartbeat(session).await.map_err(status::from_logic)?;
        Ok(Response::new(HeartbeatReply {}))
    }

    async fn renew_online(&self, request: Request<OnlineReq>) -> Result<Response<OnlineReply>, Status> {
        let OnlineReq { server, room_count } = request.into_inner();
        let report = OnlineReport { server: server.into(), rooms: counts_of(room_count) };
        let totals = self.logic.renew_online(report).await.map_err(status::from_logic)?;
        let generation = totals.generation.map(|generation| generation.0);
        Ok(Response::new(OnlineReply { all_room_count: map_of(&totals.rooms), generation }))
    }

    async fn receive(&self, request: Request<ReceiveReq>) -> Result<Response<ReceiveReply>, Status> {
        let ReceiveReq { mid, proto, key, schema, negotiated } = request.into_inner();
        let packet = packet_of(proto.unwrap_or_default());
        let schema = u16::try_from(schema).unwrap_or(u16::MAX).max(Schema::FIRST.0);
        let (mid, key, schema) = (Mid(mid), key.into(), Schema(schema));
        let upstream = Upstream { mid, key, packet, schema, negotiated };
        let body = self.logic.receive(upstream).await.map_err(status::from_logic)?;
        Ok(Response::new(ReceiveReply { body }))
    }

    async fn nodes(&self, request: Request<NodesReq>) -> Result<Response<NodesReply>, Status> {
        let NodesReq { platform, client_ip } = request.into_inner();
        Ok(Response::new((self.nodes)(&platform, &client_ip)))
    }
}
