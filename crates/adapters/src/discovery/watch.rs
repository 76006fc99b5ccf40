//! The one long poll of a process: what it knows of others, kept up to date.
//!
//! Whatever goes wrong, the last list stays: an app that is answered without instances keeps them,
//! since a registry that has lost everything must not take a cluster down.

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

/// The least time between two polls: a server that answers "nothing new" at once is not asked a
/// thousand times a second.
const POLL_PAUSE: Duration = Duration::from_millis(20);

/// A process's place on discovery. Dropping it ends what it does there, without a word to the
/// server; [`Discovery::leave`] says farewell.
pub struct Discovery {
    pub(super) client: Arc<Client>,
    pub(super) registrations: Registrations,
    pub(super) instances: watch::Receiver<Arc<Vec<Instance>>>,
    /// What [`Discovery::logics`] gave last, and what it was made of.
    logics: Mutex<(Arc<Vec<Instance>>, Arc<Vec<String>>)>,
    _poll_task: AbortOnDropHandle<()>,
}

impl Discovery {
    /// Asks for the servers, and begins to watch one app: [`COMET`] or [`LOGIC`]. Must be called
    /// inside a tokio runtime.
    ///
    /// # Errors
    /// [`DiscoveryError`] when no server has answered within the start's deadline.
    pub async fn start(config: DiscoveryConfig, app: &'static str) -> Result<Self, DiscoveryError> {
        debug_assert!([COMET, LOGIC].contains(&app), "{app}");
        let client = Arc::new(Client::new(config)?);
        let (known, instances) = watch::channel(Arc::default());
        let mut poll = Poll { client: Arc::clone(&client), apps: BTreeMap::new(), app, known };
        poll.first().await?;
        // What is known at the first look is known when this returns; a server that has no such app
        // hangs, or says so.
        let _ = tokio::time::timeout(client.config().pause, poll.once()).await;
        let registrations = Registrations::new(Arc::clone(&client));
        let poll_task = AbortOnDropHandle::new(tokio::spawn(poll.run()));
        Ok(Self { client, registrations, instances, logics: Mutex::default(), _poll_task: poll_task })
    }

    /// Registers this process as a logic that is reached at `addr` (`grpc://host:port`), and renews
    /// that.
    ///
    /// # Errors
    /// [`DiscoveryError`]; then nothing is registered.
    pub async fn register_logic(&self, addr: String, weight: i32) -> Result<(), DiscoveryError> {
        let metadata = BTreeMap::from([("weight", weight.to_string())]);
        self.registrations.register(LOGIC, addr, metadata).await
    }

    /// Addresses of the logics, as `grpc://host:port`: those of this process's own zone, if there
    /// are any, else all. As goim's comets choose. The same `Arc` while nothing has changed.
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

    /// Cancels what is registered.
    ///
    /// # Cancel safety
    /// Dropping the future may leave some of it registered; it ends by itself when it is not
    /// renewed.
    pub async fn leave(&self) {
        self.registrations.cancel_all().await;
    }
}

/// The address that goim dials: the last of its kind.
pub(super) fn grpc_addr(instance: &Instance) -> Option<String> {
    instance.addrs.iter().rfind(|addr| addr.starts_with("grpc://")).cloned()
}

impl std::fmt::Debug for Discovery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Discovery").field("servers", &self.client.servers()).finish_non_exhaustive()
    }
}

/// The loop.
struct Poll {
    client: Arc<Client>,
    /// What is known, with the timestamps that are asked from.
    apps: BTreeMap<&'static str, App>,
    app: &'static str,
    known: watch::Sender<Arc<Vec<Instance>>>,
}

impl Poll {
    /// The servers, before anything else.
    async fn first(&mut self) -> Result<(), DiscoveryError> {
        let deadline = Instant::now() + self.client.config().start_deadline;
        let mut last = None;
        loop {
            match timeout_at(deadline, self.client.poll(&[(SERVERS, 0)])).await {
                Ok(Ok(Polled::News(news))) => {
                    self.learn(news);
                    return Ok(());
                }
                // An answer all the same: it is there, and will be asked again.
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
            match (self.once().await, failing) {
                (Ok(()), false) => {}
                (Ok(()), true) => {
                    tracing::info!("discovery can be asked again");
                    failing = false;
                }
                (Err(error), was_failing) => {
                    if !was_failing {
                        tracing::warn!(%error, app = self.app, "the list of nodes stays as it was");
                    }
                    failing = true;
                    sleep(self.client.config().pause).await;
                }
            }
            tokio::time::sleep_until(asked + POLL_PAUSE).await;
        }
    }

    /// One poll. An error means a pause.
    async fn once(&mut self) -> Result<(), DiscoveryError> {
        let since = |app| self.apps.get(app).map_or(0, |app| app.latest_timestamp);
        let asked = [(SERVERS, since(SERVERS)), (self.app, since(self.app))];
        let polled = self.client.poll(&asked).await.inspect_err(|error| {
            // The next server may have other timestamps.
            if matches!(error, DiscoveryError::Unavailable { .. }) {
                self.apps.values_mut().for_each(|app| app.latest_timestamp = 0);
            }
        })?;
        match polled {
            Polled::NothingNew => Ok(()),
            Polled::Refused(code) => Err(DiscoveryError::Refused(code)),
            Polled::News(news) => {
                let is_too_early =
                    |app: &&'static str| news.get(*app).is_some_and(|app| app.latest_timestamp == 0);
                if [SERVERS, self.app].iter().any(is_too_early) {
                    return Err(DiscoveryError::Unreadable("an app without a timestamp".to_owned()));
                }
                self.learn(news);
                Ok(())
            }
        }
    }

    /// Takes in what was asked for; answers for others come to whoever has the same name.
    fn learn(&mut self, mut news: BTreeMap<String, App>) {
        for app in [SERVERS, self.app] {
            let Some(new) = news.remove(app).filter(|new| !new.instances.is_empty()) else { continue };
            if app == SERVERS {
                self.client.learn_servers(servers_of(&new, &self.client.config().zone));
            } else {
                self.known.send_if_modified(|known| {
                    let is_new = **known != new.instances;
                    if is_new {
                        *known = Arc::new(new.instances.clone());
                    }
                    is_new
                });
            }
            self.apps.insert(app, new);
        }
    }
}

/// Of the own zone; none when it has none, and then those that are known stay in use.
fn servers_of(app: &App, zone: &str) -> Vec<String> {
    let own = app.instances.iter().filter(|instance| instance.zone == zone);
    own.flat_map(|instance| &instance.addrs)
        .filter_map(|addr| addr.strip_prefix("http://"))
        .map(|addr| addr.trim_end_matches('/').to_owned())
        .collect()
}
