//! `goim logic`: identity, sessions and the push API, over Redis and Kafka.

use std::sync::Arc;

use goim_adapters::grpc::{ClientConfig, GrpcComets, logic_service};
use goim_adapters::http::HyperClient;
use goim_adapters::kafka::KafkaPushLog;
use goim_adapters::redis::{RedisDevices, RedisRooms, RedisSessions, RedisStore, Servers};
use goim_logic::Logic;
use goim_ports::{NodeDirectory, ServerId, TimelineStore};
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::directory::{self, Directory, Role};
use super::probe::answers;
use super::{Running, StartError, engines, metrics, spawn_scoped, sweep};
use crate::admin::ServerState;
use crate::check::Purpose;
use crate::serve::{self, Bound};
use crate::wait::{StartupEndpoints, until_available};
use crate::{Config, process_metrics};

const STORES_NOTHING: &str =
    "none: messages are pushed and not stored (neither timelines.folder nor timelines.postgres is set)";

/// Starts a logic. It must be called inside a tokio runtime.
///
/// # Errors
/// [`StartError`]; nothing is left running.
pub async fn start(mut config: Config) -> Result<Running, StartError> {
    config.check(Purpose::Logic)?;
    config.complete();
    // The log reports by itself that it has given up; logic must not do so earlier.
    config.logic.push.append_timeout = config.logic.push.append_timeout.max(engines::append_timeout(&config));
    let http = serve::listen("http.listen", config.http.listen).await?;
    let rpc = config.rpc.logic.map(|addr| serve::Reserved::new("rpc.logic", addr)).transpose()?;
    let state = Arc::new(ServerState::default());
    let (startup, http) = StartupEndpoints::beside(http, &state)?;
    let Reached { store, directory, log, timelines } = reach(&config, &state).await?;
    let rpc = rpc.map(serve::Reserved::listen).transpose()?;
    let nodes = Arc::clone(&directory.nodes);
    let sessions = RedisSessions::new(store.clone());
    let logic = logic(&config, &store, &sessions, &nodes, &log, timelines)?;
    let mut registry = Registry::default();
    logic.register_metrics(&mut registry);
    metrics::register_log(&mut registry, log);
    metrics::register_redis(&mut registry, store);
    process_metrics::register(&mut registry);
    let rpc_addr = rpc.as_ref().map(|bound| bound.addr);
    let lines = lines(&config, &logic, &http, rpc_addr);
    drop(startup);
    let keys = AbortOnDropHandle::new(serve::prepare_identity(&logic, &state));
    let stop = CancellationToken::new();
    let mut servers = vec![serve::serve_api(http, logic.clone(), &state, &stop)];
    servers.extend(rpc.map(|bound| {
        let services = logic_service(logic.clone(), serve::nodes_of(logic));
        tokio::spawn(serve::rpc("logic", bound, config.rpc.server.clone(), services, stop.clone()))
    }));
    let stop_guard = stop.drop_guard();
    let sweeping = spawn_scoped(sweep::run(sessions, nodes, answers(), config.cluster.refresh_interval));
    until_available(&state, "discovery", || directory.announce_logic(&config, rpc_addr)).await?;
    state.set_ready(registry);
    let drain = move || -> super::Stop {
        Box::pin(async move {
            state.begin_drain();
            directory.leave().await;
            drop(stop_guard);
            for task in servers {
                serve::log_panic("a server", task.await);
            }
            drop((sweeping, keys));
        })
    };
    Ok(Running {
        role: "logic",
        lines,
        reload: Box::new(|| ()),
        stop: Box::new(drain),
        failed: super::never(),
    })
}

/// Logic over the engines, with its routes.
fn logic(
    config: &Config,
    store: &RedisStore,
    sessions: &RedisSessions,
    nodes: &Arc<dyn NodeDirectory>,
    log: &Arc<KafkaPushLog>,
    timelines: Option<Arc<dyn TimelineStore>>,
) -> Result<Arc<Logic>, StartError> {
    let rooms = RedisRooms::new(store.clone(), servers(Arc::clone(nodes)), config.cluster.room_counts_ttl);
    let logic = Logic::new(
        config.logic.clone(),
        goim_logic::Dependencies {
            sessions: Arc::new(sessions.clone()),
            rooms: Arc::new(rooms),
            devices: Arc::new(RedisDevices::new(store.clone())),
            nodes: Arc::clone(nodes),
            push_log: log.clone(),
            comets: Arc::new(GrpcComets::new(Arc::clone(nodes), String::new(), ClientConfig::default())),
            http: Arc::new(HyperClient::new()),
            timelines,
        },
    )
    .map_err(serve::StartError::Key)?;
    crate::routes::install(&logic, config).map_err(serve::StartError::Route)?;
    Ok(logic)
}

fn lines(
    config: &Config,
    logic: &Logic,
    http: &Bound,
    rpc: Option<std::net::SocketAddr>,
) -> Vec<(&'static str, String)> {
    vec![
        ("http", http.addr.to_string()),
        ("rpc", rpc.map_or("closed".to_owned(), |addr| addr.to_string())),
        ("push", logic.push_protection().to_string()),
        ("identity", logic.identity().to_owned()),
        ("timelines", crate::timelines::location(config).unwrap_or_else(|| STORES_NOTHING.to_owned())),
        ("kafka", format!("{} on {}", config.kafka.topic, config.kafka.brokers.join(","))),
    ]
}

/// The engines of a logic.
struct Reached {
    store: RedisStore,
    directory: Directory,
    log: Arc<KafkaPushLog>,
    timelines: Option<Arc<dyn TimelineStore>>,
}

/// Waits for all of them, one after another.
async fn reach(config: &Config, state: &ServerState) -> Result<Reached, StartError> {
    let store = until_available(state, "redis", || engines::redis(config)).await?;
    super::add_redis_condition(state, &store);
    let open = || directory::open(config, Role::Logic, Some(store.clone()));
    let directory = until_available(state, "the list of comets", open).await?;
    let start = || async { Ok(KafkaPushLog::start(engines::kafka(config)).await?) };
    let log = until_available::<_, StartError, _>(state, "kafka", start).await?;
    let open = || async { crate::timelines::open(config).await.map_err(serve::StartError::TimelineStore) };
    let timelines = until_available(state, "the store of timelines", open).await?;
    Ok(Reached { store, directory, log, timelines })
}

/// The comets whose rooms are counted.
fn servers(nodes: Arc<dyn NodeDirectory>) -> Servers {
    Arc::new(move || -> Vec<ServerId> { nodes.comets().iter().map(|comet| comet.server.clone()).collect() })
}
