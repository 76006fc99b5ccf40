//! What the application wants of every connection: the room and the subscriptions that it has changed since the
//! token was made.

use std::collections::BTreeMap;

use goim_wire::{Operation, control};

use crate::Identity;

/// Changes against what the token says. Empty: the token says it all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// `Some(None)`: no room, whatever the token says.
    pub(crate) room: Option<Option<String>>,
    /// True: wanted; false: not wanted, though the token may say so.
    pub(crate) operations: BTreeMap<Operation, bool>,
    /// The same of rooms besides the one.
    pub(crate) rooms: BTreeMap<String, bool>,
}

/// One change of the wishes, kept until the server has confirmed it.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) before: Wanted,
    pub(crate) after: Wanted,
}

impl Wanted {
    /// Keeps the whole of it in one packet of 4096 bytes: a number takes twelve at most, with its comma.
    pub(crate) const OPERATIONS_MAX: usize = 256;

    /// True when these can be changed without outgrowing the bound.
    pub(crate) fn has_room_for(&self, operations: &[Operation]) -> bool {
        let new = operations.iter().filter(|operation| !self.operations.contains_key(operation)).count();
        self.operations.len().saturating_add(new) <= Self::OPERATIONS_MAX
    }

    /// Rooms that may be changed: what a server lets a session be in by default.
    pub(crate) const ROOMS_MAX: usize = 1000;

    /// True when these can be changed without outgrowing the bound.
    pub(crate) fn has_room_for_rooms(&self, rooms: &[String]) -> bool {
        let new = rooms.iter().filter(|room| !self.rooms.contains_key(*room)).count();
        self.rooms.len().saturating_add(new) <= Self::ROOMS_MAX
    }

    pub(crate) fn set_rooms(&mut self, rooms: &[String], wanted: bool) {
        self.rooms.extend(rooms.iter().map(|room| (room.clone(), wanted)));
    }

    pub(crate) fn set(&mut self, operations: &[Operation], wanted: bool) {
        self.operations.extend(operations.iter().map(|operation| (*operation, wanted)));
    }

    /// The server has refused `change`: what was wanted before it is wanted again, unless other changes came since.
    pub(crate) fn take_back(&mut self, change: &Change) {
        let Change { before, after } = change;
        if self.room == after.room {
            self.room.clone_from(&before.room);
        }
        for (room, value) in &after.rooms {
            let old = before.rooms.get(room);
            if old == Some(value) || self.rooms.get(room) != Some(value) {
                continue;
            }
            match old {
                Some(old) => self.rooms.insert(room.clone(), *old),
                None => self.rooms.remove(room),
            };
        }
        for (operation, value) in &after.operations {
            let old = before.operations.get(operation);
            if old == Some(value) || self.operations.get(operation) != Some(value) {
                continue;
            }
            match old {
                Some(old) => self.operations.insert(*operation, *old),
                None => self.operations.remove(operation),
            };
        }
    }

    /// The identity with the changes written into it.
    pub(crate) fn apply(&self, identity: &Identity) -> Identity {
        let mut identity = identity.clone();
        if let Some(room) = &self.room {
            identity.room_id.clone_from(room);
        }
        identity.rooms.retain(|room| self.rooms.get(room) != Some(&false));
        for (room, wanted) in &self.rooms {
            if *wanted && !identity.rooms.contains(room) {
                identity.rooms.push(room.clone());
            }
        }
        identity.accepts.retain(|operation| self.operations.get(operation) != Some(&false));
        for (operation, wanted) in &self.operations {
            if *wanted && !identity.accepts.contains(operation) {
                identity.accepts.push(*operation);
            }
        }
        identity
    }

    /// The requests that bring a connection from `applied` to this.
    pub(crate) fn catch_up(&self, applied: &Self) -> Vec<(Operation, Vec<u8>)> {
        let mut requests = Vec::new();
        // Subscriptions first: what the new room says is then not missed.
        for (request, wanted) in [(Operation::SUBSCRIBE, true), (Operation::UNSUBSCRIBE, false)] {
            let changed = self.operations.iter().filter(|(operation, value)| {
                **value == wanted && applied.operations.get(operation) != Some(value)
            });
            let changed: Vec<Operation> = changed.map(|(operation, _)| *operation).collect();
            if !changed.is_empty() {
                requests.push((request, control::format_operations(&changed)));
            }
        }
        for (request, wanted) in [(Operation::JOIN_ROOMS, true), (Operation::LEAVE_ROOMS, false)] {
            let changed = self
                .rooms
                .iter()
                .filter(|(room, value)| **value == wanted && applied.rooms.get(*room) != Some(value));
            let changed: Vec<&str> = changed.map(|(room, _)| room.as_str()).collect();
            if !changed.is_empty() {
                requests.push((request, serde_json::Value::from(changed).to_string().into_bytes()));
            }
        }
        if let Some(room) = &self.room
            && self.room != applied.room
        {
            requests.push((Operation::CHANGE_ROOM, room.clone().unwrap_or_default().into_bytes()));
        }
        requests
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(room: Option<Option<&str>>, operations: &[(i32, bool)]) -> Wanted {
        Wanted {
            room: room.map(|room| room.map(str::to_owned)),
            operations: operations.iter().map(|(op, value)| (Operation(*op), *value)).collect(),
            rooms: BTreeMap::new(),
        }
    }

    #[test]
    fn changes_are_written_into_the_identity() {
        let identity = Identity::new(1).room("a").accepts([1000, 1001]);
        assert_eq!(Wanted::default().apply(&identity), identity);
        let changed = wanted(Some(Some("b")), &[(1000, false), (1001, true), (1002, true)]);
        assert_eq!(changed.apply(&identity), Identity::new(1).room("b").accepts([1001, 1002]));
        assert_eq!(wanted(Some(None), &[]).apply(&identity).room_id, None);
    }

    #[test]
    fn a_connection_is_asked_for_what_its_token_did_not_say() {
        let check = |from: &Wanted, to: &Wanted, expect: &[(Operation, &[u8])]| {
            let requests = to.catch_up(from);
            let requests: Vec<_> = requests.iter().map(|(op, body)| (*op, body.as_slice())).collect();
            assert_eq!(requests, expect);
        };
        let none = Wanted::default();
        let some = wanted(Some(Some("b")), &[(1000, false), (1001, true), (1002, true)]);
        let all: [(Operation, &[u8]); 3] = [
            (Operation::SUBSCRIBE, b"1001,1002"),
            (Operation::UNSUBSCRIBE, b"1000"),
            (Operation::CHANGE_ROOM, b"b"),
        ];
        check(&none, &some, &all);
        check(&some, &some, &[]);
        check(&none, &none, &[]);
        let left = wanted(Some(None), &[(1000, true), (1001, true), (1002, true)]);
        check(&some, &left, &[(Operation::SUBSCRIBE, b"1000"), (Operation::CHANGE_ROOM, b"")]);
    }

    #[test]
    fn rooms_are_wanted_again_too() {
        let identity = Identity::new(1).rooms(["a", "b"]);
        let mut changed = Wanted::default();
        changed.set_rooms(&["b".to_owned()], false);
        changed.set_rooms(&["c".to_owned()], true);
        assert_eq!(changed.apply(&identity).rooms, ["a", "c"]);
        let asked =
            [(Operation::JOIN_ROOMS, br#"["c"]"#.to_vec()), (Operation::LEAVE_ROOMS, br#"["b"]"#.to_vec())];
        assert_eq!(changed.catch_up(&Wanted::default()), asked);
        assert_eq!(changed.catch_up(&changed), []);
        let before = Wanted::default();
        let mut now = changed.clone();
        now.take_back(&Change { before: before.clone(), after: changed });
        assert_eq!(now, before);
    }

    #[test]
    fn a_refused_change_is_taken_back_and_later_ones_stay() {
        let before = wanted(Some(Some("a")), &[(1, true)]);
        let after = wanted(Some(Some("b")), &[(1, false), (2, true), (3, true)]);
        let change = Change { before: before.clone(), after: after.clone() };
        let mut now = after.clone();
        now.take_back(&change);
        assert_eq!(now, before);

        let mut now = wanted(Some(None), &[(1, false), (2, false), (3, true), (4, true)]);
        now.take_back(&change);
        assert_eq!(now, wanted(Some(None), &[(1, true), (2, false), (4, true)]));
    }

    #[test]
    fn changes_are_bounded_and_fit_one_packet() {
        let mut wanted = Wanted::default();
        let many: Vec<Operation> = (0..256).map(|n| Operation(i32::MIN + n)).collect();
        assert!(wanted.has_room_for(&many));
        wanted.set(&many, true);
        assert!(wanted.has_room_for(&many));
        assert!(!wanted.has_room_for(&[Operation(1)]));
        assert!(wanted.catch_up(&Wanted::default())[0].1.len() <= 4096);
    }
}
