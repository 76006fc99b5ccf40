//! The gateway: sockets, sessions, rooms, fan-out. No application logic, no storage.
//!
//! A comet has a number of shards, one thread each ([`Config::shards`]). A connection stays on the
//! shard that accepted it. Shards share little: the key index, the room registry, the counts of
//! addresses, the certificate. All else reaches a shard through its inbox.
//!
//! ```text
//! job --CometPort--> port --commands--> shard (poll, listeners, rooms, timers) --> sockets
//!                                        |  ^
//!                                        v  | answers
//!                                     LogicPort
//! ```
//!
//! Bytes become packets in `goim-session`. This crate does not read bodies, except that a batch
//! (operation 9) counts as the operation of its first packet.

mod address_book;
mod config;
mod connection;
mod connections;
mod danmaku;
mod events;
#[cfg(feature = "harness")]
pub mod harness;
mod inbox;
mod key_index;
mod listen;
mod listener;
mod message;
mod metrics;
mod port;
mod prefetch;
mod report;
mod room_registry;
mod rooms;
mod shard;
mod shared;
mod stats;
mod timers;
mod tls;
mod token_bucket;
mod transport;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use goim_ports::{CometPort, LogicPort, NodeDirectory, ServerId};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

pub use config::{
    CompressionConfig, Config, DrainConfig, EventsConfig, LevelsConfig, LimitsConfig, ListenConfig,
    NodeConfig, RecoveryConfig, SendConfig, SyncConfig, TlsConfig,
};
pub use goim_session::SlowConsumerPolicy;

pub use listen::StartError;
pub use listener::{ListenAddrs, ListenerKind, Listeners, PerListener};

use inbox::{Notice, ShardHandle};
use shard::Shard;
use shared::Shared;
use stats::ShardStats;

/// How long a drain waits for logic's answers to the last disconnects.
const DISCONNECTS_TIMEOUT: Duration = Duration::from_secs(5);

/// What a comet needs from others.
pub struct Dependencies {
    /// Accepts or refuses tokens, and takes the packets for the backend.
    pub logic: Arc<dyn LogicPort>,
    /// The directory in which the comet announces itself.
    pub nodes: Arc<dyn NodeDirectory>,
    /// Runs pending calls and periodic work.
    pub runtime: tokio::runtime::Handle,
}

/// Why a certificate was not loaded. The one before stays in use.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ReloadError(String);

/// A running comet. When it is dropped without [`Comet::drain`], its shards close all connections
/// immediately and end.
pub struct Comet {
    addrs: ListenAddrs,
    shared: Arc<Shared>,
    shards: Arc<[ShardHandle]>,
    stats: Vec<Arc<ShardStats>>,
    threads: Mutex<Vec<std::thread::JoinHandle<()>>>,
    nodes: Arc<dyn NodeDirectory>,
    port: Arc<port::Port>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    draining: AtomicBool,
}

impl Comet {
    /// Opens the listeners and starts the shards.
    ///
    /// # Errors
    /// [`StartError`]; then nothing is left running.
    pub fn start(config: Config, needs: Dependencies) -> Result<Self, StartError> {
        let count = config.shards.map_or_else(cores, std::num::NonZeroUsize::get);
        let load = |(cert_file, key_file)| tls::CertificateStore::load(cert_file, key_file).map(Arc::new);
        let certificates = config.tls.files().map(load).transpose();
        let certificates = certificates.map_err(|error| StartError::Tls(error.to_string()))?;
        let listening = listen::open(&config, count, certificates.is_some())?;
        let shared = Arc::new(Shared::new(config, needs.logic, needs.runtime.clone(), certificates));
        let (shards, stats, threads) = start_shards(&shared, listening.shards)?;
        let port = Arc::new(port::Port {
            shared: shared.clone(),
            shards: shards.clone(),
            pacing: Arc::new(Semaphore::new(shared.config.send.paced_broadcasts_max)),
        });
        let mut tasks = vec![
            needs.runtime.spawn(report::announce(shared.clone(), needs.nodes.clone())),
            needs.runtime.spawn(report::run(shared.clone(), shards.clone())),
        ];
        if shared.events.are_enabled() {
            tasks.push(needs.runtime.spawn(shared.events.clone().run(shared.logic.clone())));
        }
        if shared.certificates.is_some() {
            tasks.push(needs.runtime.spawn(watch_certificate(shared.clone())));
        }
        Ok(Self {
            addrs: listening.addrs,
            shared,
            shards,
            stats,
            threads: Mutex::new(threads),
            nodes: needs.nodes,
            port,
            tasks,
            draining: AtomicBool::new(false),
        })
    }

    /// Returns the addresses that it listens on.
    #[must_use]
    pub fn addrs(&self) -> &ListenAddrs {
        &self.addrs
    }

    /// Returns the name of the comet.
    #[must_use]
    pub fn server(&self) -> &ServerId {
        &self.shared.server
    }

    /// Returns the port that job calls.
    #[must_use]
    pub fn port(&self) -> Arc<dyn CometPort> {
        self.port.clone()
    }

    /// Adds the metrics of this comet to `registry`. They are read on each scrape.
    pub fn register_metrics(&self, registry: &mut prometheus_client::registry::Registry) {
        registry.register_collector(Box::new(metrics::CometCollector {
            shared: self.shared.clone(),
            shards: self.stats.clone(),
            handles: self.shards.clone(),
        }));
    }

    /// Reloads the certificate immediately, not at the next interval. True when a new pair is in
    /// use.
    ///
    /// # Errors
    /// [`ReloadError`] when the new pair cannot be used.
    pub fn reload_certificate(&self) -> Result<bool, ReloadError> {
        let Some(store) = &self.shared.certificates else { return Ok(false) };
        store.reload_if_changed().map_err(|error| ReloadError(error.to_string()))
    }

    /// Registers all sessions with logic again, some thousands per second, for when it may have
    /// lost their records.
    pub fn register_sessions(&self) {
        report::register_again(&self.shards);
    }

    /// Returns how many connections are open, authenticated or not.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.addresses.connections()
    }

    /// Leaves the node directory, stops accepting, closes sessions at the configured pace, and
    /// returns when no connection is left or the deadline has passed. The sessions' records are
    /// removed then. Later calls return immediately.
    ///
    /// # Cancel safety
    /// When dropped while waiting, the drain continues; its end is not reported.
    pub async fn drain(&self) {
        if self.draining.swap(true, Ordering::SeqCst) {
            return;
        }
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
        if let Err(error) = self.nodes.withdraw(self.shared.server.clone()).await {
            tracing::warn!(%error, "could not leave the node list; clients may still be sent here");
        }
        let drain = &self.shared.config.drain;
        self.end_shards(drain.sessions_per_second, drain.timeout, drain.reconnect_delay_max);
        let threads = std::mem::take(&mut *self.threads.lock());
        let joined = tokio::task::spawn_blocking(move || {
            threads.into_iter().for_each(|thread| drop(thread.join()));
        });
        // The threads log their own panics.
        let _ = joined.await;
        let until = Instant::now() + DISCONNECTS_TIMEOUT;
        while self.shared.pending_disconnects.load(Ordering::SeqCst) > 0 && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        if self.shared.events.are_enabled() {
            self.shared.events.flush(&*self.shared.logic).await;
        }
    }

    fn end_shards(&self, pace: std::num::NonZeroU32, deadline: Duration, delay_max: Duration) {
        for shard in &*self.shards {
            shard.notice(Notice::Drain { sessions_per_second: pace, deadline, delay_max });
        }
    }
}

impl Drop for Comet {
    fn drop(&mut self) {
        if !self.draining.load(Ordering::SeqCst) {
            self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
            self.end_shards(std::num::NonZeroU32::MAX, Duration::ZERO, Duration::ZERO);
        }
    }
}

type Started = (Arc<[ShardHandle]>, Vec<Arc<ShardStats>>, Vec<std::thread::JoinHandle<()>>);

/// Creates all inboxes first: every shard has the handles of all.
fn start_shards(
    shared: &Arc<Shared>,
    listeners: Vec<Vec<(mio::net::TcpListener, listener::ListenerKind)>>,
) -> Result<Started, StartError> {
    let (mut handles, mut all_stats, mut parts) = (Vec::new(), Vec::new(), Vec::new());
    for listeners in listeners {
        let poll = mio::Poll::new().map_err(StartError::Shard)?;
        let waker = mio::Waker::new(poll.registry(), shard::WAKE).map_err(StartError::Shard)?;
        let stats = Arc::new(ShardStats::default());
        let bounds = inbox::InboxBounds::of(&shared.config.send);
        let (handle, inbox) = inbox::inbox(waker, bounds, stats.inbox_depth.clone());
        handles.push(handle);
        all_stats.push(stats.clone());
        let rules = shared::session_rules(&shared.config);
        parts.push(shard::Parts { stats, poll, inbox, listeners, rules });
    }
    let handles: Arc<[ShardHandle]> = handles.into();
    let mut shards = Vec::new();
    for (index, parts) in parts.into_iter().enumerate() {
        let shard = Shard::new(index, handles.clone(), shared.clone(), parts);
        shards.push(shard.map_err(StartError::Shard)?);
    }
    let mut threads = Vec::new();
    // When a thread cannot be created, those that were end again.
    let undo = |error| {
        let (sessions_per_second, deadline) = (std::num::NonZeroU32::MAX, Duration::ZERO);
        for handle in &*handles {
            handle.notice(Notice::Drain { sessions_per_second, deadline, delay_max: Duration::ZERO });
        }
        StartError::Shard(error)
    };
    for (index, shard) in shards.into_iter().enumerate() {
        let builder = std::thread::Builder::new().name(format!("comet-{index}-keeper"));
        let thread = builder.spawn(move || keep_running(index, shard));
        threads.push(thread.map_err(undo)?);
    }
    Ok((handles, all_stats, threads))
}

/// Runs a shard to its end, on one thread after another.
fn keep_running(index: usize, shard: Shard) {
    let mut next = Some(shard);
    while let Some(shard) = next.take() {
        let builder = std::thread::Builder::new().name(format!("comet-{index}"));
        let ended = builder.spawn(move || shard.run()).map(std::thread::JoinHandle::join);
        // A server without this shard would look alive and not answer its clients. It is better to
        // abort and be restarted.
        let Ok(Ok(given_back)) = ended else {
            tracing::error!(shard = index, "a shard has failed; aborting the process");
            std::process::abort();
        };
        next = given_back;
    }
}

async fn watch_certificate(shared: Arc<Shared>) {
    let Some(store) = &shared.certificates else { return };
    loop {
        tokio::time::sleep(shared.config.tls.reload_interval).await;
        match store.reload_if_changed() {
            Ok(true) => tracing::info!("the certificate has changed; new connections use the new one"),
            Ok(false) => {}
            Err(error) => {
                tracing::error!(%error, "the new certificate cannot be used; the old one stays in use")
            }
        }
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get)
}
