//! The handle: admits requests within bounds, passes writes to the writer thread, and reads.

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use goim_ports::{
    AcceptedAt, Append, AppendResult, Call, CursorId, Head, Range, ReadLimit, TimelineError, TimelineId,
    TimelineSeq, TimelineStore,
};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Semaphore, oneshot};

use super::config::EmbeddedConfig;
use super::tables::{EmbeddedError, TableError, Tables};
use super::writer::{Queued, Reply, WriteRequest};
use super::{retain, writer};
use crate::timeline::admission::Admission;
use crate::timeline::key::{TimelineKey, cursor_key};

/// State shared by the handle and the threads.
pub(super) struct StoreState {
    pub(super) config: EmbeddedConfig,
    admission: Arc<Admission>,
    tables: RwLock<Result<Arc<Tables>, String>>,
    /// The tables that were closed last. The folder is free when all references to them are
    /// dropped.
    closing: Mutex<std::sync::Weak<Tables>>,
    reads: Semaphore,
}

impl StoreState {
    pub(super) fn tables(&self) -> Result<Arc<Tables>, TimelineError> {
        let tables = self.tables.read();
        tables.clone().map_err(TimelineError::Unavailable)
    }

    pub(super) fn close(&self, reason: &str) {
        let mut tables = self.tables.write();
        if let Ok(open) = &*tables {
            *self.closing.lock() = Arc::downgrade(open);
        }
        *tables = Err(reason.to_owned());
    }

    /// Waits until the last read of the closed tables has ended.
    pub(super) fn wait_until_closed(&self) -> Result<(), String> {
        let closing = self.closing.lock().clone();
        let until = Instant::now() + Duration::from_secs(1);
        while closing.strong_count() > 0 {
            if Instant::now() > until {
                return Err("reads of the closed tables have not ended yet".to_owned());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    pub(super) fn open(&self, tables: Arc<Tables>) {
        *self.tables.write() = Ok(tables);
    }
}

/// Timelines in a folder. Dropping the store writes all accepted requests first.
pub struct EmbeddedTimelines {
    state: Arc<StoreState>,
    /// `None` only while being dropped.
    queue: Option<Sender<Queued>>,
    /// Dropped to stop retention.
    stop: Option<Sender<()>>,
    threads: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for EmbeddedTimelines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("EmbeddedTimelines").field(&self.state.config.folder).finish()
    }
}

impl EmbeddedTimelines {
    /// Opens the folder, or creates it. Blocks while the journal of a killed process is read: some
    /// seconds at most.
    ///
    /// # Errors
    /// [`EmbeddedError`].
    pub fn open(config: EmbeddedConfig) -> Result<Self, EmbeddedError> {
        let tables = Arc::new(Tables::open(&config)?);
        let reads = Semaphore::new(config.reads_max.max(1));
        let admission = Admission::new(config.pending_messages_max, config.pending_bytes_max);
        let closing = Mutex::default();
        let state =
            StoreState { tables: RwLock::new(Ok(Arc::clone(&tables))), config, admission, closing, reads };
        let state = Arc::new(state);
        let (queue, queued) = channel();
        let (stop, stopped) = channel();
        let (of_writer, of_retainer) = (Arc::clone(&state), Arc::clone(&state));
        // The writer ends when all senders are dropped; retention ends, and drops its own, when
        // `stop` is dropped.
        let from_retainer = queue.clone();
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name(name.to_owned()).spawn(run).map_err(|error| {
                let folder = state.config.folder.clone();
                EmbeddedError::Unusable { folder, reason: error.to_string() }
            })
        };
        let threads = vec![
            spawn("timeline-retain", Box::new(move || retain::run(&of_retainer, &from_retainer, &stopped)))?,
            spawn("timeline-write", Box::new(move || writer::run(&of_writer, &queued, tables)))?,
        ];
        Ok(Self { state, queue: Some(queue), stop: Some(stop), threads })
    }

    /// Removes messages that are expired as of `now`, immediately instead of in the background.
    /// Blocks.
    ///
    /// # Errors
    /// [`TimelineError`].
    pub fn retain(&self, now: AcceptedAt) -> Result<(), TimelineError> {
        let Some(queue) = &self.queue else { return Ok(()) };
        retain::pass(&self.state, queue, now, |_| true)
    }

    /// The number of messages that wait to be written.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.state.admission.messages()
    }

    fn write<T: Send + 'static>(
        &self,
        request: impl FnOnce(Reply<T>) -> WriteRequest,
    ) -> Call<Result<T, TimelineError>> {
        let (reply, result) = oneshot::channel();
        let request = request(reply);
        let admitted = match self.state.admission.admit(request.messages(), request.bytes()) {
            Ok(admitted) => Some(admitted),
            Err(busy) => return Call::Ready(Err(busy)),
        };
        let queued = Queued { request, admitted };
        if self.queue.as_ref().is_none_or(|queue| queue.send(queued).is_err()) {
            return Call::Ready(Err(closing()));
        }
        Call::pending(async move { result.await.unwrap_or_else(|_| Err(lost())) })
    }

    fn read_with<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Tables) -> Result<T, TableError> + Send + 'static,
    ) -> Call<Result<T, TimelineError>> {
        let state = Arc::clone(&self.state);
        Call::pending(async move {
            // The semaphore is never closed.
            let _permit = state.reads.acquire().await.ok();
            let tables = state.tables()?;
            let read = tokio::task::spawn_blocking(move || read(&tables)).await;
            let read = read.map_err(|error| TimelineError::Unavailable(error.to_string()))?;
            read.map_err(|error| TimelineError::Unavailable(error.text()))
        })
    }
}

impl Drop for EmbeddedTimelines {
    fn drop(&mut self) {
        (self.stop, self.queue) = (None, None);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn closing() -> TimelineError {
    TimelineError::Unavailable("the store is closing".to_owned())
}

/// The writer ended before it replied.
fn lost() -> TimelineError {
    TimelineError::Unknown("the store was closed before the write was confirmed".to_owned())
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
        self.write(|reply| WriteRequest::Append { appends, reply })
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
                Some(key) => Ok(tables.tail(&key)?.map(|tail| tail.head()).unwrap_or_default()),
                None => Ok(Head::default()),
            };
            timelines.iter().map(head).collect()
        })
    }

    fn delete(&self, timeline: TimelineId, seq: TimelineSeq) -> Call<Result<bool, TimelineError>> {
        self.write(|reply| WriteRequest::Delete { timeline, seq, reply })
    }

    fn advance(&self, cursor: CursorId, to: TimelineSeq) -> Call<Result<TimelineSeq, TimelineError>> {
        self.write(|reply| WriteRequest::Advance { cursor, to, reply })
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
