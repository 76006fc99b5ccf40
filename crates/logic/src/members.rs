//! Lists the sessions of a room and ends sessions, for the backend.

use goim_ports::{CloseReason, EndTarget, PushTarget, RoomId, RoomMember, RoomMembers, ServerId};

use crate::batch::Receivers;
use crate::deadline::with_timeout;
use crate::grouping::{Groups, group_keys};
use crate::logic::Logic;
use crate::push_writer::PushError;
use crate::session_ends::disconnect_record;

/// A session of a room and its comet.
pub type MemberAt = (ServerId, RoomMember);

impl Logic {
    /// Returns some sessions of a room, and the number of sessions on all comets that answer in
    /// time.
    pub async fn room_members(&self, room: &RoomId, limit: usize) -> (Vec<MemberAt>, u64) {
        let (mut members, mut count) = (Vec::new(), 0);
        for (server, comet) in self.comets.all() {
            let left = limit.saturating_sub(members.len());
            let asked = comet.room_members(room.clone(), left);
            let late = || goim_ports::CometError::Timeout;
            match with_timeout(self.config.directory_timeout, asked, late).await {
                Ok(RoomMembers { members: found, count: here }) => {
                    members.extend(found.into_iter().map(|member| (server.clone(), member)));
                    count += here;
                }
                Err(error) => {
                    tracing::debug!(%server, %error, "a comet does not return the sessions of a room")
                }
            }
        }
        (members, count)
    }

    /// Ends sessions for a reason. Returns when the order is in the push log. Sessions opened
    /// later are not ended: to keep a member out, refuse its token too.
    ///
    /// # Errors
    /// [`PushError`], as for a push.
    pub async fn end_sessions(&self, of: Receivers, reason: CloseReason) -> Result<(), PushError> {
        self.end_long_polls(&of, reason).await?;
        let targets: Vec<PushTarget> = match of {
            Receivers::Room(room) => vec![PushTarget::Room(room)],
            Receivers::All(speed) => vec![PushTarget::All { speed }],
            Receivers::Keys(keys) => {
                let servers = self.servers_of(&keys).await?;
                to_keys(group_keys(keys, &servers))
            }
            Receivers::Mids(mids) => to_keys(self.sessions_by_server(mids).await?),
        };
        let mut is_in_part = false;
        for target in targets {
            let ended = self.push_writer.append(disconnect_record(target, reason)).await;
            ended.map_err(|error| error.after(is_in_part))?;
            is_in_part = true;
        }
        Ok(())
    }
}

impl Logic {
    /// Ends the long polls and streams of members, on this logic and on the others.
    async fn end_long_polls(&self, of: &Receivers, reason: CloseReason) -> Result<(), PushError> {
        let Some(timelines) = &self.timelines else { return Ok(()) };
        let of = match of {
            Receivers::Keys(keys) => EndTarget::Keys(keys.clone()),
            Receivers::Mids(mids) => EndTarget::Mids(mids.clone()),
            Receivers::Room(room) => EndTarget::Room(room.clone()),
            // No route of the API ends all sessions.
            Receivers::All(_) => return Ok(()),
        };
        self.session_ends.publish(of.clone(), reason).await.map_err(PushError::Directory)?;
        timelines.end_long_polls(&of, reason);
        Ok(())
    }

    /// Ends the long polls that other logics were ordered to end, for as long as the future is
    /// polled.
    pub(crate) async fn watch_session_ends(&self) {
        if let Some(timelines) = &self.timelines {
            self.session_ends.watch(|of, reason| timelines.end_long_polls(of, reason)).await;
        }
    }
}

fn to_keys(groups: Groups) -> Vec<PushTarget> {
    groups.into_iter().map(|(server, keys)| PushTarget::Keys { server, keys }).collect()
}
