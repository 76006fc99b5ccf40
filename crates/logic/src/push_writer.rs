//! Appends records to the push log within its limits, and counts pushes by their result.

use std::sync::Arc;
use std::time::Instant;

use goim_ports::{AppendError, Appended, DirectoryError, PushLog, PushRecord, RateLimitedLog};
use prometheus_client::metrics::histogram::Histogram;

use crate::config::PushConfig;
use crate::deadline::with_timeout;
use crate::metrics::{Metrics, PushCounters, PushKind, PushResult};
use crate::record;

/// Why a push, or a part of it, was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    /// A push to keys without a key. goim v2's message is empty too.
    #[error("a push to keys must name at least one key")]
    NoKeys,
    /// The receivers could not be looked up.
    #[error("{0}")]
    Directory(DirectoryError),
    /// The push log refused a record.
    #[error("{0}")]
    Append(AppendError),
}

impl PushError {
    /// Converts the error of one record into the error of the push. `may_be_in` is true when other
    /// records of the push may be in the log already.
    pub(crate) fn after(self, may_be_in: bool) -> Self {
        match self {
            Self::Append(error) if may_be_in => Self::Append(error.in_part()),
            error => error,
        }
    }
}

/// The writing end of the push log.
pub(crate) struct PushWriter {
    log: Arc<dyn PushLog>,
    config: PushConfig,
    append_seconds: Histogram,
    pushes: PushCounters,
    failure_log: RateLimitedLog,
}

impl PushWriter {
    pub(crate) fn new(log: Arc<dyn PushLog>, config: PushConfig, metrics: &Metrics) -> Self {
        Self {
            log,
            config,
            append_seconds: metrics.append_seconds.clone(),
            pushes: metrics.pushes.clone(),
            failure_log: RateLimitedLog::default(),
        }
    }

    /// Checks that a record is not larger than `record_bytes_max`.
    ///
    /// # Errors
    /// [`AppendError::TooLarge`].
    pub(crate) fn check_size(&self, record: &PushRecord) -> Result<(), AppendError> {
        let (size, limit) = (record::size(record), self.config.record_bytes_max);
        if size > limit { Err(AppendError::TooLarge { size, limit }) } else { Ok(()) }
    }

    /// Appends a record.
    ///
    /// # Errors
    /// [`PushError::Append`].
    pub(crate) async fn append(&self, record: PushRecord) -> Result<(), PushError> {
        self.check_size(&record).map_err(PushError::Append)?;
        let started = Instant::now();
        let appended = with_timeout(self.config.append_timeout, self.log.append(record), append_late).await;
        self.append_seconds.observe(started.elapsed().as_secs_f64());
        appended.map_err(PushError::Append)
    }

    /// Appends records in order, with one call of the log. Their sizes must have been checked.
    pub(crate) async fn append_all(&self, records: Vec<PushRecord>) -> Appended {
        let started = Instant::now();
        let appended = self.log.append_all(records).map(Ok);
        let appended = with_timeout(self.config.append_timeout, appended, append_late).await;
        self.append_seconds.observe(started.elapsed().as_secs_f64());
        appended.unwrap_or_else(|late| Appended { accepted: 0, error: Some(late) })
    }

    /// Counts a push. Logs, at most once a second, that a dependency failed.
    pub(crate) fn count(&self, kind: PushKind, error: Option<&PushError>) {
        let result = match error {
            None => PushResult::Accepted,
            Some(PushError::NoKeys) => PushResult::Invalid,
            Some(PushError::Append(AppendError::TooLarge { .. })) => PushResult::TooLarge,
            Some(PushError::Append(AppendError::Full)) => PushResult::Full,
            Some(error @ (PushError::Append(AppendError::Unavailable(_)) | PushError::Directory(_))) => {
                if let Some(suppressed) = self.failure_log.try_log(Instant::now()) {
                    tracing::warn!(?kind, %error, suppressed, "push failed");
                }
                PushResult::Unavailable
            }
            Some(PushError::Append(AppendError::Unknown(reason))) => {
                if let Some(suppressed) = self.failure_log.try_log(Instant::now()) {
                    tracing::warn!(?kind, %reason, suppressed, "a push may or may not be in the log");
                }
                PushResult::Unknown
            }
        };
        self.pushes.count(kind, result);
    }
}

/// The error of an append that timed out.
pub(crate) fn append_late() -> AppendError {
    AppendError::Unknown("the push log did not answer within logic.push.append_timeout".to_owned())
}
