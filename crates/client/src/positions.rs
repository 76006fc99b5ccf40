//! Position stores: where an application records how far it has processed each timeline.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use goim_wire::sync;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// How far an application has processed a timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Position {
    /// The incarnation of the timeline; zero when it is not known.
    pub epoch: u64,
    /// The sequence number of the last processed message; zero when there is none.
    pub seq: u64,
}

impl From<sync::Position> for Position {
    fn from(sync::Position { epoch, seq }: sync::Position) -> Self {
        Self { epoch, seq }
    }
}

impl From<Position> for sync::Position {
    fn from(Position { epoch, seq }: Position) -> Self {
        Self { epoch, seq }
    }
}

/// The error of a position store. It reaches the application unchanged.
pub type PositionStoreError = Box<dyn Error + Send + Sync>;

/// Stores one [`Position`] per timeline.
///
/// [`Events`](crate::Events) saves the position of a batch of messages when the application asks
/// for the event after it, because the batch is then processed. After a crash in between, the
/// application receives that batch again; no message is lost. To make the effect of a message
/// exactly-once, write the message and its position in one transaction of your database, and let
/// [`PositionStore::save`] do nothing.
///
/// At most one save per client is in progress, and saves run in the order of the events. The next
/// event is delivered after the save has finished, so a slow store slows down the events and, with
/// a full queue, the server.
///
/// Implement the trait with `async fn`:
///
/// ```
/// use goim_client::{Position, PositionStore, PositionStoreError};
///
/// struct Database;
///
/// impl PositionStore for Database {
///     async fn load(&self, timeline: &str) -> Result<Option<Position>, PositionStoreError> {
///         // SELECT epoch, seq FROM positions WHERE timeline = $1
///         Ok(None)
///     }
///
///     async fn save(&self, timeline: &str, position: Position) -> Result<(), PositionStoreError> {
///         // INSERT INTO positions ... ON CONFLICT (timeline) DO UPDATE ...
///         Ok(())
///     }
/// }
/// ```
pub trait PositionStore: Send + Sync + 'static {
    /// Returns the position in `timeline`, or `None` for a timeline without one. The server then
    /// starts at the member's read cursor.
    ///
    /// # Errors
    /// Any error of the store. It fails the connection attempt with
    /// [`ConnectError::Positions`](crate::ConnectError::Positions), or the subscription with
    /// [`TimelineError::Store`](crate::TimelineError::Store).
    ///
    /// # Cancel safety
    /// The future may be dropped when the client is closed.
    fn load(
        &self,
        timeline: &str,
    ) -> impl Future<Output = Result<Option<Position>, PositionStoreError>> + Send;

    /// Records that everything up to and including `position` is processed.
    ///
    /// # Errors
    /// Any error of the store. It is reported as
    /// [`Event::PositionNotSaved`](crate::Event::PositionNotSaved) and not retried: the next save
    /// for the timeline replaces it.
    ///
    /// # Cancel safety
    /// The future is dropped only with [`Events`](crate::Events).
    fn save(
        &self,
        timeline: &str,
        position: Position,
    ) -> impl Future<Output = Result<(), PositionStoreError>> + Send;
}

impl<S: PositionStore> PositionStore for Arc<S> {
    async fn load(&self, timeline: &str) -> Result<Option<Position>, PositionStoreError> {
        S::load(self, timeline).await
    }

    async fn save(&self, timeline: &str, position: Position) -> Result<(), PositionStoreError> {
        S::save(self, timeline, position).await
    }
}

type StoreFuture<T> = Pin<Box<dyn Future<Output = Result<T, PositionStoreError>> + Send>>;

/// [`PositionStore`] with boxed futures that own what they use.
trait DynPositionStore: Send + Sync {
    fn load(self: Arc<Self>, timeline: String) -> StoreFuture<Option<Position>>;

    fn save(self: Arc<Self>, timeline: String, position: Position) -> StoreFuture<()>;
}

impl<S: PositionStore> DynPositionStore for S {
    fn load(self: Arc<Self>, timeline: String) -> StoreFuture<Option<Position>> {
        Box::pin(async move { PositionStore::load(&*self, &timeline).await })
    }

    fn save(self: Arc<Self>, timeline: String, position: Position) -> StoreFuture<()> {
        Box::pin(async move { PositionStore::save(&*self, &timeline, position).await })
    }
}

/// A shared store of any type.
#[derive(Clone)]
pub(crate) struct SharedPositionStore(Arc<dyn DynPositionStore>);

impl SharedPositionStore {
    pub(crate) fn new(store: impl PositionStore) -> Self {
        Self(Arc::new(store))
    }

    pub(crate) fn load(&self, timeline: String) -> StoreFuture<Option<Position>> {
        Arc::clone(&self.0).load(timeline)
    }

    pub(crate) fn save(&self, timeline: String, position: Position) -> StoreFuture<()> {
        Arc::clone(&self.0).save(timeline, position)
    }
}

impl fmt::Debug for SharedPositionStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PositionStore")
    }
}

/// Positions in memory. They are lost with the process.
///
/// Memory grows by one entry per timeline that was ever saved.
#[derive(Debug, Default)]
pub struct MemoryPositions(Mutex<BTreeMap<String, Position>>);

impl MemoryPositions {
    /// Returns the saved position of `timeline`.
    #[must_use]
    pub fn get(&self, timeline: &str) -> Option<Position> {
        self.0.lock().get(timeline).copied()
    }
}

impl PositionStore for MemoryPositions {
    async fn load(&self, timeline: &str) -> Result<Option<Position>, PositionStoreError> {
        Ok(self.get(timeline))
    }

    async fn save(&self, timeline: &str, position: Position) -> Result<(), PositionStoreError> {
        self.0.lock().insert(timeline.to_owned(), position);
        Ok(())
    }
}

/// Positions in one JSON file, for example `{"mid://7":{"epoch":1,"seq":42}}`.
///
/// Each save writes the whole file beside the old one, syncs it to disk and renames it, so a crash
/// leaves the old or the new positions. Only one process may use the file at a time. The file grows
/// by one entry per timeline that was ever saved.
#[derive(Debug, Clone)]
pub struct FilePositions(Arc<PositionFile>);

#[derive(Debug)]
struct PositionFile {
    path: PathBuf,
    /// Locked during a write, so that writes happen in order. Only blocking threads lock it.
    positions: Mutex<BTreeMap<String, Position>>,
}

impl FilePositions {
    /// Reads the positions in the file `path`. A missing file holds none; the first save creates
    /// it.
    ///
    /// # Errors
    /// The file cannot be read, or its content is not a JSON object of positions
    /// ([`io::ErrorKind::InvalidData`]).
    ///
    /// # Cancel safety
    /// Dropping the future has no effect on the file.
    pub async fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref().to_owned();
        let opened = tokio::task::spawn_blocking(move || PositionFile::open(path)).await;
        opened.map_err(io::Error::other)?.map(|file| Self(Arc::new(file)))
    }
}

impl PositionStore for FilePositions {
    async fn load(&self, timeline: &str) -> Result<Option<Position>, PositionStoreError> {
        let (file, timeline) = (Arc::clone(&self.0), timeline.to_owned());
        // A save may hold the lock during a disk write.
        Ok(tokio::task::spawn_blocking(move || file.positions.lock().get(&timeline).copied()).await?)
    }

    async fn save(&self, timeline: &str, position: Position) -> Result<(), PositionStoreError> {
        let (file, timeline) = (Arc::clone(&self.0), timeline.to_owned());
        Ok(tokio::task::spawn_blocking(move || file.save(timeline, position)).await??)
    }
}

impl PositionFile {
    fn open(path: PathBuf) -> io::Result<Self> {
        let positions = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error),
        };
        Ok(Self { path, positions: Mutex::new(positions) })
    }

    fn save(&self, timeline: String, position: Position) -> io::Result<()> {
        let mut positions = self.positions.lock();
        positions.insert(timeline, position);
        let mut temporary = self.path.clone().into_os_string();
        temporary.push(".new");
        let mut file = std::fs::File::create(&temporary)?;
        file.write_all(&serde_json::to_vec(&*positions)?)?;
        file.sync_all()?;
        std::fs::rename(&temporary, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn files_survive_the_process_and_faults_are_errors() {
        let folder = std::env::temp_dir().join(format!("goim-client-positions-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("positions.json");
        let store = FilePositions::open(&path).await.unwrap();
        assert_eq!(store.load("mid://7").await.unwrap(), None);
        let position = Position { epoch: u64::MAX, seq: 42 };
        store.save("mid://7", position).await.unwrap();
        store.save("live://1", Position { epoch: 1, seq: 1 }).await.unwrap();
        drop(store);

        let store = FilePositions::open(&path).await.unwrap();
        assert_eq!(store.load("mid://7").await.unwrap(), Some(position));
        std::fs::write(&path, "[]").unwrap();
        let broken = FilePositions::open(&path).await.unwrap_err();
        assert_eq!(broken.kind(), io::ErrorKind::InvalidData);
        std::fs::remove_dir_all(&folder).unwrap();
        store.save("mid://7", position).await.unwrap_err();
    }
}
