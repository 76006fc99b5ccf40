//! One connection to Redis, whatever stands behind it: a server, a cluster, or a master that Sentinels know.
//!
//! Everybody shares it: commands of many callers go out together and come back in order. It is made anew when it breaks; a
//! command that was out then fails, and its caller decides. How many are out is bounded; more wait, within their deadline.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::future::try_join_all;
use goim_ports::{DirectoryError, ServiceUrl};
use redis::aio::{ConnectionManager, ConnectionManagerConfig, MultiplexedConnection};
use redis::cluster_async::ClusterConnection;
use redis::sentinel::SentinelClient;
use redis::{AsyncConnectionConfig, Cmd, ErrorKind, Pipeline, RedisResult, Value};
use tokio::sync::{Mutex, Semaphore, watch};
use tokio::time::timeout;

use super::config::{RedisConfig, RedisPlace};
use super::open::Opening;

/// Why Redis is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RedisError {
    /// The address makes no sense.
    #[error("redis {place}: {reason}")]
    Address {
        /// What was given, without a password.
        place: String,
        /// What is wrong.
        reason: String,
    },
    /// A file of TLS cannot be read.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// It does not answer.
    #[error("redis {place} does not answer: {reason}")]
    Unavailable {
        /// Where it should be, without a password.
        place: String,
        /// What the client says.
        reason: String,
    },
}

/// A connection to Redis. Cloning shares it.
#[derive(Clone)]
pub struct RedisStore {
    shared: Arc<Shared>,
}

/// Has a value that is made anew when Redis has come back without what it had.
pub(super) const EPOCH: &str = "goim:epoch";

/// The clock in nanoseconds since 1970, for what must differ from before.
pub(super) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// What is known of Redis's own memory.
#[derive(Debug, Default)]
struct Memory {
    epoch: Option<String>,
    lost_at: Option<Instant>,
}

struct Shared {
    memory: std::sync::Mutex<Memory>,
    losses: watch::Sender<u64>,
    way: Way,
    config: RedisConfig,
    place: String,
    permits: Semaphore,
}

enum Way {
    Single(ConnectionManager),
    Cluster(ClusterConnection),
    Sentinel(Box<Master>),
}

/// The master of the moment, asked for anew when it is no longer one.
struct Master {
    client: Mutex<SentinelClient>,
    connection: Mutex<Option<MultiplexedConnection>>,
}

impl RedisStore {
    /// Connects, and asks for a sign of life.
    ///
    /// # Errors
    /// [`RedisError`], after the deadline at most.
    pub async fn connect(config: RedisConfig) -> Result<Self, RedisError> {
        let place = config.place.to_string();
        let deadline = config.deadline;
        let unavailable = |reason: String| RedisError::Unavailable { place: place.clone(), reason };
        let way = timeout(deadline.saturating_mul(2), Way::open(&config))
            .await
            .map_err(|_| unavailable(format!("no answer within {deadline:?}")))??;
        let permits = Semaphore::new(config.commands_max.max(1));
        let (memory, (losses, _)) = (std::sync::Mutex::default(), watch::channel(0));
        let shared = Shared { memory, losses, way, place: place.clone(), permits, config };
        let store = Self { shared: Arc::new(shared) };
        let ping = store.run(vec![redis::cmd("PING")]).await;
        ping.map_err(|DirectoryError::Unavailable(reason)| unavailable(reason))?;
        Ok(store)
    }

    /// Takes in what stands under [`EPOCH`]. Another value than before, or none where there was one, says that what Redis had is
    /// lost.
    pub(super) fn learn(&self, epoch: Option<String>) {
        let mut memory = self.shared.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let is_lost = memory.epoch.is_some() && memory.epoch != epoch;
        memory.epoch = epoch;
        if is_lost {
            memory.lost_at = Some(Instant::now());
            drop(memory);
            tracing::warn!(
                redis = self.shared.place,
                "redis has lost what it had; comets say again what they have"
            );
            self.shared.losses.send_modify(|losses| *losses += 1);
        }
    }

    /// Time since Redis was last seen to have lost what it had.
    pub(super) fn since_loss(&self) -> Option<Duration> {
        let memory = self.shared.memory.lock().unwrap_or_else(PoisonError::into_inner);
        memory.lost_at.map(|at| at.elapsed())
    }

    /// How long sessions may be missing after a loss.
    pub(super) fn rebuilding(&self) -> Duration {
        self.shared.config.rebuilding
    }

    /// Says that something of what this process had said is lost.
    pub(super) fn lost(&self) {
        self.shared.losses.send_modify(|losses| *losses += 1);
    }

    /// How often Redis was seen to have lost what it had.
    pub(super) fn losses(&self) -> watch::Receiver<u64> {
        self.shared.losses.subscribe()
    }

    pub(super) fn unavailable(&self, reason: &str) -> DirectoryError {
        self.shared.unavailable(reason)
    }

    /// How long what is written lives, in whole seconds, as Redis wants it.
    pub(super) fn expire_seconds(&self) -> u64 {
        self.shared.config.expire.as_secs().max(1)
    }

    /// Sends commands together and gives their answers in order. In a cluster each goes to its own node.
    pub(super) async fn run(&self, commands: Vec<Cmd>) -> Result<Vec<Value>, DirectoryError> {
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        let shared = &self.shared;
        let count = u32::try_from(commands.len().min(shared.config.commands_max)).unwrap_or(u32::MAX);
        let work = async {
            // The semaphore is never closed.
            let _permits = shared.permits.acquire_many(count).await.ok();
            shared.way.run(commands).await
        };
        self.within_deadline(work).await
    }

    async fn within_deadline<T>(
        &self,
        work: impl Future<Output = RedisResult<T>>,
    ) -> Result<T, DirectoryError> {
        let deadline = self.shared.config.deadline;
        match timeout(deadline, work).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(self.shared.unavailable(&error.to_string())),
            Err(_) => {
                self.shared.way.has_stalled().await;
                Err(self.shared.unavailable(&format!("no answer within {deadline:?}")))
            }
        }
    }

    /// The same as one transaction; all commands must be about one key.
    pub(super) async fn run_as_one(&self, commands: Vec<Cmd>) -> Result<(), DirectoryError> {
        let mut pipeline = Pipeline::with_capacity(commands.len());
        pipeline.atomic();
        for command in commands {
            pipeline.add_command(command).ignore();
        }
        self.within_deadline(self.shared.way.run_as_one(&pipeline)).await
    }
}

impl std::fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("RedisStore").field(&self.shared.place).finish()
    }
}

impl Shared {
    fn unavailable(&self, reason: &str) -> DirectoryError {
        DirectoryError::Unavailable(format!("redis {}: {reason}", self.place))
    }
}

impl Way {
    async fn open(config: &RedisConfig) -> Result<Self, RedisError> {
        let unavailable = |error: redis::RedisError| RedisError::Unavailable {
            place: config.place.to_string(),
            reason: error.to_string(),
        };
        let opening = Opening::new(config)?;
        let deadline = config.deadline;
        match &config.place {
            RedisPlace::Single(url) => {
                let manager = ConnectionManagerConfig::new()
                    .set_connection_timeout(Some(deadline))
                    .set_response_timeout(Some(deadline))
                    .set_min_delay(Duration::from_millis(20))
                    .set_max_delay(Duration::from_secs(1))
                    .set_number_of_retries(3);
                ConnectionManager::new_with_config(opening.single(url)?, manager)
                    .await
                    .map(Self::Single)
                    .map_err(unavailable)
            }
            RedisPlace::Cluster(nodes) => {
                let client = opening.cluster(nodes)?;
                client.get_async_connection().await.map(Self::Cluster).map_err(unavailable)
            }
            RedisPlace::Sentinel { sentinels, master, sign_in } => {
                let client = opening.sentinel(sentinels, master, sign_in)?;
                let master = Master { client: Mutex::new(client), connection: Mutex::default() };
                master.connection(deadline).await.map_err(unavailable)?;
                Ok(Self::Sentinel(Box::new(master)))
            }
        }
    }

    async fn run(&self, commands: Vec<Cmd>) -> RedisResult<Vec<Value>> {
        match self {
            Self::Single(manager) => all(&commands).query_async(&mut manager.clone()).await,
            Self::Cluster(connection) => {
                let one = |command: Cmd| {
                    let mut connection = connection.clone();
                    async move { command.query_async(&mut connection).await }
                };
                try_join_all(commands.into_iter().map(one)).await
            }
            Self::Sentinel(master) => {
                let pipeline = all(&commands);
                let mut connection = master.connection(Duration::MAX).await?;
                let answers = pipeline.query_async(&mut connection).await;
                master.look_at(answers).await
            }
        }
    }

    async fn run_as_one(&self, pipeline: &Pipeline) -> RedisResult<()> {
        match self {
            Self::Single(manager) => pipeline.exec_async(&mut manager.clone()).await,
            Self::Cluster(connection) => pipeline.exec_async(&mut connection.clone()).await,
            Self::Sentinel(master) => {
                let mut connection = master.connection(Duration::MAX).await?;
                let done = pipeline.exec_async(&mut connection).await;
                master.look_at(done).await
            }
        }
    }
}

impl Way {
    /// A master that hangs may have been replaced: the Sentinels are asked again. The others look after themselves.
    async fn has_stalled(&self) {
        if let Self::Sentinel(master) = self {
            *master.connection.lock().await = None;
        }
    }
}

fn all(commands: &[Cmd]) -> Pipeline {
    let mut pipeline = Pipeline::with_capacity(commands.len());
    for command in commands {
        pipeline.add_command(command.clone());
    }
    pipeline
}

impl Master {
    async fn connection(&self, deadline: Duration) -> RedisResult<MultiplexedConnection> {
        let mut connection = self.connection.lock().await;
        if let Some(connection) = &*connection {
            return Ok(connection.clone());
        }
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(deadline.min(Duration::from_secs(2))))
            // Each call has a deadline of its own.
            .set_response_timeout(None);
        let made = self.client.lock().await.get_async_connection_with_config(&config).await?;
        Ok(connection.insert(made).clone())
    }

    /// Forgets the connection when the answer says that it is broken, or that this is no master any longer.
    async fn look_at<T>(&self, answer: RedisResult<T>) -> RedisResult<T> {
        if let Err(error) = &answer {
            let is_replica = error.kind() == ErrorKind::Server(redis::ServerErrorKind::ReadOnly);
            if is_replica || error.is_connection_dropped() || error.is_io_error() || error.is_timeout() {
                *self.connection.lock().await = None;
            }
        }
        answer
    }
}

impl std::fmt::Display for RedisPlace {
    /// Without passwords.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bare = |url: &String| ServiceUrl::from(url.as_str()).to_string();
        match self {
            Self::Single(url) => f.write_str(&bare(url)),
            Self::Cluster(nodes) => {
                write!(f, "cluster of {}", nodes.iter().map(bare).collect::<Vec<_>>().join(", "))
            }
            Self::Sentinel { sentinels, master, .. } => {
                let sentinels = sentinels.iter().map(bare).collect::<Vec<_>>().join(", ");
                write!(f, "master {master} of the Sentinels {sentinels}")
            }
        }
    }
}
