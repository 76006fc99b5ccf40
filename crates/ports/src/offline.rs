//! Members who were away when a message was stored for them, for whoever reaches them in another way, such as a mobile push provider.

use bytes::Bytes;

use crate::{AcceptedAt, Call, LogicError, Mid, Operation, Position};

/// A message in the inbox of a member who had no session when it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfflineMember {
    /// Who.
    pub mid: Mid,
    /// Where the message is in its inbox: no other has it, and one that is told again has the same.
    pub position: Position,
    /// Who has sent it; anonymous for the backend.
    pub sender: Mid,
    /// What it is.
    pub operation: Operation,
    /// What it says, in the first schema.
    pub body: Bytes,
    /// When it was taken from its publisher.
    pub accepted_at: AcceptedAt,
}

/// Who hears of members who are away.
pub trait OfflineSink: Send + Sync {
    /// Takes members, all or none. `Ok` means that whoever wants to know has them.
    fn report(&self, members: Vec<OfflineMember>) -> Call<Result<(), LogicError>>;
}
