//! One connection to Redis, whatever stands behind it: a server, a cluster, or a master that
//! Sentinels know.
//!
//! Everybody shares it: commands of many callers go out together and come back in order. It is made
//! anew when it breaks; a command that was out then fails, and its caller decides. How many are out
//! is bounded; more wait, within their deadline.

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

use super::config::{RedisConfig, RedisPlace};
use super::health::{self, Change, Doubt, Health, RedisTrouble};
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
    /// It answers, and does not let this process in: a wrong password, a certificate that is not
    /// trusted. Waiting does not mend it.
    #[error("redis {place} lets nobody in with these settings: {reason}")]
    Rejected {
        /// Where it is, without a password.
        place: String,
        /// What it says.
        reason: String,
    },
}

/// Figures of a connection to Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RedisStats {
    /// Commands and rounds of small writes that were refused, as a whole or in part.
    pub refused: u64,
    /// Times that Redis was seen to have lost what it had, or the last of it.
    pub losses: u64,
    /// It refuses writes at this moment.
    pub refuses_writes: bool,
    /// It does not answer at this moment.
    pub is_silent: bool,
    /// Comets whose leases are over, and which are listed because they answer.
    pub without_lease: u64,
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

struct Shared {
    health: parking_lot::Mutex<Health>,
    losses: watch::Sender<u64>,
    refused: AtomicU64,
    seen_losses: AtomicU64,
    without_lease: AtomicU64,
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
        let (losses, _) = watch::channel(0);
        let (health, refused, seen_losses, without_lease) = Default::default();
        let interval = config.check_interval;
        let place_text = place.clone();
        let shared = Arc::new(Shared {
            health,
            losses,
            refused,
            seen_losses,
            without_lease,
            way,
            place: place_text,
            permits,
            config,
        });
        let ping = shared.within_deadline(shared.way.run(vec![redis::cmd("PING")])).await;
        ping.map_err(|failure| failure.into_error(&place))?;
        tokio::spawn(check(Arc::downgrade(&shared), interval));
        Ok(Self { shared })
    }

    /// Takes in what stands under [`EPOCH`]. Another value than before, or none where there was
    /// one, says that what Redis had is lost.
    pub(super) fn learn(&self, epoch: Option<String>) {
        let change = self.shared.health().learn_epoch(epoch);
        self.shared.tell(change);
    }

    /// Time since Redis was last seen to have lost what it had.
    pub(super) fn since_loss(&self) -> Option<Duration> {
        self.shared.health().since_loss()
    }

    /// Time since somebody first wrote into this Redis after it was empty; `None` when nobody has.
    /// As of the last look at the list of comets.
    #[must_use]
    pub fn epoch_age(&self) -> Option<Duration> {
        let now = u64::try_from(now()).unwrap_or_default();
        self.shared.health().epoch_age(Duration::from_nanos(now))
    }

    /// What is wrong at this moment, if anything is.
    #[must_use]
    pub fn trouble(&self) -> Option<RedisTrouble> {
        self.shared.health().trouble().cloned()
    }

    /// What cannot be believed of what it says.
    pub(super) fn doubt(&self) -> Option<Doubt> {
        let RedisConfig { recovery_grace, settling, .. } = self.shared.config;
        self.shared.health().doubt(recovery_grace, settling)
    }

    /// True when nothing is wrong and nothing was for `time`.
    pub(super) fn is_calm(&self, time: Duration) -> bool {
        self.shared.health().is_calm(time)
    }

    /// The figures of this moment.
    #[must_use]
    pub fn stats(&self) -> RedisStats {
        let trouble = self.trouble();
        RedisStats {
            refused: self.shared.refused.load(Ordering::Relaxed),
            losses: self.shared.seen_losses.load(Ordering::Relaxed),
            refuses_writes: matches!(trouble, Some(RedisTrouble::RefusesWrites(_))),
            is_silent: matches!(trouble, Some(RedisTrouble::Silent(_))),
            without_lease: self.shared.without_lease.load(Ordering::Relaxed),
        }
    }

    /// Takes in how many comets are listed without a lease.
    pub(super) fn count_without_lease(&self, count: usize) {
        self.shared.without_lease.store(count as u64, Ordering::Relaxed);
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
        self.shared.config.session_ttl.as_secs().max(1)
    }

    /// Sends commands together and gives their answers in order. In a cluster each goes to its own
    /// node.
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
        shared.answered(shared.within_deadline(work).await)
    }

    /// The same as one transaction; all commands must be about one key.
    pub(super) async fn run_as_one(&self, commands: Vec<Cmd>) -> Result<(), DirectoryError> {
        let mut pipeline = Pipeline::with_capacity(commands.len());
        pipeline.atomic();
        for command in commands {
            pipeline.add_command(command).ignore();
        }
        let shared = &self.shared;
        shared.answered(shared.within_deadline(shared.way.run_as_one(&pipeline)).await)
    }
}

impl std::fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("RedisStore").field(&self.shared.place).finish()
    }
}

/// Why a command has no answer.
enum Failure {
    Late(Duration),
    Said(redis::RedisError),
}

impl Failure {
    fn text(&self) -> String {
        match self {
            Self::Late(deadline) => format!("no answer within {deadline:?}"),
            Self::Said(error) => error.to_string(),
        }
    }

    fn into_error(self, place: &str) -> RedisError {
        let (place, reason) = (place.to_owned(), self.text());
        match self {
            Self::Said(error) if health::is_rejection(&error) => RedisError::Rejected { place, reason },
            _ => RedisError::Unavailable { place, reason },
        }
    }
}

/// Makes small writes from time to time, as long as somebody has the connection.
async fn check(shared: Weak<Shared>, interval: Duration) {
    let names = match shared.upgrade() {
        Some(shared) => health::canaries(matches!(shared.way, Way::Cluster(_))),
        None => return,
    };
    loop {
        let Some(shared) = shared.upgrade() else { return };
        shared.check(&names).await;
        drop(shared);
        tokio::time::sleep(interval).await;
    }
}

impl Shared {
    fn health(&self) -> parking_lot::MutexGuard<'_, Health> {
        self.health.lock()
    }

    async fn within_deadline<T>(&self, work: impl Future<Output = RedisResult<T>>) -> Result<T, Failure> {
        let deadline = self.config.deadline;
        match timeout(deadline, work).await {
            Ok(answer) => answer.map_err(Failure::Said),
            Err(_) => {
                self.way.has_stalled().await;
                Err(Failure::Late(deadline))
            }
        }
    }

    /// Learns from an answer, and puts it into the port's words.
    fn answered<T>(&self, answer: Result<T, Failure>) -> Result<T, DirectoryError> {
        if let Err(Failure::Said(error)) = &answer
            && let Some(reason) = health::refusal_of(error)
        {
            self.is_refused(reason);
        }
        answer.map_err(|failure| self.unavailable(&failure.text()))
    }

    fn is_refused(&self, reason: String) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        let change = self.health().refused(reason);
        self.tell(change);
    }

    /// One round: who the servers are, and whether they can be written to.
    async fn check(&self, names: &[String]) {
        let asked = vec![redis::cmd("INFO").arg("server").to_owned()];
        // It may be kept from us; whether Redis is there shows with what follows.
        if let Ok(answers) = self.within_deadline(self.way.run(asked)).await {
            let change = self.health().learn_servers(answers.iter().flat_map(health::servers_of).collect());
            self.tell(change);
        }
        let canaries = names.iter().map(|name| health::canary(name)).collect();
        let change = match self.within_deadline(self.way.run(canaries)).await {
            Ok(_) => self.health().is_well(),
            Err(failure) => {
                let refusal = match &failure {
                    Failure::Said(error) => health::refusal_of(error),
                    Failure::Late(_) => None,
                };
                match refusal {
                    Some(reason) => return self.is_refused(reason),
                    None => self.health().silent(failure.text()),
                }
            }
        };
        self.tell(change);
    }

    /// Says once what has changed, and to whoever must say again what he had said.
    fn tell(&self, change: Change) {
        let redis = self.place.as_str();
        match change {
            Change::Nothing => return,
            Change::Trouble(trouble) => {
                tracing::warn!(redis, "{trouble}; nobody is taken for gone meanwhile");
                return;
            }
            Change::Over { trouble, is_loss } => {
                tracing::info!(redis, was = %trouble, "redis can be read and written again");
                if !is_loss {
                    return;
                }
            }
            Change::Loss => tracing::warn!(
                redis,
                "redis has lost what it had, or is another; comets say again what they have"
            ),
        }
        self.seen_losses.fetch_add(1, Ordering::Relaxed);
        self.losses.send_modify(|losses| *losses += 1);
    }

    fn unavailable(&self, reason: &str) -> DirectoryError {
        DirectoryError::Unavailable(format!("redis {}: {reason}", self.place))
    }
}

impl Way {
    async fn open(config: &RedisConfig) -> Result<Self, RedisError> {
        let unavailable =
            |error: redis::RedisError| Failure::Said(error).into_error(&config.place.to_string());
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
    /// A master that hangs may have been replaced: the Sentinels are asked again. The others look
    /// after themselves.
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

    /// Forgets the connection when the answer says that it is broken, or that this is no master any
    /// longer.
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
