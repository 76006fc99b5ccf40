//! `goim job`: from Kafka to the comets.

use std::sync::Arc;

use goim_adapters::grpc::{ClientConfig, GrpcComets};
use goim_adapters::kafka::KafkaPushLogReader;
use goim_job::Job;
use goim_ports::ReadError;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use super::directory::{self, Role};
use super::{RoleError, Running, StartError, engines, metrics, pages};
use crate::operate::Operation;
use crate::serve::{self, told};
use crate::wait::until_there;
use crate::{Config, process_metrics};

/// Starts a job. Must be called inside a tokio runtime.
///
/// # Errors
/// [`StartError`]; among them that goim's own jobs are in the group. Nothing is left running.
pub async fn start(mut config: Config) -> Result<Running, StartError> {
    config.check()?;
    config.complete();
    directory::check_settings(&config, Role::Job)?;
    let shown = serve::listen("cluster.job_admin_listen", config.cluster.job_admin_listen).await?;
    let pages_addr = shown.addr;
    let operation = Arc::new(Operation::default());
    let (stop, stopping) = watch::channel(false);
    let pages = super::Endless::spawn(pages::serve(shown, Arc::clone(&operation), stopping.clone()));
    let directory =
        until_there(&operation, "the list of comets", || directory::open(&config, Role::Job, None)).await?;
    if let Some(store) = &directory.store {
        super::depends_on_redis(&operation, store);
    }
    operation.waits_for(Some("the comets: they put themselves on the list".to_owned()));
    directory.comets_have_announced_themselves(&config).await;
    let zone = config.comet.node.zone.clone();
    let comets = Arc::new(GrpcComets::new(directory.nodes, zone, ClientConfig::default()));
    let kafka = engines::kafka(&config);
    let instance = kafka.instance_id.clone();
    let join = || async { Ok(KafkaPushLogReader::join(kafka.clone()).await?) };
    let reader = until_there::<_, StartError, _>(&operation, "kafka", join).await?;

    let stats = reader.stats();
    let job = Job::new(config.job.clone(), Box::new(reader), comets);
    let mut registry = Registry::default();
    job.register_metrics(registry.sub_registry_with_prefix("goim"));
    metrics::register_reader(&mut registry, stats);
    if let Some(store) = directory.store {
        metrics::register_redis(&mut registry, store);
    }
    process_metrics::register(&mut registry);
    let lines = vec![
        ("pages", pages_addr.to_string()),
        (
            "kafka",
            format!(
                "{} on {}, group {}{}",
                config.kafka.topic,
                config.kafka.brokers.join(","),
                config.kafka.group,
                instance.map_or(String::new(), |name| format!(" as {name}")),
            ),
        ),
    ];
    let pages = pages.into_task();
    let (fail, failed) = watch::channel(None);
    let working = tokio::spawn(async move {
        if let Err(error) = job.run(told(stopping)).await {
            let text = error.to_string();
            let failure = match error {
                ReadError::Fenced(_) => RoleError::Misconfigured(text),
                _ => RoleError::Ended(text),
            };
            let _ = fail.send(Some(failure));
        }
    });
    operation.is_up(registry);
    let stop = move || -> super::Stop {
        Box::pin(async move {
            operation.is_draining();
            // A closed channel would tell them too.
            let _ = stop.send(true);
            serve::report("job", working.await);
            if let Some(pages) = pages {
                serve::report("the operator's pages", pages.await);
            }
        })
    };
    Ok(Running { role: "job", lines, reload: Box::new(|| ()), stop: Box::new(stop), failed })
}
