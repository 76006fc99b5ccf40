//! `goim job`: from Kafka to the comets.

use std::sync::Arc;

use goim_adapters::grpc::{ClientConfig, GrpcComets};
use goim_adapters::kafka::KafkaPushLogReader;
use goim_job::Job;
use goim_ports::ReadError;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::directory::{self, Role};
use super::{RoleError, Running, StartError, admin, engines, metrics, spawn_scoped};
use crate::admin::ServerState;
use crate::check::Purpose;
use crate::serve;
use crate::wait::until_available;
use crate::{Config, process_metrics};

/// Starts a job. It must be called inside a tokio runtime.
///
/// # Errors
/// [`StartError`], for example that goim's own jobs are in the group. Nothing is left running.
pub async fn start(mut config: Config) -> Result<Running, StartError> {
    config.check(Purpose::Job)?;
    config.complete();
    let endpoints = serve::listen("cluster.job_admin_listen", config.cluster.job_admin_listen).await?;
    let admin_addr = endpoints.addr;
    let state = Arc::new(ServerState::default());
    let stop = CancellationToken::new();
    let stop_guard = stop.clone().drop_guard();
    let endpoints = spawn_scoped(admin::serve(endpoints, Arc::clone(&state), stop.clone()));
    let directory =
        until_available(&state, "the list of comets", || directory::open(&config, Role::Job, None)).await?;
    if let Some(store) = &directory.store {
        super::add_redis_condition(&state, store);
    }
    state.set_waiting(Some("the comets, which add themselves to the list".to_owned()));
    directory.comets_have_announced_themselves(&config).await;
    let zone = config.comet.node.zone.clone();
    let comets = Arc::new(GrpcComets::new(directory.nodes, zone, ClientConfig::default()));
    let kafka = engines::kafka(&config);
    let instance = kafka.instance_id.clone();
    let join = || async { Ok(KafkaPushLogReader::join(kafka.clone()).await?) };
    let reader = until_available::<_, StartError, _>(&state, "kafka", join).await?;

    let stats = reader.stats();
    let job = Job::new(config.job.clone(), Box::new(reader), comets);
    let mut registry = Registry::default();
    job.register_metrics(registry.sub_registry_with_prefix("goim"));
    metrics::register_reader(&mut registry, stats);
    if let Some(store) = directory.store {
        metrics::register_redis(&mut registry, store);
    }
    process_metrics::register(&mut registry);
    let lines = vec![("admin", admin_addr.to_string()), ("kafka", kafka_line(&config, instance))];
    let endpoints = endpoints.detach();
    let (running, failed) = run(job, stop);
    state.set_ready(registry);
    let drain = move || -> super::Stop {
        Box::pin(async move {
            state.begin_drain();
            drop(stop_guard);
            serve::log_panic("job", running.await);
            serve::log_panic("the admin endpoints", endpoints.await);
        })
    };
    Ok(Running { role: "job", lines, reload: Box::new(|| ()), stop: Box::new(drain), failed })
}

fn kafka_line(config: &Config, instance: Option<String>) -> String {
    let kafka = &config.kafka;
    let instance = instance.map_or(String::new(), |name| format!(" as {name}"));
    format!("{} on {}, group {}{instance}", kafka.topic, kafka.brokers.join(","), kafka.group)
}

/// Runs the job until `stop` is cancelled or it fails, and reports the failure.
fn run(job: Job, stop: CancellationToken) -> (JoinHandle<()>, watch::Receiver<Option<RoleError>>) {
    let (fail, failed) = watch::channel(None);
    let running = tokio::spawn(async move {
        if let Err(error) = job.run(stop.cancelled_owned()).await {
            let text = error.to_string();
            let failure = match error {
                ReadError::Fenced(_) => RoleError::Misconfigured(text),
                _ => RoleError::Ended(text),
            };
            let _ = fail.send(Some(failure));
        }
    });
    (running, failed)
}
