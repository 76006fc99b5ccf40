//! The engines as the settings describe them.

use goim_adapters::kafka::{DeadLetter, KafkaConfig, Start};
use goim_adapters::redis::{RedisConfig, RedisPlace, RedisStore, RedisTls};
use goim_ports::ServiceUrl;

use super::StartError;
use crate::{Config, LogStart};

pub(crate) fn kafka(config: &Config) -> KafkaConfig {
    let settings = config.kafka.clone();
    let log = &config.push_log;
    KafkaConfig {
        brokers: settings.brokers,
        topic: settings.topic,
        group: settings.group,
        start: match settings.start {
            LogStart::Newest => Start::Newest,
            LogStart::Oldest => Start::Oldest,
        },
        dead_letter: settings.dead_letter_topic.map_or(DeadLetter::Drop, DeadLetter::Topic),
        records_max: log.records_max,
        bytes_max: log.bytes_max,
        waiting_max: log.waiting_max,
        append_deadline: log.append_deadline,
        acknowledge_deadline: settings.acknowledge_deadline,
        record_bytes_max: config.logic.push.record_bytes_max,
        read_records_max: log.read_records_max,
        session_timeout: settings.session_timeout,
        commit_interval: settings.commit_interval,
        properties: settings.properties,
    }
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
    let (expire, deadline, rebuilding) = (settings.expire, settings.deadline, settings.rebuilding);
    let identity = settings.cert_file.clone().zip(settings.key_file.clone());
    let tls = RedisTls { ca_file: settings.ca_file.clone(), identity };
    let config = RedisConfig { place, expire, deadline, rebuilding, tls, ..RedisConfig::default() };
    Ok(RedisStore::connect(config).await?)
}
