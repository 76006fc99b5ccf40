//! The comets that a job can reach, as a list that the owner updates.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use goim_ports::{CometPool, CometPort, ServerId};
use parking_lot::RwLock;

/// A pool of comets. In a single process it holds one comet.
#[derive(Default)]
pub struct SharedComets(RwLock<HashMap<ServerId, Arc<dyn CometPort>>>);

impl SharedComets {
    /// Creates an empty pool.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a comet, or replaces the one with the same name. A call in progress continues with the
    /// old one.
    pub fn insert(&self, server: ServerId, comet: Arc<dyn CometPort>) {
        let replaced = self.0.write().insert(server, comet);
        drop(replaced);
    }

    /// Removes a comet, and returns whether it was in the pool.
    pub fn remove(&self, server: &ServerId) -> bool {
        let removed = self.0.write().remove(server);
        removed.is_some()
    }
}

impl FromIterator<(ServerId, Arc<dyn CometPort>)> for SharedComets {
    fn from_iter<I: IntoIterator<Item = (ServerId, Arc<dyn CometPort>)>>(comets: I) -> Self {
        Self(RwLock::new(comets.into_iter().collect()))
    }
}

impl fmt::Debug for SharedComets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let comets = self.0.read();
        f.debug_set().entries(comets.keys()).finish()
    }
}

impl CometPool for SharedComets {
    fn get(&self, server: &ServerId) -> Option<Arc<dyn CometPort>> {
        self.0.read().get(server).cloned()
    }

    fn all(&self) -> Vec<(ServerId, Arc<dyn CometPort>)> {
        let comets = self.0.read();
        comets.iter().map(|(server, comet)| (server.clone(), Arc::clone(comet))).collect()
    }
}
