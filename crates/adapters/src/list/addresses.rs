//! Addresses as an operator writes them, and those that DNS makes of names.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

/// What an address begins with whose name stands for every address that DNS has for it.
const DNS: &str = "dns://";
/// How long a name server may take; the last answer stays meanwhile.
const LOOKUP_DEADLINE: Duration = Duration::from_secs(5);

/// A list of addresses: `grpc://host:port` as it is, `dns://name:port` for each address that the
/// name has, looked up from time to time.
#[derive(Debug, Clone)]
pub struct Addresses {
    now: watch::Receiver<Arc<Vec<String>>>,
    /// None when there is nothing to look up.
    _lookup_task: Option<Arc<AbortOnDropHandle<()>>>,
}

impl Addresses {
    /// Looks names up, and again every `refresh`. Must be called inside a tokio runtime.
    ///
    /// A name that has no address now may have one later: it is said in the log, and is no error.
    pub async fn start(list: Vec<String>, refresh: Duration) -> Self {
        let has_names = list.iter().any(|address| address.starts_with(DNS));
        let (told, now) = watch::channel(Arc::new(Vec::new()));
        let mut lookups = Lookups { list, told, known: Vec::new(), failing: BTreeSet::new() };
        lookups.once().await;
        let task = has_names.then(|| {
            Arc::new(AbortOnDropHandle::new(tokio::spawn(async move {
                loop {
                    tokio::time::sleep(refresh).await;
                    lookups.once().await;
                }
            })))
        });
        Self { now, _lookup_task: task }
    }

    /// Those of this moment; the same `Arc` while nothing has changed.
    #[must_use]
    pub fn now(&self) -> Arc<Vec<String>> {
        self.now.borrow().clone()
    }
}

struct Lookups {
    list: Vec<String>,
    told: watch::Sender<Arc<Vec<String>>>,
    /// What each entry of the list stood for last.
    known: Vec<Vec<String>>,
    failing: BTreeSet<usize>,
}

impl Lookups {
    async fn once(&mut self) {
        self.known.resize(self.list.len(), Vec::new());
        for at in 0..self.list.len() {
            match self.list[at].strip_prefix(DNS).map(str::to_owned) {
                None => self.known[at] = vec![self.list[at].clone()],
                Some(name) => self.look_up(at, &name).await,
            }
        }
        let mut all = self.known.concat();
        let mut seen = BTreeSet::new();
        all.retain(|address| seen.insert(address.clone()));
        self.told.send_if_modified(|told| {
            let is_new = **told != all;
            if is_new {
                *told = Arc::new(all);
            }
            is_new
        });
    }

    async fn look_up(&mut self, at: usize, name: &str) {
        let found = match timeout(LOOKUP_DEADLINE, lookup_host(name)).await {
            Ok(found) => found.map_err(|error| error.to_string()),
            Err(_) => Err("the name server does not answer".to_owned()),
        };
        match found {
            Ok(found) => {
                let mut found: Vec<String> = found.map(|address| format!("grpc://{address}")).collect();
                found.sort();
                self.known[at] = found;
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
