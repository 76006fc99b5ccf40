//! Turns push requests into records of the push log.
//!
//! A push to keys or members becomes one record for each comet that holds receivers; a push to a
//! room or to all is one record. As in goim v2, the first record that the log refuses ends the
//! push: the records before it are delivered, and the error is
//! [`goim_ports::AppendError::Unknown`].

use std::num::NonZeroU32;

use bytes::Bytes;
use goim_ports::{AcceptedAt, Mid, Operation, Payload, PushRecord, PushTarget, RoomId, ServerId, SessionKey};

use crate::deadline::{directory_late, with_timeout};
use crate::grouping::{Groups, group, group_keys, targets};
use crate::logic::Logic;
use crate::metrics::PushKind;
use crate::push_writer::PushError;

impl Logic {
    /// Pushes to sessions. A key that is given twice gets the message twice; a key without a
    /// session is ignored.
    ///
    /// # Errors
    /// [`PushError`]. It is [`goim_ports::AppendError::Unknown`] when receivers on other comets may
    /// have got the message.
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
        let record =
            PushRecord { target, operation, payload: Payload::plain(body), accepted_at: AcceptedAt::now() };
        self.push_writer.append(record).await
    }

    fn count_push(&self, kind: PushKind, pushed: Result<(), PushError>) -> Result<(), PushError> {
        self.push_writer.count(kind, pushed.as_ref().err());
        pushed
    }
}
