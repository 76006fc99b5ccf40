//! Who is in a room, and ending sessions: what the backend asks and orders beyond pushes.

use std::time::{Duration, Instant};

use goim_ports::{
    AcceptedAt, CloseReason, EndTarget, Operation, Payload, PushRecord, PushTarget, RoomId, RoomMember,
    RoomMembers, ServerId, SessionEnd,
};

use crate::complaint::Complaint;
use crate::deadline::within;
use crate::port::directory_late;
use crate::push::{Groups, group_keys};
use crate::{Logic, PushError, Receivers};

/// A session of a room, with the comet that holds it.
pub type MemberAt = (ServerId, RoomMember);

impl Logic {
    /// Some sessions of a room, and how many there are on all comets that answer in time.
    pub async fn room_members(&self, room: &RoomId, limit: usize) -> (Vec<MemberAt>, u64) {
        let (mut members, mut count) = (Vec::new(), 0);
        for (server, comet) in self.comets.all() {
            let left = limit.saturating_sub(members.len());
            let asked = comet.room_members(room.clone(), left);
            let late = || goim_ports::CometError::Timeout;
            match within(self.config.directory_timeout, asked, late).await {
                Ok(RoomMembers { members: found, count: here }) => {
                    members.extend(found.into_iter().map(|member| (server.clone(), member)));
                    count += here;
                }
                Err(error) => tracing::debug!(%server, %error, "a comet does not say who is in a room"),
            }
        }
        (members, count)
    }

    /// Ends sessions with a code of the table of reasons. Done when it is in the push log; sessions that have gone, or come later, are
    /// not concerned: whoever must stay away must be refused a token too.
    ///
    /// # Errors
    /// [`PushError`], as for a push.
    pub async fn end_sessions(&self, of: Receivers, reason: CloseReason) -> Result<(), PushError> {
        self.end_waits(&of, reason).await?;
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
            let ended = self.append_record(order_to_end(target, reason)).await;
            ended.map_err(|error| error.after(is_in_part))?;
            is_in_part = true;
        }
        Ok(())
    }
}

/// How often a logic asks what the others have ended.
const FOLLOW_EVERY: Duration = Duration::from_millis(500);

impl Logic {
    /// Ends what members have open over HTTP, here and at other logics.
    async fn end_waits(&self, of: &Receivers, reason: CloseReason) -> Result<(), PushError> {
        let Some(timelines) = &self.timelines else { return Ok(()) };
        let of = match of {
            Receivers::Keys(keys) => EndTarget::Keys(keys.clone()),
            Receivers::Mids(mids) => EndTarget::Mids(mids.clone()),
            Receivers::Room(room) => EndTarget::Room(room.clone()),
            // No order of the backend ends all.
            Receivers::All(_) => return Ok(()),
        };
        let end = SessionEnd { of: of.clone(), reason, origin: self.number };
        let noted = self.sessions.note_end(end);
        within(self.config.directory_timeout, noted, directory_late).await.map_err(PushError::Directory)?;
        timelines.end_waits(&of, reason);
        Ok(())
    }

    /// Hears what other logics have been told to end, as long as it is polled. A stream that begins less than half a second after the
    /// order may be ended by it too.
    pub(crate) async fn follow_ends(&self) {
        let Some(timelines) = &self.timelines else { return };
        let (mut mark, silent) = (None, Complaint::default());
        loop {
            let asked = self.sessions.ends_after(mark.clone());
            match within(self.config.directory_timeout, asked, directory_late).await {
                Ok((next, ends)) => {
                    mark = Some(next);
                    for end in ends.iter().filter(|end| end.origin != self.number) {
                        timelines.end_waits(&end.of, end.reason);
                    }
                }
                Err(error) => {
                    if let Some(unsaid) = silent.say(Instant::now()) {
                        let what = "ends of sessions are not heard of: streams over HTTP go on";
                        tracing::warn!(%error, unsaid, "{what}");
                    }
                }
            }
            tokio::time::sleep(FOLLOW_EVERY).await;
        }
    }
}

/// The record that ends sessions with this code.
pub(crate) fn order_to_end(target: PushTarget, reason: CloseReason) -> PushRecord {
    PushRecord {
        target,
        operation: Operation::DISCONNECT,
        payload: Payload::Disconnect(reason),
        accepted_at: AcceptedAt::now(),
    }
}

fn to_keys(groups: Groups) -> Vec<PushTarget> {
    groups.into_iter().map(|(server, keys)| PushTarget::Keys { server, keys }).collect()
}
