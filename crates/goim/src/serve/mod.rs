//! The whole system in one process: comet, logic and job over adapters in memory.
//!
//! This module only composes: the roles are the same as in a cluster, and their ports are connected
//! inside the process. Everything is checked and bound before anything runs, so that a start leads
//! either to a complete system or to an error with nothing left running.

mod bind;
mod rpc;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use goim_adapters::http::HyperClient;
use goim_adapters::memory::{
    MemoryDevices, MemoryNodes, MemoryPushLog, MemoryPushLogReader, MemoryRooms, MemorySessions,
    SharedComets, push_log,
};
use goim_comet::{Comet, ListenAddrs};
use goim_job::Job;
use goim_logic::Logic;
use goim_ports::{LogicPort, ServerId};
use prometheus_client::registry::Registry;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) use bind::Bound;
pub use bind::StartError;
#[cfg(feature = "cluster")]
pub(crate) use bind::{Reserved, comet_error, listen, probe_clients};
#[cfg(feature = "cluster")]
pub(crate) use rpc::{nodes as nodes_of, serve as rpc};

use crate::admin::{self, ServerState};
use crate::check::Purpose;
use crate::memory::{self, Activity};
use crate::wait::{StartupEndpoints, until_available};
use crate::{Config, process_metrics, push_log_metrics};

/// The addresses of a running system. Port 0 of the configuration is replaced by the port in use.
#[derive(Debug, Clone)]
pub struct Addrs {
    /// The listeners for clients.
    pub clients: ListenAddrs,
    /// The HTTP API and the admin endpoints.
    pub http: SocketAddr,
    /// gRPC of comet.
    pub comet_rpc: Option<SocketAddr>,
    /// gRPC of logic.
    pub logic_rpc: Option<SocketAddr>,
}

/// How long a drain waits at most for an empty push log before it closes the first session.
const DELIVERY_WAIT: Duration = Duration::from_secs(1);

/// A running system. Dropping it stops it immediately; [`Running::drain`] stops it gracefully.
pub struct Running {
    addrs: Addrs,
    server: ServerId,
    comet: Arc<Comet>,
    logic: Arc<Logic>,
    log: Arc<MemoryPushLog>,
    comets: Arc<SharedComets>,
    state: Arc<ServerState>,
    /// Cancelled when the servers are to stop.
    stop: CancellationToken,
    servers: Vec<JoinHandle<()>>,
    job: JoinHandle<()>,
    memory: JoinHandle<()>,
    keys: JoinHandle<()>,
}

/// Starts the whole system. It must be called inside a tokio runtime with more than one thread.
///
/// An empty `comet.node.server` becomes the host name.
///
/// # Errors
/// [`StartError`]: the configuration cannot be used, or an address cannot be listened on. Nothing
/// is left running.
///
/// # Cancel safety
/// Dropping the future before it completes stops what was started.
pub async fn start(mut config: Config) -> Result<Running, StartError> {
    config.check(Purpose::Serve)?;
    config.complete();
    let Listeners { http, comet_rpc, logic_rpc } = Listeners::open(&config).await?;
    let addr_of = |bound: &Option<Bound>| bound.as_ref().map(|bound| bound.addr);
    let (comet_addr, logic_addr) = (addr_of(&comet_rpc), addr_of(&logic_rpc));
    config.comet.node.rpc_addr = config.comet.node.rpc_addr.or(comet_addr);

    let state = Arc::new(ServerState::default());
    let (startup, http) = StartupEndpoints::beside(http, &state)?;
    let Roles { comet, logic, log, reader, comets } = Roles::start(&config, &state).await?;
    let server = config.comet.node.server.clone();
    let job = Job::new(config.job.clone(), Box::new(reader), comets.clone());
    let registry = registry(&comet, &logic, &job, &log);
    let addrs = Addrs {
        clients: comet.addrs().clone(),
        http: http.addr,
        comet_rpc: comet_addr,
        logic_rpc: logic_addr,
    };
    drop(startup);
    let keys = prepare_identity(&logic, &state);
    let stop = CancellationToken::new();
    let mut servers = vec![serve_api(http, logic.clone(), &state, &stop)];
    servers.extend(comet_rpc.map(|bound| {
        let services = goim_adapters::grpc::comet_service(comet.port());
        tokio::spawn(rpc::serve("comet", bound, config.rpc.server.clone(), services, stop.clone()))
    }));
    servers.extend(logic_rpc.map(|bound| {
        let services = goim_adapters::grpc::logic_service(logic.clone(), rpc::nodes(logic.clone()));
        tokio::spawn(rpc::serve("logic", bound, config.rpc.server.clone(), services, stop.clone()))
    }));
    // The job ends when the log closes, after it has delivered everything. A log in memory has no
    // other reader that could end it.
    let job = tokio::spawn(async move { drop(job.run(std::future::pending()).await) });
    let memory = tokio::spawn(memory::trim_when_idle(activity(&comet, &log)));
    state.set_ready(registry);
    Ok(Running { addrs, server, comet, logic, log, comets, state, stop, servers, job, memory, keys })
}

/// The listeners of the process itself; comet opens those for clients.
struct Listeners {
    http: Bound,
    comet_rpc: Option<Bound>,
    logic_rpc: Option<Bound>,
}

impl Listeners {
    async fn open(config: &Config) -> Result<Self, StartError> {
        let http = bind::listen("http.listen", config.http.listen).await?;
        let comet_rpc = bind::listen_if("rpc.comet", config.rpc.comet).await?;
        let logic_rpc = bind::listen_if("rpc.logic", config.rpc.logic).await?;
        bind::probe_clients(config)?;
        Ok(Self { http, comet_rpc, logic_rpc })
    }
}

/// The roles, connected over adapters in memory.
struct Roles {
    comet: Arc<Comet>,
    logic: Arc<Logic>,
    log: Arc<MemoryPushLog>,
    reader: MemoryPushLogReader,
    comets: Arc<SharedComets>,
}

impl Roles {
    async fn start(config: &Config, state: &ServerState) -> Result<Self, StartError> {
        let (log, reader) = push_log(config.push_log.clone());
        let nodes = Arc::new(MemoryNodes::new());
        let comets = Arc::new(SharedComets::new());
        let timelines =
            until_available(state, "the store of timelines", || crate::timelines::open(config)).await?;
        let logic = Logic::new(
            config.logic.clone(),
            goim_logic::Dependencies {
                sessions: Arc::new(MemorySessions::new()),
                rooms: Arc::new(MemoryRooms::new()),
                devices: Arc::new(MemoryDevices::default()),
                nodes: nodes.clone(),
                push_log: log.clone(),
                comets: comets.clone(),
                http: Arc::new(HyperClient::new()),
                timelines,
            },
        )?;
        crate::routes::install(&logic, config)?;
        let needs = goim_comet::Dependencies {
            logic: logic.clone() as Arc<dyn LogicPort>,
            nodes,
            runtime: Handle::current(),
        };
        let comet = Comet::start(config.comet.clone(), needs);
        let comet = Arc::new(comet.map_err(|error| bind::comet_error(error, config))?);
        comets.insert(config.comet.node.server.clone(), comet.port());
        Ok(Self { comet, logic, log, reader, comets })
    }
}

fn registry(comet: &Comet, logic: &Logic, job: &Job, log: &Arc<MemoryPushLog>) -> Registry {
    let mut registry = Registry::default();
    comet.register_metrics(&mut registry);
    logic.register_metrics(&mut registry);
    job.register_metrics(registry.sub_registry_with_prefix("goim"));
    push_log_metrics::register(&mut registry, log.clone());
    process_metrics::register(&mut registry);
    registry
}

/// Serves the HTTP API and the admin endpoints until `stop` is cancelled.
pub(crate) fn serve_api(
    http: Bound,
    logic: Arc<Logic>,
    state: &Arc<ServerState>,
    stop: &CancellationToken,
) -> JoinHandle<()> {
    let admin = admin::router(state.clone());
    let api = goim_logic::http::serve(logic, http.listener, admin, stop.clone().cancelled_owned());
    tokio::spawn(async move {
        if let Err(error) = api.await {
            tracing::error!(%error, "the HTTP API ended");
        }
    })
}

impl Running {
    /// The addresses that it listens on.
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

    /// The push log between logic and job, for its statistics.
    #[must_use]
    pub fn push_log(&self) -> &Arc<MemoryPushLog> {
        &self.log
    }

    /// Reloads the certificate immediately, rather than at the next interval. Returns true if a new
    /// pair is in use.
    ///
    /// # Errors
    /// What is wrong with the new pair. The previous one stays in use.
    pub fn reload_certificate(&self) -> Result<bool, goim_comet::ReloadError> {
        self.comet.reload_certificate()
    }

    /// Stops gracefully: `/readyz` answers no, sessions are closed at the configured rate, pushes
    /// are accepted until the last session is closed, and accepted pushes are delivered. It takes
    /// at most the sum of `comet.drain.timeout`, `logic.http.shutdown_timeout` and
    /// `job.drain_timeout`.
    ///
    /// # Cancel safety
    /// Dropping the future stops immediately.
    pub async fn drain(mut self) {
        self.state.begin_drain();
        self.deliver_accepted().await;
        self.comet.drain().await;
        self.stop.cancel();
        for task in &mut self.servers {
            log_panic("a server", task.await);
        }
        self.log.close();
        log_panic("job", (&mut self.job).await);
    }

    /// Waits until the push log is empty, so that no session is closed while a push for it is in
    /// flight. Under a constant stream of pushes the log is never empty; then the wait ends after
    /// [`DELIVERY_WAIT`].
    async fn deliver_accepted(&self) {
        let until = Instant::now() + DELIVERY_WAIT;
        while self.log.stats().records > 0 && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.servers.iter().for_each(JoinHandle::abort);
        self.job.abort();
        self.memory.abort();
        self.keys.abort();
        // Breaks the cycle of references: comet holds logic, and logic holds comet through this.
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

/// Between two attempts to fetch the keys for tokens for the first time.
const KEYS_INTERVAL: Duration = Duration::from_secs(1);

/// Fetches what identity needs before it can accept any token. The process is not ready before,
/// because no client could connect.
pub(crate) fn prepare_identity(logic: &Arc<Logic>, state: &ServerState) -> JoinHandle<()> {
    let asked = Arc::downgrade(logic);
    state.add_condition(move || asked.upgrade()?.identity_not_ready());
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

/// Reloads the certificate immediately (SIGHUP).
pub(crate) fn reload(comet: &Comet) {
    match comet.reload_certificate() {
        Ok(true) => tracing::info!("SIGHUP: the new certificate is in use"),
        Ok(false) => tracing::info!("SIGHUP: no new certificate"),
        Err(error) => {
            tracing::error!(%error, "SIGHUP: the new certificate cannot be used, the previous one stays in use")
        }
    }
}

/// What the system has done so far, for the decision to return memory.
fn activity(comet: &Arc<Comet>, log: &Arc<MemoryPushLog>) -> impl Fn() -> Activity + use<> {
    let (comet, log) = (Arc::clone(comet), Arc::clone(log));
    move || Activity { connections: comet.connections(), pushes: log.stats().appended }
}

/// Logs a panic of a task. It is a bug; the other tasks are still stopped in order.
pub(crate) fn log_panic(name: &str, ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(task = name, %error, "the task did not end normally");
    }
}
