//! The store of timelines, as the settings describe it, for every composition with a logic.

use std::sync::Arc;

use goim_adapters::embedded::{EmbeddedConfig, EmbeddedError, EmbeddedTimelines};
#[cfg(feature = "cluster")]
use goim_adapters::postgres::{PostgresConfig, PostgresError, PostgresTimelines};
use goim_ports::{Retention, RetentionRules, TimelineStore};

use crate::config::{Config, RetentionOverride, TimelinesConfig};
use crate::wait::Transient;

/// Why the store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum TimelineStoreError {
    /// The directory cannot be used.
    #[error("timelines.folder: {0}")]
    Folder(#[from] EmbeddedError),
    /// PostgreSQL cannot be used.
    #[cfg(feature = "cluster")]
    #[error("timelines.postgres: {0}")]
    Postgres(#[from] PostgresError),
    /// This binary has no support for PostgreSQL.
    #[cfg(not(feature = "cluster"))]
    #[error("timelines.postgres: this binary was built without the feature `cluster`")]
    NotBuilt,
}

impl Transient for TimelineStoreError {
    fn waiting_for(&self) -> Option<String> {
        match self {
            #[cfg(feature = "cluster")]
            Self::Postgres(PostgresError::Unavailable { reason, .. }) => Some(format!("postgres: {reason}")),
            _ => None,
        }
    }
}

/// Opens the store; `None` if none is configured. A directory blocks while it recovers after a
/// crash.
pub(crate) async fn open(config: &Config) -> Result<Option<Arc<dyn TimelineStore>>, TimelineStoreError> {
    let settings = &config.timelines;
    if let Some(url) = &settings.postgres {
        return postgres(settings, url.reveal()).await.map(Some);
    }
    let Some(folder) = settings.folder.clone() else { return Ok(None) };
    let embedded = EmbeddedConfig {
        pending_messages_max: settings.pending_messages_max,
        pending_bytes_max: settings.pending_bytes_max,
        cache_bytes: settings.cache_bytes,
        head_cache_entries: settings.head_cache_entries,
        retention_interval: settings.retention_interval,
        ..EmbeddedConfig::new(folder, rules(settings), settings.duplicate_window)
    };
    Ok(Some(Arc::new(EmbeddedTimelines::open(embedded)?)))
}

#[cfg(feature = "cluster")]
async fn postgres(
    settings: &TimelinesConfig,
    url: &str,
) -> Result<Arc<dyn TimelineStore>, TimelineStoreError> {
    let config = PostgresConfig {
        pending_messages_max: settings.pending_messages_max,
        pending_bytes_max: settings.pending_bytes_max,
        retention_interval: settings.retention_interval,
        ..PostgresConfig::new(url.to_owned(), rules(settings), settings.duplicate_window)
    };
    Ok(Arc::new(PostgresTimelines::connect(config).await?))
}

#[cfg(not(feature = "cluster"))]
async fn postgres(_: &TimelinesConfig, _: &str) -> Result<Arc<dyn TimelineStore>, TimelineStoreError> {
    Err(TimelineStoreError::NotBuilt)
}

/// Where timelines are stored, for the startup message; `None` if nowhere.
pub(crate) fn location(config: &Config) -> Option<String> {
    match (&config.timelines.postgres, &config.timelines.folder) {
        (Some(_), _) => Some("on PostgreSQL".to_owned()),
        (None, Some(folder)) => Some(folder.display().to_string()),
        (None, None) => None,
    }
}

fn rules(settings: &TimelinesConfig) -> RetentionRules {
    let TimelinesConfig { messages_max, age_max, bytes_max, .. } = *settings;
    let default = Retention { messages_max, age_max, bytes_max };
    let rule = |rule: &RetentionOverride| {
        let retention = Retention {
            messages_max: rule.messages_max.unwrap_or(default.messages_max),
            age_max: rule.age_max.unwrap_or(default.age_max),
            bytes_max: rule.bytes_max.unwrap_or(default.bytes_max),
        };
        (rule.kind.clone(), retention)
    };
    RetentionRules {
        retention_overrides: settings.retention_overrides.iter().map(rule).collect(),
        otherwise: default,
    }
}
