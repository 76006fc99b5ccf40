//! Requests to discovery servers, as goim's client makes them, and which server they go to.
//!
//! A request that fails on its way moves on to the next server; what a server answers is the
//! caller's concern.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use form_urlencoded::Serializer;
use http_body_util::{BodyExt, Full, Limited};
use hyper::Request;
use hyper::header::CONTENT_TYPE;
use hyper_util::client::legacy::Client as Http;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use parking_lot::Mutex;
use tokio::time::timeout;

use super::config::{DiscoveryConfig, DiscoveryError};
use super::instance::{Polled, code_of, read_poll};

/// Largest answer that is read, in bytes: ten thousand instances.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// Asks servers.
pub(super) struct Client {
    config: DiscoveryConfig,
    http: Http<HttpConnector, Full<Bytes>>,
    /// `host:port` each.
    servers: Mutex<Vec<String>>,
    /// Number of the server that is asked, modulo their count.
    turn: AtomicUsize,
}

impl Client {
    pub(super) fn new(config: DiscoveryConfig) -> Result<Self, DiscoveryError> {
        let bare = |seed: &String| {
            let bare = seed.strip_prefix("http://").unwrap_or(seed).trim_end_matches('/');
            let is_good = bare.rsplit_once(':').is_some_and(|(host, port)| {
                !host.is_empty()
                    && !host.contains(['/', '@'])
                    && port.parse::<u16>().is_ok_and(|port| port > 0)
            });
            if is_good { Ok(bare.to_owned()) } else { Err(DiscoveryError::Address(seed.clone())) }
        };
        let seeds = config.seeds.iter().map(bare).collect::<Result<Vec<_>, _>>()?;
        if seeds.is_empty() {
            return Err(DiscoveryError::NoSeeds);
        }
        let http = Http::builder(TokioExecutor::new()).build(HttpConnector::new());
        // Not all processes of a fleet ask the first one.
        let turn = AtomicUsize::new(usize::try_from(std::process::id()).unwrap_or(0));
        Ok(Self { config, http, servers: Mutex::new(seeds), turn })
    }

    pub(super) fn config(&self) -> &DiscoveryConfig {
        &self.config
    }

    /// Takes over the servers that the servers name.
    pub(super) fn learn_servers(&self, servers: Vec<String>) {
        if !servers.is_empty() {
            *self.servers.lock() = servers;
        }
    }

    /// Those that are asked, for people.
    pub(super) fn servers(&self) -> String {
        self.servers.lock().join(",")
    }

    fn server(&self) -> String {
        let servers = self.servers.lock();
        servers[self.turn.load(Ordering::Relaxed) % servers.len()].clone()
    }

    /// Asks for what is newer than the timestamps, and waits for it as long as the server does.
    pub(super) async fn poll(&self, apps: &[(&str, i64)]) -> Result<Polled, DiscoveryError> {
        let query = Serializer::new(String::new())
            .extend_pairs(apps.iter().map(|(app, _)| ("appid", *app)))
            .extend_pairs([("env", &self.config.env), ("hostname", &self.config.host)])
            .extend_pairs(apps.iter().map(|(_, since)| ("latest_timestamp", since.to_string())))
            .finish();
        let request = Request::get(format!("http://{}/discovery/polls?{query}", self.server()));
        let body = self.ask(request.body(Full::default())).await?;
        read_poll(&body).map_err(unreadable)
    }

    /// Posts `fields`, with what says who this process is, in goim's order.
    pub(super) async fn post(
        &self,
        what: &str,
        app: &str,
        fields: &[(&str, String)],
    ) -> Result<(), DiscoveryError> {
        let DiscoveryConfig { region, zone, env, host, .. } = &self.config;
        let own = [("appid", app), ("env", env), ("hostname", host), ("region", region), ("zone", zone)];
        let mut form: BTreeMap<&str, &str> = own.into();
        form.extend(fields.iter().map(|(name, value)| (*name, value.as_str())));
        let form = Serializer::new(String::new()).extend_pairs(form).finish();
        let request = Request::post(format!("http://{}/discovery/{what}", self.server()))
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        let body = self.ask(request.body(Full::from(form))).await?;
        match code_of(&body).map_err(unreadable)? {
            0 => Ok(()),
            code => Err(DiscoveryError::Refused(code)),
        }
    }

    async fn ask(
        &self,
        request: Result<Request<Full<Bytes>>, hyper::http::Error>,
    ) -> Result<Bytes, DiscoveryError> {
        let asked = async {
            let answer = self.http.request(request.map_err(reason)?).await.map_err(reason)?;
            if answer.status().as_u16() >= 400 {
                return Err(format!("HTTP status {}", answer.status()));
            }
            let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX);
            Ok(body.collect().await.map_err(|error| error.to_string())?.to_bytes())
        };
        let deadline = self.config.request_deadline;
        let answer = timeout(deadline, asked).await;
        answer.unwrap_or_else(|_| Err(format!("no answer within {deadline:?}"))).map_err(|reason| {
            let error = DiscoveryError::Unavailable { servers: self.servers(), reason };
            self.turn.fetch_add(1, Ordering::Relaxed);
            error
        })
    }
}

/// The error with what led to it, which is where the news is.
fn reason(error: impl std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

#[allow(clippy::needless_pass_by_value)]
fn unreadable(error: serde_json::Error) -> DiscoveryError {
    DiscoveryError::Unreadable(error.to_string())
}
