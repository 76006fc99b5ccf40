//! A logic on another machine, as comet sees it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use goim_ports::{
    Accepted, Call, ConnectError, ConnectRequest, ExpiresAt, Generation, LifecycleEvent, LogicError,
    LogicPort, Mid, OnlineReport, OnlineTotals, Operation, RefreshRequest, Refreshed, RoomId, SessionRef,
    TimelineRequest, Upstream, Version,
};
use tonic::codec::CompressionEncoding;
use tonic::transport::Channel;
use tonic::{Response, Status};

use super::address::AddressError;
use super::channel::{ClientConfig, Connection, REPLY_BYTES_MAX};
use super::convert::{counts_of, event_message, map_of, proto_of, scope_of, syncing_of, timeline_req_of};
use super::proto::cluster::logic_client::LogicClient as ClusterClient;
use super::proto::cluster::{EventsReq, RefreshReq};
use super::proto::logic::logic_client::LogicClient;
use super::proto::logic::{ConnectReply, ConnectReq, DisconnectReq, HeartbeatReq, OnlineReq, ReceiveReq};
use super::status;

/// A logic behind its RPC address. One connection; every call has a deadline.
#[derive(Debug, Clone)]
pub struct GrpcLogic {
    connection: Arc<Connection>,
}

impl GrpcLogic {
    /// Creates a client of the logic at `address`, for example `grpc://10.0.0.2:3119`. Connects
    /// with the first call.
    ///
    /// # Errors
    /// [`AddressError`] if the address is invalid. An unreachable logic fails the first call.
    pub fn new(address: &str, config: ClientConfig) -> Result<Self, AddressError> {
        Ok(Self { connection: Arc::new(Connection::new(address, config)?) })
    }

    fn call<T, U, E, F>(
        &self,
        call: impl FnOnce(LogicClient<Channel>) -> F + Send + 'static,
        answer: impl FnOnce(T) -> U + Send + 'static,
        error: fn(&Status) -> E,
    ) -> Call<Result<U, E>>
    where
        T: Send + 'static,
        E: 'static,
        F: Future<Output = Result<Response<T>, Status>> + Send + 'static,
    {
        let connection = Arc::clone(&self.connection);
        Call::pending(async move {
            let reply = connection
                .call(|channel| call(LogicClient::new(channel).max_decoding_message_size(REPLY_BYTES_MAX)))
                .await;
            reply.map(answer).map_err(|status| error(&status))
        })
    }
}

fn accepted(reply: ConnectReply) -> Accepted {
    let room = (!reply.room_id.is_empty()).then(|| RoomId::from(reply.room_id));
    Accepted {
        mid: Mid(reply.mid),
        key: reply.key.into(),
        room,
        rooms: reply.rooms.into_iter().map(RoomId::from).collect(),
        scope: scope_of(reply.scope),
        expires_at: reply.expires_at.map(ExpiresAt),
        accepts: reply.accepts.into_iter().map(Operation).collect(),
        heartbeat: Duration::from_nanos(u64::try_from(reply.heartbeat).unwrap_or(0)),
        protover: reply.protover.map(|version| Version(i16::try_from(version).unwrap_or(i16::MAX))),
        syncing: reply.syncing.map(syncing_of),
    }
}

impl LogicPort for GrpcLogic {
    fn connect(&self, request: ConnectRequest) -> Call<Result<Accepted, ConnectError>> {
        let request = ConnectReq {
            server: request.server.to_string(),
            cookie: request.cookie,
            user_agent: request.user_agent,
            token: request.token,
            remote: request.remote.to_string(),
        };
        self.call(async move |mut logic| logic.connect(request).await, accepted, status::to_connect)
    }

    fn refresh(&self, request: RefreshRequest) -> Call<Result<Refreshed, ConnectError>> {
        let RefreshRequest { session, token, remote } = request;
        let request = RefreshReq {
            mid: session.mid.0,
            key: session.key.to_string(),
            server: session.server.to_string(),
            token,
            remote: remote.to_string(),
        };
        let connection = Arc::clone(&self.connection);
        Call::pending(async move {
            let call = async move |channel| ClusterClient::new(channel).refresh(request).await;
            let reply = connection.call(call).await.map_err(|status| status::to_refresh(&status))?;
            Ok(Refreshed { scope: scope_of(reply.scope), expires_at: reply.expires_at.map(ExpiresAt) })
        })
    }

    fn events(&self, events: Vec<LifecycleEvent>) -> Call<Result<(), LogicError>> {
        let request = EventsReq { events: events.into_iter().map(event_message).collect() };
        let connection = Arc::clone(&self.connection);
        Call::pending(async move {
            let call = async move |channel| ClusterClient::new(channel).events(request).await;
            connection.call(call).await.map(drop).map_err(|status| status::to_logic(&status))
        })
    }

    fn disconnect(&self, session: SessionRef) -> Call<Result<bool, LogicError>> {
        let (mid, key, server) = (session.mid.0, session.key.to_string(), session.server.to_string());
        let request = DisconnectReq { mid, key, server };
        self.call(async move |mut logic| logic.disconnect(request).await, |reply| reply.has, status::to_logic)
    }

    fn heartbeat(&self, session: SessionRef) -> Call<Result<(), LogicError>> {
        let (mid, key, server) = (session.mid.0, session.key.to_string(), session.server.to_string());
        let request = HeartbeatReq { mid, key, server };
        self.call(async move |mut logic| logic.heartbeat(request).await, drop, status::to_logic)
    }

    /// Compressed, as in goim: the only call that may be large.
    fn renew_online(&self, report: OnlineReport) -> Call<Result<OnlineTotals, LogicError>> {
        let request = OnlineReq { server: report.server.to_string(), room_count: map_of(&report.rooms) };
        self.call(
            async move |logic| {
                let gzip = CompressionEncoding::Gzip;
                logic.send_compressed(gzip).accept_compressed(gzip).renew_online(request).await
            },
            |reply| OnlineTotals {
                rooms: counts_of(reply.all_room_count),
                generation: reply.generation.map(Generation),
            },
            status::to_logic,
        )
    }

    fn receive(&self, upstream: Upstream) -> Call<Result<Bytes, LogicError>> {
        let request = ReceiveReq {
            mid: upstream.mid.0,
            proto: Some(proto_of(upstream.packet)),
            key: upstream.key.to_string(),
            schema: upstream.schema.0.into(),
            negotiated: upstream.negotiated,
        };
        self.call(async move |mut logic| logic.receive(request).await, |reply| reply.body, status::to_logic)
    }

    fn timeline(&self, request: TimelineRequest) -> Call<Result<Bytes, LogicError>> {
        let request = timeline_req_of(request);
        let connection = Arc::clone(&self.connection);
        Call::pending(async move {
            let call = async move |channel| {
                ClusterClient::new(channel).max_decoding_message_size(REPLY_BYTES_MAX).timeline(request).await
            };
            let reply = connection.call(call).await.map_err(|status| status::to_logic(&status))?;
            Ok(reply.body)
        })
    }
}
