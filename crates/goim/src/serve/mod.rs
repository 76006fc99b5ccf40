//! The whole system in one process: comet, logic and job over adapters in memory.
//!
//! This is composition and nothing else. The roles are the same as in a cluster; here the ports lead to each other
//! inside the process.
//!
//! Everything is checked and bound before anything runs: a start either leads to a complete system or to an error and
//! nothing left behind.

mod bind;
mod rpc;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use goim_adapters::http::HyperClient;
use goim_adapters::memory::{
    MemoryDevices, MemoryNodes, MemoryPushLog, MemoryRooms, MemorySessions, SharedComets, push_log,
};
use goim_comet::Comet;
use goim_job::Job;
use goim_logic::Logic;
use goim_ports::{LogicPort, ServerId};
use prometheus_client::registry::Registry;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub(crate) use bind::Bound;
pub use bind::StartError;
#[cfg(feature = "cluster")]
pub(crate) use bind::{Reserved, comet_error, listen, probe_clients};
#[cfg(feature = "cluster")]
pub(crate) use rpc::{nodes as nodes_of, serve as rpc};

use crate::memory::{self, Activity};
use crate::operate::{self, Operation};
use crate::wait::{StartPages, until_there};
use crate::{Config, process_metrics, push_log_metrics};

/// Where a running system listens, with the ports that port 0 became.
#[derive(Debug, Clone)]
pub struct Addrs {
    /// Clients over TCP.
    pub tcp: Vec<SocketAddr>,
    /// Clients over TCP inside TLS.
    pub tcp_tls: Vec<SocketAddr>,
    /// Clients over WebSocket.
    pub websocket: Vec<SocketAddr>,
    /// Clients over WebSocket inside TLS.
    pub websocket_tls: Vec<SocketAddr>,
    /// Clients of the dialect of live danmaku, over TCP.
    pub danmaku_tcp: Vec<SocketAddr>,
    /// The same inside TLS.
    pub danmaku_tcp_tls: Vec<SocketAddr>,
    /// The same over WebSocket.
    pub danmaku_websocket: Vec<SocketAddr>,
    /// The same over WebSocket inside TLS.
    pub danmaku_websocket_tls: Vec<SocketAddr>,
    /// The HTTP API and the operator's pages.
    pub http: SocketAddr,
    /// gRPC of comet.
    pub comet_rpc: Option<SocketAddr>,
    /// gRPC of logic.
    pub logic_rpc: Option<SocketAddr>,
}

/// How long a drain waits at most for the push log to be empty before the first session is told to go.
const HANDOVER_WAIT: Duration = Duration::from_secs(1);

/// A running system. Dropping it stops it at once; [`Running::drain`] stops it gently.
pub struct Running {
    addrs: Addrs,
    server: ServerId,
    comet: Arc<Comet>,
    logic: Arc<Logic>,
    log: Arc<MemoryPushLog>,
    comets: Arc<SharedComets>,
    operation: Arc<Operation>,
    stop_serving: watch::Sender<bool>,
    serving: Vec<JoinHandle<()>>,
    job: JoinHandle<()>,
    memory: JoinHandle<()>,
    keys: JoinHandle<()>,
}

/// Starts the whole system. Must be called inside a tokio runtime with more than one thread.
///
/// An empty `comet.node.server` becomes the machine's host name.
///
/// # Errors
/// [`StartError`]: the configuration is impossible, or an address cannot be listened on. Nothing is left running.
///
/// # Cancel safety
/// Dropping the future before it is done stops what was started.
pub async fn start(mut config: Config) -> Result<Running, StartError> {
    config.check_serve()?;
    config.complete();
    let http = bind::listen("http.listen", config.http.listen).await?;
    let comet_rpc = bind::listen_if("rpc.comet", config.rpc.comet).await?;
    let logic_rpc = bind::listen_if("rpc.logic", config.rpc.logic).await?;
    bind::probe_clients(&config)?;
    let listening = comet_rpc.as_ref().map(|bound| bound.addr);
    config.comet.node.rpc_addr = config.comet.node.rpc_addr.or(listening);

    let (log, reader) = push_log(config.push_log.clone());
    let nodes = Arc::new(MemoryNodes::new());
    let sessions = Arc::new(MemorySessions::new());
    let rooms = Arc::new(MemoryRooms::new());
    let comets = Arc::new(SharedComets::new());
    let operation = Arc::new(Operation::default());
    let (start_pages, http) = StartPages::beside(http, &operation)?;
    let timelines =
        until_there(&operation, "the store of timelines", || crate::timelines::open(&config)).await?;
    let logic = Logic::new(
        config.logic.clone(),
        goim_logic::Dependencies {
            sessions,
            rooms,
            devices: Arc::new(MemoryDevices::default()),
            nodes: nodes.clone(),
            push_log: log.clone(),
            comets: comets.clone(),
            http: Arc::new(HyperClient::new()),
            timelines,
        },
    )?;
    crate::routes::install(&logic, &config)?;
    let comet = Comet::start(
        config.comet.clone(),
        goim_comet::Dependencies {
            logic: logic.clone() as Arc<dyn LogicPort>,
            nodes,
            runtime: Handle::current(),
        },
    )
    .map_err(|error| bind::comet_error(error, &config))?;
    let comet = Arc::new(comet);
    let server = config.comet.node.server.clone();
    comets.insert(server.clone(), comet.port());
    let job = Job::new(config.job.clone(), Box::new(reader), comets.clone());

    let mut registry = Registry::default();
    comet.register_metrics(&mut registry);
    logic.register_metrics(&mut registry);
    job.register_metrics(registry.sub_registry_with_prefix("goim"));
    push_log_metrics::register(&mut registry, log.clone());
    process_metrics::register(&mut registry);

    let (stop_serving, stopping) = watch::channel(false);
    let clients = comet.addrs().clone();
    let addrs = Addrs {
        tcp: clients.tcp,
        tcp_tls: clients.tcp_tls,
        websocket: clients.websocket,
        websocket_tls: clients.websocket_tls,
        danmaku_tcp: clients.danmaku_tcp,
        danmaku_tcp_tls: clients.danmaku_tcp_tls,
        danmaku_websocket: clients.danmaku_websocket,
        danmaku_websocket_tls: clients.danmaku_websocket_tls,
        http: http.addr,
        comet_rpc: comet_rpc.as_ref().map(|bound| bound.addr),
        logic_rpc: logic_rpc.as_ref().map(|bound| bound.addr),
    };
    let pages = operate::router(operation.clone());
    drop(start_pages);
    let keys = prepare_identity(&logic, &operation);
    let api = goim_logic::http::serve(logic.clone(), http.listener, pages, told(stopping.clone()));
    let mut serving = vec![tokio::spawn(async move {
        if let Err(error) = api.await {
            tracing::error!(%error, "the HTTP API has ended");
        }
    })];
    let grpc = &config.rpc.server;
    if let Some(bound) = comet_rpc {
        let services = goim_adapters::grpc::comet_service(comet.port());
        serving.push(tokio::spawn(rpc::serve(
            "comet",
            bound,
            grpc.clone(),
            services,
            told(stopping.clone()),
        )));
    }
    if let Some(bound) = logic_rpc {
        let services = goim_adapters::grpc::logic_service(logic.clone(), rpc::nodes(logic.clone()));
        serving.push(tokio::spawn(rpc::serve("logic", bound, grpc.clone(), services, told(stopping))));
    }
    // Ends when the log does: what was accepted is handed over first.
    // Nobody else reads a log in memory.
    let job = tokio::spawn(async move { drop(job.run(std::future::pending()).await) });
    let memory = tokio::spawn(memory::keep_small(activity(&comet, &log)));
    operation.is_up(registry);
    Ok(Running {
        addrs,
        server,
        comet,
        logic,
        log,
        comets,
        operation,
        stop_serving,
        serving,
        job,
        memory,
        keys,
    })
}

impl Running {
    /// Where it listens.
    #[must_use]
    pub fn addrs(&self) -> &Addrs {
        &self.addrs
    }

    /// The name of its comet.
    #[must_use]
    pub fn server(&self) -> &ServerId {
        &self.server
    }

    /// Its comet.
    #[must_use]
    pub fn comet(&self) -> &Arc<Comet> {
        &self.comet
    }

    /// Its logic, for example to add handlers of backend packets.
    #[must_use]
    pub fn logic(&self) -> &Arc<Logic> {
        &self.logic
    }

    /// The push log between logic and job, for its figures.
    #[must_use]
    pub fn push_log(&self) -> &Arc<MemoryPushLog> {
        &self.log
    }

    /// Looks at the certificate's files now, rather than at the next interval; answers whether a new pair is in use.
    ///
    /// # Errors
    /// What is wrong with the new pair. The one before stays in use.
    pub fn reload_certificate(&self) -> Result<bool, goim_comet::ReloadError> {
        self.comet.reload_certificate()
    }

    /// Stops gently: `/readyz` says no, sessions are told to go at the configured pace, pushes are taken until the last has
    /// gone, and what was accepted is handed over. Takes at most the sum of `comet.drain.deadline`,
    /// `logic.http.shutdown_timeout` and `job.drain_timeout`.
    ///
    /// # Cancel safety
    /// Dropping the future stops at once.
    pub async fn drain(mut self) {
        self.operation.is_draining();
        self.hand_over_accepted().await;
        self.comet.drain().await;
        // A closed channel would tell them too.
        let _ = self.stop_serving.send(true);
        for task in &mut self.serving {
            report("a server", task.await);
        }
        self.log.close();
        report("job", (&mut self.job).await);
    }
}

impl Running {
    /// Waits until the push log is empty, so that nobody is told to go while something that was accepted is on its way
    /// to him. Under a stream of pushes it never is; then the wait ends after [`HANDOVER_WAIT`].
    async fn hand_over_accepted(&self) {
        let until = Instant::now() + HANDOVER_WAIT;
        while self.log.stats().records > 0 && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.serving.iter().for_each(JoinHandle::abort);
        self.job.abort();
        self.memory.abort();
        self.keys.abort();
        // comet knows logic, and logic comet by way of this: else neither would ever go.
        self.comets.remove(&self.server);
    }
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running")
            .field("addrs", &self.addrs)
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

/// How often is looked whether the keys for tokens can be fetched that never were.
const KEYS_INTERVAL: Duration = Duration::from_secs(1);

/// Fetches what identity needs before it can judge any token; nobody could come before that, so it
/// is not ready.
pub(crate) fn prepare_identity(logic: &Arc<Logic>, operation: &Operation) -> JoinHandle<()> {
    let asked = Arc::downgrade(logic);
    operation.depends_on(move || asked.upgrade()?.identity_not_ready());
    let logic = Arc::downgrade(logic);
    tokio::spawn(async move {
        while let Some(logic) = logic.upgrade() {
            if logic.prepare_identity().await {
                return;
            }
            drop(logic);
            tokio::time::sleep(KEYS_INTERVAL).await;
        }
    })
}

/// Looks at the certificate's files now, for somebody who has said that they have changed.
pub(crate) fn reload(comet: &Comet) {
    match comet.reload_certificate() {
        Ok(true) => tracing::info!("SIGHUP: the new certificate is in use"),
        Ok(false) => tracing::info!("SIGHUP: no new certificate"),
        Err(error) => {
            tracing::error!(%error, "SIGHUP: the new certificate cannot be used, the one before stays")
        }
    }
}

/// What the system has done so far, for whoever gives memory back.
fn activity(comet: &Arc<Comet>, log: &Arc<MemoryPushLog>) -> impl Fn() -> Activity + use<> {
    let (comet, log) = (Arc::clone(comet), Arc::clone(log));
    move || Activity { connections: comet.connections(), pushes: log.stats().appended }
}

/// Completes when `stopping` says so or its sender has gone.
pub(crate) async fn told(mut stopping: watch::Receiver<bool>) {
    let _ = stopping.wait_for(|stop| *stop).await;
}

/// A task that panicked is a bug of ours; the others are still brought down in order.
pub(crate) fn report(name: &str, ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(task = name, %error, "did not end in order");
    }
}
