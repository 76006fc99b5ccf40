//! Connects the destinations of the configuration to logic: routes of packets, session events, and
//! notifications for offline members. The scheme of a URL selects the transport.

use std::sync::Arc;

use goim_adapters::grpc::{ClientConfig, GrpcBackend};
use goim_logic::{Logic, WebhookConfig};
use goim_ports::{EventSink, OfflineSink, ServiceUrl, UpstreamPort};

#[cfg(feature = "cluster")]
use goim_logic::{event_json, offline_json};

use crate::Config;

/// A destination that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{setting}: {to}: {reason}")]
pub struct RouteError {
    setting: &'static str,
    to: ServiceUrl,
    reason: String,
}

/// Adds all routes and destinations.
pub(crate) fn install(logic: &Arc<Logic>, config: &Config) -> Result<(), RouteError> {
    for route in &config.logic.upstream.routes {
        let error =
            |reason: String| RouteError { setting: "logic.upstream.routes", to: route.to.clone(), reason };
        let to = destination(logic, config, route.to.reveal(), route.secret.clone()).map_err(error)?;
        logic.route(route.clone(), to).map_err(|overlap| error(overlap.to_string()))?;
        tracing::info!(operations = ?route.operations, to = %route.to, "route for packets");
    }
    offline(logic, config)?;
    let Some(to) = &config.events.url else { return Ok(()) };
    let error = |reason: String| RouteError { setting: "events.url", to: to.clone(), reason };
    match to.reveal().strip_prefix("kafka://") {
        Some(topic) => logic.set_event_sink(events_on_kafka(config, topic).map_err(error)?),
        None => {
            let hook = WebhookConfig {
                url: to.clone(),
                secret: config.events.secret.clone(),
                ..WebhookConfig::default()
            };
            logic.set_event_sink(logic.event_webhook(hook));
        }
    }
    tracing::info!(%to, "destination of session events");
    Ok(())
}

/// Adds the destination of notifications for offline members.
fn offline(logic: &Arc<Logic>, config: &Config) -> Result<(), RouteError> {
    let Some(to) = &config.timelines.offline_url else { return Ok(()) };
    let error = |reason: String| RouteError { setting: "timelines.offline_url", to: to.clone(), reason };
    match to.reveal().strip_prefix("kafka://") {
        Some(topic) => logic.set_offline_sink(offline_on_kafka(config, topic).map_err(error)?),
        None => {
            let secret = config.timelines.offline_secret.clone();
            let hook = WebhookConfig { url: to.clone(), secret, ..WebhookConfig::default() };
            logic.set_offline_sink(logic.offline_webhook(hook));
        }
    }
    tracing::info!(%to, "destination of notifications for offline members");
    Ok(())
}

#[cfg(feature = "cluster")]
fn offline_on_kafka(config: &Config, topic: &str) -> Result<Arc<dyn OfflineSink>, String> {
    let kafka = crate::cluster::kafka(config);
    let offline =
        goim_adapters::kafka::KafkaOffline::new(&kafka, topic, |member| offline_json(member).to_string());
    Ok(Arc::new(offline.map_err(|error| error.to_string())?))
}

#[cfg(not(feature = "cluster"))]
fn offline_on_kafka(_: &Config, _: &str) -> Result<Arc<dyn OfflineSink>, String> {
    Err("this binary was built without Kafka".to_owned())
}

#[cfg(feature = "cluster")]
fn events_on_kafka(config: &Config, topic: &str) -> Result<Arc<dyn EventSink>, String> {
    let kafka = crate::cluster::kafka(config);
    let events = goim_adapters::kafka::KafkaEvents::new(&kafka, topic, |event| event_json(event).to_string());
    Ok(Arc::new(events.map_err(|error| error.to_string())?))
}

#[cfg(not(feature = "cluster"))]
fn events_on_kafka(_: &Config, _: &str) -> Result<Arc<dyn EventSink>, String> {
    Err("this binary was built without Kafka".to_owned())
}

fn destination(
    logic: &Arc<Logic>,
    config: &Config,
    to: &str,
    secret: Option<goim_logic::Secret>,
) -> Result<Arc<dyn UpstreamPort>, String> {
    if to.starts_with("http://") || to.starts_with("https://") {
        return Ok(logic.webhook_backend(to, secret));
    }
    if to.starts_with("grpc://") {
        let backend = GrpcBackend::new(to, ClientConfig::default()).map_err(|error| error.to_string())?;
        return Ok(Arc::new(backend));
    }
    match to.strip_prefix("kafka://") {
        Some(topic) if !topic.is_empty() => on_kafka(config, topic),
        _ => Err("must be http://, https://, grpc://host:port or kafka://topic".to_owned()),
    }
}

#[cfg(feature = "cluster")]
fn on_kafka(config: &Config, topic: &str) -> Result<Arc<dyn UpstreamPort>, String> {
    let kafka = crate::cluster::kafka(config);
    let upstream =
        goim_adapters::kafka::KafkaUpstream::new(&kafka, topic).map_err(|error| error.to_string())?;
    Ok(Arc::new(upstream))
}

#[cfg(not(feature = "cluster"))]
fn on_kafka(_: &Config, _: &str) -> Result<Arc<dyn UpstreamPort>, String> {
    Err("this binary was built without Kafka".to_owned())
}
