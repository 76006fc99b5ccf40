//! The handle: takes what is asked, within bounds, and passes it to the writer or reads it.

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use goim_ports::{
    AcceptedAt, Append, AppendResult, Call, CursorId, Head, Range, ReadLimit, TimelineError, TimelineId,
    TimelineSeq, TimelineStore,
};
use tokio::sync::{Semaphore, oneshot};

use super::config::EmbeddedConfig;
use super::tables::{EmbeddedError, TableError, Tables};
use super::writer::{Job, Waiting};
use super::{retain, writer};
use crate::timeline::key::{TimelineKey, cursor_key};

/// What the handle and the threads share.
pub(super) struct Shared {
    pub(super) config: EmbeddedConfig,
    pub(super) waiting: Waiting,
    tables: RwLock<Result<Arc<Tables>, String>>,
    /// The ones that were closed last: the folder is free when nobody has them any more.
    closing: std::sync::Mutex<std::sync::Weak<Tables>>,
    reads: Semaphore,
}

impl Shared {
    pub(super) fn tables(&self) -> Result<Arc<Tables>, TimelineError> {
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        tables.clone().map_err(TimelineError::Unavailable)
    }

    pub(super) fn close(&self, reason: &str) {
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        if let Ok(open) = &*tables {
            *self.closing.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(open);
        }
        *tables = Err(reason.to_owned());
    }

    /// Waits until the last read of closed tables is over.
    pub(super) fn wait_until_closed(&self) -> Result<(), String> {
        let closing = self.closing.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let until = Instant::now() + Duration::from_secs(1);
        while closing.strong_count() > 0 {
            if Instant::now() > until {
                return Err("reads of before are not over yet".to_owned());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    pub(super) fn open(&self, tables: Arc<Tables>) {
        *self.tables.write().unwrap_or_else(PoisonError::into_inner) = Ok(tables);
    }
}

/// Timelines in a folder. Dropping it waits for what was accepted.
pub struct EmbeddedTimelines {
    shared: Arc<Shared>,
    /// `None` only while being dropped.
    jobs: Option<Sender<Job>>,
    stop: Option<Sender<()>>,
    threads: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for EmbeddedTimelines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("EmbeddedTimelines").field(&self.shared.config.folder).finish()
    }
}

impl EmbeddedTimelines {
    /// Opens the folder, or makes it. Blocks while what a killed process has left is read: some seconds at most.
    ///
    /// # Errors
    /// [`EmbeddedError`].
    pub fn open(config: EmbeddedConfig) -> Result<Self, EmbeddedError> {
        let tables = Arc::new(Tables::open(&config)?);
        let reads = Semaphore::new(config.reads_max.max(1));
        let (waiting, closing) = Default::default();
        let shared = Shared { tables: RwLock::new(Ok(Arc::clone(&tables))), config, waiting, closing, reads };
        let shared = Arc::new(shared);
        let (jobs, taken) = channel();
        let (stop, stopped) = channel();
        let (of_writer, of_retainer) = (Arc::clone(&shared), Arc::clone(&shared));
        // Not the strong end: else the writer would wait for jobs of the retainer for ever.
        let from_retainer = jobs.clone();
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name(name.to_owned()).spawn(run).map_err(|error| {
                let folder = shared.config.folder.clone();
                EmbeddedError::Unusable { folder, reason: error.to_string() }
            })
        };
        let threads = vec![
            spawn("timeline-retain", Box::new(move || retain::run(&of_retainer, &from_retainer, &stopped)))?,
            spawn("timeline-write", Box::new(move || writer::run(&of_writer, &taken, tables)))?,
        ];
        Ok(Self { shared, jobs: Some(jobs), stop: Some(stop), threads })
    }

    /// Removes now what is not to be kept any longer as of a moment; it is done in the background anyway. Blocks.
    ///
    /// # Errors
    /// [`TimelineError`].
    pub fn retain(&self, now: AcceptedAt) -> Result<(), TimelineError> {
        let Some(jobs) = &self.jobs else { return Ok(()) };
        retain::pass(&self.shared, jobs, now, |_| true)
    }

    /// Messages that wait to be written.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.shared.waiting.messages.load(std::sync::atomic::Ordering::Relaxed)
    }

    fn write<T: Send + 'static>(
        &self,
        job: impl FnOnce(oneshot::Sender<Result<T, TimelineError>>) -> Job,
    ) -> Call<Result<T, TimelineError>> {
        let (answer, answered) = oneshot::channel();
        let job = job(answer);
        let config = &self.shared.config;
        if !self.shared.waiting.enter(&job, config.pending_messages_max, config.pending_bytes_max) {
            let text = "more waits to be written than may wait; try again later";
            return Call::Ready(Err(TimelineError::Busy(text.to_owned())));
        }
        let sent = self.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok());
        if !sent {
            return Call::Ready(Err(closed()));
        }
        Call::pending(async move { answered.await.unwrap_or_else(|_| Err(lost())) })
    }

    fn read_with<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Tables) -> Result<T, TableError> + Send + 'static,
    ) -> Call<Result<T, TimelineError>> {
        let shared = Arc::clone(&self.shared);
        Call::pending(async move {
            // The semaphore is never closed.
            let _permit = shared.reads.acquire().await.ok();
            let tables = shared.tables()?;
            let read = tokio::task::spawn_blocking(move || read(&tables)).await;
            let read = read.map_err(|error| TimelineError::Unavailable(error.to_string()))?;
            read.map_err(|error| TimelineError::Unavailable(error.text()))
        })
    }
}

impl Drop for EmbeddedTimelines {
    fn drop(&mut self) {
        (self.stop, self.jobs) = (None, None);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn closed() -> TimelineError {
    TimelineError::Unavailable("the store is being closed".to_owned())
}

/// The writer went away with the job.
fn lost() -> TimelineError {
    TimelineError::Unknown("the store was closed meanwhile".to_owned())
}

fn too_long() -> TimelineError {
    TimelineError::Invalid("the name of the room is longer than 65,000 bytes".to_owned())
}

impl TimelineStore for EmbeddedTimelines {
    fn append(&self, appends: Vec<Append>) -> Call<Result<Vec<AppendResult>, TimelineError>> {
        if appends.is_empty() {
            return Call::Ready(Ok(Vec::new()));
        }
        if appends.iter().any(|append| TimelineKey::new(&append.timeline).is_none()) {
            return Call::Ready(Err(too_long()));
        }
        self.write(|answer| Job::Append { appends, answer })
    }

    fn read(
        &self,
        timeline: TimelineId,
        after: TimelineSeq,
        limit: ReadLimit,
    ) -> Call<Result<Range, TimelineError>> {
        let Some(key) = TimelineKey::new(&timeline) else { return Call::Ready(Err(too_long())) };
        self.read_with(move |tables| tables.read(&key, after, limit))
    }

    fn read_back(
        &self,
        timeline: TimelineId,
        before: Option<TimelineSeq>,
        limit: ReadLimit,
    ) -> Call<Result<Range, TimelineError>> {
        let Some(key) = TimelineKey::new(&timeline) else { return Call::Ready(Err(too_long())) };
        self.read_with(move |tables| tables.read_back(&key, before, limit))
    }

    fn heads(&self, timelines: Vec<TimelineId>) -> Call<Result<Vec<Head>, TimelineError>> {
        self.read_with(move |tables| {
            let head = |id: &TimelineId| match TimelineKey::new(id) {
                Some(key) => Ok(tables.known(&key)?.map(|known| known.head()).unwrap_or_default()),
                None => Ok(Head::default()),
            };
            timelines.iter().map(head).collect()
        })
    }

    fn delete(&self, timeline: TimelineId, seq: TimelineSeq) -> Call<Result<bool, TimelineError>> {
        self.write(|answer| Job::Delete { timeline, seq, answer })
    }

    fn advance(&self, cursor: CursorId, to: TimelineSeq) -> Call<Result<TimelineSeq, TimelineError>> {
        self.write(|answer| Job::Advance { cursor, to, answer })
    }

    fn cursors(&self, cursors: Vec<CursorId>) -> Call<Result<Vec<TimelineSeq>, TimelineError>> {
        self.read_with(move |tables| {
            let at = |cursor: &CursorId| match cursor_key(cursor) {
                Some(key) => tables.cursor(&key),
                None => Ok(TimelineSeq(0)),
            };
            cursors.iter().map(at).collect()
        })
    }
}
