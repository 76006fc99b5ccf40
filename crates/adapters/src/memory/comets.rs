//! The comets that a job reaches, as a list that somebody else keeps up to date.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use goim_ports::{CometPool, CometPort, ServerId};
use parking_lot::RwLock;

/// A pool that holds what was put into it. In one process that is the one comet.
#[derive(Default)]
pub struct SharedComets(RwLock<HashMap<ServerId, Arc<dyn CometPort>>>);

impl SharedComets {
    /// A pool without comets.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a comet into the pool, in place of one with the same name. A call that is under way
    /// goes on with the old one, the next goes to the new one.
    pub fn insert(&self, server: ServerId, comet: Arc<dyn CometPort>) {
        let replaced = self.0.write().insert(server, comet);
        drop(replaced);
    }

    /// Takes a comet out; the answer says whether it was there.
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
