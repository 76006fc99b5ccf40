//! Who else is in the consumer group.
//!
//! goim's jobs (sarama) and librdkafka cannot share one: they write the metadata of their subscriptions in forms that the other
//! cannot read. With a Go leader the group never finishes its rebalance and nobody gets any push; with ours the Go jobs go
//! empty. So a job of ours looks before it joins.

use std::time::{Duration, Instant};

use rdkafka::consumer::{Consumer, ConsumerContext};

/// Pause between two questions.
const PAUSE: Duration = Duration::from_millis(200);

/// The client id of goim's jobs.
const SARAMA: &str = "sarama";

/// Why a job does not join the group.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GroupError {
    /// goim's own jobs are in it.
    #[error(
        "consumer group {group} has {members} members of goim's Go jobs ({hosts}), and the two kinds cannot share a group: \
         stop the Go jobs first, then start this one with the same group; it goes on at their offsets \
         (docs/migrating-from-goim.md, \"Jobs\")"
    )]
    GoJobs {
        /// The group.
        group: String,
        /// How many of them there are.
        members: usize,
        /// Where they run.
        hosts: String,
    },
    /// The group could not be looked at.
    #[error("consumer group {group} cannot be looked at through {brokers}: {reason}")]
    Unavailable {
        /// The group.
        group: String,
        /// The brokers that were asked.
        brokers: String,
        /// What the client says.
        reason: String,
    },
}

/// Looks whether goim's jobs are in the group. Blocks for `deadline` at most.
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
            // A broker that has just started does not know its groups yet.
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
