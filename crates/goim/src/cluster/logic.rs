//! `goim logic`: identity, sessions and the push API, over Redis and Kafka.

use std::sync::Arc;

use goim_adapters::grpc::{ClientConfig, GrpcComets, logic_service};
use goim_adapters::http::HyperClient;
use goim_adapters::kafka::KafkaPushLog;
use goim_adapters::redis::{RedisDevices, RedisRooms, RedisSessions, RedisStore, Servers};
use goim_logic::Logic;
use goim_ports::{NodeDirectory, ServerId, TimelineStore};
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use super::answering::answers;
use super::directory::{self, Directory, Role};
use super::{Running, StartError, engines, metrics, sweep};
use crate::operate::{self, Operation};
use crate::serve::{self, told};
use crate::wait::{StartPages, until_there};
use crate::{Config, process_metrics};

const KEEPS_NOTHING: &str =
    "none: messages are pushed and not kept (neither timelines.folder nor timelines.postgres is set)";

/// Starts a logic. Must be called inside a tokio runtime.
///
/// # Errors
/// [`StartError`]; nothing is left running.
pub async fn start(mut config: Config) -> Result<Running, StartError> {
    config.check()?;
    config.complete();
    // The log says by itself when it gives up; nobody must do so before it.
    config.logic.push.append_timeout = config.logic.push.append_timeout.max(engines::append_timeout(&config));
    directory::check_settings(&config, Role::Logic)?;
    let http = serve::listen("http.listen", config.http.listen).await?;
    let rpc = config.rpc.logic.map(|addr| serve::Reserved::new("rpc.logic", addr)).transpose()?;
    let operation = Arc::new(Operation::default());
    let (start_pages, http) = StartPages::beside(http, &operation)?;
    let Reached { store, directory, log, timelines } = reach(&config, &operation).await?;
    let rpc = rpc.map(serve::Reserved::listen).transpose()?;
    let nodes = Arc::clone(&directory.nodes);
    let sessions = RedisSessions::new(store.clone());
    let servers = servers(Arc::clone(&nodes));
    let devices = RedisDevices::new(store.clone());
    let rooms = RedisRooms::new(store.clone(), servers, config.cluster.room_counts_ttl);
    let logic = Logic::new(
        config.logic.clone(),
        goim_logic::Dependencies {
            sessions: Arc::new(sessions.clone()),
            rooms: Arc::new(rooms),
            devices: Arc::new(devices),
            nodes: Arc::clone(&nodes),
            push_log: log.clone(),
            comets: Arc::new(GrpcComets::new(Arc::clone(&nodes), String::new(), ClientConfig::default())),
            http: Arc::new(HyperClient::new()),
            timelines,
        },
    )
    .map_err(serve::StartError::Key)?;
    crate::routes::install(&logic, &config).map_err(serve::StartError::Route)?;
    let mut registry = Registry::default();
    logic.register_metrics(&mut registry);
    metrics::register_log(&mut registry, log);
    metrics::register_redis(&mut registry, store);
    process_metrics::register(&mut registry);
    let (stop_serving, stopping) = watch::channel(false);
    let rpc_addr = rpc.as_ref().map(|bound| bound.addr);
    let lines = vec![
        ("http", http.addr.to_string()),
        ("rpc", rpc.as_ref().map_or("closed".to_owned(), |bound| bound.addr.to_string())),
        ("push", logic.push_protection().to_string()),
        ("identity", logic.identity().to_owned()),
        ("timelines", crate::timelines::place(&config).unwrap_or_else(|| KEEPS_NOTHING.to_owned())),
        ("kafka", format!("{} on {}", config.kafka.topic, config.kafka.brokers.join(","))),
    ];
    let pages = operate::router(operation.clone());
    drop(start_pages);
    let keys = super::Endless(Some(serve::prepare_identity(&logic, &operation)));
    let api = goim_logic::http::serve(logic.clone(), http.listener, pages, told(stopping.clone()));
    let mut serving = vec![tokio::spawn(async move {
        if let Err(error) = api.await {
            tracing::error!(%error, "the HTTP API has ended");
        }
    })];
    if let Some(bound) = rpc {
        let services = logic_service(logic.clone(), serve::nodes_of(logic));
        let server = config.rpc.server.clone();
        serving.push(tokio::spawn(serve::rpc("logic", bound, server, services, told(stopping))));
    }
    let sweeping = super::Endless::spawn(sweep::run(sessions, nodes, answers(), config.cluster.refresh));
    until_there(&operation, "discovery", || directory.announce_logic(&config, rpc_addr)).await?;
    operation.is_up(registry);
    let stop = move || -> super::Stop {
        Box::pin(async move {
            operation.is_draining();
            directory.leave().await;
            // A closed channel would tell them too.
            let _ = stop_serving.send(true);
            for task in serving {
                serve::report("a server", task.await);
            }
            drop((sweeping, keys));
        })
    };
    Ok(Running {
        role: "logic",
        lines,
        reload: Box::new(|| ()),
        stop: Box::new(stop),
        failed: super::never(),
    })
}

/// What a logic cannot be without.
struct Reached {
    store: RedisStore,
    directory: Directory,
    log: Arc<KafkaPushLog>,
    timelines: Option<Arc<dyn TimelineStore>>,
}

/// Waits for all of it, one behind the other.
async fn reach(config: &Config, operation: &Operation) -> Result<Reached, StartError> {
    let store = until_there(operation, "redis", || engines::redis(config)).await?;
    super::depends_on_redis(operation, &store);
    let open = || directory::open(config, Role::Logic, Some(store.clone()));
    let directory = until_there(operation, "the list of comets", open).await?;
    let start = || async { Ok(KafkaPushLog::start(engines::kafka(config)).await?) };
    let log = until_there::<_, StartError, _>(operation, "kafka", start).await?;
    let open = || async { crate::timelines::open(config).await.map_err(serve::StartError::Timelines) };
    let timelines = until_there(operation, "the store of timelines", open).await?;
    Ok(Reached { store, directory, log, timelines })
}

/// The comets whose rooms count.
fn servers(nodes: Arc<dyn NodeDirectory>) -> Servers {
    Arc::new(move || -> Vec<ServerId> { nodes.comets().iter().map(|comet| comet.server.clone()).collect() })
}
