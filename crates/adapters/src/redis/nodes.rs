//! The list of comets by leases: each keeps a record alive that goes by itself when the comet does.
//!
//! `goim:node:<server>` is the record, `goim:nodes` the set of names to ask for. A snapshot is kept up to date behind the calls;
//! while Redis does not answer, it stays as it was: comets do not go because the list cannot be read. Nor do they because Redis has
//! come back empty: `goim:epoch` has a value that is made anew then, and who sees another than before keeps the comets that he knew
//! for a lease, in which they say that they are there. [`RedisNodes::losses`] tells of it, for those who must say again what they had
//! said.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use goim_ports::{Call, CometNode, DirectoryError, NodeDirectory, NodeError, ServerId};
use redis::{Cmd, cmd};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::sessions::answer;
use super::store::{EPOCH, RedisStore, now};

const NAMES: &str = "goim:nodes";

/// Times of a node directory.
#[derive(Debug, Clone, Copy)]
pub struct RedisNodesConfig {
    /// How long a comet is listed that is silent. Default 10 s. Must be several of its announcements.
    pub lease: Duration,
    /// How often the list is read. Default 1 s.
    pub refresh: Duration,
}

impl Default for RedisNodesConfig {
    fn default() -> Self {
        Self { lease: Duration::from_secs(10), refresh: Duration::from_secs(1) }
    }
}

/// A node directory on Redis.
pub struct RedisNodes {
    shared: Arc<Shared>,
    refresher: tokio::task::JoinHandle<()>,
}

struct Shared {
    store: RedisStore,
    config: RedisNodesConfig,
    snapshot: RwLock<Arc<Vec<CometNode>>>,
    announced: tokio::sync::Mutex<Vec<Announced>>,
}

/// What this process has announced.
struct Announced {
    node: CometNode,
    /// When the last announcement that was answered began: its lease is this long at least.
    begun: Instant,
}

/// A comet's record.
#[derive(Serialize, Deserialize)]
struct Record {
    region: String,
    zone: String,
    env: String,
    rpc_addrs: Vec<String>,
    public_addrs: Vec<String>,
    weight: i32,
    offline: bool,
    connections: u64,
    addresses: u64,
    latest_timestamp: i64,
}

impl RedisNodes {
    /// Reads the list and goes on doing so. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`NodeError`] when the list cannot be read at all.
    pub async fn start(store: RedisStore, config: RedisNodesConfig) -> Result<Self, NodeError> {
        let (snapshot, announced) = Default::default();
        let shared = Arc::new(Shared { store, config, snapshot, announced });
        shared.refresh().await.map_err(unavailable)?;
        let refresher = tokio::spawn(refresh(Arc::clone(&shared)));
        Ok(Self { shared, refresher })
    }

    /// How often what was said to Redis has been lost: it has come back empty, or is another, or a lease has ended before it
    /// was renewed.
    #[must_use]
    pub fn losses(&self) -> watch::Receiver<u64> {
        self.shared.store.losses()
    }
}

impl Drop for RedisNodes {
    fn drop(&mut self) {
        self.refresher.abort();
    }
}

impl std::fmt::Debug for RedisNodes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisNodes").field("store", &self.shared.store).finish_non_exhaustive()
    }
}

async fn refresh(shared: Arc<Shared>) {
    let mut failing = false;
    loop {
        tokio::time::sleep(shared.config.refresh).await;
        match (shared.refresh().await, failing) {
            (Ok(()), false) | (Err(_), true) => {}
            (Ok(()), true) => {
                tracing::info!("the list of comets can be read again");
                failing = false;
            }
            (Err(error), false) => {
                tracing::warn!(%error, "the list of comets stays as it was");
                failing = true;
            }
        }
    }
}

impl Shared {
    async fn refresh(&self) -> Result<(), DirectoryError> {
        let asked = vec![cmd("GET").arg(EPOCH).to_owned(), cmd("SMEMBERS").arg(NAMES).to_owned()];
        let mut answers = self.store.run(asked).await?.into_iter();
        let epoch: Option<String> = answer(answers.next())?;
        let mut names: Vec<String> = answer(answers.next())?;
        self.store.learn(epoch);
        let keeps = self.store.since_loss().is_some_and(|since| since < self.config.lease);
        names.sort_unstable();
        let asked: Vec<Cmd> = names.iter().map(|name| cmd("GET").arg(record_of(name)).to_owned()).collect();
        let answers = self.store.run(asked).await?;
        let (mut comets, mut gone) = (Vec::with_capacity(names.len()), Vec::new());
        for (name, found) in names.into_iter().zip(answers) {
            let found: Option<Vec<u8>> = answer(Some(found))?;
            match found.map(|text| serde_json::from_slice::<Record>(&text)) {
                Some(Ok(record)) => comets.push(record.into_node(name.into())),
                Some(Err(error)) => {
                    tracing::warn!(server = name, %error, "the record of a comet cannot be read")
                }
                None => gone.push(name),
            }
        }
        self.forget(gone).await;
        if keeps {
            let before = Arc::clone(&self.snapshot.read().unwrap_or_else(PoisonError::into_inner));
            let missing =
                before.iter().filter(|known| comets.iter().all(|comet| comet.server != known.server));
            let missing: Vec<CometNode> = missing.cloned().collect();
            comets.extend(missing);
        }
        let comets = Arc::new(comets);
        let mut snapshot = self.snapshot.write().unwrap_or_else(PoisonError::into_inner);
        if *snapshot != comets {
            *snapshot = comets;
        }
        Ok(())
    }

    /// Takes names off the list whose leases have ended. One that has come back meanwhile puts itself on it again with its
    /// next word.
    async fn forget(&self, gone: Vec<String>) {
        let removed = gone.iter().map(|name| cmd("SREM").arg(NAMES).arg(name).to_owned()).collect();
        if let Err(error) = self.store.run(removed).await {
            tracing::debug!(%error, "names of comets that are gone stay on the list for now");
        }
    }

    async fn announce(&self, mut node: CometNode) -> Result<(), DirectoryError> {
        let mut announced = self.announced.lock().await;
        let begun = Instant::now();
        let known = announced.iter().position(|known| known.node.server == node.server);
        node.latest_timestamp = match known.map(|known| &announced[known].node) {
            Some(known) if is_same(known, &node) => known.latest_timestamp,
            Some(known) => now().max(known.latest_timestamp + 1),
            None => now(),
        };
        let lease = u64::try_from(self.config.lease.as_millis()).unwrap_or(u64::MAX);
        let record = serde_json::to_string(&Record::from(&node)).unwrap_or_default();
        let name = node.server.as_str().to_owned();
        let commands = vec![
            cmd("SET").arg(EPOCH).arg(now()).arg("NX").to_owned(),
            cmd("SET").arg(record_of(&name)).arg(record).arg("PX").arg(lease).arg("GET").to_owned(),
            cmd("SADD").arg(NAMES).arg(&name).to_owned(),
        ];
        let before: Option<String> = answer(self.store.run(commands).await?.into_iter().nth(1))?;
        // Redis may have taken an announcement whose answer never came, when all was over: the time counts too.
        let may_have_ended = known.is_some_and(|known| announced[known].begun.elapsed() > self.config.lease);
        if may_have_ended || before.is_none() && known.is_some() {
            // Meanwhile its sessions may have been removed.
            tracing::warn!(server = name, "the lease of this comet had ended; it says again what it has");
            self.store.lost();
        }
        let node = Announced { node, begun };
        match known {
            Some(known) => announced[known] = node,
            None => announced.push(node),
        }
        drop(announced);
        self.refresh().await
    }

    async fn withdraw(&self, server: ServerId) -> Result<(), DirectoryError> {
        self.announced.lock().await.retain(|known| known.node.server != server);
        // Else it might be kept for one that Redis has lost.
        let mut without = Vec::clone(&self.snapshot.read().unwrap_or_else(PoisonError::into_inner));
        without.retain(|comet| comet.server != server);
        *self.snapshot.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(without);
        let commands = vec![
            cmd("DEL").arg(record_of(server.as_str())).to_owned(),
            cmd("SREM").arg(NAMES).arg(server.as_str()).to_owned(),
        ];
        self.store.run(commands).await?;
        self.refresh().await
    }
}

fn record_of(name: &str) -> String {
    ["goim:node:", name].concat()
}

fn is_same(known: &CometNode, node: &CometNode) -> bool {
    *known == CometNode { latest_timestamp: known.latest_timestamp, ..node.clone() }
}

fn unavailable(DirectoryError::Unavailable(reason): DirectoryError) -> NodeError {
    NodeError::Unavailable(reason)
}

impl From<&CometNode> for Record {
    fn from(node: &CometNode) -> Self {
        let CometNode { server: _, region, zone, env, rpc_addrs, public_addrs, .. } = node.clone();
        let CometNode { weight, offline, connections, addresses, latest_timestamp, .. } = *node;
        Self {
            region,
            zone,
            env,
            rpc_addrs,
            public_addrs,
            weight,
            offline,
            connections,
            addresses,
            latest_timestamp,
        }
    }
}

impl Record {
    fn into_node(self, server: ServerId) -> CometNode {
        let Self { region, zone, env, rpc_addrs, public_addrs, .. } = self;
        let (weight, offline) = (self.weight, self.offline);
        let (connections, addresses, latest_timestamp) =
            (self.connections, self.addresses, self.latest_timestamp);
        CometNode {
            server,
            region,
            zone,
            env,
            rpc_addrs,
            public_addrs,
            weight,
            offline,
            connections,
            addresses,
            latest_timestamp,
        }
    }
}

impl NodeDirectory for RedisNodes {
    fn announce(&self, node: CometNode) -> Call<Result<(), NodeError>> {
        let shared = Arc::clone(&self.shared);
        Call::pending(async move { shared.announce(node).await.map_err(unavailable) })
    }

    fn withdraw(&self, server: ServerId) -> Call<Result<(), NodeError>> {
        let shared = Arc::clone(&self.shared);
        Call::pending(async move { shared.withdraw(server).await.map_err(unavailable) })
    }

    fn comets(&self) -> Arc<Vec<CometNode>> {
        Arc::clone(&self.shared.snapshot.read().unwrap_or_else(PoisonError::into_inner))
    }
}
