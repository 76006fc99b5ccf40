//! The store of timelines as the settings describe it, for every composition that has a logic.

use std::sync::Arc;

use goim_adapters::embedded::{EmbeddedConfig, EmbeddedError, EmbeddedTimelines};
use goim_ports::{Retention, RetentionRules, TimelineStore};

use crate::config::{Config, KindRule, TimelinesConfig};

/// Opens the store; `None` when none is configured. Blocks while what a killed process has left is read.
pub(crate) fn open(config: &Config) -> Result<Option<Arc<dyn TimelineStore>>, EmbeddedError> {
    let settings = &config.timelines;
    let Some(folder) = settings.folder.clone() else { return Ok(None) };
    let embedded = EmbeddedConfig {
        waiting_messages_max: settings.waiting_messages_max,
        waiting_bytes_max: settings.waiting_bytes_max,
        cache_bytes: settings.cache_bytes,
        retain_interval: settings.retain_interval,
        ..EmbeddedConfig::new(folder, rules(settings), settings.duplicate_window)
    };
    Ok(Some(Arc::new(EmbeddedTimelines::open(embedded)?)))
}

/// Where they are, for the start-up message.
pub(crate) fn place(config: &Config) -> String {
    match &config.timelines.folder {
        Some(folder) => folder.display().to_string(),
        None => "none: messages are pushed and not kept (timelines.folder is not set)".to_owned(),
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
    RetentionRules { by_kind: settings.by_kind.iter().map(rule).collect(), otherwise }
}
