//! `goim comet`: the clients' connections, over logics elsewhere.

use std::net::SocketAddr;
use std::sync::{Arc, Weak};

use goim_adapters::grpc::{ClientConfig, GrpcLogics, comet_service};
use goim_adapters::redis::RedisStore;
use goim_comet::Comet;
use goim_ports::{CometNode, LogicPort, NodeDirectory, NodeError};
use prometheus_client::registry::Registry;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::directory::{self, Directory, Role};
use super::{Running, StartError, admin, metrics, spawn_scoped};
use crate::admin::ServerState;
use crate::check::Purpose;
use crate::memory::{self, Activity};
use crate::serve::{self, Bound};
use crate::wait::until_available;
use crate::{Config, process_metrics};

/// Starts a comet. It must be called inside a tokio runtime with more than one thread.
///
/// # Errors
/// [`StartError`]; nothing is left running.
pub async fn start(mut config: Config) -> Result<Running, StartError> {
    config.check(Purpose::Comet)?;
    config.complete();
    let rpc = config.rpc.comet.map(|addr| serve::Reserved::new("rpc.comet", addr)).transpose()?;
    let rpc_addr = rpc.as_ref().map(|rpc| rpc.addr);
    config.comet.node.rpc_addr = config.comet.node.rpc_addr.or(rpc_addr);
    let endpoints = serve::listen("cluster.comet_admin_listen", config.cluster.comet_admin_listen).await?;
    serve::probe_clients(&config)?;
    let (admin_addr, state) = (endpoints.addr, Arc::new(ServerState::default()));
    let stop = CancellationToken::new();
    let endpoints = spawn_scoped(admin::serve(endpoints, Arc::clone(&state), stop.clone()));
    let directory =
        until_available(&state, "the list of comets", || directory::open(&config, Role::Comet, None)).await?;
    if let Some(store) = &directory.store {
        super::add_redis_condition(&state, store);
    }
    let addresses = directory.logics(&config).await;
    let logics = GrpcLogics::new(Arc::clone(&addresses), ClientConfig::default());
    let Directory { nodes, losses, store, .. } = directory;
    let announce = || async { Ok(announce_offline(&config, &*nodes).await?) };
    until_available::<_, StartError, _>(&state, "the list of comets", announce).await?;
    let rpc = rpc.map(serve::Reserved::listen).transpose()?;
    let asked = logics.clone();
    state.add_condition(move || {
        asked.last_error().map(|reason| format!("logic: none does what it is asked: {reason}"))
    });
    let comet = Comet::start(
        config.comet.clone(),
        goim_comet::Dependencies {
            logic: Arc::new(logics) as Arc<dyn LogicPort>,
            nodes,
            runtime: Handle::current(),
        },
    )
    .map_err(|error| serve::comet_error(error, &config))?;
    let logic = addresses().join(" ");
    let endpoints = Endpoints { addr: admin_addr, task: endpoints, state, stop };
    Ok(run(Arc::new(comet), &config, Parts { rpc, endpoints, logic, losses, store }))
}

/// Adds the comet to the list before it accepts the first client: pushes to that client follow the
/// jobs' lists, and jobs must have read it by then.
async fn announce_offline(config: &Config, nodes: &dyn NodeDirectory) -> Result<(), NodeError> {
    // Clients need not be sent here yet.
    let entry = CometNode { offline: true, ..config.comet.node.described() };
    for _ in 0..2 {
        // Twice: if the lease ended meanwhile, the comet would be off the list just when its
        // clients connect.
        nodes.announce(entry.clone()).await?;
        tokio::time::sleep(config.cluster.refresh_interval).await;
    }
    Ok(())
}

/// Registers all sessions with logic again whenever Redis has lost them.
async fn confirm_after_losses(comet: Weak<Comet>, mut losses: watch::Receiver<u64>) {
    while losses.changed().await.is_ok() {
        let Some(comet) = comet.upgrade() else { return };
        comet.register_sessions();
    }
}

/// What was bound and found.
struct Parts {
    rpc: Option<Bound>,
    endpoints: Endpoints,
    logic: String,
    losses: Option<watch::Receiver<u64>>,
    store: Option<RedisStore>,
}

/// The admin endpoints, which are served from the beginning of the startup.
struct Endpoints {
    addr: SocketAddr,
    task: AbortOnDropHandle<()>,
    state: Arc<ServerState>,
    stop: CancellationToken,
}

fn run(comet: Arc<Comet>, config: &Config, Parts { rpc, endpoints, logic, losses, store }: Parts) -> Running {
    let confirming = losses.map(|losses| spawn_scoped(confirm_after_losses(Arc::downgrade(&comet), losses)));
    let mut registry = Registry::default();
    comet.register_metrics(&mut registry);
    if let Some(store) = store {
        metrics::register_redis(&mut registry, store);
    }
    process_metrics::register(&mut registry);
    let Endpoints { addr: admin_addr, task, state, stop } = endpoints;
    let mut lines = vec![("server", config.comet.node.server.to_string())];
    lines.extend(comet.addrs().iter().map(|(kind, addrs)| (kind.name(), joined(addrs))));
    lines.push(("rpc", rpc.as_ref().map_or(String::new(), |rpc| rpc.addr.to_string())));
    lines.push(("admin", admin_addr.to_string()));
    lines.push(("logic", logic));
    let mut servers = vec![task.detach()];
    servers.extend(rpc.map(|bound| {
        let services = comet_service(comet.port());
        tokio::spawn(serve::rpc("comet", bound, config.rpc.server.clone(), services, stop.clone()))
    }));
    let stop_guard = stop.drop_guard();
    let activity = {
        let comet = Arc::clone(&comet);
        move || Activity { connections: comet.connections(), pushes: 0 }
    };
    let memory = spawn_scoped(memory::trim_when_idle(activity));
    state.set_ready(registry);
    let reload = {
        let comet = Arc::clone(&comet);
        move || serve::reload(&comet)
    };
    let drain = move || -> super::Stop {
        Box::pin(async move {
            state.begin_drain();
            comet.drain().await;
            drop(stop_guard);
            for task in servers {
                serve::log_panic("a server", task.await);
            }
            drop((memory, confirming));
        })
    };
    Running { role: "comet", lines, reload: Box::new(reload), stop: Box::new(drain), failed: super::never() }
}

fn joined(addrs: &[SocketAddr]) -> String {
    addrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}
