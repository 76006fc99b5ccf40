//! The long poll of a process, which keeps the instances of other processes up to date.
//!
//! After any failure the last list stays in use. An app that is returned without instances keeps
//! them: a registry that lost its data must not take a cluster down.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use super::client::Client;
use super::config::{DiscoveryConfig, DiscoveryError};
use super::instance::{App, Instance, Polled};
use super::register::Registrations;
use super::{COMET, LOGIC};

/// The app that discovery servers register as.
const SERVERS: &str = "infra.discovery";

/// The minimum time between two polls, for a server that answers "nothing new" without waiting.
const POLL_PAUSE: Duration = Duration::from_millis(20);

/// A process's client of discovery. Dropping it stops its tasks without deregistering;
/// [`Discovery::leave`] deregisters.
pub struct Discovery {
    pub(super) client: Arc<Client>,
    pub(super) registrations: Registrations,
    pub(super) instances: watch::Receiver<Arc<Vec<Instance>>>,
    /// The last result of [`Discovery::logics`], and the instances it was computed from.
    logics: Mutex<(Arc<Vec<Instance>>, Arc<Vec<String>>)>,
    _poll_task: AbortOnDropHandle<()>,
}

impl Discovery {
    /// Finds the servers, and starts to watch one app: [`COMET`] or [`LOGIC`]. Must be called
    /// inside a tokio runtime.
    ///
    /// # Errors
    /// [`DiscoveryError`] when no server answers within the start's deadline.
    pub async fn start(config: DiscoveryConfig, app: &'static str) -> Result<Self, DiscoveryError> {
        debug_assert!([COMET, LOGIC].contains(&app), "{app}");
        let client = Arc::new(Client::new(config)?);
        let (published, instances) = watch::channel(Arc::default());
        let mut poller = Poller { client: Arc::clone(&client), apps: BTreeMap::new(), app, published };
        poller.find_servers().await?;
        // Instances that exist now are known when this returns. A server that has no such app holds
        // the poll open or responds so.
        let _ = tokio::time::timeout(client.config().pause, poller.poll_once()).await;
        let registrations = Registrations::new(Arc::clone(&client));
        let poll_task = AbortOnDropHandle::new(tokio::spawn(poller.run()));
        Ok(Self { client, registrations, instances, logics: Mutex::default(), _poll_task: poll_task })
    }

    /// Registers this process as a logic at `addr` (`grpc://host:port`), and renews the
    /// registration.
    ///
    /// # Errors
    /// [`DiscoveryError`]; then nothing is registered.
    pub async fn register_logic(&self, addr: String, weight: i32) -> Result<(), DiscoveryError> {
        let metadata = BTreeMap::from([("weight", weight.to_string())]);
        self.registrations.register(LOGIC, addr, metadata).await
    }

    /// Returns the addresses of the logics, as `grpc://host:port`: those in this process's zone if
    /// there are any, otherwise all, as goim's comets choose. Returns the same `Arc` until
    /// something changes.
    #[must_use]
    pub fn logics(&self) -> Arc<Vec<String>> {
        let instances = self.instances.borrow().clone();
        let mut logics = self.logics.lock();
        if !Arc::ptr_eq(&logics.0, &instances) {
            *logics = (Arc::clone(&instances), Arc::new(self.choose(&instances)));
        }
        Arc::clone(&logics.1)
    }

    fn choose(&self, instances: &[Instance]) -> Vec<String> {
        let own = |instance: &&Instance| instance.zone == self.client.config().zone;
        let has_own = instances.iter().any(|instance| own(&instance));
        let chosen = instances.iter().filter(|instance| !has_own || own(instance));
        chosen.filter_map(grpc_addr).collect()
    }

    /// Cancels all registrations.
    ///
    /// # Cancel safety
    /// Dropping the future may leave some registrations; they expire when they are not renewed.
    pub async fn leave(&self) {
        self.registrations.cancel_all().await;
    }
}

/// Returns the address that goim dials: the last gRPC address.
pub(super) fn grpc_addr(instance: &Instance) -> Option<String> {
    instance.addrs.iter().rfind(|addr| addr.starts_with("grpc://")).cloned()
}

impl std::fmt::Debug for Discovery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Discovery").field("servers", &self.client.servers()).finish_non_exhaustive()
    }
}

/// The polling task.
struct Poller {
    client: Arc<Client>,
    /// The known apps, with the timestamps to poll from.
    apps: BTreeMap<&'static str, App>,
    app: &'static str,
    published: watch::Sender<Arc<Vec<Instance>>>,
}

impl Poller {
    /// Polls for the servers, until the start's deadline.
    async fn find_servers(&mut self) -> Result<(), DiscoveryError> {
        let deadline = Instant::now() + self.client.config().start_deadline;
        let mut last = None;
        loop {
            match timeout_at(deadline, self.client.poll(&[(SERVERS, 0)])).await {
                Ok(Ok(Polled::Updates(updates))) => {
                    self.apply(updates);
                    return Ok(());
                }
                // The server is reachable; it is polled again later.
                Ok(Ok(Polled::NothingNew | Polled::Refused(_))) => return Ok(()),
                Ok(Err(error)) => last = Some(error),
                Err(_) => {
                    let reason = format!("no answer within {:?}", self.client.config().start_deadline);
                    let servers = self.client.servers();
                    return Err(last.unwrap_or(DiscoveryError::Unavailable { servers, reason }));
                }
            }
            if Instant::now() + self.client.config().pause >= deadline {
                return Err(last.unwrap_or(DiscoveryError::NoSeeds));
            }
            sleep(self.client.config().pause).await;
        }
    }

    async fn run(mut self) {
        let mut failing = false;
        loop {
            let asked = Instant::now();
            match (self.poll_once().await, failing) {
                (Ok(()), false) => {}
                (Ok(()), true) => {
                    tracing::info!("discovery can be polled again");
                    failing = false;
                }
                (Err(error), was_failing) => {
                    if !was_failing {
                        tracing::warn!(%error, app = self.app, "discovery cannot be polled; keeping the last list of nodes");
                    }
                    failing = true;
                    sleep(self.client.config().pause).await;
                }
            }
            tokio::time::sleep_until(asked + POLL_PAUSE).await;
        }
    }

    /// Polls once. The caller pauses after an error.
    async fn poll_once(&mut self) -> Result<(), DiscoveryError> {
        let since = |app| self.apps.get(app).map_or(0, |app| app.latest_timestamp);
        let asked = [(SERVERS, since(SERVERS)), (self.app, since(self.app))];
        let polled = self.client.poll(&asked).await.inspect_err(|error| {
            // Timestamps of the next server may differ.
            if matches!(error, DiscoveryError::Unavailable { .. }) {
                self.apps.values_mut().for_each(|app| app.latest_timestamp = 0);
            }
        })?;
        match polled {
            Polled::NothingNew => Ok(()),
            Polled::Refused(code) => Err(DiscoveryError::Refused(code)),
            Polled::Updates(updates) => {
                let lacks_timestamp =
                    |app: &&'static str| updates.get(*app).is_some_and(|app| app.latest_timestamp == 0);
                if [SERVERS, self.app].iter().any(lacks_timestamp) {
                    return Err(DiscoveryError::Unreadable("an app without a timestamp".to_owned()));
                }
                self.apply(updates);
                Ok(())
            }
        }
    }

    /// Applies updates of the watched apps. A server may return others to a process with the same
    /// host name.
    fn apply(&mut self, mut updates: BTreeMap<String, App>) {
        for app in [SERVERS, self.app] {
            let Some(new) = updates.remove(app).filter(|new| !new.instances.is_empty()) else { continue };
            if app == SERVERS {
                self.client.set_servers(servers_of(&new, &self.client.config().zone));
            } else {
                self.published.send_if_modified(|published| {
                    let is_new = **published != new.instances;
                    if is_new {
                        *published = Arc::new(new.instances.clone());
                    }
                    is_new
                });
            }
            self.apps.insert(app, new);
        }
    }
}

/// Returns the servers in this process's zone. When there are none, the known ones stay in use.
fn servers_of(app: &App, zone: &str) -> Vec<String> {
    let own = app.instances.iter().filter(|instance| instance.zone == zone);
    own.flat_map(|instance| &instance.addrs)
        .filter_map(|addr| addr.strip_prefix("http://"))
        .map(|addr| addr.trim_end_matches('/').to_owned())
        .collect()
}
