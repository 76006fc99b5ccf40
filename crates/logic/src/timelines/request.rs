//! The requests of members in packets: operations 4, 21 and 23 of negotiated clients.
//!
//! comet has checked that the member may read the timeline, because it knows the session's scope,
//! and reports whether the session is in the room that it sends to.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use goim_ports::{
    AcceptedAt, Append, Bodies, Call, IdempotencyKey, LogicError, Mid, NewMessage, Operation, TimelineCall,
    TimelineError, TimelineId, TimelineRequest,
};
use goim_wire::sync::{self, Body as _};

use super::push::AppendedMessage;
use super::reader::Reader;
use super::send_quotas::QuotaExceeded;
use super::send_rule::{is_allowed, is_for_members};
use super::{TimelineRequestError, Timelines, parse_timeline};

impl Timelines {
    /// Handles a request and returns the body of the reply.
    pub(crate) fn answer(self: &Arc<Self>, request: TimelineRequest) -> Call<Result<Bytes, LogicError>> {
        let timelines = Arc::clone(self);
        Call::pending(async move { timelines.try_answer(request).await.map_err(failure) })
    }

    async fn try_answer(self: &Arc<Self>, request: TimelineRequest) -> Result<Bytes, TimelineRequestError> {
        let TimelineRequest { mid, key, protover, call, .. } = request;
        let unreadable = || TimelineRequestError::Invalid("the body cannot be read".to_owned());
        let reader = Reader { mid, scope: None, protover, is_backend: false, key, expires_at: None };
        Ok(match call {
            TimelineCall::Sync(body) => {
                let request = sync::SyncRequest::read(body).ok_or_else(unreadable)?;
                self.sync(&reader, &request).await?.write()
            }
            TimelineCall::Ack(body) => {
                let ack = sync::Ack::read(body).ok_or_else(unreadable)?;
                self.acknowledge(&reader, &ack).await?.write()
            }
            TimelineCall::Send { body, is_room_member } => {
                let send = sync::SendRequest::read(body).ok_or_else(unreadable)?;
                self.send(mid, is_room_member, send).await?.write()
            }
        }
        .into())
    }

    /// Stores a member's message.
    ///
    /// # Errors
    /// [`TimelineRequestError`].
    pub(crate) async fn send(
        self: &Arc<Self>,
        mid: Mid,
        is_room_member: bool,
        request: sync::SendRequest,
    ) -> Result<sync::SendReply, TimelineRequestError> {
        let sent = self.try_send(mid, is_room_member, request).await;
        self.metrics.request("send", &sent.as_ref().map(drop));
        let AppendedMessage { appended, .. } = sent?;
        let position = sync::Position { epoch: appended.position.epoch.0, seq: appended.position.seq.0 };
        Ok(sync::SendReply { position: Some(position), duplicate: appended.is_duplicate })
    }

    async fn try_send(
        self: &Arc<Self>,
        mid: Mid,
        is_room_member: bool,
        request: sync::SendRequest,
    ) -> Result<AppendedMessage, TimelineRequestError> {
        let sync::SendRequest { to, operation, body, client_id } = request;
        let timeline = parse_timeline(&to)?;
        let once = match client_id.is_empty() {
            true => None,
            false => Some(IdempotencyKey::new(client_id).ok_or_else(|| {
                TimelineRequestError::Invalid(format!(
                    "client_id: has more than {} bytes",
                    IdempotencyKey::BYTES_MAX
                ))
            })?),
        };
        let operation = if operation == 0 { Operation::SEND } else { Operation(operation) };
        // The message carries its sender, so anonymous clients cannot send.
        if mid.is_anonymous() {
            return Err(TimelineRequestError::Forbidden(to));
        }
        if !is_for_members(operation.0) {
            return Err(TimelineRequestError::Reserved(operation));
        }
        let own = match &timeline {
            TimelineId::Inbox(owner) => *owner == mid,
            TimelineId::Room(_) => is_room_member,
        };
        let message = NewMessage {
            sender: mid,
            operation,
            bodies: Bodies::plain(body),
            accepted_at: AcceptedAt::now(),
        };
        self.check(std::slice::from_ref(&timeline), &message)?;
        let is_allowed = is_allowed(&self.config.send.allowed, own, &timeline, operation);
        if !is_allowed && self.may_send.is_none() {
            return Err(TimelineRequestError::Forbidden(to));
        }
        // Charged before the backend is called, because members cause these calls too.
        let bytes =
            message.bodies.primary_bytes().len() + once.as_ref().map_or(0, |once| once.as_bytes().len());
        self.quotas.take(mid, bytes, Instant::now()).map_err(|exceeded| self.limited(exceeded))?;
        if !is_allowed {
            self.may_send(mid, own, &timeline, &message).await?;
        }
        let placed = self.append(vec![Append { timeline, message, idempotency_key: once }]).await?;
        placed.into_iter().next().ok_or(TimelineRequestError::Invalid("nothing was stored".to_owned()))
    }

    fn limited(&self, QuotaExceeded { limit, retry_after }: QuotaExceeded) -> TimelineRequestError {
        self.metrics.limited.get_or_create(&vec![("limit", limit)]).inc();
        TimelineRequestError::Limited { limit, retry_after }
    }

    /// Asks the backend whether a member may send a message that no rule allows.
    async fn may_send(
        &self,
        mid: Mid,
        own: bool,
        to: &TimelineId,
        message: &NewMessage,
    ) -> Result<(), TimelineRequestError> {
        let Some(hook) = &self.may_send else { return Err(TimelineRequestError::Forbidden(to.to_string())) };
        let question = serde_json::json!({
            "mid": mid.0,
            "to": to.to_string(),
            "in_room": own && matches!(to, TimelineId::Room(_)),
            "operation": message.operation.0,
            "body_bytes": message.bodies.primary_bytes().len(),
        });
        let answer = hook.post("application/json", Vec::new(), question.to_string().into()).await;
        let answer = answer.map_err(|error| TimelineRequestError::Undecided(error.to_string()))?;
        match answer.status {
            200 | 204 => Ok(()),
            401 | 403 => Err(TimelineRequestError::Forbidden(to.to_string())),
            status => Err(TimelineRequestError::Undecided(format!("the backend answers {status}"))),
        }
    }
}

/// The error that the client receives.
fn failure(error: TimelineRequestError) -> LogicError {
    match error {
        TimelineRequestError::Store(TimelineError::Busy(text)) => LogicError::Busy(text),
        TimelineRequestError::Store(TimelineError::Unknown(text)) => LogicError::Late(text),
        TimelineRequestError::Store(TimelineError::Unavailable(text))
        | TimelineRequestError::Undecided(text) => LogicError::Unavailable(text),
        TimelineRequestError::Limited { retry_after, .. } => LogicError::Limited { retry_after },
        error => LogicError::Failed(error.public()),
    }
}
