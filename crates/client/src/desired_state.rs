//! The room, the rooms and the subscriptions that the application has changed since its token was
//! made. Every new connection is brought to this state.

use std::collections::BTreeMap;

use goim_wire::{Operation, control};

use crate::Identity;
use crate::command::RequestFailure;

/// Differences from what the token contains. Empty when there are none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct DesiredState {
    /// `None`: unchanged. `Some(None)`: no room, even if the token names one.
    pub(crate) room: Option<Option<String>>,
    /// True for operations that are wanted, false for those that are not, even if the token lists
    /// them.
    operations: BTreeMap<Operation, bool>,
    /// The same for rooms besides the first one.
    rooms: BTreeMap<String, bool>,
}

/// One change of the state, held until the server has confirmed it.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) before: DesiredState,
    pub(crate) after: DesiredState,
}

impl DesiredState {
    /// The maximum number of operations that differ from the token. The list of all of them fits a
    /// packet of 4,096 bytes: a number with its comma takes at most twelve.
    pub(crate) const OPERATIONS_MAX: usize = 256;

    /// The maximum number of rooms that differ from the token: the server's default limit of rooms
    /// per session.
    pub(crate) const ROOMS_MAX: usize = 1000;

    /// Records a subscription or its end.
    ///
    /// # Errors
    /// [`RequestFailure::TooMany`] when the state would exceed its bound; it is then unchanged.
    pub(crate) fn change_operations(
        &mut self,
        operations: &[Operation],
        wanted: bool,
    ) -> Result<(), RequestFailure> {
        change(&mut self.operations, operations, wanted, Self::OPERATIONS_MAX)
    }

    /// Records that rooms are joined or left.
    ///
    /// # Errors
    /// [`RequestFailure::TooMany`] when the state would exceed its bound; it is then unchanged.
    pub(crate) fn change_rooms(&mut self, rooms: &[String], wanted: bool) -> Result<(), RequestFailure> {
        change(&mut self.rooms, rooms, wanted, Self::ROOMS_MAX)
    }

    /// Undoes a change that the server refused. Entries that were changed again since then keep
    /// their newer value.
    pub(crate) fn rollback(&mut self, Change { before, after }: &Change) {
        if self.room == after.room {
            self.room.clone_from(&before.room);
        }
        rollback(&mut self.rooms, &before.rooms, &after.rooms);
        rollback(&mut self.operations, &before.operations, &after.operations);
    }

    /// Returns the identity with the changes written into it.
    pub(crate) fn apply(&self, identity: &Identity) -> Identity {
        let mut identity = identity.clone();
        if let Some(room) = &self.room {
            identity.room_id.clone_from(room);
        }
        apply(&self.rooms, &mut identity.rooms);
        apply(&self.operations, &mut identity.accepts);
        identity
    }

    /// Returns the requests that bring a connection from the state `applied` to this one.
    pub(crate) fn resync(&self, applied: &Self) -> Vec<(Operation, Vec<u8>)> {
        let mut requests = Vec::new();
        // Subscriptions first, so that no message of the new room is filtered out.
        for (request, wanted) in [(Operation::SUBSCRIBE, true), (Operation::UNSUBSCRIBE, false)] {
            let changed = difference(&self.operations, &applied.operations, wanted);
            let changed: Vec<Operation> = changed.copied().collect();
            if !changed.is_empty() {
                requests.push((request, control::format_operations(&changed)));
            }
        }
        for (request, wanted) in [(Operation::JOIN_ROOMS, true), (Operation::LEAVE_ROOMS, false)] {
            let changed: Vec<&str> =
                difference(&self.rooms, &applied.rooms, wanted).map(String::as_str).collect();
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

fn change<K: Ord + Clone>(
    map: &mut BTreeMap<K, bool>,
    keys: &[K],
    wanted: bool,
    max: usize,
) -> Result<(), RequestFailure> {
    let new = keys.iter().filter(|key| !map.contains_key(key)).count();
    if map.len().saturating_add(new) > max {
        return Err(RequestFailure::TooMany);
    }
    map.extend(keys.iter().map(|key| (key.clone(), wanted)));
    Ok(())
}

fn rollback<K: Ord + Clone>(
    map: &mut BTreeMap<K, bool>,
    before: &BTreeMap<K, bool>,
    after: &BTreeMap<K, bool>,
) {
    for (key, value) in after {
        let old = before.get(key);
        if old == Some(value) || map.get(key) != Some(value) {
            continue;
        }
        match old {
            Some(old) => map.insert(key.clone(), *old),
            None => map.remove(key),
        };
    }
}

fn apply<K: Ord + Clone>(changes: &BTreeMap<K, bool>, list: &mut Vec<K>) {
    list.retain(|key| changes.get(key) != Some(&false));
    for (key, wanted) in changes {
        if *wanted && !list.contains(key) {
            list.push(key.clone());
        }
    }
}

/// The keys whose value is `wanted` in `map` and not in `applied`.
fn difference<'a, K: Ord>(
    map: &'a BTreeMap<K, bool>,
    applied: &'a BTreeMap<K, bool>,
    wanted: bool,
) -> impl Iterator<Item = &'a K> {
    let changed = move |(key, value): &(&K, &bool)| **value == wanted && applied.get(*key) != Some(*value);
    map.iter().filter(changed).map(|(key, _)| key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn desired(room: Option<Option<&str>>, operations: &[(i32, bool)]) -> DesiredState {
        DesiredState {
            room: room.map(|room| room.map(str::to_owned)),
            operations: operations.iter().map(|(op, value)| (Operation(*op), *value)).collect(),
            rooms: BTreeMap::new(),
        }
    }

    #[test]
    fn changes_are_written_into_the_identity() {
        let identity = Identity::new(1).room("a").accepts([1000, 1001]);
        assert_eq!(DesiredState::default().apply(&identity), identity);
        let changed = desired(Some(Some("b")), &[(1000, false), (1001, true), (1002, true)]);
        assert_eq!(changed.apply(&identity), Identity::new(1).room("b").accepts([1001, 1002]));
        assert_eq!(desired(Some(None), &[]).apply(&identity).room_id, None);
    }

    #[test]
    fn resync_requests_what_the_token_did_not_contain() {
        let check = |from: &DesiredState, to: &DesiredState, expect: &[(Operation, &[u8])]| {
            let requests = to.resync(from);
            let requests: Vec<_> = requests.iter().map(|(op, body)| (*op, body.as_slice())).collect();
            assert_eq!(requests, expect);
        };
        let none = DesiredState::default();
        let some = desired(Some(Some("b")), &[(1000, false), (1001, true), (1002, true)]);
        let all: [(Operation, &[u8]); 3] = [
            (Operation::SUBSCRIBE, b"1001,1002"),
            (Operation::UNSUBSCRIBE, b"1000"),
            (Operation::CHANGE_ROOM, b"b"),
        ];
        check(&none, &some, &all);
        check(&some, &some, &[]);
        check(&none, &none, &[]);
        let left = desired(Some(None), &[(1000, true), (1001, true), (1002, true)]);
        check(&some, &left, &[(Operation::SUBSCRIBE, b"1000"), (Operation::CHANGE_ROOM, b"")]);
    }

    #[test]
    fn rooms_are_restored() {
        let identity = Identity::new(1).rooms(["a", "b"]);
        let mut changed = DesiredState::default();
        changed.change_rooms(&["b".to_owned()], false).unwrap();
        changed.change_rooms(&["c".to_owned()], true).unwrap();
        assert_eq!(changed.apply(&identity).rooms, ["a", "c"]);
        let requests =
            [(Operation::JOIN_ROOMS, br#"["c"]"#.to_vec()), (Operation::LEAVE_ROOMS, br#"["b"]"#.to_vec())];
        assert_eq!(changed.resync(&DesiredState::default()), requests);
        assert_eq!(changed.resync(&changed), []);
        let before = DesiredState::default();
        let mut now = changed.clone();
        now.rollback(&Change { before: before.clone(), after: changed });
        assert_eq!(now, before);
    }

    #[test]
    fn rollback_undoes_a_refused_change_and_keeps_later_ones() {
        let before = desired(Some(Some("a")), &[(1, true)]);
        let after = desired(Some(Some("b")), &[(1, false), (2, true), (3, true)]);
        let change = Change { before: before.clone(), after: after.clone() };
        let mut now = after.clone();
        now.rollback(&change);
        assert_eq!(now, before);

        let mut now = desired(Some(None), &[(1, false), (2, false), (3, true), (4, true)]);
        now.rollback(&change);
        assert_eq!(now, desired(Some(None), &[(1, true), (2, false), (4, true)]));
    }

    #[test]
    fn changes_are_bounded_and_fit_one_packet() {
        let mut desired = DesiredState::default();
        let many: Vec<Operation> = (0..256).map(|n| Operation(i32::MIN + n)).collect();
        desired.change_operations(&many, true).unwrap();
        desired.change_operations(&many, true).unwrap();
        assert!(matches!(desired.change_operations(&[Operation(1)], true), Err(RequestFailure::TooMany)));
        assert!(desired.resync(&DesiredState::default())[0].1.len() <= 4096);
    }
}
