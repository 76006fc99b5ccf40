//! From a push request to records in the push log.
//!
//! A push to keys or members becomes one record for each comet that holds receivers; a push to a
//! room or to all is one record. The first record that the log does not take ends the push, as in
//! goim: what went before it is pushed, and the publisher hears that it may be.

use std::num::NonZeroU32;
use std::time::Instant;

use bytes::Bytes;
use goim_ports::{
    AcceptedAt, AppendError, DirectoryError, Mid, Operation, Payload, PushRecord, PushTarget, RoomId,
    ServerId, SessionKey, SessionRecord,
};
use smallvec::{SmallVec, smallvec};

use crate::deadline::within;
use crate::metrics::{PushKind, PushResult};
use crate::port::directory_late;
use crate::{Logic, record};

/// Why a push, or a part of it, was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    /// A push to keys names none. goim's text is empty too.
    #[error("a push to keys must name at least one key")]
    NoKeys,
    /// The receivers could not be found out.
    #[error("{0}")]
    Directory(DirectoryError),
    /// The push log did not take a record.
    #[error("{0}")]
    Append(AppendError),
}

impl PushError {
    /// What the push as a whole has met when this is what one of its records met, and others
    /// `may_be_in` the log already.
    pub(crate) fn after(self, may_be_in: bool) -> Self {
        match self {
            Self::Append(error) if may_be_in => Self::Append(error.in_part()),
            error => error,
        }
    }
}

impl Logic {
    /// Pushes to sessions. A key that is named twice gets it twice, one that has no session
    /// nothing.
    ///
    /// # Errors
    /// [`PushError`]. When receivers on other comets may have been pushed to, it is
    /// [`AppendError::Unknown`].
    ///
    /// # Cancel safety
    /// Dropping the future may leave a part of the receivers without the message.
    pub async fn push_keys(
        &self,
        operation: Operation,
        keys: Vec<SessionKey>,
        body: Bytes,
    ) -> Result<(), PushError> {
        let pushed = self.try_push_keys(operation, keys, body).await;
        self.count_push(PushKind::Keys, pushed)
    }

    /// Pushes to all sessions of members, once each, however often a member is named.
    ///
    /// # Errors
    /// As [`Logic::push_keys`].
    ///
    /// # Cancel safety
    /// As [`Logic::push_keys`].
    pub async fn push_mids(
        &self,
        operation: Operation,
        mids: Vec<Mid>,
        body: Bytes,
    ) -> Result<(), PushError> {
        let pushed = self.try_push_mids(operation, mids, body).await;
        self.count_push(PushKind::Mids, pushed)
    }

    /// Pushes to a room, whether or not anybody is in it.
    ///
    /// # Errors
    /// [`PushError::Append`].
    pub async fn push_room(&self, operation: Operation, room: RoomId, body: Bytes) -> Result<(), PushError> {
        let pushed = self.append(PushTarget::Room(room), operation, body).await;
        self.count_push(PushKind::Room, pushed)
    }

    /// Pushes to everybody who subscribed to `operation`, to `speed` sessions a second over all comets together;
    /// `None` is as fast as it goes.
    ///
    /// # Errors
    /// [`PushError::Append`].
    pub async fn push_all(
        &self,
        operation: Operation,
        speed: Option<NonZeroU32>,
        body: Bytes,
    ) -> Result<(), PushError> {
        let pushed = self.append(PushTarget::All { speed }, operation, body).await;
        self.count_push(PushKind::All, pushed)
    }

    async fn try_push_keys(
        &self,
        operation: Operation,
        keys: Vec<SessionKey>,
        body: Bytes,
    ) -> Result<(), PushError> {
        if keys.is_empty() {
            return Err(PushError::NoKeys);
        }
        let servers = self.servers_of(&keys).await?;
        self.append_by_server(group_keys(keys, &servers), operation, body).await
    }

    async fn try_push_mids(
        &self,
        operation: Operation,
        mids: Vec<Mid>,
        body: Bytes,
    ) -> Result<(), PushError> {
        let groups = self.sessions_by_server(mids).await?;
        self.append_by_server(groups, operation, body).await
    }

    /// The comet of each key, in the keys' order.
    pub(crate) async fn servers_of(&self, keys: &[SessionKey]) -> Result<Vec<Option<ServerId>>, PushError> {
        let servers = self.sessions.servers_of(keys);
        let servers = within(self.config.directory_timeout, servers, directory_late).await;
        servers.map_err(PushError::Directory)
    }

    /// The sessions of members, once each, by comet.
    pub(crate) async fn sessions_by_server(&self, mids: Vec<Mid>) -> Result<Groups, PushError> {
        // Nobody in particular has no sessions that could be found by member.
        let mut mids: Vec<Mid> = mids.into_iter().filter(|mid| !mid.is_anonymous()).collect();
        mids.sort_unstable();
        mids.dedup();
        if mids.is_empty() {
            return Ok(Groups::new());
        }
        let sessions = self.sessions.sessions_of(mids);
        let sessions = within(self.config.directory_timeout, sessions, directory_late).await;
        let sessions = sessions.map_err(PushError::Directory)?;
        Ok(group(sessions.into_iter().map(|session| (session.server, session.key))))
    }

    async fn append_by_server(
        &self,
        groups: Groups,
        operation: Operation,
        body: Bytes,
    ) -> Result<(), PushError> {
        let mut is_in_part = false;
        for (target, body) in targets(groups, body) {
            self.append(target, operation, body).await.map_err(|error| error.after(is_in_part))?;
            is_in_part = true;
        }
        Ok(())
    }

    async fn append(&self, target: PushTarget, operation: Operation, body: Bytes) -> Result<(), PushError> {
        let record =
            PushRecord { target, operation, payload: Payload::plain(body), accepted_at: AcceptedAt::now() };
        self.append_record(record).await
    }

    /// Appends a record within its bounds.
    pub(crate) async fn append_record(&self, record: PushRecord) -> Result<(), PushError> {
        let size = record::size(&record);
        let limit = self.config.push.record_bytes_max;
        if size > limit {
            return Err(PushError::Append(AppendError::TooLarge { size, limit }));
        }
        let started = Instant::now();
        let appended =
            within(self.config.push.append_timeout, self.push_log.append(record), append_late).await;
        self.metrics.append_seconds.observe(started.elapsed().as_secs_f64());
        appended.map_err(PushError::Append)
    }

    fn count_push(&self, kind: PushKind, pushed: Result<(), PushError>) -> Result<(), PushError> {
        self.count_result(kind, pushed.as_ref().err());
        pushed
    }

    /// Counts a push, and says in the log, at most once a second, when something that logic depends on has failed.
    pub(crate) fn count_result(&self, kind: PushKind, error: Option<&PushError>) {
        let result = match error {
            None => PushResult::Accepted,
            Some(PushError::NoKeys) => PushResult::Invalid,
            Some(PushError::Append(AppendError::TooLarge { .. })) => PushResult::TooLarge,
            Some(PushError::Append(AppendError::Full)) => PushResult::Full,
            Some(error @ (PushError::Append(AppendError::Unavailable(_)) | PushError::Directory(_))) => {
                if let Some(unsaid) = self.pushes_failing.say(Instant::now()) {
                    tracing::warn!(?kind, %error, unsaid, "push failed");
                }
                PushResult::Unavailable
            }
            Some(PushError::Append(AppendError::Unknown(reason))) => {
                if let Some(unsaid) = self.pushes_failing.say(Instant::now()) {
                    tracing::warn!(?kind, %reason, unsaid, "a push may or may not be in the log");
                }
                PushResult::Unknown
            }
        };
        self.metrics.pushes.count(kind, result);
    }
}

pub(crate) fn append_late() -> AppendError {
    AppendError::Unknown("the push log did not answer within logic.push.append_timeout".to_owned())
}

/// Keys by comet.
pub(crate) type Groups = SmallVec<[(ServerId, Vec<SessionKey>); 1]>;

/// Keys by the comets that were found for them, in the same order. Mostly all are on one.
pub(crate) fn group_keys(keys: Vec<SessionKey>, servers: &[Option<ServerId>]) -> Groups {
    if let [Some(first), others @ ..] = servers
        && others.iter().all(|other| other.as_ref() == Some(first))
    {
        return smallvec![(first.clone(), keys)];
    }
    group(keys.into_iter().zip(servers).filter_map(|(key, server)| Some((server.clone()?, key))))
}

/// The records of one message: mostly one, which takes the body itself.
pub(crate) fn targets<B: Clone>(groups: Groups, body: B) -> impl Iterator<Item = (PushTarget, B)> {
    let bodies = std::iter::repeat_n(body, groups.len());
    groups.into_iter().map(|(server, keys)| PushTarget::Keys { server, keys }).zip(bodies)
}

/// Sessions by comet, as targets.
pub(crate) fn by_server(sessions: Vec<SessionRecord>) -> Vec<PushTarget> {
    let groups = group(sessions.into_iter().map(|session| (session.server, session.key)));
    groups.into_iter().map(|(server, keys)| PushTarget::Keys { server, keys }).collect()
}

/// Comets in the order of their first key, keys in theirs.
fn group(found: impl Iterator<Item = (ServerId, SessionKey)>) -> Groups {
    let mut groups = Groups::new();
    for (server, key) in found {
        match groups.iter_mut().find(|(known, _)| *known == server) {
            Some((_, keys)) => keys.push(key),
            None => groups.push((server, vec![key])),
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_grouped_by_comet_in_order() {
        let found = [("a", "1"), ("b", "2"), ("a", "3"), ("a", "1"), ("b", "4")];
        let groups =
            group(found.iter().map(|(server, key)| (ServerId::from(*server), SessionKey::from(*key))));
        let groups: Vec<(&str, Vec<&str>)> = groups
            .iter()
            .map(|(server, keys)| (server.as_str(), keys.iter().map(SessionKey::as_str).collect()))
            .collect();
        assert_eq!(groups, [("a", vec!["1", "3", "1"]), ("b", vec!["2", "4"])]);
    }
}
