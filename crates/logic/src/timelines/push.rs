//! Messages of the backend, and of members, that are kept: appended, then announced.

use std::sync::Arc;
use std::time::{Duration, Instant};

use goim_ports::{
    Append, AppendResult, IdempotencyKey, Mid, NewMessage, PushRecord, PushTarget, RoomId, TimelineError,
    TimelineId,
};
use tokio::sync::oneshot;

use super::announce::record_of;
use super::{TimelineRequestError, Timelines};
use crate::{Logic, record};

/// How long the answer to a publisher waits for the announcement of what is durable already.
const ANNOUNCEMENT_WAIT: Duration = Duration::from_secs(1);

/// A message to be kept, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredPush {
    /// Whose timelines.
    pub to: StoredTo,
    /// What.
    pub message: NewMessage,
    /// By what a second try is known, in each timeline.
    pub idempotency_key: Option<IdempotencyKey>,
}

/// Whom a message is kept for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoredTo {
    /// The inbox of each; once, however often a member is named.
    Mids(Vec<Mid>),
    /// A room.
    Room(RoomId),
}

/// Where a message is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppendedMessage {
    /// The timeline.
    pub timeline: TimelineId,
    /// Its place, and whether it was there before.
    pub kept: AppendResult,
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

impl Logic {
    /// Keeps messages, all or none, and announces them. The answer has, for each message in order,
    /// where it is.
    ///
    /// # Errors
    /// [`TimelineRequestError`], with the place of the message that it is about; nothing is kept
    /// then, unless it says that this is not known.
    ///
    /// # Cancel safety
    /// Dropping the future while the store is asked does not call the messages back: they are kept
    /// and announced.
    pub async fn push_stored(
        &self,
        pushes: Vec<StoredPush>,
    ) -> Result<Vec<Vec<AppendedMessage>>, (usize, TimelineRequestError)> {
        match &self.timelines {
            Some(timelines) => timelines.push(pushes).await,
            None => Err((0, TimelineRequestError::None)),
        }
    }
}

impl Timelines {
    /// Keeps messages, all or none, and announces them. The answer has a list for each message, in
    /// order.
    ///
    /// # Errors
    /// [`TimelineRequestError`], with the message that it is about; nothing is kept then, unless it
    /// is [`goim_ports::TimelineError::Unknown`].
    ///
    /// # Cancel safety
    /// Dropping the future while the store is asked does not call the messages back: they are kept
    /// and announced.
    pub(crate) async fn push(
        self: &Arc<Self>,
        pushes: Vec<StoredPush>,
    ) -> Result<Vec<Vec<AppendedMessage>>, (usize, TimelineRequestError)> {
        let kept = self.try_push(pushes).await;
        let of_message = kept.as_ref().map(drop).map_err(|(_, error)| error);
        self.metrics.request("push", &of_message);
        kept
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
            return Err(TimelineRequestError::Invalid("names nobody".to_owned()));
        };
        // Who cannot be told of it would find it only by chance.
        let target = match longest {
            TimelineId::Room(room) => PushTarget::Room(room.clone()),
            TimelineId::Inbox(_) => PushTarget::All { speed: None },
        };
        let kept = AppendResult { position: goim_ports::Position::default(), is_duplicate: false };
        let record: PushRecord = record_of(target, longest.clone(), kept, message);
        let (size, limit) = (record::size(&record), self.push.record_bytes_max);
        if size > limit { Err(TimelineRequestError::TooLarge { size, limit }) } else { Ok(()) }
    }

    /// Appends, wakes those who wait, announces. It goes on when the caller does not wait for the
    /// answer, or the store is late: what is kept then is announced all the same, since a second
    /// try would be a duplicate, and of those clients of goim hear nothing.
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
            // The store has refused: that is in the answer.
            Ok(Err(_)) => {
                let refused = work.await.unwrap_or(Ok(()));
                return Err(refused.err().unwrap_or_else(|| unknown("the append was broken off").into()));
            }
        };
        // What one publisher stores is announced in its order, unless the push log is slow: that is
        // not for him to wait for.
        let _ = tokio::time::timeout(ANNOUNCEMENT_WAIT, work).await;
        Ok(placed)
    }

    async fn append_to_the_end(
        self: Arc<Self>,
        appends: Vec<Append>,
        durable: oneshot::Sender<Vec<AppendedMessage>>,
    ) -> Result<(), TimelineRequestError> {
        let started = Instant::now();
        let kept = self.store.append(appends.clone()).await?;
        self.metrics.append_seconds.observe(started.elapsed().as_secs_f64());
        let duplicates = kept.iter().filter(|kept| kept.is_duplicate).count() as u64;
        self.metrics.duplicates.inc_by(duplicates);
        self.metrics.appended.inc_by(kept.len() as u64 - duplicates);
        for append in &appends {
            self.long_polls.grown(&append.timeline);
        }
        let placed = appends
            .iter()
            .zip(&kept)
            .map(|(append, kept)| AppendedMessage { timeline: append.timeline.clone(), kept: *kept });
        // Whoever waited may have gone.
        let _ = durable.send(placed.collect());
        self.announce(appends.into_iter().zip(kept).collect()).await;
        Ok(())
    }
}
