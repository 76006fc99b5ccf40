//! Stores messages of the backend and of members: appends them, then notifies the sessions.

use std::sync::Arc;
use std::time::{Duration, Instant};

use goim_ports::{
    Append, AppendResult, IdempotencyKey, Mid, NewMessage, PushRecord, PushTarget, RoomId, TimelineError,
    TimelineId,
};
use tokio::sync::oneshot;

use super::notify::push_record;
use super::{TimelineRequestError, Timelines};
use crate::record;

/// The maximum time that the answer to a publisher waits for the notification of a durable message.
const NOTIFY_WAIT: Duration = Duration::from_secs(1);

/// A message to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredPush {
    /// The timelines.
    pub to: StoredTo,
    /// The message.
    pub message: NewMessage,
    /// Identifies repeated requests for the message, in each timeline.
    pub idempotency_key: Option<IdempotencyKey>,
}

/// The receivers of a stored message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoredTo {
    /// The inbox of each member; once, however often a member is given.
    Mids(Vec<Mid>),
    /// A room.
    Room(RoomId),
}

/// A stored message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppendedMessage {
    /// The timeline.
    pub timeline: TimelineId,
    /// The position, and whether the message is a duplicate.
    pub appended: AppendResult,
}

impl StoredTo {
    fn timelines(&self) -> Vec<TimelineId> {
        match self {
            Self::Room(room) => vec![TimelineId::Room(room.clone())],
            Self::Mids(mids) => {
                let mut seen = std::collections::HashSet::new();
                let first = mids.iter().filter(|mid| seen.insert(**mid));
                first.map(|mid| TimelineId::Inbox(*mid)).collect()
            }
        }
    }
}

impl Timelines {
    /// Stores messages, all or none, and notifies the sessions. Returns a list of positions for
    /// each message, in order.
    ///
    /// # Errors
    /// [`TimelineRequestError`] with the index of the message. Nothing is stored, unless it is
    /// [`goim_ports::TimelineError::Unknown`].
    ///
    /// # Cancel safety
    /// Dropping the future during the append does not cancel it: the messages are stored and the
    /// sessions notified.
    pub(crate) async fn push(
        self: &Arc<Self>,
        pushes: Vec<StoredPush>,
    ) -> Result<Vec<Vec<AppendedMessage>>, (usize, TimelineRequestError)> {
        let appended = self.try_push(pushes).await;
        let of_message = appended.as_ref().map(drop).map_err(|(_, error)| error);
        self.metrics.request("push", &of_message);
        appended
    }

    async fn try_push(
        self: &Arc<Self>,
        pushes: Vec<StoredPush>,
    ) -> Result<Vec<Vec<AppendedMessage>>, (usize, TimelineRequestError)> {
        let (mut appends, mut counts) = (Vec::new(), Vec::with_capacity(pushes.len()));
        for (index, StoredPush { to, message, idempotency_key: once }) in pushes.into_iter().enumerate() {
            let timelines = to.timelines();
            self.check(&timelines, &message).map_err(|error| (index, error))?;
            counts.push(timelines.len());
            appends.extend(timelines.into_iter().map(|timeline| Append {
                timeline,
                message: message.clone(),
                idempotency_key: once.clone(),
            }));
        }
        let mut placed = self.append(appends).await.map_err(|error| (0, error))?.into_iter();
        Ok(counts.into_iter().map(|count| placed.by_ref().take(count).collect()).collect())
    }

    pub(super) fn check(
        &self,
        timelines: &[TimelineId],
        message: &NewMessage,
    ) -> Result<(), TimelineRequestError> {
        let Some(longest) = timelines.iter().max_by_key(|timeline| timeline.to_string().len()) else {
            return Err(TimelineRequestError::Invalid("names no receiver".to_owned()));
        };
        // A message whose notification exceeds the limit would only be found by a sync.
        let target = match longest {
            TimelineId::Room(room) => PushTarget::Room(room.clone()),
            TimelineId::Inbox(_) => PushTarget::All { speed: None },
        };
        let appended = AppendResult { position: goim_ports::Position::default(), is_duplicate: false };
        let record: PushRecord = push_record(target, longest.clone(), appended, message);
        let (size, limit) = (record::size(&record), self.push.record_bytes_max);
        if size > limit { Err(TimelineRequestError::TooLarge { size, limit }) } else { Ok(()) }
    }

    /// Appends messages, wakes the long polls and notifies the sessions. The work continues when
    /// the caller stops waiting or the store is late: a retry would be a duplicate, and goim v2's
    /// clients get no notification of a duplicate.
    pub(super) async fn append(
        self: &Arc<Self>,
        appends: Vec<Append>,
    ) -> Result<Vec<AppendedMessage>, TimelineRequestError> {
        let unknown = |text: &str| TimelineError::Unknown(text.to_owned());
        let (durable, is_durable) = oneshot::channel();
        let timelines = Arc::clone(self);
        let work = tokio::spawn(async move { timelines.append_to_the_end(appends, durable).await });
        let placed = match tokio::time::timeout(self.config.store_timeout, is_durable).await {
            Ok(Ok(placed)) => placed,
            Err(_) => return Err(unknown("the store did not answer in time").into()),
            // The store refused; the task returns its error.
            Ok(Err(_)) => {
                let refused = work.await.unwrap_or(Ok(()));
                return Err(refused.err().unwrap_or_else(|| unknown("the append was cancelled").into()));
            }
        };
        // Waits so that the messages of one publisher are notified in order, but not for a slow
        // push log.
        let _ = tokio::time::timeout(NOTIFY_WAIT, work).await;
        Ok(placed)
    }

    async fn append_to_the_end(
        self: Arc<Self>,
        appends: Vec<Append>,
        durable: oneshot::Sender<Vec<AppendedMessage>>,
    ) -> Result<(), TimelineRequestError> {
        let started = Instant::now();
        let appended = self.store.append(appends.clone()).await?;
        self.metrics.append_seconds.observe(started.elapsed().as_secs_f64());
        let duplicates = appended.iter().filter(|appended| appended.is_duplicate).count() as u64;
        self.metrics.duplicates.inc_by(duplicates);
        self.metrics.appended.inc_by(appended.len() as u64 - duplicates);
        for append in &appends {
            self.long_polls.grown(&append.timeline);
        }
        let placed = appends.iter().zip(&appended).map(|(append, appended)| AppendedMessage {
            timeline: append.timeline.clone(),
            appended: *appended,
        });
        // The caller may have stopped waiting.
        let _ = durable.send(placed.collect());
        self.notify_sessions(appends.into_iter().zip(appended).collect()).await;
        Ok(())
    }
}
