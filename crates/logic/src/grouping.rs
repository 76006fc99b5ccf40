//! Groups the receivers of a message by comet.

use goim_ports::{PushTarget, ServerId, SessionKey, SessionRecord};
use smallvec::{SmallVec, smallvec};

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
pub(crate) fn targets<B: Clone>(groups: Groups, body: B) -> impl Iterator<Item = (PushTarget, B)> {
    let bodies = std::iter::repeat_n(body, groups.len());
    groups.into_iter().map(|(server, keys)| PushTarget::Keys { server, keys }).zip(bodies)
}

/// Groups sessions by comet, as targets.
pub(crate) fn by_server(sessions: Vec<SessionRecord>) -> Vec<PushTarget> {
    let groups = group(sessions.into_iter().map(|session| (session.server, session.key)));
    groups.into_iter().map(|(server, keys)| PushTarget::Keys { server, keys }).collect()
}

/// Comets are in the order of their first key, keys in their own.
pub(crate) fn group(found: impl Iterator<Item = (ServerId, SessionKey)>) -> Groups {
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
