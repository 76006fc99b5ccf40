//! The key set that the backend publishes, fetched when needed.
//!
//! Keys are fetched with the first token, again when they are older than `jwks_refresh_interval`
//! (the old ones are used meanwhile), and when a token names an unknown key, so that a new key is
//! found immediately. Invented key ids cause at most one request per `jwks_retry_pause`. While the
//! URL does not answer the known keys stay valid.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use goim_ports::{HttpClient, HttpRequest, ServiceUrl};
use tokio::sync::Mutex;

use super::key::VerificationKey;

/// The timeout of a fetch and the maximum size of a set.
const TIMEOUT: Duration = Duration::from_secs(2);
const BYTES_MAX: usize = 256 * 1024;

/// The key set of one URL.
pub(super) struct Jwks {
    url: ServiceUrl,
    refresh: Duration,
    pause: Duration,
    http: Arc<dyn HttpClient>,
    fetched: ArcSwap<KeySet>,
    /// The time of the last attempt; locked during an attempt.
    tried: Mutex<Option<Instant>>,
}

#[derive(Default)]
struct KeySet {
    keys: Arc<Vec<VerificationKey>>,
    /// `None` before the first fetch.
    at: Option<Instant>,
}

impl Jwks {
    pub(super) fn new(
        url: ServiceUrl,
        refresh: Duration,
        pause: Duration,
        http: Arc<dyn HttpClient>,
    ) -> Self {
        Self { url, refresh, pause, http, fetched: ArcSwap::default(), tried: Mutex::default() }
    }

    /// Returns the known keys.
    pub(super) fn keys(&self) -> Arc<Vec<VerificationKey>> {
        Arc::clone(&self.fetched.load().keys)
    }

    /// True when the keys are old, no fetch is in flight and the last attempt is long enough ago.
    pub(super) fn are_due(&self) -> bool {
        let are_old = self.fetched.load().at.is_some_and(|at| at.elapsed() >= self.refresh);
        are_old && self.tried.try_lock().is_ok_and(|tried| tried.is_none_or(|at| at.elapsed() >= self.pause))
    }

    /// True when the keys were never fetched.
    pub(super) fn are_missing(&self) -> bool {
        self.fetched.load().at.is_none()
    }

    /// Fetches the keys, unless the last attempt is too recent. Returns true when an attempt was
    /// made since the call. Concurrent callers share one attempt.
    pub(super) async fn fetch(&self) -> bool {
        let asked = Instant::now();
        let mut tried = self.tried.lock().await;
        // Another caller made an attempt meanwhile.
        if tried.is_some_and(|at| at >= asked) {
            return true;
        }
        if tried.is_some_and(|at| at.elapsed() < self.pause) {
            return false;
        }
        *tried = Some(Instant::now());
        match self.try_fetch().await {
            Ok(keys) => {
                tracing::info!(url = %self.url, keys = keys.len(), "keys for tokens fetched");
                self.fetched.store(Arc::new(KeySet { keys: Arc::new(keys), at: Some(Instant::now()) }));
            }
            Err(error) => tracing::warn!(
                url = %self.url,
                error,
                "keys for tokens cannot be fetched; the known ones stay valid"
            ),
        }
        true
    }

    async fn try_fetch(&self) -> Result<Vec<VerificationKey>, String> {
        let request = HttpRequest {
            body: None,
            url: self.url.reveal().to_owned(),
            headers: vec![("accept", "application/json".to_owned())],
            timeout: TIMEOUT,
            answer_bytes_max: BYTES_MAX,
        };
        let answer = self.http.send(request).await.map_err(|error| error.to_string())?;
        if answer.status != 200 {
            return Err(format!("the status is {}", answer.status));
        }
        // Each key is parsed by itself: one of an unsupported kind must not hide the others.
        let set: serde_json::Value =
            serde_json::from_slice(&answer.body).map_err(|error| format!("not JSON: {error}"))?;
        let list = set.get("keys").and_then(serde_json::Value::as_array).ok_or("has no list of keys")?;
        let read =
            |jwk: &serde_json::Value| VerificationKey::of_set(&serde_json::from_value(jwk.clone()).ok()?);
        let keys: Vec<VerificationKey> = list.iter().filter_map(read).collect();
        if keys.is_empty() {
            return Err("has no key for RS256, ES256 or EdDSA".to_owned());
        }
        Ok(keys)
    }
}
