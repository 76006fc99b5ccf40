//! The registrations of this process: registered, renewed, and registered again when a server has
//! lost them.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};
use tokio_util::task::AbortOnDropHandle;

use super::client::Client;
use super::config::DiscoveryError;

/// The codes of a server that does not know the instance.
const NOT_REGISTERED: [DiscoveryError; 2] = [DiscoveryError::Refused(-400), DiscoveryError::Refused(-404)];

pub(super) type Metadata = BTreeMap<&'static str, String>;

/// The registrations, by app.
pub(super) struct Registrations {
    state: Arc<RegistrationState>,
    _renew_task: AbortOnDropHandle<()>,
}

struct RegistrationState {
    client: Arc<Client>,
    registered: Mutex<BTreeMap<&'static str, Registration>>,
}

struct Registration {
    addr: String,
    metadata: Metadata,
    /// When the metadata was last sent.
    sent_at: Instant,
}

impl Registrations {
    pub(super) fn new(client: Arc<Client>) -> Self {
        let state = Arc::new(RegistrationState { client, registered: Mutex::default() });
        let renew_task = AbortOnDropHandle::new(tokio::spawn(renew(Arc::clone(&state))));
        Self { state, _renew_task: renew_task }
    }

    pub(super) async fn register(
        &self,
        app: &'static str,
        addr: String,
        metadata: Metadata,
    ) -> Result<(), DiscoveryError> {
        let mut registered = self.state.registered.lock().await;
        self.state.register(app, &addr, &metadata).await?;
        registered.insert(app, Registration { addr, metadata, sent_at: Instant::now() });
        Ok(())
    }

    /// Returns whether an app is registered.
    pub(super) async fn has(&self, app: &'static str) -> bool {
        self.state.registered.lock().await.contains_key(app)
    }

    /// Updates the metadata of a registration: immediately when a field is new or one of `urgent`
    /// changed, otherwise when the last update was long enough ago.
    pub(super) async fn set(
        &self,
        app: &'static str,
        metadata: Metadata,
        urgent: &[&str],
    ) -> Result<(), DiscoveryError> {
        let mut registered = self.state.registered.lock().await;
        let Some(known) = registered.get_mut(app) else { return Ok(()) };
        let is_urgent = known.metadata.len() != metadata.len()
            || urgent.iter().any(|name| known.metadata.get(name) != metadata.get(name));
        if !is_urgent && known.sent_at.elapsed() < self.state.client.config().set {
            return Ok(());
        }
        let fields =
            [("metadata", text_of(&metadata)), ("status", "1".to_owned()), ("version", String::new())];
        match self.state.client.post("set", app, &fields).await {
            Err(error) if NOT_REGISTERED.contains(&error) => {
                self.state.register(app, &known.addr, &metadata).await?;
                tracing::info!(app, "discovery had lost this node; it is registered again");
            }
            answer => answer?,
        }
        (known.metadata, known.sent_at) = (metadata, Instant::now());
        Ok(())
    }

    pub(super) async fn cancel(&self, app: &'static str) -> Result<(), DiscoveryError> {
        if self.state.registered.lock().await.remove(app).is_none() {
            return Ok(());
        }
        match self.state.client.post("cancel", app, &[]).await {
            Err(error) if NOT_REGISTERED.contains(&error) => Ok(()),
            answer => answer,
        }
    }

    pub(super) async fn cancel_all(&self) {
        let apps: Vec<_> = self.state.registered.lock().await.keys().copied().collect();
        for app in apps {
            if let Err(error) = self.cancel(app).await {
                tracing::warn!(app, %error, "this node could not be deregistered; its registration will expire");
            }
        }
    }
}

impl RegistrationState {
    async fn register(&self, app: &str, addr: &str, metadata: &Metadata) -> Result<(), DiscoveryError> {
        let fields = [
            ("addrs", addr.to_owned()),
            ("metadata", text_of(metadata)),
            ("status", "1".to_owned()),
            ("version", String::new()),
        ];
        self.client.post("register", app, &fields).await
    }

    async fn renew(&self, app: &'static str) -> Result<(), DiscoveryError> {
        match self.client.post("renew", app, &[]).await {
            Err(DiscoveryError::Refused(-404)) => {
                let registered = self.registered.lock().await;
                let Some(known) = registered.get(app) else { return Ok(()) };
                self.register(app, &known.addr, &known.metadata).await?;
                tracing::info!(app, "discovery had lost this node; it is registered again");
                Ok(())
            }
            answer => answer,
        }
    }
}

async fn renew(state: Arc<RegistrationState>) {
    let mut failing = false;
    loop {
        let config = state.client.config();
        sleep(if failing { config.pause } else { config.renew }).await;
        let apps: Vec<_> = state.registered.lock().await.keys().copied().collect();
        let was_failing = std::mem::take(&mut failing);
        for app in apps {
            if let Err(error) = state.renew(app).await {
                failing = true;
                if !was_failing {
                    tracing::warn!(app, %error, "the registration on discovery could not be renewed; retrying");
                }
            }
        }
        if was_failing && !failing {
            tracing::info!("the registration on discovery is renewed again");
        }
    }
}

/// Encodes metadata as goim does: sorted, without spaces.
fn text_of(metadata: &Metadata) -> String {
    serde_json::to_string(metadata).unwrap_or_default()
}
