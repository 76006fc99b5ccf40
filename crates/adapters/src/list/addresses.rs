//! Addresses from the settings, with names resolved by DNS.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

/// The prefix of a name that is resolved to all its addresses.
const DNS: &str = "dns://";
/// The timeout of a lookup; the last result stays in use meanwhile.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// A list of addresses: `grpc://host:port` is used as it is, `dns://name:port` is resolved to all
/// addresses of the name, periodically.
#[derive(Debug, Clone)]
pub struct Addresses {
    now: watch::Receiver<Arc<Vec<String>>>,
    /// `None` when there are no names to resolve.
    _lookup_task: Option<Arc<AbortOnDropHandle<()>>>,
}

impl Addresses {
    /// Resolves the names now and every `refresh`. Must be called inside a tokio runtime.
    ///
    /// A name without an address is logged and is no error: it may get one later.
    pub async fn start(list: Vec<String>, refresh: Duration) -> Self {
        let has_names = list.iter().any(|address| address.starts_with(DNS));
        let (published, now) = watch::channel(Arc::new(Vec::new()));
        let mut lookups = Lookups { list, published, resolved: Vec::new(), failing: BTreeSet::new() };
        lookups.run_once().await;
        let task = has_names.then(|| {
            Arc::new(AbortOnDropHandle::new(tokio::spawn(async move {
                loop {
                    tokio::time::sleep(refresh).await;
                    lookups.run_once().await;
                }
            })))
        });
        Self { now, _lookup_task: task }
    }

    /// Returns the current addresses; the same `Arc` until something changes.
    #[must_use]
    pub fn now(&self) -> Arc<Vec<String>> {
        self.now.borrow().clone()
    }
}

struct Lookups {
    list: Vec<String>,
    published: watch::Sender<Arc<Vec<String>>>,
    /// The last result for each entry of the list.
    resolved: Vec<Vec<String>>,
    failing: BTreeSet<usize>,
}

impl Lookups {
    async fn run_once(&mut self) {
        self.resolved.resize(self.list.len(), Vec::new());
        for at in 0..self.list.len() {
            match self.list[at].strip_prefix(DNS).map(str::to_owned) {
                None => self.resolved[at] = vec![self.list[at].clone()],
                Some(name) => self.look_up(at, &name).await,
            }
        }
        let mut all = self.resolved.concat();
        let mut seen = BTreeSet::new();
        all.retain(|address| seen.insert(address.clone()));
        self.published.send_if_modified(|published| {
            let is_new = **published != all;
            if is_new {
                *published = Arc::new(all);
            }
            is_new
        });
    }

    async fn look_up(&mut self, at: usize, name: &str) {
        let found = match timeout(LOOKUP_TIMEOUT, lookup_host(name)).await {
            Ok(found) => found.map_err(|error| error.to_string()),
            Err(_) => Err("the name server does not answer".to_owned()),
        };
        match found {
            Ok(found) => {
                let mut found: Vec<String> = found.map(|address| format!("grpc://{address}")).collect();
                found.sort();
                self.resolved[at] = found;
                if self.failing.remove(&at) {
                    tracing::info!(name, "the name has addresses again");
                }
            }
            Err(error) => {
                if self.failing.insert(at) {
                    tracing::warn!(name, error, "no address for this name; its last ones stay in use");
                }
            }
        }
    }
}
