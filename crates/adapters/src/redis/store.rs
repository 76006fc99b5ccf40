//! A shared connection to Redis: a server, a cluster, or a master behind Sentinels.
//!
//! Commands of all callers are pipelined. The connection is reopened when it breaks; pending
//! commands then fail, and their callers decide. The number of pending commands is bounded; further
//! ones wait within their deadline.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::future::try_join_all;
use goim_ports::{DirectoryError, ServiceUrl};
use redis::aio::{ConnectionManager, ConnectionManagerConfig, MultiplexedConnection};
use redis::cluster_async::ClusterConnection;
use redis::sentinel::SentinelClient;
use redis::{AsyncConnectionConfig, Cmd, ErrorKind, Pipeline, RedisResult, Value};
use tokio::sync::{Mutex, Semaphore, watch};
use tokio::time::timeout;

use super::clients::ClientFactory;
use super::config::{RedisConfig, RedisPlace};
use super::health::{self, Health, HealthChange, RedisFault, Untrusted};

/// Why the connection to Redis failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RedisError {
    /// The address cannot be parsed.
    #[error("redis {place}: {reason}")]
    Address {
        /// The address, without a password.
        place: String,
        /// The reason.
        reason: String,
    },
    /// A TLS file cannot be read.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        reason: String,
    },
    /// Redis does not answer.
    #[error("redis {place} does not answer: {reason}")]
    Unavailable {
        /// The address, without a password.
        place: String,
        /// The error of the client.
        reason: String,
    },
    /// Redis rejects this client: a wrong password, an untrusted certificate. Retrying does not
    /// help.
    #[error("redis {place} rejects the connection with these settings: {reason}")]
    Rejected {
        /// The address, without a password.
        place: String,
        /// The error of Redis or of TLS.
        reason: String,
    },
}

/// Figures of a connection to Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RedisStats {
    /// Commands and canary rounds that were refused, in whole or in part.
    pub refused: u64,
    /// Detected losses of data: all of it, or the last writes.
    pub losses: u64,
    /// Whether it refuses writes now.
    pub refuses_writes: bool,
    /// Whether it does not answer now.
    pub is_unavailable: bool,
    /// Comets without a lease that are listed because they respond.
    pub without_lease: u64,
}

/// A connection to Redis. Clones share it.
#[derive(Clone)]
pub struct RedisStore {
    state: Arc<StoreState>,
}

/// The key whose value changes when Redis has lost its data.
pub(super) const EPOCH: &str = "goim:epoch";

/// Returns the time in nanoseconds since 1970, for values that must differ from earlier ones.
pub(super) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

struct StoreState {
    health: parking_lot::Mutex<Health>,
    losses: watch::Sender<u64>,
    refused: AtomicU64,
    seen_losses: AtomicU64,
    without_lease: AtomicU64,
    connection: Connection,
    config: RedisConfig,
    place: String,
    permits: Semaphore,
}

enum Connection {
    Single(ConnectionManager),
    Cluster(ClusterConnection),
    Sentinel(Box<Master>),
}

/// The current master, resolved again after a failover.
struct Master {
    client: Mutex<SentinelClient>,
    connection: Mutex<Option<MultiplexedConnection>>,
}

impl RedisStore {
    /// Connects, and sends a `PING`.
    ///
    /// # Errors
    /// [`RedisError`], after the deadline at most.
    pub async fn connect(config: RedisConfig) -> Result<Self, RedisError> {
        let place = config.place.to_string();
        let deadline = config.deadline;
        let unavailable = |reason: String| RedisError::Unavailable { place: place.clone(), reason };
        let connection = timeout(deadline.saturating_mul(2), Connection::open(&config))
            .await
            .map_err(|_| unavailable(format!("no answer within {deadline:?}")))??;
        let permits = Semaphore::new(config.commands_max.max(1));
        let (losses, _) = watch::channel(0);
        let (health, refused, seen_losses, without_lease) = Default::default();
        let interval = config.check_interval;
        let place_text = place.clone();
        let state = Arc::new(StoreState {
            health,
            losses,
            refused,
            seen_losses,
            without_lease,
            connection,
            place: place_text,
            permits,
            config,
        });
        let ping = state.within_deadline(state.connection.run(vec![redis::cmd("PING")])).await;
        ping.map_err(|failure| failure.into_error(&place))?;
        tokio::spawn(check(Arc::downgrade(&state), interval));
        Ok(Self { state })
    }

    /// Records the value of [`EPOCH`]. A changed or missing value means that Redis lost its data.
    pub(super) fn record_epoch(&self, epoch: Option<String>) {
        let change = self.state.health().record_epoch(epoch);
        self.state.apply(change);
    }

    /// Returns the time since the last detected loss.
    pub(super) fn since_loss(&self) -> Option<Duration> {
        self.state.health().since_loss()
    }

    /// Returns the time since the first write after Redis was empty; `None` when there was none. As
    /// of the last read of the list of comets.
    #[must_use]
    pub fn epoch_age(&self) -> Option<Duration> {
        let now = u64::try_from(now()).unwrap_or_default();
        self.state.health().epoch_age(Duration::from_nanos(now))
    }

    /// Returns the current fault.
    #[must_use]
    pub fn fault(&self) -> Option<RedisFault> {
        self.state.health().fault().cloned()
    }

    /// Returns which results cannot be trusted now.
    pub(super) fn untrusted(&self) -> Option<Untrusted> {
        let RedisConfig { recovery_grace, settling, .. } = self.state.config;
        self.state.health().untrusted(recovery_grace, settling)
    }

    /// Returns whether there is no fault and was none for `time`.
    pub(super) fn is_healthy_for(&self, time: Duration) -> bool {
        self.state.health().is_healthy_for(time)
    }

    /// Returns the current figures.
    #[must_use]
    pub fn stats(&self) -> RedisStats {
        let fault = self.fault();
        RedisStats {
            refused: self.state.refused.load(Ordering::Relaxed),
            losses: self.state.seen_losses.load(Ordering::Relaxed),
            refuses_writes: matches!(fault, Some(RedisFault::RefusesWrites(_))),
            is_unavailable: matches!(fault, Some(RedisFault::Unresponsive(_))),
            without_lease: self.state.without_lease.load(Ordering::Relaxed),
        }
    }

    /// Sets the number of comets that are listed without a lease.
    pub(super) fn set_without_lease(&self, count: usize) {
        self.state.without_lease.store(count as u64, Ordering::Relaxed);
    }

    /// Records that data of this process was lost.
    pub(super) fn record_loss(&self) {
        self.state.losses.send_modify(|losses| *losses += 1);
    }

    /// Whether a check has read the servers' run ids.
    #[cfg(test)]
    pub(super) fn knows_servers(&self) -> bool {
        self.state.health().knows_servers()
    }

    /// Returns the number of losses, as a watch.
    pub(super) fn losses(&self) -> watch::Receiver<u64> {
        self.state.losses.subscribe()
    }

    pub(super) fn unavailable(&self, reason: &str) -> DirectoryError {
        self.state.unavailable(reason)
    }

    /// Returns the expiry of written keys in whole seconds, as Redis wants it.
    pub(super) fn expire_seconds(&self) -> u64 {
        self.state.config.session_ttl.as_secs().max(1)
    }

    /// Pipelines commands and returns their answers in order. In a cluster each is sent to its own
    /// node.
    pub(super) async fn run(&self, commands: Vec<Cmd>) -> Result<Vec<Value>, DirectoryError> {
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        let state = &self.state;
        let count = u32::try_from(commands.len().min(state.config.commands_max)).unwrap_or(u32::MAX);
        let work = async {
            // The semaphore is never closed.
            let _permits = state.permits.acquire_many(count).await.ok();
            state.connection.run(commands).await
        };
        state.checked(state.within_deadline(work).await)
    }

    /// Runs commands as one transaction; all must use the same key.
    pub(super) async fn run_atomically(&self, commands: Vec<Cmd>) -> Result<(), DirectoryError> {
        let mut pipeline = Pipeline::with_capacity(commands.len());
        pipeline.atomic();
        for command in commands {
            pipeline.add_command(command).ignore();
        }
        let state = &self.state;
        state.checked(state.within_deadline(state.connection.run_atomically(&pipeline)).await)
    }
}

impl std::fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("RedisStore").field(&self.state.place).finish()
    }
}

/// Why a command has no answer.
enum Failure {
    Timeout(Duration),
    Redis(redis::RedisError),
}

impl Failure {
    fn text(&self) -> String {
        match self {
            Self::Timeout(deadline) => format!("no answer within {deadline:?}"),
            Self::Redis(error) => error.to_string(),
        }
    }

    fn into_error(self, place: &str) -> RedisError {
        let (place, reason) = (place.to_owned(), self.text());
        match self {
            Self::Redis(error) if health::is_rejection(&error) => RedisError::Rejected { place, reason },
            _ => RedisError::Unavailable { place, reason },
        }
    }
}

/// Sends canary writes periodically while the connection exists.
async fn check(state: Weak<StoreState>, interval: Duration) {
    let names = match state.upgrade() {
        Some(state) => health::canaries(matches!(state.connection, Connection::Cluster(_))),
        None => return,
    };
    loop {
        let Some(state) = state.upgrade() else { return };
        state.check(&names).await;
        drop(state);
        tokio::time::sleep(interval).await;
    }
}

impl StoreState {
    fn health(&self) -> parking_lot::MutexGuard<'_, Health> {
        self.health.lock()
    }

    async fn within_deadline<T>(&self, work: impl Future<Output = RedisResult<T>>) -> Result<T, Failure> {
        let deadline = self.config.deadline;
        match timeout(deadline, work).await {
            Ok(answer) => answer.map_err(Failure::Redis),
            Err(_) => {
                self.connection.reset_stalled().await;
                Err(Failure::Timeout(deadline))
            }
        }
    }

    /// Updates the health from a result, and converts its error.
    fn checked<T>(&self, answer: Result<T, Failure>) -> Result<T, DirectoryError> {
        if let Err(Failure::Redis(error)) = &answer
            && let Some(reason) = health::refusal_of(error)
        {
            self.record_refusal(reason);
        }
        answer.map_err(|failure| self.unavailable(&failure.text()))
    }

    fn record_refusal(&self, reason: String) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        let change = self.health().record_refusal(reason);
        self.apply(change);
    }

    /// Runs one check: the servers' run ids, and a round of canary writes.
    async fn check(&self, names: &[String]) {
        let asked = vec![redis::cmd("INFO").arg("server").to_owned()];
        // `INFO` may be denied; the canary writes show whether Redis answers.
        if let Ok(answers) = self.within_deadline(self.connection.run(asked)).await {
            let change = self.health().record_servers(answers.iter().flat_map(health::run_ids_of).collect());
            self.apply(change);
        }
        let canaries = names.iter().map(|name| health::canary(name)).collect();
        let change = match self.within_deadline(self.connection.run(canaries)).await {
            Ok(_) => self.health().record_success(),
            Err(failure) => {
                let refusal = match &failure {
                    Failure::Redis(error) => health::refusal_of(error),
                    Failure::Timeout(_) => None,
                };
                match refusal {
                    Some(reason) => return self.record_refusal(reason),
                    None => self.health().record_no_answer(failure.text()),
                }
            }
        };
        self.apply(change);
    }

    /// Logs a change of health, and notifies those who must register their data again.
    fn apply(&self, change: HealthChange) {
        let redis = self.place.as_str();
        match change {
            HealthChange::Nothing => return,
            HealthChange::Fault(fault) => {
                tracing::warn!(redis, "{fault}; sessions that are not found are not reported as absent");
                return;
            }
            HealthChange::Recovered { fault, is_loss } => {
                tracing::info!(redis, was = %fault, "redis can be read and written again");
                if !is_loss {
                    return;
                }
            }
            HealthChange::Loss => {
                tracing::warn!(redis, "redis lost data or was replaced; comets register their sessions again")
            }
        }
        self.seen_losses.fetch_add(1, Ordering::Relaxed);
        self.losses.send_modify(|losses| *losses += 1);
    }

    fn unavailable(&self, reason: &str) -> DirectoryError {
        DirectoryError::Unavailable(format!("redis {}: {reason}", self.place))
    }
}

impl Connection {
    async fn open(config: &RedisConfig) -> Result<Self, RedisError> {
        let unavailable =
            |error: redis::RedisError| Failure::Redis(error).into_error(&config.place.to_string());
        let factory = ClientFactory::new(config)?;
        let deadline = config.deadline;
        match &config.place {
            RedisPlace::Single(url) => {
                let manager = ConnectionManagerConfig::new()
                    .set_connection_timeout(Some(deadline))
                    .set_response_timeout(Some(deadline))
                    .set_min_delay(Duration::from_millis(20))
                    .set_max_delay(Duration::from_secs(1))
                    .set_number_of_retries(3);
                ConnectionManager::new_with_config(factory.single(url)?, manager)
                    .await
                    .map(Self::Single)
                    .map_err(unavailable)
            }
            RedisPlace::Cluster(nodes) => {
                let client = factory.cluster(nodes)?;
                client.get_async_connection().await.map(Self::Cluster).map_err(unavailable)
            }
            RedisPlace::Sentinel { sentinels, master, sign_in } => {
                let client = factory.sentinel(sentinels, master, sign_in)?;
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
                master.check_master(answers).await
            }
        }
    }

    async fn run_atomically(&self, pipeline: &Pipeline) -> RedisResult<()> {
        match self {
            Self::Single(manager) => pipeline.exec_async(&mut manager.clone()).await,
            Self::Cluster(connection) => pipeline.exec_async(&mut connection.clone()).await,
            Self::Sentinel(master) => {
                let mut connection = master.connection(Duration::MAX).await?;
                let done = pipeline.exec_async(&mut connection).await;
                master.check_master(done).await
            }
        }
    }
}

impl Connection {
    /// Forgets a master that hangs, since it may have been replaced. The other clients recover by
    /// themselves.
    async fn reset_stalled(&self) {
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
            // Each call has its own deadline.
            .set_response_timeout(None);
        let made = self.client.lock().await.get_async_connection_with_config(&config).await?;
        Ok(connection.insert(made).clone())
    }

    /// Drops the connection when it is broken, or when the server is no master any more.
    async fn check_master<T>(&self, answer: RedisResult<T>) -> RedisResult<T> {
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
