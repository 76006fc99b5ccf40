//! The other members of the consumer group.
//!
//! goim's Go jobs (sarama) and librdkafka cannot share a group: neither can read the other's
//! subscription metadata. With a Go leader the rebalance never completes and no job gets pushes;
//! with a librdkafka leader the Go jobs get no partitions. So a job checks the group before it
//! joins.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rdkafka::consumer::{Consumer, ConsumerContext};
use rdkafka::groups::GroupList;

/// Pause between two requests.
const PAUSE: Duration = Duration::from_millis(200);

/// The client id of goim's jobs.
const SARAMA: &str = "sarama";

/// Why a job does not join the group.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GroupError {
    /// goim's Go jobs are members of the group.
    #[error(
        "consumer group {group} has {members} members of goim's Go jobs ({hosts}), which cannot share a group with this job: \
         stop the Go jobs first, then start this job with the same group; it continues at their offsets \
         (docs/migrating-from-goim.md, \"Jobs\")"
    )]
    GoJobs {
        /// The group.
        group: String,
        /// The number of Go jobs.
        members: usize,
        /// Their hosts.
        hosts: String,
    },
    /// The group could not be described.
    #[error("consumer group {group} cannot be described through {brokers}: {reason}")]
    Unavailable {
        /// The group.
        group: String,
        /// The brokers that were asked.
        brokers: String,
        /// The error of the client.
        reason: String,
    },
}

/// Checks that no Go job is in the group. Blocks for `deadline` at most.
pub(super) fn check<C: ConsumerContext>(
    consumer: &impl Consumer<C>,
    group: &str,
    brokers: &str,
    deadline: Duration,
) -> Result<(), GroupError> {
    let until = Instant::now() + deadline;
    let list = loop {
        let left = until.saturating_duration_since(Instant::now()).max(PAUSE);
        match consumer.fetch_group_list(Some(group), left) {
            Ok(list) => break list,
            // A broker that has just started has not loaded its groups yet.
            Err(_) if Instant::now() + PAUSE < until => std::thread::sleep(PAUSE),
            Err(error) => {
                return Err(GroupError::Unavailable {
                    group: group.to_owned(),
                    brokers: brokers.to_owned(),
                    reason: error.to_string(),
                });
            }
        }
    };
    let members = list.groups().iter().flat_map(|group| group.members());
    let hosts: Vec<&str> =
        members.filter(|member| member.client_id() == SARAMA).map(|member| member.client_host()).collect();
    if hosts.is_empty() {
        return Ok(());
    }
    Err(GroupError::GoJobs { group: group.to_owned(), members: hosts.len(), hosts: hosts.join(", ") })
}

/// Returns the partitions of a topic that are assigned to members; `None` during a rebalance, or
/// when an assignment cannot be read.
pub(super) fn assigned(list: &GroupList, topic: &str) -> Option<BTreeSet<i32>> {
    let mut all = BTreeSet::new();
    for group in list.groups() {
        if group.state() != STABLE {
            return None;
        }
        for member in group.members() {
            all.extend(partitions_of(member.assignment().unwrap_or_default(), topic)?);
        }
    }
    Some(all)
}

/// The state of a group whose rebalance is complete.
const STABLE: &str = "Stable";

/// Reads a topic's partitions from an assignment in the consumer protocol: a version, and a list of
/// topics with their partitions.
fn partitions_of(assignment: &[u8], topic: &str) -> Option<Vec<i32>> {
    // A member without partitions may have an empty assignment.
    if assignment.is_empty() {
        return Some(Vec::new());
    }
    let mut rest = assignment;
    let mut take = |count: usize| -> Option<&[u8]> {
        let (taken, left) = rest.split_at_checked(count)?;
        rest = left;
        Some(taken)
    };
    let mut found = Vec::new();
    take(2)?;
    let topics = u32::from_be_bytes(take(4)?.try_into().ok()?);
    for _ in 0..topics {
        let length = u16::from_be_bytes(take(2)?.try_into().ok()?);
        let is_it = take(usize::from(length))? == topic.as_bytes();
        let partitions = u32::from_be_bytes(take(4)?.try_into().ok()?);
        for _ in 0..partitions {
            let partition = i32::from_be_bytes(take(4)?.try_into().ok()?);
            if is_it {
                found.push(partition);
            }
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_partitions_of_an_assignment_are_those_of_the_topic() {
        let assignment =
            b"\0\0\0\0\0\x02\0\x01a\0\0\0\x01\0\0\0\x07\0\x04push\0\0\0\x02\0\0\0\0\0\0\0\x03\0\0\0\0";
        assert_eq!(partitions_of(assignment, "push"), Some(vec![0, 3]));
        assert_eq!(partitions_of(assignment, "none"), Some(vec![]));
        assert_eq!(partitions_of(b"", "push"), Some(vec![]));
        for end in 1..assignment.len() - 4 {
            assert_eq!(partitions_of(&assignment[..end], "push"), None, "cut off at {end}");
        }
    }
}
