//! Timelines: stored messages, and who may store and read them.
//!
//! The store is behind a port. `push` and `request` store messages, `sending` limits what members
//! send, `announce` notifies sessions and `offline` the backend, `reader` and `long_poll` read.
//!
//! Invariant: a publisher is answered when its message is durable, and no later failure turns that
//! answer into an error. A session that was not notified finds the message with its next sync.

mod announce;
mod long_poll;
mod offline;
mod push;
mod reader;
mod request;
mod sending;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use goim_ports::{
    Call, EndCode, EndTarget, HttpClient, Operation, PushLog, RateLimitedLog, SessionDirectory,
    TimelineError, TimelineId, TimelineStore, VersionTable,
};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use tokio::sync::Semaphore;

pub use long_poll::LongPollError;
pub(crate) use long_poll::{LongPoll, LongPollEnd};
use offline::OfflineQueue;
pub use offline::offline_json;
pub use push::{AppendedMessage, StoredPush, StoredTo};
pub(crate) use reader::{LongPollOutcome, Reader, Unread};
pub use sending::SendRule;

use crate::config::{PushConfig, TimelinesConfig};
use crate::deadline::with_timeout;
use crate::webhook::Webhook;
use long_poll::{LongPollLimits, LongPolls};
use sending::SendQuotas;

/// The maximum size of an answer of `send_webhook`, in bytes.
const ANSWER_BYTES_MAX: usize = 4 * 1024;

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

/// The parts of logic that timelines use.
pub(crate) struct Parts {
    pub(crate) store: Arc<dyn TimelineStore>,
    pub(crate) push_log: Arc<dyn PushLog>,
    pub(crate) sessions: Arc<dyn SessionDirectory>,
    pub(crate) http: Arc<dyn HttpClient>,
    pub(crate) versions: VersionTable,
    pub(crate) config: TimelinesConfig,
    pub(crate) push: PushConfig,
    pub(crate) directory_timeout: Duration,
}

/// The timelines of one logic.
pub(crate) struct Timelines {
    store: Arc<dyn TimelineStore>,
    push_log: Arc<dyn PushLog>,
    sessions: Arc<dyn SessionDirectory>,
    versions: VersionTable,
    config: TimelinesConfig,
    push: PushConfig,
    directory_timeout: Duration,
    /// Decides about messages that no rule allows. Without it they are refused.
    may_send: Option<Webhook>,
    quotas: SendQuotas,
    long_polls: LongPolls,
    /// The queue of notifications about offline members, when a sink is set.
    offline: OnceLock<Arc<OfflineQueue>>,
    /// Limits the retries of notifications in the background.
    announcing: Arc<Semaphore>,
    unannounced: RateLimitedLog,
    /// The log line for failures of the store.
    failure_log: RateLimitedLog,
    metrics: TimelineMetrics,
}

/// The metrics of timelines.
pub(crate) struct TimelineMetrics {
    appended: Counter,
    duplicates: Counter,
    append_seconds: Histogram,
    read: Counter,
    resets: Counter,
    /// Messages whose sessions could not be notified.
    unannounced: Counter,
    /// Long polls that were refused.
    long_polls_refused: Counter,
    /// Long polls that the backend ended.
    long_polls_ended: Counter,
    requests: Family<Vec<(&'static str, &'static str)>, Counter>,
    /// Messages of members that exceed a quota, by quota.
    limited: Family<Vec<(&'static str, &'static str)>, Counter>,
}

impl Timelines {
    pub(crate) fn new(parts: Parts) -> Arc<Self> {
        let Parts { store, push_log, sessions, http, versions, config, push, directory_timeout } = parts;
        let hook = config.send_webhook.clone();
        let may_send = (!hook.url.is_empty())
            .then(|| Webhook::new("timelines.send_webhook", hook, http, ANSWER_BYTES_MAX));
        Arc::new(Self {
            quotas: SendQuotas::new(config.send.clone()),
            long_polls: LongPolls::new(LongPollLimits {
                all: config.long_polls_max,
                per_member: config.long_polls_per_member_max,
                per_address: config.long_polls_per_address_max,
            }),
            offline: OnceLock::new(),
            announcing: Arc::new(Semaphore::new(config.notify_retries_max.max(1))),
            unannounced: RateLimitedLog::default(),
            failure_log: RateLimitedLog::default(),
            metrics: TimelineMetrics::default(),
            store,
            push_log,
            sessions,
            versions,
            config,
            push,
            directory_timeout,
            may_send,
        })
    }

    pub(crate) fn register(self: &Arc<Self>, registry: &mut Registry) {
        self.metrics.register(registry);
        registry.register_collector(Box::new(LongPollCount(Arc::clone(self))));
        if let Some(offline) = self.offline.get() {
            let notified = "Offline members reported when a message was stored for them";
            registry.register("goim_logic_offline_notified", notified, offline.notified.clone());
            let dropped = "Offline members not reported, because too many were queued";
            registry.register("goim_logic_offline_dropped", dropped, offline.dropped.clone());
        }
    }

    /// Limits a call of the store to its deadline. The outcome of a write is unknown then.
    async fn call_store<T: Send + Unpin + 'static>(
        &self,
        call: Call<Result<T, TimelineError>>,
    ) -> Result<T, TimelineRequestError> {
        let late = || TimelineError::Unknown("the store did not answer in time".to_owned());
        let answer = with_timeout(self.config.store_timeout, call, late).await;
        if let Err(error @ (TimelineError::Unavailable(_) | TimelineError::Unknown(_))) = &answer
            && let Some(suppressed) = self.failure_log.try_log(Instant::now())
        {
            tracing::warn!(%error, suppressed, "the timeline store fails");
        }
        Ok(answer?)
    }

    /// Ends long polls by an order of the backend.
    pub(crate) fn end_long_polls(&self, of: &EndTarget, code: EndCode) {
        self.metrics.long_polls_ended.inc_by(self.long_polls.end(of, code) as u64);
    }

    /// Ends all long polls, because this process drains.
    pub(crate) fn drain_long_polls(&self) {
        self.long_polls.drain();
    }
}

/// The number of long polls, read when metrics are collected.
struct LongPollCount(Arc<Timelines>);

impl std::fmt::Debug for LongPollCount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LongPollCount")
    }
}

impl Collector for LongPollCount {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let gauge = ConstGauge::new(i64::try_from(self.0.long_polls.count()).unwrap_or(i64::MAX));
        let help = "Streams and requests that wait for messages";
        let encoder = encoder.encode_descriptor("goim_logic_long_polls", help, None, gauge.metric_type())?;
        gauge.encode(encoder)
    }
}

/// Parses the name of a timeline.
fn parse_timeline(text: &str) -> Result<TimelineId, TimelineRequestError> {
    let wrong =
        || TimelineRequestError::Invalid(format!("{text:?} is not a timeline: write mid://7 or live://1000"));
    TimelineId::parse(text).ok_or_else(wrong)
}

impl Default for TimelineMetrics {
    fn default() -> Self {
        let (appended, duplicates, read, resets, unannounced, requests, limited) = Default::default();
        let (long_polls_refused, long_polls_ended) = Default::default();
        // 100 µs on a fast disk to 13 s on an overloaded one.
        let append_seconds = Histogram::new(exponential_buckets(0.000_1, 2.5, 14));
        Self {
            appended,
            duplicates,
            append_seconds,
            read,
            resets,
            unannounced,
            long_polls_refused,
            long_polls_ended,
            requests,
            limited,
        }
    }
}

impl TimelineMetrics {
    fn request(&self, kind: &'static str, result: &Result<(), &TimelineRequestError>) {
        let result = match result {
            Ok(()) => "ok",
            Err(TimelineRequestError::Forbidden(_) | TimelineRequestError::Reserved(_)) => "forbidden",
            Err(TimelineRequestError::Limited { .. }) => "limited",
            Err(
                TimelineRequestError::None
                | TimelineRequestError::Invalid(_)
                | TimelineRequestError::TooLarge { .. },
            ) => "invalid",
            Err(TimelineRequestError::Store(TimelineError::Busy(_)) | TimelineRequestError::LongPoll(_)) => {
                "busy"
            }
            Err(TimelineRequestError::Store(_) | TimelineRequestError::Undecided(_)) => "unavailable",
        };
        self.requests.get_or_create(&vec![("kind", kind), ("result", result)]).inc();
    }

    fn register(&self, registry: &mut Registry) {
        registry.register(
            "goim_logic_timeline_requests",
            "Requests about timelines, by kind and result",
            self.requests.clone(),
        );
        registry.register(
            "goim_logic_timeline_sends_limited",
            "Messages of members that exceeded a quota, by quota",
            self.limited.clone(),
        );
        registry.register(
            "goim_logic_timeline_appended",
            "Messages appended to timelines",
            self.appended.clone(),
        );
        registry.register(
            "goim_logic_timeline_duplicates",
            "Messages that were already stored, by their idempotency key",
            self.duplicates.clone(),
        );
        registry.register_with_unit(
            "goim_logic_timeline_append",
            "Time until the messages of a request were durable",
            Unit::Seconds,
            self.append_seconds.clone(),
        );
        registry.register("goim_logic_timeline_read", "Messages read from timelines", self.read.clone());
        registry.register(
            "goim_logic_timeline_gaps",
            "Syncs from a position after which messages are missing",
            self.resets.clone(),
        );
        registry.register(
            "goim_logic_long_polls_refused",
            "Long polls and streams that were refused, because a limit was reached",
            self.long_polls_refused.clone(),
        );
        registry.register(
            "goim_logic_long_polls_ended",
            "Long polls and streams that the backend ended",
            self.long_polls_ended.clone(),
        );
        registry.register(
            "goim_logic_timeline_notify_failed",
            "Messages whose sessions could not be notified; the next sync finds them",
            self.unannounced.clone(),
        );
    }
}
