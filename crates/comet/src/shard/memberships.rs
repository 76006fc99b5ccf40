//! The rooms of a session: moving, joining, leaving.
//!
//! A v2 client is in one room and moves from it to another. A negotiated client may be in more;
//! these are a list beside that room.

use goim_ports::{EventKind, Operation, RoomId, RoomMember, RoomMembers};
use goim_session::RequestFailure;

use super::Shard;

impl Shard {
    /// Moves a session from its one room to another in one step. Nothing happens when it is in that
    /// room already or is not allowed in it. As in goim v2, the reply is queued already.
    pub(super) fn change_room(&mut self, slot: u32, room: &str) {
        let connection = &self.connections[slot];
        self.stats.packets_out(Operation::CHANGE_ROOM_REPLY, 1, goim_wire::HEADER_LEN + room.len());
        if connection.membership.is_some_and(|membership| self.rooms.is_in(membership, room)) {
            return;
        }
        if !room.is_empty() && connection.scope().is_some_and(|scope| !scope.allows(room)) {
            self.stats.rooms_refused.add(1);
            return;
        }
        let left =
            self.connections[slot].membership.and_then(|membership| self.rooms.name(membership).cloned());
        self.note(slot, EventKind::Leave, left.into_iter().collect());
        self.leave_room(slot);
        if room.is_empty() {
            return;
        }
        let index = self.rooms.find(room);
        let further =
            index.and_then(|index| self.connections[slot].take_room(|further| further.is_in(index)));
        if further.is_some() {
            // It is in the room already, by the list.
            self.connections[slot].membership = further;
            return;
        }
        self.note(slot, EventKind::Join, vec![RoomId::from(room)]);
        self.join(slot, RoomId::from(room));
    }

    pub(super) fn join(&mut self, slot: u32, room: RoomId) {
        self.connections[slot].membership = Some(self.rooms.join(room, slot));
    }

    pub(super) fn join_further(&mut self, slot: u32, room: RoomId) {
        let membership = self.rooms.join(room, slot);
        self.connections[slot].add_room(membership);
    }

    /// Leaves the one room.
    pub(super) fn leave_room(&mut self, slot: u32) {
        if let Some(membership) = self.connections[slot].membership.take() {
            self.leave(membership);
        }
    }

    /// Leaves every room.
    pub(super) fn leave_rooms(&mut self, slot: u32) {
        self.leave_room(slot);
        while let Some(membership) = self.connections[slot].take_room(|_| true) {
            self.leave(membership);
        }
    }

    fn leave(&mut self, membership: crate::rooms::Membership) {
        if let Some((slot, moved)) = self.rooms.leave(membership) {
            self.connections[slot].set_position(moved);
        }
    }

    /// Notes the event that a session has joined or left rooms.
    fn note(&self, slot: u32, kind: EventKind, rooms: Vec<RoomId>) {
        let identity = self.connections.get(slot).and_then(|connection| connection.identity.as_ref());
        if let (false, Some(identity)) = (rooms.is_empty(), identity) {
            self.shared.events.note(kind, identity.mid, &identity.key, rooms, "");
        }
    }

    /// Operations 26 and 28: joins or leaves the rooms of a list. The reply names the rooms that
    /// are not allowed; the others are joined.
    pub(super) fn change_rooms(&mut self, slot: u32, join: bool, list: &[u8]) {
        let Ok(names) = serde_json::from_slice::<Vec<String>>(list) else {
            self.fail_request(
                slot,
                RequestFailure::BadRequest.code(),
                "bad_request",
                "wants a list of names of rooms in JSON",
            );
            return;
        };
        let reply = if join { self.join_all(slot, names) } else { self.leave_all(slot, names) };
        let Some(reply) = reply else {
            let max = self.shared.config.limits.rooms_max;
            let detail = format!("a session may be in {max} rooms");
            self.fail_request(
                slot,
                RequestFailure::TooManyRooms.code(),
                RequestFailure::TooManyRooms.label(),
                &detail,
            );
            return;
        };
        self.reply_control(slot, &reply);
    }

    fn join_all(&mut self, slot: u32, names: Vec<String>) -> Option<serde_json::Value> {
        let (mut joined, mut refused, mut new) = (Vec::new(), Vec::new(), Vec::new());
        let mut is_full = false;
        for name in names {
            let connection = &self.connections[slot];
            let index = self.rooms.find(&name);
            let is_member = index.is_some_and(|index| connection.memberships().any(|own| own.is_in(index)));
            if name.is_empty() || connection.scope().is_some_and(|scope| !scope.allows(&name)) {
                refused.push(name);
            } else if is_member {
                joined.push(name);
            } else if connection.memberships().count() < self.shared.config.limits.rooms_max.get() {
                self.join_further(slot, RoomId::from(name.as_str()));
                new.push(RoomId::from(name.as_str()));
                joined.push(name);
            } else {
                // Those before stay joined; the client learns which by asking again.
                is_full = true;
                break;
            }
        }
        self.stats.rooms_refused.add(refused.len());
        self.note(slot, EventKind::Join, new);
        if is_full {
            return None;
        }
        Some(serde_json::json!({ "code": 0, "joined": joined, "refused": refused }))
    }

    fn leave_all(&mut self, slot: u32, names: Vec<String>) -> Option<serde_json::Value> {
        let mut left = Vec::new();
        for name in names {
            let Some(index) = self.rooms.find(&name) else { continue };
            let connection = &mut self.connections[slot];
            let further = connection.take_room(|further| further.is_in(index));
            let own = connection.membership.take_if(|own| further.is_none() && own.is_in(index));
            if let Some(membership) = further.or(own) {
                self.leave(membership);
                left.push(name);
            }
        }
        self.note(slot, EventKind::Leave, left.iter().map(|name| RoomId::from(name.as_str())).collect());
        Some(serde_json::json!({ "code": 0, "left": left }))
    }

    /// Returns some sessions of a room on this shard, and how many there are.
    pub(super) fn members_of(&self, room: &RoomId, limit: usize) -> RoomMembers {
        let hash = self.shared.rooms.hash(room.as_str());
        let slots = self.rooms.members(hash, room);
        let member = |slot: &u32| {
            let identity = self.connections.get(*slot)?.identity.as_ref()?;
            Some(RoomMember { mid: identity.mid, key: identity.key.clone() })
        };
        RoomMembers {
            members: slots.iter().filter_map(member).take(limit).collect(),
            count: slots.len() as u64,
        }
    }

    /// Leaves the rooms that a new token no longer allows.
    pub(super) fn leave_forbidden(&mut self, slot: u32) {
        let Some(scope) = self.connections[slot].scope().cloned() else { return };
        let rooms = &self.rooms;
        let forbidden = |membership| rooms.name(membership).is_some_and(|room| !scope.allows(room.as_str()));
        let own = self.connections[slot].membership.is_some_and(forbidden);
        let mut removed = Vec::new();
        while let Some(membership) = self.connections[slot].take_room(forbidden) {
            removed.push(membership);
        }
        let first = self.connections[slot].membership.filter(|_| own);
        let left = removed.iter().chain(first.as_ref());
        let names = left.filter_map(|membership| self.rooms.name(*membership).cloned()).collect();
        self.note(slot, EventKind::Leave, names);
        for membership in removed {
            // Leaving the ones before may have moved other sessions, but this one is no longer in
            // any of their lists.
            self.leave(membership);
        }
        if own {
            self.leave_room(slot);
        }
    }
}
