//! Timelines: messages that are kept, and read by those they are for.
//!
//! `push` keeps messages and announces them, `sending` says which members may send and how fast, `away` tells of members who have no session, `reader` gives them to members, `request` reads the packets in which members ask,
//! `announce` tells the sessions that are there, `wait` lets a request wait for what comes. What is kept is kept by the store behind
//! the port; here is who may do what, and what an answer means.
//!
//! Invariant: a publisher is answered after its message is durable, and no failure after that turns its answer into an error. What
//! such a failure costs is time: a session that was not told finds the message with its next sync.

mod announce;
mod away;
mod push;
mod reader;
mod request;
mod sending;
mod wait;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use goim_ports::{
    Call, CloseReason, EndTarget, HttpClient, Operation, PushLog, SessionDirectory, TimelineError,
    TimelineId, TimelineStore, VersionTable,
};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use tokio::sync::Semaphore;

use away::Away;
pub use away::away_json;
pub use push::{Placed, StoredPush, StoredTo};
pub(crate) use reader::{Reader, Unread, Waited};
pub use sending::SendRule;
pub use wait::NoWait;
pub(crate) use wait::{Ending, Wait};

use crate::complaint::Complaint;
use crate::config::{PushConfig, TimelinesConfig};
use crate::deadline::within;
use crate::webhook::Webhook;
use sending::SendQuotas;
use wait::{WaitLimits, Waits};

/// Largest answer of the webhook that decides about senders, in bytes.
const ANSWER_BYTES_MAX: usize = 4 * 1024;

/// Why something about timelines was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TimelinesError {
    /// This server keeps none.
    #[error("no timelines are kept here: set timelines.folder or timelines.postgres")]
    None,
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// Whoever asks may not.
    #[error("{0} is not a timeline that may be used so")]
    Forbidden(String),
    /// A member's message has an operation that is not for members.
    #[error(
        "operation {0} is not for members: they send 4, and what logic.timelines.send.allowed names from 1000 on"
    )]
    Reserved(Operation),
    /// The member sends more than it may.
    #[error("the member sends more {limit} than it may (logic.timelines.send)")]
    Limited {
        /// Of what: messages or bytes.
        limit: &'static str,
        /// When there is room for this message again.
        retry_after: Duration,
    },
    /// The message would make a record that no push log takes.
    #[error("makes a record of {size} bytes; {limit} is the most")]
    TooLarge {
        /// The record's size in bytes.
        size: usize,
        /// The largest allowed.
        limit: usize,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] TimelineError),
    /// Whoever decides about senders does not answer.
    #[error("whether the member may send there cannot be found out: {0}")]
    Undecided(String),
    /// As many wait as may.
    #[error(transparent)]
    NoWait(#[from] NoWait),
}

impl TimelinesError {
    /// What a client, a member's or the backend's, may read of it. What an engine or a hook says of itself is for the log.
    #[must_use]
    pub fn public(&self) -> String {
        match self {
            Self::Store(TimelineError::Busy(_)) => "the timelines are busy; try again later".to_owned(),
            Self::Store(TimelineError::Unavailable(_)) => {
                "the timelines are not available; try again later".to_owned()
            }
            Self::Store(TimelineError::Unknown(_)) => {
                "it is not known whether it was done; trying again is safe with a name for the message"
                    .to_owned()
            }
            Self::Undecided(_) => {
                "whether the member may send there cannot be found out; try again later".to_owned()
            }
            Self::None
            | Self::Invalid(_)
            | Self::Forbidden(_)
            | Self::Reserved(_)
            | Self::Limited { .. }
            | Self::TooLarge { .. }
            | Self::Store(TimelineError::Invalid(_))
            | Self::NoWait(_) => self.to_string(),
        }
    }
}

/// What timelines need of the rest of logic.
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
    /// Decides whether a member may send where it is not by itself allowed to; nobody may without it.
    may_send: Option<Webhook>,
    quotas: SendQuotas,
    waits: Waits,
    /// Members who are away, when somebody wants to know.
    away: OnceLock<Arc<Away>>,
    /// Announcements that are tried again in the background.
    announcing: Arc<Semaphore>,
    unannounced: Complaint,
    /// When it was last said that the store fails.
    failing: Complaint,
    metrics: TimelineMetrics,
}

/// What is counted.
pub(crate) struct TimelineMetrics {
    appended: Counter,
    duplicates: Counter,
    append_seconds: Histogram,
    read: Counter,
    resets: Counter,
    /// Announcements that were given up, and sessions find the message later.
    unannounced: Counter,
    /// Requests that would wait and may not.
    waits_refused: Counter,
    /// Waits that the backend has ended.
    waits_ended: Counter,
    requests: Family<Vec<(&'static str, &'static str)>, Counter>,
    /// Messages of members beyond a quota, by which.
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
            waits: Waits::new(WaitLimits {
                all: config.long_polls_max,
                per_member: config.long_polls_per_member_max,
                per_address: config.long_polls_per_address_max,
            }),
            away: OnceLock::new(),
            announcing: Arc::new(Semaphore::new(config.notify_retries_max.max(1))),
            unannounced: Complaint::default(),
            failing: Complaint::default(),
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
        registry.register_collector(Box::new(WaitCount(Arc::clone(self))));
        if let Some(away) = self.away.get() {
            let told = "Members told of as away when a message was stored for them";
            registry.register("goim_logic_offline_notified", told, away.told.clone());
            let dropped = "Members who could not be told of: too many waited";
            registry.register("goim_logic_offline_dropped", dropped, away.dropped.clone());
        }
    }

    /// The store's answer within its deadline. Of what was to be written nobody knows then.
    async fn ask<T: Send + Unpin + 'static>(
        &self,
        call: Call<Result<T, TimelineError>>,
    ) -> Result<T, TimelinesError> {
        let late = || TimelineError::Unknown("the store did not answer in time".to_owned());
        let answer = within(self.config.store_timeout, call, late).await;
        if let Err(error @ (TimelineError::Unavailable(_) | TimelineError::Unknown(_))) = &answer
            && let Some(unsaid) = self.failing.say(Instant::now())
        {
            tracing::warn!(%error, unsaid, "the store of timelines fails");
        }
        Ok(answer?)
    }

    /// Ends what waits, as the backend ends sessions.
    pub(crate) fn end_waits(&self, of: &EndTarget, reason: CloseReason) {
        self.metrics.waits_ended.inc_by(self.waits.end(of, reason) as u64);
    }

    /// This process goes away: nobody waits any longer.
    pub(crate) fn drain_waits(&self) {
        self.waits.drain();
    }
}

/// How many wait, read when somebody asks.
struct WaitCount(Arc<Timelines>);

impl std::fmt::Debug for WaitCount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WaitCount")
    }
}

impl Collector for WaitCount {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let gauge = ConstGauge::new(i64::try_from(self.0.waits.count()).unwrap_or(i64::MAX));
        let help = "Streams and requests that wait for messages";
        let encoder = encoder.encode_descriptor("goim_logic_long_polls", help, None, gauge.metric_type())?;
        gauge.encode(encoder)
    }
}

/// The timeline that a text names.
fn named(text: &str) -> Result<TimelineId, TimelinesError> {
    let wrong =
        || TimelinesError::Invalid(format!("{text:?} names no timeline: mid://7 does, or live://1000"));
    TimelineId::parse(text).ok_or_else(wrong)
}

impl Default for TimelineMetrics {
    fn default() -> Self {
        let (appended, duplicates, read, resets, unannounced, requests, limited) = Default::default();
        let (waits_refused, waits_ended) = Default::default();
        // 100 µs on a fast disk to 13 s on one that suffers.
        let append_seconds = Histogram::new(exponential_buckets(0.000_1, 2.5, 14));
        Self {
            appended,
            duplicates,
            append_seconds,
            read,
            resets,
            unannounced,
            waits_refused,
            waits_ended,
            requests,
            limited,
        }
    }
}

impl TimelineMetrics {
    fn request(&self, kind: &'static str, result: &Result<(), &TimelinesError>) {
        let result = match result {
            Ok(()) => "ok",
            Err(TimelinesError::Forbidden(_) | TimelinesError::Reserved(_)) => "forbidden",
            Err(TimelinesError::Limited { .. }) => "limited",
            Err(TimelinesError::None | TimelinesError::Invalid(_) | TimelinesError::TooLarge { .. }) => {
                "invalid"
            }
            Err(TimelinesError::Store(TimelineError::Busy(_)) | TimelinesError::NoWait(_)) => "busy",
            Err(TimelinesError::Store(_) | TimelinesError::Undecided(_)) => "unavailable",
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
            "Messages of members that were refused by their quota, by what was exceeded",
            self.limited.clone(),
        );
        registry.register(
            "goim_logic_timeline_appended",
            "Messages appended to timelines",
            self.appended.clone(),
        );
        registry.register(
            "goim_logic_timeline_duplicates",
            "Messages that were there before, by their name",
            self.duplicates.clone(),
        );
        registry.register_with_unit(
            "goim_logic_timeline_append",
            "Time until messages of a request were durable",
            Unit::Seconds,
            self.append_seconds.clone(),
        );
        registry.register("goim_logic_timeline_read", "Messages read from timelines", self.read.clone());
        registry.register(
            "goim_logic_timeline_gaps",
            "Syncs from a position with a hole behind it",
            self.resets.clone(),
        );
        registry.register(
            "goim_logic_long_polls_refused",
            "Streams and requests that would wait for messages and were refused: as many wait as may",
            self.waits_refused.clone(),
        );
        registry.register(
            "goim_logic_long_polls_ended",
            "Streams and waiting requests that the backend has ended",
            self.waits_ended.clone(),
        );
        registry.register(
            "goim_logic_timeline_notify_failed",
            "Messages of which no session could be told; they are found with the next sync",
            self.unannounced.clone(),
        );
    }
}
