//! The store of timelines as the settings describe it, for every composition that has a logic.

use std::sync::Arc;

use goim_adapters::embedded::{EmbeddedConfig, EmbeddedError, EmbeddedTimelines};
#[cfg(feature = "cluster")]
use goim_adapters::postgres::{PostgresConfig, PostgresError, PostgresTimelines};
use goim_ports::{Retention, RetentionRules, TimelineStore};

use crate::config::{Config, KindRule, TimelinesConfig};
use crate::wait::Passing;

/// Why there is no store.
#[derive(Debug, thiserror::Error)]
pub enum TimelinesError {
    /// The folder cannot be used.
    #[error("timelines.folder: {0}")]
    Folder(#[from] EmbeddedError),
    /// PostgreSQL cannot.
    #[cfg(feature = "cluster")]
    #[error("timelines.postgres: {0}")]
    Postgres(#[from] PostgresError),
    /// This binary knows no PostgreSQL.
    #[cfg(not(feature = "cluster"))]
    #[error("timelines.postgres: this binary was built without the feature `cluster`")]
    NotBuilt,
}

impl Passing for TimelinesError {
    fn waits_for(&self) -> Option<String> {
        match self {
            #[cfg(feature = "cluster")]
            Self::Postgres(PostgresError::Unavailable { reason, .. }) => Some(format!("postgres: {reason}")),
            _ => None,
        }
    }
}

/// Opens the store; `None` when none is configured. A folder blocks while what a killed process has left is read.
pub(crate) async fn open(config: &Config) -> Result<Option<Arc<dyn TimelineStore>>, TimelinesError> {
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
async fn postgres(settings: &TimelinesConfig, url: &str) -> Result<Arc<dyn TimelineStore>, TimelinesError> {
    let config = PostgresConfig {
        pending_messages_max: settings.pending_messages_max,
        pending_bytes_max: settings.pending_bytes_max,
        retention_interval: settings.retention_interval,
        ..PostgresConfig::new(url.to_owned(), rules(settings), settings.duplicate_window)
    };
    Ok(Arc::new(PostgresTimelines::connect(config).await?))
}

#[cfg(not(feature = "cluster"))]
async fn postgres(_: &TimelinesConfig, _: &str) -> Result<Arc<dyn TimelineStore>, TimelinesError> {
    Err(TimelinesError::NotBuilt)
}

/// Where they are, for the start-up message; `None` when nothing is kept.
pub(crate) fn place(config: &Config) -> Option<String> {
    match (&config.timelines.postgres, &config.timelines.folder) {
        (Some(_), _) => Some("on PostgreSQL".to_owned()),
        (None, Some(folder)) => Some(folder.display().to_string()),
        (None, None) => None,
    }
}

fn rules(settings: &TimelinesConfig) -> RetentionRules {
    let TimelinesConfig { messages_max, age_max, bytes_max, .. } = *settings;
    let otherwise = Retention { messages_max, age_max, bytes_max };
    let rule = |rule: &KindRule| {
        let retention = Retention {
            messages_max: rule.messages_max.unwrap_or(otherwise.messages_max),
            age_max: rule.age_max.unwrap_or(otherwise.age_max),
            bytes_max: rule.bytes_max.unwrap_or(otherwise.bytes_max),
        };
        (rule.kind.clone(), retention)
    };
    RetentionRules { retention_overrides: settings.retention_overrides.iter().map(rule).collect(), otherwise }
}
