//! The engines, as the settings describe them.

use std::time::Duration;

use goim_adapters::kafka::{DeadLetter, KafkaConfig, OffsetReset};
use goim_adapters::redis::{RedisConfig, RedisPlace, RedisStore, RedisTls};
use goim_ports::ServiceUrl;

use super::StartError;
use crate::{AutoOffsetReset, Config};

pub(crate) fn kafka(config: &Config) -> KafkaConfig {
    let settings = config.kafka.clone();
    let log = &config.push_log;
    KafkaConfig {
        brokers: settings.brokers,
        topic: settings.topic,
        group: settings.group,
        instance_id: match settings.instance_id.as_str() {
            "" => Some(config.comet.node.server.as_str().to_owned()),
            "none" => None,
            name => Some(name.to_owned()),
        },
        auto_offset_reset: match settings.auto_offset_reset {
            AutoOffsetReset::Latest => OffsetReset::Latest,
            AutoOffsetReset::Earliest => OffsetReset::Earliest,
        },
        dead_letter: settings.dead_letter_topic.map_or(DeadLetter::Drop, DeadLetter::Topic),
        records_max: log.records_max,
        bytes_max: log.bytes_max,
        waiting_max: log.pending_appends_max,
        append_timeout: log.append_timeout,
        delivery_timeout: settings.delivery_timeout,
        record_bytes_max: config.logic.push.record_bytes_max,
        read_records_max: log.read_records_max,
        session_timeout: settings.session_timeout,
        commit_interval: settings.commit_interval,
        properties: settings.properties,
    }
}

/// How late librdkafka may report an expired record: it checks once per second.
const LATE: Duration = Duration::from_secs(2);

/// The maximum time that the push log on Kafka takes for one append.
pub(super) fn append_timeout(config: &Config) -> Duration {
    config.push_log.append_timeout + config.kafka.delivery_timeout + LATE
}

fn revealed(urls: &[ServiceUrl]) -> Vec<String> {
    urls.iter().map(|url| url.reveal().to_owned()).collect()
}

/// Connects to Redis.
pub(super) async fn redis(config: &Config) -> Result<RedisStore, StartError> {
    let settings = &config.redis;
    let place = if !settings.sentinels.is_empty() {
        RedisPlace::Sentinel {
            sentinels: revealed(&settings.sentinels),
            master: settings.master.clone(),
            sign_in: settings.url.reveal().to_owned(),
        }
    } else if !settings.cluster.is_empty() {
        RedisPlace::Cluster(revealed(&settings.cluster))
    } else {
        RedisPlace::Single(settings.url.reveal().to_owned())
    };
    let identity = settings.cert_file.clone().zip(settings.key_file.clone());
    let tls = RedisTls { ca_file: settings.ca_file.clone(), identity };
    let config = RedisConfig {
        place,
        session_ttl: settings.session_ttl,
        deadline: settings.command_timeout,
        recovery_grace: settings.recovery_grace,
        // At least a lease, so that comets have had the time to renew theirs.
        settling: settings.recovery_grace.max(config.cluster.lease),
        check_interval: config.cluster.refresh_interval,
        tls,
        ..RedisConfig::default()
    };
    Ok(RedisStore::connect(config).await?)
}
