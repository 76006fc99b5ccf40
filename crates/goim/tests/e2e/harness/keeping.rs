//! A system that stores messages: in a temporary folder, or for a cluster on PostgreSQL.

use std::path::PathBuf;
use std::sync::Arc;

use super::postgres::Postgres;
use super::{Server, Settings, unique};

/// Where messages are stored: a folder for one process, PostgreSQL for a cluster. Removed with the
/// test.
pub enum Place {
    Folder(PathBuf),
    Postgres(String, #[expect(dead_code, reason = "held")] Arc<Postgres>),
}

impl Place {
    /// A new one.
    pub fn new() -> Self {
        if std::env::var_os("TEST_CLUSTER").is_some() {
            let postgres = Postgres::shared();
            return Self::Postgres(postgres.database(), postgres);
        }
        Self::Folder(std::env::temp_dir().join(unique(&format!("goim-timelines-{}", std::process::id()))))
    }

    /// The settings for it.
    pub fn settings(&self) -> Settings {
        match self {
            Self::Folder(folder) => Settings::new().set("timelines.folder", folder.to_str().unwrap()),
            Self::Postgres(url, _) => Settings::new().set("timelines.postgres", url),
        }
    }

    /// Another process can have it.
    pub fn is_free(&self) -> bool {
        let Self::Folder(folder) = self else { return true };
        let rules = goim_ports::RetentionRules {
            retention_overrides: Vec::new(),
            otherwise: goim_ports::Retention::FOREVER,
        };
        let config = goim_adapters::embedded::EmbeddedConfig::new(folder.clone(), rules, super::DEADLINE);
        goim_adapters::embedded::EmbeddedTimelines::open(config).is_ok()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Self::Folder(folder) = self {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

/// A system that stores messages; it stops before its store is removed.
pub struct Keeping {
    server: Server,
    _place: Place,
}

impl Keeping {
    /// Starts one.
    pub fn start() -> Self {
        Self::start_with(|settings| settings)
    }

    /// The same with other settings.
    pub fn start_with(more: impl FnOnce(Settings) -> Settings) -> Self {
        let place = Place::new();
        Self { server: Server::start(&more(place.settings())), _place: place }
    }
}

impl std::ops::Deref for Keeping {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}
