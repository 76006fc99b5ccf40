//! Members who were offline when a message was stored for them, for example to notify them over a
//! mobile push provider.

use bytes::Bytes;

use crate::{AcceptedAt, Call, LogicError, Mid, Operation, Position};

/// A message in the inbox of a member without a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfflineMember {
    /// The member.
    pub mid: Mid,
    /// The position of the message in the inbox. It is unique, and a retry has the same.
    pub position: Position,
    /// The sender; anonymous for the backend.
    pub sender: Mid,
    /// The operation of the message.
    pub operation: Operation,
    /// The body in the first schema; empty if there is none.
    pub body: Bytes,
    /// When the publisher's request was accepted.
    pub accepted_at: AcceptedAt,
}

/// Where notifications of offline members are delivered.
pub trait OfflineSink: Send + Sync {
    /// Delivers notifications, all or none.
    fn report(&self, members: Vec<OfflineMember>) -> Call<Result<(), LogicError>>;
}
