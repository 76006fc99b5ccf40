//! What this process has registered: told, renewed, told again when a server has forgotten it.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};
use tokio_util::task::AbortOnDropHandle;

use super::client::Client;
use super::config::DiscoveryError;

/// The codes of a server that knows nothing of an instance.
const FORGOTTEN: [DiscoveryError; 2] = [DiscoveryError::Refused(-400), DiscoveryError::Refused(-404)];

pub(super) type Metadata = BTreeMap<&'static str, String>;

/// What is registered, by app.
pub(super) struct Registrations {
    shared: Arc<Shared>,
    _renew_task: AbortOnDropHandle<()>,
}

struct Shared {
    client: Arc<Client>,
    own: Mutex<BTreeMap<&'static str, Registration>>,
}

struct Registration {
    addr: String,
    metadata: Metadata,
    /// When the metadata were told last.
    told: Instant,
}

impl Registrations {
    pub(super) fn new(client: Arc<Client>) -> Self {
        let shared = Arc::new(Shared { client, own: Mutex::default() });
        let renew_task = AbortOnDropHandle::new(tokio::spawn(renew(Arc::clone(&shared))));
        Self { shared, _renew_task: renew_task }
    }

    pub(super) async fn register(
        &self,
        app: &'static str,
        addr: String,
        metadata: Metadata,
    ) -> Result<(), DiscoveryError> {
        let mut own = self.shared.own.lock().await;
        self.shared.register(app, &addr, &metadata).await?;
        own.insert(app, Registration { addr, metadata, told: Instant::now() });
        Ok(())
    }

    /// True when something is registered under this app.
    pub(super) async fn has(&self, app: &'static str) -> bool {
        self.shared.own.lock().await.contains_key(app)
    }

    /// Tells other metadata of what is registered: at once when one is new or one of `urgent`
    /// another, else when the last time was long enough ago.
    pub(super) async fn set(
        &self,
        app: &'static str,
        metadata: Metadata,
        urgent: &[&str],
    ) -> Result<(), DiscoveryError> {
        let mut own = self.shared.own.lock().await;
        let Some(known) = own.get_mut(app) else { return Ok(()) };
        let is_urgent = known.metadata.len() != metadata.len()
            || urgent.iter().any(|name| known.metadata.get(name) != metadata.get(name));
        if !is_urgent && known.told.elapsed() < self.shared.client.config().set {
            return Ok(());
        }
        let fields =
            [("metadata", text_of(&metadata)), ("status", "1".to_owned()), ("version", String::new())];
        match self.shared.client.post("set", app, &fields).await {
            Err(error) if FORGOTTEN.contains(&error) => {
                self.shared.register(app, &known.addr, &metadata).await?;
                tracing::info!(app, "discovery had forgotten this node; it is registered again");
            }
            answer => answer?,
        }
        (known.metadata, known.told) = (metadata, Instant::now());
        Ok(())
    }

    pub(super) async fn cancel(&self, app: &'static str) -> Result<(), DiscoveryError> {
        if self.shared.own.lock().await.remove(app).is_none() {
            return Ok(());
        }
        match self.shared.client.post("cancel", app, &[]).await {
            Err(error) if FORGOTTEN.contains(&error) => Ok(()),
            answer => answer,
        }
    }

    pub(super) async fn cancel_all(&self) {
        let apps: Vec<_> = self.shared.own.lock().await.keys().copied().collect();
        for app in apps {
            if let Err(error) = self.cancel(app).await {
                tracing::warn!(app, %error, "discovery was not told that this node goes; it will notice");
            }
        }
    }
}

impl Shared {
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
                let own = self.own.lock().await;
                let Some(known) = own.get(app) else { return Ok(()) };
                self.register(app, &known.addr, &known.metadata).await?;
                tracing::info!(app, "discovery had forgotten this node; it is registered again");
                Ok(())
            }
            answer => answer,
        }
    }
}

async fn renew(shared: Arc<Shared>) {
    let mut failing = false;
    loop {
        let config = shared.client.config();
        sleep(if failing { config.pause } else { config.renew }).await;
        let apps: Vec<_> = shared.own.lock().await.keys().copied().collect();
        let was_failing = std::mem::take(&mut failing);
        for app in apps {
            if let Err(error) = shared.renew(app).await {
                failing = true;
                if !was_failing {
                    tracing::warn!(app, %error, "this node's place on discovery is not renewed; trying again");
                }
            }
        }
        if was_failing && !failing {
            tracing::info!("this node's place on discovery is renewed again");
        }
    }
}

/// As goim writes it: sorted, without blanks.
fn text_of(metadata: &Metadata) -> String {
    serde_json::to_string(metadata).unwrap_or_default()
}
