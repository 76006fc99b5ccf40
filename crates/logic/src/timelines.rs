//! Timelines: stored messages, and who may store and read them.
//!
//! The store is behind a port. `push` and `request` store messages, `send_rule` and `send_quotas`
//! limit what members send, `notify` notifies sessions and `offline` the backend, `reader` and
//! `long_poll` read.
//!
//! Invariant: a publisher is answered when its message is durable, and no later failure turns that
//! answer into an error. A session that was not notified finds the message with its next sync.

mod error;
mod long_poll;
mod metrics;
mod notify;
mod offline;
pub(crate) mod push;
pub(crate) mod reader;
mod request;
mod send_quotas;
pub(crate) mod send_rule;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use goim_ports::{
    Call, CloseReason, EndTarget, HttpClient, OfflineSink, PushLog, RateLimitedLog, SessionDirectory,
    TimelineError, TimelineId, TimelineStore, VersionTable,
};
use prometheus_client::registry::Registry;
use tokio::sync::Semaphore;

pub use error::TimelineRequestError;
pub use long_poll::LongPollError;
pub(crate) use long_poll::{LongPoll, LongPollEnd};
use offline::OfflineQueue;
pub use offline::offline_json;
pub(crate) use offline::webhook_sink;
pub use send_rule::SendRule;

use crate::config::{PushConfig, TimelinesConfig};
use crate::deadline::with_timeout;
use crate::webhook::Webhook;
use long_poll::{LongPollLimits, LongPolls};
use metrics::{LongPollCount, TimelineMetrics};
use send_quotas::SendQuotas;

/// The maximum size of an answer of `send_webhook`, in bytes.
const ANSWER_BYTES_MAX: usize = 4 * 1024;

/// The parts of logic that timelines use.
pub(crate) struct TimelineParts {
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
    notify_retries: Arc<Semaphore>,
    notify_failure_log: RateLimitedLog,
    /// The log line for failures of the store.
    failure_log: RateLimitedLog,
    metrics: TimelineMetrics,
}

impl Timelines {
    pub(crate) fn new(parts: TimelineParts) -> Arc<Self> {
        let TimelineParts { store, push_log, sessions, http, versions, config, push, directory_timeout } =
            parts;
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
            notify_retries: Arc::new(Semaphore::new(config.notify_retries_max.max(1))),
            notify_failure_log: RateLimitedLog::default(),
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

    pub(crate) fn register(&self, registry: &mut Registry) {
        self.metrics.register(registry);
        registry.register_collector(Box::new(LongPollCount(self.long_polls.clone())));
        if let Some(offline) = self.offline.get() {
            let notified = "Offline members reported when a message was stored for them";
            registry.register("goim_logic_offline_notified", notified, offline.notified.clone());
            let dropped = "Offline members not reported, because too many were queued";
            registry.register("goim_logic_offline_dropped", dropped, offline.dropped.clone());
        }
    }

    /// Sets the sink of offline members. Later calls are ignored.
    pub(crate) fn set_offline_sink(&self, sink: Arc<dyn OfflineSink>) {
        let queue = Arc::new(OfflineQueue::new());
        if self.offline.set(Arc::clone(&queue)).is_ok() {
            tokio::spawn(queue.run(sink));
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
    pub(crate) fn end_long_polls(&self, of: &EndTarget, reason: CloseReason) {
        self.metrics.long_polls_ended.inc_by(self.long_polls.end(of, reason) as u64);
    }

    /// Ends all long polls, because this process drains.
    pub(crate) fn drain_long_polls(&self) {
        self.long_polls.drain();
    }
}

/// Parses the name of a timeline.
fn parse_timeline(text: &str) -> Result<TimelineId, TimelineRequestError> {
    let wrong =
        || TimelineRequestError::Invalid(format!("{text:?} is not a timeline: write mid://7 or live://1000"));
    TimelineId::parse(text).ok_or_else(wrong)
}
