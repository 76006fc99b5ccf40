//! Why a benchmark has no result. A result that shows losses is a result, not an error.

use std::fmt;
use std::io;

/// Why a benchmark has no result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BenchError {
    /// The arguments are invalid.
    #[error("{0}")]
    Usage(String),
    /// Connecting to an address failed.
    #[error("cannot reach {what} at {at}: {reason}")]
    Unreachable {
        /// The kind of endpoint.
        what: &'static str,
        /// The address.
        at: String,
        /// The error of the system.
        reason: String,
    },
    /// The limit of open files of a process is too low.
    #[error(
        "{process} needs {needed} open files, and its limit is {limit}: raise the limit (ulimit -n {needed}, \
         LimitNOFILE), or use {alternative}"
    )]
    Descriptors {
        /// The process.
        process: &'static str,
        /// The open files that it needs.
        needed: u64,
        /// Its limit.
        limit: u64,
        /// The option that lowers the need.
        alternative: &'static str,
    },
    /// The HTTP API refused a push.
    #[error("the push was refused: {0}")]
    Refused(String),
    /// The run failed.
    #[error("{0}")]
    Failed(String),
}

impl BenchError {
    /// Exit status for invalid arguments: `EX_USAGE`.
    pub(crate) const EXIT_USAGE: u8 = 64;

    /// Returns the exit status: 64 for invalid arguments, 69 for an unreachable server, else 1.
    pub(crate) const fn exit_status(&self) -> u8 {
        match self {
            Self::Usage(_) => Self::EXIT_USAGE,
            Self::Unreachable { .. } => 69,
            Self::Descriptors { .. } | Self::Refused(_) | Self::Failed(_) => 1,
        }
    }

    /// Creates an error of the form `what: error`.
    pub(crate) fn failed(what: impl fmt::Display, error: impl fmt::Display) -> Self {
        Self::Failed(format!("{what}: {error}"))
    }

    /// Checks that a process may have as many connections as this, and a few files more.
    pub(crate) fn check_descriptors(process: &'static str, connections: u32, limit: u64) -> Result<(), Self> {
        let needed = u64::from(connections) + 100;
        if needed > limit {
            return Err(Self::Descriptors { process, needed, limit, alternative: "fewer --connections" });
        }
        Ok(())
    }
}

/// A pipe to a child process broke. The child's own message is on standard error.
impl From<io::Error> for BenchError {
    fn from(error: io::Error) -> Self {
        Self::failed("a process of this benchmark has ended", error)
    }
}
