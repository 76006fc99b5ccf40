//! Which messages members may send without a call of the backend.
//!
//! Receivers get a member's message with the operation that the member chose. Operations of the
//! protocol are therefore reserved: a client that could send operation 6 to its room would speak
//! for the server. Members send operation 4 and those of the backend, from 1000 on. Send rules
//! allow messages to timelines; the backend decides about all others.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use goim_ports::{Operation, TimelineId};

/// True for an operation that members may send: 4, and those from 1000 on. All others are the
/// protocol's.
pub(crate) fn is_for_members(operation: i32) -> bool {
    operation == Operation::SEND.0 || operation >= Operation::BACKEND_MIN.0
}

/// A rule: members may send messages with these operations to timelines with these names, without a
/// call of the backend. The format is `live://*: 4, 1000..1999`: a name, or a prefix of names
/// followed by `*`, and operations or ranges of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SendRule {
    name: String,
    operations: Vec<RangeInclusive<i32>>,
}

impl SendRule {
    fn allows(&self, timeline: &str, operation: Operation) -> bool {
        let is_named = match self.name.strip_suffix('*') {
            Some(beginning) => timeline.starts_with(beginning),
            None => timeline == self.name,
        };
        is_named && self.operations.iter().any(|range| range.contains(&operation.0))
    }
}

impl FromStr for SendRule {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        // Names contain colons, operations do not.
        let (name, list) = text.rsplit_once(':').ok_or(())?;
        let name = name.trim();
        if name.is_empty() || name.strip_suffix('*').is_none() && TimelineId::parse(name).is_none() {
            return Err(());
        }
        let range = |text: &str| {
            let (first, last) = text.split_once("..").unwrap_or((text, text));
            let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
            let is_one = first == last && is_for_members(first);
            let is_backend = first >= Operation::BACKEND_MIN.0 && first <= last;
            (is_one || is_backend).then_some(first..=last)
        };
        let operations: Option<Vec<_>> = list.split(',').map(range).collect();
        Ok(Self { name: name.to_owned(), operations: operations.ok_or(())? })
    }
}

impl fmt::Display for SendRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.name)?;
        for (place, range) in self.operations.iter().enumerate() {
            let (first, last) = (range.start(), range.end());
            f.write_str(if place == 0 { " " } else { ", " })?;
            if first == last { write!(f, "{first}")? } else { write!(f, "{first}..{last}")? }
        }
        Ok(())
    }
}

/// True when a rule allows the message without a call of the backend. `own` is true for the
/// member's own inbox and for a room that its session is in.
pub(super) fn is_allowed(rules: &[SendRule], own: bool, timeline: &TimelineId, operation: Operation) -> bool {
    let is_own_inbox = own && matches!(timeline, TimelineId::Inbox(_));
    let name = timeline.to_string();
    own && (is_own_inbox && operation == Operation::SEND
        || rules.iter().any(|rule| rule.allows(&name, operation)))
}

#[cfg(test)]
mod tests {
    use goim_ports::Mid;

    use super::*;

    #[test]
    fn operations_of_the_protocol_are_not_for_members() {
        for operation in [i32::MIN, -1, 0, 1, 2, 3, 5, 6, 7, 8, 9, 12, 20, 22, 25, 31, 32, 999] {
            assert!(!is_for_members(operation), "{operation}");
        }
        for operation in [4, 1000, i32::MAX] {
            assert!(is_for_members(operation), "{operation}");
        }
    }

    #[test]
    fn rules_are_read_and_written() {
        for text in ["live://*: 4", "live://1: 4, 1000..1999", "mid://*: 1000", "*: 4, 5000..2147483647"] {
            let rule: SendRule = text.parse().unwrap();
            assert_eq!(rule.to_string(), text);
        }
        for text in [
            "",
            "live://*",
            ": 4",
            "live://*:",
            "live: 4",
            "live://*: 6",
            "live://*: 4..1000",
            "live://*: 999..1001",
            "live://*: 1001..1000",
            "live://*: 4,",
            "live://*: 0..5",
            "mid://x: 4",
        ] {
            assert!(text.parse::<SendRule>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn send_rules_allow() {
        let rules: Vec<SendRule> = ["live://*: 4, 1000..1999", "chat://7: 4", "mid://*: 2000"]
            .map(|rule| rule.parse().unwrap())
            .into();
        let may = |own, name: &str, operation| {
            is_allowed(&rules, own, &TimelineId::parse(name).unwrap(), Operation(operation))
        };
        for (own, name, operation, allowed) in [
            (true, "live://1", 4, true),
            (true, "live://1", 1999, true),
            (true, "live://1", 2000, false),
            (false, "live://1", 4, false),
            (true, "chat://7", 4, true),
            (true, "chat://77", 4, false),
            (true, "other://7", 4, false),
            (true, "mid://7", 4, true),
            (true, "mid://7", 2000, true),
            (true, "mid://7", 1000, false),
            (false, "mid://7", 4, false),
        ] {
            assert_eq!(may(own, name, operation), allowed, "{own} {name} {operation}");
        }
        assert!(is_allowed(&[], true, &TimelineId::Inbox(Mid(7)), Operation::SEND), "its own inbox");
        assert!(!is_allowed(&[], true, &TimelineId::Room("live://1".into()), Operation::SEND));
    }
}
