//! Many messages in one request.
//!
//! All of them are looked at before the first goes to the push log: a batch with a message that can never be pushed
//! is refused as a whole. After that the log decides how many it takes; those are always the ones in front.

use std::num::NonZeroU32;
use std::time::Instant;

use goim_ports::{
    AcceptedAt, AppendError, Appended, Bodies, IdempotencyKey, Mid, Operation, Payload, PushRecord,
    PushTarget, RoomId, ServerId, SessionKey,
};

use crate::deadline::within;
use crate::metrics::PushKind;
use crate::push::{append_late, group_keys, targets};
use crate::{Logic, PushError, record};

/// One message of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchMessage {
    /// Whom it is for.
    pub to: Receivers,
    /// What the packet is; for keys, members and everybody also what a session must have subscribed to.
    pub operation: Operation,
    /// The bodies.
    pub bodies: Bodies,
    /// Whether it is kept. [`Logic::push_batch`] does not look at it.
    pub delivery: Delivery,
}

/// Whether a message is kept.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Delivery {
    /// Pushed to who is there, as in goim.
    #[default]
    Transient,
    /// Kept in its timelines first.
    Stored {
        /// By what a second try is known.
        idempotency_key: Option<IdempotencyKey>,
    },
}

/// Whom a message of a batch is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Receivers {
    /// Sessions. A key that is named twice gets it twice, one that has no session nothing.
    Keys(Vec<SessionKey>),
    /// All sessions of members, once each, however often a member is named.
    Mids(Vec<Mid>),
    /// A room, whether or not anybody is in it.
    Room(RoomId),
    /// Everybody who subscribed to the operation, to this many sessions a second over all comets together; `None` is as
    /// fast as it goes.
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

/// Why a batch, or what is left of it, was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{error}")]
pub struct BatchError {
    /// How many messages, from the front, are in the push log.
    pub accepted: usize,
    /// The message that was not, counted from 0.
    pub index: usize,
    /// Why it was not.
    pub error: PushError,
}

/// Records with the message that each belongs to.
#[derive(Default)]
struct Records {
    records: Vec<PushRecord>,
    of: Vec<usize>,
}

impl Logic {
    /// Pushes messages in their order and says how many there were.
    ///
    /// # Errors
    /// [`BatchError`]. Nothing is accepted when a message names no key, is too large, or its
    /// receivers cannot be found out. When the push log is full or gone, what is in front is
    /// accepted. A message whose receivers are on several comets counts as accepted when all of its
    /// records are; those that reached the log before one that did not are sent, and sent again
    /// when the caller repeats the message: the error is [`AppendError::Unknown`] then.
    ///
    /// # Cancel safety
    /// Dropping the future may leave a part of the messages accepted, always from the front.
    pub async fn push_batch(&self, messages: Vec<BatchMessage>) -> Result<usize, BatchError> {
        let kinds: Vec<PushKind> = messages.iter().map(|message| message.to.kind()).collect();
        let pushed = self.try_push_batch(messages).await;
        let accepted = pushed.as_ref().map_or_else(|error| error.accepted, |count| *count);
        let error = pushed.as_ref().err().map(|error| &error.error);
        for (index, kind) in kinds.into_iter().enumerate() {
            self.count_result(kind, error.filter(|_| index >= accepted));
        }
        pushed
    }

    async fn try_push_batch(&self, messages: Vec<BatchMessage>) -> Result<usize, BatchError> {
        let count = messages.len();
        let Records { records, of } = self.records_of(messages).await?;
        let limit = self.config.push.record_bytes_max;
        let sizes = records.iter().map(record::size).zip(&of);
        if let Some((size, index)) = sizes.into_iter().find(|(size, _)| *size > limit) {
            let error = PushError::Append(AppendError::TooLarge { size, limit });
            return Err(BatchError { accepted: 0, index: *index, error });
        }
        let started = Instant::now();
        let appended = self.push_log.append_all(records).map(Ok);
        let appended = within(self.config.push.append_timeout, appended, append_late).await;
        self.metrics.append_seconds.observe(started.elapsed().as_secs_f64());
        match appended.unwrap_or_else(|late| Appended { accepted: 0, error: Some(late) }) {
            Appended { error: None, .. } => Ok(count),
            Appended { accepted, error: Some(error) } => {
                let index = of.get(accepted).copied().unwrap_or(count);
                // Some records of this message are in the log, those for other comets.
                let is_in_part = accepted.checked_sub(1).and_then(|last| of.get(last)) == Some(&index);
                let error = PushError::Append(error).after(is_in_part);
                Err(BatchError { accepted: index, index, error })
            }
        }
    }

    async fn records_of(&self, messages: Vec<BatchMessage>) -> Result<Records, BatchError> {
        let servers = self.servers_of_batch(&messages).await?;
        let mut servers = &servers[..];
        let accepted_at = AcceptedAt::now();
        let mut records = Records::default();
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

    /// The comets of all keys in all messages, with one question to the directory.
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
