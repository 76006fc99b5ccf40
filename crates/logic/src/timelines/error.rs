//! The errors of requests about timelines.

use std::time::Duration;

use goim_ports::{Operation, TimelineError};

use super::long_poll::LongPollError;

/// Why a request about timelines failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TimelineRequestError {
    /// This server has no timeline store.
    #[error("this server stores no messages: set timelines.folder or timelines.postgres")]
    None,
    /// The request is invalid.
    #[error("{0}")]
    Invalid(String),
    /// The reader or sender is not allowed to do this.
    #[error("access to {0} is not allowed")]
    Forbidden(String),
    /// A member's message has an operation that is reserved.
    #[error(
        "operation {0} is not for members: they send 4, and what logic.timelines.send.allowed names from 1000 on"
    )]
    Reserved(Operation),
    /// The member exceeds a send quota.
    #[error("the member exceeds its quota of {limit} (logic.timelines.send)")]
    Limited {
        /// The quota: messages or bytes.
        limit: &'static str,
        /// When the message fits.
        retry_after: Duration,
    },
    /// The record of the message would be too large for the push log.
    #[error("makes a record of {size} bytes; {limit} is the most")]
    TooLarge {
        /// The record's size in bytes.
        size: usize,
        /// The maximum size in bytes.
        limit: usize,
    },
    /// The timeline store failed.
    #[error(transparent)]
    Store(#[from] TimelineError),
    /// The backend did not decide whether the member may send.
    #[error("the backend did not decide whether the member may send: {0}")]
    Undecided(String),
    /// A limit of long polls is reached.
    #[error(transparent)]
    LongPoll(#[from] LongPollError),
}

impl TimelineRequestError {
    /// Returns the message for clients. Details of an engine or a webhook are only for the log.
    #[must_use]
    pub fn public(&self) -> String {
        match self {
            Self::Store(TimelineError::Busy(_)) => {
                "the timeline store is overloaded; try again later".to_owned()
            }
            Self::Store(TimelineError::Unavailable(_)) => {
                "the timeline store is not available; try again later".to_owned()
            }
            Self::Store(TimelineError::Unknown(_)) => {
                "the outcome is unknown; a retry is safe with an idempotency key".to_owned()
            }
            Self::Undecided(_) => {
                "the backend did not decide whether the member may send; try again later".to_owned()
            }
            Self::None
            | Self::Invalid(_)
            | Self::Forbidden(_)
            | Self::Reserved(_)
            | Self::Limited { .. }
            | Self::TooLarge { .. }
            | Self::Store(TimelineError::Invalid(_))
            | Self::LongPoll(_) => self.to_string(),
        }
    }
}
