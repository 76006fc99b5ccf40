//! The list of comets by leases: each comet renews a record that expires when the comet dies.
//!
//! `goim:node:<server>` is the record, `goim:nodes` the set of names. A snapshot is refreshed in
//! the background and stays unchanged while Redis does not answer. A comet without a lease may be
//! alive: Redis may have lost its data or refused the renewal. It is probed (`expired_leases`) at
//! the address in `goim:comet:<server>`, a copy of the record that outlives the lease. A comet that
//! withdraws removes name and copy, and is unlisted immediately. `goim:epoch` changes when Redis
//! was emptied; then all known comets stay listed for a lease, and [`RedisNodes::losses`] notifies
//! those who must register their data again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use goim_ports::{Call, CometNode, DirectoryError, NodeDirectory, NodeError, ServerId};
use parking_lot::RwLock;
use redis::{Cmd, cmd};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::expired_leases::{CometProbe, ExpiredLeases};
use super::sessions::answer;
use super::store::{EPOCH, RedisStore, now};

const NAMES: &str = "goim:nodes";
/// The expiry of the copy of a comet's record, in seconds: longer than Redis is likely to refuse
/// writes.
const COPY_SECONDS: u64 = 24 * 60 * 60;
/// How long startup waits for probes of comets without a lease.
const FIRST_PROBES: Duration = Duration::from_secs(2);

/// Times of a node directory.
#[derive(Debug, Clone, Copy)]
pub struct RedisNodesConfig {
    /// How long a silent comet stays listed. Default 10 s. Must be several announcement intervals.
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
    state: Arc<NodesState>,
    _refresh_task: AbortOnDropHandle<()>,
}

struct NodesState {
    store: RedisStore,
    config: RedisNodesConfig,
    snapshot: RwLock<Arc<Vec<CometNode>>>,
    announced: tokio::sync::Mutex<Vec<Announced>>,
    /// Held while the list is read, so that reads are serialised.
    expired: tokio::sync::Mutex<ExpiredLeases>,
}

/// A comet that this process has announced.
struct Announced {
    node: CometNode,
    /// When the last confirmed announcement was sent: its lease lasts at least from then.
    started_at: Instant,
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
    /// Reads the list, and refreshes it in the background. `probe` checks comets whose leases have
    /// expired; without it they are removed. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`NodeError`] when the list cannot be read.
    pub async fn start(
        store: RedisStore,
        config: RedisNodesConfig,
        probe: Option<CometProbe>,
    ) -> Result<Self, NodeError> {
        let (snapshot, announced) = Default::default();
        let expired = tokio::sync::Mutex::new(ExpiredLeases::new(probe, config.lease));
        let state = Arc::new(NodesState { store, config, snapshot, announced, expired });
        state.refresh().await.map_err(unavailable)?;
        state.first_probes().await.map_err(unavailable)?;
        let refresh_task = AbortOnDropHandle::new(tokio::spawn(refresh(Arc::clone(&state))));
        Ok(Self { state, _refresh_task: refresh_task })
    }

    /// Returns the number of losses, as a watch: Redis lost data or was replaced, or a lease
    /// expired before its renewal.
    #[must_use]
    pub fn losses(&self) -> watch::Receiver<u64> {
        self.state.store.losses()
    }
}

impl std::fmt::Debug for RedisNodes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisNodes").field("store", &self.state.store).finish_non_exhaustive()
    }
}

async fn refresh(state: Arc<NodesState>) {
    let mut failing = false;
    loop {
        tokio::time::sleep(state.config.refresh).await;
        match (state.refresh().await, failing) {
            (Ok(()), false) | (Err(_), true) => {}
            (Ok(()), true) => {
                tracing::info!("the list of comets can be read again");
                failing = false;
            }
            (Err(error), false) => {
                tracing::warn!(%error, "the list of comets cannot be read; keeping the last one");
                failing = true;
            }
        }
    }
}

impl NodesState {
    async fn refresh(&self) -> Result<(), DirectoryError> {
        let mut expired = self.expired.lock().await;
        let asked = vec![cmd("GET").arg(EPOCH).to_owned(), cmd("SMEMBERS").arg(NAMES).to_owned()];
        let mut answers = self.store.run(asked).await?.into_iter();
        let epoch: Option<String> = answer(answers.next())?;
        let mut names: Vec<String> = answer(answers.next())?;
        self.store.record_epoch(epoch);
        names.sort_unstable();
        let records = self.records(&names, record_name).await?;
        let (mut comets, mut without_lease) = (Vec::with_capacity(names.len()), Vec::new());
        for (name, found) in names.iter().zip(records) {
            match found {
                Some(comet) => comets.push(comet),
                None => without_lease.push(name.clone()),
            }
        }
        let before = Arc::clone(&self.snapshot.read());
        let (candidates, unknown) = self.candidates(&before, &names, without_lease).await?;
        let keep_all = self.keep_all();
        let (kept, gone) =
            expired.classify(candidates, self.store.is_healthy_for(self.config.lease), keep_all);
        // Another process may reach a comet that this one does not, and while Redis refuses writes
        // its name could not be added again.
        if self.store.fault().is_none() {
            let gone = gone.iter().map(|comet| comet.server.to_string());
            self.unlist(gone.chain(unknown).filter(|name| names.contains(name)).collect()).await;
        }
        self.store.set_without_lease(kept.len());
        comets.extend(kept);
        let comets = Arc::new(comets);
        let mut snapshot = self.snapshot.write();
        if *snapshot != comets {
            *snapshot = comets;
        }
        Ok(())
    }

    /// Returns whether Redis lost its data less than a lease ago.
    fn keep_all(&self) -> bool {
        self.store.since_loss().is_some_and(|since| since < self.config.lease)
    }

    /// Returns the comets that may be alive without a lease, and the names about which nothing is
    /// known. A known comet whose name and copy are missing has withdrawn, unless Redis lost them.
    async fn candidates(
        &self,
        before: &[CometNode],
        names: &[String],
        without_lease: Vec<String>,
    ) -> Result<(Vec<CometNode>, Vec<String>), DirectoryError> {
        let is_named = |comet: &&CometNode| names.iter().any(|name| *name == comet.server.as_str());
        let nameless: Vec<&CometNode> = before.iter().filter(|comet| !is_named(comet)).collect();
        let known = |name: &str| before.iter().find(|comet| comet.server.as_str() == name);
        let (mut candidates, mut unknown) = (Vec::new(), Vec::new());
        let copied: Vec<String> = without_lease
            .iter()
            .filter(|name| known(name).is_none())
            .cloned()
            .chain(nameless.iter().map(|comet| comet.server.to_string()))
            .collect();
        candidates.extend(without_lease.iter().filter_map(|name| known(name)).cloned());
        for (name, copy) in copied.iter().zip(self.records(&copied, copy_name).await?) {
            match (copy, known(name)) {
                (Some(copy), None) => candidates.push(copy),
                (Some(_), Some(comet)) => candidates.push(comet.clone()),
                (None, Some(comet)) if self.keep_all() => candidates.push(comet.clone()),
                (None, _) => unknown.push(name.clone()),
            }
        }
        Ok((candidates, unknown))
    }

    async fn records(
        &self,
        names: &[String],
        key: fn(&str) -> String,
    ) -> Result<Vec<Option<CometNode>>, DirectoryError> {
        let asked: Vec<Cmd> = names.iter().map(|name| cmd("GET").arg(key(name)).to_owned()).collect();
        let answers = self.store.run(asked).await?;
        let read = |(name, found): (&String, _)| {
            let found: Option<Vec<u8>> = answer(Some(found))?;
            let record = found.map(|text| serde_json::from_slice::<Record>(&text)).transpose();
            Ok(record.unwrap_or_else(|error| {
                tracing::warn!(server = name, %error, "the record of a comet cannot be read");
                None
            }))
            .map(|record| record.map(|record| record.into_node(name.as_str().into())))
        };
        names.iter().zip(answers).map(read).collect()
    }

    /// Waits at startup for the probes of comets without a lease, and applies them.
    async fn first_probes(&self) -> Result<(), DirectoryError> {
        let until = Instant::now() + FIRST_PROBES;
        if self.expired.lock().await.is_idle() && self.store.stats().without_lease == 0 {
            return Ok(());
        }
        while !self.expired.lock().await.is_idle() && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.refresh().await
    }

    /// Removes the names of dead comets from the list. One that is alive again adds itself with its
    /// next announcement. The copy of its record stays, since it has not withdrawn.
    async fn unlist(&self, gone: Vec<String>) {
        let removed = gone.iter().map(|name| cmd("SREM").arg(NAMES).arg(name).to_owned()).collect();
        if let Err(error) = self.store.run(removed).await {
            tracing::debug!(%error, "the names of dead comets could not be removed; retrying with the next refresh");
        }
    }

    async fn announce(&self, mut node: CometNode) -> Result<(), DirectoryError> {
        let mut announced = self.announced.lock().await;
        let started_at = Instant::now();
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
            cmd("SET").arg(record_name(&name)).arg(&record).arg("PX").arg(lease).arg("GET").to_owned(),
            cmd("SADD").arg(NAMES).arg(&name).to_owned(),
            cmd("SET").arg(copy_name(&name)).arg(record).arg("EX").arg(COPY_SECONDS).to_owned(),
        ];
        let before: Option<String> = answer(self.store.run(commands).await?.into_iter().nth(1))?;
        // Redis may have applied an unconfirmed announcement after the lease had expired, so the
        // elapsed time counts too.
        let may_have_ended =
            known.is_some_and(|known| announced[known].started_at.elapsed() > self.config.lease);
        if may_have_ended || before.is_none() && known.is_some() {
            // Its sessions may have been swept.
            tracing::warn!(
                server = name,
                "the lease of this comet had expired; it registers its sessions again"
            );
            self.store.record_loss();
        }
        let node = Announced { node, started_at };
        match known {
            Some(known) => announced[known] = node,
            None => announced.push(node),
        }
        drop(announced);
        self.refresh().await
    }

    async fn withdraw(&self, server: ServerId) -> Result<(), DirectoryError> {
        self.announced.lock().await.retain(|known| known.node.server != server);
        // Otherwise it would count as a comet whose records Redis lost.
        let mut without = Vec::clone(&self.snapshot.read());
        without.retain(|comet| comet.server != server);
        *self.snapshot.write() = Arc::new(without);
        let commands = vec![
            cmd("DEL").arg(record_name(server.as_str())).to_owned(),
            cmd("SREM").arg(NAMES).arg(server.as_str()).to_owned(),
            cmd("DEL").arg(copy_name(server.as_str())).to_owned(),
        ];
        self.store.run(commands).await?;
        self.refresh().await
    }
}

fn record_name(name: &str) -> String {
    ["goim:node:", name].concat()
}

/// The key of the copy of the record that outlives the lease.
fn copy_name(name: &str) -> String {
    ["goim:comet:", name].concat()
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
        let state = Arc::clone(&self.state);
        Call::pending(async move { state.announce(node).await.map_err(unavailable) })
    }

    fn withdraw(&self, server: ServerId) -> Call<Result<(), NodeError>> {
        let state = Arc::clone(&self.state);
        Call::pending(async move { state.withdraw(server).await.map_err(unavailable) })
    }

    fn comets(&self) -> Arc<Vec<CometNode>> {
        Arc::clone(&self.state.snapshot.read())
    }
}
