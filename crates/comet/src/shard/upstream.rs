//! Packets for the backend and their replies; heartbeats.

use std::time::Duration;

use bytes::Bytes;
use goim_compression::{InflateError, inflate};
use goim_ports::{Encoding, LogicError, Operation, PacketBuf, Schema, Sequence, Upstream, Version};
use goim_session::{CloseReason, RequestFailure};

use super::Shard;
use crate::inbox::Notice;

impl Shard {
    pub(super) fn heartbeat(&mut self, slot: u32, version: Version, sequence: Sequence) {
        let connection = &mut self.connections[slot];
        let online = connection.membership.map_or(0, |membership| self.rooms.online(membership));
        connection.session.reply_heartbeat(self.egress.pool(), version, sequence, online);
        self.stats.packets_out(Operation::HEARTBEAT_REPLY, 1, goim_wire::HEADER_LEN + 4);
        if self.now >= connection.renew_after {
            self.schedule_renewal(slot);
            self.register_session(slot);
        }
    }

    /// Sends a packet to the backend, through logic. The session takes no further packet until the
    /// reply.
    pub(super) fn upstream(&mut self, slot: u32, packet: PacketBuf) {
        let connection = &self.connections[slot];
        let Some(identity) = connection.identity.clone() else { return };
        let id = self.connections.id(slot);
        let negotiated = connection.session.is_negotiated();
        if negotiated && Self::is_timeline_request(packet.operation) {
            return self.request_timeline(slot, packet);
        }
        // goim v2 ignores the version.
        let decoded = if negotiated { self.decode(slot, packet) } else { Some((Schema::FIRST, packet)) };
        let Some((schema, packet)) = decoded else { return };
        let upstream = Upstream { mid: identity.mid, key: identity.key, packet, schema, negotiated };
        let call = self.shared.logic.receive(upstream);
        if let Some(result) = self.call(call, move |result| Notice::Replied { connection: id, result }) {
            self.replied(slot, result);
        }
    }

    /// Returns the schema and the inflated body of a negotiated client's packet. `None` when that
    /// is impossible: then the client has its answer, or is closed.
    fn decode(&mut self, slot: u32, packet: PacketBuf) -> Option<(Schema, PacketBuf)> {
        let profiles = &self.shared.profiles;
        let Some(row) = profiles.table().row(packet.version) else {
            let failure = RequestFailure::BadRequest;
            self.fail_request(slot, failure.code(), failure.label(), "the version is not in the table");
            return None;
        };
        if row.encoding == Encoding::Identity {
            return Some((row.schema, packet));
        }
        match inflate(row.encoding, &packet.body, profiles.compressor().inflated_bytes_max()) {
            Ok(body) => Some((row.schema, PacketBuf { body: body.into(), ..packet })),
            Err(error) => {
                let remote = self.connections[slot].remote();
                tracing::debug!(%remote, %error, "a body cannot be inflated");
                let reason = match error {
                    InflateError::TooLarge(_) => CloseReason::InflatedTooLarge,
                    InflateError::Malformed(_) => CloseReason::BadCompression,
                };
                self.close(slot, reason);
                None
            }
        }
    }

    /// Sends the reply to a packet. v2 clients get one whether or not the backend has answered:
    /// they count on it.
    pub(super) fn replied(&mut self, slot: u32, result: Result<Bytes, LogicError>) {
        let body = match result {
            Ok(body) => body,
            Err(error) => {
                self.stats.upstream_errors.add(1);
                tracing::debug!(%error, "a packet was not handled");
                if self.report_failure(slot, &error) {
                    return;
                }
                // A v2 client gets the empty echo of goim v2.
                Bytes::new()
            }
        };
        let connection = &mut self.connections[slot];
        let negotiated = connection.session.is_negotiated();
        if negotiated && connection.session.awaited_operation().is_some_and(Self::is_timeline_request) {
            return self.reply_timeline(slot, &body);
        }
        let (version, body) = if negotiated && !body.is_empty() {
            let profiles = &self.shared.profiles;
            let schema = profiles.schema_of(connection.session.awaited().unwrap_or(Version::GOIM));
            let (version, body) = profiles.encode_reply(connection.session.protover(), schema, body);
            (Some(version), body)
        } else {
            (None, body)
        };
        if let Some(operation) = connection.session.reply_upstream(self.egress.pool(), version, &body) {
            self.stats.packets_out(operation, 1, goim_wire::HEADER_LEN + body.len());
        }
        self.stage(slot);
    }

    /// Reports an error of logic to a negotiated client. False, and nothing is done, for a v2
    /// client.
    fn report_failure(&mut self, slot: u32, error: &LogicError) -> bool {
        let (failure, retry_after): (_, Option<Duration>) = match error {
            LogicError::Unavailable(_) => (RequestFailure::Unavailable, None),
            LogicError::Failed(_) => (RequestFailure::Failed, None),
            LogicError::Busy(_) => (RequestFailure::Busy, None),
            LogicError::Late(_) => (RequestFailure::NotInTime, None),
            LogicError::Limited { retry_after } => (RequestFailure::RateLimited, Some(*retry_after)),
        };
        self.fail_request_until(slot, failure.code(), failure.label(), "", retry_after)
    }
}
