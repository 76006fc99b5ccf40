//! Putting the routes of the configuration in: which transport each destination means.

use std::sync::Arc;

use goim_adapters::grpc::{ClientConfig, GrpcBusiness};
use goim_logic::Logic;
use goim_ports::UpstreamPort;

use crate::Config;

/// A route that cannot be.
#[derive(Debug, thiserror::Error)]
#[error("logic.upstream.routes: {to}: {reason}")]
pub struct RouteError {
    to: String,
    reason: String,
}

/// Puts all routes in.
pub(crate) fn install(logic: &Arc<Logic>, config: &Config) -> Result<(), RouteError> {
    for route in &config.logic.upstream.routes {
        let error = |reason: String| RouteError { to: route.to.clone(), reason };
        let to = destination(logic, config, &route.to, route.secret.clone()).map_err(error)?;
        logic.route(route.clone(), to).map_err(|overlap| error(overlap.to_string()))?;
        tracing::info!(operations = ?route.operations, to = route.to, "packets of these operations go to the business");
    }
    Ok(())
}

fn destination(
    logic: &Arc<Logic>,
    config: &Config,
    to: &str,
    secret: Option<goim_logic::Secret>,
) -> Result<Arc<dyn UpstreamPort>, String> {
    if to.starts_with("http://") || to.starts_with("https://") {
        return Ok(logic.business_at(to, secret));
    }
    if to.starts_with("grpc://") {
        let business = GrpcBusiness::new(to, ClientConfig::default()).map_err(|error| error.to_string())?;
        return Ok(Arc::new(business));
    }
    match to.strip_prefix("kafka://") {
        Some(topic) if !topic.is_empty() => on_kafka(config, topic),
        _ => Err("wants http://, https://, grpc://host:port or kafka://topic".to_owned()),
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
