//! Pushes many messages in one request.
//!
//! All messages are checked before the first is appended: a batch with a message that can never be
//! pushed is refused as a whole. After that the push log may accept a part of the batch, always
//! from the front.

use std::num::NonZeroU32;

use goim_ports::{
    AcceptedAt, Appended, Bodies, IdempotencyKey, Mid, Operation, Payload, PushRecord, PushTarget, RoomId,
    ServerId, SessionKey,
};

use crate::grouping::{group_keys, targets};
use crate::logic::Logic;
use crate::metrics::PushKind;
use crate::push_writer::PushError;

/// One message of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchMessage {
    /// The receivers.
    pub to: Receivers,
    /// The packet's operation. Sessions named by key or member, and those of a push to all, must
    /// have subscribed to it.
    pub operation: Operation,
    /// The bodies.
    pub bodies: Bodies,
    /// Whether the message is stored. [`Logic::push_batch`] ignores it.
    pub delivery: Delivery,
}

/// Whether a message is stored.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Delivery {
    /// Pushed to the sessions that are connected, as in goim v2.
    #[default]
    Transient,
    /// Appended to its timelines before it is pushed.
    Stored {
        /// Identifies repeated requests for the same message.
        idempotency_key: Option<IdempotencyKey>,
    },
}

/// The receivers of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Receivers {
    /// Sessions. A key that is given twice gets the message twice; a key without a session is
    /// ignored.
    Keys(Vec<SessionKey>),
    /// All sessions of members, once each, however often a member is given.
    Mids(Vec<Mid>),
    /// A room. It may be empty.
    Room(RoomId),
    /// All sessions that subscribed to the operation, at this many sessions a second over all
    /// comets together; `None` is unlimited.
    All(Option<NonZeroU32>),
}

impl Receivers {
    fn kind(&self) -> PushKind {
        match self {
            Self::Keys(_) => PushKind::Keys,
            Self::Mids(_) => PushKind::Mids,
            Self::Room(_) => PushKind::Room,
            Self::All(_) => PushKind::All,
        }
    }
}

/// Why a batch, or the rest of it, was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{error}")]
pub struct BatchError {
    /// The number of messages, from the front, that are in the push log.
    pub accepted: usize,
    /// The index of the first message that was not accepted.
    pub index: usize,
    /// Why it was not accepted.
    pub error: PushError,
}

/// Records with the index of the message that each belongs to.
#[derive(Default)]
struct BatchRecords {
    records: Vec<PushRecord>,
    of: Vec<usize>,
}

impl Logic {
    /// Pushes messages in order and returns their number.
    ///
    /// # Errors
    /// [`BatchError`]. Nothing is accepted when a message names no key, is too large, or its
    /// receivers cannot be looked up. When the push log is full or unavailable, the messages in
    /// front are accepted. A message whose receivers are on several comets is accepted when all of
    /// its records are. If only some are, they are delivered, and delivered again when the caller
    /// repeats the message; the error is [`goim_ports::AppendError::Unknown`] then.
    ///
    /// # Cancel safety
    /// Dropping the future may leave a part of the messages accepted, always from the front.
    pub async fn push_batch(&self, messages: Vec<BatchMessage>) -> Result<usize, BatchError> {
        let kinds: Vec<PushKind> = messages.iter().map(|message| message.to.kind()).collect();
        let pushed = self.try_push_batch(messages).await;
        let accepted = pushed.as_ref().map_or_else(|error| error.accepted, |count| *count);
        let error = pushed.as_ref().err().map(|error| &error.error);
        for (index, kind) in kinds.into_iter().enumerate() {
            self.push_writer.count(kind, error.filter(|_| index >= accepted));
        }
        pushed
    }

    async fn try_push_batch(&self, messages: Vec<BatchMessage>) -> Result<usize, BatchError> {
        let count = messages.len();
        let BatchRecords { records, of } = self.records_of(messages).await?;
        for (record, index) in records.iter().zip(&of) {
            let too_large =
                |error| BatchError { accepted: 0, index: *index, error: PushError::Append(error) };
            self.push_writer.check_size(record).map_err(too_large)?;
        }
        match self.push_writer.append_all(records).await {
            Appended { error: None, .. } => Ok(count),
            Appended { accepted, error: Some(error) } => {
                let index = of.get(accepted).copied().unwrap_or(count);
                // Some records of this message, those for other comets, are in the log.
                let is_in_part = accepted.checked_sub(1).and_then(|last| of.get(last)) == Some(&index);
                let error = PushError::Append(error).after(is_in_part);
                Err(BatchError { accepted: index, index, error })
            }
        }
    }

    async fn records_of(&self, messages: Vec<BatchMessage>) -> Result<BatchRecords, BatchError> {
        let servers = self.servers_of_batch(&messages).await?;
        let mut servers = &servers[..];
        let accepted_at = AcceptedAt::now();
        let mut records = BatchRecords::default();
        for (index, BatchMessage { to, operation, bodies, .. }) in messages.into_iter().enumerate() {
            let mut add = |target, bodies| {
                let payload = Payload::Message(bodies);
                records.records.push(PushRecord { target, operation, payload, accepted_at });
                records.of.push(index);
            };
            let groups = match to {
                Receivers::Room(room) => {
                    add(PushTarget::Room(room), bodies);
                    continue;
                }
                Receivers::All(speed) => {
                    add(PushTarget::All { speed }, bodies);
                    continue;
                }
                Receivers::Keys(keys) => {
                    let (of_these, rest) = servers.split_at(keys.len().min(servers.len()));
                    servers = rest;
                    group_keys(keys, of_these)
                }
                Receivers::Mids(mids) => {
                    let failed = |error| BatchError { accepted: 0, index, error };
                    self.sessions_by_server(mids).await.map_err(failed)?
                }
            };
            targets(groups, bodies).for_each(|(target, bodies)| add(target, bodies));
        }
        Ok(records)
    }

    /// Looks up the comets of all keys of all messages with one call to the directory.
    async fn servers_of_batch(&self, messages: &[BatchMessage]) -> Result<Vec<Option<ServerId>>, BatchError> {
        let mut all_keys = Vec::new();
        let mut first = None;
        for (index, message) in messages.iter().enumerate() {
            let Receivers::Keys(keys) = &message.to else { continue };
            if keys.is_empty() {
                return Err(BatchError { accepted: 0, index, error: PushError::NoKeys });
            }
            first.get_or_insert(index);
            all_keys.extend_from_slice(keys);
        }
        let Some(index) = first else { return Ok(Vec::new()) };
        self.servers_of(&all_keys).await.map_err(|error| BatchError { accepted: 0, index, error })
    }
}
