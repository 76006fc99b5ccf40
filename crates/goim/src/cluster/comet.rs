//! `goim comet`: clients' connections, over logics elsewhere.

use std::net::SocketAddr;
use std::sync::{Arc, Weak};

use goim_adapters::grpc::{ClientConfig, GrpcLogics, comet_service};
use goim_adapters::redis::RedisStore;
use goim_comet::Comet;
use goim_ports::{CometNode, LogicPort, NodeDirectory, NodeError};
use prometheus_client::registry::Registry;
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::directory::{self, Directory, Role};
use super::{Running, StartError, metrics, pages};
use crate::memory::{self, Activity};
use crate::operate::Operation;
use crate::serve::{self, Bound, told};
use crate::wait::until_there;
use crate::{Config, process_metrics};

/// Starts a comet. Must be called inside a tokio runtime with more than one thread.
///
/// # Errors
/// [`StartError`]; nothing is left running.
pub async fn start(mut config: Config) -> Result<Running, StartError> {
    config.check()?;
    config.complete();
    directory::check_settings(&config, Role::Comet)?;
    let rpc = config.rpc.comet.ok_or(StartError::NoRpcAddress("none"))?;
    let rpc = serve::Reserved::new("rpc.comet", rpc)?;
    if config.comet.node.rpc_addr.is_none() {
        if rpc.addr.ip().is_unspecified() {
            return Err(StartError::NoRpcAddress("every address of this machine"));
        }
        config.comet.node.rpc_addr = Some(rpc.addr);
    }
    let shown = serve::listen("cluster.comet_admin_listen", config.cluster.comet_admin_listen).await?;
    serve::probe_clients(&config)?;
    let (pages_addr, operation) = (shown.addr, Arc::new(Operation::default()));
    let (stop_serving, stopping) = watch::channel(false);
    let pages = super::Endless::spawn(pages::serve(shown, Arc::clone(&operation), stopping.clone()));
    let directory =
        until_there(&operation, "the list of comets", || directory::open(&config, Role::Comet, None)).await?;
    if let Some(store) = &directory.store {
        super::depends_on_redis(&operation, store);
    }
    let addresses = directory.logics(&config).await?;
    let logics = GrpcLogics::new(Arc::clone(&addresses), ClientConfig::default());
    let Directory { nodes, losses, store, .. } = directory;
    let listed = || async { Ok(be_listed(&config, &*nodes).await?) };
    until_there::<_, StartError, _>(&operation, "the list of comets", listed).await?;
    let rpc = rpc.listen()?;
    let asked = logics.clone();
    operation.depends_on(move || {
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
    let pages = Pages { addr: pages_addr, task: pages, operation, stop: stop_serving, stopping };
    Ok(run(Arc::new(comet), config, Parts { rpc, pages, logic, losses, store }))
}

/// Is on the list before the first client is let in: what is pushed to that client goes by the jobs' lists, and they must have read it.
async fn be_listed(config: &Config, nodes: &dyn NodeDirectory) -> Result<(), NodeError> {
    // Clients need not be sent here yet.
    let listed = CometNode { offline: true, ..config.comet.node.described() };
    for _ in 0..2 {
        // Again each time: a lease that ended meanwhile would take it off the list just when its clients come.
        nodes.announce(listed.clone()).await?;
        tokio::time::sleep(config.cluster.refresh).await;
    }
    Ok(())
}

/// Tells logic of all sessions again whenever Redis has lost them.
async fn confirm_after_losses(comet: Weak<Comet>, mut losses: watch::Receiver<u64>) {
    while losses.changed().await.is_ok() {
        let Some(comet) = comet.upgrade() else { return };
        comet.confirm_sessions();
    }
}

/// What was bound and found.
struct Parts {
    rpc: Bound,
    pages: Pages,
    logic: String,
    losses: Option<watch::Receiver<u64>>,
    store: Option<RedisStore>,
}

/// The operator's pages, which are served since before anything was waited for.
struct Pages {
    addr: SocketAddr,
    task: super::Endless,
    operation: Arc<Operation>,
    stop: watch::Sender<bool>,
    stopping: watch::Receiver<bool>,
}

fn run(comet: Arc<Comet>, config: Config, Parts { rpc, pages, logic, losses, store }: Parts) -> Running {
    let confirming =
        losses.map(|losses| super::Endless::spawn(confirm_after_losses(Arc::downgrade(&comet), losses)));
    let mut registry = Registry::default();
    comet.register_metrics(&mut registry);
    if let Some(store) = store {
        metrics::register_redis(&mut registry, store);
    }
    process_metrics::register(&mut registry);
    let Pages { addr: pages_addr, task: pages, operation, stop: stop_serving, stopping } = pages;
    let pages = pages.into_task();
    let addrs = comet.addrs().clone();
    let all = |addrs: &[SocketAddr]| addrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let lines = vec![
        ("server", config.comet.node.server.to_string()),
        ("tcp", all(&addrs.tcp)),
        ("tcp_tls", all(&addrs.tcp_tls)),
        ("websocket", all(&addrs.websocket)),
        ("websocket_tls", all(&addrs.websocket_tls)),
        ("danmaku_tcp", all(&addrs.danmaku_tcp)),
        ("danmaku_tcp_tls", all(&addrs.danmaku_tcp_tls)),
        ("danmaku_websocket", all(&addrs.danmaku_websocket)),
        ("danmaku_websocket_tls", all(&addrs.danmaku_websocket_tls)),
        ("rpc", rpc.addr.to_string()),
        ("pages", pages_addr.to_string()),
        ("logic", logic),
    ];
    let services = comet_service(comet.port());
    let server = config.rpc.server.clone();
    let serving = tokio::spawn(serve::rpc("comet", rpc, server, services, told(stopping)));
    let activity = {
        let comet = Arc::clone(&comet);
        move || Activity { connections: comet.connections(), pushes: 0 }
    };
    let memory = super::Endless::spawn(memory::keep_small(activity));
    operation.is_up(registry);
    let reload = {
        let comet = Arc::clone(&comet);
        move || serve::reload(&comet)
    };
    let stop = move || -> super::Stop {
        Box::pin(async move {
            operation.is_draining();
            comet.drain().await;
            // A closed channel would tell them too.
            let _ = stop_serving.send(true);
            for task in pages.into_iter().chain([serving]) {
                serve::report("a server", task.await);
            }
            drop((memory, confirming));
        })
    };
    Running { role: "comet", lines, reload: Box::new(reload), stop: Box::new(stop), failed: super::never() }
}
