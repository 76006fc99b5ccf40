//! Turns push requests into records of the push log.
//!
//! A push to keys or members becomes one record for each comet that holds receivers; a push to a
//! room or to all is one record. As in goim v2, the first record that the log refuses ends the
//! push: the records before it are delivered, and the error is [`AppendError::Unknown`].

use std::num::NonZeroU32;

use bytes::Bytes;
use goim_ports::{
    AcceptedAt, AppendError, DirectoryError, Mid, Operation, PushRecord, PushTarget, RoomId, ServerId,
    SessionKey, SessionRecord,
};
use smallvec::{SmallVec, smallvec};

use crate::Logic;
use crate::deadline::with_timeout;
use crate::metrics::PushKind;
use crate::port::directory_late;

/// Why a push, or a part of it, was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    /// A push to keys without a key. goim v2's message is empty too.
    #[error("a push to keys must name at least one key")]
    NoKeys,
    /// The receivers could not be looked up.
    #[error("{0}")]
    Directory(DirectoryError),
    /// The push log refused a record.
    #[error("{0}")]
    Append(AppendError),
}

impl PushError {
    /// Converts the error of one record into the error of the push. `may_be_in` is true when other
    /// records of the push may be in the log already.
    pub(crate) fn after(self, may_be_in: bool) -> Self {
        match self {
            Self::Append(error) if may_be_in => Self::Append(error.in_part()),
            error => error,
        }
    }
}

impl Logic {
    /// Pushes to sessions. A key that is given twice gets the message twice; a key without a
    /// session is ignored.
    ///
    /// # Errors
    /// [`PushError`]. It is [`AppendError::Unknown`] when receivers on other comets may have got
    /// the message.
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

    /// Pushes to all sessions of members, once each, however often a member is given.
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

    /// Pushes to a room, which may be empty.
    ///
    /// # Errors
    /// [`PushError::Append`].
    pub async fn push_room(&self, operation: Operation, room: RoomId, body: Bytes) -> Result<(), PushError> {
        let pushed = self.append(PushTarget::Room(room), operation, body).await;
        self.count_push(PushKind::Room, pushed)
    }

    /// Pushes to all sessions that subscribed to `operation`, to `speed` sessions per second over
    /// all comets together; `None` is unlimited.
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

    /// Looks up the comet of each key, in the order of the keys.
    pub(crate) async fn servers_of(&self, keys: &[SessionKey]) -> Result<Vec<Option<ServerId>>, PushError> {
        let servers = self.sessions.servers_of(keys);
        let servers = with_timeout(self.config.directory_timeout, servers, directory_late).await;
        servers.map_err(PushError::Directory)
    }

    /// Looks up the sessions of members, once each, grouped by comet.
    pub(crate) async fn sessions_by_server(&self, mids: Vec<Mid>) -> Result<Groups, PushError> {
        // Anonymous sessions cannot be looked up by member.
        let mut mids: Vec<Mid> = mids.into_iter().filter(|mid| !mid.is_anonymous()).collect();
        mids.sort_unstable();
        mids.dedup();
        if mids.is_empty() {
            return Ok(Groups::new());
        }
        let sessions = self.sessions.sessions_of(mids);
        let sessions = with_timeout(self.config.directory_timeout, sessions, directory_late).await;
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
        let record = PushRecord { target, operation, body, accepted_at: AcceptedAt::now(), extension: None };
        self.push_writer.append(record).await
    }

    fn count_push(&self, kind: PushKind, pushed: Result<(), PushError>) -> Result<(), PushError> {
        self.push_writer.count(kind, pushed.as_ref().err());
        pushed
    }
}

/// Keys by comet.
pub(crate) type Groups = SmallVec<[(ServerId, Vec<SessionKey>); 1]>;

/// Groups keys by the comets that were found for them, in the same order. Most members are on one
/// comet.
pub(crate) fn group_keys(keys: Vec<SessionKey>, servers: &[Option<ServerId>]) -> Groups {
    if let [Some(first), others @ ..] = servers
        && others.iter().all(|other| other.as_ref() == Some(first))
    {
        return smallvec![(first.clone(), keys)];
    }
    group(keys.into_iter().zip(servers).filter_map(|(key, server)| Some((server.clone()?, key))))
}

/// Returns the targets of one message with its body. Most messages have one, which takes the body
/// without a copy.
pub(crate) fn targets(groups: Groups, mut body: Bytes) -> impl Iterator<Item = (PushTarget, Bytes)> {
    let last = groups.len().saturating_sub(1);
    groups.into_iter().enumerate().map(move |(index, (server, keys))| {
        let body = if index == last { std::mem::take(&mut body) } else { body.clone() };
        (PushTarget::Keys { server, keys }, body)
    })
}

/// Groups sessions by comet, as targets.
pub(crate) fn by_server(sessions: Vec<SessionRecord>) -> Vec<PushTarget> {
    let groups = group(sessions.into_iter().map(|session| (session.server, session.key)));
    groups.into_iter().map(|(server, keys)| PushTarget::Keys { server, keys }).collect()
}

/// Comets are in the order of their first key, keys in their own.
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
