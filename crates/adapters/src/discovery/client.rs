//! Requests to discovery servers, as goim's client sends them, and the choice of the server.
//!
//! After a failed request the next server is used; the caller handles what a server responds.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use form_urlencoded::Serializer;
use goim_ports::{HttpClient as _, HttpRequest};
use parking_lot::Mutex;

use super::config::{DiscoveryConfig, DiscoveryError};
use super::instance::{Polled, code_of, read_poll};
use crate::http::HyperClient;

/// The maximum size of a response, in bytes: about ten thousand instances.
const RESPONSE_BYTES_MAX: usize = 16 << 20;

/// A client of the discovery servers.
pub(super) struct Client {
    config: DiscoveryConfig,
    http: HyperClient,
    /// The servers, as `host:port`.
    servers: Mutex<Vec<String>>,
    /// The index of the current server, modulo the number of servers.
    turn: AtomicUsize,
}

impl Client {
    pub(super) fn new(config: DiscoveryConfig) -> Result<Self, DiscoveryError> {
        let address = |seed: &String| {
            let address = seed.strip_prefix("http://").unwrap_or(seed).trim_end_matches('/');
            let is_valid = address.rsplit_once(':').is_some_and(|(host, port)| {
                !host.is_empty()
                    && !host.contains(['/', '@'])
                    && port.parse::<u16>().is_ok_and(|port| port > 0)
            });
            if is_valid { Ok(address.to_owned()) } else { Err(DiscoveryError::Address(seed.clone())) }
        };
        let seeds = config.seeds.iter().map(address).collect::<Result<Vec<_>, _>>()?;
        if seeds.is_empty() {
            return Err(DiscoveryError::NoSeeds);
        }
        // Different processes start with different servers.
        let turn = AtomicUsize::new(usize::try_from(std::process::id()).unwrap_or(0));
        Ok(Self { config, http: HyperClient::new(), servers: Mutex::new(seeds), turn })
    }

    pub(super) fn config(&self) -> &DiscoveryConfig {
        &self.config
    }

    /// Replaces the servers by those that discovery names.
    pub(super) fn set_servers(&self, servers: Vec<String>) {
        if !servers.is_empty() {
            *self.servers.lock() = servers;
        }
    }

    /// Returns the servers as text for logs and errors.
    pub(super) fn servers(&self) -> String {
        self.servers.lock().join(",")
    }

    fn server(&self) -> String {
        let servers = self.servers.lock();
        servers[self.turn.load(Ordering::Relaxed) % servers.len()].clone()
    }

    /// Long-polls for changes after the timestamps.
    pub(super) async fn poll(&self, apps: &[(&str, i64)]) -> Result<Polled, DiscoveryError> {
        let query = Serializer::new(String::new())
            .extend_pairs(apps.iter().map(|(app, _)| ("appid", *app)))
            .extend_pairs([("env", &self.config.env), ("hostname", &self.config.host)])
            .extend_pairs(apps.iter().map(|(_, since)| ("latest_timestamp", since.to_string())))
            .finish();
        let body = self.exchange(&format!("polls?{query}"), None).await?;
        read_poll(&body).map_err(unreadable)
    }

    /// Posts `fields` and the identity of this process, in goim's order.
    pub(super) async fn post(
        &self,
        action: &str,
        app: &str,
        fields: &[(&str, String)],
    ) -> Result<(), DiscoveryError> {
        let DiscoveryConfig { region, zone, env, host, .. } = &self.config;
        let own = [("appid", app), ("env", env), ("hostname", host), ("region", region), ("zone", zone)];
        let mut form: BTreeMap<&str, &str> = own.into();
        form.extend(fields.iter().map(|(name, value)| (*name, value.as_str())));
        let form = Serializer::new(String::new()).extend_pairs(form).finish();
        let body = self.exchange(action, Some(form)).await?;
        match code_of(&body).map_err(unreadable)? {
            0 => Ok(()),
            code => Err(DiscoveryError::Refused(code)),
        }
    }

    /// Sends a request to the current server. After a failure the next request uses another server.
    async fn exchange(&self, path: &str, form: Option<String>) -> Result<Bytes, DiscoveryError> {
        let headers = match form {
            Some(_) => vec![("content-type", "application/x-www-form-urlencoded".to_owned())],
            None => Vec::new(),
        };
        let request = HttpRequest {
            body: form.map(Bytes::from),
            url: format!("http://{}/discovery/{path}", self.server()),
            headers,
            timeout: self.config.request_deadline,
            answer_bytes_max: RESPONSE_BYTES_MAX,
        };
        let result = match self.http.send(request).await {
            Ok(response) if response.status >= 400 => Err(format!("HTTP status {}", response.status)),
            Ok(response) => Ok(response.body),
            Err(error) => Err(error.to_string()),
        };
        result.map_err(|reason| {
            let error = DiscoveryError::Unavailable { servers: self.servers(), reason };
            self.turn.fetch_add(1, Ordering::Relaxed);
            error
        })
    }
}

#[allow(clippy::needless_pass_by_value)]
fn unreadable(error: serde_json::Error) -> DiscoveryError {
    DiscoveryError::Unreadable(error.to_string())
}
