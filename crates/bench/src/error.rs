//! Why a benchmark came to no result. A result that shows losses is no error: it is what was asked for.

use std::fmt;
use std::io;

/// Why a benchmark came to no result.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The arguments cannot be meant like that.
    #[error("{0}")]
    Usage(String),
    /// Nobody answers at an address.
    #[error("cannot reach {what} at {at}: {reason}")]
    Unreachable {
        /// What was expected there.
        what: &'static str,
        /// The address.
        at: String,
        /// What the system said.
        reason: String,
    },
    /// A process may not have as many open files as it would need.
    #[error(
        "{who} needs {needed} open files and may have {limit} (ulimit -n): raise the limit (ulimit -n {needed}, \
         LimitNOFILE), or take fewer with {way_out}"
    )]
    Descriptors {
        /// Which process.
        who: &'static str,
        /// What it needs.
        needed: u64,
        /// What it may have.
        limit: u64,
        /// The option that lowers the need.
        way_out: &'static str,
    },
    /// The HTTP API did not take a push.
    #[error("the push was refused: {0}")]
    Refused(String),
    /// The run broke off.
    #[error("{0}")]
    Failed(String),
}

impl BenchError {
    /// How the process should end: 64 for wrong arguments, 69 when nobody answers, else 1.
    #[must_use]
    pub const fn exit_status(&self) -> u8 {
        match self {
            Self::Usage(_) => 64,
            Self::Unreachable { .. } => 69,
            Self::Descriptors { .. } | Self::Refused(_) | Self::Failed(_) => 1,
        }
    }

    /// `what` went wrong because of `error`.
    pub(crate) fn failed(what: impl fmt::Display, error: impl fmt::Display) -> Self {
        Self::Failed(format!("{what}: {error}"))
    }
}

/// A pipe to a child has broken: the child's own words, on standard error, say why.
impl From<io::Error> for BenchError {
    fn from(error: io::Error) -> Self {
        Self::failed("a process of this benchmark has gone", error)
    }
}
